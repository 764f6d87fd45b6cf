"""What one subscriber written in Python takes: rcache_client, beside redis-py where that is installed.

What it is: `View`, a client's own subscription, and `take`, which counts what it brings.
Which thread runs it: the main thread takes events; clients may have threads of their own; the writers' process is waited for by
another.
What it owns: the client, for the time of a measurement. What it must not know: how figures are shown.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from rcache_client import Client
from rcache_client import __version__ as own_version
from rcache_client.events import Operation
from soak.bench.drivers import Drivers
from soak.bench.errors import BenchError
from soak.bench.peers import running
from soak.feed_bench.contenders import NAMES, PATTERN, REDIS, VALUES, Contender
from soak.feed_bench.measure import Setting, write

PACKAGE = "redis"
"""redis-py. Nothing else here needs it, so it is looked for when this runs, and missed by name where it is not there."""

WAIT_S = 0.1
"""How long one wait for an event lasts."""

BEGIN_S = 10.0
MORE_S = 1.0
"""The writers begin before, and end after, the time in which events are counted."""

Next = Callable[[], bool | None]
"""The next event: whether it is one, rather than a gap; None where none came for a moment."""


@dataclass(frozen=True)
class View:
    """`packages`: what must be installed beside rcache."""

    name: str
    contender: Contender
    subscribed: Callable[[int], AbstractContextManager[Next]]
    packages: tuple[str, ...] = ()

    def why_not(self) -> str:
        """What keeps it from being measured; "" if nothing does."""
        for package in self.packages:
            try:
                version(package)
            except PackageNotFoundError:
                return f"the package {package} is not installed (pip install {' '.join(self.packages)})"
        return self.contender.why_not()

    @property
    def versions(self) -> dict[str, str]:
        return {name: version(name) for name in self.packages} or {"rcache_client": own_version}


def _by_rcache(*, values: bool) -> Callable[[int], AbstractContextManager[Next]]:
    @contextmanager
    def subscribed(port: int) -> Iterator[Next]:
        with Client(f"127.0.0.1:{port}") as client, client.subscribe(values=values) as events:

            def following() -> bool | None:
                event = events.get(WAIT_S)
                return None if event is None else event.operation is not Operation.GAP

            yield following

    return subscribed


@contextmanager
def _by_redis(port: int) -> Iterator[Next]:
    redis: Any = import_module(PACKAGE)
    with closing(redis.Redis("127.0.0.1", port)) as client, closing(client.pubsub()) as pubsub:
        pubsub.psubscribe(PATTERN)
        if pubsub.get_message(timeout=10) is None:
            raise BenchError("redis does not answer PSUBSCRIBE")

        def following() -> bool | None:
            message = pubsub.get_message(timeout=WAIT_S)
            return None if message is None else message["type"] == "pmessage"

        yield following


VIEWS = (
    View("Client.subscribe(values=True)", VALUES, _by_rcache(values=True)),
    View("Client.subscribe(values=False)", NAMES, _by_rcache(values=False)),
    View("redis-py's pubsub", REDIS, _by_redis, ("redis", "hiredis")),
)


def take(following: Next, seconds: float) -> dict[str, float]:
    """Events a second, and this process's own time for each in microseconds; the first is waited for."""
    deadline = time.monotonic() + BEGIN_S
    while not following():
        if time.monotonic() > deadline:
            raise BenchError("no event came")
    events, cpu_began, began = 0, time.process_time(), time.perf_counter()
    while (took_s := time.perf_counter() - began) < seconds:
        events += following() is True
    return {"events_per_s": events / took_s, "cpu_us": (time.process_time() - cpu_began) / max(1, events) * 1e6}


def measure_view(drivers: Drivers, view: View, rate: int, setting: Setting) -> dict[str, float]:
    """The figures of one client with a fresh server, which is written to at this rate (0: as fast as it goes)."""
    with running(view.contender.peer(setting.engine)) as server, view.subscribed(server.port) as following:
        with ThreadPoolExecutor(1, thread_name_prefix="writers") as pool:
            writing = pool.submit(write, drivers, server, rate, setting.seconds + MORE_S)
            figures = take(following, setting.seconds)
        writing.result()
    return figures
