"""A near cache's promises at a cluster whose nodes are killed, stopped for a while, and restarted under writers.

Every key is a counter that is only ever counted up: a greater number is a newer value, also of writes whose outcome is unknown.
"""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from rcache_client import Client, NearCache, NearCacheStats, RcacheError
from tests.integration.cluster import PATIENCE_S, Cluster, until
from tests.integration.conftest import MakeCluster

KEYS = [f"key-{number}" for number in range(24)]
STALENESS_S = 0.5
PAUSE_S = 2.0
"""Longer than a lease and its grace: the node's buckets are taken over."""


class Played:
    """Counts and reads by several threads, each of which holds what it sees against what was acknowledged and seen before."""

    def __init__(self, addresses: list[str], seed: int) -> None:
        self.seed = seed
        self.near = Client(addresses, near_cache=NearCache(max_staleness=STALENESS_S), budget=3.0)
        self.other = Client(addresses, budget=3.0)
        self.acknowledged = {key: [(0.0, 0)] for key in KEYS}
        self.seen = dict.fromkeys(KEYS, 0)
        self.wrong: list[str] = []
        self.stopping = threading.Event()
        targets = [self.reads, self.reads, self.reads, self.counts_near, self.counts_elsewhere, self.counts_elsewhere]
        self.threads = [threading.Thread(target=target, args=(number,)) for number, target in enumerate(targets)]

    @property
    def stats(self) -> NearCacheStats:
        assert self.near.near_cache is not None
        return self.near.near_cache.stats()

    def reads(self, number: int) -> None:
        chosen = random.Random(f"{self.seed}-{number}")
        while not self.stopping.is_set():
            key = KEYS[min(chosen.randrange(len(KEYS)), chosen.randrange(len(KEYS)))]
            began, seen = time.monotonic(), self.seen[key]
            due = max(value for at, value in list(self.acknowledged[key]) if at < began - STALENESS_S)
            with suppress(RcacheError):
                found = self.near.get_many([key, "missing"]).get(key) if chosen.random() < 0.05 else self.near.get(key)
                self.judge(key, -1 if found is None else int(found), due, seen)

    def counts_near(self, number: int) -> None:
        """By the client that reads, too: what it wrote is seen at once."""
        chosen = random.Random(f"{self.seed}-{number}")
        while not self.stopping.is_set():
            key = chosen.choice(KEYS)
            with suppress(RcacheError):
                seen = self.seen[key]
                value = self.near.incr(key)
                self.judge(key, -1 if value is None else value, 0, seen)
                seen = max(seen, value or 0)
                self.acknowledged[key].append((time.monotonic(), seen))
                found = self.near.get(key)
                self.judge(key, -1 if found is None else int(found), 0, seen)
            time.sleep(0.02)

    def counts_elsewhere(self, number: int) -> None:
        chosen = random.Random(f"{self.seed}-{number}")
        while not self.stopping.is_set():
            key = chosen.choice(KEYS)
            with suppress(RcacheError):
                value = self.other.incr(key)
                self.acknowledged[key].append((time.monotonic(), value or -1))
            time.sleep(0.005)

    def judge(self, key: str, value: int, due: int, seen: int) -> None:
        """A call has ended that showed this value. What is older than what was due, or seen when it began, is wrong."""
        if value < due or value < seen:
            self.wrong.append(f"{key}: {value}, where {due} was acknowledged long before, and {seen} seen")
        self.seen[key] = max(self.seen[key], value)  # two threads at once may keep the lower one: that demands less

    def hits_grow(self, after: int) -> bool:
        return self.stats.hits > after


def play(cluster: Cluster, stir: Callable[[], None]) -> NearCacheStats:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    played = Played([node.address for node in cluster.running()], seed)
    try:
        for key in KEYS:
            played.other.incr(key, initial=1)
        for thread in played.threads:
            thread.start()
        until("something is served", lambda: played.hits_grow(100))
        stir()
        hits = played.stats.hits
        until("something is served of every bucket again", lambda: played.stats.live_buckets == 32 and played.hits_grow(hits))
    finally:
        played.stopping.set()
        for thread in played.threads:
            if thread.ident is not None:
                thread.join(PATIENCE_S)
        played.near.close()
        played.other.close()
    assert not any(thread.is_alive() for thread in played.threads)
    assert played.wrong == []
    print(played.stats)
    return played.stats


def test_promises_hold_while_nodes_come_and_go(cluster_of: MakeCluster) -> None:
    cluster = cluster_of().grow("a", "b", "c")

    def stir() -> None:
        cluster.nodes["b"].kill()
        cluster.nodes["b"].start()
        cluster.nodes["c"].signal(signal.SIGSTOP)
        time.sleep(PAUSE_S)
        cluster.nodes["c"].signal(signal.SIGCONT)
        cluster.nodes["a"].stop()

    stats = play(cluster, stir)
    assert stats.invalidated > 100
