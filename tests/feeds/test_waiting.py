"""What cannot be told yet waits for itself alone: the other buckets go on, and its own come in order, or are one loss."""

from __future__ import annotations

import threading
import time

import pytest

from rcache.cluster.bucket_state import BucketState
from rcache.engine.change_stream import Batch
from rcache.feeds.told import Told
from rcache.feeds.waiting import Due, Waiting
from rcache.records.record import Head, Kind, make_sequence
from rcache_client.wire.feeds import UNPROVEN, NoticeKind
from rcache_client.wire.opcodes import Opcode
from tests.contract.conftest import EngineFactory
from tests.contract.harness import PATIENCE_S, Caller, Task, assert_stays, wait_until
from tests.feeds.conftest import MakeTelling
from tests.feeds.harness import Telling, key_of

FOREVER_MS = 60_000


def write_in_vain(telling: Telling, bucket: int, values: list[bytes]) -> Task:
    """Changes one after the other, of which none is answered for now."""
    caller = Caller(telling.engine)
    entries = [(0, 0, key_of(bucket), value) for value in values]
    return Task(lambda: [caller.ask(Opcode.SET, *entry, budget_ms=FOREVER_MS) for entry in entries])


# --- buckets that cannot be told of


def test_a_bucket_that_stays_frozen_holds_no_other_up(telling: Telling) -> None:
    engine = telling.engine
    point = engine.open_commit_point("backup", engine.stream.head)
    engine.set_commit_points(3, [point])
    subscriber = telling.subscribe()
    writing = write_in_vain(telling, 3, [b"held up"])
    wait_until(lambda: engine.sequence(3) == make_sequence(1, 1), "the change")
    engine.set_state(3, BucketState.FROZEN)
    for number in range(5):
        telling.set(1, b"%d" % number)
        subscriber.until_told(number + 1)
    assert subscriber.values == [b"0", b"1", b"2", b"3", b"4"]
    subscriber.take(0.05)
    assert subscriber.events.behind_ms == UNPROVEN, "not all was told"
    point.advance(engine.stream.head)
    writing.result()
    assert_stays(lambda: not subscriber.take(), "being told nothing: it is not settled whose it is")
    engine.open_buckets([3], 2, 1, "n1")
    point.advance(engine.stream.head)
    subscriber.until_told(7)
    held_up, opened = subscriber.records[5:]
    assert (held_up.value, opened.kind, subscriber.gaps) == (b"held up", Kind.OPEN, [])
    subscriber.until(lambda: subscriber.events.behind_ms != UNPROVEN, "a proof")


def test_a_slow_backup_holds_only_its_own_buckets_up(telling: Telling) -> None:
    """Changes of both lie between each other in the stream. Once it comes by, its bucket goes on where it was."""
    engine = telling.engine
    point = engine.open_commit_point("backup", engine.stream.head)
    engine.set_commit_points(3, [point])
    subscriber = telling.subscribe()
    writings = []
    for number in range(4):
        writings.append(write_in_vain(telling, 3, [b"slow %d" % number]))
        wait_until(lambda number=number: engine.sequence(3) == make_sequence(1, number + 1), "the change")  # type: ignore[misc]
        telling.set(1, b"quick %d" % number)
        subscriber.until_told(number + 1)
    assert subscriber.values == [b"quick %d" % n for n in range(4)]
    point.advance(engine.stream.head)
    subscriber.until_told(8)
    assert subscriber.values[4:] == [b"slow %d" % n for n in range(4)]
    for writing in writings:
        writing.result()
    assert subscriber.gaps == []


def test_what_was_given_up_in_order_is_told_to_its_last_change(telling: Telling, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was frozen before its backups had it. They all have it when the bucket is handed to one of them, and not before."""
    monkeypatch.setattr("rcache.feeds.teller.ENDS_LOOK_S", 0.0)
    engine = telling.engine
    point = engine.open_commit_point("backup", engine.stream.head)
    engine.set_commit_points(3, [point])
    subscriber = telling.subscribe()
    writing = write_in_vain(telling, 3, [b"last"])
    wait_until(lambda: 3 in telling.teller._waiting, "the change to be read")
    with telling.teller.lock:
        engine.set_state(3, BucketState.FROZEN)
        point.close()
        writing.result()
        engine.set_state(3, BucketState.BACKUP)
    subscriber.until(lambda: 3 not in subscriber.places, "the end of the bucket")
    assert (subscriber.values, [notice.kind for notice in subscriber.notices]) == ([b"last"], [NoticeKind.ENDED])


def test_what_was_given_up_and_is_back_does_not_end(telling: Telling) -> None:
    subscriber = telling.subscribe()
    telling.set(3, b"v")
    subscriber.until_told(1)
    telling.teller._given_up[3] = 0  # as it was noted a moment before the bucket was opened again
    wait_until(lambda: not telling.teller._given_up, "the teller to look")
    subscriber.take(0.05)
    assert subscriber.notices == []


def test_it_ends_only_once_all_of_it_was_read(telling: Telling, monkeypatch: pytest.MonkeyPatch) -> None:
    """The teller finds that it was given up while the last changes are still to be read."""
    subscriber = telling.subscribe()
    teller = telling.teller
    take, entered, go_on = teller._take, threading.Event(), threading.Event()

    def take_later(batch: Batch) -> None:
        entered.set()
        assert go_on.wait(PATIENCE_S)
        take(batch)

    monkeypatch.setattr(teller, "_take", take_later)
    telling.set(3, b"first")
    assert entered.wait(PATIENCE_S)
    telling.set(3, b"last")
    telling.engine.set_state(3, BucketState.FROZEN)
    telling.engine.set_state(3, BucketState.BACKUP)
    teller._looked = (0, 0.0)
    go_on.set()
    subscriber.until(lambda: 3 not in subscriber.places, "the end of the bucket")
    assert subscriber.values == [b"first", b"last"]


def test_what_waits_of_a_bucket_that_is_another_s_by_then_is_never_told(telling: Telling) -> None:
    engine = telling.engine
    point = engine.open_commit_point("backup", engine.stream.head)
    engine.set_commit_points(3, [point])
    subscriber = telling.subscribe()
    writing = write_in_vain(telling, 3, [b"lost"])
    wait_until(lambda: engine.sequence(3) == make_sequence(1, 1), "the change")
    telling.set(1, b"beside")
    subscriber.until_told(1)  # so the other waits by now
    engine.set_state(3, BucketState.FROZEN)
    point.abandon()
    engine.set_state(3, BucketState.ABSENT)
    writing.result()
    subscriber.until(lambda: 3 not in subscriber.places, "the end of the bucket")
    assert subscriber.values == [b"beside"]
    assert len(telling.teller._waiting) == 0


def test_too_much_that_waits_is_a_loss_of_the_bucket_that_has_most(
    make_telling: MakeTelling, engine_factory: EngineFactory
) -> None:
    telling = make_telling(engine_factory(), held_bytes=20_000)
    engine = telling.engine
    point = engine.open_commit_point("backup", engine.stream.head)
    engine.set_commit_points(3, [point])
    engine.set_commit_points(4, [point])
    subscriber = telling.subscribe()
    writings = [write_in_vain(telling, 4, [b"little"])]
    wait_until(lambda: engine.sequence(4) == make_sequence(1, 1), "the change")
    for number in range(10):
        writings.append(write_in_vain(telling, 3, [b"%d" % number * 5000]))
        wait_until(lambda number=number: engine.sequence(3) == make_sequence(1, number + 1), "the change")  # type: ignore[misc]
    telling.set(1, b"beside")
    subscriber.until_told(1)
    waiting = telling.teller._waiting
    wait_until(lambda: 0 < waiting.bytes <= 20_000 and 3 in waiting and 4 in waiting, "what waits to be bounded")
    point.advance(1 << 40)
    for writing in writings:
        writing.result()
    last = engine.sequence(3)
    subscriber.until(lambda: subscriber.places[3] == last and b"little" in subscriber.values, "the last of both")
    assert {gap.bucket for gap in subscriber.gaps} == {3}


# --- what waits, by itself


def due(position: int, *counters: int, size: int = 1000) -> Due:
    heads = tuple(Head(Kind.SET, 3, make_sequence(1, counter), 0, 0, size) for counter in counters)
    return Due(position, [Told(bytes(size), heads)] if heads else [])


def test_a_bucket_s_own_come_in_their_order() -> None:
    waiting = Waiting(1 << 20)
    for bucket in (3, 4):
        for position in (10, 20):
            waiting.add(bucket, due(position + bucket, position))
    assert (list(waiting), len(waiting), 3 in waiting, 5 in waiting) == ([3, 4], 2, True, False)
    assert waiting.first(3) == due(13, 10)
    waiting.pop(3)
    assert waiting.first(3) == due(23, 20)
    waiting.pop(3)
    assert (waiting.first(3), list(waiting)) == (None, [4])
    waiting.drop(4)
    waiting.drop(4)
    assert (waiting.bytes, list(waiting)) == (0, [])


def test_beyond_the_limit_it_is_one_loss_of_the_greatest_up_to_the_newest() -> None:
    waiting = Waiting(6000)
    waiting.add(4, due(5, 1))
    for number in range(1, 4):
        waiting.add(3, due(10 * number, number))
    assert waiting.first(3) == Due(30, [], make_sequence(1, 3))
    assert waiting.first(4) == due(5, 1)
    waiting.add(3, Due(40, [], make_sequence(1, 9)))
    waiting.add(3, due(50, 4, size=4000))
    assert waiting.first(3) == Due(50, [], make_sequence(1, 9)), "a loss that was known already, too"
    tiny = Waiting(1)
    tiny.add(3, due(10, 1))
    assert (tiny.first(3), list(tiny)) == (Due(10, [], make_sequence(1, 1)), [3]), "and it ends"


# --- a log that failed


def test_where_the_log_failed_the_teller_does_not_spin(telling: Telling, monkeypatch: pytest.MonkeyPatch) -> None:
    """No read of the stream waits any more, and no wait for commitment."""
    subscriber = telling.subscribe()
    telling.set(3, b"before")
    subscriber.until_told(1)
    telling.engine.stream.fail("no space")
    steps, step = [0], telling.teller._step

    def count() -> None:
        steps[0] += 1
        step()

    monkeypatch.setattr(telling.teller, "_step", count)
    subscriber.take(0.3)
    assert 1 <= steps[0] <= 30, "some 15 looks"


def test_proofs_are_made_no_more_often_than_they_are_of_use(telling: Telling) -> None:
    """However many ask, and however much comes."""
    subscribers = [telling.subscribe() for _ in range(5)]
    began, before = time.monotonic(), telling.hub.stats()["proofs"]
    tasks = [Task(lambda s=s: [s.take(0.005) for _ in range(30)]) for s in subscribers]  # type: ignore[misc]
    while not all(task.is_done for task in tasks):
        telling.set(1, b"v")
    for task in tasks:
        task.result()
    elapsed = time.monotonic() - began
    assert telling.hub.stats()["proofs"] - before <= elapsed / 0.02 + 2
