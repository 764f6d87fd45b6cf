"""The payload grammar: for every opcode and status, the one definition that both encodes and decodes its payload.

What it is: the inner grammar of `docs/protocol.md`. A payload is its fixed-width fields first (the lengths of its strings
among them), then the bytes of its strings, in the order of the definition. Nothing else and nothing after. A string that is
the `rest` takes what is left of the payload, to its end.
Which thread runs it: any; everything here is constant.
What it owns: nothing.
What it must not know: frames, sockets, what the server does with a value.

`decode` raises `BadPayload` for a length that does not come out even and for a value outside its range, so that whoever got a
tuple from it holds only what the protocol allows. `encode` trusts its caller with ranges: the client checks its arguments
where it can name them. There is one encoding of each payload: what `decode` takes, `encode` gives back byte for byte.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from struct import Struct
from typing import Any

from rcache_client.wire.countdown import Countdown, CountdownError
from rcache_client.wire.opcodes import (
    CLUSTER_ID_BYTES,
    KEY_BYTES_MAX,
    NODE_NAME_BYTES_MAX,
    NONCE_BYTES,
    PROOF_BYTES,
    TTL_MS_MAX,
    VALUE_BYTES_CEILING,
    VALUE_HASH_BYTES,
    Opcode,
    PersistMode,
    Role,
    Status,
    StatusClass,
    status_class,
)


class BadPayload(ValueError):
    """A payload that is not what its type demands."""


@dataclass(frozen=True, slots=True)
class Field:
    """One field: a number or fixed bytes (`code` is its struct code), or a string whose length has that code.

    `low` and `high` bound the number or, for a string, its length in bytes. A string that is the `rest` of its payload has no
    length of its own (a code of no bytes), and is the last field.
    """

    name: str
    code: str
    low: int
    high: int
    string: bool = False
    text: bool = False
    rest: bool = False

    @property
    def fixed_bytes(self) -> bool:
        return self.code.endswith("s") and not self.string

    @property
    def bounded(self) -> bool:
        """Whether it is a number whose bounds are narrower than what its code can hold."""
        return not self.string and not self.fixed_bytes and (self.low, self.high) != _code_range(self.code)


def _code_range(code: str) -> tuple[int, int]:
    """The least and the greatest number that a struct code holds; lower case codes are signed."""
    bits = 8 * Struct(">" + code).size
    return (-(1 << bits - 1), (1 << bits - 1) - 1) if code.islower() else (0, (1 << bits) - 1)


def u8(name: str, low: int = 0, high: int = 0xFF) -> Field:
    return Field(name, "B", low, high)


def u16(name: str, low: int = 0, high: int = 0xFFFF) -> Field:
    return Field(name, "H", low, high)


def u32(name: str, low: int = 0, high: int = 0xFFFF_FFFF) -> Field:
    return Field(name, "I", low, high)


def u64(name: str, low: int = 0, high: int = 0xFFFF_FFFF_FFFF_FFFF) -> Field:
    return Field(name, "Q", low, high)


def i64(name: str) -> Field:
    return Field(name, "q", -(1 << 63), (1 << 63) - 1)


def fixed(name: str, count: int) -> Field:
    return Field(name, f"{count}s", count, count)


def bytes16(name: str, low: int, high: int) -> Field:
    return Field(name, "H", low, high, string=True)


def bytes32(name: str, high: int) -> Field:
    return Field(name, "I", 0, high, string=True)


def text16(name: str, low: int = 0, high: int = 0xFFFF) -> Field:
    return Field(name, "H", low, high, string=True, text=True)


def rest(name: str) -> Field:
    """What is left of the payload: only as the last field, and never in a group, where one entry would take the next."""
    return Field(name, "0s", 0, 0xFFFF_FFFF, string=True, rest=True)


class Layout:
    """A payload made of fields. `decode` returns their values as a tuple, in the order they were declared."""

    def __init__(self, name: str, *fields: Field) -> None:
        assert not any(field.rest for field in fields[:-1]), f"{name}: what is left of a payload is its end"
        self.name = name
        self.fields = fields
        self._struct = Struct(">" + "".join(f.code for f in fields))
        self._bounded = tuple((i, f) for i, f in enumerate(fields) if f.bounded)
        self._strings = tuple((i, f) for i, f in enumerate(fields) if f.string)
        self._fixed = tuple((i, f) for i, f in enumerate(fields) if f.fixed_bytes)

    @property
    def bytes_min(self) -> int:
        """The length of the fixed part, in bytes."""
        return self._struct.size

    def encode(self, *values: Any) -> bytes:
        """The payload for these values, one for each field; text as str, all other strings as bytes.

        Raises `ValueError` for fixed bytes of another length, which `struct` would trim or pad without a word.
        """
        for i, field in self._fixed:
            if len(values[i]) != field.high:
                raise ValueError(f"{self.name}: {field.name} of {len(values[i])} bytes, not {field.high}")
        if not self._strings:
            return self._struct.pack(*values)
        heads = list(values)
        tails = []
        for i, field in self._strings:
            tail = values[i].encode() if field.text else values[i]
            heads[i] = b"" if field.rest else len(tail)
            tails.append(tail)
        return self._struct.pack(*heads) + b"".join(tails)

    def take(self, body: Countdown) -> tuple[Any, ...]:
        """Read one such group from `body`, leaving what follows it. Raises `BadPayload`."""
        try:
            values = body.unpack(self._struct)
            for i, field in self._bounded:
                if not field.low <= values[i] <= field.high:
                    raise BadPayload(f"{self.name}: {field.name} is {values[i]}, not {field.low} to {field.high}")
            if not self._strings:
                return values
            return self._take_strings(body, list(values))
        except CountdownError as error:
            raise BadPayload(f"{self.name}: {error}") from None

    def _take_strings(self, body: Countdown, values: list[Any]) -> tuple[Any, ...]:
        for i, field in self._strings:
            length = body.remaining if field.rest else values[i]
            if not field.low <= length <= field.high:
                raise BadPayload(f"{self.name}: {field.name} of {length} bytes, not {field.low} to {field.high}")
            tail = body.take(length)
            values[i] = _decode_text(self.name, field.name, tail) if field.text else tail
        return tuple(values)

    def decode(self, payload: bytes) -> tuple[Any, ...]:
        """Read a whole payload, which must come out even. Raises `BadPayload`."""
        body = Countdown(payload)
        values = self.take(body)
        _finish(self.name, body)
        return values


class Group:
    """A payload that is a u16 count and then that many groups of one layout. `decode` returns a list of tuples."""

    def __init__(self, name: str, entry: Layout) -> None:
        assert not any(field.rest for field in entry.fields), f"{name}: an entry would take those behind it"
        self.name = name
        self.entry = entry

    bytes_min = 2

    def encode(self, *entries: Sequence[Any]) -> bytes:
        """The payload for these entries, each a sequence of the entry layout's values."""
        return self.join([self.entry.encode(*entry) for entry in entries])

    @staticmethod
    def join(entries: Sequence[bytes]) -> bytes:
        """The payload for entries that were encoded before."""
        return _COUNT.pack(len(entries)) + b"".join(entries)

    def decode(self, payload: bytes) -> list[tuple[Any, ...]]:
        """Read a whole payload, which must come out even. Raises `BadPayload`."""
        body = Countdown(payload)
        try:
            (count,) = body.unpack(_COUNT)
        except CountdownError as error:
            raise BadPayload(f"{self.name}: {error}") from None
        if count * self.entry.bytes_min > body.remaining:
            raise BadPayload(f"{self.name}: {count} entries claimed, {body.remaining} bytes left")
        entries = [self.entry.take(body) for _ in range(count)]
        _finish(self.name, body)
        return entries


_COUNT = Struct(">H")


def _decode_text(layout: str, field: str, tail: bytes) -> str:
    try:
        return tail.decode()
    except UnicodeDecodeError:
        raise BadPayload(f"{layout}: {field} is not UTF-8") from None


def _finish(name: str, body: Countdown) -> None:
    try:
        body.finish()
    except CountdownError as error:
        raise BadPayload(f"{name}: {error}") from None


# Fields that occur more than once.
KEY = bytes16("key", 1, KEY_BYTES_MAX)
VALUE = bytes32("value", VALUE_BYTES_CEILING)
USER_FLAGS = u32("user flags")
VERSION = u64("version")
TTL = u64("time to live, ms", 0, TTL_MS_MAX)
TIME_LEFT = u64("time left, ms")
NAME = text16("name", 1, NODE_NAME_BYTES_MAX)
_WELCOME = (
    u8("protocol version", 1),
    fixed("cluster id", CLUSTER_ID_BYTES),
    u64("incarnation"),
    u32("buckets", 1),
    u32("frame bytes max", 1),
    u32("value bytes max"),
    u32("idle time, ms"),
    text16("node name", 1, NODE_NAME_BYTES_MAX),
    text16("server version", 1, 64),
)

EMPTY = Layout("nothing")
REASON = Layout("reason", text16("reason"))
VERSION_REPLY = Layout("version", VERSION)
GOODBYE_REPLY = Layout("goodbye", u32("last executed request id"), text16("reason"))
WELCOME = Layout("welcome", *_WELCOME)
STORE = Layout("store", USER_FLAGS, TTL, KEY, VALUE)
KEY_ONLY = Layout("key", KEY)
KEY_AND_TTL = Layout("key and time to live", TTL, KEY)
EXTEND = Layout("extend", KEY, VALUE)
COUNT_BY = Layout("count", i64("delta"), u8("create", 0, 1), i64("initial"), TTL, KEY)
ITEM = Layout("item", USER_FLAGS, VERSION, VALUE)
ITEM_AND_TIME_LEFT = Layout("item and time left", USER_FLAGS, VERSION, TIME_LEFT, VALUE)
ITEM_ENTRY = Layout("item entry", u8("status"), USER_FLAGS, VERSION, VALUE)
CHANGE_ENTRY = Layout("change entry", u8("status"), VERSION)
COUNTER = Layout("counter", i64("value"), VERSION)
NEWER_VIEW = Layout("newer view", rest("view"))
_FROM_TO = (u32("epoch"), u64("from incarnation"), u64("to incarnation"))
INSPECTION = Layout("inspection", VERSION, USER_FLAGS, TIME_LEFT, u32("value bytes"))

REQUESTS: dict[int, Layout | Group] = {
    Opcode.HELLO: Layout(
        "hello",
        u8("version min", 1),
        u8("version max", 1),
        u8("role", min(Role), max(Role)),
        fixed("cluster id", CLUSTER_ID_BYTES),
        fixed("nonce", NONCE_BYTES),
        NAME,
    ),
    Opcode.AUTH: Layout("auth", fixed("proof", PROOF_BYTES)),
    Opcode.PING: EMPTY,
    Opcode.GOODBYE: EMPTY,
    Opcode.GET: KEY_ONLY,
    Opcode.GET_AND_TOUCH: KEY_AND_TTL,
    Opcode.SET: STORE,
    Opcode.ADD: STORE,
    Opcode.REPLACE: STORE,
    Opcode.DELETE: KEY_ONLY,
    Opcode.TOUCH: KEY_AND_TTL,
    Opcode.INCREMENT: COUNT_BY,
    Opcode.DECREMENT: COUNT_BY,
    Opcode.APPEND: EXTEND,
    Opcode.PREPEND: EXTEND,
    Opcode.CAS_VERSION: Layout("check-and-set by version", VERSION, USER_FLAGS, TTL, KEY, VALUE),
    Opcode.CAS_HASH: Layout("check-and-set by hash", fixed("value hash", VALUE_HASH_BYTES), USER_FLAGS, TTL, KEY, VALUE),
    Opcode.INSPECT: KEY_ONLY,
    Opcode.GET_WITH_TTL: KEY_ONLY,
    Opcode.GET_MANY: Group("get many", KEY_ONLY),
    Opcode.SET_MANY: Group("set many", STORE),
    Opcode.DELETE_MANY: Group("delete many", KEY_ONLY),
    Opcode.SUBSCRIBE: Layout(
        "subscribe", u8("values", 0, 1), u8("selects", 0, 2), bytes16("selector", 0, KEY_BYTES_MAX), rest("places")
    ),
    Opcode.EVENTS: Layout("events", u32("bytes max", 1)),
    Opcode.COPY: Layout("copy", u32("bucket"), u8("begins", 0, 1), u32("bytes max", 1)),
    Opcode.FLUSH: EMPTY,
    Opcode.STATS: Layout("stats", text16("section", 0, 64)),
    Opcode.PERSIST: Layout("persist", u8("mode", min(PersistMode), max(PersistMode))),
    Opcode.VIEW: Layout("view", u32("epoch known")),
    Opcode.STEER: Layout("steer", rest("order")),
    Opcode.HEARTBEAT: Layout("heartbeat", *_FROM_TO, u64("heartbeat")),
    Opcode.RECORDS: Layout("records", *_FROM_TO, u32("generation", 1), rest("records")),
    Opcode.SEQUENCES: Layout("sequences", *_FROM_TO),
    Opcode.REGISTER_READ: EMPTY,
    Opcode.REGISTER_SET: Layout("register set", u64("revision"), rest("view")),
    Opcode.REGISTER_WATCH: Layout("register watch", u64("revision")),
    Opcode.REGISTER_PROMISE: Layout("register promise", u32("term"), text16("nonce", 0, 64)),
}
"""The payload of each request."""

_OK_REPLIES: dict[int, Layout | Group] = {
    Opcode.HELLO: WELCOME,
    Opcode.AUTH: Layout("auth reply", fixed("proof", PROOF_BYTES), *_WELCOME),
    Opcode.PING: EMPTY,
    Opcode.GOODBYE: GOODBYE_REPLY,
    Opcode.GET: ITEM,
    Opcode.GET_AND_TOUCH: ITEM,
    Opcode.INCREMENT: COUNTER,
    Opcode.DECREMENT: COUNTER,
    Opcode.INSPECT: INSPECTION,
    Opcode.GET_WITH_TTL: ITEM_AND_TIME_LEFT,
    Opcode.GET_MANY: Group("get many reply", ITEM_ENTRY),
    Opcode.SET_MANY: Group("set many reply", CHANGE_ENTRY),
    Opcode.DELETE_MANY: Group("delete many reply", CHANGE_ENTRY),
    Opcode.SUBSCRIBE: Layout("subscribe reply", rest("places")),
    Opcode.EVENTS: Layout("events reply", u32("behind, ms"), bytes32("notices", VALUE_BYTES_CEILING), rest("records")),
    Opcode.COPY: Layout("copy reply", u8("whole", 0, 1), rest("records")),
    Opcode.FLUSH: Layout("flush reply", u64("items removed")),
    Opcode.STATS: Layout("stats reply", bytes32("JSON", VALUE_BYTES_CEILING)),
    Opcode.PERSIST: Layout("persist reply", u8("mode", PersistMode.OFF, PersistMode.ON), text16("savefile")),
    Opcode.VIEW: Layout("view reply", text16("register"), rest("view")),
    Opcode.STEER: Layout("steer reply", rest("answer")),
    Opcode.HEARTBEAT: Layout("heartbeat reply", u64("heartbeat"), u64("granted, ns")),
    Opcode.RECORDS: Layout("records reply", i64("room")),
    Opcode.SEQUENCES: Layout("sequences reply", rest("sequences")),
    Opcode.REGISTER_READ: Layout("register read reply", u64("revision"), rest("view")),
    Opcode.REGISTER_SET: Layout("register set reply", u8("kept", 0, 1), u64("revision"), rest("view")),
    Opcode.REGISTER_WATCH: Layout("register watch reply", u64("revision"), rest("view")),
    Opcode.REGISTER_PROMISE: Layout(
        "register promise reply",
        u8("promised", 0, 1),
        u32("term"),
        text16("nonce", 0, 64),
        text16("data_dir_id", 0, 64),
        rest("view"),
    ),
}

_CONDITION_REPLIES: dict[int, Layout] = {
    Status.NOT_FOUND: EMPTY,
    Status.EXISTS: VERSION_REPLY,
    Status.CHANGED: VERSION_REPLY,
    Status.CHALLENGE: Layout("challenge", fixed("nonce", NONCE_BYTES)),
    Status.STALE_VIEW: NEWER_VIEW,
}

MANY_OPCODES = frozenset({Opcode.GET_MANY, Opcode.SET_MANY, Opcode.DELETE_MANY})


def reply_layout(opcode: int, status: int) -> Layout | Group:
    """The layout of a reply's payload. Raises `BadPayload` for an OK to an opcode that does not exist."""
    if status == Status.OK:
        if opcode in _OK_REPLIES:
            return _OK_REPLIES[opcode]
        if opcode in REQUESTS:
            return VERSION_REPLY
        raise BadPayload(f"an OK to opcode 0x{opcode:02x}, which does not exist")
    if status in _CONDITION_REPLIES:
        return _CONDITION_REPLIES[status]
    if opcode == Opcode.GOODBYE and status_class(status) is StatusClass.CLOSING:
        return GOODBYE_REPLY
    return REASON


def decode_reply(opcode: int, status: int, payload: bytes) -> Any:
    """A reply's payload, held to the exact length its type demands. Raises `BadPayload`."""
    return reply_layout(opcode, status).decode(payload)


def encode_keys(keys: Iterable[bytes]) -> bytes:
    """The payload of GET_MANY and DELETE_MANY."""
    return Group.join([KEY_ONLY.encode(key) for key in keys])
