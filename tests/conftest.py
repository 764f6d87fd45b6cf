"""For all tests: a test that leaves threads behind fails, by name, instead of holding up the end of the whole run."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")
"""How fast an example is says more of the machine than of the code."""

GOING_S = 5.0


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    """Threads that a test started have ended when it ends, or do so within GOING_S."""
    before = set(threading.enumerate())
    yield
    deadline = time.monotonic() + GOING_S
    while left := [thread for thread in threading.enumerate() if thread not in before]:
        assert time.monotonic() < deadline, f"threads left running: {left}"
        left[0].join(0.01)
