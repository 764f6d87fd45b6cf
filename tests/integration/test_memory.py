"""--memory-limit under a workload larger than it: obeyed by eviction, or by refusal with --no-evict."""

from __future__ import annotations

import random

import pytest

from rcache_client import Client, NoRoom

from .conftest import Serve
from .support import held, stats

LIMIT = 16 << 20
WORKLOAD = 48 << 20
SEED = 11


def workload() -> list[tuple[str, bytes]]:
    print(f"workload: seed {SEED}")
    chance = random.Random(SEED)
    items, total = [], 0
    while total < WORKLOAD:
        value = chance.randbytes(int(60_000 * chance.random() ** 3))
        items.append((f"memory-{len(items)}", value))
        total += len(value)
    return items


def test_the_limit_is_obeyed_and_the_used_ones_stay(serve: Serve) -> None:
    server = serve("--memory-limit", "16M", "--append-log-fsync", "never")
    items = workload()
    before = stats(server, "memory")["process_bytes"]
    with Client(server.address) as cache:
        cache.set("always read", b"kept")
        for number, (key, value) in enumerate(items):
            cache.set(key, value)
            if number % 50 == 0:
                assert cache.get("always read") == b"kept"
                assert cache.stats("memory")["memory"]["used_bytes"] <= LIMIT
        assert cache.get("always read") == b"kept"
    figures = stats(server, "items")
    assert figures["evicted"] > 0
    assert figures["items"] + figures["evicted"] == len(items) + 1
    assert stats(server, "memory")["used_bytes"] > LIMIT * 0.9, "room is used, not wasted"
    found = held(server, dict(items))
    assert all(found[key] == value for key, value in items if key in found)
    assert items[-1][0] in found
    assert items[0][0] not in found
    grown = stats(server, "memory")["process_bytes"] - before
    print(f"the process grew by {grown} bytes under a limit of {LIMIT}")
    assert grown < 4 * LIMIT + (64 << 20), "the items, a copy of the newest in the change stream, and the allocator's share"


def test_no_evict_refuses_and_keeps_what_is_there(serve: Serve) -> None:
    server = serve("--memory-limit", "16M", "--no-evict")
    stored: dict[str, bytes] = {}
    refused = 0
    with Client(server.address) as cache:
        for key, value in workload():
            try:
                cache.set(key, value)
                stored[key] = value
            except NoRoom:
                refused += 1
        assert refused > 0
        assert cache.get_many(list(stored)) == stored
        with pytest.raises(NoRoom):
            cache.set("large", b"x" * 1_000_000)
        assert stats(server, "items")["evicted"] == 0
        assert stats(server, "memory")["used_bytes"] <= LIMIT
        largest = max(stored, key=lambda key: len(stored[key]))
        assert cache.delete(largest), "a delete needs no room"
        cache.set("now it fits", stored[largest][:-600])
        assert cache.get("now it fits") is not None


def test_what_was_evicted_stays_away_after_a_restart(serve: Serve) -> None:
    server = serve("--memory-limit", "16M")
    items = dict(workload())
    with Client(server.address) as cache:
        for key, value in items.items():
            cache.set(key, value)
    before = held(server, items)
    assert 0 < len(before) < len(items)
    assert server.stop() == 0
    assert held(serve("--memory-limit", "16M"), items) == before


def test_a_smaller_limit_at_the_next_start(serve: Serve) -> None:
    server = serve("--memory-limit", "64M")
    items = dict(workload())
    with Client(server.address) as cache:
        for key, value in items.items():
            cache.set(key, value)
    assert server.stop() == 0
    refused = serve("--memory-limit", "16M", "--no-evict", start=False)
    refused.launch()
    assert refused.wait() == 2
    assert "--memory-limit" in refused.stderr_text
    smaller = serve("--memory-limit", "16M")
    assert stats(smaller, "memory")["used_bytes"] <= LIMIT
    assert "evicted" in smaller.stderr_text
