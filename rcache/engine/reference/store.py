"""The store: the items of one node, and the steps that all changes of them share.

What it is: buckets, stripes and the accounts of memory; room for a record in the stream, and the record's place, there and in
its bucket; what an answer waits for; pauses.
Which thread runs it: any; what has `_locked` in its name, whoever holds the stripe's lock. Blocks only before that is taken.
What it owns: buckets, stripes, the accounts. What it must not know: what is decided about an item (`change`), why one goes that
nobody named (`removal`), what happens to whole buckets (`copies`).

Invariants:
1. Every removal is a record with its cause: deleted, expired, evicted, flushed.
2. Whether changes are paused is looked at under the stripe lock under which one is made; so once that is set, and every stripe
   lock was taken once, no change is under way that did not see it.
"""

from __future__ import annotations

import zlib
from typing import NamedTuple

from rcache.cluster.bucket_state import BucketState
from rcache.engine.change_stream import DISK, MOMENT_WANTED, NO_WAIT, Wait
from rcache.engine.clock import NodeClock
from rcache.engine.contract import EngineConfig, RequestRefused
from rcache.engine.reference.buckets import Bucket, Item, Stripe
from rcache.engine.reference.loans import Loans
from rcache.engine.reference.memory import MemoryAccount
from rcache.engine.reference.ring import Ring, StreamFailed
from rcache.records.record import COUNTER_MAX, Cause, Kind, counter_of, draft, stamp
from rcache_client.wire.opcodes import Status


class Changed(NamedTuple):
    """A change that was made: its sequence, what its answer waits for, and the item (None: removed)."""

    version: int
    wait: Wait
    item: Item | None


class Paused(Exception):
    """Changes are paused: wait for the end of that, and start over."""


class Store:
    """The items of one node."""

    def __init__(self, config: EngineConfig, ring: Ring, clock: NodeClock) -> None:
        self.config = config
        self.ring = ring
        self.clock = clock
        self.memory = MemoryAccount(config.memory_bytes)
        self.loans = Loans(self.memory, config.value_bytes_max)
        self.stripes = [Stripe() for _ in range(min(config.stripes, config.buckets))]
        points = 1 << DISK if config.commit else 0
        self.buckets = [Bucket(number, self.stripes[number % len(self.stripes)], points) for number in range(config.buckets)]
        self._mask = config.buckets - 1
        self._commitment = ring.commitment

    def bucket_of(self, key: bytes) -> Bucket:
        """Key to bucket: CRC-32, masked."""
        return self.buckets[zlib.crc32(key) & self._mask]

    def look(self, key: bytes) -> Item | None:
        """The item under a key as it is, expired or not: a guess for what a change will need."""
        bucket = self.bucket_of(key)
        with bucket.stripe.lock:
            return bucket.items.get(key)

    def is_ours(self, key: bytes) -> bool:
        """Whether this node may remove a key by itself: a backup's items go when their primary says so."""
        return self.bucket_of(key).state is BucketState.PRIMARY

    # --- records

    def reserve(self, count: int, deadline_ns: int) -> None:
        """Set room for a record of `count` bytes aside. Raises `RequestRefused`. Blocks."""
        try:
            if self.ring.reserve(count, deadline_ns):
                return
        except StreamFailed as failed:
            raise log_failed(failed) from None
        raise RequestRefused(Status.BUSY, "the append log is behind and had no room before the deadline")

    def record_locked(self, bucket: Bucket, record: bytearray, sequence: int, now_ms: int, reserved: int) -> tuple[int, Wait]:
        """Give a record its place, in the bucket and in the stream. Raises `StreamFailed` before anything has changed."""
        stamp(record, sequence, now_ms)
        position = self.ring.append(bytes(record), reserved)
        bucket.place_locked(sequence, now_ms)
        return sequence, bucket.pend_locked(sequence, position, self._commitment.committed(bucket.points))

    def take_out_locked(self, bucket: Bucket, key: bytes, cause: Cause, now_ms: int, reserved: int) -> tuple[int, Changed]:
        """Remove an item; the bytes that leaves are the caller's."""
        record = draft(Kind.REMOVE, bucket.number, key, cause=cause)
        version, wait = self.record_locked(bucket, record, bucket.sequence + 1, now_ms, reserved)
        bucket.last_removal = version
        freed = bucket.drop_locked(key)
        count_removed(bucket.stripe, cause, 1)
        return freed, Changed(version, wait, None)

    def wait_locked(self, bucket: Bucket, sequence: int) -> Wait:
        """What an answer waits for that reveals `sequence`, which it has not made itself."""
        if not bucket.points:
            return NO_WAIT
        wait = bucket.wait_locked(sequence, self._commitment.committed(bucket.points))
        return wait._replace(moment=MOMENT_WANTED) if self.config.confirm_reads and wait.points else wait

    # --- pauses

    def set_paused(self, paused: bool) -> None:
        """Invariant 2: who takes a stripe's lock after this sees it, and who has it is waited for."""
        self.ring.set_paused(paused)
        for stripe in self.stripes:
            with stripe.lock:
                pass

    def demand_running(self) -> None:
        if self.ring.paused:
            raise Paused

    def await_resumed(self, bucket: Bucket, deadline_ns: int) -> None:
        """Wait for the end of a pause. Raises `RequestRefused`. Blocks."""
        with bucket.stripe.lock:
            demand_primary(bucket)
        if not self.ring.wait_resumed(deadline_ns):
            raise RequestRefused(Status.PAUSED, "changes are paused, and were so until the deadline")


def demand_primary(bucket: Bucket) -> None:
    if bucket.state is not BucketState.PRIMARY:
        raise RequestRefused(Status.NOT_PRIMARY, f"bucket {bucket.number} is {bucket.state.value} on this node")


def demand_counter(bucket: Bucket) -> None:
    if counter_of(bucket.sequence) >= COUNTER_MAX:
        raise RequestRefused(Status.BUSY, f"bucket {bucket.number} is about to be opened in a new epoch; try again")


def count_removed(stripe: Stripe, cause: Cause, count: int) -> None:
    stripe.removed[cause] = stripe.removed.get(cause, 0) + count


def log_failed(failed: StreamFailed) -> RequestRefused:
    """The refusal of a change that can be recorded no more."""
    return RequestRefused(Status.STOPPING, f"the append log failed: {failed}")
