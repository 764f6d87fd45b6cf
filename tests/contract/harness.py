"""What the contract's tests share: a clock to turn by hand, requests and answers by the grammar, a served connection.

What it is: everything here speaks frames and reads the change stream; nothing of it knows a body of the engine.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, NamedTuple

from rcache.engine.change_stream import StreamReader
from rcache.engine.clock import NodeClock
from rcache.engine.contract import ConnectionLimits, Engine, Handback
from rcache.records.record import Kind, Record, counter_of, decode, decode_opening, epoch_of
from rcache_client.wire.frames import Reply, ReplyReader, Request, encode_request
from rcache_client.wire.grammar import REQUESTS, decode_reply
from rcache_client.wire.opcodes import Opcode, Status

PATIENCE_S = 20.0
"""How long a test waits for what must come; far more than it takes, so that a slow machine fails nothing."""

MOMENT_S = 0.03
"""How long nothing must happen where nothing may."""

START_MS = 1_700_000_000_000
EVERYTHING = 1 << 40


class FakeTime:
    """A wall clock and a boot clock that go on when they are told to."""

    def __init__(self, now_ms: int = START_MS) -> None:
        self.ms = now_ms

    def advance(self, ms: int) -> None:
        self.ms += ms

    def clock(self) -> NodeClock:
        return NodeClock(lambda: self.ms, lambda: self.ms)


class Answer(NamedTuple):
    """A reply, decoded by the grammar."""

    status: Status
    values: Any


def encode_payload(opcode: int, values: tuple[Any, ...]) -> bytes:
    """A request's payload; for the many-key forms `values` are the entries."""
    return REQUESTS[opcode].encode(*values)


def decode_frame(frame: bytes) -> Reply:
    """The one reply that `frame` is."""
    reader = ReplyReader(1 << 30)
    reader.feed(frame)
    reply = reader.next()
    assert reply is not None
    assert reader.held == 0
    return reply


def answer_of(reply: Reply) -> Answer:
    return Answer(Status(reply.status), decode_reply(reply.opcode, reply.status, reply.payload))


class Caller:
    """Asks an engine by `execute`."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._next = 0

    def ask(self, opcode: Opcode, *values: Any, budget_ms: int = 0) -> Answer:
        self._next += 1
        request = Request(opcode, self._next, budget_ms, encode_payload(opcode, values))
        before = self.engine.epoch
        reply = decode_frame(self.engine.execute(request))
        assert (reply.opcode, reply.request_id) == (opcode, self._next)
        assert before <= reply.epoch <= self.engine.epoch
        return answer_of(reply)

    def set(self, key: bytes, value: bytes, flags: int = 0, ttl_ms: int = 0, budget_ms: int = 0) -> int:
        """Must succeed. Returns the version."""
        status, values = self.ask(Opcode.SET, flags, ttl_ms, key, value, budget_ms=budget_ms)
        assert status is Status.OK, (status, values)
        version: int = values[0]
        return version

    def value(self, key: bytes) -> bytes | None:
        """The value under a key, None if there is none; any other answer is a failure."""
        status, values = self.ask(Opcode.GET, key)
        assert status in (Status.OK, Status.NOT_FOUND), (status, values)
        return values[2] if status is Status.OK else None

    def delete(self, key: bytes, budget_ms: int = 0) -> Answer:
        return self.ask(Opcode.DELETE, key, budget_ms=budget_ms)


def drain(reader: StreamReader) -> list[Record]:
    """All records there are now, decoded and released."""
    records: list[Record] = []
    while True:
        batch = reader.take(EVERYTHING, 0.0)
        reader.release(batch.position)
        if not batch.records:
            return records
        records += [decode(record) for record in batch.records]


def assert_whole_history(records: Iterable[Record]) -> None:
    """Bucket by bucket: OPEN first, naming what was before it; counters without holes; times that never decrease."""
    last: dict[int, Record] = {}
    for record in records:
        before = last.get(record.bucket)
        if record.kind == Kind.OPEN:
            assert counter_of(record.sequence) == 0
            assert decode_opening(record.value).continues_from == (before.sequence if before else 0)
            assert before is None or epoch_of(record.sequence) > epoch_of(before.sequence)
        else:
            assert before is not None, "a change before OPEN"
            assert record.sequence == before.sequence + 1
        assert before is None or record.time_ms >= before.time_ms
        last[record.bucket] = record


def state_of(engine: Engine) -> dict[int, dict[bytes, tuple[bytes, int, int, int]]]:
    """All items by bucket: value, flags, expiry and version, by way of `copy_bucket`."""
    state = {}
    for bucket in range(engine.config.buckets):
        rows = [decode(record) for record in engine.copy_bucket(bucket)]
        state[bucket] = {
            row.key: (row.value, row.flags, row.expires_at_ms, row.sequence) for row in rows if row.kind == Kind.ROW
        }
    return state


def stat(engine: Engine, section: str, name: str) -> Any:
    return engine.stats()[section][name]


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Look again and again until `condition` holds; fails after PATIENCE_S."""
    deadline = time.monotonic() + PATIENCE_S
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        pause.wait(0.001)


def assert_stays(condition: Callable[[], bool], what: str) -> None:
    """It holds, and goes on to for as long as a thread that was woken wrongly would need to show."""
    deadline = time.monotonic() + MOMENT_S
    while time.monotonic() < deadline:
        assert condition(), f"{what} did not stay so"
        threading.Event().wait(0.002)


class Task:
    """A call in a thread of its own; `result` joins it and gives back what it returned or raised."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._call = call
        self._returned: Any = None
        self._raised: BaseException | None = None
        # Daemon: a call that never comes back fails its test and does not hold up the end of the run.
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._returned = self._call()
        except BaseException as error:
            self._raised = error

    @property
    def is_done(self) -> bool:
        return not self._thread.is_alive()

    def result(self) -> Any:
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive(), "the call did not come back"
        if self._raised is not None:
            raise self._raised
        return self._returned


def run_all(calls: Iterable[Callable[[], Any]]) -> list[Any]:
    """Run calls at the same time, each in a thread."""
    return [task.result() for task in [Task(call) for call in calls]]


class Served:
    """A connection that an engine serves in a thread: one `serve`, whose handback is `handback()`."""

    def __init__(self, engine: Engine, limits: ConnectionLimits | None = None, **attributes: bool) -> None:
        self.peer, self._sock = socket.socketpair()
        self.peer.settimeout(PATIENCE_S)
        self.connection = engine.connect(self._sock, limits or ConnectionLimits())
        for name, value in attributes.items():
            setattr(self.connection, name, value)
        self._reader = ReplyReader(1 << 30)
        self._task = Task(lambda: engine.serve(self.connection))

    def __enter__(self) -> Served:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.peer.close()
        self._task.result()
        self._sock.close()

    def ask(self, opcode: Opcode, *values: Any, budget_ms: int = 0, request_id: int = 1) -> None:
        self.peer.sendall(encode_request(opcode, request_id, budget_ms, encode_payload(opcode, values)))

    def reply(self) -> Reply:
        """The next reply."""
        while (reply := self._reader.next()) is None:
            data = self.peer.recv(1 << 16)
            assert data, "the connection was closed before the reply"
            self._reader.feed(data)
        return reply

    def handback(self) -> Handback:
        """What `serve` came back with."""
        handback: Handback = self._task.result()
        return handback

    @property
    def is_served(self) -> bool:
        return not self._task.is_done
