"""Memory for items and tables: pages of one region, cut into chunks of one size class each.

What it is: the region (address space reserved at the start, touched as it is used), the pool of free pages, the size classes,
and an allocator on top of them. The idea is that of memcached's slabs; what differs is that a page whose last chunk was freed
goes back to the pool at once, and that large items take whole pages that need not lie side by side, so nothing fragments.
Which thread runs it: any. What it owns: the region and its descriptors.
What it must not know: buckets, which items may be evicted, who waits for memory.

Locks: a class's lock, then the pool's; both innermost, held for a few stores. A thread that allocates or frees may hold one
stripe's lock.

Invariants:
1. pages in use <= pages_max, except for pages that were forced (a recovered copy, a table's overflow).
2. A chunk is handed out by one class at a time: a page changes its class only when none of its chunks is in use.
3. A page is among its class's roomy ones exactly if it has a free chunk and is not being drained.
4. A chunk that is not handed out, and a page that is in no use, are touched here alone; under AddressSanitizer they are
   poisoned, so whoever else touches one is found. Only `hint8` and its kin may look at them (see `removal`).
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, realloc

from rcache.engine.native.system cimport (
    MAP_ANONYMOUS, MAP_FAILED, MAP_NORESERVE, MAP_PRIVATE, PROT_NONE, PROT_READ, PROT_WRITE, MADV_DONTNEED, add64,
    load8, load32, madvise, mmap, mprotect, munmap, mutex_init, poison, pthread_mutex_destroy, pthread_mutex_lock,
    pthread_mutex_t, pthread_mutex_unlock, store8, store32, store64, unpoison,
)

cdef enum:
    PAGE_BYTES_MIN = 4096
    PAGE_BYTES_MAX = 65536
    # Of a small region at least so many pages are made: each class may have one that is half empty.
    PAGES_WANTED = 1024
    CHUNK_BYTES_MIN = 48
    # Sizes grow by an eighth: at most that much of a chunk is wasted, and about fifty classes reach half a page.
    GROWTH_DIVISOR = 8
    CLASSES_MAX = 96
    # A region is this many times the limit: address space for a copy recovered under a smaller limit than it was made with.
    REGION_FACTOR = 4
    # Handles have 31 bits; the highest says "head of a list" in an expiry link.
    HANDLE_BITS = 31
    # Pages beyond the limit are made usable so many bytes at a time.
    UNLOCK_BYTES = 16777216
    TABLE_CLASSES = 7
    NO_PAGE = 0xFFFFFFFF

cdef enum Growth:
    GROW_NOT = 0     # only chunks of pages that the class has
    GROW = 1         # a new page too, within the limit
    GROW_FORCED = 2  # whatever the limit says

cdef enum PageState:
    PAGE_FREE = 0
    PAGE_CHUNKS = 1
    PAGE_DRAINING = 2
    PAGE_LARGE = 3


cdef struct Page:
    uint32_t live        # chunks in use
    uint32_t free_head   # 1 + index of the first freed chunk; 0: none
    uint32_t bump        # chunks handed out at least once since the page got its class
    uint32_t prev        # among the roomy pages of its class
    uint32_t next        # the same; or the next free page; or the next page of a large item
    uint32_t place       # its index in its class's pages
    uint32_t owner       # the handle of the large item it belongs to
    uint8_t size_class
    uint8_t state


cdef struct SizeClass:
    pthread_mutex_t lock
    uint32_t chunk_bytes
    uint32_t per_page
    uint32_t roomy       # the first page with a free chunk
    uint32_t *pages      # all its pages, in no order
    uint32_t page_count
    uint32_t page_room
    uint64_t live        # chunks in use
    uint64_t asked       # bytes that were asked for in them; the rest of each chunk is waste
    uint64_t evicted


cdef struct Memory:
    uint8_t *base
    uint64_t limit_bytes
    uint64_t region_bytes
    uint64_t usable_bytes
    uint32_t page_bytes
    uint32_t page_shift
    uint32_t handle_shift
    uint32_t pages_max
    uint32_t pages_all
    Page *pages
    pthread_mutex_t pool
    uint32_t free_page       # the pool: a list of pages that were used before,
    uint32_t untouched       # and the first of those that never were
    uint32_t pages_in_use
    uint32_t held_pages      # kept free of what is this node's own (`loans`)
    uint64_t large_pages
    uint64_t large_asked
    uint64_t large_evicted
    uint64_t moved           # chunks moved to another page to free theirs
    uint64_t drained         # pages that changed their class that way
    uint32_t class_count     # item classes; the table classes follow
    uint32_t chunk_bytes_max
    SizeClass classes[CLASSES_MAX]
    uint8_t *class_of_size   # [(size + granule - 1) >> handle_shift]


cdef inline uint32_t handle_of(const Memory *memory, const void *chunk) noexcept nogil:
    """A chunk as 31 bits; 0 is no chunk."""
    return <uint32_t>((<const uint8_t *>chunk - memory.base) >> memory.handle_shift) + 1


cdef inline void *chunk_at(const Memory *memory, uint32_t handle) noexcept nogil:
    return memory.base + ((<uint64_t>handle - 1) << memory.handle_shift)


cdef inline uint32_t page_of(const Memory *memory, const void *chunk) noexcept nogil:
    return <uint32_t>((<const uint8_t *>chunk - memory.base) >> memory.page_shift)


cdef inline uint8_t *page_start(const Memory *memory, uint32_t page) noexcept nogil:
    return memory.base + (<uint64_t>page << memory.page_shift)


# --- making and unmaking

cdef inline bint memory_init(Memory *memory, uint64_t limit_bytes) noexcept nogil:
    """Reserve the region. False if the address space or the memory for descriptors cannot be had."""
    cdef uint64_t page_bytes = PAGE_BYTES_MIN
    while page_bytes < PAGE_BYTES_MAX and page_bytes * PAGES_WANTED < limit_bytes:
        page_bytes *= 2
    memory.page_bytes = <uint32_t>page_bytes
    memory.page_shift = 0
    while (<uint64_t>1 << memory.page_shift) < page_bytes:
        memory.page_shift += 1
    memory.limit_bytes = limit_bytes
    memory.pages_max = <uint32_t>(limit_bytes >> memory.page_shift)
    memory.pages_all = memory.pages_max * REGION_FACTOR + PAGES_WANTED
    memory.region_bytes = <uint64_t>memory.pages_all << memory.page_shift
    memory.handle_shift = 4
    while memory.region_bytes >> memory.handle_shift >= (<uint64_t>1 << HANDLE_BITS) - 1:
        memory.handle_shift += 1
    memory.free_page = NO_PAGE
    if mutex_init(&memory.pool):
        return False
    memory.pages = <Page *>calloc(memory.pages_all, sizeof(Page))
    cdef void *base = mmap(NULL, memory.region_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    memory.base = NULL if base == MAP_FAILED else <uint8_t *>base
    if memory.base == NULL or memory.pages == NULL:
        return False
    memory.usable_bytes = <uint64_t>memory.pages_max << memory.page_shift
    if memory.usable_bytes and mprotect(memory.base, memory.usable_bytes, PROT_READ | PROT_WRITE):
        return False
    return classes_init(memory)


cdef inline bint classes_init(Memory *memory) noexcept nogil:
    """Item classes from the smallest to half a page, each as large as the number of its chunks in a page allows; then table
    classes, powers of two from 64 bytes."""
    cdef uint32_t granule = <uint32_t>1 << memory.handle_shift
    cdef uint32_t size = CHUNK_BYTES_MIN, fitted, count, at = 0
    while size <= memory.page_bytes // 2:
        size = (size + granule - 1) & ~(granule - 1)
        count = memory.page_bytes // size
        fitted = (memory.page_bytes // count) & ~(granule - 1)
        if not class_init(memory, memory.class_count, fitted):
            return False
        memory.class_count += 1
        memory.chunk_bytes_max = fitted
        size = fitted + max(granule, fitted // GROWTH_DIVISOR)
    for count in range(TABLE_CLASSES):
        if not class_init(memory, memory.class_count + count, max(granule, <uint32_t>64 << count)):
            return False
    memory.class_of_size = <uint8_t *>calloc((memory.chunk_bytes_max >> memory.handle_shift) + 1, 1)
    if memory.class_of_size == NULL:
        return False
    for count in range((memory.chunk_bytes_max >> memory.handle_shift) + 1):
        while memory.classes[at].chunk_bytes < count << memory.handle_shift:
            at += 1
        memory.class_of_size[count] = <uint8_t>at
    return True


cdef inline bint class_init(Memory *memory, uint32_t number, uint32_t chunk_bytes) noexcept nogil:
    cdef SizeClass *made = &memory.classes[number]
    made.chunk_bytes = chunk_bytes
    made.per_page = memory.page_bytes // chunk_bytes
    made.roomy = NO_PAGE
    return mutex_init(&made.lock) == 0


cdef inline void memory_close(Memory *memory) noexcept nogil:
    """Give the region back. Nobody may use it any more."""
    cdef uint32_t number
    if memory.base != NULL:
        unpoison(memory.base, <uint64_t>memory.untouched << memory.page_shift)
        munmap(memory.base, memory.region_bytes)
    for number in range(memory.class_count + TABLE_CLASSES if memory.class_count else 0):
        pthread_mutex_destroy(&memory.classes[number].lock)
        free(memory.classes[number].pages)
    free(memory.pages)
    free(memory.class_of_size)
    memory.base = NULL


# --- pages

cdef inline uint32_t pool_take(Memory *memory, bint force) noexcept nogil:
    """A free page, or NO_PAGE where the limit is reached, or what is lent, and nothing forces it (invariant 1)."""
    cdef uint32_t page = NO_PAGE
    cdef uint64_t step
    pthread_mutex_lock(&memory.pool)
    if force or memory.pages_in_use + load32(&memory.held_pages) < memory.pages_max:
        if memory.free_page != NO_PAGE:
            page = memory.free_page
            memory.free_page = memory.pages[page].next
        elif memory.untouched < memory.pages_all:
            page = memory.untouched
            if (<uint64_t>page + 1) << memory.page_shift > memory.usable_bytes:
                step = min(<uint64_t>UNLOCK_BYTES, memory.region_bytes - memory.usable_bytes)
                if mprotect(memory.base + memory.usable_bytes, step, PROT_READ | PROT_WRITE):
                    page = NO_PAGE
                else:
                    memory.usable_bytes += step
            if page != NO_PAGE:
                store32(&memory.untouched, page + 1)
        if page != NO_PAGE:
            store32(&memory.pages_in_use, memory.pages_in_use + 1)
    pthread_mutex_unlock(&memory.pool)
    return page


cdef inline void pool_give(Memory *memory, uint32_t page) noexcept nogil:
    """A page that nobody uses any more. Beyond the limit its memory goes back to the system."""
    store8(&memory.pages[page].state, PAGE_FREE)
    if page >= memory.pages_max:
        madvise(page_start(memory, page), memory.page_bytes, MADV_DONTNEED)
    poison(page_start(memory, page), memory.page_bytes)  # invariant 4
    pthread_mutex_lock(&memory.pool)
    memory.pages[page].next = memory.free_page
    memory.free_page = page
    store32(&memory.pages_in_use, memory.pages_in_use - 1)
    pthread_mutex_unlock(&memory.pool)


# --- chunks

cdef inline void roomy_link(Memory *memory, SizeClass *owner, uint32_t page) noexcept nogil:
    memory.pages[page].prev = NO_PAGE
    memory.pages[page].next = owner.roomy
    if owner.roomy != NO_PAGE:
        memory.pages[owner.roomy].prev = page
    owner.roomy = page


cdef inline void roomy_unlink(Memory *memory, SizeClass *owner, uint32_t page) noexcept nogil:
    cdef Page *held = &memory.pages[page]
    if held.prev != NO_PAGE:
        memory.pages[held.prev].next = held.next
    else:
        owner.roomy = held.next
    if held.next != NO_PAGE:
        memory.pages[held.next].prev = held.prev


cdef inline bint class_grow(Memory *memory, uint32_t number, bint force) noexcept nogil:
    """Another page for a class whose lock is held. False if there is none."""
    cdef SizeClass *owner = &memory.classes[number]
    cdef uint32_t *longer
    cdef uint32_t page
    if owner.page_count == owner.page_room:
        longer = <uint32_t *>realloc(owner.pages, (owner.page_room * 2 + 16) * sizeof(uint32_t))
        if longer == NULL:
            return False
        owner.pages = longer
        owner.page_room = owner.page_room * 2 + 16
    page = pool_take(memory, force)
    if page == NO_PAGE:
        return False
    cdef Page *held = &memory.pages[page]
    poison(page_start(memory, page), memory.page_bytes)  # invariant 4
    held.live = held.free_head = 0
    store32(&held.bump, 0)
    held.place = owner.page_count
    store8(&held.size_class, <uint8_t>number)
    store8(&held.state, PAGE_CHUNKS)
    owner.pages[owner.page_count] = page
    store32(&owner.page_count, owner.page_count + 1)
    roomy_link(memory, owner, page)
    return True


cdef inline void *chunk_alloc(Memory *memory, uint32_t number, uint32_t asked, Growth growth) noexcept nogil:
    """A chunk of a class for something of `asked` bytes, or NULL. What it holds is old."""
    cdef SizeClass *owner = &memory.classes[number]
    cdef Page *held
    cdef uint8_t *chunk = NULL
    cdef uint32_t page
    pthread_mutex_lock(&owner.lock)
    if owner.roomy != NO_PAGE or (growth != GROW_NOT and class_grow(memory, number, growth == GROW_FORCED)):
        page = owner.roomy
        held = &memory.pages[page]
        if held.free_head:
            chunk = page_start(memory, page) + <uint64_t>(held.free_head - 1) * owner.chunk_bytes
            unpoison(chunk, owner.chunk_bytes)
            held.free_head = (<uint32_t *>chunk)[0]
        else:
            chunk = page_start(memory, page) + <uint64_t>held.bump * owner.chunk_bytes
            unpoison(chunk, owner.chunk_bytes)
            store8(chunk + 31, 0)  # an item's state: free, until its maker says otherwise
            store32(&held.bump, held.bump + 1)
        held.live += 1
        store64(&owner.live, owner.live + 1)
        owner.asked += asked
        if not held.free_head and held.bump == owner.per_page:
            roomy_unlink(memory, owner, page)  # invariant 3
    pthread_mutex_unlock(&owner.lock)
    return chunk


cdef inline void chunk_free(Memory *memory, void *chunk, uint32_t asked) noexcept nogil:
    """Give a chunk back to its class, and its page to the pool if it was the last in use there (invariant 2)."""
    cdef uint32_t page = page_of(memory, chunk), last
    cdef Page *held = &memory.pages[page]
    cdef SizeClass *owner = &memory.classes[held.size_class]
    cdef bint was_full, empty
    pthread_mutex_lock(&owner.lock)
    was_full = not held.free_head and held.bump == owner.per_page
    (<uint32_t *>chunk)[0] = held.free_head
    poison(chunk, owner.chunk_bytes)  # invariant 4
    held.free_head = <uint32_t>((<uint8_t *>chunk - page_start(memory, page)) // owner.chunk_bytes) + 1
    held.live -= 1
    store64(&owner.live, owner.live - 1)
    owner.asked -= asked
    empty = held.live == 0
    if held.state == PAGE_CHUNKS:
        if empty and not was_full:
            roomy_unlink(memory, owner, page)
        elif was_full and not empty:
            roomy_link(memory, owner, page)
    if empty:
        store8(&held.state, PAGE_FREE)
        last = owner.pages[owner.page_count - 1]
        owner.pages[held.place] = last
        memory.pages[last].place = held.place
        store32(&owner.page_count, owner.page_count - 1)
    pthread_mutex_unlock(&owner.lock)
    if empty:
        pool_give(memory, page)


cdef inline bint drain_begin(Memory *memory, uint32_t page, uint32_t number) noexcept nogil:
    """Hand out no chunk of this page of class `number` any more; once all were freed the page goes to the pool. False if it is
    not to be had, or is of another class by now."""
    cdef Page *held = &memory.pages[page]
    cdef SizeClass *owner = &memory.classes[number]
    cdef bint begun = False
    pthread_mutex_lock(&owner.lock)
    if load8(&held.state) == PAGE_CHUNKS and load8(&held.size_class) == number:
        if held.free_head or held.bump < owner.per_page:
            roomy_unlink(memory, owner, page)
        store8(&held.state, PAGE_DRAINING)
        begun = True
    pthread_mutex_unlock(&owner.lock)
    return begun


cdef inline bint drain_end(Memory *memory, uint32_t page, uint32_t number) noexcept nogil:
    """After a drain: True if the page has gone to the pool; else it is handed out from again."""
    cdef Page *held = &memory.pages[page]
    cdef SizeClass *owner = &memory.classes[number]
    cdef bint left
    pthread_mutex_lock(&owner.lock)
    left = load8(&held.state) == PAGE_DRAINING and load8(&held.size_class) == number
    if left:
        store8(&held.state, PAGE_CHUNKS)
        if held.free_head or held.bump < owner.per_page:
            roomy_link(memory, owner, page)
    else:
        add64(<int64_t *>&memory.drained, 1)
    pthread_mutex_unlock(&owner.lock)
    return not left


cdef inline uint64_t memory_used(Memory *memory) noexcept nogil:
    """Bytes of all chunks in use, those of tables included, and of the pages of large items."""
    cdef uint64_t used = 0
    cdef uint32_t number
    for number in range(memory.class_count + TABLE_CLASSES):
        pthread_mutex_lock(&memory.classes[number].lock)
        used += memory.classes[number].live * memory.classes[number].chunk_bytes
        pthread_mutex_unlock(&memory.classes[number].lock)
    pthread_mutex_lock(&memory.pool)
    used += memory.large_pages << memory.page_shift
    pthread_mutex_unlock(&memory.pool)
    return used
