"""A node's own wall clock and disk, where there is a C compiler: shim.c, built, and the page by which it is steered.

What it is: `built_shim`, and `Steering`, one for each node. Which thread runs it: any; one writes a page.
What it owns: the library, and the page's file. What it must not know: faults.

The machine's own clock is never touched: it is everybody's. Where no compiler is, or the library does not load, there is a
reason in place of the library, which the run tells.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).with_name("shim.c")
COMPILE = ("-O2", "-Wall", "-Wextra", "-shared", "-fPIC")
BUILD_S = 120.0

PROBE_AHEAD_S = 7 * 86_400
"""By so much a process says another time when the library works: no clock is read so late."""

_PAGE = struct.Struct("=qq")
_PROBE = "import time; print(int(time.time()))"


class NoShim(Exception):
    """Clocks cannot be stepped and disks not filled here; says why."""


class Steering:
    """The page of one node; a start of the node finds it as it is."""

    def __init__(self, path: Path, disk: Path) -> None:
        self._path = path
        self._disk = disk
        self._ahead_ns = 0
        self._full = False
        path.write_bytes(_PAGE.pack(0, 0))

    def environment(self, library: Path) -> dict[str, str]:
        """What a process that is to be steered is started with."""
        return {"LD_PRELOAD": str(library), "SOAK_SHIM": str(self._path), "SOAK_SHIM_DISK": str(self._disk)}

    def step_clock(self, ahead_s: float) -> None:
        """From now on the wall clock is ahead by that much; 0: it is right again."""
        self._ahead_ns = int(ahead_s * 1e9)
        self._tell()

    def fill_disk(self, full: bool) -> None:
        """From now on no write below the data directory finds room; or it does again."""
        self._full = full
        self._tell()

    def _tell(self) -> None:
        with self._path.open("r+b", buffering=0) as page:
            page.write(_PAGE.pack(self._ahead_ns, self._full))


def built_shim(directory: Path) -> Path:
    """Build the library into `directory`, and see that it works. Raises `NoShim`."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise NoShim("there is no C compiler (Debian: apt-get install gcc libc6-dev)")
    library = directory / "shim.so"
    command = [compiler, *COMPILE, "-o", str(library), str(SOURCE), "-ldl"]
    built = subprocess.run(command, capture_output=True, text=True, check=False, timeout=BUILD_S)
    if built.returncode:
        raise NoShim(f"{SOURCE.name} does not build: {built.stderr.strip()[-500:]}")
    _probe(library, directory)
    return library


def _probe(library: Path, directory: Path) -> None:
    steering = Steering(directory / "probe.page", directory)
    steering.step_clock(PROBE_AHEAD_S)
    told = _say(dict(os.environ) | steering.environment(library))
    if int(told) - int(_say(dict(os.environ))) < PROBE_AHEAD_S - 3600:
        raise NoShim("a preloaded library does not reach this Python's clock")


def _say(environment: dict[str, str]) -> str:
    ran = subprocess.run(
        [sys.executable, "-c", _PROBE], capture_output=True, text=True, check=False, timeout=BUILD_S, env=environment
    )
    if ran.returncode:
        raise NoShim(f"a preloaded library does not load: {ran.stderr.strip()[-500:]}")
    return ran.stdout
