"""The calls on the service as a whole: the part of `Client` that asks how it is and what it does with its data.

Which thread runs it: the caller's; every call blocks to its budget at most.
What it owns: nothing.
What it must not know: connections, retries.
"""

from __future__ import annotations

import json
from time import monotonic
from typing import Any, NamedTuple

from rcache_client.answers import request_layout
from rcache_client.calls import Caller
from rcache_client.errors import ProtocolError
from rcache_client.flush import flush
from rcache_client.view import View
from rcache_client.wire.opcodes import Opcode, PersistMode

_STATS = request_layout(Opcode.STATS)
_PERSIST = request_layout(Opcode.PERSIST)

_SECTION_BYTES_MAX = 64
"""What the protocol has room for."""


class Persistence(NamedTuple):
    """Whether the server saves its data when it stops, and to which file on its machine."""

    on: bool
    savefile: str


class ServiceCalls:
    """Calls that name no key."""

    _caller: Caller

    def ping(self, *, budget: float | None = None) -> float:
        """The seconds that a request and its answer took, with all that was needed to get there."""
        began = monotonic()
        self._caller.call(Opcode.PING, b"", self._caller.deadline(budget))
        return monotonic() - began

    def flush(self, *, budget: float | None = None) -> int:
        """Remove all values, bucket by bucket, and return how many there were. Waits for its whole budget if need be.

        Every node that is the primary of something is asked, all at once.
        """
        return flush(self._caller, self._caller.deadline(budget))

    def view(self, *, budget: float | None = None) -> View:
        """Which nodes the cluster has, and who holds each bucket: the newest view that the server asked, or this client, knows.

        Raises `UnknownOpcode` where the server is too old to have one.
        """
        return self._caller.view(self._caller.deadline(budget))

    def stats(self, section: str = "", *, budget: float | None = None) -> dict[str, Any]:
        """The server's figures, by section; "" gives all sections."""
        if not isinstance(section, str):
            raise TypeError(f"section must be a str, not {section!r}")
        if len(section.encode()) > _SECTION_BYTES_MAX:
            raise ValueError(f"section must have at most {_SECTION_BYTES_MAX} bytes, not {section!r}")
        _, values = self._caller.call(Opcode.STATS, _STATS.encode(section), self._caller.deadline(budget))
        try:
            figures = json.loads(values[0])
        except ValueError as error:
            raise ProtocolError(f"the figures are not JSON: {error}", operation="STATS") from error
        if not isinstance(figures, dict):
            raise ProtocolError(f"the figures are a JSON {type(figures).__name__}, not an object", operation="STATS")
        return figures

    def persist(self, on: bool | None = None, *, budget: float | None = None) -> Persistence:
        """Switch saving at shutdown on or off, or (None) only ask; return how it stands now."""
        if on is not None and not isinstance(on, bool):
            raise TypeError(f"persist takes True, False or None, not {on!r}")
        mode = PersistMode.ASK if on is None else PersistMode(on)
        _, values = self._caller.call(Opcode.PERSIST, _PERSIST.encode(mode), self._caller.deadline(budget))
        return Persistence(values[0] == PersistMode.ON, values[1])
