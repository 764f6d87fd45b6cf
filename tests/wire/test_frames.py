"""Frames that are well formed: each arrives whole, one byte at a time, and with the beginning of the next behind it."""

from __future__ import annotations

import pytest

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
from rcache_client.wire.opcodes import Opcode, Status

from .conftest import Arrive

FRAME_BYTES_MAX = 4096

REQUESTS = [
    Request(Opcode.PING, 1, 0, b""),
    Request(Opcode.GET, 7, 1500, b"\x00\x01k"),
    Request(0xFF, 0xFFFF_FFFF, 0xFFFF_FFFF, b"\xca\xcb" * 20),
    Request(Opcode.SET, 0, 5, bytes(FRAME_BYTES_MAX - HEADER_BYTES)),
]
REPLIES = [
    Reply(Opcode.PING, Status.OK, 1, 0, b""),
    Reply(Opcode.GET, Status.NOT_FOUND, 7, 3, b""),
    Reply(0, Status.BAD_MAGIC, 0, 1, b"\x00\x02no"),
    Reply(0xFF, 0xFF, 0xFFFF_FFFF, 0xFFFF_FFFF, b"\xca\xcb" * 20),
    Reply(Opcode.GET, Status.OK, 9, 1, bytes(FRAME_BYTES_MAX - HEADER_BYTES)),
]


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda r: f"opcode-{r.opcode}")
def test_a_request_arrives(arrive: Arrive, request_: Request) -> None:
    assert arrive(RequestReader(FRAME_BYTES_MAX), encode_request(*request_)) == request_


@pytest.mark.parametrize("reply", REPLIES, ids=lambda r: f"opcode-{r.opcode}-status-{r.status}")
def test_a_reply_arrives(arrive: Arrive, reply: Reply) -> None:
    assert arrive(ReplyReader(FRAME_BYTES_MAX), encode_reply(*reply)) == reply


def test_a_header_is_sixteen_bytes_in_the_order_of_the_document() -> None:
    assert encode_request(0x12, 0x01020304, 0x05060708, b"xyz").hex(" ") == (
        "ca 01 12 00 00 00 00 03 01 02 03 04 05 06 07 08 78 79 7a"
    )
    assert encode_reply(0x12, 0x50, 0x01020304, 0x05060708).hex(" ") == "cb 01 12 50 00 00 00 00 01 02 03 04 05 06 07 08"


def test_nothing_held_is_not_the_middle_of_a_frame() -> None:
    reader = RequestReader(FRAME_BYTES_MAX)
    assert reader.next() is None
    assert not reader.mid_frame
    reader.feed(b"")
    assert reader.next() is None
    reader.feed(b"\xca")
    assert reader.mid_frame


def test_pipelined_requests_come_out_in_order_and_the_rest_is_kept() -> None:
    reader = RequestReader(FRAME_BYTES_MAX)
    frames = b"".join(encode_request(*r) for r in REQUESTS)
    reader.feed(frames + frames[:20])
    assert [reader.next() for _ in REQUESTS] == REQUESTS
    assert reader.next() == REQUESTS[0]
    assert reader.next() is None
    assert reader.held == 4
    reader.feed(frames[20:])
    assert [reader.next() for _ in REQUESTS[1:]] == REQUESTS[1:]
    assert reader.next() is None
    assert not reader.mid_frame


@pytest.mark.parametrize("cut", [1, HEADER_BYTES - 1, HEADER_BYTES, HEADER_BYTES + 1, HEADER_BYTES + 2])
def test_a_frame_in_two_reads(cut: int) -> None:
    reader = RequestReader(FRAME_BYTES_MAX)
    frame = encode_request(*REQUESTS[1])
    reader.feed(frame[:cut])
    assert reader.next() is None
    assert reader.next() is None, "asking again takes nothing"
    assert reader.held == cut
    reader.feed(frame[cut:])
    assert reader.next() == REQUESTS[1]


def test_a_frame_of_exactly_the_limit_is_taken_and_one_byte_more_is_not() -> None:
    exact = encode_request(Opcode.SET, 1, 0, bytes(84))
    reader = RequestReader(100)
    reader.feed(exact)
    assert reader.next() is not None
    reader = RequestReader(99)
    reader.feed(exact)
    with pytest.raises(BadFrame):
        reader.next()
