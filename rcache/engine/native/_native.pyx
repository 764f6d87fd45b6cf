# cython: freethreading_compatible=True
"""The native engine's core as Python sees it: thin classes over the structs and functions of the `.pxd` files beside this one.

What it is: the only module of the native engine that makes Python objects. `engine` wraps it in the contract.
Which thread runs it: any; every call that may wait or take long lets go of the interpreter's lock first.
What it owns: the store, its readers' cursors, its connections' buffers.
What it must not know: HELLO, files, options; which exception belongs to a refusal (that is `engine`'s).
"""

cimport cython
from cpython.buffer cimport PyBuffer_FillInfo
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.ref cimport PyObject, Py_INCREF, Py_XDECREF
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from rcache.engine.native cimport protocol
from rcache.engine.native.answers cimport Worker, commit_replies, want_confirmed, write_reason, REASON_BYTES_MAX
from rcache.engine.native.change cimport Buffer, buffer_free, buffer_need, end_batch
from rcache.engine.native.credit cimport (
    ASK_IDLE_NS, CREDIT_ITEM_BYTES, credit_ask, credit_debt, credit_name, credit_name_of, credit_used,
)
from rcache.engine.native.copies cimport (
    APPLIED, Applied, Record, Portion, apply_all, begin_locked, copy_bucket, copy_portion, flush_bucket, open_bucket,
)
from rcache.engine.native.commitment cimport (
    HELD_FOR_EVER, NO_POINT, POINT_CLOSED, Wait, begin_moment, point_abandon, point_advance, point_lease, point_open,
    ring_durable, ring_end_waits, ring_fail, ring_unpark, ring_wait, waker_add, waker_remove,
)
from rcache.engine.native.cursors cimport (
    SEND_DONE, SPANS_MAX, Measured, SendEnd, Span, cursor_await, cursor_close, cursor_measure, cursor_open,
    cursor_release, cursor_rewind, cursor_unpin, send_spans,
)
from rcache.records._countdown cimport Countdown, countdown
from rcache.engine.native.expiry cimport LISTS, DUE
from rcache.engine.native.gates cimport Gate, lend_room, serve_peer
from rcache.engine.native.hashing cimport crc32, crc_init
from rcache.engine.native.items cimport EXPIRES, LIVE, Item, body_read, expiry_of, hash_of, item_cost
from rcache.engine.native.loans cimport (
    ITEM_FACTOR, LOANS_MAX, NO_LOAN, free_pages, loan_close, loan_open, loans_init, spare_pages,
)
from rcache.engine.native.memory cimport (
    PAGE_CHUNKS, TABLE_CLASSES, Memory, SizeClass, chunk_at, memory_close, memory_init, memory_used,
)
from rcache.engine.native.operations cimport BAD_PAYLOAD, Executed, begin_batch, execute
from rcache.engine.native.removal cimport Outcome, compact, expire_due, free_page, relieve_point
from rcache.engine.native.ring cimport (
    CREDIT_NOT_SAID, DISK, POINTS_MAX, POINT_NAME_BYTES, READERS_MAX, Credit, Cursor, Ring, StreamEnd, is_watched, ring_at, ring_close, ring_end_pauses, ring_head,
    ring_init, ring_set_paused,
)
from rcache.engine.native.serving cimport (
    ENDED_BAD_FRAME, ENDED_FRAME, GOING_ON, OUTPUT_FULL, Conn, Ending, Handed, held_free, hold, is_data, note_received,
    process, send_all, serve_alone, worker_ready, worker_rest,
)
from rcache.engine.native.protocol cimport HEADER_BYTES
from rcache.engine.native.sharing cimport PHASE_PARKED, Group, next_handed, push
from rcache.engine.native.store cimport (
    ABSENT, FROZEN, PRIMARY, Bucket, Store, Stripe, bucket_at, forget_point, leave_points_locked, line_up, set_points, stripe_at,
)
from rcache.engine.native.system cimport (
    EFD_CLOEXEC, EFD_NONBLOCK, EPOLLIN, EPOLL_CLOEXEC, EPOLL_CTL_ADD, add64, close, epoll_create1, epoll_ctl,
    epoll_event, eventfd, get32, getrandom, load32, load64, load8, monotonic_ns, mutex_init, pthread_cond_broadcast,
    pthread_mutex_destroy, pthread_mutex_lock, pthread_mutex_unlock, pthread_spin_destroy, put32, signed64, spin_init,
    spin_lock, spin_unlock, store64, store8, write,
)
from rcache.engine.native.windows cimport (
    ANSWERS_BYTES, WINDOW_HEAD_MAX, Window, WindowEnd, window_begin, window_end, window_give_back, window_is_of_old, window_open, window_pass_by,
    window_run, window_send_body, window_send_until, window_set_head, window_set_point, window_take, window_take_handed,
    windows_close, windows_push,
)
from rcache.engine.native.table cimport BIN_ENTRIES, Bin, bin_at, bin_number, table_find, table_init

from rcache.engine import credit as _credit
from rcache.records import record as _records
from rcache_client.wire import opcodes as _opcodes
from rcache_client.wire.frames import HEADER_BYTES as _HEADER_BYTES

cdef extern from "<stdint.h>" nogil:
    uint64_t END "UINT64_MAX"  # a position behind all that there will be

cdef extern from "stdlib.h" nogil:
    int posix_memalign(void **, size_t, size_t) noexcept

cdef enum:
    LINE = 64
    STATES = 5
    # Of a frame of records, what precedes them: the header and some words about who sends.
    FRAME_HEAD_BYTES_MAX = 1024
    # What all connections together may hold of input that waits, unless one frame alone may be larger: then two of those.
    BUFFER_BYTES_MAX = 67108864

crc_init()


cdef void demand(str name, long long ours, long long theirs) except *:
    """One number of two homes."""
    if ours != theirs:
        raise ImportError(f"{name} is {ours} in the native engine, but {theirs}")


cdef void compare_numbers() except *:
    """The numbers of `protocol.pxd` are those of the wire and of the records, or this module cannot be used."""
    cdef object op = _opcodes.Opcode, st = _opcodes.Status, kind = _records.Kind, cause = _records.Cause
    demand("the request magic", protocol.REQUEST_MAGIC, _opcodes.REQUEST_MAGIC)
    demand("the reply magic", protocol.REPLY_MAGIC, _opcodes.REPLY_MAGIC)
    demand("the protocol version", protocol.PROTOCOL_VERSION, _opcodes.PROTOCOL_VERSION)
    demand("the header", protocol.HEADER_BYTES, _HEADER_BYTES)
    demand("a record's header", protocol.RECORD_HEADER_BYTES, _records.HEADER_BYTES)
    demand("the longest time to live", protocol.TTL_MS_MAX, _opcodes.TTL_MS_MAX)
    demand("the largest value", protocol.VALUE_BYTES_CEILING, _opcodes.VALUE_BYTES_CEILING)
    demand("a value's hash", protocol.VALUE_HASH_BYTES, _opcodes.VALUE_HASH_BYTES)
    demand("the counter", protocol.COUNTER_MAX, _records.COUNTER_MAX)
    demand("what credit counts for an item", CREDIT_ITEM_BYTES, _credit.ITEM_BYTES)
    ours = {
        op.GET: protocol.OP_GET, op.GET_AND_TOUCH: protocol.OP_GET_AND_TOUCH, op.SET: protocol.OP_SET, op.ADD: protocol.OP_ADD,
        op.REPLACE: protocol.OP_REPLACE, op.DELETE: protocol.OP_DELETE, op.TOUCH: protocol.OP_TOUCH,
        op.INCREMENT: protocol.OP_INCREMENT, op.DECREMENT: protocol.OP_DECREMENT, op.APPEND: protocol.OP_APPEND,
        op.PREPEND: protocol.OP_PREPEND, op.CAS_VERSION: protocol.OP_CAS_VERSION, op.CAS_HASH: protocol.OP_CAS_HASH,
        op.INSPECT: protocol.OP_INSPECT, op.GET_WITH_TTL: protocol.OP_GET_WITH_TTL, op.GET_MANY: protocol.OP_GET_MANY,
        op.SET_MANY: protocol.OP_SET_MANY, op.DELETE_MANY: protocol.OP_DELETE_MANY,
    }
    if set(ours) != _opcodes.DATA_OPCODES:
        raise ImportError("the native engine does not know all data opcodes")
    demand("RECORDS", protocol.OP_RECORDS, op.RECORDS)
    for theirs, number in ours.items():
        demand(theirs.name, number, theirs)
    for theirs, number in (
        (st.OK, protocol.ST_OK), (st.NOT_FOUND, protocol.ST_NOT_FOUND), (st.EXISTS, protocol.ST_EXISTS),
        (st.CHANGED, protocol.ST_CHANGED), (st.TOO_LARGE, protocol.ST_TOO_LARGE), (st.NO_ROOM, protocol.ST_NO_ROOM),
        (st.NOT_A_NUMBER, protocol.ST_NOT_A_NUMBER), (st.OUT_OF_RANGE, protocol.ST_OUT_OF_RANGE),
        (st.REPLY_FULL, protocol.ST_REPLY_FULL), (st.BUSY, protocol.ST_BUSY), (st.DEADLINE_PASSED, protocol.ST_DEADLINE_PASSED),
        (st.STOPPING, protocol.ST_STOPPING), (st.PAUSED, protocol.ST_PAUSED), (st.NOT_PRIMARY, protocol.ST_NOT_PRIMARY),
        (st.NOT_COMMITTED, protocol.ST_NOT_COMMITTED), (st.APPEND_LOG_FAILED, protocol.ST_APPEND_LOG_FAILED),
        (st.BAD_MAGIC, protocol.ST_BAD_MAGIC), (st.BAD_VERSION, protocol.ST_BAD_VERSION), (st.BAD_FLAGS, protocol.ST_BAD_FLAGS),
        (st.FRAME_TOO_LONG, protocol.ST_FRAME_TOO_LONG), (st.BAD_PAYLOAD, protocol.ST_BAD_PAYLOAD),
        (kind.OPEN, protocol.KIND_OPEN), (kind.SET, protocol.KIND_SET), (kind.REMOVE, protocol.KIND_REMOVE),
        (kind.FLUSH, protocol.KIND_FLUSH), (kind.ROW, protocol.KIND_ROW), (kind.IMPORT_BEGIN, protocol.KIND_IMPORT_BEGIN),
        (kind.IMPORT_END, protocol.KIND_IMPORT_END), (kind.DROP, protocol.KIND_DROP), (max(kind) + 1, protocol.KINDS),
        (cause.SET, protocol.CAUSE_SET), (cause.TOUCHED, protocol.CAUSE_TOUCHED), (cause.COUNTED, protocol.CAUSE_COUNTED),
        (cause.EXTENDED, protocol.CAUSE_EXTENDED), (cause.DELETED, protocol.CAUSE_DELETED),
        (cause.EXPIRED, protocol.CAUSE_EXPIRED),
        (cause.EVICTED, protocol.CAUSE_EVICTED), (cause.FLUSHED, protocol.CAUSE_FLUSHED), (max(cause) + 1, protocol.CAUSES),
    ):
        demand(repr(theirs), number, theirs)


compare_numbers()


cdef object lines_of(Outcome *outcome, Store *store):
    """A refusal for Python: status, reason, version, what its answer waits for."""
    cdef char text[REASON_BYTES_MAX]
    cdef int count = write_reason(store, text, outcome)
    said = text[:count].decode("utf-8", "replace")
    return outcome.status, said, outcome.version, (outcome.wait.points, outcome.wait.position)


cdef uint64_t sequence_of(Bucket *bucket) noexcept:
    cdef uint64_t sequence
    spin_lock(&bucket.stripe.lock)
    sequence = bucket.sequence
    spin_unlock(&bucket.stripe.lock)
    return sequence


cdef uint64_t follows_of(Bucket *bucket) noexcept:
    cdef uint64_t follows
    spin_lock(&bucket.stripe.lock)
    follows = bucket.follows
    spin_unlock(&bucket.stripe.lock)
    return follows


cdef class Core:
    """The store, and the calls on it. Sizes in bytes, times by time.monotonic_ns; see `engine` for what each call is for."""

    cdef Store *store
    cdef uint8_t stop
    cdef uint8_t crowded
    cdef int stop_fd

    def __cinit__(
        self, *, buckets, stripes, memory_bytes, evict, value_bytes_max, frame_bytes_max, stream_bytes, commit,
        confirm_reads, default_budget_ns, looks, clock, digest
    ):
        self.stop_fd = -1
        self.store = <Store *>calloc(1, sizeof(Store))
        if self.store == NULL:
            raise MemoryError("no memory for an engine")
        cdef Store *store = self.store
        store.bucket_count, store.stripe_count = buckets, min(stripes, buckets)
        store.evict, store.looks = evict, looks
        store.value_bytes_max, store.frame_bytes_max = value_bytes_max, frame_bytes_max
        store.default_budget_ns = default_budget_ns
        store.buffer_bytes_max = max(<int64_t>BUFFER_BYTES_MAX, 2 * <int64_t>frame_bytes_max)
        Py_INCREF(digest)
        store.digest = <PyObject *>digest
        if clock is not None:
            Py_INCREF(clock)
            store.clock = <PyObject *>clock
        if getrandom(store.hash_key, sizeof(store.hash_key), 0) != sizeof(store.hash_key):
            raise OSError("no random bytes for the hash of keys")
        self.stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        if self.stop_fd < 0:
            raise OSError("no descriptor for an event")
        if not memory_init(&store.memory, memory_bytes):
            raise MemoryError(f"no address space for a memory limit of {memory_bytes} bytes")
        if not ring_init(&store.ring, stream_bytes):
            raise MemoryError(f"no memory for a change stream of {stream_bytes} bytes")
        store.ring.confirms = confirm_reads
        if mutex_init(&store.windows.lock):
            raise OSError("no lock for the windows of links")
        store.windows.looks = looks
        if not loans_init(&store.loans, &store.memory, value_bytes_max):
            raise OSError("no lock for the loans of peers")
        self.make_buckets(1 << DISK if commit else 0)

    cdef void make_buckets(self, uint64_t points) except *:
        cdef Store *store = self.store
        cdef void *made = NULL
        cdef uint32_t number
        cdef uint64_t head
        cdef Bucket *bucket
        if posix_memalign(&made, LINE, store.bucket_count * line_up(sizeof(Bucket))):
            raise MemoryError("no memory for the buckets")
        store.buckets = <uint8_t *>made
        memset(store.buckets, 0, store.bucket_count * line_up(sizeof(Bucket)))
        if posix_memalign(&made, LINE, store.stripe_count * line_up(sizeof(Stripe))):
            raise MemoryError("no memory for the stripes")
        store.stripes = <uint8_t *>made
        memset(store.stripes, 0, store.stripe_count * line_up(sizeof(Stripe)))
        for number in range(store.stripe_count):
            if spin_init(&stripe_at(store, number).lock):
                raise OSError("no lock for a stripe")
        for number in range(store.bucket_count):
            bucket = bucket_at(store, number)
            bucket.number, bucket.stripe = number, stripe_at(store, number % store.stripe_count)
            table_init(&bucket.table)
            bucket.points_at_first = points
            if points and not set_points(store, bucket, points, &head):
                raise MemoryError("no memory for the buckets")

    def __dealloc__(self):
        cdef Store *store = self.store
        cdef uint32_t number
        if self.stop_fd >= 0:
            close(self.stop_fd)
        if store == NULL:
            return
        for number in range(store.bucket_count if store.buckets != NULL else 0):
            free(bucket_at(store, number).table.segments)
            free(bucket_at(store, number).pending)
        for number in range(store.stripe_count if store.stripes != NULL else 0):
            pthread_spin_destroy(&stripe_at(store, number).lock)
        free(store.buckets)
        free(store.stripes)
        memory_close(&store.memory)
        windows_close(&store.windows)
        pthread_mutex_destroy(&store.loans.lock)
        ring_close(&store.ring)
        Py_XDECREF(store.digest)
        Py_XDECREF(store.clock)
        free(store)

    @property
    def epoch(self):
        return signed64(&self.store.epoch)

    @epoch.setter
    def epoch(self, epoch):
        store64(<uint64_t *>&self.store.epoch, epoch)

    def set_clock_offset(self, int64_t offset_ms):
        """What the machine's boot clock is behind the node's, in ms."""
        store64(<uint64_t *>&self.store.clock_offset_ms, <uint64_t>offset_ms)

    def stop_serving(self):
        cdef uint64_t one = 1
        store8(&self.stop, 1)
        write(self.stop_fd, &one, sizeof(one))
        with nogil:
            ring_end_pauses(&self.store.ring)

    def set_crowded(self, bint crowded):
        store8(&self.crowded, crowded)

    # --- requests

    def serve(self, Connection connection not None):
        """(ending, status, frame): `frame` of what is handed back, and for one that cannot be read its `status`."""
        cdef Store *store = self.store
        cdef Handed handed
        cdef Worker worker
        cdef Ending ending
        memset(&worker, 0, sizeof(Worker))
        memset(&handed, 0, sizeof(Handed))
        with nogil:
            ending = serve_alone(store, &worker, &connection.conn, &self.stop, self.stop_fd, &self.crowded, &handed)
        try:
            return connection.handed_back(ending, &handed)
        finally:
            worker_rest(store, &worker)

    def serve_peer(self, Connection connection not None, PeerGate gate, int64_t most_ns):
        """As `serve`, for a node's connection: its frames of records, as far as `gate` lets them in; not for longer than
        `most_ns`."""
        cdef Store *store = self.store
        cdef Gate *let = &gate.gate if gate is not None else NULL
        cdef Handed handed
        cdef Worker worker
        cdef Ending ending
        memset(&worker, 0, sizeof(Worker))
        memset(&handed, 0, sizeof(Handed))
        with nogil:
            ending = serve_peer(store, &worker, &connection.conn, let, monotonic_ns() + most_ns, &handed)
        try:
            return connection.handed_back(ending, &handed)
        finally:
            worker_rest(store, &worker)

    def execute(self, uint8_t opcode, uint32_t request_id, uint32_t budget_ms, bytes payload not None):
        """One data request: its reply frame, or None where the payload does not come out even. Blocks."""
        cdef Store *store = self.store
        cdef const uint8_t *data = <const uint8_t *>PyBytes_AS_STRING(payload)
        cdef uint64_t count = len(payload)
        cdef Executed executed
        cdef Worker worker
        if not is_data(opcode):
            raise ValueError(f"opcode {opcode} is none of data")
        memset(&worker, 0, sizeof(Worker))
        with nogil:
            begin_batch(store, &worker, monotonic_ns())
            executed = execute(store, &worker, opcode, request_id, budget_ms, data, count)
            end_batch(store, &worker.batch)
            want_confirmed(store, &worker)
            if worker.wait.points:
                commit_replies(store, &worker)
        try:
            if worker.out.failed:
                raise MemoryError("no memory for a reply")
            return None if executed == BAD_PAYLOAD else PyBytes_FromStringAndSize(<char *>worker.out.data, worker.out.count)
        finally:
            worker_rest(store, &worker)

    def feed(self, Connection connection not None, bytes data not None):
        """For tests: what `serve` makes of these bytes behind those that the connection holds, without a socket: (replies,
        ending, status, frame). Blocks."""
        cdef Store *store = self.store
        cdef Conn *conn = &connection.conn
        cdef uint64_t held = conn.held_count, count = held + len(data), at = 0, used = 0
        cdef uint8_t *copied = <uint8_t *>malloc(max(count, <uint64_t>1))  # of that very length: a byte too far is seen
        cdef Handed handed
        cdef Worker worker
        cdef Ending ending
        if copied == NULL:
            raise MemoryError("no memory for what a connection received")
        memset(&worker, 0, sizeof(Worker))
        memset(&handed, 0, sizeof(Handed))
        if held:
            memcpy(copied, conn.held, held)
        memcpy(copied + held, PyBytes_AS_STRING(data), count - held)
        with nogil:
            note_received(conn, held)
            begin_batch(store, &worker, conn.received_ns)
            while True:
                ending = process(store, &worker, conn, copied + at, count - at, &used, &handed)
                at += used
                if ending != OUTPUT_FULL:
                    break
            end_batch(store, &worker.batch)
            want_confirmed(store, &worker)
            if worker.wait.points:
                commit_replies(store, &worker)
            handed.rest, handed.rest_count = copied + at, count - at
        try:
            if worker.out.failed or (ending == GOING_ON and not hold(store, conn, handed.rest, handed.rest_count)):
                raise MemoryError("no memory for a reply")
            replies = PyBytes_FromStringAndSize(<char *>worker.out.data, worker.out.count)
            return (replies, *connection.handed_back(ending, &handed))
        finally:
            worker_rest(store, &worker)
            free(copied)

    def flush(self, uint32_t bucket, int64_t deadline_ns):
        """(items removed, None), or (-1, refusal)."""
        cdef Bucket *held = self.bucket_of(bucket)
        cdef Outcome outcome
        cdef int64_t count
        with nogil:
            count = flush_bucket(self.store, held, deadline_ns, &outcome)
        return count, lines_of(&outcome, self.store) if count < 0 else None

    # --- buckets

    cdef Bucket *bucket_of(self, uint32_t number) except NULL:
        if number >= self.store.bucket_count:
            raise IndexError(f"bucket {number} of {self.store.bucket_count}")
        return bucket_at(self.store, number)

    def state(self, uint32_t bucket):
        return load8(&self.bucket_of(bucket).state)

    def set_state(self, uint32_t number, uint8_t then, uint8_t only_after):
        """Go over to FROZEN, ABSENT or BACKUP, if the bucket is in the state `only_after`. Returns the state it was in."""
        cdef Bucket *bucket = self.bucket_of(number)
        cdef uint8_t now
        with nogil:
            spin_lock(&bucket.stripe.lock)
            now = bucket.state
            if now == only_after:
                if then == ABSENT:
                    begin_locked(self.store, bucket, 0)
                if then != FROZEN:
                    leave_points_locked(bucket)
                store8(&bucket.state, then)
            spin_unlock(&bucket.stripe.lock)
        return now

    def sequence(self, uint32_t bucket):
        return sequence_of(self.bucket_of(bucket))

    def follow(self, uint32_t number, uint64_t source):
        """Take records of this source alone. What is being applied is under the bucket's lock, and is waited for."""
        cdef Bucket *bucket = self.bucket_of(number)
        with nogil:
            spin_lock(&bucket.stripe.lock)
            bucket.follows = source
            spin_unlock(&bucket.stripe.lock)

    def set_paused(self, bint paused):
        """Who takes a stripe's lock after this sees it, and who has it is waited for (invariant 4 of `removal`)."""
        cdef uint32_t number
        with nogil:
            ring_set_paused(&self.store.ring, paused)
            for number in range(self.store.stripe_count):
                spin_lock(&stripe_at(self.store, number).lock)
                spin_unlock(&stripe_at(self.store, number).lock)

    def open(self, uint32_t number, uint64_t begin, bytes rest not None, int64_t deadline_ns):
        """(1, None): primary now; (0, sequence): its state or epoch does not allow it; (-1, refusal)."""
        cdef Bucket *bucket = self.bucket_of(number)
        cdef const uint8_t *data = <const uint8_t *>PyBytes_AS_STRING(rest)
        cdef uint32_t count = len(rest)
        cdef Outcome outcome
        cdef int done
        if count > 480:
            raise ValueError("a node name that long is no node's")
        with nogil:
            done = open_bucket(self.store, bucket, begin, data, count, deadline_ns, &outcome)
        return done, lines_of(&outcome, self.store) if done < 0 else (None if done else sequence_of(bucket))

    def exhausted(self, uint64_t counter_max):
        """Buckets whose counter is at its end."""
        return [n for n in range(self.store.bucket_count) if sequence_of(bucket_at(self.store, n)) & counter_max >= counter_max]

    def apply(self, const uint8_t[::1] body, uint64_t source):
        """None if all was applied; else why not (as `Applied`), where in `body` that record begins, its bucket and sequence,
        the bucket's own state, its sequence and whom it follows."""
        cdef Store *store = self.store
        cdef Countdown left
        cdef Record record
        cdef Applied applied = APPLIED
        cdef Bucket *bucket
        cdef uint64_t taken
        if not body.shape[0]:
            return None
        memset(&record, 0, sizeof(Record))
        left = countdown(&body[0], body.shape[0])
        with nogil:
            applied = apply_all(store, &left, source, &record)
        if applied == APPLIED:
            return None
        taken = body.shape[0] - left.left
        bucket = bucket_at(store, record.head.bucket if record.head.bucket < store.bucket_count else 0)
        at = taken - record.head.length
        state = load8(&bucket.state)
        return <int>applied, at, record.head.bucket, record.head.sequence, state, sequence_of(bucket), follows_of(bucket)

    def copy(self, uint32_t bucket):
        """A copy of a bucket as of one sequence: the bytes of IMPORT_BEGIN, ROWs and IMPORT_END."""
        cdef Bucket *held = self.bucket_of(bucket)
        cdef Buffer out
        memset(&out, 0, sizeof(Buffer))
        with nogil:
            copy_bucket(self.store, held, &out)
        try:
            if out.failed:
                raise MemoryError("no memory for the copy of a bucket")
            return PyBytes_FromStringAndSize(<char *>out.data, out.count)
        finally:
            buffer_free(&out)

    def copy_portion(self, uint32_t bucket, uint64_t begin, uint64_t bytes_max):
        """(ROWs, how many, where the next portion begins, the bucket's sequence, the stream's position, the newest time)."""
        cdef Bucket *held = self.bucket_of(bucket)
        cdef Portion portion
        cdef Buffer out
        memset(&out, 0, sizeof(Buffer))
        with nogil:
            copy_portion(self.store, held, begin, bytes_max, &out, &portion)
        try:
            if out.failed:
                raise MemoryError("no memory for a part of a bucket")
            body = PyBytes_FromStringAndSize(<char *>out.data, out.count)
            return body, portion.rows, portion.next, portion.sequence, portion.position, portion.time_ms
        finally:
            buffer_free(&out)

    # --- upkeep

    def expire_due(self, int64_t items_max, int64_t deadline_ns):
        cdef Outcome outcome
        cdef int64_t count
        with nogil:
            count = expire_due(self.store, items_max, deadline_ns, &outcome)
        return count if count >= 0 else -1 - count

    def evict_page(self, int64_t deadline_ns):
        """Empty one page. False if there is none to be had, or while changes are paused. For a recovered copy that is over the
        limit."""
        cdef Outcome outcome
        cdef int done = 0
        with nogil:
            if not load8(&self.store.ring.paused):
                done = free_page(self.store, deadline_ns, &outcome)
        return done > 0

    def put_together(self):
        """Free pages by moving items, as long as there are more in use than may be."""
        cdef Outcome ignored
        with nogil:
            while self.pages_over() > 0 and compact(self.store, &ignored):
                pass

    cdef int64_t pages_over(self) noexcept nogil:
        cdef Memory *memory = &self.store.memory
        cdef uint32_t spare = spare_pages(memory) if load32(&self.store.loans.count) else 0
        return <int64_t>load32(&memory.pages_in_use) - memory.pages_max + spare

    def own_pages_over(self):
        """Pages that what this node is primary of is to give up: of those in use beyond the limit its part, by the items; and
        where peers are lent little, what it has more than its buckets' part."""
        cdef Store *store = self.store
        cdef uint64_t items = 0, own_items = 0, held = 0, own = 0, count
        cdef uint32_t number
        cdef int64_t over = self.pages_over(), lacking = 0
        cdef Bucket *bucket
        for number in range(store.bucket_count):
            bucket = bucket_at(store, number)
            spin_lock(&bucket.stripe.lock)
            count = bucket.table.count
            items += count
            held += bucket.state != ABSENT
            if bucket.state == PRIMARY or bucket.state == FROZEN:
                own_items += count
                own += 1
            spin_unlock(&bucket.stripe.lock)
        store8(&store.own_full, load32(&store.loans.count) > 0 and own_items * held >= items * own)
        if over > 0:
            return 0 if not items else (over * own_items + items - 1) // items
        with nogil:
            pthread_mutex_lock(&store.loans.lock)
            for number in range(LOANS_MAX):
                if store.loans.at[number].used:
                    lacking += max(<int64_t>0, store.loans.most // 2 - signed64(&store.loans.at[number].lent))
            pthread_mutex_unlock(&store.loans.lock)
        lacking = lacking * ITEM_FACTOR // store.memory.page_bytes - free_pages(&store.memory)
        return max(0, lacking) if own_items * held > items * own else 0

    # --- credit

    def name_point(self, uint32_t number, bytes name not None):
        """Whose point it is, for the words of refusals."""
        cdef const char *text = PyBytes_AS_STRING(name)
        cdef size_t count = len(name)
        with nogil:
            credit_name(&self.store.ring, number % POINTS_MAX, text, count)

    def relieve(self, int64_t items_max):
        """Work off debts by up to so many items each, and have those peers asked that have to say something new. Returns how
        many items were evicted."""
        cdef Ring *ring = &self.store.ring
        cdef uint32_t number
        cdef int64_t evicted = 0
        cdef int64_t now_ns = monotonic_ns()
        with nogil:
            for number in range(DISK + 1, POINTS_MAX):
                if not self.has_said(number):
                    continue
                evicted += relieve_point(self.store, number, items_max)
                if credit_debt(&ring.credits[number]) or now_ns - signed64(&ring.credits[number].renewed_ns) > ASK_IDLE_NS:
                    credit_ask(ring, number)
            windows_push(&self.store.windows)
        return evicted

    cdef bint has_said(self, uint32_t number) noexcept nogil:
        """Whether there is a peer behind this point that has said what it lends."""
        cdef Ring *ring = &self.store.ring
        if load64(&ring.reached[number]) == POINT_CLOSED or load64(&ring.abandoned) >> number & 1:
            return False
        return signed64(&ring.credits[number].allowance) != CREDIT_NOT_SAID

    def credits(self):
        """(number, name, room said last, left of it, debt) of each point whose peer has said something; then how many changes were
        refused, and how many items evicted."""
        cdef Ring *ring = &self.store.ring
        cdef char said[POINT_NAME_BYTES]
        cdef Credit *credit
        rows = []
        for number in range(DISK + 1, POINTS_MAX):
            credit = &ring.credits[number]
            if self.has_said(number):
                left = signed64(&credit.allowance) - signed64(&credit.spent)
                credit_name_of(ring, number, said)
                name = bytes(said).decode("utf-8", "replace")
                rows.append((number, name, signed64(&credit.room), max(0, left), credit_debt(credit)))
        return rows, signed64(&ring.credit_refused), signed64(&ring.credit_evicted)

    def debt(self, uint32_t number):
        return credit_debt(&self.store.ring.credits[number % POINTS_MAX])

    def loans(self):
        """(how many there are, what is lent and not used yet, the most of one, how often there was nothing to lend)."""
        cdef Store *store = self.store
        cdef int64_t lent = 0, most, short, count
        cdef uint32_t number
        with nogil:
            pthread_mutex_lock(&store.loans.lock)
            for number in range(LOANS_MAX):
                if store.loans.at[number].used:
                    lent += max(<int64_t>0, signed64(&store.loans.at[number].lent))
            count, most, short = store.loans.count, store.loans.most, store.loans.told_short
            pthread_mutex_unlock(&store.loans.lock)
        return count, lent, most, short

    # --- the stream

    @property
    def head(self):
        return ring_head(&self.store.ring)

    @property
    def durable(self):
        return ring_durable(&self.store.ring)

    @property
    def failure(self):
        return self.store.ring.failure[:].decode("utf-8", "replace") if load8(&self.store.ring.failed) else ""

    def open_point(self, uint64_t position, uint64_t until_ns):
        """The number of a new commit point."""
        cdef int number
        with nogil:
            number = point_open(&self.store.ring, position, until_ns)
        if number == NO_POINT:
            raise ValueError(f"the change stream has {POINTS_MAX} commit points already")
        return number

    def point(self, uint32_t number):
        return load64(&self.store.ring.reached[number % POINTS_MAX])

    def advance(self, uint32_t number, uint64_t position, uint64_t moment):
        with nogil:
            point_advance(&self.store.ring, number % POINTS_MAX, position, moment)

    def begin_moment(self, uint64_t points):
        """What was done before this waits for the peers of these points to answer something that is sent after it; 0 where none
        of them is a link's."""
        cdef uint64_t moment
        with nogil:
            moment = begin_moment(&self.store.ring, points)
            windows_push(&self.store.windows)
        return moment

    def lease(self, uint32_t number, uint64_t until_ns):
        with nogil:
            point_lease(&self.store.ring, number % POINTS_MAX, until_ns)

    def close_point(self, uint32_t number):
        """No bucket waits for it any more, and nobody who does so now."""
        with nogil:
            self.forget(number)
            point_lease(&self.store.ring, number % POINTS_MAX, HELD_FOR_EVER)
            point_advance(&self.store.ring, number % POINTS_MAX, POINT_CLOSED, 0)

    def abandon_point(self, uint32_t number):
        """Nobody's wait for it is met any more. Only then do the buckets forget it, so that no answer in between counts on it
        without its lease. (Whose buckets it took over must be PRIMARY here no more by then: what forgets its last point
        answers alone.)"""
        with nogil:
            point_abandon(&self.store.ring, number % POINTS_MAX)
            self.forget(number)

    cdef void forget(self, uint32_t number) noexcept nogil:
        """No bucket waits for this point any more."""
        cdef uint32_t bucket
        for bucket in range(self.store.bucket_count):
            forget_point(self.store, bucket_at(self.store, bucket), number % POINTS_MAX)

    def set_points(self, uint32_t bucket, uint64_t points):
        """Have a bucket wait for these points, a bit each. Returns the stream's head at that moment."""
        cdef Bucket *held = self.bucket_of(bucket)
        cdef uint64_t head = 0
        cdef bint done
        with nogil:
            done = set_points(self.store, held, points, &head)
        if not done:
            raise MemoryError("no memory for what waits in a bucket")
        return head

    def points_of(self, uint32_t number):
        """The points that a bucket waits for, a bit each; None where this node is not its primary."""
        cdef Bucket *bucket = self.bucket_of(number)
        cdef uint64_t points
        cdef bint is_primary
        spin_lock(&bucket.stripe.lock)
        points, is_primary = bucket.points, bucket.state == PRIMARY
        spin_unlock(&bucket.stripe.lock)
        return points if is_primary else None

    @property
    def points(self):
        """All points that any bucket waits for."""
        cdef uint64_t points = 0
        cdef uint32_t number
        cdef Bucket *bucket
        for number in range(self.store.bucket_count):
            bucket = bucket_at(self.store, number)
            spin_lock(&bucket.stripe.lock)
            points |= bucket.points
            spin_unlock(&bucket.stripe.lock)
        return points

    def wait(self, uint64_t points, uint64_t position, uint64_t moment, int64_t deadline_ns):
        cdef Wait wait = Wait(points, position, moment)
        cdef StreamEnd end
        with nogil:
            end = ring_wait(&self.store.ring, &wait, deadline_ns)
        return <int>end

    def wake_readers(self):
        cdef Ring *ring = &self.store.ring
        cdef int number
        with nogil:
            pthread_mutex_lock(&ring.lock)
            for number in range(READERS_MAX):
                ring.cursors[number].woken = True
            pthread_cond_broadcast(&ring.readable)
            pthread_mutex_unlock(&ring.lock)

    def end_waits(self):
        with nogil:
            ring_end_waits(&self.store.ring)

    def fail(self, bytes why not None):
        cdef const char *text = PyBytes_AS_STRING(why)
        cdef size_t count = len(why)
        with nogil:
            ring_fail(&self.store.ring, text, count)

    # --- looking at it

    def stats(self):
        """Counters and gauges by section."""
        cdef Store *store = self.store
        cdef uint64_t hits = 0, misses = 0, sets = 0, items = 0
        cdef uint64_t removed[4]
        cdef uint32_t states[STATES]
        cdef uint32_t number, bucket, cause
        cdef Stripe *stripe
        memset(removed, 0, sizeof(removed))
        memset(states, 0, sizeof(states))
        for number in range(store.stripe_count):
            stripe = stripe_at(store, number)
            spin_lock(&stripe.lock)
            hits += stripe.hits
            misses += stripe.misses
            sets += stripe.sets
            for cause in range(4):
                removed[cause] += stripe.removed[16 + cause]
            for bucket in range(number, store.bucket_count, store.stripe_count):
                items += bucket_at(store, bucket).table.count
                states[bucket_at(store, bucket).state] += 1
            spin_unlock(&stripe.lock)
        return {
            "items": (items, hits, misses, sets, removed[0], removed[1], removed[2], removed[3]),
            "states": [states[number] for number in range(STATES)],
            "memory": self.memory_stats(),
            "stream": self.stream_stats(),
        }

    cdef dict memory_stats(self):
        cdef Store *store = self.store
        cdef Memory *memory = &store.memory
        cdef uint32_t pages_in_use
        pthread_mutex_lock(&memory.pool)
        pages_in_use = memory.pages_in_use
        pthread_mutex_unlock(&memory.pool)
        return {
            "limit_bytes": memory.limit_bytes,
            "used_bytes": memory_used(memory),
            "reserved_bytes": memory.region_bytes,
            "page_bytes": memory.page_bytes,
            "pages": memory.pages_max,
            "pages_in_use": pages_in_use,
            "items_moved": signed64(<int64_t *>&memory.moved),
            "pages_reclassed": signed64(<int64_t *>&memory.drained),
            "connection_buffer_bytes": signed64(&store.buffer_bytes),
            "connection_buffer_bytes_max": store.buffer_bytes_max,
        }

    cdef dict stream_stats(self):
        cdef Ring *ring = &self.store.ring
        cdef uint64_t head, tail, durable
        cdef uint32_t readers
        cdef int64_t waits
        # No Python object is made under a lock: that may run anything, and anything may want this lock.
        pthread_mutex_lock(&ring.lock)
        head, tail, durable, readers, waits = ring_head(ring), ring.tail, ring_durable(ring), ring.readers, ring.full_waits
        pthread_mutex_unlock(&ring.lock)
        return {
            "bytes_held": head - tail if readers else 0,
            "bytes_written": head,
            "bytes_on_disk": durable,
            "bytes_max": ring.bytes_max,
            "readers": readers,
            "waits_for_room": waits,
        }

    def slabs(self):
        """For each size class that has a page: chunk bytes, pages, chunks in use, free chunks, evictions, wasted bytes,
        whether it is for tables. Last, with 0 chunk bytes, the large items: their pages."""
        cdef Memory *memory = &self.store.memory
        cdef SizeClass *held
        cdef uint32_t number, pages
        cdef uint64_t live, asked
        cdef int64_t evicted
        rows = []
        for number in range(memory.class_count + TABLE_CLASSES):
            held = &memory.classes[number]
            pthread_mutex_lock(&held.lock)
            pages, live, asked = held.page_count, held.live, held.asked
            pthread_mutex_unlock(&held.lock)
            evicted = signed64(<int64_t *>&held.evicted)
            if pages or evicted:
                rows.append((
                    held.chunk_bytes, pages, live, <uint64_t>pages * held.per_page - live, evicted,
                    live * held.chunk_bytes - asked, number >= memory.class_count,
                ))
        pthread_mutex_lock(&memory.pool)
        live, asked = memory.large_pages, memory.large_asked
        pthread_mutex_unlock(&memory.pool)
        rows.append((
            0, live, live, 0, signed64(<int64_t *>&memory.large_evicted), (live << memory.page_shift) - asked, False,
        ))
        return rows

    def check(self):
        """Compare every structure with every other. Raises AssertionError. Takes every lock in turn; nothing else may run."""
        cdef Store *store = self.store
        cdef uint64_t cost = 0
        cdef uint32_t number
        cdef SizeClass *tables
        for number in range(store.bucket_count):
            cost += self.check_bucket(bucket_at(store, number))
        for number in range(store.stripe_count):
            self.check_wheel(number)
        for number in range(TABLE_CLASSES):
            tables = &store.memory.classes[store.memory.class_count + number]
            cost += tables.live * tables.chunk_bytes
        assert cost == memory_used(&store.memory), (cost, memory_used(&store.memory))
        self.check_pages()
        self.check_ring()

    cdef uint64_t check_bucket(self, Bucket *bucket) except? 0:
        """Every item is where a look-up finds it; chains have no holes. Returns what the items cost."""
        cdef Store *store = self.store
        cdef uint64_t cost = 0, found = 0
        cdef uint32_t number
        cdef Bin *held
        cdef Item *item
        for number in range(bucket.table.bins):
            held = bin_at(&store.memory, &bucket.table, number)
            while True:
                for place in range(BIN_ENTRIES):
                    if not held.entries[place]:
                        assert place == BIN_ENTRIES - 1 or not held.entries[place + 1], "a hole in a chain"
                        continue
                    item = <Item *>chunk_at(&store.memory, held.entries[place])
                    assert item.state & LIVE and item.home >> 32 == bucket.number
                    assert bin_number(&bucket.table, hash_of(item)) == number
                    key = bytearray(item.key_bytes)
                    body_read(&store.memory, item, 0, key, item.key_bytes)
                    assert crc32(key, item.key_bytes) & (store.bucket_count - 1) == bucket.number
                    assert table_find(&store.memory, &bucket.table, hash_of(item), key, item.key_bytes) == item
                    assert item.version <= bucket.sequence or bucket.state == 1
                    cost += item_cost(&store.memory, item)
                    found += 1
                if not held.more:
                    break
                assert held.entries[BIN_ENTRIES - 1], "a chain goes on behind a bin that is not full"
                held = <Bin *>chunk_at(&store.memory, held.more)
        assert found == bucket.table.count, (found, bucket.table.count)
        assert bucket.table.bins >> bucket.table.level == 1
        return cost

    cdef check_wheel(self, uint32_t stripe):
        """Every item that expires is in one list of its stripe's wheel, linked both ways, and no other item is."""
        cdef Store *store = self.store
        cdef Stripe *held = stripe_at(store, stripe)
        cdef uint32_t handle, before, expiring = 0, number
        cdef Bin *chain
        cdef Item *item
        listed = 0
        for place in range(LISTS):
            handle, before = held.wheel.heads[place], 0x80000000U | <uint32_t>place
            if place < DUE:
                assert (handle != 0) == (held.wheel.occupied[place // 64] >> (place % 64) & 1)
            while handle:
                item = <Item *>chunk_at(&store.memory, handle)
                assert item.state & EXPIRES and item.state & LIVE
                assert expiry_of(item).prev == before
                assert place >= DUE or expiry_of(item).at_ms > held.wheel.elapsed
                before, handle = handle, expiry_of(item).next
                listed += 1
        for number in range(stripe, store.bucket_count, store.stripe_count):
            for index in range(bucket_at(store, number).table.bins):
                chain = bin_at(&store.memory, &bucket_at(store, number).table, index)
                while True:
                    for place in range(BIN_ENTRIES):
                        if chain.entries[place]:
                            expiring += ((<Item *>chunk_at(&store.memory, chain.entries[place])).state & EXPIRES) != 0
                    if not chain.more:
                        break
                    chain = <Bin *>chunk_at(&store.memory, chain.more)
        assert listed == expiring, (listed, expiring)

    cdef check_pages(self):
        """Pages in use are those of classes and of large items; counts agree."""
        cdef Memory *memory = &self.store.memory
        cdef uint32_t number, page, in_classes = 0, live
        for number in range(memory.class_count + TABLE_CLASSES):
            live = 0
            for place in range(memory.classes[number].page_count):
                page = memory.classes[number].pages[place]
                assert memory.pages[page].state == PAGE_CHUNKS and memory.pages[page].size_class == number
                assert memory.pages[page].place == place and memory.pages[page].live > 0
                live += memory.pages[page].live
            assert live == memory.classes[number].live
            in_classes += memory.classes[number].page_count
        assert in_classes + memory.large_pages == memory.pages_in_use, (in_classes, memory.large_pages, memory.pages_in_use)

    cdef check_ring(self):
        cdef Ring *ring = &self.store.ring
        cdef uint64_t at = ring.tail, head = ring_head(ring)
        assert ring.tail <= head and head - ring.tail <= ring.bytes_max
        assert signed64(&ring.credit) == <int64_t>(ring.bytes_max - (head - ring.tail)), "room was set aside and not given back"
        assert is_watched(ring.head) == (ring.readers > 0 or ring.failed)
        while ring.readers and at < head:
            at += get32(ring_at(ring, at))
        assert not ring.readers or at == head


@cython.no_gc_clear  # its end needs the core
cdef class Connection:
    """A connection's bytes that wait, its limits and counts. Limits in ns."""

    cdef Conn conn
    cdef Core core
    cdef readonly object sock

    def __cinit__(self, Core core not None, sock, int64_t hello_ns, int64_t idle_ns, int64_t frame_ns, int64_t send_ns):
        self.core, self.sock = core, sock
        self.conn.fd = sock.fileno()
        self.conn.hello_ns, self.conn.idle_ns, self.conn.frame_ns, self.conn.send_ns = hello_ns, idle_ns, frame_ns, send_ns
        self.conn.data_allowed = True
        self.conn.began_ns = monotonic_ns()

    def __dealloc__(self):
        if self.core is not None:
            held_free(self.core.store, &self.conn)
            add64(&self.core.store.buffer_bytes, -<int64_t>self.conn.unsent.room)
            buffer_free(&self.conn.unsent)
            free(self.conn.replies)

    @property
    def data_allowed(self):
        return bool(self.conn.data_allowed)

    @data_allowed.setter
    def data_allowed(self, bint allowed):
        self.conn.data_allowed = allowed

    @property
    def greeted(self):
        return bool(self.conn.greeted)

    @greeted.setter
    def greeted(self, bint greeted):
        self.conn.greeted = greeted

    @property
    def last_executed(self):
        return self.conn.last_executed

    @last_executed.setter
    def last_executed(self, uint32_t request_id):
        self.conn.last_executed = request_id

    @property
    def requests(self):
        return self.conn.requests

    @property
    def frame_bytes_max(self):
        return self.core.store.frame_bytes_max if self.conn.data_allowed else 1024

    cdef object handed_back(self, Ending ending, Handed *handed):
        """For Python; what was received behind it waits."""
        frame = b""
        if ending == ENDED_FRAME or ending == ENDED_BAD_FRAME:
            frame = PyBytes_FromStringAndSize(<const char *>handed.frame, handed.count)
            if not hold(self.core.store, &self.conn, handed.rest, handed.rest_count):
                raise MemoryError("no memory for what a connection received")
        return <int>ending, handed.status, frame

    def queue(self, bytes data not None, bint last):
        """Have the group send this once the connection is added to it again; after the `last` frame comes the end."""
        cdef Conn *conn = &self.conn
        cdef uint64_t count = len(data), room = conn.unsent.room
        if not buffer_need(&conn.unsent, count):
            raise MemoryError("no memory for a reply")
        if count:  # without a buffer there is nowhere to copy nothing to
            memcpy(conn.unsent.data + conn.unsent.count, PyBytes_AS_STRING(data), count)
        conn.unsent.count += count
        conn.parting = conn.parting or last
        add64(&self.core.store.buffer_bytes, <int64_t>(conn.unsent.room - room))

    def send(self, bytes data not None):
        """The ending, or GOING_ON if all was taken in time. Blocks up to the send limit."""
        cdef const uint8_t *at = <const uint8_t *>PyBytes_AS_STRING(data)
        cdef uint64_t count = len(data)
        cdef Ending ending
        with nogil:
            ending = send_all(&self.conn, at, count)
        return <int>ending


@cython.no_gc_clear  # its end needs the core
cdef class PeerGate:
    """Which of a peer's frames are let in without asking Python; and the lock under which its records are taken in. `record` is
    called with records that were applied and how many there are; None: nobody keeps them."""

    cdef Gate gate
    cdef Core core
    cdef object record

    def __cinit__(self, Core core not None, uint64_t source, record):
        if mutex_init(&self.gate.lock):
            raise OSError("no lock for a gate")
        self.core = core
        self.gate.source = source
        with nogil:
            self.gate.loan = loan_open(&core.store.loans, &core.store.memory, source)
        if self.gate.loan == NO_LOAN:
            raise RuntimeError("there are as many gates as there can be")
        self.record = record
        self.gate.record = <PyObject *>record if record is not None else NULL

    def __dealloc__(self):
        if self.core is not None and not self.gate.closed:
            loan_close(&self.core.store.loans, &self.core.store.memory, self.gate.loan)
        pthread_mutex_destroy(&self.gate.lock)

    def lend(self):
        """What the peer may use of this node's room beyond what was taken in."""
        cdef int64_t room = 0
        with nogil:
            pthread_mutex_lock(&self.gate.lock)
            if not self.gate.closed:
                room = lend_room(self.core.store, &self.gate)
            pthread_mutex_unlock(&self.gate.lock)
        return room

    def __enter__(self):
        with nogil:
            pthread_mutex_lock(&self.gate.lock)

    def __exit__(self, *_):
        pthread_mutex_unlock(&self.gate.lock)

    def allow(self, uint32_t epoch, uint64_t sender, uint64_t receiver, uint32_t generation):
        """Under the lock: frames like these are the usual case from now on."""
        cdef Gate *gate = &self.gate
        gate.epoch, gate.sender, gate.receiver, gate.generation = epoch, sender, receiver, generation
        store8(&gate.allowed, 1)

    def forbid(self):
        """None is, until Python has taken one in again."""
        store8(&self.gate.allowed, 0)

    def take_stumbled(self):
        """Under the lock: whether a frame was taken in in part, and handed back."""
        stumbled = bool(self.gate.stumbled)
        self.gate.stumbled = False
        return stumbled

    def close(self):
        """None is ever again, and nothing is lent any more."""
        if not load8(&self.gate.closed):
            store8(&self.gate.closed, 1)
            with nogil:
                loan_close(&self.core.store.loans, &self.core.store.memory, self.gate.loan)

    @property
    def counts(self):
        return signed64(&self.gate.frames), signed64(&self.gate.records), signed64(&self.gate.bytes)


@cython.no_gc_clear  # its end needs the core
cdef class SocketGroup:
    """Connections that share one worker. `serve` is its thread's; `add` any."""

    cdef Core core
    cdef Group *group

    def __cinit__(self, Core core not None):
        cdef epoll_event wanted
        self.core = core
        self.group = <Group *>calloc(1, sizeof(Group))
        if self.group == NULL or mutex_init(&self.group.lock):
            raise MemoryError("no memory for a group of connections")
        self.group.store, self.group.stop, self.group.stop_fd = core.store, &core.stop, core.stop_fd
        self.group.poller, self.group.waker = epoll_create1(EPOLL_CLOEXEC), eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        if self.group.poller < 0 or self.group.waker < 0 or not waker_add(&core.store.ring, self.group.waker):
            raise OSError("no descriptor for a group of connections")
        wanted.events, wanted.data.ptr = EPOLLIN, &self.group.waker
        epoll_ctl(self.group.poller, EPOLL_CTL_ADD, self.group.waker, &wanted)
        wanted.data.ptr = &self.group.stop_fd
        epoll_ctl(self.group.poller, EPOLL_CTL_ADD, self.group.stop_fd, &wanted)

    def __dealloc__(self):
        cdef uint32_t number
        if self.group == NULL:
            return
        for number in range(self.group.count):
            if self.group.conns[number].phase == PHASE_PARKED:
                ring_unpark(&self.core.store.ring, &self.group.conns[number].wait)
        for number in range(self.group.count):
            Py_XDECREF(self.group.conns[number].owner)
        for number in range(self.group.incoming_count):
            Py_XDECREF(self.group.incoming[number].owner)
        if self.group.waker > 0:
            waker_remove(&self.core.store.ring, self.group.waker)
            close(self.group.waker)
        if self.group.poller > 0:
            close(self.group.poller)
        worker_rest(self.core.store, &self.group.worker)
        pthread_mutex_destroy(&self.group.lock)
        free(self.group.conns)
        free(self.group.incoming)
        free(self.group.again)
        free(self.group)

    def add(self, Connection connection not None):
        """Serve this connection too. It belongs to the group until `serve` hands it back."""
        cdef Group *group = self.group
        cdef uint64_t one = 1
        cdef bint added
        Py_INCREF(connection)
        connection.conn.owner = <PyObject *>connection
        with nogil:
            pthread_mutex_lock(&group.lock)
            added = push(&group.incoming, &group.incoming_count, &group.incoming_room, &connection.conn)
            pthread_mutex_unlock(&group.lock)
            write(group.waker, &one, sizeof(one))
        if not added:
            Py_XDECREF(connection.conn.owner)
            raise MemoryError("no memory for one more connection")

    def serve(self):
        """(connection, ending, status, frame), or None once serving is to end and nobody is left. Blocks."""
        cdef Group *group = self.group
        cdef Handed handed
        cdef Ending ending
        cdef Conn *conn
        memset(&handed, 0, sizeof(Handed))
        with nogil:
            conn = next_handed(group, &ending, &handed) if worker_ready(group.store, &group.worker) else NULL
        if conn == NULL:
            return None
        connection = <Connection>conn.owner
        conn.owner = NULL
        try:
            return (connection, *(<Connection>connection).handed_back(ending, &handed))
        finally:
            Py_XDECREF(<PyObject *>connection)


cdef class Piece:
    """Bytes of the ring, to be read where they lie. The memory is there as long as the core is; what is in it, until whoever
    took it has released it."""

    cdef Core core
    cdef uint8_t *at
    cdef Py_ssize_t count

    @staticmethod
    cdef Piece of(Core core, uint8_t *at, Py_ssize_t count):
        piece = Piece()
        piece.core, piece.at, piece.count = core, at, count
        return piece

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        PyBuffer_FillInfo(buffer, self, self.at, self.count, True, flags)


@cython.no_gc_clear  # its end needs the core
cdef class Reader:
    """A cursor in the change stream; used by one thread."""

    cdef Core core
    cdef Cursor *cursor
    cdef uint64_t owner
    cdef uint8_t *chosen

    def __cinit__(self, Core core not None, bint holds):
        self.core = core
        with nogil:
            self.cursor = cursor_open(&core.store.ring, holds)
        if self.cursor == NULL:
            raise RuntimeError("the change stream has as many readers as it can have")
        self.owner = self.cursor.owner

    cdef Cursor *opened(self) except NULL:
        if self.cursor == NULL:
            raise ValueError("this reader of the change stream was closed")
        return self.cursor

    def choose(self, buckets):
        """Read only records of these buckets from here on; None: of all."""
        cdef Cursor *cursor = self.opened()
        cdef uint32_t count = (self.core.store.bucket_count + 7) // 8, bucket
        cursor.chosen = NULL
        free(self.chosen)
        self.chosen = NULL
        if buckets is None:
            return
        self.chosen = <uint8_t *>calloc(count, 1)
        if self.chosen == NULL:
            raise MemoryError("no memory for a choice of buckets")
        cursor.chosen, cursor.chosen_bytes = self.chosen, count
        for number in buckets:
            bucket = number
            self.core.bucket_of(bucket)
            self.chosen[bucket // 8] |= 1 << (bucket % 8)

    def take(self, uint64_t bytes_max, int64_t timeout_ns, int64_t linger_ns, bint view):
        """(body, count of records, position behind them, whether records before them were lost). `view`: the body is what
        lies in the ring itself, where it is in one piece; it is good until it is released. Blocks."""
        cdef Ring *ring = &self.core.store.ring
        cdef Cursor *cursor = self.opened()
        cdef Span spans[SPANS_MAX]
        cdef Measured found
        cdef bint there
        cdef char *into
        with nogil:
            there = cursor_await(ring, cursor, timeout_ns, linger_ns, END)
            if there:
                cursor_measure(ring, cursor, bytes_max, END, spans, SPANS_MAX, &found)
        if not there:
            return b"", 0, cursor.position, False
        try:
            if view and cursor.holds and found.spans == 1:
                body = memoryview(Piece.of(self.core, ring_at(ring, spans[0].position), spans[0].count))
            else:
                body = PyBytes_FromStringAndSize(NULL, found.bytes)
                into = PyBytes_AS_STRING(body)
                with nogil:
                    copy_spans(ring, spans, found.spans, into)
        except BaseException:
            with nogil:
                cursor_unpin(ring, cursor, cursor.position)
            raise
        with nogil:
            cursor_unpin(ring, cursor, found.position)
        return body, found.count, found.position, bool(found.lost)

    def send(self, int fd, bytes frame not None, uint64_t bytes_max, int64_t timeout_ns, int64_t send_ns, uint64_t until):
        """Send what there is before the position `until` behind `frame`, a frame's header and the beginning of its payload,
        whose length is put in.
        (count of records, position behind them, whether records before them were lost, how sending ended). Blocks."""
        cdef Ring *ring = &self.core.store.ring
        cdef Cursor *cursor = self.opened()
        cdef uint8_t head[FRAME_HEAD_BYTES_MAX]
        cdef uint64_t head_bytes = len(frame)
        cdef Span spans[SPANS_MAX]
        cdef Measured found
        cdef SendEnd end = SEND_DONE
        if not cursor.holds:
            raise ValueError("only a reader that holds can send: what it sends must stay until it is sent")
        if not HEADER_BYTES <= head_bytes <= FRAME_HEAD_BYTES_MAX:
            raise ValueError(f"a frame's head of {head_bytes} bytes; {HEADER_BYTES} to {FRAME_HEAD_BYTES_MAX} are taken")
        memcpy(head, PyBytes_AS_STRING(frame), head_bytes)
        with nogil:
            if not cursor_await(ring, cursor, timeout_ns, 0, until):
                found.count, found.position, found.lost = 0, cursor.position, False
            else:
                cursor_measure(ring, cursor, bytes_max, until, spans, SPANS_MAX, &found)
                if found.count:
                    put32(head + 4, <uint32_t>(head_bytes - HEADER_BYTES + found.bytes))
                    end = send_spans(ring, &found, spans, fd, head, head_bytes, monotonic_ns() + send_ns)
                cursor_unpin(ring, cursor, found.position)
        return found.count, found.position, bool(found.lost), <int>end

    def rewind(self, uint64_t position):
        """Read again from this position on."""
        cdef Cursor *cursor = self.opened()
        cdef bint done
        if not cursor.holds:
            raise ValueError("only a reader that holds can go back: what it goes back to must still be there")
        with nogil:
            done = cursor_rewind(&self.core.store.ring, cursor, position)
        if not done:
            raise ValueError(f"{position} is none that this reader has come by and not released")

    def release(self, uint64_t position):
        """Any thread, also while another closes the reader: then nothing is kept for it any more."""
        cdef Cursor *cursor = self.cursor
        if cursor == NULL:
            return
        with nogil:
            cursor_release(&self.core.store.ring, cursor, self.owner, position)

    def close(self):
        if self.cursor != NULL:
            with nogil:
                cursor_close(&self.core.store.ring, self.cursor)
            self.cursor = NULL

    def __dealloc__(self):
        if self.cursor != NULL:
            cursor_close(&self.core.store.ring, self.cursor)
        free(self.chosen)


@cython.no_gc_clear  # its end needs the core
cdef class LinkWindow:
    """The frames of one link that are under way. See `change_stream.Window` for whose each call is."""

    cdef Core core
    cdef Reader reader
    cdef Window *window
    cdef int64_t served

    def __cinit__(self, Core core not None, Reader reader not None, uint8_t opcode, uint64_t bytes_max, int64_t send_ns):
        self.core, self.reader = core, reader
        if not reader.opened().holds:
            raise ValueError("only a reader that holds can send: what it sends must stay until it is sent")
        self.window = window_open(&core.store.windows, &core.store.ring, reader.cursor)
        if self.window == NULL:
            raise RuntimeError("there are as many windows of links as there can be")
        self.window.opcode, self.window.bytes_max, self.window.send_ns = opcode, bytes_max, send_ns

    cdef Window *opened(self) except NULL:
        if self.window == NULL:
            raise ValueError("this window was closed")
        return self.window

    def set_point(self, uint32_t number):
        """The point that is advanced from now on."""
        cdef Window *window = self.opened()
        with nogil:
            window_set_point(window, number % POINTS_MAX)

    def set_head(self, bytes head not None, uint32_t epoch):
        """What frames begin with: a header, whose length and request id are put in, and what precedes the records; and the
        epoch that it names."""
        cdef Window *window = self.opened()
        cdef const uint8_t *data = <const uint8_t *>PyBytes_AS_STRING(head)
        cdef uint32_t count = len(head)
        if not HEADER_BYTES <= count <= WINDOW_HEAD_MAX:
            raise ValueError(f"a frame's head of {count} bytes; {HEADER_BYTES} to {WINDOW_HEAD_MAX} are taken")
        with nogil:
            window_set_head(window, data, count, epoch)

    def begin(self, int fd):
        """A new connection, or (-1) a new generation on the one there is. Returns its number."""
        cdef Window *window = self.opened()
        cdef bint done
        with nogil:
            done = window_begin(window, fd)
        if not done:
            raise ValueError("what was acknowledged is none that this reader has come by and not released")
        return window.connections

    def end(self):
        cdef Window *window = self.window
        if window != NULL:
            with nogil:
                window_end(window)

    def run(self, int64_t timeout_ns):
        cdef Window *window = self.opened()
        cdef WindowEnd end
        with nogil:
            end = window_run(window, monotonic_ns() + timeout_ns)
        return <int>end

    def send_until(self, uint64_t position):
        cdef Window *window = self.opened()
        cdef WindowEnd end
        with nogil:
            end = window_send_until(window, position)
        return <int>end

    def send_body(self, bytes body not None, uint64_t position):
        """How it ended, and whether too many frames are under way: then it was not sent."""
        cdef Window *window = self.opened()
        cdef const uint8_t *data = <const uint8_t *>PyBytes_AS_STRING(body)
        cdef uint64_t count = len(body)
        cdef bint full = False
        cdef WindowEnd end
        with nogil:
            end = window_send_body(window, data, count, position, &full)
        return <int>end, bool(full)

    def pass_by(self):
        """Without a connection: what is there is for nobody."""
        cdef Window *window = self.opened()
        with nogil:
            window_pass_by(window)

    def receive(self, uint64_t connection, bint mid_frame):
        """What came that is Python's business, as bytes; b"" once that connection has ended. Blocks."""
        cdef Window *window = self.opened()
        cdef uint8_t taken[ANSWERS_BYTES]
        cdef int64_t count
        with nogil:
            count = window_take_handed(window, connection, mid_frame, &self.served, taken)
        return PyBytes_FromStringAndSize(<char *>taken, count)

    def take(self, uint32_t request_id, uint32_t epoch, int64_t room):
        """An OK that names this epoch and lends so much came in by Python: -1: of old; 0: to a frame of records; 1: to a marked
        one; -2: not to the oldest."""
        cdef Window *window = self.opened()
        cdef int taken
        with nogil:
            taken = window_take(window, request_id, epoch, room)
        return taken

    def is_of_old(self, uint32_t request_id):
        cdef Window *window = self.opened()
        cdef bint of_old
        with nogil:
            of_old = window_is_of_old(window, request_id)
        return bool(of_old)

    def watch(self):
        cdef Window *window = self.opened()
        store8(&window.moved, 0)
        store8(&window.watched, 1)

    def take_moved(self):
        cdef Window *window = self.opened()
        cdef bint moved = load8(&window.moved) != 0
        if moved:
            store8(&window.moved, 0)
        return bool(moved)

    @property
    def acknowledged(self):
        return load64(&self.opened().acknowledged)

    @property
    def looked(self):
        return load64(&self.opened().looked)

    def counts(self):
        """Frames under way, when the oldest was sent (0: there is none), frames and records sent in all."""
        cdef Window *window = self.opened()
        cdef int64_t oldest_ns = 0
        cdef uint64_t waiting, frames, records
        with nogil:
            pthread_mutex_lock(&window.books)
            waiting, frames, records = window.frame_count, window.frames_sent, window.records_sent
            if waiting:
                oldest_ns = window.frames[window.frame_at].sent_ns
            pthread_mutex_unlock(&window.books)
        return waiting, oldest_ns, frames, records

    def close(self):
        """No thread of the link may be in here any more."""
        cdef Window *window = self.window
        self.window = NULL
        if window != NULL:
            with nogil:
                window_end(window)
                window_give_back(&self.core.store.windows, window)

    def __dealloc__(self):
        if self.window != NULL:
            window_end(self.window)
            window_give_back(&self.core.store.windows, self.window)


cdef void copy_spans(Ring *ring, const Span *spans, uint32_t count, char *into) noexcept nogil:
    """Copy parts of the stream, which their pinned reader keeps."""
    cdef uint32_t number
    for number in range(count):
        memcpy(into, ring_at(ring, spans[number].position), spans[number].count)
        into += spans[number].count


def crc32_of(bytes key not None):
    """For tests: the bucket hash."""
    return crc32(<const uint8_t *>PyBytes_AS_STRING(key), len(key))
