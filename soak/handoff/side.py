"""What is measured of: a cluster of three nodes, one of which is to leave.

What it is: `Side`, and what both sides have in common.
Which thread runs it: the main thread; every wait ends at a deadline.
What it owns: nothing. What it must not know: how a cluster is set up.

Both keep an append log that is synced every second. Of rcached every bucket has a backup, and has one again when the node has
gone; Redis Cluster's three masters have no replicas, so it moves keys only, and has half as many copies to keep.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from soak.bench.errors import BenchError

NODES = 3
BATCH = 500
"""Keys that are filled in at once."""

LOOK_S = 0.01
WAIT_S = 600.0


class Side(Protocol):
    """A cluster while it runs."""

    name: str
    command: str

    @property
    def servers(self) -> str:
        """Where a client begins, with commas between: the nodes that stay."""
        ...

    def fill(self, count: int, value: bytes) -> None:
        """Store `value` under so many keys."""
        ...

    def to_move(self) -> int:
        """The items that the node which is to leave has: of rcached also those that it is backup of."""
        ...

    def hand_over(self) -> dict[str, float]:
        """Have that node leave. Blocks until it has nothing any more; `seconds` is how long that took."""
        ...


def wait_until(done: Callable[[], bool], what: str, timeout_s: float = WAIT_S) -> None:
    """Raises `BenchError` where that takes too long."""
    deadline = time.monotonic() + timeout_s
    while not done():
        if time.monotonic() > deadline:
            raise BenchError(f"{what} after {timeout_s:g} s")
        time.sleep(LOOK_S)
