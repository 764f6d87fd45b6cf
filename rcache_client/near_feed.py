"""How a near cache is told of changes: the listener of a set of feeds, which are asked for no values.

What it is: `NearFeed`, which starts the feeds, reads what they tell, and brings it to the slots.
Which thread runs it: each feed's own calls it as a listener; callers begin and end it.
What it owns: the feeds, and for each what it has proven. It may lock: the slots' lock, for moments, and its own while the feeds
are started, never both.
What it must not know: the client. A feed's thread holds on to this; were the client in reach, one that nobody closes would live
for ever.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping
from struct import Struct
from time import monotonic
from typing import TYPE_CHECKING

from rcache_client.errors import RcacheError
from rcache_client.feed_set import FeedSet, Selection, Told
from rcache_client.near_slots import Live, Slots
from rcache_client.routing import Router
from rcache_client.wire.feeds import Selects
from rcache_client.wire.grammar import BadPayload

if TYPE_CHECKING:
    from rcache_client.node_feed import NodeFeed

WAIT_S = 0.25
"""How long a node waits for something to tell, at most: no longer is a bucket that came there without a feed."""

PROOFS = 4
"""So often in `max_staleness` a node is asked at least: one answer may be late, and the next is in time."""

BEGIN_PAUSE_S = 1.0
"""After the feeds could not be started (the process has too many threads)."""

_HEADER = Struct(">IBBHIIQQQ")
_HEADER_BYTES = _HEADER.size
_KEYED = (2, 3)  # SET and REMOVE


class NearFeed:
    """See the module. `failure`: why no node tells, "" where that is not known to be so."""

    def __init__(self, router: Router, slots: Slots, prefix: bytes, max_staleness_s: float) -> None:
        self._router = router
        self._slots = slots
        self._prefix = prefix
        self._max_staleness_s = max_staleness_s
        self._closed = False
        self.forget()

    def forget(self) -> None:
        """Start anew in a forked child, where the feeds' threads are not."""
        feeds: FeedSet | None = getattr(self, "_feeds", None)
        if feeds is not None:
            feeds.forget()
        self._feeds: FeedSet | None = None
        self._starting = threading.Lock()
        self._not_before = 0.0
        self._lives: dict[NodeFeed, Live] = {}
        self._failures: dict[str, str] = {}
        self._trouble = ""

    # --- for the near cache

    def begin(self) -> None:
        """Start the feeds, unless they are. Asks nobody, and waits for nobody: nothing happens before the view is known."""
        if self._feeds is not None or monotonic() < self._not_before or not self._starting.acquire(blocking=False):
            return
        try:
            if self._feeds is None and not self._closed:
                self._begin()
        finally:
            self._starting.release()

    def _begin(self) -> None:
        if self._router.table.view is None:
            self._trouble = "no server says which nodes there are"
            return
        selection = Selection(Selects.PREFIX if self._prefix else Selects.EVERYTHING, self._prefix, values=False)
        feeds = FeedSet(self._router, selection, self, wait_s=min(WAIT_S, self._max_staleness_s / PROOFS))
        try:
            feeds.begin(monotonic())  # the view is known: it waits for nothing
        except (RcacheError, RuntimeError) as error:  # RuntimeError: no thread is to be had
            feeds.stop()
            self._trouble = f"the feeds could not be started: {error}"
            self._not_before = monotonic() + BEGIN_PAUSE_S
            return
        except BaseException:  # interrupted: those that were started would tell for ever
            feeds.stop()
            raise
        self._trouble = ""
        self._feeds = feeds

    def abandon(self) -> None:
        """Nobody is there any more who would close this. For a finalizer: takes no lock; their threads end by themselves."""
        self._closed = True
        feeds = self._feeds
        if feeds is not None:
            feeds.abandon()

    def close(self) -> None:
        """No feed goes on, none begins. Blocks until their threads have ended, which takes as long as an answer."""
        self._closed = True
        with self._starting:
            feeds = self._feeds
        if feeds is not None:
            feeds.close()

    @property
    def failure(self) -> str:
        present = {door.name for door in self._router.table.every}
        return self._trouble or "; ".join(sorted({why for name, why in list(self._failures.items()) if name in present}))

    # --- for the feeds

    def begun(self, feed: NodeFeed, places: Mapping[int, int]) -> None:
        """What it has proven so far counts for these buckets, too: what is read from now on is newer than that."""
        self._failures.pop(feed.door.name, None)
        self._slots.begun(self._lives.setdefault(feed, Live()), places)

    def take(self, feed: NodeFeed, told: Told) -> Mapping[int, int]:
        """Everything else first, the proof last: it says that all this was told.

        It is of the buckets that the feed had when it asked. What it has now is the same, but for those that end with this very
        answer: a feed claims buckets between two answers, in its own thread.
        """
        slots, reached = self._slots, dict[int, int]()
        for gap in told.gaps:
            slots.drop_bucket(gap.bucket)
            reached[gap.bucket] = gap.upto
        self._read(told.records, reached)
        reached.update(told.places)
        if told.ended:
            slots.lost(told.ended)
        live = self._lives.get(feed)
        if told.proven_at is not None and live is not None:
            live.until = max(live.until, told.proven_at + self._max_staleness_s)
        return reached

    def _read(self, body: bytes, reached: dict[int, int]) -> None:
        """As `events.read_records`, without an object for each: all of a cluster's writes may come by here."""
        told, drop_bucket, unpack = self._slots.told, self._slots.drop_bucket, _HEADER.unpack_from
        at, end = 0, len(body)
        while at < end:
            if end - at < _HEADER_BYTES:
                raise BadPayload(f"a record of {end - at} bytes")
            length, kind, _, key_bytes, bucket, _, sequence, _, _ = unpack(body, at)
            key_end = at + _HEADER_BYTES + key_bytes
            if not _HEADER_BYTES + key_bytes <= length <= end - at or (key_bytes > 0) is not (kind in _KEYED):
                raise BadPayload(f"a record of {length} bytes with a key of {key_bytes}, of kind {kind}")
            if key_bytes:
                told(body[at + _HEADER_BYTES : key_end], sequence)
            else:
                drop_bucket(bucket)  # OPEN, FLUSH, or what a later version has for a whole bucket
            reached[bucket] = sequence
            at += length

    def lost(self, feed: NodeFeed, buckets: Collection[int]) -> None:
        if self._lives.get(feed) not in self._slots.lost(buckets):
            self._lives.pop(feed, None)  # the connection is gone, most often: the next one proves anew

    def failed(self, feed: NodeFeed, error: Exception) -> bool:
        """It is tried again: a server may be replaced by a newer one."""
        self._failures[feed.door.name] = f"{feed.door.name}: {error}"
        return True
