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

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from rcache.records.files import FileHeader, FileKind
from rcache.records.history import NO_LIMIT, Base, BucketPlan, History
from rcache.records.links import Links
from rcache.records.reader import Block, DataDamaged, Findings, RecordFile, Tail
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
)

Progress = Callable[[int, int], None]
"""Called with (bytes read so far, bytes in all)."""


def no_progress(done: int, total: int) -> None:
    """For callers that show nothing."""


@dataclass(frozen=True, slots=True)
class Source:
    """Files that are read as one: in this order, with imports that may go over from one to the next."""

    name: str
    paths: tuple[Path, ...]


@dataclass(slots=True)
class Survey:
    """What the first walk found. `findings` holds what was wrong with each file, in the order read.

    `missing` says what is missing from the logs, a line each; only where it puts a bucket in doubt is it a problem of its plan.
    `span_ms`: the times of the oldest and newest change.
    """

    plans: dict[int, BucketPlan]
    newest_epoch: int
    findings: list[tuple[Path, Findings]]
    records: int
    total_bytes: int
    missing: list[str] = field(default_factory=list)
    span_ms: tuple[int, int] = (0, 0)

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
    history, links = History(), Links()
    findings: list[tuple[Path, Findings]] = []
    headers: list[FileHeader | None] = []
    records = done = 0
    total = total_size(sources)
    for number, source in enumerate(sources):
        headers.append(None)
        for path in source.paths:
            with RecordFile(path) as file:
                for block in file.blocks(skip_damaged=skip_damaged):
                    records += len(block.heads)
                    with _bad_record_is_damage(file, block, skip_damaged=skip_damaged):
                        history.note_all(number, block.body, block.heads)
                        links.note_block(file.header, block.offset, block.heads)
                    progress(done + block.offset, total)
                _check_closed(file, skip_damaged=skip_damaged)
                headers[number] = file.header
                links.note_file(file.header, file.findings)
                findings.append((path, file.findings))
                done += file.size
    progress(total, total)
    plans = _add_doubts(history.plan(until_ms=until_ms), links, headers, until_ms)
    return Survey(plans, history.newest_epoch(), findings, records, total, links.missing(), history.span_ms())


def total_size(sources: Sequence[Source]) -> int:
    """The bytes in all files of these sources, now. Raises OSError."""
    return sum(path.stat().st_size for source in sources for path in source.paths)


@contextlib.contextmanager
def _bad_record_is_damage(file: RecordFile, block: Block, *, skip_damaged: bool) -> Iterator[None]:
    """A whole block with a record in it that makes no sense (a fault of its writer) is treated as damage in the file."""
    try:
        yield
    except BadRecord as error:
        damage = DataDamaged(file.path, block.offset, str(error))
        if not skip_damaged:
            raise damage from None
        file.findings.damage.append(damage)


def _check_closed(file: RecordFile, *, skip_damaged: bool) -> None:
    """A checkpoint or savefile takes its place only once it is whole, so one that was cut is damaged; a segment is torn."""
    found = file.findings
    if file.header.kind is FileKind.SEGMENT or found.tail is Tail.CLOSED:
        return
    damage = DataDamaged(file.path, found.whole_bytes, "the file ends before its end block")
    if not skip_damaged:
        raise damage
    found.damage.append(damage)


def _add_doubts(
    plans: dict[int, BucketPlan], links: Links, headers: list[FileHeader | None], until_ms: int
) -> dict[int, BucketPlan]:
    """Add to each plan what missing segments say against it. `headers`: of each source, one of its files'."""
    doubted = {}
    for bucket, plan in plans.items():
        doubt = links.doubt(bucket, headers[plan.base.source] if plan.base else None, until_ms)
        doubted[bucket] = replace(plan, problems=(*plan.problems, doubt)) if doubt else plan
    return doubted


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
    total = total_size(sources)
    done = 0
    for number, source in enumerate(sources):
        for path in source.paths:
            with RecordFile(path) as file:
                for block in file.blocks(skip_damaged=skip_damaged):
                    builder.take_all(number, block)
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

    def take_all(self, source: int, block: Block) -> None:
        """Take in the records of one block."""
        for head in block.heads:
            if head.kind in HISTORY_KINDS:
                self._take_change(block.body, head)
            elif head.kind == Kind.ROW:
                plan = self._plans.get(head.bucket)  # none: a row without its IMPORT_BEGIN, which damage took
                if plan is not None and self._is_base_row(plan.base, source, head.bucket):
                    self._put(decode(block.body, head.start, head.end))
            elif head.kind == Kind.IMPORT_BEGIN:
                place = (source, head.bucket)
                self._ordinals[place] = self._ordinals.get(place, 0) + 1

    def _is_base_row(self, base: Base | None, source: int, bucket: int) -> bool:
        return base is not None and base.source == source and base.ordinal == self._ordinals.get((source, bucket))

    def _take_change(self, body: bytes, head: Head) -> None:
        plan = self._plans.get(head.bucket)  # none: it was written after the survey
        if plan is None or head.time_ms > self._until_ms or not plan.is_live(head.sequence):
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
