"""The countdown buffer in native code: the only way bytes of a payload or a record are read.

What it is: `rcache_client.wire.countdown` as a struct: where reading stands, and how many bytes are still owed.
Which thread runs it: the one that owns the bytes. What it owns: nothing; it points into its caller's bytes.
What it must not know: what the bytes mean.

Invariants, as there:
1. No byte before the start or behind the end is ever read, whatever lengths the bytes themselves claim.
2. A take either gives all it was asked for or gives nothing and marks the countdown `short`; from then on every take fails.
3. Whoever is done asks `is_even`: true only if nothing was short and nothing is left.
"""

from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from rcache.engine.native.system cimport get16, get32, get64


cdef struct Countdown:
    const uint8_t *at
    size_t left
    bint short


cdef inline Countdown countdown(const uint8_t *data, size_t count) noexcept nogil:
    cdef Countdown body
    body.at = data
    body.left = count
    body.short = False
    return body


cdef inline const uint8_t *take(Countdown *body, size_t count) noexcept nogil:
    """The next `count` bytes, or NULL where there are fewer (invariants 1 and 2)."""
    cdef const uint8_t *at = body.at
    if body.short or count > body.left:
        body.short = True
        return NULL
    body.at += count
    body.left -= count
    return at


cdef inline uint8_t take8(Countdown *body) noexcept nogil:
    cdef const uint8_t *at = take(body, 1)
    return at[0] if at != NULL else 0


cdef inline uint16_t take16(Countdown *body) noexcept nogil:
    cdef const uint8_t *at = take(body, 2)
    return get16(at) if at != NULL else 0


cdef inline uint32_t take32(Countdown *body) noexcept nogil:
    cdef const uint8_t *at = take(body, 4)
    return get32(at) if at != NULL else 0


cdef inline uint64_t take64(Countdown *body) noexcept nogil:
    cdef const uint8_t *at = take(body, 8)
    return get64(at) if at != NULL else 0


cdef inline bint is_even(const Countdown *body) noexcept nogil:
    """Whether it came out even (invariant 3)."""
    return not body.short and body.left == 0
