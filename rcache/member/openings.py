"""Openings: what this node is primary of by the view, and may not serve yet.

What it is: looks which of `Roles.openings` may be opened, and opens them.
Which thread runs it: the control plane's; opening blocks for the log and for room in the stream, both bounded.
What it owns: what other backups have said of their copies. What it must not know: how a view came about.

Invariants, by the numbers of `design`, section 5:
- 3: nobody of `Opening.after` can be serving it any more (`Roles` says who; here it is looked whether they can).
- 7: a backup whose copy does not end where this node's does is dropped in a view before the bucket is opened. (It would be
  told to go on from a point that it has not come to.)
"""

from __future__ import annotations

from loguru import logger

from rcache.cluster import wishes
from rcache.cluster.leases import Peer
from rcache.engine.contract import RequestRefused
from rcache.member.board import Board
from rcache.peers.books import boot_ns

PACKED_BYTES = 12
"""Of a bucket and its sequence in an answer to SEQUENCES."""


class Openings:
    """See the module."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._told: set[int] = set()
        self._lacked_room = False
        self._said: dict[str, tuple[int, dict[int, int]]] = {}

    def heard_sequences(self, peer: Peer, epoch: int, packed: bytes) -> None:
        """What a backup has of this node's buckets, as of a view: u32 bucket and u64 sequence, packed."""
        found = {
            int.from_bytes(packed[at : at + 4], "big"): int.from_bytes(packed[at + 4 : at + PACKED_BYTES], "big")
            for at in range(0, len(packed) - PACKED_BYTES + 1, PACKED_BYTES)
        }
        self._said[peer.name] = (epoch, found)

    def look(self) -> bool:
        """Open what may be. Whether anything was."""
        board = self._board
        if not board.roles.openings or board.is_failing:
            return False
        may = [bucket for bucket in board.roles.due(self._may_serve) if self._is_whole(bucket)]
        due = [bucket for bucket in may if self._backups_match(bucket)]
        if not due:
            return False
        try:
            board.roles.open(due, board.incarnation, board.points_of, board.neighbours.pass_intakes)
            self._lacked_room = False
        except RequestRefused as refusal:
            if not self._lacked_room:  # it is tried in every round
                logger.error("buckets could not be opened, and are tried again: {}", refusal.reason)
            self._lacked_room = True
        opened = sum(bucket not in board.roles.openings for bucket in due)
        if opened:
            logger.info("{} buckets opened in epoch {}", opened, board.view.epoch)
        return opened > 0

    def _is_whole(self, bucket: int) -> bool:
        """Invariant 7: a copy that is not whole is never served. The view should not have named this node; it is an error, and
        somebody has to look."""
        board = self._board
        if board.roles.openings[bucket].is_empty or board.roles.is_whole(bucket):
            return True
        if bucket not in self._told:
            self._told.add(bucket)
            logger.error("NOT WHOLE: this node is to be primary of bucket {}, and has no whole copy of it", bucket)
        return False

    def _may_serve(self, name: str, epoch: int) -> bool:
        """Whether a node may still be serving by a view before `epoch` (invariant 3)."""
        neighbour = self._board.neighbours.get(name)
        if neighbour is not None and neighbour.heard_epoch >= epoch:
            return False
        with self._board.books.lock:
            return not self._board.books.given.has_run_out(name, boot_ns())

    def _backups_match(self, bucket: int) -> bool:
        """Whether each backup stands where this node's OPEN will go on from (invariant 7); who gave it up for this view
        does."""
        board = self._board
        opening, placed = board.roles.openings[bucket], board.view.placements[bucket]
        gave_up = board.view.proposer if board.view.epoch == opening.epoch else None
        return all(self._matches(bucket, name, opening.epoch) for name in placed.backups if name != gave_up)

    def _matches(self, bucket: int, name: str, epoch: int) -> bool:
        board = self._board
        said_in, found = self._said.get(name, (0, {}))
        if said_in < epoch:
            neighbour = board.neighbours.get(name)
            if neighbour is not None:
                neighbour.heartbeats.ask_sequences()
            return False
        if found.get(bucket) == board.engine.sequence(bucket):
            return True
        if board.wish_once(
            f"drop {bucket} {name}",
            f"drop the copy of bucket {bucket} at {name}",
            lambda view, asker: wishes.drop_backups(view, asker, {bucket: name}),
        ):
            logger.warning("bucket {}: the copy of {} ends elsewhere and is made anew", bucket, name)
        return False
