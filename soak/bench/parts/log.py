"""The part `log`: what the append log costs, by when it is made durable, beside Redis's.

What it is: a part of the benchmark. It measures the disk too, which may be the limit.
Which thread runs it: the benchmark's only one.
What it owns: nothing that outlives it.
What it must not know: the other parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from soak.bench.context import Bench
from soak.bench.drivers import Shape
from soak.bench.errors import BenchError
from soak.bench.machine import sequential_write_rate, settle, write_out, written_bytes
from soak.bench.part import Chart, Part
from soak.bench.peers import LOGGING, Needs, Running
from soak.bench.samples import Sample, Samples, ratios
from soak.bench.tables import NOTHING, Grid, figure_grid, number, ratios_text
from soak.bench.traffic import SET, fixed

SHAPE = Shape(16, 16)
LENGTHS = 3
"""So many times as long as other measurements, so that an fsync of every second falls into each."""
OFF = "off"
POLICIES = {OFF: OFF, "interval": "interval (everysec)", "never": "never (no)", "always": "always"}
"""rcached's word: the line of the table, with Redis's word where it is another."""

DISK = "disk"


def measure(bench: Bench) -> list[Sample]:
    names = [name for name in bench.names if name in LOGGING]
    if not names:
        raise BenchError("none of these servers has an append log")
    samples = []
    with ExitStack() as stack:
        servers = {
            (policy, name): stack.enter_context(bench.server(name, Needs(log=policy))) for policy in POLICIES for name in names
        }
        for number_of_round in range(1, bench.sizes.rounds + 1):
            bench.step(f"the disk, round {number_of_round}")
            rate = sequential_write_rate(bench.scratch, bench.sizes.disk_bytes)
            samples.append(Sample(DISK, "sequential write", DISK, number_of_round, {"written_mb_per_s": rate / 1e6}))
            for (policy, name), server in servers.items():
                bench.step(f"{name}: SET with the log {policy}, round {number_of_round}")
                samples.append(Sample(SET, POLICIES[policy], name, number_of_round, _run(bench, server)))
    return samples


def _run(bench: Bench, server: Running) -> dict[str, float]:
    """One measurement; what it leaves to be written is written before the next one begins."""
    before, seconds = written_bytes(server.pid), bench.sizes.seconds * LENGTHS
    figures = bench.drivers.fixed(server, fixed(server.peer.dialect)[SET], SHAPE, seconds)
    settle(server.pid)
    figures["written_mb_per_s"] = (written_bytes(server.pid) - before) / seconds / 1e6
    write_out(server.directory)
    return figures


def grids(samples: Samples) -> list[Grid]:
    sets = samples.where(SET)
    return [
        figure_grid(f"SET {SHAPE}, 100-byte value: operations a second", "log", sets, "operations_per_s"),
        _kept_grid(sets),
        _written_grid(sets, samples.where(DISK).median("written_mb_per_s")),
    ]


def _logged(sets: Samples) -> Sequence[str]:
    return [str(at) for at in sets.conditions if at != OFF]


def _kept_grid(sets: Samples) -> Grid:
    def kept(at: str, name: str) -> str:
        mine = sets.where(server=name)
        return ratios_text(ratios(mine.where(at=at), "operations_per_s", mine.where(at=OFF)))

    rows = [[at, *(kept(at, name) for name in sets.servers)] for at in _logged(sets)]
    return Grid("What is left with the log on: rate with : rate without", ["log", *sets.servers], rows)


def _written_grid(sets: Samples, disk_mb_per_s: float | None) -> Grid:
    names = sets.servers
    rows = []
    for at in _logged(sets):
        found = [sets.where(at=at, server=name).median("written_mb_per_s") for name in names]
        shares = (number(each / disk_mb_per_s, ".0%") if each and disk_mb_per_s else NOTHING for each in found)
        rows.append([at, *(number(each) for each in found), *shares])
    title = f"Given to the disk, MB/s, and as a share of the disk's own {number(disk_mb_per_s)} MB/s"
    return Grid(title, ["log", *names, *(f"{name}, share" for name in names)], rows)


PART = Part(
    name="log",
    title="The cost of the append log",
    how=(
        "SET with the log off, made durable at an interval of a second, never (when the kernel writes), and always (before a "
        "change is acknowledged); all servers run at once and are measured in turn, three times as long as elsewhere, so that "
        "the fsync of every second falls into each. Before each measurement the one before is on the disk. What is given to "
        "the disk is the kernel's count (/proc/PID/io) over the time of the load. The disk's own rate is measured in every "
        "round, in the same file system: one file written in 1 MiB blocks, then fdatasync."
    ),
    measure=measure,
    grids=grids,
    charts=[
        Chart("SET by append log policy", SET, "operations_per_s", "operations a second", "log"),
        Chart("Given to the disk", SET, "written_mb_per_s", "MB/s", "log"),
    ],
)
