"""The commit points that buckets wait for, by their numbers.

What it is: the two sides of a point brought together: which buckets wait for it, and what it has come to (`commitment`).
Which thread runs it: any; `commit_point` sees to it that nobody closes a point that another uses. It may lock: one stripe at a
time, then the stream.
What it owns: nothing. What it must not know: whose point it is.
"""

from __future__ import annotations

import functools
import operator

from rcache.cluster.bucket_state import BucketState
from rcache.engine.reference.store import Store


class BucketPoints:
    """`commit_point.Counting` of this body."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._commitment = store.ring.commitment

    def set(self, number: int, points: int) -> int:
        """Have a bucket wait for these points (bits). Returns the stream's head at that moment."""
        bucket = self._store.buckets[number]
        with bucket.stripe.lock:
            bucket.set_points_locked(points)
            return self._store.ring.head

    def of(self, number: int) -> int | None:
        """The points that a bucket waits for; None where this node is not its primary."""
        bucket = self._store.buckets[number]
        with bucket.stripe.lock:
            return bucket.points if bucket.state is BucketState.PRIMARY else None

    def of_all(self) -> int:
        """The points that any bucket waits for."""
        return functools.reduce(operator.or_, (bucket.points for bucket in self._store.buckets))

    def point(self, number: int) -> int:
        return self._commitment.position(number)

    def advance(self, number: int, position: int, moment: int) -> None:
        self._commitment.advance(number, position, moment)

    def lease(self, number: int, until_ns: int) -> None:
        self._commitment.lease(number, until_ns)

    def debt(self, number: int) -> int:
        return self._store.ring.credits.accounts[number].debt

    def close_point(self, number: int) -> None:
        """No bucket waits for this point any more, and nobody who does so now."""
        self._forget_point(number)
        self._commitment.close(number)

    def abandon_point(self, number: int) -> None:
        """Nobody's wait for it is met any more. Only then do the buckets forget it, so that no answer in between counts on it
        without its lease. (Whose buckets it took over must be PRIMARY here no more by then: what forgets its last point
        answers alone.)"""
        self._commitment.abandon(number)
        self._forget_point(number)

    def _forget_point(self, number: int) -> None:
        for bucket in self._store.buckets:
            with bucket.stripe.lock:
                bucket.set_points_locked(bucket.points & ~(1 << number))
