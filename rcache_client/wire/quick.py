"""The few payloads that nearly all traffic is made of, written and read in one step each.

What it is: the same bytes as `grammar` makes of the same values, without a walk over its fields. `grammar` stays the one
definition: a reader here returns None for a payload that is not well formed, and `grammar` then says what is wrong with it.
`tests/wire/test_quick.py` holds both to the same bytes and values, and to refusing the same payloads.
Which thread runs it: any; everything here is constant.
What it owns: nothing.
What it must not know: frames, sockets, and what a value is for.

Invariants, which stand in for those of the countdown buffer:
1. A reader returns values only if the lengths it read add up to exactly the bytes that are there.
2. A length is at least 0, so the places of the entries only grow; if the last one ends with the payload, none of them
   reached beyond it, and no slice was cut short.
3. No string is longer than `grammar` allows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from struct import Struct, error

from rcache_client.wire.opcodes import MANY_KEYS_MAX, VALUE_BYTES_CEILING

_pack_key = Struct(">H").pack
_pack_store = Struct(">IQHI").pack

_ITEM = Struct(">IQI")
_ITEM_BYTES = _ITEM.size
_unpack_item = _ITEM.unpack_from

_ITEM_AND_TIME_LEFT = Struct(">IQQI")
_ITEM_AND_TIME_LEFT_BYTES = _ITEM_AND_TIME_LEFT.size
_unpack_item_and_time_left = _ITEM_AND_TIME_LEFT.unpack_from

_VERSION = Struct(">Q")
_VERSION_BYTES = _VERSION.size
_unpack_version = _VERSION.unpack

_COUNT = Struct(">H")
_COUNT_BYTES = _COUNT.size

_ENTRY = Struct(">BI8xI")
"""What stands before the value of an item entry: status, user flags, version (which nobody asks for here), length."""
_ENTRY_BYTES = _ENTRY.size
_unpack_entry = _ENTRY.unpack_from

_CHANGE = Struct(">BQ")

_NOT_VERSION = (0, 1, 2, 3, 4, 13, 14, 15, 16)
"""Which of those bytes are the same in all entries that are OK, unmarked and of one length."""

_KEPT = 8
"""Layouts of `_values_alike`. A program asks for few numbers of keys at once; one for 65,535 keys takes 2 MB, for 100 3 KB."""

_NO_ASCII = "\x80"

_PREFIXES = (_NO_ASCII, *("\0" + chr(length) for length in range(1, 128)))
"""A key's length as two characters of ASCII, for those lengths that are; for a key that is empty none is right."""


@dataclass(slots=True)
class Items:
    """The entries of a GET_MANY's reply as columns, which have one length."""

    statuses: Sequence[int]
    flags: Sequence[int]
    values: Sequence[bytes]

    def __len__(self) -> int:
        return len(self.values)


def encode_key(key: bytes) -> bytes:
    """As `grammar.KEY_ONLY.encode`."""
    return _pack_key(len(key)) + key


def encode_store(flags: int, ttl_ms: int, key: bytes, value: bytes) -> bytes:
    """As `grammar.STORE.encode`."""
    return _pack_store(flags, ttl_ms, len(key), len(value)) + key + value


def encode_plain_keys(keys: Sequence[object]) -> bytes | None:
    """As `grammar.encode_keys`; None for too many, and where one is not plain: a `str` of 1 to 127 characters of ASCII."""
    if len(keys) > MANY_KEYS_MAX or set(map(type, keys)) != {str}:
        return None  # what else can be joined with a str may have other bytes as a key: an Enum of texts, for one
    texts: Sequence[str] = keys  # type: ignore[assignment]
    text = _encode_alike(texts) or _encode_one_by_one(texts)
    return _COUNT.pack(len(keys)) + text.encode("ascii") if text.isascii() else None


def decode_item(payload: bytes) -> tuple[int, int, bytes] | None:
    """As `grammar.ITEM.decode`: (flags, version, value)."""
    if len(payload) < _ITEM_BYTES:
        return None
    flags, version, length = _unpack_item(payload)
    if length != len(payload) - _ITEM_BYTES or length > VALUE_BYTES_CEILING:  # invariants 1 and 3
        return None
    return flags, version, payload[_ITEM_BYTES:]


def decode_item_and_time_left(payload: bytes) -> tuple[int, int, int, bytes] | None:
    """As `grammar.ITEM_AND_TIME_LEFT.decode`: (flags, version, time left in ms, value)."""
    if len(payload) < _ITEM_AND_TIME_LEFT_BYTES:
        return None
    flags, version, left_ms, length = _unpack_item_and_time_left(payload)
    if length != len(payload) - _ITEM_AND_TIME_LEFT_BYTES or length > VALUE_BYTES_CEILING:  # invariants 1 and 3
        return None
    return flags, version, left_ms, payload[_ITEM_AND_TIME_LEFT_BYTES:]


def decode_version(payload: bytes) -> tuple[int] | None:
    """As `grammar.VERSION_REPLY.decode`."""
    return _unpack_version(payload) if len(payload) == _VERSION_BYTES else None


def decode_items(payload: bytes) -> Items | None:
    """As `grammar` reads a GET_MANY's reply, but as columns, and without the versions."""
    if len(payload) < _COUNT_BYTES:
        return None
    (count,) = _COUNT.unpack_from(payload)
    alike = _decode_alike(payload, count)
    return _decode_one_by_one(payload, count) if alike is None else alike


def decode_changes(payload: bytes) -> list[tuple[int, int]] | None:
    """As `grammar` reads the reply to a SET_MANY or DELETE_MANY: (status, version) of each entry."""
    if len(payload) < _COUNT_BYTES:
        return None
    (count,) = _COUNT.unpack_from(payload)
    if len(payload) != _COUNT_BYTES + count * _CHANGE.size:  # invariant 1
        return None
    return list(_CHANGE.iter_unpack(memoryview(payload)[_COUNT_BYTES:]))


def _encode_alike(keys: Sequence[str]) -> str:
    """The keys with their lengths, if all are of the first one's length; "" where they are not.

    Each length brings one NUL. If there are no others, and one stands wherever a key of that length would put it, then every
    length stands where the one before it says.
    """
    length = len(keys[0])
    if length >= len(_PREFIXES) or length != len(keys[-1]):
        return ""
    prefix = _PREFIXES[length]
    text = prefix + prefix.join(keys)
    pattern = len(prefix) + length
    nuls = "\0" * len(keys)
    return text if len(text) == len(keys) * pattern and text[::pattern] == nuls and text.count("\0") == len(keys) else ""


def _encode_one_by_one(keys: Sequence[str]) -> str:
    """The keys with their lengths; no ASCII where one is empty or longer than ASCII can say."""
    try:
        return "".join([_PREFIXES[len(key)] + key for key in keys])
    except IndexError:
        return _NO_ASCII


def _decode_alike(payload: bytes, count: int) -> Items | None:
    """The entries if all are OK, unmarked, and of the first one's length; None where they are not.

    Then the payload is one pattern, repeated. The lengths, read where the pattern has them, prove it: the first entry is where
    it must be, and each entry of that length puts the next one where the pattern has it.
    """
    if len(payload) < _COUNT_BYTES + _ENTRY_BYTES:
        return None
    _, _, length = _unpack_entry(payload, _COUNT_BYTES)
    pattern = _ENTRY_BYTES + length
    if len(payload) != _COUNT_BYTES + count * pattern or length > VALUE_BYTES_CEILING:  # invariants 1 and 3
        return None
    plain = _ENTRY.pack(0, 0, length)
    for place in _NOT_VERSION:
        if payload[_COUNT_BYTES + place :: pattern].count(plain[place]) != count:
            return None
    values = _values_alike(length, count).unpack_from(payload, _COUNT_BYTES)
    return Items(bytes(count), bytes(count), values)


@lru_cache(_KEPT)
def _values_alike(length: int, count: int) -> Struct:
    """The values of so many entries, all of this length."""
    return Struct(f"{_ENTRY_BYTES}x{length}s" * count)


def _decode_one_by_one(payload: bytes, count: int) -> Items | None:
    statuses, flags, values = [], [], []
    at = _COUNT_BYTES
    try:
        for _ in range(count):
            status, marks, length = _unpack_entry(payload, at)
            at += _ENTRY_BYTES
            end = at + length
            statuses.append(status)
            flags.append(marks)
            values.append(payload[at:end])
            at = end
    except error:
        return None
    if at != len(payload):  # invariants 1 and 2
        return None
    if at > VALUE_BYTES_CEILING and max(map(len, values)) > VALUE_BYTES_CEILING:  # invariant 3
        return None
    return Items(statuses, flags, values)
