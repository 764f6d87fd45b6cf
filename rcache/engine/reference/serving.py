"""Serving a connection: receive, parse, execute, wait for commitment, reply; until something is not the engine's business.

What it is: the request path of the reference engine. Replies of a pipelined batch are gathered, wait once for commitment,
and leave in one send.
Which thread runs it: the worker that owns the connection; `StopSignal.set` any.
What it owns: a connection's buffers. What it must not know: HELLO, GOODBYE, who closes the socket.

Invariants:
1. Replies leave in the order of their requests.
2. No reply leaves before what it waits for is committed, nor while a lease that it counts on does not hold (the clock is read
   behind the wait, right before the send); one whose wait ended otherwise says NOT_COMMITTED or APPEND_LOG_FAILED instead of
   what it would have revealed.
3. What is held of a peer is bounded: input by one frame and one read, output by `OUTPUT_BYTES_MAX` and one reply.
"""

from __future__ import annotations

import functools
import operator
import os
import select
import socket
import time
from typing import NamedTuple

from rcache.engine.change_stream import NO_WAIT, StreamEnd, Wait
from rcache.engine.contract import UNCOMMITTED, ConnectionLimits, EngineConfig, Handback
from rcache.engine.reference.commitment import Commitment
from rcache.engine.reference.operations import Operations
from rcache.engine.sockets import POLL_MS_MAX, Ended, send_within, set_kernel_timeout
from rcache_client.wire.frames import BadFrame, Request, RequestReader, encode_reply
from rcache_client.wire.grammar import REASON, BadPayload
from rcache_client.wire.opcodes import DATA_OPCODES, Status

RECEIVE_BYTES = 64 << 10
"""One read: enough for a batch of a hundred small requests, small enough for a thousand connections."""

PEER_RECEIVE_BYTES = 1 << 20
"""One read of a node's connection: a few frames of a link."""

OUTPUT_BYTES_MAX = 1 << 20
"""Replies gathered before they are sent; then no more requests are executed until the peer took them."""

HANDSHAKE_FRAME_BYTES_MAX = 1024
"""The longest HELLO has less than 200 bytes. A stranger who has not proven the secret is kept no more than this of."""

BUSY_WAIT_S = 0.2
"""How long a connection counts as busy after its last frame; also how late a busy one notices that serving is to end."""


class StopSignal:
    """Tells all connections at once: an eventfd that stays readable once it is set."""

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.is_set = False

    def set(self) -> None:
        self.is_set = True
        os.eventfd_write(self.fd, 1)

    def close(self) -> None:
        os.close(self.fd)


class _Pending(NamedTuple):
    """A reply that waits for its batch."""

    opcode: int
    request_id: int
    wait: Wait
    frame: bytes


class Connection:
    """A connection's buffers, limits and counts. `stop` becomes readable when serving is to end."""

    def __init__(self, sock: socket.socket, limits: ConnectionLimits, frame_bytes_max: int, stop: StopSignal) -> None:
        self.sock = sock
        self.limits = limits
        self.greeted = False
        self.last_executed = 0
        self.requests = 0
        self.reader = RequestReader(frame_bytes_max)
        self._frame_bytes_max = frame_bytes_max
        self._stop = stop
        self._began_ns = time.monotonic_ns()
        self._frame_began_ns = 0
        self._received_ns = 0
        self._poller = select.poll()
        self._poller.register(sock, select.POLLIN)
        self._poller.register(stop.fd, select.POLLIN)
        sock.setblocking(True)
        set_kernel_timeout(sock, socket.SO_RCVTIMEO, BUSY_WAIT_S)

    @property
    def data_allowed(self) -> bool:
        """Whether data opcodes are executed. Until they are, no more is kept of a peer than a handshake needs."""
        return self.reader.frame_bytes_max == self._frame_bytes_max

    @data_allowed.setter
    def data_allowed(self, allowed: bool) -> None:
        self.reader.frame_bytes_max = self._frame_bytes_max if allowed else HANDSHAKE_FRAME_BYTES_MAX

    def receive(self) -> Ended | None:
        """Take in what comes next. None if something came. Blocks up to the limit that applies.

        A busy connection is served by one blocking call; one that has been quiet for BUSY_WAIT_S sleeps in a poll that the
        stop signal ends too, so that ten thousand quiet ones cost nothing and all wake up at once.
        """
        if self._stop.is_set:
            return Ended.STOPPING
        if self.reader.mid_frame or not self.greeted:  # a peer that sends byte by byte is never quiet
            ended, left_s = self._limit()
            if left_s <= 0:
                return ended
        try:
            try:
                data = self.sock.recv(RECEIVE_BYTES)
            except BlockingIOError:
                ended, left_s = self._limit()
                if not self._wait_readable(left_s):
                    return ended
                if self._stop.is_set:
                    return Ended.STOPPING
                data = self.sock.recv(RECEIVE_BYTES)
        except OSError:
            return Ended.LOST
        if not data:
            return Ended.CLOSED
        self._received_ns = time.monotonic_ns()
        if not self.reader.mid_frame:
            self._frame_began_ns = self._received_ns
        self.reader.feed(data)
        return None

    def _wait_readable(self, left_s: float) -> bool:
        """Sleep until something is there to read, the stop signal included. False if nothing came within `left_s`."""
        left_ms = left_s * 1000
        while left_ms > 0:
            if self._poller.poll(min(left_ms, POLL_MS_MAX)):
                return True
            left_ms -= POLL_MS_MAX
        return False

    def next(self) -> Request | None:
        """The next whole request held, or None. Raises `BadFrame`. What is left behind it began with the last read."""
        request = self.reader.next()
        if request is not None:
            self._frame_began_ns = self._received_ns
        return request

    def _limit(self) -> tuple[Ended, float]:
        """Which limit applies to the next read, and what is left of it in seconds."""
        limits, now_ns = self.limits, time.monotonic_ns()
        hello = (Ended.HELLO_TIMEOUT, limits.hello_s - (now_ns - self._began_ns) / 1e9)
        frame = (Ended.FRAME_TIMEOUT, limits.frame_s - (now_ns - self._frame_began_ns) / 1e9)
        if not self.reader.mid_frame:
            return (Ended.IDLE_TIMEOUT, limits.idle_s) if self.greeted else hello
        return frame if self.greeted or frame[1] < hello[1] else hello

    def send(self, data: bytes) -> Ended | None:
        """Send all of `data` within `send_s`. None if it was taken."""
        return send_within(self.sock, data, self.limits.send_s)

    def queue(self, data: bytes, *, last: bool = False) -> None:
        raise NotImplementedError("this body has no groups of connections")


class Server:
    """The request path: serves connections on a store's operations."""

    def __init__(self, config: EngineConfig, commitment: Commitment, operations: Operations) -> None:
        self.epoch = 0
        self._config = config
        self._commitment = commitment
        self._operations = operations
        self.stop = StopSignal()

    def connect(self, sock: socket.socket, limits: ConnectionLimits) -> Connection:
        return Connection(sock, limits, self._config.frame_bytes_max, self.stop)

    def serve(self, connection: Connection) -> Handback:
        """Until something is not the engine's business; all replies to what came before have been sent by then."""
        while True:
            handback, lost = self._answer_held(connection)
            if lost is not None:
                return Handback(lost)
            if handback is not None:
                return handback
            ended = connection.receive()
            if ended is not None:
                return Handback(ended)

    def execute(self, request: Request) -> bytes:
        """One request by itself, its reply frame."""
        received_ns = time.monotonic_ns()
        reply = self._run(request, received_ns)
        return b"".join(self._commit([reply], self._operations.deadline_ns(request, received_ns)))

    def _answer_held(self, connection: Connection) -> tuple[Handback | None, Ended | None]:
        """Execute and answer all whole frames held. Returns what ends `serve`, if anything does."""
        received_ns = time.monotonic_ns()
        replies: list[_Pending] = []
        held = 0
        latest_ns = 0
        while True:
            try:
                request = connection.next()
            except BadFrame as bad:
                return Handback(Ended.BAD_FRAME, bad=bad), self._flush(connection, replies, latest_ns)
            if request is None:
                return None, self._flush(connection, replies, latest_ns)
            connection.greeted = connection.greeted or connection.data_allowed
            connection.requests += 1
            if request.opcode not in DATA_OPCODES or not connection.data_allowed:
                return Handback(Ended.FRAME, request=request), self._flush(connection, replies, latest_ns)
            try:
                reply = self._run(request, received_ns)
            except BadPayload as error:
                odd = BadFrame(Status.BAD_PAYLOAD, str(error), request.request_id, request.opcode)
                return Handback(Ended.BAD_FRAME, bad=odd), self._flush(connection, replies, latest_ns)
            connection.last_executed = request.request_id
            replies.append(reply)
            held += len(reply.frame)
            latest_ns = max(latest_ns, self._operations.deadline_ns(request, received_ns))
            if held >= OUTPUT_BYTES_MAX:
                lost = self._flush(connection, replies, latest_ns)
                if lost is not None:
                    return None, lost
                replies, held, received_ns = [], 0, time.monotonic_ns()

    def _run(self, request: Request, received_ns: int) -> _Pending:
        status, payload, wait = self._operations.run(request, received_ns)
        frame = encode_reply(request.opcode, status, request.request_id, self.epoch, payload)
        return _Pending(request.opcode, request.request_id, wait, frame)

    def _flush(self, connection: Connection, replies: list[_Pending], deadline_ns: int) -> Ended | None:
        """Wait for commitment, once for all of them, and send. None if the peer took them in time."""
        if not replies:
            return None
        frames = self._commit(replies, deadline_ns)
        return connection.send(frames[0] if len(frames) == 1 else b"".join(frames))

    def _commit(self, replies: list[_Pending], deadline_ns: int) -> list[bytes]:
        """The frames to send, each as it may be sent after the wait (invariant 2)."""
        if self._config.confirm_reads:
            replies = self._confirmed_later(replies)
        end, of_all = self._wait(replies, deadline_ns)
        if end is StreamEnd.REACHED and of_all:
            return [reply.frame for reply in replies]
        status, reason = UNCOMMITTED[StreamEnd.FAILED if end is StreamEnd.FAILED else StreamEnd.TIMED_OUT]
        return [
            reply.frame
            if self._commitment.is_met(reply.wait)
            else encode_reply(reply.opcode, status, reply.request_id, self.epoch, REASON.encode(reason))
            for reply in replies
        ]

    def _confirmed_later(self, replies: list[_Pending]) -> list[_Pending]:
        """They are executed: those that reveal what they have not changed themselves, be it by a refusal or a miss, wait for
        their backups to answer something that is sent from now on."""
        if not any(reply.wait.moment for reply in replies):
            return replies
        moment = self._commitment.begin_moment(functools.reduce(operator.or_, (reply.wait.points for reply in replies)))
        return [reply._replace(wait=reply.wait._replace(moment=moment)) if reply.wait.moment else reply for reply in replies]

    def _wait(self, replies: list[_Pending], deadline_ns: int) -> tuple[StreamEnd, bool]:
        """Wait for all of the replies whose waits can still be met; whether that was all of them. One that waits for a point
        that was abandoned holds up no other, nor ends another's wait."""
        while True:
            waits = [reply.wait for reply in replies]
            kept = [wait for wait in waits if not self._commitment.is_lost(wait)]
            wait = functools.reduce(Wait.join, kept, NO_WAIT)
            end = self._commitment.wait(wait, deadline_ns)
            if end is not StreamEnd.TIMED_OUT or not self._commitment.is_lost(wait):
                return end, len(kept) == len(waits)


def serve_peer(connection: Connection) -> Handback | None:
    """The next frame of a node's connection, or how it ended. None: nothing came for BUSY_WAIT_S."""
    try:
        while (request := connection.reader.next()) is None:
            data = connection.sock.recv(PEER_RECEIVE_BYTES)
            if not data:
                return Handback(Ended.CLOSED)
            connection.reader.feed(data)
    except BlockingIOError:
        return None
    except OSError:
        return Handback(Ended.LOST)
    except BadFrame as bad:
        return Handback(Ended.BAD_FRAME, bad=bad)
    connection.requests += 1
    return Handback(Ended.FRAME, request)
