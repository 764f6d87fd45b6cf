"""Items: how key, value and what belongs to them lie in a chunk.

What it is: the layout of an item, and reading and writing its body (the key, then the value). An item up to half a page is one
chunk. Of a larger one the chunk holds the header and the first part of the body; the rest fills whole pages.
Which thread runs it: the maker of an item until it is linked; after that whoever holds its stripe's lock.
What it owns: nothing; the memory is `memory`'s. What it must not know: buckets, tables.

Layout: 32 bytes as in `Item`; if EXPIRES 16 bytes of `Expiry`; if LARGE 8 bytes of `Extent`; then the body.

`home`, `used_ms` and `state` are also read without a lock, by who looks for an item to evict (`hint8` and its kin; so they are
stored atomically). What is read so is a hint only: under the stripe's lock the bucket's table is asked whether that item is
there.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

from rcache.engine.native.memory cimport (
    GROW, GROW_FORCED, GROW_NOT, NO_PAGE, PAGE_LARGE, Memory, SizeClass, chunk_alloc, chunk_free, handle_of, page_start,
    pool_give, pool_take,
)
from rcache.engine.native.system cimport pthread_mutex_lock, pthread_mutex_unlock, same_bytes, store8, store32, unpoison

cdef enum:
    ITEM_BYTES = 32
    EXPIRY_BYTES = 16
    EXTENT_BYTES = 8

cdef enum ItemState:
    FREE = 0
    HELD = 1      # somebody makes it
    LIVE = 2      # it is in its bucket's table
    EXPIRES = 4
    LARGE = 8


cdef struct Item:
    uint64_t version
    uint64_t home         # the bucket above the 32 bits of its hash
    uint32_t used_ms      # when it was used last, on a clock of 32 bits
    uint32_t flags
    uint32_t value_bytes
    uint16_t key_bytes
    uint8_t size_class
    uint8_t state


cdef struct Expiry:
    uint64_t at_ms
    uint32_t prev
    uint32_t next


cdef struct Extent:
    uint32_t first_page
    uint32_t page_count


cdef inline uint32_t hash_of(const Item *item) noexcept nogil:
    return <uint32_t>item.home


cdef inline uint32_t body_offset(uint8_t state) noexcept nogil:
    return ITEM_BYTES + (EXPIRY_BYTES if state & EXPIRES else 0) + (EXTENT_BYTES if state & LARGE else 0)


cdef inline uint8_t *body_of(Item *item) noexcept nogil:
    return <uint8_t *>item + body_offset(item.state)


cdef inline Expiry *expiry_of(Item *item) noexcept nogil:
    return <Expiry *>(<uint8_t *>item + ITEM_BYTES)


cdef inline uint64_t expires_at(Item *item) noexcept nogil:
    """ms since 1970, 0: never."""
    return expiry_of(item).at_ms if item.state & EXPIRES else 0


cdef inline Extent *extent_of(Item *item) noexcept nogil:
    return <Extent *>(<uint8_t *>item + ITEM_BYTES + (EXPIRY_BYTES if item.state & EXPIRES else 0))


cdef inline uint64_t item_total(const Memory *memory, uint64_t key_bytes, uint64_t value_bytes, bint expires) noexcept nogil:
    """What an item takes beside the rest of its chunk, in bytes; of a large one with its pages as they are."""
    cdef uint64_t offset = ITEM_BYTES + (EXPIRY_BYTES if expires else 0), body = key_bytes + value_bytes
    if offset + body <= memory.chunk_bytes_max:
        return offset + body
    return offset + EXTENT_BYTES + body


cdef inline uint32_t head_part(const Memory *memory, const Item *item, uint32_t page_count) noexcept nogil:
    """How much of a large item's body lies in its chunk."""
    cdef uint64_t body = <uint64_t>item.key_bytes + item.value_bytes
    cdef uint64_t paged = <uint64_t>page_count << memory.page_shift
    return <uint32_t>(body - paged) if body > paged else 0


cdef inline Item *item_alloc(Memory *memory, uint32_t key_bytes, uint64_t value_bytes, bint expires, bint force) noexcept nogil:
    """Room for an item, HELD, with its lengths set; or NULL."""
    cdef uint8_t state = HELD | (EXPIRES if expires else 0)
    cdef uint64_t body = key_bytes + value_bytes, pages = 0, first = body
    cdef Item *item
    cdef uint8_t number
    if body_offset(state) + body > memory.chunk_bytes_max:
        state |= LARGE
        pages = body >> memory.page_shift
        first = body & (memory.page_bytes - 1)
        if body_offset(state) + first > memory.chunk_bytes_max:
            pages += 1
            first = 0
    cdef uint32_t asked = <uint32_t>(body_offset(state) + first)
    number = memory.class_of_size[(asked + (1 << memory.handle_shift) - 1) >> memory.handle_shift]
    item = <Item *>chunk_alloc(memory, number, asked, GROW_FORCED if force else GROW)
    if item == NULL:
        return NULL
    item.size_class = number
    item.key_bytes = <uint16_t>key_bytes
    item.value_bytes = <uint32_t>value_bytes
    store8(&item.state, state)
    if state & LARGE and not extent_alloc(memory, item, <uint32_t>pages, force):
        store8(&item.state, FREE)
        chunk_free(memory, item, asked)
        return NULL
    return item


cdef inline Item *item_alloc_larger(Memory *memory, uint32_t key_bytes, uint64_t value_bytes, bint expires) noexcept nogil:
    """The last resort before a refusal: any free chunk that is large enough, however much of it is wasted."""
    cdef Item *item = item_alloc(memory, key_bytes, value_bytes, expires, False)
    cdef uint32_t asked = <uint32_t>item_total(memory, key_bytes, value_bytes, expires), number
    if item != NULL or item_total(memory, key_bytes, value_bytes, expires) > memory.chunk_bytes_max:
        return item
    cdef uint32_t fitting = memory.class_of_size[(asked + (1 << memory.handle_shift) - 1) >> memory.handle_shift]
    for number in range(fitting + 1, memory.class_count):
        item = <Item *>chunk_alloc(memory, number, asked, GROW_NOT)
        if item != NULL:
            item.size_class = <uint8_t>number
            item.key_bytes, item.value_bytes = <uint16_t>key_bytes, <uint32_t>value_bytes
            store8(&item.state, HELD | (EXPIRES if expires else 0))
            return item
    return NULL


cdef inline bint extent_alloc(Memory *memory, Item *item, uint32_t count, bint force) noexcept nogil:
    """Pages for a large item, all or none."""
    cdef Extent *extent = extent_of(item)
    cdef uint32_t page, taken
    extent.first_page = NO_PAGE
    extent.page_count = count
    for taken in range(count):
        page = pool_take(memory, force)
        if page == NO_PAGE:
            pages_give(memory, extent.first_page)
            return False
        memory.pages[page].next = extent.first_page
        unpoison(page_start(memory, page), memory.page_bytes)
        store32(&memory.pages[page].owner, handle_of(memory, item))
        store8(&memory.pages[page].state, PAGE_LARGE)
        extent.first_page = page
    pthread_mutex_lock(&memory.pool)
    memory.large_pages += count
    memory.large_asked += <uint64_t>item.key_bytes + item.value_bytes - head_part(memory, item, count)
    pthread_mutex_unlock(&memory.pool)
    return True


cdef inline Item *item_reuse(
    Memory *memory, Item *spare, uint32_t key_bytes, uint64_t value_bytes, bint expires
) noexcept nogil:
    """An item in one chunk that is in no table, made over into room for another; or NULL if its chunk is of another class."""
    cdef uint32_t before = body_offset(spare.state) + spare.key_bytes + spare.value_bytes
    cdef uint64_t asked = ITEM_BYTES + (EXPIRY_BYTES if expires else 0) + key_bytes + value_bytes
    cdef SizeClass *owner = &memory.classes[spare.size_class]
    if asked > memory.chunk_bytes_max or memory.class_of_size[
            (asked + (1 << memory.handle_shift) - 1) >> memory.handle_shift] != spare.size_class:
        return NULL
    if asked != before:
        pthread_mutex_lock(&owner.lock)
        owner.asked += asked - before
        pthread_mutex_unlock(&owner.lock)
    spare.key_bytes, spare.value_bytes = <uint16_t>key_bytes, <uint32_t>value_bytes
    store8(&spare.state, HELD | (EXPIRES if expires else 0))
    return spare


cdef inline void pages_give(Memory *memory, uint32_t page) noexcept nogil:
    cdef uint32_t following
    while page != NO_PAGE:
        following = memory.pages[page].next
        pool_give(memory, page)
        page = following


cdef inline void item_free(Memory *memory, Item *item) noexcept nogil:
    """Give back an item that is in no table."""
    cdef uint64_t body = <uint64_t>item.key_bytes + item.value_bytes
    cdef uint32_t asked = body_offset(item.state), first = <uint32_t>body
    cdef Extent extent
    if item.state & LARGE:
        extent = extent_of(item)[0]
        first = head_part(memory, item, extent.page_count)
        pages_give(memory, extent.first_page)
        pthread_mutex_lock(&memory.pool)
        memory.large_pages -= extent.page_count
        memory.large_asked -= body - first
        pthread_mutex_unlock(&memory.pool)
    store8(&item.state, FREE)
    chunk_free(memory, item, asked + first)


cdef inline uint64_t item_cost(const Memory *memory, Item *item) noexcept nogil:
    """The memory an item takes, in bytes: its chunk and its pages."""
    cdef uint64_t cost = memory.classes[item.size_class].chunk_bytes
    if item.state & LARGE:
        cost += <uint64_t>extent_of(item).page_count << memory.page_shift
    return cost


# --- the body

cdef struct Piece:
    uint8_t *at
    uint64_t count


cdef inline Piece body_piece(const Memory *memory, Item *item, uint64_t offset) noexcept nogil:
    """The run of bytes in one place that begins at `offset` of the body."""
    cdef Piece piece
    cdef Extent *extent
    cdef uint64_t first, skipped
    cdef uint32_t page
    if not item.state & LARGE:
        piece.at = body_of(item) + offset
        piece.count = <uint64_t>item.key_bytes + item.value_bytes - offset
        return piece
    extent = extent_of(item)
    first = head_part(memory, item, extent.page_count)
    if offset < first:
        piece.at = body_of(item) + offset
        piece.count = first - offset
        return piece
    page = extent.first_page
    for skipped in range((offset - first) >> memory.page_shift):
        page = memory.pages[page].next
    skipped = (offset - first) & (memory.page_bytes - 1)
    piece.at = page_start(memory, page) + skipped
    piece.count = memory.page_bytes - skipped
    return piece


cdef inline void body_write(
    const Memory *memory, Item *item, uint64_t offset, const uint8_t *source, uint64_t count
) noexcept nogil:
    cdef Piece piece
    while count:
        piece = body_piece(memory, item, offset)
        piece.count = min(piece.count, count)
        memcpy(piece.at, source, piece.count)
        source += piece.count
        offset += piece.count
        count -= piece.count


cdef inline void body_read(const Memory *memory, Item *item, uint64_t offset, uint8_t *target, uint64_t count) noexcept nogil:
    cdef Piece piece
    while count:
        piece = body_piece(memory, item, offset)
        piece.count = min(piece.count, count)
        memcpy(target, piece.at, piece.count)
        target += piece.count
        offset += piece.count
        count -= piece.count


cdef inline bint key_is(const Memory *memory, Item *item, const uint8_t *key, uint32_t key_bytes) noexcept nogil:
    cdef Piece piece
    cdef uint64_t offset = 0
    if item.key_bytes != key_bytes:
        return False
    if not item.state & LARGE:
        return same_bytes(body_of(item), key, key_bytes)
    while offset < key_bytes:
        piece = body_piece(memory, item, offset)
        piece.count = min(piece.count, key_bytes - offset)
        if memcmp(piece.at, key + offset, piece.count):
            return False
        offset += piece.count
    return True


cdef inline void body_move(
    const Memory *memory, Item *item, uint64_t offset, Item *source, uint64_t start, uint64_t count
) noexcept nogil:
    """Copy part of another item's body into this one's."""
    cdef Piece piece
    while count:
        piece = body_piece(memory, source, start)
        piece.count = min(piece.count, count)
        body_write(memory, item, offset, piece.at, piece.count)
        start += piece.count
        offset += piece.count
        count -= piece.count
