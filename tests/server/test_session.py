"""Sessions: the handshake, what is answered before and after it, and that every answer has the layout it should."""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass, replace
from typing import Any

import pytest

from rcache.engine.contract import RequestRefused
from rcache.engine.sockets import Ended
from rcache.server.loggers import Loggers
from rcache.server.node_answers import NodeAnswers, Refusal, Standing
from rcache.server.session import REASON_BYTES_MAX, Response, Session, Stage, Welcome
from rcache_client.wire import proof
from rcache_client.wire.frames import BadFrame, Reply, ReplyReader, Request
from rcache_client.wire.grammar import REQUESTS, Layout, decode_reply
from rcache_client.wire.opcodes import ANY_CLUSTER, DATA_OPCODES, NODE_OPCODES, Opcode, PersistMode, Role, Status

SECRET = b"a secret of some length"
CLUSTER = b"c" * 16
WELCOME = Welcome(CLUSTER, 3, 8, 1 << 20, 1 << 16, 5000, "n1", "0.1")
OWN_NONCE = b"n" * 16


@dataclass
class FakeConnection:
    """A connection without a socket."""

    sock: socket.socket | None = None
    data_allowed: bool = True
    greeted: bool = False
    last_executed: int = 0
    requests: int = 0

    def send(self, data: bytes) -> Ended | None:
        raise AssertionError("a session sends nothing")


class FakeAnswers:
    """Notes what it is asked, and answers with `values`, or refuses."""

    def __init__(self, values: tuple[Any, ...] = (), refusal: Refusal | None = None) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.values = values
        self.refusal = refusal

    def answer(self, opcode: int, payload: bytes, role: Role, name: str, budget_s: float) -> tuple[Any, ...]:
        self.asked.append((opcode, payload, role, name, budget_s))
        if self.refusal is not None:
            raise self.refusal
        return self.values


class FakeControl:
    """What the control opcodes act on. `sessions`: of which nodes sessions began and ended, in order."""

    def __init__(self) -> None:
        self.epoch = 9
        self.answers: NodeAnswers | FakeAnswers = NodeAnswers(Standing())
        self.sessions: list[tuple[str, bool]] = []
        self.hub: Any = None
        self.engine: Any = None
        self.loggers = Loggers()
        self.on = False
        self.refusal: RequestRefused | None = None
        self.deadline_ns = 0

    def flush(self, deadline_ns: int) -> int:
        self.deadline_ns = deadline_ns
        if self.refusal:
            raise self.refusal
        return 42

    def node_session(self, name: str, *, began: bool) -> None:
        self.sessions.append((name, began))

    def stats_json(self, section: str) -> bytes:
        if section not in ("", "items"):
            raise RequestRefused(Status.BAD_ARGUMENT, f"no section {section!r}")
        return b"{}"

    def persist(self, mode: PersistMode) -> tuple[bool, str]:
        if mode is not PersistMode.ASK:
            self.on = mode is PersistMode.ON
        return self.on, "/data/n1.rcs"


class Visitor:
    """Talks to a session."""

    def __init__(self, secret: bytes | None = None, *, reserved: bool = False) -> None:
        self.connection = FakeConnection()
        self.control = FakeControl()
        self.welcome = WELCOME
        self.session = Session(
            *(self.connection, self.control, lambda: self.welcome, secret),  # type: ignore[arg-type]
            reserved=reserved,
        )
        self._next = 0

    def ask(self, opcode: int, *values: Any, budget_ms: int = 0) -> tuple[Status, Any, bool]:
        return self.ask_raw(opcode, REQUESTS[opcode].encode(*values), budget_ms)

    def ask_raw(self, opcode: int, payload: bytes, budget_ms: int = 0) -> tuple[Status, Any, bool]:
        """Status, values by the grammar, and whether the connection is closed."""
        self._next += 1
        response = self.session.respond(Request(opcode, self._next, budget_ms, payload))
        reply = read(response)
        assert (reply.opcode, reply.request_id, reply.epoch) == (opcode, self._next, 9)
        return Status(reply.status), decode_reply(reply.opcode, reply.status, reply.payload), response.close

    def hello(self, role: Role = Role.CLIENT, low: int = 1, high: int = 1, cluster: bytes = ANY_CLUSTER) -> Any:
        return self.ask(Opcode.HELLO, *hello_values(role, low, high, cluster))


def hello_values(role: Role = Role.CLIENT, low: int = 1, high: int = 1, cluster: bytes = ANY_CLUSTER) -> tuple[Any, ...]:
    return low, high, role, cluster, OWN_NONCE, "me"


def read(response: Response) -> Reply:
    reader = ReplyReader(1 << 20)
    reader.feed(response.frame)
    reply = reader.next()
    assert reply is not None
    assert reader.held == 0
    return reply


# --- without a secret


def test_hello_is_welcomed() -> None:
    visitor = Visitor()
    assert visitor.connection.data_allowed, "a bare request needs no HELLO"
    status, values, close = visitor.hello(cluster=CLUSTER)
    assert (status, values, close) == (Status.OK, WELCOME.values(), False)
    assert visitor.session.stage is Stage.OPEN
    assert (visitor.session.role, visitor.session.name) == (Role.CLIENT, "me")
    assert visitor.connection.greeted


def test_the_welcome_is_made_when_it_is_said() -> None:
    """A node learns its incarnation, and may learn its cluster, while it listens already."""
    visitor = Visitor()
    visitor.welcome = replace(WELCOME, incarnation=4, cluster_id=b"d" * 16)
    assert visitor.hello(cluster=CLUSTER)[::2] == (Status.WRONG_CLUSTER, True)
    status, values, _ = visitor.hello(cluster=b"d" * 16)
    assert (status, values) == (Status.OK, visitor.welcome.values())


def test_hello_is_said_once() -> None:
    visitor = Visitor()
    visitor.hello()
    status, _, close = visitor.hello()
    assert (status, close) == (Status.NOT_ALLOWED, False)


@pytest.mark.parametrize(
    ("changed", "status"),
    [({"low": 2, "high": 9}, Status.BAD_VERSION), ({"cluster": b"x" * 16}, Status.WRONG_CLUSTER)],
)
def test_a_hello_that_does_not_fit_is_answered_and_closed(changed: dict[str, Any], status: Status) -> None:
    visitor = Visitor()
    answered, (reason,), close = visitor.hello(**changed)
    assert (answered, close) == (status, True)
    assert reason
    assert visitor.session.stage is Stage.NEW


def test_a_range_of_versions_that_holds_ours_is_fine() -> None:
    assert Visitor().hello(low=1, high=200)[0] is Status.OK


def test_auth_without_a_challenge_is_refused() -> None:
    visitor = Visitor()
    for _ in range(2):
        assert visitor.ask(Opcode.AUTH, bytes(32))[::2] == (Status.NOT_ALLOWED, False)
        visitor.hello()


def test_control_opcodes() -> None:
    visitor = Visitor()
    assert visitor.ask(Opcode.PING) == (Status.OK, (), False)
    assert visitor.ask(Opcode.FLUSH) == (Status.OK, (42,), False)
    assert visitor.ask(Opcode.STATS, "") == (Status.OK, (b"{}",), False)
    status, (reason,), close = visitor.ask(Opcode.STATS, "nothing")
    assert (status, close) == (Status.BAD_ARGUMENT, False)
    assert "nothing" in reason
    assert visitor.ask(Opcode.PERSIST, PersistMode.ASK)[1] == (PersistMode.OFF, "/data/n1.rcs")
    assert visitor.ask(Opcode.PERSIST, PersistMode.ON)[1] == (PersistMode.ON, "/data/n1.rcs")
    assert visitor.ask(Opcode.PERSIST, PersistMode.ASK)[1] == (PersistMode.ON, "/data/n1.rcs")
    assert visitor.ask(Opcode.PERSIST, PersistMode.OFF)[1] == (PersistMode.OFF, "/data/n1.rcs")
    assert visitor.connection.last_executed == 8


def test_a_flush_has_the_callers_budget_or_a_long_one() -> None:
    visitor = Visitor()
    visitor.ask(Opcode.FLUSH, budget_ms=100)
    assert visitor.control.deadline_ns - time.monotonic_ns() <= 100_000_000
    visitor.ask(Opcode.FLUSH)
    assert visitor.control.deadline_ns - time.monotonic_ns() > 10_000_000_000


@pytest.mark.parametrize("status", [Status.BUSY, Status.NOT_COMMITTED, Status.STOPPING])
def test_a_flush_that_is_refused_says_why(status: Status) -> None:
    visitor = Visitor()
    visitor.control.refusal = RequestRefused(status, "why")
    assert visitor.ask(Opcode.FLUSH) == (status, ("why",), False)


def test_an_unknown_opcode_is_answered_and_the_connection_lives() -> None:
    visitor = Visitor()
    status, (reason,), close = visitor.ask_raw(0x7F, b"whatever")
    assert (status, close) == (Status.UNKNOWN_OPCODE, False)
    assert "0x7f" in reason


@pytest.mark.parametrize("opcode", [op for op in Opcode if op not in {*DATA_OPCODES, Opcode.STEER}])
def test_a_payload_that_does_not_come_out_even_closes(opcode: Opcode) -> None:
    visitor = Visitor()
    status, _, close = visitor.ask_raw(opcode, b"\xff" * 3)
    assert (status, close) == (Status.BAD_PAYLOAD, True)
    assert visitor.connection.last_executed == 0


# --- what nodes ask


@pytest.mark.parametrize("role", [Role.CLIENT, Role.LOGGER, Role.ADMIN])
def test_who_is_no_node_is_not_counted_as_one(role: Role) -> None:
    visitor = Visitor()
    visitor.hello(role)
    assert not visitor.session.is_node
    visitor.session.ended()
    assert visitor.control.sessions == []


def test_a_nodes_session_is_told_of_when_it_opens_and_when_it_is_gone() -> None:
    visitor = Visitor()
    assert not visitor.session.is_node
    visitor.hello(Role.NODE)
    assert visitor.session.is_node
    assert visitor.hello(Role.NODE)[0] is Status.NOT_ALLOWED
    assert visitor.control.sessions == [("me", True)], "once"
    visitor.session.ended()
    assert visitor.control.sessions == [("me", True), ("me", False)]


def test_with_a_secret_a_node_is_one_only_after_its_proof() -> None:
    visitor = Visitor(SECRET)
    visitor.hello(Role.NODE)
    visitor.session.ended()
    assert visitor.control.sessions == []
    assert not visitor.session.is_node
    visitor = Visitor(SECRET)
    answer_challenge(visitor, b"another secret, as long", Role.NODE)
    assert visitor.control.sessions == []
    visitor = Visitor(SECRET)
    answer_challenge(visitor, role=Role.NODE)
    assert visitor.control.sessions == [("me", True)]
    assert visitor.session.is_node


def test_nobody_becomes_a_node_by_a_second_hello() -> None:
    visitor = Visitor()
    visitor.hello(Role.CLIENT)
    assert visitor.ask(Opcode.HELLO, 1, 1, Role.NODE, ANY_CLUSTER, OWN_NONCE, "n2")[0] is Status.NOT_ALLOWED
    assert (visitor.session.role, visitor.session.name, visitor.session.is_node) == (Role.CLIENT, "me", False)
    assert visitor.ask(Opcode.REGISTER_READ)[0] is Status.NOT_ALLOWED
    assert visitor.control.sessions == []


@pytest.mark.parametrize("opcode", sorted(DATA_OPCODES))
def test_data_is_not_for_nodes(opcode: Opcode) -> None:
    """The engine hands their requests back; whatever they hold, nothing of it is executed."""
    visitor = Visitor()
    visitor.hello(Role.NODE)
    status, (reason,), close = visitor.ask_raw(opcode, b"anything")
    assert (status, close) == (Status.NOT_ALLOWED, False)
    assert "clients" in reason


@pytest.mark.parametrize("opcode", sorted(NODE_OPCODES))
def test_without_a_hello_nobody_is_a_node(opcode: Opcode) -> None:
    visitor = Visitor()
    status, _, close = visitor.ask(opcode, *sample_values(opcode))
    assert (status, close) == (Status.NOT_ALLOWED, False)


def sample_values(opcode: Opcode) -> list[Any]:
    """Values for any opcode whose payload is no group."""
    layout = REQUESTS[opcode]
    assert isinstance(layout, Layout)
    return ["" if field.text else b"" if field.string else max(field.low, 1) for field in layout.fields]


@pytest.mark.parametrize("opcode", [*sorted(NODE_OPCODES), Opcode.VIEW, Opcode.STEER])
def test_what_is_answered_elsewhere_gets_the_frame_and_who_asks(opcode: Opcode) -> None:
    visitor = Visitor()
    answers = visitor.control.answers = FakeAnswers(refusal=Refusal(Status.VIEW_AHEAD, "not yet"))
    visitor.hello(Role.NODE)
    values = sample_values(opcode)
    assert visitor.ask(opcode, *values, budget_ms=1500) == (Status.VIEW_AHEAD, ("not yet",), False)
    assert answers.asked == [(opcode, REQUESTS[opcode].encode(*values), Role.NODE, "me", 1.5)]
    assert visitor.connection.last_executed == 2


@pytest.mark.parametrize(
    ("budget_ms", "budget_s"), [(0, 30.0), (1, 0.001), (60_000, 60.0), (60_001, 60.0), (0xFFFF_FFFF, 60.0)]
)
def test_a_node_opcode_has_the_callers_budget_within_bounds(budget_ms: int, budget_s: float) -> None:
    visitor = Visitor()
    answers = visitor.control.answers = FakeAnswers((7, b"{}"))
    assert visitor.ask(Opcode.REGISTER_WATCH, 6, budget_ms=budget_ms) == (Status.OK, (7, b"{}"), False)
    assert answers.asked[0][-1] == budget_s


def test_a_refusal_has_the_payload_of_its_status() -> None:
    """A view where the caller's is older: bytes, and not cut like a reason."""
    view = b"v" * (REASON_BYTES_MAX * 3)
    visitor = Visitor()
    visitor.control.answers = FakeAnswers(refusal=Refusal(Status.STALE_VIEW, view))
    assert visitor.ask(Opcode.HEARTBEAT, 1, 2, 3, 4) == (Status.STALE_VIEW, (view,), False)


@pytest.mark.parametrize("why", ["\N{SNOWMAN}" * 100_000, "a name with half a pair, \ud800, in it"])
def test_a_refusal_says_why_whatever_it_quotes(why: str) -> None:
    """Reasons quote what came: it may be long, and JSON can name characters that UTF-8 has no bytes for."""
    visitor = Visitor()
    visitor.control.answers = FakeAnswers(refusal=Refusal(Status.BAD_VIEW, why))
    status, (reason,), close = visitor.ask(Opcode.REGISTER_SET, 1, b"{}")
    assert (status, close) == (Status.BAD_VIEW, False)
    assert 0 < len(reason.encode()) <= REASON_BYTES_MAX


# --- goodbye


def test_goodbye_is_answered_with_the_last_request_and_closed() -> None:
    visitor = Visitor()
    visitor.connection.last_executed = 77
    assert visitor.ask(Opcode.GOODBYE) == (Status.OK, (77, ""), True)


def test_the_servers_own_goodbye_names_the_last_request() -> None:
    visitor = Visitor()
    visitor.connection.last_executed = 77
    reply = read(Response(visitor.session.goodbye(Status.SHUTTING_DOWN, "stopping")))
    assert (reply.opcode, reply.status, reply.request_id) == (Opcode.GOODBYE, Status.SHUTTING_DOWN, 77)
    assert decode_reply(reply.opcode, reply.status, reply.payload) == (77, "stopping")


@pytest.mark.parametrize("opcode", [0, Opcode.GET, Opcode.GOODBYE, 0x7F])
def test_a_frame_that_cannot_be_read_is_answered_in_the_layout_of_its_opcode(opcode: int) -> None:
    visitor = Visitor()
    response = visitor.session.reject(BadFrame(Status.FRAME_TOO_LONG, "too long", 5, opcode))
    reply = read(response)
    assert response.close
    assert (reply.opcode, reply.status, reply.request_id) == (opcode, Status.FRAME_TOO_LONG, 5)
    assert "too long" in decode_reply(reply.opcode, reply.status, reply.payload)


def test_a_reason_is_cut_to_what_fits() -> None:
    visitor = Visitor()
    reply = read(visitor.session.reject(BadFrame(Status.BAD_PAYLOAD, "\N{SNOWMAN}" * 100_000, 5, Opcode.GET)))
    (reason,) = decode_reply(reply.opcode, reply.status, reply.payload)
    assert len(reason.encode()) <= REASON_BYTES_MAX
    assert set(reason) == {"\N{SNOWMAN}"}


# --- with a secret


def answer_challenge(visitor: Visitor, secret: bytes = SECRET, role: Role = Role.CLIENT) -> Any:
    status, (nonce,), close = visitor.hello(role)
    assert (status, close) == (Status.CHALLENGE, False)
    shown = proof.client_proof(secret, REQUESTS[Opcode.HELLO].encode(*hello_values(role)), nonce)
    return nonce, visitor.ask(Opcode.AUTH, shown)


def test_the_proof_opens_and_the_server_proves_itself_too() -> None:
    visitor = Visitor(SECRET)
    assert not visitor.connection.data_allowed
    nonce, (status, values, close) = answer_challenge(visitor)
    assert (status, close) == (Status.OK, False)
    assert values == (proof.server_proof(SECRET, REQUESTS[Opcode.HELLO].encode(*hello_values()), nonce), *WELCOME.values())
    assert visitor.connection.data_allowed
    assert visitor.connection.greeted
    assert visitor.ask(Opcode.PING)[0] is Status.OK


def test_a_wrong_proof_closes() -> None:
    visitor = Visitor(SECRET)
    _, (status, _, close) = answer_challenge(visitor, b"another secret, as long")
    assert (status, close) == (Status.WRONG_PROOF, True)
    assert not visitor.connection.data_allowed


def test_a_challenge_is_never_the_same() -> None:
    assert len({Visitor(SECRET).hello()[1] for _ in range(20)}) == 20


def test_a_proof_of_another_role_does_not_fit() -> None:
    visitor = Visitor(SECRET)
    _, (nonce,), _ = visitor.hello(Role.ADMIN)
    shown = proof.client_proof(SECRET, REQUESTS[Opcode.HELLO].encode(*hello_values(Role.CLIENT)), nonce)
    assert visitor.ask(Opcode.AUTH, shown)[::2] == (Status.WRONG_PROOF, True)


@pytest.mark.parametrize("opcode", [op for op in Opcode if op is not Opcode.HELLO] + [0x7F])
def test_a_stranger_gets_no_further_than_hello(opcode: int) -> None:
    visitor = Visitor(SECRET)
    status, _, close = visitor.ask_raw(opcode, b"anything")
    assert (status, close) == (Status.HELLO_EXPECTED, True)
    assert not visitor.connection.data_allowed


@pytest.mark.parametrize("opcode", [op for op in Opcode if op is not Opcode.AUTH] + [0x7F])
def test_after_the_challenge_only_the_proof_is_taken(opcode: int) -> None:
    visitor = Visitor(SECRET)
    visitor.hello()
    status, _, close = visitor.ask_raw(opcode, b"anything")
    assert (status, close) == (Status.HELLO_EXPECTED, True)
    assert not visitor.connection.data_allowed
    assert not visitor.connection.greeted


# --- reserved places


@pytest.mark.parametrize("role", list(Role))
def test_a_reserved_place_is_for_administrators_and_nodes(role: Role) -> None:
    visitor = Visitor(reserved=True)
    assert not visitor.connection.data_allowed
    status, _, close = visitor.hello(role)
    welcome = role in (Role.ADMIN, Role.NODE)
    assert (status, close) == ((Status.OK, False) if welcome else (Status.TOO_MANY_CONNECTIONS, True))
    assert visitor.connection.data_allowed is welcome


@pytest.mark.parametrize("opcode", [*sorted(DATA_OPCODES)[:3], Opcode.PING, Opcode.STATS, Opcode.GOODBYE])
def test_on_a_reserved_place_all_else_is_told_that_there_is_none(opcode: int) -> None:
    status, _, close = Visitor(reserved=True).ask_raw(opcode, b"")
    assert (status, close) == (Status.TOO_MANY_CONNECTIONS, True)


def test_on_a_reserved_place_the_secret_counts_as_well() -> None:
    visitor = Visitor(SECRET, reserved=True)
    _, (status, _, _) = answer_challenge(visitor, role=Role.ADMIN)
    assert status is Status.OK
    assert Visitor(SECRET, reserved=True).hello(Role.CLIENT)[::2] == (Status.TOO_MANY_CONNECTIONS, True)


def test_a_logger_is_counted_while_it_is_connected() -> None:
    visitor = Visitor()
    assert not visitor.session.may_wait
    visitor.hello(Role.LOGGER)
    assert visitor.session.may_wait
    assert visitor.control.loggers.stats()["me"]["connections"] == 1
    visitor.session.ended()
    assert visitor.control.loggers.stats() == {}


def test_a_logger_that_does_not_prove_itself_is_none() -> None:
    visitor = Visitor(b"a secret that is long enough")
    visitor.hello(Role.LOGGER)
    assert visitor.control.loggers.stats() == {}
    visitor.session.ended()
    assert visitor.control.loggers.stats() == {}
