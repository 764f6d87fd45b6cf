"""Records for people and for programs: one line each.

What it is: the command `print`, and how a record is shown.
Which thread runs it: the main thread.
What it owns: the file being read. What it must not know: how buckets are rebuilt.

`print` shows what is in the files, in the order of the files, and reads each only once.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from zlib import crc32

from rcache.commands.replay_files import FoundFiles
from rcache.commands.replay_options import ReplayOptions
from rcache.commands.replay_times import show_time
from rcache.commands.show import show_bytes
from rcache.records.files import FileHeader
from rcache.records.reader import Findings, RecordFile
from rcache.records.record import (
    BadRecord,
    Cause,
    Head,
    Kind,
    Record,
    counter_of,
    decode,
    decode_import_end,
    decode_opening,
    epoch_of,
    heads,
    show_sequence,
)

VALUE_SHOWN_MAX = 64
"""Bytes of a value in a line for people; JSON has all of it."""


class Shown(NamedTuple):
    """A record and where it was found."""

    record: Record
    node: str
    file: str


@dataclass(slots=True)
class Listing:
    """The records that `print` shows. `findings` fills up as they are read."""

    found: FoundFiles
    options: ReplayOptions
    findings: list[tuple[str, Findings]] = field(default_factory=list)

    def records(self) -> Iterator[Shown]:
        """Every record that the options let through. Raises `DataDamaged` unless damage is skipped."""
        for source in self.found.sources():
            for path in source.paths:
                with RecordFile(path) as file:
                    wanted = _Filter(self.options, file.header)
                    for block in file.blocks(skip_damaged=self.options.skip_damaged):
                        for record in wanted.pick(block.body):
                            yield Shown(record, file.header.node, str(path))
                    self.findings.append((str(path), file.findings))


class _Filter:
    """Picks records by key, bucket and time; decodes only what it must."""

    def __init__(self, options: ReplayOptions, header: FileHeader) -> None:
        self._key = options.key
        self._bucket = options.bucket if options.key is None else bucket_of(options.key, header)
        self._none = self._bucket is not None and options.bucket not in (None, self._bucket)
        self._since, self._until = options.since, options.until

    def pick(self, body: bytes) -> Iterator[Record]:
        for head in heads(body):
            if self._takes(head):
                record = decode(body, head.start, head.end)
                if self._key is None or record.key == self._key:
                    yield record

    def _takes(self, head: Head) -> bool:
        if self._none or (self._bucket is not None and head.bucket != self._bucket):
            return False
        return self._since <= head.time_ms <= self._until


def bucket_of(key: bytes, header: FileHeader) -> int:
    """The bucket of a key in the cluster that a file is of: CRC-32, masked."""
    return crc32(key) & (header.buckets - 1)


def show_record(shown: Shown, options: ReplayOptions) -> str:
    """One line, without its end: for people, or JSON."""
    if options.json:
        return json.dumps({**record_fields(shown.record, options), "node": shown.node})
    return "  ".join(record_words(shown.record, shown.node, options))


def record_words(record: Record, node: str, options: ReplayOptions) -> Iterable[str]:
    """What a line for people says of a record. `node`: what it says of a node."""
    yield show_time(record.time_ms)
    yield node
    yield f"bucket {record.bucket}"
    yield show_sequence(record.sequence)
    yield kind_name(record.kind) + (f" ({cause_name(record.cause).lower()})" if record.cause else "")
    if record.key:
        yield show_bytes(record.key)
    if record.kind in (Kind.SET, Kind.ROW):
        yield f"{len(record.value):,} bytes"
        if record.flags:
            yield f"flags {record.flags}"
        if record.expires_at_ms:
            yield f"expires {show_time(record.expires_at_ms)}"
        if options.values:
            more = "..." if len(record.value) > VALUE_SHOWN_MAX else ""
            yield show_bytes(record.value[:VALUE_SHOWN_MAX]) + more
    yield from (f"{name} {value}" for name, value in _details(record).items())


def record_fields(record: Record, options: ReplayOptions) -> dict[str, Any]:
    """What JSON says of a record."""
    fields: dict[str, Any] = {
        "kind": kind_name(record.kind),
        "cause": cause_name(record.cause),
        "time": show_time(record.time_ms),
        "time_ms": record.time_ms,
        "bucket": record.bucket,
        "sequence": record.sequence,
        "epoch": epoch_of(record.sequence),
        "counter": counter_of(record.sequence),
    }
    if record.key:
        fields.update(_bytes_as_json("key", record.key))
    if record.kind in (Kind.SET, Kind.ROW):
        fields |= {"value_bytes": len(record.value), "flags": record.flags, "expires_at_ms": record.expires_at_ms}
        if options.values:
            fields.update(_bytes_as_json("value", record.value))
    return fields | _details(record)


def _bytes_as_json(name: str, data: bytes) -> dict[str, str]:
    """As text where it is UTF-8, else in base 64 under a name that says so."""
    try:
        return {name: data.decode()}
    except UnicodeDecodeError:
        return {f"{name}_base64": b64encode(data).decode()}


def _details(record: Record) -> dict[str, Any]:
    """What the value of an OPEN or an IMPORT_END says."""
    try:
        if record.kind == Kind.OPEN:
            opening = decode_opening(record.value)
            continues_from = show_sequence(opening.continues_from)
            return {"primary": opening.node, "incarnation": opening.incarnation, "continues_from": continues_from}
        if record.kind == Kind.IMPORT_END:
            end = decode_import_end(record.value)
            return {"begin": show_sequence(end.begin), "rows": end.rows}
    except BadRecord as error:
        return {"unreadable": str(error)}
    return {}


def kind_name(kind: int) -> str:
    return Kind(kind).name if kind in Kind.__members__.values() else f"kind {kind}"


def cause_name(cause: int) -> str:
    return Cause(cause).name if cause in Cause.__members__.values() else f"cause {cause}"
