"""The wait of a feed set for all buckets to be told of: it ends with the last one, at the deadline, or as its caller says."""

from __future__ import annotations

from time import monotonic
from types import SimpleNamespace
from typing import Any

import pytest

from rcache_client.feed_set import FeedSet, Selection
from rcache_client.wire.feeds import Selects


class GivenUp(Exception):
    pass


def feed_set() -> FeedSet:
    """Of two buckets, of which nobody tells, at a node that is there."""
    listener: Any = SimpleNamespace(begun=lambda *_: None)
    router: Any = SimpleNamespace(table=SimpleNamespace(doors=[object(), object()]))
    made = FeedSet(router, Selection(Selects.EVERYTHING, b"", values=True), listener)
    made._buckets = range(2)
    return made


def test_it_ends_at_the_deadline_and_says_whether_any_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rcache_client.feed_set.LOOK_S", 0.001)
    feeds, looks = feed_set(), list[int]()
    assert not feeds.await_all(monotonic() + 0.02, lambda: looks.append(1))
    assert looks
    feed: Any = None
    feeds.settle(feed, [0], {0: 5})
    assert feeds.await_all(monotonic())
    feeds.settle(feed, [1], {1: 5})
    assert feeds.await_all(monotonic() + 60)
    assert feeds.places == {0: 5, 1: 5}


def test_it_ends_as_its_caller_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rcache_client.feed_set.LOOK_S", 0.001)

    def look() -> None:
        raise GivenUp

    with pytest.raises(GivenUp):
        feed_set().await_all(monotonic() + 60, look)


def test_it_ends_where_it_is_stopped() -> None:
    feeds = feed_set()
    feeds.stop()
    assert not feeds.await_all(monotonic() + 60)
