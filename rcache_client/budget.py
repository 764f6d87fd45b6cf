"""Budgets: how long a call may still take.

What it is: checks of the durations that a user gives, and the arithmetic of deadlines. A deadline is a time of
`time.monotonic()`, in seconds; every wait of a call is cut to what its deadline leaves.
Which thread runs it: the caller's; nothing here waits.
What it owns: nothing.
What it must not know: what is being waited for.
"""

from __future__ import annotations

import math
from time import monotonic

SECONDS_MAX = 86_400.0
"""A day. A longer wait for a cache is taken for a mistake (milliseconds given as seconds, most often)."""

ANSWER_SHARE = 0.1
"""The share of a wait that is kept back from the server, so that its 'not in time' still arrives in time."""

ANSWER_SECONDS_MAX = 0.05
"""More than that is never kept back: a reply crosses a data centre in far less."""

DOUBLINGS_MAX = 32
"""More would reach any limit anyhow, and at last overflow a float."""


def checked_seconds(name: str, seconds: float) -> float:
    """The duration as a float. Raises `TypeError` or `ValueError` naming the argument and the value."""
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        raise TypeError(f"{name} must be a number of seconds, not {seconds!r}")
    if not 0 < seconds <= SECONDS_MAX:
        raise ValueError(f"{name} must be above 0 and at most {SECONDS_MAX:.0f} seconds, not {seconds!r}")
    return float(seconds)


def seconds_left(deadline: float) -> float:
    """What is left until the deadline, in seconds; never below 0."""
    return max(0.0, deadline - monotonic())


def back_off_seconds(first_s: float, longest_s: float, failures: int) -> float:
    """How long to leave something alone that has failed so many times before: twice as long each time, to a limit."""
    return min(first_s * 2.0 ** min(failures, DOUBLINGS_MAX), longest_s)


def told_ms(wait_s: float) -> int:
    """What to tell the server of a wait: in milliseconds, at least 1, less what its answer needs for its way back."""
    return max(1, int(1000 * (wait_s - min(wait_s * ANSWER_SHARE, ANSWER_SECONDS_MAX))))


def ttl_in_ms(ttl: float | None, ttl_ms_max: int) -> int:
    """A time to live for the wire: milliseconds rounded up, 0 for None (never expires). Raises as `checked_seconds` does."""
    if ttl is None:
        return 0
    if isinstance(ttl, bool) or not isinstance(ttl, (int, float)):
        raise TypeError(f"ttl must be a number of seconds or None, not {ttl!r}")
    if not 0 < ttl <= ttl_ms_max / 1000:
        raise ValueError(f"ttl must be above 0 and at most {ttl_ms_max // 1000} seconds, not {ttl!r}")
    return math.ceil(ttl * 1000)
