"""One node of the cluster under test: a process behind a front, that can be broken in every way a machine breaks.

What it is: `ClusterNode`. Which thread runs it: the main thread breaks it; `running` and `log` any.
What it owns: the process, its port, and its directory. What it must not know: when it is to be broken.
"""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import NamedTuple

from soak.cluster.ports import KeptPort
from soak.cluster.shim import Steering
from soak.server_process import ServerProcess

START_S = 60.0
"""Until a node is ready: it waits for the register and its peers, on a machine that does much else."""

STOP_S = 60.0
"""Until an orderly stop has handed everything over."""

OPTIONS = (
    *("--memory-limit", "256M", "--change-stream-size", "16M"),
    *("--append-log-max-mb", "16", "--append-log-keep-days", "1"),
)
"""Far more memory than the entries take, so that nothing is evicted; small segments, so that checkpoints are made, too."""


class Birth(NamedTuple):
    """What the first node begins the cluster with; the others learn it."""

    buckets: int
    backups: int
    fsync: str

    def options(self) -> list[str]:
        told = {"--buckets": self.buckets, "--backups": self.backups, "--append-log-fsync": self.fsync}
        return [str(each) for option in told.items() for each in option]


class ClusterNode:
    """See the module. `address`, where others reach it, is its front's, which is made after it (`front`)."""

    def __init__(self, name: str, directory: Path, shim: Path | None) -> None:
        self.name = name
        self.data_dir = directory / name
        self.data_dir.mkdir()
        self.port = (kept := KeptPort()).number
        self.address = ""
        self.etcd = ""
        self.steering = Steering(directory / f"{name}.page", self.data_dir) if shim is not None else None
        self.frozen = False
        self.expected = False
        """It should be running: whoever finds that it is not has found something."""
        self._kept = kept
        self._logs = directory / "logs"
        self._logs.mkdir(exist_ok=True)
        self._starts = 0
        environment = self.steering.environment(shim) if self.steering is not None and shim is not None else {}
        self._server = ServerProcess(self.data_dir, name=name, environment=environment, start=False)

    @property
    def pid(self) -> int:
        return self._server.pid

    @property
    def running(self) -> bool:
        return self._server.running

    @property
    def log(self) -> Path:
        """Of the last start; one that was not started has none yet."""
        return self._logs / f"{self.name}-{self._starts:03}.log"

    @property
    def said(self) -> str:
        """What it said on standard error, over all starts: the log again, and what an interpreter says at its end."""
        return self._server.stderr_text

    def start(self, others: list[str], birth: Birth | None = None) -> None:
        """Start it, and return when it is ready. Raises `ServerFailed`. `others`: addresses; `birth`: it begins the cluster."""
        self._starts += 1
        asked = [each for address in others for each in ("--node", address)]
        if self.etcd:
            asked += ["--etcd", self.etcd]
        if birth is not None:
            asked += birth.options()
        self._server.arguments = [
            *("--listen", f"127.0.0.1:{self.port}", "--advertise", self.address, "--log-file", str(self.log)),
            *(*OPTIONS, *asked),
        ]
        self._server.start(START_S)
        self.expected = True

    def kill(self) -> None:
        """kill -9; it is gone when this returns."""
        self.expected = False
        self._server.kill()
        self.frozen = False

    def terminate(self) -> None:
        """Ask for an orderly stop."""
        self.expected = False
        self._server.terminate()

    def await_end(self, timeout_s: float = STOP_S) -> int:
        """The exit code, once it has ended. Raises `ServerFailed`."""
        return self._server.wait(timeout_s)

    def freeze(self) -> None:
        """SIGSTOP."""
        self.frozen = True
        self._server.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        if self.running:
            self._server.signal(signal.SIGCONT)
        self.frozen = False

    def wipe(self) -> None:
        """Its machine is a new one: nothing is on the disk. Only while it does not run."""
        shutil.rmtree(self.data_dir)
        self.data_dir.mkdir()

    def close(self) -> None:
        """Kill it if it runs, and let go of everything. Idempotent."""
        self.expected = False
        self._server.close()
        self._kept.close()
