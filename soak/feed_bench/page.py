"""The tables of the feeds' measurement, for a terminal and as a page.

What it is: `show` and `as_page`. Which thread runs it: the main thread. What it owns: nothing.
What it must not know: how a figure came about.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich.console import Console

from soak.bench.page import drawn, paragraph, table_lines
from soak.bench.samples import Samples, ratios
from soak.bench.tables import NOTHING, Grid, number, ratios_text

FULL_RATE = "at full rate"
VIEWS, LIMIT = "views", "limit"
"""Groups of samples: one for each pace of the writers, what Python clients take, what the subscribers' process can take."""

HOW_RUN = """
Measured on {date} by `{command}`: {rounds} rounds, {seconds:g} s a measurement, in turn ({contenders}), each with a server
started anew, all of it on one machine. A figure is the median of its rounds.
"""

HOW_COUNTED = """
Writers SET values of 100 bytes (`soak/load/drive.c`): 16 connections with 16 requests each, as fast as they are answered; and
at a rate, 4 connections with 10, where a round trip counts from when it was due. The subscribers are all in one process
(`soak/load/hear.c`), each with a connection of its own. Those of rcached ask for EVENTS again and again, as a client does, for
everything with values or without; those of Redis are told the names of the keys by keyspace notifications, which have no
values, on one pattern.
"""

HOW_LOST = """
rcached tells a subscriber that is behind of a gap, and the writers go on; what a gap leaves out is lost, and counted. Told and
lost together were what was written, wherever everything was accounted for within 5 s of the last write. Redis puts every
message into every subscriber's buffer before it goes on with the writers, loses none, and disconnects whoever is behind by 32
MB, or for a minute by 8 MB. An event is late by the time from the acknowledgement of its write until the subscriber has it; it
can be there before the acknowledgement is.
"""

HOW_VIEWS = """
One Python thread takes events from its client while the writers write at full rate; rcache_client reads them in a second
thread. The processor's time is that of the whole process. On two cores the client shares them with server and writers.
"""


def _percentiles(here: Samples, middle: str, slow: str, form: str) -> str:
    return f"{number(here.median(middle), form)} / {number(here.median(slow), form)}" if here.figures(middle) else NOTHING


def _writers(here: Samples, alone: Samples) -> str:
    """A rate, and in brackets its ratio to that without a subscriber: of the medians, as no two of a round are alike."""
    rate, before = here.median("sets_per_s"), alone.median("sets_per_s")
    return NOTHING if rate is None or not before else f"{rate:,.0f} ({rate / before:.2f})"


Cell = Callable[[Samples, Samples], str]
"""The samples of one contender with so many subscribers, and those of the same without any, to text."""

TABLES: tuple[tuple[str, Cell], ...] = (
    ("SETs a second; in brackets to that without a subscriber", _writers),
    ("SETs' p50 / p99, microseconds", lambda here, _: _percentiles(here, "p50_us", "p99_us", ",.0f")),
    ("events a second to each subscriber", lambda here, _: number(here.median("each_per_s"))),
    ("events a second to all subscribers", lambda here, _: number(here.median("all_per_s"))),
    ("events lost, in a hundred; subscribers disconnected", lambda here, _: _lost(here)),
    (
        "cores taken by the server / by the subscribers",
        lambda here, _: _percentiles(here, "server_cores", "hearing_cores", ".2f"),
    ),
    ("late by p50 / p99, ms", lambda here, _: _percentiles(here, "late_p50_ms", "late_p99_ms", ".2f")),
)


def _lost(here: Samples) -> str:
    lost, closed = here.median("lost_share"), here.median("closed")
    return NOTHING if lost is None or closed is None else f"{lost * 100:.1f}; {closed:.0f}"


def grids_of(samples: Samples) -> list[Grid]:
    """One for each pace of the writers and kind of figure, and the clients'."""
    paces = [group for group in samples.groups if group not in (VIEWS, LIMIT)]
    grids = [_grid(f"Writers {pace}: {title}", samples.where(pace), cell) for pace in paces for title, cell in TABLES]
    return [each for each in grids if any(cell != NOTHING for row in each.rows for cell in row[1:])] + _others(samples)


def _grid(title: str, samples: Samples, cell: Cell) -> Grid:
    """A line for each number of subscribers, a column for each contender."""
    names = samples.servers
    rows = []
    for at in samples.conditions:
        found = [cell(samples.where(at=at, server=name), samples.where(at=0, server=name)) for name in names]
        if any(each != NOTHING for each in found):
            rows.append([f"{at:,}" if isinstance(at, int) else at, *found])
    return Grid(title, ["subscribers", *names], rows)


def _others(samples: Samples) -> list[Grid]:
    views = samples.where(VIEWS)
    first = views.where(server=views.servers[0]) if views.servers else views
    rows = []
    for name in views.servers:
        here = views.where(server=name)
        compared = ratios_text(ratios(first, "events_per_s", here)) if name != views.servers[0] else NOTHING
        rows.append([name, number(here.median("events_per_s")), number(here.median("cpu_us"), ".2f"), compared])
    found = [Grid("One client in Python", ["client", "events a second", "processor, us an event", "first to this"], rows)]
    limits = samples.where(LIMIT)
    rows = []
    for at in limits.conditions:
        for name in limits.servers:
            here = limits.where(at=at, server=name)
            rows.append([f"{at} x {name}", number(here.median("all_per_s")), number(here.median("cpu_us"), ".3f")])
    head = ["subscribers", "events a second to all", "processor, us an event"]
    return [*found, Grid("What the process of the subscribers can take, of a server that does nothing", head, rows)]


def show(report: dict[str, Any], console: Console) -> None:
    console.print(f"{report['command']}\n" + "\n".join(f"{name}: {value}" for name, value in report["machine"].items()))
    for grid in grids_of(report["samples"]):
        if grid.rows:
            console.print(drawn(grid))
    for name, why in report["missing"].items():
        console.print(f"{name} was not measured: {why}", markup=False)


def as_page(report: dict[str, Any]) -> str:
    """The tables for people, and all one needs to make them again."""
    lines = ["# Events to subscribers", "", *paragraph(HOW_RUN.strip().format(**report)), ""]
    lines += [*paragraph(HOW_COUNTED.strip()), "", *paragraph(HOW_LOST.strip()), "", *paragraph(HOW_VIEWS.strip()), ""]
    lines += [f"- {name}: {value}" for name, value in report["machine"].items()]
    lines += [f"- {name} {facts['version']}: `{facts['command']}`" for name, facts in report["servers"].items()]
    lines += [f"- {', '.join(f'{name} {found}' for name, found in report['packages'].items())}"] if report["packages"] else []
    lines += [f"- {name} was not measured: {why}" for name, why in report["missing"].items()]
    for grid in grids_of(report["samples"]):
        if grid.rows:
            lines += ["", f"## {grid.title}", "", *table_lines(grid)]
    return "\n".join(lines) + "\n"
