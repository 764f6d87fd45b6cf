"""A touch that was made in place, of an item that had grown since it was looked at, wrote more into the change stream than it
had room for, over records that a reader still held. It needs a full memory and a touch that waits for room meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from rcache.engine.bodies import NATIVE, make_engine, why_not_native
from rcache.engine.clock import NodeClock
from rcache.engine.contract import Engine, EngineConfig
from rcache.records.record import decode
from rcache_client.wire.opcodes import Opcode, Status
from tests.contract.harness import EVERYTHING, START_MS, Caller, Task, wait_until

BIG, BIGGER = bytes(49_800), bytes(50_000)
TOUCHED = b"K000000"
TOUCHING = "touching"


class Interrupting(NodeClock):
    """A clock that, asked for the time by the thread TOUCHING, does something else first, once."""

    def __init__(self) -> None:
        super().__init__(lambda: START_MS, lambda: START_MS)
        self.first: Callable[[], None] | None = None

    def now_ms(self) -> int:
        if self.first is not None and threading.current_thread().name == TOUCHING:
            first, self.first = self.first, None
            first()
        return super().now_ms()


def fill(engine: Engine) -> None:
    """Two large items, a small one, and then no memory for anything new."""
    caller = Caller(engine)
    caller.set(b"large", BIG)
    caller.set(b"larger", BIGGER)
    caller.set(TOUCHED, bytes(10))
    number = 0
    while caller.ask(Opcode.ADD, 0, 0, b"f%06d" % number, bytes(10)).status is Status.OK:
        number += 1


@pytest.mark.skipif(bool(why_not_native()), reason="the native engine was not built here")
def test_a_record_never_takes_more_room_than_was_reserved() -> None:
    """The reference engine holds the new value's length against what was reserved, and asks for the time under its lock."""
    clock = Interrupting()
    sizes = {"memory_bytes": 4 << 20, "value_bytes_max": 64 << 10, "frame_bytes_max": 1 << 20, "stream_bytes": 1 << 19}
    engine = make_engine(NATIVE, EngineConfig(buckets=8, stripes=4, evict=False, **sizes), clock)
    engine.open_buckets(range(8), 1, 1, "n1")
    fill(engine)
    link, log = (engine.stream.open_reader(name, holds=True) for name in ("link", "log"))
    caller, other = Caller(engine), Caller(engine)
    while caller.ask(Opcode.SET, 0, 0, b"larger", BIGGER, budget_ms=5).status is Status.OK:
        pass
    while caller.ask(Opcode.TOUCH, 0, b"f000001", budget_ms=5).status is Status.OK:
        pass
    batch = link.take(EVERYTHING, 0.0)
    first = batch.position - len(batch.body) + len(batch.records[0])
    log_at = log.take(10, 0.0).position

    def grow() -> None:
        assert other.delete(b"large", budget_ms=50).status is Status.OK
        assert other.ask(Opcode.SET, 0, 0, TOUCHED, BIG, budget_ms=50).status is Status.OK

    def touch() -> Status:
        threading.current_thread().name = TOUCHING
        return Caller(engine).ask(Opcode.TOUCH, 0, TOUCHED, budget_ms=5000).status

    waits = engine.stats()["stream"]["waits_for_room"]
    touching = Task(touch)
    wait_until(lambda: engine.stats()["stream"]["waits_for_room"] > waits, "the touch to wait for room")
    clock.first = grow
    link.release(first)
    log.release(log_at)
    assert touching.result() in (Status.OK, Status.BUSY)
    assert clock.first is None, "it was interrupted"
    held = engine.stats()["stream"]
    assert held["bytes_held"] <= held["bytes_max"]
    rest = log.take(EVERYTHING, 0.0)
    assert rest.position == engine.stream.head
    assert all(decode(record).key for record in rest.records)
    link.close()
    log.close()
    engine.check()
    engine.close()
