"""Computing: one caller in the whole cluster computes a value that is missing; the others wait for it, or are served the old.

What it is: the course of one `get_or_compute`.
Which thread runs it: the caller's. It blocks to the call's budget at most, and for as long as the function takes.
What it owns: the flights, the leases and the counts of one client.
What it must not know: serializers (a call brings `compute`, which gives bytes), and what a request looks like.

A key has, in the cluster: nothing; a result (VALUE, NOTHING); or HELD, a lease, where one caller computes and the others read
again and again until it is no longer there.

Invariants:
1. Every result is stored by check-and-set on the version of what was there when its computation began: the lease, or the value
   that it takes the place of. So what was deleted, set or computed anew in between is never overwritten by something older.
2. A lease that is not turned into a result is given up, whatever happens, so that one of those who wait can try at once.
3. What is served beyond its ttl was read from the server just now, and the server drops it at the end of its time.
4. The reader's clock decides only whether it asks the server how old a value is. The server's answer decides.

A refresh (of a value that is there) is led under a lease under a key of its own, beside the value. It is begun only where it is
likely to end before the value does. If its function raises, the value is served on, and the lease is left to lapse: that is the
pause before the next try.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic

from rcache_client.budget import back_off_seconds, seconds_left
from rcache_client.compute_counts import Counts
from rcache_client.envelope import COMPUTED_FLAGS, Envelope, Kind, open_envelope, pack
from rcache_client.errors import (
    BudgetSpent,
    NoRoom,
    NotExecuted,
    OutcomeUnknown,
    PoolExhausted,
    RcacheError,
    StillComputing,
    TimedOut,
    WrongFormat,
)
from rcache_client.flights import Flight, Flights
from rcache_client.leases import Lease, Leases
from rcache_client.refreshing import early_ms, is_due, looks_due, refresh_name, rest_s
from rcache_client.stored import Item, Stored

POLL_FIRST_SECONDS = 0.005
POLL_MAX_SECONDS = 0.1
"""Between two looks at a key that another process computes. Thousands of waiting processes are a load of their own."""

LOOK_SHARE = 0.5
"""The part of the budget that the first look may take, so that time is left for following another thread. A later look that
was given less than the rest, and not answered, does not say that the cache is away."""

WAIT_SHARE = 0.9
"""The part of the budget that may go into waiting; the rest is for taking the lease and storing the result."""

STORE_TRIES = 2
"""A second try by check-and-set cannot do harm, and tells whether the first was executed."""

TOO_LITTLE_TIME = (TimedOut, BudgetSpent, PoolExhausted)
"""What may mean no more than that a look had too little time."""

ANY_TIME = -math.inf
"""Without the cache nobody can delete anything either, and whatever is being computed here is better than a stampede."""

CACHE_AWAY = (NotExecuted, TimedOut, OutcomeUnknown, NoRoom)
"""What the application goes on without the cache for. Other errors are mistakes in it or in its configuration."""


@dataclass(slots=True)
class Call:
    """One call: `compute` gives (is it a value and not None, flags, bytes). `ttl_ms` 0: for ever. `deadline` moves on by what
    the function takes."""

    name: bytes
    compute: Callable[[], tuple[bool, int, bytes]]
    ttl_ms: int
    stale_ms: int
    lease_ms: int
    beta: float
    fallback: bool
    deadline: float
    began: float = field(default_factory=monotonic)
    wait_until: float = 0.0
    look_until: float = 0.0
    has_waited: bool = False
    took_us: int = 0

    def __post_init__(self) -> None:
        budget_s = self.deadline - self.began
        self.wait_until = self.began + budget_s * WAIT_SHARE
        self.look_until = self.began + budget_s * LOOK_SHARE


class Computing:
    """Answers `get_or_compute` for one client. Thread-safe."""

    def __init__(self, stored: Stored) -> None:
        self._stored = stored
        self._leases = Leases(stored)
        self._flights = Flights()
        self.counts = Counts()

    def close(self, deadline: float) -> None:
        """End the thread that renews leases; wait for it to the deadline."""
        self._leases.close(deadline)

    def forget(self) -> None:
        """Start anew in a forked child."""
        self._leases.forget()
        self._flights.forget()
        self.counts.forget()

    def get(self, call: Call) -> Envelope:
        """The result that is there, or a computed one. Raises what the function does, `StillComputing`, and `RcacheError`."""
        until = call.look_until
        while True:
            found, trouble = self._look(call, until)
            envelope = None if found is None else open_item(call.name, found)
            if found is not None and envelope is not None and envelope.is_result:
                return self._served(call, envelope, found.version)
            token = b"" if envelope is None else envelope.token
            since = call.began if trouble is None else ANY_TIME
            flight, leads = self._flights.join(call.name, since, token)
            if leads:
                return self._lead(call, flight, found, trouble)
            outcome = self._flights.wait(flight, since, token, call.wait_until)
            if outcome is not None:
                self.counts.add("waited")
                return outcome
            if monotonic() >= call.wait_until:
                return self._waited_in_vain(call, trouble)
            until = call.deadline
            call.has_waited = trouble is None

    def renew(self, call: Call) -> Envelope:
        """A result computed now, whatever is there, in whose place it is stored. Raises what the function does, and any
        `RcacheError`: who asks for this relies on its being stored."""
        lease, version = self._supersede(call)
        outcome = self._computed_under(call, lease)
        trouble = self._store(call, outcome, self._leases.let_go(lease, call.deadline) if lease else version, lease)
        if trouble is not None:
            raise trouble
        return outcome

    def _look(self, call: Call, until: float) -> tuple[Item | None, RcacheError | None]:
        """What is there, or why that cannot be known. Raises what is a mistake, and `StillComputing`."""
        try:
            return self._read(call, until), None
        except StillComputing:
            raise
        except CACHE_AWAY as error:
            return None, error

    def _read(self, call: Call, until: float) -> Item | None:
        """What is there. Raises `StillComputing` where a caller who waits had too little time left to be told."""
        sent_at = monotonic()
        try:
            return self._stored.read(call.name, until)
        except TOO_LITTLE_TIME as error:
            if call.has_waited and sent_at > call.look_until:
                raise still_computing(call.name) from error
            raise

    def _waited_in_vain(self, call: Call, trouble: RcacheError | None) -> Envelope:
        if trouble is not None:
            return self._alone(call, trouble)
        raise still_computing(call.name)

    def _lead(self, call: Call, flight: Flight, found: Item | None, trouble: RcacheError | None) -> Envelope:
        outcome = None
        try:
            outcome = self._gone_for(call, flight, found, trouble)
        finally:
            self._flights.end(call.name, flight, outcome)
        return outcome

    def _gone_for(self, call: Call, flight: Flight, found: Item | None, trouble: RcacheError | None) -> Envelope:
        """The result, by waiting for who computes it or by computing it."""
        lease = None
        if trouble is None:
            try:
                lease = self._lease_or_result(call, flight, found)
            except StillComputing:
                raise
            except CACHE_AWAY as error:
                trouble = error
        if isinstance(lease, Envelope):
            self.counts.add("waited")
            return lease
        flight.sets_out(lease.token if lease is not None else b"")
        if lease is None:
            assert trouble is not None
            return self._alone(call, trouble)
        outcome = self._computed_under(call, lease)
        self._store(call, outcome, self._leases.let_go(lease, call.deadline), lease)
        return outcome

    def _lease_or_result(self, call: Call, flight: Flight, found: Item | None) -> Lease | Envelope:
        """The right to compute, or the result of who had it. Blocks to `wait_until`; raises `StillComputing`, `RcacheError`."""
        looks, sent_at = 0, call.began
        while True:
            envelope = None if found is None else open_item(call.name, found)
            if envelope is not None and envelope.is_result:
                flight.as_of = sent_at
                return envelope
            if envelope is None or envelope.kind is Kind.FREE:
                lease = self._leases.take(call.name, _version(found), call.lease_ms, call.deadline)
                if lease is not None:
                    return lease
            self._pause(call, looks)
            looks += 1
            sent_at = monotonic()
            found = self._read(call, call.deadline)

    def _pause(self, call: Call, looks: int) -> None:
        left_s = seconds_left(call.wait_until)
        if not left_s:
            raise still_computing(call.name)
        call.has_waited = True
        pause_s = back_off_seconds(POLL_FIRST_SECONDS, POLL_MAX_SECONDS, looks)
        time.sleep(min(random.uniform(pause_s / 2, pause_s), left_s))  # noqa: S311 - spreads clients, guards nothing

    def _served(self, call: Call, envelope: Envelope, version: int) -> Envelope:
        """The result that was read; or a new one, where it is time for that and for this caller to see to it."""
        early = early_ms(envelope, call.beta)
        if looks_due(envelope, early) and not self._flights.is_resting(call.name):
            flight = self._flights.lead(call.name)
            outcome = None
            if flight is not None:
                try:
                    outcome = self._refreshed(call, flight, envelope, version, early)
                finally:
                    self._flights.end(call.name, flight, outcome)
            if outcome is not None:
                return outcome
        self.counts.add("stale" if looks_due(envelope, 0.0) else "hits")
        return envelope

    def _refreshed(self, call: Call, flight: Flight, envelope: Envelope, version: int, early: float) -> Envelope | None:
        """A new result; None where the one that was found is to be served on."""
        asked_at = monotonic()
        left_ms, lease = None, None
        try:
            left_ms = self._stored.left_ms(call.name, version, call.deadline)
            if left_ms and is_due(envelope, left_ms, early):  # invariant 4
                lease = self._leases.take(refresh_name(call.name), 0, call.lease_ms, call.deadline)
        except CACHE_AWAY as error:
            self.counts.trouble(error)
            left_ms = None
        if lease is None or not left_ms:
            self._flights.rest(call.name, rest_s(envelope, left_ms, early))
            return None
        outcome = self._computed_anew(call, flight, lease, asked_at + left_ms / 1000)
        if outcome is not None:
            self.counts.add("refreshed")
            self._store(call, outcome, version, None)
            self._leases.give_up(lease, call.deadline)
        return outcome

    def _computed_anew(self, call: Call, flight: Flight, lease: Lease, gone_at: float) -> Envelope | None:
        """Compute for a refresh; None if the function raised. `gone_at`: until then the server has the old result."""
        flight.sets_out()
        try:
            return self._computed(call)
        except Exception as error:
            self._leases.let_go(lease, call.deadline)
            self.counts.trouble(error)
            if monotonic() >= gone_at:  # invariant 3
                raise
            self._flights.rest(call.name, call.lease_ms / 1000)
            return None
        except BaseException:
            self._leases.give_up(lease, call.deadline)
            raise

    def _supersede(self, call: Call) -> tuple[Lease | None, int]:
        """Make sure that nothing whose computation has begun by now can be stored: give what is there a new version.

        Returns a lease (taken from whoever computes), or None and the version of the result that is there.
        """
        looks = 0
        while True:
            found = self._stored.read(call.name, call.deadline)
            if found is None or not open_item(call.name, found).is_result:
                lease = self._leases.take(call.name, _version(found), call.lease_ms, call.deadline)
                if lease is not None:
                    return lease, lease.version
            else:
                left_ms = self._stored.left_ms(call.name, found.version, call.deadline)
                if left_ms is not None:
                    item = found.flags, found.data
                    version = self._stored.change(call.name, found.version, item, left_ms, call.deadline)
                    if version:
                        return None, version
            self._pause(call, looks)
            looks += 1

    def _computed_under(self, call: Call, lease: Lease | None) -> Envelope:
        """Compute; whatever is raised, the lease is given up (invariant 2)."""
        try:
            return self._computed(call)
        except BaseException:
            if lease is not None:
                self._leases.give_up(lease, call.deadline)
            raise

    def _alone(self, call: Call, trouble: RcacheError) -> Envelope:
        """Compute without the cache. Raises `trouble` where that is not wanted."""
        if not call.fallback:
            raise trouble
        self.counts.trouble(trouble)
        self.counts.add("without_cache")
        return self._computed(call)

    def _computed(self, call: Call) -> Envelope:
        """Call the function; the call's deadline moves on by what it takes."""
        began = monotonic()
        try:
            is_value, flags, data = call.compute()
        except BaseException:
            self.counts.add("failed")
            raise
        finally:
            took_s = monotonic() - began
            call.deadline += took_s
        self.counts.add("computed")
        call.took_us = math.ceil(took_s * 1e6)
        return Envelope(Kind.VALUE if is_value else Kind.NOTHING, flags, data)

    def _store(self, call: Call, outcome: Envelope, version: int, lease: Lease | None) -> RcacheError | None:
        """Store the outcome in the place of that version (invariant 1); what went wrong, if anything did.

        The caller has it, whatever becomes of that. A `lease` that this does not end is given up (invariant 2).
        """
        stored_at_ms = int(time.time() * 1000)
        about = outcome._replace(stored_at_ms=stored_at_ms, ttl_ms=call.ttl_ms, stale_ms=call.stale_ms, took_us=call.took_us)
        stored, trouble = self._put(call, version, pack(about)) if version else (0, None)
        if trouble is not None:
            self.counts.trouble(trouble)
            self.counts.add("not_stored")
            if lease is not None:
                self._leases.give_up(lease, call.deadline)
        elif not stored:
            self.counts.add("overtaken")
        return trouble

    def _put(self, call: Call, version: int, data: bytes) -> tuple[int, RcacheError | None]:
        """Its version, or 0 if another one is there; and the error, if one was met that the version does not make good."""
        trouble: RcacheError | None = None
        for _ in range(STORE_TRIES):
            try:
                item, expiry_ms = (COMPUTED_FLAGS, data), call.ttl_ms + call.stale_ms
                stored = self._stored.change(call.name, version, item, expiry_ms, call.deadline)
            except OutcomeUnknown as error:
                trouble = error
            except RcacheError as error:
                return 0, error
            else:
                return stored, None if stored else trouble  # with none it was overtaken, or the first try was executed
        return 0, trouble


def open_item(name: bytes, item: Item) -> Envelope:
    """What the item of that key is to `get_or_compute`. Raises `WrongFormat`."""
    try:
        return open_envelope(item.data, item.flags)
    except WrongFormat as error:
        error.operation = f"the value of {name!r}"
        raise


def still_computing(name: bytes) -> StillComputing:
    """The error of who has waited in vain."""
    return StillComputing(f"another caller was still computing {name!r} when the time to wait for it ended")


def _version(item: Item | None) -> int:
    return 0 if item is None else item.version
