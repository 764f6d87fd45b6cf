"""A subscriber of a cluster whose nodes come and go: every acknowledged change is told once, in order, or covered by a gap."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

from rcache_client import Client, Event, Operation, RcacheError
from tests.integration.cluster import Cluster, until
from tests.integration.conftest import MakeCluster

KEYS = [f"key-{number}" for number in range(60)]
PATIENCE_S = 30.0
WRITERS = 4
"""So that there is always something on its way: each has keys of its own."""


@dataclass
class Watched:
    """What was acknowledged, by bucket and version, and what was told."""

    acknowledged: dict[int, dict[int, bytes]] = field(default_factory=lambda: defaultdict(dict))
    told: dict[int, list[Event]] = field(default_factory=lambda: defaultdict(list))

    def note(self, event: Event) -> None:
        self.told[event.bucket].append(event)

    def demand_all_told(self) -> None:
        """Everything that is acknowledged by now is told, and there was no gap."""
        acknowledged = {(bucket, version) for bucket, written in list(self.acknowledged.items()) for version in list(written)}

        def told() -> list[Event]:
            return [event for events in list(self.told.values()) for event in list(events)]

        until("all that is acknowledged is told", lambda: acknowledged <= {(event.bucket, event.sequence) for event in told()})
        assert [event for event in told() if event.operation is Operation.GAP] == []

    def check(self) -> int:
        """How many gaps there were."""
        gaps = 0
        for bucket, events in self.told.items():
            places = [event.sequence for event in events]
            assert places == sorted(places), f"bucket {bucket} out of order"
            changes = [event for event in events if event.operation is not Operation.GAP]
            assert len({event.sequence for event in changes}) == len(changes), f"bucket {bucket}: told twice"
            gaps += len(events) - len(changes)
        for bucket, written in self.acknowledged.items():
            values = {event.sequence: event.value for event in self.told[bucket] if event.operation is Operation.SET}
            spans = [(event.after, event.sequence) for event in self.told[bucket] if event.operation is Operation.GAP]
            for version, value in written.items():
                if version in values:
                    assert values[version] == value
                else:
                    assert any(after < version <= upto for after, upto in spans), f"bucket {bucket}: {version} is missing"
        return gaps


def run(cluster: Cluster, stir: Callable[[Watched], None]) -> Watched:
    """Write, listen, and stir meanwhile."""
    watched, stopping = Watched(), threading.Event()
    addresses = [node.address for node in cluster.running()]
    with Client(addresses, budget=10.0) as writer, Client(addresses, budget=10.0) as listener:
        view = writer.view()

        def write(writes: int) -> None:
            number = writes
            while not stopping.is_set():
                key, value = KEYS[number % len(KEYS)], b"%d" % number
                try:
                    version = writer.set(key, value)
                except RcacheError:
                    pass  # not acknowledged: it may be told or not
                else:
                    watched.acknowledged[view.bucket_of(key)][version] = value
                number += WRITERS
                time.sleep(0.001)

        with listener.watch(watched.note) as watcher:
            writing = [threading.Thread(target=write, args=(number,)) for number in range(WRITERS)]
            for thread in writing:
                thread.start()
            try:
                time.sleep(0.5)
                stir(watched)
                time.sleep(0.5)
            finally:
                stopping.set()
                for thread in writing:
                    thread.join(PATIENCE_S)
            last = {key: writer.set(key, b"last of " + key.encode()) for key in KEYS}
            deadline = time.monotonic() + PATIENCE_S
            while time.monotonic() < deadline and not all(
                watcher.subscription.places.get(view.bucket_of(key), 0) >= version for key, version in last.items()
            ):
                time.sleep(0.05)
            assert watcher.error is None
            behind = [key for key in KEYS if watcher.subscription.places.get(view.bucket_of(key), 0) < last[key]]
            assert behind == [], "the last changes were not told"
    return watched


def test_restarts_one_after_the_other(cluster_of: MakeCluster) -> None:
    """In order: what is handed over was told, or is told by the heir."""
    cluster = cluster_of().grow("a", "b", "c")

    def stir(_watched: Watched) -> None:
        for name in "abc":
            cluster.nodes[name].stop()
            cluster.nodes[name].start()
            cluster.settle(PATIENCE_S)

    watched = run(cluster, stir)
    watched.check()
    assert sum(map(len, watched.acknowledged.values())) > 100


def kill(cluster: Cluster, name: str) -> None:
    cluster.nodes[name].kill()
    until(f"{name} is taken over from", lambda: all(placed.primary != name for placed in cluster.view("a").placements))


def test_a_node_is_killed(cluster_of: MakeCluster) -> None:
    """What it did not come to tell its heirs tell: there is no gap. Then it is back, and is given buckets again."""
    cluster = cluster_of().grow("a", "b", "c")

    def stir(watched: Watched) -> None:
        kill(cluster, "b")
        watched.demand_all_told()
        cluster.nodes["b"].start()
        cluster.settle(PATIENCE_S)

    run(cluster, stir).check()


def test_one_node_after_the_other_is_killed_where_no_log_is_kept(cluster_of: MakeCluster) -> None:
    cluster = cluster_of("--no-append-log").grow("a", "b", "c")

    def stir(watched: Watched) -> None:
        kill(cluster, "b")
        cluster.settle(PATIENCE_S)
        watched.demand_all_told()
        kill(cluster, "c")
        watched.demand_all_told()

    assert run(cluster, stir).check() == 0
