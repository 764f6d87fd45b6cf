"""The end of a client, and the life of its copy in a forked child."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from threading import Event, Thread

import pytest

from rcache_client import Client, ClientClosed
from rcache_client.wire.opcodes import Opcode

from .fake_cluster import FakeCluster
from .scripted_server import Line, ScriptedServer
from .support import running, within


def test_goodbye_is_said_answered_and_the_connection_closed_on_both_sides(server: ScriptedServer) -> None:
    with Client(server.address) as cache:
        cache.ping()
        with within(0.2):
            cache.close()
    server.wait_for(lambda: server.open_now == 0, "the end of the connection")
    assert server.requests[-1].opcode == Opcode.GOODBYE
    assert server.requests[-1].request_id == 3


def test_every_idle_connection_says_goodbye(server: ScriptedServer) -> None:
    with Client(server.address) as cache:
        pool = cache._doors._doors[0].pool
        for connection in [cache._doors.take(1e9)[1] for _ in range(5)]:
            pool.give(connection)
    server.wait_for(lambda: server.open_now == 0)
    assert [r.opcode for r in server.requests].count(Opcode.GOODBYE) == 5


def test_the_answer_is_waited_for() -> None:
    answered = Event()

    def play_slow_goodbye(line: Line) -> None:
        line.hello()
        line.execute(line.request())
        request = line.request()
        assert request.opcode == Opcode.GOODBYE
        assert line.server.open_now == 1
        answered.wait(0.05)  # the client is waiting meanwhile
        line.execute(request)

    with ScriptedServer(play_slow_goodbye) as server, Client(server.address) as cache:
        cache.ping()
        (connection,) = cache._doors._doors[0].pool._idle
        closer = Thread(target=cache.close, name="closer")
        closer.start()
        server.wait_for(lambda: server.requests[-1].opcode == Opcode.GOODBYE)
        assert not connection.closed
        closer.join(5)
        assert connection.closed


def test_a_server_that_does_not_answer_goodbye_is_not_waited_for_long() -> None:
    def play_deaf(line: Line) -> None:
        line.hello()
        line.execute(line.request())
        line.hold()

    with ScriptedServer(play_deaf) as server, Client(server.address) as cache:
        cache.ping()
        with within(0.2):
            cache.close()


CALLS: list[Callable[[Client[bytes]], object]] = [
    lambda c: c.get("key"),
    lambda c: c.set("key", b"value"),
    lambda c: c.get_many(["key"]),
    lambda c: c.ping(),
]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("used", [True, False])
def test_calls_on_a_closed_client_say_so(server: ScriptedServer, call: Callable[[Client[bytes]], object], used: bool) -> None:
    cache = Client(server.address)
    if used:
        cache.ping()
    cache.close()
    cache.close()
    with pytest.raises(ClientClosed, match="make a new Client"):
        call(cache)


def test_a_connection_in_use_is_closed_when_its_call_ends() -> None:
    go_on = Event()

    def play_gated(line: Line) -> None:
        line.hello()
        request = line.request()
        assert go_on.wait(10)
        line.execute(request)
        line.serve()

    with ScriptedServer(play_gated) as server, Client(server.address) as cache:
        got: list[object] = []
        with running(lambda: got.append(cache.set("key", b"value"))):
            server.wait_for(lambda: len(server.opcodes()) == 1)
            cache.close()
            go_on.set()
        assert got
        server.wait_for(lambda: server.open_now == 0)
        assert server.requests[-1].opcode == Opcode.GOODBYE


def in_child(work: Callable[[], bool]) -> bool:
    """Run `work` in a forked child; whether it returned True there."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # from 3.12 on: forking with threads, which is what is tested
        pid = os.fork()
    if pid == 0:
        good = False
        try:
            good = work()
        finally:
            os._exit(0 if good else 1)
    return os.waitpid(pid, 0)[1] == 0


def test_a_forked_child_makes_its_own_connections(server: ScriptedServer, cache: Client[bytes]) -> None:
    cache.set("key", b"parent")
    assert in_child(lambda: cache.get("key") == b"parent" and bool(cache.set("child", b"1")))
    assert cache.get("key") == b"parent"
    assert cache.get("child") == b"1"
    assert server.connections == 2
    assert [r.opcode for r in server.requests].count(Opcode.HELLO) == 2


def test_a_childs_end_does_not_end_the_parents_connections(server: ScriptedServer, cache: Client[bytes]) -> None:
    cache.ping()

    def close() -> bool:
        cache.close()
        return True

    assert in_child(close)
    assert cache.ping() > 0
    assert server.connections == 1
    assert Opcode.GOODBYE not in [r.opcode for r in server.requests]


def test_a_child_closes_its_copies_so_that_the_parents_end_is_an_end(server: ScriptedServer) -> None:
    with Client(server.address) as cache:
        cache.ping()
        pinned = list(cache._doors._doors[0].pool._connections)  # as a thread's frame would, which lives on in the child
        stay_reader, stay_writer = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            os.close(stay_writer)
            os.read(stay_reader, 1)
            os._exit(0)
        try:
            cache._doors._doors[0].pool.drop_idle()
            server.wait_for(lambda: server.open_now == 0, "the end of the connection, with the child alive")
        finally:
            os.close(stay_writer)
            os.close(stay_reader)
            os.waitpid(pid, 0)
        assert pinned[0].closed


def test_a_fork_during_a_call_of_another_thread() -> None:
    go_on = Event()

    def play_gated(line: Line) -> None:
        line.hello()
        request = line.request()
        assert go_on.wait(10)
        line.execute(request)
        line.serve()

    with ScriptedServer(play_gated) as server, Client(server.address, max_connections=1) as cache:
        with running(lambda: cache.get("key")):
            server.wait_for(lambda: len(server.opcodes()) == 1)
            pool = cache._doors._doors[0].pool
            with pool._lock, cache._doors._lock:  # held, as by a thread that does not exist in the child
                free = in_child(
                    lambda: pool.connections == 0 and pool._lock.acquire(timeout=1) and not cache._doors._lock.locked()
                )
            assert free
            go_on.set()
        assert cache.get("key") is None


def test_a_forked_child_goes_by_the_view_over_connections_of_its_own() -> None:
    with FakeCluster("n1", "n2") as cluster, Client(cluster.addresses("n1")) as cache:
        keys = [key for name in cluster.servers for key in cluster.keys_of(name, 2)]
        cache.set_many(dict.fromkeys(keys, b"parent"))
        router = cache._router
        with router._changed, router._adopting:  # held, as by a thread that fetches and does not exist in the child
            router._under_way = True
            assert in_child(lambda: cache.get_many(keys) == dict.fromkeys(keys, b"parent") and cache.view().epoch == 1)
        router._under_way = False
        assert cache.get_many(keys) == dict.fromkeys(keys, b"parent")
        assert [server.connections for server in cluster.servers.values()] == [2, 2]


def test_close_says_goodbye_to_every_node() -> None:
    with FakeCluster("n1", "n2", "n3") as cluster:
        with Client(cluster.addresses("n1")) as cache:
            cache.get_many([key for name in cluster.servers for key in cluster.keys_of(name)])
        for server in cluster.servers.values():
            server.wait_for(lambda server=server: server.open_now == 0)  # type: ignore[misc]
            assert server.requests[-1].opcode == Opcode.GOODBYE
        with pytest.raises(ClientClosed):
            cache.get("key")
        with pytest.raises(ClientClosed):
            cache.get_many(["a", "b", "c", "d"])
        with pytest.raises(ClientClosed):
            cache.flush()
