"""The control plane as a whole: in what order a view is carried out, and what still waited when it came."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from rcache.cluster.leases import Peer
from rcache.cluster.register import Revised
from rcache.cluster.view import NodeState, Pause
from rcache.engine.change_stream import HELD_FOR_EVER
from rcache.records.record import Kind, decode
from rcache_client.wire.opcodes import Status
from tests.contract.harness import EVERYTHING, PATIENCE_S, Task, assert_stays, wait_until
from tests.member.harness import Clock, copy_into, node
from tests.member.running import ABSENT, FROZEN, PRIMARY, SLOW, Make, view_of

# --- taking a view in


def test_a_view_is_carried_out_in_its_order(running: Make) -> None:
    """Invariants 2, 3, 4: what is not this node's any more is let go of before the view is shown, so that a frame, or a
    heartbeat, of it finds everything in place; what is this node's from now on is opened after that, last of all."""
    there = running(view_of(6, ("n1", "n2", 6), ("n2", "n1", 1), ("n2", "n1", 1), ("n1", "n2", 6)))
    for bucket in (1, 2):
        copy_into(there.engine, bucket, source=there.member.sessions.follows(bucket))
    there.trace.clear()
    pause = Pause("n2", "why not", 60.0, 7)
    settings = replace(SLOW, fsync="always")
    there.take_in(
        view_of(
            7, ("n2", "", 7), ("n2", "", 1), ("n1", "n2", 7), ("n1", "n2", 6), proposer="n2", pause=pause, settings=settings
        )
    )
    order = [
        ("state", 0, FROZEN),
        ("policy", "always"),
        ("replace point", "n2"),
        ("paused", True),
        "pass intakes",
        "pass by",
        ("state", 0, ABSENT),
        ("state", 1, ABSENT),
        ("neighbours", 7, 1),
        ("choose", "n2", [0, 1, 2, 3], 7),
        ("open", (2,), 7),
    ]
    whats = there.trace.whats()
    places = [whats.index(what) for what in order]
    assert places == sorted(places), [whats[place] for place in sorted(places)]
    shown = [there.trace.shown_at(what) for what in order]
    assert shown == [6] * 8 + [7] * 3, "the old view is shown until all of it is let go of"
    followed = [epoch for what, epoch in there.trace if what[0] == "follow"]
    assert followed
    assert set(followed) == {6}
    assert [there.engine.state(bucket) for bucket in range(4)] == [ABSENT, ABSENT, PRIMARY, PRIMARY]
    assert there.engine.epoch == 7
    assert [decode(r).kind for r in there.applied.take(EVERYTHING).records] == [Kind.DROP] * 2


def test_a_bucket_is_opened_after_answers_name_its_view(running: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever still counts on this node as his backup is told the newer epoch before anything changes here under it: with
    `--reads confirmed` that is what keeps an old value back."""
    there = running(view_of(6, ("n2", "n1", 1)))
    copy_into(there.engine, 0, source=there.member.sessions.follows(0))
    named, opening = [], there.engine.open_buckets

    def open_buckets(buckets: Sequence[int], epoch: int, incarnation: int, name: str, wait_s: float) -> None:
        named.append(there.engine.epoch)
        opening(buckets, epoch, incarnation, name, wait_s)

    monkeypatch.setattr(there.engine, "open_buckets", open_buckets)
    there.take_in(view_of(7, ("n1", "", 7), proposer="n1"))
    wait_until(lambda: there.engine.state(0) is PRIMARY, "the bucket to be opened")
    assert named == [7]


def test_views_that_are_none_or_not_newer_or_of_another_cluster_change_nothing(running: Make) -> None:
    first = view_of(6, ("n1", "", 6))
    there = running(first)
    there.trace.clear()
    there.member.hearing.heard_newer_view(b"no view")
    for view in (
        view_of(6, ("n2", "", 6)),
        view_of(5, ("n2", "", 5)),
        replace(view_of(9, ("n2", "", 9)), cluster_id="c2" * 16),
    ):
        there.take_in(view)
    assert there.member.view is first
    assert there.engine.state(0) is PRIMARY
    assert [what for what in there.trace.whats() if what[0] == "state"] == []


def test_a_primary_of_another_incarnation_is_followed_by_its_own_number(running: Make) -> None:
    """Invariant 4: records of its former incarnation apply no more, from before the view is shown."""
    there = running(view_of(6, ("n2", "n1", 1), ("n1", "", 6)))
    old = there.member.sessions.follows(0)
    assert old == there.neighbours.source_of("n2")
    nodes = {"n1": node(), "n2": node(2)}
    there.take_in(view_of(7, ("n2", "", 7), ("n1", "", 6), nodes=nodes, proposer="n2"))
    new = there.neighbours.source_of("n2")
    assert new not in (0, old)
    assert there.member.sessions.follows(0) == new
    follows = [(what[2], epoch) for what, epoch in there.trace if what[0] == "follow" and what[1] == 0]
    assert follows[-2:] == [(0, 6), (new, 7)]
    assert there.member.sessions.follows(99) == 0


def test_the_register_that_is_given_to_it_is_kept_before_the_view_is_shown(running: Make) -> None:
    """Section 7: the heir keeps it; where it holds the view already, as after a takeover, it is not begun again."""
    there = running(view_of(6, ("n1", "", 6), manager="n2"))
    view = view_of(7, ("n1", "", 6), manager="n1", proposer="n2")
    there.take_in(view)
    assert [each.epoch for each in there.own_register.begun] == [7]
    there.take_in(view_of(8, ("n1", "", 6), manager="n1"))
    assert len(there.own_register.begun) == 1
    there = running(view_of(6, ("n1", "", 6), manager="n2"))
    there.own_register.held = Revised(7, view)
    there.take_in(view)
    assert there.own_register.begun == []


def test_the_policy_of_the_cluster_is_followed(running: Make) -> None:
    """Invariants 12 and 1: with fsync always answers wait for this node's own disk as well."""
    there = running(view_of(6, ("n1", "n2", 6), settings=replace(SLOW, fsync="always")))
    assert there.log.policy.value == "always"
    assert there.engine.stream.disk in there.member.board.points_of(0)
    there.take_in(view_of(7, ("n1", "n2", 6)))
    assert there.log.policy.value == "interval"
    assert there.member.board.points_of(0) == [there.link().point]


def test_what_is_answered_under_a_view_with_fsync_always_is_on_the_disk(running: Make) -> None:
    """Invariant 1. Who ordered it is told that it holds as soon as all nodes go by the view: by then what a backup takes in,
    and what a primary answers, waits for the disk. Both are given up again only after the view that allows it is shown."""
    always = replace(SLOW, fsync="always")
    places = ("n1", "n2", 6), ("n2", "n1", 6)
    there = running(view_of(6, *places))
    disk, points = there.engine.stream.disk, list[tuple[int, bool]]()
    set_points = there.engine.set_commit_points

    def set_and_note(bucket, chosen) -> int:  # type: ignore[no-untyped-def]
        points.append((there.member.epoch, disk in chosen))
        return set_points(bucket, chosen)

    there.engine.set_commit_points = set_and_note  # type: ignore[method-assign]
    there.take_in(view_of(7, *places, settings=always))
    assert there.trace.shown_at("demand disk") == 6
    assert points[0] == (6, True)
    assert all(with_disk for _, with_disk in points)
    assert there.link().point in there.member.board.points_of(0), "beside its backup"
    points.clear()
    there.trace.clear()
    there.take_in(view_of(8, *places))
    assert "demand disk" not in there.trace.whats()
    assert points
    assert set(points) == {(8, False)}


def test_a_node_that_joins_says_that_it_is_ready_once_it_has_opened_what_it_has(running: Make) -> None:
    nodes = {"n1": node(state=NodeState.JOINING), "n2": node()}
    there = running(view_of(6, ("n1", "", 6), nodes=nodes))
    assert not there.member.is_ready
    assert there.agreement.wished == ["be ready"]
    there.agree()
    assert there.member.is_ready


def test_whoever_waits_for_a_view_goes_on_once_it_was_shown(running: Make) -> None:
    """Invariant 4: a frame of a newer view waits until that was taken in."""
    there = running(view_of(6, ("n1", "", 6)))
    waiting = Task(lambda: there.member.sessions.await_epoch(7, 10 * PATIENCE_S))
    assert_stays(lambda: not waiting.is_done, "the wait")
    there.take_in(view_of(7, ("n1", "", 6)))
    assert waiting.result()
    assert not there.member.sessions.await_epoch(8, 0.0)
    waiting = Task(lambda: there.member.sessions.await_epoch(8, 10 * PATIENCE_S))
    assert_stays(lambda: not waiting.is_done, "the wait")
    there.stop()
    waiting.result()
    assert waiting.is_done, "nothing comes any more"


def test_a_session_is_told_what_this_node_has_of_a_primarys(running: Make) -> None:
    """Invariant 7: what is not whole is told as nothing, so it is dropped and made anew."""
    there = running(view_of(6, ("n2", "n1", 1), ("n2", "n1", 1), ("n2", "", 1), ("n1", "", 6)))
    sequence = copy_into(there.engine, 0, source=there.member.sessions.follows(0))
    packed = there.member.sessions.sequences_for("n2")
    assert packed == b"".join(b.to_bytes(4, "big") + s.to_bytes(8, "big") for b, s in ((0, sequence), (1, 0)))


def test_buckets_whose_counters_ran_out_are_opened_anew(running: Make) -> None:
    there = running(view_of(6, ("n1", "", 6), ("n2", "", 6), manager=None))
    there.member.reopen([0, 1])
    there.settle()
    assert there.agreement.wished == ["open 2 buckets anew"]
    view = there.agree()
    assert [placed.opened for placed in view.placements] == [7, 6]
    wait_until(lambda: ("open", (0,), 7) in there.trace.whats(), "the opening")


def test_views_in_between_do_not_hide_that_a_primary_is_silent(running: Make, clock: Clock) -> None:
    """Section 7: what counts is when its last heartbeat was granted something, and no view that has nothing to do with it. A
    heartbeat of another view is granted nothing, and says all the same that it lives."""
    places = ("n2", "n1", 6), ("n1", "", 6), ("n3", "", 6), ("n3", "", 6)
    there = running(view_of(6, *places))
    given = there.member.books.given
    grace = 90.0

    def answered(epoch: int) -> Status:
        return there.member.sessions.answer_heartbeat("n2", epoch, 1)[0]

    with there.member.books.lock:
        given.welcome(Peer("n2", 1), clock.boot_ns())
    clock.advance(10)
    assert answered(6) is Status.OK
    for epoch in (7, 8, 9):
        clock.advance(25)
        there.take_in(view_of(epoch, *places, proposer="n3"))
    assert not given.is_overdue("n2", clock.boot_ns())
    clock.advance(grace - 75)
    assert given.is_overdue("n2", clock.boot_ns())
    assert answered(8) is Status.STALE_VIEW
    assert not given.is_overdue("n2", clock.boot_ns()), "it lives, and is behind"
    clock.advance(grace)
    assert answered(8) is Status.STALE_VIEW
    assert given.is_overdue("n2", clock.boot_ns()), "it goes on without what was agreed"
    assert answered(10) is Status.VIEW_AHEAD
    assert not given.is_overdue("n2", clock.boot_ns()), "it is this node that is behind"
    clock.advance(grace)
    assert given.is_overdue("n3", clock.boot_ns())
    there.take_in(view_of(11, *places[:3], ("n3", "n1", 6), proposer="n3"))
    assert given.is_overdue("n2", clock.boot_ns())
    assert not given.is_overdue("n3", clock.boot_ns()), "whom this node is to hear of from now on"


# --- what still waited


def test_a_bucket_that_stays_never_answers_alone_while_another_is_taken_away(running: Make) -> None:
    """Invariants 1 and 2: what still waits for the backups of what was taken is not known to be committed; what this node
    keeps waits for other points of the same backups before the old ones are let go of, and for a lease of its own."""
    others = [("n2", "n1", 6)] * 2  # so that nothing is to be balanced
    there = running(view_of(6, ("n1", "n2", 6), ("n1", "n2", 6), *others))
    link = there.link()
    found: list[Status] = []
    old = link.point
    abandon = old.abandon

    def abandon_and_try() -> None:
        abandon()
        found.append(there.write(1, 20))

    old.abandon = abandon_and_try
    head = there.engine.stream.head
    waiting = Task(lambda: there.write(1, 60_000))
    wait_until(lambda: there.engine.stream.head > head, "the write")
    there.take_in(view_of(7, ("n2", "", 7), ("n1", "n2", 6), *others, proposer="n2"))
    assert waiting.result() is Status.NOT_COMMITTED, "n2 may never have had it"
    assert found == [Status.NOT_COMMITTED], "at no moment does it wait for nobody"
    link.acknowledge()
    assert there.write(1, 20) is Status.NOT_COMMITTED, "no lease yet"
    link.point.lease(HELD_FOR_EVER)
    going = Task(lambda: there.write(1, 60_000))
    while not going.is_done:
        link.acknowledge()
    assert going.result() is Status.OK


def test_what_is_taken_away_is_not_known_to_be_committed(running: Make) -> None:
    there = running(view_of(6, ("n1", "n2", 6)))
    head = there.engine.stream.head
    waiting = Task(lambda: there.write(0, 60_000))
    wait_until(lambda: there.engine.stream.head > head, "the write")
    there.take_in(view_of(7, ("n2", "", 7), proposer="n2"))
    assert waiting.result() in (Status.NOT_COMMITTED, Status.NOT_PRIMARY)
    assert there.write(0, 20) is Status.NOT_PRIMARY


def test_a_backup_that_a_view_dropped_sets_the_waiting_free(running: Make) -> None:
    """Invariant 1: of every in-sync backup in the view. The view says that it is none any more."""
    there = running(view_of(6, ("n1", "n2", 6)))
    head = there.engine.stream.head
    waiting = Task(lambda: there.write(0, 60_000))
    wait_until(lambda: there.engine.stream.head > head, "the write")
    nodes = {"n1": node(), "n2": node(state=NodeState.LOST), "n3": node()}
    there.take_in(view_of(7, ("n1", "", 6), nodes=nodes))
    assert waiting.result() is Status.OK


def test_who_stops_has_no_broken_copies(running: Make) -> None:
    """It has left, and the view that says so is on its way: nothing is to be made anew for it, and nothing is an error."""
    there = running(view_of(6, ("n1", "n2", 6)))
    link = there.neighbours.known["n2"].link
    there.member.hearing.was_refused(link, Status.SHUTTING_DOWN, ("this node stops",))
    there.member.hearing.was_refused(link, Status.BROKEN_CHAIN, ("it does not fit",))
    wait_until(lambda: there.member.board.counts.broken_chains > 0, "the broken chain to be counted")
    assert there.member.board.counts.broken_chains == 1
