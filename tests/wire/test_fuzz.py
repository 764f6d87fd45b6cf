"""Bytes from nowhere: only `BadFrame` and `BadPayload` may come of them, and the cuts of the stream make no difference.

What it finds, once mended, gets a test of its own in `tests/regress/`, with the bytes that showed it.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rcache_client.wire.frames import (
    HEADER_BYTES,
    BadFrame,
    Reply,
    ReplyReader,
    Request,
    RequestReader,
    encode_reply,
    encode_request,
)
from rcache_client.wire.grammar import REQUESTS, BadPayload, decode_reply, reply_layout

from .conftest import FrameReader
from .layouts import LAYOUTS, encode, layout_values

FRAME_BYTES_MAX = 512


def outcome(reader: FrameReader, pieces: list[bytes]) -> list[Any]:
    """All that comes of these reads: frames, then the complaint if there is one, then how much is held."""
    found: list[Any] = []
    for piece in pieces:
        reader.feed(piece)
        try:
            while (frame := reader.next()) is not None:
                found.append(frame)
        except BadFrame as bad:
            return [*found, (bad.status, bad.reason, bad.request_id, bad.opcode)]
    return [*found, reader.held]


def cut(stream: bytes, cuts: list[int]) -> list[bytes]:
    """The stream in pieces, cut at these places (modulo its length)."""
    places = sorted({place % (len(stream) + 1) for place in cuts} | {0, len(stream)})
    return [stream[a:b] for a, b in pairwise(places)] or [b""]


U8, U32 = st.integers(0, 0xFF), st.integers(0, 0xFFFF_FFFF)
PAYLOADS = st.binary(max_size=30) | st.just(bytes(FRAME_BYTES_MAX - HEADER_BYTES)) | st.just(bytes(FRAME_BYTES_MAX))
REQUEST_FRAMES = st.builds(encode_request, U8, U32, U32, PAYLOADS)
REPLY_FRAMES = st.builds(encode_reply, U8, U8, U32, U32, PAYLOADS)
NOISE = st.binary(max_size=40) | st.binary(max_size=40).map(lambda tail: b"\xca\x01" + tail) | st.just(b"\xcb\x01")
STREAMS = st.lists(REQUEST_FRAMES | REPLY_FRAMES | NOISE, max_size=5).map(b"".join)
PURE_STREAMS = st.lists(REQUEST_FRAMES, max_size=5).map(b"".join) | st.lists(REPLY_FRAMES, max_size=5).map(b"".join)
CUTS = st.lists(st.integers(0, 2000), max_size=12)


@pytest.mark.parametrize("reader_type", [RequestReader, ReplyReader])
@given(stream=STREAMS | PURE_STREAMS | st.binary(max_size=200), cuts=CUTS)
@example(stream=b"", cuts=[])
def test_the_cuts_make_no_difference(reader_type: type[FrameReader], stream: bytes, cuts: list[int]) -> None:
    at_once = outcome(reader_type(FRAME_BYTES_MAX), [stream])
    assert outcome(reader_type(FRAME_BYTES_MAX), cut(stream, cuts)) == at_once
    assert outcome(reader_type(FRAME_BYTES_MAX), [bytes([byte]) for byte in stream] or [b""]) == at_once


@pytest.mark.parametrize("reader_type", [RequestReader, ReplyReader])
@given(stream=STREAMS | PURE_STREAMS, after=st.binary(max_size=64))
def test_a_frame_depends_on_nothing_behind_it(reader_type: type[FrameReader], stream: bytes, after: bytes) -> None:
    alone = outcome(reader_type(FRAME_BYTES_MAX), [stream])
    followed = outcome(reader_type(FRAME_BYTES_MAX), [stream + after])
    frames = [part for part in alone if isinstance(part, Request | Reply)]
    assert followed[: len(frames)] == frames
    if not isinstance(alone[-1], int):
        assert followed == alone, "a complaint is the same whatever comes behind it"


@pytest.mark.parametrize("reader_type", [RequestReader, ReplyReader])
@given(stream=PURE_STREAMS | STREAMS)
def test_what_was_handed_out_encodes_to_the_bytes_that_came(reader_type: type[FrameReader], stream: bytes) -> None:
    again = b""
    for part in outcome(reader_type(FRAME_BYTES_MAX), [stream]):
        if isinstance(part, Request):
            again += encode_request(*part)
        elif isinstance(part, Reply):
            again += encode_reply(*part)
    assert stream.startswith(again)


@pytest.mark.parametrize("name", LAYOUTS)
@given(payload=st.binary(max_size=120))
def test_random_payloads_are_refused_or_have_one_encoding(name: str, payload: bytes) -> None:
    layout = LAYOUTS[name]
    try:
        values = layout.decode(payload)
    except BadPayload:
        return
    assert encode(layout, values) == payload


@pytest.mark.parametrize("name", LAYOUTS)
@given(data=st.data())
def test_damaged_payloads_are_refused_or_have_one_encoding(name: str, data: st.DataObject) -> None:
    """Closer to the target than noise: a sound payload with some bytes changed, cut or put in."""
    layout = LAYOUTS[name]
    payload = bytearray(encode(layout, data.draw(layout_values(layout))))
    for at, byte, width in data.draw(st.lists(st.tuples(st.integers(0, 99), U8, st.integers(0, 2)), max_size=4)):
        place = at % (len(payload) + 1)
        payload[place : place + width] = bytes([byte])
    try:
        values = layout.decode(bytes(payload))
    except BadPayload:
        return
    assert encode(layout, values) == payload


@given(opcode=U8, status=U8, payload=st.binary(max_size=120))
def test_any_reply_at_all_is_refused_or_has_one_encoding(opcode: int, status: int, payload: bytes) -> None:
    try:
        values = decode_reply(opcode, status, payload)
    except BadPayload:
        return
    assert encode(reply_layout(opcode, status), values) == payload


@given(opcode=st.sampled_from(sorted(REQUESTS)), inside=st.binary(max_size=60), behind=st.binary(min_size=1, max_size=60))
def test_a_payload_knows_nothing_of_the_next_frame(opcode: int, inside: bytes, behind: bytes) -> None:
    """Through the frame reader: the same outcome, word for word, whatever lies behind."""

    def told(stream: bytes) -> Any:
        reader = RequestReader(FRAME_BYTES_MAX)
        reader.feed(stream)
        request = reader.next()
        assert request is not None
        try:
            return REQUESTS[request.opcode].decode(request.payload)
        except BadPayload as bad:
            return str(bad)

    frame = encode_request(opcode, 1, 0, inside)
    assert told(frame + behind) == told(frame)
