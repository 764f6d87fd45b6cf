"""Pauses: while there is one nothing is changed here that others did not change before; everything else goes on."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from rcache.cluster.bucket_state import BucketState
from rcache.engine.contract import Engine, RequestRefused
from rcache.records.record import Kind
from rcache_client.wire.opcodes import Opcode, Status
from tests.contract.conftest import EngineFactory
from tests.contract.harness import Caller, FakeTime, Served, Task, assert_stays, stat, state_of, wait_until
from tests.contract.test_buckets import FIRST, begin, end, keyed
from tests.contract.test_commit_points import LONG_MS, SHORT_MS, soon
from tests.contract.test_sharing import Sharing, shared

CHANGES: list[tuple[Opcode, tuple[Any, ...]]] = [
    (Opcode.SET, (0, 0, b"key", b"new")),
    (Opcode.ADD, (0, 0, b"none", b"new")),
    (Opcode.REPLACE, (0, 0, b"key", b"new")),
    (Opcode.DELETE, (b"key",)),
    (Opcode.TOUCH, (1000, b"key")),
    (Opcode.GET_AND_TOUCH, (1000, b"key")),
    (Opcode.INCREMENT, (1, 1, 0, 0, b"number")),
    (Opcode.DECREMENT, (1, 1, 0, 0, b"number")),
    (Opcode.APPEND, (b"key", b"more")),
    (Opcode.PREPEND, (b"key", b"more")),
    (Opcode.CAS_VERSION, (0, 0, 0, b"none", b"new")),
    (Opcode.CAS_HASH, (bytes(16), 0, 0, b"key", b"new")),
]
MANY: list[tuple[Opcode, tuple[Any, ...]]] = [
    (Opcode.SET_MANY, (0, 0, b"key", b"new")),
    (Opcode.DELETE_MANY, (b"key",)),
]


@pytest.fixture
def sharing(engine_factory: EngineFactory) -> Iterator[Sharing]:
    yield from shared(engine_factory())


def test_no_change_is_made(engine: Engine, caller: Caller) -> None:
    caller.set(b"key", b"value")
    engine.set_paused(True)
    held, head = state_of(engine), engine.stream.head
    for opcode, values in CHANGES:
        status, said = caller.ask(opcode, *values, budget_ms=SHORT_MS)
        assert status is Status.PAUSED, opcode
        assert "paused" in said[0]
    for opcode, entry in MANY:
        status, entries = caller.ask(opcode, entry, entry, budget_ms=SHORT_MS)
        assert (status, [each[:2] for each in entries]) == (Status.OK, [(Status.PAUSED, 0)] * 2)
    with pytest.raises(RequestRefused) as refusal:
        engine.flush(soon())
    assert refusal.value.status is Status.PAUSED
    assert (state_of(engine), engine.stream.head) == (held, head)


def test_reads_go_on(engine: Engine, caller: Caller) -> None:
    caller.set(b"key", b"value")
    engine.set_paused(True)
    assert caller.value(b"key") == b"value"
    assert caller.value(b"none") is None
    assert caller.ask(Opcode.INSPECT, b"key").status is Status.OK
    assert caller.ask(Opcode.GET_WITH_TTL, b"key").values[3] == b"value"
    assert caller.ask(Opcode.GET_MANY, (b"key",)).values[0][3] == b"value"


def test_a_change_waits_for_its_deadline_and_no_longer(engine: Engine, caller: Caller) -> None:
    engine.set_paused(True)
    began = time.monotonic()
    assert caller.ask(Opcode.SET, 0, 0, b"key", b"value", budget_ms=100).status is Status.PAUSED
    assert time.monotonic() - began >= 0.1


def test_what_waits_is_made_when_the_pause_is_over(engine: Engine) -> None:
    engine.set_paused(True)
    writing = [
        Task(lambda n=n: Caller(engine).ask(Opcode.SET, 0, 0, b"k%d" % n, b"value", budget_ms=LONG_MS))  # type: ignore[misc]
        for n in range(4)
    ]
    flushing = Task(lambda: engine.flush(soon(LONG_MS)))
    assert_stays(lambda: not any(task.is_done for task in [*writing, flushing]), "the wait")
    engine.set_paused(True)
    assert_stays(lambda: not any(task.is_done for task in [*writing, flushing]), "the wait")
    engine.set_paused(False)
    assert [task.result().status for task in writing] == [Status.OK] * 4
    flushing.result()
    assert Caller(engine).ask(Opcode.SET, 0, 0, b"key", b"value").status is Status.OK


def test_once_it_is_paused_nothing_is_changed_any_more(engine: Engine, caller: Caller) -> None:
    """Writers run all the time; after `set_paused` has returned the stream's head never moves."""
    stop: list[int] = []

    def write(writer: int) -> None:
        mine, number = Caller(engine), 0
        while not stop:
            number += 1
            status = mine.ask(Opcode.SET, 0, 0, b"k%d.%d" % (writer, number % 50), bytes(100), budget_ms=LONG_MS).status
            assert status is Status.OK

    writing = [Task(lambda n=n: write(n)) for n in range(3)]  # type: ignore[misc]
    for round_ in range(30):
        wait_until(lambda at=engine.stream.head: engine.stream.head > at, "writes")  # type: ignore[misc]
        engine.set_paused(True)
        head, sequences = engine.stream.head, [engine.sequence(bucket) for bucket in range(8)]
        if round_ % 10 == 0:
            assert_stays(lambda at=head: engine.stream.head == at, "the pause")  # type: ignore[misc]
        assert (engine.stream.head, [engine.sequence(bucket) for bucket in range(8)]) == (head, sequences)
        engine.set_paused(False)
    stop.append(1)
    for task in writing:
        task.result()


def test_an_expired_item_is_a_miss_that_stays(engine: Engine, caller: Caller, fake_time: FakeTime) -> None:
    caller.set(b"key", b"value", ttl_ms=100)
    engine.set_paused(True)
    head = engine.stream.head
    fake_time.advance(101)
    misses = stat(engine, "items", "misses")
    assert caller.value(b"key") is None
    assert caller.ask(Opcode.INSPECT, b"key").status is Status.NOT_FOUND
    assert caller.ask(Opcode.GET_WITH_TTL, b"key").status is Status.NOT_FOUND
    assert caller.ask(Opcode.GET_MANY, (b"key",)).values[0][0] == Status.NOT_FOUND
    assert stat(engine, "items", "misses") == misses + 3
    assert engine.expire_due(1000) == 0
    assert (stat(engine, "items", "items"), engine.stream.head) == (1, head)
    engine.set_paused(False)
    assert engine.expire_due(1000) == 1
    assert stat(engine, "items", "items") == 0


def test_a_miss_that_stays_reveals_the_change_that_made_it(engine_factory: EngineFactory, fake_time: FakeTime) -> None:
    """What it says is true only if the item's last change is: else the one before, which did not expire, would be there."""
    engine = engine_factory(commit=True, buckets=1)
    caller = Caller(engine)
    engine.stream.set_durable(engine.stream.head)
    caller.ask(Opcode.SET, 0, 100, b"key", b"value", budget_ms=1)
    fake_time.advance(101)
    engine.set_paused(True)
    assert caller.ask(Opcode.GET, b"key", budget_ms=SHORT_MS).status is Status.NOT_COMMITTED
    engine.stream.set_durable(engine.stream.head)
    assert caller.ask(Opcode.GET, b"key", budget_ms=SHORT_MS).status is Status.NOT_FOUND


def test_nothing_is_evicted(engine_factory: EngineFactory) -> None:
    engine = engine_factory(memory_bytes=4 << 20)
    caller = Caller(engine)
    for number in range(6000):
        caller.set(b"k%d" % number, bytes(1000))
    assert stat(engine, "items", "evicted") > 0
    engine.set_paused(True)
    items, evicted = stat(engine, "items", "items"), stat(engine, "items", "evicted")
    assert caller.ask(Opcode.SET, 0, 0, b"key", bytes(1000), budget_ms=SHORT_MS).status is Status.PAUSED
    assert caller.ask(Opcode.SET, 0, 0, b"large", bytes(60_000), budget_ms=SHORT_MS).status is Status.PAUSED
    assert engine.trim() == 0
    assert (stat(engine, "items", "items"), stat(engine, "items", "evicted")) == (items, evicted)
    engine.set_paused(False)
    assert caller.ask(Opcode.SET, 0, 0, b"large", bytes(60_000)).status is Status.OK


def test_a_store_without_eviction_that_is_full_is_paused_all_the_same(engine_factory: EngineFactory) -> None:
    engine = engine_factory(memory_bytes=4 << 20, evict=False)
    caller = Caller(engine)
    number = 0
    while caller.ask(Opcode.SET, 0, 0, b"k%d" % number, bytes(1000)).status is Status.OK:
        number += 1
    engine.set_paused(True)
    writing = Task(lambda: Caller(engine).ask(Opcode.SET, 0, 0, b"key", bytes(1000), budget_ms=LONG_MS))
    assert_stays(lambda: not writing.is_done, "the wait")
    engine.set_paused(False)
    assert writing.result().status is Status.NO_ROOM
    engine.set_paused(True)
    for bucket in range(8):
        engine.set_state(bucket, BucketState.FROZEN)
    writing = Task(lambda: Caller(engine).ask(Opcode.SET, 0, 0, b"key", bytes(1000), budget_ms=LONG_MS))
    assert writing.result().status is Status.NOT_PRIMARY, "that it is not ours is said at once, also where there is no room"


def test_a_recovered_copy_beyond_the_limit_is_not_trimmed(engine_factory: EngineFactory) -> None:
    engine = engine_factory(opened=0, buckets=1, memory_bytes=4 << 20)
    rows = [keyed(Kind.ROW, FIRST, b"k%d" % number, bytes(60_000)) for number in range(100)]
    engine.apply(begin(FIRST) + b"".join(rows) + end(FIRST, len(rows)))
    engine.open_buckets([0], 2, 1, "n1")
    engine.set_paused(True)
    assert engine.trim() == 0
    assert stat(engine, "items", "items") == 100
    engine.set_paused(False)
    assert engine.trim() > 0


def test_opening_and_records_of_others_go_on(engine_factory: EngineFactory) -> None:
    engine = engine_factory(opened=0, buckets=2)
    engine.set_paused(True)
    engine.apply(begin(FIRST) + keyed_row() + end(FIRST, 1))
    engine.open_buckets([0, 1], 2, 1, "n1")
    assert engine.state(0) is BucketState.PRIMARY
    assert stat(engine, "items", "items") == 1


def keyed_row() -> bytes:
    """A row of bucket 0 of two."""
    key = next(b"%d" % number for number in range(10) if zlib.crc32(b"%d" % number) % 2 == 0)
    return keyed(Kind.ROW, FIRST, key)


def test_what_is_not_ours_is_refused_at_once(engine: Engine, caller: Caller) -> None:
    engine.set_paused(True)
    for bucket in range(8):
        engine.set_state(bucket, BucketState.FROZEN)
    assert caller.ask(Opcode.SET, 0, 0, b"key", b"value", budget_ms=LONG_MS).status is Status.NOT_PRIMARY
    assert caller.ask(Opcode.DELETE, b"key", budget_ms=LONG_MS).status is Status.NOT_PRIMARY
    assert engine.flush(soon(LONG_MS)) == 0, "what is not ours is flushed by whose it is"


@pytest.mark.parametrize(
    ("end_it", "expected"),
    [
        (lambda engine: engine.stream.end_waits(), Status.PAUSED),
        (lambda engine: engine.stop_serving(), Status.PAUSED),
        (lambda engine: engine.stream.fail("no space left on device"), Status.STOPPING),
    ],
)
def test_the_wait_ends_with_the_node(engine: Engine, end_it: Callable[[Engine], None], expected: Status) -> None:
    engine.set_paused(True)
    writing = [Task(lambda: Caller(engine).ask(Opcode.SET, 0, 0, b"key", b"value", budget_ms=LONG_MS)) for _ in range(3)]
    assert_stays(lambda: not any(task.is_done for task in writing), "the wait")
    end_it(engine)
    assert [task.result().status for task in writing] == [expected] * 3


def test_a_batch_with_changes_and_reads(engine: Engine, caller: Caller) -> None:
    """In the order of the requests: what comes behind a change waits with it."""
    caller.set(b"key", b"value")
    engine.set_paused(True)
    with Served(engine) as served:
        served.ask(Opcode.GET, b"key", request_id=1)
        assert served.reply().status == Status.OK
        served.ask(Opcode.SET, 0, 0, b"key", b"new", budget_ms=LONG_MS, request_id=2)
        served.ask(Opcode.GET, b"key", budget_ms=LONG_MS, request_id=3)
        served.ask(Opcode.SET, 0, 0, b"key", b"newer", budget_ms=LONG_MS, request_id=4)
        assert_stays(lambda: caller.value(b"key") == b"value", "the pause")
        engine.set_paused(False)
        assert [served.reply().status for _ in range(3)] == [Status.OK] * 3
    assert caller.value(b"key") == b"newer"


def test_a_shared_worker_waits_as_it_waits_for_room(sharing: Sharing) -> None:
    engine, peer = sharing.engine, sharing.connect()
    engine.set_paused(True)
    peer.ask(Opcode.SET, 0, 0, b"key", b"value", budget_ms=SHORT_MS)
    assert peer.reply().status == Status.PAUSED
    peer.ask(Opcode.GET, b"key")
    assert peer.reply().status == Status.NOT_FOUND
    peer.ask(Opcode.SET, 0, 0, b"key", b"value", budget_ms=LONG_MS)
    assert peer.is_quiet()
    engine.set_paused(False)
    assert peer.reply().status == Status.OK
