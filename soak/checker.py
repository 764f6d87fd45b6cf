"""Decides whether a history is linearizable, key by key, and tells what is wrong with one that is not.

What it is: `python -m soak.checker FILE...`, and `verify`, which the soak run calls at its end. A key is a register, absent at
first; an order of its operations explains the history if it keeps to real time (an operation that ended before another
started comes before it; equal times are concurrent) and a register that does one after the other gives every answer. Keys are
independent, so each is decided by itself (Herlihy and Wing 1990: linearizability is local).
Which thread runs it: the caller's.
What it owns: nothing.
What it must not know: how the history came about; entries neither expire nor are evicted.

The search is Wing and Gong's (1993) as the just-in-time variant with memory of Lowe's "Testing for linearizability" (2017).
It walks over the starts and ends in order of time and holds every *configuration* that explains what has ended so far: the
register's value, the running operations already placed in the order, and the unknown ones used. When an operation ends, each
configuration that lacks it is carried on by placing running operations until that one is placed. If none is left, what ended
before is the longest prefix that has an order, and this operation is the one that fits nowhere.

What keeps the configurations few, each by the argument that whatever completes the one dropped completes the one kept:
1. An operation that changes nothing in any state (`observes`) is placed as soon as the state allows it: taking it out of
   the place where a completion has it disturbs nothing.
2. Unknown operations may be used, never must be. Of two configurations that differ in them only, the one that used a subset
   is kept. Equal ones are used in the order of their starts: all run for ever, so which of them was used makes no difference.
3. An unknown one is used only where it leads, if need be by way of other unknown ones, to a running definite one that the
   state before refuses; else those up to the next definite one can be taken out. It leads there if it writes the value that
   one requires, or that an unknown cas requires which leads there itself, or if that one requires another value than the
   one before. (If a key counts, any number may lead to any other, and any unknown one is used.)
4. A write is *unseen* if no operation requires its value and none of the key requires a value to be another one
   (`unless`) or counts. Whatever stands between it and the next change in an order is then legal in every state, so it can
   be taken out of any order. Hence an unknown one is dropped beforehand, whatever it may have done. A definite one
   is placed immediately before the next change that does not look at the state, where it costs nothing.
5. If some operation does require another value, unknown writes of values that no operation names are all the same to every
   requirement: they get one common value, and by 2 only their number counts.
A budget bounds the search for each key; one that exceeds it is undecided, which is never fine.
"""

from __future__ import annotations

import argparse
import sys
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

from soak.history import NUMBER, DamagedHistory, Op, Operation, Outcome, read_history, shown

BUDGET = 1_000_000
"""Configurations looked at for one key: some 10 s and 300 MB at most. Eight busy clients cost ten to a hundred an operation."""

BUDGET_OPERATION = 400
"""The same for each operation of a key, if that is more: keys with thousands."""

EXCERPT = 8
"""Operations shown that ended last before the one that fits nowhere started; what is told beside it is always shown."""

SHOWN = 10
"""Violations and undecided keys told in full; one fault of a server breaks hundreds of keys in the same way."""

FOREVER = sys.maxsize
"""The end of an operation of unknown outcome."""


class Kind(StrEnum):
    """What is wrong with a key, as far as it can be told."""

    NEVER_WRITTEN = "value never written"
    FAILED_WRITE = "value of a failed write"
    TOO_EARLY = "value seen before it was written"
    LOST_WRITE = "lost write"
    STALE_READ = "stale read"
    REPLACED_TWICE = "one value replaced by two cas"
    NO_ORDER = "no order explains it"


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
    search = _Search(_steps(operations), budget)
    try:
        stuck = search.run()
    except _BudgetSpent:
        # What can be told without a search is proof on its own.
        facts = _Facts(operations)
        told = ((each, facts.tell(each)) for each in sorted(operations, key=_end))
        for operation, finding in told:
            if finding is not None:
                return _violation(key, search, operation, finding, operations)
        return Undecided(key, len(operations), search.placed)
    if stuck is None:
        return None
    finding = _Facts(operations).tell(stuck.operation) or _Finding(Kind.NO_ORDER, stuck.operation.text(), ())
    return _violation(key, search, stuck.operation, finding, operations)


def _violation(key: str, search: _Search, operation: Operation, finding: _Finding, operations: list[Operation]) -> Violation:
    end = _end(operation)
    before = sorted((each for each in operations if _end(each) < operation.start_ns), key=_end)[-EXCERPT:]
    beside = (each for each in operations if each.start_ns <= end and operation.start_ns <= _end(each) < FOREVER)
    excerpt = sorted({operation, *finding.beside, *before, *beside}, key=lambda each: (each.start_ns, _end(each), each.client))
    possible = tuple(sorted(search.possible(), key=lambda value: (value is not None, value)))
    return Violation(key, finding.kind, finding.why, search.placed, operation, possible, tuple(excerpt))


def _end(operation: Operation) -> int:
    """The latest moment at which it may have taken effect."""
    if operation.outcome == Outcome.UNKNOWN or operation.end_ns is None:
        return FOREVER
    return operation.end_ns


class _Mark(Enum):
    """What stands in the place of a value."""

    ANY = 0  # needed: none
    SAME = 1  # written: none
    IMPOSSIBLE = 2  # after it: it cannot be placed here
    UNSEEN = 3  # a value that no operation names

    __hash__ = object.__hash__  # the enum's own is Python code, and a state is hashed at each step


_State = str | None | _Mark


@dataclass(slots=True, eq=False)
class _Step:
    """One operation as the search sees it. `bit` is its place in a configuration while it runs."""

    operation: Operation
    needs: _State = _Mark.ANY
    unless: bool = False
    """The state must not be what `needs` says."""
    writes: _State = _Mark.SAME
    unseen: bool = False
    """The module's 4."""
    bit: int = 0
    optional: bool = field(init=False)
    observes: bool = field(init=False)
    """It leaves every state as it is."""
    blind: bool = field(init=False)
    """It does not look at the state."""

    def __post_init__(self) -> None:
        counts = self.operation.op == Op.INCREMENT
        self.optional = self.operation.outcome == Outcome.UNKNOWN
        self.observes = self.writes is _Mark.SAME and not counts
        self.blind = self.needs is _Mark.ANY and not counts

    @property
    def like(self) -> tuple[_State, bool, _State, int | None]:
        """Equal for unknown steps that do the same in every state."""
        return self.needs, self.unless, self.writes, self.operation.delta

    def after(self, state: _State) -> _State:
        """The state after it in this one, or IMPOSSIBLE."""
        if self.operation.delta is not None:
            return self._counted(state, self.operation.delta)
        if self.needs is not _Mark.ANY and (state == self.needs) == self.unless:
            return _Mark.IMPOSSIBLE
        return state if self.writes is _Mark.SAME else self.writes

    def _counted(self, state: _State, delta: int) -> _State:
        text = "0" if state is None else state
        if not isinstance(text, str) or not NUMBER.fullmatch(text):
            return _Mark.IMPOSSIBLE
        answer = str(int(text) + delta)
        return answer if self.operation.value in {answer, None} else _Mark.IMPOSSIBLE


def _step(operation: Operation) -> _Step:
    told, value = operation.applied, operation.value
    match operation.op:
        case Op.GET:
            return _Step(operation, needs=value)
        case Op.SET:
            return _Step(operation, writes=value)
        case Op.DELETE if told is False:
            return _Step(operation, needs=None)
        case Op.DELETE:
            return _Step(operation, needs=_Mark.ANY if told is None else None, unless=told is not None, writes=None)
        case Op.CAS if told is False:
            return _Step(operation, needs=operation.expected, unless=True)
        case Op.CAS:
            return _Step(operation, needs=operation.expected, writes=value)
        case Op.INCREMENT:
            return _Step(operation)


def _steps(operations: list[Operation]) -> list[_Step]:
    """What has to be, or may be, placed in an order; the module's 4 and 5."""
    done = [each for each in operations if each.outcome != Outcome.FAIL]
    steps = [_step(each) for each in done if each.outcome == Outcome.OK or each.op != Op.GET]
    if any(each.op == Op.INCREMENT for each in done):
        return steps
    while True:
        named = {each.needs for each in steps}
        unnamed = [each for each in steps if not each.observes and each.writes not in named]
        if any(each.unless for each in steps):
            for each in unnamed:
                each.writes = _Mark.UNSEEN if each.optional else each.writes
            return steps
        if not any(each.optional for each in unnamed):
            for each in unnamed:
                each.unseen = each.blind
            return steps
        dropped = {id(each) for each in unnamed if each.optional}
        steps = [each for each in steps if id(each) not in dropped]  # a dropped cas needs no value any more: again


class _BudgetSpent(Exception):
    """The search for one key has looked at as many configurations as it may."""


class _Configurations:
    """A set of configurations: for each state and set of placed running operations, the smallest sets of unknown ones used."""

    __slots__ = ("used",)

    def __init__(self) -> None:
        self.used: dict[tuple[_State, int], list[int]] = {}

    def add(self, state: _State, placed: int, used: int) -> bool:
        """False if one that is there already makes it needless: 2."""
        held = self.used.setdefault((state, placed), [])
        if any(not other & ~used for other in held):
            return False
        held[:] = [other for other in held if used & ~other]
        held.append(used)
        return True

    def __iter__(self) -> Iterator[tuple[_State, int, int]]:
        for (state, placed), sets in self.used.items():
            for used in sets:
                yield state, placed, used


class _Search:
    """The search for one key. `placed` counts the operations that have ended and have an order."""

    def __init__(self, steps: list[_Step], budget: int) -> None:
        self.placed = 0
        self._left = budget
        self._events = _events(steps)
        self._now = _Configurations()
        self._now.add(None, 0, 0)
        self._reached: set[_State] = set()
        self._running = 0  # bits in use
        self._observers: list[_Step] = []
        self._changers: list[_Step] = []
        self._unseen = 0  # bits of changers
        self._unknown: dict[object, list[_Step]] = {}  # those that do the same, by start
        self._unknown_count = 0
        self._writing: dict[_State, list[list[_Step]]] = defaultdict(list)  # the same, by what they write
        self._leading: list[list[_Step]] = []  # the same, those that lead to a value that a running step requires
        self._refused: set[_State] = set()  # values that a running step requires not to be there
        self._counts = any(step.operation.op == Op.INCREMENT for step in steps)
        self._allowed: dict[_State, int] = {}  # bits of the observers that a state allows

    def run(self) -> _Step | None:
        """The step that fits nowhere, or None. Raises `_BudgetSpent`."""
        for step, ends in self._events:
            if not ends:
                self._start(step)
            elif self._end(step):
                self.placed += 1
            else:
                return step
        return None

    def possible(self) -> list[str | None]:
        """The values that the key could have had when the step that fits nowhere ended."""
        return [state for state in self._reached if not isinstance(state, _Mark)]

    def _start(self, step: _Step) -> None:
        if step.optional:
            self._start_unknown(step)
            return
        step.bit = ~self._running & (self._running + 1)  # the lowest that is free
        self._running |= step.bit
        if not step.observes:
            self._changers.append(step)
            self._unseen |= step.bit if step.unseen else 0
            return
        self._observers.append(step)
        self._allowed.clear()
        before, self._now = self._now, _Configurations()
        for state, placed, used in before:
            self._spend()
            self._now.add(state, placed | self._absorbed(state), used)

    def _start_unknown(self, step: _Step) -> None:
        step.bit = 1 << self._unknown_count
        self._unknown_count += 1
        if step.like not in self._unknown:
            self._unknown[step.like] = []
            self._writing[step.writes].append(self._unknown[step.like])
        self._unknown[step.like].append(step)

    def _end(self, step: _Step) -> bool:
        """Carry on every configuration that lacks the step; False if none can be."""
        bit, seen = step.bit, _Configurations()
        before, self._now = self._now, _Configurations()
        waiting = []
        for state, placed, used in before:
            self._spend()
            if placed & bit:
                self._now.add(state, placed ^ bit, used)
            else:
                waiting.append((state, placed, used))
        if waiting:
            self._wish()
        while waiting:
            state, placed, used = waiting.pop()
            if not seen.add(state, placed, used):
                continue
            self._spend()
            for after, then, using in self._next(step, state, placed, used):
                if then & bit:
                    self._now.add(after, then ^ bit, using)
                else:
                    waiting.append((after, then, using))
        self._forget(step)
        if not self._now.used:
            self._reached = {state for state, _ in seen.used}
        return bool(self._now.used)

    def _forget(self, step: _Step) -> None:
        self._running ^= step.bit
        if step.observes:
            self._observers.remove(step)
            self._allowed.clear()
        else:
            self._changers.remove(step)
            self._unseen &= ~step.bit

    def _next(self, ending: _Step, state: _State, placed: int, used: int) -> Iterator[tuple[_State, int, int]]:
        """The configurations one change further, observers absorbed."""
        for step in self._changers:
            if placed & step.bit or (step.unseen and step is not ending):
                continue
            after = step.after(state)
            if after is not _Mark.IMPOSSIBLE:
                also = self._unseen if step.blind else 0
                yield after, placed | step.bit | also | self._absorbed(after), used
        for of_kind in self._unknown.values() if self._counts or state in self._refused else self._leading:
            for step in of_kind:
                if not used & step.bit:
                    after = step.after(state)
                    if after is not _Mark.IMPOSSIBLE and after != state:
                        also = self._unseen if step.blind else 0
                        yield after, placed | also | self._absorbed(after), used | step.bit
                    break

    def _wish(self) -> None:
        """Find the unknown steps that lead to what is running: 3."""
        running = [*self._observers, *self._changers]
        self._refused = {each.needs for each in running if each.unless}
        wanted = {each.needs for each in running if not each.unless}
        self._leading, waiting = [], list(wanted)
        while waiting:
            for of_kind in self._writing.get(waiting.pop(), ()):
                self._leading.append(of_kind)
                if of_kind[0].needs not in wanted:
                    wanted.add(of_kind[0].needs)
                    waiting.append(of_kind[0].needs)

    def _absorbed(self, state: _State) -> int:
        """The observers that are placed at once in this state: 1."""
        allowed = self._allowed.get(state)
        if allowed is None:
            allowed = sum(each.bit for each in self._observers if each.after(state) is not _Mark.IMPOSSIBLE)
            self._allowed[state] = allowed
        return allowed

    def _spend(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise _BudgetSpent


def _events(steps: list[_Step]) -> list[tuple[_Step, bool]]:
    """The starts and ends in order of time; at the same time the starts first, so that touching operations are concurrent."""
    events = [(step.operation.start_ns, False, step) for step in steps]
    events += [(_end(step.operation), True, step) for step in steps if not step.optional]
    events.sort(key=lambda event: event[:2])
    return [(step, ends) for _, ends, step in events]


class _Finding(NamedTuple):
    """What can be told about an operation. `beside`: the operations that show it."""

    kind: Kind
    why: str
    beside: tuple[Operation, ...]


class _Fixed:
    """Operations after which the value was certain, to be asked for the last one that ended before a time."""

    def __init__(self, operations: Iterable[Operation]) -> None:
        by_end = sorted(operations, key=_end)
        self._ends = [_end(each) for each in by_end]
        self._latest = list(accumulate(by_end, _started_last))

    def before(self, time_ns: int) -> Operation | None:
        """Of those that ended before `time_ns` the one that started last."""
        count = bisect_left(self._ends, time_ns)
        return self._latest[count - 1] if count else None


def _started_last(one: Operation, other: Operation) -> Operation:
    return other if other.start_ns > one.start_ns else one


class _Facts:
    """What can be told about a key's operations without a search. Each finding proves that the history is not linearizable.

    `_settled`: a moment after which a value is not written any more. If a later operation found or wrote another value,
    and ended before this one started, this one cannot have found the first value again.
    """

    def __init__(self, operations: list[Operation]) -> None:
        self._counted = any(each.op == Op.INCREMENT for each in operations)
        self._writers: dict[_State, list[Operation]] = defaultdict(list)
        self._failed: dict[_State, list[Operation]] = defaultdict(list)
        self._finders: dict[_State, list[Operation]] = defaultdict(list)
        for each in operations:
            step = _step(each)
            if step.writes is not _Mark.SAME:
                (self._failed if each.outcome == Outcome.FAIL else self._writers)[step.writes].append(each)
            if each.outcome == Outcome.OK and step.needs is not _Mark.ANY and not step.unless:
                self._finders[step.needs].append(each)
        fixed = [each for each in operations if each.outcome == Outcome.OK and _left(each) is not _Mark.ANY]
        self._changes = _Fixed(each for each in fixed if each.op != Op.GET)
        self._reads = _Fixed(each for each in fixed if each.op == Op.GET)

    def tell(self, operation: Operation) -> _Finding | None:
        """What is wrong with an operation that found a value, if that can be told."""
        step = _step(operation)
        if self._counted or operation.outcome != Outcome.OK or step.needs is _Mark.ANY or step.unless:
            return None
        value = operation.expected if operation.op == Op.CAS else operation.value
        return (
            self._no_writer(operation, value) or self._overwritten(operation, value) or self._replaced_twice(operation, value)
        )

    def _no_writer(self, operation: Operation, value: str | None) -> _Finding | None:
        writers = self._writers[value]
        if value is None or any(each.start_ns <= _end(operation) for each in writers):
            return None
        if writers:
            return _Finding(Kind.TOO_EARLY, f"{operation.text()}; the write started only later", tuple(writers))
        if failed := self._failed[value]:
            return _Finding(Kind.FAILED_WRITE, f"{operation.text()}; {failed[0].text()}", tuple(failed))
        return _Finding(Kind.NEVER_WRITTEN, operation.text(), ())

    def _settled(self, value: str | None) -> int:
        latest = max(map(_end, self._writers[value]), default=-1)
        if value is not None and len(self._writers[value]) == 1:
            latest = min([latest, *map(_end, self._finders[value])])
        return latest

    def _overwritten(self, operation: Operation, value: str | None) -> _Finding | None:
        settled = self._settled(value)
        for fixed in (self._changes, self._reads):
            since = fixed.before(operation.start_ns)
            if since is not None and since.start_ns > settled and (left := _left(since)) != value:
                found_later = any(_end(each) > operation.start_ns for each in self._finders[left])
                lost = since.op != Op.GET and not found_later
                why = f"{since.text()}, acknowledged at {since.end_ns} ns; later {operation.text()}"
                return _Finding(Kind.LOST_WRITE if lost else Kind.STALE_READ, why, (since, *self._writers[value]))
        return None

    def _replaced_twice(self, operation: Operation, value: str | None) -> _Finding | None:
        if operation.op != Op.CAS or value is None or len(self._writers[value]) != 1 or operation.value == value:
            return None
        others = [each for each in self._finders[value] if each.op == Op.CAS and each.value != value and each != operation]
        if not others:
            return None
        return _Finding(Kind.REPLACED_TWICE, f"{operation.text()}; {others[0].text()}", (others[0], *self._writers[value]))


def _left(operation: Operation) -> _State:
    """The value that an operation that is ok left behind, or ANY if that cannot be told."""
    step = _step(operation)
    if step.writes is not _Mark.SAME:
        return step.writes
    return _Mark.ANY if step.unless else step.needs


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
