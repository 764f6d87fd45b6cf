"""Under the systemd unit's filter of system calls a server does all that it does: each engine, the log, a stop in order."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from rcache.engine.bodies import NATIVE, REFERENCE, why_not_native
from rcache_client import Client
from soak.server_process import ServerProcess

from . import confined
from .support import held, stats, until

UNIT = Path(__file__).parents[2] / "systemd" / "rcached.service"


def _library_is_there() -> bool:
    try:
        ctypes.CDLL(confined.LIBRARY)
    except OSError:
        return False
    return True


pytestmark = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None or not _library_is_there(),
    reason="systemd-analyze or libseccomp is not installed (Debian: apt-get install systemd libseccomp2)",
)


def wrapped(command: list[str]) -> list[str]:
    return [sys.executable, confined.__file__, str(UNIT), *command]


class ConfinedServer(ServerProcess):
    """A server under the unit's filter."""

    @property
    def command(self) -> list[str]:
        return wrapped(super().command)


@pytest.fixture(
    params=[
        pytest.param(NATIVE, marks=pytest.mark.skipif(bool(why_not_native()), reason="the native engine was not built here")),
        REFERENCE,
    ]
)
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ServerProcess]:
    arguments = ("--engine", request.param, "--memory-limit", "32M", "--persist-on-shutdown", "--append-log-max-mb", "4")
    with ConfinedServer(tmp_path / "data", *arguments) as started:
        yield started


def test_a_confined_server_does_all_that_it_does(server: ServerProcess) -> None:
    values = {f"key-{number}": bytes([number % 256]) * (number * 7 % 30_000) for number in range(4000)}
    with ExitStack() as opened:
        clients = [opened.enter_context(Client(server.address)) for _ in range(12)]  # more than threads: some are shared
        for number, (key, value) in enumerate(values.items()):
            clients[number % len(clients)].set(key, value)
        assert clients[0].get("key-3999") == values["key-3999"]
    figures = stats(server, "items")
    assert figures["evicted"] > 0, "the memory was used up to its limit"
    until(lambda: stats(server, "checkpoints")["checkpoints"] > 0, "a checkpoint")
    assert stats(server, "checkpoints")["checkpoints_failed"] == 0
    found = held(server, values)
    until(lambda: stats(server, "append_log")["bytes_not_on_disk"] == 0, "the log on disk")
    server.kill()
    server.start()
    assert held(server, values) == found, "recovered"
    assert server.stop() == 0
    said = server.stderr_text
    assert "saved " in said, "a savefile"
    for bad in ("is cut down", "ERROR", "Traceback", "not permitted"):
        assert bad not in said, said


def refusal(code: str) -> str:
    """How a line of Python fails under the filter."""
    ended = subprocess.run(wrapped([sys.executable, "-c", code]), capture_output=True, text=True, check=False, timeout=30)
    return ended.stderr.strip().rpartition("\n")[2]


def test_the_filter_of_these_tests_is_one() -> None:
    assert refusal("import os; os.getpid()") == ""
    assert refusal("import os; os.sched_setaffinity(0, {0})").startswith("PermissionError")
    assert refusal("import os; os.chown('.', 0, 0)").startswith("PermissionError")
    assert refusal("import mmap; mmap.mmap(-1, 4096, prot=mmap.PROT_WRITE | mmap.PROT_EXEC)").startswith("PermissionError")
