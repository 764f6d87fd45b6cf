"""What a view says of this node's buckets, carried out in the engine.

What it is: the step from one view to the next for every bucket: what is given up, what is let go of, whom each bucket follows,
what may be opened, and which commit points its answers wait for.
Which thread runs it: the control plane's. It blocks for the log and for room in the stream, both bounded.
What it owns: the table of whom each bucket follows, what is waiting to be opened, and what of lost buckets is to be offered. It
may lock: one stripe at a time.
What it must not know: how views are agreed; sockets; when leases run out (it is told).

The order within a view, and why. First what is not this node's any more: nothing is answered or changed under the new view that
belongs to another. Then whom buckets follow, and only then is the view shown to others: a frame of it finds everything in
place. What changes from the applied stream to this node's own, or the other way, waits until the log has written all of the
first (`AppendLog.pass_by`): so the log has every bucket's records in their order. Opening comes last.

Invariants, by the numbers of `design`, section 5:
- 3: a bucket is opened only once nobody of `Opening.after` can be serving it: each has said itself that it goes by a view in
  which it does not, or every grant that was made to it has run out. (The old primary was cut off, holds a lease of an earlier
  view, and answers with a value that its heir has changed.)
- 7: what was not given up by this node itself, frozen, becomes absent. (It has changes that its heir never saw.)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field

from loguru import logger

from rcache.cluster.bucket_state import BucketState
from rcache.cluster.view import NodeState, View
from rcache.engine.change_stream import CommitPoint
from rcache.engine.contract import Engine
from rcache.records.record import encode_drop, epoch_of
from rcache.stream.append_log import AppendLog
from rcache.stream.applied import AppliedFailed, AppliedStream

OPEN_S = 0.1
"""How long opening waits for room in the stream, all buckets together. What holds the room may be a peer that is to be parted
from, and the thread that opens is the one that sees to that."""

PASS_BY_S = 10.0
"""How long the log has to write what was placed before a bucket changes its stream. One that takes longer hangs, and the node
will stop for it."""

NOBODY = 0


@dataclass(frozen=True, slots=True)
class Opening:
    """A bucket that this node is to open in `epoch`, once nobody of `after` can be serving it. `is_empty`: it was lost, and
    this node was told to begin it anew, with nothing in it."""

    epoch: int
    after: frozenset[str]
    is_empty: bool = False


@dataclass(slots=True)
class Turn:
    """What one view did to this node's buckets. `abandoned`: the backups of what this node had not given up itself: what was
    still waited for there is not known to be committed."""

    given_up: list[int] = field(default_factory=list)
    deposed: list[int] = field(default_factory=list)
    dropped: list[int] = field(default_factory=list)
    abandoned: set[str] = field(default_factory=set)


class Roles:
    """See the module. `log` None: none is kept."""

    def __init__(self, engine: Engine, name: str, log: AppendLog | None, applied: AppliedStream) -> None:
        self.engine = engine
        self.name = name
        self._log = log
        self._applied = applied
        self.following = [NOBODY] * engine.config.buckets
        self.openings: dict[int, Opening] = {}
        self.offered: dict[int, bool] = {}
        """Lost buckets that this node asks for, or is about to, and whether they begin empty: else what its files have of them
        is here, or on its way (`rcache.member.offers`)."""

    def fence(
        self, old: View, new: View, source_of: Callable[[str], int], gave_up: Callable[[int], bool] = lambda _bucket: False
    ) -> Turn:
        """Let go of what is another's, and follow whom the new view says. Before the view is shown to anybody. `gave_up`:
        whether this node gave a bucket up by itself, with nothing of it left to be acknowledged."""
        turn = Turn()
        for bucket, placed in enumerate(new.placements):
            was = old.placements[bucket]
            if placed.primary != self.name:
                self._fence_bucket(bucket, old, new, turn, gave_up)
                self.openings.pop(bucket, None)
            elif self.engine.state(bucket) is BucketState.PRIMARY and epoch_of(self.engine.sequence(bucket)) != placed.opened:
                self.engine.set_state(bucket, BucketState.FROZEN)  # until it is opened in the epoch that the view says
            follow = NOBODY if placed.primary in (None, self.name) else source_of(placed.primary or "")
            if follow != self.following[bucket] or was.primary != placed.primary:
                self.following[bucket] = follow
                self.engine.follow(bucket, follow)
        return turn

    def _fence_bucket(self, bucket: int, old: View, new: View, turn: Turn, gave_up: Callable[[int], bool]) -> None:
        placed = new.placements[bucket]
        state = self.engine.state(bucket)
        if placed.primary is None and bucket in self.offered:
            return  # still nobody's: what was brought back of it stays for the view that gives it to this node
        self.offered.pop(bucket, None)
        if state is BucketState.FROZEN and self.name in placed.backups:
            turn.given_up.append(bucket)
        elif state is BucketState.FROZEN and gave_up(bucket):
            turn.dropped.append(bucket)  # its heir let go of this copy as well, in a view that came at the same time
        elif state in (BucketState.PRIMARY, BucketState.FROZEN):
            if state is BucketState.PRIMARY:
                self.engine.set_state(bucket, BucketState.FROZEN)
            turn.deposed.append(bucket)
            turn.abandoned.update(old.placements[bucket].backups)
        elif state is BucketState.BACKUP and self.name not in placed.backups:
            if self.name in old.placements[bucket].holders or _has_another(old, new, bucket):
                turn.dropped.append(bucket)
        elif state is BucketState.IMPORTING and (_has_another(old, new, bucket) or self.name in placed.backups):
            turn.dropped.append(bucket)

    def let_go(self, turn: Turn, pass_intakes: Callable[[], None]) -> None:
        """Carry out a turn: what is absent from now on, and what becomes a backup."""
        if not (turn.given_up or turn.deposed or turn.dropped):
            return
        pass_intakes()
        self.pass_by()
        for bucket in turn.given_up:
            self.engine.set_state(bucket, BucketState.BACKUP)
        self._clear(turn.deposed + turn.dropped)

    def _clear(self, buckets: Collection[int]) -> None:
        """Nothing of these is here any more, and the log says so. (An intake may have cleared one of them meanwhile.)"""
        for bucket in buckets:
            if self.engine.state(bucket) is not BucketState.ABSENT:
                self.engine.set_state(bucket, BucketState.ABSENT)
        self._record_drops(buckets)

    def pass_by(self) -> None:
        """Wait until the log has written what both of its streams hold."""
        if self._log is not None and self._log.failure is None and not self._log.pass_by(PASS_BY_S):
            logger.error("the append log did not come by within {} s; buckets change their stream all the same", PASS_BY_S)

    def _record_drops(self, buckets: Collection[int]) -> None:
        """The log says that these buckets are not here any more."""
        if not buckets:
            return
        marks = [encode_drop(bucket, self.engine.clock.now_ms()) for bucket in buckets]
        try:
            self._applied.append(b"".join(marks), len(marks), 0)
        except (TimeoutError, AppliedFailed) as error:
            logger.error("the append log does not say that buckets left: {}", error)

    # --- opening

    def plan_openings(self, old: View, new: View) -> None:
        """What this node is primary of in the new view and has not opened."""
        for bucket, placed in enumerate(new.placements):
            if placed.primary != self.name:
                continue
            was_opened = self.engine.state(bucket) in (BucketState.PRIMARY, BucketState.FROZEN)
            if was_opened and epoch_of(self.engine.sequence(bucket)) == placed.opened:
                continue
            held = self.openings.get(bucket)
            if held is None or held.epoch != placed.opened:
                is_empty = self.offered.pop(bucket, held is not None and held.is_empty)
                self.openings[bucket] = Opening(placed.opened, self._served_before(old, new, bucket), is_empty)

    def _served_before(self, old: View, new: View, bucket: int) -> frozenset[str]:
        """Who may be serving this bucket under an earlier view (invariant 3)."""
        was, placed = old.placements[bucket], new.placements[bucket]
        everybody = frozenset(name for name in {*old.nodes, *new.nodes} if name != self.name)
        if old.epoch != placed.opened - 1:  # views in between were not seen here: it may have been anybody
            return everybody
        if was.primary in (None, self.name):
            return frozenset()
        if epoch_of(self.engine.sequence(bucket)) != was.opened:
            return everybody  # the one before is not known to have opened it: it may have been waiting for another
        if new.epoch == placed.opened and new.proposer == was.primary and _is_same_process(old, new, was.primary):
            return frozenset()  # it said so itself: it froze the bucket before it asked for this view, or was started anew
        return frozenset({was.primary})

    def due(self, may_serve: Callable[[str, int], bool]) -> list[int]:
        """What may be opened now. `may_serve`: whether this node could still be serving under a view before that epoch."""
        return [
            bucket
            for bucket, opening in self.openings.items()
            if not any(may_serve(name, opening.epoch) for name in opening.after)
        ]

    def open(
        self,
        buckets: Collection[int],
        incarnation: int,
        points_of: Callable[[int], Collection[CommitPoint]],
        pass_intakes: Callable[[], None] = lambda: None,
    ) -> None:
        """Open these, each in its epoch; their answers wait for the points from then on. Raises `RequestRefused` where the
        stream has no room, for now; those before are open then."""
        if any(self.engine.state(bucket) is BucketState.BACKUP for bucket in buckets):
            pass_intakes()
            self.pass_by()
        deadline = time.monotonic() + OPEN_S
        for bucket in buckets:
            epoch = self.openings[bucket].epoch
            self.engine.set_commit_points(bucket, points_of(bucket))
            self.engine.open_buckets([bucket], epoch, incarnation, self.name, max(0.0, deadline - time.monotonic()))
            del self.openings[bucket]

    def is_whole(self, bucket: int) -> bool:
        """Whether what is here of a bucket is all of it: a copy that was kept in step, or what this node froze itself."""
        return self.engine.state(bucket) in (BucketState.BACKUP, BucketState.FROZEN, BucketState.PRIMARY)

    def follow_newcomers(self, view: View, source_of: Callable[[str], int]) -> None:
        """Buckets of nodes that were not known when the view was fenced."""
        for bucket, placed in enumerate(view.placements):
            if placed.primary not in (None, self.name) and not self.following[bucket]:
                self.following[bucket] = source_of(placed.primary or "")
                self.engine.follow(bucket, self.following[bucket])

    def is_member(self, view: View) -> bool:
        """Whether this node has, or may have, anything to do in a view."""
        node = view.nodes.get(self.name)
        return node is not None and node.state is not NodeState.LOST

    def withdraw(self, buckets: Iterable[int]) -> None:
        """What was to be offered of these is let go of again, where that is not settled otherwise."""
        offered = [bucket for bucket in buckets if self.offered.pop(bucket, None) is not None]
        self._clear([bucket for bucket in offered if self.engine.state(bucket) in (BucketState.IMPORTING, BucketState.BACKUP)])

    def followed(self, bucket: int) -> int:
        """The number of the source that a bucket follows."""
        return self.following[bucket]

    def forget_all(self, buckets: Collection[int]) -> None:
        """This node is no member any more: nothing of what it had is here."""
        self.openings.clear()
        self.offered.clear()
        self.following = [NOBODY] * self.engine.config.buckets
        self.pass_by()
        self._clear(buckets)

    def freeze(self, buckets: Iterable[int]) -> None:
        """Give up what this node is primary of: nothing changes in it any more."""
        for bucket in buckets:
            if self.engine.state(bucket) is BucketState.PRIMARY:
                self.engine.set_state(bucket, BucketState.FROZEN)


def _has_another(old: View, new: View, bucket: int) -> bool:
    """Whether a bucket's primary is another node, or another incarnation: then every copy that is being made begins again."""
    was, now = old.placements[bucket].primary, new.placements[bucket].primary
    if was is None or now is None or was != now:
        return True
    return old.nodes[was].incarnation != new.nodes[now].incarnation


def _is_same_process(old: View, new: View, name: str) -> bool:
    """Whether a view that is proposed under a name is by who had it before, or by its successor in the same data directory,
    whose lock proves that the one before has ended."""
    was, now = old.nodes[name], new.nodes.get(name)
    return now is not None and (was.incarnation == now.incarnation or was.data_dir_id == now.data_dir_id)
