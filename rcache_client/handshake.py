"""HELLO: who we are, which cluster it is, and that both sides know the secret.

What it is: what happens on a connection before its first request of a user.
Which thread runs it: the one that makes the connection; a `Greeter` is shared by all of them.
What it owns: the cluster id learnt from the first server, which every later one must have.
What it must not know: addresses, pools, retries.
"""

from __future__ import annotations

import os
import secrets
from threading import Lock
from typing import Any, NamedTuple

from rcache_client.answers import reason_of, request_layout
from rcache_client.connection import Connection, Setback, Trouble
from rcache_client.errors import AuthenticationFailed, NotExecuted, ProtocolError, WrongCluster, error_of
from rcache_client.wire.opcodes import (
    ANY_CLUSTER,
    NODE_NAME_BYTES_MAX,
    NONCE_BYTES,
    PROTOCOL_VERSION,
    VALUE_BYTES_CEILING,
    Opcode,
    Role,
    Status,
    opcode_name,
)
from rcache_client.wire.proof import SECRET_BYTES_MIN, client_proof, proofs_match, server_proof

REPLY_BYTES_CEILING = VALUE_BYTES_CEILING + 1024 * 1024
"""What a server may announce as its longest frame and be believed: the largest value, with room for its key and fields."""

_HELLO = request_layout(Opcode.HELLO)
_AUTH = request_layout(Opcode.AUTH)


class Welcome(NamedTuple):
    """What a server says of itself, in the order of the wire."""

    protocol_version: int
    cluster_id: bytes
    incarnation: int
    buckets: int
    frame_bytes_max: int
    value_bytes_max: int
    idle_ms: int
    node_name: str
    server_version: str


class Greeter:
    """Greets servers on behalf of one client. Thread-safe."""

    def __init__(self, name: str | None, role: Role, secret: bytes | None, cluster_id: bytes = ANY_CLUSTER) -> None:
        """`cluster_id`: the only one that is taken, if it is known. Raises `TypeError` or `ValueError` naming the argument."""
        _check_name(name)
        _check_secret(secret)
        self._name = name
        self._role = Role(role)
        self._secret = secret
        self._cluster_id = cluster_id
        self._lock = Lock()

    @property
    def cluster_id(self) -> bytes:
        """The cluster every server must be of; all zeros before the first was greeted."""
        return self._cluster_id

    def forget(self) -> None:
        """Take a fresh lock, as a child process must: the parent's may have been held."""
        self._lock = Lock()

    def greet(self, connection: Connection, deadline: float, timeout_s: float) -> Welcome:
        """Say HELLO, prove and demand proof where there is a secret, and set the connection's limits.

        Raises `Setback` if the server cannot serve now, `Refused` or `ProtocolError` if it will not. Blocks to the deadline.
        """
        name = self._name or f"python-{os.getpid()}"  # asked each time: a forked child has its own
        nonce = secrets.token_bytes(NONCE_BYTES)
        hello = _HELLO.encode(PROTOCOL_VERSION, PROTOCOL_VERSION, self._role, self._cluster_id, nonce, name)
        status, values = _ask(connection, Opcode.HELLO, hello, deadline, timeout_s)
        if status == Status.CHALLENGE:
            values = self._authenticate(connection, hello, values[0], deadline, timeout_s)
        elif self._secret is not None:
            raise AuthenticationFailed(
                "the server asked for no proof, so it has shown none either; it has no secret, or is not ours",
                connection.server,
            )
        welcome = Welcome(*values)
        self._check_welcome(welcome, connection.server)
        connection.frame_bytes_max = min(welcome.frame_bytes_max, REPLY_BYTES_CEILING)
        return welcome

    def _authenticate(self, connection: Connection, hello: bytes, nonce: bytes, deadline: float, timeout_s: float) -> Any:
        """Answer the challenge; return the WELCOME fields of a server that has shown its own proof."""
        if self._secret is None:
            raise AuthenticationFailed("the server asks for a secret; make the client with secret=", connection.server)
        proof = _AUTH.encode(client_proof(self._secret, hello, nonce))
        _, (shown, *values) = _ask(connection, Opcode.AUTH, proof, deadline, timeout_s)
        if not proofs_match(shown, server_proof(self._secret, hello, nonce)):
            raise AuthenticationFailed("the server does not know the secret", connection.server)
        return values

    def _check_welcome(self, welcome: Welcome, server: str) -> None:
        if welcome.protocol_version != PROTOCOL_VERSION:
            raise ProtocolError(f"the server chose version {welcome.protocol_version}, which was not offered", server)
        with self._lock:
            if self._cluster_id == ANY_CLUSTER:
                self._cluster_id = welcome.cluster_id
            expected = self._cluster_id
        if welcome.cluster_id != expected:
            raise WrongCluster(f"it is of cluster {welcome.cluster_id.hex()}, not {expected.hex()}", server)


def _ask(connection: Connection, opcode: Opcode, payload: bytes, deadline: float, timeout_s: float) -> tuple[int, Any]:
    """One exchange of the handshake; only OK and CHALLENGE are returned."""
    try:
        status, values = connection.exchange(opcode, payload, deadline, timeout_s)
    except Setback as setback:
        if setback.trouble is not Trouble.GARBLED:
            raise
        raise ProtocolError(setback.reason, connection.server, opcode.name) from setback
    if status in (Status.OK, Status.CHALLENGE):
        return status, values
    error = error_of(status, reason_of(values), connection.server, opcode_name(opcode))
    if isinstance(error, NotExecuted):
        raise Setback(Trouble.CLOSED, error.what, status=status) from error
    raise error


def _check_name(name: str | None) -> None:
    if name is None:
        return
    if not isinstance(name, str):
        raise TypeError(f"name must be a str, not {name!r}")
    if not 1 <= len(name.encode()) <= NODE_NAME_BYTES_MAX:
        raise ValueError(f"name must have 1 to {NODE_NAME_BYTES_MAX} bytes in UTF-8, not {name!r}")


def _check_secret(secret: bytes | None) -> None:
    if secret is None:
        return
    if not isinstance(secret, bytes):
        raise TypeError(f"secret must be bytes, not {type(secret).__name__}")
    if len(secret) < SECRET_BYTES_MIN:
        raise ValueError(f"secret must have at least {SECRET_BYTES_MIN} bytes, not {len(secret)}")
