"""What every part of the benchmark is given: how long, how much, against whom, and with which drivers.

What it is: `Sizes`, and `Bench`, through which a part starts its servers, loads them, and takes its samples in turn.
Which thread runs it: the benchmark's only one.
What it owns: the list of the servers that were started, with their versions and commands.
What it must not know: any one part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from soak.bench.drivers import Drivers, Keys, Shape
from soak.bench.machine import settle
from soak.bench.peers import NAMES, START_S, Needs, Peer, Running, peer_named, running
from soak.bench.samples import Condition, Sample
from soak.bench.tables import condition_text
from soak.bench.traffic import GET, SET, marked

LOAD_SHAPE = Shape(8, 100)
"""Enough under way to keep any server busy while it is filled."""

LOAD_RATE_MIN = 5_000
"""Items a second that a server must take while it is filled, or the benchmark gives it up: the reference engine, on a slow
machine, divided by a few."""

LOAD_S_MIN = 30.0

Measure = Callable[[Running, int], dict[str, float]]
"""A server and the number of the round to figures."""


@dataclass(frozen=True)
class Sizes:
    """How long and how much."""

    rounds: int
    seconds: float
    spread_rounds: int
    """Rounds of the shape that varies most, one connection with one request."""
    items: int
    """Of the parts `items` and `load`."""
    items_max: int
    """Where the part `keys` ends."""
    connections_held: int
    disk_bytes: int
    """Written to learn the disk's own rate."""


FULL = Sizes(5, 1.0, 20, 1_000_000, 10_000_000, 10_000, 512 << 20)
QUICK = Sizes(2, 0.3, 3, 20_000, 10_000, 200, 16 << 20)


@dataclass
class Bench:
    """One run of one part."""

    sizes: Sizes
    drivers: Drivers
    scratch: Path
    """Where servers keep their files while they run."""
    names: Sequence[str] = NAMES
    engine: str = "auto"
    step: Callable[[str], None] = print
    """Told what is about to be measured."""
    started: dict[str, dict[str, str]] = field(default_factory=dict)
    """Name: version and command, of every kind of server started so far."""

    @contextmanager
    def server(self, name: str, needs: Needs, directory: Path | None = None, timeout_s: float = START_S) -> Iterator[Running]:
        """One server, running; its files go with it unless it is given a directory. Raises `BenchError`."""
        peer = peer_named(name, needs, self.engine)
        with ExitStack() as stack:
            directory = directory or self.directory(stack)
            server = stack.enter_context(running(peer, directory, timeout_s))
            self._note(peer, server, needs)
            yield server

    @contextmanager
    def limit(self) -> Iterator[Running]:
        """The server that does nothing. Raises `BenchError`."""
        with ExitStack() as stack, running(self.drivers.limit(), self.directory(stack)) as server:
            yield server

    @contextmanager
    def servers(self, needs: Needs) -> Iterator[dict[str, Running]]:
        """All servers at once, in the order they are measured in. Raises `BenchError`."""
        with ExitStack() as stack:
            yield {name: stack.enter_context(self.server(name, needs)) for name in self.names}

    def in_turn(
        self, group: str, at: Condition, servers: dict[str, Running], measure: Measure, rounds: int | None = None
    ) -> list[Sample]:
        """One sample of every server in each round: A B C, A B C, ... `rounds`: those of the sizes by default."""
        samples = []
        for number in range(1, (rounds or self.sizes.rounds) + 1):
            for name, server in servers.items():
                self.step(f"{name}: {group} {condition_text(at)}, round {number}")
                samples.append(Sample(group, at, name, number, measure(server, number)))
        return samples

    def directory(self, stack: ExitStack) -> Path:
        """A new directory for a server's files, until `stack` is left."""
        return Path(stack.enter_context(TemporaryDirectory(prefix="rcache-bench-", dir=self.scratch)))

    def fill(self, server: Running, count: int, value_bytes: int = 100, first: int = 0) -> dict[str, float]:
        """Store items `first` to `first + count - 1`, and wait until the server is at rest. Returns the figures."""
        self.step(f"{server.peer.name}: storing {count:,} items")
        exchange = marked(server.peer.dialect, value_bytes)[SET]
        keys = Keys(count, first, each=True)
        figures = self.drivers.keys(server, exchange, LOAD_SHAPE, self.patience_s(count), keys)
        settle(server.pid)
        return figures

    def check(self, server: Running, count: int, value_bytes: int = 100) -> None:
        """Read items 0 to `count - 1`, each once. Raises `BenchError` where one is missing or another's."""
        self.step(f"{server.peer.name}: reading {count:,} items back")
        exchange = marked(server.peer.dialect, value_bytes)[GET]
        self.drivers.keys(server, exchange, LOAD_SHAPE, self.patience_s(count), Keys(count, each=True))

    @staticmethod
    def patience_s(count: int) -> float:
        """How long storing or reading `count` items may take."""
        return max(LOAD_S_MIN, count / LOAD_RATE_MIN)

    def _note(self, peer: Peer, server: Running, needs: Needs) -> None:
        name = peer.name if needs.log == "off" else f"{peer.name}, log: {needs.log}"
        if name not in self.started:
            version = f"{peer.version}, engine {server.engine}" if server.engine else peer.version
            self.started[name] = {"version": version, "command": peer.command}
