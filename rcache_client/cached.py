"""`cached`: a decorator that keeps what a function returns in the cluster.

What it is: a function's calls, each with a key of its own, by `get_or_compute`.
Which thread runs it: the caller's. What it owns: nothing but the function. What it must not know: how a key is encoded, and how
a value is computed by one caller only.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, ParamSpec, TypeVar

from rcache_client.arguments import Key, key_bytes
from rcache_client.budget import SECONDS_MAX
from rcache_client.call_keys import bounded_key, call_key, canonical, function_name
from rcache_client.compute_calls import BETA_MAX, LEASE, LEASE_MIN, checked_between, times_ms

if TYPE_CHECKING:
    from rcache_client.client import Client

P = ParamSpec("P")
R = TypeVar("R")


def cached(  # noqa: PLR0913 - every option has a default and is given by name
    client: Client[Any] | Callable[[], Client[Any]],
    ttl: float | None = None,
    *,
    name: str | None = None,
    version: str | int = 1,
    key: Callable[..., Key] | None = None,
    stale: float = 0.0,
    lease: float = LEASE,
    beta: float = 1.0,
    fallback: bool = True,
    budget: float | None = None,
) -> Callable[[Callable[P, R]], CachedFunction[P, R]]:
    """Decorate a function so that each call with the same arguments is computed once in the whole cluster.

        @cached(cache, ttl=300, stale=60)
        def user(number: int) -> dict: ...

    `client`: or a function that gives it, for a module that is imported before there is one.
    `ttl`, `stale`, `lease`, `beta`, `fallback`, `budget`: as `Client.get_or_compute` has them.
    `name`: what its keys begin with; module and qualified name without it.
    `version`: of what it returns; raise it when the code changes that, and old values are not met again.
    `key`: called with the same arguments, returns what the key is made of in their place: for those that have no encoding.

    Arguments may be None, bool, int, float, complex, str, bytes, Decimal, UUID, date, datetime, timedelta, members of an Enum,
    and tuples, lists, sets and dicts of these; anything else raises `TypeError` with the call. Raises `TypeError` or
    `ValueError` for bad options, and `ValueError` where name= is needed to tell the function from others.
    """
    if name is not None and (not isinstance(name, str) or not name or ":" in name):
        raise ValueError(f"name must be text without a colon, not {name!r}")
    times_ms(ttl, stale)
    checked_between("lease", lease, LEASE_MIN, SECONDS_MAX)
    checked_between("beta", beta, 0.0, BETA_MAX)
    if isinstance(version, bool) or not isinstance(version, (str, int)):
        raise TypeError(f"version must be a str or an int, not {version!r}")
    options = {"ttl": ttl, "stale": stale, "lease": lease, "beta": beta, "fallback": fallback, "budget": budget}

    def decorate(function: Callable[P, R]) -> CachedFunction[P, R]:
        if isinstance(function, (classmethod, property)) or inspect.iscoroutinefunction(function):
            raise TypeError(f"{function!r} is no plain function")
        naming = Naming(name if name is not None else function_name(function), str(version), key)
        return CachedFunction(client, function, naming, options)

    return decorate


class Naming(NamedTuple):
    """How the keys of a function begin, and what makes the rest of them in place of its arguments."""

    name: str
    version: str
    choose: Callable[..., Key] | None


class CachedFunction(Generic[P, R]):
    """A function whose results are kept in the cluster. Called as the function is; thread-safe as its client is.

    Each call raises what `Client.get_or_compute` raises, and `TypeError` for an argument that has no canonical encoding.
    """

    __wrapped__: Callable[P, R]

    def __init__(
        self,
        client: Client[Any] | Callable[[], Client[Any]],
        function: Callable[P, R],
        naming: Naming,
        options: dict[str, Any],
    ) -> None:
        functools.update_wrapper(self, function)
        self._client = client
        self._function = function
        self._signature = inspect.signature(function)
        self._naming = naming
        self._options = options
        self._bound: tuple[Any, ...] = ()

    @property
    def client(self) -> Client[Any]:
        """The client whose cluster keeps the results."""
        return self._client() if callable(self._client) else self._client

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """The function's result, from the cluster or computed. As `Client.get_or_compute`."""
        compute = functools.partial(self._function, *self._bound, *args, **kwargs)
        result: R = self.client.get_or_compute(self.key_of(*args, **kwargs), compute, **self._options)
        return result

    def key_of(self, *args: P.args, **kwargs: P.kwargs) -> bytes:
        """The key under which this call's result is kept."""
        given = (*self._bound, *args)
        name, version, choose = self._naming
        if choose is None:
            return call_key(name, version, self._signature, given, kwargs)
        return bounded_key(name, canonical(version) + b"=" + key_bytes(choose(*given, **kwargs)))

    def invalidate(self, *args: P.args, **kwargs: P.kwargs) -> bool:
        """Drop the result of this call, and of whoever computes it just now; whether there was something to drop.

        A call that begins after this has returned computes anew. Raises as `Client.delete`.
        """
        return self.client.delete(self.key_of(*args, **kwargs), budget=self._options["budget"])

    def refresh(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Compute the result of this call now, store it, and return it. As `Client.recompute`."""
        compute = functools.partial(self._function, *self._bound, *args, **kwargs)
        options = {option: self._options[option] for option in ("ttl", "stale", "lease", "budget")}
        result: R = self.client.recompute(self.key_of(*args, **kwargs), compute, **options)
        return result

    def __get__(self, instance: object, owner: type | None = None) -> CachedFunction[..., R]:
        """As a method of an object. An object has no canonical encoding, so that needs key=; raises `TypeError` without it."""
        if instance is None:
            return self
        if self._naming.choose is None:
            raise TypeError(f"{self._naming.name} is a method, and its object cannot be a part of a key; pass key= to cached")
        bound = copy.copy(self)
        bound._bound = (instance,)
        return bound

    def __repr__(self) -> str:
        return f"<rcache_client.CachedFunction {self._naming.name}>"
