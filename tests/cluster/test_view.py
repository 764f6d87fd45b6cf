"""Views: what must hold of any, and their text."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from rcache.cluster.view import (
    EPOCH_MAX,
    FORMAT,
    BadView,
    NodeState,
    Pause,
    Placement,
    decode_view,
    encode_view,
    faults_of,
)
from tests.cluster.harness import grown, node, one, placed

A, B = Placement("n1", ("n2",), 1), Placement("n2", (), 2)


@pytest.fixture
def facts() -> dict[str, Any]:
    """The text of a view, taken apart."""
    made: dict[str, Any] = json.loads(encode_view(placed(grown(2, 4), A, A, B, A)))
    return made


def test_a_view_is_the_same_after_its_text() -> None:
    view = placed(grown(3, 4), A, A, B, Placement("n3", ("n1", "n2"), 3))
    view = replace(view, pause=Pause("n1", "backup of the disk", 30.0, 4))
    again = decode_view(encode_view(view))
    assert again == view
    assert list(again.nodes) == ["n1", "n2", "n3"]


def test_many_alike_buckets_take_little_text() -> None:
    assert len(encode_view(one(1024))) < 1000


def test_those_that_are_alike_are_one_object() -> None:
    view = decode_view(encode_view(placed(grown(2, 4), A, B, A, B)))
    assert view.placements[0] is view.placements[2]
    assert view.placements[1] is view.placements[3]
    assert view.placements[:2] == (A, B)


def test_what_must_not_be_is_told_of_the_first_bucket(facts: dict[str, Any]) -> None:
    facts["buckets"] = [[1, "n1", [], 1], [1, "n1", ["n1"], 1], [2, "n1", ["n1"], 1]]
    with pytest.raises(BadView, match=r"^bucket 1: somebody has two roles: \('n1', 'n1'\)$"):
        decode_view(json.dumps(facts).encode())


def test_whatever_the_order_its_nodes_were_given_in() -> None:
    view = grown(3)
    assert replace(view, nodes=dict(reversed(view.nodes.items()))) == view
    with pytest.raises(TypeError):
        view.nodes["n4"] = node()  # type: ignore[index]


@pytest.mark.parametrize(
    ("placements", "fault"),
    [
        ((Placement("n1", ("n1",), 1),), "bucket 0: somebody has two roles"),
        ((Placement("n1", ("n2", "n2"), 1),), "bucket 0: somebody has two roles"),
        ((Placement(None, ("n2",), 1),), "bucket 0: backups ('n2',) without a primary"),
        ((A, Placement("n9", (), 1)), "bucket 1: n9 has a role and is not in the view"),
        ((A, Placement("n1", ("n4",), 1)), "bucket 1: n4 has a role and is lost"),
        ((Placement("n3", ("n1",), 1),), "bucket 0: n3 is joining and not alone"),
        ((Placement("n1", ("n3",), 1),), "bucket 0: n3 is joining and not alone"),
        ((Placement("n1", (), 100),), "bucket 0: opened in epoch 100, which is still to come"),
        ((A, A, A), "3 buckets are no power of two"),
        ((), "0 buckets are no power of two"),
    ],
)
def test_what_must_not_be(placements: tuple[Placement, ...], fault: str) -> None:
    view = grown(2)
    nodes = {**view.nodes, "n3": node(state=NodeState.JOINING), "n4": node(state=NodeState.LOST)}
    found = faults_of(replace(view, nodes=nodes, placements=placements))
    assert any(each.startswith(fault) for each in found), found
    with pytest.raises(BadView):
        decode_view(encode_view(replace(view, nodes=nodes, placements=placements)))


def test_who_is_joining_may_recover_alone() -> None:
    view = grown(2)
    assert faults_of(replace(view, nodes={**view.nodes, "n1": node(2, NodeState.JOINING)})) == []


@pytest.mark.parametrize("epoch", [0, EPOCH_MAX + 1])
def test_epochs_have_24_bits(epoch: int) -> None:
    assert faults_of(replace(one(), epoch=epoch)) != []


def test_a_manager_is_one_of_the_nodes() -> None:
    assert faults_of(replace(one(), manager="n9")) == ["the manager n9 is not in the view"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("format", FORMAT + 1),
        ("epoch", -1),
        ("epoch", True),
        ("epoch", 1.0),
        ("cluster_id", 7),
        ("nodes", []),
        ("nodes", {"n1": {}}),
        ("buckets", [[0, "n1", [], 1]]),
        ("buckets", [[1 << 40, "n1", [], 1]]),
        ("buckets", [[1, 5, [], 1]]),
        ("buckets", [[1, "n1", "n2", 1]]),
        ("buckets", [[2, "n1", [], 1], [2, "n1", [], True]]),
        ("buckets", [[2, "n1", [], 1], [2, "n1", [], 1.0]]),
        ("buckets", [[4, "n1", [["n2"]], 1]]),
        ("buckets", 3),
        ("manager", 1),
        ("pause", {"by": "n1"}),
        ("settings", None),
    ],
)
def test_text_that_is_no_view(facts: dict[str, Any], key: str, value: object) -> None:
    with pytest.raises(BadView):
        decode_view(json.dumps({**facts, key: value}).encode())


@pytest.mark.parametrize("value", [-1.0, 0, float("nan"), float("inf"), 10**400, True, "1", None])
def test_lengths_of_time_that_are_none(facts: dict[str, Any], value: object) -> None:
    text = json.dumps({**facts, "settings": {**facts["settings"], "lease_s": value}})
    with pytest.raises(BadView):
        decode_view(text.encode())


def test_text_that_cannot_be_sent(facts: dict[str, Any]) -> None:
    with pytest.raises(BadView):
        decode_view(json.dumps({**facts, "proposer": "\ud800"}).encode())
    with pytest.raises(BadView):
        decode_view(json.dumps(facts).encode("utf-16"))
    with pytest.raises(BadView):
        decode_view(json.dumps({**facts, "epoch": 1 << 64}).encode())


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000])
def test_text_that_is_nothing(text: bytes) -> None:
    with pytest.raises(BadView):
        decode_view(text)


def test_every_fact_is_needed(facts: dict[str, Any]) -> None:
    for key in facts:
        with pytest.raises(BadView):
            decode_view(json.dumps({name: value for name, value in facts.items() if name != key}).encode())
    assert decode_view(json.dumps(facts).encode()).placements == (A, A, B, A)


def test_looking_things_up() -> None:
    view = placed(grown(3, 4), A, A, B, Placement("n3", ("n1", "n2"), 3))
    assert (view.primaries_of("n1"), view.backups_of("n2"), view.copies_of("n2")) == ([0, 1], [0, 1, 3], 4)
    assert view.lacking() == [2]
    leaving = replace(view, nodes={**view.nodes, "n2": node(state=NodeState.LEAVING)})
    assert leaving.lacking() == [0, 1, 2], "who leaves does not count"
    assert leaving.names(NodeState.UP) == ("n1", "n3")
    assert replace(view, epoch=(3 << 18) + 5).term == 3
