"""What this node is primary of and may not serve yet: opened once nobody else can be serving it, and the backups match."""

from __future__ import annotations

import time
from typing import Any

import pytest

from rcache.cluster.bucket_state import BucketState
from rcache.cluster.leases import Peer
from rcache.cluster.view import View
from rcache.engine.contract import OPEN_WAIT_S
from rcache.member.openings import Openings
from rcache.member.roles import Opening
from tests.member.harness import Clock, FakeLog, Scene, copy_into, view_of

N2 = frozenset({"n2"})


class Opened(Scene):
    """n1, made primary of bucket 0 in epoch 6 after n2; it has a whole copy."""

    def __init__(self, clock: Clock, view: View, after: frozenset[str] = N2, **parts: Any) -> None:
        super().__init__(clock, view, opened=False, **parts)
        self.sequence = copy_into(self.engine, 0)
        self.board.roles.openings[0] = Opening(6, after)
        self.openings = Openings(self.board)

    @property
    def state(self) -> BucketState:
        return self.engine.state(0)

    def grant(self, name: str, incarnation: int = 1) -> None:
        with self.board.books.lock:
            assert self.board.books.given.grant(Peer(name, incarnation), self.clock.boot_ns())

    def say(self, name: str, sequence: int, epoch: int = 6, bucket: int = 0) -> None:
        packed = bucket.to_bytes(4, "big") + sequence.to_bytes(8, "big")
        self.openings.heard_sequences(Peer(name, 1), epoch, packed)


ALONE = view_of(6, ("n1", "", 6))
WITH_N3 = view_of(6, ("n1", "n3", 6))


@pytest.fixture
def alone(clock: Clock) -> Opened:
    return Opened(clock, ALONE)


@pytest.fixture
def with_n3(clock: Clock) -> Opened:
    """The old primary is dead; n3 has a copy as well."""
    return Opened(clock, WITH_N3, frozenset())


def test_it_waits_until_every_grant_to_the_old_primary_has_run_out(alone: Opened) -> None:
    """Invariant 3: under whatever view and to whatever incarnation it was made."""
    alone.grant("n2")
    assert not alone.openings.look()
    alone.clock.advance(1.0)  # the lease itself; but clocks may differ in their rates
    assert not alone.openings.look()
    assert alone.state is BucketState.BACKUP
    alone.clock.advance(0.02)
    assert alone.openings.look()
    assert (alone.state, alone.board.roles.openings) == (BucketState.PRIMARY, {})
    assert not alone.openings.look(), "there is nothing more"


def test_it_opens_at_once_where_nothing_was_granted(alone: Opened) -> None:
    assert alone.openings.look()


def test_it_opens_once_the_old_primary_goes_by_the_view_itself(alone: Opened) -> None:
    """Invariant 3: the other way to know: by a heartbeat of that view it has said that it gave the bucket up."""
    alone.grant("n2")
    alone.neighbours.known["n2"].heard_epoch = 5
    assert not alone.openings.look()
    alone.neighbours.known["n2"].heard_epoch = 6
    assert alone.openings.look()


def test_a_grant_of_a_node_that_is_out_of_the_view_counts_too(alone: Opened) -> None:
    """Invariant 3: its grant is remembered by its name."""
    alone.grant("n2")
    del alone.neighbours.known["n2"]
    assert not alone.openings.look()
    alone.clock.advance(1.1)
    assert alone.openings.look()


def test_it_waits_for_all_of_them(clock: Clock) -> None:
    scene = Opened(clock, ALONE, frozenset({"n2", "n3"}))
    scene.grant("n2")
    scene.clock.advance(0.5)
    scene.grant("n3")
    scene.clock.advance(0.6)
    assert not scene.openings.look()
    scene.clock.advance(0.5)
    assert scene.openings.look()


# --- what the other backups have


def test_a_backup_is_asked_what_it_has_before_the_bucket_is_opened(with_n3: Opened) -> None:
    """Invariant 7: it may lack the end, or have more of it."""
    assert not with_n3.openings.look()
    assert with_n3.neighbours.known["n3"].heartbeats.asked == 1  # type: ignore[attr-defined]
    with_n3.say("n3", with_n3.sequence)
    assert with_n3.openings.look()
    assert with_n3.state is BucketState.PRIMARY


def test_what_it_said_of_an_earlier_view_does_not_count(with_n3: Opened) -> None:
    with_n3.say("n3", with_n3.sequence, epoch=5)
    assert not with_n3.openings.look()
    assert with_n3.neighbours.known["n3"].heartbeats.asked == 1  # type: ignore[attr-defined]


@pytest.mark.parametrize("off", [-1, 1, None], ids=["behind", "beyond", "not whole"])
def test_a_copy_that_ends_elsewhere_is_dropped_in_a_view_first(with_n3: Opened, off: int | None) -> None:
    """Invariant 7: a backup beyond the point OPEN names, or off the chain, is dropped in a view before it is opened."""
    with_n3.say("n3", 0 if off is None else with_n3.sequence + off)
    assert not with_n3.openings.look()
    assert not with_n3.openings.look()
    assert with_n3.agreement.wished == ["drop the copy of bucket 0 at n3"], "once"
    assert with_n3.state is BucketState.BACKUP
    view = with_n3.agree()
    assert view.placements[0].backups == ()
    assert with_n3.openings.look()
    assert with_n3.state is BucketState.PRIMARY


def test_a_backup_that_says_nothing_of_a_bucket_has_none_of_it(with_n3: Opened) -> None:
    with_n3.say("n3", with_n3.sequence, bucket=1)
    assert not with_n3.openings.look()
    assert len(with_n3.agreement.wishes) == 1


def test_who_gave_it_up_for_this_view_is_not_asked(clock: Clock) -> None:
    """Invariant 3: it froze it, so it ends where this node does."""
    scene = Opened(clock, view_of(6, ("n1", "n2", 6), proposer="n2"), frozenset())
    assert scene.openings.look()


def test_who_gave_it_up_is_asked_where_this_is_a_later_view(clock: Clock) -> None:
    """It is not known any more who gave it up."""
    scene = Opened(clock, view_of(7, ("n1", "n2", 6), proposer="n2"), frozenset())
    assert not scene.openings.look()
    scene.say("n2", scene.sequence)
    assert scene.openings.look()


def test_answers_wait_for_the_backups_from_the_first_on(with_n3: Opened) -> None:
    """Invariant 7: a new primary's tail is uncommitted until its backups acknowledged its OPEN."""
    with_n3.say("n3", with_n3.sequence)
    assert with_n3.openings.look()
    link = with_n3.link("n3")
    assert with_n3.engine.stream.head > link.point.position
    assert with_n3.board.points_of(0) == [link.point]


def test_what_cannot_be_opened_is_tried_again(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """There was no room in the stream."""
    scene = Opened(clock, ALONE, frozenset())
    scene.engine.stream.end_waits()
    held = scene.engine.stream.open_reader("holds", holds=True)
    whole = scene.engine.config.stream_bytes
    assert scene.engine.stream.reserve(whole, 0)
    assert not scene.openings.look()
    assert 0 in scene.board.roles.openings
    held.close()


def test_what_is_not_whole_here_is_never_opened(alone: Opened) -> None:
    """Invariant 7."""
    alone.engine.set_state(0, BucketState.ABSENT)
    assert not alone.openings.look()
    assert alone.state is BucketState.ABSENT
    alone.board.roles.openings[0] = Opening(6, frozenset(), is_empty=True)
    assert alone.openings.look(), "but where it was lost, and begins anew"


def test_a_node_whose_log_failed_opens_nothing(clock: Clock) -> None:
    log = FakeLog([])
    scene = Opened(clock, ALONE, frozenset(), log=log)
    log.failure = "no space"
    assert not scene.openings.look()
    log.failure = None
    assert scene.openings.look()


def test_room_in_the_stream_is_not_waited_for_for_long(alone: Opened) -> None:
    """What fills the ring may be for a peer that is dead and still in the view; who waits here is who would part from it."""
    room = alone.engine.config.stream_bytes
    assert alone.engine._store.ring.reserve(room, 0)
    began = time.monotonic()
    assert not alone.openings.look()
    assert not alone.openings.look()
    assert time.monotonic() - began < OPEN_WAIT_S / 4
    assert (alone.state, 0 in alone.board.roles.openings) == (BucketState.BACKUP, True)
    alone.engine._store.ring.unreserve(room)
    assert alone.openings.look()
