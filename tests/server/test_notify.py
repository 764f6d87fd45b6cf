"""What systemd is told, heard on a real socket."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from rcache.server.notify import Notifier, watchdog_interval_s


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """The service manager's end."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.settimeout(5)
        listener.bind(str(tmp_path / "notify"))
        yield listener


def test_every_message_as_systemd_reads_it(manager: socket.socket) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": manager.getsockname()})
    for send, heard in (
        (notifier.ready, b"READY=1"),
        (notifier.stopping, b"STOPPING=1"),
        (notifier.alive, b"WATCHDOG=1"),
        (lambda: notifier.status("loading: 40 % of 3 files"), b"STATUS=loading: 40 % of 3 files"),
        (lambda: notifier.extend_timeout(1.5), b"EXTEND_TIMEOUT_USEC=1500000"),
    ):
        assert send()
        assert manager.recv(4096) == heard


def test_a_status_cannot_smuggle_another_message(manager: socket.socket) -> None:
    assert Notifier({"NOTIFY_SOCKET": manager.getsockname()}).status("name\nREADY=1\r\n")
    assert manager.recv(4096) == b"STATUS=name READY=1"


def test_an_abstract_socket() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.settimeout(5)
        listener.bind("")  # the kernel picks an abstract name
        name = listener.getsockname()
        assert name[:1] == b"\0"
        assert Notifier({"NOTIFY_SOCKET": "@" + name[1:].decode()}).ready()
        assert listener.recv(4096) == b"READY=1"


def test_nothing_happens_without_a_manager(tmp_path: Path) -> None:
    assert not Notifier({}).ready()
    assert not Notifier({"NOTIFY_SOCKET": ""}).ready()
    assert not Notifier({"NOTIFY_SOCKET": str(tmp_path / "nobody")}).ready()
    assert not Notifier({"NOTIFY_SOCKET": "/" + "x" * 200}).ready()


def test_a_manager_that_does_not_read_holds_nobody_up(manager: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rcache.server.notify.SEND_TIMEOUT_S", 0.01)
    notifier = Notifier({"NOTIFY_SOCKET": manager.getsockname()})
    sent = 0
    while notifier.alive():  # ends once the receiver's queue is full
        sent += 1
        assert sent < 1_000_000
    assert sent > 0


@pytest.mark.parametrize(
    ("environ", "interval_s"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "77"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "78"}, None),
        ({"WATCHDOG_USEC": "0", "WATCHDOG_PID": "77"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "-5"}, None),
    ],
)
def test_the_watchdog_is_fed_at_half_its_time(environ: dict[str, str], interval_s: float | None) -> None:
    assert watchdog_interval_s(environ, pid=77) == interval_s


def test_the_watchdog_of_this_process() -> None:
    assert watchdog_interval_s({"WATCHDOG_USEC": "2000000", "WATCHDOG_PID": str(os.getpid())}) == 1.0
    assert watchdog_interval_s({"WATCHDOG_USEC": "2000000", "WATCHDOG_PID": str(os.getppid())}) is None
