"""Reads and changes of single keys, with all they must wait for first.

What it is: `rcache.engine.reference.change` in native code: room in the stream and memory for the item, then the stripe lock,
the decision, the record and the item; then what was not used is given back.
Which thread runs it: workers. Blocks only before a stripe lock is taken.
What it owns: nothing. What it must not know: frames and payloads (that is `operations`).

Invariants, as there:
1. A refusal leaves everything as it was, except that an expired item it came upon may have been removed.
2. Between looking and changing the stripe lock is held throughout; what was reserved beforehand was a guess that is checked
   under the lock, and if it no longer fits, the change starts over (TRIES_MAX times).
3. Where the new value is the caller's own bytes, the item is filled before the lock is taken and its record copied after it was
   let go; only where it is made from the old value is it made, and copied, under the lock.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy, memmove, memset

from rcache.engine.native.credit cimport (
    CREDIT_ITEM_BYTES, credit_ask, credit_cost, credit_debt, credit_give, credit_take, credit_try, credit_use, is_scarce, links_of,
    renewal_comes,
)
from rcache.engine.native.expiry cimport wheel_add, wheel_take
from rcache.engine.native.hashing cimport crc32, siphash
from rcache.engine.native.items cimport (
    EXPIRES, LARGE, Item, body_move, body_of, body_read, body_write, expires_at, expiry_of, item_alloc, item_free,
    item_reuse, item_total,
)
from rcache.engine.native.memory cimport Memory, SizeClass, chunk_at
from rcache.engine.native.protocol cimport (
    CAUSE_COUNTED, CAUSE_DELETED, CAUSE_EXPIRED, CAUSE_EXTENDED, CAUSE_SET, CAUSE_TOUCHED, COUNTER_MAX, KIND_REMOVE,
    KIND_SET, RECORD_HEADER_BYTES, ST_BUSY, ST_CHANGED, ST_EXISTS, ST_NOT_A_NUMBER, ST_NOT_FOUND, ST_NOT_PRIMARY,
    ST_NO_ROOM, ST_OK, ST_OUT_OF_RANGE, ST_PAUSED, ST_STOPPING, ST_TOO_LARGE, RecordHead,
)
from rcache.engine.native.removal cimport (
    WHY_COUNTER, WHY_ITEM_TOO_LARGE, WHY_KEPT_CHANGING, WHY_NOTHING, WHY_NOT_A_NUMBER, WHY_NOT_PRIMARY,
    WHY_OUT_OF_RANGE, WHY_PAUSED, WHY_PEER_FULL, WHY_PEER_FULL_NO_EVICTION, WHY_STREAM_FAILED, WHY_WOULD_PASS, Outcome,
    evict_for_class, evict_for_point, give_key, make_room, refuse, remove_if, remove_locked, reserve_stream,
)
from rcache.engine.native.ring cimport POSITION_NONE, Credit, Ring, ring_await_resumed, ring_give, ring_publish, try_credit
from rcache.engine.native.store cimport (
    PRIMARY, Bucket, Placed, Store, bucket_at, bucket_now_locked, is_expired, link_locked, name_item, now_ms,
    wait_locked, record_locked,
)
from rcache.engine.native.system cimport (
    POLLIN, add64, add_fits, load32, load64, load8, lowest64, monotonic_ns, note_wait, poll, pollfd, pthread_mutex_lock, pthread_mutex_unlock,
    put32, put64, signed64, spin_lock, spin_unlock, store32, take_wait,
)
from rcache.engine.native.table cimport table_find, table_look, table_reserve
from rcache.engine.native.windows cimport Window, window_at, window_receive, windows_push

cdef enum:
    TRIES_MAX = 8
    # Room in the stream for some hundred small changes: one of two atomic sums for all of them.
    ROOM_AHEAD = 16384
    ROOM_AHEAD_DIVISOR = 64
    NUMBER_TEXT_BYTES_MAX = 20
    # Victims of one change for a backup's room, beside those that its size may ask for.
    VICTIMS_MAX = 1024
    # How long a backup's answer is waited for before items are evicted for its room, or the change is refused: it is there
    # long before, or the backup is about to be none.
    CREDIT_WAIT_NS = 1000000000
    CREDIT_LOOK_MS = 1

cdef enum Rule:
    RULE_PUT = 0
    RULE_ADD
    RULE_REPLACE
    RULE_CAS          # the item's version must be `version`; 0: there must be none
    RULE_CAS_SEEN     # the item must be the one of `version`, whose value was hashed, and `fits`
    RULE_DELETE
    RULE_TOUCH
    RULE_COUNT
    RULE_APPEND
    RULE_PREPEND

cdef enum Act:
    ACT_REFUSE = 0
    ACT_PUT
    ACT_REMOVE


cdef struct Buffer:
    # Bytes that grow. `failed`: memory for more could not be had; what is in it is then worth nothing.
    uint8_t *data
    uint64_t count
    uint64_t room
    bint failed


cdef struct Key:
    const uint8_t *at
    uint32_t count
    uint32_t hashed
    Bucket *bucket
    uint64_t clock_ms    # the node's time when it was looked at last
    uint32_t *entry      # where its item stands in its table, while the stripe's lock is held


cdef struct Batch:
    # What the changes of one batch hand on to each other; nothing of it outlives the batch, nor a wait (`end_batch`).
    Item *spare          # a chunk that is over from the last change, or NULL
    int64_t room         # in the stream, reserved and not used


cdef struct Change:
    # What is asked of one key, and what came of it. Times in ms; `value` is the caller's bytes.
    Key key
    uint8_t rule
    bint minus           # RULE_COUNT: down
    bint create
    bint fits
    const uint8_t *value
    uint64_t value_bytes
    uint32_t flags
    uint64_t ttl_ms
    uint64_t version
    int64_t delta
    int64_t initial
    int64_t deadline_ns
    uint32_t used_ms
    Item *stored         # the item, once it was put
    Batch *batch         # what its batch has at hand
    Buffer *item_to      # where the item that a touch found is to be copied, as the payload of a GET; or NULL
    Outcome outcome


cdef struct Decision:
    uint8_t act
    uint8_t status
    uint8_t why
    uint8_t cause
    uint32_t flags
    uint64_t value_bytes
    uint64_t expires_at_ms
    int64_t number
    int64_t other
    uint8_t digits[24]


cdef struct Attempt:
    # One try of a change: what was set aside for it, and what was done.
    Item *made           # memory for the new item; afterwards what is over
    Item *gone           # an item that was taken out
    Placed placed
    int64_t reserved     # of room in the stream, and not used up
    bint recorded        # whether a place in the stream was asked for
    int64_t needed       # -1, or the room that turned out to be needed
    bint expires         # with it: whether the item will expire
    bint wrote
    uint64_t points      # of the links whose backups the change goes to
    int64_t credit       # of each of them, and what of it was used
    int64_t credit_used


# --- buffers

cdef inline bint buffer_need(Buffer *buffer, uint64_t more) noexcept nogil:
    """Room for `more` bytes behind what is there."""
    cdef uint64_t room = max(buffer.room, <uint64_t>4096)
    cdef uint8_t *longer
    if buffer.count + more <= buffer.room:
        return True
    while room < buffer.count + more:
        room *= 2
    longer = <uint8_t *>realloc(buffer.data, room)
    if longer == NULL:
        buffer.failed = True
        return False
    buffer.data, buffer.room = longer, room
    return True


cdef inline void buffer_free(Buffer *buffer) noexcept nogil:
    free(buffer.data)
    buffer.data = NULL
    buffer.count = buffer.room = 0


# --- reading

cdef inline void set_key(const Store *store, Key *key, const uint8_t *at, uint32_t count, uint64_t clock_ms) noexcept nogil:
    """A key with its bucket and its place there."""
    key.at, key.count, key.clock_ms, key.entry = at, count, clock_ms, NULL
    key.bucket = bucket_at(store, crc32(at, count) & (store.bucket_count - 1))
    key.hashed = <uint32_t>siphash(store.hash_key, at, count)


cdef inline void not_primary(const Bucket *bucket, Outcome *outcome) noexcept nogil:
    refuse(outcome, ST_NOT_PRIMARY, WHY_NOT_PRIMARY)
    outcome.number, outcome.other = bucket.number, bucket.state


cdef inline void miss_locked(Store *store, Bucket *bucket, bint use, uint64_t revealed, Outcome *outcome) noexcept nogil:
    bucket.stripe.misses += use
    refuse(outcome, ST_NOT_FOUND, WHY_NOTHING)
    outcome.wait = wait_locked(store, bucket, revealed)


cdef inline bint await_resumed(Store *store, Bucket *bucket, int64_t deadline_ns, Outcome *outcome) noexcept nogil:
    """After PAUSED: wait for the end of the pause. False if that is the answer, or another that the bucket's state gives.
    Blocks."""
    cdef bint ours
    spin_lock(&bucket.stripe.lock)
    ours = bucket.state == PRIMARY
    if not ours:
        not_primary(bucket, outcome)
    spin_unlock(&bucket.stripe.lock)
    return ours and ring_await_resumed(&store.ring, deadline_ns)


cdef inline Item *find_live_locked(Store *store, Key *key, uint64_t *now, bint *expired) noexcept nogil:
    """The item under a key, or NULL; `expired` if there is one whose time has come. `now`: the bucket's time."""
    cdef Item *item = NULL
    key.entry = table_look(&store.memory, &key.bucket.table, key.hashed, key.at, key.count)
    if key.entry != NULL:
        item = <Item *>chunk_at(&store.memory, key.entry[0])
    now[0] = bucket_now_locked(key.bucket, key.clock_ms)
    expired[0] = item != NULL and is_expired(item, now[0])
    return item


cdef inline Item *read_locked(
    Store *store, Key *key, bint use, uint32_t used_ms, int64_t deadline_ns, Batch *batch, uint64_t *now, Outcome *outcome
) noexcept nogil:
    """Look up a key; an expired item is removed first (while changes are paused it is a miss that stays). Returns with the
    stripe's lock held and the item; or without it and NULL, and then `outcome` is a refusal or NOT_FOUND. `use`: it counts as
    used."""
    cdef Bucket *bucket = key.bucket
    cdef bint expired
    cdef Item *item
    while True:
        spin_lock(&bucket.stripe.lock)
        if bucket.state != PRIMARY:
            not_primary(bucket, outcome)
            spin_unlock(&bucket.stripe.lock)
            return NULL
        item = find_live_locked(store, key, now, &expired)
        if item == NULL:
            miss_locked(store, bucket, use, bucket.last_removal, outcome)
            spin_unlock(&bucket.stripe.lock)
            return NULL
        if not expired:
            if use:
                bucket.stripe.hits += 1
                store32(&item.used_ms, used_ms)
            outcome.status, outcome.version = ST_OK, item.version
            outcome.wait = wait_locked(store, bucket, item.version)
            return item
        if load8(&store.ring.paused):  # and reveals that the change that made it has been made
            miss_locked(store, bucket, use, max(bucket.last_removal, item.version), outcome)
            spin_unlock(&bucket.stripe.lock)
            return NULL
        spin_unlock(&bucket.stripe.lock)
        end_batch(store, batch)  # removing waits for room
        if remove_if(store, bucket, key.at, key.count, key.hashed, CAUSE_EXPIRED, 0, deadline_ns, outcome) < 0:
            return NULL
        key.clock_ms = now_ms(store)


cdef inline bint look(Store *store, const Key *key, uint64_t *value_bytes, bint *expires) noexcept nogil:
    """The item under a key as it is, expired or not: a guess for what a change will need. False if there is none."""
    cdef Item *item
    spin_lock(&key.bucket.stripe.lock)
    item = table_find(&store.memory, &key.bucket.table, key.hashed, key.at, key.count)
    if item != NULL:
        value_bytes[0] = item.value_bytes
        expires[0] = item.state & EXPIRES != 0
    spin_unlock(&key.bucket.stripe.lock)
    return item != NULL


# --- deciding

cdef inline bint parse_number(const uint8_t *text, uint64_t count, int64_t *number) noexcept nogil:
    """A signed 64-bit number as INCREMENT writes it: no leading zeros, space or plus."""
    cdef uint64_t at = 0
    cdef bint minus = count > 0 and text[0] == c'-'
    cdef int64_t digit
    number[0] = 0
    if minus:
        at = 1
    if count == at or count > NUMBER_TEXT_BYTES_MAX or (text[at] == c'0' and (minus or count > 1)):
        return False
    while at < count:
        digit = <int64_t>text[at] - c'0'
        if digit < 0 or digit > 9 or number[0] > 922337203685477580LL or number[0] < -922337203685477580LL:
            return False
        if not add_fits(number[0] * 10, digit, minus, number):
            return False
        at += 1
    return True


cdef inline uint64_t write_number(uint8_t *text, int64_t number) noexcept nogil:
    """The number in decimal. Returns the length, 20 bytes at most."""
    cdef uint8_t reversed_[24]
    cdef uint64_t left = <uint64_t>number if number >= 0 else ~<uint64_t>number + 1, count = 0, at = 0
    while True:
        reversed_[count] = <uint8_t>(c'0' + left % 10)
        count += 1
        left //= 10
        if not left:
            break
    if number < 0:
        text[0] = c'-'
        at = 1
    while count:
        count -= 1
        text[at] = reversed_[count]
        at += 1
    return at


cdef inline void decide_refusal(Decision *decision, uint8_t status, uint8_t why) noexcept nogil:
    decision.act, decision.status, decision.why = ACT_REFUSE, status, why


cdef inline void decide_count(
    const Memory *memory, const Change *change, Item *item, uint64_t now, Decision *decision
) noexcept nogil:
    cdef uint8_t text[NUMBER_TEXT_BYTES_MAX]
    cdef int64_t number = change.initial
    if item == NULL:
        if not change.create:
            decide_refusal(decision, ST_NOT_FOUND, WHY_NOTHING)
            return
        decision.flags, decision.expires_at_ms = 0, now + change.ttl_ms if change.ttl_ms else 0
    else:
        if item.value_bytes > NUMBER_TEXT_BYTES_MAX:
            decide_refusal(decision, ST_NOT_A_NUMBER, WHY_NOT_A_NUMBER)
            return
        body_read(memory, item, item.key_bytes, text, item.value_bytes)
        if not parse_number(text, item.value_bytes, &number):
            decide_refusal(decision, ST_NOT_A_NUMBER, WHY_NOT_A_NUMBER)
            return
        decision.number, decision.other = number, change.delta
        if not add_fits(number, change.delta, change.minus, &number):
            decide_refusal(decision, ST_OUT_OF_RANGE, WHY_OUT_OF_RANGE)
            return
        decision.flags, decision.expires_at_ms = item.flags, expires_at(item)
    decision.act, decision.cause, decision.number = ACT_PUT, CAUSE_COUNTED, number
    decision.value_bytes = write_number(decision.digits, number)


cdef inline void decide_extend(const Store *store, const Change *change, Item *item, Decision *decision) noexcept nogil:
    if item == NULL:
        decide_refusal(decision, ST_NOT_FOUND, WHY_NOTHING)
    elif item.value_bytes + change.value_bytes > store.value_bytes_max:
        decide_refusal(decision, ST_TOO_LARGE, WHY_WOULD_PASS)
    else:
        decision.act, decision.cause = ACT_PUT, CAUSE_EXTENDED
        decision.flags, decision.expires_at_ms = item.flags, expires_at(item)
        decision.value_bytes = item.value_bytes + change.value_bytes


cdef inline uint8_t condition_unmet(const Change *change, Item *item) noexcept nogil:
    """The status that stands in the way of a rule that looks at the item before it replaces or removes it; OK: none does."""
    cdef uint8_t rule = change.rule
    if rule == RULE_ADD and item != NULL:
        return ST_EXISTS
    if (rule == RULE_REPLACE or rule == RULE_DELETE or rule == RULE_TOUCH) and item == NULL:
        return ST_NOT_FOUND
    if rule == RULE_CAS and (item.version if item != NULL else 0) != change.version:
        return ST_CHANGED
    if rule == RULE_CAS_SEEN and (not change.fits or item == NULL or item.version != change.version):
        return ST_CHANGED
    return ST_OK


cdef inline void decide(const Store *store, const Change *change, Item *item, uint64_t now, Decision *decision) noexcept nogil:
    """What is to be done, given the live item (NULL: none) and the bucket's time. Under the stripe's lock."""
    cdef uint8_t rule = change.rule, unmet
    decision.number = decision.other = 0
    if rule == RULE_COUNT:
        decide_count(&store.memory, change, item, now, decision)
        return
    if rule == RULE_APPEND or rule == RULE_PREPEND:
        decide_extend(store, change, item, decision)
        return
    unmet = condition_unmet(change, item)
    if unmet != ST_OK:
        decide_refusal(decision, unmet, WHY_NOTHING)
        return
    decision.act = ACT_REMOVE if rule == RULE_DELETE else ACT_PUT
    decision.cause, decision.flags, decision.value_bytes = CAUSE_SET, change.flags, change.value_bytes
    decision.expires_at_ms = now + change.ttl_ms if change.ttl_ms else 0
    if rule == RULE_TOUCH:
        decision.cause, decision.flags, decision.value_bytes = CAUSE_TOUCHED, item.flags, item.value_bytes


# --- changing

cdef inline bint brings_value(uint8_t rule) noexcept nogil:
    """Whether the new value is the caller's bytes (invariant 3)."""
    return rule <= RULE_CAS_SEEN


cdef inline uint64_t room_wanted(Store *store, const Change *change, bint *expires) noexcept nogil:
    """A guess of the new value's length, and whether it will expire."""
    cdef uint64_t held = 0
    expires[0] = change.ttl_ms != 0
    if brings_value(change.rule):
        return change.value_bytes
    if change.rule == RULE_DELETE:
        return 0
    if change.rule == RULE_TOUCH:
        look(store, &change.key, &held, expires)
        expires[0] = change.ttl_ms != 0
        return held
    look(store, &change.key, &held, expires)
    return NUMBER_TEXT_BYTES_MAX if change.rule == RULE_COUNT else min(held + change.value_bytes, store.value_bytes_max)


cdef inline bint fits_in_place(const Memory *memory, Item *item, uint64_t value_bytes, bint expires) noexcept nogil:
    """Whether an item's own chunk can take a new value."""
    if (item.state & EXPIRES != 0) != expires:
        return False
    if item.state & LARGE:
        return item.value_bytes == value_bytes
    return (item_total(memory, item.key_bytes, value_bytes, expires) <= memory.classes[item.size_class].chunk_bytes)


cdef inline void resize(Memory *memory, Item *item, uint64_t value_bytes) noexcept nogil:
    """An item in one chunk has a value of another length from now on, which its chunk holds."""
    cdef SizeClass *owner = &memory.classes[item.size_class]
    if item.value_bytes == value_bytes:
        return
    pthread_mutex_lock(&owner.lock)
    owner.asked += value_bytes - item.value_bytes
    pthread_mutex_unlock(&owner.lock)
    item.value_bytes = <uint32_t>value_bytes


cdef inline int64_t room_ahead(const Store *store) noexcept nogil:
    """How much of the stream a batch may have at hand."""
    return min(<int64_t>ROOM_AHEAD, <int64_t>(store.ring.bytes_max // ROOM_AHEAD_DIVISOR))


cdef inline void give_room(Store *store, Batch *batch, int64_t kept) noexcept nogil:
    """Give back what the batch has of the stream, but for as much as is `kept`."""
    if batch.room > kept:
        ring_give(&store.ring, batch.room - kept)
        batch.room = kept


cdef inline void give_way(Store *store, Change *change) noexcept nogil:
    """Where memory is short and this node's own items have their part of it, one of them goes for one that comes. Else own changes
    would take the chunks that peers evict for their own, until nothing of theirs is left."""
    cdef Memory *memory = &store.memory
    cdef uint64_t asked = item_total(memory, change.key.count, change.value_bytes, change.ttl_ms > 0)
    cdef Outcome ignored
    if not growth_of(store, change) or load8(&store.ring.paused) or asked > memory.chunk_bytes_max:
        return
    end_batch(store, change.batch)
    evict_for_class(
        store, memory.class_of_size[(asked + (1 << memory.handle_shift) - 1) >> memory.handle_shift], change.deadline_ns, &ignored
    )


cdef inline Item *take_memory(Store *store, Change *change, uint64_t room, bint expires, bint *refused) noexcept nogil:
    """Memory for the new item, by eviction where needed. NULL where none is needed: for a change that will be refused or only
    removes, and for one that a full store can make in place. Where it could not be had, `refused`."""
    cdef Memory *memory = &store.memory
    cdef Item *held
    cdef Decision decision
    cdef uint64_t now, whole
    cdef bint expired, in_place = False
    cdef Item *made = change.batch.spare
    refused[0] = False
    if made != NULL:
        made = item_reuse(memory, made, change.key.count, room, expires)
        if made != NULL:
            change.batch.spare = NULL
            return made
    if load8(&store.own_full) and store.evict and load32(&memory.pages_in_use) + load32(&memory.held_pages) >= memory.pages_max:
        give_way(store, change)
    made = item_alloc(memory, change.key.count, room, expires, False)
    if made != NULL:
        return made
    spin_lock(&change.key.bucket.stripe.lock)
    held = find_live_locked(store, &change.key, &now, &expired)
    decide(store, change, NULL if expired else held, now, &decision)
    if decision.act == ACT_PUT and held != NULL:
        in_place = fits_in_place(memory, held, decision.value_bytes, decision.expires_at_ms > 0)
    spin_unlock(&change.key.bucket.stripe.lock)
    if decision.act != ACT_PUT or in_place:
        return NULL
    whole = item_total(memory, change.key.count, decision.value_bytes, decision.expires_at_ms > 0)
    if whole > memory.limit_bytes:
        refuse(&change.outcome, ST_NO_ROOM, WHY_ITEM_TOO_LARGE)
        change.outcome.number = <int64_t>memory.limit_bytes
        refused[0] = True
        return NULL
    end_batch(store, change.batch)
    made = make_room(store, change.key.count, room, expires, change.deadline_ns, &change.outcome)
    refused[0] = made == NULL
    return made


cdef inline void fill_from_old(
    const Store *store, const Change *change, const Decision *decision, Item *item, Item *old
) noexcept nogil:
    """The new value, where it is made from the old one; `item` may be `old` itself."""
    cdef const Memory *memory = &store.memory
    cdef uint64_t key = change.key.count, held = decision.value_bytes - change.value_bytes
    if change.rule == RULE_COUNT:
        body_write(memory, item, key, decision.digits, decision.value_bytes)
    elif change.rule == RULE_TOUCH:
        if item != old:
            body_move(memory, item, key, old, key, decision.value_bytes)
    elif change.rule == RULE_APPEND:
        if item != old:
            body_move(memory, item, key, old, key, held)
        body_write(memory, item, key + held, change.value, change.value_bytes)
    else:
        if item != old:
            body_move(memory, item, key + change.value_bytes, old, key, held)
        elif change.value_bytes:  # of a large item, which does not lie in one piece, nothing else can be done in place
            memmove(body_of(item) + key + change.value_bytes, body_of(item) + key, held)
        body_write(memory, item, key, change.value, change.value_bytes)


cdef inline void give_record(
    Store *store, const Placed *placed, const Change *change, const uint8_t *value, uint64_t count
) noexcept nogil:
    """The rest of a SET record, and then it is there. A value that was made from the old one is in it already."""
    if placed.at == NULL:
        return
    memcpy(placed.at + RECORD_HEADER_BYTES, change.key.at, change.key.count)
    if brings_value(change.rule):
        memcpy(placed.at + RECORD_HEADER_BYTES + change.key.count, value, count)
    ring_publish(&store.ring, placed.at, KIND_SET)


cdef inline void give_made_value_locked(const Store *store, const Placed *placed, const Change *change) noexcept nogil:
    """Into its record, a value that was made from the old one: it is copied while the item cannot change."""
    cdef Item *item = change.stored
    if placed.at != NULL and not brings_value(change.rule):
        body_read(
            &store.memory, item, change.key.count, placed.at + RECORD_HEADER_BYTES + change.key.count, item.value_bytes
        )


cdef inline void tell_item(const Store *store, const Change *change, Item *item) noexcept nogil:
    """The payload of a GET: flags, version, the value's length, the value."""
    cdef Buffer *told = change.item_to
    if told == NULL or not buffer_need(told, 16 + item.value_bytes):
        return
    put_item(&store.memory, told.data + told.count, item)
    told.count += 16 + item.value_bytes


cdef inline void put_item(const Memory *memory, uint8_t *at, Item *item) noexcept nogil:
    put32(at, item.flags)
    put64(at + 4, item.version)
    put_value(memory, at + 12, item)


cdef inline void put_value(const Memory *memory, uint8_t *at, Item *item) noexcept nogil:
    """The value's length, the value."""
    put32(at, item.value_bytes)
    if item.state & LARGE:
        body_read(memory, item, item.key_bytes, at + 4, item.value_bytes)
    else:
        memcpy(at + 4, body_of(item) + item.key_bytes, item.value_bytes)


cdef inline bint put_locked(
    Store *store, Change *change, const Decision *decision, Item *old, Item **made, Attempt *attempt, uint64_t now
) noexcept nogil:
    """Make the change that was decided on, in the memory of `made` or, without it, in place. False if it does not fit: nothing
    has changed then. Afterwards `made` is what is to be freed: nothing, or the old item."""
    cdef Memory *memory = &store.memory
    cdef Bucket *bucket = change.key.bucket
    cdef Item *item = made[0]
    cdef RecordHead head
    cdef bint expires = decision.expires_at_ms > 0
    cdef int64_t grown
    if item == NULL:
        if old == NULL or not fits_in_place(memory, old, decision.value_bytes, expires):
            return False
        item = old
    elif item.state & LARGE:
        if item.value_bytes != decision.value_bytes or (item.state & EXPIRES != 0) != expires:
            return False
    elif item.value_bytes < decision.value_bytes or (item.state & EXPIRES != 0) != expires:
        return False
    grown = credit_cost(change.key.count, decision.value_bytes)
    if old != NULL:
        grown -= credit_cost(old.key_bytes, old.value_bytes)
    if attempt.points and grown > attempt.credit:
        return False
    if old == NULL and not table_reserve(memory, &bucket.table, change.key.hashed):
        return False
    head.length = <uint32_t>(RECORD_HEADER_BYTES + change.key.count + decision.value_bytes)
    if head.length > attempt.reserved:  # in place, of an item that has grown since it was looked at
        return False
    head.kind, head.cause, head.key_bytes, head.bucket = KIND_SET, decision.cause, <uint16_t>change.key.count, bucket.number
    head.flags, head.expires_at_ms = decision.flags, decision.expires_at_ms
    head.sequence, head.time_ms = bucket.sequence + 1, now
    attempt.recorded = True
    if not record_locked(store, bucket, &head, &attempt.reserved, &attempt.placed):
        return True
    if attempt.points and grown > 0:
        attempt.credit_used = grown
        credit_use(&store.ring, attempt.points, grown)
    bucket.stripe.sets += 1
    change.stored = item
    settle_locked(store, change, decision, item, old, head.sequence)
    if item != old:
        made[0] = old
        link_locked(store, bucket, item, old, change.key.entry)
    return True


cdef inline void settle_locked(
    Store *store, Change *change, const Decision *decision, Item *item, Item *old, uint64_t version
) noexcept nogil:
    """The new item's fields and, where it was not filled before, its value."""
    cdef Memory *memory = &store.memory
    cdef bint in_wheel = item == old and item.state & EXPIRES
    if in_wheel:
        wheel_take(memory, &change.key.bucket.stripe.wheel, item)
    if not item.state & LARGE:
        resize(memory, item, decision.value_bytes)
    if not brings_value(change.rule):
        fill_from_old(store, change, decision, item, old)
    elif item == old:
        body_write(memory, item, change.key.count, change.value, change.value_bytes)
    item.version, item.flags = version, decision.flags
    if item.state & EXPIRES:
        expiry_of(item).at_ms = decision.expires_at_ms
    if in_wheel:
        wheel_add(memory, &change.key.bucket.stripe.wheel, item)
    store32(&item.used_ms, change.used_ms)


cdef inline void revealing_locked(Store *store, Change *change, const Decision *decision, Item *live) noexcept nogil:
    """A refusal reveals the item it is about, or that there is none."""
    cdef Bucket *bucket = change.key.bucket
    refuse(&change.outcome, decision.status, decision.why)
    change.outcome.number, change.outcome.other, change.outcome.minus = decision.number, decision.other, change.minus
    change.outcome.version = live.version if live != NULL else 0
    change.outcome.wait = wait_locked(store, bucket, live.version if live != NULL else bucket.last_removal)


cdef inline bint take_room(Store *store, Change *change, int64_t count) noexcept nogil:
    """Room in the stream: of what the batch has, and where there is some for the changes to come as well. False, with the
    refusal in the outcome, where it could not be had. Nobody waits while it has some."""
    cdef Ring *ring = &store.ring
    cdef Batch *batch = change.batch
    cdef int64_t ahead = room_ahead(store)
    if batch.room >= count:
        batch.room -= count
        return True
    give_room(store, batch, 0)
    if count <= ahead and not load8(&ring.failed) and try_credit(ring, ahead):
        batch.room = ahead - count
        return True
    if not load8(&ring.failed) and try_credit(ring, count):
        return True
    end_batch(store, batch)
    return reserve_stream(store, count, change.deadline_ns, &change.outcome)


cdef inline int64_t growth_of(Store *store, Change *change) noexcept nogil:
    """By how much a change lets its item grow, as credit counts it, as things are now; 0 where it would be refused or does not."""
    cdef Decision decision
    cdef uint64_t now
    cdef bint expired
    cdef int64_t grown = 0
    cdef Item *held
    spin_lock(&change.key.bucket.stripe.lock)
    held = find_live_locked(store, &change.key, &now, &expired)
    decide(store, change, NULL if expired else held, now, &decision)
    if decision.act == ACT_PUT:
        grown = credit_cost(change.key.count, decision.value_bytes)
        if held != NULL:
            grown -= credit_cost(held.key_bytes, held.value_bytes)
    spin_unlock(&change.key.bucket.stripe.lock)
    return max(grown, <int64_t>0)


cdef inline bint take_credit(Store *store, Change *change, Attempt *attempt, uint64_t room) noexcept nogil:
    """Credit at each backup of the bucket. Where there is not enough for all that the item takes, for what it grows by: an item
    can be overwritten where its backup is full. False, with the refusal, where it could not be had. Blocks."""
    cdef uint64_t left = attempt.points
    attempt.credit = credit_cost(change.key.count, room)
    if credit_take(&store.ring, attempt.points, attempt.credit):
        return True
    attempt.credit = growth_of(store, change)
    if not attempt.credit or credit_take(&store.ring, attempt.points, attempt.credit):
        return True
    end_batch(store, change.batch)
    while left:
        if not make_credit(store, lowest64(left), attempt.credit, change.deadline_ns, &change.outcome):
            credit_give(&store.ring, attempt.points & ~left, attempt.credit)
            return False
        left &= left - 1
    return True


cdef inline bint make_credit(
    Store *store, uint32_t number, int64_t count, int64_t deadline_ns, Outcome *refusal
) noexcept nogil:
    """Set credit aside at a point that has too little: where much is under way its answer is waited for; else items that the
    backup holds are evicted. In debt so many as count twice what the change takes: the rest of it is the housekeeper's.
    (`credit`, invariant 1.) False with the refusal. Blocks."""
    cdef Credit *credit = &store.ring.credits[number]
    cdef int64_t until_ns = min(deadline_ns, monotonic_ns() + CREDIT_WAIT_NS), evicted = 0, done
    cdef int64_t victims_max = VICTIMS_MAX + count // CREDIT_ITEM_BYTES, victims = 0
    while victims < victims_max:
        if credit_try(&store.ring, number, count):
            return True
        if load8(&store.ring.paused):
            refuse(refusal, ST_PAUSED, WHY_PAUSED)
            return False
        if renewal_comes(credit) and not (store.evict and is_scarce(credit)) and await_renewal(store, number, until_ns):
            continue
        if not store.evict:
            break
        if credit_debt(credit) and evicted >= 2 * count:
            add64(&credit.spent, count)
            return True
        done = evict_for_point(store, number, deadline_ns, refusal)
        if done < 0:
            return False
        if not done:
            break
        evicted += done
        victims += 1
    add64(&store.ring.credit_refused, 1)
    if credit_ask(&store.ring, number):
        windows_push(&store.windows)
    refuse(refusal, ST_NO_ROOM, WHY_PEER_FULL if store.evict else WHY_PEER_FULL_NO_EVICTION)
    refusal.number, refusal.other = number, max(<int64_t>0, signed64(&credit.allowance) - signed64(&credit.spent))
    return False


cdef inline bint await_renewal(Store *store, uint32_t number, int64_t until_ns) noexcept nogil:
    """Wait until a peer has said anew what it lends, by a thread that sends what it waits for and takes in the answer itself, where
    it can. False where that did not come in time. Blocks."""
    cdef Credit *credit = &store.ring.credits[number]
    cdef int64_t renewals = signed64(&credit.renewals)
    cdef Window *window
    cdef pollfd watched
    note_wait()
    while monotonic_ns() < until_ns and not load8(&store.ring.waits_ended) and not load8(&store.ring.failed):
        credit_ask(&store.ring, number)
        windows_push(&store.windows)
        window = window_at(&store.windows, number)
        watched.fd, watched.events = window_receive(window) if window != NULL else -1, POLLIN
        if signed64(&credit.renewals) != renewals:
            return True
        poll(&watched, 1, CREDIT_LOOK_MS)
    return False


cdef inline bint prepare(Store *store, Change *change, Attempt *attempt, uint64_t room, bint expires) noexcept nogil:
    """What must be had before the lock: room in the stream, memory, and the item filled as far as it is known (invariant 3).
    False, with the refusal in the outcome, where it could not be had. Blocks."""
    cdef Memory *memory = &store.memory
    cdef bint refused = False
    attempt.reserved = <int64_t>(RECORD_HEADER_BYTES + change.key.count + room)
    if not take_room(store, change, attempt.reserved):
        return False
    attempt.points = links_of(load64(&change.key.bucket.points))
    if change.rule != RULE_DELETE:
        if attempt.points and not take_credit(store, change, attempt, room):
            ring_give(&store.ring, attempt.reserved)
            return False
        attempt.made = take_memory(store, change, room, expires, &refused)
        if refused:
            credit_give(&store.ring, attempt.points, attempt.credit)
            ring_give(&store.ring, attempt.reserved)
            return False
    if attempt.made != NULL:
        name_item(attempt.made, change.key.bucket.number, change.key.hashed, change.used_ms)
        body_write(memory, attempt.made, 0, change.key.at, change.key.count)
        if brings_value(change.rule):
            body_write(memory, attempt.made, change.key.count, change.value, change.value_bytes)
    if take_wait():
        change.key.clock_ms = now_ms(store)
        note_wait()  # whoever serves the batch looks at its clock, too
    return True


cdef inline void change_locked(Store *store, Change *change, Attempt *attempt) noexcept nogil:
    """Look, decide, and do it. The outcome says what came of it, unless more room is `needed`."""
    cdef Bucket *bucket = change.key.bucket
    cdef Decision decision
    cdef bint expired
    cdef uint64_t now
    cdef Item *held = find_live_locked(store, &change.key, &now, &expired)
    cdef Item *live = NULL if expired else held
    decide(store, change, live, now, &decision)
    if decision.act == ACT_PUT:
        attempt.wrote = put_locked(store, change, &decision, held, &attempt.made, attempt, now)
        if not attempt.wrote:
            attempt.needed, attempt.expires = <int64_t>decision.value_bytes, decision.expires_at_ms > 0
            return
    elif decision.act == ACT_REMOVE or expired:
        attempt.recorded = True
        if remove_locked(
            store, bucket, held, CAUSE_EXPIRED if expired else CAUSE_DELETED, now, &attempt.reserved, &attempt.placed
        ):
            attempt.gone = held
    if attempt.recorded and attempt.placed.position == POSITION_NONE:
        attempt.wrote = False
        refuse(&change.outcome, ST_STOPPING, WHY_STREAM_FAILED)
        return
    if decision.act == ACT_REFUSE:
        revealing_locked(store, change, &decision, live)
        return
    refuse(&change.outcome, ST_OK, WHY_NOTHING)
    change.outcome.version = bucket.sequence
    change.outcome.wait.points, change.outcome.wait.position = bucket.points, attempt.placed.position
    change.outcome.number = decision.number
    if attempt.wrote:
        tell_item(store, change, change.stored)
        give_made_value_locked(store, &attempt.placed, change)


cdef inline void tidy(Store *store, const Change *change, Attempt *attempt) noexcept nogil:
    """After the lock: complete the record, give back what was not used."""
    if attempt.gone != NULL:
        give_key(store, &attempt.placed, change.key.at, change.key.count, KIND_REMOVE)
        item_free(&store.memory, attempt.gone)
    elif attempt.wrote:
        give_record(store, &attempt.placed, change, change.value, change.value_bytes)
    if attempt.points:
        credit_give(&store.ring, attempt.points, attempt.credit - attempt.credit_used)
    change.batch.room += attempt.reserved
    give_room(store, change.batch, room_ahead(store))
    if attempt.made != NULL:
        keep_spare(&store.memory, change, attempt.made)


cdef inline int64_t try_change(Store *store, Change *change, uint64_t room, bint *expires) noexcept nogil:
    """One try. -1: it is done, or refused, as the outcome says; else the room that turned out to be needed."""
    cdef Bucket *bucket = change.key.bucket
    cdef Attempt attempt
    memset(&attempt, 0, sizeof(Attempt))
    attempt.needed = -1
    if not prepare(store, change, &attempt, room, expires[0]):
        return -1
    spin_lock(&bucket.stripe.lock)
    if bucket.state != PRIMARY:
        not_primary(bucket, &change.outcome)
    elif load8(&store.ring.paused):  # invariant 4 of `removal`
        refuse(&change.outcome, ST_PAUSED, WHY_PAUSED)
    elif bucket.sequence & COUNTER_MAX == COUNTER_MAX:
        refuse(&change.outcome, ST_BUSY, WHY_COUNTER)
        change.outcome.number = bucket.number
    elif links_of(bucket.points) & ~attempt.points:
        attempt.needed, attempt.expires = <int64_t>room, expires[0]  # a backup more, whose credit was not asked for
    else:
        change_locked(store, change, &attempt)
    spin_unlock(&bucket.stripe.lock)
    tidy(store, change, &attempt)
    expires[0] = attempt.expires
    return attempt.needed


cdef inline void keep_spare(Memory *memory, const Change *change, Item *item) noexcept nogil:
    """What is over: kept for this thread's next change until its batch ends, because writes of one size follow each other."""
    if item.state & LARGE:
        item_free(memory, item)
        return
    drop_spare(memory, change.batch)
    change.batch.spare = item


cdef inline void drop_spare(Memory *memory, Batch *batch) noexcept nogil:
    if batch.spare != NULL:
        item_free(memory, batch.spare)
        batch.spare = NULL


cdef inline void end_batch(Store *store, Batch *batch) noexcept nogil:
    """Give back what the batch has over."""
    drop_spare(&store.memory, batch)
    give_room(store, batch, 0)


cdef inline void make_change(Store *store, Change *change) noexcept nogil:
    """Change one key as its rule says. The outcome says what came of it. Blocks for room, never under a lock."""
    cdef bint expires = False
    cdef uint64_t room = room_wanted(store, change, &expires)
    cdef int64_t needed
    cdef int tried = 0
    while tried < TRIES_MAX:
        needed = try_change(store, change, room, &expires)
        if needed < 0:
            if change.outcome.why != WHY_PAUSED:
                return
            end_batch(store, change.batch)  # nobody waits while it has room
            if not await_resumed(store, change.key.bucket, change.deadline_ns, &change.outcome):
                return
            continue
        room = <uint64_t>needed
        tried += 1
    refuse(&change.outcome, ST_BUSY, WHY_KEPT_CHANGING)
