"""The calls that compute what is missing: the part of `Client` that stands against stampedes.

What it is: the checks of their arguments, and the way between the caller's values and bytes. The course of a call is in
`computing`.
Which thread runs it: the caller's; the function it brings runs in it too.
What it owns: nothing.
What it must not know: leases, connections.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar, overload

from rcache_client.arguments import Key, key_bytes
from rcache_client.budget import SECONDS_MAX, checked_seconds, ttl_in_ms
from rcache_client.calls import Caller
from rcache_client.compute_counts import ComputeCounts
from rcache_client.computing import Call, Computing
from rcache_client.envelope import Envelope, Kind
from rcache_client.errors import WrongFormat
from rcache_client.serializers import Serializer
from rcache_client.wire.opcodes import TTL_MS_MAX

LEASE = 4.0
"""Seconds. More than a failover takes, so that none ends a lease; less than a budget, so that those who wait outlive the one
they wait for."""

LEASE_MIN = 0.1
"""Seconds. Less could not be renewed in time over a network."""

BETA_MAX = 100.0
"""Ten is a lot already."""

V = TypeVar("V")


class ComputeCalls(Generic[V]):
    """Calls that compute. `V` is the type of values, which the serializer gives."""

    _caller: Caller
    _serializer: Serializer[V]
    _computing: Computing

    @overload
    def get_or_compute(
        self,
        key: Key,
        fn: Callable[[], V],
        ttl: float | None = ...,
        *,
        stale: float = ...,
        lease: float = ...,
        beta: float = ...,
        fallback: bool = ...,
        budget: float | None = ...,
    ) -> V: ...

    @overload
    def get_or_compute(
        self,
        key: Key,
        fn: Callable[[], V | None],
        ttl: float | None = ...,
        *,
        stale: float = ...,
        lease: float = ...,
        beta: float = ...,
        fallback: bool = ...,
        budget: float | None = ...,
    ) -> V | None: ...

    def get_or_compute(  # noqa: PLR0913 - every option has a default and is given by name
        self,
        key: Key,
        fn: Callable[[], V | None],
        ttl: float | None = None,
        *,
        stale: float = 0.0,
        lease: float = LEASE,
        beta: float = 1.0,
        fallback: bool = True,
        budget: float | None = None,
    ) -> V | None:
        """The value; if there is none, what `fn()` returns, computed by one caller in the whole cluster while the others wait.

        `ttl`: seconds for which a computed value is fresh; None for ever.
        `stale`: seconds after that in which it is still served while one caller computes it anew, in its own call.
        `lease`: seconds after which the death of the one who computes is noticed; it is renewed while `fn` runs, for 300 s.
        `beta`: how early a value is computed anew before its ttl ends, at random (XFetch); 0 for never, more for earlier.
        `fallback`: whether `fn` is called without the cache when that cannot be used; else its error is raised.
        `budget`: seconds for everything but `fn` itself, whose time does not count.

        None is a result like any other. All get what the serializer makes of what `fn` returned. Raises what `fn` raises,
        unless an older value can be served in its place; `StillComputing` where the wait for another caller ended;
        `TypeError` for what the serializer does not take; `RuntimeError` where `fn` asks for its own key; and as `get` does.
        """
        call = self._call_for(key, fn, ttl, (stale, lease, beta, fallback), budget)
        return self._loaded(key, self._computing.get(call))

    @overload
    def recompute(
        self,
        key: Key,
        fn: Callable[[], V],
        ttl: float | None = ...,
        *,
        stale: float = ...,
        lease: float = ...,
        budget: float | None = ...,
    ) -> V: ...

    @overload
    def recompute(
        self,
        key: Key,
        fn: Callable[[], V | None],
        ttl: float | None = ...,
        *,
        stale: float = ...,
        lease: float = ...,
        budget: float | None = ...,
    ) -> V | None: ...

    def recompute(
        self,
        key: Key,
        fn: Callable[[], V | None],
        ttl: float | None = None,
        *,
        stale: float = 0.0,
        lease: float = LEASE,
        budget: float | None = None,
    ) -> V | None:
        """What `fn()` returns, computed now whatever is there, and stored in its place; options as `get_or_compute`.

        Nothing whose computation began before this call is stored after it. Raises what `fn` raises (what is there stays), and
        any `RcacheError` where it cannot be stored.
        """
        call = self._call_for(key, fn, ttl, (stale, lease, 0.0, False), budget)
        return self._loaded(key, self._computing.renew(call))

    def compute_counts(self) -> ComputeCounts:
        """What these calls have done so far. Asks nobody."""
        return self._computing.counts.told()

    def _call_for(
        self,
        key: Key,
        fn: Callable[[], V | None],
        ttl: float | None,
        options: tuple[float, float, float, bool],
        budget: float | None,
    ) -> Call:
        stale, lease, beta, fallback = options
        if not callable(fn):
            raise TypeError(f"fn must be a function without arguments, not {fn!r}")
        ttl_ms, stale_ms = times_ms(ttl, stale)
        lease_s = checked_between("lease", lease, LEASE_MIN, SECONDS_MAX)
        checked_between("beta", beta, 0.0, BETA_MAX)
        name = key_bytes(key)
        compute = self._computer(fn)
        deadline = self._caller.deadline(budget)
        return Call(name, compute, ttl_ms, stale_ms, int(lease_s * 1000), beta, bool(fallback), deadline)

    def _computer(self, fn: Callable[[], V | None]) -> Callable[[], tuple[bool, int, bytes]]:
        def compute() -> tuple[bool, int, bytes]:
            value = fn()
            if value is None:
                return False, 0, b""
            data, flags = self._serializer.dump(value)
            return True, flags, data

        return compute

    def _loaded(self, key: Key, outcome: Envelope) -> V | None:
        if outcome.kind is Kind.NOTHING:
            return None
        try:
            return self._serializer.load(outcome.data, outcome.flags)
        except WrongFormat as error:
            error.operation = f"the value of {key!r}"
            raise


def times_ms(ttl: float | None, stale: float) -> tuple[int, int]:
    """Both in milliseconds. Raises `TypeError` or `ValueError` naming the argument."""
    ttl_ms = ttl_in_ms(ttl, TTL_MS_MAX)
    if isinstance(stale, (int, float)) and not isinstance(stale, bool) and not stale:
        return ttl_ms, 0
    stale_ms = int(checked_seconds("stale", stale) * 1000)
    if not ttl_ms:
        raise ValueError(f"stale={stale!r} is for a value that has a ttl")
    ttl_in_ms((ttl_ms + stale_ms) / 1000, TTL_MS_MAX)
    return ttl_ms, stale_ms


def checked_between(name: str, number: float, low: float, high: float) -> float:
    """The number. Raises `TypeError` or `ValueError` naming the argument."""
    if isinstance(number, bool) or not isinstance(number, (int, float)):
        raise TypeError(f"{name} must be a number, not {number!r}")
    if not low <= number <= high:
        raise ValueError(f"{name} must be from {low:g} to {high:g}, not {number!r}")
    return float(number)
