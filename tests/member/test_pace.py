"""How often a node asks for a view that only spreads the load better."""

from __future__ import annotations

from rcache.member.pace import COUNTING, HANDING, REST_S, Pace
from tests.member.harness import Clock


def test_each_kind_rests_for_as_long_as_there_are_nodes() -> None:
    clock = Clock()
    pace = Pace(clock.now)
    assert pace.left_s(HANDING) == 0.0
    pace.rest(HANDING, 5)
    clock.advance(3 * REST_S)
    assert 1.9 * REST_S < pace.left_s(HANDING) < 2.1 * REST_S
    assert pace.left_s(COUNTING) == 0.0
    clock.advance(3 * REST_S)
    assert pace.left_s(HANDING) == 0.0
