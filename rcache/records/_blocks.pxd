"""Blocks and records as the compiled walks see them: found in a file, checked whole, then counted down.

What it is: the good path of `reader` and `record.heads`. What is out of the ordinary here (an end block, a block that is not
due, that does not fit or does not check out, a read that fails) is only told apart from a whole block, never explained: the
walk then stops, and the Python body looks at the same place and says what it is.
Which thread runs it: the walk's, one at a time. What it owns: the window's buffer.
What it must not know: what records mean.

Invariants:
1. A body is given out only after its checksum fitted and every record of it was counted down to exactly its end.
2. Bytes are read through a countdown over what the window holds.
"""

from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport realloc
from libc.string cimport memmove
from posix.types cimport off_t
from posix.unistd cimport pread

from rcache.records._countdown cimport Countdown, countdown, take, take8, take16, take32, take64
from rcache.records._crc cimport crc32

cdef enum:
    BLOCK_HEADER = 32
    BLOCK_CHECKED = 28  # of the header, what the checksum is over
    RECORD_HEADER = 40
    BLOCK_MAGIC = 0x72424C4B  # "rBLK"
    WINDOW_BYTES = 1 << 20  # read at once: what is checked and walked next is still in the processor's cache

cdef enum:
    OPEN = 1
    SET = 2
    REMOVE = 3
    FLUSH = 4
    ROW = 5
    IMPORT_BEGIN = 6
    IMPORT_END = 7
    DROP = 8


cdef struct Head:
    const uint8_t *start
    uint32_t length
    uint16_t key_bytes
    uint8_t kind
    uint32_t bucket
    uint32_t flags
    uint64_t sequence
    uint64_t time_ms
    uint64_t expires_at_ms


cdef inline bint is_keyed(uint8_t kind) noexcept nogil:
    return kind == SET or kind == REMOVE or kind == ROW


cdef inline bint is_change(uint8_t kind) noexcept nogil:
    """Whether records of this kind take a place in the history."""
    return OPEN <= kind <= FLUSH


cdef inline bint take_head(Countdown *body, Head *head) noexcept nogil:
    """Count one whole record down; False wherever `record.heads` raises."""
    cdef Countdown fixed = body[0]
    head.length = take32(&fixed)
    head.kind = take8(&fixed)
    take8(&fixed)  # the cause
    head.key_bytes = take16(&fixed)
    head.bucket = take32(&fixed)
    head.flags = take32(&fixed)
    head.sequence = take64(&fixed)
    head.time_ms = take64(&fixed)
    head.expires_at_ms = take64(&fixed)
    if fixed.short or head.length < RECORD_HEADER + <uint32_t>head.key_bytes:
        return False
    if not OPEN <= head.kind <= DROP or (head.key_bytes > 0) != is_keyed(head.kind):
        return False
    head.start = take(body, head.length)
    return head.start != NULL


cdef inline const uint8_t *key_of(const Head *head) noexcept nogil:
    """The key of a record that was counted down whole: `head.key_bytes` bytes."""
    cdef Countdown record = countdown(head.start, head.length)
    take(&record, RECORD_HEADER)
    return take(&record, head.key_bytes)


cdef inline const uint8_t *value_of(const Head *head) noexcept nogil:
    """The value: what is left of the record."""
    cdef Countdown record = countdown(head.start, head.length)
    take(&record, RECORD_HEADER)
    take(&record, head.key_bytes)
    return take(&record, record.left)


cdef inline bint is_even(Countdown body, uint32_t records) noexcept nogil:
    """Whether this is `records` whole records, and nothing else."""
    cdef Head head
    cdef uint64_t found = 0
    while body.left > 0:
        if not take_head(&body, &head):
            return False
        found += 1
    return found == records


cdef struct Window:
    int fd
    uint64_t size  # of the file, as it was when it was opened
    uint8_t *buffer
    size_t room
    uint64_t base  # where in the file the buffer's first byte is
    size_t held


cdef inline Countdown look(Window *window, uint64_t at, size_t count) noexcept nogil:
    """`count` bytes of the file from `at`, in the buffer; fewer, and so short ones, where it does not have them."""
    cdef size_t skipped, wanted
    cdef ssize_t got
    cdef uint8_t *larger
    if at > window.size or count > window.size - at:
        return countdown(NULL, 0)
    if at < window.base or at - window.base > window.held:
        window.base, window.held = at, 0
    skipped = at - window.base
    if window.held - skipped < count:
        if skipped < window.held:
            memmove(window.buffer, window.buffer + skipped, window.held - skipped)
        window.base, window.held = at, window.held - skipped
        wanted = max(count, <size_t>WINDOW_BYTES)
        if wanted > window.room:
            larger = <uint8_t *>realloc(window.buffer, wanted)
            if larger == NULL:
                return countdown(NULL, 0)
            window.buffer, window.room = larger, wanted
        wanted = min(<uint64_t>window.room, window.size - at)
        while window.held < count:
            got = pread(window.fd, window.buffer + window.held, wanted - window.held, <off_t>(at + window.held))
            if got <= 0:
                return countdown(NULL, 0)
            window.held += got
        skipped = 0
    cdef Countdown held = countdown(window.buffer, window.held)
    take(&held, skipped)
    return countdown(take(&held, count), count)


cdef struct Block:
    uint64_t end  # where in the file it ends
    uint32_t records
    Countdown body


cdef inline bint take_block(Window *window, uint32_t crc, uint64_t at, uint64_t number, Block *block) noexcept nogil:
    """The data block that begins at `at`, if it is whole (invariant 1). `crc`: the checksum of the file id."""
    cdef Countdown head = look(window, at, BLOCK_HEADER)
    cdef Countdown checked = head
    cdef uint32_t magic = take32(&head)
    cdef uint32_t body_bytes = take32(&head)
    block.records = take32(&head)
    if magic != BLOCK_MAGIC or take64(&head) != number or head.short:
        return False
    take64(&head)  # synced
    crc = crc32(crc, take(&checked, BLOCK_CHECKED), BLOCK_CHECKED, True)
    cdef uint32_t claimed = take32(&head)
    # May move the buffer: what came before is not looked at again.
    checked = look(window, at, <size_t>BLOCK_HEADER + body_bytes)
    if take(&checked, BLOCK_HEADER) == NULL:
        return False
    block.body = checked
    block.end = at + BLOCK_HEADER + body_bytes
    return crc32(crc, take(&checked, body_bytes), body_bytes, True) == claimed and is_even(block.body, block.records)
