"""A process of subscribers, and a writer whose every change they must be told of.

What it is: `python -m soak.cluster.listeners SPEC`, where SPEC is a `ListenSpec` as JSON. On standard output, at the end, one
line of JSON for each subscriber: `{"ended": NAME, ...}` with what it counted; what was wrong is among its `strange`.
Which thread runs it: the main thread waits for the end of standard input; one thread writes, one listens for each subscriber.
What it owns: a `Client` for each of them, as programs of their own would have. What it must not know: what is broken, and when.

| subscriber | |
| --- | --- |
| steady | listens all the time |
| resuming | closes its client again and again, and a new one goes on from the places that were told |
| slow | takes nothing for seconds at a time |

Beside them a client with a near cache reads what is written (`near_reader`), and must see it as it was promised.
"""

from __future__ import annotations

import json
import random
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from rcache_client import Client, NearCache, RcacheError, Subscription
from soak.cluster.clients import Counts
from soak.cluster.hearing import Hearing
from soak.cluster.near_reader import NearReader, now_s
from soak.cluster.nearness import Nearness

PREFIX = "told-"
KEYS = 200
RATE = 120.0
"""Writes a second, of one writer after the other: enough that every fault meets some of them."""

DELETES = 0.1

GET_S = 0.2
"""A subscriber looks this often whether it is over."""

UP_S, DOWN_S, REST_S = (0.5, 5.0), (0.0, 2.0), (0.0, 8.0)
REST_CHANCE = 0.005
"""How long the resuming one listens, and is away; how long the slow one takes nothing, and after which part of the events."""

AGAIN_S = 0.2
END_S = 40.0
"""At the end, for all that was acknowledged to be told."""

SUBSCRIBERS = ("steady", "resuming", "slow")
NEAR = "near"


def listener_of(subscriber: str) -> str:
    """The name that a subscriber's counts have."""
    return f"told-{subscriber}"


@dataclass(frozen=True, slots=True)
class ListenSpec:
    """What the process is told."""

    addresses: list[str]
    seed: int
    budget_s: float

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> ListenSpec:
        return ListenSpec(**json.loads(text))


class Listeners:
    """All of them. `run` blocks until `over` is set, and until all that was acknowledged was told."""

    def __init__(self, spec: ListenSpec) -> None:
        self._spec = spec
        self._over = threading.Event()
        self._told = threading.Event()  # nothing more is waited for
        self.hearings = {name: Hearing() for name in SUBSCRIBERS}
        self.near: NearReader | None = None
        self.crashed: list[str] = []
        self.writes = self.failed = 0
        self._keys = [f"{PREFIX}{number}" for number in range(KEYS)]

    def run(self, over: Callable[[], object]) -> None:
        """`over` blocks until the run ends."""
        with self._client("writer") as cache:
            bucket_of = cache.view(budget=END_S).bucket_of
            ready = threading.Barrier(len(SUBSCRIBERS) + 1)
            listening = [self._start(name, self._listen, name, ready) for name in SUBSCRIBERS]
            ready.wait(END_S)
            self.near = NearReader(lambda near: self._client("near", near), self._keys, PREFIX, self._spec.seed)
            self.near.start()
            writing = self._start("writer", self._write, cache, bucket_of, self.near.nearness)
            over()
            self._over.set()
            writing.join(END_S)
            self.near.stop()
            self._await_all(cache, bucket_of)
            self._told.set()
            for thread in listening:
                thread.join(END_S)

    def _start(self, name: str, work: Callable[..., None], *args: Any) -> threading.Thread:
        def run() -> None:
            """The thread's one catch-all: what nobody foresaw is a violation, and not a silence."""
            try:
                work(*args)
            except Exception as error:
                self.crashed.append(f"{name}: {type(error).__name__}: {error}")

        thread = threading.Thread(target=run, name=name)
        thread.start()
        return thread

    def _client(self, name: str, near_cache: NearCache | None = None) -> Client[bytes]:
        return Client(
            self._spec.addresses,
            budget=self._spec.budget_s,
            name=f"told-{name}",
            wait_for_servers=True,
            near_cache=near_cache,
        )

    # --- the writer

    def _write(self, cache: Client[bytes], bucket_of: Callable[[str], int], nearness: Nearness) -> None:
        chance, due, number = random.Random(self._spec.seed), time.monotonic(), 0
        while not self._over.wait(max(0.0, due - time.monotonic())):
            due = max(due + 1 / RATE, time.monotonic() - 1 / RATE)
            key, number = chance.choice(self._keys), number + 1
            value = b"%d" % number if chance.random() > DELETES else None
            version, place = 0, nearness.begin_write(key, value, now_s())
            try:
                if value is None:
                    cache.delete(key)
                else:
                    version = cache.set(key, value)
            except RcacheError:
                self.failed += 1  # it may have happened, or not
                nearness.end_write(key, place, now_s(), is_unknown=True)
                continue
            nearness.end_write(key, place, now_s())
            if value is None:
                continue  # nobody says at which place of the history
            self.writes += 1
            for hearing in self.hearings.values():
                hearing.acknowledged(bucket_of(key), version, (key, value))

    # --- the subscribers

    def _listen(self, name: str, ready: threading.Barrier) -> None:
        chance, hearing, places = random.Random(f"{self._spec.seed} {name}"), self.hearings[name], dict[int, int]()
        has_begun = False
        while not self._told.is_set():
            until = time.monotonic() + (chance.uniform(*UP_S) if name == "resuming" else END_S * 1000)
            try:
                with self._client(name) as cache, cache.subscribe(prefix=PREFIX, places=places or None) as events:
                    hearing.begin(events.places)
                    if not has_begun:
                        has_begun = True
                        ready.wait(END_S)
                    try:
                        self._take(events, hearing, until, chance if name == "slow" else None)
                    finally:
                        places = events.places
            except RcacheError:
                self._told.wait(AGAIN_S)  # no node could be asked within the budget
            if name == "resuming":
                self._told.wait(chance.uniform(*DOWN_S))

    def _take(self, events: Subscription, hearing: Hearing, until: float, rests: random.Random | None) -> None:
        while not self._told.is_set() and time.monotonic() < until:
            event = events.get(GET_S)
            if event is not None:
                hearing.told(event)
            if rests is not None and rests.random() < REST_CHANCE:
                self._over.wait(rests.uniform(*REST_S))  # at the end it takes all that waits

    # --- the end

    def _await_all(self, cache: Client[bytes], bucket_of: Callable[[str], int]) -> None:
        """Until every subscriber was told all, and knows of each key what is there."""
        deadline = time.monotonic() + END_S
        found = self._read_all(cache, deadline)
        for name, hearing in self.hearings.items():
            while (left := self._left(hearing, found, bucket_of)) and time.monotonic() < deadline:
                time.sleep(AGAIN_S)
            if left:
                hearing.wrong.append(f"{name} was not told of {len(left)} changes within {END_S:g} s; the first: {left[0]}")

    def _read_all(self, cache: Client[bytes], deadline: float) -> dict[str, bytes | None]:
        found: dict[str, bytes | None] = {}
        for key in self._keys:
            while key not in found:
                try:
                    found[key] = cache.get(key)
                except RcacheError:
                    if time.monotonic() > deadline:
                        raise
        return found

    @staticmethod
    def _left(hearing: Hearing, found: dict[str, bytes | None], bucket_of: Callable[[str], int]) -> list[str]:
        """What a subscriber should know and does not."""
        differs = [
            f"{key} is {value!r}, and {hearing.held[key][0]!r} was told"
            for key, value in found.items()
            if key in hearing.held and hearing.held[key][0] != value and not hearing.is_unknown(bucket_of(key), key)
        ]
        return hearing.owed() + differs

    def counts(self) -> dict[str, Counts]:
        """By the name of each subscriber."""
        told = {}
        for name, hearing in self.hearings.items():
            outcomes = {"events": hearing.events, "gaps": hearing.gaps, "writes": self.writes}
            told[listener_of(name)] = Counts(outcomes, {}, [*hearing.wrong, *self.crashed], [])
        if self.near is not None:
            stats = self.near.near.stats()
            outcomes = {"hits": stats.hits, "misses": stats.misses, "dropped_buckets": stats.dropped_buckets}
            outcomes["stalest_ms"] = round(self.near.nearness.stalest_s * 1000)
            told[listener_of(NEAR)] = Counts(outcomes, {}, self.near.wrong, [])
        return told


def main() -> int:
    """Returns the exit code."""
    listeners = Listeners(ListenSpec.from_json(sys.argv[1]))
    listeners.run(sys.stdin.read)
    for name, counts in listeners.counts().items():
        print(json.dumps({"ended": name, **counts.to_json()}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
