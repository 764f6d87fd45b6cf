"""A process that asks for one key by `get_or_compute`, with many threads at once; for the tests of stampedes.

    python -m tests.integration.stampeder ADDRESS KEY NOTES THREADS SECONDS LEASE

It notes in the file NOTES (a line each, appended at once) when it asks, and when its function, which takes SECONDS, begins and
ends. When each thread has its value, they are printed, with the counts.
"""

from __future__ import annotations

import os
import sys
from threading import Barrier, Event, Thread

from rcache_client import Client


def main(address: str, key: str, notes: str, threads: int, seconds: float, lease: float) -> None:
    file = os.open(notes, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    together = Barrier(threads)
    got: list[bytes] = []

    def compute() -> bytes:
        os.write(file, b"begin %d\n" % os.getpid())
        Event().wait(seconds)
        os.write(file, b"end %d\n" % os.getpid())
        return b"of %d" % os.getpid()

    with Client(address) as cache:

        def ask() -> None:
            together.wait()
            got.append(cache.get_or_compute(key, compute, ttl=60, lease=lease, budget=20))

        os.write(file, b"ask %d\n" % os.getpid())
        workers = [Thread(target=ask) for _ in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        print(b" ".join(sorted(set(got))).decode(), len(got), cache.compute_counts().without_cache)
        print(cache.compute_counts(), file=sys.stderr)


if __name__ == "__main__":
    where, what, noted, *numbers = sys.argv[1:]
    main(where, what, noted, int(numbers[0]), float(numbers[1]), float(numbers[2]))
