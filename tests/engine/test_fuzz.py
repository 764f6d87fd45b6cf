"""The campaigns of `fuzz`, `fuzz_peers`, `stress` and `stress_pair`, for a moment: that they run, and find nothing that takes
no sanitizer to be seen."""

from __future__ import annotations

import pytest

from rcache.engine.bodies import why_not_native

pytestmark = pytest.mark.skipif(bool(why_not_native()), reason="the native engine was not built here")


def test_bytes_that_lie() -> None:
    from tests.engine.fuzz import fuzz

    done, executed, refused, applied = fuzz(seed=1, inputs=60_000)
    assert done == 60_000
    assert executed > 10_000
    assert refused > 10_000
    assert applied > 100


def test_everything_at_once() -> None:
    from tests.engine.stress import stress

    rounds, steps = stress(seed=1, seconds=2.0)
    assert rounds >= 1
    assert steps > 100


def test_what_peers_send() -> None:
    from tests.engine.fuzz_peers import INPUTS_A_CAMPAIGN, fuzz

    done, executed, refused, applied = fuzz(seed=1, inputs=INPUTS_A_CAMPAIGN + 1000)
    assert done == INPUTS_A_CAMPAIGN + 1000
    assert executed > 1000
    assert refused > 100
    assert applied > 100


def test_two_nodes_at_once() -> None:
    from tests.engine.stress_pair import stress

    rounds, steps = stress(seed=1, seconds=2.0)
    assert rounds >= 1
    assert steps > 100
