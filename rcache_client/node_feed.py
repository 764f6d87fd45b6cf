"""The feed at one node: a connection of its own, asked again and again for what is next.

What it is: the thread that subscribes to the buckets whose primary that node is, hands on what is told, and gives back what it
is told of no more.
Which thread runs it: its own, `feed-HOST:PORT`. Started by the subscription, ended by it.
What it owns: the connection. What it must not know: whose the other buckets are, who takes the events.

Where the node is gone, or has nothing to tell, it asks for the newest view, as every call does that is sent elsewhere.
"""

from __future__ import annotations

import contextlib
import threading
from time import monotonic
from typing import TYPE_CHECKING

from rcache_client.answers import request_layout
from rcache_client.connection import Connection, Setback
from rcache_client.door import Door
from rcache_client.errors import AuthenticationFailed, ClientClosed, RcacheError, UnknownOpcode, WrongCluster
from rcache_client.events import gap_of, read_records
from rcache_client.wire.feeds import NoticeKind, decode_notices, decode_places, encode_places
from rcache_client.wire.grammar import BadPayload
from rcache_client.wire.opcodes import Opcode, Status

if TYPE_CHECKING:
    from rcache_client.subscription import Subscription

WAIT_S = 0.25
"""How long a node waits for something to tell: so late a bucket that came there is asked for."""

READ_TIMEOUT_S = 2.0
CONNECT_S = 1.0
BYTES_MAX = 256 << 10

REST_S = 0.05
"""After a setback, and before asking again for buckets that were refused."""

NO_BUCKET = 0xFFFF_FFFF
"""Subscribed to where a node has nothing yet: it begins to hold what it is going to tell."""

_HOPELESS = (AuthenticationFailed, WrongCluster, UnknownOpcode, ClientClosed)


class NodeFeed:
    """See the module."""

    def __init__(self, subscription: Subscription, door: Door) -> None:
        self.door = door
        self._subscription = subscription
        self._router = subscription.router
        self._stopping = threading.Event()
        self._again_at = 0.0
        self._thread = threading.Thread(target=self._run, name=f"feed-{door.name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()

    def join(self, timeout_s: float) -> None:
        if self._thread is not threading.current_thread():
            self._thread.join(timeout_s)

    def _run(self) -> None:
        """The thread's one catch-all: what cannot get better ends the subscription, everything else is tried again."""
        while not self._is_over():
            connection = None
            try:
                connection = self.door.connect(monotonic() + CONNECT_S)
                self._serve(connection)
            except _HOPELESS as error:
                self._subscription.fail(error)
                return
            except (Setback, RcacheError, BadPayload):
                pass  # the node is gone, or stops: its buckets are somebody else's next
            except Exception as error:
                self._subscription.fail(error)  # nobody foresaw it; whoever listens is told
                return
            finally:
                self._subscription.release(self)
                if connection is not None:
                    connection.close()
            self._refresh()
            if self._subscription.is_done_with(self):
                return
            self._stopping.wait(REST_S)

    def _is_over(self) -> bool:
        return self._stopping.is_set() or self._subscription.is_closed

    def _serve(self, connection: Connection) -> None:
        self._subscribe(connection, {NO_BUCKET: 0})
        while not self._is_over():
            self._claim(connection)
            self._take(connection)
            if connection.epoch > self._router.table.epoch:
                self._refresh()
            self._subscription.follow_newest()

    def _claim(self, connection: Connection) -> None:
        """Have this node tell of what is its own and nobody's."""
        if monotonic() < self._again_at:
            return
        claimed = self._subscription.claim(self, self._router.table)
        if not claimed:
            return
        taken = self._subscribe(connection, claimed)
        self._subscription.settle(self, claimed, taken)
        if len(taken) < len(claimed):
            self._again_at = monotonic() + REST_S
            self._refresh()

    def _subscribe(self, connection: Connection, places: dict[int, int]) -> dict[int, int]:
        selection = self._subscription.selection
        request = request_layout(Opcode.SUBSCRIBE).encode(
            int(selection.values), selection.selects, selection.selector, encode_places(places)
        )
        deadline = monotonic() + READ_TIMEOUT_S
        status, values = connection.exchange(Opcode.SUBSCRIBE, request, deadline, READ_TIMEOUT_S)
        self._demand_ok(status, values)
        return decode_places(values[0])

    def _take(self, connection: Connection) -> None:
        """One answer: gaps lie before its records, everything else behind them."""
        subscription = self._subscription
        request = request_layout(Opcode.EVENTS).encode(BYTES_MAX)
        status, values = connection.poll(Opcode.EVENTS, request, WAIT_S, READ_TIMEOUT_S)
        self._demand_ok(status, values)
        notices = decode_notices(values[1])
        events = [gap_of(notice) for notice in notices if notice.kind == NoticeKind.GAP]
        events += read_records(values[2], values=subscription.selection.values)
        behind = {n.bucket: n.upto for n in notices if n.kind in (NoticeKind.PLACE, NoticeKind.ENDED)}
        if events or behind:
            subscription.add(self, events, behind)
        ended = [notice.bucket for notice in notices if notice.kind == NoticeKind.ENDED]
        if ended:
            subscription.release(self, ended)
            self._refresh()

    def _demand_ok(self, status: int, values: tuple[object, ...]) -> None:
        if status == Status.UNKNOWN_OPCODE:
            raise UnknownOpcode("this server tells nobody of changes", self.door.name, "SUBSCRIBE")
        if status != Status.OK:
            raise RcacheError(str(values[-1]), self.door.name, "SUBSCRIBE")

    def _refresh(self) -> None:
        """The newest view, and feeds at its nodes."""
        table = self._router.table
        with contextlib.suppress(RcacheError, Setback):
            self._router.refresh(table.epoch, 0, monotonic() + CONNECT_S, None)
        self._subscription.follow(self._router.table)
