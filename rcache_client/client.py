"""The client: what a program makes once and all its threads share.

What it is: the constructor, which checks and wires everything together, and the end. The calls themselves are in
`key_calls`, `many_calls`, `compute_calls` and `service_calls`.
Which thread runs it: any, several at once. It starts no thread of its own (but see `address`, `leases` and `node_feed`).
What it owns: the doors, and through them every connection; its near cache, if it was given one.
What it must not know: how a request looks on the wire.

After a fork the child has the same client with none of its connections: it makes its own when it needs them.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterable
from functools import partial
from time import monotonic
from types import TracebackType
from typing import Any, TypeVar, overload

from rcache_client.arguments import parse_servers, whole_number
from rcache_client.budget import checked_seconds
from rcache_client.calls import Caller
from rcache_client.compute_calls import ComputeCalls
from rcache_client.computing import Computing
from rcache_client.door import Door
from rcache_client.event_calls import EventCalls
from rcache_client.handshake import Greeter
from rcache_client.key_calls import KeyCalls
from rcache_client.many_calls import ManyCalls
from rcache_client.near_cache import NearCache, NearReads
from rcache_client.pool import GOODBYE_SECONDS, say_goodbye
from rcache_client.routing import Router
from rcache_client.serializers import BytesSerializer, Serializer
from rcache_client.servers import Doors
from rcache_client.service_calls import ServiceCalls
from rcache_client.stored import Stored
from rcache_client.wire.opcodes import Role

CONNECT_TIMEOUT = 1.0
"""Seconds for a connection to be ready: many round trips between continents, and short for a user who waits."""

READ_TIMEOUT = 2.0
"""Seconds for the next bytes of an answer: a thousand times what a healthy server needs."""

BUDGET = 5.0
"""Seconds for a whole call: two full read time-outs and a connection."""

MAX_CONNECTIONS = 16
"""To each server: more threads than that in one process seldom wait at the same moment."""

MAX_CONNECTIONS_CEILING = 65_535
"""More than a process has ports for."""

_BYTES: Serializer[Any] = BytesSerializer()

V = TypeVar("V")


class Client(KeyCalls[V], ManyCalls[V], ComputeCalls[V], ServiceCalls, EventCalls):
    """A thread-safe, fork-safe, synchronous client of one rcache service: a node, or a cluster of them.

        with Client("127.0.0.1:13600") as cache:
            cache.set("greeting", b"hello", ttl=60)
            cache.get("greeting")  # b"hello"

    `servers`: one `host:port` or several, of the same service. One that works is enough to find all nodes of a cluster; each
    key goes straight to the node that has it.
    `connect_timeout`: seconds for a connection to be ready, names resolved and HELLO answered.
    `read_timeout`: the longest wait, in seconds, for the next bytes of an answer.
    `budget`: seconds that a whole call may take: waiting for a connection, making it, sending, reading, trying again.
    `max_connections`: to each node; a call waits for one, within its budget.
    `secret`: what the servers' --secret-file holds. `name` and `role`: what HELLO says of this client.
    `serializer`: how values become bytes; without one they are bytes.
    `wait_for_servers`: when no server can be used, wait within the budget rather than fail at once.
    `near_cache`: keep what `get` reads, and serve it from here while it is surely good; None: ask the servers each time.
    """

    @overload
    def __init__(
        self: Client[bytes],
        servers: str | Iterable[str],
        *,
        connect_timeout: float = ...,
        read_timeout: float = ...,
        budget: float = ...,
        max_connections: int = ...,
        secret: bytes | None = ...,
        name: str | None = ...,
        role: Role = ...,
        wait_for_servers: bool = ...,
        near_cache: NearCache | None = ...,
    ) -> None: ...

    @overload
    def __init__(
        self,
        servers: str | Iterable[str],
        *,
        connect_timeout: float = ...,
        read_timeout: float = ...,
        budget: float = ...,
        max_connections: int = ...,
        secret: bytes | None = ...,
        name: str | None = ...,
        role: Role = ...,
        serializer: Serializer[V],
        wait_for_servers: bool = ...,
        near_cache: NearCache | None = ...,
    ) -> None: ...

    def __init__(  # noqa: PLR0913 - every option has a default and is given by name
        self,
        servers: str | Iterable[str],
        *,
        connect_timeout: float = CONNECT_TIMEOUT,
        read_timeout: float = READ_TIMEOUT,
        budget: float = BUDGET,
        max_connections: int = MAX_CONNECTIONS,
        secret: bytes | None = None,
        name: str | None = None,
        role: Role = Role.CLIENT,
        serializer: Serializer[Any] | None = None,
        wait_for_servers: bool = False,
        near_cache: NearCache | None = None,
    ) -> None:
        """Check the arguments; connect to nothing yet. Raises `TypeError` or `ValueError` naming the value."""
        addresses = parse_servers(servers)
        connect_s = checked_seconds("connect_timeout", connect_timeout)
        connections_max = whole_number("max_connections", max_connections, 1, MAX_CONNECTIONS_CEILING)
        self._serializer: Serializer[V] = _BYTES if serializer is None else serializer
        self._loads_nothing = serializer is None or type(serializer) is BytesSerializer
        self._greeter = Greeter(name, role, secret)
        read_s = checked_seconds("read_timeout", read_timeout)
        make_door = partial(Door, greeter=self._greeter, connections_max=connections_max, connect_timeout=connect_s)
        seeds = [make_door(address) for address in addresses]
        self._doors = Doors(seeds, wait_for_servers=bool(wait_for_servers), make_door=partial(make_door, is_seed=False))
        self._router = Router(self._doors, self._greeter, read_s)
        self._near_cache = near_cache
        self._near, self._caller = self._near_and_caller(checked_seconds("budget", budget), read_s)
        self._subscriptions = weakref.WeakSet()
        self._computing = Computing(Stored(self._caller))
        self._servers = ", ".join(door.name for door in seeds)
        _clients.add(self)

    def _near_and_caller(self, budget_s: float, read_s: float) -> tuple[NearReads | None, Caller]:
        if self._near_cache is None:
            return None, Caller(self._doors, self._router, budget_s, read_s)
        if not isinstance(self._near_cache, NearCache):
            raise TypeError(f"near_cache must be a NearCache, not {self._near_cache!r}")
        near = self._near_cache._attach(self._doors, self._router, budget_s, read_s)
        weakref.finalize(self, near.feed.abandon).atexit = False  # one that nobody closes ends its feeds all the same
        return near, near.caller

    @property
    def near_cache(self) -> NearCache | None:
        """What was given as `near_cache`; its `stats()` say how it does."""
        return self._near_cache

    @property
    def cluster_id(self) -> bytes | None:
        """The id of the cluster that was met first, which all servers must be of; None before that."""
        return self._greeter.cluster_id if any(self._greeter.cluster_id) else None

    def close(self) -> None:
        """Say GOODBYE on idle connections and close them; every later call raises `ClientClosed`. Idempotent.

        Blocks for 0.2 seconds at most, and for as long as subscriptions that are still open, and a near cache, take to end. A
        connection that another thread is using is closed when its call ends.
        """
        for subscription in list(self._subscriptions):
            subscription.close()
        if self._near is not None:
            self._near.close()
        deadline = monotonic() + GOODBYE_SECONDS
        idle = self._doors.retire()
        self._router.retire()
        say_goodbye(idle, deadline)
        self._computing.close(deadline)

    def __enter__(self) -> Client[V]:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<rcache_client.Client of {self._servers}>"

    def _forget(self) -> None:
        """Start anew in a forked child."""
        self._greeter.forget()
        self._doors.forget()
        self._router.forget()
        for subscription in list(self._subscriptions):
            subscription.forget()
        if self._near is not None:
            self._near.forget()
        self._computing.forget()


_clients: weakref.WeakSet[Client[Any]] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for client in list(_clients):
        client._forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
