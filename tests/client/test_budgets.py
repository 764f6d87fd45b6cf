"""No call outlives its budget, whatever the server does or leaves undone."""

# ruff: noqa: SIM117 - the outer `with` holds a server and its client, the inner one what is expected of them

from __future__ import annotations

import socket
from threading import Event
from time import monotonic

import pytest

from rcache_client import BudgetSpent, Client, OutcomeUnknown, PoolExhausted, ServersUnavailable, TimedOut
from rcache_client.address import Address, LookupFailed, Resolver
from rcache_client.wire.frames import encode_reply
from rcache_client.wire.opcodes import Opcode, Status

from .fake_service import answer
from .scripted_server import Line, ScriptedServer, play, play_silence
from .support import full_backlog, running, within


def play_trickle(line: Line) -> None:
    """Answers properly, but a byte at a time, each well within any read time-out."""
    line.hello()
    request = line.request()
    status, payload = answer(Opcode.GET, Status.OK, 0, 1, bytes(1000))
    for byte in encode_reply(Opcode.GET, status, request.request_id, 1, payload):
        line.raw(bytes([byte]))
        if Event().wait(0.02):
            return


def test_a_read_from_a_silent_server_ends_with_its_read_timeout() -> None:
    with ScriptedServer(play_silence) as server, Client(server.address, read_timeout=0.2, budget=5) as cache:
        with within(0.2), pytest.raises(TimedOut, match=r"GET at .*no answer came in time \(read_timeout of 0.2 s\)"):
            cache.get("key")


def test_a_write_to_a_silent_server_is_of_unknown_outcome_and_not_sent_again() -> None:
    with ScriptedServer(play_silence) as server, Client(server.address, read_timeout=0.2) as cache:
        with within(0.2), pytest.raises(OutcomeUnknown, match=r"SET at .*look before writing again"):
            cache.set("key", b"value")
        assert server.opcodes() == [Opcode.SET]


def test_the_budget_of_a_call_goes_before_that_of_the_client() -> None:
    with ScriptedServer(play_silence) as server, Client(server.address, read_timeout=30, budget=60) as cache:
        with within(0.2), pytest.raises(TimedOut, match="the budget of the call"):
            cache.get("key", budget=0.2)


def test_an_answer_byte_by_byte_does_not_outlive_the_budget() -> None:
    with ScriptedServer(play_trickle) as server, Client(server.address, read_timeout=0.2, budget=0.6) as cache:
        with within(0.6), pytest.raises(TimedOut):
            cache.get("key")


def test_an_answer_byte_by_byte_within_the_budget_is_taken_whole() -> None:
    def play_slowly(line: Line) -> None:
        line.hello()
        request = line.request()
        status, payload = answer(Opcode.GET, Status.OK, 0, 1, b"value")
        for byte in encode_reply(Opcode.GET, status, request.request_id, 1, payload):
            line.raw(bytes([byte]))
        line.serve()

    with ScriptedServer(play_slowly) as server, Client(server.address) as cache:
        assert cache.get("key") == b"value"
        assert cache.get("key") is None


def test_a_server_that_does_not_greet() -> None:
    with ScriptedServer(lambda line: line.hold()) as server, Client(server.address, connect_timeout=0.2) as cache:
        with within(0.2), pytest.raises(ServersUnavailable, match=r"no answer came in time \(connect_timeout of 0.2 s\)"):
            cache.set("key", b"value")


def test_an_address_that_swallows_connections() -> None:
    with full_backlog() as address, Client(address, connect_timeout=0.2) as cache:
        with within(0.2), pytest.raises(ServersUnavailable, match="no connection in time"):
            cache.get("key")


def test_a_budget_shorter_than_connect_timeout() -> None:
    with full_backlog() as address, Client(address, connect_timeout=30) as cache:
        with within(0.2), pytest.raises(BudgetSpent, match="before a connection was ready"):
            cache.get("key", budget=0.2)


def test_a_large_write_that_is_not_taken_in() -> None:
    stay = Event()

    def play_deaf(line: Line) -> None:
        line.hello()
        stay.wait(10)

    with ScriptedServer(play_deaf) as server, Client(server.address, read_timeout=0.3) as cache:
        server.service.frame_bytes_max = 1 << 28
        try:
            with within(1), pytest.raises((BudgetSpent, ServersUnavailable)):
                cache.set("key", bytes(1 << 24))  # an incomplete frame is surely not executed
        finally:
            stay.set()


def test_waiting_for_a_connection_counts(server: ScriptedServer) -> None:
    server.scripts = [play_silence]
    with Client(server.address, max_connections=1, read_timeout=1) as cache:

        def occupy() -> None:
            with pytest.raises(TimedOut):
                cache.get("slow")

        with running(occupy):
            server.wait_for(lambda: len(server.requests) == 2)
            with within(0.2), pytest.raises(PoolExhausted, match="all 1 connections were in use"):
                cache.get("key", budget=0.2)


def test_all_tries_of_a_read_share_one_budget() -> None:
    with ScriptedServer(play_silence) as one, ScriptedServer(play_silence) as two:
        with Client([one.address, two.address], read_timeout=0.3, budget=0.5) as cache:
            with within(0.5), pytest.raises(TimedOut):
                cache.get("key")
            assert one.opcodes() == two.opcodes() == [Opcode.GET]


def test_flush_may_take_its_whole_budget() -> None:
    def play_slow_flush(line: Line) -> None:
        line.hello()
        request = line.request()
        Event().wait(0.4)
        line.execute(request)
        line.serve()

    with ScriptedServer(play_slow_flush) as server, Client(server.address, read_timeout=0.1, budget=5) as cache:
        assert cache.flush() == 0


class HangingLookup:
    """A resolver that answers when it is told to."""

    def __init__(self, answers: list[tuple[object, ...]]) -> None:
        self.go_on = Event()
        self.calls = 0
        self.answers = answers

    def __call__(self, *_: object, **__: object) -> list[tuple[object, ...]]:
        self.calls += 1
        assert self.go_on.wait(10)
        return self.answers


def test_a_name_that_does_not_resolve_in_time_has_one_lookup_and_is_found_later() -> None:
    lookup = HangingLookup([(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 1))])
    resolver = Resolver(Address("name", 1), lookup)
    for _ in range(3):
        with within(0.1), pytest.raises(TimeoutError, match="'name' was not resolved in time"):
            resolver.resolve(monotonic() + 0.1)
    assert lookup.calls == 1
    lookup.go_on.set()
    assert resolver.resolve(monotonic() + 5) == [(socket.AF_INET, ("127.0.0.1", 1))]


def test_a_name_that_does_not_exist_is_named() -> None:
    def unknown(*_: object, **__: object) -> list[tuple[object, ...]]:
        raise socket.gaierror(-2, "Name or service not known")

    with pytest.raises(LookupFailed, match=r"'nowhere\.invalid'") as caught:
        Resolver(Address("nowhere.invalid", 1), unknown).resolve(monotonic() + 5)
    assert isinstance(caught.value.__cause__, socket.gaierror)


def test_a_name_that_does_not_resolve_makes_its_server_unavailable() -> None:
    with Client("nowhere.invalid:1") as cache:
        cache._doors._doors[0].resolver = Resolver(Address("nowhere.invalid", 1), HangingLookup([]))
        lookup = cache._doors._doors[0].resolver._lookup
        assert isinstance(lookup, HangingLookup)
        with within(0.2), pytest.raises(BudgetSpent, match="was not resolved in time"):
            cache.get("key", budget=0.2)
        lookup.go_on.set()


def test_all_addresses_of_a_name_are_tried(server: ScriptedServer) -> None:
    dead = ("127.0.0.1", 1)
    answers = [(socket.AF_INET, 1, 6, "", dead), (socket.AF_INET, 1, 6, "", ("127.0.0.1", server.port))]
    with Client("some.name:1") as cache:
        cache._doors._doors[0].resolver = Resolver(Address("some.name", 1), lambda *_, **__: answers)
        assert cache.ping() > 0


def test_an_address_of_a_name_that_swallows_connections_leaves_time_for_the_next(server: ScriptedServer) -> None:
    with full_backlog() as dead, Client("some.name:1", connect_timeout=1) as cache:
        targets = [("127.0.0.1", int(dead.rpartition(":")[2])), ("127.0.0.1", server.port)]
        answers = [(socket.AF_INET, 1, 6, "", target) for target in targets]
        cache._doors._doors[0].resolver = Resolver(Address("some.name", 1), lambda *_, **__: answers)
        with within(0.5):
            assert cache.ping() > 0


def test_a_real_name_works(server: ScriptedServer) -> None:
    server.scripts = [play]
    with Client(f"localhost:{server.port}") as cache:
        assert cache.ping() > 0
