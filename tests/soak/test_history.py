"""The history's format: what is written is read again, from many writers at once, and damage is told or tolerated."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from soak.history import DamagedHistory, History, HistoryWriter, Op, Operation, Outcome, from_line, read_history, to_line

OK, FAIL, UNKNOWN = Outcome
ROOT = Path(__file__).parents[2]

EVERY = [
    Operation("c1", Op.GET, "k", "v", 1, 2, OK),
    Operation("c1", Op.GET, "k", None, 3, 4, OK),
    Operation("c1", Op.GET, "k", None, 5, 6, UNKNOWN),
    Operation("c1", Op.SET, "schlüssel\n", "\ud800 \x00 ☃", 7, 8, FAIL),
    Operation("c1", Op.SET, "k", "v", 9, None, UNKNOWN),
    Operation("c1", Op.DELETE, "k", None, 10, 10, OK),
    Operation("c1", Op.DELETE, "k", None, 11, 12, OK, applied=False),
    Operation("c2", Op.CAS, "k", "w", 13, 14, OK, expected=None, applied=True),
    Operation("c2", Op.CAS, "k", "x", 15, 16, OK, expected="v", applied=False),
    Operation("c2", Op.CAS, "k", "x", 17, 18, UNKNOWN, expected="v"),
    Operation("c2", Op.INCREMENT, "n", "-3", 19, 20, OK, delta=-3),
    Operation("c2", Op.INCREMENT, "n", None, 21, 22, UNKNOWN, delta=1),
]

SET_LINE = b'{"client":"c","op":"set","key":"k","value":"v","start_ns":1,"end_ns":2,"outcome":"ok"}\n'


def test_a_line_is_as_the_issue_names_its_fields() -> None:
    assert to_line(Operation("c", Op.SET, "k", "v", 1, 2, OK)) == SET_LINE
    cas = json.loads(to_line(Operation("c", Op.CAS, "k", "v", 1, 2, OK, expected=None, applied=True)))
    assert cas.keys() == {"client", "op", "key", "value", "start_ns", "end_ns", "outcome", "expected", "applied"}


@pytest.mark.parametrize("operation", EVERY, ids=lambda each: each.text())
def test_what_is_written_is_read(operation: Operation) -> None:
    line = to_line(operation)
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert from_line(line) == operation


def test_a_file_is_read_whole(tmp_path: Path) -> None:
    with HistoryWriter(tmp_path / "h") as writer:
        for operation in EVERY:
            writer.write(operation)
    finished = [each for each in EVERY if each.end_ns is not None]
    assert read_history([tmp_path / "h"]) == History([*finished, EVERY[4]], [])


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (Operation("c", Op.GET, "k", "v", 1, 2, UNKNOWN), "has no value"),
        (Operation("c", Op.GET, "k", "v", 1, 2, FAIL), "has no value"),
        (Operation("c", Op.SET, "k", None, 1, 2, OK), "set without a value"),
        (Operation("c", Op.DELETE, "k", "v", 1, 2, OK), "has no value"),
        (Operation("c", Op.CAS, "k", "v", 1, 2, OK), "says whether it applied"),
        (Operation("c", Op.CAS, "k", "v", 1, 2, UNKNOWN, applied=True), "applied is for"),
        (Operation("c", Op.SET, "k", "v", 1, 2, OK, applied=True), "has no applied"),
        (Operation("c", Op.GET, "k", "v", 1, 2, OK, expected="v"), "has no expected"),
        (Operation("c", Op.SET, "k", "v", 1, 2, OK, delta=1), "has no delta"),
        (Operation("c", Op.INCREMENT, "k", "1", 1, 2, OK), "delta is a whole number"),
        (Operation("c", Op.INCREMENT, "k", "01", 1, 2, OK, delta=1), "is a number"),
        (Operation("c", Op.INCREMENT, "k", None, 1, 2, OK, delta=1), "is a number"),
        (Operation("c", Op.SET, "k", "v", 2, 1, OK), "is not from 0"),
        (Operation("c", Op.SET, "k", "v", -1, 1, OK), "is not from 0"),
        (Operation("c", Op.SET, "k", "v", 1, None, OK), "without an end is unknown"),
        (Operation("c", Op.SET, "k", "v", 1.5, 2, OK), "whole numbers"),  # type: ignore[arg-type]
        (Operation("c", Op.SET, "k", b"v", 1, 2, OK), "a value is text"),  # type: ignore[arg-type]
        (Operation(1, Op.SET, "k", "v", 1, 2, OK), "client and key"),  # type: ignore[arg-type]
        (Operation("c", Op.DELETE, "k", None, 1, 2, OK, applied=1), "true, false or null"),  # type: ignore[arg-type]
    ],
)
def test_an_operation_that_means_nothing_is_not_written(tmp_path: Path, wrong: Operation, said: str) -> None:
    with HistoryWriter(tmp_path / "h") as writer, pytest.raises(DamagedHistory, match=said):
        writer.write(wrong)
    assert (tmp_path / "h").read_bytes() == b""


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"not json",
        b"17",
        b"[]",
        b"{}",
        b"\xff\xfe",
        b"[" * 100_000,
        SET_LINE[:-10],
        SET_LINE * 2,
        SET_LINE.replace(b"set", b"put"),
        SET_LINE.replace(b'"ok"', b'"fine"'),
        SET_LINE.replace(b'"v"', b"7"),
        SET_LINE.replace(b'"client":"c",', b""),
        SET_LINE.replace(b'"end_ns":2,', b""),
        SET_LINE.replace(b'"end_ns":2', b'"end_ns":0'),
        SET_LINE.replace(b'"client"', b'"who":1,"client"'),
        SET_LINE.replace(b'"set"', b'"cas"').replace(b'"v"', b'"v","applied":true'),
    ],
    ids=lambda line: repr(line[:60]),
)
def test_a_damaged_line_is_told_by_file_and_number(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "h"
    path.write_bytes(SET_LINE + line.replace(b"\n", b"") + b"\n" + SET_LINE)
    with pytest.raises(DamagedHistory, match=r"/h:2: "):
        read_history([path])


def test_a_torn_last_line_is_left_out_and_told_at_every_length(tmp_path: Path) -> None:
    first = Operation("c", Op.SET, "k", "v", 1, 2, OK)
    last = to_line(Operation("c", Op.CAS, "k", "w", 3, 4, OK, expected="v", applied=True))
    path = tmp_path / "h"
    for length in range(1, len(last) - 1):
        path.write_bytes(SET_LINE + last[:length])
        assert read_history([path]) == History([first], [path])
    path.write_bytes(SET_LINE + last[:-1])  # whole but for its end
    assert read_history([path]) == History([first, from_line(last)], [])


def test_only_the_last_line_may_be_torn(tmp_path: Path) -> None:
    (tmp_path / "h").write_bytes(SET_LINE[:20] + SET_LINE)
    with pytest.raises(DamagedHistory, match="h:1: "):
        read_history([tmp_path / "h"])


def test_the_second_line_of_an_operation_replaces_the_first(tmp_path: Path) -> None:
    begun = Operation("c", Op.SET, "k", "v", 1, None, UNKNOWN)
    other = begun._replace(client="d")
    ended = begun._replace(end_ns=5, outcome=OK)
    (tmp_path / "h").write_bytes(to_line(begun) + to_line(other) + to_line(ended))
    assert read_history([tmp_path / "h"]) == History([ended, other], [])


def test_with_a_first_line_a_torn_second_loses_nothing(tmp_path: Path) -> None:
    begun = Operation("c", Op.SET, "k", "v", 1, None, UNKNOWN)
    (tmp_path / "h").write_bytes(to_line(begun) + to_line(begun._replace(end_ns=5, outcome=OK))[:-5])
    assert read_history([tmp_path / "h"]) == History([begun], [tmp_path / "h"])


def test_several_files_are_one_history(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in "ab"]
    for path in paths:
        path.write_bytes(SET_LINE)
    assert len(read_history(paths).operations) == 2
    with pytest.raises(FileNotFoundError):
        read_history([*paths, tmp_path / "missing"])


def test_threads_share_a_writer(tmp_path: Path) -> None:
    def work(client: str, writer: HistoryWriter) -> None:
        for number in range(300):
            writer.write(Operation(client, Op.SET, "k", "v" * number, number, number, OK))

    with HistoryWriter(tmp_path / "h") as writer:
        threads = [threading.Thread(target=work, args=(f"c{number}", writer)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    read = read_history([tmp_path / "h"]).operations
    assert sorted(each.client for each in read) == sorted(f"c{number}" for number in range(4) for _ in range(300))


def test_processes_share_a_file(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from soak.history import *\n"
        "with HistoryWriter(Path(sys.argv[1])) as writer:\n"
        "    for n in range(300): writer.write(Operation(sys.argv[2], Op.SET, 'k', 'v' * n, n, n, Outcome.OK))"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "h"), f"c{n}"], cwd=ROOT) for n in range(3)]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    assert len(read_history([tmp_path / "h"]).operations) == 900


def test_what_is_written_is_in_the_file_at_once(tmp_path: Path) -> None:
    with HistoryWriter(tmp_path / "h") as writer:
        writer.write(EVERY[0])
        assert read_history([tmp_path / "h"]).operations == [EVERY[0]]


def test_a_short_write_and_a_closed_writer_are_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = HistoryWriter(tmp_path / "h")
    real = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda file, line: real(file, line[:3]))
        with pytest.raises(OSError, match="room for 3 of"):
            writer.write(EVERY[0])
    writer.close()
    writer.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        writer.write(EVERY[0])
