"""Expiry: to the millisecond, made once, as a change; and a clock that goes its own way."""

from __future__ import annotations

import pytest

from rcache.cluster.bucket_state import BucketState
from rcache.engine.contract import Engine
from rcache.records.record import Cause, Kind
from rcache_client.wire.opcodes import Opcode, Status
from tests.contract.conftest import EngineFactory
from tests.contract.harness import Caller, FakeTime, assert_whole_history, drain, stat


@pytest.mark.parametrize("opcode", [Opcode.GET, Opcode.GET_WITH_TTL])
def test_a_read_that_finds_an_expired_item_removes_it_with_a_record(
    engine_factory: EngineFactory, fake_time: FakeTime, opcode: Opcode
) -> None:
    engine = engine_factory(opened=0)
    caller, reader = Caller(engine), engine.stream.open_reader("test", holds=True)
    engine.open_buckets(range(8), 1, 1, "n1")
    version = caller.set(b"key", b"value", ttl_ms=50)
    fake_time.advance(50)
    assert caller.ask(opcode, b"key").status is Status.NOT_FOUND
    assert caller.ask(opcode, b"key").status is Status.NOT_FOUND
    records = drain(reader)
    assert_whole_history(records)
    removal = records[-1]
    assert (removal.kind, removal.cause, removal.key, removal.sequence) == (Kind.REMOVE, Cause.EXPIRED, b"key", version + 1)
    assert records[-2].kind == Kind.SET
    assert records[-2].expires_at_ms == records[-2].time_ms + 50
    assert stat(engine, "items", "expired") == 1
    reader.close()


def test_a_refusal_that_comes_upon_an_expired_item_removes_it(engine: Engine, caller: Caller, fake_time: FakeTime) -> None:
    caller.set(b"key", b"value", ttl_ms=50)
    fake_time.advance(50)
    reader = engine.stream.open_reader("test", holds=True)
    assert caller.delete(b"key").status is Status.NOT_FOUND
    assert [(record.kind, record.cause) for record in drain(reader)] == [(Kind.REMOVE, Cause.EXPIRED)]
    reader.close()


def test_a_write_over_an_expired_item_needs_no_removal(engine: Engine, caller: Caller, fake_time: FakeTime) -> None:
    caller.set(b"key", b"value", ttl_ms=50)
    fake_time.advance(50)
    reader = engine.stream.open_reader("test", holds=True)
    caller.ask(Opcode.ADD, 0, 0, b"key", b"new")
    assert [(record.kind, record.value) for record in drain(reader)] == [(Kind.SET, b"new")]
    reader.close()


def test_what_is_due_is_removed_without_being_read(engine: Engine, caller: Caller, fake_time: FakeTime) -> None:
    for number in range(100):
        caller.set(b"k%d" % number, b"value", ttl_ms=1000 + number)
    caller.set(b"stays", b"value")
    fake_time.advance(1049)
    assert engine.expire_due(1000) == 50
    assert engine.expire_due(1000) == 0
    assert stat(engine, "items", "items") == 51
    fake_time.advance(1_000_000)
    assert engine.expire_due(20) == 20
    assert engine.expire_due(1000) == 30
    assert caller.value(b"stays") == b"value"
    assert stat(engine, "memory", "used_bytes") > 0


def test_a_touched_item_lives_on(engine: Engine, caller: Caller, fake_time: FakeTime) -> None:
    caller.set(b"key", b"value", ttl_ms=1000)
    fake_time.advance(900)
    caller.ask(Opcode.TOUCH, 1000, b"key")
    fake_time.advance(999)
    assert engine.expire_due(10) == 0
    assert caller.value(b"key") == b"value"
    fake_time.advance(1)
    assert engine.expire_due(10) == 1


def test_a_step_of_the_wall_clock_is_reported_and_not_followed(engine_factory: EngineFactory, fake_time: FakeTime) -> None:
    engine = engine_factory()
    caller = Caller(engine)
    caller.set(b"key", b"value", ttl_ms=1000)
    boot = fake_time.ms
    wall = [boot + 3_600_000]
    engine.clock._wall_ms = lambda: wall[0]  # type: ignore[attr-defined]
    assert engine.clock.adjust() == 3_600_000
    assert engine.clock.adjust() == 0, "a step is reported once"
    assert caller.ask(Opcode.INSPECT, b"key").values[2] == 1000


def test_a_backup_lets_its_primary_expire(engine_factory: EngineFactory, fake_time: FakeTime) -> None:
    source, backup = engine_factory(buckets=1), engine_factory(opened=0, buckets=1)
    caller = Caller(source)
    for number in range(40):
        caller.set(b"k%d" % number, b"value", ttl_ms=10)
    backup.apply(b"".join(source.copy_bucket(0)))
    assert backup.state(0) is BucketState.BACKUP
    fake_time.advance(10)
    assert backup.expire_due(100) == 0
    assert stat(backup, "items", "items") == 40
    backup.open_buckets([0], 2, 1, "n2")
    assert backup.expire_due(100) == 40


def test_items_of_a_backup_do_not_hide_what_is_due_elsewhere(engine_factory: EngineFactory, fake_time: FakeTime) -> None:
    source, mixed = engine_factory(buckets=2, stripes=1), engine_factory(opened=0, buckets=2, stripes=1)
    caller = Caller(source)
    for number in range(200):
        caller.set(b"k%d" % number, b"value", ttl_ms=10)
    mixed.apply(b"".join([*source.copy_bucket(0), *source.copy_bucket(1)]))
    mixed.open_buckets([1], 2, 1, "n2")
    fake_time.advance(10)
    due = sum(1 for number in range(200) if Caller(mixed).ask(Opcode.INSPECT, b"k%d" % number).status is Status.NOT_PRIMARY)
    assert 50 < due < 150, "keys fall into both buckets"
    mixed.apply(b"".join(source.copy_bucket(0)))
    for number in range(20):
        Caller(mixed).ask(Opcode.SET, 0, 10, b"new %d" % number, b"value")
    fake_time.advance(10)
    assert mixed.expire_due(5) == 5, "though more than that are due in the backup"


def test_time_in_a_bucket_never_goes_back(engine_factory: EngineFactory, fake_time: FakeTime) -> None:
    """A node whose clock is behind takes over a bucket whose newest record is ahead of it."""
    source = engine_factory(buckets=1)
    fake_time.advance(60_000)
    ahead = source.clock.now_ms()
    Caller(source).set(b"key", b"value", ttl_ms=5000)
    copy = b"".join(source.copy_bucket(0))
    fake_time.advance(-60_000)
    late = engine_factory(opened=0, buckets=1)
    reader = late.stream.open_reader("test", holds=True)
    late.apply(copy)
    late.open_buckets([0], 2, 1, "n2")
    caller = Caller(late)
    assert caller.ask(Opcode.INSPECT, b"key").values[2] == 5000
    fake_time.advance(3000)
    assert caller.ask(Opcode.INSPECT, b"key").values[2] == 2000, "its time is carried on, not frozen"
    caller.set(b"other", b"value", ttl_ms=1000)
    fake_time.advance(2000)
    assert caller.value(b"key") is None
    times = [record.time_ms for record in drain(reader)]
    assert times == sorted(times)
    assert times[0] >= ahead
    reader.close()
