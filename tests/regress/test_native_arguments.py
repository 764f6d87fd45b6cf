"""A bucket that is not there, and a closed reader, were once looked for in memory all the same; and nothing, to be sent,
was copied to no buffer (which only the sanitizers mind: `make sanitize`)."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

import pytest

from rcache.cluster.bucket_state import BucketState
from rcache.engine.bodies import NATIVE, make_engine, why_not_native
from rcache.engine.clock import NodeClock
from rcache.engine.contract import ConnectionLimits, Engine, EngineConfig
from rcache.engine.sockets import Ended

pytestmark = pytest.mark.skipif(bool(why_not_native()), reason="the native engine was not built here")


@pytest.fixture
def engine() -> Engine:
    engine = make_engine(NATIVE, EngineConfig(buckets=8, stripes=4, memory_bytes=4 << 20), NodeClock())
    engine.open_buckets(range(8), 1, 1, "n1")
    return engine


@pytest.mark.parametrize(
    "call",
    [
        lambda engine: engine.state(8),
        lambda engine: engine.set_state(8, BucketState.FROZEN),
        lambda engine: engine.open_buckets([1 << 30], 2, 1, "n1"),
        lambda engine: engine.copy_bucket(8),
        lambda engine: engine._core.flush(8, time.monotonic_ns()),
    ],
)
def test_a_bucket_that_is_not_there(engine: Engine, call: Callable[[Engine], object]) -> None:
    with pytest.raises(IndexError):
        call(engine)


def test_a_reader_that_was_closed(engine: Engine) -> None:
    reader = engine.stream.open_reader("log", holds=True)
    reader.close()
    reader.close()
    reader.release(5)
    with pytest.raises(ValueError, match="closed"):
        reader.take(1, 0.0)


def test_an_opcode_that_is_none_of_data(engine: Engine) -> None:
    with pytest.raises(ValueError, match="none of data"):
        engine._core.execute(0x30, 1, 0, b"\x00\x01\x00\x01k")  # type: ignore[attr-defined]


def test_the_end_without_a_last_frame(engine: Engine) -> None:
    group = engine.share()
    assert group is not None
    here, there = socket.socketpair()
    with here, there:
        connection = engine.connect(here, ConnectionLimits())
        connection.queue(b"", last=True)
        group.add(connection)
        there.shutdown(socket.SHUT_WR)
        served = group.serve()
        assert served is not None
        assert served[1].ended is Ended.CLOSED
        assert there.recv(1) == b""
