"""One connection to a member of etcd, and one question over it: HTTP as etcd's JSON gateway speaks it.

What it is: connect, send, read an answer or a stream of answers, and say what a refusal means. HTTP's grammar is the standard
library's; the socket is ours, because `http.client` bounds a single read and not an answer that trickles in.
Which thread runs it: the caller's, which it blocks until a deadline at the latest (a reading of `time.monotonic`); `Stops.end`
is another's. What it owns: its socket. It may lock: `Stops`, for moments.
What it must not know: other endpoints, what is asked.

A connection serves one question. (One that is kept may have been closed by the other side just now. Then nobody knows whether
what was sent on it was heard, and a change may not be sent a second time.)

Every wait ends at the deadline but one: the system's resolver has a limit of its own, so endpoints are best given as addresses.
"""

from __future__ import annotations

import contextlib
import io
import json
import socket
import ssl
import threading
from collections.abc import Iterator
from http.client import HTTPException, HTTPResponse, IncompleteRead
from time import monotonic
from typing import Any, NamedTuple, cast
from urllib.parse import urlsplit

from rcache.cluster.register import RegisterFailed, RegisterUnreachable

Facts = dict[str, Any]
"""An object of JSON."""

DEFAULT_PORT = 2379
"""Etcd's own, for clients."""

ANSWER_BYTES_MAX = 8 << 20
"""Etcd takes no request beyond 1.5 MiB, unless it is told to, and base64 adds a third: a longer answer is none of etcd's."""

CODES_OF_THE_MOMENT = frozenset({1, 4, 8, 14})
"""Of gRPC: canceled, deadline exceeded, exhausted (too many requests; no space until an operator makes some), unavailable."""

WORDS_OF_THE_MOMENT = ("timed out", "deadline exceeded", "no leader", "leader changed", "canceled", "closing", "stopped")
"""Etcd says some of it under the code 2, unknown: a change without a quorum is a "context deadline exceeded" there."""

STATUSES_OF_THE_MOMENT = frozenset({408, 429, 500, 502, 503, 504})
"""What a proxy says that does not reach etcd, where no code of etcd's tells more."""

EXCERPT_CHARACTERS = 200
"""Of an answer that is not understood: enough to know whose it is."""


class Endpoint(NamedTuple):
    """A member of etcd, as it was named."""

    url: str
    host: str
    port: int
    is_secure: bool


def parse_endpoint(url: str) -> Endpoint:
    """`http://HOST:PORT` or `https://HOST:PORT`; the port may be left out. Raises ValueError."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{url!r} is no endpoint of etcd: http://HOST:PORT or https://HOST:PORT")
    if parts.path not in ("", "/") or parts.query or parts.fragment or "@" in parts.netloc:
        raise ValueError(f"{url!r} is no endpoint of etcd: it has more than a host and a port")
    if not parts.netloc.isascii():
        raise ValueError(f"{url!r} is no endpoint of etcd: its host must be in ASCII")
    parts.hostname.encode("idna")  # which the resolver does, and would say no to then
    return Endpoint(
        url.rstrip("/"), parts.hostname, DEFAULT_PORT if parts.port is None else parts.port, parts.scheme == "https"
    )


class NotSent(Exception):
    """There was no connection, so nothing was asked."""


class Stops:
    """The connections that another thread may end. Once they were ended, no other is let in."""

    def __init__(self) -> None:
        self.ended = threading.Event()
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()

    def add(self, end: socket.socket) -> None:
        """Raises OSError where all was ended already."""
        with self._lock:
            if self.ended.is_set():
                raise ConnectionAbortedError("closed")
            self._sockets.add(end)

    def discard(self, end: socket.socket) -> None:
        """Before it is closed: the number of a closed one may be somebody else's by then."""
        with self._lock:
            self._sockets.discard(end)

    def end(self) -> None:
        """Whoever waits on one of the connections sees it broken, now."""
        with self._lock:
            self.ended.set()
            for end in self._sockets:
                with contextlib.suppress(OSError):  # not connected yet, or not any more
                    socket.socket.shutdown(end, socket.SHUT_RDWR)  # TLS's own is for the thread that reads


class Line:
    """See the module. `deadline` may be changed between two answers of a stream."""

    def __init__(self, endpoint: Endpoint, deadline: float, tls: ssl.SSLContext, stops: Stops) -> None:
        """Connect. Raises `NotSent`."""
        self.endpoint = endpoint
        self.deadline = deadline
        self._stops = stops
        self._end: socket.socket | None = None
        try:
            self._connect()
            if endpoint.is_secure:
                self._agree_on_keys(tls)
        except OSError as error:
            self.close()
            raise NotSent(f"etcd at {endpoint.url}: {error}") from error

    def close(self) -> None:
        end, self._end = self._end, None
        if end is not None:
            self._stops.discard(end)
            end.close()

    def ask(self, path: str, facts: Facts) -> Facts:
        """The answer to a question. Raises `RegisterUnreachable` and `RegisterFailed`."""
        with self._translated():
            response = self._send(path, facts)
            return self._understood(response.read(), response.status)

    def follow(self, path: str, facts: Facts) -> Iterator[Facts]:
        """The answers to a question, one a line, as they come. Raises `RegisterUnreachable`, also at the end, and
        `RegisterFailed`."""
        with self._translated():
            response = self._send(path, facts)
            if response.status != 200:
                self._understood(response.read(), response.status)
            while line := response.readline():
                yield self._understood(line, 200)
            raise ConnectionResetError("the stream ended")

    # --- the socket

    def _left(self) -> float:
        """Seconds until the deadline. Raises TimeoutError where it is over."""
        left = self.deadline - monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        return left

    def _connect(self) -> None:
        """To the first of the host's addresses that answers, each with its share of the time. Raises OSError."""
        addresses = socket.getaddrinfo(self.endpoint.host, self.endpoint.port, type=socket.SOCK_STREAM)
        for left, (family, kind, protocol, _, address) in zip(range(len(addresses), 0, -1), addresses, strict=True):
            end = socket.socket(family, kind, protocol)
            self._take(end)
            try:
                end.settimeout(self._left() / left)
                end.connect(address)
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            except OSError:
                self.close()
                if left == 1:
                    raise
            else:
                return

    def _agree_on_keys(self, tls: ssl.SSLContext) -> None:
        """Raises OSError, as every error of TLS is one."""
        assert self._end is not None
        bare, self._end = self._end, None
        self._stops.discard(bare)
        end = tls.wrap_socket(bare, server_hostname=self.endpoint.host, do_handshake_on_connect=False)
        self._take(end)
        end.settimeout(self._left())
        end.do_handshake()

    def _take(self, end: socket.socket) -> None:
        self._end = end
        self._stops.add(end)

    def _send(self, path: str, facts: Facts) -> HTTPResponse:
        """Send the question, and read the answer's opening. Raises OSError and HTTPException."""
        assert self._end is not None
        body = json.dumps(facts).encode()
        opening = f"POST {path} HTTP/1.1\r\nHost: {urlsplit(self.endpoint.url).netloc}\r\nContent-Type: application/json\r\n"
        # A member that has lost the others says so at once, and ends a watch, instead of being silent until it finds them.
        opening += f"Grpc-Metadata-hasleader: true\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        self._end.settimeout(self._left())
        self._end.sendall(opening.encode("ascii") + body)
        response = HTTPResponse(cast(socket.socket, _Reader(self, self._end)), method="POST")
        response.begin()
        return response

    # --- what an answer means

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (OSError, IncompleteRead) as error:
            raise RegisterUnreachable(f"etcd at {self.endpoint.url}: {error}") from error
        except (HTTPException, ValueError, RecursionError) as error:
            raise RegisterFailed(f"{self.endpoint.url} answers what etcd does not: {error!r}") from error

    def _understood(self, text: bytes, status: int) -> Facts:
        """An answer's object. Raises ValueError where it is none, `RegisterUnreachable` and `RegisterFailed` for a refusal."""
        try:
            facts = json.loads(text)
        except ValueError:
            if status == 200:
                raise
            facts = {"message": text.decode(errors="replace")[:EXCERPT_CHARACTERS].strip()}
        if not isinstance(facts, dict):
            raise ValueError(f"{text[:EXCERPT_CHARACTERS]!r}")  # noqa: TRY004 - nobody's mistake in calling
        if status == 200 and "error" not in facts:
            return facts
        raise self._refusal(facts, status)

    def _refusal(self, facts: Facts, status: int) -> RegisterUnreachable | RegisterFailed:
        """An unary call's error is the text and its code; a stream's is an object that has them."""
        told = facts["error"] if isinstance(facts.get("error"), dict) else facts
        code = told.get("code", told.get("grpc_code"))
        why = str(told.get("message") or told.get("error") or "")
        text = f"etcd at {self.endpoint.url} refuses, status {status}, code {code}: {why}"
        of_the_moment = code in CODES_OF_THE_MOMENT if isinstance(code, int) else status in STATUSES_OF_THE_MOMENT
        if of_the_moment or any(words in why for words in WORDS_OF_THE_MOMENT):
            return RegisterUnreachable(text)
        return RegisterFailed(text)


class _Reader(io.RawIOBase):
    """What `HTTPResponse` takes for a socket: no read goes beyond the line's deadline, and all of them not beyond
    ANSWER_BYTES_MAX. It does not own the socket."""

    def __init__(self, line: Line, end: socket.socket) -> None:
        super().__init__()
        self._line = line
        self._end = end
        self._room = ANSWER_BYTES_MAX

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(self, 1 << 16)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._end.settimeout(self._line._left())
        count = self._end.recv_into(buffer)
        self._room -= count
        if self._room < 0:
            raise ValueError(f"more than {ANSWER_BYTES_MAX} bytes")
        return count
