"""Frames that lie, over real sockets: a clear reply, then FIN; a neighbour notices nothing; nobody else's bytes come back."""

from __future__ import annotations

import itertools
import json
import random
import socket
from collections.abc import Iterator
from struct import pack
from threading import Event, Thread
from typing import Any

import pytest

from rcache.records.record import EPOCH_MAX, Cause, Kind, Record, encode, make_sequence
from rcache_client import Client
from rcache_client.wire.frames import HEADER_BYTES, encode_request
from rcache_client.wire.grammar import decode_reply
from rcache_client.wire.opcodes import ANY_CLUSTER, TTL_MS_MAX, Opcode, Role, Status, StatusClass, status_class
from soak.server_process import ServerProcess

from .conftest import assert_nothing_unhandled
from .support import stats, until
from .wire import Wire, get, header_with, hello, request, store

MARKER = b"<<belongs-to-somebody-else>>"
"""In every value of the server: no answer to a hostile frame may show any of it."""

FRAME_BYTES_MAX = 200_000
KEY = b"a-key"
CAN = pack(">H", len(KEY)) + KEY


def lie(opcode: int, payload: bytes) -> bytes:
    """A frame whose header is true and whose payload is not."""
    return encode_request(opcode, 41, 0, payload)


def store_fields(ttl_ms: int = 0, key_bytes: int = len(KEY), value_bytes: int = 3, body: bytes = KEY + b"abc") -> bytes:
    return pack(">IQHI", 0, ttl_ms, key_bytes, value_bytes) + body


GREETING = hello()[HEADER_BYTES:]

LIES: dict[str, tuple[bytes, Status]] = {
    "an HTTP request": (b"GET / HTTP/1.1\r\nHost: cache\r\n\r\n", Status.BAD_MAGIC),
    "a TLS hello": (bytes.fromhex("1603010200010001fc0303") + bytes(64), Status.BAD_MAGIC),
    "a memcached get": (b"get a-key\r\n", Status.BAD_MAGIC),
    "a Redis GET": (b"*2\r\n$3\r\nGET\r\n$5\r\na-key\r\n", Status.BAD_MAGIC),
    "garbage": (b"\x00" + random.Random(5).randbytes(300), Status.BAD_MAGIC),
    "a reply in place of a request": (header_with(0, magic=0xCB), Status.BAD_MAGIC),
    "another version": (header_with(0, version=2), Status.BAD_VERSION),
    "flags that nobody knows": (header_with(0, flags=0x80), Status.BAD_FLAGS),
    "a length of four gigabytes": (header_with(0xFFFF_FFFF), Status.FRAME_TOO_LONG),
    "a length one above the limit": (header_with(FRAME_BYTES_MAX - HEADER_BYTES + 1, Opcode.SET), Status.FRAME_TOO_LONG),
    "GET: a key longer than the payload": (lie(Opcode.GET, pack(">H", 500) + KEY), Status.BAD_PAYLOAD),
    "GET: a key shorter than the payload": (lie(Opcode.GET, CAN + b"more"), Status.BAD_PAYLOAD),
    "GET: the empty key": (lie(Opcode.GET, pack(">H", 0)), Status.BAD_PAYLOAD),
    "GET: nothing at all": (lie(Opcode.GET, b""), Status.BAD_PAYLOAD),
    "GET: half a length": (lie(Opcode.GET, b"\x00"), Status.BAD_PAYLOAD),
    "SET: a value of four gigabytes": (lie(Opcode.SET, store_fields(value_bytes=0xFFFF_FFFF)), Status.BAD_PAYLOAD),
    "SET: a value one byte longer": (lie(Opcode.SET, store_fields(value_bytes=4)), Status.BAD_PAYLOAD),
    "SET: a value one byte shorter": (lie(Opcode.SET, store_fields(value_bytes=2)), Status.BAD_PAYLOAD),
    "SET: a key that takes the value's bytes": (lie(Opcode.SET, store_fields(key_bytes=8)), Status.BAD_PAYLOAD),
    "SET: more than a century to live": (lie(Opcode.SET, store_fields(ttl_ms=TTL_MS_MAX + 1)), Status.BAD_PAYLOAD),
    "SET: a cut fixed part": (lie(Opcode.SET, store_fields()[:10]), Status.BAD_PAYLOAD),
    "CAS_HASH: half a hash": (lie(Opcode.CAS_HASH, bytes(8)), Status.BAD_PAYLOAD),
    "INCREMENT: create is 2": (lie(Opcode.INCREMENT, pack(">qBqQH", 1, 2, 0, 0, len(KEY)) + KEY), Status.BAD_PAYLOAD),
    "TOUCH: a GET's payload": (lie(Opcode.TOUCH, CAN), Status.BAD_PAYLOAD),
    "APPEND: a value that is not there": (lie(Opcode.APPEND, pack(">HI", 5, 9) + KEY), Status.BAD_PAYLOAD),
    "GET_MANY: more keys than it brings": (lie(Opcode.GET_MANY, pack(">H", 3) + CAN + CAN), Status.BAD_PAYLOAD),
    "GET_MANY: fewer keys than it brings": (lie(Opcode.GET_MANY, pack(">H", 1) + CAN + CAN), Status.BAD_PAYLOAD),
    "GET_MANY: 65,535 keys in no bytes": (lie(Opcode.GET_MANY, pack(">H", 65_535)), Status.BAD_PAYLOAD),
    "SET_MANY: a last entry that is cut": (lie(Opcode.SET_MANY, pack(">H", 1) + store_fields()[:-1]), Status.BAD_PAYLOAD),
    "DELETE_MANY: a key longer than the rest": (lie(Opcode.DELETE_MANY, pack(">HH", 1, 77) + KEY), Status.BAD_PAYLOAD),
    "PING: with a payload": (lie(Opcode.PING, b"x"), Status.BAD_PAYLOAD),
    "GOODBYE: with a payload": (lie(Opcode.GOODBYE, b"x"), Status.BAD_PAYLOAD),
    "FLUSH: with a payload": (lie(Opcode.FLUSH, b"x"), Status.BAD_PAYLOAD),
    "STATS: a section that is not UTF-8": (lie(Opcode.STATS, pack(">H", 2) + b"\xff\xfe"), Status.BAD_PAYLOAD),
    "STATS: a section of 65 bytes": (lie(Opcode.STATS, pack(">H", 65) + b"s" * 65), Status.BAD_PAYLOAD),
    "PERSIST: mode 9": (lie(Opcode.PERSIST, b"\x09"), Status.BAD_PAYLOAD),
    "HELLO: role 9": (lie(Opcode.HELLO, GREETING[:2] + b"\x09" + GREETING[3:]), Status.BAD_PAYLOAD),
    "HELLO: version 0": (lie(Opcode.HELLO, b"\x00" + GREETING[1:]), Status.BAD_PAYLOAD),
    "HELLO: a name longer than the payload": (lie(Opcode.HELLO, GREETING[:-1]), Status.BAD_PAYLOAD),
    "HELLO: versions of the future": (
        request(Opcode.HELLO, 7, 9, Role.CLIENT, ANY_CLUSTER, bytes(16), "test", request_id=41),
        Status.BAD_VERSION,
    ),
    "HELLO: another cluster": (
        request(Opcode.HELLO, 1, 1, Role.CLIENT, b"\x07" * 16, bytes(16), "test", request_id=41),
        Status.WRONG_CLUSTER,
    ),
    "AUTH: half a proof": (lie(Opcode.AUTH, bytes(16)), Status.BAD_PAYLOAD),
    "VIEW: half an epoch": (lie(Opcode.VIEW, bytes(2)), Status.BAD_PAYLOAD),
    "VIEW: a view in place of an epoch": (lie(Opcode.VIEW, b'{"format":1}'), Status.BAD_PAYLOAD),
    "HEARTBEAT: cut in its number": (lie(Opcode.HEARTBEAT, pack(">IQQ", 1, 1, 1) + bytes(7)), Status.BAD_PAYLOAD),
    "HEARTBEAT: with more behind its number": (lie(Opcode.HEARTBEAT, pack(">IQQQ", 1, 1, 1, 1) + b"x"), Status.BAD_PAYLOAD),
    "RECORDS: cut in its generation": (lie(Opcode.RECORDS, pack(">IQQ", 1, 1, 1) + bytes(3)), Status.BAD_PAYLOAD),
    "RECORDS: generation 0": (lie(Opcode.RECORDS, pack(">IQQI", 1, 1, 1, 0)), Status.BAD_PAYLOAD),
    "SEQUENCES: with sequences": (lie(Opcode.SEQUENCES, pack(">IQQ", 1, 1, 1) + bytes(12)), Status.BAD_PAYLOAD),
    "REGISTER_READ: with a revision": (lie(Opcode.REGISTER_READ, bytes(8)), Status.BAD_PAYLOAD),
    "REGISTER_SET: half a revision": (lie(Opcode.REGISTER_SET, bytes(4)), Status.BAD_PAYLOAD),
    "REGISTER_WATCH: with a view": (lie(Opcode.REGISTER_WATCH, bytes(8) + b"{}"), Status.BAD_PAYLOAD),
    "REGISTER_PROMISE: cut in its nonce": (lie(Opcode.REGISTER_PROMISE, pack(">IH", 1, 2) + b"n"), Status.BAD_PAYLOAD),
}


class Neighbour:
    """Somebody who uses the server all the while, over one connection, and checks every answer."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._done = Event()
        self.rounds = 0
        self.problems: list[str] = []
        self._thread = Thread(target=self._run, name="neighbour")
        self._thread.start()

    def _run(self) -> None:
        value = MARKER + b"neighbour"
        with Wire(self._address) as wire:
            while not self._done.wait(0.002):
                stored, _ = wire.ask(store(b"neighbour", value))
                found, item = wire.ask(get(b"neighbour"))
                if (stored, found) != (Status.OK, Status.OK) or item[2] != value:
                    self.problems.append(f"round {self.rounds}: {stored} {found} {item!r}")
                self.rounds += 1

    def close(self) -> None:
        self._done.set()
        self._thread.join(20)
        assert not self._thread.is_alive()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    options = ("--max-frame-size", str(FRAME_BYTES_MAX), "--max-value-size", "100K")
    with ServerProcess(tmp_path_factory.mktemp("hostile") / "data", *options) as running:
        with Client(running.address) as cache:
            cache.set_many({f"other-{number}": MARKER * 20 for number in range(200)})
            cache.set(KEY, MARKER)
        yield running
        assert stats(running, "connections")["unhandled_errors"] == 0
        assert running.stop() == 0
        assert_nothing_unhandled(running)


@pytest.fixture(scope="module")
def neighbour(server: ServerProcess) -> Iterator[Neighbour]:
    there = Neighbour(server.address)
    yield there
    there.close()
    assert there.rounds > 100
    assert there.problems == []


@pytest.mark.parametrize("bytewise", [False, True], ids=["whole", "byte by byte"])
@pytest.mark.parametrize("name", LIES)
def test_a_lie_is_answered_clearly_and_the_connection_closed(
    server: ServerProcess, neighbour: Neighbour, name: str, bytewise: bool
) -> None:
    frame, status = LIES[name]
    before = neighbour.rounds
    with Wire(server.address) as wire:
        if bytewise:
            wire.send_bytewise(frame)
        else:
            wire.send(frame)
        reply = wire.reply()
        assert reply is not None, "closed without a word"
        assert reply.status == status
        assert status_class(reply.status) is StatusClass.CLOSING
        if status not in (Status.BAD_MAGIC,):
            assert (reply.opcode, reply.request_id) == (frame[2], int.from_bytes(frame[8:12], "big"))
        reason = decode_reply(reply.opcode, reply.status, reply.payload)[-1]
        assert len(reason) > 10
        assert wire.reply() is None
        assert MARKER not in wire.received
    until(lambda: neighbour.rounds > before)


def test_what_follows_a_lie_is_not_executed(server: ServerProcess) -> None:
    with Wire(server.address) as wire:
        wire.send(store(b"before", b"1", 7) + lie(Opcode.GET, CAN + b"more") + store(b"after", b"2", 9))
        replies = wire.replies_to_end()
        assert [(reply.request_id, reply.status) for reply in replies] == [(7, Status.OK), (41, Status.BAD_PAYLOAD)]
    with Client(server.address) as cache:
        assert cache.get("before") == b"1"
        assert cache.get("after") is None


def test_a_length_shorter_than_what_comes_is_not_read_past(server: ServerProcess) -> None:
    """The rest is taken for the next frame, and is none."""
    whole = get(KEY)
    short = whole[:4] + (len(whole) - HEADER_BYTES - 2).to_bytes(4, "big") + whole[8:]
    with Wire(server.address) as wire:
        wire.send(short)
        reply = wire.reply()
        assert reply is not None
        assert reply.status == Status.BAD_PAYLOAD
        assert wire.reply() is None
        assert MARKER not in wire.received


def test_a_frame_that_ends_early_is_not_answered_and_its_connection_closed(server: ServerProcess) -> None:
    with Wire(server.address) as wire:
        wire.send(store(b"cut", b"x" * 100)[:-1])
        wire.sock.shutdown(socket.SHUT_WR)
        assert wire.replies_to_end() == []
    with Client(server.address) as cache:
        assert cache.get("cut") is None


UNKNOWN = [0x00, 0x05, 0x1F, 0x45, 0x4F, 0x57, 0x7F, 0xFF]


@pytest.mark.parametrize("opcode", UNKNOWN)
def test_an_unknown_opcode_is_answered_and_the_connection_lives(server: ServerProcess, opcode: int) -> None:
    with Wire(server.address) as wire:
        wire.send(encode_request(opcode, 5, 0, b"whatever it means"))
        reply = wire.reply()
        assert reply is not None
        assert (reply.opcode, reply.status, reply.request_id) == (opcode, Status.UNKNOWN_OPCODE, 5)
        assert wire.is_alive()


def test_the_unknown_opcodes_are_unknown() -> None:
    assert not set(UNKNOWN) & set(Opcode)


# --- frames between nodes, of which every byte is as it should be, from those who have no business to send them


def record(bucket: int = 0, value: bytes = b"forged") -> bytes:
    """A SET of the key, far ahead of all that the bucket has."""
    return encode(Record(Kind.SET, Cause.SET, bucket, 0, make_sequence(EPOCH_MAX, 1), 1 << 40, 0, KEY, value))


def between_nodes(
    epoch: int = 1, sender: int = 1, receiver: int = 1, records: bytes = b""
) -> list[tuple[Opcode, tuple[Any, ...]]]:
    ends = epoch, sender, receiver
    return [
        (Opcode.HEARTBEAT, (*ends, 1)),
        (Opcode.RECORDS, (*ends, 1, records)),
        (Opcode.SEQUENCES, ends),
        (Opcode.REGISTER_READ, ()),
        (Opcode.REGISTER_SET, (1, b"{}")),
        (Opcode.REGISTER_WATCH, (0,)),
        (Opcode.REGISTER_PROMISE, (63, "forged")),
    ]


@pytest.fixture
def kept(server: ServerProcess) -> Iterator[None]:
    """What the server has and goes by is after the test what it was before."""

    def told() -> tuple[int, Any]:
        with Wire(server.address) as wire:
            return wire.ask(request(Opcode.VIEW, 0))

    before = told()
    assert before[0] == Status.OK
    yield
    assert told() == before
    with Client(server.address) as cache:
        assert cache.get(KEY) == MARKER


@pytest.mark.parametrize("role", [None, Role.CLIENT, Role.LOGGER, Role.ADMIN])
def test_who_is_no_node_learns_nothing_of_what_nodes_ask(server: ServerProcess, kept: None, role: Role | None) -> None:
    with Wire(server.address) as wire:
        if role is not None:
            assert wire.ask(hello(role))[0] == Status.OK
        for opcode, values in between_nodes(records=record()):
            status, (reason,) = wire.ask(request(opcode, *values))
            assert (status, "nodes" in reason) == (Status.NOT_ALLOWED, True)
        assert wire.is_alive()
        assert MARKER not in wire.received


def incarnation(server: ServerProcess) -> int:
    return int(stats(server, "server")["incarnation"])


@pytest.mark.parametrize("wrong", ["sender", "receiver", "epoch"])
@pytest.mark.parametrize("name", ["stranger", "the server's own"])
def test_a_node_that_the_view_does_not_have_changes_nothing(server: ServerProcess, kept: None, name: str, wrong: str) -> None:
    mine = incarnation(server)
    said = hello(Role.NODE, stats(server, "server")["name"] if name != "stranger" else name)
    ends = {"epoch": stats(server, "server")["epoch"], "sender": mine, "receiver": mine}
    ends[wrong] += 1
    refused = {Status.WRONG_NODE, Status.STALE_VIEW, Status.VIEW_AHEAD}
    with Wire(server.address) as wire:
        assert wire.ask(said)[0] == Status.OK
        for opcode, values in between_nodes(**ends, records=record() + record(1))[:3]:
            assert wire.ask(request(opcode, *values))[0] in refused
        assert wire.is_alive()
        assert MARKER not in wire.received


def forged_views(text: bytes) -> dict[str, bytes]:
    """What must not become the view, made of the one that is."""
    facts = json.loads(text)
    next_one = {**facts, "epoch": facts["epoch"] + 1}
    return {
        "nothing": b"",
        "no JSON": b"{",
        "deep": b"[" * 100_000,
        "no object": b"[]",
        "another format": json.dumps({**next_one, "format": 1}).encode(),
        "the same epoch": text,
        "another cluster": json.dumps({**next_one, "cluster_id": "00" * 16}).encode(),
        "no nodes": json.dumps({**next_one, "nodes": {}}).encode(),
        "a stranger has it all": json.dumps({**next_one, "buckets": [[1, "stranger", [], 1]]}).encode(),
        "more buckets than there can be": json.dumps({**next_one, "buckets": [[1 << 40, None, [], 1]]}).encode(),
        "half a pair of surrogates": json.dumps({**next_one, "manager": "\ud800"}).encode(),
        "half a pair where it is kept": json.dumps({**next_one, "nonce": "\ud800"}).encode(),
        "a name of 100,000 letters": json.dumps({**next_one, "manager": "n" * 100_000}).encode(),
    }


def test_a_view_that_must_not_be_is_not_kept(server: ServerProcess, kept: None) -> None:
    with Wire(server.address) as wire:
        assert wire.ask(hello(Role.NODE))[0] == Status.OK
        status, (revision, text) = wire.ask(request(Opcode.REGISTER_READ))
        assert status == Status.OK
        for name, forged in forged_views(text).items():
            status, (reason,) = wire.ask(request(Opcode.REGISTER_SET, revision, forged))
            assert (name, status) == (name, Status.BAD_VIEW)
            assert reason
        assert wire.ask(request(Opcode.REGISTER_SET, revision + 1, text)) == (Status.OK, (0, revision, text))
        assert wire.ask(request(Opcode.REGISTER_WATCH, revision, budget_ms=20)) == (Status.OK, (0, b""))
        assert wire.is_alive()


@pytest.mark.parametrize(
    "order",
    [
        *(b"", b"[]", b"{", b"\xff", b"[" * 100_000),
        *(b"{}", b'{"verb":"\\ud800"}', b'{"verb":{}}', b'{"verb":"resume","\\ud800":1}'),
        b'{"verb":"drain","node":"' + b"n" * 150_000 + b'"}',
        b'{"verb":"pause","reason":"r","seconds":1e999}',
    ],
    ids=lambda order: repr(order[:24]),
)
def test_an_order_that_is_none_is_refused(server: ServerProcess, kept: None, order: bytes) -> None:
    with Wire(server.address) as wire:
        assert wire.ask(request(Opcode.STEER, order))[0] == Status.NOT_ALLOWED
        assert wire.ask(hello(Role.ADMIN))[0] == Status.OK
        status, (reason,) = wire.ask(request(Opcode.STEER, order))
        assert status == Status.BAD_ARGUMENT
        assert reason
        assert wire.is_alive()


@pytest.mark.parametrize("bytewise", [False, True], ids=["whole", "byte by byte"])
def test_the_truth_is_answered_however_it_arrives(server: ServerProcess, bytewise: bool) -> None:
    frames = hello() + store(b"truth", b"told", 2) + get(b"truth", 3) + request(Opcode.PING, request_id=4)
    with Wire(server.address) as wire:
        (wire.send_bytewise if bytewise else wire.send)(frames)
        replies = [wire.reply() for _ in range(4)]
        assert [(reply.status, reply.request_id) for reply in replies if reply] == [(Status.OK, n) for n in (1, 2, 3, 4)]


def noise_between_nodes() -> list[tuple[Any, ...]]:
    """Without the watch, which waits."""
    return [(opcode, *values) for opcode, values in between_nodes(records=record()) if opcode is not Opcode.REGISTER_WATCH]


def test_random_bytes_never_bring_out_anything(server: ServerProcess, neighbour: Neighbour) -> None:
    """Frames of which some bytes were changed at random: an answer or FIN, never silence, never others' bytes."""
    seed = 20_261
    print(f"seed {seed}")
    chance = random.Random(seed)
    frames = [hello(), get(KEY), store(KEY, b"v"), request(Opcode.STATS, ""), request(Opcode.GET_MANY, (KEY,), (b"x",))]
    frames += [request(Opcode.VIEW, 0), *(hello(Role.NODE) + request(*asked) for asked in noise_between_nodes())]
    before = neighbour.rounds
    for number, good in zip(range(300), itertools.cycle(frames), strict=False):
        frame = bytearray(good)
        for _ in range(chance.randrange(1, 4)):
            frame[chance.randrange(len(frame))] = chance.randrange(256)
        with Wire(server.address) as wire:
            wire.send(bytes(frame))
            wire.sock.shutdown(socket.SHUT_WR)
            for reply in wire.replies_to_end():
                honest = reply.opcode in (Opcode.GET, Opcode.GET_MANY) and bytes(KEY) in frame
                assert honest or MARKER not in reply.payload, (number, bytes(frame))
    until(lambda: neighbour.rounds > before)
