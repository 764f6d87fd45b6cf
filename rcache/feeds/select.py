"""Which changes a subscriber is told of, and in what form.

What it is: a filter on records, by their keys; what is left of a record where values are not asked for.
Which thread runs it: a feed's. What it owns: nothing. What it must not know: who asked.
"""

from __future__ import annotations

from dataclasses import dataclass

from rcache.records.record import HEADER_BYTES, Head, Kind, without_value
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
        """Whether every record is told, as it is or without its value."""
        return self.selects is Selects.EVERYTHING

    def wants(self, body: bytes, head: Head) -> bool:
        if self.selects is Selects.EVERYTHING or head.kind not in _KEYED:
            return True
        start = head.start + HEADER_BYTES
        if self.selects is Selects.PREFIX:
            return body.startswith(self.selector, start) and self._key_bytes(body, head) >= len(self.selector)
        return body[start : start + self._key_bytes(body, head)] == self.selector

    @staticmethod
    def _key_bytes(body: bytes, head: Head) -> int:
        at = head.start + _KEY_BYTES_AT
        return int.from_bytes(body[at : at + 2], "big")

    def form(self, body: bytes, head: Head) -> bytes:
        """The record as it is told: without its value where that is not asked for."""
        return body[head.start : head.end] if self.values else without_value(body, head)
