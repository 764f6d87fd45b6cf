"""A copy of one bucket that is being made at a peer, portion by portion, while the bucket goes on.

What it is: where such a copy stands, and the records of each portion: IMPORT_BEGIN before the first rows, IMPORT_END behind the
last. The link sends the stream up to a portion's position before its rows, and on from there after them, so a row is never
older than what was sent before it.
Which thread runs it: the link's sender makes portions, its receiver acknowledges them; never both at once, because one portion
is under way at a time. What it owns: where the copy stands. What it must not know: sockets, views.

A portion that took so long to be made, sent and taken in is followed by a rest of PACE times as long: the requests of both
nodes hardly feel it, and however much is written meanwhile it comes to its end, because it waits for nothing else.
"""

from __future__ import annotations

import time

from rcache.engine.change_stream import Portion
from rcache.engine.contract import Engine
from rcache.records.record import Cause, ImportEnd, Kind, Record, encode, encode_import_end

PORTION_BYTES = 128 << 10
"""About the most rows in one portion: under the stripe lock for some tens of microseconds."""

PACE = 0.5
"""How long to rest after a portion, measured by what it took."""


class Fill:
    """See the module. `is_whole`: its last portion was sent; `is_done`: and acknowledged."""

    def __init__(self, bucket: int) -> None:
        self.bucket = bucket
        self.due_at = 0.0
        self.is_done = False
        self.begin_anew()

    def begin_anew(self) -> None:
        """From nothing, unless the peer has all of it."""
        if self.is_done:
            return
        self.has_begun = False
        self.is_whole = False
        self.in_flight = False
        self._after: object = None
        self._began = 0
        self._rows = 0
        self._made_at = 0.0

    def next_portion(self, engine: Engine) -> Portion:
        """The next rows, as they are now."""
        self._made_at = time.monotonic()
        return engine.copy_portion(self.bucket, self._after, PORTION_BYTES)

    def body_of(self, portion: Portion) -> bytes:
        """The records to send for a portion; it is under way from then on."""
        body = b""
        if not self.has_begun:
            self._began = portion.sequence
            body = self._mark(Kind.IMPORT_BEGIN, portion)
        self._rows += portion.count
        body += portion.body
        if portion.after is None:
            body += self._mark(Kind.IMPORT_END, portion, encode_import_end(ImportEnd(self._began, self._rows)))
        self._after = portion.after
        self.has_begun = True
        self.is_whole = portion.after is None
        self.in_flight = True
        return body

    def acknowledge(self) -> None:
        """The peer has taken the portion in."""
        now = time.monotonic()
        self.due_at = now + (now - self._made_at) * PACE
        self.in_flight = False
        self.is_done = self.is_whole

    def _mark(self, kind: Kind, portion: Portion, value: bytes = b"") -> bytes:
        return encode(Record(kind, Cause.NONE, self.bucket, 0, portion.sequence, portion.time_ms, 0, b"", value))
