"""The client on three real nodes, one of which dies, drains or stops for a while under its hands.

Each writer owns its keys, so it knows what each may hold: the value of its last write that succeeded, or that of one after it
whose outcome is unknown. A read that shows anything else is wrong.
"""

from __future__ import annotations

import random
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread
from time import monotonic

import pytest

from rcache_client import Client, NotExecuted, OutcomeUnknown, RcacheError, SomeKeysFailed, TimedOut
from soak.server_process import ServerProcess

from .conftest import Serve
from .support import until

NAMES = ("n1", "n2", "n3")
BUCKETS = 64
KEYS = 40
"""Of each writer: enough for every node to have some of them."""

WRITERS = 6
BUDGET_S = 5.0
SLACK_S = 0.75
"""What a busy machine may add to a budget."""

SETTLED_S = 20.0
"""A dead node's buckets are taken over within two seconds, and filled a little later; a slow machine needs longer."""

Cluster = dict[str, ServerProcess]


@pytest.fixture
def cluster(serve: Serve, tmp_path: Path) -> Cluster:
    """Three nodes, each bucket with a primary and a backup."""
    nodes = {"n1": serve("--buckets", str(BUCKETS), data_dir=tmp_path / "n1", name="n1")}
    for name in NAMES[1:]:
        nodes[name] = serve("--node", nodes["n1"].address, data_dir=tmp_path / name, name=name)
    with Client(nodes["n1"].address) as cache:
        until(lambda: is_settled(cache, NAMES), "the nodes share the buckets", SETTLED_S)
    return nodes


def is_settled(cache: Client[bytes], names: tuple[str, ...]) -> bool:
    """Whether these nodes are the cluster, each is the primary of something, and every bucket has a backup."""
    try:
        view = cache.view()
    except RcacheError:
        return False
    present = {name for name, node in view.nodes.items() if node.state == "up"}
    primaries = {bucket.primary for bucket in view.buckets}
    return present == primaries == set(names) and all(bucket.backups for bucket in view.buckets)


class Writer:
    """A thread that writes and reads its own keys until it is told to stop, and remembers what each may hold."""

    def __init__(self, cache: Client[bytes], number: int, seed: int) -> None:
        self.errors: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.slowest_s = 0.0
        self.calls = 0
        self.last_error_at = 0.0
        self._cache = cache
        self._name = f"w{number}"
        self._chance = random.Random(f"{seed} {number}")
        self._may_hold: dict[str, set[bytes | None]] = {f"{self._name}-{n}": {None} for n in range(KEYS)}
        self._stop = Event()
        self._thread = Thread(target=self._run, name=self._name)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(30)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        while not self._stop.is_set():
            self.calls += 1
            call = self._chance.choice([self._write, self._read, self._write_many, self._read_many])
            began = monotonic()
            try:
                call()
            except (NotExecuted, TimedOut) as error:
                self._count(error)
            self.slowest_s = max(self.slowest_s, monotonic() - began)

    def _count(self, error: RcacheError) -> None:
        self.errors[type(error).__name__] += 1
        print(f"{self._name}, call {self.calls}: {error}")
        self.last_error_at = monotonic()

    def _value(self) -> bytes:
        return b"%s %d" % (self._name.encode(), self.calls)

    def _write(self) -> None:
        key, value = self._chance.choice(list(self._may_hold)), self._value()
        try:
            self._cache.set(key, value, budget=BUDGET_S)
        except OutcomeUnknown as error:
            self._may_hold[key].add(value)
            self._count(error)
        else:
            self._may_hold[key] = {value}

    def _write_many(self) -> None:
        value = self._value()
        wanted = dict.fromkeys(self._chance.sample(list(self._may_hold), 10), value)
        failed: dict[str, RcacheError] = {}
        try:
            done = self._cache.set_many(wanted, budget=BUDGET_S)
        except SomeKeysFailed as error:
            done, failed = error.done, error.failed
        except OutcomeUnknown as error:
            done, failed = {}, dict.fromkeys(wanted, error)
        assert done.keys() | failed.keys() == wanted.keys()
        for key in done:
            self._may_hold[key] = {value}
        for key, error in failed.items():
            assert isinstance(error, (OutcomeUnknown, NotExecuted)), error
            self._count(error)
            if isinstance(error, OutcomeUnknown):
                self._may_hold[key].add(value)

    def _read(self) -> None:
        key = self._chance.choice(list(self._may_hold))
        self._check(key, self._cache.get(key, budget=BUDGET_S))

    def _read_many(self) -> None:
        keys = self._chance.sample(list(self._may_hold), 10)
        failed: dict[str, RcacheError] = {}
        try:
            got = self._cache.get_many(keys, budget=BUDGET_S)
        except SomeKeysFailed as error:
            got, failed = error.done, error.failed
            self._count(next(iter(failed.values())))
        for key in keys:
            if key not in failed:
                self._check(key, got.get(key))

    def _check(self, key: str, value: bytes | None) -> None:
        """What a write of unknown outcome left is what is there from now on; it cannot come later than its answer was due."""
        if value not in self._may_hold[key]:
            self.wrong.append(f"{key} holds {value!r}, not {self._may_hold[key]}")


class Load:
    """Writers on one client."""

    def __init__(self, cache: Client[bytes]) -> None:
        seed = random.randrange(1 << 30)
        print(f"load: seed {seed}")
        self.writers = [Writer(cache, number, seed) for number in range(WRITERS)]

    def stop(self) -> None:
        for writer in self.writers:
            writer.stop()

    @property
    def calls(self) -> int:
        return sum(writer.calls for writer in self.writers)

    def go_on(self, calls: int = 2000) -> None:
        """Return after so many more calls."""
        enough = self.calls + calls
        until(lambda: self.calls >= enough, "the load goes on")

    def go_on_well(self) -> None:
        """Return after every writer made many calls in a row that succeeded."""
        began = monotonic()
        self.go_on()
        assert max(writer.last_error_at for writer in self.writers) < began, "a call failed after the fault"

    def check(self) -> Counter[str]:
        """No wrong value, no call beyond its budget. How many errors there were, by their names."""
        assert [wrong for writer in self.writers for wrong in writer.wrong] == []
        slowest = max(writer.slowest_s for writer in self.writers)
        assert slowest < BUDGET_S + SLACK_S, f"a call took {slowest:.2f} s"
        return sum((writer.errors for writer in self.writers), Counter[str]())


@pytest.fixture
def cache(cluster: Cluster) -> Iterator[Client[bytes]]:
    with Client(cluster["n1"].address) as client:
        yield client


@pytest.fixture
def load(cache: Client[bytes]) -> Iterator[Load]:
    running = Load(cache)
    try:
        yield running
    finally:
        running.stop()


def test_each_key_goes_straight_to_its_primary(cluster: Cluster, cache: Client[bytes]) -> None:
    """No node has to say that it is not the primary."""
    values = {f"key-{number}": b"%d" % number for number in range(500)}
    for key, value in values.items():
        assert cache.set(key, value)
    assert cache.get_many(values) == values
    assert len(cache._doors._doors) == len(NAMES)
    assert cache.view().primary_of("key-1") is not None
    for server in cluster.values():
        with Client(server.address) as seeded:
            assert seeded.get_many(values) == values
    assert cache.flush() == 500
    assert cache.get_many(values) == {}


@pytest.mark.parametrize("victim", ["n2", "n3"])
def test_a_node_is_killed(cluster: Cluster, cache: Client[bytes], load: Load, victim: str) -> None:
    load.go_on()
    cluster[victim].kill()
    others = tuple(name for name in NAMES if name != victim)
    until(lambda: is_settled(cache, others), "the others took over", SETTLED_S)
    load.go_on_well()
    cluster[victim].start()
    until(lambda: is_settled(cache, NAMES), "it is back", SETTLED_S)
    load.go_on_well()
    load.stop()
    errors = load.check()
    assert errors.keys() <= {"OutcomeUnknown"}, errors  # what was under way as it died


@pytest.mark.parametrize("victim", NAMES)
def test_a_node_leaves_in_order(cluster: Cluster, cache: Client[bytes], load: Load, victim: str) -> None:
    """Nobody notices, not even if it was the only address that the client was given."""
    load.go_on()
    assert cluster[victim].stop() == 0
    others = tuple(name for name in NAMES if name != victim)
    until(lambda: is_settled(cache, others), "the others have it all", SETTLED_S)
    load.go_on_well()
    load.stop()
    assert load.check() == {}


def test_a_node_stops_for_3_seconds_and_goes_on(cluster: Cluster, cache: Client[bytes], load: Load) -> None:
    load.go_on()
    cluster["n2"].signal(signal.SIGSTOP)
    Event().wait(3.0)
    cluster["n2"].signal(signal.SIGCONT)
    until(lambda: is_settled(cache, NAMES), "it is back", SETTLED_S)
    load.go_on_well()
    load.stop()
    errors = load.check()
    assert errors.keys() <= {"OutcomeUnknown"}, errors


def test_nodes_cycle_and_the_client_was_given_one_that_is_gone(cluster: Cluster, cache: Client[bytes], load: Load) -> None:
    """Each node in turn leaves and comes back, on another port: none of the first addresses is left at the end."""
    first = {server.address for server in cluster.values()}
    load.go_on()
    for name in ("n2", "n3"):
        assert cluster[name].stop() == 0
        cluster[name].start()
        until(lambda: is_settled(cache, NAMES), f"{name} is back", SETTLED_S)
        load.go_on_well()
    assert cluster["n1"].stop() == 0
    until(lambda: is_settled(cache, NAMES[1:]), "n1 is gone", SETTLED_S)
    load.go_on_well()
    addresses = {node.address for node in cache.view().nodes.values() if node.state == "up"}
    assert not addresses & first
    load.stop()
    assert load.check() == {}
