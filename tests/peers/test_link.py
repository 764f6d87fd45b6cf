"""A link against a scripted peer: what its frames say, when a position is acknowledged, and what is sent again."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator

import pytest

from rcache.engine.change_stream import HELD_FOR_EVER
from rcache.engine.contract import Engine
from rcache.peers import link as link_module
from rcache.peers import refusals
from rcache.peers.link import Link
from rcache_client.wire.frames import Request, encode_reply
from rcache_client.wire.opcodes import Opcode, Status
from tests.contract.conftest import EngineFactory
from tests.contract.harness import EVERYTHING, PATIENCE_S, Caller, Task, assert_stays, wait_until
from tests.contract.test_links import bucket_of
from tests.peers.harness import MINE, PEER, Accepted, Answering, FakeHost, PeerListener, frame_of

ALL = range(8)
KEYS = [next(b"%d" % n for n in range(1000) if bucket_of(b"%d" % n) == bucket) for bucket in ALL]
"""A key of each bucket."""


class Linked:
    """An engine with a link to the peer; nothing was chosen."""

    def __init__(self, engine: Engine, listener: PeerListener) -> None:
        self.engine = engine
        self.host = FakeHost(epoch=5)
        self.caller = Caller(engine)
        self.link = Link(PEER, MINE, listener.line(1.0), engine, self.host)
        self.link.point.lease(HELD_FOR_EVER)
        self.link.start()

    def set(self, bucket: int, value: bytes = b"v") -> int:
        """The stream's position behind it."""
        self.caller.set(KEYS[bucket], value)
        return self.engine.stream.head

    def wait_for(self, position: int) -> None:
        wait_until(lambda: self.link.acknowledged >= position, f"{position} to be acknowledged")

    def pass_on(self, peer: Accepted, value: bytes) -> None:
        """A record that is sent and acknowledged."""
        position = self.set(1, value)
        peer.acknowledge(peer.frame())
        self.wait_for(position)

    def is_held_up(self) -> bool:
        """Whether no frame leaves for a moment."""
        frames = self.link.stats()["frames"]
        threading.Event().wait(0.05)
        return frames == self.link.stats()["frames"]

    def stop(self) -> None:
        assert self.link.stop(PATIENCE_S)
        assert self.link.errors == 0
        self.link.point.close()


@pytest.fixture
def linked(engine: Engine, listener: PeerListener) -> Iterator[Linked]:
    linked = Linked(engine, listener)
    yield linked
    linked.stop()


@pytest.fixture
def engine(engine_factory: EngineFactory) -> Engine:
    return engine_factory()


# --- what a frame says, and what an answer moves


def test_a_frame_says_epoch_incarnations_and_generation(linked: Linked, listener: PeerListener) -> None:
    """Invariant 4: each node-to-node frame names the epoch and both incarnations."""
    peer = listener.greet()
    linked.link.choose(ALL, 5)
    own = linked.engine.stream.open_reader("own", holds=True)
    position = linked.set(2)
    frame = peer.frame()
    assert (frame.epoch, frame.sender, frame.receiver, frame.generation) == (5, MINE, PEER.incarnation, 1)
    assert frame.body == own.take(EVERYTHING, 0.0).body
    own.close()
    assert linked.link.point.position < position
    peer.acknowledge(frame)
    linked.wait_for(position)
    assert linked.link.point.position == position


def test_an_acknowledgement_moves_the_point_as_far_as_its_frame(linked: Linked, listener: PeerListener) -> None:
    """Invariant 1: an answer leaves only after each backup has applied what it reveals."""
    peer = listener.greet()
    linked.link.choose(ALL, 5)
    linked.engine.set_commit_points(3, [linked.link.point])
    writes, frames = [], []
    for _ in range(3):
        writes.append(Task(lambda: Caller(linked.engine).set(KEYS[3], b"v", budget_ms=60_000)))
        frames.append(peer.frame())
    for number, frame in enumerate(frames):
        assert_stays(lambda number=number: not writes[number].is_done, "the write")  # type: ignore[misc]
        peer.acknowledge(frame)
        writes[number].result()
    assert linked.link.stats()["frames_waiting"] == 0


def test_an_acknowledgement_out_of_turn_counts_for_nothing(linked: Linked, listener: PeerListener) -> None:
    peer = listener.greet()
    linked.link.choose(ALL, 5)
    before = linked.link.acknowledged
    linked.set(1, b"first")
    first = peer.frame()
    position = linked.set(1, b"second")
    second = peer.frame()
    peer.acknowledge(second)
    again = listener.greet()
    assert linked.link.acknowledged == linked.link.point.position == before, "the peer has the second and not the first?"
    frame = again.frame()
    assert (frame.generation, frame.values) == (2, [b"first", b"second"])
    peer.close()
    again.acknowledge(frame)
    linked.wait_for(position)
    assert first.generation == 1


def test_what_is_not_for_the_peer_is_passed_by(linked: Linked, listener: PeerListener) -> None:
    peer = listener.greet()
    linked.link.choose([1], 5)
    linked.wait_for(linked.set(2))
    position = linked.set(1)
    frame = peer.frame()
    behind = linked.set(2)
    assert_stays(lambda: linked.link.acknowledged < position, "what is for the peer")
    assert linked.link.point.position < position, "nothing is passed by that lies behind what the peer owes"
    peer.acknowledge(frame)
    linked.wait_for(behind)
    assert [record.bucket for record in frame.records] == [1]
    assert peer.is_silent()


def test_who_watches_is_told_of_the_next_acknowledgement(linked: Linked, listener: PeerListener) -> None:
    peer = listener.greet()
    linked.link.choose(ALL, 5)
    linked.set(1)
    peer.acknowledge(peer.frame())
    wait_until(lambda: linked.link.point.position == linked.engine.stream.head, "the first")
    assert linked.host.moved == 0
    linked.link.watch()
    linked.set(1)
    peer.acknowledge(peer.frame())
    wait_until(lambda: linked.host.moved == 1, "being told")


def test_it_says_for_how_long_an_answer_is_owed(linked: Linked, listener: PeerListener) -> None:
    """Invariant 10 is judged by this."""
    peer = listener.greet()
    linked.link.choose(ALL, 5)
    assert linked.link.owed_s() == 0.0
    position = linked.set(1)
    frame = peer.frame()
    wait_until(lambda: linked.link.owed_s() > 0.01, "some time to pass")
    peer.acknowledge(frame)
    linked.wait_for(position)
    assert linked.link.owed_s() == 0.0


# --- refusals


def test_what_was_refused_is_sent_again_under_the_newer_epoch(linked: Linked, listener: PeerListener) -> None:
    """Invariant 4: a frame of an older view is applied by nobody. All since the last acknowledgement comes again, in the next
    generation; what was sent behind the refused frame counts for nothing."""
    peer = listener.greet()
    linked.link.choose(ALL, 5)
    linked.pass_on(peer, b"acknowledged")
    acknowledged = linked.link.acknowledged
    linked.set(1, b"refused")
    refused = peer.frame()
    linked.set(2, b"behind it")
    behind = peer.frame()
    peer.refuse(refused, Status.STALE_VIEW, b"newer view", 6)
    peer.refuse(behind, Status.STALE_VIEW, b"newer view", 6)
    wait_until(lambda: bool(linked.host.refusals), "the refusal to be told")
    assert linked.host.refusals[0] == (Status.STALE_VIEW, (b"newer view",))
    assert linked.link.acknowledged == acknowledged
    linked.host.epoch = 6
    linked.link.choose(ALL, 6)
    frame = peer.frame()
    while frame.epoch < 6:  # it may have been on its way
        assert frame.generation > 1
        peer.refuse(frame, Status.STALE_VIEW, b"newer view", 6)
        frame = peer.frame()
    assert (frame.generation >= 2, frame.values) == (True, [b"refused", b"behind it"])
    peer.acknowledge(frame)
    linked.wait_for(linked.engine.stream.head)


def test_orders_are_followed_while_a_newer_view_is_waited_for(
    linked: Linked, listener: PeerListener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are those of the views before it. (The control plane waits for the link to follow each of them, the link for a view
    that comes behind them: each costs the time of one look, while more views come, and leases run out.)"""
    monkeypatch.setattr(link_module, "IDLE_S", PATIENCE_S)
    monkeypatch.setattr(link_module, "CHOOSE_S", PATIENCE_S / 2)
    peer = listener.greet()
    linked.link.choose(ALL, 5)
    linked.set(1, b"refused")
    peer.refuse(peer.frame(), Status.STALE_VIEW, b"newer view", 8)
    wait_until(lambda: bool(linked.host.refusals), "the refusal to be told")
    for epoch in (6, 7):
        choosing = Task(lambda epoch=epoch: linked.link.choose(ALL, epoch))
        choosing.result()
    assert linked.link.stats()["connections"] == 1
    linked.host.epoch = 8
    linked.link.choose(ALL, 8)
    frame = peer.frame()
    assert (frame.epoch, frame.values) == (8, [b"refused"])


@pytest.mark.parametrize("status", [Status.BROKEN_CHAIN, Status.VIEW_AHEAD, Status.APPEND_LOG_FAILED])
def test_any_refusal_has_it_sent_again(linked: Linked, listener: PeerListener, status: Status) -> None:
    peer = listener.greet()
    linked.link.choose(ALL, 5)
    linked.set(1, b"refused")
    frame = peer.frame()
    peer.refuse(frame, status, "because", 5)
    again = peer.frame()
    assert (again.generation, again.values) == (2, [b"refused"])
    peer.acknowledge(again)
    linked.wait_for(linked.engine.stream.head)
    assert linked.host.refusals == ([] if status is Status.VIEW_AHEAD else [(status, ("because",))])
    assert linked.link.stats()["frames_refused"] == 1


@pytest.mark.parametrize("epoch", [5, 6], ids=["of this view", "of a newer one"])
def test_who_refuses_again_and_again_what_is_his_by_his_own_view_has_broken_copies(
    linked: Linked, listener: PeerListener, monkeypatch: pytest.MonkeyPatch, epoch: int
) -> None:
    """It let go of a copy that is taken for whole here; nothing behind a change of that bucket would ever be acknowledged. One
    that goes by a newer view has a reason that this node will learn of."""
    monkeypatch.setattr(refusals, "STUCK_S", 0.05)
    peer = listener.greet()
    linked.host.epoch = 5
    linked.link.choose(ALL, 5)
    linked.set(1, b"refused")
    broken = (Status.BROKEN_CHAIN, ("it refuses what it is to have by the view that it goes by",))
    end = time.monotonic() + (PATIENCE_S if epoch == 5 else 0.3)
    while broken not in linked.host.refusals and time.monotonic() < end:
        peer.refuse(peer.frame(), Status.STALE_VIEW, b"the view", epoch)
    assert (broken in linked.host.refusals) is (epoch == 5)
    assert linked.host.refusals[0] == (Status.STALE_VIEW, (b"the view",))


def test_an_acknowledgement_of_an_earlier_generation_counts_for_nothing(linked: Linked, listener: PeerListener) -> None:
    """Invariant 4: an acknowledgement of an older view is not counted."""
    peer = listener.greet()
    linked.link.choose(ALL, 5)
    before = linked.link.acknowledged
    linked.set(1, b"refused")
    refused = peer.frame()
    linked.set(2, b"behind it")
    behind = peer.frame()
    peer.refuse(refused, Status.VIEW_AHEAD, "not yet", 5)
    again = peer.frame()
    assert again.generation == 2
    peer.acknowledge(behind)  # late, and of no meaning any more
    assert_stays(lambda: linked.link.acknowledged == linked.link.point.position == before, "the point")
    peer.acknowledge(again)
    linked.wait_for(linked.engine.stream.head)
    assert linked.link.counts.connections == 1


# --- lost connections


def test_what_was_not_acknowledged_is_sent_again_over_the_next_connection(linked: Linked, listener: PeerListener) -> None:
    """Invariant 7: the same incarnations go on where they were."""
    peer = listener.greet()
    linked.link.choose(ALL, 5)
    linked.pass_on(peer, b"acknowledged")
    linked.set(1, b"one")
    peer.frame()
    linked.set(2, b"two")
    peer.frame()
    peer.close()
    again = listener.greet()
    frame = again.frame()
    assert (frame.generation, frame.values) == (2, [b"one", b"two"])
    wait_until(lambda: linked.host.downs == [False], "being told of the loss")
    again.acknowledge(frame)
    linked.wait_for(linked.engine.stream.head)


def test_a_garbled_answer_ends_the_connection(linked: Linked, listener: PeerListener) -> None:
    peer = listener.greet()
    linked.link.choose(ALL, 5)
    linked.set(1, b"one")
    peer.frame()
    peer.send(b"no reply at all, whatever it is")
    frame = listener.greet().frame()
    assert (frame.generation, frame.values) == (2, [b"one"])


def test_without_a_connection_nothing_is_kept_for_a_peer_that_has_nothing(linked: Linked, listener: PeerListener) -> None:
    """Else a peer that is away for long would have every writer wait for room."""
    listener.stop_listening()
    wait_until(lambda: True in linked.host.downs, "the refused connection")
    linked.wait_for(linked.set(1))


def test_without_a_connection_what_the_peer_is_to_have_is_kept(linked: Linked, listener: PeerListener) -> None:
    before = linked.link.acknowledged
    linked.link.choose([1], 5)
    linked.set(1, b"kept")
    assert_stays(lambda: linked.link.acknowledged == before, "the point")
    peer = listener.greet()
    frame = peer.frame()
    assert frame.values == [b"kept"]
    peer.acknowledge(frame)
    linked.wait_for(linked.engine.stream.head)


def test_where_nobody_listens_what_the_peer_is_to_have_is_kept(linked: Linked, listener: PeerListener) -> None:
    """Invariant 1: until a view says that it is no backup any more, nothing is as if it had it."""
    listener.stop_listening()
    linked.link.choose([1], 5)
    before = linked.link.acknowledged
    linked.set(1, b"kept")
    tries = len(linked.host.downs)
    wait_until(lambda: len(linked.host.downs) > tries + 2, "some more tries")
    assert linked.link.acknowledged == linked.link.point.position == before


# --- choosing


def test_a_choice_holds_for_whatever_is_placed_once_it_was_made(engine_factory: EngineFactory, engine: Engine) -> None:
    """Invariants 4 and 6: a record placed after `choose` came back is never passed by, and never leaves under an earlier
    epoch. (A backup is waited for from then on; it would miss the record, or refuse it as one that does not fit.)"""
    found: dict[bytes, int] = {}  # value: the epoch that it came under

    def take(request: Request) -> tuple[Status, tuple[int]]:
        frame = frame_of(request)
        for record in frame.records:
            found.setdefault(record.value, frame.epoch)
        return Status.OK, (0,)

    answering = Answering(take)
    linked = Linked(engine, answering)
    chosen, wanted, epoch = random.Random(20261126), {}, 5
    for _ in range(25):
        order = chosen.sample(ALL, len(ALL))
        for count in range(len(ALL) + 1):  # one more each time: what was chosen stays so until it was sent
            epoch += 1
            linked.host.epoch = epoch
            linked.link.choose(order[:count], epoch)
            for bucket in ALL:
                if bucket in order[:count]:
                    wanted[b"%d in %d" % (bucket, epoch)] = epoch
                linked.set(bucket, b"%d in %d" % (bucket, epoch) if bucket in order[:count] else b"not wanted")
        linked.wait_for(engine.stream.head)
    linked.stop()
    answering.close()
    found.pop(b"not wanted", None)
    assert set(found) >= set(wanted), "passed by"
    assert [value for value, epoch in wanted.items() if found[value] < epoch] == [], "under an earlier epoch"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Links that are made behind this leave a peer little time to take a frame."""
    monkeypatch.setattr(link_module, "SEND_S", 2.0)


@pytest.mark.usefixtures("impatient")
def test_a_choice_of_a_link_that_is_held_up_makes_the_connection_anew(linked: Linked, listener: PeerListener) -> None:
    """A peer that does not read: nothing of what it was still sent is of the later epoch, and `choose` comes back."""
    peer = listener.greet()
    linked.link.choose(ALL, 5)
    for _ in range(200):
        linked.set(1, bytes(60_000))
    wait_until(linked.is_held_up, "the sender to be held up")
    linked.link.choose(ALL, 6)
    linked.set(1, b"after")
    again = listener.greet()
    frame = again.frame()
    assert (frame.generation, frame.epoch) == (2, 6)
    frames = [frame]
    while frames[-1].values[-1] != b"after":
        frames.append(again.frame())
    assert {frame.epoch for frame in frames} == {6}
    assert sum(len(frame.records) for frame in frames) == 201, "everything again"
    again.acknowledge(*frames)
    linked.wait_for(linked.engine.stream.head)
    peer.close()


# --- the commit point, and the end


def test_a_point_is_replaced_by_one_that_goes_on_without_a_lease(linked: Linked, listener: PeerListener) -> None:
    """What is answered waits for the new one, which holds no lease yet, so nothing leaves before it was granted one."""
    peer = listener.greet()
    linked.link.choose(ALL, 5)
    linked.pass_on(peer, b"before")
    acknowledged = linked.link.acknowledged
    old = linked.link.replace_point()
    new = linked.link.point
    assert new is not old
    assert new.position == acknowledged
    linked.engine.set_commit_points(1, [new])
    old.abandon()
    writing = Task(lambda: Caller(linked.engine).ask(Opcode.SET, 0, 0, KEYS[1], b"after", budget_ms=60_000))
    peer.acknowledge(peer.frame())
    linked.wait_for(linked.engine.stream.head)
    assert_stays(lambda: not writing.is_done, "an answer without a lease")
    new.lease(HELD_FOR_EVER)
    assert writing.result().status is Status.OK


def test_it_ends_whatever_the_peer_does(engine: Engine, listener: PeerListener) -> None:
    """Not greeted, held up in a frame, and waiting for an answer."""
    linked = Linked(engine, listener)
    listener.accept()
    linked.stop()
    linked = Linked(engine, listener)
    peer = listener.greet()
    linked.link.choose(ALL, 5)
    for _ in range(200):
        linked.set(1, bytes(60_000))
    linked.stop()
    peer.close()
    linked = Linked(engine, listener)
    peer = listener.greet()
    linked.link.choose(ALL, 5)
    linked.set(1)
    peer.frame()
    linked.stop()
    assert peer.request() is None
    assert not linked.link.is_up


# --- questions


def test_what_is_read_waits_for_an_answer_of_this_epoch(engine_factory: EngineFactory, listener: PeerListener) -> None:
    """With `--reads confirmed`. An OK that names a newer epoch counts once this link's frames name that too."""
    engine = engine_factory(confirm_reads=True)
    linked = Linked(engine, listener)
    peer = listener.greet()
    for bucket in ALL:
        engine.set_commit_points(bucket, [linked.link.point])
    linked.link.choose(ALL, 5)
    reading = Task(lambda: linked.caller.ask(Opcode.GET, b"key", budget_ms=60_000))
    asked = peer.frame()
    assert (asked.epoch, asked.body) == (5, b"")
    wait_until(lambda: linked.link.stats()["frames"] == 1, "the question to be counted")
    peer.send(encode_reply(Opcode.RECORDS, Status.OK, asked.request_id, 6, bytes(8)))
    assert linked.is_held_up()
    assert not reading.is_done
    linked.host.epoch = 6
    linked.link.choose(ALL, 6)
    asked = peer.frame()
    assert (asked.epoch, asked.body) == (6, b"")
    assert not reading.is_done
    peer.send(encode_reply(Opcode.RECORDS, Status.OK, asked.request_id, 6, bytes(8)))
    assert reading.result().status is Status.NOT_FOUND
    linked.stop()


def test_a_question_that_is_refused_is_asked_again(engine_factory: EngineFactory, listener: PeerListener) -> None:
    engine = engine_factory(confirm_reads=True)
    linked = Linked(engine, listener)
    peer = listener.greet()
    for bucket in ALL:
        engine.set_commit_points(bucket, [linked.link.point])
    linked.link.choose(ALL, 5)
    reading = Task(lambda: linked.caller.ask(Opcode.GET, b"key", budget_ms=60_000))
    peer.refuse(peer.frame(), Status.VIEW_AHEAD, "not yet", 4)
    again = peer.frame()
    assert (again.generation, again.body) == (2, b"")
    assert not reading.is_done
    peer.acknowledge(again)
    assert reading.result().status is Status.NOT_FOUND
    linked.stop()
