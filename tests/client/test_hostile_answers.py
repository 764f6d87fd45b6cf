"""Servers that answer wrongly: never a wrong value, never a connection that is used again."""

# ruff: noqa: SIM117 - the outer `with` holds a server and its client, the inner one what is expected of them

from __future__ import annotations

from collections.abc import Callable
from threading import Event

import pytest

from rcache_client import Client, ConnectionLost, OutcomeUnknown, ProtocolError, TimedOut, TooLarge
from rcache_client.wire.frames import HEADER, Request, encode_reply
from rcache_client.wire.opcodes import REPLY_MAGIC, Opcode, Status

from .fake_service import answer
from .scripted_server import Line, ScriptedServer, play

Lie = Callable[[Request], bytes]

_, ITEM_PAYLOAD = answer(Opcode.GET, Status.OK, 0, 1, b"secret")


def frame(
    request: Request, opcode: int = Opcode.GET, status: int = Status.OK, id_shift: int = 0, payload: bytes = ITEM_PAYLOAD
) -> bytes:
    return encode_reply(opcode, status, (request.request_id + id_shift) & 0xFFFF_FFFF, 1, payload)


def header(request: Request, magic: int = REPLY_MAGIC, version: int = 1, length: int = len(ITEM_PAYLOAD)) -> bytes:
    return HEADER.pack(magic, version, Opcode.GET, Status.OK, length, request.request_id, 1)


LIES: dict[str, Lie] = {
    "the_id_of_an_earlier_request": lambda r: frame(r, id_shift=-1),
    "the_id_of_a_later_request": lambda r: frame(r, id_shift=1),
    "another_opcode": lambda r: frame(r, opcode=Opcode.GET_AND_TOUCH),
    "a_payload_one_byte_short": lambda r: frame(r, payload=ITEM_PAYLOAD[:-1]),
    "a_payload_one_byte_long": lambda r: frame(r, payload=ITEM_PAYLOAD + b"!"),
    "no_payload": lambda r: frame(r, payload=b""),
    "a_miss_with_a_payload": lambda r: frame(r, status=Status.NOT_FOUND),
    "a_status_its_opcode_cannot_have": lambda r: frame(r, status=Status.EXISTS, payload=bytes(8)),
    "an_answered_status_nobody_knows": lambda r: frame(r, status=0x0F, payload=b"\0\0"),
    "a_reason_that_is_not_text": lambda r: frame(r, status=Status.BUSY, payload=b"\0\1\xff"),
    "a_request_magic": lambda r: header(r, magic=0xCA) + ITEM_PAYLOAD,
    "an_unknown_version": lambda r: header(r, version=2) + ITEM_PAYLOAD,
    "a_length_over_the_limit": lambda r: header(r, length=(16 << 20) - 15),
    "a_length_of_4_gigabytes": lambda r: header(r, length=0xFFFF_FFFF),
    "text": lambda r: b"HTTP/1.1 400 Bad Request\r\n\r\n",
}


def lying(lie: Lie, *, whole: bool) -> Callable[[Line], None]:
    def play_lie(line: Line) -> None:
        line.hello()
        data = lie(line.request())
        for piece in [data] if whole else [data[i : i + 1] for i in range(len(data))]:
            line.raw(piece)
        line.hold()

    return play_lie


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "byte_by_byte"])
@pytest.mark.parametrize("lie", LIES.values(), ids=LIES.keys())
def test_a_read_raises_and_the_connection_is_closed(lie: Lie, whole: bool) -> None:
    with ScriptedServer(lying(lie, whole=whole), play) as server, Client(server.address) as cache:
        with pytest.raises(ProtocolError):
            cache.get("key")
        server.wait_for(lambda: server.open_now == 0, "the end of the connection")
        assert cache.get("key") is None
        assert server.connections == 2


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES.keys())
def test_a_write_is_of_unknown_outcome(lie: Lie) -> None:
    with ScriptedServer(lying(lie, whole=True), play) as server, Client(server.address) as cache:
        with pytest.raises(OutcomeUnknown) as caught:
            cache.delete("key")
        assert isinstance(caught.value.__cause__, ProtocolError)
        assert server.opcodes() == [Opcode.DELETE]


def test_a_late_answer_of_a_call_that_timed_out_is_never_taken_for_anothers() -> None:
    def play_late(line: Line) -> None:
        line.hello()
        first = line.request()
        line.server.wait_for(lambda: line.server.connections == 2, "the second call")
        line.reply(first, Status.OK, ITEM_PAYLOAD)
        line.hold()

    with ScriptedServer(play_late, play) as server, Client(server.address) as cache:
        server.service.answer(Request(Opcode.SET, 1, 1, b"\0" * 12 + b"\0\1" + b"\0\0\0\1" + b"kv"))
        with pytest.raises(TimedOut):
            cache.get("other", budget=0.2)
        assert cache.get("k") == b"v"


def test_bytes_behind_an_answer_end_the_connection_but_not_the_answer() -> None:
    def play_more(line: Line) -> None:
        line.hello()
        line.raw(frame(line.request()) + b"more")
        line.hold()

    with ScriptedServer(play_more, play) as server, Client(server.address) as cache:
        assert cache.get("key") == b"secret"
        assert cache.get("key") is None
        assert server.connections == 2


def test_bytes_that_nobody_asked_for_make_an_idle_connection_stale() -> None:
    def play_chatter(line: Line) -> None:
        line.hello()
        line.execute(line.request())
        line.raw(frame(Request(Opcode.GET, 3, 0, b"")))
        line.server.remember(Request(Opcode.PING, 0, 0, b""))
        line.hold()

    with ScriptedServer(play_chatter, play) as server, Client(server.address) as cache:
        cache.get("key")
        server.wait_for(lambda: server.requests[-1].opcode == Opcode.PING)
        assert cache.get("key") is None
        assert server.connections == 2


def test_close_within_an_answer_is_read_again_elsewhere() -> None:
    def play_half(line: Line) -> None:
        line.hello()
        line.raw(frame(line.request())[:-3])

    with ScriptedServer(play_half, play) as server, Client(server.address) as cache:
        assert cache.get("key") is None
        assert server.opcodes() == [Opcode.GET, Opcode.GET]


def test_close_within_an_answer_leaves_a_write_unknown() -> None:
    def play_half(line: Line) -> None:
        line.hello()
        line.raw(encode_reply(Opcode.SET, Status.OK, line.request().request_id, 1, bytes(8))[:-3])

    with ScriptedServer(play_half, play) as server, Client(server.address) as cache:
        with pytest.raises(OutcomeUnknown, match="closed the connection without an answer"):
            cache.set("key", b"value")
        assert server.opcodes() == [Opcode.SET]


def test_a_server_that_always_closes_is_not_asked_for_ever() -> None:
    def play_close(line: Line) -> None:
        line.hello()
        line.request()

    with ScriptedServer(play_close) as server, Client(server.address) as cache:
        with pytest.raises(ConnectionLost):
            cache.get("key")
        assert 1 < server.connections <= 6


def test_an_unreadable_greeting_is_a_protocol_error() -> None:
    def play_http(line: Line) -> None:
        line.request()
        line.raw(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with ScriptedServer(play_http) as server, Client(server.address) as cache:
        with pytest.raises(ProtocolError, match="is this an rcache server"):
            cache.set("key", b"value")


def test_a_giant_greeting_is_refused_before_it_is_kept() -> None:
    def play_giant(line: Line) -> None:
        request = line.request()
        line.raw(HEADER.pack(REPLY_MAGIC, 1, Opcode.HELLO, Status.OK, 1 << 20, request.request_id, 1))
        line.hold()

    with ScriptedServer(play_giant) as server, Client(server.address) as cache:
        with pytest.raises(ProtocolError, match="a frame of 1048592 bytes"):
            cache.ping()


def test_a_server_that_answers_while_it_is_still_being_told() -> None:
    told = Event()

    def play_early(line: Line) -> None:
        line.hello()
        line.socket.recv(1000)
        line.raw(encode_reply(Opcode.SET, Status.FRAME_TOO_LONG, 2, 1, b"\0\3too"))
        assert told.wait(10)  # reads no more of it

    with ScriptedServer(play_early) as server, Client(server.address) as cache:
        server.service.frame_bytes_max = 1 << 28
        with pytest.raises(TooLarge, match="FRAME_TOO_LONG: too"):
            cache.set("key", bytes(1 << 24))
        told.set()


def test_a_connection_lost_within_a_request_is_surely_not_executed() -> None:
    def play_cut(line: Line) -> None:
        line.hello()
        line.socket.recv(1000)

    with ScriptedServer(play_cut, play) as server, Client(server.address) as cache:
        server.service.frame_bytes_max = 1 << 28
        server.service.value_bytes_max = 1 << 28
        assert cache.set("key", bytes(1 << 24), budget=20)
        assert server.connections == 2


def test_unreadable_requests_are_reported_as_what_they_are() -> None:
    def play_bad_magic(line: Line) -> None:
        line.hello()
        line.request()
        line.raw(encode_reply(0, Status.BAD_MAGIC, 0, 1, b"\0\4what"))
        line.hold()

    with ScriptedServer(play_bad_magic) as server, Client(server.address) as cache:
        with pytest.raises(ProtocolError, match="BAD_MAGIC: what"):
            cache.set("key", b"value")
