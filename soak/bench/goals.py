"""The figures to reach, each held against what was measured.

What it is: the goals of the native engine that are set against Redis and memcached, and whether the reports reach them. A goal
is a median of ratios of one run: operations a second to those of whichever of the others was faster in that round.
Which thread runs it: the benchmark's only one.
What it owns: nothing.
What it must not know: how a figure came about.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

from soak.bench.drivers import LIMIT
from soak.bench.report import Report
from soak.bench.samples import Condition, Samples, ratios, ratios_to_fastest
from soak.bench.tables import Grid, ratios_text
from soak.bench.traffic import GET, OPERATIONS, SET

MINE, REDIS, MEMCACHED = "rcached", "redis", "memcached"
OTHERS = (REDIS, MEMCACHED)
RATE = "operations_per_s"

SHAPE_GOALS: dict[str, tuple[float, float]] = {
    "1 x 1": (1.0, 1.0),
    "50 x 1": (1.0, 1.0),
    "200 x 1": (1.0, 1.0),
    "16 x 16": (1.3, 1.3),
    "16 x 100": (3.0, 2.5),
}
"""Shape: what GET and SET should reach of the faster of Redis and memcached."""

HOW = (
    "Of a shape: the ratio to the faster of Redis and memcached, and beside it what `limit`, which does nothing, reaches "
    "of the same."
)

LOG_LEFT = 0.85
ITEM_BYTES = 160
RECORDS_PER_S = 1_000_000
SERVING_S = 3.0
GOAL_ITEMS = 1_000_000
"""The goals of memory and of a restart are set for so many items; other numbers are not held against them."""


@dataclass(frozen=True)
class Goal:
    """One figure to reach, and what was found."""

    what: str
    wanted: str
    found: str
    reached: bool


def goals(reports: Mapping[str, Report]) -> list[Goal]:
    """Every goal that something was measured for, in the order of the parts."""
    found: list[Goal] = []
    of_parts = {"shapes": _shapes, "log": _log, "items": _items, "load": _load, "connections": _connections}
    for part, of_part in of_parts.items():
        if part in reports:
            found += of_part(reports[part].samples)
    return found


def goals_grid(reports: Mapping[str, Report]) -> Grid:
    rows = [[goal.what, goal.wanted, goal.found, "yes" if goal.reached else "no"] for goal in goals(reports)]
    return Grid("The figures to reach", ["what", "wanted", "found", "reached"], rows)


def _at_least(what: str, least: float, found: Sequence[float]) -> Iterator[Goal]:
    """A goal for the median of ratios; none where there is no ratio."""
    if found:
        yield Goal(what, f"at least {least:g}", ratios_text(found), median(found) >= least)


def _shapes(samples: Samples) -> Iterator[Goal]:
    for shape, least in SHAPE_GOALS.items():
        for operation, of_operation in zip(OPERATIONS, least, strict=True):
            here = samples.where(operation, shape)
            limit = ratios_to_fastest(here, RATE, LIMIT, OTHERS)
            for goal in _at_least(f"{operation} {shape}", of_operation, ratios_to_fastest(here, RATE, MINE, OTHERS)):
                yield replace(goal, found=f"{goal.found}; limit {median(limit):.2f}") if limit else goal


def _log(samples: Samples) -> Iterator[Goal]:
    """Against the log off, or where the disk is the limit, against the disk's rate: the larger share of the two counts."""
    sets = samples.where(SET)
    mine, redis = (_left(sets, name) for name in (MINE, REDIS))
    if not mine:
        return
    interval = next(at for at in sets.conditions if str(at).startswith("interval"))
    written = sets.where(at=interval, server=MINE).median("written_mb_per_s") or 0.0
    share = written / (samples.where("disk").median("written_mb_per_s") or float("inf"))
    yield Goal(
        "SET 16 x 16, log at an interval, to the log off (or to the disk's own rate)",
        f"at least {LOG_LEFT:g}",
        f"{ratios_text(mine)}; {share:.0%} of the disk",
        max(median(mine), share) >= LOG_LEFT,
    )
    if redis:
        found = f"{median(mine):.2f}, Redis {median(redis):.2f}"
        yield Goal("the same, to what Redis keeps with everysec", "more", found, median(mine) > median(redis))


def _left(sets: Samples, name: str) -> list[float]:
    mine = sets.where(server=name)
    intervals = [at for at in mine.conditions if str(at).startswith("interval")]
    return ratios(mine.where(at=intervals[0]), RATE, mine.where(at="off")) if intervals else []


def _items(samples: Samples) -> Iterator[Goal]:
    found = samples.where(at=GOAL_ITEMS, server=MINE).median("bytes_per_item")
    if found is not None:
        yield Goal("memory of an item, bytes", f"at most {ITEM_BYTES}", f"{found:,.0f}", found <= ITEM_BYTES)


def _load(samples: Samples) -> Iterator[Goal]:
    here = samples.where(at=GOAL_ITEMS)
    mine, redis = here.where(server=MINE), here.where(server=REDIS)
    rate, serving_s = mine.median("records_per_s"), mine.median("serving_s")
    if rate is None or serving_s is None:
        return
    yield Goal("replay, records a second", f"at least {RECORDS_PER_S:,}", f"{rate:,.0f}", rate >= RECORDS_PER_S)
    yield Goal("killed, seconds until it serves", f"under {SERVING_S:g}", f"{serving_s:.2f}", serving_s < SERVING_S)
    if redis:
        faster = ratios(mine, "records_per_s", redis)
        yield Goal("replay, to Redis", "above 1", ratios_text(faster), median(faster) > 1)
        sooner = ratios(redis, "serving_s", mine)
        yield Goal("killed, how much sooner than Redis", "above 1", ratios_text(sooner), median(sooner) > 1)


def _connections(samples: Samples) -> Iterator[Goal]:
    held: Condition = max((int(at) for at in samples.conditions), default=0)
    for operation in (GET, SET):
        here = samples.where(operation, held)
        found = ratios(here.where(server=MINE), RATE, here.where(server=REDIS))
        yield from _at_least(f"{operation} by 200 busy beside {held:,} idle, to Redis", 1.0, found)
