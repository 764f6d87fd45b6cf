"""What a client asks for: few hot keys, many cold ones, registers and counters, values that are written once.

What it is: `Load`, how much; `keys_of`, the keys of a round; `Workload`, one client's series of calls, from a seed.
Which thread runs it: one. What it owns: its place in the series. What it must not know: what is broken, and when.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import NamedTuple

from soak.cluster.operations import TTL_S, Caller, Done

HOT_SHARE = 0.35
"""Of the calls go to hot keys."""

HOT_CALLS = 700
"""A hot key gets about so many calls in a round: the checker takes some ten microseconds for each, as long as a key has no more
than a thousand or so."""

HOT_KEYS_MIN = 4
COUNTER_SHARE = 0.25
"""Of the keys, hot and cold, count."""

TTL_SHARE = 0.3
"""Of the values have a time to live, for the sake of the clock."""

LONG_SHARE = 0.02
LONG_CHARS = 3000
SHORT_CHARS = 60
"""Lengths of values: chunks of several size classes, and histories that stay small."""

DELTAS = (1, 1000)
"""Two, so that a lost increment is told from one that was done twice; more of them make the checker's search longer."""

STAY_KEYS = 24
"""Registers of a round that are for those who ask every node (`soak.cluster.stayers`): enough for some of them to be of any two
nodes of a cluster, one as primary and one as backup."""

REMEMBERED = 64
"""Reads that a cas may go back to: some are old by then, and must be refused."""


@dataclass(frozen=True, slots=True)
class Load:
    """How much: `clients` in all, `rate` calls a second of all together, `keys` cold ones, and a round's length in seconds."""

    clients: int
    rate: float
    keys: int
    round_s: float

    @property
    def hot(self) -> int:
        return max(HOT_KEYS_MIN, round(self.rate * self.round_s * HOT_SHARE / HOT_CALLS))


class Keys(NamedTuple):
    """The keys of one round."""

    hot: list[str]
    cold: list[str]
    stay: list[str]

    def all(self) -> list[str]:
        return [*self.hot, *self.cold, *self.stay]


def keys_of(number: int, load: Load) -> Keys:
    """Fresh ones for each round, so that a key's history ends some time."""
    return Keys(_named(f"r{number}-hot", load.hot), _named(f"r{number}-cold", load.keys), stay_keys(number))


def stay_keys(number: int) -> list[str]:
    """Those of a round that the stayers read and write, and no other client."""
    return [f"r{number}-stay-v{index}" for index in range(STAY_KEYS)]


def _named(prefix: str, count: int) -> list[str]:
    counters = round(count * COUNTER_SHARE)
    return [f"{prefix}-{'n' if index < counters else 'v'}{index}" for index in range(count)]


def counts(key: str) -> bool:
    """Whether the key is a counter."""
    return key.rpartition("-")[2].startswith("n")


class Workload:
    """One client's calls. `next` carries one out, a read before it where the call needs one."""

    def __init__(self, caller: Caller, load: Load, seed: int) -> None:
        self._caller = caller
        self._load = load
        self._random = random.Random(f"{seed} {caller.name}")
        self._written = 0
        self._keys = keys_of(0, load)
        self._reads: list[Done] = []

    def begin_round(self, number: int) -> None:
        self._keys = keys_of(number, self._load)
        self._reads.clear()

    def next(self) -> list[Done]:
        """Blocks for a call or two."""
        chance = self._random.random()
        key = self._random.choice(self._keys.hot if self._random.random() < HOT_SHARE else self._keys.cold)
        if counts(key):
            return [self._count(key, chance)]
        if chance < 0.45:
            return [self._caller.get(key)]
        if chance < 0.70:
            ttl = TTL_S if self._random.random() < TTL_SHARE else None
            return [self._caller.set(key, self._value(), ttl)]
        if chance < 0.80:
            return [self._caller.delete(key)]
        return self._compare(key)

    def _count(self, key: str, chance: float) -> Done:
        if chance < 0.60:
            return self._caller.increment(key, self._random.choice(DELTAS))
        return self._caller.get(key) if chance < 0.95 else self._caller.delete(key)

    def _compare(self, key: str) -> list[Done]:
        """Read, and replace what was read; or replace what was read some time ago."""
        done = []
        old = self._random.choice(self._reads) if self._reads and self._random.random() < 0.2 else None
        read = old or self._caller.get(key)
        if old is None:
            done.append(read)
            if read.error is not None:
                return done
            self._reads = [*self._reads[-REMEMBERED + 1 :], read]
        expected = read.operation.value
        by_value = expected is not None and self._random.random() < 0.5
        done.append(self._caller.cas(read.operation.key, self._value(), expected, None if by_value else read.version))
        return done

    def _value(self) -> str:
        self._written += 1
        length = LONG_CHARS if self._random.random() < LONG_SHARE else self._random.randrange(SHORT_CHARS)
        return f"{self._caller.name}.{self._written} " + "." * length
