"""The node's clock: never back, steps reported and not followed, small differences taken in slowly."""

from __future__ import annotations

import time

from rcache.engine.clock import SLEW_PPM, STEP_MS, NodeClock


class Clocks:
    """A wall clock and a boot clock."""

    def __init__(self) -> None:
        self.wall = 1_700_000_000_000
        self.boot = 5_000
        self.node = NodeClock(lambda: self.wall, lambda: self.boot)

    def run(self, ms: int, drift_ms: int = 0) -> None:
        self.boot += ms
        self.wall += ms + drift_ms


def test_it_begins_at_the_wall_clock_and_goes_by_the_boot_clock() -> None:
    clocks = Clocks()
    assert clocks.node.now_ms() == clocks.wall
    clocks.boot += 1234
    assert clocks.node.now_ms() == 1_700_000_000_000 + 1234


def test_steps_are_reported_once_and_not_followed() -> None:
    clocks = Clocks()
    clocks.run(1000, drift_ms=60_000)
    before = clocks.node.now_ms()
    assert clocks.node.adjust() == 60_000
    assert clocks.node.now_ms() == before
    clocks.run(1000)
    assert clocks.node.adjust() == 0
    assert clocks.node.stepped_ms == 60_000
    clocks.run(1000, drift_ms=-60_000)
    assert clocks.node.adjust() == 0
    assert clocks.node.stepped_ms == 0


def test_a_step_back_does_not_take_time_back() -> None:
    clocks = Clocks()
    clocks.run(1000, drift_ms=-3_600_000)
    assert clocks.node.adjust() == -3_600_000
    assert clocks.node.now_ms() == 1_700_000_000_000 + 1000


def test_a_small_difference_is_taken_in_slowly() -> None:
    clocks = Clocks()
    clocks.run(0, drift_ms=STEP_MS - 1)
    rounds = 0
    while clocks.wall - clocks.node.now_ms():
        before = clocks.node.now_ms()
        clocks.run(1000)
        assert clocks.node.adjust() == 0
        assert 0 <= clocks.node.now_ms() - before - 1000 <= 1000 * SLEW_PPM // 1_000_000 + 1
        rounds += 1
    assert rounds > 100


def test_slewing_back_never_takes_time_back() -> None:
    clocks = Clocks()
    clocks.run(0, drift_ms=-500)
    last = 0
    for _ in range(2000):
        clocks.run(1)
        clocks.node.adjust()
        now = clocks.node.now_ms()
        assert now >= last
        last = now
    assert clocks.node.now_ms() - clocks.wall < 500


def test_the_real_clock_is_about_right() -> None:
    assert abs(NodeClock().now_ms() - time.time() * 1000) < 1000
