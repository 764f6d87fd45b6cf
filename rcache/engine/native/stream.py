"""The native engine's change stream in the contract's types.

Which thread runs it: any; a reader its own. What it owns: nothing but the core it points to. What it must not know: what a
record says.
"""

from __future__ import annotations

from rcache.engine.contract import Batch, StreamEnd
from rcache.engine.native import _native

STREAM_ENDS = (StreamEnd.REACHED, StreamEnd.TIMED_OUT, StreamEnd.FAILED)


class NativeReader:
    """A cursor in the change stream. See `contract.StreamReader`."""

    def __init__(self, core: _native.Core, *, holds: bool) -> None:
        self._reader = _native.Reader(core, holds)

    def take(self, bytes_max: int, timeout_s: float, linger_s: float = 0.0) -> Batch:
        body, count, position, lost = self._reader.take(bytes_max, int(timeout_s * 1e9), int(linger_s * 1e9))
        return Batch(body, count, position, lost)

    def release(self, position: int) -> None:
        self._reader.release(position)

    def close(self) -> None:
        self._reader.close()


class NativeStream:
    """The change stream. See `contract.ChangeStream`."""

    def __init__(self, core: _native.Core) -> None:
        self._core = core

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
        self._core.set_durable(position)

    def wait_durable(self, position: int, deadline_ns: int) -> StreamEnd:
        return STREAM_ENDS[self._core.wait_durable(position, deadline_ns)]

    def wake_readers(self) -> None:
        self._core.wake_readers()

    def end_waits(self) -> None:
        self._core.end_waits()

    def fail(self, why: str) -> None:
        self._core.fail(why.encode())
