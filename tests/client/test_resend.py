"""What is sent again and what is not: stale connections, goodbyes, and statuses that mean 'not executed'."""

# ruff: noqa: SIM117 - the outer `with` holds a server and its client, the inner one what is expected of them

from __future__ import annotations

from threading import Event

import pytest

from rcache_client import (
    Busy,
    Client,
    NoRoom,
    NotAllowed,
    NotExecuted,
    OutcomeUnknown,
    Paused,
    ProtocolError,
    Refused,
    ServersUnavailable,
    TooLarge,
    UnknownOpcode,
)
from rcache_client.wire.opcodes import Opcode, Status

from .scripted_server import Line, Script, ScriptedServer, play
from .support import until, within


def refusing(status: int, times: int) -> Script:
    """Refuses the first requests with that status, then serves."""

    def script(line: Line) -> None:
        line.hello()
        while line.server.refused < times:  # type: ignore[attr-defined]
            request = line.request()
            line.server.refused += 1  # type: ignore[attr-defined]
            line.refuse(request, status)
            if status >= Status.BAD_MAGIC:
                line.hold()
        line.serve()

    return script


class RefusingServer(ScriptedServer):
    """Refuses `times` requests, over all its connections, before it serves."""

    def __init__(self, status: int, times: int) -> None:
        self.refused = 0
        super().__init__(refusing(status, times))


def test_a_stale_connection_is_replaced_before_a_write(server: ScriptedServer, cache: Client[bytes]) -> None:
    cache.set("key", b"1")
    server.stop()
    server.start()
    assert cache.set("key", b"2")  # not even a write notices
    assert cache.get("key") == b"2"
    assert server.connections == 2


def test_many_stale_connections_are_replaced_by_one(server: ScriptedServer) -> None:
    with Client(server.address) as cache:
        pool = cache._doors._doors[0].pool
        for connection in [cache._doors.take(1e9)[1] for _ in range(5)]:
            pool.give(connection)
        assert len(pool._idle) == 5
        server.stop()
        server.start()
        assert cache.get("key") is None
        assert pool.connections == 1


def test_a_goodbye_found_on_an_idle_connection(server: ScriptedServer) -> None:
    answered = Event()

    def play_leave(line: Line) -> None:
        line.hello()
        line.execute(line.request())
        assert answered.wait(10)
        line.say_goodbye(Status.IDLE_TIMEOUT)

    server.scripts = [play_leave, play]
    with Client(server.address) as cache:
        cache.ping()
        (connection,) = cache._doors._doors[0].pool._idle
        answered.set()
        until(connection.is_stale)
        assert cache.set("key", b"value")
        assert server.connections == 2
        assert server.opcodes() == [Opcode.SET]


def test_a_write_that_met_a_goodbye_is_sent_again_if_it_was_not_executed() -> None:
    def play_leave(line: Line) -> None:
        line.hello()
        line.request()
        line.say_goodbye(Status.IDLE_TIMEOUT)

    with ScriptedServer(play_leave, play) as server, Client(server.address) as cache:
        assert cache.set("key", b"value")
        assert server.opcodes() == [Opcode.SET, Opcode.SET]


def test_a_write_that_met_a_goodbye_is_not_sent_again_if_it_was_executed() -> None:
    def play_leave(line: Line) -> None:
        line.hello()
        line.say_goodbye(Status.IDLE_TIMEOUT, last_executed=line.request().request_id)

    with ScriptedServer(play_leave, play) as server, Client(server.address) as cache:
        with pytest.raises(OutcomeUnknown, match="goodbye: IDLE_TIMEOUT: on purpose"):
            cache.set("key", b"value")
        assert server.opcodes() == [Opcode.SET]


def test_a_lost_connection_leaves_a_write_unknown_but_not_a_read() -> None:
    def play_cut(line: Line) -> None:
        line.hello()
        line.request()

    with ScriptedServer(play_cut, play_cut, play) as server, Client(server.address) as cache:
        with pytest.raises(OutcomeUnknown, match="INCREMENT at"):
            cache.incr("key")
        assert cache.get("key") is None
        assert server.opcodes() == [Opcode.INCREMENT, Opcode.GET, Opcode.GET]


@pytest.mark.parametrize("status", [Status.BUSY, Status.PAUSED, Status.DEADLINE_PASSED, Status.NOT_PRIMARY, 0x2F, 0x3F])
def test_not_executed_is_sent_again_after_a_while(status: int) -> None:
    with RefusingServer(status, times=2) as server, Client(server.address) as cache:
        assert cache.incr("key", initial=1) == 1
        assert server.opcodes() == [Opcode.INCREMENT] * 3


@pytest.mark.parametrize(
    "status", [Status.IDLE_TIMEOUT, Status.FRAME_TIMEOUT, Status.HELLO_TIMEOUT, Status.TOO_MANY_CONNECTIONS, 0x6F]
)
def test_closing_statuses_are_not_executed(status: int) -> None:
    with RefusingServer(status, times=2) as server, Client(server.address) as cache:
        assert cache.incr("key", initial=1) == 1
        assert server.connections == 3


@pytest.mark.parametrize(("status", "kind"), [(Status.BUSY, Busy), (Status.PAUSED, Paused), (0x2F, NotExecuted)])
def test_but_not_for_ever(status: int, kind: type[NotExecuted]) -> None:
    with RefusingServer(status, times=100) as server, Client(server.address) as cache:
        with within(2), pytest.raises(kind, match="not executed; try again later"):
            cache.incr("key")
        assert 3 <= server.refused <= 6
        with within(0.1), pytest.raises(kind):
            cache.incr("key", budget=0.1)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (Status.TOO_LARGE, TooLarge),
        (Status.NO_ROOM, NoRoom),
        (Status.UNKNOWN_OPCODE, UnknownOpcode),
        (Status.NOT_ALLOWED, NotAllowed),
        (0x1F, Refused),
        (Status.FRAME_TOO_LONG, TooLarge),
        (Status.BAD_PAYLOAD, ProtocolError),
        (Status.BAD_VERSION, ProtocolError),
        (Status.NOT_COMMITTED, OutcomeUnknown),
        (Status.APPEND_LOG_FAILED, OutcomeUnknown),
        (0x4F, OutcomeUnknown),
    ],
)
def test_a_write_is_told_at_once_what_would_not_change(status: int, kind: type[Exception]) -> None:
    with RefusingServer(status, times=100) as server, Client(server.address) as cache:
        with pytest.raises(kind, match="because"):
            cache.set("key", b"value")
        assert server.refused == 1


def test_a_server_from_before_a_call_does_not_know_it_and_its_connection_lives() -> None:
    with RefusingServer(Status.UNKNOWN_OPCODE, times=1) as server, Client(server.address) as cache:
        with pytest.raises(UnknownOpcode, match="GET_WITH_TTL at"):
            cache.get_with_ttl("key")
        assert cache.get("key") is None
        assert (server.refused, server.connections) == (1, 1)


def test_a_read_whose_outcome_is_unknown_is_asked_again() -> None:
    for read in (lambda cache: cache.get("key"), lambda cache: cache.get_with_ttl("key").value):
        with RefusingServer(Status.NOT_COMMITTED, times=1) as server, Client(server.address) as cache:
            assert read(cache) is None
            assert server.refused == 1
    with RefusingServer(Status.INTERNAL_ERROR, times=100) as server, Client(server.address) as cache:
        with pytest.raises(NotExecuted, match="INTERNAL_ERROR"):
            cache.get("key")


@pytest.mark.parametrize("status", [Status.STOPPING, Status.SHUTTING_DOWN])
def test_a_server_that_stops_sends_writes_to_another_door(status: int) -> None:
    with RefusingServer(status, times=100) as leaving, ScriptedServer() as staying:
        with Client([leaving.address, staying.address]) as cache:
            for _ in range(4):
                assert cache.set("key", b"value")
        assert leaving.refused <= 2
        assert len(staying.opcodes()) == 4


def test_a_server_that_stops_and_is_the_only_one() -> None:
    with RefusingServer(Status.STOPPING, times=100) as server, Client(server.address) as cache:
        with within(0.5), pytest.raises(ServersUnavailable, match="STOPPING"):
            cache.set("key", b"value")


def test_an_interrupted_call_never_gives_its_connection_back(server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupt(BaseException):
        pass

    with Client(server.address) as cache:
        cache.ping()
        (connection,) = cache._doors._doors[0].pool._idle

        def interrupt(*_: object) -> bytes:
            raise Interrupt

        monkeypatch.setattr(type(connection), "_receive", interrupt)
        with pytest.raises(Interrupt):
            cache.get("key")
        monkeypatch.undo()
        assert connection.closed
        assert cache._doors._doors[0].pool.connections == 0
        assert cache.get("key") is None
