"""The append log's writer: what is on disk when it says so, segments and their chain, and how it fails."""

from __future__ import annotations

import itertools
import os
import random
import threading
import time
from pathlib import Path

import pytest

from rcache.engine.bodies import NATIVE, REFERENCE, make_engine, why_not_native
from rcache.engine.clock import NodeClock
from rcache.engine.contract import EngineConfig
from rcache.records.files import NO_FILE, FileKind
from rcache.records.reader import Tail
from rcache.stream import append_log, disk, segment
from rcache.stream.append_log import AppendLog
from rcache.stream.log_terms import AppendLogConfig, LogHooks, LogPlace
from rcache.stream.policy import FsyncPolicy
from rcache.stream.segment import day_of, segment_name
from tests.contract.harness import EVERYTHING, Caller
from tests.stream.harness import (
    DAY_MS,
    IDENTITY,
    NOON_MS,
    PATIENCE_S,
    LogUnderTest,
    ScriptedDisk,
    read_segment,
    segments_of,
    wait_until,
)

FOREVER_S = 10_000.0
NEEDS_NATIVE = pytest.mark.skipif(bool(why_not_native()), reason="the native engine was not built here")


def all_records(directory: Path) -> bytes:
    """The records of all segments, in their order."""
    return b"".join(body for path in segments_of(directory) for body in read_segment(path)[1])


# --- writing


def test_a_segment_is_named_headed_and_closed(tmp_path: Path) -> None:
    run = LogUnderTest(tmp_path, place=LogPlace(7, b"p" * 16)).start()
    records = run.add(3)
    run.wait_durable()
    run.stop()
    (path,) = segments_of(tmp_path)
    assert path.name == "n1-20231209-0007.rcl"
    header, bodies, tail = read_segment(path)
    assert (header.kind, header.node, header.number, header.predecessor) == (FileKind.SEGMENT, "n1", 7, b"p" * 16)
    assert (header.cluster_id.hex(), header.data_dir_id.hex()) == (IDENTITY.cluster_id, IDENTITY.data_dir_id)
    assert (header.epoch, header.incarnation, header.buckets, header.created_ms) == (1, 1, 4, NOON_MS)
    assert (b"".join(bodies), tail) == (b"".join(records), Tail.CLOSED)
    assert run.segments == [7]
    assert run.log.next_segment() == 8


@pytest.mark.parametrize("body", [REFERENCE, pytest.param(NATIVE, marks=NEEDS_NATIVE)])
def test_what_an_engine_changes_is_in_the_segments_byte_for_byte(tmp_path: Path, body: str) -> None:
    """The stream goes round many times; nothing is written after its place was given to another record."""
    config = EngineConfig(buckets=4, stripes=2, stream_bytes=1 << 19, value_bytes_max=1 << 16)
    engine = make_engine(body, config, NodeClock())
    copying = engine.stream.open_reader("copy", holds=True)
    kept = AppendLogConfig(tmp_path, FsyncPolicy.INTERVAL, 0.05, 1 << 20)
    log = AppendLog(kept, engine.stream, IDENTITY, lambda: NOON_MS, LogHooks(lambda failure: pytest.fail(str(failure))))
    log.start(LogPlace(), 1)
    engine.open_buckets(range(4), 1, 1, "n1")
    caller, chosen, copied = Caller(engine), random.Random(20261125), []
    for _ in range(600):
        caller.set(b"k%d" % chosen.randrange(50), chosen.randbytes(chosen.choice([10, 1000, 20_000])), budget_ms=60_000)
        batch = copying.take(EVERYTHING, 0.0)
        copied.append(batch.body)
        copying.release(batch.position)
    assert log.stop(PATIENCE_S)
    copying.close()
    assert engine.stream.head > 4 * engine.config.stream_bytes
    assert len(segments_of(tmp_path)) > 2
    assert all_records(tmp_path) == b"".join(copied)
    engine.check()
    engine.close()


@pytest.mark.parametrize("policy", list(FsyncPolicy))
def test_the_writer_steps_back_behind_those_who_serve_unless_they_wait_for_it(tmp_path: Path, policy: FsyncPolicy) -> None:
    run = LogUnderTest(tmp_path, policy=policy).start()
    run.add(3)
    run.wait_written(3)
    (thread,) = (thread for thread in threading.enumerate() if thread.name == append_log.APPEND_LOG_THREAD)
    ours = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    assert thread.native_id is not None
    back = 0 if policy is FsyncPolicy.ALWAYS else append_log.STEP_BACK
    assert os.getpriority(os.PRIO_PROCESS, thread.native_id) == min(ours + back, 19)
    run.stop()
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == ours, "nobody else does"


def test_what_is_on_the_disk_need_not_stay_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what was synced, each part once, in steps."""
    monkeypatch.setattr(segment, "FORGET_BYTES", 1000)
    disk = ScriptedDisk()
    run = LogUnderTest(tmp_path, disk).start()
    for _ in range(20):
        run.add(2, 300)
        run.wait_durable()
    run.stop()
    assert disk.forgotten[0][0] == 0
    for (start, count), (following, _) in itertools.pairwise(disk.forgotten):
        assert count >= 1000
        assert start + count == following
        assert start + count in disk.synced
    assert sum(count for _, count in disk.forgotten) > 10_000
    assert len(disk.forgotten) < disk.calls.count("sync")


def test_the_more_comes_in_the_sooner_the_next_turn(tmp_path: Path) -> None:
    run = LogUnderTest(tmp_path)
    run.log._adapt(append_log.TURN_BYTES + 1)
    assert run.log._linger_s == append_log.LINGER_S / 2
    for _ in range(20):
        run.log._adapt(append_log.TURN_BYTES + 1)
    assert run.log._linger_s == append_log.LINGER_MIN_S
    run.log._adapt(append_log.TURN_BYTES // 2)
    assert run.log._linger_s == append_log.LINGER_MIN_S
    for _ in range(20):
        run.log._adapt(1)
    assert run.log._linger_s == append_log.LINGER_S


def test_what_came_before_the_log_is_not_its_to_write(tmp_path: Path) -> None:
    run = LogUnderTest(tmp_path)
    run.start()
    assert run.stream.durable == run.stream.head
    run.stop()
    assert all_records(tmp_path) == b""


def test_always_a_block_is_synced_before_it_counts_as_durable(tmp_path: Path) -> None:
    scripted = ScriptedDisk()
    run = LogUnderTest(tmp_path, scripted).start()
    scripted.gate.clear()
    run.add()
    run.wait_written(1)
    assert run.stream.durable < run.stream.head
    scripted.gate.set()
    run.wait_durable()
    run.stop()
    begin = ["create", "write", "sync", "rename", "sync directory"]
    assert scripted.calls == [*begin, "write", "sync", "write", "sync", "close"]


def test_what_gathers_while_the_disk_is_busy_is_one_block_and_one_sync(tmp_path: Path) -> None:
    scripted = ScriptedDisk()
    run = LogUnderTest(tmp_path, scripted).start()
    scripted.gate.clear()
    first = run.add()
    run.wait_written(1)
    rest = run.add(50)
    scripted.gate.set()
    run.wait_durable()
    run.stop()
    assert read_segment(segments_of(tmp_path)[0])[1] == [b"".join(first), b"".join(rest)]
    assert scripted.calls.count("sync") == 1 + 2 + 1


def test_a_block_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(append_log, "BATCH_BYTES", 200)
    run = LogUnderTest(tmp_path)
    records = run.add(10)
    run.start()
    run.wait_durable()
    run.stop()
    bodies = read_segment(segments_of(tmp_path)[0])[1]
    assert b"".join(bodies) == b"".join(records)
    assert max(map(len, bodies)) <= 200


def test_at_an_interval_records_are_written_at_once_and_synced_later(tmp_path: Path) -> None:
    scripted = ScriptedDisk()
    run = LogUnderTest(tmp_path, scripted, policy=FsyncPolicy.INTERVAL, interval_s=0.1).start()
    began = time.monotonic()
    scripted.calls.clear()
    run.add(5)
    run.wait_written(5)
    written = scripted.calls.count("sync")
    run.wait_durable()
    assert time.monotonic() - began >= 0.1
    assert written == 0 or time.monotonic() - began > 0.1
    wait_until(lambda: run.log.stats()["records_unsynced"] == 0, "the counts")
    assert scripted.calls.count("sync") == 1
    run.stop()


@pytest.mark.parametrize("policy", [FsyncPolicy.INTERVAL, FsyncPolicy.NEVER])
def test_sync_does_not_wait_for_the_policy(tmp_path: Path, policy: FsyncPolicy) -> None:
    run = LogUnderTest(tmp_path, policy=policy, interval_s=FOREVER_S).start()
    run.add(3)
    run.wait_written(3)
    assert run.stream.durable < run.stream.head
    assert (run.log.stats()["records_unsynced"], run.log.stats()["bytes_not_on_disk"]) == (3, 3 * 63)
    assert run.log.sync(PATIENCE_S)
    assert run.stream.durable == run.stream.head
    assert run.log.sync(PATIENCE_S), "there is nothing to sync, and it does not hang"
    run.stop()


def test_sync_gives_up_in_time(tmp_path: Path) -> None:
    scripted = ScriptedDisk()
    run = LogUnderTest(tmp_path, scripted).start()
    scripted.gate.clear()
    run.add()
    assert not run.log.sync(0.02)
    scripted.gate.set()
    assert run.log.sync(PATIENCE_S)
    run.stop()


@pytest.mark.parametrize("policy", list(FsyncPolicy))
def test_stopping_writes_what_the_stream_still_holds(tmp_path: Path, policy: FsyncPolicy) -> None:
    run = LogUnderTest(tmp_path, policy=policy, interval_s=FOREVER_S).start()
    records = run.add(200)
    run.stop()
    assert run.stream.durable == run.stream.head
    assert all_records(tmp_path) == b"".join(records)
    assert read_segment(segments_of(tmp_path)[-1])[2] is Tail.CLOSED
    assert not run.log.is_alive()
    assert run.stream.stats()["readers"] == 0
    run.stop()


def test_stopping_takes_as_many_blocks_as_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted = ScriptedDisk()
    run = LogUnderTest(tmp_path, scripted).start()
    scripted.gate.clear()
    records = run.add()
    run.wait_written(1)
    monkeypatch.setattr(append_log, "BATCH_BYTES", 200)
    records += run.add(50)
    assert not run.log.stop(0.0), "it is busy"
    scripted.gate.set()
    run.stop()
    assert all_records(tmp_path) == b"".join(records)


def test_the_stream_is_released_as_it_is_written(tmp_path: Path) -> None:
    run = LogUnderTest(tmp_path, policy=FsyncPolicy.NEVER).start()
    records = run.add(200, size=20_000)  # four times what the stream holds
    run.stop()
    assert all_records(tmp_path) == b"".join(records)


def test_a_disk_that_takes_a_few_bytes_at_a_time_gets_them_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_write = os.write
    monkeypatch.setattr(disk.os, "write", lambda fd, data: real_write(fd, data[:7]))
    run = LogUnderTest(tmp_path).start()
    records = run.add(5)
    run.wait_durable()
    run.stop()
    assert all_records(tmp_path) == b"".join(records)


# --- segments


def assert_chain(directory: Path, first: int = 1) -> None:
    """Numbers without a gap, each naming the one before, all closed."""
    before = NO_FILE
    for number, path in enumerate(segments_of(directory), first):
        header, _, tail = read_segment(path)
        assert (header.number, header.predecessor, tail) == (number, before, Tail.CLOSED)
        before = header.file_id


def test_a_full_segment_is_followed_by_the_next(tmp_path: Path) -> None:
    run = LogUnderTest(tmp_path, segment_bytes_max=1000).start()
    records = []
    for _ in range(30):
        records += run.add(3)
        run.wait_durable()
    run.stop()
    assert all_records(tmp_path) == b"".join(records)
    assert len(segments_of(tmp_path)) > 4
    assert_chain(tmp_path)
    assert run.segments == list(range(1, len(segments_of(tmp_path)) + 1))
    assert all(path.stat().st_size < 1000 + 3 * 63 + 48 for path in segments_of(tmp_path)), "a block more at most"


def test_the_day_turns_on_an_idle_log(tmp_path: Path) -> None:
    run = LogUnderTest(tmp_path).start()
    run.now_ms += DAY_MS // 2 - 1
    assert day_of(run.now_ms) == "20231209"
    run.add()
    run.wait_durable()
    assert len(run.segments) == 1
    run.now_ms += 1
    wait_until(lambda: len(run.segments) == 2, "the new day's segment")
    run.stop()
    assert [path.name for path in segments_of(tmp_path)] == ["n1-20231209-0001.rcl", "n1-20231210-0002.rcl"]
    assert_chain(tmp_path)


def test_the_day_turns_on_a_busy_log(tmp_path: Path) -> None:
    run = LogUnderTest(tmp_path, policy=FsyncPolicy.NEVER).start()
    records = []
    for _ in range(3):
        for _ in range(40):
            records += run.add(5)
        run.now_ms += DAY_MS
    records += run.add(5)
    run.wait_written(len(records))
    run.stop()
    assert all_records(tmp_path) == b"".join(records)
    assert_chain(tmp_path)
    assert segments_of(tmp_path)[-1].name.startswith("n1-20231212-")


def test_before_the_next_segment_all_of_the_last_is_on_disk(tmp_path: Path) -> None:
    scripted = ScriptedDisk()
    run = LogUnderTest(tmp_path, scripted, policy=FsyncPolicy.NEVER).start()
    run.add()
    run.wait_written(1)
    scripted.calls.clear()
    run.now_ms += DAY_MS
    wait_until(lambda: len(run.segments) == 2, "the new day's segment")
    end, begin = ["sync", "write", "sync", "close"], ["create", "write", "sync", "rename", "sync directory"]
    assert scripted.calls[:9] == [*end, *begin]
    assert run.stream.durable == run.stream.head
    run.stop()


def test_what_a_crash_left_of_a_segment_is_in_nobodys_way(tmp_path: Path) -> None:
    (tmp_path / "n1-20231209-0001.rcl.tmp").write_bytes(b"half a header")
    run = LogUnderTest(tmp_path).start()
    run.stop()
    assert os.listdir(tmp_path) == ["n1-20231209-0001.rcl"]


def test_names_are_for_people() -> None:
    assert segment_name("n1", "20231209", 12) == "n1-20231209-0012.rcl"
    assert segment_name("n1", "20231209", 123456) == "n1-20231209-123456.rcl"
    assert day_of(0) == "19700101"
