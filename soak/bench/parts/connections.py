"""The part `connections`: what an idle connection costs, and whether many of them slow down those that are busy.

What it is: a part of the benchmark.
Which thread runs it: the benchmark's only one.
What it owns: the idle connections, while it measures beside them.
What it must not know: the other parts.
"""

from __future__ import annotations

import socket
from contextlib import ExitStack

from soak.bench.context import Bench
from soak.bench.drivers import Shape
from soak.bench.errors import BenchError
from soak.bench.machine import allow_open_files, resident_bytes, settle
from soak.bench.part import Chart, Part
from soak.bench.peers import EXCHANGE_S, Needs, Running, exchange
from soak.bench.samples import Sample, Samples
from soak.bench.tables import Grid, figure_grid
from soak.bench.traffic import GET, OPERATIONS, SET, fixed

BUSY = Shape(200, 1)
IDLE = "idle"
SPARE = 1000
"""Beyond the connections held: those that are busy, and whatever else a process has open."""


def measure(bench: Bench) -> list[Sample]:
    samples = []
    held = bench.sizes.connections_held
    allow_open_files(held + SPARE)
    for number in range(1, bench.sizes.rounds + 1):
        for name in bench.names:
            with bench.server(name, Needs(connections=held + SPARE)) as server:
                samples += _beside_idle(bench, server, held, number)
                settle(server.pid)
                samples += _busy(bench, server, 0, number)
    return samples


def _beside_idle(bench: Bench, server: Running, held: int, number: int) -> list[Sample]:
    """Hold connections that made one request each, and measure beside them; all are let go at the end."""
    name = server.peer.name
    bench.step(f"{name}: opening {held:,} connections, round {number}")
    get = fixed(server.peer.dialect)[GET]
    before = resident_bytes(server.pid)
    with ExitStack() as stack:
        for opened in range(held):
            try:
                idle = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), EXCHANGE_S))
                exchange(server, get, idle)
            except (OSError, BenchError) as error:
                raise BenchError(f"{name} did not serve connection {opened + 1:,} of {held:,}: {error}") from error
        settle(server.pid)
        grown = resident_bytes(server.pid) - before
        samples = [Sample(IDLE, held, name, number, {"bytes_per_connection": grown / held})]
        samples += _busy(bench, server, held, number)
    return samples


def _busy(bench: Bench, server: Running, held: int, number: int) -> list[Sample]:
    samples = []
    for operation in OPERATIONS:
        bench.step(f"{server.peer.name}: {operation} {BUSY} beside {held:,}, round {number}")
        figures = bench.drivers.fixed(server, fixed(server.peer.dialect)[operation], BUSY, bench.sizes.seconds)
        samples.append(Sample(operation, held, server.peer.name, number, figures))
    return samples


def grids(samples: Samples) -> list[Grid]:
    busy = BUSY.connections
    return [
        figure_grid("Bytes of resident memory for each idle connection", "idle", samples.where(IDLE), "bytes_per_connection"),
        *(
            figure_grid(
                f"{operation} by {busy} connections beside idle ones: operations a second",
                "idle",
                samples.where(operation),
                "operations_per_s",
            )
            for operation in OPERATIONS
        ),
    ]


PART = Part(
    name="connections",
    title="Idle connections",
    how=(
        "Connections that made one request each and are then idle: by how much a fresh server's resident memory grew for each, "
        "and what 200 busy connections (one request under way on each) reach beside them, and after they have gone."
    ),
    measure=measure,
    grids=grids,
    charts=[
        Chart("Memory of an idle connection", IDLE, "bytes_per_connection", "bytes", "idle connections"),
        *(
            Chart(
                f"{operation} by 200 beside idle ones", operation, "operations_per_s", "operations a second", "idle connections"
            )
            for operation in (GET, SET)
        ),
    ],
)
