"""The control plane: takes in views, one after the other, and has its parts see to what follows from them.

What it is: the thread that carries a view out, and the place where links, heartbeats and sessions bring what they hear.
Which thread runs it: its own, `control`, from `start` to `stop`; what others call only posts an event, or reads the view,
which is replaced as a whole. Started and joined by the service.
What it owns: the board and its parts. It may lock: the lease books, then one stripe, then the stream; the books are not held
while it waits for anything.
What it must not know: sockets; how a register works; options.

Invariants, by the numbers of `design`, section 5, with what each prevents:
- 2: answers of a bucket wait for the commit points of its backups, and leave only while the leases of those hold (the engine
  looks, last of all). So a node whose lease ran out is silent, whatever this thread is doing.
- 4: a heartbeat of an older view is answered with the newer one and grants nothing; the view is shown and grants are made
  under the one lock of the books. (A grant of yesterday lets the old primary answer beside the new one.)
The others are kept by the parts: 3 by `roles`, `openings` and `handovers`, 5 and 10 by `watch`, 6 by `copies`, 7 by `roles`,
`openings` and `rcache.peers.intake`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from typing import Any

from loguru import logger

from rcache.agreement.agreement import Agreement, Wish
from rcache.cluster import wishes
from rcache.cluster.bucket_state import BucketState
from rcache.cluster.leases import Peer
from rcache.cluster.register import RegisterFailed, Revised
from rcache.cluster.view import BadView, NodeState, View, decode_view
from rcache.cluster.wishes import Asker
from rcache.member.board import Board, MemberParts
from rcache.member.copies import Copies
from rcache.member.departure import Departure
from rcache.member.handovers import Handovers
from rcache.member.neighbours import Neighbour, Neighbours
from rcache.member.openings import Openings
from rcache.member.pausing import Pausing
from rcache.member.roles import Turn
from rcache.member.telling import change_of, stats_of
from rcache.member.watch import Watch
from rcache.peers.books import LeaseBooks, boot_ns
from rcache.peers.link import Link
from rcache_client.wire.opcodes import Status, status_name

TICK_S = 0.05
"""How often leases and what is under way are looked at, if nothing happens before."""

VIEW_WAIT_S = 1.0
"""How long a frame of a newer view waits for it."""

END_S = 5.0
"""How long each of the threads that this one looks after has to end."""


class Member:
    """See the module. `view` is the one that was carried out last."""

    def __init__(self, parts: MemberParts, first: Revised) -> None:
        self.parts = parts
        self.board = board = Board(parts, first)
        board.neighbours = Neighbours(parts.engine, parts.applied, board.books, parts.greeter, self, board.is_holder)
        board.agreement = Agreement(parts.register, parts.name, lambda revised: board.post(lambda: self._take_in(revised.view)))
        self.openings = Openings(board)
        self.handovers = Handovers(board)
        self.copies = Copies(board, self.handovers)
        self.watch = Watch(board)
        self.pausing = Pausing(board)
        self.departure = Departure(board)
        self._first = first
        self._shown = threading.Condition()
        self._stopping = threading.Event()
        self._is_out = False
        self._thread = threading.Thread(target=self._run, name="control")

    # --- for the service

    def start(self) -> None:
        self.board.post(lambda: self._begin(self._first))
        self.board.agreement.start()
        self._thread.start()

    def stop(self, timeout_s: float) -> list[str]:
        """End: nothing is wished or carried out any more. Returns the names of threads that did not end in time."""
        self._stopping.set()
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
    def lease_s(self) -> float:
        return self.board.view.settings.lease_s

    @property
    def errors(self) -> int:
        """Unhandled errors on any of the threads of the control plane."""
        return self.board.counts.errors + self.board.agreement.errors + self.board.neighbours.errors

    @property
    def is_ready(self) -> bool:
        """Whether this node may be given work, or is leaving already."""
        node = self.view.nodes.get(self.name)
        return node is not None and node.state in (NodeState.UP, NodeState.LEAVING) and not self._is_out

    def reopen(self, buckets: Collection[int]) -> None:
        """Any thread: go on with these in a new epoch; their counters ran out."""

        def make(view: View, asker: Asker) -> View:
            return wishes.reopen(view, asker, [b for b in buckets if view.placements[b].primary == asker.by])

        self.board.post(lambda: self._reopen(buckets, make))

    def _reopen(self, buckets: Collection[int], make: Callable[[View, Asker], View]) -> None:
        self.board.wish_once("reopen", f"open {len(buckets)} buckets anew", make)

    def wish(self, what: str, make: Callable[[View, Asker], View], done: Callable[[str], None]) -> None:
        """Any thread: have something agreed; `done` is told on another thread why it was refused, or ""."""
        self.board.agreement.propose(Wish(what, make, done))

    def stats(self) -> dict[str, Any]:
        return stats_of(self)

    # --- what links and heartbeats tell (on their threads)

    def was_refused(self, link: Link, status: int, values: tuple[object, ...]) -> None:
        if status == Status.STALE_VIEW:
            assert isinstance(values[0], bytes)
            self.heard_newer_view(values[0])
        elif status == Status.NO_ROOM:
            self.board.post(lambda: self.copies.found_no_room(link))
        else:
            self.board.post(lambda: self.copies.are_broken(link, f"{status_name(status)}: {values[-1]}"))

    def came_down(self, link: Link, *, refused: bool) -> None:
        self.board.post(lambda: self.watch.came_down(link, refused=refused))

    def has_filled(self, link: Link, bucket: int) -> None:
        self.board.post(lambda: self.copies.has_filled(link, bucket))

    def has_moved(self, link: Link) -> None:  # noqa: ARG002
        self.board.post(lambda: None)  # the round that follows looks

    def was_granted(self, peer: Peer) -> None:
        self.board.pass_lease_on(peer)

    def heard_newer_view(self, text: bytes) -> None:
        try:
            view = decode_view(text)
        except BadView as error:
            logger.error("a peer sent what is no view: {}", error)
            return
        self.board.post(lambda: self._take_in(view))

    def heard_sequences(self, peer: Peer, epoch: int, packed: bytes) -> None:
        self.board.post(lambda: self.openings.heard_sequences(peer, epoch, packed))

    def makes_progress(self) -> bool:
        """Whether this node's stripes can be had and its log writes: else it is silent, and others take its buckets over
        (`design`, section 5, invariant 10). Blocks where a stripe does, which is silence as well."""
        mine = self.view.primaries_of(self.name)
        if mine:
            self.parts.engine.sequence(mine[boot_ns() % len(mine)])
        return self.parts.log is None or not self.parts.log.hangs(self.view.settings.grace_s)

    # --- what sessions ask (on workers)

    def await_epoch(self, epoch: int, timeout_s: float = VIEW_WAIT_S) -> bool:
        """Block until a view of this epoch, or a later one, was carried out."""
        with self._shown:
            return self._shown.wait_for(lambda: self.epoch >= epoch or self._stopping.is_set(), timeout_s)

    def neighbour(self, name: str, incarnation: int) -> Neighbour | None:
        """The node of that name, if that is its incarnation in the view."""
        neighbour = self.board.neighbours.get(name)
        return neighbour if neighbour is not None and neighbour.peer.incarnation == incarnation else None

    def answer_heartbeat(self, name: str, epoch: int, incarnation: int) -> tuple[Status, int]:
        """What a heartbeat is granted, in ns. Under the books' lock the view does not change (invariant 4)."""
        board = self.board
        with board.books.lock:
            if epoch != self.epoch:
                return (Status.STALE_VIEW if epoch < self.epoch else Status.VIEW_AHEAD), 0
            neighbour = self.neighbour(name, incarnation)
            if neighbour is None:
                return Status.WRONG_NODE, 0
            granted_ns = board.books.given.grant(neighbour.peer, boot_ns())
        neighbour.heard_at = board.now()
        neighbour.ever_heard = True
        if epoch > neighbour.heard_epoch:
            neighbour.heard_epoch = epoch
            if board.roles.openings:
                board.post(lambda: None)
        return Status.OK, granted_ns

    def follows(self, bucket: int) -> int:
        """The number of the source that a bucket follows."""
        following = self.board.roles.following
        return following[bucket] if bucket < len(following) else 0

    def sequences_for(self, name: str) -> bytes:
        """What this node has, as a backup, of what is `name`'s: u32 bucket and u64 sequence, packed."""
        engine, packed = self.parts.engine, bytearray()
        for bucket, placed in enumerate(self.view.placements):
            if placed.primary == name and self.name in placed.backups:
                whole = engine.state(bucket) is BucketState.BACKUP
                packed += bucket.to_bytes(4, "big") + (engine.sequence(bucket) if whole else 0).to_bytes(8, "big")
        return bytes(packed)

    def note_session(self, name: str, *, began: bool) -> None:
        """A connection from another node was opened, or is gone."""
        self.board.neighbours.note_session(name, began=began)
        if not began:
            self.board.post(lambda: None)

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
        if self._is_out:
            if not self.departure.is_leaving:
                self._join_anew()
            return
        if self.openings.look():
            self._follow_up(self.view)
        self.watch.look()
        self.copies.look()
        self.handovers.look()
        self.pausing.look()

    # --- views

    def _begin(self, first: Revised) -> None:
        """The view that this node joined by. What it is primary of was recovered, and is open."""
        board = self.board
        board.neighbours.follow(first.view, board.name, board.incarnation, durable=board.is_durable(first.view))
        board.roles.fence(first.view, first.view, board.neighbours.source_of)
        board.engine.epoch = first.view.epoch
        board.agreement.learn(first)
        self.pausing.follow(None, first.view)
        board.follow_policy(first.view)
        for bucket in first.view.primaries_of(board.name):
            board.set_points(bucket)
        self._follow_up(first.view)

    def _take_in(self, view: View) -> None:
        """A newer view: carry it out, in the order that `roles` gives the reasons for."""
        board, old = self.board, self.view
        if view.epoch <= old.epoch:
            return
        if view.cluster_id != old.cluster_id:
            logger.error("a view of another cluster, {}: refused", view.cluster_id)
            return
        me = view.nodes.get(board.name)
        if me is None or me.state is NodeState.LOST or me.incarnation != board.incarnation:
            self._be_out(view)
            return
        self._is_out = False
        board.counts.views += 1
        board.counts.last_change = change_of(old, view)
        logger.info("view: {}", board.counts.last_change)
        board.coming = view
        with board.books.lock:
            turn = board.roles.fence(old, view, lambda name: self._source_of(view, name), self.handovers.gave_up)
            board.books.given.learn_view(boot_ns())
            if view.settings != old.settings:
                board.books.set_lengths(view.settings)
        board.follow_policy(view)
        self._abandon(turn, view)
        self.pausing.follow(old, view)
        board.roles.let_go(turn, board.neighbours.pass_intakes)
        if view.manager == board.name != old.manager:
            self._keep_register(view)
        self._show(view)
        board.roles.plan_openings(old, view)
        board.neighbours.follow(view, board.name, board.incarnation, durable=board.is_durable(view))
        board.forget_gone_links()
        board.roles.follow_newcomers(view, lambda name: self._source_of(view, name))
        for bucket in view.primaries_of(board.name):
            if bucket not in board.roles.openings:
                board.set_points(bucket)
        self.handovers.follow(view)
        self.departure.follow(view)
        self._follow_up(view)

    def _show(self, view: View) -> None:
        """From here on frames of this view are taken in, and heartbeats of an older one are granted nothing (invariant 4)."""
        with self.board.books.lock:
            self.board.view = self.board.coming = view
        self.board.engine.epoch = view.epoch
        with self._shown:
            self._shown.notify_all()

    def _abandon(self, turn: Turn, view: View) -> None:
        """What still waits for the backups of what was taken from this node is not known to be committed. What this node keeps
        waits for other points of the same backups before the old ones are let go of: never for none."""
        board = self.board
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
        neighbour = self.board.neighbours.get(name)
        return neighbour.intake.source if neighbour and neighbour.peer.incarnation == view.nodes[name].incarnation else 0

    def _follow_up(self, view: View) -> None:
        """What follows from the view, or from buckets that were opened."""
        board = self.board
        if view.nodes[board.name].state is NodeState.JOINING and not board.roles.openings:
            board.wish_once("ready", "be ready", wishes.ready)
        for neighbour in board.neighbours:
            name = neighbour.peer.name
            neighbour.link.choose([b for b, placed in enumerate(view.placements) if name in placed.holders], view.epoch)
            neighbour.heartbeats.beat_now()
        self.copies.plan()

    def _keep_register(self, view: View) -> None:
        """The register was given to this node, or taken over by it: then it holds the view already."""
        try:
            held = self.parts.own_register.read()
            if held is not None and held.view.epoch >= view.epoch and held.view.manager == self.name:
                return
            self.parts.own_register.begin(view)
            logger.info("this node keeps the register from epoch {} on", view.epoch)
        except (RegisterFailed, ValueError) as error:
            logger.error("the register that was given to this node cannot be kept: {}", error)

    # --- out of the view

    def _be_out(self, view: View) -> None:
        """A view in which this incarnation is no member: because it left, or because the cluster went on without it."""
        if (self.departure.is_leaving and self.name not in view.nodes) or self._is_out:
            self._show(view)
            return
        self._is_out = True
        self._fall_out(view)

    def _fall_out(self, view: View) -> None:
        """This node was silent for too long: it comes back as a new incarnation, empty. Frozen first: what is still primary
        when its points are abandoned would answer alone."""
        board, engine = self.board, self.parts.engine
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
        self.handovers.forget()
        board.roles.forget_all(gone)
        try:
            board.node = self.parts.next_incarnation()
        except OSError as error:  # it cannot come back as another, and must not as the same
            logger.error("the next incarnation could not be written down: {}", error)
            self.departure.give_up(f"the data directory cannot be written: {error.strerror or error}")

    def _join_anew(self) -> None:
        node = self.board.node
        self.board.wish_once("join", "join anew", lambda view, asker: wishes.join(view, asker, node, recovers=False))
