"""Feeds are tested with both bodies of the engine, as the contract is."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.contract.conftest import EngineFactory, engine_factory, fake_time  # noqa: F401  fixtures
from tests.feeds.harness import Telling


@pytest.fixture
def telling(engine_factory: EngineFactory) -> Iterator[Telling]:  # noqa: F811
    """An engine with all buckets open, and a hub."""
    telling = Telling(engine_factory())
    yield telling
    telling.close()
