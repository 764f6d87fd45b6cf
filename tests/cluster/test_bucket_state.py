"""The table of bucket states, held against what the design says of it."""

from __future__ import annotations

from itertools import product

import pytest

from rcache.cluster.bucket_state import BucketState, may_follow

S = BucketState
ALLOWED = {
    (S.ABSENT, S.IMPORTING),  # a copy begins to be filled
    (S.ABSENT, S.PRIMARY),  # a bucket is born
    (S.IMPORTING, S.BACKUP),  # the copy is whole
    (S.IMPORTING, S.ABSENT),  # and was given up
    (S.BACKUP, S.PRIMARY),
    (S.BACKUP, S.ABSENT),
    (S.PRIMARY, S.PRIMARY),  # opened anew in a later epoch
    (S.PRIMARY, S.FROZEN),
    (S.FROZEN, S.PRIMARY),  # taken back
    (S.FROZEN, S.BACKUP),  # handed over and in step
    (S.FROZEN, S.ABSENT),
}


@pytest.mark.parametrize(("now", "then"), list(product(BucketState, BucketState)))
def test_exactly_these_may_follow(now: BucketState, then: BucketState) -> None:
    assert may_follow(now, then) is ((now, then) in ALLOWED)


def test_a_copy_that_is_not_whole_never_becomes_primary() -> None:
    assert not may_follow(S.IMPORTING, S.PRIMARY)


def test_a_primary_gives_up_before_it_goes() -> None:
    assert not may_follow(S.PRIMARY, S.ABSENT)
    assert not may_follow(S.PRIMARY, S.BACKUP)
