"""Credit: what a backup lends this node of its room, and what this node's changes have used of it.

What it is: the primary's half of invariant 9 of `design`, section 5; the backup's is `loans`. Each commit point that is a
link's has an account. A change sets aside what its item takes before it takes the stripe's lock, and settles under it; a
change that finds too little evicts items that this backup holds, or is refused (`change.make_credit`).
Which thread runs it: workers and the housekeeper; `credit_renew` whoever takes an answer in.
What it owns: nothing; the accounts are the ring's. What it must not know: which items there are; what a backup's memory is.

The unit. Two nodes need not have the same body of the engine, nor pages of one size, and so an item takes more at the one than
at the other. Both count it by `credit_cost`; the backup lends no more of that than it has room for at the worst it makes of
it (`loans`).

What is counted. Only growth: a new item, and what a value is larger than the one it replaces. What goes by itself (deletes,
expiry, flushes, smaller values) is found by the backup, which says so with its next answer, to whichever of its primaries has
use for it. Were it kept by the one that freed it, that one could sit on room it has no use for. What is evicted for credit is
given back at once (`refunded`): its record lies in the stream before that of the change that it makes room for.

Invariants:
1. `spent` passes `allowance` only where a renewal lowered that; and where that is so (the point is in debt), a change may be
   made that has evicted twice what it uses.
2. A sample is never more than what the records up to its position have used. `added` is counted behind the placing of a record
   and read before the head; `refunded` is counted before the placing and read behind the head. So an allowance, the sample of a
   frame and what the backup said it has beyond that frame, is never more than what the backup lent.
3. An account belongs to who has the point: a number that is another's by now is told nothing (`serial`).
"""

from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcpy

from rcache.engine.native.commitment cimport begin_moment
from rcache.engine.native.ring cimport CREDIT_NOT_SAID, DISK, POINT_NAME_BYTES, POINTS_MAX, Credit, Ring, ring_head
from rcache.engine.native.system cimport (
    add64, cas64, load64, lowest64, monotonic_ns, pthread_cond_broadcast, pthread_mutex_lock, pthread_mutex_unlock, signed64,
    store64,
)

cdef extern from *:
    """
    #define RC_ROOM_MAX ((int64_t)1 << 60)
    """
    # The most that a peer's word is taken for, and the least by its negative: what is added to it comes nowhere near the end of
    # the numbers.
    int64_t ROOM_MAX "RC_ROOM_MAX"

cdef enum:
    # What an item counts beside its key and its value: its header, an expiry, its place in a table.
    CREDIT_ITEM_BYTES = 64
    # A peer is asked for its room by itself no more often than this.
    ASK_EVERY_NS = 50000000
    # And so often where nothing else has it say so.
    ASK_IDLE_NS = 1000000000
    # A peer that lends less than this part of the most it ever lent is short of room.
    SCARCE_DIVISOR = 2


cdef struct Sample:
    # What was used of a point's credit by the records before `position`.
    uint64_t position
    int64_t used
    bint taken


cdef inline int64_t credit_cost(uint32_t key_bytes, uint64_t value_bytes) noexcept nogil:
    """What an item counts."""
    return CREDIT_ITEM_BYTES + <int64_t>key_bytes + <int64_t>value_bytes


cdef inline uint64_t links_of(uint64_t points) noexcept nogil:
    return points & ~(<uint64_t>1 << DISK)


cdef inline bint credit_try(Ring *ring, uint32_t number, int64_t count) noexcept nogil:
    """Set `count` aside at one point (invariant 1)."""
    cdef Credit *credit = &ring.credits[number]
    cdef uint64_t seen = load64(<uint64_t *>&credit.spent)
    while <int64_t>seen + count <= signed64(&credit.allowance):
        if cas64(<uint64_t *>&credit.spent, &seen, seen + <uint64_t>count):
            return True
    return False


cdef inline void credit_give(Ring *ring, uint64_t points, int64_t count) noexcept nogil:
    """What was set aside and not used."""
    while count and points:
        add64(&ring.credits[lowest64(points)].spent, -count)
        points &= points - 1


cdef inline bint credit_take(Ring *ring, uint64_t points, int64_t count) noexcept nogil:
    """Set `count` aside at each of these points, or at none."""
    cdef uint64_t left = points
    while left:
        if not credit_try(ring, lowest64(left), count):
            credit_give(ring, points & ~left, count)
            return False
        left &= left - 1
    return True


cdef inline void credit_use(Ring *ring, uint64_t points, int64_t count) noexcept nogil:
    """A record that uses so much of what was set aside has its place (invariant 2)."""
    while count and points:
        add64(&ring.credits[lowest64(points)].added, count)
        points &= points - 1


cdef inline int64_t credit_used(const Credit *credit) noexcept nogil:
    return signed64(&credit.added) - signed64(&credit.refunded)


cdef inline Sample credit_sample(const Ring *ring, uint32_t number) noexcept nogil:
    """What the records before the stream's head have used (invariant 2)."""
    cdef const Credit *credit = &ring.credits[number]
    cdef Sample sample
    sample.used = signed64(&credit.added)
    sample.position = ring_head(ring)
    sample.used -= signed64(&credit.refunded)
    sample.taken = True
    return sample


cdef inline void credit_renew(Ring *ring, uint32_t number, uint32_t serial, int64_t used, int64_t room) noexcept nogil:
    """A backup has said what it lends beyond a frame (invariant 3). However much that is, sums with it stay numbers."""
    cdef Credit *credit = &ring.credits[number]
    room = min(max(room, -ROOM_MAX), ROOM_MAX)
    pthread_mutex_lock(&ring.lock)
    if ring.serials[number] == serial:
        store64(<uint64_t *>&credit.allowance, <uint64_t>(used + room))
        store64(<uint64_t *>&credit.room, <uint64_t>room)
        store64(<uint64_t *>&credit.most, <uint64_t>max(credit.most, room))
        store64(<uint64_t *>&credit.sample, <uint64_t>used)
        store64(<uint64_t *>&credit.renewed_ns, <uint64_t>monotonic_ns())
        add64(&credit.renewals, 1)
    pthread_mutex_unlock(&ring.lock)


cdef inline void credit_pass_on(Ring *ring, uint32_t old, uint32_t number) noexcept nogil:
    """Another point of the same peer goes on with what is left of the credit. No bucket waits for it yet."""
    cdef Credit *was = &ring.credits[old]
    cdef Credit *credit = &ring.credits[number]
    if signed64(&was.allowance) == CREDIT_NOT_SAID:
        return
    store64(<uint64_t *>&credit.allowance, <uint64_t>(signed64(&was.allowance) - signed64(&was.spent)))
    store64(<uint64_t *>&credit.room, <uint64_t>signed64(&was.room))
    store64(<uint64_t *>&credit.most, <uint64_t>signed64(&was.most))
    store64(<uint64_t *>&credit.sample, <uint64_t>-1)  # a renewal may come


# --- whose it is, for the words of refusals

cdef inline void credit_name(Ring *ring, uint32_t number, const char *name, size_t count) noexcept nogil:
    cdef Credit *credit = &ring.credits[number]
    count = min(count, <size_t>(POINT_NAME_BYTES - 1))
    pthread_mutex_lock(&ring.lock)
    memcpy(credit.name, name, count)
    credit.name[count] = 0
    pthread_mutex_unlock(&ring.lock)


cdef inline void credit_name_of(Ring *ring, uint32_t number, char *name) noexcept nogil:
    """POINT_NAME_BYTES of it. The number may be another's by now, or be becoming that."""
    pthread_mutex_lock(&ring.lock)
    memcpy(name, ring.credits[number].name, POINT_NAME_BYTES)
    pthread_mutex_unlock(&ring.lock)


# --- what is to be known of an account

cdef inline bint is_scarce(const Credit *credit) noexcept nogil:
    """Whether the peer is short of room, and does not only have much under way."""
    return signed64(&credit.room) < signed64(&credit.most) // SCARCE_DIVISOR


cdef inline bint renewal_comes(const Credit *credit) noexcept nogil:
    """Whether something is in the stream whose answer will say anew what there is."""
    return credit_used(credit) != signed64(&credit.sample)


cdef inline int64_t credit_debt(const Credit *credit) noexcept nogil:
    """By how much more was used than the peer has room for."""
    cdef int64_t allowance = signed64(&credit.allowance)
    return 0 if allowance == CREDIT_NOT_SAID else max(<int64_t>0, signed64(&credit.spent) - allowance)


cdef inline bint credit_ask(Ring *ring, uint32_t number) noexcept nogil:
    """Have the peer asked for its room, unless it was a moment ago. The caller has the windows looked at."""
    cdef Credit *credit = &ring.credits[number]
    cdef int64_t now_ns = monotonic_ns()
    cdef uint64_t asked_ns = load64(<uint64_t *>&credit.asked_ns)
    if now_ns - <int64_t>asked_ns < ASK_EVERY_NS or not cas64(<uint64_t *>&credit.asked_ns, &asked_ns, <uint64_t>now_ns):
        return False
    begin_moment(ring, <uint64_t>1 << number)
    return True
