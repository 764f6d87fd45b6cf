"""The native engine's change stream in the contract's types.

Which thread runs it: any; a reader its own. What it owns: nothing but the core it points to. What it must not know: what a
record says.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Collection

from rcache.engine.change_stream import (
    DISK,
    END,
    Batch,
    CommitPoint,
    LinkFrame,
    Sent,
    StreamEnd,
    Wait,
    WindowCounts,
    WindowTerms,
)
from rcache.engine.commit_point import DiskPoint
from rcache.engine.native import _native
from rcache.engine.sockets import Ended
from rcache_client.wire.frames import encode_request

STREAM_ENDS = (StreamEnd.REACHED, StreamEnd.TIMED_OUT, StreamEnd.FAILED)
SEND_ENDS = (None, Ended.SLOW_READER, Ended.LOST)
WINDOW_ENDS = (None, None, Ended.SLOW_READER, Ended.LOST)
OF_OLD, PORTION, NOT_DUE = -1, 1, -2
"""By the numbers of the core."""

NOT_SAID = (1 << 63) - 1
"""For the core: an answer that says nothing of its sender's room."""

FULL_S = 0.001
"""How long to wait where as many frames are under way as may be."""


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


class NativeWindow:
    """The frames of a link that are under way. See `change_stream.Window`."""

    def __init__(self, core: _native.Core, terms: WindowTerms, point: CommitPoint) -> None:
        self._reader = _native.Reader(core, True)
        self._reader.choose(())
        self._window = _native.LinkWindow(core, self._reader, terms.opcode, terms.bytes_max, int(terms.send_s * 1e9))
        self._terms = terms
        self._window.set_point(point.number)
        self.set_prefix(b"", 0)

    @property
    def acknowledged(self) -> int:
        return self._window.acknowledged

    @property
    def looked(self) -> int:
        return self._window.looked

    def set_point(self, point: CommitPoint) -> None:
        self._window.set_point(point.number)

    def set_prefix(self, prefix: bytes, epoch: int) -> None:
        self._window.set_head(encode_request(self._terms.opcode, 0, 0, prefix), epoch)

    def choose(self, buckets: Collection[int]) -> None:
        self._reader.choose(buckets)

    def begin(self, sock: socket.socket | None) -> int:
        return self._window.begin(sock.fileno() if sock is not None else -1)

    def end(self) -> None:
        self._window.end()

    def run(self, timeout_s: float) -> Ended | None:
        return WINDOW_ENDS[self._window.run(int(timeout_s * 1e9))]

    def send_until(self, position: int) -> Ended | None:
        return WINDOW_ENDS[self._window.send_until(position)]

    def send_portion(self, body: bytes, position: int) -> Ended | None:
        while True:
            end, full = self._window.send_body(body, position)
            if not full or WINDOW_ENDS[end] is not None:
                return WINDOW_ENDS[end]
            time.sleep(FULL_S)

    def pass_by(self) -> None:
        self._window.pass_by()

    def receive(self, connection: int, *, mid_frame: bool) -> bytes:
        return self._window.receive(connection, mid_frame)

    def take(self, request_id: int, epoch: int, room: int | None = None) -> bool | None:
        taken = self._window.take(request_id, epoch, NOT_SAID if room is None else room)
        if taken == NOT_DUE:
            raise ValueError(f"an answer to {request_id}, where another was due")
        return None if taken == OF_OLD else taken == PORTION

    def is_of_old(self, request_id: int) -> bool:
        return self._window.is_of_old(request_id)

    def watch(self) -> None:
        self._window.watch()

    def take_moved(self) -> bool:
        return self._window.take_moved()

    def counts(self) -> WindowCounts:
        waiting, oldest_ns, frames, records = self._window.counts()
        owed_s = (time.monotonic_ns() - oldest_ns) / 1e9 if waiting else 0.0
        return WindowCounts(waiting, owed_s, frames, records)

    def close(self) -> None:
        self._window.close()
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

    def open_window(self, name: str, terms: WindowTerms, point: CommitPoint) -> NativeWindow:  # noqa: ARG002
        return NativeWindow(self._core, terms, point)

    def set_durable(self, position: int) -> None:
        self._core.advance(DISK, position, 0)

    def wait_durable(self, position: int, deadline_ns: int) -> StreamEnd:
        return self.wait_committed(Wait(1 << DISK, position), deadline_ns)

    def wait_committed(self, wait: Wait, deadline_ns: int) -> StreamEnd:
        return STREAM_ENDS[self._core.wait(*wait, deadline_ns)]

    def begin_moment(self, points: int) -> int:
        return self._core.begin_moment(points)

    def wake_readers(self) -> None:
        self._core.wake_readers()

    def end_waits(self) -> None:
        self._core.end_waits()

    def fail(self, why: str) -> None:
        self._core.fail(why.encode())
