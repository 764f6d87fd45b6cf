"""A checkpoint of a bucket that comes, or goes and comes again, while it is being copied: never half of it for the whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rcache.cluster.bucket_state import BucketState
from rcache.engine.contract import Engine
from rcache.records.files import FileKind
from rcache.records.rebuild import Source, rebuild, survey
from rcache.records.record import Cause, ImportEnd, Kind, Record, encode, encode_import_end, make_sequence
from rcache.stream import checkpoints
from rcache.stream.checkpoints import CopyHooks, copy_header, write_copy
from tests.contract.conftest import EngineFactory
from tests.contract.test_links import bucket_of
from tests.stream.harness import IDENTITY, NOON_MS

BUCKET = 1
KEYS = [key for key in (b"k%d" % n for n in range(200)) if bucket_of(key) % IDENTITY.buckets == BUCKET][:10]
AT = make_sequence(1, 20)


def record(kind: Kind, key: bytes = b"", value: bytes = b"") -> bytes:
    return encode(Record(kind, Cause.NONE, BUCKET, 0, AT, NOON_MS, 0, key, value))


def begin(engine: Engine) -> None:
    engine.apply(record(Kind.IMPORT_BEGIN) + b"".join(record(Kind.ROW, key, b"new") for key in KEYS[:5]))


def finish(engine: Engine) -> None:
    rows = b"".join(record(Kind.ROW, key, b"new") for key in KEYS[5:])
    engine.apply(rows + record(Kind.IMPORT_END, value=encode_import_end(ImportEnd(AT, len(KEYS)))))


def drop(engine: Engine) -> None:
    engine.set_state(BUCKET, BucketState.ABSENT)


def drop_by_record(engine: Engine) -> None:
    engine.apply(record(Kind.DROP))


class Hurried:
    """An engine in which something happens right before, and right after, the first copy of the bucket is made."""

    def __init__(self, engine: Engine, before: list[Callable[[Engine], None]], after: list[Callable[[Engine], None]]) -> None:
        self.engine, self._before, self._after = engine, before, after
        self.copies = 0

    def state(self, bucket: int) -> BucketState:
        return self.engine.state(bucket)

    def times_let_go(self, bucket: int) -> int:
        return self.engine.times_let_go(bucket)

    def copy_bucket(self, bucket: int) -> Iterator[bytes]:
        first = bucket == BUCKET and not self.copies
        self.copies += bucket == BUCKET
        for happens in self._before if first else ():
            happens(self.engine)
        records = list(self.engine.copy_bucket(bucket))
        for happens in self._after if first else ():
            happens(self.engine)
        return iter(records)


@pytest.mark.parametrize("was_here", [False, True])
@pytest.mark.parametrize(
    ("before", "after", "held"),
    [
        ([begin], [finish], 10),
        ([begin], [finish, drop], 0),
        ([begin], [drop], 0),
        ([begin], [drop_by_record], 0),
        ([begin, finish], [drop], 0),
        ([begin, finish], [], 10),
        ([], [begin, finish], 10),
        ([], [], None),
    ],
)
def test_what_is_in_the_checkpoint_is_one_copy_and_whole(
    tmp_path: Path,
    engine_factory: EngineFactory,
    monkeypatch: pytest.MonkeyPatch,
    was_here: bool,
    before: list[Callable[[Engine], None]],
    after: list[Callable[[Engine], None]],
    held: int | None,
) -> None:
    monkeypatch.setattr(checkpoints, "IMPORT_LOOK_S", 0.0)
    engine = engine_factory(opened=0, buckets=IDENTITY.buckets, stripes=2)
    if was_here:
        old = encode(Record(Kind.ROW, Cause.NONE, BUCKET, 0, 5, NOON_MS, 0, KEYS[0], b"old"))
        mark = Record(Kind.IMPORT_BEGIN, Cause.NONE, BUCKET, 0, 5, NOON_MS, 0, b"", b"")
        end = mark._replace(kind=Kind.IMPORT_END, value=encode_import_end(ImportEnd(5, 1)))
        engine.apply(encode(mark) + old + encode(end))
        first = next(iter(before or after), None)
        if first is begin:
            before, after = ([drop, *before], after) if before else (before, [drop, *after])
    hurried = Hurried(engine, before, after)
    path = tmp_path / "n1.rcc"
    write_copy(hurried, path, copy_header(FileKind.CHECKPOINT, IDENTITY, 1, 1, 1, NOON_MS))
    source = [Source("checkpoint", (path,))]
    built = rebuild(source, survey(source).plans)[BUCKET]
    held = int(was_here) if held is None else held
    assert len(dict(built.live_rows())) == held
    assert built.sequence == (0 if not held else AT if held == len(KEYS) else 5)
    assert hurried.copies == (1 if not (before or after) else 2)


def test_how_often_a_bucket_was_let_go_of(engine_factory: EngineFactory) -> None:
    engine = engine_factory(opened=0, buckets=IDENTITY.buckets, stripes=2)
    counts = [engine.times_let_go(BUCKET)]
    for _ in range(3):
        begin(engine)
        counts.append(engine.times_let_go(BUCKET))
        finish(engine)
        counts.append(engine.times_let_go(BUCKET))
        drop(engine)
        counts.append(engine.times_let_go(BUCKET))
    assert counts == sorted(counts)
    assert len(set(counts)) == 4, "it counts what is let go of, and nothing else"
    assert all(count % 2 == 0 for count in counts)
    with pytest.raises(ValueError, match="cannot become absent"):
        drop(engine)
    assert engine.times_let_go(BUCKET) % 2 == 0
    assert engine.times_let_go(0) == 0


def copied(engine: object, path: Path, look: Callable[[], None]) -> int:
    """How many items of the bucket are in a checkpoint; `look` is called while it waits."""
    header = copy_header(FileKind.CHECKPOINT, IDENTITY, 1, 1, 1, NOON_MS)
    write_copy(engine, path, header, CopyHooks(look=look))  # type: ignore[arg-type]
    source = [Source("checkpoint", (path,))]
    return len(dict(rebuild(source, survey(source).plans)[BUCKET].live_rows()))


def test_a_bucket_that_is_being_filled_is_waited_for(
    tmp_path: Path, engine_factory: EngineFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "IMPORT_LOOK_S", 0.0)
    engine = engine_factory(opened=0, buckets=IDENTITY.buckets, stripes=2)
    begin(engine)
    assert copied(engine, tmp_path / "n1.rcc", lambda: finish(engine)) == len(KEYS)


def test_a_bucket_that_is_filled_for_too_long_is_an_error(
    tmp_path: Path, engine_factory: EngineFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "IMPORT_WAIT_S", 0.0)
    monkeypatch.setattr(checkpoints, "IMPORT_LOOK_S", 0.0)
    engine = engine_factory(opened=0, buckets=IDENTITY.buckets, stripes=2)
    begin(engine)
    with pytest.raises(OSError, match="bucket 1 is still being filled"):
        copied(engine, tmp_path / "n1.rcc", lambda: None)
    assert not list(tmp_path.iterdir())


def test_while_a_bucket_is_being_let_go_of_it_is_not_copied(
    tmp_path: Path, engine_factory: EngineFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its count is odd; what is there then may be gone, and another begun, before the count is even again."""
    monkeypatch.setattr(checkpoints, "IMPORT_LOOK_S", 0.0)
    engine = engine_factory(opened=0, buckets=IDENTITY.buckets, stripes=2)
    begin(engine)
    finish(engine)
    hurried = Hurried(engine, [], [])
    monkeypatch.setattr(hurried, "times_let_go", lambda bucket: 1 if bucket == BUCKET and not looked else 2)
    looked: list[int] = []

    def look() -> None:
        assert not hurried.copies
        drop(engine)
        looked.append(1)

    assert copied(hurried, tmp_path / "n1.rcc", look) == 0
    assert hurried.copies == 1
