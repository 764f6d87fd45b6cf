"""Small things that several test modules need."""

from __future__ import annotations

import random
from collections.abc import Callable
from threading import Event
from time import monotonic
from typing import Any

from rcache_client import Client
from soak.server_process import ServerProcess

WAIT_S = 20.0


def until(condition: Callable[[], object], what: str = "", timeout_s: float = WAIT_S) -> None:
    """Wait, to a deadline, for what another process does."""
    deadline = monotonic() + timeout_s
    while not condition():
        assert monotonic() < deadline, f"not within {timeout_s:g} s: {what or condition}"
        Event().wait(0.01)


def stats(server: ServerProcess, section: str) -> dict[str, Any]:
    """One section of a server's figures."""
    with Client(server.address) as cache:
        figures = cache.stats(section)[section]
    assert isinstance(figures, dict)
    return figures


def fill(server: ServerProcess, count: int, value_bytes: int = 100, seed: int = 1, prefix: str = "key") -> dict[str, bytes]:
    """Store `count` values of about `value_bytes`; what is there then."""
    print(f"fill: seed {seed}")
    chance = random.Random(seed)
    values = {f"{prefix}-{number}": chance.randbytes(chance.randrange(value_bytes * 2)) for number in range(count)}
    with Client(server.address) as cache:
        cache.set_many(values)
    return values


def held(server: ServerProcess, keys: dict[str, bytes]) -> dict[str, bytes]:
    """What the server has under these keys."""
    with Client(server.address) as cache:
        return cache.get_many(list(keys))
