"""Loans: what this node, as a backup, lends of its room to those whose records it takes in.

What it is: the backup's half of invariant 9 of `design`, section 5; the primary's is `credit`. Each peer's gate has a loan.
With every answer the peer is told what it may use beyond the frame that is answered; of that, what it has not used yet is kept
free of this node's own items.
Which thread runs it: the worker of a node's connection; `loan_open` and `loan_close` any.
What it owns: the loans, and `Memory.held_pages`. It may lock: its own lock, then the pool of pages.
What it must not know: what a record says; who the peers are.

How much. Room is counted in pages that are in no use: a chunk that is free in a page helps only items of its class. A loan is
lent by what an item counts (`credit_cost`), of which the worst is made here: ITEM_FACTOR times as much in pages. Beside the
loans SPARE pages are kept free, because an item of a size that comes for the first time takes a page of its own; they are the
first to be used where the pages' classes go apart, and are won back as the next answer says less.
Each loan is up to `most`: large enough that a primary with much under way seldom waits for an answer, and small against the
memory, since a primary that writes nothing keeps it all the same. Where there is less than that for each, all get like parts.

Over the limit (a copy was made here, the limit is smaller than at the others), what is told is negative: a like part for each
of what has to go. Who can evict none leaves it to the others: they are told of the rest.

Invariants:
1. What was told to one and may not be used yet, and what was told to the others, are together no more than the pages in no use,
   as long as there are any. A loan shrinks by being used, never by being told less, as long as this node's own items leave the
   loans free.
2. Items of this node's own are given no page of these (`pool_take`).
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from rcache.engine.native.memory cimport Memory
from rcache.engine.native.system cimport (
    add64, load32, mutex_init, pthread_mutex_lock, pthread_mutex_t, pthread_mutex_unlock, signed64, store32, store64,
)

cdef enum:
    LOANS_MAX = 64
    NO_LOAN = -1
    # At the worst, an item of more than half a page takes a page and a chunk.
    ITEM_FACTOR = 2
    # A loan is up to this part of the memory: with two backups for each of a few peers it is some hundredths that lie idle.
    LOAN_DIVISOR = 32
    # An item of the largest size must fit in, so that it is not evicted for; but not at any price.
    LARGEST_LOAN_DIVISOR = 4
    SPARE_DIVISOR = 64
    LARGEST_KEY_BYTES = 65535


cdef struct Loan:
    uint64_t source
    int64_t lent         # what was told, less what came of it since
    bint used


cdef struct Loans:
    pthread_mutex_t lock
    Loan at[LOANS_MAX]
    uint32_t count       # loans that are open
    int64_t most         # of one, as `credit_cost` counts
    int64_t told_short   # answers that said that there is no room, counted


cdef inline bint loans_init(Loans *loans, const Memory *memory, uint64_t value_bytes_max) noexcept nogil:
    cdef int64_t largest = <int64_t>value_bytes_max + LARGEST_KEY_BYTES + 64
    loans.most = max(
        <int64_t>(memory.limit_bytes // (LOAN_DIVISOR * ITEM_FACTOR)),
        min(largest, <int64_t>(memory.limit_bytes // (LARGEST_LOAN_DIVISOR * ITEM_FACTOR)))
    )
    return mutex_init(&loans.lock) == 0


cdef inline uint32_t spare_pages(const Memory *memory) noexcept nogil:
    return max(memory.pages_max // SPARE_DIVISOR, <uint32_t>1)


cdef inline int64_t free_pages(const Memory *memory) noexcept nogil:
    """Pages in no use, but for those that are kept to spare; negative: so many too many are in use."""
    return <int64_t>memory.pages_max - spare_pages(memory) - load32(&memory.pages_in_use)


cdef inline void hold_pages_locked(Loans *loans, Memory *memory) noexcept nogil:
    """Keep what is lent free of this node's own items (invariant 2)."""
    cdef int64_t lent = 0
    cdef uint32_t number
    for number in range(LOANS_MAX):
        if loans.at[number].used:
            lent += max(<int64_t>0, signed64(&loans.at[number].lent))
    lent = (lent * ITEM_FACTOR + memory.page_bytes - 1) >> memory.page_shift
    store32(&memory.held_pages, <uint32_t>lent + spare_pages(memory) if loans.count else 0)


cdef inline int loan_open(Loans *loans, Memory *memory, uint64_t source) noexcept nogil:
    """A loan for a source's records, of nothing yet; NO_LOAN where there are as many as there can be."""
    cdef uint32_t number
    cdef int found = NO_LOAN
    pthread_mutex_lock(&loans.lock)
    for number in range(LOANS_MAX):
        if not loans.at[number].used:
            loans.at[number].used, loans.at[number].source = True, source
            store64(<uint64_t *>&loans.at[number].lent, 0)  # whose it was may still use of it
            store32(&loans.count, loans.count + 1)
            found = <int>number
            break
    hold_pages_locked(loans, memory)
    pthread_mutex_unlock(&loans.lock)
    return found


cdef inline void loan_close(Loans *loans, Memory *memory, int number) noexcept nogil:
    if number == NO_LOAN:
        return
    pthread_mutex_lock(&loans.lock)
    if loans.at[number].used:
        loans.at[number].used = False
        store32(&loans.count, loans.count - 1)
    hold_pages_locked(loans, memory)
    pthread_mutex_unlock(&loans.lock)


cdef inline void loan_use(Loans *loans, int number, int64_t count) noexcept nogil:
    """Records were applied that count so much."""
    if number != NO_LOAN and count:
        add64(&loans.at[number].lent, -count)


cdef inline void loan_use_of(Loans *loans, uint64_t source, int64_t count) noexcept nogil:
    """The same for one who knows only the source."""
    cdef uint32_t number
    if not source or not count:
        return
    pthread_mutex_lock(&loans.lock)
    for number in range(LOANS_MAX):
        if loans.at[number].used and loans.at[number].source == source:
            loan_use(loans, <int>number, count)
    pthread_mutex_unlock(&loans.lock)


cdef inline int64_t lend(Loans *loans, Memory *memory, int number, uint64_t source) noexcept nogil:
    """What is told to one: how much it may use beyond what has been applied; negative: how much has to go (invariant 1)."""
    cdef int64_t free, others = 0, left, room
    cdef uint32_t other
    if number == NO_LOAN:
        return 0
    pthread_mutex_lock(&loans.lock)
    if not loans.at[number].used or loans.at[number].source != source:  # it was closed
        pthread_mutex_unlock(&loans.lock)
        return 0
    free = free_pages(memory) * memory.page_bytes // ITEM_FACTOR
    for other in range(LOANS_MAX):
        if loans.at[other].used and other != <uint32_t>number:
            others += max(<int64_t>0, signed64(&loans.at[other].lent))
    if free < 0:
        room = free // max(loans.count, <uint32_t>1)
    else:
        left = min(max(<int64_t>0, signed64(&loans.at[number].lent)), loans.most)
        room = min(max(left, free // max(loans.count, <uint32_t>1)), free - others)
        room = max(<int64_t>0, min(room, loans.most))
    store64(<uint64_t *>&loans.at[number].lent, <uint64_t>max(<int64_t>0, room))
    loans.told_short += room <= 0
    hold_pages_locked(loans, memory)
    pthread_mutex_unlock(&loans.lock)
    return room


cdef inline bint is_short(const Loans *loans, const Memory *memory) noexcept nogil:
    """Whether there are fewer pages in no use than the loans could do with."""
    return free_pages(memory) * memory.page_bytes // ITEM_FACTOR < loans.most * load32(&loans.count)
