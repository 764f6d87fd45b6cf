"""The pool: bounded, fair, and shared by threads without crossing answers."""

# ruff: noqa: SIM117 - the outer `with` holds a server and its client, the inner one what is expected of them

from __future__ import annotations

from threading import Barrier, Event
from time import monotonic

import pytest

from rcache_client import Client, ClientClosed, PoolExhausted, ServersUnavailable
from rcache_client.pool import Pool

from .scripted_server import Line, ScriptedServer
from .support import free_address, running, until, within


class FakeConnection:
    """What a pool needs of a connection."""

    def __init__(self) -> None:
        self.closed = False
        self.stale = False

    def is_stale(self) -> bool:
        return self.stale

    def close(self) -> None:
        self.closed = True

    def send_goodbye(self) -> None:
        pass

    def await_end(self, deadline: float) -> None:
        self.close()


def make_pool(size: int) -> Pool:
    return Pool("server", size, lambda deadline: FakeConnection())  # type: ignore[arg-type, return-value]


def soon() -> float:
    return monotonic() + 10


def test_the_last_connection_given_back_is_the_first_taken() -> None:
    pool = make_pool(2)
    one, two = pool.take(soon()), pool.take(soon())
    pool.give(one)
    pool.give(two)
    assert pool.take(soon()) is two
    assert pool.take(soon()) is one


def test_a_stale_connection_is_closed_and_replaced() -> None:
    pool = make_pool(1)
    one = pool.take(soon())
    one.stale = True  # type: ignore[attr-defined]
    pool.give(one)
    assert pool.take(soon()) is not one
    assert one.closed
    assert pool.connections == 1


def test_a_discarded_connection_frees_its_place_once() -> None:
    pool = make_pool(1)
    one = pool.take(soon())
    pool.discard(one)
    pool.discard(one)
    pool.take(soon())
    assert pool.connections == 1


def test_a_failed_opening_frees_its_place() -> None:
    def fail(deadline: float) -> FakeConnection:
        raise OSError("no")

    pool = Pool("server", 1, fail)  # type: ignore[arg-type]
    for _ in range(3):
        with pytest.raises(OSError, match="no"):
            pool.take(soon())
    assert pool.connections == 0


def test_who_waits_gets_what_is_given_back_before_who_comes_later() -> None:
    pool = make_pool(1)
    order: list[str] = []
    held = pool.take(soon())

    def wait(name: str) -> None:
        connection = pool.take(soon())
        order.append(name)
        pool.give(connection)

    with running(lambda: wait("first")):
        until(lambda: len(pool._waiting) == 1)
        with running(lambda: wait("second")):
            until(lambda: len(pool._waiting) == 2)
            pool.give(held)  # both take it in their turn
    assert order == ["first", "second"]


def test_the_place_of_a_discarded_connection_goes_to_who_waits() -> None:
    pool = make_pool(1)
    held = pool.take(soon())
    got: list[object] = []
    with running(lambda: got.append(pool.take(soon()))):
        until(lambda: len(pool._waiting) == 1)
        pool.discard(held)
    assert got
    assert got[0] is not held
    assert pool.connections == 1


def test_who_waits_in_vain_is_told_and_forgotten() -> None:
    pool = make_pool(1)
    held = pool.take(soon())
    with within(0.1), pytest.raises(PoolExhausted, match=r"server: all 1 connections were in use for 0\.\d+ s"):
        pool.take(monotonic() + 0.1)
    assert not pool._waiting
    pool.give(held)
    assert pool.take(soon()) is held


def test_who_waits_when_the_client_is_closed_is_told() -> None:
    pool = make_pool(1)
    held = pool.take(soon())
    told: list[ClientClosed] = []

    def wait() -> None:
        with pytest.raises(ClientClosed) as caught:
            pool.take(soon())
        told.append(caught.value)

    with running(wait):
        until(lambda: len(pool._waiting) == 1)
        assert pool.retire() == []
    assert told
    pool.give(held)
    assert held.closed


def test_threads_share_few_connections_and_never_an_answer(server: ScriptedServer) -> None:
    barrier = Barrier(24)
    wrong: list[object] = []
    with Client(server.address, max_connections=4, budget=30) as cache:

        def work(number: int) -> None:
            barrier.wait(10)
            for turn in range(50):
                value = b"%d of %d" % (turn, number)
                cache.set(f"key-{number}", value)
                if (got := cache.get(f"key-{number}")) != value:
                    wrong.append((number, turn, got))

        with running(*[lambda n=n: work(n) for n in range(24)]):  # type: ignore[misc]
            pass
        assert wrong == []
        assert len(server.opcodes()) == 24 * 50 * 2
        assert server.connections == 4


def test_no_connection_is_shared_while_it_waits() -> None:
    gate = Event()

    def play_gated(line: Line) -> None:
        line.hello()
        while True:
            request = line.request()
            assert gate.wait(10)
            line.execute(request)

    with ScriptedServer(play_gated) as server, Client(server.address) as cache:
        with running(*[lambda: cache.get("key")] * 3):
            server.wait_for(lambda: len(server.opcodes()) == 3, "three requests at once")
            assert server.connections == 3
            gate.set()


def test_places_come_back_from_a_server_that_cannot_be_reached() -> None:
    with Client(free_address(), max_connections=1) as cache:
        for _ in range(3):
            with pytest.raises(ServersUnavailable):
                cache.get("key")
        assert cache._doors._doors[0].pool.connections == 0
