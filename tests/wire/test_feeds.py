"""Places and notices: what a feed says beside records."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rcache_client.wire.feeds import (
    FROM_NOW,
    Notice,
    NoticeKind,
    decode_notices,
    decode_places,
    encode_notices,
    encode_places,
)
from rcache_client.wire.grammar import BadPayload

BUCKETS, SEQUENCES = st.integers(0, (1 << 32) - 1), st.integers(0, FROM_NOW)


@given(places=st.dictionaries(BUCKETS, SEQUENCES))
def test_places_are_the_same_after_their_bytes(places: dict[int, int]) -> None:
    assert decode_places(encode_places(places)) == places


@given(notices=st.lists(st.builds(Notice, st.sampled_from(NoticeKind), BUCKETS, SEQUENCES, SEQUENCES)))
def test_notices_are_the_same_after_their_bytes(notices: list[Notice]) -> None:
    assert decode_notices(encode_notices(notices)) == notices


@pytest.mark.parametrize("body", [bytes(11), bytes(13), encode_places({7: 1}) * 2, bytes(12 * 65_537)], ids=len)
def test_what_are_no_places(body: bytes) -> None:
    with pytest.raises(BadPayload):
        decode_places(body)


@pytest.mark.parametrize("count", [1, 20, 22])
def test_what_are_no_notices(count: int) -> None:
    with pytest.raises(BadPayload):
        decode_notices(bytes(count))


def test_a_notice_of_another_kind_is_the_readers_to_pass_by() -> None:
    assert decode_notices(b"\x09" + bytes(20)) == [(9, 0, 0, 0)]
