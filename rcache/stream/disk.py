"""The disk, as the few calls that writers of files make; tests put a scripted one in its place (a disk that fills up, fails).

Which thread runs it: any; it holds no state. Every call blocks and raises OSError.
What it owns: nothing; a descriptor is its caller's. What it must not know: what is in a file, and what a failure means.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


class Disk:
    """The real disk."""

    def create(self, path: Path) -> int:
        """A new file, for writing; it must not exist."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)

    def open_existing(self, path: Path) -> int:
        """An existing file, for writing at its end."""
        return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)

    def write(self, fd: int, *parts: bytes | memoryview) -> None:
        """All of `parts`, one behind the other, in as few calls as the kernel makes of them: one. A write that fails half-way
        leaves its first part in the file."""
        rest = [memoryview(part) for part in parts if len(part)]
        while rest:
            written = os.writev(fd, rest)
            while rest and written >= len(rest[0]):
                written -= len(rest.pop(0))
            if written:
                rest[0] = rest[0][written:]

    def sync(self, fd: int) -> None:
        """Content and length are on the disk when this returns."""
        os.fdatasync(fd)

    def forget(self, fd: int, start: int, count: int) -> None:
        """So many bytes from `start` on are on the disk and will not be read soon: they need not be kept in memory. Advice, no
        more: where a file system does not take it, nothing is lost."""
        with contextlib.suppress(OSError):
            os.posix_fadvise(fd, start, count, os.POSIX_FADV_DONTNEED)

    def close(self, fd: int) -> None:
        os.close(fd)

    def truncate(self, fd: int, length: int) -> None:
        os.ftruncate(fd, length)

    def rename(self, old: Path, new: Path) -> None:
        """Take the place of `new` if there is one."""
        os.replace(old, new)

    def remove(self, path: Path) -> None:
        path.unlink()

    def sync_directory(self, path: Path) -> None:
        """Names made, renamed and removed in the directory are on the disk when this returns."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def replace_file(disk: Disk, path: Path, data: bytes) -> None:
    """Have `path` hold this, on the disk when it returns; whatever happens, it holds all of this or what it held before. Raises
    OSError, and then which of the two is not known until it is read again."""
    temporary = path.with_suffix(".tmp")
    with contextlib.suppress(FileNotFoundError):
        disk.remove(temporary)
    fd = disk.create(temporary)
    try:
        disk.write(fd, data)
        disk.sync(fd)
    finally:
        disk.close(fd)
    disk.rename(temporary, path)
    disk.sync_directory(path.parent)
