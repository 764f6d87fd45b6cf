"""What is wrong with a key's history, as far as it can be told without a search.

What it is: `Kind`, `Finding`, and `Facts`, which is asked about one operation. Pure. Which thread runs it: any.
What it owns: nothing. What it must not know: how an order is searched for.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable
from enum import StrEnum
from itertools import accumulate
from typing import NamedTuple

from soak.history import Op, Operation, Outcome
from soak.steps import Mark, State, latest_end, step_of


class Kind(StrEnum):
    """What is wrong with a key, as far as it can be told."""

    NEVER_WRITTEN = "value never written"
    FAILED_WRITE = "value of a failed write"
    TOO_EARLY = "value seen before it was written"
    LOST_WRITE = "lost write"
    STALE_READ = "stale read"
    REPLACED_TWICE = "one value replaced by two cas"
    NO_ORDER = "no order explains it"


class Finding(NamedTuple):
    """What can be told about an operation. `beside`: the operations that show it."""

    kind: Kind
    why: str
    beside: tuple[Operation, ...]


class _Fixed:
    """Operations after which the value was certain, to be asked for the last one that ended before a time."""

    def __init__(self, operations: Iterable[Operation]) -> None:
        by_end = sorted(operations, key=latest_end)
        self._ends = [latest_end(each) for each in by_end]
        self._latest = list(accumulate(by_end, _started_last))

    def before(self, time_ns: int) -> Operation | None:
        """Of those that ended before `time_ns` the one that started last."""
        count = bisect_left(self._ends, time_ns)
        return self._latest[count - 1] if count else None


def _started_last(one: Operation, other: Operation) -> Operation:
    return other if other.start_ns > one.start_ns else one


class Facts:
    """What can be told about a key's operations without a search. Each finding proves that the history is not linearizable.

    `_settled`: a moment after which a value is not written any more. If a later operation found or wrote another value,
    and ended before this one started, this one cannot have found the first value again.
    """

    def __init__(self, operations: list[Operation]) -> None:
        self._counted = any(each.op == Op.INCREMENT for each in operations)
        self._writers: dict[State, list[Operation]] = defaultdict(list)
        self._failed: dict[State, list[Operation]] = defaultdict(list)
        self._finders: dict[State, list[Operation]] = defaultdict(list)
        for each in operations:
            step = step_of(each)
            if step.writes is not Mark.SAME:
                (self._failed if each.outcome == Outcome.FAIL else self._writers)[step.writes].append(each)
            if each.outcome == Outcome.OK and step.needs is not Mark.ANY and not step.unless:
                self._finders[step.needs].append(each)
        fixed = [each for each in operations if each.outcome == Outcome.OK and _left(each) is not Mark.ANY]
        self._changes = _Fixed(each for each in fixed if each.op != Op.GET)
        self._reads = _Fixed(each for each in fixed if each.op == Op.GET)

    def tell(self, operation: Operation) -> Finding | None:
        """What is wrong with an operation that found a value, if that can be told."""
        step = step_of(operation)
        if self._counted or operation.outcome != Outcome.OK or step.needs is Mark.ANY or step.unless:
            return None
        value = operation.expected if operation.op == Op.CAS else operation.value
        return (
            self._no_writer(operation, value) or self._overwritten(operation, value) or self._replaced_twice(operation, value)
        )

    def _no_writer(self, operation: Operation, value: str | None) -> Finding | None:
        writers = self._writers[value]
        if value is None or any(each.start_ns <= latest_end(operation) for each in writers):
            return None
        if writers:
            return Finding(Kind.TOO_EARLY, f"{operation.text()}; the write started only later", tuple(writers))
        if failed := self._failed[value]:
            return Finding(Kind.FAILED_WRITE, f"{operation.text()}; {failed[0].text()}", tuple(failed))
        return Finding(Kind.NEVER_WRITTEN, operation.text(), ())

    def _settled(self, value: str | None) -> int:
        latest = max(map(latest_end, self._writers[value]), default=-1)
        if value is not None and len(self._writers[value]) == 1:
            latest = min([latest, *map(latest_end, self._finders[value])])
        return latest

    def _overwritten(self, operation: Operation, value: str | None) -> Finding | None:
        settled = self._settled(value)
        for fixed in (self._changes, self._reads):
            since = fixed.before(operation.start_ns)
            if since is not None and since.start_ns > settled and (left := _left(since)) != value:
                found_later = any(latest_end(each) > operation.start_ns for each in self._finders[left])
                lost = since.op != Op.GET and not found_later
                why = f"{since.text()}, acknowledged at {since.end_ns} ns; later {operation.text()}"
                return Finding(Kind.LOST_WRITE if lost else Kind.STALE_READ, why, (since, *self._writers[value]))
        return None

    def _replaced_twice(self, operation: Operation, value: str | None) -> Finding | None:
        if operation.op != Op.CAS or value is None or len(self._writers[value]) != 1 or operation.value == value:
            return None
        others = [each for each in self._finders[value] if each.op == Op.CAS and each.value != value and each != operation]
        if not others:
            return None
        return Finding(Kind.REPLACED_TWICE, f"{operation.text()}; {others[0].text()}", (others[0], *self._writers[value]))


def _left(operation: Operation) -> State:
    """The value that an operation that is ok left behind, or ANY if that cannot be told."""
    step = step_of(operation)
    if step.writes is not Mark.SAME:
        return step.writes
    return Mark.ANY if step.unless else step.needs
