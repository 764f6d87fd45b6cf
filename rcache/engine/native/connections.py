"""The native engine's connections and groups of them in the contract's types.

Which thread runs it: the worker that owns the connection; `NativeGroup.add` any.
What it owns: the connection's core. What it must not know: HELLO, GOODBYE, who closes the socket.

What cannot be read is handed back as bytes; the words for it are the grammar's.
"""

from __future__ import annotations

import socket

from rcache.engine.contract import ConnectionLimits, EngineConnection, Handback
from rcache.engine.native import _native
from rcache.engine.sockets import Ended, set_kernel_timeout
from rcache_client.wire.frames import HEADER, HEADER_BYTES, BadFrame, Request, RequestReader
from rcache_client.wire.grammar import REQUESTS, BadPayload
from rcache_client.wire.opcodes import Status

BUSY_WAIT_S = 0.2
"""How long a connection counts as busy after its last frame; also how late a busy one notices that serving is to end."""

ENDINGS = tuple(Ended)
GOING_ON = ENDINGS.index(Ended.CROWDED)
"""Of a `send`: all was taken. Of a `serve`: nothing ended; another worker is to go on."""


class NativeConnection:
    """One connection. See `contract.EngineConnection`."""

    def __init__(self, core: _native.Core, sock: socket.socket, limits: ConnectionLimits) -> None:
        sock.setblocking(True)
        set_kernel_timeout(sock, socket.SO_SNDTIMEO, limits.send_s)
        set_kernel_timeout(sock, socket.SO_RCVTIMEO, BUSY_WAIT_S)
        self.sock = sock
        in_ns = [int(seconds * 1e9) for seconds in (limits.hello_s, limits.idle_s, limits.frame_s, limits.send_s)]
        self.core = _native.Connection(core, sock, *in_ns)

    @property
    def data_allowed(self) -> bool:
        return self.core.data_allowed

    @data_allowed.setter
    def data_allowed(self, allowed: bool) -> None:
        self.core.data_allowed = allowed

    @property
    def greeted(self) -> bool:
        return self.core.greeted

    @greeted.setter
    def greeted(self, greeted: bool) -> None:
        self.core.greeted = greeted

    @property
    def last_executed(self) -> int:
        return self.core.last_executed

    @last_executed.setter
    def last_executed(self, request_id: int) -> None:
        self.core.last_executed = request_id

    @property
    def requests(self) -> int:
        return self.core.requests

    def send(self, data: bytes) -> Ended | None:
        ending = self.core.send(data)
        return None if ending == GOING_ON else ENDINGS[ending]

    def queue(self, data: bytes, *, last: bool = False) -> None:
        self.core.queue(data, last)

    def handback(self, ending: int, status: int, frame: bytes) -> Handback:
        """What the core handed back, in the contract's types."""
        ended = ENDINGS[ending]
        if ended is Ended.FRAME:
            _, _, opcode, _, _, request_id, budget_ms = HEADER.unpack_from(frame)
            return Handback(ended, request=Request(opcode, request_id, budget_ms, frame[HEADER_BYTES:]))
        if ended is Ended.BAD_FRAME:
            return Handback(ended, bad=self._bad_frame(status, frame))
        return Handback(ended)

    def _bad_frame(self, status: int, frame: bytes) -> BadFrame:
        """The words are the grammar's. That it finds nothing wrong would be a bug of one of the two."""
        if status == Status.BAD_PAYLOAD:
            _, _, opcode, _, _, request_id, _ = HEADER.unpack_from(frame)
            try:
                REQUESTS[opcode].decode(frame[HEADER_BYTES:])
            except BadPayload as error:
                return BadFrame(Status.BAD_PAYLOAD, str(error), request_id, opcode)
        reader = RequestReader(self.core.frame_bytes_max)
        reader.feed(frame)
        try:
            reader.next()
        except BadFrame as bad:
            return bad
        raise AssertionError(f"a frame was refused with {Status(status).name} that the grammar takes: {frame[:64]!r}")


class NativeGroup:
    """Connections that share a worker. See `contract.SocketGroup`."""

    def __init__(self, core: _native.Core) -> None:
        self._group = _native.SocketGroup(core)
        self._connections: dict[_native.Connection, NativeConnection] = {}

    def add(self, connection: EngineConnection) -> None:
        assert isinstance(connection, NativeConnection)
        self._connections[connection.core] = connection
        self._group.add(connection.core)

    def serve(self) -> tuple[EngineConnection, Handback] | None:
        served = self._group.serve()
        if served is None:
            return None
        core, ending, status, frame = served
        connection = self._connections.pop(core)
        return connection, connection.handback(ending, status, frame)
