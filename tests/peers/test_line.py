"""A line: connects when it is needed, greets, asks one thing at a time, and says what is known of a question without answer."""

from __future__ import annotations

from typing import Any

import pytest

from rcache.peers.line import Line, PeerUnreachable
from rcache_client.address import Address
from rcache_client.handshake import Greeter
from rcache_client.wire.frames import Request
from rcache_client.wire.grammar import REQUESTS
from rcache_client.wire.opcodes import Opcode, Role, Status
from tests.contract.harness import PATIENCE_S, Task, wait_until
from tests.peers.harness import Accepted, PeerListener, greeter, welcome


def ask(line: Line, timeout_s: float = PATIENCE_S) -> Any:
    return line.ask(Opcode.REGISTER_WATCH, 5, timeout_s=timeout_s)


def unreachable(task: Task) -> PeerUnreachable:
    with pytest.raises(PeerUnreachable) as caught:
        task.result()
    return caught.value


def next_request(accepted: Accepted) -> Request:
    request = accepted.request()
    assert request is not None
    return request


def test_it_greets_as_a_node_and_asks(listener: PeerListener) -> None:
    line = listener.line()
    asking = Task(lambda: ask(line))
    accepted = listener.accept()
    hello = next_request(accepted)
    assert REQUESTS[Opcode.HELLO].decode(hello.payload)[2] == Role.NODE
    accepted.answer(hello, Status.OK, payload=welcome())
    request = next_request(accepted)
    assert (request.opcode, REQUESTS[Opcode.REGISTER_WATCH].decode(request.payload)) == (Opcode.REGISTER_WATCH, (5,))
    accepted.answer(request, Status.OK, 8, b"view")
    assert asking.result() == (Status.OK, (8, b"view"))
    assert line.welcome is not None
    assert line.welcome.node_name == "n2"
    line.close()


def test_the_next_question_goes_over_the_same_connection(listener: PeerListener) -> None:
    line = listener.line()
    for number in range(3):
        asking = Task(lambda: ask(line))
        if not number:
            accepted = listener.greet()
        accepted.answer(next_request(accepted), Status.OK, number, b"")
        assert asking.result() == (Status.OK, (number, b""))
    line.close()


def test_a_refusal_is_an_answer_and_the_connection_lives(listener: PeerListener) -> None:
    line = listener.line()
    asking = Task(lambda: ask(line))
    accepted = listener.greet()
    accepted.answer(next_request(accepted), Status.REGISTER_UNAVAILABLE, "not yet")
    assert asking.result() == (Status.REGISTER_UNAVAILABLE, ("not yet",))
    asking = Task(lambda: ask(line))
    accepted.answer(next_request(accepted), Status.OK, 1, b"")
    assert asking.result()[0] == Status.OK
    line.close()


def test_after_its_connection_was_lost_the_next_is_made_anew(listener: PeerListener) -> None:
    line = listener.line()
    asking = Task(lambda: ask(line))
    accepted = listener.greet()
    next_request(accepted)
    accepted.close()
    lost = unreachable(asking)
    assert not lost.not_sent, "it may have been done"
    assert not lost.refused
    assert str(listener.address) in str(lost)
    asking = Task(lambda: ask(line))
    again = listener.greet()
    again.answer(next_request(again), Status.OK, 1, b"")
    assert asking.result()[0] == Status.OK
    again.close()
    asking = Task(lambda: ask(line))
    third = listener.greet()
    third.answer(next_request(third), Status.OK, 2, b"")
    assert asking.result() == (Status.OK, (2, b"")), "an idle connection that has ended is noticed before anything is sent"
    line.close()


def test_an_answer_that_does_not_come_is_waited_for_no_longer(listener: PeerListener) -> None:
    line = listener.line()
    asking = Task(lambda: ask(line, timeout_s=0.05))
    accepted = listener.greet()
    next_request(accepted)
    assert not unreachable(asking).not_sent
    assert accepted.request() is None, "a late answer would be taken for that of the next question"
    line.close()


def test_where_nobody_listens(listener: PeerListener) -> None:
    line = listener.line()
    listener.stop_listening()
    refused = unreachable(Task(lambda: ask(line)))
    assert (refused.refused, refused.not_sent, refused.unwelcome) == (True, True, False)
    line.close()


def test_who_does_not_answer_the_greeting_is_given_up(listener: PeerListener) -> None:
    line = listener.line(connect_s=0.05)
    silent = unreachable(Task(lambda: ask(line)))
    assert (silent.refused, silent.not_sent, silent.unwelcome) == (False, True, False)
    line.close()


def test_who_is_of_another_cluster_is_unwelcome(listener: PeerListener) -> None:
    line = Line(listener.address, Greeter("n1", Role.NODE, None, b"of-another-kind!"), PATIENCE_S)
    asking = Task(lambda: ask(line))
    accepted = listener.greet()
    turned_away = unreachable(asking)
    assert (turned_away.unwelcome, turned_away.not_sent) == (True, True)
    assert accepted.request() is None
    line.close()


def test_a_name_that_does_not_resolve_is_unreachable() -> None:
    line = Line(Address("no-such-host.invalid", 1), greeter(), 0.5)
    assert unreachable(Task(lambda: ask(line))).not_sent
    line.close()


def test_it_is_broken_off_from_another_thread(listener: PeerListener) -> None:
    line = listener.line()
    asking = Task(lambda: ask(line))
    accepted = listener.greet()
    next_request(accepted)
    assert not asking.is_done
    line.break_off()
    unreachable(asking)
    line.close()
    line.break_off()


def test_its_socket_can_be_taken_from_it(listener: PeerListener) -> None:
    line = listener.line()
    detaching = Task(line.detach)
    accepted = listener.greet()
    sock = detaching.result()
    line.close()
    sock.sendall(b"x")
    wait_until(lambda: accepted.sock.recv(1) == b"x", "what was sent over it")
    sock.close()
    detaching = Task(line.detach)
    listener.greet()
    detaching.result().close()
    line.close()


def test_a_line_that_was_broken_off_while_it_connects_is_not_used(listener: PeerListener) -> None:
    """There was no connection to break when it was; without this its question would be waited for to the end."""
    line = listener.line()
    asking = Task(lambda: ask(line, 10 * PATIENCE_S))
    accepted = listener.accept()
    hello = next_request(accepted)
    line.break_off()
    accepted.answer(hello, Status.OK, payload=welcome())
    assert "broken off" in str(unreachable(asking))
