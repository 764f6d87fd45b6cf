"""One call of a client, and what its outcome means to the history.

What it is: `outcome_of`, the table from the client's errors to the history's outcomes, and `Caller`, which carries out calls
and writes them down. Which thread runs it: one; a `Caller` is not shared.
What it owns: nothing. What it must not know: which keys there are, and when something is broken.

An error of the client says whether the call happened: `NotExecuted` and `Refused` surely not; `OutcomeUnknown` perhaps. A read
that failed says nothing either way. Whatever no fault of a cluster explains is *strange*, and a violation by itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from rcache_client import Client, NotExecuted, OutcomeUnknown, RcacheError, TimedOut
from soak.history import HistoryWriter, Op, Operation, Outcome

TTL_S = 2 * 3600.0
"""Of entries that have one: far longer than a run of rounds keeps them, shorter than a step of the clock, so that a node which
follows a step loses them."""


def outcome_of(op: Op, error: RcacheError) -> Outcome:
    """What is known of an operation that raised this."""
    if isinstance(error, OutcomeUnknown):
        return Outcome.UNKNOWN
    if isinstance(error, TimedOut):
        return Outcome.FAIL if op == Op.GET else Outcome.UNKNOWN
    return Outcome.FAIL


def is_strange(error: RcacheError) -> bool:
    """Whether no fault of a cluster explains it: a refusal of what is in order, or bytes that break the protocol."""
    return not isinstance(error, OutcomeUnknown | NotExecuted | TimedOut)


@dataclass(slots=True)
class Done:
    """What became of a call: as it stands in the history; its error, if it had one, and the version that a read found."""

    operation: Operation
    error: RcacheError | None = None
    version: int = 0


class Caller:
    """Calls in the name of one client of the history."""

    def __init__(self, name: str, cache: Client[bytes]) -> None:
        self.name = name
        self.writer: HistoryWriter | None = None
        self._cache = cache

    def get(self, key: str) -> Done:
        return self._read(key)

    def set(self, key: str, value: str, ttl: float | None = None) -> Done:
        asked = self._asked(Op.SET, key, value=value)
        return self._write(asked, lambda: (self._cache.set(key, value.encode(), ttl), None)[1])

    def delete(self, key: str) -> Done:
        def call() -> Operation:
            return asked._replace(applied=self._cache.delete(key))

        asked = self._asked(Op.DELETE, key)
        return self._write(asked, call)

    def cas(self, key: str, value: str, expected: str | None, version: int | None) -> Done:
        """By the version that was read with `expected`; by that value itself where `version` is None."""

        def call() -> Operation:
            data = value.encode()
            if version is None and expected is not None:
                changed = self._cache.cas(key, data, previous=expected.encode())
            else:
                changed = self._cache.cas(key, data, version=version or 0)
            return asked._replace(applied=bool(changed))

        asked = self._asked(Op.CAS, key, value=value, expected=expected)
        return self._write(asked, call)

    def increment(self, key: str, delta: int) -> Done:
        def call() -> Operation:
            return asked._replace(value=str(self._cache.incr(key, delta, initial=delta)))

        asked = self._asked(Op.INCREMENT, key, delta=delta)
        return self._write(asked, call)

    def _asked(
        self, op: Op, key: str, *, value: str | None = None, expected: str | None = None, delta: int | None = None
    ) -> Operation:
        """As it stands in the history before it is sent."""
        now = time.monotonic_ns()
        return Operation(self.name, op, key, value, now, None, Outcome.UNKNOWN, expected=expected, delta=delta)

    def _read(self, key: str) -> Done:
        asked = self._asked(Op.GET, key)
        try:
            found, version = self._cache.get_with_version(key)
        except RcacheError as error:
            return self._ended(asked, error)
        value = None if found is None else found.decode(errors="backslashreplace")
        done = asked._replace(end_ns=time.monotonic_ns(), outcome=Outcome.OK, value=value)
        self._note(done)
        return Done(done, version=version)

    def _write(self, asked: Operation, call: Callable[[], Operation | None]) -> Done:
        self._note(asked)  # if this process is killed now, it is known what it was about to do
        try:
            answered = call()
        except RcacheError as error:
            return self._ended(asked, error)
        done = (answered or asked)._replace(end_ns=time.monotonic_ns(), outcome=Outcome.OK)
        self._note(done)
        return Done(done)

    def _ended(self, asked: Operation, error: RcacheError) -> Done:
        done = asked._replace(end_ns=time.monotonic_ns(), outcome=outcome_of(asked.op, error))
        self._note(done)
        return Done(done, error)

    def _note(self, operation: Operation) -> None:
        if self.writer is not None:
            self.writer.write(operation)
