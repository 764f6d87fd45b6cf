"""What the tools said and what was so differed: about persist off, about a full server, about the end, about two options."""

from __future__ import annotations

import shutil
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from rcache.commands.exit_codes import ExitCode
from rcache.commands.replay_exit import ReplayExit
from rcache.commands.replay_report import advice
from rcache.server.serving import CONNECTIONS_RESERVED
from rcache_client import Client
from rcache_client.wire.opcodes import Role, Status
from soak.server_process import ServerProcess
from tests.integration.wire import Wire, hello

ROOT = Path(__file__).parents[2]


def cli(server: ServerProcess, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rcache.commands.rcache_cli", *arguments, "--server", server.address]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT)


def test_persist_off_does_not_say_that_nothing_is_saved(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "data") as server:
        assert cli(server, "persist", "off").stdout == "off: the server writes no savefile when it stops\n"
        assert server.stop() == ExitCode.STOPPED
        assert server.stderr_text.splitlines()[-1].endswith(": stopped, exit code 0: in order")


def test_a_full_server_is_not_taken_for_none(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "data", "--max-connections", "1") as server, ExitStack() as stack:
        assert stack.enter_context(Wire(server.address)).is_alive()
        for _ in range(CONNECTIONS_RESERVED):
            assert stack.enter_context(Wire(server.address)).ask(hello(Role.ADMIN))[0] == Status.OK
        ended = cli(server, "get", "k")
        assert ended.returncode == 3
        assert "Does rcached run there?" not in ended.stderr
        assert "connections" in ended.stderr


def test_damage_in_the_middle_names_both_options(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "data") as server:
        with Client(server.address) as cache:
            for number in range(20):
                cache.set(f"k-{number}", bytes(1000))
        assert server.stop() == 0
    segment = next((tmp_path / "data").glob("*.rcl"))
    content = bytearray(segment.read_bytes())
    content[len(content) // 2] ^= 0xFF
    segment.write_bytes(content)
    command = [sys.executable, "-m", "rcache.commands.rcache_replay", "verify", str(segment)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT)
    assert ended.returncode == ReplayExit.DAMAGED
    assert "--skip-damaged" in ended.stderr
    assert "--partial" in ended.stderr
    assert "--partial" in advice(ReplayExit.DAMAGED)


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_soak_loops_runs_both_loops() -> None:
    said = subprocess.run(
        ["make", "-n", "soak-loops", "ARGS=--seed 3"], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout
    assert "-m soak.kill_loop --rounds 50 --seed 3" in said
    assert "-m soak.stop_loop --rounds 50 --seed 3" in said
