"""Opening a bucket waits for room in the stream for as long as it is told, and no longer."""

from __future__ import annotations

import time

import pytest

from rcache.cluster.bucket_state import BucketState
from rcache.engine.contract import OPEN_WAIT_S, RequestRefused
from rcache_client.wire.opcodes import Opcode, Status
from tests.contract.conftest import EngineFactory
from tests.contract.harness import Caller

STREAM_BYTES = 256 << 10


def test_without_room_it_is_refused_at_once_and_opens_once_there_is_some(engine_factory: EngineFactory) -> None:
    engine = engine_factory(opened=0, stream_bytes=STREAM_BYTES, value_bytes_max=16 << 10)
    *most, last = range(engine.config.buckets)
    engine.open_buckets(most, 1, 1, "n1", 0.0)
    keeps = engine.stream.open_reader("it reads nothing", holds=True)
    caller = Caller(engine)
    for size in (8000, 1):  # until not even a small one has room
        numbers = iter(range(STREAM_BYTES))
        while caller.ask(Opcode.SET, 0, 0, b"%d" % next(numbers), bytes(size), budget_ms=1).status is not Status.BUSY:
            pass
    began = time.monotonic()
    with pytest.raises(RequestRefused):
        engine.open_buckets([last], 1, 1, "n1", 0.0)
    assert time.monotonic() - began < OPEN_WAIT_S / 4
    assert engine.state(last) is BucketState.ABSENT
    keeps.close()
    engine.open_buckets([last], 1, 1, "n1", 0.0)
    assert engine.state(last) is BucketState.PRIMARY
