"""What counts as committed, and what is proven: only what this node was primary of before and after that moment."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest

from rcache.cluster.bucket_state import BucketState
from rcache.engine.change_stream import StreamEnd
from rcache.engine.contract import Engine
from rcache.feeds.commitment import Commitment
from rcache.feeds.proofs import Proofs
from rcache.feeds.tenures import Tenures
from tests.contract.conftest import EngineFactory
from tests.contract.harness import PATIENCE_S, Task
from tests.contract.test_windows import Linked
from tests.feeds.harness import Meanwhile

BEYOND = 1 << 40


@pytest.fixture
def engine(engine_factory: EngineFactory) -> Engine:
    """Two buckets wait for points that are far ahead, a third for one that is not."""
    engine = engine_factory()
    for bucket, position in ((3, BEYOND), (4, BEYOND), (5, 0)):
        engine.set_commit_points(bucket, [engine.open_commit_point("backup", position)])
    return engine


def test_of_each_bucket_its_own_points_count(engine: Engine) -> None:
    commitment = Commitment(engine, Tenures(engine))
    assert commitment.of([1, 3, 4, 5], engine.stream.head) == {1, 3, 4}
    assert commitment.of([3, 4], engine.stream.head, 1.0) == {3, 4}
    engine.set_state(3, BucketState.FROZEN)
    assert commitment.of([1, 3, 4, 5], engine.stream.head) == {1, 4}
    assert commitment.of([3], engine.stream.head) == set()


@pytest.mark.parametrize("first", [StreamEnd.REACHED, StreamEnd.TIMED_OUT])
@pytest.mark.parametrize("then", [[], [BucketState.ABSENT]])
def test_what_is_taken_from_here_meanwhile_does_not_count(engine: Engine, first: StreamEnd, then: list[BucketState]) -> None:
    """Frozen as a first step, or let go of already: its points may have come to nothing by then."""

    def depose() -> None:
        for state in [BucketState.FROZEN, *then] if engine.state(3) is BucketState.PRIMARY else []:
            engine.set_state(3, state)

    changing: Any = Meanwhile(engine, depose, first)
    assert Commitment(changing, Tenures(engine)).of([3, 4], engine.stream.head) == {4}


def test_what_is_back_is_of_another_tenure(engine: Engine) -> None:
    tenures = Tenures(engine)
    engine.set_state(3, BucketState.FROZEN)
    engine.set_state(3, BucketState.ABSENT)
    engine.open_buckets([3], 2, 1, "n1")
    assert Commitment(engine, tenures).of([3, 4], engine.stream.head) == {4}


def test_what_was_given_up_in_order_counts_and_what_was_let_go_of_does_not(
    engine: Engine, engine_factory: EngineFactory
) -> None:
    """Both are a backup's by then; what is here of the latter is another's copy."""
    other = engine_factory()
    tenures = Tenures(engine)
    engine.set_commit_points(3, [engine.open_commit_point("backup", 0)])
    engine.set_commit_points(4, [engine.open_commit_point("backup", 0)])
    for bucket in (3, 4):
        engine.set_state(bucket, BucketState.FROZEN)
    engine.set_state(3, BucketState.BACKUP)
    engine.set_state(4, BucketState.ABSENT)
    engine.apply(b"".join(other.copy_bucket(4)))
    assert engine.state(4) is BucketState.BACKUP
    assert Commitment(engine, tenures).of([3, 4], engine.stream.head) == {3}


@pytest.mark.parametrize("happens", ["nothing", "frozen", "another's meanwhile", "opened anew"])
def test_a_proof_holds_only_where_this_node_was_primary_of_all_before_and_after(engine: Engine, happens: str) -> None:
    def change() -> None:
        if happens != "nothing":
            engine.set_state(3, BucketState.FROZEN)
        if happens == "another's meanwhile":
            engine.set_state(3, BucketState.ABSENT)
        if happens in ("another's meanwhile", "opened anew"):
            engine.open_buckets([3], 2, 1, "n1")

    engine.set_commit_points(5, [])
    changing: Any = Meanwhile(engine, change, StreamEnd.REACHED)
    assert Proofs(changing, Tenures(engine)).holds(1.0, 0) is (happens == "nothing")


def test_what_another_changed_before_it_came_back_is_not_proven(engine: Engine) -> None:
    """It was given up, and is back with an OPEN that lies behind all that was told."""
    engine.set_commit_points(3, [])
    engine.set_commit_points(4, [])
    engine.set_commit_points(5, [])
    proofs, head = Proofs(engine, Tenures(engine)), engine.stream.head
    assert proofs.holds(1.0, head)
    engine.set_state(3, BucketState.FROZEN)
    engine.set_state(3, BucketState.BACKUP)
    engine.open_buckets([3], 3, 1, "n1")
    assert not proofs.holds(2.0, head)
    assert proofs.holds(3.0, engine.stream.head)


def test_with_confirmed_reads_every_backup_must_answer_for_a_proof(
    engine_factory: EngineFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though its lease is as good as ever: this machine may have been stopped without a clock that shows it."""
    engine = engine_factory(confirm_reads=True)
    linked = Linked(engine)
    peer = linked.connect()
    linked.wait()
    linked.serve()
    proofs = Proofs(engine, Tenures(engine))
    assert not proofs.holds(1.0, 0)
    monkeypatch.setattr("rcache.feeds.proofs.HOLD_S", PATIENCE_S)
    proving = Task(lambda: proofs.holds(2.0, 0))
    peer.answer(peer.next().request_id)  # what was asked for the first, or for both
    if not proving.is_done:
        with suppress(TimeoutError):
            peer.sock.settimeout(1.0)
            peer.answer(peer.next().request_id)
    assert proving.result()
    linked.close()
