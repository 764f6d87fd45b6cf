"""rcache-cli as its user meets it: real processes against a real rcached; a scripted one where a server must misbehave."""

from __future__ import annotations

import base64
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from rcache.commands import cli_load
from rcache.commands.cli_arguments import COMMANDS
from rcache.commands.cli_exit import EXIT_CODES, CliExit
from rcache.commands.cli_load import Loaded, find_files
from rcache.commands.cli_options import parse
from rcache.commands.show import show_seconds, show_size
from rcache.commands.show_stats import show_figure, show_share
from rcache.engine.bodies import why_not_native
from rcache_client import Client, Role
from rcache_client.wire.grammar import REQUESTS
from rcache_client.wire.opcodes import Opcode
from soak.server_process import ServerProcess
from tests.client.scripted_server import Line, ScriptedServer, play
from tests.client.support import free_address

DOCUMENT = Path(__file__).parents[2] / "docs" / "cli.md"
PROGRAM = [sys.executable, "-m", "rcache.commands.rcache_cli"]
WAIT_S = 30.0
SECRET = b"a secret of the tests, long enough"
BINARY = bytes(range(256))


class Ended(NamedTuple):
    """How a run ended, and what it said."""

    code: int
    out: bytes
    err: str

    @property
    def text(self) -> str:
        return self.out.decode()

    @property
    def json(self) -> dict[str, Any]:
        (line,) = self.out.splitlines()
        found: dict[str, Any] = json.loads(line)
        assert found["exit_code"] == self.code
        return found


def environment(**variables: str) -> dict[str, str]:
    clean = {name: text for name, text in os.environ.items() if not name.startswith("RCACHE_")}
    return clean | variables


def run(*arguments: str | bytes, stdin: bytes = b"", stdout: int = subprocess.PIPE, **variables: str) -> Ended:
    """Run rcache-cli without a terminal."""
    ended = subprocess.run(
        [*PROGRAM, *arguments],
        input=stdin,
        stdout=stdout,
        stderr=subprocess.PIPE,
        check=False,
        timeout=WAIT_S,
        env=environment(**variables),
    )
    err = ended.stderr.decode()
    assert "Traceback" not in err, err
    return Ended(ended.returncode, ended.stdout or b"", err)


Cli = Callable[..., Ended]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with ServerProcess(tmp_path_factory.mktemp("cli") / "data") as started:
        yield started
        assert started.stop() == 0


@pytest.fixture
def cache(server: ServerProcess) -> Iterator[Client[bytes]]:
    with Client(server.address) as client:
        client.flush()
        yield client


@pytest.fixture
def cli(server: ServerProcess, cache: Client[bytes]) -> Cli:
    """rcache-cli on a server that holds nothing yet."""
    return lambda *arguments, **more: run(*arguments, RCACHE_SERVER=server.address, **more)


def on_terminal(server: ServerProcess, *arguments: str, typed: bytes = b"", until: bytes = b"") -> tuple[int, bytes]:
    """Run rcache-cli on a terminal; type `typed` once `until` was shown. Returns the exit code and all that was shown."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*PROGRAM, *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment(RCACHE_SERVER=server.address, TERM="xterm", COLUMNS="100"),
    )
    os.close(theirs)
    shown, deadline = b"", time.monotonic() + WAIT_S
    try:
        while select.select([ours], [], [], max(0.0, deadline - time.monotonic()))[0]:
            try:
                more = os.read(ours, 4096)
            except OSError:  # the other end is closed
                break
            shown += more
            if not more:
                break
            if typed and until in shown:
                os.write(ours, typed)
                typed = b""
        return process.wait(WAIT_S), shown.replace(b"\r\n", b"\n")
    finally:
        process.kill()
        process.wait(WAIT_S)
        os.close(ours)


# --- values


@pytest.mark.parametrize("value", [b"hello", b"", b"two\nlines\n", BINARY], ids=["text", "empty", "lines", "binary"])
def test_a_value_comes_back_unchanged(cli: Cli, value: bytes) -> None:
    assert cli("set", "k", "-", stdin=value) == Ended(0, f"stored {len(value)} bytes\n".encode(), "")
    assert cli("get", "k") == Ended(0, value, "")


def test_a_value_may_stand_on_the_command_line(cli: Cli, cache: Client[bytes]) -> None:
    assert cli("set", "k", "--ttl", "10m", "hello").text == "stored 5 bytes; expires in 10 min 0 s\n"
    assert cache.get("k") == b"hello"
    found = cache.inspect("k")
    assert found is not None
    assert found.ttl is not None
    assert 590 < found.ttl <= 600


def test_bytes_of_the_command_line_are_taken_as_they_are(cli: Cli, cache: Client[bytes]) -> None:
    assert cli("set", b"\xff\xfe", b"\x80").code == 0
    assert cache.get(b"\xff\xfe") == b"\x80"
    found = cli("get", b"\xff\xfe", "--json").json
    assert (found["key_encoding"], base64.b64decode(found["key"])) == ("base64", b"\xff\xfe")
    assert cli("get", b"\xff").err == "rcache-cli: no such key: b'\\xff'\n"


def test_what_looks_like_an_option_comes_behind_two_dashes(cli: Cli, cache: Client[bytes]) -> None:
    assert cli("set", "--ttl", "60", "--", "-key", "--value").code == 0
    assert cli("get", "--", "-key").out == b"--value" == cache.get("-key")


def test_options_stand_anywhere(server: ServerProcess, cache: Client[bytes]) -> None:
    cache.set("k", b"v")
    for arguments in (["--server", server.address, "get", "k"], ["get", "--server", server.address, "k"]):
        assert run(*arguments, RCACHE_SERVER=free_address()).out == b"v"
    assert run(f"--server={server.address}", "--json", "get", "k").json["value"] == "v"


def test_json_of_a_value(cli: Cli, cache: Client[bytes]) -> None:
    version = cache.set("text", "grün".encode())
    expected = {"command": "get", "key": "text", "key_encoding": "utf-8", "found": True, "exit_code": 0}
    expected |= {"value": "grün", "value_encoding": "utf-8", "bytes": 5, "version": version}
    assert cli("get", "text", "--json").json == expected
    cache.set("binary", BINARY)
    found = cli("get", "binary", "--json").json
    assert (found["value_encoding"], base64.b64decode(found["value"])) == ("base64", BINARY)


def test_a_missing_key_is_exit_code_4(cli: Cli) -> None:
    assert cli("get", "nope") == Ended(4, b"", "rcache-cli: no such key: 'nope'\n")
    missing = cli("get", "nope", "--json")
    assert missing.err == ""
    assert missing.json == {
        "command": "get",
        "key": "nope",
        "key_encoding": "utf-8",
        "found": False,
        "error": "no such key: 'nope'",
        "exit_code": 4,
    }
    assert {cli(*command).code for command in (["ttl", "x"], ["ttl", "x", "9"], ["incr", "x"], ["replace", "x", "v"])} == {4}


def test_add_and_replace_look_at_what_is_there(cli: Cli, cache: Client[bytes]) -> None:
    assert cli("replace", "k", "early").code == 4
    assert cli("add", "k", "first").code == 0
    assert cli("add", "k", "second").err == "rcache-cli: not stored: there is a key 'k' already\n"
    assert cache.get("k") == b"first"
    assert cli("replace", "k", "third").code == 0
    assert cache.get("k") == b"third"


def test_delete_names_what_was_not_there_and_removes_the_rest(cli: Cli, cache: Client[bytes]) -> None:
    cache.set_many({"a": b"1", "b": b"2", "c": b"3"})
    assert cli("delete", "a", "nope", "b") == Ended(4, b"deleted 2\n", "rcache-cli: no such key: 'nope'\n")
    assert cache.get_many(["a", "b", "c"]) == {"c": b"3"}
    found = cli("delete", "c", "c", "--json").json
    assert (found["deleted"], found["missing"]) == ([{"key": "c", "key_encoding": "utf-8"}], [])


def test_counting(cli: Cli, cache: Client[bytes]) -> None:
    steps = [
        (("incr", "n", "--initial", "5", "--ttl", "1h"), "5"),
        (("incr", "n"), "6"),
        (("incr", "n", "-10"), "-4"),
        (("decr", "n", "3"), "-7"),
    ]
    for arguments, number in steps:
        assert cli(*arguments) == Ended(0, f"{number}\n".encode(), "")
    assert cli("incr", "n", "--json", "8").json["number"] == 1
    found = cache.inspect("n")
    assert found is not None
    assert found.ttl is not None


def test_time_to_live_is_shown_and_changed(cli: Cli, cache: Client[bytes]) -> None:
    cache.set("k", b"v")
    assert cli("ttl", "k").text == "never expires\n"
    assert re.fullmatch(r"expires in (1 h 59 min|2 h 0 min)\n", cli("ttl", "k", "2h").text)
    found = cli("ttl", "k", "--json").json
    assert 7000 < found["ttl_s"] <= 7200
    assert found["bytes"] == 1
    assert cli("ttl", "k", "--forever").text == "never expires\n"
    assert cli("ttl", "k", "--json").json["ttl_s"] is None
    assert cli("ttl", "k", "0.05").code == 0
    deadline = time.monotonic() + WAIT_S
    while cache.get("k") is not None:
        assert time.monotonic() < deadline


def test_a_terminal_gets_text_that_cannot_command_it(server: ServerProcess, cache: Client[bytes]) -> None:
    cache.set("k", b"red \x1b[31m, bell \x07, \xff, gr\xc3\xbcn")
    code, shown = on_terminal(server, "get", "k")
    assert (code, shown.decode()) == (0, "red \\x1b[31m, bell \\x07, \\xff, grün\n")


# --- the service


def test_ping_asks_every_server(server: ServerProcess) -> None:
    assert re.fullmatch(rf"{server.address} answered in [\d.]+ (us|ms|s)\n", run("ping", "--server", server.address).text)
    down = free_address()
    ended = run("ping", RCACHE_SERVER=f"{server.address}, {down}")
    assert (ended.code, ended.text.count("answered")) == (3, 1)
    assert down in ended.err
    first, second = run("ping", "--json", "--server", server.address, "--server", down).json["servers"]
    assert 0 < first["seconds"] < WAIT_S
    assert (second["server"], second["seconds"]) == (down, None)
    assert "refused" in second["error"]


def test_stats_are_tables_for_people(cli: Cli, cache: Client[bytes]) -> None:
    cache.set("k", b"v")
    every = cli("stats").text
    assert re.search(r"^items\n  items +1 *$", every, re.MULTILINE)
    assert re.search(r"^  limit +1.0 GiB *$", every, re.MULTILINE)
    assert "append log" in every
    memory = cli("stats", "memory").text
    assert memory.startswith("memory\n")
    assert "append log" not in memory
    assert "\x1b" not in every


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A small server with the native engine, filled past its limit with small, middling and large items."""
    if why_not_native():
        pytest.skip("the native engine was not built here")
    with ServerProcess(tmp_path_factory.mktemp("slabs") / "data", "--engine", "native", "--memory-limit", "16M") as started:
        with Client(started.address) as client:
            client.set_many({f"{number}": b"" for number in range(40_000)})  # enough for tables beyond a bucket's first
            for number in range(120):
                client.set_many({f"{number}-{size}": bytes(size) for size in (100, 1_000, 5_000, 200_000)})
        yield started
        assert started.stop() == 0


def test_stats_memory_says_how_much_of_how_much(native: ServerProcess) -> None:
    figures = run("stats", "memory", "--json", "--server", native.address).json["stats"]["memory"]
    shown = run("stats", "memory", "--server", native.address).text
    used = show_size(figures["used_bytes"])
    for title, figure in {
        "limit": "16.0 MiB",
        "in use": f"{used} ({show_share(figures['used_bytes'], figures['limit_bytes'])} of the limit)",
        "pages in use": f"{figures['pages_in_use']:,} of {figures['pages']:,}, each of {show_size(figures['page_bytes'])}",
        "reserved": f"{show_size(figures['reserved_bytes'])} of addresses; memory only as it is used",
        "items moved": f"{figures['items_moved']:,}",
        "pages reclassed": f"{figures['pages_reclassed']:,}",
        "evict": "yes",
    }.items():
        assert re.search(rf"^  {title} +{re.escape(figure)}$", shown, re.MULTILINE), (title, figure, shown)
    assert re.search(r"^  connection buffers +[\d.,]+ \w+ \(bound: 64.0 MiB, and one read for each\)$", shown, re.MULTILINE)
    assert re.search(r"^  process, resident +[\d.]+ MiB$", shown, re.MULTILINE)
    told = {"limit_bytes", "used_bytes", "pages", "pages_in_use", "page_bytes", "reserved_bytes", "items_moved", "evict"}
    told |= {"pages_reclassed", "connection_buffer_bytes", "connection_buffer_bytes_max", "process_bytes"}
    assert set(figures) == told, "a figure that is not shown, or not looked at here"
    assert len(shown.splitlines()) == 1 + len(told) - 3, "a row each, but pages in one, and buffers in one"


def test_stats_memory_of_the_reference_engine_says_what_it_knows(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "data", "--engine", "reference") as server:
        shown = run("stats", "memory", "--server", server.address).text
        assert re.match(r"memory\n  limit +1.0 GiB\n  in use +[\d.]+ \w+ \(0.0 % of the limit\)\n", shown)
        assert "process, resident" in shown
        refused = run("stats", "slabs", "--server", server.address)
        assert (refused.code, "no section 'slabs'" in refused.err) == (5, True), "it has none"
        assert server.stop() == 0


def test_stats_slabs_are_a_row_for_each_class_and_their_sum(native: ServerProcess) -> None:
    found = run("stats", "slabs", "--json", "--server", native.address).json["stats"]
    page_bytes = run("stats", "memory", "--json", "--server", native.address).json["stats"]["memory"]["page_bytes"]
    assert set(found) == {"slabs"}, "raw, and nothing beside"
    classes = found["slabs"]["classes"]
    assert {each["kind"] for each in classes} == {"items", "tables", "large items"}
    title, header, *rows, total = run("stats", "slabs", "--server", native.address).text.splitlines()
    assert title == "slabs"
    assert re.split(r" {2,}", header.strip()) == [
        *("kind", "chunk", "pages", "used chunks", "free chunks", "evicted", "waste", "of used"),
    ]
    cells = [re.split(r" {2,}", row.strip()) for row in rows]
    for row, each in zip(cells, classes, strict=True):
        chunk_bytes = each["chunk_bytes"] or page_bytes
        counts = [chunk_bytes, each["pages"], each["used_chunks"], each["free_chunks"], each["evicted"]]
        waste = show_share(each["wasted_bytes"], each["used_chunks"] * chunk_bytes)
        assert row == [each["kind"], *(f"{count:,}" for count in counts), show_size(each["wasted_bytes"]), waste]
    pages, evicted = (sum(each[name] for each in classes) for name in ("pages", "evicted"))
    assert evicted > 0
    assert re.match(rf"  all +{pages:,} +[\d,]+ +[\d,]+ +{evicted:,} +[\d.]+ \w+ +[\d.]+ %$", total)
    assert len({len(row) for row in (header, *rows, total)}) == 1, "numbers stand below each other"


def test_stats_of_all_sections_hold_the_same_tables(native: ServerProcess) -> None:
    every = run("stats", "--server", native.address).text
    assert "\nslabs\n  kind " in every
    assert "\n  large items " in every
    assert "of the limit)\n" in every
    assert "{" not in every, "nothing is left as Python writes it"


def test_stats_are_numbers_for_programs(cli: Cli, cache: Client[bytes]) -> None:
    cache.set("k", b"v")
    every = cli("stats", "--json").json["stats"]
    assert every["items"]["items"] == 1
    assert set(cli("stats", "--json", "memory").json["stats"]) == {"memory"}


def test_an_unknown_section_is_refused_and_those_that_exist_are_named(cli: Cli) -> None:
    refused = cli("stats", "bogus")
    assert refused.code == 5
    assert "append_log" in refused.err


def test_persist_is_switched_on_and_off(cli: Cli, cache: Client[bytes]) -> None:
    savefile = cache.persist().savefile
    assert cli("persist").text == "off: the server writes no savefile when it stops\n"
    assert cli("persist", "on").text == f"on: the server saves its data to {savefile} when it stops\n"
    assert cache.persist().on
    assert cli("persist", "status", "--json").json == {
        "command": "persist",
        "on_shutdown": True,
        "savefile": savefile,
        "exit_code": 0,
    }
    assert cli("persist", "OFF").code == 0
    assert not cache.persist().on


def test_flush_without_a_terminal_asks_nobody(cli: Cli, cache: Client[bytes]) -> None:
    cache.set_many({"a": b"1", "b": b"2"})
    assert cli("flush") == Ended(0, b"removed 2 items\n", "")
    assert cache.get_many(["a", "b"]) == {}
    assert cli("flush", "--json").json["removed"] == 0


@pytest.mark.parametrize(("typed", "code", "left"), [(b"y\n", 0, {}), (b"\n", 5, {"a": b"1"}), (b"no\n", 5, {"a": b"1"})])
def test_flush_asks_on_a_terminal(
    server: ServerProcess, cache: Client[bytes], typed: bytes, code: int, left: dict[str, bytes]
) -> None:
    cache.set("a", b"1")
    ended, shown = on_terminal(server, "flush", typed=typed, until=b"[y/N]")
    assert b"Remove 1 item, all of " + server.address.encode() in shown
    assert ended == code
    assert cache.get_many(["a"]) == left


def test_flush_does_not_ask_with_yes(server: ServerProcess, cache: Client[bytes]) -> None:
    cache.set("a", b"1")
    assert on_terminal(server, "flush", "--yes") == (0, b"removed 1 item\n")


# --- load


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    files = {"a.txt": b"alpha", "empty": b"", "sub/b.bin": BINARY, "sub/deep/c": b"c" * 5000}
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def test_load_stores_every_file_under_its_path(cli: Cli, cache: Client[bytes], tree: Path) -> None:
    done = cli("load", str(tree), "--prefix", "www/", "--ttl", "1d")
    assert (done.code, done.err) == (0, "")
    assert re.match(r"stored 4 files, 5.1 KiB, in ", done.text)
    assert cache.get_many(["www/a.txt", "www/empty", "www/sub/b.bin", "www/sub/deep/c"]) == {
        "www/a.txt": b"alpha",
        "www/empty": b"",
        "www/sub/b.bin": BINARY,
        "www/sub/deep/c": b"c" * 5000,
    }
    found = cache.inspect("www/empty")
    assert found is not None
    assert found.ttl is not None
    assert cache.stats("items")["items"]["items"] == 4


def test_load_goes_on_behind_what_fails_and_names_it(cli: Cli, cache: Client[bytes], tree: Path) -> None:
    (tree / "sub" / "large").write_bytes(b"x" * 2_000_000)  # over the value limit
    (tree / "larger").write_bytes(b"x" * 20_000_000)  # over the frame limit
    (tree / "gone").symlink_to("nowhere")
    os.mkfifo(tree / "pipe")  # not a file: left alone
    done = cli("load", str(tree))
    assert done.code == 8
    assert re.match(r"stored 4 files", done.text)
    complaints = done.err.splitlines()
    assert len(complaints) == 4
    assert any("'sub/large': 1.9 MiB not stored" in line and "TOO_LARGE" in line for line in complaints)
    assert any("'larger': 19.1 MiB not stored" in line for line in complaints)
    assert any("'gone': cannot be read" in line for line in complaints)
    assert complaints[-1] == "rcache-cli: not stored: 3 of 7 files"
    found = cli("load", "--json", str(tree)).json
    assert (found["files"], {each["key"] for each in found["failed"]}) == (4, {"sub/large", "larger", "gone"})
    assert cache.stats("items")["items"]["items"] == 4


def test_load_shows_a_bar_on_a_terminal(server: ServerProcess, cache: Client[bytes], tree: Path) -> None:
    code, shown = on_terminal(server, "load", str(tree))
    assert code == 0
    assert b"loading" in shown
    assert b"stored 4 files" in shown
    assert cache.get("a.txt") == b"alpha"


def test_load_works_in_batches(monkeypatch: pytest.MonkeyPatch, tree: Path) -> None:
    loaded = Loaded()
    found = find_files(tree, b"", loaded, skip=["deep"])
    assert [each.key for each in found] == [b"a.txt", b"empty", b"sub/b.bin"]
    monkeypatch.setattr(cli_load, "BATCH_FILES", 2)
    assert [list(batch) for batch in cli_load.batches(found, loaded)] == [[b"a.txt", b"empty"], [b"sub/b.bin"]]
    monkeypatch.setattr(cli_load, "BATCH_BYTES", 100)
    assert [list(batch) for batch in cli_load.batches(found, loaded)] == [[b"a.txt", b"empty"], [b"sub/b.bin"]]
    found[0].path.unlink()
    assert [list(batch) for batch in cli_load.batches(found, loaded)] == [[b"empty"], [b"sub/b.bin"]]
    assert "No such file" in loaded.failed[b"a.txt"]


def test_load_stores_again_what_nobody_knows_the_outcome_of(tree: Path) -> None:
    def hang_up(line: Line) -> None:
        line.hello()
        line.execute(line.request())  # PING
        line.request()  # SET_MANY gets no answer

    with ScriptedServer(hang_up, play) as server:
        done = run("load", str(tree), "--server", server.address)
        assert server.opcodes().count(Opcode.SET_MANY) == 2
    assert (done.code, done.err) == (0, "")
    assert done.text.startswith("stored 4 files")


def test_load_ends_when_the_server_has_gone(tree: Path) -> None:
    gone = run("load", str(tree), "--server", free_address())
    assert (gone.code, gone.out) == (3, b"")
    assert "no server can be used" in gone.err


# --- how it ends


def test_no_server_is_exit_code_3_with_advice() -> None:
    address = free_address()
    ended = run("get", "k", RCACHE_SERVER=address)
    assert (ended.code, ended.out) == (3, b"")
    assert address in ended.err
    assert "Does rcached run there?" in ended.err
    assert "no server" in run("get", "k", "--json", RCACHE_SERVER=address).json["error"]


def test_a_silent_server_costs_no_more_than_the_budget(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "data") as stopped:
        stopped.signal(signal.SIGSTOP)
        began = time.monotonic()
        ended = run("get", "k", "--budget", "0.3", "--server", stopped.address)
        assert ended.code == 3
        assert time.monotonic() - began < WAIT_S / 2
        assert "the budget ended" in ended.err


def test_a_refusal_is_exit_code_5_and_says_why(cli: Cli, cache: Client[bytes]) -> None:
    cache.set("k", b"text")
    refused = cli("incr", "k")
    assert refused.code == 5
    assert "NOT_A_NUMBER" in refused.err
    assert cli("set", "k", "-", stdin=b"x" * 2_000_000).code == 5
    assert cache.get("k") == b"text"


def test_an_unknown_outcome_is_exit_code_6() -> None:
    def swallow(line: Line) -> None:
        line.hello()
        line.request()

    with ScriptedServer(swallow) as server:
        ended = run("set", "k", "v", "--server", server.address)
    assert ended.code == 6
    assert "may or may not have been executed" in ended.err


def test_a_reader_who_has_seen_enough_is_no_error(cli: Cli, cache: Client[bytes]) -> None:
    cache.set("k", b"x" * 500_000)
    for arguments in (["get", "k"], ["stats"], ["get", "k", "--json"]):
        reading, writing = os.pipe()
        os.close(reading)
        try:
            assert cli(*arguments, stdout=writing) == Ended(0, b"", "")
        finally:
            os.close(writing)


def test_a_full_disk_is_told(cli: Cli, cache: Client[bytes]) -> None:
    cache.set("k", b"v")
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        ended = cli("get", "k", stdout=full)
    finally:
        os.close(full)
    assert (ended.code, ended.err) == (7, "rcache-cli: the answer could not be written: No space left on device\n")


def is_asleep(pid: int) -> bool:
    """Whether a process sleeps in the kernel, now and a moment ago."""
    time.sleep(0.005)
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"


def test_ctrl_c_ends_it_without_a_word() -> None:
    def swallow(line: Line) -> None:
        line.hello()
        line.request()
        line.hold()

    with ScriptedServer(swallow) as server:
        command = [*PROGRAM, "set", "k", "v", "--budget", "60", "--server", server.address]
        with subprocess.Popen(command, stderr=subprocess.PIPE, env=environment()) as process:
            assert process.stderr is not None
            server.wait_for(lambda: Opcode.SET in server.opcodes())
            # While it waits for the answer: a signal on the very way into that wait is seen only at its end (CPython).
            server.wait_for(lambda: all(is_asleep(process.pid) for _ in range(5)))
            process.send_signal(signal.SIGINT)
            assert process.wait(WAIT_S) == 130
            assert process.stderr.read() == b""


# --- the command line


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "a command is needed"),
        (["bogus"], "there is no command 'bogus'; there are: ping, get,"),
        (["get"], "the following arguments are required: KEY"),
        (["get", ""], "a key of 0 bytes"),
        (["get", "a", "b"], "unrecognized arguments: b"),
        (["set", "k", "v", "--ttl", "soon"], "--ttl: 'soon' is not a time"),
        (["set", "k", "v", "--ttl", "0"], "--ttl: '0' is not a time"),
        (["set", "k", "v", "--ttl", "9999999999w"], "is not a time"),
        (["ttl", "k", "5", "--forever"], "--forever and a time were both given"),
        (["incr", "k", "1.5"], "'1.5' is not a whole number"),
        (["incr", "k", "9223372036854775808"], "is not a whole number from -9223372036854775808"),
        (["persist", "maybe"], "'maybe' is not one of on, off, status"),
        (["load", "/no/such/directory"], "DIR: '/no/such/directory' is neither"),
        (["load", "/dev/null"], "'/dev/null' is not a directory"),
        (["ping", "--server", "a:b:c"], "--server: the server 'a:b:c' has too many colons"),
        (["ping", "--server", "a", "--server", "a"], "--server: the server 'a:13600' was given twice"),
        (["ping", "--budget", "0"], "--budget: '0' is not a time"),
        (["ping", "--serv", "a"], "unrecognized arguments: --serv"),
        (["ping", "--secret-file", "/no/such/file"], "--secret-file: '/no/such/file' cannot be read"),
    ],
)
def test_wrong_use_is_exit_code_2_and_one_message(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(arguments, {})
    assert ended.value.code == 2
    said = capsys.readouterr()
    assert told in said.err
    assert said.err.count("\n") == 2
    assert said.out == ""


def test_variables_stand_in_for_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(SECRET)
    secret.chmod(0o600)
    variables = {"RCACHE_SERVER": "one:1, [::1]:2", "RCACHE_SECRET_FILE": str(secret)}
    options = parse(["ping"], variables)
    assert (options.servers, options.secret) == (("one:1", "[::1]:2"), SECRET)
    assert SECRET.decode() not in repr(options)
    assert parse(["ping", "--server", "two:3"], variables).servers == ("two:3",)
    assert parse(["ping"], {"RCACHE_SERVER": "", "RCACHE_SECRET_FILE": ""}).servers == ("127.0.0.1:13600",)
    with pytest.raises(SystemExit):
        parse(["ping"], {"RCACHE_SERVER": "one:port"})
    assert "RCACHE_SERVER: the port" in capsys.readouterr().err


def test_a_server_with_a_secret_lets_in_who_knows_it(tmp_path: Path) -> None:
    secret, wrong = tmp_path / "secret", tmp_path / "wrong"
    for path, content in ((secret, SECRET), (wrong, b"another secret, as long")):
        path.write_bytes(content)
        path.chmod(0o600)
    with ServerProcess(tmp_path / "data", "--secret-file", str(secret)) as guarded:
        assert run("set", "k", "v", "--secret-file", str(secret), RCACHE_SERVER=guarded.address).code == 0
        assert run("get", "k", RCACHE_SERVER=guarded.address, RCACHE_SECRET_FILE=str(secret)).out == b"v"
        for name in ("", str(wrong)):
            stranger = run("get", "k", RCACHE_SERVER=guarded.address, RCACHE_SECRET_FILE=name)
            assert stranger.code == 5
            assert "give the same file here" in stranger.err


def test_it_says_hello_as_an_administrator() -> None:
    with ScriptedServer() as server:
        assert run("ping", "--server", server.address).code == 0
    hello = REQUESTS[Opcode.HELLO].decode(server.requests[0].payload)
    assert Role.ADMIN in hello
    assert "rcache-cli" in hello


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--help"], *([command, "--help"] for command in COMMANDS)):
        with pytest.raises(SystemExit) as ended:
            parse(arguments, {})
        assert ended.value.code == 0
        said = capsys.readouterr().out
        assert EXIT_CODES in said
        assert all(option in said for option in ("--server", "--secret-file", "--budget", "--json"))
        assert max(map(len, said.splitlines())) <= 100
    assert re.fullmatch(rb"rcache-cli \d+\.\d+\.\d+\n", run("--version").out)


def test_the_document_has_every_command_option_and_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    for command in COMMANDS:
        assert f"`{command}" in text, command
        with pytest.raises(SystemExit):
            parse([command, "--help"], {})
        for option in re.findall(r"--[a-z-]+", capsys.readouterr().out):
            assert option in text, f"{command} {option}"
    for code in CliExit:
        assert f"| {code.value} |" in text
    for line in EXIT_CODES.splitlines()[1:]:
        assert line.split("  ", 2)[-1].strip() in text, line


# --- forms for people


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0.0 s"),
        (0.000_08, "80 us"),
        (0.0123, "12.3 ms"),
        (1, "1.0 s"),
        (59.94, "59.9 s"),
        (60, "1 min 0 s"),
        (3599.6, "1 h 0 min"),
        (90_061, "1 d 1 h"),
        (-0.5, "-500 ms"),
    ],
)
def test_times_for_people(seconds: float, shown: str) -> None:
    assert show_seconds(seconds) == shown


@pytest.mark.parametrize(
    ("size", "shown"),
    [(0, "0 bytes"), (1023, "1,023 bytes"), (1024, "1.0 KiB"), (1 << 30, "1.0 GiB"), (1 << 50, "1,024.0 TiB")],
)
def test_sizes_for_people(size: int, shown: str) -> None:
    assert show_size(size) == shown


@pytest.mark.parametrize(
    ("name", "figure", "shown"),
    [
        ("used_bytes", 2048, "2.0 KiB"),
        ("bytes_held", 0, "0 bytes"),
        ("uptime_s", 61.0, "1 min 1 s"),
        ("clock_stepped_ms", 5, "5 ms"),
        ("items", 1_234_567, "1,234,567"),
        ("pid", 12345, "12345"),
        ("evict", True, "yes"),
        ("ended", {"goodbye": 3}, "goodbye: 3"),
        ("ended", {}, "none"),
        ("warnings", ["one", "two"], "one, two"),
        ("failure", "", "-"),
    ],
)
def test_figures_for_people(name: str, figure: Any, shown: str) -> None:
    assert show_figure(name, figure) == shown
