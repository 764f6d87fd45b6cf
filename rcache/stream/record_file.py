"""Writing a whole file of records (a checkpoint, a savefile) so that it is there completely or not at all.

What it is: a temporary file beside its final place; blocks, an end block, fsync, rename, fsync of the directory.
Which thread runs it: the one that makes the file. What it owns: the temporary file, until `finish` or `abandon`.
What it must not know: which records are in it.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from rcache.records.files import FileHeader, encode_block, encode_end, encode_header
from rcache.stream.disk import Disk

BLOCK_BYTES = 1 << 20
"""Records are gathered to about this much for a block: large enough that checksum and write calls do not count."""

TEMPORARY_SUFFIX = ".tmp"


class RecordFileWriter:
    """Collects records and writes them in blocks. Every call may raise OSError; call `abandon` after one."""

    def __init__(self, path: Path, header: FileHeader, disk: Disk | None = None) -> None:
        self.path = path
        self.records = 0
        self.bytes = 0
        self._disk = disk or Disk()
        self._file_id = header.file_id
        self._temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
        with contextlib.suppress(FileNotFoundError):
            self._disk.remove(self._temporary)  # left by a crash
        self._fd = self._disk.create(self._temporary)
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self._pending_records = 0
        self._block = 0
        self._open = True
        try:
            self._write(encode_header(header))
        except OSError:
            self.abandon()
            raise

    def add(self, body: bytes, records: int = 1) -> None:
        """Take in `records` whole records, one after the other in `body`."""
        self._pending.append(body)
        self._pending_bytes += len(body)
        self.records += records
        self._pending_records += records
        if self._pending_bytes >= BLOCK_BYTES:
            self._flush()

    def finish(self) -> None:
        """The end block; then the file takes its place, on the disk when this returns."""
        if self._pending:
            self._flush()
        self._write(encode_end(self._file_id, self._block, self.bytes))
        self._disk.sync(self._fd)
        self._close()
        self._disk.rename(self._temporary, self.path)
        self._disk.sync_directory(self.path.parent)

    def abandon(self) -> None:
        """Remove what was written; the file that `path` names, if any, stays as it was. Never raises."""
        with contextlib.suppress(OSError):
            self._close()
        with contextlib.suppress(OSError):
            self._disk.remove(self._temporary)

    def _flush(self) -> None:
        body = b"".join(self._pending)
        block = encode_block(self._file_id, self._block, body, self._pending_records, 0)
        self._pending, self._pending_bytes, self._pending_records = [], 0, 0
        self._block += 1
        self._write(block)

    def _write(self, data: bytes) -> None:
        self._disk.write(self._fd, data)
        self.bytes += len(data)

    def _close(self) -> None:
        if self._open:
            self._open = False
            self._disk.close(self._fd)


def new_file_id() -> bytes:
    """A random id: it makes a file's blocks its own."""
    return os.urandom(16)
