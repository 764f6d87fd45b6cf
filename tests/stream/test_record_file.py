"""Whole files of records: there completely or not at all, whatever the disk does meanwhile."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from rcache.records.files import FileHeader, FileKind
from rcache.records.reader import RecordFile, Tail
from rcache.records.record import Kind, draft, stamp
from rcache.stream import record_file
from rcache.stream.disk import Disk
from rcache.stream.record_file import RecordFileWriter, new_file_id

HEADER = FileHeader(FileKind.SAVEFILE, b"c" * 16, b"d" * 16, b"f" * 16, "n1", 1, 2, 3, 8, 4, first_segment=3)


class ScriptedDisk(Disk):
    """The real disk, until a call whose turn has come; then it fails as a full or broken one does. Remembers all calls."""

    def __init__(self, fails_at: int = -1, written: int = 0) -> None:
        self.calls: list[str] = []
        self._fails_at = fails_at
        self._written = written

    def _turn(self, name: str) -> None:
        self.calls.append(name)
        if len(self.calls) - 1 == self._fails_at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def create(self, path: Path) -> int:
        self._turn("create")
        return super().create(path)

    def write(self, fd: int, *parts: bytes | memoryview) -> None:
        data = b"".join(parts)
        try:
            self._turn("write")
        except OSError:
            super().write(fd, data[: self._written])  # the part that still found room
            raise
        super().write(fd, data)

    def sync(self, fd: int) -> None:
        self._turn("sync")
        super().sync(fd)

    def rename(self, old: Path, new: Path) -> None:
        self._turn("rename")
        super().rename(old, new)

    def sync_directory(self, path: Path) -> None:
        self._turn("sync directory")
        super().sync_directory(path)


def record(counter: int, size: int = 10) -> bytes:
    made = draft(Kind.SET, 0, b"key", bytes(size))
    stamp(made, counter, counter)
    return bytes(made)


def write_all(path: Path, disk: Disk | None = None, count: int = 5) -> RecordFileWriter:
    """Write a file as its users do: abandon it after any failure."""
    writer = RecordFileWriter(path, HEADER, disk)
    try:
        for counter in range(1, count + 1):
            writer.add(record(counter))
        writer.finish()
    except OSError:
        writer.abandon()
        raise
    return writer


def read_all(path: Path) -> tuple[list[bytes], Tail]:
    with RecordFile(path) as file:
        bodies = [block.body for block in file.blocks()]
        return bodies, file.findings.tail


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_what_is_written_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "n1.rcs"
    writer = write_all(path)
    with RecordFile(path) as file:
        assert file.header == HEADER
        assert file.size == writer.bytes
    assert read_all(path) == ([b"".join(record(counter) for counter in range(1, 6))], Tail.CLOSED)
    assert writer.records == 5
    assert os.listdir(tmp_path) == ["n1.rcs"]


def test_records_are_gathered_into_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record_file, "BLOCK_BYTES", 2 * len(record(1)))
    write_all(tmp_path / "n1.rcs")
    bodies, tail = read_all(tmp_path / "n1.rcs")
    assert bodies == [record(1) + record(2), record(3) + record(4), record(5)]
    assert tail is Tail.CLOSED


def test_several_records_at_once_are_counted(tmp_path: Path) -> None:
    writer = RecordFileWriter(tmp_path / "n1.rcs", HEADER)
    writer.add(record(1) + record(2), 2)
    writer.finish()
    assert writer.records == 2
    assert read_all(tmp_path / "n1.rcs") == ([record(1) + record(2)], Tail.CLOSED)


def test_a_file_without_records_is_a_whole_file(tmp_path: Path) -> None:
    write_all(tmp_path / "n1.rcs", count=0)
    assert read_all(tmp_path / "n1.rcs") == ([], Tail.CLOSED)


def test_it_is_on_disk_before_it_has_its_name_and_its_name_before_finish_returns(tmp_path: Path) -> None:
    disk = ScriptedDisk()
    write_all(tmp_path / "n1.rcs", disk)
    assert disk.calls == ["create", "write", "write", "write", "sync", "rename", "sync directory"]


@pytest.mark.parametrize("turn", range(6))
@pytest.mark.parametrize("written", [0, 7])
def test_a_disk_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path, turn: int, written: int) -> None:
    path = tmp_path / "n1.rcs"
    path.write_bytes(b"the old file")
    before = open_files()
    with pytest.raises(OSError, match="No space left"):
        write_all(path, ScriptedDisk(turn, written))
    assert path.read_bytes() == b"the old file"
    assert os.listdir(tmp_path) == ["n1.rcs"]
    assert open_files() == before


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "n1.rcs"
    write_all(path, count=9)
    write_all(path, count=1)
    assert read_all(path) == ([record(1)], Tail.CLOSED)


def test_what_a_crash_left_is_in_nobodys_way(tmp_path: Path) -> None:
    (tmp_path / "n1.rcs.tmp").write_bytes(b"half a file")
    write_all(tmp_path / "n1.rcs")
    assert os.listdir(tmp_path) == ["n1.rcs"]


def test_abandoning_removes_what_was_written_and_may_be_done_twice(tmp_path: Path) -> None:
    writer = RecordFileWriter(tmp_path / "n1.rcs", HEADER)
    writer.add(record(1))
    writer.abandon()
    writer.abandon()
    assert os.listdir(tmp_path) == []


def test_file_ids_are_new_each_time() -> None:
    assert len({new_file_id() for _ in range(100)}) == 100
    assert len(new_file_id()) == 16
