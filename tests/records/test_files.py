"""File headers and blocks: what is encoded comes back, and what is not whole, or of another file, is told apart."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rcache.records.files import (
    BLOCK_HEADER_BYTES,
    HEADER_BYTES_MAX,
    BadFile,
    CutHeader,
    FileHeader,
    FileKind,
    block_is_whole,
    decode_block_head,
    decode_header,
    encode_block,
    encode_end,
    encode_header,
)
from rcache_client.wire.opcodes import NODE_NAME_BYTES_MAX

from .making import header_of

ids = st.binary(min_size=16, max_size=16)
u32 = st.integers(0, 2**32 - 1)
u64 = st.integers(0, 2**64 - 1)
names = st.text(max_size=NODE_NAME_BYTES_MAX // 4)
headers = st.builds(
    FileHeader, st.sampled_from(FileKind), ids, ids, ids, names, u64, u32, u64, u32, u64, first_segment=u64, predecessor=ids
)


@given(headers, st.binary(max_size=50))
def test_a_header_comes_back_with_its_length(header: FileHeader, follows: bytes) -> None:
    encoded = encode_header(header)
    assert decode_header(encoded + follows) == (header, len(encoded))
    assert len(encoded) <= HEADER_BYTES_MAX


@given(headers)
def test_a_header_cut_anywhere_is_a_cut_header(header: FileHeader) -> None:
    encoded = encode_header(header)
    for length in range(len(encoded)):
        with pytest.raises(CutHeader):
            decode_header(encoded[:length])


def test_a_bit_flipped_anywhere_in_a_header_is_damage_and_never_taken_for_a_cut() -> None:
    whole = encode_header(header_of(7, epoch=3, first_segment=2)) + b"rBLK and all that follows in a file that is long enough"
    for at in range(len(encode_header(header_of(7)))):
        for bit in range(8):
            with pytest.raises(BadFile) as caught:
                decode_header(_flipped(whole, at, bit))
            assert not isinstance(caught.value, CutHeader), (at, bit)


def _flipped(data: bytes, at: int, bit: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]


@pytest.mark.parametrize("data", [b"#!/bin/sh\n", b"RCACHE\n\n" + bytes(200), b"\x00" * 300, b"RCACHE\r\n" + bytes(300)])
def test_what_is_no_header_is_not_taken_for_one(data: bytes) -> None:
    with pytest.raises(BadFile) as caught:
        decode_header(data)
    assert not isinstance(caught.value, CutHeader)


def test_a_name_that_is_no_text_is_refused() -> None:
    good = encode_header(header_of(1))
    assert b"n1" in good
    with pytest.raises(BadFile):
        decode_header(good.replace(b"n1", b"\xff\xfe"))


@given(ids, st.integers(0, 2**64 - 1), st.binary(max_size=300), st.integers(0, 2**32 - 1))
def test_a_block_is_whole_in_its_own_file_only(file_id: bytes, number: int, body: bytes, records: int) -> None:
    block = encode_block(file_id, number, body, records, 7)
    head = decode_block_head(block)
    assert head is not None
    assert (head.end, head.body_bytes, head.records, head.number) == (False, len(body), records, number)
    front, back = block[:BLOCK_HEADER_BYTES], block[BLOCK_HEADER_BYTES:]
    assert back == body
    assert block_is_whole(file_id, front, head, back)
    assert not block_is_whole(bytes(15) + bytes([file_id[15] ^ 1]), front, head, back)
    assert not block_is_whole(file_id, front, head, back + b"x")


def test_a_bit_flipped_anywhere_in_a_block_shows() -> None:
    file_id = bytes(16)
    block = encode_block(file_id, 3, b"the body of a block", 1, 7)
    for at in range(len(block)):
        for bit in range(8):
            wrong = _flipped(block, at, bit)
            head = decode_block_head(wrong)
            assert head is None or not block_is_whole(file_id, wrong[:BLOCK_HEADER_BYTES], head, wrong[BLOCK_HEADER_BYTES:])


def test_an_end_block_is_a_header_alone() -> None:
    end = encode_end(bytes(16), 9, 7)
    head = decode_block_head(end)
    assert len(end) == BLOCK_HEADER_BYTES
    assert head is not None
    assert (head.end, head.body_bytes, head.records, head.number) == (True, 0, 0, 9)
    assert block_is_whole(bytes(16), end, head, b"")


def test_less_than_a_block_header_is_none() -> None:
    assert decode_block_head(encode_end(bytes(16), 0, 7)[:-1]) is None


def test_two_headers_that_differ_encode_differently() -> None:
    header = header_of(1)
    assert encode_header(header) != encode_header(replace(header, first_segment=1))
