"""Rebuilding buckets from files: the two walks over a set of sources, and the rows that come out.

What it is: `survey` reads record heads and makes a plan; `rebuild` reads again, keeps what the plan calls live, and holds the
newest state of every key. A source is an ordered list of files: one checkpoint, one savefile, or all segments of one node.
Which thread runs it: the caller's. What it owns: the rows, in memory.
What it must not know: the engine, where a row will go.

Invariants:
1. The newest sequence of a key wins, whatever order the records come in (removals are remembered), so several logs of one
   bucket merge by dropping what they share.
2. What is rebuilt of a bucket is the state at one sequence of its chain: `RebuiltBucket.sequence`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from rcache.records.history import NO_LIMIT, Base, BucketPlan, History
from rcache.records.reader import DataDamaged, Findings, RecordFile, Tail
from rcache.records.record import (
    HISTORY_KINDS,
    BadRecord,
    Cause,
    Head,
    ImportEnd,
    Kind,
    Record,
    decode,
    encode,
    encode_import_end,
    heads,
)

Progress = Callable[[int, int], None]
"""Called with (bytes read so far, bytes in all)."""


def no_progress(done: int, total: int) -> None:  # noqa: ARG001
    """For callers that show nothing."""


@dataclass(frozen=True, slots=True)
class Source:
    """Files that are read as one: in this order, with imports that may go over from one to the next."""

    name: str
    paths: tuple[Path, ...]


@dataclass(slots=True)
class Survey:
    """What the first walk found. `findings` holds what was wrong with each file, in the order read."""

    plans: dict[int, BucketPlan]
    newest_epoch: int
    findings: list[tuple[Path, Findings]]
    records: int
    total_bytes: int

    @property
    def problems(self) -> list[str]:
        """Every bucket's problems, a line each."""
        return [f"bucket {plan.bucket}: {problem}" for plan in self.plans.values() for problem in plan.problems]

    @property
    def torn(self) -> list[tuple[Path, Findings]]:
        return [(path, found) for path, found in self.findings if found.tail is Tail.TORN]

    @property
    def damage(self) -> list[DataDamaged]:
        return [damage for _, found in self.findings for damage in found.damage]


class Row(NamedTuple):
    """The newest state of a key. `value` None: removed."""

    version: int
    flags: int
    expires_at_ms: int
    value: bytes | None


@dataclass(slots=True)
class RebuiltBucket:
    """One bucket as of `sequence`. Rows at or before `flushed` are gone."""

    bucket: int
    sequence: int = 0
    time_ms: int = 0
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

    def live_rows(self) -> Iterator[tuple[bytes, Row]]:
        return ((key, row) for key, row in self.rows.items() if row.value is not None)

    def records(self) -> Iterator[bytes]:
        """The bucket as an import: IMPORT_BEGIN, a ROW each, IMPORT_END."""
        yield mark(Kind.IMPORT_BEGIN, self.bucket, self.sequence, self.time_ms)
        count = 0
        for key, row in self.live_rows():
            assert row.value is not None
            count += 1
            yield encode(
                Record(
                    Kind.ROW, Cause.NONE, self.bucket, row.flags, row.version, self.time_ms, row.expires_at_ms, key, row.value
                )
            )
        end = encode_import_end(ImportEnd(self.sequence, count))
        yield mark(Kind.IMPORT_END, self.bucket, self.sequence, self.time_ms, end)


def mark(kind: Kind, bucket: int, sequence: int, time_ms: int, value: bytes = b"") -> bytes:
    """A record about a bucket's copy rather than about a key."""
    return encode(Record(kind, Cause.NONE, bucket, 0, sequence, time_ms, 0, b"", value))


def survey(
    sources: Sequence[Source],
    *,
    until_ms: int = NO_LIMIT,
    skip_damaged: bool = False,
    progress: Progress = no_progress,
) -> Survey:
    """The first walk: read every head, resolve every bucket. Raises `DataDamaged` (unless skipped) and OSError."""
    history = History()
    findings: list[tuple[Path, Findings]] = []
    records = done = 0
    total = sum(path.stat().st_size for source in sources for path in source.paths)
    for number, source in enumerate(sources):
        for path in source.paths:
            with RecordFile(path) as file:
                for block in file.blocks(skip_damaged=skip_damaged):
                    found = list(heads(block.body))
                    records += len(found)
                    try:
                        history.note_all(number, block.body, found)
                    except BadRecord as error:
                        raise DataDamaged(path, block.offset, str(error)) from None
                    progress(done + block.offset, total)
                findings.append((path, file.findings))
                done += file.size
    progress(total, total)
    return Survey(history.plan(until_ms=until_ms), history.newest_epoch(), findings, records, total)


def rebuild(
    sources: Sequence[Source],
    plans: dict[int, BucketPlan],
    *,
    until_ms: int = NO_LIMIT,
    skip_damaged: bool = False,
    progress: Progress = no_progress,
) -> dict[int, RebuiltBucket]:
    """The second walk: the newest state of every key, as the plans say. Raises as `survey` does."""
    builder = _Builder(plans, until_ms)
    total = sum(path.stat().st_size for source in sources for path in source.paths)
    done = 0
    for number, source in enumerate(sources):
        for path in source.paths:
            with RecordFile(path) as file:
                for block in file.blocks(skip_damaged=skip_damaged):
                    for head in heads(block.body):
                        builder.take(number, block.body, head)
                    progress(done + block.offset, total)
                done += file.size
    progress(total, total)
    return builder.finish()


class _Builder:
    """Keeps what the plans call live."""

    def __init__(self, plans: dict[int, BucketPlan], until_ms: int) -> None:
        self._plans = plans
        self._until_ms = until_ms
        self._ordinals: dict[tuple[int, int], int] = {}
        self._buckets = {bucket: RebuiltBucket(bucket) for bucket in plans}

    def take(self, source: int, body: bytes, head: Head) -> None:
        if head.kind == Kind.IMPORT_BEGIN:
            place = (source, head.bucket)
            self._ordinals[place] = self._ordinals.get(place, 0) + 1
        elif head.kind == Kind.ROW:
            if self._is_base_row(self._plans[head.bucket].base, source, head.bucket):
                self._put(decode(body, head.start, head.end))
        elif head.kind in HISTORY_KINDS:
            self._take_change(body, head)

    def _is_base_row(self, base: Base | None, source: int, bucket: int) -> bool:
        return base is not None and base.source == source and base.ordinal == self._ordinals.get((source, bucket))

    def _take_change(self, body: bytes, head: Head) -> None:
        if head.time_ms > self._until_ms or not self._plans[head.bucket].is_live(head.sequence):
            return
        bucket = self._buckets[head.bucket]
        if head.sequence > bucket.sequence:
            bucket.sequence, bucket.time_ms = head.sequence, max(head.time_ms, bucket.time_ms)
        if head.kind == Kind.FLUSH:
            bucket.flush(head.sequence)
        elif head.kind != Kind.OPEN:
            self._put(decode(body, head.start, head.end))

    def _put(self, record: Record) -> None:
        value = None if record.kind == Kind.REMOVE else record.value
        row = Row(record.sequence, record.flags, record.expires_at_ms, value)
        self._buckets[record.bucket].put(record.key, row)

    def finish(self) -> dict[int, RebuiltBucket]:
        for bucket, plan in self._plans.items():
            built = self._buckets[bucket]
            if plan.base is not None and plan.base.end > built.sequence:
                built.sequence, built.time_ms = plan.base.end, plan.base.time_ms
        return self._buckets
