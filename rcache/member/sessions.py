"""What sessions with other nodes ask the control plane: what a heartbeat is granted, whom a bucket follows, what this node has.

What it is: questions that are answered from the board at once, on the thread of the session that asks.
Which thread runs it: workers of nodes' connections; `was_shown` the control plane's. Only `await_epoch` blocks.
What it owns: who waits for a view. It may lock: the lease books, for moments; one stripe.
What it must not know: sockets; how a view is carried out.

Invariant, by the number of `design`, section 5:
- 4: a heartbeat of an older view is answered with the newer one and grants nothing; the view is shown and grants are made
  under the one lock of the books. (A grant of yesterday lets the old primary answer beside the new one.)
"""

from __future__ import annotations

import threading

from rcache.cluster.bucket_state import BucketState
from rcache.cluster.leases import Peer
from rcache.member.board import Board
from rcache.member.neighbours import Neighbour
from rcache.peers.books import boot_ns
from rcache_client.wire.opcodes import Status

VIEW_WAIT_S = 1.0
"""How long a frame of a newer view waits for it."""


class Sessions:
    """See the module. `stopping`: nothing is carried out any more, and nobody need wait for it."""

    def __init__(self, board: Board, stopping: threading.Event) -> None:
        self._board = board
        self._stopping = stopping
        self._shown = threading.Condition()

    def was_shown(self) -> None:
        """A view was shown, or none will be any more: whoever waits for one goes on."""
        with self._shown:
            self._shown.notify_all()

    def await_epoch(self, epoch: int, timeout_s: float = VIEW_WAIT_S) -> bool:
        """Block until a view of this epoch, or a later one, was carried out, or the node stops."""
        with self._shown:
            return self._shown.wait_for(lambda: self._board.view.epoch >= epoch or self._stopping.is_set(), timeout_s)

    @property
    def lease_s(self) -> float:
        return self._board.view.settings.lease_s

    def neighbour(self, name: str, incarnation: int) -> Neighbour | None:
        """The node of that name, if that is its incarnation in the view."""
        neighbour = self._board.neighbours.get(name)
        return neighbour if neighbour is not None and neighbour.peer.incarnation == incarnation else None

    def answer_heartbeat(self, name: str, epoch: int, incarnation: int) -> tuple[Status, int]:
        """What a heartbeat is granted, in ns. Under the books' lock the view does not change (invariant 4)."""
        board = self._board
        with board.books.lock:
            mine, given = board.view.epoch, board.books.given
            if epoch != mine:
                given.note_other_view(Peer(name, incarnation), epoch, boot_ns(), newer=epoch > mine)
                return (Status.VIEW_AHEAD if epoch > mine else Status.STALE_VIEW), 0
            neighbour = self.neighbour(name, incarnation)
            if neighbour is None:
                return Status.WRONG_NODE, 0
            granted_ns = given.grant(neighbour.peer, boot_ns())
        neighbour.heard_at = board.now()
        neighbour.ever_heard = True
        if epoch > neighbour.heard_epoch:
            neighbour.heard_epoch = epoch
            if board.roles.openings:
                board.post(lambda: None)
        return Status.OK, granted_ns

    def follows(self, bucket: int) -> int:
        """The number of the source that a bucket follows."""
        following = self._board.roles.following
        return following[bucket] if bucket < len(following) else 0

    def sequences_for(self, name: str) -> bytes:
        """What this node has, as a backup, of what is `name`'s: u32 bucket and u64 sequence, packed."""
        board, packed = self._board, bytearray()
        for bucket, placed in enumerate(board.view.placements):
            if placed.primary == name and board.name in placed.backups:
                whole = board.engine.state(bucket) is BucketState.BACKUP
                packed += bucket.to_bytes(4, "big") + (board.engine.sequence(bucket) if whole else 0).to_bytes(8, "big")
        return bytes(packed)

    def note_session(self, name: str, *, began: bool) -> None:
        """A connection from another node was opened, or is gone."""
        self._board.neighbours.note_session(name, began=began)
        if not began:
            self._board.post(lambda: None)
