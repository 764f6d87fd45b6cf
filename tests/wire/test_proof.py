"""The proofs of HELLO: what they depend on, and a vector computed by hand from the definition in the document."""

from __future__ import annotations

import hmac
from hashlib import sha256

import pytest

from rcache_client.wire.opcodes import PROOF_BYTES
from rcache_client.wire.proof import client_proof, proofs_match, server_proof

SECRET = b"a secret of enough bytes"
HELLO = bytes(range(40))
NONCE = bytes(range(16))


def test_the_definition() -> None:
    expected = hmac.new(SECRET, b"rcache-1 client\0" + NONCE + HELLO, sha256).digest()
    assert client_proof(SECRET, HELLO, NONCE) == expected
    expected = hmac.new(SECRET, b"rcache-1 server\0" + NONCE + HELLO, sha256).digest()
    assert server_proof(SECRET, HELLO, NONCE) == expected
    assert len(expected) == PROOF_BYTES


def test_the_other_side_cannot_play_a_proof_back() -> None:
    assert not proofs_match(client_proof(SECRET, HELLO, NONCE), server_proof(SECRET, HELLO, NONCE))


@pytest.mark.parametrize(
    ("secret", "hello", "nonce"),
    [(SECRET + b"\n", HELLO, NONCE), (SECRET, HELLO[:-1], NONCE), (SECRET, HELLO, NONCE[::-1])],
    ids=["secret", "hello", "nonce"],
)
def test_a_proof_depends_on_all_it_is_given(secret: bytes, hello: bytes, nonce: bytes) -> None:
    assert not proofs_match(client_proof(secret, hello, nonce), client_proof(SECRET, HELLO, NONCE))
    assert not proofs_match(server_proof(secret, hello, nonce), server_proof(SECRET, HELLO, NONCE))
    assert proofs_match(client_proof(secret, hello, nonce), client_proof(secret, hello, nonce))
