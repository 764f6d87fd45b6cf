"""One door: an address, the connections through it, and how it stands.

What it is: where a connection is made: the name resolved, connected, greeted.
Which thread runs it: any; the lock of `servers.Doors` guards how a door stands, but for what the fast path reads.
What it owns: its pool.
What it must not know: the other doors, and what a request says.
"""

from __future__ import annotations

from enum import Enum
from time import monotonic

from rcache_client.address import Address, Endpoint, LookupFailed, Resolver
from rcache_client.connection import Connection, Setback, Trouble, connect
from rcache_client.errors import ProtocolError, Refused
from rcache_client.handshake import Greeter, Welcome
from rcache_client.pool import Pool


class DoorState(Enum):
    UP = "up"
    FAILED = "failed"
    PROBING = "probing"


class Door:
    """One address: its pool, and what `Doors` knows of it (guarded by the lock there, but for what the fast path reads).

    `leads_to`: the name of the node that was always met there; "" where it was not always the same one. `is_seed`: whether the
    client was given the address, so that whoever is met there is who the user meant.
    """

    def __init__(
        self, address: Address, greeter: Greeter, connections_max: int, connect_timeout: float, *, is_seed: bool = True
    ) -> None:
        self.address = address
        self.name = str(address)
        self.is_seed = is_seed
        self.leads_to: str | None = None
        self.state = DoorState.UP
        self.why = ""
        self.cause: BaseException | None = None
        self.retry_at = 0.0
        self.failures = 0
        self.silences = 0
        self.welcome: Welcome | None = None
        self.resolver = Resolver(address)
        self.pool = Pool(self.name, connections_max, self.connect)
        self._greeter = greeter
        self._connect_timeout = connect_timeout

    def connect(self, deadline: float) -> Connection:
        """A connection that is in no pool: resolve, connect and greet, within `connect_timeout` for all three. Raises `Setback`
        and what greeting raises."""
        limit = min(deadline, monotonic() + self._connect_timeout)
        try:
            connection = connect(self._resolve(limit), self.name, limit)
            try:
                self.welcome = welcome = self._greet(connection, limit)
            except BaseException:
                connection.close()
                raise
            self.leads_to = welcome.node_name if self.leads_to in (None, welcome.node_name) else ""
        except Setback as setback:
            setback.maybe_executed = False  # nothing of the user's has left
            setback.name_limit(f"connect_timeout of {self._connect_timeout:g} s", in_full=limit < deadline)
            raise
        return connection

    def _greet(self, connection: Connection, limit: float) -> Welcome:
        try:
            return self._greeter.greet(connection, limit, self._connect_timeout)
        except (Refused, ProtocolError) as error:
            if self.is_seed:
                raise
            raise Setback(Trouble.CLOSED, error.what) from error  # somebody else is there now: the view will say so

    def _resolve(self, deadline: float) -> list[Endpoint]:
        try:
            return self.resolver.resolve(deadline)
        except LookupFailed as error:
            raise Setback(Trouble.CLOSED, str(error)) from error.__cause__
        except TimeoutError as error:
            raise Setback(Trouble.SILENT, str(error)) from error

    def forget(self) -> None:
        """Start anew in a forked child. A probe of the parent's is due again here: the thread that made it is gone."""
        self.resolver.forget()
        self.pool.forget()
        if self.state is DoorState.PROBING:
            self.state = DoorState.FAILED
            self.retry_at = 0.0
