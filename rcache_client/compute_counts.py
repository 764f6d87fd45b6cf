"""What `get_or_compute` has done so far, counted.

What it is: the counts of one client, because errors that the application goes on without the cache for would be hidden else.
Which thread runs it: any. What it owns: the counts. What it must not know: anything else.
"""

from __future__ import annotations

from threading import Lock
from typing import NamedTuple


class ComputeCounts(NamedTuple):
    """Calls by what they came to, since the client was made (or its process forked).

    `hits`, `stale`: a value was there, within its ttl or after it; `waited`: another caller, here or elsewhere, computed it.
    `computed`: the function returned; of these `refreshed` while there still was a value. `failed`: it raised.
    `overtaken`: computed and not stored, because the key was deleted, set or computed anew meanwhile, or the lease was lost.
    `not_stored`: the same, because storing failed. `without_cache`: computed because the cache could not be used.
    `last_trouble`: the last error that was not raised: of one of those two, or of a refresh that failed; "": there was none.
    """

    hits: int = 0
    stale: int = 0
    waited: int = 0
    computed: int = 0
    refreshed: int = 0
    failed: int = 0
    overtaken: int = 0
    not_stored: int = 0
    without_cache: int = 0
    last_trouble: str = ""


class Counts:
    """Counts up. Thread-safe."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Start anew."""
        self._lock = Lock()
        self._counts: dict[str, int] = {}
        self._last_trouble = ""

    def add(self, name: str) -> None:
        """One more of that name."""
        with self._lock:
            self._counts[name] = self._counts.get(name, 0) + 1

    def trouble(self, error: Exception) -> None:
        """Remember what went wrong, and was not raised."""
        self._last_trouble = f"{type(error).__name__}: {error}"

    def told(self) -> ComputeCounts:
        """All of them, as of now."""
        with self._lock:
            return ComputeCounts(**self._counts, last_trouble=self._last_trouble)
