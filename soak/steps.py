"""An operation of a history as the search for an order sees it: what it needs to find, and what it leaves behind.

What it is: `Step`, the state it is placed in (`State`), and `steps_of`, which leaves out what cannot matter. Pure.
Which thread runs it: any. What it owns: nothing. What it must not know: how an order is searched for (`soak.linearize`, whose
header has the arguments that are named here by their numbers).
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from enum import Enum

from soak.history import NUMBER, Op, Operation, Outcome

FOREVER = sys.maxsize
"""The end of an operation of unknown outcome."""


def latest_end(operation: Operation) -> int:
    """The latest moment at which it may have taken effect."""
    if operation.outcome == Outcome.UNKNOWN or operation.end_ns is None:
        return FOREVER
    return operation.end_ns


class Mark(Enum):
    """What stands in the place of a value."""

    ANY = 0  # needed: none
    SAME = 1  # written: none
    IMPOSSIBLE = 2  # after it: it cannot be placed here
    UNSEEN = 3  # a value that no operation names

    __hash__ = object.__hash__  # the enum's own is Python code, and a state is hashed at each step


State = str | None | Mark


@dataclass(slots=True, eq=False)
class Step:
    """One operation as the search sees it. `bit` is its place in a configuration while it runs."""

    operation: Operation
    needs: State = Mark.ANY
    unless: bool = False
    """The state must not be what `needs` says."""
    writes: State = Mark.SAME
    unseen: bool = False
    """4."""
    bit: int = 0
    optional: bool = field(init=False)
    observes: bool = field(init=False)
    """It leaves every state as it is."""
    blind: bool = field(init=False)
    """It does not look at the state."""

    def __post_init__(self) -> None:
        counts = self.operation.op == Op.INCREMENT
        self.optional = self.operation.outcome == Outcome.UNKNOWN
        self.observes = self.writes is Mark.SAME and not counts
        self.blind = self.needs is Mark.ANY and not counts

    @property
    def like(self) -> tuple[State, bool, State, int | None]:
        """Equal for unknown steps that do the same in every state."""
        return self.needs, self.unless, self.writes, self.operation.delta

    def after(self, state: State) -> State:
        """The state after it in this one, or IMPOSSIBLE."""
        if self.operation.delta is not None:
            return self._counted(state, self.operation.delta)
        if self.needs is not Mark.ANY and (state == self.needs) == self.unless:
            return Mark.IMPOSSIBLE
        return state if self.writes is Mark.SAME else self.writes

    def _counted(self, state: State, delta: int) -> State:
        text = "0" if state is None else state
        if not isinstance(text, str) or not NUMBER.fullmatch(text):
            return Mark.IMPOSSIBLE
        answer = str(int(text) + delta)
        return answer if self.operation.value in {answer, None} else Mark.IMPOSSIBLE


def step_of(operation: Operation) -> Step:
    told, value = operation.applied, operation.value
    match operation.op:
        case Op.GET:
            return Step(operation, needs=value)
        case Op.SET:
            return Step(operation, writes=value)
        case Op.DELETE if told is False:
            return Step(operation, needs=None)
        case Op.DELETE:
            return Step(operation, needs=Mark.ANY if told is None else None, unless=told is not None, writes=None)
        case Op.CAS if told is False:
            return Step(operation, needs=operation.expected, unless=True)
        case Op.CAS:
            return Step(operation, needs=operation.expected, writes=value)
        case Op.INCREMENT:
            return Step(operation)


def steps_of(operations: list[Operation]) -> list[Step]:
    """What has to be, or may be, placed in an order: 4 and 5."""
    done = [each for each in operations if each.outcome != Outcome.FAIL]
    steps = [step_of(each) for each in done if each.outcome == Outcome.OK or each.op != Op.GET]
    if any(each.op == Op.INCREMENT for each in done):
        return steps
    while True:
        named = {each.needs for each in steps}
        unnamed = [each for each in steps if not each.observes and each.writes not in named]
        if any(each.unless for each in steps):
            for each in unnamed:
                each.writes = Mark.UNSEEN if each.optional else each.writes
            return steps
        if not any(each.optional for each in unnamed):
            for each in unnamed:
                each.unseen = each.blind
            return steps
        dropped = {id(each) for each in unnamed if each.optional}
        steps = [each for each in steps if id(each) not in dropped]  # a dropped cas needs no value any more: again
