"""When items expire: a hierarchical timing wheel for each stripe.

What it is: Varghese and Lauck's scheme 7 ("Hashed and hierarchical timing wheels", 1987), in the shape that tokio's timer has:
8 levels of 64 slots, a slot of level n standing for 64**n ms; an item lies at the level of the highest digit (base 64) in
which its time differs from the wheel's. Slots are lists through the items themselves. What is due lies in a list of its own,
and what is due in buckets that are not this node's to expire in another, until they are.
Which thread runs it: whoever holds the stripe's lock.
What it owns: the links in the items. What it must not know: buckets, records, why an item goes.

Invariants:
1. An item with EXPIRES that is in a table is in exactly one list of its stripe's wheel.
2. An item in a slot expires after `elapsed`; what is due at `elapsed` or before is in DUE or PARKED.
"""

from libc.stdint cimport uint32_t, uint64_t

from rcache.engine.native.items cimport Expiry, Item, expiry_of
from rcache.engine.native.memory cimport Memory, chunk_at, handle_of
from rcache.engine.native.system cimport highest64, lowest64

cdef enum:
    LEVELS = 8
    LEVEL_BITS = 6
    SLOTS = 64
    DUE = 512      # LEVELS * SLOTS
    PARKED = 513
    LISTS = 514
    # What the levels reach: the year 10889. A record from elsewhere may claim more.
    AT_MS_MAX = 281474976710655LL
    # In an item's `prev`: it is the first of the list whose number the other bits are.
    IS_HEAD = 0x80000000U


cdef struct Wheel:
    uint64_t elapsed
    uint64_t occupied[LEVELS]
    uint32_t heads[LISTS]


cdef inline void wheel_push(const Memory *memory, Wheel *wheel, Item *item, uint32_t place) noexcept nogil:
    cdef Expiry *links = expiry_of(item)
    links.prev = <uint32_t>IS_HEAD | place
    links.next = wheel.heads[place]
    if links.next:
        expiry_of(<Item *>chunk_at(memory, links.next)).prev = handle_of(memory, item)
    wheel.heads[place] = handle_of(memory, item)
    if place < DUE:
        wheel.occupied[place // SLOTS] |= <uint64_t>1 << (place % SLOTS)


cdef inline void wheel_add(const Memory *memory, Wheel *wheel, Item *item) noexcept nogil:
    """Put an item where its time belongs (invariant 2)."""
    cdef uint64_t at_ms = min(expiry_of(item).at_ms, <uint64_t>AT_MS_MAX)
    cdef uint32_t level
    if at_ms <= wheel.elapsed:
        wheel_push(memory, wheel, item, DUE)
        return
    level = min(<uint32_t>highest64((at_ms ^ wheel.elapsed) | (SLOTS - 1)) // LEVEL_BITS, <uint32_t>(LEVELS - 1))
    wheel_push(memory, wheel, item, level * SLOTS + <uint32_t>((at_ms >> (level * LEVEL_BITS)) & (SLOTS - 1)))


cdef inline void wheel_take(const Memory *memory, Wheel *wheel, Item *item) noexcept nogil:
    """Out of whichever list it is in."""
    cdef Expiry *links = expiry_of(item)
    cdef uint32_t place
    if links.next:
        expiry_of(<Item *>chunk_at(memory, links.next)).prev = links.prev
    if not links.prev & <uint32_t>IS_HEAD:
        expiry_of(<Item *>chunk_at(memory, links.prev)).next = links.next
        return
    place = links.prev & ~<uint32_t>IS_HEAD
    wheel.heads[place] = links.next
    if place < DUE and not links.next:
        wheel.occupied[place // SLOTS] &= ~(<uint64_t>1 << (place % SLOTS))


cdef inline void wheel_moved(const Memory *memory, Wheel *wheel, Item *item) noexcept nogil:
    """An item lies in another chunk now, with the links it had: its neighbours are told."""
    cdef Expiry *links = expiry_of(item)
    cdef uint32_t handle = handle_of(memory, item)
    if links.next:
        expiry_of(<Item *>chunk_at(memory, links.next)).prev = handle
    if links.prev & <uint32_t>IS_HEAD:
        wheel.heads[links.prev & ~<uint32_t>IS_HEAD] = handle
    else:
        expiry_of(<Item *>chunk_at(memory, links.prev)).next = handle


cdef inline void wheel_turn(const Memory *memory, Wheel *wheel, uint64_t now_ms) noexcept nogil:
    """Bring the wheel to `now_ms`: what is due goes to DUE. Each item is touched once for each level it comes down."""
    cdef uint64_t ahead, starts, span
    cdef uint32_t level, slot, handle
    cdef Item *item
    while wheel.elapsed < now_ms:
        level = 0
        while level < LEVELS and not wheel.occupied[level]:
            level += 1
        if level == LEVELS:
            break
        slot = lowest64(wheel.occupied[level])
        span = <uint64_t>1 << (level * LEVEL_BITS)
        ahead = wheel.elapsed & ~(span * SLOTS - 1)
        starts = ahead + slot * span
        if starts > now_ms:
            break
        wheel.elapsed = max(wheel.elapsed, starts)
        while wheel.heads[level * SLOTS + slot]:
            handle = wheel.heads[level * SLOTS + slot]
            item = <Item *>chunk_at(memory, handle)
            wheel_take(memory, wheel, item)
            wheel_add(memory, wheel, item)
    wheel.elapsed = max(wheel.elapsed, now_ms)


cdef inline void wheel_unpark(const Memory *memory, Wheel *wheel, uint64_t bucket) noexcept nogil:
    """A bucket is this node's to expire in now: what was parked of it is due."""
    cdef uint32_t handle = wheel.heads[PARKED]
    cdef Item *item
    while handle:
        item = <Item *>chunk_at(memory, handle)
        handle = expiry_of(item).next
        if item.home >> 32 == bucket:
            wheel_take(memory, wheel, item)
            wheel_push(memory, wheel, item, DUE)
