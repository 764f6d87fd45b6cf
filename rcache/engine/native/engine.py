"""The native engine, put together: the contract on top of the compiled core.

Which thread runs it: `serve` the workers, `expire_due` the housekeeper, everything else any.
What it owns: the core. What it must not know: files, configuration sources, the control plane.

The core says what happened in numbers; here they become the contract's types and exceptions. Texts are those of the reference
engine; where a frame or a record cannot be read, its own grammar is asked for the words.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator, Sequence
from enum import IntEnum
from hashlib import blake2b
from typing import Any

from rcache.cluster.bucket_state import BucketState, may_follow
from rcache.engine.clock import NodeClock
from rcache.engine.contract import (
    Batch,
    ChainError,
    ConnectionLimits,
    Ended,
    EngineConfig,
    EngineConnection,
    Handback,
    RequestRefused,
    StreamEnd,
)
from rcache.engine.native import _native
from rcache.engine.sockets import set_kernel_timeout
from rcache.records.record import (
    COUNTER_MAX,
    BadRecord,
    Kind,
    Opening,
    decode,
    decode_import_end,
    decode_opening,
    encode_opening,
    heads,
    make_sequence,
    scan,
    show_sequence,
)
from rcache_client.wire.frames import HEADER, HEADER_BYTES, BadFrame, Request, RequestReader
from rcache_client.wire.grammar import REQUESTS, BadPayload
from rcache_client.wire.opcodes import VALUE_HASH_BYTES, Status

OPEN_WAIT_S = 30.0
"""How long opening a bucket waits for room in the stream. The log writer drains the whole ring in far less."""

EXPIRE_WAIT_S = 1.0
"""How long the housekeeper waits for room in the stream before it tries again on its next round."""

BUSY_WAIT_S = 0.2
"""How long a connection counts as busy after its last frame; also how late a busy one notices that serving is to end."""

STATES = (BucketState.ABSENT, BucketState.IMPORTING, BucketState.BACKUP, BucketState.PRIMARY, BucketState.FROZEN)
ENDINGS = tuple(Ended)
GOING_ON = ENDINGS.index(Ended.CROWDED)
"""Of a `send`: all was taken. Of a `serve`: nothing ended; another worker is to go on."""

STREAM_ENDS = (StreamEnd.REACHED, StreamEnd.TIMED_OUT, StreamEnd.FAILED)

UNCOMMITTED = {
    StreamEnd.TIMED_OUT: (Status.NOT_COMMITTED, "applied here, but not on disk before the deadline; the outcome is not known"),
    StreamEnd.FAILED: (Status.APPEND_LOG_FAILED, "the append log failed; the outcome is not known"),
}


def _digest(value: bytes) -> bytes:
    return blake2b(value, digest_size=VALUE_HASH_BYTES).digest()


def _refusal(said: tuple[int, str, int, int]) -> RequestRefused:
    status, reason, version, position = said
    return RequestRefused(Status(status), reason, version=version, position=position)


class NativeReader:
    """A cursor in the change stream. See `contract.StreamReader`."""

    def __init__(self, core: _native.Core, *, holds: bool) -> None:
        self._reader = _native.Reader(core, holds)

    def take(self, bytes_max: int, timeout_s: float, linger_s: float = 0.0) -> Batch:
        body, count, position, lost = self._reader.take(bytes_max, int(timeout_s * 1e9), int(linger_s * 1e9))
        return Batch(body, count, position, lost)

    def release(self, position: int) -> None:
        self._reader.release(position)

    def close(self) -> None:
        self._reader.close()


class NativeStream:
    """The change stream. See `contract.ChangeStream`."""

    def __init__(self, core: _native.Core) -> None:
        self._core = core

    @property
    def head(self) -> int:
        return self._core.head

    @property
    def durable(self) -> int:
        return self._core.durable

    @property
    def failure(self) -> str:
        """Why the stream failed; "" while it has not."""
        return self._core.failure

    def open_reader(self, name: str, *, holds: bool) -> NativeReader:  # noqa: ARG002  a name is for people
        return NativeReader(self._core, holds=holds)

    def set_durable(self, position: int) -> None:
        self._core.set_durable(position)

    def wait_durable(self, position: int, deadline_ns: int) -> StreamEnd:
        return STREAM_ENDS[self._core.wait_durable(position, deadline_ns)]

    def wake_readers(self) -> None:
        self._core.wake_readers()

    def end_waits(self) -> None:
        self._core.end_waits()

    def fail(self, why: str) -> None:
        self._core.fail(why.encode())


class NativeConnection:
    """One connection. See `contract.EngineConnection`."""

    def __init__(self, core: _native.Core, sock: socket.socket, limits: ConnectionLimits) -> None:
        sock.setblocking(True)
        set_kernel_timeout(sock, socket.SO_SNDTIMEO, limits.send_s)
        set_kernel_timeout(sock, socket.SO_RCVTIMEO, BUSY_WAIT_S)
        self.sock = sock
        in_ns = [int(seconds * 1e9) for seconds in (limits.hello_s, limits.idle_s, limits.frame_s, limits.send_s)]
        self.core = _native.Connection(core, sock, *in_ns)

    @property
    def data_allowed(self) -> bool:
        return self.core.data_allowed

    @data_allowed.setter
    def data_allowed(self, allowed: bool) -> None:
        self.core.data_allowed = allowed

    @property
    def greeted(self) -> bool:
        return self.core.greeted

    @greeted.setter
    def greeted(self, greeted: bool) -> None:
        self.core.greeted = greeted

    @property
    def last_executed(self) -> int:
        return self.core.last_executed

    @last_executed.setter
    def last_executed(self, request_id: int) -> None:
        self.core.last_executed = request_id

    @property
    def requests(self) -> int:
        return self.core.requests

    def send(self, data: bytes) -> Ended | None:
        ending = self.core.send(data)
        return None if ending == GOING_ON else ENDINGS[ending]

    def queue(self, data: bytes, *, last: bool = False) -> None:
        self.core.queue(data, last)

    def handback(self, ending: int, status: int, frame: bytes) -> Handback:
        """What the core handed back, in the contract's types."""
        ended = ENDINGS[ending]
        if ended is Ended.FRAME:
            _, _, opcode, _, _, request_id, budget_ms = HEADER.unpack_from(frame)
            return Handback(ended, request=Request(opcode, request_id, budget_ms, frame[HEADER_BYTES:]))
        if ended is Ended.BAD_FRAME:
            return Handback(ended, bad=self._bad_frame(status, frame))
        return Handback(ended)

    def _bad_frame(self, status: int, frame: bytes) -> BadFrame:
        """The words are the grammar's. That it finds nothing wrong would be a bug of one of the two."""
        if status == Status.BAD_PAYLOAD:
            _, _, opcode, _, _, request_id, _ = HEADER.unpack_from(frame)
            try:
                REQUESTS[opcode].decode(frame[HEADER_BYTES:])
            except BadPayload as error:
                return BadFrame(Status.BAD_PAYLOAD, str(error), request_id, opcode)
        reader = RequestReader(self.core.frame_bytes_max)
        reader.feed(frame)
        try:
            reader.next()
        except BadFrame as bad:
            return bad
        raise AssertionError(f"a frame was refused with {Status(status).name} that the grammar takes: {frame[:64]!r}")


class NativeGroup:
    """Connections that share a worker. See `contract.SocketGroup`."""

    def __init__(self, core: _native.Core) -> None:
        self._group = _native.SocketGroup(core)
        self._connections: dict[_native.Connection, NativeConnection] = {}

    def add(self, connection: EngineConnection) -> None:
        assert isinstance(connection, NativeConnection)
        self._connections[connection.core] = connection
        self._group.add(connection.core)

    def serve(self) -> tuple[EngineConnection, Handback] | None:
        served = self._group.serve()
        if served is None:
            return None
        core, ending, status, frame = served
        connection = self._connections.pop(core)
        return connection, connection.handback(ending, status, frame)


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
            default_budget_ns=int(config.default_budget_s * 1e9),
            looks=(os.cpu_count() or 1) > 1,
            clock=None if self.clock.is_machines else self.clock,
            digest=_digest,
        )
        self.clock.follow(self._core.set_clock_offset)
        self._stream = NativeStream(self._core)

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
                if not removed:
                    raise refusal
                why = f"{removed} items were removed, the rest was not: {refusal.reason}"
                raise RequestRefused(Status.NOT_COMMITTED, why)
            removed += count
        if self.config.commit:
            end = self.stream.wait_durable(self.stream.head, deadline_ns)
            if end is not StreamEnd.REACHED:
                raise RequestRefused(*UNCOMMITTED[end])
        return removed

    # --- buckets and their states

    def state(self, bucket: int) -> BucketState:
        return STATES[self._core.state(bucket)]

    def set_state(self, bucket: int, state: BucketState) -> None:
        now = self.state(bucket)
        if state in (BucketState.FROZEN, BucketState.ABSENT) and may_follow(now, state):
            was = STATES[self._core.set_state(bucket, STATES.index(state), STATES.index(now))]
            if was is now:
                return
            now = was
        raise ValueError(f"bucket {bucket} is {now.value}; it cannot become {state.value} by itself")

    def open_buckets(self, buckets: Sequence[int], epoch: int, incarnation: int, node: str) -> None:
        deadline_ns = time.monotonic_ns() + int(OPEN_WAIT_S * 1e9)
        rest = encode_opening(Opening(0, incarnation, node))[8:]
        begin = make_sequence(epoch, 0)
        for bucket in buckets:
            done, said = self._core.open(bucket, begin, rest, deadline_ns)
            if done < 0:
                raise _refusal(said)
            if not done:
                now = f"{self.state(bucket).value} at {show_sequence(said)}"
                raise ValueError(f"bucket {bucket} is {now}; it cannot become primary at {show_sequence(begin)}")
        self.epoch = max(self.epoch, epoch)

    def exhausted_buckets(self) -> list[int]:
        return self._core.exhausted(COUNTER_MAX)

    # --- records in and out

    def apply(self, body: bytes) -> None:
        problem = self._core.apply(body)
        if problem is not None:
            _raise_not_applied(body, self.config.buckets, *problem)

    def copy_bucket(self, bucket: int) -> Iterator[bytes]:
        body = self._core.copy(bucket)
        return (body[head.start : head.end] for head in heads(body))

    # --- upkeep

    def expire_due(self, items_max: int) -> int:
        return self._core.expire_due(items_max, time.monotonic_ns() + int(EXPIRE_WAIT_S * 1e9))

    def trim(self) -> int:
        evicted = self._evicted()
        while self._core.pages_over and self._core.evict_page(time.monotonic_ns() + int(OPEN_WAIT_S * 1e9)):
            pass
        return self._evicted() - evicted

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


class Problem(IntEnum):
    """Why a record was not applied: the numbers of the core's `Applied`."""

    BAD = 1
    WRONG_BUCKET = 2
    WRONG_KEY = 3
    NOT_TAKEN = 4
    ROW_OUTSIDE = 5
    END_ODD = 6
    NOT_NEXT = 7
    OPEN_ODD = 8
    NO_MEMORY = 9


_OFF_CHAIN = {
    Problem.NOT_TAKEN: "bucket {bucket} is {state}; records of others do not apply to it",
    Problem.ROW_OUTSIDE: "bucket {bucket}: a row outside an import",
    Problem.END_ODD: "bucket {bucket}: the end of an import that does not fit its beginning",
    Problem.NOT_NEXT: "bucket {bucket}: {sequence} does not follow on {held}",
}


def _raise_not_applied(body: bytes, buckets: int, *said: int) -> None:
    """The exception for a record that was not applied, in the words of the reference engine."""
    number, at, bucket, sequence, state, held = said
    problem = Problem(number)
    if problem in _OFF_CHAIN:
        where = {"bucket": bucket, "sequence": sequence, "state": STATES[state].value, "held": held}
        raise ChainError(_OFF_CHAIN[problem].format(**where))
    if problem is Problem.NO_MEMORY:
        raise MemoryError("no memory for a recovered copy: it is larger than four times --memory-limit")
    if problem is Problem.WRONG_BUCKET:
        raise BadRecord(f"bucket {bucket} of {buckets}")
    record = decode(body, at, at + int.from_bytes(body[at : at + 4], "big")) if problem is not Problem.BAD else None
    if record is not None and problem is Problem.WRONG_KEY:
        raise BadRecord(f"key {record.key!r} is not of bucket {bucket}")
    if record is not None:
        decode_opening(record.value)
    for each in scan(body):  # the format's own words for what cannot be read
        if each.kind == Kind.IMPORT_END:
            decode_import_end(each.value)
    raise AssertionError(f"a record at {at} was refused that the format takes")
