"""The benchmark: rcached beside Redis and memcached, fresh, on one machine, in turn.

What it is: the program behind `make bench`. It builds the load generator, starts the servers, measures every shape in rounds
(A B C, A B C, ...), then what the append log costs and what an idle connection costs, and reports.
Which thread runs it: one; the load comes from a process of its own.
What it owns: nothing that outlives it but the report.
What it must not know: the protocols; `bench_peers` brings each server's bytes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.progress import Progress

from soak.bench_peers import EXCHANGE_S, PEERS, RCACHED, RCACHED_LOGGING, Peer, Running, exchange, running
from soak.bench_report import SHAPES, Measurement, Report, show, to_json, to_markdown

ROOT = Path(__file__).resolve().parents[1]
LOAD_SOURCE = ROOT / "soak" / "load" / "lg.c"
OUTPUT = ROOT / "docs" / "benchmarks"
OPERATIONS = ("GET", "SET")
LOG_SHAPE = (16, 16)
IDLE_CONNECTIONS = 1000
DESCRIPTORS = 4096
"""Enough for the most connections any part of this holds, here and (inherited) in each server."""
PATIENCE_S = 30.0
"""What a load generator may take beyond the time it was given."""

_SAID = re.compile(r"(\d+) ops/s p50 (\d+) us p99 (\d+) us p99\.9 (\d+) us")


class BenchError(Exception):
    """The benchmark cannot go on; says why."""


class Load:
    """The load generator, built."""

    def __init__(self, program: Path, directory: Path, seconds: float) -> None:
        self._program = program
        self._directory = directory
        self._seconds = seconds

    def measure(self, server: Running, operation: str, shape: tuple[int, int], number: int) -> Measurement:
        """One run against one server, in round `number`. Blocks for its seconds. Raises `BenchError`."""
        traffic = server.peer.traffic[operation]
        request = self._directory / "request"
        request.write_bytes(traffic.request)
        arguments = ["127.0.0.1", server.port, *shape, self._seconds, request, traffic.reply_bytes]
        ran = subprocess.run(
            [str(self._program), *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
            timeout=self._seconds + PATIENCE_S,
        )
        said = _SAID.match(ran.stdout)
        if said is None:
            raise BenchError(f"{server.peer.name}, {operation} {shape[0]} x {shape[1]}: {ran.stderr.strip() or ran.stdout}")
        rate, p50, p99, p999 = (float(number) for number in said.groups())
        return Measurement(server.peer.name, operation, *shape, number, rate, p50, p99, p999)


@contextmanager
def built_load(seconds: float) -> Iterator[Load]:
    """Compile the load generator for the time of the benchmark. Raises `BenchError` where that does not work."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise BenchError("a C compiler is needed to build the load generator (Debian: apt-get install gcc libc6-dev)")
    with TemporaryDirectory(prefix="rcache-load-") as name:
        program = Path(name, "lg")
        built = subprocess.run(
            [compiler, "-O2", "-o", str(program), str(LOAD_SOURCE)], capture_output=True, text=True, check=False
        )
        if built.returncode:
            raise BenchError(f"the load generator does not build: {built.stderr}")
        yield Load(program, Path(name), seconds)


def measure_all(
    load: Load, peers: Sequence[Peer], plan: Sequence[tuple[str, tuple[int, int]]], rounds: int, console: Console
) -> list[Measurement]:
    """Every operation and shape of `plan`, against all of `peers`, started fresh, in turn within each round."""
    found = []
    with ExitStack() as stack, Progress(console=console, transient=True) as progress:
        servers = [stack.enter_context(running(peer)) for peer in peers]
        task = progress.add_task("measuring", total=len(plan) * rounds * len(servers))
        for operation, shape in plan:
            for number in range(1, rounds + 1):
                for server in servers:
                    progress.update(task, description=f"{operation} {shape[0]} x {shape[1]}, {server.peer.name}")
                    found.append(load.measure(server, operation, shape, number))
                    progress.advance(task)
    return found


def idle_connection_bytes(peer: Peer, count: int = IDLE_CONNECTIONS) -> int:
    """By how much a fresh server grows for each of `count` connections that made one request and are now idle."""
    with running(peer) as server, ExitStack() as stack:
        before_kib = server.resident_kib()
        for _ in range(count):
            held = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), EXCHANGE_S))
            exchange(server, peer.traffic["GET"], held)
        return (server.resident_kib() - before_kib) * 1024 // count


def run(settings: argparse.Namespace, console: Console) -> Report:
    """The whole benchmark. Raises `BenchError` and `RuntimeError`."""
    wanted = [PEERS[name] for name in settings.servers]
    peers = [peer for peer in wanted if peer.path]
    if not peers or (RCACHED in wanted and RCACHED not in peers):
        raise BenchError(f"not installed: {', '.join(peer.program for peer in wanted if not peer.path)}")
    raise_descriptor_limit()
    logging = [RCACHED, RCACHED_LOGGING] if RCACHED in peers else []
    report = Report(
        command=" ".join(["python -m soak.bench", *settings.given]),
        date=datetime.now(UTC).date().isoformat(),
        machine=describe_machine(),
        servers={peer.name: {"version": peer.version, "command": peer.command} for peer in (*peers, *logging[1:])},
        rounds=settings.rounds,
        seconds=settings.seconds,
        missing=[peer.name for peer in wanted if not peer.path],
        connections_held=IDLE_CONNECTIONS,
    )
    with built_load(settings.seconds) as load:
        plan = [(operation, shape) for operation in OPERATIONS for shape in SHAPES]
        report.measurements = measure_all(load, peers, plan, settings.rounds, console)
        if logging:
            report.log_cost = measure_all(load, logging, [("SET", LOG_SHAPE)], settings.rounds, console)
    report.bytes_per_connection = {peer.name: idle_connection_bytes(peer) for peer in peers}
    return report


def raise_descriptor_limit() -> None:
    """Allow this process, and the servers it starts, as many open files as the benchmark needs. Raises `BenchError`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < DESCRIPTORS:
        raise BenchError(f"this account may open {hard} files at once; {DESCRIPTORS} are needed (ulimit -Hn)")
    if soft != resource.RLIM_INFINITY and soft < DESCRIPTORS:
        resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, hard))


def describe_machine() -> dict[str, str]:
    """What the numbers depend on."""
    models = re.findall(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": f"{models[0] if models else platform.machine()}, {os.cpu_count()} cores",
        "memory": f"{memory / (1 << 30):.1f} GiB",
        "kernel": f"{platform.system()} {platform.release()}",
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
    }


def write(report: Report, directory: Path) -> None:
    """Write peers.json and peers.md into `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "peers.json").write_text(json.dumps(to_json(report), indent=1) + "\n", encoding="utf-8")
    (directory / "peers.md").write_text(to_markdown(report), encoding="utf-8")


def read_settings(argv: Sequence[str]) -> argparse.Namespace:
    """The command line; exits with 2 where it is wrong."""
    parser = argparse.ArgumentParser(prog="python -m soak.bench", description="Measure rcached beside Redis and memcached.")
    parser.add_argument("--rounds", type=int, help="rounds of each measurement (default: 5)")
    parser.add_argument("--seconds", type=float, help="length of each measurement (default: 2)")
    parser.add_argument("--quick", action="store_true", help="2 rounds of 0.3 s; writes no report unless told where")
    parser.add_argument("--servers", nargs="+", choices=PEERS, default=list(PEERS), help="which to measure (default: all)")
    parser.add_argument("--output", type=Path, help="directory for peers.json and peers.md (default: docs/benchmarks)")
    settings = parser.parse_args(argv)
    settings.given = list(argv)
    settings.rounds = settings.rounds or (2 if settings.quick else 5)
    settings.seconds = settings.seconds or (0.3 if settings.quick else 2.0)
    settings.output = settings.output or (None if settings.quick else OUTPUT)
    if settings.rounds < 1 or settings.seconds <= 0:
        parser.error("--rounds and --seconds must be above 0")
    return settings


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; 0 when every measurement was made."""
    settings = read_settings(sys.argv[1:] if argv is None else argv)
    console = Console()
    try:
        report = run(settings, console)
    except (BenchError, RuntimeError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    show(report, console)
    if settings.output:
        write(report, settings.output)
        console.print(f"Written: {settings.output / 'peers.md'} and peers.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
