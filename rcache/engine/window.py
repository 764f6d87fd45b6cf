"""The window of a link in plain Python: frames that were sent to a peer and are not acknowledged.

What it is: `change_stream.Window` over any stream's readers; the native engine has one of its own.
Which thread runs it: the link's sender and its receiver, see there.
What it owns: its reader, and the books of the frames. It may lock: its own lock, for moments; never with I/O.
What it must not know: which buckets are whose; what an answer says.

Invariants:
1. The books are in the order of the frames. A frame is entered once it was sent, because only then it is known what it brings;
   an answer that is faster waits for that.
2. A frame has the moment that was read before it was begun, and the epoch that it names. What its answer confirms is that
   moment, and only where the answer names no newer epoch: a peer that goes by a newer view may serve what was this node's, and
   still takes what fits of an older one (decision 0027). It is asked again once this side's frames name another epoch.
3. Where somebody wants an answer to a frame of a newer moment than that of the last one, and nothing of the stream is there for
   the peer, an empty frame is sent: a question. So it comes behind all that was sent before, and says that nothing of old comes
   after it.
4. A frame that comes up to the position of a sample of what was used of the peer's credit has that sample; nothing is sent
   across that position. What the peer lends beyond the frame then renews the credit, whatever epoch its answer names: what room
   it has is so by any view.
"""

from __future__ import annotations

import socket
import threading
import time
from collections import deque
from collections.abc import Collection
from typing import NamedTuple, Protocol

from rcache.engine.change_stream import END, ChangeStream, CommitPoint, LinkFrame, Sent, StreamReader, WindowCounts, WindowTerms
from rcache.engine.sockets import Ended, send_within
from rcache_client.wire.frames import encode_request

REQUEST_ID_MAX = 0xFFFF_FFFF

RECEIVE_BYTES = 64 << 10

ENTRY_S = 10.0
"""How long an answer waits for its frame to be entered; the sender does that next."""


class Sample(NamedTuple):
    """What was used of a point's credit by the records before `position`; `serial`: whose account it was."""

    used: int
    position: int
    serial: int


class Accounts(Protocol):
    """What peers lend, by the numbers of their points."""

    def serial_of(self, number: int) -> int: ...

    def sample(self, number: int) -> Sample: ...

    def renew(self, number: int, sample: Sample, room: int) -> None: ...

    def pass_on(self, old: int, serial: int, number: int) -> None: ...


class AskedStream(ChangeStream, Protocol):
    """A stream that says which moments there are, and has its links' readers come back when one begins; and whose points have
    accounts of what their peers lend."""

    @property
    def credits(self) -> Accounts: ...

    @property
    def moment(self) -> int: ...

    def wanted(self, number: int) -> int: ...

    def open_reader(self, name: str, *, holds: bool) -> AskedReader: ...


class AskedReader(StreamReader, Protocol):
    """One of its readers."""

    def wait(self, timeout_s: float) -> bool: ...


class _Frame(NamedTuple):
    """One that is under way. `portion`: not of the stream."""

    request_id: int
    position: int
    sent_at: float
    portion: bool
    moment: int
    epoch: int
    sample: Sample | None


class PlainWindow:
    """See the module."""

    def __init__(self, stream: AskedStream, name: str, terms: WindowTerms, point: CommitPoint) -> None:
        self._stream = stream
        self._terms = terms
        self._reader = stream.open_reader(name, holds=True)
        self._reader.choose(())
        self._point = point
        self._serial = stream.credits.serial_of(point.number)
        self._sample: Sample | None = None  # that a frame is to take along
        self._prefix = b""
        self._epoch = 0
        self._asked = 0  # the moment of the newest frame of this connection, generation and epoch
        self._answered = 0  # the moment that was confirmed last
        self._lock = threading.Lock()
        self._entered = threading.Condition(self._lock)
        self._frames: deque[_Frame] = deque()
        self._sock: socket.socket | None = None
        self._connection = 0
        self._next_id = self._first_id = 1
        self.acknowledged = self.looked = self._reader.take(1, 0.0).position
        point.advance(self.acknowledged)
        self._watched = self._moved = False
        self._frames_sent = self._records_sent = 0

    def set_point(self, point: CommitPoint) -> None:
        with self._lock:
            accounts = self._stream.credits
            if point.number != self._point.number:
                accounts.pass_on(self._point.number, self._serial, point.number)
            self._point = point
            self._serial = accounts.serial_of(point.number)
            point.advance(self.acknowledged, self._answered)

    def set_prefix(self, prefix: bytes, epoch: int) -> None:
        with self._lock:
            self._prefix = prefix
            if epoch != self._epoch:
                self._epoch = epoch
                self._asked = self._answered  # what is under way may not be confirmed any more (invariant 2)

    def choose(self, buckets: Collection[int]) -> None:
        self._reader.choose(buckets)

    def begin(self, sock: socket.socket | None) -> int:
        with self._lock:
            self._frames.clear()
            self._first_id = self._next_id
            self._reader.rewind(self.acknowledged)
            self.looked = self.acknowledged
            self._asked = self._answered  # what was under way will not be answered
            self._sample = None
            if sock is not None:
                self._sock = sock
                self._connection += 1
            return self._connection

    def end(self) -> None:
        with self._lock:
            self._sock = None
            self._connection += 1
            self._entered.notify_all()

    # --- sending

    def run(self, timeout_s: float) -> Ended | None:
        return self._send(timeout_s, END)

    def send_until(self, position: int) -> Ended | None:
        return self._send(0.0, position)

    def _send(self, timeout_s: float, until: int) -> Ended | None:
        sock = self._sock
        if sock is None:
            return Ended.LOST
        if timeout_s > 0 and not self._is_wanted() and not self._reader.wait(timeout_s) and not self._is_wanted():
            return None  # an order, perhaps: what comes now is sent by that
        frame = LinkFrame(self._terms.opcode, self._next_id, self._prefix, self._terms.send_s)
        sample, moment = self._take_sample(), self._stream.moment
        sent = self._reader.send(sock, frame, self._terms.bytes_max, 0.0, min(until, sample.position))
        if sent.ended is None:
            self._enter(sent, moment)
            if until == END and not sent.count and self._is_wanted():
                return self._ask(sock)
        return sent.ended

    def _is_wanted(self) -> bool:
        """Whether a frame is wanted even if it brings nothing (invariant 3)."""
        return self._stream.wanted(self._point.number) > self._asked

    def _ask(self, sock: socket.socket) -> Ended | None:
        """There is nothing of the stream to send: an empty frame."""
        return self._send_whole(sock, b"", self.looked, portion=False)

    def _take_sample(self) -> Sample:
        """Of what is used of the credit, unless a frame is still to take one along (invariant 4)."""
        if self._sample is None:
            self._sample = self._stream.credits.sample(self._point.number)
        return self._sample

    def send_portion(self, body: bytes, position: int) -> Ended | None:
        sock = self._sock
        if sock is None:
            return Ended.LOST
        return self._send_whole(sock, body, position, portion=True)

    def _send_whole(self, sock: socket.socket, body: bytes, position: int, *, portion: bool) -> Ended | None:
        self._take_sample()
        moment = self._stream.moment
        frame = encode_request(self._terms.opcode, self._next_id, 0, self._prefix + body)
        ended = send_within(sock, frame, self._terms.send_s)
        if ended is None:
            with self._lock:
                self._enter_locked(position, 0, moment, portion=portion)
        return ended

    def pass_by(self) -> None:
        self._reader.choose(())
        position = self._reader.take(self._terms.bytes_max, 0.0).position
        with self._lock:
            self._frames.clear()
            self.looked = position
        self._move(position)

    def _enter(self, sent: Sent, moment: int) -> None:
        """So much was sent, or passed by."""
        with self._lock:
            if sent.count:
                self._enter_locked(sent.position, sent.count, moment, portion=False)
                return
            self.looked = max(sent.position, self.looked)
            sample = self._due_sample_locked()
            if self._frames:
                last = self._frames[-1]
                self._frames[-1] = last._replace(position=sent.position, sample=sample or last.sample)
                return
        self._move(sent.position)

    def _enter_locked(self, position: int, count: int, moment: int, *, portion: bool) -> None:
        """A frame was sent."""
        self.looked = max(position, self.looked)
        sample = self._due_sample_locked()
        self._frames.append(_Frame(self._next_id, position, time.monotonic(), portion, moment, self._epoch, sample))
        self._asked = moment
        self._next_id = self._next_id % REQUEST_ID_MAX + 1
        self._frames_sent += 1
        self._records_sent += count
        self._entered.notify_all()

    def _due_sample_locked(self) -> Sample | None:
        """For the last frame before what was looked at, if that comes up to a sample (invariant 4)."""
        sample = self._sample
        if sample is None or self.looked < sample.position:
            return None
        self._sample = None
        return sample

    def _move(self, position: int, moment: int = 0) -> None:
        """The peer has all that it is to have of what lies before `position`, and has confirmed this moment (0: none)."""
        with self._lock:
            moved = position > self.acknowledged
            if not moved and moment <= self._answered:
                return
            self.acknowledged = max(position, self.acknowledged)
            self._answered = max(moment, self._answered)
            self._point.advance(self.acknowledged, self._answered)
            if not moved:
                return
            watched, self._watched = self._watched, False
            self._moved = self._moved or watched
        self._reader.release(position)
        if watched:
            self._stream.wake_readers()

    # --- receiving

    def receive(self, connection: int, *, mid_frame: bool) -> bytes:  # noqa: ARG002  all of it is the link's
        with self._lock:
            sock = self._sock if connection == self._connection else None
        return sock.recv(RECEIVE_BYTES) if sock is not None else b""

    def take(self, request_id: int, epoch: int, room: int | None = None) -> bool | None:
        with self._lock:
            connection = self._connection
            if self._is_of_old(request_id):
                return None
            self._entered.wait_for(lambda: self._frames or self._connection != connection, ENTRY_S)
            if self._connection != connection or self._is_of_old(request_id):
                return None
            if not self._frames or self._frames[0].request_id != request_id:
                due = self._frames[0].request_id if self._frames else "none"
                raise ValueError(f"an answer to {request_id}, where {due} was due")
            done = self._frames.popleft()
            self._first_id = request_id  # numbers go round, in some days
            if room is not None and done.sample is not None and done.sample.serial == self._serial:
                self._stream.credits.renew(self._point.number, done.sample, room)
        self._move(done.position, done.moment if epoch <= done.epoch else 0)
        return done.portion

    def is_of_old(self, request_id: int) -> bool:
        with self._lock:
            return self._is_of_old(request_id)

    def _is_of_old(self, request_id: int) -> bool:
        return (request_id - self._first_id) & REQUEST_ID_MAX > REQUEST_ID_MAX // 2

    # --- for any thread

    def watch(self) -> None:
        self._moved = False
        self._watched = True

    def take_moved(self) -> bool:
        moved, self._moved = self._moved, False
        return moved

    def counts(self) -> WindowCounts:
        with self._lock:
            owed_s = time.monotonic() - self._frames[0].sent_at if self._frames else 0.0
            return WindowCounts(len(self._frames), owed_s, self._frames_sent, self._records_sent)

    def close(self) -> None:
        self._reader.close()
