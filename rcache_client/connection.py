"""One connection to a server: a socket, and one request at a time over it.

What it is: the edge where operating system errors are met, and translated into `Setback`.
Which thread runs it: the one that took it out of its pool; it is never shared.
What it owns: the socket, which never blocks: every wait is a `poll` of what the read timeout and the deadline leave,
worked out anew for each, so that an answer that trickles in cannot outlive the budget. Before the first wait for an answer
it looks for an instant whether one is there (see `spin`).
What it must not know: pools, other servers, whether a request may be sent again.

Invariants:
1. After any failure, time-out or interruption within an exchange the connection is closed for good. So no answer is ever
   left in a socket that somebody else will read from.
2. An answer is handed out only if its id and opcode are those of the request, and its payload is exactly what they demand.
3. A setback says `maybe_executed` unless it is certain that the server did not execute the request: a server executes
   whole frames only, so one whose last byte was never handed to the kernel cannot have been executed; and a GOODBYE
   names the last request that was.
"""

from __future__ import annotations

import contextlib
import select
import socket
from collections.abc import Sequence
from enum import Enum
from time import monotonic
from typing import Any

from rcache_client.address import Endpoint
from rcache_client.answers import decode_answer, reason_of
from rcache_client.budget import told_ms
from rcache_client.errors import BudgetSpent, TooLarge
from rcache_client.spin import SPIN_SECONDS, Spin
from rcache_client.wire.frames import HEADER, HEADER_BYTES, BadFrame, Reply, ReplyReader, encode_request
from rcache_client.wire.grammar import BadPayload
from rcache_client.wire.opcodes import (
    NO_REQUEST_ID,
    PROTOCOL_VERSION,
    REPLY_MAGIC,
    Opcode,
    StatusClass,
    opcode_name,
    status_class,
    status_name,
)

RECEIVE_BYTES = 64 * 1024
"""One read takes in a small reply whole, and the system call's cost is small beside copying this much."""

RECEIVE_MORE_BYTES = 256 * 1024
"""A reply that did not fit the first read is large; larger reads make fewer of them."""

FRAME_BYTES_BEFORE_WELCOME = 70_000
"""Before the server has said what it sends: room for the longest reason (65,535 bytes) with its header."""

REQUEST_ID_MAX = 0xFFFF_FFFF

_CLOSING = int(StatusClass.CLOSING)


class Trouble(Enum):
    """What kind of setback."""

    CLOSED = "closed"
    """The connection could not be made, or ended."""

    SILENT = "silent"
    """The server did not take or answer the request in time."""

    GARBLED = "garbled"
    """What it answered is not what the protocol allows."""


class Setback(Exception):
    """One try of a request came to nothing. Within the client only: the caller's errors are in `errors`.

    `waited_in_full`: whether the server had its whole time-out, rather than what a small budget left of it.
    `status`: what the server's GOODBYE gave as its cause, else 0.
    """

    def __init__(
        self, trouble: Trouble, reason: str, *, maybe_executed: bool = False, waited_in_full: bool = True, status: int = 0
    ) -> None:
        super().__init__(reason)
        self.trouble = trouble
        self.reason = reason
        self.maybe_executed = maybe_executed
        self.waited_in_full = waited_in_full
        self.status = status

    def name_limit(self, limit: str, *, in_full: bool) -> None:
        """Add what ended the wait, if it was a wait that ended: `limit`, or the budget where that was shorter."""
        self.waited_in_full = in_full
        if self.trouble is Trouble.SILENT:
            self.reason = f"{self.reason} ({limit if in_full else 'the budget of the call'})"


class Connection:
    """A connected socket and the request under way on it. Not thread-safe.

    `alone`: whether no other call to this server was under way when the pool handed it out. Only then may it keep a processor
    and the interpreter busy with looking for its answer: nobody else's waits to be read meanwhile.
    `epoch`: that of the view which the server went by in its last answer; 0 before the first.
    """

    __slots__ = (
        "_deadline",
        "_last_id",
        "_look",
        "_opcode",
        "_poll",
        "_read_timeout",
        "_sent_whole",
        "_socket",
        "_soon",
        "_spin",
        "_told_ms",
        "_told_s",
        "alone",
        "closed",
        "epoch",
        "frame_bytes_max",
        "server",
    )

    def __init__(self, connected: socket.socket, server: str) -> None:
        connected.setblocking(False)
        self._socket = connected
        self._poll = select.poll()
        self._poll.register(connected, select.POLLIN)
        self._look = self._poll.poll
        self._spin = Spin()
        self._told_s = 0.0
        self._told_ms = 0
        self._last_id = NO_REQUEST_ID
        self._opcode = 0
        self._deadline = 0.0
        self._read_timeout = 0.0
        self._sent_whole = False
        self._soon = False
        self.alone = False
        self.closed = False
        self.epoch = 0
        self.server = server
        self.frame_bytes_max = FRAME_BYTES_BEFORE_WELCOME

    def exchange(self, opcode: int, payload: bytes, deadline: float, read_timeout: float) -> tuple[int, Any]:
        """Send one request and return its answer's (status, values of its payload). Blocks to the deadline at most.

        `read_timeout` is the longest wait for the next bytes, in seconds. Raises `Setback`, and before anything was sent
        `BudgetSpent` and `TooLarge` (the server said it takes no such frame). An answer of the CLOSING class closes it.
        """
        self.begin(opcode, payload, deadline, read_timeout)
        return self.finish()

    def poll(self, opcode: int, payload: bytes, wait_s: float, read_timeout: float) -> tuple[int, Any]:
        """As `exchange`, for a request that the server answers after up to `wait_s` seconds where it has nothing to say before;
        blocks for that and `read_timeout` at most."""
        told_s, deadline = wait_s, monotonic() + wait_s + read_timeout
        self._begin(opcode, payload, told_s, deadline, wait_s + read_timeout)
        return self.finish()

    def begin(self, opcode: int, payload: bytes, deadline: float, read_timeout: float) -> None:
        """The first half of `exchange`: send the request. `finish` or `close` must follow. Raises as `exchange` does."""
        self._begin(opcode, payload, min(read_timeout, deadline - monotonic()), deadline, read_timeout)

    def _begin(self, opcode: int, payload: bytes, wait_s: float, deadline: float, read_timeout: float) -> None:
        """`wait_s`: what the server is told of how long the answer may take."""
        self._last_id = request_id = self._last_id % REQUEST_ID_MAX + 1  # wraps to 1: 0 says 'none'
        if wait_s <= 0:
            raise BudgetSpent("the budget ended before the request was sent", self.server, opcode_name(opcode))
        if wait_s != self._told_s:  # most often it is `read_timeout`, as before
            self._told_s, self._told_ms = wait_s, told_ms(wait_s)
        frame = encode_request(opcode, request_id, self._told_ms, payload)
        if len(frame) > self.frame_bytes_max:
            too_long = f"a frame of {len(frame)} bytes; the server takes {self.frame_bytes_max}"
            raise TooLarge(too_long, self.server, opcode_name(opcode))
        self._opcode = opcode
        self._deadline = deadline
        self._read_timeout = read_timeout
        self._soon = self.alone and wait_s > SPIN_SECONDS
        self._sent_whole = False
        try:
            self._send(frame)
        except BaseException:
            self.close()  # invariant 1
            raise

    def finish(self) -> tuple[int, Any]:
        """The second half of `exchange`: its answer's (status, values). Raises `Setback`."""
        opcode = self._opcode
        try:
            status, answer = self._receive(self._last_id, opcode)
            values = decode_answer(opcode, status, answer)  # invariant 2
            if not self._sent_whole and status < StatusClass.REFUSED:
                raise Setback(Trouble.GARBLED, "the request was answered before it was sent whole")
        except BadPayload as error:
            self.close()
            raise Setback(Trouble.GARBLED, str(error), maybe_executed=self._sent_whole) from error
        except BaseException:
            self.close()  # invariant 1
            raise
        if status >= _CLOSING or not self._sent_whole:
            self.close()
        return status, values

    def cut_wait(self, seconds: float) -> None:
        """Between `begin` and `finish`: the longest wait for the next bytes from here on."""
        self._read_timeout = seconds

    def detach(self) -> socket.socket:
        """Give the socket up to the caller, as a blocking one; this connection is closed then. For a node's links."""
        self.closed = True
        connected, self._socket = self._socket, socket.socket()
        self._socket.close()
        connected.setblocking(True)
        return connected

    def break_off(self) -> None:
        """Any thread: end the connection; whoever waits for an answer meets its end."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def is_stale(self) -> bool:
        """Whether an idle connection must not be used: its end, a GOODBYE, or bytes nobody asked for. Never blocks."""
        return bool(self._look(0))

    def send_goodbye(self) -> None:
        """Ask for the end; `await_end` then sees it. Never blocks; a failure is left for `await_end` to notice."""
        with contextlib.suppress(OSError):
            self._socket.send(encode_request(Opcode.GOODBYE, self._last_id % REQUEST_ID_MAX + 1, 0))

    def await_end(self, deadline: float) -> None:
        """Wait for the answer to a GOODBYE and the end of the stream, to the deadline at most; then close."""
        with contextlib.suppress(OSError):
            while (left := deadline - monotonic()) > 0 and self._poll.poll(left * 1000):
                if not self._socket.recv(RECEIVE_BYTES):
                    break
        self.close()

    def close(self) -> None:
        """Close this process's end. Idempotent. A fork's parent or child keeps its own."""
        self.closed = True
        self._socket.close()

    def _send(self, frame: bytes) -> None:
        """Hand the frame to the kernel, or as much as it takes before the server ends the connection or speaks up."""
        try:
            sent = self._socket.send(frame)
        except BlockingIOError:
            sent = 0
        except OSError:
            return  # what the server said before the end, or that there is nothing, `_receive` will find
        self._sent_whole = sent == len(frame) or self._send_rest(frame, sent)

    def _send_rest(self, frame: bytes, sent: int) -> bool:
        """Send on as the server takes it in. False: it said something, or closed, before it had the whole frame."""
        ready = select.poll()
        ready.register(self._socket, select.POLLIN | select.POLLOUT)
        with memoryview(frame) as view:
            while sent < len(frame):
                events = self._wait(ready, "the request was not taken in time")
                if events & ~select.POLLOUT:
                    return False
                try:
                    sent += self._socket.send(view[sent:])
                except BlockingIOError:
                    continue
                except OSError:
                    return False
        return True

    def _receive(self, request_id: int, opcode: int) -> tuple[int, bytes]:
        """The (status, payload) of the answer to that request. The common case is a reply that came whole in one read."""
        data = self._receive_soon() if self._soon else self._receive_some(RECEIVE_BYTES)
        if len(data) >= HEADER_BYTES:
            magic, version, answered, status, length, answered_id, self.epoch = HEADER.unpack_from(data)
            if (
                answered_id == request_id
                and answered == opcode
                and len(data) == HEADER_BYTES + length <= self.frame_bytes_max
                and magic == REPLY_MAGIC
                and version == PROTOCOL_VERSION
            ):
                return status, data[HEADER_BYTES:]
        reply = self._receive_frame(data)
        self._check_reply(reply, request_id, opcode)
        self.epoch = reply.epoch
        return reply.status, reply.payload

    def _receive_frame(self, data: bytes) -> Reply:
        """The first whole frame of the stream that begins with `data`. What follows it closes the connection: it is spent."""
        reader = ReplyReader(self.frame_bytes_max)
        try:
            reader.feed(data)
            while (reply := reader.next()) is None:
                reader.feed(self._receive_some(RECEIVE_MORE_BYTES))
        except BadFrame as error:
            raise Setback(Trouble.GARBLED, error.reason, maybe_executed=self._sent_whole) from error
        if reader.held:
            self.close()
        return reply

    def _check_reply(self, reply: Reply, request_id: int, opcode: int) -> None:
        """Return if the reply is to that request (invariant 2), or to no request at all because ours was unreadable."""
        closing = status_class(reply.status) is StatusClass.CLOSING
        if closing and reply.opcode == Opcode.GOODBYE != opcode:
            raise self._goodbye(reply, request_id)
        if reply.request_id == request_id and reply.opcode == opcode:
            return
        if closing and reply.request_id == NO_REQUEST_ID:
            values = decode_answer(reply.opcode, reply.status, reply.payload)
            raise Setback(
                Trouble.GARBLED, f"{status_name(reply.status)}: {reason_of(values)}", maybe_executed=False, status=reply.status
            )
        raise Setback(
            Trouble.GARBLED,
            f"request {request_id} ({opcode_name(opcode)}) was answered as {reply.request_id} ({opcode_name(reply.opcode)})",
            maybe_executed=self._sent_whole,
        )

    def _goodbye(self, reply: Reply, request_id: int) -> Setback:
        """The server said goodbye instead of answering. It names the last request it executed: ours, or one before it."""
        last_executed, reason = decode_answer(reply.opcode, reply.status, reply.payload)
        return Setback(
            Trouble.CLOSED,
            f"the server said goodbye: {status_name(reply.status)}: {reason}",
            maybe_executed=self._sent_whole and last_executed == request_id,
            status=reply.status,
        )

    def _receive_soon(self) -> bytes:
        """As `_receive_some`, for an answer that is there or about to come."""
        try:
            return self._read(RECEIVE_BYTES)
        except BlockingIOError:
            seen = self._spin.sees(self._look)
        return self._receive_some(RECEIVE_BYTES, seen)

    def _receive_some(self, count: int, seen: bool = False) -> bytes:
        """The next bytes of the stream, at least one and at most `count`. `seen`: there is no need to wait for the first."""
        while True:
            if not seen:
                self._wait(self._poll, "no answer came in time")
            seen = False
            try:
                return self._read(count)
            except BlockingIOError:
                continue

    def _read(self, count: int) -> bytes:
        """What is there of the stream, at least one byte and at most `count`. Raises `BlockingIOError` if nothing is."""
        try:
            data = self._socket.recv(count)
        except BlockingIOError:
            raise
        except OSError as error:
            raise Setback(Trouble.CLOSED, f"the connection was lost ({error})", maybe_executed=self._sent_whole) from error
        if not data:
            raise Setback(Trouble.CLOSED, "the server closed the connection without an answer", maybe_executed=self._sent_whole)
        return data

    def _wait(self, poll: select.poll, reason: str) -> int:
        """Wait for the socket and return what happened to it; a `Setback` if nothing did in time."""
        wait_s = min(self._read_timeout, self._deadline - monotonic())
        events = poll.poll(wait_s * 1000) if wait_s > 0 else None
        if not events:
            raise self._silence(reason)
        return events[0][1]

    def _silence(self, reason: str) -> Setback:
        in_full = monotonic() < self._deadline
        return Setback(Trouble.SILENT, reason, maybe_executed=self._sent_whole, waited_in_full=in_full)


def connect(endpoints: Sequence[Endpoint], server: str, deadline: float) -> Connection:
    """Connect to the first endpoint that takes it. Blocks to the deadline at most; raises `Setback`.

    Each endpoint gets an equal share of what is left, so that one that swallows packets does not starve the next.
    """
    errors: list[OSError] = []
    for place, (family, target) in enumerate(endpoints):
        wait_s = (deadline - monotonic()) / (len(endpoints) - place)
        if wait_s <= 0:
            break
        try:
            return Connection(_connected_socket(family, target, wait_s), server)
        except OSError as error:
            errors.append(error)
    timed_out = not errors or isinstance(errors[-1], TimeoutError)
    reason = "no connection in time" if timed_out else f"cannot connect: {errors[-1]}"
    trouble = Trouble.SILENT if timed_out else Trouble.CLOSED
    raise Setback(trouble, reason) from (errors[-1] if errors else None)


def _connected_socket(family: socket.AddressFamily, target: tuple[Any, ...], wait_s: float) -> socket.socket:
    fresh = socket.socket(family, socket.SOCK_STREAM)
    try:
        fresh.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # a request waits for nothing
        fresh.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # a peer that vanished is noticed at last
        fresh.settimeout(wait_s)
        fresh.connect(target)
        if fresh.getsockname() == fresh.getpeername():
            # TCP lets a socket connect to itself where nobody listens on a port of the ephemeral range.
            raise ConnectionRefusedError("nobody listens there")
    except BaseException:
        fresh.close()
        raise
    return fresh
