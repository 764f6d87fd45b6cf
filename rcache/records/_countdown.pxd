"""The countdown buffer of compiled code: the only way it reads the bytes of a payload, a record or a file.

What it is: `rcache_client.wire.countdown` as a struct: where reading stands, and how many bytes are still owed.
Which thread runs it: the one that owns the bytes. What it owns: nothing; it points into its caller's bytes.
What it must not know: what the bytes mean.

`Room` is its counterpart for writing: how many bytes may still be written, and where.

Invariants, as there:
1. No byte before the start or behind the end is ever read, whatever lengths the bytes themselves claim.
2. A take either gives all it was asked for or gives nothing and marks the countdown `short`; from then on every take fails.
3. Whoever must come out even asks `is_even` at the end.
"""

from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy


cdef extern from * nogil:
    """
    #include <stdint.h>
    #include <string.h>

    /* Big-endian loads from any address; the caller has taken that many bytes from a countdown. */
    static inline uint16_t rw_load16(const uint8_t *at) { return (uint16_t)(at[0] << 8 | at[1]); }
    static inline uint32_t rw_load32(const uint8_t *at) { return (uint32_t)rw_load16(at) << 16 | rw_load16(at + 2); }
    static inline uint64_t rw_load64(const uint8_t *at) { return (uint64_t)rw_load32(at) << 32 | rw_load32(at + 4); }
    static inline void rw_store64(uint8_t *at, uint64_t v) { for (int i = 0; i < 8; i++) at[i] = (uint8_t)(v >> (56 - 8 * i)); }
    """
    uint16_t _load16 "rw_load16"(const uint8_t *)
    uint32_t _load32 "rw_load32"(const uint8_t *)
    uint64_t _load64 "rw_load64"(const uint8_t *)
    void _store64 "rw_store64"(uint8_t *, uint64_t)


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
    return _load16(at) if at != NULL else 0


cdef inline uint32_t take32(Countdown *body) noexcept nogil:
    cdef const uint8_t *at = take(body, 4)
    return _load32(at) if at != NULL else 0


cdef inline uint64_t take64(Countdown *body) noexcept nogil:
    cdef const uint8_t *at = take(body, 8)
    return _load64(at) if at != NULL else 0


cdef inline bint is_even(const Countdown *body) noexcept nogil:
    """Whether it came out even: nothing was short and nothing is left (invariant 3)."""
    return not body.short and body.left == 0


cdef struct Room:
    uint8_t *at
    size_t left


cdef inline Room room(uint8_t *data, size_t count) noexcept nogil:
    cdef Room free
    free.at = data
    free.left = count
    return free


cdef inline uint8_t *claim(Room *free, size_t count) noexcept nogil:
    """The next `count` bytes to write to, or NULL where there are fewer."""
    cdef uint8_t *at = free.at
    if count > free.left:
        return NULL
    free.at += count
    free.left -= count
    return at


cdef inline bint write_bytes(Room *free, const uint8_t *data, size_t count) noexcept nogil:
    cdef uint8_t *to = claim(free, count)
    if to != NULL and count:
        memcpy(to, data, count)
    return to != NULL


cdef inline bint write64(Room *free, uint64_t number) noexcept nogil:
    cdef uint8_t *to = claim(free, 8)
    if to != NULL:
        _store64(to, number)
    return to != NULL
