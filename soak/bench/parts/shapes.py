"""The part `shapes`: operations a second with few and many connections, one request at a time and in batches.

What it is: a part of the benchmark, after the rules of ../shared/bench/README.md.
Which thread runs it: the benchmark's only one.
What it owns: nothing that outlives it.
What it must not know: the other parts.
"""

from __future__ import annotations

from functools import partial

from soak.bench.context import Bench
from soak.bench.drivers import LIMIT, Shape
from soak.bench.part import Chart, Part
from soak.bench.peers import Needs, Running
from soak.bench.samples import Sample, Samples
from soak.bench.tables import Grid, figure_grid, latency_grid
from soak.bench.traffic import GET, OPERATIONS, SET, fixed

SPREAD = Shape(1, 1)
"""Varies the most from round to round, so it gets more of them."""

SHAPES = (SPREAD, Shape(16, 1), Shape(50, 1), Shape(200, 1), Shape(16, 16), Shape(16, 100))


def measure(bench: Bench) -> list[Sample]:
    samples = []
    with bench.servers(Needs()) as started, bench.limit() as limit:
        servers = {**started, LIMIT: limit}
        for operation in OPERATIONS:
            for shape in SHAPES:
                rounds = bench.sizes.spread_rounds if shape == SPREAD else bench.sizes.rounds
                run = partial(_run, bench, operation, shape)
                samples += bench.in_turn(operation, str(shape), servers, run, rounds)
    return samples


def _run(bench: Bench, operation: str, shape: Shape, server: Running, _round: int) -> dict[str, float]:
    return bench.drivers.fixed(server, fixed(server.peer.dialect)[operation], shape, bench.sizes.seconds)


def grids(samples: Samples) -> list[Grid]:
    title = "{}, 100-byte value: operations a second"
    rates = [figure_grid(title.format(each), "shape", samples.where(each), "operations_per_s") for each in samples.groups]
    return [*rates, latency_grid("Round trip of a batch: 50th / 99th percentile, microseconds", samples)]


PART = Part(
    name="shapes",
    title="Operations a second by shape",
    how=(
        "A shape is the number of connections x the number of requests under way on each (sent as one batch; the next follows "
        "when all are answered). Every request is the same, of an 8-byte key with a 100-byte value. All servers run at once "
        "and are measured in turn; the others are idle meanwhile. `limit` is no cache: it walks rcache's frames and sends the "
        "same reply for each (`soak/load/limit.c`), so it shows what is left to gain on this machine beside this driver."
    ),
    measure=measure,
    grids=grids,
    charts=[
        Chart(f"{operation} by shape", operation, "operations_per_s", "operations a second", "connections x depth", True)
        for operation in (GET, SET)
    ],
)
