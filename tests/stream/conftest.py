"""What every test of the stream gets: a writer that looks around often, and no thread left behind when a test fails."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from rcache.stream import append_log
from tests.contract.conftest import engine_factory, fake_time  # noqa: F401  fixtures
from tests.stream.harness import PATIENCE_S, STARTED


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The writer looks around more often than in life."""
    monkeypatch.setattr(append_log, "IDLE_S", 0.01)


@pytest.fixture(autouse=True)
def stopped() -> Iterator[None]:
    """Logs that a failing test did not get to stop would keep the whole run from ending."""
    yield
    while STARTED:
        STARTED.pop().stop(PATIENCE_S)
