"""What a feed says beside records: places in the histories of buckets, and what happened to them.

What it is: the inner layouts of SUBSCRIBE and EVENTS (`docs/protocol.md`): `places`, pairs of a bucket and a sequence, and
`notices`.
Which thread runs it: any; everything here is constant. What it owns: nothing. What it must not know: what is done about them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import IntEnum
from struct import Struct
from typing import NamedTuple

from rcache_client.wire.grammar import BadPayload

FROM_NOW = (1 << 64) - 1
"""In the place of a sequence: nothing of what is there already."""

UNPROVEN = 0xFFFF_FFFF
"""In the place of the milliseconds that an answer to EVENTS is behind: nothing is said of that."""

PLACES_MAX = 1 << 16
"""As many as a cluster can have buckets."""


class Selects(IntEnum):
    """Of which changes a subscriber is told."""

    EVERYTHING = 0
    KEY = 1
    PREFIX = 2


class NoticeKind(IntEnum):
    """What a notice says."""

    GAP = 1
    """Changes after the first sequence, up to the second, are not told here: they are held no more, or never were."""
    ENDED = 2
    """The bucket is not told of here any more; up to the second sequence all was."""
    PLACE = 3
    """Up to the second sequence all was told; nothing after the first was asked for."""


class Notice(NamedTuple):
    """Of one bucket. Sequences as in records; see the kinds."""

    kind: int
    bucket: int
    after: int
    upto: int


_PLACE = Struct(">IQ")
_NOTICE = Struct(">BIQQ")


def encode_places(places: Mapping[int, int]) -> bytes:
    """Buckets, and the sequence of each."""
    return b"".join(_PLACE.pack(bucket, sequence) for bucket, sequence in places.items())


def decode_places(body: bytes) -> dict[int, int]:
    """Raises `BadPayload`, also for a bucket that is named twice."""
    if len(body) % _PLACE.size or len(body) > PLACES_MAX * _PLACE.size:
        raise BadPayload(f"places of {len(body)} bytes, not up to {PLACES_MAX} of {_PLACE.size} each")
    places = dict(_PLACE.iter_unpack(body))
    if len(places) * _PLACE.size != len(body):
        raise BadPayload("a bucket has two places")
    return places


def encode_notices(notices: Iterable[Notice]) -> bytes:
    return b"".join(_NOTICE.pack(*notice) for notice in notices)


def decode_notices(body: bytes) -> list[Notice]:
    """Raises `BadPayload`. A kind that is not known here is the reader's to pass by."""
    if len(body) % _NOTICE.size:
        raise BadPayload(f"notices of {len(body)} bytes, not a number of {_NOTICE.size} each")
    return [Notice(*each) for each in _NOTICE.iter_unpack(body)]
