"""What a node takes beside --memory-limit: `python -m soak.resident --memory-limit 1024` (MiB).

What it is: one server, filled past its limit with sizes that are mixed, then small, then large, then mixed again, so that
pages change their class, while its log and its checkpoints are written; then with many idle connections; then stopped and
started again. After each step it prints what the server's process holds, as the kernel counts it (a start maps the files that
it reads, and they count, too), and at the end the greatest overhead of serving: the peak less the limit.
Which thread runs it: the main thread and a few that write; the server is a process of its own.
What it owns: a temporary directory.
What it must not know: how the engine keeps its items.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from rcache_client import Client
from soak.server_process import ServerProcess

MIB = 1 << 20
BATCH_BYTES = 4 * MIB
"""What one set_many carries, about; far below the largest frame."""

WRITERS = 8
"""More than worker threads, so that some connections share one."""

IDLE_CONNECTIONS = 1000

RESTART_S = 120.0
"""A log of several times the limit is read."""


@dataclass(frozen=True, slots=True)
class Step:
    """Values of `low` to `high` bytes, each magnitude as often as another, until `times` the limit was written."""

    name: str
    low: int
    high: int
    times: float


STEPS = (
    Step("mixed, 10 bytes to 1 MB", 10, 1_000_000, 1.5),
    Step("small, 10 to 300 bytes", 10, 300, 0.5),
    Step("large, 50 KB to 1 MB", 50_000, 1_000_000, 1.5),
    Step("mixed again", 10, 1_000_000, 1.5),
)


def resident(pid: int) -> tuple[float, float]:
    """The process's resident memory and its peak, in MiB."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    now, peak = (re.search(rf"^{name}:\s+(\d+) kB$", status, re.MULTILINE) for name in ("VmRSS", "VmHWM"))
    assert now is not None
    assert peak is not None
    return int(now[1]) / 1024, int(peak[1]) / 1024


def batches(step: Step, limit_bytes: int, writer: int) -> Iterator[dict[str, bytes]]:
    """A writer's share of a step."""
    chance = random.Random(f"{step.name} {writer}")
    left, number = step.times * limit_bytes / WRITERS, 0
    block = chance.randbytes(step.high)
    while left > 0:
        batch: dict[str, bytes] = {}
        size = 0
        while size < BATCH_BYTES and len(batch) < 10_000:
            count = int(step.low * (step.high / step.low) ** chance.random())
            batch[f"{step.name}-{writer}-{number}"] = block[:count]
            size += count + 60
            number += 1
        left -= size
        yield batch


def fill(server: ServerProcess, step: Step, limit_bytes: int) -> None:
    def write(writer: int) -> None:
        with Client(server.address, budget=60, read_timeout=60) as cache:
            for batch in batches(step, limit_bytes, writer):
                cache.set_many(batch)
                cache.get_many(list(batch)[::7])

    threads = [threading.Thread(target=write, args=(number,)) for number in range(WRITERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def measure(directory: Path, limit_mib: int, options: Sequence[str]) -> float:
    """Print a line for each step; the greatest overhead in MiB."""
    with ServerProcess(directory / "data", "--memory-limit", f"{limit_mib}M", *options) as server, ExitStack() as opened:

        def line(name: str) -> None:
            with Client(server.address) as cache:
                figures = cache.stats()
            now, peak = resident(server.pid)
            used = figures["memory"]["used_bytes"] / MIB
            print(f"{name:28} {used:9,.1f} {now:9,.1f} {peak:9,.1f} {peak - limit_mib:9,.1f}", flush=True)

        print(f"{'MiB':28} {'in use':>9} {'resident':>9} {'peak':>9} {'peak-limit':>9}")
        line("started")
        for step in STEPS:
            fill(server, step, limit_mib * MIB)
            line(step.name)
        for _ in range(IDLE_CONNECTIONS):
            opened.enter_context(Client(server.address)).ping()
        line(f"{IDLE_CONNECTIONS} connections more")
        over = resident(server.pid)[1] - limit_mib
        opened.close()
        assert server.stop() == 0, server.stderr_text
        server.start(RESTART_S)
        line("started again")
    return over


def main(argv: Sequence[str] | None = None) -> int:
    """Measure; what is not understood here goes to rcached."""
    parser = argparse.ArgumentParser(prog="soak.resident", description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--memory-limit", type=int, default=1024, metavar="MIB")
    ours, options = parser.parse_known_args(argv)
    with tempfile.TemporaryDirectory(prefix="rcache-resident-") as directory:
        over = measure(Path(directory), ours.memory_limit, options)
    print(f"at most {over:,.1f} MiB beside the limit of {ours.memory_limit} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
