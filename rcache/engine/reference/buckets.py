"""Items, buckets, stripes: the state of the reference engine, and nothing that waits.

What it is: the data structures and the steps on them that happen under a stripe lock.
Which thread runs it: any that holds the stripe's lock; a method with `_locked` in its name says so.
What it owns: the items. What it must not know: frames, deadlines, memory limits, who waits for what.

Invariants, under the stripe's lock:
1. A key is in its bucket's `items`, in its stripe's `recency`, and (if it expires) in its stripe's `expiries`, or in none.
2. A bucket's `sequence` is that of its newest record, and its times never decrease.
3. `pending` holds the newest records that may not be committed yet, oldest first; none where the bucket waits for no point.
   Where the oldest is the bucket's OPEN, what is older than that is not known to be committed either: the primary before may
   have died between a record of which this node had a copy and the answer of another backup. Were it revealed and this node
   died then, that other one would become primary without it.
4. Of links, a bucket's answers wait even with nothing pending: for their leases. A primary that was stopped for a while goes on
   where it was, and without that would answer a GET with a value that its heir has replaced since.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from typing import NamedTuple

from sortedcontainers import SortedList

from rcache.cluster.bucket_state import BucketState
from rcache.engine.change_stream import DISK, NO_WAIT, Wait
from rcache.records.record import BORN_EMPTY, counter_of, epoch_of

ITEM_BYTES = 400
"""What an item costs beside key and value, in bytes: the item, its two entries in hash tables, their share of the tables'
spare room, and the headers of the bytes objects. Measured: `tests/contract/test_memory.py` holds it to the process's growth."""

EXPIRY_BYTES = 130
"""What an expiry costs in the sorted list, in bytes."""


class Item(NamedTuple):
    """One item; it is replaced, never changed."""

    value: bytes
    flags: int
    expires_at_ms: int
    version: int


def item_bytes(key_bytes: int, value_bytes: int, expires: bool) -> int:
    """What an item costs, in bytes, by the engine's accounts."""
    return ITEM_BYTES + key_bytes + value_bytes + (EXPIRY_BYTES if expires else 0)


def is_expired(item: Item, now_ms: int) -> bool:
    return 0 < item.expires_at_ms <= now_ms


class Stripe:
    """One lock over some buckets, with the orders that go across them."""

    __slots__ = ("expiries", "hits", "items", "lock", "misses", "recency", "removed", "sets")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.recency: OrderedDict[bytes, int] = OrderedDict()  # key: when last used; the least recently used first
        self.expiries: SortedList = SortedList()  # (expires at, ms; key)
        self.hits = 0
        self.misses = 0
        self.sets = 0
        self.removed: dict[int, int] = {}  # cause: how many


class Bucket:
    """One bucket of this node."""

    __slots__ = (
        "_ahead_ms",
        "_newest_ms",
        "_points_at_first",
        "follows",
        "import_begin",
        "import_rows",
        "items",
        "last_removal",
        "number",
        "opened_from",
        "pending",
        "points",
        "sequence",
        "state",
        "stripe",
    )

    def __init__(self, number: int, stripe: Stripe, points: int = 0) -> None:
        self.number = number
        self.stripe = stripe
        self.state = BucketState.ABSENT
        self.items: dict[bytes, Item] = {}
        self.sequence = BORN_EMPTY
        self.last_removal = BORN_EMPTY
        self.follows = 0  # the source whose records it takes; 0: a recovery
        self.opened_from = 0
        self.points = self._points_at_first = points  # the commit points it waits for, a bit each
        self.pending: deque[tuple[int, int]] = deque()  # (sequence, position in the stream)
        self.import_begin = BORN_EMPTY
        self.import_rows = 0
        self._newest_ms = 0
        self._ahead_ms = 0

    @property
    def newest_ms(self) -> int:
        """The time of the newest record."""
        return self._newest_ms

    @property
    def links(self) -> int:
        """The points that are a link's."""
        return self.points & ~(1 << DISK)

    def now_locked(self, clock_ms: int) -> int:
        """The bucket's time: the node's clock, or its newest record's time carried on, whichever is later."""
        return max(clock_ms + self._ahead_ms, self._newest_ms)

    def place_locked(self, sequence: int, time_ms: int) -> None:
        """The bucket's newest record is this one (invariant 2)."""
        assert sequence > self.sequence
        assert time_ms >= self._newest_ms
        self.sequence = sequence
        self._newest_ms = time_ms

    def learn_time_locked(self, time_ms: int, clock_ms: int) -> None:
        """A record from elsewhere, or from before a restart, may be ahead of this node's clock."""
        self._newest_ms = max(self._newest_ms, time_ms)
        self._ahead_ms = max(self._ahead_ms, time_ms - clock_ms)

    def wait_locked(self, sequence: int, committed: int) -> Wait:
        """What an answer that reveals `sequence` waits for, in a stream that is committed for this bucket up to `committed`."""
        pending = self.pending
        self._forget_committed_locked(committed)
        if not pending:
            return self._lease_wait_locked()
        first, position = pending[0]
        if sequence < first:  # invariant 3
            return Wait(self.points, position) if counter_of(first) == 0 else self._lease_wait_locked()
        if epoch_of(first) == epoch_of(sequence):
            return Wait(self.points, pending[sequence - first][1])  # counters have no holes
        return Wait(self.points, next(position for at, position in pending if at >= sequence))

    def _lease_wait_locked(self) -> Wait:
        """Invariant 4: nothing is to come, but the leases of the links are to hold."""
        return Wait(self.links, 0) if self.links else NO_WAIT

    def pend_locked(self, sequence: int, position: int, committed: int) -> Wait:
        """The newest record, `sequence`, ends at `position` of the stream (invariant 3). What its answer waits for."""
        if not self.points:
            return NO_WAIT
        self._forget_committed_locked(committed)
        self.pending.append((sequence, position))
        return Wait(self.points, position)

    def _forget_committed_locked(self, committed: int) -> None:
        pending = self.pending
        while pending and pending[0][1] <= committed:
            pending.popleft()

    def set_points_locked(self, points: int) -> None:
        """Wait for these points from now on."""
        self.points = points
        if not points:
            self.pending.clear()

    def leave_points_locked(self) -> None:
        """The bucket answers nobody any more: it waits for what a new one waits for, and its past as primary is over. What
        pended would stand before the OPEN that it may begin with again one day, and hide it (invariant 3)."""
        self.points = self._points_at_first
        self.pending.clear()

    def begin_locked(self, sequence: int) -> int:
        """Let go of everything and stand at `sequence`: an import begins, or (BORN_EMPTY) the bucket leaves this node. Returns
        how much the accounts shrink, in bytes."""
        freed = self.clear_locked()
        self.sequence = self.import_begin = self.last_removal = sequence
        self.import_rows = 0
        self.pending.clear()
        return freed

    def put_locked(self, key: bytes, item: Item) -> int:
        """Put an item in its place. Returns by how much the accounts grow, in bytes (negative if they shrink)."""
        stripe = self.stripe
        old = self.items.get(key)
        grown = item_bytes(len(key), len(item.value), item.expires_at_ms > 0)
        if old is not None:
            grown -= item_bytes(len(key), len(old.value), old.expires_at_ms > 0)
            if old.expires_at_ms:
                stripe.expiries.remove((old.expires_at_ms, key))
        if item.expires_at_ms:
            stripe.expiries.add((item.expires_at_ms, key))
        self.items[key] = item
        stripe.recency[key] = time.monotonic_ns()
        stripe.recency.move_to_end(key)
        return grown

    def drop_locked(self, key: bytes) -> int:
        """Take an item out. Returns how much the accounts shrink, in bytes."""
        item = self.items.pop(key)
        del self.stripe.recency[key]
        if item.expires_at_ms:
            self.stripe.expiries.remove((item.expires_at_ms, key))
        return item_bytes(len(key), len(item.value), item.expires_at_ms > 0)

    def clear_locked(self) -> int:
        """Take all items out. Returns how much the accounts shrink, in bytes."""
        return sum(self.drop_locked(key) for key in list(self.items))

    def touch_locked(self, key: bytes) -> None:
        """The key was used just now."""
        recency = self.stripe.recency
        recency[key] = time.monotonic_ns()
        recency.move_to_end(key)
