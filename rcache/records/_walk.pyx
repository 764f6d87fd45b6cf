# cython: freethreading_compatible=True
"""The compiled body of the walks over files of records: `walk` holds the contract, and the readable body.

What it is: blocks are read, checked and walked here without an object for each record and without the interpreter lock. The
survey tells `History` runs of changes in place of every change, and everything else (OPENs, the marks of imports) as it comes.
The rebuild, which keeps rows where they lie in the mapped files, is in `_rows`.
Which thread runs it: the caller's. What it owns: the window on the file being read, and what it noted of each bucket.
What it must not know: what is wrong with a block that is not whole. It stops there, and `reader` says.

Invariants:
1. A run is told as if each of its changes had been: `History.note_run` takes runs cut anywhere, as long as those of a bucket
   come in the order of its records.
2. The rows before a mark are told before the mark.
3. Where a record makes no sense, what follows it in its block is not noted, and the block does not count for the links.
"""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stddef cimport size_t
from libc.stdint cimport UINT64_MAX, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memset

from rcache.records._blocks cimport (
    BLOCK_HEADER,
    DROP,
    OPEN,
    ROW,
    Block,
    Head,
    Window,
    is_change,
    take_block,
    take_head,
)
from rcache.records._buckets cimport NOWHERE, Buckets, add_place, free_buckets, place_of
from rcache.records._countdown cimport Countdown, countdown
from rcache.records._crc cimport crc32, crc_init

import os

from rcache.records.files import FileKind
from rcache.records.record import BadRecord
from rcache.records.record import Head as PyHead

cdef extern from * nogil:
    """
    static inline int rw_swap(int *at, int v) { return __atomic_exchange_n(at, v, __ATOMIC_SEQ_CST); }
    """
    int swap "rw_swap"(int *at, int value)

cdef uint64_t STEP_BYTES = 8 << 20  # read at most before the caller is asked whether to go on: a few milliseconds

crc_init()


def checksum(const uint8_t[::1] data, uint32_t before=0, bint fold=True):
    """As `zlib.crc32`. `fold` False: by tables alone, for tests."""
    cdef const uint8_t *at = &data[0] if data.shape[0] else NULL
    cdef size_t count = data.shape[0]
    cdef uint32_t found
    with nogil:
        found = crc32(before, at, count, fold)
    return found


cdef class Taker:
    """Reads ahead, and drops what it read: it only finds out where the whole blocks end."""

    def __dealloc__(self):
        free(self._window.buffer)

    cdef int _enter(self) except -1:
        """One thread at a time, with or without an interpreter lock."""
        if swap(&self._in_use, 1):
            raise RuntimeError("in use by another thread")
        return 0

    cdef void _leave(self) noexcept:
        swap(&self._in_use, 0)

    def begin(self, source, file):
        """What follows is of this file, which is open; it is of the `source`-th source."""
        cdef const uint8_t[::1] file_id = file.header.file_id
        self._enter()
        self._window.fd = file.fileno()
        self._window.size = file.size
        self._window.base = self._window.held = 0
        self._crc = crc32(0, &file_id[0], file_id.shape[0], True)
        self._leave()

    def run(self, uint64_t at, number):
        """See `walk.Taker`."""
        cdef uint64_t start = at, began = at, due, blocks = 0
        cdef bint good = True
        cdef Block block
        if number > UINT64_MAX:  # behind a block with the last of all numbers
            return at, 0, None
        due = number
        self._enter()
        try:
            with nogil:
                while good and at - start < STEP_BYTES and take_block(&self._window, self._crc, at, due, &block):
                    began, at = at, block.end
                    blocks += 1
                    good = self._feed(began, block.body, block.records)
                    if due == UINT64_MAX:
                        break
                    due += 1
        finally:
            self._leave()
        return at, blocks, None if good else (began, self._why)

    def take(self, block):
        """See `walk.Taker`."""
        cdef const uint8_t[::1] body = block.body
        cdef Countdown all_of_it = countdown(&body[0] if body.shape[0] else NULL, body.shape[0])
        self._enter()
        try:
            if not self._feed(block.offset, all_of_it, block.records):
                raise BadRecord(self._why)
        finally:
            self._leave()

    def end(self):
        """See `walk.Taker`."""

    cdef bint _feed(self, uint64_t offset, Countdown body, uint32_t records) except -1 nogil:
        """Take in the records of the whole block at `offset`. False: one makes no sense, for the reason in `_why`."""
        return True


cdef struct Notes:
    uint32_t bucket
    bint running  # a run that was not told yet
    bint spoken  # of in this file, last where and when `seen` says; `dropped`: by a DROP
    bint dropped
    uint64_t first
    uint64_t last
    uint64_t first_ms
    uint64_t last_ms
    uint64_t rows  # not told yet
    uint64_t seen
    uint64_t seen_ms


cdef class Surveyor(Taker):
    """See `walk.Surveyor`."""

    cdef readonly uint64_t records
    cdef Buckets _buckets
    cdef Notes *_notes
    cdef uint32_t _room
    cdef bint _links_count  # only segments do
    cdef object _history, _links, _source, _header

    def __cinit__(self, history, links):
        self._history, self._links = history, links
        self._buckets.odd = int.from_bytes(os.urandom(8), "little") | 1

    def __dealloc__(self):
        free_buckets(&self._buckets)
        free(self._notes)

    def begin(self, source, file):
        Taker.begin(self, source, file)
        self._source, self._header = source, file.header
        self._links_count = file.header.kind is FileKind.SEGMENT

    cdef Notes *_notes_of(self, uint32_t bucket) except NULL nogil:
        cdef uint32_t place = place_of(&self._buckets, bucket)
        cdef Notes *more
        if place != NOWHERE:
            return &self._notes[place]
        if self._buckets.count == self._room:
            more = <Notes *>realloc(self._notes, (<size_t>self._room * 2 + 64) * sizeof(Notes))
            if more == NULL:
                with gil:
                    raise MemoryError
            self._notes, self._room = more, self._room * 2 + 64
        place = add_place(&self._buckets, bucket)
        if place == NOWHERE:
            with gil:
                raise MemoryError
        memset(&self._notes[place], 0, sizeof(Notes))
        self._notes[place].bucket = bucket
        return &self._notes[place]

    cdef bint _feed(self, uint64_t offset, Countdown body, uint32_t records) except -1 nogil:
        cdef Countdown rest = body
        cdef Notes *notes = NULL
        cdef Head head
        self.records += records
        while rest.left and take_head(&rest, &head):
            if notes == NULL or notes.bucket != head.bucket:
                notes = self._notes_of(head.bucket)
            if head.kind == ROW:
                notes.rows += 1
            elif not is_change(head.kind):
                if not self._tell_mark(notes, &head):
                    return False
            else:
                self._note_change(notes, head.sequence, head.time_ms)
                if head.kind == OPEN and not self._tell_opening(&head):
                    return False  # invariant 3
        if self._links_count:
            self._note_seen(offset, body)
        return True

    cdef int _note_change(self, Notes *notes, uint64_t sequence, uint64_t time_ms) except -1 nogil:
        """Go on with the bucket's run, or begin the next."""
        if notes.running:
            if sequence == notes.last + 1 and sequence >> 40 == notes.last >> 40:
                notes.last, notes.last_ms = sequence, time_ms
                return 0
            with gil:
                self._tell_run(notes)
        notes.running = True
        notes.first = notes.last = sequence
        notes.first_ms = notes.last_ms = time_ms
        return 0

    cdef void _note_seen(self, uint64_t offset, Countdown rest) noexcept nogil:
        """Where this file last spoke of each bucket; all of them are known by now."""
        cdef Head head
        cdef Notes *notes = NULL
        while rest.left and take_head(&rest, &head):
            if notes == NULL or notes.bucket != head.bucket:
                notes = &self._notes[place_of(&self._buckets, head.bucket)]
            notes.spoken, notes.dropped = True, head.kind == DROP
            notes.seen, notes.seen_ms = offset, head.time_ms

    cdef int _tell_run(self, Notes *notes) except -1:
        notes.running = False
        self._history.note_run(notes.bucket, notes.first, notes.last, notes.first_ms, notes.last_ms)
        return 0

    cdef int _tell_rows(self, Notes *notes) except -1:
        cdef uint64_t rows = notes.rows
        notes.rows = 0
        if rows:
            self._history.note_rows(self._source, notes.bucket, rows)
        return 0

    cdef bint _tell_mark(self, Notes *notes, const Head *head) except -1 nogil:
        with gil:
            self._tell_rows(notes)  # invariant 2
            try:
                self._history.note_mark(self._source, _py_head(head), _record(head))
            except BadRecord as error:
                self._why = str(error)
                return False
        return True

    cdef bint _tell_opening(self, const Head *head) except -1 nogil:
        with gil:
            try:
                self._history.note_opening(_py_head(head), _record(head))
            except BadRecord as error:
                self._why = str(error)
                return False
        return True

    def end(self):
        """The file ends here: tell what was not told yet."""
        cdef Notes *notes
        cdef uint32_t place
        self._enter()
        try:
            for place in range(self._buckets.count):
                notes = &self._notes[place]
                self._tell_rows(notes)
                if notes.running:
                    self._tell_run(notes)
                if notes.spoken:
                    notes.spoken = False
                    self._links.note_seen(self._header, notes.bucket, notes.seen, notes.seen_ms, dropped=bool(notes.dropped))
        finally:
            self._leave()


cdef object _py_head(const Head *head):
    """Of a record that stands alone."""
    return PyHead(head.kind, head.bucket, head.sequence, head.time_ms, 0, head.length)


cdef bytes _record(const Head *head):
    return PyBytes_FromStringAndSize(<const char *>head.start, head.length)
