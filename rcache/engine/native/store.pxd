"""Buckets, stripes and the store: the state of the native engine, and the steps on it that happen under a stripe lock.

What it is: `rcache.engine.reference.buckets` in native code.
Which thread runs it: any that holds the stripe's lock; a function with `_locked` in its name says so.
What it owns: buckets and stripes; the items through their tables. What it must not know: frames, deadlines, who waits for what.

Lock order: a stripe; then a size class, then the pool of pages, or the ring. Nothing waits under a stripe lock, and nobody who
holds any lock of the engine takes the interpreter's: whoever has that one may wait for one of these.

Invariants, under the stripe's lock:
1. An item in a bucket's table is LIVE; if it EXPIRES it is in its stripe's wheel.
2. A bucket's `sequence` is that of its newest record, and its times never decrease.
3. `pending` covers the newest records that may not be committed yet, oldest first; none where the bucket waits for no point.
   Where there are more than it has room for, neighbours are joined: who asks for one of them waits for the later one, which is
   never too early. Where the oldest is the bucket's OPEN, what is older than that is not known to be committed either: the
   primary before may have died between a record of which this node had a copy and the answer of another backup. Were it
   revealed and this node died then, that other one would become primary without it.
4. Of links, a bucket's answers wait even with nothing pending: for their leases. A primary that was stopped for a while goes on
   where it was, and without that would answer a GET with a value that its heir has replaced since.
"""

from cpython.ref cimport PyObject
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free

from rcache.engine.native.expiry cimport Wheel, wheel_add, wheel_take
from rcache.engine.native.items cimport EXPIRES, HELD, LIVE, Item, expiry_of, hash_of
from rcache.engine.native.loans cimport Loans
from rcache.engine.native.memory cimport Memory, handle_of
from rcache.engine.native.protocol cimport CAUSES, COUNTER_MAX, RecordHead, put_record_head
from rcache.engine.native.commitment cimport MOMENT_WANTED, Wait, committed
from rcache.engine.native.ring cimport DISK, POSITION_NONE, Ring, ring_head, ring_place
from rcache.engine.native.system cimport (
    CLOCK_BOOTTIME, clock_ns, load64, pthread_spinlock_t, signed64, spin_lock, spin_unlock, store8, store32, store64,
)
from rcache.engine.native.windows cimport Windows
from rcache.engine.native.table cimport Table, table_insert, table_remove

cdef enum BucketState:
    ABSENT = 0
    IMPORTING = 1
    BACKUP = 2
    PRIMARY = 3
    FROZEN = 4

cdef enum:
    PENDING_MAX = 64
    PENDING_HALF = 32
    LINE_BYTES = 64


cdef struct Stripe:
    pthread_spinlock_t lock
    uint64_t hits
    uint64_t misses
    uint64_t sets
    uint64_t removed[CAUSES]
    Wheel wheel


cdef struct Pending:
    uint64_t first       # sequences
    uint64_t last
    uint64_t position    # after the record of `last`


cdef struct Bucket:
    Table table
    Stripe *stripe
    uint64_t points      # the commit points it waits for, a bit each; may be looked at without the lock
    Pending *pending     # there where it waits, or did so once
    uint32_t pending_from
    uint32_t pending_count
    uint32_t number
    uint8_t state
    uint64_t sequence
    uint64_t last_removal
    uint64_t newest_ms
    int64_t ahead_ms
    uint64_t import_begin
    uint64_t import_rows
    uint64_t follows         # the source whose records it takes; 0: a recovery
    uint64_t points_at_first # what it waits for until it is told otherwise


cdef struct Store:
    Memory memory
    Ring ring
    Windows windows
    Loans loans
    uint8_t own_full     # what this node is primary of has its part of the memory (`loans`), as looked at last
    uint8_t *buckets
    uint8_t *stripes
    uint32_t bucket_count
    uint32_t stripe_count
    uint64_t hash_key[2]
    bint evict
    bint looks           # threads look for the next request for a moment before they sleep
    uint64_t value_bytes_max
    uint64_t frame_bytes_max
    int64_t default_budget_ns
    PyObject *digest     # bytes -> their BLAKE2b-128, by hashlib
    PyObject *clock      # a clock of the tests; NULL: the machine's, shifted by
    int64_t clock_offset_ms
    int64_t newest_ms
    int64_t epoch
    int64_t buffer_bytes
    int64_t buffer_bytes_max


cdef inline uint64_t line_up(uint64_t count) noexcept nogil:
    return (count + LINE_BYTES - 1) & ~<uint64_t>(LINE_BYTES - 1)


cdef inline Bucket *bucket_at(const Store *store, uint32_t number) noexcept nogil:
    return <Bucket *>(store.buckets + number * line_up(sizeof(Bucket)))


cdef inline Stripe *stripe_at(const Store *store, uint32_t number) noexcept nogil:
    return <Stripe *>(store.stripes + number * line_up(sizeof(Stripe)))


# --- time

cdef inline uint64_t node_ms(Store *store, int64_t boot_ns) noexcept nogil:
    """The node's time, ms since 1970, when the boot clock says `boot_ns`; never going back."""
    cdef int64_t now, newest
    if store.clock != NULL:
        with gil:
            return (<object>store.clock).now_ms()
    now = boot_ns // 1000000 + signed64(&store.clock_offset_ms)
    newest = <int64_t>load64(<uint64_t *>&store.newest_ms)
    if now > newest:
        store64(<uint64_t *>&store.newest_ms, <uint64_t>now)
        return <uint64_t>now
    return <uint64_t>newest


cdef inline uint64_t now_ms(Store *store) noexcept nogil:
    return node_ms(store, clock_ns(CLOCK_BOOTTIME))


cdef inline uint32_t used_ms_at(int64_t boot_ns) noexcept nogil:
    """For `used_ms`: about milliseconds, going round in 52 days."""
    return <uint32_t>(boot_ns >> 20)


cdef inline uint32_t used_now() noexcept nogil:
    return used_ms_at(clock_ns(CLOCK_BOOTTIME))


cdef inline void look_at_boot_clock(Store *store, uint64_t *clock_ms, uint32_t *used_ms) noexcept nogil:
    """Both times that go by it, for one reading."""
    cdef int64_t boot_ns = clock_ns(CLOCK_BOOTTIME)
    clock_ms[0], used_ms[0] = node_ms(store, boot_ns), used_ms_at(boot_ns)


cdef inline uint64_t bucket_now_locked(const Bucket *bucket, uint64_t clock_ms) noexcept nogil:
    """The bucket's time: the node's clock, or its newest record's time carried on, whichever is later."""
    return max(clock_ms + <uint64_t>bucket.ahead_ms, bucket.newest_ms)


cdef inline void learn_time_locked(Bucket *bucket, uint64_t time_ms, uint64_t clock_ms) noexcept nogil:
    """A record from elsewhere, or from before a restart, may be ahead of this node's clock."""
    bucket.newest_ms = max(bucket.newest_ms, time_ms)
    bucket.ahead_ms = max(bucket.ahead_ms, <int64_t>(time_ms - clock_ms))


# --- commitment

cdef inline void forget_committed_locked(Store *store, Bucket *bucket) noexcept nogil:
    cdef uint64_t reached = committed(&store.ring, bucket.points)
    while bucket.pending_count and bucket.pending[bucket.pending_from].position <= reached:
        bucket.pending_from = (bucket.pending_from + 1) % PENDING_MAX
        bucket.pending_count -= 1


cdef inline Wait wait_locked(Store *store, Bucket *bucket, uint64_t sequence) noexcept nogil:
    """What an answer waits for that reveals `sequence`, which it has not made itself."""
    cdef uint32_t number
    cdef Pending *entry
    cdef Wait wait
    wait.points = wait.position = wait.moment = 0
    if not bucket.points:
        return wait
    wait.moment = MOMENT_WANTED if store.ring.confirms else 0
    forget_committed_locked(store, bucket)
    if not bucket.pending_count:
        wait.points = bucket.points & ~(<uint64_t>1 << DISK)  # invariant 4
        return wait
    entry = &bucket.pending[bucket.pending_from]
    if sequence < entry.first and entry.first & COUNTER_MAX:
        wait.points = bucket.points & ~(<uint64_t>1 << DISK)
        return wait
    wait.points = bucket.points  # before an OPEN: up to that (invariant 3), by the first step of the search
    for number in range(bucket.pending_count):
        entry = &bucket.pending[(bucket.pending_from + number) % PENDING_MAX]
        wait.position = entry.position
        if sequence <= entry.last:
            break
    return wait


cdef inline void pend_locked(Store *store, Bucket *bucket, uint64_t sequence, uint64_t position) noexcept nogil:
    """The newest record ends at `position` (invariant 3)."""
    cdef Pending joined[PENDING_HALF]
    cdef Pending *one
    cdef Pending *other
    cdef uint32_t number
    forget_committed_locked(store, bucket)
    if bucket.pending_count == PENDING_MAX:
        for number in range(PENDING_HALF):
            one = &bucket.pending[(bucket.pending_from + 2 * number) % PENDING_MAX]
            other = &bucket.pending[(bucket.pending_from + 2 * number + 1) % PENDING_MAX]
            joined[number].first, joined[number].last, joined[number].position = one.first, other.last, other.position
        for number in range(PENDING_HALF):
            bucket.pending[number] = joined[number]
        bucket.pending_from, bucket.pending_count = 0, PENDING_HALF
    one = &bucket.pending[(bucket.pending_from + bucket.pending_count) % PENDING_MAX]
    one.first = one.last = sequence
    one.position = position
    bucket.pending_count += 1


cdef inline bint set_points(Store *store, Bucket *bucket, uint64_t points, uint64_t *head) noexcept nogil:
    """Have a bucket wait for these points from now on. `head`: the stream's at that moment. False where memory for what waits
    cannot be had; nothing has changed then."""
    cdef Pending *room = <Pending *>calloc(PENDING_MAX, sizeof(Pending))
    if room == NULL:
        return False
    spin_lock(&bucket.stripe.lock)
    if bucket.pending == NULL:
        bucket.pending, room = room, NULL
    store64(&bucket.points, points)
    if not points:
        bucket.pending_count = 0
    head[0] = ring_head(&store.ring)
    spin_unlock(&bucket.stripe.lock)
    free(room)
    return True


cdef inline void leave_points_locked(Bucket *bucket) noexcept nogil:
    """The bucket answers nobody any more: it waits for what a new one waits for, and its past as primary is over. What pended
    would stand before the OPEN that it may begin with again one day, and hide it (invariant 3)."""
    store64(&bucket.points, bucket.points_at_first)
    bucket.pending_count = 0


cdef inline void forget_point(Store *store, Bucket *bucket, uint32_t number) noexcept nogil:
    """A bucket does not wait for this point any more."""
    spin_lock(&bucket.stripe.lock)
    store64(&bucket.points, bucket.points & ~(<uint64_t>1 << number))
    if not bucket.points:
        bucket.pending_count = 0
    spin_unlock(&bucket.stripe.lock)


# --- records

cdef struct Placed:
    uint8_t *at          # where the record is to be copied; NULL where nobody reads
    uint64_t position    # after it; POSITION_NONE: the stream has failed, and nothing has changed


cdef inline bint record_locked(
    Store *store, Bucket *bucket, RecordHead *head, int64_t *reserved, Placed *placed
) noexcept nogil:
    """Give a record its place, in the bucket (sequence and time are in `head`) and in the stream, where it uses of the room
    that was `reserved`. Key and value are still to be copied behind its head, and then it is published. False: the stream
    has failed.

    `placed` is filled in, not returned: a struct that is read as a whole right after it was written in parts waits for both."""
    placed.position = ring_place(&store.ring, head.length, &placed.at)
    if placed.position == POSITION_NONE:
        return False
    reserved[0] -= head.length
    if placed.at != NULL:
        put_record_head(placed.at, head)
    bucket.sequence = head.sequence
    bucket.newest_ms = head.time_ms
    if bucket.points:
        pend_locked(store, bucket, head.sequence, placed.position)
    return True


# --- items

cdef inline void link_locked(Store *store, Bucket *bucket, Item *item, Item *old, uint32_t *entry) noexcept nogil:
    """Put an item in its place: that of `old` (whose `entry` in the table is given), or a new one, which was reserved. An old
    item is the caller's to free."""
    cdef Memory *memory = &store.memory
    if old != NULL:
        if old.state & EXPIRES:
            wheel_take(memory, &bucket.stripe.wheel, old)
        store8(&old.state, (old.state & ~<uint8_t>LIVE) | HELD)
        entry[0] = handle_of(memory, item)
    else:
        table_insert(memory, &bucket.table, hash_of(item), handle_of(memory, item))
    if item.state & EXPIRES:
        wheel_add(memory, &bucket.stripe.wheel, item)
    store8(&item.state, (item.state & ~<uint8_t>HELD) | LIVE)


cdef inline void unlink_locked(Store *store, Bucket *bucket, Item *item) noexcept nogil:
    """Take an item out. It is the caller's to free."""
    table_remove(&store.memory, &bucket.table, hash_of(item), handle_of(&store.memory, item))
    if item.state & EXPIRES:
        wheel_take(&store.memory, &bucket.stripe.wheel, item)
    store8(&item.state, (item.state & ~<uint8_t>LIVE) | HELD)


cdef inline void name_item(Item *item, uint32_t bucket, uint32_t hashed, uint32_t used_ms) noexcept nogil:
    """Say where an item belongs; before it is linked."""
    store64(&item.home, <uint64_t>bucket << 32 | hashed)
    store32(&item.used_ms, used_ms)


cdef inline bint is_expired(Item *item, uint64_t now) noexcept nogil:
    return item.state & EXPIRES and expiry_of(item).at_ms <= now and expiry_of(item).at_ms > 0
