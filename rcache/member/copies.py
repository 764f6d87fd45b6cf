"""Copies: what the view lacks, and of that what is this node's to do.

What it is: carries out the plan of `rcache.cluster.balance` for the buckets that this node is primary of: copies are made,
counted in once they are whole and waited for, and let go of where there is one too many.
Which thread runs it: the control plane's.
What it owns: nothing; what is under way is the links', and `Board.adding`. What it must not know: how a copy is made.

Invariant, by the number of `design`, section 5:
- 6: a copy that is whole is waited for (`set_points`) and has come past the stream's head of that moment, and this node holds
  its lease, before it asks for it to be counted; and it is waited for until that is settled. (A backup is counted in, misses a
  change that was acknowledged without it, and is promoted.)
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from loguru import logger

from rcache.cluster import wishes
from rcache.cluster.balance import Plan, plan_for, targets
from rcache.cluster.bucket_state import BucketState
from rcache.cluster.leases import Peer
from rcache.cluster.view import NodeState, View
from rcache.cluster.wishes import Asker, WishRefused
from rcache.member.board import Board, why_not_opened
from rcache.member.handovers import Handovers
from rcache.member.pace import COUNTING, DROPPING
from rcache.peers.link import Link

PLAN_EVERY_S = 1.0
"""How often it is planned anew where nothing happened: a peer may have come up."""

FULL_S = 30.0
"""How long a node that had no room is left alone."""

UNFINISHED_S = 30.0
"""How long a copy waits for its next rows: far longer than a busy peer rests, and shorter than a checkpoint waits for it."""

NOWHERE = -1
"""Before every position of the stream."""

ADD_S = 0.25
"""While more copies are being made, those that are whole wait for so long to be counted in with them, in one view."""


class Copies:
    """See the module."""

    def __init__(self, board: Board, handovers: Handovers) -> None:
        self._board = board
        self._handovers = handovers
        self._ready_since = 0.0
        self._silent_since: dict[Peer, float] = {}
        self._broken: set[int] = set()  # of what is asked to be counted in: it broke since, and is not to be
        self._whole: dict[int, Link] = {}
        self._full_until: dict[str, float] = {}

    def look(self) -> None:
        """One round."""
        if self._board.now() >= self._board.plan_due_at:
            self.plan()
            self._let_go_of_unfinished()
        self._count_in()

    # --- planning

    def plan(self) -> None:
        """Begin what is to be done, and give up what is not wanted any more. Which copies are to be made is planned with those
        that are being made here; what is to be dropped or handed over by what everybody knows. (Two primaries that count with
        copies of their own each hand the other what it has just been given, as long as the copies take.)"""
        board, view = self._board, self._board.view
        board.plan_due_at = board.now() + PLAN_EVERY_S
        if not board.roles.is_member(view):
            return
        filling = {bucket: neighbour.peer.name for neighbour in board.neighbours for bucket in neighbour.link.filling()}
        plan = plan_for(view, filling)
        wanted = self._wanted(view, plan)
        for bucket, name in filling.items():
            if wanted.get(bucket) != name and bucket not in board.adding:
                for link in board.links_of([name]):
                    link.cancel(bucket)
        for bucket, name in wanted.items():
            opened = board.is_open(bucket) and board.engine.state(bucket) is BucketState.PRIMARY
            if opened and not self._handovers.has(bucket) and bucket not in board.adding:
                for link in board.links_of([name]):
                    link.fill(bucket)
        self._find_whole()
        plan = plan_for(view) if filling else plan
        drops = {bucket: name for bucket, name in plan.drops.items() if view.placements[bucket].primary == board.name}
        self._drop(drops)
        heirs = {bucket: heir for bucket, heir in plan.handovers.items() if view.placements[bucket].primary == board.name}
        self._handovers.begin({b: heir for b, heir in heirs.items() if b not in drops and b not in board.adding})

    def _find_whole(self) -> None:
        """Copies that are whole and that nobody waits for: it was told of them while another copy of their bucket was, and that
        one came to nothing."""
        for neighbour in self._board.neighbours:
            for bucket, is_whole in neighbour.link.filling().items():
                if is_whole and bucket not in self._board.adding:
                    self._whole.setdefault(bucket, neighbour.link)

    def _drop(self, drops: Mapping[int, str]) -> None:
        """Have the view let go of spare copies, unless that was asked for a moment ago."""
        board = self._board
        if not drops or self._handovers.is_coming:
            return
        if rest_s := board.pace.left_s(DROPPING):
            board.plan_within(rest_s)
            return
        what = f"drop {len(drops)} spare copies"
        if board.wish_once("drops", what, lambda now, asker: wishes.drop_backups(now, asker, _still_spare(now, drops))):
            board.rest(DROPPING)

    def _wanted(self, view: View, plan: Plan) -> dict[int, str]:
        """The copies that this node is to make: of each bucket one at a time. What is under way comes first in a plan, and goes
        on."""
        full = {name for name, until in self._full_until.items() if self._board.now() < until}
        wanted: dict[int, str] = {}
        is_leaving = view.nodes[self._board.name].state is NodeState.LEAVING
        for bucket, name in plan.fills:
            if is_leaving and bucket in plan.handovers:
                continue  # its heir makes it, and would begin again with what was made from here
            if view.placements[bucket].primary == self._board.name and name not in full:
                wanted.setdefault(bucket, name)
        return wanted

    def follow(self, view: View) -> None:
        """A view is carried out: copies of what is another's by now, or is to be opened anew, are given up, before the links
        follow the view. (Under its epoch a last portion of a bucket that was taken from here would go out; and whoever sees a
        bucket go to another and come back in one look would count a copy in that its node let go of between the two.) A wish to
        count them that is under way is refused by `why_not_opened`."""
        board = self._board
        for neighbour in board.neighbours:
            for bucket in neighbour.link.filling():
                if view.placements[bucket].primary != board.name or bucket in board.roles.openings:
                    neighbour.link.cancel(bucket)
                    board.adding.pop(bucket, None)
                    self._whole.pop(bucket, None)

    # --- counting in

    def has_filled(self, link: Link, bucket: int) -> None:
        """A copy is whole."""
        self._whole[bucket] = link
        self._wait_for(bucket, link)

    def _wait_for(self, bucket: int, link: Link) -> None:
        """A copy that is whole is waited for from now on, if it is at a node that grants a lease: without one no answer would
        leave."""
        board = self._board
        if link not in board.links_of([link.peer.name]) or not link.is_whole(bucket):
            del self._whole[bucket]
        elif bucket in board.adding and board.adding[bucket][0] is not link:
            return  # another one may be counted in at this moment, and has to be waited for until that is settled
        elif board.is_open(bucket) and board.holds_lease(link.peer):
            del self._whole[bucket]
            board.adding[bucket] = (link, 0)
            head = board.set_points(bucket)
            board.adding[bucket] = (link, head)
            link.watch()

    def _count_in(self) -> None:
        """Copies that have come past what was there when they began to be waited for."""
        board = self._board
        for bucket, link in list(self._whole.items()):
            self._wait_for(bucket, link)
        if not board.adding or board.is_wished("add"):
            return
        ready = self._ready()
        self._give_up_silent()
        if not ready:
            self._ready_since = 0.0
            return
        self._ready_since = self._ready_since or board.now()
        more_come = any(neighbour.link.fills_left for neighbour in board.neighbours)
        if more_come and board.now() < self._ready_since + ADD_S:
            return
        if board.pace.left_s(COUNTING) and all(board.view.placements[bucket].backups for bucket in ready):
            return  # what has no backup at all does not rest
        if self._handovers.is_coming:
            return
        self._ready_since = 0.0
        board.rest(COUNTING)
        self._broken = broken = set[int]()
        opened = board.opened(ready)
        incarnations = {name: board.incarnation_of(name) for name in ready.values()}

        def make(view: View, asker: Asker) -> View:
            """One bucket that was opened since, or one node that went, does not stand in the way of the others. What is one
            copy too many with those that are counted in goes in the same view."""
            why = {bucket: _why_not(view, bucket, opened[bucket], name, incarnations[name]) for bucket, name in ready.items()}
            why |= dict.fromkeys(broken, "it is broken")
            still = {bucket: name for bucket, name in ready.items() if not why[bucket]}
            if not still:
                raise WishRefused(next(iter(why.values())))
            spare = plan_for(wishes.add_backups(view, asker, still)).drops
            return wishes.add_backups(view, asker, still, {bucket: name for bucket, name in spare.items() if bucket in still})

        board.wish_once(
            "add", f"count {len(ready)} copies in", make, lambda _refused: board.post(lambda: self._counted(list(ready)))
        )

    def _ready(self) -> dict[int, str]:
        """Of the copies that are waited for those that may be counted in, and where they are; the others are told of."""
        board, ready = self._board, dict[int, str]()
        links = {link for link, _ in board.adding.values()}
        reached = {link: link.acknowledged if board.holds_lease(link.peer) else NOWHERE for link in links}
        for bucket, (link, head) in board.adding.items():
            if reached[link] >= head:
                ready[bucket] = link.peer.name
            else:
                link.watch()
        return ready

    def _give_up_silent(self) -> None:
        """A copy at a node that grants no lease is waited for by this bucket's answers, and is none of the view's: it is let
        go of after a while. Nobody has been asked to count it, so nobody counts on it."""
        board = self._board
        silent = {link.peer for link, _ in board.adding.values() if not board.holds_lease(link.peer)}
        self._silent_since = {peer: self._silent_since.get(peer, board.now()) for peer in silent}
        patience_s = 2 * board.view.settings.grace_s
        late = {peer for peer, since in self._silent_since.items() if board.now() - since > patience_s}
        for bucket in [bucket for bucket, (link, _) in board.adding.items() if link.peer in late]:
            link, _ = board.adding.pop(bucket)
            link.cancel(bucket)
            if board.is_open(bucket):
                board.set_points(bucket)

    def _counted(self, buckets: Collection[int]) -> None:
        """The wish is settled, and the view that settled it was carried out: what it counts in is waited for by it."""
        board = self._board
        for bucket in buckets:
            adding = board.adding.pop(bucket, None)
            if adding is None:
                continue
            if board.is_open(bucket):
                board.set_points(bucket)
            if adding[0].peer.name not in board.view.placements[bucket].backups:
                adding[0].cancel(bucket)
        board.plan_due_at = 0.0

    # --- copies that others make here

    def _let_go_of_unfinished(self) -> None:
        """Copies that were begun here and that nobody goes on with: their primary has other plans, or no use for them."""
        for neighbour in self._board.neighbours:
            let_go = neighbour.intake.let_go_of_unfinished(UNFINISHED_S, self._board.roles.followed)
            if let_go:
                logger.info("{} copies that {} does not go on with are let go of", len(let_go), neighbour.peer.name)

    # --- trouble

    def found_no_room_for_copies(self, link: Link) -> None:
        """A peer has no room for the copies that are being made there. Those that are whole stay: it has room for them."""
        board, name = self._board, link.peer.name
        if link not in board.links_of([name]):
            return
        self._full_until[name] = board.now() + FULL_S
        given_up = [bucket for bucket, done in link.filling().items() if not done]
        why = "{} has no room for copies of {} buckets, which stay without a backup there; it is tried again in {:.0f} s"
        logger.error(why, name, len(given_up), FULL_S)
        for bucket in given_up:
            link.cancel(bucket)

    @property
    def without_room(self) -> dict[str, float]:
        """The nodes that had no room for copies, and for how long they are left alone, in seconds."""
        now = self._board.now()
        return {name: round(until - now, 1) for name, until in list(self._full_until.items()) if now < until}

    def found_no_room(self, link: Link) -> None:
        """A backup has no room for what it was sent: it is none any more, and is not asked again for a while (invariant 9)."""
        self._full_until[link.peer.name] = self._board.now() + FULL_S
        self.are_broken(link, "it has no room")

    def are_broken(self, link: Link, why: str) -> None:
        """A backup says that what it was sent does not fit: its copies are made anew."""
        board, name = self._board, link.peer.name
        if link not in board.links_of([name]):
            return
        board.counts.broken_chains += 1
        logger.error("the copies at {} are broken and are made anew: {}", name, why)
        for bucket in link.filling():
            if bucket in board.adding and board.is_wished("add"):
                self._broken.add(bucket)
                continue  # it may be counted in at this moment, and is waited for until that is settled (invariant 6)
            link.cancel(bucket)
            if board.adding.pop(bucket, None) is not None and board.is_open(bucket):
                board.set_points(bucket)

        def make(view: View, asker: Asker) -> View:
            held = {bucket: name for bucket in view.primaries_of(asker.by) if name in view.placements[bucket].backups}
            return wishes.drop_backups(view, asker, held)

        board.wish_once(f"drop all {name}", f"drop the copies at {name}", make)


def _why_not(view: View, bucket: int, opened: int, name: str, incarnation: int) -> str:
    """Why a copy is not to be counted in by this view; "" where it is."""
    node = view.nodes.get(name)
    if node is None or node.incarnation != incarnation:
        return f"{name} is another by now"
    if name not in targets(view):
        return f"{name} is {node.state}"
    return why_not_opened(view, bucket, opened)


def _still_spare(view: View, drops: Mapping[int, str]) -> dict[int, str]:
    """Which of these copies are spare by this view, too."""
    spare = plan_for(view).drops
    return {bucket: name for bucket, name in drops.items() if spare.get(bucket) == name}
