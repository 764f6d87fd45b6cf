"""The recorder: takes in what the cluster's feeds tell, and hands it to the append log.

What it is: the feeds' listener. What nodes tell goes into the stream that the append log reads, each change once, with what is
known of it: up to where each bucket is recorded, which of them need a base, and what of that is on its way to the disk.
Which thread runs it: the feeds' threads (`begun`, `take`), the copier's (`add_base`), the append log's (`written`).
What it owns: the coverage. It may lock: its own lock, behind it the stream's, where it may wait for the disk; and for moments
another one, for what is on its way.
What it must not know: sockets, files.

Invariants:
1. Of a bucket changes are recorded in their order, each once, whatever its feeds tell again.
2. What `written` says of a bucket is in the files: it may be less than is, never more.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from loguru import logger

from rcache.logger.coverage import Coverage, Covered
from rcache.records.record import (
    HISTORY_KINDS,
    BadRecord,
    Head,
    Kind,
    decode,
    decode_import_end,
    decode_opening,
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
        self.places = Coverage(known).places()
        self._stream = stream
        self._lock = threading.Lock()
        self._coverage = Coverage(known)
        self._told_of: dict[int, NodeFeed] = {}
        self._writing = threading.Lock()
        self._on_its_way: deque[tuple[int, dict[int, Covered]]] = deque()
        self._written: dict[int, Covered] = dict(known)
        self._why: dict[str, str] = {}
        self._stopping = threading.Event()

    def stop(self) -> None:
        """Nothing more is taken in; who waits for the log gives up."""
        self._stopping.set()

    # --- for the feeds

    def begun(self, feed: NodeFeed, places: Mapping[int, int], /) -> None:
        gaps = []
        with self._lock:
            for bucket, place in places.items():
                known = self._coverage[bucket]
                self._told_of[bucket] = feed
                if not self._coverage.begin(bucket, place) and known.place:
                    gaps.append(Notice(NoticeKind.GAP, bucket, known.place, place))
            self.counts.gaps += len(gaps)
        _warn_of(gaps)

    def take(self, _feed: NodeFeed, told: Told, /) -> Mapping[int, int]:
        """Blocks while the log has no room. Returns up to where buckets are recorded; what could not be is asked for again."""
        try:
            found = list(heads(told.records))
        except BadRecord as error:
            raise BadPayload(f"a node tells what is no record: {error}") from None
        _warn_of(told.gaps)
        with self._lock:
            self.counts.gaps += len(told.gaps)
            for gap in told.gaps:
                self._coverage.gap(gap.bucket, gap.upto)
            kept = [head for head in found if head.kind in HISTORY_KINDS and self._is_new(told.records, head)]
            self.counts.again += len(found) - len(kept)
            buckets = {head.bucket for head in kept} | {gap.bucket for gap in told.gaps}
            if kept:
                body = told.records if len(kept) == len(found) else _cut(told.records, kept)
                if not self._append(body, len(kept), buckets):
                    return {}
                self.counts.changes += len(kept)
                self.counts.bytes += len(body)
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

    def _is_new(self, body: bytes, head: Head) -> bool:
        before = head.sequence - 1
        if head.kind == Kind.OPEN:
            before = decode_opening(decode(body, head.start, head.end).value).continues_from
        return self._coverage.change(head.bucket, head.sequence, before)

    # --- for the copier

    def lacking(self) -> list[int]:
        """The buckets that need a base and whose changes are told: what changes while it is copied is recorded, too."""
        with self._lock:
            return [bucket for bucket in self._coverage.lacking() if bucket in self._told_of]

    @property
    def whole(self) -> int:
        """How many buckets are whole."""
        with self._lock:
            return len(self._coverage.places()) - len(self._coverage.lacking())

    def add_base(self, bucket: int, body: bytes) -> bool | None:
        """Record a piece of a base: whole records, IMPORT_BEGIN to IMPORT_END. Whether the bucket is whole with it; None: that
        was not the end of it, or this program stops. Blocks while the log has no room. Raises `BadPayload`."""
        try:
            found = list(heads(body))
            ends = [decode_import_end(decode(body, h.start, h.end).value).begin for h in found if h.kind == Kind.IMPORT_END]
        except BadRecord as error:
            raise BadPayload(f"a node copies what is no record: {error}") from None
        if any(head.bucket != bucket or head.kind in HISTORY_KINDS for head in found) or len(ends) > 1:
            raise BadPayload(f"a node copies something else than bucket {bucket}")
        with self._lock:
            is_whole = self._coverage.base(bucket, ends[0]) if ends else None
            if not self._append(body, len(found), {bucket}):
                return None
            self.counts.rows += sum(head.kind == Kind.ROW for head in found)
            self.counts.bases += len(ends)
            return is_whole

    # --- for the append log

    def written(self) -> dict[int, Covered]:
        """What the files are known to hold of each bucket (invariant 2)."""
        with self._writing:
            self._note_written()
            return dict(self._written)

    def _append(self, body: bytes, count: int, buckets: Iterable[int]) -> bool:
        """Under the lock. False: this program stops, or its log failed."""
        while not self._stopping.is_set():
            try:
                position = self._stream.append(body, count, time.monotonic_ns() + int(ROOM_LOOK_S * 1e9))
            except TimeoutError:
                continue
            except AppliedFailed:
                return False  # whoever owns the log has been told
            with self._writing:
                self._on_its_way.append((position, {bucket: self._coverage[bucket] for bucket in buckets}))
                self._note_written()
            return True
        return False

    def _note_written(self) -> None:
        written = self._stream.written
        while self._on_its_way and self._on_its_way[0][0] <= written:
            self._written.update(self._on_its_way.popleft()[1])


def _warn_of(gaps: Sequence[Notice]) -> None:
    if not gaps:
        return
    first = gaps[0]
    where = f"between {show_sequence(first.after)} and {show_sequence(first.upto)}"
    buckets = f"bucket {first.bucket}" if len(gaps) == 1 else f"{len(gaps)} buckets (the first is {first.bucket}, {where})"
    what = f"what changed {where}" if len(gaps) == 1 else "some of what changed"
    logger.warning("GAP in {}: {} is not told any more; copied anew", buckets, what)


def _cut(body: bytes, found: Iterable[Head]) -> bytes:
    return b"".join(body[head.start : head.end] for head in found)
