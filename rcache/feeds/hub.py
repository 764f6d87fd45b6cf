"""The hub: who subscribed to this node, and the teller that all of them share while there is one.

Which thread runs it: any. What it owns: the teller. It may lock: its own lock, for moments; then the teller's.
What it must not know: what a feed asked for.
"""

from __future__ import annotations

import threading

from rcache.engine.contract import Engine
from rcache.feeds.teller import Teller, TellerCounts

HELD_BYTES = 16 << 20
"""How much of what was told is held for those who are behind, or come back."""

END_S = 5.0
"""How long the teller has to end with the last feed."""


class Hub:
    """All feeds of this node. There is a teller while there is a feed."""

    def __init__(self, engine: Engine, held_bytes: int = HELD_BYTES) -> None:
        self._engine = engine
        self._held_bytes = held_bytes
        self._lock = threading.Lock()
        self._feeds = 0
        self._teller: Teller | None = None
        self._stopped = False
        self.counts = TellerCounts()

    def join(self) -> Teller | None:
        """Any thread: one more feed, and who tells it; None once this node stops."""
        with self._lock:
            if self._stopped:
                return None
            if self._teller is None:
                self._teller = Teller(self._engine, self.counts, self._held_bytes)
                self._teller.start()
            self._feeds += 1
            return self._teller

    def leave(self) -> None:
        """Any thread: one feed fewer. With the last one the teller ends, and nothing is held any more."""
        with self._lock:
            self._feeds -= 1
            teller = self._teller if not self._feeds else None
            if teller is not None:
                self._teller = None
        if teller is not None:
            teller.stop(END_S)

    def stop(self, timeout_s: float) -> bool:
        """Nobody is told anything any more. False if the teller took too long."""
        with self._lock:
            self._stopped = True
            teller = self._teller
        return teller is None or teller.stop(timeout_s)

    def stats(self) -> dict[str, int]:
        with self._lock:
            teller, feeds = self._teller, self._feeds
        entries = held = 0
        if teller is not None:
            with teller.lock:
                entries, held = teller.held.end - teller.held.front, teller.held.bytes
        return {
            "feeds": feeds,
            "records": self.counts.records,
            "gaps": self.counts.gaps,
            "buckets_ended": self.counts.ended,
            "proofs": self.counts.proofs,
            "unhandled_errors": self.counts.errors,
            "entries_held": entries,
            "bytes_held": held,
        }
