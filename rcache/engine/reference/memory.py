"""The memory account: how much items may take and do take.

Which thread runs it: any. What it owns: two numbers and their lock, the innermost of all.
What it must not know: items, eviction.

Invariant: what is taken through `try_take` never passes the limit; only `force` (recovery, and what peers send) can.
"""

from __future__ import annotations

import threading


class MemoryAccount:
    """Bytes in use against a limit."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0  # kept free of what is this node's own (`loans`)
        self._used = 0
        self._lock = threading.Lock()

    @property
    def used(self) -> int:
        """Bytes taken and not given back, those set aside for changes under way included."""
        return self._used

    def try_take(self, count: int) -> bool:
        """Take `count` bytes if the limit allows it, and what is lent to others."""
        with self._lock:
            if count > 0 and self._used + count > self.limit - self.held:
                return False
            self._used += count
            return True

    def force(self, count: int) -> None:
        """Take `count` bytes whatever the limit says, or give them back where negative."""
        with self._lock:
            self._used += count
