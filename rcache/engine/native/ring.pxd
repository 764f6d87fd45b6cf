"""The change stream in native code: a ring of bytes with a cursor for each reader.

What it is: `rcache.engine.reference.ring` without objects: records lie one after the other in a buffer that is mapped twice, so
that one that goes over the end lies in one piece all the same. Positions are bytes since the stream began.
Which thread runs it: writers (`ring_reserve` before the stripe lock, `ring_place` under it, `ring_publish` after the record was
copied); readers; who waits for the disk.
What it owns: the buffer. What it must not know: what a record says, but for its length and kind.

The background of `place` and `publish`: a place is given under the ring's lock, which fixes the order; the record is copied
into it outside of that lock, so that a record of a megabyte holds nobody up. Until it is there its kind (byte 4) is 0, which no
record has; a reader stops before such a record.

Invariants:
1. held + reserved <= bytes_max: `credit` is what is left of it, and goes below zero only within a try.
2. The tail passes no record that a reader holds, and none that is not published.
3. After `ring_fail` no place is given and no wait lasts.
4. Where there is no reader nothing is kept: positions are counted and nothing is copied.
"""

from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from rcache.engine.native.system cimport (
    MAP_ANONYMOUS, MAP_FAILED, MAP_FIXED, MAP_NORESERVE, MAP_PRIVATE, MAP_SHARED, MREMAP_FIXED, MREMAP_MAYMOVE, PROT_NONE, PROT_READ,
    PROT_WRITE, add64, cond_init, cond_wait_until, fence, get32, load64, load8, mmap, monotonic_ns, mremap, munmap, mutex_init, note_wait, pthread_cond_broadcast, pthread_cond_destroy, pthread_cond_t, pthread_mutex_destroy,
    pthread_mutex_lock, pthread_mutex_t, pthread_mutex_unlock, sched_yield, signed64, store64, store8, write,
)

cdef enum:
    READERS_MAX = 64
    WAKERS_MAX = 64
    FAILURE_BYTES = 512
    KIND_AT = 4
    # Dropping makes room for the next records too, so that the search for it is not made for each.
    DROP_DIVISOR = 16
    POSITION_NONE = 0

cdef enum StreamEnd:
    STREAM_REACHED = 0
    STREAM_TIMED_OUT = 1
    STREAM_FAILED = 2


cdef struct Cursor:
    uint64_t position    # before the next record to read
    uint64_t released    # records before this need not be kept for it
    bint holds
    bint pinned          # a reader that does not hold, while it copies
    bint woken
    bint used


cdef struct Ring:
    pthread_mutex_t lock
    pthread_cond_t readable
    pthread_cond_t room
    pthread_cond_t committed
    uint8_t *base
    uint64_t size        # of one mapping; at least bytes_max
    uint64_t bytes_max
    uint64_t head
    uint64_t tail
    int64_t credit
    int64_t reserved     # for statistics and check alone
    int64_t unpublished
    uint64_t durable
    int64_t durable_waiters
    int64_t room_waiters
    int64_t sleeping
    int64_t full_waits
    int64_t parked       # connections of shared workers that wait for the disk
    uint8_t failed
    uint8_t waits_ended
    char failure[FAILURE_BYTES]
    Cursor cursors[READERS_MAX]
    uint32_t readers
    int wakers[WAKERS_MAX]   # eventfds of the shared workers
    uint32_t waker_count


cdef inline bint ring_init(Ring *ring, uint64_t bytes_max) noexcept nogil:
    """Map the buffer twice, one copy behind the other. False where that cannot be had."""
    cdef uint64_t size = 4096
    cdef void *base
    while size < bytes_max:
        size *= 2
    ring.size, ring.bytes_max, ring.credit = size, bytes_max, <int64_t>bytes_max
    if mutex_init(&ring.lock) or cond_init(&ring.readable) or cond_init(&ring.room) or cond_init(&ring.committed):
        return False
    base = mmap(NULL, size * 2, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    if base == MAP_FAILED:
        return False
    ring.base = <uint8_t *>base
    # An old size of 0 makes a second mapping of the same shared pages (mremap(2)): no file, so no limit on files counts.
    return (mmap(base, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != MAP_FAILED
            and mremap(base, 0, size, MREMAP_MAYMOVE | MREMAP_FIXED, ring.base + size) != MAP_FAILED)


cdef inline void ring_close(Ring *ring) noexcept nogil:
    if ring.base != NULL:
        munmap(ring.base, ring.size * 2)
        ring.base = NULL
    pthread_mutex_destroy(&ring.lock)
    pthread_cond_destroy(&ring.readable)
    pthread_cond_destroy(&ring.room)
    pthread_cond_destroy(&ring.committed)


cdef inline uint8_t *ring_at(const Ring *ring, uint64_t position) noexcept nogil:
    return ring.base + (position & (ring.size - 1))


# --- room

cdef inline void ring_give(Ring *ring, int64_t count) noexcept nogil:
    """Room that is free again. Every waiter looks: the first in line may need more than this, another less."""
    add64(&ring.credit, count)
    if signed64(&ring.room_waiters):
        pthread_mutex_lock(&ring.lock)
        pthread_cond_broadcast(&ring.room)
        pthread_mutex_unlock(&ring.lock)


cdef inline void ring_unreserve(Ring *ring, int64_t count) noexcept nogil:
    """Give back room that was not used."""
    ring_give(ring, count)


cdef inline bint try_credit(Ring *ring, int64_t count) noexcept nogil:
    if add64(&ring.credit, -count) >= count:
        return True
    add64(&ring.credit, count)
    return False


cdef inline void keep_nothing_locked(Ring *ring) noexcept nogil:
    """Nobody reads: let go of all (invariant 4), once those who still copy into places they were given have done so."""
    if not signed64(&ring.unpublished):
        add64(&ring.credit, <int64_t>(ring.head - ring.tail))
        ring.tail = ring.head


cdef inline void drop_locked(Ring *ring, int64_t count) noexcept nogil:
    """Let go of records that no reader holds, until there is room for `count` bytes and some to spare (invariant 2)."""
    cdef uint64_t stop = ring.head, begun = ring.tail
    cdef int64_t wanted = max(count, <int64_t>(ring.bytes_max // DROP_DIVISOR)) - signed64(&ring.credit)
    cdef uint32_t number, length
    if not ring.readers:
        keep_nothing_locked(ring)
        return
    for number in range(READERS_MAX):
        if ring.cursors[number].used and (ring.cursors[number].holds or ring.cursors[number].pinned):
            stop = min(stop, ring.cursors[number].released)
    while ring.tail < stop and <int64_t>(ring.tail - begun) < wanted:
        if not load8(ring_at(ring, ring.tail) + KIND_AT):
            break
        length = get32(ring_at(ring, ring.tail))
        if ring.tail + length > stop:
            break
        ring.tail += length
    if ring.tail != begun:
        add64(&ring.credit, <int64_t>(ring.tail - begun))


cdef inline StreamEnd ring_reserve(Ring *ring, int64_t count, int64_t deadline_ns) noexcept nogil:
    """Set `count` bytes aside: REACHED; TIMED_OUT if there was no room before the deadline; FAILED. Blocks."""
    if not load8(&ring.failed) and try_credit(ring, count):
        return STREAM_REACHED
    return reserve_slowly(ring, count, deadline_ns)


cdef inline StreamEnd reserve_slowly(Ring *ring, int64_t count, int64_t deadline_ns) noexcept nogil:
    cdef StreamEnd end = STREAM_REACHED
    note_wait()
    pthread_mutex_lock(&ring.lock)
    add64(&ring.room_waiters, 1)
    while True:
        if ring.failed:
            end = STREAM_FAILED
            break
        if try_credit(ring, count):
            break
        drop_locked(ring, count)
        if try_credit(ring, count):
            break
        if ring.waits_ended or monotonic_ns() >= deadline_ns:
            end = STREAM_TIMED_OUT
            break
        ring.full_waits += 1
        pthread_cond_broadcast(&ring.readable)
        # Who still copies for a reader that has gone tells nobody when it is done.
        cond_wait_until(&ring.room, &ring.lock, deadline_ns if ring.readers else min(deadline_ns, monotonic_ns() + 1000000))
    add64(&ring.room_waiters, -1)
    pthread_mutex_unlock(&ring.lock)
    return end


# --- records in

cdef inline uint64_t ring_place(Ring *ring, uint32_t count, int64_t reserved, uint8_t **place) noexcept nogil:
    """A place for a record of `count` bytes, using up `reserved`; `place` is NULL where nobody reads, and without a place. Returns the position
    after it; POSITION_NONE if the stream has failed, and then the room was given back (invariant 3)."""
    cdef uint64_t position
    cdef int64_t unused = reserved - count
    place[0] = NULL
    pthread_mutex_lock(&ring.lock)
    if ring.failed:
        pthread_mutex_unlock(&ring.lock)
        ring_give(ring, reserved)
        return POSITION_NONE
    if ring.readers:
        place[0] = ring_at(ring, ring.head)
        store8(place[0] + KIND_AT, 0)
        add64(&ring.unpublished, 1)
    store64(&ring.head, ring.head + count)
    position = ring.head
    if not ring.readers and not signed64(&ring.unpublished):  # invariant 4
        unused += <int64_t>(position - ring.tail)
        ring.tail = position
    pthread_mutex_unlock(&ring.lock)
    if unused:
        ring_give(ring, unused)
    return position


cdef inline void ring_publish(Ring *ring, uint8_t *place, uint8_t kind) noexcept nogil:
    """The record at `place` is whole: all of it but its kind was copied there."""
    store8(place + KIND_AT, kind)
    add64(&ring.unpublished, -1)
    fence()
    if signed64(&ring.sleeping):
        pthread_mutex_lock(&ring.lock)
        pthread_cond_broadcast(&ring.readable)
        pthread_mutex_unlock(&ring.lock)


# --- the disk

cdef inline void wake_all_locked(Ring *ring) noexcept nogil:
    """Everybody who waits for the disk, shared workers included."""
    cdef uint64_t one = 1
    cdef uint32_t number
    pthread_cond_broadcast(&ring.committed)
    for number in range(ring.waker_count):
        write(ring.wakers[number], &one, sizeof(one))


cdef inline void ring_set_durable(Ring *ring, uint64_t position) noexcept nogil:
    pthread_mutex_lock(&ring.lock)
    if position > ring.durable:
        store64(&ring.durable, position)
    fence()
    if signed64(&ring.durable_waiters) or signed64(&ring.parked):
        wake_all_locked(ring)
    pthread_mutex_unlock(&ring.lock)


cdef inline void ring_park(Ring *ring, int64_t more) noexcept nogil:
    """One more connection, or one less, waits for the disk in a shared worker; the log is to hurry for it."""
    add64(&ring.parked, more)
    fence()
    if more > 0:
        pthread_mutex_lock(&ring.lock)
        pthread_cond_broadcast(&ring.readable)
        pthread_mutex_unlock(&ring.lock)


cdef inline bint waker_add(Ring *ring, int fd) noexcept nogil:
    """Have this eventfd written to when the log has come further. False if there are too many."""
    cdef bint added = False
    pthread_mutex_lock(&ring.lock)
    if ring.waker_count < WAKERS_MAX:
        ring.wakers[ring.waker_count] = fd
        ring.waker_count += 1
        added = True
    pthread_mutex_unlock(&ring.lock)
    return added


cdef inline void waker_remove(Ring *ring, int fd) noexcept nogil:
    cdef uint32_t number
    pthread_mutex_lock(&ring.lock)
    for number in range(ring.waker_count):
        if ring.wakers[number] == fd:
            ring.waker_count -= 1
            ring.wakers[number] = ring.wakers[ring.waker_count]
            break
    pthread_mutex_unlock(&ring.lock)


cdef inline StreamEnd ring_wait_durable(Ring *ring, uint64_t position, int64_t deadline_ns) noexcept nogil:
    cdef StreamEnd end = STREAM_REACHED
    if load64(&ring.durable) >= position:
        return STREAM_REACHED
    pthread_mutex_lock(&ring.lock)
    add64(&ring.durable_waiters, 1)
    while ring.durable < position:
        if ring.failed:
            end = STREAM_FAILED
            break
        if ring.waits_ended or monotonic_ns() >= deadline_ns:
            end = STREAM_TIMED_OUT
            break
        pthread_cond_broadcast(&ring.readable)
        cond_wait_until(&ring.committed, &ring.lock, deadline_ns)
    add64(&ring.durable_waiters, -1)
    pthread_mutex_unlock(&ring.lock)
    return end


cdef inline void ring_end_waits(Ring *ring) noexcept nogil:
    pthread_mutex_lock(&ring.lock)
    store8(&ring.waits_ended, 1)
    pthread_cond_broadcast(&ring.room)
    wake_all_locked(ring)
    pthread_mutex_unlock(&ring.lock)


cdef inline void ring_fail(Ring *ring, const char *why, size_t count) noexcept nogil:
    pthread_mutex_lock(&ring.lock)
    if not ring.failed:
        count = min(count, <size_t>(FAILURE_BYTES - 1))
        memcpy(ring.failure, why, count)
        ring.failure[count] = 0
        store8(&ring.failed, 1)
    pthread_cond_broadcast(&ring.readable)
    pthread_cond_broadcast(&ring.room)
    wake_all_locked(ring)
    pthread_mutex_unlock(&ring.lock)


# --- readers

cdef inline Cursor *cursor_open(Ring *ring, bint holds) noexcept nogil:
    """A cursor at the newest record, or NULL if there are too many."""
    cdef Cursor *found = NULL
    cdef uint32_t number
    pthread_mutex_lock(&ring.lock)
    while not ring.readers and signed64(&ring.unpublished):  # a copy under way for a reader that has gone
        pthread_mutex_unlock(&ring.lock)
        sched_yield()
        pthread_mutex_lock(&ring.lock)
    if not ring.readers:
        keep_nothing_locked(ring)
    for number in range(READERS_MAX):
        if not ring.cursors[number].used:
            found = &ring.cursors[number]
            found.position = found.released = ring.head
            found.holds, found.pinned, found.woken, found.used = holds, False, False, True
            ring.readers += 1
            break
    pthread_mutex_unlock(&ring.lock)
    return found


cdef inline void cursor_close(Ring *ring, Cursor *cursor) noexcept nogil:
    pthread_mutex_lock(&ring.lock)
    if cursor.used:
        cursor.used = False
        ring.readers -= 1
    pthread_cond_broadcast(&ring.room)
    pthread_mutex_unlock(&ring.lock)


cdef inline void cursor_release(Ring *ring, Cursor *cursor, uint64_t position) noexcept nogil:
    pthread_mutex_lock(&ring.lock)
    cursor.released = position
    pthread_cond_broadcast(&ring.room)
    pthread_mutex_unlock(&ring.lock)


cdef inline bint is_behind_locked(Ring *ring, Cursor *cursor) noexcept nogil:
    """Whether there is a whole record to read. One that fell behind the tail reads on from there."""
    if cursor.position < ring.tail:
        return True
    return cursor.position < ring.head and load8(ring_at(ring, cursor.position) + KIND_AT) != 0


cdef inline bint is_urgent_locked(Ring *ring, Cursor *cursor) noexcept nogil:
    """Whether somebody waits for what is there: for its commitment, for its room, or by `wake_readers`."""
    cdef bint woken = cursor.woken
    cursor.woken = False
    return (woken or (ring.head - cursor.released) * 2 > ring.bytes_max or signed64(&ring.durable_waiters) > 0
            or signed64(&ring.parked) > 0)


cdef inline bint cursor_await(Ring *ring, Cursor *cursor, int64_t timeout_ns, int64_t linger_ns) noexcept nogil:
    """Wait for a record, then a little for more unless somebody waits for it. Whether there is one. Pins the cursor then."""
    cdef int64_t deadline_ns = monotonic_ns() + timeout_ns
    cdef bint there
    pthread_mutex_lock(&ring.lock)
    add64(&ring.sleeping, 1)
    fence()
    there = is_behind_locked(ring, cursor)
    if not there:
        while not there and not cursor.woken and not ring.failed and monotonic_ns() < deadline_ns:
            cond_wait_until(&ring.readable, &ring.lock, deadline_ns)
            there = is_behind_locked(ring, cursor)
        cursor.woken = False
    add64(&ring.sleeping, -1)
    if there and linger_ns > 0 and not is_urgent_locked(ring, cursor):
        cond_wait_until(&ring.readable, &ring.lock, monotonic_ns() + linger_ns)
    if there:
        cursor.pinned = True
        if not cursor.holds:
            cursor.released = max(cursor.position, ring.tail)
    pthread_mutex_unlock(&ring.lock)
    return there


cdef inline uint64_t cursor_measure(Ring *ring, Cursor *cursor, uint64_t bytes_max, uint64_t *count, bint *lost) noexcept nogil:
    """How many bytes, in `count` whole records, there are to take: one record at least, up to about `bytes_max`. The cursor
    is pinned, so nothing of it is dropped meanwhile."""
    cdef uint64_t at, head, size = 0
    cdef uint32_t length
    pthread_mutex_lock(&ring.lock)
    lost[0] = cursor.position < ring.tail
    if lost[0]:
        cursor.position = ring.tail
    head = ring.head
    pthread_mutex_unlock(&ring.lock)
    at = cursor.position
    count[0] = 0
    while at < head and load8(ring_at(ring, at) + KIND_AT):
        length = get32(ring_at(ring, at))
        if size and size + length > bytes_max:
            break
        at += length
        size += length
        count[0] += 1
    return size


cdef inline void cursor_unpin(Ring *ring, Cursor *cursor, uint64_t position) noexcept nogil:
    """What was to be copied is copied; the cursor stands at `position`."""
    pthread_mutex_lock(&ring.lock)
    cursor.position = position
    cursor.pinned = False
    pthread_mutex_unlock(&ring.lock)
