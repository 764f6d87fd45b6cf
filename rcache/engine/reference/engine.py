"""The reference engine, put together: store, change stream, operations and the serving of connections.

Which thread runs it: `serve` the workers, `expire_due` the housekeeper, everything else any.
What it owns: all of the engine's state. What it must not know: files, configuration sources, the control plane.
"""

from __future__ import annotations

import functools
import operator
import socket
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from rcache.cluster.bucket_state import BucketState, may_follow
from rcache.engine.change_stream import HELD_FOR_EVER, CommitPoint, Portion, StreamEnd, Wait
from rcache.engine.clock import NodeClock
from rcache.engine.commit_point import LinkPoint, LinkPoints
from rcache.engine.contract import (
    OPEN_WAIT_S,
    UNCOMMITTED,
    ChainError,
    ConnectionLimits,
    EngineConfig,
    EngineConnection,
    Gate,
    Handback,
    NotFollowed,
    RequestRefused,
)
from rcache.engine.credit import credit_cost
from rcache.engine.gate import PlainGate
from rcache.engine.reference.buckets import Bucket, Item, item_bytes
from rcache.engine.reference.operations import Operations
from rcache.engine.reference.ring import Ring
from rcache.engine.reference.serving import Connection, Server, serve_peer
from rcache.engine.reference.store import Store
from rcache.records.record import (
    BORN_EMPTY,
    COUNTER_MAX,
    BadRecord,
    Cause,
    ImportEnd,
    Kind,
    Record,
    counter_of,
    decode_import_end,
    decode_opening,
    encode,
    encode_import_end,
    make_sequence,
    scan,
)
from rcache_client.wire.frames import Request
from rcache_client.wire.opcodes import Status

GIVEN_UP = (BucketState.FROZEN, BucketState.BACKUP)
"""Who gave a bucket up himself has all of its records, and may keep them as its backup."""

EXPIRE_WAIT_S = 1.0
"""How long the housekeeper waits for room in the stream before it tries again on its next round."""


class ReferenceEngine:
    """One contract, the readable body. See `contract.Engine` for what each method promises."""

    name = "reference"

    def __init__(self, config: EngineConfig, clock: NodeClock | None = None) -> None:
        self.config = config
        self.clock = clock or NodeClock()
        self._ring = Ring(config.stream_bytes)
        self._store = Store(config, self._ring, self.clock)
        self._server = Server(config, self._ring.commitment, Operations(self._store))
        self._points = LinkPoints(self._store, self._ring.commitment.open, self._store.set_points)
        self._let_go = [0] * config.buckets

    @property
    def stream(self) -> Ring:
        return self._ring

    @property
    def epoch(self) -> int:
        return self._server.epoch

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self._server.epoch = epoch

    # --- requests

    def connect(self, sock: socket.socket, limits: ConnectionLimits) -> Connection:
        return self._server.connect(sock, limits)

    def serve(self, connection: EngineConnection) -> Handback:
        assert isinstance(connection, Connection)
        return self._server.serve(connection)

    def open_gate(self, source: int, record: Callable[[bytes, int], object] | None) -> PlainGate:  # noqa: ARG002
        return PlainGate(self._store.loans, source)

    def serve_peer(self, connection: EngineConnection, gate: Gate | None) -> Handback | None:  # noqa: ARG002
        assert isinstance(connection, Connection)
        return serve_peer(connection)

    def execute(self, request: Request) -> bytes:
        return self._server.execute(request)

    def share(self) -> None:
        """This body serves one connection in each thread."""

    def set_crowded(self, crowded: bool) -> None:
        assert not crowded, "there is no group to serve them"

    def stop_serving(self) -> None:
        self._server.stop.set()
        self._ring.end_pauses()

    def close(self) -> None:
        self._server.stop.close()

    def flush(self, deadline_ns: int) -> int:
        removed = 0
        for bucket in self._store.buckets:
            try:
                removed += self._store.flush(bucket, deadline_ns)
            except RequestRefused as refusal:
                if refusal.status is Status.NOT_PRIMARY:
                    continue  # whoever is primary of it is told by itself
                if not removed:
                    raise
                why = f"{removed} items were removed, the rest was not: {refusal.reason}"
                raise RequestRefused(Status.NOT_COMMITTED, why) from None
        points = functools.reduce(operator.or_, (bucket.points for bucket in self._store.buckets))
        moment = self._ring.begin_moment(points) if self.config.confirm_reads else 0
        end = self._ring.wait_committed(Wait(points, self._ring.head, moment), deadline_ns)
        if end is not StreamEnd.REACHED:
            raise RequestRefused(*UNCOMMITTED[end])
        return removed

    # --- buckets and their states

    def state(self, bucket: int) -> BucketState:
        return self._store.buckets[bucket].state

    def set_state(self, bucket: int, state: BucketState) -> None:
        held = self._store.buckets[bucket]
        with held.stripe.lock:
            by_itself = state in (BucketState.FROZEN, BucketState.ABSENT) or (held.state, state) == GIVEN_UP
            if not by_itself or not may_follow(held.state, state):
                raise ValueError(f"bucket {bucket} is {held.state.value}; it cannot become {state.value} by itself")
            held.state = state
            if state is BucketState.ABSENT:
                self._let_go[bucket] += 2
                self._store.memory.force(-held.begin_locked(BORN_EMPTY))
            if state is not BucketState.FROZEN:
                held.leave_points_locked()

    def times_let_go(self, bucket: int) -> int:
        return self._let_go[bucket]

    def sequence(self, bucket: int) -> int:
        held = self._store.buckets[bucket]
        with held.stripe.lock:
            return held.sequence

    def follow(self, bucket: int, source: int) -> None:
        held = self._store.buckets[bucket]
        with held.stripe.lock:
            held.follows = source

    def set_paused(self, paused: bool) -> None:
        self._store.set_paused(paused)

    def open_buckets(
        self, buckets: Sequence[int], epoch: int, incarnation: int, node: str, wait_s: float = OPEN_WAIT_S
    ) -> None:
        deadline_ns = time.monotonic_ns() + int(wait_s * 1e9)
        for number in buckets:
            self._store.open(self._store.buckets[number], incarnation, node, make_sequence(epoch, 0), deadline_ns)
        self.epoch = max(self.epoch, epoch)

    def open_commit_point(self, name: str, position: int, until_ns: int = HELD_FOR_EVER) -> LinkPoint:
        point = self._points.open(name, position, until_ns)
        self._ring.credits.accounts[point.number].name = name
        return point

    def set_commit_points(self, bucket: int, points: Collection[CommitPoint]) -> int:
        return self._points.set(bucket, points)

    def exhausted_buckets(self) -> list[int]:
        return [bucket.number for bucket in self._store.buckets if counter_of(bucket.sequence) >= COUNTER_MAX]

    # --- records in and out

    def apply(self, body: bytes | memoryview, source: int = 0) -> None:
        for record in scan(bytes(body)):
            self._store.loans.use(source, self._apply_one(record, source))

    def _apply_one(self, record: Record, source: int) -> int:
        """Returns what it counts of what the source is lent."""
        clock_ms = self.clock.now_ms()
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

    def copy_bucket(self, bucket: int) -> Iterator[bytes]:
        """Items are never changed in place, so a list of them made under the lock is a copy at one sequence."""
        held = self._store.buckets[bucket]
        with held.stripe.lock:
            rows, sequence, time_ms = list(held.items.items()), held.sequence, held.newest_ms
        yield _mark(Kind.IMPORT_BEGIN, bucket, sequence, time_ms)
        for key, item in rows:
            yield encode(
                Record(Kind.ROW, Cause.NONE, bucket, item.flags, item.version, time_ms, item.expires_at_ms, key, item.value)
            )
        yield _mark(Kind.IMPORT_END, bucket, sequence, time_ms, encode_import_end(ImportEnd(sequence, len(rows))))

    def copy_portion(self, bucket: int, after: object, bytes_max: int) -> Portion:
        """By the keys' own order, which no change of others changes."""
        assert after is None or isinstance(after, bytes)
        held = self._store.buckets[bucket]
        rows: list[bytes] = []
        size = 0
        with held.stripe.lock:
            sequence, time_ms, position = held.sequence, held.newest_ms, self._ring.head
            left = sorted(key for key in held.items if after is None or key > after)
            while len(rows) < len(left) and size < bytes_max:
                key = left[len(rows)]
                item = held.items[key]
                record = Record(
                    Kind.ROW, Cause.NONE, bucket, item.flags, item.version, time_ms, item.expires_at_ms, key, item.value
                )
                rows.append(encode(record))
                size += len(rows[-1])
        following = left[len(rows) - 1] if len(rows) < len(left) else None
        return Portion(b"".join(rows), len(rows), following, sequence, position, time_ms)

    # --- upkeep

    def expire_due(self, items_max: int) -> int:
        try:
            return self._store.expire_due(items_max, time.monotonic_ns() + int(EXPIRE_WAIT_S * 1e9))
        except RequestRefused:
            return 0  # the stream is full or failed; the next round sees to it

    def trim(self) -> int:
        evicted = 0
        memory = self._store.memory
        left = memory.used - self._own_over() if self.config.evict else memory.used
        while memory.used > left and self._store.evict_one(time.monotonic_ns() + int(OPEN_WAIT_S * 1e9)):
            evicted += 1
        return evicted

    def _own_over(self) -> int:
        """How many bytes what this node is primary of is to give up: its part of what is over the limit, by the items; and
        where peers are lent little, what it has more than its buckets' part."""
        held = [bucket for bucket in self._store.buckets if bucket.state is not BucketState.ABSENT]
        own = [bucket for bucket in held if bucket.state in (BucketState.PRIMARY, BucketState.FROZEN)]
        items, own_items = sum(len(bucket.items) for bucket in held), sum(len(bucket.items) for bucket in own)
        loans = self._store.loans
        self._store.own_full = loans.count > 0 and own_items * len(held) >= items * len(own)
        if loans.free < 0:
            return -(loans.free * own_items // items) if items else 0
        return max(0, loans.lacking - loans.free) if own_items * len(held) > items * len(own) else 0

    def relieve(self, items_max: int) -> int:
        if self.config.evict:
            self._own_over()
        return self._store.borrowing.relieve(items_max)

    def stats(self) -> dict[str, dict[str, Any]]:
        store = self._store
        removed: dict[str, int] = {}
        hits = misses = sets = 0
        for stripe in store.stripes:
            with stripe.lock:
                hits, misses, sets = hits + stripe.hits, misses + stripe.misses, sets + stripe.sets
                for cause, count in stripe.removed.items():
                    name = Cause(cause).name.lower()
                    removed[name] = removed.get(name, 0) + count
        causes = (Cause.DELETED, Cause.EXPIRED, Cause.EVICTED, Cause.FLUSHED)
        return {
            "items": {
                "items": sum(len(bucket.items) for bucket in store.buckets),
                "hits": hits,
                "misses": misses,
                "sets": sets,
                **{cause.name.lower(): removed.get(cause.name.lower(), 0) for cause in causes},
            },
            "memory": {
                "limit_bytes": store.memory.limit,
                "used_bytes": store.memory.used,
                "evict": self.config.evict,
            },
            "buckets": {
                "buckets": len(store.buckets),
                **{state.value: sum(bucket.state is state for bucket in store.buckets) for state in BucketState},
            },
            "stream": self._ring.stats(),
            "credit": self._credit(),
        }

    def _credit(self) -> dict[str, Any]:
        accounts, loans = self._ring.credits, self._store.loans
        return {
            "refused_for_backup": accounts.refused,
            "evicted_for_backup": accounts.evicted,
            "backups": {
                account.name: {"room": account.room, "left": account.left, "debt": account.debt}
                for number, account in accounts.said().items()
                if not self._ring.commitment.is_closed(number)
            },
            "lent": {
                "peers": loans.count,
                "bytes": loans.lent,
                "bytes_each_max": loans.most,
                "told_none": loans.told_none,
            },
        }

    def check(self) -> None:
        self._ring.check()
        used = 0
        for stripe_number, stripe in enumerate(self._store.stripes):
            with stripe.lock:
                buckets = self._store.buckets[stripe_number :: len(self._store.stripes)]
                items = {key: item for bucket in buckets for key, item in bucket.items.items()}
                assert set(items) == set(stripe.recency)
                expiring = sorted((item.expires_at_ms, key) for key, item in items.items() if item.expires_at_ms)
                assert expiring == list(stripe.expiries)
                assert sorted(stripe.recency.values()) == list(stripe.recency.values())
                for bucket in buckets:
                    assert all(self._store.bucket_of(key) is bucket for key in bucket.items)
                    assert all(item.version <= bucket.sequence for item in bucket.items.values())
                used += sum(item_bytes(len(k), len(i.value), i.expires_at_ms > 0) for k, i in items.items())
        assert used == self._store.memory.used, (used, self._store.memory.used)


def _demand_not_whole(bucket: Bucket, record: Record) -> None:
    """A whole copy is let go of by a view, never by what a peer sends: one that was deposed and does not know it yet would
    otherwise take the only other copy away."""
    if record.kind in (Kind.IMPORT_BEGIN, Kind.DROP) and bucket.state is BucketState.BACKUP:
        raise ChainError(f"bucket {bucket.number} is a whole copy; it is not let go of by a record of a peer")


def _mark(kind: Kind, bucket: int, sequence: int, time_ms: int, value: bytes = b"") -> bytes:
    return encode(Record(kind, Cause.NONE, bucket, 0, sequence, time_ms, 0, b"", value))
