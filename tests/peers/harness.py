"""What the tests of lines, links and intakes share: a peer that says what the test has it say.

What it is: `PeerListener`, a listening socket whose connections the test itself serves, step by step, so that nothing happens
that it did not ask for; `Answering`, the same with a thread that answers everything; the records in a frame.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import suppress
from threading import Event, Thread
from typing import Any, NamedTuple

from rcache.cluster.leases import Peer
from rcache.peers.line import Line
from rcache.peers.link import Link
from rcache.records.record import Record, decode, heads
from rcache_client.address import Address
from rcache_client.handshake import Greeter
from rcache_client.wire.frames import Request, RequestReader, encode_reply
from rcache_client.wire.grammar import REQUESTS, WELCOME, Layout, reply_layout
from rcache_client.wire.opcodes import PROTOCOL_VERSION, Opcode, Role, Status
from tests.contract.harness import EVERYTHING, PATIENCE_S

CLUSTER = b"cluster-number-1"
PEER = Peer("n2", 7)
MINE = 3
"""The incarnation of the node under test."""


def greeter() -> Greeter:
    return Greeter("n1", Role.NODE, None)


class Frame(NamedTuple):
    """A RECORDS frame."""

    request_id: int
    epoch: int
    sender: int
    receiver: int
    generation: int
    body: bytes

    @property
    def records(self) -> list[Record]:
        return [decode(self.body, head.start, head.end) for head in heads(self.body)]

    @property
    def values(self) -> list[bytes]:
        return [record.value for record in self.records]


def frame_of(request: Request) -> Frame:
    assert request.opcode == Opcode.RECORDS
    layout = REQUESTS[Opcode.RECORDS]
    assert isinstance(layout, Layout)
    return Frame(request.request_id, *layout.decode(request.payload))


def welcome(name: str = "n2", cluster: bytes = CLUSTER) -> bytes:
    return WELCOME.encode(PROTOCOL_VERSION, cluster, PEER.incarnation, 8, 16 << 20, 1 << 20, 60_000, name, "test")


class Accepted:
    """The peer's end of one connection, greeted or not."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        sock.settimeout(PATIENCE_S)
        self._reader = RequestReader(1 << 30)
        self._held: Request | None = None

    def request(self) -> Request | None:
        """The next request; None where the other end has closed."""
        while (request := self._next()) is None:
            try:
                data = self.sock.recv(1 << 20)
            except ConnectionError:
                return None
            if not data:
                return None
            self._reader.feed(data)
        return request

    def _next(self) -> Request | None:
        """One that came in whole already."""
        held, self._held = self._held, None
        return held or self._reader.next()

    def frame(self) -> Frame:
        """The next frame of records."""
        request = self.request()
        assert request is not None, "the link closed the connection"
        return frame_of(request)

    def is_silent(self, seconds: float = 0.03) -> bool:
        """Whether nothing comes for a moment."""
        self._held = self._next()
        if self._held is not None:
            return False
        self.sock.settimeout(seconds)
        try:
            self.sock.recv(1, socket.MSG_PEEK)
        except TimeoutError:
            return True
        else:
            return False
        finally:
            self.sock.settimeout(PATIENCE_S)

    def hello(self, payload: bytes | None = None) -> Accepted:
        request = self.request()
        assert request is not None
        assert request.opcode == Opcode.HELLO
        self.answer(request, Status.OK, payload=welcome() if payload is None else payload)
        return self

    def answer(self, request: Request, status: Status, *values: Any, epoch: int = 0, payload: bytes | None = None) -> None:
        body = reply_layout(request.opcode, status).encode(*values) if payload is None else payload
        self.send(encode_reply(request.opcode, status, request.request_id, epoch, body))

    def acknowledge(self, *frames: Frame, room: int = EVERYTHING) -> None:
        for frame in frames:
            body = reply_layout(Opcode.RECORDS, Status.OK).encode(room)
            self.send(encode_reply(Opcode.RECORDS, Status.OK, frame.request_id, 0, body))

    def refuse(self, frame: Frame, status: Status, value: Any, epoch: int) -> None:
        body = reply_layout(Opcode.RECORDS, status).encode(value)
        self.send(encode_reply(Opcode.RECORDS, status, frame.request_id, epoch, body))

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def close(self) -> None:
        with suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()


class PeerListener:
    """Listens on a port of its own. Its backlog takes connections that the test serves when it comes to that."""

    def __init__(self) -> None:
        self._sock = socket.create_server(("127.0.0.1", 0))
        self._sock.settimeout(PATIENCE_S)
        self.address = Address(*self._sock.getsockname())
        self._accepted: list[Accepted] = []

    def line(self, connect_s: float = PATIENCE_S) -> Line:
        return Line(self.address, greeter(), connect_s)

    def accept(self) -> Accepted:
        accepted = Accepted(self._sock.accept()[0])
        self._accepted.append(accepted)
        return accepted

    def greet(self) -> Accepted:
        """The next connection, greeted."""
        return self.accept().hello()

    def stop_listening(self) -> None:
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()

    def close(self) -> None:
        self.stop_listening()
        for accepted in self._accepted:
            accepted.close()


Answers = Callable[[Request], "tuple[Status, tuple[Any, ...]] | None"]


class Answering(PeerListener):
    """Serves one connection after the other, or several, each in a thread: `answers` says what; None closes the connection.
    What was asked is in `asked`."""

    def __init__(self, answers: Answers, name: str = "n2", cluster: bytes = CLUSTER, epoch: int = 0) -> None:
        super().__init__()
        self.asked: list[Request] = []
        self.connections = 0
        self._answers = answers
        self._name, self._cluster, self._epoch = name, cluster, epoch
        self._stopping = Event()
        self._threads = [Thread(target=self._run, name="answering")]
        self._threads[0].start()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                accepted = self.accept()
            except OSError:
                return
            self.connections += 1
            thread = Thread(target=self._serve, args=(accepted,), name="answering")
            self._threads.append(thread)
            thread.start()

    def _serve(self, accepted: Accepted) -> None:
        with suppress(OSError):
            while (request := accepted.request()) is not None:
                if request.opcode == Opcode.HELLO:
                    accepted.answer(request, Status.OK, payload=welcome(self._name, self._cluster))
                    continue
                self.asked.append(request)
                answer = self._answers(request)
                if answer is None:
                    break
                accepted.answer(request, answer[0], *answer[1], epoch=self._epoch)
        accepted.close()

    def break_all(self) -> None:
        """End every connection there is."""
        for accepted in list(self._accepted):
            with suppress(OSError):
                accepted.sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._stopping.set()
        self.stop_listening()
        self._threads[0].join(PATIENCE_S)
        self.break_all()
        for thread in self._threads:
            thread.join(PATIENCE_S)
        super().close()


class FakeHost:
    """What a link tells. `epoch` is the test's to set."""

    def __init__(self, epoch: int = 5) -> None:
        self.epoch = epoch
        self.refusals: list[tuple[int, tuple[object, ...]]] = []
        self.downs: list[bool] = []
        self.filled: list[int] = []
        self.moved = 0
        self.without_room = 0

    def was_refused(self, link: Link, status: int, values: tuple[object, ...]) -> None:
        self.refusals.append((status, values))

    def came_down(self, link: Link, *, refused: bool) -> None:
        self.downs.append(refused)

    def has_filled(self, link: Link, bucket: int) -> None:
        self.filled.append(bucket)

    def has_no_room(self, link: Link) -> None:
        self.without_room += 1

    def has_moved(self, link: Link) -> None:
        self.moved += 1
