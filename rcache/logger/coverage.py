"""Coverage: up to where each bucket is recorded, and whether what is recorded is all that a rebuild needs.

What it is: a pure table, told of each change, gap and base as it is recorded. `records.history` says the same of files that are
read again; this one says it while they are written.
Which thread runs it: any, under its owner's lock. What it owns: the table. What it must not know: files, nodes, records' bytes.

Invariants:
1. `place` is a sequence up to which nothing more need be told: a change at or before it is not recorded a second time.
2. A bucket is whole if a base (or its birth) is recorded, and everything on its chain behind the base's begin, up to its end at
   least. (A row may be newer than the begin, so without the changes up to the end it is a copy of no moment.)
3. A base is one only if nothing is missing behind its begin: it begins at the bucket's last hole or later.
4. A sequence that was recorded, and that the bucket's history has gone back behind, is never used again: whoever goes on from
   there does so in a new epoch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from rcache.records.record import BORN_EMPTY, counter_of


class Step(Enum):
    """What a change is to the record. AGAIN: it is there already; BREAKS: what comes before it is not, and there was a base."""

    AGAIN = "again"
    FOLLOWS = "follows"
    BREAKS = "breaks"


class Standing(Enum):
    """How the place from which on a bucket is told of stands to the record. NEW: of that bucket nothing is recorded; OPENED: it
    is behind the OPEN that follows the record immediately; ELSEWHERE: what lies between is not told."""

    HERE = "here"
    OPENED = "opened"
    NEW = "new"
    ELSEWHERE = "elsewhere"


@dataclass(frozen=True, slots=True)
class Covered:
    """One bucket. `time_ms`: of its last record, as far as that is known; what is made up behind it is of that time. `due`:
    where the last copy ended, up to which the bucket is known to have gone; before that it is not whole."""

    place: int = 0
    is_whole: bool = False
    time_ms: int = 0
    due: int = 0


@dataclass(slots=True)
class _Bucket:
    """`hole`: behind it nothing is missing; `is_copied`: the begin of a copy is recorded, and since then nothing that voids it;
    `top`: the highest sequence that was ever recorded."""

    place: int = 0
    time_ms: int = 0
    has_base: bool = False
    due: int = 0
    is_copied: bool = False
    hole: int = 0
    top: int = 0


class Coverage:
    """See the module."""

    def __init__(self, known: Mapping[int, Covered]) -> None:
        self._buckets = {
            bucket: _Bucket(each.place, each.time_ms, each.is_whole, each.due, hole=each.place, top=each.place)
            for bucket, each in known.items()
        }
        self._lacking = {bucket for bucket, each in self._buckets.items() if not each.has_base}
        self._due: set[int] = set()
        self._back: set[int] = set()

    def __getitem__(self, bucket: int) -> Covered:
        each = self._buckets.get(bucket, _Bucket())
        return Covered(each.place, each.has_base and each.place >= each.due, each.time_ms, each.due)

    @property
    def whole(self) -> int:
        """How many buckets are whole (invariant 2)."""
        return len(self._buckets) - len(self._lacking) - len(self._due)

    def places(self) -> dict[int, int]:
        """Up to where each bucket is recorded of which anything is."""
        return {bucket: each.place for bucket, each in self._buckets.items()}

    def lacking(self) -> list[int]:
        """The buckets that need a base."""
        return sorted(self._lacking)

    def lacks(self, bucket: int) -> bool:
        return bucket in self._lacking

    # --- changes

    def standing(self, bucket: int, place: int) -> Standing:
        """How it stands that changes are told from behind this place on, where `place` was asked for from the record's. (A node
        names another place than that only where it is the same one: behind the OPEN that came next.)"""
        recorded = self._buckets.get(bucket)
        if recorded is None or not recorded.time_ms:
            return Standing.NEW
        if recorded.place == place:
            return Standing.HERE
        return Standing.OPENED if place > recorded.place and not counter_of(place) else Standing.ELSEWHERE

    def change(self, bucket: int, sequence: int, before: int, time_ms: int) -> Step:
        """A change of the bucket's history is about to be recorded, unless it is AGAIN; `before`: the sequence that it
        follows."""
        each = self._of(bucket)
        if sequence <= each.place:
            return Step.AGAIN
        step = Step.FOLLOWS
        if before == BORN_EMPTY:
            self._has_base(bucket, each)
        elif before != each.place or (each.due > before and not counter_of(sequence)):  # the latter: its base's end is dead
            step = Step.BREAKS if each.has_base else Step.FOLLOWS
            self._break(bucket, each, sequence)
        each.place, each.time_ms = sequence, time_ms
        if self._back and sequence > each.top:
            self._back.discard(bucket)
        if self._due and sequence >= each.due:
            self._due.discard(bucket)
        return step

    def gap(self, bucket: int, upto: int) -> bool:
        """Changes up to this sequence are not told; or the history went back to it, and what was recorded beyond is dead.
        Whether there was a base."""
        each = self._of(bucket)
        had_base = each.has_base
        self._break(bucket, each, upto)
        each.place = upto
        (self._back.add if upto < each.top else self._back.discard)(bucket)
        return had_base

    def went_back(self) -> dict[int, int]:
        """The buckets whose history goes on from before what was recorded, and from where."""
        return {bucket: self._buckets[bucket].place for bucket in self._back}

    def was_used(self, bucket: int, sequence: int) -> bool:
        """Whether a change of that sequence, or a later one, was recorded."""
        each = self._of(bucket)
        return sequence <= max(each.top, each.place)

    def _of(self, bucket: int) -> _Bucket:
        each = self._buckets.get(bucket)
        if each is None:
            each = self._buckets[bucket] = _Bucket()
            self._lacking.add(bucket)
        return each

    def _break(self, bucket: int, each: _Bucket, place: int) -> None:
        each.top = max(each.top, each.place)
        each.hole = max(each.hole, place)
        each.is_copied = each.is_copied and not each.has_base  # who has none needs no mark, which would end the copy
        self._has_none(bucket, each)

    # --- bases

    def copy_begins(self, bucket: int) -> None:
        """The begin of a copy is recorded: what came before it is the bucket's copy no longer (`records.holdings`)."""
        each = self._of(bucket)
        each.is_copied = True
        self._has_none(bucket, each)

    def base(self, bucket: int, begin: int, end: int, time_ms: int) -> bool:
        """A base is recorded, whose end is of that time. Whether it is one (invariant 3)."""
        each = self._of(bucket)
        each.time_ms, each.due = max(each.time_ms, time_ms), max(each.due, end)
        if each.has_base or (each.is_copied and begin >= each.hole):
            self._has_base(bucket, each)
        each.is_copied = False
        return each.has_base

    def _has_base(self, bucket: int, each: _Bucket) -> None:
        each.has_base = True
        self._lacking.discard(bucket)
        if each.place < each.due:
            self._due.add(bucket)

    def _has_none(self, bucket: int, each: _Bucket) -> None:
        each.has_base = False
        self._lacking.add(bucket)
        self._due.discard(bucket)
