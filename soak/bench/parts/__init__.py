"""The parts of the benchmark, in the order they are measured and shown in.

What it is: the one list of them.
Which thread runs it: the benchmark's only one.
What it owns: nothing.
What it must not know: how any of them measures.
"""

from __future__ import annotations

from soak.bench.part import Part
from soak.bench.parts import connections, growth, items, log, restart, shapes

PARTS: dict[str, Part] = {
    part.name: part for part in (shapes.PART, log.PART, items.PART, growth.KEYS, growth.VALUES, restart.PART, connections.PART)
}
