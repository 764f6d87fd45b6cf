"""The engines under test. Every test that asks for `engine_factory` runs once for each body of the engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from rcache.engine.bodies import NATIVE, REFERENCE, make_engine, why_not_native
from rcache.engine.contract import Engine, EngineConfig
from tests.contract.harness import Caller, FakeTime

EngineFactory = Callable[..., Engine]

SMALL: dict[str, Any] = {
    "buckets": 8,
    "stripes": 4,
    "memory_bytes": 64 << 20,
    "value_bytes_max": 64 << 10,
    "frame_bytes_max": 1 << 20,
    "stream_bytes": 16 << 20,
}
"""A configuration whose limits tests can reach."""


BODIES = [
    REFERENCE,
    pytest.param(NATIVE, marks=pytest.mark.skipif(bool(why_not_native()), reason="the native engine was not built here")),
]


@pytest.fixture(params=BODIES)
def engine_factory(request: pytest.FixtureRequest, fake_time: FakeTime) -> Iterator[EngineFactory]:
    """Makes engines; those it made are checked and closed in the end. `opened`: the epoch their buckets are opened in, 0: not
    at all. Everything else goes into the configuration."""
    made: list[Engine] = []

    def make(opened: int = 1, **config: Any) -> Engine:
        engine = make_engine(request.param, EngineConfig(**{**SMALL, **config}), fake_time.clock())
        made.append(engine)
        if opened:
            engine.open_buckets(range(engine.config.buckets), opened, 1, "n1")
        return engine

    yield make
    for engine in made:
        engine.check()
        engine.close()


@pytest.fixture
def fake_time() -> FakeTime:
    """The time that all engines of a test go by."""
    return FakeTime()


@pytest.fixture
def engine(engine_factory: EngineFactory) -> Engine:
    """An engine with all buckets open and nothing in it."""
    return engine_factory()


@pytest.fixture
def caller(engine: Engine) -> Caller:
    """Asks `engine`."""
    return Caller(engine)
