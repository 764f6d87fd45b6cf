"""`get_or_compute`: who computes, who waits, what is stored and what is not."""

from __future__ import annotations

from collections.abc import Callable
from threading import Barrier, Event, Lock
from time import monotonic
from typing import Any

import pytest

from rcache_client import (
    Client,
    ClientClosed,
    JsonSerializer,
    RcacheError,
    ServersUnavailable,
    SomeKeysFailed,
    StillComputing,
    TimedOut,
    WrongFormat,
)
from rcache_client.envelope import COMPUTED_FLAGS, Envelope, Kind, pack, unpack
from rcache_client.wire.frames import Request
from rcache_client.wire.grammar import REQUESTS
from rcache_client.wire.opcodes import Opcode, Status

from .scripted_server import Line, ScriptedServer, play_silence
from .support import free_address, running, until, within
from .test_close import in_child

WAIT_S = 10


def no_call() -> Any:
    raise AssertionError("computed, and it need not have been")


class Gated:
    """A function that says when it was called, and returns when it is let go."""

    def __init__(self, value: bytes = b"value") -> None:
        self.value = value
        self.called = Event()
        self.go_on = Event()
        self.calls = 0

    def __call__(self) -> bytes:
        self.calls += 1
        self.called.set()
        assert self.go_on.wait(WAIT_S)
        return self.value


class Counted:
    """A function that counts how often it is called, and how often at once."""

    def __init__(self, work: Callable[[int], bytes]) -> None:
        self.calls = self.at_once = self.at_once_max = 0
        self._work = work
        self._lock = Lock()

    def __call__(self) -> bytes:
        with self._lock:
            self.calls += 1
            number = self.calls
            self.at_once += 1
            self.at_once_max = max(self.at_once, self.at_once_max)
        try:
            return self._work(number)
        finally:
            with self._lock:
                self.at_once -= 1


def pause(seconds: float) -> None:
    Event().wait(seconds)


def changes(server: ScriptedServer) -> list[tuple[int, int, int, bytes, Envelope]]:
    """What CAS_VERSION was asked for: version, flags, ttl, key, envelope."""
    found = []
    for request in server.requests:
        if request.opcode == Opcode.CAS_VERSION:
            version, flags, ttl_ms, key, value = REQUESTS[Opcode.CAS_VERSION].decode(request.payload)
            found.append((version, flags, ttl_ms, key, unpack(value)))
    return found


def kind_at(server: ScriptedServer, key: bytes) -> Kind | None:
    item = server.service.items.get(key)
    return None if item is None or item.flags != COMPUTED_FLAGS else unpack(item.value).kind


def test_what_is_missing_is_computed_once_and_kept(server: ScriptedServer, cache: Client[bytes]) -> None:
    assert cache.get_or_compute("key", lambda: b"value", ttl=10, stale=5, lease=3) == b"value"
    assert cache.get_or_compute("key", no_call, ttl=10) == b"value"
    assert server.opcodes() == [Opcode.GET, Opcode.CAS_VERSION, Opcode.CAS_VERSION, Opcode.GET]
    held, stored = changes(server)
    assert (held[0], held[2], held[4].kind) == (0, 3000, Kind.HELD)
    assert stored[0] == server.service._version - 1  # in the place of the lease, and of nothing else
    assert (stored[2], stored[4].kind, stored[4].ttl_ms, stored[4].stale_ms) == (15_000, Kind.VALUE, 10_000, 5000)
    counts = cache.compute_counts()
    assert (counts.computed, counts.hits, counts.waited) == (1, 1, 0)


def test_without_ttl_it_stays(server: ScriptedServer, cache: Client[bytes]) -> None:
    cache.get_or_compute("key", lambda: b"value")
    assert changes(server)[-1][2] == 0
    assert cache.get_or_compute("key", no_call) == b"value"


def test_none_is_a_result(cache: Client[bytes]) -> None:
    assert cache.get_or_compute("key", lambda: None, ttl=10) is None
    assert cache.get_or_compute("key", no_call, ttl=10) is None
    assert cache.get("key", b"default") == b"default"  # to a plain read there is no value
    assert cache.get_many(["key"]) == {}
    assert cache.get_with_version("key").value is None


def test_an_empty_value_is_not_none(cache: Client[bytes]) -> None:
    assert cache.get_or_compute("key", lambda: b"", ttl=10) == b""
    assert cache.get_or_compute("key", no_call, ttl=10) == b""
    assert cache.get("key", b"default") == b""


def test_all_get_what_the_serializer_gives_and_none_the_same_object(server: ScriptedServer) -> None:
    with Client(server.address, serializer=JsonSerializer()) as cache:
        first = cache.get_or_compute("key", lambda: {"a": (1, 2)}, ttl=10)
        second = cache.get_or_compute("key", no_call, ttl=10)
        assert first == second == {"a": [1, 2]}
        assert cache.get("key") == first
        assert first is not second


def test_what_the_serializer_does_not_take_is_raised_and_the_lease_given_up(
    server: ScriptedServer, cache: Client[bytes]
) -> None:
    with pytest.raises(TypeError, match="bytes-like"):
        cache.get_or_compute("key", lambda: "text", ttl=10)  # type: ignore[arg-type, return-value]
    assert kind_at(server, b"key") is Kind.FREE


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"ttl": 0}, "ttl"),
        ({"ttl": 1, "stale": -1}, "stale"),
        ({"stale": 1}, "stale"),
        ({"lease": 0.01}, "lease"),
        ({"lease": True}, "lease"),
        ({"beta": -1}, "beta"),
        ({"beta": "1"}, "beta"),
        ({"budget": 0}, "budget"),
    ],
)
def test_bad_options_are_named_and_nothing_is_sent(
    server: ScriptedServer, cache: Client[bytes], options: dict[str, Any], told: str
) -> None:
    with pytest.raises((TypeError, ValueError), match=told):
        cache.get_or_compute("key", no_call, **options)
    with pytest.raises(TypeError, match="function"):
        cache.get_or_compute("key", b"value")  # type: ignore[call-overload]
    assert server.opcodes() == []


# Many threads, and many clients


def test_of_many_threads_one_goes_to_the_cluster(server: ScriptedServer, cache: Client[bytes]) -> None:
    together, got = Barrier(32), []
    fn = Counted(lambda _: pause(0.2) or b"value")  # type: ignore[func-returns-value]

    def ask() -> None:
        together.wait(WAIT_S)
        got.append(cache.get_or_compute("key", fn, ttl=10))

    with running(*[ask] * 32):
        pass
    assert got == [b"value"] * 32
    assert fn.calls == 1
    assert server.opcodes().count(Opcode.CAS_VERSION) == 2
    assert server.opcodes().count(Opcode.GET) == 32  # one look each, and no polling
    counts = cache.compute_counts()
    assert counts.waited + counts.hits == 31


def test_of_many_clients_one_computes_and_the_others_wait(server: ScriptedServer) -> None:
    clients = [Client(server.address) for _ in range(8)]
    together, got = Barrier(16), []
    fn = Counted(lambda _: pause(0.2) or b"value")  # type: ignore[func-returns-value]

    def ask(client: Client[bytes]) -> None:
        together.wait(WAIT_S)
        got.append(client.get_or_compute("key", fn, ttl=10))

    with running(*[lambda client=client: ask(client) for client in clients * 2]):  # type: ignore[misc]
        pass
    for client in clients:
        client.close()
    assert got == [b"value"] * 16
    assert fn.calls == 1


def test_an_error_goes_to_its_caller_and_one_of_those_who_wait_tries(server: ScriptedServer) -> None:
    """In this process and in others; never two at once, none in vain, and long before the lease would lapse."""
    clients = [Client(server.address) for _ in range(3)]
    together, got, errors = Barrier(12), [], []

    def work(number: int) -> bytes:
        pause(0.1)
        if number <= 2:
            raise KeyError(number)
        return b"value"

    fn = Counted(work)

    def ask(client: Client[bytes]) -> None:
        together.wait(WAIT_S)
        try:
            got.append(client.get_or_compute("key", fn, ttl=10, lease=60))
        except KeyError as error:
            errors.append(error.args[0])

    with within(2), running(*[lambda client=client: ask(client) for client in clients * 4]):  # type: ignore[misc]
        pass
    for client in clients:
        client.close()
    assert errors == [1, 2]
    assert got == [b"value"] * 10
    assert (fn.calls, fn.at_once_max) == (3, 1)


def test_even_the_end_of_a_thread_gives_the_lease_up(server: ScriptedServer, cache: Client[bytes]) -> None:
    def end() -> bytes:
        raise SystemExit

    with pytest.raises(SystemExit):
        cache.get_or_compute("key", end, ttl=10)
    assert kind_at(server, b"key") is Kind.FREE
    assert cache.get_or_compute("key", lambda: b"value", ttl=10) == b"value"


def test_the_wait_ends_with_the_budget(server: ScriptedServer, cache: Client[bytes]) -> None:
    fn = Gated()
    with Client(server.address) as other, running(lambda: other.get_or_compute("key", fn, ttl=10)):
        assert fn.called.wait(WAIT_S)
        with within(1), pytest.raises(StillComputing, match=r"another caller .*b'key'") as caught:
            cache.get_or_compute("key", no_call, ttl=10, budget=1.0)
        assert isinstance(caught.value, TimedOut)
        with within(1), pytest.raises(StillComputing):  # and within one process
            other.get_or_compute("key", no_call, ttl=10, budget=1.0)
        fn.go_on.set()


@pytest.mark.parametrize("share", [0.1, 0.7])
def test_a_look_that_has_too_little_time_is_no_reason_to_compute_too(share: float) -> None:
    """Who waits has seen that the cache is there. A server that falls silent early on is taken for one that is away."""
    hold_from = monotonic() + 3600.0

    def falls_silent(line: Line) -> None:
        line.hello()
        while True:
            request = line.request()
            if monotonic() > hold_from:
                line.hold()
            line.execute(request)

    with ScriptedServer(falls_silent) as server, Client(server.address) as cache:
        server.service._put(b"key", pack(Envelope(Kind.HELD, token=bytes(16))), COMPUTED_FLAGS, 60_000)
        hold_from = monotonic() + share
        if share > 0.5:
            with within(1), pytest.raises(StillComputing):
                cache.get_or_compute("key", no_call, ttl=10, budget=1.0)
        else:
            with within(1):
                assert cache.get_or_compute("key", lambda: b"alone", ttl=10, budget=1.0) == b"alone"


def test_the_functions_own_time_does_not_count(server: ScriptedServer, cache: Client[bytes]) -> None:
    assert cache.get_or_compute("key", lambda: pause(0.8) or b"value", ttl=10, budget=0.6) == b"value"  # type: ignore[func-returns-value]
    assert kind_at(server, b"key") is Kind.VALUE


def test_a_function_that_asks_for_its_own_key_is_told(server: ScriptedServer, cache: Client[bytes]) -> None:
    with within(1), pytest.raises(RuntimeError, match="that same key"):
        cache.get_or_compute("key", lambda: cache.get_or_compute("key", no_call), ttl=10)
    assert cache.get_or_compute("one", lambda: cache.get_or_compute("two", lambda: b"2"), ttl=10) == b"2"


# What was deleted or set while somebody computes


def test_what_was_deleted_meanwhile_is_not_stored(server: ScriptedServer, cache: Client[bytes]) -> None:
    """And who asks after the delete is not given what was computed from before it: not even in the same process."""
    old, new = Gated(b"old"), Gated(b"new")
    got: list[bytes] = []
    with running(lambda: got.append(cache.get_or_compute("key", old, ttl=10))):
        assert old.called.wait(WAIT_S)
        assert cache.delete("key")
        with running(lambda: got.append(cache.get_or_compute("key", new, ttl=10))):
            assert new.called.wait(WAIT_S)
            old.go_on.set()
            until(lambda: cache.compute_counts().overtaken == 1)
            assert kind_at(server, b"key") is Kind.HELD
            new.go_on.set()
    assert got == [b"old", b"new"]
    assert cache.get("key") == b"new"


def test_a_thread_that_finds_the_lease_of_another_follows_it(server: ScriptedServer, cache: Client[bytes]) -> None:
    """It began after the function did; the lease that it read proves that nothing was deleted since."""
    fn, got = Gated(), []
    with running(lambda: got.append(cache.get_or_compute("key", fn, ttl=10))):
        assert fn.called.wait(WAIT_S)
        with running(lambda: got.append(cache.get_or_compute("key", no_call, ttl=10))):
            server.wait_for(lambda: server.opcodes().count(Opcode.GET) == 2)
            fn.go_on.set()
    assert got == [b"value"] * 2
    assert server.opcodes().count(Opcode.GET) == 2


def test_what_another_thread_read_before_a_delete_is_not_given_to_a_call_after_it() -> None:
    caught, go_on = Event(), Event()

    def late_to_tell_a_value(line: Line) -> None:
        line.hello()
        while True:
            request = line.request()
            if request.opcode == Opcode.GET and not caught.is_set():
                status, payload = line.server.service.answer(request)
                if payload.endswith(b"old"):
                    caught.set()
                    assert go_on.wait(WAIT_S)
                line.reply(request, status, payload)
            else:
                line.execute(request)

    with ScriptedServer(late_to_tell_a_value) as server, Client(server.address) as cache:
        server.service._put(b"key", pack(Envelope(Kind.HELD, token=bytes(16))), COMPUTED_FLAGS, 60_000)
        before, after = [], []
        with running(lambda: before.append(cache.get_or_compute("key", no_call, ttl=10))):
            until(lambda: server.opcodes().count(Opcode.GET) >= 2)
            server.service._put(b"key", b"old", 0, 0)
            assert caught.wait(WAIT_S)
            assert cache.delete("key")
            count = server.opcodes().count(Opcode.GET)
            with running(lambda: after.append(cache.get_or_compute("key", lambda: b"new", ttl=10))):
                until(lambda: server.opcodes().count(Opcode.GET) > count)
                pause(0.1)  # it follows
                go_on.set()
        assert (before, after) == ([b"old"], [b"new"])


def test_a_plain_write_meanwhile_stays(server: ScriptedServer, cache: Client[bytes]) -> None:
    fn, got = Gated(), []
    with Client(server.address) as other, running(lambda: got.append(cache.get_or_compute("key", fn, ttl=10))):
        assert fn.called.wait(WAIT_S)
        waited: list[bytes] = []
        with running(lambda: waited.append(other.get_or_compute("key", no_call, ttl=10))):
            other.set("key", b"plain")
        assert waited == [b"plain"]
        fn.go_on.set()
    assert got == [b"value"]
    assert cache.get("key") == b"plain"
    assert cache.compute_counts().overtaken == 1


def test_a_recomputed_value_is_not_overwritten_by_an_older_one(server: ScriptedServer, cache: Client[bytes]) -> None:
    old, got = Gated(b"old"), []
    with running(lambda: got.append(cache.get_or_compute("key", old, ttl=10))):
        assert old.called.wait(WAIT_S)
        assert cache.recompute("key", lambda: b"new", ttl=10) == b"new"
        old.go_on.set()
    assert got == [b"old"]
    assert cache.get("key") == b"new"


def test_a_recomputation_begun_later_wins_over_a_value_too(server: ScriptedServer, cache: Client[bytes]) -> None:
    cache.get_or_compute("key", lambda: b"first", ttl=10)
    old, new = Gated(b"old"), Gated(b"new")
    with running(lambda: cache.recompute("key", old, ttl=10)) as (older,):
        assert old.called.wait(WAIT_S)
        with running(lambda: cache.recompute("key", new, ttl=10)):
            assert new.called.wait(WAIT_S)
            old.go_on.set()
            older.join(WAIT_S)
            assert cache.get("key") == b"first"
            new.go_on.set()
    assert cache.get("key") == b"new"
    assert cache.compute_counts().overtaken == 1


def test_a_recomputation_leaves_the_time_of_what_is_there(server: ScriptedServer, cache: Client[bytes]) -> None:
    cache.get_or_compute("key", lambda: b"first", ttl=10)
    server.service.age(b"key", 6000)
    with pytest.raises(ZeroDivisionError):
        cache.recompute("key", lambda: bytes(1 // 0), ttl=10)
    assert cache.get("key") == b"first"
    assert server.service.items[b"key"].ttl_ms == 6000


def test_a_recomputation_that_cannot_be_stored_says_so() -> None:
    with Client(free_address()) as cache, pytest.raises(ServersUnavailable):
        cache.recompute("key", no_call, ttl=10)


def test_a_recomputation_that_was_not_stored_says_so(server: ScriptedServer, cache: Client[bytes]) -> None:
    def fn() -> bytes:
        server.stop()
        return b"value"

    with pytest.raises(RcacheError):
        cache.recompute("key", fn, ttl=10)
    server.start()


# What plain calls see, and what is made of what they left


def test_a_plain_value_is_fresh_for_as_long_as_it_is_there(cache: Client[bytes]) -> None:
    cache.set("key", b"plain", ttl=1)
    assert cache.get_or_compute("key", no_call, ttl=10) == b"plain"


def test_plain_reads_see_computed_values(server: ScriptedServer, cache: Client[bytes]) -> None:
    cache.get_or_compute("key", lambda: b"value", ttl=10)
    cache.set("plain", b"other")
    assert cache.get("key") == b"value"
    assert cache.get_and_touch("key", 10) == b"value"
    assert cache.get_with_version("key") == (b"value", server.service._version)
    assert cache.get_with_ttl("key") == (b"value", server.service._version, 10)
    assert cache.get_many(["plain", "key", "missing"]) == {"plain": b"other", "key": b"value"}
    assert cache.cas("key", b"mine", version=cache.get_with_version("key").version)
    assert cache.get("key") == b"mine"


def test_plain_reads_do_not_see_a_lease(server: ScriptedServer, cache: Client[bytes]) -> None:
    fn = Gated()
    with running(lambda: cache.get_or_compute("key", fn, ttl=10)):
        assert fn.called.wait(WAIT_S)
        assert cache.get("key", b"default") == b"default"
        assert cache.get_many(["key"]) == {}
        value, version = cache.get_with_version("key")
        assert value is None
        assert cache.get_with_ttl("key")[:2] == (None, version)
        assert cache.cas("key", b"mine", version=version)
        fn.go_on.set()
    assert cache.get("key") == b"mine"


NO_ENVELOPES = [
    *[b"", b"\x01", b"\x01\x09", b"\x01\x03short", b"\x01\x01" + bytes(35), b"\x01\x02" + bytes(37), b"\x01\x04x"],
    b"\x02\x01" + bytes(40),
]


@pytest.mark.parametrize("data", NO_ENVELOPES)
def test_an_envelope_that_is_none_is_refused_by_all(server: ScriptedServer, cache: Client[bytes], data: bytes) -> None:
    server.service._put(b"key", data, COMPUTED_FLAGS, 0)
    for read in (cache.get, cache.get_with_version, cache.get_with_ttl, lambda key: cache.get_or_compute(key, no_call)):
        with pytest.raises(WrongFormat, match=r"the value of b?'key': it .* computed"):
            read("key")
    with pytest.raises(SomeKeysFailed, match="computed") as caught:
        cache.get_many(["key"])
    assert isinstance(caught.value.failed["key"], WrongFormat)


def test_another_serializers_value_is_refused(server: ScriptedServer, cache: Client[bytes]) -> None:
    with Client(server.address, serializer=JsonSerializer()) as other:
        cache.set("key", b"\xff")
        with pytest.raises(WrongFormat, match="'key'"):
            other.get_or_compute("key", no_call)


# When the cache is in trouble


def test_without_the_cache_one_thread_computes_and_the_application_goes_on() -> None:
    together, got = Barrier(16), []
    fn = Counted(lambda _: pause(0.2) or b"value")  # type: ignore[func-returns-value]
    with Client(free_address()) as cache:

        def ask() -> None:
            together.wait(WAIT_S)
            got.append(cache.get_or_compute("key", fn, ttl=10))

        with running(*[ask] * 16):
            pass
        counts = cache.compute_counts()
    assert got == [b"value"] * 16
    assert fn.calls == 1
    assert counts.without_cache == 1
    assert counts.last_trouble.startswith("ServersUnavailable: ")


def test_without_the_cache_a_later_call_follows_too() -> None:
    """Though its answer is of before the call: there is nobody to tell whether anything changed since."""
    fn, got = Gated(), []
    with Client(free_address()) as cache, running(lambda: got.append(cache.get_or_compute("key", fn, ttl=10))):
        assert fn.called.wait(WAIT_S)
        with running(lambda: got.append(cache.get_or_compute("key", no_call, ttl=10))):
            pause(0.1)
            fn.go_on.set()
    assert got == [b"value"] * 2


def test_without_the_cache_the_wait_for_another_thread_ends_with_the_budget_and_the_application_goes_on() -> None:
    fn = Gated()
    with Client(free_address()) as cache, running(lambda: cache.get_or_compute("key", fn, ttl=10)):
        assert fn.called.wait(WAIT_S)
        with within(0.3):
            assert cache.get_or_compute("key", lambda: b"own", ttl=10, budget=0.3) == b"own"
        fn.go_on.set()


def test_without_the_cache_it_raises_where_that_is_wanted() -> None:
    with Client(free_address()) as cache, pytest.raises(ServersUnavailable):
        cache.get_or_compute("key", no_call, ttl=10, fallback=False)


def test_a_silent_server_costs_a_part_of_the_budget() -> None:
    with ScriptedServer(play_silence) as server, Client(server.address) as cache, within(0.4):
        assert cache.get_or_compute("key", lambda: b"value", ttl=10, budget=0.4) == b"value"
        assert cache.compute_counts().without_cache == 1


def test_a_server_that_stops_while_the_function_runs_costs_the_storing_only(
    server: ScriptedServer, cache: Client[bytes]
) -> None:
    def fn() -> bytes:
        server.stop()
        return b"value"

    assert cache.get_or_compute("key", fn, ttl=10) == b"value"
    assert cache.compute_counts().not_stored == 1
    server.start()
    assert kind_at(server, b"key") is Kind.HELD


def test_the_functions_errors_are_not_taken_for_the_caches(cache: Client[bytes]) -> None:
    def fn() -> bytes:
        raise TimedOut("its own")

    with pytest.raises(TimedOut, match="its own"):
        cache.get_or_compute("key", fn, ttl=10)
    assert cache.compute_counts().without_cache == 0


def test_a_value_that_is_too_large_is_returned_and_keeps_nobody_waiting(server: ScriptedServer, cache: Client[bytes]) -> None:
    server.service.value_bytes_max = 100

    def refuse(line: Line) -> None:
        line.hello()
        while True:
            request = line.request()
            if request.opcode == Opcode.CAS_VERSION and len(request.payload) > 200:
                line.refuse(request, Status.TOO_LARGE)
            else:
                line.execute(request)

    server.scripts = [refuse]
    assert cache.get_or_compute("key", lambda: bytes(500), ttl=10) == bytes(500)
    assert kind_at(server, b"key") is Kind.FREE
    counts = cache.compute_counts()
    assert counts.not_stored == 1
    assert counts.last_trouble


def test_a_server_without_room_costs_the_cache_only() -> None:
    def refuse(line: Line) -> None:
        line.hello()
        while True:
            request = line.request()
            if request.opcode == Opcode.CAS_VERSION:
                line.refuse(request, Status.NO_ROOM)
            else:
                line.execute(request)

    with ScriptedServer(refuse) as server, Client(server.address) as cache:
        assert cache.get_or_compute("key", lambda: b"value", ttl=10) == b"value"
        assert cache.compute_counts().without_cache == 1


def test_a_closed_client_is_no_trouble_but_an_error(cache: Client[bytes]) -> None:
    cache.close()
    with pytest.raises(ClientClosed):
        cache.get_or_compute("key", no_call, ttl=10)


# Outcomes that are not known


def losing(place: int, *, executed: bool) -> Callable[[Line], None]:
    """A script that loses the answer to the CAS_VERSION of that number, which it executed or did not."""
    seen = [0]

    def is_lost(request: Request) -> bool:
        seen[0] += request.opcode == Opcode.CAS_VERSION
        return request.opcode == Opcode.CAS_VERSION and seen[0] == place

    def script(line: Line) -> None:
        line.hello()
        while True:
            request = line.request()
            if is_lost(request):
                if executed:
                    line.server.service.answer(request)
                return
            line.execute(request)

    return script


@pytest.mark.parametrize("executed", [True, False])
@pytest.mark.parametrize("place", [1, 2])
def test_an_unknown_outcome_is_looked_into(place: int, executed: bool) -> None:
    """Of taking the lease: the token tells. Of storing: it is asked for again, which cannot happen twice."""
    fn = Counted(lambda _: b"value")
    with ScriptedServer(losing(place, executed=executed)) as server, Client(server.address) as cache:
        assert cache.get_or_compute("key", fn, ttl=10) == b"value"
        assert cache.get("key") == b"value"
        assert cache.get_or_compute("key", no_call, ttl=10) == b"value"
        assert cache.compute_counts().without_cache == 0
    assert fn.calls == 1


# Leases


def test_a_lease_is_renewed_while_the_function_runs_and_not_after(server: ScriptedServer, cache: Client[bytes]) -> None:
    fn = Gated()
    with running(lambda: cache.get_or_compute("key", fn, ttl=10, lease=0.2)):
        server.wait_for(lambda: len(changes(server)) >= 4)
        fn.go_on.set()
    assert kind_at(server, b"key") is Kind.VALUE
    held = changes(server)[:-1]
    assert len({change[4].token for change in held}) == 1
    assert [change[2] for change in held] == [200] * len(held)
    count = len(changes(server))
    pause(0.15)
    assert len(changes(server)) == count


def test_a_lease_that_was_taken_over_is_renewed_no_more(server: ScriptedServer, cache: Client[bytes]) -> None:
    fn = Gated()
    with running(lambda: cache.get_or_compute("key", fn, ttl=10, lease=0.2)):
        assert fn.called.wait(WAIT_S)
        other = pack(Envelope(Kind.HELD, token=bytes(16)))
        server.service._put(b"key", other, COMPUTED_FLAGS, 200)
        until(lambda: not cache._computing._leases._held)
        assert server.service.items[b"key"].value == other
        fn.go_on.set()
    assert server.service.items[b"key"].value == other
    assert cache.compute_counts().overtaken == 1


def test_a_renewal_of_unknown_outcome_does_not_lose_the_lease() -> None:
    fn, got = Gated(), []
    with (
        ScriptedServer(losing(2, executed=True)) as server,
        Client(server.address) as cache,
        running(lambda: got.append(cache.get_or_compute("key", fn, ttl=10, lease=0.4))),
    ):
        server.wait_for(lambda: len(changes(server)) >= 4)
        fn.go_on.set()
    assert got == [b"value"]
    assert kind_at(server, b"key") is Kind.VALUE


def test_a_renewal_that_hangs_does_not_hold_up_the_call() -> None:
    seen = []

    def silent_from_the_second_on(line: Line) -> None:
        line.hello()
        while True:
            request = line.request()
            seen.append(request.opcode)
            if seen.count(Opcode.CAS_VERSION) >= 2:
                line.hold()
            line.execute(request)

    fn = Gated()
    with (
        ScriptedServer(silent_from_the_second_on) as server,
        Client(server.address) as cache,
        within(1.0),
        running(lambda: cache.get_or_compute("key", fn, ttl=10, lease=8, budget=0.5)),
    ):
        assert fn.called.wait(WAIT_S)
        (lease,) = cache._computing._leases._held
        with cache._computing._leases._changed:
            lease.due = 0.0
            cache._computing._leases._changed.notify_all()
        until(lambda: seen.count(Opcode.CAS_VERSION) >= 2)
        fn.go_on.set()


def test_a_function_that_hangs_loses_its_lease_at_last(
    server: ScriptedServer, cache: Client[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rcache_client.leases.LONGEST_SECONDS", 0.1)
    fn = Gated()
    with running(lambda: cache.get_or_compute("key", fn, ttl=10, lease=0.2)):
        server.wait_for(lambda: len(changes(server)) >= 3)
        count = len(changes(server))
        pause(0.3)
        assert len(changes(server)) <= count + 1
        fn.go_on.set()


def test_a_lease_that_was_let_go_is_not_renewed(server: ScriptedServer, cache: Client[bytes]) -> None:
    leases = cache._computing._leases
    lease = leases.take(b"key", 0, 200, monotonic() + 5)
    assert lease is not None
    server.wait_for(lambda: len(changes(server)) >= 2)
    version = leases.let_go(lease, monotonic() + 5)
    pause(0.2)
    assert lease.version == version == server.service.items[b"key"].version


def test_the_thread_does_not_sleep_until_a_lease_that_is_gone_would_be_due(server: ScriptedServer) -> None:
    cache = Client(server.address)
    cache.get_or_compute("key", lambda: b"value", ttl=10, lease=3600)
    thread = cache._computing._leases._thread
    assert thread is not None
    thread.join(4)
    assert not thread.is_alive()
    cache.close()


def test_a_lease_that_nobody_holds_any_more_lapses(server: ScriptedServer, cache: Client[bytes]) -> None:
    leases = cache._computing._leases
    lease = leases.take(b"key", 0, 200, monotonic() + 5)
    assert lease is not None
    del lease
    until(lambda: not leases._held)


def test_closing_the_client_ends_the_thread_at_once(server: ScriptedServer) -> None:
    with Client(server.address) as cache:
        cache.get_or_compute("key", lambda: b"value", ttl=10)
        thread = cache._computing._leases._thread
        assert thread is not None
        assert thread.daemon
    thread.join(0.5)
    assert not thread.is_alive()


def test_the_thread_ends_by_itself_and_another_takes_its_place(
    server: ScriptedServer, cache: Client[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rcache_client.leases.LINGER_SECONDS", 0.01)
    cache.get_or_compute("one", lambda: b"value", ttl=10)
    until(lambda: cache._computing._leases._thread is None)
    fn = Gated()
    with running(lambda: cache.get_or_compute("two", fn, ttl=10, lease=0.2)):
        server.wait_for(lambda: len(changes(server)) >= 5)
        fn.go_on.set()


def test_a_forked_child_waits_for_its_parent_like_any_other_process(server: ScriptedServer, cache: Client[bytes]) -> None:
    fn, got = Gated(), []
    with running(lambda: got.append(cache.get_or_compute("key", fn, ttl=10, lease=30))):
        assert fn.called.wait(WAIT_S)
        flights = cache._computing._flights
        with flights._lock:  # held, as by a thread that does not exist in the child

            def ask() -> bool:
                with pytest.raises(StillComputing):
                    cache.get_or_compute("key", no_call, ttl=10, budget=1.0)
                return cache.get_or_compute("other", lambda: b"child", ttl=10) == b"child"

            assert in_child(ask)
        fn.go_on.set()
    assert got == [b"value"]
    assert cache.get_or_compute("other", no_call, ttl=10) == b"child"
