"""Connections that share a worker: what holds for one connection holds for each, and none waits for another."""

from __future__ import annotations

import contextlib
import queue
import random
import socket
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, closing

import pytest

from rcache.engine.contract import ConnectionLimits, Engine, EngineConnection, Handback, SocketGroup
from rcache.engine.sockets import Ended
from rcache_client.wire.frames import Reply, ReplyReader, encode_reply, encode_request
from rcache_client.wire.opcodes import Opcode, Status
from tests.contract.conftest import EngineFactory
from tests.contract.harness import EVERYTHING, PATIENCE_S, Caller, Task, answer_of, encode_payload, wait_until
from tests.contract.test_serving import random_requests


class Peer:
    """The other end of a connection in a group."""

    def __init__(self, served: Sharing, limits: ConnectionLimits, *, data_allowed: bool = True) -> None:
        self.peer, self.sock = socket.socketpair()
        self.peer.settimeout(PATIENCE_S)
        self.connection = served.engine.connect(self.sock, limits)
        self.connection.data_allowed = data_allowed
        self._reader = ReplyReader(1 << 30)
        served.group.add(self.connection)

    def ask(self, opcode: Opcode, *values: object, budget_ms: int = 0, request_id: int = 1) -> None:
        self.peer.sendall(encode_request(opcode, request_id, budget_ms, encode_payload(opcode, values)))

    def reply(self) -> Reply:
        while (reply := self._reader.next()) is None:
            data = self.peer.recv(1 << 16)
            assert data, "closed before the reply"
            self._reader.feed(data)
        return reply

    def is_quiet(self) -> bool:
        """Whether nothing has come by now."""
        self.peer.setblocking(False)
        try:
            return not self._reader.held and self.peer.recv(1, socket.MSG_PEEK) == b"never"
        except BlockingIOError:
            return True
        finally:
            self.peer.settimeout(PATIENCE_S)

    def close(self) -> None:
        self.peer.close()
        self.sock.close()


class Sharing:
    """A group served by a thread, and what it handed back."""

    def __init__(self, engine: Engine, group: SocketGroup) -> None:
        self.engine = engine
        self.group = group
        self.handed: queue.SimpleQueue[tuple[EngineConnection, Handback]] = queue.SimpleQueue()
        self.is_over = threading.Event()
        self._stack = ExitStack()
        self._task = Task(self._serve)

    def _serve(self) -> None:
        while (served := self.group.serve()) is not None:
            self.handed.put(served)
        self.is_over.set()

    def connect(self, limits: ConnectionLimits | None = None, *, data_allowed: bool = True) -> Peer:
        return self._stack.enter_context(closing(Peer(self, limits or ConnectionLimits(), data_allowed=data_allowed)))

    def handback(self, peer: Peer) -> Handback:
        """What is handed back next, which must be of this connection."""
        connection, handback = self.handed.get(timeout=PATIENCE_S)
        assert connection is peer.connection
        return handback

    def end(self) -> None:
        self.engine.stop_serving()
        self._stack.close()
        self._task.result()


@pytest.fixture
def sharing(engine_factory: EngineFactory) -> Iterator[Sharing]:
    """A group of an engine with all buckets open."""
    yield from shared(engine_factory())


@pytest.fixture
def committing(engine_factory: EngineFactory) -> Iterator[Sharing]:
    """The same with commit; the OPENs are on disk."""
    engine = engine_factory(commit=True)
    engine.stream.set_durable(engine.stream.head)
    yield from shared(engine)


def shared(engine: Engine) -> Iterator[Sharing]:
    group = engine.share()
    if group is None:
        pytest.skip(f"the {engine.name} engine serves one connection in each thread")
    served = Sharing(engine, group)
    yield served
    served.end()


@pytest.mark.parametrize("seed", range(6))
def test_many_pipelines_cut_anywhere_each_get_their_replies_in_order(sharing: Sharing, seed: int) -> None:
    chosen = random.Random(seed)
    peers = [sharing.connect() for _ in range(7)]

    def talk(peer: Peer, requests: list[tuple[Opcode, tuple[object, ...]]]) -> list[Reply]:
        cuts = random.Random(id(peer))
        stream = b"".join(encode_request(op, n, 0, encode_payload(op, values)) for n, (op, values) in enumerate(requests, 1))
        at = 0
        while at < len(stream):
            size = cuts.choice([1, 2, 15, 16, 17, 100, 5000])
            peer.peer.sendall(stream[at : at + size])
            at += size
        return [peer.reply() for _ in requests]

    asked = [random_requests(chosen, 60) for _ in peers]
    tasks = [Task(lambda p=peer, r=requests: talk(p, r)) for peer, requests in zip(peers, asked, strict=True)]
    for task, requests in zip(tasks, asked, strict=True):
        replies = task.result()
        assert [(reply.request_id, reply.opcode) for reply in replies] == [(n, op) for n, (op, _) in enumerate(requests, 1)]
        for reply in replies:
            answer_of(reply)  # of exactly the layout that its type demands
    sharing.engine.check()


def test_alone_in_a_group_the_replies_are_those_of_one_by_one(sharing: Sharing, engine_factory: EngineFactory) -> None:
    requests = random_requests(random.Random(5), 300)
    one_by_one = Caller(engine_factory())
    peer = sharing.connect()
    for number, (opcode, values) in enumerate(requests, 1):
        peer.ask(opcode, *values, request_id=number)
    assert [answer_of(peer.reply()) for _ in requests] == [one_by_one.ask(opcode, *values) for opcode, values in requests]
    assert peer.connection.last_executed == peer.connection.requests == len(requests)


def test_what_is_not_the_engines_business_is_handed_back_and_serving_goes_on_after_the_answer(sharing: Sharing) -> None:
    peer = sharing.connect()
    get = encode_request(Opcode.GET, 3, 0, encode_payload(Opcode.GET, (b"key",)))
    peer.ask(Opcode.SET, 0, 0, b"key", b"value")
    peer.peer.sendall(encode_request(Opcode.PING, 2, 1234) + get)
    assert peer.reply().request_id == 1
    handback = sharing.handback(peer)
    assert handback.ended is Ended.FRAME
    assert handback.request == (Opcode.PING, 2, 1234, b"")
    peer.connection.queue(encode_reply(Opcode.PING, Status.OK, 2, 0))
    sharing.group.add(peer.connection)
    assert [peer.reply().request_id, peer.reply().request_id] == [2, 3], "what was received behind it is not lost"
    assert peer.connection.requests == 3


def test_a_frame_handed_back_waits_for_the_replies_before_it(committing: Sharing) -> None:
    peer = committing.connect()
    head = committing.engine.stream.head
    peer.ask(Opcode.SET, 0, 0, b"key", b"value", budget_ms=60_000)
    peer.peer.sendall(encode_request(Opcode.PING, 2, 0) + b"\xff not a frame")
    wait_until(lambda: committing.engine.stream.head > head, "the change")
    other = committing.connect()
    other.ask(Opcode.INSPECT, b"none", budget_ms=60_000)
    assert other.reply().status == Status.NOT_FOUND, "others are served meanwhile"
    assert committing.handed.empty()
    committing.engine.stream.set_durable(committing.engine.stream.head)
    assert peer.reply().status == Status.OK
    assert committing.handback(peer).ended is Ended.FRAME
    committing.group.add(peer.connection)
    handback = committing.handback(peer)
    assert handback.bad is not None
    assert handback.bad.status is Status.BAD_MAGIC
    assert peer.connection.requests == 2, "each counts once"


@pytest.mark.parametrize("frame", [b"GET / HTTP/1.1", encode_request(Opcode.GET, 5, 0, b"\x00\x05key")])
def test_a_bad_frame_is_handed_back_after_the_replies_before_it(sharing: Sharing, frame: bytes) -> None:
    peer = sharing.connect()
    peer.ask(Opcode.SET, 0, 0, b"key", b"value")
    peer.peer.sendall(frame + encode_request(Opcode.DELETE, 6, 0, encode_payload(Opcode.DELETE, (b"key",))))
    assert peer.reply().status == Status.OK
    assert sharing.handback(peer).ended is Ended.BAD_FRAME
    assert Caller(sharing.engine).value(b"key") == b"value", "nothing behind it is executed"


def test_the_last_frame_is_followed_by_the_end(sharing: Sharing) -> None:
    peer = sharing.connect()
    peer.peer.sendall(encode_request(Opcode.GOODBYE, 1, 0))
    assert sharing.handback(peer).ended is Ended.FRAME
    peer.connection.queue(b"farewell", last=True)
    sharing.group.add(peer.connection)
    assert peer.peer.recv(100) == b"farewell"
    assert peer.peer.recv(100) == b""
    peer.peer.sendall(b"what it still says is read and dropped")
    assert sharing.handed.empty()
    peer.peer.close()
    assert sharing.handback(peer).ended is Ended.CLOSED


# --- nobody waits for another


def test_a_peer_that_takes_nothing_holds_nobody_up(sharing: Sharing) -> None:
    Caller(sharing.engine).set(b"key", bytes(60_000))
    slow, quick = sharing.connect(ConnectionLimits(send_s=0.3)), sharing.connect()
    request = encode_request(Opcode.GET, 1, 0, encode_payload(Opcode.GET, (b"key",)))
    sending = Task(lambda: slow.peer.sendall(request * 1000))
    for number in range(1, 50):
        quick.ask(Opcode.INSPECT, b"key", request_id=number)
        assert quick.reply().request_id == number
    assert sharing.handback(slow).ended is Ended.SLOW_READER
    slow.close()
    with contextlib.suppress(OSError):  # unless all of it was taken in before the end
        sending.result()


def test_a_peer_that_is_slow_gets_all_of_it(sharing: Sharing) -> None:
    Caller(sharing.engine).set(b"key", bytes(60_000))
    peer = sharing.connect()
    requests = [encode_request(Opcode.GET, number, 0, encode_payload(Opcode.GET, (b"key",))) for number in range(1, 101)]
    peer.peer.sendall(b"".join(requests))
    for number in range(1, 101):
        reply = peer.reply()
        assert (reply.request_id, len(answer_of(reply).values[2])) == (number, 60_000)


def test_a_frame_larger_than_any_read_comes_in(engine_factory: EngineFactory) -> None:
    for served in shared(engine_factory(value_bytes_max=3 << 20, frame_bytes_max=4 << 20)):
        peer, value = served.connect(), random.Random(1).randbytes(3 << 20)
        sending = Task(lambda peer=peer, value=value: peer.ask(Opcode.SET, 0, 0, b"key", value))
        assert peer.reply().status == Status.OK
        sending.result()
        peer.ask(Opcode.GET, b"key")
        assert answer_of(peer.reply()).values[2] == value


def test_each_waits_for_its_own_commitment(committing: Sharing) -> None:
    stream = committing.engine.stream
    reader = stream.open_reader("log", holds=True)
    peers = [committing.connect() for _ in range(5)]
    positions = []
    for number, peer in enumerate(peers):
        peer.ask(Opcode.SET, 0, 0, b"k%d" % number, b"value", budget_ms=60_000)
        batch = reader.take(1 << 20, PATIENCE_S)
        assert batch.count == 1
        positions.append(batch.position)
    assert all(peer.is_quiet() for peer in peers)
    for number, peer in enumerate(peers):
        stream.set_durable(positions[number])
        assert peer.reply().status == Status.OK
        assert all(later.is_quiet() for later in peers[number + 1 :])
    reader.close()


def test_a_batch_that_is_committed_in_part_says_so_for_each(committing: Sharing) -> None:
    stream = committing.engine.stream
    reader = stream.open_reader("log", holds=True)
    peer = committing.connect()
    frames = [encode_request(Opcode.SET, n, 300, encode_payload(Opcode.SET, (0, 0, b"k%d" % n, b"v"))) for n in (1, 2, 3)]
    peer.peer.sendall(b"".join(frames))
    positions: list[int] = []
    while len(positions) < 3:
        positions.append(reader.take(1, PATIENCE_S).position)
    stream.set_durable(positions[1])
    replies = [peer.reply() for _ in frames]
    assert [reply.status for reply in replies] == [Status.OK, Status.OK, Status.NOT_COMMITTED]
    assert [reply.request_id for reply in replies] == [1, 2, 3]
    reader.close()


def test_a_log_that_failed_answers_those_who_are_parked(committing: Sharing) -> None:
    head = committing.engine.stream.head
    peer = committing.connect()
    peer.ask(Opcode.SET, 0, 0, b"key", b"value", budget_ms=60_000)
    wait_until(lambda: committing.engine.stream.head > head, "the change")
    committing.engine.stream.fail("input/output error")
    assert peer.reply().status == Status.APPEND_LOG_FAILED


def test_who_is_parked_makes_the_log_hurry(committing: Sharing) -> None:
    reader = committing.engine.stream.open_reader("log", holds=True)
    taking = Task(lambda: reader.take(1 << 20, PATIENCE_S * 2, linger_s=PATIENCE_S * 2))
    peer = committing.connect()
    peer.ask(Opcode.SET, 0, 0, b"key", b"value", budget_ms=60_000)
    committing.engine.stream.set_durable(taking.result().position)
    assert peer.reply().status == Status.OK
    committing.engine.set_commit_points(zlib.crc32(b"key") % committing.engine.config.buckets, [])
    Caller(committing.engine).set(b"key", b"again")
    began = time.monotonic()
    assert reader.take(EVERYTHING, PATIENCE_S, linger_s=0.2).count == 1
    assert time.monotonic() - began >= 0.2, "nobody is parked any more"
    reader.close()


# --- limits and the end


@pytest.mark.parametrize(
    ("limits", "sent", "ended"),
    [
        (ConnectionLimits(hello_s=0.05), b"", Ended.HELLO_TIMEOUT),
        (ConnectionLimits(frame_s=0.05), b"\xca", Ended.FRAME_TIMEOUT),
        (ConnectionLimits(frame_s=0.05), encode_request(Opcode.GET, 1, 0, b"\x00\x09")[:17], Ended.FRAME_TIMEOUT),
    ],
)
def test_limits_hold_for_each(sharing: Sharing, limits: ConnectionLimits, sent: bytes, ended: Ended) -> None:
    patient, peer = sharing.connect(), sharing.connect(limits)
    peer.peer.sendall(sent)
    assert sharing.handback(peer).ended is ended
    patient.ask(Opcode.GET, b"key")
    assert patient.reply().status == Status.NOT_FOUND


def test_idle_for_too_long(sharing: Sharing) -> None:
    peer = sharing.connect(ConnectionLimits(idle_s=0.1))
    peer.ask(Opcode.GET, b"key")
    peer.reply()
    assert sharing.handback(peer).ended is Ended.IDLE_TIMEOUT


def test_without_leave_no_data_request_is_executed(sharing: Sharing) -> None:
    peer = sharing.connect(data_allowed=False)
    peer.ask(Opcode.SET, 0, 0, b"key", b"value", request_id=9)
    handback = sharing.handback(peer)
    assert handback.request is not None
    assert (handback.request.opcode, handback.request.request_id) == (Opcode.SET, 9)
    assert Caller(sharing.engine).value(b"key") is None


def test_stopping_hands_everyone_back_once_it_is_answered(sharing: Sharing) -> None:
    peers = [sharing.connect() for _ in range(5)]
    peers[0].ask(Opcode.SET, 0, 0, b"key", b"value")
    assert peers[0].reply().status == Status.OK
    peers[1].peer.sendall(b"\xca\x01")
    sharing.engine.stop_serving()
    handed = {}
    for _ in peers:
        connection, handback = sharing.handed.get(timeout=PATIENCE_S)
        handed[connection] = handback.ended
    assert handed == {peer.connection: Ended.STOPPING for peer in peers}
    assert sharing.is_over.wait(PATIENCE_S), "and nobody is left"


def test_stopping_ends_one_who_asks_again_as_soon_as_it_is_answered(committing: Sharing) -> None:
    """It is parked whenever it is looked at: answered, it would be served for as long as it asks."""
    busy, idle = committing.connect(), committing.connect()
    busy.ask(Opcode.SET, 0, 0, b"first", b"v", budget_ms=60_000, request_id=1)
    wait_until(lambda: committing.engine.stream.head > committing.engine.stream.durable, "the first to be executed")
    committing.engine.stop_serving()
    assert committing.handback(idle).ended is Ended.STOPPING
    head = committing.engine.stream.head
    busy.ask(Opcode.SET, 0, 0, b"second", b"v", budget_ms=60_000, request_id=2)
    committing.engine.stream.set_durable(head)
    assert busy.reply().request_id == 1
    assert committing.handback(busy).ended is Ended.STOPPING
    assert busy.connection.last_executed == 1
    assert committing.engine.stream.head == head, "the second is not executed"


def test_a_peer_that_closes_and_one_that_is_cut_off(sharing: Sharing) -> None:
    one, other = sharing.connect(), sharing.connect()
    one.ask(Opcode.GET, b"key")
    one.reply()
    one.peer.close()
    assert sharing.handback(one).ended is Ended.CLOSED
    other.sock.shutdown(socket.SHUT_RDWR)
    assert sharing.handback(other).ended in (Ended.CLOSED, Ended.LOST)


def test_one_that_had_a_thread_goes_over_with_all_it_has_received(sharing: Sharing) -> None:
    peer, sock = socket.socketpair()
    peer.settimeout(PATIENCE_S)
    frame = encode_request(Opcode.GET, 1, 0, encode_payload(Opcode.GET, (b"key",)))
    with closing(peer), closing(sock):
        connection = sharing.engine.connect(sock, ConnectionLimits())
        task = Task(lambda: sharing.engine.serve(connection))
        sharing.engine.set_crowded(True)
        peer.sendall(frame + frame[:5])
        assert len(peer.recv(100)) == 16
        handback = task.result()
        assert handback.ended is Ended.CROWDED
        sharing.group.add(connection)
        peer.sendall(frame[5:])
        assert len(peer.recv(100)) == 16, "the half frame went over with it"
        assert connection.requests == 2
        peer.close()
        assert sharing.handed.get(timeout=PATIENCE_S)[1].ended is Ended.CLOSED


# --- who is parked for a link


def test_who_is_parked_waits_for_the_points_of_its_bucket(sharing: Sharing) -> None:
    engine = sharing.engine
    points = [engine.open_commit_point(str(number), engine.stream.head) for number in range(3)]
    peers = [sharing.connect() for _ in points]
    for number, (peer, point) in enumerate(zip(peers, points, strict=True)):
        key = b"k%d" % number
        engine.set_commit_points(zlib.crc32(key) % engine.config.buckets, [point])
        peer.ask(Opcode.SET, 0, 0, key, b"value", budget_ms=60_000)
    wait_until(lambda: engine.stats()["items"]["sets"] == len(points), "the changes")
    assert len({zlib.crc32(b"k%d" % number) % engine.config.buckets for number in range(3)}) == 3
    assert all(peer.is_quiet() for peer in peers)
    points[1].advance(engine.stream.head)
    assert peers[1].reply().status == Status.OK
    assert peers[0].is_quiet()
    assert peers[2].is_quiet()
    points[0].close()
    assert peers[0].reply().status == Status.OK
    assert peers[2].is_quiet()
    engine.stream.end_waits()
    assert peers[2].reply().status == Status.NOT_COMMITTED


def test_who_is_parked_for_a_link_does_not_hurry_the_log(sharing: Sharing) -> None:
    engine = sharing.engine
    log, linger_s = engine.stream.open_reader("log", holds=True), 0.2
    link, peer = engine.open_commit_point("link", engine.stream.head), sharing.connect()
    engine.set_commit_points(zlib.crc32(b"key") % engine.config.buckets, [link])
    peer.ask(Opcode.SET, 0, 0, b"key", b"value", budget_ms=60_000)
    wait_until(lambda: engine.stats()["items"]["sets"] == 1, "the change")
    began = time.monotonic()
    assert log.take(EVERYTHING, PATIENCE_S, linger_s).count == 1
    assert time.monotonic() - began >= linger_s
    link.advance(engine.stream.head)
    assert peer.reply().status == Status.OK
    log.close()
