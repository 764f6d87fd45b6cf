"""What a set of files says about each bucket: which records are on the chain, and which copy to begin from.

What it is: a pure resolver. Runs of changes, OPENs and import marks go in; for each bucket a plan comes out: a base (a whole
copy of the bucket), the chain of epochs back from the newest OPEN, and what is missing, if anything.
Which thread runs it: the caller's. What it owns: what it was told of each bucket.
What it must not know: files, values, keys.

Background. A bucket's history is a tree of epochs: each OPEN names the sequence it continues from, and what lies beyond that
point in the older epoch is dead (`docs/records.md`, "The chain"). Counters have no holes (`record`, invariant 3), so holes in
what was seen are holes in what is there. A base is copied while writes go on: a row may be newer than `begin`, none is newer
than `end`; so it is a copy of the bucket only together with all records from `begin` to `end`.

Invariants:
1. Only records on the chain back from the newest OPEN count; a base whose `end` is off the chain is not used.
2. A plan without problems is exact: the base plus every live record beyond its `begin`, without a hole.
3. `until` cuts a bucket to a prefix of its chain: times never decrease along it, so a record is in the prefix if its time is.
4. What is noted does not depend on how a bucket's changes are cut into runs, only on their order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from rcache.records.holdings import Holdings
from rcache.records.record import (
    BORN_EMPTY,
    HISTORY_KINDS,
    BadRecord,
    Head,
    Kind,
    decode,
    decode_import_end,
    decode_opening,
    epoch_of,
    make_sequence,
    show_sequence,
)

ELSEWHERE = -1
"""The source of a base that is in none of the files that are read."""

NO_LIMIT = (1 << 64) - 1
"""`until` for all of history, and the end of an epoch that no later one cut."""


@dataclass(frozen=True, slots=True)
class Base:
    """A whole copy of a bucket: the `ordinal`-th import of that bucket in `source`, or ELSEWHERE."""

    source: int
    ordinal: int
    begin: int
    end: int
    time_ms: int


@dataclass(slots=True)
class Run:
    """Sequences `first` to `last` of one epoch, all seen; times of the two ends in ms."""

    first: int
    last: int
    first_ms: int
    last_ms: int


@dataclass(frozen=True, slots=True)
class BucketPlan:
    """How to rebuild one bucket. `base` None: from its birth, or, with `problems`, from whatever is there.

    `chain` maps an epoch to the last of its sequences that counts; records up to `floor` are in the base. `end` and its time
    are those of the newest live record, an upper bound of them where history was cut at a time: what was rebuilt says where
    it got to. `born`: the chain goes back to the bucket's birth. `dead` changes were seen that are off the chain. `let_go`:
    that one of the problems which says that nobody has the bucket any more, or "".
    """

    bucket: int
    base: Base | None
    floor: int
    chain: dict[int, int]
    end: int
    end_ms: int
    problems: tuple[str, ...]
    born: bool = False
    dead: int = 0
    let_go: str = ""

    @property
    def is_whole(self) -> bool:
        """Whether all of the chain is here, up to its end, though it may have been let go of."""
        return all(problem == self.let_go for problem in self.problems)

    def is_live(self, sequence: int) -> bool:
        """Whether a record of this bucket is to be applied on top of the base."""
        return sequence > self.floor and sequence <= self.chain.get(epoch_of(sequence), 0)

    def is_dead(self, sequence: int) -> bool:
        """Whether a record is known to be off the chain; what is older than all that is known of the chain is not."""
        return sequence > self.chain.get(epoch_of(sequence), _off_chain(epoch_of(sequence), self.chain, born=self.born))


@dataclass(slots=True)
class _BucketNotes:
    """What was seen of one bucket."""

    opens: dict[int, int] = field(default_factory=dict)
    runs: dict[int, list[Run]] = field(default_factory=dict)
    bases: list[Base] = field(default_factory=list)
    conflict: str = ""


class History:
    """Collects what files say: call `note_all` for the records of every source, in the order of the source, or `begin_source`,
    and tell the same in larger pieces. A bucket's runs, its rows, and its OPENs and marks of one source are each told in their
    order. `holdings`: which sources still have which buckets."""

    def __init__(self) -> None:
        self.holdings = Holdings()
        self._source = 0
        self._buckets: dict[int, _BucketNotes] = {}
        self._imports: dict[tuple[int, int], tuple[int, int, int]] = {}  # (source, bucket): ordinal, begin, rows so far
        self._ordinals: dict[tuple[int, int], int] = {}

    def begin_source(self, source: int) -> None:
        """What is told from here on is of this source."""
        self._source = source

    def note_all(self, source: int, body: bytes, heads: list[Head]) -> None:
        """Take in the records of one block of `source`. Raises `BadRecord`."""
        self.begin_source(source)
        for head in heads:
            if head.kind == Kind.ROW:
                self.note_rows(source, head.bucket, 1)
            elif head.kind in HISTORY_KINDS:
                self.note_run(head.bucket, head.sequence, head.sequence, head.time_ms, head.time_ms)
                if head.kind == Kind.OPEN:
                    self.note_opening(head, body)
            else:
                self.note_mark(source, head, body)

    def _notes(self, bucket: int) -> _BucketNotes:
        notes = self._buckets.get(bucket)
        if notes is None:
            notes = self._buckets[bucket] = _BucketNotes()
        return notes

    def note_run(self, bucket: int, first: int, last: int, first_ms: int, last_ms: int) -> None:
        """Changes of one epoch, `first` to `last` without a hole (invariant 4); the times are those of the two."""
        self.holdings.note_end(self._source, bucket, last)
        runs = self._notes(bucket).runs.setdefault(epoch_of(first), [])
        if not runs or not runs[-1].first <= first <= runs[-1].last + 1:
            runs.append(Run(first, last, first_ms, last_ms))
        elif last > runs[-1].last:
            runs[-1].last, runs[-1].last_ms = last, last_ms

    def note_opening(self, head: Head, body: bytes) -> None:
        """What an OPEN says beside being a change, which was noted. Raises `BadRecord`."""
        notes, epoch = self._notes(head.bucket), epoch_of(head.sequence)
        continues_from = decode_opening(decode(body, head.start, head.end).value).continues_from
        if continues_from >= make_sequence(epoch, 0):
            raise BadRecord(f"bucket {head.bucket}: epoch {epoch} says it continues from its own future")
        if continues_from == BORN_EMPTY:
            self.holdings.note_turn(self._source, head.bucket, head.time_ms, has_it=True)
        if notes.opens.setdefault(epoch, continues_from) != continues_from:
            notes.conflict = f"epoch {epoch} was opened twice, from different places"

    def note_rows(self, source: int, bucket: int, count: int) -> None:
        """So many rows of a bucket, one after the other; without an import that has begun they count for nothing."""
        place = (source, bucket)
        if place in self._imports:
            ordinal, begin, rows = self._imports[place]
            self._imports[place] = (ordinal, begin, rows + count)

    def note_mark(self, source: int, head: Head, body: bytes) -> None:
        """The begin or the end of an import, or a DROP. Raises `BadRecord`."""
        place = (source, head.bucket)
        if head.kind == Kind.IMPORT_BEGIN:
            self._notes(head.bucket)
            ordinal = self._ordinals[place] = self._ordinals.get(place, 0) + 1
            self._imports[place] = (ordinal, head.sequence, 0)
            if head.sequence > BORN_EMPTY:  # else it is a checkpoint's word for a bucket that is not there
                self.holdings.note_turn(source, head.bucket, head.time_ms, has_it=False)
        elif head.kind == Kind.DROP:
            self._imports.pop(place, None)
            self.holdings.note_turn(source, head.bucket, head.time_ms, has_it=False)
        elif head.kind == Kind.IMPORT_END and place in self._imports:
            ordinal, begin, rows = self._imports.pop(place)
            claimed = decode_import_end(decode(body, head.start, head.end).value)
            if claimed == (begin, rows) and head.sequence >= begin:
                self._notes(head.bucket).bases.append(Base(source, ordinal, begin, head.sequence, head.time_ms))
                if head.sequence > BORN_EMPTY:
                    self.holdings.note_turn(source, head.bucket, head.time_ms, has_it=True)
                    self.holdings.note_end(source, head.bucket, head.sequence)

    def note_known(self, bucket: int, sequence: int, time_ms: int) -> None:
        """All of the bucket up to this sequence is in files that are not read."""
        self._notes(bucket).bases.append(Base(ELSEWHERE, 0, sequence, sequence, time_ms))

    def newest_change(self, bucket: int, chain: Mapping[int, int]) -> int:
        """The last change of the bucket that was seen on this chain; 0 where none was."""
        runs = self._notes(bucket).runs
        seen = (min(run.last, last) for epoch, last in chain.items() for run in runs.get(epoch, ()) if run.first <= last)
        return max(seen, default=0)

    def plan(self, *, until_ms: int = NO_LIMIT) -> dict[int, BucketPlan]:
        """One plan for each bucket that any source speaks of."""
        return {bucket: _plan_bucket(bucket, notes, until_ms) for bucket, notes in sorted(self._buckets.items())}

    def newest_epoch(self) -> int:
        """The newest epoch that any record or whole base belongs to; 0 where there is none."""
        return max((_newest_epoch(notes) for notes in self._buckets.values()), default=0)

    def span_ms(self) -> tuple[int, int]:
        """The times of the oldest and of the newest change seen; (0, 0) where there is none."""
        runs = [run for notes in self._buckets.values() for runs in notes.runs.values() for run in runs]
        return min((run.first_ms for run in runs), default=0), max((run.last_ms for run in runs), default=0)


def _newest_epoch(notes: _BucketNotes) -> int:
    return max([*notes.runs, *(epoch_of(base.end) for base in notes.bases)], default=0)


def _plan_bucket(bucket: int, notes: _BucketNotes, until_ms: int) -> BucketPlan:
    _merge_runs(notes)
    chain, born = _chain(notes)
    problems = [notes.conflict] if notes.conflict else []
    bases = [base for base in notes.bases if base.time_ms <= until_ms and _on_chain(base, chain)]
    bases.sort(key=lambda base: (base.end, base.begin), reverse=True)
    chosen: Base | None = None
    floor, hole = BORN_EMPTY, ""
    for base in bases:
        missing = _hole(notes, chain, base.begin, until_ms)
        if not missing:
            chosen, floor, hole = base, base.begin, ""
            break
        hole = hole or missing
    else:
        birth_hole = _hole(notes, chain, BORN_EMPTY, until_ms) if born else "no base: the history does not go back to its birth"
        if birth_hole:
            problems.append(hole or birth_hole)
            if bases:
                chosen, floor = bases[0], bases[0].begin
    end, end_ms = _end(notes, chain, chosen, until_ms)
    return BucketPlan(bucket, chosen, floor, chain, end, end_ms, tuple(problems), born, _count_dead(notes, chain, born=born))


def _count_dead(notes: _BucketNotes, chain: dict[int, int], *, born: bool) -> int:
    """How many of the changes seen are off the chain; one that is in several files counts once."""
    count = 0
    for epoch, runs in notes.runs.items():
        last = chain.get(epoch, _off_chain(epoch, chain, born=born))
        count += sum(run.last - max(run.first, last + 1) + 1 for run in runs if run.last > last)
    return count


def _off_chain(epoch: int, chain: dict[int, int], *, born: bool) -> int:
    """The last sequence that may count of an epoch that is not on the chain: none, or all where the chain ends above it."""
    return -1 if born or epoch > min(chain) else NO_LIMIT


def _merge_runs(notes: _BucketNotes) -> None:
    """Sort the runs of each epoch and join those that touch or overlap."""
    for epoch, runs in notes.runs.items():
        runs.sort(key=lambda run: run.first)
        merged: list[Run] = []
        for run in runs:
            if merged and run.first <= merged[-1].last + 1:
                if run.last > merged[-1].last:
                    merged[-1].last, merged[-1].last_ms = run.last, run.last_ms
            else:
                merged.append(run)
        notes.runs[epoch] = merged


def _chain(notes: _BucketNotes) -> tuple[dict[int, int], bool]:
    """The chain back from the newest epoch (invariant 1), and whether it reaches the bucket's birth."""
    chain: dict[int, int] = {}
    epoch, last = _newest_epoch(notes), NO_LIMIT
    while True:
        chain[epoch] = min(last, make_sequence(epoch + 1, 0) - 1)
        continues_from = notes.opens.get(epoch)
        if continues_from is None:
            return chain, False
        if continues_from == BORN_EMPTY:
            return chain, True
        epoch, last = epoch_of(continues_from), continues_from


def _on_chain(base: Base, chain: dict[int, int]) -> bool:
    """Whether both ends of a base are on the chain (invariant 1). A base at 0 is a copy of a bucket not yet born."""
    return all(point == BORN_EMPTY or point <= chain.get(epoch_of(point), -1) for point in (base.begin, base.end))


def _hole(notes: _BucketNotes, chain: dict[int, int], floor: int, until_ms: int) -> str:
    """The first hole in the live records beyond `floor`, or "" (invariant 2). What is later than `until_ms` may be missing."""
    for epoch in sorted(chain):
        if epoch < epoch_of(floor):
            continue
        due = floor + 1 if epoch == epoch_of(floor) else make_sequence(epoch, 0)
        last = chain[epoch]
        seen_ms = 0
        for run in notes.runs.get(epoch, ()):
            if run.last < due:
                seen_ms = run.last_ms
                continue
            if run.first > due:
                break
            due, seen_ms = run.last + 1, run.last_ms
        is_newest = last == make_sequence(epoch + 1, 0) - 1
        wanted = _last_seen(notes, epoch) if is_newest else last
        if due <= min(wanted, last) and seen_ms <= until_ms:
            return f"missing link: {show_sequence(due)} is not there"
    return ""


def _last_seen(notes: _BucketNotes, epoch: int) -> int:
    """The last sequence of an epoch that any record or base knows of; its OPEN if there is none."""
    runs = notes.runs.get(epoch)
    ends = [base.end for base in notes.bases if epoch_of(base.end) == epoch]
    return max([runs[-1].last if runs else 0, *ends], default=0)


def _end(notes: _BucketNotes, chain: dict[int, int], base: Base | None, until_ms: int) -> tuple[int, int]:
    """The end of the plan and its time, or the base's; with `until_ms` an upper bound (runs know the times of their ends)."""
    end, end_ms = (base.end, base.time_ms) if base else (BORN_EMPTY, 0)
    for epoch, last in chain.items():
        for run in notes.runs.get(epoch, ()):
            if run.first_ms > until_ms or run.first > last:
                continue
            stop = min(run.last, last)
            if stop > end:
                end, end_ms = stop, min(run.last_ms, until_ms)
    return end, end_ms
