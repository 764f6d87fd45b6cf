"""The load of a handoff's measurement: threads that get and set at a steady rate, in a process of its own.

    python -m soak.handoff.traffic rcache|redis --servers A,B --keys N --value-bytes N --rate N

What it is: a program. It says `ready` once every thread has had an answer, goes on until its standard input ends, and then
prints every call as JSON: when it ended by the monotonic clock, how long it took in milliseconds, and whether it failed.
Which thread runs it: its main thread waits for the end of the input; each caller is a thread with a client that all share, as
a user would have it.
What it owns: its client. What it must not know: what is being done to the servers.

A call that is late because an earlier one took long counts from when it was due: a caller that waits must not hide how many
calls would have waited (what is known as coordinated omission).
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from rcache_client import Client
from soak.handoff.keys import key_of
from soak.handoff.redis_side import redis_client

CALLERS = 4
"""More would wait for each other's interpreter lock rather than for the servers."""

WRITES = 0.5

BUDGET_S = 5.0

Call = tuple[float, float, bool]


class Load:
    """`get` and `set` are the client's; `rate` is of all callers together."""

    def __init__(self, get: Callable[[str], Any], put: Callable[[str, bytes], Any], given: argparse.Namespace) -> None:
        self.calls: list[Call] = []
        self._get = get
        self._put = put
        self._keys: int = given.keys
        self._value = b"v" * given.value_bytes
        self._between_s = CALLERS / given.rate
        self._stopping = threading.Event()
        self._begun = threading.Semaphore(0)
        self._threads = [
            threading.Thread(target=self._run, args=(number,), name=f"caller-{number}") for number in range(CALLERS)
        ]

    def start(self) -> None:
        """Block until every caller had its first answer."""
        for thread in self._threads:
            thread.start()
        for _ in self._threads:
            self._begun.acquire()

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def _run(self, number: int) -> None:
        chance = random.Random(number)
        self._call(chance, time.monotonic())
        self._begun.release()
        due = time.monotonic() + chance.random() * self._between_s
        while not self._stopping.wait(max(0.0, due - time.monotonic())):
            self._call(chance, due)
            due += self._between_s

    def _call(self, chance: random.Random, due: float) -> None:
        key, writes, failed = key_of(chance.randrange(self._keys)), chance.random() < WRITES, False
        try:
            if writes:
                self._put(key, self._value)
            else:
                failed = self._get(key) != self._value  # every key has this value, always
        except Exception:  # of whatever client: it is what is counted
            failed = True
        ended = time.monotonic()
        self.calls.append((ended, (ended - due) * 1e3, failed))


def connect(given: argparse.Namespace) -> tuple[Callable[[str], Any], Callable[[str, bytes], Any]]:
    """The calls of a client as a user would have it."""
    if given.side == "rcache":
        client: Client[bytes] = Client(given.servers.split(","), budget=BUDGET_S)
        return client.get, client.set
    redis = redis_client(given.servers, socket_timeout=BUDGET_S)
    return redis.get, redis.set


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m soak.handoff.traffic", description="Steady load, until standard input ends."
    )
    parser.add_argument("side", choices=("rcache", "redis"))
    parser.add_argument("--servers", required=True, metavar="A,B")
    parser.add_argument("--keys", type=int, required=True)
    parser.add_argument("--value-bytes", type=int, required=True)
    parser.add_argument("--rate", type=float, required=True, help="calls a second of all callers together")
    given = parser.parse_args(argv)
    load = Load(*connect(given), given)
    load.start()
    print("ready", flush=True)
    sys.stdin.read()
    load.stop()
    json.dump(load.calls, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
