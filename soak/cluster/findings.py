"""What was violated: one list, to which every thread of the run may add.

What it is: `Findings`. Which thread runs it: any; it has a lock of its own.
What it owns: the list. What it must not know: what a violation is.
"""

from __future__ import annotations

import threading

KEPT = 100
"""One fault of a server is found in many ways; more than so many say nothing new."""


class Findings:
    """`any` is set with the first."""

    def __init__(self) -> None:
        self.any = threading.Event()
        self._lock = threading.Lock()
        self._found: list[str] = []

    def add(self, what: str) -> None:
        """Something that must hold does not."""
        with self._lock:
            if len(self._found) < KEPT and what not in self._found:
                self._found.append(what)
        self.any.set()

    def all(self) -> list[str]:
        with self._lock:
            return list(self._found)
