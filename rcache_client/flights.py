"""Flights: of all threads of this process that need the same value, one goes for it.

What it is: the register of who goes for which key, and the wait for what it comes back with.
Which thread runs it: any. The first becomes the leader of a flight; the others follow it, that is wait for its outcome.
What it owns: the flights under way. The lock is held for looking and marking only.
What it must not know: the cluster, and what a value is.

A caller must not be given what was read or computed before its call, should the key have been deleted or set since (by that
caller itself, perhaps). So a flight says as of when its outcome is: when the function was called, or the read was sent.

1. A flight serves a call that began before that.
2. It serves also a call that began later, if the item which that call then read is the lease that this flight computes under.
3. Who finds a flight that does not serve it leads one of its own, which takes that one's place.
"""

from __future__ import annotations

import math
from threading import Event, Lock, get_ident
from time import monotonic

from rcache_client.budget import seconds_left
from rcache_client.envelope import Envelope

RESTS_MAX = 1024
"""So many keys are remembered as not to be refreshed for a moment; forgetting them costs a request each."""


class Flight:
    """One thread's way to a value. `token`: of the lease that it computes under."""

    __slots__ = ("as_of", "leader", "outcome", "over", "token")

    def __init__(self) -> None:
        self.leader = get_ident()
        self.as_of = math.inf  # not known yet, and later than any call that looks
        self.token = b""
        self.outcome: Envelope | None = None
        self.over = Event()

    def serves(self, began: float, token: bytes) -> bool:
        """Whether its outcome is for a call that began then and read that lease (b"": none)."""
        return self.as_of >= began or (token != b"" and token == self.token)

    def sets_out(self, token: bytes = b"") -> None:
        """What is read or computed from now on is the outcome."""
        self.token = token
        self.as_of = monotonic()


class Flights:
    """All flights of a client. Thread-safe."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Start anew in a forked child, where no leader lives on but the one who forked."""
        self._lock = Lock()
        self._flights: dict[bytes, Flight] = {}
        self._rests: dict[bytes, float] = {}

    def join(self, name: bytes, began: float, token: bytes) -> tuple[Flight, bool]:
        """The flight for that key that serves such a call, and whether the caller leads it, and must end it.

        Raises `RuntimeError` where the caller would wait for itself.
        """
        with self._lock:
            flight = self._flights.get(name)
            if flight is not None and flight.leader == get_ident():
                raise RuntimeError(f"the function that computes {name!r} asks for that same key")
            if flight is not None and flight.serves(began, token):
                return flight, False
            return self._add(name), True

    def wait(self, flight: Flight, began: float, token: bytes, deadline: float) -> Envelope | None:
        """What it came back with; None if with nothing that serves such a call, or not by the deadline."""
        flight.over.wait(seconds_left(deadline))
        return flight.outcome if flight.over.is_set() and flight.serves(began, token) else None

    def lead(self, name: bytes) -> Flight | None:
        """A flight to be led, and ended, by the caller; None where there is one already."""
        with self._lock:
            return None if name in self._flights else self._add(name)

    def _add(self, name: bytes) -> Flight:
        flight = self._flights[name] = Flight()
        return flight

    def end(self, name: bytes, flight: Flight, outcome: Envelope | None) -> None:
        """It came back; without an outcome one of its followers is the next to go."""
        with self._lock:
            if self._flights.get(name) is flight:
                del self._flights[name]
        flight.outcome = outcome
        flight.over.set()

    def rest(self, name: bytes, seconds: float) -> None:
        """Think of no refresh of that key for so long."""
        with self._lock:
            if len(self._rests) >= RESTS_MAX:
                self._rests.clear()
            self._rests[name] = monotonic() + seconds

    def is_resting(self, name: bytes) -> bool:
        """Whether that key is to be left alone still."""
        return self._rests.get(name, 0.0) > monotonic()
