"""The watch: whom this node counts on, and who counts on it; and what follows where somebody falls silent.

What it is: looks at the lease books, and asks for views without peers that are not heard of.
Which thread runs it: the control plane's.
What it owns: nothing; the books are the board's. What it must not know: what a bucket holds.

Invariants, by the numbers of `design`, section 5:
- 5: `decide` comes before a wish that takes a peer's buckets, under the lock under which grants are made, and is lifted only
  when that wish is settled. (The peer hears a grant meanwhile, and serves beside its heir.)
- 10: a backup that owes an acknowledgement for longer than `ack_s` is treated as one whose lease ran out.
"""

from __future__ import annotations

from loguru import logger

from rcache.cluster import wishes
from rcache.cluster.view import NodeState, View
from rcache.cluster.wishes import Asker
from rcache.member.board import Board
from rcache.member.neighbours import Neighbour
from rcache.peers.books import boot_ns
from rcache.peers.link import Link

FORSAKE_GRACES = 4
"""After how many graces of silence a node that has nothing is taken for lost, so that no copies are planned for it."""


class Watch:
    """See the module."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._told: list[int] = []

    def look(self) -> None:
        """One round. A node whose log failed goes on without nobody: it would be left alone with what it cannot keep."""
        board, view = self._board, self._board.view
        mine = {name for bucket in view.primaries_of(board.name) for name in view.placements[bucket].backups}
        theirs = self._primaries(view)
        for neighbour in board.neighbours:
            name = neighbour.peer.name
            why = self._why_without(neighbour) if name in mine and not board.is_failing else ""
            if not why and name in theirs and not board.is_failing and self._is_overdue(neighbour):
                why = f"{name} is silent"
            if why:
                self._part(neighbour, why)
            elif view.copies_of(name) == 0 and self._is_gone(neighbour, view):
                self._forsake(neighbour)

    def await_words(self, old: View, view: View) -> None:
        """A view is taken in: who is primary of what this node backs up, and was primary of no such thing before, gets the
        whole grace to be heard of."""
        books = self._board.books
        with books.lock:
            for name in self._primaries(view) - self._primaries(old):
                books.given.await_word(name, boot_ns())

    def _primaries(self, view: View) -> set[str]:
        """Of what this node has copies of."""
        placed = (view.placements[bucket] for bucket in view.backups_of(self._board.name))
        return {each.primary for each in placed if each.primary is not None}

    def came_down(self, link: Link, *, refused: bool) -> None:
        """A link's connection was lost, or could not be made."""
        for neighbour in self._board.neighbours:
            if neighbour.link is link:
                neighbour.down_since_refused = refused
                if refused:
                    neighbour.heartbeats.beat_now()

    # --- reasons

    def _why_without(self, neighbour: Neighbour) -> str:
        """Why this node goes on without a backup; "" while there is no reason to."""
        board, name, settings = self._board, neighbour.peer.name, self._board.view.settings
        if neighbour.link.owed_s() > settings.ack_s:
            return f"{name} owes an acknowledgement for longer than {settings.ack_s:g} s"
        if board.holds_lease(neighbour.peer):
            neighbour.ever_held = True
            if neighbour.down_since_refused and neighbour.heartbeats.refused:
                return f"nobody listens at {neighbour.address} any more"
            return ""
        if not neighbour.ever_held and board.now() - neighbour.known_since < 2 * settings.grace_s:
            return ""
        return f"the lease of {name} ran out"

    def _is_overdue(self, neighbour: Neighbour) -> bool:
        broken = neighbour.ever_heard and not self._board.neighbours.has_sessions(neighbour.peer.name)
        with self._board.books.lock:
            return self._board.books.given.is_overdue(neighbour.peer.name, boot_ns(), broken=broken)

    def _is_gone(self, neighbour: Neighbour, view: View) -> bool:
        """Whether a node that has nothing has been silent for long."""
        if view.nodes[neighbour.peer.name].state not in (NodeState.UP, NodeState.JOINING, NodeState.LEAVING):
            return False
        return self._board.now() - neighbour.heard_at > FORSAKE_GRACES * view.settings.grace_s

    # --- consequences

    def _part(self, neighbour: Neighbour, why: str) -> None:
        """Ask for a view in which this node and that one share nothing."""
        board, peer = self._board, neighbour.peer
        if board.is_wished(f"part {peer.name}"):
            return
        broken = [b for b in board.view.backups_of(board.name) if board.view.placements[b].primary == peer.name]
        broken = [b for b in broken if not board.roles.is_whole(b)]
        if broken:
            if self._told != broken:
                self._told = broken
                logger.error(
                    "NOT WHOLE: the copies of buckets {} here are not, so {} is not gone on without", broken, peer.name
                )
            return
        logger.warning("going on without {}: {}", peer.name, why)
        board.counts.peers_parted += 1
        with board.books.lock:
            board.books.given.decide(peer.name)  # invariant 5

        def make(view: View, asker: Asker) -> View:
            _demand_same(view, peer.name, peer.incarnation)
            return wishes.part(view, asker, peer.name)

        def settled(refused: str) -> None:
            with board.books.lock:
                board.books.given.settle(peer.name)
            if refused:
                logger.info("parting from {} was refused: {}", peer.name, refused)

        board.wish_once(f"part {peer.name}", f"part from {peer.name}", make, settled)

    def _forsake(self, neighbour: Neighbour) -> None:
        board, peer = self._board, neighbour.peer

        def make(view: View, asker: Asker) -> View:
            _demand_same(view, peer.name, peer.incarnation)
            return wishes.forsake(view, asker, peer.name)

        if board.wish_once(f"forsake {peer.name}", f"take {peer.name} for lost", make):
            logger.warning("{} has nothing and was not heard of for long: it is taken for lost", peer.name)


def _demand_same(view: View, name: str, incarnation: int) -> None:
    now = view.nodes.get(name)
    if now is None or now.incarnation != incarnation:
        raise wishes.WishRefused(f"{name} is another by now")
