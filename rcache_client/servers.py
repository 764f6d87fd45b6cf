"""The doors: the addresses a client was given, all of which lead to one service.

What it is: which door the next call goes through, and what is known of each. Keys are never hashed over doors: the service
itself knows where a key lives.
Which thread runs it: any; the lock is held for looking and marking only, never during I/O.
What it owns: the doors, for the life of the client (an address is never dropped), and each door's pool.
What it must not know: what a request says, and whether it may be sent again.

A door's states, and who moves it between them:

    UP --- a connection could not be made, or the server fell silent ---> FAILED until a time
    FAILED --- its time has come: one caller claims the probe ---> PROBING
    PROBING --- a connection was made, or refused by a server that is alive ---> UP
    PROBING --- it was not ---> FAILED, for twice as long

Invariants:
1. Only the caller who claimed a door's probe moves it out of PROBING.
2. While no door is UP and no probe is due, a call fails at once (or, with `wait_for_servers`, waits): a dead cache does not
   take its application down with it.
3. The back-off falls back to its shortest only when a request was answered, not when a connection was made: a server that
   greets and then says nothing more is still dead.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from enum import Enum
from threading import Condition, Lock
from time import monotonic

from rcache_client.address import Address, Endpoint, LookupFailed, Resolver
from rcache_client.budget import back_off_seconds
from rcache_client.connection import Connection, Setback, Trouble, connect
from rcache_client.errors import BudgetSpent, ClientClosed, PoolExhausted, ServersUnavailable
from rcache_client.handshake import Greeter, Welcome
from rcache_client.pool import Pool
from rcache_client.wire.opcodes import Status

BACK_OFF_FIRST_SECONDS = 0.1
"""A restart takes about that long."""

BACK_OFF_MAX_SECONDS = 5.0
"""A server that is back is found within this time, at the price of one probe by one caller."""

SILENCES_MAX = 3
"""So many times in a row a small budget may run out on a door before the door, not the budget, is blamed."""


class DoorState(Enum):
    UP = "up"
    FAILED = "failed"
    PROBING = "probing"


class Door:
    """One address: its pool, and what `Doors` knows of it (guarded by the lock there, but for what the fast path reads)."""

    def __init__(self, address: Address, greeter: Greeter, connections_max: int, connect_timeout: float) -> None:
        self.name = str(address)
        self.state = DoorState.UP
        self.why = ""
        self.cause: BaseException | None = None
        self.retry_at = 0.0
        self.failures = 0
        self.silences = 0
        self.welcome: Welcome | None = None
        self.resolver = Resolver(address)
        self.pool = Pool(self.name, connections_max, self._open_connection)
        self._greeter = greeter
        self._connect_timeout = connect_timeout

    def _open_connection(self, deadline: float) -> Connection:
        """Resolve, connect and greet, within `connect_timeout` for all three. Raises `Setback` and what greeting raises."""
        limit = min(deadline, monotonic() + self._connect_timeout)
        try:
            connection = connect(self._resolve(limit), self.name, limit)
            try:
                self.welcome = self._greeter.greet(connection, limit, self._connect_timeout)
            except BaseException:
                connection.close()
                raise
        except Setback as setback:
            setback.maybe_executed = False  # nothing of the user's has left
            setback.name_limit(f"connect_timeout of {self._connect_timeout:g} s", in_full=limit < deadline)
            raise
        return connection

    def _resolve(self, deadline: float) -> list[Endpoint]:
        try:
            return self.resolver.resolve(deadline)
        except LookupFailed as error:
            raise Setback(Trouble.CLOSED, str(error)) from error.__cause__
        except TimeoutError as error:
            raise Setback(Trouble.SILENT, str(error)) from error

    def forget(self) -> None:
        """Start anew in a forked child. A probe of the parent's is due again here: the thread that made it is gone."""
        self.resolver.forget()
        self.pool.forget()
        if self.state is DoorState.PROBING:
            self.state = DoorState.FAILED
            self.retry_at = 0.0


class Doors:
    """All doors of one client. Thread-safe."""

    def __init__(
        self, doors: Sequence[Door], *, wait_for_servers: bool, jitter: Callable[[float, float], float] = random.uniform
    ):
        """`jitter(low, high)` picks a number between, so that clients that failed together do not probe together."""
        self._doors = tuple(doors)
        self._wait_for_servers = wait_for_servers
        self._jitter = jitter
        self._turn = itertools.count()
        self._all_up = True
        self._closed = False
        self._begin()

    def _begin(self) -> None:
        self._lock = Lock()
        self._changed = Condition(self._lock)

    def take(self, deadline: float) -> tuple[Door, Connection]:
        """A ready connection and its door: the next one in turn that can be used. Blocks to the deadline at most.

        Each door is tried once. Raises `ServersUnavailable`, `BudgetSpent`, `PoolExhausted`, `ClientClosed`, `Refused`,
        `ProtocolError`.
        """
        tried: set[Door] = set()
        if self._all_up:  # nearly always, and then there is nothing to lock
            door, probing = self._doors[next(self._turn) % len(self._doors)], False
            connection = door.pool.take_idle()
        else:
            door, probing = self._choose(deadline, tried)
            connection = None
        while connection is None:
            connection = self._connect(door, probing, deadline)
            if connection is None:
                tried.add(door)
                door, probing = self._choose(deadline, tried)
        return door, connection

    def fail(self, door: Door, why: str, cause: BaseException | None = None) -> None:
        """Mark a door as failed, unless somebody already did; its idle connections are dropped."""
        with self._changed:
            if door.state is not DoorState.UP:  # invariant 1
                return
            self._fail_locked(door, why, cause)
        door.pool.drop_idle()

    def fell_silent(self, door: Door, setback: Setback) -> None:
        """A request was not answered in time: the door has failed if it had its whole time, or too often."""
        door.silences += 1
        if setback.waited_in_full or door.silences >= SILENCES_MAX:
            self.fail(door, setback.reason)

    def answered(self, door: Door) -> None:
        """A request was answered: all is forgiven (invariant 3)."""
        with self._changed:
            door.silences = 0
            if door.state is DoorState.UP:
                door.failures = 0

    def frame_bytes_max(self, deadline: float) -> int:
        """The longest frame that every server takes that was greeted so far; greets one if none was."""
        known = [door.welcome.frame_bytes_max for door in self._doors if door.welcome is not None]
        if known:
            return min(known)
        door, connection = self.take(deadline)
        door.pool.give(connection)
        return connection.frame_bytes_max

    def retire(self) -> list[Connection]:
        """Let nobody in any more, wake all who wait; return the idle connections."""
        with self._changed:
            self._closed = True
            self._all_up = False  # the fast path looks at nothing else
            self._changed.notify_all()
        return [connection for door in self._doors for connection in door.pool.retire()]

    def forget(self) -> None:
        """Start anew in a forked child."""
        self._begin()
        for door in self._doors:
            door.forget()

    def _choose(self, deadline: float, tried: set[Door]) -> tuple[Door, bool]:
        """The next door in turn, and whether the caller must probe it. Blocks only with `wait_for_servers`."""
        with self._changed:
            while True:
                if self._closed:
                    raise ClientClosed("the client was closed")
                chosen = self._choose_locked(tried)
                if chosen is not None:
                    return chosen
                if not self._wait_for_servers or monotonic() >= deadline:
                    raise self._unavailable_locked()
                self._changed.wait(self._pause_locked(deadline))
                tried.clear()

    def _choose_locked(self, tried: set[Door]) -> tuple[Door, bool] | None:
        first = next(self._turn)
        for place in range(len(self._doors)):
            door = self._doors[(first + place) % len(self._doors)]
            if door in tried:
                continue
            if door.state is DoorState.UP:
                return door, False
            if door.state is DoorState.FAILED and monotonic() >= door.retry_at:
                door.state = DoorState.PROBING
                return door, True
        return None

    def _pause_locked(self, deadline: float) -> float:
        """How long to wait for a change: to the next probe that falls due, or the deadline."""
        due = [door.retry_at for door in self._doors if door.state is DoorState.FAILED]
        return max(0.0, min([deadline, *due]) - monotonic())

    def _connect(self, door: Door, probing: bool, deadline: float) -> Connection | None:
        """A connection through that door; None where it has failed and another door may be tried."""
        try:
            connection = door.pool.take(self._probe_deadline(deadline) if probing else deadline)
        except (Setback, PoolExhausted) as trouble:
            if isinstance(trouble, PoolExhausted) and not probing:
                raise
            self._note_failure(door, probing, trouble)
            if monotonic() >= deadline:
                raise BudgetSpent(
                    f"the budget ended before a connection was ready: {trouble}", door.name
                ) from trouble.__cause__
            return None
        except BaseException:
            if probing:
                self._came_back(door)  # the server is alive and turned us down, or the caller was interrupted: no verdict
            raise
        if probing:
            self._came_back(door)
        return connection

    def _probe_deadline(self, deadline: float) -> float:
        """Half of what is left, if another door is up: a probe that fails must leave time for a call that works."""
        if any(door.state is DoorState.UP for door in self._doors):
            return (monotonic() + deadline) / 2
        return deadline

    def _note_failure(self, door: Door, probing: bool, trouble: Setback | PoolExhausted) -> None:
        why = trouble.reason if isinstance(trouble, Setback) else trouble.what
        cause = trouble.__cause__
        if probing:
            with self._changed:
                self._fail_locked(door, why, cause)
        elif isinstance(trouble, Setback):
            door.why = why  # even where it has not failed
            if trouble.status == Status.TOO_MANY_CONNECTIONS and door.pool.connections:
                return  # the connections we have still work
            if trouble.trouble is Trouble.SILENT:
                self.fell_silent(door, trouble)
            else:
                self.fail(door, why, cause)

    def _fail_locked(self, door: Door, why: str, cause: BaseException | None) -> None:
        back_off = back_off_seconds(BACK_OFF_FIRST_SECONDS, BACK_OFF_MAX_SECONDS, door.failures)
        door.failures += 1
        door.state = DoorState.FAILED
        door.retry_at = monotonic() + self._jitter(back_off / 2, back_off)
        door.why = why
        door.cause = cause.with_traceback(None) if cause is not None else None  # frames would keep sockets alive
        self._all_up = False
        self._changed.notify_all()

    def _came_back(self, door: Door) -> None:
        with self._changed:
            door.state = DoorState.UP
            self._all_up = not self._closed and all(d.state is DoorState.UP for d in self._doors)
            self._changed.notify_all()

    def _unavailable_locked(self) -> ServersUnavailable:
        now = monotonic()
        parts = []
        for door in self._doors:
            wait_s = max(0.0, door.retry_at - now)
            again = f"; tried again in {wait_s:.1f} s" if door.state is DoorState.FAILED else ""
            parts.append(f"{door.name}: {door.why or 'could not be used'}{again}")
        error = ServersUnavailable("no server can be used: " + ", ".join(parts))
        error.__cause__ = next((door.cause for door in self._doors if door.cause is not None), None)
        return error
