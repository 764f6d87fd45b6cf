"""Whole buckets and records from elsewhere: opening, flushing, dropping, copying, applying.

What it is: the parts of `rcache.engine.reference.copies` that go over many items, and the record format's other direction.
Which thread runs it: any; `apply_record` one at a time for a bucket (its stripe's lock sees to that).
What it owns: nothing. What it must not know: where records come from and go to.

Records are read by the countdown alone. One that is not what the format demands, or does not follow on its bucket's last one,
changes nothing.
"""

from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from rcache.engine.native.change cimport Buffer, Key, buffer_need, set_key
from rcache.records._countdown cimport Countdown, countdown, is_even, take, take8, take16, take32, take64
from rcache.engine.native.credit cimport credit_cost
from rcache.engine.native.expiry cimport wheel_take, wheel_unpark
from rcache.engine.native.items cimport (
    EXPIRES, Item, body_read, hash_of, body_write, expires_at, expiry_of, item_alloc, item_free,
)
from rcache.engine.native.loans cimport loan_use_of
from rcache.engine.native.memory cimport Memory, chunk_at, chunk_free, handle_of
from rcache.engine.native.protocol cimport (
    CAUSE_EVICTED, CAUSE_FLUSHED, COUNTER_MAX, KINDS, KIND_FLUSH, KIND_IMPORT_BEGIN, KIND_IMPORT_END, KIND_OPEN, KIND_REMOVE, KIND_ROW,
    KIND_SET, RECORD_HEADER_BYTES, ST_BUSY, ST_PAUSED, ST_STOPPING, RecordHead, put_record_head,
)
from rcache.engine.native.removal cimport (
    WHY_COUNTER, WHY_PAUSED, WHY_STREAM_FAILED, Outcome, compact, give_key, refuse, reserve_stream,
)
from rcache.engine.native.ring cimport ring_give, ring_head
from rcache.engine.native.change cimport await_resumed, not_primary
from rcache.engine.native.store cimport (
    ABSENT, BACKUP, FROZEN, IMPORTING, PRIMARY, Bucket, Placed, Store, bucket_now_locked, learn_time_locked,
    leave_points_locked, link_locked, name_item, now_ms, record_locked, unlink_locked, bucket_at, used_now,
)
from rcache.engine.native.system cimport load8, load32, put64, reverse32, spin_lock, spin_unlock, store8
from rcache.engine.native.table cimport (
    BIN_ENTRIES, Bin, bin_at, bin_number, segment_drop, segment_of, table_close, table_entry, table_find, table_init,
    table_reserve,
)

cdef enum Applied:
    APPLIED = 0
    APPLY_BAD            # not a record, or not one of this engine's
    APPLY_WRONG_BUCKET   # there is no such bucket
    APPLY_WRONG_KEY      # the key is another bucket's
    APPLY_NOT_TAKEN      # the bucket is primary or frozen
    APPLY_ROW_OUTSIDE
    APPLY_END_ODD
    APPLY_NOT_NEXT
    APPLY_OPEN_ODD       # an OPEN whose value cannot be read
    APPLY_NO_MEMORY
    APPLY_NOT_FOLLOWED   # the bucket follows another source
    APPLY_WHOLE          # a whole copy is not let go of by what a peer sends


cdef struct Record:
    RecordHead head
    const uint8_t *key
    const uint8_t *value
    uint64_t value_bytes


# --- emptying

cdef inline void free_chain(Memory *memory, Bin *held) noexcept nogil:
    """Let go of the bins behind this one, whose items are gone."""
    cdef Bin *gone
    while held.more:
        gone = <Bin *>chunk_at(memory, held.more)
        held.more = gone.more
        chunk_free(memory, gone, sizeof(Bin))


cdef inline void empty_locked(Store *store, Bucket *bucket) noexcept nogil:
    """Take all items out and free them, and the table with them."""
    cdef Memory *memory = &store.memory
    cdef uint32_t number, bins = bucket.table.bins
    cdef int place
    cdef Bin *held
    cdef Item *item
    for number in range(bins):
        held = bin_at(memory, &bucket.table, number)
        while True:
            for place in range(BIN_ENTRIES):
                if held.entries[place]:
                    item = <Item *>chunk_at(memory, held.entries[place])
                    if item.state & EXPIRES:
                        wheel_take(memory, &bucket.stripe.wheel, item)
                    item_free(memory, item)
            if not held.more:
                break
            held = <Bin *>chunk_at(memory, held.more)
        free_chain(memory, bin_at(memory, &bucket.table, number))
    if bins > 1:
        for number in range(segment_of(bins - 1) + 1):
            segment_drop(memory, &bucket.table, number)
    table_close(memory, &bucket.table)
    table_init(&bucket.table)


cdef inline void begin_locked(Store *store, Bucket *bucket, uint64_t sequence) noexcept nogil:
    """Let go of everything and stand at `sequence`: an import begins, or (0) the bucket leaves this node."""
    empty_locked(store, bucket)
    bucket.sequence = bucket.import_begin = bucket.last_removal = sequence
    bucket.import_rows = 0
    bucket.pending_count = 0


cdef inline bint drop_older_locked(Store *store, Bucket *bucket, uint64_t sequence) noexcept nogil:
    """Take out the items whose version is before `sequence`. False where memory for the list of them cannot be had."""
    cdef Memory *memory = &store.memory
    cdef uint32_t *found = <uint32_t *>malloc((bucket.table.count + 1) * sizeof(uint32_t))
    cdef uint32_t count = 0, number
    cdef int place
    cdef Bin *held
    cdef Item *item
    if found == NULL:
        return False
    for number in range(bucket.table.bins):
        held = bin_at(memory, &bucket.table, number)
        while True:
            for place in range(BIN_ENTRIES):
                if held.entries[place] and (<Item *>chunk_at(memory, held.entries[place])).version < sequence:
                    found[count] = held.entries[place]
                    count += 1
            if not held.more:
                break
            held = <Bin *>chunk_at(memory, held.more)
    for number in range(count):
        item = <Item *>chunk_at(memory, found[number])
        unlink_locked(store, bucket, item)
        item_free(memory, item)
    free(found)
    return True


# --- records of this node's own about a bucket

cdef inline int64_t flush_bucket(Store *store, Bucket *bucket, int64_t deadline_ns, Outcome *outcome) noexcept nogil:
    """Remove all items with one record. Returns how many, -1 for a refusal. Blocks for room, and while changes are paused."""
    cdef int64_t count
    while True:
        count = try_flush(store, bucket, deadline_ns, outcome)
        if count >= 0 or outcome.why != WHY_PAUSED or not await_resumed(store, bucket, deadline_ns, outcome):
            return count


cdef inline int64_t try_flush(Store *store, Bucket *bucket, int64_t deadline_ns, Outcome *outcome) noexcept nogil:
    cdef int64_t reserved = RECORD_HEADER_BYTES, count = -1
    cdef RecordHead head
    cdef Placed placed
    cdef uint64_t now
    placed.at = NULL
    if not reserve_stream(store, reserved, deadline_ns, outcome):
        return -1
    now = now_ms(store)
    spin_lock(&bucket.stripe.lock)
    if bucket.state != PRIMARY:
        not_primary(bucket, outcome)
    elif load8(&store.ring.paused):
        refuse(outcome, ST_PAUSED, WHY_PAUSED)
    elif bucket.sequence & COUNTER_MAX == COUNTER_MAX:
        refuse(outcome, ST_BUSY, WHY_COUNTER)
        outcome.number = bucket.number
    else:
        count = bucket.table.count
        if count:
            head.length, head.kind, head.cause, head.key_bytes = RECORD_HEADER_BYTES, KIND_FLUSH, CAUSE_FLUSHED, 0
            head.bucket, head.flags, head.expires_at_ms = bucket.number, 0, 0
            head.sequence, head.time_ms = bucket.sequence + 1, bucket_now_locked(bucket, now)
            if not record_locked(store, bucket, &head, &reserved, &placed):
                refuse(outcome, ST_STOPPING, WHY_STREAM_FAILED)
                count = -1
            else:
                bucket.last_removal = head.sequence
                bucket.stripe.removed[<int>CAUSE_FLUSHED] += count
                empty_locked(store, bucket)
    spin_unlock(&bucket.stripe.lock)
    give_key(store, &placed, NULL, 0, KIND_FLUSH)
    if reserved:
        ring_give(&store.ring, reserved)
    return count


cdef inline bint may_open(uint8_t state) noexcept nogil:
    return state == ABSENT or state == BACKUP or state == PRIMARY or state == FROZEN


cdef inline int open_bucket(
    Store *store, Bucket *bucket, uint64_t begin, const uint8_t *rest, uint32_t rest_bytes, int64_t deadline_ns,
    Outcome *outcome
) noexcept nogil:
    """Become primary at sequence `begin`; `rest` is what follows the sequence it continues from in the OPEN's value. 1:
    done; 0: its state or epoch does not allow it; -1: refused."""
    cdef uint8_t value[512]
    cdef int64_t reserved = RECORD_HEADER_BYTES + 8 + rest_bytes
    cdef RecordHead head
    cdef Placed placed
    cdef uint64_t now
    cdef int done = 0
    placed.at = NULL
    if not reserve_stream(store, reserved, deadline_ns, outcome):
        return -1
    now = now_ms(store)
    spin_lock(&bucket.stripe.lock)
    if may_open(bucket.state) and begin > bucket.sequence:
        put64(value, bucket.sequence)
        memcpy(value + 8, rest, rest_bytes)
        head.length, head.kind, head.cause, head.key_bytes = <uint32_t>reserved, KIND_OPEN, 0, 0
        head.bucket, head.flags, head.expires_at_ms = bucket.number, 0, 0
        head.sequence, head.time_ms = begin, bucket_now_locked(bucket, now)
        if not record_locked(store, bucket, &head, &reserved, &placed):
            refuse(outcome, ST_STOPPING, WHY_STREAM_FAILED)
            done = -1
        else:
            bucket.last_removal = begin
            store8(&bucket.state, PRIMARY)
            bucket.follows = 0  # should it be a backup again, it is told anew whose
            wheel_unpark(&store.memory, &bucket.stripe.wheel, bucket.number)
            done = 1
    spin_unlock(&bucket.stripe.lock)
    give_key(store, &placed, value, 8 + rest_bytes, KIND_OPEN)
    if reserved:
        ring_give(&store.ring, reserved)
    return done


# --- records from elsewhere

cdef inline bint take_record(Countdown *body, Record *record) noexcept nogil:
    """The next record. False where the bytes are not one."""
    cdef RecordHead *head = &record.head
    cdef bint keyed
    head.length = take32(body)
    head.kind, head.cause, head.key_bytes = take8(body), take8(body), take16(body)
    head.bucket, head.flags = take32(body), take32(body)
    head.sequence, head.time_ms, head.expires_at_ms = take64(body), take64(body), take64(body)
    if body.short or head.length < <uint32_t>RECORD_HEADER_BYTES + head.key_bytes:
        return False
    keyed = head.kind == KIND_SET or head.kind == KIND_REMOVE or head.kind == KIND_ROW
    if not 0 < head.kind < KINDS or keyed != (head.key_bytes > 0):
        return False
    record.value_bytes = head.length - RECORD_HEADER_BYTES - head.key_bytes
    record.key = take(body, head.key_bytes)
    record.value = take(body, record.value_bytes)
    return not body.short


cdef inline bint opening_is_whole(const Record *record) noexcept nogil:
    """Whether the value of an OPEN comes out even, and its name is text."""
    cdef Countdown body = countdown(record.value, record.value_bytes)
    cdef const uint8_t *name
    cdef uint16_t count
    take64(&body)
    take64(&body)
    count = take16(&body)
    name = take(&body, count)
    return is_even(&body) and is_text(name, count)


cdef inline bint is_text(const uint8_t *data, Py_ssize_t count) noexcept with gil:
    try:
        PyUnicode_DecodeUTF8(<const char *>data, count, NULL)
    except UnicodeDecodeError:
        return False
    return True


cdef inline bint is_passed_by(const Bucket *bucket, const RecordHead *head, uint64_t source) noexcept nogil:
    """A link sends again what it does not know to have been taken."""
    return source and head.kind < KIND_ROW and head.sequence <= bucket.sequence


cdef inline Applied apply_record(
    Store *store, const Record *record, uint64_t source, uint64_t clock_ms, uint32_t used_ms, int64_t *count
) noexcept nogil:
    """Apply one record of a source to a bucket that is not primary and follows it. `count` grows by what it counts of what the
    source is lent."""
    cdef const RecordHead *head = &record.head
    cdef Bucket *bucket
    cdef Item *made = NULL
    cdef Item *fresh
    cdef Applied applied = APPLIED
    cdef Outcome ignored
    cdef Key key
    if head.bucket >= store.bucket_count:
        return APPLY_WRONG_BUCKET
    bucket = bucket_at(store, head.bucket)
    memset(&key, 0, sizeof(Key))
    if head.key_bytes:
        set_key(store, &key, record.key, head.key_bytes, clock_ms)
        if key.bucket != bucket:
            return APPLY_WRONG_KEY
    if head.kind == KIND_OPEN and not opening_is_whole(record):
        return APPLY_OPEN_ODD
    if head.kind == KIND_SET or head.kind == KIND_ROW:
        if load32(&store.memory.pages_in_use) >= store.memory.pages_max:
            compact(store, &ignored)  # rather than go over the limit
        made = item_alloc(&store.memory, head.key_bytes, record.value_bytes, head.expires_at_ms > 0, True)
        if made == NULL:
            return APPLY_NO_MEMORY
        name_item(made, head.bucket, key.hashed, used_ms)
        made.version, made.flags = head.sequence, head.flags
        if head.expires_at_ms:
            expiry_of(made).at_ms = head.expires_at_ms
        body_write(&store.memory, made, 0, record.key, head.key_bytes)
        body_write(&store.memory, made, head.key_bytes, record.value, record.value_bytes)
    fresh = made
    spin_lock(&bucket.stripe.lock)
    if bucket.state == PRIMARY or bucket.state == FROZEN:
        applied = APPLY_NOT_TAKEN
    elif bucket.follows != source:
        applied = APPLY_NOT_FOLLOWED
    elif head.kind >= KIND_ROW:
        applied = apply_mark_locked(store, bucket, record, source, &key, &made)
    elif not is_passed_by(bucket, head, source):
        applied = apply_change_locked(store, bucket, record, &key, &made)
    if applied == APPLIED:
        learn_time_locked(bucket, head.time_ms, clock_ms)
    spin_unlock(&bucket.stripe.lock)
    if applied == APPLIED and head.kind < KIND_ROW and made != fresh:
        count[0] += counted(head, record.value_bytes, made)
    if made != NULL:
        item_free(&store.memory, made)
    return applied


cdef inline int64_t counted(const RecordHead *head, uint64_t value_bytes, const Item *gone) noexcept nogil:
    """What a change that took effect counts, as its primary counts it (`credit`); `gone`: what it took out."""
    cdef int64_t old = credit_cost(gone.key_bytes, gone.value_bytes) if gone != NULL else 0
    if head.kind == KIND_SET:
        return max(<int64_t>0, credit_cost(head.key_bytes, value_bytes) - old)
    return -old if head.cause == CAUSE_EVICTED else 0


cdef inline Applied put_newer_locked(Store *store, Bucket *bucket, const Key *key, Item **made) noexcept nogil:
    """Link an item if it is newer than what is held; `made` is then what is to be freed."""
    cdef Item *held = table_find(&store.memory, &bucket.table, key.hashed, key.at, key.count)
    cdef uint32_t *entry = NULL
    if held != NULL and held.version >= made[0].version:
        return APPLIED
    if held != NULL:
        entry = table_entry(&store.memory, &bucket.table, key.hashed, handle_of(&store.memory, held))
    elif not table_reserve(&store.memory, &bucket.table, key.hashed):
        return APPLY_NO_MEMORY
    link_locked(store, bucket, made[0], held, entry)
    made[0] = held
    return APPLIED


cdef inline Applied apply_mark_locked(
    Store *store, Bucket *bucket, const Record *record, uint64_t source, const Key *key, Item **made
) noexcept nogil:
    """What frames a copy. A whole copy is let go of by a view, never by what a peer sends: one that was deposed and does not
    know it yet would otherwise take the only other copy away."""
    cdef uint8_t kind = record.head.kind
    cdef Countdown end
    cdef uint64_t begun, rows
    cdef Applied applied
    if kind == KIND_ROW:
        if bucket.state != IMPORTING:
            return APPLY_ROW_OUTSIDE
        applied = put_newer_locked(store, bucket, key, made)
        bucket.import_rows += applied == APPLIED
        return applied
    if kind == KIND_IMPORT_END:
        end = countdown(record.value, record.value_bytes)
        begun, rows = take64(&end), take64(&end)
        if not is_even(&end):
            return APPLY_BAD
        if (bucket.state != IMPORTING or begun != bucket.import_begin or rows != bucket.import_rows
                or record.head.sequence > bucket.sequence):
            return APPLY_END_ODD
        store8(&bucket.state, BACKUP)
        return APPLIED
    if source and bucket.state == BACKUP:
        return APPLY_WHOLE
    begin_locked(store, bucket, record.head.sequence if kind == KIND_IMPORT_BEGIN else 0)
    if kind != KIND_IMPORT_BEGIN:
        leave_points_locked(bucket)
    store8(&bucket.state, IMPORTING if kind == KIND_IMPORT_BEGIN else ABSENT)
    return APPLIED


cdef inline Applied apply_change_locked(
    Store *store, Bucket *bucket, const Record *record, const Key *key, Item **made
) noexcept nogil:
    """One change, in chain order. A row of a running import may already be newer than it."""
    cdef uint64_t sequence = record.head.sequence
    cdef uint8_t kind = record.head.kind
    cdef Countdown opening
    cdef Applied applied
    cdef Item *held
    if kind == KIND_OPEN:
        opening = countdown(record.value, record.value_bytes)
        if take64(&opening) != bucket.sequence:
            return APPLY_NOT_NEXT
    elif sequence != bucket.sequence + 1:
        return APPLY_NOT_NEXT
    if bucket.state == ABSENT:
        return APPLY_NOT_NEXT
    if kind == KIND_SET:
        applied = put_newer_locked(store, bucket, key, made)
        if applied == APPLIED:
            bucket.sequence = sequence
        return applied
    if kind == KIND_FLUSH and not drop_older_locked(store, bucket, sequence):
        return APPLY_NO_MEMORY
    bucket.sequence = bucket.last_removal = sequence
    if kind == KIND_REMOVE:
        held = table_find(&store.memory, &bucket.table, key.hashed, key.at, key.count)
        if held != NULL and held.version < sequence:
            unlink_locked(store, bucket, held)
            made[0] = held
    return APPLIED


cdef inline Applied apply_all(Store *store, Countdown *body, uint64_t source, Record *record) noexcept nogil:
    """Apply records of a source one after the other. `record` is the one it ended at."""
    cdef uint64_t clock_ms = now_ms(store)
    cdef uint32_t used_ms = used_now()
    cdef Applied applied = APPLIED
    cdef int64_t count = 0
    while body.left and applied == APPLIED:
        applied = APPLY_BAD
        if take_record(body, record):
            applied = apply_record(store, record, source, clock_ms, used_ms, &count)
    loan_use_of(&store.loans, source, count)
    return applied


# --- copies

cdef inline bint put_record(Buffer *out, RecordHead *head) noexcept nogil:
    """A record's head into a buffer, with room behind it for the rest."""
    if not buffer_need(out, head.length):
        return False
    put_record_head(out.data + out.count, head)
    out.data[out.count + 4] = head.kind
    out.count += RECORD_HEADER_BYTES
    return True


cdef inline void copy_bucket(Store *store, Bucket *bucket, Buffer *out) noexcept nogil:
    """IMPORT_BEGIN, a ROW for each item, IMPORT_END, one after the other: a copy at one sequence, made under the lock."""
    cdef Memory *memory = &store.memory
    cdef RecordHead head
    cdef uint32_t number
    cdef int place
    cdef Bin *held
    spin_lock(&bucket.stripe.lock)
    head.length, head.kind, head.cause, head.key_bytes = RECORD_HEADER_BYTES, KIND_IMPORT_BEGIN, 0, 0
    head.bucket, head.flags, head.expires_at_ms = bucket.number, 0, 0
    head.sequence, head.time_ms = bucket.sequence, bucket.newest_ms
    put_record(out, &head)
    for number in range(bucket.table.bins):
        held = bin_at(memory, &bucket.table, number)
        while True:
            for place in range(BIN_ENTRIES):
                if held.entries[place]:
                    copy_row(memory, out, <Item *>chunk_at(memory, held.entries[place]), &head)
            if not held.more:
                break
            held = <Bin *>chunk_at(memory, held.more)
    head.length, head.kind, head.key_bytes = RECORD_HEADER_BYTES + 16, KIND_IMPORT_END, 0
    head.flags, head.expires_at_ms, head.sequence = 0, 0, bucket.sequence
    if put_record(out, &head):
        put64(out.data + out.count, bucket.sequence)
        put64(out.data + out.count + 8, bucket.table.count)
        out.count += 16
    spin_unlock(&bucket.stripe.lock)


cdef struct Portion:
    # Of a bucket that is copied a part at a time. `next`: where the next begins; 2**32 at the end.
    uint64_t next
    uint64_t rows
    uint64_t sequence        # the bucket's newest, and the stream's position behind it, when these rows were copied
    uint64_t position
    uint64_t time_ms


cdef inline void copy_portion(
    Store *store, Bucket *bucket, uint64_t begin, uint64_t bytes_max, Buffer *out, Portion *portion
) noexcept nogil:
    """ROWs of some items of a bucket, in whole bins, up to about `bytes_max` bytes; made under the lock.

    The order is that of the hashes with their bits reversed: a bin of the table has all hashes that end in the same bits, so
    it is one stretch of that order, and when a bin is split or merged, stretches are cut in two or put together. So however
    the table grows or shrinks between two portions, an item that stays is in one of them, and `next` says all that must be
    remembered (Pieter Noordhuis found the like for tables that double, Redis's SCAN)."""
    cdef Memory *memory = &store.memory
    cdef RecordHead head
    cdef uint64_t at = begin, width, end
    cdef uint32_t hashed
    cdef int place
    cdef Bin *held
    cdef Item *item
    portion.rows = 0
    spin_lock(&bucket.stripe.lock)
    head.bucket, head.time_ms, head.cause = bucket.number, bucket.newest_ms, 0
    while at >> 32 == 0 and out.count < bytes_max and not out.failed:
        # The stretch of a bin that was split already; one that was not is come upon twice.
        hashed, width = reverse32(<uint32_t>at), (<uint64_t>1 << 32) >> (bucket.table.level + 1)
        end = (at & ~(width - 1)) + width
        held = bin_at(memory, &bucket.table, bin_number(&bucket.table, hashed))
        while True:
            for place in range(BIN_ENTRIES):
                if held.entries[place]:
                    item = <Item *>chunk_at(memory, held.entries[place])
                    if at <= reverse32(hash_of(item)) < end:
                        copy_row(memory, out, item, &head)
                        portion.rows += 1
            if not held.more:
                break
            held = <Bin *>chunk_at(memory, held.more)
        at = end
    portion.next, portion.sequence, portion.time_ms = at, bucket.sequence, bucket.newest_ms
    portion.position = ring_head(&store.ring)
    spin_unlock(&bucket.stripe.lock)


cdef inline void copy_row(const Memory *memory, Buffer *out, Item *item, RecordHead *head) noexcept nogil:
    cdef uint64_t body = <uint64_t>item.key_bytes + item.value_bytes
    head.length, head.kind, head.key_bytes = <uint32_t>(RECORD_HEADER_BYTES + body), KIND_ROW, item.key_bytes
    head.flags, head.expires_at_ms, head.sequence = item.flags, expires_at(item), item.version
    if put_record(out, head):
        body_read(memory, item, 0, out.data + out.count, body)
        out.count += body
