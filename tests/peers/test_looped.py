"""A primary's link and a backup's intake over a real connection: copies made while writes go on, connections that break, and
what the backup's log then holds."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from rcache.cluster.bucket_state import BucketState
from rcache.engine.change_stream import HELD_FOR_EVER
from rcache.engine.contract import Engine
from rcache.peers.intake import Heading, Intake
from rcache.peers.link import Link
from rcache.records.record import HISTORY_KINDS, Kind, Record, decode, heads
from rcache.stream.append_log import AppendLog
from rcache.stream.applied import AppliedStream
from rcache.stream.data_dir import Identity
from rcache.stream.log_terms import AppendLogConfig, LogHooks, LogPlace
from rcache.stream.policy import FsyncPolicy
from rcache.stream.recovery import recover
from rcache_client.wire.frames import Request
from rcache_client.wire.opcodes import Opcode, Status
from tests.contract.conftest import EngineFactory
from tests.contract.harness import PATIENCE_S, Caller, Task, state_of, wait_until
from tests.contract.test_links import bucket_of
from tests.peers.harness import MINE, PEER, Answering, FakeHost, frame_of
from tests.stream.harness import NOON_MS, read_segment, segments_of
from tests.stream.node import items_of

BUCKETS = 8
ALL = range(BUCKETS)
SOURCE = 1
IDENTITY = Identity(cluster_id="c1" * 16, data_dir_id="d1" * 16, node="n2", buckets=BUCKETS, incarnation=7)


class Backup:
    """n2: an intake behind a listener, an engine, and a log in a directory. Once `breaks` frames were taken the connection is
    broken, each time, before the answer."""

    def __init__(self, directory: Path, engine: Engine, *, durable: bool = False) -> None:
        self.engine, self.directory = engine, directory
        self.holders: set[int] = set()
        policy = FsyncPolicy.ALWAYS if durable else FsyncPolicy.NEVER
        self.applied = AppliedStream(1 << 20, engine.stream.wake_readers, always=durable)
        self.log = AppendLog(
            AppendLogConfig(directory, policy, 10_000.0, 1 << 26),
            engine.stream,
            IDENTITY,
            lambda: NOON_MS,
            LogHooks(lambda failure: pytest.fail(str(failure))),
            applied=self.applied,
        )
        self.log.start(LogPlace(), 1)
        for bucket in ALL:
            engine.follow(bucket, SOURCE)
        self.intake = Intake(PEER, SOURCE, engine, self.applied, lambda b: b in self.holders, durable=durable)
        self.breaks: Iterator[int] = iter(())
        self._left = -1
        self.peer = Answering(self.answer)

    def break_after(self, frames: Iterator[int]) -> None:
        self.breaks = frames
        self._left = next(self.breaks, -1)

    def answer(self, request: Request) -> tuple[Status, tuple[object, ...]] | None:
        frame = frame_of(request)
        heading = Heading(frame.epoch, PEER.incarnation, MINE, frame.generation)
        taken = self.intake.take(heading, frame.body, lambda _bucket: SOURCE)
        assert taken.status in (Status.OK, Status.STALE_VIEW), taken
        self._left -= 1
        if self._left == 0:
            self._left = next(self.breaks, -1)
            return None
        return (Status.OK, (self.intake.gate.lend(),)) if taken.status is Status.OK else (taken.status, (b"view",))

    def close(self) -> None:
        self.intake.stop()
        self.peer.close()
        assert self.log.stop(PATIENCE_S)

    def logged(self) -> list[Record]:
        bodies = [body for path in segments_of(self.directory) for body in read_segment(path)[1]]
        return [decode(body, head.start, head.end) for body in bodies for head in heads(body)]


class Pair:
    """The primary n1 and the backup n2."""

    def __init__(
        self, engine_factory: EngineFactory, directory: Path, *, durable: bool = False, confirm_reads: bool = False
    ) -> None:
        self.primary = engine_factory(confirm_reads=confirm_reads)
        self.backup = Backup(directory, engine_factory(opened=0), durable=durable)
        self.host = FakeHost(epoch=1)
        self.link = Link(PEER, MINE, self.backup.peer.line(), self.primary, self.host)
        self.link.point.lease(HELD_FOR_EVER)
        self.link.start()
        self.link.choose([], 1)

    def fill_all(self) -> None:
        for bucket in ALL:
            self.link.fill(bucket)
        wait_until(lambda: len(set(self.host.filled)) == BUCKETS, "all copies")

    def count_on(self) -> None:
        """What the next view says: all are backups, and waited for."""
        for bucket in ALL:
            self.primary.set_commit_points(bucket, [self.link.point])
        self.backup.holders = set(ALL)
        self.link.choose(ALL, 2)

    def settle(self) -> None:
        wait_until(lambda: self.link.acknowledged == self.primary.stream.head, "the backup to have everything")

    def close(self) -> None:
        assert self.link.stop(PATIENCE_S)
        self.backup.close()
        assert self.link.errors == 0
        self.link.point.close()


@pytest.fixture
def pair(engine_factory: EngineFactory, tmp_path: Path) -> Iterator[Pair]:
    pair = Pair(engine_factory, tmp_path)
    yield pair
    if pair.link.is_up:
        pair.close()


def write(engine: Engine, writer: int, count: int, budget_ms: int = 60_000) -> dict[bytes, bytes | None]:
    """Seeded changes of keys of this writer's own; what is there then, all of it acknowledged."""
    chosen, caller = random.Random(writer), Caller(engine)
    held: dict[bytes, bytes | None] = {}
    for number in range(count):
        key = b"w%d.%d" % (writer, chosen.randrange(40))
        if chosen.random() < 0.2:
            assert caller.delete(key, budget_ms=budget_ms).status in (Status.OK, Status.NOT_FOUND)
            held[key] = None
        else:
            held[key] = b"%d " % number * chosen.choice([1, 200])
            caller.set(key, held[key] or b"", budget_ms=budget_ms)
    return held


def assert_each_once(records: list[Record]) -> None:
    """A bucket's changes count up, from each IMPORT_BEGIN anew, without a hole and without one that comes twice."""
    newest: dict[int, int] = {}
    for record in records:
        if record.kind == Kind.IMPORT_BEGIN:
            newest[record.bucket] = record.sequence
        elif record.kind in HISTORY_KINDS:
            assert record.sequence == newest[record.bucket] + 1, f"bucket {record.bucket}"
            newest[record.bucket] = record.sequence


def assert_recovers(pair: Pair, directory: Path) -> None:
    """What the backup's log replays to is what the primary has."""
    expected = {key: row[0] for items in state_of(pair.primary).values() for key, row in items.items()}
    assert items_of(recover(directory, directory / "n2.rcs", IDENTITY)) == expected


def test_a_copy_that_is_made_while_writes_go_on_is_the_bucket(pair: Pair, tmp_path: Path) -> None:
    """Invariant 8, over a real connection."""
    write(pair.primary, 9, 1500)
    writing = [Task(lambda n=n: write(pair.primary, n, 400)) for n in range(3)]
    pair.fill_all()
    for task in writing:
        task.result()
    pair.settle()
    assert {pair.backup.engine.state(bucket) for bucket in ALL} == {BucketState.BACKUP}
    assert state_of(pair.backup.engine) == state_of(pair.primary)
    pair.close()
    assert_each_once(pair.backup.logged())
    assert_recovers(pair, tmp_path)


def test_what_was_acknowledged_is_at_the_backup(pair: Pair) -> None:
    """Invariant 1: a write is acknowledged only after its backup has applied it; so what was, is there when the primary ends
    right after it."""
    pair.fill_all()
    pair.count_on()
    held = {}
    for task in [Task(lambda n=n: write(pair.primary, n, 120)) for n in range(3)]:
        held.update(task.result())
    rows = {key: row[0] for items in state_of(pair.backup.engine).values() for key, row in items.items()}
    assert {key: rows.get(key) for key in held} == held


def test_repeats_after_reconnects_are_in_the_log_once(pair: Pair, tmp_path: Path) -> None:
    """Invariant 7: connections break before the answers, again and again, while copies are made and writes go on."""
    chosen = random.Random(20261126)
    pair.backup.break_after(iter([chosen.randrange(2, 9) for _ in range(12)]))
    write(pair.primary, 9, 300)
    pair.fill_all()
    pair.count_on()
    writing = [Task(lambda n=n: write(pair.primary, n, 100)) for n in range(3)]
    for task in writing:
        task.result()
    pair.settle()
    assert pair.link.counts.connections > 5
    assert state_of(pair.backup.engine) == state_of(pair.primary)
    pair.close()
    assert_each_once(pair.backup.logged())
    assert_recovers(pair, tmp_path)


def test_reads_are_confirmed_over_connections_that_break(engine_factory: EngineFactory, tmp_path: Path) -> None:
    """What a reader is told is never older than what it was told before, and what was asked is asked again."""
    pair = Pair(engine_factory, tmp_path, confirm_reads=True)
    pair.fill_all()
    pair.count_on()
    chosen = random.Random(20261127)
    pair.backup.break_after(iter([chosen.randrange(2, 9) for _ in range(12)]))

    def read(count: int) -> None:
        caller, newest = Caller(pair.primary), -1
        for _ in range(count):
            status, values = caller.ask(Opcode.GET, b"key", budget_ms=60_000)
            assert status in (Status.OK, Status.NOT_FOUND)
            told = int(values[2]) if status is Status.OK else -1
            assert told >= newest
            newest = told

    reading = [Task(lambda: read(60)) for _ in range(3)]
    for number in range(60):
        Caller(pair.primary).set(b"key", b"%d" % number, budget_ms=60_000)
    for task in reading:
        task.result()
    assert pair.link.counts.connections > 5
    assert pair.link.stats()["frames"] > pair.link.stats()["records"]  # type: ignore[operator]
    pair.settle()
    assert state_of(pair.backup.engine) == state_of(pair.primary)
    pair.close()
    assert_each_once(pair.backup.logged())


def test_with_fsync_always_what_was_acknowledged_is_on_the_backups_disk(engine_factory: EngineFactory, tmp_path: Path) -> None:
    """Invariant 1: the file as it is right after the answer has it."""
    pair = Pair(engine_factory, tmp_path, durable=True)
    pair.fill_all()
    pair.count_on()
    for number in range(20):
        Caller(pair.primary).set(b"key", b"%d" % number, budget_ms=60_000)
        assert pair.backup.applied.durable == pair.backup.applied.head
        assert [r.value for r in pair.backup.logged() if r.key == b"key" and r.bucket == bucket_of(b"key")][
            -1
        ] == b"%d" % number
    pair.close()


def test_a_backup_that_opens_what_it_has_goes_on_where_the_primary_was(pair: Pair) -> None:
    """Invariant 7: its OPEN names the last record it has; with the link dead nothing else was acknowledged."""
    pair.fill_all()
    pair.count_on()
    held = write(pair.primary, 1, 100)
    pair.close()
    heir = pair.backup.engine
    heir.open_buckets(ALL, 2, 7, "n2")
    for key, value in held.items():
        assert Caller(heir).value(key) == value
