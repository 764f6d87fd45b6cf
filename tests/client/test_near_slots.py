"""The near cache's slots and its listener, without sockets and threads: crossings of reads, events, writes and drops."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from rcache_client import NearCache, near_slots
from rcache_client.feed_set import Told
from rcache_client.near_cache import NearReads
from rcache_client.near_feed import NearFeed
from rcache_client.near_slots import LARGEST_SHARE, SLOT_BYTES, Kept, Slot, Slots
from rcache_client.routing import Table
from rcache_client.wire.feeds import Notice, NoticeKind
from rcache_client.wire.grammar import BadPayload
from rcache_client.wire.opcodes import Status

from .near_model import FLUSH, OPEN, REMOVE, SET, record

STALENESS_S = 1.0
KEY, OTHER = b"key", b"other"
HERE, THERE = 3, 5
"""Buckets: a key is in whatever one says."""


class Feed:
    """What the listener knows a feed by."""

    def __init__(self, name: str) -> None:
        self.door = SimpleNamespace(name=name)


class Near:
    """Slots and the listener, with a clock to turn, and steps by short names."""

    def __init__(self, bytes_max: int = 1 << 20) -> None:
        self.now = 100.0
        self.slots = Slots(bytes_max, lambda: self.now)
        self.feed: Any = Feed("one")
        self.second: Any = Feed("two")
        self.table: Any = SimpleNamespace(every=(self.feed.door, self.second.door))
        self.listener = NearFeed(SimpleNamespace(table=self.table), self.slots, b"", STALENESS_S)  # type: ignore[arg-type]
        self.begin(HERE, THERE)
        self.take(proven_at=self.now)

    def begin(self, *buckets: int, feed: Any = None) -> None:
        self.listener.begun(feed or self.feed, dict.fromkeys(buckets, 0))

    def take(self, *records: bytes, feed: Any = None, proven_at: float | None = None, **more: Any) -> dict[int, int]:
        told = Told(more.get("gaps", ()), b"".join(records), more.get("places", {}), more.get("ended", ()), proven_at)
        reached = self.listener.take(feed or self.feed, told)
        self.slots.check()
        return dict(reached)

    def event(self, sequence: int, key: bytes = KEY, kind: int = SET) -> None:
        self.take(record(kind, HERE, sequence, key))

    def get(self, version: int, key: bytes = KEY, bucket: int = HERE) -> None:
        """A whole read that is answered with that version."""
        self.answer(self.slots.plant(key, bucket), version, key)

    def answer(
        self, marker: Slot | None, version: int, key: bytes = KEY, value: bytes | None = None, ttl: float = 60.0
    ) -> None:
        self.slots.settle(key, marker, version, Kept(0, value or b"%d" % version, self.now + ttl))
        self.slots.check()

    def served(self, key: bytes = KEY) -> int:
        """The version that a get would be served; 0: none."""
        slot = self.slots.find(key)
        assert slot is None or slot.value == b"%d" % slot.version
        return 0 if slot is None else slot.version


@pytest.fixture
def near() -> Near:
    return Near()


# --- the reads that fill it


class Asked(NearReads):
    """Its reads, answered with that (flags, version, time left in ms, value)."""

    def __init__(self, near: Near, table: Table, answer: tuple[int, int, int, bytes], max_age: float = 60.0) -> None:
        caller: Any = SimpleNamespace(slots=near.slots, read=lambda *_: (Status.OK, answer))
        router: Any = SimpleNamespace(table=table)
        super().__init__(NearCache(max_age=max_age), caller, router)
        self.near = near

    def kept_s(self) -> float:
        """For how long from before the request on it is kept."""
        self._get(KEY, 0.0)
        return self.near.slots._table[KEY].expires - self.near.now


VIEW: Any = SimpleNamespace()


@pytest.mark.parametrize(
    ("left_ms", "max_age_s", "kept_s"),
    [(0, 60.0, 60.0), (60_000, 5.0, 5.0), (10_000, 60.0, 10.0), (1, 60.0, 0.0), (2, 60.0, 0.001)],
)
def test_no_value_is_kept_beyond_its_time_at_the_server(near: Near, left_ms: int, max_age_s: float, kept_s: float) -> None:
    """Whose milliseconds are whole ones, and may be shorter than these: by 1 in 2,000, and 1 ms in each second."""
    near.begin(0)
    asked_s = Asked(near, Table(VIEW), (0, 7, left_ms, b"7"), max_age_s).kept_s()
    left_s = left_ms / 1000 - 0.001
    assert asked_s <= (min(left_s / (1 + 1 / 2000 + 1 / 1000), max_age_s) if left_ms else max_age_s) + 1e-9
    assert asked_s == pytest.approx(kept_s, abs=0.05)


def test_what_was_asked_for_before_the_view_was_known_is_not_kept(near: Near) -> None:
    """Its bucket was not known by then. (Another thread may have begun the feeds meanwhile.)"""
    near.begin(0)
    Asked(near, Table(), (0, 7, 0, b"7"))._get(KEY, 0.0)
    assert KEY not in near.slots._table
    assert Asked(near, Table(VIEW), (0, 7, 0, b"7")).kept_s() > 0


# --- what is served, and until when


def test_what_was_read_is_served_until_it_is_changed(near: Near) -> None:
    near.get(7)
    assert near.served() == 7
    near.event(8)
    assert near.served() == 0
    assert near.slots.stats()[:7] == (1, 1, 0, 1, 0, 1, 0)


@pytest.mark.parametrize(("kind", "kept"), [(SET, 0), (REMOVE, 0)])
def test_any_change_of_the_key_counts(near: Near, kind: int, kept: int) -> None:
    near.get(7)
    near.event(8, kind=kind)
    assert near.served() == kept


def test_the_event_of_what_is_held_or_of_something_older_changes_nothing(near: Near) -> None:
    near.get(7)
    near.event(6)
    near.event(7)
    near.event(9, OTHER)
    assert near.served() == 7


def test_nothing_is_served_beyond_what_was_proven(near: Near) -> None:
    near.get(7)
    near.now += STALENESS_S - 0.01
    assert near.served() == 7
    near.now += 0.02
    assert near.served() == 0
    near.take(proven_at=near.now - 0.5)
    assert near.served() == 7
    near.take(proven_at=near.now - 0.8)  # an older proof takes nothing back
    near.now += 0.4
    assert near.served() == 7
    near.take()  # no proof
    near.now += 0.2
    assert near.served() == 0


def test_before_the_first_proof_nothing_is_served(near: Near) -> None:
    near.begin(9, feed=near.second)
    near.get(7, bucket=9)
    assert near.served() == 0
    near.take(feed=near.second, proven_at=near.now)
    assert near.served() == 7


def test_a_proof_is_of_its_own_feeds_buckets(near: Near) -> None:
    near.begin(9, feed=near.second)
    near.get(7, bucket=9)
    near.take(proven_at=near.now)
    assert near.served() == 0


def test_its_time_to_live_ends_it(near: Near) -> None:
    near.answer(near.slots.plant(KEY, HERE), 7, ttl=0.5)
    near.now += 0.49
    assert near.served() == 7
    near.now += 0.01
    assert near.served() == 0


def test_a_connection_begins_without_a_proof(near: Near) -> None:
    near.listener.lost(near.feed, [HERE, THERE])
    near.begin(HERE)
    near.get(7)
    assert near.served() == 0


# --- crossings: what is told while an answer is on its way


def test_an_answer_that_is_older_than_what_was_told_meanwhile_is_not_kept(near: Near) -> None:
    marker = near.slots.plant(KEY, HERE)
    near.event(8)
    near.event(6)
    near.answer(marker, 7)
    assert near.served() == 0
    assert near.slots.stats()[3:5] == (0, 1)


def test_an_answer_that_shows_what_was_told_meanwhile_is_kept(near: Near) -> None:
    marker = near.slots.plant(KEY, HERE)
    near.event(8)
    near.answer(marker, 8)
    assert near.served() == 8


def test_a_bucket_that_was_lost_and_begun_again_takes_the_marker_along(near: Near) -> None:
    marker = near.slots.plant(KEY, HERE)
    near.listener.lost(near.feed, [HERE])
    near.begin(HERE)  # from now on: what came between is told to nobody
    near.answer(marker, 7)
    near.take(proven_at=near.now)
    assert near.served() == 0


@pytest.mark.parametrize("kind", [OPEN, FLUSH, 99])
def test_what_is_of_a_whole_bucket_takes_all_of_it_along_and_nothing_else(near: Near, kind: int) -> None:
    near.get(7)
    near.get(9, OTHER, THERE)
    marker = near.slots.plant(b"third", HERE)
    near.take(record(kind, HERE, 20))
    near.answer(marker, 8, b"third")
    assert [near.served(key) for key in (KEY, OTHER, b"third")] == [0, 9, 0]
    assert near.slots.stats().dropped_buckets == 1


def test_a_gap_takes_all_of_its_bucket_along(near: Near) -> None:
    near.get(7)
    near.get(9, OTHER, THERE)
    assert near.take(gaps=[Notice(NoticeKind.GAP, HERE, 4, 30)]) == {HERE: 30}
    assert [near.served(), near.served(OTHER)] == [0, 9]


def test_a_lost_bucket_is_dropped_and_not_planted_in(near: Near) -> None:
    near.get(7)
    near.get(9, OTHER, THERE)
    near.listener.lost(near.feed, [HERE])
    assert [near.served(), near.served(OTHER)] == [0, 9]
    assert near.slots.plant(KEY, HERE) is None
    near.answer(None, 8)
    assert near.served() == 0


def test_a_bucket_that_ends_with_an_answer_is_gone_before_what_that_proves(near: Near, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that tells of it no more proves nothing of it."""
    near.get(7)
    near.get(9, OTHER, THERE)
    near.now += 2.0
    lost = near.slots.lost

    def lose(buckets: Any) -> None:
        assert near.served() == 0
        lost(buckets)

    monkeypatch.setattr(near.slots, "lost", lose)
    near.take(ended=[HERE], places={HERE: 40}, proven_at=near.now)
    assert [near.served(), near.served(OTHER)] == [0, 9]


def test_two_reads_that_cross_the_later_one_shows_more(near: Near) -> None:
    """A is answered with 8, after B, which was planted later, was with 7. What A showed must not be followed by 7."""
    a = near.slots.plant(KEY, HERE)
    b = near.slots.plant(KEY, HERE)
    near.answer(a, 8)
    near.answer(b, 7)
    assert near.served() == 0


def test_two_reads_that_cross_the_older_one_is_kept_first(near: Near) -> None:
    a = near.slots.plant(KEY, HERE)
    b = near.slots.plant(KEY, HERE)
    near.answer(b, 7)
    assert near.served() == 7
    near.answer(a, 8)
    assert near.served() == 0


def test_a_read_whose_bucket_was_not_told_of_says_what_it_saw_too(near: Near) -> None:
    a = near.slots.plant(KEY, 9)
    near.begin(9)
    b = near.slots.plant(KEY, 9)
    near.answer(a, 8)
    near.answer(b, 7)
    assert (a, near.served()) == (None, 0)


def test_a_read_that_found_nothing_leaves_nothing(near: Near) -> None:
    near.slots.plant(KEY, HERE)
    b = near.slots.plant(KEY, HERE)
    near.slots.drop(KEY)  # A found that it is deleted
    near.answer(b, 7)
    assert near.served() == 0


def test_a_read_that_failed_takes_its_own_marker_only(near: Near) -> None:
    a = near.slots.plant(KEY, HERE)
    b = near.slots.plant(KEY, HERE)
    near.slots.settle(KEY, a, 0, None)
    near.answer(b, 7)
    assert near.served() == 7
    near.slots.settle(KEY, near.slots.plant(KEY, HERE), 0, None)
    assert near.slots.stats().bytes == 0


def test_an_own_write_takes_the_read_under_way_along(near: Near) -> None:
    marker = near.slots.plant(KEY, HERE)
    near.slots.drop(KEY)  # it begins, and ends, while the answer is on its way
    near.answer(marker, 7)
    assert near.served() == 0
    near.get(8)
    near.event(8)  # its event comes late
    assert near.served() == 8


def test_an_own_flush_takes_everything_along(near: Near) -> None:
    near.get(7)
    marker = near.slots.plant(OTHER, THERE)
    near.slots.drop_all()
    near.answer(marker, 8, OTHER)
    assert [near.served(), near.served(OTHER)] == [0, 0]


def test_a_value_that_is_none_to_get_is_not_kept_but_known(near: Near) -> None:
    a = near.slots.plant(KEY, HERE)
    b = near.slots.plant(KEY, HERE)
    near.slots.settle(KEY, a, 8, None)
    near.answer(b, 7)
    assert near.served() == 0
    near.slots.settle(KEY, near.slots.plant(KEY, HERE), 9, None)
    assert near.slots.stats().bytes == 0


# --- looks without a lock that are held up


def held_up(near: Near, monkeypatch: pytest.MonkeyPatch, where: str, meanwhile: Any) -> int:
    """What a get is served that is held up at that place, while something happens."""
    if where == "clock":
        once = iter([meanwhile])
        monkeypatch.setattr(near.slots, "clock", lambda: next(once, lambda: None)() or near.now)
        return near.served()
    slot = near.slots._table[KEY]

    class Held(near_slots.Live):
        __slots__ = ()

        @property
        def until(self) -> float:  # type: ignore[override]
            meanwhile()
            return live.until

    live, slot.live = slot.live, Held.__new__(Held)
    found = near.slots.find(KEY)
    return 0 if found is None else found.version


@pytest.mark.parametrize("where", ["clock", "until"])
@pytest.mark.parametrize("how", ["event", "flush", "gap", "lost", "dropped", "planted anew"])
def test_a_proof_is_not_taken_for_one_of_what_went_before_it(
    near: Near, monkeypatch: pytest.MonkeyPatch, where: str, how: str
) -> None:
    """The reader took the slot; long after the last proof an answer brings the change, and then a proof."""
    near.get(7)
    near.now += 5.0

    def meanwhile() -> None:
        if how == "event":
            near.listener.take(near.feed, Told((), record(SET, HERE, 8, KEY), {}, (), None))
        elif how == "flush":
            near.listener.take(near.feed, Told((), record(FLUSH, HERE, 8), {}, (), None))
        elif how == "gap":
            near.listener.take(near.feed, Told([Notice(NoticeKind.GAP, HERE, 7, 8)], b"", {}, (), None))
        elif how == "lost":
            near.slots.lost([HERE])
        elif how == "dropped":
            near.slots.drop(KEY)
        else:
            near.slots.plant(KEY, HERE)
        near.listener.take(near.feed, Told((), b"", {}, (), near.now))

    assert held_up(near, monkeypatch, where, meanwhile) == 0


# --- room


def test_the_least_recently_used_go_first() -> None:
    near = Near(10 * (SLOT_BYTES + 5))
    for number in range(10):
        near.get(100 + number, b"k%d" % number)
    for number in range(0, 10, 2):
        assert near.served(b"k%d" % number)
    for number in range(5):
        near.get(200 + number, b"n%d" % number)
    assert [number for number in range(10) if near.served(b"k%d" % number)] == [0, 2, 4, 6, 8]
    assert near.slots.stats().evictions == 5


def test_room_is_made_with_a_bound_on_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_slots, "CHANCES", 3)
    near = Near(10 * (SLOT_BYTES + 5))
    for number in range(10):
        near.get(100 + number, b"k%d" % number)
        assert near.served(b"k%d" % number)
    near.get(200, b"n0")
    assert [number for number in range(10) if not near.served(b"k%d" % number)] == [3]


def test_what_is_too_large_is_not_kept_and_lets_the_others_be(near: Near) -> None:
    near.get(7)
    near.answer(near.slots.plant(OTHER, HERE), 8, OTHER, bytes((1 << 20) // LARGEST_SHARE + 1))
    assert [near.served(), near.served(OTHER)] == [7, 0]
    assert near.slots.stats()[3:5] == (1, 1)


def test_markers_take_room_too() -> None:
    near = Near(5 * (SLOT_BYTES + 4))
    markers = [near.slots.plant(b"k%d" % number, HERE) for number in range(20)]
    near.slots.check()
    for number, marker in enumerate(markers):
        near.answer(marker, 7, b"k%d" % number)
    assert near.slots.stats().entries <= 5


def test_a_slot_takes_what_it_is_counted_for() -> None:
    import tracemalloc

    near = Near(64 << 20)
    near.begin(*range(64))
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(5000):
            key = b"key-%08d" % number
            kept = Kept(0, bytes(100), near.now + number)
            near.slots.settle(key, near.slots.plant(key, number % 64), (1 << 41) + number, kept)
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert 0.8 < taken / near.slots.stats().bytes < 1.2


# --- the end, and a new beginning


def test_a_closed_one_holds_nothing_and_takes_nothing_in(near: Near) -> None:
    near.get(7)
    marker = near.slots.plant(OTHER, HERE)
    near.slots.close()
    near.answer(marker, 8, OTHER)
    near.begin(HERE)
    near.get(9)
    assert near.slots.stats()[8:] == (0, 0, 0, "")


def test_a_forked_one_is_empty(near: Near) -> None:
    near.get(7)
    near.slots._lock.acquire()
    near.slots.forget()
    assert (near.served(), near.slots.stats()[:4]) == (0, (0, 0, 0, 0))


def test_hits_are_counted_however_often_one_looks(near: Near) -> None:
    near.get(7)
    for hits in range(1, 5):
        assert near.served()
        assert near.slots.stats().hits == near.slots.stats().hits == hits


# --- what nodes say


def test_how_far_each_bucket_was_told(near: Near) -> None:
    records = [record(SET, HERE, 8, KEY), record(SET, THERE, 4, OTHER), record(REMOVE, HERE, 9, KEY)]
    assert near.take(*records, places={7: 3}) == {HERE: 9, THERE: 4, 7: 3}


@pytest.mark.parametrize(
    "body", [b"\0" * 39, record(SET, HERE, 8, KEY)[:-1], record(SET, HERE, 8), record(FLUSH, HERE, 8, KEY)]
)
def test_a_record_that_is_none_is_refused(near: Near, body: bytes) -> None:
    with pytest.raises(BadPayload):
        near.take(record(SET, HERE, 7, KEY), body)


def test_why_no_node_tells(near: Near) -> None:
    assert near.listener.failed(near.feed, RuntimeError("because"))
    assert near.listener.failure == "one: because"
    assert near.listener.failed(near.second, RuntimeError("too old"))
    assert near.listener.failure == "one: because; two: too old"
    near.begin(HERE)
    assert near.listener.failure == "two: too old"
    near.table.every = (near.feed.door,)  # another one took its place
    assert near.listener.failure == ""
