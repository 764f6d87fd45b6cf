"""The engine's contract: what every body of the engine does, and what the rest of the server may rely on.

What it is: the types and protocols between the engine and the floors above it. `tests/contract/` runs one suite over every
body.
Which thread runs it: `serve` the worker that owns the connection; all other calls any thread.
What it owns: nothing; these are types.
What it must not know: how a body keeps its items.

Invariants every body keeps:
1. A change is placed in the change stream under its bucket's stripe lock, so the stream holds each bucket's changes in the
   order of their sequences. Nothing waits and no I/O happens under a stripe lock.
2. Room in the stream and memory for the item are reserved before the lock is taken. When they cannot be had before the
   deadline the request is refused and nothing has changed.
3. Replies leave in the order of their requests. A reply leaves only after every commit point its bucket waits for has the
   highest sequence it reveals; if that does not happen before its deadline, it says that the outcome is not known.
4. No more memory is in use for items than the limit, except while a copy is recovered.
"""

from __future__ import annotations

import socket
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple, Protocol

from rcache.cluster.bucket_state import BucketState
from rcache.engine.clock import NodeClock
from rcache.records.record import heads
from rcache_client.wire.frames import BadFrame, Request
from rcache_client.wire.opcodes import Status


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """How an engine is set up. Sizes in bytes; `commit`: every bucket waits for the disk until it is told otherwise."""

    buckets: int = 1024
    stripes: int = 64
    memory_bytes: int = 1 << 30
    evict: bool = True
    value_bytes_max: int = 1 << 20
    frame_bytes_max: int = 16 << 20
    stream_bytes: int = 64 << 20
    commit: bool = False
    default_budget_s: float = 5.0


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """What a connection may take, in seconds: to its first frame, between frames, for one frame to come in, and to take its
    replies."""

    hello_s: float = 10.0
    idle_s: float = 600.0
    frame_s: float = 30.0
    send_s: float = 30.0


class Ended(Enum):
    """Why `serve` came back."""

    FRAME = "a frame that is not the engine's business"
    CLOSED = "the peer closed"
    LOST = "the connection broke"
    BAD_FRAME = "a frame that cannot be read"
    HELLO_TIMEOUT = "no first frame in time"
    IDLE_TIMEOUT = "idle for too long"
    FRAME_TIMEOUT = "a frame that did not come in whole in time"
    SLOW_READER = "replies were not taken in time"
    STOPPING = "asked to stop"
    CROWDED = "to be served by a worker that shares sockets from now on"


class Handback(NamedTuple):
    """What `serve` returns; `request` is there for FRAME, `bad` for BAD_FRAME. All earlier replies have been sent."""

    ended: Ended
    request: Request | None = None
    bad: BadFrame | None = None


class StreamEnd(Enum):
    """How a wait on the change stream ended."""

    REACHED = "reached"
    TIMED_OUT = "timed out"
    FAILED = "the stream's log failed"


class Wait(NamedTuple):
    """What an answer waits for: that each of `points` (a bit for each, by its number) has the stream up to `position`. No
    points: it waits for nothing."""

    points: int = 0
    position: int = 0

    def join(self, other: Wait) -> Wait:
        """Both at once. A point that the one waits for is waited for up to the position of the other, too."""
        return Wait(self.points | other.points, max(self.position, other.position))


NO_WAIT = Wait()
POINTS_MAX = 64
"""Commit points that a stream can have, the disk among them: the bits of a word."""

DISK = 0
"""The number of the point that is the append log on disk."""


class CommitPoint(Protocol):
    """A place where the changes of this node must be before they are committed: the disk, or a backup.

    `position` of a point counts from the beginning of the stream, and means: of everything before it, this point has all that
    it is to have. So a link passes records that are not for its peer by itself, once there is none for it before them.
    """

    @property
    def number(self) -> int: ...

    @property
    def position(self) -> int: ...

    def advance(self, position: int) -> None:
        """An acknowledgement came in. Wakes who waits for it. Never goes back."""
        ...

    def close(self) -> None:
        """Nothing waits for this point any more, in no bucket: what waits only for it is committed. For a peer that is no
        backup any more, by an agreed view, and never before that."""
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

    def send(self, sock: socket.socket, frame: LinkFrame, bytes_max: int, timeout_s: float) -> Sent:
        """Send what there is, as `take` would give it, straight from the stream in one request frame. For a reader that holds;
        else ValueError. Blocks up to `timeout_s` for the first record, and up to `frame.send_s` for the peer to take them."""
        ...

    def release(self, position: int) -> None:
        """Any thread: records before `position` need not be kept for this reader any more."""
        ...

    def close(self) -> None:
        """The reader is done; nothing waits for it any more."""
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
    def disk(self) -> CommitPoint:
        """The point that is the append log on disk; the log's to advance, never closed."""
        ...

    def wait_committed(self, wait: Wait, deadline_ns: int) -> StreamEnd:
        """Block until each of the points has the stream up to the position (`deadline_ns` by time.monotonic_ns)."""
        ...

    def open_reader(self, name: str, *, holds: bool) -> StreamReader:
        """A new reader, from the newest record on. One that `holds` makes writers wait; another is told what it lost."""
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


class EngineConnection(Protocol):
    """One connection, as the engine sees it. Owned by its worker.

    `data_allowed`: data opcodes are executed; else they are handed back. `greeted`: the peer has said what it is, so the idle
    limit applies. `last_executed` is a request id, `requests` a count.
    """

    sock: socket.socket
    data_allowed: bool
    greeted: bool
    last_executed: int

    @property
    def requests(self) -> int: ...

    def send(self, data: bytes) -> Ended | None:
        """Send a reply made outside the engine; None if all was taken in time. Blocks up to `send_s`."""
        ...

    def queue(self, data: bytes, *, last: bool = False) -> None:
        """Have its group send this as soon as the connection is added to it. After the `last` frame comes FIN, then the peer's
        end is waited for (bounded), and the connection is handed back as CLOSED. Never blocks."""
        ...


class SocketGroup(Protocol):
    """Connections that one worker serves together, without ever blocking in one of them."""

    def add(self, connection: EngineConnection) -> None:
        """Any thread: serve this one too, until `serve` hands it back."""
        ...

    def serve(self) -> tuple[EngineConnection, Handback] | None:
        """Until a connection has something that is not the engine's business; it is out of the group then, and all its replies
        have been sent. None once serving is to stop and nobody is left. Blocks."""
        ...


class Engine(Protocol):
    """The node's items and their change stream."""

    name: str
    config: EngineConfig
    clock: NodeClock
    epoch: int

    @property
    def stream(self) -> ChangeStream: ...

    def connect(self, sock: socket.socket, limits: ConnectionLimits) -> EngineConnection:
        """Take over a connected, blocking socket; the caller still closes it."""
        ...

    def serve(self, connection: EngineConnection) -> Handback:
        """Receive, execute and answer data opcodes until something else comes up. Blocks."""
        ...

    def share(self) -> SocketGroup | None:
        """A new group of connections; None where this body serves one connection in each thread."""
        ...

    def set_crowded(self, crowded: bool) -> None:
        """Any thread: from now on `serve` comes back with CROWDED after the batch under way, or no longer does."""
        ...

    def stop_serving(self) -> None:
        """Any thread: every `serve` comes back with STOPPING once what it received is answered, now and from now on."""
        ...

    def execute(self, request: Request) -> bytes:
        """One data request, its reply frame. Blocks until it is committed or its deadline has passed."""
        ...

    def open_buckets(self, buckets: Sequence[int], epoch: int, incarnation: int, node: str) -> None:
        """Become primary of these buckets: an OPEN record each. Blocks for room in the stream."""
        ...

    def set_state(self, bucket: int, state: BucketState) -> None:
        """FROZEN or ABSENT for a bucket; an absent one holds nothing. Raises ValueError if it may not follow."""
        ...

    def state(self, bucket: int) -> BucketState: ...

    def open_commit_point(self, name: str, position: int) -> CommitPoint:
        """A new point, which has the stream up to `position`. No bucket waits for it yet. Raises ValueError if there are
        POINTS_MAX already."""
        ...

    def set_commit_points(self, bucket: int, points: Collection[CommitPoint]) -> int:
        """From now on, what a bucket answers waits for these points; what waits already goes on waiting for those it waited
        for, until they advance or are closed. Returns the stream's head at that moment: a point that is added has what was
        there before only once it has come that far. Raises ValueError where one of them is closed."""
        ...

    def exhausted_buckets(self) -> list[int]:
        """Buckets whose counter ran out; they refuse writes until they are opened in a later epoch."""
        ...

    def apply(self, body: bytes | memoryview) -> None:
        """Apply records (imports, changes in chain order) to buckets that are not primary. Raises BadRecord, ChainError."""
        ...

    def copy_bucket(self, bucket: int) -> Iterator[bytes]:
        """A copy of a bucket: IMPORT_BEGIN, ROWs and IMPORT_END, a record each."""
        ...

    def copy_portion(self, bucket: int, after: object, bytes_max: int) -> Portion:
        """Some of a bucket's items, about `bytes_max` bytes of them; `after` is what the portion before said, None at first.
        Every item that is there throughout is in one of the portions; one that comes, goes or changes meanwhile is told by the
        stream: who sends that up to `position` before these rows, and goes on with it after them, sends no row that is older
        than what was sent before it."""
        ...

    def flush(self, deadline_ns: int) -> int:
        """Remove all items, bucket by bucket, and wait until that is committed. Returns how many. Raises RequestRefused."""
        ...

    def expire_due(self, items_max: int) -> int:
        """Remove up to `items_max` items whose time has come. Returns how many."""
        ...

    def trim(self) -> int:
        """Evict until the memory limit holds again (after a recovery with a smaller limit). Returns how many."""
        ...

    def stats(self) -> dict[str, dict[str, Any]]:
        """Counters and gauges by section, for STATS."""
        ...

    def close(self) -> None:
        """Nothing is served any more: let go of what the process would keep."""
        ...

    def check(self) -> None:
        """Compare every structure with every other. Raises AssertionError. For tests; takes every lock in turn."""
        ...


class RequestRefused(Exception):
    """A request that is not answered as asked: the status, the reason, and what the answer reveals (an item's version, and
    what must be committed before it may leave)."""

    def __init__(self, status: Status, reason: str = "", *, version: int = 0, wait: Wait = NO_WAIT) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.version = version
        self.wait = wait


UNCOMMITTED = {
    StreamEnd.TIMED_OUT: (
        Status.NOT_COMMITTED,
        "applied here, but not committed before the deadline; the outcome is not known",
    ),
    StreamEnd.FAILED: (Status.APPEND_LOG_FAILED, "the append log failed; the outcome is not known"),
}
"""How an answer ends whose wait for commitment ended otherwise than it should."""


class ChainError(Exception):
    """A record that does not follow on the last one of its bucket."""
