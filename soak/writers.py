"""A process of writers: threads that change keys of their own until the server goes away, and remember every answer.

What it is: the load of `kill_loop` and `stop_loop`: `python -m soak.writers ADDRESS ...`. It prints `started` once every
thread has had an answer, and, when all have ended, what they know as one line of JSON (`Report`).
Which thread runs it: the main thread starts and joins the others, one connection each.
What it owns: its keys: `PREFIX-THREAD-KEY`. No other process writes them.
What it must not know: how the server ends.

A key has one writer and a writer one request at a time, so for each key there is a last answer, and at most one request
after it whose outcome is not known. A request that the client calls not executed must not have happened.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields

from rcache_client import Client, NotExecuted, OutcomeUnknown, RcacheError, StrSerializer

KEYS_A_THREAD = 12
"""Few, so that each is overwritten and deleted often within a fraction of a second."""

VALUE_BYTES_MAX = 2000
"""Small ones and some larger ones: blocks of the append log begin and end anywhere."""

DELETE_SHARE = 0.15
FIRST_ANSWER_S = 30.0
"""How long the first answers may take on a machine that does much else."""


@dataclass(slots=True)
class Report:
    """What the writers of one process know.

    `acknowledged`: for each key the value of its last answered change (None: deleted). `unknown`: for a key whose last change
    was sent and not answered, the value it may have. `answers` counts; `endings`: what ended the threads, how often;
    `strange`: errors that no way of ending a server explains.
    """

    acknowledged: dict[str, str | None] = field(default_factory=dict)
    unknown: dict[str, str | None] = field(default_factory=dict)
    answers: int = 0
    endings: Counter[str] = field(default_factory=Counter)
    strange: list[str] = field(default_factory=list)


class Writer:
    """One thread's work. Its report is to be read after the thread has ended."""

    def __init__(self, cache: Client[str], prefix: str, mark: str, seed: int) -> None:
        self.report = Report()
        self.answered = threading.Event()
        self._cache = cache
        self._prefix = prefix
        self._mark = mark
        self._random = random.Random(f"{seed} {prefix}")

    def run(self, deadline: float) -> None:
        """Change keys until that fails or `deadline` (time.monotonic). Blocks."""
        number = 0
        while time.monotonic() < deadline:
            number += 1
            key, value = self._next(number)
            try:
                self._change(key, value)
            except OutcomeUnknown as error:
                self.report.unknown[key] = value
                self._end(error)
                return
            except NotExecuted as error:
                self._end(error)
                return
            except RcacheError as error:
                self.report.strange.append(f"{key}: {error}")
                self._end(error)
                return
            self.report.acknowledged[key] = value
            self.report.answers += 1
            self.answered.set()
        self.report.endings["deadline"] += 1

    def _next(self, number: int) -> tuple[str, str | None]:
        key = f"{self._prefix}-{self._random.randrange(KEYS_A_THREAD)}"
        if self._random.random() < DELETE_SHARE:
            return key, None
        text = f"{key} {self._mark} {number} "
        return key, text + "." * int(VALUE_BYTES_MAX * self._random.random() ** 4)

    def _change(self, key: str, value: str | None) -> None:
        if value is None:
            self._cache.delete(key)
        else:
            self._cache.set(key, value)

    def _end(self, error: Exception) -> None:
        self.report.endings[type(error).__name__] += 1
        self.answered.set()  # nobody waits any longer for one that has ended


def merge(reports: Sequence[Report]) -> Report:
    """One report of all; their keys are different ones."""
    merged = Report()
    for report in reports:
        merged.acknowledged.update(report.acknowledged)
        merged.unknown.update(report.unknown)
        merged.answers += report.answers
        merged.endings.update(report.endings)
        merged.strange += report.strange
    return merged


def write_until_it_ends(address: str, prefix: str, mark: str, threads: int, seed: int, limit_s: float) -> Report:
    """Run the writers; say `started` on standard output. Blocks up to `limit_s` and the budget of one call."""
    deadline = time.monotonic() + limit_s
    with Client(address, serializer=StrSerializer(), max_connections=threads) as cache:
        writers = [Writer(cache, f"{prefix}-{number}", mark, seed) for number in range(threads)]
        running = [threading.Thread(target=writer.run, args=(deadline,)) for writer in writers]
        for thread in running:
            thread.start()
        for writer in writers:
            writer.answered.wait(FIRST_ANSWER_S)
        print("started", flush=True)
        for thread in running:
            thread.join()  # each ends by its deadline
    return merge([writer.report for writer in writers])


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(prog="soak.writers", description="Write until the server goes away.")
    parser.add_argument("address", metavar="HOST:PORT")
    parser.add_argument("--prefix", default="w", help="of this process's keys")
    parser.add_argument("--mark", default="0", help="stands in every value")
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--limit", type=float, default=60.0, metavar="SECONDS", help="give up writing after so long")
    given = parser.parse_args(argv)
    report = write_until_it_ends(given.address, given.prefix, given.mark, given.threads, given.seed, given.limit)
    print(json.dumps({each.name: getattr(report, each.name) for each in fields(report)}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
