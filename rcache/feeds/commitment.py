"""Whether what was read of the change stream is committed.

What it is: for buckets of which everything up to a position was read, those of which it is committed now, and in the tenure in
which it was placed.
Which thread runs it: the teller's. It may lock: one stripe at a time, then the stream, for moments (by the engine).
What it owns: nothing. What it must not know: what was read; who is told.

Invariant: a bucket counts as committed only where this node was its primary both before and after the moment at which the
points had come so far, with the same points, and its tenure lasts after all that. (A node that is deposed lets go of the
bucket's points first, and "waits for nothing" is met by everything; or a view closes a point while the bucket that waited for
it is taken from here.) Or where it was given up in order since: what was read of it by then all its backups have.
"""

from __future__ import annotations

import functools
import operator
import time
from collections.abc import Collection

from rcache.engine.change_stream import StreamEnd, Wait
from rcache.engine.contract import Engine
from rcache.feeds.tenures import Tenures


class Commitment:
    """See the module."""

    def __init__(self, engine: Engine, tenures: Tenures) -> None:
        self._engine = engine
        self._tenures = tenures

    def of(self, buckets: Collection[int], position: int, timeout_s: float = 0.0) -> set[int]:
        """Those of which everything before the position is committed. Blocks up to `timeout_s`, while it is not so of all that
        it can become so of: what is frozen is waited for by nobody."""
        points = {bucket: bits for bucket in buckets if (bits := self._points_of(bucket)) is not None}
        met = set(points.values())
        if points and not self._have(functools.reduce(operator.or_, met), position, timeout_s):
            met = {bits for bits in met if self._have(bits, position, 0.0)}
        committed = {bucket for bucket, bits in points.items() if bits in met and self._points_of(bucket) == bits}
        return committed | {bucket for bucket in buckets if bucket not in committed and self._tenures.is_given_up(bucket)}

    def _points_of(self, bucket: int) -> int | None:
        points = self._engine.commit_points(bucket)
        return points if self._tenures.lasts(bucket) else None

    def _have(self, points: int, position: int, timeout_s: float) -> bool:
        deadline_ns = time.monotonic_ns() + int(timeout_s * 1e9)
        return self._engine.stream.wait_committed(Wait(points, position), deadline_ns) is StreamEnd.REACHED
