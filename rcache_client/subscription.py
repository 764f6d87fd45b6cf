"""A subscription: the changes of a whole cluster, told in each bucket's order, wherever its primary is.

What it is: `Subscription`, the events that its feeds (`feed_set`) were told, until they are taken; `Watcher`, which calls a
function with each.
Which thread runs it: whoever iterates takes events; the feeds' own threads add them.
What it owns: the events that wait. It may lock: its own lock, for moments, under nothing.
What it must not know: frames, nodes, whose a bucket is.

Invariants:
1. Of a bucket events come in order, each once, from whatever node; what is missing between two is in a GAP.
2. No more than EVENTS_MAX wait. Then the feeds rest, and what their nodes hold no more by then is a GAP, too: a subscriber that
   is slow holds nobody up.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING

from rcache_client.errors import ServersUnavailable
from rcache_client.events import Event, gap_of, read_records
from rcache_client.feed_set import FeedSet, Selection, Told
from rcache_client.routing import Router

if TYPE_CHECKING:
    from rcache_client.node_feed import NodeFeed

EVENTS_MAX = 10_000


class Subscription:
    """Events, by iteration, until `close`. Thread-safe; a `with` closes it.

    `places` says up to where each bucket was told, as far as events were taken: kept, and given to `Client.subscribe` another
    time, it goes on from there.
    """

    def __init__(self, router: Router, selection: Selection, bucket: int | None, places: Mapping[int, int]) -> None:
        """Nothing happens before `begin`."""
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._events: deque[Event] = deque()
        self._told: dict[int, int] = dict(places)  # up to where each bucket was told here
        self._taken: dict[int, int] = dict(places)  # and of that, what was taken
        self._failure: Exception | None = None
        self._closed = False
        self._feeds = FeedSet(router, selection, self, bucket=bucket, places=places)

    def begin(self, deadline: float) -> None:
        """Block until every bucket that has a primary (or the one that is asked for) is told of, to `deadline`. Raises
        `ServersUnavailable` where none is by then, ValueError for a bucket that there is not; then it is closed."""
        try:
            self._feeds.begin(deadline)
            told_of_any = self._feeds.await_all(deadline)
            with self._lock:
                failure = self._failure
            if failure:
                raise failure
            if not told_of_any:
                raise ServersUnavailable("no node tells of changes", "", "SUBSCRIBE")
        except BaseException:
            self.close()
            raise

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
            self._changed.notify_all()
        self._feeds.close()

    def __enter__(self) -> Subscription:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    # --- for the feeds

    def begun(self, _feed: NodeFeed, places: Mapping[int, int]) -> None:
        with self._lock:
            for bucket, sequence in places.items():
                self._told[bucket] = sequence
                self._taken.setdefault(bucket, sequence)

    def take(self, _feed: NodeFeed, told: Told) -> Mapping[int, int]:
        """Events, in their order, and how far buckets are beside. Blocks while too many wait (invariant 2)."""
        events = [*map(gap_of, told.gaps), *read_records(told.records, values=self._feeds.selection.values)]
        reached: dict[int, int] = {}
        with self._lock:
            for event in events:
                while len(self._events) >= EVENTS_MAX and not self._closed:
                    self._changed.wait()
                self._told[event.bucket] = reached[event.bucket] = event.sequence
                self._events.append(event)
                self._changed.notify_all()
            self._told.update(told.places)
            return reached | dict(told.places)

    def lost(self, _feed: NodeFeed, _buckets: Collection[int]) -> None:
        pass  # they go on elsewhere, without a gap or with one

    def failed(self, _feed: NodeFeed, error: Exception) -> bool:
        """Nothing more can come: whoever listens is told why, after what came before."""
        with self._lock:
            self._failure = self._failure or error
            self._changed.notify_all()
        self._feeds.stop()
        return False

    def forget(self) -> None:
        """In a forked child, where its threads are not: it is closed."""
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._closed = True
        self._feeds.forget()


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
