"""Plans: from whatever view they lead to one where every bucket has its copies, evenly spread, and then they are empty."""

from __future__ import annotations

import random

import pytest

from rcache.cluster.balance import plan_for, targets
from rcache.cluster.view import NodeState, Placement, View
from rcache.cluster.wishes import join, leave, part, ready, remove
from tests.cluster.harness import by, carry_out, grown, node, one

STEPS_MAX = 400


def settle(view: View, chosen: random.Random, share: float = 1.0) -> tuple[View, int]:
    """Carry plans out until nothing is left to do. Returns the view, and how many copies were made."""
    made = 0
    for _ in range(STEPS_MAX):
        plan = plan_for(view)
        if plan.is_empty:
            return view, made
        before = sum(len(placed.holders) for placed in view.placements) + len(plan.drops)
        view = carry_out(view, plan, chosen, share)
        made += max(0, sum(len(placed.holders) for placed in view.placements) - before + len(plan.drops))
    raise AssertionError(f"still to do after {STEPS_MAX} plans: {plan}")


def copies_made(before: View, after: View) -> int:
    """Copies that are where there were none."""
    return sum(len(set(now.holders) - set(was.holders)) for was, now in zip(before.placements, after.placements, strict=True))


def watch_each_other(placed: Placement, one: str, other: str) -> bool:
    """Whether one of two nodes is a bucket's primary and the other its backup."""
    return {one, other} <= set(placed.holders) and placed.primary in (one, other)


def assert_settled(view: View) -> None:
    """What a plan aims at."""
    pool = targets(view)
    wanted = min(view.settings.backups + 1, len(pool))
    for placed in view.placements:
        assert set(placed.holders) <= set(pool)
        assert len(placed.holders) == wanted
    copies = [view.copies_of(name) for name in pool]
    assert max(copies) - min(copies) <= 1, copies
    primaries = [len(view.primaries_of(name)) for name in pool]
    assert max(primaries) - min(primaries) <= 1, primaries
    assert view.lacking() == [] or wanted <= view.settings.backups


def test_one_node_lacks_nothing_that_could_be_had() -> None:
    view = one()
    assert plan_for(view).is_empty
    assert view.lacking() == list(range(8))


def test_a_second_node_gets_a_copy_of_everything_and_half_of_the_primaries() -> None:
    view, _ = settle(grown(2), random.Random(1))
    assert_settled(view)
    assert len(view.primaries_of("n2")) == 4


@pytest.mark.parametrize("names", range(1, 7))
@pytest.mark.parametrize("backups", [0, 1, 2])
@pytest.mark.parametrize("share", [1.0, 0.3, 0.0])
def test_every_cluster_settles_evenly_however_its_plans_are_interrupted(names: int, backups: int, share: float) -> None:
    chosen = random.Random(names * 100 + backups * 10 + int(share * 10))
    view, _ = settle(grown(names, buckets=16, backups=backups), chosen, share)
    assert_settled(view)


@pytest.mark.parametrize("seed", range(30))
def test_after_any_comings_and_goings_it_settles_again(seed: int) -> None:
    """Nodes join, leave and vanish while plans are half carried out."""
    chosen = random.Random(seed)
    view = grown(chosen.randrange(1, 4), 16, chosen.choice([0, 1, 2]))
    following = 100
    for _ in range(25):
        view = carry_out(view, plan_for(view), chosen, chosen.random())
        up = view.names(NodeState.UP)
        what = chosen.choice(["join", "leave", "vanish", "nothing", "nothing"])
        if what == "join" and len(view.nodes) < 7:
            following += 1
            view = ready(join(view, by(f"n{following}"), node(state=NodeState.JOINING), recovers=False), by(f"n{following}"))
        elif what == "leave" and len(up) > 1:
            view = leave(view, by("operator"), chosen.choice(up))
        elif what == "vanish" and len(up) > 1:
            gone = chosen.choice(up)
            if all(placed.holders != (gone,) for placed in view.placements):
                for other in [name for name in view.nodes if name != gone]:
                    if any(watch_each_other(placed, gone, other) for placed in view.placements):
                        view = part(view, by(other), gone)
    view, _ = settle(view, chosen, 0.5)
    assert_settled(view)
    for name in view.names(NodeState.LEAVING, NodeState.LOST):
        if name not in targets(view) and name != view.manager:
            view = remove(view, by("operator"), name)


@pytest.mark.parametrize("names", [2, 3, 4, 5])
def test_a_newcomer_takes_its_share_and_no_more_is_copied(names: int) -> None:
    view, _ = settle(grown(names, 64), random.Random(names))
    name = f"n{names + 1}"
    before = ready(join(view, by(name), node(state=NodeState.JOINING), recovers=False), by(name))
    after, _ = settle(before, random.Random(names), 0.5)
    assert_settled(after)
    assert copies_made(before, after) == after.copies_of(name), "nothing was copied but to the newcomer"
    assert after.copies_of(name) == 128 // (names + 1)


def test_who_leaves_is_emptied_and_only_what_it_had_is_copied() -> None:
    view, _ = settle(grown(4, 64), random.Random(4))
    before = leave(view, by("operator"), "n2")
    had = view.copies_of("n2")
    after, _ = settle(before, random.Random(5), 0.4)
    assert_settled(after)
    assert after.copies_of("n2") == 0
    assert had <= copies_made(before, after) <= had + len(view.nodes), "but for what evens out the rest"


def test_where_all_leave_the_last_to_leave_gets_everything() -> None:
    view, _ = settle(grown(3), random.Random(1))
    for name in ("n3", "n1", "n2"):
        view = leave(view, by("operator"), name)
    assert targets(view) == ("n2",)
    view, _ = settle(view, random.Random(2))
    assert {placed.holders for placed in view.placements} == {("n2",)}


def test_what_is_being_filled_is_not_changed_for_something_as_good() -> None:
    view = grown(3)
    filling = dict.fromkeys(range(4), "n3")
    plan = plan_for(view, filling)
    assert plan.fills[:4] == list(filling.items())
    assert plan_for(view, {0: "n9", 99: "n2"}).fills == plan_for(view).fills, "what makes no sense is left"


def test_a_bucket_that_recovers_is_left_alone() -> None:
    view = join(grown(2), by("n1"), node(2, NodeState.JOINING), recovers=True)
    assert plan_for(view).is_empty
    view, _ = settle(ready(view, by("n1")), random.Random(1))
    assert_settled(view)


def test_lost_buckets_are_nobodys_plan() -> None:
    view = join(grown(2), by("n1"), node(2, NodeState.JOINING), recovers=False)
    assert {placed.primary for placed in view.placements} == {None}
    assert plan_for(ready(view, by("n1"))).is_empty
