"""The ways a frame can arrive: every frame test that asks for `arrive` runs once for each of them.

What it is: a fixture. `arrive(reader, frame)` feeds the frame and returns what the reader handed out for it, or raises what
the reader raised, after checking that nothing came out early and that nothing of what follows was taken.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from rcache_client.wire.frames import ReplyReader, RequestReader

SECRET = b"<<a-neighbour's-secret>>"
"""Stands for bytes that are not the frame's: no result and no error may show any of it."""

FrameReader = RequestReader | ReplyReader
Arrive = Callable[[FrameReader, bytes], Any]


def whole(reader: FrameReader, frame: bytes) -> Any:
    """All at once."""
    reader.feed(frame)
    found = reader.next()
    assert reader.held == 0
    assert not reader.mid_frame
    return found


def byte_by_byte(reader: FrameReader, frame: bytes) -> Any:
    """One byte in each read, and a look after each."""
    found = None
    for i in range(len(frame)):
        assert found is None, f"handed out after {i} of {len(frame)} bytes"
        reader.feed(frame[i : i + 1])
        found = reader.next()
    assert reader.held == 0
    return found


def with_what_follows(reader: FrameReader, frame: bytes) -> Any:
    """In one read with the beginning of another frame, which must be left alone."""
    follows = frame[:1] + SECRET
    reader.feed(frame + follows)
    found = reader.next()
    assert SECRET not in found.payload
    assert reader.held == len(follows)
    assert reader.mid_frame
    return found


@pytest.fixture(params=[whole, byte_by_byte, with_what_follows], ids=lambda way: way.__name__)
def arrive(request: pytest.FixtureRequest) -> Arrive:
    """One of the ways."""
    way: Arrive = request.param
    return way


@pytest.fixture
def secret() -> bytes:
    """Bytes that are not the frame's."""
    return SECRET
