"""Wishes and the rules between views: each rule is broken once, by hand, and named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from rcache.cluster.transition import faults_between
from rcache.cluster.view import NodeState, Placement, Settings, View
from rcache.cluster.wishes import (
    WishRefused,
    add_backups,
    cede_register,
    declare_lost,
    drop_backups,
    hand_over,
    join,
    leave,
    offer,
    part,
    pause,
    ready,
    remove,
    resume,
    set_settings,
    take_over_register,
)
from tests.cluster.harness import by, grown, node, one, placed

BOTH = Placement("n1", ("n2",), 1)


def two() -> View:
    """n1 is primary and n2 backup of both buckets."""
    return placed(grown(2, 2), BOTH, BOTH)


def three() -> View:
    return placed(grown(3, 2), Placement("n1", ("n2", "n3"), 1), Placement("n2", ("n1", "n3"), 1))


# --- the rules


def after(old: View, *placements: Placement, proposer: str = "n1", **changed: object) -> list[str]:
    """What the rules say of a next view that was made by hand."""
    new = replace(old, epoch=old.epoch + 1, proposer=proposer, placements=placements, **changed)  # type: ignore[arg-type]
    return faults_between(old, new)


def test_nothing_changed_is_no_fault() -> None:
    assert after(two(), BOTH, BOTH) == []


@pytest.mark.parametrize("epoch", [0, 1, 3])
def test_rule_1_epochs_grow(epoch: int) -> None:
    view = replace(two(), epoch=3)
    assert any("after 3" in fault for fault in faults_between(view, replace(view, epoch=epoch)))


def test_rule_1_the_cluster_stays() -> None:
    view = two()
    assert faults_between(view, replace(view, epoch=9, cluster_id="other")) == ["another cluster"]
    assert "4 buckets after 2" in after(view, BOTH, BOTH, BOTH, BOTH)


def test_rule_2_a_new_primary_was_a_backup_in_step() -> None:
    view = placed(grown(3, 2), BOTH, BOTH)
    new = view.epoch + 1
    assert after(view, Placement("n2", (), new), BOTH, proposer="n2") == []
    assert after(view, Placement("n3", (), new), BOTH, proposer="n3") == ["bucket 0: n3 was no backup in step"]
    nodes = {**view.nodes, "n2": node(2, NodeState.JOINING)}
    assert "bucket 0: n2 was no backup in step" in after(view, Placement("n2", (), new), BOTH, nodes=nodes)


def test_rule_3_a_change_of_primary_is_an_epoch() -> None:
    view = two()
    fault = f"bucket 0: n2 is primary from epoch 1 on, in a view of {view.epoch + 1}"
    assert after(view, Placement("n2", ("n1",), 1), BOTH, proposer="n1") == [fault]
    restarted = {**view.nodes, "n1": node(2, NodeState.JOINING)}
    alone = placed(view, Placement("n1", (), 1), Placement("n1", (), 1))
    assert len(after(alone, *alone.placements, nodes=restarted)) == 2, "coming back is one, too"


def test_rule_4_only_the_primary_adds_backups() -> None:
    view = placed(two(), Placement("n1", (), 1), BOTH)
    assert after(view, BOTH, BOTH, proposer="n1") == []
    assert after(view, BOTH, BOTH, proposer="n2") == ["bucket 0: n2 adds backups ['n2'] to what is n1's"]


def test_rule_4_none_in_the_view_that_makes_it_primary() -> None:
    view = placed(grown(3, 2), BOTH, BOTH)
    new = view.epoch + 1
    assert after(view, Placement("n2", ("n1",), new), BOTH, proposer="n1") == [], "but for who gave it up"
    fault = "bucket 0: backups ['n3'] in the view that makes n2 primary"
    assert after(view, Placement("n2", ("n1", "n3"), new), BOTH, proposer="n1") == [fault]


def test_rule_5_who_comes_back_is_no_backup() -> None:
    view = two()
    nodes = {**view.nodes, "n2": node(2, NodeState.UP)}
    assert after(view, BOTH, BOTH, nodes=nodes, proposer="n1") == [
        "bucket 0: n2 has a role under another incarnation",
        "bucket 1: n2 has a role under another incarnation",
    ]


@pytest.mark.parametrize("state", [NodeState.LEAVING, NodeState.LOST, NodeState.JOINING])
def test_rule_6_only_who_is_up_is_made_a_backup(state: NodeState) -> None:
    view = placed(two(), Placement("n1", (), 1), Placement("n1", (), 1))
    nodes = {**view.nodes, "n2": node(1, state)}
    assert any(f"n2 is {state}" in fault or "n2 has a role and is" in fault for fault in after(view, BOTH, BOTH, nodes=nodes))


def test_rule_6_where_all_leave_one_of_them_is() -> None:
    view = placed(two(), Placement("n1", (), 1), Placement("n1", (), 1))
    nodes = {name: node(1, NodeState.LEAVING) for name in view.nodes}
    assert after(view, BOTH, BOTH, nodes=nodes) == []


def test_rule_7_a_last_copy_is_not_forgotten() -> None:
    view = placed(two(), Placement("n2", (), 1), BOTH)
    lost = Placement(None, (), 1)
    assert after(view, lost, BOTH) == ["bucket 0: it loses its last copy, at n2"]
    assert after(view, Placement("n2", (), 1), lost) == ["bucket 1: it loses its last copy, at n1"], "nor while others have it"
    gone = {**view.nodes, "n2": node(1, NodeState.LOST)}
    assert after(view, lost, Placement("n1", (), 1), nodes=gone) == []


def test_rule_7_a_lost_bucket_is_offered_alone() -> None:
    view = placed(two(), Placement(None, (), 1), BOTH)
    new = view.epoch + 1
    assert after(view, Placement("n2", (), new), BOTH, proposer="n2") == []
    assert any("and has backups" in fault for fault in after(view, Placement("n2", ("n1",), new), BOTH, proposer="n2"))
    assert after(view, Placement("n2", (), 1), BOTH, proposer="n2") != [], "and is a new epoch"


def test_rule_8_the_register_is_given_by_its_holder_or_taken_in_a_higher_term() -> None:
    view = two()
    assert after(view, BOTH, BOTH, proposer="n1", manager="n2") == []
    assert after(view, BOTH, BOTH, proposer="n2", manager="n2") == ["n2 takes the register from n1 in the same term"]
    taken = replace(view, epoch=1 << 18, proposer="n2", manager="n2")
    assert faults_between(view, taken) == []


# --- nodes


def test_who_joins_has_nothing_yet() -> None:
    view = join(one(), by("n2"), node(), recovers=False)
    assert (view.epoch, view.proposer, view.nodes["n2"].state) == (2, "n2", NodeState.JOINING)
    assert {placed.holders for placed in view.placements} == {("n1",)}
    view = ready(view, by("n2"))
    assert view.nodes["n2"].state is NodeState.UP
    with pytest.raises(WishRefused, match="n2 is up, not joining"):
        ready(view, by("n2"))


def test_who_comes_back_is_listed_once_and_its_roles_are_others() -> None:
    view = three()
    view = join(view, by("n1"), node(2), recovers=True)
    assert list(view.nodes) == ["n1", "n2", "n3"]
    assert view.nodes["n1"].incarnation == 2
    assert [placed.primary for placed in view.placements] == ["n3", "n2"], "the least loaded takes over"
    assert [placed.opened for placed in view.placements] == [view.epoch, 1]
    assert all("n1" not in placed.holders for placed in view.placements)


def test_what_only_its_former_self_had_it_recovers() -> None:
    view = join(one(), by("n1"), node(2), recovers=True)
    assert {(placed.holders, placed.opened) for placed in view.placements} == {(("n1",), view.epoch)}
    assert view.nodes["n1"].state is NodeState.JOINING


def test_who_kept_nothing_has_lost_it() -> None:
    view = join(one(), by("n1"), node(2), recovers=False)
    assert {placed.primary for placed in view.placements} == {None}
    view = offer(ready(view, by("n1")), by("n1"), range(8))
    assert {placed.holders for placed in view.placements} == {("n1",)}


@pytest.mark.parametrize("incarnation", [0, 1])
def test_an_incarnation_does_not_come_twice(incarnation: int) -> None:
    with pytest.raises(WishRefused, match="n1 is in the view under incarnation 1"):
        join(one(), by("n1"), node(incarnation), recovers=True)


def test_leaving_and_being_gone() -> None:
    view = leave(two(), by("operator"), "n2")
    assert view.nodes["n2"].state is NodeState.LEAVING
    with pytest.raises(WishRefused, match="n2 is leaving already"):
        leave(view, by("operator"), "n2")
    with pytest.raises(WishRefused, match="n2 still has 2 buckets"):
        remove(view, by("operator"), "n2")
    view = drop_backups(view, by("n1"), {0: "n2", 1: "n2"})
    assert "n2" not in remove(view, by("operator"), "n2").nodes
    with pytest.raises(WishRefused, match="n1 is up; it must leave first"):
        remove(view, by("operator"), "n1")
    with pytest.raises(WishRefused, match="n9 is not in the view"):
        leave(view, by("operator"), "n9")


def test_who_recovers_does_not_leave_before_it_has() -> None:
    """Else it would be taken for somebody whose buckets are whole and can be copied from it."""
    view = join(one(), by("n1"), node(2), recovers=True)
    with pytest.raises(WishRefused, match="n1 still recovers 8 buckets that nobody else has"):
        leave(view, by("operator"), "n1")
    assert leave(ready(view, by("n1")), by("operator"), "n1").nodes["n1"].state is NodeState.LEAVING
    newcomer = join(one(), by("n2"), node(), recovers=False)
    assert leave(newcomer, by("operator"), "n2").nodes["n2"].state is NodeState.LEAVING


def test_the_registers_holder_is_not_removed() -> None:
    view = hand_over(two(), by("n1"), {0: "n2", 1: "n2"})
    view = leave(drop_backups(view, by("n2"), {0: "n1", 1: "n1"}), by("operator"), "n1")
    with pytest.raises(WishRefused, match="n1 still keeps the register"):
        remove(view, by("operator"), "n1")
    view = cede_register(view, by("n1"), "n2")
    assert remove(view, by("operator"), "n1").manager == "n2"


# --- losing each other


def test_a_backup_takes_over_and_a_primary_goes_on_alone() -> None:
    view = placed(grown(2, 2), BOTH, Placement("n2", ("n1",), 1))
    one_side = part(view, by("n2"), "n1")
    assert one_side.placements == (Placement("n2", (), view.epoch + 1), Placement("n2", (), 1))
    assert one_side.nodes["n1"].state is NodeState.LOST, "nothing is left to it"
    other_side = part(view, by("n1"), "n2")
    assert other_side.placements == (Placement("n1", (), 1), Placement("n1", (), view.epoch + 1))


def test_who_parts_speaks_only_for_what_it_shares() -> None:
    view = three()
    view = part(view, by("n3"), "n1")
    assert view.placements == (Placement("n3", ("n2",), view.epoch), Placement("n2", ("n1", "n3"), 1))
    assert view.nodes["n1"].state is NodeState.UP, "it still has a role"
    with pytest.raises(WishRefused, match="n3 and n1 share no bucket"):
        part(view, by("n3"), "n1")


def test_what_an_operator_declares_lost_goes_to_the_backups_or_is_lost() -> None:
    view = placed(grown(2, 2), BOTH, Placement("n1", (), 1))
    view = declare_lost(view, by("operator"), "n1")
    assert [placed.primary for placed in view.placements] == ["n2", None]
    assert view.nodes["n1"].state is NodeState.LOST
    with pytest.raises(WishRefused, match="bucket 0 is not lost"):
        offer(view, by("n2"), [0, 1])
    assert offer(view, by("n2"), [1]).placements[1].holders == ("n2",)


# --- roles


def test_a_copy_is_counted_in_instead_of_another() -> None:
    view = placed(grown(3, 4), BOTH, BOTH, BOTH, Placement("n1", ("n3",), 1))
    new = add_backups(view, by("n1"), {0: "n3", 1: "n3", 3: "n3"}, {0: "n2", 2: "n2", 3: "n3"})
    assert new.placements == (
        Placement("n1", ("n3",), 1),
        Placement("n1", ("n2", "n3"), 1),
        BOTH,  # nothing is counted in
        Placement("n1", ("n3",), 1),  # it was there already, and stays
    )


def test_a_handed_over_bucket_has_its_old_primary_as_backup() -> None:
    view = hand_over(two(), by("n1"), {1: "n2"})
    assert view.placements == (BOTH, Placement("n2", ("n1",), view.epoch))


@pytest.mark.parametrize(
    ("wish", "why"),
    [
        (lambda view: hand_over(view, by("n2"), {0: "n1"}), "n2 is not the primary of bucket 0"),
        (lambda view: hand_over(view, by("n1"), {0: "n3"}), "n3 was no backup in step"),
        (lambda view: add_backups(view, by("n2"), {0: "n3"}), "n2 is not the primary of bucket 0"),
        (lambda view: add_backups(view, by("n1"), {0: "n9"}), "n9 has a role and is not in the view"),
        (lambda view: add_backups(view, by("n1"), {9: "n3"}), "n1 is not the primary of bucket 9"),
        (lambda view: drop_backups(view, by("n1"), {}), "it asks for nothing"),
        (lambda view: pause(view, by("n1"), "", 0), "a pause of 0 s"),
        (lambda view: pause(view, by("n1"), "", 1e9), "a pause of 1e"),
        (lambda view: resume(view, by("n1")), "nothing is paused"),
        (lambda view: cede_register(view, by("n2"), "n2"), "n1 keeps the register, not n2"),
        (lambda view: take_over_register(view, by("n2"), "n3"), "n1 keeps the register, not n3"),
        (lambda view: part(view, by("n9"), "n1"), "n9 is not in the view"),
    ],
)
def test_what_cannot_be_wished(wish: Callable[[View], View], why: str) -> None:
    with pytest.raises(WishRefused, match=why):
        wish(placed(grown(3, 2), BOTH, BOTH))


# --- the cluster


def test_pausing_and_resuming() -> None:
    view = pause(two(), by("n2"), "moving the disks", 30.0)
    assert view.pause is not None
    assert (view.pause.by, view.pause.reason, view.pause.seconds, view.pause.epoch) == (
        "n2",
        "moving the disks",
        30.0,
        view.epoch,
    )
    assert resume(view, by("n1")).pause is None


def test_settings_are_the_clusters() -> None:
    assert set_settings(two(), by("n2"), Settings(2, 3.0)).settings == Settings(2, 3.0)


def test_taking_the_register_over_is_a_term() -> None:
    view = take_over_register(two(), by("n2"), "n1")
    assert (view.term, view.manager) == (1, "n2")
    assert take_over_register(view, by("n1"), "n2").term == 2


def test_epochs_end() -> None:
    with pytest.raises(WishRefused, match="used up its epochs"):
        resume(replace(pause(two(), by("n1"), "", 1), epoch=(1 << 24) - 1), by("n1"))
    with pytest.raises(WishRefused, match="used up its terms"):
        take_over_register(replace(two(), epoch=63 << 18), by("n2"), "n1")
