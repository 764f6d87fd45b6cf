"""Frames that lie, each named after its lie: the outer grammar (header) first, then the inner one (payload).

Every lie is told whole, one byte at a time, and with a neighbour's secret right behind it. Only `BadFrame` and `BadPayload`
may come of it, and neither result nor error may hold a byte from outside the frame.
"""

from __future__ import annotations

from struct import pack

import pytest

from rcache_client.wire.frames import (
    HEADER,
    HEADER_BYTES,
    BadFrame,
    ReplyReader,
    Request,
    RequestReader,
    encode_reply,
    encode_request,
)
from rcache_client.wire.grammar import REQUESTS, BadPayload, decode_reply, reply_layout
from rcache_client.wire.opcodes import (
    CLUSTER_ID_BYTES,
    NONCE_BYTES,
    PROOF_BYTES,
    REPLY_MAGIC,
    REQUEST_MAGIC,
    TTL_MS_MAX,
    VALUE_BYTES_CEILING,
    Opcode,
    Status,
)

from .conftest import Arrive, FrameReader
from .layouts import LAYOUTS, has_rest

FRAME_BYTES_MAX = 1 << 20
OVER = FRAME_BYTES_MAX - HEADER_BYTES + 1


def request_header(magic: int = REQUEST_MAGIC, version: int = 1, flags: int = 0, length: int = 0) -> bytes:
    return HEADER.pack(magic, version, Opcode.GET, flags, length, 7, 0)


def reply_header(magic: int = REPLY_MAGIC, version: int = 1, length: int = 0) -> bytes:
    return HEADER.pack(magic, version, Opcode.GET, Status.OK, length, 7, 1)


HEADER_LIES: dict[str, tuple[type[FrameReader], bytes, Status, int]] = {
    # name: reader, bytes, what is said about it, the request id that can be named
    "a web browser calls": (RequestReader, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", Status.BAD_MAGIC, 0),
    "a TLS hello": (RequestReader, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(20), Status.BAD_MAGIC, 0),
    "a memcached request": (RequestReader, b"\x80\x00\x00\x05" + bytes(25), Status.BAD_MAGIC, 0),
    "zeros": (RequestReader, bytes(HEADER_BYTES), Status.BAD_MAGIC, 0),
    "a reply sent to the server": (RequestReader, reply_header(), Status.BAD_MAGIC, 0),
    "a version to come": (RequestReader, request_header(version=2), Status.BAD_VERSION, 7),
    "version 0": (RequestReader, request_header(version=0), Status.BAD_VERSION, 7),
    "a flag nobody knows": (RequestReader, request_header(flags=0x80), Status.BAD_FLAGS, 7),
    "a flag and a payload that never comes": (RequestReader, request_header(flags=1, length=9), Status.BAD_FLAGS, 7),
    "one byte over the limit": (RequestReader, request_header(length=OVER), Status.FRAME_TOO_LONG, 7),
    "four gigabytes": (RequestReader, request_header(length=0xFFFF_FFFF), Status.FRAME_TOO_LONG, 7),
    "a length with its sign bit set": (RequestReader, request_header(length=0x8000_0000), Status.FRAME_TOO_LONG, 7),
    "reply: an echo of the request": (ReplyReader, request_header(), Status.BAD_MAGIC, 0),
    "reply: text": (ReplyReader, b"-ERR unknown command\r\n", Status.BAD_MAGIC, 0),
    "reply: a version to come": (ReplyReader, reply_header(version=2), Status.BAD_VERSION, 7),
    "reply: one byte over the limit": (ReplyReader, reply_header(length=OVER), Status.FRAME_TOO_LONG, 7),
    "reply: four gigabytes": (ReplyReader, reply_header(length=0xFFFF_FFFF), Status.FRAME_TOO_LONG, 7),
}
"""All are told without their payload: each is refused before any of it arrives."""


@pytest.mark.parametrize("lie", HEADER_LIES)
def test_a_lying_header_ends_the_stream(arrive: Arrive, lie: str, secret: bytes) -> None:
    reader_type, data, status, request_id = HEADER_LIES[lie]
    reader = reader_type(FRAME_BYTES_MAX)
    with pytest.raises(BadFrame) as caught:
        arrive(reader, data)
    assert caught.value.status is status
    assert caught.value.request_id == request_id
    assert caught.value.opcode == (Opcode.GET if request_id else 0)
    assert secret.decode() not in caught.value.reason
    assert caught.value.reason == str(caught.value)


@pytest.mark.parametrize("lie", HEADER_LIES)
def test_after_a_lie_nothing_is_handed_out_any_more(lie: str) -> None:
    reader_type, data, status, _ = HEADER_LIES[lie]
    reader = reader_type(FRAME_BYTES_MAX)
    reader.feed(data)
    with pytest.raises(BadFrame):
        reader.next()
    reader.feed(encode_request(Opcode.PING, 8, 0) + encode_reply(Opcode.PING, 0, 8, 1))
    with pytest.raises(BadFrame) as caught:
        reader.next()
    assert caught.value.status is status


@pytest.mark.parametrize(("reader_type", "magic"), [(RequestReader, 0xCA), (ReplyReader, 0xCB)])
def test_wrong_magic_is_seen_at_the_first_byte(reader_type: type[FrameReader], magic: int) -> None:
    for first in range(256):
        reader = reader_type(FRAME_BYTES_MAX)
        reader.feed(bytes([first]))
        if first == magic:
            assert reader.next() is None
            continue
        with pytest.raises(BadFrame) as caught:
            reader.next()
        assert caught.value.status is Status.BAD_MAGIC


def test_the_frames_before_a_lie_are_still_handed_out() -> None:
    reader = RequestReader(FRAME_BYTES_MAX)
    reader.feed(encode_request(Opcode.PING, 1, 0) + encode_request(Opcode.PING, 2, 0) + b"junk")
    assert [reader.next(), reader.next()] == [Request(Opcode.PING, 1, 0, b""), Request(Opcode.PING, 2, 0, b"")]
    with pytest.raises(BadFrame):
        reader.next()


def test_a_length_within_the_limit_keeps_nothing_ahead_of_its_bytes() -> None:
    """A claim alone must not cost memory: what is held is what came."""
    reader = RequestReader(FRAME_BYTES_MAX)
    reader.feed(request_header(length=OVER - 1))
    assert reader.next() is None
    assert reader.held == HEADER_BYTES


def store(key_bytes: int, value_bytes: int, body: bytes, ttl: int = 0) -> bytes:
    """A STORE payload that claims these lengths and brings `body`."""
    return pack(">IQHI", 0, ttl, key_bytes, value_bytes) + body


def count_by(create: int, ttl: int = 0) -> bytes:
    return pack(">qBqQH", 1, create, 0, ttl, 1) + b"k"


def hello(low: int = 1, high: int = 1, role: int = 1, name: bytes = b"me") -> bytes:
    return pack(">BBB", low, high, role) + bytes(CLUSTER_ID_BYTES + NONCE_BYTES) + pack(">H", len(name)) + name


def from_to(*numbers: int) -> bytes:
    """What a frame between nodes begins with, and these u64 behind it."""
    return pack(f">IQQ{len(numbers)}Q", 7, 3, 5, *numbers)


REQUEST_LIES: dict[str, tuple[Opcode, bytes]] = {
    "no payload where a key is due": (Opcode.GET, b""),
    "half a length": (Opcode.GET, b"\x00"),
    "key longer than the frame": (Opcode.GET, b"\x00\x04key"),
    "key of 65,535 bytes that is not there": (Opcode.GET, b"\xff\xffkey"),
    "key shorter than the frame": (Opcode.GET, b"\x00\x02key"),
    "empty key": (Opcode.GET, b"\x00\x00"),
    "empty key with bytes behind it": (Opcode.DELETE, b"\x00\x00key"),
    "fixed part cut off": (Opcode.SET, store(1, 1, b"")[:-1]),
    "value longer than the frame": (Opcode.SET, store(1, 3, b"kvv")),
    "value length of four gigabytes": (Opcode.SET, store(1, 0xFFFF_FFFF, b"kvv")),
    "value length over the ceiling": (Opcode.SET, store(1, VALUE_BYTES_CEILING + 1, b"kvv")),
    "value shorter than the frame": (Opcode.SET, store(1, 1, b"kvv")),
    "key that reaches into the value and leaves it short": (Opcode.SET, store(3, 2, b"keyv")),
    "store with an empty key": (Opcode.ADD, store(0, 1, b"v")),
    "TTL one over its range": (Opcode.SET, store(1, 1, b"kv", ttl=TTL_MS_MAX + 1)),
    "TTL that is a negative number": (Opcode.REPLACE, store(1, 1, b"kv", ttl=(1 << 64) - 1)),
    "touch with a TTL out of range": (Opcode.TOUCH, pack(">QH", TTL_MS_MAX + 1, 1) + b"k"),
    "get-and-touch with a TTL out of range": (Opcode.GET_AND_TOUCH, pack(">QH", TTL_MS_MAX + 1, 1) + b"k"),
    "count with a TTL out of range": (Opcode.INCREMENT, count_by(1, TTL_MS_MAX + 1)),
    "create is neither 0 nor 1": (Opcode.DECREMENT, count_by(2)),
    "append without room for its value length": (Opcode.APPEND, b"\x00\x01"),
    "prepend of a value that is not there": (Opcode.PREPEND, pack(">HI", 1, 1) + b"k"),
    "version cut off": (Opcode.CAS_VERSION, bytes(7)),
    "hash cut off": (Opcode.CAS_HASH, bytes(15)),
    "get-with-ttl with trailing garbage": (Opcode.GET_WITH_TTL, b"\x00\x01kgarbage"),
    "inspect with trailing garbage": (Opcode.INSPECT, b"\x00\x01kgarbage"),
    "payload where none is due": (Opcode.PING, b"x"),
    "flush with an argument": (Opcode.FLUSH, bytes(4)),
    "goodbye with last words": (Opcode.GOODBYE, b"so long"),
    "count without entries": (Opcode.GET_MANY, b"\x00\x01"),
    "count that claims more entries": (Opcode.GET_MANY, b"\x00\x03\x00\x01a\x00\x01b"),
    "count of 65,535 in a frame of two bytes": (Opcode.GET_MANY, b"\xff\xff"),
    "count that claims fewer entries": (Opcode.GET_MANY, b"\x00\x01\x00\x01a\x00\x01b"),
    "count of nothing, then an entry": (Opcode.DELETE_MANY, b"\x00\x00\x00\x01a"),
    "second key empty": (Opcode.DELETE_MANY, b"\x00\x02\x00\x01a\x00\x00"),
    "first entry swallows the second": (Opcode.GET_MANY, b"\x00\x02\x00\x04a\x00\x01b"),
    "last entry longer than the frame": (Opcode.SET_MANY, b"\x00\x01" + store(1, 9, b"kv")),
    "TTL out of range in an entry": (Opcode.SET_MANY, b"\x00\x01" + store(1, 1, b"kv", ttl=TTL_MS_MAX + 1)),
    "trailing garbage after the entries": (Opcode.SET_MANY, b"\x00\x01" + store(1, 1, b"kv") + b"garbage"),
    "half a count": (Opcode.SET_MANY, b"\x00"),
    "hello from version 0": (Opcode.HELLO, hello(low=0)),
    "hello up to version 0": (Opcode.HELLO, hello(high=0)),
    "hello in role 0": (Opcode.HELLO, hello(role=0)),
    "hello in a role nobody has": (Opcode.HELLO, hello(role=5)),
    "hello without a name": (Opcode.HELLO, hello(name=b"")),
    "hello with a name of 65 bytes": (Opcode.HELLO, hello(name=b"n" * 65)),
    "hello with a name that is not UTF-8": (Opcode.HELLO, hello(name=b"\xff\xfe")),
    "hello with a name that encodes a surrogate": (Opcode.HELLO, hello(name=b"\xed\xa0\x80")),
    "hello with a name in overlong UTF-8": (Opcode.HELLO, hello(name=b"\xc0\xaf")),
    "proof one byte short": (Opcode.AUTH, bytes(PROOF_BYTES - 1)),
    "proof one byte long": (Opcode.AUTH, bytes(PROOF_BYTES + 1)),
    "section of 65 bytes": (Opcode.STATS, b"\x00\x41" + b"s" * 65),
    "section that is not UTF-8": (Opcode.STATS, b"\x00\x01\xff"),
    "persist mode nobody knows": (Opcode.PERSIST, b"\x03"),
    "persist without a mode": (Opcode.PERSIST, b""),
    "subscribe to what is not known": (Opcode.SUBSCRIBE, pack(">BBH", 0, 3, 0)),
    "subscribe with more than values or none": (Opcode.SUBSCRIBE, pack(">BBH", 2, 0, 0)),
    "subscribe to a key longer than the frame": (Opcode.SUBSCRIBE, pack(">BBH", 1, 1, 9) + b"key"),
    "subscribe with nothing": (Opcode.SUBSCRIBE, b""),
    "events of no bytes": (Opcode.EVENTS, pack(">I", 0)),
    "events with more than their bytes": (Opcode.EVENTS, bytes(5)),
    "a copy that neither begins nor goes on": (Opcode.COPY, pack(">IBI", 3, 2, 1)),
    "a copy of no bytes": (Opcode.COPY, pack(">IBI", 3, 1, 0)),
    "view without the epoch that is known": (Opcode.VIEW, b""),
    "view with an epoch of three bytes": (Opcode.VIEW, bytes(3)),
    "view with a view": (Opcode.VIEW, pack(">I", 7) + b"{}"),
    "heartbeat without its number": (Opcode.HEARTBEAT, from_to()),
    "heartbeat cut off in its number": (Opcode.HEARTBEAT, from_to(9)[:-1]),
    "heartbeat with records behind it": (Opcode.HEARTBEAT, from_to(9) + b"records"),
    "records without a generation": (Opcode.RECORDS, from_to()),
    "records whose generation is cut off": (Opcode.RECORDS, from_to() + bytes(3)),
    "records of generation 0": (Opcode.RECORDS, from_to() + pack(">I", 0) + b"records"),
    "records with nothing at all": (Opcode.RECORDS, b""),
    "sequences with one incarnation": (Opcode.SEQUENCES, from_to()[:-8]),
    "sequences that bring some": (Opcode.SEQUENCES, from_to() + pack(">IQ", 1, 9)),
    "register read with a revision": (Opcode.REGISTER_READ, pack(">Q", 1)),
    "register set without a revision": (Opcode.REGISTER_SET, b""),
    "register set with half a revision": (Opcode.REGISTER_SET, bytes(7)),
    "register watch without a revision": (Opcode.REGISTER_WATCH, b""),
    "register watch with a view": (Opcode.REGISTER_WATCH, pack(">Q", 1) + b"{}"),
    "register promise without a nonce": (Opcode.REGISTER_PROMISE, pack(">I", 1)),
    "register promise whose nonce is longer than the frame": (Opcode.REGISTER_PROMISE, pack(">IH", 1, 9) + b"nonce"),
}


@pytest.mark.parametrize("lie", REQUEST_LIES)
def test_a_lying_request_is_refused(arrive: Arrive, lie: str, secret: bytes) -> None:
    opcode, payload = REQUEST_LIES[lie]
    request = arrive(RequestReader(FRAME_BYTES_MAX), encode_request(opcode, 7, 0, payload))
    assert request.payload == payload, "the frame is sound; it is the payload that lies"
    with pytest.raises(BadPayload) as caught:
        REQUESTS[request.opcode].decode(request.payload)
    assert secret.decode() not in str(caught.value)


ITEM_HEAD = pack(">IQ", 0, 9)
WELCOME_HEAD = pack(">B", 1) + bytes(CLUSTER_ID_BYTES) + pack(">QIIII", 1, 1024, 1 << 24, 1 << 20, 600_000)

REPLY_LIES: dict[str, tuple[int, int, bytes]] = {
    "nothing where a value is due": (Opcode.GET, Status.OK, b""),
    "value longer than the frame": (Opcode.GET, Status.OK, ITEM_HEAD + pack(">I", 4) + b"val"),
    "value length of four gigabytes": (Opcode.GET, Status.OK, ITEM_HEAD + pack(">I", 0xFFFF_FFFF) + b"val"),
    "value shorter than the frame": (Opcode.GET_AND_TOUCH, Status.OK, ITEM_HEAD + pack(">I", 2) + b"val"),
    "value longer than the frame, behind its time left": (
        *(Opcode.GET_WITH_TTL, Status.OK),
        ITEM_HEAD + pack(">QI", 1, 4) + b"val",
    ),
    "no time left where one is due": (Opcode.GET_WITH_TTL, Status.OK, ITEM_HEAD + pack(">I", 3) + b"val"),
    "a miss with a value": (Opcode.GET, Status.NOT_FOUND, ITEM_HEAD + pack(">I", 3) + b"val"),
    "version of seven bytes": (Opcode.SET, Status.OK, bytes(7)),
    "version of nine bytes": (Opcode.DELETE, Status.OK, bytes(9)),
    "changed without a version": (Opcode.CAS_HASH, Status.CHANGED, b""),
    "exists with a reason in place of a version": (Opcode.ADD, Status.EXISTS, b"\x00\x02no"),
    "counter cut off": (Opcode.INCREMENT, Status.OK, bytes(15)),
    "inspection cut off": (Opcode.INSPECT, Status.OK, bytes(23)),
    "count that claims more entries": (Opcode.SET_MANY, Status.OK, b"\x00\x02" + pack(">BQ", 0, 9)),
    "count that claims fewer entries": (Opcode.DELETE_MANY, Status.OK, b"\x00\x01" + 2 * pack(">BQ", 0, 9)),
    "count of 65,535 with nothing behind it": (Opcode.GET_MANY, Status.OK, b"\xff\xff"),
    "entry whose value is not there": (Opcode.GET_MANY, Status.OK, b"\x00\x01\x00" + ITEM_HEAD + pack(">I", 3)),
    "first entry swallows the second": (
        Opcode.GET_MANY,
        Status.OK,
        b"\x00\x02" + b"\x00" + ITEM_HEAD + pack(">I", 17) + b"\x00" + ITEM_HEAD + pack(">I", 0),
    ),
    "reason longer than the frame": (Opcode.GET, Status.BUSY, b"\x00\x05busy"),
    "reason shorter than the frame": (Opcode.GET, Status.PAUSED, b"\x00\x03busy"),
    "refused without a reason": (Opcode.SET, Status.TOO_LARGE, b""),
    "reason that is not UTF-8": (Opcode.SET, Status.NO_ROOM, b"\x00\x01\xff"),
    "status nobody knows, without a reason": (Opcode.SET, 0x7F, b""),
    "pong with a payload": (Opcode.PING, Status.OK, b"!"),
    "challenge one byte short": (Opcode.HELLO, Status.CHALLENGE, bytes(NONCE_BYTES - 1)),
    "challenge one byte long": (Opcode.HELLO, Status.CHALLENGE, bytes(NONCE_BYTES + 1)),
    "welcome without a node name": (Opcode.HELLO, Status.OK, WELCOME_HEAD + pack(">HH", 0, 1) + b"1"),
    "welcome without buckets": (
        Opcode.HELLO,
        Status.OK,
        WELCOME_HEAD.replace(pack(">I", 1024), bytes(4)) + pack(">HH", 1, 1) + b"n1",
    ),
    "welcome cut off in its names": (Opcode.AUTH, Status.OK, bytes(PROOF_BYTES) + WELCOME_HEAD + pack(">HH", 4, 4) + b"name"),
    "goodbye that names no request": (Opcode.GOODBYE, Status.OK, b"\x00\x03bye"),
    "own goodbye that names no request": (Opcode.GOODBYE, Status.SHUTTING_DOWN, b"\x00\x00"),
    "persist reply that asks": (Opcode.PERSIST, Status.OK, b"\x02\x00\x00"),
    "statistics longer than the frame": (Opcode.STATS, Status.OK, pack(">I", 3) + b"{}"),
    "flush reply cut off": (Opcode.FLUSH, Status.OK, bytes(4)),
    "events reply whose notices are longer than the frame": (Opcode.EVENTS, Status.OK, pack(">II", 0, 22) + bytes(21)),
    "events reply cut off": (Opcode.EVENTS, Status.OK, bytes(7)),
    "a copy reply that is neither whole nor not": (Opcode.COPY, Status.OK, b"\x02"),
    "view reply whose register is longer than the frame": (Opcode.VIEW, Status.OK, pack(">H", 9) + b"embedded"),
    "view reply without a register's length": (Opcode.VIEW, Status.OK, b"\x00"),
    "view reply whose register is not UTF-8": (Opcode.VIEW, Status.OK, pack(">H", 1) + b"\xff{}"),
    "heartbeat reply without a grant": (Opcode.HEARTBEAT, Status.OK, pack(">Q", 9)),
    "heartbeat reply with a view": (Opcode.HEARTBEAT, Status.OK, pack(">QQ", 9, 10**9) + b"{}"),
    "records reply cut off": (Opcode.RECORDS, Status.OK, bytes(7)),
    "records reply with more than its room": (Opcode.RECORDS, Status.OK, bytes(9)),
    "register read reply with half a revision": (Opcode.REGISTER_READ, Status.OK, bytes(7)),
    "register set reply that is neither kept nor not": (Opcode.REGISTER_SET, Status.OK, pack(">BQ", 2, 9) + b"{}"),
    "register set reply cut off": (Opcode.REGISTER_SET, Status.OK, pack(">BQ", 1, 9)[:-1]),
    "register watch reply with nothing": (Opcode.REGISTER_WATCH, Status.OK, b""),
    "register promise reply that is neither": (Opcode.REGISTER_PROMISE, Status.OK, pack(">BIHH", 2, 1, 0, 0) + b"{}"),
    "register promise reply without whose files it has": (Opcode.REGISTER_PROMISE, Status.OK, pack(">BIH", 1, 1, 0)),
    "view that is ahead with a view": (Opcode.RECORDS, Status.VIEW_AHEAD, b"{}"),
    "broken chain without a reason": (Opcode.RECORDS, Status.BROKEN_CHAIN, b""),
    "success of an opcode that does not exist": (0xEE, Status.OK, b""),
    "success of opcode 0": (0, Status.OK, bytes(8)),
}


@pytest.mark.parametrize("lie", REPLY_LIES)
def test_a_lying_reply_is_refused(arrive: Arrive, lie: str, secret: bytes) -> None:
    opcode, status, payload = REPLY_LIES[lie]
    reply = arrive(ReplyReader(FRAME_BYTES_MAX), encode_reply(opcode, status, 7, 1, payload))
    assert reply.payload == payload, "the frame is sound; it is the payload that lies"
    with pytest.raises(BadPayload) as caught:
        decode_reply(reply.opcode, reply.status, reply.payload)
    assert secret.decode() not in str(caught.value)


def test_every_request_layout_has_a_liar() -> None:
    """All but STEER's: it is nothing but a rest, so every payload is one."""
    assert {opcode for opcode, _ in REQUEST_LIES.values()} == set(REQUESTS) - {Opcode.STEER}
    assert [field.rest for field in REQUESTS[Opcode.STEER].fields] == [True]  # type: ignore[union-attr]


REPLIES_WITHOUT_LIES = {Opcode.STEER, Opcode.SEQUENCES, Opcode.SUBSCRIBE}
"""Nothing but a rest."""


def test_every_reply_layout_has_a_liar() -> None:
    lied = {id(reply_layout(opcode, status)) for opcode, status, _ in REPLY_LIES.values() if opcode in set(Opcode)}
    for opcode in Opcode:
        assert id(reply_layout(opcode, Status.OK)) in lied or opcode in REPLIES_WITHOUT_LIES, opcode.name


RESTS: dict[str, tuple[int, int | None, bytes]] = {
    # name: opcode, status (None: a request), what comes before the rest
    "an order": (Opcode.STEER, None, b""),
    "records": (Opcode.RECORDS, None, from_to() + pack(">I", 1)),
    "a view to be kept": (Opcode.REGISTER_SET, None, pack(">Q", 7)),
    "a view": (Opcode.VIEW, Status.OK, pack(">H", 8) + b"embedded"),
    "an order's answer": (Opcode.STEER, Status.OK, b""),
    "places": (Opcode.SUBSCRIBE, None, pack(">BBH", 1, 2, 5) + b"user:"),
    "places that are told of": (Opcode.SUBSCRIBE, Status.OK, b""),
    "records that are told": (Opcode.EVENTS, Status.OK, pack(">II", 0, 0)),
    "records of a copy": (Opcode.COPY, Status.OK, b"\x00"),
    "sequences": (Opcode.SEQUENCES, Status.OK, b""),
    "a view that was read": (Opcode.REGISTER_READ, Status.OK, pack(">Q", 7)),
    "a view that was kept": (Opcode.REGISTER_SET, Status.OK, pack(">BQ", 1, 7)),
    "a view that was waited for": (Opcode.REGISTER_WATCH, Status.OK, pack(">Q", 7)),
    "a view that goes with a promise": (Opcode.REGISTER_PROMISE, Status.OK, pack(">BIHH", 1, 2, 1, 2) + b"nid"),
    "a newer view": (Opcode.RECORDS, Status.STALE_VIEW, b""),
}


@pytest.mark.parametrize("what", RESTS)
@pytest.mark.parametrize("rest", [b"", b"{}", b"\xca\x01\x03\x00" + bytes(12), bytes(70_000)], ids=len)
def test_a_rest_ends_with_its_frame(arrive: Arrive, what: str, rest: bytes, secret: bytes) -> None:
    """It has no length that could lie, and of what lies behind its frame it gets nothing."""
    opcode, status, before = RESTS[what]
    payload = before + rest
    if status is None:
        request = arrive(RequestReader(FRAME_BYTES_MAX), encode_request(opcode, 7, 0, payload))
        values = REQUESTS[request.opcode].decode(request.payload)
    else:
        reply = arrive(ReplyReader(FRAME_BYTES_MAX), encode_reply(opcode, status, 7, 1, payload))
        values = decode_reply(reply.opcode, reply.status, reply.payload)
    assert values[-1] == rest
    assert secret not in values[-1]


def test_every_rest_is_among_them() -> None:
    named = {id(REQUESTS[opcode] if status is None else reply_layout(opcode, status)) for opcode, status, _ in RESTS.values()}
    assert named == {id(layout) for layout in LAYOUTS.values() if has_rest(layout)}
