"""Records: one change of one bucket, encoded once and then passed around as the same bytes.

What it is: the layout of a record, its kinds, and the sequence that orders a bucket's history.
Which thread runs it: any. What it owns: nothing. What it must not know: blocks, files, the engine.

A record holds the result (the whole new value, or a removal and why), never the operation. It names its bucket, its sequence
and its time. Layout, big-endian, 40 bytes and then key and value:

    0 u32 length of the whole record    4 u8 kind    5 u8 cause    6 u16 key length
    8 u32 bucket    12 u32 user flags   16 u64 sequence   24 u64 time, ms   32 u64 expires at, ms (0: never)

Invariants:
1. A sequence is never used twice in a bucket, and orders its history over all its primaries: epoch above, counter below.
2. Times within a bucket never decrease along its chain.
3. An OPEN has counter 0; the changes after it count 1, 2, 3 ... without a hole, so that whoever reads a history can tell
   whether something is missing.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum
from struct import Struct
from typing import NamedTuple

from rcache_client.wire.countdown import Countdown, CountdownError
from rcache_client.wire.opcodes import KEY_BYTES_MAX, VALUE_BYTES_CEILING

HEADER = Struct(">IBBHIIQQQ")
HEADER_BYTES = HEADER.size
_STAMP = Struct(">QQ")
_STAMP_AT = 16
_LENGTH_BYTES = 4
_KEY_BYTES_AT = 6

RECORD_BYTES_MAX = HEADER_BYTES + KEY_BYTES_MAX + VALUE_BYTES_CEILING

COUNTER_BITS = 40
COUNTER_MAX = (1 << COUNTER_BITS) - 1
"""About 10^12 changes; a bucket that runs out of them is OPENed anew."""
EPOCH_MAX = (1 << (64 - COUNTER_BITS)) - 1

BORN_EMPTY = 0
"""What an OPEN names when the bucket continues from nothing."""


class BadRecord(ValueError):
    """Bytes that are not a record."""


class Kind(IntEnum):
    """What a record says."""

    OPEN = 1
    SET = 2
    REMOVE = 3
    FLUSH = 4
    ROW = 5
    IMPORT_BEGIN = 6
    IMPORT_END = 7
    DROP = 8


HISTORY_KINDS = frozenset({Kind.OPEN, Kind.SET, Kind.REMOVE, Kind.FLUSH})
"""The records that take a place in a bucket's history. The others say what one node's copy holds."""

_OPEN = int(Kind.OPEN)

_KEYED = tuple(kind in (Kind.SET, Kind.REMOVE, Kind.ROW) for kind in range(max(Kind) + 1))
"""For each kind, whether its records have a key; all others have none."""


class Cause(IntEnum):
    """Why: which kind of request or rule made the change. For people and subscribers; applying a record never looks at it."""

    NONE = 0
    SET = 1
    TOUCHED = 2
    COUNTED = 3
    EXTENDED = 4
    RESTORED = 5
    DELETED = 16
    EXPIRED = 17
    EVICTED = 18
    FLUSHED = 19


class Record(NamedTuple):
    """One record, decoded. Times in ms since 1970; `expires_at_ms` 0: never."""

    kind: int
    cause: int
    bucket: int
    flags: int
    sequence: int
    time_ms: int
    expires_at_ms: int
    key: bytes
    value: bytes


class Head(NamedTuple):
    """A record's fixed part and where the record lies in the bytes it was read from."""

    kind: int
    bucket: int
    sequence: int
    time_ms: int
    start: int
    end: int


class Opening(NamedTuple):
    """The value of an OPEN: the sequence it continues from (0: born empty), and the node that opened."""

    continues_from: int
    incarnation: int
    node: str


class ImportEnd(NamedTuple):
    """The value of an IMPORT_END: the sequence at which copying began, and how many rows were copied."""

    begin: int
    rows: int


_OPENING = Struct(">QQH")
_IMPORT_END = Struct(">QQ")


def make_sequence(epoch: int, counter: int) -> int:
    """The sequence of the `counter`-th change after the OPEN of `epoch`."""
    return epoch << COUNTER_BITS | counter


def epoch_of(sequence: int) -> int:
    return sequence >> COUNTER_BITS


def counter_of(sequence: int) -> int:
    return sequence & COUNTER_MAX


def show_sequence(sequence: int) -> str:
    """A sequence for people: EPOCH.COUNTER."""
    return f"{epoch_of(sequence)}.{counter_of(sequence)}"


def record_bytes(key_bytes: int, value_bytes: int) -> int:
    """The length of a record with a key and a value of these lengths."""
    return HEADER_BYTES + key_bytes + value_bytes


def draft(  # noqa: PLR0913  the fields of a record
    kind: int, bucket: int, key: bytes = b"", value: bytes = b"", *, cause: int = 0, flags: int = 0, expires_at_ms: int = 0
) -> bytearray:
    """A record without sequence and time; `stamp` completes it."""
    length = HEADER_BYTES + len(key) + len(value)
    record = bytearray(HEADER.pack(length, kind, cause, len(key), bucket, flags, 0, 0, expires_at_ms))
    record += key
    record += value
    return record


def stamp(record: bytearray, sequence: int, time_ms: int) -> None:
    """Give a draft its place in the bucket's history. Called under the stripe lock, so it is a store of 16 bytes."""
    _STAMP.pack_into(record, _STAMP_AT, sequence, time_ms)


def bucket_of(record: bytes) -> int:
    """The bucket that a whole record names."""
    bucket: int = HEADER.unpack_from(record)[4]
    return bucket


def encode(record: Record) -> bytes:
    """The bytes of a record."""
    made = draft(
        record.kind,
        record.bucket,
        record.key,
        record.value,
        cause=record.cause,
        flags=record.flags,
        expires_at_ms=record.expires_at_ms,
    )
    stamp(made, record.sequence, record.time_ms)
    return bytes(made)


def heads(body: bytes | memoryview) -> Iterator[Head]:
    """The fixed parts of the records that `body` is made of. Raises `BadRecord` where it does not come out even."""
    at, end, unpack, make = 0, len(body), HEADER.unpack_from, tuple.__new__  # a NamedTuple's own is a call of Python
    while at < end:
        if end - at < HEADER_BYTES:
            raise BadRecord(f"{end - at} bytes left at {at}, a record has at least {HEADER_BYTES}")
        length, kind, _, key_bytes, bucket, _, sequence, time_ms, _ = unpack(body, at)
        if not HEADER_BYTES + key_bytes <= length <= end - at:
            raise BadRecord(f"a record of {length} bytes with a key of {key_bytes} at {at}, {end - at} bytes left")
        if not 0 < kind < len(_KEYED) or (key_bytes > 0) is not _KEYED[kind]:
            raise BadRecord(f"a record of kind {kind} with a key of {key_bytes} bytes at {at}")
        yield make(Head, (kind, bucket, sequence, time_ms, at, at + length))
        at += length


def without_value(body: bytes, head: Head) -> bytes:
    """The record as those get it who did not ask for values; an OPEN keeps what it says."""
    start = head.start
    if head.kind == _OPEN:
        return body[start : head.end]
    length = HEADER_BYTES + (body[start + _KEY_BYTES_AT] << 8 | body[start + _KEY_BYTES_AT + 1])
    return length.to_bytes(_LENGTH_BYTES) + body[start + _LENGTH_BYTES : start + length]


def decode(body: bytes, start: int = 0, end: int | None = None) -> Record:
    """The record that `body[start:end]` is, no more and no less. Raises `BadRecord`."""
    countdown = Countdown(body, start, end)
    try:
        length, kind, cause, key_bytes, bucket, flags, sequence, time_ms, expires_at_ms = countdown.unpack(HEADER)
        key = countdown.take(key_bytes)
        value = countdown.take(length - HEADER_BYTES - key_bytes)
        countdown.finish()
    except CountdownError as error:
        raise BadRecord(f"record at {start}: {error}") from None
    if not 0 < kind < len(_KEYED) or bool(key) is not _KEYED[kind]:
        raise BadRecord(f"record at {start}: kind {kind} with a key of {key_bytes} bytes")
    return Record(kind, cause, bucket, flags, sequence, time_ms, expires_at_ms, key, value)


def scan(body: bytes) -> Iterator[Record]:
    """All records that `body` is made of. Raises `BadRecord`."""
    for head in heads(body):
        yield decode(body, head.start, head.end)


def encode_opening(opening: Opening) -> bytes:
    """The value of an OPEN record."""
    node = opening.node.encode()
    return _OPENING.pack(opening.continues_from, opening.incarnation, len(node)) + node


def decode_opening(value: bytes) -> Opening:
    """Read the value of an OPEN record. Raises `BadRecord`."""
    countdown = Countdown(value)
    try:
        continues_from, incarnation, node_bytes = countdown.unpack(_OPENING)
        node = countdown.take(node_bytes).decode()
        countdown.finish()
    except ValueError as error:
        raise BadRecord(f"OPEN: {error}") from None
    return Opening(continues_from, incarnation, node)


def encode_drop(bucket: int, time_ms: int) -> bytes:
    """The mark that a node has nothing of a bucket any more."""
    return encode(Record(Kind.DROP, Cause.NONE, bucket, 0, 0, time_ms, 0, b"", b""))


def encode_import_end(end: ImportEnd) -> bytes:
    """The value of an IMPORT_END record."""
    return _IMPORT_END.pack(end.begin, end.rows)


def decode_import_end(value: bytes) -> ImportEnd:
    """Read the value of an IMPORT_END record. Raises `BadRecord`."""
    countdown = Countdown(value)
    try:
        begin, rows = countdown.unpack(_IMPORT_END)
        countdown.finish()
    except CountdownError as error:
        raise BadRecord(f"IMPORT_END: {error}") from None
    return ImportEnd(begin, rows)
