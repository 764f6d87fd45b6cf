"""Checkpoints, the savefile, and retention: what bounds the append log.

What it is: `write_copy` writes all buckets into one file of records; the `Checkpointer` does so in the background at each new
segment; `retain` deletes what a whole checkpoint covers.
Which thread runs it: the checkpointer's own, `checkpoint`, from `start` to `stop`; `write_copy` and `retain` the caller's.
What it owns: the file being written. It may lock: one stripe at a time, inside `copy_bucket`.
What it must not know: requests, when a server stops and why.

Invariants:
1. A checkpoint is renamed to its place only after all its buckets were copied and the log is on disk up to the last of them.
2. Every record after a bucket's copy began is in a segment from `first segment` on, since copying began after that segment.
3. `retain` keeps the newest whole checkpoint, and the newest one older than the time to keep, with all segments from there on.
4. A bucket's part is of one copy, and whole. (It is looked at; it is let go of and filled anew; half of that is copied; the
   filling ends; it is looked at again: both looks find a whole bucket, and half of its rows would pass for it, at the very
   sequence at which the import in the log is whole.)
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

from rcache.cluster.bucket_state import BucketState
from rcache.records.files import FileHeader, FileKind
from rcache.records.reader import DataDamaged
from rcache.records.record import heads
from rcache.stream.data_dir import CHECKPOINT_SUFFIX, SEGMENT_SUFFIX, Identity, ListedFile, read_headers
from rcache.stream.disk import Disk
from rcache.stream.record_file import RecordFileWriter, new_file_id
from rcache.stream.segment import day_of

CHECKPOINT_THREAD = "checkpoint"

SYNC_WAIT_S = 60.0
"""How long a checkpoint waits for the log to be on disk; a disk slower than that has larger problems than a late checkpoint."""

SYNC_LOOK_S = 0.5
"""How often it looks, while it waits for the log, whether the server stops."""

LOOK_EVERY_RECORDS = 1000
"""How often it looks within a bucket: every few milliseconds."""

MS_A_DAY = 24 * 3600 * 1000


IMPORT_WAIT_S = 60.0
IMPORT_LOOK_S = 0.05
"""How long a copy waits for a bucket that is being filled, and how often it looks."""


class Copyable(Protocol):
    """What is copied: an engine, as far as this module needs it."""

    def state(self, bucket: int) -> BucketState: ...

    def times_let_go(self, bucket: int) -> int: ...

    def copy_bucket(self, bucket: int) -> Iterator[bytes]: ...


class Syncable(Protocol):
    """The append log, as far as this module needs it."""

    @property
    def failure(self) -> object:
        """Why it ended, or None."""
        ...

    def sync(self, timeout_s: float) -> bool: ...


class Stopped(Exception):
    """Copying was given up because the server stops."""


@dataclass(frozen=True, slots=True)
class Copied:
    """What a file written by `write_copy` holds. Sizes in bytes."""

    path: Path
    items: int
    bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class CopyHooks:
    """Called while a copy is written; each may raise to give it up.

    `after_bucket` is told how many are done and how long the last took, in seconds; `look` comes now and then within a bucket,
    `before_finish` before the file takes its place.
    """

    after_bucket: Callable[[int, float], None] = lambda _done, _seconds: None
    look: Callable[[], None] = lambda: None
    before_finish: Callable[[], None] = lambda: None


NO_HOOKS = CopyHooks()


def write_copy(
    engine: Copyable, path: Path, header: FileHeader, hooks: CopyHooks = NO_HOOKS, disk: Disk | None = None
) -> Copied:
    """Copy all buckets of `engine` into `path`, there completely or not at all. Raises OSError and what hooks raise. Blocks."""
    began = time.monotonic()
    writer = RecordFileWriter(path, header, disk)
    try:
        for bucket in range(header.buckets):
            bucket_began = time.monotonic()
            for record in _whole_bucket(engine, bucket, hooks):
                writer.add(record)
                if writer.records % LOOK_EVERY_RECORDS == 0:
                    hooks.look()
            hooks.after_bucket(bucket + 1, time.monotonic() - bucket_began)
        hooks.before_finish()
        writer.finish()
    except BaseException:
        writer.abandon()
        raise
    items = writer.records - 2 * header.buckets
    return Copied(path, items, writer.bytes, time.monotonic() - began)


def _whole_bucket(engine: Copyable, bucket: int, hooks: CopyHooks) -> list[bytes]:
    """The records of a bucket, all of it. One that is being filled is waited for: a part of it would pass for the whole, and
    the beginning of its import lies in a segment that this copy lets go of. Raises OSError where that takes too long."""
    deadline = time.monotonic() + IMPORT_WAIT_S
    while True:
        before = _look(engine, bucket)
        if before is not None:
            records = list(engine.copy_bucket(bucket))
            if _look(engine, bucket) == before and (before.is_here or not next(heads(records[0])).sequence):
                return records
        if time.monotonic() > deadline:
            raise OSError(f"bucket {bucket} is still being filled after {IMPORT_WAIT_S:.0f} s")
        hooks.look()
        time.sleep(IMPORT_LOOK_S)


class _Copy(NamedTuple):
    """Which copy of a bucket is here."""

    times_let_go: int
    is_here: bool


def _look(engine: Copyable, bucket: int) -> _Copy | None:
    """Which copy of a bucket is here, or that there is none; None: it is being filled, or let go of, at this moment. Where two
    looks say the same, all between them was of that copy (invariant 4)."""
    times = engine.times_let_go(bucket)
    state = engine.state(bucket)
    if times % 2 or state is BucketState.IMPORTING or engine.times_let_go(bucket) != times:
        return None
    return _Copy(times, state is not BucketState.ABSENT)


def copy_header(kind: FileKind, identity: Identity, epoch: int, number: int, first_segment: int, now_ms: int) -> FileHeader:
    """The header of a checkpoint or savefile."""
    return FileHeader(
        kind=kind,
        cluster_id=bytes.fromhex(identity.cluster_id),
        data_dir_id=bytes.fromhex(identity.data_dir_id),
        file_id=new_file_id(),
        node=identity.node,
        incarnation=identity.incarnation,
        epoch=epoch,
        number=number,
        buckets=identity.buckets,
        created_ms=now_ms,
        first_segment=first_segment,
    )


@dataclass(frozen=True, slots=True)
class CheckpointConfig:
    """Where checkpoints go, and for how many days any state can be rebuilt."""

    directory: Path
    keep_days: int
    disk: Disk = field(default_factory=Disk)


class Checkpointer:
    """Makes a checkpoint whenever a segment has begun, and then lets go of old files. `report` takes a level and a text."""

    def __init__(
        self,
        config: CheckpointConfig,
        engine: Copyable,
        log: Syncable,
        identity: Identity,
        now_ms: Callable[[], int],
        report: Callable[[str, str], None],
    ) -> None:
        self.config = config
        self._engine = engine
        self._log = log
        self._identity = identity
        self._now_ms = now_ms
        self._report = report
        self._wanted = threading.Condition()
        self._segment = 0
        self._done = 0
        self._stopping = False
        self._epoch = 0
        self._thread = threading.Thread(target=self._run, name=CHECKPOINT_THREAD)
        self.made = 0
        self.failed = 0
        self.last: Copied | None = None

    def start(self, epoch: int) -> None:
        self._epoch = epoch
        self._thread.start()

    def segment_began(self, number: int) -> None:
        """Any thread: segment `number` has begun. Never blocks for long."""
        with self._wanted:
            self._segment = number
            self._wanted.notify()

    def stop(self, timeout_s: float) -> bool:
        """Give up what is under way and end the thread. False if that took too long."""
        with self._wanted:
            self._stopping = True
            self._wanted.notify()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def stats(self) -> dict[str, int | float | str]:
        last = self.last
        return {
            "checkpoints": self.made,
            "checkpoints_failed": self.failed,
            "checkpoint": last.path.name if last else "",
            "checkpoint_items": last.items if last else 0,
            "checkpoint_bytes": last.bytes if last else 0,
            "checkpoint_seconds": round(last.seconds, 3) if last else 0.0,
        }

    def _run(self) -> None:
        """The thread's one catch-all: a checkpoint that fails is counted and reported; the log goes on without it."""
        while (segment := self._next()) is not None:
            try:
                self._make(segment)
                self.made += 1
                cutoff_ms = self._now_ms() - self.config.keep_days * MS_A_DAY
                removed = retain(self.config.directory, self._identity, cutoff_ms, self.config.disk)
                if removed:
                    self._report("INFO", "retention: removed " + ", ".join(path.name for path in removed))
            except Stopped:
                self._report("INFO", f"checkpoint at segment {segment} given up: stopping")
            except Exception as error:
                self.failed += 1
                self._report("ERROR", f"checkpoint at segment {segment} failed: {error!r}")

    def _next(self) -> int | None:
        with self._wanted:
            self._wanted.wait_for(lambda: self._stopping or self._segment > self._done)
            self._done = self._segment
            return None if self._stopping else self._segment

    def _make(self, segment: int) -> None:
        now_ms = self._now_ms()
        header = copy_header(FileKind.CHECKPOINT, self._identity, self._epoch, segment, segment, now_ms)
        path = self.config.directory / f"{self._identity.node}-{day_of(now_ms)}-{segment:04d}{CHECKPOINT_SUFFIX}"
        hooks = CopyHooks(lambda _done, took_s: self._pause(took_s), lambda: self._pause(0.0), self._wait_for_log)
        self.last = write_copy(self._engine, path, header, hooks, self.config.disk)
        made = self.last
        self._report("INFO", f"checkpoint {path.name}: {made.items} items, {made.bytes} bytes, {made.seconds:.1f} s")

    def _pause(self, took_s: float) -> None:
        """Copy half of the time only, so that requests hardly feel it. Raises `Stopped`."""
        with self._wanted:
            if self._wanted.wait_for(lambda: self._stopping, took_s):
                raise Stopped

    def _wait_for_log(self) -> None:
        deadline = time.monotonic() + SYNC_WAIT_S
        while not self._log.sync(SYNC_LOOK_S):  # invariant 1
            self._pause(0.0)
            if self._log.failure is not None:
                raise OSError(f"the append log failed: {self._log.failure}")
            if time.monotonic() > deadline:
                raise OSError(f"the append log was not on disk within {SYNC_WAIT_S:.0f} s")


def retain(directory: Path, identity: Identity, cutoff_ms: int, disk: Disk | None = None) -> list[Path]:
    """Remove segments and checkpoints that no state since `cutoff_ms` needs (invariant 3). Returns what was removed."""
    own: list[ListedFile] = []
    for path in sorted(directory.iterdir()):
        if path.suffix in (SEGMENT_SUFFIX, CHECKPOINT_SUFFIX):
            try:
                own += [file for file in read_headers([path]) if file.header.data_dir_id.hex() == identity.data_dir_id]
            except (DataDamaged, FileNotFoundError):
                continue  # recovery speaks of it; retention leaves alone what it cannot read
    checkpoints = [file for file in own if file.header.kind is FileKind.CHECKPOINT]
    old = [file for file in checkpoints if file.header.created_ms <= cutoff_ms]
    if not checkpoints:
        return []
    newest = max(checkpoints, key=lambda file: file.header.number)
    base = max(old, key=lambda file: file.header.number, default=None)
    oldest_kept = base.header.first_segment if base else 0
    kept = {newest.path, base.path if base else newest.path}
    removable = [
        file.path
        for file in own
        if (file.header.number < oldest_kept if file.header.kind is FileKind.SEGMENT else file.path not in kept)
    ]
    disk = disk or Disk()
    for path in removable:
        with contextlib.suppress(FileNotFoundError):
            disk.remove(path)
    return removable
