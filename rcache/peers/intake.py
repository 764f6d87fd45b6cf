"""What a peer sends of its changes: applied here, on its way into this node's log, and acknowledged.

What it is: the other end of a link, one for each incarnation of each peer. It knows which generation of the link is the newest,
so that nothing of an earlier one is taken in after it.
Which thread runs it: the worker of the connection that the records came by; blocks for room in the log's stream, and with
fsync always for the disk.
What it owns: the order in which this peer's records are applied and go to the log: its gate (`contract.Gate`), through which
the engine may take the usual frames in by itself. It may lock: that, then a stripe, then the applied stream.
What it must not know: sockets; how views are agreed.

Invariants:
1. A record is applied only to a bucket that follows this peer in the view that was taken in here (the engine looks, under the
   stripe lock); a frame of a newer view waits until that was taken in. (A node that was away sends on in what is not its any
   more.)
2. Records go to the log in the order in which they were applied, and once each.
3. After a frame of a generation was refused no other of it is taken. (The bucket would have a hole.)
4. What is answered with OK was applied; with fsync always it is on the disk here.
5. The gate is open only for frames of the newest generation, once one of it brought nothing of old and none was refused; and
   never with fsync always, where an answer waits.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

from loguru import logger

from rcache.cluster.bucket_state import BucketState
from rcache.cluster.leases import Peer
from rcache.engine.change_stream import StreamEnd
from rcache.engine.contract import ChainError, Engine, NotFollowed
from rcache.records.record import HISTORY_KINDS, BadRecord, Head, Kind, encode_drop, heads
from rcache.stream.applied import AppliedFailed, AppliedStream
from rcache_client.wire.opcodes import Status

PORTION_KINDS = frozenset({Kind.IMPORT_BEGIN, Kind.ROW, Kind.IMPORT_END})
"""What a portion of a copy that is being made begins with; it is of one bucket, and nothing else is in its frame."""

APPEND_S = 0.5
"""How long one try for room in the log's stream lasts; then it is looked whether the node stops."""

DURABLE_S = 30.0
"""How long the disk may take with fsync always; the peer goes on without this node long before."""


class Taken(NamedTuple):
    """What is answered."""

    status: Status
    reason: str = ""


TAKEN = Taken(Status.OK)
OF_OLD = Taken(Status.STALE_VIEW)


class Heading(NamedTuple):
    """What a frame of records says of itself."""

    epoch: int
    sender: int
    receiver: int
    generation: int


class Intake:
    """See the module. `source` is the number that buckets follow this peer by; `is_holder`: whether this node has a whole copy
    of a bucket in the view."""

    def __init__(
        self,
        peer: Peer,
        source: int,
        engine: Engine,
        applied: AppliedStream,
        is_holder: Callable[[int], bool],
        *,
        durable: bool,
    ) -> None:
        self.peer = peer
        self.source = source
        self._durable = durable
        self._frames = self._records = self.refused = 0
        self.broken = ""
        self._engine = engine
        self._applied = applied
        self._is_holder = is_holder
        self.gate = engine.open_gate(source, self._record_counted)
        self._generation = 0
        self._refused_generation = 0
        self._repeats = False  # records may come that were taken in before
        self._unfinished: dict[int, float] = {}  # copies that are being made, and when the last portion came
        self._stopping = False

    @property
    def durable(self) -> bool:
        """Whether what is answered with OK has to be on the disk here."""
        return self._durable

    @durable.setter
    def durable(self, durable: bool) -> None:
        if durable is not self._durable:
            with self.gate:
                self._durable = durable
                self.gate.forbid()

    @property
    def frames(self) -> int:
        """Taken in here, and by the engine itself."""
        return self._frames + self.gate.counts[0]

    @property
    def records(self) -> int:
        """Of these frames."""
        return self._records + self.gate.counts[1]

    def take(self, heading: Heading, body: bytes, follows: Callable[[int], int]) -> Taken:
        """Apply what a frame holds; `follows` says whom a bucket follows. Blocks. The caller has seen to the frame's view."""
        generation = heading.generation
        with self.gate:
            if generation < self._generation or generation <= self._refused_generation:
                return OF_OLD  # invariants 1 and 3
            if generation > self._generation:
                self._generation = generation
                self._repeats = True
                self.gate.forbid()
            self._repeats = self.gate.take_stumbled() or self._repeats
            taken, position = self._apply(body, follows)
            if taken.status is not Status.OK:
                self.gate.forbid()
            elif not self._durable and not self._repeats:
                self.gate.allow(*heading)  # invariant 5
        if taken.status is Status.OK and self.durable and body:
            return self._await_disk(position)
        return taken

    def refuse(self, generation: int) -> None:
        """A frame of this generation was not taken for want of its view: nothing later of it is (invariant 3)."""
        with self.gate:
            self._refused_generation = max(self._refused_generation, generation)
            self.gate.forbid()

    def pass_by(self) -> None:
        """Block until what is being taken in has its place in the log's stream."""
        with self.gate:
            pass

    def let_go_of_unfinished(self, idle_s: float, follows: Callable[[int], int]) -> list[int]:
        """The control plane: let go of copies that nothing came for since so long; which these were. Blocks for moments. (The
        peer gave them up, and does not say so. Half made they take memory, and no checkpoint is whole. If it does go on, the
        bucket is absent, and it begins anew.)"""
        with self.gate:
            long_ago = time.monotonic() - idle_s
            idle = [bucket for bucket, at in self._unfinished.items() if at <= long_ago]
            for bucket in idle:
                del self._unfinished[bucket]
            let_go = [b for b in idle if self._engine.state(b) is BucketState.IMPORTING and follows(b) == self.source]
            for bucket in let_go:
                self._engine.set_state(bucket, BucketState.ABSENT)
            self._record(b"".join(encode_drop(bucket, self._engine.clock.now_ms()) for bucket in let_go))
        return let_go

    def stop(self) -> None:
        """Nothing waits here for the log any more."""
        self._stopping = True
        self.gate.close()

    # --- under the lock

    def _apply(self, body: bytes, follows: Callable[[int], int]) -> tuple[Taken, int | None]:
        try:
            if self._repeats:
                body = self._without_repeats(body)
            try:
                self._engine.apply(body, self.source)
            except ChainError:
                if not self._clear_for_import(body, follows):
                    raise
                self._engine.apply(body, self.source)
        except (ChainError, BadRecord, MemoryError) as error:
            return self._refuse(body, error, follows)
        self._frames += 1
        self._note_portion(body)
        return TAKEN, self._record(body)

    def _note_portion(self, body: bytes) -> None:
        head = next(heads(body), None)
        if head is None or head.kind not in PORTION_KINDS:
            return
        if self._engine.state(head.bucket) is BucketState.IMPORTING:
            self._unfinished[head.bucket] = time.monotonic()
        else:
            self._unfinished.pop(head.bucket, None)

    def _without_repeats(self, body: bytes) -> bytes:
        """What was not applied yet; the rest is in the log already (invariant 2). Once a frame brings nothing of old, no later
        one does. Nor does any after an empty one: that is sent where nothing else was left to send."""
        whole = [head for head in heads(body) if not self._is_repeat(head)]
        kept = b"".join(body[head.start : head.end] for head in whole)
        if len(kept) == len(body):
            self._repeats = False
        return kept

    def _is_repeat(self, head: Head) -> bool:
        if head.kind not in HISTORY_KINDS:
            return False
        return head.bucket < self._engine.config.buckets and head.sequence <= self._engine.sequence(head.bucket)

    def _clear_for_import(self, body: bytes, follows: Callable[[int], int]) -> bool:
        """A copy that was whole, but that never came to be counted, is made anew by who made it; never one that the view counts
        on, and never for a peer that the bucket does not follow. (The primary before was making a copy when the bucket was
        taken from it, and learns of that later. A last portion of it clears what the new primary made, and goes on to count.)
        """
        for head in _readable_heads(body):
            if head.kind == Kind.IMPORT_BEGIN and head.bucket < self._engine.config.buckets:
                whole = self._engine.state(head.bucket) is BucketState.BACKUP
                if whole and follows(head.bucket) == self.source and not self._is_holder(head.bucket):
                    self._engine.set_state(head.bucket, BucketState.ABSENT)
                    return True
        return False

    def _refuse(self, body: bytes, error: Exception, follows: Callable[[int], int]) -> tuple[Taken, int | None]:
        """Nothing from the first record on that does not apply. What was applied before it goes to the log."""
        self.refused += 1
        self._refused_generation = self._generation
        at = self._applied_up_to(body)
        if at:
            self._record(body[:at])
        if isinstance(error, MemoryError):
            return Taken(Status.NO_ROOM, "no memory for this copy"), None
        if isinstance(error, NotFollowed) or any(
            self._is_of_old(head, follows) for head in _readable_heads(body) if head.start >= at
        ):  # the former by what the engine found: a view that is being carried out may have it follow this peer by now
            return OF_OLD, None
        self.broken = str(error)
        logger.error("records of {} do not fit what is here: {}", self.peer.name, error)
        return Taken(Status.BROKEN_CHAIN, str(error)), None

    def _applied_up_to(self, body: bytes) -> int:
        """Where the first record lies that was not applied. What was applied is seen by what the engine holds: nobody clears a
        bucket while this lock is held (`pass_by`)."""
        engine, end = self._engine, 0
        for head in _readable_heads(body):
            if head.bucket >= engine.config.buckets:
                return head.start
            if head.kind in HISTORY_KINDS:
                applied = head.sequence <= engine.sequence(head.bucket)
            else:  # a portion is of one bucket, and nothing follows in its frame: what failed is one of its marks
                applied = engine.state(head.bucket) is BucketState.IMPORTING and head.kind != Kind.IMPORT_END
            if not applied:
                return head.start
            end = head.end
        return end

    def _is_of_old(self, head: Head, follows: Callable[[int], int]) -> bool:
        """Whether a record is for a bucket that is not this peer's, or not here, in the view that was taken in: the peer goes
        by an older one, or its link does for a moment."""
        if head.bucket >= self._engine.config.buckets:
            return False
        if follows(head.bucket) != self.source:
            return True
        absent = self._engine.state(head.bucket) is BucketState.ABSENT
        return absent and head.kind != Kind.IMPORT_BEGIN and not self._is_holder(head.bucket)

    def _record(self, body: bytes) -> int | None:
        """Give what was applied its place in the log's stream, however long that takes."""
        if not body:
            return None
        count = sum(1 for _ in heads(body))
        self._records += count
        return self._record_counted(body, count)

    def _record_counted(self, body: bytes, count: int) -> int | None:
        """The same for what the engine applied by itself. On the connection's worker, under the gate's lock too."""
        while not self._stopping:
            try:
                return self._applied.append(body, count, time.monotonic_ns() + int(APPEND_S * 1e9))
            except TimeoutError:
                continue
            except AppliedFailed:
                return None  # the node stops for it
        return None

    def _await_disk(self, position: int | None) -> Taken:
        """Invariant 4. A frame that brought nothing new is on the disk with what came before it."""
        if not self._applied.is_kept or (position is None and (self._stopping or self._applied.failure)):
            return Taken(Status.APPEND_LOG_FAILED, "this node's log does not take it in")
        position = self._applied.head if position is None else position
        end = self._applied.wait_durable(position, time.monotonic_ns() + int(DURABLE_S * 1e9))
        return TAKEN if end is StreamEnd.REACHED else Taken(Status.APPEND_LOG_FAILED, "not on the disk here")


def _readable_heads(body: bytes) -> list[Head]:
    """The records up to the first that is none."""
    found: list[Head] = []
    try:
        for head in heads(body):
            found.append(head)  # noqa: PERF402  what was found before an error is kept
    except BadRecord:
        pass
    return found
