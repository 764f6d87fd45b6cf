"""Throughput and latency over time, from the operations of a history.

What it is: `Bin`, what happened within BIN_S, and `binned`. Pure. Which thread runs it: any.
What it owns: nothing. What it must not know: what was broken.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from soak.history import Operation, Outcome

BIN_S = 0.5
"""Short beside a fault, long beside a call."""


@dataclass(slots=True)
class Bin:
    """Calls that ended within BIN_S: how many, by outcome; latencies in ms of those that are ok, those that ended in the
    bin."""

    ok: int = 0
    fail: int = 0
    unknown: int = 0
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    max_ms: float = 0.0


def binned(operations: Iterable[Operation], start_ns: int) -> dict[int, Bin]:
    """By number of the bin, counted from `start_ns`. An operation without an end is in none."""
    latencies: dict[int, list[float]] = defaultdict(list)
    bins: dict[int, Bin] = defaultdict(Bin)
    for each in operations:
        if each.end_ns is None or each.end_ns < start_ns:
            continue
        number = int((each.end_ns - start_ns) / 1e9 / BIN_S)
        found = bins[number]
        match each.outcome:
            case Outcome.OK:
                found.ok += 1
                latencies[number].append((each.end_ns - each.start_ns) / 1e6)
            case Outcome.FAIL:
                found.fail += 1
            case Outcome.UNKNOWN:
                found.unknown += 1
    for number, told in latencies.items():
        told.sort()
        found = bins[number]
        found.p50_ms, found.p99_ms, found.max_ms = told[len(told) // 2], told[len(told) * 99 // 100], told[-1]
    return dict(bins)


def merged(parts: Iterable[dict[int, Bin]]) -> dict[int, Bin]:
    """Bins of several rounds: at their border they share one, whose latencies are then the worse of both."""
    whole: dict[int, Bin] = {}
    for part in parts:
        for number, each in part.items():
            held = whole.get(number)
            if held is None:
                whole[number] = each
                continue
            whole[number] = Bin(
                held.ok + each.ok,
                held.fail + each.fail,
                held.unknown + each.unknown,
                max(held.p50_ms, each.p50_ms),
                max(held.p99_ms, each.p99_ms),
                max(held.max_ms, each.max_ms),
            )
    return whole
