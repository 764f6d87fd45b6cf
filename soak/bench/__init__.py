"""The benchmark behind `rcache-bench` and `make bench`: rcached beside Redis and memcached.

What it is, from the ground up: `traffic` (one request in each protocol), `machine` and `peers` (processes), `drivers` (the
load, from soak/load/), `samples` and `tables` (arithmetic and text), `context` (what a part is given), `parts/` (what is
measured), `report`, `goals`, `plots` and `page` (what is made of it), `command` (the command line).
Which thread runs it: one; servers and load are processes of their own.
What it owns: the processes and temporary directories it starts and removes.
What it must not know: the inside of the servers.
"""

from soak.bench.command import main
from soak.bench.errors import BenchError

__all__ = ["BenchError", "main"]
