"""What is held against a near cache: every broken promise is found, and nothing else."""

from __future__ import annotations

import pytest

from soak.cluster.nearness import WRITES_KEPT, Nearness

K = "k"


@pytest.fixture
def near() -> Nearness:
    """Write 1 ("a") is acknowledged at 1.1 s, write 2 ("b") at 2.1 s; a value may be stale for 1 s."""
    made = Nearness(1.0)
    write(made, b"a", 1.0)
    write(made, b"b", 2.0)
    return made


def write(near: Nearness, value: bytes | None, at: float, *, is_unknown: bool = False) -> None:
    near.end_write(K, near.begin_write(K, value, at), at + 0.1, is_unknown=is_unknown)


def read(near: Nearness, value: bytes | None, at: float, least: int | None = None) -> None:
    near.end_read(K, value, at, near.begin_read(K) if least is None else least)


def test_the_newest_and_what_is_stale_within_the_bound(near: Nearness) -> None:
    read(near, b"a", 3.0)
    read(near, b"b", 3.0)
    read(near, b"b", 99.0)
    assert near.wrong == []
    assert near.stalest_s == pytest.approx(0.9)
    assert near.reads == 3


def test_staler_than_the_bound_is_found(near: Nearness) -> None:
    read(near, b"a", 3.2)
    assert "b'a' was read 1.100 s after b'b' had been acknowledged" in near.wrong[0]


def test_a_bound_of_nothing_is_read_your_writes(near: Nearness) -> None:
    near.end_read(K, b"a", 2.05, 0, 0.0)  # the write was under way
    assert near.wrong == []
    near.end_read(K, b"a", 2.2, 0, 0.0)
    assert len(near.wrong) == 1


def test_an_earlier_one_after_a_later_one_is_found(near: Nearness) -> None:
    read(near, b"b", 2.2)
    read(near, b"a", 2.3)
    assert "read after a later one" in near.wrong[0]


def test_reads_at_the_same_time_may_cross(near: Nearness) -> None:
    least = near.begin_read(K)
    read(near, b"b", 2.2)
    read(near, b"a", 2.2, least)
    assert near.wrong == []


def test_what_nobody_wrote_is_found(near: Nearness) -> None:
    read(near, b"c", 2.2)
    assert "which nobody wrote" in near.wrong[0]


def test_a_removal_is_a_write(near: Nearness) -> None:
    write(near, None, 3.0)
    read(near, None, 3.2)
    read(near, b"b", 3.3)
    assert "read after a later one" in near.wrong[0]


def test_a_miss_before_anything_was_removed_is_found(near: Nearness) -> None:
    read(near, None, 9.0)
    assert "was read" in near.wrong[0]


def test_unknown_outcomes_are_held_against_nobody(near: Nearness) -> None:
    write(near, b"u", 3.0, is_unknown=True)
    write(near, b"d", 4.0)
    read(near, b"u", 9.0)
    read(near, b"d", 9.0)
    read(near, b"u", 9.0)
    assert near.wrong == []
    write(near, None, 10.0, is_unknown=True)
    write(near, b"e", 11.0)
    read(near, None, 19.0)
    assert near.wrong == []


def test_what_is_kept_has_a_limit(near: Nearness) -> None:
    for number in range(WRITES_KEPT + 10):
        write(near, b"%d" % number, 10.0 + number)
    read(near, b"%d" % (WRITES_KEPT + 9), 10.0 + WRITES_KEPT + 9.5)
    assert near.wrong == []
    assert len(near._keys[K].writes) == WRITES_KEPT == len(near._keys[K].by_value)
