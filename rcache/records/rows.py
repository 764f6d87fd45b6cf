"""What is rebuilt of a bucket: the newest state of each of its keys, and how that leaves again.

What it is: `RebuiltBucket`, the contract of the rows in it, and their readable body, a dictionary. The compiled body is
`_rows.MappedRows`, which holds where the rows lie in their files rather than the rows.
Which thread runs it: the caller's, one at a time. What it owns: the rows.
What it must not know: files, plans, where a row will go.

Invariants:
1. The newest sequence of a key wins, whatever order the records come in (removals are remembered), so several logs of one
   bucket merge by dropping what they share.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from rcache.records.record import Cause, ImportEnd, Kind, Record, encode, encode_import_end


class Row(NamedTuple):
    """The newest state of a key. `value` None: removed."""

    version: int
    flags: int
    expires_at_ms: int
    value: bytes | None


class Rows(Protocol):
    """The rows of one bucket, in the order in which their keys first came. Both bodies give the same, byte for byte.

    The compiled one reads files again, and raises `DataDamaged` where a file was changed since it was walked."""

    def __len__(self) -> int:
        """How many keys are known, removed ones among them."""
        ...

    @property
    def live_count(self) -> int:
        """How many keys have a value."""
        ...

    def live(self) -> Iterator[tuple[bytes, Row]]:
        """The keys that have a value."""
        ...

    def pieces(self, before: bytes, after: bytes, time_ms: int, piece_bytes: int) -> Iterator[bytes]:
        """`before`, a ROW record for each key that has a value, `after`: in pieces that end with the record that brings them
        to `piece_bytes`. The records are of `time_ms`."""
        ...

    def clear(self) -> None:
        """Let go of all rows."""
        ...


@dataclass(slots=True)
class DictRows:
    """The readable body. Rows at or before `flushed` are gone."""

    bucket: int
    flushed: int = 0
    rows: dict[bytes, Row] = field(default_factory=dict)

    def put(self, key: bytes, row: Row) -> None:
        """Take in a row or a removal if it is newer than what is held (invariant 1)."""
        held = self.rows.get(key)
        if row.version > self.flushed and (held is None or row.version > held.version):
            self.rows[key] = row

    def flush(self, sequence: int) -> None:
        """A FLUSH at `sequence`: everything before it is gone."""
        self.flushed = max(self.flushed, sequence)
        self.rows = {key: row for key, row in self.rows.items() if row.version > self.flushed}

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def live_count(self) -> int:
        return sum(row.value is not None for row in self.rows.values())

    def live(self) -> Iterator[tuple[bytes, Row]]:
        return ((key, row) for key, row in self.rows.items() if row.value is not None)

    def pieces(self, before: bytes, after: bytes, time_ms: int, piece_bytes: int) -> Iterator[bytes]:
        return _cut(itertools.chain((before,), self._encode(time_ms), (after,)), piece_bytes)

    def _encode(self, time_ms: int) -> Iterator[bytes]:
        for key, row in self.live():
            assert row.value is not None
            place = (self.bucket, row.flags, row.version, time_ms, row.expires_at_ms)
            yield encode(Record(Kind.ROW, Cause.NONE, *place, key, row.value))

    def clear(self) -> None:
        self.rows.clear()


def _cut(records: Iterable[bytes], piece_bytes: int) -> Iterator[bytes]:
    piece: list[bytes] = []
    size = 0
    for record in records:
        piece.append(record)
        size += len(record)
        if size >= piece_bytes:
            yield b"".join(piece)
            piece, size = [], 0
    if piece:
        yield b"".join(piece)


@dataclass(slots=True)
class RebuiltBucket:
    """One bucket as of `sequence`, and the time of that."""

    bucket: int
    rows: Rows
    sequence: int = 0
    time_ms: int = 0

    @property
    def items(self) -> int:
        """How many keys have a value."""
        return self.rows.live_count

    def live_rows(self) -> Iterator[tuple[bytes, Row]]:
        """The keys that have a value, with that."""
        return self.rows.live()

    def pieces(self, piece_bytes: int) -> Iterator[bytes]:
        """The bucket as an import (IMPORT_BEGIN, a ROW each, IMPORT_END), in pieces of about `piece_bytes`: whole records."""
        end = encode_import_end(ImportEnd(self.sequence, self.items))
        return self.rows.pieces(self._mark(Kind.IMPORT_BEGIN), self._mark(Kind.IMPORT_END, end), self.time_ms, piece_bytes)

    def records(self) -> Iterator[bytes]:
        """The same, record by record."""
        return self.pieces(1)

    def _mark(self, kind: Kind, value: bytes = b"") -> bytes:
        """A record about the bucket's copy rather than about a key."""
        return encode(Record(kind, Cause.NONE, self.bucket, 0, self.sequence, self.time_ms, 0, b"", value))
