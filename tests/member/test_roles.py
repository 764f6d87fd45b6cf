"""What a view says of this node's buckets, carried out: what is given up, let go of, followed, and to be opened after whom."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from rcache.cluster.bucket_state import BucketState
from rcache.cluster.view import View
from rcache.engine.contract import ChainError
from rcache.engine.reference import ReferenceEngine
from rcache.member.roles import NOBODY, Opening, Roles, Turn
from rcache.records.record import Kind, decode, epoch_of
from rcache.stream.applied import AppliedStream
from rcache_client.wire.opcodes import Opcode, Status
from tests.contract.harness import EVERYTHING, Caller
from tests.contract.test_links import bucket_of
from tests.member.harness import FakeLog, copy_into, engine_of, node, view_of

SOURCES = {"n2": 12, "n3": 13}


class Roled:
    """n1's roles over an engine of some buckets."""

    def __init__(self, buckets: int = 4) -> None:
        self.trace: list[Any] = []
        self.gave_up: set[int] = set()
        self.engine: ReferenceEngine = engine_of(buckets)
        self.log = FakeLog(self.trace)
        self.applied = AppliedStream(1 << 20)
        self.roles = Roles(self.engine, "n1", self.log, self.applied)  # type: ignore[arg-type]

    def states(self) -> list[BucketState]:
        return [self.engine.state(bucket) for bucket in range(self.engine.config.buckets)]

    def fence(self, old: View, new: View) -> Turn:
        return self.roles.fence(old, new, lambda name: SOURCES.get(name, NOBODY), lambda bucket: bucket in self.gave_up)

    def carry_out(self, old: View, new: View) -> Turn:
        turn = self.fence(old, new)
        self.roles.let_go(turn, lambda: self.trace.append("pass intakes"))
        self.roles.plan_openings(old, new)
        return turn

    def marks(self) -> list[tuple[Kind, int]]:
        """What the log is told."""
        batch = self.applied.take(EVERYTHING)
        return [(record.kind, record.bucket) for record in map(decode, batch.records)]


@pytest.fixture
def roled() -> Roled:
    return Roled()


ABSENT, IMPORTING, BACKUP, PRIMARY, FROZEN = (
    BucketState.ABSENT,
    BucketState.IMPORTING,
    BucketState.BACKUP,
    BucketState.PRIMARY,
    BucketState.FROZEN,
)


# --- what is let go of


def test_who_froze_a_bucket_itself_is_its_backup_in_the_same_view(roled: Roled) -> None:
    """Invariant 7: a primary that gave a bucket up itself, frozen, is an in-sync backup."""
    roled.engine.open_buckets([0], 5, 1, "n1")
    sequence = roled.engine.sequence(0)
    roled.roles.freeze([0])
    old, new = view_of(5, ("n1", "n2", 5)), view_of(6, ("n2", "n1", 6))
    turn = roled.fence(old, new)
    assert (turn.given_up, turn.deposed, turn.dropped, turn.abandoned) == ([0], [], [], set())
    assert roled.engine.state(0) is FROZEN, "nothing changes before what was placed has passed by"
    roled.roles.let_go(turn, lambda: roled.trace.append("pass intakes"))
    assert (roled.engine.state(0), roled.engine.sequence(0)) == (BACKUP, sequence)
    assert roled.trace == ["pass intakes", "pass by"]
    assert roled.marks() == []
    assert roled.roles.following[0] == SOURCES["n2"]


@pytest.mark.parametrize("frozen", [False, True])
def test_who_is_deposed_in_any_other_way_becomes_absent(roled: Roled, frozen: bool) -> None:
    """Invariant 7: it has changes that its heir never saw."""
    roled.engine.open_buckets([0], 5, 1, "n1")
    if frozen:
        roled.roles.freeze([0])
    old, new = view_of(5, ("n1", "n2 n3", 5)), view_of(6, ("n2", "n3", 6), proposer="n2")
    turn = roled.fence(old, new)
    assert roled.engine.state(0) is FROZEN, "from the fence on nothing is answered or changed"
    assert (turn.deposed, turn.given_up, turn.abandoned) == ([0], [], {"n2", "n3"})
    roled.roles.let_go(turn, lambda: roled.trace.append("pass intakes"))
    assert roled.engine.state(0) is ABSENT
    assert roled.marks() == [(Kind.DROP, 0)], "the log says that it left"


def test_what_was_given_up_and_dropped_by_its_heir_at_once_was_committed(roled: Roled) -> None:
    """Invariant 7: every backup had all of it; nothing that waited is abandoned."""
    roled.engine.open_buckets([0], 5, 1, "n1")
    roled.roles.freeze([0])
    roled.gave_up.add(0)
    turn = roled.carry_out(view_of(5, ("n1", "n2", 5)), view_of(7, ("n2", "", 6), proposer="n2"))
    assert (turn.dropped, turn.deposed, turn.abandoned) == ([0], [], set())
    assert roled.engine.state(0) is ABSENT


def test_a_primary_that_the_view_makes_a_backup_without_having_frozen_is_no_backup(roled: Roled) -> None:
    """Invariant 7, against a view that should not be: only what is frozen here was given up."""
    roled.engine.open_buckets([0], 5, 1, "n1")
    turn = roled.carry_out(view_of(5, ("n1", "n2", 5)), view_of(6, ("n2", "n1", 6), proposer="n2"))
    assert turn.deposed == [0]
    assert roled.engine.state(0) is ABSENT


def test_a_backup_that_was_dropped_in_a_view_clears(roled: Roled) -> None:
    """Invariant 7: first the view, only then may the backup clear."""
    copy_into(roled.engine, 0)
    old = view_of(5, ("n2", "n1", 1))
    assert roled.carry_out(old, view_of(6, ("n2", "n1", 1))).dropped == []
    assert roled.engine.state(0) is BACKUP
    turn = roled.carry_out(old, view_of(7, ("n2", "", 1), proposer="n2"))
    assert turn.dropped == [0]
    assert roled.engine.state(0) is ABSENT
    assert roled.marks() == [(Kind.DROP, 0)]


def test_a_whole_copy_that_is_not_counted_yet_stays_while_its_primary_does(roled: Roled) -> None:
    """It is about to be counted: the wish for it is under way."""
    copy_into(roled.engine, 0)
    old = view_of(5, ("n2", "", 1))
    assert roled.carry_out(old, view_of(6, ("n2", "", 1))).dropped == []
    assert roled.engine.state(0) is BACKUP


@pytest.mark.parametrize("how", ["another node", "another incarnation"])
@pytest.mark.parametrize("whole", [False, True])
def test_with_another_primary_every_copy_that_is_being_made_begins_again(roled: Roled, how: str, whole: bool) -> None:
    """Section 4: a change of primary starts every import again from empty."""
    copy_into(roled.engine, 0)
    if not whole:
        copies = engine_of(4)
        copies.open_buckets([0], 1, 1, "n2")
        roled.engine.set_state(0, ABSENT)
        roled.engine.apply(next(iter(copies.copy_bucket(0))))
        assert roled.engine.state(0) is IMPORTING
    old = view_of(5, ("n2", "n3", 1))
    if how == "another node":
        new = view_of(6, ("n3", "", 6), proposer="n3")
    else:
        new = view_of(6, ("n2", "", 6), proposer="n2", nodes={"n1": node(), "n2": node(2), "n3": node()})
    assert roled.carry_out(old, new).dropped == [0]
    assert roled.engine.state(0) is ABSENT


def test_a_copy_that_is_not_whole_and_is_counted_on_all_the_same_is_let_go_of(roled: Roled) -> None:
    """Invariant 7: it knows its copy to be incomplete; the primary finds out, and drops it."""
    copies = engine_of(4)
    copies.open_buckets([0], 1, 1, "n2")
    roled.engine.apply(next(iter(copies.copy_bucket(0))))
    assert roled.carry_out(view_of(5, ("n2", "", 1)), view_of(6, ("n2", "n1", 1), proposer="n2")).dropped == [0]
    assert roled.engine.state(0) is ABSENT


def test_where_nothing_is_let_go_of_nothing_is_waited_for(roled: Roled) -> None:
    roled.engine.open_buckets([0], 5, 1, "n1")
    roled.carry_out(view_of(5, ("n1", "n2", 5)), view_of(6, ("n1", "n2 n3", 5)))
    assert roled.trace == []
    assert roled.engine.state(0) is PRIMARY


def test_a_log_that_does_not_come_by_holds_nothing_up_for_ever(roled: Roled) -> None:
    roled.log.passes = False
    copy_into(roled.engine, 0)
    roled.carry_out(view_of(5, ("n2", "n1", 1)), view_of(6, ("n2", "", 1)))
    assert roled.engine.state(0) is ABSENT
    roled.applied.fail("no space")
    copy_into(roled.engine, 0, source=SOURCES["n2"])
    roled.carry_out(view_of(5, ("n2", "n1", 1)), view_of(6, ("n2", "", 1)))
    assert roled.engine.state(0) is ABSENT


# --- whom buckets follow


def test_buckets_follow_the_primaries_of_the_view(roled: Roled) -> None:
    """Invariant 4: records of whoever is primary no more apply no more, from the fence on."""
    source = SOURCES["n2"]
    roled.fence(view_of(5, ("n2", "n1", 1), ("n1", "", 5)), view_of(5, ("n2", "n1", 1), ("n1", "", 5)))
    assert roled.roles.following[:2] == [source, NOBODY]
    copy_into(roled.engine, 0, source=source)
    roled.fence(view_of(5, ("n2", "n1 n3", 1)), view_of(6, ("n3", "n1", 6), proposer="n3"))
    assert roled.roles.following[0] == SOURCES["n3"]
    other = engine_of(4)
    other.open_buckets([0], 2, 1, "n2")
    with pytest.raises(ChainError, match="follows source 13"):
        roled.engine.apply(b"".join(other.copy_bucket(0)), source)


def test_a_primary_that_is_not_known_yet_is_followed_once_it_is(roled: Roled) -> None:
    old, new = view_of(5, ("n1", "", 5)), view_of(6, ("n9", "", 6), nodes={"n1": node(), "n9": node()})
    roled.fence(old, new)
    assert roled.roles.following[0] == NOBODY
    roled.roles.follow_newcomers(new, lambda name: {"n9": 19}[name])
    assert roled.roles.following[0] == 19


# --- what is to be opened, and after whom


def opening(old: View, new: View) -> Opening | None:
    """Of bucket 0, which this node has a copy of."""
    roled = Roled()
    copy_into(roled.engine, 0)
    roled.carry_out(old, new)
    return roled.roles.openings.get(0)


def test_after_the_old_primary_that_did_not_say_so_itself() -> None:
    """Invariant 3: whatever caused the view, the old primary may be serving until its grants have run out."""
    old, new = view_of(5, ("n2", "n1", 1)), view_of(6, ("n1", "", 6), proposer="n1")
    assert opening(old, new) == Opening(6, frozenset({"n2"}))
    old, new = view_of(5, ("n2", "n1 n3", 1)), view_of(6, ("n1", "n3", 6), proposer="n3")
    assert opening(old, new) == Opening(6, frozenset({"n2"}))


def test_at_once_after_a_primary_that_gave_it_up_by_itself() -> None:
    """Invariant 3: it said so itself, for that view: it froze the bucket before it asked."""
    old, new = view_of(5, ("n2", "n1", 1)), view_of(6, ("n1", "n2", 6), proposer="n2")
    assert opening(old, new) == Opening(6, frozenset())


@pytest.mark.parametrize(("offered", "is_empty"), [(True, True), (False, False), (None, False)])
def test_what_was_nobodys_is_opened_at_once_and_empty_only_by_order(roled: Roled, offered: bool | None, is_empty: bool) -> None:
    """Invariant 11: never by accident: not by a node that brought something back, nor by one that knows of no order."""
    if offered is not None:
        roled.roles.offered[0] = offered
    roled.carry_out(view_of(5, (None, "", 5)), view_of(6, ("n1", "", 6)))
    assert roled.roles.openings[0] == Opening(6, frozenset(), is_empty=is_empty)
    assert roled.roles.offered == {}


def test_an_opening_that_is_to_be_empty_stays_so_where_a_later_view_opens_it_anew(roled: Roled) -> None:
    roled.roles.offered[0] = True
    roled.carry_out(view_of(5, (None, "", 5)), view_of(6, ("n1", "", 6)))
    roled.carry_out(view_of(6, ("n1", "", 6)), view_of(7, ("n1", "", 7)))
    assert roled.roles.openings[0].is_empty


def test_after_anybody_where_the_old_primary_may_not_have_opened_it_itself() -> None:
    """Invariant 3: it may have been waiting for the one before it, who may be serving yet."""
    old, new = view_of(5, ("n2", "n1", 5)), view_of(6, ("n1", "n2", 6), proposer="n2")
    assert opening(old, new) == Opening(6, frozenset({"n2", "n3"})), "what is here is of epoch 1"


def test_after_one_that_was_started_anew_from_the_same_files_nobody_is_waited_for() -> None:
    """Invariant 3: its successor holds the lock of the data directory, so it has ended; from other files that is not known."""
    old = view_of(5, ("n2", "n1", 1))
    for files, after in (("f" * 32, frozenset[str]()), ("a" * 32, frozenset({"n2"}))):
        nodes = {**old.nodes, "n2": replace(node(2), data_dir_id=files)}
        new = view_of(6, ("n1", "", 6), proposer="n2", nodes=nodes)
        assert opening(old, new) == Opening(6, after)


def test_after_anybody_where_views_in_between_were_not_seen() -> None:
    """Invariant 3: who was primary in the view before that one is not known here; it may have been anybody who is, or was, a
    node."""
    old = view_of(5, ("n2", "n1", 1), nodes={"n1": node(), "n2": node(), "n4": node()})
    new = view_of(8, ("n1", "n2", 8), proposer="n2", nodes={"n1": node(), "n2": node(), "n3": node()})
    assert opening(old, new) == Opening(8, frozenset({"n2", "n3", "n4"}))
    new = view_of(8, ("n1", "", 6), proposer="n1")
    assert opening(view_of(5, ("n2", "n1", 1)), new) == Opening(6, frozenset({"n2"})), "opened in the very next view"
    new = view_of(8, ("n1", "", 6), proposer="n2")
    assert opening(view_of(5, ("n2", "n1", 1)), new) == Opening(6, frozenset({"n2"})), "who proposed that one is not known"


def test_what_is_opened_anew_is_served_by_nobody_else(roled: Roled) -> None:
    """Frozen at the fence, opened in the new epoch."""
    roled.engine.open_buckets([0], 5, 1, "n1")
    roled.carry_out(view_of(5, ("n1", "n2", 5)), view_of(6, ("n1", "n2", 6)))
    assert roled.engine.state(0) is FROZEN
    assert roled.roles.openings == {0: Opening(6, frozenset())}
    roled.carry_out(view_of(6, ("n1", "n2", 6)), view_of(7, ("n1", "n2", 6)))
    assert roled.roles.openings == {0: Opening(6, frozenset())}, "it is still to be opened in that epoch"
    roled.roles.open([0], 1, lambda _bucket: [])
    assert (roled.engine.state(0), epoch_of(roled.engine.sequence(0)), roled.roles.openings) == (PRIMARY, 6, {})


def test_what_is_taken_away_before_it_was_opened_is_not_opened(roled: Roled) -> None:
    copy_into(roled.engine, 0)
    roled.carry_out(view_of(5, ("n2", "n1 n3", 1)), view_of(6, ("n1", "n3", 6)))
    assert 0 in roled.roles.openings
    roled.carry_out(view_of(6, ("n1", "n3", 6)), view_of(7, ("n3", "", 7), proposer="n3"))
    assert roled.roles.openings == {}


def test_due_is_what_nobody_can_be_serving(roled: Roled) -> None:
    """Invariant 3."""
    roled.roles.openings.update(
        {0: Opening(6, frozenset({"n2", "n3"})), 1: Opening(7, frozenset()), 2: Opening(7, frozenset({"n3"}))}
    )
    asked = []

    def may_serve(name: str, epoch: int) -> bool:
        asked.append((name, epoch))
        return name == "n2"

    assert roled.roles.due(may_serve) == [1, 2]
    assert ("n3", 7) in asked


def test_what_was_a_backup_is_opened_once_the_log_has_passed_its_last_record(roled: Roled) -> None:
    """It changes its stream; the new points are there before anything is answered."""
    copy_into(roled.engine, 0)
    roled.carry_out(view_of(5, ("n2", "n1 n3", 1)), view_of(6, ("n1", "n3", 6)))
    point = roled.engine.open_commit_point("n3", 0)
    asked: list[int] = []

    def points_of(bucket: int) -> list[Any]:
        asked.append(bucket)
        assert roled.engine.state(bucket) is BACKUP, "before it is opened"
        return [point]

    roled.roles.open([0], 1, points_of)
    assert (roled.trace, asked) == (["pass by"], [0])
    key = next(b"%d" % n for n in range(100) if bucket_of(b"%d" % n) % 4 == 0)
    assert Caller(roled.engine).ask(Opcode.SET, 0, 0, key, b"v", budget_ms=20).status is Status.NOT_COMMITTED
    roled.roles.openings[1] = Opening(6, frozenset())
    roled.roles.open([1], 1, lambda _bucket: [])
    assert roled.trace == ["pass by"], "a bucket that was absent changes no stream"


def test_who_is_no_member_any_more_has_nothing(roled: Roled) -> None:
    roled.engine.open_buckets([0], 5, 1, "n1")
    roled.roles.freeze([0])
    copy_into(roled.engine, 1)
    roled.roles.openings[1] = Opening(6, frozenset())
    roled.roles.following[1] = 12
    roled.roles.forget_all([0, 1])
    assert roled.states() == [ABSENT] * 4
    assert (roled.roles.openings, set(roled.roles.following)) == ({}, {NOBODY})
    assert roled.marks() == [(Kind.DROP, 0), (Kind.DROP, 1)]
    assert roled.trace == ["pass by"]
