"""The table of one bucket: from a key's hash to its item, growing and shrinking one bin at a time.

What it is: linear hashing (Litwin, "Linear hashing: a new tool for file and table addressing", 1980). A bin is one cache line
with up to 12 items: a byte of hash and a handle for each, so a look-up touches the bin and then, nearly always, the one item
it is after. Bins lie in chunks of the table classes, within the memory limit.
Which thread runs it: whoever holds the stripe's lock.
What it owns: its bins. What it must not know: versions, expiry, the change stream.

Why not a table that doubles: growing one of a bucket with ten thousand items would hold its stripe for a millisecond.

Invariants:
1. An item is in the bin that its hash says, or in a bin chained to that; entries fill a chain from its front without a hole.
2. 2**level <= bins < 2**(level + 1).
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memset

from rcache.engine.native.items cimport Item, hash_of, key_is
from rcache.engine.native.memory cimport GROW, GROW_FORCED, Memory, chunk_alloc, chunk_at, chunk_free, handle_of
from rcache.engine.native.system cimport highest64, lowest32, match12

cdef enum:
    BIN_ENTRIES = 12
    BIN_BYTES = 64
    # Seven in twelve: most bins of a table that is half way through its growth still have no chain.
    ITEMS_PER_BIN = 7
    # Fewer than two in a bin: the last bin is merged into the one it was split from.
    ITEMS_PER_BIN_MIN = 2
    # Segments double up to this many bins, 4 KiB; then each has so many.
    SEGMENT_BINS = 64
    SEGMENTS_DOUBLING = 6
    TAG_SHIFT = 24
    BINS_MAX = 16777216


cdef struct Bin:
    uint8_t tags[BIN_ENTRIES]
    uint32_t more
    uint32_t entries[BIN_ENTRIES]


cdef struct Table:
    Bin first
    uint32_t *segments
    uint32_t segment_room
    uint32_t bins
    uint32_t level
    uint32_t count


cdef inline void table_init(Table *table) noexcept nogil:
    memset(table, 0, sizeof(Table))
    table.bins = 1


cdef inline uint32_t segment_of(uint32_t number) noexcept nogil:
    return highest64(number) if number < SEGMENT_BINS else SEGMENTS_DOUBLING + (number - SEGMENT_BINS) // SEGMENT_BINS


cdef inline Bin *bin_at(const Memory *memory, Table *table, uint32_t number) noexcept nogil:
    cdef uint32_t segment
    if number == 0:
        return &table.first
    segment = segment_of(number)
    cdef Bin *bins = <Bin *>chunk_at(memory, table.segments[segment])
    return bins + ((number - (<uint32_t>1 << segment)) if number < SEGMENT_BINS else number % SEGMENT_BINS)


cdef inline uint32_t bin_number(const Table *table, uint32_t hashed) noexcept nogil:
    """Which bin a hash belongs to (invariants 1 and 2)."""
    cdef uint32_t number = hashed & ((<uint32_t>2 << table.level) - 1)
    return number if number < table.bins else number & ((<uint32_t>1 << table.level) - 1)


cdef inline Item *table_find(
    const Memory *memory, Table *table, uint32_t hashed, const uint8_t *key, uint32_t key_bytes
) noexcept nogil:
    """The item under a key, or NULL."""
    cdef uint32_t *entry = table_look(memory, table, hashed, key, key_bytes)
    return <Item *>chunk_at(memory, entry[0]) if entry != NULL else NULL


cdef inline uint32_t *table_look(
    const Memory *memory, Table *table, uint32_t hashed, const uint8_t *key, uint32_t key_bytes
) noexcept nogil:
    """Where the item under a key stands in its chain, or NULL."""
    cdef Bin *held = bin_at(memory, table, bin_number(table, hashed))
    cdef uint8_t tag = <uint8_t>(hashed >> TAG_SHIFT)
    cdef uint32_t found
    cdef Item *item
    cdef int place
    while True:
        found = match12(held.tags, tag)
        while found:
            place = lowest32(found)
            found &= found - 1
            if held.entries[place]:
                item = <Item *>chunk_at(memory, held.entries[place])
                if hash_of(item) == hashed and key_is(memory, item, key, key_bytes):
                    return &held.entries[place]
        if not held.more:
            return NULL
        held = <Bin *>chunk_at(memory, held.more)


cdef inline uint32_t *table_entry(const Memory *memory, Table *table, uint32_t hashed, uint32_t handle) noexcept nogil:
    """Where this very item stands in its chain, or NULL if it is not in the table."""
    cdef Bin *held = bin_at(memory, table, bin_number(table, hashed))
    cdef int place
    while True:
        for place in range(BIN_ENTRIES):
            if held.entries[place] == handle:
                return &held.entries[place]
        if not held.more:
            return NULL
        held = <Bin *>chunk_at(memory, held.more)


cdef inline bint table_reserve(Memory *memory, Table *table, uint32_t hashed) noexcept nogil:
    """Make sure that an insertion of this hash finds a place. False if there is no memory at all for one more bin."""
    return chain_prepare(memory, bin_at(memory, table, bin_number(table, hashed)), 1)


cdef inline void bin_insert(const Memory *memory, Bin *held, uint32_t hashed, uint32_t handle) noexcept nogil:
    """Into the first free place of a chain that has one (invariant 1)."""
    cdef int place = 0
    while held.entries[BIN_ENTRIES - 1]:
        held = <Bin *>chunk_at(memory, held.more)
    while held.entries[place]:
        place += 1
    held.tags[place] = <uint8_t>(hashed >> TAG_SHIFT)
    held.entries[place] = handle


cdef inline void bin_remove(Memory *memory, Bin *held, uint32_t handle) noexcept nogil:
    """Out of its chain: the last entry takes its place, and a chained bin that is empty then is let go."""
    cdef Bin *found = NULL
    cdef Bin *before = NULL
    cdef int place, at = 0
    while True:
        if found == NULL:
            for place in range(BIN_ENTRIES):
                if held.entries[place] == handle:
                    found, at = held, place
                    break
        if not held.more or not (<Bin *>chunk_at(memory, held.more)).entries[0]:
            break
        before = held
        held = <Bin *>chunk_at(memory, held.more)
    place = BIN_ENTRIES - 1
    while not held.entries[place]:
        place -= 1
    found.tags[at] = held.tags[place]
    found.entries[at] = held.entries[place]
    held.entries[place] = 0
    if held.more:  # empty: reserved and not used
        chunk_free(memory, chunk_at(memory, held.more), BIN_BYTES)
        held.more = 0
    if place == 0 and before != NULL:
        before.more = 0
        chunk_free(memory, held, BIN_BYTES)


cdef inline void table_insert(Memory *memory, Table *table, uint32_t hashed, uint32_t handle) noexcept nogil:
    """Add an item whose place was reserved; then grow, if it is time and there is memory."""
    bin_insert(memory, bin_at(memory, table, bin_number(table, hashed)), hashed, handle)
    table.count += 1
    if table.count > <uint64_t>table.bins * ITEMS_PER_BIN:
        table_split(memory, table)


cdef inline void table_remove(Memory *memory, Table *table, uint32_t hashed, uint32_t handle) noexcept nogil:
    """Take an item out that is there; then shrink, if it is time."""
    bin_remove(memory, bin_at(memory, table, bin_number(table, hashed)), handle)
    table.count -= 1
    if table.bins > 1 and table.count < <uint64_t>table.bins * ITEMS_PER_BIN_MIN:
        table_merge(memory, table)


cdef inline bint segment_make(Memory *memory, Table *table, uint32_t segment) noexcept nogil:
    """The chunk of a segment that is due. False if there is no memory for it: the table then stays as it is for now."""
    cdef uint32_t size_class = min(segment, <uint32_t>SEGMENTS_DOUBLING)
    cdef uint32_t *longer
    cdef void *made
    if segment >= table.segment_room:
        longer = <uint32_t *>realloc(table.segments, (table.segment_room * 2 + 8) * sizeof(uint32_t))
        if longer == NULL:
            return False
        table.segments = longer
        table.segment_room = table.segment_room * 2 + 8
    made = chunk_alloc(memory, memory.class_count + size_class, BIN_BYTES << size_class, GROW)
    if made == NULL:
        return False
    memset(made, 0, BIN_BYTES << size_class)
    table.segments[segment] = handle_of(memory, made)
    return True


cdef inline bint starts_segment(uint32_t number) noexcept nogil:
    return number & (number - 1) == 0 if number < SEGMENT_BINS else number % SEGMENT_BINS == 0


cdef inline void table_split(Memory *memory, Table *table) noexcept nogil:
    """Add one bin, and move there what belongs there of the bin it is split from. Not done where memory is short."""
    cdef uint32_t made = table.bins, bit
    cdef Bin *source
    cdef Bin *target
    cdef Bin *held
    cdef Item *item
    cdef int place = 0
    if made >= BINS_MAX or (starts_segment(made) and not segment_make(memory, table, segment_of(made))):
        return
    bit = <uint32_t>1 << highest64(made)
    source = held = bin_at(memory, table, made - bit)
    target = bin_at(memory, table, made)
    if not chain_prepare(memory, target, chain_count(memory, source, bit)):
        if starts_segment(made):
            segment_drop(memory, table, segment_of(made))
        return
    while held.entries[place]:
        item = <Item *>chunk_at(memory, held.entries[place])
        if hash_of(item) & bit:
            bin_insert(memory, target, hash_of(item), held.entries[place])
            bin_remove(memory, source, held.entries[place])  # what was last is here now, or nothing
            if place == 0 and held != source and not chain_has(memory, source, held):
                break
            continue
        place += 1
        if place == BIN_ENTRIES:
            if not held.more:
                break
            held = <Bin *>chunk_at(memory, held.more)
            place = 0
    table.bins += 1
    table.level = highest64(table.bins)


cdef inline uint64_t chain_count(const Memory *memory, Bin *held, uint32_t bit) noexcept nogil:
    """Items of a chain whose hash has this bit; with 0, all."""
    cdef uint64_t count = 0
    cdef int place
    while True:
        for place in range(BIN_ENTRIES):
            if held.entries[place]:
                count += not bit or (hash_of(<Item *>chunk_at(memory, held.entries[place])) & bit) != 0
        if not held.more:
            return count
        held = <Bin *>chunk_at(memory, held.more)


cdef inline bint chain_prepare(Memory *memory, Bin *held, uint64_t wanted) noexcept nogil:
    """Make room in a chain for so many more items, all or nothing. False where there is no memory for it."""
    cdef uint64_t room = 0
    cdef int place
    cdef Bin *last
    cdef Bin *made
    while True:
        for place in range(BIN_ENTRIES):
            room += held.entries[place] == 0
        if not held.more:
            break
        held = <Bin *>chunk_at(memory, held.more)
    last = held
    while room < wanted:
        made = <Bin *>chunk_alloc(memory, memory.class_count, BIN_BYTES, GROW_FORCED)
        if made == NULL:
            chain_cut(memory, last)
            return False
        memset(made, 0, BIN_BYTES)
        held.more = handle_of(memory, made)
        held = made
        room += BIN_ENTRIES
    return True


cdef inline void chain_cut(Memory *memory, Bin *last) noexcept nogil:
    """Let go of the empty bins behind this one."""
    cdef Bin *gone
    while last.more:
        gone = <Bin *>chunk_at(memory, last.more)
        last.more = gone.more
        chunk_free(memory, gone, BIN_BYTES)


cdef inline bint chain_has(const Memory *memory, Bin *chain, const Bin *held) noexcept nogil:
    while chain != held:
        if not chain.more:
            return False
        chain = <Bin *>chunk_at(memory, chain.more)
    return True


cdef inline void table_merge(Memory *memory, Table *table) noexcept nogil:
    """Undo the last split. Not done where memory is short."""
    cdef uint32_t last = table.bins - 1, handle
    cdef Bin *source = bin_at(memory, table, last)
    cdef Bin *target = bin_at(memory, table, last - (<uint32_t>1 << highest64(last)))
    if not chain_prepare(memory, target, chain_count(memory, source, 0)):
        return
    while source.entries[0]:
        handle = source.entries[0]
        bin_insert(memory, target, hash_of(<Item *>chunk_at(memory, handle)), handle)
        bin_remove(memory, source, handle)
    chain_cut(memory, source)
    table.bins -= 1
    table.level = highest64(table.bins)
    if starts_segment(last):
        segment_drop(memory, table, segment_of(last))


cdef inline void segment_drop(Memory *memory, Table *table, uint32_t segment) noexcept nogil:
    chunk_free(memory, chunk_at(memory, table.segments[segment]), BIN_BYTES << min(segment, <uint32_t>SEGMENTS_DOUBLING))


cdef inline void table_close(Memory *memory, Table *table) noexcept nogil:
    """The directory of an empty table is let go; its bins went with the items."""
    free(table.segments)
    table.segments = NULL
    table.segment_room = 0
