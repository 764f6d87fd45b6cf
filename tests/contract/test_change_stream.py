"""The change stream: what is in it and in which order, what readers are promised, what happens when it is full or fails."""

from __future__ import annotations

import gc
import random
import time
import zlib

import pytest

from rcache.engine.bodies import make_engine
from rcache.engine.change_stream import Batch, StreamEnd
from rcache.engine.contract import Engine, RequestRefused
from rcache.records.record import HEADER_BYTES, Cause, Kind, decode, decode_opening, make_sequence
from rcache_client.wire.opcodes import Opcode, Status
from tests.contract.conftest import EngineFactory
from tests.contract.harness import (
    EVERYTHING,
    PATIENCE_S,
    Caller,
    FakeTime,
    Task,
    assert_whole_history,
    drain,
    run_all,
    state_of,
    wait_until,
)


def in_ns(seconds: float) -> int:
    return time.monotonic_ns() + int(seconds * 1e9)


# --- what is in it


def test_open_comes_first_and_names_what_it_continues(engine_factory: EngineFactory) -> None:
    engine = engine_factory(opened=0, buckets=4)
    reader = engine.stream.open_reader("test", holds=True)
    engine.open_buckets(range(4), 3, 17, "n1")
    Caller(engine).set(b"key", b"value")
    engine.open_buckets(range(4), 5, 18, "n1")
    Caller(engine).set(b"key", b"value")
    records = drain(reader)
    assert_whole_history(records)
    opens = [record for record in records if record.kind == Kind.OPEN]
    assert [record.sequence for record in opens] == [make_sequence(3, 0)] * 4 + [make_sequence(5, 0)] * 4
    assert {decode_opening(record.value)[1:] for record in opens[:4]} == {(17, "n1")}
    assert {decode_opening(record.value)[1:] for record in opens[4:]} == {(18, "n1")}
    assert engine.epoch == 5
    reader.close()


@pytest.mark.parametrize(
    ("opcode", "values", "kind", "cause"),
    [
        (Opcode.SET, (1, 0, b"key", b"9"), Kind.SET, Cause.SET),
        (Opcode.REPLACE, (1, 0, b"key", b"9"), Kind.SET, Cause.SET),
        (Opcode.TOUCH, (500, b"key"), Kind.SET, Cause.TOUCHED),
        (Opcode.GET_AND_TOUCH, (500, b"key"), Kind.SET, Cause.TOUCHED),
        (Opcode.INCREMENT, (1, 0, 0, 0, b"key"), Kind.SET, Cause.COUNTED),
        (Opcode.DECREMENT, (1, 0, 0, 0, b"key"), Kind.SET, Cause.COUNTED),
        (Opcode.APPEND, (b"key", b"0"), Kind.SET, Cause.EXTENDED),
        (Opcode.PREPEND, (b"key", b"1"), Kind.SET, Cause.EXTENDED),
        (Opcode.DELETE, (b"key",), Kind.REMOVE, Cause.DELETED),
    ],
)
def test_a_change_leaves_one_record_with_its_result(
    engine: Engine, caller: Caller, opcode: Opcode, values: tuple[object, ...], kind: Kind, cause: Cause
) -> None:
    version = caller.set(b"key", b"5", flags=4)
    reader = engine.stream.open_reader("test", holds=True)
    assert caller.ask(opcode, *values).status is Status.OK
    (record,) = drain(reader)
    assert (record.kind, record.cause, record.key, record.sequence) == (kind, cause, b"key", version + 1)
    if kind == Kind.SET:
        flags, version, value = caller.ask(Opcode.GET, b"key").values
        left_ms = caller.ask(Opcode.INSPECT, b"key").values[2]
        assert (record.flags, record.sequence, record.value) == (flags, version, value)
        assert record.expires_at_ms == (record.time_ms + left_ms if left_ms else 0)
    reader.close()


@pytest.mark.parametrize(
    ("opcode", "values"),
    [
        (Opcode.GET, (b"key",)),
        (Opcode.GET_WITH_TTL, (b"key",)),
        (Opcode.ADD, (0, 0, b"key", b"9")),
        (Opcode.REPLACE, (0, 0, b"none", b"9")),
        (Opcode.DELETE, (b"none",)),
        (Opcode.INCREMENT, (1, 0, 0, 0, b"key")),
        (Opcode.CAS_VERSION, (1, 0, 0, b"key", b"9")),
        (Opcode.CAS_HASH, (bytes(16), 0, 0, b"key", b"9")),
    ],
)
def test_what_changes_nothing_leaves_no_record(
    engine: Engine, caller: Caller, opcode: Opcode, values: tuple[object, ...]
) -> None:
    caller.set(b"key", b"text")
    head = engine.stream.head
    caller.ask(opcode, *values)
    assert engine.stream.head == head


def test_a_flush_is_one_record_for_each_bucket_that_held_anything(engine: Engine, caller: Caller) -> None:
    for number in range(100):
        caller.set(b"k%d" % number, b"value")
    reader = engine.stream.open_reader("test", holds=True)
    assert engine.flush(in_ns(5)) == 100
    assert engine.flush(in_ns(5)) == 0
    records = drain(reader)
    assert {(record.kind, record.cause) for record in records} == {(Kind.FLUSH, Cause.FLUSHED)}
    assert len({record.bucket for record in records}) == len(records) == 8
    assert caller.value(b"k1") is None
    assert engine.stats()["items"]["flushed"] == 100
    reader.close()


def test_histories_are_whole_whoever_writes(engine_factory: EngineFactory, fake_time: FakeTime) -> None:
    engine = engine_factory(opened=0)
    reader = engine.stream.open_reader("test", holds=True)
    engine.open_buckets(range(8), 1, 1, "n1")

    def write(seed: int) -> None:
        chosen, caller = random.Random(seed), Caller(engine)
        for _ in range(400):
            fake_time.advance(chosen.randrange(3))
            key = b"k%d" % chosen.randrange(30)
            opcode = chosen.choice([Opcode.SET, Opcode.SET, Opcode.DELETE, Opcode.TOUCH])
            values = {Opcode.SET: (0, chosen.choice([0, 5]), key, b"v"), Opcode.DELETE: (key,), Opcode.TOUCH: (4, key)}[opcode]
            assert caller.ask(opcode, *values).status in (Status.OK, Status.NOT_FOUND)

    run_all([lambda seed=seed: write(seed) for seed in range(4)])
    records = drain(reader)
    assert_whole_history(records)
    assert len(records) > 600
    held: dict[bytes, tuple[bytes, int, int, int]] = {}
    for record in records:
        if record.kind == Kind.SET:
            held[record.key] = (record.value, record.flags, record.expires_at_ms, record.sequence)
        elif record.kind == Kind.REMOVE:
            del held[record.key]
    assert held == {key: item for bucket in state_of(engine).values() for key, item in bucket.items()}
    reader.close()


# --- readers


def test_positions_count_record_bytes(engine: Engine, caller: Caller) -> None:
    reader = engine.stream.open_reader("test", holds=True)
    start = engine.stream.head
    caller.set(b"key", b"value")
    batch = reader.take(EVERYTHING, 0.0)
    assert batch.position == engine.stream.head == start + HEADER_BYTES + 3 + 5
    assert sum(map(len, batch.records)) == batch.position - start
    assert reader.take(EVERYTHING, 0.0) == Batch(b"", 0, batch.position, lost=False)
    reader.close()


def test_a_reader_begins_with_what_comes_next(engine: Engine, caller: Caller) -> None:
    caller.set(b"before", b"value")
    reader = engine.stream.open_reader("test", holds=False)
    caller.set(b"after", b"value")
    assert [record.key for record in drain(reader)] == [b"after"]
    reader.close()


def test_a_batch_is_cut_at_whole_records(engine: Engine, caller: Caller) -> None:
    reader = engine.stream.open_reader("test", holds=True)
    for number in range(5):
        caller.set(b"k%d" % number, bytes(100))
    one = HEADER_BYTES + 2 + 100
    assert len(reader.take(2 * one, 0.0).records) == 2
    assert len(reader.take(2 * one + one - 1, 0.0).records) == 2
    assert len(reader.take(1, 0.0).records) == 1, "one at least"
    reader.close()


def test_a_view_is_what_a_copy_would_be(engine_factory: EngineFactory) -> None:
    """A reader that holds may look at the stream itself, however often that goes round; until it releases, nothing changes."""
    engine = engine_factory(stream_bytes=1 << 19)
    copied, viewed = (engine.stream.open_reader(name, holds=True) for name in ("copied", "viewed"))
    caller, chosen = Caller(engine), random.Random(20261125)
    for _ in range(400):
        for _ in range(chosen.randrange(6)):
            caller.set(b"k%d" % chosen.randrange(9), chosen.randbytes(chosen.choice([3, 500, 9000])))
        copy, view = copied.take(20_000, 0.0), viewed.take(20_000, 0.0, view=True)
        assert (copy.count, copy.position) == (view.count, view.position)
        assert copy.body == view.body
        assert copy.records == view.records
        copied.release(copy.position)
        viewed.release(view.position)
    assert engine.stream.head > 2 * engine.config.stream_bytes
    copied.close()
    viewed.close()


def test_a_view_of_some_buckets_or_of_a_reader_that_does_not_hold_is_a_copy(engine: Engine, caller: Caller) -> None:
    loose, choosy = engine.stream.open_reader("loose", holds=False), engine.stream.open_reader("choosy", holds=True)
    choosy.choose([1, 3])
    keys = [b"k%d" % number for number in range(40)]
    for key in keys:
        caller.set(key, b"value")
    wanted = [key for key in keys if zlib.crc32(key) % 8 in (1, 3)]
    assert [decode(record).key for record in choosy.take(EVERYTHING, 0.0, view=True).records] == wanted
    assert type(loose.take(EVERYTHING, 0.0, view=True).body) is bytes
    loose.close()
    choosy.close()


def test_a_view_outlives_its_reader_and_its_engine(engine_factory: EngineFactory) -> None:
    made = engine_factory()
    engine = make_engine(made.name, made.config, made.clock)
    engine.open_buckets(range(made.config.buckets), 1, 1, "n1")
    reader = engine.stream.open_reader("view", holds=True)
    Caller(engine).set(b"key", b"value")
    batch = reader.take(EVERYTHING, 0.0, view=True)
    reader.close()
    engine.close()
    del engine, reader
    gc.collect()
    assert len(batch.records) == 1


def test_a_release_never_takes_back_another(engine_factory: EngineFactory) -> None:
    engine = engine_factory(stream_bytes=1 << 19)
    reader, caller = engine.stream.open_reader("log", holds=True), Caller(engine)
    while caller.ask(Opcode.SET, 0, 0, b"key", bytes(60_000), budget_ms=10).status is Status.OK:
        pass
    reader.release(reader.take(EVERYTHING, 0.0).position)
    reader.release(1)
    assert caller.ask(Opcode.SET, 0, 0, b"key", bytes(60_000), budget_ms=10).status is Status.OK
    reader.close()
    reader.release(engine.stream.head)


def test_who_waits_for_room_gets_what_a_reader_left_behind(engine_factory: EngineFactory) -> None:
    """The last reader goes while the stream is full of what it held: writers go on; a later reader begins with the newest."""
    engine = engine_factory(stream_bytes=1 << 19)
    caller = Caller(engine)
    for _ in range(3):
        reader = engine.stream.open_reader("log", holds=True)
        while caller.ask(Opcode.SET, 0, 0, b"key", bytes(60_000), budget_ms=10).status is Status.OK:
            pass
        writing = Task(lambda: Caller(engine).ask(Opcode.SET, 0, 0, b"key", bytes(60_000), budget_ms=60_000))
        reader.close()
        assert writing.result().status is Status.OK
        for _ in range(20):
            caller.set(b"key", bytes(60_000))
    later = engine.stream.open_reader("later", holds=True)
    caller.set(b"key", b"newest")
    assert [decode(record).value for record in later.take(EVERYTHING, 0.0).records] == [b"newest"]
    later.close()


def test_a_reader_that_waits_is_woken_by_a_change(engine: Engine, caller: Caller) -> None:
    reader = engine.stream.open_reader("test", holds=True)
    waiting = Task(lambda: reader.take(EVERYTHING, PATIENCE_S * 2))
    caller.set(b"key", b"value")
    assert len(waiting.result().records) == 1
    reader.close()


def test_a_reader_that_waits_can_be_woken_without_a_change(engine: Engine) -> None:
    reader = engine.stream.open_reader("test", holds=True)
    waiting = Task(lambda: reader.take(EVERYTHING, PATIENCE_S * 2))
    engine.stream.wake_readers()
    assert waiting.result().count == 0
    reader.close()


def test_who_waits_for_the_disk_cuts_the_linger_short(engine_factory: EngineFactory) -> None:
    engine = engine_factory(commit=True)
    reader = engine.stream.open_reader("test", holds=True)
    taking = Task(lambda: reader.take(EVERYTHING, PATIENCE_S * 2, linger_s=PATIENCE_S * 2))
    writing = Task(lambda: Caller(engine).set(b"key", b"value", budget_ms=60_000))
    engine.stream.set_durable(taking.result().position)
    writing.result()
    reader.close()


def test_a_reader_that_does_not_hold_is_told_what_it_lost(engine_factory: EngineFactory) -> None:
    engine = engine_factory(stream_bytes=64 << 10, value_bytes_max=4 << 10)
    caller = Caller(engine)
    reader = engine.stream.open_reader("slow", holds=False)
    for number in range(100):
        caller.set(b"k%02d" % number, bytes(4000))
    batch = reader.take(EVERYTHING, 0.0)
    assert batch.lost
    keys = [decode(record).key for record in batch.records]
    assert keys == [b"k%02d" % number for number in range(100 - len(keys), 100)]
    assert 10 <= len(keys) <= 16
    caller.set(b"next", b"value")
    batch = reader.take(EVERYTHING, 0.0)
    assert (batch.lost, [decode(record).key for record in batch.records]) == (False, [b"next"])
    assert batch.position == engine.stream.head
    reader.close()


# --- full


def fill(caller: Caller, size: int = 4000) -> int:
    """Write until the stream is full. Returns how many writes it took."""
    for number in range(1000):
        if caller.ask(Opcode.SET, 0, 0, b"fill %d" % number, bytes(size), budget_ms=20).status is Status.BUSY:
            return number
    raise AssertionError("the stream never filled")


def test_a_full_stream_refuses_at_the_deadline_and_nothing_has_changed(
    engine_factory: EngineFactory, fake_time: FakeTime
) -> None:
    engine = engine_factory(stream_bytes=64 << 10, value_bytes_max=8 << 10)
    caller = Caller(engine)
    caller.set(b"key", b"old", ttl_ms=1000)
    caller.set(b"n", b"1")
    reader = engine.stream.open_reader("stuck", holds=True)
    fill(caller)
    fill(caller, 0)  # to the last bytes
    before, head, used = state_of(engine), engine.stream.head, engine.stats()["memory"]["used_bytes"]
    began = time.monotonic()
    assert caller.ask(Opcode.SET, 0, 0, b"key", b"new", budget_ms=100).status is Status.BUSY
    assert 0.1 <= time.monotonic() - began < PATIENCE_S
    for opcode, values in (
        (Opcode.INCREMENT, (1, 0, 0, 0, b"n")),
        (Opcode.DELETE, (b"key",)),
        (Opcode.TOUCH, (5, b"key")),
        (Opcode.APPEND, (b"key", b"more")),
    ):
        assert caller.ask(opcode, *values, budget_ms=20).status is Status.BUSY
    assert [entry[0] for entry in caller.ask(Opcode.SET_MANY, (0, 0, b"key", b"x"), budget_ms=20).values] == [Status.BUSY]
    with pytest.raises(RequestRefused) as refusal:
        engine.flush(in_ns(0.02))
    assert refusal.value.status is Status.BUSY
    assert caller.value(b"key") == b"old", "reads are answered"
    fake_time.advance(1000)
    assert caller.ask(Opcode.GET, b"key", budget_ms=20).status is Status.BUSY, "its removal has no room"
    assert (state_of(engine), engine.stream.head, engine.stats()["memory"]["used_bytes"]) == (before, head, used)
    reader.close()
    assert caller.value(b"key") is None


def test_released_room_lets_a_waiting_writer_go_on(engine_factory: EngineFactory) -> None:
    engine = engine_factory(stream_bytes=64 << 10, value_bytes_max=8 << 10)
    caller = Caller(engine)
    reader = engine.stream.open_reader("slow", holds=True)
    fill(caller)
    waits = engine.stats()["stream"]["waits_for_room"]
    writing = Task(lambda: Caller(engine).set(b"key", bytes(4000), budget_ms=60_000))
    wait_until(lambda: engine.stats()["stream"]["waits_for_room"] > waits, "the writer")
    batch = reader.take(5000, 0.0)
    reader.release(batch.position)
    writing.result()
    reader.close()


def test_a_small_writer_does_not_starve_behind_a_large_one(engine_factory: EngineFactory) -> None:
    """Room that is too little for the first in line is offered to the next."""
    engine = engine_factory(stream_bytes=64 << 10, value_bytes_max=15 << 10)
    caller = Caller(engine)
    version = caller.set(b"gone", bytes(9000))
    reader = engine.stream.open_reader("stuck", holds=True)
    fill(caller)
    fill(caller, 0)
    for key in (b"large", b"small"):
        assert caller.ask(Opcode.SET, 0, 0, key, b"", budget_ms=10).status is Status.BUSY

    def waits() -> int:
        count: int = engine.stats()["stream"]["waits_for_room"]
        return count

    at_first = waits()
    large = Task(lambda: Caller(engine).ask(Opcode.SET, 0, 0, b"large", bytes(15 << 10), budget_ms=1000))
    wait_until(lambda: waits() > at_first, "the large writer")
    at_second = waits()
    small = Task(lambda: Caller(engine).set(b"small", b"", budget_ms=60_000))
    wait_until(lambda: waits() > at_second, "the small writer")
    batch = reader.take(1, 0.0)
    reader.release(batch.position)
    small.result()
    assert not large.is_done
    assert large.result().status is Status.BUSY
    assert version > 0
    reader.close()


# --- failed


def test_a_failed_stream_stops_every_later_write_and_no_read(engine: Engine, caller: Caller) -> None:
    caller.set(b"key", b"value")
    engine.stream.fail("the disk is full")
    before, head = state_of(engine), engine.stream.head
    for opcode, values in (
        (Opcode.SET, (0, 0, b"key", b"new")),
        (Opcode.DELETE, (b"key",)),
        (Opcode.INCREMENT, (1, 1, 0, 0, b"n")),
    ):
        status, (reason,) = caller.ask(opcode, *values)
        assert status is Status.STOPPING
        assert "the disk is full" in reason
    with pytest.raises(RequestRefused) as refusal:
        engine.flush(in_ns(5))
    assert refusal.value.status is Status.STOPPING
    with pytest.raises(RequestRefused) as refusal:
        engine.open_buckets([0], 7, 1, "n1")
    assert refusal.value.status is Status.STOPPING
    assert caller.value(b"key") == b"value"
    assert (state_of(engine), engine.stream.head) == (before, head)


def test_failing_wakes_who_waits_for_room(engine_factory: EngineFactory) -> None:
    engine = engine_factory(stream_bytes=64 << 10, value_bytes_max=8 << 10)
    reader = engine.stream.open_reader("stuck", holds=True)
    fill(Caller(engine))
    waits = engine.stats()["stream"]["waits_for_room"]
    writing = Task(lambda: Caller(engine).ask(Opcode.SET, 0, 0, b"key", bytes(4000), budget_ms=60_000))
    wait_until(lambda: engine.stats()["stream"]["waits_for_room"] > waits, "the writer")
    engine.stream.fail("input/output error")
    assert writing.result().status is Status.STOPPING
    reader.close()


def test_failing_wakes_readers_and_who_waits_for_the_disk(engine: Engine, caller: Caller) -> None:
    reader = engine.stream.open_reader("test", holds=True)
    reading = Task(lambda: reader.take(EVERYTHING, PATIENCE_S * 2))
    engine.stream.fail("input/output error")
    reading.result()
    assert engine.stream.wait_durable(engine.stream.head + 1, in_ns(PATIENCE_S)) is StreamEnd.FAILED
    assert engine.stream.wait_durable(engine.stream.durable, in_ns(0)) is StreamEnd.REACHED
    reader.close()


def test_waiting_for_the_disk_ends_at_its_deadline(engine: Engine, caller: Caller) -> None:
    stream = engine.stream
    caller.set(b"key", b"value")
    assert stream.wait_durable(stream.head, in_ns(0.02)) is StreamEnd.TIMED_OUT
    waiting = Task(lambda: stream.wait_durable(stream.head, in_ns(PATIENCE_S)))
    stream.set_durable(stream.head)
    assert waiting.result() is StreamEnd.REACHED
    stream.set_durable(0)
    assert stream.durable == stream.head, "what is on disk stays there"


def test_a_reader_that_does_not_hold_keeps_a_writer_waiting_only_while_it_copies(engine_factory: EngineFactory) -> None:
    """A writer that comes upon it in the middle of that is told when it is done, and does not wait for its own deadline."""
    engine = engine_factory(stream_bytes=64 << 10, buckets=1, stripes=1)
    reader = engine.stream.open_reader("feed", holds=False)
    writing = True

    def read() -> None:
        while writing:
            reader.take(EVERYTHING, 0.01)

    reading = Task(read)
    caller, value = Caller(engine), bytes(1000)
    try:
        writer = Task(lambda: [caller.set(b"key", value, budget_ms=600_000) for _ in range(20_000)])
        writer.result()
    finally:
        writing = False
    reading.result()
    reader.close()
