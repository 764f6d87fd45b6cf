"""What a near cache gives: rcache_client with one beside redis-py with client-side caching, each with its own server, in turn.

    python -m soak.near_bench [--rounds N] [--seconds S] [--engine ENGINE] [--output DIRECTORY]

What it is: a program. It starts rcached and redis-server fresh, and lets one thread call `get` of each client: of keys that
are in the client's own cache, of more keys than that holds, and without one; in rounds (A B, A B, ...). It shows calls a
second, the processor's time of each call in the client's own process, and the ratios round by round. That what is called a hit
asks no server, and what is called a miss does, is held against what was counted.
Which thread runs it: one, for everything; rcache_client has one more for each node, which is told of changes.
What it owns: the servers, and its connections to them, until it ends.
What it must not know: how a client works; `soak.bench.peers` knows how a server is started.

redis-py and hiredis are needed by nothing else here, so they are looked for when this runs; without them, or redis-server, that
side is left out and named.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from importlib import import_module
from itertools import cycle
from pathlib import Path
from typing import Any

from rich.console import Console

from rcache_client import Client, NearCache
from soak.bench.errors import BenchError
from soak.bench.machine import describe_machine
from soak.bench.page import drawn, table_lines
from soak.bench.peers import running
from soak.bench.samples import Sample, Samples
from soak.bench.tables import Grid, figure_grid, number
from soak.client_bench import CONTENDERS as CLIENTS
from soak.client_bench import CPU, MINE, RATE, measure, peer_of, why_not
from soak.measured import Shown, carry_out

VALUE = b"v" * 100
KEY = "key:00000"
SOME = [f"key:{number:05d}" for number in range(100)]
MANY = [f"key:{number:05d}" for number in range(10_000)]
"""Far more than `KEPT`: in turn, each has gone from the client's cache before it is asked for again."""

KEPT_BYTES = 1 << 20
KEPT = 1800
"""So many entries of such keys and values are in rcache_client's `KEPT_BYTES`; redis-py is told a number."""

HIT, HITS, MISS, PLAIN = "hit, one key", "hit, 100 keys in turn", "miss", "get without a near cache"
ASKED = "asked"
"""The share of calls for which the server was asked; not of PLAIN, where it always is."""
ASKED_MAX = {HIT: 0.01, HITS: 0.01, MISS: 1.1}
ASKED_MIN = {HIT: 0.0, HITS: 0.0, MISS: 0.9}

GOAL_RATE = 1_000_000
"""Hits a second of one thread."""

LIVE_S = 10.0


@dataclass(frozen=True)
class Side:
    """A client that is connected: what is called for each operation, and how many GETs its server was asked for so far."""

    calls: Mapping[str, Callable[[], object]]
    asked: Callable[[], int]


@dataclass
class Report:
    """One run, with all one needs to judge it and to do it again."""

    command: str
    date: str
    machine: dict[str, str]
    rounds: int
    seconds: float
    servers: dict[str, dict[str, str]] = field(default_factory=dict)
    clients: dict[str, dict[str, str]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    """Client: why it was not measured."""
    remarks: list[str] = field(default_factory=list)
    samples: Samples = field(default_factory=Samples)


def calls_of(near: Callable[[str], object], plain: Callable[[str], object]) -> Mapping[str, Callable[[], object]]:
    some, many = cycle(SOME).__next__, cycle(MANY).__next__
    return {
        HIT: partial(near, KEY),
        HITS: lambda: near(some()),
        MISS: lambda: near(many()),
        PLAIN: partial(plain, KEY),
    }


@contextmanager
def rcache_side(port: int, _remarks: list[str]) -> Iterator[Side]:
    address = f"127.0.0.1:{port}"
    cache = NearCache(max_bytes=KEPT_BYTES)
    with Client(address) as plain, Client(address, near_cache=cache) as near:
        plain.set_many(dict.fromkeys(MANY, VALUE))
        until = time.monotonic() + LIVE_S
        while not cache.stats().hits:
            if near.get(KEY) != VALUE or time.monotonic() > until:
                raise BenchError(f"{MINE}: nothing is served from the near cache: {cache.stats()}")
            time.sleep(0.01)
        yield Side(calls_of(near.get, plain.get), lambda: cache.stats().misses)


@contextmanager
def redis_side(port: int, remarks: list[str]) -> Iterator[Side]:
    redis, cache, connection = (import_module(name) for name in ("redis", "redis.cache", "redis.connection"))
    plain = redis.Redis("127.0.0.1", port, protocol=3)
    version = plain.info("server")["redis_version"]
    proxy, demanded = connection.CacheProxyConnection, connection.CacheProxyConnection.MIN_ALLOWED_VERSION
    if _numbers(version) < _numbers(demanded):
        remarks.append(f"redis-py asks for Redis {demanded} or newer for this; that check was set aside for Redis {version}")
        proxy.MIN_ALLOWED_VERSION = version  # what it needs, CLIENT TRACKING, is there since Redis 6.0
    near = redis.Redis("127.0.0.1", port, protocol=3, cache_config=cache.CacheConfig(max_size=KEPT))
    try:
        plain.mset(dict.fromkeys(MANY, VALUE))
        if near.get(KEY) != VALUE or near.get(KEY) != VALUE:
            raise BenchError("redis-py does not give back what was stored")
        yield Side(calls_of(near.get, plain.get), lambda: int(plain.info("commandstats")["cmdstat_get"]["calls"]))
    finally:
        near.close()
        plain.close()
        proxy.MIN_ALLOWED_VERSION = demanded


def _numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".")]


SIDES: Mapping[str, Callable[[int, list[str]], Any]] = {MINE: rcache_side, "redis-py": redis_side}


def missing() -> dict[str, str]:
    """Client: what keeps it from being measured."""
    return {each.name: why for each in CLIENTS if each.name in SIDES and (why := why_not(each))}


@contextmanager
def connected(name: str, engine: str, report: Report) -> Iterator[Side]:
    """A client of a fresh server that holds all keys; noted in the report. Raises `BenchError`."""
    (client,) = [each for each in CLIENTS if each.name == name]
    peer = peer_of(client, engine)
    with running(peer) as server:
        said = f"{peer.version}, engine {server.engine}" if server.engine else peer.version
        report.servers[peer.name] = {"version": said, "command": peer.command}
        report.clients[name] = client.versions
        with SIDES[name](server.port, report.remarks) as side:
            yield side


def measured(name: str, side: Side, operation: str, seconds: float) -> dict[str, float]:
    """Calls a second and their processor time. Raises `BenchError` where a hit asked the server, or a miss did not."""
    began = side.asked()
    figures = measure(side.calls[operation], seconds)
    if operation in ASKED_MAX:
        figures[ASKED] = (side.asked() - began) / (figures[RATE] * seconds)
        if not ASKED_MIN[operation] <= figures[ASKED] <= ASKED_MAX[operation] + 500 / (figures[RATE] * seconds):
            raise BenchError(f"{name}: {operation}: the server was asked for {figures[ASKED]:.1%} of the calls")
    return figures


def run(settings: argparse.Namespace, console: Console) -> Report:
    """Measure what can be. Raises `BenchError`, also where rcached cannot."""
    machine = describe_machine(Path(tempfile.gettempdir()))
    report = Report(settings.command, datetime.now(UTC).date().isoformat(), machine, settings.rounds, settings.seconds)
    report.missing = missing()
    if MINE in report.missing:
        raise BenchError(f"{MINE}: {report.missing[MINE]}")
    with ExitStack() as stack, console.status("starting the servers") as status:
        here = [name for name in SIDES if name not in report.missing]
        sides = {name: stack.enter_context(connected(name, settings.engine, report)) for name in here}
        samples = []
        for operation in (HIT, HITS, MISS, PLAIN):
            for round_number in range(1, settings.rounds + 1):
                for name, side in sides.items():
                    status.update(f"{operation}, round {round_number} of {settings.rounds}: {name}")
                    figures = measured(name, side, operation, settings.seconds)
                    samples.append(Sample(operation, operation, name, round_number, figures))
    report.samples = Samples(samples)
    return report


def grids(samples: Samples) -> list[Grid]:
    """Calls a second, and processor time, of each client, and whether what is to be reached was."""
    found = samples.where(HIT, server=MINE).median(RATE)
    reached = "yes" if found is not None and found >= GOAL_RATE else "no"
    return [
        figure_grid("Calls a second of one thread; ratios: how many times as many", "get", samples, RATE),
        figure_grid("Processor time of a call, in microseconds; ratios: how many times as much", "get", samples, CPU, ".2f"),
        Grid(
            "The figure to reach",
            ["what", "at least", "found", "reached"],
            [["hits a second, one key", number(GOAL_RATE), number(found), reached]],
        ),
    ]


def show(report: Report, console: Console) -> None:
    """Print the command, the machine, the tables, and what was left out."""
    console.print(report.command, *(f"{name}: {value}" for name, value in report.machine.items()), sep="\n", markup=False)
    for grid in grids(report.samples):
        console.print(drawn(grid))
    for remark in report.remarks:
        console.print(remark, markup=False)
    for name, why in report.missing.items():
        console.print(f"{name} was not measured: {why}", markup=False)


def as_json(report: Report) -> str:
    """Everything, every single measurement too."""
    facts = {name: value for name, value in vars(report).items() if name != "samples"}
    facts["samples"] = [asdict(sample) for sample in report.samples]
    return json.dumps(facts, indent=1) + "\n"


def as_page(report: Report) -> str:
    """The tables for people, and all one needs to make them again."""
    lines = [
        "# A near cache beside client-side caching",
        "",
        f"Measured on {report.date} by `{report.command}`:",
        f"{report.rounds} rounds, {report.seconds:g} s a measurement. One thread calls `get` of each client in turn; each has",
        "a server of its own, started fresh, on the same machine. `rcache_client` has a `NearCache`, redis-py a `CacheConfig`",
        f"of {KEPT:,} entries, about as many as the {KEPT_BYTES >> 20} MiB of the other hold. A value has {len(VALUE)} bytes.",
        f"A miss is a `get` of one of {len(MANY):,} keys in turn, so that each has been put out again when its turn comes.",
        "`get without a near cache` is of a second client, as it comes.",
        "",
    ]
    lines += [f"- {name}: {value}" for name, value in report.machine.items()]
    for name, packages in report.clients.items():
        lines.append(f"- {name}: {', '.join(f'{package} {version}' for package, version in packages.items())}")
    lines += [f"- {name} {facts['version']}: `{facts['command']}`" for name, facts in report.servers.items()]
    lines += [f"- {remark}" for remark in report.remarks]
    lines += [f"- {name} was not measured: {why}" for name, why in report.missing.items()]
    for grid in grids(report.samples):
        lines += ["", f"## {grid.title}", "", *table_lines(grid)]
    return "\n".join(lines) + "\n"


def read_settings(argv: Sequence[str]) -> argparse.Namespace:
    """The command line; exits with 2 where it is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m soak.near_bench", description="Measure rcache_client's near cache beside redis-py's."
    )
    parser.add_argument("--rounds", type=int, default=7, help="rounds of each call (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=0.5, help="length of each measurement (default: %(default)s)")
    parser.add_argument("--output", type=Path, metavar="DIRECTORY", help="write near_cache.md and near_cache.json there")
    engines = ("auto", "native", "reference")
    parser.add_argument("--engine", choices=engines, default="auto", help="rcached's (default: %(default)s)")
    settings = parser.parse_args(argv)
    settings.command = " ".join(["python -m soak.near_bench", *argv])
    if settings.rounds < 1 or not 0 < settings.seconds <= 3600:
        parser.error("--rounds must be above 0, and --seconds above 0 and an hour at most")
    return settings


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; 0 when it was measured."""
    settings = read_settings(sys.argv[1:] if argv is None else argv)
    console = Console()

    def measure() -> Report:
        report = run(settings, console)
        show(report, console)
        return report

    return carry_out(
        "near_bench", measure, lambda report: Shown(as_page(report), as_json(report)), settings.output, "near_cache"
    )


if __name__ == "__main__":
    sys.exit(main())
