"""A real etcd of one member, for clusters that agree by etcd.

What it is: `EtcdServer`. Which thread runs it: the caller's; every wait ends at a deadline.
What it owns: the process, its port, and its files, until `close`. What it must not know: what is kept there.

Its files lie in memory where there is such a place: it syncs each change, and what is proven here is not etcd's durability.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from soak.cluster.errors import SoakFailed
from soak.cluster.ports import KeptPort

MEMORY = Path("/dev/shm")
START_S = 20.0
STOP_S = 20.0
LOOK_S = 0.05
SAID_SHOWN = 1000


class EtcdServer:
    """Started by its construction, which returns when it answers. Raises `SoakFailed`. `log`: what it says goes there."""

    def __init__(self, log: Path) -> None:
        program = shutil.which("etcd")
        if program is None:
            raise SoakFailed("etcd is not installed (Debian: apt-get install etcd-server)")
        self._log = log
        self._kept = KeptPort()
        self.port = self._kept.number
        self._files = Path(tempfile.mkdtemp(prefix="rcache-soak-etcd-", dir=MEMORY if MEMORY.is_dir() else None))
        url = f"http://127.0.0.1:{self.port}"
        command = [program, "--name", "only", "--data-dir", str(self._files / "data"), "--log-level", "warn"]
        command += ["--listen-client-urls", url, "--advertise-client-urls", url, "--listen-peer-urls", "http://127.0.0.1:0"]
        with log.open("ab") as said:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, cwd=self._files, process_group=0
            )
        try:
            self._wait_for_answer()
        except BaseException:
            self.close()
            raise

    def freeze(self) -> None:
        """SIGSTOP: it is there, and says nothing."""
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """Idempotent."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait(STOP_S)
        self._kept.close()
        shutil.rmtree(self._files, ignore_errors=True)

    def _wait_for_answer(self) -> None:
        deadline = time.monotonic() + START_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                said = self._log.read_text(errors="replace")[-SAID_SHOWN:]
                raise SoakFailed(f"etcd does not answer: {said}")
            time.sleep(LOOK_S)

    def _answers(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=1.0)
        with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
            connection.request("POST", "/v3/kv/range", json.dumps({"key": "YQ=="}))
            return connection.getresponse().status == http.client.OK
        return False
