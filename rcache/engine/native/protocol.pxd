"""The numbers of the wire and of the records, as the native engine knows them.

What it is: constants. `_native` compares each with `rcache_client.wire` and `rcache.records` when it is imported, so they
cannot drift apart. Which thread runs it: any. What it owns: nothing. What it must not know: what they stand for.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from rcache.engine.native.system cimport put16, put32, put64

cdef enum:
    REQUEST_MAGIC = 0xCA
    REPLY_MAGIC = 0xCB
    PROTOCOL_VERSION = 1
    HEADER_BYTES = 16
    RECORD_HEADER_BYTES = 40
    VALUE_BYTES_CEILING = 1073741824
    TTL_MS_MAX = 3162240000000
    COUNTER_MAX = 0xFFFFFFFFFF
    COUNTER_BITS = 40
    VALUE_HASH_BYTES = 16

cdef enum Op:
    OP_GET = 0x10
    OP_GET_AND_TOUCH = 0x11
    OP_SET = 0x12
    OP_ADD = 0x13
    OP_REPLACE = 0x14
    OP_DELETE = 0x15
    OP_TOUCH = 0x16
    OP_INCREMENT = 0x17
    OP_DECREMENT = 0x18
    OP_APPEND = 0x19
    OP_PREPEND = 0x1A
    OP_CAS_VERSION = 0x1B
    OP_CAS_HASH = 0x1C
    OP_INSPECT = 0x1D
    OP_GET_WITH_TTL = 0x1E
    OP_GET_MANY = 0x20
    OP_SET_MANY = 0x21
    OP_DELETE_MANY = 0x22
    OP_RECORDS = 0x51

cdef enum St:
    ST_OK = 0x00
    ST_NOT_FOUND = 0x01
    ST_EXISTS = 0x02
    ST_CHANGED = 0x03
    ST_TOO_LARGE = 0x10
    ST_NO_ROOM = 0x11
    ST_NOT_A_NUMBER = 0x12
    ST_OUT_OF_RANGE = 0x13
    ST_REPLY_FULL = 0x16
    ST_BUSY = 0x20
    ST_DEADLINE_PASSED = 0x22
    ST_STOPPING = 0x23
    ST_PAUSED = 0x21
    ST_NOT_PRIMARY = 0x30
    ST_NOT_COMMITTED = 0x40
    ST_APPEND_LOG_FAILED = 0x41
    ST_BAD_MAGIC = 0x50
    ST_BAD_VERSION = 0x51
    ST_FRAME_TOO_LONG = 0x52
    ST_BAD_PAYLOAD = 0x53
    ST_BAD_FLAGS = 0x54

cdef enum RecordKind:
    KIND_OPEN = 1
    KIND_SET = 2
    KIND_REMOVE = 3
    KIND_FLUSH = 4
    KIND_ROW = 5
    KIND_IMPORT_BEGIN = 6
    KIND_IMPORT_END = 7
    KIND_DROP = 8
    KINDS = 9

cdef enum RecordCause:
    CAUSE_NONE = 0
    CAUSE_SET = 1
    CAUSE_TOUCHED = 2
    CAUSE_COUNTED = 3
    CAUSE_EXTENDED = 4
    CAUSE_DELETED = 16
    CAUSE_EXPIRED = 17
    CAUSE_EVICTED = 18
    CAUSE_FLUSHED = 19
    CAUSES = 20


cdef struct RecordHead:
    uint32_t length
    uint8_t kind
    uint8_t cause
    uint16_t key_bytes
    uint32_t bucket
    uint32_t flags
    uint64_t sequence
    uint64_t time_ms
    uint64_t expires_at_ms


cdef inline void put_record_head(uint8_t *at, const RecordHead *head) noexcept nogil:
    """The 40 bytes of a record's head but for its kind, which is what publishes it (`ring`)."""
    put32(at, head.length)
    at[5] = head.cause
    put16(at + 6, head.key_bytes)
    put32(at + 8, head.bucket)
    put32(at + 12, head.flags)
    put64(at + 16, head.sequence)
    put64(at + 24, head.time_ms)
    put64(at + 32, head.expires_at_ms)


cdef inline void put_frame_head(
    uint8_t *at, uint8_t opcode, uint8_t status, uint32_t payload, uint32_t request_id, uint32_t epoch
) noexcept nogil:
    """The 16 bytes of a reply's header."""
    at[0] = REPLY_MAGIC
    at[1] = PROTOCOL_VERSION
    at[2] = opcode
    at[3] = status
    put32(at + 4, payload)
    put32(at + 8, request_id)
    put32(at + 12, epoch)
