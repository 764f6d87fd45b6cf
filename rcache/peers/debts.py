"""A peer that is over its memory limit: copies wait there while what it holds of this node's is evicted.

What it is: whether the copies of one link are held up (`design`, section 5, invariant 9), and for how long nothing has come of
evicting.
Which thread runs it: the link's sender. What it owns: since when that is so. What it must not know: how a copy is made.
"""

from __future__ import annotations

import time
from enum import Enum, auto

from rcache.engine.contract import Engine

HELD_UP_S = 3.0
"""How long a copy waits where its peer is over its limit and nothing that it holds is evicted for it any more; then it is given
up for a while."""

HELD_UP_LOOK_S = 0.02
"""How often it is looked whether that is so."""

RELIEVE_ITEMS = 1000
"""How many items are evicted between two looks."""


class Room(Enum):
    """Whether a peer may be sent more rows."""

    IS_THERE = auto()
    IS_AWAITED = auto()
    DOES_NOT_COME = auto()
    """The copies are to be given up. It is said once; then it is awaited anew."""


class Debt:
    """See the module."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._since = 0.0  # 0: copies are not held up
        self._least = 0

    def look(self, debt: int) -> Room:
        """`debt`: the bytes by which the peer is over its limit, as it last said. Evicts some of this node's items where there
        are any."""
        now = time.monotonic()
        if not debt:
            self._since = 0.0
            return Room.IS_THERE
        if not self._since or debt < self._least:
            self._since, self._least = now, debt
        self._engine.relieve(RELIEVE_ITEMS)
        if now - self._since > HELD_UP_S:
            self._since = 0.0
            return Room.DOES_NOT_COME
        return Room.IS_AWAITED
