"""What is the reference engine's own: counters that run out, and bookkeeping that must not grow."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from rcache.engine.change_stream import NO_WAIT, Wait
from rcache.engine.contract import EngineConfig, RequestRefused
from rcache.engine.reference import ReferenceEngine
from rcache.engine.reference import engine as engine_module
from rcache.engine.reference import store as store_module
from rcache.engine.reference.buckets import Bucket, Item, Stripe, item_bytes
from rcache.engine.reference.memory import MemoryAccount
from rcache.records.record import HEADER_BYTES, make_sequence
from rcache_client.wire.opcodes import Opcode, Status
from tests.contract.harness import Caller, FakeTime, assert_whole_history, drain


@pytest.fixture
def time_() -> FakeTime:
    return FakeTime()


@pytest.fixture
def engine(time_: FakeTime) -> Iterator[ReferenceEngine]:
    """An engine of one bucket, not opened."""
    engine = ReferenceEngine(EngineConfig(buckets=1, stream_bytes=1 << 20), time_.clock())
    yield engine
    engine.check()
    engine.close()


def test_a_counter_that_ran_out_refuses_changes_until_the_next_epoch(
    engine: ReferenceEngine, time_: FakeTime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "COUNTER_MAX", 5)
    monkeypatch.setattr(engine_module, "COUNTER_MAX", 5)
    reader = engine.stream.open_reader("test", holds=True)
    engine.open_buckets([0], 1, 1, "n1")
    caller = Caller(engine)
    for number in range(5):
        caller.set(b"k%d" % number, b"value", ttl_ms=50 if number == 0 else 0)
    assert engine.exhausted_buckets() == [0]
    for opcode, values in (
        (Opcode.SET, (0, 0, b"k1", b"new")),
        (Opcode.DELETE, (b"k1",)),
        (Opcode.INCREMENT, (1, 1, 0, 0, b"n")),
        (Opcode.TOUCH, (1, b"k1")),
    ):
        assert caller.ask(opcode, *values).status is Status.BUSY
    with pytest.raises(RequestRefused):
        engine.flush(1 << 62)
    assert caller.value(b"k1") == b"value", "reads go on"
    time_.advance(50)
    assert caller.ask(Opcode.GET, b"k0").status is Status.BUSY, "its removal would be a change"
    assert engine.expire_due(10) == 0
    engine.open_buckets([0], 2, 1, "n1")
    assert engine.exhausted_buckets() == []
    assert caller.value(b"k0") is None
    assert caller.set(b"k1", b"new") == make_sequence(2, 2)
    assert_whole_history(drain(reader))
    reader.close()


def test_what_is_pending_does_not_grow_with_the_writes(time_: FakeTime) -> None:
    """A workload that only writes, with a log that follows."""
    engine = ReferenceEngine(EngineConfig(buckets=1, commit=True, stream_bytes=1 << 20), time_.clock())
    engine.open_buckets([0], 1, 1, "n1")
    bucket = engine._store.buckets[0]
    for _ in range(500):
        assert Caller(engine).ask(Opcode.SET, 0, 0, b"key", b"value", budget_ms=1).status is Status.NOT_COMMITTED
        engine.stream.set_durable(engine.stream.head)
        assert len(bucket.pending) <= 2
    engine.close()


def test_a_flush_that_is_stopped_half_way_has_an_unknown_outcome(time_: FakeTime) -> None:
    """There is room for the records of two buckets, and a reader that releases nothing."""
    engine = ReferenceEngine(EngineConfig(buckets=4, stream_bytes=1 << 20), time_.clock())
    engine.open_buckets(range(4), 1, 1, "n1")
    caller = Caller(engine)
    for number in range(50):
        caller.set(b"k%d" % number, b"value")
    reader = engine.stream.open_reader("stuck", holds=True)
    while caller.ask(Opcode.SET, 0, 0, b"k1", bytes(1000), budget_ms=1).status is not Status.BUSY:
        pass
    stream = engine.stats()["stream"]
    caller.set(b"k1", bytes(stream["bytes_max"] - stream["bytes_held"] - 2 * HEADER_BYTES - (HEADER_BYTES + 2)))
    with pytest.raises(RequestRefused) as refusal:
        engine.flush(0)
    assert refusal.value.status is Status.NOT_COMMITTED
    assert 0 < engine.stats()["items"]["items"] < 50
    with pytest.raises(RequestRefused) as refusal:
        engine.flush(0)
    assert refusal.value.status is Status.BUSY, "this time nothing was removed"
    reader.close()
    engine.close()


def test_room_that_another_took_meanwhile_is_not_taken_twice(time_: FakeTime, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between making room for an overwrite and the overwrite, the old value goes and another item takes its place."""
    limit = 4000
    engine = ReferenceEngine(EngineConfig(buckets=1, memory_bytes=limit, evict=False, stream_bytes=1 << 20), time_.clock())
    engine.open_buckets([0], 1, 1, "n1")
    caller = Caller(engine)
    caller.set(b"old", bytes(limit - item_bytes(3, 0, expires=False)))
    take_memory = engine._changes._take_memory

    def interfered(*args: Any) -> int:
        taken = take_memory(*args)
        monkeypatch.setattr(engine._changes, "_take_memory", take_memory)
        other = Caller(engine)
        other.delete(b"old")
        other.set(b"other", bytes(limit // 2))
        return taken

    monkeypatch.setattr(engine._changes, "_take_memory", interfered)
    assert caller.ask(Opcode.SET, 0, 0, b"old", bytes(limit - 500)).status is Status.NO_ROOM
    assert engine.stats()["memory"]["used_bytes"] <= limit
    assert caller.value(b"other") == bytes(limit // 2)
    engine.check()
    engine.close()


# --- positions


def test_positions_of_what_is_not_committed_yet() -> None:
    bucket = Bucket(0, Stripe())
    sequences = [make_sequence(1, 7), make_sequence(1, 8), make_sequence(2, 0), make_sequence(2, 1)]
    assert bucket.pend_locked(sequences[0] - 1, 50, 0) == NO_WAIT, "it waits for no point"
    assert not bucket.pending
    bucket.set_points_locked(0b101)
    for number, sequence in enumerate(sequences, 1):
        assert bucket.pend_locked(sequence, 100 * number, 0) == Wait(0b101, 100 * number)
    assert [bucket.wait_locked(sequence, 0).position for sequence in sequences] == [100, 200, 300, 400]
    lease = Wait(0b100, 0)
    assert bucket.wait_locked(make_sequence(1, 6), 0) == lease, "of the link; the disk has none"
    assert [bucket.wait_locked(sequence, 100).position for sequence in sequences] == [0, 200, 300, 400]
    assert [bucket.wait_locked(sequence, 200).position for sequence in sequences] == [300, 300, 300, 400], (
        "the OPEN is the oldest"
    )
    assert len(bucket.pending) == 2
    assert [bucket.wait_locked(sequence, 300) for sequence in sequences] == [lease, lease, lease, Wait(0b101, 400)]
    assert bucket.wait_locked(sequences[-1], 400) == lease
    bucket.set_points_locked(0b1)
    assert bucket.wait_locked(sequences[-1], 400) == NO_WAIT


def test_a_bucket_accounts_for_what_it_holds() -> None:
    bucket = Bucket(0, Stripe())
    used = bucket.put_locked(b"key", Item(b"value", 0, 0, 1))
    assert used == item_bytes(3, 5, expires=False)
    used += bucket.put_locked(b"key", Item(b"", 0, 99, 2))
    assert used == item_bytes(3, 0, expires=True)
    used += bucket.put_locked(b"other", Item(b"value", 0, 0, 3))
    assert bucket.clear_locked() == used
    assert not bucket.stripe.expiries
    assert not bucket.stripe.recency


def test_memory_is_taken_up_to_the_limit_and_forced_beyond() -> None:
    account = MemoryAccount(100)
    assert account.try_take(100)
    assert not account.try_take(1)
    account.force(50)
    assert account.used == 150
    account.force(-60)
    assert account.try_take(10)
    assert not account.try_take(1)
