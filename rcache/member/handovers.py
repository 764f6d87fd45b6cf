"""Handovers: buckets that this node gives up to backups that have all of them.

What it is: freeze, wait until every backup has all of it, ask for the view in which it is the heirs'; or, if that comes to
nothing, open it again in a later view.
Which thread runs it: the control plane's.
What it owns: which buckets are on their way. What it must not know: why a bucket is to be handed over.

Invariant, by the number of `design`, section 5:
- 3: a bucket is frozen before the view is asked for, and stays so until a view says whose it is: the wish for the handover is
  this node's word that it gave the bucket up. What comes to nothing is opened again in an epoch of its own. (The answer to the
  wish is lost, the bucket is thawed, and the heir, for whom it was agreed after all, serves it too.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from loguru import logger

from rcache.cluster import wishes
from rcache.cluster.bucket_state import BucketState
from rcache.cluster.view import View
from rcache.cluster.wishes import Asker
from rcache.member.board import Board, demand_opened
from rcache.member.pace import HANDING

HANDOVER_BUCKETS = 256
"""How many buckets are handed over in one view: few views for a drain of a thousand, and none is frozen for long."""

HANDOVER_S = 5.0
"""How long frozen buckets wait for their backups to have everything before they are opened again."""


@dataclass(slots=True)
class _Handing:
    """Buckets that are frozen and on their way to their heirs. `position`: of the stream, behind all that is theirs."""

    heirs: dict[int, str]
    position: int
    since: float
    asked: bool = False
    given: bool = False


class Handovers:
    """See the module."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._handing: _Handing | None = None

    @property
    def frozen(self) -> int:
        """How many buckets are frozen."""
        return len(self._handing.heirs) if self._handing is not None else 0

    @property
    def is_coming(self) -> bool:
        """Whether buckets are frozen that are still to be asked for: no other wish goes before that one."""
        return self._handing is not None and not self._handing.asked

    def has(self, bucket: int) -> bool:
        """Whether a bucket is on its way."""
        return self._handing is not None and bucket in self._handing.heirs

    def gave_up(self, bucket: int) -> bool:
        """Whether a handover of this bucket was asked for: then every backup had all of it."""
        return self._handing is not None and self._handing.given and bucket in self._handing.heirs

    def forget(self) -> None:
        """This node is no member any more."""
        self._handing = None

    def begin(self, heirs: Mapping[int, str]) -> None:
        """Freeze some of these, unless others are on their way or were a moment ago. Nor while this node waits for the answer
        to another wish: what is frozen would wait for that, too. (When it is settled it is planned again.)"""
        board = self._board
        if not heirs or self._handing is not None or board.is_wished("hand"):
            return
        if not board.is_failing and board.is_wishing:
            return
        if not board.is_failing and (rest_s := board.pace.left_s(HANDING)):
            board.plan_within(rest_s)
            return
        states = (BucketState.PRIMARY, BucketState.FROZEN) if board.is_failing else (BucketState.PRIMARY,)
        may = [b for b in sorted(heirs) if board.is_open(b) and board.engine.state(b) in states]
        some = {bucket: heirs[bucket] for bucket in may[:HANDOVER_BUCKETS]}
        if not some:
            return
        board.rest(HANDING)
        board.roles.freeze(some)
        self._handing = _Handing(some, board.engine.stream.head, board.now())
        for link in board.links_of(self._backups(some)):
            link.watch()
        board.engine.stream.wake_readers()

    def look(self) -> None:
        """Once every backup has all of what was frozen: ask for the view in which it is the heirs'."""
        board, handing = self._board, self._handing
        if handing is None or handing.asked:
            return
        names = self._backups(handing.heirs)
        links = board.links_of(names)
        if len(links) == len(names) and all(link.acknowledged >= handing.position for link in links):
            handing.asked = handing.given = True
            heirs, opened = dict(handing.heirs), board.opened(handing.heirs)

            def make(view: View, asker: Asker) -> View:
                demand_opened(view, opened)
                return wishes.hand_over(view, asker, heirs)

            board.wish_once(
                "hand",
                f"hand {len(heirs)} buckets over",
                make,
                lambda refused: board.post(lambda: self._settled(handing, refused)),
            )
        elif board.now() - handing.since > HANDOVER_S:
            handing.asked = True
            self._take_back("the heirs did not take in the last changes in time")
        else:
            for link in links:
                link.watch()

    def follow(self, view: View) -> None:
        """A view was carried out; what is another's in it is no business of this node any more."""
        handing = self._handing
        if handing is None:
            return
        gone = [bucket for bucket in handing.heirs if view.placements[bucket].primary != self._board.name]
        self._board.counts.handed_over += len(gone)
        for bucket in gone:
            del handing.heirs[bucket]
        if not handing.heirs:
            self._handing = None

    def _backups(self, buckets: Mapping[int, str]) -> list[str]:
        placements = self._board.view.placements
        return sorted({name for bucket in buckets for name in placements[bucket].backups})

    def _settled(self, handing: _Handing, refused: str) -> None:
        """The view that settled it was carried out, or a later one: what is this node's by then has come back to it (its heir
        was started anew), and is opened by that view."""
        if self._handing is not handing:
            return
        if refused:
            self._take_back(refused)
        else:
            self._took_back()

    def _take_back(self, why: str) -> None:
        """What was frozen and is still this node's is opened anew, in a later view."""
        board, handing = self._board, self._handing
        assert handing is not None
        logger.info("{} buckets could not be handed over: {}", len(handing.heirs), why)
        if board.is_failing:  # it can open nothing: what is frozen stays so, and is handed over at the next try
            self._took_back()
            return
        opened = board.opened(handing.heirs)

        def make(view: View, asker: Asker) -> View:
            still = [
                b for b, epoch in opened.items() if (view.placements[b].primary, view.placements[b].opened) == (asker.by, epoch)
            ]
            return wishes.reopen(view, asker, still)

        board.wish_once("hand", f"open {len(opened)} buckets again", make, lambda _refused: board.post(self._took_back))

    def _took_back(self) -> None:
        self._handing = None
        self._board.plan_due_at = 0.0
