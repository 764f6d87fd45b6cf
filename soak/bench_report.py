"""What the benchmark found: medians, ratios round by round, as a table, as JSON and as Markdown.

What it is: arithmetic and text; the same numbers in three forms.
Which thread runs it: the benchmark's only one.
What it owns: nothing.
What it must not know: how a number came about.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

SHAPES = ((1, 1), (16, 1), (50, 1), (200, 1), (16, 16), (16, 100))
"""Connections, and requests sent at once on each."""


@dataclass(frozen=True)
class Measurement:
    """One run of the load generator. Latencies are those of a whole batch."""

    server: str
    operation: str
    connections: int
    depth: int
    round: int
    operations_per_s: float
    p50_us: float
    p99_us: float
    p999_us: float

    @property
    def row(self) -> tuple[str, int, int]:
        """Which line of the table it belongs to."""
        return self.operation, self.connections, self.depth


@dataclass
class Report:
    """All that is known of one run of the benchmark."""

    command: str
    date: str
    machine: dict[str, str]
    servers: dict[str, dict[str, str]]
    rounds: int
    seconds: float
    missing: list[str] = field(default_factory=list)
    measurements: list[Measurement] = field(default_factory=list)
    log_cost: list[Measurement] = field(default_factory=list)
    bytes_per_connection: dict[str, int] = field(default_factory=dict)
    connections_held: int = 0


@dataclass(frozen=True)
class Grid:
    """A table before it is drawn."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def ratios(measurements: Iterable[Measurement], server: str, other: str) -> list[float]:
    """Operations a second of `server` over those of `other`, round by round; rounds that one of them lacks are left out."""
    measurements = list(measurements)
    mine = {each.round: each.operations_per_s for each in measurements if each.server == server}
    theirs = {each.round: each.operations_per_s for each in measurements if each.server == other}
    return [mine[number] / theirs[number] for number in sorted(mine.keys() & theirs.keys())]


def ratios_text(numbers: Sequence[float]) -> str:
    """The median ratio, and in brackets each round's."""
    return f"{median(numbers):.2f} ({' '.join(f'{number:.2f}' for number in numbers)})" if numbers else "-"


def grids(report: Report) -> list[Grid]:
    """The tables of a report; one that nothing was measured for is left out."""
    found = [
        _rate_grid(report, "GET"),
        _rate_grid(report, "SET"),
        _latency_grid(report),
        _log_grid(report),
        _memory_grid(report),
    ]
    return [grid for grid in found if grid.rows]


def _measured(report: Report) -> list[str]:
    return list(dict.fromkeys(each.server for each in report.measurements))


def _by_row(report: Report) -> dict[tuple[str, int, int], list[Measurement]]:
    rows: dict[tuple[str, int, int], list[Measurement]] = {}
    for each in report.measurements:
        rows.setdefault(each.row, []).append(each)
    return rows


def _rate_grid(report: Report, operation: str) -> Grid:
    names = _measured(report)
    columns = ["shape", *names, *(f"{names[0]} : {other}" for other in names[1:])]
    rows = []
    for (of, connections, depth), here in _by_row(report).items():
        if of == operation:
            compared = (ratios_text(ratios(here, names[0], other)) for other in names[1:])
            rows.append([f"{connections} x {depth}", *(_rate(here, name) for name in names), *compared])
    return Grid(f"{operation}, 100-byte value: operations a second", columns, rows)


def _latency_grid(report: Report) -> Grid:
    names = _measured(report)
    rows = [
        [f"{operation} {connections} x {depth}", *(_latency(here, name) for name in names)]
        for (operation, connections, depth), here in _by_row(report).items()
    ]
    return Grid("Round trip of a batch: 50th / 99th percentile, microseconds", ["shape", *names], rows)


def _rate(measurements: Iterable[Measurement], server: str) -> str:
    numbers = [each.operations_per_s for each in measurements if each.server == server]
    return f"{median(numbers):,.0f}" if numbers else "-"


def _latency(measurements: Iterable[Measurement], server: str) -> str:
    here = [each for each in measurements if each.server == server]
    return f"{median(each.p50_us for each in here):,.0f} / {median(each.p99_us for each in here):,.0f}" if here else "-"


def _log_grid(report: Report) -> Grid:
    names = list(dict.fromkeys(each.server for each in report.log_cost))
    if len(names) != 2:
        return Grid("", (), ())
    off, on = names
    first = report.log_cost[0]
    cells = [f"{first.connections} x {first.depth}", _rate(report.log_cost, off), _rate(report.log_cost, on)]
    row = [*cells, ratios_text(ratios(report.log_cost, on, off))]
    return Grid("SET with the append log (fsync interval): operations a second", ["shape", off, on, f"{on} : {off}"], [row])


def _memory_grid(report: Report) -> Grid:
    rows = [[name, f"{count:,}"] for name, count in report.bytes_per_connection.items()]
    return Grid(f"Memory of {report.connections_held:,} idle connections", ["server", "bytes a connection"], rows)


def show(report: Report, console: Console) -> None:
    """Print the tables."""
    for grid in grids(report):
        table = Table(title=grid.title)
        for index, column in enumerate(grid.columns):
            table.add_column(column, justify="right" if index else "left")
        for row in grid.rows:
            table.add_row(*row)
        console.print(table)
    if report.missing:
        console.print(f"Not installed, so not measured: {', '.join(report.missing)}")


def to_json(report: Report) -> dict[str, Any]:
    """Everything, every single measurement too."""
    return asdict(report)


def to_markdown(report: Report) -> str:
    """The tables, and all one needs to do it again."""
    lines = ["# Beside Redis and memcached", "", f"Measured on {report.date} by `{report.command}`.", ""]
    lines += [f"- {name}: {value}" for name, value in report.machine.items()]
    lines += [f"- {name} {facts['version']}: `{facts['command']}`" for name, facts in report.servers.items()]
    lines += [f"- not installed, so not measured: {name}" for name in report.missing]
    lines += [
        f"- {report.rounds} rounds of {report.seconds:g} s a measurement, the servers in turn within each round",
        "- the load comes from `soak/load/lg.c` on the same machine; a shape is the number of connections x the number of",
        "  requests under way on each (sent as one batch; the next follows when all are answered)",
        "- every figure is the median of its rounds; a ratio is the median of the rounds' ratios, which stand in brackets",
    ]
    for grid in grids(report):
        lines += ["", f"## {grid.title}", "", _line(grid.columns), _line(["---"] + ["---:"] * (len(grid.columns) - 1))]
        lines += [_line(row) for row in grid.rows]
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
