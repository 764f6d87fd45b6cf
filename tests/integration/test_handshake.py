"""HELLO and the secret: a stranger gets no further than HELLO; both sides must show that they know it."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from rcache_client import AuthenticationFailed, Client
from rcache_client.wire import proof
from rcache_client.wire.frames import HEADER_BYTES
from rcache_client.wire.opcodes import Opcode, Status, StatusClass, status_class
from soak.server_process import ServerProcess

from .conftest import Serve
from .support import stats, until
from .wire import Wire, get, header_with, hello, request, store

PROMPT_S = 1.5
"""For a FIN that is sent at once; less than the server waits for the peer's."""

SECRET = b"sixteen bytes or more of secret"


@pytest.fixture(scope="module")
def secret_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("secret") / "secret"
    path.write_bytes(SECRET)
    path.chmod(0o600)
    return path


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory, secret_file: Path) -> Iterator[ServerProcess]:
    with ServerProcess(tmp_path_factory.mktemp("guarded") / "data", "--secret-file", str(secret_file)) as running:
        with Client(running.address, secret=SECRET) as cache:
            cache.set("k", b"guarded value")
        yield running


@pytest.mark.parametrize(
    "frame",
    [
        get(b"k"),
        store(b"k", b"stolen"),
        request(Opcode.PING),
        request(Opcode.STATS, ""),
        request(Opcode.FLUSH),
        request(Opcode.GOODBYE),
        request(Opcode.PERSIST, 1),
        request(Opcode.AUTH, bytes(32)),
    ],
    ids=["GET", "SET", "PING", "STATS", "FLUSH", "GOODBYE", "PERSIST", "AUTH"],
)
@pytest.mark.parametrize("greeted", [False, True], ids=["before HELLO", "after HELLO"])
def test_a_stranger_gets_no_further_than_hello(guarded: ServerProcess, frame: bytes, greeted: bool) -> None:
    with Wire(guarded.address) as wire:
        if greeted:
            status, (nonce,) = wire.ask(hello())
            assert status == Status.CHALLENGE
            assert any(nonce)
        wire.send(frame)
        reply = wire.reply()
        assert reply is not None
        expected = Status.WRONG_PROOF if greeted and frame[2] == Opcode.AUTH else Status.HELLO_EXPECTED
        assert reply.status == expected
        assert wire.reply() is None
        assert b"guarded" not in wire.received
    with Client(guarded.address, secret=SECRET) as cache:
        assert cache.get("k") == b"guarded value"
        assert not cache.persist().on


def test_the_right_proof_opens_and_is_answered_with_the_servers_own(guarded: ServerProcess) -> None:
    greeting = hello(nonce=b"n" * 16)
    payload = greeting[HEADER_BYTES:]
    with Wire(guarded.address) as wire:
        _, (nonce,) = wire.ask(greeting)
        status, values = wire.ask(request(Opcode.AUTH, proof.client_proof(SECRET, payload, nonce), request_id=2))
        assert status == Status.OK
        assert values[0] == proof.server_proof(SECRET, payload, nonce)
        assert wire.ask(get(b"k"))[1][2] == b"guarded value"
        assert SECRET not in wire.received


def test_a_proof_cannot_be_played_back(guarded: ServerProcess) -> None:
    greeting = hello(nonce=b"n" * 16)
    with Wire(guarded.address) as wire:
        _, (nonce,) = wire.ask(greeting)
        recorded = request(Opcode.AUTH, proof.client_proof(SECRET, greeting[HEADER_BYTES:], nonce), request_id=2)
        assert wire.ask(recorded)[0] == Status.OK
    with Wire(guarded.address) as wire:
        _, (other,) = wire.ask(greeting)
        assert other != nonce
        assert wire.ask(recorded)[0] == Status.WRONG_PROOF
        assert wire.reply() is None


@pytest.mark.parametrize("secret", [None, b"another secret, wrong one"], ids=["no secret", "another secret"])
def test_a_client_without_the_secret_is_told_why(guarded: ServerProcess, secret: bytes | None) -> None:
    with Client(guarded.address, secret=secret) as cache, pytest.raises(AuthenticationFailed):
        cache.get("k")


def test_a_client_with_a_secret_does_not_trust_a_server_without(serve: Serve) -> None:
    with Client(serve().address, secret=SECRET) as cache, pytest.raises(AuthenticationFailed):
        cache.get("k")


def test_off_loopback_needs_a_secret_or_a_plain_word(serve: Serve, secret_file: Path) -> None:
    refused = serve("--listen", "0.0.0.0:0", start=False)
    refused.launch()
    assert refused.wait() == 2
    assert "--secret-file" in refused.stderr_text
    assert "--trust-network" in refused.stderr_text
    with_secret = serve("--listen", "0.0.0.0:0", "--secret-file", str(secret_file))
    with Client(f"127.0.0.1:{with_secret.address.rsplit(':', 1)[1]}", secret=SECRET) as cache:
        assert cache.get("k") is None
    assert with_secret.stop() == 0
    trusting = serve("--listen", "0.0.0.0:0", "--trust-network")
    with Client(f"127.0.0.1:{trusting.address.rsplit(':', 1)[1]}") as cache:
        assert cache.get("k") is None


def test_a_secret_that_others_may_read_is_refused(serve: Serve, tmp_path: Path) -> None:
    careless = tmp_path / "careless"
    careless.write_bytes(SECRET)
    careless.chmod(0o644)
    server = serve("--secret-file", str(careless), start=False)
    server.launch()
    assert server.wait() == 2


# --- GOODBYE


def test_goodbye_is_answered_and_closed_on_both_sides(serve: Serve) -> None:
    server = serve()
    with Wire(server.address) as wire:
        assert wire.ask(store(b"k", b"v", 8))[0] == Status.OK
        wire.send(request(Opcode.GOODBYE, request_id=9))
        reply = wire.reply()
        assert reply is not None
        assert (reply.opcode, reply.status, reply.request_id) == (Opcode.GOODBYE, Status.OK, 9)
        assert wire.reply(PROMPT_S) is None  # the client sees FIN
        wire.sock.shutdown(socket.SHUT_WR)
        until(lambda: stats(server, "connections")["ended"].get("goodbye"))  # and the server has let go
    figures = stats(server, "connections")
    assert figures["unhandled_errors"] == 0
    assert "lost" not in figures["ended"]


def test_nothing_after_goodbye_is_executed(serve: Serve) -> None:
    server = serve()
    with Wire(server.address) as wire:
        wire.send(store(b"a", b"1", 1) + request(Opcode.GOODBYE, request_id=2) + store(b"b", b"2", 3))
        assert [(reply.request_id, reply.status) for reply in wire.replies_to_end()] == [(1, Status.OK), (2, Status.OK)]
    with Client(server.address) as cache:
        assert cache.get("a") == b"1"
        assert cache.get("b") is None


def test_a_client_that_is_closed_says_goodbye(serve: Serve) -> None:
    server = serve()
    with Client(server.address) as cache:
        cache.set("k", b"v")
    with Wire(server.address) as looking:
        until(lambda: _ended(looking), "the server has seen the GOODBYE")
        assert _ended(looking) == {"goodbye": 1}


def _ended(wire: Wire) -> dict[str, int]:
    """How connections ended so far, asked over this one."""
    _, (text,) = wire.ask(request(Opcode.STATS, "connections"))
    ended = json.loads(text)["connections"]["ended"]
    assert isinstance(ended, dict)
    return ended


def test_the_servers_own_goodbye_is_of_the_closing_class(serve: Serve) -> None:
    server = serve()
    with Wire(server.address) as idle:
        assert idle.ask(store(b"k", b"v", 31))[0] == Status.OK
        assert stats(server, "connections")["connections"] >= 1
        server.terminate()
        reply = idle.reply()
        assert reply is not None
        assert (reply.opcode, reply.status, reply.request_id) == (Opcode.GOODBYE, Status.SHUTTING_DOWN, 31)
        assert status_class(reply.status) is StatusClass.CLOSING
        assert idle.reply() is None
    assert server.wait() == 0


@pytest.mark.parametrize("opcode", [Opcode.HELLO, Opcode.AUTH, Opcode.SET], ids=lambda opcode: opcode.name)
def test_no_more_is_kept_of_a_stranger_than_a_handshake_needs(guarded: ServerProcess, opcode: Opcode) -> None:
    """The header of a long frame is answered before its payload has come: nobody fills memory who has not proven the secret."""
    with Wire(guarded.address) as wire:
        wire.send(header_with(15 << 20, opcode))
        reply = wire.reply()
        assert reply is not None
        assert reply.status == Status.FRAME_TOO_LONG
        assert wire.reply() is None
    with Client(guarded.address, secret=SECRET) as cache:  # and who has may send what the limits allow
        assert cache.set("large", bytes(1 << 20))
