"""Borrowing: what a change sets aside of its backups' room before it is made, and how it is come by where there is too little.

What it is: the steps of a change between its room in the stream and its memory (`change`), and the working off of debts.
Which thread runs it: workers and the housekeeper. Blocks only before a stripe lock is taken.
What it owns: nothing; the accounts are `credit`'s. What it must not know: how items are kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from rcache.engine.contract import RequestRefused
from rcache.engine.credit import ITEM_BYTES
from rcache.engine.reference.credit import ASK_IDLE_S, Account, Claim, Credits, numbers_of
from rcache_client.wire.opcodes import Status

VICTIMS_MAX = 1024
"""Victims of one change for a backup's room, beside those that its size may ask for."""

CREDIT_WAIT_S = 1.0
"""How long a backup's answer is waited for before items are evicted for its room, or the change is refused: it is there long
before, or the backup is about to be none."""


class Lender(Protocol):
    """The removals from a store, as far as they are needed here."""

    evicts: bool

    def demand_running(self) -> None:
        """Raises where changes are paused."""
        ...

    def evict_for(self, number: int, deadline_ns: int) -> int:
        """Evict an item that the backup behind this point holds. Returns what it counted, 0 where there is none. Raises
        `RequestRefused`."""
        ...

    def ask(self, number: int) -> None:
        """Have the peer of a point asked for its room."""
        ...


class Borrowing:
    """See the module."""

    def __init__(self, accounts: Credits, lender: Lender) -> None:
        self._credits = accounts
        self._lender = lender

    def take(self, points: int, whole: int, growth: Callable[[], int], deadline_ns: int) -> Claim:
        """Set aside at each point what the item takes as a `whole`; where there is not so much, what it grows by: an item can
        be overwritten where its backup is full. Raises `RequestRefused` (NO_ROOM)."""
        claim = Claim(points, whole)
        if not points or self._credits.try_take(points, whole):
            return claim
        claim.count = growth()
        if claim.count and not self._credits.try_take(points, claim.count):
            claim.points = 0
            for number in numbers_of(points):
                try:
                    self._take_at(number, claim.count, deadline_ns)
                except BaseException:
                    self._credits.give(claim.points, claim.count)
                    raise
                claim.points |= 1 << number
        claim.points = points
        return claim

    def give_rest(self, claim: Claim) -> None:
        """After the change: what of it was not used."""
        self._credits.give(claim.points, claim.count - claim.used)

    def _take_at(self, number: int, count: int, deadline_ns: int) -> None:
        """Where much is under way its answer is waited for; else items that the backup holds are evicted. In debt so many as
        count twice what the change takes: the rest of it is the housekeeper's."""
        account, until = self._credits.accounts[number], time.monotonic() + CREDIT_WAIT_S
        until = min(until, deadline_ns / 1e9)
        evicted = 0
        for _ in range(VICTIMS_MAX + count // ITEM_BYTES):
            renewals = account.renewals
            if self._credits.try_take(1 << number, count):
                return
            self._lender.demand_running()
            waits = account.renewal_comes and not (self._lender.evicts and account.is_scarce)
            if waits and self._await_renewal(number, renewals, until):
                continue
            if not self._lender.evicts:
                break
            if account.debt and evicted >= 2 * count:
                self._credits.take_in_debt(number, count)
                return
            freed = self._lender.evict_for(number, deadline_ns)
            if not freed:
                break
            evicted += freed
        raise self._refusal(number, account)

    def _await_renewal(self, number: int, renewals: int, until: float) -> bool:
        self._ask(number)
        return self._credits.await_renewal(number, renewals, until)

    def _ask(self, number: int) -> None:
        if self._credits.may_ask(number):
            self._lender.ask(number)

    def _refusal(self, number: int, account: Account) -> RequestRefused:
        self._credits.refused += 1
        self._ask(number)
        plain = "nothing that it holds is left to evict" if self._lender.evicts else "and eviction is switched off (--no-evict)"
        why = f"the backup {account.name} has no room for it (it lends {account.left} bytes more), {plain}"
        return RequestRefused(Status.NO_ROOM, why)

    def relieve(self, items_max: int) -> int:
        """See `contract.Engine`."""
        evicted = 0
        for number, account in self._credits.said().items():
            evicted += self._relieve_one(number, account, items_max)
            if account.debt or time.monotonic() - account.renewed_at > ASK_IDLE_S:
                self._ask(number)
        return evicted

    def _relieve_one(self, number: int, account: Account, items_max: int) -> int:
        count = 0
        while count < items_max and account.debt and self._lender.evicts:
            try:
                if not self._lender.evict_for(number, 0):
                    break
            except RequestRefused:
                break  # no room in the stream; the next round sees to it
            count += 1
        return count
