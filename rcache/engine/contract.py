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
   highest sequence it reveals, and while the leases of those points hold; if that does not happen before its deadline, it says
   that the outcome is not known.
4. No more memory is in use for items than the limit, except while a copy is recovered, or made here for a peer.
5. Until a bucket's OPEN is committed, whatever it reveals waits for the OPEN: the newest records of the primary before it may
   not have been acknowledged by all backups, and only an acknowledged OPEN says that they have them.
6. With `confirm_reads` a reply leaves only after every link that its bucket waits for has answered a frame that was begun after
   the reply's batch was executed, naming no newer view than the frame did (`ChangeStream.begin_moment`). So what it reveals was
   not another's to change when it was read, whatever this machine's clocks say: values, misses and refusals alike. A change
   that was made needs no such answer, since no backup acknowledges what is not this node's to change.
7. A change of a bucket uses no more of a backup's room than that has lent (`Window`); where it would, items that this backup
   holds are evicted first, or the change is refused, before anything of it is done.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from rcache.cluster.bucket_state import BucketState
from rcache.engine.change_stream import HELD_FOR_EVER, NO_WAIT, ChangeStream, CommitPoint, Portion, StreamEnd, Wait
from rcache.engine.clock import NodeClock
from rcache.engine.sockets import Ended
from rcache_client.wire.frames import BadFrame, Request
from rcache_client.wire.opcodes import Status

OPEN_WAIT_S = 30.0
"""How long opening a bucket waits for room in the stream. The log writer drains the whole ring in far less."""


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """How an engine is set up. Sizes in bytes; `commit`: every bucket waits for the disk until it is told otherwise;
    `confirm_reads`: see invariant 6."""

    buckets: int = 1024
    stripes: int = 64
    memory_bytes: int = 1 << 30
    evict: bool = True
    value_bytes_max: int = 1 << 20
    frame_bytes_max: int = 16 << 20
    stream_bytes: int = 64 << 20
    commit: bool = False
    confirm_reads: bool = False
    default_budget_s: float = 5.0


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """What a connection may take, in seconds: to its first frame, between frames, for one frame to come in, and to take its
    replies."""

    hello_s: float = 10.0
    idle_s: float = 600.0
    frame_s: float = 30.0
    send_s: float = 30.0


class Handback(NamedTuple):
    """What `serve` returns; `request` is there for FRAME, `bad` for BAD_FRAME. All earlier replies have been sent."""

    ended: Ended
    request: Request | None = None
    bad: BadFrame | None = None


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


class Gate(Protocol):
    """The gate for what one peer sends of its changes. As a context it is the lock under which they are taken in: applied, and
    recorded, in one order. It says which frames are the usual case: those like the last one that the caller took in himself."""

    def __enter__(self) -> object: ...

    def __exit__(self, *_: object) -> None: ...

    def allow(self, epoch: int, sender: int, receiver: int, generation: int) -> None:
        """Under the lock: from now on frames of records that say this may be taken in by `serve_peer`, if they hold changes
        alone."""
        ...

    def forbid(self) -> None:
        """None may, until `allow`. Under the lock it holds once this returns, else after the frame under way."""
        ...

    def take_stumbled(self) -> bool:
        """Under the lock, once: whether a frame that was handed back was applied and recorded in part. Only the rest of it is
        to be taken in."""
        ...

    def lend(self) -> int:
        """What the peer may use of this node's room from now on, beyond what was taken in, in bytes as `credit_cost` counts;
        negative: how much has to go. It is kept free for it, and lent to nobody else (`design`, section 5, invariant 9)."""
        ...

    def close(self) -> None:
        """None may ever again, after the frame under way; nothing is lent any more. Never blocks."""
        ...

    @property
    def counts(self) -> tuple[int, int, int]:
        """Frames that `serve_peer` took in, their records, and the bytes of these."""
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

    def open_gate(self, source: int, record: Callable[[bytes, int], object] | None) -> Gate:
        """A gate for records of this source, that lets in nothing yet. What `serve_peer` applied is given to `record`, with the
        number of records, under the gate's lock and before it is answered; None: nobody keeps it."""
        ...

    def serve_peer(self, connection: EngineConnection, gate: Gate | None) -> Handback | None:
        """As `serve`, for a node's connection: take in and answer frames of records that `gate` lets in, for as long as all is
        usual; everything else is handed back, and all a body need do. A frame that does not apply to its end is handed back
        whole (`take_stumbled`). None: nothing has come up for a moment. Blocks, up to that."""
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

    def open_buckets(
        self, buckets: Sequence[int], epoch: int, incarnation: int, node: str, wait_s: float = OPEN_WAIT_S
    ) -> None:
        """Become primary of these buckets: an OPEN record each. Blocks for room in the stream, up to `wait_s` for all of them.
        Raises `RequestRefused` where there was none in time; those before are open then."""
        ...

    def set_state(self, bucket: int, state: BucketState) -> None:
        """FROZEN, ABSENT or (what was FROZEN) BACKUP for a bucket; an absent one holds nothing. Raises ValueError if it may not
        follow."""
        ...

    def times_let_go(self, bucket: int) -> int:
        """Counts up when a bucket becomes ABSENT by `set_state`, and is odd while it does: where it was even, and the same
        before and after a look, that was at one copy, or at none."""
        ...

    def sequence(self, bucket: int) -> int:
        """The sequence of a bucket's newest record here."""
        ...

    def opened_from(self, bucket: int) -> int:
        """The sequence that this node's newest OPEN of a bucket continued from (0: from nothing, or there was none)."""
        ...

    def follow(self, bucket: int, source: int) -> None:
        """From now on records of others apply to this bucket only if they come from `source` (a number of the caller's; 0:
        from nobody but a recovery). Once this returns nothing of another source is being applied to it any more."""
        ...

    def set_paused(self, paused: bool) -> None:
        """While it is, changes that are asked for wait, up to their deadline, and are answered PAUSED then; an expired item is
        a miss that is removed later, and nothing is evicted. What applies as a backup, OPENs and reads go on. Once this
        returns no change is under way any more that will still be made."""
        ...

    def state(self, bucket: int) -> BucketState: ...

    def open_commit_point(self, name: str, position: int, until_ns: int = HELD_FOR_EVER) -> CommitPoint:
        """A new point, which has the stream up to `position` and whose lease runs to `until_ns`. No bucket waits for it yet.
        Raises ValueError if there are POINTS_MAX already."""
        ...

    def set_commit_points(self, bucket: int, points: Collection[CommitPoint]) -> int:
        """From now on, what a bucket answers waits for these points; what waits already goes on waiting for those it waited
        for, until they advance or are closed. Returns the stream's head at that moment: a point that is added has what was
        there before only once it has come that far. Raises ValueError where one of them is closed."""
        ...

    def commit_points(self, bucket: int) -> int | None:
        """The points (a bit each, as in `Wait`) that what a bucket answers waits for at this moment; None where this node is
        not its primary. Once all of them have the stream up to a position, what lies before it of this bucket is committed."""
        ...

    def all_commit_points(self) -> int:
        """The points that any bucket waits for."""
        ...

    def exhausted_buckets(self) -> list[int]:
        """Buckets whose counter ran out; they refuse writes until they are opened in a later epoch."""
        ...

    def apply(self, body: bytes | memoryview, source: int = 0) -> None:
        """Apply records (imports, changes in chain order) to buckets that are not primary and follow `source`. Raises
        BadRecord, ChainError.

        From a source other than 0: changes that the bucket has already (their sequence is not above its own) are passed by,
        since a link sends again what it does not know to have been taken; and an import begins only in a bucket that is absent
        or importing: a whole copy is let go of by a view, never by what a peer sends."""
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
        """Remove all items of the buckets that this node is primary of, one after the other, and wait until that is committed.
        Returns how many. Raises RequestRefused."""
        ...

    def expire_due(self, items_max: int) -> int:
        """Remove up to `items_max` items whose time has come. Returns how many."""
        ...

    def trim(self) -> int:
        """Evict what this node is primary of until the memory limit holds again (after a recovery with a smaller limit). Where
        it holds copies of others too, only its part of what has to go: the rest is told to their primaries (`Gate.lend`).
        Nothing where eviction is switched off. Returns how many."""
        ...

    def relieve(self, items_max: int) -> int:
        """Where changes have used more of a backup's room than it has, evict up to so many items that it holds; and have those
        backups asked that have to say something new of their room. Does not wait for room in the stream. Returns how many."""
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


class NotFollowed(ChainError):
    """A record of a bucket that follows another peer than the one that sent it."""
