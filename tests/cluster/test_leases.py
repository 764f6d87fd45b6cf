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


@pytest.mark.parametrize("how", ["named for the first time", "made primary"])
def test_who_is_to_be_heard_of_has_the_grace_from_when_the_view_was_learnt(given: GivenGrants, how: str) -> None:
    given.grant(P, 10 * MS)
    if how == "made primary":
        given.await_word("p", 100 * MS)
    else:
        given.welcome(Peer("p", 2), 100 * MS)
    assert not given.is_overdue("p", 100 * MS + GRACE - 1)
    assert given.is_overdue("p", 100 * MS + GRACE)
    given.await_word("p", 50 * MS)
    assert given.is_overdue("p", 100 * MS + GRACE), "time does not go back"


def test_who_was_never_heard_of_and_never_named_has_the_grace_from_the_start(given: GivenGrants) -> None:
    assert not given.is_overdue("p", GRACE - 1)
    assert given.is_overdue("p", GRACE)


def test_a_heartbeat_of_an_older_view_is_a_word_once(given: GivenGrants) -> None:
    """Views come quickly, and P is always one behind: it lives. But a P that goes on by one old view is silent."""
    given.grant(P, 0)
    for epoch in (5, 6, 7):
        now_ns = (epoch - 4) * 1000 * MS
        given.note_other_view(P, epoch, now_ns, newer=False)
        assert not given.is_overdue("p", now_ns + GRACE - 1)
    for again in (7, 6):
        given.note_other_view(P, again, 4000 * MS, newer=False)
    assert given.is_overdue("p", 3000 * MS + GRACE)
    assert given.has_run_out("p", stretched(LEASE)), "it was granted nothing"


def test_a_heartbeat_of_a_newer_view_is_a_word_always(given: GivenGrants) -> None:
    """It is this node that is behind."""
    given.grant(P, 0)
    for now_ns in (1000 * MS, 2000 * MS):
        given.note_other_view(P, 9, now_ns, newer=True)
    assert not given.is_overdue("p", 2000 * MS + GRACE - 1)
    given.note_other_view(P, 9, 2100 * MS, newer=False)
    assert not given.is_overdue("p", 2100 * MS + GRACE - 1), "as the older one that it is by now"


def test_a_word_of_another_incarnation_counts_for_nothing(given: GivenGrants) -> None:
    given.grant(P, 0)
    given.note_other_view(Peer("p", 2), 5, 1000 * MS, newer=False)
    given.note_other_view(Peer("q", 1), 5, 1000 * MS, newer=True)
    assert given.is_overdue("p", GRACE)
    assert given.is_overdue("q", GRACE)


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
    and takes over when it may. Views come every `views_ns` or so, and each node learns of them when it does."""

    def __init__(self, seed: int, views_ns: int = 5 * GRACE) -> None:
        self.chosen = random.Random(seed)
        self.now = 0
        self.rates = {name: 1 + self.chosen.choice([-1, 1, 0]) * RATE_MARGIN * 0.99 for name in "pb"}
        self.starts = {name: self.chosen.randrange(1 << 40) for name in "pb"}
        self.events: list[tuple[int, int, Callable[[], None]]] = []
        self.count = 0
        self.held = HeldLeases()
        self.given = GivenGrants(LEASE, GRACE, self.clock("b"))
        self.heartbeats = 0
        self.epochs = dict.fromkeys("pb", 1)
        self.newest = 1
        self.views_ns = views_ns
        self.dies_at = 0  # when P does, if it does for good
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

    def view(self) -> None:
        """The next view; who is slow learns of it after the one behind it."""
        self.newest += 1
        for name in "pb":
            self.after(self.under_way(), lambda name=name, epoch=self.newest: self.learn(name, epoch))  # type: ignore[misc]
        self.after(self.chosen.randrange(1, 2 * self.views_ns), self.view)

    def learn(self, name: str, epoch: int) -> None:
        if name == "b" or not self.is_dead:
            self.epochs[name] = max(self.epochs[name], epoch)

    @property
    def is_dead(self) -> bool:
        return bool(self.dies_at) and self.now >= self.dies_at

    def beat(self) -> None:
        if self.is_dead:
            return
        self.heartbeats += 1
        number, me, epoch = self.heartbeats, Peer("p", self.incarnation), self.epochs["p"]
        self.held.note_sent(B, number, self.clock("p"))
        if self.chosen.random() < 0.8:
            self.after(self.under_way(), lambda: self.answer(me, number, epoch))
        self.after(LEASE // 4 if self.chosen.random() < 0.9 else self.chosen.randrange(4 * GRACE), self.beat)

    def answer(self, peer: Peer, number: int, epoch: int) -> None:
        if epoch != self.epochs["b"]:
            self.given.note_other_view(peer, epoch, self.clock("b"), newer=epoch > self.epochs["b"])
            return
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
        if self.is_dead:
            return
        self.serves = False
        self.given.settle("p")
        self.given.await_word("p", self.clock("b"))
        self.after(1, self.watch)

    def run(self, seconds: int) -> None:
        self.beat()
        self.watch()
        self.after(self.views_ns, self.view)
        if not self.dies_at:
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


@pytest.mark.parametrize("seed", range(10))
def test_views_that_come_all_the_time_do_not_hide_that_a_node_is_dead(seed: int) -> None:
    """Another node counts copies in, a view each quarter of a second; what was the dead one's waits for none of them."""
    world = World(seed, views_ns=250 * MS)
    world.dies_at = 20 * GRACE
    slowest = 3000 * MS  # a heartbeat that was still under way
    overdue: list[bool] = []

    def look() -> None:
        overdue.append(world.given.is_overdue("p", world.clock("b")))
        world.after(100 * MS, look)

    world.after(world.dies_at + slowest + int(GRACE * (1 + RATE_MARGIN)), look)
    world.run(60)
    assert len(overdue) > 100
    assert all(overdue)
    assert world.both == 0


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
    given.welcome(Peer("p", 1), 200)
    assert not given.has_run_out("p", 200)
    assert given.grant(Peer("p", 1), 300) == 1000
    assert given.grant(Peer("p", 2), 400) == 1000
