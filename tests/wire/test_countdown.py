"""The countdown buffer: takes what it owes, never a byte more, and comes out even."""

from __future__ import annotations

from struct import Struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rcache_client.wire.countdown import Countdown, CountdownError

PAIR = Struct(">BH")


def test_takes_count_down_to_zero() -> None:
    countdown = Countdown(b"\x01\x00\x02key")
    assert countdown.remaining == 6
    assert countdown.unpack(PAIR) == (1, 2)
    assert countdown.remaining == 3
    assert countdown.take(3) == b"key"
    assert countdown.remaining == 0
    countdown.finish()


def test_a_take_of_nothing_is_allowed_at_the_end() -> None:
    countdown = Countdown(b"")
    assert countdown.take(0) == b""
    countdown.finish()


@pytest.mark.parametrize("count", [-1, 4, 1 << 40])
def test_a_take_beyond_the_end_takes_nothing(count: int) -> None:
    countdown = Countdown(b"key")
    with pytest.raises(CountdownError, match="3 left"):
        countdown.take(count)
    assert countdown.remaining == 3
    assert countdown.take(3) == b"key"


def test_an_unpack_beyond_the_end_takes_nothing() -> None:
    countdown = Countdown(b"\x01\x02")
    with pytest.raises(CountdownError, match="3 bytes needed, 2 left"):
        countdown.unpack(PAIR)
    assert countdown.remaining == 2


def test_bytes_left_over_are_an_error() -> None:
    countdown = Countdown(b"abc")
    countdown.take(1)
    with pytest.raises(CountdownError, match="2 bytes left over"):
        countdown.finish()


@pytest.mark.parametrize(("start", "end"), [(-1, 2), (2, 1), (0, 4), (4, 4), (0, -1)])
def test_a_window_that_is_not_there_is_refused(start: int, end: int) -> None:
    with pytest.raises(CountdownError, match="are not there"):
        Countdown(b"abc", start, end)


def test_the_window_hides_what_lies_around_it(secret: bytes) -> None:
    countdown = Countdown(secret + b"\x01\x00\x02" + secret, len(secret), len(secret) + 3)
    with pytest.raises(CountdownError) as caught:
        countdown.take(4)
    assert secret.decode() not in str(caught.value)
    assert countdown.unpack(PAIR) == (1, 2)
    with pytest.raises(CountdownError):
        countdown.unpack(PAIR)
    with pytest.raises(CountdownError):
        countdown.take(1)
    countdown.finish()


def test_a_take_is_a_copy() -> None:
    data = bytearray(b"key and more")
    taken = Countdown(bytes(data)).take(3)
    data[:3] = b"xxx"
    assert taken == b"key"


def outcomes(countdown: Countdown, takes: list[int | None]) -> list[Any]:
    """What each take gives: bytes, numbers, or the text of its error. None stands for an unpack."""
    told: list[Any] = []
    for count in takes:
        try:
            told.append(countdown.unpack(PAIR) if count is None else countdown.take(count))
        except CountdownError as error:
            told.append(str(error))
    return told


@given(
    st.binary(max_size=24),
    st.lists(st.none() | st.integers(-2, 30), max_size=12),
    st.binary(max_size=9),
    st.binary(max_size=9),
    st.binary(max_size=9),
)
def test_what_lies_around_the_window_makes_no_difference(
    inside: bytes, takes: list[int | None], before: bytes, after: bytes, other: bytes
) -> None:
    """If a byte outside were read at all, some outcome would depend on it."""
    start, end = len(before), len(before) + len(inside)
    alone = outcomes(Countdown(inside), takes)
    assert outcomes(Countdown(before + inside + after, start, end), takes) == alone
    assert outcomes(Countdown(before + inside + other, start, end), takes) == alone
    given_out = b"".join(part if isinstance(part, bytes) else PAIR.pack(*part) for part in alone if not isinstance(part, str))
    assert inside.startswith(given_out)
