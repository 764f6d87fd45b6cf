"""Which changes a subscriber is told of, and in what form.

What it is: a filter on records, by their keys; what is left of a record where values are not asked for.
Which thread runs it: a feed's. What it owns: nothing. What it must not know: who asked.
"""

from __future__ import annotations

from dataclasses import dataclass

from rcache.records.record import HEADER, HEADER_BYTES, Head, Kind
from rcache_client.wire.feeds import Selects

_KEY_BYTES_AT = 6
_KEYED = (Kind.SET, Kind.REMOVE)


@dataclass(frozen=True, slots=True)
class Selection:
    """See the module. OPEN and FLUSH concern a whole bucket, so every subscriber of it is told of them."""

    selects: Selects
    selector: bytes
    values: bool

    @property
    def is_everything(self) -> bool:
        """Whether records are told as they are."""
        return self.selects is Selects.EVERYTHING and self.values

    def wants(self, body: bytes, head: Head) -> bool:
        if self.selects is Selects.EVERYTHING or head.kind not in _KEYED:
            return True
        start = head.start + HEADER_BYTES
        if self.selects is Selects.PREFIX:
            return body.startswith(self.selector, start, start + self._key_bytes(body, head))
        return body[start : start + self._key_bytes(body, head)] == self.selector

    @staticmethod
    def _key_bytes(body: bytes, head: Head) -> int:
        at = head.start + _KEY_BYTES_AT
        return int.from_bytes(body[at : at + 2], "big")

    def form(self, body: bytes, head: Head) -> bytes:
        """The record as it is told: without its value where that is not asked for. (An OPEN keeps what it says.)"""
        if self.values or head.kind == Kind.OPEN:
            return body[head.start : head.end]
        _, *fields = HEADER.unpack_from(body, head.start)
        key_bytes = fields[2]
        start = head.start + HEADER_BYTES
        return HEADER.pack(HEADER_BYTES + key_bytes, *fields) + body[start : start + key_bytes]
