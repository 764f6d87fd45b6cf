"""Seeded random workloads against a plain dict: alone, everything exact; in several threads, what holds whatever happens."""

from __future__ import annotations

import random
from hashlib import blake2b
from typing import Any

import pytest

from rcache.engine.contract import Engine
from rcache.records.record import epoch_of
from rcache_client.wire.opcodes import Opcode, Status
from tests.contract.conftest import EngineFactory
from tests.contract.harness import EVERYTHING, START_MS, Answer, Caller, FakeTime, run_all, stat, state_of

VALUE_BYTES_MAX = 100
INT_MIN, INT_MAX = -(1 << 63), (1 << 63) - 1


class Model:
    """What a store of items is, in as few words as possible. Versions are the engine's; all else is foretold.

    `items`: key to [value, flags, expires at (ms, 0: never), version].
    """

    def __init__(self, now_ms: int) -> None:
        self.now_ms = now_ms
        self.items: dict[bytes, list[Any]] = {}

    def live(self, key: bytes) -> list[Any] | None:
        item = self.items.get(key)
        if item is not None and 0 < item[2] <= self.now_ms:
            del self.items[key]
            return None
        return item

    def expect(self, opcode: Opcode, values: tuple[Any, ...], answer: Answer) -> None:
        """Compare an answer with what it must be, and follow."""
        status, payload = self._foretell(opcode, values, answer)
        assert answer.status is status, (opcode.name, values, answer, status)
        assert payload is None or answer.values == payload, (opcode.name, values, answer, payload)

    def _foretell(self, opcode: Opcode, values: tuple[Any, ...], answer: Answer) -> tuple[Status, tuple[Any, ...] | None]:
        handler = {
            Opcode.GET: self._get,
            Opcode.INSPECT: self._inspect,
            Opcode.GET_WITH_TTL: self._get_with_ttl,
            Opcode.DELETE: self._delete,
            Opcode.TOUCH: self._touch,
            Opcode.GET_AND_TOUCH: self._touch,
            Opcode.APPEND: self._extend,
            Opcode.PREPEND: self._extend,
            Opcode.INCREMENT: self._count,
            Opcode.DECREMENT: self._count,
        }.get(opcode, self._store)
        return handler(opcode, values, answer)

    def _get(self, _opcode: Opcode, values: tuple[Any, ...], _answer: Answer) -> tuple[Status, tuple[Any, ...]]:
        item = self.live(values[0])
        return (Status.NOT_FOUND, ()) if item is None else (Status.OK, (item[1], item[3], item[0]))

    def _inspect(self, _opcode: Opcode, values: tuple[Any, ...], _answer: Answer) -> tuple[Status, tuple[Any, ...]]:
        item = self.live(values[0])
        if item is None:
            return Status.NOT_FOUND, ()
        return Status.OK, (item[3], item[1], self._left_ms(item), len(item[0]))

    def _get_with_ttl(self, _opcode: Opcode, values: tuple[Any, ...], _answer: Answer) -> tuple[Status, tuple[Any, ...]]:
        item = self.live(values[0])
        return (Status.NOT_FOUND, ()) if item is None else (Status.OK, (item[1], item[3], self._left_ms(item), item[0]))

    def _left_ms(self, item: list[Any]) -> int:
        return item[2] - self.now_ms if item[2] else 0

    def _delete(self, _opcode: Opcode, values: tuple[Any, ...], _answer: Answer) -> tuple[Status, tuple[Any, ...] | None]:
        if self.live(values[0]) is None:
            return Status.NOT_FOUND, ()
        del self.items[values[0]]
        return Status.OK, None

    def _put(self, key: bytes, value: bytes, flags: int, expires_at_ms: int, version: int) -> None:
        before = self.items.get(key)
        assert before is None or version > before[3]
        self.items[key] = [value, flags, expires_at_ms, version]

    def _expiry(self, ttl_ms: int) -> int:
        return self.now_ms + ttl_ms if ttl_ms else 0

    def _store(self, opcode: Opcode, values: tuple[Any, ...], answer: Answer) -> tuple[Status, tuple[Any, ...] | None]:
        *condition, flags, ttl_ms, key, value = values
        item = self.live(key)
        version = item[3] if item else 0
        if len(value) > VALUE_BYTES_MAX:
            return Status.TOO_LARGE, None
        if opcode is Opcode.ADD and item:
            return Status.EXISTS, (version,)
        if opcode is Opcode.REPLACE and not item:
            return Status.NOT_FOUND, ()
        if opcode is Opcode.CAS_VERSION and condition[0] != version:
            return Status.CHANGED, (version,)
        if opcode is Opcode.CAS_HASH and (not item or blake2b(item[0], digest_size=16).digest() != condition[0]):
            return Status.CHANGED, (version,)
        if answer.status is Status.OK:
            self._put(key, value, flags, self._expiry(ttl_ms), answer.values[0])
        return Status.OK, None

    def _touch(self, opcode: Opcode, values: tuple[Any, ...], answer: Answer) -> tuple[Status, tuple[Any, ...] | None]:
        ttl_ms, key = values
        item = self.live(key)
        if item is None:
            return Status.NOT_FOUND, ()
        version = answer.values[1] if opcode is Opcode.GET_AND_TOUCH else answer.values[0]
        self._put(key, item[0], item[1], self._expiry(ttl_ms), version)
        return Status.OK, (item[1], version, item[0]) if opcode is Opcode.GET_AND_TOUCH else None

    def _extend(self, opcode: Opcode, values: tuple[Any, ...], answer: Answer) -> tuple[Status, tuple[Any, ...] | None]:
        key, more = values
        item = self.live(key)
        if len(more) > VALUE_BYTES_MAX:
            return Status.TOO_LARGE, None
        if item is None:
            return Status.NOT_FOUND, ()
        if len(item[0]) + len(more) > VALUE_BYTES_MAX:
            return Status.TOO_LARGE, None
        value = item[0] + more if opcode is Opcode.APPEND else more + item[0]
        self._put(key, value, item[1], item[2], answer.values[0])
        return Status.OK, None

    def _count(self, opcode: Opcode, values: tuple[Any, ...], answer: Answer) -> tuple[Status, tuple[Any, ...] | None]:
        delta, create, initial, ttl_ms, key = values
        item = self.live(key)
        if item is None and not create:
            return Status.NOT_FOUND, ()
        if item is None:
            number, flags, expires_at_ms = initial, 0, self._expiry(ttl_ms)
        else:
            text = item[0].decode("latin-1")
            is_number = text.isascii() and text.lstrip("-").isdecimal() and str(int(text)) == text
            if not is_number or not INT_MIN <= int(text) <= INT_MAX:
                return Status.NOT_A_NUMBER, None
            number = int(text) + (delta if opcode is Opcode.INCREMENT else -delta)
            flags, expires_at_ms = item[1], item[2]
            if not INT_MIN <= number <= INT_MAX:
                return Status.OUT_OF_RANGE, None
        version = answer.values[1] if answer.status is Status.OK else 0
        self._put(key, str(number).encode(), flags, expires_at_ms, version)
        return Status.OK, (number, version)


def random_request(chosen: random.Random, model: Model) -> tuple[Opcode, tuple[Any, ...]]:
    """One request; often about what is there, and often with a condition that holds."""
    key = b"k%d" % chosen.randrange(12)
    item = model.items.get(key, [b"", 0, 0, 0])
    ttl_ms, flags = chosen.choice([0, 0, 3, 20]), chosen.randrange(3)
    value = chosen.choice([b"", b"%d" % chosen.randrange(-50, 50), b"%d" % INT_MAX, b"x" * 60, b"x" * 101, b"007"])
    stored = (flags, ttl_ms, key, value)
    value_hash = blake2b(chosen.choice([item[0], b"?"]), digest_size=16).digest()
    opcode = chosen.choice([opcode for opcode in Opcode if Opcode.GET <= opcode <= Opcode.GET_WITH_TTL])
    if opcode in (Opcode.GET, Opcode.DELETE, Opcode.INSPECT, Opcode.GET_WITH_TTL):
        return opcode, (key,)
    if opcode in (Opcode.TOUCH, Opcode.GET_AND_TOUCH):
        return opcode, (ttl_ms, key)
    if opcode in (Opcode.INCREMENT, Opcode.DECREMENT):
        return opcode, (chosen.choice([1, -7, INT_MAX, INT_MIN]), chosen.randrange(2), chosen.randrange(9), ttl_ms, key)
    if opcode in (Opcode.APPEND, Opcode.PREPEND):
        return opcode, (key, chosen.choice([b"", b"5", value]))
    if opcode is Opcode.CAS_VERSION:
        return opcode, (chosen.choice([0, item[3], item[3], 99]), *stored)
    return opcode, (value_hash, *stored) if opcode is Opcode.CAS_HASH else stored


@pytest.mark.parametrize("seed", range(8))
def test_alone_every_answer_is_what_a_dict_would_say(engine_factory: EngineFactory, fake_time: FakeTime, seed: int) -> None:
    engine = engine_factory(opened=seed + 1, buckets=4, stripes=2, value_bytes_max=VALUE_BYTES_MAX)
    chosen, caller, model = random.Random(seed), Caller(engine), Model(START_MS)
    seen: set[tuple[Opcode, Status]] = set()
    for _ in range(1500):
        if chosen.randrange(3) == 0:
            fake_time.advance(chosen.randrange(8))
            model.now_ms = fake_time.ms
        if chosen.randrange(40) == 0:
            engine.expire_due(chosen.randrange(5))
        opcode, values = random_request(chosen, model)
        answer = caller.ask(opcode, *values)
        model.expect(opcode, values, answer)
        seen.add((opcode, answer.status))
    held = {key: tuple(item) for items in state_of(engine).values() for key, item in items.items()}
    expected = {key: tuple(item) for key, item in list(model.items.items()) if model.live(key) is not None}
    assert {key: item for key, item in held.items() if not 0 < item[2] <= fake_time.ms} == expected
    assert all(epoch_of(item[3]) == seed + 1 for item in held.values())
    assert len(seen) > 25, "the workload met most answers there are"


@pytest.mark.parametrize("seed", range(3))
def test_together_no_count_and_no_exchange_is_lost(engine_factory: EngineFactory, seed: int) -> None:
    """Threads count up, and exchange values by version and by hash: what succeeded is what is there in the end."""
    engine = engine_factory(buckets=4, stripes=2)
    setup = Caller(engine)
    for key in (b"by version", b"by hash"):
        setup.set(key, b"0")

    def work(number: int) -> list[int]:
        chosen, caller, done = random.Random(seed * 100 + number), Caller(engine), [0, 0, 0, 0]
        for _ in range(250):
            what = chosen.randrange(4)
            if what == 0:
                status = caller.ask(Opcode.INCREMENT, 1, 1, 1, 0, b"counted").status
            elif what == 1:
                _, (_, version, value) = caller.ask(Opcode.GET, b"by version")
                status = caller.ask(Opcode.CAS_VERSION, version, 0, 0, b"by version", b"%d" % (int(value) + 1)).status
            elif what == 2:
                value = caller.ask(Opcode.GET, b"by hash").values[2]
                expected = blake2b(value, digest_size=16).digest()
                status = caller.ask(Opcode.CAS_HASH, expected, 0, 0, b"by hash", b"%d" % (int(value) + 1)).status
            else:
                status = caller.ask(Opcode.ADD, 0, 0, b"added %d" % chosen.randrange(100), b"%d" % number).status
            assert status in (Status.OK, Status.CHANGED, Status.EXISTS, Status.BUSY)
            done[what] += status is Status.OK
        return done

    totals = [sum(column) for column in zip(*run_all([lambda n=n: work(n) for n in range(4)]), strict=True)]
    found = [int(setup.value(key) or b"0") for key in (b"counted", b"by version", b"by hash")]
    assert found == totals[:3]
    assert stat(engine, "items", "items") == 3 + totals[3]
    engine.check()


def press(engine: Engine, fake_time: FakeTime, seed: int) -> None:
    """300 requests of which none may end otherwise than it says here."""
    chosen, caller = random.Random(seed), Caller(engine)
    for _ in range(300):
        fake_time.advance(chosen.randrange(2))
        key = b"k%d" % chosen.randrange(150)
        what = chosen.choices(["flush", "expire", "set", "append", "delete", "get"], [1, 3, 56, 15, 10, 15])[0]
        if what == "flush":
            engine.flush(1 << 62)
        elif what == "expire":
            engine.expire_due(5)
        elif what == "set":
            caller.set(key, bytes(chosen.randrange(3000)), ttl_ms=chosen.choice([0, 0, 20]))
        elif what == "append":
            assert caller.ask(Opcode.APPEND, key, bytes(50)).status in (Status.OK, Status.NOT_FOUND, Status.TOO_LARGE)
        elif what == "delete":
            assert caller.delete(key).status in (Status.OK, Status.NOT_FOUND)
        else:
            caller.value(key)


@pytest.mark.parametrize("seed", range(3))
def test_together_under_pressure_every_structure_agrees(engine_factory: EngineFactory, fake_time: FakeTime, seed: int) -> None:
    """Little memory, a small stream, short lives, flushes; a log that follows, and one who copies."""
    engine = engine_factory(memory_bytes=96 << 10, stream_bytes=48 << 10, value_bytes_max=3000, commit=True)
    reader = engine.stream.open_reader("log", holds=True)
    stopping: list[bool] = []

    def log() -> None:
        while not stopping:
            batch = reader.take(EVERYTHING, 0.05, 0.002)
            engine.stream.set_durable(batch.position)
            reader.release(batch.position)

    def copy() -> None:
        while not stopping:
            state_of(engine)

    def write() -> None:
        try:
            run_all([lambda n=n: press(engine, fake_time, seed * 100 + n) for n in range(4)])
        finally:
            stopping.append(True)

    run_all([log, copy, write])
    engine.check()
    assert stat(engine, "items", "evicted") > 0
    reader.close()
