"""The states of a bucket on a node, and which may follow which.

What it is: the table of `design`: a bucket is in exactly one state; requests are answered only by a PRIMARY.
Which thread runs it: any; everything here is constant.
What it owns: nothing. What it must not know: what a bucket holds.
"""

from __future__ import annotations

from enum import Enum


class BucketState(Enum):
    """What this node is to a bucket."""

    ABSENT = "absent"
    """Not here. Whoever asks is told to go elsewhere."""
    IMPORTING = "importing"
    """A copy is being filled; it is not whole and serves nobody."""
    BACKUP = "backup"
    """A whole copy, kept in step by its primary (or just recovered); serves nobody."""
    PRIMARY = "primary"
    """Answers requests and orders the changes."""
    FROZEN = "frozen"
    """Was primary and gave the bucket up: nothing changes here any more."""


_NEXT: dict[BucketState, frozenset[BucketState]] = {
    BucketState.ABSENT: frozenset({BucketState.IMPORTING, BucketState.PRIMARY}),
    BucketState.IMPORTING: frozenset({BucketState.BACKUP, BucketState.ABSENT}),
    BucketState.BACKUP: frozenset({BucketState.PRIMARY, BucketState.ABSENT}),
    BucketState.PRIMARY: frozenset({BucketState.FROZEN, BucketState.PRIMARY}),
    BucketState.FROZEN: frozenset({BucketState.ABSENT, BucketState.BACKUP, BucketState.PRIMARY}),
}
"""PRIMARY follows PRIMARY when a bucket is OPENed anew in a later epoch; an IMPORTING copy never becomes primary."""


def may_follow(now: BucketState, then: BucketState) -> bool:
    """Whether a bucket in state `now` may go over to `then`."""
    return then in _NEXT[now]
