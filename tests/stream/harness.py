"""What the stream's tests share: disks that fail or are photographed, a log on a bare stream, waiting without guessing.

What it is: fakes of the disk beside the real one they wrap, and a few lines to put a log together.
"""

from __future__ import annotations

import errno
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

from rcache.engine.reference.ring import Ring
from rcache.records.files import FileHeader
from rcache.records.reader import RecordFile, Tail
from rcache.records.record import Kind, draft, make_sequence, stamp
from rcache.stream.append_log import AppendLog
from rcache.stream.data_dir import Identity
from rcache.stream.disk import Disk
from rcache.stream.log_terms import AppendLogConfig, LogFailure, LogHooks, LogPlace
from rcache.stream.policy import FsyncPolicy

PATIENCE_S = 20.0
DAY_MS = 24 * 3600 * 1000
NOON_MS = 19_700 * DAY_MS + DAY_MS // 2
"""Noon of 2023-12-09, UTC."""

IDENTITY = Identity(cluster_id="c1" * 16, data_dir_id="d1" * 16, node="n1", buckets=4, incarnation=1)

STARTED: list[AppendLog] = []
"""Every log that was put together; what is still here when a test ends is stopped."""


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Look again and again until `condition` holds; fails after PATIENCE_S."""
    deadline = time.monotonic() + PATIENCE_S
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        pause.wait(0.001)


class ScriptedDisk(Disk):
    """The real disk, until it is full (`room` bytes) or a kind of call fails (`break_call`). Remembers its calls."""

    def __init__(self, room: int = 1 << 40) -> None:
        self.calls: list[str] = []
        self.forgotten: list[tuple[int, int]] = []
        self.synced: list[int] = []
        """How long the file was, at each sync."""
        self.room = room
        self._broken: dict[str, BaseException] = {}
        self.gate = threading.Event()
        self.gate.set()

    def break_call(self, name: str, error: BaseException | None = None) -> None:
        """Every later call of this kind fails."""
        self._broken[name] = error or OSError(errno.EIO, os.strerror(errno.EIO))

    def _turn(self, name: str) -> None:
        self.calls.append(name)
        if name in self._broken:
            raise self._broken[name]

    def create(self, path: Path) -> int:
        self._turn("create")
        return super().create(path)

    def write(self, fd: int, *parts: bytes | memoryview) -> None:
        self._turn("write")
        data = b"".join(parts)
        if len(data) > self.room:
            super().write(fd, data[: self.room])
            self.room = 0
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.room -= len(data)
        super().write(fd, data)

    def forget(self, fd: int, start: int, count: int) -> None:
        self.forgotten.append((start, count))
        super().forget(fd, start, count)

    def sync(self, fd: int) -> None:
        self.gate.wait(PATIENCE_S)
        self._turn("sync")
        super().sync(fd)
        self.synced.append(os.fstat(fd).st_size)

    def rename(self, old: Path, new: Path) -> None:
        self._turn("rename")
        super().rename(old, new)

    def remove(self, path: Path) -> None:
        super().remove(path)
        self._turn("remove")

    def close(self, fd: int) -> None:
        super().close(fd)
        self._turn("close")

    def sync_directory(self, path: Path) -> None:
        self._turn("sync directory")
        super().sync_directory(path)


class PhotographedDisk(Disk):
    """Before each call, takes two pictures of the directory: as a killed process would leave it, and as a power cut would:
    only what was fsynced, under the names that were.

    `note` is called first and says what the pictures must show. `pictures`: the two directories and what `note` said. Calls
    of several threads take turns, so that a picture is of one moment.
    """

    def __init__(self, directory: Path, album: Path, note: Callable[[], object]) -> None:
        self._directory = directory
        self._album = album
        self._note = note
        self._lock = threading.RLock()
        self._files: dict[int, int] = {}  # inode: the file it is now (a removed file's inode may be used again at once)
        self._created = 0
        self._synced: dict[int, bytes] = {}  # file: content
        self._names: dict[str, int] = {}  # name on disk: file
        self.pictures: list[tuple[Path, Path, object]] = []
        self.calls: list[str] = []

    def _file(self, inode: int) -> int:
        """The file that has this inode now. What was there before is taken for empty until it is synced."""
        if inode not in self._files:
            self._created += 1
            self._files[inode] = self._created
            self._synced.setdefault(self._created, b"")
        return self._files[inode]

    def photograph(self, call: str) -> None:
        with self._lock:
            noted = self._note()
            killed, cut = (self._album / f"{len(self.pictures):04d}-{kind}" for kind in ("killed", "cut"))
            shutil.copytree(self._directory, killed)
            cut.mkdir()
            for name, file in self._names.items():
                (cut / name).write_bytes(self._synced[file])
            self.pictures.append((killed, cut, noted))
            self.calls.append(call)

    def create(self, path: Path) -> int:
        with self._lock:
            self.photograph("create")
            fd = super().create(path)
            self._created += 1
            self._files[os.fstat(fd).st_ino] = self._created
            self._synced[self._created] = b""
            return fd

    def write(self, fd: int, *parts: bytes | memoryview) -> None:
        data = b"".join(parts)
        with self._lock:
            self.photograph("write")
            super().write(fd, data[: len(data) // 2])
            self.photograph("half a write")
            super().write(fd, data[len(data) // 2 :])

    def sync(self, fd: int) -> None:
        with self._lock:
            self.photograph("sync")
            super().sync(fd)
            self._synced[self._file(os.fstat(fd).st_ino)] = Path(f"/proc/self/fd/{fd}").read_bytes()

    def truncate(self, fd: int, length: int) -> None:
        with self._lock:
            self.photograph("truncate")
            super().truncate(fd, length)

    def rename(self, old: Path, new: Path) -> None:
        with self._lock:
            self.photograph("rename")
            super().rename(old, new)

    def remove(self, path: Path) -> None:
        with self._lock:
            self.photograph("remove")
            super().remove(path)

    def sync_directory(self, path: Path) -> None:
        with self._lock:
            self.photograph("sync directory")
            super().sync_directory(path)
            self._names = {entry.name: self._file(entry.stat().st_ino) for entry in path.iterdir()}


class LogUnderTest:
    """A log on a bare stream. `now_ms` can be set; `failures` and `segments` are what the hooks were told."""

    def __init__(self, directory: Path, disk: Disk | None = None, place: LogPlace | None = None, **config: object) -> None:
        self.now_ms = NOON_MS
        self.stream = Ring(1 << 20)
        self.failures: list[LogFailure] = []
        self.segments: list[int] = []
        self._place = place or LogPlace()
        self._counter = 0
        hooks = LogHooks(self.failures.append, self.segments.append)
        settings = AppendLogConfig(directory, **{"policy": FsyncPolicy.ALWAYS, **config})  # type: ignore[arg-type]
        self.log = AppendLog(settings, self.stream, IDENTITY, lambda: self.now_ms, hooks, disk=disk)
        STARTED.append(self.log)

    def start(self) -> LogUnderTest:
        self.log.start(self._place, 1)
        return self

    def add(self, count: int = 1, size: int = 20) -> list[bytes]:
        """Put records into the stream. Returns them."""
        made = []
        for _ in range(count):
            self._counter += 1
            record = draft(Kind.SET, 0, b"key", bytes(size))
            stamp(record, make_sequence(1, self._counter), self.now_ms)
            assert self.stream.reserve(len(record), time.monotonic_ns() + int(PATIENCE_S * 1e9))
            self.stream.append(bytes(record), len(record))
            made.append(bytes(record))
        return made

    def wait_durable(self) -> None:
        wait_until(lambda: self.stream.durable == self.stream.head, "the disk")

    def wait_written(self, records: int) -> None:
        wait_until(lambda: self.log.stats()["records"] == records, f"{records} records to be written")

    def stop(self) -> None:
        assert self.log.stop(PATIENCE_S)


def segments_of(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.rcl"))


def read_segment(path: Path) -> tuple[FileHeader, list[bytes], Tail]:
    """Header, the body of each block, and how it ends."""
    with RecordFile(path) as file:
        bodies = [block.body for block in file.blocks()]
        return file.header, bodies, file.findings.tail
