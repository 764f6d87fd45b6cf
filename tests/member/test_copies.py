"""Copies that this node makes of its buckets: begun by the plan, counted only once they are waited for and leased, dropped
where one is too many."""

from __future__ import annotations

import pytest

from rcache.cluster import wishes
from rcache.cluster.balance import Plan, plan_for
from rcache.cluster.bucket_state import BucketState
from rcache.cluster.view import Node, NodeState, Settings, View
from rcache.cluster.wishes import Asker
from rcache.member.copies import ADD_S, PLAN_EVERY_S, Copies
from rcache.member.handovers import Handovers
from rcache.member.pace import HANDING, REST_S
from rcache.member.roles import Opening
from tests.contract.harness import Caller, Task, assert_stays, wait_until
from tests.member.harness import Clock, FakeLink, Scene, node, view_of

THREE = [("n1", "", 6)] * 3
TWO = {"n1": node(), "n2": node()}


class Copying(Scene):
    """n1 has some buckets alone; n2 is there."""

    def __init__(self, clock: Clock, view: View | None = None, buckets: int = 1) -> None:
        super().__init__(clock, view or view_of(6, *[("n1", "", 6)] * buckets, nodes=TWO))
        self.handovers = Handovers(self.board)
        self.copies = Copies(self.board, self.handovers)
        self.to = self.link("n2")
        self.to.acknowledge()

    def whole(self, *buckets: int) -> None:
        """The link says that these copies are whole."""
        for bucket in buckets:
            self.to.fills[bucket] = True
            self.copies.has_filled(self.to, bucket)  # type: ignore[arg-type]


@pytest.fixture
def copying(clock: Clock) -> Copying:
    copying = Copying(clock)
    copying.copies.look()
    return copying


def write(scene: Scene) -> Task:
    return Task(lambda: Caller(scene.engine).set(b"key", b"value", budget_ms=60_000))


# --- planning


def test_what_lacks_a_copy_is_filled(copying: Copying) -> None:
    assert copying.to.fills == {0: False}
    assert copying.agreement.wishes == []


def test_it_is_planned_again_after_a_while_or_when_something_was_settled(copying: Copying) -> None:
    copying.to.fills.clear()
    copying.copies.look()
    assert copying.to.fills == {}
    copying.clock.advance(PLAN_EVERY_S)
    copying.copies.look()
    assert copying.to.fills == {0: False}


def test_what_is_not_open_is_not_filled(clock: Clock) -> None:
    copying = Copying(clock, buckets=2)
    copying.engine.set_state(0, BucketState.FROZEN)
    copying.copies.look()
    assert set(copying.to.fills) <= {1}


def test_a_copy_that_is_not_wanted_any_more_is_cancelled(copying: Copying) -> None:
    view = copying.board.view
    copying.show(view_of(7, ("n1", "", 6), nodes={"n1": node(), "n2": node(state=NodeState.LEAVING)}))
    copying.copies.plan()
    assert copying.to.cancelled == [0]
    copying.show(view)


def test_a_node_that_is_no_member_plans_nothing(clock: Clock) -> None:
    copying = Copying(clock)
    copying.show(view_of(7, (None, "", 7), nodes={"n2": node()}, manager="n2"))
    copying.copies.plan()
    assert copying.to.fills == {}


def test_what_is_one_too_many_is_dropped_in_a_view(clock: Clock) -> None:
    nodes = {"n1": node(), "n2": node(), "n3": node()}
    copying = Copying(clock, view_of(6, ("n1", "n2 n3", 6), nodes=nodes))
    copying.copies.look()
    assert copying.agreement.wished == ["drop 1 spare copies"]
    assert len(copying.agree().placements[0].backups) == 1


def test_a_spare_copy_that_is_none_any_more_is_not_dropped(clock: Clock) -> None:
    """The other was lost while the wish waited: it would be the last."""
    nodes = {"n1": node(), "n2": node(), "n3": node()}
    copying = Copying(clock, view_of(6, ("n1", "n2 n3", 6), nodes=nodes))
    copying.copies.look()
    dropped = copying.agreement.make().placements[0].backups
    lost = "n2" if "n2" in dropped else "n3"
    copying.agreement.view = wishes.drop_backups(copying.board.view, Asker("n1", "x"), {0: lost})
    assert copying.refuse() == "it asks for nothing"


def test_what_a_leaving_node_is_primary_of_it_hands_over(clock: Clock) -> None:
    nodes = {"n1": node(state=NodeState.LEAVING), "n2": node()}
    copying = Copying(clock, view_of(6, ("n1", "n2", 6), nodes=nodes))
    copying.copies.look()
    assert copying.handovers.has(0)
    assert copying.to.fills == {}


# --- counting in


def test_a_copy_is_waited_for_from_when_it_is_whole(copying: Copying) -> None:
    """Invariant 6: before asking it already waits for that node's acknowledgements."""
    copying.hold_lease("n2")
    copying.whole(0)
    writing = write(copying)
    wait_until(lambda: copying.engine.stream.head > copying.board.adding[0][1], "the write")
    assert copying.board.points_of(0) == [copying.to.point]
    assert_stays(lambda: not writing.is_done, "the answer")
    copying.to.acknowledge()
    writing.result()


def test_a_copy_at_a_node_that_grants_no_lease_is_not_waited_for_yet(copying: Copying) -> None:
    """Without one no answer would leave."""
    copying.whole(0)
    copying.copies.look()
    assert (copying.board.adding, copying.board.points_of(0)) == ({}, [])
    copying.hold_lease("n2")
    copying.copies.look()
    assert copying.board.points_of(0) == [copying.to.point]


def test_a_copy_that_was_whole_and_is_begun_again_is_not_waited_for(copying: Copying) -> None:
    """Invariant 6: it was whole, had no lease yet, and was cancelled; what is being made now was begun later. (Counted in half
    made it is promoted, and what it lacks is lost.)"""
    copying.whole(0)
    copying.copies.look()
    copying.to.cancel(0)
    copying.to.fill(0)
    copying.hold_lease("n2")
    copying.to.acknowledge()
    copying.copies.look()
    assert (copying.board.adding, copying.agreement.wished) == ({}, [])
    copying.whole(0)
    assert 0 in copying.board.adding


def test_copies_of_what_is_anothers_by_now_are_given_up_with_the_view(clock: Clock) -> None:
    """A last portion would go out under its epoch, and clear what the new primary made."""
    copying = Copying(clock, view_of(6, *[("n1", "", 6)] * 2, nodes=TWO))
    copying.copies.plan()
    copying.hold_lease("n2")
    copying.whole(1)
    copying.copies.follow(view_of(7, ("n2", "", 7), ("n2", "", 7), nodes=TWO))
    assert sorted(copying.to.cancelled) == [0, 1]
    assert copying.board.adding == {}


def test_a_copy_of_what_is_opened_anew_is_not_counted_in(copying: Copying) -> None:
    """Its bucket went to another and came back while this node did not look: whoever had the copy has let go of it."""
    copying.hold_lease("n2")
    copying.whole(0)
    copying.board.roles.openings[0] = Opening(8, frozenset(), is_empty=False)
    copying.copies.follow(view_of(8, ("n1", "", 8), nodes=TWO))
    assert (copying.to.cancelled, copying.board.adding) == ([0], {})


def test_copies_of_what_this_node_keeps_go_on_with_the_view(copying: Copying) -> None:
    copying.hold_lease("n2")
    copying.whole(0)
    copying.copies.follow(view_of(8, ("n1", "", 6), nodes=TWO))
    assert copying.to.cancelled == []
    assert 0 in copying.board.adding


def two_wanted(clock: Clock) -> Copying:
    """Two backups are wanted, and there is none."""
    copying = Copying(clock, view_of(6, ("n1", "", 6), settings=Settings(backups=2)))
    for name in ("n2", "n3"):
        copying.hold_lease(name, 60)
        copying.link(name).acknowledge()
    copying.copies.look()
    return copying


def test_copies_of_one_bucket_are_made_one_after_the_other(clock: Clock) -> None:
    """Not begun here, cancelled and begun there with each plan."""
    copying = two_wanted(clock)
    for _ in range(4):
        clock.advance(PLAN_EVERY_S)
        copying.copies.look()
    first, second = sorted((copying.link(name) for name in ("n2", "n3")), key=lambda link: not link.fills)
    assert (first.fills, first.cancelled) == ({0: False}, [])
    assert (second.fills, second.cancelled) == ({}, [])


def test_a_copy_that_may_be_counted_in_by_now_is_waited_for_beside_another_that_is_whole(clock: Clock) -> None:
    """Invariant 6: until it is settled. (The view counts it in, a change is acknowledged by the other alone, and it is
    promoted.)"""
    copying = two_wanted(clock)
    first, second = sorted((copying.link(name) for name in ("n2", "n3")), key=lambda link: not link.fills)
    first.fills[0] = True
    copying.copies.has_filled(first, 0)  # type: ignore[arg-type]
    clock.advance(ADD_S)
    copying.copies.look()
    assert copying.agreement.wished == ["count 1 copies in"]
    second.fills[0] = True
    copying.copies.has_filled(second, 0)  # type: ignore[arg-type]
    assert copying.board.points_of(0) == [first.point]
    copying.agree()
    copying.copies.look()
    assert copying.board.points_of(0) == [first.point, second.point]


def test_a_copy_at_a_node_that_falls_silent_is_let_go_of_before_it_was_asked_for(copying: Copying) -> None:
    copying.hold_lease("n2")
    copying.to.acknowledge(0)
    copying.whole(0)
    copying.clock.advance(1.1)
    copying.copies.look()
    copying.clock.advance(2 * 1.5)
    copying.copies.look()
    assert 0 in copying.board.adding
    copying.clock.advance(0.1)
    copying.copies.look()
    assert (copying.board.adding, copying.to.cancelled, copying.board.points_of(0)) == ({}, [0], [])
    write(copying).result()


@pytest.mark.parametrize("leased", [False, True])
@pytest.mark.parametrize("acknowledged", [-1, 0])
def test_it_is_asked_for_only_past_the_head_and_with_the_lease(copying: Copying, leased: bool, acknowledged: int) -> None:
    """Invariant 6: else it is counted in, misses a change that was acknowledged without it, and is promoted."""
    copying.to.acknowledge(0)
    copying.hold_lease("n2")
    copying.whole(0)
    copying.to.acknowledged = copying.board.adding[0][1] + acknowledged
    if not leased:
        copying.clock.advance(1.0)
    watches = copying.to.watches
    copying.copies.look()
    may = leased and acknowledged == 0
    assert copying.agreement.wished == (["count 1 copies in"] if may else [])
    assert (copying.to.watches > watches) is not may, "it is told of the next acknowledgement"


def test_it_is_asked_for_with_what_was_there_when_it_began_to_be_waited_for(copying: Copying) -> None:
    """Invariant 6: what is acknowledged of the link says nothing of the bucket before that."""
    copying.hold_lease("n2")
    Caller(copying.engine).set(b"key", b"value")
    copying.whole(0)
    copying.copies.look()
    assert copying.agreement.wishes == [], "this change was not acknowledged yet"
    copying.to.acknowledge()
    copying.copies.look()
    assert copying.agreement.wished == ["count 1 copies in"]


def test_it_is_waited_for_until_that_is_settled(copying: Copying) -> None:
    """Invariant 6, and 5: an answer that is late may still count it in."""
    copying.whole(0)
    copying.hold_lease("n2")
    copying.copies.look()
    copying.copies.look()
    assert copying.agreement.wished == ["count 1 copies in"]
    copying.copies.plan()
    assert copying.to.cancelled == []
    assert copying.board.points_of(0) == [copying.to.point]
    wish, view = copying.agreement.agree()
    assert view.placements[0].backups == ("n2",)
    copying.show(view)
    copying.to.choose([0], 7)
    wish.done("")
    copying.drain()
    assert copying.board.adding == {}
    assert copying.board.points_of(0) == [copying.to.point], "by the view now"
    assert copying.to.cancelled == []


def test_a_copy_that_was_refused_is_let_go_of_and_made_anew(copying: Copying) -> None:
    copying.whole(0)
    copying.hold_lease("n2")
    copying.copies.look()
    copying.agreement.view = view_of(7, ("n1", "", 6), nodes={"n1": node(), "n2": node(2)})
    assert copying.refuse() == "n2 is another by now"
    assert copying.to.cancelled == [0]
    assert (copying.board.adding, copying.board.points_of(0)) == ({}, [])
    writing = write(copying)
    writing.result()


def test_a_copy_of_a_bucket_that_was_opened_since_is_refused(copying: Copying) -> None:
    """Invariant 6: it was whole for a former time of this primary."""
    copying.whole(0)
    copying.hold_lease("n2")
    copying.copies.look()
    copying.agreement.view = wishes.reopen(copying.board.view, Asker("n1", "x"), [0])
    assert copying.refuse() == "bucket 0 was opened in epoch 7, not 6"
    assert copying.to.cancelled == [0]


def three_whole(clock: Clock) -> Copying:
    """Copies of buckets 0 and 1 at n2 and of 2 at n3 are asked for; 3 has one."""
    copying = Copying(clock, view_of(6, *THREE, ("n1", "n3", 6), nodes={"n1": node(), "n2": node(), "n3": node()}))
    copying.board.pace.rest(HANDING, 1000)  # nothing is handed over meanwhile
    copying.copies.plan()
    n3 = copying.link("n3")
    n3.acknowledge()
    for link in (copying.to, n3):
        link.fills.clear()
        copying.hold_lease(link.peer.name, 60)
    copying.whole(0, 1)
    n3.fills[2] = True
    copying.copies.has_filled(n3, 2)  # type: ignore[arg-type]
    copying.copies.look()
    assert copying.agreement.wished == ["count 3 copies in"]
    return copying


def agree_and_choose(copying: Copying) -> View:
    """The wish is agreed, and the links follow the view before who wished is told."""
    wish, view = copying.agreement.agree()
    copying.show(view)
    for name in ("n2", "n3"):
        copying.link(name).choose([b for b, placed in enumerate(view.placements) if name in placed.holders], view.epoch)
    wish.done("")
    copying.drain()
    return view


def test_one_bucket_that_was_opened_since_does_not_stand_in_the_way_of_the_others(clock: Clock) -> None:
    """Or all that was filled would be thrown away, as often as one of many changes."""
    copying = three_whole(clock)
    copying.agreement.view = wishes.reopen(copying.board.view, Asker("n1", "x"), [1])
    view = agree_and_choose(copying)
    assert [placed.backups for placed in view.placements] == [("n2",), (), ("n3",), ("n3",)]
    assert copying.to.cancelled == [1]
    assert copying.link("n3").cancelled == []
    assert copying.board.adding == {}


@pytest.mark.parametrize("n2", [None, node(2), node(state=NodeState.LEAVING)], ids=["gone", "another", "leaving"])
def test_one_node_that_went_does_not_stand_in_the_way_of_copies_at_another(clock: Clock, n2: Node | None) -> None:
    copying = three_whole(clock)
    nodes = {"n1": node(), "n3": node()} | ({"n2": n2} if n2 is not None else {})
    copying.agreement.view = view_of(7, *THREE, ("n1", "n3", 6), nodes=nodes)
    view = agree_and_choose(copying)
    assert [placed.backups for placed in view.placements] == [(), (), ("n3",), ("n3",)]
    assert sorted(copying.to.cancelled) == [0, 1]
    assert copying.link("n3").cancelled == []


def test_copies_are_counted_in_together_but_not_for_long(clock: Clock) -> None:
    copying = Copying(clock, buckets=4)
    copying.copies.look()
    assert len(copying.to.fills) >= 2
    first, *_ = copying.to.fills
    copying.whole(first)
    copying.hold_lease("n2", 60)
    copying.copies.look()
    assert copying.agreement.wishes == [], "more are being made"
    copying.clock.advance(ADD_S)
    copying.copies.look()
    assert copying.agreement.wished == ["count 1 copies in"]


def whole_twice(clock: Clock, view: View, rest_s: float) -> Copying:
    """A copy of bucket 0 is counted in, and at once one of bucket 1 is whole, too; so long after it is looked."""
    copying = Copying(clock, view)
    copying.to = copying.link("n3")
    copying.hold_lease("n3", 60)
    for bucket in (0, 1):
        copying.to.fills = {bucket: True}
        copying.to.acknowledge()
        copying.whole(bucket)
        if bucket == 1:
            clock.advance(rest_s)
        copying.to.acknowledge()
        copying.copies._count_in()
        if bucket == 0:
            assert copying.agreement.wished == ["count 1 copies in"]
            copying.agree()
    return copying


def test_they_are_counted_in_again_after_a_rest(clock: Clock) -> None:
    nodes = {"n1": node(), "n2": node(), "n3": node(), "n4": node(state=NodeState.LOST)}
    view = view_of(6, *[("n1", "n2", 6)] * 2, nodes=nodes, settings=Settings(backups=2))
    assert whole_twice(clock, view, 2 * REST_S).agreement.wishes == []
    assert whole_twice(clock, view, 3 * REST_S + 0.01).agreement.wished == ["count 1 copies in"], "a lost node counts for none"


def test_what_has_no_backup_at_all_does_not_rest(clock: Clock) -> None:
    nodes = {"n1": node(), "n2": node(), "n3": node()}
    copying = whole_twice(clock, view_of(6, *[("n1", "", 6)] * 2, nodes=nodes), 0.0)
    assert copying.agreement.wished == ["count 1 copies in"]


def test_while_one_copy_of_a_bucket_may_be_counted_in_no_other_is_begun(clock: Clock) -> None:
    """Two of one bucket get in each other's way: one is told of, and the other forgotten."""
    copying = two_wanted(clock)
    first, second = sorted((copying.link(name) for name in ("n2", "n3")), key=lambda link: not link.fills)
    first.fills[0] = True
    copying.copies.has_filled(first, 0)  # type: ignore[arg-type]
    clock.advance(ADD_S)
    copying.copies.look()
    assert copying.agreement.wished == ["count 1 copies in"]
    nodes = {"n1": node(), "n2": node(), "n3": node(), first.peer.name: node(state=NodeState.LEAVING)}
    copying.show(view_of(7, ("n1", "", 6), nodes=nodes, settings=Settings(backups=2)))
    for _ in range(3):
        clock.advance(PLAN_EVERY_S)
        copying.copies.look()
        assert (second.fills, 0 in copying.board.adding) == ({}, True)
    assert "leaving" in copying.refuse()
    clock.advance(PLAN_EVERY_S)
    copying.copies.look()
    assert (first.cancelled, second.fills) == ([0], {0: False})


def test_a_whole_copy_that_nobody_waits_for_is_found(clock: Clock) -> None:
    """It was told of while another one of its bucket was, which came to nothing. (Its link has it, so it is not begun again; it
    is never counted in, and a node that leaves keeps the bucket for ever.)"""
    copying = two_wanted(clock)
    first = next(link for link in (copying.link("n2"), copying.link("n3")) if link.fills)
    first.fills[0] = True
    clock.advance(PLAN_EVERY_S)
    copying.copies.look()
    clock.advance(ADD_S)
    copying.copies.look()
    assert copying.agreement.wished == ["count 1 copies in"]


@pytest.mark.parametrize("when", ["before it is asked for", "while it is"])
def test_a_copy_that_breaks_is_not_counted_in_instead_of_one_that_is_whole(clock: Clock, when: str) -> None:
    """The bucket would be left without a backup once the broken one is dropped."""
    nodes = {"n1": node(), "n2": node(state=NodeState.LEAVING), "n3": node()}
    copying = Copying(clock, view_of(6, ("n1", "n2", 6), nodes=nodes))
    copying.to = copying.link("n3")
    copying.copies.look()
    copying.to.acknowledge()
    copying.hold_lease("n3", 60)
    copying.whole(0)
    if when == "while it is":
        copying.copies.look()
        assert copying.agreement.wished == ["count 1 copies in"]
    copying.copies.found_no_room(copying.to)  # type: ignore[arg-type]
    if when == "while it is":
        assert copying.refuse() == "it is broken"
    assert copying.refuse() == "it asks for nothing" or copying.board.view.placements[0].backups == ("n2",)
    assert copying.board.adding == {}


def test_what_is_handed_over_does_not_depend_on_what_is_being_copied_here(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two primaries that each count with copies of their own hand a bucket to each other, as long as the copies take."""
    asked: list[object] = []

    def plan(view: View, filling: object = None) -> Plan:
        asked.append(filling)
        return plan_for(view, filling)  # type: ignore[arg-type]

    monkeypatch.setattr("rcache.member.copies.plan_for", plan)
    copying = Copying(clock, buckets=2)
    copying.copies.look()
    assert asked == [{}]
    clock.advance(PLAN_EVERY_S)
    asked.clear()
    copying.copies.look()
    assert asked == [dict.fromkeys(copying.to.fills, "n2"), None]


def test_a_copy_that_is_one_too_many_goes_with_the_view_that_counts_another_in(clock: Clock) -> None:
    """One view for each bucket of a node that leaves, not two."""
    nodes = {"n1": node(), "n2": node(state=NodeState.LEAVING), "n3": node()}
    copying = Copying(clock, view_of(6, ("n1", "n2", 6), ("n1", "n2", 6), nodes=nodes))
    copying.to = copying.link("n3")
    copying.copies.look()
    assert copying.to.fills == {0: False, 1: False}
    copying.to.acknowledge()
    copying.hold_lease("n3", 60)
    copying.whole(0)
    clock.advance(ADD_S)
    copying.copies.look()
    clock.advance(ADD_S)
    copying.copies.look()
    assert [placed.backups for placed in agree_and_choose(copying).placements] == [("n3",), ("n2",)]


def test_spare_copies_are_dropped_again_after_a_rest(clock: Clock) -> None:
    nodes = {"n1": node(), "n2": node(), "n3": node()}
    copying = Copying(clock, view_of(6, ("n1", "n2 n3", 6), nodes=nodes))
    copying.copies.look()
    copying.agree()
    copying.show(view_of(8, ("n1", "n2 n3", 6), nodes=nodes))
    copying.copies.look()
    assert copying.agreement.wishes == []
    clock.advance(3 * REST_S + 0.01)
    copying.copies.look()
    assert copying.agreement.wished == ["drop 1 spare copies"]


def test_what_is_frozen_is_asked_for_before_copies_are_counted_or_dropped(clock: Clock) -> None:
    """It waits for the answer to every wish that was asked for before, and its writes with it."""
    nodes = {"n1": node(), "n2": node(), "n3": node()}
    placed = (("n1", "n2", 6), ("n1", "n2 n3", 6), ("n1", "", 6), *[("n2", "n3", 6)] * 3, *[("n1", "n3", 6)] * 2)
    copying = Copying(clock, view_of(6, *placed, nodes=nodes))
    for name in ("n2", "n3"):
        copying.hold_lease(name, 60)
        copying.link(name).acknowledge()
    copying.copies.look()
    assert copying.agreement.wished == ["drop 1 spare copies"]
    assert copying.handovers.frozen == 0, "not while this node waits for the answer to a wish"
    copying.agree()
    copying.copies.plan()
    assert copying.handovers.is_coming
    filled = next(copying.link(name) for name in ("n2", "n3") if 2 in copying.link(name).fills)
    filled.fills[2] = True
    filled.acknowledge()
    copying.copies.has_filled(filled, 2)  # type: ignore[arg-type]
    clock.advance(60)
    copying.hold_lease(filled.peer.name, 60)
    copying.copies.look()
    copying.copies._drop({1: "n3"})
    assert copying.agreement.wishes == []
    for name in ("n2", "n3"):
        copying.link(name).acknowledge()
    copying.handovers.look()
    copying.copies.look()
    assert [wished.split()[0] for wished in copying.agreement.wished] == ["hand", "count"]


def test_a_node_that_leaves_makes_no_copy_of_what_it_is_about_to_hand_over(clock: Clock) -> None:
    """Its heir makes it, from the beginning."""
    nodes = {"n1": node(state=NodeState.LEAVING), "n2": node(), "n3": node()}
    copying = Copying(clock, view_of(6, ("n1", "n2", 6), ("n1", "", 6), nodes=nodes))
    copying.copies.look()
    assert {bucket for name in ("n2", "n3") for bucket in copying.link(name).fills} == {1}


@pytest.mark.parametrize("why", ["cancelled", "another link", "not open"])
def test_a_late_word_of_a_copy_says_nothing(copying: Copying, why: str) -> None:
    link: FakeLink = copying.to
    if why == "cancelled":
        link.fills.clear()
    elif why == "another link":
        copying.neighbours.add("n2", 2)
    else:
        copying.show(view_of(7, ("n2", "", 7), nodes=TWO, proposer="n2"))
    copying.copies.has_filled(link, 0)  # type: ignore[arg-type]
    assert copying.board.adding == {}


# --- trouble


def test_where_what_was_sent_does_not_fit_all_copies_there_are_made_anew(clock: Clock) -> None:
    """Invariant 7: the primary first drops the backup in a view, and only then may it clear and be filled anew."""
    copying = Copying(clock, view_of(6, ("n1", "n2", 6), ("n1", "", 6), ("n2", "n1", 6), ("n2", "", 6), nodes=TWO))
    copying.copies.look()
    copying.to.fills[1] = True
    copying.copies.has_filled(copying.to, 1)  # type: ignore[arg-type]
    copying.copies.are_broken(copying.to, "does not follow on")  # type: ignore[arg-type]
    assert (copying.board.counts.broken_chains, copying.board.adding) == (1, {})
    assert 1 in copying.to.cancelled
    view = copying.agree()
    assert view.placements[0].backups == ()
    assert view.placements[2].backups == ("n1",), "what is n2's is not this node's to drop"
    copying.neighbours.add("n2", 2)
    copying.copies.are_broken(copying.to, "late")  # type: ignore[arg-type]
    assert copying.board.counts.broken_chains == 1
