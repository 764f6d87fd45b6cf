"""The search for an order of one key's operations that explains what every client saw.

What it is: `Search`, which a key's steps are given to. Which thread runs it: the caller's.
What it owns: the configurations of its key. What it must not know: what is told of a key for which there is no order
(`soak.facts`), and how a history is reported (`soak.checker`).

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
A budget bounds the search; one that exceeds it has decided nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from soak.history import Op
from soak.steps import Mark, State, Step, latest_end


class BudgetSpent(Exception):
    """The search for one key has looked at as many configurations as it may."""


class _Configurations:
    """A set of configurations: for each state and set of placed running operations, the smallest sets of unknown ones used."""

    __slots__ = ("used",)

    def __init__(self) -> None:
        self.used: dict[tuple[State, int], list[int]] = {}

    def add(self, state: State, placed: int, used: int) -> bool:
        """False if one that is there already makes it needless: 2."""
        held = self.used.setdefault((state, placed), [])
        if any(not other & ~used for other in held):
            return False
        held[:] = [other for other in held if used & ~other]
        held.append(used)
        return True

    def __iter__(self) -> Iterator[tuple[State, int, int]]:
        for (state, placed), sets in self.used.items():
            for used in sets:
                yield state, placed, used


class Search:
    """The search for one key. `placed` counts the operations that have ended and have an order."""

    def __init__(self, steps: list[Step], budget: int) -> None:
        self.placed = 0
        self._left = budget
        self._events = _events(steps)
        self._now = _Configurations()
        self._now.add(None, 0, 0)
        self._reached: set[State] = set()
        self._running = 0  # bits in use
        self._observers: list[Step] = []
        self._changers: list[Step] = []
        self._unseen = 0  # bits of changers
        self._unknown: dict[object, list[Step]] = {}  # those that do the same, by start
        self._unknown_count = 0
        self._writing: dict[State, list[list[Step]]] = defaultdict(list)  # the same, by what they write
        self._leading: list[list[Step]] = []  # the same, those that lead to a value that a running step requires
        self._refused: set[State] = set()  # values that a running step requires not to be there
        self._counts = any(step.operation.op == Op.INCREMENT for step in steps)
        self._allowed: dict[State, int] = {}  # bits of the observers that a state allows

    def run(self) -> Step | None:
        """The step that fits nowhere, or None. Raises `BudgetSpent`."""
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
        return [state for state in self._reached if not isinstance(state, Mark)]

    def _start(self, step: Step) -> None:
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

    def _start_unknown(self, step: Step) -> None:
        step.bit = 1 << self._unknown_count
        self._unknown_count += 1
        if step.like not in self._unknown:
            self._unknown[step.like] = []
            self._writing[step.writes].append(self._unknown[step.like])
        self._unknown[step.like].append(step)

    def _end(self, step: Step) -> bool:
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

    def _forget(self, step: Step) -> None:
        self._running ^= step.bit
        if step.observes:
            self._observers.remove(step)
            self._allowed.clear()
        else:
            self._changers.remove(step)
            self._unseen &= ~step.bit

    def _next(self, ending: Step, state: State, placed: int, used: int) -> Iterator[tuple[State, int, int]]:
        """The configurations one change further, observers absorbed."""
        for step in self._changers:
            if placed & step.bit or (step.unseen and step is not ending):
                continue
            after = step.after(state)
            if after is not Mark.IMPOSSIBLE:
                also = self._unseen if step.blind else 0
                yield after, placed | step.bit | also | self._absorbed(after), used
        for of_kind in self._unknown.values() if self._counts or state in self._refused else self._leading:
            for step in of_kind:
                if not used & step.bit:
                    after = step.after(state)
                    if after is not Mark.IMPOSSIBLE and after != state:
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

    def _absorbed(self, state: State) -> int:
        """The observers that are placed at once in this state: 1."""
        allowed = self._allowed.get(state)
        if allowed is None:
            allowed = sum(each.bit for each in self._observers if each.after(state) is not Mark.IMPOSSIBLE)
            self._allowed[state] = allowed
        return allowed

    def _spend(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise BudgetSpent


def _events(steps: list[Step]) -> list[tuple[Step, bool]]:
    """The starts and ends in order of time; at the same time the starts first, so that touching operations are concurrent."""
    events = [(step.operation.start_ns, False, step) for step in steps]
    events += [(latest_end(step.operation), True, step) for step in steps if not step.optional]
    events.sort(key=lambda event: event[:2])
    return [(step, ends) for _, ends, step in events]
