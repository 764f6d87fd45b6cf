"""Removals that nobody asked for by name: expiry and eviction; and making room.

What it is: taking out an item with the record that says why, finding what has expired, finding what was not used for longest,
and freeing whole pages.
Which thread runs it: workers that need room, and the housekeeper for expiry. Blocks only for room in the stream, never under a
lock.
What it owns: nothing. What it must not know: frames, what the room is for.

How eviction chooses. Each item has the time of its last use, which a read stores under the stripe lock it holds anyway: there
is no list for reads to queue up at. Who needs a chunk looks at a few items of the class, in pages chosen at random, and
removes the one that was not used for longest (as Redis approximates LRU, but within the class). Now and then, and always
where the class has nothing to give, a page of another class is looked at; if what is in it has been idle for twice as long,
the whole page is emptied and changes its class. So no class starves while another sits on old items.

How pages are emptied. An item of such a page is moved to a free chunk of its class elsewhere if there is one (not a change: no
record), else evicted. Without eviction only moving is done. A page with an item in it that is in use (idle for less than a
quarter of what the page is on average) is left alone while there are others; and of a page where the heads of large items lie
only the oldest of those is evicted, which frees pages of its own.

Invariants:
1. What is looked at without a lock (`home`, `used_ms`, `state`) is a hint; an item is removed or moved only after its bucket's
   table, under its stripe's lock, has it under that very handle.
2. Only items of buckets that this node is primary of are evicted or expired here.
3. Every removal is a record with its cause.
4. Whether changes are paused is looked at under the stripe lock under which one is made; so once that is set, and every stripe
   lock was taken once, no change is under way that did not see it. Moving items is no change.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from rcache.engine.native.credit cimport credit_cost, credit_debt
from rcache.engine.native.expiry cimport DUE, PARKED, wheel_moved, wheel_push, wheel_take, wheel_turn
from rcache.engine.native.items cimport (
    EXPIRES, ITEM_BYTES, LARGE, LIVE, FREE, Item, body_offset, body_read, extent_of, hash_of, head_part, item_alloc,
    item_alloc_larger, item_free, item_total,
)
from rcache.engine.native.memory cimport (
    GROW_NOT, NO_PAGE, PAGE_CHUNKS, PAGE_LARGE, Memory, SizeClass, chunk_alloc, chunk_at, chunk_free, drain_begin,
    drain_end, handle_of, page_start,
)
from rcache.engine.native.protocol cimport (
    CAUSE_EVICTED, CAUSE_EXPIRED, COUNTER_MAX, KIND_REMOVE, RECORD_HEADER_BYTES, ST_BUSY, ST_NO_ROOM, ST_PAUSED,
    ST_STOPPING, RecordHead,
)
from rcache.engine.native.commitment cimport Wait
from rcache.engine.native.ring cimport Credit, STREAM_FAILED, STREAM_REACHED, StreamEnd, ring_publish, ring_give, ring_reserve
from rcache.engine.native.store cimport (
    PRIMARY, Bucket, Placed, Store, Stripe, bucket_at, bucket_now_locked, is_expired, now_ms, record_locked, stripe_at,
    unlink_locked, used_now,
)
from rcache.engine.native.system cimport (
    add64, hint8, hint32, hint64, load8, load32, load64, pthread_mutex_lock, pthread_mutex_unlock, random64, spin_lock,
    spin_unlock, store8, store32, store64,
)
from rcache.engine.native.table cimport BIN_ENTRIES, Bin, bin_at, table_entry, table_find

cdef enum:
    KEY_BYTES_MAX = 65535
    # Items looked at for one eviction: in so many pages, so many side by side. Neighbours were often made at the same time and
    # so say the same of how old items are; many pages say more.
    SAMPLE_PAGES = 8
    SAMPLE_ITEMS = 2
    # Items looked at to judge a whole page.
    SAMPLE_OF_PAGE = 8
    # One eviction in so many also looks at another class.
    LOOK_ELSEWHERE = 16
    IDLE_FACTOR = 2
    # A page of another class must have been idle for this much longer at least, in ms: more than a turn of the scheduler, so
    # that classes that are equally busy do not take pages from each other by chance.
    IDLE_MORE_MS = 50
    PAGES_LOOKED_AT = 8
    # The same for an eviction by a point: in so many buckets, so many bins of a dozen side by side.
    SAMPLE_BUCKETS = 3
    SAMPLE_BINS = 1
    IN_USE_DIVISOR = 4
    PAGE_TRIES_MAX = 64
    # How often room is looked for in one request; each time frees an item or a page, so it is a limit on victims.
    ROOM_TRIES_MAX = 1024
    EXPIRE_BEFORE_EVICT = 16

cdef enum Why:
    WHY_NOTHING = 0
    WHY_VALUE_TOO_LARGE
    WHY_WOULD_PASS
    WHY_NOT_PRIMARY
    WHY_COUNTER
    WHY_STREAM_FULL
    WHY_STREAM_FAILED
    WHY_ITEM_TOO_LARGE
    WHY_NOTHING_TO_EVICT
    WHY_NO_EVICTION
    WHY_KEPT_CHANGING
    WHY_KEPT_CHANGING_HASHED
    WHY_NOT_A_NUMBER
    WHY_OUT_OF_RANGE
    WHY_LATE
    WHY_TOO_MANY
    WHY_TIMED_OUT
    WHY_LOG_FAILED
    WHY_NO_MEMORY
    WHY_PAUSED
    WHY_PEER_FULL
    WHY_PEER_FULL_NO_EVICTION


cdef struct Outcome:
    # How something ended: a status; for a refusal why, with the numbers that its text names; what it reveals.
    uint8_t status
    uint8_t why
    uint64_t version
    Wait wait
    int64_t number
    int64_t other
    bint minus         # `other` is to be read with its sign changed


cdef inline void refuse(Outcome *outcome, uint8_t status, uint8_t why) noexcept nogil:
    outcome.status, outcome.why = status, why
    outcome.version = outcome.wait.points = outcome.wait.position = outcome.wait.moment = 0
    outcome.number = outcome.other = 0
    outcome.minus = False


cdef inline bint reserve_stream(Store *store, int64_t count, int64_t deadline_ns, Outcome *refusal) noexcept nogil:
    """Room in the stream. False, with the refusal, where it could not be had. Blocks."""
    cdef StreamEnd end = ring_reserve(&store.ring, count, deadline_ns)
    if end == STREAM_REACHED:
        return True
    if end == STREAM_FAILED:
        refuse(refusal, ST_STOPPING, WHY_STREAM_FAILED)
    else:
        refuse(refusal, ST_BUSY, WHY_STREAM_FULL)
    return False


# --- removing one item

cdef inline void give_key(
    Store *store, const Placed *placed, const uint8_t *key, uint32_t key_bytes, uint8_t kind
) noexcept nogil:
    """The rest of a record that ends with its key; and then it is there."""
    if placed.at != NULL:
        if key_bytes:
            memcpy(placed.at + RECORD_HEADER_BYTES, key, key_bytes)
        ring_publish(&store.ring, placed.at, kind)


cdef inline bint remove_locked(
    Store *store, Bucket *bucket, Item *item, uint8_t cause, uint64_t now, int64_t *reserved, Placed *placed
) noexcept nogil:
    """Take an item out, with its record, whose key is still to be given. False: the stream has failed, and nothing changes."""
    cdef RecordHead head
    head.length = RECORD_HEADER_BYTES + item.key_bytes
    head.kind, head.cause, head.key_bytes, head.bucket = KIND_REMOVE, cause, item.key_bytes, bucket.number
    head.flags, head.expires_at_ms = 0, 0
    head.sequence, head.time_ms = bucket.sequence + 1, now
    if not record_locked(store, bucket, &head, reserved, placed):
        return False
    bucket.last_removal = head.sequence
    bucket.stripe.removed[cause] += 1
    unlink_locked(store, bucket, item)
    return True


cdef inline int remove_if(
    Store *store, Bucket *bucket, const uint8_t *key, uint32_t key_bytes, uint32_t hashed, uint8_t cause, uint32_t handle,
    int64_t deadline_ns, Outcome *refusal
) noexcept nogil:
    """Remove an item if it is still there and has expired (CAUSE_EXPIRED), or is that of `handle`, unless changes are paused.
    1: removed; 0: not; -1: refused, and the refusal says why."""
    cdef int64_t reserved = RECORD_HEADER_BYTES + key_bytes
    cdef uint32_t *entry
    cdef Item *item
    cdef Placed placed
    cdef uint64_t now
    cdef int done = 0
    if not reserve_stream(store, reserved, deadline_ns, refusal):
        return -1
    now = now_ms(store)
    placed.at = NULL
    spin_lock(&bucket.stripe.lock)
    item = table_find(&store.memory, &bucket.table, hashed, key, key_bytes)
    if item != NULL and bucket.state == PRIMARY and not load8(&store.ring.paused) and (
            is_expired(item, bucket_now_locked(bucket, now)) if cause == CAUSE_EXPIRED
            else handle_of(&store.memory, item) == handle):
        if bucket.sequence & COUNTER_MAX == COUNTER_MAX:
            refuse(refusal, ST_BUSY, WHY_COUNTER)
            refusal.number = bucket.number
            done = -1
        else:
            done = 1
            if not remove_locked(store, bucket, item, cause, bucket_now_locked(bucket, now), &reserved, &placed):
                refuse(refusal, ST_STOPPING, WHY_STREAM_FAILED)
                done = -1
    spin_unlock(&bucket.stripe.lock)
    if reserved:
        ring_give(&store.ring, reserved)
    if done == 1:
        give_key(store, &placed, key, key_bytes, KIND_REMOVE)
        if cause == CAUSE_EVICTED:
            note_evicted(store, item)
        item_free(&store.memory, item)
    return done


cdef inline void note_evicted(Store *store, Item *item) noexcept nogil:
    if item.state & LARGE:
        add64(<int64_t *>&store.memory.large_evicted, 1)
    else:
        add64(<int64_t *>&store.memory.classes[item.size_class].evicted, 1)


# --- expiry

cdef inline Bucket *due_locked(
    Store *store, Stripe *stripe, uint64_t now, uint8_t *key, uint32_t *key_bytes, uint32_t *hashed
) noexcept nogil:
    """The bucket, key and hash of an item that is due and ours to expire, or NULL. What is due and not ours is parked."""
    cdef Item *item
    cdef Bucket *bucket
    wheel_turn(&store.memory, &stripe.wheel, now)
    while stripe.wheel.heads[DUE]:
        item = <Item *>chunk_at(&store.memory, stripe.wheel.heads[DUE])
        bucket = bucket_at(store, <uint32_t>(item.home >> 32))
        if bucket.state == PRIMARY:
            key_bytes[0] = item.key_bytes
            hashed[0] = hash_of(item)
            body_read(&store.memory, item, 0, key, item.key_bytes)
            return bucket
        wheel_take(&store.memory, &stripe.wheel, item)
        wheel_push(&store.memory, &stripe.wheel, item, PARKED)
    return NULL


cdef inline int64_t expire_due(Store *store, int64_t items_max, int64_t deadline_ns, Outcome *refusal) noexcept nogil:
    """Remove up to `items_max` expired items; none while changes are paused. Returns how many, or -1 - how many where the
    stream refused one."""
    cdef uint8_t key[KEY_BYTES_MAX]
    cdef uint32_t key_bytes, hashed, number
    cdef int64_t removed = 0
    cdef uint64_t now
    cdef Stripe *stripe
    cdef Bucket *bucket
    cdef int done
    if load8(&store.ring.paused):
        return 0
    for number in range(store.stripe_count):
        stripe = stripe_at(store, number)
        while removed < items_max:
            now = now_ms(store)
            spin_lock(&stripe.lock)
            bucket = due_locked(store, stripe, now, key, &key_bytes, &hashed)
            spin_unlock(&stripe.lock)
            if bucket == NULL:
                break
            done = remove_if(store, bucket, key, key_bytes, hashed, CAUSE_EXPIRED, 0, deadline_ns, refusal)
            if done < 0:
                return -1 - removed
            removed += done
            if not done:  # its bucket's time is behind the node's, or somebody else was faster
                break
    return removed


# --- eviction

cdef struct Victim:
    uint32_t handle
    uint32_t idle_ms
    uint64_t home
    int64_t cost         # as `credit_cost` counts; where it is looked for by a point


cdef struct Choice:
    uint32_t page
    uint64_t idle_ms
    Victim oldest


cdef inline void look_at_page(
    Store *store, uint32_t page, uint32_t chunk_bytes, uint32_t most, uint32_t now, Victim *oldest, uint64_t *idle,
    uint32_t *seen
) noexcept nogil:
    """Look at `most` items of a page (invariant 1). The one that was not used for longest goes into `oldest` if it beats what
    is there; `idle` and `seen` grow by what was seen."""
    cdef Memory *memory = &store.memory
    cdef uint32_t bump = load32(&memory.pages[page].bump), start, number, idle_ms
    cdef Item *item
    cdef uint64_t home
    if not bump or <uint64_t>bump * chunk_bytes > memory.page_bytes:
        return
    start = random64() % bump
    for number in range(min(bump, most)):
        item = <Item *>(page_start(memory, page) + <uint64_t>((start + number) % bump) * chunk_bytes)
        if not hint8(&item.state) & LIVE:
            continue
        home = hint64(&item.home)
        if home >> 32 >= store.bucket_count or load8(&bucket_at(store, <uint32_t>(home >> 32)).state) != PRIMARY:
            continue
        idle_ms = now - hint32(&item.used_ms)
        if idle_ms & 0x80000000U:  # used a moment ago, by a clock read a moment later
            idle_ms = 0
        idle[0] += idle_ms
        seen[0] += 1
        if not oldest.handle or idle_ms > oldest.idle_ms:
            oldest.handle, oldest.idle_ms, oldest.home = handle_of(memory, item), idle_ms, home


cdef inline Victim victim_of_class(Store *store, uint32_t number, uint32_t now) noexcept nogil:
    cdef SizeClass *owner = &store.memory.classes[number]
    cdef Victim oldest
    cdef uint64_t idle = 0
    cdef uint32_t seen = 0, page, tried
    oldest.handle = oldest.home = 0
    for tried in range(SAMPLE_PAGES * 2):
        pthread_mutex_lock(&owner.lock)
        page = owner.pages[random64() % owner.page_count] if owner.page_count else NO_PAGE
        pthread_mutex_unlock(&owner.lock)
        if page == NO_PAGE or (tried >= SAMPLE_PAGES and oldest.handle):
            break
        look_at_page(store, page, owner.chunk_bytes, SAMPLE_ITEMS, now, &oldest, &idle, &seen)
    return oldest


cdef inline int evict_handle(
    Store *store, uint32_t handle, uint64_t home, int64_t deadline_ns, Outcome *refusal
) noexcept nogil:
    """Evict the item of a handle, if it is what it was taken for (invariant 1). As `remove_if`."""
    cdef uint8_t key[KEY_BYTES_MAX]
    cdef uint32_t key_bytes = 0
    cdef Bucket *bucket
    cdef Item *item
    if home >> 32 >= store.bucket_count:
        return 0
    bucket = bucket_at(store, <uint32_t>(home >> 32))
    spin_lock(&bucket.stripe.lock)
    if bucket.state == PRIMARY and table_entry(&store.memory, &bucket.table, <uint32_t>home, handle) != NULL:
        item = <Item *>chunk_at(&store.memory, handle)
        key_bytes = item.key_bytes
        body_read(&store.memory, item, 0, key, key_bytes)
    spin_unlock(&bucket.stripe.lock)
    if not key_bytes:
        return 0
    return remove_if(store, bucket, key, key_bytes, <uint32_t>home, CAUSE_EVICTED, handle, deadline_ns, refusal)


cdef inline bint move_item(Store *store, uint32_t handle, uint64_t home) noexcept nogil:
    """Move an item to a free chunk of its class elsewhere (invariant 1). False if there is none, or the item is gone."""
    cdef Memory *memory = &store.memory
    cdef Bucket *bucket
    cdef Item *item = <Item *>chunk_at(memory, handle)
    cdef Item *moved = NULL
    cdef uint32_t *entry
    cdef uint32_t asked = 0, page
    if home >> 32 >= store.bucket_count:
        return False
    bucket = bucket_at(store, <uint32_t>(home >> 32))
    spin_lock(&bucket.stripe.lock)
    entry = table_entry(memory, &bucket.table, <uint32_t>home, handle)
    if entry != NULL:
        asked = chunk_part(memory, item)
        moved = <Item *>chunk_alloc(memory, item.size_class, asked, GROW_NOT)
    if moved != NULL:
        memcpy(<uint8_t *>moved + ITEM_BYTES, <uint8_t *>item + ITEM_BYTES, asked - ITEM_BYTES)
        moved.version, moved.flags, moved.value_bytes = item.version, item.flags, item.value_bytes
        moved.key_bytes, moved.size_class = item.key_bytes, item.size_class
        store64(&moved.home, item.home)
        store32(&moved.used_ms, item.used_ms)
        store8(&moved.state, item.state)
        entry[0] = handle_of(memory, moved)
        if item.state & EXPIRES:
            wheel_moved(memory, &bucket.stripe.wheel, moved)
        if item.state & LARGE:
            page = extent_of(moved).first_page
            while page != NO_PAGE:
                store32(&memory.pages[page].owner, handle_of(memory, moved))
                page = memory.pages[page].next
        store8(&item.state, FREE)
    spin_unlock(&bucket.stripe.lock)
    if moved == NULL:
        return False
    chunk_free(memory, item, asked)
    add64(<int64_t *>&memory.moved, 1)
    return True


cdef inline uint32_t chunk_part(const Memory *memory, Item *item) noexcept nogil:
    """How many bytes of its chunk an item uses."""
    cdef uint32_t offset = body_offset(item.state)
    if item.state & LARGE:
        return offset + head_part(memory, item, extent_of(item).page_count)
    return offset + item.key_bytes + item.value_bytes


cdef inline int drain_page(Store *store, uint32_t page, bint may_evict, int64_t deadline_ns, Outcome *refusal) noexcept nogil:
    """Empty a page of chunks: 1 if it went to the pool; 0 if not; -1: refused."""
    cdef Memory *memory = &store.memory
    cdef uint32_t number = load8(&memory.pages[page].size_class), place, chunk_bytes, bump
    cdef Item *item
    cdef uint64_t home
    cdef int done = 0
    if number >= memory.class_count or not drain_begin(memory, page, number):
        return 0
    chunk_bytes = memory.classes[number].chunk_bytes
    # Emptied by others at once, the page may be another class's by now, of more chunks than this one has room for.
    bump = min(load32(&memory.pages[page].bump), memory.classes[number].per_page)
    for place in range(bump):
        item = <Item *>(page_start(memory, page) + <uint64_t>place * chunk_bytes)
        if not hint8(&item.state) & LIVE:
            continue
        home = hint64(&item.home)
        if move_item(store, handle_of(memory, item), home):
            continue
        done = evict_handle(store, handle_of(memory, item), home, deadline_ns, refusal) if may_evict else 0
        if done < 0 or (not done and not may_evict):
            break
    if drain_end(memory, page, number):
        return 1
    return min(done, 0)


cdef inline Choice choose_page(Store *store, uint32_t now) noexcept nogil:
    """Of a few pages chosen at random, the one whose items were idle for longest; and the oldest of those that were seen."""
    cdef Memory *memory = &store.memory
    cdef uint32_t looked, page, seen
    cdef uint64_t idle
    cdef Victim oldest
    cdef Choice best
    best.page, best.idle_ms = NO_PAGE, 0
    for looked in range(PAGES_LOOKED_AT):
        page = random64() % max(load32(&memory.untouched), <uint32_t>1)
        idle = seen = oldest.handle = oldest.home = 0
        if load8(&memory.pages[page].state) == PAGE_LARGE:
            look_at_owner(store, load32(&memory.pages[page].owner), now, &oldest, &idle, &seen)
        elif load8(&memory.pages[page].state) == PAGE_CHUNKS and load8(&memory.pages[page].size_class) < memory.class_count:
            look_at_page(
                store, page, memory.classes[load8(&memory.pages[page].size_class)].chunk_bytes, SAMPLE_OF_PAGE, now, &oldest,
                &idle, &seen
            )
        if seen and (best.page == NO_PAGE or idle // seen > best.idle_ms):
            best.page, best.idle_ms, best.oldest = page, idle // seen, oldest
    return best


cdef inline int free_page(Store *store, int64_t deadline_ns, Outcome *refusal) noexcept nogil:
    """Free a page, that of which the items were idle for longest among a few. 1, 0 (there is none to be had) or -1."""
    cdef Memory *memory = &store.memory
    cdef uint32_t now = used_now(), tried
    cdef Choice best
    cdef int done
    for tried in range(PAGE_TRIES_MAX):
        best = choose_page(store, now)
        if best.page == NO_PAGE:
            continue
        if hint8(&(<Item *>chunk_at(memory, best.oldest.handle)).state) & LARGE:
            done = evict_handle(store, best.oldest.handle, best.oldest.home, deadline_ns, refusal)
        elif tried < PAGE_TRIES_MAX // 2 and is_in_use(store, best.page, <uint32_t>(best.idle_ms // IN_USE_DIVISOR), now):
            continue
        else:
            done = drain_page(store, best.page, True, deadline_ns, refusal)
        if done:
            return done
    return 0


cdef inline bint is_in_use(Store *store, uint32_t page, uint32_t idle_ms, uint32_t now) noexcept nogil:
    """Whether a page has an item that was idle for less than so long."""
    cdef Memory *memory = &store.memory
    cdef uint32_t chunk_bytes = memory.classes[load8(&memory.pages[page].size_class)].chunk_bytes, place
    cdef Item *item
    for place in range(min(load32(&memory.pages[page].bump), memory.page_bytes // chunk_bytes)):
        item = <Item *>(page_start(memory, page) + <uint64_t>place * chunk_bytes)
        if hint8(&item.state) & LIVE and now - hint32(&item.used_ms) < idle_ms:
            return True
    return False


cdef inline void look_at_owner(
    Store *store, uint32_t handle, uint32_t now, Victim *oldest, uint64_t *idle, uint32_t *seen
) noexcept nogil:
    """As `look_at_page`, for the large item that a page belongs to."""
    cdef Item *item
    cdef uint64_t home
    if not handle or (<uint64_t>handle << store.memory.handle_shift) >= store.memory.usable_bytes:
        return
    item = <Item *>chunk_at(&store.memory, handle)
    home = hint64(&item.home)
    if not hint8(&item.state) & LIVE or home >> 32 >= store.bucket_count:
        return
    if load8(&bucket_at(store, <uint32_t>(home >> 32)).state) != PRIMARY:
        return
    oldest.handle, oldest.home, oldest.idle_ms = handle, home, now - hint32(&item.used_ms)
    if oldest.idle_ms & 0x80000000U:
        oldest.idle_ms = 0
    idle[0] += oldest.idle_ms
    seen[0] += 1


cdef inline int evict_for_class(Store *store, uint32_t number, int64_t deadline_ns, Outcome *refusal) noexcept nogil:
    """Free a chunk of a class, or a page for it. 1, 0 (nothing is left to evict) or -1."""
    cdef Memory *memory = &store.memory
    cdef uint32_t now = used_now(), tried, page, seen = 0
    cdef Victim victim, other
    cdef uint64_t idle = 0
    cdef int done
    for tried in range(PAGE_TRIES_MAX):
        victim = victim_of_class(store, number, now)
        if not victim.handle:
            return free_page(store, deadline_ns, refusal)
        if random64() % LOOK_ELSEWHERE == 0:
            page = random64() % max(load32(&memory.untouched), <uint32_t>1)
            other.handle = idle = seen = 0
            if load8(&memory.pages[page].state) == PAGE_CHUNKS and load8(&memory.pages[page].size_class) < memory.class_count \
                    and load8(&memory.pages[page].size_class) != number:
                look_at_page(
                    store, page, memory.classes[load8(&memory.pages[page].size_class)].chunk_bytes, SAMPLE_OF_PAGE, now, &other,
                    &idle, &seen
                )
            if seen == SAMPLE_OF_PAGE and idle // seen > <uint64_t>victim.idle_ms * IDLE_FACTOR + IDLE_MORE_MS:
                done = 0 if is_in_use(store, page, <uint32_t>(idle // seen // IN_USE_DIVISOR), now) \
                    or hint8(&(<Item *>chunk_at(memory, other.handle)).state) & LARGE \
                    else drain_page(store, page, True, deadline_ns, refusal)
                if done:
                    return done
        done = evict_handle(store, victim.handle, victim.home, deadline_ns, refusal)
        if done:
            return done
    return 0


cdef inline bint is_lent_by(const Bucket *bucket, uint64_t point) noexcept nogil:
    """Whether a backup behind a point holds what this node is primary of here. A hint, without the stripe's lock."""
    return load8(&bucket.state) == PRIMARY and load64(&bucket.points) & point != 0


cdef inline void look_at_bin(Store *store, Bin *held, uint32_t now, Victim *oldest) noexcept nogil:
    """Look at all items of a bin and its chain. Under the stripe's lock."""
    cdef uint32_t idle_ms
    cdef int place
    cdef Item *item
    while True:
        for place in range(BIN_ENTRIES):
            if not held.entries[place]:
                continue
            item = <Item *>chunk_at(&store.memory, held.entries[place])
            idle_ms = now - item.used_ms
            if idle_ms & 0x80000000U:
                idle_ms = 0
            if not oldest.handle or idle_ms > oldest.idle_ms:
                oldest.handle, oldest.idle_ms, oldest.home = held.entries[place], idle_ms, item.home
                oldest.cost = credit_cost(item.key_bytes, item.value_bytes)
        if not held.more:
            return
        held = <Bin *>chunk_at(&store.memory, held.more)


cdef inline Victim victim_of_point(Store *store, uint32_t number, uint32_t now) noexcept nogil:
    """Of a few items of buckets whose backup is behind this point, the one that was not used for longest. By the buckets' tables,
    not by pages: where few of this node's items are of such a bucket, pages chosen at random would hold none."""
    cdef uint64_t point = <uint64_t>1 << number
    cdef uint32_t start = <uint32_t>random64() % store.bucket_count, step, looked = 0, bin_at_first, tried
    cdef Victim oldest
    cdef Bucket *bucket
    oldest.handle = oldest.home = 0
    for step in range(store.bucket_count):
        bucket = bucket_at(store, (start + step) % store.bucket_count)
        if not is_lent_by(bucket, point) or not hint32(&bucket.table.count):
            continue
        spin_lock(&bucket.stripe.lock)
        if is_lent_by(bucket, point) and bucket.table.count:
            bin_at_first = <uint32_t>random64() % bucket.table.bins
            for tried in range(bucket.table.bins):
                look_at_bin(store, bin_at(&store.memory, &bucket.table, (bin_at_first + tried) % bucket.table.bins), now, &oldest)
                if oldest.handle and tried + 1 >= SAMPLE_BINS:
                    break
        spin_unlock(&bucket.stripe.lock)
        looked += oldest.handle != 0
        if looked == SAMPLE_BUCKETS:
            break
    return oldest


cdef inline int64_t evict_for_point(Store *store, uint32_t number, int64_t deadline_ns, Outcome *refusal) noexcept nogil:
    """Evict an item that the backup behind a point holds. What it counted goes back to the credit: before it is placed into what
    samples say, behind it to whom it is of use (`credit`, invariant 2). Returns that; 0: there is nothing; -1: refused."""
    cdef Credit *credit = &store.ring.credits[number]
    cdef Victim victim
    cdef uint32_t tried
    cdef int done
    for tried in range(PAGE_TRIES_MAX):
        victim = victim_of_point(store, number, used_now())
        if not victim.handle:
            return 0
        add64(&credit.refunded, victim.cost)
        done = evict_handle(store, victim.handle, victim.home, deadline_ns, refusal)
        if done == 1:
            add64(&credit.spent, -victim.cost)
            add64(&store.ring.credit_evicted, 1)
            return victim.cost
        add64(&credit.refunded, -victim.cost)
        if done < 0:
            return -1
        if load8(&store.ring.paused):
            break
    return 0


cdef inline int64_t relieve_point(Store *store, uint32_t number, int64_t items_max) noexcept nogil:
    """Work off a debt at one point, by up to so many items; does not wait for room in the stream. Returns how many."""
    cdef Credit *credit = &store.ring.credits[number]
    cdef Outcome ignored
    cdef int64_t count = 0
    while count < items_max and credit_debt(credit) and store.evict and not load8(&store.ring.paused):
        if evict_for_point(store, number, 0, &ignored) <= 0:
            break
        count += 1
    return count


cdef inline bint compact(Store *store, Outcome *ignored) noexcept nogil:
    """Free a page by moving its items together with others of its class, where a class has that much room. No item is lost."""
    cdef Memory *memory = &store.memory
    cdef SizeClass *owner
    cdef uint32_t number, tried, page, best, best_live
    for number in range(memory.class_count):
        owner = &memory.classes[number]
        best, best_live = NO_PAGE, owner.per_page
        # A first look without the lock: most classes have no such room, and this is done for every eviction.
        if <uint64_t>load32(&owner.page_count) * owner.per_page < load64(&owner.live) + owner.per_page:
            continue
        pthread_mutex_lock(&owner.lock)
        if <uint64_t>owner.page_count * owner.per_page >= owner.live + owner.per_page:
            page = owner.roomy
            tried = 0
            while page != NO_PAGE and tried < PAGE_TRIES_MAX:
                if memory.pages[page].live < best_live:
                    best, best_live = page, memory.pages[page].live
                page = memory.pages[page].next
                tried += 1
        pthread_mutex_unlock(&owner.lock)
        if best != NO_PAGE and drain_page(store, best, False, 0, ignored) > 0:
            return True
    return False


cdef inline Item *make_room(
    Store *store, uint32_t key_bytes, uint64_t value_bytes, bint expires, int64_t deadline_ns, Outcome *refusal
) noexcept nogil:
    """Room for an item: what has expired goes first, then pages are put together, then what was not used for longest goes. NULL
    with the refusal. Blocks for room in the stream."""
    cdef Memory *memory = &store.memory
    cdef uint64_t asked = item_total(memory, key_bytes, value_bytes, expires)
    cdef uint32_t tries = ROOM_TRIES_MAX + <uint32_t>(4 * (asked >> memory.page_shift)), tried
    cdef bint expired = True
    cdef int64_t count
    cdef Item *item
    cdef int done
    for tried in range(tries):
        item = item_alloc(memory, key_bytes, value_bytes, expires, False)
        if item != NULL:
            return item
        if load8(&store.ring.paused):
            break
        if expired:
            count = expire_due(store, EXPIRE_BEFORE_EVICT, deadline_ns, refusal)
            if count < 0:
                return NULL
            expired = count > 0
            if expired:
                continue
        if compact(store, refusal):
            continue
        if not store.evict:
            break
        if asked > memory.chunk_bytes_max:
            done = free_page(store, deadline_ns, refusal)
        else:
            done = evict_for_class(
                store, memory.class_of_size[(asked + (1 << memory.handle_shift) - 1) >> memory.handle_shift], deadline_ns,
                refusal
            )
        if done < 0:
            return NULL
        if not done:
            break
    item = item_alloc_larger(memory, key_bytes, value_bytes, expires)
    if item == NULL and load8(&store.ring.paused):
        refuse(refusal, ST_PAUSED, WHY_PAUSED)
    elif item == NULL:
        refuse(refusal, ST_NO_ROOM, WHY_NOTHING_TO_EVICT if store.evict else WHY_NO_EVICTION)
        refusal.number = <int64_t>memory.limit_bytes
    return item
