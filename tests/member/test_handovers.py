"""Buckets that are given up to backups that have all of them: frozen first, and opened again where nothing came of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from rcache.cluster import wishes
from rcache.cluster.bucket_state import BucketState
from rcache.cluster.view import Placement, View
from rcache.cluster.wishes import Asker
from rcache.member.handovers import HANDOVER_BUCKETS, HANDOVER_S, Handovers
from rcache.member.pace import REST_S
from tests.member.harness import Clock, FakeLog, Scene, view_of

FROZEN, PRIMARY = BucketState.FROZEN, BucketState.PRIMARY


class Handing(Scene):
    def __init__(self, clock: Clock, buckets: int = 2, **parts: Any) -> None:
        super().__init__(clock, view_of(6, *[("n1", "n2 n3", 6)] * buckets), **parts)
        self.handovers = Handovers(self.board)

    def states(self) -> set[BucketState]:
        return {self.engine.state(bucket) for bucket in range(self.engine.config.buckets)}

    def agree(self) -> View:
        """The first wish is agreed, and its view carried out before who wished is told."""
        wish, view = self.agreement.agree()
        self.show(view)
        self.handovers.follow(view)
        wish.done("")
        self.drain()
        return view

    def acknowledge_all(self) -> None:
        for name in ("n2", "n3"):
            self.link(name).acknowledge()


@pytest.fixture
def handing(clock: Clock) -> Handing:
    handing = Handing(clock)
    handing.handovers.begin({0: "n2", 1: "n3"})
    return handing


def test_a_bucket_is_frozen_before_anything_is_asked(handing: Handing) -> None:
    """Invariant 3: the wish is this node's word that it gave the bucket up."""
    assert handing.states() == {FROZEN}
    assert (handing.handovers.frozen, handing.handovers.has(0), handing.handovers.has(7)) == (2, True, False)
    handing.handovers.look()
    assert handing.agreement.wishes == [], "not before every backup has all of it"
    assert handing.link("n2").watches > 0


def test_it_is_asked_for_once_every_backup_has_all_of_it(handing: Handing) -> None:
    """Invariant 7: whose last record the new OPEN names is in step."""
    handing.link("n2").acknowledge()
    handing.link("n3").acknowledge(handing.engine.stream.head - 1)
    handing.handovers.look()
    assert handing.agreement.wishes == []
    handing.link("n3").acknowledge()
    handing.handovers.look()
    handing.handovers.look()
    assert handing.agreement.wished == ["hand 2 buckets over"]
    view = handing.agree()
    assert [(placed.primary, placed.backups) for placed in view.placements] == [("n2", ("n1", "n3")), ("n3", ("n1", "n2"))]
    assert handing.states() == {FROZEN}, "until the view was carried out"
    handing.handovers.follow(view)
    assert (handing.handovers.frozen, handing.board.counts.handed_over) == (0, 2)


def test_a_backup_whose_link_is_not_there_has_not_all_of_it(handing: Handing) -> None:
    handing.acknowledge_all()
    del handing.neighbours.known["n3"]
    handing.handovers.look()
    assert handing.agreement.wishes == []


def test_what_is_on_its_way_is_not_begun_again(handing: Handing, clock: Clock) -> None:
    other = Handing(clock, HANDOVER_BUCKETS * 2)
    other.handovers.begin(dict.fromkeys(range(HANDOVER_BUCKETS * 2), "n2"))
    assert other.handovers.frozen == HANDOVER_BUCKETS, "so many at most, lowest first"
    assert other.handovers.has(HANDOVER_BUCKETS - 1)
    other.handovers.begin({HANDOVER_BUCKETS: "n2"})
    assert not other.handovers.has(HANDOVER_BUCKETS)
    assert other.engine.state(HANDOVER_BUCKETS) is PRIMARY
    handing.handovers.begin({})
    assert handing.handovers.frozen == 2


def handed_a_moment_ago(clock: Clock, **parts: Any) -> Handing:
    """Bucket 0 was handed over just now."""
    handing = Handing(clock, **parts)
    handing.handovers.begin({0: "n2"})
    handing.acknowledge_all()
    handing.handovers.look()
    handing.agree()
    return handing


def test_the_next_are_frozen_after_a_rest(clock: Clock) -> None:
    """A cluster that changes its view all the time serves nobody."""
    handing = handed_a_moment_ago(clock)
    handing.board.plan_due_at = clock.now() + 60
    handing.handovers.begin({1: "n3"})
    assert handing.handovers.frozen == 0
    assert handing.board.plan_due_at == pytest.approx(clock.now() + 3 * REST_S), "then it is planned again"
    clock.advance(3 * REST_S + 0.01)
    handing.handovers.begin({1: "n3"})
    assert handing.handovers.frozen == 1


def test_a_node_whose_log_failed_does_not_rest(clock: Clock) -> None:
    """It takes no change any more: what it still has is to be served by others at once."""
    log = FakeLog([])
    handing = handed_a_moment_ago(clock, log=log)
    log.failure = "no space"
    handing.handovers.begin({1: "n3"})
    assert handing.handovers.frozen == 1


def test_only_what_is_open_is_handed_over(clock: Clock) -> None:
    scene = Handing(clock)
    scene.engine.set_state(0, FROZEN)
    scene.handovers.begin({0: "n2"})
    assert scene.handovers.frozen == 0


@pytest.mark.parametrize("how", ["refused", "too slow"])
def test_what_comes_to_nothing_is_opened_again_in_a_later_view(handing: Handing, how: str) -> None:
    """Invariant 3: it stays frozen until a view says whose it is: the answer may only have been lost."""
    if how == "refused":
        handing.acknowledge_all()
        handing.handovers.look()
        handing.show(view_of(7, *[("n1", "", 6)] * 2))  # the heirs have fallen out
        assert "was no backup in step" in handing.refuse()
    else:
        handing.clock.advance(HANDOVER_S)
        handing.handovers.look()
        assert handing.agreement.wishes == []
        handing.clock.advance(0.1)
        handing.handovers.look()
        handing.handovers.look()
    assert handing.states() == {FROZEN}
    assert handing.handovers.frozen == 2
    assert handing.agreement.wished == ["open 2 buckets again"]
    epoch = handing.board.view.epoch
    view = handing.agree()
    assert [placed.opened for placed in view.placements] == [epoch + 1] * 2
    assert handing.states() == {FROZEN}, "the roles open it, in its new epoch"
    assert handing.handovers.frozen == 0


def test_a_handover_of_a_bucket_that_was_opened_since_is_refused(handing: Handing) -> None:
    """Invariant 3: it is not frozen any more. (The wish waited, a view came in between, and the bucket was thawed.)"""
    handing.acknowledge_all()
    handing.handovers.look()
    handing.agreement.view = wishes.reopen(handing.board.view, Asker("n1", "x"), [1])
    assert "bucket 1 was opened in epoch 7, not 6" in handing.agreement.refuse()


def test_what_became_anothers_meanwhile_is_not_taken_back(handing: Handing) -> None:
    """The wish was refused because somebody was quicker: only what is this node's yet, of the same time, is opened again."""
    handing.acknowledge_all()
    handing.handovers.look()
    handing.show(view_of(7, ("n1", "n2", 6), ("n3", "n2", 7), proposer="n3"))
    handing.handovers.follow(handing.board.view)
    assert handing.handovers.frozen == 1
    handing.refuse()
    view = handing.agree()
    assert [(placed.primary, placed.opened) for placed in view.placements] == [("n1", 8), ("n3", 7)]


def test_whoever_is_no_member_any_more_hands_nothing_over(handing: Handing) -> None:
    handing.handovers.forget()
    handing.acknowledge_all()
    handing.handovers.look()
    assert (handing.handovers.frozen, handing.agreement.wishes) == (0, [])


def test_a_node_whose_log_failed_hands_over_what_is_frozen_and_opens_nothing(clock: Clock) -> None:
    log = FakeLog([])
    handing = Handing(clock, log=log)
    log.failure = "no space"
    handing.handovers.begin({0: "n2", 1: "n3"})
    handing.clock.advance(HANDOVER_S + 0.1)
    handing.handovers.look()
    assert (handing.agreement.wishes, handing.handovers.frozen) == ([], 0), "what is frozen stays so"
    assert handing.states() == {FROZEN}
    handing.handovers.begin({0: "n2", 1: "n3"})
    assert handing.handovers.frozen == 2
    assert not handing.handovers.gave_up(0)
    handing.acknowledge_all()
    handing.handovers.look()
    assert handing.agreement.wished == ["hand 2 buckets over"]
    assert handing.handovers.gave_up(0)


def test_what_came_back_with_a_view_that_came_first_is_no_handover_any_more(handing: Handing) -> None:
    """The heir was started anew in a later view, which this node saw before it was told that its own wish was agreed: so it
    never saw that one. (Nothing would be handed over ever after, and a drain not end.)"""
    handing.acknowledge_all()
    handing.handovers.look()
    wish, agreed = handing.agreement.agree()
    later = replace(agreed, epoch=9, placements=(Placement("n1", ("n3",), 8), Placement("n1", ("n2",), 9)))
    handing.show(later)
    handing.handovers.follow(later)
    wish.done("")
    handing.drain()
    assert handing.handovers.frozen == 0
    assert not handing.handovers.has(0)
    assert handing.agreement.wishes == []


def test_what_an_earlier_handover_came_to_is_nothing_to_the_next(clock: Clock) -> None:
    """The first is all the heirs' by its view, and the next begun, before the word that the first was agreed comes in."""
    handing = Handing(clock)
    handing.handovers.begin({0: "n2"})
    handing.acknowledge_all()
    handing.handovers.look()
    wish, agreed = handing.agreement.agree()
    handing.show(agreed)
    handing.handovers.follow(agreed)
    wish.done("")
    handing.board._let_go_of("hand")  # as the control plane does, between two rounds
    clock.advance(3 * REST_S + 0.01)
    handing.handovers.begin({1: "n3"})
    handing.drain()
    assert handing.handovers.has(1)
