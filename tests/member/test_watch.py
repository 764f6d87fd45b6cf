"""Whom this node counts on and who counts on it: when it asks for a view without a peer, and what it grants meanwhile."""

from __future__ import annotations

from typing import Any

import pytest

from rcache.cluster.bucket_state import BucketState
from rcache.cluster.leases import Peer
from rcache.cluster.view import Node, NodeState, View
from rcache.member.watch import FORSAKE_GRACES, Watch
from tests.member.harness import Clock, FakeLog, Scene, copy_into, node, view_of

MINE = view_of(6, ("n1", "n2", 6), ("n1", "", 6))
"""n1 counts on n2."""
THEIRS = view_of(6, ("n2", "n1", 6), ("n1", "", 6))
"""n2 counts on n1."""
NEITHER = view_of(6, ("n1", "", 6), ("n3", "", 6))

LEASE_S, GRACE_S, ACK_S = 1.0, 1.5, 1.0


class Watching(Scene):
    def __init__(self, clock: Clock, view: View, **parts: Any) -> None:
        super().__init__(clock, view, **parts)
        self.watch = Watch(self.board)
        for bucket in view.backups_of("n1"):
            copy_into(self.engine, bucket)
        self.n2 = self.neighbours.known["n2"]
        self.neighbours.known["n3"].heard_at += 1e6  # it is not what this is about

    def grant(self, name: str = "n2") -> int:
        """What a heartbeat of that node is granted now, in ns."""
        with self.board.books.lock:
            return self.board.books.given.grant(Peer(name, 1), self.clock.boot_ns())

    def look_after(self, seconds: float) -> list[str]:
        self.clock.advance(seconds)
        self.watch.look()
        return self.agreement.wished


PART = ["part from n2"]


# --- whom this node counts on


def test_while_a_lease_holds_nobody_is_parted_from(clock: Clock) -> None:
    scene = Watching(clock, MINE)
    scene.hold_lease("n2")
    assert scene.look_after(0.0) == []
    assert scene.look_after(LEASE_S * 0.99) == []


def test_when_its_lease_has_run_out_it_goes_on_without_that_backup(clock: Clock) -> None:
    """Section 7: it stops serving what they share (the engine sees to that), and asks for a view without it."""
    scene = Watching(clock, MINE)
    scene.hold_lease("n2")
    scene.watch.look()
    assert scene.look_after(LEASE_S) == PART
    view = scene.agree()
    assert [placed.holders for placed in view.placements] == [("n1",), ("n1",)]
    assert view.nodes["n2"].state is NodeState.LOST
    assert scene.board.counts.peers_parted == 1


def test_a_backup_that_was_never_heard_yet_is_given_time(clock: Clock) -> None:
    scene = Watching(clock, MINE)
    assert scene.look_after(2 * GRACE_S - 0.01) == []
    assert scene.look_after(0.02) == PART


def test_a_backup_that_owes_an_acknowledgement_for_too_long_is_treated_like_it(clock: Clock) -> None:
    """Invariant 10, though its lease holds."""
    scene = Watching(clock, MINE)
    scene.hold_lease("n2", 60)
    scene.link("n2").owed = ACK_S
    assert scene.look_after(0.0) == []
    scene.link("n2").owed = ACK_S + 0.01
    assert scene.look_after(0.0) == PART


def test_where_nobody_listens_any_more_a_lease_is_not_waited_for(clock: Clock) -> None:
    """Both the link and the heartbeats were refused: it has stopped, and promises nothing to anybody."""
    scene = Watching(clock, MINE)
    scene.hold_lease("n2", 60)
    scene.watch.came_down(scene.link("n2"), refused=False)  # type: ignore[arg-type]
    assert scene.n2.heartbeats.beats == 0  # type: ignore[attr-defined]
    scene.watch.came_down(scene.link("n2"), refused=True)  # type: ignore[arg-type]
    assert scene.n2.heartbeats.beats == 1, "it is looked at once"  # type: ignore[attr-defined]
    assert scene.look_after(0.0) == []
    scene.n2.heartbeats.refused = True
    assert scene.look_after(0.0) == PART


def test_a_lease_is_of_one_incarnation(clock: Clock) -> None:
    """Invariant 4."""
    scene = Watching(clock, MINE)
    scene.hold_lease("n2")
    scene.watch.look()
    scene.n2.peer = Peer("n2", 2)
    scene.n2.ever_held = True
    assert scene.look_after(0.0) == PART


# --- who counts on this node


def test_a_primary_is_parted_from_once_it_was_silent_for_the_whole_grace(clock: Clock) -> None:
    scene = Watching(clock, THEIRS)
    scene.clock.advance(10)
    scene.grant()
    assert scene.look_after(GRACE_S - 0.01) == []
    assert scene.look_after(0.02) == PART
    view = scene.agree()
    assert view.placements[0].holders == ("n1",)


@pytest.mark.parametrize("before", [NEITHER, MINE], ids=["neither", "mine"])
def test_who_learnt_just_now_that_it_is_somebodys_backup_gives_it_the_whole_grace(clock: Clock, before: View) -> None:
    """Section 7: after it received the heartbeat, or after it learnt of the view, whichever is later."""
    scene = Watching(clock, THEIRS)
    scene.clock.advance(10)
    scene.grant()
    scene.clock.advance(GRACE_S - 0.1)
    scene.watch.await_words(before, THEIRS)
    assert scene.look_after(GRACE_S - 0.01) == []
    assert scene.look_after(0.02) == PART


def test_a_view_that_changes_nothing_between_the_two_leaves_the_grace_as_it_was(clock: Clock) -> None:
    """Another node counts copies in, view after view: what a dead primary had would be served by nobody until that ends."""
    scene = Watching(clock, THEIRS)
    scene.clock.advance(10)
    scene.grant()
    for epoch in range(7, 12):
        newer = view_of(epoch, ("n2", "n1", 6), ("n1", "", 6), ("n3", "", epoch))
        scene.watch.await_words(view_of(epoch - 1, ("n2", "n1", 6), ("n1", "", 6), ("n3", "", epoch - 1)), newer)
        if epoch < 11:
            assert scene.look_after(GRACE_S / 5) == []
    assert scene.look_after(GRACE_S / 5) == PART


def test_a_broken_connection_shortens_the_wait_to_what_was_granted_and_no_further(clock: Clock) -> None:
    """Section 7: it proves nothing; the length that was granted is waited for, with a margin for the clocks."""
    scene = Watching(clock, THEIRS)
    scene.clock.advance(10)
    scene.grant()
    scene.n2.ever_heard = True
    assert scene.look_after(LEASE_S) == []
    assert scene.look_after(0.02) == PART


def test_a_connection_that_was_never_there_is_not_broken(clock: Clock) -> None:
    scene = Watching(clock, THEIRS)
    scene.clock.advance(10)
    scene.grant()
    scene.n2.ever_heard = False
    assert scene.look_after(LEASE_S + 0.02) == []
    scene.n2.ever_heard = True
    scene.neighbours.sessions.add("n2")
    assert scene.look_after(0.0) == []


@pytest.mark.parametrize("view", [MINE, THEIRS], ids=["mine", "theirs"])
def test_a_node_whose_log_failed_parts_from_nobody(clock: Clock, view: View) -> None:
    """It would be left alone with what it cannot keep."""
    log = FakeLog([])
    scene = Watching(clock, view, log=log)
    log.failure = "no space"
    assert scene.look_after(60) == []
    log.failure = None
    assert scene.look_after(0) == PART


def test_a_primary_of_what_is_not_whole_here_is_not_parted_from(clock: Clock) -> None:
    """Invariant 7: a node that knows its copy to be incomplete never asks for the bucket."""
    scene = Watching(clock, THEIRS)
    scene.engine.set_state(0, BucketState.ABSENT)
    assert scene.look_after(60) == []
    assert scene.grant() > 0, "nothing was decided"


# --- deciding


def test_from_the_wish_until_it_is_settled_nothing_is_granted(clock: Clock) -> None:
    """Invariant 5: decided under the lock that issues grants, before anything is asked; lifted once the view was read."""
    scene = Watching(clock, THEIRS)
    scene.clock.advance(10)
    assert scene.grant() > 0
    proposed = scene.agreement.propose
    granted: list[int] = []

    def propose(wish):  # type: ignore[no-untyped-def]
        granted.append(scene.grant())
        proposed(wish)

    scene.agreement.propose = propose  # type: ignore[method-assign]
    assert scene.look_after(GRACE_S) == PART
    assert granted == [0], "decided before it was asked"
    scene.clock.advance(60)
    assert scene.grant() == 0, "however long it takes"
    wish, view = scene.agreement.agree()
    scene.show(view)
    assert scene.grant() == 0
    wish.done("")
    assert scene.grant() > 0


def test_a_refused_wish_is_settled_too(clock: Clock) -> None:
    """Invariant 5: the loser reads and obeys."""
    scene = Watching(clock, THEIRS)
    scene.look_after(GRACE_S)
    scene.agreement.view = view_of(7, ("n3", "n2", 7), ("n1", "", 6))
    assert scene.refuse() == "n1 and n2 share no bucket"
    assert scene.grant() > 0


def test_it_asks_once_until_that_is_settled(clock: Clock) -> None:
    scene = Watching(clock, MINE)
    scene.look_after(2 * GRACE_S)
    assert scene.look_after(60) == PART
    assert scene.board.counts.peers_parted == 1


def test_a_peer_that_came_back_meanwhile_is_not_parted_from(clock: Clock) -> None:
    """Its new incarnation is another node: it has lost its roles already."""
    scene = Watching(clock, MINE)
    scene.look_after(2 * GRACE_S)
    nodes = {**MINE.nodes, "n2": node(2)}
    scene.agreement.view = view_of(7, ("n1", "n2", 6), ("n1", "", 6), nodes=nodes)
    assert scene.refuse() == "n2 is another by now"


def test_a_wish_of_a_former_incarnation_of_this_node_is_refused(clock: Clock) -> None:
    """What it knew is not so any more."""
    scene = Watching(clock, MINE)
    scene.look_after(2 * GRACE_S)
    scene.agreement.view = view_of(7, ("n1", "n2", 6), ("n1", "", 6), nodes={**MINE.nodes, "n1": node(2)})
    assert scene.refuse() == "n1 is incarnation 2 by now"


# --- who has nothing


def test_who_has_nothing_and_is_silent_for_long_is_taken_for_lost(clock: Clock) -> None:
    scene = Watching(clock, NEITHER)
    assert scene.look_after(FORSAKE_GRACES * GRACE_S) == []
    assert scene.look_after(0.1) == ["take n2 for lost"]
    assert scene.look_after(0.1) == ["take n2 for lost"]
    assert scene.agree().nodes["n2"].state is NodeState.LOST


@pytest.mark.parametrize("case", ["heard of", "another incarnation"])
def test_who_comes_back_is_not_forsaken(clock: Clock, case: str) -> None:
    scene = Watching(clock, NEITHER)
    if case == "heard of":
        scene.clock.advance(60)
        scene.n2.heard_at = clock.now()
        assert scene.look_after(0.1) == []
        return
    scene.look_after(60)
    nodes: dict[str, Node] = {**NEITHER.nodes, "n2": node(2)}
    scene.agreement.view = view_of(7, ("n1", "", 6), ("n3", "", 6), nodes=nodes)
    assert scene.refuse() == "n2 is another by now"


def test_who_got_a_copy_meanwhile_is_not_forsaken(clock: Clock) -> None:
    scene = Watching(clock, NEITHER)
    scene.look_after(60)
    scene.agreement.view = view_of(7, ("n1", "n2", 6), ("n3", "", 6))
    assert "n2 has 1 copies" in scene.refuse()
