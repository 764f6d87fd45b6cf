"""Buckets: their states, the records that go in and out, and copies made while writers run."""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable

import pytest

from rcache.cluster.bucket_state import BucketState, may_follow
from rcache.engine.contract import ChainError, Engine
from rcache.records.record import (
    BORN_EMPTY,
    BadRecord,
    Cause,
    ImportEnd,
    Kind,
    Record,
    decode,
    encode,
    encode_import_end,
    make_sequence,
)
from rcache_client.wire.opcodes import Opcode, Status
from tests.contract.conftest import EngineFactory
from tests.contract.harness import EVERYTHING, Caller, FakeTime, Task, assert_whole_history, drain, run_all, stat, state_of

FIRST = make_sequence(1, 0)


def mark(kind: Kind, sequence: int, value: bytes = b"", bucket: int = 0) -> bytes:
    return encode(Record(kind, Cause.NONE, bucket, 0, sequence, 0, 0, b"", value))


def begin(sequence: int, bucket: int = 0) -> bytes:
    return mark(Kind.IMPORT_BEGIN, sequence, bucket=bucket)


def end(sequence: int, rows: int, began: int | None = None, bucket: int = 0) -> bytes:
    return mark(Kind.IMPORT_END, sequence, encode_import_end(ImportEnd(sequence if began is None else began, rows)), bucket)


def keyed(kind: Kind, sequence: int, key: bytes = b"key", value: bytes = b"value") -> bytes:
    return encode(Record(kind, Cause.NONE, 0, 0, sequence, 0, 0, key, value))


@pytest.fixture
def backup(engine_factory: EngineFactory) -> Engine:
    """An engine of one bucket, of which it has nothing."""
    return engine_factory(opened=0, buckets=1)


# --- states


def test_a_bucket_begins_absent_and_refuses_everything(backup: Engine) -> None:
    assert backup.state(0) is BucketState.ABSENT
    caller = Caller(backup)
    for opcode, values in (
        (Opcode.GET, (b"key",)),
        (Opcode.INSPECT, (b"key",)),
        (Opcode.GET_WITH_TTL, (b"key",)),
        (Opcode.SET, (0, 0, b"key", b"value")),
        (Opcode.ADD, (0, 0, b"key", b"value")),
        (Opcode.DELETE, (b"key",)),
        (Opcode.TOUCH, (1, b"key")),
        (Opcode.INCREMENT, (1, 1, 0, 0, b"key")),
        (Opcode.CAS_VERSION, (0, 0, 0, b"key", b"value")),
        (Opcode.CAS_HASH, (bytes(16), 0, 0, b"key", b"value")),
    ):
        assert caller.ask(opcode, *values).status is Status.NOT_PRIMARY
    for opcode, entry in (
        (Opcode.GET_MANY, (b"key",)),
        (Opcode.SET_MANY, (0, 0, b"key", b"value")),
        (Opcode.DELETE_MANY, (b"key",)),
    ):
        status, entries = caller.ask(opcode, entry)
        assert (status, entries[0][0]) == (Status.OK, Status.NOT_PRIMARY)
    assert backup.flush(1 << 62) == 0, "there is nothing here to flush"
    assert backup.stream.head == 0


def test_a_frozen_bucket_answers_nothing_and_keeps_everything(engine: Engine, caller: Caller) -> None:
    caller.set(b"key", b"value")
    before = state_of(engine)
    for bucket in range(8):
        engine.set_state(bucket, BucketState.FROZEN)
    assert caller.ask(Opcode.GET, b"key").status is Status.NOT_PRIMARY
    assert caller.ask(Opcode.SET, 0, 0, b"key", b"new").status is Status.NOT_PRIMARY
    assert state_of(engine) == before
    engine.open_buckets(range(8), 2, 1, "n1")
    assert caller.value(b"key") == b"value"


def test_an_absent_bucket_holds_nothing_and_begins_anew(engine: Engine, caller: Caller) -> None:
    caller.set(b"key", b"value")
    reader = engine.stream.open_reader("test", holds=True)
    for bucket in range(8):
        engine.set_state(bucket, BucketState.FROZEN)
        engine.set_state(bucket, BucketState.ABSENT)
    assert stat(engine, "memory", "used_bytes") == 0
    assert stat(engine, "items", "items") == 0
    engine.open_buckets(range(8), 2, 1, "n1")
    assert caller.value(b"key") is None
    assert_whole_history(drain(reader))  # each OPEN continues from nothing: what was there is not there any more
    reader.close()


@pytest.mark.parametrize("then", list(BucketState))
def test_only_what_may_follow_follows(engine_factory: EngineFactory, then: BucketState) -> None:
    for now in (BucketState.ABSENT, BucketState.IMPORTING, BucketState.BACKUP, BucketState.PRIMARY, BucketState.FROZEN):
        engine = engine_factory(opened=0, buckets=1)
        if now in (BucketState.IMPORTING, BucketState.BACKUP):
            engine.apply(begin(FIRST) + (end(FIRST, 0) if now is BucketState.BACKUP else b""))
        elif now is not BucketState.ABSENT:
            engine.open_buckets([0], 1, 1, "n1")
            if now is BucketState.FROZEN:
                engine.set_state(0, BucketState.FROZEN)
        assert engine.state(0) is now
        given_up = now is BucketState.FROZEN and then is BucketState.BACKUP
        if given_up or (then in (BucketState.FROZEN, BucketState.ABSENT) and may_follow(now, then)):
            engine.set_state(0, then)
            assert engine.state(0) is then
        else:
            with pytest.raises(ValueError, match="cannot become"):
                engine.set_state(0, then)
            assert engine.state(0) is now
        if not may_follow(engine.state(0), BucketState.PRIMARY):
            with pytest.raises(ValueError, match="cannot become"):
                engine.open_buckets([0], 9, 1, "n1")


@pytest.mark.parametrize("epoch", [1, 2])
def test_a_bucket_is_opened_in_a_later_epoch_only(engine_factory: EngineFactory, epoch: int) -> None:
    engine = engine_factory(opened=2, buckets=1)
    version = Caller(engine).set(b"key", b"value")
    head = engine.stream.head
    with pytest.raises(ValueError, match="cannot become"):
        engine.open_buckets([0], epoch, 1, "n1")
    assert engine.stream.head == head
    assert Caller(engine).set(b"key", b"value") == version + 1


def test_opening_anew_while_writers_run_loses_nothing(engine_factory: EngineFactory) -> None:
    engine = engine_factory(opened=0, buckets=2)
    reader = engine.stream.open_reader("test", holds=True)
    engine.open_buckets(range(2), 1, 1, "n1")
    done: list[int] = []

    def write(seed: int) -> None:
        caller = Caller(engine)
        number = 0
        while len(done) < 1 or number < 50:
            caller.set(b"%d %d" % (seed, number % 20), b"value")
            number += 1

    def reopen() -> None:
        for epoch in range(2, 60):
            engine.open_buckets(range(2), epoch, 1, "n1")
        done.append(1)

    run_all([*[lambda seed=seed: write(seed) for seed in range(3)], reopen])
    assert_whole_history(drain(reader))
    reader.close()


def test_no_bucket_is_exhausted_before_its_counter_is(engine: Engine, caller: Caller) -> None:
    caller.set(b"key", b"value")
    assert engine.exhausted_buckets() == []


# --- one engine's stream applied to another


def random_changes(engine: Engine, seed: int, count: int, fake_time: FakeTime) -> None:
    chosen, caller = random.Random(seed), Caller(engine)
    for _ in range(count):
        fake_time.advance(chosen.randrange(4))
        key, value = b"k%d" % chosen.randrange(40), bytes([chosen.randrange(256)]) * chosen.randrange(50)
        choice = chosen.randrange(20)
        if choice == 0:
            engine.flush(1 << 62)
        elif choice < 12:
            caller.ask(Opcode.SET, chosen.randrange(5), chosen.choice([0, 0, 30]), key, value)
        elif choice < 14:
            caller.ask(Opcode.TOUCH, chosen.choice([0, 50]), key)
        elif choice < 16:
            caller.ask(Opcode.INCREMENT, 3, 1, 1, 0, b"n%d" % chosen.randrange(4))
        else:
            caller.delete(key)


@pytest.mark.parametrize("seed", range(6))
def test_two_engines_looped_together_hold_the_same(engine_factory: EngineFactory, fake_time: FakeTime, seed: int) -> None:
    source, copy = engine_factory(opened=0), engine_factory(opened=0)
    reader = source.stream.open_reader("link", holds=True)
    for bucket in range(8):  # a bucket not yet born is imported as empty
        copy.apply(b"".join(source.copy_bucket(bucket)))
    for epoch in (1, 2):
        source.open_buckets(range(8), epoch, 1, "n1")
        random_changes(source, seed, 300, fake_time)
        for record in reader.take(EVERYTHING, 0.0).records:
            copy.apply(record)
    assert state_of(copy) == state_of(source)
    assert {copy.state(bucket) for bucket in range(8)} == {BucketState.BACKUP}
    copy.check()
    promoted = Caller(copy)
    copy.open_buckets(range(8), 3, 2, "n2")
    assert promoted.set(b"k1", b"new") >= make_sequence(3, 1)
    reader.close()


@pytest.mark.parametrize("seed", range(4))
def test_a_copy_made_while_writers_run_and_the_changes_since_are_the_bucket(
    engine_factory: EngineFactory, fake_time: FakeTime, seed: int
) -> None:
    """As a link fills a backup: the ring up to the copy's place, then the rows, then the ring again."""
    source, copy = engine_factory(buckets=1), engine_factory(opened=0, buckets=1)
    chosen = random.Random(seed)
    random_changes(source, seed, 50, fake_time)
    reader = source.stream.open_reader("link", holds=True)
    rows = [b""]
    writing = Task(lambda: random_changes(source, seed + 100, 400, fake_time))
    for _ in range(chosen.randrange(1, 20)):
        rows = list(source.copy_bucket(0))
    writing.result()
    records = [decode(row) for row in rows]
    assert [records[0].kind, records[-1].kind] == [Kind.IMPORT_BEGIN, Kind.IMPORT_END]
    assert all(records[0].sequence >= row.sequence for row in records[1:-1]), "as of one sequence"
    copy.apply(b"".join(rows))
    later = [record for record in reader.take(EVERYTHING, 0.0).records if decode(record).sequence > records[-1].sequence]
    copy.apply(b"".join(later))
    assert state_of(copy) == state_of(source)
    reader.close()


def test_a_row_newer_than_the_beginning_is_not_undone_by_older_changes(backup: Engine) -> None:
    backup.apply(begin(FIRST))
    backup.apply(keyed(Kind.ROW, FIRST + 3, b"key", b"new"))
    backup.apply(keyed(Kind.SET, FIRST + 1, b"key", b"old"))
    backup.apply(encode(Record(Kind.REMOVE, Cause.DELETED, 0, 0, FIRST + 2, 0, 0, b"key", b"")))
    assert state_of(backup)[0] == {b"key": (b"new", 0, 0, FIRST + 3)}
    backup.apply(keyed(Kind.SET, FIRST + 3, b"key", b"new"))
    backup.apply(end(FIRST + 3, 1, FIRST))
    assert backup.state(0) is BucketState.BACKUP


def test_a_copy_of_nothing_is_a_copy(backup: Engine, engine_factory: EngineFactory) -> None:
    source = engine_factory(buckets=1)
    records = [decode(record) for record in source.copy_bucket(0)]
    assert [(record.kind, record.sequence) for record in records] == [(Kind.IMPORT_BEGIN, FIRST), (Kind.IMPORT_END, FIRST)]
    backup.apply(b"".join(source.copy_bucket(0)))
    assert backup.state(0) is BucketState.BACKUP


# --- what is refused


def whole() -> bytes:
    return begin(FIRST) + end(FIRST, 0)


@pytest.mark.parametrize(
    ("before", "record"),
    [
        (b"", keyed(Kind.SET, FIRST + 1)),
        (b"", keyed(Kind.ROW, FIRST)),
        (b"", end(FIRST, 0)),
        (b"", mark(Kind.OPEN, FIRST, b"\0" * 16 + b"\0\2n1")),
        (begin(FIRST), end(FIRST, 1)),
        (begin(FIRST), end(FIRST, 0, FIRST + 1)),
        (begin(FIRST), end(FIRST + 5, 0, FIRST)),
        (begin(FIRST) + keyed(Kind.ROW, FIRST), end(FIRST, 0)),
        (whole(), keyed(Kind.ROW, FIRST)),
        (whole(), end(FIRST, 0)),
        (whole(), keyed(Kind.SET, FIRST)),
        (whole(), keyed(Kind.SET, FIRST + 2)),
        (whole(), keyed(Kind.SET, make_sequence(2, 1))),
        (whole(), keyed(Kind.REMOVE, FIRST + 2, value=b"")),
        (whole(), mark(Kind.FLUSH, FIRST + 2)),
        (whole(), mark(Kind.OPEN, make_sequence(2, 0), FIRST.to_bytes(8, "big")[:-1] + b"\1" + bytes(8) + b"\0\2n1")),
    ],
)
def test_what_is_not_in_the_chain_is_refused_and_changes_nothing(backup: Engine, before: bytes, record: bytes) -> None:
    backup.apply(before)
    state, held = backup.state(0), state_of(backup)
    with pytest.raises(ChainError):
        backup.apply(record)
    assert (backup.state(0), state_of(backup)) == (state, held)


def test_an_open_that_names_the_newest_record_is_followed(backup: Engine) -> None:
    backup.apply(whole() + keyed(Kind.SET, FIRST + 1))
    backup.apply(mark(Kind.OPEN, make_sequence(4, 0), (FIRST + 1).to_bytes(8, "big") + bytes(8) + b"\0\2n1"))
    backup.apply(keyed(Kind.SET, make_sequence(4, 1), b"key", b"new"))
    assert state_of(backup)[0][b"key"] == (b"new", 0, 0, make_sequence(4, 1))


def test_a_primary_and_a_frozen_bucket_take_no_records(engine_factory: EngineFactory) -> None:
    engine = engine_factory(buckets=1)
    for apply in (whole(), mark(Kind.DROP, 0), keyed(Kind.SET, FIRST + 1)):
        with pytest.raises(ChainError):
            engine.apply(apply)
    engine.set_state(0, BucketState.FROZEN)
    with pytest.raises(ChainError):
        engine.apply(whole())


@pytest.mark.parametrize(
    "body",
    [
        b"short",
        begin(FIRST, bucket=1),
        begin(FIRST)[:-1],
        begin(FIRST) + b"\0",
        begin(FIRST) + mark(Kind.IMPORT_END, FIRST, b"not an end"),
        whole() + mark(Kind.OPEN, make_sequence(2, 0), b"not an opening"),
    ],
)
def test_bytes_that_are_no_records_are_refused(backup: Engine, body: bytes) -> None:
    with pytest.raises(BadRecord):
        backup.apply(body)
    backup.check()


def test_a_key_of_another_bucket_is_refused(engine_factory: EngineFactory) -> None:
    backup = engine_factory(opened=0, buckets=2)
    foreign = next(key for key in (b"a", b"b", b"c", b"d") if zlib.crc32(key) & 1)
    backup.apply(begin(FIRST))
    with pytest.raises(BadRecord):
        backup.apply(keyed(Kind.ROW, FIRST, foreign))


def test_a_drop_leaves_nothing(backup: Engine) -> None:
    backup.apply(begin(FIRST) + keyed(Kind.ROW, FIRST) + end(FIRST, 1) + mark(Kind.DROP, FIRST))
    assert backup.state(0) is BucketState.ABSENT
    assert state_of(backup) == {0: {}}
    assert stat(backup, "memory", "used_bytes") == 0


def test_an_import_begins_from_empty(backup: Engine) -> None:
    backup.apply(begin(FIRST) + keyed(Kind.ROW, FIRST))
    backup.apply(begin(FIRST + 7) + keyed(Kind.ROW, FIRST + 7, b"other") + end(FIRST + 7, 1))
    assert list(state_of(backup)[0]) == [b"other"]


def test_a_bucket_that_came_back_waits_for_its_new_history_alone(engine_factory: EngineFactory) -> None:
    """With commit: what was pending of a bucket before it left says nothing about it after it came back."""
    engine = engine_factory(commit=True, buckets=1)
    caller = Caller(engine)
    for _ in range(3):
        assert caller.ask(Opcode.SET, 0, 0, b"key", b"value", budget_ms=1).status is Status.NOT_COMMITTED
    engine.set_state(0, BucketState.FROZEN)
    engine.set_state(0, BucketState.ABSENT)
    engine.apply(begin(FIRST + 50) + keyed(Kind.ROW, FIRST + 40) + end(FIRST + 50, 1))
    engine.open_buckets([0], 2, 1, "n1")
    for key in (b"key", b"none"):  # both wait for the OPEN
        assert caller.ask(Opcode.GET, key, budget_ms=20).status is Status.NOT_COMMITTED
    engine.stream.set_durable(engine.stream.head)
    assert caller.ask(Opcode.GET, b"none", budget_ms=20).status is Status.NOT_FOUND
    assert caller.ask(Opcode.GET, b"key", budget_ms=20) == (Status.OK, (0, FIRST + 40, b"value"))


def test_stats_count_buckets_by_state(engine_factory: EngineFactory) -> None:
    engine = engine_factory(opened=0)
    engine.open_buckets(range(5), 1, 1, "n1")
    engine.set_state(0, BucketState.FROZEN)
    buckets = engine.stats()["buckets"]
    assert (buckets["buckets"], buckets["primary"], buckets["frozen"], buckets["absent"]) == (8, 4, 1, 3)


def test_born_empty_is_the_sequence_of_a_bucket_that_is_not_here(backup: Engine) -> None:
    begins: Callable[[bytes], bool] = lambda record: decode(record).sequence == BORN_EMPTY  # noqa: E731
    assert all(begins(record) for record in backup.copy_bucket(0))
