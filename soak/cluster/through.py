"""The parts of the proxy: a front that stands for a node, a connection through it, and each of that connection's directions.

What it is: `Front`, `Through`, `Pipe`. Which thread runs it: the proxy's only one.
What it owns: sockets. What it must not know: rules, and when anything is to be passed on.
"""

from __future__ import annotations

import socket
from collections import deque

from rcache_client.wire.frames import RequestReader

HELLO_BYTES_MAX = 1024
"""A longer first frame is no HELLO."""

BACKLOG = 128

NOTHING = 0
OPCODE_AT = 2
"""Of a frame's header. Whoever says HELLO waits for the answer, so what is read next begins with a frame."""


class Pipe:
    """One direction of a connection: bytes on their way, each with the time from which on they may arrive."""

    def __init__(self, source: socket.socket, sink: socket.socket) -> None:
        self.source = source
        self.sink = sink
        self.ways = ("", "")
        self.waiting: deque[tuple[float, bytes]] = deque()
        self.held = 0
        self.read_all = False
        self.sent_all = False

    def put(self, data: bytes, due: float) -> None:
        if self.waiting:
            due = max(due, self.waiting[-1][0])  # invariant 1
        self.waiting.append((due, data))
        self.held += len(data)

    def pump(self, now: float) -> None:
        """Deliver what is due, as far as the sink takes it. Raises `OSError`."""
        while self.waiting and self.waiting[0][0] <= now:
            data = self.waiting[0][1]
            try:
                sent = self.sink.send(data)
            except BlockingIOError:
                return
            self.held -= sent
            if sent < len(data):
                self.waiting[0] = (self.waiting[0][0], data[sent:])
                return
            self.waiting.popleft()
        if self.read_all and not self.waiting and not self.sent_all:
            self.sent_all = True
            self.sink.shutdown(socket.SHUT_WR)


class Through:
    """A connection through a front: from whoever made it (`down`) to the node (`up`, once it is connected)."""

    def __init__(self, front: Front, down: socket.socket) -> None:
        self.front = front
        self.down = down
        self.up = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        for each in (self.down, self.up):
            each.setblocking(False)
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.asking = Pipe(self.down, self.up)
        self.answering = Pipe(self.up, self.down)
        self.reader = RequestReader(HELLO_BYTES_MAX)
        self.who = ""
        self.asks_for = NOTHING
        """The opcode of the first frame after HELLO: what the connection is for."""
        self.called = False
        self.connected = False
        self.was_dropped = False
        self.closed = False
        self.masks: dict[socket.socket, int] = {self.down: 0, self.up: 0}

    def introduce(self, who: str) -> None:
        self.who = who
        self.asking.ways = (who, self.front.name)
        self.answering.ways = (self.front.name, who)

    def note_first_frame(self, data: bytes) -> None:
        """What comes first after HELLO."""
        if self.asks_for == NOTHING and len(data) > OPCODE_AT:
            self.asks_for = data[OPCODE_AT]

    def pipe_from(self, end: socket.socket) -> Pipe:
        return self.asking if end is self.down else self.answering

    def pipe_to(self, end: socket.socket) -> Pipe:
        return self.answering if end is self.down else self.asking

    @property
    def done(self) -> bool:
        return self.asking.sent_all and self.answering.sent_all


class Front:
    """What stands for a node. Its port stays its own while nobody listens: a second socket is bound to it all the time."""

    def __init__(self, name: str, target: int, party: str) -> None:
        self.name = name
        self.target = target
        self.party = party
        self.keeper = _bound(0)
        self.port: int = self.keeper.getsockname()[1]
        self.listener: socket.socket | None = None

    def listen(self) -> socket.socket:
        self.listener = _bound(self.port)
        self.listener.listen(BACKLOG)
        self.listener.setblocking(False)
        return self.listener


def _bound(port: int) -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    made.bind(("127.0.0.1", port))
    return made
