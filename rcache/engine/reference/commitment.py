"""Commitment: the points where changes must be before what they did is revealed, and who waits for that.

What it is: a commit point is the append log on disk, or a backup; each has the stream up to some position. A bucket waits for a
set of points (bits), and an answer leaves once all of them have come to its position and their leases hold.
Which thread runs it: whoever an acknowledgement comes in at (`advance`); workers in `wait`.
What it owns: what is known of each point. Its lock is the stream's.
What it must not know: which bucket waits for what, what a backup is, what a record says.

Invariants:
1. A point's position never decreases while it is open; one that is not open holds nobody up.
2. After the stream's `fail`, and after its `end_waits`, no wait lasts.
3. No wait for a point that was abandoned is met, whatever it had come to: its lease has run out for good. (A GET that this
   node worked at when its peer took the bucket over must not leave afterwards; nothing of it was still to come.)
4. A wait with a moment is met only once the peer of each of its points that is a link's has answered a frame that was begun
   after that moment, as one that goes by no newer view than the frame. Why that makes a read right whatever the clocks do is
   said in `native/commitment.pxd`.
"""

from __future__ import annotations

import threading
import time
from typing import Protocol

from rcache.engine.change_stream import DISK, HELD_FOR_EVER, MOMENT_WANTED, POINTS_MAX, StreamEnd, Wait
from rcache.engine.reference.credit import Credits, numbers_of

EVERYTHING = 1 << 64
"""The position of a point that is not open: beyond all that can be waited for (invariant 1)."""


class Readers(Protocol):
    """The stream's readers, as far as who waits for commitment needs them. The caller holds the stream's lock."""

    def hurry_locked(self) -> None:
        """Somebody waits for what is there: nobody is to linger for more."""
        ...

    def ask_links_locked(self) -> None:
        """A moment has begun: whoever reads for a link is to come back and see to it."""
        ...


class Commitment:
    """The points of one stream, by their numbers."""

    def __init__(self, lock: threading.Lock, readers: Readers, accounts: Credits) -> None:
        self.disk_waiters = 0
        self._lock = lock
        self._committed = threading.Condition(lock)
        self._readers = readers
        self._accounts = accounts
        self._reached = [0] + [EVERYTHING] * (POINTS_MAX - 1)  # by the points' numbers
        self._moment = MOMENT_WANTED  # at which answers to later frames came to be wanted, counted
        self._wanted = [0] * POINTS_MAX  # the newest moment that somebody wants answered at each point
        self._confirmed = [0] * POINTS_MAX  # and the newest that its peer confirmed
        self._lease_ends = [HELD_FOR_EVER] * POINTS_MAX  # ns, by CLOCK_BOOTTIME
        self._leased = 0  # the points whose lease has an end, a bit each
        self._abandoned = 0
        self._next_point = DISK + 1
        self._waiters = 0
        self._ended: StreamEnd | None = None

    # --- points

    def open(self, position: int, until_ns: int) -> int:
        """A new point's number. Raises ValueError if there are too many. Numbers are given in turn, so that one that was
        closed or abandoned rests before it is another's: whoever still waits for its former owner then finds it so."""
        with self._lock:
            for step in range(POINTS_MAX):
                number = (self._next_point + step) % POINTS_MAX
                if self.is_closed(number):
                    self._reached[number] = position
                    self._wanted[number] = self._confirmed[number] = 0
                    self._accounts.begin(number)
                    self._set_lease(number, until_ns)
                    self._abandoned &= ~(1 << number)
                    self._next_point = number + 1
                    return number
        raise ValueError(f"the change stream has {POINTS_MAX} commit points already")

    def is_closed(self, number: int) -> bool:
        return self._reached[number] == EVERYTHING or self._abandoned >> number & 1 == 1

    def position(self, number: int) -> int:
        """What a point has come to."""
        return self._reached[number]

    def advance(self, number: int, position: int, moment: int = 0) -> None:
        with self._lock:
            self._reached[number] = max(self._reached[number], position)
            self._confirmed[number] = max(self._confirmed[number], moment)
            if self._waiters:
                self._committed.notify_all()

    def lease(self, number: int, until_ns: int) -> None:
        """A point may be counted on until then."""
        with self._lock:
            self._set_lease(number, until_ns)
            self._committed.notify_all()

    def _set_lease(self, number: int, until_ns: int) -> None:
        self._lease_ends[number] = until_ns
        if until_ns == HELD_FOR_EVER:
            self._leased &= ~(1 << number)
        else:
            self._leased |= 1 << number

    def close(self, number: int) -> None:
        self.lease(number, HELD_FOR_EVER)
        self.advance(number, EVERYTHING)

    def abandon(self, number: int) -> None:
        """Invariant 3. Wakes who waits for it."""
        with self._lock:
            self._set_lease(number, 0)
            self._abandoned |= 1 << number
            self._committed.notify_all()

    # --- moments

    @property
    def moment(self) -> int:
        """The newest that has begun."""
        return self._moment

    def wanted(self, number: int) -> int:
        """The newest moment that somebody wants answered at this point."""
        return self._wanted[number]

    def begin_moment(self, points: int) -> int:
        """See `ChangeStream`."""
        links = numbers_of(points)
        if not links:
            return 0
        with self._lock:
            self._moment += 1
            for number in links:
                self._wanted[number] = self._moment
            self._readers.ask_links_locked()
            return self._moment

    # --- waiting

    def committed(self, points: int) -> int:
        """The position that all of these points have come to."""
        reached = EVERYTHING
        while points:
            lowest = points & -points
            reached = min(reached, self._reached[lowest.bit_length() - 1])
            points ^= lowest
        return reached

    def is_lost(self, wait: Wait) -> bool:
        """Whether a wait will never be met: for a point that was abandoned."""
        return wait.points & self._abandoned != 0

    def is_met(self, wait: Wait) -> bool:
        """Whether an answer may leave now. The clock is read last: at that moment all of it holds."""
        if wait.moment and not self._is_confirmed(wait):
            return False
        return self.committed(wait.points) >= wait.position and self._hold(wait.points & self._leased)

    def _is_confirmed(self, wait: Wait) -> bool:
        """Invariant 4; a point that is closed has no peer."""
        links = numbers_of(wait.points)
        return all(self._confirmed[number] >= wait.moment or self._reached[number] == EVERYTHING for number in links)

    def _hold(self, leased: int) -> bool:
        """Whether the leases of these points hold now."""
        if not leased:
            return True
        now_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        return all(now_ns < self._lease_ends[number] for number in range(POINTS_MAX) if leased >> number & 1)

    def wait(self, wait: Wait, deadline_ns: int) -> StreamEnd:
        """See `ChangeStream.wait_committed`. Blocks."""
        if self.is_met(wait):
            return StreamEnd.REACHED
        with self._lock:
            on_disk = wait.points >> DISK & 1
            self._waiters += 1
            self.disk_waiters += on_disk
            try:
                while not self.is_met(wait):
                    left_s = (deadline_ns - time.monotonic_ns()) / 1e9
                    if self._ended is not None:
                        return self._ended
                    if left_s <= 0 or self.is_lost(wait):
                        return StreamEnd.TIMED_OUT
                    self._readers.hurry_locked()
                    self._committed.wait(left_s)
                return StreamEnd.REACHED
            finally:
                self._waiters -= 1
                self.disk_waiters -= on_disk

    def end_locked(self, end: StreamEnd) -> None:
        """Invariant 2: what is waited for from now on, and was until now, ends like this; a failure is never taken back."""
        if self._ended is not StreamEnd.FAILED:
            self._ended = end
        self._committed.notify_all()
