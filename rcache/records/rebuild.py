"""Rebuilding buckets from files: the two walks over a set of sources, and the rows that come out.

What it is: `survey` reads record heads and makes a plan; `rebuild` reads again, keeps what the plan calls live, and holds the
newest state of every key. A source is an ordered list of files: one checkpoint, one savefile, or all segments of one node.
Which thread runs it: the caller's. What it owns: nothing; the rows go to the caller.
What it must not know: the engine, where a row will go.

Invariants:
1. The newest sequence of a key wins, whatever order the records come in (removals are remembered), so several logs of one
   bucket merge by dropping what they share.
2. What is rebuilt of a bucket is the state at one sequence of its chain: `RebuiltBucket.sequence`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from rcache.records import walk
from rcache.records.files import FileHeader, FileKind
from rcache.records.history import ELSEWHERE, NO_LIMIT, BucketPlan, History
from rcache.records.holdings import Holdings
from rcache.records.links import Links
from rcache.records.reader import DataDamaged, Findings, RecordFile, Tail
from rcache.records.rows import RebuiltBucket, Row

__all__ = ["Progress", "RebuiltBucket", "Row", "Source", "Survey", "no_progress", "rebuild", "survey", "total_size"]

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
    `span_ms`: the times of the oldest and newest change; `newest_changes`: of each bucket the last change on its chain, beyond
    which its base may go.
    """

    plans: dict[int, BucketPlan]
    newest_epoch: int
    findings: list[tuple[Path, Findings]]
    records: int
    total_bytes: int
    missing: list[str] = field(default_factory=list)
    span_ms: tuple[int, int] = (0, 0)
    newest_changes: dict[int, int] = field(default_factory=dict)

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


def survey(
    sources: Sequence[Source],
    *,
    until_ms: int = NO_LIMIT,
    skip_damaged: bool = False,
    progress: Progress = no_progress,
    known: Mapping[int, tuple[int, int]] | None = None,
) -> Survey:
    """The first walk: read every head, resolve every bucket. `known`: buckets of which files that are not read hold everything
    up to a sequence, of that time (ms). Raises `DataDamaged` (unless skipped) and OSError."""
    history, links = History(), Links()
    for bucket, (sequence, time_ms) in (known or {}).items():
        history.note_known(bucket, sequence, time_ms)
    surveyor = walk.chosen.surveyor(history, links)
    findings: list[tuple[Path, Findings]] = []
    headers: list[FileHeader | None] = [None] * len(sources)
    total = total_size(sources)

    def note_file(number: int, file: RecordFile) -> None:
        _check_closed(file, skip_damaged=skip_damaged)
        headers[number] = file.header
        links.note_file(file.header, file.findings)
        findings.append((file.path, file.findings))

    _walk_all(surveyor, sources, note_file, skip_damaged=skip_damaged, progress=progress, begin=history.begin_source)
    plans = _add_doubts(history.plan(until_ms=until_ms), links, history.holdings, headers, until_ms)
    changes = {bucket: history.newest_change(bucket, plan.chain) for bucket, plan in plans.items()}
    return Survey(plans, history.newest_epoch(), findings, surveyor.records, total, links.missing(), history.span_ms(), changes)


def _walk_all(
    taker: walk.Taker,
    sources: Sequence[Source],
    note_file: Callable[[int, RecordFile], None],
    *,
    skip_damaged: bool,
    progress: Progress,
    begin: Callable[[int], None] = lambda _number: None,
) -> None:
    """Give all records of all files to `taker`; `begin` is called with each source's number, and after each file of it
    `note_file` with that, and it."""
    done, total = 0, total_size(sources)

    def report(at: int) -> None:
        progress(done + at, total)

    for number, source in enumerate(sources):
        begin(number)
        for path in source.paths:
            with RecordFile(path) as file:
                walk.walk(taker, number, file, skip_damaged=skip_damaged, progress=report)
                note_file(number, file)
                done += file.size
    progress(total, total)


def total_size(sources: Sequence[Source]) -> int:
    """The bytes in all files of these sources, now. Raises OSError."""
    return sum(path.stat().st_size for source in sources for path in source.paths)


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
    plans: dict[int, BucketPlan], links: Links, holdings: Holdings, headers: list[FileHeader | None], until_ms: int
) -> dict[int, BucketPlan]:
    """Add to each plan what missing segments, and copies that were let go of, say against it. `headers`: of each source, one of
    its files'."""
    doubted = {}
    for bucket, plan in plans.items():
        base = plan.base if plan.base is not None and plan.base.source != ELSEWHERE else None
        missing = links.doubt(bucket, headers[base.source] if base else None, until_ms)
        let_go = holdings.doubt(bucket, plan.end, headers, until_ms)
        doubts = tuple(doubt for doubt in (missing, let_go) if doubt)
        doubted[bucket] = replace(plan, problems=(*plan.problems, *doubts), let_go=let_go) if doubts else plan
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
    builder = walk.chosen.builder(plans, until_ms)
    _walk_all(builder, sources, lambda _number, _file: None, skip_damaged=skip_damaged, progress=progress)
    return walk.rebuilt(builder, plans)
