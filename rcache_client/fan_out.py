"""Several requests at once: each through its door, all sent before the first answer is awaited.

What it is: one try of what a many-key call, or a call on all nodes, asks of each node.
Which thread runs it: the caller's. It needs no others: a server answers into a connection that nobody reads yet.
What it owns: the connections it sent on, until each is settled.
What it must not know: what is asked, and whether it may be sent again.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import monotonic
from typing import Any, NamedTuple

from rcache_client.calls import Caller, not_sent
from rcache_client.connection import Connection, Setback
from rcache_client.door import Door, DoorState
from rcache_client.errors import RcacheError
from rcache_client.retries import Failed
from rcache_client.routing import Table
from rcache_client.servers import UNDIVIDED_SECONDS, Unreached

Request = tuple[Door | None, bytes]
"""The door that it must go through (None: any, where nothing is known of the view), and its payload."""


class Answered(NamedTuple):
    """An answer; `epoch` is that of the view which its node goes by, `door` the one it came through."""

    status: int
    values: Any
    epoch: int
    door: Door


def try_all(caller: Caller, opcode: int, requests: Sequence[Request], table: Table, deadline: float) -> list[Answered | Failed]:
    """One try of each request; what it came to, in the same order. Blocks to the deadline at most. Raises no `RcacheError`."""
    wait_s = caller.wait_seconds(opcode, table.is_shared, deadline)
    question = _Question(caller, opcode, table, deadline, wait_s)
    tries = [_Try(question, door, payload) for door, payload in requests]
    try:
        if len(tries) > 1:
            for one in tries:
                one.send_if_idle()
        for one in tries:
            one.send()  # where it must be connected first, the others' requests have left already
        until = monotonic() + wait_s
        return [one.receive(until) for one in tries]
    finally:
        for one in tries:
            one.drop()


class _Question(NamedTuple):
    """What all tries have in common; `wait_s` is the longest wait for the next bytes of an answer."""

    caller: Caller
    opcode: int
    table: Table
    deadline: float
    wait_s: float


class _Try:
    """One request, from its door to its answer."""

    __slots__ = ("_connection", "_door", "_failed", "_payload", "_question")

    def __init__(self, question: _Question, door: Door | None, payload: bytes) -> None:
        self._question = question
        self._door = door
        self._payload = payload
        self._connection: Connection | None = None
        self._failed: Failed | None = None

    def send_if_idle(self) -> None:
        """Send it if a connection is idle. Blocks for what the kernel does not take at once."""
        if self._door is not None and self._door.state is DoorState.UP:
            self._connection = self._door.pool.take_idle()
            if self._connection is not None:
                self._begin(self._door, self._connection)

    def send(self) -> None:
        """Send it if it was not yet, making a connection if need be."""
        if self._connection is not None or self._failed is not None:
            return
        caller, opcode, table, deadline, _ = self._question
        try:
            self._door, self._connection = caller.open(self._door, table, True, deadline)
        except (Unreached, RcacheError) as trouble:
            self._failed = not_sent(opcode, trouble, table, self._door)
        else:
            self._begin(self._door, self._connection)

    def receive(self, until: float) -> Answered | Failed:
        """What it came to. `until`: when the wait for all of them ends, but each gets an instant."""
        if self._failed is not None:
            return self._failed
        caller, opcode, table, deadline, wait_s = self._question
        door, connection = self._door, self._connection
        assert door is not None
        assert connection is not None
        connection.cut_wait(max(until - monotonic(), min(UNDIVIDED_SECONDS, wait_s)))
        try:
            answer = connection.finish()
        except Setback as setback:
            self.drop()
            return caller.failed(opcode, setback, door, table, wait_s)
        self._connection = None
        epoch = connection.epoch
        outcome = caller.settled(opcode, answer, door, connection, table, deadline)
        return outcome if isinstance(outcome, Failed) else Answered(*outcome, epoch, door)

    def drop(self) -> None:
        """Close the connection of one that was not settled: it failed, or all of them were interrupted."""
        if self._connection is not None and self._door is not None:
            self._door.pool.discard(self._connection)
            self._connection = None

    def _begin(self, door: Door, connection: Connection) -> None:
        caller, opcode, table, deadline, wait_s = self._question
        try:
            connection.begin(opcode, self._payload, deadline, wait_s)
        except Setback as setback:
            self.drop()
            self._failed = caller.failed(opcode, setback, door, table, wait_s)
        except RcacheError as error:  # before anything was sent
            self._connection = None
            door.pool.give(connection)
            self._failed = Failed(error, door)
