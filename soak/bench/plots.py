"""The drawings of a report, as one SVG for each part.

What it is: bars and lines by matplotlib, which is an optional package: without it there is a reason instead of a drawing.
Which thread runs it: the benchmark's only one.
What it owns: nothing.
What it must not know: how a figure came about.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from soak.bench.part import Chart, Part
from soak.bench.report import Report, file_name
from soak.bench.samples import Samples
from soak.bench.tables import condition_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {"rcached": "#0b6e8f", "redis": "#c8402f", "memcached": "#8a9a5b", "limit": "#c9c9c9"}
"""A server has the same colour everywhere."""

WIDTH, HEIGHT = 6.4, 3.8
"""Inches of one drawing."""
COLUMNS = 2
TILT_FROM = 5
"""From so many conditions on their names would touch if they stood straight."""
TITLE_POINTS = 10
LABEL_POINTS = 8
FIGURE_POINTS = 6
BARS_LABELLED_FLAT = 12
HEADROOM = 0.12
"""Of the figures above bars. Over more bars than that they stand upright, so as not to touch; above the highest is so much of
the drawing's height left for them."""


class NoPlot(Exception):
    """There is no drawing; says why, and what would mend it."""


def draw(part: Part, report: Report, directory: Path) -> Path:
    """Write the drawing of `report` into `directory`; return its path. Raises `NoPlot`."""
    path = directory / file_name(part.name, "svg")
    charts = [chart for chart in part.charts if report.samples.where(chart.group).figures(chart.figure)]
    try:
        if not charts:
            raise NoPlot("nothing was measured that could be drawn")
        _draw(charts, report.samples, path)
    except NoPlot:
        path.unlink(missing_ok=True)  # one of figures that are no longer there
        raise
    return path


def _draw(charts: Sequence[Chart], samples: Samples, path: Path) -> None:
    try:
        import matplotlib as mpl  # noqa: PLC0415 - an optional package
        from matplotlib.figure import Figure  # noqa: PLC0415
    except ImportError as error:
        raise NoPlot("no drawing: matplotlib is not installed (pip install 'rcache[bench]')") from error
    columns = min(COLUMNS, len(charts))
    rows = math.ceil(len(charts) / columns)
    # The same figures make the same file: no date, and names that do not depend on chance.
    with mpl.rc_context({"svg.hashsalt": "rcache", "svg.fonttype": "none", "font.size": LABEL_POINTS}):
        figure = Figure(figsize=(WIDTH * columns, HEIGHT * rows), layout="constrained")
        for index, chart in enumerate(charts):
            _draw_chart(chart, samples.where(chart.group), figure.add_subplot(rows, columns, index + 1))
        drawn = {name: handle for axes in figure.axes for handle, name in zip(*axes.get_legend_handles_labels(), strict=True)}
        figure.legend(drawn.values(), drawn.keys(), loc="outside lower center", ncols=len(drawn))
        figure.savefig(path, format="svg", metadata={"Date": None})


def _draw_chart(chart: Chart, samples: Samples, axes: Axes) -> None:
    axes.margins(y=HEADROOM)
    (_draw_lines if chart.lines else _draw_bars)(chart, samples, axes)
    axes.set_title(chart.title, fontsize=TITLE_POINTS)
    axes.set_ylabel(chart.axis)
    axes.set_xlabel(chart.along)
    if chart.logarithmic:
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(lambda number, _position: f"{number:,.10g}")
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)


def short(found: float | None) -> str:
    """A figure in three digits: 1.23M, 45.6k, 789, 0.012."""
    if found is None:
        return ""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if found >= size * 0.9995:
            return f"{found / size:.3g}{unit}"
    return f"{found:.3g}"


def _draw_bars(chart: Chart, samples: Samples, axes: Axes) -> None:
    conditions, names = samples.conditions, samples.servers
    width = 0.8 / len(names)
    turn = 90 if len(conditions) * len(names) > BARS_LABELLED_FLAT else 0
    for index, name in enumerate(names):
        found = [samples.where(at=at, server=name).median(chart.figure) for at in conditions]
        places = [place - 0.4 + width * (index + 0.5) for place in range(len(conditions))]
        bars = axes.bar(places, [each or 0.0 for each in found], width, label=name, color=COLOURS.get(name))
        axes.bar_label(bars, [short(each) for each in found], fontsize=FIGURE_POINTS, padding=1, rotation=turn)
    tilt = 20 if len(conditions) >= TILT_FROM else 0
    axes.set_xticks(range(len(conditions)), [condition_text(at) for at in conditions], rotation=tilt)


def _draw_lines(chart: Chart, samples: Samples, axes: Axes) -> None:
    for name in samples.servers:
        mine = samples.where(server=name)
        points = {at: mine.where(at=at).median(chart.figure) for at in mine.conditions}
        drawn = {int(at): found for at, found in points.items() if found is not None}
        axes.plot(list(drawn), list(drawn.values()), marker="o", label=name, color=COLOURS.get(name))
    axes.set_xscale("log")
    axes.set_xticks([int(at) for at in samples.conditions], [condition_text(at) for at in samples.conditions])
    axes.minorticks_off()
