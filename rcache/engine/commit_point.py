"""The commit points of both bodies of the engine: the disk, and links, with what keeps a link's number from being another's.

Which thread runs it: any. What it owns: its number, until it is closed. What it must not know: how a body counts.

Invariant: once `close` or `abandon` has begun the number is told nothing by this point any more, and no bucket comes to wait
for it: all of that happens under one lock, which the points of an engine share.
"""

from __future__ import annotations

import functools
import operator
import threading
from collections.abc import Callable, Collection
from typing import Protocol

from rcache.engine.change_stream import DISK, ChangeStream, CommitPoint


class DiskPoint:
    """The commit point that is the append log. See `change_stream.CommitPoint`."""

    number = DISK

    def __init__(self, stream: ChangeStream) -> None:
        self._stream = stream

    @property
    def position(self) -> int:
        return self._stream.durable

    def advance(self, position: int, moment: int = 0) -> None:  # noqa: ARG002  nobody asks the disk
        self._stream.set_durable(position)

    @property
    def debt(self) -> int:
        return 0

    def close(self) -> None:
        raise ValueError("the disk is a commit point for as long as there is a stream")

    def lease(self, until_ns: int) -> None:  # noqa: ARG002  nobody may
        raise ValueError("the disk is this node's own: nobody leases it")

    def abandon(self) -> None:
        raise ValueError("the disk is a commit point for as long as there is a stream")


class Counting(Protocol):
    """What a body knows of points, by their numbers."""

    def point(self, number: int) -> int: ...

    def advance(self, number: int, position: int, moment: int) -> None: ...

    def lease(self, number: int, until_ns: int) -> None: ...

    def debt(self, number: int) -> int: ...

    def close_point(self, number: int) -> None:
        """No bucket waits for it any more, nor does anybody else."""
        ...

    def abandon_point(self, number: int) -> None:
        """No wait for it is met any more, and no bucket comes to wait for it."""
        ...


class LinkPoint:
    """See `change_stream.CommitPoint`."""

    def __init__(self, counting: Counting, name: str, number: int, lock: threading.Lock) -> None:
        self.name = name
        self.number = number
        self._counting = counting
        self._lock = lock
        self.is_closed = False

    @property
    def position(self) -> int:
        return self._counting.point(self.number)

    def advance(self, position: int, moment: int = 0) -> None:
        with self._lock:
            if not self.is_closed:
                self._counting.advance(self.number, position, moment)

    @property
    def debt(self) -> int:
        with self._lock:
            return 0 if self.is_closed else self._counting.debt(self.number)

    def close(self) -> None:
        with self._lock:
            if not self.is_closed:
                self.is_closed = True
                self._counting.close_point(self.number)

    def lease(self, until_ns: int) -> None:
        with self._lock:
            if not self.is_closed:
                self._counting.lease(self.number, until_ns)

    def abandon(self) -> None:
        with self._lock:
            if not self.is_closed:
                self.is_closed = True
                self._counting.abandon_point(self.number)


class LinkPoints:
    """The points that an engine has opened. `open_number` gives the number of a new one, that is at a position and leased until
    some time; `set_points` has a bucket wait for those of some bits and returns the stream's head."""

    def __init__(
        self, counting: Counting, open_number: Callable[[int, int], int], set_points: Callable[[int, int], int]
    ) -> None:
        self._counting = counting
        self._open_number = open_number
        self._set_points = set_points
        self._lock = threading.Lock()

    def open(self, name: str, position: int, until_ns: int) -> LinkPoint:
        with self._lock:
            return LinkPoint(self._counting, name, self._open_number(position, until_ns), self._lock)

    def set(self, bucket: int, points: Collection[CommitPoint]) -> int:
        """Raises ValueError where one of them is closed."""
        with self._lock:
            closed = [point for point in points if isinstance(point, LinkPoint) and point.is_closed]
            if closed:
                raise ValueError(f"the commit point {closed[0].name} is closed; no bucket can wait for it")
            return self._set_points(bucket, functools.reduce(operator.or_, (1 << point.number for point in points), 0))
