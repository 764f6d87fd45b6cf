"""The part `items`: by how much a server's resident memory grows for each item.

What it is: a part of the benchmark.
Which thread runs it: the benchmark's only one.
What it owns: nothing that outlives it.
What it must not know: the other parts.
"""

from __future__ import annotations

from soak.bench.context import Bench
from soak.bench.machine import resident_bytes
from soak.bench.part import Chart, Part
from soak.bench.peers import Needs
from soak.bench.samples import Sample, Samples
from soak.bench.tables import Grid, figure_grid

VALUE_BYTES = 100
MEMORY = "memory"


def measure(bench: Bench) -> list[Sample]:
    samples = []
    count = bench.sizes.items
    for number in range(1, bench.sizes.rounds + 1):
        for name in bench.names:
            with bench.server(name, Needs.of_items(count)) as server:
                before = resident_bytes(server.pid)
                bench.fill(server, count, VALUE_BYTES)
                grown = resident_bytes(server.pid) - before
                bench.check(server, count, VALUE_BYTES)
            samples.append(Sample(MEMORY, count, name, number, {"bytes_per_item": grown / count}))
    return samples


def grids(samples: Samples) -> list[Grid]:
    return [figure_grid("Bytes of resident memory for each item", "items", samples, "bytes_per_item")]


PART = Part(
    name="items",
    title="Memory of an item",
    how=(
        "A 12-byte key with a 100-byte value: the growth of a fresh server's resident memory while it stores them, divided by "
        "their number. All are read back afterwards, each with its own value, so none was evicted."
    ),
    measure=measure,
    grids=grids,
    charts=[Chart("Memory of an item", MEMORY, "bytes_per_item", "bytes", "items")],
)
