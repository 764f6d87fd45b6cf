"""Views taken in, one after the other: what this node does when it learns of one, in the order that keeps it safe.

What it is: the steps from the view that was carried out last to a newer one, and what follows where this node is in none any
more.
Which thread runs it: the control plane's. It blocks for the log, and for what is being taken in of peers.
What it owns: whether this node is out of the view. It may lock: the lease books, then one stripe, then the stream; the books
are not held while it waits for anything.
What it must not know: how a register works; how a part of the control plane does what it is told.

Invariants, by the numbers of `design`, section 5, with what each prevents:
- 2: answers of a bucket wait for the commit points of its backups, and leave only while the leases of those hold (the engine
  looks, last of all). So a node whose lease ran out is silent, whatever this thread is doing.
- 4: the view is shown, and grants are made, under the one lock of the books. (A grant of yesterday lets the old primary answer
  beside the new one.)
The others are kept by the parts: 3 by `roles`, `openings` and `handovers`, 5 and 10 by `watch`, 6 by `copies`, 7 by `roles`,
`openings` and `rcache.peers.intake`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from loguru import logger

from rcache.cluster import wishes
from rcache.cluster.bucket_state import BucketState
from rcache.cluster.register import RegisterFailed, Revised
from rcache.cluster.view import NodeState, View
from rcache.member.board import Board
from rcache.member.copies import Copies
from rcache.member.departure import Departure
from rcache.member.handovers import Handovers
from rcache.member.pausing import Pausing
from rcache.member.roles import Turn
from rcache.member.telling import change_of
from rcache.member.watch import Watch


@dataclass(frozen=True, slots=True)
class Followers:
    """The parts of the control plane that go by views."""

    watch: Watch
    copies: Copies
    handovers: Handovers
    pausing: Pausing
    departure: Departure


class Views:
    """See the module. `was_shown` is called each time that a view was. `is_out`: this node is in no view, and joins anew."""

    def __init__(self, board: Board, followers: Followers, was_shown: Callable[[], None]) -> None:
        self.is_out = False
        self._board = board
        self._followers = followers
        self._was_shown = was_shown

    def begin(self, first: Revised) -> None:
        """The view that this node joined by. What it is primary of was recovered, and is open."""
        board = self._board
        board.neighbours.follow(first.view, board.name, board.incarnation, durable=board.is_durable(first.view))
        board.roles.fence(first.view, first.view, board.neighbours.source_of)
        board.engine.epoch = first.view.epoch
        board.agreement.learn(first)
        self._followers.pausing.follow(None, first.view)
        board.follow_policy(first.view)
        for bucket in first.view.primaries_of(board.name):
            board.set_points(bucket)
        self.follow_up(first.view)

    def take_in(self, view: View) -> None:
        """A view that this node learnt of: carry it out, if it is a newer one."""
        board, old = self._board, self._board.view
        if not self._is_to_be_followed(view):
            return
        _tell_losses(old, view)
        me = view.nodes.get(board.name)
        if me is None or me.state is NodeState.LOST or not board.is_me(me):
            self._be_out(view)
            return
        self.is_out = False
        board.counts.views += 1
        board.counts.last_change = change_of(old, view)
        logger.info("view: {}", board.counts.last_change)
        self._carry_out(old, view)

    def _is_to_be_followed(self, view: View) -> bool:
        board, old = self._board, self._board.view
        if view.epoch <= old.epoch:
            return False
        if view.cluster_id != old.cluster_id:
            logger.error("a view of another cluster, {}: refused", view.cluster_id)
            return False
        if board.parts.terms is not None and (why := board.parts.terms.follow(view)):
            logger.error("the view of epoch {} by {} is not followed: {}", view.epoch, view.proposer, why)
            return False
        return True

    def _carry_out(self, old: View, view: View) -> None:
        """In the order that `roles` gives the reasons for."""
        board = self._board
        board.coming = view
        with board.books.lock:
            turn = board.roles.fence(old, view, lambda name: self._source_of(view, name), self._followers.handovers.gave_up)
            self._followers.watch.await_words(old, view)
            if view.settings != old.settings:
                board.books.set_lengths(view.settings)
        board.follow_policy(view)
        self._abandon(turn, view)
        self._followers.pausing.follow(old, view)
        board.roles.let_go(turn, board.neighbours.pass_intakes)
        if view.manager == board.name != old.manager:
            self._keep_register(view)
        if board.is_durable(view) and not board.is_durable(old):
            self._demand_disk()
        self._show(view)
        board.roles.plan_openings(old, view)
        board.neighbours.follow(view, board.name, board.incarnation, durable=board.is_durable(view))
        board.forget_gone_links()
        self._followers.copies.follow(view)
        board.roles.follow_newcomers(view, lambda name: self._source_of(view, name))
        for bucket in view.primaries_of(board.name):
            if bucket not in board.roles.openings:
                board.set_points(bucket)
        self._followers.handovers.follow(view)
        self._followers.departure.follow(view)
        self.follow_up(view)

    def _demand_disk(self) -> None:
        """With fsync always nothing is answered any more that is not on the disk here, neither to a primary nor to a client,
        before this node says that it goes by the view that demands it: the order is reported as done when all nodes have said
        so. (What is answered between the two is lost when all nodes lose their power.) The other way it is given up only once
        the view is shown."""
        board = self._board
        board.neighbours.demand_disk()
        for bucket in board.view.primaries_of(board.name):
            if bucket not in board.roles.openings and board.engine.state(bucket) is BucketState.PRIMARY:
                board.set_points(bucket)

    def _show(self, view: View) -> None:
        """From here on frames of this view are taken in, and heartbeats of an older one are granted nothing (invariant 4)."""
        with self._board.books.lock:
            self._board.view = self._board.coming = view
        self._board.engine.epoch = view.epoch
        self._was_shown()

    def _abandon(self, turn: Turn, view: View) -> None:
        """What still waits for the backups of what was taken from this node is not known to be committed. What this node keeps
        waits for other points of the same backups before the old ones are let go of: never for none."""
        board = self._board
        names = turn.abandoned | {board.adding[bucket][0].peer.name for bucket in turn.deposed if bucket in board.adding}
        for bucket in turn.deposed:
            board.adding.pop(bucket, None)
        links = board.links_of(sorted(names))
        old = [link.replace_point() for link in links]
        for bucket in view.primaries_of(board.name) if links else ():
            board.set_points(bucket, view)
        for point in old:
            point.abandon()
        for link in links:
            board.pass_lease_on(link.peer)

    def _source_of(self, view: View, name: str) -> int:
        """Only of the incarnation that the view names."""
        neighbour = self._board.neighbours.get(name)
        return neighbour.intake.source if neighbour and neighbour.peer.incarnation == view.nodes[name].incarnation else 0

    def follow_up(self, view: View) -> None:
        """What follows from the view, or from buckets that were opened."""
        board = self._board
        if view.nodes[board.name].state is NodeState.JOINING and not board.roles.openings:
            board.wish_once("ready", "be ready", wishes.ready)
        for neighbour in board.neighbours:
            name = neighbour.peer.name
            neighbour.link.choose([b for b, placed in enumerate(view.placements) if name in placed.holders], view.epoch)
            neighbour.heartbeats.beat_now()
        board.plan_due_at = 0.0

    def _keep_register(self, view: View) -> None:
        """The register was given to this node, or taken over by it: then it holds the view already."""
        try:
            held = self._board.parts.own_register.read()
            if held is not None and held.view.epoch >= view.epoch and held.view.manager == self._board.name:
                return
            self._board.parts.own_register.begin(view)
            logger.info("this node keeps the register from epoch {} on", view.epoch)
        except (RegisterFailed, ValueError) as error:
            logger.error("the register that was given to this node cannot be kept: {}", error)

    # --- out of the view

    def _be_out(self, view: View) -> None:
        """A view in which this incarnation is no member: because it left, or because the cluster went on without it."""
        if (self._followers.departure.is_leaving and self._board.name not in view.nodes) or self.is_out:
            self._show(view)
        else:
            self.is_out = True
            self._fall_out(view)
        if why := self._board.why_displaced(view):
            self._be_displaced(view, why)

    def _be_displaced(self, view: View, why: str) -> None:
        """Somebody gave this node's name to another while it was silent. It does not take the name back, and asks no more: it
        ends. (Two nodes take one name from each other in turn, and what each is given is away with it.)"""
        if not self._followers.departure.displaced:
            log = "DISPLACED: by the view of epoch {}, {}; this node ends. To have it in the cluster, start it with an empty"
            logger.error(log + " --data-dir and another --name; its files here hold what it had", view.epoch, why)
            self._followers.departure.be_displaced(why)

    def _fall_out(self, view: View) -> None:
        """This node was silent for too long: it comes back as a new incarnation, empty. Frozen first: what is still primary
        when its points are abandoned would answer alone."""
        board, engine = self._board, self._board.engine
        board.counts.fell_out += 1
        why = "FELL OUT: in the view of epoch {} by {} this node is no member any more; it joins anew"
        logger.error(why, view.epoch, view.proposer)
        gone = [bucket for bucket in range(engine.config.buckets) if engine.state(bucket) is not BucketState.ABSENT]
        for bucket in gone:
            engine.follow(bucket, 0)
            if engine.state(bucket) is BucketState.PRIMARY:
                engine.set_state(bucket, BucketState.FROZEN)
        for neighbour in board.neighbours:
            neighbour.link.point.abandon()
        self._show(view)
        board.neighbours.pass_intakes()
        board.neighbours.end_all(abandon=True)
        board.adding.clear()
        self._followers.handovers.forget()
        board.roles.forget_all(gone)
        try:
            board.node = self._board.parts.next_incarnation()
        except OSError as error:  # it cannot come back as another, and must not as the same
            logger.error("the next incarnation could not be written down: {}", error)
            self._followers.departure.give_up(f"the data directory cannot be written: {error.strerror or error}")

    def join_anew(self) -> None:
        """Ask for a view with the next incarnation of this node. Where another has its name that is refused, and the view that
        says so ends this node (`_be_displaced`)."""
        node = self._board.node
        self._board.wish_once("join", "join anew", lambda view, asker: wishes.join(view, asker, node, recovers=False))


def _tell_losses(old: View, view: View) -> None:
    """Whatever loses data is loud, whoever wished it."""
    lost = [
        bucket
        for bucket, (was, now) in enumerate(zip(old.placements, view.placements, strict=True))
        if now.primary is None and was.primary is not None
    ]
    if lost:
        shown = ", ".join(map(str, lost[:LOST_SHOWN])) + (", ..." if len(lost) > LOST_SHOWN else "")
        had = ", ".join(sorted({str(old.placements[bucket].primary) for bucket in lost}))
        told = (
            "LOST: by the view of epoch {}, wished by {}, nobody has {} buckets any more, which {} had: {}; `rcache-cli renew"
        )
        logger.error(told + "` says what files still hold of them", view.epoch, view.proposer, len(lost), had, shown)


LOST_SHOWN = 10
"""Numbers of buckets in one line of the log."""
