"""What a subscriber was told, held against what was acknowledged: each change once, in its bucket's order, or in a gap.

What it is: `Hearing`, of one subscriber. Which thread runs it: the writer's (`acknowledged`) and the subscriber's (`told`); it
has a lock of its own. What it owns: what is owed, what was told early, and what was wrong.
What it must not know: how events come, what is broken.

Acknowledgement and event of a change come in either order. A write of unknown outcome may be told or not.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Mapping

from rcache.records.record import show_sequence
from rcache_client import Event, Operation

EARLY_S = 120.0
"""An event whose write was not acknowledged by then never will be: its outcome is unknown."""

SPANS_KEPT = 200
WRONG_SHOWN = 5

Change = tuple[str, bytes]
"""A key and its value."""

Held = tuple[bytes | None, int]
"""A key's value, None where it was removed, and the sequence of that."""


class Hearing:
    """See the module. `wrong`: the first few violations; `held`: what the subscriber knows of each key by what it was told."""

    def __init__(self) -> None:
        self.wrong: list[str] = []
        self.events = 0
        self.gaps = 0
        self.held: dict[str, Held] = {}
        self._lock = threading.Lock()
        self._places: dict[int, int] = {}
        self._spans: dict[int, list[tuple[int, int]]] = defaultdict(list)
        self._owed: dict[int, dict[int, Change]] = defaultdict(dict)
        self._early: dict[int, dict[int, tuple[Change, float]]] = defaultdict(dict)

    def begin(self, places: Mapping[int, int]) -> None:
        """Nothing up to these places is told."""
        with self._lock:
            for bucket, place in places.items():
                self._places.setdefault(bucket, place)

    def acknowledged(self, bucket: int, version: int, change: Change) -> None:
        """A write that the writer knows to have happened."""
        with self._lock:
            early = self._early[bucket].pop(version, None)
            if early is not None:
                if early[0] != change:
                    self._say(f"bucket {bucket} {show_sequence(version)}: {change} was acknowledged, {early[0]} was told")
            elif version > self._places.get(bucket, 0):
                self._owed[bucket][version] = change
            elif not self._is_in_gap(bucket, version):
                self._say(f"bucket {bucket} {show_sequence(version)}: {change} was acknowledged, and passed by without a gap")

    def told(self, event: Event) -> None:
        with self._lock:
            bucket, place = event.bucket, self._places.get(event.bucket)
            if event.operation is Operation.GAP:
                self._take_gap(event, place)
            else:
                self.events += 1
                if place is not None and event.sequence <= place:
                    self._say(f"bucket {bucket}: {show_sequence(event.sequence)} was told after {show_sequence(place)}")
                self._take_change(event)
            self._places[bucket] = event.sequence
            self._settle(bucket, event.sequence)

    def _take_gap(self, event: Event, place: int | None) -> None:
        self.gaps += 1
        if place is not None and event.after < place:  # (a later one: nothing in between was asked for)
            after = show_sequence(event.after)
            self._say(f"bucket {event.bucket}: a gap from {after} on, where {show_sequence(place)} was told last")
        if event.sequence < event.after:
            where = f"{show_sequence(event.after)} back to {show_sequence(event.sequence)}"
            self._say(f"bucket {event.bucket}: the history went from {where}")
        spans = self._spans[event.bucket]
        spans.append((event.after, event.sequence))
        del spans[:-SPANS_KEPT]

    def _take_change(self, event: Event) -> None:
        key = event.key.decode()
        if event.operation is Operation.SET:
            self.held[key] = (event.value, event.sequence)
            change = (key, event.value or b"")
            owed = self._owed[event.bucket].pop(event.sequence, None)
            if owed is None:
                self._early[event.bucket][event.sequence] = (change, time.monotonic())
            elif owed != change:
                self._say(f"bucket {event.bucket} {show_sequence(event.sequence)}: {owed} was acknowledged, {change} was told")
        elif event.operation is not Operation.OPENED and key:
            self.held[key] = (None, event.sequence)

    def _settle(self, bucket: int, place: int) -> None:
        """What was owed up to this place has not come, and will not."""
        owed = self._owed[bucket]
        for version in [version for version in owed if version <= place]:
            change = owed.pop(version)
            if not self._is_in_gap(bucket, version):
                self._say(f"bucket {bucket} {show_sequence(version)}: {change} was acknowledged, and passed by without a gap")
        early, old = self._early[bucket], time.monotonic() - EARLY_S
        for version in [version for version, (_, at) in early.items() if at < old]:
            del early[version]

    def _is_in_gap(self, bucket: int, version: int) -> bool:
        return any(after < version <= upto for after, upto in self._spans[bucket])

    def _say(self, what: str) -> None:
        if len(self.wrong) < WRONG_SHOWN:
            self.wrong.append(what)

    # --- at the end

    def owed(self) -> list[str]:
        """What was acknowledged and is not told yet."""
        with self._lock:
            return [
                f"bucket {bucket} {show_sequence(version)}: {change}"
                for bucket, owed in self._owed.items()
                for version, change in owed.items()
            ]

    def is_unknown(self, bucket: int, key: str) -> bool:
        """Whether a gap in the key's bucket may have hidden what became of it."""
        with self._lock:
            last = self.held.get(key, (None, 0))[1]
            return any(upto > last for _, upto in self._spans[bucket])
