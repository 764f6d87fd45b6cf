"""The gate for what a peer sends, in plain Python: a lock, and nothing is let in without asking.

Which thread runs it: any. What it owns: its lock. What it must not know: what is taken in under it.
"""

from __future__ import annotations

import threading


class PlainGate:
    """See `contract.Gate`."""

    counts = (0, 0, 0)

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def allow(self, epoch: int, sender: int, receiver: int, generation: int) -> None:
        """Every frame goes to who asked for this."""

    def forbid(self) -> None:
        """As before."""

    def take_stumbled(self) -> bool:
        return False

    def close(self) -> None:
        """As before."""
