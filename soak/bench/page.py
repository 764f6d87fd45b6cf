"""The report for people: one page of Markdown over all parts, or the tables on a terminal.

What it is: text. The page is made from the saved figures of every part, so a part measured anew leaves the others as they were.
Which thread runs it: the benchmark's only one.
What it owns: nothing.
What it must not know: how a figure came about.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from soak.bench.goals import HOW, goals_grid
from soak.bench.part import Part
from soak.bench.parts import PARTS
from soak.bench.report import PREFIX, Report, file_name
from soak.bench.tables import Grid

WIDTH = 120
INTRODUCTION = (
    "Every figure is the median of its rounds. A ratio is the median of the rounds' ratios, which stand in brackets: all of "
    "them, or of many rounds the least and the most. The servers take turns within each round (A B C, A B C, ...), and share "
    "the machine with the program that loads them, `soak/load/lg.c` or `soak/load/drive.c`. Every single measurement is in the "
    f"JSON file beside each drawing (`{PREFIX}-PART.json`). `rcache-bench --render` makes this page from those files."
)


def show(part: Part, report: Report, console: Console) -> None:
    """Print the tables of one part."""
    for grid in part.grids(report.samples):
        if grid.rows:
            console.print(drawn(grid))
    if report.missing:
        console.print(f"Not installed, so not measured: {', '.join(report.missing)}")


def show_goals(reports: Mapping[str, Report], console: Console) -> None:
    """Print which goals are reached, where any was measured."""
    grid = goals_grid(reports)
    if grid.rows:
        console.print(drawn(grid))


def drawn(grid: Grid) -> Table:
    """The table for a terminal."""
    table = Table(title=grid.title)
    for index, column in enumerate(grid.columns):
        table.add_column(column, justify="right" if index else "left")
    for row in grid.rows:
        table.add_row(*row)
    return table


def markdown(reports: Mapping[str, Report], directory: Path) -> str:
    """The whole page; drawings that are in `directory` are shown."""
    machines = [report.machine for report in reports.values()]
    lines = ["# Beside Redis and memcached", "", *paragraph(INTRODUCTION), ""]
    lines += [f"- {name}: {value}" for name, value in machines[0].items()] if machines else []
    wanted = goals_grid(reports)
    if wanted.rows:
        lines += ["", "## The figures to reach", "", *paragraph(HOW), "", *table_lines(wanted)]
    for name, part in PARTS.items():
        if name in reports:
            lines += ["", *_section(part, reports[name], machines[0], directory)]
    return "\n".join(lines) + "\n"


def _section(part: Part, report: Report, machine: Mapping[str, str], directory: Path) -> list[str]:
    lines = [f"## {part.title}", "", *paragraph(part.how), ""]
    length = f"{report.sizes['rounds']} rounds, {report.sizes['seconds']:g} s a measurement"
    lines += [f"Measured on {report.date} by `{report.command}`: {length}.", ""]
    lines += [f"- {name} {facts['version']}: `{facts['command']}`" for name, facts in report.servers.items()]
    lines += [f"- not installed, so not measured: {name}" for name in report.missing]
    lines += [f"- {name}: {value}" for name, value in report.machine.items() if machine.get(name) != value]
    drawing = file_name(part.name, "svg")
    if (directory / drawing).exists():
        lines += ["", f"![{part.title}]({drawing})"]
    for grid in part.grids(report.samples):
        if grid.rows:
            lines += ["", f"### {grid.title}", "", *table_lines(grid)]
    return lines


def paragraph(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, break_long_words=False, break_on_hyphens=False)


def table_lines(grid: Grid) -> list[str]:
    head = [_line(grid.columns), _line(["---"] + ["---:"] * (len(grid.columns) - 1))]
    return head + [_line(row) for row in grid.rows]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
