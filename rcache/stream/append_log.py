"""The append log: a thread that takes changes from the stream and writes them to segments.

What it is: the writer of segments (`segment` has the file). It gathers what the stream holds into blocks, writes, makes durable
as the policy says, and begins a new segment when the day turns (UTC) or a segment is full.
Which thread runs it: its own, `append-log`, from `start` to `stop`. Started and joined by the service.
What it owns: the current segment. It may lock: the stream (never while it does I/O).
What it must not know: engines, requests, checkpoints (it only tells that a segment began).

A second stream, `AppliedStream`, brings what was applied here as a backup. A bucket's records come by the one or by the other,
and by which changes only after `pass_by` says that all of the first are written; so the log has them in the bucket's order.

It guarantees: what `stream.durable` says is on the disk is on the disk; a write or fsync that fails ends the log, wakes every
waiter with FAILED and is reported once, with what is not on disk. It does not offer: going on after a failure. After a failed
fsync the kernel may have dropped the pages, so only a restart from what is on disk can be right.

Invariants:
1. A block holds whole records in stream order.
2. Segment N+1 is begun only after segment N was closed with its end block and fsynced; it names N's file id.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from rcache.engine.change_stream import Batch, ChangeStream, StreamEnd
from rcache.records.files import FileHeader, FileKind
from rcache.stream.applied import AppliedStream
from rcache.stream.data_dir import Identity
from rcache.stream.disk import Disk
from rcache.stream.log_terms import AppendLogConfig, LogFailure, LogHooks, LogPlace
from rcache.stream.policy import FsyncPolicy
from rcache.stream.record_file import new_file_id
from rcache.stream.segment import SegmentWriter, day_of

APPEND_LOG_THREAD = "append-log"

BATCH_BYTES = 4 << 20
"""A block gathers at most about this much: one write the disk takes in at full rate, and little to lose in a torn one."""

LINGER_S = 0.005
"""How long the writer waits for more after the first record, unless somebody waits for the disk. It turns a wake-up for every
request into two hundred a second, which is what makes the log hardly felt."""

STEP_BACK = 5
"""By how much the writer's nice value is above the process's (a third of a worker's weight): decision 0006 has the numbers."""
NICE_MAX = 19

LINGER_MIN_S = 0.0005
TURN_BYTES = 256 << 10
"""Where more than this comes in a turn the next one comes sooner (down to LINGER_MIN_S), so that none takes a core from a
worker for long: half a millisecond of it is a pause that every connection feels. Measured: decision 0006."""

EVERYTHING = 1 << 62
"""As many bytes as there are."""

IDLE_S = 0.5
"""How long the writer sleeps at most: it looks at the day and the fsync interval this often."""


@dataclass(slots=True)
class _Counts:
    """What was written, and what of it is not on disk yet."""

    records: int = 0
    bytes: int = 0
    blocks: int = 0
    syncs: int = 0
    segments: int = 0
    unsynced_records: int = 0
    unsynced_bytes: int = 0


class AppendLog:
    """Writes the change stream to segments. `now_ms` is the node's clock."""

    def __init__(  # noqa: PLR0913  what it writes, for whom, and two that are for tests and backups
        self,
        config: AppendLogConfig,
        stream: ChangeStream,
        identity: Identity,
        now_ms: Callable[[], int],
        hooks: LogHooks,
        *,
        disk: Disk | None = None,
        applied: AppliedStream | None = None,
    ) -> None:
        self.config = config
        self.policy = config.policy
        self._stream = stream
        self._applied = applied or AppliedStream(0)
        self._identity = identity
        self._now_ms = now_ms
        self._hooks = hooks
        self._disk = disk or Disk()
        self._reader = stream.open_reader("append-log", holds=True)
        self._counts = _Counts()
        self._segment: SegmentWriter | None = None
        self._place = LogPlace()
        self._epoch = 0
        self._position = stream.head
        self._applied_position = self._applied.head
        self._passed = threading.Condition()
        self._synced_at = time.monotonic()
        self._in_hand: Batch | None = None
        self._lock = threading.Lock()
        self._sync_up_to = self._applied_sync_up_to = 0
        self._linger_s = LINGER_S
        self._round_began = 0.0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=APPEND_LOG_THREAD)
        self.failure: LogFailure | None = None

    # --- for the service

    def start(self, place: LogPlace, epoch: int) -> None:
        """Begin the first segment of this start and the thread. Raises OSError."""
        self._place, self._epoch = place, epoch
        try:
            self._begin_segment()
        except OSError:
            self._let_go()
            raise
        self._stream.set_durable(self._position)  # what came before this log is not its to write
        self._thread.start()

    def sync(self, timeout_s: float) -> bool:
        """Block until everything that both streams hold now is on disk. False if that failed or took too long."""
        position, applied = self._stream.head, self._applied.head
        with self._lock:
            self._sync_up_to = max(self._sync_up_to, position)
            self._applied_sync_up_to = max(self._applied_sync_up_to, applied)
        self._stream.wake_readers()
        deadline_ns = time.monotonic_ns() + int(timeout_s * 1e9)
        end = self._stream.wait_durable(position, deadline_ns)
        if end is StreamEnd.REACHED:
            end = self._applied.wait_durable(applied, deadline_ns)
        if end is StreamEnd.FAILED:
            self._thread.join(timeout_s)  # it is about to end; then `failure` says why
        return end is StreamEnd.REACHED

    def pass_by(self, timeout_s: float) -> bool:
        """Block until everything that both streams hold now is written, on disk or not. False if that failed or took too
        long."""
        deadline = time.monotonic() + timeout_s
        position = self._stream.head
        if self._applied.wait_written(self._applied.head, int(deadline * 1e9)) is not StreamEnd.REACHED:
            return False
        with self._passed:
            while self._position < position and self.failure is None:
                self._stream.wake_readers()
                left_s = deadline - time.monotonic()
                if left_s <= 0 or (not self._passed.wait(min(left_s, IDLE_S)) and not self._thread.is_alive()):
                    break
        return self._position >= position

    def stop(self, timeout_s: float) -> bool:
        """Write what the stream still holds, close the segment, end the thread. False if that took too long: then `failure`
        says what may not be on disk, and the thread is still there."""
        self._stopping.set()
        self._stream.wake_readers()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        if self._thread.is_alive():
            self.failure = self._late(timeout_s)
            return False
        return True

    def set_policy(self, policy: FsyncPolicy) -> None:
        """Any thread: make the log durable by another policy from now on."""
        self.policy = policy
        self._applied.set_always(policy is FsyncPolicy.ALWAYS)
        self._stream.wake_readers()

    def hangs(self, seconds: float) -> bool:
        """Whether one call to the disk has been under way for longer than this."""
        began = self._round_began
        return self.failure is None and began > 0.0 and time.monotonic() - began > seconds

    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def next_segment(self) -> int:
        """The number the next segment will have; for a savefile written after `stop`."""
        return self._segment.header.number + 1 if self._segment else self._place.number

    def stats(self) -> dict[str, int | str]:
        """Counters since the start, and the current segment. `bytes_not_on_disk` counts what is still in the stream, too."""
        counts, segment = self._counts, self._segment
        return {
            "fsync": self.policy.value,
            "records": counts.records,
            "bytes": counts.bytes,
            "blocks": counts.blocks,
            "fsyncs": counts.syncs,
            "segments": counts.segments,
            "records_unsynced": counts.unsynced_records,
            "bytes_not_on_disk": self._stream.head - self._stream.durable,
            "segment": segment.path.name if segment else "",
            "segment_number": segment.header.number if segment else self._place.number,  # while one turns: the next
            "failure": str(self.failure) if self.failure else "",
        }

    # --- the thread

    def _run(self) -> None:
        """The thread's one catch-all: whatever ends the log, no writer may go on waiting for it."""
        doing = "writing the append log"
        if self.policy is not FsyncPolicy.ALWAYS:
            _step_back()
        try:
            while not self._stopping.is_set():
                self._round(IDLE_S)
            doing = "closing the append log"
            while self._round(0.0):
                pass
            self._close_segment()
            self._stream.set_durable(self._position)
            self._applied.set_durable(self._applied_position)
        except OSError as error:
            self._fail(error, doing)
        except BaseException as error:
            self._fail(OSError(f"unexpected: {error!r}"), doing)
            raise
        finally:
            self._reader.close()

    def _round(self, timeout_s: float) -> bool:
        """One turn: take, write, make durable, look at the day. Returns whether there was anything."""
        linger_s = 0.0 if self.policy is FsyncPolicy.ALWAYS or not timeout_s else self._linger_s
        batch = self._in_hand = self._reader.take(BATCH_BYTES, self._timeout_s(timeout_s), linger_s, view=True)
        applied = self._applied.take(BATCH_BYTES)
        self._round_began = time.monotonic()
        if self._segment_is_over():
            self._next_segment()
        if batch.count:
            self._write(batch)
            with self._passed:
                self._position = batch.position
                self._passed.notify_all()
        if applied.count:
            self._write(applied)
            self._applied_position = applied.position
            self._applied.set_written(applied.position)
        if self._sync_is_due():
            self._sync()
        self._round_began = 0.0
        if batch.count:
            self._reader.release(batch.position)
        if batch.count + applied.count == 0:
            return False
        self._adapt(len(batch.body) + len(applied.body))
        return True

    def _adapt(self, taken: int) -> None:
        """Linger for about TURN_BYTES."""
        if taken > TURN_BYTES:
            self._linger_s = max(LINGER_MIN_S, self._linger_s / 2)
        elif taken < TURN_BYTES // 4:
            self._linger_s = min(LINGER_S, self._linger_s * 2)

    def _timeout_s(self, timeout_s: float) -> float:
        """Not past the next fsync, if one is owed."""
        if self.policy is FsyncPolicy.INTERVAL and self._counts.unsynced_records:
            return max(0.0, min(timeout_s, self._synced_at + self.config.interval_s - time.monotonic()))
        return timeout_s

    def _write(self, batch: Batch) -> None:
        segment = self._segment
        assert segment is not None
        counts = self._counts
        if not counts.unsynced_records:
            self._synced_at = max(self._synced_at, time.monotonic())
        counts.unsynced_records += batch.count
        counts.unsynced_bytes += len(batch.body)
        self._in_hand = None  # it is counted now
        counts.bytes += segment.write(batch)  # invariant 1
        counts.records += batch.count
        counts.blocks += 1

    def _sync_is_due(self) -> bool:
        if not self._counts.unsynced_records:
            return False
        asked = self._sync_up_to > self._stream.durable or self._applied_sync_up_to > self._applied.durable
        if asked or self.policy is FsyncPolicy.ALWAYS:
            return True
        due = time.monotonic() >= self._synced_at + self.config.interval_s
        return self.policy is FsyncPolicy.INTERVAL and due

    def _sync(self) -> None:
        assert self._segment is not None
        self._segment.sync()
        self._note_synced()
        self._segment.forget()

    def _note_synced(self) -> None:
        self._counts.syncs += 1
        self._counts.unsynced_records = self._counts.unsynced_bytes = 0
        self._synced_at = time.monotonic()
        self._stream.set_durable(self._position)
        self._applied.set_durable(self._applied_position)

    # --- segments

    def _segment_is_over(self) -> bool:
        segment = self._segment
        assert segment is not None
        return segment.size >= self.config.segment_bytes_max or segment.day != day_of(self._now_ms())

    def _next_segment(self) -> None:
        self._close_segment()
        self._begin_segment()

    def _begin_segment(self) -> None:
        header = FileHeader(
            kind=FileKind.SEGMENT,
            cluster_id=bytes.fromhex(self._identity.cluster_id),
            data_dir_id=bytes.fromhex(self._identity.data_dir_id),
            file_id=new_file_id(),
            node=self._identity.node,
            incarnation=self._identity.incarnation,
            epoch=self._epoch,
            number=self._place.number,
            buckets=self._identity.buckets,
            created_ms=self._now_ms(),
            predecessor=self._place.predecessor,
        )
        self._segment = SegmentWriter(self._disk, self.config.directory, header)
        self._segment.begin()
        self._counts.segments += 1
        self._hooks.on_segment(header.number)

    def _close_segment(self) -> None:
        """Invariant 2: the end block, fsync, close."""
        segment = self._segment
        assert segment is not None
        if self._counts.unsynced_records:
            self._sync()
        segment.end()
        self._note_synced()
        self._place = LogPlace(segment.header.number + 1, segment.header.file_id)
        self._segment = None
        segment.close()

    def _let_go(self) -> None:
        """Close the segment as it is, after a failure."""
        if self._segment is not None:
            with contextlib.suppress(OSError):
                self._segment.close()

    def _fail(self, error: OSError, doing: str) -> None:
        """The end of the log: say so to everyone, once. Acknowledged is what did not have to wait for the disk."""
        why = f"{doing}: {error.strerror or error}"
        self._stream.fail(why)  # first: what is counted below must be all there will be
        self._applied.fail(why)
        counts = self._counts
        lost = lost_bytes = 0
        if self.policy is not FsyncPolicy.ALWAYS:
            waiting = [self._reader.take(EVERYTHING, 0.0), *([self._in_hand] if self._in_hand else [])]
            lost = counts.unsynced_records + sum(batch.count for batch in waiting)
            lost_bytes = counts.unsynced_bytes + sum(len(batch.body) for batch in waiting)
        self.failure = LogFailure(error, doing, lost, lost_bytes)
        self._let_go()
        self._hooks.on_failure(self.failure)

    def _late(self, timeout_s: float) -> LogFailure:
        """What it means that the thread did not end: it hangs in a call to the disk. Counted without touching its cursor."""
        late = TimeoutError(errno.ETIMEDOUT, f"the disk did not answer within {timeout_s:g} s")
        always = self.policy is FsyncPolicy.ALWAYS
        in_hand = self._in_hand.count if self._in_hand else 0
        records = 0 if always else self._counts.unsynced_records + in_hand
        return LogFailure(late, "closing the append log", records, 0 if always else self._stream.head - self._stream.durable)


def _step_back() -> None:
    """This thread is less urgent than those that serve: what it writes has waited for milliseconds anyway, and the stream holds
    what comes meanwhile. With fsync always nobody steps back: callers wait for the disk."""
    thread = threading.get_native_id()
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, thread, min(NICE_MAX, os.getpriority(os.PRIO_PROCESS, thread) + STEP_BACK))
