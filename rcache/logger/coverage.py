"""Coverage: up to where each bucket is recorded, and whether what is recorded is all that a rebuild needs.

What it is: a pure table, told of each change, gap and base as it is recorded. `records.history` says the same of files that are
read again; this one says it while they are written.
Which thread runs it: any, under its owner's lock. What it owns: the table. What it must not know: files, nodes, records' bytes.

Invariants:
1. `place` is a sequence up to which nothing more need be told: a change at or before it is not recorded a second time.
2. A bucket is whole if a base (or its birth) is recorded and everything on its chain behind that, up to `place`. A base heals a
   hole if it began behind it: it is a copy of the bucket together with all changes after its beginning.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from rcache.records.record import BORN_EMPTY


@dataclass(frozen=True, slots=True)
class Covered:
    """One bucket. `hole`: the first recorded sequence behind which nothing is missing; a base must begin there or later."""

    place: int = 0
    is_whole: bool = False
    hole: int = 0


class Coverage:
    """See the module."""

    def __init__(self, known: Mapping[int, Covered]) -> None:
        self._buckets: dict[int, Covered] = dict(known)

    def __getitem__(self, bucket: int) -> Covered:
        return self._buckets.get(bucket, Covered())

    def places(self) -> dict[int, int]:
        """Up to where each bucket is recorded of which anything is."""
        return {bucket: covered.place for bucket, covered in self._buckets.items()}

    def lacking(self) -> list[int]:
        """The buckets that need a base."""
        return [bucket for bucket, covered in self._buckets.items() if not covered.is_whole]

    def begin(self, bucket: int, place: int) -> bool:
        """Changes are told from behind this place on. Whether that is where the record stands: else what lies between, or at
        least the OPEN that leads here, is in no file."""
        if bucket in self._buckets and self._buckets[bucket].place == place:
            return True
        self._break(bucket, place)
        return False

    def change(self, bucket: int, sequence: int, before: int) -> bool:
        """A change of the bucket's history is about to be recorded; `before`: the sequence that it follows. Whether it is new
        (invariant 1)."""
        covered = self[bucket]
        if sequence <= covered.place:
            return False
        if before in (covered.place, BORN_EMPTY):
            is_whole = covered.is_whole or before == BORN_EMPTY
            self._buckets[bucket] = replace(covered, place=sequence, is_whole=is_whole)
        else:
            self._break(bucket, sequence)
        return True

    def gap(self, bucket: int, upto: int) -> None:
        """Changes up to this sequence are not told; or the history went back to it, and what was recorded beyond is dead."""
        self._break(bucket, upto)

    def _break(self, bucket: int, place: int) -> None:
        self._buckets[bucket] = Covered(place, is_whole=False, hole=max(place, self[bucket].hole))

    def base(self, bucket: int, begin: int) -> bool:
        """A base that began there is recorded. Whether the bucket is whole with it (invariant 2)."""
        covered = self[bucket]
        is_whole = covered.is_whole or begin >= covered.hole
        self._buckets[bucket] = replace(covered, is_whole=is_whole)
        return is_whole
