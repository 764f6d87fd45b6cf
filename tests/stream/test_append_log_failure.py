"""How the append log fails: once, loudly, with what is lost counted to the record, and nobody left waiting."""

from __future__ import annotations

import errno
import os
import threading
import time
from pathlib import Path

import pytest

from rcache.engine.change_stream import Batch, StreamEnd
from rcache.engine.reference.ring import StreamFailed
from rcache.records.reader import Tail
from rcache.stream import append_log
from rcache.stream.policy import FsyncPolicy
from tests.stream.harness import (
    DAY_MS,
    PATIENCE_S,
    LogUnderTest,
    ScriptedDisk,
    read_segment,
    segments_of,
    wait_until,
)

FOREVER_S = 10_000.0


def assert_failed(run: LogUnderTest, lost: int, lost_bytes: int, why: str) -> None:
    """The log has ended, everybody knows, and the report is exact."""
    wait_until(lambda: not run.log.is_alive(), "the thread to end")
    assert run.failures == [run.log.failure]
    failure = run.failures[0]
    assert (failure.acknowledged_lost, failure.bytes_lost) == (lost, lost_bytes)
    assert why in str(failure)
    assert (str(lost) in str(failure)) if lost else ("nothing that was acknowledged is missing" in str(failure))
    assert why in run.stream.failure
    with pytest.raises(StreamFailed):
        run.stream.reserve(1, 0)
    assert run.log.sync(PATIENCE_S) is (run.stream.durable == run.stream.head)
    assert run.log.stats()["failure"] == str(failure)
    run.stop()
    assert len(run.failures) == 1, "it is reported once"


def test_a_full_disk_with_always_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    scripted = ScriptedDisk()
    run = LogUnderTest(tmp_path, scripted).start()
    durable = run.add(5)
    run.wait_durable()
    scripted.room = 50  # not all of the next block
    before = run.stream.durable
    ends: list[StreamEnd] = []
    deadline_ns = time.monotonic_ns() + int(PATIENCE_S * 1e9)
    waiters = [threading.Thread(target=lambda: ends.append(run.stream.wait_durable(before + 1, deadline_ns))) for _ in range(5)]
    for waiter in waiters:
        waiter.start()
    run.add(3)
    for waiter in waiters:
        waiter.join(PATIENCE_S)
    assert ends == [StreamEnd.FAILED] * 5
    assert_failed(run, 0, 0, "No space left on device")
    assert run.stream.durable == before
    _, bodies, tail = read_segment(segments_of(tmp_path)[0])
    assert (b"".join(bodies), tail) == (b"".join(durable), Tail.TORN)


@pytest.mark.parametrize("policy", [FsyncPolicy.INTERVAL, FsyncPolicy.NEVER])
def test_otherwise_it_says_how_much_that_was_acknowledged_is_not_on_disk(tmp_path: Path, policy: FsyncPolicy) -> None:
    scripted = ScriptedDisk()
    run = LogUnderTest(tmp_path, scripted, policy=policy, interval_s=FOREVER_S).start()
    run.add(4)
    assert run.log.sync(PATIENCE_S)
    unsynced = run.add(3)
    run.wait_written(7)
    scripted.room = 0
    failing = run.add(2)
    assert_failed(run, 5, len(b"".join(unsynced + failing)), "No space left on device")


def test_records_that_were_still_in_the_stream_are_counted(tmp_path: Path) -> None:
    scripted = ScriptedDisk()
    run = LogUnderTest(tmp_path, scripted, policy=FsyncPolicy.INTERVAL, interval_s=0.0).start()
    scripted.gate.clear()
    written = run.add(2)
    run.wait_written(2)
    scripted.break_call("sync")
    waiting = run.add(6)
    scripted.gate.set()
    assert_failed(run, 8, len(b"".join(written + waiting)), "Input/output error")


def test_a_sync_that_fails_is_not_tried_again(tmp_path: Path) -> None:
    scripted = ScriptedDisk()
    run = LogUnderTest(tmp_path, scripted).start()
    scripted.break_call("sync")
    scripted.calls.clear()
    run.add()
    assert_failed(run, 0, 0, "Input/output error")
    assert scripted.calls == ["write", "sync", "close"]
    assert run.stream.durable < run.stream.head


@pytest.mark.parametrize("call", ["create", "rename", "sync directory", "close"])
def test_a_segment_that_cannot_be_begun_ends_the_log(tmp_path: Path, call: str) -> None:
    scripted = ScriptedDisk()
    run = LogUnderTest(tmp_path, scripted, policy=FsyncPolicy.NEVER).start()
    run.add(3)
    run.wait_written(3)
    scripted.break_call(call)
    run.now_ms += DAY_MS
    assert_failed(run, 0, 0, "Input/output error")
    assert read_segment(segments_of(tmp_path)[0])[2] is Tail.CLOSED, "what was written is closed and on disk"


def test_an_end_that_cannot_be_written_is_a_failure(tmp_path: Path) -> None:
    scripted = ScriptedDisk()
    run = LogUnderTest(tmp_path, scripted, policy=FsyncPolicy.NEVER).start()
    run.add(3)
    run.wait_written(3)
    scripted.room = 3
    run.stop()
    assert_failed(run, 0, 0, "closing the append log: No space left on device")  # all before the end block is on the disk


@pytest.mark.parametrize("call", ["create", "write", "sync", "rename", "sync directory"])
def test_a_log_that_cannot_begin_says_so_to_who_starts_it(tmp_path: Path, call: str) -> None:
    scripted = ScriptedDisk()
    scripted.break_call(call)
    run = LogUnderTest(tmp_path, scripted)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match="Input/output error"):
        run.start()
    assert not run.log.is_alive()
    run.stop()
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_bug_of_the_writer_leaves_nobody_waiting(tmp_path: Path) -> None:
    scripted = ScriptedDisk()
    run = LogUnderTest(tmp_path, scripted).start()
    scripted.break_call("write", RuntimeError("a bug"))
    run.add()
    assert_failed(run, 0, 0, "unexpected: RuntimeError")


def test_the_reason_is_there_when_sync_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though counting what is lost takes its time."""
    scripted, came_back = ScriptedDisk(), threading.Event()
    run = LogUnderTest(tmp_path, scripted, policy=FsyncPolicy.NEVER).start()
    scripted.break_call("write", OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    take = run.log._reader.take

    def count_slowly(bytes_max: int, timeout_s: float, linger_s: float = 0.0) -> Batch:
        if bytes_max == append_log.EVERYTHING:
            came_back.wait(0.2)
        return take(bytes_max, timeout_s, linger_s)

    monkeypatch.setattr(run.log._reader, "take", count_slowly)
    run.add()
    assert not run.log.sync(PATIENCE_S)
    came_back.set()
    assert run.log.failure is not None
    run.stop()


@pytest.mark.parametrize(("policy", "lost"), [(FsyncPolicy.ALWAYS, 0), (FsyncPolicy.INTERVAL, 3)])
def test_a_disk_that_hangs_at_the_end_is_a_failure_too(tmp_path: Path, policy: FsyncPolicy, lost: int) -> None:
    """The thread is still there, in a call that does not return; what was acknowledged may not be on disk."""
    disk = ScriptedDisk()
    run = LogUnderTest(tmp_path, disk, policy=policy, interval_s=0.001).start()
    disk.gate.clear()
    run.add(3)
    run.stream.wake_readers()
    wait_until(lambda: run.log.stats()["records"] == 3, "the write")
    assert not run.log.stop(0.05)
    failure = run.log.failure
    assert failure is not None
    assert failure.acknowledged_lost == lost
    assert "did not answer" in str(failure)
    disk.gate.set()
    run.stop()
