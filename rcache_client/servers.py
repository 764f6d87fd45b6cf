"""The doors: the addresses a client was given, and those of the nodes it learnt of, all of which lead to one service.

What it is: which door the next call goes through, and what is known of each. Which node answers for a key is not decided here
(that is `routing`).
Which thread runs it: any; the lock is held for looking and marking only, never during I/O.
What it owns: the doors and each door's pool. A door that the client was given (a seed) stays for the client's life; that of a
node stays while the node is in the view.
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
4. A seed is never dropped, whatever a view says.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from threading import Condition, Lock
from time import monotonic

from rcache_client.address import Address, parse_address
from rcache_client.budget import back_off_seconds
from rcache_client.connection import Connection, Setback, Trouble
from rcache_client.door import Door, DoorState
from rcache_client.errors import BudgetSpent, ClientClosed, PoolExhausted, ServersUnavailable
from rcache_client.view import Node
from rcache_client.wire.opcodes import Status

BACK_OFF_FIRST_SECONDS = 0.1
"""A restart takes about that long."""

BACK_OFF_MAX_SECONDS = 5.0
"""A server that is back is found within this time, at the price of one probe by one caller."""

SILENCES_MAX = 3
"""So many times in a row a small budget may run out on a door before the door, not the budget, is blamed."""

UNDIVIDED_SECONDS = 0.1
"""Less time than that is not divided between one door and the next: each would have too little."""


class Unreached(Exception):
    """A door cannot be used now, and others can: the key's bucket may have another primary by now. Within the client only."""

    def __init__(self, why: str, cause: BaseException | None = None) -> None:
        super().__init__(why)
        self.why = why
        self.__cause__ = cause


class Doors:
    """All doors of one client. Thread-safe."""

    def __init__(
        self,
        seeds: Sequence[Door],
        *,
        wait_for_servers: bool,
        make_door: Callable[[Address], Door],
        jitter: Callable[[float, float], float] = random.uniform,
    ):
        """`make_door` makes the door of a node. `jitter(low, high)` picks a number between, so that clients that failed
        together do not probe together."""
        self._seeds = tuple(seeds)
        self._doors = self._seeds
        self._addresses: dict[str, Address] = {}
        self._wait_for_servers = wait_for_servers
        self._make_door = make_door
        self._jitter = jitter
        self._turn = itertools.count()
        self._all_up = True
        self._closed = False
        self._begin()

    def _begin(self) -> None:
        self._lock = Lock()
        self._changed = Condition(self._lock)

    @property
    def several(self) -> bool:
        """Whether there is more than one door."""
        return len(self._doors) > 1

    def take(self, deadline: float) -> tuple[Door, Connection]:
        """A ready connection and its door: the next seed in turn that can be used, or else a node's. Blocks to the deadline.

        Each door is tried once. Raises `ServersUnavailable`, `BudgetSpent`, `PoolExhausted`, `ClientClosed`, `Refused`,
        `ProtocolError`.
        """
        tried: set[Door] = set()
        if self._all_up:  # nearly always, and then there is nothing to lock
            door, probing = self._seeds[next(self._turn) % len(self._seeds)], False
            connection = door.pool.take_idle()
        else:
            door, probing = self._choose(deadline, tried)
            connection = None
        while connection is None:
            connection = self._connect(door, probing, self._probe_deadline(door, deadline) if probing else deadline)
            if connection is None:
                self._check_budget(door, deadline)
                tried.add(door)
                door, probing = self._choose(deadline, tried)
        return door, connection

    def reach(self, door: Door, deadline: float) -> Connection:
        """A ready connection through that very door. Blocks to the deadline, or half of what is left while other doors are up.

        Raises `Unreached` where another door may know more, and all that `take` raises.
        """
        tried = False
        while True:
            probing = self._claim(door, tried, deadline)
            limit = self._probe_deadline(door, deadline)
            try:
                connection = self._connect(door, probing, limit)
            except PoolExhausted as error:
                if limit >= deadline:
                    raise
                raise Unreached(error.what) from None
            if connection is not None:
                return connection
            self._check_budget(door, deadline)
            tried = True

    def open(self, door: Door, probing: bool, deadline: float) -> Connection | None:
        """A ready connection through a door of `candidates`; None where there is none. Raises what `reach` does."""
        connection = None if probing else door.pool.take_idle()
        return self._connect(door, probing, deadline) if connection is None else connection

    def candidates(self, first: Door | None, last: Door | None, *, only_up: bool = False) -> Iterator[tuple[Door, bool]]:
        """Every door that can be used, once, in a random order as each is asked for, and whether it must be probed.

        Those that are up come before the others, `first` before all, `last` behind those of its kind.
        """
        doors = list(self._doors)
        random.shuffle(doors)
        doors.sort(key=lambda door: (door is not first, door.state is not DoorState.UP, door is last, door.silences > 0))
        for door in doors:
            with self._lock:
                usable = not self._closed and (door.state is DoorState.UP or (not only_up and self._usable_locked(door)))
                probing = usable and self._claim_locked(door)
            if usable:
                yield door, probing

    def follow(self, nodes: Mapping[str, Node], changed: Container[str]) -> dict[str, Door] | None:
        """Have a door for each of these nodes, and for no other but the seeds; return them by the nodes' names. None: closed.

        A seed that has the node's address, or is known to lead to it, is its door. The door of one that `changed` may be probed
        at once. Idle connections of doors that go are closed, and the others' when their calls end.
        """
        with self._changed:
            if self._closed:
                return None
            self._note_moves(nodes)
            by_address = {door.address: door for door in reversed(self._doors)}
            by_name = {door.leads_to: door for door in reversed(self._seeds) if door.leads_to}
            found: dict[str, Door] = {}
            for name, node in nodes.items():
                address = parse_address(node.address)
                found[name] = by_address.get(address) or by_name.get(name) or self._make_door(address)
                if name in changed and found[name].state is DoorState.FAILED:
                    found[name].retry_at = 0.0
            kept = dict.fromkeys((*self._seeds, *found.values()))
            gone = [door for door in self._doors if door not in kept]
            self._doors = tuple(kept)
            self._changed.notify_all()
        for door in gone:
            door.pool.dissolve()
        return found

    def _note_moves(self, nodes: Mapping[str, Node]) -> None:
        """A node that has another address now has left the one that a seed was known to lead to it by: who answers there is to
        be seen anew."""
        for name, node in nodes.items():
            address = parse_address(node.address)
            if self._addresses.setdefault(name, address) != address:
                self._addresses[name] = address
                for seed in self._seeds:
                    if seed.leads_to == name:
                        seed.leads_to = None

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
                self.check_open()
                chosen = self._choose_locked(tried)
                if chosen is not None:
                    return chosen
                if not self._wait_for_servers or monotonic() >= deadline:
                    raise self._unavailable_locked()
                self._changed.wait(self._pause_locked(deadline))
                tried.clear()

    def _choose_locked(self, tried: set[Door]) -> tuple[Door, bool] | None:
        first = next(self._turn) % len(self._seeds)
        for door in (*self._seeds[first:], *self._seeds[:first], *self._doors[len(self._seeds) :]):
            if door not in tried and self._usable_locked(door):
                return door, self._claim_locked(door)
        return None

    def _claim(self, door: Door, tried: bool, deadline: float) -> bool:
        """Whether the caller must probe that door, which can be used. Blocks only with `wait_for_servers`."""
        with self._changed:
            while True:
                self.check_open()
                if not tried and self._usable_locked(door):
                    return self._claim_locked(door)
                if any(other is not door and self._usable_locked(other) for other in self._doors):
                    raise Unreached(f"{door.name}: {door.why or 'could not be used'}", door.cause)
                if not self._wait_for_servers or monotonic() >= deadline:
                    raise self._unavailable_locked()
                self._changed.wait(self._pause_locked(deadline))
                tried = False

    @staticmethod
    def _usable_locked(door: Door) -> bool:
        return door.state is DoorState.UP or (door.state is DoorState.FAILED and monotonic() >= door.retry_at)

    @staticmethod
    def _claim_locked(door: Door) -> bool:
        """Whether it must be probed; then the caller is the one who does."""
        probing = door.state is not DoorState.UP
        if probing:
            door.state = DoorState.PROBING
        return probing

    def _pause_locked(self, deadline: float) -> float:
        """How long to wait for a change: to the next probe that falls due, or the deadline."""
        due = [door.retry_at for door in self._doors if door.state is DoorState.FAILED]
        return max(0.0, min([deadline, *due]) - monotonic())

    def _connect(self, door: Door, probing: bool, deadline: float) -> Connection | None:
        """A connection through that door; None where it has failed and another door may be tried."""
        try:
            connection = door.pool.take(deadline)
        except (Setback, PoolExhausted) as trouble:
            if isinstance(trouble, PoolExhausted) and not probing:
                raise
            self._note_failure(door, probing, trouble)
            return None
        except BaseException:
            if probing:
                self._came_back(door)  # the server is alive and turned us down, or the caller was interrupted: no verdict
            raise
        if probing:
            self._came_back(door)
        return connection

    @staticmethod
    def _check_budget(door: Door, deadline: float) -> None:
        if monotonic() >= deadline:
            raise BudgetSpent(f"the budget ended before a connection was ready: {door.why}", door.name) from door.cause

    def _probe_deadline(self, door: Door, deadline: float) -> float:
        """Half of what is left, if another door is up: one that fails must leave time for a call that works."""
        now = monotonic()
        others_up = any(other is not door and other.state is DoorState.UP for other in self._doors)
        return (now + deadline) / 2 if others_up and deadline - now > UNDIVIDED_SECONDS else deadline

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
        self._all_up = self._all_up and not door.is_seed
        self._changed.notify_all()

    def _came_back(self, door: Door) -> None:
        with self._changed:
            door.state = DoorState.UP
            self._all_up = not self._closed and all(d.state is DoorState.UP for d in self._seeds)
            self._changed.notify_all()

    def check_open(self) -> None:
        """Raises `ClientClosed`."""
        if self._closed:
            raise ClientClosed("the client was closed")

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
