"""The disk, as the few calls that writers of files make; tests put a scripted one in its place (a disk that fills up, fails).

Which thread runs it: any; it holds no state. Every call blocks and raises OSError.
What it owns: nothing; a descriptor is its caller's. What it must not know: what is in a file, and what a failure means.
"""

from __future__ import annotations

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

    def write(self, fd: int, data: bytes) -> None:
        """All of `data`. A write that fails half-way leaves its first part in the file."""
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(fd, rest) :]

    def sync(self, fd: int) -> None:
        """Content and length are on the disk when this returns."""
        os.fdatasync(fd)

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
