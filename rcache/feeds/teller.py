"""The teller: reads this node's change stream once for all subscribers, and tells what is committed.

What it is: the thread that takes records from the stream, waits until the commit points of their buckets have them, and adds
them to what is held (`told`), from where each feed has its own. What was committed under the primary before, and may not have
been told by it any more, it tells before the OPEN that follows on it, from what was applied here (`applied_tail`). It says,
too, up to when all that was committed has been told (`proofs`).
Which thread runs it: its own, `feeds`; what feeds read, any. Started by the hub for the first subscriber, ended a while after
the last.
What it owns: its reader, the tenures, what is held, what waits, the proofs. It may lock: its own lock, for moments; behind that
one stripe (by the engine).
What it must not know: sockets, payloads, who subscribed to what.

Invariants:
1. A record is told only once every point that its bucket waited for, at a moment at which this node was its primary, has the
   stream up to behind it (`commitment`); and only in the tenure in which it was placed (`tenures`). So it is on the chain of
   every node that will ever be primary of its bucket. What was applied here is told only once the OPEN is committed that the
   chain of it leads to.
2. Of a bucket records are told in the order of their sequences, each once; what is missing in between is told as a gap.
3. No subscriber holds the stream up: the reader does not hold, and what is held has a limit in bytes. Who is behind loses its
   oldest part, and is told.
4. No bucket holds the others up for longer than COMMIT_S: what cannot be told yet waits (`waiting`), and what follows on it in
   its bucket waits behind it.
5. A proof is added only where nothing waits, and nothing was lost that has not been made up for.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from loguru import logger

from rcache.engine.change_stream import Batch
from rcache.engine.contract import Engine
from rcache.feeds.applied_tail import AppliedTail, Chain, Tapped
from rcache.feeds.commitment import Commitment
from rcache.feeds.proofs import Proofs, boot_s
from rcache.feeds.tenures import Tenures
from rcache.feeds.told import Held, Told, join, place_before
from rcache.feeds.waiting import Due, Waiting
from rcache.records.record import HISTORY_KINDS, Head, Kind, counter_of, epoch_of, heads
from rcache_client.wire.feeds import Notice, NoticeKind

TAKE_BYTES = 256 << 10
LOOK_S = 0.02
"""How often it is looked whether a bucket has gone, what waits can be told, and whether a proof can be made, while nothing is
changed."""

COMMIT_S = 0.05
"""How long what was read is waited for together: as long as a backup that is well takes at most."""

ENDS_LOOK_S = 0.25
"""How often it is looked what has ended where no view came."""


Led = dict[tuple[int, int], list[Told]]
"""By the bucket and sequence of an OPEN: what was applied here and leads to it."""

_HISTORY = frozenset(map(int, HISTORY_KINDS))
_OPEN = int(Kind.OPEN)
"""To compare with at every record: plain numbers, as heads have."""


@dataclass(slots=True)
class TellerCounts:
    """Since the start."""

    records: int = 0
    gaps: int = 0
    ended: int = 0
    proofs: int = 0
    errors: int = 0


class Teller:
    """See the module. `applied`: where all comes by that is applied here. `changed` is notified, under `lock`, when anything
    was told. For each bucket, `last`: the sequence up to which it was told of; `reach`: up to where it is known to go beyond
    that, because it was opened there."""

    def __init__(self, engine: Engine, applied: Tapped, counts: TellerCounts, held_bytes: int) -> None:
        self.engine = engine
        self.counts = counts
        self.lock = threading.Lock()
        self.changed = threading.Condition(self.lock)
        self._reader = engine.stream.open_reader("feeds", holds=False)  # first: an OPEN that it does not read is seen behind it
        self._tail = AppliedTail()
        self._applied = applied
        applied.tap(self._tail.take_in)
        self._tenures = Tenures(engine)
        self._commitment = Commitment(engine, self._tenures)
        self.last = [engine.sequence(bucket) for bucket in range(engine.config.buckets)]
        self.reach = list(self.last)
        self._opened = dict(self._just_opened())
        self.held = Held(held_bytes, self.last)
        self.proofs = Proofs(engine, self._tenures)
        self._waiting = Waiting(held_bytes)
        self._given_up: dict[int, int] = {}  # buckets that end once the stream was read up to here
        self._looked = (0, 0.0)  # the epoch, and when it was looked what has ended
        self._missed: dict[int, int] | None = None  # after a loss: how far each bucket was, and up to where that is made up for
        self._missed_to = 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="feeds")

    def _just_opened(self) -> Iterator[tuple[int, tuple[int, int]]]:
        """The buckets whose newest record is this node's OPEN: where that continues from, and where it is."""
        for bucket in self._tenures.present():
            if not counter_of(at := self.last[bucket]):
                yield bucket, (self.engine.opened_from(bucket), at)

    def start(self) -> None:
        """Raises RuntimeError where there can be no thread; nothing is left of it then."""
        try:
            self._thread.start()
        except RuntimeError:
            self._close()
            raise

    def stop(self, timeout_s: float) -> bool:
        """Nobody is told anything any more. False if the thread took too long."""
        self._set_stopping()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _set_stopping(self) -> None:
        self._stopping.set()
        with self.lock:
            self.changed.notify_all()

    def _close(self) -> None:
        self._applied.untap(self._tail.take_in)
        self._reader.close()

    @property
    def is_stopping(self) -> bool:
        return self._stopping.is_set()

    # --- for feeds, under the lock

    def tells_of(self, bucket: int) -> bool:
        return self._tenures.lasts(bucket)

    def present(self) -> list[int]:
        """The buckets that are told of."""
        return self._tenures.present()

    def same_place(self, bucket: int, sequence: int) -> int:
        """The same place in a bucket's history, where that has another name: behind the OPEN that came next, if this began to
        tell of the bucket right behind that."""
        before, at = self._opened.get(bucket, (None, 0))
        return at if sequence == before else sequence

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
            self._set_stopping()
            self._close()

    def _step(self) -> None:
        """What there is, or a look around."""
        began = boot_s()
        head = self.engine.stream.head
        batch = self._reader.take(TAKE_BYTES, LOOK_S)
        if batch.lost:
            self._note_loss()
        if batch.count:
            self._take(batch)
        elif self.engine.stream.failure:
            self._stopping.wait(LOOK_S)  # then nothing waits for the stream any more
        self._look_for_ends()
        self._end_given_up(batch.position)
        if self._missed is not None and batch.position >= self._missed_to:
            self._make_up_for(self._missed)
        self._tell_waiting()
        is_all_told = batch.position >= head and not self._waiting and self._missed is None
        if is_all_told and self.proofs.is_due(began) and self.proofs.holds(began, head):
            with self.lock:
                self.proofs.add(began, self.held.end)
                self.counts.proofs += 1

    def _note_loss(self) -> None:
        """How far buckets are, and up to where that is made up for: behind what was looked at."""
        self._missed = {bucket: self.engine.sequence(bucket) for bucket in range(self.engine.config.buckets)}
        self._missed_to = self.engine.stream.head

    def _look_for_ends(self) -> None:
        now = time.monotonic()
        epoch, at = self._looked
        if epoch != self.engine.epoch or now - at > ENDS_LOOK_S:
            self._looked = (self.engine.epoch, now)
            self._end_those_over()

    def _end_those_over(self) -> None:
        """What was given up in order ends once all that was placed of it has been read and told."""
        over = [bucket for bucket in self._tenures.present() if self._tenures.is_over(bucket)]
        given_up = {bucket for bucket in over if self._tenures.is_given_up(bucket)}
        head = self.engine.stream.head
        self._given_up = {bucket: self._given_up.get(bucket, head) for bucket in given_up}
        self._end_buckets([bucket for bucket in over if bucket not in given_up])

    def _end_given_up(self, position: int) -> None:
        for bucket, head in list(self._given_up.items()):
            if not self._tenures.is_given_up(bucket):
                del self._given_up[bucket]  # it is back, or of no tenure by now: that is looked for
            elif position >= head and bucket not in self._waiting:
                self._end_buckets([bucket])

    # --- telling

    def _take(self, batch: Batch) -> None:
        """Tell what is committed before long; the rest waits (invariant 4)."""
        body = bytes(batch.body)
        found, led = self._note_openings(body, [head for head in heads(body) if head.kind in _HISTORY])
        found = [head for head in found if head.sequence > self.last[head.bucket] and self._tenures.lasts(head.bucket)]
        apart = {head.bucket for head in found if head.bucket in self._waiting or (head.bucket, head.sequence) in led}
        together = {head.bucket for head in found} - apart
        committed = self._commitment.of(together, batch.position, COMMIT_S)
        told = [head for head in found if head.bucket in committed]
        self._tell(body, told, whole=len(told) == batch.count)
        for bucket in apart | (together - committed):
            pieces = _pieces(body, [head for head in found if head.bucket == bucket], led)
            self._waiting.add(bucket, Due(batch.position, pieces))

    def _note_openings(self, body: bytes, found: list[Head]) -> tuple[list[Head], Led]:
        """What was read, without what was of a tenure that was over by an OPEN among it; and what was applied here and leads to
        an OPEN."""
        opened = {head: place_before(body, head) for head in found if head.kind == _OPEN and self._is_new(head)}
        chains = self._tail.chains({(head.bucket, before) for head, before in opened.items()})
        begin: dict[int, int] = {}
        for head, before in opened.items():
            if self._note_opening(head, before, chains[head.bucket, before]):
                begin[head.bucket] = head.start
        kept = [head for head in found if head.start >= begin.get(head.bucket, 0)] if begin else found
        led = {(head.bucket, head.sequence): chains[head.bucket, before].told for head, before in opened.items()}
        return kept, {at: told for at, told in led.items() if told}

    def _is_new(self, head: Head) -> bool:
        """Whether an OPEN is to be noted. (One that was placed while this teller began may be what `last` says already, of a
        bucket that was not primary here a moment before.)"""
        return head.sequence > self.last[head.bucket] or not self._tenures.lasts(head.bucket)

    def _note_opening(self, head: Head, before: int, chain: Chain) -> bool:
        """A tenure begins, or goes on in a new epoch. Whether what lies before this OPEN is of none, or of one that is over."""
        bucket = head.bucket
        if self._tenures.has(bucket) and not self._tenures.lasts(bucket):
            self._end_buckets([bucket])
        begins = not self._tenures.has(bucket)
        with self.lock:  # all at once: whoever finds that it is told of goes on from where that begins
            if self._tenures.opened(bucket, epoch_of(head.sequence)):
                if begins:
                    self._begin_locked(bucket, chain.after)
                self.reach[bucket] = before
        return begins

    def _begin_locked(self, bucket: int, after: int) -> None:
        """A bucket is told of from here on. Where it was told of before up to here, that is what led here."""
        if self.last[bucket] != after:
            self.held.begin_at(bucket, after)
            self.last[bucket] = after
        self.reach[bucket] = after
        self.proofs.clear()

    def _tell(self, body: bytes, found: list[Head], *, whole: bool) -> None:
        if found:
            with self.lock:
                self._tell_locked(body, found, whole=whole)
                self.changed.notify_all()

    def _tell_locked(self, body: bytes, found: list[Head], *, whole: bool) -> None:
        """Add these, and what is missing before any of them (invariant 2)."""
        last = self.last
        for head in found:
            bucket, sequence = head.bucket, head.sequence
            if sequence - 1 != last[bucket] and (before := place_before(body, head)) != last[bucket]:
                self._add_notice_locked(Notice(NoticeKind.GAP, bucket, last[bucket], before))
            last[bucket] = sequence
        self.held.add(Told(body, tuple(found)) if whole else join((body, head) for head in found))
        self.counts.records += len(found)

    def _tell_waiting(self) -> None:
        """What waits and is committed by now, each bucket's in its order."""
        for bucket in self._waiting:
            while (due := self._waiting.first(bucket)) is not None and self._commitment.of([bucket], due.position):
                self._waiting.pop(bucket)
                self._tell_due(bucket, due)

    def _tell_due(self, bucket: int, due: Due) -> None:
        with self.lock:
            for told in due.told:
                found = [head for head in told.heads if head.sequence > self.last[bucket]]
                if found:
                    self._tell_locked(told.body, found, whole=len(found) == len(told.heads))
            if due.upto > self.last[bucket]:
                self._add_notice_locked(Notice(NoticeKind.GAP, bucket, self.last[bucket], due.upto))
                self.last[bucket] = due.upto
            self.changed.notify_all()

    def _make_up_for(self, missed: dict[int, int]) -> None:
        """This thread was behind, and the stream went on without it: buckets of which nothing came since are behind, too; one
        whose OPEN was among what is lost is told of from here on."""
        self._missed = None
        self._end_buckets([bucket for bucket in self._tenures.present() if self._tenures.is_over(bucket)])
        for bucket in self._tenures.present():
            if missed[bucket] > self.last[bucket]:
                self._waiting.add(bucket, Due(self._missed_to, [], missed[bucket]))
        with self.lock:
            for bucket in missed:
                sequence = self.engine.sequence(bucket)  # first: what is placed behind it is read
                if not self._tenures.has(bucket) and self._tenures.begin(bucket):
                    self._begin_locked(bucket, sequence)
            self.changed.notify_all()

    def _end_buckets(self, buckets: Collection[int]) -> None:
        if not buckets:
            return
        with self.lock:
            for bucket in buckets:
                self._tenures.end(bucket)
                self._waiting.drop(bucket)
                self._given_up.pop(bucket, None)
                self._add_notice_locked(Notice(NoticeKind.ENDED, bucket, 0, self.last[bucket]))
            self.changed.notify_all()

    def _add_notice_locked(self, notice: Notice) -> None:
        self.held.add(Told(b"", (), notice))
        self.counts.gaps += notice.kind == NoticeKind.GAP
        self.counts.ended += notice.kind == NoticeKind.ENDED


def _pieces(body: bytes, found: list[Head], led: Led) -> list[Told]:
    """One bucket's, with what leads to an OPEN right before it."""
    pieces: list[Told] = []
    run: list[tuple[bytes, Head]] = []
    for head in found:
        if before := led.get((head.bucket, head.sequence)):
            pieces += [join(run), *before] if run else before
            run = []
        run.append((body, head))
    return [*pieces, join(run)]
