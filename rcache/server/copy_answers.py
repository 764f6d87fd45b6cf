"""What COPY is answered: a whole copy of a bucket, piece by piece, while it goes on.

What it is: one opcode's payloads, and the copy that its connection is being given.
Which thread runs it: the worker of the connection, which has no other to serve. Blocks until what was copied is committed.
What it owns: where the copy stands. What it must not know: sockets; what becomes of it.

A node that records the cluster's changes needs a whole copy of each bucket to begin from, and another one where it missed some.
What it is given is a base (`docs/records.md`): IMPORT_BEGIN, rows, IMPORT_END, a copy together with all changes after its
beginning, which its feed tells.

Invariants:
1. Nothing leaves that is not committed: so a base's end is on the chain of whoever will be primary of the bucket.
2. A copy is of one tenure: where the bucket was let go of, or is not this node's any more, it is begun anew elsewhere.
"""

from __future__ import annotations

import time
from typing import Any

from rcache.engine.change_stream import StreamEnd, Wait
from rcache.engine.contract import UNCOMMITTED, Engine
from rcache.peers.filling import Fill
from rcache.server.node_answers import Refusal
from rcache_client.wire.grammar import REQUESTS, Layout
from rcache_client.wire.opcodes import Opcode, Role, Status

BYTES_MAX = 1 << 20
"""The most that one answer is made of, however much is asked for; one item may be larger."""


class CopyAnswers:
    """See the module. `frame_bytes_max`: of this node."""

    def __init__(self, engine: Engine, frame_bytes_max: int) -> None:
        self._engine = engine
        self._bytes_max = min(BYTES_MAX, frame_bytes_max // 2)
        self._fill: Fill | None = None
        self._times_let_go = 0

    def answer(self, payload: bytes, role: Role, budget_s: float) -> tuple[Any, ...]:
        """The values of the answer. Blocks, up to the budget. Raises `Refusal`, BadPayload."""
        layout = REQUESTS[Opcode.COPY]
        assert isinstance(layout, Layout)
        bucket, begins, bytes_max = layout.decode(payload)
        if role is not Role.LOGGER:
            raise Refusal(Status.NOT_ALLOWED, "copies are for loggers; say HELLO as one")
        if bucket >= self._engine.config.buckets:
            raise Refusal(Status.BAD_ARGUMENT, f"bucket {bucket} of {self._engine.config.buckets}")
        if begins:
            self._times_let_go = self._engine.times_let_go(bucket)
            self._fill = Fill(bucket)
        elif self._fill is None or self._fill.bucket != bucket or self._fill.is_whole:
            raise Refusal(Status.BAD_ARGUMENT, f"no copy of bucket {bucket} has begun on this connection")
        try:
            return self._next(self._fill, min(bytes_max, self._bytes_max), time.monotonic_ns() + int(budget_s * 1e9))
        except Refusal:
            self._fill = None
            raise

    def _next(self, fill: Fill, bytes_max: int, deadline_ns: int) -> tuple[Any, ...]:
        self._points_of(fill.bucket)
        pieces: list[bytes] = []
        size = position = 0
        while not fill.is_whole and size < bytes_max:
            portion = fill.next_portion(self._engine)
            pieces.append(fill.body_of(portion))
            size += len(pieces[-1])
            position = portion.position
        wait = Wait(self._points_of(fill.bucket), position)  # as they are now: a backup may have come while rows were read
        end = self._engine.stream.wait_committed(wait, deadline_ns)  # invariant 1
        self._points_of(fill.bucket)
        if end is not StreamEnd.REACHED:
            raise Refusal(*UNCOMMITTED[end])
        return (int(fill.is_whole), b"".join(pieces))

    def _points_of(self, bucket: int) -> int:
        """Invariant 2."""
        points = self._engine.commit_points(bucket)
        if points is None or self._times_let_go % 2 or self._engine.times_let_go(bucket) != self._times_let_go:
            raise Refusal(Status.NOT_PRIMARY, f"bucket {bucket} is another node's, or about to be")
        return points
