"""Departure: this node leaves its cluster, because it was told to stop, or because an operator drains it.

What it is: the steps of leaving, whichever is next in the view there is: say so, wait until everything was handed over, cede
the register, be removed. The last node hands nothing over: what it has stays its own, in its files.
Which thread runs it: the control plane's; `begin` any, by an event.
What it owns: whether this node leaves, and `left`. What it must not know: how buckets move (`copies` and `handovers` see that a
leaving node is to have nothing).
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from loguru import logger

from rcache.cluster import wishes
from rcache.cluster.balance import targets
from rcache.cluster.view import NodeState, View
from rcache.member.board import Board

LOST_S = 5.0
"""How long a node that has nothing tries not to be listed as lost when it goes."""


class Departure:
    """See the module. `on_told` is called where this node is to leave and did not ask for it; `displaced`: because another has
    its name, and why that is so."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self.is_leaving = False
        self.is_last = False
        self.displaced = ""
        self._lost_since = 0.0
        self.left = threading.Event()
        self.on_told: Callable[[str], None] = lambda _why: None

    def begin(self) -> None:
        self.is_leaving = True
        self.look()

    def follow(self, view: View) -> None:
        """A view was carried out. An operator may have told this node to leave."""
        node = view.nodes.get(self._board.name)
        if not self.is_leaving and node is not None and node.state is NodeState.LEAVING:
            self.is_leaving = True
            self.on_told(f"drained by {view.proposer}")

    def look(self) -> None:
        """Whatever is next."""
        board, view = self._board, self._board.view
        me = view.nodes.get(board.name)
        if not self.is_leaving or self.left.is_set():
            return
        if me is None:
            self._has_left("out of the view")
        elif me.state is NodeState.LOST:
            self._leave_as_lost()
        elif targets(view) == (board.name,) or len(view.nodes) == 1:
            self.is_last = True
            self._has_left("it is the last")
        elif me.state in (NodeState.UP, NodeState.JOINING):
            board.wish_once("leave", "leave", lambda now, asker: wishes.leave(now, asker, asker.by))
        elif view.copies_of(board.name) == 0 and view.manager == board.name:
            self._cede(view)
        elif view.copies_of(board.name) == 0:
            board.wish_once("remove", "be removed", lambda now, asker: wishes.remove(now, asker, asker.by))

    def give_up(self, why: str) -> None:
        """This node can be no member any more, and has nothing: it stops."""
        self.is_leaving = True
        self._has_left(why)
        self.on_told(why)

    def be_displaced(self, why: str) -> None:
        """Another node has this one's name: it stops, and somebody has to look."""
        self.displaced = why
        self.give_up(why)

    def _leave_as_lost(self) -> None:
        """The cluster went on without this node while it was leaving: it has nothing, and asks not to be listed, for a
        moment."""
        board = self._board
        self._lost_since = self._lost_since or board.now()
        if board.now() - self._lost_since > LOST_S:
            self._has_left("it is taken for lost")
            return
        board.wish_once("remove", "be removed", lambda now, asker: wishes.remove(now, asker, asker.by))

    def _cede(self, view: View) -> None:
        """The register goes to another node; the wish to be removed, which is the next, is the heir's to grant, and shows that
        it keeps it."""
        name = self._board.name
        heirs = [other for other in view.names(NodeState.UP) or view.names(NodeState.LEAVING) if other != name]
        heard = [other for other in heirs if self._is_heard(other)]
        heir = (heard or heirs)[0]
        self._board.wish_once("cede", f"cede the register to {heir}", lambda now, asker: wishes.cede_register(now, asker, heir))

    def _is_heard(self, name: str) -> bool:
        """Whether a node grants this one a lease: it is there to take the register."""
        neighbour = self._board.neighbours.get(name)
        return neighbour is not None and self._board.holds_lease(neighbour.peer)

    def _has_left(self, why: str) -> None:
        logger.info("this node has left its cluster: {}", why)
        self.left.set()
