"""Copies of buckets that are being made at a peer, portion by portion, while the buckets go on.

What it is: where such a copy stands, and the records of each portion: IMPORT_BEGIN before the first rows, IMPORT_END behind the
last. The link sends the stream up to a portion's position before its rows, and on from there after them, so a row is never
older than what was sent before it. And `Fills`, all the copies of one link, in the order in which they were asked for.
Which thread runs it: the link's sender makes portions, its receiver acknowledges them; of one bucket never both at once,
because one portion of it is under way at a time. What is said of all copies is said under the link's lock.
What it owns: where the copies stand. What it must not know: sockets, views.

Portions go in batches: several small buckets, or one portion of a large one. A thousand small buckets would take a thousand
round trips one by one. A batch that took so long to be made, sent and taken in is followed by a rest of PACE times as long: the
requests of both nodes hardly feel it, and however much is written meanwhile it comes to its end, because it waits for nothing
else. The rest is the link's: a thousand small buckets are as much to the peer as a large one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection
from dataclasses import dataclass

from rcache.engine.change_stream import Portion
from rcache.engine.contract import Engine
from rcache.records.record import Cause, ImportEnd, Kind, Record, encode, encode_import_end

PORTION_BYTES = 64 << 10
"""About the most rows in one portion: under the stripe lock for some tens of microseconds."""

BATCH_PORTIONS = 16
"""The most portions in a batch; PORTION_BYTES of them are enough, too."""

PACE = 2.0
"""How long to rest after a batch, measured by what it took beyond the shortest one: that is the way there and back, which is
nobody's work."""

REST_MAX_S = 1.0
"""A peer that hung is not left alone for as long as it hung, and more."""


class Fill:
    """See the module. `is_whole`: its last portion was sent; `is_done`: and acknowledged."""

    def __init__(self, bucket: int) -> None:
        self.bucket = bucket
        self.is_done = False
        self.begin_anew()

    def begin_anew(self) -> None:
        """From nothing, unless the peer has all of it."""
        if self.is_done:
            return
        self.has_begun = False
        self.is_whole = False
        self.in_flight = False
        self._after: object = None
        self._began = 0
        self.rows = self.bytes = 0  # sent so far

    def next_portion(self, engine: Engine) -> Portion:
        """The next rows, as they are now."""
        return engine.copy_portion(self.bucket, self._after, PORTION_BYTES)

    def body_of(self, portion: Portion) -> bytes:
        """The records to send for a portion; it is under way from then on."""
        body = b""
        if not self.has_begun:
            self._began = portion.sequence
            body = self._mark(Kind.IMPORT_BEGIN, portion)
        self.rows += portion.count
        body += portion.body
        if portion.after is None:
            body += self._mark(Kind.IMPORT_END, portion, encode_import_end(ImportEnd(self._began, self.rows)))
        self._after = portion.after
        self.has_begun = True
        self.is_whole = portion.after is None
        self.in_flight = True
        self.bytes += len(body)
        return body

    def empty_body(self, portion: Portion) -> bytes:
        """What has the peer let go of the rows it has: the copy is not made after all, or not now. It is under way from then
        on, and the copy is one of no rows yet."""
        self.begin_anew()
        body = self._mark(Kind.IMPORT_BEGIN, portion)
        self._began = portion.sequence
        self.has_begun = self.in_flight = True
        self.bytes = len(body)
        return body

    def acknowledge(self) -> None:
        """The peer has taken the portion in."""
        self.in_flight = False
        self.is_done = self.is_whole

    def _mark(self, kind: Kind, portion: Portion, value: bytes = b"") -> bytes:
        return encode(Record(kind, Cause.NONE, self.bucket, 0, portion.sequence, portion.time_ms, 0, b"", value))


@dataclass(slots=True)
class Batch:
    """Portions that do not wait for the answers to those before: so many, of so many bytes, and those not acknowledged."""

    began_at: float = 0.0
    portions: int = 0
    bytes: int = 0
    in_flight: int = 0

    @property
    def is_full(self) -> bool:
        """Whether all of it is to be acknowledged before more is sent."""
        return self.portions >= BATCH_PORTIONS or self.bytes >= PORTION_BYTES


@dataclass(slots=True)
class FillProgress:
    """Of the copies that were asked for since there was last none to make: how many buckets are whole, the rows and bytes that
    were sent for these; since when, by time.monotonic."""

    began_at: float
    whole: int = 0
    rows: int = 0
    bytes: int = 0


class Fills:
    """The copies of one link: those that are not whole, in their order, and those that wait for a view only. Under its lock."""

    def __init__(self) -> None:
        self._left: dict[int, Fill] = {}
        self._done: dict[int, Fill] = {}
        self._begun: set[int] = set()
        self._batch = Batch()
        self._least_s = math.inf
        self._due_at = 0.0
        self._progress = FillProgress(0.0)

    def __contains__(self, bucket: int) -> bool:
        return bucket in self._left or bucket in self._done

    @property
    def left(self) -> int:
        """How many are not whole yet."""
        return len(self._left)

    @property
    def has_done(self) -> bool:
        """Whether one is whole."""
        return bool(self._done)

    def is_whole(self, bucket: int) -> bool:
        """Whether the peer has all of it, as of the last time that it was begun."""
        return bucket in self._done

    @property
    def begun(self) -> frozenset[int]:
        """The buckets whose changes go to the peer: part of what they hold is there."""
        return frozenset(self._begun)

    def states(self) -> dict[int, bool]:
        """Each bucket, and whether its copy is whole."""
        return {**dict.fromkeys(self._left, False), **dict.fromkeys(self._done, True)}

    def progress(self) -> dict[str, float]:
        """How far the copies are that were asked for since there was last none to make: buckets in all, those whole, rows and
        bytes sent (without what has to be sent again), seconds since; empty where none is being made."""
        if not self._left:
            return {}
        told, left = self._progress, self._left.values()
        return {
            "buckets": told.whole + len(left),
            "whole": told.whole,
            "rows": told.rows + sum(fill.rows for fill in left),
            "bytes": told.bytes + sum(fill.bytes for fill in left),
            "seconds": round(time.monotonic() - told.began_at, 3),
        }

    def add(self, bucket: int) -> None:
        if not self._left:
            self._progress = FillProgress(time.monotonic())
        self._left[bucket] = Fill(bucket)

    def cancel(self, bucket: int) -> bool:
        """The copy is not wanted any more; whether there was one."""
        self._begun.discard(bucket)
        return self._left.pop(bucket, None) is not None or self._done.pop(bucket, None) is not None

    def settle(self, chosen: Collection[int]) -> None:
        """Those that are whole, and of the view by now, are no fills any more."""
        for bucket in [bucket for bucket in self._done if bucket in chosen]:
            del self._done[bucket]
            self._begun.discard(bucket)

    def begin_anew(self) -> None:
        """All that are not whole, from nothing."""
        self._begun = set(self._done)
        self._batch = Batch()
        for fill in self._left.values():
            fill.begin_anew()

    def next(self) -> Fill | None:
        """The one whose next portion comes next; None where nothing is to be sent before an answer, or at all."""
        if self._batch.is_full:
            return None
        return next((fill for fill in self._left.values() if not fill.in_flight and not fill.is_whole), None)

    def rest_s(self) -> float | None:
        """How long it is until the next portion is due; None where none is."""
        return None if self.next() is None else max(0.0, self._due_at - time.monotonic())

    def begin_portion(self, fill: Fill, size: int, made_at: float) -> bool:
        """A portion of so many bytes, which was begun to be made then, is about to be sent; whether it is the first of its
        bucket, whose changes follow from now on."""
        batch = self._batch
        if not batch.portions:
            batch.began_at = made_at
        batch.portions += 1
        batch.bytes += size
        batch.in_flight += 1
        if fill.bucket in self._begun or self._left.get(fill.bucket) is not fill:
            return False  # the latter: it is not wanted any more
        self._begun.add(fill.bucket)
        return True

    def acknowledge(self, fill: Fill) -> bool:
        """The peer has taken a portion in; whether the copy is whole now, and still wanted."""
        fill.acknowledge()
        self._batch.in_flight -= 1
        if not self._batch.in_flight:
            now = time.monotonic()
            took_s = now - self._batch.began_at
            self._least_s = min(self._least_s, took_s)
            self._due_at = now + min(REST_MAX_S, (took_s - self._least_s) * PACE)
            self._batch = Batch()
        if not fill.is_done or self._left.get(fill.bucket) is not fill:
            return False
        self._done[fill.bucket] = self._left.pop(fill.bucket)
        self._progress.whole += 1
        self._progress.rows += fill.rows
        self._progress.bytes += fill.bytes
        return True
