"""Tests of `rcache_client.wire`."""
