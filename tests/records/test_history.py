"""What records say about a bucket: the chain, dead records, holes, bases, and where history is cut."""

from __future__ import annotations

import pytest

from rcache.records import walk
from rcache.records.history import NO_LIMIT, BucketPlan, History
from rcache.records.reader import DataDamaged
from rcache.records.record import COUNTER_MAX, BadRecord, heads

from .bodies import plans_by_walking
from .making import dropped, flushed, imported, opened, removed, row, seq, stored

LOG = [opened(1, time_ms=10), *(stored(seq(1, n), b"k", b"v", time_ms=10 + n) for n in range(1, 6))]


def plan_of(*sources: list[bytes], until_ms: int = NO_LIMIT) -> BucketPlan:
    """The plan by the readable body; the compiled one is held against it, with records alone in their blocks and together."""
    history = History()
    try:
        for number, records in enumerate(sources):
            body = b"".join(records)
            history.note_all(number, body, list(heads(body)))
    except BadRecord as error:
        _check_refused(sources, str(error))
        raise
    plans = history.plan(until_ms=until_ms)
    for count in (1, 2, 1000) if walk.COMPILED else ():
        assert plans_by_walking(sources, until_ms=until_ms, records_in_block=count) == plans
    return plans[0]


def _check_refused(sources: tuple[list[bytes], ...], why: str) -> None:
    if walk.COMPILED:
        with pytest.raises(DataDamaged) as caught:
            plans_by_walking(sources, records_in_block=2)
        assert caught.value.why == why


def test_from_birth() -> None:
    plan = plan_of(LOG)
    assert (plan.base, plan.floor, plan.problems, plan.end, plan.end_ms) == (None, 0, (), seq(1, 5), 15)
    assert all(plan.is_live(seq(1, n)) for n in range(6))


def test_what_lies_beyond_the_point_an_open_names_is_dead() -> None:
    plan = plan_of(LOG, [opened(3, seq(1, 2), time_ms=20), stored(seq(3, 1), b"k", b"w", time_ms=21)])
    assert plan.problems == ()
    assert plan.dead == 3
    assert [n for n in range(6) if plan.is_live(seq(1, n))] == [0, 1, 2]
    assert plan.is_live(seq(3, 0))
    assert plan.is_dead(seq(1, 3))
    assert plan.end == seq(3, 1)


def test_an_epoch_that_no_later_one_continues_is_dead_as_a_whole() -> None:
    plan = plan_of(
        LOG, [opened(2, seq(1, 5)), stored(seq(2, 1), b"k", b"x")], [opened(3, seq(1, 5)), stored(seq(3, 1), b"k", b"y")]
    )
    assert plan.problems == ()
    assert plan.dead == 2
    assert not plan.is_live(seq(2, 1))
    assert plan.is_live(seq(3, 1))


def test_a_bucket_born_anew_leaves_all_that_was_before_dead() -> None:
    plan = plan_of(LOG, [opened(4, 0)])
    assert plan.problems == ()
    assert plan.dead == 6
    assert not plan.is_live(seq(1, 1))


def test_several_epochs_each_continuing_the_one_before() -> None:
    records = [
        record
        for epoch in range(1, 6)
        for record in (opened(epoch, seq(epoch - 1, 1) if epoch > 1 else 0), stored(seq(epoch, 1), b"k", b"v"))
    ]
    plan = plan_of(records)
    assert plan.problems == ()
    assert sorted(plan.chain) == [1, 2, 3, 4, 5]
    assert plan.dead == 0


@pytest.mark.parametrize("lost", range(1, 5))
def test_a_hole_is_named(lost: int) -> None:
    plan = plan_of(LOG[:lost] + LOG[lost + 1 :])
    assert plan.problems == (f"missing link: 1.{lost} is not there",)


def test_two_logs_that_overlap_fill_each_others_holes() -> None:
    assert plan_of(LOG[:3], LOG[2:]).problems == ()
    assert plan_of(LOG[:2] + LOG[4:], LOG[1:5]).problems == ()
    assert plan_of(LOG[3:], LOG[:4], LOG).problems == ()
    assert plan_of(LOG[3:], LOG[:2]).problems == ("missing link: 1.2 is not there",)


def test_the_end_of_an_older_epoch_must_be_there_up_to_the_point_named() -> None:
    newer = [opened(2, seq(1, 5))]
    assert plan_of(LOG, newer).problems == ()
    assert plan_of(LOG[:-1], newer).problems == ("missing link: 1.5 is not there",)


def test_without_its_first_open_a_history_has_no_base() -> None:
    assert plan_of(LOG[1:]).problems == ("no base: the history does not go back to its birth",)


def test_an_open_of_a_middle_epoch_missing_breaks_the_chain() -> None:
    later = [opened(3, seq(2, 1))]
    plan = plan_of(LOG, [stored(seq(2, 1), b"k", b"v")], later)
    assert plan.problems
    assert not plan.is_dead(seq(1, 1))
    assert plan.dead == 0


def test_a_base_takes_the_place_of_what_came_before_its_begin() -> None:
    plan = plan_of(LOG[4:], imported(seq(1, 3), seq(1, 4), [row(seq(1, 3), b"k", b"v")]))
    assert plan.problems == ()
    assert plan.base is not None
    assert (plan.base.source, plan.base.ordinal, plan.floor) == (1, 1, seq(1, 3))
    assert not plan.is_live(seq(1, 3))
    assert plan.is_live(seq(1, 4))


def test_a_base_needs_what_changed_while_it_was_copied() -> None:
    plan = plan_of(LOG[5:], imported(seq(1, 3), seq(1, 4)))
    assert plan.problems == ("missing link: 1.4 is not there",)
    assert plan.base is not None


def test_a_base_alone_is_a_history() -> None:
    plan = plan_of(imported(seq(4, 7), seq(4, 7), time_ms=50))
    assert (plan.problems, plan.end, plan.end_ms, plan.floor) == ((), seq(4, 7), 50, seq(4, 7))


def test_a_base_of_a_bucket_not_yet_born_is_a_history() -> None:
    assert plan_of(imported(0, 0)).problems == ()
    assert plan_of(imported(0, 0), LOG).problems == ()


def test_the_newest_base_that_is_on_the_chain_is_used() -> None:
    older, newer = imported(seq(1, 1), seq(1, 1)), imported(seq(1, 4), seq(1, 5))
    assert plan_of(LOG, older + newer).floor == seq(1, 4)
    cut = plan_of(LOG, older + newer, [opened(2, seq(1, 4))])
    assert cut.problems == ()
    assert cut.floor == seq(1, 1)


def test_a_base_whose_end_is_off_the_chain_is_never_used() -> None:
    plan = plan_of(LOG[1:], imported(seq(1, 3), seq(1, 5)), [opened(2, seq(1, 4))])
    assert plan.base is None
    assert plan.problems


@pytest.mark.parametrize("claimed", [0, 2])
def test_an_import_that_is_not_whole_is_no_base(claimed: int) -> None:
    plan = plan_of(imported(seq(1, 1), seq(1, 1), [row(seq(1, 1), b"k", b"v")], claimed=claimed))
    assert plan.base is None
    assert plan.problems


def test_an_import_that_was_begun_again_or_dropped_is_no_base() -> None:
    rows = [row(seq(1, 1), b"k", b"v")]
    half = imported(seq(1, 1), seq(1, 1), rows)[:-1]
    end = imported(seq(1, 1), seq(1, 1), rows)[-1]
    assert plan_of(half).base is None
    assert plan_of([*half, dropped(seq(1, 1)), end]).base is None
    again = plan_of(half + imported(seq(1, 2), seq(1, 2)))
    assert again.base is not None
    assert again.base.ordinal == 2


def test_imports_of_two_sources_do_not_mix() -> None:
    half = imported(seq(1, 1), seq(1, 1), [row(seq(1, 1), b"k", b"v")])
    assert plan_of(half[:1], half[1:]).base is None


def test_until_is_a_prefix_and_a_hole_behind_it_does_not_matter() -> None:
    holed = LOG[:4] + LOG[5:]
    assert plan_of(holed).problems
    assert plan_of(holed, until_ms=12).problems == ()
    assert plan_of(holed, until_ms=13).problems, "1.4 may have happened in the same millisecond as 1.3"


def test_until_leaves_out_bases_that_are_later() -> None:
    bases = imported(seq(1, 1), seq(1, 1), time_ms=11) + imported(seq(1, 4), seq(1, 4), time_ms=14)
    assert plan_of(LOG, bases, until_ms=13).floor == seq(1, 1)
    assert plan_of(LOG, bases, until_ms=14).floor == seq(1, 4)
    assert plan_of(LOG[2:], bases[3:], until_ms=13).problems == ("no base: the history does not go back to its birth",)


def test_an_epoch_opened_twice_from_different_places_is_a_problem() -> None:
    plan = plan_of(LOG, [opened(2, seq(1, 5))], [opened(2, seq(1, 4))])
    assert "epoch 2 was opened twice, from different places" in plan.problems


@pytest.mark.parametrize("future", [seq(2, 0), seq(2, 1), seq(3, 0)])
def test_an_open_that_continues_its_own_future_is_refused(future: int) -> None:
    with pytest.raises(BadRecord, match="own future"):
        plan_of([opened(2, future)])


def test_an_epoch_whose_counter_ran_out_ends_where_the_next_begins() -> None:
    """The next sequence in numbers is the next epoch's OPEN, and another run."""
    last = seq(1, COUNTER_MAX)
    plan = plan_of([stored(last, b"k", b"v"), opened(2, last)], imported(last - 1, last))
    assert (plan.problems, plan.chain, plan.end) == ((), {1: last, 2: seq(3, 0) - 1}, seq(2, 0))
    assert plan_of([stored(last, b"k", b"v"), opened(2, seq(1, 5))]).dead == 1


def test_removals_and_flushes_take_a_place_and_marks_do_not() -> None:
    plan = plan_of([opened(1), removed(seq(1, 1), b"k"), flushed(seq(1, 2)), dropped(seq(1, 2)), stored(seq(1, 3), b"k", b"v")])
    assert plan.problems == ()
    assert plan.end == seq(1, 3)


def test_the_newest_epoch_and_the_span_of_times() -> None:
    history = History()
    assert (history.newest_epoch(), history.span_ms()) == (0, (0, 0))
    body = b"".join(LOG + imported(seq(7, 1), seq(7, 1), time_ms=99))
    history.note_all(0, body, list(heads(body)))
    assert (history.newest_epoch(), history.span_ms()) == (7, (10, 15))
