"""The load drivers: C programs, built when they are needed, and one run of either.

What it is: `Drivers`, with `fixed` (soak/load/lg.c: one request for ever), `keys` (soak/load/drive.c: a number in each key,
every reply checked), and `limit` (soak/load/limit.c: a server that does nothing, which shows what the drivers can measure).
Beside these the program `hear` (soak/load/hear.c: subscribers), which `soak.feed_bench` runs itself.
Which thread runs it: the benchmark's only one; the load comes from a process of its own.
What it owns: the programs, and the files that tell them what to send.
What it must not know: the protocols, and what a figure is for.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from rcache_client.wire.opcodes import Opcode
from soak.bench.errors import BenchError
from soak.bench.peers import Peer, Running
from soak.bench.traffic import OPERATIONS, Exchange, fixed, rcache

SOURCES = Path(__file__).resolve().parents[1] / "load"
COMPILE = ("-O2", "-Wall", "-Wextra", "-Werror")
BUILD_S = 120.0
LIMIT = "limit"
PATIENCE_S = 30.0
"""What a driver may take beyond the time it was given; it ends itself before."""

Figures = dict[str, float]
"""Operations a second, the percentiles of a batch's round trip, and from drive.c how many operations that were."""

_SAID = re.compile(r"(\d+) ops/s p50 (\d+) us p99 (\d+) us p99\.9 (\d+) us(?:, (\d+) ops)?")
_FIGURES = ("operations_per_s", "p50_us", "p99_us", "p999_us", "operations")


@dataclass(frozen=True)
class Shape:
    """Connections, and requests sent at once on each."""

    connections: int
    depth: int
    rate: int = 0
    """So many requests a second, of all connections together (`keys` only); 0: as many as are answered."""

    def __str__(self) -> str:
        return f"{self.connections} x {self.depth}"


@dataclass(frozen=True)
class Keys:
    """Which numbers a run puts into its keys."""

    count: int
    first: int = 0
    each: bool = False
    """Every one once, rather than drawn evenly until the time is over."""
    in_order: bool = False
    """One after the other, from the first again after the last, until the time is over."""
    seed: int = 1
    times: Path | None = None
    """A file that gets a double for each number below the last one's: when it was answered (CLOCK_MONOTONIC, seconds; 0:
    never)."""

    @property
    def order(self) -> str:
        return "each" if self.each else "next" if self.in_order else "random"


class Drivers:
    """The programs, built into `directory`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def fixed(self, server: Running, exchange: Exchange, shape: Shape, seconds: float) -> Figures:
        """The same request over and over. Blocks for `seconds`. Returns the figures; raises `BenchError`."""
        request = self._write("request", exchange.request)
        arguments = ["127.0.0.1", server.port, shape.connections, shape.depth, seconds, request, len(exchange.reply)]
        return self._run("lg", server, shape, arguments, seconds)

    def keys(self, server: Running, exchange: Exchange, shape: Shape, seconds: float, keys: Keys) -> Figures:
        """Requests for many keys, every reply checked. Blocks for `seconds`, or until each was sent once (at most so long).

        Returns the figures; raises `BenchError`.
        """
        options: dict[str, object] = {"-c": shape.connections, "-d": shape.depth, "-s": seconds}
        options |= {"-f": keys.first, "-k": keys.count, "-o": keys.order, "-x": keys.seed}
        options |= {"-q": self._write("request", exchange.request), "-e": self._write("head", exchange.head)}
        options |= {"-l": len(exchange.reply)} | ({} if exchange.digits_at is None else {"-a": exchange.digits_at})
        options |= ({"-r": shape.rate} if shape.rate else {}) | ({"-t": keys.times} if keys.times else {})
        arguments = [each for option in options.items() for each in option]
        return self._run("drive", server, shape, [*arguments, "127.0.0.1", server.port], seconds)

    def limit(self) -> Peer:
        """The server that does nothing, for the fixed traffic of rcache."""
        replies = fixed(rcache)
        flags = [(str(int(Opcode[name])), str(self._write(f"reply-{name}", replies[name].reply))) for name in OPERATIONS]
        return Peer(
            LIMIT, str(self._directory / "limit"), tuple(each for pair in flags for each in pair), rcache, says_ready=True
        )

    def program(self, name: str) -> Path:
        """Where one of soak/load lies, built."""
        return self._directory / name

    def _write(self, name: str, content: bytes) -> Path:
        path = self._directory / name
        path.write_bytes(content)
        return path

    def _run(self, program: str, server: Running, shape: Shape, arguments: list[object], seconds: float) -> Figures:
        command = [str(self._directory / program), *map(str, arguments)]
        try:
            ran = subprocess.run(
                command, capture_output=True, text=True, errors="replace", check=False, timeout=seconds + PATIENCE_S
            )
        except subprocess.TimeoutExpired:
            raise BenchError(f"{server.peer.name}, {shape}: {program} did not end") from None
        said = _SAID.match(ran.stdout)
        if ran.returncode or said is None:
            why = ran.stderr.strip() or ran.stdout.strip() or "nothing was said"
            raise BenchError(f"{server.peer.name}, {shape}: {why} (exit code {ran.returncode})")
        return {name: float(figure) for name, figure in zip(_FIGURES, said.groups(), strict=True) if figure is not None}


@contextmanager
def built_drivers() -> Iterator[Drivers]:
    """Compile the load drivers for the time of the benchmark. Raises `BenchError` where that does not work."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise BenchError("a C compiler is needed to build the load drivers (Debian: apt-get install gcc libc6-dev)")
    with TemporaryDirectory(prefix="rcache-load-") as name:
        for source in sorted(SOURCES.glob("*.c")):
            command = [compiler, *COMPILE, "-o", str(Path(name, source.stem)), str(source)]
            built = subprocess.run(command, capture_output=True, text=True, check=False, timeout=BUILD_S)
            if built.returncode:
                raise BenchError(f"{source} does not build: {built.stderr}")
        yield Drivers(Path(name))
