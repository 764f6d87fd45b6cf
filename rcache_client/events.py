"""Events: what a subscriber is told of a change, read from the records of a feed.

What it is: `Event`, and the reading of records (`docs/records.md`) as they come in an answer to EVENTS.
Which thread runs it: any; everything here is constant. What it owns: nothing.
What it must not know: how events get here.

What comes from outside is bounded, and whatever is not as it should be is a `BadPayload`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from struct import Struct

from rcache_client.wire.feeds import Notice
from rcache_client.wire.grammar import BadPayload

_HEADER = Struct(">IBBHIIQQQ")
_COUNTER_BITS = 40
_OPEN, _SET, _REMOVE, _FLUSH = 1, 2, 3, 4
_KEYED = (_SET, _REMOVE)


class Operation(StrEnum):
    """What became of a key, or of a bucket."""

    SET = "set"
    """It has a new value; `cause` says by which kind of request."""
    DELETED = "deleted"
    EXPIRED = "expired"
    EVICTED = "evicted"
    """For want of memory."""
    FLUSHED = "flushed"
    """All keys of the bucket are gone."""
    OPENED = "opened"
    """The bucket has a new primary, or goes on in a new epoch. Nothing is changed by it."""
    GAP = "gap"
    """Changes of the bucket were made that are not told: whatever is known of its keys may be old."""


_CAUSES = {1: "set", 2: "touched", 3: "counted", 4: "extended", 5: "restored"}
_REMOVALS = {16: Operation.DELETED, 17: Operation.EXPIRED, 18: Operation.EVICTED}


@dataclass(frozen=True, slots=True)
class Event:
    """One change.

    `key` is b"" where it is the whole bucket's; `value` None where there is none, or it was not asked for. `sequence`: the
    place in the bucket's history, and the item's version from then on; times in ms since 1970, `expires_at_ms` 0: never. Of a
    GAP `after` and `sequence` say between which places changes are missing.
    """

    operation: Operation
    bucket: int
    sequence: int
    key: bytes = b""
    value: bytes | None = None
    flags: int = 0
    time_ms: int = 0
    expires_at_ms: int = 0
    cause: str = ""
    after: int = 0

    @property
    def version(self) -> int:
        """What `get_with_version` says, and `cas` takes, of the item that a SET left."""
        return self.sequence

    @property
    def epoch(self) -> int:
        """The view in which the bucket's primary of then became that."""
        return self.sequence >> _COUNTER_BITS


def gap_of(notice: Notice) -> Event:
    return Event(Operation.GAP, notice.bucket, notice.upto, after=notice.after)


def read_records(body: bytes, *, values: bool) -> Iterator[Event]:
    """The events that an answer's records are. Raises `BadPayload`."""
    at, end = 0, len(body)
    while at < end:
        if end - at < _HEADER.size:
            raise BadPayload(f"a record of {end - at} bytes")
        length, kind, cause, key_bytes, bucket, flags, sequence, time_ms, expires_at_ms = _HEADER.unpack_from(body, at)
        key_at = at + _HEADER.size
        if not _HEADER.size + key_bytes <= length <= end - at or (key_bytes > 0) is not (kind in _KEYED):
            raise BadPayload(f"a record of {length} bytes with a key of {key_bytes}, of kind {kind}")
        key = body[key_at : key_at + key_bytes]
        value = body[key_at + key_bytes : at + length] if values and kind == _SET else None
        at += length
        operation = _operation(kind, cause)
        if operation is not None:
            told = _CAUSES.get(cause, "") if operation is Operation.SET else ""
            yield Event(operation, bucket, sequence, key, value, flags, time_ms, expires_at_ms, told)


def _operation(kind: int, cause: int) -> Operation | None:
    """None: of a kind that this version does not know, which is passed by."""
    if kind == _REMOVE:
        return _REMOVALS.get(cause, Operation.DELETED)
    return {_OPEN: Operation.OPENED, _SET: Operation.SET, _FLUSH: Operation.FLUSHED}.get(kind)
