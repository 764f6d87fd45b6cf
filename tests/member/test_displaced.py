"""A node that wakes and finds its name given to another; and losses, which are loud at every node."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from loguru import logger

from rcache.cluster import wishes
from rcache.cluster.bucket_state import BucketState
from rcache.cluster.view import NodeState, View
from tests.contract.harness import wait_until
from tests.member.harness import Clock, Scene, node
from tests.member.running import ABSENT, Make, Running, view_of

OTHERS = "e" * 32


@pytest.fixture
def errors() -> Iterator[list[str]]:
    lines: list[str] = []
    sink = logger.add(lambda text: lines.append(str(text).rstrip("\n")), format="{message}", level="ERROR")
    yield lines
    logger.remove(sink)


def given_away(view: View, incarnation: int, state: NodeState = NodeState.UP) -> View:
    """The view with n1 a node of another data directory."""
    return replace(view, nodes={**view.nodes, "n1": replace(node(incarnation, state), data_dir_id=OTHERS)})


def begun(running: Make) -> Running:
    there = running(view_of(6, ("n1", "n2", 6), ("n2", "n1", 1), manager="n2", nodes={"n1": node(), "n2": node()}))
    there.told = []  # type: ignore[attr-defined]
    there.member.departure.on_told = there.told.append  # type: ignore[attr-defined]
    return there


# --- the name is another's


@pytest.mark.parametrize("incarnation", [1, 2, 9])
@pytest.mark.parametrize("state", [NodeState.UP, NodeState.LOST])
def test_a_node_whose_name_another_has_ends(running: Make, incarnation: int, state: NodeState, errors: list[str]) -> None:
    """Whatever the incarnations: it was stalled, removed, and replaced by one of an empty directory, which began at 1 as well.
    It serves nothing, takes nothing back, and does not ask for ever."""
    there = begun(running)
    there.take_in(given_away(view_of(9, ("n2", "", 7), ("n2", "", 1), manager="n2", proposer="n2"), incarnation, state))
    departure = there.member.departure
    assert there.told == [departure.displaced]  # type: ignore[attr-defined]
    assert "the name n1 belongs to another node by now" in departure.displaced
    assert departure.left.is_set(), "nobody waits for it to hand anything over"
    assert any(line.startswith("DISPLACED: by the view of epoch 9") for line in errors)
    assert [there.engine.state(bucket) for bucket in range(2)] == [ABSENT] * 2
    there.settle()
    assert there.agreement.wished == []
    assert not there.member.is_ready


def test_it_ends_once_however_many_views_come(running: Make, errors: list[str]) -> None:
    there = begun(running)
    for epoch in (9, 10):
        there.take_in(given_away(view_of(epoch, ("n2", "", 7), ("n2", "", 1), manager="n2", proposer="n2"), 1))
    assert len(there.told) == 1  # type: ignore[attr-defined]
    assert sum(line.startswith("DISPLACED") for line in errors) == 1


def test_a_node_that_fell_out_ends_when_its_name_is_given_away(running: Make) -> None:
    """It was out already, and asked to join anew."""
    there = begun(running)
    out = view_of(7, ("n2", "", 7), ("n2", "", 7), nodes={"n2": node()}, manager="n2", proposer="n2")
    there.take_in(out)
    wait_until(lambda: there.agreement.wished == ["join anew"], "the wish")
    there.agreement.view = away = given_away(replace(out, epoch=8), 8)
    assert "belongs to another node by now" in there.agreement.refuse()
    there.take_in(away)
    assert there.member.departure.displaced
    there.settle()
    assert there.agreement.wished == []


def test_a_node_that_was_told_to_stop_does_not_take_the_others_leave(running: Make) -> None:
    """It leaves; the name is given away meanwhile: nothing is left to leave, and the other stays."""
    there = begun(running)
    there.member.leave()
    there.settle()
    assert there.agreement.wished == ["leave"]
    there.agreement.view = away = given_away(view_of(9, ("n2", "", 7), ("n2", "", 7), manager="n2", proposer="n2"), 9)
    assert "belongs to another node by now" in there.agreement.refuse()
    there.take_in(away)
    assert there.member.departure.left.is_set()


# --- what was wished under it


def test_a_wish_is_not_granted_to_another_of_this_nodes_name(clock: Clock) -> None:
    """It was made by what this node knew of its own buckets: the first, awake again, parts the others from what the second
    has, which is where the loss of all data began."""
    view = view_of(6, ("n1", "n2", 6))
    scene = Scene(clock, view)
    scene.board.wish_once("part", "go on without n2", lambda now, asker: wishes.part(now, asker, "n2"))
    scene.agreement.view = given_away(replace(view, epoch=9), 1)
    assert "the name n1 belongs to another node by now" in scene.refuse()


def test_an_order_is_not_granted_to_another_of_this_nodes_name(running: Make) -> None:
    there = begun(running)
    refused: list[str] = []
    there.member.wish("pause", lambda view, asker: wishes.pause(view, asker, "r", 5.0), refused.append)
    there.agreement.view = given_away(replace(there.member.view, epoch=9), 1)
    there.agreement.refuse()
    assert "the name n1 belongs to another node by now" in refused[0]


# --- losses


def test_whatever_loses_data_is_loud(running: Make, errors: list[str]) -> None:
    there = running(view_of(6, ("n2", "", 1), ("n2", "n1", 1), ("n3", "", 1), (None, "", 5)))
    lost = {**there.member.view.nodes, "n2": node(state=NodeState.LOST)}
    there.take_in(view_of(7, (None, "", 7), ("n1", "", 7), ("n3", "", 1), (None, "", 5), nodes=lost, proposer="n3"))
    told = [line for line in errors if line.startswith("LOST")]
    assert len(told) == 1
    assert "by the view of epoch 7, wished by n3, nobody has 1 buckets any more, which n2 had: 0" in told[0]
    there.take_in(view_of(8, (None, "", 7), ("n1", "", 7), ("n3", "", 1), (None, "", 5), nodes=lost, proposer="n3"))
    assert [line for line in errors if line.startswith("LOST")] == told, "what is lost already is not told again"


def test_a_loss_is_told_by_who_is_out_as_well(running: Make, errors: list[str]) -> None:
    there = running(view_of(6, ("n1", "", 6), manager="n2"))
    gone = {"n1": node(state=NodeState.LOST), "n2": node()}
    there.take_in(view_of(7, (None, "", 7), nodes=gone, manager="n2", proposer="n2"))
    assert there.engine.state(0) is BucketState.ABSENT
    assert any(line.startswith("LOST") and "which n1 had: 0" in line for line in errors)
