"""The newest state of every key of a bucket, without an object for each: where its record lies in which file.

What it is: `rows.DictRows` as two arrays: entries in the order in which the keys first came, and an open-addressing table of
places in it. 24 bytes an entry and 8 a slot; key and value stay in the file, which is mapped.
Which thread runs it: one at a time. What it owns: both arrays of each bucket, and the mappings.
What it must not know: histories, plans, Python.

Background. Two keys are the same if their bytes are; the hash only says where to look. It is keyed (SipHash-1-3, Aumasson and
Bernstein, "SipHash: a fast short-input PRF", 2012) so that whoever chose the keys of a cache cannot aim at one chain.

Invariants:
1. A file is read through a countdown over its mapping. It was checked before it was mapped, and may have been changed since:
   then a key or a row is not what it was, and that is told (NULL), but never is a byte beside the mapping read.
2. At least a quarter of the slots is empty, so that every search ends.
3. An entry of length 0 is a removal; its key still lies at its offset.
"""

from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcmp

from rcache.records._blocks cimport Head, key_of, take_head
from rcache.records._countdown cimport Countdown, countdown, take


cdef extern from * nogil:
    """
    #include <stdint.h>
    #include <string.h>

    #define RW_ROTL(x, b) (((x) << (b)) | ((x) >> (64 - (b))))
    #define RW_SIPROUND \\
        v0 += v1; v2 += v3; v1 = RW_ROTL(v1, 13) ^ v0; v3 = RW_ROTL(v3, 16) ^ v2; v0 = RW_ROTL(v0, 32); \\
        v2 += v1; v0 += v3; v1 = RW_ROTL(v1, 17) ^ v2; v3 = RW_ROTL(v3, 21) ^ v0; v2 = RW_ROTL(v2, 32);

    static inline uint64_t rw_siphash(const uint64_t secret[2], const uint8_t *p, size_t n) {
        uint64_t v0 = secret[0] ^ 0x736f6d6570736575u, v1 = secret[1] ^ 0x646f72616e646f6du;
        uint64_t v2 = secret[0] ^ 0x6c7967656e657261u, v3 = secret[1] ^ 0x7465646279746573u;
        uint64_t m, last = (uint64_t)n << 56;
        for (; n >= 8; p += 8, n -= 8) {
            memcpy(&m, p, 8);
            v3 ^= m; RW_SIPROUND v0 ^= m;
        }
        for (size_t i = 0; i < n; i++) last |= (uint64_t)p[i] << (8 * i);
        v3 ^= last; RW_SIPROUND v0 ^= last;
        v2 ^= 0xFF; RW_SIPROUND RW_SIPROUND RW_SIPROUND
        return v0 ^ v1 ^ v2 ^ v3;
    }

    #if defined(__GNUC__)
    #define rw_prefetch(at) __builtin_prefetch(at)
    #else
    #define rw_prefetch(at) ((void)(at))
    #endif
    """
    uint64_t siphash "rw_siphash"(const uint64_t *secret, const uint8_t *data, size_t count)
    void prefetch "rw_prefetch"(const void *at)

cdef enum:
    NONE = 0xFFFFFFFF
    KEYS_MAX = 0x7FFFFFFF  # of one bucket: a place and a number of slots are 32 bits
    ENTRIES_FIRST = 8


cdef struct Mapped:
    const uint8_t *at
    size_t size


cdef struct Entry:
    uint64_t version
    uint64_t offset  # of the record in its file
    uint32_t length  # of the record; 0: removed
    uint32_t file


cdef struct Slot:
    uint32_t hash
    uint32_t place  # + 1; 0: empty


cdef struct Keys:
    Entry *entries
    Slot *slots
    uint32_t count
    uint32_t room
    uint32_t bits  # there are 2 to the power of this slots; 0: none yet
    uint64_t flushed


cdef inline bint head_at(const Mapped *file, uint64_t offset, Head *head) noexcept nogil:
    """The record that lies at `offset` of a file; False if it does not any more (invariant 1)."""
    cdef Countdown rest = countdown(file.at, file.size)
    take(&rest, offset)
    return take_head(&rest, head)


cdef inline bint _has_key(const Mapped *files, const Entry *entry, const uint8_t *key, size_t key_bytes) noexcept nogil:
    cdef Head head
    if not head_at(&files[entry.file], entry.offset, &head) or head.key_bytes != key_bytes:
        return False
    return memcmp(key_of(&head), key, key_bytes) == 0


cdef inline void prefetch_slot(const Keys *keys, uint32_t hash) noexcept nogil:
    if keys.bits:
        prefetch(&keys.slots[hash & ((<uint32_t>1 << keys.bits) - 1)])


cdef inline bint _lay_out(Keys *keys, uint32_t bits, const uint32_t *moved) noexcept nogil:
    """All slots anew in a table of this size. `moved`: where each entry went, NONE for those that are gone; NULL: nowhere."""
    cdef uint32_t slot, place, there, mask = (<uint32_t>1 << bits) - 1
    cdef Slot *laid = <Slot *>calloc(<size_t>1 << bits, sizeof(Slot))
    if laid == NULL:
        return False
    for slot in range(<uint32_t>1 << keys.bits if keys.bits else 0):
        if not keys.slots[slot].place:
            continue
        place = keys.slots[slot].place - 1
        if moved != NULL:
            place = moved[place]
        if place == NONE:
            continue
        there = keys.slots[slot].hash & mask
        while laid[there].place:
            there = (there + 1) & mask
        laid[there].hash, laid[there].place = keys.slots[slot].hash, place + 1
    free(keys.slots)
    keys.slots, keys.bits = laid, bits
    return True


cdef inline bint _make_room(Keys *keys) noexcept nogil:
    """For one entry more (invariant 2)."""
    cdef Entry *more
    cdef uint32_t room
    if keys.count >= KEYS_MAX:
        return False
    if keys.count == keys.room:
        room = max(<uint32_t>ENTRIES_FIRST, keys.room + keys.room // 2)
        more = <Entry *>realloc(keys.entries, room * sizeof(Entry))
        if more == NULL:
            return False
        keys.entries, keys.room = more, room
    if not keys.bits:
        return _lay_out(keys, 4, NULL)
    if keys.count < (<uint64_t>3 << keys.bits) // 4:
        return True
    return keys.bits < 31 and _lay_out(keys, keys.bits + 1, NULL)


cdef inline bint put(Keys *keys, const Mapped *files, const Head *head, uint32_t hash, const Entry *entry) noexcept nogil:
    """Take in a row or a removal if it is newer than what is held. False: no memory."""
    cdef uint32_t slot, mask
    cdef Entry *held
    cdef const uint8_t *key = key_of(head)
    if entry.version <= keys.flushed:
        return True
    if not _make_room(keys):
        return False
    mask = (<uint32_t>1 << keys.bits) - 1
    slot = hash & mask
    while keys.slots[slot].place:
        held = &keys.entries[keys.slots[slot].place - 1]
        if keys.slots[slot].hash == hash and _has_key(files, held, key, head.key_bytes):
            if entry.version > held.version:
                held[0] = entry[0]
            return True
        slot = (slot + 1) & mask
    keys.entries[keys.count] = entry[0]
    keys.count += 1
    keys.slots[slot].hash, keys.slots[slot].place = hash, keys.count
    return True


cdef inline bint flush(Keys *keys, uint64_t sequence) noexcept nogil:
    """A FLUSH at `sequence`: everything up to it is gone. False: no memory."""
    cdef uint32_t place, kept = 0, bits = 4
    cdef uint32_t *moved
    if sequence <= keys.flushed:
        return True
    keys.flushed = sequence
    if not keys.count:
        return True
    moved = <uint32_t *>malloc(keys.count * sizeof(uint32_t))
    if moved == NULL:
        return False
    for place in range(keys.count):
        moved[place] = NONE
        if keys.entries[place].version > sequence:
            keys.entries[kept] = keys.entries[place]
            moved[place] = kept
            kept += 1
    keys.count = kept
    while kept > <uint64_t>1 << (bits - 1):
        bits += 1
    cdef bint done = _lay_out(keys, bits, moved)
    free(moved)
    return done


cdef inline void seal(Keys *keys) noexcept nogil:
    """Nothing comes any more: the entries stay, in no more memory than they need."""
    cdef Entry *fitting
    free(keys.slots)
    keys.slots, keys.bits = NULL, 0
    if keys.count < keys.room and keys.count:
        fitting = <Entry *>realloc(keys.entries, keys.count * sizeof(Entry))
        if fitting != NULL:
            keys.entries, keys.room = fitting, keys.count


cdef inline void clear(Keys *keys) noexcept nogil:
    """Let go of everything."""
    free(keys.slots)
    free(keys.entries)
    keys.slots, keys.entries = NULL, NULL
    keys.count = keys.room = keys.bits = 0
