"""A bucket that a node let go of and was filled with again, and a crash at every call of the disk: what comes back is the copy
that the node had last, as far as it is on the disk, or nothing."""

from __future__ import annotations

import itertools
import random
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from rcache.cluster.bucket_state import BucketState
from rcache.engine.clock import NodeClock
from rcache.engine.contract import Engine, EngineConfig
from rcache.engine.reference import ReferenceEngine
from rcache.records.files import FileKind
from rcache.records.reader import HeaderCut
from rcache.records.record import Cause, ImportEnd, Kind, Record, decode, encode, encode_import_end, heads
from rcache.stream.append_log import AppendLog
from rcache.stream.applied import AppliedStream
from rcache.stream.checkpoints import CopyHooks, copy_header, write_copy
from rcache.stream.data_dir import Identity
from rcache.stream.log_terms import AppendLogConfig, LogFailure, LogHooks, LogPlace
from rcache.stream.policy import FsyncPolicy
from rcache.stream.recovery import HistoryIncomplete, recover
from tests.contract.conftest import EngineFactory
from tests.contract.harness import EVERYTHING, Caller
from tests.contract.test_links import bucket_of
from tests.stream.harness import IDENTITY, NOON_MS, PATIENCE_S, STARTED, PhotographedDisk, read_segment, segments_of
from tests.stream.node import Items, items_of

BUCKET = 1
SOURCE = 7
FOR_EVER_NS = 1 << 62
SERVED = replace(IDENTITY, epoch=1, start_epoch=1, logged=True, joined=True)
KEYS = [key for key in (b"k%d" % n for n in range(200)) if bucket_of(key) % IDENTITY.buckets == BUCKET][:12]


class Backup:
    """A node that holds one bucket as another's backup: its engine, and its log, which is written when `sync` says so."""

    def __init__(self, home: Path, engine: Engine, disk: PhotographedDisk, segment_bytes_max: int = 1 << 20) -> None:
        self.home, self.engine, self.disk = home, engine, disk
        self.failures: list[LogFailure] = []
        self.applied = AppliedStream(1 << 20, engine.stream.wake_readers)
        config = AppendLogConfig(home, FsyncPolicy.INTERVAL, 10_000.0, segment_bytes_max)
        self.log = AppendLog(
            config, engine.stream, SERVED, lambda: NOON_MS, LogHooks(self.failures.append), disk=disk, applied=self.applied
        )
        STARTED.append(self.log)
        self.log.start(LogPlace(), 1)
        engine.follow(BUCKET, SOURCE)

    def take(self, body: bytes) -> None:
        """What its primary sends."""
        if body:
            self.engine.apply(body, SOURCE)
            self.record(body)

    def record(self, body: bytes) -> None:
        self.applied.append(body, sum(1 for _ in heads(body)), FOR_EVER_NS)

    def let_go(self) -> None:
        """As `Roles` does it."""
        assert self.log.pass_by(PATIENCE_S)
        self.engine.set_state(BUCKET, BucketState.ABSENT)
        self.record(encode(Record(Kind.DROP, Cause.NONE, BUCKET, 0, 0, NOON_MS, 0, b"", b"")))

    def sync(self) -> None:
        assert self.log.sync(PATIENCE_S)

    def checkpoint(self) -> None:
        segment = self.log.next_segment() - 1
        header = copy_header(FileKind.CHECKPOINT, SERVED, 1, segment, segment, NOON_MS)
        write_copy(self.engine, self.home / f"n1-{segment:04}.rcc", header, CopyHooks(before_finish=self.sync), self.disk)


class Primary:
    """The other end: a bucket that is changed, sent, and copied."""

    def __init__(self, engine: Engine, chosen: random.Random) -> None:
        self.engine, self._chosen = engine, chosen
        self._sent = engine.stream.open_reader("link", holds=True)
        engine.open_buckets([BUCKET], 1, 1, "n2")

    def change(self, count: int) -> None:
        for number in range(count):
            key = self._chosen.choice(KEYS)
            if self._chosen.randrange(4):
                Caller(self.engine).set(key, b"%d of %d" % (number, self.engine.sequence(BUCKET)))
            else:
                Caller(self.engine).delete(key)

    def news(self) -> bytes:
        batch = self._sent.take(EVERYTHING, 0.0)
        self._sent.release(batch.position)
        return bytes(batch.body)

    def copy(self) -> Iterator[bytes]:
        """Portion by portion, with the changes between them, as a link sends it."""
        after, began, rows, mark = None, 0, 0, b""
        while True:
            self.change(self._chosen.randrange(3))
            portion = self.engine.copy_portion(BUCKET, after, 60)
            news = self.news()
            if not mark:
                began, mark = portion.sequence, _mark(Kind.IMPORT_BEGIN, portion.sequence)
                yield mark  # what came before it is in the rows
            else:
                yield news
            rows, after = rows + portion.count, portion.after
            yield portion.body
            if after is None:
                yield _mark(Kind.IMPORT_END, portion.sequence, encode_import_end(ImportEnd(began, rows)))
                return

    def close(self) -> None:
        self._sent.close()


def _mark(kind: Kind, sequence: int, value: bytes = b"") -> bytes:
    return encode(Record(kind, Cause.NONE, BUCKET, 0, sequence, NOON_MS, 0, b"", value))


def told_by_log(directory: Path) -> Items | None:
    """What an engine has that does what the log says, one record after the other; None: no whole copy."""
    engine = ReferenceEngine(EngineConfig(buckets=IDENTITY.buckets), NodeClock(lambda: NOON_MS, lambda: NOON_MS))
    engine.apply(_mark(Kind.IMPORT_BEGIN, 0) + _mark(Kind.IMPORT_END, 0, encode_import_end(ImportEnd(0, 0))))
    try:
        for path in segments_of(directory):
            for body in _bodies_of(path):
                engine.apply(body)
        if engine.state(BUCKET) is not BucketState.BACKUP or not engine.sequence(BUCKET):
            return None
        rows = [record for record in map(decode, engine.copy_bucket(BUCKET)) if record.kind == Kind.ROW]
        return {row.key: row.value for row in rows}
    finally:
        engine.close()


def _bodies_of(path: Path) -> list[bytes]:
    try:
        return read_segment(path)[1]
    except HeaderCut:
        return []


def comes_back(directory: Path, identity: Identity = SERVED) -> Items | None:
    """What a start has of the bucket; None: it gives up."""
    try:
        return items_of(recover(directory, directory / "n1.rcs", identity, wanted={BUCKET}))
    except HistoryIncomplete as incomplete:
        if any("let go of" in problem or "nothing of it" in problem for problem in incomplete.problems):
            return None
        raise


@pytest.fixture
def album(tmp_path: Path) -> Path:
    path = tmp_path / "album"
    path.mkdir()
    return path


@pytest.fixture
def home(tmp_path: Path) -> Path:
    path = tmp_path / "home"
    path.mkdir()
    return path


def check_all(disk: PhotographedDisk) -> tuple[int, int]:
    """Hold every picture against what its log says. How many had a whole copy, and how many had none."""
    whole = without = 0
    for number, (killed, cut, _) in enumerate(disk.pictures):
        for picture in (killed, cut):
            expected = told_by_log(picture)
            for found in (comes_back(picture), comes_back(picture)):
                assert found == expected, f"picture {number}, {picture.name}, before {disk.calls[number]}"
            whole, without = whole + (expected is not None), without + (expected is None)
    return whole, without


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_at_every_call_of_the_disk_the_last_copy_comes_back_or_none(
    home: Path, album: Path, engine_factory: EngineFactory, seed: int
) -> None:
    """Filled, let go of, filled again, with syncs and checkpoints anywhere. (What is in checkpoints is in the log as well.)"""
    chosen = random.Random(seed)
    config = {"opened": 0, "buckets": IDENTITY.buckets, "stripes": 2}
    disk = PhotographedDisk(home, album, lambda: None)
    there = Backup(home, engine_factory(**config), disk, segment_bytes_max=2500)
    other = Primary(engine_factory(**config), chosen)

    def perhaps() -> None:
        if not chosen.randrange(3):
            there.sync()
        if not chosen.randrange(12) and there.engine.state(BUCKET) is not BucketState.IMPORTING:
            there.checkpoint()

    for epoch in range(2, 6):
        other.change(chosen.randrange(1, 12))
        other.news()
        for body in other.copy():
            there.take(body)
            perhaps()
        for _ in range(chosen.randrange(4)):
            other.change(chosen.randrange(1, 4))
            there.take(other.news())
            perhaps()
        there.let_go()
        perhaps()
        other.engine.open_buckets([BUCKET], epoch, 1, "n2")
    assert there.log.stop(PATIENCE_S)
    other.close()
    whole, without = check_all(disk)
    assert whole > 5
    assert without > 5


def test_what_was_dead_when_it_was_let_go_of_does_not_come_back(home: Path, album: Path, engine_factory: EngineFactory) -> None:
    """This node was primary, with changes at its end that no backup ever had; another opened the bucket without them."""
    config = {"opened": 0, "buckets": IDENTITY.buckets, "stripes": 2}
    disk = PhotographedDisk(home, album, lambda: None)
    here, heir = engine_factory(**config), engine_factory(**config)
    there = Backup(home, here, disk)
    here.follow(BUCKET, 0)
    here.open_buckets([BUCKET], 1, 1, "n1")
    for number in range(3):
        Caller(here).set(KEYS[number], b"acknowledged")
    heir.apply(b"".join(here.copy_bucket(BUCKET)))
    for number in range(3):
        Caller(here).set(KEYS[number], b"dead")
    there.sync()
    here.set_state(BUCKET, BucketState.FROZEN)
    here.follow(BUCKET, SOURCE)
    there.let_go()
    there.sync()
    assert comes_back(_copied(home, album / "let-go")) is None
    heir.open_buckets([BUCKET], 2, 1, "n2")
    Caller(heir).set(KEYS[3], b"newer")
    copy = b"".join(heir.copy_bucket(BUCKET))
    cut = [head.start for head in heads(copy)]
    for start, end in itertools.pairwise([*cut, len(copy)]):
        there.take(copy[start:end])
        there.sync()
        found = comes_back(_copied(home, album / f"at-{end}"))
        assert found == (None if end < len(copy) else {**dict.fromkeys(KEYS[:3], b"acknowledged"), KEYS[3]: b"newer"})
    assert there.log.stop(PATIENCE_S)
    check_all(disk)


def _copied(home: Path, to: Path) -> Path:
    shutil.copytree(home, to)
    return to


# --- of a bucket that is wanted, something is there


def test_nothing_of_a_bucket_is_on_disk(home: Path) -> None:
    """Whoever served last kept a log: an empty bucket in place of the only copy would be a silent loss."""
    with pytest.raises(HistoryIncomplete, match="bucket 1: nothing of it is on disk"):
        recover(home, home / "n1.rcs", SERVED, wanted={BUCKET})
    recovered = recover(home, home / "n1.rcs", SERVED, wanted={BUCKET}, skip_damaged=True)
    assert items_of(recovered) == {}
    assert "nothing of it is on disk" in recovered.warnings[-1]
    assert recovered.lost == 0


def test_a_checkpoint_of_when_it_was_not_there_is_nothing_of_it(home: Path, album: Path, engine_factory: EngineFactory) -> None:
    there = Backup(home, engine_factory(opened=0, buckets=4, stripes=2), PhotographedDisk(home, album, lambda: None))
    there.checkpoint()
    assert there.log.stop(PATIENCE_S)
    assert comes_back(home) is None


def test_a_node_that_never_served_has_nothing_to_miss(home: Path) -> None:
    """It ended between the view and its first OPEN."""
    assert items_of(recover(home, home / "n1.rcs", replace(SERVED, start_epoch=0), wanted={BUCKET})) == {}


def test_what_a_node_kept_nothing_of_is_counted(home: Path) -> None:
    """By its options: it is lost by its own restart, and that is said."""
    recovered = recover(home, home / "n1.rcs", replace(SERVED, logged=False), wanted={BUCKET, 2})
    assert (recovered.lost, recovered.stale) == (2, False)
