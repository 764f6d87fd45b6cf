"""Whose records a bucket takes: those of the source it follows, each once; and what a frozen bucket goes over to."""

from __future__ import annotations

import threading

import pytest

from rcache.cluster.bucket_state import BucketState
from rcache.engine.contract import ChainError, Engine
from rcache.records.record import BORN_EMPTY, Kind, make_sequence
from rcache_client.wire.opcodes import Opcode, Status
from tests.contract.conftest import EngineFactory
from tests.contract.harness import EVERYTHING, Caller, Task, state_of
from tests.contract.test_buckets import FIRST, begin, end, keyed, mark

SOURCE, OTHER = 7, 1 << 40


@pytest.fixture
def backup(engine_factory: EngineFactory) -> Engine:
    """One bucket, whole, with an item, that follows SOURCE."""
    engine = engine_factory(opened=0, buckets=1)
    engine.follow(0, SOURCE)
    engine.apply(begin(FIRST) + keyed(Kind.ROW, FIRST) + end(FIRST, 1), SOURCE)
    return engine


# --- whose


def test_a_bucket_follows_nobody_until_it_is_told_to(engine_factory: EngineFactory) -> None:
    engine = engine_factory(opened=0, buckets=1)
    with pytest.raises(ChainError, match=f"follows source 0; records of source {SOURCE} do not apply"):
        engine.apply(begin(FIRST), SOURCE)
    assert engine.state(0) is BucketState.ABSENT
    engine.apply(begin(FIRST))
    assert engine.state(0) is BucketState.IMPORTING


@pytest.mark.parametrize("source", [0, OTHER])
def test_it_takes_records_of_no_other(backup: Engine, source: int) -> None:
    held = state_of(backup)
    for record in (keyed(Kind.SET, FIRST + 1), keyed(Kind.SET, FIRST), begin(FIRST), mark(Kind.DROP, FIRST)):
        with pytest.raises(ChainError, match=f"bucket 0 follows source {SOURCE}; records of source {source} do not"):
            backup.apply(record, source)
    assert (backup.state(0), backup.sequence(0), state_of(backup)) == (BucketState.BACKUP, FIRST, held)
    backup.apply(keyed(Kind.SET, FIRST + 1), SOURCE)
    assert backup.sequence(0) == FIRST + 1


def test_one_that_follows_another_takes_nothing_of_the_first(backup: Engine) -> None:
    backup.follow(0, OTHER)
    with pytest.raises(ChainError, match=f"bucket 0 follows source {OTHER}; records of source {SOURCE} do not"):
        backup.apply(keyed(Kind.SET, FIRST + 1), SOURCE)
    backup.apply(keyed(Kind.SET, FIRST + 1, b"key", b"of the other"), OTHER)
    backup.follow(0, 0)
    backup.apply(keyed(Kind.SET, FIRST + 2, b"key", b"of a recovery"))
    assert state_of(backup)[0][b"key"][0] == b"of a recovery"


def test_each_bucket_follows_its_own(engine_factory: EngineFactory) -> None:
    """What comes before a record that does not apply has been applied, what comes behind it has not."""
    engine = engine_factory(opened=0, buckets=4)
    for bucket in range(4):
        engine.follow(bucket, OTHER if bucket == 2 else SOURCE)
    with pytest.raises(ChainError, match="bucket 2 follows"):
        engine.apply(b"".join(begin(FIRST, bucket=bucket) for bucket in range(4)), SOURCE)
    assert [engine.state(bucket) for bucket in range(4)] == [BucketState.IMPORTING] * 2 + [BucketState.ABSENT] * 2


def test_once_a_bucket_follows_another_nothing_of_the_first_comes(engine_factory: EngineFactory) -> None:
    """In the middle of a long frame: what was applied by the time `follow` returns is all."""
    engine = engine_factory(opened=0, buckets=1)
    engine.follow(0, SOURCE)
    engine.apply(begin(FIRST) + end(FIRST, 0), SOURCE)
    body = b"".join(keyed(Kind.SET, FIRST + number) for number in range(1, 20_000))
    going = threading.Event()

    def apply() -> None:
        going.set()
        engine.apply(body, SOURCE)

    applying = Task(apply)
    going.wait()
    while engine.sequence(0) == FIRST:
        pass
    engine.follow(0, OTHER)
    reached = engine.sequence(0)
    try:
        applying.result()
    except ChainError:
        assert reached < FIRST + 19_999
    assert engine.sequence(0) == reached


def test_a_primary_takes_records_of_nobody(backup: Engine) -> None:
    backup.open_buckets([0], 2, 1, "n2")
    for source in (0, SOURCE):
        with pytest.raises(ChainError, match="bucket 0 is primary"):
            backup.apply(keyed(Kind.SET, FIRST + 1), source)


def test_one_that_was_primary_follows_nobody_until_it_is_told_anew(backup: Engine) -> None:
    backup.open_buckets([0], 2, 1, "n2")
    backup.set_state(0, BucketState.FROZEN)
    backup.set_state(0, BucketState.BACKUP)
    with pytest.raises(ChainError, match=f"follows source 0; records of source {SOURCE}"):
        backup.apply(keyed(Kind.SET, make_sequence(2, 1)), SOURCE)
    backup.follow(0, OTHER)
    backup.apply(keyed(Kind.SET, make_sequence(2, 1)), OTHER)


# --- each once


def test_what_comes_twice_is_passed_by(backup: Engine) -> None:
    opening = mark(Kind.OPEN, make_sequence(2, 0), (FIRST + 2).to_bytes(8, "big") + bytes(8) + b"\0\2n1")
    sent = [
        keyed(Kind.SET, FIRST + 1, b"key", b"new"),
        keyed(Kind.REMOVE, FIRST + 2, value=b""),
        opening,
        mark(Kind.FLUSH, make_sequence(2, 1)),
        keyed(Kind.SET, make_sequence(2, 2), b"other", b"last"),
    ]
    for first in range(len(sent)):
        backup.apply(b"".join(sent[: first + 1]), SOURCE)
    backup.apply(b"".join(sent) * 2, SOURCE)
    assert state_of(backup)[0] == {b"other": (b"last", 0, 0, make_sequence(2, 2))}
    assert backup.sequence(0) == make_sequence(2, 2)
    backup.check()


def test_what_comes_twice_into_an_import_is_passed_by(engine_factory: EngineFactory) -> None:
    engine = engine_factory(opened=0, buckets=1)
    engine.follow(0, SOURCE)
    engine.apply(begin(FIRST + 5) + keyed(Kind.ROW, FIRST + 3, b"key", b"row"), SOURCE)
    changes = [keyed(Kind.SET, FIRST + number, b"key", b"%d" % number) for number in range(1, 8)]
    engine.apply(b"".join(changes[:5]), SOURCE)
    assert state_of(engine)[0][b"key"][0] == b"row", "the import began behind them"
    engine.apply(b"".join(changes), SOURCE)
    engine.apply(end(FIRST + 7, 1, FIRST + 5), SOURCE)
    assert state_of(engine)[0][b"key"][0] == b"7"


@pytest.mark.parametrize(
    "record", [keyed(Kind.SET, FIRST + 2), mark(Kind.FLUSH, FIRST + 9), keyed(Kind.REMOVE, FIRST + 2, value=b"")]
)
def test_a_hole_is_refused_all_the_same(backup: Engine, record: bytes) -> None:
    with pytest.raises(ChainError, match="does not follow on"):
        backup.apply(record, SOURCE)
    assert backup.sequence(0) == FIRST


def test_an_absent_bucket_has_nothing_that_could_come_twice(engine_factory: EngineFactory) -> None:
    engine = engine_factory(opened=0, buckets=1)
    engine.follow(0, SOURCE)
    with pytest.raises(ChainError, match="does not follow on"):
        engine.apply(keyed(Kind.SET, FIRST + 1), SOURCE)


def test_for_a_recovery_nothing_comes_twice(engine_factory: EngineFactory) -> None:
    engine = engine_factory(opened=0, buckets=1)
    engine.apply(begin(FIRST) + end(FIRST, 0) + keyed(Kind.SET, FIRST + 1))
    with pytest.raises(ChainError, match="does not follow on"):
        engine.apply(keyed(Kind.SET, FIRST + 1))


# --- what a peer cannot do


def test_a_whole_copy_is_let_go_of_by_no_peer(backup: Engine) -> None:
    held = state_of(backup)
    for record in (begin(FIRST + 5), begin(FIRST), mark(Kind.DROP, FIRST)):
        with pytest.raises(ChainError, match="bucket 0 is a whole copy"):
            backup.apply(record, SOURCE)
        assert (backup.state(0), state_of(backup)) == (BucketState.BACKUP, held)
    backup.follow(0, 0)
    backup.apply(begin(FIRST + 5))
    assert backup.state(0) is BucketState.IMPORTING, "a recovery may"
    backup.follow(0, SOURCE)
    backup.apply(begin(FIRST + 6), SOURCE)
    assert backup.sequence(0) == FIRST + 6, "and one that is not whole begins anew"
    backup.set_state(0, BucketState.ABSENT)
    backup.apply(begin(FIRST) + end(FIRST, 0), SOURCE)
    assert backup.state(0) is BucketState.BACKUP


# --- sequences and states


def test_a_bucket_says_its_newest_sequence(engine_factory: EngineFactory) -> None:
    engine = engine_factory(opened=0)
    assert engine.sequence(3) == BORN_EMPTY
    engine.open_buckets(range(8), 3, 1, "n1")
    assert [engine.sequence(bucket) for bucket in range(8)] == [make_sequence(3, 0)] * 8
    versions = [Caller(engine).set(b"key", b"value") for _ in range(3)]
    assert versions[-1] in [engine.sequence(bucket) for bucket in range(8)]
    assert sum(engine.sequence(bucket) - make_sequence(3, 0) for bucket in range(8)) == 3


def test_who_gave_a_bucket_up_is_its_backup_with_all_it_has(engine_factory: EngineFactory) -> None:
    """Handed over in order: the heir's OPEN names the last record here, and what it does then applies here."""
    giver, heir = engine_factory(buckets=1), engine_factory(opened=0, buckets=1)
    Caller(giver).set(b"old", b"value")
    heir.apply(b"".join(giver.copy_bucket(0)))
    giver.set_state(0, BucketState.FROZEN)
    held, sequence = state_of(giver), giver.sequence(0)
    giver.set_state(0, BucketState.BACKUP)
    giver.follow(0, SOURCE)
    assert (giver.state(0), state_of(giver), giver.sequence(0)) == (BucketState.BACKUP, held, sequence)
    assert Caller(giver).ask(Opcode.GET, b"old").status is Status.NOT_PRIMARY
    reader = heir.stream.open_reader("link", holds=True)
    heir.open_buckets([0], 2, 2, "n2")
    Caller(heir).set(b"new", b"value")
    Caller(heir).delete(b"old")
    giver.apply(reader.take(EVERYTHING, 0.0).body, SOURCE)
    reader.close()
    assert state_of(giver) == state_of(heir)
    assert list(state_of(giver)[0]) == [b"new"]


def test_only_what_was_frozen_becomes_a_backup_by_itself(engine_factory: EngineFactory) -> None:
    engine = engine_factory(opened=0, buckets=1)
    engine.apply(begin(FIRST))
    with pytest.raises(ValueError, match="is importing; it cannot become backup by itself"):
        engine.set_state(0, BucketState.BACKUP)
    engine.open_buckets([], 1, 1, "n1")
    engine.apply(end(FIRST, 0))
    with pytest.raises(ValueError, match="is backup; it cannot become backup by itself"):
        engine.set_state(0, BucketState.BACKUP)
