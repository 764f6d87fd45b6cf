"""Peers are tested with both bodies of the engine, as the contract is."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.contract.conftest import engine_factory, fake_time  # noqa: F401  fixtures
from tests.peers.harness import PeerListener


@pytest.fixture
def listener() -> Iterator[PeerListener]:
    """A peer that is asked on a port of its own."""
    listener = PeerListener()
    yield listener
    listener.close()
