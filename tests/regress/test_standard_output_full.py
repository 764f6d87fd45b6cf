"""A server whose `ready` line could not be written went on serving and could not be stopped any more: the main thread had ended
with an error, and nobody was left to hear a signal."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from tests.integration.support import until


def test_a_server_that_cannot_say_ready_serves_and_stops(tmp_path: Path) -> None:
    said = tmp_path / "said"
    command = [sys.executable, "-m", "rcache.commands.rcached", "--data-dir", str(tmp_path / "data"), "--listen", "127.0.0.1:0"]
    with Path("/dev/full").open("wb") as full, said.open("wb") as stderr:
        process = subprocess.Popen(command, stdout=full, stderr=stderr)
        try:
            until(lambda: "serving on" in said.read_text(), "the server")
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
        finally:
            process.kill()
            process.wait()
    assert "could not be written to standard output" in said.read_text()
