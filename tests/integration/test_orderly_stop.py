"""An orderly stop, under full load and with requests in flight: everything answered is kept, everybody is told."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path
from threading import Event, Thread

import pytest

from rcache_client import Client
from rcache_client.wire.frames import Reply
from rcache_client.wire.grammar import decode_reply
from rcache_client.wire.opcodes import Opcode, Status
from soak import stop_loop
from soak.rounds import Load

from .conftest import Serve
from .wire import Wire, get, store

PIPELINED = 300_000
"""Their replies are more than the sockets' buffers hold, so a server of any speed waits in the middle for who reads them."""


@pytest.mark.parametrize("fsync", ["interval", "always"])
def test_stops_under_the_load_of_32_clients(tmp_path: Path, fsync: str) -> None:
    """The form with 50 rounds: `python -m soak.stop_loop --rounds 50`."""
    rounds = 5 if fsync == "interval" else 2
    seed = random.SystemRandom().randrange(10**6)
    result = stop_loop.run(rounds, seed, tmp_path / "data", Load(4, 8), ("--append-log-fsync", fsync))
    assert result.problems == []
    assert result.rounds == rounds
    assert result.changes > 32 * rounds
    assert result.slowest_s < 10


@pytest.mark.parametrize("fsync", ["interval", "always"])
def test_goodbye_names_the_last_executed_request_and_the_later_ones_were_not(serve: Serve, fsync: str) -> None:
    server = serve("--append-log-fsync", fsync)
    frames = b"".join(store(b"pipelined-%d" % number, b"v", number) for number in range(1, PIPELINED + 1))
    with Wire(server.address) as wire:
        sender = Thread(target=_send, args=(wire, frames))
        sender.start()
        first = wire.reply()
        assert first is not None
        server.terminate()
        replies = [first, *wire.replies_to_end()]
        sender.join(20)
        assert not sender.is_alive()
    assert server.wait() == 0
    executed = _check_order(replies)
    assert 0 < executed < PIPELINED, "the stop did not come in the middle; the test says nothing"
    server.start()
    with Client(server.address) as cache:
        found = cache.get_many([f"pipelined-{number}" for number in range(1, PIPELINED + 1)])
    assert set(found) == {f"pipelined-{number}" for number in range(1, executed + 1)}


def _send(wire: Wire, frames: bytes) -> None:
    with contextlib.suppress(OSError):  # the server closed; what it had not read it has not executed
        wire.sock.sendall(frames)


def _check_order(replies: list[Reply]) -> int:
    """Answers to 1, 2, 3, ... and then GOODBYE. Returns the last executed request's id."""
    *answers, goodbye = replies
    assert [reply.request_id for reply in answers] == list(range(1, len(answers) + 1))
    assert all((reply.opcode, reply.status) == (Opcode.SET, Status.OK) for reply in answers)
    assert (goodbye.opcode, goodbye.status) == (Opcode.GOODBYE, Status.SHUTTING_DOWN)
    executed, reason = decode_reply(goodbye.opcode, goodbye.status, goodbye.payload)
    assert executed == goodbye.request_id == len(answers)
    assert reason
    return int(executed)


def test_what_the_log_has_not_taken_yet_is_written_at_the_stop(serve: Serve) -> None:
    """More than the log writes in one go."""
    server = serve("--append-log-fsync", "never")
    values = {f"backlog-{number}": bytes([number]) * 900_000 for number in range(60)}
    with Client(server.address) as cache:
        cache.set_many(values)
        server.terminate()
    assert server.wait() == 0
    server.start()
    with Client(server.address) as cache:
        assert cache.get_many(list(values)) == values


def test_a_peer_that_does_not_close_delays_the_stop_only_so_long(serve: Serve) -> None:
    server = serve("--stop-timeout", "3")
    with Wire(server.address) as silent, Wire(server.address) as half:
        assert silent.is_alive()
        assert half.is_alive()
        half.send(store(b"half", b"x" * 1000)[:100])
        server.terminate()
        assert server.wait(12) == 0
        for wire in (silent, half):
            assert [reply.status for reply in wire.replies_to_end()] == [Status.SHUTTING_DOWN]


def test_a_peer_that_does_not_read_delays_the_stop_only_so_long(serve: Serve) -> None:
    server = serve("--stop-timeout", "2")
    with Client(server.address) as cache:
        cache.set("large", b"x" * 1_000_000)
        with Wire(server.address, receive_buffer=4096) as stuck:
            stuck.send(b"".join(store(b"s", b"v", number) for number in range(1, 4)))
            for _ in range(3):
                assert stuck.reply() is not None
            stuck.send(b"".join(get(b"large", number) for number in range(4, 100)))
            assert cache.get("large") is not None
            server.terminate()
            assert server.wait(15) == 0
    assert "cut off" in server.stderr_text


def test_nobody_new_gets_in_while_it_stops(serve: Serve) -> None:
    server = serve()
    address = server.address
    with Wire(address) as held:
        assert held.is_alive()
        server.terminate()
        assert held.reply() is not None  # it stops now, and waits a little for this one
        with pytest.raises(OSError), Wire(address) as late:
            assert late.reply() is not None
    assert server.wait() == 0


def test_a_second_signal_changes_nothing(serve: Serve) -> None:
    server = serve()
    with Wire(server.address) as held:
        assert held.is_alive()
        server.terminate()
        assert held.reply() is not None
        server.terminate()
        Event().wait(0.05)
    assert server.wait() == 0


def test_a_signal_just_after_ready_is_not_lost(serve: Serve) -> None:
    """One that came in the instant before the main thread fell asleep did not wake it: a stop in five was lost for ever."""
    server = serve("--buckets", "16", start=False)
    for _ in range(10):
        server.start()
        with Wire(server.address) as wire:
            assert wire.is_alive()
            with Wire(server.address) as other:
                other.send(store(b"half", b"x" * 1000)[:100])
                server.terminate()
                reply = wire.reply(5)
        assert reply is not None
        assert reply.status == Status.SHUTTING_DOWN
        assert server.wait(10) == 0
