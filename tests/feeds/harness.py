"""What the tests of feeds share: an engine, its hub, and what a subscriber was told, held against itself.

What it is: `Telling`; `Subscriber`, which takes in answers as a client does: gaps first, then records, then what lies behind
them; it fails where a bucket is told of out of order, twice, or with something missing that no gap speaks of.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Mapping
from typing import Any

from rcache.engine.change_stream import StreamEnd, Wait
from rcache.engine.contract import Engine
from rcache.feeds.feed import Events, Feed
from rcache.feeds.hub import LINGER_S, Hub
from rcache.feeds.select import Selection
from rcache.feeds.teller import Teller
from rcache.records.record import Kind, Record, decode_opening, scan
from rcache.stream.applied import AppliedStream
from rcache_client.wire.feeds import UNPROVEN, Notice, NoticeKind, Selects
from tests.contract.harness import PATIENCE_S, Caller, wait_until

ALL = Selection(Selects.EVERYTHING, b"", values=True)
MANY = 1 << 20


def key_of(bucket: int, number: int = 0, buckets: int = 8) -> bytes:
    """The `number`-th key of a bucket."""
    found = (key for key in (b"k%d" % n for n in range(10_000)) if zlib.crc32(key) % buckets == bucket)
    return [next(found) for _ in range(number + 1)][-1]


class Subscriber:
    """See the module. `whole`: everything is selected, so that nothing may be missing without a gap."""

    def __init__(self, feed: Feed, places: Mapping[int, int] | None = None, *, whole: bool = True) -> None:
        self.feed = feed
        self.records: list[Record] = []
        self.notices: list[Notice] = []
        self.events = Events(UNPROVEN, [], b"")
        self._whole = whole
        self.places = feed.add(places or {})

    def take(self, wait_s: float = 0.0, bytes_max: int = MANY) -> list[Record]:
        """One answer."""
        self.events = events = self.feed.next(bytes_max, time.monotonic() + wait_s)
        self.notices += events.notices
        for notice in events.notices:
            if notice.kind == NoticeKind.GAP:
                assert notice.after == self.places[notice.bucket]
                self.places[notice.bucket] = notice.upto
        found = list(scan(events.records))
        for record in found:
            self._take_in(record)
        for notice in events.notices:
            if notice.kind != NoticeKind.GAP:
                assert notice.upto == self.places[notice.bucket] or notice.kind == NoticeKind.PLACE
                self.places[notice.bucket] = notice.upto
            if notice.kind == NoticeKind.ENDED:
                del self.places[notice.bucket]
        self.records += found
        return found

    def _take_in(self, record: Record) -> None:
        last = self.places[record.bucket]
        assert record.sequence > last, "told twice, or out of order"
        if self._whole:
            before = decode_opening(record.value).continues_from if record.kind == Kind.OPEN else record.sequence - 1
            assert before == last, "something is missing"
        self.places[record.bucket] = record.sequence

    def until(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline, f"waited in vain for {what}"
            self.take(0.05)

    def until_told(self, count: int) -> list[Record]:
        self.until(lambda: len(self.records) >= count, f"{count} records")
        return self.records

    @property
    def gaps(self) -> list[Notice]:
        return [notice for notice in self.notices if notice.kind == NoticeKind.GAP]

    @property
    def values(self) -> list[bytes]:
        return [record.value for record in self.records]


class Meanwhile:
    """An engine to which something happens while a wait for commitment is met; `first`: how the first wait ends."""

    def __init__(self, engine: Engine, happens: Callable[[], object], first: StreamEnd) -> None:
        self._engine = engine
        self._happens = happens
        self._first: StreamEnd | None = first
        self.stream = self

    def wait_committed(self, wait: Wait, deadline_ns: int) -> StreamEnd:
        if self._first is not None:
            end, self._first = self._first, None
            if end is not StreamEnd.REACHED:
                return end
        self._happens()
        return self._engine.stream.wait_committed(wait, deadline_ns)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)


class Telling:
    """An engine with its hub, and a caller that writes."""

    def __init__(self, engine: Engine, held_bytes: int = 16 << 20) -> None:
        self.engine = engine
        self.applied = AppliedStream(0, is_kept=False)
        self.hub = Hub(engine, self.applied, held_bytes)
        self.caller = Caller(engine)
        self._feeds: list[Feed] = []

    @property
    def teller(self) -> Teller:
        """The one that there is."""
        teller = self.hub._teller
        assert teller is not None
        return teller

    def subscribe(self, places: Mapping[int, int] | None = None, selection: Selection = ALL) -> Subscriber:
        feed = Feed(self.hub, selection)
        self._feeds.append(feed)
        return Subscriber(feed, places, whole=selection.selects is Selects.EVERYTHING)

    def leave(self, subscriber: Subscriber) -> None:
        self._feeds.remove(subscriber.feed)
        subscriber.feed.close()

    def end_unused(self) -> None:
        """A while has passed since the last subscriber left."""
        self.hub._unused_since -= LINGER_S
        self.hub.end_unused()

    def set(self, bucket: int, value: bytes, number: int = 0) -> int:
        return self.caller.set(key_of(bucket, number), value)

    def until_told(self, records: int) -> None:
        """The hub has told so many since it was made."""
        wait_until(lambda: self.hub.stats()["records"] >= records, f"{records} records")

    def close(self) -> None:
        for feed in self._feeds:
            feed.close()
        assert self.hub.stop(PATIENCE_S)
        assert self.hub.stats()["unhandled_errors"] == 0
