"""What a peer sends, taken in: in its order, once, only what is the peer's, and into the log as it was applied."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from rcache.cluster.bucket_state import BucketState
from rcache.engine.contract import Engine
from rcache.engine.gate import PlainGate
from rcache.engine.reference.loans import Loans
from rcache.engine.reference.memory import MemoryAccount
from rcache.peers.intake import OF_OLD, TAKEN, Heading, Intake
from rcache.records.record import Kind, Record, decode, heads
from rcache.stream.applied import AppliedStream
from rcache_client.wire.opcodes import Status
from tests.contract.conftest import EngineFactory
from tests.contract.harness import EVERYTHING, Caller, Task, assert_stays, state_of, wait_until
from tests.contract.test_links import bucket_of
from tests.peers.harness import PEER

ALL = range(8)
SOURCE, OTHER = 1, 2
KEYS = [next(b"%d" % n for n in range(1000) if bucket_of(b"%d" % n) == bucket) for bucket in ALL]


class Taking:
    """A primary's records and a backup's intake of them. `follows` and `holds` are what the backup's view says."""

    def __init__(self, primary: Engine, backup: Engine, *, durable: bool = False, log_bytes: int = 1 << 20) -> None:
        self.primary, self.backup = primary, backup
        self.reader = primary.stream.open_reader("link", holds=True)
        self.applied = AppliedStream(log_bytes)
        self.follows = [SOURCE] * len(ALL)
        self.holds: set[int] = set(ALL)
        self.intake = Intake(PEER, SOURCE, backup, self.applied, lambda bucket: bucket in self.holds, durable=durable)
        for bucket in ALL:
            backup.follow(bucket, SOURCE)

    def fill(self, *buckets: int) -> None:
        """Whole copies, behind the log's back."""
        for bucket in buckets or ALL:
            self.backup.apply(b"".join(self.primary.copy_bucket(bucket)), SOURCE)

    def set(self, bucket: int, value: bytes = b"v") -> bytes:
        """What a link would send of a change."""
        Caller(self.primary).set(KEYS[bucket], value)
        batch = self.reader.take(EVERYTHING, 0.0)
        self.reader.release(batch.position)
        return bytes(batch.body)

    def take(self, generation: int, *bodies: bytes):  # type: ignore[no-untyped-def]
        return self.intake.take(
            Heading(1, PEER.incarnation, 1, generation), b"".join(bodies), lambda bucket: self.follows[bucket]
        )

    def logged(self) -> list[Record]:
        """What went on its way to the log since it was last looked at."""
        body = bytes(self.applied.take(EVERYTHING).body)
        return [decode(body, head.start, head.end) for head in heads(body)]


@pytest.fixture
def taking(engine_factory: EngineFactory) -> Iterator[Taking]:
    taking = Taking(engine_factory(), engine_factory(opened=0))
    yield taking
    taking.reader.close()


def values(records: list[Record]) -> list[bytes]:
    return [record.value for record in records]


# --- in their order, once


def test_what_is_taken_is_applied_and_goes_to_the_log(taking: Taking) -> None:
    """Invariant 1: what is answered with OK was applied."""
    taking.fill()
    assert taking.take(1, taking.set(1, b"one"), taking.set(2, b"two")) == TAKEN
    assert taking.take(1, taking.set(1, b"three")) == TAKEN
    assert state_of(taking.backup) == state_of(taking.primary)
    assert values(taking.logged()) == [b"one", b"two", b"three"]
    assert (taking.intake.frames, taking.intake.records) == (2, 3)


def test_what_comes_again_after_a_reconnect_is_in_the_log_once(taking: Taking) -> None:
    """Invariant 7: a link sends again what it does not know to have been taken; records apply in chain order, each once."""
    taking.fill()
    bodies = [taking.set(bucket, b"%d" % number) for number, bucket in enumerate([1, 2, 1, 3])]
    taking.take(1, bodies[0])
    taking.take(1, bodies[1], bodies[2])
    assert taking.take(2, *bodies) == TAKEN
    assert values(taking.logged()) == [b"0", b"1", b"2", b"3"]
    assert taking.take(3, *bodies) == TAKEN, "nothing new in it"
    later = taking.set(1, b"later")
    assert taking.take(3, bodies[3], later) == TAKEN
    assert values(taking.logged()) == [b"later"]
    assert state_of(taking.backup) == state_of(taking.primary)


def test_a_fill_that_begins_again_is_in_the_log_each_time(taking: Taking) -> None:
    """IMPORT_BEGIN says that what came before it counts for nothing; so none of it is a repeat."""
    taking.set(1, b"row")
    copy = list(taking.primary.copy_bucket(1))
    taking.take(1, *copy[:-1])
    assert taking.take(2, *copy) == TAKEN
    kinds = [record.kind for record in taking.logged()]
    assert kinds == [Kind.IMPORT_BEGIN, Kind.ROW, Kind.IMPORT_BEGIN, Kind.ROW, Kind.IMPORT_END]
    assert taking.backup.state(1) is BucketState.BACKUP


def test_a_frame_of_an_earlier_generation_is_taken_by_nobody(taking: Taking) -> None:
    """Invariant 4: a late frame of a connection that is gone."""
    taking.fill()
    first, second = taking.set(1, b"first"), taking.set(1, b"second")
    assert taking.take(2, first) == TAKEN
    assert taking.take(1, second) == OF_OLD
    assert values(taking.logged()) == [b"first"]
    assert taking.take(2, second) == TAKEN


# --- what is not the peer's


def test_what_is_of_a_bucket_that_follows_another_is_refused_and_all_behind_it(taking: Taking) -> None:
    """Invariants 4 and 7: applied is what came before it; nothing later of that generation, or the bucket had a hole."""
    taking.fill()
    before, refused, behind, later = (taking.set(bucket, b"%d" % bucket) for bucket in (1, 2, 3, 1))
    taking.backup.follow(2, OTHER)
    taking.follows[2] = OTHER
    assert taking.take(1, before, refused, behind) == OF_OLD
    assert values(taking.logged()) == [b"1"], "in the log is what was applied"
    assert taking.take(1, later) == OF_OLD
    assert taking.take(1, behind) == OF_OLD
    assert taking.logged() == []
    assert taking.backup.sequence(3) < taking.primary.sequence(3)
    assert taking.take(2, before, behind, later) == TAKEN, "the next generation, by the newer view"
    assert values(taking.logged()) == [b"3", b"1"]
    assert (taking.intake.refused, taking.intake.broken) == (1, "")


def test_what_does_not_fit_a_copy_that_is_the_peers_is_a_broken_chain(taking: Taking) -> None:
    """Invariant 7: a hole. That is told apart from what is only of an older view: these copies are made anew."""
    taking.fill()
    taking.set(1, b"lost")
    taken = taking.take(1, taking.set(1, b"behind it"))
    assert taken.status is Status.BROKEN_CHAIN
    assert "does not follow on" in taken.reason
    assert taking.intake.broken == taken.reason
    assert taking.logged() == []
    assert taking.take(1, taking.set(2)) == OF_OLD


def test_what_is_of_a_bucket_that_is_not_here_is_of_old_unless_the_view_counts_on_it(taking: Taking) -> None:
    """The peer's link may go by the view before for a moment, and sends on in what was let go of here."""
    taking.holds = {2}
    assert taking.take(1, taking.set(1)) == OF_OLD
    assert taking.take(2, taking.set(2)).status is Status.BROKEN_CHAIN


def test_what_is_no_record_is_a_broken_chain(taking: Taking) -> None:
    taking.fill()
    assert taking.take(1, taking.set(1)[:-1]).status is Status.BROKEN_CHAIN
    assert taking.take(2, b"no record").status is Status.BROKEN_CHAIN


# --- filling


def test_a_bucket_that_there_is_not_is_a_broken_chain(taking: Taking) -> None:
    taking.fill()
    record = taking.set(1)
    nowhere = record[:8] + (1 << 20).to_bytes(4, "big") + record[12:]
    assert taking.take(1, nowhere).status is Status.BROKEN_CHAIN


def test_a_copy_that_the_view_counts_on_is_never_cleared_by_an_import(taking: Taking) -> None:
    """Invariant 7: first the primary drops the backup in a view, and only then may it clear."""
    taking.fill()
    held = state_of(taking.backup)
    taken = taking.take(1, *taking.primary.copy_bucket(1))
    assert taken.status is Status.BROKEN_CHAIN
    assert (taking.backup.state(1), state_of(taking.backup)) == (BucketState.BACKUP, held)


def test_an_import_that_was_refused_is_not_in_the_log(taking: Taking) -> None:
    """A replay of it would clear what is here."""
    taking.fill()
    assert taking.take(1, *taking.primary.copy_bucket(1)).status is Status.BROKEN_CHAIN
    assert taking.logged() == []


def test_a_whole_copy_is_not_cleared_by_who_was_primary_before(taking: Taking) -> None:
    """That one was making a copy as well, and has not noticed yet: the new primary made this one, and goes on to count it."""
    taking.set(1, b"row")
    taking.fill()
    taking.holds = set()
    copy = b"".join(taking.primary.copy_bucket(1))
    before = Intake(PEER, OTHER, taking.backup, taking.applied, lambda bucket: bucket in taking.holds, durable=False)
    heading = Heading(1, PEER.incarnation, 1, 1)
    assert before.take(heading, copy, lambda bucket: taking.follows[bucket]) == OF_OLD
    assert taking.backup.state(1) is BucketState.BACKUP
    assert state_of(taking.backup) == state_of(taking.primary)


def test_a_whole_copy_that_came_to_be_counted_by_nobody_is_made_anew(taking: Taking) -> None:
    taking.fill()
    taking.holds.discard(1)
    body = taking.set(1, b"row")
    assert body
    assert taking.take(1, *taking.primary.copy_bucket(1)) == TAKEN
    assert taking.backup.state(1) is BucketState.BACKUP
    assert state_of(taking.backup)[1] == state_of(taking.primary)[1]
    assert [record.kind for record in taking.logged()] == [Kind.IMPORT_BEGIN, Kind.ROW, Kind.IMPORT_END]


def test_what_followed_another_when_it_came_is_of_old_whatever_it_follows_by_now(taking: Taking) -> None:
    """A view that is being carried out has it follow this peer between the two looks. (It would be told that all its copies are
    broken.)"""
    taking.fill()
    taking.backup.follow(1, OTHER)
    assert taking.take(1, taking.set(1, b"of an older view")) == OF_OLD
    assert taking.intake.broken == ""


def begun(taking: Taking, bucket: int = 1) -> None:
    """Half a copy of a bucket is here."""
    taking.set(bucket, b"row")
    assert taking.take(1, *list(taking.primary.copy_bucket(bucket))[:-1]) == TAKEN
    assert taking.backup.state(bucket) is BucketState.IMPORTING


def test_a_copy_that_nobody_goes_on_with_is_let_go_of(taking: Taking) -> None:
    """The primary gave it up, and does not say so: half made it takes memory, and no checkpoint is whole."""
    begun(taking)
    taking.logged()
    assert taking.intake.let_go_of_unfinished(60.0, lambda bucket: taking.follows[bucket]) == []
    assert taking.intake.let_go_of_unfinished(0.0, lambda bucket: taking.follows[bucket]) == [1]
    assert taking.backup.state(1) is BucketState.ABSENT
    assert [(record.kind, record.bucket) for record in taking.logged()] == [(Kind.DROP, 1)]
    assert taking.intake.let_go_of_unfinished(0.0, lambda bucket: taking.follows[bucket]) == []


def test_a_copy_that_is_gone_on_with_after_all_begins_anew(taking: Taking) -> None:
    begun(taking)
    taking.holds = set()
    taking.intake.let_go_of_unfinished(0.0, lambda bucket: taking.follows[bucket])
    *_, end = taking.primary.copy_bucket(1)
    assert taking.take(1, end) == OF_OLD
    assert taking.take(2, *taking.primary.copy_bucket(1)) == TAKEN
    assert taking.backup.state(1) is BucketState.BACKUP


def test_neither_a_whole_copy_nor_anothers_is_let_go_of(taking: Taking) -> None:
    taking.set(1, b"row")
    assert taking.take(1, *taking.primary.copy_bucket(1)) == TAKEN
    assert taking.intake.let_go_of_unfinished(0.0, lambda bucket: taking.follows[bucket]) == []
    begun(taking, 2)
    assert taking.intake.let_go_of_unfinished(0.0, lambda _bucket: OTHER) == [], "its new primary is making one"
    assert (taking.backup.state(1), taking.backup.state(2)) == (BucketState.BACKUP, BucketState.IMPORTING)


# --- the log


def test_without_a_log_it_is_applied_all_the_same(engine_factory: EngineFactory) -> None:
    taking = Taking(engine_factory(), engine_factory(opened=0))
    taking.fill()
    applied, seen = AppliedStream(0, is_kept=False), list[bytes]()
    applied.tap(seen.append)
    intake = Intake(PEER, SOURCE, taking.backup, applied, lambda _bucket: True, durable=False)
    body = taking.set(1)
    assert intake.take(Heading(1, PEER.incarnation, 1, 1), body, lambda _bucket: SOURCE) == TAKEN
    assert state_of(taking.backup) == state_of(taking.primary)
    assert seen == [body], "whoever wants to see it does"
    intake.durable = True
    assert intake.take(Heading(1, PEER.incarnation, 1, 1), taking.set(1), lambda _bucket: SOURCE).status is not Status.OK
    taking.reader.close()


def test_with_fsync_always_it_is_answered_once_it_is_on_the_disk(engine_factory: EngineFactory) -> None:
    """Invariant 1: with fsync always acknowledgements follow the backup's own fsync."""
    taking = Taking(engine_factory(), engine_factory(opened=0), durable=True)
    taking.fill()
    body = taking.set(1)
    task = Task(lambda: taking.take(1, body))
    wait_until(lambda: taking.applied.head > 0, "the record to be placed")
    taking.applied.set_written(taking.applied.head)
    assert_stays(lambda: not task.is_done, "the wait for the disk")
    again = Task(lambda: taking.take(2, body))  # nothing new, but not on the disk either
    assert_stays(lambda: not again.is_done, "the wait for the disk")
    taking.applied.set_durable(taking.applied.head)
    assert (task.result(), again.result()) == (TAKEN, TAKEN)
    task = Task(lambda: taking.take(2, taking.set(2)))
    wait_until(lambda: taking.applied.head > taking.applied.durable, "the record to be placed")
    taking.applied.fail("no space")
    assert task.result().status is Status.APPEND_LOG_FAILED
    assert taking.take(2, taking.set(2)).status is Status.APPEND_LOG_FAILED
    taking.reader.close()


def test_a_question_is_answered_without_the_disk(engine_factory: EngineFactory) -> None:
    """An empty frame brings nothing that could be lost; what came before it was answered before."""
    taking = Taking(engine_factory(), engine_factory(opened=0), durable=True)
    taking.fill()
    waiting = Task(lambda: taking.take(1, taking.set(1)))
    wait_until(lambda: taking.applied.head > 0, "the record to be placed")
    assert taking.take(1) == TAKEN
    assert not waiting.is_done
    taking.applied.set_durable(taking.applied.head)
    assert waiting.result() == TAKEN
    taking.reader.close()


class Noted(PlainGate):
    """Notes for which generations it was opened."""

    def __init__(self) -> None:
        super().__init__(Loans(MemoryAccount(1 << 20), 1000), SOURCE)
        self.allowed: list[int] = []

    def allow(self, epoch: int, sender: int, receiver: int, generation: int) -> None:
        super().allow(epoch, sender, receiver, generation)
        self.allowed.append(generation)


def test_behind_a_question_nothing_of_old_is_expected(taking: Taking) -> None:
    """It is sent where nothing else was left to send: so the engine may take in what follows, where nothing is written too."""
    taking.fill()
    gate = taking.intake.gate = Noted()
    body = taking.set(1)
    assert taking.take(1, body) == TAKEN
    assert gate.allowed == [1]
    assert taking.take(2, body) == TAKEN
    assert gate.allowed == [1], "more of old may come"
    assert taking.take(2) == TAKEN
    assert gate.allowed == [1, 2]
    assert len(taking.logged()) == 1


def test_it_waits_for_room_in_the_log_and_ends_when_the_node_stops(engine_factory: EngineFactory) -> None:
    """What was applied and what is in the log stay in the same order: who comes next waits."""
    taking = Taking(engine_factory(), engine_factory(opened=0), log_bytes=100)
    taking.fill()
    bodies = [taking.set(1, b"%d" % number * 30) for number in range(3)]
    assert taking.take(1, bodies[0]) == TAKEN
    waiting = Task(lambda: taking.take(1, bodies[1]))
    passing = Task(taking.intake.pass_by)
    assert_stays(lambda: not waiting.is_done, "the wait for room")
    assert_stays(lambda: not passing.is_done, "passing by what is being taken in")
    taking.applied.take(1)
    assert waiting.result() == TAKEN
    passing.result()
    waiting = Task(lambda: taking.take(1, bodies[2]))
    assert_stays(lambda: not waiting.is_done, "the wait for room")
    taking.intake.stop()
    assert waiting.result() == TAKEN
    taking.reader.close()


# --- what was applied in part


def test_what_was_not_applied_is_not_in_the_log(taking: Taking) -> None:
    taking.fill()
    taking.set(1, b"lost")
    hole, refused = taking.set(1, b"behind it"), taking.set(2)
    taking.backup.follow(2, OTHER)
    taking.follows[2] = OTHER
    taking.take(1, hole, refused)
    assert values(taking.logged()) == []


def test_what_was_applied_before_a_broken_chain_is_in_the_log(taking: Taking) -> None:
    taking.fill()
    applied = taking.set(3, b"applied")
    taking.set(1, b"lost")
    hole = taking.set(1, b"behind it")
    assert taking.take(1, applied, hole).status is Status.BROKEN_CHAIN
    assert taking.take(2, applied) == TAKEN
    assert values(taking.logged()) == [b"applied"]
