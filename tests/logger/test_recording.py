"""A recording as a whole, without a cluster: what it does when a segment begins, when the day turns, and at the stop."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from rcache.logger import copies, recording
from rcache.logger.copies import BucketReader, Copies, NotCopied
from rcache.logger.recorder import Recorder
from rcache.logger.recording import Recording, RecordingConfig
from rcache.logger.resume import load, resume
from rcache.records.record import heads
from rcache.stream import append_log
from rcache.stream.data_dir import list_files, sources
from rcache.stream.disk import Disk
from rcache.stream.log_terms import LogFailure
from rcache_client import Client
from tests.logger.harness import Model, feed_of, told
from tests.stream.harness import DAY_MS, IDENTITY, NOON_MS, PATIENCE_S, ScriptedDisk, segments_of, wait_until

TAPE = replace(IDENTITY, role="logger", node="tape")


class FakeTime:
    """In ms since 1970."""

    now_ms = NOON_MS


class Feeds:
    """What a client gives who listens; nothing is told by itself."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.router: Any = SimpleNamespace(table=SimpleNamespace(view=None))
        self.told_of: list[int] = []

    def begin(self, _deadline: float) -> None:
        pass

    def await_all(self, _deadline: float, _look: object) -> bool:
        return True

    def stop(self) -> None:
        pass

    close = stop


class Running:
    """A recording of a model. What nodes copy comes from `copy`."""

    def __init__(self, directory: Path, *, keep_days: int = 0, disk: Disk | None = None) -> None:
        self.model = Model(random.Random(1))
        self.failures: list[LogFailure] = []
        self.resumed = resume(directory, TAPE)
        self.directory = directory
        config = RecordingConfig(directory, interval_s=0.01, keep_days=keep_days, stream_bytes=1 << 16)
        client = SimpleNamespace(listen=self._listen)
        self.recording = Recording(config, TAPE, self.resumed, cast("Client[bytes]", client), self.failures.append, disk=disk)

    def _listen(self, recorder: Recorder, *, places: Mapping[int, int]) -> Feeds:
        self.recorder, self.places = recorder, places
        return Feeds(self.model)

    def start(self) -> Running:
        assert self.recording.start(1, 0.0)
        self.feed = feed_of()
        self.recorder.begun(self.feed, {bucket.number: bucket.last for bucket in self.model.buckets})
        return self

    def change(self, count: int = 3) -> None:
        """Some changes of every bucket, which are told."""
        for bucket in self.model.buckets:
            first = len(bucket.history)
            for _ in range(count):
                self.model.change(bucket)
            self.recorder.take(self.feed, told(*(body for _, body in bucket.history[first:])))

    def whole(self) -> None:
        wait_until(lambda: self.recorder.whole == len(self.model.buckets), "all buckets")


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeTime:
    """The wall clock; and whoever looks around does so often."""
    for module, name, value in (
        (append_log, "IDLE_S", 0.01),
        (copies, "LOOK_S", 0.01),
        (copies, "SETBACK_REST_S", 0.01),
        (copies, "REST_MAX_S", 0.0),
    ):
        monkeypatch.setattr(module, name, value)
    clock = FakeTime()
    monkeypatch.setattr(recording, "now_ms", lambda: clock.now_ms)
    return clock


@pytest.fixture
def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    """It keeps a day. Everything is copied from the model."""
    running = Running(tmp_path, keep_days=1)
    monkeypatch.setattr(BucketReader, "pieces", lambda _self, bucket: running.model.copy(running.model.buckets[bucket]))
    yield running.start()
    assert running.recording.stop(PATIENCE_S) == []
    assert running.failures == []
    assert running.recording.copier.errors == 0


def test_it_copies_what_it_lacks_and_goes_on_where_it_was(running: Running) -> None:
    running.whole()
    running.change()
    assert running.recording.stop(PATIENCE_S) == []
    found = resume(running.directory, TAPE)
    assert {bucket: each.place for bucket, each in found.known.items()} == {
        bucket.number: bucket.last for bucket in running.model.buckets
    }
    assert all(each.is_whole for each in found.known.values())
    stats = running.recording.stats()
    assert (stats["changes"], stats["bases"], stats["whole"], stats["gaps"]) == (12, 4, 4, 0)
    again = Running(running.directory)
    assert again.places == {bucket: each.place for bucket, each in found.known.items()}
    assert again.recording.stop(PATIENCE_S) == []


def test_the_day_turns(running: Running, clock: FakeTime) -> None:
    """A segment of its own, what is known as it begins, and a checkpoint."""
    running.whole()
    running.change()
    assert running.recording.log.sync(PATIENCE_S)
    assert list(running.directory.glob("*.rcc")) == []
    clock.now_ms += DAY_MS
    checkpointer = running.recording.checkpointer
    assert checkpointer is not None
    wait_until(lambda: checkpointer.made == 1 and len(segments_of(running.directory)) == 2, "the checkpoint")
    assert [path.name for path in segments_of(running.directory)] == ["tape-20231209-0001.rcl", "tape-20231210-0002.rcl"]
    assert [path.name for path in running.directory.glob("*.rcc")] == ["tape-20231210-0002.rcc"]
    segment, known = load(running.directory)
    assert (segment, {bucket: each.place for bucket, each in known.items()}) == (
        2,
        {bucket.number: bucket.last for bucket in running.model.buckets},
    )


def test_a_checkpoint_waits_for_what_is_told(running: Running, clock: FakeTime, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is copied from nodes, which are ahead of what they told. Were it to take its place, and the cluster to be lost in that
    moment, these files would be in doubt though the log alone had been whole."""
    running.whole()
    bucket = running.model.buckets[0]
    running.model.change(bucket)
    clock.now_ms += DAY_MS
    ahead: list[bool] = []
    has = running.recorder.has
    monkeypatch.setattr(running.recorder, "has", lambda places: ahead.append(not has(places)) or has(places))
    wait_until(lambda: True in ahead, "the checkpoint to wait")
    assert list(running.directory.glob("*.rcc")) == []
    running.recorder.take(running.feed, told(bucket.history[-1][1]))
    wait_until(lambda: len(list(running.directory.glob("*.rcc"))) == 1, "the checkpoint")
    assert len(sources(list_files(running.directory))) == 2


def test_where_checkpoints_were_missed_the_next_start_makes_one(
    tmp_path: Path, clock: FakeTime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was never up at midnight. A checkpoint that cannot be read is as good as none."""
    first = Running(tmp_path)
    monkeypatch.setattr(BucketReader, "pieces", lambda _self, bucket: first.model.copy(first.model.buckets[bucket]))
    first.start().whole()
    assert first.recording.stop(PATIENCE_S) == []
    (tmp_path / "tape-20231209-0001.rcc").write_bytes(b"no checkpoint")
    clock.now_ms += DAY_MS
    second = Running(tmp_path, keep_days=1)
    assert "left out" in second.resumed.warnings[0]
    second.start()
    checkpointer = second.recording.checkpointer
    assert checkpointer is not None
    wait_until(lambda: checkpointer.made == 1, "the checkpoint")
    assert second.recording.stop(PATIENCE_S) == []


def test_a_copy_that_fails_is_begun_anew(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    running.whole()
    whole = BucketReader.pieces
    tries: list[int] = []

    def fail_half_way(reader: BucketReader, bucket: int) -> Iterator[bytes]:
        tries.append(bucket)
        for body in whole(reader, bucket):
            if len(tries) < 3:
                yield b"".join(body[head.start : head.end] for head in list(heads(body))[:1])
                raise NotCopied("its node is gone")
            yield body

    monkeypatch.setattr(BucketReader, "pieces", fail_half_way)
    bucket = running.model.buckets[1]
    for _ in range(2):
        running.model.change(bucket)
    running.recorder.take(running.feed, told(gaps=[(1, 1, bucket.last)]))
    running.whole()
    assert tries == [1, 1, 1]
    assert running.recording.copier.failed == 2


def test_what_was_born_anew_meanwhile_is_not_copied(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """A round takes seconds. A copy that is begun, and given up, would leave a bucket in doubt that is whole by itself."""
    running.whole()
    copied: list[int] = []
    rounds: list[int] = []
    monkeypatch.setattr(BucketReader, "pieces", lambda _self, bucket: copied.append(bucket) or iter(()))
    monkeypatch.setattr(running.recorder, "lacking", lambda: rounds.append(1) or [1])
    wait_until(lambda: len(rounds) > 2, "the copier")
    assert copied == []


def test_it_stops_while_the_disk_hangs(tmp_path: Path) -> None:
    """What waits for room gives up; the log, which cannot be ended, is named."""
    disk = ScriptedDisk()
    hung = Running(tmp_path, disk=disk).start()
    disk.gate.clear()
    hung.change(1)
    telling = threading.Thread(target=lambda: [hung.change(200) for _ in range(20)])
    telling.start()
    wait_until(hung.recorder._order.locked, "the feed")
    try:
        assert hung.recorder.whole >= 0
        assert hung.recording.stop(0.3) == ["the append log"]
        telling.join(PATIENCE_S)
        assert not telling.is_alive()
    finally:
        disk.gate.set()
    assert hung.recording.log.stop(PATIENCE_S)


def test_a_disk_that_is_full_is_told_once(tmp_path: Path) -> None:
    disk = ScriptedDisk()
    full = Running(tmp_path, disk=disk).start()
    disk.room = 0
    full.change()
    wait_until(lambda: bool(full.failures), "the failure")
    full.change()
    assert full.recording.stop(PATIENCE_S) == []
    assert len(full.failures) == 1


def test_what_a_checkpoint_is_given_is_whole_records(running: Running) -> None:
    running.whole()
    running.change(9)
    given = list(Copies(running.recorder, cast(Any, None), running.recording.log, lambda: None).copy_bucket(2))
    assert [len(list(heads(body))) for body in given] == [1] * (len(running.model.buckets[2].state) + 2)
