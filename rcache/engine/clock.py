"""The node's clock: the wall clock at start, carried on by the boot clock.

What it is: milliseconds since 1970 that never jump. Steps of the wall clock are reported, not followed; a small difference
(what NTP corrects) is taken in slowly.
Which thread runs it: `now_ms` any; `adjust` the housekeeper alone.
What it owns: the offset between the two clocks. What it must not know: what the time is used for.
"""

from __future__ import annotations

import time
from collections.abc import Callable

STEP_MS = 1000
"""A difference of a second or more is a step: NTP slews anything smaller than that away by itself."""

SLEW_PPM = 500
"""How fast a small difference is taken in: the rate at which Linux slews its own clock."""


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000


def _boot_ms() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


class NodeClock:
    """Milliseconds since 1970, never going back. `wall_ms` and `boot_ms` are the clocks it reads, in ms."""

    def __init__(self, wall_ms: Callable[[], int] = _wall_ms, boot_ms: Callable[[], int] = _boot_ms) -> None:
        self._wall_ms = wall_ms
        self._boot_ms = boot_ms
        self._offset = wall_ms() - boot_ms()
        self._adjusted_at = boot_ms()
        self._newest = 0
        self._followers: list[Callable[[int], None]] = []
        self.is_machines = (wall_ms, boot_ms) == (_wall_ms, _boot_ms)
        self.stepped_ms = 0

    def follow(self, tell: Callable[[int], None]) -> None:
        """Call `tell` with what the boot clock is behind the node's time, in ms: now, and whenever that changes. So code that
        reads the boot clock by itself goes by this clock (`is_machines`: it is made of the machine's clocks)."""
        self._followers.append(tell)
        tell(self._offset)

    def now_ms(self) -> int:
        """The node's time."""
        now = self._newest = max(self._newest, self._boot_ms() + self._offset)
        return now

    def adjust(self) -> int:
        """Compare with the wall clock. Returns by how many ms it stepped since the last call, 0 if it did not."""
        boot = self._boot_ms()
        elapsed, self._adjusted_at = boot - self._adjusted_at, boot
        difference = self._wall_ms() - (boot + self._offset)
        if abs(difference) < STEP_MS:
            most = elapsed * SLEW_PPM // 1_000_000 + 1
            self._offset += max(-most, min(most, difference))
            for tell in self._followers:
                tell(self._offset)
            self.stepped_ms = 0
            return 0
        stepped = difference - self.stepped_ms
        self.stepped_ms = difference
        return stepped if abs(stepped) >= STEP_MS else 0
