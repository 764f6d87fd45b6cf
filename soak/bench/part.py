"""What a part of the benchmark is: a measurement, and how its figures are shown.

What it is: `Part`, and `Chart`, the description of one drawing.
Which thread runs it: the benchmark's only one.
What it owns: nothing.
What it must not know: any one part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from soak.bench.context import Bench
from soak.bench.samples import Sample, Samples
from soak.bench.tables import Grid


@dataclass(frozen=True)
class Chart:
    """One drawing: a figure of one group over its conditions, one series for each server."""

    title: str
    group: str
    figure: str
    axis: str
    """What the figure is, with its unit."""
    along: str = ""
    """What the conditions are."""
    logarithmic: bool = False
    lines: bool = False
    """Lines over conditions that are numbers, rather than bars."""


@dataclass(frozen=True)
class Part:
    """One part of the benchmark, by the name it is asked for by."""

    name: str
    title: str
    how: str
    """How it is measured, for the reader of the figures: a paragraph, or several lines of one."""
    measure: Callable[[Bench], list[Sample]]
    """Raises `BenchError`."""
    grids: Callable[[Samples], list[Grid]]
    charts: Sequence[Chart] = ()
