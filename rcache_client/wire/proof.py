"""The challenge and response of HELLO: both sides show that they know the secret, and neither sends it.

What it is: HMAC-SHA256 (RFC 2104) over both nonces and all that the HELLO claimed, with a label for each side, so that a
proof cannot be played back on another connection, in another role, or by the other side.
Which thread runs it: any. What it owns: nothing. What it must not know: sockets, files.
"""

from __future__ import annotations

import hmac
from hashlib import sha256

SECRET_BYTES_MIN = 16
"""128 bits, the least that cannot be guessed off line from a recorded handshake."""


def client_proof(secret: bytes, hello_payload: bytes, server_nonce: bytes) -> bytes:
    """What the one who said HELLO answers to a challenge: 32 bytes. `hello_payload` holds its own nonce, role and name."""
    return _proof(b"rcache-1 client", secret, hello_payload, server_nonce)


def server_proof(secret: bytes, hello_payload: bytes, server_nonce: bytes) -> bytes:
    """What the server shows in turn: 32 bytes."""
    return _proof(b"rcache-1 server", secret, hello_payload, server_nonce)


def proofs_match(one: bytes, other: bytes) -> bool:
    """Compare in a time that does not tell where they differ."""
    return hmac.compare_digest(one, other)


def _proof(label: bytes, secret: bytes, hello_payload: bytes, server_nonce: bytes) -> bytes:
    return hmac.new(secret, label + b"\0" + server_nonce + hello_payload, sha256).digest()
