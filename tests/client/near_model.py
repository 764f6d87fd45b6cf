"""A world for the near cache, without sockets and threads: servers with versions, feeds that lag, readers, writers, a clock.

What it is: `World`, which plays everything that can happen between a client and the servers, one small step after the other in
an order that a seed gives, and holds every value that is served against the three promises.
What it owns: the slots and the listener under test, which it calls as the client and the feeds do.

An actor is a generator: what it does up to a `yield` happens in one step. Steps of others also happen *within* the look at a
slot that takes no lock: where it asks for the time, and where it looks until when the slot is proven.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from struct import Struct
from types import SimpleNamespace
from typing import Any, NamedTuple
from zlib import crc32

import pytest

from rcache_client import near_feed
from rcache_client.feed_set import Told
from rcache_client.near_feed import NearFeed
from rcache_client.near_slots import SLOT_BYTES, Kept, Live, Slots
from rcache_client.wire.feeds import Notice, NoticeKind

BUCKETS = 2
KEYS = [b"a", b"b", b"cc", b"ddd"]
STALENESS = 1.0
MAX_AGE = 5.0
OPEN, SET, REMOVE, FLUSH = 1, 2, 3, 4
_HEADER = Struct(">IBBHIIQQQ")

Actor = Generator[None, None, None]


class Mood(NamedTuple):
    """How the world goes for a while: the share of steps that are the feeds'; calls at once; how fast time goes; how often a
    look at a slot is held up while others go on."""

    feeds: float
    calls: int
    haste_s: float
    held_up: float


MOODS = (
    Mood(feeds=0.3, calls=1, haste_s=0.001, held_up=0.05),
    Mood(feeds=0.3, calls=4, haste_s=0.01, held_up=0.05),
    Mood(feeds=0.04, calls=4, haste_s=0.0, held_up=0.05),  # they lag
    Mood(feeds=0.0, calls=3, haste_s=0.1, held_up=0.04),  # they hang, and then go on while somebody looks at a slot
    Mood(feeds=0.6, calls=2, haste_s=0.05, held_up=0.2),
)


def record(kind: int, bucket: int, sequence: int, key: bytes = b"") -> bytes:
    return _HEADER.pack(_HEADER.size + len(key), kind, 0, len(key), bucket, 0, sequence, 0, 0) + key


def bucket_of(key: bytes) -> int:
    return crc32(key) & (BUCKETS - 1)


@dataclass
class Change:
    """One change of a key: its place in the history of all keys. `gone_at`: when its item expires."""

    sequence: int
    value: bytes | None
    acknowledged_at: float
    gone_at: float = 1e9


@dataclass
class Feed:
    """One node's feed: what it was told of each bucket, and what it is about to be told."""

    name: str
    buckets: set[int] = field(default_factory=set)
    place: dict[int, int] = field(default_factory=dict)

    @property
    def door(self) -> Any:
        return SimpleNamespace(name=self.name)

    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other


class World:
    """See the module. `seen[key]`: the newest change of it that a call which has ended has shown or made."""

    def __init__(self, seed: int, slots_max: int = 6) -> None:
        self.chosen = random.Random(seed)
        self.now = 100.0
        self.depth = 0
        self.served: Counter[str] = Counter()
        self.histories: dict[bytes, list[Change]] = {key: [Change(0, None, 0.0)] for key in KEYS}
        self.logs: dict[int, list[tuple[int, bytes]]] = {bucket: [] for bucket in range(BUCKETS)}
        self.sequence = 1 << 40
        self.seen = dict.fromkeys(KEYS, 0)
        self.slots = Slots(slots_max * (SLOT_BYTES + 10), self.clock)
        self.listener = NearFeed(SimpleNamespace(), self.slots, b"", STALENESS)  # type: ignore[arg-type]
        self.owners: dict[int, Feed | None] = dict.fromkeys(range(BUCKETS))
        self.feeds = [Feed("one"), Feed("two")]
        self.feeding = [self.feed(each) for each in self.feeds]
        self.calling: list[Actor] = []
        self.mood = MOODS[0]

    # --- time, and what others do meanwhile

    def clock(self) -> float:
        self.meanwhile()
        return self.now

    def meanwhile(self) -> None:
        """Somebody else goes on, now and then: a few steps, or a feed's next answers, whole."""
        if self.depth == 0 and not self.slots._lock.locked() and self.chosen.random() < self.mood.held_up:
            self.depth += 1
            feeds_only = self.chosen.random() < 0.5
            for _ in range(self.chosen.choice([2, 10, 40])):
                self.step(self.feeding if feeds_only else self.chosen.choice([self.feeding, self.calling]))
            self.depth -= 1

    def step(self, actors: list[Actor]) -> None:
        """One step of one actor that is not in the middle of one."""
        able = [actor for actor in actors if not actor.gi_running]
        self.now += self.chosen.choice([0.0, 0.001, self.mood.haste_s if self.depth == 0 else 0.0])
        if able:
            actor = self.chosen.choice(able)
            if next(actor, actor) is actor:
                actors.remove(actor)

    def run(self, steps: int) -> None:
        """So many steps; everything is held against the promises, and the slots against themselves, after each."""
        for number in range(steps):
            if number % 40 == 0:
                self.mood = self.chosen.choice(MOODS)
            if len(self.calling) < self.mood.calls:
                self.calling.append(self.call())
            self.step(self.feeding if self.chosen.random() < self.mood.feeds else self.calling)
            self.slots.check()

    def call(self) -> Actor:
        key = self.chosen.choices(KEYS, [10, 5, 2, 1])[0]
        kinds = [self.get(key), self.change(key), self.stranger(key), self.look(key), self.flush()]
        return self.chosen.choices(kinds, [20, 0.7, 3, 0.7, 0.03])[0]

    # --- the servers

    def make(self, key: bytes) -> Change:
        """One change, which is acknowledged only later, perhaps."""
        self.sequence += 1
        removed = self.chosen.random() < 0.1
        gone_at = self.now + self.chosen.choice([0.3, 2.0]) if self.chosen.random() < 0.15 else 1e9
        change = Change(self.sequence, None if removed else b"%d" % self.sequence, 1e9, 1e9 if removed else gone_at)
        self.histories[key].append(change)
        self.logs[bucket_of(key)].append(
            (self.sequence, record(REMOVE if removed else SET, bucket_of(key), self.sequence, key))
        )
        return change

    def newest(self, key: bytes) -> Change:
        change = self.histories[key][-1]
        if change.value is not None and change.gone_at <= self.now:  # a read that finds it expired removes it
            self.sequence += 1
            self.logs[bucket_of(key)].append((self.sequence, record(REMOVE, bucket_of(key), self.sequence, key)))
            change = Change(self.sequence, None, self.now)
            self.histories[key].append(change)
        return change

    def empty(self, bucket: int) -> None:
        self.sequence += 1
        self.logs[bucket].append((self.sequence, record(FLUSH, bucket, self.sequence)))
        for key in KEYS:
            if bucket_of(key) == bucket:
                self.histories[key].append(Change(self.sequence, None, self.now))

    # --- calls

    def ends(self, key: bytes, began: float, seen_then: int, sequence: int) -> None:
        """A call has shown that change, which counts as the newest of its key."""
        due = max(change.sequence for change in self.histories[key] if change.acknowledged_at < began - STALENESS)
        assert sequence >= due, f"{key!r}: {sequence} was served, {due} was acknowledged long before"
        assert sequence >= seen_then, f"{key!r}: {sequence} was served, {seen_then} was seen before"
        self.seen[key] = max(self.seen[key], sequence)

    def get(self, key: bytes) -> Actor:
        began, seen_then = self.now, self.seen[key]
        slot = self.slots.find(key)
        if slot is not None:
            (change,) = [each for each in self.histories[key] if each.sequence == slot.version]
            assert slot.value == change.value
            assert began < change.gone_at, f"{key!r} was served though it had expired"
            self.served["hit"] += 1
            self.ends(key, began, seen_then, slot.version)
            return
        sent_at = self.now
        marker = self.slots.plant(key, bucket_of(key))
        yield
        if self.chosen.random() < 0.04:
            self.slots.settle(key, marker, 0, None)
            return
        found = self.newest(key)
        left_s = found.gone_at - self.now
        yield
        if found.value is None:
            self.slots.drop(key)
        else:
            kept = Kept(0, found.value, sent_at + min(left_s, MAX_AGE)) if self.chosen.random() < 0.95 else None
            self.slots.settle(key, marker, found.sequence, kept)
        yield
        self.served["miss"] += 1
        self.ends(key, began, seen_then, found.sequence)

    def change(self, key: bytes) -> Actor:
        """A write of this client. What became of it may be unknown: then it is executed later, or never."""
        began, seen_then = self.now, self.seen[key]
        self.slots.drop(key)
        yield
        unknown = self.chosen.random() < 0.2
        made = None if unknown and self.chosen.random() < 0.5 else self.make(key)
        yield
        self.slots.drop(key)
        self.ends(key, began, seen_then, self.newest(key).sequence)
        if made is not None and not unknown:
            made.acknowledged_at = self.now
        if made is None and self.chosen.random() < 0.5:
            yield
            self.make(key)

    def stranger(self, key: bytes) -> Actor:
        """A write of somebody else."""
        change = self.make(key)
        yield
        change.acknowledged_at = self.now

    def look(self, key: bytes) -> Actor:
        """Any other call of this client that shows what is there."""
        began, seen_then = self.now, self.seen[key]
        self.slots.drop(key)
        yield
        found = self.newest(key)
        yield
        self.slots.drop(key)
        self.ends(key, began, seen_then, found.sequence)

    def flush(self) -> Actor:
        mine = self.chosen.random() < 0.5
        if mine:
            self.slots.drop_all()
        yield
        for bucket in range(BUCKETS):
            self.empty(bucket)
            yield
        if mine:
            self.slots.drop_all()
            for key in KEYS:
                self.seen[key] = max(self.seen[key], self.newest(key).sequence)

    # --- feeds

    def feed(self, feed: Feed) -> Actor:
        """A node's feed, connection after connection."""
        while True:
            yield
            for _ in range(self.chosen.randrange(1, 200)):
                yield from self.claim(feed)
                yield from self.answer(feed)
            self.release(feed, set(feed.buckets))

    def claim(self, feed: Feed) -> Iterator[None]:
        free = [bucket for bucket, owner in self.owners.items() if owner is None and self.chosen.random() < 0.3]
        for bucket in free:
            self.owners[bucket] = feed
        yield
        for bucket in free:  # the subscriber's place, or now: then what was told to nobody is told to nobody ever
            now = self.logs[bucket][-1][0] if self.logs[bucket] else 0
            feed.place[bucket] = min(self.told_up_to(bucket), now) if self.chosen.random() < 0.5 else now
        yield
        if free:
            feed.buckets |= set(free)
            self.listener.begun(feed, {bucket: feed.place[bucket] for bucket in free})  # type: ignore[arg-type]

    def told_up_to(self, bucket: int) -> int:
        return max((feed.place.get(bucket, 0) for feed in self.feeds), default=0)

    def answer(self, feed: Feed) -> Iterator[None]:
        """Ask for events; the node answers; the answer is here. A proof is of what the answers up to this one tell."""
        asked_at = self.now
        yield
        gaps, records, ended, proven_at = [], list[tuple[int, bytes]](), list[int](), asked_at
        for bucket in sorted(feed.buckets):
            events = [event for event in self.logs[bucket] if event[0] > feed.place[bucket]]
            if self.chosen.random() < 0.01:
                ended.append(bucket)  # and nothing is proven of it
                events = []
            elif events and self.chosen.random() < 0.1:
                gaps.append(Notice(NoticeKind.GAP, bucket, feed.place[bucket], events[-1][0]))
                feed.place[bucket], events = events[-1][0], []
            elif events and self.chosen.random() < 0.3:
                events, proven_at = events[: self.chosen.randrange(len(events))], 0.0
            if events:
                feed.place[bucket] = events[-1][0]
            records += events
        if self.chosen.random() < 0.01:
            records.append((0, record(OPEN, self.chosen.randrange(BUCKETS), feed.place.get(0, 0))))
        yield
        told = Told(gaps, b"".join(body for _, body in sorted(records)), {}, ended, proven_at or None)
        self.listener.take(feed, told)  # type: ignore[arg-type]
        self.release(feed, set(ended))

    def release(self, feed: Feed, buckets: set[int]) -> None:
        if buckets:
            self.listener.lost(feed, buckets)  # type: ignore[arg-type]
            feed.buckets -= buckets
            for bucket in buckets:
                self.owners[bucket] = None


@contextmanager
def interleaved(world: World, patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Others go on also where a reader looks until when a slot is proven."""

    class Watched(Live):
        __slots__ = ("known",)

        @property
        def until(self) -> float:  # type: ignore[override]
            world.meanwhile()
            return self.known

        @until.setter
        def until(self, value: float) -> None:
            self.known = value
            world.meanwhile()

    with patch.context() as patched:
        patched.setattr(near_feed, "Live", Watched)
        yield
