"""Feeds are tested with both bodies of the engine, as the contract is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from rcache.engine.contract import Engine
from tests.contract.conftest import EngineFactory, engine_factory, fake_time  # noqa: F401  fixtures
from tests.feeds.harness import Telling

MakeTelling = Callable[..., Telling]


@pytest.fixture
def make_telling() -> Iterator[MakeTelling]:
    """Makes hubs of engines, whose threads end with the test, whatever comes of it."""
    made: list[Telling] = []

    def make(engine: Engine, **more: Any) -> Telling:
        made.append(Telling(engine, **more))
        return made[-1]

    yield make
    for telling in made:
        telling.close()


@pytest.fixture
def telling(engine_factory: EngineFactory, make_telling: MakeTelling) -> Telling:  # noqa: F811
    """An engine with all buckets open, and a hub."""
    return make_telling(engine_factory())
