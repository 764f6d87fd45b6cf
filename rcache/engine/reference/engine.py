"""The reference engine, put together: change stream, store and what works on it, operations and the serving of connections.

Which thread runs it: `serve` the workers, `expire_due` the housekeeper, everything else any.
What it owns: all of the engine's state. What it must not know: files, configuration sources, the control plane.
"""

from __future__ import annotations

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
    ConnectionLimits,
    EngineConfig,
    EngineConnection,
    Gate,
    Handback,
    RequestRefused,
)
from rcache.engine.gate import PlainGate
from rcache.engine.reference.borrowing import Borrowing
from rcache.engine.reference.buckets import item_bytes
from rcache.engine.reference.change import Changes
from rcache.engine.reference.copies import Copies
from rcache.engine.reference.operations import Operations
from rcache.engine.reference.points import BucketPoints
from rcache.engine.reference.removal import Removal
from rcache.engine.reference.ring import Ring
from rcache.engine.reference.serving import Connection, Server, serve_peer
from rcache.engine.reference.store import Store
from rcache.records.record import BORN_EMPTY, COUNTER_MAX, Cause, counter_of, make_sequence
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
        self._copies = Copies(self._store)
        self._removal = Removal(self._store)
        self._borrowing = Borrowing(self._ring.credits, self._removal)
        self._changes = Changes(self._store, self._removal, self._borrowing)
        self._server = Server(config, self._ring.commitment, Operations(config, self._changes))
        self._waited_for = waited_for = BucketPoints(self._store)
        self._points = LinkPoints(waited_for, self._ring.commitment.open, waited_for.set)
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
                removed += self._copies.flush(bucket, deadline_ns)
            except RequestRefused as refusal:
                if refusal.status is Status.NOT_PRIMARY:
                    continue  # whoever is primary of it is told by itself
                if not removed:
                    raise
                why = f"{removed} items were removed, the rest was not: {refusal.reason}"
                raise RequestRefused(Status.NOT_COMMITTED, why) from None
        points = self.all_commit_points()
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
            self._copies.open(self._store.buckets[number], incarnation, node, make_sequence(epoch, 0), deadline_ns)
        self.epoch = max(self.epoch, epoch)

    def opened_from(self, bucket: int) -> int:
        return self._store.buckets[bucket].opened_from

    def open_commit_point(self, name: str, position: int, until_ns: int = HELD_FOR_EVER) -> LinkPoint:
        point = self._points.open(name, position, until_ns)
        self._ring.credits.accounts[point.number].name = name
        return point

    def set_commit_points(self, bucket: int, points: Collection[CommitPoint]) -> int:
        return self._points.set(bucket, points)

    def commit_points(self, bucket: int) -> int | None:
        return self._waited_for.of(bucket)

    def all_commit_points(self) -> int:
        return self._waited_for.of_all()

    def exhausted_buckets(self) -> list[int]:
        return [bucket.number for bucket in self._store.buckets if counter_of(bucket.sequence) >= COUNTER_MAX]

    # --- records in and out

    def apply(self, body: bytes | memoryview, source: int = 0) -> None:
        self._copies.apply(body, source)

    def copy_bucket(self, bucket: int) -> Iterator[bytes]:
        return self._copies.copy(self._store.buckets[bucket])

    def copy_portion(self, bucket: int, after: object, bytes_max: int) -> Portion:
        return self._copies.copy_portion(self._store.buckets[bucket], after, bytes_max)

    # --- upkeep

    def expire_due(self, items_max: int) -> int:
        try:
            return self._removal.expire_due(items_max, time.monotonic_ns() + int(EXPIRE_WAIT_S * 1e9))
        except RequestRefused:
            return 0  # the stream is full or failed; the next round sees to it

    def trim(self) -> int:
        return self._removal.trim()

    def relieve(self, items_max: int) -> int:
        if self.config.evict:
            self._removal.own_over()
        return self._borrowing.relieve(items_max)

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
