"""A client with a near cache that reads without end what another client writes, and writes some of it itself.

What it is: `NearReader`. Which thread runs it: two of its own, from `start` to `stop`: one reads, the other reads, too, and
writes keys of its own. What it owns: a `Client` with a `NearCache`, and what was wrong (`nearness`).
What it must not know: what is broken, and when.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from time import CLOCK_BOOTTIME, clock_gettime

from rcache_client import Client, NearCache, NotExecuted, RcacheError
from soak.cluster.nearness import Nearness

STALENESS_S = 1.0
SLACK_S = 0.05
"""A read that is held up between the look at the clock here and the one in the near cache began later than it is taken for. (On
a machine that does much else a thread waits that long for its turn.)"""

READS_PAUSE_S = 0.002
"""After each turn of reads: some hundred a second from this process's share of the machine."""

READS_A_TURN = 5
OWN_KEYS = 20
OWN_CHANCE = 0.2
"""How often the writing thread writes, rather than reads."""

REST_S = 0.05
JOIN_S = 30.0


def now_s() -> float:
    """The clock that the near cache goes by."""
    return clock_gettime(CLOCK_BOOTTIME)


class NearReader:
    """See the module. `nearness` is told by the writer of what it writes."""

    def __init__(self, make_client: Callable[[NearCache], Client[bytes]], keys: Sequence[str], prefix: str, seed: int) -> None:
        self.near = NearCache(max_staleness=STALENESS_S, prefix=prefix, max_bytes=1 << 20)
        self.nearness = Nearness(STALENESS_S + SLACK_S)
        self._cache = make_client(self.near)
        self._keys = list(keys)
        self._own = [f"{prefix}own-{number}" for number in range(OWN_KEYS)]
        self._seed = seed
        self._over = threading.Event()
        self._crashes: list[str] = []
        self._threads = [threading.Thread(target=self._run, args=(number,), name=f"near-{number}") for number in range(2)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(JOIN_S)
        self._cache.close()

    @property
    def wrong(self) -> list[str]:
        return [*self.nearness.wrong, *self._crashes]

    def _run(self, number: int) -> None:
        """The thread's one catch-all: what nobody foresaw is a violation, and not a silence."""
        try:
            self._read_on(random.Random(f"{self._seed} near {number}"), writes=number == 1)
        except Exception as error:
            self._crashes.append(f"near reader: {type(error).__name__}: {error}")

    def _read_on(self, chance: random.Random, *, writes: bool) -> None:
        written = 0
        while not self._over.wait(READS_PAUSE_S):
            for _ in range(READS_A_TURN):
                if writes and chance.random() < OWN_CHANCE:
                    written += 1
                    self._write(chance.choice(self._own), b"own %d" % written if chance.random() > OWN_CHANCE else None)
                self._read(chance.choice(self._keys if chance.random() < 0.5 else self._own))

    def _write(self, key: str, value: bytes | None) -> None:
        place = self.nearness.begin_write(key, value, now_s())
        is_unknown = False
        try:
            if value is None:
                self._cache.delete(key)
            else:
                self._cache.set(key, value)
        except RcacheError:
            is_unknown = True  # it may have happened, or not
        self.nearness.end_write(key, place, now_s(), is_unknown=is_unknown)

    def _read(self, key: str) -> None:
        """What this client wrote itself every thread of it sees at once."""
        least, began_at = self.nearness.begin_read(key), now_s()
        try:
            value = self._cache.get(key)
        except NotExecuted:
            self._over.wait(REST_S)
        except RcacheError:
            pass
        else:
            self.nearness.end_read(key, value, began_at, least, 0.0 if key in self._own else None)
