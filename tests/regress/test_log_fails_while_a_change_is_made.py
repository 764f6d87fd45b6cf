"""The log fails after room for a record was set aside and before it got its place: the record was once copied to nowhere in
particular, because nobody had said that there is no place."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from rcache.engine.bodies import make_engine
from rcache.engine.clock import NodeClock
from rcache.engine.contract import Engine, EngineConfig, RequestRefused
from rcache_client.wire.opcodes import Opcode, Status
from tests.contract.conftest import BODIES
from tests.contract.harness import Caller, stat, wait_until

FOREVER = 1 << 62
STREAM_BYTES = 1 << 16


class FailingClock(NodeClock):
    """Lets the log fail when it is looked at, once it was told to. Engines look after they have set room aside."""

    def __init__(self) -> None:
        super().__init__(lambda: 1_700_000_000_000, lambda: 0)
        self.strike: Callable[[], None] | None = None

    def now_ms(self) -> int:
        strike, self.strike = self.strike, None
        if strike is not None:
            strike()
        return super().now_ms()


@pytest.fixture
def clock() -> FailingClock:
    return FailingClock()


@pytest.fixture(params=BODIES)
def engine(request: pytest.FixtureRequest, clock: FailingClock) -> Engine:
    """One whose stream is kept by a reader that releases nothing."""
    config = EngineConfig(buckets=1, stripes=1, memory_bytes=4 << 20, stream_bytes=STREAM_BYTES)
    engine = make_engine(request.param, config, clock)
    engine.open_buckets([0], 1, 1, "n1")
    return engine


def test_flush(engine: Engine, clock: FailingClock) -> None:
    reader = engine.stream.open_reader("log", holds=True)
    Caller(engine).set(b"key", b"value")
    clock.strike = lambda: engine.stream.fail("no disk")
    with pytest.raises(RequestRefused) as refused:
        engine.flush(FOREVER)
    assert refused.value.status is Status.STOPPING
    assert engine.stats()["items"]["items"] == 1
    reader.close()


def test_open(engine: Engine, clock: FailingClock) -> None:
    reader = engine.stream.open_reader("log", holds=True)
    clock.strike = lambda: engine.stream.fail("no disk")
    with pytest.raises(RequestRefused) as refused:
        engine.open_buckets([0], 2, 1, "n1")
    assert refused.value.status is Status.STOPPING
    reader.close()


def test_set_that_waited_for_room(engine: Engine, clock: FailingClock) -> None:
    reader = engine.stream.open_reader("log", holds=True)
    caller = Caller(engine)
    for number in range(3):
        caller.set(b"key%d" % number, b"v" * (STREAM_BYTES // 4))
    waits = stat(engine, "stream", "waits_for_room")
    answers: list[tuple[Status, object]] = []
    waiting = threading.Thread(
        target=lambda: answers.append(
            Caller(engine).ask(Opcode.SET, 0, 0, b"key", b"w" * (STREAM_BYTES // 4), budget_ms=20_000)
        )
    )
    waiting.start()
    wait_until(lambda: bool(stat(engine, "stream", "waits_for_room") > waits), "a wait for room")
    clock.strike = lambda: engine.stream.fail("no disk")
    batch = reader.take(1 << 20, 1.0)
    reader.release(batch.position)
    waiting.join(20)
    assert [status for status, _ in answers] == [Status.STOPPING]
    assert Caller(engine).value(b"key") is None
    reader.close()
