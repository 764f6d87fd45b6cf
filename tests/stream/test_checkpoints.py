"""Checkpoints, the savefile and retention: whole or not at all, and nothing removed that a state within its time needs."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from rcache.records.files import FileKind
from rcache.records.reader import RecordFile, Tail
from rcache.records.rebuild import rebuild, survey
from rcache.records.record import Kind, Record, decode
from rcache.stream import checkpoints
from rcache.stream.checkpoints import CheckpointConfig, Checkpointer, CopyHooks, Stopped, copy_header, retain, write_copy
from rcache.stream.data_dir import list_files, sources
from tests.stream.harness import DAY_MS, IDENTITY, NOON_MS, PATIENCE_S, ScriptedDisk, segments_of, wait_until
from tests.stream.node import Items, Node, recover_items


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    """A running node with ten items."""
    node = Node(tmp_path)
    for number in range(10):
        node.set(b"k%d" % number, b"value")
    yield node
    node.stop()


class FakeLog:
    """A log of which a test says when it is on disk."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.answer = True
        self.gate = threading.Event()
        self.gate.set()

    @property
    def failure(self) -> str | None:
        return None if self.answer else "the disk is full"

    def sync(self, timeout_s: float) -> bool:
        self.asked.set()
        self.gate.wait(min(timeout_s, PATIENCE_S))
        return self.answer


class Reports(list[tuple[str, str]]):
    """What a checkpointer reported: level and text."""

    def __call__(self, level: str, text: str) -> None:
        self.append((level, text))


Make = Callable[..., Checkpointer]


@pytest.fixture
def checkpointer(node: Node) -> Iterator[Make]:
    """Makes checkpointers for `node`; they are stopped in the end."""
    made: list[Checkpointer] = []

    def make(log: FakeLog, reports: Reports, disk: ScriptedDisk | None = None, keep_days: int = 7) -> Checkpointer:
        config = CheckpointConfig(node.directory, keep_days, disk or ScriptedDisk())
        made.append(Checkpointer(config, node.engine, log, node.identity, lambda: node.now_ms, reports))
        made[-1].start(node.epoch)
        return made[-1]

    yield make
    for each in made:
        assert each.stop(PATIENCE_S)


# --- copies


def test_a_copy_holds_every_bucket_and_is_closed(node: Node) -> None:
    header = copy_header(FileKind.SAVEFILE, IDENTITY, 4, 9, 8, 1234)
    seen: list[int] = []
    path = node.directory / "copy.rcs"
    copied = write_copy(node.engine, path, header, CopyHooks(lambda done, _seconds: seen.append(done)))
    assert (copied.items, copied.path, copied.bytes) == (10, path, path.stat().st_size)
    assert seen == [1, 2, 3, 4]
    with RecordFile(path) as file:
        kinds = [head.kind for block in file.blocks() for head in block.heads]
        assert file.findings.tail is Tail.CLOSED
        assert (file.header.epoch, file.header.number, file.header.first_segment) == (4, 9, 8)
    assert (kinds.count(Kind.IMPORT_BEGIN), kinds.count(Kind.ROW), kinds.count(Kind.IMPORT_END)) == (4, 10, 4)


@pytest.mark.parametrize("when", ["after_bucket", "before_finish"])
def test_a_copy_that_is_given_up_leaves_nothing(node: Node, when: str) -> None:
    def give_up(*_: object) -> None:
        raise Stopped

    path = node.directory / "copy.rcs"
    with pytest.raises(Stopped):
        write_copy(node.engine, path, copy_header(FileKind.SAVEFILE, IDENTITY, 1, 1, 1, 0), CopyHooks(**{when: give_up}))
    assert not list(node.directory.glob("copy*"))


def test_a_checkpoint_made_while_writers_run_is_a_base(node: Node) -> None:
    stopping = threading.Event()

    def write() -> None:
        number = 0
        while not stopping.is_set() or number < 30:
            node.set(b"k%d" % (number % 20), b"%d" % number)
            number += 1

    writer = threading.Thread(target=write)
    writer.start()
    for _ in range(5):
        node.checkpoint()
    stopping.set()
    writer.join(PATIENCE_S)
    files = list_files(node.directory)
    held = {row.key: row.value for bucket in range(4) for row in _rows(node, bucket)}
    grouped = sources(files)
    node.sync()
    found = survey(grouped)
    assert found.problems == []
    assert all(plan.base is not None for plan in found.plans.values())
    assert {key: row.value for bucket in rebuild(grouped, found.plans).values() for key, row in bucket.live_rows()} == held


def _rows(node: Node, bucket: int) -> list[Record]:
    return [row for row in map(decode, node.engine.copy_bucket(bucket)) if row.kind == Kind.ROW]


# --- the checkpointer


def test_a_checkpoint_follows_each_segment(node: Node, checkpointer: Make) -> None:
    reports = Reports()
    made = checkpointer(FakeLog(), reports)
    made.segment_began(1)
    wait_until(lambda: made.made == 1, "a checkpoint")
    made.segment_began(2)
    wait_until(lambda: made.made == 2, "another")
    names = sorted(path.name for path in node.directory.glob("*.rcc"))
    assert "n1-20231209-0002.rcc" in names
    stats = made.stats()
    assert (stats["checkpoints"], stats["checkpoint_items"], stats["checkpoint"]) == (2, 10, "n1-20231209-0002.rcc")
    assert [level for level, _ in reports if level == "ERROR"] == []


def test_it_takes_its_place_only_when_the_log_is_on_disk(node: Node, checkpointer: Make) -> None:
    log = FakeLog()
    log.gate.clear()
    made = checkpointer(log, Reports())
    made.segment_began(1)
    assert log.asked.wait(PATIENCE_S)
    assert not list(node.directory.glob("*.rcc"))
    log.gate.set()
    wait_until(lambda: made.made == 1, "the checkpoint")
    assert list(node.directory.glob("*.rcc"))


def test_a_log_that_cannot_follow_makes_no_checkpoint(node: Node, checkpointer: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "SYNC_WAIT_S", 0.05)
    monkeypatch.setattr(checkpoints, "SYNC_LOOK_S", 0.01)
    log, reports = FakeLog(), Reports()
    log.answer = False
    made = checkpointer(log, reports)
    made.segment_began(1)
    wait_until(lambda: made.failed == 1, "the failure")
    assert not list(node.directory.glob("*.rcc*"))
    assert reports[0][0] == "ERROR"
    log.answer = True
    made.segment_began(2)
    wait_until(lambda: made.made == 1, "the next one")


@pytest.mark.parametrize("call", ["create", "write", "sync", "rename", "sync directory"])
def test_a_disk_that_fails_is_reported_and_the_next_segment_is_another_chance(
    node: Node, checkpointer: Make, call: str
) -> None:
    disk, reports = ScriptedDisk(), Reports()
    disk.break_call(call)
    made = checkpointer(FakeLog(), reports, disk)
    made.segment_began(1)
    wait_until(lambda: made.failed == 1, "the failure")
    assert ("ERROR", True) in [(level, "Input/output error" in text) for level, text in reports]
    assert not list(node.directory.glob("*.tmp"))
    disk._broken.clear()
    made.segment_began(2)
    wait_until(lambda: made.made == 1, "the next one")


def test_segments_that_begin_meanwhile_are_taken_together(node: Node, checkpointer: Make) -> None:
    log = FakeLog()
    log.gate.clear()
    made = checkpointer(log, Reports())
    made.segment_began(1)
    assert log.asked.wait(PATIENCE_S)
    for number in range(2, 9):
        made.segment_began(number)
    log.gate.set()
    wait_until(lambda: made.made == 2, "both")
    assert (node.directory / "n1-20231209-0008.rcc").exists()


def test_stopping_gives_up_what_is_under_way(node: Node, checkpointer: Make) -> None:
    log, reports = FakeLog(), Reports()
    log.gate.clear()
    log.answer = False
    made = checkpointer(log, reports)
    made.segment_began(1)
    assert log.asked.wait(PATIENCE_S)
    assert not made.stop(0.01)
    log.gate.set()
    assert made.stop(PATIENCE_S)
    assert (made.made, made.failed) == (0, 0)
    assert not list(node.directory.glob("*.rcc*"))


def test_one_that_never_began_can_be_stopped(node: Node) -> None:
    config = CheckpointConfig(node.directory, 7)
    made = Checkpointer(config, node.engine, FakeLog(), node.identity, lambda: NOON_MS, Reports())
    made.segment_began(1)
    assert made.stop(PATIENCE_S)


# --- retention


def days(tmp_path: Path, count: int) -> tuple[Node, dict[int, Items]]:
    """A node that ran for some days, with a checkpoint on each. Returns the state at the end of each day, by its time."""
    node = Node(tmp_path)
    held: Items = {}
    ends: dict[int, Items] = {}
    for day in range(count):
        for number in range(4):
            held[b"k%d" % number] = b"day %d" % day
            node.set(b"k%d" % number, held[b"k%d" % number])
        node.now_ms += 1000
        held[b"late"] = b"day %d" % day
        node.set(b"late", held[b"late"])
        ends[node.now_ms] = dict(held)
        if day < count - 1:
            node.turn_segment()
            held[b"turn"] = b"%d" % (day + 2)
            node.now_ms += 1000
            node.checkpoint()
    return node, ends


def rebuilt(directory: Path, until_ms: int) -> Items:
    grouped = sources(list_files(directory))
    found = survey(grouped, until_ms=until_ms)
    assert found.problems == [], until_ms
    buckets = rebuild(grouped, found.plans, until_ms=until_ms)
    return {key: row.value for bucket in buckets.values() for key, row in bucket.live_rows() if row.value is not None}


@pytest.mark.parametrize("keep_days", [0, 1, 3, 6, 30])
def test_any_state_of_the_days_to_keep_can_be_rebuilt(tmp_path: Path, keep_days: int) -> None:
    node, ends = days(tmp_path, 7)
    before = len(segments_of(tmp_path))
    cutoff_ms = node.now_ms - keep_days * DAY_MS
    removed = node.retain(cutoff_ms)
    for end_ms, items in ends.items():
        if end_ms >= cutoff_ms:
            assert _without_turn(rebuilt(tmp_path, end_ms)) == _without_turn(items)
    newest = ends[max(ends)]
    identity = node.stop()
    assert _without_turn(recover_items(tmp_path, identity)) == _without_turn(newest)
    assert all(not path.exists() for path in removed)
    if keep_days <= 3:
        assert len(segments_of(tmp_path)) <= before - 2
    if keep_days == 30:
        assert [path.suffix for path in removed if path.suffix == ".rcl"] == []


def _without_turn(items: Items) -> Items:
    return {key: value for key, value in items.items() if key != b"turn"}


def test_without_a_checkpoint_nothing_is_removed(node: Node) -> None:
    node.turn_segment()
    before = sorted(os.listdir(node.directory))
    assert retain(node.directory, node.identity, node.now_ms + DAY_MS) == []
    assert sorted(os.listdir(node.directory)) == before


def test_only_what_is_ones_own_and_can_be_read_is_removed(node: Node) -> None:
    node.turn_segment()
    (node.directory / "broken.rcl").write_bytes(b"not a header")
    (node.directory / "broken.rcc").write_bytes(b"")
    (node.directory / "notes.txt").write_bytes(b"mine")
    node.checkpoint()
    assert retain(node.directory, replace(node.identity, data_dir_id="ff" * 16), node.now_ms + DAY_MS) == []
    removed = {path.name for path in node.retain(node.now_ms + DAY_MS)}
    assert "n1-20231209-0001.rcl" in removed
    assert removed.isdisjoint({"broken.rcl", "broken.rcc", "notes.txt"})


def test_older_checkpoints_between_are_removed(tmp_path: Path) -> None:
    node, _ = days(tmp_path, 6)
    node.retain(node.now_ms - 3 * DAY_MS)
    assert len(list(tmp_path.glob("*.rcc"))) == 2
    node.retain(node.now_ms)
    assert len(list(tmp_path.glob("*.rcc"))) == 1
    node.stop()
