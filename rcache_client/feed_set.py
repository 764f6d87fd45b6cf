"""The feeds of a whole cluster: one at every node, and each bucket told of by one of them at a time.

What it is: `FeedSet`, which knows up to which place each bucket was told, and gives a bucket that one feed lost to the one at
its next primary; `Listener`, who is told.
Which thread runs it: each feed has a thread of its own, `feed-HOST:PORT` (`node_feed`), which calls the listener, too.
What it owns: the feeds, the places, whose each bucket is. It may lock: its own lock, for moments, under nothing; the listener
is called outside it.
What it must not know: frames, what a node says, what the listener does with it.

Invariants:
1. A bucket is told of by one feed at a time, and the next one is asked to go on from the place up to which the listener took
   in what the last one told. So of a bucket changes come in order, each once; what is missing between two is in a gap.
2. There is a feed for every node of the view, also where nothing is to be told yet: so a bucket's heir has begun to hold what
   comes before it is asked for it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Protocol
from zlib import crc32

from rcache_client.door import Door
from rcache_client.errors import ServersUnavailable
from rcache_client.routing import Router, Table
from rcache_client.wire.feeds import FROM_NOW, Notice, Selects

if TYPE_CHECKING:
    from rcache_client.node_feed import NodeFeed

JOIN_S = 5.0
"""A feed's thread ends within one answer."""

LOOK_S = 0.2

WAIT_S = 0.25
"""How long a node waits for something to tell: so late a bucket that came there is asked for."""


@dataclass(frozen=True, slots=True)
class Selection:
    """What is asked for: `selects` and its `selector`, with values or without."""

    selects: Selects
    selector: bytes
    values: bool


@dataclass(frozen=True, slots=True)
class Told:
    """One answer of one node. `gaps` lie before the `records` (`docs/records.md`), `places` behind them: how far buckets are of
    which nothing more was to be told; `ended`: of these nothing more comes from there. `proven_at` (CLOCK_BOOTTIME, seconds):
    everything that was committed before in the buckets of this feed has been told by now; None: nothing is known of that."""

    gaps: Sequence[Notice]
    records: bytes
    places: Mapping[int, int]
    ended: Sequence[int]
    proven_at: float | None


class Listener(Protocol):
    """Who is told. The feeds' threads call it: of one bucket one at a time, of several at once."""

    def begun(self, feed: NodeFeed, places: Mapping[int, int], /) -> None:
        """These buckets are told of by this feed from now on, from behind these sequences."""
        ...

    def take(self, feed: NodeFeed, told: Told, /) -> Mapping[int, int]:
        """What one node tells. May block: then the feed rests. Returns up to which sequence of each bucket it was taken in."""
        ...

    def lost(self, feed: NodeFeed, buckets: Collection[int], /) -> None:
        """Of these buckets nothing more comes from this feed: they go on at another one, or there later."""
        ...

    def failed(self, feed: NodeFeed, error: Exception, /) -> bool:
        """This feed met what does not get better by itself. Returns whether to try it again all the same, after a rest."""
        ...


class FeedSet:
    """See the module. Thread-safe. Nothing happens before `begin`."""

    def __init__(
        self,
        router: Router,
        selection: Selection,
        listener: Listener,
        *,
        bucket: int | None = None,
        places: Mapping[int, int] | None = None,
        wait_s: float = WAIT_S,
    ) -> None:
        """`bucket`: that one alone; `places`: from where on each is told of (not named: from now)."""
        self.router = router
        self.selection = selection
        self.listener = listener
        self.wait_s = wait_s
        self._bucket = bucket
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._places: dict[int, int] = dict(places or {})
        self._feeds: dict[Door, NodeFeed] = {}
        self._owners: dict[int, NodeFeed] = {}
        self._ever: set[int] = set()
        self._followed: Table | None = None
        self._closed = False
        self._has_begun = False  # from then on what was not told of before is told with a gap
        self._buckets: Sequence[int] = ()

    def begin(self, deadline: float) -> None:
        """Start the feeds. Blocks until the view is known. Raises `ServersUnavailable` where none is by the deadline,
        ValueError for a bucket that there is not, RuntimeError where no thread is to be had. Whatever it raises, `stop` ends
        those that were started."""
        table = self.router.learnt_table(deadline)
        if table.view is None:
            raise ServersUnavailable("no server says which nodes there are", "", "SUBSCRIBE")
        self._buckets = _buckets_of(self.selection, self._bucket, len(table.doors))
        self.follow(table)

    def await_all(self, deadline: float, look: Callable[[], object] = lambda: None) -> bool:
        """Block until every bucket that has a primary is told of, to the deadline. Whether any is. What is not told of by then
        begins with a gap. `look`: called every LOOK_S; may raise, to end the wait."""
        while not self._await(min(LOOK_S, deadline - monotonic())) and monotonic() < deadline:
            look()
        with self._lock:
            self._has_begun = True
            return bool(self._ever)

    def _await(self, seconds: float) -> bool:
        with self._lock:
            return self._changed.wait_for(lambda: self._closed or len(self._ever) >= self._wanted(), max(0.0, seconds))

    def _wanted(self) -> int:
        table = self.router.table
        return sum(table.doors[bucket] is not None for bucket in self._buckets)

    @property
    def is_closed(self) -> bool:
        return self._closed

    @property
    def places(self) -> dict[int, int]:
        """Up to which sequence each bucket was taken in."""
        with self._lock:
            return dict(self._places)

    @property
    def told_of(self) -> list[int]:
        """The buckets that some node tells of now."""
        with self._lock:
            return list(self._owners)

    def stop(self) -> None:
        """The feeds' threads will end, each within one answer. Idempotent; never blocks."""
        with self._lock:
            self._closed = True
            feeds = list(self._feeds.values())
            self._changed.notify_all()
        for feed in feeds:
            feed.stop()

    def abandon(self) -> None:
        """As `stop`, for a finalizer: that may run in any thread, in the middle of anything, so it takes no lock and wakes
        nobody. The threads end by themselves, after an answer or a rest."""
        self._closed = True

    def close(self) -> None:
        """As `stop`; blocks until they have ended."""
        self.stop()
        with self._lock:
            feeds = list(self._feeds.values())
        for feed in feeds:
            feed.join(JOIN_S)

    # --- for feeds

    def follow(self, table: Table) -> None:
        """Invariant 2. Raises RuntimeError where no thread is to be had; the rest is left for another time then."""
        from rcache_client.node_feed import NodeFeed  # noqa: PLC0415  the two know each other

        with self._lock:
            if not self._closed:
                for door in set(table.every) - set(self._feeds):
                    feed = NodeFeed(self, door)
                    feed.start()
                    self._feeds[door] = feed  # once it runs, and not before
            self._followed = table

    def follow_newest(self) -> None:
        """The view may have been fetched for somebody else. Where no thread is to be had, the next feed that comes by tries."""
        table = self.router.table
        if table is not self._followed:
            with suppress(RuntimeError):
                self.follow(table)

    def is_done_with(self, feed: NodeFeed) -> bool:
        """Whether nothing is asked of that node any more; then it is forgotten."""
        self.follow_newest()  # or the last feed would end, and nobody would make another one
        with self._lock:
            table = self.router.table  # looked at in here: one that has the node again is followed behind this
            done = table is self._followed and feed.door not in table.every
            if done:
                self._feeds.pop(feed.door, None)
            return done

    def claim(self, feed: NodeFeed, table: Table) -> dict[int, int]:
        """The buckets whose primary is behind this feed's door and that nobody tells of, and from where on each is to be told:
        they are this feed's from now on."""
        with self._lock:
            claimed: dict[int, int] = {}
            if len(self._owners) == len(self._buckets):
                return claimed  # nearly always, and this is asked between any two answers
            for bucket in self._buckets:
                if bucket not in self._owners and table.doors[bucket] is feed.door:
                    self._owners[bucket] = feed
                    claimed[bucket] = self._places.get(bucket, 0 if self._has_begun else FROM_NOW)
            return claimed

    def settle(self, feed: NodeFeed, claimed: Iterable[int], taken: Mapping[int, int]) -> None:
        """The node has answered: these it tells of, from there on; the others are free again."""
        mine = {bucket: taken[bucket] for bucket in claimed if bucket in taken}
        if mine:
            self.listener.begun(feed, mine)
        with self._lock:
            self._places.update(mine)
            self._ever.update(mine)
            for bucket in claimed:
                if bucket not in mine:
                    self._free_locked(feed, bucket)
            self._changed.notify_all()

    def take(self, feed: NodeFeed, told: Told) -> None:
        """What a node tells, to the listener; then what ended there is free. Blocks as the listener does."""
        reached = self.listener.take(feed, told)
        with self._lock:
            for bucket, sequence in reached.items():
                if self._owners.get(bucket) is feed:
                    self._places[bucket] = sequence
        if told.ended:
            self.release(feed, told.ended)

    def release(self, feed: NodeFeed, buckets: Iterable[int] | None = None) -> None:
        """These, or all, are told of by this feed no more."""
        with self._lock:
            mine = [bucket for bucket, owner in self._owners.items() if owner is feed]
        gone = mine if buckets is None else sorted(set(mine) & set(buckets))
        if gone:
            self.listener.lost(feed, gone)  # before another feed may begin with them
        with self._lock:
            for bucket in gone:
                self._free_locked(feed, bucket)

    def _free_locked(self, feed: NodeFeed, bucket: int) -> None:
        if self._owners.get(bucket) is feed:
            del self._owners[bucket]

    def wake(self) -> None:
        """Whoever waits in `await_all` is to look again."""
        with self._lock:
            self._changed.notify_all()

    def forget(self) -> None:
        """In a forked child, where its threads are not: it is closed."""
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._feeds, self._owners, self._closed = {}, {}, True


def _buckets_of(selection: Selection, bucket: int | None, count: int) -> Sequence[int]:
    if bucket is not None:
        if not 0 <= bucket < count:
            raise ValueError(f"bucket {bucket} of a cluster of {count} buckets")
        return [bucket]
    if selection.selects is Selects.KEY:
        return [crc32(selection.selector) & (count - 1)]
    return range(count)
