"""The hub: who subscribed to this node, and the teller that all of them share while there is one.

Which thread runs it: any; `end_unused` the housekeeper. What it owns: the teller. It may lock: its own lock, for moments; then
the teller's.
What it must not know: what a feed asked for.
"""

from __future__ import annotations

import threading
import time

from rcache.engine.contract import Engine
from rcache.feeds.applied_tail import Tapped
from rcache.feeds.teller import Teller, TellerCounts

HELD_BYTES = 16 << 20
"""How much of what was told is held for those who are behind, or come back."""

LINGER_S = 60.0
"""How long the teller goes on after the last feed: a subscriber that is started anew, or lost its connection, comes back within
that and goes on without a gap. What it costs is what a subscriber costs, reading all changes once, so it is not for ever."""

END_S = 5.0
"""How long the teller has to end."""


class NoTeller(Exception):
    """There can be no thread for it now."""


class Hub:
    """All feeds of this node. There is a teller while there is a feed, and for a while after. `applied`: where all comes by
    that is applied here."""

    def __init__(self, engine: Engine, applied: Tapped, held_bytes: int = HELD_BYTES) -> None:
        self._engine = engine
        self._applied = applied
        self._held_bytes = held_bytes
        self._lock = threading.Lock()
        self._feeds = 0
        self._unused_since = 0.0
        self._teller: Teller | None = None
        self._late: list[Teller] = []  # who did not end in time
        self._stopped = False
        self.counts = TellerCounts()

    def join(self) -> Teller | None:
        """Any thread: one more feed, and who tells it; None once this node stops. Raises `NoTeller`."""
        with self._lock:
            if self._stopped:
                return None
            if self._teller is None or self._teller.is_stopping:
                teller = Teller(self._engine, self._applied, self.counts, self._held_bytes)
                try:
                    teller.start()
                except RuntimeError as error:
                    raise NoTeller(f"nobody can tell of changes now: {error}") from None
                self._teller = teller  # once it runs, and not before
            self._feeds += 1
            return self._teller

    def leave(self) -> None:
        """Any thread: one feed fewer."""
        with self._lock:
            self._feeds -= 1
            self._unused_since = time.monotonic()

    def end_unused(self) -> None:
        """Now and then: end the teller where nobody has wanted it for a while. Blocks until it has ended, for moments."""
        with self._lock:
            if self._feeds or self._teller is None or time.monotonic() < self._unused_since + LINGER_S:
                return
            teller, self._teller = self._teller, None
        if not teller.stop(END_S):
            self._late.append(teller)

    def stop(self, timeout_s: float) -> bool:
        """Nobody is told anything any more. False if a teller took too long."""
        with self._lock:
            self._stopped = True
            tellers = self._late if self._teller is None else [*self._late, self._teller]
        ended = [teller.stop(timeout_s) for teller in tellers]
        return all(ended)

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
