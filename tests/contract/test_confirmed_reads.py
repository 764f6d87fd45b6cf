"""Replies that wait until every backup has answered something that was sent after they were made, whatever the clocks say."""

from __future__ import annotations

import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from rcache.engine.change_stream import HELD_FOR_EVER, CommitPoint, StreamEnd, Wait
from rcache.engine.contract import ConnectionLimits, Engine
from rcache_client.wire.frames import ReplyReader, Request, encode_request
from rcache_client.wire.opcodes import Opcode, Status
from tests.contract.conftest import EngineFactory
from tests.contract.harness import PATIENCE_S, Caller, Served, Task, assert_stays, encode_payload, wait_until
from tests.contract.test_windows import EPOCH, EVERY, PREFIX, Linked, Peer, keys_of

LONG_MS = 60_000
"""A budget that no test uses up."""
SHORT_MS = 60
"""One that is to run out."""


def key_of(bucket: int) -> bytes:
    return next(b"%d" % number for number in range(100) if zlib.crc32(b"%d" % number) % len(EVERY) == bucket)


@pytest.fixture
def linked(engine_factory: EngineFactory) -> Iterator[Linked]:
    linked = Linked(engine_factory(confirm_reads=True))
    yield linked
    linked.close()


def question(peer: Peer, prefix: bytes = PREFIX) -> Request:
    """The next frame, which must bring nothing."""
    request = peer.next()
    assert keys_of(request, prefix) == []
    return request


class Asked:
    """Somebody who waits for a moment of his own, at these points."""

    def __init__(self, engine: Engine, *points: CommitPoint) -> None:
        self.bits = sum(1 << point.number for point in points)
        self.moment = engine.stream.begin_moment(self.bits)
        deadline_ns = time.monotonic_ns() + int(PATIENCE_S * 1e9)
        self._wait = Task(lambda: engine.stream.wait_committed(Wait(self.bits, 0, self.moment), deadline_ns))

    def waits(self) -> None:
        assert_stays(lambda: not self._wait.is_done, "the wait")

    def ends(self, end: StreamEnd = StreamEnd.REACHED) -> None:
        assert self._wait.result() is end


# --- moments, and what confirms them


def test_a_frame_that_was_begun_before_confirms_nothing(linked: Linked) -> None:
    peer = linked.connect()
    Caller(linked.engine).set(b"key", b"value")
    assert linked.window.send_until(linked.engine.stream.head) is None
    before = peer.next()
    asked = Asked(linked.engine, linked.point)
    linked.serve()
    after = question(peer)
    peer.answer(before.request_id)
    wait_until(lambda: linked.window.counts().waiting == 1, "the answer to be taken in")
    asked.waits()
    peer.answer(after.request_id)
    asked.ends()


def test_a_frame_of_records_that_was_begun_after_does(linked: Linked) -> None:
    peer = linked.connect()
    Caller(linked.engine).set(b"key", b"value")
    asked = Asked(linked.engine, linked.point)
    assert linked.window.send_until(linked.engine.stream.head) is None
    request = peer.next()
    assert keys_of(request) == [b"key"]
    linked.serve()
    asked.waits()
    peer.answer(request.request_id)
    asked.ends()
    peer.says_nothing()


def test_so_does_a_portion(linked: Linked) -> None:
    peer = linked.connect()
    asked = Asked(linked.engine, linked.point)
    assert linked.window.send_portion(b"rows", linked.window.looked) is None
    request = peer.next()
    asked.waits()
    assert linked.window.take(request.request_id, EPOCH) is True
    asked.ends()


def test_what_is_sent_up_to_a_position_asks_nothing(linked: Linked) -> None:
    """Who asks for that goes on to something else, and does not come to an end if others keep asking."""
    peer = linked.connect()
    asked = Asked(linked.engine, linked.point)
    assert linked.window.send_until(linked.engine.stream.head) is None
    peer.says_nothing()
    linked.serve()
    peer.answer(question(peer).request_id)
    asked.ends()


def test_one_question_serves_all_who_came_before_it(linked: Linked) -> None:
    peer = linked.connect()
    asked = [Asked(linked.engine, linked.point) for _ in range(5)]
    assert [each.moment for each in asked] == list(range(asked[0].moment, asked[0].moment + 5))
    linked.serve()
    peer.answer(question(peer).request_id)
    for each in asked:
        each.ends()
    assert linked.window.counts().frames == 1
    assert linked.window.counts().records == 0


def test_nothing_is_asked_where_nobody_waits(linked: Linked) -> None:
    peer = linked.connect()
    linked.serve()
    assert linked.engine.stream.begin_moment(1) == 0, "the disk answers nobody"
    assert_stays(lambda: linked.window.counts().frames == 0, "the silence")
    peer.says_nothing()


def test_an_answer_by_a_newer_view_confirms_nothing_and_the_next_epoch_asks_again(linked: Linked) -> None:
    """A peer that goes by a newer view may serve what was this node's, and still takes what fits of an older one."""
    peer = linked.connect()
    asked = Asked(linked.engine, linked.point)
    assert linked.window.run(0.0) is None
    assert linked.window.take(question(peer).request_id, EPOCH + 1) is False
    assert linked.window.run(0.01) is None
    asked.waits()
    peer.says_nothing()
    linked.window.set_prefix(b"the newer epoch", EPOCH + 1)
    assert linked.window.run(0.0) is None
    assert linked.window.take(question(peer, b"the newer epoch").request_id, EPOCH + 1) is False
    asked.ends()


def test_the_same_where_a_worker_takes_it_in(linked: Linked) -> None:
    peer = linked.connect()
    linked.wait()
    linked.serve()
    reading = Task(lambda: Caller(linked.engine).ask(Opcode.GET, b"key", budget_ms=LONG_MS))
    peer.answer(question(peer).request_id, epoch=EPOCH + 1)
    wait_until(lambda: linked.window.counts().waiting == 0, "the answer to be taken in")
    assert_stays(lambda: not reading.is_done, "the wait")
    peer.says_nothing()
    linked.cut()
    linked.window.set_prefix(PREFIX, EPOCH + 1)
    peer = linked.connect()
    linked.serve()
    peer.answer(question(peer).request_id, epoch=EPOCH + 1)
    assert reading.result().status is Status.NOT_FOUND


def test_an_answer_by_an_older_view_confirms(linked: Linked) -> None:
    """Nothing was carried out there of the view that the frame names; what comes later does not matter."""
    peer = linked.connect()
    asked = Asked(linked.engine, linked.point)
    assert linked.window.run(0.0) is None
    assert linked.window.take(question(peer).request_id, EPOCH - 1) is False
    asked.ends()


@pytest.mark.parametrize("same_connection", [True, False])
def test_what_was_under_way_when_a_connection_or_generation_ended_confirms_nothing(
    linked: Linked, same_connection: bool
) -> None:
    peer = linked.connect()
    asked = Asked(linked.engine, linked.point)
    assert linked.window.run(0.0) is None
    of_old = question(peer).request_id
    if same_connection:
        linked.window.begin(None)
    else:
        linked.window.end()
        peer = linked.connect()
    assert linked.window.take(of_old, EPOCH) is None
    asked.waits()
    assert linked.window.run(0.0) is None
    assert linked.window.take(question(peer).request_id, EPOCH) is False
    asked.ends()
    linked.window.begin(None)
    assert linked.window.run(0.01) is None
    peer.says_nothing()  # all that was asked is answered


def test_every_backup_must_answer(engine_factory: EngineFactory) -> None:
    engine = engine_factory(confirm_reads=True)
    both = [Linked(engine), Linked(engine)]
    peers = [linked.connect() for linked in both]
    for bucket in EVERY:
        engine.set_commit_points(bucket, [linked.point for linked in both])
    for linked in both:
        linked.serve()
    reading = Task(lambda: Caller(engine).ask(Opcode.GET, b"key", budget_ms=LONG_MS))
    ids = [question(peer).request_id for peer in peers]
    peers[1].answer(ids[1])
    wait_until(lambda: both[1].window.counts().waiting == 0, "the answer to be taken in")
    assert_stays(lambda: not reading.is_done, "the wait")
    peers[0].answer(ids[0])
    assert reading.result().status is Status.NOT_FOUND
    for linked in both:
        linked.close()


def test_only_those_are_asked_whom_somebody_waits_for(engine_factory: EngineFactory) -> None:
    engine = engine_factory(confirm_reads=True)
    both = [Linked(engine), Linked(engine)]
    peers = [linked.connect() for linked in both]
    asked = Asked(engine, both[0].point)
    for linked in both:
        linked.serve()
    peers[0].answer(question(peers[0]).request_id)
    asked.ends()
    peers[1].says_nothing()
    for linked in both:
        linked.close()


def test_a_point_that_takes_anothers_place_is_told_what_was_confirmed(linked: Linked) -> None:
    """It is the same peer; and nobody would ask again for a moment that is asked for already."""
    peer = linked.connect()
    new = linked.engine.open_commit_point("peer", linked.engine.stream.head)
    before, after = Asked(linked.engine, linked.point), Asked(linked.engine, new)
    assert linked.window.run(0.0) is None
    assert linked.window.take(question(peer).request_id, EPOCH) is False
    before.ends()
    after.waits()
    linked.window.set_point(new)
    after.ends()
    new.close()


def test_a_new_point_with_an_old_number_begins_with_nothing(engine: Engine) -> None:
    first = engine.open_commit_point("first", engine.stream.head)
    asked = Asked(engine, first)
    first.advance(engine.stream.head, asked.moment)
    asked.ends()
    first.close()
    points = [engine.open_commit_point("another", engine.stream.head)]
    while points[-1].number != first.number:
        points.append(engine.open_commit_point("another", engine.stream.head))
    again = Wait(asked.bits, 0, asked.moment)
    assert engine.stream.wait_committed(again, time.monotonic_ns()) is StreamEnd.TIMED_OUT
    for point in points:
        point.close()


def test_a_point_that_is_closed_answers_nobody_and_one_that_is_abandoned_ends_the_wait(engine: Engine) -> None:
    closed, abandoned = (engine.open_commit_point(name, engine.stream.head) for name in ("closed", "abandoned"))
    waiting, lost = Asked(engine, closed), Asked(engine, abandoned)
    waiting.waits()
    closed.close()
    waiting.ends()
    abandoned.advance(engine.stream.head, lost.moment - 1)
    lost.waits()
    abandoned.abandon()
    lost.ends(StreamEnd.TIMED_OUT)


# --- replies


ASKS: list[tuple[tuple[Any, ...], Status]] = [
    ((Opcode.GET, b"there"), Status.OK),
    ((Opcode.GET, b"not there"), Status.NOT_FOUND),
    ((Opcode.INSPECT, b"there"), Status.OK),
    ((Opcode.GET_WITH_TTL, b"there"), Status.OK),
    ((Opcode.GET_WITH_TTL, b"not there"), Status.NOT_FOUND),
    ((Opcode.ADD, 0, 0, b"there", b"value"), Status.EXISTS),
    ((Opcode.DELETE, b"not there"), Status.NOT_FOUND),
    ((Opcode.CAS_VERSION, 0, 0, 1, b"there", b"value"), Status.CHANGED),
    ((Opcode.GET_MANY, (b"there",), (b"not there",)), Status.OK),
]


@pytest.mark.parametrize(("asking", "status"), ASKS, ids=[f"{ask[0].name}-{status.name}" for ask, status in ASKS])
def test_whatever_reveals_something_waits(linked: Linked, asking: tuple[Any, ...], status: Status) -> None:
    Caller(linked.engine).set(b"there", b"value")
    peer = linked.connect()
    linked.wait()
    linked.serve()
    peer.answer(peer.next().request_id)
    wait_until(lambda: linked.window.acknowledged == linked.engine.stream.head, "all to be taken in")
    opcode, *values = asking
    task = Task(lambda: Caller(linked.engine).ask(opcode, *values, budget_ms=LONG_MS))
    request = question(peer)
    assert_stays(lambda: not task.is_done, "the wait")
    peer.answer(request.request_id)
    assert task.result().status is status


def test_without_the_option_nobody_is_asked(engine_factory: EngineFactory) -> None:
    linked = Linked(engine_factory())
    peer = linked.connect()
    linked.wait()
    linked.serve()
    assert Caller(linked.engine).value(b"key") is None
    peer.says_nothing()
    linked.close()


def test_flush_waits_too(linked: Linked) -> None:
    """It says how much there was."""
    peer = linked.connect()
    linked.wait()
    linked.serve()
    deadline_ns = time.monotonic_ns() + int(PATIENCE_S * 1e9)
    flushing = Task(lambda: linked.engine.flush(deadline_ns))
    request = question(peer)
    assert_stays(lambda: not flushing.is_done, "the wait")
    peer.answer(request.request_id)
    assert flushing.result() == 0


def test_a_bucket_without_backups_waits_for_nobody(engine_factory: EngineFactory) -> None:
    engine = engine_factory(confirm_reads=True, commit=True)
    linked = Linked(engine)
    peer = linked.connect()
    engine.stream.disk.advance(engine.stream.head)
    for bucket in EVERY[1:]:
        engine.set_commit_points(bucket, [linked.point])
    linked.serve()
    assert Caller(engine).ask(Opcode.GET, key_of(0)).status is Status.NOT_FOUND
    peer.says_nothing()
    linked.close()


def test_a_write_needs_no_frame_beside_its_own(linked: Linked) -> None:
    """No backup acknowledges what is not this node's to change."""
    peer = linked.connect()
    linked.wait()
    linked.serve()
    with Served(linked.engine, data_allowed=True) as served:
        for number in range(20):
            served.ask(Opcode.SET, 0, 0, b"key", b"%d" % number, budget_ms=LONG_MS)
            request = peer.next()
            assert keys_of(request) == [b"key"]
            peer.answer(request.request_id, epoch=EPOCH + 1)
            assert served.reply().status == Status.OK
    assert linked.window.counts().frames == 20


def test_of_a_batch_that_runs_out_of_time_what_was_written_is_told(linked: Linked) -> None:
    """The read in it is not confirmed; the write is acknowledged."""
    peer = linked.connect()
    linked.wait()
    linked.serve()
    with Served(linked.engine, data_allowed=True) as served:
        writing = encode_request(Opcode.SET, 1, SHORT_MS, encode_payload(Opcode.SET, (0, 0, b"key", b"value")))
        reading = encode_request(Opcode.GET, 2, SHORT_MS, encode_payload(Opcode.GET, (b"key",)))
        served.peer.sendall(writing + reading)
        request = peer.next()
        assert keys_of(request) == [b"key"]
        peer.answer(request.request_id, epoch=EPOCH + 1)
        assert [served.reply().status for _ in range(2)] == [Status.OK, Status.NOT_COMMITTED]


def test_a_worker_sends_what_it_asks(linked: Linked) -> None:
    """It does not wait for the link's sender to look; nor does that sleep over what others leave to it."""
    peer = linked.connect()
    linked.wait()
    running = Task(lambda: linked.window.run(10 * PATIENCE_S))
    with Served(linked.engine, data_allowed=True) as served:
        for _ in range(3):
            served.ask(Opcode.GET, b"key", budget_ms=LONG_MS)
            assert linked.window.take(question(peer).request_id, EPOCH) is False
            assert served.reply().status == Status.NOT_FOUND
            if running.is_done:  # the reference engine's comes back for it
                running.result()
                running = Task(lambda: linked.window.run(10 * PATIENCE_S))
    linked.engine.stream.wake_readers()
    running.result()


def test_a_reply_whose_deadline_passes_says_that_it_is_not_known(linked: Linked) -> None:
    """And only that one: what needs no answer is told as it is."""
    peer = linked.connect()
    for bucket in EVERY[1:]:
        linked.engine.set_commit_points(bucket, [linked.point])
    linked.serve()
    with Served(linked.engine, data_allowed=True) as served:
        asked = [encode_request(Opcode.GET, n, SHORT_MS, encode_payload(Opcode.GET, (key_of(n),))) for n in range(3)]
        served.peer.sendall(b"".join(asked))
        statuses = [(reply.request_id, reply.status) for reply in (served.reply() for _ in range(3))]
        assert statuses == [(0, Status.NOT_FOUND), (1, Status.NOT_COMMITTED), (2, Status.NOT_COMMITTED)]
        peer.answer(question(peer).request_id)
        served.ask(Opcode.GET, key_of(1), budget_ms=LONG_MS)
        peer.answer(question(peer).request_id)
        assert served.reply().status == Status.NOT_FOUND


def test_a_confirmed_reply_still_needs_its_lease(linked: Linked) -> None:
    peer = linked.connect()
    linked.wait()
    linked.serve()
    linked.point.lease(1)
    reading = Task(lambda: Caller(linked.engine).ask(Opcode.GET, b"key", budget_ms=LONG_MS))
    peer.answer(question(peer).request_id)
    wait_until(lambda: linked.window.counts().waiting == 0, "the answer to be taken in")
    assert_stays(lambda: not reading.is_done, "the wait")
    linked.point.lease(HELD_FOR_EVER)
    assert reading.result().status is Status.NOT_FOUND


def test_what_waits_for_a_point_that_is_abandoned_ends_and_holds_up_no_other(engine_factory: EngineFactory) -> None:
    engine = engine_factory(confirm_reads=True)
    taken, kept = Linked(engine), Linked(engine)
    peers = [taken.connect(), kept.connect()]
    engine.set_commit_points(0, [taken.point])
    engine.set_commit_points(1, [kept.point])
    for linked in (taken, kept):
        linked.serve()
    with Served(engine, data_allowed=True) as served:
        for number in (0, 1):
            served.ask(Opcode.GET, key_of(number), budget_ms=LONG_MS, request_id=number)
            if number == 0:
                peers[0].answer(question(peers[0]).request_id)
                assert served.reply().status == Status.NOT_FOUND
        peers[1].answer(question(peers[1]).request_id)
        assert served.reply().status == Status.NOT_FOUND
        both = [encode_request(Opcode.GET, n, LONG_MS, encode_payload(Opcode.GET, (key_of(n),))) for n in (0, 1)]
        served.peer.sendall(b"".join(both))
        ids = [question(peer).request_id for peer in peers]
        taken.point.abandon()
        assert_stays(lambda: served.is_served, "serving")
        peers[1].answer(ids[1])
        assert [served.reply().status for _ in range(2)] == [Status.NOT_COMMITTED, Status.NOT_FOUND]
    for linked in (taken, kept):
        linked.close()


# --- many


class Shared:
    """Connections that one worker serves together."""

    def __init__(self, engine: Engine, count: int) -> None:
        group = engine.share()
        assert group is not None
        self._engine = engine
        self._socks = [socket.socketpair() for _ in range(count)]
        self._readers = [ReplyReader(1 << 20) for _ in range(count)]
        self.connections = []
        for ours, theirs in self._socks:
            theirs.settimeout(PATIENCE_S)
            connection = engine.connect(ours, ConnectionLimits())
            connection.data_allowed = True
            group.add(connection)
            self.connections.append(connection)
        self._serving = Task(lambda: [group.serve() for _ in range(count)])

    def ask(self, number: int, opcode: Opcode, *values: Any, budget_ms: int = LONG_MS) -> None:
        self._socks[number][1].sendall(encode_request(opcode, number, budget_ms, encode_payload(opcode, values)))

    def status(self, number: int) -> Status:
        while (reply := self._readers[number].next()) is None:
            self._readers[number].feed(self._socks[number][1].recv(1 << 16))
        assert reply.request_id == number
        return Status(reply.status)

    def is_silent(self) -> bool:
        for _, theirs in self._socks:
            theirs.setblocking(False)
            try:
                theirs.recv(1, socket.MSG_PEEK)
            except BlockingIOError:
                continue
            else:
                return False
            finally:
                theirs.settimeout(PATIENCE_S)
        return True

    def close(self) -> None:
        for _, theirs in self._socks:
            theirs.shutdown(socket.SHUT_RDWR)
        self._serving.result()
        for pair in self._socks:
            for sock in pair:
                sock.close()


@pytest.fixture
def shared(linked: Linked) -> Iterator[Shared]:
    if linked.engine.name == "reference":
        pytest.skip("the reference engine serves one connection in each thread")
    shared = Shared(linked.engine, 4)
    yield shared
    shared.close()


def test_replies_of_shared_workers_are_parked_until_then(linked: Linked, shared: Shared) -> None:
    peer = linked.connect()
    linked.wait()
    linked.serve()
    for number in range(4):
        shared.ask(number, Opcode.GET, b"key")
    wait_until(lambda: sum(connection.requests for connection in shared.connections) == 4, "the requests")
    request = question(peer)
    assert_stays(shared.is_silent, "the wait")
    peer.answer(request.request_id)
    answering = Task(lambda: answer_until(peer, lambda: linked.window.counts().waiting == 0))  # they may have come in turns
    assert [shared.status(number) for number in range(4)] == [Status.NOT_FOUND] * 4
    answering.result()


def answer_until(peer: Peer, is_over: Callable[[], bool]) -> None:
    """Answer what comes, for as long as something does, and until it is over."""
    peer.sock.settimeout(0.05)
    try:
        while True:
            try:
                peer.answer(peer.next().request_id)
            except TimeoutError:
                if is_over():
                    return
    finally:
        peer.sock.settimeout(PATIENCE_S)


def test_parked_replies_whose_deadline_passes_say_that_it_is_not_known(linked: Linked, shared: Shared) -> None:
    peer = linked.connect()
    for bucket in EVERY[1:]:
        linked.engine.set_commit_points(bucket, [linked.point])
    linked.serve()
    shared.ask(0, Opcode.GET, key_of(0), budget_ms=SHORT_MS)
    shared.ask(1, Opcode.GET, key_of(1), budget_ms=SHORT_MS)
    shared.ask(2, Opcode.GET_MANY, (key_of(0),), (key_of(1),), budget_ms=SHORT_MS)
    assert shared.status(0) is Status.NOT_FOUND
    assert [shared.status(number) for number in (1, 2)] == [Status.NOT_COMMITTED] * 2
    assert peer.next().payload == PREFIX


def test_parked_replies_do_not_outlive_their_point(linked: Linked, shared: Shared) -> None:
    peer = linked.connect()
    linked.wait()
    linked.serve()
    shared.ask(0, Opcode.GET, b"key")
    request = question(peer)
    linked.point.abandon()
    peer.answer(request.request_id)
    assert shared.status(0) is Status.NOT_COMMITTED


def read_and_write(engine: Engine, number: int) -> None:
    caller = Caller(engine)
    for turn in range(200):
        if turn % 7 == 0:
            caller.set(b"%d" % number, b"value", budget_ms=LONG_MS)
        else:
            assert caller.ask(Opcode.GET, b"%d" % number, budget_ms=LONG_MS).status is Status.OK


def read_together(engine: Engine) -> None:
    if engine.name == "reference":
        return
    together = Shared(engine, 4)
    for _ in range(100):
        for number in range(4):
            together.ask(number, Opcode.GET, b"nothing")
        assert [together.status(number) for number in range(4)] == [Status.NOT_FOUND] * 4
    together.close()


def test_nothing_is_forgotten_where_many_ask_at_once(linked: Linked) -> None:
    """Readers and writers, in threads of their own and shared, over a link whose sender is in and out of `run`."""
    peer = linked.connect()
    linked.wait()
    linked.serve()
    stopping = threading.Event()

    def wake() -> None:
        while not stopping.wait(0.001):
            linked.engine.stream.wake_readers()

    helping = [Task(lambda: answer_until(peer, stopping.is_set)), Task(wake)]
    tasks = [Task(lambda n=n: read_and_write(linked.engine, n)) for n in range(4)]
    read_together(linked.engine)
    for task in tasks:
        task.result()
    stopping.set()
    for task in helping:
        task.result()
