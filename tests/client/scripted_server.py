"""A server that plays a script: a real listening socket, and for each connection a function that says what happens on it.

Which thread runs it: one that accepts, and one for each connection, all joined by `stop`.
What it owns: its sockets. A script that fails is remembered, and `stop` raises it, so that a test cannot miss it.
"""

from __future__ import annotations

import contextlib
import secrets
import socket
from collections.abc import Callable
from threading import Condition, Thread
from time import monotonic

from rcache_client.wire.frames import Request, RequestReader, encode_reply
from rcache_client.wire.grammar import GOODBYE_REPLY, REASON, REQUESTS, WELCOME, reply_layout
from rcache_client.wire.opcodes import ANY_CLUSTER, NONCE_BYTES, Opcode, Status
from rcache_client.wire.proof import client_proof, server_proof

from .fake_service import FakeService

CLUSTER = b"cluster-number-1"
OTHER_CLUSTER = b"cluster-number-2"
PATIENCE_SECONDS = 10.0
"""No wait of a test takes longer; what is waited for normally comes at once."""


class Gone(Exception):
    """The client has closed its end."""


class Line:
    """The server's end of one connection."""

    def __init__(self, server: ScriptedServer, end: socket.socket) -> None:
        self.server = server
        self.socket = end
        self.last_executed = 0
        self._reader = RequestReader(1 << 30)

    def request(self) -> Request:
        """The next request but VIEW, which is answered; remembered by the server. Raises `Gone` at the end."""
        while (request := self.any_request()).opcode == Opcode.VIEW:
            self.server.answer_view(self, request)
        self.server.remember(request)
        return request

    def any_request(self) -> Request:
        """The next request, whatever it is. Raises `Gone` at the end."""
        while (request := self._reader.next()) is None:
            try:
                data = self.socket.recv(1 << 16)
            except OSError as error:
                raise Gone from error
            if not data:
                raise Gone
            self._reader.feed(data)
        return request

    def reply(self, request: Request, status: int, payload: bytes) -> None:
        self.raw(encode_reply(request.opcode, status, request.request_id, self.server.epoch, payload))

    def raw(self, data: bytes) -> None:
        try:
            self.socket.sendall(data)
        except OSError as error:
            raise Gone from error

    def refuse(self, request: Request, status: int, reason: str = "because") -> None:
        self.reply(request, status, REASON.encode(reason))

    def welcome(self) -> bytes:
        return WELCOME.encode(*self.server.welcome_fields())

    def hello(self) -> Request:
        """Answer HELLO properly."""
        request = self.request()
        assert request.opcode == Opcode.HELLO
        self.last_executed = request.request_id
        cluster = REQUESTS[Opcode.HELLO].decode(request.payload)[3]
        if cluster not in (ANY_CLUSTER, self.server.cluster_id):
            self.refuse(request, Status.WRONG_CLUSTER)
            raise Gone
        self.reply(request, Status.OK, self.welcome())
        return request

    def challenge(self, secret: bytes, *, shown: bytes | None = None) -> None:
        """Answer HELLO with a challenge, and AUTH with a proof from `secret` (or `shown`, a lie)."""
        hello = self.request()
        nonce = secrets.token_bytes(NONCE_BYTES)
        self.reply(hello, Status.CHALLENGE, reply_layout(Opcode.HELLO, Status.CHALLENGE).encode(nonce))
        auth = self.request()
        (proof,) = REQUESTS[Opcode.AUTH].decode(auth.payload)
        if proof != client_proof(secret, hello.payload, nonce):
            self.refuse(auth, Status.WRONG_PROOF)
            raise Gone
        own = server_proof(secret, hello.payload, nonce) if shown is None else shown
        self.reply(auth, Status.OK, reply_layout(Opcode.AUTH, Status.OK).encode(own, *self.server.welcome_fields()))

    def execute(self, request: Request) -> None:
        """Answer one request properly."""
        if request.opcode == Opcode.GOODBYE:
            self.reply(request, Status.OK, GOODBYE_REPLY.encode(self.last_executed, ""))
            raise Gone
        status, payload = self.server.service.answer(request)
        self.last_executed = request.request_id
        self.reply(request, status, payload)

    def serve(self) -> None:
        """Answer everything properly, to the end."""
        while True:
            self.execute(self.request())

    def say_goodbye(self, status: Status = Status.SHUTTING_DOWN, last_executed: int | None = None) -> None:
        """The server's own GOODBYE, then FIN; read on until the client closes."""
        last = self.last_executed if last_executed is None else last_executed
        self.raw(encode_reply(Opcode.GOODBYE, status, last, 1, GOODBYE_REPLY.encode(last, "on purpose")))
        with contextlib.suppress(OSError):  # the client may be gone already
            self.socket.shutdown(socket.SHUT_WR)
        self.hold()

    def hold(self) -> None:
        """Say nothing more; read on until the client closes."""
        with contextlib.suppress(OSError):
            while self.socket.recv(1 << 16):
                pass
        raise Gone


Script = Callable[[Line], None]


def play(line: Line) -> None:
    """The script of a server with nothing wrong."""
    line.hello()
    line.serve()


def play_silence(line: Line) -> None:
    """Greets, takes every request, answers none."""
    line.hello()
    while True:
        line.request()


class ScriptedServer:
    """Plays `scripts` in turn, one for each connection; the last of them for all that follow."""

    def __init__(
        self, *scripts: Script, service: FakeService | None = None, cluster_id: bytes = CLUSTER, name: str = "one"
    ) -> None:
        self.scripts: list[Script] = list(scripts) or [play]
        self.service = service or FakeService()
        self.cluster_id = cluster_id
        self.name = name
        self.requests: list[Request] = []
        self.view_requests: list[Request] = []
        self.view: bytes | None = None
        """The text of a view, for a server of a cluster; None for one that knows no VIEW."""
        self.epoch = 1
        self.connections = 0
        self.open_now = 0
        self.changed = Condition()
        self.port = 0
        self._failures: list[BaseException] = []
        self._ends: list[socket.socket] = []
        self._threads: list[Thread] = []
        self.start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def opcodes(self) -> list[int]:
        """What was asked so far, without greetings and goodbyes."""
        with self.changed:
            return [r.opcode for r in self.requests if r.opcode > Opcode.GOODBYE]

    def welcome_fields(self) -> tuple[object, ...]:
        service = self.service
        limits = service.frame_bytes_max, service.value_bytes_max
        return 1, self.cluster_id, 7, 1024, *limits, 600_000, self.name, "0.1.0"

    def start(self) -> None:
        """Listen: on a port that is free, or after `stop` on the same one as before."""
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        listener.listen(64)
        self.port = listener.getsockname()[1]
        self._listener = listener
        self._stopping = False
        self._start_thread(self._accept, listener)

    def stop(self) -> None:
        """Close everything as a killed process would, join all threads, and raise what a script raised."""
        with self.changed:
            self._stopping = True
            ends = [self._listener, *self._ends]
        for end in ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(PATIENCE_SECONDS)
            assert not thread.is_alive(), f"{thread.name} hangs"
        self._listener.close()
        self._ends.clear()
        self._threads.clear()
        if self._failures:
            raise self._failures.pop()

    def remember(self, request: Request) -> None:
        with self.changed:
            self.requests.append(request)
            self.changed.notify_all()

    def answer_view(self, line: Line, request: Request) -> None:
        """As a node would, or a server from before there were clusters."""
        with self.changed:
            self.view_requests.append(request)
            view = self.view
            self.changed.notify_all()
        if view is None:
            line.refuse(request, Status.UNKNOWN_OPCODE)
        else:
            (known,) = REQUESTS[Opcode.VIEW].decode(request.payload)
            text = b"" if self.epoch <= known else view
            line.reply(request, Status.OK, reply_layout(Opcode.VIEW, Status.OK).encode("embedded", text))

    def wait_for(self, condition: Callable[[], bool], what: str = "it") -> None:
        """Wait until something about this server is so."""
        deadline = monotonic() + PATIENCE_SECONDS
        with self.changed:
            while not condition():
                assert self.changed.wait(deadline - monotonic()), f"{what} did not come about"

    def __enter__(self) -> ScriptedServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _start_thread(self, target: Callable[..., None], argument: object) -> None:
        thread = Thread(target=target, args=(argument,), name=f"scripted-{len(self._threads)}")
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                end, _ = listener.accept()
            except OSError:
                return
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self.changed:
                if self._stopping:
                    end.close()
                    return
                script = self.scripts[min(self.connections, len(self.scripts) - 1)]
                self.connections += 1
                self.open_now += 1
                self._ends.append(end)
                self._start_thread(lambda pair: self._play(*pair), (script, end))
                self.changed.notify_all()

    def _play(self, script: Script, end: socket.socket) -> None:
        try:
            script(Line(self, end))
        except Gone:
            pass
        except BaseException as error:
            self._failures.append(error)
        finally:
            end.close()
            with self.changed:
                self.open_now -= 1
                self.changed.notify_all()
