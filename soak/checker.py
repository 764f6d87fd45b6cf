"""Decides whether a history is linearizable, key by key, and tells what is wrong with one that is not.

What it is: `python -m soak.checker FILE...`, and `verify`, which the soak run calls at its end. A key is a register, absent at
first; an order of its operations explains the history if it keeps to real time (an operation that ended before another
started comes before it; equal times are concurrent) and a register that does one after the other gives every answer. Keys are
independent, so each is decided by itself (Herlihy and Wing 1990: linearizability is local).
Which thread runs it: the caller's.
What it owns: nothing.
What it must not know: how the history came about; entries neither expire nor are evicted.

`soak.linearize` searches for the order, `soak.facts` says what is wrong where there is none. A budget bounds the search for
each key; one that exceeds it is undecided, which is never fine.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from soak.facts import Facts, Finding, Kind
from soak.history import DamagedHistory, Operation, Outcome, read_history, shown
from soak.linearize import BudgetSpent, Search
from soak.steps import FOREVER, latest_end, steps_of

BUDGET = 1_000_000
"""Configurations looked at for one key: some 10 s and 300 MB at most. Eight busy clients cost ten to a hundred an operation."""

BUDGET_OPERATION = 400
"""The same for each operation of a key, if that is more: keys with thousands."""

EXCERPT = 8
"""Operations shown that ended last before the one that fits nowhere started; what is told beside it is always shown."""

SHOWN = 10
"""Violations and undecided keys told in full; one fault of a server breaks hundreds of keys in the same way."""


@dataclass(frozen=True, slots=True)
class Violation:
    """A key whose history is not linearizable.

    `placed` operations had ended when `operation` did, and have an order; `operation` fits nowhere. `possible`: the values that
    the key could have had then (empty if the budget was spent before). `excerpt`: the operations to look at, by start.
    """

    key: str
    kind: Kind
    why: str
    placed: int
    operation: Operation
    possible: tuple[str | None, ...]
    excerpt: tuple[Operation, ...]


class Undecided(NamedTuple):
    """A key whose search exceeded the budget after `placed` of its `operations` had an order."""

    key: str
    operations: int
    placed: int


@dataclass(slots=True)
class Report:
    """What `verify` found. Only one that is `fine` says that the history is linearizable."""

    keys: int = 0
    operations: int = 0
    failed: int = 0
    unknown: int = 0
    started_ns: int = 0
    violations: list[Violation] = field(default_factory=list)
    undecided: list[Undecided] = field(default_factory=list)

    @property
    def fine(self) -> bool:
        return not self.violations and not self.undecided

    def lines(self) -> Iterator[str]:
        """For people. Times are in ms after the start of the history."""
        yield (
            f"{self.operations} operations ({self.failed} failed, {self.unknown} of unknown outcome) on {self.keys} keys: "
            f"{len(self.violations)} keys in violation, {len(self.undecided)} undecided"
        )
        if not self.fine:
            yield f"times are in ms after {self.started_ns} ns (CLOCK_MONOTONIC), the start of the history"
        for violation in self.violations[:SHOWN]:
            yield from self._violation(violation)
        for each in self.undecided[:SHOWN]:
            yield f"undecided: key {shown(each.key)}: beyond the budget after {each.placed} of {each.operations} operations"
        left_out = sum(max(0, len(found) - SHOWN) for found in (self.violations, self.undecided))
        if left_out:
            yield f"and {left_out} keys more"

    def _violation(self, violation: Violation) -> Iterator[str]:
        yield f"violation: key {shown(violation.key)}: {violation.kind}: {violation.why}"
        values = ", ".join(shown(value) for value in violation.possible)
        yield f"  the {violation.placed} operations that ended before have an order; this one (>) fits nowhere"
        if values:
            yield f"  the value could only be: {values}"
        for operation in violation.excerpt:
            mark = ">" if operation == violation.operation else " "
            yield f"  {mark} {self._ms(operation.start_ns)} .. {self._ms(operation.end_ns)}  {operation.text()}"

    def _ms(self, time_ns: int | None) -> str:
        return f"{'...':>12}" if time_ns is None else f"{(time_ns - self.started_ns) / 1e6:12.6f}"


def verify(operations: Iterable[Operation], budget: int | None = None) -> Report:
    """Decide every key, with `budget` configurations for each (None: what the constants say).

    Blocks: from 10 us an operation (one client a key) to 50 (eight that never pause), and seconds for a key at its budget.
    """
    by_key: dict[str, list[Operation]] = defaultdict(list)
    for operation in operations:
        by_key[operation.key].append(operation)
    report = Report(keys=len(by_key))
    report.started_ns = min((each.start_ns for of_key in by_key.values() for each in of_key), default=0)
    for key, of_key in by_key.items():
        report.operations += len(of_key)
        report.failed += sum(each.outcome == Outcome.FAIL for each in of_key)
        report.unknown += sum(each.outcome == Outcome.UNKNOWN for each in of_key)
        allowed = max(BUDGET, BUDGET_OPERATION * len(of_key)) if budget is None else budget
        found = _decide(key, of_key, allowed)
        if isinstance(found, Violation):
            report.violations.append(found)
        elif found is not None:
            report.undecided.append(found)
    return report


def _decide(key: str, operations: list[Operation], budget: int) -> Violation | Undecided | None:
    search = Search(steps_of(operations), budget)
    try:
        stuck = search.run()
    except BudgetSpent:
        # What can be told without a search is proof on its own.
        facts = Facts(operations)
        told = ((each, facts.tell(each)) for each in sorted(operations, key=latest_end))
        for operation, finding in told:
            if finding is not None:
                return _violation(key, search, operation, finding, operations)
        return Undecided(key, len(operations), search.placed)
    if stuck is None:
        return None
    finding = Facts(operations).tell(stuck.operation) or Finding(Kind.NO_ORDER, stuck.operation.text(), ())
    return _violation(key, search, stuck.operation, finding, operations)


def _violation(key: str, search: Search, operation: Operation, finding: Finding, operations: list[Operation]) -> Violation:
    end = latest_end(operation)
    before = sorted((each for each in operations if latest_end(each) < operation.start_ns), key=latest_end)[-EXCERPT:]
    beside = (each for each in operations if each.start_ns <= end and operation.start_ns <= latest_end(each) < FOREVER)
    excerpt = sorted(
        {operation, *finding.beside, *before, *beside}, key=lambda each: (each.start_ns, latest_end(each), each.client)
    )
    possible = tuple(sorted(search.possible(), key=lambda value: (value is not None, value)))
    return Violation(key, finding.kind, finding.why, search.placed, operation, possible, tuple(excerpt))


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 if all is linearizable, 1 if not or undecided, 2 for files that are no history."""
    parser = argparse.ArgumentParser(prog="soak.checker", description="Decide whether a history is linearizable.")
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="of one history; each operation is in one of them")
    parser.add_argument("--budget", type=int, help=f"configurations for each key (default: {BUDGET}, more for long ones)")
    given = parser.parse_args(argv)
    try:
        history = read_history(given.files)
    except (OSError, DamagedHistory) as error:
        print(error, file=sys.stderr)
        return 2
    if not history.operations:
        print("no operation in this history", file=sys.stderr)
        return 2
    for path in history.torn:
        print(f"{path}: the last line was cut off and is left out")
    report = verify(history.operations, given.budget)
    print(*report.lines(), sep="\n")
    return 0 if report.fine else 1


if __name__ == "__main__":
    sys.exit(main())
