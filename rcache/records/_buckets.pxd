"""From a bucket's number to its place in an array: a small open-addressing table.

What it is: a map from 32 bits to 0, 1, 2 ... in the order in which the numbers came. A record may name any bucket, so it grows
with the buckets that are named, not with their numbers. The slot of a number is its product with a random odd multiplier: a
file cannot aim at one chain.
Which thread runs it: its owner's. What it owns: the two arrays. What it must not know: what stands at a place.
"""

from libc.stddef cimport size_t
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free

cdef enum:
    NOWHERE = 0xFFFFFFFF


cdef struct Buckets:
    uint64_t odd
    uint32_t *slots  # place + 1; 0: empty
    uint32_t *names  # the number at each slot
    uint32_t bits
    uint32_t count


cdef inline uint32_t _slot(const Buckets *buckets, uint32_t bucket) noexcept nogil:
    return <uint32_t>((bucket + 1) * buckets.odd >> (64 - buckets.bits))


cdef inline uint32_t _find(const Buckets *buckets, uint32_t bucket) noexcept nogil:
    """The slot that holds this number, or the empty one where it belongs."""
    cdef uint32_t mask = (<uint32_t>1 << buckets.bits) - 1
    cdef uint32_t slot = _slot(buckets, bucket)
    while buckets.slots[slot] and buckets.names[slot] != bucket:
        slot = (slot + 1) & mask
    return slot


cdef inline bint _make_room(Buckets *buckets) noexcept nogil:
    """At most half full, so that every search ends."""
    cdef Buckets larger = buckets[0]
    cdef uint32_t slot, there
    if buckets.bits and buckets.count < <uint32_t>1 << (buckets.bits - 1):
        return True
    larger.bits = buckets.bits + 1 if buckets.bits else 6
    if larger.bits > 31:
        return False
    larger.slots = <uint32_t *>calloc(<size_t>1 << larger.bits, sizeof(uint32_t))
    larger.names = <uint32_t *>calloc(<size_t>1 << larger.bits, sizeof(uint32_t))
    if larger.slots == NULL or larger.names == NULL:
        free(larger.slots)
        free(larger.names)
        return False
    if buckets.bits:
        for slot in range(<uint32_t>1 << buckets.bits):
            if buckets.slots[slot]:
                there = _find(&larger, buckets.names[slot])
                larger.slots[there], larger.names[there] = buckets.slots[slot], buckets.names[slot]
    free(buckets.slots)
    free(buckets.names)
    buckets[0] = larger
    return True


cdef inline uint32_t place_of(const Buckets *buckets, uint32_t bucket) noexcept nogil:
    """Where this bucket is, or NOWHERE."""
    return buckets.slots[_find(buckets, bucket)] - 1 if buckets.bits else NOWHERE


cdef inline uint32_t add_place(Buckets *buckets, uint32_t bucket) noexcept nogil:
    """Give a bucket that is NOWHERE the next place; NOWHERE if there is no memory."""
    cdef uint32_t slot
    if not _make_room(buckets):
        return NOWHERE
    slot = _find(buckets, bucket)
    buckets.names[slot] = bucket
    buckets.count += 1
    buckets.slots[slot] = buckets.count
    return buckets.count - 1


cdef inline void free_buckets(Buckets *buckets) noexcept nogil:
    free(buckets.slots)
    free(buckets.names)
    buckets.slots = buckets.names = NULL
    buckets.bits = buckets.count = 0
