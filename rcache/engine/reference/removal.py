"""Removals that nobody asked for by name: expiry and eviction; and making room.

What it is: finding what has expired and what was not used for longest, and taking it out with the record that says why.
Which thread runs it: workers that need room, and the housekeeper. Blocks only for room in the stream, never under a lock.
What it owns: what was looked at last of this node's own part of the memory. What it must not know: frames, what the room is
for.

Invariants:
1. Only items of buckets that this node is primary of are evicted or expired here.
2. Nothing is removed while changes are paused.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

from rcache.cluster.bucket_state import BucketState
from rcache.engine.contract import OPEN_WAIT_S, RequestRefused
from rcache.engine.credit import credit_cost
from rcache.engine.reference.buckets import ITEM_BYTES, Bucket, Item, is_expired
from rcache.engine.reference.ring import StreamFailed
from rcache.engine.reference.store import Store, demand_counter, log_failed
from rcache.records.record import Cause, record_bytes
from rcache_client.wire.opcodes import Status

TRIES_MAX = 8
"""How often room is looked for beyond what its size may ask for, and a victim for a backup's room: what was found may be
gone, or another's, by the time it is taken."""

EXPIRE_BEFORE_EVICT = 16
"""How many expired items are looked for before anything alive is evicted."""


class Removal:
    """Removals from one store. `Lender` for what is borrowed of backups."""

    def __init__(self, store: Store) -> None:
        self.evicts = store.config.evict
        self._store = store
        self._own_full = False  # what this node is primary of has its part of the memory, as looked at last

    @property
    def gives_way(self) -> bool:
        """Whether memory is short, and this node's own items have their part of it."""
        return self._own_full and self.evicts and self._store.loans.is_short

    # --- room

    def make_room(self, cost: int, deadline_ns: int, *, gives_way: bool) -> None:
        """Take `cost` bytes; expired items go first, then the least recently used; one goes in any case where it `gives_way`.
        What is evicted is kept for this change, and so is no part of what is lent to peers. Raises `RequestRefused` (NO_ROOM)
        and `Paused`."""
        expired = True
        kept = 0
        try:
            for tried in range(2 * (cost // ITEM_BYTES) + TRIES_MAX):
                if (tried or not gives_way) and self._store.memory.try_take(cost - kept):
                    kept = 0
                    return
                if self._store.ring.paused:
                    break
                expired = expired and self.expire_due(EXPIRE_BEFORE_EVICT, deadline_ns) > 0
                freed = self._evict_kept(deadline_ns) if self.evicts and not expired else None
                if not expired and freed is None:
                    break
                kept += freed or 0
            if self._store.memory.try_take(cost - kept):
                kept = 0
                return
        finally:
            self._store.memory.force(-kept)
        self._store.demand_running()
        why = "nothing is left to evict" if self.evicts else "and eviction is switched off (--no-evict)"
        raise RequestRefused(Status.NO_ROOM, f"the memory limit of {self._store.memory.limit} bytes is reached, {why}")

    def trim(self) -> int:
        """See `Engine`."""
        evicted = 0
        memory = self._store.memory
        left = memory.used - self.own_over() if self.evicts else memory.used
        while memory.used > left and self._evict_one(time.monotonic_ns() + int(OPEN_WAIT_S * 1e9)):
            evicted += 1
        return evicted

    def own_over(self) -> int:
        """How many bytes what this node is primary of is to give up: its part of what is over the limit, by the items; and
        where peers are lent little, what it has more than its buckets' part."""
        held = [bucket for bucket in self._store.buckets if bucket.state is not BucketState.ABSENT]
        own = [bucket for bucket in held if bucket.state in (BucketState.PRIMARY, BucketState.FROZEN)]
        items, own_items = sum(len(bucket.items) for bucket in held), sum(len(bucket.items) for bucket in own)
        loans = self._store.loans
        self._own_full = loans.count > 0 and own_items * len(held) >= items * len(own)
        if loans.free < 0:
            return -(loans.free * own_items // items) if items else 0
        return max(0, loans.lacking - loans.free) if own_items * len(held) > items * len(own) else 0

    def _evict_one(self, deadline_ns: int) -> bool:
        """Remove the least recently used item this node is primary of. False if there is none, or while changes are paused.
        Raises `RequestRefused`."""
        freed = self._evict_kept(deadline_ns)
        self._store.memory.force(-(freed or 0))
        return freed is not None

    def _evict_kept(self, deadline_ns: int) -> int | None:
        """The same; returns how many bytes that leaves to the caller, who has them from now on; None for False."""
        key = self._oldest(self._store.is_ours)
        if key is None:
            return None
        return self._remove_if(self._store.bucket_of(key), key, Cause.EVICTED, deadline_ns, lambda _item, _now_ms: True)

    def evict_for(self, number: int, deadline_ns: int) -> int:
        """The same among what the backup behind a point holds. Returns what the item counted, which is refunded; 0 for none."""
        for _ in range(TRIES_MAX):
            key = self._oldest(lambda key: self._store.is_ours(key) and self._store.bucket_of(key).points >> number & 1 == 1)
            item = None if key is None else self._store.look(key)
            if key is None or item is None:
                continue
            counted = credit_cost(len(key), len(item.value))
            self._store.ring.credits.refund(number, counted)
            freed = 0
            try:
                freed = self._remove_if(self._store.bucket_of(key), key, Cause.EVICTED, deadline_ns, _is_still(item))
            finally:
                if not freed:
                    self._store.ring.credits.refund(number, -counted)
            if freed:
                self._store.memory.force(-freed)
                self._store.ring.credits.refunded(number, counted)
                return counted
        return 0

    def _oldest(self, wanted: Callable[[bytes], bool]) -> bytes | None:
        """The least recently used key of those that are wanted; None while changes are paused."""
        oldest: tuple[int, bytes] | None = None
        for stripe in self._store.stripes if not self._store.ring.paused else ():
            with stripe.lock:
                found = next(((used_ns, key) for key, used_ns in stripe.recency.items() if wanted(key)), None)
            if found is not None and (oldest is None or found < oldest):
                oldest = found
        return None if oldest is None else oldest[1]

    def demand_running(self) -> None:
        self._store.demand_running()

    def ask(self, number: int) -> None:
        self._store.ring.commitment.begin_moment(1 << number)

    # --- expiry

    def expire(self, bucket: Bucket, key: bytes, deadline_ns: int) -> bool:
        freed = self._remove_if(bucket, key, Cause.EXPIRED, deadline_ns, is_expired)
        self._store.memory.force(-freed)
        return freed > 0

    def expire_due(self, items_max: int, deadline_ns: int) -> int:
        """Remove up to `items_max` expired items. Returns how many; none while changes are paused."""
        removed = 0
        if self._store.ring.paused:
            return 0
        for stripe in self._store.stripes:
            if removed >= items_max:
                break
            with stripe.lock:
                now_ms = self._store.clock.now_ms()
                past = itertools.takewhile(lambda expiry: expiry[0] <= now_ms, stripe.expiries)  # noqa: B023 (used up here)
                due = list(itertools.islice((key for _, key in past if self._store.is_ours(key)), items_max - removed))
            for key in due:
                removed += self.expire(self._store.bucket_of(key), key, deadline_ns)
        return removed

    def _remove_if(
        self, bucket: Bucket, key: bytes, cause: Cause, deadline_ns: int, wanted: Callable[[Item, int], bool]
    ) -> int:
        """Remove an item if it is still there and `wanted`, unless changes are paused. Returns how many bytes that leaves to
        the caller, who has them from now on; 0: nothing was removed. Raises `RequestRefused` where the stream has no room."""
        reserved = record_bytes(len(key), 0)
        self._store.reserve(reserved, deadline_ns)
        used, freed = False, 0
        try:
            with bucket.stripe.lock:
                item = bucket.items.get(key)
                now_ms = bucket.now_locked(self._store.clock.now_ms())
                is_ours = bucket.state is BucketState.PRIMARY and not self._store.ring.paused
                if item is not None and is_ours and wanted(item, now_ms):
                    demand_counter(bucket)
                    used = True
                    freed, _ = self._store.take_out_locked(bucket, key, cause, now_ms, reserved)
        except StreamFailed as failed:
            raise log_failed(failed) from None
        finally:
            if not used:
                self._store.ring.unreserve(reserved)
        return freed


def _is_still(seen: Item) -> Callable[[Item, int], bool]:
    return lambda item, _now_ms: item is seen
