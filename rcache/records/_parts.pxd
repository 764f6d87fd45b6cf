"""One bucket of a rebuild: what its plan says of a record, and what came of it.

What it is: `history.BucketPlan.is_live` over a chain in an array.
Which thread runs it: its owner's. What it owns: nothing; the arrays are the rebuild's. What it must not know: files, Python.
"""

from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint64_t

from rcache.records._keys cimport Keys


cdef struct Link:
    uint64_t epoch
    uint64_t last


cdef struct Part:
    # One bucket: what its plan says, and what came of it.
    Keys keys
    uint64_t floor
    Link *chain  # by epoch
    size_t links
    Link live  # the link that the record before was on
    int64_t base_source  # -1: no base
    uint64_t base_ordinal
    int64_t source  # that `ordinal` is of
    uint64_t ordinal
    uint64_t sequence
    uint64_t time_ms


cdef inline bint is_live(Part *part, uint64_t sequence) noexcept nogil:
    """`BucketPlan.is_live`."""
    cdef uint64_t epoch = sequence >> 40
    cdef size_t low = 0, high = part.links, middle
    if sequence <= part.floor:
        return False
    if part.live.epoch == epoch:
        return sequence <= part.live.last
    while low < high:
        middle = (low + high) // 2
        if part.chain[middle].epoch < epoch:
            low = middle + 1
        else:
            high = middle
    if low == part.links or part.chain[low].epoch != epoch:
        return False
    part.live = part.chain[low]
    return sequence <= part.live.last
