"""What a client's errors mean to the history, and that each call is written down before and after."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import rcache_client
from rcache_client import (
    Busy,
    Client,
    ConnectionLost,
    NoRoom,
    NotExecuted,
    OutcomeUnknown,
    ProtocolError,
    RcacheError,
    Refused,
    TimedOut,
)
from soak.checker import verify
from soak.cluster.operations import Caller, is_strange, outcome_of
from soak.cluster.workload import Load, Workload, counts, keys_of
from soak.history import HistoryWriter, Op, Outcome, read_history

WRITES = [op for op in Op if op != Op.GET]


@pytest.mark.parametrize("error", [Busy("x"), NotExecuted("x"), ConnectionLost("x"), Refused("x"), ProtocolError("x")])
@pytest.mark.parametrize("op", list(Op))
def test_what_was_not_executed_failed(op: Op, error: RcacheError) -> None:
    assert outcome_of(op, error) == Outcome.FAIL


@pytest.mark.parametrize("op", WRITES)
@pytest.mark.parametrize("error", [OutcomeUnknown("x"), TimedOut("x")])
def test_a_write_that_may_have_happened_is_unknown(op: Op, error: RcacheError) -> None:
    assert outcome_of(op, error) == Outcome.UNKNOWN


def test_a_read_that_was_not_answered_says_nothing() -> None:
    assert outcome_of(Op.GET, TimedOut("x")) == Outcome.FAIL


def test_every_error_that_says_not_executed_fails() -> None:
    """Also those that are yet to be written: whatever derives from `NotExecuted` or `Refused`."""
    public = [getattr(rcache_client, name) for name in rcache_client.__all__]
    errors = [each for each in public if isinstance(each, type) and issubclass(each, NotExecuted | Refused)]
    assert len(errors) > 5
    for error in errors:
        assert outcome_of(Op.SET, error("x")) == Outcome.FAIL


def test_what_no_fault_explains_is_strange() -> None:
    assert [is_strange(error) for error in (NoRoom("x"), ProtocolError("x"), Refused("x"))] == [True] * 3
    assert [is_strange(error) for error in (Busy("x"), OutcomeUnknown("x"), TimedOut("x"), ConnectionLost("x"))] == [False] * 4


class Cache:
    """A client of nothing: a dict, with an error now and then."""

    def __init__(self) -> None:
        self.items: dict[str, tuple[bytes, int]] = {}
        self.version = 0
        self.errors: list[RcacheError] = []

    def _maybe_fail(self) -> None:
        if self.errors:
            raise self.errors.pop()

    def _store(self, key: str, value: bytes) -> int:
        self.version += 1
        self.items[key] = value, self.version
        return self.version

    def get_with_version(self, key: str) -> tuple[bytes | None, int]:
        self._maybe_fail()
        return self.items.get(key, (None, 0))

    def set(self, key: str, value: bytes, _ttl: float | None) -> int:
        self._maybe_fail()
        return self._store(key, value)

    def delete(self, key: str) -> bool:
        self._maybe_fail()
        return self.items.pop(key, None) is not None

    def cas(self, key: str, value: bytes, *, version: int | None = None, previous: bytes | None = None) -> int:
        self._maybe_fail()
        found, of_version = self.items.get(key, (None, 0))
        return self._store(key, value) if version == of_version or (previous is not None and previous == found) else 0

    def incr(self, key: str, delta: int, *, initial: int) -> int:
        self._maybe_fail()
        found, _ = self.items.get(key, (None, 0))
        total = initial if found is None else int(found) + delta
        self._store(key, b"%d" % total)
        return total


def caller(cache: Cache, path: Path) -> Caller:
    made = Caller("c0", cast_client(cache))
    made.writer = HistoryWriter(path)
    return made


def cast_client(cache: Any) -> Client[bytes]:
    return cache  # type: ignore[no-any-return]


def test_each_call_stands_in_the_history_as_it_went(tmp_path: Path) -> None:
    cache = Cache()
    calls = caller(cache, tmp_path / "h")
    read = calls.get("k")
    calls.cas("k", "a", read.operation.value, read.version)
    calls.cas("k", "b", "a", None)
    calls.cas("k", "c", "a", read.version)
    calls.delete("k")
    calls.delete("k")
    calls.set("k", "d", 60.0)
    calls.increment("n", 3)
    cache.errors = [Busy("x")]
    calls.set("k", "e")
    cache.errors = [OutcomeUnknown("x")]
    calls.increment("n", 1)
    found = sorted(read_history([tmp_path / "h"]).operations, key=lambda each: each.start_ns)
    assert [(each.op, each.outcome, each.applied) for each in found] == [
        (Op.GET, Outcome.OK, None),
        (Op.CAS, Outcome.OK, True),
        (Op.CAS, Outcome.OK, True),
        (Op.CAS, Outcome.OK, False),
        (Op.DELETE, Outcome.OK, True),
        (Op.DELETE, Outcome.OK, False),
        (Op.SET, Outcome.OK, None),
        (Op.INCREMENT, Outcome.OK, None),
        (Op.SET, Outcome.FAIL, None),
        (Op.INCREMENT, Outcome.UNKNOWN, None),
    ]
    assert verify(found).fine


def test_a_write_stands_in_the_history_before_it_is_sent(tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    class Dying(Cache):
        def set(self, key: str, value: bytes, _ttl: float | None) -> int:
            raise Killed

    with pytest.raises(Killed):
        caller(Dying(), tmp_path / "h").set("k", "v")
    [found] = read_history([tmp_path / "h"]).operations
    assert (found.value, found.end_ns, found.outcome) == ("v", None, Outcome.UNKNOWN)


def test_a_workload_is_what_the_checker_takes(tmp_path: Path) -> None:
    load = Load(clients=1, rate=100.0, keys=20, round_s=10.0)
    cache = Cache()
    workload = Workload(caller(cache, tmp_path / "h"), load, seed=3)
    workload.begin_round(4)
    done = [each for _ in range(2000) for each in workload.next()]
    assert {each.operation.op for each in done} == set(Op)
    assert {each.operation.applied for each in done if each.operation.op == Op.CAS} == {True, False}
    found = read_history([tmp_path / "h"]).operations
    assert len(found) == len(done)
    keys = keys_of(4, load)
    assert {each.key for each in found} == {*keys.hot, *keys.cold}, "the rest is for those who ask every node"
    assert verify(found).fine
    written = [each.value for each in found if each.op in {Op.SET, Op.CAS}]
    assert len(set(written)) == len(written)


def test_a_lost_write_is_found(tmp_path: Path) -> None:
    cache = Cache()
    calls = caller(cache, tmp_path / "h")
    calls.set("k", "old")
    calls.set("k", "new")
    cache.items["k"] = b"old", 1
    calls.get("k")
    assert not verify(read_history([tmp_path / "h"]).operations).fine


def test_counters_and_registers_are_told_apart_by_their_names() -> None:
    keys = keys_of(0, Load(clients=2, rate=10.0, keys=40, round_s=5.0))
    assert {counts(key) for key in keys.cold} == {True, False}
    assert not set(keys.all()) & set(keys_of(1, Load(clients=2, rate=10.0, keys=40, round_s=5.0)).all())
