"""`rcache-cli subscribe` as a process: what it prints of changes that are made meanwhile, and how it ends."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rcache_client import Client
from soak.server_process import ServerProcess

PATIENCE_S = 20.0


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    with ServerProcess(tmp_path / "data") as server:
        yield server


def start(server: ServerProcess, *arguments: str) -> subprocess.Popen[str]:
    """The program, once it is subscribed."""
    program = [sys.executable, "-m", "rcache.commands.rcache_cli", "--server", server.address, "subscribe", *arguments]
    process = subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with Client(server.address) as client:
        deadline = time.monotonic() + PATIENCE_S
        while not client.stats("feeds")["feeds"]["feeds"]:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)
    time.sleep(0.2)  # its buckets are asked for by then
    return process


def test_it_prints_a_line_for_each_change(server: ServerProcess) -> None:
    process = start(server, "user:", "--count", "3")
    with Client(server.address) as client:
        client.set("user:1", b"Ada")
        client.set("other", b"not asked for")
        client.set("user:2", b"x" * 100)
        client.delete("user:1")
    out, err = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, err) == (0, "")
    first, second, third = [line.split(maxsplit=1)[1] for line in out.splitlines()]
    assert first == "set       'user:1' 'Ada'"
    assert second == f"set       'user:2' '{'x' * 60}'... (100 bytes)"
    assert third == "deleted   'user:1'"


def test_it_prints_json_for_programs(server: ServerProcess) -> None:
    process = start(server, "--json", "--no-values", "--count", "2")
    with Client(server.address) as client:
        version = client.set("key", b"value")
        client.flush()
    out, _ = process.communicate(timeout=PATIENCE_S)
    first, second = map(json.loads, out.splitlines())
    assert first.items() >= {"operation": "set", "key": "key", "sequence": version, "cause": "set"}.items()
    assert "value" not in first
    assert (second["operation"], second["bucket"]) == ("flushed", first["bucket"])


def test_it_ends_when_it_is_interrupted(server: ServerProcess) -> None:
    process = start(server)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, err) == (130, "")


def test_where_nobody_answers_it_says_so() -> None:
    program = [sys.executable, "-m", "rcache.commands.rcache_cli", "--server", "127.0.0.1:1", "--budget", "0.5", "subscribe"]
    done = subprocess.run(program, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert (done.returncode, done.stdout) == (3, "")
    assert "127.0.0.1:1" in done.stderr
