"""The control plane as a whole: what heartbeats are granted, and how a node falls out of the view and comes back."""

from __future__ import annotations

import pytest

from rcache.cluster.bucket_state import BucketState
from rcache.cluster.leases import Peer
from rcache.cluster.view import NodeState
from rcache.records.record import Kind, decode
from rcache_client.wire.opcodes import Status
from tests.contract.harness import EVERYTHING, Task, assert_stays, wait_until
from tests.member.harness import copy_into, node
from tests.member.running import ABSENT, BACKUP, FROZEN, PRIMARY, SLOW, Make, view_of

# --- heartbeats


def test_a_heartbeat_of_the_view_that_is_shown_is_granted(running: Make) -> None:
    there = running(view_of(6, ("n2", "n1", 1)))
    assert there.member.sessions.answer_heartbeat("n2", 6, 1) == (Status.OK, int(SLOW.lease_s * 1e9))
    known = there.neighbours.known["n2"]
    assert (known.ever_heard, known.heard_epoch) == (True, 6)
    with there.member.books.lock:
        assert not there.member.books.given.has_run_out("n2", 0)


@pytest.mark.parametrize(
    ("name", "epoch", "incarnation", "status"),
    [
        ("n2", 5, 1, Status.STALE_VIEW),
        ("n2", 7, 1, Status.VIEW_AHEAD),
        ("n2", 6, 2, Status.WRONG_NODE),
        ("n9", 6, 1, Status.WRONG_NODE),
    ],
)
def test_any_other_heartbeat_is_granted_nothing(running: Make, name: str, epoch: int, incarnation: int, status: Status) -> None:
    """Invariant 4: one of an older view grants nothing, nor does one of another incarnation. (A grant of yesterday lets the old
    primary answer beside the new one.)"""
    there = running(view_of(6, ("n2", "n1", 1)))
    assert there.member.sessions.answer_heartbeat(name, epoch, incarnation) == (status, 0)
    with there.member.books.lock:
        assert there.member.books.given.has_run_out(name, 0)
    assert not there.neighbours.known["n2"].ever_heard


def test_after_a_view_was_shown_those_of_the_one_before_are_granted_nothing(running: Make) -> None:
    there = running(view_of(6, ("n2", "n1", 1)))
    there.take_in(view_of(7, ("n2", "n1", 1)))
    assert there.member.sessions.answer_heartbeat("n2", 6, 1) == (Status.STALE_VIEW, 0)
    assert there.member.sessions.answer_heartbeat("n2", 7, 1)[0] is Status.OK


def test_grants_are_made_under_the_lock_under_which_views_change(running: Make) -> None:
    """Invariants 4 and 5."""
    there = running(view_of(6, ("n2", "n1", 1)))
    with there.member.books.lock:
        answering = Task(lambda: there.member.sessions.answer_heartbeat("n2", 6, 1))
        assert_stays(lambda: not answering.is_done, "the answer")
        there.member.books.given.decide("n2")
    assert answering.result() == (Status.OK, 0)


def test_a_heartbeat_of_the_view_tells_that_the_old_primary_gave_its_buckets_up(running: Make) -> None:
    """Invariant 3: said itself, for that view."""
    there = running(view_of(6, ("n2", "n1", 1)))
    copy_into(there.engine, 0, source=there.member.sessions.follows(0))
    there.member.sessions.answer_heartbeat("n2", 6, 1)
    there.take_in(view_of(7, ("n1", "", 7)))
    assert there.engine.state(0) is BACKUP, "its lease may hold yet"
    assert there.member.sessions.answer_heartbeat("n2", 7, 1)[0] is Status.OK
    wait_until(lambda: there.engine.state(0) is PRIMARY, "the opening")


# --- out of the view, and in again


@pytest.mark.parametrize("how", ["lost", "gone", "another incarnation"])
def test_it_falls_out_and_joins_anew_empty(running: Make, how: str) -> None:
    """Invariants 2 and 7: frozen before its points are abandoned, so that nothing is answered alone; then it has nothing, and
    comes back under the next incarnation."""
    there = running(view_of(6, ("n1", "n2", 6), ("n2", "n1", 1), manager="n2"))
    copy_into(there.engine, 1, source=there.member.sessions.follows(1))
    states: list[BucketState] = []
    point = there.link().point
    abandon = point.abandon
    point.abandon = lambda: (states.append(there.engine.state(0)), abandon())
    head = there.engine.stream.head
    waiting = Task(lambda: there.write(0, 60_000))
    wait_until(lambda: there.engine.stream.head > head, "the write")
    nodes = {"n1": node(state=NodeState.LOST), "n2": node()}
    if how == "gone":
        del nodes["n1"]
    elif how == "another incarnation":
        nodes["n1"] = node(2, NodeState.JOINING)
        there.incarnation = 2
    view = view_of(7, ("n2", "", 7), ("n2", "", 1), nodes=nodes, manager="n2", proposer="n2")
    there.take_in(view)
    assert states[0] is FROZEN
    assert waiting.result() is Status.NOT_COMMITTED
    assert [there.engine.state(bucket) for bucket in range(2)] == [ABSENT] * 2
    assert there.member.board.counts.fell_out == 1
    assert [decode(r).kind for r in there.applied.take(EVERYTHING).records] == [Kind.DROP] * 2
    assert not there.member.is_ready
    assert (there.member.incarnation, there.neighbours.known) == (there.incarnation, {})
    wait_until(lambda: there.agreement.wished == ["join anew"], "the wish")
    view = there.agree()
    assert view.nodes["n1"].incarnation == there.incarnation
    assert view.copies_of("n1") == 0
    assert there.member.epoch == 8
    wait_until(lambda: there.agreement.wished == ["be ready"], "the next wish")
    there.agree()
    assert there.member.is_ready
    assert set(there.neighbours.known) == {"n2"}


def test_it_falls_out_once_however_many_views_come(running: Make) -> None:
    there = running(view_of(6, ("n1", "n2", 6), manager="n2"))
    nodes = {"n1": node(state=NodeState.LOST), "n2": node()}
    for epoch in (7, 8):
        there.take_in(view_of(epoch, ("n2", "", 7), nodes=nodes, manager="n2", proposer="n2"))
    assert (there.member.epoch, there.member.board.counts.fell_out, there.incarnation) == (8, 1, 2)


def test_who_left_does_not_come_back(running: Make) -> None:
    there = running(view_of(6, ("n2", "", 6), nodes={"n1": node(state=NodeState.LEAVING), "n2": node()}, manager="n2"))
    there.member.leave()
    there.settle()
    there.take_in(view_of(7, ("n2", "", 6), nodes={"n2": node()}, manager="n2"))
    wait_until(there.member.departure.left.is_set, "having left")
    assert (there.member.board.counts.fell_out, there.incarnation) == (0, 1)
    assert "join anew" not in there.agreement.wished


# --- silence, and errors


def test_a_node_whose_log_hangs_makes_no_progress(running: Make) -> None:
    """Invariant 10: a primary whose workers make no progress stops its heartbeats."""
    there = running(view_of(6, ("n1", "n2", 6)))
    assert there.member.hearing.makes_progress()
    there.log.hangs = lambda seconds: seconds == SLOW.grace_s  # type: ignore[method-assign]
    assert not there.member.hearing.makes_progress()


def test_a_lease_is_passed_on_to_the_point(running: Make) -> None:
    """Invariant 2: answers leave only while it holds."""
    there = running(view_of(6, ("n1", "n2", 6)))
    link, peer = there.link(), Peer("n2", 1)
    link.replace_point().close()
    there.engine.set_commit_points(0, [link.point])
    link.acknowledge()
    assert there.write(0, 20) is Status.NOT_COMMITTED
    from rcache.peers.books import boot_ns

    with there.member.books.lock:
        there.member.books.held.note_sent(peer, 1, boot_ns())
        there.member.books.held.note_grant(peer, 1, int(60e9))
    there.member.hearing.was_granted(Peer("n2", 2))
    link.acknowledge()
    going = Task(lambda: there.write(0, 60_000))
    assert_stays(lambda: not going.is_done, "the answer")
    there.member.hearing.was_granted(peer)
    while not going.is_done:
        link.acknowledge()
    assert going.result() is Status.OK


def test_an_error_of_the_thread_is_counted_and_it_goes_on(running: Make) -> None:
    there = running(view_of(6, ("n1", "", 6)))

    def fail() -> None:
        raise RuntimeError("on purpose")

    there.member.board.post(fail)
    there.take_in(view_of(7, ("n1", "", 6)))
    assert there.member.epoch == 7
    assert there.member.errors == 1
    assert there.member.stats()["unhandled_errors"] == 1
    there.member.board.counts.errors = 0
