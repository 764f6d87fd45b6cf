"""Opcodes, statuses, roles: the numbers on the wire and what a caller should do about each.

What it is: the vocabulary of `docs/protocol.md`, in the order of that text.
Which thread runs it: any; everything here is constant.
What it owns: nothing.
What it must not know: how payloads are laid out (that is `grammar`).
"""

from __future__ import annotations

from enum import IntEnum

PROTOCOL_VERSION = 1
"""The only version there is. HELLO carries a range, so that a later one can be agreed on."""

REQUEST_MAGIC = 0xCA
REPLY_MAGIC = 0xCB

DEFAULT_PORT = 13600

KEY_BYTES_MAX = 65_535
"""A key's length is a u16; the empty key names a whole bucket in a record and is never a key."""

VALUE_BYTES_CEILING = 1 << 30
"""No configuration may allow a larger value: lengths stay well inside a u32 with a header and a key added."""

TTL_MS_MAX = 100 * 366 * 24 * 3600 * 1000
"""A century. A longer time to live is taken for a mistake (an absolute time sent as a relative one, most often)."""

BUDGET_MS_MAX = 0xFFFF_FFFF

MANY_KEYS_MAX = 65_535
"""Keys in one many-key request: their count is a u16."""

NO_REQUEST_ID = 0
"""Request ids start at 1 and skip 0 when they wrap; 0 says 'none' in a GOODBYE and in replies to unreadable frames."""

NODE_NAME_BYTES_MAX = 64
NONCE_BYTES = 16
PROOF_BYTES = 32
CLUSTER_ID_BYTES = 16
ANY_CLUSTER = bytes(CLUSTER_ID_BYTES)
"""In HELLO: 'I have not learnt a cluster id yet'."""
VALUE_HASH_BYTES = 16


class Opcode(IntEnum):
    """What a request asks for. A reply repeats the opcode of its request."""

    HELLO = 0x01
    AUTH = 0x02
    PING = 0x03
    GOODBYE = 0x04

    GET = 0x10
    GET_AND_TOUCH = 0x11
    SET = 0x12
    ADD = 0x13
    REPLACE = 0x14
    DELETE = 0x15
    TOUCH = 0x16
    INCREMENT = 0x17
    DECREMENT = 0x18
    APPEND = 0x19
    PREPEND = 0x1A
    CAS_VERSION = 0x1B
    CAS_HASH = 0x1C
    INSPECT = 0x1D
    GET_WITH_TTL = 0x1E

    GET_MANY = 0x20
    SET_MANY = 0x21
    DELETE_MANY = 0x22

    SUBSCRIBE = 0x30
    EVENTS = 0x31
    COPY = 0x32

    FLUSH = 0x40
    STATS = 0x41
    PERSIST = 0x42
    VIEW = 0x43
    STEER = 0x44

    HEARTBEAT = 0x50
    RECORDS = 0x51
    SEQUENCES = 0x52
    REGISTER_READ = 0x53
    REGISTER_SET = 0x54
    REGISTER_WATCH = 0x55
    REGISTER_PROMISE = 0x56


DATA_OPCODES = frozenset(op for op in Opcode if Opcode.GET <= op <= Opcode.DELETE_MANY)
"""Executed by the engine. Everything else is the control plane's."""

NODE_OPCODES = frozenset(op for op in Opcode if Opcode.HEARTBEAT <= op <= Opcode.REGISTER_PROMISE)
"""What nodes say to each other; refused to whoever did not say HELLO as a node."""

READ_OPCODES = frozenset(
    {Opcode.GET, Opcode.INSPECT, Opcode.GET_WITH_TTL, Opcode.GET_MANY, Opcode.PING, Opcode.STATS, Opcode.VIEW}
)
"""Safe to send again whatever became of the first try."""


class Role(IntEnum):
    """What the one who says HELLO is."""

    CLIENT = 1
    NODE = 2
    LOGGER = 3
    ADMIN = 4


class PersistMode(IntEnum):
    """The argument and the answer of PERSIST."""

    OFF = 0
    ON = 1
    ASK = 2


class StatusClass(IntEnum):
    """The upper half of a status: what the caller should do. A status unknown to a reader is still treated by its class."""

    ANSWERED = 0x00
    REFUSED = 0x10
    TRY_LATER = 0x20
    ELSEWHERE = 0x30
    UNKNOWN_OUTCOME = 0x40
    CLOSING = 0x50


class Status(IntEnum):
    """How a request ended. All but OK and the UNKNOWN_OUTCOME class mean: not executed."""

    OK = 0x00
    NOT_FOUND = 0x01
    EXISTS = 0x02
    CHANGED = 0x03
    CHALLENGE = 0x04

    TOO_LARGE = 0x10
    NO_ROOM = 0x11
    NOT_A_NUMBER = 0x12
    OUT_OF_RANGE = 0x13
    UNKNOWN_OPCODE = 0x14
    NOT_ALLOWED = 0x15
    REPLY_FULL = 0x16
    BAD_ARGUMENT = 0x17
    WRONG_NODE = 0x18
    BROKEN_CHAIN = 0x19
    BAD_VIEW = 0x1A

    BUSY = 0x20
    PAUSED = 0x21
    DEADLINE_PASSED = 0x22
    STOPPING = 0x23
    VIEW_AHEAD = 0x24
    REGISTER_UNAVAILABLE = 0x25

    NOT_PRIMARY = 0x30
    STALE_VIEW = 0x31

    NOT_COMMITTED = 0x40
    APPEND_LOG_FAILED = 0x41
    INTERNAL_ERROR = 0x42
    VIEW_UNSETTLED = 0x43

    BAD_MAGIC = 0x50
    BAD_VERSION = 0x51
    FRAME_TOO_LONG = 0x52
    BAD_PAYLOAD = 0x53
    BAD_FLAGS = 0x54
    HELLO_EXPECTED = 0x55
    WRONG_PROOF = 0x56
    WRONG_CLUSTER = 0x57
    TOO_MANY_CONNECTIONS = 0x58
    HELLO_TIMEOUT = 0x59
    IDLE_TIMEOUT = 0x5A
    FRAME_TIMEOUT = 0x5B
    SHUTTING_DOWN = 0x5C


def status_class(status: int) -> StatusClass:
    """The class of any status byte, known or not; what is above the last class counts as CLOSING."""
    return StatusClass(min(status & 0xF0, StatusClass.CLOSING))


def status_name(status: int) -> str:
    """A status for people: its name, or its number where this version does not know it."""
    try:
        return Status(status).name
    except ValueError:
        return f"status 0x{status:02x}"


def opcode_name(opcode: int) -> str:
    """An opcode for people: its name, or its number where this version does not know it."""
    try:
        return Opcode(opcode).name
    except ValueError:
        return f"opcode 0x{opcode:02x}"
