"""One connection on its own: after anything went wrong in an exchange it is closed for good."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from time import monotonic

import pytest

from rcache_client import BudgetSpent, TooLarge
from rcache_client.connection import Connection, Setback, Trouble, connect
from rcache_client.wire.frames import HEADER_BYTES, encode_reply
from rcache_client.wire.opcodes import Opcode, Status

Ends = tuple[Connection, socket.socket]


@pytest.fixture
def ends() -> Iterator[Ends]:
    ours, theirs = socket.socketpair()
    connection = Connection(ours, "server:1")
    with theirs:
        yield connection, theirs
    connection.close()


def ping(connection: Connection, wait_s: float = 5.0) -> tuple[int, object]:
    return connection.exchange(Opcode.PING, b"", monotonic() + wait_s, wait_s)


def test_an_exchange(ends: Ends) -> None:
    connection, theirs = ends
    theirs.sendall(encode_reply(Opcode.PING, Status.OK, 1, 1))
    assert ping(connection) == (Status.OK, ())
    assert not connection.closed
    request = theirs.recv(100)
    assert request[:4] == bytes.fromhex("ca 01 03 00")
    assert len(request) == HEADER_BYTES


@pytest.mark.parametrize(
    ("reply", "trouble"),
    [
        (b"", Trouble.SILENT),
        (encode_reply(Opcode.PING, Status.OK, 1, 1)[:-1], Trouble.SILENT),
        (encode_reply(Opcode.PING, Status.OK, 2, 1), Trouble.GARBLED),
        (encode_reply(Opcode.PING, Status.OK, 1, 1, b"!"), Trouble.GARBLED),
    ],
)
def test_a_setback_closes_it_and_says_that_the_request_may_be_executed(ends: Ends, reply: bytes, trouble: Trouble) -> None:
    connection, theirs = ends
    theirs.sendall(reply)
    with pytest.raises(Setback) as caught:
        ping(connection, 0.05)
    assert (caught.value.trouble, caught.value.maybe_executed) == (trouble, True)
    assert connection.closed


def test_an_end_after_the_request_left(ends: Ends) -> None:
    connection, theirs = ends
    theirs.shutdown(socket.SHUT_WR)
    with pytest.raises(Setback) as caught:
        ping(connection)
    assert (caught.value.trouble, caught.value.maybe_executed, connection.closed) == (Trouble.CLOSED, True, True)


def test_an_end_before_the_request_could_leave(ends: Ends) -> None:
    connection, theirs = ends
    theirs.close()
    with pytest.raises(Setback) as caught:
        ping(connection)
    assert (caught.value.trouble, caught.value.maybe_executed, connection.closed) == (Trouble.CLOSED, False, True)


def test_a_spent_budget_sends_nothing_and_leaves_it_usable(ends: Ends) -> None:
    connection, theirs = ends
    with pytest.raises(BudgetSpent, match="PING at server:1"):
        ping(connection, -1)
    theirs.setblocking(False)
    with pytest.raises(BlockingIOError):
        theirs.recv(1)
    assert not connection.closed


def test_a_frame_over_the_servers_limit_sends_nothing(ends: Ends) -> None:
    connection, theirs = ends
    with pytest.raises(TooLarge):
        connection.exchange(Opcode.GET, bytes(connection.frame_bytes_max), monotonic() + 5, 5)
    theirs.setblocking(False)
    with pytest.raises(BlockingIOError):
        theirs.recv(1)


def test_connecting_to_oneself_is_no_connection() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        target = probe.getsockname()
        probe.settimeout(5)
        probe.connect(target)  # TCP allows it
        assert probe.getsockname() == probe.getpeername()
    with pytest.raises(Setback, match="cannot connect"):
        connect([(socket.AF_INET, target)], "server:1", monotonic() + 5)
