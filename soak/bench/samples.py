"""What was measured, and the arithmetic on it: medians, and ratios round by round.

What it is: `Sample`, one server in one round under one condition, and `Samples`, many of them.
Which thread runs it: the benchmark's only one.
What it owns: nothing.
What it must not know: how a figure came about, and how it is shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from statistics import median

Condition = str | int
"""A point on the axis of a table or a plot: a shape, a policy, a number of items."""


@dataclass(frozen=True)
class Sample:
    """The figures of one server in one round: `group` names the table it belongs to (GET, SET, ...), `at` the line."""

    group: str
    at: Condition
    server: str
    round: int
    figures: dict[str, float]


class Samples:
    """A series of samples, in the order they were taken."""

    def __init__(self, samples: Iterable[Sample] = ()) -> None:
        self._samples = tuple(samples)

    def __len__(self) -> int:
        return len(self._samples)

    def __iter__(self) -> Iterator[Sample]:
        return iter(self._samples)

    def where(self, group: str | None = None, at: Condition | None = None, server: str | None = None) -> Samples:
        """Those of this group, condition and server; None takes all."""
        return Samples(
            each
            for each in self._samples
            if group in (None, each.group) and at in (None, each.at) and server in (None, each.server)
        )

    @property
    def groups(self) -> list[str]:
        return list(dict.fromkeys(each.group for each in self._samples))

    @property
    def conditions(self) -> list[Condition]:
        return list(dict.fromkeys(each.at for each in self._samples))

    @property
    def servers(self) -> list[str]:
        return list(dict.fromkeys(each.server for each in self._samples))

    def figures(self, name: str) -> list[float]:
        """This figure of every sample that has it."""
        return [each.figures[name] for each in self._samples if name in each.figures]

    def median(self, name: str) -> float | None:
        """The median over the rounds; None where nothing has this figure."""
        found = self.figures(name)
        return median(found) if found else None

    def by_round(self, name: str) -> dict[int, float]:
        """Round: figure. For samples of one group, condition and server."""
        return {each.round: each.figures[name] for each in self._samples if name in each.figures}


def ratios(mine: Samples, name: str, theirs: Samples) -> list[float]:
    """This figure of `mine` over that of `theirs`, round by round; rounds that one of them lacks are left out."""
    over, under = mine.by_round(name), theirs.by_round(name)
    return [over[number] / under[number] for number in sorted(over.keys() & under.keys()) if under[number]]


def ratios_to_fastest(samples: Samples, name: str, server: str, others: Iterable[str]) -> list[float]:
    """This figure of `server` over the largest that any of the `others` has in the same round."""
    mine = samples.where(server=server).by_round(name)
    theirs = [samples.where(server=other).by_round(name) for other in others]
    best = {number: max(each[number] for each in theirs if number in each) for number in set().union(*theirs)}
    return [mine[number] / best[number] for number in sorted(mine.keys() & best.keys()) if best[number]]
