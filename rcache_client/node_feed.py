"""The feed at one node: a connection of its own, asked again and again for what is next.

What it is: the thread that subscribes to the buckets whose primary that node is, hands on what is told, and gives back what it
is told of no more.
Which thread runs it: its own, `feed-HOST:PORT`. Started by the feed set, ended by it.
What it owns: the connection. What it must not know: whose the other buckets are, who listens.

Where the node is gone, or has nothing to tell, it asks for the newest view, as every call does that is sent elsewhere.
"""

from __future__ import annotations

import contextlib
import threading
from time import CLOCK_BOOTTIME, clock_gettime, monotonic

from rcache_client.answers import request_layout
from rcache_client.connection import Connection, Setback
from rcache_client.door import Door
from rcache_client.errors import AuthenticationFailed, ClientClosed, RcacheError, UnknownOpcode, WrongCluster
from rcache_client.feed_set import FeedSet, Told
from rcache_client.wire.feeds import UNPROVEN, NoticeKind, decode_notices, decode_places, encode_places
from rcache_client.wire.grammar import BadPayload
from rcache_client.wire.opcodes import Opcode, Status

READ_TIMEOUT_S = 2.0
CONNECT_S = 1.0
BYTES_MAX = 256 << 10

REST_S = 0.05
"""After a setback, and before asking again for buckets that were refused."""

LOOK_S = 0.25
"""So long after it asked for the newest view, because a node was gone or refused, a feed does not ask for that again: a node
that stays away would have every client of the cluster ask the others twenty times a second. (The answers of their feeds say as
soon when there is a newer one.)"""

LONG_REST_S = 5.0
"""After what does not get better by itself: somebody has to install a newer server, or give it the right secret."""

NO_BUCKET = 0xFFFF_FFFF
"""Subscribed to where a node has nothing yet: it begins to hold what it is going to tell."""

_HOPELESS = (AuthenticationFailed, WrongCluster, UnknownOpcode, ClientClosed)


class NodeFeed:
    """See the module."""

    def __init__(self, feeds: FeedSet, door: Door) -> None:
        self.door = door
        self._feeds = feeds
        self._router = feeds.router
        self._stopping = threading.Event()
        self._again_at = 0.0
        self._look_at = 0.0
        self._thread = threading.Thread(target=self._run, name=f"feed-{door.name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()

    def join(self, timeout_s: float) -> None:
        if self._thread is not threading.current_thread():
            self._thread.join(timeout_s)

    def _run(self) -> None:
        """The thread's one catch-all: everything is tried again, but what cannot get better, where the listener says so."""
        while not self._is_over():
            rest_s = self._try()
            if rest_s is None or self._is_over():
                return
            self._look()
            if self._feeds.is_done_with(self):
                return
            self._stopping.wait(rest_s)

    def _try(self) -> float | None:
        """One connection, to its end. Returns how long to rest before the next; None: there is none."""
        connection = None
        try:
            connection = self.door.connect(monotonic() + CONNECT_S)
            self._serve(connection)
        except _HOPELESS as error:
            return self._failed(error)
        except (Setback, RcacheError, BadPayload):
            pass  # the node is gone, or stops: its buckets are somebody else's next
        except Exception as error:  # nobody foresaw it; whoever listens is told
            return self._failed(error)
        finally:
            if connection is not None:
                connection.close()  # first: the listener that is told of the end is not ours
            self._feeds.release(self)
        return REST_S

    def _failed(self, error: Exception) -> float | None:
        goes_on = self._feeds.listener.failed(self, error)
        self._feeds.wake()
        return LONG_REST_S if goes_on else None

    def _is_over(self) -> bool:
        return self._stopping.is_set() or self._feeds.is_closed

    def _serve(self, connection: Connection) -> None:
        self._subscribe(connection, {NO_BUCKET: 0})
        while not self._is_over():
            self._claim(connection)
            self._take(connection)
            if connection.epoch > self._router.table.epoch:
                self._refresh()
            self._feeds.follow_newest()

    def _claim(self, connection: Connection) -> None:
        """Have this node tell of what is its own and nobody's."""
        if monotonic() < self._again_at:
            return
        claimed = self._feeds.claim(self, self._router.table)
        if not claimed:
            return
        taken = self._subscribe(connection, claimed)
        self._feeds.settle(self, claimed, taken)
        if len(taken) < len(claimed):
            self._again_at = monotonic() + REST_S
            self._look()

    def _subscribe(self, connection: Connection, places: dict[int, int]) -> dict[int, int]:
        selection = self._feeds.selection
        request = request_layout(Opcode.SUBSCRIBE).encode(
            int(selection.values), selection.selects, selection.selector, encode_places(places)
        )
        deadline = monotonic() + READ_TIMEOUT_S
        status, values = connection.exchange(Opcode.SUBSCRIBE, request, deadline, READ_TIMEOUT_S)
        self._demand_ok(status, values)
        return decode_places(values[0])

    def _take(self, connection: Connection) -> None:
        """One answer."""
        asked_at = clock_gettime(CLOCK_BOOTTIME)
        request = request_layout(Opcode.EVENTS).encode(BYTES_MAX)
        status, values = connection.poll(Opcode.EVENTS, request, self._feeds.wait_s, READ_TIMEOUT_S)
        self._demand_ok(status, values)
        behind_ms, packed, records = values
        notices = decode_notices(packed)
        told = Told(
            [notice for notice in notices if notice.kind == NoticeKind.GAP],
            records,
            {notice.bucket: notice.upto for notice in notices if notice.kind in (NoticeKind.PLACE, NoticeKind.ENDED)},
            [notice.bucket for notice in notices if notice.kind == NoticeKind.ENDED],
            None if behind_ms == UNPROVEN else asked_at - behind_ms / 1000,
        )
        self._feeds.take(self, told)
        if told.ended:
            self._refresh()

    def _demand_ok(self, status: int, values: tuple[object, ...]) -> None:
        if status == Status.UNKNOWN_OPCODE:
            raise UnknownOpcode("this server tells nobody of changes", self.door.name, "SUBSCRIBE")
        if status != Status.OK:
            raise RcacheError(str(values[-1]), self.door.name, "SUBSCRIBE")

    def _look(self) -> None:
        """As `_refresh`, where nobody says that there is a newer one."""
        if monotonic() >= self._look_at:
            self._refresh()
            self._look_at = monotonic() + LOOK_S

    def _refresh(self) -> None:
        """The newest view, and feeds at its nodes."""
        table = self._router.table
        with contextlib.suppress(RcacheError, Setback):
            self._router.refresh(table.epoch, 0, monotonic() + CONNECT_S, None)
        self._feeds.follow_newest()
