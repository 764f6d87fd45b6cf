"""What was read of some buckets and waits to be told: they are frozen, or their backups are slow, or what leads to their OPEN
comes before it.

What it is: for each such bucket what is due, in its order, so that the other buckets' changes go on meanwhile.
Which thread runs it: the teller's.
What it owns: what waits. What it must not know: engines, why it waits.

It guarantees: a bucket's own come out in the order in which they went in. No more than `bytes_max` wait: beyond, the bucket
that has most loses what waits of it, and has one loss in its place.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

from rcache.feeds.told import ENTRY_BYTES, Told


class Due(NamedTuple):
    """To be told of a bucket once everything before `position` of the stream is committed: `told`; and that what came up to the
    sequence `upto`, and was not told by then, is lost."""

    position: int
    told: list[Told]
    upto: int = 0

    @property
    def size(self) -> int:
        return ENTRY_BYTES + sum(told.size for told in self.told)


class Waiting:
    """See the module. Iteration gives the buckets."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._due: dict[int, deque[Due]] = {}
        self._sizes: dict[int, int] = {}
        self._bytes = 0

    def __contains__(self, bucket: int) -> bool:
        return bucket in self._due

    def __iter__(self) -> Iterator[int]:
        return iter(list(self._due))

    def __len__(self) -> int:
        return len(self._due)

    @property
    def bytes(self) -> int:
        return self._bytes

    def add(self, bucket: int, due: Due) -> None:
        self._due.setdefault(bucket, deque()).append(due)
        self._count(bucket, due.size)
        while self._bytes > self._bytes_max and self._lose_some():
            pass

    def _count(self, bucket: int, size: int) -> None:
        self._sizes[bucket] = self._sizes.get(bucket, 0) + size
        self._bytes += size

    def _lose_some(self) -> bool:
        """Whether there was something to lose."""
        most = max(self._sizes, key=self._sizes.__getitem__)
        due = self._due[most]
        if not any(each.told for each in due):
            return False
        ends = [told.heads[-1].sequence for each in due for told in each.told]
        loss = Due(due[-1].position, [], max([*ends, *(each.upto for each in due)]))
        self._due[most] = deque([loss])
        self._count(most, loss.size - self._sizes[most])
        return True

    def first(self, bucket: int) -> Due | None:
        """What is due next of a bucket."""
        due = self._due.get(bucket)
        return due[0] if due else None

    def pop(self, bucket: int) -> None:
        """The first was told."""
        due = self._due[bucket]
        self._count(bucket, -due.popleft().size)
        if not due:
            self.drop(bucket)

    def drop(self, bucket: int) -> None:
        """Nothing of this bucket is told any more."""
        self._due.pop(bucket, None)
        self._bytes -= self._sizes.pop(bucket, 0)
