"""Leaving: say so, have nothing left, cede the register, be removed; or be the last, and keep everything."""

from __future__ import annotations

from rcache.cluster.view import Node, NodeState, View
from rcache.member.departure import LOST_S, Departure
from tests.member.harness import Clock, Scene, node, view_of

UP, LEAVING, LOST, JOINING = NodeState.UP, NodeState.LEAVING, NodeState.LOST, NodeState.JOINING


class Leaving(Scene):
    def __init__(self, clock: Clock, view: View) -> None:
        super().__init__(clock, view)
        self.departure = Departure(self.board)

    def next(self, view: View | None = None) -> list[str]:
        """What is wished for in this view."""
        if view is not None:
            self.show(view)
            self.departure.follow(view)
        self.departure.look()
        return self.agreement.wished


def three(*states: NodeState) -> dict[str, Node]:
    return {f"n{number}": node(state=state) for number, state in enumerate(states, 1)}


def test_step_by_step_until_it_is_removed(clock: Clock) -> None:
    """Section 5, leaving; and 7: ceding is the holder's last write, and it stays until the heir confirms: who grants the wish
    to be removed keeps the register."""
    scene = Leaving(clock, view_of(6, ("n1", "n2", 6), ("n2", "n1", 6)))
    assert scene.next() == [], "nobody told it to"
    scene.departure.begin()
    assert scene.next() == ["leave"]
    view = scene.agree()
    assert view.nodes["n1"].state is LEAVING
    assert scene.next() == [], "it hands over first; copies and handovers see to that"
    assert scene.next(view_of(8, ("n2", "n1", 8), ("n2", "n3", 6), nodes=view.nodes)) == [], "a copy is left"
    assert scene.next(view_of(9, ("n2", "n3", 8), ("n2", "n3", 6), nodes=view.nodes)) == ["cede the register to n2"]
    view = scene.agree()
    assert view.manager == "n2"
    assert scene.next() == ["be removed"]
    view = scene.agree()
    assert "n1" not in view.nodes
    assert not scene.departure.left.is_set()
    assert scene.next() == []
    assert (scene.departure.left.is_set(), scene.departure.is_last) == (True, False)


def test_who_does_not_keep_the_register_cedes_none(clock: Clock) -> None:
    scene = Leaving(clock, view_of(6, ("n2", "n3", 6), manager=None, nodes=three(LEAVING, UP, UP)))
    scene.departure.begin()
    assert scene.next() == ["be removed"]


def test_the_register_goes_to_a_node_that_is_up_before_one_that_leaves(clock: Clock) -> None:
    scene = Leaving(clock, view_of(6, ("n3", "", 6), nodes=three(LEAVING, LEAVING, UP)))
    scene.departure.begin()
    assert scene.next() == ["cede the register to n3"]
    scene = Leaving(clock, view_of(6, ("n3", "", 6), nodes={**three(LEAVING, LEAVING, LEAVING), "n3": node(1, LEAVING, 6)}))
    scene.departure.begin()
    assert scene.next() == ["cede the register to n2"]


def test_who_is_alone_is_the_last_and_keeps_what_it_has(clock: Clock) -> None:
    scene = Leaving(clock, view_of(6, ("n1", "", 6), nodes={"n1": node()}))
    scene.departure.begin()
    assert (scene.departure.left.is_set(), scene.departure.is_last, scene.agreement.wishes) == (True, True, [])


def test_where_all_leave_the_one_that_was_agreed_last_is_the_last(clock: Clock) -> None:
    """Section 5: it gets everything and saves."""
    nodes = {"n1": node(1, LEAVING, 8), "n2": node(1, LEAVING, 7), "n3": node(1, LOST, 5)}
    scene = Leaving(clock, view_of(8, ("n1", "n2", 6), nodes=nodes))
    scene.departure.begin()
    assert scene.departure.is_last
    nodes = {"n1": node(1, LEAVING, 7), "n2": node(1, LEAVING, 8)}
    scene = Leaving(clock, view_of(8, ("n1", "n2", 6), nodes=nodes))
    scene.departure.begin()
    assert not scene.departure.left.is_set()


def test_who_is_joining_may_leave(clock: Clock) -> None:
    scene = Leaving(clock, view_of(6, ("n2", "", 6), nodes=three(JOINING, UP)))
    scene.departure.begin()
    assert scene.next() == ["leave"]


def test_who_was_taken_for_lost_asks_not_to_be_listed_for_a_moment(clock: Clock) -> None:
    """The cluster went on without it while it was leaving; it has nothing."""
    scene = Leaving(clock, view_of(6, ("n2", "", 6), nodes=three(LOST, UP), manager="n2"))
    scene.departure.begin()
    assert scene.next() == ["be removed"]
    scene.clock.advance(LOST_S)
    scene.next()
    assert not scene.departure.left.is_set()
    scene.clock.advance(0.1)
    scene.next()
    assert (scene.departure.left.is_set(), scene.departure.is_last) == (True, False)


def test_who_can_be_no_member_any_more_stops(clock: Clock) -> None:
    scene = Leaving(clock, view_of(6, ("n2", "", 6)))
    told: list[str] = []
    scene.departure.on_told = told.append
    scene.departure.give_up("the disk is full")
    assert (scene.departure.left.is_set(), told) == (True, ["the disk is full"])


def test_an_operator_drains_it_by_a_view(clock: Clock) -> None:
    """It is told once, and goes on as if it had asked."""
    scene = Leaving(clock, view_of(6, ("n1", "n2", 6)))
    told: list[str] = []
    scene.departure.on_told = told.append
    drained = view_of(7, ("n1", "n2", 6), nodes=three(LEAVING, UP, UP), proposer="cli")
    assert scene.next(drained) == []
    scene.next(drained)
    assert (told, scene.departure.is_leaving) == (["drained by cli"], True)
    assert scene.next(view_of(8, ("n2", "", 8), nodes=drained.nodes, manager="n2")) == ["be removed"]


def test_who_asked_for_it_itself_is_not_told(clock: Clock) -> None:
    scene = Leaving(clock, view_of(6, ("n1", "n2", 6)))
    scene.departure.on_told = lambda _why: (_ for _ in ()).throw(AssertionError("it knows"))
    scene.departure.begin()
    scene.agree()
    scene.next(scene.board.view)


def test_once_it_has_left_nothing_is_wished(clock: Clock) -> None:
    scene = Leaving(clock, view_of(6, ("n1", "", 6), nodes={"n1": node()}))
    scene.departure.begin()
    assert scene.next(view_of(7, ("n1", "n2", 6))) == []
