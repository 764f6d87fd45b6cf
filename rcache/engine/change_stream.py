"""The change stream's contract: the ordered stream of this node's changes, who reads it, and the points where they must be.

What it is: types and protocols; the engine's own are in `contract`. `tests/contract/` runs one suite over every body.
Which thread runs it: writers under their stripe lock, a reader its own, everything else any.
What it owns: nothing. What it must not know: how a body keeps its records.
"""

from __future__ import annotations

import socket
from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, Protocol

from rcache.engine.sockets import Ended
from rcache.records.record import heads


class StreamEnd(Enum):
    """How a wait on the change stream ended."""

    REACHED = "reached"
    TIMED_OUT = "timed out"
    """Or what was waited for will not come any more."""
    FAILED = "the stream's log failed"


class Wait(NamedTuple):
    """What an answer waits for: that each of `points` (a bit for each, by its number) has the stream up to `position`, and that
    the leases of those that are leased hold; and, where there is a `moment`, that the peers of those that are links' have
    answered after it (MOMENT_WANTED: it is to have its batch's). No points: it waits for nothing."""

    points: int = 0
    position: int = 0
    moment: int = 0

    def join(self, other: Wait) -> Wait:
        """Both at once. A point that the one waits for is waited for up to the position of the other, too."""
        return Wait(self.points | other.points, max(self.position, other.position), max(self.moment, other.moment))


NO_WAIT = Wait()
MOMENT_WANTED = 1
"""In the place of a moment; the first that begins is a later one."""
HELD_FOR_EVER = (1 << 64) - 1
"""The lease of a point that is not leased, in ns."""

POINTS_MAX = 64
"""Commit points that a stream can have, the disk among them: the bits of a word."""

END = (1 << 64) - 1
"""A position behind all that there will be."""

DISK = 0
"""The number of the point that is the append log on disk."""


class CommitPoint(Protocol):
    """A place where the changes of this node must be before they are committed: the disk, or a backup.

    `position` of a point counts from the beginning of the stream, and means: of everything before it, this point has all that
    it is to have. So a link passes records that are not for its peer by itself, once there is none for it before them.

    A point may be leased (`lease`): then what a bucket answers that waits for this point leaves only while the lease holds,
    whether it reveals something that is still to be committed or not. The clock is read after the work and after the wait,
    before bytes leave: that is the moment at which a read is as if it had been made, and at it nobody else serves the bucket.
    (A primary that was stopped for a while goes on where it was, with a value that its heir has changed since.)
    """

    @property
    def number(self) -> int: ...

    @property
    def position(self) -> int: ...

    @property
    def debt(self) -> int:
        """By how much changes have used more room than the backup behind it has, in bytes as `credit_cost` counts: a copy was
        made there, or it has less memory. `Engine.relieve` works it off."""
        ...

    def advance(self, position: int, moment: int = 0) -> None:
        """An acknowledgement came in; `moment`: of a frame that the peer has answered, and not as one that goes by a newer view
        than it named. Wakes who waits for either. Neither ever goes back."""
        ...

    def lease(self, until_ns: int) -> None:
        """From now on this point may be counted on until `until_ns` by CLOCK_BOOTTIME (ns), and not longer. Wakes who waits."""
        ...

    def close(self) -> None:
        """Nothing waits for this point any more, in no bucket: what waits only for it is committed. For a peer that is no
        backup any more, by an agreed view, and never before that."""
        ...

    def abandon(self) -> None:
        """This point will never come further: every wait for it ends at once, as if its deadline had passed, now and from now
        on, and no bucket waits for it any more. For a peer that has taken this node's buckets over: what was not answered by
        then is not known to be committed."""
        ...


@dataclass(frozen=True, slots=True)
class Sent:
    """What a reader sent: `count` records in a frame, and the stream's position behind what it looked at. With `ended` it was
    not taken by the peer, or not all of it: the connection is of no use any more. `lost` as in `Batch`."""

    count: int
    position: int
    lost: bool
    ended: Ended | None


@dataclass(frozen=True, slots=True)
class Batch:
    """Records taken from the stream: `count` of them, one after the other in `body`, oldest first; and the stream's position
    after them, in bytes since its beginning.

    `lost` is true if records before these were dropped because this reader fell behind (only a reader that does not hold).
    """

    body: bytes | memoryview
    count: int
    position: int
    lost: bool

    @property
    def records(self) -> list[bytes]:
        """The records one by one."""
        return [bytes(self.body[head.start : head.end]) for head in heads(self.body)]


@dataclass(frozen=True, slots=True)
class LinkFrame:
    """The frame that records travel in: opcode, request id, and what precedes the records in its payload."""

    opcode: int
    request_id: int
    prefix: bytes
    send_s: float = 30.0


@dataclass(frozen=True, slots=True)
class Portion:
    """Part of a bucket, copied while it goes on serving: `count` ROW records in `body`, as of the bucket's `sequence` and the
    stream's `position` behind it. `after` is where the next portion goes on; None: this was the last."""

    body: bytes
    count: int
    after: object
    sequence: int
    position: int
    time_ms: int


class StreamReader(Protocol):
    """A cursor in the change stream. One thread's, but for `release`."""

    def take(self, bytes_max: int, timeout_s: float, linger_s: float = 0.0, *, view: bool = False) -> Batch:
        """What there is, up to about `bytes_max` (one record at least). Blocks up to `timeout_s` for the first record, then
        up to `linger_s` for more unless somebody waits for them. `view`: for a reader that holds, the body may lie in the
        stream itself; it is good until it is released, and copied by nobody."""
        ...

    def choose(self, buckets: Collection[int] | None) -> None:
        """Read only records of these buckets from here on, or (None) all again: the others are passed by. A `take` or `send`
        that came upon none of them comes back without records and with a later position."""
        ...

    def send(self, sock: socket.socket, frame: LinkFrame, bytes_max: int, timeout_s: float, until: int = END) -> Sent:
        """Send what there is, as `take` would give it, straight from the stream in one request frame; nothing that lies at or
        behind the position `until` is looked at. For a reader that holds; else ValueError. Blocks up to `timeout_s` for the
        first record (not at all once it has come to `until`), and up to `frame.send_s` for the peer to take them."""
        ...

    def rewind(self, position: int) -> None:
        """Read again from this position on, which must be one that this reader has come by and not released; else ValueError.
        For a link whose peer did not take what was sent. For a reader that holds; else ValueError."""
        ...

    def release(self, position: int) -> None:
        """Any thread: records before `position` need not be kept for this reader any more."""
        ...

    def close(self) -> None:
        """The reader is done; nothing waits for it any more."""
        ...


@dataclass(frozen=True, slots=True)
class WindowTerms:
    """How a window sends: the frames' opcode, about how many bytes of records go into one, and how long the peer has for it."""

    opcode: int
    bytes_max: int
    send_s: float


@dataclass(frozen=True, slots=True)
class WindowCounts:
    """Frames under way, how long the oldest has been so (s), frames and records sent in all."""

    waiting: int
    owed_s: float
    frames: int
    records: int


class Window(Protocol):
    """The frames of one link that are under way: sent from the stream in its order, and answered in theirs. After a refusal, or
    on another connection, all that was not answered is sent again (go-back-N).

    It advances its point: a position is acknowledged when the peer said OK to the last frame before it; what is not for the
    peer is passed by, once nothing of its own lies before. With an OK the peer says how much of its room it lends beyond that
    frame (bytes, as `credit_cost` counts; negative: so much has to go), and from then on changes of buckets that wait for the
    point use no more than that: they have items evicted that the peer holds, or are refused. Where nobody has business but the
    room has to be known, an empty frame is sent: a question. A body may have its workers send here while `run` is being waited
    in, and only then; so what the link's sender does outside of it, it does alone.

    It confirms moments (`ChangeStream.begin_moment`): a frame's is the newest that had begun before its first byte was sent;
    its answer confirms that, unless it names a newer epoch than the frame does. Where one is waited for and there is nothing to
    send, an empty frame is sent, by `run`. Frames that are under way when a connection or a generation ends confirm nothing.

    Two threads: the link's sender (`begin`, `run`, `send_until`, `send_portion`, `choose`, `set_prefix`, `pass_by`) and its
    receiver (`receive`, `take`); everything else is for any.
    """

    @property
    def acknowledged(self) -> int:
        """The stream's position up to which the peer has all that is for it."""
        ...

    @property
    def looked(self) -> int:
        """The position up to which all was sent, or passed by."""
        ...

    def set_point(self, point: CommitPoint) -> None:
        """The point that is advanced from now on; it is told at once what is acknowledged."""
        ...

    def set_prefix(self, prefix: bytes, epoch: int) -> None:
        """What precedes the records in the payload of each frame that begins from now on, and the epoch that it names."""
        ...

    def choose(self, buckets: Collection[int]) -> None:
        """The buckets whose records are sent from here on."""
        ...

    def begin(self, sock: socket.socket | None) -> int:
        """Nothing is under way, and reading goes on from what was acknowledged: on another connection, or (None) on the one
        there is. Answers to what was sent before are of old. Returns the connection's number."""
        ...

    def end(self) -> None:
        """The connection has ended (it must be shut down by now): once this returns nobody touches it any more."""
        ...

    def run(self, timeout_s: float) -> Ended | None:
        """Send what there is, and what comes, until `wake_readers` (at least) or until the time is up. Blocks."""
        ...

    def send_until(self, position: int) -> Ended | None:
        """Send what begins before this position, as far as it can be sent now (see `looked`). Blocks until the peer took it."""
        ...

    def send_portion(self, body: bytes, position: int) -> Ended | None:
        """A frame of other records than the stream's, as of the position that was looked at last. Blocks."""
        ...

    def pass_by(self) -> None:
        """Without a connection: what there is in the stream is for nobody."""
        ...

    def receive(self, connection: int, *, mid_frame: bool) -> bytes:
        """What came that the link itself has to take in; b"" once that connection has ended. `mid_frame`: the last of it was
        not a whole frame. Blocks. Raises OSError."""
        ...

    def take(self, request_id: int, epoch: int, room: int | None = None) -> bool | None:
        """The peer said OK to this frame, goes by that epoch, and lends so much beyond the frame (None: it says nothing of
        that): whether it was a portion; None if it is of old. Raises ValueError if it is not the oldest."""
        ...

    def is_of_old(self, request_id: int) -> bool: ...

    def watch(self) -> None:
        """Once `acknowledged` moves, have `run` come back and `take_moved` say so, once."""
        ...

    def take_moved(self) -> bool: ...

    def counts(self) -> WindowCounts: ...

    def close(self) -> None:
        """Neither of the link's threads is there any more."""
        ...


class ChangeStream(Protocol):
    """The ordered stream of this node's changes: bounded, with a cursor for each reader."""

    @property
    def head(self) -> int:
        """The position after the newest record."""
        ...

    @property
    def durable(self) -> int:
        """The position up to which the log is on disk."""
        ...

    @property
    def failure(self) -> str:
        """Why the log that reads the stream failed; "" while it has not. Then no `take` waits any more."""
        ...

    @property
    def disk(self) -> CommitPoint:
        """The point that is the append log on disk; the log's to advance, never closed."""
        ...

    def wait_committed(self, wait: Wait, deadline_ns: int) -> StreamEnd:
        """Block until each of the points has the stream up to the position (`deadline_ns` by time.monotonic_ns)."""
        ...

    def begin_moment(self, points: int) -> int:
        """The moment that begins now, for a wait for these points: it is confirmed by what their peers answer to frames that
        are begun from now on, which windows see to by themselves. 0 where none of the points is a link's."""
        ...

    def open_reader(self, name: str, *, holds: bool) -> StreamReader:
        """A new reader, from the newest record on. One that `holds` makes writers wait; another is told what it lost."""
        ...

    def open_window(self, name: str, terms: WindowTerms, point: CommitPoint) -> Window:
        """A window with a reader of its own, from the newest record on, that sends records of no bucket yet."""
        ...

    def set_durable(self, position: int) -> None:
        """The log is on disk up to `position`; wakes who waits for that."""
        ...

    def wait_durable(self, position: int, deadline_ns: int) -> StreamEnd:
        """Block until the log is on disk up to `position` (`deadline_ns` by time.monotonic_ns)."""
        ...

    def wake_readers(self) -> None:
        """Have the readers look at once, without linger."""
        ...

    def end_waits(self) -> None:
        """The node stops and its deadline is over: every wait of a writer ends now, as if its own deadline had passed."""
        ...

    def fail(self, why: str) -> None:
        """The log cannot go on: every waiter and every later writer is told FAILED."""
        ...
