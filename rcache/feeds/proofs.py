"""Proofs that all was told: up to when everything that was committed lies before a place in what is held.

What it is: the making of one, and those that were made, for feeds that are behind by some entries.
Which thread runs it: `make` the teller's, all else under the teller's lock. It may lock: one stripe at a time, for moments (by
the engine).
What it owns: the proofs. What it must not know: what was told.

Invariant: a proof is made of a position of the stream that was read after its moment, all of it told; and after that every
lease held, while this node was primary of all that it tells of, and had been since before that moment. So nobody else had
changed any of it by then. (Since before: what was given up, changed by another and given back while all this went on has an
OPEN that was not told yet, and neither was what the other changed.)
"""

from __future__ import annotations

import time
from collections import deque
from typing import NamedTuple

from rcache.engine.change_stream import StreamEnd, Wait
from rcache.engine.contract import Engine
from rcache.feeds.tenures import Tenures
from rcache.records.record import epoch_of

PROOFS = 64
"""So many are kept: who is behind by some entries counts on an older one."""

EVERY_S = 0.02
"""No more often is one made, however many ask: it looks at every bucket. A subscriber is told so much later, at most, how far
behind it is."""

HOLD_S = 0.05
"""How long the acknowledgements of all links may lack what is not for their peers, and leases their renewal."""


def boot_s() -> float:
    """The clock of proofs: seconds, those included in which this machine was suspended, as leases are counted."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Proof(NamedTuple):
    """All that was committed before `at` (`boot_s`) lies before the place `end`."""

    at: float
    end: int


class Proofs:
    """See the module."""

    def __init__(self, engine: Engine, tenures: Tenures) -> None:
        self._engine = engine
        self._tenures = tenures
        self._made: deque[Proof] = deque(maxlen=PROOFS)
        self._wanted_at = 0.0
        self._tried_at = 0.0
        self._seen = self._primary_since()  # as it was found last

    def __len__(self) -> int:
        return len(self._made)

    # --- under the teller's lock

    @property
    def newest_at(self) -> float:
        return self._made[-1].at if self._made else 0.0

    def want(self, at: float) -> None:
        """Somebody wants to know that all before this moment was told."""
        self._wanted_at = max(self._wanted_at, at)

    def before(self, place: int) -> float | None:
        """The newest moment before which all that was committed lies before this place, if there is one."""
        return next((proof.at for proof in reversed(self._made) if proof.end <= place), None)

    def add(self, at: float, end: int) -> None:
        self._made.append(Proof(at, end))

    def clear(self) -> None:
        """A bucket is told of from now on, from where it was another's: what was made says nothing of it."""
        self._made.clear()

    # --- the teller's thread

    def is_due(self, now: float) -> bool:
        """Whether one is wanted, and may be tried."""
        return self._wanted_at > self.newest_at and now >= self._tried_at + EVERY_S

    def holds(self, now: float, head: int) -> bool:
        """Whether it is so that nobody else has changed anything before `now`, where all up to `head`, which was read after
        that, was told. Not so the first time after buckets have come or gone. Blocks for moments."""
        self._tried_at = now
        stream, points = self._engine.stream, self._engine.all_commit_points()
        moment = stream.begin_moment(points) if self._engine.config.confirm_reads else 0  # then no lease is relied on alone
        end = stream.wait_committed(Wait(points, head, moment), time.monotonic_ns() + int(HOLD_S * 1e9))
        if end is not StreamEnd.REACHED:
            return False
        before, self._seen = self._seen, self._primary_since()
        return before is not None and before == self._seen

    def _primary_since(self) -> dict[int, int] | None:
        """The epoch in which each bucket that is told of was opened; None where one is not primary here. The same before and
        after, it was so all the time between: who comes back as primary opens it in another epoch."""
        present = self._tenures.present()
        if any(self._engine.commit_points(bucket) is None or not self._tenures.lasts(bucket) for bucket in present):
            return None
        return {bucket: epoch_of(self._engine.sequence(bucket)) for bucket in present}
