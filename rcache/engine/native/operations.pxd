"""The data opcodes: each request's payload is read by the countdown, executed, and answered.

What it is: `rcache.engine.reference.operations` in native code.
Which thread runs it: workers. Blocks as `make_change` does, never on a socket.
What it owns: nothing. What it must not know: connections; in which order answers leave.

A payload that does not come out even executes nothing: that of a many-key request is walked through to its end first. Its
words are the grammar's (`rcache_client.wire.grammar`), which is asked only then.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memset

from rcache.engine.native.answers cimport Worker, begin_reply, end_reply, reply_refused, reply_version
from rcache.engine.native.change cimport (
    RULE_ADD, RULE_APPEND, RULE_CAS, RULE_CAS_SEEN, RULE_COUNT, RULE_DELETE, RULE_PREPEND, RULE_PUT, RULE_REPLACE,
    RULE_TOUCH, Buffer, Change, Key, buffer_free, buffer_need, end_batch, make_change, put_item, put_value, read_locked,
    set_key,
)
from rcache.engine.native.commitment cimport Wait, wait_join
from rcache.records._countdown cimport Countdown, countdown, is_even, take, take8, take16, take32, take64
from rcache.engine.native.items cimport Item, body_read, expires_at
from rcache.engine.native.protocol cimport (
    HEADER_BYTES, OP_ADD, OP_APPEND, OP_CAS_HASH, OP_CAS_VERSION, OP_DECREMENT, OP_DELETE, OP_GET, OP_GET_AND_TOUCH,
    OP_GET_MANY, OP_GET_WITH_TTL, OP_INCREMENT, OP_INSPECT, OP_PREPEND, OP_REPLACE, OP_SET, OP_SET_MANY, OP_TOUCH, ST_BUSY,
    ST_CHANGED, ST_DEADLINE_PASSED, ST_NOT_FOUND, ST_OK, ST_REPLY_FULL, ST_TOO_LARGE, TTL_MS_MAX, VALUE_BYTES_CEILING,
    VALUE_HASH_BYTES,
)
from rcache.engine.native.removal cimport (
    WHY_KEPT_CHANGING_HASHED, WHY_LATE, WHY_TOO_MANY, WHY_VALUE_TOO_LARGE, Outcome, refuse,
)
from rcache.engine.native.store cimport Store, look_at_boot_clock
from rcache.engine.native.system cimport monotonic_ns, note_wait, put16, put32, put64, spin_lock, spin_unlock, take_wait
from rcache.engine.native.table cimport table_find

cdef enum:
    # However long a caller says it waits: a worker is held no longer by one request.
    BUDGET_NS_MAX = 60000000000
    # Operations of a batch between two looks at the clocks: some microseconds.
    OPERATIONS_PER_LOOK = 64
    ITEM_ENTRY_BYTES = 17
    CHANGE_ENTRY_BYTES = 9
    HASH_TRIES_MAX = 8

cdef enum Executed:
    EXECUTED = 0
    BAD_PAYLOAD = 1


cdef inline void look_at_clocks(Store *store, Worker *worker, int64_t now_ns) noexcept nogil:
    worker.now_ns = now_ns
    worker.left = OPERATIONS_PER_LOOK
    look_at_boot_clock(store, &worker.clock_ms, &worker.used_ms)


cdef inline void begin_batch(Store *store, Worker *worker, int64_t now_ns) noexcept nogil:
    """What is executed from here on was received at `now_ns`."""
    worker.received_ns = now_ns
    look_at_clocks(store, worker, now_ns)


cdef inline int64_t deadline_of(const Store *store, const Worker *worker, uint32_t budget_ms) noexcept nogil:
    """When the caller of a request of this batch stops waiting."""
    cdef int64_t budget_ns = <int64_t>budget_ms * 1000000 if budget_ms else store.default_budget_ns
    return worker.received_ns + min(budget_ns, <int64_t>BUDGET_NS_MAX)


# --- payloads: each returns whether it came out even so far

cdef inline bint take_key(Countdown *body, Change *change, uint32_t count) noexcept nogil:
    change.key.at, change.key.count = take(body, count), count
    return count > 0 and change.key.at != NULL


cdef inline bint take_ttl(Countdown *body, Change *change) noexcept nogil:
    change.ttl_ms = take64(body)
    return change.ttl_ms <= <uint64_t>TTL_MS_MAX


cdef inline bint take_key_only(Countdown *body, Change *change) noexcept nogil:
    return take_key(body, change, take16(body))


cdef inline bint take_store(Countdown *body, Change *change) noexcept nogil:
    """user flags, time to live, key, value."""
    cdef uint32_t key_bytes
    change.flags = take32(body)
    if not take_ttl(body, change):
        return False
    key_bytes = take16(body)
    change.value_bytes = take32(body)
    if change.value_bytes > VALUE_BYTES_CEILING or not take_key(body, change, key_bytes):
        return False
    change.value = take(body, change.value_bytes)
    return not body.short


cdef inline bint take_extend(Countdown *body, Change *change) noexcept nogil:
    cdef uint32_t key_bytes = take16(body)
    change.value_bytes = take32(body)
    if change.value_bytes > VALUE_BYTES_CEILING or not take_key(body, change, key_bytes):
        return False
    change.value = take(body, change.value_bytes)
    return not body.short


cdef inline bint take_count(Countdown *body, Change *change) noexcept nogil:
    cdef uint8_t create
    change.delta = <int64_t>take64(body)
    create = take8(body)
    change.create = create
    change.initial = <int64_t>take64(body)
    return create <= 1 and take_ttl(body, change) and take_key_only(body, change)


cdef inline bint take_ttl_and_key(Countdown *body, Change *change) noexcept nogil:
    return take_ttl(body, change) and take_key_only(body, change)


cdef inline bint take_payload(uint8_t opcode, Countdown *body, Change *change, const uint8_t **hashed) noexcept nogil:
    """Read the payload of a request about one key."""
    if opcode == OP_DELETE or opcode == OP_INSPECT:
        return take_key_only(body, change)
    if opcode == OP_SET or opcode == OP_ADD or opcode == OP_REPLACE:
        return take_store(body, change)
    if opcode == OP_TOUCH or opcode == OP_GET_AND_TOUCH:
        return take_ttl_and_key(body, change)
    if opcode == OP_INCREMENT or opcode == OP_DECREMENT:
        return take_count(body, change)
    if opcode == OP_APPEND or opcode == OP_PREPEND:
        return take_extend(body, change)
    if opcode == OP_CAS_VERSION:
        change.version = take64(body)
    else:
        hashed[0] = take(body, VALUE_HASH_BYTES)
    return take_store(body, change)


cdef inline uint8_t rule_of(uint8_t opcode) noexcept nogil:
    if opcode == OP_ADD:
        return RULE_ADD
    if opcode == OP_REPLACE:
        return RULE_REPLACE
    if opcode == OP_CAS_VERSION:
        return RULE_CAS
    if opcode == OP_DELETE:
        return RULE_DELETE
    if opcode == OP_TOUCH or opcode == OP_GET_AND_TOUCH:
        return RULE_TOUCH
    if opcode == OP_INCREMENT or opcode == OP_DECREMENT:
        return RULE_COUNT
    if opcode == OP_APPEND:
        return RULE_APPEND
    return RULE_PREPEND if opcode == OP_PREPEND else RULE_PUT


# --- executing

cdef inline void begin_change(Change *change) noexcept nogil:
    """Nothing is asked yet. Field by field: clearing all of it costs as much as looking a key up. The outcome is set by
    whatever ends the change, the key when its payload is read."""
    change.rule, change.minus, change.create, change.fits = RULE_PUT, False, False, False
    change.value, change.value_bytes, change.flags = NULL, 0, 0
    change.ttl_ms = change.version = 0
    change.delta = change.initial = 0
    change.stored = NULL
    change.item_to = NULL


cdef inline Executed execute(
    Store *store, Worker *worker, uint8_t opcode, uint32_t request_id, uint32_t budget_ms, const uint8_t *payload,
    uint64_t count
) noexcept nogil:
    """One data request, whose reply is added to the worker's output."""
    cdef Countdown body = countdown(payload, count)
    cdef int64_t deadline_ns = deadline_of(store, worker, budget_ms)
    cdef Outcome late
    if worker.left == 0 or take_wait():
        look_at_clocks(store, worker, monotonic_ns())
    worker.left -= 1
    worker.deadline_ns = max(worker.deadline_ns, deadline_ns)
    if worker.now_ns > deadline_ns:
        refuse(&late, ST_DEADLINE_PASSED, WHY_LATE)
        reply_refused(store, worker, opcode, request_id, &late)
        return EXECUTED
    if opcode == OP_GET or opcode == OP_GET_WITH_TTL:
        return execute_get(store, worker, opcode, request_id, deadline_ns, &body)
    return execute_other(store, worker, opcode, request_id, deadline_ns, &body)


cdef inline uint64_t time_left(Item *item, uint64_t now) noexcept nogil:
    """What is left of a live item's time, in ms; 0: it never expires, which one about to expire must not be told as."""
    return max(<uint64_t>1, expires_at(item) - now) if expires_at(item) else 0


cdef inline Executed execute_get(
    Store *store, Worker *worker, uint8_t opcode, uint32_t request_id, int64_t deadline_ns, Countdown *body
) noexcept nogil:
    """A GET, or GET_WITH_TTL, by itself: it is what most requests are, and needs none of what a change does."""
    cdef uint32_t count = take16(body)
    cdef const uint8_t *at = take(body, count)
    cdef uint64_t now, payload
    cdef uint8_t *to
    cdef Outcome outcome
    cdef Item *item
    cdef Key key
    if not count or not is_even(body):
        return BAD_PAYLOAD
    set_key(store, &key, at, count, worker.clock_ms)
    item = read_locked(store, &key, True, worker.used_ms, deadline_ns, &worker.batch, &now, &outcome)
    if item == NULL:
        reply_refused(store, worker, opcode, request_id, &outcome)
        return EXECUTED
    payload = (16 if opcode == OP_GET else 24) + <uint64_t>item.value_bytes
    to = begin_reply(worker, payload)
    if to != NULL:
        if opcode == OP_GET:
            put_item(&store.memory, to, item)
        else:
            put_item_and_time_left(store, to, item, now)
    spin_unlock(&key.bucket.stripe.lock)
    if to != NULL:
        end_reply(store, worker, opcode, ST_OK, request_id, payload, &outcome.wait)
    return EXECUTED


cdef inline void put_item_and_time_left(const Store *store, uint8_t *at, Item *item, uint64_t now) noexcept nogil:
    """The payload of a GET_WITH_TTL."""
    put32(at, item.flags)
    put64(at + 4, item.version)
    put64(at + 12, time_left(item, now))
    put_value(&store.memory, at + 20, item)


cdef inline Executed execute_other(
    Store *store, Worker *worker, uint8_t opcode, uint32_t request_id, int64_t deadline_ns, Countdown *body
) noexcept nogil:
    cdef const uint8_t *hashed = NULL
    cdef Change change
    begin_change(&change)
    change.deadline_ns, change.batch = deadline_ns, &worker.batch
    if opcode >= OP_GET_MANY:
        return execute_many(store, worker, opcode, request_id, body, &change)
    if not take_payload(opcode, body, &change, &hashed) or not is_even(body):
        return BAD_PAYLOAD
    set_key(store, &change.key, change.key.at, change.key.count, worker.clock_ms)
    change.used_ms, change.rule, change.minus = worker.used_ms, rule_of(opcode), opcode == OP_DECREMENT
    if opcode == OP_INSPECT:
        run_inspect(store, worker, request_id, &change)
    elif opcode == OP_CAS_HASH:
        run_cas_hash(store, worker, request_id, &change, hashed)
    else:
        run_change(store, worker, opcode, request_id, &change)
    return EXECUTED


cdef inline void run_inspect(Store *store, Worker *worker, uint32_t request_id, Change *change) noexcept nogil:
    cdef uint64_t now
    cdef uint8_t *at
    cdef Item *item = read_locked(store, &change.key, False, 0, change.deadline_ns, change.batch, &now, &change.outcome)
    if item == NULL:
        reply_refused(store, worker, OP_INSPECT, request_id, &change.outcome)
        return
    at = begin_reply(worker, 24)
    if at != NULL:
        put64(at, item.version)
        put32(at + 8, item.flags)
        put64(at + 12, time_left(item, now))
        put32(at + 20, item.value_bytes)
    spin_unlock(&change.key.bucket.stripe.lock)
    if at != NULL:
        end_reply(store, worker, OP_INSPECT, ST_OK, request_id, 24, &change.outcome.wait)


cdef inline bint is_too_large(const Store *store, Change *change) noexcept nogil:
    if change.value_bytes <= store.value_bytes_max:
        return False
    refuse(&change.outcome, ST_TOO_LARGE, WHY_VALUE_TOO_LARGE)
    change.outcome.number = <int64_t>change.value_bytes
    return True


cdef inline void run_change(Store *store, Worker *worker, uint8_t opcode, uint32_t request_id, Change *change) noexcept nogil:
    cdef Outcome *outcome = &change.outcome
    cdef uint64_t begun = worker.out.count
    cdef uint8_t *at
    if opcode == OP_GET_AND_TOUCH:
        if begin_reply(worker, 16) == NULL:
            return
        worker.out.count += HEADER_BYTES  # the item is told behind it, while it cannot change
        change.item_to = &worker.out
    if not is_too_large(store, change):
        make_change(store, change)
    if opcode == OP_GET_AND_TOUCH:
        begun, worker.out.count = worker.out.count - begun - HEADER_BYTES, begun
    if outcome.status != ST_OK:
        reply_refused(store, worker, opcode, request_id, outcome)
    elif opcode == OP_GET_AND_TOUCH:
        end_reply(store, worker, opcode, ST_OK, request_id, begun, &outcome.wait)
    elif opcode == OP_INCREMENT or opcode == OP_DECREMENT:
        at = begin_reply(worker, 16)
        if at != NULL:
            put64(at, <uint64_t>outcome.number)
            put64(at + 8, outcome.version)
            end_reply(store, worker, opcode, ST_OK, request_id, 16, &outcome.wait)
    else:
        reply_version(store, worker, opcode, ST_OK, request_id, outcome.version, &outcome.wait)


# --- check-and-set by hash: BLAKE2b is hashlib's, outside of the lock; the item's version stands for its value under the lock

cdef inline bint hash_fits(Store *store, Key *key, const uint8_t *hashed, uint64_t *version) noexcept nogil:
    """Whether the value under a key has this hash, and its item's version (0: there is none)."""
    cdef Buffer value
    cdef Item *item
    cdef bint fits = False
    version[0] = 0
    memset(&value, 0, sizeof(Buffer))
    spin_lock(&key.bucket.stripe.lock)
    item = table_find(&store.memory, &key.bucket.table, key.hashed, key.at, key.count)
    if item != NULL and buffer_need(&value, max(<uint64_t>item.value_bytes, <uint64_t>1)):
        value.count = item.value_bytes
        version[0] = item.version
        body_read(&store.memory, item, item.key_bytes, value.data, value.count)
    spin_unlock(&key.bucket.stripe.lock)
    if version[0]:
        fits = digest_is(store, value.data, value.count, hashed)
    buffer_free(&value)
    return fits


cdef inline bint digest_is(Store *store, const uint8_t *value, uint64_t count, const uint8_t *hashed) noexcept with gil:
    digest = (<object>store.digest)(PyBytes_FromStringAndSize(<const char *>value, count))
    return PyBytes_GET_SIZE(digest) == VALUE_HASH_BYTES and memcmp(PyBytes_AS_STRING(digest), hashed, VALUE_HASH_BYTES) == 0


cdef inline void run_cas_hash(
    Store *store, Worker *worker, uint32_t request_id, Change *change, const uint8_t *hashed
) noexcept nogil:
    cdef Outcome *outcome = &change.outcome
    cdef int tried
    cdef bint done = is_too_large(store, change)
    change.rule = RULE_CAS_SEEN
    for tried in range(HASH_TRIES_MAX):
        if done:
            break
        end_batch(store, change.batch)
        change.fits = hash_fits(store, &change.key, hashed, &change.version)
        note_wait()  # for the interpreter's lock
        make_change(store, change)
        # Start over only where the item is there and is another than the one that was hashed.
        done = outcome.status != ST_CHANGED or not outcome.version or outcome.version == change.version
    if not done:
        refuse(outcome, ST_BUSY, WHY_KEPT_CHANGING_HASHED)
    if outcome.status == ST_OK:
        reply_version(store, worker, OP_CAS_HASH, ST_OK, request_id, outcome.version, &outcome.wait)
    else:
        reply_refused(store, worker, OP_CAS_HASH, request_id, outcome)


# --- many keys: each on its own, with a status of its own

cdef inline bint take_entry(uint8_t opcode, Countdown *body, Change *change) noexcept nogil:
    return take_store(body, change) if opcode == OP_SET_MANY else take_key_only(body, change)


cdef inline Executed execute_many(
    Store *store, Worker *worker, uint8_t opcode, uint32_t request_id, Countdown *body, Change *change
) noexcept nogil:
    cdef uint32_t count = take16(body), number
    cdef Countdown walked = body[0]
    cdef uint64_t entry_bytes = ITEM_ENTRY_BYTES if opcode == OP_GET_MANY else CHANGE_ENTRY_BYTES
    cdef uint64_t fixed = 2 + count * entry_bytes, room = store.frame_bytes_max - HEADER_BYTES
    if body.short:
        return BAD_PAYLOAD
    for number in range(count):
        if not take_entry(opcode, &walked, change):
            return BAD_PAYLOAD
    if not is_even(&walked):
        return BAD_PAYLOAD
    if fixed > room:
        refuse(&change.outcome, ST_TOO_LARGE, WHY_TOO_MANY)
        change.outcome.number = count
        reply_refused(store, worker, opcode, request_id, &change.outcome)
    elif opcode == OP_GET_MANY:
        run_get_many(store, worker, request_id, body, change, count, room - fixed)
    else:
        run_change_many(store, worker, opcode, request_id, body, change, count)
    return EXECUTED


cdef inline void put_entry(uint8_t *at, uint8_t status, Item *item) noexcept nogil:
    """The fixed part of an item entry; without an item all is 0."""
    memset(at, 0, ITEM_ENTRY_BYTES)
    at[0] = status
    if item != NULL:
        put32(at + 1, item.flags)
        put64(at + 5, item.version)
        put32(at + 13, item.value_bytes)


cdef inline void run_get_many(
    Store *store, Worker *worker, uint32_t request_id, Countdown *body, Change *change, uint32_t count, uint64_t room
) noexcept nogil:
    """`room`: what the reply has left for values, in bytes."""
    cdef Buffer *out = &worker.out
    cdef uint64_t begun = out.count, now, wanted, payload
    cdef Wait wait = Wait(0, 0, 0)
    cdef uint32_t number
    cdef Item *item
    cdef Outcome *outcome = &change.outcome
    if begin_reply(worker, 2) == NULL:
        return
    put16(out.data + begun + HEADER_BYTES, <uint16_t>count)
    out.count += HEADER_BYTES + 2
    for number in range(count):
        take_key_only(body, change)
        set_key(store, &change.key, change.key.at, change.key.count, worker.clock_ms)
        item = read_locked(store, &change.key, True, worker.used_ms, change.deadline_ns, change.batch, &now, outcome)
        if item == NULL:
            if outcome.status == ST_NOT_FOUND:
                wait_join(&wait, &outcome.wait)
            if buffer_need(out, ITEM_ENTRY_BYTES):
                put_entry(out.data + out.count, outcome.status, NULL)
                out.count += ITEM_ENTRY_BYTES
            continue
        wait_join(&wait, &outcome.wait)
        wanted = item.value_bytes
        if wanted > room:
            outcome.status, wanted = ST_REPLY_FULL, 0
        if buffer_need(out, ITEM_ENTRY_BYTES + wanted):
            put_entry(out.data + out.count, outcome.status, item if outcome.status == ST_OK else NULL)
            if outcome.status == ST_OK:
                body_read(&store.memory, item, item.key_bytes, out.data + out.count + ITEM_ENTRY_BYTES, wanted)
                room -= wanted
            out.count += ITEM_ENTRY_BYTES + wanted
        spin_unlock(&change.key.bucket.stripe.lock)
    if out.failed:
        return
    payload = out.count - begun - HEADER_BYTES
    out.count = begun
    end_reply(store, worker, OP_GET_MANY, ST_OK, request_id, payload, &wait)


cdef inline void run_change_many(
    Store *store, Worker *worker, uint8_t opcode, uint32_t request_id, Countdown *body, Change *change, uint32_t count
) noexcept nogil:
    cdef uint64_t payload = 2 + <uint64_t>count * CHANGE_ENTRY_BYTES
    cdef Wait wait = Wait(0, 0, 0)
    cdef uint8_t *at = begin_reply(worker, payload)
    cdef Outcome *outcome = &change.outcome
    cdef uint32_t number
    if at == NULL:
        return
    put16(at, <uint16_t>count)
    at += 2
    for number in range(count):
        take_entry(opcode, body, change)
        set_key(store, &change.key, change.key.at, change.key.count, worker.clock_ms)
        change.rule, change.used_ms = RULE_PUT if opcode == OP_SET_MANY else RULE_DELETE, worker.used_ms
        if not is_too_large(store, change):
            make_change(store, change)
        wait_join(&wait, &outcome.wait)
        at[0] = outcome.status
        put64(at + 1, outcome.version)
        at += CHANGE_ENTRY_BYTES
    end_reply(store, worker, opcode, ST_OK, request_id, payload, &wait)
