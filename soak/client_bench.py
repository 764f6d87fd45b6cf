"""What the Python clients cost: rcache_client beside redis-py and pymemcache, each with its own server, in turn.

    python -m soak.client_bench [--rounds N] [--seconds S] [--engine ENGINE] [--output DIRECTORY]

What it is: a program. It starts rcached, redis-server and memcached fresh, and lets one thread call each client as a user
would, with all settings as they come: get, set, and 100 keys at once, in rounds (A B C, A B C, ...). It shows calls a second,
the processor's time of each call in the client's own process, and the ratios round by round.
Which thread runs it: one, for everything.
What it owns: the servers, and its connections to them, until it ends.
What it must not know: how a client works; `soak.bench.peers` knows how a server is started.

redis-py, hiredis and pymemcache are needed by nothing else here, so they are looked for when this runs, and what is not
installed is left out and named.
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
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console

from rcache_client import Client
from rcache_client import __version__ as own_version
from soak.bench.errors import BenchError
from soak.bench.machine import describe_machine
from soak.bench.page import drawn, table_lines
from soak.bench.peers import Needs, Peer, peer_named, running
from soak.bench.samples import Sample, Samples, ratios
from soak.bench.tables import Grid, figure_grid, ratios_text
from soak.measured import Shown, carry_out

VALUE = b"v" * 100
KEYS = [f"key:{number:0{4 + number % 5}}" for number in range(100)]
"""Of 8 to 12 bytes, as keys are: not all of one length."""
KEY = KEYS[1]

GET, SET, GET_MANY = "get", "set", "get of 100 keys"
SET_UNANSWERED = "set, pymemcache as it comes"
"""It does not wait for the answer to a set unless it is told to: that figure is of no round trip, and no error is ever told.
For SET it is told to wait, as the others do."""

RATE, CPU = "calls_per_s", "cpu_us"
MINE = "rcache_client"
BATCH = 20
"""Calls between two looks at the clock: so many that a look costs nothing, so few that a measurement ends when it should."""
WARM_UP = 200
"""Calls before each measurement: a processor wakes up, and a client finds out how its server answers."""

Calls = Mapping[str, Callable[[], object]]
"""What is measured: for each operation a call, which returns what the client returned."""


@dataclass(frozen=True)
class Contender:
    """A client, and the server it speaks to. `packages`: what must be installed for it, the importable one first."""

    name: str
    server: str
    packages: tuple[str, ...]
    connected: Callable[[int], Any]
    """A port to the client, connected; it has `close`."""
    calls: Callable[[Any], Calls]

    @property
    def versions(self) -> dict[str, str]:
        return {name: version(name) for name in self.packages} or {MINE: own_version}


def _rcache_calls(client: Client[bytes]) -> Calls:
    store = {SET: lambda: client.set(KEY, VALUE)}
    return {GET: lambda: client.get(KEY), **store, SET_UNANSWERED: store[SET], GET_MANY: lambda: client.get_many(KEYS)}


def _redis_calls(client: Any) -> Calls:
    return {GET: lambda: client.get(KEY), SET: lambda: client.set(KEY, VALUE), GET_MANY: lambda: client.mget(KEYS)}


def _memcached_calls(client: Any) -> Calls:
    return {
        GET: lambda: client.get(KEY),
        SET: lambda: client.set(KEY, VALUE, noreply=False),
        SET_UNANSWERED: lambda: client.set(KEY, VALUE),
        GET_MANY: lambda: client.get_many(KEYS),
    }


CONTENDERS = (
    Contender(MINE, "rcached", (), lambda port: Client(f"127.0.0.1:{port}"), _rcache_calls),
    Contender(
        *("redis-py", "redis", ("redis", "hiredis")), lambda port: _module("redis").Redis("127.0.0.1", port), _redis_calls
    ),
    Contender(
        *("pymemcache", "memcached", ("pymemcache",)),
        lambda port: _module("pymemcache").Client(("127.0.0.1", port)),
        _memcached_calls,
    ),
)

GOALS = {
    ("redis-py", GET): 2.0,
    ("redis-py", SET): 2.0,
    ("redis-py", GET_MANY): 2.5,
    ("pymemcache", GET): 1.3,
    ("pymemcache", SET): 1.3,
}
"""What the client should reach of each: the median of the rounds' ratios."""


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
    samples: Samples = field(default_factory=Samples)


def _module(name: str) -> Any:
    return import_module(name)


def peer_of(contender: Contender, engine: str) -> Peer:
    """The server of a client; `engine` is rcached's."""
    return peer_named(contender.server, Needs(), engine)


def why_not(contender: Contender) -> str:
    """What keeps a client from being measured; "" if nothing does."""
    for package in contender.packages:
        try:
            version(package)
        except PackageNotFoundError:
            return f"the package {package} is not installed (pip install {' '.join(contender.packages)})"
    peer = peer_of(contender, "auto")
    return "" if peer.path else f"{peer.program} is not installed"


@contextmanager
def connected(contender: Contender, engine: str, report: Report) -> Iterator[Calls]:
    """The calls of a client of a fresh server that holds all keys; noted in the report. Raises `BenchError`."""
    peer = peer_of(contender, engine)
    with running(peer) as server:
        said = f"{peer.version}, engine {server.engine}" if server.engine else peer.version
        report.servers[peer.name] = {"version": said, "command": peer.command}
        report.clients[contender.name] = contender.versions
        client = contender.connected(server.port)
        try:
            for key in KEYS:
                client.set(key, VALUE)
            calls = contender.calls(client)
            check(contender.name, calls)
            yield calls
        finally:
            client.close()


def check(name: str, calls: Calls) -> None:
    """Hold one answer of each read against what was stored. Raises `BenchError`."""
    found = calls[GET_MANY]()
    values = list(found.values()) if isinstance(found, dict) else found
    if calls[GET]() != VALUE or values != [VALUE] * len(KEYS):
        raise BenchError(f"{name} does not give back what was stored")


def measure(call: Callable[[], object], seconds: float) -> dict[str, float]:
    """Call again and again, for so many seconds: calls a second, and this process's own time for each in microseconds."""
    for _ in range(WARM_UP):
        call()
    calls = 0
    cpu_began, began = time.process_time(), time.perf_counter()
    while (took_s := time.perf_counter() - began) < seconds:
        for _ in range(BATCH):
            call()
        calls += BATCH
    return {RATE: calls / took_s, CPU: (time.process_time() - cpu_began) / calls * 1e6}


def run(settings: argparse.Namespace, console: Console) -> Report:
    """Measure every client that can be. Raises `BenchError`, also where nothing is left to compare with."""
    machine = describe_machine(Path(tempfile.gettempdir()))
    report = Report(settings.command, datetime.now(UTC).date().isoformat(), machine, settings.rounds, settings.seconds)
    report.missing = {each.name: why for each in CONTENDERS if (why := why_not(each))}
    here = [each for each in CONTENDERS if each.name not in report.missing]
    if MINE in report.missing or len(here) < 2:
        raise BenchError("; ".join(f"{name}: {why}" for name, why in report.missing.items()))
    with ExitStack() as stack, console.status("starting the servers") as status:
        calls = {each.name: stack.enter_context(connected(each, settings.engine, report)) for each in here}
        samples = []
        for operation in (GET, SET, SET_UNANSWERED, GET_MANY):
            able = {name: of_client[operation] for name, of_client in calls.items() if operation in of_client}
            for number in range(1, settings.rounds + 1):
                for name, call in able.items():
                    status.update(f"{operation}, round {number} of {settings.rounds}: {name}")
                    samples.append(Sample(operation, operation, name, number, measure(call, settings.seconds)))
    report.samples = Samples(samples)
    return report


def grids(samples: Samples) -> list[Grid]:
    """Calls a second, and processor time, of each client."""
    return [
        figure_grid("Calls a second of one thread; ratios: how many times as many", "call", samples, RATE),
        figure_grid("Processor time of a call, in microseconds; ratios: how many times as much", "call", samples, CPU, ".1f"),
        goals_grid(samples),
    ]


def goals_grid(samples: Samples) -> Grid:
    """The figures to reach, and whether they are."""
    rows = []
    for (other, operation), wanted in GOALS.items():
        here = samples.where(operation)
        found = ratios(here.where(server=MINE), RATE, here.where(server=other))
        if found:
            rows.append(
                [f"{operation}, to {other}", f"{wanted:g}", ratios_text(found), "yes" if median(found) >= wanted else "no"]
            )
    return Grid("The figures to reach", ["what", "at least", "found", "reached"], rows)


def show(report: Report, console: Console) -> None:
    """Print the tables, and what was left out."""
    for grid in grids(report.samples):
        console.print(drawn(grid))
    for name, why in report.missing.items():
        console.print(f"{name} was not measured: {why}", markup=False)


def as_json(report: Report) -> str:
    """Everything, every single measurement too."""
    facts = {name: value for name, value in vars(report).items() if name != "samples"}
    facts["goals"] = goals_grid(report.samples).rows
    facts["samples"] = [asdict(sample) for sample in report.samples]
    return json.dumps(facts, indent=1) + "\n"


def as_page(report: Report) -> str:
    """The tables for people, and all one needs to make them again."""
    lines = [
        "# The Python client beside others",
        "",
        f"Measured on {report.date} by `{report.command}`:",
        f"{report.rounds} rounds, {report.seconds:g} s a measurement. One thread calls each client in turn, with the settings",
        "that it comes with; each has a server of its own, started fresh, on the same machine. More in README.md here.",
        "",
    ]
    lines += [f"- {name}: {value}" for name, value in report.machine.items()]
    for name, packages in report.clients.items():
        lines.append(f"- {name}: {', '.join(f'{package} {number}' for package, number in packages.items())}")
    lines += [f"- {name} {facts['version']}: `{facts['command']}`" for name, facts in report.servers.items()]
    lines += [f"- {name} was not measured: {why}" for name, why in report.missing.items()]
    for grid in grids(report.samples):
        if grid.rows:
            lines += ["", f"## {grid.title}", "", *table_lines(grid)]
    return "\n".join(lines) + "\n"


def read_settings(argv: Sequence[str]) -> argparse.Namespace:
    """The command line; exits with 2 where it is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m soak.client_bench", description="Measure rcache_client beside redis-py and pymemcache."
    )
    parser.add_argument("--rounds", type=int, default=7, help="rounds of each call (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=0.5, help="length of each measurement (default: %(default)s)")
    parser.add_argument("--output", type=Path, metavar="DIRECTORY", help="write client.md and client.json there")
    engines = ("auto", "native", "reference")
    parser.add_argument("--engine", choices=engines, default="auto", help="rcached's (default: %(default)s)")
    settings = parser.parse_args(argv)
    settings.command = " ".join(["python -m soak.client_bench", *argv])
    if settings.rounds < 1 or not 0 < settings.seconds <= 3600:
        parser.error("--rounds must be above 0, and --seconds above 0 and an hour at most")
    return settings


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; 0 when something was measured."""
    settings = read_settings(sys.argv[1:] if argv is None else argv)
    console = Console()

    def measure() -> Report:
        report = run(settings, console)
        show(report, console)
        return report

    return carry_out("client_bench", measure, lambda report: Shown(as_page(report), as_json(report)), settings.output, "client")


if __name__ == "__main__":
    sys.exit(main())
