"""A bare connection to a server: frames as bytes out, replies in, nothing done behind the test's back.

What it is: `Wire`, and the shortest way to write a request.
Which thread runs it: the test's, every wait ends at a deadline.
"""

from __future__ import annotations

import socket
import time
from typing import Any

from rcache_client.wire.frames import HEADER_BYTES, Reply, ReplyReader, encode_request
from rcache_client.wire.grammar import REQUESTS, decode_reply
from rcache_client.wire.opcodes import ANY_CLUSTER, NONCE_BYTES, Opcode, Role, Status

WAIT_S = 15.0
"""For anything a server does at once, on a machine that does much else."""

REPLY_BYTES_MAX = 32 << 20


def request(opcode: int, *values: Any, request_id: int = 1, budget_ms: int = 0) -> bytes:
    """A request frame by the grammar; for a many-key opcode the values are its entries."""
    return encode_request(opcode, request_id, budget_ms, REQUESTS[opcode].encode(*values))


def hello(role: Role = Role.CLIENT, name: str = "test", nonce: bytes = bytes(NONCE_BYTES), request_id: int = 1) -> bytes:
    return request(Opcode.HELLO, 1, 1, role, ANY_CLUSTER, nonce, name, request_id=request_id)


def store(key: bytes, value: bytes, request_id: int = 1) -> bytes:
    return request(Opcode.SET, 0, 0, key, value, request_id=request_id)


def get(key: bytes, request_id: int = 1) -> bytes:
    return request(Opcode.GET, key, request_id=request_id)


class Wire:
    """One connection. Use it in a `with`. `received` holds every byte that came."""

    def __init__(self, address: str, *, receive_buffer: int = 0) -> None:
        host, port = address.rsplit(":", 1)
        self.sock = socket.socket()
        if receive_buffer:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.sock.settimeout(WAIT_S)
        try:
            self.sock.connect((host, int(port)))
        except OSError:
            self.sock.close()
            raise
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.received = bytearray()
        self._reader = ReplyReader(REPLY_BYTES_MAX)

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def send_bytewise(self, data: bytes) -> int:
        """One byte in each segment, until all are sent or the peer has closed. Returns how many were sent."""
        for place in range(len(data)):
            try:
                self.sock.sendall(data[place : place + 1])
            except OSError:
                return place
        return len(data)

    def reply(self, timeout_s: float = WAIT_S) -> Reply | None:
        """The next reply; None where the server has sent FIN in place of one."""
        deadline = time.monotonic() + timeout_s
        while (reply := self._reader.next()) is None:
            self.sock.settimeout(max(0.001, deadline - time.monotonic()))
            data = self.sock.recv(1 << 16)
            if not data:
                assert not self._reader.mid_frame, "FIN in the middle of a reply"
                return None
            self.received += data
            self._reader.feed(data)
        return reply

    def ask(self, frame: bytes) -> tuple[int, Any]:
        """Send one request; its reply's status and values."""
        self.send(frame)
        reply = self.reply()
        assert reply is not None, "the server closed in place of a reply"
        return reply.status, decode_reply(reply.opcode, reply.status, reply.payload)

    def replies_to_end(self, timeout_s: float = WAIT_S) -> list[Reply]:
        """All replies up to the server's FIN."""
        replies = []
        while (reply := self.reply(timeout_s)) is not None:
            replies.append(reply)
        return replies

    def is_alive(self) -> bool:
        """Whether the server still answers here."""
        return self.ask(request(Opcode.PING, request_id=77))[0] == Status.OK

    def close(self) -> None:
        self.sock.close()

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def header_with(length: int, opcode: int = Opcode.GET, magic: int = 0xCA, version: int = 1, flags: int = 0) -> bytes:
    """A request header that claims `length` bytes of payload."""
    frame = bytearray(encode_request(opcode, 1, 0))
    frame[0], frame[1], frame[3] = magic, version, flags
    frame[4:8] = length.to_bytes(4, "big")
    assert len(frame) == HEADER_BYTES
    return bytes(frame)
