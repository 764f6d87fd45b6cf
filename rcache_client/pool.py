"""The connections to one server: taken for one request, given back after it, never more than a maximum.

What it is: an idle list, last in first out (so that a pool that is too large for its load lets the rest grow old), and a
queue of those who wait for a connection.
Which thread runs it: any; the one lock is held for list work only, never during I/O.
What it owns: every connection it opened, idle or in use, until that is closed.
What it must not know: what a request is, other servers.

Invariants:
1. places taken = connections open + connections being made <= connections_max.
2. Somebody waits only while all places are taken and none is idle. What is given back goes to the one who waited longest,
   not to whoever runs next: under Python's interpreter lock that would most often be the giver itself.
3. A connection handed to a waiter who left in the same moment is not lost: the waiter looks again under the lock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from threading import Lock
from time import monotonic

from rcache_client.budget import seconds_left
from rcache_client.connection import Connection, Setback, Trouble
from rcache_client.errors import ClientClosed, PoolExhausted

GOODBYE_SECONDS = 0.2
"""How long an end waits for the servers' answers: many times a round trip, and short for someone who wants to leave."""


class _Turn:
    """One who waits: `gate` is locked until something was granted, a connection or (None) the place to open one."""

    __slots__ = ("connection", "gate", "granted")

    def __init__(self) -> None:
        self.gate = Lock()
        self.gate.acquire()
        self.granted = False
        self.connection: Connection | None = None


class Pool:
    """A bounded set of connections to one server. Thread-safe."""

    def __init__(self, server: str, connections_max: int, open_connection: Callable[[float], Connection]) -> None:
        """`open_connection` takes a deadline and returns a connection that is ready, or raises."""
        self._server = server
        self._connections_max = connections_max
        self._open_connection = open_connection
        self._closed = False
        self._dissolved = False
        self._begin()

    def _begin(self) -> None:
        self._lock = Lock()
        self._idle: list[Connection] = []
        self._waiting: deque[_Turn] = deque()
        self._connections: set[Connection] = set()
        self._places = 0

    @property
    def connections(self) -> int:
        """How many connections are open or being made."""
        return self._places

    def take(self, deadline: float) -> Connection:
        """A connection that is ready; `give` or `discard` it afterwards. Blocks to the deadline at most.

        Raises `PoolExhausted`, `ClientClosed`, `Setback` after `dissolve`, and what opening one raises.
        """
        while True:
            connection = self._take_place(deadline)
            if connection is None:
                return self._open(deadline)
            if not connection.is_stale():
                connection.alone = False  # somebody else had it until now, or has another one
                return connection
            self.discard(connection)

    def take_idle(self) -> Connection | None:
        """As `take`, but None where no connection is idle. Never blocks."""
        while True:
            with self._lock:
                if not self._idle:  # a pool that was closed has none either
                    return None
                connection = self._idle.pop()
                alone = len(self._idle) + 1 == self._places
            if not connection.is_stale():
                connection.alone = alone
                return connection
            self.discard(connection)

    def give(self, connection: Connection) -> None:
        """Take a connection back for the next one who needs it. Never blocks, but for a last GOODBYE after `close`."""
        if connection.closed:
            self.discard(connection)
            return
        with self._lock:
            if connection in self._connections and not self._closed:
                if self._waiting:
                    self._hand_out_locked(connection)
                else:
                    self._idle.append(connection)
                return
            self._forget_locked(connection)
        if self._dissolved:
            connection.close()
        else:
            _say_goodbye([connection])

    def discard(self, connection: Connection) -> None:
        """Close a connection; its place goes to the next one who waits."""
        connection.close()
        with self._lock:
            self._forget_locked(connection)

    def drop_idle(self) -> None:
        """Close all idle connections at once, without a GOODBYE: the server was found not to answer."""
        with self._lock:
            dropped, self._idle = self._idle, []
            for connection in dropped:
                self._forget_locked(connection)
        for connection in dropped:
            connection.close()

    def retire(self) -> list[Connection]:
        """Let nobody in any more; wake all who wait, and return the idle connections for `say_goodbye`."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
            self._connections.difference_update(idle)
            self._places -= len(idle)
            while self._waiting:
                self._grant(self._waiting.popleft(), None)
        return idle

    def dissolve(self) -> None:
        """Close the idle connections, and each other one when its call ends: the server is none of ours any more."""
        self._dissolved = True
        for connection in self.retire():
            connection.close()

    def forget(self) -> None:
        """Start anew in a forked child: close its copies of the parent's sockets, in use or not, saying nothing on them."""
        inherited = self._connections
        self._begin()
        for connection in inherited:
            connection.close()

    def _take_place(self, deadline: float) -> Connection | None:
        """An idle connection, or None: the caller now has a place and must open one or let go of it."""
        with self._lock:
            self._check_open()
            if self._idle:
                return self._idle.pop()
            if self._places < self._connections_max:  # invariant 1
                self._places += 1
                return None
            turn = _Turn()
            self._waiting.append(turn)
        return self._wait(turn, deadline)

    def _wait(self, turn: _Turn, deadline: float) -> Connection | None:
        began = monotonic()
        try:
            turn.gate.acquire(timeout=seconds_left(deadline))
        except BaseException:
            if not self._abandon(turn):
                self._pass_on(turn)
            raise
        if not turn.granted and self._abandon(turn):
            waited = f"all {self._connections_max} connections were in use for {monotonic() - began:.3f} s"
            raise PoolExhausted(waited, self._server)
        if turn.connection is None:
            self._check_open()
        return turn.connection

    def _abandon(self, turn: _Turn) -> bool:
        """Leave the queue. False: something was granted in the same moment (invariant 3)."""
        with self._lock:
            if not turn.granted:
                self._waiting.remove(turn)
            return not turn.granted

    def _pass_on(self, turn: _Turn) -> None:
        """Hand what was granted to one who was interrupted to the next who waits."""
        with self._lock:
            if turn.connection is None:
                self._release_place_locked()
            else:
                self._hand_out_locked(turn.connection)

    def _open(self, deadline: float) -> Connection:
        try:
            connection = self._open_connection(deadline)
        except BaseException:
            with self._lock:
                self._release_place_locked()
            raise
        with self._lock:
            self._connections.add(connection)
            connection.alone = self._places == 1
        return connection

    def _hand_out_locked(self, connection: Connection) -> None:
        if self._waiting:
            self._grant(self._waiting.popleft(), connection)  # invariant 2
        else:
            self._idle.append(connection)

    def _forget_locked(self, connection: Connection) -> None:
        """A connection that is known frees its place; one from before a fork, or from before `retire`, has none."""
        if connection in self._connections:
            self._connections.remove(connection)
            self._release_place_locked()

    def _release_place_locked(self) -> None:
        if self._waiting:
            self._grant(self._waiting.popleft(), None)
        else:
            self._places -= 1

    @staticmethod
    def _grant(turn: _Turn, connection: Connection | None) -> None:
        turn.connection = connection
        turn.granted = True
        turn.gate.release()

    def _check_open(self) -> None:
        if self._dissolved:
            raise Setback(Trouble.CLOSED, "the node left the cluster")
        if self._closed:
            raise ClientClosed("the client was closed", self._server)


def _say_goodbye(connections: list[Connection]) -> None:
    say_goodbye(connections, monotonic() + GOODBYE_SECONDS)


def say_goodbye(connections: list[Connection], deadline: float) -> None:
    """Say GOODBYE on all of them, then wait for the answers and the ends, to the deadline at most; close them."""
    for connection in connections:
        connection.send_goodbye()
    for connection in connections:
        connection.await_end(deadline)
