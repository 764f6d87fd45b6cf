"""What a handoff costs, and what the requests feel of it: the program.

    python -m soak.handoff [--items N] [--value-bytes N] [--rate N] [--rounds N] [--output DIRECTORY]

What it is: sets up each cluster anew in every round, rcached and Redis in turn, fills it, has a process of Python clients get
and set at a steady rate, and has one filled node leave. It shows how fast that went, and the requests' times before it and
during it.
Which thread runs it: one. What it owns: a directory for the servers' files, and the process of the load.
What it must not know: how a cluster is set up, or a node told to leave (`rcache_side`, `redis_side`).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from shutil import which
from typing import Any

from rich.console import Console

from soak.bench.errors import BenchError
from soak.bench.machine import describe_machine
from soak.bench.samples import Sample, Samples
from soak.handoff.keys import KEY_BYTES
from soak.handoff.page import as_page, show
from soak.handoff.rcache_side import RcacheSide, rcache_side
from soak.handoff.redis_side import RedisSide, redis_side
from soak.handoff.side import Side
from soak.measured import Shown, carry_out

BEFORE_S = 5.0
"""How long the requests are looked at before the node is told to leave."""

SETTLE_S = 2.0
"""Connections are made, and what filling left to do is done."""

LOAD_S = 30.0
"""For the load to begin, and to end: every call ends within its budget."""

SIDES: dict[str, Callable[[Path], AbstractContextManager[Side]]] = {RcacheSide.name: rcache_side, RedisSide.name: redis_side}


def why_not(name: str) -> str:
    """What keeps a side from being measured; "" if nothing does."""
    if name == RcacheSide.name:
        return ""
    if which("redis-server") is None or which("redis-cli") is None:
        return "redis-server and redis-cli are not installed"
    return "" if find_spec("redis") else "the package redis is not installed (pip install redis hiredis)"


@contextmanager
def load(name: str, side: Side, given: argparse.Namespace) -> Iterator[subprocess.Popen[str]]:
    """The process of the load, under way."""
    program = [sys.executable, "-m", "soak.handoff.traffic", "rcache" if name == RcacheSide.name else "redis"]
    program += ["--servers", side.servers, "--keys", str(given.items), "--value-bytes", str(given.value_bytes)]
    program += ["--rate", str(given.rate)]
    process = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        if process.stdout.readline() != "ready\n":
            raise BenchError(f"the load on {name} did not begin")
        yield process
    finally:
        process.kill()
        process.communicate()


def calls_of(process: subprocess.Popen[str]) -> list[tuple[float, float, bool]]:
    """End the load, and take what it measured."""
    said, _ = process.communicate("", timeout=LOAD_S)
    calls: list[tuple[float, float, bool]] = json.loads(said)
    return calls


def times(calls: Sequence[tuple[float, float, bool]], began: float, ended: float, when: str) -> dict[str, float]:
    """Of the calls that ended within this time: the middle, the slow and the slowest, in milliseconds, and how many failed."""
    here = sorted(took_ms for at, took_ms, _ in calls if began <= at < ended)
    if not here:
        raise BenchError(f"no request ended {when} the handoff: raise --items or --rate")
    figures = {"p50_ms": here[len(here) // 2], "p99_ms": here[len(here) * 99 // 100], "max_ms": here[-1], "calls": len(here)}
    failed = sum(failed for at, _, failed in calls if began <= at < ended)
    return {f"{when}_{name}": float(figure) for name, figure in figures.items()} | {f"{when}_failed": float(failed)}


def measure(name: str, given: argparse.Namespace) -> dict[str, float]:
    """One handoff of one side. Raises `BenchError`."""
    with tempfile.TemporaryDirectory(prefix="rcache-handoff-", dir=given.scratch) as own, SIDES[name](Path(own)) as side:
        side.fill(given.items, b"v" * given.value_bytes)
        with load(name, side, given) as process:
            time.sleep(SETTLE_S + BEFORE_S)
            items = side.to_move()
            began = time.monotonic()
            figures = side.hand_over()
            ended = began + figures["seconds"]
            calls = calls_of(process)
    moved = items / figures["seconds"]
    mb = moved * (KEY_BYTES + given.value_bytes) / 1e6
    figures |= {"items": float(items), "items_per_s": moved, "mb_per_s": mb, "failed": float(sum(each[2] for each in calls))}
    return figures | times(calls, began - BEFORE_S, began, "before") | times(calls, began, ended, "during")


def run(given: argparse.Namespace, console: Console) -> dict[str, Any]:
    """All rounds. Raises `BenchError`."""
    missing = {name: why for name in SIDES if (why := why_not(name))}
    samples = []
    for number in range(1, given.rounds + 1):
        for name in [name for name in SIDES if name not in missing]:
            with console.status(f"round {number} of {given.rounds}: {name}"):
                samples.append(Sample("handoff", "leaving", name, number, measure(name, given)))
    return {
        "command": given.command,
        "date": datetime.now(UTC).date().isoformat(),
        "machine": describe_machine(Path(given.scratch)),
        "items": given.items,
        "value_bytes": given.value_bytes,
        "rate": given.rate,
        "rounds": given.rounds,
        "sides": {RcacheSide.name: RcacheSide.command, RedisSide.name: RedisSide.command},
        "missing": missing,
        "samples": Samples(samples),
    }


def read_settings(argv: Sequence[str]) -> argparse.Namespace:
    """The command line; exits with 2 where it is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m soak.handoff",
        description="Measure a filled node that leaves, beside Redis Cluster's migration of slots.",
    )
    parser.add_argument("--items", type=int, default=500_000, help="keys of the cluster (default: %(default)s)")
    parser.add_argument("--value-bytes", type=int, default=100, help="of each value (default: %(default)s)")
    parser.add_argument(
        "--rate", type=float, default=1000, help="requests a second meanwhile, half of them writes (default: %(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="handoffs of each (default: %(default)s)")
    parser.add_argument(
        "--scratch", default=tempfile.gettempdir(), metavar="DIRECTORY", help="for the servers' files (default: %(default)s)"
    )
    parser.add_argument("--output", type=Path, metavar="DIRECTORY", help="write handoff.md and handoff.json there")
    given = parser.parse_args(argv)
    given.command = " ".join(["python -m soak.handoff", *argv])
    if given.rounds < 1 or given.items < 1 or not 1 <= given.value_bytes <= 1 << 20 or not 1 <= given.rate <= 1e5:
        parser.error("--items, --rounds and --rate must be 1 or more, --value-bytes 1 to 1048576, --rate at most 100000")
    return given


def _figures(report: dict[str, Any]) -> str:
    facts = report | {"samples": [asdict(sample) for sample in report["samples"]]}
    return json.dumps(facts, indent=1) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; 0 when it was measured."""
    given = read_settings(sys.argv[1:] if argv is None else argv)
    console = Console()

    def measure() -> dict[str, Any]:
        report = run(given, console)
        show(report, console)
        return report

    return carry_out("handoff", measure, lambda report: Shown(as_page(report), _figures(report)), given.output, "handoff")
