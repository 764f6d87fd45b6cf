"""The reference engine's change stream: room that is reserved, given back and used, and the list behind it."""

from __future__ import annotations

import random
import threading
import time

import pytest

from rcache.engine.change_stream import StreamEnd
from rcache.engine.reference import ring as ring_module
from rcache.engine.reference.ring import Ring, StreamFailed
from rcache.records.record import Cause, Kind, Record, decode, encode

PATIENCE_S = 20.0


def in_ns(seconds: float) -> int:
    return time.monotonic_ns() + int(seconds * 1e9)


def put(ring: Ring, record: bytes) -> int:
    assert ring.reserve(len(record), in_ns(PATIENCE_S))
    return ring.append(record, len(record))


def test_room_that_is_set_aside_counts_until_it_is_given_back() -> None:
    ring = Ring(100)
    assert ring.reserve(60, 0)
    assert not ring.reserve(60, 0)
    assert ring.reserve(40, 0)
    ring.unreserve(60)
    assert ring.reserve(60, 0)
    ring.check()


def test_more_than_was_needed_is_given_back_by_append() -> None:
    ring = Ring(100)
    reader = ring.open_reader("stuck", holds=True)
    assert ring.reserve(90, 0)
    ring.append(bytes(10), 90)
    assert ring.reserve(90, 0)
    assert not ring.reserve(1, 0)
    reader.close()


def waiter(ring: Ring, count: int, got: list[int]) -> threading.Thread:
    """A thread that reserves `count` bytes; returns once it waits."""
    waits = ring.full_waits

    def reserve() -> None:
        if ring.reserve(count, in_ns(PATIENCE_S)):
            got.append(count)

    thread = threading.Thread(target=reserve)
    thread.start()
    deadline = time.monotonic() + PATIENCE_S
    while ring.full_waits == waits:
        assert time.monotonic() < deadline
        thread.join(0.001)
    return thread


@pytest.mark.parametrize("give_back", ["unreserve", "append"])
def test_room_given_back_reaches_whoever_it_is_enough_for(give_back: str) -> None:
    """The first in line needs more than what was given back; the second does not."""
    ring, got = Ring(100), list[int]()
    assert ring.reserve(60, 0)
    assert ring.reserve(40, 0)
    large, small = waiter(ring, 90, got), waiter(ring, 30, got)
    began = time.monotonic()
    if give_back == "unreserve":
        ring.unreserve(40)
    else:
        ring.append(bytes(5), 40)
    small.join(PATIENCE_S)
    assert time.monotonic() - began < PATIENCE_S / 2
    assert got == [30]
    ring.unreserve(60)
    ring.unreserve(30)
    large.join(PATIENCE_S)
    assert got == [30, 90]


def test_failing_ends_the_wait_for_room() -> None:
    ring, raised = Ring(10), list[str]()
    assert ring.reserve(10, 0)

    def reserve() -> None:
        try:
            ring.reserve(5, in_ns(PATIENCE_S))
        except StreamFailed as failed:
            raised.append(str(failed))

    thread = threading.Thread(target=reserve)
    thread.start()
    while not ring.full_waits:
        thread.join(0.001)
    ring.fail("why")
    ring.fail("something later")
    thread.join(PATIENCE_S)
    assert raised == ["why"]
    with pytest.raises(StreamFailed):
        ring.append(bytes(5), 10)
    ring.check()


@pytest.mark.parametrize("seed", range(4))
def test_readers_see_every_record_once_whatever_is_dropped_and_compacted(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    monkeypatch.setattr(ring_module, "COMPACT_RECORDS", 5)
    chosen, ring = random.Random(seed), Ring(3000)
    holding, loose = ring.open_reader("holds", holds=True), ring.open_reader("loose", holds=False)
    written, held_saw, loose_saw, lost = [], [], [], 0
    for number in range(2000):
        record = encode(Record(Kind.SET, Cause.SET, 0, 0, number, 0, 0, b"%05d" % number, bytes(chosen.randrange(100))))
        if ring.reserve(len(record), 0):
            ring.append(record, len(record))
            written.append(record)
        if chosen.randrange(3) == 0:
            batch = holding.take(chosen.randrange(1, 1500), 0.0)
            assert not batch.lost
            held_saw += batch.records
            holding.release(batch.position)
            assert batch.position == sum(map(len, held_saw))
        if chosen.randrange(30) == 0:
            batch = loose.take(chosen.randrange(1, 1500), 0.0)
            lost += batch.lost
            loose_saw += batch.records
        ring.check()
    held_saw += holding.take(1 << 30, 0.0).records
    assert held_saw == written
    assert lost > 5
    numbers = [decode(record).sequence for record in loose_saw]
    assert numbers == sorted(set(numbers)), "in order and none twice"
    holding.close()
    loose.close()


def test_a_reader_that_closed_holds_nothing_back() -> None:
    ring = Ring(100)
    reader = ring.open_reader("gone", holds=True)
    put(ring, bytes(80))
    assert not ring.reserve(80, 0)
    reader.close()
    reader.close()
    assert ring.reserve(80, 0)


def test_when_waits_are_ended_nobody_waits_to_a_deadline_far_away() -> None:
    """A caller may say that it waits for a minute; a node that stops does not."""
    ring = Ring(100)
    ring.open_reader("stuck", holds=True)
    position = put(ring, bytes(100))
    ends: list[object] = []
    waiters = [
        threading.Thread(target=lambda: ends.append(ring.reserve(10, in_ns(PATIENCE_S)))),
        threading.Thread(target=lambda: ends.append(ring.wait_durable(position, in_ns(PATIENCE_S)))),
    ]
    began = time.monotonic()
    for waiter in waiters:
        waiter.start()
    ring.end_waits()
    for waiter in waiters:
        waiter.join(PATIENCE_S)
    assert sorted(map(str, ends)) == sorted(map(str, [False, StreamEnd.TIMED_OUT]))
    assert time.monotonic() - began < PATIENCE_S / 2
