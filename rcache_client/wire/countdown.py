"""The countdown buffer: how the bytes of a frame, a record or a file header are read (`quick` says how it does without).

What it is: a cursor over some bytes that knows how many are still owed. Every take is checked against that number and
counts it down; at the end it must be exactly zero.
Which thread runs it: the caller's.
What it owns: a reference to the bytes; takes return copies.
What it must not know: what the bytes mean.

Invariants:
1. No byte before `start` or from `end` on is ever read, whatever lengths the bytes themselves claim.
2. A take either returns all it was asked for or raises; nothing is ever trimmed or padded.
3. Whoever is done calls `finish`, which raises unless everything was taken.
"""

from __future__ import annotations

from struct import Struct
from typing import Any


class CountdownError(ValueError):
    """The bytes claim more than there is, or bring more than they claim."""


class Countdown:
    """Reads `data[start:end]` from front to back.

    Raises `CountdownError` where the bytes do not come out even. Never blocks.
    """

    __slots__ = ("_at", "_data", "_end")

    def __init__(self, data: bytes, start: int = 0, end: int | None = None) -> None:
        end = len(data) if end is None else end
        if not 0 <= start <= end <= len(data):
            raise CountdownError(f"bytes {start} to {end} of {len(data)} are not there")
        self._data = data
        self._at = start
        self._end = end

    @property
    def remaining(self) -> int:
        """Bytes still owed."""
        return self._end - self._at

    def take(self, count: int) -> bytes:
        """The next `count` bytes."""
        at = self._at
        if count < 0 or count > self._end - at:  # invariants 1 and 2
            raise CountdownError(f"{count} bytes claimed, {self._end - at} left")
        self._at = at + count
        return self._data[at : at + count]

    def unpack(self, layout: Struct) -> tuple[Any, ...]:
        """The next `layout.size` bytes, unpacked."""
        at = self._at
        if layout.size > self._end - at:  # invariants 1 and 2
            raise CountdownError(f"{layout.size} bytes needed, {self._end - at} left")
        self._at = at + layout.size
        return layout.unpack_from(self._data, at)

    def finish(self) -> None:
        """The end: everything must have been taken."""
        if self._at != self._end:  # invariant 3
            raise CountdownError(f"{self._end - self._at} bytes left over")
