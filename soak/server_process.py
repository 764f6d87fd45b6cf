"""A real rcached as a process of its own: started, watched, killed or stopped, and always cleaned up.

What it is: `ServerProcess`, for the demonstration and for tests that go through real processes.
Which thread runs it: the caller's; every wait ends at a deadline.
What it owns: the process, its pipes, and what it said on standard error, from construction to `close`.
What it must not know: what is asked of the server.
"""

from __future__ import annotations

import os
import re
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

START_S = 30.0
"""For a server to be ready: recovery of a small node takes a second or two, a slow machine ten times that."""

STOP_S = 30.0
"""For a server to stop in order: its own deadline (20 s) and the time to close its files."""

SAID_SHOWN = 2000
"""So much of what the server said last stands in an error."""

_READY = re.compile(rb"^ready ?(\S*)\n", re.MULTILINE)
"""A server names its address; a logger listens nowhere."""


class ServerFailed(Exception):
    """The server did not do what it was asked to; the text has the end of what it said."""


class ServerProcess:
    """An rcached on loopback, on a port that it picks itself. Close it, or use it in a `with`, and nothing is left of it.

    with ServerProcess(tmp_path / "data", "--no-evict") as server:
        with Client(server.address) as cache: ...
        server.kill()
        server.start()

    `arguments`: further options of rcached. `environment`: put over the environment of this process, from which every
    RCACHE_* variable is taken away first.
    """

    program = "rcached"

    def __init__(
        self,
        data_dir: Path,
        *arguments: str,
        name: str = "n1",
        environment: Mapping[str, str] | None = None,
        start: bool = True,
    ) -> None:
        self.data_dir = data_dir
        self.name = name
        self.arguments: Sequence[str] = arguments
        self.address = ""
        self._environment = {key: text for key, text in os.environ.items() if not key.startswith("RCACHE_")}
        self._environment.update(environment or {})
        self._stderr = tempfile.TemporaryFile(prefix="rcached-said-")  # noqa: SIM115 - closed in close()
        self._process: subprocess.Popen[bytes] | None = None
        if start:
            try:
                self.start()
            except BaseException:
                self.close()
                raise

    @property
    def command(self) -> list[str]:
        """What is started."""
        program = [sys.executable, "-m", "rcache.commands.rcached"]
        return [*program, "--data-dir", str(self.data_dir), "--name", self.name, "--listen", "127.0.0.1:0", *self.arguments]

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The process of the last start."""
        if self._process is None:
            raise ServerFailed(f"{self.program} was not started")
        return self._process

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def stderr_text(self) -> str:
        """All that was said on standard error so far, over all starts."""
        size = os.fstat(self._stderr.fileno()).st_size
        return os.pread(self._stderr.fileno(), size, 0).decode(errors="replace")

    def launch(self) -> None:
        """Start the process and return at once; `wait_ready` or `wait` comes next."""
        if self.running:
            raise ServerFailed(f"{self.program} runs already, as process {self.pid}")
        self._close_pipe()
        self.address = ""
        self._process = subprocess.Popen(
            self.command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=self._environment,
            process_group=0,  # Ctrl-C is for whoever started this; they stop the server
        )

    def start(self, timeout_s: float = START_S) -> str:
        """Start the process, wait until it serves, and return its address. Raises `ServerFailed`."""
        self.launch()
        return self.wait_ready(timeout_s)

    def wait_ready(self, timeout_s: float = START_S) -> str:
        """Block until the server says `ready HOST:PORT`; return the address. Raises `ServerFailed`."""
        assert self.process.stdout is not None
        said, deadline = b"", time.monotonic() + timeout_s
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            while not (ready := _READY.search(said)):
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise self._failure(f"was not ready after {timeout_s:g} s")
                more = os.read(self.process.stdout.fileno(), 4096)
                if not more:
                    raise self._failure(f"ended with code {self.wait(STOP_S)} before it was ready")
                said += more
        self.address = ready[1].decode()
        return self.address

    def kill(self) -> None:
        """SIGKILL: the process is gone when this returns."""
        self.process.kill()
        self.wait(STOP_S)

    def terminate(self) -> None:
        """SIGTERM: ask for an orderly stop; `wait` returns the exit code."""
        self.signal(signal.SIGTERM)

    def signal(self, number: int) -> None:
        """Send any signal."""
        self.process.send_signal(number)

    def wait(self, timeout_s: float = STOP_S) -> int:
        """Block until the process ended; return its exit code. Raises `ServerFailed` where that takes too long."""
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise self._failure(f"did not end within {timeout_s:g} s") from None

    def stop(self, timeout_s: float = STOP_S) -> int:
        """Stop in order, by SIGTERM; return the exit code. Raises `ServerFailed` where that takes too long."""
        self.terminate()
        return self.wait(timeout_s)

    def close(self) -> None:
        """Kill the process if it still runs, and let go of everything. Idempotent."""
        if self.running:
            self.kill()
        self._close_pipe()
        self._stderr.close()

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _close_pipe(self) -> None:
        if self._process is not None and self._process.stdout is not None:
            self._process.stdout.close()

    def _failure(self, what: str) -> ServerFailed:
        said = self.stderr_text[-SAID_SHOWN:].strip() or "it said nothing"
        return ServerFailed(f"{self.program} {what}: {said}")
