"""Windows: what a link has under way, sent by whoever comes first, answered in order, and sent again from what was answered."""

from __future__ import annotations

import select
import socket
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from rcache.engine.change_stream import Window, WindowTerms
from rcache.engine.contract import ConnectionLimits, Engine
from rcache.engine.sockets import Ended
from rcache.records.record import decode, heads
from rcache_client.wire.frames import Request, RequestReader, encode_reply, encode_request
from rcache_client.wire.grammar import REQUESTS
from rcache_client.wire.opcodes import Opcode, Status
from tests.contract.conftest import EngineFactory
from tests.contract.harness import EVERYTHING, PATIENCE_S, Caller, Task, assert_stays, decode_frame, wait_until

PREFIX = b"epoch and incarnations"
EPOCH = 1

PLENTY = EVERYTHING.to_bytes(8, "big")
"""The peer has room for all of it."""
TERMS = WindowTerms(Opcode.RECORDS, 64 << 10, 5.0)
EVERY = list(range(8))


class Peer:
    """The other end of a link: reads frames, and answers them when it is told to."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        sock.settimeout(PATIENCE_S)
        self._reader = RequestReader(1 << 30)

    def next(self) -> Request:
        while (request := self._reader.next()) is None:
            data = self.sock.recv(1 << 20)
            assert data, "the connection was closed"
            self._reader.feed(data)
        assert request.opcode == Opcode.RECORDS
        return request

    def keys(self, prefix: bytes = PREFIX) -> list[bytes]:
        """Of the next frame's records."""
        return keys_of(self.next(), prefix)

    def answer(self, request_id: int, status: Status = Status.OK, payload: bytes = PLENTY, epoch: int = 1) -> None:
        self.sock.sendall(encode_reply(Opcode.RECORDS, status, request_id, epoch, payload))

    def says_nothing(self) -> None:
        """Nothing was sent by now."""
        assert select.select([self.sock], [], [], 0.0)[0] == []


def keys_of(request: Request, prefix: bytes = PREFIX) -> list[bytes]:
    assert request.payload.startswith(prefix)
    body = request.payload[len(prefix) :]
    return [decode(body, head.start, head.end).key for head in heads(body)]


class Linked:
    """An engine with a window, all of whose buckets wait for its point; two threads serve it, as those of a link do."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.point = engine.open_commit_point("peer", engine.stream.head)
        self.window: Window = engine.stream.open_window("peer", TERMS, self.point)
        self.window.set_prefix(PREFIX, EPOCH)
        self.window.choose(EVERY)
        self.handed: list[bytes] = []
        self.ended: Ended | None = None
        self._opened = ExitStack()
        self._stopping = threading.Event()
        self._threads: list[Task] = []
        self._ours: socket.socket | None = None

    def connect(self) -> Peer:
        """On a new connection, which nobody serves yet."""
        ours, theirs = (self._opened.enter_context(sock) for sock in socket.socketpair())
        self._ours = ours
        self.connection = self.window.begin(ours)
        return Peer(theirs)

    def wait(self) -> None:
        """Have every bucket wait for the peer from now on."""
        for bucket in EVERY:
            self.engine.set_commit_points(bucket, [self.point])

    def serve(self) -> None:
        self._stopping.clear()
        self._threads = [Task(self._send), Task(self._receive)]

    def _send(self) -> None:
        while not self._stopping.is_set():
            self.ended = self.window.run(0.5)
            if self.ended is not None:
                return

    def _receive(self) -> None:
        """Takes in every answer that is handed to it, as long as all of them are whole and OK."""
        while data := self.window.receive(self.connection, mid_frame=False):
            self.handed.append(data)
            for at in range(0, len(data), 24):
                reply = decode_frame(data[at : at + 24])
                self.window.take(reply.request_id, reply.epoch)

    def cut(self) -> None:
        """The connection ends, and so do both threads."""
        self._stopping.set()
        assert self._ours is not None
        self._ours.shutdown(socket.SHUT_RDWR)
        self.engine.stream.wake_readers()
        for thread in self._threads:
            thread.result()
        self._threads = []
        self.window.end()

    def close(self) -> None:
        if self._threads:
            self.cut()
        self.window.end()
        self.window.close()
        self.point.close()
        self._opened.close()


@pytest.fixture
def linked(engine: Engine) -> Iterator[Linked]:
    linked = Linked(engine)
    yield linked
    linked.close()


# --- sending, and waiting for answers


def test_a_change_leaves_at_once_and_waits_for_its_answer(linked: Linked, caller: Caller) -> None:
    peer = linked.connect()
    linked.wait()
    linked.serve()
    setting = Task(lambda: caller.set(b"key", b"value", budget_ms=60_000))
    request = peer.next()
    assert keys_of(request) == [b"key"]
    assert_stays(lambda: not setting.is_done, "the wait")
    peer.answer(request.request_id)
    setting.result()
    assert linked.window.acknowledged == linked.window.looked == linked.engine.stream.head
    counts = linked.window.counts()
    assert (counts.waiting, counts.owed_s, counts.frames, counts.records) == (0, 0.0, 1, 1)


def test_every_way_to_serve_a_client_sends_and_takes_in(engine_factory: EngineFactory) -> None:
    """A thread of its own, and one that is shared where there is such a thing; with the link's threads there."""
    engine = engine_factory()
    linked = Linked(engine)
    peer = linked.connect()
    linked.wait()
    linked.serve()
    answering = Task(lambda: [peer.answer(peer.next().request_id) for _ in range(40)])
    group = engine.share()
    for shared in [False] if group is None else [False, True]:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            connection = engine.connect(ours, ConnectionLimits())
            theirs.settimeout(PATIENCE_S)
            if shared:
                assert group is not None
                group.add(connection)
                serving: Task = Task(group.serve)
            else:
                serving = Task(lambda connection=connection: engine.serve(connection))
            for number in range(20):
                payload = REQUESTS[Opcode.SET].encode(0, 0, b"k%d" % number, b"value")
                theirs.sendall(encode_request(Opcode.SET, number, 60_000, payload))
                assert decode_frame(theirs.recv(1000)).status == Status.OK
            theirs.shutdown(socket.SHUT_WR)
            serving.result()
    if group is None:
        for number in range(20):
            Caller(engine).set(b"k%d" % number, b"value", budget_ms=60_000)
    answering.result()
    assert linked.window.counts().records == 40
    linked.close()


def test_what_is_not_for_the_peer_is_passed_by(linked: Linked, caller: Caller) -> None:
    linked.window.choose([])
    peer = linked.connect()
    linked.wait()
    linked.serve()
    caller.set(b"key", b"value", budget_ms=60_000)
    wait_until(lambda: linked.point.position == linked.engine.stream.head, "the point to move")
    peer.says_nothing()


def test_what_is_passed_by_behind_a_frame_is_acknowledged_with_it(linked: Linked, caller: Caller) -> None:
    peer = linked.connect()
    one, two = (next(b"%d" % n for n in range(100) if zlib.crc32(b"%d" % n) % 8 == bucket) for bucket in (3, 4))
    linked.window.choose([3])
    caller.set(one, b"value")
    assert linked.window.send_until(linked.engine.stream.head) is None
    before = linked.point.position
    caller.set(two, b"value")
    assert linked.window.send_until(linked.engine.stream.head) is None
    assert linked.window.looked == linked.engine.stream.head
    assert linked.point.position == before, "something of its own lies before"
    assert linked.window.take(peer.next().request_id, EPOCH) is False
    assert linked.point.position == linked.engine.stream.head
    peer.says_nothing()


def test_nothing_is_sent_while_the_sender_follows_orders(linked: Linked, caller: Caller) -> None:
    """A worker sends only while the link's sender is in `run`: nothing placed under an order leaves by an older one."""
    peer = linked.connect()
    linked.wait()
    setting = Task(lambda: caller.set(b"key", b"value", budget_ms=60_000))
    wait_until(lambda: linked.engine.stream.head > linked.window.looked, "the change")
    assert_stays(lambda: linked.window.counts().frames == 0, "the silence")
    peer.says_nothing()
    linked.window.set_prefix(b"a later epoch", EPOCH + 1)
    linked.serve()
    request = peer.next()
    assert keys_of(request, b"a later epoch") == [b"key"]
    peer.answer(request.request_id)
    setting.result()


def test_the_sender_comes_back_when_it_is_woken(linked: Linked) -> None:
    linked.connect()
    running = Task(lambda: linked.window.run(PATIENCE_S))
    assert_stays(lambda: not running.is_done, "the wait")
    linked.engine.stream.wake_readers()
    assert running.result() is None


def test_a_peer_that_takes_nothing_is_waited_for_by_the_sender_alone(engine_factory: EngineFactory) -> None:
    """What the socket does not take is finished by the sender; the worker that began it waits for the answer like any other."""
    engine = engine_factory()
    linked = Linked(engine)
    peer = linked.connect()
    linked.serve()
    keys = [b"k%d" % number for number in range(60)]
    for key in keys:
        Caller(engine).set(key, bytes(60_000))
    seen: list[bytes] = []
    while len(seen) < len(keys):
        request = peer.next()
        seen += keys_of(request)
        peer.answer(request.request_id)
    assert seen == keys
    wait_until(lambda: linked.window.acknowledged == engine.stream.head, "all to be taken in")
    linked.close()


# --- answers


def test_answers_that_come_cut_or_together_are_taken_in(linked: Linked, caller: Caller) -> None:
    peer = linked.connect()
    linked.serve()
    ids = []
    for number in range(12):
        caller.set(b"k%d" % number, b"value")
        ids.append(peer.next().request_id)
    data = b"".join(encode_reply(Opcode.RECORDS, Status.OK, request_id, 1, PLENTY) for request_id in ids)
    if linked.engine.name == "native":  # Python's own threads here take whole ones alone
        for at in range(0, 48, 5):
            peer.sock.sendall(data[at : min(at + 5, 48)])
            time.sleep(0.001)
        peer.sock.sendall(data[48:])
    else:
        peer.sock.sendall(data)
    wait_until(lambda: linked.window.acknowledged == linked.engine.stream.head, "all to be taken in")
    assert linked.window.counts().waiting == 0


def test_an_answer_out_of_turn_moves_nothing(linked: Linked, caller: Caller) -> None:
    peer = linked.connect()
    caller.set(b"one", b"value")
    assert linked.window.send_until(linked.engine.stream.head) is None
    first = peer.next().request_id
    caller.set(b"two", b"value")
    assert linked.window.send_until(linked.engine.stream.head) is None
    second = peer.next().request_id
    before = linked.point.position
    with pytest.raises(ValueError, match="was due"):
        linked.window.take(second, EPOCH)
    peer.answer(second)
    data = linked.window.receive(linked.connection, mid_frame=False)
    assert decode_frame(data).request_id == second, "it is left to the link"
    assert linked.point.position == before
    assert linked.window.take(first, EPOCH) is False
    assert linked.window.take(second, EPOCH) is False
    assert linked.point.position == linked.engine.stream.head


@pytest.mark.parametrize(
    ("status", "payload", "opcode"),
    [
        (Status.STALE_VIEW, b"a view", Opcode.RECORDS),
        (Status.VIEW_AHEAD, b"\0\3why", Opcode.RECORDS),
        (Status.OK, b"", Opcode.RECORDS),
        (Status.OK, bytes(8), Opcode.HEARTBEAT),
        (Status.OK, bytes(4000), Opcode.RECORDS),
    ],
)
def test_what_is_no_plain_ok_is_left_to_the_link_with_all_behind_it(
    linked: Linked, caller: Caller, status: Status, payload: bytes, opcode: Opcode
) -> None:
    peer = linked.connect()
    ids = []
    for number in range(3):
        caller.set(b"k%d" % number, b"value")
        assert linked.window.send_until(linked.engine.stream.head) is None
        ids.append(peer.next().request_id)
    before = linked.point.position
    odd = encode_reply(opcode, status, ids[0], 1, payload)
    plain = encode_reply(Opcode.RECORDS, Status.OK, ids[1], 1, PLENTY)
    peer.sock.sendall(odd + plain)
    found = b""
    while len(found) < len(odd) + len(plain):
        found += linked.window.receive(linked.connection, mid_frame=bool(found))
    assert found == odd + plain
    assert linked.point.position == before


def test_an_answer_that_is_left_to_the_link_may_be_longer_than_what_is_read_at_once(linked: Linked, caller: Caller) -> None:
    peer = linked.connect()
    caller.set(b"key", b"value")
    assert linked.window.send_until(linked.engine.stream.head) is None
    view = encode_reply(Opcode.RECORDS, Status.STALE_VIEW, peer.next().request_id, 1, bytes(200_000))
    answering = Task(lambda: peer.sock.sendall(view))
    found = b""
    while len(found) < len(view):
        found += linked.window.receive(linked.connection, mid_frame=bool(found))
    assert found == view
    answering.result()


def test_a_portion_is_answered_by_the_link(linked: Linked, caller: Caller) -> None:
    peer = linked.connect()
    caller.set(b"key", b"value")
    head = linked.engine.stream.head
    assert linked.window.send_until(head) is None
    assert linked.window.send_portion(b"rows", head) is None
    first, second = peer.next(), peer.next()
    assert second.payload == PREFIX + b"rows"
    peer.answer(first.request_id)
    peer.answer(second.request_id)
    taken: list[bool | None] = []
    while True not in taken:
        data = linked.window.receive(linked.connection, mid_frame=False)
        taken += [linked.window.take(decode_frame(data[at : at + 24]).request_id, EPOCH) for at in range(0, len(data), 24)]
    assert taken in ([True], [False, True])
    assert linked.point.position == head


# --- back


def test_all_that_was_not_answered_is_sent_again(linked: Linked, caller: Caller) -> None:
    """On another connection, and after a refusal on the same; answers to what was sent before count for nothing."""
    peer = linked.connect()
    linked.serve()
    ids = []
    for number in range(4):
        caller.set(b"k%d" % number, b"value")
        ids.append(peer.next().request_id)
    peer.answer(ids[0])
    wait_until(lambda: linked.window.counts().waiting == 3, "the first to be taken in")
    linked.cut()
    assert linked.window.run(0.0) is Ended.LOST
    again = linked.connect()
    for request_id in ids[1:]:
        assert linked.window.is_of_old(request_id)
        assert linked.window.take(request_id, EPOCH) is None
    before = linked.point.position
    linked.serve()
    request = again.next()
    assert keys_of(request) == [b"k1", b"k2", b"k3"]
    again.answer(ids[1])  # of the former connection
    assert_stays(lambda: linked.point.position == before, "the point")
    again.answer(request.request_id)
    wait_until(lambda: linked.point.position == linked.engine.stream.head, "all to be taken in")


def test_a_new_generation_on_the_same_connection(linked: Linked, caller: Caller) -> None:
    peer = linked.connect()
    for number in range(3):
        caller.set(b"k%d" % number, b"value")
        assert linked.window.send_until(linked.engine.stream.head) is None
        assert peer.keys() == [b"k%d" % number]
    assert linked.window.begin(None) == linked.connection
    assert linked.window.counts().waiting == 0
    assert linked.window.send_until(linked.engine.stream.head) is None
    request = peer.next()
    assert keys_of(request) == [b"k0", b"k1", b"k2"]
    assert linked.window.take(request.request_id, EPOCH) is False
    assert linked.point.position == linked.engine.stream.head


def test_without_a_connection_nothing_is_kept(linked: Linked, caller: Caller) -> None:
    caller.set(b"key", b"value")
    assert linked.window.run(0.0) is Ended.LOST
    linked.window.watch()
    linked.window.pass_by()
    assert linked.window.acknowledged == linked.window.looked == linked.point.position == linked.engine.stream.head
    assert linked.window.take_moved()
    assert not linked.window.take_moved()


def test_who_watches_is_told_once(linked: Linked, caller: Caller) -> None:
    peer = linked.connect()
    linked.serve()
    linked.window.watch()
    caller.set(b"key", b"value")
    request = peer.next()
    assert not linked.window.take_moved()
    peer.answer(request.request_id)
    wait_until(linked.window.take_moved, "the move to be told")
    assert not linked.window.take_moved()


def test_a_point_that_was_closed_is_told_nothing_any_more(linked: Linked, caller: Caller) -> None:
    """Its number may be another's by now."""
    peer = linked.connect()
    caller.set(b"key", b"value")
    assert linked.window.send_until(linked.engine.stream.head) is None
    linked.point.close()
    others = []
    while len(others) < 63:  # all numbers there are
        others.append(linked.engine.open_commit_point("other", 0))
    linked_id = peer.next().request_id
    assert linked.window.take(linked_id, EPOCH) is False
    assert linked.window.acknowledged == linked.engine.stream.head
    assert {other.position for other in others} == {0}
    for other in others:
        other.close()


def test_another_point_is_told_what_is_acknowledged(linked: Linked, caller: Caller) -> None:
    peer = linked.connect()
    caller.set(b"key", b"value")
    assert linked.window.send_until(linked.engine.stream.head) is None
    assert linked.window.take(peer.next().request_id, EPOCH) is False
    behind = linked.engine.open_commit_point("peer", 0)
    linked.window.set_point(behind)
    assert behind.position == linked.engine.stream.head
    linked.point.close()
    linked.point = behind


def test_what_is_acknowledged_makes_room(engine_factory: EngineFactory) -> None:
    engine = engine_factory(stream_bytes=1 << 20)
    linked = Linked(engine)
    peer = linked.connect()
    linked.serve()
    answering = Task(lambda: [peer.answer(peer.next().request_id) for _ in range(100)])
    for number in range(100):
        Caller(engine).set(b"k%d" % (number % 7), bytes(60_000), budget_ms=60_000)
        wait_until(lambda: linked.window.acknowledged == engine.stream.head, "the answer")
    answering.result()
    assert engine.stream.head > 4 * engine.config.stream_bytes
    linked.close()


def test_many_writers_and_one_link(linked: Linked) -> None:
    """Whoever comes first sends, and takes answers in: nothing is lost, nothing comes twice, each waits for its own."""
    engine = linked.engine
    peer = linked.connect()
    linked.wait()
    linked.serve()
    seen: list[bytes] = []
    stopping = threading.Event()

    def answer() -> None:
        peer.sock.settimeout(0.05)
        while not stopping.is_set():
            try:
                request = peer.next()
            except TimeoutError:
                continue
            seen.extend(keys_of(request))
            peer.answer(request.request_id)

    def write(writer: int) -> None:
        for number in range(200):
            Caller(engine).set(b"%d.%d" % (writer, number), b"value", budget_ms=60_000)
            assert b"%d.%d" % (writer, number) in seen[-500:]

    answering = Task(answer)
    for task in [Task(lambda n=n: write(n)) for n in range(4)]:
        task.result()
    stopping.set()
    answering.result()
    assert len(seen) == len(set(seen)) == 800
    for writer in range(4):
        assert [key for key in seen if key.startswith(b"%d." % writer)] == [b"%d.%d" % (writer, n) for n in range(200)]
