"""Workers: a connection and what serves it, from accept to close; and the threads that serve one each.

What it is: the loop that lets the engine serve and does what it hands back; the polite and the impolite ways to close; and
the register of all connections, with its limit.
Which thread runs it: each connection's own, `worker-N`, where it has one (see `sharing`). Started by the listener, joined by
the service through `Connections`.
What it owns: the connection's socket. It may lock: the register, for moments; never with I/O.
What it must not know: what requests mean.

Closing: the last frame is sent, then FIN, then the worker reads on until the peer closes (bounded), because closing with
unread bytes makes the kernel send a reset, and a reset can destroy replies the peer has not read yet.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable

from loguru import logger

from rcache.engine.contract import ConnectionLimits, Engine, EngineConnection, Handback
from rcache.engine.sockets import Ended, set_kernel_timeout
from rcache.server.session import Control, Session, Welcome
from rcache_client.wire.opcodes import Opcode, Status

FAREWELL_S = 2.0
"""How long a worker reads on after FIN. A peer that reads its replies closes within a round trip."""

RESERVED_HELLO_S = 1.0
"""How long a newcomer beyond the limit has to show that it is an administrator or a node."""

DISCARD_BYTES = 64 << 10

NODE_LOOK_S = 0.2
"""How late a quiet node's worker notices that serving is to end."""

MOVED = "moved"
"""How a thread ends whose connection another worker serves from now on."""

_GOODBYES = {
    Ended.HELLO_TIMEOUT: (Status.HELLO_TIMEOUT, "nothing was said in time"),
    Ended.IDLE_TIMEOUT: (Status.IDLE_TIMEOUT, "idle for too long"),
    Ended.FRAME_TIMEOUT: (Status.FRAME_TIMEOUT, "a frame did not come in whole in time"),
    Ended.STOPPING: (Status.SHUTTING_DOWN, "this node stops; nothing after the named request was executed"),
}


def _nobody_shares(_worker: object) -> None:
    raise AssertionError("nobody shares sockets here")


class Connections:
    """All connections of this node: how many there may be, who serves them, and how they ended."""

    def __init__(self, limit: int, reserve: int) -> None:
        self.limit = limit
        self.reserve = reserve
        self._lock = threading.Lock()
        self._workers: dict[int, Worker] = {}
        self._next = 0
        self.accepted = 0
        self.refused = 0
        self.crashes = 0
        self.ended: Counter[str] = Counter()
        self._requests_of_ended = 0

    def enter(self, make: Callable[[int, bool], Worker]) -> Worker | None:
        """A new worker, or None where there is no place. `make` gets its number and whether its place is a reserved one."""
        with self._lock:
            count = len(self._workers)
            if count >= self.limit + self.reserve:
                self.refused += 1
                return None
            self._next += 1
            worker = self._workers[self._next] = make(self._next, count >= self.limit)
            self.accepted += 1
            return worker

    def leave(self, worker: Worker, how: str) -> None:
        with self._lock:
            was_here = self._workers.pop(worker.number, None) is not None
            if was_here:
                self.ended[how] += 1
                self._requests_of_ended += worker.connection.requests
        if was_here:
            worker.session.ended()
        worker.gone.set()

    def __len__(self) -> int:
        return len(self._workers)

    def note_refused(self) -> None:
        with self._lock:
            self.refused += 1

    def note_crash(self) -> None:
        with self._lock:
            self.crashes += 1

    def workers(self) -> list[Worker]:
        with self._lock:
            return list(self._workers.values())

    def stats(self) -> dict[str, object]:
        with self._lock:
            requests = self._requests_of_ended + sum(worker.connection.requests for worker in self._workers.values())
            return {
                "connections": len(self._workers),
                "connections_max": self.limit,
                "accepted": self.accepted,
                "refused": self.refused,
                "requests": requests,
                "unhandled_errors": self.crashes,
                "ended": dict(self.ended),
            }

    def join_all(self, deadline: float) -> list[Worker]:
        """Wait until all connections have left, to `deadline` (time.monotonic) at most. Returns those that are still there."""
        return [worker for worker in self.workers() if not worker.join(max(0.0, deadline - time.monotonic()))]


class Worker:
    """One connection and, where it has one of its own, its thread.

    `parting_as`: the last frame is on its way, and how the connection will have ended; "" before that. `gone`: it has left.
    """

    def __init__(self, number: int, sock: socket.socket, peer: str, connection: EngineConnection, session: Session) -> None:
        self.number = number
        self.peer = peer
        self.connection = connection
        self.session = session
        self.sock = sock
        self.parting_as = ""
        self.gone = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, run: Callable[[Worker], None]) -> None:
        """Raises RuntimeError where no thread can be had."""
        thread = threading.Thread(target=run, args=(self,), name=f"worker-{self.number}")
        thread.start()
        self._thread = thread

    def join(self, timeout_s: float) -> bool:
        """Wait until the connection has left and its thread, if it has one, has ended. False if that took too long."""
        deadline = time.monotonic() + timeout_s
        if not self.gone.wait(timeout_s):
            return False
        if self._thread is not None:
            self._thread.join(max(0.0, deadline - time.monotonic()))
            return not self._thread.is_alive()
        return True

    def break_off(self) -> None:
        """Any thread: end the connection now; its worker wakes up with an error."""
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)


class WorkerRun:
    """What every worker does; shared by all of them."""

    def __init__(
        self,
        engine: Engine,
        connections: Connections,
        control: Control,
        welcome: Callable[[], Welcome],
        limits: ConnectionLimits,
        secret: bytes | None,
    ) -> None:
        self._engine = engine
        self._connections = connections
        self._control = control
        self._welcome = welcome
        self._limits = limits
        self._secret = secret
        self.share: Callable[[Worker], None] = _nobody_shares
        self.stopping = threading.Event()

    def make(self, number: int, sock: socket.socket, peer: str, *, reserved: bool) -> Worker:
        limits = self._limits
        if reserved:
            hello_s = min(RESERVED_HELLO_S, limits.hello_s)
            limits = ConnectionLimits(hello_s, limits.idle_s, limits.frame_s, limits.send_s)
        connection = self._engine.connect(sock, limits)
        session = Session(connection, self._control, self._welcome, self._secret, reserved=reserved)
        return Worker(number, sock, peer, connection, session)

    def __call__(self, worker: Worker) -> None:
        """The thread's one catch-all: an unhandled error ends this connection, is logged and counted."""
        how = "error"
        try:
            how = self._serve(worker)
        except Exception:
            self._connections.note_crash()
            logger.exception("worker {} ({}): unhandled error; the connection is closed", worker.number, worker.peer)
        if how != MOVED:
            worker.sock.close()
            self._connections.leave(worker, how)

    def _serve(self, worker: Worker) -> str:
        """Until the connection is to be closed, or served by another. Returns how it ended."""
        while True:
            handback = self._engine.serve(worker.connection)
            if handback.ended is Ended.CROWDED:
                self.share(worker)
                return MOVED
            if handback.ended is not Ended.FRAME:
                return self._end(worker, handback)
            assert handback.request is not None
            response = worker.session.respond(handback.request)
            if response.close:
                said = handback.request.opcode == Opcode.GOODBYE
                self._part(worker, response.frame)
                return "goodbye" if said else "refused"
            lost = worker.connection.send(response.frame)
            if lost is not None:
                return lost.name.lower()
            if worker.session.may_wait:
                return self._serve_alone(worker)

    def serve_alone(self, worker: Worker) -> None:
        """As `__call__`, for a connection that became a node's or a feed's on a worker that serves others too."""
        how = "error"
        try:
            how = self._serve_alone(worker)
        except Exception:
            self._connections.note_crash()
            logger.exception("worker {} ({}): unhandled error; the connection is closed", worker.number, worker.peer)
        worker.sock.close()
        self._connections.leave(worker, how)

    def _serve_alone(self, worker: Worker) -> str:
        """A node's connection has a thread of its own to its end: what it brings may wait for the log, and nobody is to wait
        for it. Of that the engine takes in by itself only records about which nothing is new (`contract.Gate`). So has a
        feed's, which waits for what is to be told."""
        worker.sock.setblocking(True)
        set_kernel_timeout(worker.sock, socket.SO_RCVTIMEO, NODE_LOOK_S)
        while not self.stopping.is_set():
            handback = self._engine.serve_peer(worker.connection, worker.session.gate)
            ended = self._answer_alone(worker, handback) if handback is not None else ""
            if ended:
                return ended
        self._part(worker, worker.session.goodbye(*_GOODBYES[Ended.STOPPING]))
        return "stopping"

    def _answer_alone(self, worker: Worker, handback: Handback) -> str:
        """Answer what was handed back; how the connection ended, if it did."""
        request = handback.request
        if request is None:
            return self._end(worker, handback)
        response = worker.session.respond(request)
        if response.close:
            self._part(worker, response.frame)
            return "goodbye" if request.opcode == Opcode.GOODBYE else "refused"
        lost = worker.connection.send(response.frame)
        return lost.name.lower() if lost is not None else ""

    def _end(self, worker: Worker, handback: Handback) -> str:
        words = self.last_words(worker, handback)
        if words is not None:
            self._part(worker, words)
        return handback.ended.name.lower()

    @staticmethod
    def last_words(worker: Worker, handback: Handback) -> bytes | None:
        """The frame to send before the connection is closed; None where there is nothing to say."""
        ended = handback.ended
        if handback.bad is not None:
            logger.warning("{}: {} ({}); closed", worker.peer, handback.bad.status.name, handback.bad.reason)
            return worker.session.reject(handback.bad).frame
        if ended not in _GOODBYES:
            return None
        status, reason = _GOODBYES[ended]
        if not worker.connection.data_allowed and ended is Ended.HELLO_TIMEOUT and worker.session.reserved:
            status, reason = Status.TOO_MANY_CONNECTIONS, "all places for clients are taken; try again later"
        return worker.session.goodbye(status, reason)

    @staticmethod
    def _part(worker: Worker, frame: bytes) -> None:
        """Send the last frame, then FIN, then read on until the peer closes or FAREWELL_S are over."""
        sock = worker.sock
        if worker.connection.send(frame) is not None:
            return
        deadline = time.monotonic() + FAREWELL_S
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_WR)
            while (left_s := deadline - time.monotonic()) > 0:
                set_kernel_timeout(sock, socket.SO_RCVTIMEO, left_s)
                if not sock.recv(DISCARD_BYTES):
                    return
