"""rcache-replay from its command line: what it says, what it writes, and how it ends."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple

import pytest

from rcache.commands import progress_bar, rcache_replay, replay_inject
from rcache.commands.progress_bar import progress
from rcache.commands.rcache_replay import main
from rcache.commands.replay_exit import EPILOG, INTERRUPTED, ReplayExit
from rcache.commands.replay_options import parse
from rcache.commands.replay_times import parse_time, show_time
from rcache.records.files import BLOCK_HEADER_BYTES, FileHeader, FileKind, encode_header
from rcache.records.reader import RecordFile, Tail
from rcache.records.rebuild import rebuild, survey
from rcache.stream.data_dir import list_files, sources
from rcache_client.wire.grammar import reply_layout
from rcache_client.wire.opcodes import Opcode, Status
from tests.client.fake_service import FakeService, Item
from tests.client.scripted_server import Line, ScriptedServer, play
from tests.client.support import free_address
from tests.records.making import CLUSTER, header_of, imported, opened, removed, row, seq, stored, write_file

T0 = 1_714_565_400_000
"""2024-05-01T12:10:00Z."""
FAR = 4_000_000_000_000
"""An expiry long after this test was written."""


class Ended(NamedTuple):
    """How a run ended, and what it said."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.out)
        return found

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]


Replay = Callable[..., Ended]


@pytest.fixture
def replay(capsys: pytest.CaptureFixture[str]) -> Replay:
    """Runs rcache-replay in this process. Whatever it is made to do, it never changes a file that it reads."""

    def run(*argv: object) -> Ended:
        before = _content(argv)
        try:
            code = main([str(argument) for argument in argv])
        except SystemExit as ended:
            code = int(ended.code or 0)
        after = _content(argv)
        assert {path: after[path] for path in before} == before
        return Ended(code, *capsys.readouterr())

    return run


def _content(argv: tuple[object, ...]) -> dict[Path, bytes]:
    folders = [argument for argument in argv if isinstance(argument, Path) and argument.is_dir()]
    return {path: path.read_bytes() for folder in folders for path in folder.rglob("*.rc[lcs]")}


def change(n: int, key: bytes = b"k", value: bytes | None = None, **fields: Any) -> bytes:
    """Change `n` of epoch 1, a second after the one before."""
    return stored(seq(1, n), key, b"%d" % n if value is None else value, time_ms=T0 + 1000 * n, **fields)


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    """Three segments of one node; the last is still being written."""
    folder = tmp_path / "logs"
    write_file(folder, header_of(1), [opened(1, time_ms=T0), change(1, b"a"), change(2, b"b", flags=5)])
    write_file(folder, header_of(2), [change(3, b"a")], [removed(seq(1, 4), b"b", time_ms=T0 + 4000)])
    write_file(folder, header_of(3), [change(5, b"c", expires_at_ms=FAR)], [change(6, b"d", b"\xff\x00")], closed=False)
    return folder


def segment(logs: Path, number: int) -> Path:
    return logs / f"n1-20240501-{number:04}.rcl"


def spoil(path: Path, header: FileHeader) -> int:
    """Change a byte in the first block; return where the block begins."""
    at = len(encode_header(header))
    data = bytearray(path.read_bytes())
    data[at + BLOCK_HEADER_BYTES] ^= 1
    path.write_bytes(data)
    return at


def read_back(path: Path) -> dict[bytes, tuple[bytes | None, int, int]]:
    """What a savefile holds: value, flags and expiry of each key."""
    read = sources(list_files(path.parent))
    read = [source for source in read if source.paths == (path,)]
    found = survey(read)
    assert found.problems == []
    buckets = rebuild(read, found.plans).values()
    return {key: (each.value, each.flags, each.expires_at_ms) for bucket in buckets for key, each in bucket.live_rows()}


def header_in(path: Path) -> FileHeader:
    with RecordFile(path) as file:
        list(file.blocks())
        assert file.findings.tail is Tail.CLOSED
        return file.header


# verify


def test_verify_says_what_was_read(replay: Replay, logs: Path) -> None:
    ended = replay("verify", logs)
    assert (ended.code, ended.err) == (0, "")
    assert "3 segments of n1: 7 records" in ended.out
    assert "from 2024-05-01T12:10:00.000Z to 2024-05-01T12:10:06.000Z" in ended.out
    assert "1 of 1 have a complete history" in ended.out


def test_verify_in_json(replay: Replay, logs: Path) -> None:
    found = replay("verify", logs, "--json").json
    assert found["exit_code"] == 0
    assert found["read"] == {
        "segments": 3,
        "checkpoints": 0,
        "savefiles": 0,
        "copies_left_out": 0,
        "bytes": sum(path.stat().st_size for path in logs.iterdir()),
        "records": 7,
        "nodes": ["n1"],
        "cluster_id": CLUSTER.hex(),
        "first_ms": T0,
        "last_ms": T0 + 6000,
    }
    assert (found["torn"], found["damage"], found["missing"], found["problems"]) == ([], [], [], [])


def test_a_torn_tail_is_reported_and_fine(replay: Replay, logs: Path) -> None:
    path = segment(logs, 3)
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    found = replay("verify", logs, "--json").json
    (torn,) = found["torn"]
    assert found["exit_code"] == 0
    assert torn["file"] == str(path)
    assert torn["whole_bytes"] + torn["torn_bytes"] == len(whole) - 5
    text = replay("verify", logs).out
    assert f"torn tail  {path}: {torn['torn_bytes']} bytes from byte {torn['whole_bytes']} on left out" in text


def test_a_newest_segment_cut_within_its_header_is_a_torn_tail(replay: Replay, logs: Path) -> None:
    (logs / "n1-20240501-0004.rcl").write_bytes(encode_header(header_of(4))[:40])
    found = replay("verify", logs, "--json").json
    assert found["exit_code"] == 0
    assert [(torn["whole_bytes"], torn["torn_bytes"]) for torn in found["torn"]] == [(0, 40)]


def test_every_cut_of_the_newest_segment_is_fine(replay: Replay, logs: Path, tmp_path: Path) -> None:
    whole = segment(logs, 3).read_bytes()
    expected = [{b"a", b"c", b"d"}, {b"a", b"c"}, {b"a"}]
    for length in range(len(whole) + 1):
        segment(logs, 3).write_bytes(whole[:length])
        output = tmp_path / "out.rcs"
        assert replay("rebuild", logs, "--output", output).code == 0
        assert set(read_back(output)) in expected


def test_damage_is_reported_with_file_and_offset_and_needs_an_option(replay: Replay, logs: Path) -> None:
    at = spoil(segment(logs, 2), header_of(2))
    ended = replay("verify", logs)
    assert ended.code == ReplayExit.DAMAGED
    assert f"damage     {segment(logs, 2)}: at byte {at}: the block's checksum does not fit" in ended.out
    assert "--skip-damaged" in ended.err
    assert replay("verify", logs, "--skip-damaged").code == ReplayExit.INCOMPLETE
    assert replay("verify", logs, "--skip-damaged", "--partial").code == 0


def test_all_damage_is_listed_not_only_the_first(replay: Replay, logs: Path) -> None:
    for number in (1, 2):
        spoil(segment(logs, number), header_of(number))
    data = segment(logs, 3).read_bytes()
    segment(logs, 3).write_bytes(b"X" + data[1:])
    found = replay("verify", logs, "--json").json
    assert found["exit_code"] == ReplayExit.DAMAGED
    assert {each["file"] for each in found["damage"]} == {str(segment(logs, number)) for number in (1, 2, 3)}


def test_a_missing_segment_is_named(replay: Replay, logs: Path) -> None:
    segment(logs, 2).unlink()
    ended = replay("verify", logs)
    assert ended.code == ReplayExit.INCOMPLETE
    assert "missing    log of n1: segment 2 missing" in ended.out
    assert "problem    1 bucket (0): missing link: 1.3 is not there" in ended.out
    assert "--partial" in ended.err
    assert replay("verify", logs, "--partial").code == 0


def test_problems_of_many_buckets_are_one_line(replay: Replay, tmp_path: Path) -> None:
    records = [stored(seq(1, bucket + 5), b"k", b"v", bucket=bucket) for bucket in range(500)]
    write_file(tmp_path, header_of(9, buckets=512), records)
    ended = replay("verify", tmp_path)
    assert ended.code == ReplayExit.INCOMPLETE
    assert "problem    500 buckets (0, 1, 2, 3, 4, 5, 6, 7, ...): no base" in ended.out
    assert "0 of 500 have a complete history; the cluster has 512" in ended.out
    assert len(ended.out.splitlines()) < 8


def test_a_savefile_that_was_cut_is_damage(replay: Replay, tmp_path: Path) -> None:
    path = write_file(tmp_path, header_of(1, kind=FileKind.SAVEFILE), imported(seq(1, 1), seq(1, 1)))
    assert replay("verify", tmp_path).code == 0
    path.write_bytes(path.read_bytes()[:-1])
    assert replay("verify", tmp_path).code == ReplayExit.DAMAGED
    path.write_bytes(path.read_bytes()[:30])
    assert replay("verify", tmp_path).code == ReplayExit.DAMAGED


def test_dead_records_are_counted(replay: Replay, logs: Path) -> None:
    write_file(logs, header_of(1, node="n2", epoch=2), [opened(2, seq(1, 3), time_ms=T0 + 9000, node="n2")])
    found = replay(logs, "--json").json
    assert (found["exit_code"], found["dead_records"]) == (0, 3)
    assert "dead       3 records off the chain left out" in replay(logs).out


def test_the_same_file_twice_is_read_once(replay: Replay, logs: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copies" / "deep" / "other-name.rcl"
    copy.parent.mkdir(parents=True)
    whole = segment(logs, 1).read_bytes()
    copy.write_bytes(whole)
    segment(logs, 1).write_bytes(whole[:-10])
    found = replay("verify", logs, tmp_path / "copies", segment(logs, 2), "--json").json
    assert (found["exit_code"], found["read"]["records"], found["read"]["copies_left_out"]) == (0, 7, 1)
    assert found["torn"] == [], "the longer of the two is read"


def test_many_nodes_and_files_by_name(replay: Replay, logs: Path) -> None:
    other = write_file(logs / "sub", header_of(1, node="n2"), [opened(1), change(1, b"a")])
    assert replay("verify", segment(logs, 1), other, "--json").json["read"]["nodes"] == ["n1", "n2"]


# rebuild


def test_rebuild_writes_a_savefile_of_the_newest_state(replay: Replay, logs: Path, tmp_path: Path) -> None:
    output = tmp_path / "n1.rcs"
    ended = replay("rebuild", logs, "--output", output)
    assert (ended.code, ended.err) == (0, "")
    assert f"wrote      {output}: 3 items" in ended.out
    assert read_back(output) == {b"a": (b"3", 0, 0), b"c": (b"5", 0, FAR), b"d": (b"\xff\x00", 0, 0)}
    newest, header = header_of(3), header_in(output)
    assert header.kind is FileKind.SAVEFILE
    assert (header.cluster_id, header.data_dir_id, header.node) == (newest.cluster_id, newest.data_dir_id, "n1")
    assert (header.epoch, header.incarnation, header.buckets) == (1, 1, 1)
    assert (header.number, header.first_segment) == (3, 3), "the newest segment is not closed: the log may go on in it"


def test_the_log_goes_on_after_a_segment_that_is_closed(replay: Replay, logs: Path, tmp_path: Path) -> None:
    write_file(logs, header_of(3), [change(5, b"c")])
    output = tmp_path / "n1.rcs"
    assert replay("rebuild", logs, "--output", output).code == 0
    assert header_in(output).first_segment == 4
    assert replay("rebuild", output, "--output", tmp_path / "again.rcs").code == 0
    assert header_in(tmp_path / "again.rcs").first_segment == 4


def test_a_rebuilt_savefile_and_the_logs_it_was_made_from_are_one_history(replay: Replay, logs: Path, tmp_path: Path) -> None:
    output = logs / "n1.rcs"
    assert replay("rebuild", logs, "--output", output).code == 0
    found = replay("verify", logs, "--json").json
    assert (found["exit_code"], found["read"]["savefiles"]) == (0, 1)
    again = tmp_path / "again.rcs"
    assert replay("rebuild", logs, "--output", again).code == 0
    assert read_back(again) == read_back(output)


@pytest.mark.parametrize(
    ("until", "keys"),
    [
        ("2024-05-01T12:10:02", {b"a": b"1", b"b": b"2"}),
        ("2024-05-01T14:10:03.999+02:00", {b"a": b"3", b"b": b"2"}),
        ("1714565404", {b"a": b"3"}),
        ("2024-05-01 12:09", {}),
    ],
)
def test_rebuild_up_to_a_time(replay: Replay, logs: Path, tmp_path: Path, until: str, keys: dict[bytes, bytes]) -> None:
    output = tmp_path / "then.rcs"
    ended = replay("rebuild", logs, "--until", until, "-o", output)
    assert ended.code == 0
    assert "until      2024-05-01T12:" in ended.out
    assert {key: value for key, (value, _, _) in read_back(output).items()} == keys
    assert header_in(output).data_dir_id != header_of(1).data_dir_id, "no node takes the past for its present"
    assert header_in(output).cluster_id != CLUSTER
    assert "--restore" in ended.out


def test_a_savefile_with_something_missing_is_nobodys_present(replay: Replay, logs: Path, tmp_path: Path) -> None:
    segment(logs, 2).unlink()
    output = tmp_path / "part.rcs"
    assert replay("rebuild", logs, "--output", output).code == ReplayExit.INCOMPLETE
    assert not output.exists()
    ended = replay("rebuild", logs, "--output", output, "--partial")
    assert ended.code == 0
    assert "--restore" in ended.out
    assert set(read_back(output)) == {b"a", b"b", b"c", b"d"}
    header = header_in(output)
    assert header.cluster_id != CLUSTER
    assert header.data_dir_id != header_of(1).data_dir_id


def test_rebuild_of_damaged_logs(replay: Replay, logs: Path, tmp_path: Path) -> None:
    spoil(segment(logs, 2), header_of(2))
    output = tmp_path / "out.rcs"
    assert replay(logs, "--output", output).code == ReplayExit.DAMAGED
    assert replay(logs, "--output", output, "--partial").code == ReplayExit.DAMAGED
    assert replay(logs, "--output", output, "--skip-damaged").code == ReplayExit.INCOMPLETE
    assert not output.exists()
    assert replay(logs, "--output", output, "--skip-damaged", "--partial").code == 0
    assert read_back(output)[b"a"] == (b"1", 0, 0)


def test_logs_of_two_nodes_that_overlap(replay: Replay, tmp_path: Path) -> None:
    one = [opened(1), *(change(n, b"k%d" % n) for n in range(1, 5))]
    other = [*(change(n, b"k%d" % n) for n in range(3, 7)), opened(2, seq(1, 5), node="n2"), stored(seq(2, 1), b"new", b"!")]
    write_file(tmp_path / "n1", header_of(1), one)
    write_file(tmp_path / "n2", header_of(8, node="n2", epoch=2), other)
    output = tmp_path / "out.rcs"
    assert replay("rebuild", tmp_path / "n1", tmp_path / "n2", "--output", output).code == 0
    assert set(read_back(output)) == {b"k1", b"k2", b"k3", b"k4", b"k5", b"new"}
    header = header_in(output)
    assert (header.node, header.epoch, header.first_segment) == ("n2", 2, 9)


def test_an_output_that_is_read_is_refused(replay: Replay, tmp_path: Path) -> None:
    path = write_file(tmp_path / "in", header_of(1, kind=FileKind.SAVEFILE), imported(seq(1, 1), seq(1, 1)))
    ended = replay("rebuild", tmp_path / "in", "--output", path)
    assert ended.code == ReplayExit.WRONG_USE
    assert "one of the files that are read" in ended.err


def test_an_output_that_cannot_be_written(replay: Replay, logs: Path, tmp_path: Path) -> None:
    ended = replay("rebuild", logs, "--output", tmp_path / "none" / "out.rcs", "--json")
    assert ended.code == ended.json["exit_code"] == ReplayExit.NOT_WRITTEN
    assert "could not be written" in ended.err


def test_an_output_is_replaced(replay: Replay, logs: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.rcs"
    output.write_text("old")
    assert replay("rebuild", logs, "--output", output, "--json").json["wrote"]["items"] == 3
    assert set(read_back(output)) == {b"a", b"c", b"d"}


def test_a_base_and_the_log_since(replay: Replay, tmp_path: Path) -> None:
    base = imported(seq(1, 2), seq(1, 2), [row(seq(1, 1), b"old", b"1")], time_ms=T0 + 2000)
    write_file(tmp_path / "in", header_of(2, kind=FileKind.CHECKPOINT, first_segment=2), base)
    write_file(tmp_path / "in", header_of(2), [change(3, b"new")], closed=False)
    output = tmp_path / "out.rcs"
    assert replay("rebuild", tmp_path / "in", "--output", output).code == 0
    assert set(read_back(output)) == {b"old", b"new"}
    assert replay("rebuild", tmp_path / "in", "--output", output, "--until", "1714565401").code == ReplayExit.INCOMPLETE


def test_nothing_left_to_rebuild_from(replay: Replay, tmp_path: Path) -> None:
    (tmp_path / "n1-1.rcl").write_bytes(b"RCA")
    assert replay("verify", tmp_path).code == 0
    assert replay("rebuild", tmp_path, "--output", tmp_path / "out.rcs").code == ReplayExit.INCOMPLETE
    assert not (tmp_path / "out.rcs").exists()


# print


def test_print_is_a_line_for_each_record(replay: Replay, logs: Path) -> None:
    ended = replay("print", logs)
    lines = ended.out.splitlines()
    assert (ended.code, len(lines)) == (0, 7)
    assert lines[0] == "2024-05-01T12:10:00.000Z  n1  bucket 0  1.0  OPEN  primary n1  incarnation 1  continues_from 0.0"
    assert lines[2] == "2024-05-01T12:10:02.000Z  n1  bucket 0  1.2  SET (set)  'b'  1 bytes  flags 5"
    assert lines[4] == "2024-05-01T12:10:04.000Z  n1  bucket 0  1.4  REMOVE (deleted)  'b'"
    assert lines[5].endswith("expires " + show_time(FAR))


def test_print_in_json(replay: Replay, logs: Path) -> None:
    lines = replay("print", logs, "--json", "--values").lines
    assert len(lines) == 7
    assert lines[2] == {
        "kind": "SET",
        "cause": "SET",
        "time": "2024-05-01T12:10:02.000Z",
        "time_ms": T0 + 2000,
        "bucket": 0,
        "sequence": seq(1, 2),
        "epoch": 1,
        "counter": 2,
        "key": "b",
        "value_bytes": 1,
        "flags": 5,
        "expires_at_ms": 0,
        "value": "2",
        "node": "n1",
    }
    assert lines[6]["value_base64"] == "/wA="


@pytest.mark.parametrize(
    ("options", "counters"),
    [
        (["--key", "a"], [1, 3]),
        (["--key", "nothing"], []),
        (["--bucket", "0", "--limit", "2"], [0, 1]),
        (["--bucket", "7"], []),
        (["--key", "a", "--bucket", "7"], []),
        (["--from", "2024-05-01T12:10:05"], [5, 6]),
        (["--until", "2024-05-01T12:10:01"], [0, 1]),
        (["--from", "1714565402", "--until", "1714565403"], [2, 3]),
        (["--limit", "1"], [0]),
    ],
)
def test_print_filters(replay: Replay, logs: Path, options: list[str], counters: list[int]) -> None:
    ended = replay("print", logs, "--json", *options)
    assert (ended.code, [line["counter"] for line in ended.lines]) == (0, counters)


def test_print_shows_keys_and_values_that_are_no_text(replay: Replay, tmp_path: Path) -> None:
    write_file(tmp_path, header_of(1), [opened(1), change(1, b"\x00\xff", b"x" * 100), change(2, b"line\nbreak", b"y")])
    lines = replay("print", tmp_path, "--values").out.splitlines()
    assert r"b'\x00\xff'" in lines[1]
    assert lines[1].endswith("'" + "x" * 64 + "'...")
    assert r"b'line\nbreak'" in lines[2]
    assert len(lines) == 3


def test_print_stops_at_damage_or_goes_on_behind_it(replay: Replay, logs: Path) -> None:
    spoil(segment(logs, 2), header_of(2))
    ended = replay("print", logs)
    assert (ended.code, len(ended.out.splitlines())) == (ReplayExit.DAMAGED, 3)
    assert str(segment(logs, 2)) in ended.err
    ended = replay("print", logs, "--skip-damaged")
    assert (ended.code, len(ended.out.splitlines())) == (0, 6)
    assert str(segment(logs, 2)) in ended.err


def test_print_tells_of_a_torn_tail_beside_the_records(replay: Replay, logs: Path) -> None:
    segment(logs, 3).write_bytes(segment(logs, 3).read_bytes()[:-1])
    ended = replay("print", logs, "--json")
    assert (ended.code, len(ended.lines)) == (0, 6)
    assert "torn tail" in ended.err


# history


def test_history_of_a_key_over_all_nodes(replay: Replay, logs: Path) -> None:
    write_file(
        logs,
        header_of(1, node="n2", epoch=2),
        [
            change(1, b"a"),
            change(2, b"b"),
            opened(2, seq(1, 2), time_ms=T0 + 9000, node="n2"),
            stored(seq(2, 1), b"a", b"9", time_ms=T0 + 9000),
        ],
    )
    copy = imported(seq(1, 1), seq(1, 1), [row(seq(1, 1), b"a", b"1")])
    write_file(logs, header_of(1, node="n0"), copy)
    write_file(logs, header_of(9, kind=FileKind.SAVEFILE, node="n3"), copy)
    told = [
        (line["kind"], line["epoch"], line["counter"], line["through"], line["files_of"], line["state"])
        for line in replay("history", "a", logs, "--json").lines
    ]
    assert told == [
        ("OPEN", 1, 0, "n1", ["n1"], "live"),
        ("SET", 1, 1, "n1", ["n0", "n1", "n2", "n3"], "live"),
        ("SET", 1, 3, "n1", ["n1"], "dead"),
        ("OPEN", 2, 0, "n2", ["n2"], "live"),
        ("SET", 2, 1, "n2", ["n2"], "live"),
    ]
    text = replay("history", "a", logs)
    assert text.out.splitlines()[1] == (
        "2024-05-01T12:10:01.000Z  through n1  bucket 0  1.1  SET (set)  'a'  1 bytes  live  (files of n0, n1, n2, n3)"
    )
    assert text.out.splitlines()[3].endswith("2.0  OPEN  primary n2  incarnation 1  continues_from 1.2  live  (files of n2)")
    assert replay("history", "a", logs, "--limit", 1).out.splitlines() == text.out.splitlines()[:1]


def test_history_shows_who_was_primary_where_that_says_something_of_the_key(replay: Replay, tmp_path: Path) -> None:
    """Of epochs in which it did not change only the one that cut off what is dead, and the newest."""
    primary = {2: "n2", 3: "n3", 4: "n4", 5: "n1", 6: "n2"}
    opens = {n: opened(n, seq(1, 1) if n == 2 else seq(n - 1, 0), node=node, time_ms=T0) for n, node in primary.items()}
    records = [opened(1), stored(seq(1, 1), b"a", b"1"), stored(seq(1, 2), b"a", b"cut off"), *opens.values()]
    write_file(tmp_path, header_of(1), [*records, stored(seq(6, 1), b"other", b"1", time_ms=T0 + 1)])
    told = [(line["kind"], line["epoch"], line["through"], line["state"]) for line in _history(replay, tmp_path)]
    assert told == [
        ("OPEN", 1, "n1", "live"),
        ("SET", 1, "n1", "live"),
        ("SET", 1, "n1", "dead"),
        ("OPEN", 2, "n2", "live"),
        ("OPEN", 6, "n2", "live"),
    ]
    assert [(line["kind"], line["epoch"]) for line in _history(replay, tmp_path, "--until", "1")][-1] == ("SET", 1)


def _history(replay: Replay, *more: object) -> list[dict[str, Any]]:
    return replay("history", "a", *more, "--json").lines


def test_history_of_a_key_of_which_only_a_copy_is_left(replay: Replay, tmp_path: Path) -> None:
    """Who made it is in no file any more, and nobody is named in their place."""
    write_file(
        tmp_path, header_of(9, kind=FileKind.SAVEFILE, node="n3"), imported(seq(1, 1), seq(1, 1), [row(seq(1, 1), b"a", b"1")])
    )
    assert [(line["kind"], line["through"], line["state"]) for line in _history(replay, tmp_path)] == [("ROW", None, "copy")]
    assert "  through ?  " in replay("history", "a", tmp_path).out


def test_history_reads_where_rcached_keeps_its_files_unless_told_otherwise(
    replay: Replay, logs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = replay("history", "a", "--json")
    assert ended.code == ReplayExit.WRONG_USE
    assert "./rcache-data, which is read then, is not here" in ended.err
    logs.rename(tmp_path / "rcache-data")
    assert [line["kind"] for line in replay("history", "a", "--json").lines] == ["OPEN", "SET", "SET"]


def test_history_tells_causes_and_removals(replay: Replay, logs: Path) -> None:
    lines = replay("history", "b", logs, "--json").lines
    assert [(line["kind"], line["cause"]) for line in lines] == [("OPEN", "NONE"), ("SET", "SET"), ("REMOVE", "DELETED")]


def test_history_of_a_key_that_never_was(replay: Replay, logs: Path) -> None:
    ended = replay("history", "nothing", logs)
    assert (ended.code, ended.out) == (0, "")
    assert "no record of this key" in ended.err


def test_history_says_when_it_is_incomplete(replay: Replay, logs: Path) -> None:
    segment(logs, 2).unlink()
    assert "missing link" in replay("history", "a", logs).err


# inject


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer() as running:
        yield running


def items(server: ScriptedServer) -> dict[bytes, bytes]:
    return {key: item.value for key, item in server.service.items.items()}


def test_inject_puts_everything_in_with_flags_and_the_time_left(replay: Replay, tmp_path: Path, server: ScriptedServer) -> None:
    soon = int(time.time() * 1000) + 50_000
    records = [
        change(1, b"plain", flags=7),
        change(2, b"soon", expires_at_ms=soon, flags=8),
        change(3, b"gone", expires_at_ms=T0),
    ]
    write_file(tmp_path, header_of(1), [opened(1), *records, change(4, b"empty", b"")])
    ended = replay("inject", tmp_path, "--into", server.address)
    assert (ended.code, ended.err) == (0, "")
    assert f"injected   3 items into {server.address}" in ended.out
    assert "expired    1 item left out" in ended.out
    assert items(server) == {b"plain": b"1", b"soon": b"2", b"empty": b""}
    found = server.service.items
    assert (found[b"plain"].flags, found[b"plain"].ttl_ms) == (7, 0)
    assert found[b"soon"].flags == 8
    assert 0 < found[b"soon"].ttl_ms <= 50_001


@pytest.mark.parametrize("overwrite", [False, True])
def test_keys_that_are_there_are_kept_unless_told_otherwise(
    replay: Replay, logs: Path, server: ScriptedServer, overwrite: bool
) -> None:
    for key in (b"a", b"c"):
        server.service.items[key] = Item(b"theirs", 0, 0, 1)
    options = ["--overwrite"] if overwrite else []
    ended = replay(logs, "--into", server.address, "--json", *options)
    assert ended.code == 0
    told = ended.json["injected"]
    if overwrite:
        assert items(server) == {b"a": b"3", b"c": b"5", b"d": b"\xff\x00"}
        assert (told["items"], told["kept"]) == (3, 0)
    else:
        assert items(server) == {b"a": b"theirs", b"c": b"theirs", b"d": b"\xff\x00"}
        assert (told["items"], told["kept"]) == (1, 2)


def test_many_rows_go_over_in_batches(replay: Replay, tmp_path: Path, server: ScriptedServer) -> None:
    write_file(tmp_path, header_of(1), [opened(1), *(change(n, b"key-%d" % n) for n in range(1, 1001))])
    assert replay("inject", tmp_path, "--into", server.address, "--overwrite").code == 0
    assert items(server) == {b"key-%d" % n: b"%d" % n for n in range(1, 1001)}
    assert server.opcodes().count(Opcode.SET_MANY) == 5


def test_only_keys_with_a_prefix(replay: Replay, tmp_path: Path, server: ScriptedServer) -> None:
    write_file(tmp_path, header_of(1), [opened(1), change(1, b"user:1"), change(2, b"user"), change(3, b"page:1")])
    assert replay("inject", tmp_path, "--into", server.address, "--prefix", "user:").code == 0
    assert items(server) == {b"user:1": b"1"}


def test_up_to_a_time(replay: Replay, logs: Path, server: ScriptedServer) -> None:
    assert replay("inject", logs, "--into", server.address, "--until", "1714565402").code == 0
    assert items(server) == {b"a": b"1", b"b": b"2"}


def test_a_moment_outside_of_the_files_is_told(replay: Replay, logs: Path, server: ScriptedServer) -> None:
    """It is most often one in the wrong zone."""
    said = replay("inject", logs, "--into", server.address, "--until", "2024-05-01T12:09", "--prefix", "a")
    assert said.code == 0
    assert "before the first change (times without a zone are UTC)" in said.out
    assert "the files hold no key that begins with 'a' at that moment" in said.out
    assert "after the last change: nothing is cut off" in replay("verify", logs, "--until", "2024-05-02").out
    assert "change" not in replay("verify", logs, "--until", "1714565402").out.split("until ")[1]


def test_a_rate_is_kept(replay: Replay, tmp_path: Path, server: ScriptedServer) -> None:
    write_file(tmp_path, header_of(1), [opened(1), *(change(n, b"key-%d" % n) for n in range(1, 41))])
    began = time.monotonic()
    assert replay("inject", tmp_path, "--into", server.address, "--rate", 100).code == 0
    assert time.monotonic() - began >= 0.3, "40 keys at 100 a second; the first ten go at once"
    assert len(items(server)) == 40


def test_keys_that_are_refused_are_named_and_the_rest_goes_over(replay: Replay, tmp_path: Path) -> None:
    big = [change(n, b"big-%d" % n, bytes(100)) for n in range(1, 8)]
    write_file(tmp_path, header_of(1), [opened(1), *big, change(8, b"small")])
    for options in ([], ["--overwrite"]):
        with ScriptedServer(service=FakeService(value_bytes_max=50)) as server:
            ended = replay("inject", tmp_path, "--into", server.address, *options)
            assert ended.code == ReplayExit.NOT_WRITTEN
            assert items(server) == {b"small": b"8"}
        assert "failed     7 keys" in ended.out
        assert "'big-1': " in ended.out
        assert "'big-7'" not in ended.out, "a few are enough"


def test_a_write_whose_outcome_is_unknown_is_sent_again(replay: Replay, tmp_path: Path) -> None:
    write_file(tmp_path, header_of(1), [opened(1), change(1, b"k")])

    def lose_the_first_write(line: Line) -> None:
        line.hello()
        line.execute(line.request())  # the ping
        line.server.service.answer(line.request())  # executed, and no answer

    with ScriptedServer(lose_the_first_write, play) as server:
        ended = replay("inject", tmp_path, "--into", server.address, "--json")
        assert ended.code == 0
        assert items(server) == {b"k": b"1"}
        assert ended.json["injected"]["kept"] == 1


def test_a_server_that_goes_away_ends_it_soon_and_every_key_is_accounted_for(
    replay: Replay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay_inject, "CALL_SECONDS", 0.5)
    write_file(tmp_path, header_of(1), [opened(1), *(change(n, b"key-%d" % n) for n in range(1, 3001))])

    def leave(line: Line) -> None:
        line.hello()
        line.execute(line.request())
        line.server._listener.close()

    with ScriptedServer(leave) as server:
        began = time.monotonic()
        ended = replay("inject", tmp_path, "--into", server.address, "--json")
        assert time.monotonic() - began < 30
    told = ended.json["injected"]
    assert ended.code == ReplayExit.NOT_WRITTEN
    assert told["items"] + told["kept"] + told["failed"] == 3000
    assert told["failed"] >= told["not_sent"] >= 2990
    assert 1 <= len(told["failures"]) <= told["failed"] - told["not_sent"], "each says what happened, none that it was not sent"


def test_a_server_that_takes_nothing_ends_it_with_its_reason(
    replay: Replay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were every key tried for as long, a large injection would take weeks to fail."""
    monkeypatch.setattr(replay_inject, "CALL_SECONDS", 0.2)
    write_file(tmp_path, header_of(1), [opened(1), *(change(n, b"key-%d" % n) for n in range(1, 1001))])

    class StuckService(FakeService):
        def answer(self, request: Any) -> tuple[int, bytes]:
            if request.opcode in (Opcode.PING, Opcode.STATS):
                return super().answer(request)
            Event().wait(0.1)
            return Status.NOT_COMMITTED, reply_layout(request.opcode, Status.NOT_COMMITTED).encode("no backup answers")

    with ScriptedServer(service=StuckService()) as server:
        ended = replay("inject", tmp_path, "--into", server.address)
    assert ended.code == ReplayExit.NOT_WRITTEN
    assert "no backup answers" in ended.out
    failed, unsent = (int(number) for number in re.findall(r"(?:failed|not sent) +(\d+) key", ended.out))
    assert failed <= replay_inject.WORKERS
    assert failed + unsent == 1000


def test_what_was_evicted_meanwhile_is_told(replay: Replay, logs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = [{("n1", 1): 5, ("n2", 1): 7}, {("n1", 1): 9, ("n2", 2): 3, ("n3", 1): 1}]
    monkeypatch.setattr(rcache_replay, "evicted_at", lambda _client, _secret: looks.pop(0))
    with ScriptedServer() as server:
        ended = replay("inject", logs, "--into", server.address)
    assert (ended.code, looks) == (0, [])
    assert "evicted    8 items by the nodes meanwhile: there is no room for all (rcached --memory-limit)" in ended.out


def test_an_injection_that_is_stopped_says_what_to_do(
    replay: Replay, logs: Path, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(rcache_replay, "inject", stop)
    ended = replay("inject", logs, "--into", server.address)
    assert ended.code == INTERRUPTED
    assert "the same command again does the rest" in ended.err


def test_a_server_that_cannot_be_reached(replay: Replay, logs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay_inject, "HELLO_SECONDS", 0.2)
    ended = replay("inject", logs, "--into", free_address(), "--json")
    assert ended.code == ended.json["exit_code"] == ReplayExit.NOT_REACHED


def test_a_server_that_asks_for_a_secret(replay: Replay, logs: Path, tmp_path: Path) -> None:
    secret = b"0123456789abcdef"
    secret_file = tmp_path / "secret"
    secret_file.write_bytes(secret)
    secret_file.chmod(0o600)

    def ask(line: Line) -> None:
        line.challenge(secret)
        line.serve()

    with ScriptedServer(ask) as server:
        assert replay("inject", logs, "--into", server.address).code == ReplayExit.NOT_REACHED
        assert replay("inject", logs, "--into", server.address, "--secret-file", secret_file).code == 0
        assert len(items(server)) == 3


@pytest.mark.parametrize("spoiled", [True, False])
def test_nothing_is_injected_from_files_that_are_not_whole(
    replay: Replay, logs: Path, server: ScriptedServer, spoiled: bool
) -> None:
    if spoiled:
        spoil(segment(logs, 2), header_of(2))
    else:
        segment(logs, 2).unlink()
    assert replay("inject", logs, "--into", server.address).code == (ReplayExit.DAMAGED if spoiled else ReplayExit.INCOMPLETE)
    assert items(server) == {}
    assert replay("inject", logs, "--into", server.address, "--skip-damaged", "--partial").code == 0
    assert items(server)[b"d"] == b"\xff\x00"


def test_the_answer_of_a_full_server_is_a_failure(replay: Replay, logs: Path) -> None:
    class FullService(FakeService):
        def answer(self, request: Any) -> tuple[int, bytes]:
            if request.opcode == Opcode.PING:
                return super().answer(request)
            return Status.NO_ROOM, reply_layout(request.opcode, Status.NO_ROOM).encode("full")

    with ScriptedServer(service=FullService()) as server:
        ended = replay("inject", logs, "--into", server.address, "--overwrite", "--json")
    assert (ended.code, ended.json["injected"]["failed"]) == (ReplayExit.NOT_WRITTEN, 3)


# the command line


@pytest.mark.parametrize(
    ("argv", "command"),
    [
        (["."], "verify"),
        ([".", "--into", "localhost:1"], "inject"),
        (["--into=localhost:1", "."], "inject"),
        ([".", "--output", "x"], "rebuild"),
        (["--until", "5", ".", "-o", "x"], "rebuild"),
        ([".", "--into", "localhost:1", "--prefix", "p", "--rate", "5", "--overwrite"], "inject"),
        (["print", "."], "print"),
        (["history", "key", "."], "history"),
        (["verify", ".", "--json", "."], "verify"),
    ],
)
def test_the_command_word_may_be_left_out(argv: list[str], command: str) -> None:
    options = parse(argv)
    assert options.command == command
    assert set(options.paths) == {Path()}


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "a PATH is needed"),
        (["verify"], "PATH"),
        (["/no/such/place"], "'/no/such/place' is neither a file nor a directory"),
        (["--json", "verify", "."], "the command word 'verify' comes first"),
        (["verify", ".", "--into", "localhost:1"], "--into"),
        (["rebuild", "."], "--output"),
        (["inject", "."], "--into"),
        ([".", "--prefix", "p"], "--into"),
        (["inject", ".", "--into", "nowhere"], "'nowhere' is not HOST:PORT"),
        (["inject", ".", "--into", "localhost:0"], "port 0"),
        (["inject", ".", "--into", "localhost:1", "--rate", "0"], "--rate"),
        (["inject", ".", "--into", "localhost:1", "--secret-file", "/no/such"], "--secret-file"),
        ([".", "--until", "yesterday"], "--until: 'yesterday' is not a time"),
        ([".", "--until", "1714565400000"], "--until: '1714565400000' is out of range"),
        ([".", "--unt", "5"], "--unt"),
        (["print", ".", "--limit", "0"], "--limit"),
        (["print", ".", "--bucket", "70000"], "--bucket"),
        (["history", "", "."], "1 to 65535 are allowed"),
    ],
)
def test_wrong_use_is_one_message(replay: Replay, argv: list[str], said: str) -> None:
    ended = replay(*argv)
    assert (ended.code, ended.out) == (ReplayExit.WRONG_USE, "")
    assert said in ended.err
    assert ended.err.count("\n") == 2


def test_no_files_of_records(replay: Replay, tmp_path: Path) -> None:
    ended = replay("verify", tmp_path)
    assert ended.code == ReplayExit.WRONG_USE
    assert "no files of records" in ended.err


def test_a_file_that_is_something_else(replay: Replay, tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("not ours")
    assert replay("verify", path).code == ReplayExit.DAMAGED


def test_a_file_that_may_not_be_read(replay: Replay, logs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, *_: object) -> int:
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patched:
        patched.setattr("rcache.records.reader.os.open", refuse)
        code = main(["verify", str(segment(logs, 1))])
    assert code == ReplayExit.DAMAGED


def test_files_of_several_clusters(replay: Replay, logs: Path) -> None:
    write_file(logs, header_of(1, node="n2", cluster=b"another cluster!"), [opened(1)])
    ended = replay("verify", logs)
    assert ended.code == ReplayExit.WRONG_USE
    assert "several clusters" in ended.err


@pytest.mark.parametrize("command", ["verify", "print", "history", "rebuild", "inject"])
def test_help_of_each_command_has_the_exit_codes(replay: Replay, command: str) -> None:
    ended = replay(command, "--help")
    assert ended.code == 0
    assert EPILOG in ended.out


def test_help_names_every_command_and_version_says_one(replay: Replay) -> None:
    ended = replay("--help")
    assert ended.code == 0
    assert all(f"  {command} " in ended.out for command in ("verify", "print", "history", "rebuild", "inject"))
    assert re.fullmatch(r"rcache-replay \d+\.\d+\.\d+\n", replay("--version").out)


def test_the_exit_codes_are_the_same_in_program_help_and_document() -> None:
    document = (Path(__file__).parents[2] / "docs" / "records.md").read_text().split("## rcache-replay", 1)[1]
    in_document = dict(re.findall(r"^\| (\d) \| (.*) \|$", document, re.MULTILINE))
    in_help = dict(re.findall(r"^  (\d)  (.*)$", EPILOG, re.MULTILINE))
    assert in_help == in_document
    assert {int(code) for code in in_help} == {code.value for code in ReplayExit}


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        ("0", 0),
        ("1714565400", T0),
        ("1714565400.25", T0 + 250),
        ("2024-05-01T12:10:00", T0),
        ("2024-05-01T12:10:00Z", T0),
        ("2024-05-01 14:10:00+02:00", T0),
        ("2024-05-01", 1_714_521_600_000),
        ("2024-05-01T12:10:00.999999", T0 + 999),
    ],
)
def test_times(text: str, ms: int) -> None:
    assert parse_time(text) == ms


def test_times_ago(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rcache.commands.replay_times.now_ms", lambda: T0)
    assert parse_time("10m ago") == T0 - 600_000
    assert parse_time("1.5h ago") == T0 - 5_400_000
    assert parse_time("2 d ago") == T0 - 172_800_000


def test_a_time_of_no_calendar_is_shown_as_it_is() -> None:
    assert show_time(2**63) == f"{2**63}ms"


def test_progress_is_shown_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(StringIO):
        def isatty(self) -> bool:
            return True

    for screen, shown in ((Terminal(), True), (StringIO(), False)):
        monkeypatch.setattr(sys, "stderr", screen)
        with progress("reading") as report:
            report(1, 2)
        assert ("reading" in screen.getvalue()) is shown


def test_elsewhere_progress_is_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(progress_bar, "monotonic", lambda: now[0])
    monkeypatch.setattr(sys, "stderr", StringIO())
    with progress("injecting") as report:
        for done, now[0] in ((1, 100.1), (5, 109.9), (10, 110.0), (11, 119.9), (40, 125.0)):
            report(done, 200)
    assert sys.stderr.getvalue() == "injecting: 5 % after 10 s\ninjecting: 20 % after 25 s\n"


# as a process


def run(*argv: object, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rcache.commands.rcache_replay", *map(str, argv)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **options)


def test_as_a_process_in_a_pipe(logs: Path) -> None:
    ended = run("print", logs, "--json")
    assert (ended.returncode, ended.stderr, len(ended.stdout.splitlines())) == (0, "", 7)
    spoil(segment(logs, 1), header_of(1))
    assert run(logs).returncode == ReplayExit.DAMAGED


def test_a_reader_that_has_seen_enough(tmp_path: Path) -> None:
    write_file(tmp_path, header_of(1), [opened(1), *(change(n) for n in range(1, 5000))])
    command = [sys.executable, "-m", "rcache.commands.rcache_replay", "print", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as program:
        assert program.stdout is not None
        assert program.stderr is not None
        assert b"OPEN" in program.stdout.readline()
        program.stdout.close()
        assert program.stderr.read() == b""
        assert program.wait(30) == 0


def test_a_key_of_any_bytes_can_be_asked_for(tmp_path: Path) -> None:
    write_file(tmp_path, header_of(1), [opened(1), change(1, b"\xff\xfe")])
    ended = run("history", os.fsdecode(b"\xff\xfe"), tmp_path, "--json")
    assert (ended.returncode, json.loads(ended.stdout.splitlines()[-1])["key_base64"]) == (0, "//4=")
