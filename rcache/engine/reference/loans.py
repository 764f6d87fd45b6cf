"""Loans: what this node, as a backup, lends of its room to those whose records it takes in.

What it is: `rcache.engine.native.loans` in plain Python, where it is explained; here room is bytes of the accounts, and an item
takes up to ITEM_FACTOR times what it counts.
Which thread runs it: any. What it owns: the loans and their lock; it may lock the memory account's.
What it must not know: what a record says; who the peers are.

Invariants, as there:
1. What was told to one and not used yet, and what was told to the others, are together no more than what is free, as long as
   there is any.
2. Items of this node's own are given none of it (`MemoryAccount.held`).
"""

from __future__ import annotations

import threading

from rcache.engine.reference.memory import MemoryAccount

ITEM_FACTOR = 9
"""The least item, of a key of one byte, takes 531 bytes with an expiry, and counts 65."""

LOAN_DIVISOR = 32
LARGEST_LOAN_DIVISOR = 4
SPARE_DIVISOR = 64
"""As in the native body."""

LARGEST_KEY_BYTES = 65535


class Loans:
    """See the module. `most` of one, as `credit_cost` counts."""

    def __init__(self, memory: MemoryAccount, value_bytes_max: int) -> None:
        largest = value_bytes_max + LARGEST_KEY_BYTES + 64
        limit = memory.limit // ITEM_FACTOR
        self.most = max(limit // LOAN_DIVISOR, min(largest, limit // LARGEST_LOAN_DIVISOR))
        self.told_none = 0
        self._memory = memory
        self._lent: dict[int, int] = {}  # by source: what was told, less what came of it since
        self._lock = threading.Lock()

    @property
    def count(self) -> int:
        return len(self._lent)

    @property
    def lent(self) -> int:
        """What is lent and not used yet."""
        with self._lock:
            return sum(max(0, lent) for lent in self._lent.values())

    @property
    def lacking(self) -> int:
        """How much the loans are below the half of what they could be, in bytes of the accounts."""
        with self._lock:
            return sum(max(0, self.most // 2 - lent) for lent in self._lent.values()) * ITEM_FACTOR

    @property
    def free(self) -> int:
        """Bytes of the accounts in no use, but for what is kept to spare; negative: so many too many are in use."""
        spare = self._memory.limit // SPARE_DIVISOR if self._lent else 0
        return self._memory.limit - spare - self._memory.used

    @property
    def is_short(self) -> bool:
        """Whether there is no more left for what is this node's own than what a peer or two have just evicted."""
        return self._memory.used + self._memory.held + self._memory.limit // SPARE_DIVISOR > self._memory.limit

    def open(self, source: int) -> None:
        with self._lock:
            self._lent[source] = 0
            self._hold_locked()

    def close(self, source: int) -> None:
        with self._lock:
            self._lent.pop(source, None)
            self._hold_locked()

    def use(self, source: int, count: int) -> None:
        """Records were applied that count so much."""
        with self._lock:
            if source in self._lent:
                self._lent[source] -= count

    def lend(self, source: int) -> int:
        """What is told: how much may be used beyond what was applied; negative: how much has to go (invariant 1)."""
        with self._lock:
            if source not in self._lent:
                return 0
            free = int(self.free / ITEM_FACTOR)
            others = sum(max(0, lent) for other, lent in self._lent.items() if other != source)
            part = int(free / len(self._lent))
            room = part
            if free >= 0:
                left = min(max(0, self._lent[source]), self.most)
                room = max(0, min(max(left, part), free - others, self.most))
            self._lent[source] = max(0, room)
            self.told_none += room <= 0
            self._hold_locked()
            return room

    def _hold_locked(self) -> None:
        """Invariant 2."""
        lent = sum(max(0, lent) for lent in self._lent.values()) * ITEM_FACTOR
        self._memory.held = lent + self._memory.limit // SPARE_DIVISOR if self._lent else 0
