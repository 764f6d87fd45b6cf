"""Looking for an answer before sleeping over it: bounded, only where it pays, and only where nobody else is kept waiting."""

# ruff: noqa: SIM117 - the outer `with` holds a server and its client, the inner one what is expected of them

from __future__ import annotations

import socket
from collections.abc import Iterator
from itertools import pairwise
from threading import Event
from time import monotonic

import pytest

from rcache_client import Client, TimedOut, spin
from rcache_client.connection import Connection, Setback
from rcache_client.spin import PAUSE_MAX, SPIN_SECONDS, Spin
from rcache_client.wire.frames import encode_reply
from rcache_client.wire.opcodes import Opcode, Status

from .scripted_server import Line, ScriptedServer, play, play_silence
from .support import running, until, within

LOOK_SECONDS = SPIN_SECONDS / 10


class FakeSocket:
    """Something to look at, on a clock that only a look moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.ready_after = 0.0
        self.look_seconds = LOOK_SECONDS
        self.looks = 0
        monkeypatch.setattr(spin, "monotonic", lambda: self.now)

    def ready_in(self, seconds: float) -> None:
        self.looks = 0
        self.ready_after = self.now + seconds

    def look(self, wait_ms: int) -> list[int]:
        assert wait_ms == 0
        self.looks += 1
        self.now += self.look_seconds
        return [1] if self.now > self.ready_after else []


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeSocket:
    return FakeSocket(monkeypatch)


NEVER = 1e9


def test_what_is_there_is_seen_at_the_first_look(fake: FakeSocket) -> None:
    fake.ready_in(0)
    assert Spin().sees(fake.look)
    assert fake.looks == 1


def test_what_comes_soon_is_waited_for(fake: FakeSocket) -> None:
    fake.ready_in(SPIN_SECONDS / 2)
    assert Spin().sees(fake.look)
    assert 1 < fake.looks <= 6


def test_what_does_not_come_soon_is_given_up(fake: FakeSocket) -> None:
    began = fake.now
    fake.ready_in(NEVER)
    assert not Spin().sees(fake.look)
    assert fake.now - began <= SPIN_SECONDS + 3 * LOOK_SECONDS


def test_a_look_that_takes_long_is_the_last(fake: FakeSocket) -> None:
    """As where another thread holds on to the interpreter lock."""
    fake.look_seconds = 0.005
    fake.ready_in(NEVER)
    assert not Spin().sees(fake.look)
    assert fake.looks == 1


def calls_that_look(found: Spin, fake: FakeSocket, calls: int) -> list[int]:
    """The numbers of the calls that looked at all, with an answer that never comes soon."""
    looked = []
    for number in range(calls):
        fake.ready_in(NEVER)
        assert not found.sees(fake.look)
        if fake.looks:
            looked.append(number)
    return looked


def test_the_more_often_it_was_in_vain_the_longer_it_is_left_alone(fake: FakeSocket) -> None:
    assert calls_that_look(Spin(), fake, 70) == [0, 2, 6, 14, 30, 62]


def test_but_not_for_ever(fake: FakeSocket) -> None:
    looked = calls_that_look(Spin(), fake, 10 * PAUSE_MAX)
    gaps = [after - before for before, after in pairwise(looked)]
    assert max(gaps) == PAUSE_MAX + 1
    assert gaps[-3:] == [PAUSE_MAX + 1] * 3


def test_once_it_paid_it_is_done_each_time_again(fake: FakeSocket) -> None:
    found = Spin()
    calls_that_look(found, fake, 14)
    fake.ready_in(SPIN_SECONDS / 2)
    assert found.sees(fake.look)
    assert calls_that_look(found, fake, 3) == [0, 2]


Ends = tuple[Connection, socket.socket]


@pytest.fixture
def ends() -> Iterator[Ends]:
    ours, theirs = socket.socketpair()
    connection = Connection(ours, "server:1")
    with theirs:
        yield connection, theirs
    connection.close()


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """What each call of `Spin.sees` found."""
    found: list[bool] = []
    original = Spin.sees

    def sees(self: Spin, look: object) -> bool:
        found.append(original(self, look))  # type: ignore[arg-type]
        return found[-1]

    monkeypatch.setattr(Spin, "sees", sees)
    return found


@pytest.fixture
def hopes(monkeypatch: pytest.MonkeyPatch) -> list[Connection]:
    """Each connection that hoped for its answer to come soon, once for each request but VIEW."""
    found: list[Connection] = []
    original = Connection._receive_soon

    def receive_soon(self: Connection) -> bytes:
        if self._opcode != Opcode.VIEW:
            found.append(self)
        return original(self)

    monkeypatch.setattr(Connection, "_receive_soon", receive_soon)
    return found


def ping(connection: Connection, wait_s: float) -> None:
    assert connection.exchange(Opcode.PING, b"", monotonic() + wait_s, wait_s) == (Status.OK, ())


class Waits:
    """In place of a connection's poll: remembers every wait, and lets it end as if the socket were ready."""

    def __init__(self, connection: Connection) -> None:
        self.waits: list[float] = []
        connection._poll = self  # type: ignore[assignment]

    def poll(self, wait_ms: float) -> list[tuple[int, int]]:
        self.waits.append(wait_ms)
        return [(0, 1)]


def test_an_answer_that_is_there_is_read_without_a_look(ends: Ends, looks: list[bool]) -> None:
    connection, theirs = ends
    connection.alone = True
    waits = Waits(connection).waits
    theirs.sendall(encode_reply(Opcode.PING, Status.OK, 1, 1))
    ping(connection, 5)
    assert (looks, waits) == ([], [])


def test_an_answer_that_comes_soon_is_read_without_a_wait(ends: Ends, looks: list[bool]) -> None:
    connection, theirs = ends
    connection.alone = True
    waits = Waits(connection).waits
    original = connection._look

    def answer_and_look(wait_ms: int) -> list[tuple[int, int]]:
        theirs.sendall(encode_reply(Opcode.PING, Status.OK, 1, 1))
        return original(wait_ms)

    connection._look = answer_and_look
    ping(connection, 5)
    assert (looks, waits) == ([True], [])


def test_an_answer_in_pieces_is_waited_for_after_the_first(ends: Ends, looks: list[bool]) -> None:
    connection, theirs = ends
    connection.alone = True
    reply = encode_reply(Opcode.PING, Status.OK, 1, 1)
    theirs.sendall(reply[:5])

    class Rest(Waits):
        def poll(self, wait_ms: float) -> list[tuple[int, int]]:
            theirs.sendall(reply[5:])
            return super().poll(wait_ms)

    waits = Rest(connection).waits
    ping(connection, 5)
    assert (looks, len(waits)) == ([], 1)
    assert 0 < waits[0] <= 5000


def test_a_call_beside_others_does_not_look(ends: Ends, looks: list[bool]) -> None:
    connection, theirs = ends
    connection.alone = False
    waits = Waits(connection).waits
    theirs.sendall(encode_reply(Opcode.PING, Status.OK, 1, 1))
    ping(connection, 5)
    assert (looks, len(waits)) == ([], 1)


def test_a_budget_too_small_for_it_does_not_look(ends: Ends, looks: list[bool]) -> None:
    connection, theirs = ends
    connection.alone = True
    theirs.sendall(encode_reply(Opcode.PING, Status.OK, 1, 1))
    waits = Waits(connection).waits
    assert connection.exchange(Opcode.PING, b"", monotonic() + 5, SPIN_SECONDS) == (Status.OK, ())
    assert (looks, len(waits)) == ([], 1)


def test_a_false_alarm_is_waited_over_within_the_read_timeout(ends: Ends) -> None:
    """Ready, says the kernel, and then there is nothing after all."""
    connection, _ = ends
    connection.alone = True
    alarms: list[int] = []
    connection._look = lambda wait_ms: alarms.append(wait_ms) or [(0, 1)]  # type: ignore[func-returns-value]
    with within(0.1), pytest.raises(Setback, match="in time"):
        ping(connection, 0.1)
    assert alarms == [0]


def test_a_client_with_one_call_at_a_time_hopes_and_one_with_more_does_not(hopes: list[Connection]) -> None:
    hold = Event()

    def play_gated(line: Line) -> None:
        line.hello()
        line.execute(line.request())
        request = line.request()
        assert hold.wait(10)
        line.execute(request)
        line.serve()

    with ScriptedServer(play_gated, play) as server, Client(server.address) as cache:
        cache.get("first")
        assert len(hopes) == 1  # as the greeting did not: a connection is alone only when its pool has found it so
        with running(lambda: cache.get("held")):
            until(lambda: len(hopes) == 2)
            cache.get("beside")
            cache.get("beside")
            assert len(hopes) == 2
            hold.set()
        pool = cache._doors._doors[0].pool
        assert len(pool._idle) == 2
        cache.get("alone again")
        assert len(hopes) == 3


def test_who_was_handed_a_connection_by_another_call_is_not_alone(hopes: list[Connection]) -> None:
    hold = Event()

    def play_gated(line: Line) -> None:
        line.hello()
        request = line.request()
        assert hold.wait(10)
        line.execute(request)
        line.serve()

    with ScriptedServer(play_gated) as server, Client(server.address, max_connections=1) as cache:
        pool = cache._doors._doors[0].pool
        with running(lambda: cache.get("first")):
            server.wait_for(lambda: len(server.opcodes()) == 1)
            with running(lambda: cache.get("second")):
                until(lambda: len(pool._waiting) == 1)
                hold.set()
        assert len(hopes) == 1


def test_a_silent_server_is_still_waited_for_to_the_read_timeout_only() -> None:
    with ScriptedServer(lambda line: (line.hello(), line.execute(line.request()), line.hold())) as server:  # type: ignore[func-returns-value]
        with Client(server.address, read_timeout=0.2, budget=0.2) as cache:
            cache.get("key")
            with within(0.2), pytest.raises(TimedOut):
                cache.get("key")


def test_a_server_far_away_is_waited_for_asleep(looks: list[bool]) -> None:
    def play_far(line: Line) -> None:
        line.hello()
        while True:
            request = line.request()
            Event().wait(0.002)
            line.execute(request)

    with ScriptedServer(play_far) as server, Client(server.address) as cache:
        cache.get("first")
        (connection,) = cache._doors._doors[0].pool._idle
        connection._spin = Spin()  # as if it had not asked for the view
        for _ in range(20):
            cache.get("key")
        assert looks[-20:] == [False] * 20  # nor was any of them there at once
        assert connection._spin._pause == 15  # it looked in calls 0, 2, 6 and 14


def test_no_call_of_a_silent_server_looks_on_and_on(looks: list[bool]) -> None:
    with ScriptedServer(play_silence) as server, Client(server.address, read_timeout=0.05, budget=0.05) as cache:
        with within(0.05), pytest.raises(TimedOut):
            cache.get("key")
        assert looks[-1] is False
        assert len(looks) <= 2  # one for the view, which is answered
