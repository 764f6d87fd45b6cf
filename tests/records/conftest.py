"""Both bodies of the walks, for the tests that hold for either."""

from __future__ import annotations

import pytest

from rcache.records import walk

from .bodies import BODIES


@pytest.fixture(params=BODIES)
def body(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> walk.Body:
    """The test runs once with each body as the one in use."""
    chosen: walk.Body = request.param
    monkeypatch.setattr(walk, "chosen", chosen)
    return chosen
