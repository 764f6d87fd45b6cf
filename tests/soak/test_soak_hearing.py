"""What is held against a subscriber: every kind of lie is found, and nothing else."""

from __future__ import annotations

import pytest

from rcache_client import Event, Operation
from soak.cluster.hearing import Hearing

B = 3


def change(sequence: int, key: str = "k", value: bytes | None = b"v", operation: Operation = Operation.SET) -> Event:
    return Event(operation, B, sequence, key.encode(), value)


def gap(after: int, upto: int) -> Event:
    return Event(Operation.GAP, B, upto, after=after)


@pytest.fixture
def hearing() -> Hearing:
    made = Hearing()
    made.begin({B: 10})
    return made


def test_acknowledged_and_told_in_either_order(hearing: Hearing) -> None:
    hearing.acknowledged(B, 11, ("k", b"v"))
    assert len(hearing.owed()) == 1
    hearing.told(change(11))
    hearing.told(change(12))
    hearing.acknowledged(B, 12, ("k", b"v"))
    assert (hearing.wrong, hearing.owed(), hearing.events) == ([], [], 2)
    assert hearing.held == {"k": (b"v", 12)}


def test_what_was_not_acknowledged_may_be_told_or_not(hearing: Hearing) -> None:
    hearing.told(change(11))
    hearing.told(change(13, value=None, operation=Operation.DELETED))
    assert hearing.wrong == []
    assert hearing.held == {"k": (None, 13)}


def test_an_opening_is_no_key(hearing: Hearing) -> None:
    hearing.told(change(1 << 40, key="", value=None, operation=Operation.OPENED))
    assert (hearing.wrong, hearing.held) == ([], {})


def test_twice_is_found(hearing: Hearing) -> None:
    hearing.told(change(11))
    hearing.told(change(11))
    assert "0.11 was told after 0.11" in hearing.wrong[0]


def test_out_of_order_is_found(hearing: Hearing) -> None:
    hearing.told(change(12))
    hearing.told(change(11))
    assert "0.11 was told after 0.12" in hearing.wrong[0]


def test_passed_by_is_found_whenever_it_is_acknowledged(hearing: Hearing) -> None:
    hearing.acknowledged(B, 11, ("k", b"v"))
    hearing.told(change(12))
    assert "passed by without a gap" in hearing.wrong[0]
    hearing.told(change(14))
    hearing.acknowledged(B, 13, ("k", b"v"))
    assert "0.13" in hearing.wrong[1]


def test_a_gap_covers_what_lies_in_it_and_nothing_else(hearing: Hearing) -> None:
    hearing.acknowledged(B, 12, ("k", b"v"))
    hearing.told(gap(11, 13))
    hearing.acknowledged(B, 13, ("k", b"v"))
    assert (hearing.wrong, hearing.gaps, hearing.owed()) == ([], 1, [])
    assert hearing.is_unknown(B, "k")
    hearing.acknowledged(B, 11, ("k", b"v"))
    assert "0.11" in hearing.wrong[0]


def test_after_a_gap_a_key_is_known_again_once_it_is_told(hearing: Hearing) -> None:
    hearing.told(gap(10, 13))
    hearing.told(change(14))
    assert not hearing.is_unknown(B, "k")
    assert hearing.is_unknown(B, "another")


def test_a_gap_that_begins_before_what_was_told_is_found(hearing: Hearing) -> None:
    hearing.told(change(12))
    hearing.told(gap(11, 15))
    assert "a gap from 0.11 on, where 0.12 was told last" in hearing.wrong[0]


def test_a_history_that_goes_back_is_found(hearing: Hearing) -> None:
    hearing.told(change(12))
    hearing.told(gap(12, 11))
    assert "went from 0.12 back to 0.11" in hearing.wrong[0]


def test_another_value_is_found_in_either_order(hearing: Hearing) -> None:
    hearing.acknowledged(B, 11, ("k", b"a"))
    hearing.told(change(11, value=b"b"))
    hearing.told(change(12, value=b"b"))
    hearing.acknowledged(B, 12, ("k", b"a"))
    assert len(hearing.wrong) == 2


def test_what_never_comes_is_owed(hearing: Hearing) -> None:
    hearing.acknowledged(B, 11, ("k", b"v"))
    assert "0.11" in hearing.owed()[0]
