"""The part `load`: how long a killed server takes to serve again, from its append log.

What it is: a part of the benchmark.
Which thread runs it: the benchmark's only one.
What it owns: nothing that outlives it.
What it must not know: the other parts.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path

from soak.bench.context import Bench
from soak.bench.errors import BenchError
from soak.bench.machine import files_bytes
from soak.bench.part import Chart, Part
from soak.bench.peers import LOGGING, Needs
from soak.bench.samples import Sample, Samples
from soak.bench.tables import Grid, figure_grid

RESTART = "restart"
STEADY_S = 1.5
"""Longer than the second after which both servers write at the latest."""
STEADY_LOOK_S = 0.1
STEADY_WAIT_S = 120.0
REPLAY_S_MIN = 0.001
"""The least that a replay is said to take: less cannot be told from the start of an empty server."""


def measure(bench: Bench) -> list[Sample]:
    names = [name for name in bench.names if name in LOGGING]
    if not names:
        raise BenchError("none of these servers has an append log")
    count = bench.sizes.items
    return [
        Sample(RESTART, count, name, number, _restart(bench, name, count))
        for number in range(1, bench.sizes.rounds + 1)
        for name in names
    ]


def _restart(bench: Bench, name: str, count: int) -> dict[str, float]:
    """Fill a fresh server, kill it, start it again, and read everything back."""
    needs = Needs.of_items(count, log="interval", log_rewrite=False)
    with ExitStack() as stack:
        directory = bench.directory(stack)
        with bench.server(name, needs, directory) as server:
            empty_s = server.up_after_s
            bench.fill(server, count)
            file_bytes = wait_until_steady(directory)
            server.kill()
        bench.step(f"{name}: starting with {count:,} records")
        with bench.server(name, needs, directory, bench.patience_s(count)) as server:
            serving_s = server.up_after_s
            bench.check(server, count)
    replay_s = max(REPLAY_S_MIN, serving_s - empty_s)
    return {
        "serving_s": serving_s,
        "empty_s": empty_s,
        "records_per_s": count / replay_s,
        "files_mb": file_bytes / 1e6,
    }


def wait_until_steady(directory: Path) -> int:
    """Block until no file below `directory` grows any more; return their bytes. Raises `BenchError` where that never is."""
    began = time.monotonic()
    size, since = files_bytes(directory), began
    while (now := time.monotonic()) < since + STEADY_S:
        if now > began + STEADY_WAIT_S:
            raise BenchError(f"the files in {directory} still grow after {STEADY_WAIT_S:.0f} s")
        time.sleep(STEADY_LOOK_S)
        before, size = size, files_bytes(directory)
        since = since if size == before else time.monotonic()
    return size


def grids(samples: Samples) -> list[Grid]:
    return [
        figure_grid("Seconds from the start of the process until it takes a write", "records", samples, "serving_s", ".2f"),
        figure_grid("Records replayed a second (the start of an empty server taken off)", "records", samples, "records_per_s"),
        figure_grid("Seconds that an empty server takes", "records", samples, "empty_s", ".3f"),
        figure_grid("MB of files that it starts from", "records", samples, "files_mb"),
    ]


PART = Part(
    name="load",
    title="Killed, and serving again",
    how=(
        "A fresh server with its append log on (interval, everysec) stores the items, one record each; when its files have "
        "stopped growing it is killed with -9 and started again. All items are read back afterwards, each with its own value. "
        "The log lies in the page cache. Redis is told not to rewrite its log meanwhile, so both replay as many records."
    ),
    measure=measure,
    grids=grids,
    charts=[
        Chart("Killed, and serving again", RESTART, "serving_s", "seconds", "records"),
        Chart("Replay", RESTART, "records_per_s", "records a second", "records"),
    ],
)
