"""What the compiled walks have in common: a file that is read ahead, block by block, into whatever takes its records."""

from libc.stdint cimport uint32_t, uint64_t

from rcache.records._blocks cimport Window
from rcache.records._countdown cimport Countdown


cdef class Taker:
    cdef Window _window
    cdef uint32_t _crc
    cdef int _in_use
    cdef object _why

    cdef int _enter(self) except -1
    cdef void _leave(self) noexcept
    cdef bint _feed(self, uint64_t offset, Countdown body, uint32_t records) except -1 nogil
