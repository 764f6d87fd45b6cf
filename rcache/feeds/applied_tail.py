"""The tail of what was applied here as a backup: what a bucket's next primary can tell that the last one could not any more.

What it is: the newest bytes of other nodes' changes as they were applied here, and the walk back in them from the place that a
bucket's OPEN continues from. A primary that is killed takes with it what was committed and not told yet; but whoever follows it
applied all of that before.
Which thread runs it: whoever applies adds (`take_in`), while there is a teller; the teller's looks (`chains`).
What it owns: the bytes, up to a limit. It may lock: its own lock, for moments, under a peer's gate at most.
What it must not know: engines, what is committed, whose a bucket is now.

Invariants:
1. What a chain holds are the records that lead to its end without a hole, each following on the one before it by what it says
   itself: a change on the sequence before its own, an OPEN on the one that it names. A sequence is used once, so nothing else
   leads there. So it does not matter in which order they came, what else of the bucket came (the end of a deposed primary,
   which is on no chain; rows and marks of copies, which are no history; what was there before the bucket was dropped and
   filled anew), nor whose each OPEN among them is.
2. It says only what was applied, never that it is committed: that is so once the OPEN is that the chain leads to, and not
   before (a backup applies what its primary may never be able to acknowledge).
3. Whoever applies is never held up: adding takes no look at the records, and beyond the limit the oldest go.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable
from typing import NamedTuple, Protocol

from rcache.feeds.told import Told, join, place_before
from rcache.records.record import HISTORY_KINDS, Head, heads

TAIL_BYTES = 8 << 20
"""Some seconds of what a busy node applies: a live subscriber lacks what the dead node did not come to tell, which is far less,
and one that connects anew has until then."""

BODY_BYTES = 100
"""What the bytes of one frame take beside themselves, about."""

ENTRY_BYTES_MAX = 256 << 10
"""What is told of in one piece: about as much as the teller reads at once."""

_KIND_AT = 4


class Tapped(Protocol):
    """Where all that is applied here comes by."""

    def tap(self, take: Callable[[bytes], object]) -> None:
        """From now on have it given to this as well."""
        ...

    def untap(self, take: Callable[[bytes], object]) -> None: ...


class Chain(NamedTuple):
    """Records of one bucket, oldest first, without a hole from behind `after` on."""

    after: int
    told: list[Told]


class AppliedTail:
    """See the module."""

    def __init__(self, bytes_max: int = TAIL_BYTES) -> None:
        self._bytes_max = bytes_max
        self._lock = threading.Lock()
        self._bodies: deque[bytes] = deque()
        self._bytes = 0

    def take_in(self, body: bytes) -> None:
        """What was applied, in one frame. (One that begins with a row or a mark holds no history.)"""
        if body[_KIND_AT] not in HISTORY_KINDS:
            return
        with self._lock:
            self._bodies.append(body)
            self._bytes += len(body) + BODY_BYTES
            while self._bytes > self._bytes_max:
                self._bytes -= len(self._bodies.popleft()) + BODY_BYTES

    def chains(self, ends: Collection[tuple[int, int]]) -> dict[tuple[int, int], Chain]:
        """For each bucket and sequence, what leads there; nothing is held of others. Walks over all that there is, once."""
        if not ends:
            return {}
        with self._lock:
            bodies = list(self._bodies)
        buckets = {bucket for bucket, _ in ends}
        found: dict[int, dict[int, tuple[bytes, Head]]] = {bucket: {} for bucket in buckets}
        for body in bodies:
            for head in heads(body):
                if head.bucket in buckets and head.kind in HISTORY_KINDS:
                    found[head.bucket][head.sequence] = body, head
        return {(bucket, end): _walk_back(found[bucket], end) for bucket, end in ends}


def _walk_back(found: dict[int, tuple[bytes, Head]], end: int) -> Chain:
    """Invariant 1."""
    at, records = end, list[tuple[bytes, Head]]()
    while (record := found.get(at)) is not None and (before := place_before(*record)) < at:
        records.append(record)
        at = before
    return Chain(at, _in_pieces(reversed(records)))


def _in_pieces(records: Iterable[tuple[bytes, Head]]) -> list[Told]:
    pieces: list[Told] = []
    piece: list[tuple[bytes, Head]] = []
    size = 0
    for body, head in records:
        if piece and size + head.end - head.start > ENTRY_BYTES_MAX:
            pieces.append(join(piece))
            piece, size = [], 0
        piece.append((body, head))
        size += head.end - head.start
    return [*pieces, join(piece)] if piece else pieces
