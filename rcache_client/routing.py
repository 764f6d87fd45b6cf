"""Routing: the newest view the client knows, the door of each key's primary, and how a newer view is fetched.

What it is: `Table`, which tells the door for a key, and `Router`, which keeps the newest one.
Which thread runs it: any. A table is constant and is replaced as a whole, so it is read without a lock. One thread at a time
fetches, on a connection like any other; those who need the same wait for it, each within its own budget.
What it owns: the table.
What it must not know: what a request says, and whether it may be sent again.

Locks: `_adopting`, then the doors' own. The router's other lock is held alone, and never during I/O.

Invariants:
1. Epochs only grow: a view is taken only if it is newer than the one that is there, and of the same cluster.
2. At most one fetch is under way, and the next begins FETCH_PAUSE_SECONDS after its end at the soonest. Who comes with an older
   table than there is now does not fetch at all.
3. A view that cannot be read changes nothing.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Condition, Lock
from time import monotonic
from typing import Any
from zlib import crc32

from rcache_client.answers import request_layout
from rcache_client.budget import seconds_left
from rcache_client.connection import Connection, Setback, Trouble
from rcache_client.door import Door
from rcache_client.errors import BudgetSpent, ClientClosed, RcacheError
from rcache_client.handshake import Greeter
from rcache_client.servers import UNDIVIDED_SECONDS, Doors
from rcache_client.view import LOST, BadView, View, parse_view
from rcache_client.wire.opcodes import Opcode, Status, StatusClass, status_class

FETCH_PAUSE_SECONDS = 0.005
"""A view is agreed on in a few milliseconds; who asks more often than that learns nothing."""

JITTER_SECONDS = 0.005
"""What sends one client to fetch a view most often sends them all; so they do not all ask in the same moment."""

NOTICE_SECONDS = 0.1
"""A reply that shows a newer epoch is no trouble: there is more time, and every client will see such a reply."""

NOTICE_WAIT_SECONDS = 0.1
"""A call whose answer is there already is not held up for longer than that."""

SHARE_OF_FETCH = 0.125
"""The part of the budget that one door may take to tell the view while there are others to ask."""


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """For each bucket the door of its primary. `doors` has as many as there are buckets, `mask` is one less. `only`: the door,
    where it is the same for all keys; `is_shared`: whether the view has several nodes, so that a key's primary may change;
    `every`: the doors of all nodes that are not lost."""

    view: View | None = None
    epoch: int = 0
    doors: list[Door | None] = field(default_factory=lambda: [None])
    mask: int = 0
    only: Door | None = None
    is_shared: bool = False
    every: tuple[Door, ...] = ()

    def door_of(self, key: bytes) -> Door | None:
        """The door of the primary of that key's bucket; None where nobody is, or nothing is known."""
        return self.doors[crc32(key) & self.mask]


class Router:
    """Keeps the newest table of one client. Thread-safe. `table` is read as it is."""

    def __init__(
        self,
        doors: Doors,
        greeter: Greeter,
        read_timeout: float,
        jitter: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self.table = Table()
        self.epoch_seen = 0
        """The newest epoch that was met in an answer to VIEW: only a newer one is worth asking for."""
        self._doors = doors
        self._greeter = greeter
        self._read_timeout = read_timeout
        self._jitter = jitter
        self._learnt = False
        self._closed = False
        self._not_before = 0.0
        self._due = 0.0
        self._begin()

    def _begin(self) -> None:
        self._changed = Condition(Lock())
        self._adopting = Lock()
        self._under_way = False

    def learnt_table(self, deadline: float) -> Table:
        """The table, after a first view was asked for if none was yet. Blocks to the deadline at most.

        It does without one, as it must with servers that have none; and a door that has failed is not probed for it, so that
        the others need not wait for the one who does.
        """
        if not self._learnt:
            self._fetch_alone(0, 0, deadline, None, is_first=True)
        return self.table

    def refresh(self, used: int, wanted: int, deadline: float, door: Door | None) -> bool:
        """Whether there is a newer table than that of epoch `used`, after one fetch at most. Blocks to the deadline.

        `wanted`: the epoch that a node named which sent us elsewhere: the node behind `door`; it is asked first. Without one,
        `door` is one that failed: it is asked last.
        """
        return self._fetch_alone(used, wanted, deadline, door, is_first=False)

    def notice(self, connection: Connection, deadline: float) -> None:
        """A good answer on `connection` shows a newer epoch: ask on that same connection, unless it is too soon."""
        now = monotonic()
        with self._changed:
            if self._under_way:
                return
            if not self._due:
                self._due = now + self._jitter(0.0, NOTICE_SECONDS)
            if now < self._due or now < self._not_before:
                return
            self._due = 0.0
            self._under_way = True
        try:
            self._ask(connection, min(deadline, now + NOTICE_WAIT_SECONDS), NOTICE_WAIT_SECONDS)
        except (Setback, RcacheError):
            pass  # it closed the connection if it must; the next answer shows the epoch again
        finally:
            self._end_fetch()

    def take_in(self, text: bytes) -> None:
        """Go by the view of that text if it is newer. Raises `BadView`."""
        view = parse_view(text)
        if view.cluster_id != self._greeter.cluster_id:
            raise BadView(f"a view of cluster {view.cluster_id.hex()}, not {self._greeter.cluster_id.hex()}")
        with self._adopting:
            if view.epoch > self.table.epoch:  # invariant 1
                self._adopt(view)

    def retire(self) -> None:
        """Wake all who wait for a view: there will be none."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def forget(self) -> None:
        """Start anew in a forked child; what is known stays known."""
        self._begin()

    def _adopt(self, view: View) -> None:
        before = self.table.view.nodes if self.table.view is not None else {}
        present = {name: node for name, node in view.nodes.items() if node.state != LOST}
        changed = {name for name, node in present.items() if before.get(name) != node}
        found = self._doors.follow(present, changed)
        if found is None:
            return
        doors = [found.get(bucket.primary) if bucket.primary is not None else None for bucket in view.buckets]
        only = doors[0] if all(door is doors[0] for door in doors) else None
        self.table = Table(view, view.epoch, doors, len(doors) - 1, only, len(present) > 1, tuple(found.values()))

    def _fetch_alone(self, used: int, wanted: int, deadline: float, door: Door | None, *, is_first: bool) -> bool:
        """One thread fetches, the others wait for what it finds (invariant 2)."""
        with self._changed:
            if self.table.epoch > used:
                return True
            if self._under_way:
                self._changed.wait_for(lambda: self._closed or not self._under_way, seconds_left(deadline))
                return self.table.epoch > used
            pause_s = 0.0 if is_first else max(self._jitter(0.0, JITTER_SECONDS), self._not_before - monotonic())
            self._under_way = True
        try:
            if pause_s:
                time.sleep(min(pause_s, seconds_left(deadline)))
            self._fetch(used, wanted, deadline, door, is_first)
        finally:
            self._end_fetch()
        return self.table.epoch > used

    def _end_fetch(self) -> None:
        with self._changed:
            self._under_way = False
            self._not_before = monotonic() + FETCH_PAUSE_SECONDS
            self._changed.notify_all()

    def _fetch(self, used: int, wanted: int, deadline: float, door: Door | None, is_first: bool) -> None:
        """Ask one door after the other until one has answered, and with a newer view if there must be one."""
        sent_elsewhere = wanted > used
        first, last = (door, None) if sent_elsewhere else (None, door)
        for candidate, probing in self._doors.candidates(first, last, only_up=is_first):
            left = seconds_left(deadline)
            share = max(UNDIVIDED_SECONDS, left * SHARE_OF_FETCH) if self._doors.several else left / 2
            until = monotonic() + min(share, left)
            if self._fetch_from(candidate, probing, until) and (self.table.epoch > used or not sent_elsewhere):
                return
            if monotonic() >= deadline:
                return

    def _fetch_from(self, door: Door, probing: bool, until: float) -> bool:
        """Whether that door answered, be it that it knows no views."""
        try:
            connection = self._doors.open(door, probing, until)
        except ClientClosed:
            raise
        except RcacheError:
            return False  # the call that needs the view meets the same, and says so
        if connection is None:
            return False
        try:
            answered = self._ask(connection, until, self._read_timeout)
        except (Setback, BudgetSpent) as trouble:
            door.pool.discard(connection)
            if isinstance(trouble, Setback) and trouble.trouble is Trouble.SILENT:
                self._doors.fell_silent(door, trouble)
            return False
        except BaseException:
            door.pool.discard(connection)
            raise
        door.pool.give(connection)
        return answered

    def _ask(self, connection: Connection, deadline: float, read_timeout: float) -> bool:
        """Ask for a newer view and go by it. False: the server cannot say now. Raises what `exchange` does."""
        request = request_layout(Opcode.VIEW).encode(self.table.epoch)
        status, values = connection.exchange(Opcode.VIEW, request, deadline, read_timeout)
        if status != Status.OK and status_class(status) is not StatusClass.REFUSED:
            return False
        self._learnt = True
        self.epoch_seen = max(self.epoch_seen, connection.epoch)
        return status != Status.OK or self._accept(values)

    def _accept(self, values: Any) -> bool:
        try:
            if values[1]:
                self.take_in(values[1])
        except BadView:
            return False  # invariant 3
        return True
