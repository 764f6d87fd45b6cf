"""The walk over a file of records: who takes its records in, in two bodies, and which of them is used.

What it is: the contract of a taker, the readable body of each kind of taker, and, in one place, the choice between those and
the compiled ones (`_walk`, `_rows`), which do the same without an object for each record.
Which thread runs it: the caller's. What it owns: nothing but what the takers note.
What it must not know: what is wrong with a file (`reader`), what its records add up to (`history`, `links`).

How the bodies share a file: the compiled takers read ahead as long as blocks are whole, and stop in front of anything else.
What that is, only `reader` says, in either case; and whatever whole block it finds behind it, it hands to the taker.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from rcache.records.history import BucketPlan, History
from rcache.records.links import Links
from rcache.records.reader import Block, DataDamaged, RecordFile
from rcache.records.record import HISTORY_KINDS, BadRecord, Head, Kind, decode
from rcache.records.rows import DictRows, RebuiltBucket, Row, Rows

try:
    from rcache.records import _rows as compiled_rows
    from rcache.records import _walk as compiled_walk
except ImportError as error:  # there was no compiler: see setup.py
    why_not_compiled = str(error)
else:
    why_not_compiled = ""

Plans = dict[int, BucketPlan]

Ran = tuple[int, int, tuple[int, str] | None]
"""Where reading ahead ended, how many blocks were taken in, and of the last of them, if a record in it made no sense, the
offset and why."""


class Taker(Protocol):
    """Takes in the records of files, one file after the other. Raises OSError."""

    def begin(self, source: int, file: RecordFile) -> None:
        """What follows is of this file, which is open; it is of the `source`-th source."""
        ...

    def run(self, at: int, number: int) -> Ran:
        """Read ahead from `at`, where block `number` is due: take in whole blocks, some MiB at most, until anything else comes
        or a record makes no sense."""
        ...

    def take(self, block: Block) -> None:
        """Take in a whole block. Raises `BadRecord`: what follows that record in the block is not taken in."""
        ...

    def end(self) -> None:
        """The file ends here."""
        ...


class Surveyor(Taker, Protocol):
    """The first walk: tells the history and the links. `records`: how many there were."""

    @property
    def records(self) -> int: ...


class Builder(Taker, Protocol):
    """The second walk: keeps what the plans call live."""

    def finish(self) -> dict[int, tuple[int, int, Rows]]:
        """For each bucket with a plan: its newest live sequence, the time of that, its rows. Nothing is taken in any more."""
        ...


class ReferenceTaker:
    """The readable body of a taker: it reads nothing ahead, and drops what it is given."""

    def begin(self, source: int, file: RecordFile) -> None:
        self._source, self._header = source, file.header

    def run(self, at: int, number: int) -> Ran:  # noqa: ARG002
        return at, 0, None

    def take(self, block: Block) -> None:
        pass

    def end(self) -> None:
        pass


class ReferenceSurveyor(ReferenceTaker):
    """The readable body of the first walk."""

    def __init__(self, history: History, links: Links) -> None:
        self._history, self._links = history, links
        self.records = 0

    def take(self, block: Block) -> None:
        self.records += len(block.heads)
        self._history.note_all(self._source, block.body, block.heads)
        self._links.note_block(self._header, block.offset, block.heads)


class ReferenceBuilder(ReferenceTaker):
    """The readable body of the second walk."""

    def __init__(self, plans: Plans, until_ms: int) -> None:
        self._plans = plans
        self._until_ms = until_ms
        self._ordinals: dict[tuple[int, int], int] = {}
        self._rows = {bucket: DictRows(bucket) for bucket in plans}
        self._ends = dict.fromkeys(plans, (0, 0))

    def take(self, block: Block) -> None:
        for head in block.heads:
            if head.kind in HISTORY_KINDS:
                self._take_change(block.body, head)
            elif head.kind == Kind.ROW:
                plan = self._plans.get(head.bucket)  # none: a row without its IMPORT_BEGIN, which damage took
                if plan is not None and self._is_base_row(plan):
                    self._put(block.body, head)
            elif head.kind == Kind.IMPORT_BEGIN:
                place = (self._source, head.bucket)
                self._ordinals[place] = self._ordinals.get(place, 0) + 1

    def _is_base_row(self, plan: BucketPlan) -> bool:
        base = plan.base
        if base is None or base.source != self._source:
            return False
        return base.ordinal == self._ordinals.get((self._source, plan.bucket))

    def _take_change(self, body: bytes, head: Head) -> None:
        plan = self._plans.get(head.bucket)  # none: it was written after the survey
        if plan is None or head.time_ms > self._until_ms or not plan.is_live(head.sequence):
            return
        sequence, time_ms = self._ends[head.bucket]
        if head.sequence > sequence:
            self._ends[head.bucket] = head.sequence, max(head.time_ms, time_ms)
        if head.kind == Kind.FLUSH:
            self._rows[head.bucket].flush(head.sequence)
        elif head.kind != Kind.OPEN:
            self._put(body, head)

    def _put(self, body: bytes, head: Head) -> None:
        record = decode(body, head.start, head.end)
        value = None if record.kind == Kind.REMOVE else record.value
        self._rows[head.bucket].put(record.key, Row(record.sequence, record.flags, record.expires_at_ms, value))

    def finish(self) -> dict[int, tuple[int, int, Rows]]:
        return {bucket: (*self._ends[bucket], rows) for bucket, rows in self._rows.items()}


class Body(NamedTuple):
    """One body of all takers. `checker` only finds out what a file's blocks are."""

    name: str
    checker: Callable[[], Taker]
    surveyor: Callable[[History, Links], Surveyor]
    builder: Callable[[Plans, int], Builder]


REFERENCE = Body("reference", ReferenceTaker, ReferenceSurveyor, ReferenceBuilder)
COMPILED = None if why_not_compiled else Body("compiled", compiled_walk.Taker, compiled_walk.Surveyor, compiled_rows.Builder)

chosen = COMPILED or REFERENCE
"""The body in use. Tests set it to the other one."""


def walk(
    taker: Taker, source: int, file: RecordFile, *, skip_damaged: bool, progress: Callable[[int], None] = lambda _at: None
) -> None:
    """Give every record of an open file to `taker`; `progress` is told how far in the file it is, every few MiB at least.

    Raises `DataDamaged` unless damage is skipped, and OSError. A whole block with a record in it that makes no sense (a fault
    of its writer) is damage."""

    def ahead(at: int, number: int) -> tuple[int, int]:
        at, blocks, bad = taker.run(at, number)
        if bad is not None:
            _note_bad(file, *bad, skip_damaged=skip_damaged)
        progress(at)
        return at, blocks

    taker.begin(source, file)
    for block in file.blocks(skip_damaged=skip_damaged, ahead=ahead):
        try:
            taker.take(block)
        except BadRecord as error:
            _note_bad(file, block.offset, str(error), skip_damaged=skip_damaged)
        progress(block.offset)
    taker.end()


def _note_bad(file: RecordFile, offset: int, why: str, *, skip_damaged: bool) -> None:
    damage = DataDamaged(file.path, offset, why)
    if not skip_damaged:
        raise damage from None
    file.findings.damage.append(damage)


def check(file: RecordFile, *, skip_damaged: bool) -> None:
    """Read all blocks of an open file, for its findings alone. Raises as `walk` does."""
    walk(chosen.checker(), 0, file, skip_damaged=skip_damaged)


def rebuilt(builder: Builder, plans: Plans) -> dict[int, RebuiltBucket]:
    """What came of the second walk: each bucket at the end of what is live, or of its base where nothing came after that."""
    buckets = {}
    for bucket, (sequence, time_ms, rows) in builder.finish().items():
        base = plans[bucket].base
        if base is not None and base.end > sequence:
            sequence, time_ms = base.end, base.time_ms  # noqa: PLW2901
        buckets[bucket] = RebuiltBucket(bucket, rows, sequence, time_ms)
    return buckets
