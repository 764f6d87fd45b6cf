"""The native engine's change stream in the contract's types.

Which thread runs it: any; a reader its own. What it owns: nothing but the core it points to. What it must not know: what a
record says.
"""

from __future__ import annotations

import socket
from collections.abc import Collection

from rcache.engine.change_stream import DISK, END, Batch, LinkFrame, Sent, StreamEnd, Wait
from rcache.engine.commit_point import DiskPoint
from rcache.engine.native import _native
from rcache.engine.sockets import Ended
from rcache_client.wire.frames import encode_request

STREAM_ENDS = (StreamEnd.REACHED, StreamEnd.TIMED_OUT, StreamEnd.FAILED)
SEND_ENDS = (None, Ended.SLOW_READER, Ended.LOST)
"""By the numbers of the core."""


class NativeReader:
    """A cursor in the change stream. See `change_stream.StreamReader`."""

    def __init__(self, core: _native.Core, *, holds: bool) -> None:
        self._reader = _native.Reader(core, holds)

    def take(self, bytes_max: int, timeout_s: float, linger_s: float = 0.0, *, view: bool = False) -> Batch:
        body, count, position, lost = self._reader.take(bytes_max, int(timeout_s * 1e9), int(linger_s * 1e9), view)
        return Batch(body, count, position, lost)

    def choose(self, buckets: Collection[int] | None) -> None:
        self._reader.choose(buckets)

    def send(self, sock: socket.socket, frame: LinkFrame, bytes_max: int, timeout_s: float, until: int = END) -> Sent:
        head = encode_request(frame.opcode, frame.request_id, 0, frame.prefix)
        in_ns = int(timeout_s * 1e9), int(frame.send_s * 1e9)
        count, position, lost, end = self._reader.send(sock.fileno(), head, bytes_max, *in_ns, until)
        return Sent(count, position, lost, SEND_ENDS[end])

    def rewind(self, position: int) -> None:
        self._reader.rewind(position)

    def release(self, position: int) -> None:
        self._reader.release(position)

    def close(self) -> None:
        self._reader.close()


class NativeStream:
    """The change stream. See `change_stream.ChangeStream`."""

    def __init__(self, core: _native.Core) -> None:
        self._core = core
        self.disk = DiskPoint(self)

    @property
    def head(self) -> int:
        return self._core.head

    @property
    def durable(self) -> int:
        return self._core.durable

    @property
    def failure(self) -> str:
        """Why the stream failed; "" while it has not."""
        return self._core.failure

    def open_reader(self, name: str, *, holds: bool) -> NativeReader:  # noqa: ARG002  a name is for people
        return NativeReader(self._core, holds=holds)

    def set_durable(self, position: int) -> None:
        self._core.advance(DISK, position)

    def wait_durable(self, position: int, deadline_ns: int) -> StreamEnd:
        return self.wait_committed(Wait(1 << DISK, position), deadline_ns)

    def wait_committed(self, wait: Wait, deadline_ns: int) -> StreamEnd:
        return STREAM_ENDS[self._core.wait(wait.points, wait.position, deadline_ns)]

    def wake_readers(self) -> None:
        self._core.wake_readers()

    def end_waits(self) -> None:
        self._core.end_waits()

    def fail(self, why: str) -> None:
        self._core.fail(why.encode())
