"""What both bodies and the links do with sockets that block: timeouts, sending all within one, and how a connection ends.

Which thread runs it: the one that owns the socket. What it owns: nothing. What it must not know: what is sent over it.
"""

from __future__ import annotations

import select
import socket
import struct
import time
from enum import Enum


class Ended(Enum):
    """Why `serve` came back."""

    FRAME = "a frame that is not the engine's business"
    CLOSED = "the peer closed"
    LOST = "the connection broke"
    BAD_FRAME = "a frame that cannot be read"
    HELLO_TIMEOUT = "no first frame in time"
    IDLE_TIMEOUT = "idle for too long"
    FRAME_TIMEOUT = "a frame that did not come in whole in time"
    SLOW_READER = "replies were not taken in time"
    STOPPING = "asked to stop"
    CROWDED = "to be served by a worker that shares sockets from now on"


POLL_MS_MAX = (1 << 31) - 1
"""What one poll takes (a C int, 24 days); a longer wait is several."""


def set_kernel_timeout(sock: socket.socket, option: int, seconds: float) -> None:
    """A timeout kept by the kernel: unlike `settimeout` it leaves the socket blocking, which saves a poll for every call."""
    whole = int(seconds)
    micros = max(1, int((seconds - whole) * 1e6)) if not whole else int((seconds - whole) * 1e6)
    sock.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", whole, micros))


def send_within(sock: socket.socket, data: bytes, seconds: float) -> Ended | None:
    """Send all of `data` within `seconds`. None if it was taken; else SLOW_READER or LOST. Blocks."""
    rest = memoryview(data)
    deadline_ns = time.monotonic_ns() + int(seconds * 1e9)
    poller = select.poll()
    poller.register(sock, select.POLLOUT)
    try:
        while rest:
            try:
                rest = rest[sock.send(rest, socket.MSG_DONTWAIT) :]
            except BlockingIOError:
                left_ms = (deadline_ns - time.monotonic_ns()) / 1e6
                poller.poll(min(max(left_ms, 0), POLL_MS_MAX))
            if rest and time.monotonic_ns() > deadline_ns:
                return Ended.SLOW_READER
    except OSError:
        return Ended.LOST
    return None
