"""What was told: committed records and notices in their order, for as long as they are held.

What it is: a list with an end that grows and a beginning that is let go of, by bytes. Who reads it keeps a place in it.
Which thread runs it: the hub's adds; feeds read. Under the hub's lock.
What it owns: the entries. What it must not know: who reads.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple

from rcache.records.record import Head
from rcache_client.wire.feeds import Notice, NoticeKind

ENTRY_BYTES = 200
"""What an entry takes beside its records, and each of these beside its bytes, about."""


class Told(NamedTuple):
    """Records that were committed, oldest first, and where each lies in `body`; or a notice, which stands between them."""

    body: bytes
    heads: tuple[Head, ...]
    notice: Notice | None = None

    @property
    def size(self) -> int:
        return len(self.body) + ENTRY_BYTES * (1 + len(self.heads))


class Held:
    """See the module. Places count entries since the beginning. `lost`: for each bucket the last sequence that is held no
    more."""

    def __init__(self, bytes_max: int, sequences: Iterable[int]) -> None:
        self._bytes_max = bytes_max
        self._entries: deque[Told] = deque()
        self._front = 0
        self._bytes = 0
        self.lost = list(sequences)

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
        for head in told.heads:  # a bucket that came back begins behind what was told of it before
            self.lost[head.bucket] = max(self.lost[head.bucket], head.sequence)
        if told.notice is not None and told.notice.kind == NoticeKind.GAP:
            self.lost[told.notice.bucket] = max(self.lost[told.notice.bucket], told.notice.upto)

    def begin_at(self, bucket: int, sequence: int) -> None:
        """A bucket is told of from here on; nothing of it is held."""
        self.lost[bucket] = sequence

    def entries(self, place: int, end: int | None = None) -> Iterator[Told]:
        """Those from this place on, which is not before the front."""
        return islice(self._entries, place - self._front, None if end is None else end - self._front)
