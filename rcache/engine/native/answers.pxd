"""Answers: reply frames, gathered in a worker's buffer until their batch is committed and sent.

What it is: the payload of each reply, the texts of refusals (word for word those of the reference engine), and what must be
known of a reply that waits: where it begins, and what must be committed before it may leave.
Which thread runs it: the worker that owns the buffer.
What it owns: the worker's buffers. What it must not know: sockets; what was executed.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy, memset

from rcache.engine.native.change cimport Batch, Buffer, buffer_need
from rcache.engine.native.commitment cimport Wait, begin_moment, is_lost, is_met, wait_join
from rcache.engine.native.credit cimport credit_name_of
from rcache.engine.native.protocol cimport (
    HEADER_BYTES, ST_APPEND_LOG_FAILED, ST_CHANGED, ST_EXISTS, ST_NOT_COMMITTED, ST_NOT_FOUND, put_frame_head,
)
from rcache.engine.native.removal cimport (
    WHY_COUNTER, WHY_ITEM_TOO_LARGE, WHY_KEPT_CHANGING, WHY_KEPT_CHANGING_HASHED, WHY_LATE, WHY_LOG_FAILED,
    WHY_NOT_A_NUMBER, WHY_NOT_PRIMARY, WHY_NOTHING_TO_EVICT, WHY_NO_EVICTION, WHY_OUT_OF_RANGE, WHY_PAUSED, WHY_PEER_FULL,
    WHY_PEER_FULL_NO_EVICTION, WHY_STREAM_FAILED,
    WHY_STREAM_FULL, WHY_TIMED_OUT, WHY_TOO_MANY, WHY_VALUE_TOO_LARGE, WHY_WOULD_PASS, Outcome, refuse,
)
from rcache.engine.native.ring cimport (
    POINTS_MAX, POINT_NAME_BYTES, STREAM_FAILED, STREAM_REACHED, STREAM_TIMED_OUT, Ring, StreamEnd,
)
from rcache.engine.native.store cimport BACKUP, FROZEN, IMPORTING, PRIMARY, Store
from rcache.engine.native.system cimport put16, put64, signed64
from rcache.engine.native.windows cimport windows_wait

cdef enum:
    REASON_BYTES_MAX = 1024


cdef struct Reply:
    # A reply that waits for its batch. `at` and `count` are its place in the output.
    uint64_t at
    uint64_t count
    Wait wait
    uint32_t request_id
    uint8_t opcode


cdef struct Worker:
    # What a thread that serves works with.
    Buffer out
    Reply *replies           # those that wait
    uint64_t reply_count
    uint64_t reply_room
    Wait wait                # for all replies of the batch
    int64_t deadline_ns      # the latest of the batch
    int64_t received_ns
    int64_t now_ns
    uint64_t clock_ms
    uint32_t used_ms
    uint32_t left            # operations until the clocks are looked at again
    Batch batch
    uint8_t *input
    uint64_t input_room
    uint32_t in_vain         # looks for an acknowledgement in a row that found nothing
    uint32_t waits_unlooked  # waits to come that begin without a look


cdef inline const char *state_name(int64_t state) noexcept nogil:
    if state == IMPORTING:
        return "importing"
    if state == BACKUP:
        return "backup"
    if state == PRIMARY:
        return "primary"
    return "frozen" if state == FROZEN else "absent"


cdef inline int write_reason(const Store *store, char *text, const Outcome *outcome) noexcept nogil:
    """The text of a refusal. Returns its length."""
    cdef int64_t a = outcome.number, b = outcome.other
    cdef long long first = a, second = b
    cdef long long value_max = <long long>store.value_bytes_max
    cdef uint8_t why = outcome.why
    cdef const char *plain = ""
    cdef char name[POINT_NAME_BYTES]
    if why == WHY_VALUE_TOO_LARGE:
        return snprintf(text, REASON_BYTES_MAX, "a value of %lld bytes; at most %lld are taken", first, value_max)
    if why == WHY_WOULD_PASS:
        return snprintf(text, REASON_BYTES_MAX, "the value would pass %lld bytes", value_max)
    if why == WHY_NOT_PRIMARY:
        return snprintf(text, REASON_BYTES_MAX, "bucket %lld is %s on this node", first, state_name(b))
    if why == WHY_COUNTER:
        return snprintf(text, REASON_BYTES_MAX, "bucket %lld is about to be opened in a new epoch; try again", first)
    if why == WHY_STREAM_FAILED:
        return snprintf(text, REASON_BYTES_MAX, "the append log failed: %s", <const char *>store.ring.failure)
    if why == WHY_ITEM_TOO_LARGE:
        return snprintf(text, REASON_BYTES_MAX, "the item alone would pass the memory limit of %lld bytes", first)
    if why == WHY_NOTHING_TO_EVICT or why == WHY_NO_EVICTION:
        plain = "nothing is left to evict" if why == WHY_NOTHING_TO_EVICT else "and eviction is switched off (--no-evict)"
        return snprintf(text, REASON_BYTES_MAX, "the memory limit of %lld bytes is reached, %s", first, plain)
    if why == WHY_PEER_FULL or why == WHY_PEER_FULL_NO_EVICTION:
        plain = "nothing that it holds is left to evict" if why == WHY_PEER_FULL else "and eviction is switched off (--no-evict)"
        credit_name_of(<Ring *>&store.ring, first % POINTS_MAX, name)
        return snprintf(text, REASON_BYTES_MAX, "the backup %s has no room for it (it lends %lld bytes more), %s",
                        <const char *>name, second, plain)
    if why == WHY_OUT_OF_RANGE:
        return snprintf(text, REASON_BYTES_MAX, "%lld and %s%llu add up to more than 64 bits hold", first,
                        <const char *>("-" if b and (b < 0) != outcome.minus else ""),
                        <unsigned long long>(b if b >= 0 else -(b + 1)) + (b < 0))
    if why == WHY_TOO_MANY:
        return snprintf(text, REASON_BYTES_MAX, "%lld keys are more than one reply holds; ask in several requests", first)
    if why == WHY_STREAM_FULL:
        plain = "the append log is behind and had no room before the deadline"
    elif why == WHY_PAUSED:
        plain = "changes are paused, and were so until the deadline"
    elif why == WHY_KEPT_CHANGING:
        plain = "the item kept changing while room was made for it; try again"
    elif why == WHY_KEPT_CHANGING_HASHED:
        plain = "the value kept changing while it was compared; try again"
    elif why == WHY_NOT_A_NUMBER:
        plain = "the value is not a signed 64-bit number in decimal"
    elif why == WHY_LATE:
        plain = "the caller's time was up before the request's turn came"
    elif why == WHY_TIMED_OUT:
        plain = "applied here, but not committed before the deadline; the outcome is not known"
    elif why == WHY_LOG_FAILED:
        plain = "the append log failed; the outcome is not known"
    return snprintf(text, REASON_BYTES_MAX, "%s", plain)


# --- frames

cdef inline uint8_t *begin_reply(Worker *worker, uint64_t payload) noexcept nogil:
    """Room for a reply with a payload of so many bytes; where the payload goes, or NULL (the buffer has failed)."""
    if not buffer_need(&worker.out, HEADER_BYTES + payload):
        return NULL
    return worker.out.data + worker.out.count + HEADER_BYTES


cdef inline void note_waiting(
    Worker *worker, uint8_t opcode, uint32_t request_id, uint64_t count, const Wait *wait
) noexcept nogil:
    """The reply of so many bytes at the end of the output waits."""
    cdef Reply *longer
    cdef Reply *reply
    if worker.reply_count == worker.reply_room:
        longer = <Reply *>realloc(worker.replies, (worker.reply_room * 2 + 64) * sizeof(Reply))
        if longer == NULL:
            worker.out.failed = True
            return
        worker.replies, worker.reply_room = longer, worker.reply_room * 2 + 64
    reply = &worker.replies[worker.reply_count]
    reply.at, reply.count, reply.wait = worker.out.count, count, wait[0]
    reply.request_id, reply.opcode = request_id, opcode
    worker.reply_count += 1
    wait_join(&worker.wait, wait)


cdef inline void end_reply(
    const Store *store, Worker *worker, uint8_t opcode, uint8_t status, uint32_t request_id, uint64_t payload,
    const Wait *wait
) noexcept nogil:
    """The reply that was begun is whole."""
    put_frame_head(
        worker.out.data + worker.out.count, opcode, status, <uint32_t>payload, request_id, <uint32_t>signed64(&store.epoch)
    )
    if wait.points:
        note_waiting(worker, opcode, request_id, HEADER_BYTES + payload, wait)
    worker.out.count += HEADER_BYTES + payload


cdef inline void reply_version(
    const Store *store, Worker *worker, uint8_t opcode, uint8_t status, uint32_t request_id, uint64_t version,
    const Wait *wait
) noexcept nogil:
    cdef uint8_t *at = begin_reply(worker, 8)
    if at != NULL:
        put64(at, version)
        end_reply(store, worker, opcode, status, request_id, 8, wait)


cdef inline void reply_refused(
    const Store *store, Worker *worker, uint8_t opcode, uint32_t request_id, const Outcome *outcome
) noexcept nogil:
    """The answer to a request that was not executed as asked."""
    cdef char text[REASON_BYTES_MAX]
    cdef uint8_t *at
    cdef uint64_t count
    if outcome.status == ST_EXISTS or outcome.status == ST_CHANGED:
        reply_version(store, worker, opcode, outcome.status, request_id, outcome.version, &outcome.wait)
        return
    if outcome.status == ST_NOT_FOUND:
        if begin_reply(worker, 0) != NULL:
            end_reply(store, worker, opcode, outcome.status, request_id, 0, &outcome.wait)
        return
    count = min(write_reason(store, text, outcome), REASON_BYTES_MAX - 1)
    at = begin_reply(worker, 2 + count)
    if at != NULL:
        put16(at, <uint16_t>count)
        memcpy(at + 2, text, count)
        end_reply(store, worker, opcode, outcome.status, request_id, 2 + count, &outcome.wait)


cdef inline void copy_told(Buffer *told, const uint8_t *data, uint64_t count) noexcept nogil:
    if count and buffer_need(told, count):
        memcpy(told.data + told.count, data, count)
        told.count += count


cdef inline void rewrite_uncommitted(const Store *store, Worker *worker, bint log_failed) noexcept nogil:
    """The wait for commitment ended before it was met: replies that reveal more than is committed, or count on a lease that
    does not hold now, say instead that the outcome is not known. All others stay as they are."""
    cdef Worker told
    cdef Outcome outcome
    cdef uint64_t number, at = 0
    cdef Reply *reply
    cdef Wait wait
    memset(&told, 0, sizeof(Worker))
    refuse(&outcome, ST_APPEND_LOG_FAILED if log_failed else ST_NOT_COMMITTED, WHY_LOG_FAILED if log_failed else WHY_TIMED_OUT)
    for number in range(worker.reply_count):
        reply = &worker.replies[number]
        wait = reply.wait
        if wait.moment:
            wait.moment = worker.wait.moment
        if not is_met(&store.ring, &wait):
            copy_told(&told.out, worker.out.data + at, reply.at - at)
            reply_refused(store, &told, reply.opcode, reply.request_id, &outcome)
            at = reply.at + reply.count
    copy_told(&told.out, worker.out.data + at, worker.out.count - at)
    free(worker.out.data)
    told.out.failed = told.out.failed or worker.out.failed
    worker.out = told.out


cdef inline bint join_waits(const Ring *ring, const Reply *replies, uint64_t count, Wait *wait) noexcept nogil:
    """What replies wait for together, but for those that wait for a point that was abandoned: these hold up no other, nor end
    another's wait. Whether there are none of them. The batch's moment is in `wait`, and stays so if it is wanted."""
    cdef uint64_t number, moment = wait.moment
    cdef bint whole = True
    wait.points = wait.position = wait.moment = 0
    for number in range(count):
        if is_lost(ring, &replies[number].wait):
            whole = False
        else:
            wait_join(wait, &replies[number].wait)
    if wait.moment:
        wait.moment = moment
    return whole


cdef inline void want_confirmed(Store *store, Worker *worker) noexcept nogil:
    """The replies gathered are executed. With `--reads confirmed` those that reveal what they have not changed themselves, be it
    by a refusal or a miss, wait for their backups to answer something that is sent from now on."""
    if worker.wait.moment:
        worker.wait.moment = begin_moment(&store.ring, worker.wait.points)


cdef inline void commit_replies(Store *store, Worker *worker) noexcept nogil:
    """Wait until the replies gathered may leave, all of them for which that can be; those that may not in time say so. What
    comes next must be the send. Blocks."""
    cdef StreamEnd end
    cdef bint whole = True
    while True:
        end = windows_wait(
            &store.windows, &store.ring, &worker.wait, worker.deadline_ns, &worker.in_vain, &worker.waits_unlooked
        )
        if end != STREAM_TIMED_OUT or not is_lost(&store.ring, &worker.wait):
            break
        whole = join_waits(&store.ring, worker.replies, worker.reply_count, &worker.wait)
    if end != STREAM_REACHED or not whole:
        rewrite_uncommitted(store, worker, end == STREAM_FAILED)


cdef inline void forget_replies(Worker *worker) noexcept nogil:
    """The batch is over."""
    worker.out.count = worker.reply_count = 0
    worker.wait.points = worker.wait.position = worker.wait.moment = 0
    worker.deadline_ns = 0
