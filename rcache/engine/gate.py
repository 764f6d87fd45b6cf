"""The gate for what a peer sends, in plain Python: a lock, a loan, and nothing is let in without asking.

Which thread runs it: any. What it owns: its lock. What it must not know: what is taken in under it.
"""

from __future__ import annotations

import threading
from typing import Protocol


class Loans(Protocol):
    """What is lent, by sources."""

    def open(self, source: int) -> None: ...

    def lend(self, source: int) -> int: ...

    def close(self, source: int) -> None: ...


class PlainGate:
    """See `contract.Gate`."""

    counts = (0, 0, 0)

    def __init__(self, loans: Loans, source: int) -> None:
        self._lock = threading.Lock()
        self._loans = loans
        self._source = source
        loans.open(source)

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

    def lend(self) -> int:
        return self._loans.lend(self._source)

    def close(self) -> None:
        """Nothing is lent any more."""
        self._loans.close(self._source)
