"""Doors: calls take turns over those that work, leave out those that do not, and come back to them."""

# ruff: noqa: SIM117 - the outer `with` holds a server and its client, the inner one what is expected of them

from __future__ import annotations

from threading import Event
from time import monotonic

import pytest

from rcache_client import Client, ClientClosed, OutcomeUnknown, ServersUnavailable, TimedOut
from rcache_client.connection import Setback, Trouble
from rcache_client.servers import BACK_OFF_FIRST_SECONDS, BACK_OFF_MAX_SECONDS, SILENCES_MAX, Door, Doors, DoorState
from rcache_client.wire.opcodes import Opcode, Status

from .scripted_server import Line, ScriptedServer, play, play_silence
from .support import free_address, full_backlog, running, until, within


def doors_of(cache: Client[bytes]) -> tuple[Door, ...]:
    return cache._doors._doors


def make_due(door: Door) -> None:
    """The door's time has come."""
    assert door.state is DoorState.FAILED
    door.retry_at = 0.0


def test_calls_take_turns_over_all_doors() -> None:
    with ScriptedServer() as one, ScriptedServer() as two, ScriptedServer() as three:
        with Client([one.address, two.address, three.address]) as cache:
            for number in range(9):
                cache.get(f"key-{number}")
        assert [len(s.opcodes()) for s in (one, two, three)] == [3, 3, 3]


def test_a_door_where_nobody_listens_is_left_out() -> None:
    with ScriptedServer() as server, Client([free_address(), server.address]) as cache:
        for _ in range(10):
            assert cache.set("key", b"value")
        assert len(server.opcodes()) == 10


def test_a_door_that_went_and_came_back_is_used_again() -> None:
    with ScriptedServer() as one, ScriptedServer() as two, Client([one.address, two.address]) as cache:
        for _ in range(4):
            cache.get("key")
        two.stop()
        for _ in range(4):
            cache.get("key")
        assert doors_of(cache)[1].state is DoorState.FAILED
        two.start()
        before = len(two.opcodes())
        until(lambda: cache.get("key") is None and len(two.opcodes()) > before)
        assert all(door.state is DoorState.UP for door in doors_of(cache))
        assert doors_of(cache)[1].failures == 0


def test_a_single_server_that_went_and_came_back() -> None:
    with ScriptedServer() as server, Client(server.address) as cache:
        cache.set("key", b"value")
        server.stop()
        with within(0.1), pytest.raises(ServersUnavailable, match="refused") as caught:
            cache.get("key")
        assert isinstance(caught.value.__cause__, ConnectionRefusedError)
        server.start()

        def is_back() -> bool:
            try:
                return cache.get("key") == b"value"
            except ServersUnavailable:
                return False

        until(is_back)


def test_with_all_doors_failed_calls_fail_at_once_and_name_each() -> None:
    one, two = free_address(), free_address()
    with Client([one, two]) as cache:
        with pytest.raises(ServersUnavailable):
            cache.get("key")
        for door in doors_of(cache):
            door.retry_at = monotonic() + 60
        with within(0), pytest.raises(ServersUnavailable) as caught:
            cache.set("key", b"value")
        text = str(caught.value)
        assert one in text
        assert two in text
        assert "refused" in text
        assert "tried again in" in text


def test_only_one_caller_probes_while_the_others_fail_at_once() -> None:
    hold, probing = Event(), Event()

    def play_slow_hello(line: Line) -> None:
        probing.set()
        assert hold.wait(10)
        play(line)

    with ScriptedServer(play_slow_hello) as server, Client(server.address, connect_timeout=10, budget=20) as cache:
        (door,) = doors_of(cache)
        cache._doors.fail(door, "on purpose")
        make_due(door)
        got: list[object] = []
        with running(lambda: got.append(cache.get("key"))):
            assert probing.wait(10)
            for _ in range(5):
                with within(0), pytest.raises(ServersUnavailable, match="on purpose"):
                    cache.get("key")
            hold.set()
        assert got == [None]
        assert server.connections == 1
        assert cache.get("key") is None


def test_the_others_use_live_doors_during_a_probe() -> None:
    hold, probing = Event(), Event()

    def play_slow_hello(line: Line) -> None:
        probing.set()
        assert hold.wait(10)
        play(line)

    with ScriptedServer(play_slow_hello) as dead, ScriptedServer() as live:
        with Client([dead.address, live.address], connect_timeout=10, budget=20) as cache:
            cache._doors.fail(doors_of(cache)[0], "on purpose")
            make_due(doors_of(cache)[0])
            with running(lambda: cache.get("probe")):
                assert probing.wait(10)
                with within(0):
                    for _ in range(5):
                        cache.get("key")
                hold.set()
            assert dead.connections == 1


def test_a_probe_of_an_address_that_swallows_packets_leaves_time_for_a_live_door() -> None:
    with full_backlog() as dead, ScriptedServer() as live:
        with Client([dead, live.address], connect_timeout=30, budget=1) as cache:
            cache._doors.fail(doors_of(cache)[0], "on purpose")
            make_due(doors_of(cache)[0])
            with within(0.5):
                cache.get("key")


def test_back_off_doubles_to_a_limit_and_falls_back_only_after_an_answer() -> None:
    address = free_address()
    with Client(address) as cache:
        doors = cache._doors
        doors._jitter = lambda low, high: high
        (door,) = doors_of(cache)
        waits = []
        for _ in range(8):
            with pytest.raises(ServersUnavailable):
                cache.get("key")
            waits.append(door.retry_at - monotonic())
            make_due(door)
        expected = [min(BACK_OFF_FIRST_SECONDS * 2**n, BACK_OFF_MAX_SECONDS) for n in range(8)]
        assert waits == pytest.approx(expected, abs=0.09)
        doors._came_back(door)
        assert door.failures == 8
        doors.answered(door)
        assert door.failures == 0


def test_an_outage_of_days_ends_like_any_other(server: ScriptedServer, cache: Client[bytes]) -> None:
    (door,) = doors_of(cache)
    door.failures = 100_000
    cache._doors.fail(door, "on purpose")
    assert door.retry_at - monotonic() <= BACK_OFF_MAX_SECONDS
    make_due(door)
    assert cache.get("key") is None


def test_jitter_spreads_the_probes() -> None:
    with Client(free_address()) as cache:
        (door,) = doors_of(cache)
        seen = set()
        for _ in range(5):
            cache._doors.fail(door, "on purpose")
            seen.add(round(door.retry_at - monotonic(), 6))
            door.failures = 0
            cache._doors._came_back(door)
        assert len(seen) > 1
        assert all(0.04 < wait <= BACK_OFF_FIRST_SECONDS for wait in seen)


def test_a_silent_door_is_left_out_after_one_whole_read_timeout() -> None:
    with ScriptedServer(play_silence) as silent, ScriptedServer() as live:
        with Client([silent.address, live.address], read_timeout=0.3) as cache:
            with within(0.3):
                assert cache.get("key") is None  # the read goes on at the live door
            assert doors_of(cache)[0].state is DoorState.FAILED
            assert "no answer came in time" in doors_of(cache)[0].why


def test_a_small_budget_is_not_the_doors_fault_at_once() -> None:
    with ScriptedServer(play_silence) as server, Client(server.address) as cache:
        (door,) = doors_of(cache)
        for silences in range(1, SILENCES_MAX):
            with pytest.raises(TimedOut):
                cache.get("key", budget=0.05)
            assert (door.state, door.silences) == (DoorState.UP, silences)
        with pytest.raises(TimedOut):
            cache.get("key", budget=0.05)
        assert door.state is DoorState.FAILED


def test_an_answer_clears_what_small_budgets_counted(server: ScriptedServer, cache: Client[bytes]) -> None:
    (door,) = doors_of(cache)
    door.silences = SILENCES_MAX - 1
    cache.get("key")
    assert door.silences == 0


def test_a_failed_door_loses_its_idle_connections(server: ScriptedServer, cache: Client[bytes]) -> None:
    cache.ping()
    cache._doors.fail(doors_of(cache)[0], "on purpose")
    server.wait_for(lambda: server.open_now == 0, "the end of the connection")


def test_wait_for_servers_waits_for_a_server_that_comes_back() -> None:
    with ScriptedServer() as server:
        server.stop()
        with Client(server.address, wait_for_servers=True, budget=10) as cache:
            got: list[object] = []
            with running(*[lambda: got.append(cache.set("key", b"value"))] * 3):
                until(lambda: doors_of(cache)[0].failures > 1)
                server.start()
            assert len(got) == 3


def test_wait_for_servers_ends_with_the_budget() -> None:
    address = free_address()
    with Client(address, wait_for_servers=True) as cache, within(0.4):
        with pytest.raises(ServersUnavailable, match=address):
            cache.set("key", b"value", budget=0.4)


def test_wait_for_servers_ends_with_the_client() -> None:
    with Client(free_address(), wait_for_servers=True, budget=20) as cache:

        def wait() -> None:
            with pytest.raises(ClientClosed):
                cache.get("key")

        (door,) = doors_of(cache)
        cache._doors.fail(door, "on purpose")
        door.retry_at = monotonic() + 60
        with within(0), running(wait):
            until(lambda: len(cache._doors._changed._waiters) == 1)  # type: ignore[attr-defined]
            cache.close()


def test_a_full_server_with_whom_we_have_connections_has_not_failed() -> None:
    occupied = Event()

    def play_occupied(line: Line) -> None:
        line.hello()
        request = line.request()
        assert occupied.wait(10)
        line.execute(request)
        line.serve()

    def play_full(line: Line) -> None:
        line.say_goodbye(Status.TOO_MANY_CONNECTIONS, last_executed=0)

    with ScriptedServer(play_occupied, play_full) as server, Client(server.address) as cache:
        with running(lambda: cache.get("key")):
            server.wait_for(lambda: len(server.opcodes()) == 1)
            with pytest.raises(ServersUnavailable, match="TOO_MANY_CONNECTIONS"):
                cache.get("other")
            assert doors_of(cache)[0].state is DoorState.UP
            occupied.set()
        assert cache.get("key") is None


def test_a_full_server_is_named_so() -> None:
    with ScriptedServer(lambda line: line.say_goodbye(Status.TOO_MANY_CONNECTIONS, last_executed=0)) as server:
        with Client(server.address) as cache, pytest.raises(ServersUnavailable, match="TOO_MANY_CONNECTIONS: on purpose"):
            cache.get("key")


def test_a_probe_that_is_interrupted_lets_go_of_the_door(server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupt(BaseException):
        pass

    def interrupt(deadline: float) -> None:
        raise Interrupt

    with Client(server.address) as cache:
        (door,) = doors_of(cache)
        cache._doors.fail(door, "on purpose")
        make_due(door)
        monkeypatch.setattr(door.pool, "take", interrupt)
        with pytest.raises(Interrupt):
            cache.get("key")
        monkeypatch.undo()
        assert cache.get("key") is None


def test_a_report_from_before_a_probe_does_not_end_it(cache: Client[bytes]) -> None:
    doors: Doors = cache._doors
    (door,) = doors_of(cache)
    doors.fail(door, "first")
    make_due(door)
    assert doors._choose(monotonic() + 1, set()) == (door, True)
    doors.fell_silent(door, Setback(Trouble.SILENT, "an older request"))
    assert door.state is DoorState.PROBING


def test_a_write_that_fell_silent_is_not_sent_to_another_door() -> None:
    with ScriptedServer(play_silence) as silent, ScriptedServer() as live:
        with Client([silent.address, live.address], read_timeout=0.2) as cache:
            with pytest.raises(OutcomeUnknown, match=silent.address):
                cache.set("key", b"value")
            assert Opcode.SET not in live.opcodes()
