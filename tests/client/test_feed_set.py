"""A set of feeds without servers: its threads, the views it follows, and how it ends where nobody ends it."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from types import SimpleNamespace
from typing import Any, Self

import pytest

from rcache_client import Client, NearCache, node_feed
from rcache_client.connection import Setback, Trouble
from rcache_client.feed_set import FeedSet, Selection, Told
from rcache_client.near_feed import NearFeed
from rcache_client.near_slots import Slots
from rcache_client.node_feed import LOOK_S, NodeFeed
from rcache_client.routing import Table
from rcache_client.wire.feeds import Selects

from .support import until

BUCKETS = 4


class FakeDoor:
    """Of a node that nobody reaches; `comes` is what happens when somebody tries."""

    def __init__(self, name: str, comes: Callable[[], object] = lambda: None) -> None:
        self.name = name
        self.tries = 0
        self._comes = comes

    def connect(self, _deadline: float) -> Any:
        self.tries += 1
        self._comes()
        raise Setback(Trouble.CLOSED, "nobody is there")


class FakeRouter:
    def __init__(self, *doors: FakeDoor) -> None:
        self.table = table_of(*doors)
        self.asked = 0

    def learnt_table(self, _deadline: float) -> Table:
        return self.table

    def refresh(self, *_: object) -> bool:
        self.asked += 1
        return False


class Nobody:
    """A listener that is told nothing."""

    def begun(self, feed: NodeFeed, places: Mapping[int, int], /) -> None: ...

    def take(self, feed: NodeFeed, told: Told, /) -> Mapping[int, int]:
        raise AssertionError

    def lost(self, feed: NodeFeed, buckets: Collection[int], /) -> None: ...

    def failed(self, feed: NodeFeed, error: Exception, /) -> bool:
        raise AssertionError(error)


class Threads:
    """`left`: so many may be started."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.left = 0
        start = threading.Thread.start

        def start_one(thread: threading.Thread) -> None:
            if thread.name.startswith("feed-"):
                if not self.left:
                    raise RuntimeError("can't start new thread")
                self.left -= 1
            start(thread)

        patch.setattr(threading.Thread, "start", start_one)

    def given(self, count: int) -> Self:
        self.left = count
        return self


def table_of(*doors: Any) -> Table:
    primaries: list[Any] = [doors[bucket % len(doors)] for bucket in range(BUCKETS)]
    return Table(SimpleNamespace(), 1, primaries, BUCKETS - 1, None, True, doors)  # type: ignore[arg-type]


def set_of(router: Any) -> FeedSet:
    return FeedSet(router, Selection(Selects.EVERYTHING, b"", values=False), Nobody())


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[Threads]:
    yield Threads(monkeypatch)
    until(lambda: not any(thread.name.startswith("feed-") for thread in threading.enumerate()))


def names(feeds: FeedSet) -> set[str]:
    return {door.name for door in feeds._feeds}


def test_a_set_that_could_not_start_all_its_threads_can_be_closed(threads: Threads) -> None:
    feeds = set_of(FakeRouter(FakeDoor("one"), FakeDoor("two")))
    threads.given(1)
    with pytest.raises(RuntimeError):
        feeds.begin(0.0)
    feeds.close()


def test_a_node_for_which_there_was_no_thread_gets_one_later(threads: Threads) -> None:
    one, two = FakeDoor("one"), FakeDoor("two")
    router = FakeRouter(one)
    feeds = set_of(router)
    threads.given(1)
    feeds.begin(0.0)
    router.table = table_of(one, two)
    tries = one.tries
    until(lambda: one.tries > tries + 1)  # it is none of its business
    assert names(feeds) == {"one"}
    threads.given(1)
    until(lambda: two.tries > 0)
    assert names(feeds) == {"one", "two"}
    feeds.close()


def test_the_last_feed_stays_where_there_is_no_thread_for_another(threads: Threads) -> None:
    one, two = FakeDoor("one"), FakeDoor("two")
    router = FakeRouter(one)
    feeds = set_of(router)
    threads.given(1)
    feeds.begin(0.0)
    router.table = table_of(two)
    tries = one.tries
    until(lambda: one.tries > tries + 1)
    threads.given(1)
    until(lambda: two.tries > 0 and names(feeds) == {"two"})
    feeds.close()


def test_a_node_that_is_back_while_its_feed_ends_is_not_without_one(threads: Threads, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = FakeDoor("one"), FakeDoor("two")
    router = FakeRouter(two)
    feeds = set_of(router)
    feeds._feeds = {door: SimpleNamespace(door=door) for door in (one, two)}  # type: ignore[misc]
    follow = feeds.follow

    def meanwhile(table: Table) -> None:
        """Another feed learns of the next view, and follows that."""
        follow(table)
        router.table = table_of(one, two)
        follow(router.table)

    monkeypatch.setattr(feeds, "follow", meanwhile)
    feeds.is_done_with(feeds._feeds[one])
    assert names(feeds) == {"one", "two"}


def test_a_node_that_stays_away_has_nobody_asked_for_views_all_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten seconds of it."""
    now = 0.0

    def rest(seconds: float) -> None:
        nonlocal now
        now += seconds
        if now > 10:
            feeds.abandon()

    monkeypatch.setattr(node_feed, "monotonic", lambda: now)
    door = FakeDoor("one")
    router = FakeRouter(door, FakeDoor("two"))
    feeds = set_of(router)
    feed = NodeFeed(feeds, door)  # type: ignore[arg-type]
    feeds._followed = router.table
    monkeypatch.setattr(feed._stopping, "wait", rest)
    feed._run()
    assert door.tries > 100
    assert 10 < router.asked <= 10 / LOOK_S + 1


def test_an_interrupted_begin_leaves_no_feed(threads: Threads, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the next one begins."""
    router: Any = FakeRouter(FakeDoor("one"), FakeDoor("two"))
    near = NearFeed(router, Slots(1 << 20, lambda: 0.0), b"", 1.0)
    threads.given(2)
    start, started = NodeFeed.start, list[NodeFeed]()

    def start_and_be_interrupted(feed: NodeFeed) -> None:
        start(feed)
        started.append(feed)
        if len(started) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(NodeFeed, "start", start_and_be_interrupted)
        with pytest.raises(KeyboardInterrupt):
            near.begin()
    until(lambda: not any(feed._thread.is_alive() for feed in started))
    threads.given(2)
    near.begin()
    near.close()


def test_a_client_that_is_collected_anywhere_ends_its_feeds(threads: Threads) -> None:
    """In a feed's own thread, say, which holds the lock."""
    client = Client("127.0.0.1:1", near_cache=NearCache())
    assert client._near is not None
    near = client._near.feed
    near._router = FakeRouter(FakeDoor("one"))  # type: ignore[assignment]
    threads.given(1)
    near.begin()
    feeds = near._feeds
    assert feeds is not None
    circle: list[Any] = [client]
    circle.append(circle)
    del client, circle

    def collect() -> None:
        with feeds._lock:
            gc.collect()

    thread = threading.Thread(target=collect, daemon=True)
    thread.start()
    thread.join(5)
    assert not thread.is_alive()
    assert feeds.is_closed
