"""Leases between two nodes: what a primary holds of its backups, and what a backup has granted to its primaries.

What it is: two books that are told of heartbeats and asked what follows from them. They know no clock: every call is given the
boot clock (CLOCK_BOOTTIME, ns), which goes on while a machine sleeps. Only that clocks run at about the same rate is trusted:
within RATE_MARGIN of each other.
Which thread runs it: any that holds the lock of the books, which is their owner's: the same under which grants are sent.
What it owns: the times. What it must not know: views, links, buckets, who is primary of what.

How it goes. P sends a heartbeat and notes when. B receives it, notes when, and answers with a grant: so many ns, counted from
when P *sent*. So what P counts ends before what B counts, however long either was under way. B does not ask for what is P's
before `grace` after it *received* the last heartbeat that it answered, or after it learnt of the view that says that P is to be
heard of, whichever is later; grace is longer than a lease by more than the margin.

Which view that is. One that names P, or this incarnation of it, for the first time, or that makes it primary of something that
B has a copy of, where it was primary of no such thing before (`await_word`). Other views leave P's time as it was: they come as
often as copies are counted in, and of a P that is dead nothing would be taken over until they end. But a heartbeat that comes
by another view than B's is granted nothing, so views that come quickly could make a living P look silent. Therefore the first
of each older view counts as a word of P (it is taking views in, one behind the other), and each of a newer one (it is B that is
behind); further ones of the same older view do not (P goes on without what was agreed, and has to be taken for silent). None
of this decides who may serve: that is what was granted (invariants 1 to 4), whatever view it was granted under (decision 0031).

Invariants, with what each prevents:
1. A lease ends at P no later than the grant does at B, by real time. (P serves on while B has taken over: two primaries.)
2. A grant is of two incarnations. One of P's former incarnation, or by B's, is worth nothing. (B restarts, knows of no grant
   and takes over, while P still counts on it.)
3. From `decide` to `settle` nothing is granted to a peer. (B asks to be primary, P hears a heartbeat answered meanwhile, the
   register agrees with B, and both serve.)
4. What was granted is remembered by the peer's name, under whatever view and incarnation, until it has run out. (A view makes B
   primary before P's lease, of an earlier view, has run out.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

RATE_MARGIN = 0.005
"""By how much the rates of two clocks may differ. NTP slews by 0.0005 at most; ten times that is still little to wait."""


SENT_MAX = 64
"""Heartbeats that are remembered until they are granted something: those of many leases. What is older grants nothing by
now."""


class Peer(NamedTuple):
    """Another node, as it is since its last start."""

    name: str
    incarnation: int


@dataclass(slots=True)
class _Held:
    incarnation: int
    sent: dict[int, int]  # heartbeat: when it was sent
    until_ns: int = 0


class HeldLeases:
    """What others have granted this node."""

    def __init__(self) -> None:
        self._held: dict[str, _Held] = {}

    def note_sent(self, peer: Peer, heartbeat: int, now_ns: int) -> None:
        """A heartbeat is about to be sent: before its first byte leaves."""
        held = self._held.get(peer.name)
        if held is None or held.incarnation != peer.incarnation:
            held = self._held[peer.name] = _Held(peer.incarnation, {})  # invariant 2
        held.sent[heartbeat] = now_ns
        if len(held.sent) > SENT_MAX:
            del held.sent[next(iter(held.sent))]

    def note_grant(self, peer: Peer, heartbeat: int, length_ns: int) -> None:
        """The answer to a heartbeat grants this much from when that was sent. One that was not sent to this incarnation, or
        was answered already, says nothing."""
        held = self._held.get(peer.name)
        if held is None or held.incarnation != peer.incarnation or heartbeat not in held.sent:
            return
        held.until_ns = max(held.until_ns, held.sent[heartbeat] + length_ns)
        held.sent = {later: at for later, at in held.sent.items() if later > heartbeat}

    def holds(self, peer: Peer, now_ns: int) -> bool:
        """Whether this node may count on the peer now. To be asked after the work and after the wait, before bytes leave."""
        held = self._held.get(peer.name)
        return held is not None and held.incarnation == peer.incarnation and now_ns < held.until_ns

    def left_ns(self, peer: Peer, now_ns: int) -> int:
        """How much of a lease is left; 0 if there is none."""
        return max(0, self._held[peer.name].until_ns - now_ns) if self.holds(peer, now_ns) else 0

    def forget(self, name: str) -> None:
        """This node gave up whatever it counted on this peer for."""
        self._held.pop(name, None)


@dataclass(slots=True)
class _Granted:
    """`word_ns`: from when on the peer is silent: its last heartbeat that was granted something, or what else counts as its
    word. `runs_out_ns`: when all grants to this name have run out for certain, by this clock (invariant 4). `older`: the newest
    view by which it sent a heartbeat that was behind this node's."""

    incarnation: int
    word_ns: int
    runs_out_ns: int = 0
    older: int = 0
    deciding: bool = False


class GivenGrants:
    """What this node has granted to others. Lengths in ns: `lease`, and `grace`, which is longer by more than the margin."""

    def __init__(self, lease_ns: int, grace_ns: int, now_ns: int) -> None:
        self._granted: dict[str, _Granted] = {}
        self._began_ns = now_ns
        self._lease_ns = self._grace_ns = 0
        self.set_lengths(lease_ns, grace_ns)

    def set_lengths(self, lease_ns: int, grace_ns: int) -> None:
        """For grants from now on. Raises ValueError where grace would not outlast a lease."""
        if not 0 < stretched(lease_ns) < grace_ns:
            raise ValueError(f"a grace of {grace_ns} ns does not outlast a lease of {lease_ns} ns by the margin of clocks")
        self._lease_ns, self._grace_ns = lease_ns, grace_ns

    def welcome(self, peer: Peer, now_ns: int) -> None:
        """A view names this incarnation: from now on it is the one that is granted anything, and it has the whole grace to be
        heard of. It need not be a higher one than that before it: a node that left may come back by another data directory,
        which counts from 1."""
        given = self._granted.setdefault(peer.name, _Granted(peer.incarnation, now_ns))
        given.incarnation = peer.incarnation
        given.word_ns = max(given.word_ns, now_ns)

    def await_word(self, name: str, now_ns: int) -> None:
        """A view was learnt that makes this peer primary of what is here: it has the whole grace to say so."""
        given = self._granted.setdefault(name, _Granted(0, now_ns))
        given.word_ns = max(given.word_ns, now_ns)

    def note_other_view(self, peer: Peer, epoch: int, now_ns: int, *, newer: bool) -> None:
        """A heartbeat came by another view than this node's, an older or a newer one, and is granted nothing."""
        given = self._granted.get(peer.name)
        if given is not None and given.incarnation == peer.incarnation and epoch > given.older:
            given.word_ns = now_ns
            if not newer:
                given.older = epoch

    def grant(self, peer: Peer, now_ns: int) -> int:
        """What the answer to a heartbeat received now grants; 0: nothing, and then the answer must not grant (invariant 3)."""
        given = self._granted.get(peer.name)
        if given is None:
            given = self._granted[peer.name] = _Granted(peer.incarnation, now_ns)
        if given.deciding or peer.incarnation < given.incarnation:
            return 0
        given.incarnation = peer.incarnation
        given.word_ns = now_ns
        given.runs_out_ns = max(given.runs_out_ns, now_ns + stretched(self._lease_ns))
        return self._lease_ns

    def is_overdue(self, name: str, now_ns: int, *, broken: bool = False) -> bool:
        """Whether a peer has not been heard of for so long that its buckets may be asked for. `broken`: the connection is,
        which proves nothing, but then no heartbeat is on its way any more, and only what was granted is waited for."""
        given = self._granted.get(name)
        if broken and given is not None and given.runs_out_ns:
            return now_ns >= given.runs_out_ns
        return now_ns >= (given.word_ns if given is not None else self._began_ns) + self._grace_ns

    def decide(self, name: str) -> None:
        """This node is about to ask for what is the peer's: nothing is granted to it until that is settled (invariant 3)."""
        given = self._granted.get(name)
        if given is None:
            self._granted[name] = _Granted(0, 0, deciding=True)
        else:
            given.deciding = True

    def settle(self, name: str) -> None:
        """The view that settles it was read."""
        given = self._granted.get(name)
        if given is not None:
            given.deciding = False

    def has_run_out(self, name: str, now_ns: int) -> bool:
        """Whether nothing that this node ever granted to that name can be counted on any more: only then may it serve what was
        the peer's without the peer's own word that it gave it up (invariant 4)."""
        given = self._granted.get(name)
        return given is None or now_ns >= given.runs_out_ns


def stretched(length_ns: int) -> int:
    """How long to wait by a clock that may be fast for a length that is counted by one that may be slow."""
    return length_ns + int(length_ns * 2 * RATE_MARGIN) + 1
