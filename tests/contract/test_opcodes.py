"""Every data opcode for one key, and every answer it can give."""

from __future__ import annotations

from hashlib import blake2b

import pytest

from rcache.engine.contract import Engine
from rcache.records.record import epoch_of
from rcache_client.wire.opcodes import KEY_BYTES_MAX, TTL_MS_MAX, Opcode, Status
from tests.contract.conftest import SMALL, EngineFactory
from tests.contract.harness import Caller, FakeTime

VALUE_BYTES_MAX: int = SMALL["value_bytes_max"]
INT_MIN, INT_MAX = -(1 << 63), (1 << 63) - 1


def hash_of(value: bytes) -> bytes:
    return blake2b(value, digest_size=16).digest()


# --- get, set, add, replace, delete, inspect


def test_a_missing_key_is_not_found(caller: Caller) -> None:
    assert caller.ask(Opcode.GET, b"key") == (Status.NOT_FOUND, ())
    assert caller.ask(Opcode.INSPECT, b"key") == (Status.NOT_FOUND, ())
    assert caller.ask(Opcode.GET_WITH_TTL, b"key") == (Status.NOT_FOUND, ())
    assert caller.ask(Opcode.DELETE, b"key") == (Status.NOT_FOUND, ())
    assert caller.ask(Opcode.TOUCH, 1000, b"key") == (Status.NOT_FOUND, ())
    assert caller.ask(Opcode.GET_AND_TOUCH, 1000, b"key") == (Status.NOT_FOUND, ())
    assert caller.ask(Opcode.REPLACE, 0, 0, b"key", b"value") == (Status.NOT_FOUND, ())
    assert caller.ask(Opcode.APPEND, b"key", b"more") == (Status.NOT_FOUND, ())
    assert caller.ask(Opcode.PREPEND, b"key", b"more") == (Status.NOT_FOUND, ())
    assert caller.ask(Opcode.INCREMENT, 1, 0, 5, 0, b"key") == (Status.NOT_FOUND, ())


@pytest.mark.parametrize("key", [b"k", bytes(KEY_BYTES_MAX), b"\x00", b"\xff" * 300])
@pytest.mark.parametrize("value", [b"", b"value", bytes(VALUE_BYTES_MAX)])
def test_what_is_set_is_got(caller: Caller, key: bytes, value: bytes) -> None:
    version = caller.set(key, value, flags=0xFFFF_FFFF)
    assert caller.ask(Opcode.GET, key) == (Status.OK, (0xFFFF_FFFF, version, value))
    assert caller.ask(Opcode.INSPECT, key) == (Status.OK, (version, 0xFFFF_FFFF, 0, len(value)))
    assert caller.ask(Opcode.GET_WITH_TTL, key) == (Status.OK, (0xFFFF_FFFF, version, 0, value))


def test_a_set_replaces_value_flags_and_expiry(caller: Caller) -> None:
    first = caller.set(b"key", b"old", flags=7, ttl_ms=5000)
    second = caller.set(b"key", b"new")
    assert second > first
    assert caller.ask(Opcode.INSPECT, b"key") == (Status.OK, (second, 0, 0, 3))
    assert caller.value(b"key") == b"new"


def test_versions_begin_in_the_epoch_that_was_opened(engine_factory: EngineFactory) -> None:
    caller = Caller(engine_factory(opened=9))
    assert epoch_of(caller.set(b"key", b"value")) == 9


def test_add_only_adds_and_names_what_is_there(caller: Caller) -> None:
    status, (version,) = caller.ask(Opcode.ADD, 3, 0, b"key", b"first")
    assert status is Status.OK
    assert caller.ask(Opcode.ADD, 4, 0, b"key", b"second") == (Status.EXISTS, (version,))
    assert caller.ask(Opcode.GET, b"key") == (Status.OK, (3, version, b"first"))


def test_replace_only_replaces(caller: Caller) -> None:
    caller.set(b"key", b"first", flags=1)
    status, (version,) = caller.ask(Opcode.REPLACE, 2, 0, b"key", b"second")
    assert status is Status.OK
    assert caller.ask(Opcode.GET, b"key") == (Status.OK, (2, version, b"second"))


def test_delete_removes_and_has_a_version(caller: Caller) -> None:
    version = caller.set(b"key", b"value")
    assert caller.delete(b"key") == (Status.OK, (version + 1,))
    assert caller.value(b"key") is None
    assert caller.delete(b"key") == (Status.NOT_FOUND, ())
    assert caller.set(b"key", b"again") == version + 2


@pytest.mark.parametrize("opcode", [Opcode.SET, Opcode.ADD, Opcode.REPLACE])
def test_a_value_over_the_limit_is_refused_and_nothing_changed(caller: Caller, opcode: Opcode) -> None:
    key = b"key"
    if opcode is not Opcode.ADD:
        caller.set(key, b"old")
    before = caller.ask(Opcode.GET, key)
    assert caller.ask(opcode, 0, 0, key, bytes(VALUE_BYTES_MAX + 1)).status is Status.TOO_LARGE
    assert caller.ask(Opcode.GET, key) == before


def test_inspect_is_no_use_and_get_is(engine: Engine, caller: Caller) -> None:
    caller.set(b"key", b"value")
    before = engine.stats()["items"]
    caller.ask(Opcode.INSPECT, b"key")
    assert engine.stats()["items"] == before
    for number, opcode in enumerate((Opcode.GET, Opcode.GET_WITH_TTL), 1):
        caller.ask(opcode, b"key")
        caller.ask(opcode, b"none")
        after = engine.stats()["items"]
        assert (after["hits"], after["misses"]) == (before["hits"] + number, before["misses"] + number)


def test_get_with_ttl_tells_what_is_left_to_the_last_millisecond(caller: Caller, fake_time: FakeTime) -> None:
    version = caller.set(b"key", b"value", flags=5, ttl_ms=7000)
    for passed, left_ms in ((0, 7000), (3000, 4000), (3999, 1)):
        fake_time.advance(passed)
        assert caller.ask(Opcode.GET_WITH_TTL, b"key") == (Status.OK, (5, version, left_ms, b"value"))
    fake_time.advance(1)
    assert caller.ask(Opcode.GET_WITH_TTL, b"key") == (Status.NOT_FOUND, ())
    version = caller.set(b"key", b"")
    assert caller.ask(Opcode.GET_WITH_TTL, b"key") == (Status.OK, (0, version, 0, b"")), "0: for ever"


# --- touch


def test_touch_is_a_change_of_the_expiry_alone(caller: Caller, fake_time: FakeTime) -> None:
    first = caller.set(b"key", b"value", flags=5)
    status, (second,) = caller.ask(Opcode.TOUCH, 7000, b"key")
    assert (status, second) == (Status.OK, first + 1)
    fake_time.advance(3000)
    assert caller.ask(Opcode.INSPECT, b"key") == (Status.OK, (second, 5, 4000, 5))
    assert caller.ask(Opcode.TOUCH, 0, b"key") == (Status.OK, (second + 1,))
    assert caller.ask(Opcode.INSPECT, b"key") == (Status.OK, (second + 1, 5, 0, 5))


def test_get_and_touch_gives_the_item_under_its_new_version(caller: Caller) -> None:
    version = caller.set(b"key", b"value", flags=5)
    assert caller.ask(Opcode.GET_AND_TOUCH, 7000, b"key") == (Status.OK, (5, version + 1, b"value"))
    assert caller.ask(Opcode.INSPECT, b"key") == (Status.OK, (version + 1, 5, 7000, 5))


def test_the_longest_time_to_live_is_taken(caller: Caller) -> None:
    version = caller.set(b"key", b"value", ttl_ms=TTL_MS_MAX)
    assert caller.ask(Opcode.INSPECT, b"key") == (Status.OK, (version, 0, TTL_MS_MAX, 5))
    assert caller.ask(Opcode.GET_WITH_TTL, b"key") == (Status.OK, (0, version, TTL_MS_MAX, b"value"))


# --- counters


def count(caller: Caller, delta: int, key: bytes = b"n", opcode: Opcode = Opcode.INCREMENT) -> tuple[Status, int | None]:
    status, values = caller.ask(opcode, delta, 0, 0, 0, key)
    return status, values[0] if status is Status.OK else None


def test_a_counter_is_created_when_asked_for_and_not_counted_then(caller: Caller, fake_time: FakeTime) -> None:
    status, (number, version) = caller.ask(Opcode.INCREMENT, 5, 1, 40, 1000, b"n")
    assert (status, number) == (Status.OK, 40)
    assert caller.ask(Opcode.GET, b"n") == (Status.OK, (0, version, b"40"))
    assert caller.ask(Opcode.INCREMENT, 5, 1, 40, 0, b"n") == (Status.OK, (45, version + 1))
    fake_time.advance(1000)
    assert caller.ask(Opcode.DECREMENT, 5, 1, -7, 0, b"n").values[0] == -7, "counting keeps the expiry of the first"


def test_counting_keeps_flags_and_expiry(caller: Caller) -> None:
    caller.set(b"n", b"10", flags=9, ttl_ms=5000)
    status, (number, version) = caller.ask(Opcode.DECREMENT, 3, 0, 0, 0, b"n")
    assert (status, number) == (Status.OK, 7)
    assert caller.ask(Opcode.INSPECT, b"n") == (Status.OK, (version, 9, 5000, 1))


@pytest.mark.parametrize(
    ("start", "opcode", "delta", "expected"),
    [
        (INT_MAX - 1, Opcode.INCREMENT, 1, INT_MAX),
        (INT_MAX, Opcode.INCREMENT, 1, None),
        (INT_MAX, Opcode.INCREMENT, 0, INT_MAX),
        (INT_MAX, Opcode.INCREMENT, INT_MIN, -1),
        (INT_MAX, Opcode.INCREMENT, INT_MAX, None),
        (INT_MIN + 1, Opcode.DECREMENT, 1, INT_MIN),
        (INT_MIN, Opcode.DECREMENT, 1, None),
        (INT_MIN, Opcode.INCREMENT, -1, None),
        (INT_MIN, Opcode.INCREMENT, INT_MAX, -1),
        (0, Opcode.DECREMENT, INT_MIN, None),
        (-1, Opcode.DECREMENT, INT_MIN, INT_MAX),
        (INT_MIN, Opcode.DECREMENT, INT_MIN, 0),
        (0, Opcode.INCREMENT, INT_MIN, INT_MIN),
    ],
)
def test_counters_never_wrap(caller: Caller, start: int, opcode: Opcode, delta: int, expected: int | None) -> None:
    caller.set(b"n", b"%d" % start)
    assert count(caller, delta, opcode=opcode) == (
        (Status.OK, expected) if expected is not None else (Status.OUT_OF_RANGE, None)
    )
    assert caller.value(b"n") == b"%d" % (start if expected is None else expected)


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"-",
        b"+1",
        b" 1",
        b"1 ",
        b"01",
        b"-0",
        b"1.0",
        b"1e3",
        b"0x10",
        b"1_000",
        "\u0661".encode(),
        b"9" * 19,
        b"-" + b"9" * 20,
    ],
)
def test_only_numbers_are_counted(caller: Caller, value: bytes) -> None:
    version = caller.set(b"n", value)
    assert count(caller, 1) == (Status.NOT_A_NUMBER, None)
    assert caller.ask(Opcode.GET, b"n") == (Status.OK, (0, version, value))


# --- append, prepend


def test_append_and_prepend_keep_flags_and_expiry(caller: Caller) -> None:
    version = caller.set(b"key", b"middle", flags=3, ttl_ms=5000)
    assert caller.ask(Opcode.APPEND, b"key", b"-end") == (Status.OK, (version + 1,))
    assert caller.ask(Opcode.PREPEND, b"key", b"begin-") == (Status.OK, (version + 2,))
    assert caller.ask(Opcode.GET, b"key") == (Status.OK, (3, version + 2, b"begin-middle-end"))
    assert caller.ask(Opcode.INSPECT, b"key") == (Status.OK, (version + 2, 3, 5000, 16))


@pytest.mark.parametrize("opcode", [Opcode.APPEND, Opcode.PREPEND])
def test_a_value_grows_to_the_limit_and_not_beyond(caller: Caller, opcode: Opcode) -> None:
    version = caller.set(b"key", bytes(VALUE_BYTES_MAX - 10))
    assert caller.ask(opcode, b"key", b"x" * 11).status is Status.TOO_LARGE
    assert caller.ask(opcode, b"key", b"x" * 10) == (Status.OK, (version + 1,))
    assert caller.ask(opcode, b"key", b"x").status is Status.TOO_LARGE
    assert caller.ask(opcode, b"key", b"") == (Status.OK, (version + 2,))
    assert caller.ask(Opcode.INSPECT, b"key").values[3] == VALUE_BYTES_MAX


# --- check-and-set


def test_check_and_set_by_version(caller: Caller) -> None:
    first = caller.set(b"key", b"A")
    status, (second,) = caller.ask(Opcode.CAS_VERSION, first, 2, 0, b"key", b"B")
    assert status is Status.OK
    assert caller.ask(Opcode.CAS_VERSION, first, 0, 0, b"key", b"C") == (Status.CHANGED, (second,))
    assert caller.ask(Opcode.GET, b"key") == (Status.OK, (2, second, b"B"))


def test_version_0_says_that_there_must_be_none(caller: Caller) -> None:
    status, (version,) = caller.ask(Opcode.CAS_VERSION, 0, 0, 0, b"key", b"A")
    assert status is Status.OK
    assert caller.ask(Opcode.CAS_VERSION, 0, 0, 0, b"key", b"B") == (Status.CHANGED, (version,))
    caller.delete(b"key")
    assert caller.ask(Opcode.CAS_VERSION, version, 0, 0, b"key", b"B") == (Status.CHANGED, (0,))


def test_a_touch_changes_the_version(caller: Caller) -> None:
    version = caller.set(b"key", b"A")
    caller.ask(Opcode.TOUCH, 1000, b"key")
    assert caller.ask(Opcode.CAS_VERSION, version, 0, 0, b"key", b"B") == (Status.CHANGED, (version + 1,))


def test_check_and_set_by_hash(caller: Caller) -> None:
    version = caller.set(b"key", b"A")
    assert caller.ask(Opcode.CAS_HASH, hash_of(b"B"), 0, 0, b"key", b"C") == (Status.CHANGED, (version,))
    assert caller.ask(Opcode.CAS_HASH, hash_of(b"A"), 4, 0, b"key", b"C") == (Status.OK, (version + 1,))
    assert caller.ask(Opcode.GET, b"key") == (Status.OK, (4, version + 1, b"C"))
    assert caller.ask(Opcode.CAS_HASH, hash_of(b""), 0, 0, b"none", b"C") == (Status.CHANGED, (0,))


def test_a_hash_does_not_notice_a_b_a_and_a_version_does(caller: Caller) -> None:
    first = caller.set(b"key", b"A")
    caller.set(b"key", b"B")
    third = caller.set(b"key", b"A")
    assert caller.ask(Opcode.CAS_VERSION, first, 0, 0, b"key", b"C") == (Status.CHANGED, (third,))
    assert caller.ask(Opcode.CAS_HASH, hash_of(b"A"), 0, 0, b"key", b"C") == (Status.OK, (third + 1,))


def test_a_version_is_not_used_again_after_delete_and_set(caller: Caller) -> None:
    first = caller.set(b"key", b"A")
    caller.delete(b"key")
    second = caller.set(b"key", b"A")
    assert caller.ask(Opcode.CAS_VERSION, first, 0, 0, b"key", b"C") == (Status.CHANGED, (second,))


@pytest.mark.parametrize("opcode", [Opcode.CAS_VERSION, Opcode.CAS_HASH])
def test_check_and_set_heeds_the_limit(caller: Caller, opcode: Opcode) -> None:
    version = caller.set(b"key", b"A")
    expected = version if opcode is Opcode.CAS_VERSION else hash_of(b"A")
    assert caller.ask(opcode, expected, 0, 0, b"key", bytes(VALUE_BYTES_MAX + 1)).status is Status.TOO_LARGE
    assert caller.value(b"key") == b"A"


# --- an expired item is no item, for every opcode


@pytest.mark.parametrize(
    ("opcode", "values", "status"),
    [
        (Opcode.GET, (b"key",), Status.NOT_FOUND),
        (Opcode.INSPECT, (b"key",), Status.NOT_FOUND),
        (Opcode.GET_WITH_TTL, (b"key",), Status.NOT_FOUND),
        (Opcode.GET_AND_TOUCH, (9000, b"key"), Status.NOT_FOUND),
        (Opcode.TOUCH, (9000, b"key"), Status.NOT_FOUND),
        (Opcode.REPLACE, (0, 0, b"key", b"new"), Status.NOT_FOUND),
        (Opcode.DELETE, (b"key",), Status.NOT_FOUND),
        (Opcode.APPEND, (b"key", b"new"), Status.NOT_FOUND),
        (Opcode.PREPEND, (b"key", b"new"), Status.NOT_FOUND),
        (Opcode.INCREMENT, (1, 0, 0, 0, b"key"), Status.NOT_FOUND),
        (Opcode.DECREMENT, (1, 0, 0, 0, b"key"), Status.NOT_FOUND),
        (Opcode.CAS_HASH, (hash_of(b"1"), 0, 0, b"key", b"new"), Status.CHANGED),
        (Opcode.CAS_VERSION, (0, 0, 0, b"key", b"new"), Status.OK),
        (Opcode.ADD, (0, 0, b"key", b"new"), Status.OK),
        (Opcode.SET, (0, 0, b"key", b"new"), Status.OK),
    ],
)
def test_an_expired_item_is_no_item(
    caller: Caller, fake_time: FakeTime, opcode: Opcode, values: tuple[object, ...], status: Status
) -> None:
    caller.set(b"key", b"1", ttl_ms=1000)
    fake_time.advance(999)
    assert caller.value(b"key") == b"1"
    fake_time.advance(1)
    answer = caller.ask(opcode, *values)
    assert answer.status is status
    assert answer.status is not Status.CHANGED or answer.values == (0,)
    assert caller.value(b"key") == (b"new" if status is Status.OK else None)


def test_check_and_set_by_the_version_of_an_expired_item_says_that_there_is_none(caller: Caller, fake_time: FakeTime) -> None:
    version = caller.set(b"key", b"1", ttl_ms=1000)
    fake_time.advance(1000)
    assert caller.ask(Opcode.CAS_VERSION, version, 0, 0, b"key", b"new") == (Status.CHANGED, (0,))
