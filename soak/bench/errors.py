"""The one error of the benchmark.

What it is: `BenchError`, for whatever keeps a part of the benchmark from being measured.
Which thread runs it: the benchmark's only one.
What it owns: nothing.
What it must not know: anything else.
"""

from __future__ import annotations


class BenchError(Exception):
    """A measurement cannot be made; says why. It ends its part of the benchmark; the other parts go on."""
