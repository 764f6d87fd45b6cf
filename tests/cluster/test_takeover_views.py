"""The view of a takeover: its term and mark, and what becomes of the roles of those that are stopped; and whose wishes views
tell of."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from rcache.cluster.transition import faults_between
from rcache.cluster.view import EPOCH_MAX, TERM_SHIFT, BadView, NodeState, Placement, decode_view, encode_view
from rcache.cluster.wishes import WishRefused, join, pause, remove, resume, take_over_register
from tests.cluster.harness import by, follow, grown, node, placed

LOST, UP = NodeState.LOST, NodeState.UP
VIEW = placed(
    grown(4, 8),
    *(Placement("n1", ("n2",), 1), Placement("n2", ("n1",), 1), Placement("n3", ("n1", "n2"), 1), Placement("n1", (), 1)),
    *(Placement("n1", ("n4",), 1), Placement("n1", ("n2", "n3"), 1), Placement(None, (), 1), Placement("n4", ("n1",), 1)),
)


def test_what_stopped_nodes_had_with_others_goes_to_those_in_the_same_view() -> None:
    """A node that restarts has its part in its files only by a view in which it is alone."""
    asker = by("n2")
    view = follow(VIEW, take_over_register(VIEW, asker, "n1", None, {"n1", "n4"}))
    epoch = 1 << TERM_SHIFT
    assert (view.epoch, view.manager, view.taken, view.nonce) == (epoch, "n2", asker.nonce, asker.nonce)
    assert view.placements[:4] == (
        *(Placement("n2", (), epoch), Placement("n2", (), 1), Placement("n3", ("n2",), 1), Placement("n1", (), 1)),
    )
    assert view.placements[4] == Placement("n1", ("n4",), 1), "nobody is left who has it"
    assert view.placements[5] == Placement("n3", ("n2",), epoch), "by load"
    assert view.placements[6:] == VIEW.placements[6:]
    assert [view.nodes[name].state for name in ("n1", "n2", "n3", "n4")] == [UP, UP, UP, UP], "those have roles left"


def test_who_is_stopped_and_has_nothing_left_is_lost() -> None:
    view = follow(VIEW, take_over_register(VIEW, by("n2"), "n1", None, {"n1"}))
    assert view.nodes["n1"].state is UP, "bucket 3 is nobody else's"
    alone = replace(VIEW, placements=(Placement("n2", ("n1",), 1),) * 8)
    view = follow(alone, take_over_register(alone, by("n2"), "n1", None, {"n1"}))
    assert (view.nodes["n1"].state, view.nodes["n1"].since) == (LOST, view.epoch)


def test_the_last_survivor_recovers_what_is_its_alone_after_a_takeover() -> None:
    """Joining without it would hand its buckets to the dead."""
    view = placed(grown(2, 2), Placement("n1", ("n2",), 1), Placement("n2", ("n1",), 1))
    taken = follow(view, take_over_register(view, by("n2"), "n1", None, {"n1"}))
    joined = follow(taken, join(taken, by("n2"), node(incarnation=2), recovers=True))
    assert [each.holders for each in joined.placements] == [("n2",), ("n2",)]
    wrong = join(view, by("n2"), node(incarnation=2), recovers=True)
    assert wrong.placements[1].primary == "n1"


def test_a_takeover_names_its_term() -> None:
    assert take_over_register(VIEW, by("n2"), "n1", 5).epoch == 5 << TERM_SHIFT
    with pytest.raises(WishRefused, match="used up its terms"):
        take_over_register(VIEW, by("n2"), "n1", (EPOCH_MAX >> TERM_SHIFT) + 1)
    with pytest.raises(WishRefused, match="n9 is not in the view"):
        take_over_register(VIEW, by("n9"), "n1")
    own = follow(VIEW, take_over_register(VIEW, by("n1"), "n1", 2))
    assert (own.manager, own.term) == ("n1", 2)


def test_the_mark_of_a_takeover_stays_to_the_end_of_its_term() -> None:
    """Rule 9."""
    taken = take_over_register(VIEW, by("n2"), "n1")
    later = follow(taken, pause(taken, by("n3"), "r", 1.0))
    assert later.taken == taken.taken
    other = replace(later, taken="another")
    assert any("takeover" in fault for fault in faults_between(taken, other))
    next_term = follow(later, take_over_register(later, by("n3"), "n2"))
    assert next_term.taken != taken.taken


def test_a_view_tells_the_last_wish_of_each_node() -> None:
    first, second, third = by("n1"), by("n2"), by("n1")
    view = resume(pause(pause(VIEW, first, "r", 1.0), second, "r", 1.0), third)
    assert (view.nonces["n1"], view.nonces["n2"]) == (third.nonce, second.nonce)
    assert set(view.nonces) <= set(view.nodes)
    assert decode_view(encode_view(view)) == view
    left = replace(VIEW, nodes={**VIEW.nodes, "n3": node(state=LOST)}, placements=(Placement("n2", (), 1),) * 8)
    gone = remove(left, by("n3"), "n3")
    assert "n3" not in gone.nonces


@pytest.mark.parametrize("change", [{"taken": None}, {"taken": 7}, {"nonces": []}, {"nonces": {"n1": 7}}, {"nonces": None}])
def test_a_view_without_them_is_none(change: dict[str, object]) -> None:
    facts = {**json.loads(encode_view(VIEW)), **change}
    with pytest.raises(BadView):
        decode_view(json.dumps(facts).encode())
