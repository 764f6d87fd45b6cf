"""Tables of samples: which line, which column, which figure.

What it is: `Grid`, a table before it is drawn, and what makes the usual ones out of samples.
Which thread runs it: the benchmark's only one.
What it owns: nothing.
What it must not know: where a table is shown, and how a figure came about.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from soak.bench.samples import Condition, Samples, ratios

ROUNDS_SHOWN = 7
"""Ratios of more rounds than this are shown by their spread."""

NOTHING = "-"


@dataclass(frozen=True)
class Grid:
    """A table before it is drawn. Its first column is text, the others numbers."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def number(found: float | None, form: str = ",.0f") -> str:
    """A figure as text; `form` as in a format string."""
    return NOTHING if found is None else format(found, form)


def condition_text(at: Condition) -> str:
    return f"{at:,}" if isinstance(at, int) else at


def ratios_text(found: Sequence[float]) -> str:
    """The median ratio, and in brackets each round's; of many rounds the least and the most."""
    if not found:
        return NOTHING
    if len(found) > ROUNDS_SHOWN:
        return f"{median(found):.2f} ({min(found):.2f} to {max(found):.2f} in {len(found)} rounds)"
    return f"{median(found):.2f} ({' '.join(f'{each:.2f}' for each in found)})"


def figure_grid(title: str, head: str, samples: Samples, figure: str, form: str = ",.0f") -> Grid:
    """A line for each condition, a column for each server, and the first server's ratio to each of the others."""
    names = samples.servers
    columns = [head, *names, *(f"{names[0]} : {other}" for other in names[1:])]
    rows = []
    for at in samples.conditions:
        here = samples.where(at=at)
        medians = (number(here.where(server=name).median(figure), form) for name in names)
        compared = (ratios_text(ratios(here.where(server=names[0]), figure, here.where(server=name))) for name in names[1:])
        rows.append([condition_text(at), *medians, *compared])
    return Grid(title, columns, rows)


def latency_grid(title: str, samples: Samples) -> Grid:
    """A line for each operation and condition: the middle and the slow round trips of every server."""

    def cell(here: Samples) -> str:
        p50, p99 = here.median("p50_us"), here.median("p99_us")
        return f"{number(p50)} / {number(p99)}" if here else NOTHING

    return line_grid(title, samples, cell)


def line_grid(title: str, samples: Samples, cell: Callable[[Samples], str]) -> Grid:
    """A line for each group and condition, a column for each server; `cell` makes the text of one server's samples there."""
    names = samples.servers
    rows = []
    for group in samples.groups:
        for at in samples.where(group).conditions:
            here = samples.where(group, at)
            rows.append([f"{group} {condition_text(at)}", *(cell(here.where(server=name)) for name in names)])
    return Grid(title, ["shape", *names], rows)
