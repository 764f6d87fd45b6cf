"""The append log's second stream: what was applied as a backup is in the file too, and a bucket's records are in their order
whichever stream brings them."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from rcache.cluster.bucket_state import BucketState
from rcache.engine.change_stream import StreamEnd
from rcache.engine.contract import Engine
from rcache.records.record import Kind, Record, decode, draft, heads, make_sequence, stamp
from rcache.stream.append_log import AppendLog
from rcache.stream.applied import AppliedFailed, AppliedStream
from rcache.stream.log_terms import AppendLogConfig, LogFailure, LogHooks, LogPlace
from rcache.stream.policy import FsyncPolicy
from rcache.stream.recovery import recover
from tests.contract.conftest import EngineFactory
from tests.contract.harness import EVERYTHING, Caller, Task, assert_stays
from tests.contract.test_links import bucket_of
from tests.stream.harness import (
    DAY_MS,
    IDENTITY,
    NOON_MS,
    PATIENCE_S,
    STARTED,
    ScriptedDisk,
    read_segment,
    segments_of,
    wait_until,
)
from tests.stream.node import items_of

FOREVER_S = 10_000.0
FOR_EVER_NS = 1 << 62
BUCKETS = IDENTITY.buckets
ALWAYS, NEVER = FsyncPolicy.ALWAYS, FsyncPolicy.NEVER
SOURCE = 7


class TwoStreams:
    """An engine, the stream of what it applies, and the log of both on a disk that can be held up."""

    def __init__(self, directory: Path, engine: Engine, policy: FsyncPolicy = NEVER, room: int = 1 << 20) -> None:
        self.directory = directory
        self.engine = engine
        self.disk = ScriptedDisk()
        self.now_ms = NOON_MS
        self.failures: list[LogFailure] = []
        self.hurries = 0
        self.applied = AppliedStream(room, self.hurry, always=policy is ALWAYS)
        self.log = AppendLog(
            AppendLogConfig(directory, policy, FOREVER_S, 1 << 24),
            engine.stream,
            IDENTITY,
            lambda: self.now_ms,
            LogHooks(self.failures.append),
            disk=self.disk,
            applied=self.applied,
        )
        STARTED.append(self.log)
        self.log.start(LogPlace(), 1)
        self.counter = 0

    def hurry(self) -> None:
        self.hurries += 1
        self.engine.stream.wake_readers()

    def place(self, count: int = 1, bucket: int = 1) -> list[Record]:
        """Put records into the second stream alone."""
        made = []
        for _ in range(count):
            self.counter += 1
            record = draft(Kind.SET, bucket, b"key", b"%d" % self.counter)
            stamp(record, make_sequence(1, self.counter), NOON_MS)
            self.applied.append(bytes(record), 1, FOR_EVER_NS)
            made.append(decode(bytes(record)))
        return made

    def stop(self) -> None:
        assert self.log.stop(PATIENCE_S)
        assert not self.failures

    def records(self) -> list[Record]:
        """What is in the file."""
        bodies = [body for path in segments_of(self.directory) for body in read_segment(path)[1]]
        return [decode(body, head.start, head.end) for body in bodies for head in heads(body)]


@pytest.fixture
def two(tmp_path: Path, engine_factory: EngineFactory) -> TwoStreams:
    return TwoStreams(tmp_path, engine_factory(opened=0, buckets=BUCKETS, stripes=2))


# --- both are in the file


@pytest.mark.parametrize("policy", list(FsyncPolicy))
def test_records_of_both_streams_are_in_the_file_each_in_its_order(
    tmp_path: Path, engine_factory: EngineFactory, policy: FsyncPolicy
) -> None:
    """Stopping writes what both hold."""
    two = TwoStreams(tmp_path, engine_factory(opened=0, buckets=BUCKETS, stripes=2), policy)
    own = two.engine.stream.open_reader("own", holds=True)
    two.engine.open_buckets([0], 1, 1, "n1")
    key = next(b"%d" % n for n in range(100) if bucket_of(b"%d" % n) % BUCKETS == 0)
    placed = []
    for number in range(100):
        Caller(two.engine).set(key, b"%d" % number)
        placed += two.place()
    changed = [decode(record) for record in own.take(EVERYTHING, 0.0).records]
    own.close()
    two.stop()
    found = two.records()
    assert [record for record in found if record.bucket == 0] == changed
    assert [record for record in found if record.bucket == 1] == placed
    assert (two.applied.durable, two.engine.stream.durable) == (two.applied.head, two.engine.stream.head)


def test_with_fsync_always_the_second_stream_is_durable_only_after_the_fsync(
    tmp_path: Path, engine_factory: EngineFactory
) -> None:
    """Invariant 1: with fsync always what is acknowledged is on this node's disk."""
    two = TwoStreams(tmp_path, engine_factory(opened=0, buckets=BUCKETS, stripes=2), ALWAYS)
    two.disk.gate.clear()
    two.place()  # one: the log takes it and hangs in its fsync
    waiting = Task(lambda: two.applied.wait_durable(two.applied.head, FOR_EVER_NS))
    assert two.applied.wait_written(two.applied.head, FOR_EVER_NS) is StreamEnd.REACHED
    assert_stays(lambda: not waiting.is_done and two.applied.durable == 0, "the wait for the disk")
    two.disk.gate.set()
    assert waiting.result() is StreamEnd.REACHED
    assert two.disk.synced[-1] == segments_of(tmp_path)[0].stat().st_size
    two.stop()


def test_the_second_stream_has_room_again_once_it_was_written(tmp_path: Path, engine_factory: EngineFactory) -> None:
    two = TwoStreams(tmp_path, engine_factory(opened=0, buckets=BUCKETS, stripes=2), room=300)
    placed = two.place(200)
    two.stop()
    assert two.records() == placed


# --- passing by


def test_pass_by_comes_back_when_what_both_streams_held_is_written(two: TwoStreams) -> None:
    """On disk it need not be."""
    two.engine.open_buckets([0], 1, 1, "n1")
    placed = two.place(5)
    assert two.log.pass_by(PATIENCE_S)
    found = two.records()
    assert [record.bucket for record in found if record.kind == Kind.OPEN] == [0]
    assert [record for record in found if record.bucket == 1] == placed
    assert two.applied.durable == 0
    assert two.log.pass_by(0.0), "there is nothing to wait for"
    two.stop()


@pytest.mark.parametrize("stream", ["own", "second"])
def test_pass_by_waits_for_either_stream(two: TwoStreams, stream: str) -> None:
    """The log hangs in an fsync of something else; what was placed meanwhile is not written."""
    two.log.set_policy(ALWAYS)
    two.place()
    assert two.applied.wait_durable(two.applied.head, FOR_EVER_NS) is StreamEnd.REACHED
    two.disk.gate.clear()
    two.place()  # the log takes this one, and hangs in its fsync
    assert two.applied.wait_written(two.applied.head, FOR_EVER_NS) is StreamEnd.REACHED
    wait_until(lambda: two.log.hangs(0.0), "the log to hang")
    if stream == "own":
        two.engine.open_buckets([0], 1, 1, "n1")
    else:
        two.place()
    assert not two.log.pass_by(0.02)
    passing = Task(lambda: two.log.pass_by(PATIENCE_S))
    assert_stays(lambda: not passing.is_done, "the wait for the log")
    two.disk.gate.set()
    assert passing.result()
    two.stop()


def test_pass_by_ends_where_the_log_fails(two: TwoStreams) -> None:
    two.disk.break_call("write")
    two.place()
    assert not two.log.pass_by(PATIENCE_S)
    wait_until(lambda: not two.log.is_alive(), "the log to end")
    assert len(two.failures) == 1
    two.engine.stream.wake_readers()
    with pytest.raises(AppliedFailed):
        two.place()
    assert not two.log.pass_by(PATIENCE_S)


def test_a_bucket_that_changes_streams_has_its_records_in_order_on_disk(tmp_path: Path, engine_factory: EngineFactory) -> None:
    """Again and again it is this node's, given up, and applied from another: the file tells its history, and replays."""
    two = TwoStreams(tmp_path, engine_factory(opened=0, buckets=BUCKETS, stripes=2))
    mine, other, chosen = two.engine, engine_factory(opened=0, buckets=BUCKETS, stripes=2), random.Random(20261126)
    mine.open_buckets(range(BUCKETS), 1, 1, "n1")
    for bucket in range(BUCKETS):
        other.follow(bucket, SOURCE)
        other.apply(b"".join(mine.copy_bucket(bucket)), SOURCE)
    ours, theirs = (engine.stream.open_reader("link", holds=True) for engine in (mine, other))
    for epoch in range(2, 12):
        for _ in range(chosen.randrange(1, 30)):
            Caller(mine).set(b"k%d" % chosen.randrange(20), b"mine %d" % epoch)
        other.apply(take(ours), SOURCE)
        for bucket in range(BUCKETS):
            mine.set_state(bucket, BucketState.FROZEN)
        assert two.log.pass_by(PATIENCE_S)
        for bucket in range(BUCKETS):
            mine.set_state(bucket, BucketState.BACKUP)
            mine.follow(bucket, SOURCE)
        other.open_buckets(range(BUCKETS), epoch * 2, 2, "n2")
        for _ in range(chosen.randrange(1, 30)):
            Caller(other).set(b"k%d" % chosen.randrange(20), b"theirs %d" % epoch)
        body = take(theirs)
        mine.apply(body, SOURCE)
        two.applied.append(body, sum(1 for _ in heads(body)), FOR_EVER_NS)
        for bucket in range(BUCKETS):
            other.set_state(bucket, BucketState.FROZEN)
            other.set_state(bucket, BucketState.BACKUP)
            other.follow(bucket, SOURCE)
        assert two.log.pass_by(PATIENCE_S)
        mine.open_buckets(range(BUCKETS), epoch * 2 + 1, 1, "n1")
    held = {key: Caller(mine).value(key) for key in (b"k%d" % n for n in range(20))}
    ours.close()
    theirs.close()
    two.stop()
    for bucket in range(BUCKETS):
        sequences = [record.sequence for record in two.records() if record.bucket == bucket]
        assert sequences == sorted(set(sequences)), f"bucket {bucket}: out of order, or twice"
    recovered = recover(tmp_path, tmp_path / "n1.rcs", IDENTITY)
    assert items_of(recovered) == {key: value for key, value in held.items() if value is not None}


def take(reader) -> bytes:  # type: ignore[no-untyped-def]
    """What is new."""
    batch = reader.take(EVERYTHING, 0.0)
    reader.release(batch.position)
    return bytes(batch.body)


# --- another policy at run time


def test_the_policy_is_changed_while_the_log_runs(two: TwoStreams) -> None:
    """Invariant 12: the cluster's policy is followed. What was written under the old one is made durable by the new."""
    two.place(3)
    assert two.log.pass_by(PATIENCE_S)
    assert (two.applied.durable, two.log.stats()["fsync"]) == (0, "never")
    two.log.set_policy(ALWAYS)
    wait_until(lambda: two.applied.durable == two.applied.head, "what was written before to be on disk")
    assert two.log.stats()["fsync"] == "always"
    hurries = two.hurries
    two.place()
    assert two.hurries == hurries + 1, "a peer waits for the disk with every batch"
    assert two.applied.wait_durable(two.applied.head, FOR_EVER_NS) is StreamEnd.REACHED
    two.engine.open_buckets([0], 1, 1, "n1")
    assert two.engine.stream.wait_durable(two.engine.stream.head, FOR_EVER_NS) is StreamEnd.REACHED
    two.log.set_policy(NEVER)
    two.place()
    assert two.log.pass_by(PATIENCE_S)
    assert two.applied.durable < two.applied.head, "and back"
    two.stop()


# --- who looks after the log


def test_a_call_to_the_disk_that_does_not_come_back_is_seen(two: TwoStreams) -> None:
    assert not two.log.hangs(0.0), "it has nothing to do"
    two.disk.gate.clear()
    two.log.set_policy(ALWAYS)
    two.place()
    wait_until(lambda: two.log.hangs(0.01), "the log to hang")
    assert not two.log.hangs(FOREVER_S)
    two.disk.gate.set()
    wait_until(lambda: not two.log.hangs(0.0), "the log to go on")
    two.stop()


def test_a_segment_that_does_not_end_is_seen(two: TwoStreams) -> None:
    """Turning the segment is calls to the disk as well."""
    two.place()
    assert two.log.pass_by(PATIENCE_S)
    two.disk.gate.clear()
    two.now_ms += DAY_MS
    wait_until(lambda: two.log.hangs(0.01), "the log to hang")
    two.disk.gate.set()
    two.stop()


def test_sync_is_for_both_streams(two: TwoStreams) -> None:
    """A checkpoint of a bucket that is a backup here is whole only with the log on disk up to its end."""
    two.place(3)
    assert two.log.sync(PATIENCE_S)
    assert two.applied.durable == two.applied.head > 0
    two.disk.gate.clear()
    two.place()
    assert not two.log.sync(0.02)
    two.disk.gate.set()
    assert two.log.sync(PATIENCE_S)
    two.stop()
