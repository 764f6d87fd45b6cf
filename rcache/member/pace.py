"""Pace: how often this node asks for a view that only spreads the load better.

What it is: for each kind of such a wish, until when this node rests before it asks for the next.
Which thread runs it: the control plane's. What it owns: these times. What it must not know: what is wished.

Why: while a view is on its way some nodes have it and others do not, and what the former send the latter waits there. So a
cluster that changes its view all the time serves nobody, however little each view changes. What has to be done is taken
together instead: the rest grows with the number of nodes, so that all of them together bring about as many views a second,
however many they are (decision 0037). What cannot wait (a peer that is gone, a log that failed) does not ask here.
"""

from __future__ import annotations

from collections.abc import Callable

REST_S = 0.1
"""For each node of the cluster: ten views a second from all of them, of each kind."""

COUNTING, DROPPING, HANDING = "count in", "drop", "hand over"


class Pace:
    """See the module. `now`: seconds, as the board counts them."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._until: dict[str, float] = {}

    def rest(self, kind: str, nodes: int) -> None:
        """One was asked for, in a cluster of so many nodes."""
        self._until[kind] = self._now() + REST_S * nodes

    def left_s(self, kind: str) -> float:
        """How long there is to wait before the next one; 0.0 if it may be asked for."""
        return max(0.0, self._until.get(kind, 0.0) - self._now())
