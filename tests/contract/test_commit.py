"""Replies wait for commitment: with `commit` nothing is revealed before the log is on disk up to it."""

from __future__ import annotations

import time

import pytest

from rcache.engine.contract import Engine, RequestRefused
from rcache_client.wire.frames import encode_request
from rcache_client.wire.opcodes import Opcode, Status
from tests.contract.conftest import EngineFactory
from tests.contract.harness import EVERYTHING, PATIENCE_S, Caller, FakeTime, Served, Task, answer_of, encode_payload, wait_until

SHORT_MS = 30
"""A budget that nobody's commitment will meet."""
LONG_MS = 60_000


@pytest.fixture
def engine(engine_factory: EngineFactory) -> Engine:
    """An engine with commit and one bucket, so that all keys are neighbours; its OPEN is on disk."""
    engine = engine_factory(commit=True, buckets=1)
    engine.stream.set_durable(engine.stream.head)
    return engine


def commit(engine: Engine) -> None:
    """The log is on disk."""
    engine.stream.set_durable(engine.stream.head)


def uncommitted(caller: Caller, opcode: Opcode, *values: object) -> None:
    """Execute a change whose commitment does not come in time."""
    assert caller.ask(opcode, *values, budget_ms=SHORT_MS).status is Status.NOT_COMMITTED


def test_a_write_is_answered_once_it_is_on_disk(engine: Engine, caller: Caller) -> None:
    head = engine.stream.head
    writing = Task(lambda: Caller(engine).ask(Opcode.SET, 0, 0, b"key", b"value", budget_ms=LONG_MS))
    wait_until(lambda: engine.stream.head > head, "the change")
    engine.stream.set_durable(engine.stream.head - 1)
    assert not writing.is_done
    commit(engine)
    assert writing.result().status is Status.OK


@pytest.mark.parametrize(
    ("opcode", "values"),
    [
        (Opcode.SET, (0, 0, b"key", b"9")),
        (Opcode.ADD, (0, 0, b"new", b"9")),
        (Opcode.DELETE, (b"key",)),
        (Opcode.TOUCH, (5000, b"key")),
        (Opcode.GET_AND_TOUCH, (5000, b"key")),
        (Opcode.INCREMENT, (1, 0, 0, 0, b"key")),
        (Opcode.APPEND, (b"key", b"9")),
        (Opcode.SET_MANY, ((0, 0, b"key", b"9"),)),
        (Opcode.DELETE_MANY, ((b"key",),)),
    ],
)
def test_a_change_that_is_not_on_disk_in_time_has_an_unknown_outcome(
    engine: Engine, caller: Caller, opcode: Opcode, values: tuple[object, ...]
) -> None:
    uncommitted(caller, Opcode.SET, 0, 0, b"key", b"1")
    commit(engine)
    head = engine.stream.head
    uncommitted(caller, opcode, *values)
    assert engine.stream.head > head, "it was applied"
    commit(engine)
    assert caller.ask(Opcode.SET_MANY, budget_ms=SHORT_MS) == (Status.OK, [])


@pytest.mark.parametrize(
    ("opcode", "values"),
    [
        (Opcode.GET, (b"key",)),
        (Opcode.INSPECT, (b"key",)),
        (Opcode.GET_WITH_TTL, (b"key",)),
        (Opcode.GET_MANY, ((b"key",),)),
        (Opcode.ADD, (0, 0, b"key", b"9")),
        (Opcode.CAS_VERSION, (1, 0, 0, b"key", b"9")),
        (Opcode.CAS_HASH, (bytes(16), 0, 0, b"key", b"9")),
        (Opcode.INCREMENT, (1, 0, 0, 0, b"key")),
        (Opcode.APPEND, (b"key", bytes(64 << 10))),
    ],
)
def test_whatever_reveals_an_uncommitted_item_waits(
    engine: Engine, caller: Caller, opcode: Opcode, values: tuple[object, ...]
) -> None:
    uncommitted(caller, Opcode.SET, 0, 0, b"key", b"text")
    assert caller.ask(opcode, *values, budget_ms=SHORT_MS).status is Status.NOT_COMMITTED
    commit(engine)
    assert caller.ask(opcode, *values, budget_ms=SHORT_MS).status is not Status.NOT_COMMITTED


def test_a_committed_item_is_read_while_its_neighbour_waits(engine: Engine, caller: Caller) -> None:
    writing = Task(lambda: Caller(engine).set(b"old", b"committed", budget_ms=LONG_MS))
    wait_until(lambda: caller.ask(Opcode.INSPECT, b"old", budget_ms=5).status is not Status.NOT_FOUND, "the item")
    commit(engine)
    version = writing.result()
    uncommitted(caller, Opcode.SET, 0, 0, b"new", b"uncommitted")
    assert caller.ask(Opcode.GET, b"old", budget_ms=SHORT_MS) == (Status.OK, (0, version, b"committed"))
    assert caller.ask(Opcode.GET, b"new", budget_ms=SHORT_MS).status is Status.NOT_COMMITTED
    assert caller.ask(Opcode.GET, b"none", budget_ms=SHORT_MS).status is Status.NOT_FOUND, "no removal waits"


def test_a_miss_waits_for_the_newest_removal(engine: Engine, caller: Caller) -> None:
    uncommitted(caller, Opcode.SET, 0, 0, b"key", b"value")
    commit(engine)
    uncommitted(caller, Opcode.DELETE, b"key")
    for opcode, values in (
        (Opcode.GET, (b"key",)),
        (Opcode.GET, (b"none",)),
        (Opcode.GET_WITH_TTL, (b"none",)),
        (Opcode.DELETE, (b"key",)),
        (Opcode.REPLACE, (0, 0, b"key", b"new")),
        (Opcode.CAS_VERSION, (7, 0, 0, b"key", b"new")),
    ):
        assert caller.ask(opcode, *values, budget_ms=SHORT_MS).status is Status.NOT_COMMITTED
    commit(engine)
    assert caller.ask(Opcode.GET, b"key", budget_ms=SHORT_MS).status is Status.NOT_FOUND
    assert caller.ask(Opcode.CAS_VERSION, 7, 0, 0, b"key", b"new", budget_ms=SHORT_MS) == (Status.CHANGED, (0,))


def test_a_miss_by_expiry_waits_for_its_removal(engine: Engine, caller: Caller, fake_time: FakeTime) -> None:
    uncommitted(caller, Opcode.SET, 0, 1000, b"key", b"value")
    commit(engine)
    fake_time.advance(1000)
    assert caller.ask(Opcode.GET, b"key", budget_ms=SHORT_MS).status is Status.NOT_COMMITTED
    commit(engine)
    assert caller.ask(Opcode.GET, b"key", budget_ms=SHORT_MS).status is Status.NOT_FOUND


def test_nothing_is_answered_before_the_open_is_on_disk(engine_factory: EngineFactory) -> None:
    engine = engine_factory(commit=True)
    caller = Caller(engine)
    assert caller.ask(Opcode.GET, b"key", budget_ms=SHORT_MS).status is Status.NOT_COMMITTED
    commit(engine)
    assert caller.ask(Opcode.GET, b"key", budget_ms=SHORT_MS).status is Status.NOT_FOUND


def test_refusals_that_reveal_nothing_do_not_wait(engine: Engine, caller: Caller) -> None:
    uncommitted(caller, Opcode.SET, 0, 0, b"key", b"value")
    assert caller.ask(Opcode.SET, 0, 0, b"key", bytes(65 << 10), budget_ms=SHORT_MS).status is Status.TOO_LARGE


def test_a_batch_waits_once(engine: Engine) -> None:
    count = 40
    frames = [
        encode_request(Opcode.SET, number, 150, encode_payload(Opcode.SET, (0, 0, b"k%d" % number, b"value")))
        for number in range(1, count + 1)
    ]
    with Served(engine) as served:
        began = time.monotonic()
        served.peer.sendall(b"".join(frames))
        assert {served.reply().status for _ in frames} == {Status.NOT_COMMITTED}
        assert time.monotonic() - began < count * 0.150 / 2


def test_a_batch_that_is_committed_in_part_says_so_for_each(engine: Engine) -> None:
    def frame(number: int) -> bytes:
        return encode_request(Opcode.SET, number, 300, encode_payload(Opcode.SET, (0, 0, b"k%d" % number, b"value")))

    reader = engine.stream.open_reader("log", holds=True)
    with Served(engine) as served:
        served.peer.sendall(frame(1) + frame(2) + frame(3))
        positions = []
        while len(positions) < 3:
            positions.append(reader.take(1, PATIENCE_S).position)
        engine.stream.set_durable(positions[1])
        replies = [served.reply() for _ in range(3)]
    assert [reply.status for reply in replies] == [Status.OK, Status.OK, Status.NOT_COMMITTED]
    assert [reply.request_id for reply in replies] == [1, 2, 3]
    reader.close()


def test_in_a_batch_the_most_patient_is_waited_for(engine: Engine) -> None:
    def frame(number: int, budget_ms: int) -> bytes:
        return encode_request(Opcode.SET, number, budget_ms, encode_payload(Opcode.SET, (0, 0, b"k%d" % number, b"value")))

    head = engine.stream.head
    with Served(engine) as served:
        served.peer.sendall(frame(1, LONG_MS) + frame(2, SHORT_MS))
        wait_until(lambda: engine.stats()["items"]["items"] == 2, "the changes")
        began = time.monotonic()
        wait_until(lambda: time.monotonic() - began > 2 * SHORT_MS / 1000, "the less patient to give up")
        commit(engine)
        assert served.reply().status == Status.OK
        assert served.reply().request_id == 2
    assert engine.stream.head > head


def test_a_failure_ends_the_wait_at_once(engine: Engine, caller: Caller) -> None:
    head = engine.stream.head
    writing = Task(lambda: Caller(engine).ask(Opcode.SET, 0, 0, b"key", b"value", budget_ms=LONG_MS))
    wait_until(lambda: engine.stream.head > head, "the change")
    engine.stream.fail("input/output error")
    status, (reason,) = writing.result()
    assert status is Status.APPEND_LOG_FAILED
    assert reason
    assert caller.ask(Opcode.GET, b"key", budget_ms=LONG_MS).status is Status.APPEND_LOG_FAILED
    assert caller.ask(Opcode.SET, 0, 0, b"key", b"new", budget_ms=LONG_MS).status is Status.STOPPING


def test_a_flush_waits_too(engine: Engine, caller: Caller) -> None:
    uncommitted(caller, Opcode.SET, 0, 0, b"key", b"value")
    with pytest.raises(RequestRefused) as refusal:
        engine.flush(time.monotonic_ns() + 30_000_000)
    assert refusal.value.status is Status.NOT_COMMITTED
    commit(engine)
    assert caller.ask(Opcode.GET, b"key", budget_ms=SHORT_MS).status is Status.NOT_FOUND
    assert engine.flush(time.monotonic_ns() + 30_000_000) == 0


def test_commitment_keeps_up_with_a_writer(engine: Engine) -> None:
    """A log that follows: every write is answered with OK, and what it wrote is on disk by then."""
    reader = engine.stream.open_reader("log", holds=True)
    stopping: list[bool] = []

    def log() -> None:
        while not stopping:
            batch = reader.take(EVERYTHING, 0.05)
            engine.stream.set_durable(batch.position)
            reader.release(batch.position)

    following = Task(log)
    caller = Caller(engine)
    for number in range(300):
        assert caller.ask(Opcode.SET, 0, 0, b"k%d" % (number % 7), b"value", budget_ms=LONG_MS).status is Status.OK
        assert engine.stream.durable == engine.stream.head
    stopping.append(True)
    following.result()
    with Served(engine) as served:
        served.ask(Opcode.GET, b"k1")
        assert answer_of(served.reply()).status is Status.OK
    reader.close()
