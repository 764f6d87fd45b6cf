"""What systemd is told, over a real datagram socket."""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from time import monotonic

import pytest

from .conftest import Serve
from .support import fill

WAIT_S = 15.0


class Manager:
    """The socket that NOTIFY_SOCKET names, and what came."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.said: list[str] = []
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.bind(path)

    def wait_for(self, message: str, times: int = 1) -> None:
        deadline = monotonic() + WAIT_S
        while sum(said.startswith(message) for said in self.said) < times:
            self._sock.settimeout(max(0.001, deadline - monotonic()))
            self.said.append(self._sock.recv(4096).decode())

    def drain(self) -> list[str]:
        """What else came so far."""
        self._sock.setblocking(False)
        try:
            while True:
                self.said.append(self._sock.recv(4096).decode())
        except BlockingIOError:
            return self.said

    def close(self) -> None:
        self._sock.close()


@pytest.fixture
def manager() -> Iterator[Manager]:
    with tempfile.TemporaryDirectory(prefix="rc-") as directory:  # tmp_path may be longer than a socket's name may be
        made = Manager(str(Path(directory) / "notify"))
        yield made
        made.close()


def test_ready_alive_stopping(serve: Serve, manager: Manager) -> None:
    environment = {"NOTIFY_SOCKET": manager.path, "WATCHDOG_USEC": "400000"}
    server = serve("--persist-on-shutdown", environment=environment)
    manager.wait_for("READY=1")
    manager.wait_for("WATCHDOG=1", times=3)
    assert not any(said.startswith("STOPPING") for said in manager.said)
    manager.wait_for(f"STATUS=serving on {server.address}")
    fill(server, 100)
    assert server.stop() == 0
    manager.wait_for("STOPPING=1")
    said = manager.drain()
    assert said.count("READY=1") == 1
    assert said.count("STOPPING=1") == 1
    assert any(message.startswith("EXTEND_TIMEOUT_USEC=") for message in said)


def test_without_a_watchdog_there_is_no_sign_of_life(serve: Serve, manager: Manager) -> None:
    server = serve(environment={"NOTIFY_SOCKET": manager.path})
    manager.wait_for("READY=1")
    assert server.stop() == 0
    manager.wait_for("STOPPING=1")
    assert not any(said.startswith("WATCHDOG") for said in manager.drain())


def test_a_start_that_fails_is_never_ready(serve: Serve, manager: Manager) -> None:
    running = serve()
    second = serve(environment={"NOTIFY_SOCKET": manager.path}, start=False)
    second.launch()
    assert second.wait() == 2
    assert running.running
    assert "READY=1" not in manager.drain()


def test_a_manager_that_has_gone_harms_nothing(serve: Serve, tmp_path: Path) -> None:
    server = serve(environment={"NOTIFY_SOCKET": str(tmp_path / "nobody"), "WATCHDOG_USEC": "200000"})
    assert server.stop() == 0
