"""A session: what is answered to the frames that are not the engine's business.

What it is: HELLO with its challenge and response, PING, GOODBYE, and the control opcodes. A request goes in, a response comes
out; nothing here reads or writes a socket.
Which thread runs it: the worker that owns the connection. Blocks only where a control opcode does (FLUSH).
What it owns: where the connection's handshake stands. What it must not know: sockets, other connections.

Invariants:
1. With a secret set, nothing but one HELLO and then one AUTH is answered before the proof; everything else closes.
2. Whatever a peer sends, it gets a reply of the layout that its opcode and status demand.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple, Protocol

from rcache.engine.contract import Engine, EngineConnection, Gate, RequestRefused
from rcache.feeds.hub import Hub
from rcache.server.copy_answers import CopyAnswers
from rcache.server.feed_answers import FeedAnswers
from rcache.server.loggers import Loggers
from rcache.server.node_answers import NodeAnswers, Refusal
from rcache_client.wire import proof
from rcache_client.wire.frames import BadFrame, Request, encode_reply
from rcache_client.wire.grammar import GOODBYE_REPLY, REASON, REQUESTS, BadPayload, Layout, reply_layout
from rcache_client.wire.opcodes import (
    ANY_CLUSTER,
    DATA_OPCODES,
    NODE_OPCODES,
    NONCE_BYTES,
    PROTOCOL_VERSION,
    Opcode,
    PersistMode,
    Role,
    Status,
    opcode_name,
)

REASON_BYTES_MAX = 1024
"""A reason is for a person to read; the rest of a longer one helps nobody."""

CONTROL_BUDGET_S = 30.0
"""How long a control request may take whose caller names no budget: flushing a large store waits for its log."""


CONTROL_BUDGET_NS_MAX = 60 * 10**9
"""As for data requests: a worker is held no longer by one request."""


class Stage(Enum):
    """Where a handshake stands."""

    NEW = "no HELLO yet"
    CHALLENGED = "a proof is awaited"
    OPEN = "open"


class Response(NamedTuple):
    """A reply frame, and whether the connection is closed after it."""

    frame: bytes
    close: bool = False


@dataclass(frozen=True, slots=True)
class Welcome:
    """What a server tells of itself. Sizes in bytes, time in ms."""

    cluster_id: bytes
    incarnation: int
    buckets: int
    frame_bytes_max: int
    value_bytes_max: int
    idle_ms: int
    node: str
    server_version: str

    def values(self) -> tuple[Any, ...]:
        """In the order of the layout."""
        return (
            PROTOCOL_VERSION,
            self.cluster_id,
            self.incarnation,
            self.buckets,
            self.frame_bytes_max,
            self.value_bytes_max,
            self.idle_ms,
            self.node,
            self.server_version,
        )


class Control(Protocol):
    """What the control opcodes act on: the service, as far as a session needs it."""

    @property
    def epoch(self) -> int: ...

    def flush(self, deadline_ns: int) -> int:
        """Remove all items. Raises `RequestRefused`."""
        ...

    def stats_json(self, section: str) -> bytes:
        """The statistics, as JSON. Raises `RequestRefused` for a section that does not exist."""
        ...

    @property
    def answers(self) -> NodeAnswers: ...

    @property
    def hub(self) -> Hub: ...

    @property
    def engine(self) -> Engine: ...

    @property
    def loggers(self) -> Loggers: ...

    def node_session(self, name: str, *, began: bool) -> None:
        """A connection from another node was opened, or is gone."""
        ...

    def persist(self, mode: PersistMode) -> tuple[bool, str]:
        """Switch or ask; whether a savefile will be written, and its path."""
        ...


class Session:
    """One connection's session. `reserved`: one of the places kept for nodes and administrators."""

    def __init__(
        self,
        connection: EngineConnection,
        control: Control,
        welcome: Callable[[], Welcome],
        secret: bytes | None,
        *,
        reserved: bool = False,
    ) -> None:
        self.stage = Stage.NEW
        self.role = Role.CLIENT
        self.name = ""
        self.is_node = False
        self._connection = connection
        self._control = control
        self._make_welcome = welcome
        self._secret = secret
        self.reserved = reserved
        self._feed = FeedAnswers(control.hub, welcome().frame_bytes_max)
        self._copy = CopyAnswers(control.engine, welcome().frame_bytes_max)
        self._hello = b""
        self._nonce = b""
        self._answers: dict[int, Callable[[Request], Response]] = {
            Opcode.HELLO: self._answer_hello,
            Opcode.AUTH: self._answer_auth,
            Opcode.PING: self._answer_ping,
            Opcode.GOODBYE: self._answer_goodbye,
            Opcode.SUBSCRIBE: self._answer_feed,
            Opcode.EVENTS: self._answer_feed,
            Opcode.COPY: self._answer_feed,
            Opcode.FLUSH: self._answer_flush,
            Opcode.STATS: self._answer_stats,
            Opcode.PERSIST: self._answer_persist,
            Opcode.VIEW: self._answer_node,
            Opcode.STEER: self._answer_node,
            **dict.fromkeys(NODE_OPCODES, self._answer_node),
        }
        connection.data_allowed = secret is None and not reserved

    def respond(self, request: Request) -> Response:
        """The response to a frame that the engine handed back."""
        try:
            response = self._refuse_unopened(request) or self._answer(request)
        except BadPayload as error:
            return self.reject(BadFrame(Status.BAD_PAYLOAD, str(error), request.request_id, request.opcode))
        self._connection.last_executed = request.request_id
        return response

    def reject(self, bad: BadFrame) -> Response:
        """The reply to a frame that cannot be read; the connection is closed after it."""
        return self._closing(Request(bad.opcode, bad.request_id, 0, b""), bad.status, bad.reason)

    def goodbye(self, status: Status, reason: str) -> bytes:
        """The server's own GOODBYE: why, and the last request that was executed."""
        executed = self._connection.last_executed
        return encode_reply(
            Opcode.GOODBYE, status, executed, self._control.epoch, GOODBYE_REPLY.encode(executed, _shorten(reason))
        )

    # --- the handshake

    def _refuse_unopened(self, request: Request) -> Response | None:
        """Invariant 1."""
        if self._connection.data_allowed:
            return None
        due = Opcode.AUTH if self.stage is Stage.CHALLENGED else Opcode.HELLO
        if request.opcode == due:
            return None
        if self.reserved and self._secret is None:
            return self._closing(request, Status.TOO_MANY_CONNECTIONS, "all places for clients are taken; try again later")
        return self._closing(request, Status.HELLO_EXPECTED, f"{due.name} must come first: this server has a secret")

    def _answer(self, request: Request) -> Response:
        answer = self._answers.get(request.opcode)
        if answer is None and self.is_node and request.opcode in DATA_OPCODES:
            return self._refuse(request, Status.NOT_ALLOWED, "data is asked for by clients; say HELLO as one")
        if self._feed.is_open and request.opcode in DATA_OPCODES:
            return self._refuse(request, Status.NOT_ALLOWED, "this connection is a feed's; data is asked for on another")
        if answer is None:
            assert request.opcode not in DATA_OPCODES
            return self._refuse(request, Status.UNKNOWN_OPCODE, f"{opcode_name(request.opcode)} is not known here")
        return answer(request)

    def _answer_hello(self, request: Request) -> Response:
        low, high, role, cluster_id, _, name = _fields(request)
        if self.stage is not Stage.NEW:
            return self._refuse(request, Status.NOT_ALLOWED, "HELLO was said before")
        if not low <= PROTOCOL_VERSION <= high:
            why = f"versions {low} to {high} are not spoken here, only {PROTOCOL_VERSION}"
            return self._closing(request, Status.BAD_VERSION, why)
        if cluster_id not in (ANY_CLUSTER, self._make_welcome().cluster_id):
            why = f"this is cluster {self._make_welcome().cluster_id.hex()}, not {cluster_id.hex()}"
            return self._closing(request, Status.WRONG_CLUSTER, why)
        if self.reserved and role not in (Role.ADMIN, Role.NODE):
            return self._closing(request, Status.TOO_MANY_CONNECTIONS, "all places for clients are taken; try again later")
        self.role, self.name = Role(role), name
        if self._secret is None:
            self._open()
            return self._ok(request, *self._make_welcome().values())
        self.stage, self._hello, self._nonce = Stage.CHALLENGED, request.payload, os.urandom(NONCE_BYTES)
        return Response(self._encode(request, Status.CHALLENGE, self._nonce))

    def _answer_auth(self, request: Request) -> Response:
        (shown,) = _fields(request)
        if self._secret is None or self.stage is not Stage.CHALLENGED:
            return self._refuse(request, Status.NOT_ALLOWED, "no challenge was given")
        if not proof.proofs_match(shown, proof.client_proof(self._secret, self._hello, self._nonce)):
            return self._closing(request, Status.WRONG_PROOF, "the proof does not fit: not the same secret")
        self._open()
        return self._ok(request, proof.server_proof(self._secret, self._hello, self._nonce), *self._make_welcome().values())

    def _open(self) -> None:
        self.stage = Stage.OPEN
        self._connection.data_allowed = self._connection.greeted = True
        if self.role is Role.NODE:
            self.is_node = True
            self._control.node_session(self.name, began=True)
        if self.role is Role.LOGGER:
            self._control.loggers.began(self.name)

    # --- the rest

    def _answer_ping(self, request: Request) -> Response:
        _fields(request)
        return self._ok(request)

    def _answer_goodbye(self, request: Request) -> Response:
        _fields(request)
        return Response(self._encode(request, Status.OK, self._connection.last_executed, ""), close=True)

    def _answer_flush(self, request: Request) -> Response:
        _fields(request)
        budget_ns = min(request.budget_ms * 1_000_000 or int(CONTROL_BUDGET_S * 1e9), CONTROL_BUDGET_NS_MAX)
        try:
            return self._ok(request, self._control.flush(time.monotonic_ns() + budget_ns))
        except RequestRefused as refusal:
            return self._refuse(request, refusal.status, refusal.reason)

    def _answer_stats(self, request: Request) -> Response:
        (section,) = _fields(request)
        try:
            return self._ok(request, self._control.stats_json(section))
        except RequestRefused as refusal:
            return self._refuse(request, refusal.status, refusal.reason)

    def _answer_persist(self, request: Request) -> Response:
        (mode,) = _fields(request)
        enabled, path = self._control.persist(PersistMode(mode))
        return self._ok(request, PersistMode.ON if enabled else PersistMode.OFF, _shorten(path))

    def _answer_node(self, request: Request) -> Response:
        budget_s = min(request.budget_ms / 1000 or CONTROL_BUDGET_S, CONTROL_BUDGET_NS_MAX / 1e9)
        try:
            return self._ok(
                request, *self._control.answers.answer(request.opcode, request.payload, self.role, self.name, budget_s)
            )
        except Refusal as refusal:
            values = [_shorten(value) if isinstance(value, str) else value for value in refusal.values]
            return Response(self._encode(request, refusal.status, *values))

    def _answer_feed(self, request: Request) -> Response:
        budget_s = min(request.budget_ms / 1000 or CONTROL_BUDGET_S, CONTROL_BUDGET_NS_MAX / 1e9)
        try:
            if request.opcode == Opcode.COPY:
                return self._ok(request, *self._copy.answer(request.payload, self.role, budget_s))
            return self._ok(request, *self._feed.answer(request.opcode, request.payload, self.role, budget_s))
        except Refusal as refusal:
            return self._refuse(request, refusal.status, str(refusal.values[0]))

    @property
    def may_wait(self) -> bool:
        """Whether this connection has a thread of its own: a node's, a logger's, or a feed's."""
        return self.is_node or self.role is Role.LOGGER or self._feed.is_open

    @property
    def gate(self) -> Gate | None:
        """For a node's connection: what its records may come in by without being looked at here."""
        return self._control.answers.gate_of(self.name) if self.is_node else None

    def ended(self) -> None:
        """The connection is gone."""
        self._feed.close()
        if self.is_node:
            self._control.node_session(self.name, began=False)
        if self.role is Role.LOGGER and self.stage is Stage.OPEN:
            self._control.loggers.ended(self.name)

    # --- encoding

    def _encode(self, request: Request, status: Status, *values: Any) -> bytes:
        payload = reply_layout(request.opcode, status).encode(*values)
        return encode_reply(request.opcode, status, request.request_id, self._control.epoch, payload)

    def _ok(self, request: Request, *values: Any) -> Response:
        return Response(self._encode(request, Status.OK, *values))

    def _refuse(self, request: Request, status: Status, reason: str) -> Response:
        return Response(self._encode(request, status, _shorten(reason)))

    def _closing(self, request: Request, status: Status, reason: str) -> Response:
        """Invariant 2: a closing reply to a GOODBYE has the layout of a GOODBYE."""
        if reply_layout(request.opcode, status) is REASON:
            return Response(self._encode(request, status, _shorten(reason)), close=True)
        return Response(self._encode(request, status, self._connection.last_executed, _shorten(reason)), close=True)


def _fields(request: Request) -> tuple[Any, ...]:
    """A control request's payload, by the grammar. Raises `BadPayload`."""
    layout = REQUESTS[request.opcode]
    assert isinstance(layout, Layout)
    return layout.decode(request.payload)


def _shorten(text: str) -> str:
    """A text that fits and is valid UTF-8, whatever it was made of."""
    return text.encode(errors="replace")[:REASON_BYTES_MAX].decode(errors="ignore")
