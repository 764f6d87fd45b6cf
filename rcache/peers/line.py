"""A line to another node: one connection, made when it is needed, over which one thing is asked at a time.

What it is: connect, greet as a node, ask, take the answer; after any failure the connection is made anew at the next question.
Which thread runs it: one; a line is not shared.
What it owns: the connection. What it must not know: what is asked, and what follows from an answer.
"""

from __future__ import annotations

import socket
import time
from typing import Any

from rcache_client.address import Address, LookupFailed, Resolver
from rcache_client.connection import Connection, Setback, connect
from rcache_client.errors import RcacheError
from rcache_client.handshake import Greeter, Welcome
from rcache_client.wire.grammar import REQUESTS
from rcache_client.wire.opcodes import Opcode


class PeerUnreachable(Exception):
    """No answer. What was asked for may have been done unless `not_sent`: then it surely was not.

    `refused`: nobody listens there, so whoever did has stopped. `unwelcome`: somebody answered and will not have us.
    """

    def __init__(self, why: str, *, not_sent: bool, refused: bool = False, unwelcome: bool = False) -> None:
        super().__init__(why)
        self.not_sent = not_sent
        self.refused = refused
        self.unwelcome = unwelcome


class Line:
    """See the module. `connect_s`: how long connecting and greeting may take together, in seconds."""

    def __init__(self, address: Address, greeter: Greeter, connect_s: float) -> None:
        self.address = address
        self.welcome: Welcome | None = None
        self._greeter = greeter
        self._connect_s = connect_s
        self._resolver = Resolver(address)
        self._connection: Connection | None = None
        self._is_broken_off = False

    def ask(self, opcode: Opcode, *values: Any, timeout_s: float) -> tuple[int, Any]:
        """Ask, and return the answer's status and the values of its payload. Blocks up to `timeout_s`, after up to `connect_s`
        for a connection. Raises `PeerUnreachable`."""
        connection = self.connected()
        try:
            deadline = time.monotonic() + timeout_s
            return connection.exchange(opcode, REQUESTS[opcode].encode(*values), deadline, timeout_s)
        except Setback as setback:
            raise PeerUnreachable(f"{self.address}: {setback.reason}", not_sent=not setback.maybe_executed) from setback
        except RcacheError as error:
            raise PeerUnreachable(f"{self.address}: {error.what}", not_sent=True) from error

    def connected(self) -> Connection:
        """The connection, greeted. Raises `PeerUnreachable`."""
        if self._connection is None or self._connection.closed or self._connection.is_stale():
            self.close()
            self._connection = self._connect()
            if self._is_broken_off:  # while it was made, when there was nothing to break
                self.close()
                raise PeerUnreachable(f"{self.address}: broken off", not_sent=True)
        return self._connection

    def detach(self) -> socket.socket:
        """A greeted connection's socket, the caller's from now on. Raises `PeerUnreachable`."""
        connected = self.connected()
        self._connection = None
        return connected.detach()

    def break_off(self) -> None:
        """Any thread: whoever waits for an answer gets an error instead, and a connection that is being made is not used."""
        self._is_broken_off = True
        connection = self._connection
        if connection is not None:
            connection.break_off()

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _connect(self) -> Connection:
        deadline = time.monotonic() + self._connect_s
        try:
            connection = connect(self._resolver.resolve(deadline), str(self.address), deadline)
        except Setback as setback:
            refused = isinstance(setback.__cause__, ConnectionRefusedError)
            raise PeerUnreachable(f"{self.address}: {setback.reason}", not_sent=True, refused=refused) from setback
        except (LookupFailed, TimeoutError) as error:
            raise PeerUnreachable(f"{self.address}: {error}", not_sent=True) from error
        try:
            self.welcome = self._greeter.greet(connection, deadline, self._connect_s)
        except Setback as setback:
            connection.close()
            raise PeerUnreachable(f"{self.address}: {setback.reason}", not_sent=True) from setback
        except RcacheError as error:
            connection.close()
            raise PeerUnreachable(f"{self.address}: {error.what}", not_sent=True, unwelcome=True) from error
        except BaseException:
            connection.close()
            raise
        return connection
