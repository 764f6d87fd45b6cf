"""A process that is stopped for a while, and whose clocks do not show it: hidden_pause.c, built, and the page that steers it.

What it is: `built_library`, and `HiddenPauses`, one for each process. Which thread runs it: the test's.
What it owns: the page's file. What it must not know: what the process does.
"""

from __future__ import annotations

import shutil
import signal
import struct
import subprocess
import time
from pathlib import Path

import pytest

from soak.server_process import ServerProcess
from tests.integration.cluster import until

SOURCE = Path(__file__).with_name("hidden_pause.c")
COMPILE = ("-O2", "-Wall", "-Wextra", "-shared", "-fPIC")
BUILD_S = 120.0


def built_library(directory: Path) -> Path:
    """Build it into `directory`; the test is left out where there is no compiler."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    library = directory / "hidden_pause.so"
    subprocess.run([compiler, *COMPILE, "-o", str(library), str(SOURCE), "-ldl"], check=True, timeout=BUILD_S)
    return library


class HiddenPauses:
    """The page of one process. Start that with `environment`."""

    def __init__(self, directory: Path) -> None:
        self._page = directory / "hidden.page"
        self._page.write_bytes(bytes(8))
        self.environment = {"LD_PRELOAD": str(built_library(directory)), "HIDDEN_PAUSE": str(self._page)}
        self._since_ns = 0
        self._hidden_ns = 0

    def stop(self, process: ServerProcess) -> None:
        """It stands still, once this returns."""
        process.signal(signal.SIGSTOP)
        until("the process stands still", lambda: _state(process.pid) == "T")
        self._since_ns = time.monotonic_ns()

    def go_on(self, process: ServerProcess) -> None:
        """Its clocks go on where they stood (and never go back: a moment of the pause shows)."""
        self._hidden_ns += time.monotonic_ns() - self._since_ns
        with self._page.open("r+b", buffering=0) as page:
            page.write(struct.pack("=q", self._hidden_ns))
        process.signal(signal.SIGCONT)


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
