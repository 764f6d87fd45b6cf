"""One GET and one SET in the language of each server, with the reply that is right.

What it is: `Exchange`, a request and its reply, and a function for each of the three protocols that makes them for any key and
value. Where MARK stands in both, the load drivers put the number of a key.
Which thread runs it: the benchmark's only one.
What it owns: nothing.
What it must not know: sockets, and what is measured.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rcache_client.wire.frames import HEADER_BYTES, encode_reply, encode_request
from rcache_client.wire.grammar import ITEM, KEY_ONLY, STORE, VERSION_REPLY
from rcache_client.wire.opcodes import Opcode, Status

GET, SET = "GET", "SET"
OPERATIONS = (GET, SET)

MARK = b"########"
"""Eight digits go here; soak/load/drive.c looks for the same."""

KEY = b"key:0001"
VALUE = b"v" * 100
"""Of the fixed traffic: those of ../shared/bench/README.md."""

MARKED_KEY = b"key:" + MARK
"""12 bytes, as the goal for memory says."""


@dataclass(frozen=True)
class Exchange:
    """A request, and the reply to it: of exactly this length, its first `certain` bytes exactly these whatever the key."""

    request: bytes
    reply: bytes
    certain: int

    @property
    def head(self) -> bytes:
        """What the reply begins with."""
        return self.reply[: self.certain]

    @property
    def digits_at(self) -> int | None:
        """Where the reply has the digits of the key, in its value; None where it does not tell."""
        found = self.reply.rfind(MARK)
        return found if found >= 0 else None


Dialect = Callable[[str, bytes, bytes], Exchange]
"""An operation, a key and a value, as one server's exchange."""


def rcache(operation: str, key: bytes, value: bytes) -> Exchange:
    """Certain of a reply: magic, version, opcode, status and length. Not its epoch and the item's version."""
    opcode, asked, answered = (
        (Opcode.GET, KEY_ONLY.encode(key), ITEM.encode(0, 0, value))
        if operation == GET
        else (Opcode.SET, STORE.encode(0, 0, key, value), VERSION_REPLY.encode(0))
    )
    reply = encode_reply(opcode, Status.OK, 1, 0, answered)
    return Exchange(encode_request(opcode, 1, 0, asked), reply, HEADER_BYTES - 8)


def redis(operation: str, key: bytes, value: bytes) -> Exchange:
    if operation == GET:
        head = b"$%d\r\n" % len(value)
        return Exchange(b"*2\r\n$3\r\nGET\r\n$%d\r\n%b\r\n" % (len(key), key), b"%b%b\r\n" % (head, value), len(head))
    stored = b"+OK\r\n"
    return Exchange(b"*3\r\n$3\r\nSET\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (len(key), key, len(value), value), stored, len(stored))


def memcached(operation: str, key: bytes, value: bytes) -> Exchange:
    if operation == GET:
        reply = b"VALUE %b 0 %d\r\n%b\r\nEND\r\n" % (key, len(value), value)
        return Exchange(b"get %b\r\n" % key, reply, len(b"VALUE key:"))
    stored = b"STORED\r\n"
    return Exchange(b"set %b 0 0 %d\r\n%b\r\n" % (key, len(value), value), stored, len(stored))


def fixed(dialect: Dialect) -> dict[str, Exchange]:
    """GET and SET of KEY and VALUE."""
    return {operation: dialect(operation, KEY, VALUE) for operation in OPERATIONS}


def marked(dialect: Dialect, value_bytes: int) -> dict[str, Exchange]:
    """GET and SET of MARKED_KEY, whose value has so many bytes and begins with the key's own digits."""
    value = MARK + b"v" * (value_bytes - len(MARK))
    assert len(value) == value_bytes, "a value has room for the digits"
    return {operation: dialect(operation, MARKED_KEY, value) for operation in OPERATIONS}
