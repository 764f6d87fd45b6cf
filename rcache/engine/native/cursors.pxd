"""Readers of the change stream: a cursor each, what there is to take, and sending it straight from the ring.

What it is: waiting for records, choosing those of some buckets, and handing them on: copied, or as the pieces of a frame.
Which thread runs it: a reader its own; `cursor_release` any.
What it owns: nothing; cursors are the ring's. What it must not know: what a record says, but for its length, kind and bucket;
what a frame of records is for.
"""

from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memset

from rcache.engine.native.ring cimport (
    KIND_AT, READERS_MAX, Cursor, Ring, keep_nothing_locked, let_go_locked, ring_at, ring_head, watch_head_locked,
)
from rcache.engine.native.system cimport (
    EAGAIN, EINTR, MSG_DONTWAIT, MSG_NOSIGNAL, POLLOUT, add64, cond_wait_until, fence, get32, iovec, last_errno, load8,
    monotonic_ns, msghdr, poll, pollfd, pthread_cond_broadcast, pthread_mutex_lock, pthread_mutex_unlock, sched_yield,
    sendmsg, signed64, spin_lock, spin_unlock,
)

cdef enum:
    # Where a record says its bucket.
    BUCKET_AT = 8
    # Pieces of one frame: of what an alternation of buckets cuts up, a call of sendmsg's worth.
    SPANS_MAX = 256

cdef enum SendEnd:
    SEND_DONE = 0
    SEND_SLOW = 1
    SEND_LOST = 2


cdef struct Span:
    # Records that lie one behind the other.
    uint64_t position
    uint64_t count       # bytes


cdef struct Measured:
    # What a cursor has before it: records and their bytes in so many spans, and the position behind what was looked at.
    uint64_t count
    uint64_t bytes
    uint64_t position
    uint32_t spans
    bint lost


cdef inline Cursor *cursor_open(Ring *ring, bint holds) noexcept nogil:
    """A cursor at the newest record, or NULL if there are too many."""
    cdef Cursor *found = NULL
    cdef uint32_t number
    pthread_mutex_lock(&ring.lock)
    while not ring.readers and not keep_nothing_locked(ring):  # a copy under way for a reader that has gone
        pthread_mutex_unlock(&ring.lock)
        sched_yield()
        pthread_mutex_lock(&ring.lock)
    spin_lock(&ring.placing)
    watch_head_locked(ring, True)
    if not ring.readers:
        let_go_locked(ring)
    for number in range(READERS_MAX):
        if not ring.cursors[number].used:
            found = &ring.cursors[number]
            found.position = found.released = ring_head(ring)
            found.holds, found.pinned, found.woken, found.used = holds, False, False, True
            found.chosen, found.chosen_bytes = NULL, 0
            found.owner += 1
            ring.readers += 1
            break
    spin_unlock(&ring.placing)
    pthread_mutex_unlock(&ring.lock)
    return found


cdef inline void cursor_close(Ring *ring, Cursor *cursor) noexcept nogil:
    pthread_mutex_lock(&ring.lock)
    if cursor.used:
        cursor.used = False
        spin_lock(&ring.placing)
        ring.readers -= 1
        if not ring.readers:
            ring.kept_to = ring_head(ring)
            watch_head_locked(ring, ring.failed)
        spin_unlock(&ring.placing)
    pthread_cond_broadcast(&ring.room)
    pthread_mutex_unlock(&ring.lock)


cdef inline void cursor_release(Ring *ring, Cursor *cursor, uint64_t owner, uint64_t position) noexcept nogil:
    """Any thread, and at any time: one that has another owner by now is left alone."""
    pthread_mutex_lock(&ring.lock)
    if cursor.used and cursor.owner == owner:
        cursor.released = max(cursor.released, position)
        pthread_cond_broadcast(&ring.room)
    pthread_mutex_unlock(&ring.lock)


cdef inline bint is_behind_locked(Ring *ring, Cursor *cursor) noexcept nogil:
    """Whether there is a whole record to read. One that fell behind the tail reads on from there."""
    if cursor.position < ring.tail:
        return True
    return cursor.position < ring_head(ring) and load8(ring_at(ring, cursor.position) + KIND_AT) != 0


cdef inline bint is_urgent_locked(Ring *ring, Cursor *cursor) noexcept nogil:
    """Whether somebody waits for what is there: for it to be on disk, for its room, or by `wake_readers`."""
    cdef bint woken = cursor.woken
    cursor.woken = False
    return (woken or ring.failed or (ring_head(ring) - cursor.released) * 2 > ring.bytes_max
            or signed64(&ring.disk_waiters) > 0 or signed64(&ring.room_waiters) > 0)


cdef inline bint cursor_rewind(Ring *ring, Cursor *cursor, uint64_t position) noexcept nogil:
    """Go back to a position between two records that were read and not released. False where it is none of that. The records
    are walked over under the lock: one that is released meanwhile may be overwritten."""
    cdef uint64_t at
    cdef uint32_t length = 1
    pthread_mutex_lock(&ring.lock)
    at = cursor.released
    while at < position and at < cursor.position and length:  # 0: what was released ends in no record's place
        length = get32(ring_at(ring, at))
        at += length
    if at == position and at <= cursor.position:
        cursor.position = at
    else:
        at = position + 1
    pthread_mutex_unlock(&ring.lock)
    return at == position


cdef inline bint cursor_await(
    Ring *ring, Cursor *cursor, int64_t timeout_ns, int64_t linger_ns, uint64_t until
) noexcept nogil:
    """Wait for a record that begins before `until`, then a little for more unless somebody waits for it. Whether there is one.
    Pins the cursor then."""
    cdef int64_t deadline_ns = monotonic_ns() + timeout_ns, linger_until_ns
    cdef bint there
    if cursor.position >= until:
        return False
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
    if there and linger_ns > 0:
        linger_until_ns = monotonic_ns() + linger_ns
        while not is_urgent_locked(ring, cursor) and monotonic_ns() < linger_until_ns:
            cond_wait_until(&ring.readable, &ring.lock, linger_until_ns)
    if there:
        cursor.pinned = True
        if not cursor.holds:
            cursor.released = max(cursor.position, ring.tail)
    pthread_mutex_unlock(&ring.lock)
    return there


cdef inline bint is_chosen(const Cursor *cursor, const uint8_t *record) noexcept nogil:
    """Whether a record is of a bucket that is read. What it says is this node's own: its bucket is within the bits."""
    cdef uint32_t bucket
    if cursor.chosen == NULL:
        return True
    bucket = get32(record + BUCKET_AT)
    return bucket // 8 < cursor.chosen_bytes and cursor.chosen[bucket // 8] >> (bucket % 8) & 1


cdef inline void cursor_measure(
    Ring *ring, Cursor *cursor, uint64_t bytes_max, uint64_t until, Span *spans, uint32_t spans_max, Measured *found
) noexcept nogil:
    """What there is to take of what begins before `until`: whole records of the buckets chosen, one at least if there is one,
    up to about `bytes_max`, in at most `spans_max` pieces. The cursor is pinned, so nothing of it is dropped meanwhile."""
    cdef uint64_t at, head
    cdef uint32_t length
    cdef bint goes_on = False
    pthread_mutex_lock(&ring.lock)
    found.lost = cursor.position < ring.tail
    if found.lost:
        cursor.position = ring.tail
    head = min(ring_head(ring), until)
    pthread_mutex_unlock(&ring.lock)
    found.count = found.bytes = 0
    found.spans = 0
    at = cursor.position
    while at < head and load8(ring_at(ring, at) + KIND_AT):
        length = get32(ring_at(ring, at))
        if not is_chosen(cursor, ring_at(ring, at)):
            goes_on = False
            at += length
            continue
        if found.bytes and found.bytes + length > bytes_max:
            break
        if not goes_on:
            if found.spans == spans_max:
                break
            spans[found.spans].position, spans[found.spans].count = at, 0
            found.spans += 1
            goes_on = True
        spans[found.spans - 1].count += length
        found.bytes += length
        found.count += 1
        at += length
    found.position = at


cdef inline void cursor_unpin(Ring *ring, Cursor *cursor, uint64_t position) noexcept nogil:
    """What was to be copied is copied; the cursor stands at `position`. Wakes who waits for the room that was kept for it."""
    pthread_mutex_lock(&ring.lock)
    cursor.position = position
    cursor.pinned = False
    if not cursor.holds and signed64(&ring.room_waiters) > 0:
        pthread_cond_broadcast(&ring.room)
    pthread_mutex_unlock(&ring.lock)


# --- sending

cdef inline SendEnd send_pieces(int fd, iovec *pieces, uint32_t count, int64_t deadline_ns) noexcept nogil:
    """Send all of the pieces, which are used up in doing so. Blocks until `deadline_ns`."""
    cdef msghdr message
    cdef pollfd watched
    cdef ssize_t sent
    cdef int64_t left_ms
    memset(&message, 0, sizeof(message))
    watched.fd, watched.events = fd, POLLOUT
    while count:
        message.msg_iov, message.msg_iovlen = pieces, count
        sent = sendmsg(fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT)
        if sent < 0:
            if last_errno() == EINTR:
                continue
            if last_errno() != EAGAIN:
                return SEND_LOST
            left_ms = (deadline_ns - monotonic_ns() + 999999) // 1000000
            if left_ms <= 0 or poll(&watched, 1, <int>min(left_ms, <int64_t>0x7FFFFFFF)) == 0:
                return SEND_SLOW
            continue
        while count and <size_t>sent >= pieces.iov_len:
            sent -= <ssize_t>pieces.iov_len
            pieces += 1
            count -= 1
        if count:
            pieces.iov_base = <char *>pieces.iov_base + sent
            pieces.iov_len -= <size_t>sent
            if monotonic_ns() >= deadline_ns:
                return SEND_SLOW
    return SEND_DONE


cdef inline SendEnd send_spans(
    const Ring *ring, const Measured *found, const Span *spans, int fd, const uint8_t *head, uint64_t head_bytes,
    int64_t deadline_ns
) noexcept nogil:
    """Send the head of a frame and, from where they lie, the records behind it."""
    cdef iovec pieces[1 + SPANS_MAX]
    cdef uint32_t number
    pieces[0].iov_base, pieces[0].iov_len = <void *>head, head_bytes
    for number in range(found.spans):
        pieces[number + 1].iov_base = ring_at(ring, spans[number].position)
        pieces[number + 1].iov_len = spans[number].count
    return send_pieces(fd, pieces, 1 + found.spans, deadline_ns)
