"""How long connections hold up an orderly stop once they were told GOODBYE. It waits so that nothing is lost to a reset: a
request that is on its way meets a reader, and its sender the GOODBYE."""

from __future__ import annotations

import time
from threading import Thread

import pytest

from rcache.server.worker import FAREWELL_S
from rcache_client.wire.opcodes import Status

from .conftest import Serve
from .wire import Wire

CONNECTIONS = 40
ENGINES = ["auto", "reference"]


@pytest.mark.parametrize("engine", ENGINES)
def test_connections_that_nobody_reads_are_waited_for_together(serve: Serve, engine: str) -> None:
    """Each for its own time, all at once: it is the same stop with one as with many."""
    server = serve("--engine", engine)
    wires = [Wire(server.address) for _ in range(CONNECTIONS)]
    try:
        assert all(wire.is_alive() for wire in wires)
        began = time.monotonic()
        server.terminate()
        assert server.wait(FAREWELL_S * CONNECTIONS) == 0
        assert time.monotonic() - began < FAREWELL_S * CONNECTIONS / 4
        for wire in wires:
            assert [reply.status for reply in wire.replies_to_end()] == [Status.SHUTTING_DOWN]
    finally:
        for wire in wires:
            wire.close()


@pytest.mark.parametrize("engine", ENGINES)
def test_whoever_closes_at_the_goodbye_holds_up_nothing(serve: Serve, engine: str) -> None:
    server = serve("--engine", engine)
    wires = [Wire(server.address) for _ in range(CONNECTIONS)]
    said: list[list[int]] = []
    ended: list[float] = []

    def read_to_end(wire: Wire) -> None:
        said.append([reply.status for reply in wire.replies_to_end()])
        wire.close()
        ended.append(time.monotonic())

    assert all(wire.is_alive() for wire in wires)
    readers = [Thread(target=read_to_end, args=(wire,)) for wire in wires]
    for reader in readers:
        reader.start()
    server.terminate()
    assert server.wait() == 0
    stopped = time.monotonic()
    for reader in readers:
        reader.join()
    assert said == [[Status.SHUTTING_DOWN]] * CONNECTIONS
    assert stopped - max(ended) < FAREWELL_S * 0.75
