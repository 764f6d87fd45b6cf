"""An idle time of 25 days or more once overflowed poll's milliseconds, and every connection that fell quiet was lost."""

from __future__ import annotations

import socket
from pathlib import Path
from time import monotonic

import pytest

from rcache.engine.contract import ConnectionLimits
from rcache.engine.reference import serving
from rcache.engine.sockets import Ended
from soak.server_process import ServerProcess
from tests.integration.wire import Wire

MONTH_S = "2592000"
QUIET_S = 5 * serving.BUSY_WAIT_S


def test_a_quiet_connection_lives_with_the_longest_idle_time(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "data", "--idle-timeout", MONTH_S) as server, Wire(server.address) as wire:
        assert wire.is_alive()
        with pytest.raises(TimeoutError):
            wire.reply(QUIET_S)
        assert wire.is_alive()
        assert "Traceback" not in server.stderr_text


def test_a_wait_longer_than_one_poll_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "POLL_MS_MAX", 10)
    stop = serving.StopSignal()
    here, there = socket.socketpair()
    with here, there:
        began = monotonic()
        connection = serving.Connection(here, ConnectionLimits(9.0, 0.4, 9.0, 9.0), 1000, stop)
        connection.greeted = True
        assert connection.receive() is Ended.IDLE_TIMEOUT
        assert monotonic() - began >= 0.4
    stop.close()
