"""Serving a connection: frames in, replies out in order, and how `serve` ends."""

from __future__ import annotations

import contextlib
import random
import socket
import time

import pytest

from rcache.engine.contract import ConnectionLimits, Engine
from rcache.engine.sockets import Ended
from rcache_client.wire.frames import HEADER, encode_request
from rcache_client.wire.opcodes import PROTOCOL_VERSION, REQUEST_MAGIC, Opcode, Status
from tests.contract.conftest import EngineFactory
from tests.contract.harness import PATIENCE_S, Caller, Served, Task, answer_of, encode_payload

SEEDS = range(12)


def random_requests(chosen: random.Random, count: int) -> list[tuple[Opcode, tuple[object, ...]]]:
    """Requests of all kinds over a few keys, so that they depend on each other's order."""
    made: list[tuple[Opcode, tuple[object, ...]]] = []
    for _ in range(count):
        key = b"k%d" % chosen.randrange(6)
        value = b"%d" % chosen.randrange(1000) * chosen.choice([1, 1, 1, 300])
        many = [(b"k%d" % chosen.randrange(8),) for _ in range(chosen.randrange(5))]
        made.append(
            chosen.choice(
                [
                    (Opcode.GET, (key,)),
                    (Opcode.SET, (chosen.randrange(9), 0, key, value)),
                    (Opcode.ADD, (0, 0, key, value)),
                    (Opcode.APPEND, (key, b"7")),
                    (Opcode.INCREMENT, (chosen.randrange(-9, 9), 1, 5, 0, key)),
                    (Opcode.DELETE, (key,)),
                    (Opcode.INSPECT, (key,)),
                    (Opcode.GET_WITH_TTL, (key,)),
                    (Opcode.GET_MANY, tuple(many)),
                    (Opcode.DELETE_MANY, tuple(many[:2])),
                ]
            )
        )
    return made


@pytest.mark.parametrize("seed", SEEDS)
def test_pipelined_requests_cut_anywhere_give_the_same_replies_in_order(engine_factory: EngineFactory, seed: int) -> None:
    chosen = random.Random(seed)
    requests = random_requests(chosen, 150)
    one_by_one = Caller(engine_factory())
    expected = [one_by_one.ask(opcode, *values) for opcode, values in requests]
    stream = b"".join(
        encode_request(opcode, number, 0, encode_payload(opcode, values)) for number, (opcode, values) in enumerate(requests, 1)
    )
    with Served(engine_factory()) as served:

        def send() -> None:
            at = 0
            while at < len(stream):
                size = chosen.choice([1, 2, 15, 16, 17, 100, 5000])
                served.peer.sendall(stream[at : at + size])
                at += size

        sending = Task(send)
        replies = [served.reply() for _ in requests]
        sending.result()
    assert [reply.request_id for reply in replies] == list(range(1, len(requests) + 1))
    assert [answer_of(reply) for reply in replies] == expected
    assert served.connection.last_executed == len(requests)
    assert served.connection.requests == len(requests)


def test_replies_larger_than_any_buffer_come_through(engine_factory: EngineFactory) -> None:
    engine = engine_factory()
    Caller(engine).set(b"key", bytes(60_000))
    with Served(engine) as served:
        requests = [encode_request(Opcode.GET, number, 0, encode_payload(Opcode.GET, (b"key",))) for number in range(1, 101)]
        served.peer.sendall(b"".join(requests))
        for number in range(1, 101):
            reply = served.reply()
            assert (reply.request_id, len(answer_of(reply).values[2])) == (number, 60_000)


def test_two_connections_share_the_items(engine: Engine) -> None:
    with Served(engine) as one, Served(engine) as other:
        one.ask(Opcode.SET, 0, 0, b"key", b"value")
        assert one.reply().status == Status.OK
        other.ask(Opcode.GET, b"key")
        assert answer_of(other.reply()).values[2] == b"value"


@pytest.mark.parametrize("opcode", [Opcode.PING, Opcode.HELLO, Opcode.STATS, 0x7F])
def test_what_is_not_the_engines_business_is_handed_back_after_the_replies_before_it(engine: Engine, opcode: int) -> None:
    with Served(engine) as served:
        first = encode_request(Opcode.SET, 1, 0, encode_payload(Opcode.SET, (0, 0, b"key", b"value")))
        last = encode_request(Opcode.GET, 3, 0, encode_payload(Opcode.GET, (b"key",)))
        served.peer.sendall(first + encode_request(opcode, 2, 1234, b"what it says") + last)
        assert served.reply().request_id == 1
        handback = served.handback()
        assert handback.ended is Ended.FRAME
        assert handback.request == (opcode, 2, 1234, b"what it says")
        again = Task(lambda: engine.serve(served.connection))
        assert served.reply().request_id == 3, "what was received behind it is not lost"
        served.peer.close()
        assert again.result().ended is Ended.CLOSED


def test_without_leave_no_data_request_is_executed(engine: Engine) -> None:
    with Served(engine, data_allowed=False) as served:
        served.ask(Opcode.SET, 0, 0, b"key", b"value", request_id=9)
        handback = served.handback()
        assert handback.ended is Ended.FRAME
        assert handback.request is not None
        assert (handback.request.opcode, handback.request.request_id) == (Opcode.SET, 9)
        assert not served.connection.greeted
    assert Caller(engine).value(b"key") is None


@pytest.mark.parametrize(
    ("frame", "status", "request_id"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", Status.BAD_MAGIC, 0),
        (HEADER.pack(REQUEST_MAGIC, PROTOCOL_VERSION + 1, Opcode.GET, 0, 0, 5, 0), Status.BAD_VERSION, 5),
        (HEADER.pack(REQUEST_MAGIC, PROTOCOL_VERSION, Opcode.GET, 1, 0, 5, 0), Status.BAD_FLAGS, 5),
        (HEADER.pack(REQUEST_MAGIC, PROTOCOL_VERSION, Opcode.SET, 0, 0xFFFF_FFFF, 5, 0), Status.FRAME_TOO_LONG, 5),
        (encode_request(Opcode.GET, 5, 0, b"\x00\x05key"), Status.BAD_PAYLOAD, 5),
        (encode_request(Opcode.GET, 5, 0, b"\x00\x03key and more"), Status.BAD_PAYLOAD, 5),
        (encode_request(Opcode.GET, 5, 0, b"\x00\x00"), Status.BAD_PAYLOAD, 5),
        (encode_request(Opcode.GET_MANY, 5, 0, b"\xff\xff"), Status.BAD_PAYLOAD, 5),
    ],
)
def test_a_frame_that_cannot_be_read_is_handed_back_after_the_replies_before_it(
    engine: Engine, frame: bytes, status: Status, request_id: int
) -> None:
    with Served(engine) as served:
        served.ask(Opcode.SET, 0, 0, b"key", b"value")
        served.peer.sendall(frame + encode_request(Opcode.DELETE, 6, 0, encode_payload(Opcode.DELETE, (b"key",))))
        assert served.reply().status == Status.OK
        handback = served.handback()
        assert handback.ended is Ended.BAD_FRAME
        assert handback.bad is not None
        assert (handback.bad.status, handback.bad.request_id) == (status, request_id)
    assert Caller(engine).value(b"key") == b"value", "nothing behind it is executed"


# --- how serving ends


def test_a_peer_that_closes(engine: Engine) -> None:
    with Served(engine) as served:
        served.ask(Opcode.GET, b"key")
        served.peer.shutdown(socket.SHUT_WR)
        assert answer_of(served.reply()).status is Status.NOT_FOUND, "what was sent before is answered"
        assert served.handback().ended is Ended.CLOSED


def test_a_first_frame_must_come_in_time(engine: Engine) -> None:
    with Served(engine, ConnectionLimits(hello_s=0.05)) as served:
        assert served.handback().ended is Ended.HELLO_TIMEOUT


def test_idle_for_too_long(engine: Engine) -> None:
    with Served(engine, ConnectionLimits(idle_s=0.05)) as served:
        served.ask(Opcode.GET, b"key")
        served.reply()
        assert served.handback().ended is Ended.IDLE_TIMEOUT


@pytest.mark.parametrize("sent", [1, 15, 16, 20])
def test_a_frame_that_stays_half(engine: Engine, sent: int) -> None:
    frame = encode_request(Opcode.GET, 1, 0, encode_payload(Opcode.GET, (b"key is long",)))
    with Served(engine, ConnectionLimits(frame_s=0.05)) as served:
        served.peer.sendall(frame[:sent])
        assert served.handback().ended is Ended.FRAME_TIMEOUT


def test_a_frame_that_drips_in_byte_by_byte_for_ever(engine: Engine) -> None:
    frame = encode_request(Opcode.SET, 1, 0, encode_payload(Opcode.SET, (0, 0, b"key", bytes(5000))))
    with Served(engine, ConnectionLimits(frame_s=0.1)) as served:
        for at in range(len(frame) - 1):
            if not served.is_served:
                break
            served.peer.sendall(frame[at : at + 1])
            time.sleep(0.001)  # the peer's pace, not a guess: it never pauses long enough to count as quiet
        assert served.handback().ended is Ended.FRAME_TIMEOUT
        assert at < len(frame) - 2


def test_frames_are_timed_one_by_one_however_the_reads_cut_them(engine: Engine) -> None:
    """A busy connection of which every read ends in the middle of a frame is never late."""
    frames = [encode_request(Opcode.GET, number, 0, encode_payload(Opcode.GET, (b"key",))) for number in range(1, 400)]
    stream = b"".join(frames)
    size = len(frames[0])
    with Served(engine, ConnectionLimits(frame_s=0.6)) as served:
        began = time.monotonic()
        served.peer.sendall(stream[: size // 2])
        number = 0
        while time.monotonic() - began < 0.7:  # longer than one frame may take, though none takes that long
            at = size // 2 + number * size
            served.peer.sendall(stream[at : at + size])
            number += 1
            assert served.reply().request_id == number
            time.sleep(0.01)  # the peer's pace
        at = size // 2 + number * size
        time.sleep(0.3)  # a pause in the middle of a frame, within its limit
        served.peer.sendall(stream[at : at + size])
        assert served.reply().request_id == number + 1


def test_a_peer_that_takes_no_replies(engine: Engine) -> None:
    Caller(engine).set(b"key", bytes(60_000))
    with Served(engine, ConnectionLimits(send_s=0.05)) as served:
        request = encode_request(Opcode.GET, 1, 0, encode_payload(Opcode.GET, (b"key",)))
        sending = Task(lambda: served.peer.sendall(request * 1000))
        assert served.handback().ended is Ended.SLOW_READER
        sending.result()


def test_stopping_answers_what_was_received_and_ends_every_serve(engine_factory: EngineFactory) -> None:
    engine = engine_factory()
    quiet, busy, half = Served(engine), Served(engine), Served(engine)
    with quiet, busy, half:
        busy.ask(Opcode.SET, 0, 0, b"key", b"value")
        assert busy.reply().status == Status.OK
        half.peer.sendall(b"\xca\x01")
        began = time.monotonic()
        engine.stop_serving()
        assert [served.handback().ended for served in (quiet, busy, half)] == [Ended.STOPPING] * 3
        assert time.monotonic() - began < 5
        assert (busy.connection.last_executed, quiet.connection.last_executed) == (1, 0)
    with Served(engine) as late:
        assert late.handback().ended is Ended.STOPPING, "and from now on"


def test_stopping_ends_a_connection_that_is_never_quiet(engine_factory: EngineFactory) -> None:
    engine = engine_factory()
    frame = encode_request(Opcode.GET, 1, 0, encode_payload(Opcode.GET, (b"key",)))
    with Served(engine) as served:
        served.peer.sendall(frame)
        served.reply()
        engine.stop_serving()
        answered = 0
        with contextlib.suppress(AssertionError, OSError):  # nobody answers any more
            served.peer.settimeout(1.0)
            while answered < 2000:
                served.peer.sendall(frame)
                served.reply()
                answered += 1
        assert answered < 2000, "it is served for ever"
        assert served.handback().ended is Ended.STOPPING


# --- deadlines


def test_a_request_whose_time_was_up_before_its_turn_is_not_executed(engine_factory: EngineFactory) -> None:
    engine = engine_factory(commit=True, stream_bytes=64 << 10)
    reader = engine.stream.open_reader("stuck", holds=True)
    filler = Caller(engine)
    number = 0
    while filler.ask(Opcode.SET, 0, 0, b"fill %d" % number, bytes(9000), budget_ms=10).status is not Status.BUSY:
        number += 1
    with Served(engine) as served:
        slow = encode_request(Opcode.SET, 1, 100, encode_payload(Opcode.SET, (0, 0, b"slow", bytes(9000))))
        late = encode_request(Opcode.DELETE, 2, 30, encode_payload(Opcode.DELETE, (b"fill 0",)))
        served.peer.sendall(slow + late)
        assert [served.reply().status for _ in range(2)] == [Status.BUSY, Status.DEADLINE_PASSED]
    reader.close()
    assert Caller(engine).ask(Opcode.INSPECT, b"fill 0", budget_ms=20).status is not Status.NOT_FOUND


def test_without_a_budget_the_default_counts(engine_factory: EngineFactory) -> None:
    engine = engine_factory(commit=True, default_budget_s=0.05)
    began = time.monotonic()
    assert Caller(engine).ask(Opcode.SET, 0, 0, b"key", b"value").status is Status.NOT_COMMITTED
    assert 0.05 <= time.monotonic() - began < PATIENCE_S
