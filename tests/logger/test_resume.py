"""A recording that is killed at any moment, again and again: what it says it has, it has, and in the end it has everything.

The seeded test drives a recorder through changes, gaps, copies (whole and given up), new epochs, lost data and turns of
segments, beside a model that knows the state of each bucket at each sequence. Then the files are cut as a crash may leave them.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from rcache.cluster.bucket_state import BucketState
from rcache.logger.coverage import Covered
from rcache.logger.resume import PLACES_FILE, load, resume, save
from rcache.records.files import FileKind
from rcache.records.reader import DataDamaged
from rcache.records.record import ImportEnd, Kind, encode_import_end, heads
from rcache.records.record import make_sequence as seq
from rcache.stream.checkpoints import copy_header, write_copy
from rcache_client.node_feed import NodeFeed
from tests.logger.harness import BUCKETS, Bucket, Model, QuickDisk, Tape, feed_of, opening, record, told
from tests.stream.harness import NOON_MS

SEEDS = 8
STEPS = 250


class Play:
    """See the module. `_next[bucket]`: the index in its history of what is told next; `_place[bucket]`: up to where it was."""

    def __init__(self, directory: Path, seed: int, *, gaps: bool) -> None:
        self.chance = random.Random(seed)
        self.gaps = gaps
        self.model = Model(self.chance)
        self.tape = Tape(directory, self.chance)
        self._next: dict[int, int] = {}
        self._place: dict[int, int] = {}
        self._gaps: dict[int, set[int]] = {number: set() for number in range(BUCKETS)}
        self._feeds: dict[int, NodeFeed] = {}
        self._copy: tuple[int, Iterator[bytes]] | None = None
        for bucket in self.model.buckets:
            self._begin(bucket)

    # --- what may happen

    def step(self) -> None:
        bucket = self.chance.choice(self.model.buckets)
        actions = {
            self._change: 40,
            self._tell: 30,
            self._copy_on: 15,
            self._move: 3,
            self._write: 15,
            self._turn: 2,
            self._miss: 2 if self.gaps else 0,
            self._lose: 1 if self.gaps else 0,
        }
        self.chance.choices(list(actions), list(actions.values()))[0](bucket)

    def _change(self, bucket: Bucket) -> None:
        for _ in range(self.chance.randrange(1, 6)):
            self.model.change(bucket)

    def _tell(self, _bucket: Bucket) -> None:
        """One answer: some of what is next, of some buckets, perhaps with what was told before."""
        records: list[bytes] = []
        upto: dict[int, int] = {}
        for bucket in self.chance.sample(self.model.buckets, self.chance.randrange(1, BUCKETS + 1)):
            first = self._next[bucket.number]
            if first < len(bucket.history):
                end = self.chance.randrange(first + 1, len(bucket.history) + 1)
                again = self.chance.randrange(first + 1) if not self.chance.randrange(10) else first
                records += [body for _, body in bucket.history[again:end]]
                self._next[bucket.number] = end
                upto[bucket.number] = bucket.history[end - 1][0]
        self._took(self.tape.recorder.take(feed_of(), told(*records)), upto)

    def _took(self, places: object, upto: dict[int, int]) -> None:
        assert isinstance(places, dict)
        assert {bucket: places[bucket] for bucket in upto} == upto
        self._place.update(upto)

    def _miss(self, bucket: Bucket) -> None:
        """A gap: some of what is next is held no more."""
        first = self._next[bucket.number]
        if first < len(bucket.history):
            self._skip(bucket, self.chance.randrange(first + 1, len(bucket.history) + 1))

    def _skip(self, bucket: Bucket, end: int) -> None:
        upto = bucket.history[end - 1][0] if end else 0
        gap = (bucket.number, self._place[bucket.number], upto)
        self._gaps[bucket.number].add(upto)
        self._next[bucket.number] = end
        self._took(self.tape.recorder.take(feed_of(), told(gaps=[gap])), {bucket.number: upto})

    def _move(self, bucket: Bucket) -> None:
        """To the next primary, whose feed goes on from where this one was."""
        self._leave(bucket)
        self.model.open(bucket)
        self._begin(bucket)

    def _lose(self, bucket: Bucket) -> None:
        self._leave(bucket)
        self.model.lose(bucket)
        self._begin(bucket)

    def _leave(self, bucket: Bucket) -> None:
        if self._copy is not None and self._copy[0] == bucket.number:
            self._copy = None  # a copy is of one tenure
        self.tape.recorder.lost(self._feeds.pop(bucket.number), [bucket.number])

    def _begin(self, bucket: Bucket) -> None:
        """A feed is asked for what comes behind the place; with luck it has that."""
        number, history, chance = bucket.number, bucket.history, self.chance
        feed = self._feeds[number] = feed_of(f"127.0.0.1:{chance.randrange(9)}")
        place = self._place.get(number)
        known = [sequence for sequence, _ in history]
        if place is None:
            self._next[number] = len(history)
        elif place not in known:  # it was lost: told at once, or said, or found out
            self._next[number] = end = next((at for at, each in enumerate(known) if each > place), len(known) - 1)
            self.tape.recorder.begun(feed, {number: place})
            if chance.randrange(2):
                self._skip(bucket, chance.choice((end, len(history))))
            return
        else:
            self._next[number] = known.index(place) + 1
            if self._next[number] == len(history) - 1 and chance.randrange(2) and not known[-1] & 0xFFFF_FFFF:
                self._next[number] += 1  # behind the OPEN that comes next, which is the same place
                place = None
        self._place[number] = place if place is not None else bucket.last
        self.tape.recorder.begun(feed, {number: self._place[number]})
        if self.gaps and not chance.randrange(4):
            self._miss(bucket)

    def _copy_on(self, _bucket: Bucket) -> None:
        """The next piece of a copy, or the first of another."""
        recorder = self.tape.recorder
        if self._copy is None:
            lacking = recorder.lacking()
            if not lacking:
                return
            number = self.chance.choice(lacking)
            self._copy = (number, self.model.copy(self.model.buckets[number]))
        number, pieces = self._copy
        body = next(pieces, None)
        if body is None or (self.gaps and not self.chance.randrange(8)):
            self._copy = None
        if body:
            recorder.add_base(number, body)

    def _write(self, _bucket: Bucket) -> None:
        self.tape.write(self.chance.choice((1, 1 << 20)))

    def _turn(self, _bucket: Bucket) -> None:
        self.tape.turn()

    # --- what must hold

    def crash(self) -> None:
        how = self.tape.crash()
        self.tape.restart()
        self._copy = None
        self.check(self.tape.resumed.known, how)
        self._place = dict(self.tape.recorder.places)
        for bucket in self.model.buckets:
            self._begin(bucket)

    def check(self, known: dict[int, Covered], how: str, *, skip_damaged: bool = False) -> None:
        """What is said to be whole is, up to its place at least; no place is beyond the files, or the gap at their end."""
        files = self.tape.rebuilt(skip_damaged=skip_damaged)
        for bucket in self.model.buckets:
            covered = known.get(bucket.number, Covered())
            sequence, state, problems = files.get(bucket.number, (0, {}, ()))
            if covered.is_whole:
                assert not problems, how
                assert sequence >= covered.place, how
                assert state == bucket.states[sequence], how
            elif covered.place > max([sequence, *self.tape.recorded(bucket.number)[0]]):
                assert covered.place in self._gaps[bucket.number], how

    def tell_all(self) -> None:
        for _ in range(1000):
            self._tell(self.model.buckets[0])
            self._copy_on(self.model.buckets[0])
            if self.tape.recorder.whole == BUCKETS and all(self._place[b.number] == b.last for b in self.model.buckets):
                return
        raise AssertionError("not everything is recorded")

    def finish(self) -> None:
        """Everything is told and copied: then the files lead to it."""
        self.tell_all()
        self.tape.write()
        self.check(self.tape.recorder.written(), "in the end")
        self.tape.close()
        for bucket in self.model.buckets:
            sequence, state, problems = self.tape.rebuilt()[bucket.number]
            assert (sequence, state, problems) == (bucket.last, bucket.state, ())


@pytest.mark.parametrize("gaps", [True, False])
def test_a_recording_that_is_killed_again_and_again(tmp_path: Path, gaps: bool) -> None:
    for seed in range(SEEDS):
        print(f"seed {seed}, gaps {gaps}")
        (directory := tmp_path / str(seed)).mkdir()
        play = Play(directory, seed, gaps=gaps)
        for _ in range(4):
            for _ in range(play.chance.randrange(STEPS)):
                play.step()
            play.crash()
        play.finish()
        if not gaps:  # then nothing is missing behind the first base
            for bucket in play.model.buckets:
                recorded, base = play.tape.recorded(bucket.number)
                assert {sequence for sequence, _ in bucket.history if sequence > base} <= recorded


# --- what the seeded test does not come by


@pytest.fixture
def play(tmp_path: Path) -> Play:
    """All buckets whole in segment 1, with changes in segments 1 to 3."""
    play = Play(tmp_path, 7, gaps=False)
    for _ in range(3):
        for bucket in play.model.buckets:
            play._change(bucket)
        play.tell_all()
        play.tape.write()
        play.tape.turn()
    return play


def test_only_the_segments_since_are_read(play: Play) -> None:
    play.tape.close()
    found = resume(play.tape.directory, play.tape.identity)
    assert (found.records, found.warnings, found.place.number) == (0, [], 5)
    assert all(each.is_whole for each in found.known.values())
    (play.tape.directory / PLACES_FILE).unlink()
    everything = resume(play.tape.directory, play.tape.identity)
    assert everything.records > 0
    assert {bucket: (each.place, each.is_whole, each.time_ms) for bucket, each in everything.known.items()} == {
        bucket: (each.place, each.is_whole, each.time_ms) for bucket, each in found.known.items()
    }
    assert everything.newest_epoch == max(each.place for each in found.known.values()) >> 40


def test_segments_that_somebody_removed_are_missed(play: Play) -> None:
    """What was whole with them is not any more, though the places file says that it was."""
    play.tape.close()
    first, second, *_ = sorted(play.tape.directory.glob("*.rcl"))
    kept = second.read_bytes()
    second.unlink()
    found = resume(play.tape.directory, play.tape.identity)
    assert "segments are missing" in found.warnings[0]
    assert not any(each.is_whole for each in found.known.values())
    second.write_bytes(kept)
    first.unlink()
    assert not any(each.is_whole for each in resume(play.tape.directory, play.tape.identity).known.values())


class Copying:
    """What a checkpoint copies: the model."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def state(self, _bucket: int) -> BucketState:
        return BucketState.PRIMARY

    def times_let_go(self, _bucket: int) -> int:
        return 0

    def copy_bucket(self, bucket: int) -> Iterator[bytes]:
        body = b"".join(self._model.copy(self._model.buckets[bucket]))
        return iter([body[head.start : head.end] for head in heads(body)])


def checkpoint(play: Play, segment: int) -> Path:
    path = play.tape.directory / f"tape-20231209-{segment:04d}.rcc"
    header = copy_header(FileKind.CHECKPOINT, play.tape.identity, 1, segment, segment, NOON_MS)
    return write_copy(Copying(play.model), path, header, disk=play.tape.disk).path


def test_a_checkpoint_stands_for_the_segments_before_it(play: Play) -> None:
    """Retention removed them; with the places file or without."""
    made = checkpoint(play, 4)
    play._change(play.model.buckets[0])
    play.tell_all()
    play.tape.write()
    play.tape.close()
    for path in sorted(play.tape.directory.glob("*.rcl"))[:-1]:
        path.unlink()
    found = resume(play.tape.directory, play.tape.identity)
    assert ([each.is_whole for each in found.known.values()], found.warnings) == ([True] * BUCKETS, [])
    (play.tape.directory / PLACES_FILE).unlink()
    again = resume(play.tape.directory, play.tape.identity)
    assert [each.is_whole for each in again.known.values()] == [True] * BUCKETS
    assert again.known[0].place == play.model.buckets[0].last
    damage(made)
    without = resume(play.tape.directory, play.tape.identity)
    assert not any(each.is_whole for each in without.known.values())
    assert any(made.name in warning for warning in without.warnings)


def damage(path: Path, part: float = 0.75) -> None:
    """A byte of it."""
    body = bytearray(path.read_bytes())
    body[int(len(body) * part)] ^= 0xFF
    path.write_bytes(body)


@pytest.mark.parametrize("part", [0.0, 0.75])
def test_a_damaged_segment_is_spoken_of(play: Play, part: float) -> None:
    """And where it is passed by, what may have been in it is not said to be there."""
    play.tape.write()
    play.tape.close()
    (play.tape.directory / PLACES_FILE).unlink()
    damaged = sorted(play.tape.directory.glob("*.rcl"))[1]
    damage(damaged, part)
    with pytest.raises(DataDamaged):
        resume(play.tape.directory, play.tape.identity)
    found = resume(play.tape.directory, play.tape.identity, skip_damaged=True)
    assert not all(each.is_whole for each in found.known.values())
    if not part:
        damaged.unlink()  # nobody reads what has no header
    play.check(found.known, "damaged", skip_damaged=True)


def test_a_copy_that_was_only_begun_is_nothing(tmp_path: Path) -> None:
    """No gap is spoken of when it begins again."""
    play = Play(tmp_path, 3, gaps=False)
    play.tape.recorder.add_base(0, record(Kind.IMPORT_BEGIN, 0, play.model.buckets[0].last, NOON_MS))
    play.tape.write()
    play.tape.turn()
    play.tape.close()
    assert resume(play.tape.directory, play.tape.identity).known == {}


def test_a_copy_that_is_ahead_of_what_was_told_is_waited_for(tmp_path: Path) -> None:
    """Its end is in a segment that is not read any more; the birth that is told after it does without that copy, and whoever
    reads all files knows that the bucket went on up to its end."""
    tape = Tape(tmp_path, random.Random(1))
    end = encode_import_end(ImportEnd(seq(1, 0), 0))
    body = record(Kind.IMPORT_BEGIN, 0, seq(1, 0), NOON_MS) + record(Kind.IMPORT_END, 0, seq(1, 2), NOON_MS, value=end)
    assert tape.recorder.add_base(0, body)
    tape.write()
    tape.turn()
    tape.recorder.take(
        feed_of(), told(opening(0, seq(1, 0), 0, NOON_MS), record(Kind.SET, 0, seq(1, 1), NOON_MS, b"key", b"v"))
    )
    tape.write()
    tape.close()
    for _ in range(2):
        (covered,) = resume(tmp_path, tape.identity).known.values()
        assert (covered.place, covered.is_whole, covered.due) == (seq(1, 1), False, seq(1, 2))
        (tmp_path / PLACES_FILE).unlink(missing_ok=True)


def test_the_places_file_is_believed_only_where_it_is_whole(tmp_path: Path) -> None:
    known = {3: Covered(seq(5, 20), True, 1000), 65_535: Covered(seq(1, 0), False, 0)}
    assert load(tmp_path) == (0, {})
    save(QuickDisk(), tmp_path, 7, known)
    assert load(tmp_path) == (7, known)
    path = tmp_path / PLACES_FILE
    good = path.read_bytes()
    for at in range(len(good)):
        path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        with suppress(ValueError):
            assert load(tmp_path) == (7, known)  # there are several ways to write the same
        path.write_bytes(good[:at])
        with suppress(ValueError):
            assert load(tmp_path) == (7, known)
    for text in ("", "[]", "{}", "7", "[" * 100_000, json.dumps({"checksum": 0, "format": 1, "segment": 1, "places": {}})):
        path.write_text(text)
        with pytest.raises(ValueError):
            load(tmp_path)
