"""The change stream in native code: a ring of bytes, room in it, and records in.

What it is: with `commitment` and `cursors`, `rcache.engine.reference.ring` without objects: records lie one after the other
in a buffer that is mapped twice, so that one that goes over the end lies in one piece all the same. Positions are bytes
since the stream began.
Which thread runs it: writers (`ring_reserve` before the stripe lock, `ring_place` under it, `ring_publish` after the record was
copied).
What it owns: the buffer. What it must not know: what a record says, but for its length and kind; who reads.

The background of `place` and `publish`: a place is given under a lock of its own, which fixes the order; the record is copied
into it outside of that lock, so that a record of a megabyte holds nobody up. Until it is there its kind (byte 4) is 0, which no
record has; a reader stops before such a record.

Invariants:
1. held + reserved <= bytes_max: `credit` is what is left of it.
2. The tail passes no record that a reader holds, and none that is not published.
3. Once it has `failed` no place is given and no wait lasts.
4. Where there is no reader nothing is kept: positions are counted and nothing is copied. Their room is taken back when it runs
   out, so that nobody counts it for each record.
5. The head is WATCHED while there is a reader, and once the stream has failed; that is changed under both locks. A watched
   head is moved under `placing` alone, one that is not by whoever swaps it first.
6. While nobody reads, what lies between the tail and `kept_to` was placed for readers that have gone, and may still be being
   copied.

Lock order: `lock`, `placing`. Nothing is taken, waited for or called under `placing`.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memset

from rcache.engine.native.system cimport (
    MAP_ANONYMOUS, MAP_FAILED, MAP_FIXED, MAP_NORESERVE, MAP_PRIVATE, MAP_SHARED, MREMAP_FIXED, MREMAP_MAYMOVE,
    PROT_NONE, PROT_READ, PROT_WRITE, add64, and64, cas64, cond_init, cond_wait_until, fence, fetch_lines, get32, load64, load8,
    mmap, monotonic_ns, mremap, munmap, mutex_init, note_wait, or64, pthread_cond_broadcast, pthread_cond_destroy,
    pthread_cond_t, pthread_mutex_destroy, is_pushing, pthread_mutex_lock, pthread_mutex_t, pthread_mutex_unlock,
    pthread_spin_destroy, pthread_spinlock_t, signed64, spin_init, spin_lock, spin_unlock, store64, store8,
)

cdef enum:
    READERS_MAX = 64
    WAKERS_MAX = 64
    POINTS_MAX = 64
    FAILURE_BYTES = 512
    KIND_AT = 4
    FETCH_LINES = 8
    # How long a record's copying is waited for: it is done in far less.
    COPYING_NS = 1000000
    # The commit point that is the append log.
    DISK = 0
    # In the place of a moment: the reply is to have its batch's (`commitment`, invariant 5).
    MOMENT_WANTED = 1
    # Dropping makes room for the next records too, so that the search for it is not made for each.
    DROP_DIVISOR = 16
    POSITION_NONE = 0
    # No record is so short.
    POSITION_AGAIN = 1
    POINT_NAME_BYTES = 64

cdef extern from "<stdint.h>" nogil:
    int64_t CREDIT_NOT_SAID "INT64_MAX"

cdef enum StreamEnd:
    STREAM_REACHED = 0
    STREAM_TIMED_OUT = 1
    STREAM_FAILED = 2


cdef struct Cursor:
    uint64_t position    # before the next record to read
    uint64_t released    # records before this need not be kept for it
    const uint8_t *chosen    # a bit for each bucket whose records it reads; NULL: all
    uint32_t chosen_bytes
    bint holds
    bint pinned          # a reader that does not hold, while it copies
    bint woken
    bint used
    uint64_t owner       # counts who has had it


cdef struct Credit:
    # What a backup lends this node; see `credit`. Under no lock, but for what `credit_renew` writes.
    int64_t spent        # what changes have used, and what those under way have set aside
    int64_t added        # what changes have used, and are in the stream
    int64_t refunded     # what was evicted for it
    int64_t allowance    # how far `spent` may go; CREDIT_NOT_SAID
    int64_t room         # what the peer said last, and the most it ever said
    int64_t most
    int64_t sample       # what was used by the frame that this was the answer to
    int64_t renewals     # counted
    int64_t renewed_ns
    int64_t asked_ns
    char name[POINT_NAME_BYTES]


cdef struct Ring:
    pthread_mutex_t lock
    pthread_spinlock_t placing
    pthread_cond_t readable
    pthread_cond_t room
    pthread_cond_t committed
    uint8_t *base
    uint64_t size        # of one mapping; at least bytes_max
    uint64_t bytes_max
    uint64_t head        # behind the newest record; its highest bit: WATCHED (`ring_head` is without it)
    uint64_t tail
    uint64_t kept_to
    int64_t credit
    uint64_t reached[POINTS_MAX]   # what each commit point has come to; UINT64_MAX where it is not open
    uint64_t moment      # at which answers to later frames came to be wanted, counted (`commitment.begin_moment`)
    uint64_t wanted[POINTS_MAX]      # the newest moment that somebody wants answered at each point
    uint64_t confirmed[POINTS_MAX]   # the moment of the newest frame that its peer answered as what it was
    Credit credits[POINTS_MAX]       # of each point that is a link's
    int64_t credit_refused           # changes, counted
    int64_t credit_evicted           # items
    uint64_t lease_ends[POINTS_MAX]   # of each, ns by CLOCK_BOOTTIME; UINT64_MAX where it has no end
    uint64_t leased      # the points whose lease has an end, a bit each
    uint64_t abandoned
    uint64_t moves       # of points, counted
    uint32_t next_point
    uint32_t serials[POINTS_MAX]   # counts who has had each number
    int64_t waiters      # threads, and connections of shared workers, that wait for a point
    int64_t disk_waiters # those of them that wait for the disk
    int64_t room_waiters
    int64_t sleeping     # readers that wait for a record
    int64_t window_sleepers   # senders of links, which are woken for it only by who does not send it himself
    int64_t full_waits
    uint8_t failed
    uint8_t waits_ended
    uint8_t paused       # changes wait
    uint8_t pauses_ended # but no longer than until now
    bint confirms        # replies wait for such an answer; set before anything is served
    char failure[FAILURE_BYTES]
    Cursor cursors[READERS_MAX]
    uint32_t readers
    int wakers[WAKERS_MAX]   # eventfds of the shared workers
    uint32_t waker_count


cdef inline bint ring_init(Ring *ring, uint64_t bytes_max) noexcept nogil:
    """Map the buffer twice, one copy behind the other. False where that cannot be had."""
    cdef uint64_t size = 4096, number
    cdef void *base
    while size < bytes_max:
        size *= 2
    ring.size, ring.bytes_max, ring.credit = size, bytes_max, <int64_t>bytes_max
    memset(ring.reached, 0xFF, sizeof(ring.reached))
    memset(ring.lease_ends, 0xFF, sizeof(ring.lease_ends))
    for number in range(POINTS_MAX):
        ring.credits[number].allowance = CREDIT_NOT_SAID
    ring.reached[<int>DISK], ring.next_point, ring.moment = 0, DISK + 1, MOMENT_WANTED
    if mutex_init(&ring.lock) or spin_init(&ring.placing):
        return False
    if cond_init(&ring.readable) or cond_init(&ring.room) or cond_init(&ring.committed):
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
    pthread_spin_destroy(&ring.placing)
    pthread_cond_destroy(&ring.readable)
    pthread_cond_destroy(&ring.room)
    pthread_cond_destroy(&ring.committed)


cdef inline bint is_watched(uint64_t head) noexcept nogil:
    return head >> 63


cdef inline void watch_head_locked(Ring *ring, bint watched) noexcept nogil:
    if watched:
        or64(&ring.head, <uint64_t>1 << 63)
    else:
        and64(&ring.head, ~(<uint64_t>1 << 63))


cdef inline uint64_t ring_head(const Ring *ring) noexcept nogil:
    """The position behind the newest record."""
    return load64(&ring.head) & ~(<uint64_t>1 << 63)


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


cdef inline bint try_credit(Ring *ring, int64_t count) noexcept nogil:
    cdef uint64_t seen = <uint64_t>signed64(&ring.credit)
    while <int64_t>seen >= count:
        if cas64(<uint64_t *>&ring.credit, &seen, seen - <uint64_t>count):
            return True
    return False


cdef inline void let_go_locked(Ring *ring) noexcept nogil:
    """Nobody reads and nobody copies any more: nothing is kept (invariant 4)."""
    cdef uint64_t head = ring_head(ring)
    add64(&ring.credit, <int64_t>(head - ring.tail))
    ring.tail = head


cdef inline bint keep_nothing_locked(Ring *ring) noexcept nogil:
    """Nobody reads: let go of all, once those who still copy into places they were given have done so. False: they have not."""
    cdef uint32_t length
    while ring.tail < ring.kept_to:
        if not load8(ring_at(ring, ring.tail) + KIND_AT):
            return False
        length = get32(ring_at(ring, ring.tail))
        ring.tail += length
        add64(&ring.credit, length)
    let_go_locked(ring)
    return True


cdef inline bint drop_locked(Ring *ring, int64_t count) noexcept nogil:
    """Let go of records that no reader holds, until there is room for `count` bytes and some to spare (invariant 2). False
    where it was somebody's copying that stopped it: nobody tells when that is done."""
    cdef uint64_t stop = ring_head(ring), begun = ring.tail
    cdef int64_t wanted = max(count, <int64_t>(ring.bytes_max // DROP_DIVISOR)) - signed64(&ring.credit)
    cdef uint32_t number, length
    cdef bint whole = True
    if not ring.readers:
        return keep_nothing_locked(ring)
    for number in range(READERS_MAX):
        if ring.cursors[number].used and (ring.cursors[number].holds or ring.cursors[number].pinned):
            stop = min(stop, ring.cursors[number].released)
    while ring.tail < stop and <int64_t>(ring.tail - begun) < wanted:
        whole = load8(ring_at(ring, ring.tail) + KIND_AT) != 0
        if not whole:
            break
        length = get32(ring_at(ring, ring.tail))
        if ring.tail + length > stop:
            break
        ring.tail += length
    if ring.tail != begun:
        add64(&ring.credit, <int64_t>(ring.tail - begun))
    return whole


cdef inline StreamEnd ring_reserve(Ring *ring, int64_t count, int64_t deadline_ns) noexcept nogil:
    """Set `count` bytes aside: REACHED; TIMED_OUT if there was no room before the deadline; FAILED. Blocks."""
    if not load8(&ring.failed) and try_credit(ring, count):
        return STREAM_REACHED
    return reserve_slowly(ring, count, deadline_ns)


cdef inline StreamEnd reserve_slowly(Ring *ring, int64_t count, int64_t deadline_ns) noexcept nogil:
    cdef StreamEnd end = STREAM_REACHED
    cdef bint whole
    note_wait()
    pthread_mutex_lock(&ring.lock)
    add64(&ring.room_waiters, 1)
    while True:
        if ring.failed:
            end = STREAM_FAILED
            break
        if try_credit(ring, count):
            break
        whole = drop_locked(ring, count)
        if try_credit(ring, count):
            break
        if ring.waits_ended or monotonic_ns() >= deadline_ns:
            end = STREAM_TIMED_OUT
            break
        ring.full_waits += 1
        pthread_cond_broadcast(&ring.readable)
        cond_wait_until(&ring.room, &ring.lock, deadline_ns if whole else min(deadline_ns, monotonic_ns() + COPYING_NS))
    add64(&ring.room_waiters, -1)
    pthread_mutex_unlock(&ring.lock)
    return end


# --- pauses: who waits for the end of one waits where room is waited for, which `ring_fail` and `ring_end_waits` end, too

cdef inline void ring_set_paused(Ring *ring, bint paused) noexcept nogil:
    """Whether changes wait. What is being changed at this moment looks at it under its stripe's lock."""
    pthread_mutex_lock(&ring.lock)
    store8(&ring.paused, paused)
    pthread_cond_broadcast(&ring.room)
    pthread_mutex_unlock(&ring.lock)


cdef inline void ring_end_pauses(Ring *ring) noexcept nogil:
    """The node stops: nothing waits for the end of a pause any more, as if its deadline had passed."""
    pthread_mutex_lock(&ring.lock)
    store8(&ring.pauses_ended, 1)
    pthread_cond_broadcast(&ring.room)
    pthread_mutex_unlock(&ring.lock)


cdef inline bint ring_await_resumed(Ring *ring, int64_t deadline_ns) noexcept nogil:
    """Wait for the end of a pause, or for the failure of the stream, which every change notices. False if neither comes before
    the deadline. Blocks."""
    cdef bint resumed
    note_wait()
    pthread_mutex_lock(&ring.lock)
    pthread_cond_broadcast(&ring.readable)  # what was changed before is not sent by who waits here
    while ring.paused and not ring.failed and not ring.waits_ended and not ring.pauses_ended and monotonic_ns() < deadline_ns:
        cond_wait_until(&ring.room, &ring.lock, deadline_ns)
    resumed = not ring.paused or ring.failed
    pthread_mutex_unlock(&ring.lock)
    return resumed


# --- records in

cdef inline uint64_t ring_place(Ring *ring, uint32_t count, uint8_t **place) noexcept nogil:
    """A place for a record of `count` bytes, whose room was reserved; `place` is NULL where nobody reads. Returns the position
    after it; POSITION_NONE if the stream has failed, and then nothing of the room was used (invariant 3)."""
    cdef uint64_t position, seen
    place[0] = NULL
    while True:
        seen = load64(&ring.head)
        while not is_watched(seen):
            if cas64(&ring.head, &seen, seen + count):
                return seen + count
        position = place_watched(ring, count, place)
        if position != POSITION_AGAIN:
            return position


cdef inline uint64_t place_watched(Ring *ring, uint32_t count, uint8_t **place) noexcept nogil:
    """The same where the head is watched; POSITION_AGAIN if it is not any more."""
    cdef uint64_t position
    spin_lock(&ring.placing)
    if ring.failed:
        position = POSITION_NONE
    elif not is_watched(load64(&ring.head)):
        position = POSITION_AGAIN
    else:
        position = ring_head(ring) + count
        if ring.readers:
            place[0] = ring_at(ring, position - count)
            store8(place[0] + KIND_AT, 0)
        store64(&ring.head, position | <uint64_t>1 << 63)
    spin_unlock(&ring.placing)
    if place[0] != NULL:  # what comes next is nowhere near the processor: the ring is larger than its caches
        fetch_lines(place[0] + count, FETCH_LINES)
    return position


cdef inline void ring_publish(Ring *ring, uint8_t *place, uint8_t kind) noexcept nogil:
    """The record at `place` is whole: all of it but its kind was copied there."""
    store8(place + KIND_AT, kind)
    fence()
    if signed64(&ring.sleeping) or (not is_pushing() and signed64(&ring.window_sleepers)):
        pthread_mutex_lock(&ring.lock)
        pthread_cond_broadcast(&ring.readable)
        pthread_mutex_unlock(&ring.lock)
