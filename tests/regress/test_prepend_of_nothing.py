"""Nothing put before a large value, in a full store: the value was once "moved" as if it lay in one piece. The sanitizers see
it (`make sanitize`); without them the value is only compared."""

from __future__ import annotations

import pytest

from rcache.engine.bodies import make_engine
from rcache.engine.clock import NodeClock
from rcache.engine.contract import Engine, EngineConfig
from rcache_client.wire.opcodes import Opcode, Status
from tests.contract.conftest import BODIES
from tests.contract.harness import Caller


def make(body: str) -> Engine:
    config = EngineConfig(
        buckets=1,
        stripes=1,
        memory_bytes=1 << 20,
        evict=False,
        value_bytes_max=1 << 20,
        frame_bytes_max=2 << 20,
        stream_bytes=8 << 20,
    )
    engine = make_engine(body, config, NodeClock())
    engine.open_buckets([0], 1, 1, "n1")
    return engine


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("opcode", [Opcode.PREPEND, Opcode.APPEND])
def test_a_large_value_in_a_full_store(body: str, opcode: Opcode) -> None:
    engine = make(body)
    caller = Caller(engine)
    value = bytes(range(256)) * 2600
    caller.set(b"small", b"s")
    caller.set(b"large", value)
    number = 0
    while caller.ask(Opcode.SET, 0, 0, b"fill%d" % number, b"f" * 1000).status is Status.OK:
        number += 1
    assert caller.ask(opcode, b"large", b"").status is Status.OK
    assert caller.value(b"large") == value
    engine.check()
