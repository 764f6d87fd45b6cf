"""What a client with a near cache read, held against what it was promised.

What it is: `Nearness`, of one such client. Which thread runs it: the writer's (`begin_write`, `end_write`) and the reader's
(`read`); it has a lock of its own. What it owns: what was written to each key, of late, and what was read last.
What it must not know: how values get anywhere.

Every key has one writer, which writes each value once and has one write under way at a time. So the writes of a key have an
order, and what a read finds has a place in it. (A write of unknown outcome may take effect at any time, once: what it wrote,
and a miss after a delete of that kind, is never held against anybody.)

1. *Bounded staleness*: a read sees the last write that was acknowledged `staleness_s` before it began, or a later one.
2. *Monotonic reads*: it sees no earlier write than a read that had ended before.
3. *Read your writes*: where the reader is the writer, it sees its own last write: that is 1. with a staleness of 0.
"""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from dataclasses import dataclass

WRITES_KEPT = 4000
"""Of a key: far more than are made in the longest time that a value may be stale."""

WRONG_SHOWN = 5

NEVER = float("inf")


@dataclass(slots=True)
class _Write:
    """`value` None: it removed the key. Times in seconds, of one clock; `ended_at` NEVER: under way, or of unknown outcome."""

    place: int
    value: bytes | None
    began_at: float
    ended_at: float = NEVER
    is_unknown: bool = False


class _Key:
    def __init__(self) -> None:
        self.writes: deque[_Write] = deque([_Write(0, None, -NEVER, -NEVER)], maxlen=WRITES_KEPT)  # at first it is not there
        self.by_value: dict[bytes, _Write] = {}
        self.seen = 0  # the place of the latest write that a read found which has ended


class Nearness:
    """See the module. `wrong`: the first few violations."""

    def __init__(self, staleness_s: float) -> None:
        self.wrong: list[str] = []
        self.reads = 0
        self.stalest_s = 0.0
        """The longest that a value was read after the next one had been acknowledged."""
        self._staleness_s = staleness_s
        self._lock = threading.Lock()
        self._keys: dict[str, _Key] = defaultdict(_Key)

    def begin_write(self, key: str, value: bytes | None, now: float) -> int:
        """A write is about to be sent. Returns its place."""
        with self._lock:
            held = self._keys[key]
            write = _Write(held.writes[-1].place + 1, value, now)
            if len(held.writes) == WRITES_KEPT:
                gone = held.writes[0]
                if gone.value is not None:
                    held.by_value.pop(gone.value, None)
            held.writes.append(write)
            if value is not None:
                held.by_value[value] = write
            return write.place

    def end_write(self, key: str, place: int, now: float, *, is_unknown: bool = False) -> None:
        """It was acknowledged; or nobody knows what became of it. (One that surely was not executed: `is_unknown`, too.)"""
        with self._lock:
            for write in reversed(self._keys[key].writes):
                if write.place == place:
                    write.is_unknown = is_unknown
                    write.ended_at = NEVER if is_unknown else now
                    return

    def begin_read(self, key: str) -> int:
        """Returns the place that no read which begins now may be behind."""
        with self._lock:
            return self._keys[key].seen

    def end_read(self, key: str, value: bytes | None, began_at: float, least: int, staleness_s: float | None = None) -> None:
        """What was read. `least`: what `begin_read` said; `staleness_s`: another one than this client's."""
        bound_s = self._staleness_s if staleness_s is None else staleness_s
        with self._lock:
            self.reads += 1
            held = self._keys[key]
            found = self._found(held, value)
            if found is None:
                self._say(f"{key} is {value!r}, which nobody wrote")
                return
            if found.is_unknown:
                return
            if found.place < least:
                self._say(f"{key}: {value!r} was read after a later one: write {found.place} after {least}")
            self._look_at_age(key, held, found, began_at, bound_s)
            held.seen = max(held.seen, found.place)

    def _found(self, held: _Key, value: bytes | None) -> _Write | None:
        """The write that a read found: of a miss the last removal that it can have been; one of unknown outcome excuses all."""
        if value is not None:
            return held.by_value.get(value)
        removals = [write for write in held.writes if write.value is None]
        return next((write for write in removals if write.is_unknown), removals[-1] if removals else None)

    def _look_at_age(self, key: str, held: _Key, found: _Write, began_at: float, bound_s: float) -> None:
        later = [write for write in held.writes if write.place > found.place and write.ended_at < began_at]
        if not later:
            return
        age_s = began_at - min(write.ended_at for write in later)
        self.stalest_s = max(self.stalest_s, age_s)
        if age_s > bound_s:
            after = f"{age_s:.3f} s after {later[0].value!r} had been acknowledged (bound {bound_s:g} s)"
            self._say(f"{key}: {found.value!r} was read {after}")

    def _say(self, what: str) -> None:
        if len(self.wrong) < WRONG_SHOWN:
            self.wrong.append(what)
