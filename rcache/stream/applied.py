"""The stream of what was applied here as a backup: records of other nodes' changes, on their way to this node's log.

What it is: a bounded queue of batches as they came in, with positions (bytes since it began) as the change stream has them. The
log writes both; links never read this one, so that applying a peer's records never waits for a peer (two nodes that back each
other up would wait for each other in a circle, each with a full ring). Who wants to see all that comes by taps it; that is so
where no log is kept, too, and then nothing is queued.
Which thread runs it: whoever applies (`append`), in the order in which it applied; the append log's own (`take`, `set_written`,
`set_durable`); `wait_*` any.
What it owns: the batches, until they are written. It may lock: its own lock, for moments, under nothing.
What it must not know: what a record says.

It guarantees: batches come out in the order in which they went in, and no more than `bytes_max` are held (one batch at least).
After `fail` nothing is taken in and no wait lasts. A tap is given each batch that was taken in, by the thread that applied it,
before `append` comes back.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

from rcache.engine.change_stream import Batch, StreamEnd

HURRY_BYTES = 256 << 10
"""From so much on the log is woken; before that it comes by itself, as it does for a few requests."""


class AppliedFailed(Exception):
    """The log that reads this stream failed."""


class AppliedStream:
    """See the module. `hurry` wakes the log's thread; `always`: it is called for every batch, because somebody waits for the
    disk; `is_kept`: there is a log that takes what comes in."""

    def __init__(
        self, bytes_max: int, hurry: Callable[[], None] = lambda: None, *, always: bool = False, is_kept: bool = True
    ) -> None:
        self.bytes_max = bytes_max
        self.is_kept = is_kept
        self._hurry = hurry
        self._always = always
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._held: deque[tuple[bytes, int]] = deque()
        self._head = 0
        self._taken = 0
        self._written = 0
        self._durable = 0
        self._failure = ""
        self._taps: tuple[Callable[[bytes], object], ...] = ()

    def tap(self, take: Callable[[bytes], object]) -> None:
        """From now on have each batch given to this as well, which must not block."""
        with self._lock:
            self._taps = (*self._taps, take)

    def untap(self, take: Callable[[bytes], object]) -> None:
        with self._lock:
            self._taps = tuple(tap for tap in self._taps if tap != take)

    @property
    def head(self) -> int:
        return self._head

    @property
    def failure(self) -> str:
        """Why the log that reads this failed; "" while it has not."""
        return self._failure

    @property
    def durable(self) -> int:
        """The position up to which it is on disk."""
        return self._durable

    @property
    def written(self) -> int:
        """The position up to which it is in a file, on disk or not."""
        return self._written

    def set_always(self, always: bool) -> None:
        """Whether somebody waits for the disk with every batch."""
        self._always = always

    def append(self, body: bytes, count: int, deadline_ns: int) -> int:
        """Take in `count` records. Returns the position behind them. Blocks for room, to the deadline (time.monotonic_ns).
        Raises `AppliedFailed`, TimeoutError."""
        with self._lock:
            while self._held and self._head - self._taken + len(body) > self.bytes_max and not self._failure:
                left_s = (deadline_ns - time.monotonic_ns()) / 1e9
                if left_s <= 0:
                    raise TimeoutError("the append log is behind and had no room for a peer's records in time")
                self._hurry()
                self._changed.wait(left_s)
            if self._failure:
                raise AppliedFailed(self._failure)
            before = self._head - self._taken
            self._head += len(body)
            position = self._head
            if self.is_kept:
                self._held.append((body, count))
            else:
                self._taken = position
        for take in self._taps:
            take(body)
        if self.is_kept and (self._always or before < HURRY_BYTES <= position - self._taken):
            self._hurry()
        return position

    def take(self, bytes_max: int) -> Batch:
        """What there is, up to about `bytes_max` (one batch at least); never blocks."""
        with self._lock:
            taken: list[bytes] = []
            count = size = 0
            while self._held and (not taken or size + len(self._held[0][0]) <= bytes_max):
                body, records = self._held.popleft()
                taken.append(body)
                count += records
                size += len(body)
            self._taken += size
            if size:
                self._changed.notify_all()
            return Batch(taken[0] if len(taken) == 1 else b"".join(taken), count, self._taken, lost=False)

    def set_written(self, position: int) -> None:
        """The log has written so far; it may not be on disk yet."""
        with self._lock:
            self._written = max(self._written, position)
            self._changed.notify_all()

    def set_durable(self, position: int) -> None:
        """The log is on disk so far."""
        with self._lock:
            self._durable = max(self._durable, position)
            self._written = max(self._written, position)
            self._changed.notify_all()

    def wait_written(self, position: int, deadline_ns: int) -> StreamEnd:
        """Block until the log has written up to `position`."""
        return self._wait(lambda: self._written >= position, deadline_ns)

    def wait_durable(self, position: int, deadline_ns: int) -> StreamEnd:
        """Block until the log is on disk up to `position`."""
        return self._wait(lambda: self._durable >= position, deadline_ns)

    def _wait(self, reached: Callable[[], bool], deadline_ns: int) -> StreamEnd:
        with self._lock:
            while not reached():
                left_s = (deadline_ns - time.monotonic_ns()) / 1e9
                if self._failure:
                    return StreamEnd.FAILED
                if left_s <= 0:
                    return StreamEnd.TIMED_OUT
                self._hurry()
                self._changed.wait(left_s)
            return StreamEnd.REACHED

    def fail(self, why: str) -> None:
        """The log cannot go on: every waiter and every later batch is told."""
        with self._lock:
            self._failure = self._failure or why
            self._changed.notify_all()
