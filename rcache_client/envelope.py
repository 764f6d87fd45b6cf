"""The envelope: how `get_or_compute` keeps a value, and the right to compute one, in an item.

What it is: the format, packed and unpacked. An item whose user flags are COMPUTED_FLAGS holds, big-endian:

    u8   format, 1
    u8   kind
    VALUE and NOTHING: u32 user flags of the serializer, u64 stored at (ms since 1970, the writer's clock), u64 ttl (ms,
         0: for ever), u64 stale (ms), u64 how long computing took (us); then the value's bytes, none for NOTHING
    HELD: 16 bytes, the token of the caller that computes
    FREE: nothing

- VALUE: fresh for `ttl`, then served for `stale` more while one caller computes it anew. The server's expiry is their sum.
- NOTHING: as VALUE, of a computation that returned None.
- HELD: nobody has a value yet, and one caller computes it. The server's expiry ends its right to.
- FREE: that caller gave up; whoever comes may take it.

Which thread runs it: the caller's. What it owns: nothing. What it must not know: serializers, clocks, the cluster.

To change the format: raise FORMAT and read both for one release at least before the new one is written. A reader refuses a
format that it does not know.
"""

from __future__ import annotations

from enum import IntEnum
from struct import Struct
from typing import NamedTuple

from rcache_client.errors import WrongFormat

COMPUTED_FLAGS = 0x72_73_00_10
"""'rs', as all marks of this package; beside those of the serializers."""

FORMAT = 1

TOKEN_BYTES = 16
"""Random: no two callers ever have the same."""

_HEAD = Struct(">BB")
_ABOUT = Struct(">IQQQQ")


class Kind(IntEnum):
    """What an item of `get_or_compute` is."""

    VALUE = 1
    NOTHING = 2
    HELD = 3
    FREE = 4


class Envelope(NamedTuple):
    """What such an item holds; what its kind does not have is 0 or empty."""

    kind: Kind
    flags: int = 0
    data: bytes = b""
    stored_at_ms: int = 0
    ttl_ms: int = 0
    stale_ms: int = 0
    took_us: int = 0
    token: bytes = b""

    @property
    def is_result(self) -> bool:
        """Whether it is what a computation came to."""
        return self.kind <= Kind.NOTHING


def pack(envelope: Envelope) -> bytes:
    """The item's bytes."""
    head = _HEAD.pack(FORMAT, envelope.kind)
    if envelope.is_result:
        about = envelope.flags, envelope.stored_at_ms, envelope.ttl_ms, envelope.stale_ms, envelope.took_us
        return head + _ABOUT.pack(*about) + envelope.data
    return head + envelope.token


def unpack(item: bytes) -> Envelope:
    """The envelope that these bytes are. Raises `WrongFormat`."""
    if len(item) < _HEAD.size:
        raise WrongFormat(f"it is marked as computed, and has {len(item)} bytes")
    number, kind = _HEAD.unpack_from(item)
    if number != FORMAT:
        raise WrongFormat(f"it was computed by another version of this client: format {number}, not {FORMAT}")
    rest = item[_HEAD.size :]
    if kind in (Kind.VALUE, Kind.NOTHING) and len(rest) >= _ABOUT.size:
        flags, stored_at_ms, ttl_ms, stale_ms, took_us = _ABOUT.unpack_from(rest)
        data = rest[_ABOUT.size :]
        if kind == Kind.VALUE or not data:
            return Envelope(Kind(kind), flags, data, stored_at_ms, ttl_ms, stale_ms, took_us)
    elif kind == Kind.HELD and len(rest) == TOKEN_BYTES:
        return Envelope(Kind.HELD, token=rest)
    elif kind == Kind.FREE and not rest:
        return Envelope(Kind.FREE)
    raise WrongFormat(f"it is marked as computed, and is not: kind {kind}, {len(rest)} bytes")


def open_envelope(data: bytes, flags: int) -> Envelope:
    """What any item is to `get_or_compute`: one that a plain write left is a value that is fresh as long as it is there."""
    return unpack(data) if flags == COMPUTED_FLAGS else Envelope(Kind.VALUE, flags, data)
