"""What links and heartbeats tell the control plane of their peers.

What it is: the `Host` of the neighbours: each word becomes an event for the part of the control plane whose business it is.
Which thread runs it: the links' and the heartbeats' threads; nothing here blocks, but for `makes_progress`.
What it owns: nothing. What it must not know: what follows from what it passes on.
"""

from __future__ import annotations

from collections.abc import Callable

from loguru import logger

from rcache.cluster.leases import Peer
from rcache.cluster.view import BadView, View, decode_view
from rcache.member.board import Board
from rcache.member.copies import Copies
from rcache.member.openings import Openings
from rcache.member.watch import Watch
from rcache.peers.books import boot_ns
from rcache.peers.link import Link
from rcache_client.wire.opcodes import Status, status_name


class Hearing:
    """See the module. `take_in`: what is done, on the control plane's thread, with a view that a peer goes by."""

    def __init__(self, board: Board, copies: Copies, openings: Openings, watch: Watch, take_in: Callable[[View], None]) -> None:
        self._board = board
        self._copies = copies
        self._openings = openings
        self._watch = watch
        self._take_in = take_in

    # --- links

    def was_refused(self, link: Link, status: int, values: tuple[object, ...]) -> None:
        if status == Status.STALE_VIEW:
            assert isinstance(values[0], bytes)
            self.heard_newer_view(values[0])
        elif status == Status.SHUTTING_DOWN:
            pass  # it has left, and the view that says so is on its way; or it dies, and is parted from
        elif status == Status.NO_ROOM:
            self._board.post(lambda: self._copies.found_no_room(link))
        else:
            self._board.post(lambda: self._copies.are_broken(link, f"{status_name(status)}: {values[-1]}"))

    def came_down(self, link: Link, *, refused: bool) -> None:
        self._board.post(lambda: self._watch.came_down(link, refused=refused))

    def has_filled(self, link: Link, bucket: int) -> None:
        self._board.post(lambda: self._copies.has_filled(link, bucket))

    def has_no_room(self, link: Link) -> None:
        self._board.post(lambda: self._copies.found_no_room_for_copies(link))

    def has_moved(self, link: Link) -> None:  # noqa: ARG002
        self._board.post(lambda: None)  # the round that follows looks

    # --- heartbeats

    @property
    def epoch(self) -> int:
        return self._board.view.epoch

    @property
    def lease_s(self) -> float:
        return self._board.view.settings.lease_s

    def makes_progress(self) -> bool:
        """Whether this node's stripes can be had and its log writes: else it is silent, and others take its buckets over
        (`design`, section 5, invariant 10). Blocks where a stripe does, which is silence as well."""
        board = self._board
        mine = board.view.primaries_of(board.name)
        if mine:
            board.engine.sequence(mine[boot_ns() % len(mine)])
        return board.parts.log is None or not board.parts.log.hangs(board.view.settings.grace_s)

    def was_granted(self, peer: Peer) -> None:
        self._board.pass_lease_on(peer)

    def heard_newer_view(self, text: bytes) -> None:
        try:
            view = decode_view(text)
        except BadView as error:
            logger.error("a peer sent what is no view: {}", error)
            return
        self._board.post(lambda: self._take_in(view))

    def heard_sequences(self, peer: Peer, epoch: int, packed: bytes) -> None:
        self._board.post(lambda: self._openings.heard_sequences(peer, epoch, packed))
