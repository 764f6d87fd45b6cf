"""Credit: what each backup lends this node of its room, and what this node's changes have used of it.

What it is: the accounts, one for each commit point that is a link's; `rcache.engine.native.credit` in plain Python, where the
unit and the invariants are explained. What a change does with them is in `borrowing`.
Which thread runs it: any. What it owns: the accounts and their lock, an innermost one.
What it must not know: which items there are; what a backup's memory is.

Invariants, as there:
1. `spent` passes `allowance` only where a renewal lowered that, and where a change in debt evicted twice what it uses.
2. A sample is never more than what the records up to its position have used: `added` is counted behind the placing of a record
   and read before the head; `refunded` before the placing, and read behind the head.
3. An account is begun anew with its point; what was said to its former owner is told to nobody (`serial`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from rcache.engine.change_stream import DISK, POINTS_MAX
from rcache.engine.window import Sample

ASK_EVERY_S = 0.05
"""A peer is asked for its room by itself no more often than this."""

ASK_IDLE_S = 1.0
"""And so often where nothing else has it say so."""

SCARCE_DIVISOR = 2
"""A peer that lends less than this part of the most it ever lent is short of room."""


@dataclass(slots=True)
class Account:
    """One point's. `spent`: used, and set aside by changes under way; `allowance` None: the peer has said nothing yet; `room`:
    what it said last, `most` ever; `sample`: what was used by the frame that it answered; times by time.monotonic."""

    serial: int = 0
    name: str = ""
    spent: int = 0
    added: int = 0
    refunded: int = 0
    allowance: int | None = None
    room: int = 0
    most: int = 0
    sample: int = 0
    renewals: int = 0
    renewed_at: float = 0.0
    asked_at: float = 0.0

    @property
    def debt(self) -> int:
        return 0 if self.allowance is None else max(0, self.spent - self.allowance)

    @property
    def left(self) -> int:
        return 0 if self.allowance is None else max(0, self.allowance - self.spent)

    @property
    def is_scarce(self) -> bool:
        """Whether the peer is short of room, and does not only have much under way."""
        return self.room < self.most // SCARCE_DIVISOR

    @property
    def renewal_comes(self) -> bool:
        """Whether something is in the stream whose answer will say anew what there is."""
        return self.added - self.refunded != self.sample


@dataclass(slots=True)
class Claim:
    """What a change has set aside at each of `points` (bits), and what of it was used."""

    points: int
    count: int
    used: int = 0


def numbers_of(points: int) -> list[int]:
    """The links among these points."""
    return [number for number in range(DISK + 1, POINTS_MAX) if points >> number & 1]


class Credits:
    """See the module. `head` gives the stream's."""

    def __init__(self, head: Callable[[], int]) -> None:
        self.accounts = [Account() for _ in range(POINTS_MAX)]
        self.refused = self.evicted = 0
        self._head = head
        self._serials = 0
        self._lock = threading.Lock()
        self._renewed = threading.Condition(self._lock)

    def begin(self, number: int) -> None:
        """A point was opened."""
        with self._lock:
            self._serials += 1
            self.accounts[number] = Account(self._serials)

    def serial_of(self, number: int) -> int:
        return self.accounts[number].serial

    def try_take(self, points: int, count: int) -> bool:
        """Set `count` aside at each of these points, or at none."""
        with self._lock:
            accounts = [self.accounts[number] for number in numbers_of(points)]
            if any(one.allowance is not None and one.spent + count > one.allowance for one in accounts):
                return False
            for account in accounts:
                account.spent += count
            return True

    def take_in_debt(self, number: int, count: int) -> None:
        """Invariant 1."""
        with self._lock:
            self.accounts[number].spent += count

    def use(self, claim: Claim, count: int) -> None:
        """A record that uses so much of what was set aside has its place."""
        with self._lock:
            claim.used = max(0, count)
            for number in numbers_of(claim.points):
                self.accounts[number].added += claim.used

    def give(self, points: int, count: int) -> None:
        """What was set aside and not used."""
        with self._lock:
            for number in numbers_of(points) if count else ():
                self.accounts[number].spent -= count

    def refund(self, number: int, count: int) -> None:
        """An item that counted so much is about to be evicted; negative: it was not, after all."""
        with self._lock:
            self.accounts[number].refunded += count

    def refunded(self, number: int, count: int) -> None:
        """It was, and its record has its place: others may use what it gives back."""
        with self._lock:
            self.accounts[number].spent -= count
            self.evicted += 1

    def sample(self, number: int) -> Sample:
        """What the records before the stream's head have used (invariant 2)."""
        account = self.accounts[number]
        added = account.added
        position = self._head()
        return Sample(added - account.refunded, position, account.serial)

    def renew(self, number: int, sample: Sample, room: int) -> None:
        """A backup has said what it lends beyond the frame that took this sample along (invariant 3)."""
        with self._lock:
            account = self.accounts[number]
            if account.serial != sample.serial:
                return
            account.allowance = sample.used + room
            account.room, account.most = room, max(account.most, room)
            account.sample = sample.used
            account.renewals += 1
            account.renewed_at = time.monotonic()
            self._renewed.notify_all()

    def pass_on(self, old: int, serial: int, number: int) -> None:
        """Another point of the same peer goes on with what is left of the credit. No bucket waits for it yet."""
        with self._lock:
            was, account = self.accounts[old], self.accounts[number]
            if was.serial == serial and was.allowance is not None:
                account.allowance = was.allowance - was.spent
                account.room, account.most, account.sample = was.room, was.most, -1  # a renewal may come

    def await_renewal(self, number: int, renewals: int, until: float) -> bool:
        """Wait for more renewals than these; False if none comes in time (`until` by time.monotonic)."""
        with self._lock:
            account = self.accounts[number]
            return self._renewed.wait_for(lambda: account.renewals != renewals, max(0.0, until - time.monotonic()))

    def may_ask(self, number: int) -> bool:
        """Whether a peer is to be asked for its room now; it counts as asked then."""
        with self._lock:
            account = self.accounts[number]
            if time.monotonic() - account.asked_at < ASK_EVERY_S:
                return False
            account.asked_at = time.monotonic()
            return True

    def said(self) -> dict[int, Account]:
        """The accounts of peers that have said something."""
        return {number: one for number, one in enumerate(self.accounts) if one.allowance is not None}
