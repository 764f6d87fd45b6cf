"""Tenures: for which time of being primary a record in the change stream was placed, and whether that time lasts.

What it is: for each bucket, since when what the stream brings of it is this node's word: from an OPEN that was read there, for
as long as nothing of the bucket was let go of.
Which thread runs it: the teller's. It may lock: one stripe at a time, for moments (by the engine).
What it owns: what it noted of each bucket. What it must not know: subscribers, commit points.

The sequence of events that this is there for: a node places 5.11, which its backup never gets; the backup takes over, opens 6
behind 5.10, hands the bucket back, and this node opens 7. Everything that waits for the *present* backups has 5.11 behind it by
then, and it was never committed: it is on no chain.
"""

from __future__ import annotations

from rcache.cluster.bucket_state import BucketState
from rcache.engine.contract import Engine
from rcache.records.record import epoch_of

NONE = -1
"""Of a bucket that is not told of."""


class Tenures:
    """See the module. Made once the reader that it goes with is open, and before it is looked how far buckets are: what is
    primary then is told of from there on."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._since = [self._of_now(bucket) for bucket in range(engine.config.buckets)]

    def _of_now(self, bucket: int) -> int:
        """The count of times that it was let go of, if the bucket is primary here at a moment at which that holds."""
        count = self._engine.times_let_go(bucket)
        if count % 2 or self._engine.commit_points(bucket) is None:
            return NONE
        return count if self._engine.times_let_go(bucket) == count else NONE

    def opened(self, bucket: int, epoch: int) -> bool:
        """An OPEN was read: what follows is of the tenure that lasts, or of one that begins here, if that is the one which the
        bucket is in now. Whether it is. (Else it has been taken from here since, and another OPEN will come, or none.)"""
        if self.lasts(bucket):
            return True
        since = self._of_now(bucket)
        self._since[bucket] = since if epoch_of(self._engine.sequence(bucket)) == epoch else NONE
        return self._since[bucket] != NONE

    def begin(self, bucket: int) -> bool:
        """From what it is now, where its OPEN was not read: whether it is primary here."""
        self._since[bucket] = self._of_now(bucket)
        return self._since[bucket] != NONE

    def lasts(self, bucket: int) -> bool:
        """Whether the bucket is told of, and was not let go of since its tenure began."""
        return self._since[bucket] != NONE and self._engine.times_let_go(bucket) == self._since[bucket]

    def is_over(self, bucket: int) -> bool:
        """Whether the bucket was told of and is no more: another is its primary. (While it is frozen that is not settled.)"""
        if self._since[bucket] == NONE:
            return False
        return not self.lasts(bucket) or self._engine.state(bucket) not in (BucketState.PRIMARY, BucketState.FROZEN)

    def is_given_up(self, bucket: int) -> bool:
        """Whether this node gave the bucket up in order, and let go of nothing of it since: all its backups had all that was
        placed here before this moment, or it would not have been handed over (`member.handovers`)."""
        return self._engine.state(bucket) is BucketState.BACKUP and self.lasts(bucket)

    def end(self, bucket: int) -> None:
        self._since[bucket] = NONE

    def has(self, bucket: int) -> bool:
        return self._since[bucket] != NONE

    def present(self) -> list[int]:
        """The buckets that are told of."""
        return [bucket for bucket, since in enumerate(self._since) if since != NONE]
