"""Whole buckets and records from elsewhere: opening, flushing, copying, applying.

What it is: the changes that go over a whole bucket, and the record format's two directions: items into rows, records of a
primary or a file into items.
Which thread runs it: any; `apply` one at a time for a bucket (its stripe's lock sees to that). `open` and `flush` block, before
a stripe lock is taken.
What it owns: nothing. What it must not know: where records come from and go to.
"""

from __future__ import annotations

from collections.abc import Iterator

from rcache.cluster.bucket_state import BucketState, may_follow
from rcache.engine.change_stream import Portion
from rcache.engine.contract import ChainError, NotFollowed
from rcache.engine.credit import credit_cost
from rcache.engine.reference.buckets import Bucket, Item
from rcache.engine.reference.ring import StreamFailed
from rcache.engine.reference.store import Paused, Store, count_removed, demand_counter, demand_primary, log_failed
from rcache.records.record import (
    BORN_EMPTY,
    BadRecord,
    Cause,
    ImportEnd,
    Kind,
    Opening,
    Record,
    decode_import_end,
    decode_opening,
    draft,
    encode,
    encode_import_end,
    encode_opening,
    record_bytes,
    scan,
    show_sequence,
)


class Copies:
    """Whole buckets of one store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    # --- states

    def open(self, bucket: Bucket, incarnation: int, node: str, epoch_begin: int, deadline_ns: int) -> None:
        """Become primary of a bucket: an OPEN with `epoch_begin` as its sequence, which names the bucket's newest record.
        Raises `RequestRefused`, and ValueError if the bucket's state or epoch does not allow it."""
        reserved = record_bytes(0, len(encode_opening(Opening(0, incarnation, node))))
        self._store.reserve(reserved, deadline_ns)
        used = False
        try:
            with bucket.stripe.lock:
                if not may_follow(bucket.state, BucketState.PRIMARY) or epoch_begin <= bucket.sequence:
                    now = f"{bucket.state.value} at {show_sequence(bucket.sequence)}"
                    raise ValueError(
                        f"bucket {bucket.number} is {now}; it cannot become primary at {show_sequence(epoch_begin)}"
                    )
                used = True
                bucket.opened_from = bucket.sequence
                opening = encode_opening(Opening(bucket.sequence, incarnation, node))
                now_ms = bucket.now_locked(self._store.clock.now_ms())
                record = draft(Kind.OPEN, bucket.number, value=opening)
                bucket.last_removal, _ = self._store.record_locked(bucket, record, epoch_begin, now_ms, reserved)
                bucket.state = BucketState.PRIMARY
                bucket.follows = 0  # should it be a backup again, it is told anew whose
        except StreamFailed as failed:
            raise log_failed(failed) from None
        finally:
            if not used:
                self._store.ring.unreserve(reserved)

    def flush(self, bucket: Bucket, deadline_ns: int) -> int:
        """Remove all items of a bucket with one record. Returns how many. Raises `RequestRefused`."""
        while True:
            try:
                return self._try_flush(bucket, deadline_ns)
            except Paused:
                self._store.await_resumed(bucket, deadline_ns)

    def _try_flush(self, bucket: Bucket, deadline_ns: int) -> int:
        reserved = record_bytes(0, 0)
        self._store.reserve(reserved, deadline_ns)
        used = False
        try:
            with bucket.stripe.lock:
                demand_primary(bucket)
                self._store.demand_running()
                demand_counter(bucket)
                count = len(bucket.items)
                if count:
                    used = True
                    now_ms = bucket.now_locked(self._store.clock.now_ms())
                    record = draft(Kind.FLUSH, bucket.number, cause=Cause.FLUSHED)
                    bucket.last_removal, _ = self._store.record_locked(bucket, record, bucket.sequence + 1, now_ms, reserved)
                    self._store.memory.force(-bucket.clear_locked())
                    count_removed(bucket.stripe, Cause.FLUSHED, count)
                return count
        except StreamFailed as failed:
            raise log_failed(failed) from None
        finally:
            if not used:
                self._store.ring.unreserve(reserved)

    # --- in

    def apply(self, body: bytes | memoryview, source: int) -> None:
        """See `Engine`."""
        for record in scan(bytes(body)):
            self._store.loans.use(source, self._apply_one(record, source))

    def _apply_one(self, record: Record, source: int) -> int:
        """Returns what it counts of what the source is lent."""
        clock_ms = self._store.clock.now_ms()
        counted = 0
        if record.bucket >= len(self._store.buckets):
            raise BadRecord(f"bucket {record.bucket} of {len(self._store.buckets)}")
        bucket = self._store.buckets[record.bucket]
        if record.key and self._store.bucket_of(record.key) is not bucket:
            raise BadRecord(f"key {record.key!r} is not of bucket {record.bucket}")
        with bucket.stripe.lock:
            if bucket.state in (BucketState.PRIMARY, BucketState.FROZEN):
                raise ChainError(f"bucket {bucket.number} is {bucket.state.value}; records of others do not apply to it")
            if bucket.follows != source:
                raise NotFollowed(
                    f"bucket {bucket.number} follows source {bucket.follows}; records of source {source} do not apply to it"
                )
            if record.kind in (Kind.IMPORT_BEGIN, Kind.ROW, Kind.IMPORT_END, Kind.DROP):
                if source:
                    _demand_not_whole(bucket, record)
                self._apply_mark_locked(bucket, record)
            elif source and record.sequence <= bucket.sequence:
                return 0  # a link sends again what it does not know to have been taken
            else:
                counted = self._apply_change_locked(bucket, record)
            bucket.learn_time_locked(record.time_ms, clock_ms)
        return counted

    def _apply_mark_locked(self, bucket: Bucket, record: Record) -> None:
        if record.kind == Kind.ROW:
            if bucket.state is not BucketState.IMPORTING:
                raise ChainError(f"bucket {bucket.number}: a row outside an import")
            bucket.import_rows += 1
            self._put_newer_locked(bucket, record)
        elif record.kind == Kind.IMPORT_END:
            end = decode_import_end(record.value)
            fits = end == (bucket.import_begin, bucket.import_rows) and record.sequence <= bucket.sequence
            if bucket.state is not BucketState.IMPORTING or not fits:
                raise ChainError(f"bucket {bucket.number}: the end of an import that does not fit its beginning")
            bucket.state = BucketState.BACKUP
        else:
            begins = record.kind == Kind.IMPORT_BEGIN
            self._store.memory.force(-bucket.begin_locked(record.sequence if begins else BORN_EMPTY))
            bucket.state = BucketState.IMPORTING if begins else BucketState.ABSENT
            if not begins:
                bucket.leave_points_locked()

    def _apply_change_locked(self, bucket: Bucket, record: Record) -> int:
        """One change, in chain order. A row of a running import may already be newer than it. Returns what it counts."""
        follows = (
            decode_opening(record.value).continues_from == bucket.sequence
            if record.kind == Kind.OPEN
            else record.sequence == bucket.sequence + 1
        )
        if bucket.state is BucketState.ABSENT or not follows:
            raise ChainError(f"bucket {bucket.number}: {record.sequence} does not follow on {bucket.sequence}")
        bucket.sequence = record.sequence
        if record.kind == Kind.SET:
            return max(0, self._put_newer_locked(bucket, record))
        bucket.last_removal = record.sequence
        if record.kind == Kind.FLUSH:
            older = [key for key, item in bucket.items.items() if item.version < record.sequence]
        else:
            held = bucket.items.get(record.key) if record.kind == Kind.REMOVE else None
            older = [record.key] if held is not None and held.version < record.sequence else []
        freed = 0
        for key in older:
            freed += credit_cost(len(key), len(bucket.items[key].value))
            self._store.memory.force(-bucket.drop_locked(key))
        return -freed if record.cause == Cause.EVICTED else 0

    def _put_newer_locked(self, bucket: Bucket, record: Record) -> int:
        """Returns by how much the item grows, as credit counts it."""
        held = bucket.items.get(record.key)
        if held is not None and held.version >= record.sequence:
            return 0
        item = Item(record.value, record.flags, record.expires_at_ms, record.sequence)
        self._store.memory.force(bucket.put_locked(record.key, item))
        old = credit_cost(len(record.key), len(held.value)) if held is not None else 0
        return credit_cost(len(record.key), len(record.value)) - old

    # --- out

    def copy(self, bucket: Bucket) -> Iterator[bytes]:
        """See `Engine.copy_bucket`. Items are never changed in place, so a list of them made under the lock is a copy at one
        sequence."""
        with bucket.stripe.lock:
            rows, sequence, time_ms = list(bucket.items.items()), bucket.sequence, bucket.newest_ms
        yield _mark(Kind.IMPORT_BEGIN, bucket.number, sequence, time_ms)
        for key, item in rows:
            yield _row(bucket.number, key, item, time_ms)
        yield _mark(Kind.IMPORT_END, bucket.number, sequence, time_ms, encode_import_end(ImportEnd(sequence, len(rows))))

    def copy_portion(self, bucket: Bucket, after: object, bytes_max: int) -> Portion:
        """See `Engine`. By the keys' own order, which no change of others changes."""
        assert after is None or isinstance(after, bytes)
        rows: list[bytes] = []
        size = 0
        with bucket.stripe.lock:
            sequence, time_ms, position = bucket.sequence, bucket.newest_ms, self._store.ring.head
            left = sorted(key for key in bucket.items if after is None or key > after)
            while len(rows) < len(left) and size < bytes_max:
                key = left[len(rows)]
                rows.append(_row(bucket.number, key, bucket.items[key], time_ms))
                size += len(rows[-1])
        following = left[len(rows) - 1] if len(rows) < len(left) else None
        return Portion(b"".join(rows), len(rows), following, sequence, position, time_ms)


def _demand_not_whole(bucket: Bucket, record: Record) -> None:
    """A whole copy is let go of by a view, never by what a peer sends: one that was deposed and does not know it yet would
    otherwise take the only other copy away."""
    if record.kind in (Kind.IMPORT_BEGIN, Kind.DROP) and bucket.state is BucketState.BACKUP:
        raise ChainError(f"bucket {bucket.number} is a whole copy; it is not let go of by a record of a peer")


def _mark(kind: Kind, bucket: int, sequence: int, time_ms: int, value: bytes = b"") -> bytes:
    return encode(Record(kind, Cause.NONE, bucket, 0, sequence, time_ms, 0, b"", value))


def _row(bucket: int, key: bytes, item: Item, time_ms: int) -> bytes:
    record = Record(Kind.ROW, Cause.NONE, bucket, item.flags, item.version, time_ms, item.expires_at_ms, key, item.value)
    return encode(record)
