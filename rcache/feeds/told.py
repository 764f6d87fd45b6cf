"""What was told: committed records and notices in their order, for as long as they are held.

What it is: an entry of it, and `Held`: a list with an end that grows and a beginning that is let go of, by bytes. Who reads it
keeps a place in it.
Which thread runs it: the teller's adds; feeds read. Under the teller's lock.
What it owns: the entries. What it must not know: who reads.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

from rcache.records.record import Head, Kind, decode, decode_opening, without_value
from rcache_client.wire.feeds import Notice, NoticeKind

ENTRY_BYTES = 300
"""What an entry takes beside its records, and each of these beside its bytes, about; with what is cached."""


@dataclass(frozen=True)
class Told:
    """Records that were committed, oldest first, and where each lies in `body`; or a notice, which stands between them.

    What is cached is the same for every subscriber, and made for the first one that needs it."""

    body: bytes
    heads: tuple[Head, ...]
    notice: Notice | None = None

    @property
    def size(self) -> int:
        return len(self.body) + ENTRY_BYTES * (1 + len(self.heads))

    @cached_property
    def is_whole(self) -> bool:
        """Whether `body` has nothing else than these records."""
        return sum(head.end - head.start for head in self.heads) == len(self.body)

    @cached_property
    def firsts(self) -> dict[int, int]:
        """Of each bucket the sequence of its oldest record here."""
        return {head.bucket: head.sequence for head in reversed(self.heads)}

    @cached_property
    def lasts(self) -> dict[int, int]:
        """Of each bucket the sequence of its newest record here."""
        return {head.bucket: head.sequence for head in self.heads}

    @cached_property
    def names(self) -> bytes:
        """The records without values."""
        return b"".join([without_value(self.body, head) for head in self.heads])


def join(records: Iterable[tuple[bytes, Head]]) -> Told:
    """One entry of these records, each with the bytes that it lies in."""
    kept: list[bytes] = []
    placed: list[Head] = []
    at = 0
    for body, head in records:
        kept.append(body[head.start : head.end])
        size = head.end - head.start
        placed.append(head._replace(start=at, end=at + size))
        at += size
    return Told(b"".join(kept), tuple(placed))


def place_before(body: bytes, head: Head) -> int:
    """The sequence that a record of a history follows on: what an OPEN says, else the one before its own."""
    if head.kind == Kind.OPEN:
        return decode_opening(decode(body, head.start, head.end).value).continues_from
    return head.sequence - 1


class Held:
    """See the module. Places count entries since the beginning. `lost`: for each bucket the last sequence that is held no
    more."""

    def __init__(self, bytes_max: int, sequences: Iterable[int]) -> None:
        self._bytes_max = bytes_max
        self._entries: deque[Told] = deque()
        self._front = 0
        self._bytes = 0
        self.lost = list(sequences)
        self._begun: dict[int, int] = {}

    @property
    def front(self) -> int:
        """The place of the oldest entry."""
        return self._front

    @property
    def end(self) -> int:
        """The place behind the newest."""
        return self._front + len(self._entries)

    @property
    def bytes(self) -> int:
        return self._bytes

    def add(self, told: Told) -> None:
        self._entries.append(told)
        self._bytes += told.size
        while self._bytes > self._bytes_max and len(self._entries) > 1:
            self._let_go_of(self._entries.popleft())

    def _let_go_of(self, told: Told) -> None:
        self._front += 1
        self._bytes -= told.size
        for bucket, sequence in told.lasts.items():  # a bucket that came back begins behind what was told of it before
            self.lost[bucket] = max(self.lost[bucket], sequence)
        if told.notice is not None and told.notice.kind == NoticeKind.GAP:
            self.lost[told.notice.bucket] = max(self.lost[told.notice.bucket], told.notice.upto)

    def begin_at(self, bucket: int, sequence: int) -> None:
        """A bucket is told of from here on; nothing of it is held, and what was told of it before leads elsewhere."""
        self.lost[bucket] = sequence
        self._begun[bucket] = self.end

    def first_of(self, bucket: int) -> int:
        """The place from which on a bucket's entries lead up to the newest."""
        return max(self._front, self._begun.get(bucket, 0))

    def entries(self, place: int, end: int | None = None) -> Iterator[Told]:
        """Those from this place on, which is not before the front. (One by one: to come to the newest of them takes no walk
        over all that are older.)"""
        stop = len(self._entries) if end is None else end - self._front
        return (self._entries[index] for index in range(place - self._front, stop))
