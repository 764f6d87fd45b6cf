"""What a subscriber is told: committed changes, of each bucket in their order, each once, or in a gap that is told."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from rcache.cluster.bucket_state import BucketState
from rcache.engine.change_stream import Batch, StreamReader
from rcache.engine.contract import Engine
from rcache.feeds.feed import Feed, FeedOver
from rcache.feeds.hub import NoTeller
from rcache.feeds.select import Selection
from rcache.feeds.told import Held, Told
from rcache.records.record import Cause, Head, Kind, make_sequence
from rcache_client.wire.feeds import FROM_NOW, UNPROVEN, NoticeKind, Selects
from rcache_client.wire.opcodes import Opcode
from tests.contract.conftest import EngineFactory
from tests.contract.harness import PATIENCE_S, Caller, Task, assert_stays, wait_until
from tests.feeds.conftest import MakeTelling
from tests.feeds.harness import ALL, Subscriber, Telling, key_of

FOREVER_MS = 60_000


# --- in order, each once


def test_changes_are_told_with_all_that_they_say(telling: Telling) -> None:
    telling.set(3, b"before")
    subscriber = telling.subscribe()
    assert subscriber.places == {bucket: telling.engine.sequence(bucket) for bucket in range(8)}
    version = telling.set(3, b"one")
    telling.caller.delete(key_of(3))
    first, second = subscriber.until_told(2)
    assert (first.kind, first.cause, first.bucket, first.key, first.value) == (Kind.SET, Cause.SET, 3, key_of(3), b"one")
    assert first.sequence == version
    assert (second.kind, second.cause, second.key) == (Kind.REMOVE, Cause.DELETED, key_of(3))
    assert subscriber.notices == []


def test_nothing_comes_before_the_deadline_where_nothing_is_changed(telling: Telling) -> None:
    subscriber = telling.subscribe()
    assert (subscriber.take(0.05), subscriber.notices) == ([], [])


def test_a_waiting_subscriber_is_told_at_once(telling: Telling) -> None:
    subscriber = telling.subscribe()
    waiting = Task(lambda: subscriber.take(PATIENCE_S))
    telling.set(1, b"v")
    assert [record.value for record in waiting.result()] == [b"v"]


def test_writers_at_once_are_told_in_the_order_of_each_bucket(telling: Telling) -> None:
    subscriber = telling.subscribe()

    def write(number: int) -> None:
        caller = Caller(telling.engine)
        for turn in range(200):
            caller.set(key_of((number + turn) % 8, turn % 5), b"%d.%d" % (number, turn))

    writers = [Task(lambda number=number: write(number)) for number in range(4)]  # type: ignore[misc]
    subscriber.until_told(800)
    for writer in writers:
        writer.result()
    assert len(set(subscriber.values)) == 800
    assert subscriber.gaps == []


def test_an_answer_is_about_as_long_as_was_asked_for(telling: Telling) -> None:
    subscriber = telling.subscribe()
    for number in range(20):
        telling.set(1, b"%d" % number * 500)
        telling.until_told(number + 1)
    told = [len(subscriber.take(1.0, bytes_max=2000)) for _ in range(3)]
    assert all(0 < count < 20 for count in told)


def test_two_subscribers_are_told_the_same(telling: Telling) -> None:
    one, other = telling.subscribe(), telling.subscribe()
    telling.set(1, b"v")
    assert one.until_told(1) == other.until_told(1)
    assert telling.hub.stats()["feeds"] == 2


# --- only what is committed


def test_what_is_not_committed_is_not_told(telling: Telling) -> None:
    point = telling.engine.open_commit_point("backup", telling.engine.stream.head)
    telling.engine.set_commit_points(3, [point])
    subscriber = telling.subscribe()
    writing = Task(lambda: Caller(telling.engine).set(key_of(3), b"v", budget_ms=FOREVER_MS))
    wait_until(lambda: telling.engine.sequence(3) == make_sequence(1, 1), "the change")
    assert_stays(lambda: not subscriber.take(), "being told nothing")
    point.advance(telling.engine.stream.head)
    subscriber.until_told(1)
    writing.result()


def test_what_was_placed_by_a_primary_that_is_deposed_is_never_told(telling: Telling) -> None:
    """Invariant 1: frozen, abandoned, absent, as the control plane does it. Then its points are none, and met by everything."""
    engine = telling.engine
    point = engine.open_commit_point("backup", engine.stream.head)
    engine.set_commit_points(3, [point])
    subscriber = telling.subscribe()
    writing = Task(lambda: Caller(telling.engine).ask(*_set(3, b"lost"), budget_ms=FOREVER_MS))
    wait_until(lambda: engine.sequence(3) == make_sequence(1, 1), "the change")
    engine.set_state(3, BucketState.FROZEN)
    point.abandon()
    writing.result()
    assert_stays(lambda: not subscriber.take(), "being told nothing")
    engine.set_state(3, BucketState.ABSENT)
    subscriber.until(lambda: 3 not in subscriber.places, "the end of the bucket")
    assert subscriber.records == []


def test_not_even_where_the_bucket_is_this_nodes_again(telling: Telling) -> None:
    """Invariant 1: 1.1 waits for a backup that is gone; the bucket comes back without it, and waits for nobody."""
    engine = telling.engine
    point = engine.open_commit_point("backup", engine.stream.head)
    engine.set_commit_points(3, [point])
    subscriber = telling.subscribe()
    writing = Task(lambda: Caller(telling.engine).ask(*_set(3, b"lost"), budget_ms=FOREVER_MS))
    wait_until(lambda: engine.sequence(3) == make_sequence(1, 1), "the change")
    teller = telling.teller
    with teller.lock:  # it is held up while all this happens
        engine.set_state(3, BucketState.FROZEN)
        point.abandon()
        engine.set_state(3, BucketState.ABSENT)
        engine.open_buckets([3], 2, 1, "n1")
        telling.set(3, b"after")
    writing.result()
    subscriber.until(lambda: b"after" in subscriber.values or 3 not in subscriber.places, "what came after")
    assert b"lost" not in subscriber.values


def test_while_a_bucket_is_frozen_nothing_of_it_is_told_or_ended(telling: Telling) -> None:
    engine = telling.engine
    subscriber = telling.subscribe()
    telling.set(3, b"v")
    subscriber.until_told(1)
    engine.set_state(3, BucketState.FROZEN)
    assert_stays(lambda: not subscriber.take() and not subscriber.notices, "being told nothing")
    engine.open_buckets([3], 2, 1, "n1")
    telling.set(3, b"after")
    subscriber.until_told(3)
    assert [record.kind for record in subscriber.records] == [Kind.SET, Kind.OPEN, Kind.SET]
    assert subscriber.notices == []


def test_what_is_opened_twice_before_the_teller_looks_goes_on(telling: Telling) -> None:
    """In a later epoch each time, and nobody else's in between: it is one tenure."""
    engine = telling.engine
    subscriber = telling.subscribe()
    with telling.teller.lock:
        for epoch in (2, 3):
            telling.set(3, b"%d" % epoch)
            engine.set_state(3, BucketState.FROZEN)
            engine.open_buckets([3], epoch, 1, "n1")
        telling.set(3, b"after")
    subscriber.until_told(5)
    kinds = [Kind.SET, Kind.OPEN, Kind.SET, Kind.OPEN, Kind.SET]
    assert ([record.kind for record in subscriber.records], subscriber.notices) == (kinds, [])


# --- buckets that go and come


def test_a_bucket_that_is_handed_over_is_ended_behind_its_last_change(telling: Telling) -> None:
    subscriber = telling.subscribe()
    last = telling.set(3, b"last")
    subscriber.until_told(1)
    telling.engine.set_state(3, BucketState.FROZEN)
    telling.engine.set_state(3, BucketState.BACKUP)
    subscriber.until(lambda: bool(subscriber.notices), "the end")
    (ended,) = subscriber.notices
    assert (ended.kind, ended.bucket, ended.upto) == (NoticeKind.ENDED, 3, last)
    assert telling.subscribe({3: last}).places == {}, "it is another's"


def test_a_bucket_that_comes_is_told_of_once_it_is_subscribed_to(
    make_telling: MakeTelling, engine_factory: EngineFactory
) -> None:
    """As after a failover: the heir goes on where the subscriber is."""
    telling = make_telling(engine_factory(opened=0))
    telling.engine.open_buckets(range(4), 1, 1, "n1")
    subscriber = telling.subscribe()
    assert sorted(subscriber.places) == [0, 1, 2, 3]
    _copy_into(telling, 5, engine_factory)
    at = telling.engine.sequence(5)
    telling.engine.open_buckets([5], 7, 1, "n1")
    telling.set(5, b"first")
    telling.until_told(2)
    subscriber.places |= subscriber.feed.add({5: at})
    subscriber.until_told(2)
    assert [(record.kind, record.bucket) for record in subscriber.records] == [(Kind.OPEN, 5), (Kind.SET, 5)]
    assert subscriber.gaps == []


def test_who_comes_right_behind_an_opening_has_missed_nothing(make_telling: MakeTelling, engine_factory: EngineFactory) -> None:
    """The teller begins with this subscriber: the OPEN was before it, and nothing else."""
    telling = make_telling(engine_factory(opened=0))
    _copy_into(telling, 5, engine_factory)
    at = telling.engine.sequence(5)
    telling.engine.open_buckets([5], 7, 1, "n1")
    subscriber = telling.subscribe({5: at})
    assert subscriber.places == {5: make_sequence(7, 0)}
    telling.set(5, b"v")
    subscriber.until_told(1)
    assert subscriber.gaps == []


class Opening:
    """An engine one of whose buckets is opened at the moment at which the teller opens its reader."""

    def __init__(self, engine: Engine, bucket: int) -> None:
        self._engine = engine
        self._bucket = bucket
        self.stream = self

    def open_reader(self, name: str, *, holds: bool) -> StreamReader:
        reader = self._engine.stream.open_reader(name, holds=holds)
        self._engine.open_buckets([self._bucket], 7, 1, "n1")
        return reader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine.stream if hasattr(self._engine.stream, name) else self._engine, name)


def test_a_bucket_that_is_opened_while_the_teller_begins_is_told_of(
    make_telling: MakeTelling, engine_factory: EngineFactory
) -> None:
    telling = make_telling(engine_factory(opened=0))
    telling.engine.open_buckets([1], 1, 1, "n1")
    _copy_into(telling, 5, engine_factory)
    at = telling.engine.sequence(5)
    telling.hub._engine = Opening(telling.engine, 5)  # type: ignore[assignment]
    subscriber = telling.subscribe()
    telling.set(5, b"v")
    telling.until_told(1)
    assert subscriber.feed.add({5: at}) == {5: make_sequence(7, 0)}, "behind the OPEN, which changed nothing"
    subscriber.places[5] = make_sequence(7, 0)
    subscriber.until_told(1)
    assert (subscriber.values, subscriber.gaps) == ([b"v"], [])


# --- coming back


def test_who_comes_back_is_told_what_it_missed_while_that_is_held(telling: Telling) -> None:
    other, subscriber = telling.subscribe(), telling.subscribe()
    telling.set(3, b"one")
    subscriber.until_told(1)
    telling.leave(subscriber)
    for value in (b"two", b"three"):
        telling.set(3, value)
    other.until_told(3)
    again = telling.subscribe(subscriber.places)
    telling.set(3, b"four")
    again.until_told(3)
    assert (again.values, again.gaps) == ([b"two", b"three", b"four"], [])


def test_who_was_away_for_too_long_is_told_of_a_gap(telling: Telling) -> None:
    subscriber = telling.subscribe()
    telling.set(3, b"one")
    subscriber.until_told(1)
    telling.leave(subscriber)
    telling.end_unused()  # it was the last one: nothing is held any more
    missed = telling.set(3, b"two")
    again = telling.subscribe(subscriber.places)
    telling.set(3, b"three")
    again.until_told(1)
    assert again.values == [b"three"]
    (gap,) = again.gaps
    assert (gap.bucket, gap.after, gap.upto) == (3, subscriber.places[3], missed)


def test_a_place_of_another_history_is_a_gap(telling: Telling) -> None:
    subscriber = telling.subscribe({3: make_sequence(9, 9)})
    subscriber.places[3] = make_sequence(9, 9)
    subscriber.take(0.1)
    (gap,) = subscriber.gaps
    assert (gap.after, gap.upto) == (make_sequence(9, 9), telling.engine.sequence(3))


def test_who_is_slow_loses_what_is_held_no_more_and_holds_nobody_up(
    make_telling: MakeTelling, engine_factory: EngineFactory
) -> None:
    telling = make_telling(engine_factory(), held_bytes=20_000)
    slow, quick = telling.subscribe(), telling.subscribe()
    for number in range(200):
        telling.set(3, b"%d" % number * 100)
        quick.until_told(number + 1)
    assert quick.gaps == []
    last = telling.engine.sequence(3)
    slow.until(lambda: slow.places[3] == last, "the last change")
    assert slow.gaps
    assert 0 < len(slow.records) < 200


def test_who_is_slow_is_told_of_what_ended_meanwhile(make_telling: MakeTelling, engine_factory: EngineFactory) -> None:
    """And where the bucket came back since, of a gap up to where it came back."""
    telling = make_telling(engine_factory(), held_bytes=4000)
    slow, quick = telling.subscribe(), telling.subscribe()
    last = {bucket: telling.engine.sequence(bucket) for bucket in (2, 3)}
    for bucket in last:
        telling.engine.set_state(bucket, BucketState.FROZEN)
        telling.engine.set_state(bucket, BucketState.ABSENT)
    quick.until(lambda: not {2, 3} & set(quick.places), "the ends")
    other = engine_factory(opened=0)
    other.open_buckets([3], 5, 1, "other")
    for _ in range(4):
        Caller(other).set(key_of(3), b"elsewhere")
    telling.engine.apply(b"".join(other.copy_bucket(3)))
    telling.engine.open_buckets([3], 7, 1, "n1")
    for number in range(30):
        told = telling.hub.stats()["records"]
        telling.set(1, b"%d" % number * 200)
        telling.until_told(told + 1)
    telling.set(3, b"after")
    slow.until(lambda: b"after" in slow.values, "what came after")
    assert 2 not in slow.places, "it ended"
    assert [(gap.after, gap.upto) for gap in slow.gaps if gap.bucket == 3][:1] != [], "what was changed elsewhere is missing"


def test_what_is_held_no_more_never_goes_back() -> None:
    """A bucket came back behind what other primaries made; then what was told before that is let go of."""
    held = Held(1, [0])
    one, other = make_sequence(5, 10), make_sequence(6, 20)
    held.add(Told(b"", (Head(Kind.SET, 0, one, 0, 0, 0),)))
    held.begin_at(0, other)
    held.add(Told(b"", ()))
    assert (held.front, held.lost) == (1, [other])


def test_a_teller_that_is_behind_tells_of_a_gap(make_telling: MakeTelling, engine_factory: EngineFactory) -> None:
    """The stream goes on without it: also in buckets of which nothing comes any more."""
    telling = make_telling(engine_factory(stream_bytes=64 << 10))
    subscriber = telling.subscribe()
    teller = telling.teller
    with teller.lock:
        telling.set(2, b"never told")
        for number in range(400):
            telling.set(3, b"%d" % number * 300)
        last = telling.engine.sequence(3)
    subscriber.until(lambda: subscriber.places[3] == last, "the last change")
    subscriber.until(lambda: subscriber.places[2] == telling.engine.sequence(2), "the quiet bucket")
    assert {gap.bucket for gap in subscriber.gaps} >= {3}


def test_a_loss_is_made_up_for_while_others_go_on_writing(make_telling: MakeTelling, engine_factory: EngineFactory) -> None:
    """There is no moment in which nothing comes. The quiet bucket has its gap, the new one is told of, and proofs come."""
    telling = make_telling(engine_factory(opened=0, stream_bytes=64 << 10))
    telling.engine.open_buckets(range(4), 1, 1, "n1")
    subscriber = telling.subscribe()
    teller = telling.teller
    with teller.lock:
        telling.set(2, b"never told")
        telling.engine.open_buckets([5], 1, 1, "n1")
        for number in range(400):
            telling.set(3, b"%d" % number * 300)
    stopping = threading.Event()

    def write() -> None:
        caller = Caller(telling.engine)
        while not stopping.wait(0.001):
            caller.set(key_of(3), b"on and on")

    writing = Task(write)
    try:
        subscriber.until(lambda: subscriber.places[2] == telling.engine.sequence(2), "the quiet bucket")
        until_proven(subscriber)
        wait_until(lambda: 5 in subscriber.feed.add({5: FROM_NOW}), "the bucket whose OPEN is lost")
    finally:
        stopping.set()
    writing.result()


def test_a_loss_ends_what_was_taken_from_here_meanwhile(
    make_telling: MakeTelling, engine_factory: EngineFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bucket is back already, and its OPEN among what is lost; nobody looks for ends otherwise."""
    telling = make_telling(engine_factory(stream_bytes=64 << 10))
    subscriber = telling.subscribe()
    teller = telling.teller
    monkeypatch.setattr(teller, "_look_for_ends", lambda: None)
    take, entered, go_on = teller._take, threading.Event(), threading.Event()

    def take_later(batch: Batch) -> None:
        entered.set()
        assert go_on.wait(PATIENCE_S)
        take(batch)

    monkeypatch.setattr(teller, "_take", take_later)
    telling.set(3, b"first")
    assert entered.wait(PATIENCE_S)
    telling.engine.set_state(3, BucketState.FROZEN)
    telling.engine.set_state(3, BucketState.ABSENT)
    telling.engine.open_buckets([3], 2, 1, "n1")
    for number in range(400):
        telling.set(2, b"%d" % number * 300)
    go_on.set()
    subscriber.until(lambda: 3 not in subscriber.places, "the end of the bucket")
    wait_until(lambda: 3 in subscriber.feed.add({3: FROM_NOW}), "its being told of again")


def test_what_waits_already_is_no_part_of_a_loss(make_telling: MakeTelling, engine_factory: EngineFactory) -> None:
    telling = make_telling(engine_factory(stream_bytes=64 << 10))
    engine = telling.engine
    point = engine.open_commit_point("backup", engine.stream.head)
    engine.set_commit_points(3, [point])
    subscriber = telling.subscribe()
    writing = Task(lambda: Caller(engine).set(key_of(3), b"waits", budget_ms=FOREVER_MS))
    wait_until(lambda: 3 in telling.teller._waiting, "the change to be read")
    with telling.teller.lock:
        for number in range(400):
            telling.set(2, b"%d" % number * 300)
    subscriber.until(lambda: any(gap.bucket == 2 for gap in subscriber.gaps), "the loss")
    point.advance(1 << 40)
    writing.result()
    subscriber.until(lambda: b"waits" in subscriber.values, "what waited")
    telling.set(2, b"last")
    subscriber.until(lambda: b"last" in subscriber.values, "what came last")
    notices = [told.notice for told in telling.teller.held.entries(telling.teller.held.front) if told.notice is not None]
    assert {notice.bucket for notice in notices} == {2}


def test_after_an_unforeseen_error_it_goes_on_behind_a_gap(telling: Telling, monkeypatch: pytest.MonkeyPatch) -> None:
    subscriber = telling.subscribe()
    teller = telling.teller
    take, places = teller._take, dict(subscriber.places)

    def fail(_batch: object) -> None:
        monkeypatch.setattr(teller, "_take", take)
        raise RuntimeError("on purpose")

    monkeypatch.setattr(teller, "_take", fail)
    telling.set(3, b"never told")
    subscriber.until(lambda: not subscriber.places, "the end of all buckets")
    wait_until(lambda: 3 in subscriber.feed.add({3: places[3]}), "its being told of again")
    subscriber.places[3] = places[3]
    telling.set(3, b"after")
    subscriber.until_told(1)
    assert (subscriber.values, len(subscriber.gaps)) == ([b"after"], 1)
    assert teller.counts.errors == 1
    teller.counts.errors = 0


# --- what is selected


@pytest.mark.parametrize(
    ("selection", "wanted"),
    [
        (Selection(Selects.KEY, b"user:1", values=True), [b"user:1"]),
        (Selection(Selects.PREFIX, b"user:", values=True), [b"user:1", b"user:10", b"user:2"]),
        (Selection(Selects.PREFIX, b"", values=True), [b"user:1", b"user:10", b"other", b"user:2", b"u"]),
    ],
)
def test_only_what_is_selected_is_told(telling: Telling, selection: Selection, wanted: list[bytes]) -> None:
    subscriber = telling.subscribe(selection=selection)
    for key in (b"user:1", b"user:10", b"other", b"user:2", b"u"):
        telling.caller.set(key, b"value of " + key)
    telling.until_told(5)
    subscriber.until_told(len(wanted))
    subscriber.take(0.05)
    assert [record.key for record in subscriber.records] == wanted
    assert subscriber.values == [b"value of " + key for key in wanted]


def test_a_value_that_goes_on_as_the_prefix_does_is_no_part_of_the_key(telling: Telling) -> None:
    subscriber = telling.subscribe(selection=Selection(Selects.PREFIX, b"user:", values=False))
    telling.caller.set(b"u", b"ser:1")
    telling.caller.set(b"user:", b"v")
    subscriber.until_told(1)
    assert [record.key for record in subscriber.records] == [b"user:"]


def test_it_answers_in_time_where_all_that_comes_is_not_asked_for(telling: Telling, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is always something that was not looked at: the time is up all the same."""
    subscriber = telling.subscribe(selection=Selection(Selects.KEY, b"never", values=True))
    telling.set(3, b"v")
    telling.until_told(1)
    feed = subscriber.feed
    entry = next(iter(feed._teller.held.entries(feed._teller.held.front)))
    monkeypatch.setattr(feed, "_entries_locked", lambda _found: [entry])
    asking = Task(lambda: subscriber.take(0.05))
    assert asking.result() == []


def test_a_flush_concerns_every_subscriber_of_the_bucket(telling: Telling) -> None:
    subscriber = telling.subscribe(selection=Selection(Selects.KEY, key_of(3), values=True))
    telling.set(3, b"v", number=1)
    telling.engine.flush(2**62)
    subscriber.until(lambda: any(r.kind == Kind.FLUSH and r.bucket == 3 for r in subscriber.records), "the flush")


def test_values_are_left_out_where_they_are_not_asked_for(telling: Telling) -> None:
    subscriber = telling.subscribe(selection=Selection(Selects.EVERYTHING, b"", values=False))
    version = telling.caller.set(key_of(3), b"value", flags=7)
    (record,) = subscriber.until_told(1)
    assert (record.key, record.value, record.flags, record.sequence) == (key_of(3), b"", 7, version)
    telling.engine.set_state(3, BucketState.FROZEN)
    telling.engine.open_buckets([3], 2, 1, "n1")
    subscriber.until_told(2)
    assert subscriber.records[1].value != b"", "what an OPEN says is no value"


def test_how_far_a_bucket_is_of_which_nothing_was_asked_for_is_told_now_and_then(
    telling: Telling, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who comes back begins there, and not where something was last asked for."""
    monkeypatch.setattr("rcache.feeds.feed.PLACES_S", 0.0)
    subscriber = telling.subscribe(selection=Selection(Selects.PREFIX, b"user:", values=True))
    before = subscriber.places[3]
    last = telling.set(3, b"v")
    telling.until_told(1)
    subscriber.until(lambda: bool(subscriber.notices), "the place")
    (place,) = subscriber.notices
    assert place == (NoticeKind.PLACE, 3, before, last)


def test_only_the_buckets_that_were_asked_for_are_told_of(telling: Telling) -> None:
    subscriber = telling.subscribe({2: FROM_NOW, 3: FROM_NOW, 99: FROM_NOW})
    assert sorted(subscriber.places) == [2, 3]
    for bucket in (1, 2, 3, 4):
        telling.set(bucket, b"%d" % bucket)
    subscriber.until_told(2)
    telling.until_told(4)
    subscriber.take(0.05)
    assert subscriber.values == [b"2", b"3"]


# --- proofs


def until_proven(subscriber: Subscriber) -> None:
    subscriber.until(lambda: subscriber.events.behind_ms != UNPROVEN, "a proof")


def test_it_is_proven_that_all_was_told(telling: Telling) -> None:
    subscriber = telling.subscribe()
    until_proven(subscriber)
    telling.set(3, b"v")
    subscriber.until_told(1)
    subscriber.until(lambda: subscriber.events.behind_ms == 0, "a proof of after the request")


def test_nothing_is_proven_before_what_was_committed_is_told(telling: Telling) -> None:
    """Invariant 2 of a feed: a proof lies behind events that this feed was not told yet."""
    subscriber = telling.subscribe()
    until_proven(subscriber)
    for number in range(30):
        telling.set(3, b"%d" % number * 100)
        telling.until_told(number + 1)
    wait_until(lambda: telling.hub.stats()["records"] == 30, "all of it")
    teller = telling.teller
    with teller.lock:
        told_at = teller.proofs.newest_at
        teller.proofs.want(told_at + 1000)  # one that lies behind all of it
    wait_until(lambda: teller.proofs.newest_at > told_at, "a proof")
    before = subscriber.events
    subscriber.take(0.0, bytes_max=1)
    assert len(subscriber.records) == 1
    assert subscriber.events.behind_ms == UNPROVEN or subscriber.events.behind_ms > before.behind_ms


def test_without_its_leases_a_primary_proves_nothing(telling: Telling) -> None:
    engine = telling.engine
    point = engine.open_commit_point("backup", engine.stream.head, 0)
    engine.set_commit_points(3, [point])
    subscriber = telling.subscribe()
    for _ in range(5):
        subscriber.take(0.05)
        assert subscriber.events.behind_ms == UNPROVEN
    point.lease((1 << 63) - 1)
    until_proven(subscriber)


@pytest.mark.parametrize("state", [BucketState.FROZEN, BucketState.ABSENT])
def test_of_what_is_not_this_nodes_alone_nothing_is_proven(telling: Telling, state: BucketState) -> None:
    subscriber = telling.subscribe()
    until_proven(subscriber)
    telling.engine.set_state(3, BucketState.FROZEN)
    if state is BucketState.FROZEN:
        teller = telling.teller
        proofs = teller.counts.proofs
        threading.Event().wait(0.1)
        subscriber.take(0.1)
        assert teller.counts.proofs <= proofs + 1, "at most one that was under way"
    else:
        telling.engine.set_state(3, state)
        subscriber.until(lambda: 3 not in subscriber.places, "the end of the bucket")
        until_proven(subscriber)


# --- the end


def test_when_the_node_stops_whoever_waits_is_told(telling: Telling) -> None:
    subscriber = telling.subscribe()
    waiting = Task(lambda: subscriber.take(PATIENCE_S))
    assert telling.hub.stop(PATIENCE_S)
    with pytest.raises(FeedOver):
        waiting.result()
    with pytest.raises(FeedOver):
        Feed(telling.hub, ALL)


def feed_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "feeds"]


def test_a_while_after_the_last_subscriber_the_thread_ends_and_another_one_begins_anew(telling: Telling) -> None:
    for _ in range(3):
        subscriber = telling.subscribe()
        telling.set(3, b"v")
        subscriber.until_told(1)
        telling.end_unused()
        assert len(feed_threads()) == 1, "it is in use"
        telling.leave(subscriber)
        telling.hub.end_unused()
        assert len(feed_threads()) == 1, "the while has only begun"
        telling.end_unused()
        assert telling.hub.stats()["bytes_held"] == 0
        assert feed_threads() == []


def test_who_comes_back_within_that_while_has_missed_nothing(telling: Telling) -> None:
    subscriber = telling.subscribe()
    telling.set(3, b"one")
    subscriber.until_told(1)
    telling.leave(subscriber)
    telling.set(3, b"two")
    telling.hub.end_unused()
    again = telling.subscribe(subscriber.places)
    telling.end_unused()  # it is in use again
    telling.set(3, b"three")
    again.until_told(2)
    assert (again.values, again.gaps) == ([b"two", b"three"], [])


def test_the_stop_ends_what_nobody_uses_at_once(telling: Telling) -> None:
    telling.leave(telling.subscribe())
    assert telling.hub.stop(PATIENCE_S)
    assert feed_threads() == []


def test_after_a_teller_that_ended_by_itself_there_is_another(telling: Telling) -> None:
    subscriber = telling.subscribe()
    assert telling.teller.stop(PATIENCE_S)
    with pytest.raises(FeedOver):
        subscriber.take()
    again = telling.subscribe()
    telling.set(3, b"v")
    again.until_told(1)


def test_where_there_can_be_no_thread_the_next_subscriber_may_have_one(
    telling: Telling, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        for _ in range(100):  # more than there are readers of a stream: none is left behind
            with pytest.raises(NoTeller):
                Feed(telling.hub, ALL)
    assert (telling.hub.stats()["feeds"], telling.applied._taps) == (0, ())
    subscriber = telling.subscribe()
    telling.set(3, b"v")
    subscriber.until_told(1)


def _set(bucket: int, value: bytes) -> tuple[Any, ...]:
    return (Opcode.SET, 0, 0, key_of(bucket), value)


def _copy_into(telling: Telling, bucket: int, engine_factory: EngineFactory) -> None:
    """A whole copy of a bucket in which another made two changes in epoch 5."""
    other = engine_factory(opened=0)
    other.open_buckets([bucket], 5, 1, "other")
    for value in (b"one", b"two"):
        Caller(other).set(key_of(bucket), value)
    telling.engine.apply(b"".join(other.copy_bucket(bucket)))
