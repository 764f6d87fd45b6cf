"""The quick readers and writers: the same bytes and values as the grammar, and the same payloads refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from struct import pack
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from rcache_client.wire import quick
from rcache_client.wire.grammar import (
    ITEM,
    ITEM_AND_TIME_LEFT,
    ITEM_ENTRY,
    KEY_ONLY,
    STORE,
    VERSION_REPLY,
    BadPayload,
    Group,
    encode_keys,
    reply_layout,
)
from rcache_client.wire.opcodes import KEY_BYTES_MAX, TTL_MS_MAX, Opcode, Status

U32 = st.integers(0, 0xFFFF_FFFF)
U64 = st.integers(0, 0xFFFF_FFFF_FFFF_FFFF)
VALUES = st.binary(max_size=40)
ENTRIES = st.tuples(st.sampled_from([0, 0, 0, 1, 0x16]), st.sampled_from([0, 0, 7]), U64, VALUES)
ALIKE = st.tuples(st.integers(0, 20), st.lists(U64, min_size=1, max_size=12)).map(
    lambda pair: [(0, 0, version, bytes([version & 0xFF]) * pair[0]) for version in pair[1]]
)
"""Entries that are OK, unmarked, and of one length: what is read as one pattern."""

MANY_ITEMS = st.one_of(ALIKE, st.lists(ENTRIES, max_size=12)).map(lambda entries: Group("many", ITEM_ENTRY).encode(*entries))

Reader = Callable[[bytes], Any]


def rows(items: quick.Items | None) -> list[tuple[int, int, bytes]] | None:
    """The columns as the grammar has them, entry by entry, but for the versions."""
    if items is None:
        return None
    assert len(items) == len(items.statuses) == len(items.flags) == len(items.values)
    return list(zip(items.statuses, items.flags, items.values, strict=True))


def read_items(payload: bytes) -> list[tuple[int, int, bytes]] | None:
    return rows(quick.decode_items(payload))


def by_grammar(opcode: Opcode, payload: bytes) -> Any:
    """What the grammar reads; None where it refuses."""
    try:
        values = reply_layout(opcode, Status.OK).decode(payload)
    except BadPayload:
        return None
    return [(status, flags, data) for status, flags, _, data in values] if opcode == Opcode.GET_MANY else values


READERS: dict[Opcode, tuple[Reader, st.SearchStrategy[bytes]]] = {
    Opcode.GET: (quick.decode_item, st.builds(ITEM.encode, U32, U64, VALUES)),
    Opcode.GET_WITH_TTL: (quick.decode_item_and_time_left, st.builds(ITEM_AND_TIME_LEFT.encode, U32, U64, U64, VALUES)),
    Opcode.SET: (quick.decode_version, st.builds(VERSION_REPLY.encode, U64)),
    Opcode.GET_MANY: (read_items, MANY_ITEMS),
    Opcode.SET_MANY: (
        quick.decode_changes,
        st.lists(st.tuples(st.integers(0, 255), U64), max_size=9).map(
            lambda entries: reply_layout(Opcode.SET_MANY, Status.OK).encode(*entries)
        ),
    ),
}


@pytest.mark.parametrize("opcode", READERS, ids=lambda opcode: opcode.name)
@given(data=st.data())
def test_a_good_payload_is_read_as_the_grammar_reads_it(opcode: Opcode, data: st.DataObject) -> None:
    reader, payloads = READERS[opcode]
    payload = data.draw(payloads)
    assert reader(payload) == by_grammar(opcode, payload) is not None


@pytest.mark.parametrize("opcode", READERS, ids=lambda opcode: opcode.name)
@given(data=st.data())
def test_any_payload_is_read_or_refused_as_by_the_grammar(opcode: Opcode, data: st.DataObject) -> None:
    """Bytes changed, cut off, put in and put behind: lengths that lie among them."""
    reader, payloads = READERS[opcode]
    payload = bytearray(data.draw(payloads))
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(payload)))
        taken = data.draw(st.integers(0, 2))
        payload[place : place + taken] = data.draw(st.binary(max_size=2))
    assert reader(bytes(payload)) == by_grammar(opcode, bytes(payload))


@pytest.mark.parametrize("opcode", READERS, ids=lambda opcode: opcode.name)
def test_every_cut_is_refused(opcode: Opcode) -> None:
    reader, _ = READERS[opcode]
    payload = {
        Opcode.GET: ITEM.encode(1, 2, b"value"),
        Opcode.GET_WITH_TTL: ITEM_AND_TIME_LEFT.encode(1, 2, 3, b"value"),
        Opcode.SET: VERSION_REPLY.encode(3),
        Opcode.GET_MANY: Group("many", ITEM_ENTRY).encode((0, 0, 1, b"one"), (0, 0, 2, b"two")),
        Opcode.SET_MANY: reply_layout(Opcode.SET_MANY, Status.OK).encode((0, 1), (1, 0)),
    }[opcode]
    assert reader(payload) is not None
    for end in range(len(payload)):
        assert reader(payload[:end]) is None
    assert reader(payload + b"\0") is None


def items(*lengths: int, claimed: Sequence[int] | None = None) -> bytes:
    """A GET_MANY's reply with values of these lengths, which say they are of the claimed ones."""
    entries = [pack(">BIQI", 0, 0, 9, said) + b"v" * length for length, said in zip(lengths, claimed or lengths, strict=True)]
    return Group.join(entries)


@pytest.mark.parametrize(
    "payload",
    [
        items(5, 5, 5, claimed=(5, 4, 6)),
        items(5, 5, 5, claimed=(5, 6, 4)),
        items(5, 5, 5, claimed=(4, 5, 6)),
        items(5, 5, 5, claimed=(5, 5, 0x01_00_00_05)),
        items(5, 5, 5, claimed=(5, 0xFFFF_FFFF, 5)),
        items(5, 5, 5, claimed=(0xFFFF_FFFF, 5, 5)),
    ],
)
def test_one_length_of_many_that_lies_is_seen(payload: bytes) -> None:
    """Though all of them together have the length of a pattern."""
    assert quick.decode_items(payload) is None
    assert by_grammar(Opcode.GET_MANY, payload) is None


def test_entries_of_other_lengths_may_add_up_to_a_pattern() -> None:
    assert read_items(items(5, 4, 6)) == [(0, 0, b"v" * length) for length in (5, 4, 6)]


@pytest.mark.parametrize(("status", "flags"), [(1, 0), (0, 1), (0, 1 << 31), (0x16, 0)])
@pytest.mark.parametrize("place", range(3))
def test_one_entry_of_many_that_is_not_plain_is_seen(place: int, status: int, flags: int) -> None:
    entries = [(0, 0, n, b"value") for n in range(3)]
    entries[place] = (status, flags, 0, b"value")
    payload = Group("many", ITEM_ENTRY).encode(*entries)
    assert read_items(payload) == by_grammar(Opcode.GET_MANY, payload)


@pytest.mark.parametrize("lengths", [(11, 11), (11, 3)])
def test_a_value_above_the_ceiling_is_refused(lengths: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quick, "VALUE_BYTES_CEILING", 10)
    assert quick.decode_items(items(*lengths)) is None
    assert quick.decode_items(items(10, 3)) is not None
    assert quick.decode_item(ITEM.encode(0, 0, bytes(lengths[0]))) is None
    assert quick.decode_item(ITEM.encode(0, 0, bytes(10))) is not None
    assert quick.decode_item_and_time_left(ITEM_AND_TIME_LEFT.encode(0, 0, 0, bytes(lengths[0]))) is None
    assert quick.decode_item_and_time_left(ITEM_AND_TIME_LEFT.encode(0, 0, 0, bytes(10))) is not None


@given(key=st.binary(min_size=1, max_size=300), value=VALUES, flags=U32, ttl_ms=st.integers(0, TTL_MS_MAX))
def test_requests_are_written_as_by_the_grammar(key: bytes, value: bytes, flags: int, ttl_ms: int) -> None:
    assert quick.encode_key(key) == KEY_ONLY.encode(key)
    assert quick.encode_store(flags, ttl_ms, key, value) == STORE.encode(flags, ttl_ms, key, value)


def test_the_longest_key_is_written_as_by_the_grammar() -> None:
    assert quick.encode_key(bytes(KEY_BYTES_MAX)) == KEY_ONLY.encode(bytes(KEY_BYTES_MAX))


PLAIN = st.text(st.characters(max_codepoint=127), min_size=1, max_size=130).filter(lambda key: len(key) <= 127)
FEW_LETTERS = st.text("\0\1\2\3a", min_size=1, max_size=4)
"""Keys that look like the lengths before them."""


@given(st.one_of(st.lists(PLAIN, min_size=1, max_size=9), st.lists(FEW_LETTERS, min_size=1, max_size=9)))
def test_plain_keys_are_written_as_by_the_grammar(keys: list[str]) -> None:
    assert quick.encode_plain_keys(keys) == encode_keys([key.encode() for key in keys])


@pytest.mark.parametrize(
    "keys",
    [
        ["a\0\1b", "c"],  # of the length of two alike, and then there is a NUL where the third would begin
        ["ab", "a\0\2"],
        ["a", "\0\1b", "c", "\0"],
        ["\0\0", "\0\2", "\2\0"],
        ["abc", "d", "\0vwxy"],  # a NUL stands where the third would begin if they were alike
        ["ab", "c", "def"],  # three together as long as three alike
        ["x" * 127, "y" * 127],
    ],
)
def test_keys_that_look_like_lengths_are_written_as_by_the_grammar(keys: list[str]) -> None:
    assert quick.encode_plain_keys(keys) == encode_keys([key.encode() for key in keys])


class Colour(str, Enum):  # noqa: UP042 - the older kind is the odd one
    """As a key it is what `str` says of it, and that is not what joining it with a str gives."""

    RED = "red"


class Text(str):
    """As a key it may be anything."""

    __slots__ = ()


@pytest.mark.parametrize("odd", ["", "x" * 128, "ü", "\x80", b"bytes", Colour.RED, Text("text"), 1, None], ids=repr)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_keys_that_are_not_plain_are_left_to_others(odd: object, place: int) -> None:
    keys: list[object] = ["one", "two", "six"]
    keys[place] = odd
    assert quick.encode_plain_keys(keys) is None
    assert quick.encode_plain_keys([odd, odd]) is None


def test_no_keys_and_too_many_are_left_to_others() -> None:
    assert quick.encode_plain_keys([]) is None
    assert quick.encode_plain_keys(["a"] * 65_536) is None
    assert quick.encode_plain_keys(["a"] * 65_535) == encode_keys([b"a"] * 65_535)


@given(st.lists(st.one_of(PLAIN, st.text(max_size=5), st.text("\0\1a", max_size=3)), max_size=6))
def test_whatever_is_written_is_what_the_grammar_writes(keys: list[str]) -> None:
    payload = quick.encode_plain_keys(keys)
    assume(payload is not None)
    assert payload == encode_keys([key.encode() for key in keys])
