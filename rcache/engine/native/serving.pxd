"""Serving a connection in native code: receive, parse, execute, wait for commitment, reply.

What it is: `rcache.engine.reference.serving` without the interpreter's lock: `process` turns received bytes into replies;
`serve_alone` is the loop of a thread that has one connection and blocks.
Which thread runs it: the worker that owns the connection. What it owns: the connection's bytes that wait.
What it must not know: HELLO, GOODBYE, who closes the socket.

Invariants, as there:
1. Replies leave in the order of their requests.
2. No reply leaves before what it waits for is committed, nor while a lease that it counts on does not hold (the clock is read
   behind the wait, right before the send); one whose wait ended otherwise says NOT_COMMITTED or APPEND_LOG_FAILED instead of
   what it would have revealed.
3. What is held of a peer is bounded: input by one frame and one read, output by OUTPUT_BYTES_MAX and one reply; and for all
   peers together by `buffer_bytes_max` (`Store`), beyond one read for each.
"""

from cpython.ref cimport PyObject
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy, memmove

from rcache.engine.native.answers cimport Reply, Worker, commit_replies, forget_replies, want_confirmed
from rcache.engine.native.change cimport Buffer, buffer_free, end_batch
from rcache.engine.native.commitment cimport Wait
from rcache.engine.native.operations cimport BAD_PAYLOAD, begin_batch, execute
from rcache.engine.native.protocol cimport (
    HEADER_BYTES, OP_DELETE_MANY, OP_GET, OP_GET_MANY, OP_GET_WITH_TTL, PROTOCOL_VERSION, REQUEST_MAGIC, ST_BAD_FLAGS,
    ST_BAD_MAGIC, ST_BAD_PAYLOAD, ST_BAD_VERSION, ST_FRAME_TOO_LONG,
)
from rcache.engine.native.store cimport Store
from rcache.engine.native.system cimport (
    EAGAIN, EINTR, MSG_DONTWAIT, MSG_NOSIGNAL, POLLIN, add64, get32, last_errno, load8, monotonic_ns, poll, pollfd,
    sched_yield, recv, send, set_pushing,
)
from rcache.engine.native.windows cimport windows_push

cdef enum:
    # One read: enough for a batch of a thousand small requests.
    INPUT_BYTES = 131072
    # Replies gathered before they are sent; then no more requests are executed until the peer took them.
    OUTPUT_BYTES_MAX = 1048576
    # The longest HELLO has less than 200 bytes. A stranger is kept no more than this of.
    HANDSHAKE_FRAME_BYTES_MAX = 1024
    # What a worker or a connection keeps of a buffer that was larger for a while.
    BUFFER_BYTES_KEPT = 131072
    # What is held of a peer without asking: a batch cut anywhere.
    HELD_BYTES_FREE = 4096
    NO_BUFFER_PAUSE_MS = 5
    # How long a thread looks for the next request before it sleeps: a core that went to sleep takes about as long to wake up.
    LOOK_NS = 50000
    # After looks in vain one in so many (a power of two) waits is begun with a look at last.
    LOOKS_IN_VAIN_MAX = 10
    POLL_MS_MAX = 0x7FFFFFFF

cdef enum Ending:
    # As `sockets.Ended`, in its order; GOING_ON is none of them.
    ENDED_FRAME = 0
    ENDED_CLOSED
    ENDED_LOST
    ENDED_BAD_FRAME
    ENDED_HELLO_TIMEOUT
    ENDED_IDLE_TIMEOUT
    ENDED_FRAME_TIMEOUT
    ENDED_SLOW_READER
    ENDED_STOPPING
    GOING_ON
    OUTPUT_FULL


cdef struct Conn:
    int fd
    uint8_t *held            # received and not executed
    uint64_t held_count
    uint64_t held_room
    bint data_allowed
    bint greeted
    uint32_t last_executed
    uint64_t requests
    int64_t began_ns
    int64_t frame_began_ns
    int64_t received_ns
    int64_t hello_ns         # the limits
    int64_t idle_ns
    int64_t frame_ns
    int64_t send_ns
    uint32_t in_vain         # looks in a row that found nothing
    uint32_t waits_unlooked  # waits to come that begin without a look
    # Of a connection that shares a worker (`sharing`):
    uint8_t phase
    bint parting             # the last frame is on its way: then FIN, and the peer's end is waited for
    bint again               # what is held may be whole frames: look at it without receiving
    Buffer unsent
    uint64_t unsent_at
    Reply *replies           # of what waits for commitment
    uint64_t reply_count
    uint64_t reply_room
    Wait wait
    int64_t deadline_ns
    int64_t phase_began_ns
    uint32_t place           # in its group
    uint32_t watched         # for what by the group's epoll
    PyObject *owner          # the Python object it belongs to


cdef struct Handed:
    # The frame that is not the engine's business, or cannot be read; and the rest that was received behind it. The bytes are
    # the worker's or the connection's, until it receives again.
    uint8_t status           # of a frame that cannot be read
    const uint8_t *frame
    uint64_t count
    const uint8_t *rest
    uint64_t rest_count


# --- buffers of connections, counted

cdef inline bint held_need(Store *store, Conn *conn, uint64_t room) noexcept nogil:
    """Room for `room` bytes that wait. False where all connections together hold as much as they may (invariant 3)."""
    cdef uint8_t *longer
    cdef int64_t more = <int64_t>(room - conn.held_room)
    if room <= conn.held_room:
        return True
    if add64(&store.buffer_bytes, more) + more > store.buffer_bytes_max and room > HELD_BYTES_FREE:
        add64(&store.buffer_bytes, -more)
        return False
    longer = <uint8_t *>realloc(conn.held, room)
    if longer == NULL:
        add64(&store.buffer_bytes, -more)
        return False
    conn.held, conn.held_room = longer, room
    return True


cdef inline void held_free(Store *store, Conn *conn) noexcept nogil:
    """Nothing waits: let go."""
    free(conn.held)
    add64(&store.buffer_bytes, -<int64_t>conn.held_room)
    conn.held = NULL
    conn.held_room = conn.held_count = 0


cdef inline bint hold(Store *store, Conn *conn, const uint8_t *data, uint64_t count) noexcept nogil:
    """Keep what was received and not executed, up to one read. False if memory for it cannot be had."""
    cdef uint8_t *longer
    if not count:
        conn.held_count = 0
        if conn.held_room > HELD_BYTES_FREE:
            held_free(store, conn)
        return True
    if data == conn.held:
        conn.held_count = count
        return True
    if conn.held_room < count:
        if not held_need(store, conn, count):
            # It is here already: counted, whatever the limit says.
            add64(&store.buffer_bytes, <int64_t>(count - conn.held_room))
            longer = <uint8_t *>realloc(conn.held, count)
            if longer == NULL:
                add64(&store.buffer_bytes, -<int64_t>(count - conn.held_room))
                return False
            conn.held, conn.held_room = longer, count
    memmove(conn.held, data, count)
    conn.held_count = count
    return True


cdef inline bint worker_ready(Store *store, Worker *worker) noexcept nogil:
    """A worker that slept has no buffers; one that serves has."""
    if worker.input == NULL:
        worker.input = <uint8_t *>malloc(INPUT_BYTES)
        worker.input_room = INPUT_BYTES if worker.input != NULL else 0
        add64(&store.buffer_bytes, <int64_t>worker.input_room)
    return worker.input != NULL


cdef inline void worker_rest(Store *store, Worker *worker) noexcept nogil:
    """Let go of a worker's buffers: it will sleep for long, or ends."""
    add64(&store.buffer_bytes, -<int64_t>worker.input_room)
    free(worker.input)
    worker.input, worker.input_room = NULL, 0
    buffer_free(&worker.out)
    free(worker.replies)
    worker.replies = NULL
    worker.reply_room = worker.reply_count = 0


# --- from bytes to replies

cdef inline bint is_data(uint8_t opcode) noexcept nogil:
    return OP_GET <= opcode <= OP_GET_WITH_TTL or OP_GET_MANY <= opcode <= OP_DELETE_MANY


cdef inline uint8_t bad_header(const Store *store, const Conn *conn, const uint8_t *head, uint64_t count) noexcept nogil:
    """What is wrong with a header, 0 if nothing: looked at before anything is kept for its payload. Of a header that is not
    all there only the first byte counts."""
    cdef uint64_t most = store.frame_bytes_max if conn.data_allowed else HANDSHAKE_FRAME_BYTES_MAX
    if head[0] != REQUEST_MAGIC:
        return ST_BAD_MAGIC
    if count < HEADER_BYTES:
        return 0
    if head[1] != PROTOCOL_VERSION:
        return ST_BAD_VERSION
    if head[3]:
        return ST_BAD_FLAGS
    return ST_FRAME_TOO_LONG if HEADER_BYTES + <uint64_t>get32(head + 4) > most else 0


cdef inline Ending process(
    Store *store, Worker *worker, Conn *conn, const uint8_t *data, uint64_t count, uint64_t *used, Handed *handed
) noexcept nogil:
    """Execute the whole frames in `data`, of which `used` is what was taken. GOING_ON: more bytes are needed; OUTPUT_FULL:
    replies must be sent first; ENDED_FRAME and ENDED_BAD_FRAME: see `handed`."""
    cdef uint64_t at = 0, frame_bytes
    cdef const uint8_t *head
    cdef uint32_t request_id
    while at < count:
        head = data + at
        handed.status, handed.frame, handed.count = bad_header(store, conn, head, count - at), head, count - at
        used[0] = at
        if handed.status:
            return ENDED_BAD_FRAME
        if count - at < HEADER_BYTES:
            return GOING_ON
        frame_bytes = HEADER_BYTES + <uint64_t>get32(head + 4)
        if count - at < frame_bytes:
            return GOING_ON
        at += frame_bytes
        used[0], handed.count = at, frame_bytes
        conn.frame_began_ns = conn.received_ns
        conn.greeted = conn.greeted or conn.data_allowed
        conn.requests += 1
        if not is_data(head[2]) or not conn.data_allowed:
            return ENDED_FRAME
        request_id = get32(head + 8)
        if execute(
            store, worker, head[2], request_id, get32(head + 12), head + HEADER_BYTES, frame_bytes - HEADER_BYTES
        ) == BAD_PAYLOAD:
            handed.status = ST_BAD_PAYLOAD
            return ENDED_BAD_FRAME
        conn.last_executed = request_id
        if worker.out.count >= OUTPUT_BYTES_MAX:
            return OUTPUT_FULL
    used[0] = at
    return GOING_ON


# --- one connection, one thread, blocking

cdef inline Ending send_all(Conn *conn, const uint8_t *data, uint64_t count) noexcept nogil:
    """Send all within the send limit. The socket blocks, and the kernel keeps a time-out for it."""
    cdef int64_t deadline_ns = monotonic_ns() + conn.send_ns
    cdef ssize_t sent
    while count:
        sent = send(conn.fd, data, count, MSG_NOSIGNAL)
        if sent < 0:
            if last_errno() == EINTR:
                continue
            return ENDED_SLOW_READER if last_errno() == EAGAIN else ENDED_LOST
        data += sent
        count -= sent
        if count and monotonic_ns() > deadline_ns:
            return ENDED_SLOW_READER
    return GOING_ON


cdef inline Ending flush_replies(Store *store, Worker *worker, Conn *conn) noexcept nogil:
    """Wait for commitment, once for all replies gathered (invariant 2), and send them."""
    cdef Ending lost = GOING_ON
    want_confirmed(store, worker)
    windows_push(&store.windows)  # nobody else does, and the send may block
    if worker.out.failed:
        return ENDED_LOST
    if worker.wait.points:
        commit_replies(store, worker)
        worker.left = 0
        if worker.out.failed:
            return ENDED_LOST
    if worker.out.count:
        lost = send_all(conn, worker.out.data, worker.out.count)
    forget_replies(worker)
    if worker.out.room > OUTPUT_BYTES_MAX + BUFFER_BYTES_KEPT:
        buffer_free(&worker.out)
    return lost


cdef inline Ending answer_alone(
    Store *store, Worker *worker, Conn *conn, const uint8_t *data, uint64_t count, bint fresh, Handed *handed
) noexcept nogil:
    """Execute and answer all whole frames of `data`, and hold what is left. GOING_ON, or what ends serving. `fresh`: it has
    just been received."""
    cdef uint64_t at = 0, used = 0
    cdef Ending ending, lost
    begin_batch(store, worker, conn.received_ns if fresh else monotonic_ns())
    while True:
        ending = process(store, worker, conn, data + at, count - at, &used, handed)
        end_batch(store, &worker.batch)
        at += used
        lost = flush_replies(store, worker, conn)
        if lost != GOING_ON:
            return lost
        if ending != OUTPUT_FULL:
            break
        begin_batch(store, worker, monotonic_ns())
    # What is handed back lies before what is held, in the same bytes: moving the rest would overwrite it.
    if data == conn.held and ending == GOING_ON and at:
        memmove(conn.held, data + at, count - at)
        data = conn.held
        at, count = 0, count - at
    if ending == GOING_ON and not hold(store, conn, data + at, count - at):
        return ENDED_LOST
    if ending != GOING_ON:
        handed.rest, handed.rest_count = data + at, count - at
    return ending


cdef inline uint64_t wanted_room(const Conn *conn) noexcept nogil:
    """How long the frame is that has begun; its header may not be all there yet."""
    if conn.held_count < HEADER_BYTES:
        return HEADER_BYTES
    return HEADER_BYTES + <uint64_t>get32(conn.held + 4)


cdef inline ssize_t receive(
    Store *store, Worker *worker, Conn *conn, int flags, const uint8_t **data, uint64_t *count
) noexcept nogil:
    """One read, behind what is held: into the worker's buffer where the frame that has begun is small, into one of the
    connection's own where it is large. As `recv`; -2 where no buffer is to be had now."""
    cdef ssize_t got
    if conn.held_count + INPUT_BYTES // 2 <= worker.input_room and (
            conn.held_count < HEADER_BYTES or wanted_room(conn) <= worker.input_room):
        got = recv(conn.fd, worker.input + conn.held_count, worker.input_room - conn.held_count, flags)
        if got > 0:
            if conn.held_count:
                memcpy(worker.input, conn.held, conn.held_count)
            data[0], count[0] = worker.input, conn.held_count + got
        return got
    if not held_need(store, conn, max(wanted_room(conn), conn.held_count + 1)):
        return -2
    got = recv(conn.fd, conn.held + conn.held_count, conn.held_room - conn.held_count, flags)
    if got > 0:
        conn.held_count += got
        data[0], count[0] = conn.held, conn.held_count
    return got


cdef inline Ending limit_of(const Conn *conn, int64_t now_ns, int64_t *left_ns) noexcept nogil:
    """Which limit applies to the next read, and what is left of it."""
    cdef int64_t hello = conn.hello_ns - (now_ns - conn.began_ns), frame = conn.frame_ns - (now_ns - conn.frame_began_ns)
    if not conn.held_count:
        left_ns[0] = conn.idle_ns if conn.greeted else hello
        return ENDED_IDLE_TIMEOUT if conn.greeted else ENDED_HELLO_TIMEOUT
    if conn.greeted or frame < hello:
        left_ns[0] = frame
        return ENDED_FRAME_TIMEOUT
    left_ns[0] = hello
    return ENDED_HELLO_TIMEOUT


cdef inline bint wait_readable(int fd, int stop_fd, int64_t left_ns) noexcept nogil:
    """Sleep until something is there to read, the stop signal included. False if nothing came in time."""
    cdef pollfd watched[2]
    cdef int64_t deadline_ns = monotonic_ns() + left_ns, left_ms
    watched[0].fd, watched[0].events = fd, POLLIN
    watched[1].fd, watched[1].events = stop_fd, POLLIN
    while True:
        left_ms = (deadline_ns - monotonic_ns() + 999999) // 1000000
        if left_ms <= 0:
            return False
        if poll(watched, 2, <int>min(left_ms, <int64_t>POLL_MS_MAX)) > 0:
            return True


cdef inline ssize_t receive_or_sleep(
    Store *store, Worker *worker, Conn *conn, const uint8_t **data, uint64_t *count
) noexcept nogil:
    """One read that blocks. A caller that sends its next request as soon as it has the reply to the last is met awake: for a
    moment it is looked for first, unless that was in vain lately."""
    cdef int64_t until_ns
    cdef ssize_t got
    if not store.looks or conn.waits_unlooked:
        conn.waits_unlooked -= conn.waits_unlooked > 0
        return receive(store, worker, conn, 0, data, count)
    until_ns = monotonic_ns() + LOOK_NS
    while True:
        got = receive(store, worker, conn, MSG_DONTWAIT, data, count)
        if got != -1 or last_errno() != EAGAIN:
            conn.in_vain = 0
            return got
        if monotonic_ns() >= until_ns:
            break
        sched_yield()  # whoever was woken by the reply may be on this very core
    conn.in_vain = min(conn.in_vain + 1, <uint32_t>LOOKS_IN_VAIN_MAX)
    conn.waits_unlooked = (<uint32_t>1 << conn.in_vain) - 1
    return receive(store, worker, conn, 0, data, count)


cdef inline Ending receive_alone(
    Store *store, Worker *worker, Conn *conn, const uint8_t *stop, int stop_fd, const uint8_t **data, uint64_t *count
) noexcept nogil:
    """Take in what comes next. Blocks up to the limit that applies. A busy connection costs one call; one that was quiet for
    the socket's own time-out sleeps in a poll that the stop signal ends too, without buffers."""
    cdef Ending ending
    cdef int64_t left_ns
    cdef ssize_t got
    while True:
        if load8(stop):
            return ENDED_STOPPING
        if conn.held_count or not conn.greeted:  # a peer that sends byte by byte is never quiet
            ending = limit_of(conn, monotonic_ns(), &left_ns)
            if left_ns <= 0:
                return ending
        if not worker_ready(store, worker):
            return ENDED_LOST
        got = receive_or_sleep(store, worker, conn, data, count)
        if got == -2:
            poll(NULL, 0, NO_BUFFER_PAUSE_MS)
            continue
        if got < 0 and last_errno() == EINTR:
            continue
        if got < 0 and last_errno() == EAGAIN:
            worker_rest(store, worker)
            ending = limit_of(conn, monotonic_ns(), &left_ns)
            if not wait_readable(conn.fd, stop_fd, left_ns):
                return ending
            continue
        if got <= 0:
            return ENDED_LOST if got < 0 else ENDED_CLOSED
        note_received(conn, conn.held_count if data[0] != conn.held else conn.held_count - got)
        return GOING_ON


cdef inline void note_received(Conn *conn, uint64_t held_before) noexcept nogil:
    conn.received_ns = monotonic_ns()
    if not held_before:
        conn.frame_began_ns = conn.received_ns


cdef inline Ending serve_alone(
    Store *store, Worker *worker, Conn *conn, const uint8_t *stop, int stop_fd, const uint8_t *crowded, Handed *handed
) noexcept nogil:
    """Until something is not the engine's business; all replies to what came before have been sent by then. GOING_ON: this
    connection is to be served by a worker that shares sockets from now on."""
    cdef const uint8_t *data = conn.held
    cdef uint64_t count = conn.held_count
    cdef Ending ending = GOING_ON
    cdef bint fresh = False
    set_pushing(True)
    while ending == GOING_ON:
        if count:
            ending = answer_alone(store, worker, conn, data, count, fresh, handed)
            fresh = True
            if ending != GOING_ON or load8(crowded):
                break
        ending = receive_alone(store, worker, conn, stop, stop_fd, &data, &count)
    set_pushing(False)
    windows_push(&store.windows)  # of a batch that was cut short
    return ending
