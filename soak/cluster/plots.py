"""The drawing of a run: calls and their latency over time, what was broken meanwhile, and what each fault cost.

What it is: `draw`, by matplotlib, which is an optional package. Which thread runs it: the main thread.
What it owns: nothing. What it must not know: how a figure came about.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from soak.bench.plots import NoPlot

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {
    "restart": "#7fb069",
    "drain": "#b5d99c",
    "kill": "#c8402f",
    "stop": "#e07a5f",
    "brink": "#f08a4b",
    "pause": "#f2cc8f",
    "cut": "#5e548e",
    "isolate": "#9f86c0",
    "sever": "#7b2d43",
    "behind": "#3a7ca5",
    "stall": "#4d9078",
    "slow": "#8ecae6",
    "disk": "#6c757d",
    "clock": "#f4a259",
    "register": "#adb5bd",
}
WIDTH, HEIGHT = 12.0, 9.0
LABEL_POINTS = 7
LABELLED = 40
"""Over more faults than that their names would touch."""
BAR_SHARE = 0.006
"""Of the run's length, the width of a bar that stands for a fault."""


def draw(figures: dict[str, Any], path: Path) -> None:
    """Write the drawing as SVG. Raises `NoPlot` if there is nothing to draw, or nothing to draw with."""
    path.unlink(missing_ok=True)  # one of figures that are no longer there
    if not figures["bins"]:
        raise NoPlot("no drawing: no call was answered")
    try:
        import matplotlib as mpl  # noqa: PLC0415 - an optional package
        from matplotlib.figure import Figure  # noqa: PLC0415
    except ImportError as error:
        raise NoPlot("no drawing: matplotlib is not installed (pip install 'rcache[bench]')") from error
    with mpl.rc_context({"svg.hashsalt": "rcache", "svg.fonttype": "none", "font.size": 8}):
        figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
        throughput, latency, cost = figure.subplots(3, 1, sharex=True, height_ratios=(3, 3, 2))
        _draw_throughput(figures, throughput)
        _draw_latency(figures, latency)
        _draw_cost(figures, cost)
        for axes in (throughput, latency, cost):
            _shade(figures, axes)
            axes.grid(axis="y", alpha=0.3)
            axes.set_axisbelow(True)
        _name(figures, throughput)
        cost.set_xlabel("seconds from the first call; a band is a fault, and paler what it took to be whole again")
        figure.suptitle(_title(figures))
        figure.legend(*_legend(figures, throughput, latency, cost), loc="outside lower center", ncols=10)
        figure.savefig(path, format="svg", metadata={"Date": None})


def _draw_throughput(figures: dict[str, Any], axes: Axes) -> None:
    width = figures["bin_s"]
    bins = {row[0]: row for row in figures["bins"]}
    numbers = range(max(bins) + 1)
    nothing = [0] * 7
    times = [number * width for number in numbers]
    for name, place, colour in (("answered", 1, "#0b6e8f"), ("failed", 2, "#c8402f"), ("unknown", 3, "#e09f3e")):
        rates = [bins.get(number, nothing)[place] / width for number in numbers]
        if place == 1 or any(rates):
            axes.plot(times, rates, label=name, color=colour, linewidth=1.0)
    axes.set_ylabel("calls a second")
    axes.set_ylim(bottom=0)


def _title(figures: dict[str, Any]) -> str:
    settings = figures["settings"]
    verdict = "nothing was violated" if figures["fine"] else "VIOLATED"
    return f"rcache-soak, {settings['nodes']} nodes, manager {settings['manager']}, seed {settings['seed']}: {verdict}"


def _draw_cost(figures: dict[str, Any], axes: Axes) -> None:
    """For each fault the longest gap of service and the wait until all was whole again; suspicions that were false."""
    faults = figures["faults"]
    width = BAR_SHARE * max(figures["seconds"], 1.0)
    gaps, waits = [each["gap_s"] for each in faults], [each["recovery_s"] for each in faults]
    axes.bar([each["began"] for each in faults], gaps, width, align="edge", color="#c8402f", label="longest gap")
    axes.bar([each["began"] + width for each in faults], waits, width, align="edge", color="#444444", label="until whole again")
    wrong = figures["suspicions"]["false"]
    if wrong:
        at = [each["at"] for each in wrong]
        axes.plot(at, [0.0] * len(at), "v", color="#000000", label="false suspicion", clip_on=False)
    axes.set_ylabel("cost of a fault, s")
    axes.set_ylim(bottom=0)


def _draw_latency(figures: dict[str, Any], axes: Axes) -> None:
    width = figures["bin_s"]
    answered = [row for row in figures["bins"] if row[1]]
    times = [row[0] * width for row in answered]
    for name, place, colour in (("median", 4, "#0b6e8f"), ("99 %", 5, "#5e548e"), ("longest", 6, "#c8402f")):
        axes.plot(times, [row[place] for row in answered], label=name, color=colour, linewidth=0.8)
    axes.set_yscale("log")
    axes.set_ylabel("latency, ms")
    axes.yaxis.set_major_formatter(lambda number, _position: f"{number:,.10g}")


def _shade(figures: dict[str, Any], axes: Axes) -> None:
    """Each fault, and paler the time until the cluster was whole again."""
    for each in figures["faults"]:
        colour = COLOURS.get(each["kind"], "#000000")
        axes.axvspan(each["began"], max(each["ended"], each["began"] + 0.05), color=colour, alpha=0.45, linewidth=0, zorder=0)
        axes.axvspan(each["ended"], each["whole"], color=colour, alpha=0.18, linewidth=0, zorder=0)


def _name(figures: dict[str, Any], axes: Axes) -> None:
    """Each fault by its number in the table, and its kind."""
    if len(figures["faults"]) > LABELLED:
        return
    for each in figures["faults"]:
        axes.annotate(
            f"{each['number']} {each['kind']}",
            (each["began"], 1.01),
            xycoords=("data", "axes fraction"),
            fontsize=LABEL_POINTS,
            rotation=35,
            va="bottom",
        )


def _legend(figures: dict[str, Any], *drawn: Axes) -> tuple[list[Any], list[str]]:
    from matplotlib.patches import Patch  # noqa: PLC0415 - an optional package

    handles, names = [], []
    for axes in drawn:
        more, called = axes.get_legend_handles_labels()
        handles += more
        names += called
    for kind in dict.fromkeys(each["kind"] for each in figures["faults"]):
        handles.append(Patch(color=COLOURS.get(kind, "#000000"), alpha=0.45))
        names.append(kind)
    return handles, names
