"""Reads and changes of single keys, with all they must wait for first.

What it is: the order of steps of a change: room in the stream, credit of its backups, memory (by eviction where it must be),
then the stripe lock, the decision, the record and the item; then what was not used is given back.
Which thread runs it: workers. Blocks only before a stripe lock is taken.
What it owns: nothing. What it must not know: frames and payloads (that is `operations`).

Invariants:
1. A refusal leaves everything as it was, except that an expired item it came upon may have been removed.
2. Between looking and changing the stripe lock is held throughout; what was reserved beforehand was a guess that is checked
   under the lock, and if it no longer fits, the change starts over (TRIES_MAX times).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from rcache.engine.change_stream import Wait
from rcache.engine.contract import RequestRefused
from rcache.engine.credit import credit_cost
from rcache.engine.reference.borrowing import Borrowing
from rcache.engine.reference.buckets import Bucket, Item, is_expired, item_bytes
from rcache.engine.reference.credit import Claim
from rcache.engine.reference.removal import Removal
from rcache.engine.reference.ring import StreamFailed
from rcache.engine.reference.store import Changed, Paused, Store, demand_counter, demand_primary, log_failed
from rcache.records.record import Cause, Kind, draft, record_bytes
from rcache_client.wire.opcodes import Status

TRIES_MAX = 8
"""How often a change whose reserved room no longer fits starts over. Each time another writer has changed the same item
between two steps of this one; eight in a row is contention that the caller should hear of."""


class NewItem(NamedTuple):
    """A decision: the item's new value, flags and expiry (ms since 1970, 0: never), and what kind of change it is."""

    value: bytes
    flags: int
    expires_at_ms: int
    cause: Cause


class Refusal(NamedTuple):
    """A decision: change nothing, and answer this. `version`: the current item's, 0 if there is none."""

    status: Status
    reason: str = ""


REMOVE = Refusal(Status.OK)
"""The decision to remove the item."""

Decision = NewItem | Refusal
Decide = Callable[[Item | None, int], Decision]
"""Called under the stripe lock with the live item, if any, and the bucket's time in ms. Must not wait or raise."""


class Read(NamedTuple):
    """What was found, what its answer waits for, and the bucket's time in ms."""

    item: Item | None
    wait: Wait
    now_ms: int


class Changes:
    """Reads and changes of the keys of one store."""

    def __init__(self, store: Store, removal: Removal, borrowing: Borrowing) -> None:
        self._store = store
        self._removal = removal
        self._borrowing = borrowing
        self._ring = store.ring
        self._clock = store.clock
        self._memory = store.memory

    # --- reading

    def read(self, key: bytes, deadline_ns: int, *, use: bool = True) -> Read:
        """Look up a key; an expired item is removed first (while changes are paused it is a miss that stays, and reveals that
        the change that made it has been made). `use`: it counts as used. Raises `RequestRefused`."""
        bucket = self._store.bucket_of(key)
        stripe = bucket.stripe
        with stripe.lock:
            demand_primary(bucket)
            item = bucket.items.get(key)
            now_ms = bucket.now_locked(self._clock.now_ms())
            is_kept = item is not None and self._ring.paused and is_expired(item, now_ms)
            if item is None or is_kept:
                stripe.misses += use
                revealed = max(bucket.last_removal, item.version) if item is not None else bucket.last_removal
                return Read(None, self._store.wait_locked(bucket, revealed), now_ms)
            if not is_expired(item, now_ms):
                if use:
                    stripe.hits += 1
                    bucket.touch_locked(key)
                return Read(item, self._store.wait_locked(bucket, item.version), now_ms)
        self._removal.expire(bucket, key, deadline_ns)
        return self.read(key, deadline_ns, use=use)

    def look(self, key: bytes) -> Item | None:
        """See `Store`."""
        return self._store.look(key)

    # --- changing

    def change(self, key: bytes, room: int, deadline_ns: int, decide: Decide) -> Changed:
        """Change one key as `decide` says; `room` is a guess of the new value's length. Raises `RequestRefused`."""
        bucket = self._store.bucket_of(key)
        tries = 0
        while tries < TRIES_MAX:
            try:
                made = self._try_change(bucket, key, room, deadline_ns, decide)
            except Paused:
                self._store.await_resumed(bucket, deadline_ns)
                continue
            if isinstance(made, Changed):
                return made
            room = made
            tries += 1
        raise RequestRefused(Status.BUSY, "the item kept changing while room was made for it; try again")

    def _try_change(self, bucket: Bucket, key: bytes, room: int, deadline_ns: int, decide: Decide) -> Changed | int:
        """One try. Returns the change, or the room that turned out to be needed. Raises `Paused`."""
        reserved = record_bytes(len(key), room)
        self._store.reserve(reserved, deadline_ns)
        claim = Claim(0, 0)
        try:
            claim = self._take_credit(bucket, key, room, deadline_ns, decide)
            taken = self._take_memory(bucket, key, room, deadline_ns, decide)
        except BaseException:
            self._borrowing.give_rest(claim)
            self._ring.unreserve(reserved)
            raise
        used = False
        try:
            with bucket.stripe.lock:
                demand_primary(bucket)
                self._store.demand_running()
                demand_counter(bucket)
                if bucket.links & ~claim.points:
                    return room  # a backup more, whose credit was not asked for
                now_ms = bucket.now_locked(self._clock.now_ms())
                held = bucket.items.get(key)
                live = None if held is None or is_expired(held, now_ms) else held
                decision = decide(live, now_ms)
                if isinstance(decision, Refusal) and live is None and held is not None:
                    used = True
                    self._remove_locked(bucket, key, Cause.EXPIRED, now_ms, reserved)
                if isinstance(decision, NewItem):
                    growth = _growth(key, held, decision)
                    fits = len(decision.value) <= room and self._fits_locked(key, held, decision, taken)
                    if not fits or (claim.points and growth > claim.count):
                        return len(decision.value)
                    used = True
                    grown, changed = self._put_locked(bucket, key, decision, now_ms, reserved)
                    self._ring.credits.use(claim, growth)
                    taken -= grown
                    return changed
                if decision is REMOVE:
                    used = True
                    return self._remove_locked(bucket, key, Cause.DELETED, now_ms, reserved)
                raise self._refusal_locked(bucket, decision, live)
        except StreamFailed as failed:
            raise log_failed(failed) from None
        finally:
            self._borrowing.give_rest(claim)
            if not used:
                self._ring.unreserve(reserved)
            if taken:
                self._memory.force(-taken)

    @staticmethod
    def _fits_locked(key: bytes, held: Item | None, decision: NewItem, taken: int) -> bool:
        grown = item_bytes(len(key), len(decision.value), decision.expires_at_ms > 0)
        if held is not None:
            grown -= item_bytes(len(key), len(held.value), held.expires_at_ms > 0)
        return grown <= taken

    def _put_locked(self, bucket: Bucket, key: bytes, new: NewItem, now_ms: int, reserved: int) -> tuple[int, Changed]:
        record = draft(
            Kind.SET, bucket.number, key, new.value, cause=new.cause, flags=new.flags, expires_at_ms=new.expires_at_ms
        )
        version, wait = self._store.record_locked(bucket, record, bucket.sequence + 1, now_ms, reserved)
        item = Item(new.value, new.flags, new.expires_at_ms, version)
        bucket.stripe.sets += 1
        return bucket.put_locked(key, item), Changed(version, wait, item)

    def _remove_locked(self, bucket: Bucket, key: bytes, cause: Cause, now_ms: int, reserved: int) -> Changed:
        freed, changed = self._store.take_out_locked(bucket, key, cause, now_ms, reserved)
        self._memory.force(-freed)
        return changed

    def _refusal_locked(self, bucket: Bucket, refusal: Refusal, live: Item | None) -> RequestRefused:
        """A refusal reveals the item it is about, or that there is none."""
        revealed = bucket.last_removal if live is None else live.version
        wait = self._store.wait_locked(bucket, revealed)
        return RequestRefused(refusal.status, refusal.reason, version=live.version if live else 0, wait=wait)

    # --- room

    def _take_credit(self, bucket: Bucket, key: bytes, room: int, deadline_ns: int, decide: Decide) -> Claim:
        """Credit at each backup of the bucket. Nothing is evicted for a change that will be refused or only removes."""

        def growth() -> int:
            with bucket.stripe.lock:
                held = bucket.items.get(key)
                now_ms = bucket.now_locked(self._clock.now_ms())
                decision = decide(None if held is None or is_expired(held, now_ms) else held, now_ms)
                return max(0, _growth(key, held, decision)) if isinstance(decision, NewItem) else 0

        return self._borrowing.take(bucket.links, credit_cost(len(key), room), growth, deadline_ns)

    def _take_memory(self, bucket: Bucket, key: bytes, room: int, deadline_ns: int, decide: Decide) -> int:
        """Memory for an item with a value of `room` bytes, by eviction where needed. Returns the bytes taken.

        Nothing is evicted for a change that will be refused or only removes, and a full store can still overwrite in place.
        Where memory is short and this node's own items have their part of it, one of them goes for one that comes. Else own
        changes would take the bytes that peers evict for their own, until nothing of theirs is left.
        """
        cost = item_bytes(len(key), room, expires=True)
        gives_way = self._removal.gives_way
        if not gives_way and self._memory.try_take(cost):
            return cost
        with bucket.stripe.lock:
            held = bucket.items.get(key)
            now_ms = bucket.now_locked(self._clock.now_ms())
            live = None if held is None or is_expired(held, now_ms) else held
            decision = decide(live, now_ms)
        if isinstance(decision, Refusal):
            return 0
        whole = item_bytes(len(key), len(decision.value), decision.expires_at_ms > 0)
        if whole > self._memory.limit:
            raise RequestRefused(Status.NO_ROOM, f"the item alone would pass the memory limit of {self._memory.limit} bytes")
        cost = whole if held is None else max(0, whole - item_bytes(len(key), len(held.value), held.expires_at_ms > 0))
        self._removal.make_room(cost, deadline_ns, gives_way=gives_way and cost > 0)
        return cost


def _growth(key: bytes, held: Item | None, new: NewItem) -> int:
    """By how much an item grows, as credit counts it."""
    old = credit_cost(len(key), len(held.value)) if held is not None else 0
    return credit_cost(len(key), len(new.value)) - old
