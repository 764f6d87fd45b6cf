"""Statistics were once made into Python objects while a lock of the engine was held: the collector, started by that, ran a
finalizer that asked for the same lock, and the process stood still."""

from __future__ import annotations

import subprocess
import sys

import pytest

from rcache.engine.bodies import why_not_native

pytestmark = pytest.mark.skipif(bool(why_not_native()), reason="the native engine was not built here")

PROGRAM = """
import gc
from rcache.engine.bodies import NATIVE, make_engine
from rcache.engine.clock import NodeClock
from rcache.engine.contract import EngineConfig

engine = make_engine(NATIVE, EngineConfig(buckets=8, stripes=2, memory_bytes=4 << 20), NodeClock())
engine.open_buckets(range(8), 1, 1, "n1")
asked = 0


class Asks:
    def __init__(self):
        self.me = self

    def __del__(self):
        global asked
        asked += 1
        reader = engine.stream.open_reader("finalizer", holds=False)
        engine._core.slabs()
        engine._core.stats()
        reader.close()


for ask in (engine.stats, engine._core.slabs):
    for allocations in range(1, 60):  # the collector starts at each allocation in turn
        gc.collect()
        Asks()
        gc.set_threshold(allocations)
        ask()
        gc.set_threshold(0)
gc.collect()
print(asked)
"""


def test_a_finalizer_may_ask_for_statistics() -> None:
    ran = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) == 118
