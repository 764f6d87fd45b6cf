"""Coverage: what a recording says of a bucket after each thing that can happen to it."""

from __future__ import annotations

import pytest

from rcache.logger.coverage import Coverage, Covered, Standing, Step
from rcache.records.record import make_sequence as seq

B = 3
T = 1000


@pytest.fixture
def coverage() -> Coverage:
    """Bucket 3 is whole up to 5.20."""
    return Coverage({B: Covered(seq(5, 20), True, T)})


def copied(coverage: Coverage, begin: int, end: int, bucket: int = B) -> bool:
    """A copy, with nothing between its begin and its end."""
    coverage.copy_begins(bucket)
    return coverage.base(bucket, begin, end, T)


def changes(coverage: Coverage, epoch: int, first: int, last: int) -> None:
    for counter in range(first, last + 1):
        assert coverage.change(B, seq(epoch, counter), seq(epoch, counter - 1), T + counter) is Step.FOLLOWS


def test_a_change_is_recorded_once_and_in_its_order(coverage: Coverage) -> None:
    changes(coverage, 5, 21, 22)
    assert coverage.change(B, seq(5, 22), seq(5, 21), T) is Step.AGAIN
    assert coverage.change(B, seq(5, 3), seq(5, 2), T) is Step.AGAIN
    assert coverage[B] == Covered(seq(5, 22), True, T + 22)
    assert (coverage.whole, coverage.lacking()) == (1, [])


def test_an_opening_goes_on_where_it_says(coverage: Coverage) -> None:
    assert coverage.change(B, seq(7, 0), seq(5, 20), T) is Step.FOLLOWS
    assert coverage[B].is_whole
    assert coverage.change(B, seq(8, 0), seq(5, 20), T) is Step.BREAKS  # 7 is dead, and a base may have ended in it
    assert coverage.lacking() == [B]


def test_a_change_with_something_missing_before_it_breaks_what_was_whole(coverage: Coverage) -> None:
    assert coverage.change(B, seq(5, 22), seq(5, 21), T) is Step.BREAKS
    assert coverage[B] == Covered(seq(5, 22), False, T)
    assert coverage.change(B, seq(5, 30), seq(5, 29), T) is Step.FOLLOWS  # nothing was whole that could break
    assert not copied(coverage, seq(5, 29), seq(5, 31))  # it began before the last hole
    assert copied(coverage, seq(5, 30), seq(5, 30))


def test_a_gap_needs_a_base_from_behind_it(coverage: Coverage) -> None:
    assert coverage.gap(B, seq(5, 40))
    assert not coverage.gap(B, seq(5, 41))
    changes(coverage, 5, 42, 44)
    assert coverage.lacks(B)
    assert not copied(coverage, seq(5, 40), seq(5, 44))
    assert copied(coverage, seq(5, 41), seq(5, 44))
    assert coverage[B].is_whole


def test_a_gap_while_a_bucket_is_copied_spoils_the_copy(coverage: Coverage) -> None:
    coverage.gap(B, seq(5, 30))
    coverage.copy_begins(B)
    changes(coverage, 5, 31, 33)
    coverage.gap(B, seq(5, 40))
    assert not coverage.base(B, seq(5, 30), seq(5, 41), T)


def test_a_base_is_whole_with_the_changes_up_to_its_end(coverage: Coverage) -> None:
    coverage.gap(B, seq(5, 30))
    assert copied(coverage, seq(5, 32), seq(5, 35))
    assert (coverage.lacking(), coverage.whole, coverage[B].is_whole) == ([], 0, False)
    changes(coverage, 5, 31, 34)
    assert not coverage[B].is_whole
    changes(coverage, 5, 35, 35)
    assert (coverage.whole, coverage[B].is_whole) == (1, True)


def test_a_birth_that_is_told_after_a_copy_is_whole_with_that(coverage: Coverage) -> None:
    copied(coverage, seq(1, 0), seq(1, 2), 4)
    assert coverage.change(4, seq(1, 0), 0, T) is Step.FOLLOWS
    assert not coverage[4].is_whole
    coverage.change(4, seq(1, 1), seq(1, 0), T)
    coverage.change(4, seq(1, 2), seq(1, 1), T)
    assert coverage[4].is_whole


def test_a_gap_before_the_end_of_a_base_spoils_it(coverage: Coverage) -> None:
    coverage.gap(B, seq(5, 30))
    copied(coverage, seq(5, 32), seq(5, 35))
    assert coverage.gap(B, seq(5, 40))
    assert (coverage.lacking(), coverage.whole) == ([B], 0)


def test_a_base_whose_end_was_lost_is_none(coverage: Coverage) -> None:
    """It was copied, and told up to 5.32, when the cluster lost 5.33 to 5.35."""
    coverage.gap(B, seq(5, 30))
    copied(coverage, seq(5, 32), seq(5, 35))
    changes(coverage, 5, 31, 32)
    assert coverage.change(B, seq(6, 0), seq(5, 32), T) is Step.BREAKS
    assert coverage.lacking() == [B]


def test_a_mark_ends_the_copy_that_it_comes_into(coverage: Coverage) -> None:
    """A bucket is born anew while it is copied, and then something is missing: the DROP that says so ends the copy too."""
    coverage.copy_begins(B)
    coverage.change(B, seq(9, 0), 0, T)
    assert coverage.gap(B, seq(9, 5))
    assert not coverage.base(B, seq(9, 7), seq(9, 8), T)
    assert copied(coverage, seq(9, 7), seq(9, 8))


def test_a_copy_that_is_begun_and_not_ended_leaves_nothing_whole(coverage: Coverage) -> None:
    """So says whoever reads the files: `records.holdings`."""
    coverage.copy_begins(B)
    assert coverage.lacking() == [B]


def test_a_birth_needs_no_base(coverage: Coverage) -> None:
    coverage.gap(B, seq(5, 30))
    assert coverage.change(B, seq(9, 0), 0, T) is Step.FOLLOWS
    assert coverage[B] == Covered(seq(9, 0), True, T)
    assert coverage.change(4, seq(1, 0), 0, T) is Step.FOLLOWS
    assert coverage.whole == 2


@pytest.mark.parametrize(
    ("place", "standing"),
    [
        (seq(5, 20), Standing.HERE),
        (seq(6, 0), Standing.OPENED),
        (seq(9, 0), Standing.OPENED),
        (seq(6, 1), Standing.ELSEWHERE),
        (seq(5, 19), Standing.ELSEWHERE),
        (seq(4, 0), Standing.ELSEWHERE),
    ],
)
def test_how_a_beginning_stands_to_the_record(coverage: Coverage, place: int, standing: Standing) -> None:
    assert coverage.standing(B, place) is standing
    assert coverage.standing(99, place) is Standing.NEW


def test_a_place_without_a_record_is_no_record(coverage: Coverage) -> None:
    """An OPEN that comes next is not made up for it: nobody knows when it was."""
    coverage.gap(7, seq(5, 3))
    assert coverage.standing(7, seq(6, 0)) is Standing.NEW


def test_a_history_that_went_back_goes_on_in_a_new_epoch(coverage: Coverage) -> None:
    """The cluster lost 5.16 to 5.20, which were committed, and went on from 5.15."""
    assert not coverage.went_back()
    coverage.gap(B, seq(5, 15))
    assert coverage[B].place == seq(5, 15)
    assert list(coverage.went_back()) == [B]
    assert coverage.was_used(B, seq(5, 16))
    assert coverage.was_used(B, seq(5, 20))
    assert not coverage.was_used(B, seq(6, 0))
    assert coverage.change(B, seq(6, 0), seq(5, 15), T) is Step.FOLLOWS
    assert not coverage.went_back()
    assert copied(coverage, seq(6, 0), seq(6, 0))
