"""A link: this node's changes on their way to one peer, which is a backup of some of its buckets or is being made one.

What it is: has the records of the chosen buckets sent, and what the peer answers taken in, by a window of the change stream
(`change_stream.Window`); sees to its connection, its orders and refusals, and fills new copies while writes go on
(`rcache.peers.filling`).
Which thread runs it: two of its own for each peer: `link-NAME` sends, `link-acks-NAME` receives; while these wait in the window
workers do so too, where the engine can. Started and joined by the control plane; its orders (`choose`, `fill`, `cancel`) come
from any thread.
What it owns: its connection, its window, its commit point. It may lock: its own lock, for moments, never with I/O; then the
window's.
What it must not know: views and roles; how many backups a bucket is to have.

Invariants:
1. A position is acknowledged to the commit point only when the peer answered for all records before it that are for the peer;
   what is not for it is passed by, once nothing of its own lies before (decision 0023).
2. Whatever was sent and not acknowledged stays in the ring (the reader releases only what was acknowledged). After a lost
   connection, or where the peer refused a frame because its view had changed, everything from the last acknowledged position
   on is sent again under the next generation; the peer passes by what it has. (A frame is refused, the next one is taken: the
   bucket has a hole.)
3. Only the same incarnations on both sides go on like this. Another incarnation of the peer is another link.
4. Acknowledgements of an earlier connection or generation count for nothing.
5. An order is followed by the sender while it is not in the window: then nobody sends, so no frame leaves under an epoch, or
   by a choice, that was given up.
6. A link that was told to stop keeps nothing in the ring: its window is closed by whoever of its threads leaves it last, or at
   once where none is in it; never by somebody who first has to come by. (The peer is dead and the ring is full of what is for
   it. Who let go of the link waits for room in the ring next, and the room is what the window holds.)
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections import deque
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from loguru import logger

from rcache.cluster.leases import Peer
from rcache.engine.change_stream import CommitPoint, Window, WindowTerms
from rcache.engine.contract import Engine
from rcache.engine.sockets import Ended
from rcache.peers.debts import HELD_UP_LOOK_S, Debt, Room
from rcache.peers.filling import Fill, Fills
from rcache.peers.host import LinkHost
from rcache.peers.line import Line, PeerUnreachable
from rcache.peers.refusals import Refusals
from rcache_client.wire.frames import BadFrame, Reply, ReplyReader
from rcache_client.wire.grammar import REQUESTS, BadPayload, Layout, decode_reply
from rcache_client.wire.opcodes import Opcode, Status, status_name

SEND_BYTES = 512 << 10
"""About the most in one frame: large enough that its cost is the bytes', small enough that an acknowledgement is not far
off."""

IDLE_S = 0.25
"""How long the sender waits for a record before it looks at its orders; an order wakes it."""

SEND_S = 10.0
"""How long the peer has to take a frame; a peer that is slower has lost its lease long before."""

CHOOSE_S = 0.5
"""How long the sender has to follow an order before its connection is taken from it."""

LOST_S = 0.01
"""How long to rest after a connection that was lost: a peer that ends each one at once is not rushed at."""

RETRY_S = 0.1
"""How long to leave a peer alone that did not take the connection."""

REFUSED_PAUSE_S = 0.01
"""How long to wait before a refused frame is sent again, if no newer view came meanwhile."""

PART_S = 0.0005
"""How long to wait for a record that is being copied into the stream, where a portion has to come behind it."""

ANSWER_BYTES_MAX = 4 << 20
"""The longest answer: one with a view in it."""

_RECORDS = REQUESTS[Opcode.RECORDS]


class _Lost(Exception):
    """The connection is of no use any more."""


@dataclass(slots=True)
class LinkCounts:
    """What a link did since it was made."""

    connections: int = 0
    filled: int = 0
    fill_rows: int = 0
    fill_bytes: int = 0


class Link:
    """See the module."""

    def __init__(self, peer: Peer, incarnation: int, line: Line, engine: Engine, host: LinkHost) -> None:
        self.peer = peer
        self.counts = LinkCounts()
        self._incarnation = incarnation
        self._line = line
        self._engine = engine
        self._host = host
        self.point: CommitPoint = engine.open_commit_point(peer.name, engine.stream.head, 0)
        terms = WindowTerms(Opcode.RECORDS, SEND_BYTES, SEND_S)
        self._window: Window = engine.stream.open_window(f"link-{peer.name}", terms, self.point)
        self._lock = threading.Lock()
        self._noted = threading.Condition(self._lock)
        self._chosen: frozenset[int] = frozenset()
        self._fills = Fills()
        self._order = 0  # counts changes of the two above
        self._followed = 0
        self._epoch = host.epoch
        self._portions: deque[Fill] = deque()  # whose portions are under way, in their order
        self._debt = Debt(engine)
        self._generation = 0
        self._refusals = Refusals()
        self._sock: socket.socket | None = None
        self._connection = 0
        self._stopping = threading.Event()
        self._inside = 0  # threads that are in the window
        self._closed = False
        self._threads = [
            threading.Thread(target=self._run_sender, name=f"link-{peer.name}"),
            threading.Thread(target=self._run_receiver, name=f"link-acks-{peer.name}"),
        ]
        self._connected = threading.Event()
        self.errors = 0

    # --- for the control plane

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self, timeout_s: float) -> bool:
        """End both threads; the ring keeps nothing for this link any more, within moments, whatever they hang in (invariant 6).
        The commit point is the caller's to close. False if the threads took too long."""
        self._stopping.set()
        with self._lock:
            self._connected.set()  # for good: nothing clears it from now on
            if self._sock is not None:
                with contextlib.suppress(OSError):
                    self._sock.shutdown(socket.SHUT_RDWR)  # closing is the sender's: it may be using it
            self._close_if_ended_locked()
        with self._lock:
            self._noted.notify_all()
        self._engine.stream.wake_readers()
        deadline = time.monotonic() + timeout_s
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(0.0, deadline - time.monotonic()))
        ended = not any(thread.is_alive() for thread in self._threads)
        if ended:
            self._line.close()
        return ended

    def choose(self, buckets: Collection[int], epoch: int) -> None:
        """The buckets that the peer has a copy of by the view of `epoch`; what is being filled comes to these by itself. Once
        this returns nothing that is placed from now on is passed by for another choice, or leaves under an earlier epoch
        (which the peer, being behind, would take for a record that does not fit). Blocks for moments; a sender that is held up
        by its peer loses its connection instead, and sends all of it again."""
        chosen = frozenset(buckets)
        with self._lock:
            if chosen == self._chosen and epoch == self._epoch:
                return
            self._chosen = chosen
            self._epoch = epoch
            self._fills.settle(chosen)
            self._order += 1
            order = self._order
            self._engine.stream.wake_readers()
            if not self._noted.wait_for(lambda: self._followed >= order or self._sock is None, CHOOSE_S):
                logger.warning("link to {}: held up by its peer; the connection is made anew", self.peer.name)
                with contextlib.suppress(OSError):
                    if self._sock is not None:
                        self._sock.shutdown(socket.SHUT_RDWR)
            self._noted.wait_for(lambda: self._followed >= order or self._sock is None, CHOOSE_S)

    def fill(self, bucket: int) -> None:
        """Make a copy of this bucket at the peer; `has_filled` tells when it is whole."""
        with self._lock:
            if bucket in self._fills or bucket in self._chosen:
                return
            self._fills.add(bucket)
            self._order += 1
        self._engine.stream.wake_readers()

    def cancel(self, bucket: int) -> None:
        """The copy is not wanted any more."""
        with self._lock:
            if self._fills.cancel(bucket):
                self._order += 1

    def replace_point(self) -> CommitPoint:
        """A new commit point in place of the present one, which the caller is to abandon once no bucket of its own waits for
        it: it goes on from what is acknowledged, and has no lease yet."""
        with self._lock:
            old = self.point
            self.point = self._engine.open_commit_point(self.peer.name, self._window.acknowledged, 0)
            self._window.set_point(self.point)
        return old

    def filling(self) -> dict[int, bool]:
        """The copies that are being made; whether each is whole and waits only for a view."""
        with self._lock:
            return self._fills.states()

    def is_whole(self, bucket: int) -> bool:
        """Whether a copy of this bucket is whole at the peer and waits only for a view. (One that was cancelled and begun again
        since is not, whatever was told of it before.)"""
        with self._lock:
            return self._fills.is_whole(bucket)

    @property
    def fills_left(self) -> bool:
        """Whether a copy is being made that is not whole yet."""
        return self._fills.left > 0

    @property
    def acknowledged(self) -> int:
        """The stream's position up to which the peer has all that is for it."""
        return self._window.acknowledged

    def watch(self) -> None:
        """Have `has_moved` called at the next acknowledgement."""
        self._window.watch()

    def owed_s(self) -> float:
        """For how long the oldest frame that is not acknowledged has been waiting, in seconds."""
        return self._window.counts().owed_s

    @property
    def is_up(self) -> bool:
        return self._connected.is_set() and not self._stopping.is_set()

    def stats(self) -> dict[str, object]:
        with self._lock:  # or it may be closed meanwhile
            if self._closed:
                return {"up": False}
            counts, acknowledged = self._window.counts(), self._window.acknowledged
            filling = self._fills.progress()
        return {
            "up": self.is_up,
            "bytes_behind": max(0, self._engine.stream.head - acknowledged),
            "frames_waiting": counts.waiting,
            "frames": counts.frames,
            "records": counts.records,
            "connections": self.counts.connections,
            "frames_refused": self._refusals.count,
            "buckets_filled": self.counts.filled,
            "fill_rows": self.counts.fill_rows,
            "fill_bytes": self.counts.fill_bytes,
            "filling": filling,
            "debt": self.point.debt,
        }

    # --- sending

    def _run_sender(self) -> None:
        """The thread's one catch-all: an error is logged and counted, and the connection made anew."""
        while not self._stopping.is_set():
            try:
                self._line.close()
                with contextlib.closing(self._line.detach()) as sock, self._in_window():
                    try:
                        self._begin(sock)
                        self._serve()
                    finally:
                        self._break()
            except PeerUnreachable as error:
                self._host.came_down(self, refused=error.refused)
                self._pass_by()
                self._stopping.wait(RETRY_S)
            except _Lost as lost:
                if not self._stopping.is_set():
                    logger.info("link to {}: {}", self.peer.name, lost)
                    self._host.came_down(self, refused=False)
                    self._stopping.wait(LOST_S)
            except Exception:
                self.errors += 1
                logger.exception("link to {}: unhandled error", self.peer.name)
                self._stopping.wait(RETRY_S)

    @contextlib.contextmanager
    def _in_window(self) -> Iterator[None]:
        """While this lasts the window is there. Raises `_Lost` where the link ends (invariant 6)."""
        with self._lock:
            if self._stopping.is_set():
                raise _Lost("the link ends")
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                self._close_if_ended_locked()

    def _close_if_ended_locked(self) -> None:
        if self._stopping.is_set() and not self._inside and not self._closed:
            self._closed = True
            self._window.close()

    def _begin(self, sock: socket.socket) -> None:
        with self._lock:
            self._sock = sock
            self._begin_generation_locked(sock)
        self.counts.connections += 1
        self._connected.set()

    def _begin_generation_locked(self, sock: socket.socket | None) -> None:
        """Everything that was not acknowledged is sent again (invariant 2), on a new connection or (None) the one there is;
        copies that are not whole are made anew."""
        self._generation += 1
        self._refusals.begin_generation()
        self._connection = self._window.begin(sock)
        self._portions.clear()
        self._fills.begin_anew()
        self._order += 1

    def _pass_by(self) -> None:
        """While there is no connection: what is for nobody is not kept."""
        with self._lock:  # so that nothing is passed by that somebody has just begun to count on
            if self._closed or self._chosen or self._fills.has_done:
                return
            self._window.pass_by()
            moved = self._window.take_moved()
        if moved:
            self._host.has_moved(self)

    def _serve(self) -> None:
        """Until the connection is lost, or the link ends."""
        order = -1
        while not self._stopping.is_set():
            if not self._connected.is_set():
                raise _Lost("the connection was lost")
            if (refused := self._refusals.epoch) is not None:
                self._begin_again(refused)
            if order != self._order:
                order = self._follow_orders()
            rest_s, fill = self._next_fill()
            if fill is not None and self._is_held_up(fill):
                _demand_taken(self._window.run(HELD_UP_LOOK_S))
                self._tell_moved()
                continue
            if fill is not None:
                self._send_portion(fill)
                continue
            _demand_taken(self._window.run(rest_s))
            self._tell_moved()

    def _follow_orders(self) -> int:
        with self._lock:
            order = self._order
            self._window.set_prefix(self._prefix(), self._epoch)
            self._window.choose(self._chosen | self._fills.begun)
            self._followed = order
            self._noted.notify_all()
        return order

    def _prefix(self) -> bytes:
        assert isinstance(_RECORDS, Layout)
        return _RECORDS.encode(self._epoch, self._incarnation, self.peer.incarnation, self._generation, b"")

    def _tell_moved(self) -> None:
        if self._window.take_moved():
            self._host.has_moved(self)

    def _begin_again(self, epoch: int) -> None:
        """A frame was refused: once this node has the view that the peer has, all of it is sent again. Orders are followed
        meanwhile: they are those of the views before that one, and who gives them waits for it."""
        deadline = time.monotonic() + IDLE_S
        while self._host.epoch < epoch and time.monotonic() < deadline and not self._stopping.is_set():
            if self._followed != self._order:
                self._follow_orders()
            self._stopping.wait(REFUSED_PAUSE_S)
        if not epoch:
            self._stopping.wait(REFUSED_PAUSE_S)
        with self._lock:
            self._begin_generation_locked(None)

    # --- filling

    def _next_fill(self) -> tuple[float, Fill | None]:
        """The copy whose next portion is due now; or how long there is to wait until one may be, in seconds."""
        with self._lock:
            rest_s = self._fills.rest_s()
            return (0.0, self._fills.next()) if rest_s == 0.0 else (min(IDLE_S, rest_s or IDLE_S), None)

    def _is_held_up(self, fill: Fill) -> bool:
        """Whether the peer is over its limit. Where it stays so, it lets go of what it has of this copy."""
        room = self._debt.look(self.point.debt)
        if room is Room.DOES_NOT_COME:
            if fill.has_begun:
                self._send_portion(fill, empty=True)
            self._host.has_no_room(self)
        return room is not Room.IS_THERE

    def _send_portion(self, fill: Fill, *, empty: bool = False) -> None:
        """Some rows of a bucket, behind all of the stream that lies before them (`design`, section 5, invariant 8)."""
        made_at = time.monotonic()
        portion = fill.next_portion(self._engine)
        while True:
            _demand_taken(self._window.send_until(portion.position))
            if self._refusals.epoch is not None or self._stopping.is_set():
                return  # all of this is sent again
            if self._window.looked >= portion.position:
                break
            self._stopping.wait(PART_S)
        body = fill.empty_body(portion) if empty else fill.body_of(portion)
        with self._lock:
            self._portions.append(fill)
            if self._fills.begin_portion(fill, len(body), made_at):
                self._order += 1  # its changes come behind its rows
        _demand_taken(self._window.send_portion(body, portion.position))
        self.counts.fill_rows += 0 if empty else portion.count
        self.counts.fill_bytes += len(body)

    # --- receiving

    def _run_receiver(self) -> None:
        """The thread's one catch-all: an error is logged and counted, and ends the connection."""
        while not self._stopping.is_set():
            self._connected.wait()
            with self._lock:
                sock, connection = self._sock, self._connection
            if sock is None:
                self._stopping.wait(REFUSED_PAUSE_S)
                continue
            try:
                with self._in_window():
                    self._receive(connection)
            except (OSError, BadFrame, BadPayload, _Lost) as error:
                if not self._stopping.is_set():
                    logger.info("link to {}: answers end: {}", self.peer.name, error)
            except Exception:
                self.errors += 1
                logger.exception("link to {}: unhandled error", self.peer.name)
            with self._lock:
                if self._sock is sock and not self._stopping.is_set():
                    self._connected.clear()
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            self._engine.stream.wake_readers()

    def _receive(self, connection: int) -> None:
        reader = ReplyReader(ANSWER_BYTES_MAX)
        while data := self._window.receive(connection, mid_frame=reader.mid_frame):
            reader.feed(data)
            while (reply := reader.next()) is not None:
                self._take(connection, reply)

    def _take(self, connection: int, reply: Reply) -> None:
        """One answer that the window left to the link."""
        values = decode_reply(reply.opcode, reply.status, reply.payload)
        if reply.status == Status.OK:
            generation = self._generation
            try:
                was_portion = self._window.take(reply.request_id, reply.epoch, values[0])
            except ValueError as error:
                raise BadPayload(str(error)) from None
            if was_portion:
                self._take_portion(generation)
            return
        with self._lock:
            if self._connection != connection or self._window.is_of_old(reply.request_id):
                return  # invariant 4
            is_stuck = self._refusals.note(reply, self._window.acknowledged, self._epoch)
        self._engine.stream.wake_readers()
        if reply.status != Status.VIEW_AHEAD:
            logger.debug("link to {}: {}", self.peer.name, status_name(reply.status))
            self._host.was_refused(self, reply.status, values)
        if is_stuck:
            self._host.was_refused(self, Status.BROKEN_CHAIN, ("it refuses what it is to have by the view that it goes by",))

    def _take_portion(self, generation: int) -> None:
        with self._lock:
            if self._generation != generation:
                return  # it is made anew
            fill = self._portions.popleft()
            is_whole = self._fills.acknowledge(fill)
        if is_whole:
            self.counts.filled += 1
            self._host.has_filled(self, fill.bucket)
        self._engine.stream.wake_readers()

    def _break(self) -> None:
        """End the connection, if there is one."""
        with self._lock:
            sock, self._sock = self._sock, None
            if not self._stopping.is_set():
                self._connected.clear()
            self._noted.notify_all()
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)  # first: whoever sends or receives comes out
            self._window.end()
            sock.close()


def _demand_taken(ended: Ended | None) -> None:
    """Raises `_Lost` where the peer did not take what was sent."""
    if ended is not None:
        raise _Lost(f"the peer did not take a frame: {ended.value}")
