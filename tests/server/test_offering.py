"""Lost buckets: what a node tells of its files, and how it has buckets begin again: from there, or empty by name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from rcache.cluster.view import NodeState, Placement
from rcache.records.record import make_sequence
from rcache.server.node_answers import Refusal
from rcache.stream.old_files import Held
from rcache_client.wire.opcodes import Status
from tests.server.steered import SOON_S, Play, Plays, three

LOST = three(("n1", ("n2",)), (None, ()), ("n2", ()), (None, ()))
"""Buckets 1 and 3 are lost."""

HOLE = "missing link: 5.3 is not there"
WITHDRAWN = ("withdraw", [1])


def held(bucket: int, counter: int = 20, items: int = 4, why: str = "", let_go: str = "let go of by n1") -> Held:
    return Held(bucket, make_sequence(5, counter), 1000 * bucket, items, let_go, why)


@pytest.fixture
def lost(play: Plays) -> Play:
    """n1, whose files hold bucket 1."""
    begun = play(LOST)
    begun.files.there = {1: held(1)}
    return begun


def trace(play: Play) -> list[Any]:
    return play.member.offers.trace


# --- files


def test_a_node_tells_what_its_files_hold(lost: Play) -> None:
    lost.files.there[3] = held(3, why=HOLE, items=0, let_go="")
    told = lost.order("files", buckets=[3, 0, 1])
    assert told == {
        "node": "n1",
        "held": [
            {"bucket": 1, "end": "5.20", "as_of_ms": 1000, "whole": True, "items": 4, "let_go": True, "why": ""},
            {"bucket": 3, "end": "5.20", "as_of_ms": 3000, "whole": False, "items": 0, "let_go": False, "why": HOLE},
        ],
    }
    assert trace(lost) == [("sync",)], "what was let go of a moment ago is in the files first"


def test_of_no_bucket_nothing_is_read(lost: Play) -> None:
    assert lost.order("files", buckets=[])["held"] == []
    assert lost.files.reads == 0


def test_files_are_told_of_where_the_log_has_failed_too(lost: Play) -> None:
    lost.member.offers.log_fails = True
    assert len(lost.order("files", buckets=[1])["held"]) == 1


@pytest.mark.parametrize("buckets", [None, 1, [4], [-1], ["1"], [True], [1, 1], [1.0]])
def test_buckets_are_numbers_of_buckets(lost: Play, buckets: object) -> None:
    status, why = lost.refused("files", buckets=buckets)
    assert (status, "buckets" in why) == (Status.BAD_ARGUMENT, True)


def test_files_that_cannot_be_read_are_no_answer(lost: Play) -> None:
    """Nothing found would pass for nothing there."""
    lost.files.fault = OSError(5, "Input/output error")
    for order in ({"verb": "files", "buckets": [1]}, {"verb": "renew", "recover": [[1, "5.20"]], "epoch": lost.member.epoch}):
        status, why = lost.refused(order.pop("verb"), **order)  # type: ignore[arg-type]
        assert (status, "cannot be read" in why) == (Status.NOT_ALLOWED, True)


def test_files_are_not_read_for_who_does_not_wait(lost: Play) -> None:
    assert lost.refused("files", 0.0, buckets=[1])[0] is Status.DEADLINE_PASSED


# --- renew


def test_what_files_hold_is_in_and_on_the_disk_before_it_is_asked_for(lost: Play) -> None:
    """Invariant 11; and invariant 7: a node that knows its copy to be incomplete never asks for the bucket."""
    lost.member.offers.after_sync = lambda: trace(lost).append(lost.member.view.placements[1].primary)
    answer = lost.order("renew", recover=[[1, "5.20"]], epoch=lost.member.epoch)
    assert trace(lost) == [("claim", [1], False), ("put", 1), ("sync",), None]
    now = lost.member.view
    assert (now.placements[1], now.placements[3].primary) == (Placement("n1", (), now.epoch), None)
    assert answer["recovered"] == [{**lost.order("files", buckets=[1])["held"][0]}]
    assert (answer["renewed"], answer["failed"], answer["epoch"]) == ([], [], now.epoch)


def test_a_bucket_begins_empty_only_where_it_is_named(lost: Play) -> None:
    assert lost.order("renew", empty=[3], epoch=lost.member.epoch)["renewed"] == [3]
    assert trace(lost) == [("claim", [3], True), ("sync",)]
    assert [each.primary for each in lost.member.view.placements] == ["n1", None, "n2", "n1"]
    assert lost.files.reads == 0


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({}, "name the lost buckets"),
        ({"recover": [], "empty": []}, "name the lost buckets"),
        ({"recover": [1]}, "each with the end of its chain"),
        ({"recover": [[1, 520]]}, "each with the end of its chain"),
        ({"recover": [[4, "5.20"]]}, "from 0 to 3"),
        ({"recover": [[1, "5.20"], [1, "5.20"]]}, "twice"),
        ({"recover": [[1, "5.20"]], "empty": [1]}, "to be recovered, and empty as well"),
        ({"empty": [3], "epoch": None}, "epoch is None"),
        ({"empty": [3], "epoch": True}, "epoch is True"),
        ({"empty": [3], "epoch": 0}, "epoch is 0"),
    ],
)
def test_an_order_to_renew_says_what_and_how(lost: Play, fields: dict[str, Any], told: str) -> None:
    status, why = lost.refused("renew", **{"epoch": lost.member.epoch, **fields})
    assert (status, told in why) == (Status.BAD_ARGUMENT, True), why
    assert trace(lost) == []


@pytest.mark.parametrize(
    ("there", "told"),
    [
        ({}, "hold nothing of it"),
        ({1: held(1, why="missing link: 5.3 is not there")}, "is not whole: missing link: 5.3"),
        ({1: held(1, counter=21)}, "up to 5.21, not 5.20"),
        ({1: held(1, counter=19)}, "up to 5.19, not 5.20"),
    ],
)
def test_only_what_was_told_before_is_brought_back(lost: Play, there: dict[int, Held], told: str) -> None:
    """What was chosen may not be the longest any more."""
    lost.files.there = there
    status, why = lost.refused("renew", recover=[[1, "5.20"]], epoch=lost.member.epoch)
    assert (status, told in why) == (Status.NOT_ALLOWED, True), why
    assert trace(lost) == [("withdraw", [])]


@pytest.mark.parametrize("trouble", ["no memory", "a file that was changed"])
def test_what_cannot_be_put_in_stays_lost_and_the_others_come_back(lost: Play, trouble: str) -> None:
    lost.files.there[3] = held(3)
    (lost.member.offers.full if trouble == "no memory" else lost.files.damaged).add(1)
    answer = lost.order("renew", recover=[[1, "5.20"], [3, "5.20"]], epoch=lost.member.epoch)
    assert [each["bucket"] for each in answer["failed"]] == [1]
    assert [each["bucket"] for each in answer["recovered"]] == [3]
    assert trace(lost) == [("claim", [1], False), WITHDRAWN, ("claim", [3], False), ("put", 3), ("sync",)]
    assert [each.primary for each in lost.member.view.placements] == ["n1", None, "n2", "n1"]


def test_what_another_order_brings_back_is_left_to_it(lost: Play) -> None:
    lost.member.offers.refused = {1}
    assert "being brought back here already" in lost.refused("renew", recover=[[1, "5.20"]], epoch=lost.member.epoch)[1]
    assert trace(lost) == [("withdraw", [])]


def test_a_log_that_fails_before_all_is_on_the_disk_has_nothing_asked_for(lost: Play) -> None:
    lost.member.offers.log_fails = True
    assert "no space" in lost.refused("renew", recover=[[1, "5.20"]], epoch=lost.member.epoch)[1]
    assert trace(lost)[-1] == WITHDRAWN


def test_what_the_view_refuses_is_let_go_of(lost: Play) -> None:
    def taken() -> None:
        placements = list(LOST.placements)
        placements[1] = Placement("n3", (), lost.member.epoch)
        lost.member.view = replace(lost.member.view, placements=tuple(placements))

    lost.member.offers.after_sync = taken
    with pytest.raises(Refusal, match="NOT_ALLOWED"):
        lost.order("renew", recover=[[1, "5.20"]], epoch=lost.member.epoch)
    assert trace(lost)[-1] == WITHDRAWN


def test_what_is_refused_after_the_order_has_ended_is_let_go_of_then(lost: Play) -> None:
    """Until it is settled the copy stays: the view may still name this node."""
    lost.member.is_silent = True
    assert lost.refused("renew", SOON_S, recover=[[1, "5.20"]], epoch=lost.member.epoch)[0] is Status.VIEW_UNSETTLED
    assert WITHDRAWN not in trace(lost)
    ((make, done),) = lost.member.waiting
    lost.member.settle(make, done)
    assert trace(lost)[-1] == WITHDRAWN
    assert lost.member.view.placements[1].primary is None


def test_a_node_that_is_not_up_or_another_by_now_is_given_nothing(play: Plays) -> None:
    joins = replace(LOST, nodes={**LOST.nodes, "n1": replace(LOST.nodes["n1"], state=NodeState.LEAVING)})
    leaving = play(joins)
    assert "n1 is leaving, not up" in leaving.refused("renew", empty=[3], epoch=leaving.member.epoch)[1]
    anew = play(LOST)
    anew.member.incarnation = 7
    assert "not up as it was" in anew.refused("renew", empty=[3], epoch=anew.member.epoch)[1]
    assert trace(anew)[-1] == ("withdraw", [3])


def test_a_bucket_that_was_lost_again_is_looked_for_again(play: Plays) -> None:
    """It was renewed by another order, written to, and lost again: other files have more of it than the order knows."""
    placements = (*LOST.placements[:3], Placement(None, (), LOST.epoch))
    again = play(replace(LOST, placements=placements))
    why = again.refused("renew", empty=[3], epoch=LOST.epoch - 1)[1]
    assert f"bucket 3 was lost again after epoch {LOST.epoch - 1}" in why
    assert again.order("renew", empty=[3], epoch=LOST.epoch)["renewed"] == [3]


def test_a_node_that_leaves_reads_nothing_and_asks_for_nothing(lost: Play) -> None:
    """Its stop waits for orders; and what it would bring back nobody would give it."""
    lost.member.departure.is_leaving = True
    assert lost.refused("files", buckets=[1]) == (Status.NOT_ALLOWED, "n1 is leaving")
    assert lost.refused("renew", recover=[[1, "5.20"]], epoch=lost.member.epoch)[1] == "n1 is leaving"
    assert trace(lost) == [("withdraw", [])]


def test_what_is_not_in_when_the_time_is_over_is_let_go_of(lost: Play) -> None:
    assert lost.refused("renew", 0.0, empty=[3], epoch=lost.member.epoch)[0] is Status.DEADLINE_PASSED
    assert trace(lost) == [("claim", [3], True), ("withdraw", [3])]


def test_a_view_that_this_node_has_not_heard_of_is_waited_for(lost: Play) -> None:
    assert "has not heard of" in lost.refused("renew", empty=[3], epoch=lost.member.epoch + 1)[1]
