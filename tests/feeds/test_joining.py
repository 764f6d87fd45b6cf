"""Where a bucket that joins a feed is told of from: what was told before and is held, each once, however far it is behind."""

from __future__ import annotations

import time

import pytest

from rcache.cluster.bucket_state import BucketState
from rcache.feeds import feed as feed_module
from rcache.records.record import Kind, make_sequence
from rcache_client.wire.feeds import FROM_NOW, UNPROVEN, Notice, NoticeKind
from tests.contract.conftest import EngineFactory
from tests.contract.harness import Caller, wait_until
from tests.feeds.conftest import MakeTelling
from tests.feeds.harness import Telling, key_of


def test_asking_again_and_again_for_old_places_keeps_nothing(telling: Telling) -> None:
    """What is told again lies in what is held for all; a feed keeps its place in it, and one gap for each bucket."""
    subscriber = telling.subscribe()
    old = dict(subscriber.places)
    for number in range(50):
        telling.set(number % 8, b"%d" % number)
    telling.until_told(50)
    for _ in range(20):
        subscriber.places = subscriber.feed.add(old)
        for bucket in range(8):
            subscriber.feed.add({bucket: 1 << 63})  # of another history: a gap
    feed = subscriber.feed
    assert len(feed._gaps) == 8
    assert len(feed._again) <= 8
    subscriber.places = feed.add(old)
    assert feed._gaps == {}
    subscriber.until_told(50)
    assert sorted(map(int, subscriber.values)) == list(range(50))
    assert subscriber.gaps == []


def test_two_buckets_that_join_one_after_the_other_are_both_told_once(
    telling: Telling, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second comes while the first is still being told again; few entries are looked at at a time."""
    monkeypatch.setattr(feed_module, "LOOKS_MAX", 2)
    keeper, subscriber = telling.subscribe(), telling.subscribe({1 << 20: 0})
    old = dict(keeper.places)
    for number in range(20):
        telling.set(1 + number % 3, b"%d" % number)
        telling.until_told(number + 1)
    subscriber = telling.subscribe({1: old[1]})
    subscriber.take(0.0, bytes_max=1)
    subscriber.places |= subscriber.feed.add({2: old[2]})
    subscriber.take(0.0, bytes_max=1)
    telling.set(2, b"after")
    subscriber.until_told(15)
    assert [value for value in subscriber.values if value != b"after"] != []
    assert len(set(subscriber.values)) == 15
    assert subscriber.values[-1] == b"after"
    assert subscriber.gaps == []


def test_nothing_is_proven_before_what_was_told_before_is_here(telling: Telling) -> None:
    keeper = telling.subscribe()
    old = dict(keeper.places)
    for number in range(3):
        telling.set(3, b"%d" % number * 100)
        telling.until_told(number + 1)
    subscriber = telling.subscribe({3: old[3]})
    teller = telling.teller
    told_at = time.monotonic()
    teller.proofs.want(told_at)
    wait_until(lambda: teller.proofs.newest_at >= told_at, "a proof")
    subscriber.take(0.0, bytes_max=1)
    assert (len(subscriber.records), subscriber.events.behind_ms) == (1, UNPROVEN)
    subscriber.until_told(3)
    subscriber.until(lambda: subscriber.events.behind_ms != UNPROVEN, "a proof")


@pytest.mark.parametrize("more", [8, 30])
def test_what_is_let_go_of_while_it_is_told_again_is_a_gap(
    make_telling: MakeTelling, engine_factory: EngineFactory, more: int
) -> None:
    """Some of that, or all of it and more."""
    telling = make_telling(engine_factory(), held_bytes=8000)
    keeper = telling.subscribe()
    old = dict(keeper.places)
    for number in range(10):
        telling.set(3, b"%d" % number * 100)
        telling.until_told(number + 1)
    subscriber = telling.subscribe({3: old[3]})
    subscriber.take(0.0, bytes_max=1)
    for number in range(more):
        telling.set(3, b"%d" % number * 100)
        telling.until_told(11 + number)
    last = telling.engine.sequence(3)
    subscriber.until(lambda: subscriber.places[3] == last, "the last change")
    assert subscriber.gaps


def test_a_gap_that_lies_before_the_place_that_was_asked_for_is_none(
    make_telling: MakeTelling, engine_factory: EngineFactory
) -> None:
    """A feed that is behind in what is held joins a bucket at a later place: nothing takes it back to an earlier one."""
    telling = make_telling(engine_factory(opened=0))
    telling.engine.open_buckets([1, 5], 1, 1, "n1")
    slow, quick = telling.subscribe({1: FROM_NOW}), telling.subscribe()
    telling.set(5, b"before")
    telling.until_told(1)
    teller = telling.teller
    with teller.lock:
        teller._add_notice_locked(Notice(NoticeKind.GAP, 5, teller.last[5], teller.last[5] + 3))
        teller.last[5] += 3
    telling.engine.set_state(5, BucketState.FROZEN)
    telling.engine.set_state(5, BucketState.ABSENT)
    quick.until(lambda: 5 not in quick.places, "the end of the bucket")
    other = engine_factory(opened=0)
    other.open_buckets([5], 5, 1, "other")
    Caller(other).set(key_of(5), b"elsewhere")
    telling.engine.apply(b"".join(other.copy_bucket(5)))
    place = telling.engine.sequence(5)
    telling.engine.open_buckets([5], 7, 1, "n1")
    telling.set(5, b"after")
    wait_until(lambda: teller.last[5] == make_sequence(7, 1), "its being told of again")
    slow.places |= slow.feed.add({5: place})
    slow.until(lambda: b"after" in slow.values, "what came after")
    assert ([record.kind for record in slow.records], slow.notices) == ([Kind.OPEN, Kind.SET], [])


def test_an_opening_of_another_is_not_taken_for_the_one_that_this_node_made(
    make_telling: MakeTelling, engine_factory: EngineFactory
) -> None:
    """When the teller begins the newest record here is another's OPEN; this node's own continued from somewhere long before."""
    telling = make_telling(engine_factory(opened=0))
    engine = telling.engine
    engine.open_buckets([5], 1, 1, "n1")
    before = telling.set(5, b"one")
    engine.set_state(5, BucketState.FROZEN)
    engine.open_buckets([5], 2, 1, "n1")
    telling.set(5, b"missed")
    engine.set_state(5, BucketState.FROZEN)
    engine.set_state(5, BucketState.BACKUP)
    other = engine_factory(opened=0)
    other.apply(b"".join(engine.copy_bucket(5)))
    reader = other.stream.open_reader("link", holds=True)
    other.open_buckets([5], 3, 1, "other")
    engine.apply(bytes(reader.take(1 << 20, 0.0).body))
    telling.subscribe({5: 0})
    engine.open_buckets([5], 4, 1, "n1")
    telling.until_told(1)
    subscriber = telling.subscribe({5: before})
    subscriber.until_told(1)
    (gap,) = subscriber.gaps
    assert (gap.after, gap.upto) == (before, make_sequence(3, 0))
