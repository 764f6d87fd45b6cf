"""The parts `keys` and `values`: operations a second as the items become many, and as their values become large.

What it is: two parts of the benchmark with one way of measuring: keys drawn at random, every reply checked.
Which thread runs it: the benchmark's only one.
What it owns: nothing that outlives it.
What it must not know: the other parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from soak.bench.context import Bench
from soak.bench.drivers import Keys, Shape
from soak.bench.part import Chart, Part
from soak.bench.peers import Needs, Running
from soak.bench.samples import Sample, Samples
from soak.bench.tables import Grid, figure_grid
from soak.bench.traffic import GET, OPERATIONS, SET, marked

KEYS_SHAPE = Shape(16, 16)
ITEMS_MIN = 1_000
VALUE_BYTES = 100

VALUES_SHAPE = Shape(16, 4)
"""The largest values are 64 MB under way with that."""
VALUE_SIZES = (10, 100, 1_000, 10_000, 100_000, 1_000_000)
VALUES_BYTES = 100_000_000
VALUES_ITEMS_MAX = 10_000
"""So many items, or of large values so many that they have that many bytes together."""


@dataclass(frozen=True)
class Load:
    """What is asked: in which shape, of how many items, with how large values."""

    shape: Shape
    items: int
    value_bytes: int


def item_counts(most: int) -> list[int]:
    """A thousand, ten thousand, ..., and `most`."""
    counts, count = [], ITEMS_MIN
    while count < most:
        counts.append(count)
        count *= 10
    return [*counts, most]


def measure_keys(bench: Bench) -> list[Sample]:
    samples, stored = [], 0
    most = bench.sizes.items_max
    with bench.servers(Needs.of_items(most)) as servers:
        for count in item_counts(most):
            for server in servers.values():
                bench.fill(server, count - stored, VALUE_BYTES, first=stored)
            stored = count
            for operation in OPERATIONS:
                run = partial(_run, bench, operation, Load(KEYS_SHAPE, count, VALUE_BYTES))
                samples += bench.in_turn(operation, count, servers, run)
    return samples


def measure_values(bench: Bench) -> list[Sample]:
    samples = []
    for value_bytes in VALUE_SIZES:
        count = min(VALUES_ITEMS_MAX, VALUES_BYTES // value_bytes)
        with bench.servers(Needs(value_bytes=value_bytes)) as servers:
            for server in servers.values():
                bench.fill(server, count, value_bytes)
            for operation in OPERATIONS:
                run = partial(_run, bench, operation, Load(VALUES_SHAPE, count, value_bytes))
                samples += bench.in_turn(operation, value_bytes, servers, run)
    return samples


def _run(bench: Bench, operation: str, load: Load, server: Running, number: int) -> dict[str, float]:
    exchange = marked(server.peer.dialect, load.value_bytes)[operation]
    figures = bench.drivers.keys(server, exchange, load.shape, bench.sizes.seconds, Keys(load.items, seed=number))
    return figures | {"value_mb_per_s": figures["operations_per_s"] * load.value_bytes / 1e6}


def keys_grids(samples: Samples) -> list[Grid]:
    return _rates(samples, "items", f"{KEYS_SHAPE}, keys at random")


def values_grids(samples: Samples) -> list[Grid]:
    return [
        *_rates(samples, "value bytes", f"{VALUES_SHAPE}, keys at random"),
        *(
            figure_grid(f"{operation}: MB/s of values", "value bytes", samples.where(operation), "value_mb_per_s")
            for operation in samples.groups
        ),
    ]


def _rates(samples: Samples, head: str, what: str) -> list[Grid]:
    return [
        figure_grid(f"{operation} {what}: operations a second", head, samples.where(operation), "operations_per_s")
        for operation in samples.groups
    ]


def _charts(along: str, by: str, logarithmic: bool) -> Sequence[Chart]:
    return [
        Chart(f"{operation} by {by}", operation, "operations_per_s", "operations a second", along, logarithmic, lines=True)
        for operation in (GET, SET)
    ]


KEYS = Part(
    name="keys",
    title="Operations a second by number of items",
    how=(
        "12-byte keys with 100-byte values. All servers hold the same items and run at once; they are filled up to the next "
        "number, and measured in turn when they are at rest. Keys are drawn evenly from all that are stored, so every GET must "
        "find its item, and every value is held against its key."
    ),
    measure=measure_keys,
    grids=keys_grids,
    charts=_charts("items", "number of items", logarithmic=False),
)

VALUES = Part(
    name="values",
    title="Operations a second by size of value",
    how=(
        "Servers started fresh for each size, with 10,000 items, or of large values as many as have 100 MB together. Keys are "
        "drawn evenly, and every value is held against its key."
    ),
    measure=measure_values,
    grids=values_grids,
    charts=_charts("value bytes", "size of value", logarithmic=True),
)
