"""The native engine, put together: the contract on top of the compiled core.

Which thread runs it: `serve` the workers, `expire_due` the housekeeper, everything else any.
What it owns: the core. What it must not know: files, configuration sources, the control plane.

The core says what happened in numbers; here they become the contract's types and exceptions. Texts are those of the reference
engine; where a frame or a record cannot be read, its own grammar is asked for the words.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from hashlib import blake2b
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
from rcache.engine.native import _native
from rcache.engine.native.applied import STATES, raise_not_applied
from rcache.engine.native.connections import GOING_ON, NativeConnection, NativeGroup
from rcache.engine.native.stream import NativeStream
from rcache.records.record import (
    COUNTER_MAX,
    Opening,
    encode_opening,
    heads,
    make_sequence,
    show_sequence,
)
from rcache_client.wire.frames import Request
from rcache_client.wire.grammar import REQUESTS
from rcache_client.wire.opcodes import VALUE_HASH_BYTES, Status

GIVEN_UP = (BucketState.FROZEN, BucketState.BACKUP)
"""Who gave a bucket up himself has all of its records, and may keep them as its backup."""

PEER_NS = 200_000_000
"""How late a busy node's worker notices that serving is to end: as a client's."""

HASHES = 1 << 32
"""How many hashes a key can have: where a bucket that is copied in portions ends."""

EXPIRE_WAIT_S = 1.0
"""How long the housekeeper waits for room in the stream before it tries again on its next round."""


def _digest(value: bytes) -> bytes:
    return blake2b(value, digest_size=VALUE_HASH_BYTES).digest()


def _refusal(said: tuple[int, str, int, tuple[int, int]]) -> RequestRefused:
    status, reason, version, wait = said
    return RequestRefused(Status(status), reason, version=version, wait=Wait(*wait))


class NativeEngine:
    """One contract, the fast body. See `contract.Engine` for what each method promises."""

    name = "native"

    def __init__(self, config: EngineConfig, clock: NodeClock | None = None) -> None:
        self.config = config
        self.clock = clock or NodeClock()
        self._core = _native.Core(
            buckets=config.buckets,
            stripes=config.stripes,
            memory_bytes=config.memory_bytes,
            evict=config.evict,
            value_bytes_max=config.value_bytes_max,
            frame_bytes_max=config.frame_bytes_max,
            stream_bytes=config.stream_bytes,
            commit=config.commit,
            confirm_reads=config.confirm_reads,
            default_budget_ns=int(config.default_budget_s * 1e9),
            looks=(os.cpu_count() or 1) > 1,
            clock=None if self.clock.is_machines else self.clock,
            digest=_digest,
        )
        self.clock.follow(self._core.set_clock_offset)
        self._stream = NativeStream(self._core)
        self._points = LinkPoints(self._core, self._core.open_point, self._core.set_points)
        self._letting_go = threading.Lock()  # of the counts below; a stripe's comes after it
        self._let_go = [0] * config.buckets
        self._opened_from = [0] * config.buckets

    @property
    def stream(self) -> NativeStream:
        return self._stream

    @property
    def epoch(self) -> int:
        return self._core.epoch

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self._core.epoch = epoch

    # --- requests

    def connect(self, sock: socket.socket, limits: ConnectionLimits) -> NativeConnection:
        return NativeConnection(self._core, sock, limits)

    def serve(self, connection: EngineConnection) -> Handback:
        assert isinstance(connection, NativeConnection)
        return connection.handback(*self._core.serve(connection.core))

    def open_gate(self, source: int, record: Callable[[bytes, int], object] | None) -> _native.PeerGate:
        return _native.PeerGate(self._core, source, record)

    def serve_peer(self, connection: EngineConnection, gate: Gate | None) -> Handback | None:
        assert isinstance(connection, NativeConnection)
        assert gate is None or isinstance(gate, _native.PeerGate)
        ending, status, frame = self._core.serve_peer(connection.core, gate, PEER_NS)
        return None if ending == GOING_ON else connection.handback(ending, status, frame)

    def execute(self, request: Request) -> bytes:
        reply = self._core.execute(request.opcode, request.request_id, request.budget_ms, request.payload)
        if reply is None:
            REQUESTS[request.opcode].decode(request.payload)
            raise AssertionError(f"a payload was refused that the grammar takes: {request!r}")
        return reply

    def share(self) -> NativeGroup:
        return NativeGroup(self._core)

    def set_crowded(self, crowded: bool) -> None:
        self._core.set_crowded(crowded)

    def stop_serving(self) -> None:
        self._core.stop_serving()

    def close(self) -> None:
        """The core goes when nobody holds it any more: a reader or a connection may still be closed after this."""

    def flush(self, deadline_ns: int) -> int:
        removed = 0
        for bucket in range(self.config.buckets):
            count, refused = self._core.flush(bucket, deadline_ns)
            if refused is not None:
                refusal = _refusal(refused)
                if refusal.status is Status.NOT_PRIMARY:
                    continue  # whoever is primary of it is told by itself
                if not removed:
                    raise refusal
                why = f"{removed} items were removed, the rest was not: {refusal.reason}"
                raise RequestRefused(Status.NOT_COMMITTED, why)
            removed += count
        points = self.all_commit_points()
        moment = self.stream.begin_moment(points) if self.config.confirm_reads else 0
        end = self.stream.wait_committed(Wait(points, self.stream.head, moment), deadline_ns)
        if end is not StreamEnd.REACHED:
            raise RequestRefused(*UNCOMMITTED[end])
        return removed

    # --- buckets and their states

    def state(self, bucket: int) -> BucketState:
        return STATES[self._core.state(bucket)]

    def set_state(self, bucket: int, state: BucketState) -> None:
        if state is not BucketState.ABSENT:
            self._set_state(bucket, state)
            return
        with self._letting_go:
            self._let_go[bucket] += 1
            try:
                self._set_state(bucket, state)
            finally:
                self._let_go[bucket] += 1

    def times_let_go(self, bucket: int) -> int:
        return self._let_go[bucket]

    def _set_state(self, bucket: int, state: BucketState) -> None:
        now = self.state(bucket)
        by_itself = state in (BucketState.FROZEN, BucketState.ABSENT) or (now, state) == GIVEN_UP
        if by_itself and may_follow(now, state):
            was = STATES[self._core.set_state(bucket, STATES.index(state), STATES.index(now))]
            if was is now:
                return
            now = was
        raise ValueError(f"bucket {bucket} is {now.value}; it cannot become {state.value} by itself")

    def sequence(self, bucket: int) -> int:
        return self._core.sequence(bucket)

    def opened_from(self, bucket: int) -> int:
        return self._opened_from[bucket]

    def follow(self, bucket: int, source: int) -> None:
        self._core.follow(bucket, source)

    def set_paused(self, paused: bool) -> None:
        self._core.set_paused(paused)

    def open_buckets(
        self, buckets: Sequence[int], epoch: int, incarnation: int, node: str, wait_s: float = OPEN_WAIT_S
    ) -> None:
        deadline_ns = time.monotonic_ns() + int(wait_s * 1e9)
        rest = encode_opening(Opening(0, incarnation, node))[8:]
        begin = make_sequence(epoch, 0)
        for bucket in buckets:
            former, self._opened_from[bucket] = self._opened_from[bucket], self._core.sequence(bucket)
            done, said = self._core.open(bucket, begin, rest, deadline_ns)
            if done <= 0:
                self._opened_from[bucket] = former
            if done < 0:
                raise _refusal(said)
            if not done:
                now = f"{self.state(bucket).value} at {show_sequence(said)}"
                raise ValueError(f"bucket {bucket} is {now}; it cannot become primary at {show_sequence(begin)}")
        self.epoch = max(self.epoch, epoch)

    def open_commit_point(self, name: str, position: int, until_ns: int = HELD_FOR_EVER) -> LinkPoint:
        point = self._points.open(name, position, until_ns)
        self._core.name_point(point.number, name.encode())
        return point

    def set_commit_points(self, bucket: int, points: Collection[CommitPoint]) -> int:
        return self._points.set(bucket, points)

    def commit_points(self, bucket: int) -> int | None:
        points: int | None = self._core.points_of(bucket)
        return points

    def all_commit_points(self) -> int:
        points: int = self._core.points
        return points

    def exhausted_buckets(self) -> list[int]:
        return self._core.exhausted(COUNTER_MAX)

    # --- records in and out

    def apply(self, body: bytes | memoryview, source: int = 0) -> None:
        problem = self._core.apply(body, source)
        if problem is not None:
            raise_not_applied(bytes(body), self.config.buckets, source, *problem)

    def copy_bucket(self, bucket: int) -> Iterator[bytes]:
        body = self._core.copy(bucket)
        return (body[head.start : head.end] for head in heads(body))

    def copy_portion(self, bucket: int, after: object, bytes_max: int) -> Portion:
        assert after is None or isinstance(after, int)
        body, count, following, *rest = self._core.copy_portion(bucket, after or 0, bytes_max)
        return Portion(body, count, following if following < HASHES else None, *rest)

    # --- upkeep

    def expire_due(self, items_max: int) -> int:
        return self._core.expire_due(items_max, time.monotonic_ns() + int(EXPIRE_WAIT_S * 1e9))

    def trim(self) -> int:
        self._core.put_together()
        evicted = self._evicted()
        if self.config.evict:
            left = self._core.own_pages_over()
            while left > 0 and self._core.evict_page(time.monotonic_ns() + int(OPEN_WAIT_S * 1e9)):
                left -= 1
        return self._evicted() - evicted

    def relieve(self, items_max: int) -> int:
        self._core.own_pages_over()  # looks whose part is whose
        return self._core.relieve(items_max)

    def _evicted(self) -> int:
        count: int = self._core.stats()["items"][6]
        return count

    def stats(self) -> dict[str, dict[str, Any]]:
        found = self._core.stats()
        items, hits, misses, sets, deleted, expired, evicted, flushed = found["items"]
        names = ("items", "hits", "misses", "sets", "deleted", "expired", "evicted", "flushed")
        return {
            "items": dict(zip(names, (items, hits, misses, sets, deleted, expired, evicted, flushed), strict=True)),
            "memory": {**found["memory"], "evict": self.config.evict},
            "slabs": {"classes": [_slab(row) for row in self._core.slabs()]},
            "buckets": {
                "buckets": self.config.buckets,
                **{state.value: found["states"][number] for number, state in enumerate(STATES)},
            },
            "stream": found["stream"],
            "credit": self._credit(),
        }

    def _credit(self) -> dict[str, Any]:
        rows, refused, evicted = self._core.credits()
        peers, lent, most, short = self._core.loans()
        return {
            "refused_for_backup": refused,
            "evicted_for_backup": evicted,
            "backups": {name: {"room": room, "left": left, "debt": debt} for _, name, room, left, debt in rows},
            "lent": {"peers": peers, "bytes": lent, "bytes_each_max": most, "told_none": short},
        }

    def check(self) -> None:
        self._core.check()


def _slab(row: tuple[int, int, int, int, int, int, bool]) -> dict[str, Any]:
    chunk_bytes, pages, used, free, evicted, wasted_bytes, tables = row
    kind = "tables" if tables else "items" if chunk_bytes else "large items"
    return {
        "kind": kind,
        "chunk_bytes": chunk_bytes,
        "pages": pages,
        "used_chunks": used,
        "free_chunks": free,
        "evicted": evicted,
        "wasted_bytes": wasted_bytes,
    }
