"""A subscription: the changes of a whole cluster, told in each bucket's order, wherever its primary is.

What it is: `Subscription`, which has a feed at every node (`node_feed`), knows up to which place each bucket was told, and
gives a bucket that one feed lost to the one at its next primary.
Which thread runs it: whoever iterates takes events; each feed has a thread of its own, `feed-HOST:PORT`, which adds them.
What it owns: the places, whose each bucket is, the events that wait. It may lock: its own lock, for moments, under nothing.
What it must not know: frames, what a node says.

Invariants:
1. A bucket is told of by one feed at a time, and the next one is asked to go on from the place where the last one was. So of a
   bucket events come in order, each once; what is missing between two is in a GAP.
2. No more than EVENTS_MAX wait. Then the feeds rest, and what their nodes hold no more by then is a GAP, too: a subscriber that
   is slow holds nobody up.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING
from zlib import crc32

from rcache_client.door import Door
from rcache_client.errors import ServersUnavailable
from rcache_client.events import Event
from rcache_client.routing import Router, Table
from rcache_client.wire.feeds import FROM_NOW, Selects

if TYPE_CHECKING:
    from rcache_client.node_feed import NodeFeed

EVENTS_MAX = 10_000

JOIN_S = 5.0
"""A feed's thread ends within one answer."""


@dataclass(frozen=True, slots=True)
class Selection:
    """What is asked for: `selects` and its `selector`, with values or without."""

    selects: Selects
    selector: bytes
    values: bool


class Subscription:
    """Events, by iteration, until `close`. Thread-safe; a `with` closes it.

    `places` says up to where each bucket was told, as far as events were taken: kept, and given to `Client.subscribe` another
    time, it goes on from there.
    """

    def __init__(
        self, router: Router, selection: Selection, bucket: int | None, places: Mapping[int, int], deadline: float
    ) -> None:
        """Blocks until every bucket that has a primary (or the one that is asked for) is told of, to `deadline`. Raises
        `ServersUnavailable` where none is by then, ValueError for a bucket that there is not."""
        self.selection = selection
        self.router = router
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._events: deque[Event] = deque()
        self._told: dict[int, int] = dict(places)  # up to where each bucket was told here
        self._taken: dict[int, int] = dict(places)  # and of that, what was taken
        self._feeds: dict[Door, NodeFeed] = {}
        self._owners: dict[int, NodeFeed] = {}
        self._ever: set[int] = set()
        self._followed: Table | None = None
        self._failure: Exception | None = None
        self._closed = False
        self._has_begun = False  # from then on what was not told of before is told with a gap
        table = router.learnt_table(deadline)
        if table.view is None:
            raise ServersUnavailable("no server says which nodes there are", "", "SUBSCRIBE")
        self._buckets = _buckets_of(selection, bucket, len(table.doors))
        self.follow(table)
        self._await_all(deadline)

    # --- for whoever listens

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        event = self.get()
        if event is None:
            raise StopIteration
        return event

    def get(self, timeout: float | None = None) -> Event | None:
        """The next event; None where none comes within `timeout` seconds (None: ever), or the subscription is closed. Raises
        what ended it otherwise."""
        deadline = None if timeout is None else monotonic() + timeout
        with self._lock:
            while not self._events:
                left = None if deadline is None else deadline - monotonic()
                if self._failure is not None:
                    raise self._failure
                if self._closed or (left is not None and left <= 0):
                    return None
                self._changed.wait(left)
            event = self._events.popleft()
            self._taken[event.bucket] = event.sequence
            if len(self._events) == EVENTS_MAX - 1:
                self._changed.notify_all()
            return event

    @property
    def places(self) -> dict[int, int]:
        """Bucket: the sequence up to which its events were taken, or nothing was to be told."""
        with self._lock:
            waiting = {event.bucket for event in self._events}
            return {**self._taken, **{bucket: at for bucket, at in self._told.items() if bucket not in waiting}}

    def close(self) -> None:
        """End it: whoever waits gets no more events, and its threads end. Idempotent. Blocks for as long as an answer takes."""
        with self._lock:
            self._closed = True
            feeds = list(self._feeds.values())
            self._changed.notify_all()
        for feed in feeds:
            feed.stop()
        for feed in feeds:
            feed.join(JOIN_S)

    def __enter__(self) -> Subscription:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    # --- for feeds

    @property
    def is_closed(self) -> bool:
        return self._closed

    def follow(self, table: Table) -> None:
        """There is a feed for every node of the view, also where nothing is to be told yet: so a bucket's heir has begun to
        hold what comes before it is asked for it."""
        from rcache_client.node_feed import NodeFeed  # noqa: PLC0415  the two know each other

        with self._lock:
            self._followed = table
            if self._closed:
                return
            for door in set(table.every) - set(self._feeds):
                feed = self._feeds[door] = NodeFeed(self, door)
                feed.start()

    def follow_newest(self) -> None:
        """The view may have been fetched for somebody else."""
        if self.router.table is not self._followed:
            self.follow(self.router.table)

    def is_done_with(self, feed: NodeFeed) -> bool:
        """Whether nothing is asked of that node any more; then it is forgotten."""
        table = self.router.table
        self.follow(table)  # or the last feed would end, and nobody would make another one
        with self._lock:
            done = feed.door not in table.every
            if done:
                self._feeds.pop(feed.door, None)
            return done

    def claim(self, feed: NodeFeed, table: Table) -> dict[int, int]:
        """The buckets whose primary is behind this feed's door and that nobody tells of, and from where on each is to be told:
        they are this feed's from now on."""
        with self._lock:
            claimed = {}
            for bucket in self._buckets:
                if bucket not in self._owners and table.doors[bucket] is feed.door:
                    self._owners[bucket] = feed
                    claimed[bucket] = self._told.get(bucket, 0 if self._has_begun else FROM_NOW)
            return claimed

    def settle(self, feed: NodeFeed, claimed: Iterable[int], taken: Mapping[int, int]) -> None:
        """The node has answered: these it tells of, from there on; the others are free again."""
        with self._lock:
            for bucket in claimed:
                if bucket in taken:
                    self._told[bucket] = taken[bucket]
                    self._taken.setdefault(bucket, taken[bucket])
                    self._ever.add(bucket)
                elif self._owners.get(bucket) is feed:
                    del self._owners[bucket]
            self._changed.notify_all()

    def add(self, feed: NodeFeed, events: Iterable[Event], places: Mapping[int, int]) -> None:
        """Events, in their order, and how far buckets are beside. Blocks while too many wait (invariant 2)."""
        with self._lock:
            for event in events:
                while len(self._events) >= EVENTS_MAX and not self._closed:
                    self._changed.wait()
                if self._owners.get(event.bucket) is feed:
                    self._told[event.bucket] = event.sequence
                    self._events.append(event)
            for bucket, at in places.items():
                if self._owners.get(bucket) is feed:
                    self._told[bucket] = at
            self._changed.notify_all()

    def release(self, feed: NodeFeed, buckets: Iterable[int] | None = None) -> None:
        """These, or all, are told of by this feed no more."""
        with self._lock:
            for bucket in [b for b, owner in self._owners.items() if owner is feed] if buckets is None else list(buckets):
                if self._owners.get(bucket) is feed:
                    del self._owners[bucket]

    def fail(self, error: Exception) -> None:
        """Nothing more can come: whoever listens is told why, after what came before."""
        with self._lock:
            self._failure = self._failure or error
            self._changed.notify_all()

    def _await_all(self, deadline: float) -> None:
        with self._lock:
            while len(self._ever) < self._wanted() and self._failure is None and not self._closed:
                left = deadline - monotonic()
                if left <= 0:
                    break
                self._changed.wait(left)
            self._has_begun = True
            failure = self._failure
            if not failure and not self._ever:
                failure = ServersUnavailable("no node tells of changes", "", "SUBSCRIBE")
        if failure:
            self.close()
            raise failure

    def _wanted(self) -> int:
        table = self.router.table
        return sum(table.doors[bucket] is not None for bucket in self._buckets)

    def forget(self) -> None:
        """In a forked child, where its threads are not: it is closed."""
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._feeds, self._closed = {}, True


def _buckets_of(selection: Selection, bucket: int | None, count: int) -> Sequence[int]:
    if bucket is not None:
        if not 0 <= bucket < count:
            raise ValueError(f"bucket {bucket} of a cluster of {count} buckets")
        return [bucket]
    if selection.selects is Selects.KEY:
        return [crc32(selection.selector) & (count - 1)]
    return range(count)


class Watcher:
    """Has a function called with each event, by a thread of its own (`name`), until `close`. An exception of the function ends
    it; `error` is that, or what ended the subscription otherwise."""

    def __init__(self, subscription: Subscription, callback: Callable[[Event], object], name: str) -> None:
        self.subscription = subscription
        self.error: BaseException | None = None
        self._callback = callback
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            for event in self.subscription:
                self._callback(event)
        except BaseException as error:  # it is the caller's to look at
            self.error = error
            self.subscription.close()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def close(self) -> None:
        """No call begins any more; blocks until the one under way has ended, unless it is this very thread."""
        self.subscription.close()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def __enter__(self) -> Watcher:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
