"""What a stranger can make grow is bounded: time to HELLO, idle time, time for a frame, replies not read, connections."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from threading import Event
from time import monotonic

import pytest

from rcache_client import Busy, Client, NotExecuted
from rcache_client.wire.grammar import decode_reply
from rcache_client.wire.opcodes import Opcode, Role, Status
from soak.server_process import ServerProcess

from .conftest import Serve
from .support import stats, until
from .wire import Wire, get, hello, request, store

LIMIT_S = 0.6
LIMITS = [f"--{name}-timeout={LIMIT_S}" for name in ("hello", "idle", "frame", "send")]
LATE_S = 2.0
"""What a busy machine may add to a limit."""

RESERVE = 16


@pytest.fixture(scope="module")
def hurried(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server without patience."""
    with ServerProcess(tmp_path_factory.mktemp("hurried") / "data", *LIMITS) as running:
        yield running


def assert_parted(wire: Wire, status: Status, began: float, last_executed: int = 0) -> None:
    """The server's own GOODBYE, in time, and then FIN."""
    reply = wire.reply()
    took_s = monotonic() - began
    assert reply is not None
    assert (reply.opcode, reply.status) == (Opcode.GOODBYE, status)
    executed, reason = decode_reply(reply.opcode, reply.status, reply.payload)
    assert (executed, reply.request_id) == (last_executed, last_executed)
    assert reason
    assert wire.reply() is None
    assert LIMIT_S * 0.9 <= took_s < LIMIT_S + LATE_S


def test_who_says_nothing_is_told_and_closed(hurried: ServerProcess) -> None:
    began = monotonic()
    with Wire(hurried.address) as wire:
        assert_parted(wire, Status.HELLO_TIMEOUT, began)


def test_who_is_idle_is_told_and_closed(hurried: ServerProcess) -> None:
    with Wire(hurried.address) as wire:
        assert wire.ask(store(b"k", b"v", request_id=9))[0] == Status.OK
        assert_parted(wire, Status.IDLE_TIMEOUT, monotonic(), last_executed=9)


def test_a_client_does_not_notice_that_its_idle_connection_was_closed(hurried: ServerProcess) -> None:
    with Client(hurried.address) as cache:
        cache.set("k", b"v")
        until(lambda: stats(hurried, "connections")["ended"].get("idle_timeout", 0) > 0)
        assert cache.get("k") == b"v"
        cache.set("k", b"w")


def test_a_first_frame_has_no_more_time_than_a_hello(serve: Serve) -> None:
    server = serve(f"--hello-timeout={LIMIT_S}", "--frame-timeout=60")
    with Wire(server.address) as wire:
        began = monotonic()
        wire.send(hello()[:1])
        assert_parted(wire, Status.HELLO_TIMEOUT, began)


def test_a_frame_that_stops_half_way_is_told_and_closed(hurried: ServerProcess) -> None:
    with Wire(hurried.address) as wire:
        wire.ask(get(b"first"))
        wire.send(store(b"half", b"x" * 100)[:50])
        assert_parted(wire, Status.FRAME_TIMEOUT, monotonic(), 1)


def test_a_frame_that_drips_in_is_told_and_closed(hurried: ServerProcess) -> None:
    """A byte now and then must not renew the time that a whole frame has."""
    frame = store(b"drip", b"x" * 10_000)
    with Wire(hurried.address) as wire:
        wire.ask(get(b"first"))
        began = monotonic()
        wire.sock.settimeout(0.05)
        for place in range(len(frame)):
            try:
                wire.sock.send(frame[place : place + 1])
                if wire.sock.recv(1, socket.MSG_PEEK):
                    break
            except TimeoutError:
                pass
            assert monotonic() - began < LIMIT_S + LATE_S, "a frame may drip in for ever"
        assert_parted(wire, Status.FRAME_TIMEOUT, began, 1)


def test_steady_pipelining_is_not_taken_for_a_frame_that_drips_in(hurried: ServerProcess) -> None:
    """Every piece ends in the middle of a frame, for longer than a frame has; each frame by itself is in time."""
    stream = b"".join(store(b"steady", b"x" * 1000, number) for number in range(1, 401))
    piece = len(stream) // 8 + 1
    with Wire(hurried.address) as wire:
        pause = Event()
        for place in range(0, len(stream), piece):
            wire.send(stream[place : place + piece])
            pause.wait(LIMIT_S / 2)
        for number in range(1, 401):
            reply = wire.reply()
            assert reply is not None
            assert (reply.request_id, reply.status) == (number, Status.OK)


def test_who_never_reads_is_cut_off(hurried: ServerProcess) -> None:
    before = stats(hurried, "memory")["process_bytes"]
    with Client(hurried.address) as cache:
        cache.set("large", b"x" * 1_000_000)
    with Wire(hurried.address, receive_buffer=4096) as wire, Client(hurried.address) as neighbour:
        wire.sock.settimeout(LATE_S)
        wire.send(b"".join(get(b"large", number) for number in range(1, 101)))
        until(lambda: stats(hurried, "connections")["ended"].get("slow_reader", 0) == 1)
        assert neighbour.get("large") is not None
        grown = stats(hurried, "memory")["process_bytes"] - before
        assert grown < 32 << 20, f"{grown} bytes are kept for one who does not read"


def test_a_busy_connection_outlives_every_limit(hurried: ServerProcess) -> None:
    with Wire(hurried.address) as wire:
        began, number = monotonic(), 0
        while monotonic() - began < 3 * LIMIT_S:
            number += 1
            assert wire.ask(store(b"busy", b"v", number))[0] == Status.OK
            Event().wait(LIMIT_S / 10)


# --- the number of connections


def full(stack: ExitStack, server: ServerProcess, count: int) -> list[Wire]:
    wires = [stack.enter_context(Wire(server.address)) for _ in range(count)]
    for wire in wires:
        assert wire.is_alive()
    return wires


@pytest.mark.parametrize("first", [hello(), get(b"k"), request(Opcode.PING), b""], ids=["HELLO", "GET", "PING", "silence"])
def test_a_newcomer_beyond_the_limit_is_told_and_closed(serve: Serve, first: bytes) -> None:
    server = serve("--max-connections", "3")
    with ExitStack() as stack:
        wires = full(stack, server, 3)
        newcomer = stack.enter_context(Wire(server.address))
        newcomer.send(first)
        reply = newcomer.reply()
        assert reply is not None
        assert reply.status == Status.TOO_MANY_CONNECTIONS
        assert newcomer.reply() is None
        assert all(wire.is_alive() for wire in wires)


def test_an_administrator_still_gets_in_and_places_come_back(serve: Serve) -> None:
    server = serve("--max-connections", "3")
    with ExitStack() as stack:
        wires = full(stack, server, 3)
        admin = stack.enter_context(Wire(server.address))
        assert admin.ask(hello(Role.ADMIN))[0] == Status.OK
        assert admin.ask(request(Opcode.STATS, "connections"))[0] == Status.OK
        admin.close()
        with Client(server.address, role=Role.ADMIN) as looking:
            assert looking.stats("connections")["connections"]["connections"] >= 3
        with Client(server.address, budget=0.5) as client, pytest.raises((Busy, NotExecuted)):
            client.get("k")
        wires[0].close()
        with Client(server.address, wait_for_servers=True, budget=15.0) as client:
            assert client.get("k") is None


def test_beyond_the_reserve_a_newcomer_is_told_at_once(serve: Serve) -> None:
    server = serve("--max-connections", "1", "--hello-timeout", "30")
    with ExitStack() as stack:
        full(stack, server, 1)
        for _ in range(RESERVE):
            assert stack.enter_context(Wire(server.address)).ask(hello(Role.ADMIN))[0] == Status.OK
        with Wire(server.address) as newcomer:
            reply = newcomer.reply()
            assert reply is not None
            assert (reply.opcode, reply.status) == (Opcode.GOODBYE, Status.TOO_MANY_CONNECTIONS)
            assert newcomer.reply() is None


def test_the_default_limits_are_on(serve: Serve, tmp_path: Path) -> None:
    server = serve()
    assert stats(server, "connections")["connections_max"] == 2048
    with Wire(server.address) as wire:
        status, values = wire.ask(hello())
        assert status == Status.OK
        frame_bytes_max, value_bytes_max, idle_ms = values[4:7]
        assert (frame_bytes_max, value_bytes_max, idle_ms) == (16 << 20, 1 << 20, 600_000)
