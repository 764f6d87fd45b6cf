"""The near cache's promises, held after each step of worlds in which everything crosses everything."""

from __future__ import annotations

import random

import pytest

from .near_model import World, interleaved

SEEDS = 20
STEPS = 1500


def test_promises_hold_in_any_order_of_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    first = random.randrange(1 << 30)
    hits = misses = 0
    for seed in range(first, first + SEEDS):
        print(f"seed {seed}")
        world = World(seed)
        with interleaved(world, monkeypatch):
            world.run(STEPS)
        hits += world.served["hit"]
        misses += world.served["miss"]
    assert hits > misses / 4, "the worlds must serve enough to find something"
