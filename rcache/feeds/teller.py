"""The teller: reads this node's change stream once for all subscribers, and tells what is committed.

What it is: the thread that takes records from the stream, waits until the commit points of their buckets have them, and adds
them to what is held (`told`), from where each feed has its own. It says, too, up to when all that was committed has been told.
Which thread runs it: its own, `feeds`; what feeds read, any. Started by the hub for the first subscriber, ended with the last.
What it owns: its reader, the tenures, what is held, until when that is proven. It may lock: its own lock, for moments;
behind that one stripe (by the engine).
What it must not know: sockets, payloads, who subscribed to what.

Invariants:
1. A record is told only once every point that its bucket waited for, at a moment at which this node was its primary, has the
   stream up to behind it; and only in the tenure in which it was placed (`tenures`). So it is on the chain of every node that
   will ever be primary of its bucket.
2. Of a bucket records are told in the order of their sequences, each once; what is missing in between is told as a gap.
3. No subscriber holds the stream up: the reader does not hold, and what is held has a limit in bytes. Who is behind loses its
   oldest part, and is told.
4. A proof says: everything that was committed before a moment has been told. It is made of a position of the stream that was
   read after that moment, all of it told, and after that every lease held at a moment at which this node was primary of all
   that it tells of. So nobody else had changed any of it before that moment.
"""

from __future__ import annotations

import functools
import operator
import threading
import time
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple

from loguru import logger

from rcache.engine.change_stream import Batch, StreamEnd, Wait
from rcache.engine.contract import Engine
from rcache.feeds.tenures import Tenures
from rcache.feeds.told import Held, Told
from rcache.records.record import HISTORY_KINDS, Head, Kind, counter_of, decode, decode_opening, epoch_of, heads
from rcache_client.wire.feeds import Notice, NoticeKind

TAKE_BYTES = 256 << 10
LOOK_S = 0.02
"""How often it is looked whether a bucket has gone, and whether a proof can be made, while nothing is changed."""

COMMIT_S = 0.05
"""How long one wait for commitment lasts before it is looked whether it can still be met."""

ENDS_LOOK_S = 0.25
"""How often it is looked what has ended where no view came."""

FROZEN_LOOK_S = 0.002

PROOFS = 64
"""So many are kept: who is behind by some entries counts on an older one."""


class Proof(NamedTuple):
    """All that was committed before `at` (time.monotonic, seconds) lies before the place `end`."""

    at: float
    end: int


@dataclass(slots=True)
class TellerCounts:
    """Since the start."""

    records: int = 0
    gaps: int = 0
    ended: int = 0
    proofs: int = 0
    errors: int = 0


class Teller:
    """See the module. `changed` is notified, under `lock`, when anything was told or proven. `last`: the sequence up to which
    each bucket was told of."""

    def __init__(self, engine: Engine, counts: TellerCounts, held_bytes: int) -> None:
        self.engine = engine
        self.counts = counts
        self.lock = threading.Lock()
        self.changed = threading.Condition(self.lock)
        self._reader = engine.stream.open_reader("feeds", holds=False)  # first: an OPEN that it does not read is seen behind it
        self._position = engine.stream.head
        self._tenures = Tenures(engine)
        self.last = [engine.sequence(bucket) for bucket in range(engine.config.buckets)]
        self._opened = {bucket: (engine.opened_from(bucket), at) for bucket, at in enumerate(self.last) if not counter_of(at)}
        self.held = Held(held_bytes, self.last)
        self._proofs: deque[Proof] = deque(maxlen=PROOFS)
        self._wanted_at = 0.0
        self._looked = (0, 0.0)  # the epoch, and when it was looked what has ended
        self._missed: dict[int, int] | None = None  # after a loss: how far each bucket was, and up to where that is made up for
        self._missed_to = 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="feeds")

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_s: float) -> bool:
        """Nobody is told anything any more. False if the thread took too long."""
        self._stopping.set()
        with self.lock:
            self.changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    @property
    def is_stopping(self) -> bool:
        return self._stopping.is_set()

    # --- for feeds, under the lock

    def tells_of(self, bucket: int) -> bool:
        return self._tenures.has(bucket)

    def present(self) -> list[int]:
        """The buckets that are told of."""
        return self._tenures.present()

    def same_place(self, bucket: int, sequence: int) -> int:
        """The same place in a bucket's history, where that has another name: behind the OPEN that came next, if this began to
        tell of the bucket right behind that."""
        before, at = self._opened.get(bucket, (None, 0))
        return at if sequence == before else sequence

    def want_proof(self, at: float) -> None:
        """Somebody wants to know that all before this moment was told."""
        self._wanted_at = max(self._wanted_at, at)

    def proven_at(self, place: int) -> float | None:
        """The newest moment before which all that was committed lies before this place, if there is one."""
        return next((proof.at for proof in reversed(self._proofs) if proof.end <= place), None)

    # --- the thread

    def _run(self) -> None:
        """The thread's one catch-all: an error is logged and counted, and everything that is told of ends, so that subscribers
        begin anew."""
        try:
            while not self.is_stopping:
                try:
                    self._step()
                except Exception:
                    self.counts.errors += 1
                    logger.exception("feeds: unhandled error; all subscribers begin anew")
                    self._end_buckets(self._tenures.present())
                    self._note_loss()  # what is primary here is told of again from then on
                    self._stopping.wait(LOOK_S)
        finally:
            self._reader.close()

    def _step(self) -> None:
        """What there is, or a look around."""
        began = time.monotonic()
        head = self.engine.stream.head
        batch = self._reader.take(TAKE_BYTES, LOOK_S)
        if batch.lost:
            self._note_loss()
        if batch.count:
            self._take(batch)
        self._position = batch.position
        self._look_for_ends()
        if self._missed is not None and self._position >= self._missed_to:
            self._make_up_for(self._missed)
        if self._position >= head and self._wanted_at > self._proven_at() and self._missed is None:
            self._prove(began, head)

    def _note_loss(self) -> None:
        """How far buckets are, and up to where that is made up for: behind what was looked at."""
        self._missed = {bucket: self.engine.sequence(bucket) for bucket in range(self.engine.config.buckets)}
        self._missed_to = self.engine.stream.head

    def _look_for_ends(self) -> None:
        now = time.monotonic()
        epoch, at = self._looked
        if epoch != self.engine.epoch or now - at > ENDS_LOOK_S:
            self._looked = (self.engine.epoch, now)
            self._end_buckets([bucket for bucket in self._tenures.present() if self._tenures.is_over(bucket)])

    # --- telling

    def _take(self, batch: Batch) -> None:
        body = bytes(batch.body)
        found = [head for head in heads(body) if head.kind in HISTORY_KINDS]
        begin: dict[int, int] = {}
        for head in found:
            if head.kind == Kind.OPEN and self._is_new(head) and self._note_opening(body, head):
                begin[head.bucket] = head.start
        found = [head for head in found if head.start >= begin.get(head.bucket, 0)]
        committed = self._await_commitment({head.bucket for head in found}, batch.position)
        told = [head for head in found if head.bucket in committed and head.sequence > self.last[head.bucket]]
        if told:
            self._tell(body, told, whole=len(told) == batch.count)

    def _is_new(self, head: Head) -> bool:
        """Whether an OPEN is to be noted. (One that was placed while this teller began may be what `last` says already, of a
        bucket that was not primary here a moment before.)"""
        return head.sequence > self.last[head.bucket] or not self._tenures.lasts(head.bucket)

    def _note_opening(self, body: bytes, head: Head) -> bool:
        """A tenure begins, or goes on in a new epoch. Whether what lies before this OPEN is of none, or of one that is over."""
        bucket = head.bucket
        before = _continues_from(body, head)
        was_told_of, lasted = self._tenures.has(bucket), self._tenures.lasts(bucket)
        with self.lock:  # both at once: whoever finds that it is told of goes on from where that begins
            is_told_of = self._tenures.opened(bucket, epoch_of(head.sequence))
            if is_told_of and not was_told_of:
                self.last[bucket] = before
                self.held.begin_at(bucket, before)
        if was_told_of and not is_told_of:
            self._end_buckets([bucket])
        return not lasted

    def _await_commitment(self, buckets: Collection[int], position: int) -> set[int]:
        """Those of which everything before the position is committed; the tenure of the others is over (invariant 1). Blocks
        until one of the two is so of each."""
        waited = self._points_of(buckets)
        while waited and not self.is_stopping:
            wait = Wait(functools.reduce(operator.or_, waited.values()), position)
            end = self.engine.stream.wait_committed(wait, time.monotonic_ns() + int(COMMIT_S * 1e9))
            if end is StreamEnd.REACHED:
                return {bucket for bucket in waited if self._tenures.lasts(bucket)}
            if end is StreamEnd.FAILED:
                self._stopping.wait(COMMIT_S)
            waited = self._points_of(waited)
        return set()

    def _points_of(self, buckets: Collection[int]) -> dict[int, int]:
        """What each waits for, of those that are primary here in their tenure."""
        found = ((bucket, self._settled_points(bucket)) for bucket in buckets)
        return {bucket: points for bucket, points in found if points is not None}

    def _settled_points(self, bucket: int) -> int | None:
        """None where the bucket's tenure is over. While it is frozen that is about to be settled; blocks until it is."""
        while not self.is_stopping and self._tenures.has(bucket) and not self._tenures.is_over(bucket):
            points = self.engine.commit_points(bucket)
            if points is not None:
                return points
            self._stopping.wait(FROZEN_LOOK_S)
        return None

    def _tell(self, body: bytes, found: list[Head], *, whole: bool) -> None:
        """Add these, and what is missing before any of them (invariant 2)."""
        with self.lock:
            for head in found:
                if gap := self._missing_before(body, head):
                    self._add_notice_locked(gap)
                self.last[head.bucket] = head.sequence
            if not whole:
                body, found = _cut(body, found)
            self.held.add(Told(body, tuple(found)))
            self.counts.records += len(found)
            self.changed.notify_all()

    def _missing_before(self, body: bytes, head: Head) -> Notice | None:
        last = self.last[head.bucket]
        before = _continues_from(body, head) if head.kind == Kind.OPEN else head.sequence - 1
        return Notice(NoticeKind.GAP, head.bucket, last, before) if before != last else None

    def _make_up_for(self, missed: dict[int, int]) -> None:
        """This thread was behind, and the stream went on without it: buckets of which nothing came since are behind, too; one
        whose OPEN was among what is lost is told of from here on."""
        self._missed = None
        behind = {bucket: missed[bucket] for bucket in self._tenures.present() if missed[bucket] > self.last[bucket]}
        committed = self._await_commitment(behind, self._missed_to)
        with self.lock:
            for bucket in committed:
                self._add_notice_locked(Notice(NoticeKind.GAP, bucket, self.last[bucket], behind[bucket]))
                self.last[bucket] = behind[bucket]
            for bucket in missed:
                if not self._tenures.has(bucket) and self._tenures.begin(bucket):
                    self.last[bucket] = self.engine.sequence(bucket)
                    self.held.begin_at(bucket, self.last[bucket])
            self.changed.notify_all()

    def _end_buckets(self, buckets: Collection[int]) -> None:
        if not buckets:
            return
        with self.lock:
            for bucket in buckets:
                self._tenures.end(bucket)
                self._add_notice_locked(Notice(NoticeKind.ENDED, bucket, 0, self.last[bucket]))
            self.changed.notify_all()

    def _add_notice_locked(self, notice: Notice) -> None:
        self.held.add(Told(b"", (), notice))
        self.counts.gaps += notice.kind == NoticeKind.GAP
        self.counts.ended += notice.kind == NoticeKind.ENDED

    # --- proofs

    def _proven_at(self) -> float:
        return self._proofs[-1].at if self._proofs else 0.0

    def _prove(self, at: float, head: int) -> None:
        """Invariant 4: all up to `head`, which was read after `at`, has been told."""
        before = self._primary_since()
        wait = Wait(self.engine.all_commit_points(), head)
        end = self.engine.stream.wait_committed(wait, time.monotonic_ns() + int(COMMIT_S * 1e9))
        if end is not StreamEnd.REACHED or before is None or self._primary_since() != before:
            return
        with self.lock:
            self._proofs.append(Proof(at, self.held.end))
            self.counts.proofs += 1
            self.changed.notify_all()

    def _primary_since(self) -> dict[int, int] | None:
        """The epoch in which each bucket that is told of was opened; None where one is not primary here. The same before and
        after a moment, it was so at that moment: who comes back as primary opens it in another epoch."""
        present = self._tenures.present()
        if any(self.engine.commit_points(bucket) is None or not self._tenures.lasts(bucket) for bucket in present):
            return None
        return {bucket: epoch_of(self.engine.sequence(bucket)) for bucket in present}


def _continues_from(body: bytes, head: Head) -> int:
    """What an OPEN says."""
    return decode_opening(decode(body, head.start, head.end).value).continues_from


def _cut(body: bytes, found: list[Head]) -> tuple[bytes, list[Head]]:
    """These records alone, and where each lies then."""
    kept: list[bytes] = []
    placed: list[Head] = []
    at = 0
    for head in found:
        kept.append(body[head.start : head.end])
        size = head.end - head.start
        placed.append(head._replace(start=at, end=at + size))
        at += size
    return b"".join(kept), placed
