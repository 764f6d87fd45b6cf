"""Memory: never above the limit, who goes first, what is refused without eviction; and that the accounts are honest."""

from __future__ import annotations

import json
import random
import subprocess
import sys

import pytest

from rcache.engine.contract import Engine
from rcache.records.record import Cause, Kind
from rcache_client.wire.opcodes import Opcode, Status
from tests.contract.conftest import EngineFactory
from tests.contract.harness import Caller, FakeTime, drain, run_all, stat, state_of

KIB = 1 << 10

HONEST_LOW, HONEST_HIGH = 0.6, 1.4
"""The process may grow by this much of what the accounts say: allocators differ, and tables grow by doubling."""


def used(engine: Engine) -> int:
    count: int = stat(engine, "memory", "used_bytes")
    return count


def fill(caller: Caller, value_bytes: int = 100, prefix: bytes = b"fill", ttl_ms: int = 0) -> list[bytes]:
    """Add items until the next would need room that is not there. Returns the keys."""
    keys = []
    while True:
        key = b"%s %06d" % (prefix, len(keys))
        evicted = stat(caller.engine, "items", "evicted")
        status = caller.ask(Opcode.ADD, 0, ttl_ms, key, bytes(value_bytes)).status
        if status is Status.NO_ROOM or stat(caller.engine, "items", "evicted") > evicted:
            return keys
        assert status is Status.OK
        keys.append(key)


def test_the_limit_is_never_passed(engine_factory: EngineFactory) -> None:
    limit = 200 * KIB
    engine = engine_factory(memory_bytes=limit)
    chosen, caller = random.Random(1), Caller(engine)
    for number in range(3000):
        caller.set(b"k%d" % chosen.randrange(2000), bytes(chosen.randrange(2000)), ttl_ms=chosen.choice([0, 9]))
        if number % 10 == 0:
            assert used(engine) <= limit
    assert used(engine) > limit // 2
    assert stat(engine, "items", "evicted") > 500


def test_the_limit_is_not_passed_by_many_writers_at_once(engine_factory: EngineFactory) -> None:
    limit = 64 * KIB
    engine = engine_factory(memory_bytes=limit)
    highest = []

    def write(seed: int) -> None:
        chosen, caller = random.Random(seed), Caller(engine)
        for _ in range(250):
            answer = caller.ask(Opcode.SET, 0, 0, b"k%d" % chosen.randrange(500), bytes(chosen.randrange(3000)))
            assert answer.status is Status.OK
            highest.append(used(engine))

    run_all([lambda seed=seed: write(seed) for seed in range(4)])
    assert max(highest) <= limit


def test_what_was_removed_costs_nothing(engine: Engine, caller: Caller, fake_time: FakeTime) -> None:
    empty = used(engine)
    for number in range(50):
        caller.set(b"k%d" % number, bytes(100), ttl_ms=100 * (number % 3))
    caller.ask(Opcode.DELETE_MANY, *[(b"k%d" % number,) for number in range(0, 50, 3)])
    fake_time.advance(100)
    engine.expire_due(1000)
    caller.ask(Opcode.APPEND, b"k2", bytes(500))
    engine.flush(1 << 62)
    assert used(engine) == empty


def test_a_hot_key_survives(engine_factory: EngineFactory) -> None:
    engine = engine_factory(memory_bytes=500 * KIB)
    caller = Caller(engine)
    caller.set(b"hot", b"value")
    caller.set(b"touched", b"value")
    caller.set(b"cold", bytes(100))
    for number in range(6000):
        caller.set(b"k%d" % number, bytes(100))
        if number % 20 == 0:
            assert caller.value(b"hot") == b"value"
            assert caller.ask(Opcode.TOUCH, 0, b"touched").status is Status.OK
    assert caller.value(b"cold") is None
    assert stat(engine, "items", "evicted") > 500


def test_the_least_recently_used_go_first(engine_factory: EngineFactory) -> None:
    caller = Caller(engine_factory(memory_bytes=500 * KIB))
    keys = fill(caller)
    for number, key in enumerate(keys[: len(keys) // 2]):
        caller.ask((Opcode.GET, Opcode.GET_WITH_TTL)[number % 2], key)
    for number in range(len(keys) // 4):
        caller.set(b"more %06d" % number, bytes(100))
    read = sum(caller.ask(Opcode.INSPECT, key).status is Status.OK for key in keys[: len(keys) // 2])
    unread = sum(caller.ask(Opcode.INSPECT, key).status is Status.OK for key in keys[len(keys) // 2 :])
    assert read > 0.9 * (len(keys) // 2)
    assert unread < 0.7 * (len(keys) // 2)


def test_an_eviction_is_a_change_like_any_other(engine_factory: EngineFactory) -> None:
    engine = engine_factory(memory_bytes=32 * KIB)
    caller = Caller(engine)
    fill(caller)
    reader = engine.stream.open_reader("test", holds=True)
    before = state_of(engine)
    caller.set(b"new", bytes(100))
    *evictions, written = drain(reader)
    assert (written.kind, written.key) == (Kind.SET, b"new")
    assert {(record.kind, record.cause) for record in evictions} == {(Kind.REMOVE, Cause.EVICTED)}
    gone = {key for items in before.values() for key in items} - {key for items in state_of(engine).values() for key in items}
    assert {record.key for record in evictions} == gone
    reader.close()


def test_one_huge_item_evicts_many_small_ones(engine_factory: EngineFactory) -> None:
    engine = engine_factory(memory_bytes=500 * KIB, value_bytes_max=400 * KIB)
    caller = Caller(engine)
    count = len(fill(caller, 10))
    caller.set(b"huge", b"huge" * (75 * KIB))
    assert caller.ask(Opcode.INSPECT, b"huge").values[3] == 300 * KIB
    assert caller.ask(Opcode.GET_WITH_TTL, b"huge").values[3] == caller.value(b"huge") == b"huge" * (75 * KIB)
    left = stat(engine, "items", "items")
    assert 1 < left < count * 0.6
    assert used(engine) <= 500 * KIB


@pytest.mark.parametrize("held", [None, 10, 5000])
def test_an_item_that_alone_passes_the_limit_evicts_nobody(engine_factory: EngineFactory, held: int | None) -> None:
    engine = engine_factory(memory_bytes=16 * KIB)
    caller = Caller(engine)
    if held is not None:
        caller.set(b"huge", bytes(held))
    fill(caller)
    before, head = state_of(engine), engine.stream.head
    assert caller.ask(Opcode.SET, 0, 0, b"huge", bytes(17 * KIB)).status is Status.NO_ROOM
    assert (state_of(engine), engine.stream.head) == (before, head)


def test_a_refusal_evicts_nobody(engine_factory: EngineFactory) -> None:
    engine = engine_factory(memory_bytes=16 * KIB)
    caller = Caller(engine)
    there = next(key for key in fill(caller) if caller.ask(Opcode.INSPECT, key).status is Status.OK)
    before = state_of(engine)
    for opcode, values in (
        (Opcode.ADD, (0, 0, there, bytes(9000))),
        (Opcode.REPLACE, (0, 0, b"none", bytes(9000))),
        (Opcode.CAS_VERSION, (1, 0, 0, there, bytes(9000))),
        (Opcode.CAS_HASH, (bytes(16), 0, 0, there, bytes(9000))),
        (Opcode.APPEND, (b"none", bytes(9000))),
        (Opcode.INCREMENT, (1, 0, 0, 0, b"none")),
        (Opcode.DELETE, (b"none",)),
    ):
        assert caller.ask(opcode, *values).status in (Status.EXISTS, Status.NOT_FOUND, Status.CHANGED)
    assert state_of(engine) == before


def test_expired_items_go_before_any_other(engine_factory: EngineFactory, fake_time: FakeTime) -> None:
    engine = engine_factory(memory_bytes=64 * KIB)
    caller = Caller(engine)
    alive = [b"alive %d" % number for number in range(20)]
    for key in alive:
        caller.set(key, bytes(100))
    dying = fill(caller, 10, b"dying", ttl_ms=1000)
    assert len(dying) > 40, "more than are looked for at once"
    alive = [key for key in alive if caller.ask(Opcode.INSPECT, key).status is Status.OK]
    assert len(alive) > 10
    evicted = stat(engine, "items", "evicted")
    fake_time.advance(1000)
    caller.set(b"huge", bytes(25 * KIB))
    assert stat(engine, "items", "evicted") == evicted
    assert all(caller.value(key) is not None for key in alive)


# --- without eviction


def test_without_eviction_a_full_store_refuses_and_nothing_has_changed(engine_factory: EngineFactory) -> None:
    engine = engine_factory(memory_bytes=32 * KIB, evict=False)
    caller = Caller(engine)
    keys = fill(caller)
    before, bytes_used, head = state_of(engine), used(engine), engine.stream.head
    assert caller.ask(Opcode.SET, 0, 0, b"new", bytes(600)).status is Status.NO_ROOM
    assert caller.ask(Opcode.SET, 0, 0, keys[3], bytes(2000)).status is Status.NO_ROOM
    assert caller.ask(Opcode.APPEND, keys[3], bytes(2000)).status is Status.NO_ROOM
    assert (state_of(engine), used(engine), engine.stream.head) == (before, bytes_used, head)
    assert stat(engine, "items", "evicted") == 0


def test_a_full_store_still_overwrites_in_place_counts_and_deletes(engine_factory: EngineFactory) -> None:
    engine = engine_factory(memory_bytes=200 * KIB, evict=False)
    caller = Caller(engine)
    caller.set(b"n", b"41")
    keys = fill(caller, 300)
    size = 300
    while size:  # to the last byte that can be had
        if caller.ask(Opcode.ADD, 0, 0, b"x" * 10, bytes(size)).status is Status.OK:
            break
        size -= 1
    last, grown = keys[-1], 300
    while caller.ask(Opcode.APPEND, last, b"x").status is Status.OK:
        grown += 1
    assert used(engine) > 0.9 * 200 * KIB
    assert caller.ask(Opcode.SET, 5, 0, keys[0], b"y" * 300).status is Status.OK
    assert caller.ask(Opcode.REPLACE, 5, 0, last, b"z" * grown).status is Status.OK
    assert caller.ask(Opcode.CAS_VERSION, caller.ask(Opcode.GET, last).values[1], 0, 0, last, b"w" * grown).status is Status.OK
    assert caller.ask(Opcode.INCREMENT, 1, 0, 0, 0, b"n").values[0] == 42
    assert caller.ask(Opcode.TOUCH, 0, keys[1]).status is Status.OK
    assert caller.ask(Opcode.SET, 0, 0, keys[2], b"shorter").status is Status.OK
    assert caller.delete(keys[3]).status is Status.OK
    caller.set(b"in its place", bytes(200))


def test_without_eviction_expired_items_make_room(engine_factory: EngineFactory, fake_time: FakeTime) -> None:
    engine = engine_factory(memory_bytes=64 * KIB, evict=False)
    caller = Caller(engine)
    assert len(fill(caller, 10, ttl_ms=1000)) > 40
    assert caller.ask(Opcode.SET, 0, 0, b"huge", bytes(50 * KIB)).status is Status.NO_ROOM
    fake_time.advance(1000)
    caller.set(b"huge", bytes(50 * KIB))


# --- copies


def test_a_recovered_copy_may_pass_the_limit_until_it_is_trimmed(engine_factory: EngineFactory) -> None:
    source = engine_factory(buckets=1)
    caller = Caller(source)
    for number in range(600):
        caller.set(b"k%03d" % number, bytes(100))
    small = engine_factory(opened=0, buckets=1, memory_bytes=32 * KIB)
    small.apply(b"".join(source.copy_bucket(0)))
    assert stat(small, "items", "items") == 600
    assert used(small) > 32 * KIB
    assert small.trim() == 0, "only a primary evicts"
    small.open_buckets([0], 2, 1, "n1")
    evicted = small.trim()
    assert evicted > 0
    assert used(small) <= 32 * KIB
    assert stat(small, "items", "items") == 600 - evicted
    assert small.trim() == 0


def test_items_of_a_backup_are_not_evicted_for_a_primarys(engine_factory: EngineFactory) -> None:
    source = engine_factory(buckets=2)
    caller = Caller(source)
    for number in range(30):
        caller.set(b"k%03d" % number, bytes(100))
    mixed = engine_factory(opened=0, buckets=2, memory_bytes=32 * KIB)
    mixed.apply(b"".join(source.copy_bucket(0)))
    mixed.open_buckets([1], 2, 1, "n1")
    backed_up = state_of(mixed)[0]
    assert backed_up
    writer = Caller(mixed)
    done = 0
    for number in range(400):
        answer = writer.ask(Opcode.SET, 0, 0, b"new %d" % number, bytes(100))
        assert answer.status in (Status.OK, Status.NOT_PRIMARY)
        done += answer.status is Status.OK
    assert done > 100
    assert stat(mixed, "items", "evicted") > 50
    assert state_of(mixed)[0] == backed_up


# --- honesty

_GROWTH = """
import gc, json, sys
from rcache.engine.contract import EngineConfig
from rcache.engine.bodies import make_engine
from rcache.engine.clock import NodeClock
from rcache_client.wire.frames import Request
from rcache_client.wire.grammar import STORE
from rcache_client.wire.opcodes import Opcode

body, count, value_bytes, ttl_ms = sys.argv[1], *map(int, sys.argv[2:])
engine = make_engine(body, EngineConfig(stream_bytes=4 << 20), NodeClock())
engine.open_buckets(range(engine.config.buckets), 1, 1, "n1")

def resident():
    gc.collect()
    return int(open("/proc/self/statm").read().split()[1]) * 4096

def put(key, size):
    engine.execute(Request(Opcode.SET, 1, 0, STORE.encode(0, ttl_ms, key, bytes(size))))

for number in range(45_000):  # the stream is full before and after
    put(b"warm up", 60)
before, used = resident(), engine.stats()["memory"]["used_bytes"]
for number in range(count):
    put(b"key of some length %08d" % number, value_bytes)
print(json.dumps([resident() - before, engine.stats()["memory"]["used_bytes"] - used]))
"""


@pytest.mark.parametrize(("value_bytes", "ttl_ms"), [(16, 0), (16, 3_600_000), (1000, 0)])
def test_the_process_grows_by_about_what_the_accounts_say(engine: Engine, value_bytes: int, ttl_ms: int) -> None:
    command = [sys.executable, "-c", _GROWTH, engine.name, "100000", str(value_bytes), str(ttl_ms)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=100)
    grown, accounted = json.loads(done.stdout)
    assert HONEST_LOW * accounted < grown < HONEST_HIGH * accounted, (grown / 100_000, accounted / 100_000)
