"""Fixtures: a server with nothing wrong, and a client of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from rcache_client import Client

from .scripted_server import ScriptedServer


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer() as running:
        yield running


@pytest.fixture
def cache(server: ScriptedServer) -> Iterator[Client[bytes]]:
    with Client(server.address) as client:
        yield client
