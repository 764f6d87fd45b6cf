"""Buckets copied in portions while they go on serving: nothing that stays is missed; with the stream it is a whole copy."""

from __future__ import annotations

import random

import pytest

from rcache.cluster.bucket_state import BucketState
from rcache.engine.change_stream import Portion, StreamReader
from rcache.engine.contract import Engine
from rcache.records.record import Cause, ImportEnd, Kind, Record, decode, encode, encode_import_end, heads
from tests.contract.conftest import EngineFactory
from tests.contract.harness import EVERYTHING, PATIENCE_S, Caller, Task, state_of

BUCKET = 0


@pytest.fixture
def engine(engine_factory: EngineFactory) -> Engine:
    """One bucket, so that its table grows."""
    return engine_factory(buckets=1, stripes=1)


def portions_of(engine: Engine, bytes_max: int) -> list[Record]:
    """All rows, portion by portion, with nothing in between."""
    rows, after = [], None
    while True:
        portion = engine.copy_portion(BUCKET, after, bytes_max)
        found = [decode(portion.body, head.start, head.end) for head in heads(portion.body)]
        assert portion.count == len(found)
        rows += found
        after = portion.after
        if after is None:
            return rows


def test_an_empty_bucket_is_one_empty_portion(engine: Engine) -> None:
    portion = engine.copy_portion(BUCKET, None, 1000)
    assert (portion.body, portion.count, portion.after) == (b"", 0, None)
    assert portion.position == engine.stream.head


@pytest.mark.parametrize("items", [1, 5, 100, 3000])
@pytest.mark.parametrize("bytes_max", [1, 500, EVERYTHING])
def test_the_portions_together_are_the_bucket(engine: Engine, caller: Caller, items: int, bytes_max: int) -> None:
    for number in range(items):
        caller.set(b"key-%d" % number, b"%d" % number, flags=number, ttl_ms=1000 * (number % 2))
    rows = portions_of(engine, bytes_max)
    assert {row.key: (row.value, row.flags, row.expires_at_ms, row.sequence) for row in rows} == state_of(engine)[BUCKET]
    assert len(rows) == items, "and none is twice there, where nothing happens in between"
    assert {(row.kind, row.cause, row.bucket) for row in rows} == {(Kind.ROW, Cause.NONE, BUCKET)}


def test_a_portion_is_about_as_large_as_asked(engine: Engine, caller: Caller) -> None:
    for number in range(2000):
        caller.set(b"key-%d" % number, bytes(100))
    after, sizes = None, []
    while not sizes or after is not None:
        portion = engine.copy_portion(BUCKET, after, 10_000)
        sizes.append(len(portion.body))
        after = portion.after
    assert len(sizes) > 20
    assert max(sizes) < 10_000 + 64 * 150, "and one bin of the table"
    assert min(sizes[:-1]) >= 10_000


def test_a_portion_says_where_it_stands(engine: Engine, caller: Caller) -> None:
    version = caller.set(b"key", b"value")
    portion = engine.copy_portion(BUCKET, None, EVERYTHING)
    assert (portion.sequence, portion.position) == (version, engine.stream.head)
    caller.set(b"key", b"again")
    assert engine.copy_portion(BUCKET, None, EVERYTHING).sequence == version + 1


@pytest.mark.parametrize("seed", range(6))
def test_whatever_happens_in_between_what_stays_is_copied(engine: Engine, caller: Caller, seed: int) -> None:
    """The table grows and shrinks by a factor of a hundred between portions."""
    chosen = random.Random(seed)
    staying = {b"stays-%d" % number for number in range(300)}
    for key in staying:
        caller.set(key, b"value")
    others: list[bytes] = []
    rows, after = set(), None
    while True:
        portion = engine.copy_portion(BUCKET, after, chosen.choice([100, 1000, 3000]))
        rows |= {decode(portion.body, head.start, head.end).key for head in heads(portion.body)}
        after = portion.after
        if after is None:
            break
        if chosen.random() < 0.5:
            for _ in range(chosen.choice([10, 3000])):
                others.append(b"comes-%d-%d" % (seed, len(others)))
                caller.set(others[-1], b"value")
        else:
            for key in others[: chosen.choice([10, 3000])]:
                caller.delete(key)
            others = []
    assert staying <= rows
    engine.check()


@pytest.mark.parametrize("seed", range(4))
def test_with_the_stream_around_them_the_portions_are_a_whole_copy(engine_factory: EngineFactory, seed: int) -> None:
    """As a link fills a backup: the stream up to a portion's place, then the portion, then on; while writers go on."""
    primary, backup = engine_factory(buckets=1, stripes=1), engine_factory(opened=0, buckets=1, stripes=1)
    caller, chosen = Caller(primary), random.Random(seed)
    for number in range(1500):
        caller.set(b"key-%d" % number, b"before")
    writing = True

    def write() -> None:
        mine, writer = random.Random(seed + 100), Caller(primary)
        while writing:
            key = b"key-%d" % mine.randrange(3000)
            if mine.random() < 0.4:
                writer.delete(key)
            else:
                writer.set(key, b"%d" % mine.randrange(1000))

    reader = primary.stream.open_reader("link", holds=True)
    at = primary.stream.head
    task = Task(write)
    portion = primary.copy_portion(BUCKET, None, 1000)
    at = pass_on(reader, at, portion.position, None)
    begun, rows = portion.sequence, 0
    backup.apply(mark(Kind.IMPORT_BEGIN, portion, b""))
    while True:
        backup.apply(portion.body)
        rows += portion.count
        if portion.after is None:
            break
        portion = primary.copy_portion(BUCKET, portion.after, chosen.choice([2000, 20_000]))
        at = pass_on(reader, at, portion.position, backup)
    backup.apply(mark(Kind.IMPORT_END, portion, encode_import_end(ImportEnd(begun, rows))))
    assert backup.state(BUCKET) is BucketState.BACKUP
    writing = False
    while not task.is_done:  # it may be waiting for room
        at = pass_on(reader, at, primary.stream.head, backup)
    task.result()
    pass_on(reader, at, primary.stream.head, backup)
    assert state_of(backup) == state_of(primary)
    assert primary.stats()["items"]["sets"] > 1500, "it was written to meanwhile"
    reader.close()
    backup.check()


def mark(kind: Kind, portion: Portion, value: bytes) -> bytes:
    """The beginning or the end of an import, as of a portion."""
    return encode(Record(kind, Cause.NONE, BUCKET, 0, portion.sequence, portion.time_ms, 0, b"", value))


def pass_on(reader: StreamReader, at: int, position: int, backup: Engine | None) -> int:
    """Apply the stream up to a position, a record at a time; without a backup, drop it. Returns that position."""
    while at < position:
        batch = reader.take(1, PATIENCE_S)
        if backup is not None:
            backup.apply(batch.body)
        at = batch.position
        reader.release(at)
    assert at == position
    return at
