"""A call: one request carried to an answer or an error, over as many tries as its budget and its nature allow.

What it is: where a request goes, and the rule of what may be sent again. A read may, whatever became of it. A write may only
if it surely was not executed; otherwise its outcome is unknown and the error says so.
Which thread runs it: the caller's.
What it owns: nothing between calls.
What it must not know: what keys and values are.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from time import monotonic
from typing import Any
from zlib import crc32

from rcache_client.answers import reason_of, request_layout
from rcache_client.budget import SECONDS_MAX, checked_seconds
from rcache_client.connection import Connection, Setback, Trouble
from rcache_client.door import Door, DoorState
from rcache_client.errors import (
    BudgetSpent,
    ConnectionLost,
    NotExecuted,
    OutcomeUnknown,
    PoolExhausted,
    PrimaryUnavailable,
    ProtocolError,
    RcacheError,
    ServersUnavailable,
    TimedOut,
    error_of,
)
from rcache_client.retries import Failed, Retries
from rcache_client.routing import Router, Table
from rcache_client.servers import UNDIVIDED_SECONDS, Doors, Unreached
from rcache_client.view import BadView, View
from rcache_client.wire.opcodes import READ_OPCODES, Opcode, Status, StatusClass, opcode_name, status_class, status_name

SHARE_OF_READ = 0.25
"""The part of what is left of the budget that a read waits for one node, where another may come to answer in its place."""

SHARE_STEPS = 50
"""That wait is a multiple of a fiftieth of a second, so that it is most often the same as before."""

PATIENT_OPCODES = frozenset({Opcode.FLUSH})
"""One answer for work on all items: it may take the whole budget, not just `read_timeout`."""

ANYWHERE_OPCODES = frozenset({Opcode.PING, Opcode.STATS, Opcode.PERSIST, Opcode.VIEW})
"""What is asked of whoever answers, not of the node that a key, or a part of all keys, belongs to."""

_VIEW = request_layout(Opcode.VIEW)

_LEAVING = frozenset({Status.STOPPING, Status.SHUTTING_DOWN})

_REFUSED = int(StatusClass.REFUSED)

_UP = DoorState.UP

_NOTHING = nullcontext()

Answer = tuple[int, Any]
"""The status of an answer, of the ANSWERED class, and the values of its payload."""


class Caller:
    """Carries out calls through a client's doors. Thread-safe."""

    def __init__(self, doors: Doors, router: Router, budget: float, read_timeout: float) -> None:
        self._doors = doors
        self._router = router
        self._budget = budget
        self._read_timeout = read_timeout

    def deadline(self, budget: float | None) -> float:
        """When a call that begins now must end; `budget` in seconds, None for the client's own."""
        return monotonic() + (self._budget if budget is None else checked_seconds("budget", budget))

    def frame_bytes_max(self, deadline: float) -> int:
        """The longest frame, header included, that the servers take."""
        return self._doors.frame_bytes_max(deadline)

    @property
    def known_table(self) -> Table:
        """As `table`, but without asking anybody."""
        return self._router.table

    def table(self, deadline: float) -> Table:
        """Which door to go through for each key, as far as it is known. Blocks to the deadline at most."""
        return self._router.learnt_table(deadline)

    def retries(self, deadline: float) -> Retries:
        """The course of one call's tries."""
        return Retries(self._router, deadline)

    def call(self, opcode: int, payload: bytes, deadline: float, key: bytes | None = None) -> Answer:
        """The answer to one request, from the node that answers for `key`; without one, from any. Blocks to the deadline.

        Raises every kind of `RcacheError` but those of serializers and many-key calls.
        """
        outcome = self._try_once(opcode, payload, deadline, key)
        if outcome.__class__ is tuple:  # nearly always
            return outcome
        retries = self.retries(deadline)
        while isinstance(outcome, Failed):
            retries.wait(outcome)
            outcome = self._try_once(opcode, payload, deadline, key)
        return outcome

    def asking_for(self, keys: Sequence[str | bytes]) -> AbstractContextManager[None]:  # noqa: ARG002
        """Stands around what is asked about these keys by `try_at` and the like, from before it is sent until it has ended."""
        return _NOTHING  # whoever keeps what was read (`near_cache`) has its own

    def asking_for_all(self) -> AbstractContextManager[None]:
        """As `asking_for`, of what may change any key."""
        return _NOTHING

    def view(self, deadline: float) -> View:
        """The newest view, after one server at least was asked. Blocks to the deadline; raises as `call` does."""
        _, values = self.call(Opcode.VIEW, _VIEW.encode(self._router.table.epoch), deadline)
        try:
            if values[1]:
                self._router.take_in(values[1])
        except BadView as error:
            raise ProtocolError(str(error), operation="VIEW") from error
        view = self._router.table.view
        if view is None:
            self._doors.check_open()
            raise ProtocolError("no view was told", operation="VIEW")
        return view

    def _try_once(self, opcode: int, payload: bytes, deadline: float, key: bytes | None) -> Answer | Failed:
        """One try, at the primary of that key's bucket; without a key at any server. Raises what no other try would mend."""
        table = self._router.table
        if key is None:
            return self.try_at(opcode, payload, None, table, deadline, by_key=False)
        door = table.doors[crc32(key) & table.mask]
        if door is None:
            table = self._router.learnt_table(deadline)
            door = table.door_of(key)
        return self.try_at(opcode, payload, door, table, deadline)

    def try_at(
        self, opcode: int, payload: bytes, door: Door | None, table: Table, deadline: float, *, by_key: bool = True
    ) -> Answer | Failed:
        """One try through that door; through any where nothing is known of the view. Raises what no other try would mend."""
        connection = door.pool.take_idle() if door is not None and door.state is _UP else None
        if door is None or connection is None:
            try:
                door, connection = self.open(door, table, by_key, deadline)
            except (Unreached, ServersUnavailable, BudgetSpent, PoolExhausted) as trouble:
                return not_sent(opcode, trouble, table, door)
        wait_s = self.wait_seconds(opcode, True, deadline) if table.is_shared else self._read_timeout
        try:
            answer = connection.exchange(opcode, payload, deadline, wait_s)
        except Setback as setback:
            door.pool.discard(connection)
            return self.failed(opcode, setback, door, table, wait_s)
        except BudgetSpent as spent:
            door.pool.give(connection)
            return not_sent(opcode, spent, table, door)
        except BaseException:
            door.pool.discard(connection)
            raise
        if answer[0] >= _REFUSED or connection.epoch > self._router.epoch_seen or door.failures or door.silences:
            return self.settled(opcode, answer, door, connection, table, deadline)
        door.pool.give(connection)
        return answer

    def open(self, door: Door | None, table: Table, by_key: bool, deadline: float) -> tuple[Door, Connection]:
        """A connection through that door; any door's where there is none and need be none. Raises `Unreached` too."""
        if door is not None:
            return door, self._doors.reach(door, deadline)
        if by_key and table.view is not None:
            self._doors.check_open()
            raise Unreached(f"nobody is the primary of its bucket in the view of epoch {table.epoch}")
        return self._doors.take(deadline)

    def wait_seconds(self, opcode: int, is_shared: bool, deadline: float) -> float:
        """How long to wait for the next bytes of an answer; a read less long where another node may come to answer instead."""
        if opcode in PATIENT_OPCODES:
            return SECONDS_MAX
        if opcode not in READ_OPCODES or not is_shared:
            return self._read_timeout
        share = int((deadline - monotonic()) * SHARE_OF_READ * SHARE_STEPS) / SHARE_STEPS
        return min(self._read_timeout, max(share, UNDIVIDED_SECONDS))

    def settled(
        self, opcode: int, answer: Answer, door: Door, connection: Connection, table: Table, deadline: float
    ) -> Answer | Failed:
        """What an answer means for the call, for the door, and for what is known of the view; the connection is given back."""
        status, values = answer
        epoch = connection.epoch
        if epoch > self._router.epoch_seen and status < _REFUSED and opcode not in ANYWHERE_OPCODES:
            self._router.notice(connection, deadline)
        door.pool.give(connection)
        if door.failures or door.silences:
            self._doors.answered(door)
        if status < _REFUSED:
            return answer
        leaving = status in _LEAVING
        if leaving:
            self._doors.fail(door, status_name(status))
        error = _error_of_status(opcode, status, reason_of(values), door.name)
        if status_class(status) is StatusClass.ELSEWHERE:
            knows_more = epoch > table.epoch  # else nobody is known to, and it may be the one who never will
            return Failed(error, door if knows_more else None, elsewhere=True, used=table.epoch, wanted=epoch)
        return Failed(error, door, elsewhere=leaving and table.is_shared, used=table.epoch)

    def failed(self, opcode: int, setback: Setback, door: Door, table: Table, wait_s: float) -> Failed:
        """What a setback means for the call and for the door. The connection is gone."""
        in_full = setback.waited_in_full
        if in_full and wait_s < self._read_timeout:
            setback.name_limit("its share of the call's budget", in_full=True)
            setback.waited_in_full = False  # that the budget is small is not the server's fault
        else:
            setback.name_limit(f"read_timeout of {self._read_timeout:g} s", in_full=in_full)
        if setback.trouble is Trouble.SILENT:
            self._doors.fell_silent(door, setback)
        elif setback.status in _LEAVING:
            self._doors.fail(door, setback.reason)
        error = _error_of_setback(opcode, setback, door.name)
        return Failed(error, door, elsewhere=table.is_shared and opcode not in ANYWHERE_OPCODES, used=table.epoch)


def not_sent(opcode: int, trouble: Unreached | RcacheError, table: Table, door: Door | None) -> Failed:
    """Nothing was sent: the node that answers for the key cannot be used, or none can."""
    if isinstance(trouble, RcacheError):
        trouble.operation = opcode_name(opcode)
        return Failed(trouble, door, no_way=True)
    error = PrimaryUnavailable(trouble.why, operation=opcode_name(opcode))
    error.__cause__ = trouble.__cause__
    return Failed(error, door, elsewhere=True, used=table.epoch)


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
