# cython: freethreading_compatible=True
"""The compiled body of the rebuild: the newest state of every key, held as the place of its record in a mapped file.

What it is: `walk.ReferenceBuilder` and `rows.DictRows` without an object for each record. Rows leave as pieces of an import,
made in one copy from the mapped files.
Which thread runs it: one at a time. What it owns: the entries, and the mappings, until the last row that needs them is gone.
What it must not know: what is done with the rows.

Background. A mapping costs no memory that the kernel could not take back, where a copy of the rows beside the engine's would
double what a start needs. Its price: where a file is cut within its whole blocks while rows still lie in it, or the disk fails
to read a page again, the process ends by SIGBUS. Nothing of ours cuts there (invariant 1), and the walks themselves use pread.

Invariants:
1. Only what lies in whole blocks is kept, and only that is read from a mapping later: a torn tail may be cut off meanwhile.
2. A row leaves only if the record at its place still is the one that was taken in, by its length and sequence.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.errno cimport errno
from libc.stddef cimport size_t
from libc.stdint cimport UINT64_MAX, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, realloc
from posix.mman cimport MAP_FAILED, MAP_PRIVATE, PROT_READ, mmap, munmap

from rcache.records._blocks cimport (
    BLOCK_HEADER,
    FLUSH,
    IMPORT_BEGIN,
    OPEN,
    RECORD_HEADER,
    REMOVE,
    ROW,
    Head,
    is_change,
    is_keyed,
    key_of,
    take_head,
    value_of,
)
from rcache.records._buckets cimport NOWHERE, Buckets, add_place, free_buckets, place_of
from rcache.records._countdown cimport Countdown, Room, countdown, room, take, write64, write_bytes
from rcache.records._keys cimport (
    Entry,
    Keys,
    Mapped,
    clear,
    flush,
    head_at,
    prefetch,
    prefetch_slot,
    put,
    seal,
    siphash,
)
from rcache.records._parts cimport Link, Part, is_live
from rcache.records._walk cimport Taker

import os

from rcache.records.reader import DataDamaged
from rcache.records.rows import Row

cdef enum:
    AHEAD = 32  # records whose slots are fetched into the cache before the first of them is looked up
    ROWS_AHEAD = 8  # rows that are fetched before they are copied: they lie all over their file


cdef class Builder(Taker):
    """See `walk.Builder`. `hash_bits`: of the keys' hashes, so many are used; fewer let keys collide, for tests."""

    cdef Buckets _buckets
    cdef Part *_parts
    cdef Mapped *_files
    cdef uint32_t _file_count
    cdef uint64_t _secret[2]
    cdef uint32_t _hash_mask
    cdef uint64_t _until_ms
    cdef bint _none_in_time
    cdef bint _finished
    cdef int64_t _source
    cdef list _paths, _numbers

    def __cinit__(self, plans, until_ms, hash_bits=32):
        secret = os.urandom(24)
        self._secret[0] = int.from_bytes(secret[:8], "little")
        self._secret[1] = int.from_bytes(secret[8:16], "little")
        self._hash_mask = (1 << hash_bits) - 1
        self._buckets.odd = int.from_bytes(secret[16:], "little") | 1
        self._none_in_time = until_ms < 0
        self._until_ms = min(max(until_ms, 0), UINT64_MAX)
        self._paths, self._numbers = [], list(plans)
        self._parts = <Part *>calloc(max(1, len(plans)), sizeof(Part))
        if self._parts == NULL:
            raise MemoryError
        for bucket, plan in plans.items():
            self._add_plan(bucket, plan)

    def __dealloc__(self):
        cdef size_t place
        for place in range(self._buckets.count):
            clear(&self._parts[place].keys)
            free(self._parts[place].chain)
        for place in range(self._file_count):
            munmap(<void *>self._files[place].at, self._files[place].size)
        free(self._parts)
        free(self._files)
        free_buckets(&self._buckets)

    cdef int _add_plan(self, uint32_t bucket, plan) except -1:
        cdef uint32_t place = add_place(&self._buckets, bucket)
        cdef Part *part
        if place == NOWHERE:
            raise MemoryError
        part = &self._parts[place]
        part.chain = <Link *>calloc(len(plan.chain), sizeof(Link))
        if part.chain == NULL:
            raise MemoryError
        for epoch in sorted(plan.chain):
            part.chain[part.links].epoch, part.chain[part.links].last = epoch, plan.chain[epoch]
            part.links += 1
        part.live = part.chain[part.links - 1]
        part.floor = plan.floor
        part.base_source = -1 if plan.base is None else plan.base.source
        part.base_ordinal = 0 if plan.base is None else plan.base.ordinal
        part.source = -1
        return 0

    def begin(self, source, file):
        """The file stays mapped for as long as rows are wanted from it. Raises OSError."""
        cdef Mapped *more
        cdef void *at
        Taker.begin(self, source, file)
        more = <Mapped *>realloc(self._files, (<size_t>self._file_count + 1) * sizeof(Mapped))
        if more == NULL:
            raise MemoryError
        self._files = more
        at = mmap(NULL, self._window.size, PROT_READ, MAP_PRIVATE, self._window.fd, 0)
        if at == MAP_FAILED:
            raise OSError(errno, os.strerror(errno), str(file.path))
        self._files[self._file_count].at, self._files[self._file_count].size = <const uint8_t *>at, self._window.size
        self._file_count += 1
        self._paths.append(file.path)
        self._source = source

    cdef bint _feed(self, uint64_t offset, Countdown rest, uint32_t records) except -1 nogil:
        cdef Head heads[AHEAD]
        cdef Part *parts[AHEAD]
        cdef uint32_t hashes[AHEAD]
        cdef uint32_t place, count, each, hash
        if self._finished:
            with gil:
                raise RuntimeError("this walk has ended")
        offset += BLOCK_HEADER
        while rest.left:
            count = 0
            while count < AHEAD and rest.left and take_head(&rest, &heads[count]):
                place = place_of(&self._buckets, heads[count].bucket)
                parts[count] = &self._parts[place] if place != NOWHERE else NULL
                if parts[count] != NULL and is_keyed(heads[count].kind):
                    hash = <uint32_t>siphash(self._secret, key_of(&heads[count]), heads[count].key_bytes)
                    hashes[count] = hash & self._hash_mask
                    prefetch_slot(&parts[count].keys, hashes[count])
                count += 1
            for each in range(count):
                # NULL: written after the survey, or a row without its IMPORT_BEGIN, which damage took
                if parts[each] != NULL and not self._take(parts[each], &heads[each], hashes[each], offset):
                    with gil:
                        raise MemoryError
                offset += heads[each].length
            if not count:
                break
        return True

    cdef bint _take(self, Part *part, const Head *head, uint32_t hash, uint64_t offset) noexcept nogil:
        """Keep what the plan calls live. False: no memory."""
        cdef Entry entry
        if is_change(head.kind):
            if self._none_in_time or head.time_ms > self._until_ms or not is_live(part, head.sequence):
                return True
            if head.sequence > part.sequence:
                part.sequence, part.time_ms = head.sequence, max(head.time_ms, part.time_ms)
            if head.kind == FLUSH:
                return flush(&part.keys, head.sequence)
            if head.kind == OPEN:
                return True
        elif head.kind == IMPORT_BEGIN:
            part.ordinal = part.ordinal + 1 if part.source == self._source else 1
            part.source = self._source
            return True
        elif head.kind != ROW or not self._is_base_row(part):
            return True
        entry.version = head.sequence
        entry.offset = offset
        entry.length = 0 if head.kind == REMOVE else head.length
        entry.file = self._file_count - 1
        return put(&part.keys, self._files, head, hash, &entry)

    cdef bint _is_base_row(self, const Part *part) noexcept nogil:
        if part.source != self._source or part.base_source != self._source:
            return False
        return part.ordinal == part.base_ordinal

    def finish(self):
        """Bucket: its newest sequence, that one's time, and its rows."""
        cdef uint32_t place
        self._enter()
        try:
            self._finished = True
            for place in range(self._buckets.count):
                seal(&self._parts[place].keys)
            free(self._window.buffer)
            self._window.buffer, self._window.room = NULL, 0
            self._window.base = self._window.held = 0
        finally:
            self._leave()
        return {
            bucket: (self._parts[place].sequence, self._parts[place].time_ms, _rows(self, place))
            for place, bucket in enumerate(self._numbers)
        }


cdef MappedRows _rows(Builder builder, uint32_t place):
    cdef MappedRows rows = MappedRows.__new__(MappedRows)
    rows._builder, rows._keys = builder, &builder._parts[place].keys
    return rows


@cython.final
cdef class MappedRows:
    """See `rows.Rows`. All rows of one rebuild are used by one thread at a time."""

    cdef Builder _builder
    cdef Keys *_keys

    def __len__(self):
        return self._keys.count

    def clear(self):
        self._builder._enter()
        clear(self._keys)
        self._builder._leave()

    @property
    def live_count(self):
        cdef uint32_t place
        cdef uint64_t live = 0
        self._builder._enter()
        for place in range(self._keys.count):
            live += self._keys.entries[place].length > 0
        self._builder._leave()
        return live

    def live(self):
        cdef uint32_t place = 0
        cdef Head head
        while True:
            self._builder._enter()
            try:
                while place < self._keys.count and not self._keys.entries[place].length:
                    place += 1
                if place >= self._keys.count:
                    return
                if not self._head(place, &head):
                    raise self._changed(place)
                key = PyBytes_FromStringAndSize(<const char *>key_of(&head), head.key_bytes)
                value = _value(&head)
                place += 1
            finally:
                self._builder._leave()
            yield key, Row(head.sequence, head.flags, head.expires_at_ms, value)

    def pieces(self, bytes before, bytes after, uint64_t time_ms, Py_ssize_t piece_bytes):
        cdef uint32_t place = 0, end = 0
        cdef Py_ssize_t size = PyBytes_GET_SIZE(before)
        cdef bytes front = before
        if size >= piece_bytes:
            yield front
            front, size = b"", 0
        while True:
            while end < self._keys.count and size < piece_bytes:
                size += self._keys.entries[end].length
                end += 1
            if size < piece_bytes:
                break
            yield self._piece(front, place, end, b"", size, time_ms)
            front, size, place = b"", 0, end
        yield self._piece(front, place, end, after, size + PyBytes_GET_SIZE(after), time_ms)

    cdef bytes _piece(self, bytes front, uint32_t place, uint32_t end, bytes back, Py_ssize_t size, uint64_t time_ms):
        """One piece of an import: `front`, the rows from `place` to `end`, `back`."""
        cdef bytes piece = PyBytes_FromStringAndSize(NULL, size)
        cdef Room left = room(<uint8_t *>PyBytes_AS_STRING(piece), size)
        cdef uint32_t failed
        self._builder._enter()
        try:
            if end > self._keys.count:
                raise RuntimeError("these rows were let go of")
            write_bytes(&left, <const uint8_t *>PyBytes_AS_STRING(front), PyBytes_GET_SIZE(front))
            with nogil:
                failed = self._write_rows(&left, place, end, time_ms)
            if failed != end:
                raise self._changed(failed)
            write_bytes(&left, <const uint8_t *>PyBytes_AS_STRING(back), PyBytes_GET_SIZE(back))
            assert left.left == 0
        finally:
            self._builder._leave()
        return piece

    cdef uint32_t _write_rows(self, Room *left, uint32_t place, uint32_t end, uint64_t time_ms) noexcept nogil:
        """Returns the place of the row that is not what it was, or `end`."""
        cdef Head head
        cdef uint32_t ahead
        for ahead in range(place, end + ROWS_AHEAD):
            if ahead < end:
                self._prefetch(&self._keys.entries[ahead])
            if ahead < place + ROWS_AHEAD:
                continue
            if not self._keys.entries[ahead - ROWS_AHEAD].length:
                continue
            if not self._head(ahead - ROWS_AHEAD, &head) or not _write_row(left, &head, time_ms):
                return ahead - ROWS_AHEAD
        return end

    cdef void _prefetch(self, const Entry *entry) noexcept nogil:
        cdef Countdown rest = countdown(self._builder._files[entry.file].at, self._builder._files[entry.file].size)
        take(&rest, entry.offset)
        prefetch(take(&rest, 1))
        take(&rest, 63)
        prefetch(take(&rest, 1))

    cdef bint _head(self, uint32_t place, Head *head) noexcept nogil:
        """The record of a live entry, if it still is what it was (invariant 2)."""
        cdef const Entry *entry = &self._keys.entries[place]
        if not head_at(&self._builder._files[entry.file], entry.offset, head):
            return False
        return head.length == entry.length and head.sequence == entry.version

    cdef object _changed(self, uint32_t place):
        cdef const Entry *entry = &self._keys.entries[place]
        return DataDamaged(self._builder._paths[entry.file], entry.offset, "it was changed while it was read")


cdef bint _write_row(Room *left, const Head *head, uint64_t time_ms) noexcept nogil:
    """The record as a ROW: only kind, cause and time are others. False: no room."""
    cdef uint8_t row[2]
    cdef size_t rest = head.length - 32
    cdef Countdown record = countdown(head.start, head.length)
    row[0], row[1] = ROW, 0
    if left.left < head.length:
        return False
    write_bytes(left, take(&record, 4), 4)  # length
    take(&record, 2)
    write_bytes(left, row, 2)  # kind and cause
    write_bytes(left, take(&record, 18), 18)  # length of the key, bucket, flags, sequence
    take(&record, 8)
    write64(left, time_ms)
    return write_bytes(left, take(&record, rest), rest)  # expiry, key, value


cdef bytes _value(const Head *head):
    cdef Countdown record = countdown(head.start, head.length)
    cdef size_t count = head.length - RECORD_HEADER - head.key_bytes
    return PyBytes_FromStringAndSize(<const char *>value_of(head), count)
