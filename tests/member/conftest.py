"""Parts of the control plane: by a clock that the test turns."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from rcache.member import board, hearing, neighbours, openings, sessions, telling, watch
from rcache.peers import books
from tests.member.harness import Clock
from tests.member.running import Running


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """What leases are measured by here."""
    clock = Clock()
    for module in (board, books, hearing, neighbours, openings, sessions, telling, watch):
        monkeypatch.setattr(module, "boot_ns", clock.boot_ns)
    return clock


@pytest.fixture
def running() -> Iterator[Callable[..., Running]]:
    made: list[Running] = []

    def make(first: Any, **more: Any) -> Running:
        made.append(Running(first, **more))
        return made[-1]

    yield make
    for each in made:
        each.stop()
