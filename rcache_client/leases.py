"""Leases: the right to compute, held in the cluster by one caller at a time.

What it is: a lease is an item of kind HELD with a random token and a time to live, put where there was none (or one that was
given up) by check-and-set. While its holder computes it is renewed; when its holder dies it lapses, by the server's clock. No
clock of a client is compared with another's.
Which thread runs it: `take`, `let_go` and `give_up` the caller's. `rcache-leases`, a daemon thread, renews; it is started with
the first lease, and ends LINGER_SECONDS after the last one, or at `close`.
What it owns: that thread, and the leases that are held.
What it must not know: what is computed.

Invariants:
1. A lease is renewed, given up and turned into a value by check-and-set on the version of its item alone. So nobody changes
   what another one took meanwhile, and a delete or a set of its key ends the lease.
2. The version that `let_go` tells does not change any more: no renewal is under way.
3. No lock is held during I/O.
"""

from __future__ import annotations

import math
import secrets
import weakref
from contextlib import suppress
from threading import Condition, Lock, Thread, current_thread
from time import monotonic

from rcache_client.budget import seconds_left
from rcache_client.envelope import COMPUTED_FLAGS, TOKEN_BYTES, Envelope, Kind, open_envelope, pack
from rcache_client.errors import ClientClosed, OutcomeUnknown, RcacheError, WrongFormat
from rcache_client.stored import Stored

RENEWALS = 4
"""So many times in its life a lease is renewed: one or two renewals may be late or lost, and it stands."""

RETRIES = 16
"""A renewal that failed is tried again after that part of the lease's life."""

LONGEST_SECONDS = 300.0
"""A lease is renewed no longer than that: a function that hangs must not keep everybody from the value for ever."""

LINGER_SECONDS = 1.0
"""The thread waits so long for the next lease: to start one takes as long as a request. It looks as often for what it holds."""

GONE_MS = 1
"""What was given up may vanish at once; until then it says FREE."""


class Lease:
    """One lease. `version` is that of its item, 0 once it was lost. A lease that nobody holds in a variable lapses too."""

    __slots__ = ("__weakref__", "due", "name", "renew_until", "token", "ttl_ms", "version")

    def __init__(self, name: bytes, ttl_ms: int) -> None:
        self.name = name
        self.ttl_ms = ttl_ms
        self.token = secrets.token_bytes(TOKEN_BYTES)
        self.version = 0
        self.due = monotonic() + ttl_ms / 1000 / RENEWALS
        self.renew_until = monotonic() + LONGEST_SECONDS

    @property
    def item(self) -> tuple[int, bytes]:
        """The flags and bytes of its item."""
        return COMPUTED_FLAGS, pack(Envelope(Kind.HELD, token=self.token))


class Leases:
    """All leases that a client holds. Thread-safe."""

    def __init__(self, stored: Stored) -> None:
        self._stored = stored
        self._closed = False
        self._begin()

    def _begin(self) -> None:
        self._changed = Condition(Lock())
        self._held: weakref.WeakSet[Lease] = weakref.WeakSet()
        self._renewing: Lease | None = None
        self._thread: Thread | None = None

    def take(self, name: bytes, version: int, ttl_ms: int, deadline: float) -> Lease | None:
        """The lease, if the item under `name` still has that version (0: is still none); None if not. Raises `RcacheError`."""
        lease = Lease(name, ttl_ms)
        lease.version = self._changed_to_held(lease, version, deadline)
        if not lease.version:
            return None
        self._keep(lease)
        return lease

    def let_go(self, lease: Lease, deadline: float) -> int:
        """Renew it no more; the version of its item, or 0 if it was lost. Waits for a renewal that is under way, to the
        deadline: one that has not ended by then counts as lost."""
        with self._changed:
            self._held.discard(lease)
            is_settled = self._changed.wait_for(lambda: self._renewing is not lease, seconds_left(deadline))
        return lease.version if is_settled else 0

    def give_up(self, lease: Lease, deadline: float) -> None:
        """Let the next one have it at once. If it cannot be told so, the lease lapses by itself."""
        version = self.let_go(lease, deadline)
        if version:
            free = COMPUTED_FLAGS, pack(Envelope(Kind.FREE))
            with suppress(RcacheError):
                self._stored.change(lease.name, version, free, GONE_MS, deadline)

    def close(self, deadline: float) -> None:
        """End the thread; wait for it to the deadline. What is held lapses. Idempotent."""
        with self._changed:
            self._closed = True
            thread = self._thread
            self._changed.notify_all()
        if thread is not None:
            thread.join(seconds_left(deadline))

    def forget(self) -> None:
        """Start anew in a forked child, which holds none of its parent's leases."""
        self._begin()

    def _changed_to_held(self, lease: Lease, version: int, deadline: float) -> int:
        try:
            return self._stored.change(lease.name, version, lease.item, lease.ttl_ms, deadline)
        except OutcomeUnknown:
            return self._version_found(lease, deadline)

    def _version_found(self, lease: Lease, deadline: float) -> int:
        """The version of its item, as the cluster has it: 0 if another item is there, or none."""
        item = self._stored.read(lease.name, deadline)
        try:
            is_ours = item is not None and open_envelope(item.data, item.flags).token == lease.token
        except WrongFormat:
            return 0
        return item.version if item is not None and is_ours else 0

    def _keep(self, lease: Lease) -> None:
        with self._changed:
            self._held.add(lease)
            self._changed.notify_all()
            if self._thread is None and not self._closed:
                thread = Thread(target=self._run, name="rcache-leases", daemon=True)
                with suppress(RuntimeError):  # no thread is to be had: the lease stands for its time, unrenewed
                    thread.start()
                    self._thread = thread

    def _run(self) -> None:
        changed = self._changed  # a forked child has another one
        try:
            while self._renew_next(changed):
                pass
        finally:
            with changed:
                if self._thread is current_thread():  # it ends by a bug: the next lease starts another
                    self._thread = None

    def _renew_next(self, changed: Condition) -> bool:
        """Renew the lease whose turn is next, at its time. False when the thread is to end, and is no longer counted on."""
        with changed:
            lease = self._next_due(changed)
            if lease is None:
                self._thread = None
                return False
            self._renewing = lease
        try:
            self._renew(lease)
        finally:
            with changed:
                self._renewing = None
                if not lease.version:
                    self._held.discard(lease)
                changed.notify_all()
        return True

    def _next_due(self, changed: Condition) -> Lease | None:
        """Wait until a lease is to be renewed; None when the thread is to end."""
        idle_until = monotonic() + LINGER_SECONDS
        while not self._closed:
            lease = min(self._held, key=lambda held: held.due, default=None)
            if lease is not None:
                idle_until = monotonic() + LINGER_SECONDS
            wait_s = (idle_until if lease is None else lease.due) - monotonic()
            if wait_s <= 0:
                return lease
            lease = None
            changed.wait(min(wait_s, LINGER_SECONDS))
        return None

    def _renew(self, lease: Lease) -> None:
        """Give it its whole time again (invariant 1). Only what the cluster says makes it lost."""
        lease_s = lease.ttl_ms / 1000
        began = monotonic()
        deadline = began + lease_s / RENEWALS
        try:
            version = self._stored.change(lease.name, lease.version, lease.item, lease.ttl_ms, deadline)
            lease.version = version or self._version_found(lease, deadline)  # a renewal of unknown outcome went before, perhaps
            lease.due = began + lease_s / RENEWALS if began < lease.renew_until else math.inf
        except ClientClosed:
            lease.version = 0
        except RcacheError:
            lease.due = monotonic() + lease_s / RETRIES
