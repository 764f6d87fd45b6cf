"""History and rebuild against a naive model: random histories of a bucket, told by files that overlap and lack things.

The model knows the truth: the line of records that the newest epoch stands on. Two things are held against it, each in both
directions: a plan has a problem if and only if something of that line that matters is in no file; and a plan without
problems gives exactly the state that applying the line from the start gives.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import NamedTuple

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rcache.records import walk
from rcache.records.files import FileKind
from rcache.records.history import NO_LIMIT
from rcache.records.rebuild import RebuiltBucket, rebuild, survey
from rcache.records.record import Kind, epoch_of
from rcache.stream.data_dir import list_files, sources

from .bodies import BODIES, using
from .making import flushed, header_of, imported, opened, removed, row, seq, stored, write_file

KEYS = (b"a", b"b", b"c")


class Change(NamedTuple):
    """One record of the true history."""

    sequence: int
    time_ms: int
    kind: Kind
    key: bytes
    body: bytes


class Copy(NamedTuple):
    """A base: the sequences between which it was copied, its time, and its rows."""

    begin: int
    end: int
    time_ms: int
    rows: list[bytes]


Line = list[Change]
State = dict[bytes, tuple[int, bytes]]


@dataclass
class World:
    """All that ever happened to the bucket: every record, dead or not, and the line that each epoch stood on at its end."""

    random: Random
    every: Line = field(default_factory=list)
    lines: dict[int, Line] = field(default_factory=dict)
    copies: list[Copy] = field(default_factory=list)
    now: int = 1000

    def live(self) -> None:
        line: Line = []
        epoch = 0
        for _ in range(self.random.randint(1, 4)):
            epoch += self.random.randint(1, 2)
            if line and self.random.random() < 0.5:
                line = line[: self.random.randint(1, len(line))]
            line = self._run_epoch(epoch, list(line))
            self.lines[epoch] = line

    def _run_epoch(self, epoch: int, line: Line) -> Line:
        self._happen(line, seq(epoch, 0), Kind.OPEN, b"")
        for counter in range(1, self.random.randint(1, 6)):
            kind = self.random.choice([Kind.SET, Kind.SET, Kind.SET, Kind.REMOVE, Kind.FLUSH])
            self._happen(line, seq(epoch, counter), kind, self.random.choice(KEYS))
        if self.random.random() < 0.5:
            self._copy(line)
        return line

    def _happen(self, line: Line, sequence: int, kind: Kind, key: bytes) -> None:
        self.now += self.random.choice([0, 0, 1, 5])
        time_ms = self.now
        if kind is Kind.OPEN:
            body = opened(epoch_of(sequence), line[-1].sequence if line else 0, time_ms=time_ms)
        elif kind is Kind.SET:
            body = stored(sequence, key, b"%d" % sequence, time_ms=time_ms)
        elif kind is Kind.REMOVE:
            body = removed(sequence, key, time_ms=time_ms)
        else:
            body = flushed(sequence, time_ms=time_ms)
        line.append(Change(sequence, time_ms, kind, key, body))
        self.every.append(line[-1])

    def _copy(self, line: Line) -> None:
        """Copy the bucket while it changes: each row is read at some moment between begin and end."""
        begin = self.random.randrange(len(line))
        end = self.random.randrange(begin, len(line))
        rows = []
        for key in KEYS:
            found = state_of(line[: self.random.randint(begin, end) + 1]).get(key)
            if found:
                rows.append(row(found[0], key, found[1]))
        self.copies.append(Copy(line[begin].sequence, line[end].sequence, line[end].time_ms, rows))


def state_of(line: Line) -> State:
    """The naive replay."""
    state: State = {}
    for change in line:
        if change.kind is Kind.SET:
            state[change.key] = (change.sequence, b"%d" % change.sequence)
        elif change.kind is Kind.REMOVE:
            state.pop(change.key, None)
        elif change.kind is Kind.FLUSH:
            state.clear()
    return state


@dataclass
class Told:
    """What the files say: which records they hold, and which copies."""

    known: set[int]
    copies: list[Copy]

    def newest_epoch(self) -> int:
        return max(epoch_of(sequence) for sequence in [*self.known, *(copy.end for copy in self.copies)])


def tell(world: World, folder: Path) -> Told:
    """Write files that tell a part of it: several logs, each with a hole or two at times, and some of the copies."""
    random, known = world.random, set()
    for number in range(random.randint(1, 3)):
        records = sorted(world.every)
        if random.random() < 0.6:
            begin = random.randrange(len(records))
            del records[begin : begin + random.randint(1, 4)]
        blocks = [[change.body] for change in records]
        write_file(folder, header_of(1, node=f"n{number}"), *blocks)
        known |= {change.sequence for change in records}
    copies = [copy for copy in world.copies if random.random() < 0.8]
    for number, copy in enumerate(copies):
        part = imported(copy.begin, copy.end, copy.rows, time_ms=copy.time_ms)
        write_file(folder, header_of(number + 1, kind=FileKind.SAVEFILE, node="c", first_segment=1), part)
    return Told(known, copies)


def truth_of(world: World, told: Told) -> Line:
    """The line that the newest epoch known stands on, up to the last sequence that any file knows of."""
    epoch = told.newest_epoch()
    last = max(s for s in [*told.known, *(copy.end for copy in told.copies)] if epoch_of(s) == epoch)
    return [change for change in world.lines[epoch] if change.sequence <= last]


def is_enough(line: Line, told: Told, until_ms: int) -> bool:
    """Whether the files give the line's prefix: from its birth, or from a copy on it, nothing that may matter is missing."""
    places = {change.sequence: place for place, change in enumerate(line)}
    starts = [-1] + [
        places[copy.begin]
        for copy in told.copies
        if copy.begin in places and copy.end in places and copy.time_ms <= until_ms and _leads_to(line, told, places[copy.end])
    ]
    return any(_is_whole(line, start, told, until_ms) for start in starts)


def _leads_to(line: Line, told: Told, end: int) -> bool:
    """Whether the files show that this place is on the chain: all OPENs of later epochs are there."""
    return all(change.sequence in told.known for change in line[end + 1 :] if change.kind is Kind.OPEN)


def _is_whole(line: Line, start: int, told: Told, until_ms: int) -> bool:
    for place in range(start + 1, len(line)):
        change = line[place]
        if change.sequence in told.known:
            continue
        if start == -1 and any(c.kind is Kind.OPEN and c.sequence not in told.known for c in line):
            return False
        before = line[place - 1] if place > start + 1 else None
        return before is not None and before.time_ms > until_ms
    return True


def check(seed: int) -> None:
    world = World(Random(seed))
    world.live()
    with TemporaryDirectory() as name:
        folder = Path(name)
        told = tell(world, folder)
        if not told.known and not told.copies:
            return
        until_ms = NO_LIMIT if world.random.random() < 0.5 else world.random.randint(990, world.now + 5)
        read = sources(list_files(folder))
        found = survey(read, until_ms=until_ms)
        built = rebuild(read, found.plans, until_ms=until_ms)[0]
        line = truth_of(world, told)
        doubts = [problem for problem in found.problems if "its end may be missing" in problem]
        assert not doubts, "no segment is missing"
        assert (not found.problems) == is_enough(line, told, until_ms), found.problems
        if not found.problems:
            _check_state(built, [change for change in line if change.time_ms <= until_ms])
        if found.plans[0].born:
            on_line = {change.sequence for change in world.lines[told.newest_epoch()]}
            assert found.plans[0].dead == len(told.known - on_line)


def _check_state(built: RebuiltBucket, prefix: Line) -> None:
    assert {key: (found.version, found.value) for key, found in built.live_rows()} == state_of(prefix)
    assert built.sequence == (prefix[-1].sequence if prefix else 0)
    assert built.time_ms == (prefix[-1].time_ms if prefix else 0)


@pytest.mark.parametrize("body", BODIES)
@settings(max_examples=400, deadline=None)
@example(seed=0)
@given(seed=st.integers(0, 2**32))
def test_plans_and_what_is_rebuilt_agree_with_the_naive_model(body: walk.Body, seed: int) -> None:
    with using(body):
        check(seed)
