"""The store: reads and changes of single keys, with all they must wait for first.

What it is: the order of steps of a change: room in the stream, memory (by eviction where it must be), then the stripe lock,
the decision, the record and the item; then what was not used is given back.
Which thread runs it: workers, and the housekeeper for expiry. Blocks only before a stripe lock is taken.
What it owns: buckets and stripes. What it must not know: frames and payloads (that is `operations`).

Invariants:
1. A refusal leaves everything as it was, except that an expired item it came upon may have been removed.
2. Between looking and changing the stripe lock is held throughout; what was reserved beforehand was a guess that is checked
   under the lock, and if it no longer fits, the change starts over (TRIES_MAX times).
3. Every removal is a record with its cause: deleted, expired, evicted, flushed.
4. Whether changes are paused is looked at under the stripe lock under which one is made; so once that is set, and every stripe
   lock was taken once, no change is under way that did not see it.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable
from typing import NamedTuple

from rcache.cluster.bucket_state import BucketState, may_follow
from rcache.engine.change_stream import DISK, MOMENT_WANTED, NO_WAIT, Wait
from rcache.engine.clock import NodeClock
from rcache.engine.contract import EngineConfig, RequestRefused
from rcache.engine.credit import credit_cost
from rcache.engine.reference.borrowing import Borrowing
from rcache.engine.reference.buckets import ITEM_BYTES, Bucket, Item, Stripe, item_bytes
from rcache.engine.reference.credit import Claim
from rcache.engine.reference.loans import Loans
from rcache.engine.reference.memory import MemoryAccount
from rcache.engine.reference.ring import Ring, StreamFailed
from rcache.records.record import (
    COUNTER_MAX,
    Cause,
    Kind,
    Opening,
    counter_of,
    draft,
    encode_opening,
    record_bytes,
    show_sequence,
    stamp,
)
from rcache_client.wire.opcodes import Status

TRIES_MAX = 8
"""How often a change whose reserved room no longer fits starts over. Each time another writer has changed the same item
between two steps of this one; eight in a row is contention that the caller should hear of."""

EXPIRE_BEFORE_EVICT = 16
"""How many expired items are looked for before anything alive is evicted."""


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


class Changed(NamedTuple):
    """A change that was made: its sequence, what its answer waits for, and the item (None: removed)."""

    version: int
    wait: Wait
    item: Item | None


class Read(NamedTuple):
    """What was found, what its answer waits for, and the bucket's time in ms."""

    item: Item | None
    wait: Wait
    now_ms: int


class _Paused(Exception):
    """Changes are paused: wait for the end of that, and start over."""


class Store:
    """The items of one node."""

    def __init__(self, config: EngineConfig, ring: Ring, clock: NodeClock) -> None:
        self.config = config
        self.ring = ring
        self._commitment = ring.commitment
        self.clock = clock
        self.memory = MemoryAccount(config.memory_bytes)
        self.stripes = [Stripe() for _ in range(min(config.stripes, config.buckets))]
        points = 1 << DISK if config.commit else 0
        self.buckets = [Bucket(number, self.stripes[number % len(self.stripes)], points) for number in range(config.buckets)]
        self._mask = config.buckets - 1
        self.evicts = config.evict
        self.loans = Loans(self.memory, config.value_bytes_max)
        self.own_full = False  # what this node is primary of has its part of the memory, as looked at last
        self.borrowing = Borrowing(ring.credits, self)

    def bucket_of(self, key: bytes) -> Bucket:
        """Key to bucket: CRC-32, masked."""
        return self.buckets[zlib.crc32(key) & self._mask]

    # --- reading

    def read(self, key: bytes, deadline_ns: int, *, use: bool = True) -> Read:
        """Look up a key; an expired item is removed first (while changes are paused it is a miss that stays, and reveals that
        the change that made it has been made). `use`: it counts as used. Raises `RequestRefused`."""
        bucket = self.bucket_of(key)
        stripe = bucket.stripe
        with stripe.lock:
            _demand_primary(bucket)
            item = bucket.items.get(key)
            now_ms = bucket.now_locked(self.clock.now_ms())
            is_kept = item is not None and self.ring.paused and _is_expired(item, now_ms)
            if item is None or is_kept:
                stripe.misses += use
                revealed = max(bucket.last_removal, item.version) if item is not None else bucket.last_removal
                return Read(None, self._wait_locked(bucket, revealed), now_ms)
            if not _is_expired(item, now_ms):
                if use:
                    stripe.hits += 1
                    bucket.touch_locked(key)
                return Read(item, self._wait_locked(bucket, item.version), now_ms)
        self._expire(bucket, key, deadline_ns)
        return self.read(key, deadline_ns, use=use)

    def look(self, key: bytes) -> Item | None:
        """The item under a key as it is, expired or not: a guess for what a change will need."""
        bucket = self.bucket_of(key)
        with bucket.stripe.lock:
            return bucket.items.get(key)

    # --- changing

    def change(self, key: bytes, room: int, deadline_ns: int, decide: Decide) -> Changed:
        """Change one key as `decide` says; `room` is a guess of the new value's length. Raises `RequestRefused`."""
        bucket = self.bucket_of(key)
        tries = 0
        while tries < TRIES_MAX:
            try:
                made = self._try_change(bucket, key, room, deadline_ns, decide)
            except _Paused:
                self._await_resumed(bucket, deadline_ns)
                continue
            if isinstance(made, Changed):
                return made
            room = made
            tries += 1
        raise RequestRefused(Status.BUSY, "the item kept changing while room was made for it; try again")

    def _try_change(self, bucket: Bucket, key: bytes, room: int, deadline_ns: int, decide: Decide) -> Changed | int:
        """One try. Returns the change, or the room that turned out to be needed. Raises `_Paused`."""
        reserved = record_bytes(len(key), room)
        self._reserve_stream(reserved, deadline_ns)
        claim = Claim(0, 0)
        try:
            claim = self._take_credit(bucket, key, room, deadline_ns, decide)
            taken = self._take_memory(bucket, key, room, deadline_ns, decide)
        except BaseException:
            self.borrowing.give_rest(claim)
            self.ring.unreserve(reserved)
            raise
        used = False
        try:
            with bucket.stripe.lock:
                _demand_primary(bucket)
                self.demand_running()
                _demand_counter(bucket)
                if bucket.links & ~claim.points:
                    return room  # a backup more, whose credit was not asked for
                now_ms = bucket.now_locked(self.clock.now_ms())
                held = bucket.items.get(key)
                live = None if held is None or _is_expired(held, now_ms) else held
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
                    self.ring.credits.use(claim, growth)
                    taken -= grown
                    return changed
                if decision is REMOVE:
                    used = True
                    return self._remove_locked(bucket, key, Cause.DELETED, now_ms, reserved)
                raise self._refusal_locked(bucket, decision, live)
        except StreamFailed as failed:
            raise RequestRefused(Status.STOPPING, f"the append log failed: {failed}") from None
        finally:
            self.borrowing.give_rest(claim)
            if not used:
                self.ring.unreserve(reserved)
            if taken:
                self.memory.force(-taken)

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
        version, wait = self._record_locked(bucket, record, bucket.sequence + 1, now_ms, reserved)
        item = Item(new.value, new.flags, new.expires_at_ms, version)
        bucket.stripe.sets += 1
        return bucket.put_locked(key, item), Changed(version, wait, item)

    def _remove_locked(self, bucket: Bucket, key: bytes, cause: Cause, now_ms: int, reserved: int) -> Changed:
        freed, changed = self._take_out_locked(bucket, key, cause, now_ms, reserved)
        self.memory.force(-freed)
        return changed

    def _take_out_locked(self, bucket: Bucket, key: bytes, cause: Cause, now_ms: int, reserved: int) -> tuple[int, Changed]:
        """Remove an item; the bytes that leaves are the caller's."""
        record = draft(Kind.REMOVE, bucket.number, key, cause=cause)
        version, wait = self._record_locked(bucket, record, bucket.sequence + 1, now_ms, reserved)
        bucket.last_removal = version
        freed = bucket.drop_locked(key)
        _count_removed(bucket.stripe, cause, 1)
        return freed, Changed(version, wait, None)

    # --- pauses

    def set_paused(self, paused: bool) -> None:
        """Invariant 4: who takes a stripe's lock after this sees it, and who has it is waited for."""
        self.ring.set_paused(paused)
        for stripe in self.stripes:
            with stripe.lock:
                pass

    def demand_running(self) -> None:
        if self.ring.paused:
            raise _Paused

    def _await_resumed(self, bucket: Bucket, deadline_ns: int) -> None:
        """Wait for the end of a pause. Raises `RequestRefused`. Blocks."""
        with bucket.stripe.lock:
            _demand_primary(bucket)
        if not self.ring.wait_resumed(deadline_ns):
            raise RequestRefused(Status.PAUSED, "changes are paused, and were so until the deadline")

    def _record_locked(self, bucket: Bucket, record: bytearray, sequence: int, now_ms: int, reserved: int) -> tuple[int, Wait]:
        """Give a record its place, in the bucket and in the stream. Raises `StreamFailed` before anything has changed."""
        stamp(record, sequence, now_ms)
        position = self.ring.append(bytes(record), reserved)
        bucket.place_locked(sequence, now_ms)
        return sequence, bucket.pend_locked(sequence, position, self._commitment.committed(bucket.points))

    def _wait_locked(self, bucket: Bucket, sequence: int) -> Wait:
        """What an answer waits for that reveals `sequence`, which it has not made itself."""
        if not bucket.points:
            return NO_WAIT
        wait = bucket.wait_locked(sequence, self._commitment.committed(bucket.points))
        return wait._replace(moment=MOMENT_WANTED) if self.config.confirm_reads and wait.points else wait

    def _refusal_locked(self, bucket: Bucket, refusal: Refusal, live: Item | None) -> RequestRefused:
        """A refusal reveals the item it is about, or that there is none."""
        revealed = bucket.last_removal if live is None else live.version
        wait = self._wait_locked(bucket, revealed)
        return RequestRefused(refusal.status, refusal.reason, version=live.version if live else 0, wait=wait)

    # --- commit points

    def set_points(self, number: int, points: int) -> int:
        """Have a bucket wait for these points (bits). Returns the stream's head at that moment."""
        bucket = self.buckets[number]
        with bucket.stripe.lock:
            bucket.set_points_locked(points)
            return self.ring.head

    def point(self, number: int) -> int:
        return self._commitment.position(number)

    def advance(self, number: int, position: int, moment: int) -> None:
        self._commitment.advance(number, position, moment)

    def lease(self, number: int, until_ns: int) -> None:
        self._commitment.lease(number, until_ns)

    def close_point(self, number: int) -> None:
        """No bucket waits for this point any more, and nobody who does so now."""
        self._forget_point(number)
        self._commitment.close(number)

    def abandon_point(self, number: int) -> None:
        """Nobody's wait for it is met any more. Only then do the buckets forget it, so that no answer in between counts on it
        without its lease. (Whose buckets it took over must be PRIMARY here no more by then: what forgets its last point
        answers alone.)"""
        self._commitment.abandon(number)
        self._forget_point(number)

    def _forget_point(self, number: int) -> None:
        for bucket in self.buckets:
            with bucket.stripe.lock:
                bucket.set_points_locked(bucket.points & ~(1 << number))

    def debt(self, number: int) -> int:
        return self.ring.credits.accounts[number].debt

    def ask(self, number: int) -> None:
        self._commitment.begin_moment(1 << number)

    # --- room

    def _take_credit(self, bucket: Bucket, key: bytes, room: int, deadline_ns: int, decide: Decide) -> Claim:
        """Credit at each backup of the bucket. Nothing is evicted for a change that will be refused or only removes."""

        def growth() -> int:
            with bucket.stripe.lock:
                held = bucket.items.get(key)
                now_ms = bucket.now_locked(self.clock.now_ms())
                decision = decide(None if held is None or _is_expired(held, now_ms) else held, now_ms)
                return max(0, _growth(key, held, decision)) if isinstance(decision, NewItem) else 0

        return self.borrowing.take(bucket.links, credit_cost(len(key), room), growth, deadline_ns)

    def _reserve_stream(self, count: int, deadline_ns: int) -> None:
        try:
            if self.ring.reserve(count, deadline_ns):
                return
        except StreamFailed as failed:
            raise RequestRefused(Status.STOPPING, f"the append log failed: {failed}") from None
        raise RequestRefused(Status.BUSY, "the append log is behind and had no room before the deadline")

    def _take_memory(self, bucket: Bucket, key: bytes, room: int, deadline_ns: int, decide: Decide) -> int:
        """Memory for an item with a value of `room` bytes, by eviction where needed. Returns the bytes taken.

        Nothing is evicted for a change that will be refused or only removes, and a full store can still overwrite in place.
        Where memory is short and this node's own items have their part of it, one of them goes for one that comes. Else own
        changes would take the bytes that peers evict for their own, until nothing of theirs is left.
        """
        cost = item_bytes(len(key), room, expires=True)
        gives_way = self.own_full and self.config.evict and self.loans.is_short
        if not gives_way and self.memory.try_take(cost):
            return cost
        with bucket.stripe.lock:
            held = bucket.items.get(key)
            now_ms = bucket.now_locked(self.clock.now_ms())
            live = None if held is None or _is_expired(held, now_ms) else held
            decision = decide(live, now_ms)
        if isinstance(decision, Refusal):
            return 0
        whole = item_bytes(len(key), len(decision.value), decision.expires_at_ms > 0)
        if whole > self.memory.limit:
            raise RequestRefused(Status.NO_ROOM, f"the item alone would pass the memory limit of {self.memory.limit} bytes")
        cost = whole if held is None else max(0, whole - item_bytes(len(key), len(held.value), held.expires_at_ms > 0))
        self._make_room(cost, deadline_ns, gives_way=gives_way and cost > 0)
        return cost

    def _make_room(self, cost: int, deadline_ns: int, *, gives_way: bool) -> None:
        """Take `cost` bytes; expired items go first, then the least recently used; one goes in any case where it `gives_way`.
        What is evicted is kept for this change, and so is no part of what is lent to peers. Raises `RequestRefused` (NO_ROOM)
        and `_Paused`."""
        expired = True
        kept = 0
        try:
            for tried in range(2 * (cost // ITEM_BYTES) + TRIES_MAX):
                if (tried or not gives_way) and self.memory.try_take(cost - kept):
                    kept = 0
                    return
                if self.ring.paused:
                    break
                expired = expired and self.expire_due(EXPIRE_BEFORE_EVICT, deadline_ns) > 0
                freed = self._evict_kept(deadline_ns) if self.config.evict and not expired else None
                if not expired and freed is None:
                    break
                kept += freed or 0
            if self.memory.try_take(cost - kept):
                kept = 0
                return
        finally:
            self.memory.force(-kept)
        self.demand_running()
        why = "nothing is left to evict" if self.config.evict else "and eviction is switched off (--no-evict)"
        raise RequestRefused(Status.NO_ROOM, f"the memory limit of {self.memory.limit} bytes is reached, {why}")

    def evict_one(self, deadline_ns: int) -> bool:
        """Remove the least recently used item this node is primary of. False if there is none, or while changes are paused.
        Raises `RequestRefused`."""
        freed = self._evict_kept(deadline_ns)
        self.memory.force(-(freed or 0))
        return freed is not None

    def _evict_kept(self, deadline_ns: int) -> int | None:
        """The same; returns how many bytes that leaves to the caller, who has them from now on; None for False."""
        key = self._oldest(self._is_ours)
        if key is None:
            return None
        return self._remove_if(self.bucket_of(key), key, Cause.EVICTED, deadline_ns, lambda _item, _now_ms: True)

    def evict_for(self, number: int, deadline_ns: int) -> int:
        """The same among what the backup behind a point holds. Returns what the item counted, which is refunded; 0 for none."""
        for _ in range(TRIES_MAX):
            key = self._oldest(lambda key: self._is_ours(key) and self.bucket_of(key).points >> number & 1 == 1)
            item = None if key is None else self.look(key)
            if key is None or item is None:
                continue
            counted = credit_cost(len(key), len(item.value))
            self.ring.credits.refund(number, counted)
            freed = 0
            try:
                freed = self._remove_if(self.bucket_of(key), key, Cause.EVICTED, deadline_ns, _is_still(item))
            finally:
                if not freed:
                    self.ring.credits.refund(number, -counted)
            if freed:
                self.memory.force(-freed)
                self.ring.credits.refunded(number, counted)
                return counted
        return 0

    def _oldest(self, wanted: Callable[[bytes], bool]) -> bytes | None:
        """The least recently used key of those that are wanted; None while changes are paused."""
        oldest: tuple[int, bytes] | None = None
        for stripe in self.stripes if not self.ring.paused else ():
            with stripe.lock:
                found = next(((used_ns, key) for key, used_ns in stripe.recency.items() if wanted(key)), None)
            if found is not None and (oldest is None or found < oldest):
                oldest = found
        return None if oldest is None else oldest[1]

    def _is_ours(self, key: bytes) -> bool:
        """Whether this node may remove a key by itself: a backup's items go when their primary says so."""
        return self.bucket_of(key).state is BucketState.PRIMARY

    # --- expiry

    def _expire(self, bucket: Bucket, key: bytes, deadline_ns: int) -> bool:
        freed = self._remove_if(bucket, key, Cause.EXPIRED, deadline_ns, _is_expired)
        self.memory.force(-freed)
        return freed > 0

    def _remove_if(
        self, bucket: Bucket, key: bytes, cause: Cause, deadline_ns: int, wanted: Callable[[Item, int], bool]
    ) -> int:
        """Remove an item if it is still there and `wanted`, unless changes are paused. Returns how many bytes that leaves to
        the caller, who has them from now on; 0: nothing was removed. Raises `RequestRefused` where the stream has no room."""
        reserved = record_bytes(len(key), 0)
        self._reserve_stream(reserved, deadline_ns)
        used, freed = False, 0
        try:
            with bucket.stripe.lock:
                item = bucket.items.get(key)
                now_ms = bucket.now_locked(self.clock.now_ms())
                is_ours = bucket.state is BucketState.PRIMARY and not self.ring.paused
                if item is not None and is_ours and wanted(item, now_ms):
                    _demand_counter(bucket)
                    used = True
                    freed, _ = self._take_out_locked(bucket, key, cause, now_ms, reserved)
        except StreamFailed as failed:
            raise RequestRefused(Status.STOPPING, f"the append log failed: {failed}") from None
        finally:
            if not used:
                self.ring.unreserve(reserved)
        return freed

    def expire_due(self, items_max: int, deadline_ns: int) -> int:
        """Remove up to `items_max` expired items. Returns how many; none while changes are paused."""
        removed = 0
        if self.ring.paused:
            return 0
        for stripe in self.stripes:
            if removed >= items_max:
                break
            with stripe.lock:
                now_ms = self.clock.now_ms()
                past = itertools.takewhile(lambda expiry: expiry[0] <= now_ms, stripe.expiries)  # noqa: B023 (used up here)
                due = list(itertools.islice((key for _, key in past if self._is_ours(key)), items_max - removed))
            for key in due:
                removed += self._expire(self.bucket_of(key), key, deadline_ns)
        return removed

    # --- whole buckets

    def flush(self, bucket: Bucket, deadline_ns: int) -> int:
        """Remove all items of a bucket with one record. Returns how many. Raises `RequestRefused`."""
        while True:
            try:
                return self._try_flush(bucket, deadline_ns)
            except _Paused:
                self._await_resumed(bucket, deadline_ns)

    def _try_flush(self, bucket: Bucket, deadline_ns: int) -> int:
        reserved = record_bytes(0, 0)
        self._reserve_stream(reserved, deadline_ns)
        used = False
        try:
            with bucket.stripe.lock:
                _demand_primary(bucket)
                self.demand_running()
                _demand_counter(bucket)
                count = len(bucket.items)
                if count:
                    used = True
                    now_ms = bucket.now_locked(self.clock.now_ms())
                    record = draft(Kind.FLUSH, bucket.number, cause=Cause.FLUSHED)
                    bucket.last_removal, _ = self._record_locked(bucket, record, bucket.sequence + 1, now_ms, reserved)
                    self.memory.force(-bucket.clear_locked())
                    _count_removed(bucket.stripe, Cause.FLUSHED, count)
                return count
        except StreamFailed as failed:
            raise RequestRefused(Status.STOPPING, f"the append log failed: {failed}") from None
        finally:
            if not used:
                self.ring.unreserve(reserved)

    def open(self, bucket: Bucket, incarnation: int, node: str, epoch_begin: int, deadline_ns: int) -> None:
        """Become primary of a bucket: an OPEN with `epoch_begin` as its sequence, which names the bucket's newest record.
        Raises `RequestRefused`, and ValueError if the bucket's state or epoch does not allow it."""
        reserved = record_bytes(0, len(encode_opening(Opening(0, incarnation, node))))
        self._reserve_stream(reserved, deadline_ns)
        used = False
        try:
            with bucket.stripe.lock:
                if not may_follow(bucket.state, BucketState.PRIMARY) or epoch_begin <= bucket.sequence:
                    now = f"{bucket.state.value} at {show_sequence(bucket.sequence)}"
                    raise ValueError(
                        f"bucket {bucket.number} is {now}; it cannot become primary at {show_sequence(epoch_begin)}"
                    )
                used = True
                opening = encode_opening(Opening(bucket.sequence, incarnation, node))
                now_ms = bucket.now_locked(self.clock.now_ms())
                record = draft(Kind.OPEN, bucket.number, value=opening)
                bucket.last_removal, _ = self._record_locked(bucket, record, epoch_begin, now_ms, reserved)
                bucket.state = BucketState.PRIMARY
                bucket.follows = 0  # should it be a backup again, it is told anew whose
        except StreamFailed as failed:
            raise RequestRefused(Status.STOPPING, f"the append log failed: {failed}") from None
        finally:
            if not used:
                self.ring.unreserve(reserved)


def _growth(key: bytes, held: Item | None, new: NewItem) -> int:
    """By how much an item grows, as credit counts it."""
    old = credit_cost(len(key), len(held.value)) if held is not None else 0
    return credit_cost(len(key), len(new.value)) - old


def _is_still(seen: Item) -> Callable[[Item, int], bool]:
    return lambda item, _now_ms: item is seen


def _is_expired(item: Item, now_ms: int) -> bool:
    return 0 < item.expires_at_ms <= now_ms


def _demand_primary(bucket: Bucket) -> None:
    if bucket.state is not BucketState.PRIMARY:
        raise RequestRefused(Status.NOT_PRIMARY, f"bucket {bucket.number} is {bucket.state.value} on this node")


def _demand_counter(bucket: Bucket) -> None:
    if counter_of(bucket.sequence) >= COUNTER_MAX:
        raise RequestRefused(Status.BUSY, f"bucket {bucket.number} is about to be opened in a new epoch; try again")


def _count_removed(stripe: Stripe, cause: Cause, count: int) -> None:
    stripe.removed[cause] = stripe.removed.get(cause, 0) + count
