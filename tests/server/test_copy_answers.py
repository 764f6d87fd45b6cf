"""What COPY is answered: a whole base of a bucket, in pieces, of one tenure, and nothing that is not committed."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable
from typing import Any

import pytest

from rcache.cluster.bucket_state import BucketState
from rcache.engine.change_stream import CommitPoint, Portion
from rcache.engine.contract import Engine
from rcache.peers.filling import Fill
from rcache.records.history import History
from rcache.records.record import Kind, Record, decode_import_end, encode, heads, scan
from rcache.server.copy_answers import CopyAnswers
from rcache.server.node_answers import Refusal
from rcache_client.wire.grammar import REQUESTS, Layout
from rcache_client.wire.opcodes import Opcode, Role, Status
from tests.contract.conftest import EngineFactory, engine_factory, fake_time  # noqa: F401  fixtures
from tests.contract.harness import MOMENT_S, PATIENCE_S, Caller
from tests.feeds.harness import key_of

FRAME_BYTES = 1 << 20
SOME = 1000


class Copying:
    """One logger's connection."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.answers = CopyAnswers(engine, FRAME_BYTES)

    def ask(
        self, bucket: int, begins: int, bytes_max: int = SOME, role: Role = Role.LOGGER, budget_s: float = PATIENCE_S
    ) -> tuple[Any, ...]:
        layout = REQUESTS[Opcode.COPY]
        assert isinstance(layout, Layout)
        return self.answers.answer(layout.encode(bucket, begins, bytes_max), role, budget_s)

    def refusal(self, bucket: int, begins: int, role: Role = Role.LOGGER, budget_s: float = PATIENCE_S) -> Status:
        with pytest.raises(Refusal) as caught:
            self.ask(bucket, begins, role=role, budget_s=budget_s)
        return caught.value.status


@pytest.fixture
def copying(engine_factory: EngineFactory) -> Copying:  # noqa: F811
    return Copying(engine_factory())


def fill(engine: Engine, bucket: int, count: int) -> None:
    caller, keys = Caller(engine), (b"n%d" % number for number in itertools.count())
    mine = (key for key in keys if zlib.crc32(key) % engine.config.buckets == bucket)
    for _ in range(count):
        caller.set(next(mine), bytes(100))


def whole(copying: Copying, bucket: int, change: Callable[[], object] = lambda: None) -> list[Record]:
    """All pieces; `change` is called between two."""
    done, body = copying.ask(bucket, 1)
    pieces = 1
    while not done:
        change()
        done, more = copying.ask(bucket, 0)
        body += more
        pieces += 1
    assert pieces > 1
    return list(scan(body))


def test_a_copy_is_a_base_of_all_that_is_there(copying: Copying) -> None:
    fill(copying.engine, 3, 2500)
    first, *rows, last = whole(copying, 3)
    assert (first.kind, last.kind) == (Kind.IMPORT_BEGIN, Kind.IMPORT_END)
    assert {row.kind for row in rows} == {Kind.ROW}
    assert (len(rows), len({row.key for row in rows})) == (2500, 2500)
    assert decode_import_end(last.value) == (first.sequence, 2500)
    assert first.sequence == last.sequence == copying.engine.sequence(3)


def test_what_changes_meanwhile_lies_between_its_ends(copying: Copying) -> None:
    """Its end names what was reached by then, so that a history knows up to where it needs the changes too."""
    fill(copying.engine, 3, 2500)
    before = copying.engine.sequence(3)
    caller = Caller(copying.engine)
    first, *rows, last = whole(copying, 3, lambda: caller.set(key_of(3), b"new"))
    assert first.sequence == before
    assert last.sequence > before
    assert all(row.sequence <= last.sequence for row in rows)
    history = History()
    body = b"".join(encode(record) for record in (first, *rows, last))
    history.note_all(0, body, list(heads(body)))
    assert history.plan()[3].base is not None


def test_an_empty_bucket_is_two_marks(copying: Copying) -> None:
    done, body = copying.ask(5, 1)
    assert done == 1
    assert [record.kind for record in scan(body)] == [Kind.IMPORT_BEGIN, Kind.IMPORT_END]


def test_what_is_refused(copying: Copying) -> None:
    assert copying.refusal(3, 1, role=Role.CLIENT) is Status.NOT_ALLOWED
    assert copying.refusal(99, 1) is Status.BAD_ARGUMENT
    assert copying.refusal(3, 0) is Status.BAD_ARGUMENT
    copying.ask(5, 1)
    assert copying.refusal(5, 0) is Status.BAD_ARGUMENT  # it was whole
    assert copying.refusal(6, 0) is Status.BAD_ARGUMENT


def test_a_bucket_that_is_handed_over_is_copied_anew(copying: Copying) -> None:
    fill(copying.engine, 3, 2500)
    copying.ask(3, 1)
    copying.engine.set_state(3, BucketState.FROZEN)
    assert copying.refusal(3, 0) is Status.NOT_PRIMARY
    copying.engine.set_state(3, BucketState.ABSENT)
    assert copying.refusal(3, 1) is Status.NOT_PRIMARY
    copying.engine.open_buckets([3], 9, 1, "n1")
    assert copying.refusal(3, 0) is Status.BAD_ARGUMENT
    assert copying.ask(3, 1)[0] == 1


def test_nothing_leaves_before_it_is_committed(copying: Copying) -> None:
    engine = copying.engine
    point = engine.open_commit_point("peer", engine.stream.head)
    engine.set_commit_points(3, [point])
    Caller(engine).ask(Opcode.SET, 0, 0, key_of(3), b"v", budget_ms=1)  # it is not known to be committed
    assert copying.refusal(3, 1, budget_s=MOMENT_S) is Status.NOT_COMMITTED
    point.advance(engine.stream.head)
    assert [record.kind for record in scan(copying.ask(3, 1)[1])] == [Kind.IMPORT_BEGIN, Kind.ROW, Kind.IMPORT_END]


def test_a_backup_that_comes_while_it_is_copied_counts(copying: Copying, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is committed is what those have who are waited for once the rows were read."""
    engine, points = copying.engine, list[CommitPoint]()
    next_portion = Fill.next_portion

    def meanwhile(fill: Fill, of: Engine) -> Portion:
        points.append(engine.open_commit_point("late", engine.stream.head))
        engine.set_commit_points(3, points)
        Caller(engine).ask(Opcode.SET, 0, 0, key_of(3), b"v", budget_ms=1)  # it is not known to be committed
        return next_portion(fill, of)

    monkeypatch.setattr(Fill, "next_portion", meanwhile)
    assert copying.refusal(3, 1, budget_s=MOMENT_S) is Status.NOT_COMMITTED
    points[0].advance(engine.stream.head)
    monkeypatch.undo()
    assert copying.ask(3, 1)[0] == 1
