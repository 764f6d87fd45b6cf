"""Commitment: the points where changes must be before what they did is revealed, and who waits for that.

What it is: a commit point is the append log on disk, or a backup; each has the stream up to some position, and has then all
that it is to have of it. A bucket waits for a set of points; an answer leaves once all of them have come to its position.
Which thread runs it: whoever an acknowledgement comes in at (`point_advance`); workers, which wait.
What it owns: nothing; the numbers are the ring's. What it must not know: which bucket waits for what, what a backup is.

Invariants:
1. While it is open a point's position never decreases; one that is not open holds nobody up.
2. After `ring_fail`, and after `ring_end_waits`, no wait lasts.
3. A wait is met only at a moment at which the leases of its points hold: the clock is looked at last, behind the positions. So
   a primary that was stopped between its work and its answer, and whose buckets are another's by now, keeps the answer back.
4. No wait for a point that was abandoned is met, whatever the point had come to: its lease has run out for good. (A GET that
   was being worked at when a peer took the bucket over must not leave afterwards; nothing of it was still to come.)
5. A wait with a moment is met only once the peer of each of its points that is a link's has answered a frame that was begun
   after that moment, as what the frame took it for (`windows`, invariant 8). A point that is closed has no peer.

The background of 5. With leases alone, what a primary answers is right as long as its clock goes on. A hypervisor that stops a
machine may hide that from the machine's clocks: the primary goes on, holds a lease that ran out long ago, and answers with what
its heir has changed. So with `--reads confirmed` nobody's clock is asked. A batch is executed, then its moment begins, then a
frame is begun to every backup that its buckets wait for, and each answers it and says which view it goes by. If that is none
newer than the frame's, no newer one was carried out there when it answered, so nothing had been opened there in one. A bucket's
next primary is one of these backups (only its primary has others made, and waits for them before it asks: `design`, section 5,
invariant 6), and none of them was that yet when it answered, so none was when the frames were begun: the bucket was nobody
else's, and what had been read of it was not of old. What happens after that does not matter: the read may be taken to have been
made when it was. Two cases need no answer. A bucket without backups can be served by nobody else. One that was handed over was
frozen here before, so a read of it was made before; and once a view gave it to another by itself its points are abandoned
(invariant 4).
A change that was made needs none either: no backup acknowledges its record unless the bucket follows this node there.
What a peer confirms it confirms for all moments before the frame's, so one frame serves all batches that were executed before
it, and a frame of records serves as well as one without any.
"""

from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcpy

from rcache.engine.native.ring cimport (
    CREDIT_NOT_SAID, DISK, FAILURE_BYTES, MOMENT_WANTED, POINTS_MAX, STREAM_FAILED, STREAM_REACHED, STREAM_TIMED_OUT, WAKERS_MAX,
    Credit, Cursor, Ring, StreamEnd, watch_head_locked,
)
from rcache.engine.native.system cimport (
    CLOCK_BOOTTIME, add64, cas64, clock_ns, cond_wait_until, fence, is_own_waker, lowest64, load64, monotonic_ns,
    pthread_cond_broadcast, pthread_mutex_lock, pthread_mutex_unlock, signed64, spin_lock, spin_unlock, store64, store8, write,
)

cdef enum:
    NO_POINT = -1

cdef extern from "<stdint.h>" nogil:
    uint64_t POINT_CLOSED "UINT64_MAX"
    uint64_t HELD_FOR_EVER "UINT64_MAX"


cdef struct Wait:
    # What an answer waits for: that each of `points`, a bit for each, has the stream up to `position`, and that the leases of
    # those that are leased hold; and, where there is a `moment`, that the peers have answered after it. No points: nothing.
    uint64_t points
    uint64_t position
    uint64_t moment      # of a batch; MOMENT_WANTED until it has one; 0: none


cdef inline void wait_join(Wait *wait, const Wait *other) noexcept nogil:
    """Both at once. A point that the one waits for is waited for up to the position of the other, too."""
    if other.points:
        wait.points |= other.points
        wait.position = max(wait.position, other.position)
        wait.moment = max(wait.moment, other.moment)


cdef inline uint64_t ring_durable(const Ring *ring) noexcept nogil:
    """The position up to which the log is on disk."""
    return load64(&ring.reached[<int>DISK])


cdef inline uint64_t committed(const Ring *ring, uint64_t points) noexcept nogil:
    """The position that all of these points have come to."""
    cdef uint64_t reached = POINT_CLOSED
    while points:
        reached = min(reached, load64(&ring.reached[lowest64(points)]))
        points &= points - 1
    return reached


cdef inline bint leases_hold(const Ring *ring, uint64_t points) noexcept nogil:
    """Whether the leases of those of these points that are leased hold now."""
    cdef uint64_t leased = points & load64(&ring.leased), now
    if not leased:
        return True
    now = <uint64_t>clock_ns(CLOCK_BOOTTIME)
    while leased:
        if now >= load64(&ring.lease_ends[lowest64(leased)]):
            return False
        leased &= leased - 1
    return True


cdef inline bint is_point_done(const Ring *ring, uint32_t number, const Wait *wait) noexcept nogil:
    """Whether a wait is over as far as this point is concerned."""
    cdef uint64_t reached = load64(&ring.reached[number])
    if reached < wait.position:
        return False
    return not wait.moment or number == DISK or reached == POINT_CLOSED or load64(&ring.confirmed[number]) >= wait.moment


cdef inline bint is_confirmed(const Ring *ring, const Wait *wait) noexcept nogil:
    """Invariant 5."""
    cdef uint64_t points = wait.points
    while points:
        if not is_point_done(ring, lowest64(points), wait):
            return False
        points &= points - 1
    return True


cdef inline bint is_met(const Ring *ring, const Wait *wait) noexcept nogil:
    """Whether an answer may leave now (invariant 3)."""
    if wait.moment and not is_confirmed(ring, wait):
        return False
    return committed(ring, wait.points) >= wait.position and leases_hold(ring, wait.points)


cdef inline bint is_lost(const Ring *ring, const Wait *wait) noexcept nogil:
    """Whether a wait will never be met: for a point that was abandoned."""
    return wait.points & load64(&ring.abandoned) != 0


cdef inline uint64_t begin_moment(Ring *ring, uint64_t points) noexcept nogil:
    """The peers of these points are to answer frames that are begun later than this. Returns the moment, which an answer that is
    wanted for what was executed waits for (invariant 5); 0 where none of the points is a link's. The caller has the windows
    looked at afterwards (`windows_push`)."""
    cdef uint64_t links = points & ~(<uint64_t>1 << DISK), moment, wanted
    cdef uint32_t number
    if not links:
        return 0
    moment = <uint64_t>add64(<int64_t *>&ring.moment, 1) + 1
    while links:
        number = lowest64(links)
        wanted = load64(&ring.wanted[number])
        while wanted < moment and not cas64(&ring.wanted[number], &wanted, moment):
            pass
        links &= links - 1
    fence()
    return moment


# --- points

cdef inline void set_lease_locked(Ring *ring, uint32_t number, uint64_t until_ns) noexcept nogil:
    """Its end, and then that it has one: whoever finds the bit finds the end."""
    cdef uint64_t bit = <uint64_t>1 << number
    store64(&ring.lease_ends[number], until_ns)
    store64(&ring.leased, ring.leased & ~bit if until_ns == HELD_FOR_EVER else ring.leased | bit)


cdef inline void begin_account_locked(Credit *credit) noexcept nogil:
    """Nothing is said, nothing is used, by the name of nobody. Who still has the number of its former owner may look at it
    meanwhile."""
    store64(<uint64_t *>&credit.spent, 0)
    store64(<uint64_t *>&credit.added, 0)
    store64(<uint64_t *>&credit.refunded, 0)
    store64(<uint64_t *>&credit.room, 0)
    store64(<uint64_t *>&credit.most, 0)
    store64(<uint64_t *>&credit.sample, 0)
    store64(<uint64_t *>&credit.renewals, 0)
    store64(<uint64_t *>&credit.renewed_ns, 0)
    store64(<uint64_t *>&credit.asked_ns, 0)
    store64(<uint64_t *>&credit.allowance, <uint64_t>CREDIT_NOT_SAID)
    credit.name[0] = 0


cdef inline int point_open(Ring *ring, uint64_t position, uint64_t until_ns) noexcept nogil:
    """The number of a new point, or NO_POINT. Numbers are given in turn, so that one that was closed or abandoned rests before
    it is another's: whoever still waits for its former owner then finds it so."""
    cdef uint32_t step, number
    cdef int found = NO_POINT
    pthread_mutex_lock(&ring.lock)
    for step in range(POINTS_MAX):
        number = (ring.next_point + step) % POINTS_MAX
        if ring.reached[number] == POINT_CLOSED or ring.abandoned >> number & 1:
            set_lease_locked(ring, number, until_ns)
            store64(&ring.wanted[number], 0)
            store64(&ring.confirmed[number], 0)
            begin_account_locked(&ring.credits[number])
            store64(&ring.reached[number], position)
            ring.serials[number] += 1
            store64(&ring.abandoned, ring.abandoned & ~(<uint64_t>1 << number))
            ring.next_point = number + 1
            found = <int>number
            break
    pthread_mutex_unlock(&ring.lock)
    return found


cdef inline void wake_all_locked(Ring *ring) noexcept nogil:
    """Everybody who waits for a point, shared workers included. A shared worker that does so itself looks by itself."""
    cdef uint64_t one = 1
    cdef uint32_t number
    pthread_cond_broadcast(&ring.committed)
    for number in range(ring.waker_count):
        if not is_own_waker(ring.wakers[number]):
            write(ring.wakers[number], &one, sizeof(one))


cdef inline void advance_locked(Ring *ring, uint32_t number, uint64_t position, uint64_t moment) noexcept nogil:
    """Both only ever go up."""
    if position > ring.reached[number] or moment > ring.confirmed[number]:
        store64(&ring.reached[number], max(position, ring.reached[number]))
        store64(&ring.confirmed[number], max(moment, ring.confirmed[number]))
        store64(&ring.moves, ring.moves + 1)


cdef inline void point_advance(Ring *ring, uint32_t number, uint64_t position, uint64_t moment) noexcept nogil:
    """A point has come this far, and its peer has answered a frame of this moment (0: none); POINT_CLOSED: it holds nobody up
    any more."""
    pthread_mutex_lock(&ring.lock)
    advance_locked(ring, number, position, moment)
    fence()
    if signed64(&ring.waiters):
        wake_all_locked(ring)
    pthread_mutex_unlock(&ring.lock)


cdef inline void point_advance_as(
    Ring *ring, uint32_t number, uint32_t serial, uint64_t position, uint64_t moment, Cursor *cursor, uint64_t owner
) noexcept nogil:
    """The same by one who may have lost the number to another meanwhile, and whose cursor's records need not be kept either."""
    pthread_mutex_lock(&ring.lock)
    if ring.serials[number] == serial:
        advance_locked(ring, number, position, moment)
    if cursor.used and cursor.owner == owner:
        cursor.released = max(cursor.released, position)
        if signed64(&ring.room_waiters):
            pthread_cond_broadcast(&ring.room)
    fence()
    if signed64(&ring.waiters):
        wake_all_locked(ring)
    pthread_mutex_unlock(&ring.lock)


cdef inline void point_lease(Ring *ring, uint32_t number, uint64_t until_ns) noexcept nogil:
    """A point may be counted on until then. Wakes who waits."""
    pthread_mutex_lock(&ring.lock)
    set_lease_locked(ring, number, until_ns)
    fence()
    if signed64(&ring.waiters):
        wake_all_locked(ring)
    pthread_mutex_unlock(&ring.lock)


cdef inline void point_abandon(Ring *ring, uint32_t number) noexcept nogil:
    """Invariant 4. Wakes who waits for it: that ends at once."""
    pthread_mutex_lock(&ring.lock)
    set_lease_locked(ring, number, 0)
    store64(&ring.abandoned, ring.abandoned | <uint64_t>1 << number)
    fence()
    wake_all_locked(ring)
    pthread_mutex_unlock(&ring.lock)


# --- waiting

cdef inline void count_waiter(Ring *ring, const Wait *wait, int64_t more) noexcept nogil:
    """One more who waits, or one less."""
    add64(&ring.waiters, more)
    if wait.points >> DISK & 1:
        add64(&ring.disk_waiters, more)


cdef inline StreamEnd ring_wait(Ring *ring, const Wait *wait, int64_t deadline_ns) noexcept nogil:
    cdef StreamEnd end = STREAM_REACHED
    if is_met(ring, wait):
        return STREAM_REACHED
    pthread_mutex_lock(&ring.lock)
    count_waiter(ring, wait, 1)
    while not is_met(ring, wait):
        if ring.failed:
            end = STREAM_FAILED
            break
        if ring.waits_ended or is_lost(ring, wait) or monotonic_ns() >= deadline_ns:
            end = STREAM_TIMED_OUT
            break
        if wait.points >> DISK & 1:
            pthread_cond_broadcast(&ring.readable)
        cond_wait_until(&ring.committed, &ring.lock, deadline_ns)
    count_waiter(ring, wait, -1)
    pthread_mutex_unlock(&ring.lock)
    return end


cdef inline void ring_park(Ring *ring, const Wait *wait) noexcept nogil:
    """A connection of a shared worker waits; whoever is to bring what it waits for is to hurry."""
    count_waiter(ring, wait, 1)
    fence()
    if wait.points >> DISK & 1:
        pthread_mutex_lock(&ring.lock)
        pthread_cond_broadcast(&ring.readable)
        pthread_mutex_unlock(&ring.lock)


cdef inline void ring_unpark(Ring *ring, const Wait *wait) noexcept nogil:
    count_waiter(ring, wait, -1)


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


# --- the end of all waits

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
        spin_lock(&ring.placing)
        store8(&ring.failed, 1)
        watch_head_locked(ring, True)
        spin_unlock(&ring.placing)
    pthread_cond_broadcast(&ring.readable)
    pthread_cond_broadcast(&ring.room)
    wake_all_locked(ring)
    pthread_mutex_unlock(&ring.lock)
