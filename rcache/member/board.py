"""What the parts of the control plane share: the view, this node, its neighbours, the lease books, and how to wish for
something.

What it is: the state that copies, handovers, openings, leases and departure all look at, and the few steps that several of
them take.
Which thread runs it: the control plane's, but for `post`, and for what is read: the view, which is replaced as a whole.
What it owns: nothing by itself. It may lock: the lease books, for moments. What it must not know: what a part does with it.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from loguru import logger

from rcache.agreement.agreement import Agreement, Wish
from rcache.cluster.leases import Peer
from rcache.cluster.register import Register, Revised
from rcache.cluster.view import Node, NodeState, View
from rcache.cluster.wishes import Asker, WishRefused
from rcache.engine.change_stream import CommitPoint
from rcache.engine.contract import Engine
from rcache.member.neighbours import Neighbours
from rcache.member.pace import Pace
from rcache.member.roles import Roles
from rcache.peers.books import LeaseBooks, boot_ns
from rcache.peers.link import Link
from rcache.stream.append_log import AppendLog
from rcache.stream.applied import AppliedStream
from rcache.stream.policy import FsyncPolicy
from rcache.stream.terms import Terms
from rcache_client.handshake import Greeter


@dataclass(frozen=True, slots=True)
class MemberParts:
    """What a member is made of. `own_register`: the one in this node's files, which it may be given; `next_incarnation` begins
    the next one and returns the node as it is then; `terms`: which views may be followed, None where etcd keeps the register.
    """

    name: str
    node: Node
    engine: Engine
    register: Register
    own_register: Register
    greeter: Greeter
    log: AppendLog | None
    applied: AppliedStream
    next_incarnation: Callable[[], Node]
    terms: Terms | None = None


@dataclass(slots=True)
class MemberCounts:
    """What happened since the start."""

    views: int = 0
    peers_parted: int = 0
    fell_out: int = 0
    handed_over: int = 0
    broken_chains: int = 0
    errors: int = 0
    last_change: str = ""


class Board:
    """See the module. `coming`: the view that is being carried out, or the one that was last; `adding`: copies that are whole
    and waited for: the link, and the position from which on they may be counted."""

    def __init__(self, parts: MemberParts, first: Revised) -> None:
        self.parts = parts
        self.name = parts.name
        self.engine = parts.engine
        self.node = parts.node
        self.view = self.coming = first.view
        self.books = LeaseBooks(first.view.settings)
        self.counts = MemberCounts()
        self.roles = Roles(parts.engine, parts.name, parts.log, parts.applied)
        self.adding: dict[int, tuple[Link, int]] = {}
        self.plan_due_at = 0.0
        self.pace = Pace(self.now)
        self.neighbours: Neighbours
        self.agreement: Agreement
        self._events: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._wished: set[str] = set()

    # --- events

    def post(self, event: Callable[[], None]) -> None:
        """Any thread: have the control plane do this, and look at everything after it."""
        self._events.put(event)

    def next_events(self, timeout_s: float) -> None:
        """Do what was posted; blocks up to `timeout_s` for the first. What is posted meanwhile is for the next round: leases,
        and what is under way, are looked at however much comes in."""
        try:
            self._events.get(timeout=timeout_s)()
            for _ in range(self._events.qsize()):
                self._events.get_nowait()()
        except queue.Empty:
            pass

    # --- wishes

    def wish_once(
        self,
        key: str,
        what: str,
        make: Callable[[View, Asker], View],
        done: Callable[[str], None] = lambda _refused: None,
    ) -> bool:
        """Propose this, unless a wish of that key is not settled yet. `done` is called on the agreement's thread, after the
        view that settled it was posted, and after the key was let go of."""
        if key in self._wished:
            return False
        self._wished.add(key)
        wisher = self.node

        def make_as_asked(view: View, asker: Asker) -> View:
            """Not for another incarnation than the one that asked: what it knew is not so any more."""
            me = view.nodes.get(self.name)
            self.demand_own_name(view)
            if me is not None and me.incarnation > wisher.incarnation:
                raise WishRefused(f"{self.name} is incarnation {me.incarnation} by now")
            return make(view, asker)

        def settled(refused: str) -> None:
            if refused:
                logger.debug("the wish to {} was refused: {}", what, refused)
            self.post(lambda: self._let_go_of(key))
            done(refused)

        self.agreement.propose(Wish(what, make_as_asked, settled))
        return True

    def is_wished(self, key: str) -> bool:
        return key in self._wished

    @property
    def is_wishing(self) -> bool:
        """Whether anything is wished that is not settled: what is wished next waits for it."""
        return bool(self._wished)

    def _let_go_of(self, key: str) -> None:
        self._wished.discard(key)
        self.plan_due_at = 0.0

    def rest(self, kind: str) -> None:
        """A view of that kind was asked for: the next one is for later."""
        self.pace.rest(kind, len(self.view.nodes) - len(self.view.names(NodeState.LOST)))

    def plan_within(self, seconds: float) -> None:
        """What was put off is to be planned again then."""
        self.plan_due_at = min(self.plan_due_at, self.now() + seconds)

    # --- this node

    @property
    def incarnation(self) -> int:
        return self.node.incarnation

    def is_me(self, node: Node) -> bool:
        """Whether that is this node, which a name and an incarnation do not tell: a name may be used again."""
        return (node.incarnation, node.data_dir_id) == (self.node.incarnation, self.node.data_dir_id)

    def why_displaced(self, view: View) -> str:
        """Why this node's name is not its own any more; "" where it is, or is nobody's. A name belongs to a data directory."""
        me = view.nodes.get(self.name)
        if me is None or me.data_dir_id == self.node.data_dir_id:
            return ""
        return f"the name {self.name} belongs to another node by now, at {me.address}, with another data directory"

    def demand_own_name(self, view: View) -> None:
        """Raise `WishRefused` where another has this node's name: it would be granted what the other may wish. (A node stalls
        and is removed, another joins under its name; the first wakes, and parts the others from what the second has.)"""
        if why := self.why_displaced(view):
            raise WishRefused(why)

    def is_holder(self, bucket: int) -> bool:
        """By the view that is being carried out, if one is: what it takes from this node is let go of before it is shown."""
        return self.name in self.coming.placements[bucket].holders

    def is_open(self, bucket: int) -> bool:
        """Whether this node is primary of a bucket and has opened it."""
        return self.view.placements[bucket].primary == self.name and bucket not in self.roles.openings

    def opened(self, buckets: Iterable[int]) -> dict[int, int]:
        """Since which epoch each of these is its primary's: a wish about them is for that time only (`demand_opened`)."""
        return {bucket: self.view.placements[bucket].opened for bucket in buckets}

    @property
    def is_failing(self) -> bool:
        """Whether this node's log failed: it takes no change any more and opens nothing, and only hands over what it can."""
        return self.parts.log is not None and self.parts.log.failure is not None

    def incarnation_of(self, name: str) -> int:
        neighbour = self.neighbours.get(name)
        return neighbour.peer.incarnation if neighbour is not None else 0

    def links_of(self, names: Sequence[str]) -> list[Link]:
        return [neighbour.link for name in names if (neighbour := self.neighbours.get(name)) is not None]

    # --- leases and commit points

    def holds_lease(self, peer: Peer) -> bool:
        with self.books.lock:
            return self.books.held.holds(peer, boot_ns())

    def pass_lease_on(self, peer: Peer) -> None:
        """Any thread: what is left of a peer's lease is its commit point's."""
        neighbour = self.neighbours.get(peer.name)
        if neighbour is not None and neighbour.peer == peer:
            with self.books.lock:
                now_ns = boot_ns()
                until_ns = now_ns + self.books.held.left_ns(peer, now_ns)
            neighbour.link.point.lease(until_ns)

    @staticmethod
    def is_durable(view: View) -> bool:
        """Whether nothing is acknowledged before it is on disk."""
        return view.settings.fsync == FsyncPolicy.ALWAYS.value

    def follow_policy(self, view: View) -> None:
        """When the log is made durable is the cluster's to say."""
        policy = FsyncPolicy(view.settings.fsync)
        if self.parts.log is not None and self.parts.log.policy is not policy:
            self.parts.log.set_policy(policy)

    def forget_gone_links(self) -> None:
        """Copies that were being made over links that are none any more will not be counted in."""
        current = {id(neighbour.link) for neighbour in self.neighbours}
        for bucket in [bucket for bucket, (link, _) in self.adding.items() if id(link) not in current]:
            del self.adding[bucket]

    def points_of(self, bucket: int, view: View | None = None) -> list[CommitPoint]:
        """What the answers of a bucket wait for: its backups in the view, and those that are about to be (invariant 6); and the
        disk, as soon as a view says so that is being carried out."""
        view = view or self.view
        on_disk = self.parts.log is not None and (self.is_durable(view) or self.is_durable(self.coming))
        points: list[CommitPoint] = [self.engine.stream.disk] if on_disk else []
        points += [link.point for link in self.links_of(view.placements[bucket].backups)]
        adding = self.adding.get(bucket)
        if adding is not None and adding[0].point not in points:
            points.append(adding[0].point)
        return points

    def set_points(self, bucket: int, view: View | None = None) -> int:
        """Have a bucket wait for these; the stream's head of that moment."""
        return self.engine.set_commit_points(bucket, self.points_of(bucket, view))

    def now(self) -> float:
        return time.monotonic()


def demand_opened(view: View, opened: Mapping[int, int]) -> None:
    """Raise `WishRefused` where one of these was opened since."""
    for bucket, epoch in opened.items():
        if why := why_not_opened(view, bucket, epoch):
            raise WishRefused(why)


def why_not_opened(view: View, bucket: int, epoch: int) -> str:
    """Why a bucket is not what it was when it was opened in that epoch: what was known of it then is not so any more; "" where
    it is. (A copy is counted in that was whole for a former time of this primary, or a bucket handed over that is frozen no
    more.)"""
    now = view.placements[bucket].opened
    return f"bucket {bucket} was opened in epoch {now}, not {epoch}" if now != epoch else ""
