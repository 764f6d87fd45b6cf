"""Addresses of servers, and finding out what a host name stands for without outliving a budget.

What it is: parsing `host:port`, and `Resolver`, which asks the system's resolver.
Which thread runs it: the caller's. A host name is looked up on a daemon thread, because `getaddrinfo` cannot be told to
stop: it may go on after its caller has left, and is then waited for by the next one who asks.
What it owns: at most one such thread per `Resolver`.
What it must not know: connections and retries.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable
from threading import Event, Lock, Thread
from typing import Any, NamedTuple

from rcache_client.budget import seconds_left
from rcache_client.wire.opcodes import DEFAULT_PORT

Endpoint = tuple[socket.AddressFamily, tuple[Any, ...]]
"""What `socket.socket` and its `connect` want: a family and its form of an address."""

Lookup = Callable[..., list[tuple[Any, ...]]]
"""The type of `socket.getaddrinfo`."""


class Address(NamedTuple):
    """Where a server listens; `host` is a name or a numeric address without brackets."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str) -> Address:
    """Read `host`, `host:port`, `[v6]` or `[v6]:port`. Raises `TypeError` or `ValueError` naming the text."""
    if not isinstance(text, str):
        raise TypeError(f"a server is given as a str 'host:port', not {text!r}")
    host, port = _split(text)
    if not host or any(c.isspace() or c in "/@[]" for c in host):
        raise ValueError(f"no host in the server {text!r}; write host:port or [IPv6]:port")
    if not port:
        return Address(host, DEFAULT_PORT)
    if not (port.isascii() and port.isdigit() and 1 <= int(port) <= 65_535):
        raise ValueError(f"the port in the server {text!r} must be a number from 1 to 65535")
    return Address(host, int(port))


def _split(text: str) -> tuple[str, str]:
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or ":" not in host or (rest and not rest.startswith(":")) or rest == ":":
            raise ValueError(f"the server {text!r} is not of the form [IPv6]:port")
        return host, rest[1:]
    if "," in text:
        raise ValueError(f"the server {text!r} has a comma in it; several servers are given as a list of them")
    if text.count(":") > 1:
        raise ValueError(f"the server {text!r} has too many colons; write an IPv6 address as [::1]:{DEFAULT_PORT}")
    host, colon, port = text.partition(":")
    if colon and not port:
        raise ValueError(f"the server {text!r} ends without its port")
    return host, port


class LookupFailed(Exception):
    """The host name could not be resolved; says why."""


class _Search:
    """One lookup under way: `done` is set once `found` or `error` is."""

    def __init__(self) -> None:
        self.done = Event()
        self.found: list[Endpoint] = []
        self.error: Exception | None = None


class Resolver:
    """Turns one `Address` into what a socket can connect to. Thread-safe."""

    def __init__(self, address: Address, lookup: Lookup = socket.getaddrinfo) -> None:
        self._address = address
        self._lookup = lookup
        self._numeric = _numeric_endpoint(address)
        self.forget()

    def forget(self) -> None:
        """Start anew, as a child process must: the parent's lookup thread does not exist there."""
        self._lock = Lock()
        self._search: _Search | None = None

    def resolve(self, deadline: float) -> list[Endpoint]:
        """All endpoints, best first, never empty. Blocks to the deadline at most.

        Raises `LookupFailed`, and `TimeoutError` where the resolver did not answer in time.
        """
        if self._numeric is not None:
            return [self._numeric]
        search = self._join_search()
        if not search.done.wait(seconds_left(deadline)):
            raise TimeoutError(f"the name {self._address.host!r} was not resolved in time")
        if search.error is not None:
            raise LookupFailed(f"the name {self._address.host!r} cannot be resolved") from search.error
        return search.found

    def _join_search(self) -> _Search:
        with self._lock:
            if self._search is None:
                search = self._search = _Search()
                Thread(target=self._run, args=(search,), name=f"rcache-resolve-{self._address.host}", daemon=True).start()
            return self._search

    def _run(self, search: _Search) -> None:
        """The lookup thread."""
        try:
            answers = self._lookup(self._address.host, self._address.port, type=socket.SOCK_STREAM)
            search.found = [(family, target) for family, _, _, _, target in answers]
            if not search.found:
                search.error = OSError("the resolver knows no address for it")
        except Exception as error:
            search.error = error
        with self._lock:
            if self._search is search:
                self._search = None
        search.done.set()


def _numeric_endpoint(address: Address) -> Endpoint | None:
    """The endpoint of a numeric address; None for a name. A zone (`fe80::1%eth0`) is left to the resolver."""
    try:
        version = ipaddress.ip_address(address.host).version
    except ValueError:
        return None
    if "%" in address.host:
        return None
    if version == 4:
        return socket.AF_INET, (address.host, address.port)
    return socket.AF_INET6, (address.host, address.port, 0, 0)
