"""A name that another node has by now: what the rules say of two data directories under one name."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rcache.cluster.transition import faults_between
from rcache.cluster.view import Node, NodeState, Placement, View
from rcache.cluster.wishes import WishRefused, declare_lost, join, why_not_its_name
from tests.cluster.harness import by, grown, node, one, placed

OURS, OTHERS = "f" * 32, "e" * 32


def with_node(view: View, name: str, changed: Node, primary: str | None) -> View:
    """The next view, in which that node is another, and has all that it had."""
    placements = tuple(Placement(primary, (), view.epoch + 1) for _ in view.placements)
    return replace(view, epoch=view.epoch + 1, nodes={**view.nodes, name: changed}, placements=placements)


def test_who_comes_under_a_name_does_not_lose_what_another_has_alone_under_it() -> None:
    """A node was stalled and removed, another joined under its name and has everything; the first wakes and joins anew."""
    with pytest.raises(WishRefused, match="n1 of this cluster has another data directory, with the only copy of 8 buckets"):
        join(one(), by("n1"), node(9, files=OTHERS), recovers=False)


def test_a_node_with_another_directory_comes_where_its_former_self_had_nothing_alone() -> None:
    """A machine whose disk is gone is replaced: an operator declared what it had lost, or others have it."""
    view = declare_lost(one(), by("n1"), "n1")
    back = join(view, by("n1"), node(2, files=OTHERS), recovers=False)
    assert (back.nodes["n1"].data_dir_id, back.nodes["n1"].state) == (OTHERS, NodeState.JOINING)
    shared = placed(grown(2, 2), *[Placement("n1", ("n2",), 1)] * 2)
    back = join(shared, by("n1"), node(2, files=OTHERS), recovers=False)
    assert {held.holders for held in back.placements} == {("n2",)}


def test_whose_name_it_is() -> None:
    assert why_not_its_name(one(), "n1", OURS) == ""
    assert why_not_its_name(one(), "n2", OTHERS) == "", "nobody's"
    assert "start it from that one, or say `rcache-cli lost n1`" in why_not_its_name(one(), "n1", OTHERS)


def test_a_last_copy_is_not_lost_by_another_directory() -> None:
    """Rule 7."""
    view = one(2)
    same, other = node(2, NodeState.JOINING), node(2, NodeState.JOINING, files=OTHERS)
    assert faults_between(view, with_node(view, "n1", same, None)) == []
    faults = faults_between(view, with_node(view, "n1", other, None))
    assert faults == [f"bucket {bucket}: it loses its last copy, at n1" for bucket in range(2)]
    lost = replace(other, state=NodeState.LOST)
    assert faults_between(view, with_node(view, "n1", lost, None)) == [], "declared lost"


def test_another_directory_recovers_nothing_of_a_former_self() -> None:
    """Rule 2."""
    view = one(2)
    same, other = node(2, NodeState.JOINING), node(2, NodeState.JOINING, files=OTHERS)
    assert faults_between(view, with_node(view, "n1", same, "n1")) == []
    assert faults_between(view, with_node(view, "n1", other, "n1")) == [
        f"bucket {bucket}: n1 was no backup in step" for bucket in range(2)
    ]


@pytest.mark.parametrize(
    ("incarnation", "files", "fault"),
    [
        (1, OTHERS, "n2 is the same incarnation, 1, of another data directory"),
        (0, OURS, "n2 is incarnation 0 after 1"),
        (0, OTHERS, "n2 is incarnation 0 after 1"),
        (1, OURS, ""),
        (2, OTHERS, ""),
    ],
)
def test_an_incarnation_is_of_one_directory_and_grows(incarnation: int, files: str, fault: str) -> None:
    """Rule 10."""
    view = grown(2)
    changed = replace(view.nodes["n2"], incarnation=incarnation, data_dir_id=files)
    new = replace(view, epoch=view.epoch + 1, nodes={**view.nodes, "n2": changed})
    assert faults_between(view, new) == ([fault] if fault else [])
