"""Reasons to stop: from signal handlers, and from the append log when it fails.

Which thread runs it: `ask` and `signal` any thread and signal handlers (a SimpleQueue's `put` may interrupt itself); `wait` the
main thread. What it owns: the queue of reasons. What it must not know: how a stop is done.
"""

from __future__ import annotations

import queue

LOOK_S = 0.2
"""How late a signal may be noticed. One that comes in the instant before the main thread falls asleep does not wake it, and
Python runs a handler only in that thread, once it runs again."""


class Stops:
    """Collects reasons; the first one counts."""

    def __init__(self) -> None:
        self._reasons: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.signalled = ""
        self.signals = 0

    def ask(self, why: str) -> None:
        """The node is to stop."""
        self._reasons.put(why)

    def signal(self, name: str) -> None:
        """The node is to stop, because this signal came; a start under way is given up for it."""
        self.signalled = name
        self.signals += 1
        self._reasons.put(name)

    def wait_for(self, seconds: float) -> str:
        """Block for so long at most. Returns the reason, "" if there is none yet."""
        try:
            return self._reasons.get(timeout=seconds)
        except queue.Empty:
            return ""

    def wait(self) -> str:
        """Block until there is a reason. Returns it."""
        while True:
            if reason := self.wait_for(LOOK_S):
                return reason
