"""What a peer sends of its changes, taken in without the interpreter's lock, as long as nothing about it is new.

What it is: the loop of a node's connection over frames of records, and the gate that says which of them are the usual case: of
the epoch, the incarnations and the generation of the last frame that Python took in. Such a frame is applied, given to Python to
be recorded, and answered. Everything else is handed back, and Python decides.
Which thread runs it: the worker of the connection; `gate_forbid` and `gate_close` any.
What it owns: nothing; a gate's lock is the order in which one peer's records are applied and recorded, and is Python's as well
(`rcache.peers.intake`).
What it must not know: views; what follows from a refusal.

Invariants:
1. A frame is let in only by what it says itself: epoch, both incarnations and generation are those that were allowed.
2. Under the gate's lock a frame is let in, applied and recorded, so records are recorded in the order in which they were applied.
3. What is let in holds changes alone. Of a frame that cannot be applied to its end, what was applied is recorded; then it is
   handed back whole, and Python is told (`stumbled`), so that it takes in only the rest. (The next frame may come by another
   connection before Python has the lock: what was applied and not recorded would be passed by as known.)
4. Bytes are read by the countdown alone.

A gate's lock is the one lock of this engine under which the interpreter's is taken (to record). So nobody who has the
interpreter's may wait for it: Python lets go of that one first.
"""

from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.ref cimport PyObject
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memmove

from rcache.engine.native.answers cimport Worker, begin_reply, forget_replies
from rcache.engine.native.copies cimport APPLIED, Record, apply_record, take_record
from rcache.engine.native.loans cimport is_short, lend, loan_use
from rcache.engine.native.protocol cimport (
    HEADER_BYTES, KIND_OPEN, KIND_ROW, OP_RECORDS, RECORD_HEADER_BYTES, ST_OK, put_frame_head,
)
from rcache.engine.native.removal cimport Outcome, compact
from rcache.engine.native.serving cimport (
    BUFFER_BYTES_KEPT, ENDED_BAD_FRAME, ENDED_CLOSED, ENDED_FRAME, ENDED_LOST, GOING_ON, NO_BUFFER_PAUSE_MS, OUTPUT_BYTES_MAX, Conn,
    Ending, Handed, bad_header, hold, note_received, receive_or_sleep, send_all, worker_ready,
)
from rcache.engine.native.change cimport buffer_free
from rcache.engine.native.store cimport Store, now_ms, used_now
from rcache.engine.native.system cimport (
    EAGAIN, EINTR, add64, get32, last_errno, load8, monotonic_ns, poll, pthread_mutex_lock, pthread_mutex_t, pthread_mutex_unlock,
    put64, signed64, store8,
)
from rcache.records._countdown cimport Countdown, countdown, take, take32, take64, take8


cdef struct Gate:
    pthread_mutex_t lock
    uint64_t source
    int loan                 # what its source is lent
    uint32_t epoch           # what is let in, under the lock
    uint32_t generation
    uint64_t sender
    uint64_t receiver
    uint8_t allowed
    uint8_t closed           # for good
    uint8_t stumbled         # a frame was applied and recorded in part, and handed back
    PyObject *record         # what is applied is given to; NULL: nobody keeps it
    int64_t frames           # that were let in, and what they held
    int64_t records
    int64_t bytes


cdef inline int64_t count_changes(Countdown body) noexcept nogil:
    """How many records there are; -1 where one is none, or no change (invariant 3). Of each only its length and kind are read."""
    cdef int64_t count = 0
    cdef uint32_t length
    cdef uint8_t kind
    while body.left:
        length, kind = take32(&body), take8(&body)
        if length < RECORD_HEADER_BYTES or not KIND_OPEN <= kind < KIND_ROW or take(&body, length - 5) == NULL:
            return -1
        count += 1
    return count


cdef inline bint lets_in(const Gate *gate, Countdown *payload) noexcept nogil:
    """Whether a frame is the usual case; what is left of it then are its records. Under the gate's lock."""
    cdef uint32_t epoch = take32(payload), generation
    cdef uint64_t sender = take64(payload), receiver = take64(payload)
    generation = take32(payload)
    return (load8(&gate.allowed) and not load8(&gate.closed) and not payload.short and epoch == gate.epoch
            and sender == gate.sender and receiver == gate.receiver and generation == gate.generation)


cdef inline bint keep(const Gate *gate, const uint8_t *body, uint64_t count, int64_t records) noexcept with gil:
    """Have records recorded. False where that is not to be had: the frame is Python's then. Blocks."""
    try:
        (<object>gate.record)(PyBytes_FromStringAndSize(<const char *>body, count), records)
        return True
    except BaseException:
        return False


cdef inline bint let_in(Store *store, Gate *gate, const uint8_t *data, uint64_t count) noexcept nogil:
    """Take a frame's payload in, if it is the usual case. False: it is Python's, see invariant 3 for what was done of it."""
    cdef Countdown payload = countdown(data, count)
    cdef bint done = False
    pthread_mutex_lock(&gate.lock)
    if lets_in(gate, &payload) and count_changes(payload) >= 0:
        done = apply_changes(store, gate, &payload)
    pthread_mutex_unlock(&gate.lock)
    return done


cdef inline bint apply_changes(Store *store, Gate *gate, Countdown *left) noexcept nogil:
    """Apply and record, under the gate's lock. False where not all of it was (invariant 3). Where nothing could be recorded it
    did not stumble: Python applies the whole frame again, which passes by what it finds, and has all of it recorded."""
    cdef const uint8_t *body = left.at
    cdef uint64_t clock_ms = now_ms(store), whole = left.left, applied = 0
    cdef uint32_t used_ms = used_now()
    cdef int64_t records = 0, count = 0
    cdef bint stumbled = False
    cdef Record record
    while left.left:
        if not take_record(left, &record) or apply_record(store, &record, gate.source, clock_ms, used_ms, &count) != APPLIED:
            stumbled = True
            break
        records, applied = records + 1, whole - left.left
    loan_use(&store.loans, gate.loan, count)
    if gate.record != NULL and records and not keep(gate, body, applied, records):
        return False
    gate.stumbled = gate.stumbled or stumbled
    add64(&gate.records, records)
    add64(&gate.bytes, <int64_t>applied)
    add64(&gate.frames, not gate.stumbled)
    return not gate.stumbled


cdef inline int64_t lend_room(Store *store, const Gate *gate) noexcept nogil:
    """What the gate's peer may use of this node's room beyond what was taken in. Where room is short, pages are put together
    first: that is no change, and no other's business."""
    cdef Outcome ignored
    if is_short(&store.loans, &store.memory):
        compact(store, &ignored)
    return lend(&store.loans, &store.memory, gate.loan, gate.source)


cdef inline void say_taken(Store *store, const Gate *gate, Worker *worker, uint32_t request_id) noexcept nogil:
    """The answer to a frame that was taken in."""
    cdef uint8_t *at = begin_reply(worker, 8)
    if at != NULL:
        put64(at, <uint64_t>lend_room(store, gate))
        put_frame_head(at - HEADER_BYTES, OP_RECORDS, ST_OK, 8, request_id, <uint32_t>signed64(&store.epoch))
        worker.out.count += HEADER_BYTES + 8


cdef inline Ending take_frames(
    Store *store, Worker *worker, Conn *conn, Gate *gate, const uint8_t *data, uint64_t count, uint64_t *used, Handed *handed
) noexcept nogil:
    """Take in the whole frames in `data`, of which `used` is what was taken, up to one that is Python's business."""
    cdef uint64_t at = 0, frame_bytes
    cdef const uint8_t *head
    while at < count:
        head = data + at
        used[0] = at
        handed.status, handed.frame, handed.count = bad_header(store, conn, head, count - at), head, count - at
        if handed.status:
            return ENDED_BAD_FRAME
        if count - at < HEADER_BYTES:
            return GOING_ON
        frame_bytes = HEADER_BYTES + <uint64_t>get32(head + 4)
        if count - at < frame_bytes:
            return GOING_ON
        at += frame_bytes
        used[0], handed.count = at, frame_bytes
        conn.requests += 1
        if gate == NULL or head[2] != OP_RECORDS or not let_in(store, gate, head + HEADER_BYTES, frame_bytes - HEADER_BYTES):
            return ENDED_FRAME
        conn.last_executed = get32(head + 8)
        say_taken(store, gate, worker, conn.last_executed)
    used[0] = at
    return GOING_ON


cdef inline Ending answer_peer(
    Store *store, Worker *worker, Conn *conn, Gate *gate, const uint8_t *data, uint64_t count, Handed *handed
) noexcept nogil:
    """Take in what can be, answer it, and hold what is left."""
    cdef uint64_t at = 0
    cdef Ending ending = take_frames(store, worker, conn, gate, data, count, &at, handed), lost = GOING_ON
    if worker.out.failed:
        return ENDED_LOST
    if worker.out.count:
        lost = send_all(conn, worker.out.data, worker.out.count)
    forget_replies(worker)
    if worker.out.room > OUTPUT_BYTES_MAX + BUFFER_BYTES_KEPT:
        buffer_free(&worker.out)
    if lost != GOING_ON:
        return lost
    if ending != GOING_ON:
        handed.rest, handed.rest_count = data + at, count - at
        return ending
    if data == conn.held and at:
        memmove(conn.held, data + at, count - at)
        data = conn.held
        at, count = 0, count - at
    return GOING_ON if hold(store, conn, data + at, count - at) else ENDED_LOST


cdef inline Ending serve_peer(
    Store *store, Worker *worker, Conn *conn, Gate *gate, int64_t until_ns, Handed *handed
) noexcept nogil:
    """Until something is Python's business. GOING_ON: nothing came for a moment, or Python has not been asked for long."""
    cdef const uint8_t *data = conn.held
    cdef uint64_t count = conn.held_count
    cdef Ending ending
    cdef ssize_t got
    while True:
        if count:
            ending = answer_peer(store, worker, conn, gate, data, count, handed)
            if ending != GOING_ON:
                return ending
        if monotonic_ns() >= until_ns:
            return GOING_ON
        if not worker_ready(store, worker):
            return ENDED_LOST
        got = receive_or_sleep(store, worker, conn, &data, &count)
        if got == -2:
            poll(NULL, 0, NO_BUFFER_PAUSE_MS)
            count = 0
        elif got < 0 and last_errno() == EINTR:
            count = 0
        elif got < 0 and last_errno() == EAGAIN:
            return GOING_ON
        elif got <= 0:
            return ENDED_LOST if got < 0 else ENDED_CLOSED
        else:
            note_received(conn, conn.held_count if data != conn.held else conn.held_count - got)
