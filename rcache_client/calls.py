"""A call: one request carried to an answer or an error, over as many tries as its budget and its nature allow.

What it is: the rule of what may be sent again. A read may, whatever became of it. A write may only if it surely was not
executed; otherwise its outcome is unknown and the error says so.
Which thread runs it: the caller's.
What it owns: nothing between calls.
What it must not know: what keys and values are.
"""

from __future__ import annotations

import random
import time
from time import monotonic
from typing import Any

from rcache_client.answers import reason_of
from rcache_client.budget import SECONDS_MAX, back_off_seconds, checked_seconds
from rcache_client.connection import Setback, Trouble
from rcache_client.errors import (
    BudgetSpent,
    ConnectionLost,
    NotExecuted,
    OutcomeUnknown,
    PoolExhausted,
    ProtocolError,
    RcacheError,
    ServersUnavailable,
    TimedOut,
    error_of,
)
from rcache_client.servers import Door, Doors
from rcache_client.wire.opcodes import READ_OPCODES, Opcode, Status, StatusClass, opcode_name, status_name

TRIES_MAX = 6
"""With the back-off below that is about a second of trying; a server that is still busy then is overloaded."""

BACK_OFF_FIRST_SECONDS = 0.02
BACK_OFF_MAX_SECONDS = 0.5
"""Short beside a budget, long beside a request: enough for a queue to drain or a view to change."""

PATIENT_OPCODES = frozenset({Opcode.FLUSH})
"""One answer for work on all items: it may take the whole budget, not just `read_timeout`."""

_LEAVING = frozenset({Status.STOPPING, Status.SHUTTING_DOWN})

_REFUSED = int(StatusClass.REFUSED)


class Caller:
    """Carries out calls through a client's doors. Thread-safe."""

    def __init__(self, doors: Doors, budget: float, read_timeout: float) -> None:
        self._doors = doors
        self._budget = budget
        self._read_timeout = read_timeout

    def deadline(self, budget: float | None) -> float:
        """When a call that begins now must end; `budget` in seconds, None for the client's own."""
        return monotonic() + (self._budget if budget is None else checked_seconds("budget", budget))

    def frame_bytes_max(self, deadline: float) -> int:
        """The longest frame, header included, that the servers take."""
        return self._doors.frame_bytes_max(deadline)

    def call(self, opcode: int, payload: bytes, deadline: float) -> tuple[int, Any]:
        """The answer's (status, values), the status one of the ANSWERED class. Blocks to the deadline at most.

        Raises every kind of `RcacheError` but those of serializers and many-key calls.
        """
        tries = 0
        trouble: RcacheError | None = None
        while True:
            try:
                outcome = self._try_once(opcode, payload, deadline)
            except (ServersUnavailable, BudgetSpent, PoolExhausted) as no_way:
                error = _better_known(trouble, no_way, opcode)
                raise error from error.__cause__
            if not isinstance(outcome, RcacheError):
                return outcome
            if not isinstance(outcome, (NotExecuted, TimedOut)):
                raise outcome
            tries += 1
            trouble = outcome
            _wait_before_next(tries, deadline, outcome)

    def _try_once(self, opcode: int, payload: bytes, deadline: float) -> tuple[int, Any] | RcacheError:
        """One exchange: its (status, values), or the error that it stands for. Raises what no other try would mend."""
        door, connection = self._doors.take(deadline)
        read_timeout = SECONDS_MAX if opcode in PATIENT_OPCODES else self._read_timeout
        try:
            status, values = connection.exchange(opcode, payload, deadline, read_timeout)
        except Setback as setback:
            door.pool.discard(connection)
            self._note_setback(door, setback)
            return _error_of_setback(opcode, setback, door.name)
        except BaseException:
            door.pool.discard(connection)
            raise
        door.pool.give(connection)
        if door.failures or door.silences:  # something for a good answer to clear
            self._doors.answered(door)
        if status < _REFUSED:
            return status, values
        if status in _LEAVING:
            self._doors.fail(door, status_name(status))
        return _error_of_status(opcode, status, reason_of(values), door.name)

    def _note_setback(self, door: Door, setback: Setback) -> None:
        setback.name_limit(f"read_timeout of {self._read_timeout:g} s", in_full=setback.waited_in_full)
        if setback.trouble is Trouble.SILENT:
            self._doors.fell_silent(door, setback)
        elif setback.status in _LEAVING:
            self._doors.fail(door, setback.reason)


def _error_of_setback(opcode: int, setback: Setback, server: str) -> RcacheError:
    """What a setback means for this opcode: the rule of what may be sent again."""
    garbled = setback.trouble is Trouble.GARBLED
    kind: type[RcacheError]
    if setback.maybe_executed and opcode not in READ_OPCODES:
        kind = OutcomeUnknown
    elif garbled:
        kind = ProtocolError
    elif setback.trouble is Trouble.CLOSED:
        kind = ConnectionLost
    else:
        kind = TimedOut if opcode in READ_OPCODES else BudgetSpent
    error = kind(setback.reason, server, opcode_name(opcode))
    error.__cause__ = ProtocolError(setback.reason, server) if garbled and kind is OutcomeUnknown else setback.__cause__
    return error


def _error_of_status(opcode: int, status: int, reason: str, server: str) -> RcacheError:
    """As `error_of`, but a read whose outcome is unknown simply was not answered."""
    error = error_of(status, reason, server, opcode_name(opcode))
    if isinstance(error, OutcomeUnknown) and opcode in READ_OPCODES:
        return NotExecuted(error.what, server, error.operation)
    return error


def _better_known(trouble: RcacheError | None, no_way: RcacheError, opcode: int) -> RcacheError:
    """Which error tells more: that of the last try, or that there is no way to try again."""
    no_way.operation = opcode_name(opcode)
    if trouble is None or (isinstance(no_way, ServersUnavailable) and not isinstance(trouble, TimedOut)):
        return no_way
    return trouble


def _wait_before_next(tries: int, deadline: float, trouble: RcacheError) -> None:
    """Back off, unless a lost connection needs only to be made anew. Raises the trouble if no other try may follow."""
    wait_s = back_off_seconds(BACK_OFF_FIRST_SECONDS, BACK_OFF_MAX_SECONDS, tries - 1)
    wait_s = random.uniform(wait_s / 2, wait_s)  # noqa: S311 - spreads clients, guards nothing
    if tries == 1 and isinstance(trouble, (ConnectionLost, TimedOut)):
        wait_s = 0.0
    if tries >= TRIES_MAX or monotonic() + wait_s >= deadline:
        raise trouble from trouble.__cause__
    time.sleep(wait_s)
