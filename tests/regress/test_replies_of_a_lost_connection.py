"""The replies that a shared worker could not send, because the peer had gone, once went to the next connection it served."""

from __future__ import annotations

import socket

import pytest

from rcache.engine.bodies import NATIVE, make_engine, why_not_native
from rcache.engine.clock import NodeClock
from rcache.engine.contract import ConnectionLimits, EngineConfig
from rcache.engine.sockets import Ended
from rcache_client.wire.frames import encode_request
from rcache_client.wire.opcodes import Opcode
from tests.contract.harness import decode_frame, encode_payload

pytestmark = pytest.mark.skipif(bool(why_not_native()), reason="the native engine was not built here")

SECRET = b"what was asked for by another"


def test_what_a_lost_connection_was_to_be_told_is_told_to_nobody() -> None:
    engine = make_engine(NATIVE, EngineConfig(buckets=8, stripes=4, memory_bytes=4 << 20), NodeClock())
    engine.open_buckets(range(8), 1, 1, "n1")
    group = engine.share()
    assert group is not None
    here, there = socket.socketpair()
    with here, there:
        there.sendall(encode_request(Opcode.SET, 1, 0, encode_payload(Opcode.SET, (0, 0, b"key", SECRET))))
        there.sendall(encode_request(Opcode.GET, 2, 0, encode_payload(Opcode.GET, (b"key",))))
        there.close()
        group.add(engine.connect(here, ConnectionLimits()))
        served = group.serve()
        assert served is not None
        assert served[1].ended is Ended.LOST
    here, there = socket.socketpair()
    with here, there:
        there.sendall(encode_request(Opcode.GET, 3, 0, encode_payload(Opcode.GET, (b"other",))))
        there.shutdown(socket.SHUT_WR)
        group.add(engine.connect(here, ConnectionLimits()))
        served = group.serve()
        assert served is not None
        assert served[1].ended is Ended.CLOSED
        there.settimeout(5)
        answer = there.recv(1 << 16)
    assert SECRET not in answer
    assert decode_frame(answer).request_id == 3
    engine.check()
