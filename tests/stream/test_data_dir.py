"""The data directory: whose it is, that only one process uses it, and which files belong together."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from rcache.records.files import FileHeader, FileKind, encode_end, encode_header
from rcache.records.reader import DataDamaged, HeaderCut
from rcache.stream.data_dir import IDENTITY_FILE, LOCK_FILE, DataDir, DataDirLocked, Identity, list_files, read_headers, sources
from rcache.stream.disk import Disk


class FullDisk(Disk):
    """Takes nothing more."""

    def write(self, fd: int, *parts: bytes | memoryview) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def header_of(number: int, kind: FileKind = FileKind.SEGMENT, node: str = "n1", directory: bytes = b"d" * 16) -> FileHeader:
    return FileHeader(kind, b"c" * 16, directory, os.urandom(16), node, 1, 1, number, 8, 1000 + number)


def put(folder: Path, name: str, header: FileHeader) -> Path:
    path = folder / name
    path.write_bytes(encode_header(header) + encode_end(header.file_id, 0, 0))
    return path


def open_once(path: Path) -> Identity | None:
    directory = DataDir(path)
    directory.close()
    return directory.identity


def test_a_new_directory_is_made_and_belongs_to_nobody(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "down"
    assert open_once(path) is None
    assert path.stat().st_mode & 0o027 == 0


def test_an_identity_is_made_once_and_stays(tmp_path: Path) -> None:
    directory = DataDir(tmp_path)
    made = directory.be("n1", 64)
    directory.close()
    assert (made.node, made.buckets, made.epoch, made.incarnation) == ("n1", 64, 0, 0)
    assert len(bytes.fromhex(made.cluster_id)) == len(bytes.fromhex(made.data_dir_id)) == 16
    again = DataDir(tmp_path)
    try:
        assert again.identity == made
        assert again.be("n1", 4096) == made, "the number of buckets counts at the first start only"
    finally:
        again.close()


def test_it_does_not_become_another_nodes(tmp_path: Path) -> None:
    directory = DataDir(tmp_path)
    try:
        directory.be("n1", 64)
        with pytest.raises(ValueError, match="belongs to node 'n1', not 'n2'"):
            directory.be("n2", 64)
    finally:
        directory.close()


def test_incarnation_and_epoch_are_on_disk_when_their_begin_returns(tmp_path: Path) -> None:
    directory = DataDir(tmp_path)
    try:
        directory.be("n1", 64)
        assert directory.begin_incarnation().incarnation == 1
        directory.begin_serving(7)
        stored = json.loads((tmp_path / IDENTITY_FILE).read_text())
        assert (stored["incarnation"], stored["epoch"], stored["format"]) == (1, 7, 1)
    finally:
        directory.close()
    identity = open_once(tmp_path)
    assert identity is not None
    assert (identity.incarnation, identity.epoch) == (1, 7)


def test_an_epoch_never_goes_back(tmp_path: Path) -> None:
    directory = DataDir(tmp_path)
    try:
        directory.be("n1", 64)
        directory.begin_serving(7)
        with pytest.raises(AssertionError):
            directory.begin_serving(6)
    finally:
        directory.close()


def test_a_full_disk_leaves_the_old_identity(tmp_path: Path) -> None:
    directory = DataDir(tmp_path)
    made = directory.be("n1", 64)
    directory.close()
    full = DataDir(tmp_path, FullDisk())
    try:
        with pytest.raises(OSError, match="No space left"):
            full.begin_serving(1)
        assert full.identity == made
    finally:
        full.close()
    assert open_once(tmp_path) == made


def test_a_second_one_is_locked_out_and_told_by_whom(tmp_path: Path) -> None:
    directory = DataDir(tmp_path)
    try:
        with pytest.raises(DataDirLocked, match=f"in use by process {os.getpid()}"):
            DataDir(tmp_path)
    finally:
        directory.close()
    open_once(tmp_path)


def test_the_lock_dies_with_its_holder(tmp_path: Path) -> None:
    program = (
        "import os, sys; from pathlib import Path; from rcache.stream.data_dir import DataDir;"
        "DataDir(Path(sys.argv[1])); print('locked', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        with pytest.raises(DataDirLocked, match=f"process {holder.pid}"):
            DataDir(tmp_path)
        holder.kill()
    open_once(tmp_path)
    assert (tmp_path / LOCK_FILE).exists()


@pytest.mark.parametrize(
    "content",
    ["", "not JSON", "[]", "{}", '{"format": 2}', '{"format": 1}', '{"format": 1, "cluster_id": "", "more": 1}'],
)
def test_an_identity_that_cannot_be_read_is_damage_and_leaves_no_lock(tmp_path: Path, content: str) -> None:
    (tmp_path / IDENTITY_FILE).write_text(content)
    for _ in range(2):
        with pytest.raises(DataDamaged, match=IDENTITY_FILE):
            DataDir(tmp_path)


def test_a_format_of_the_future_is_refused_although_it_reads_well(tmp_path: Path) -> None:
    directory = DataDir(tmp_path)
    directory.be("n1", 64)
    directory.close()
    path = tmp_path / IDENTITY_FILE
    path.write_text(path.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(DataDamaged, match="format is not 1"):
        DataDir(tmp_path)


def test_files_are_listed_by_kind_and_number_whatever_their_names(tmp_path: Path) -> None:
    numbers = {"z.rcl": 1, "n1-20240501-0010.rcl": 2, "a.rcl": 10}
    for name, number in numbers.items():
        put(tmp_path, name, header_of(number))
    put(tmp_path, "n1.rcs", header_of(1, FileKind.SAVEFILE))
    put(tmp_path, "n1-1.rcc", header_of(5, FileKind.CHECKPOINT))
    for other in ("n1.rcs.tmp", "lock", "node.json", "notes.txt"):
        (tmp_path / other).write_text("not a file of records")
    listed = list_files(tmp_path)
    assert [file.path.name for file in listed] == ["z.rcl", "n1-20240501-0010.rcl", "a.rcl", "n1-1.rcc", "n1.rcs"]
    assert all(file.size == file.path.stat().st_size for file in listed)


def test_a_file_whose_header_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = put(tmp_path, "n1.rcl", header_of(1))
    path.write_bytes(b"X" + path.read_bytes()[1:])
    with pytest.raises(DataDamaged, match=r"n1\.rcl"):
        list_files(tmp_path)
    path.write_bytes(b"")
    with pytest.raises(HeaderCut):
        list_files(tmp_path)


def test_sources_are_one_for_each_log_and_one_for_every_other_file(tmp_path: Path) -> None:
    mine = [put(tmp_path, f"{name}.rcl", header_of(number)) for number, name in ((1, "c"), (2, "a"), (11, "b"))]
    theirs = put(tmp_path, "n2.rcl", header_of(1, node="n2", directory=b"e" * 16))
    saved = put(tmp_path, "n1.rcs", header_of(1, FileKind.SAVEFILE))
    checkpoint = put(tmp_path, "n1.rcc", header_of(2, FileKind.CHECKPOINT))
    found = sources(reversed(list_files(tmp_path)))
    assert {source.paths for source in found} == {tuple(mine), (theirs,), (saved,), (checkpoint,)}


def test_logs_of_the_same_node_in_another_directory_are_another_log(tmp_path: Path) -> None:
    put(tmp_path, "a.rcl", header_of(1))
    put(tmp_path, "b.rcl", header_of(2, directory=b"e" * 16))
    assert len(sources(list_files(tmp_path))) == 2


def test_a_header_is_read_as_it_was_written(tmp_path: Path) -> None:
    header = replace(header_of(3), first_segment=9)
    (file,) = read_headers([put(tmp_path, "x.rcl", header)])
    assert file.header == header
