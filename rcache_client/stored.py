"""Items as the cluster has them: bytes, flags and version, without a serializer.

What it is: the three requests that `get_or_compute` and its leases are made of.
Which thread runs it: any; every call blocks to its deadline at most and raises `RcacheError`.
What it owns: nothing. What it must not know: what the bytes mean.
"""

from __future__ import annotations

from typing import NamedTuple

from rcache_client.answers import request_layout
from rcache_client.calls import Caller
from rcache_client.wire.opcodes import Opcode
from rcache_client.wire.quick import encode_key

_CAS = request_layout(Opcode.CAS_VERSION)


class Item(NamedTuple):
    """An item; `version` is above 0."""

    flags: int
    version: int
    data: bytes


class Stored:
    """Reads and changes items by key and version."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    def read(self, name: bytes, deadline: float) -> Item | None:
        """The item; None if there is none."""
        status, values = self._caller.call(Opcode.GET, encode_key(name), deadline, name)
        return None if status else Item(*values)

    def left_ms(self, name: bytes, version: int, deadline: float) -> int | None:
        """What the item of that version has left, in milliseconds by the server's clock; 0: for ever; None: it is not there."""
        status, values = self._caller.call(Opcode.INSPECT, encode_key(name), deadline, name)
        return None if status or values[0] != version else int(values[2])

    def change(self, name: bytes, version: int, item: tuple[int, bytes], ttl_ms: int, deadline: float) -> int:
        """Put `item` (flags, data) where that version is (0: where there is none); its version, or 0 if that one is not there.

        May be sent again after `OutcomeUnknown`: what was executed has changed the version, so it cannot happen twice.
        """
        flags, data = item
        payload = _CAS.encode(version, flags, ttl_ms, name, data)
        status, values = self._caller.call(Opcode.CAS_VERSION, payload, deadline, name)
        return 0 if status else int(values[0])
