"""The control plane: what this node is in its cluster, and the one thread that sees to all that follows from it.

What it is: the parts of the control plane put together, and the thread that does what is posted to it and has every part look
at what may have become due. Links and heartbeats tell it what they hear (`hearing`), sessions ask (`sessions`), views are
carried out (`views`); what is here is for the service, and for who steers.
Which thread runs it: its own, `control`, from `start` to `stop`; what others call only posts an event, or reads the view,
which is replaced as a whole. Started and joined by the service.
What it owns: the board and its parts. It may lock: what its parts do.
What it must not know: sockets; how a register works; options.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from typing import Any

from loguru import logger

from rcache.agreement.agreement import Agreement, Wish
from rcache.cluster import wishes
from rcache.cluster.register import Revised
from rcache.cluster.view import NodeState, View
from rcache.cluster.wishes import Asker
from rcache.member.board import Board, MemberParts
from rcache.member.copies import Copies
from rcache.member.departure import Departure
from rcache.member.handovers import Handovers
from rcache.member.hearing import Hearing
from rcache.member.neighbours import Neighbours
from rcache.member.offers import Offers
from rcache.member.openings import Openings
from rcache.member.pausing import Pausing
from rcache.member.sessions import Sessions
from rcache.member.telling import stats_of
from rcache.member.views import Followers, Views
from rcache.member.watch import Watch
from rcache.peers.books import LeaseBooks

TICK_S = 0.05
"""How often leases and what is under way are looked at, if nothing happens before."""

END_S = 5.0
"""How long each of the threads that this one looks after has to end."""


class Member:
    """See the module. `view` is the one that was carried out last."""

    def __init__(self, parts: MemberParts, first: Revised) -> None:
        self.parts = parts
        self.board = board = Board(parts, first)
        self.openings = Openings(board)
        self.offers = Offers(board)
        self.handovers = Handovers(board)
        self.copies = Copies(board, self.handovers)
        self.watch = Watch(board)
        self.pausing = Pausing(board)
        self.departure = Departure(board)
        self._stopping = threading.Event()
        self.sessions = Sessions(board, self._stopping)
        followers = Followers(self.watch, self.copies, self.handovers, self.pausing, self.departure)
        self.views = views = Views(board, followers, self.sessions.was_shown)
        self.hearing = Hearing(board, self.copies, self.openings, self.watch, views.take_in)
        board.neighbours = Neighbours(parts.engine, parts.applied, board.books, parts.greeter, self.hearing, board.is_holder)
        board.agreement = Agreement(parts.register, parts.name, lambda seen: board.post(lambda: views.take_in(seen.view)))
        self._first = first
        self._thread = threading.Thread(target=self._run, name="control")

    # --- for the service

    def start(self) -> None:
        self.board.post(lambda: self.views.begin(self._first))
        self.board.agreement.start()
        self._thread.start()

    def stop(self, timeout_s: float) -> list[str]:
        """End: nothing is wished or carried out any more. Returns the names of threads that did not end in time."""
        self._stopping.set()
        self.sessions.was_shown()  # nobody need wait for a view any more
        self.board.post(lambda: None)
        stuck = []
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        if self._thread.is_alive():
            stuck.append("the control plane")
        if not self.board.agreement.stop(END_S):
            stuck.append("the agreement")
        if not self.board.neighbours.end_all(abandon=True):
            stuck.append("links")
        return stuck

    def leave(self) -> None:
        """Have this node hand over what it has; `departure.left` is set when it has nothing left, or is the last."""
        self.board.post(self.departure.begin)

    @property
    def name(self) -> str:
        return self.board.name

    @property
    def incarnation(self) -> int:
        return self.board.incarnation

    @property
    def view(self) -> View:
        return self.board.view

    @property
    def epoch(self) -> int:
        return self.board.view.epoch

    @property
    def books(self) -> LeaseBooks:
        return self.board.books

    @property
    def agreement(self) -> Agreement:
        return self.board.agreement

    @property
    def errors(self) -> int:
        """Unhandled errors on any of the threads of the control plane."""
        return self.board.counts.errors + self.board.agreement.errors + self.board.neighbours.errors

    @property
    def is_ready(self) -> bool:
        """Whether this node may be given work, or is leaving already."""
        node = self.view.nodes.get(self.name)
        return node is not None and node.state in (NodeState.UP, NodeState.LEAVING) and not self.views.is_out

    def reopen(self, buckets: Collection[int]) -> None:
        """Any thread: go on with these in a new epoch; their counters ran out."""

        def make(view: View, asker: Asker) -> View:
            return wishes.reopen(view, asker, [b for b in buckets if view.placements[b].primary == asker.by])

        self.board.post(lambda: self._reopen(buckets, make))

    def _reopen(self, buckets: Collection[int], make: Callable[[View, Asker], View]) -> None:
        self.board.wish_once("reopen", f"open {len(buckets)} buckets anew", make)

    def wish(self, what: str, make: Callable[[View, Asker], View], done: Callable[[str], None]) -> None:
        """Any thread: have something agreed; `done` is told on another thread why it was refused, or ""."""

        def make_as_oneself(view: View, asker: Asker) -> View:
            self.board.demand_own_name(view)
            return make(view, asker)

        self.board.agreement.propose(Wish(what, make_as_oneself, done))

    def stats(self) -> dict[str, Any]:
        return stats_of(self)

    # --- the thread

    def _run(self) -> None:
        """The thread's one catch-all: an error is logged and counted; the next view, or round, sees to what was left."""
        while not self._stopping.is_set():
            try:
                self.board.next_events(TICK_S)
                if not self._stopping.is_set():
                    self._look()
            except Exception:
                self.board.counts.errors += 1
                logger.exception("control: unhandled error")

    def _look(self) -> None:
        """One round: whatever may have become due."""
        self.board.neighbours.reap(0.0)
        self.departure.look()
        if self.views.is_out:
            if not self.departure.is_leaving:
                self.views.join_anew()
            return
        if self.openings.look():
            self.views.follow_up(self.view)
        self.watch.look()
        self.copies.look()
        self.handovers.look()
        self.pausing.look()
