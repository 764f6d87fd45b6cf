"""Leases: by real time nobody takes over while somebody still counts on a grant, whatever clocks and networks do."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable

import pytest

from rcache.cluster.leases import RATE_MARGIN, GivenGrants, HeldLeases, Peer, stretched

MS = 1_000_000
LEASE, GRACE = 1000 * MS, 1500 * MS
P, B = Peer("p", 1), Peer("b", 1)


@pytest.fixture
def held() -> HeldLeases:
    return HeldLeases()


@pytest.fixture
def given() -> GivenGrants:
    return GivenGrants(LEASE, GRACE, 0)


# --- what is held


def test_a_lease_counts_from_when_the_heartbeat_was_sent(held: HeldLeases) -> None:
    held.note_sent(B, 1, 100)
    assert not held.holds(B, 100), "nothing was granted yet"
    held.note_grant(B, 1, LEASE)
    assert held.holds(B, 100 + LEASE - 1)
    assert not held.holds(B, 100 + LEASE)
    assert (held.left_ns(B, 150), held.left_ns(B, 100 + LEASE)) == (LEASE - 50, 0)


def test_answers_may_come_late_and_in_any_order(held: HeldLeases) -> None:
    for number in range(1, 4):
        held.note_sent(B, number, number * 100)
    held.note_grant(B, 3, LEASE)
    held.note_grant(B, 1, 10 * LEASE)
    assert not held.holds(B, 300 + LEASE), "an older one was settled by the newer"


def test_an_answer_is_taken_once_and_to_what_was_sent(held: HeldLeases) -> None:
    held.note_sent(B, 1, 100)
    held.note_grant(B, 7, LEASE)
    assert not held.holds(B, 101)
    held.note_grant(B, 1, LEASE)
    held.note_grant(B, 1, 10 * LEASE)
    assert not held.holds(B, 100 + LEASE)


def test_a_grant_is_of_one_incarnation(held: HeldLeases) -> None:
    held.note_sent(B, 1, 100)
    held.note_grant(B, 1, LEASE)
    again = Peer("b", 2)
    assert not held.holds(again, 101)
    held.note_sent(again, 2, 200)
    assert not held.holds(B, 201), "the former one's is worth nothing any more"
    held.note_grant(B, 1, LEASE)
    held.note_grant(again, 1, LEASE)
    assert not held.holds(again, 201)
    held.note_grant(again, 2, LEASE)
    assert held.holds(again, 201)
    held.forget("b")
    assert not held.holds(again, 201)


# --- what is given


def test_who_is_heard_of_is_not_overdue(given: GivenGrants) -> None:
    assert given.grant(P, 5000 * MS) == LEASE
    assert not given.is_overdue("p", 5000 * MS + GRACE - 1)
    assert given.is_overdue("p", 5000 * MS + GRACE)


def test_who_was_never_heard_of_has_the_grace_from_when_the_view_was_learnt(given: GivenGrants) -> None:
    assert not given.is_overdue("p", GRACE - 1)
    given.learn_view(100 * MS)
    assert not given.is_overdue("p", GRACE)
    assert given.is_overdue("p", 100 * MS + GRACE)


def test_after_a_broken_connection_only_what_was_granted_is_waited_for(given: GivenGrants) -> None:
    given.grant(P, 5000 * MS)
    at = 5000 * MS + stretched(LEASE)
    assert not given.is_overdue("p", at - 1, broken=True)
    assert given.is_overdue("p", at, broken=True)
    assert not given.is_overdue("p", at)
    assert not given.is_overdue("q", 1, broken=True), "of whom nothing was heard the grace is waited for"


def test_whoever_decides_grants_nothing(given: GivenGrants) -> None:
    given.grant(P, 0)
    given.decide("p")
    assert given.grant(P, 100) == 0
    assert not given.has_run_out("p", stretched(LEASE) - 1)
    assert given.has_run_out("p", stretched(LEASE)), "it did not start anew"
    given.settle("p")
    assert given.grant(P, 200) == LEASE
    given.decide("q")
    assert given.grant(Peer("q", 1), 1) == 0, "also of whom nothing was heard yet"


def test_what_a_former_incarnation_was_granted_is_remembered(given: GivenGrants) -> None:
    given.grant(P, 0)
    given.set_lengths(10 * MS, 20 * MS)
    again = Peer("p", 2)
    assert given.grant(again, 50 * MS) == 10 * MS
    assert not given.has_run_out("p", stretched(LEASE) - 1)
    assert given.grant(P, 60 * MS) == 0, "it has gone"
    assert given.has_run_out("nobody", 0)


@pytest.mark.parametrize("grace", [LEASE - 1, LEASE, stretched(LEASE)])
def test_grace_outlasts_a_lease(grace: int) -> None:
    with pytest.raises(ValueError, match="does not outlast"):
        GivenGrants(LEASE, grace, 0)


# --- two nodes, a network and clocks that cannot be trusted


class World:
    """Real time in ns, two nodes with clocks of their own, and a network that delays and loses. P sends heartbeats; B answers,
    and takes over when it may."""

    def __init__(self, seed: int) -> None:
        self.chosen = random.Random(seed)
        self.now = 0
        self.rates = {name: 1 + self.chosen.choice([-1, 1, 0]) * RATE_MARGIN * 0.99 for name in "pb"}
        self.starts = {name: self.chosen.randrange(1 << 40) for name in "pb"}
        self.events: list[tuple[int, int, Callable[[], None]]] = []
        self.count = 0
        self.held = HeldLeases()
        self.given = GivenGrants(LEASE, GRACE, self.clock("b"))
        self.heartbeats = 0
        self.incarnation = 1
        self.asked_at = 0
        self.serves = False
        self.both = 0
        self.takeovers = 0

    def clock(self, name: str) -> int:
        return self.starts[name] + int(self.now * self.rates[name])

    def after(self, delay_ns: int, call: Callable[[], None]) -> None:
        self.count += 1
        heapq.heappush(self.events, (self.now + delay_ns, self.count, call))

    def under_way(self) -> int:
        """How long a message takes, if it comes at all."""
        return self.chosen.choice([1, 10, 100, 700, 3000]) * MS

    def beat(self) -> None:
        self.heartbeats += 1
        number, me = self.heartbeats, Peer("p", self.incarnation)
        self.held.note_sent(B, number, self.clock("p"))
        if self.chosen.random() < 0.8:
            self.after(self.under_way(), lambda: self.answer(me, number))
        self.after(LEASE // 4 if self.chosen.random() < 0.9 else self.chosen.randrange(4 * GRACE), self.beat)

    def answer(self, peer: Peer, number: int) -> None:
        length = self.given.grant(peer, self.clock("b"))
        if length and self.chosen.random() < 0.8:
            self.after(
                self.under_way(), lambda: self.held.note_grant(B, number, length) if peer[1] == self.incarnation else None
            )

    def restart(self) -> None:
        """P starts anew: it holds nothing."""
        self.incarnation += 1
        self.held = HeldLeases()
        self.after(self.chosen.randrange(20 * GRACE), self.restart)

    def watch(self) -> None:
        """B looks whether P is overdue, or is told to be primary whatever it thinks; it decides, asks the register, and serves
        once everything has run out; or is told no."""
        told = self.chosen.random() < 0.02
        if told or self.given.is_overdue("p", self.clock("b"), broken=self.chosen.random() < 0.3):
            self.given.decide("p")
            self.after(self.chosen.randrange(1, 2 * GRACE), self.settled)
        else:
            self.after(self.chosen.randrange(1, 100 * MS), self.watch)

    def settled(self) -> None:
        if self.chosen.random() < 0.3:
            self.given.settle("p")
            self.after(1, self.watch)
        elif self.given.has_run_out("p", self.clock("b")):
            self.serves, self.takeovers = True, self.takeovers + 1
            self.after(self.chosen.randrange(1, GRACE), self.give_back)
        else:
            self.after(MS, self.settled)

    def give_back(self) -> None:
        self.serves = False
        self.given.settle("p")
        self.given.learn_view(self.clock("b"))
        self.after(1, self.watch)

    def run(self, seconds: int) -> None:
        self.beat()
        self.watch()
        self.after(self.chosen.randrange(20 * GRACE), self.restart)
        while self.events and self.now < seconds * 1000 * MS:
            self.now, _, call = heapq.heappop(self.events)
            call()
            if self.serves and self.held.holds(B, self.clock("p")):
                self.both += 1


@pytest.mark.parametrize("seed", range(40))
def test_two_nodes_never_both_serve(seed: int) -> None:
    world = World(seed)
    world.run(600)
    assert world.both == 0
    assert world.takeovers > 0, "it came to that"


def count_from_later(_world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lease is counted from half of it after its heartbeat was sent."""
    right = HeldLeases.note_sent

    def wrong(held: HeldLeases, peer: Peer, heartbeat: int, now_ns: int) -> None:
        right(held, peer, heartbeat, now_ns + LEASE // 2)

    monkeypatch.setattr(HeldLeases, "note_sent", wrong)


def do_not_wait(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A takeover that does not wait for what was granted."""
    monkeypatch.setattr(world.given, "has_run_out", lambda _name, _now_ns: True)


def grant_on(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Grants go on while it is decided."""
    monkeypatch.setattr(world.given, "decide", lambda _name: None)


@pytest.mark.parametrize("spoil", [count_from_later, do_not_wait, grant_on])
def test_that_test_sees_what_it_is_for(
    spoil: Callable[[World, pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    both = 0
    for seed in range(40):
        world = World(seed)
        with monkeypatch.context() as spoilt:
            spoil(world, spoilt)
            world.run(600)
        both += world.both
    assert both > 0


def test_a_name_that_comes_back_by_another_data_directory_is_granted_to_again() -> None:
    """Its incarnations count from 1 again; what was granted to the one before is remembered by the name all the same."""
    given = GivenGrants(1000, 1500, 0)
    assert given.grant(Peer("p", 7), 100) == 1000
    assert given.grant(Peer("p", 1), 200) == 0, "a former incarnation, as long as no view names it"
    given.welcome(Peer("p", 1))
    assert not given.has_run_out("p", 200)
    assert given.grant(Peer("p", 1), 300) == 1000
    assert given.grant(Peer("p", 2), 400) == 1000
