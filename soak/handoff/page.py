"""The tables of a handoff's measurement, for a terminal and as a page.

What it is: `show` and `as_page`. Which thread runs it: the main thread. What it owns: nothing.
What it must not know: how a figure came about.
"""

from __future__ import annotations

from typing import Any

from rich.console import Console

from soak.bench.page import drawn, paragraph, table_lines
from soak.bench.samples import Samples, ratios
from soak.bench.tables import Grid, number, ratios_text

FIGURES = (
    ("items that the node had", "items", ",.0f"),
    ("seconds until it had none", "seconds", ".2f"),
    ("items a second", "items_per_s", ",.0f"),
    ("MB a second", "mb_per_s", ".1f"),
    ("requests' p50 before, ms", "before_p50_ms", ".2f"),
    ("requests' p99 before, ms", "before_p99_ms", ".2f"),
    ("requests' p50 during, ms", "during_p50_ms", ".2f"),
    ("requests' p99 during, ms", "during_p99_ms", ".2f"),
    ("slowest request during, ms", "during_max_ms", ".1f"),
    ("requests during", "during_calls", ",.0f"),
    ("failed requests, before and during", "failed", ".0f"),
)
"""What is shown, by what name it was measured, and its form."""


HOW_RUN = """
Measured on {date} by `{command}`: {rounds} rounds, the two clusters in turn, each set up anew: three nodes, {items:,} items
of {value_bytes} bytes, and a process of Python clients (rcache_client, redis-py) that gets and sets {rate:,.0f} times a
second. All of it on one machine.
"""

HOW_COUNTED = """
rcached keeps a backup of every bucket. When a node leaves the backups of its buckets are made primaries, which moves nothing,
and for every copy that goes with it another one is made elsewhere; it is done when every bucket has its backup again. The
masters of Redis Cluster have no replicas here: keys are moved, one slot after the other. So items and bytes are those of the
copies that the node had: two of three of all items here, one of three there. Both keep an append log that is synced every
second. A request's time counts from when it was due.
"""


def grid_of(samples: Samples) -> Grid:
    """A line for each figure: the median of the rounds, and the first side's ratio to the other, round by round."""
    names = samples.servers
    columns = ["median of the rounds", *names, *(f"{names[0]} : {other}" for other in names[1:])]
    rows = []
    for title, figure, form in FIGURES:
        here = [samples.where(server=name) for name in names]
        compared = [ratios_text(ratios(here[0], figure, other)) for other in here[1:]]
        rows.append([title, *(number(of.median(figure), form) for of in here), *compared])
    return Grid("A node that leaves", columns, rows)


def show(report: dict[str, Any], console: Console) -> None:
    console.print(drawn(grid_of(report["samples"])))
    for name, why in report["missing"].items():
        console.print(f"{name} was not measured: {why}", markup=False)


def as_page(report: dict[str, Any]) -> str:
    """The table for people, and all one needs to make it again."""
    lines = ["# A node that leaves", "", *paragraph(HOW_RUN.format(**report)), "", *paragraph(HOW_COUNTED), ""]
    lines += [f"- {name}: {value}" for name, value in report["machine"].items()]
    lines += [f"- {name}: `{command}`" for name, command in report["sides"].items() if name not in report["missing"]]
    lines += [f"- {name} was not measured: {why}" for name, why in report["missing"].items()]
    return "\n".join([*lines, "", *table_lines(grid_of(report["samples"]))]) + "\n"
