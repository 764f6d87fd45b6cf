"""The change stream of the reference engine: a bounded ring of records with a cursor for each reader.

What it is: a list of records with absolute positions (bytes since the stream began), and room that is reserved before it is
used. The commit points, with the positions that they have come to, are `commitment`'s.
Which thread runs it: writers under their stripe lock (`append`) or before it (`reserve`); the append-log writer, feeds and
links as readers.
What it owns: the records, until every reader that holds them has released them and their room is needed.
What it must not know: what a record says; who reads.

It guarantees: the order of `append`; that a reader that holds misses nothing; that no more than `bytes_max` is held. It does
not offer: waiting under a stripe lock (`append` never waits, its room was reserved).

Invariants:
1. records held + room reserved <= bytes_max, in bytes.
2. A record is dropped only when its room is needed and every reader that holds has released it.
3. After `fail` no append succeeds and no wait lasts.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Collection

from rcache.engine.change_stream import (
    DISK,
    END,
    Batch,
    CommitPoint,
    LinkFrame,
    Sent,
    StreamEnd,
    Wait,
    WindowTerms,
)
from rcache.engine.commit_point import DiskPoint
from rcache.engine.reference.commitment import Commitment
from rcache.engine.reference.credit import Credits
from rcache.engine.sockets import send_within
from rcache.engine.window import PlainWindow
from rcache.records.record import bucket_of
from rcache_client.wire.frames import encode_request

COMPACT_RECORDS = 4096
"""The list's dead front is cut off when it is at least this long and half of the list: amortised, a cut costs nothing."""


class StreamFailed(Exception):
    """The stream's log failed; nothing can be recorded any more."""


class Ring:
    """A bounded stream of records. `bytes_max` counts record bytes."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self._lock = threading.Lock()
        self._readable = threading.Condition(self._lock)
        self._room = threading.Condition(self._lock)
        self._records: list[bytes | None] = []
        self._front = 0  # index in _records of the oldest record held
        self._tail = 0  # position before it
        self._head = 0
        self._reserved = 0
        self.credits = Credits(lambda: self._head)
        self.commitment = Commitment(self._lock, self, self.credits)
        self._room_waiters = 0
        self.disk = DiskPoint(self)
        self._failure = ""
        self._waits_ended = False
        self.paused = False
        self._pauses_ended = False
        self._readers: list[RingReader] = []
        self._sleeping = 0
        self.full_waits = 0

    @property
    def head(self) -> int:
        return self._head

    @property
    def durable(self) -> int:
        return self.commitment.position(DISK)

    @property
    def failure(self) -> str:
        """Why the stream failed; "" while it has not."""
        return self._failure

    def stats(self) -> dict[str, int]:
        """Gauges: bytes held, bytes written in all, bytes on disk, room, and how often a writer waited for room."""
        with self._lock:
            return {
                "bytes_held": self._head - self._tail,
                "bytes_written": self._head,
                "bytes_on_disk": self.durable,
                "bytes_max": self.bytes_max,
                "readers": len(self._readers),
                "waits_for_room": self.full_waits,
            }

    def open_reader(self, name: str, *, holds: bool) -> RingReader:
        with self._lock:
            reader = RingReader(self, name, holds, len(self._records), self._head)
            self._readers.append(reader)
            return reader

    def open_window(self, name: str, terms: WindowTerms, point: CommitPoint) -> PlainWindow:
        return PlainWindow(self, name, terms, point)

    def reserve(self, count: int, deadline_ns: int) -> bool:
        """Set `count` bytes aside. False if there was no room before the deadline. Raises `StreamFailed`. Blocks."""
        with self._lock:
            self._room_waiters += 1
            try:
                while not self._try_reserve(count):
                    left_s = (deadline_ns - time.monotonic_ns()) / 1e9
                    if left_s <= 0 or self._waits_ended:
                        return False
                    self.full_waits += 1
                    self._readable.notify_all()
                    self._room.wait(left_s)
                return True
            finally:
                self._room_waiters -= 1

    def _try_reserve(self, count: int) -> bool:
        if self._failure:
            raise StreamFailed(self._failure)
        if self._head - self._tail + self._reserved + count > self.bytes_max:
            self._drop(count)
        if self._head - self._tail + self._reserved + count > self.bytes_max:
            return False
        self._reserved += count
        return True

    def set_paused(self, paused: bool) -> None:
        """Whether changes wait. What is being changed at this moment looks at it under its stripe's lock."""
        with self._lock:
            self.paused = paused
            self._room.notify_all()

    def wait_resumed(self, deadline_ns: int) -> bool:
        """Wait for the end of a pause, or for the failure of the stream, which every change notices. False if neither comes
        before the deadline. Blocks."""
        with self._lock:
            while self.paused and not self._failure:
                left_s = (deadline_ns - time.monotonic_ns()) / 1e9
                if left_s <= 0 or self._waits_ended or self._pauses_ended:
                    return False
                self._room.wait(left_s)
            return True

    def end_pauses(self) -> None:
        """The node stops: nothing waits for the end of a pause any more, as if its deadline had passed."""
        with self._lock:
            self._pauses_ended = True
            self._room.notify_all()

    def unreserve(self, count: int) -> None:
        """Give back room that was not used."""
        with self._lock:
            self._reserved -= count
            self._room.notify_all()  # the first in line may need more than this, another less

    def append(self, record: bytes, reserved: int) -> int:
        """Place a record, using up `reserved` bytes of room set aside before (at least its length). Returns the position
        after it. Raises `StreamFailed`, and then the room has been given back."""
        with self._lock:
            self._reserved -= reserved
            if self._failure:
                raise StreamFailed(self._failure)
            self._records.append(record)
            self._head += len(record)
            if reserved > len(record):
                self._room.notify_all()
            if self._sleeping:
                self._readable.notify_all()
            return self._head

    def _drop(self, count: int) -> None:
        """Make room for `count` bytes from records no reader holds on to (invariant 2)."""
        stop = min((reader.released for reader in self._readers if reader.holds), default=self._head)
        need = self._head - self._tail + self._reserved + count - self.bytes_max
        records, front = self._records, self._front
        while need > 0 and front < len(records):
            record = records[front]
            assert record is not None
            if self._tail + len(record) > stop:
                break
            records[front] = None
            front += 1
            self._tail += len(record)
            need -= len(record)
        self._front = front
        if front >= COMPACT_RECORDS and front * 2 >= len(records):
            del records[:front]
            self._front = 0
            for reader in self._readers:
                reader.index -= front

    def wake_readers(self) -> None:
        with self._lock:
            for reader in self._readers:
                reader.woken = True
            self._readable.notify_all()

    # --- commitment

    @property
    def moment(self) -> int:
        return self.commitment.moment

    def wanted(self, number: int) -> int:
        return self.commitment.wanted(number)

    def begin_moment(self, points: int) -> int:
        return self.commitment.begin_moment(points)

    def set_durable(self, position: int) -> None:
        self.commitment.advance(DISK, position)

    def wait_durable(self, position: int, deadline_ns: int) -> StreamEnd:
        return self.commitment.wait(Wait(1 << DISK, position), deadline_ns)

    def wait_committed(self, wait: Wait, deadline_ns: int) -> StreamEnd:
        return self.commitment.wait(wait, deadline_ns)

    def hurry_locked(self) -> None:
        self._readable.notify_all()

    def ask_links_locked(self) -> None:
        for reader in self._readers:
            reader.woken = reader.woken or reader.is_links
        self._readable.notify_all()

    # --- the end

    def end_waits(self) -> None:
        with self._lock:
            self._waits_ended = True
            self._room.notify_all()
            self.commitment.end_locked(StreamEnd.TIMED_OUT)

    def fail(self, why: str) -> None:
        with self._lock:
            self._failure = self._failure or why
            self._readable.notify_all()
            self._room.notify_all()
            self.commitment.end_locked(StreamEnd.FAILED)

    def check(self) -> None:
        """Invariant 1, and that positions and records agree. Raises AssertionError."""
        with self._lock:
            held = sum(len(record) for record in self._records[self._front :] if record is not None)
            assert held == self._head - self._tail, (held, self._head, self._tail)
            assert self._reserved >= 0
            assert held + self._reserved <= self.bytes_max


class RingReader:
    """A cursor in a `Ring`; used by one thread. `released` and `position` are in bytes, `index` is its place in the list."""

    def __init__(self, ring: Ring, name: str, holds: bool, index: int, position: int) -> None:
        self.name = name
        self.holds = holds
        self.index = index
        self.position = position
        self.released = position
        self.woken = False
        self._ring = ring
        self._chosen: frozenset[int] | None = None

    @property
    def is_links(self) -> bool:
        """Whether it reads for a link: nobody else chooses buckets."""
        return self._chosen is not None

    def wait(self, timeout_s: float) -> bool:
        """Until there is something to read, or somebody wakes the readers. Whether there is."""
        with self._ring._lock:
            return self._is_behind() or self._wait_for_first(timeout_s)

    def choose(self, buckets: Collection[int] | None) -> None:
        self._chosen = None if buckets is None else frozenset(buckets)

    def take(self, bytes_max: int, timeout_s: float, linger_s: float = 0.0, *, view: bool = False) -> Batch:  # noqa: ARG002
        return self._take(bytes_max, timeout_s, linger_s, END)

    def _take(self, bytes_max: int, timeout_s: float, linger_s: float, until: int) -> Batch:
        ring = self._ring
        with ring._lock:
            if self.position < until and (self._is_behind() or self._wait_for_first(timeout_s)):
                linger_until = time.monotonic() + linger_s
                while not self._is_urgent() and (left_s := linger_until - time.monotonic()) > 0:
                    ring._readable.wait(left_s)
                return self._collect(bytes_max, until)
            return Batch(b"", 0, self.position, lost=False)

    def _wait_for_first(self, timeout_s: float) -> bool:
        ring = self._ring
        if timeout_s > 0 and not self.woken and not ring._failure:
            ring._sleeping += 1
            try:
                ring._readable.wait_for(lambda: self._is_behind() or self.woken or bool(ring._failure), timeout_s)
            finally:
                ring._sleeping -= 1
        self.woken = False
        return self._is_behind()

    def _is_behind(self) -> bool:
        return self.index < len(self._ring._records)

    def _is_urgent(self) -> bool:
        """Whether somebody waits for what is there: for its commitment, for its room, or by `wake_readers`."""
        ring = self._ring
        woken, self.woken = self.woken, False
        half_full = (ring._head - self.released) * 2 > ring.bytes_max
        return woken or half_full or bool(ring._failure) or ring.commitment.disk_waiters > 0 or ring._room_waiters > 0

    def _collect(self, bytes_max: int, until: int) -> Batch:
        ring = self._ring
        lost = self.index < ring._front
        if lost:
            self.index, self.position = ring._front, ring._tail
        size = 0
        taken: list[bytes] = []
        while self.index < len(ring._records) and self.position < until:
            record = ring._records[self.index]
            assert record is not None
            wanted = self._chosen is None or bucket_of(record) in self._chosen
            if wanted and taken and size + len(record) > bytes_max:
                break
            if wanted:
                taken.append(record)
                size += len(record)
            self.index += 1
            self.position += len(record)
        return Batch(b"".join(taken), len(taken), self.position, lost)

    def send(self, sock: socket.socket, frame: LinkFrame, bytes_max: int, timeout_s: float, until: int = END) -> Sent:
        if not self.holds:
            raise ValueError("only a reader that holds can send: what it sends must stay until it is sent")
        batch = self._take(bytes_max, timeout_s, 0.0, until)
        ended = None
        if batch.count:
            data = encode_request(frame.opcode, frame.request_id, 0, frame.prefix + batch.body)
            ended = send_within(sock, data, frame.send_s)
        return Sent(batch.count, batch.position, batch.lost, ended)

    def rewind(self, position: int) -> None:
        if not self.holds:
            raise ValueError("only a reader that holds can go back: what it goes back to must still be there")
        ring = self._ring
        with ring._lock:
            index, at = self.index, self.position
            while at > max(position, self.released):
                index -= 1
                record = ring._records[index]
                assert record is not None
                at -= len(record)
            if at != position or at < self.released:
                raise ValueError(f"{position} is none that this reader has come by and not released")
            self.index, self.position = index, position

    def release(self, position: int) -> None:
        ring = self._ring
        with ring._lock:
            self.released = max(self.released, position)
            ring._room.notify_all()

    def close(self) -> None:
        ring = self._ring
        with ring._lock:
            if self in ring._readers:
                ring._readers.remove(self)
            ring._room.notify_all()
