"""Every call on one key or on the service: what it sends, and what it makes of the answer."""

from __future__ import annotations

from typing import Any

import pytest

from rcache_client import (
    Client,
    Inspection,
    JsonSerializer,
    NotANumber,
    OutOfRange,
    Persistence,
    TooLarge,
    ValueAndTtl,
    ValueAndVersion,
)
from rcache_client.wire.grammar import REQUESTS
from rcache_client.wire.opcodes import Opcode

from .scripted_server import CLUSTER, ScriptedServer

FIRST = (1 << 40) + 1


def last_asked(server: ScriptedServer) -> tuple[int, Any]:
    request = server.requests[-1]
    return request.opcode, REQUESTS[request.opcode].decode(request.payload)


def test_get_sends_its_key_and_returns_the_value_or_the_default(server: ScriptedServer, cache: Client[bytes]) -> None:
    assert cache.get("missing") is None
    assert cache.get("missing", b"default") == b"default"
    cache.set("key", b"value")
    assert cache.get("key") == b"value"
    assert last_asked(server) == (Opcode.GET, (b"key",))


def test_an_empty_value_is_not_a_missing_one(cache: Client[bytes]) -> None:
    cache.set("key", b"")
    assert cache.get("key", b"default") == b""


def test_text_and_bytes_name_the_same_key(cache: Client[bytes]) -> None:
    cache.set("schlüssel", b"1")
    assert cache.get("schlüssel".encode()) == b"1"


def test_set_sends_flags_and_time_to_live_rounded_up(server: ScriptedServer, cache: Client[bytes]) -> None:
    assert cache.set("key", b"value", ttl=1.0001) == FIRST
    assert last_asked(server) == (Opcode.SET, (0, 1001, b"key", b"value"))
    cache.set("key", b"value")
    assert last_asked(server) == (Opcode.SET, (0, 0, b"key", b"value"))


def test_bytes_like_values_are_stored_as_bytes(cache: Client[bytes]) -> None:
    cache.set("key", bytearray(b"array"))
    assert cache.get("key") == b"array"
    cache.set("key", memoryview(b"-view-")[1:5])
    assert cache.get("key") == b"view"


def test_add_stores_only_what_is_not_there(server: ScriptedServer, cache: Client[bytes]) -> None:
    assert cache.add("key", b"1", ttl=2) == FIRST
    assert last_asked(server) == (Opcode.ADD, (0, 2000, b"key", b"1"))
    assert cache.add("key", b"2") == 0
    assert cache.get("key") == b"1"


def test_replace_stores_only_what_is_there(server: ScriptedServer, cache: Client[bytes]) -> None:
    assert cache.replace("key", b"1") == 0
    assert cache.get("key") is None
    cache.set("key", b"1")
    assert cache.replace("key", b"2", ttl=3) == FIRST + 1
    assert last_asked(server) == (Opcode.REPLACE, (0, 3000, b"key", b"2"))


def test_get_with_version_gives_what_cas_takes(server: ScriptedServer, cache: Client[bytes]) -> None:
    assert cache.get_with_version("key") == ValueAndVersion(None, 0)
    cache.set("key", b"1")
    value, version = cache.get_with_version("key")
    assert (value, version) == (b"1", FIRST)
    assert cache.cas("key", b"2", version=version, ttl=4) == FIRST + 1
    assert last_asked(server) == (Opcode.CAS_VERSION, (FIRST, 0, 4000, b"key", b"2"))
    assert cache.cas("key", b"3", version=version) == 0
    assert cache.get("key") == b"2"


def test_get_with_ttl_gives_what_is_left_in_seconds(server: ScriptedServer, cache: Client[bytes]) -> None:
    assert cache.get_with_ttl("key") == ValueAndTtl(None, 0, None)
    cache.set("key", b"1", ttl=60)
    assert last_asked(server)[0] == Opcode.SET
    for left_ms, left in ((60_000, 60), (1500, 1.5), (1, 0.001)):
        server.service.age(b"key", left_ms)
        assert cache.get_with_ttl("key") == (b"1", FIRST, left)
    assert last_asked(server) == (Opcode.GET_WITH_TTL, (b"key",))
    cache.set("key", b"")
    assert cache.get_with_ttl("key") == ValueAndTtl(b"", FIRST + 1, None)
    with Client(server.address, serializer=JsonSerializer()) as other:
        other.set("key", {"a": 1})
        assert other.get_with_ttl("key").value == {"a": 1}


def test_cas_with_version_0_demands_that_there_is_nothing(cache: Client[bytes]) -> None:
    assert cache.cas("key", b"1", version=0) == FIRST
    assert cache.cas("key", b"2", version=0) == 0


def test_cas_by_previous_value_sends_its_hash(server: ScriptedServer, cache: Client[bytes]) -> None:
    cache.set("key", b"old")
    assert cache.cas("key", b"new", previous=b"older", ttl=1) == 0
    assert cache.cas("key", b"new", previous=b"old", ttl=5) == FIRST + 1
    digest = bytes.fromhex("b602b1d58103aaa23299e7acbc3a0382")  # printf old | b2sum -l 128
    assert last_asked(server) == (Opcode.CAS_HASH, (digest, 0, 5000, b"key", b"new"))
    assert cache.cas("nothing", b"new", previous=b"old") == 0


def test_cas_takes_exactly_one_form(cache: Client[bytes]) -> None:
    with pytest.raises(TypeError, match="exactly one"):
        cache.cas("key", b"1")
    with pytest.raises(TypeError, match="exactly one"):
        cache.cas("key", b"1", version=1, previous=b"0")


def test_append_and_prepend(server: ScriptedServer, cache: Client[bytes]) -> None:
    assert cache.append("key", b">") == 0
    assert cache.prepend("key", b"<") == 0
    cache.set("key", b"-")
    assert cache.append("key", b">") == FIRST + 1
    assert last_asked(server) == (Opcode.APPEND, (b"key", b">"))
    assert cache.prepend("key", b"<") == FIRST + 2
    assert last_asked(server) == (Opcode.PREPEND, (b"key", b"<"))
    assert cache.get("key") == b"<->"


def test_delete_says_whether_there_was_something(server: ScriptedServer, cache: Client[bytes]) -> None:
    cache.set("key", b"1")
    assert cache.delete("key") is True
    assert last_asked(server) == (Opcode.DELETE, (b"key",))
    assert cache.delete("key") is False


def test_touch_and_get_and_touch_set_the_time_to_live(server: ScriptedServer, cache: Client[bytes]) -> None:
    assert cache.touch("key", 1) is False
    assert cache.get_and_touch("key", 1, b"default") == b"default"
    cache.set("key", b"1")
    assert cache.touch("key", 1.5) is True
    assert last_asked(server) == (Opcode.TOUCH, (1500, b"key"))
    assert cache.get_and_touch("key", 2.5) == b"1"
    assert last_asked(server) == (Opcode.GET_AND_TOUCH, (2500, b"key"))
    assert cache.touch("key") is True
    assert last_asked(server) == (Opcode.TOUCH, (0, b"key"))


def test_counters(server: ScriptedServer, cache: Client[bytes]) -> None:
    assert cache.incr("hits") is None
    assert last_asked(server) == (Opcode.INCREMENT, (1, 0, 0, 0, b"hits"))
    assert cache.incr("hits", 5, initial=10, ttl=6) == 10
    assert last_asked(server) == (Opcode.INCREMENT, (5, 1, 10, 6000, b"hits"))
    assert cache.incr("hits", 5) == 15
    assert cache.decr("hits", 20) == -5
    assert last_asked(server) == (Opcode.DECREMENT, (20, 0, 0, 0, b"hits"))
    assert cache.get("hits") == b"-5"


def test_a_counter_that_ends_at_0_is_not_a_missing_one(cache: Client[bytes]) -> None:
    assert cache.incr("hits", initial=0) == 0


def test_counting_errors_say_what_happened(server: ScriptedServer, cache: Client[bytes]) -> None:
    cache.set("word", b"word")
    with pytest.raises(NotANumber, match=f"INCREMENT at {server.address}: NOT_A_NUMBER"):
        cache.incr("word")
    cache.set("large", b"%d" % ((1 << 63) - 1))
    with pytest.raises(OutOfRange):
        cache.incr("large")


def test_inspect(server: ScriptedServer, cache: Client[bytes]) -> None:
    assert cache.inspect("key") is None
    cache.set("key", b"12345", ttl=60)
    server.service.age(b"key", 1500)
    assert cache.inspect("key") == Inspection(FIRST, 0, 1.5, 5)
    cache.touch("key")
    inspection = cache.inspect("key")
    assert inspection is not None
    assert inspection.ttl is None


def test_a_value_that_is_too_large_is_refused_and_the_connection_lives(server: ScriptedServer, cache: Client[bytes]) -> None:
    server.service.value_bytes_max = 10
    with pytest.raises(TooLarge, match=r"SET at .*TOO_LARGE: 11 bytes"):
        cache.set("key", bytes(11))
    assert cache.set("key", bytes(10))
    assert server.connections == 1


def test_a_frame_the_server_does_not_take_is_not_sent(server: ScriptedServer, cache: Client[bytes]) -> None:
    server.service.frame_bytes_max = 1000
    with pytest.raises(TooLarge, match=r"a frame of \d+ bytes; the server takes 1000"):
        cache.set("key", bytes(1000))
    assert server.opcodes() == []


def test_values_of_megabytes_go_and_come_whole(server: ScriptedServer, cache: Client[bytes]) -> None:
    value = bytes(range(256)) * 4096 * 8
    server.service.value_bytes_max = len(value)
    cache.set("key", value)
    assert cache.get("key") == value


def test_service_calls(server: ScriptedServer, cache: Client[bytes]) -> None:
    assert 0 < cache.ping() < 5
    cache.set_many({"a": b"1", "b": b"2"})
    assert cache.stats() == {"items": {"count": 2}, "memory": {"limit": 1}}
    assert cache.stats("items") == {"items": {"count": 2}}
    assert last_asked(server) == (Opcode.STATS, ("items",))
    assert cache.flush() == 2
    assert cache.get("a") is None


def test_persist_asks_and_switches(cache: Client[bytes]) -> None:
    assert cache.persist() == Persistence(on=False, savefile="/var/lib/rcache/one.rcs")
    assert cache.persist(True).on
    assert cache.persist().on
    assert not cache.persist(False).on


def test_the_cluster_id_is_learnt(cache: Client[bytes]) -> None:
    assert cache.cluster_id is None
    cache.ping()
    assert cache.cluster_id == CLUSTER


def test_every_frame_says_how_long_its_caller_waits(server: ScriptedServer, cache: Client[bytes]) -> None:
    cache.get("key")
    assert 1000 < server.requests[-1].budget_ms <= 2000  # read_timeout, less the answer's way back
    cache.get("key", budget=0.5)
    assert 1 <= server.requests[-1].budget_ms <= 500


def test_request_ids_count_up_from_1_and_skip_0(server: ScriptedServer, cache: Client[bytes]) -> None:
    cache.get("key")
    cache.get("key")
    assert [r.request_id for r in server.requests] == [1, 3, 4]  # 2 asked for the view
    (connection,) = cache._doors._doors[0].pool._idle
    connection._last_id = 0xFFFF_FFFE
    cache.get("key")
    cache.get("key")
    assert [r.request_id for r in server.requests[3:]] == [0xFFFF_FFFF, 1]
