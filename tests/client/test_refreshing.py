"""Values that are there still: when they are served, when they are computed anew, and by whom."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest

from rcache_client import Client
from rcache_client.envelope import COMPUTED_FLAGS, Envelope, Kind, pack, unpack
from rcache_client.refreshing import REFRESH_PREFIX, early_ms, is_due, looks_due, refresh_name, rest_s
from rcache_client.wire.opcodes import KEY_BYTES_MAX, Opcode

from .scripted_server import ScriptedServer
from .support import running, until
from .test_get_or_compute import WAIT_S, Gated, no_call

LEASE_KEY = REFRESH_PREFIX + b"key"


class Clock:
    """What readers take for the time; writers have the real one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import time

        self.ahead_s = 0.0
        monkeypatch.setattr("rcache_client.refreshing.time", SimpleNamespace(time=lambda: time.time() + self.ahead_s))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def store(
    server: ScriptedServer, cache: Client[bytes], clock: Clock, age_s: float, *, ttl: float = 10, stale: float = 5
) -> None:
    """A value "old" under "key" that is so old, by the server's and all readers' clocks."""
    assert cache.get_or_compute("key", lambda: b"old", ttl=ttl, stale=stale) == b"old"
    server.service.age(b"key", int((ttl + stale - age_s) * 1000))
    clock.ahead_s = age_s


def kind_of_lease(server: ScriptedServer) -> Kind | None:
    item = server.service.items.get(LEASE_KEY)
    return None if item is None else unpack(item.value).kind


def test_within_its_ttl_nobody_is_asked_for_its_age(server: ScriptedServer, cache: Client[bytes], clock: Clock) -> None:
    store(server, cache, clock, 9)
    assert cache.get_or_compute("key", no_call, ttl=10) == b"old"
    assert server.opcodes()[-1] == Opcode.GET


def test_after_its_ttl_one_computes_and_the_others_are_served(
    server: ScriptedServer, cache: Client[bytes], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rcache_client.refreshing.REST_SECONDS", 60.0)
    store(server, cache, clock, 12)
    fn, got = Gated(b"new"), []
    with Client(server.address) as other, running(lambda: got.append(cache.get_or_compute("key", fn, ttl=10))):
        assert fn.called.wait(WAIT_S)
        before = len(server.opcodes())
        for _ in range(5):
            assert cache.get_or_compute("key", no_call, ttl=10) == b"old"
        assert server.opcodes()[before:] == [Opcode.GET] * 5  # the process knows that it is being refreshed
        for _ in range(5):
            assert other.get_or_compute("key", no_call, ttl=10) == b"old"
        asked = [Opcode.GET, Opcode.INSPECT, Opcode.CAS_VERSION, *[Opcode.GET] * 4]
        assert server.opcodes()[before + 5 :] == asked  # who found another one at it leaves it alone for a moment
        assert other.compute_counts().stale == 5
        fn.go_on.set()
    assert got == [b"new"]
    assert cache.get("key") == b"new"
    assert kind_of_lease(server) is Kind.FREE
    assert cache.compute_counts().refreshed == 1


def test_if_a_refresh_fails_the_value_is_served_on_and_nobody_tries_for_a_while(
    server: ScriptedServer, cache: Client[bytes], clock: Clock
) -> None:
    store(server, cache, clock, 12)
    assert cache.get_or_compute("key", lambda: bytes(1 // 0), ttl=10) == b"old"
    assert cache.compute_counts().failed == 1
    assert cache.compute_counts().last_trouble.startswith("ZeroDivisionError")
    assert kind_of_lease(server) is Kind.HELD  # it lapses by itself
    assert cache.get_or_compute("key", no_call, ttl=10) == b"old"
    with Client(server.address) as other:
        assert other.get_or_compute("key", no_call, ttl=10) == b"old"


def test_a_refresh_that_fails_after_the_value_is_gone_raises(
    server: ScriptedServer, cache: Client[bytes], clock: Clock
) -> None:
    store(server, cache, clock, 14.8)

    def fail_slowly() -> bytes:
        until_gone = Gated()
        until_gone.go_on.wait(0.3)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        cache.get_or_compute("key", fail_slowly, ttl=10)


def test_the_end_of_a_thread_is_not_swallowed_by_a_refresh(server: ScriptedServer, cache: Client[bytes], clock: Clock) -> None:
    store(server, cache, clock, 12)

    def end() -> bytes:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.get_or_compute("key", end, ttl=10)
    assert kind_of_lease(server) is Kind.FREE


def test_what_was_deleted_while_it_was_refreshed_is_not_stored(
    server: ScriptedServer, cache: Client[bytes], clock: Clock
) -> None:
    store(server, cache, clock, 12)
    fn, got = Gated(b"computed before the delete"), []
    with running(lambda: got.append(cache.get_or_compute("key", fn, ttl=10))):
        assert fn.called.wait(WAIT_S)
        cache.delete("key")
        assert cache.get_or_compute("key", lambda: b"after", ttl=10) == b"after"
        fn.go_on.set()
    assert cache.get("key") == b"after"
    assert cache.compute_counts().overtaken == 1


def test_a_refresh_that_would_outlive_the_value_is_not_begun(
    server: ScriptedServer, cache: Client[bytes], clock: Clock
) -> None:
    about = Envelope(Kind.VALUE, 0, b"slow", 0, 10_000, 5000, took_us=3_000_000)
    server.service._put(b"key", pack(about), COMPUTED_FLAGS, 2000)
    assert cache.get_or_compute("key", no_call, ttl=10) == b"slow"
    server.service._put(b"key", pack(about), COMPUTED_FLAGS, 4000)
    cache._computing._flights._rests.clear()
    assert cache.get_or_compute("key", lambda: b"new", ttl=10) == b"new"


@pytest.mark.parametrize("ahead_s", [3600.0, -3600.0])
def test_a_readers_wrong_clock_costs_a_question_now_and_then_and_nothing_else(
    server: ScriptedServer, cache: Client[bytes], clock: Clock, ahead_s: float
) -> None:
    store(server, cache, clock, 1)
    clock.ahead_s = ahead_s
    for _ in range(5):
        assert cache.get_or_compute("key", no_call, ttl=10) == b"old"
    assert server.opcodes().count(Opcode.INSPECT) == 1
    assert server.opcodes().count(Opcode.CAS_VERSION) == 2


def test_trouble_of_the_cache_in_a_refresh_leaves_the_value(server: ScriptedServer, cache: Client[bytes], clock: Clock) -> None:
    store(server, cache, clock, 12)
    answer = server.service._by_opcode[Opcode.INSPECT]
    server.service._by_opcode[Opcode.INSPECT] = lambda _: (0x20, b"\x00\x04busy")
    assert cache.get_or_compute("key", no_call, ttl=10, budget=1.0) == b"old"
    assert cache.compute_counts().last_trouble
    server.service._by_opcode[Opcode.INSPECT] = answer


def test_one_for_ever_is_never_due(server: ScriptedServer, cache: Client[bytes], clock: Clock) -> None:
    cache.get_or_compute("key", lambda: b"old")
    clock.ahead_s = 1e6
    assert cache.get_or_compute("key", no_call) == b"old"
    assert Opcode.INSPECT not in server.opcodes()


def test_early_refreshes_are_spread_as_xfetch_has_it() -> None:
    """Exponentially, with the time it took times beta as the mean; never over more than half of the ttl."""
    random.seed(7)
    about = Envelope(Kind.VALUE, ttl_ms=1_000_000, took_us=2_000_000)
    draws = [early_ms(about, 3.0) for _ in range(20_000)]
    assert sum(draws) / len(draws) == pytest.approx(6000, rel=0.05)
    assert sum(draw > 6000 for draw in draws) / len(draws) == pytest.approx(0.368, abs=0.02)
    assert early_ms(about, 0.0) == 0
    assert max(early_ms(about._replace(ttl_ms=1000), 3.0) for _ in range(100)) == 500


def test_a_value_is_refreshed_early_by_one_while_it_is_fresh(
    server: ScriptedServer, cache: Client[bytes], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rcache_client.refreshing.random.random", lambda: 0.95)  # a draw of 3 times what it took
    about = Envelope(Kind.VALUE, 0, b"old", 0, 10_000, 0, took_us=100_000)
    server.service._put(b"key", pack(about), COMPUTED_FLAGS, 250)
    assert cache.get_or_compute("key", no_call, ttl=10, beta=0) == b"old"
    cache._computing._flights._rests.clear()
    assert cache.get_or_compute("key", lambda: b"new", ttl=10) == b"new"


def test_the_decisions() -> None:
    about = Envelope(Kind.VALUE, ttl_ms=10_000, stale_ms=5000, took_us=1_000_000)
    assert not is_due(about, 5001, 0.0)
    assert is_due(about, 5000, 0.0)
    assert is_due(about, 5001, 1.0)
    assert not is_due(about, 1000, 0.0)
    assert rest_s(about, None, 0.0) == rest_s(about, 3000, 0.0) == 0.1
    assert rest_s(about, 5500, 0.0) == 0.5
    assert rest_s(about, 15_000, 0.0) == 1.0
    assert not looks_due(Envelope(Kind.VALUE), 0.0)


def test_the_key_of_the_lease_is_a_key_and_never_anothers() -> None:
    long = bytes(KEY_BYTES_MAX)
    assert refresh_name(b"key") == b"rcache:refresh:key"
    assert len(refresh_name(long)) < 100
    assert refresh_name(long) != refresh_name(long[:-1] + b"1")


def test_a_process_forgets_rests_rather_than_grow(cache: Client[bytes]) -> None:
    flights = cache._computing._flights
    for number in range(3000):
        flights.rest(b"%d" % number, 60)
    assert len(flights._rests) <= 1024
    until(lambda: flights.is_resting(b"2999"))
