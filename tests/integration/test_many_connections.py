"""A thousand idle connections, held while others work; what each costs; all are told at the stop."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import ExitStack
from threading import Thread
from time import monotonic

import pytest

from rcache_client import Client
from rcache_client.wire.opcodes import Opcode, Role, Status

from .conftest import Serve
from .support import stats
from .wire import Wire, hello

IDLE = 1000
DESCRIPTORS = 4096
WORKERS = 8
ROUNDS = 200

CONNECTION_BYTES_MAX = 200_000
"""A thread's touched stack and its buffers, with much room to spare; what is measured is printed."""

STOP_S = 10.0


@pytest.fixture
def descriptors() -> Iterator[None]:
    """Enough of them, here and in the server, which inherits the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < DESCRIPTORS:
        pytest.skip(f"a process may open {hard} files here; {DESCRIPTORS} are needed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, DESCRIPTORS), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("descriptors")
def test_a_thousand_idle_connections(serve: Serve) -> None:
    server = serve()
    before = stats(server, "memory")["process_bytes"]
    with ExitStack() as stack:
        idle = [stack.enter_context(Wire(server.address)) for _ in range(IDLE)]
        for wire in idle:
            assert wire.ask(hello(Role.CLIENT))[0] == Status.OK
        assert stats(server, "connections")["connections"] > IDLE
        each = (stats(server, "memory")["process_bytes"] - before) / IDLE
        print(f"{each:.0f} bytes of memory for each of {IDLE} idle connections")
        assert each < CONNECTION_BYTES_MAX
        _work(server.address)
        assert idle[0].is_alive()
        assert idle[-1].is_alive()
        began = monotonic()
        server.terminate()
        for wire in idle:
            (goodbye,) = wire.replies_to_end()
            assert (goodbye.opcode, goodbye.status) == (Opcode.GOODBYE, Status.SHUTTING_DOWN)
            wire.close()
        assert server.wait(STOP_S) == 0
        assert monotonic() - began < STOP_S
    assert "cut off" not in server.stderr_text


def _work(address: str) -> None:
    """Several threads at once; every answer is checked."""
    problems: list[str] = []

    def run(worker: int) -> None:
        for number in range(ROUNDS):
            key, value = f"work-{worker}-{number % 10}", f"{worker} {number}".encode()
            cache.set(key, value)
            if cache.get(key) != value:
                problems.append(key)

    with Client(address) as cache:
        workers = [Thread(target=run, args=(number,)) for number in range(WORKERS)]
        for thread in workers:
            thread.start()
        for thread in workers:
            thread.join(60)
            assert not thread.is_alive()
    assert problems == []
