"""The demonstration behind `make run`, as a process of its own: what it says, how it ends, and what it leaves behind."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from rcache.commands.cli_load import Found
from rcache_client import Client
from soak.demo import Demo, DemoFailed, compare, connected, find, store, wait_until_on_disk
from soak.server_process import ServerFailed, ServerProcess

ROOT = Path(__file__).parents[2]
WAIT_S = 60.0

_PLAIN = [sys.executable, "-m", "soak.demo"]
_CHANGED = "import signal, sys; from soak import demo; real = demo.wait_until_on_disk\n{}\nsys.exit(demo.main(sys.argv[1:]))"


def demo_with(code: str) -> list[str]:
    """The demonstration with `code` run first; `real` is its function that waits for the append log."""
    return [sys.executable, "-c", _CHANGED.format(code)]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    root = tmp_path / "source"
    files = {"a.py": b"print()\n", "sub/empty": b"", "sub/b.so": bytes(range(256)) * 300, "site-packages/other.py": b"no"}
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Path]:
    """Where the demonstration puts its temporary directory. It leaves nothing there, however it ends."""
    directory = tmp_path / "room"
    directory.mkdir()
    yield directory
    assert list(directory.iterdir()) == []


def environment(room: Path) -> dict[str, str]:
    return os.environ | {"TMPDIR": str(room), "COLUMNS": "80"}


def run(command: list[str], room: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*command, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=WAIT_S,
        cwd=ROOT,
        env=environment(room),
    )


def assert_gone(process_id: int) -> None:
    with pytest.raises(ProcessLookupError):
        os.kill(process_id, 0)


def test_all_steps_are_gone_through_and_nothing_differs(source: Path, room: Path) -> None:
    (source / "large").write_bytes(b"x" * 2_000_000)
    ended = run(_PLAIN, room, "--source", source, "--max-file-size", "1M")
    assert (ended.returncode, ended.stderr) == (0, "")
    steps = re.findall(r"^ ?\d+\. (.{10}) ", ended.stdout, re.MULTILINE)
    expected = ["find", "start", "store", "compare", "wait", "kill -9", "rebuild", "restart", "compare", "restore", "compare"]
    assert [step.strip() for step in steps] == expected
    assert "3 files, 75.0 KiB, in " in ended.stdout
    assert "1 file over 1.0 MiB left out" in ended.stdout
    assert re.search(r"after the restart │ +3 │ +0\.1 │ .* │ +0 │\n", ended.stdout)
    assert ended.stdout.count("recovered: 3 items") == 3
    assert re.search(r"^mismatches: 0 \(all done in \d+ s\)$", ended.stdout, re.MULTILINE)
    assert max(map(len, ended.stdout.partition("one operation")[2].partition("recovered")[0].splitlines())) <= 80


def test_a_value_that_changed_ends_it_with_1(source: Path, room: Path) -> None:
    """Somebody else writes between the first comparison and the crash: every later comparison must see it."""
    code = (
        "demo.wait_until_on_disk = lambda told, cache: "
        "(cache.set('a.py', b'other'), cache.delete('sub/b.so'), real(told, cache))"
    )
    ended = run(demo_with(code), room, "--source", source)
    assert ended.returncode == 1
    assert "mismatch: after the restart: 'a.py' has another value" in ended.stdout
    assert "mismatch: after the restore: 'sub/b.so' is missing" in ended.stdout
    assert "the server holds 2 items, not 3" in ended.stdout
    assert re.search(r"^mismatches: 6 ", ended.stdout, re.MULTILINE)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_leaves_nothing_behind(source: Path, room: Path, number: int) -> None:
    """With a server running, and in the middle of a step."""
    code = (
        "demo.wait_until_on_disk = lambda told, cache: "
        "(print('server', cache.stats()['server']['pid'], flush=True), signal.pause())"
    )
    command = [*demo_with(code), "--source", str(source)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment(room)
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        server = next(int(line.split()[1]) for line in process.stdout if line.startswith("server "))
        process.send_signal(number)
        assert process.wait(WAIT_S) == 128 + number
        assert process.stderr.read() == "interrupted; everything is cleaned up\n"
    assert_gone(server)


def test_a_server_that_dies_is_told_with_its_last_words(source: Path, room: Path) -> None:
    code = (
        "import os, signal\n"
        "demo.wait_until_on_disk = lambda told, cache: "
        "(os.kill(cache.stats()['server']['pid'], signal.SIGKILL), cache.get('a.py', budget=1), cache.get('a.py', budget=1))"
    )
    ended = run(demo_with(code), room, "--source", source)
    assert ended.returncode == 1
    assert "the demonstration failed: GET" in ended.stderr
    assert "The server said: " in ended.stderr
    assert "serving on" in ended.stderr


def test_nothing_to_store_is_told(tmp_path: Path, room: Path) -> None:
    ended = run(_PLAIN, room, "--source", tmp_path / "room")
    assert (ended.returncode, ended.stderr) == (1, f"the demonstration failed: there are no files in {tmp_path / 'room'}\n")


def test_too_little_room_on_disk_is_told_before_anything_is_done(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    demo = Demo(tmp_path, source, 1 << 20, Console(quiet=True))
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=300 << 10))
    with pytest.raises(DemoFailed, match=r"has 300\.0 KiB left; 300\.0 KiB are needed"):
        find(demo)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=301 << 10))
    assert len(find(demo)) == 3


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    with ServerProcess(tmp_path / "data", "--append-log-fsync-interval", "0.2") as started:
        yield started


def test_a_comparison_sees_what_is_missing_changed_and_too_much(server: ServerProcess, source: Path, tmp_path: Path) -> None:
    demo = Demo(tmp_path, source, 1 << 20, Console(quiet=True))
    with connected(server) as cache:
        store(demo, cache, find(demo))
        compare(demo, cache, "first")
        assert demo.differing == []
        cache.set("a.py", b"print()")
        cache.delete("sub/empty")
        cache.set_many({"more": b"", "and more": b""})
        compare(demo, cache, "second")
    assert [each.mismatches for each in demo.passes] == [None, 0, 3]
    assert sorted(demo.differing) == [
        "second: 'a.py' has another value",
        "second: 'sub/empty' is missing",
        "second: the server holds 4 items, not 3",
    ]


def test_a_file_that_vanished_is_counted_not_compared(server: ServerProcess, source: Path, tmp_path: Path) -> None:
    demo = Demo(tmp_path, source, 1 << 20, Console(quiet=True))
    with connected(server) as cache:
        store(demo, cache, [*find(demo), Found(b"gone", source / "gone", 5)])
        compare(demo, cache, "first")
    assert (len(demo.digests), demo.differing) == (3, [])


def test_it_waits_until_the_append_log_is_on_disk(server: ServerProcess, tmp_path: Path) -> None:
    demo = Demo(tmp_path, tmp_path, 1, Console(quiet=True))
    with Client(server.address) as cache:
        cache.set("k", b"v")
        wait_until_on_disk(demo, cache)
        before = cache.stats("stream")["stream"]
        assert before["bytes_on_disk"] == before["bytes_written"]
    server.kill()
    server.start()
    with Client(server.address) as cache:
        assert cache.get("k") == b"v"


# --- the server as a process


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(ServerFailed, match=r"ended with code 2 before it was ready: (?s:.*)--buckets"):
        ServerProcess(tmp_path / "data", "--buckets", "3")


def test_a_server_is_stopped_killed_and_started_again(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "data", environment={"RCACHE_LOG_LEVEL": "DEBUG"}) as server:
        with pytest.raises(ServerFailed, match="runs already"):
            server.start()
        assert server.stop() == 0
        assert not server.running
        first = server.pid
        server.start()
        server.kill()
        assert server.process.returncode == -signal.SIGKILL
        assert server.stderr_text.count("starts: node") == 2
        server.start()
        last = server.pid
    assert first != last
    assert_gone(last)


def test_a_server_that_is_not_ready_in_time_is_told_and_ended(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "data", start=False) as server:
        with pytest.raises(ServerFailed, match="was not started"):
            server.wait(1)
        server.launch()
        server.signal(signal.SIGSTOP)
        with pytest.raises(ServerFailed, match=r"was not ready after 0\.1 s"):
            server.wait_ready(0.1)
        process_id = server.pid
    assert_gone(process_id)
