"""Pause: writes wait while the view says so, and for as long as it says, counted from when this node learnt of it.

Which thread runs it: the control plane's.
What it owns: when the pause ends here. What it must not know: how writes wait (the engine's).
"""

from __future__ import annotations

from loguru import logger

from rcache.cluster import wishes
from rcache.cluster.view import Pause, View
from rcache.cluster.wishes import Asker
from rcache.member.board import Board


class Pausing:
    """See the module."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._ends_at = 0.0

    @property
    def left_s(self) -> float:
        """How long writes still wait here, in seconds."""
        return max(0.0, self._ends_at - self._board.now()) if self._ends_at else 0.0

    def follow(self, old: View | None, view: View) -> None:
        """Before a view is shown: a node that goes by it has no write under way."""
        was = old.pause if old is not None else None
        if view.pause is not None and view.pause != was:
            self._ends_at = self._board.now() + view.pause.seconds
            self._board.engine.set_paused(True)
        elif view.pause is None and was is not None:
            self._ends_at = 0.0
            self._board.engine.set_paused(False)

    def look(self) -> None:
        """When the time is over this node writes again by itself, and says so to the others."""
        if not self._ends_at or self._board.now() < self._ends_at:
            return
        self._ends_at = 0.0
        self._board.engine.set_paused(False)
        logger.info("the pause is over")
        pause = self._board.view.pause
        self._board.wish_once("resume", "end the pause", lambda view, asker: _resume_from(view, asker, pause))


def _resume_from(view: View, asker: Asker, pause: Pause | None) -> View:
    """The end of that pause, and of no later one."""
    if view.pause != pause:
        raise wishes.WishRefused("that pause has ended")
    return wishes.resume(view, asker)
