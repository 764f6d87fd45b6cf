"""Whose files still have a bucket where they end: what a node let go of does not pass for what it had last."""

from __future__ import annotations

from pathlib import Path

import pytest

from rcache.records import walk
from rcache.records.files import FileKind
from rcache.records.history import NO_LIMIT
from rcache.records.rebuild import survey
from rcache.stream.data_dir import list_files, sources

from .bodies import BODIES, using
from .making import dropped, header_of, imported, opened, row, seq, stored, write_file

FIRST = [opened(1, time_ms=10), *(stored(seq(1, n), b"k", b"%d" % n, time_ms=10 + n) for n in (1, 2, 3))]
"""A copy up to 1.3."""

DROP = dropped(0, time_ms=20)
AGAIN = imported(seq(2, 5), seq(2, 5), [row(seq(2, 5), b"k", b"new")], time_ms=30)
"""A second copy, of a later epoch."""


@pytest.fixture(params=BODIES, autouse=True)
def _body(request: pytest.FixtureRequest):  # type: ignore[no-untyped-def]
    with using(request.param):
        assert walk.chosen is request.param
        yield


def problems(folder: Path, until_ms: int = NO_LIMIT) -> list[str]:
    return survey(sources(list_files(folder)), until_ms=until_ms).problems


def let_go(end: str, *nodes: str) -> list[str]:
    return [f"bucket 0: let go of by {', '.join(nodes)} at {end}, and no whole copy made since is here"]


@pytest.mark.parametrize("rest", [[], AGAIN[:1], AGAIN[:2]])
def test_what_was_let_go_of_is_not_there_until_the_next_copy_is_whole(tmp_path: Path, rest: list[bytes]) -> None:
    write_file(tmp_path, header_of(1), FIRST, [DROP, *rest])
    assert problems(tmp_path) == let_go("1.3", "n1")


def test_the_next_copy_is_whole(tmp_path: Path) -> None:
    write_file(tmp_path, header_of(1), FIRST, [DROP], AGAIN[:1], AGAIN[1:], [stored(seq(2, 6), b"k", b"newer", time_ms=31)])
    assert problems(tmp_path) == []


@pytest.mark.parametrize("rows", [0, 2])
def test_a_copy_that_lacks_rows_is_not_whole(tmp_path: Path, rows: int) -> None:
    write_file(tmp_path, header_of(1), FIRST, [DROP], imported(seq(1, 3), seq(1, 3), claimed=rows + 1))
    assert problems(tmp_path) == let_go("1.3", "n1")


def test_a_copy_that_is_begun_ends_the_one_before_even_without_a_drop(tmp_path: Path) -> None:
    write_file(tmp_path, header_of(1), FIRST, AGAIN[:2])
    assert problems(tmp_path) == let_go("1.3", "n1")


def test_a_bucket_that_begins_anew_is_there(tmp_path: Path) -> None:
    """It was lost, and is opened empty."""
    write_file(tmp_path, header_of(1), FIRST, [DROP], [opened(3, 0, time_ms=40)])
    assert problems(tmp_path) == []


def test_an_open_of_another_epoch_brings_nothing_back(tmp_path: Path) -> None:
    """It goes on from what was there; where that was let go of, it is of a copy whose rows are not here."""
    write_file(tmp_path, header_of(1), FIRST, [DROP], [opened(3, seq(1, 3), time_ms=40)])
    assert problems(tmp_path) == let_go("3.0", "n1")


@pytest.mark.parametrize("first_segment", [1, 2])
def test_a_checkpoint_of_before_does_not_help(tmp_path: Path, first_segment: int) -> None:
    write_file(tmp_path, header_of(1), FIRST)
    write_file(tmp_path, header_of(2), [DROP])
    header = header_of(first_segment, kind=FileKind.CHECKPOINT, first_segment=first_segment)
    write_file(tmp_path, header, imported(seq(1, 3), seq(1, 3), [row(seq(1, 3), b"k", b"3")], time_ms=13))
    assert problems(tmp_path) == let_go("1.3", "n1")


def test_a_checkpoint_is_enough_where_the_log_says_nothing_since(tmp_path: Path) -> None:
    header = header_of(2, kind=FileKind.CHECKPOINT, first_segment=2)
    write_file(tmp_path, header, imported(seq(1, 3), seq(1, 3), [row(seq(1, 3), b"k", b"3")], time_ms=13))
    write_file(tmp_path, header_of(2, buckets=2), [opened(1, bucket=1)])
    assert problems(tmp_path) == []


def test_what_a_checkpoint_says_of_a_bucket_that_is_not_there_changes_nothing(tmp_path: Path) -> None:
    write_file(tmp_path, header_of(1), FIRST)
    write_file(tmp_path, header_of(2, kind=FileKind.CHECKPOINT, first_segment=1), imported(0, 0))
    assert problems(tmp_path) == []


@pytest.mark.parametrize(
    ("begins", "whole", "told"),
    [
        (FIRST, True, True),
        ([*FIRST[:2], *FIRST[3:]], False, True),
        (FIRST[1:], False, True),
    ],
)
def test_what_is_missing_is_told_apart_from_what_was_let_go_of(
    tmp_path: Path, begins: list[bytes], whole: bool, told: bool
) -> None:
    """For whoever looks for the last copy there is: it may have been let go of, and all be there."""
    write_file(tmp_path, header_of(1), begins, [DROP])
    plan = survey(sources(list_files(tmp_path))).plans[0]
    assert (plan.is_whole, bool(plan.let_go), plan.let_go in plan.problems) == (whole, told, told)


def test_a_whole_copy_that_was_not_let_go_of_is_just_whole(tmp_path: Path) -> None:
    write_file(tmp_path, header_of(1), FIRST)
    plan = survey(sources(list_files(tmp_path))).plans[0]
    assert (plan.is_whole, plan.let_go, plan.problems) == (True, "", ())


# --- the files of several nodes


def test_it_is_enough_that_one_of_several_has_it(tmp_path: Path) -> None:
    write_file(tmp_path, header_of(1), FIRST, [DROP])
    write_file(tmp_path, header_of(1, node="n2"), imported(seq(1, 1), seq(1, 1), [row(seq(1, 1), b"k", b"1")], time_ms=11))
    assert problems(tmp_path) == []


def test_who_has_it_did_not_come_to_the_newest_epoch(tmp_path: Path) -> None:
    """n2 was killed in epoch 1; n1 went on in epoch 2 and gave it to a third, whose files are not here."""
    write_file(tmp_path, header_of(1), FIRST, [opened(2, seq(1, 3), time_ms=19), DROP])
    write_file(tmp_path, header_of(1, node="n2"), imported(seq(1, 1), seq(1, 1), [row(seq(1, 1), b"k", b"1")], time_ms=11))
    assert problems(tmp_path) == let_go("2.0", "n1")


def test_who_has_it_went_on_in_a_later_epoch(tmp_path: Path) -> None:
    """What each log speaks of is that log's own."""
    write_file(tmp_path, header_of(1), FIRST, [DROP])
    copy = imported(seq(1, 1), seq(1, 1), [row(seq(1, 1), b"k", b"1")], time_ms=11)
    rest = [stored(seq(1, n), b"k", b"%d" % n, time_ms=10 + n) for n in (2, 3)]
    write_file(tmp_path, header_of(1, node="n2"), copy, rest, [opened(2, seq(1, 3), time_ms=19)])
    assert problems(tmp_path) == []


def test_the_files_of_who_had_it_last_are_missing(tmp_path: Path) -> None:
    write_file(tmp_path, header_of(1), FIRST, [DROP])
    write_file(tmp_path, header_of(1, node="n2"), imported(seq(1, 1), seq(1, 1), time_ms=11), [DROP])
    assert problems(tmp_path) == let_go("1.3", "n1", "n2")


@pytest.mark.parametrize(("until_ms", "is_there"), [(13, True), (19, True), (20, False), (29, False), (30, True)])
def test_at_a_time_before_it_was_let_go_of_it_is_there(tmp_path: Path, until_ms: int, is_there: bool) -> None:
    again = imported(seq(1, 3), seq(1, 3), [row(seq(1, 3), b"k", b"3")], time_ms=30)
    write_file(tmp_path, header_of(1), FIRST, [DROP], again)
    assert (problems(tmp_path, until_ms) == []) is is_there
