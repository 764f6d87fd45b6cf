"""The recorder: takes in what the cluster's feeds tell, and hands it to the append log.

What it is: the feeds' listener. What nodes tell goes into the stream that the append log reads, each change once, with what is
known of it: up to where each bucket is recorded, which of them need a base, and what of that is on its way to the disk.
Which thread runs it: the feeds' threads (`begun`, `take`), the copier's (`add_base`), the append log's (`written`), any that
looks (`whole`, `lacking`, `has`).
What it owns: the coverage. It may lock: `_order`, behind it the stream's, where it may wait for the disk; and for moments, also
behind it, the coverage's, and that of what is on its way. Who only looks never waits for the disk.
What it must not know: sockets, files.

Invariants:
1. Of a bucket changes are recorded in their order, each once, whatever its feeds tell again.
2. What `written` says of a bucket is in the files: it may be less than is, never more.
3. Where something is missing the record says so: a DROP, as in the log of a node that let go of its copy, and then a base. So
   whoever reads the files takes nothing for the bucket's last state that others went on from.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from loguru import logger

from rcache.logger.coverage import Coverage, Covered, Standing, Step
from rcache.records.record import (
    HISTORY_KINDS,
    BadRecord,
    Cause,
    Head,
    Kind,
    Opening,
    Record,
    decode,
    decode_import_end,
    decode_opening,
    encode,
    encode_opening,
    heads,
    show_sequence,
)
from rcache.stream.applied import AppliedFailed, AppliedStream
from rcache_client.feed_set import Told
from rcache_client.node_feed import NodeFeed
from rcache_client.wire.feeds import Notice, NoticeKind
from rcache_client.wire.grammar import BadPayload

ROOM_LOOK_S = 0.5
"""How often it is looked, while the log has no room, whether this program stops."""


WARN_S = 1.0
"""Gaps are told of so often at most; the counter has all of them."""


class HistoryWentBack(Exception):
    """A node uses sequences again that are recorded with another content."""


@dataclass(slots=True)
class RecorderCounts:
    """Since the start."""

    changes: int = 0
    bytes: int = 0
    again: int = 0
    gaps: int = 0
    bases: int = 0
    rows: int = 0
    failures: int = 0


class Recorder:
    """See the module. `known`: what the files hold already."""

    def __init__(self, stream: AppliedStream, known: Mapping[int, Covered]) -> None:
        self.counts = RecorderCounts()
        self.places = {bucket: each.place for bucket, each in known.items()}
        self._stream = stream
        self._order = threading.Lock()
        self._lock = threading.Lock()
        self._coverage = Coverage(known)
        self._told_of: dict[int, NodeFeed] = {}
        self._writing = threading.Lock()
        self._on_its_way: deque[tuple[int, dict[int, Covered]]] = deque()
        self._written: dict[int, Covered] = dict(known)
        self._why: dict[str, str] = {}
        self._warned_at = -WARN_S
        self._unsaid = 0
        self._stopping = threading.Event()

    def stop(self) -> None:
        """Nothing more is taken in; who waits for the log gives up."""
        self._stopping.set()

    # --- for the feeds

    def begun(self, feed: NodeFeed, places: Mapping[int, int], /) -> None:
        """Blocks as `take` does, where there is something to record of it."""
        self._why.pop(feed.door.name, None)
        records: list[bytes] = []
        gaps: list[Notice] = []
        with self._order:
            with self._lock:
                for bucket, place in places.items():
                    self._told_of[bucket] = feed
                    self._begin(feed, bucket, place, records, gaps)
                self.counts.gaps += len(gaps)
            self._warn_of(gaps)
            self._append(records, places)

    def take(self, _feed: NodeFeed, told: Told, /) -> Mapping[int, int]:
        """Blocks while the log has no room. Returns up to where buckets are recorded; what could not be is asked for again.
        Raises `BadPayload`, `HistoryWentBack`: then nothing of it was recorded."""
        try:
            found = [head for head in heads(told.records) if head.kind in HISTORY_KINDS]
            before = {head.start: _continues_from(told.records, head) for head in found if head.kind == Kind.OPEN}
        except BadRecord as error:
            raise BadPayload(f"a node tells what is no record: {error}") from None
        records: list[bytes] = []
        with self._order:
            with self._lock:
                self._demand_unused(told.gaps, found)
                for gap in told.gaps:
                    self._gap(gap.bucket, gap.upto, records)
                again = sum(
                    not self._change(told.records, head, before.get(head.start, head.sequence - 1), records) for head in found
                )
                self.counts.gaps += len(told.gaps)
            self._warn_of(told.gaps)
            buckets = {head.bucket for head in found} | {gap.bucket for gap in told.gaps}
            if not self._append(records, buckets):
                return {}
            self.counts.again += again
            self.counts.changes += len(found) - again
            return {bucket: self._coverage[bucket].place for bucket in buckets} | dict(told.places)

    def lost(self, feed: NodeFeed, buckets: Collection[int], /) -> None:
        with self._lock:
            for bucket in buckets:
                if self._told_of.get(bucket) is feed:
                    del self._told_of[bucket]

    def failed(self, feed: NodeFeed, error: Exception, /) -> bool:
        """It is tried again: whoever runs the cluster may mend it, and this program is to be there then."""
        self.counts.failures += 1
        why = f"{type(error).__name__}: {error}"
        if self._why.get(feed.door.name) != why:
            self._why[feed.door.name] = why
            logger.error("{} cannot be recorded from: {}", feed.door.name, why)
        return True

    def _begin(self, feed: NodeFeed, bucket: int, place: int, records: list[bytes], gaps: list[Notice]) -> None:
        """Where the bucket's OPEN was not told, because nobody listened there yet, and nothing else is missing, it is made up:
        without it no chain would lead from what comes to what is recorded."""
        known = self._coverage[bucket]
        standing = self._coverage.standing(bucket, place)
        if standing is Standing.OPENED:
            records.append(_opening(bucket, place, known, feed.door.leads_to or feed.door.name))
            self._coverage.change(bucket, place, known.place, known.time_ms)
        elif standing is Standing.NEW:
            self._coverage.gap(bucket, place)
        elif standing is Standing.ELSEWHERE:
            gaps.append(Notice(NoticeKind.GAP, bucket, known.place, place))
            self._gap(bucket, place, records)

    def _gap(self, bucket: int, upto: int, records: list[bytes]) -> None:
        """Invariant 3. The mark is of the last record's time: behind that nobody knows the bucket from this record."""
        time_ms = self._coverage[bucket].time_ms
        if self._coverage.gap(bucket, upto):
            records.append(_mark_of_gap(bucket, time_ms))

    def _change(self, body: bytes, head: Head, before: int, records: list[bytes]) -> bool:
        """Whether it is new."""
        step = self._coverage.change(head.bucket, head.sequence, before, head.time_ms)
        if step is Step.AGAIN:
            return False
        if step is Step.BREAKS:
            logger.warning("bucket {}: {} is told behind {}", head.bucket, show_sequence(head.sequence), show_sequence(before))
            records.append(_mark_of_gap(head.bucket, head.time_ms))
        records.append(body[head.start : head.end])
        return True

    def _warn_of(self, gaps: Sequence[Notice]) -> None:
        """Under `_order`. Where writers are faster than this program every answer brings gaps: not each of them is a line."""
        now = time.monotonic()
        if gaps and now < self._warned_at + WARN_S:
            self._unsaid += len(gaps)
        elif gaps:
            more = f" (and {self._unsaid} gaps since the last such line)" if self._unsaid else ""
            logger.warning("{}{}", _show_gaps(gaps), more)
            self._warned_at, self._unsaid = now, 0

    def _demand_unused(self, gaps: Sequence[Notice], found: Iterable[Head]) -> None:
        """Coverage's invariant 4: it is the same cluster by its id, but set back to older files, and these records would be
        mixed with those of the same sequences that are here."""
        back = self._coverage.went_back()
        back |= {gap.bucket: gap.upto for gap in gaps if gap.bucket in back or gap.upto < self._coverage[gap.bucket].place}
        for head in found if back else ():
            if head.sequence > back.get(head.bucket, head.sequence) and self._coverage.was_used(head.bucket, head.sequence):
                raise HistoryWentBack(
                    f"{show_sequence(head.sequence)} of bucket {head.bucket} is told, which is recorded already with another "
                    "content: the cluster was set back to older files; record it in another directory"
                )

    # --- for the copier

    def lacking(self) -> list[int]:
        """The buckets that need a base and whose changes are told: what changes while it is copied is recorded, too."""
        with self._lock:
            return [bucket for bucket in self._coverage.lacking() if bucket in self._told_of]

    def lacks(self, bucket: int) -> bool:
        with self._lock:
            return self._coverage.lacks(bucket) and bucket in self._told_of

    def add_base(self, bucket: int, body: bytes) -> bool | None:
        """Record a piece of a base: whole records, IMPORT_BEGIN to IMPORT_END. Whether it is one; None: that was not the end of
        it, or this program stops. Blocks while the log has no room. Raises `BadPayload`."""
        try:
            found = list(heads(body))
            ends = [_end_of_base(body, head) for head in found if head.kind == Kind.IMPORT_END]
        except BadRecord as error:
            raise BadPayload(f"a node copies what is no record: {error}") from None
        if any(head.bucket != bucket or head.kind in HISTORY_KINDS for head in found) or len(ends) > 1:
            raise BadPayload(f"a node copies something else than bucket {bucket}")
        with self._order:
            with self._lock:
                if any(head.kind == Kind.IMPORT_BEGIN for head in found):
                    self._coverage.copy_begins(bucket)
                is_base = self._coverage.base(bucket, *ends[0]) if ends else None
            if not self._append([body], {bucket}, len(found)):
                return None
            self.counts.rows += sum(head.kind == Kind.ROW for head in found)
            self.counts.bases += len(ends)
            return is_base

    # --- for whoever looks

    @property
    def whole(self) -> int:
        """How many buckets are whole."""
        with self._lock:
            return self._coverage.whole

    def has(self, places: Mapping[int, int]) -> bool:
        """Whether these buckets were recorded up to these sequences."""
        with self._lock:
            return all(self._coverage[bucket].place >= place for bucket, place in places.items())

    # --- for the append log

    def written(self) -> dict[int, Covered]:
        """What the files are known to hold of each bucket (invariant 2)."""
        with self._writing:
            self._note_written()
            return dict(self._written)

    def _append(self, records: list[bytes], buckets: Iterable[int], count: int | None = None) -> bool:
        """Under `_order`; `count` where they are not one in each piece. False: this program stops, or its log failed."""
        body = b"".join(records)
        while body and not self._stopping.is_set():
            try:
                deadline_ns = time.monotonic_ns() + int(ROOM_LOOK_S * 1e9)
                position = self._stream.append(body, count or len(records), deadline_ns)
            except TimeoutError:
                continue
            except AppliedFailed:
                return False  # whoever owns the log has been told
            with self._writing:
                self._on_its_way.append((position, {bucket: self._coverage[bucket] for bucket in buckets}))
                self._note_written()
            self.counts.bytes += len(body)
            return True
        return not body

    def _note_written(self) -> None:
        written = self._stream.written
        while self._on_its_way and self._on_its_way[0][0] <= written:
            self._written.update(self._on_its_way.popleft()[1])


def _continues_from(body: bytes, head: Head) -> int:
    return decode_opening(decode(body, head.start, head.end).value).continues_from


def _end_of_base(body: bytes, head: Head) -> tuple[int, int, int]:
    """Its begin, its end, the time of that."""
    return decode_import_end(decode(body, head.start, head.end).value).begin, head.sequence, head.time_ms


def _opening(bucket: int, sequence: int, known: Covered, node: str) -> bytes:
    """The OPEN that leads from what is known to `sequence`, as far as that can be told: it changes nothing, so nothing hangs on
    its time but that times never decrease."""
    value = encode_opening(Opening(known.place, 0, node))
    return encode(Record(Kind.OPEN, Cause.NONE, bucket, 0, sequence, known.time_ms, 0, b"", value))


def _mark_of_gap(bucket: int, time_ms: int) -> bytes:
    return encode(Record(Kind.DROP, Cause.NONE, bucket, 0, 0, time_ms, 0, b"", b""))


def _show_gaps(gaps: Sequence[Notice]) -> str:
    first = gaps[0]
    where = f"between {show_sequence(first.after)} and {show_sequence(first.upto)}"
    if len(gaps) == 1:
        return f"GAP in bucket {first.bucket}: what changed {where} is not told any more; copied anew"
    whose = f"{len(gaps)} buckets (the first is {first.bucket}, {where})"
    return f"GAP in {whose}: some of what changed is not told any more; copied anew"
