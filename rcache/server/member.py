"""The control plane: this node as a member of its cluster, from one view to the next.

What it is: takes in views, carries out what they say of this node (`roles`), keeps its neighbours, watches leases, and wishes for what
the view lacks (`rcache.cluster.balance`).
Which thread runs it: its own, `control`, from `start` to `stop`; everything that others call only puts an event into its queue, or
reads the view, which is replaced as a whole. Started and joined by the service.
What it owns: the view that was taken in, roles, neighbours, and what is under way: openings, copies, handovers. It may lock: the lease
books, then one stripe, then the stream; the books are not held while it waits for anything.
What it must not know: sockets; how a register works; options.

Invariants, by the numbers of `design`, section 5, with what each prevents:
- 2: answers of a bucket wait for the commit points of its backups, and leave only while those hold (the engine looks, last of
  all). So a node whose lease ran out is silent, whatever this thread is doing.
- 4: a heartbeat of an older view is answered with the newer one and grants nothing; the view is shown and grants are made under
  the one lock of the books. (A grant of yesterday lets the old primary answer beside the new one.)
- 5: `decide` comes before a wish that takes a peer's buckets, and is lifted only when that wish is settled.
- 6: a copy that is filled is waited for (`set_commit_points`) and has come past the stream's head of that moment before this node
  asks for it to be counted, and is waited for until that is settled. (A backup is counted in, misses a change that was
  acknowledged without it, and is promoted.)
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from loguru import logger

from rcache.agreement.agreement import Agreement, Wish
from rcache.cluster import wishes
from rcache.cluster.balance import plan_for, targets
from rcache.cluster.bucket_state import BucketState
from rcache.cluster.leases import Peer
from rcache.cluster.register import Register, RegisterFailed, Revised
from rcache.cluster.view import BadView, Node, NodeState, Pause, View, decode_view
from rcache.cluster.wishes import Asker
from rcache.engine.change_stream import CommitPoint
from rcache.engine.contract import Engine, RequestRefused
from rcache.peers.books import LeaseBooks, boot_ns
from rcache.peers.link import Link
from rcache.server.neighbours import Neighbour, Neighbours
from rcache.server.roles import Roles, Turn
from rcache.stream.append_log import AppendLog
from rcache.stream.applied import AppliedStream
from rcache.stream.policy import FsyncPolicy
from rcache_client.handshake import Greeter
from rcache_client.wire.opcodes import Status, status_name

TICK_S = 0.05
"""How often leases and what is under way are looked at, if nothing happens before."""

HANDOVER_BUCKETS = 64
"""How many buckets are handed over in one view: a drain of a thousand is some sixteen views, and none is frozen for long."""

ADD_BUCKETS = 64
ADD_S = 0.25
"""Copies are counted in by so many in one view, or after so long, while more are being made."""

HANDOVER_S = 5.0
"""How long frozen buckets wait for their backups to have everything before they are opened again."""

PLAN_EVERY_S = 1.0
"""How often it is planned anew where nothing happened: a peer may have come up."""

VIEW_WAIT_S = 1.0
"""How long a frame of a newer view waits for it."""

END_S = 5.0


@dataclass(frozen=True, slots=True)
class MemberParts:
    """What a member is made of. `own_register`: the one in this node's files, which it may be given; `next_incarnation` begins the
    next one and returns the node as it is then; `keep_view` is told of each view that was carried out."""

    name: str
    node: Node
    engine: Engine
    register: Register
    own_register: Register
    greeter: Greeter
    log: AppendLog | None
    applied: AppliedStream | None
    next_incarnation: Callable[[], Node]
    keep_view: Callable[[View], None] = lambda _view: None


@dataclass(slots=True)
class Handing:
    """Buckets that are frozen and on their way to their heirs."""

    heirs: dict[int, str]
    position: int
    since: float
    asked: bool = False


@dataclass(slots=True)
class MemberCounts:
    """What happened since the start."""

    views: int = 0
    peers_parted: int = 0
    fell_out: int = 0
    handed_over: int = 0
    broken_chains: int = 0
    errors: int = 0
    last_change: str = ""


@dataclass(slots=True)
class _Underway:
    """What waits for something. `adding`: copies that are whole and waited for: bucket, link, and from which position on they may be
    counted; `wished`: kinds of wishes that are not settled."""

    adding: dict[int, tuple[Link, int]] = field(default_factory=dict)
    handing: Handing | None = None
    wished: set[str] = field(default_factory=set)
    ready_since: float = 0.0
    sequences: dict[str, tuple[int, dict[int, int]]] = field(default_factory=dict)
    leaving: bool = False


class Member:
    """See the module. `view` is the one that was taken in last."""

    def __init__(self, parts: MemberParts, first: Revised) -> None:
        self.parts = parts
        self.name = parts.name
        self.incarnation = parts.node.incarnation
        self._node = parts.node
        self.view = first.view
        self._coming = first.view
        self.counts = MemberCounts()
        self.books = LeaseBooks(first.view.settings)
        self.agreement = Agreement(
            parts.register, parts.name, lambda revised: self._events.put(lambda: self._take_in(revised.view))
        )
        self._events: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._first = first
        self._roles = Roles(parts.engine, parts.name, parts.log, parts.applied)
        self._neighbours = Neighbours(parts.engine, parts.applied, self.books, parts.greeter, self, self._is_holder)
        self._underway = _Underway()
        self._shown = threading.Condition()
        self._stopping = threading.Event()
        self._is_out = False
        self._pause_ends = 0.0
        self._plan_due_at = 0.0
        self.left = threading.Event()
        self.serving = threading.Event()
        self._thread = threading.Thread(target=self._run, name="control")

    # --- for the service

    def start(self) -> None:
        self._events.put(lambda: self._begin(self._first))
        self.agreement.start()
        self._thread.start()

    def stop(self, timeout_s: float) -> list[str]:
        """End: nothing is wished or carried out any more. Returns the names of threads that did not end in time."""
        self._stopping.set()
        self._events.put(lambda: None)
        stuck = []
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        if self._thread.is_alive():
            stuck.append("the control plane")
        if not self.agreement.stop(END_S):
            stuck.append("the agreement")
        if not self._neighbours.end_all(abandon=True):
            stuck.append("links")
        return stuck

    def leave(self) -> None:
        """Have this node hand over what it has; `left` is set when it has nothing left, or is the last."""
        self._events.put(self._begin_leaving)

    @property
    def epoch(self) -> int:
        return self.view.epoch

    @property
    def lease_s(self) -> float:
        return self.view.settings.lease_s

    @property
    def errors(self) -> int:
        return self.counts.errors + self.agreement.errors + self._neighbours.errors

    def reopen(self, buckets: Collection[int]) -> None:
        """Any thread: go on with these in a new epoch; their counters ran out."""

        def make(view: View, asker: Asker) -> View:
            return wishes.reopen(view, asker, [b for b in buckets if view.placements[b].primary == asker.by])

        self._events.put(lambda: self._wish_once("reopen", f"open {len(buckets)} buckets anew", make))

    def wish(self, what: str, make: Callable[[View, Asker], View], done: Callable[[str], None]) -> None:
        """Any thread: have something agreed; `done` is told on another thread why it was refused, or ""."""
        self.agreement.propose(Wish(what, make, done))

    # --- what links and heartbeats tell (on their threads)

    def was_refused(self, link: Link, status: int, values: tuple[object, ...]) -> None:
        if status == Status.STALE_VIEW:
            assert isinstance(values[0], bytes)
            self.heard_newer_view(values[0])
        else:
            self._events.put(lambda: self._broken(link, f"{status_name(status)}: {values[-1]}"))

    def came_down(self, link: Link, *, refused: bool) -> None:
        self._events.put(lambda: self._came_down(link, refused))

    def has_filled(self, link: Link, bucket: int) -> None:
        self._events.put(lambda: self._has_filled(link, bucket))

    def has_moved(self, link: Link) -> None:  # noqa: ARG002
        self._events.put(lambda: None)  # the round that follows looks

    def was_granted(self, peer: Peer) -> None:
        neighbour = self._neighbours.get(peer.name)
        if neighbour is not None and neighbour.peer == peer:
            with self.books.lock:
                now_ns = boot_ns()
                until_ns = now_ns + self.books.held.left_ns(peer, now_ns)
            neighbour.link.point.lease(until_ns)

    def heard_newer_view(self, text: bytes) -> None:
        try:
            view = decode_view(text)
        except BadView as error:
            logger.error("a peer sent what is no view: {}", error)
            return
        self._events.put(lambda: self._take_in(view))

    def heard_sequences(self, peer: Peer, epoch: int, packed: bytes) -> None:
        found = {
            int.from_bytes(packed[at : at + 4], "big"): int.from_bytes(packed[at + 4 : at + 12], "big")
            for at in range(0, len(packed) - 11, 12)
        }
        self._events.put(lambda: self._underway.sequences.__setitem__(peer.name, (epoch, found)))

    # --- what sessions ask (on workers)

    def await_epoch(self, epoch: int, timeout_s: float = VIEW_WAIT_S) -> bool:
        """Block until a view of this epoch, or a later one, was taken in."""
        with self._shown:
            return self._shown.wait_for(lambda: self.view.epoch >= epoch or self._stopping.is_set(), timeout_s)

    def neighbour(self, name: str, incarnation: int) -> Neighbour | None:
        """The node of that name, if that is its incarnation in the view."""
        neighbour = self._neighbours.get(name)
        return neighbour if neighbour is not None and neighbour.peer.incarnation == incarnation else None

    def answer_heartbeat(self, name: str, epoch: int, incarnation: int) -> tuple[Status, int]:
        """What a heartbeat is granted, in ns. Under the books' lock the view does not change (invariant 4)."""
        with self.books.lock:
            view = self.view
            if epoch != view.epoch:
                return (Status.STALE_VIEW if epoch < view.epoch else Status.VIEW_AHEAD), 0
            neighbour = self.neighbour(name, incarnation)
            if neighbour is None:
                return Status.WRONG_NODE, 0
            granted_ns = self.books.given.grant(neighbour.peer, boot_ns())
        neighbour.ever_heard = True
        if epoch > neighbour.heard_epoch:
            neighbour.heard_epoch = epoch
            if self._roles.openings:
                self._events.put(lambda: None)
        return Status.OK, granted_ns

    def follows(self, bucket: int) -> int:
        """The number of the source that a bucket follows."""
        return self._roles.following[bucket] if bucket < len(self._roles.following) else 0

    def sequences_for(self, name: str) -> bytes:
        """What this node has, as a backup, of what is `name`'s: u32 bucket and u64 sequence, packed."""
        engine, packed = self.parts.engine, bytearray()
        for bucket, placed in enumerate(self.view.placements):
            if placed.primary == name and self.name in placed.backups:
                whole = engine.state(bucket) is BucketState.BACKUP
                packed += bucket.to_bytes(4, "big") + (engine.sequence(bucket) if whole else 0).to_bytes(8, "big")
        return bytes(packed)

    def session_began(self, name: str) -> None:
        neighbour = self._neighbours.get(name)
        if neighbour is not None:
            neighbour.sessions += 1

    def session_ended(self, name: str) -> None:
        neighbour = self._neighbours.get(name)
        if neighbour is not None:
            neighbour.sessions -= 1
            self._events.put(lambda: None)

    def stats(self) -> dict[str, Any]:
        view, counts = self.view, self.counts
        return {
            "epoch": view.epoch,
            "term": view.term,
            "state": view.nodes[self.name].state.value if self.name in view.nodes else "not in the view",
            "manager": view.manager or "etcd",
            "nodes": len(view.nodes),
            "buckets_lacking_backups": len(view.lacking()),
            "buckets_lost": sum(placed.primary is None for placed in view.placements),
            "buckets_to_open": len(self._roles.openings),
            "buckets_frozen": len(self._underway.handing.heirs) if self._underway.handing else 0,
            "copies_under_way": sum(len(neighbour.link.filling()) for neighbour in self._neighbours),
            "views": counts.views,
            "peers_parted": counts.peers_parted,
            "fell_out": counts.fell_out,
            "handed_over": counts.handed_over,
            "broken_chains": counts.broken_chains,
            "unhandled_errors": self.errors,
            "register_unreachable": self.agreement.unreachable,
            "wishes_waiting": self.agreement.waiting,
            "last_change": counts.last_change,
            "links": {neighbour.peer.name: neighbour.link.stats() for neighbour in self._neighbours},
            "leases": {neighbour.peer.name: self._lease_stats(neighbour) for neighbour in self._neighbours},
        }

    def _lease_stats(self, neighbour: Neighbour) -> dict[str, object]:
        with self.books.lock:
            left_ns = self.books.held.left_ns(neighbour.peer, boot_ns())
        beats = neighbour.heartbeats
        return {
            "left_ms": left_ns // 1_000_000,
            "sent": beats.sent,
            "granted": beats.granted,
            "trouble": beats.trouble,
        }

    # --- the thread

    def _run(self) -> None:
        """The thread's one catch-all: an error is logged and counted; the next view, or round, sees to what was left."""
        while not self._stopping.is_set():
            try:
                try:
                    self._events.get(timeout=TICK_S)()
                    while True:
                        self._events.get_nowait()()
                except queue.Empty:
                    pass
                if not self._stopping.is_set():
                    self._look()
            except Exception:
                self.counts.errors += 1
                logger.exception("control: unhandled error")

    def _look(self) -> None:
        """One round: whatever may have become due."""
        self._open_what_is_due()
        self._watch_leases()
        self._add_what_is_whole()
        self._hand_on()
        if time.monotonic() >= self._plan_due_at:
            self._plan()
        self._neighbours.reap(0.0)
        self._see_to_leaving()
        self._see_to_pause()
        if self._is_out and not self._underway.leaving:
            self._join_anew()

    # --- views

    def _begin(self, first: Revised) -> None:
        """The view that this node joined by. What it is primary of was recovered, and is opened."""
        self._neighbours.follow(first.view, self.name, self.incarnation, durable=self._is_durable(first.view))
        self._roles.fence(first.view, first.view, self._neighbours.source_of)
        self.parts.engine.epoch = first.view.epoch
        self.agreement.learn(first)
        for bucket in first.view.primaries_of(self.name):
            self._set_points(bucket)
        self._follow_up(first.view)

    def _is_durable(self, view: View) -> bool:
        return view.settings.fsync == FsyncPolicy.ALWAYS.value

    def _is_holder(self, bucket: int) -> bool:
        """By the view that is being carried out, if one is: what it takes from this node is let go of before it is shown."""
        return self.name in self._coming.placements[bucket].holders

    def _take_in(self, view: View) -> None:
        """A newer view: carry it out, in the order that `roles` gives the reasons for."""
        old = self.view
        if view.epoch <= old.epoch:
            return
        if view.cluster_id != old.cluster_id:
            logger.error("a view of another cluster, {}: refused", view.cluster_id)
            return
        me = view.nodes.get(self.name)
        if me is None or me.state is NodeState.LOST or me.incarnation != self.incarnation:
            self._be_out(view)
            return
        self._is_out = False
        self.counts.views += 1
        self._note_change(old, view)
        self._coming = view
        with self.books.lock:
            turn = self._roles.fence(old, view, lambda name: self._source_of(view, name))
            self.books.given.learn_view(boot_ns())
            if view.settings != old.settings:
                self.books.set_lengths(view.settings)
        self._abandon(turn, view)
        self._follow_pause(old, view)
        self._roles.let_go(turn, self._neighbours.pass_intakes)
        if view.manager == self.name != old.manager:
            self._keep_register(view)
        self._show(view)
        self._roles.plan_openings(old, view)
        self._neighbours.follow(view, self.name, self.incarnation, durable=self._is_durable(view))
        self._refollow(view)
        for bucket in view.primaries_of(self.name):
            if bucket not in self._roles.openings:
                self._set_points(bucket)
        self._settle_handing(view)
        self._follow_up(view)
        self.parts.keep_view(view)

    def _show(self, view: View) -> None:
        """From here on frames of this view are taken in, and heartbeats of an older one are granted nothing (invariant 4)."""
        with self.books.lock:
            self.view = self._coming = view
        self.parts.engine.epoch = view.epoch
        with self._shown:
            self._shown.notify_all()

    def _abandon(self, turn: Turn, view: View) -> None:
        """What still waits for the backups of what was taken from this node is not known to be committed. What this node keeps
        waits for other points of the same backups before the old ones are let go of: never for none."""
        adding = self._underway.adding
        names = turn.abandoned | {adding[bucket][0].peer.name for bucket in turn.deposed if bucket in adding}
        for bucket in turn.deposed:
            adding.pop(bucket, None)
        links = [neighbour.link for neighbour in self._neighbours if neighbour.peer.name in names]
        old = [link.replace_point() for link in links]
        for bucket in view.primaries_of(self.name) if links else ():
            self._set_points(bucket, view)
        for point in old:
            point.abandon()
        for link in links:
            self.was_granted(link.peer)  # what is left of its lease is the new point's

    def _source_of(self, view: View, name: str) -> int:
        """Only of the incarnation that the view names."""
        neighbour = self._neighbours.get(name)
        return neighbour.intake.source if neighbour and neighbour.peer.incarnation == view.nodes[name].incarnation else 0

    def _refollow(self, view: View) -> None:
        """Buckets of nodes that were not known before."""
        for bucket, placed in enumerate(view.placements):
            if placed.primary not in (None, self.name) and not self._roles.following[bucket]:
                source = self._source_of(view, placed.primary or "")
                self._roles.following[bucket] = source
                self.parts.engine.follow(bucket, source)

    def _note_change(self, old: View, view: View) -> None:
        """One line for each change of view: by whom, and what it changed."""
        parts = []
        for name, node in view.nodes.items():
            was = old.nodes.get(name)
            if was is None:
                parts.append(f"{name} came ({node.state})")
            elif was.incarnation != node.incarnation:
                parts.append(f"{name} came back ({node.state})")
            elif was.state is not node.state:
                parts.append(f"{name} is {node.state}")
        parts += [f"{name} is gone" for name in old.nodes if name not in view.nodes]
        moved = sum(a.primary != b.primary for a, b in zip(old.placements, view.placements, strict=True))
        added = sum(len(set(b.backups) - set(a.backups)) for a, b in zip(old.placements, view.placements, strict=True))
        dropped = sum(len(set(a.holders) - set(b.holders)) for a, b in zip(old.placements, view.placements, strict=True))
        for count, what in ((moved, "change their primary"), (added, "backups more"), (dropped, "copies fewer")):
            if count:
                parts.append(f"{count} {what}")
        if old.pause != view.pause:
            parts.append(f"paused by {view.pause.by}: {view.pause.reason}" if view.pause else "resumed")
        if old.manager != view.manager:
            parts.append(f"{view.manager} keeps the register")
        if old.settings != view.settings:
            parts.append("other settings")
        self.counts.last_change = f"epoch {view.epoch} by {view.proposer}: {', '.join(parts) or 'nothing of note'}"
        logger.info("view: {}", self.counts.last_change)

    def _follow_up(self, view: View) -> None:
        """What follows from the view that was just taken in."""
        me = view.nodes[self.name]
        if me.state is NodeState.JOINING and not self._roles.openings:
            self._wish_once("ready", "be ready", wishes.ready)
        for neighbour in self._neighbours:
            self._choose(neighbour)
            neighbour.heartbeats.beat_now()
        self._plan()

    def _choose(self, neighbour: Neighbour) -> None:
        """Its link brings what it has a copy of; a superset of what this node is primary of, so that nothing is passed by when
        a role changes."""
        name = neighbour.peer.name
        view = self.view
        neighbour.link.choose([b for b, placed in enumerate(view.placements) if name in placed.holders], view.epoch)

    def _be_out(self, view: View) -> None:
        """A view in which this incarnation is no member: because it left, or because the cluster went on without it."""
        if (self._underway.leaving and self.name not in view.nodes) or self._is_out:
            with self.books.lock:
                self.view = view
            with self._shown:
                self._shown.notify_all()
            return
        self._is_out = True
        self._fall_out(view)

    def _fall_out(self, view: View) -> None:
        """This node was silent for too long: it comes back as a new incarnation, empty."""
        self.counts.fell_out += 1
        logger.error(
            "FELL OUT: in the view of epoch {} by {} this node is no member any more; it joins anew", view.epoch, view.proposer
        )
        engine = self.parts.engine
        gone = [bucket for bucket in range(engine.config.buckets) if engine.state(bucket) is not BucketState.ABSENT]
        for bucket in gone:
            engine.follow(bucket, 0)
            if engine.state(bucket) is BucketState.PRIMARY:
                engine.set_state(bucket, BucketState.FROZEN)
        for neighbour in self._neighbours:
            neighbour.link.point.abandon()  # only now: what is still primary would answer alone
        self._show(view)
        self._neighbours.pass_intakes()
        self._neighbours.end_all(abandon=True)
        self._roles.openings.clear()
        self._roles.following = [0] * engine.config.buckets
        self._underway = _Underway(wished=self._underway.wished)
        self._roles.pass_by()
        for bucket in gone:
            if engine.state(bucket) is not BucketState.ABSENT:  # an intake may have cleared it meanwhile
                engine.set_state(bucket, BucketState.ABSENT)
        self._roles.record_drops(gone)
        self._node = self.parts.next_incarnation()
        self.incarnation = self._node.incarnation

    def _join_anew(self) -> None:
        node = self._node
        self._wish_once("join", "join anew", lambda view, asker: wishes.join(view, asker, node, recovers=False))

    def _keep_register(self, view: View) -> None:
        """The register was given to this node."""
        try:
            self.parts.own_register.begin(view)
            logger.info("this node keeps the register from epoch {} on", view.epoch)
        except (RegisterFailed, ValueError) as error:
            logger.error("the register that was given to this node cannot be kept: {}", error)

    # --- pause

    def _follow_pause(self, old: View, view: View) -> None:
        """Before the view is shown: a node that goes by it has no write under way."""
        if view.pause is not None and view.pause != old.pause:
            self._pause_ends = time.monotonic() + view.pause.seconds
            self.parts.engine.set_paused(True)
        elif view.pause is None and old.pause is not None:
            self._pause_ends = 0.0
            self.parts.engine.set_paused(False)

    def _see_to_pause(self) -> None:
        """Each node counts by itself, and writes again when its time is over; whoever keeps the register, or asked, says so."""
        if not self._pause_ends or time.monotonic() < self._pause_ends:
            return
        self._pause_ends = 0.0
        self.parts.engine.set_paused(False)
        logger.info("the pause is over")
        pause = self.view.pause
        self._wish_once("resume", "end the pause", lambda view, asker: _resume_from(view, asker, pause))

    # --- opening

    def _open_what_is_due(self) -> None:
        if not self._roles.openings:
            return
        due = [bucket for bucket in self._roles.due(self._may_serve) if self._backups_match(bucket)]
        if not due:
            return
        for neighbour in self._neighbours:
            self._choose(neighbour)
        try:
            self._roles.open(due, self.incarnation, self._points_of)
        except RequestRefused as refusal:
            logger.error("buckets could not be opened: {}", refusal.reason)
            return
        logger.info("{} buckets opened in epoch {}", len(due), self.view.epoch)
        self._follow_up(self.view)

    def _may_serve(self, name: str, epoch: int) -> bool:
        """Whether a node may still be serving by a view before `epoch` (`design`, section 5, invariant 3)."""
        neighbour = self._neighbours.get(name)
        if neighbour is not None and neighbour.heard_epoch >= epoch:
            return False
        with self.books.lock:
            return not self.books.given.has_run_out(name, boot_ns())

    def _backups_match(self, bucket: int) -> bool:
        """Whether each backup stands where this node's OPEN will go on from; one that gave the bucket up for this does."""
        opening, placed = self._roles.openings[bucket], self.view.placements[bucket]
        others = [name for name in placed.backups if not self._gave_up(name, opening.epoch)]
        mine = self.parts.engine.sequence(bucket)
        for name in others:
            epoch, found = self._underway.sequences.get(name, (0, {}))
            if epoch < opening.epoch:
                neighbour = self._neighbours.get(name)
                if neighbour is not None:
                    neighbour.heartbeats.ask_sequences()
                return False
            if found.get(bucket) != mine:
                logger.warning("bucket {}: the copy of {} ends elsewhere and is made anew", bucket, name)
                self._wish_once(
                    f"drop {bucket} {name}",
                    f"drop the copy of bucket {bucket} at {name}",
                    lambda view, asker, name=name: wishes.drop_backups(view, asker, {bucket: name}),
                )
                return False
        return True

    def _gave_up(self, name: str, epoch: int) -> bool:
        return self.view.epoch == epoch and self.view.proposer == name

    # --- commit points

    def _points_of(self, bucket: int, view: View | None = None) -> list[CommitPoint]:
        """What the answers of a bucket wait for: its backups in the view, and those that are about to be (invariant 6)."""
        points: list[CommitPoint] = [self.parts.engine.stream.disk] if self._is_durable(self.view) and self.parts.log else []
        for name in (view or self.view).placements[bucket].backups:
            neighbour = self._neighbours.get(name)
            if neighbour is not None:
                points.append(neighbour.link.point)
        adding = self._underway.adding.get(bucket)
        if adding is not None and adding[0].point not in points:
            points.append(adding[0].point)
        return points

    def _set_points(self, bucket: int, view: View | None = None) -> int:
        return self.parts.engine.set_commit_points(bucket, self._points_of(bucket, view))

    # --- leases

    def _watch_leases(self) -> None:
        view = self.view
        if self._underway.leaving and self.left.is_set():
            return
        mine = {name for bucket in view.primaries_of(self.name) for name in view.placements[bucket].backups}
        theirs = {view.placements[bucket].primary for bucket in view.backups_of(self.name)}
        for neighbour in self._neighbours:
            name = neighbour.peer.name
            why = ""
            if name in mine:
                why = self._why_without(neighbour)
            if not why and name in theirs and self._is_overdue(neighbour):
                why = f"{name} is silent"
            if why:
                self._part(name, why)

    def _why_without(self, neighbour: Neighbour) -> str:
        """Why this node goes on without a backup; "" while there is no reason to."""
        name = neighbour.peer.name
        if neighbour.link.owed_s() > self.view.settings.ack_s:
            return f"{name} owes an acknowledgement for longer than {self.view.settings.ack_s:g} s"
        if self._holds_lease(neighbour.peer):
            neighbour.ever_held = True
            if neighbour.down_since_refused and neighbour.heartbeats.refused:
                return f"nobody listens at {neighbour.address} any more"
            return ""
        if not neighbour.ever_held and time.monotonic() - neighbour.known_since < 2 * self.view.settings.grace_s:
            return ""
        return f"the lease of {name} ran out"

    def _is_overdue(self, neighbour: Neighbour) -> bool:
        with self.books.lock:
            broken = neighbour.ever_heard and neighbour.sessions <= 0
            return self.books.given.is_overdue(neighbour.peer.name, boot_ns(), broken=broken)

    def _part(self, name: str, why: str) -> None:
        """Ask for a view in which this node and that one share nothing (`design`, section 5, invariant 5)."""
        key = f"part {name}"
        if key in self._underway.wished:
            return
        logger.warning("going on without {}: {}", name, why)
        self.counts.peers_parted += 1
        with self.books.lock:
            self.books.given.decide(name)
        incarnation = self._neighbours.get(name)

        def make(view: View, asker: Asker) -> View:
            now = view.nodes.get(name)
            if now is None or incarnation is None or now.incarnation != incarnation.peer.incarnation:
                raise wishes.WishRefused(f"{name} is another by now")
            return wishes.part(view, asker, name)

        def settled(refused: str) -> None:
            with self.books.lock:
                self.books.given.settle(name)
            if refused:
                logger.info("parting from {} was refused: {}", name, refused)

        self._wish_once(key, f"part from {name}", make, settled)

    def _came_down(self, link: Link, refused: bool) -> None:
        neighbour = self._neighbours.get(link.peer.name)
        if neighbour is not None and neighbour.link is link:
            neighbour.down_since_refused = refused
            if refused:
                neighbour.heartbeats.beat_now()

    def _broken(self, link: Link, why: str) -> None:
        """A backup says that what it was sent does not fit: its copies are made anew."""
        neighbour = self._neighbours.get(link.peer.name)
        if neighbour is None or neighbour.link is not link:
            return
        self.counts.broken_chains += 1
        logger.error("the copies at {} are broken and are made anew: {}", link.peer.name, why)
        for bucket in link.filling():
            link.cancel(bucket)
            self._underway.adding.pop(bucket, None)
        self._drop_all(link.peer.name)

    def _drop_all(self, name: str) -> None:
        def make(view: View, asker: Asker) -> View:
            held = {bucket: name for bucket in view.primaries_of(asker.by) if name in view.placements[bucket].backups}
            return wishes.drop_backups(view, asker, held)

        self._wish_once(f"drop all {name}", f"drop the copies at {name}", make)

    # --- copies

    def _plan(self) -> None:
        """What the view lacks, and of that what is this node's to do."""
        self._plan_due_at = time.monotonic() + PLAN_EVERY_S
        view = self.view
        if self._is_out or self.name not in view.nodes:
            return
        filling = {bucket: neighbour.peer.name for neighbour in self._neighbours for bucket in neighbour.link.filling()}
        plan = plan_for(view, filling)
        wanted = {bucket: name for bucket, name in plan.fills if view.placements[bucket].primary == self.name}
        for bucket, name in filling.items():
            if wanted.get(bucket) != name and bucket not in self._underway.adding:
                neighbour = self._neighbours.get(name)
                if neighbour is not None:
                    neighbour.link.cancel(bucket)
        handing = self._underway.handing.heirs if self._underway.handing else {}
        for bucket, name in wanted.items():
            neighbour = self._neighbours.get(name)
            opened = self.parts.engine.state(bucket) is BucketState.PRIMARY and bucket not in self._roles.openings
            if neighbour is not None and opened and bucket not in handing:
                neighbour.link.fill(bucket)
        drops = {bucket: name for bucket, name in plan.drops.items() if view.placements[bucket].primary == self.name}
        if drops:
            self._wish_once("drops", f"drop {len(drops)} spare copies", lambda now, asker: self._drop_spare(now, asker, drops))
        mine = {bucket: heir for bucket, heir in plan.handovers.items() if view.placements[bucket].primary == self.name}
        self._begin_handing(
            {bucket: heir for bucket, heir in mine.items() if bucket not in drops and bucket not in self._underway.adding}
        )

    @staticmethod
    def _drop_spare(view: View, asker: Asker, drops: Mapping[int, str]) -> View:
        """Only while they are spare."""
        still = plan_for(view).drops
        return wishes.drop_backups(view, asker, {bucket: name for bucket, name in drops.items() if still.get(bucket) == name})

    def _has_filled(self, link: Link, bucket: int) -> None:
        neighbour = self._neighbours.get(link.peer.name)
        mine = self.view.placements[bucket].primary == self.name and bucket not in self._roles.openings
        if neighbour is None or neighbour.link is not link or not mine or bucket not in link.filling():
            return
        self._underway.adding[bucket] = (link, 0)
        head = self._set_points(bucket)
        self._underway.adding[bucket] = (link, head)
        link.watch()

    def _add_what_is_whole(self) -> None:
        """Copies that have come past what was there when they began to be waited for (invariant 6)."""
        if not self._underway.adding or "add" in self._underway.wished:
            return
        ready: dict[int, str] = {}
        for bucket, (link, head) in self._underway.adding.items():
            if link.acknowledged >= head and self._holds_lease(link.peer):
                ready[bucket] = link.peer.name
            else:
                link.watch()
        if not ready:
            self._underway.ready_since = 0.0
            return
        now = time.monotonic()
        self._underway.ready_since = self._underway.ready_since or now
        more_come = any(not done for neighbour in self._neighbours for done in neighbour.link.filling().values())
        if more_come and len(ready) < ADD_BUCKETS and now < self._underway.ready_since + ADD_S:
            return
        self._underway.ready_since = 0.0
        incarnations = {name: self._incarnation_of(name) for name in ready.values()}

        def make(view: View, asker: Asker) -> View:
            for name, incarnation in incarnations.items():
                if name not in view.nodes or view.nodes[name].incarnation != incarnation:
                    raise wishes.WishRefused(f"{name} is another by now")
            return wishes.add_backups(view, asker, ready)

        self._wish_once(
            "add", f"count {len(ready)} copies in", make, lambda _refused: self._events.put(lambda: self._added(list(ready)))
        )

    def _holds_lease(self, peer: Peer) -> bool:
        with self.books.lock:
            return self.books.held.holds(peer, boot_ns())

    def _incarnation_of(self, name: str) -> int:
        neighbour = self._neighbours.get(name)
        return neighbour.peer.incarnation if neighbour is not None else 0

    def _added(self, buckets: Collection[int]) -> None:
        """The wish is settled, and the view that settled it was taken in: what it counts in is waited for by it."""
        for bucket in buckets:
            adding = self._underway.adding.pop(bucket, None)
            if adding is None:
                continue
            if self.view.placements[bucket].primary == self.name and bucket not in self._roles.openings:
                self._set_points(bucket)
            if adding[0].peer.name not in self.view.placements[bucket].backups:
                adding[0].cancel(bucket)
        self._plan()

    # --- handing over

    def _begin_handing(self, heirs: Mapping[int, str]) -> None:
        """Freeze some buckets that others are to be primary of, and that these have copies of."""
        if not heirs or self._underway.handing is not None or "hand" in self._underway.wished:
            return
        engine = self.parts.engine
        some = {
            bucket: heir
            for bucket, heir in sorted(heirs.items())
            if engine.state(bucket) is BucketState.PRIMARY and bucket not in self._roles.openings
        }
        some = dict(list(some.items())[:HANDOVER_BUCKETS])
        if not some:
            return
        self._roles.freeze(some)
        self._underway.handing = Handing(some, engine.stream.head, time.monotonic())
        for name in {name for bucket in some for name in self.view.placements[bucket].backups}:
            neighbour = self._neighbours.get(name)
            if neighbour is not None:
                neighbour.link.watch()
        engine.stream.wake_readers()

    def _hand_on(self) -> None:
        """Once every backup has all of what was frozen: ask for the view in which it is the heirs'."""
        handing = self._underway.handing
        if handing is None or handing.asked:
            return
        names = {name for bucket in handing.heirs for name in self.view.placements[bucket].backups}
        links = [neighbour.link for name in names if (neighbour := self._neighbours.get(name)) is not None]
        if all(link.acknowledged >= handing.position for link in links) and len(links) == len(names):
            handing.asked = True
            heirs = dict(handing.heirs)
            self._wish_once(
                "hand",
                f"hand {len(heirs)} buckets over",
                lambda view, asker: wishes.hand_over(view, asker, heirs),
                lambda refused: self._events.put(lambda: self._handed(refused)),
            )
            return
        if time.monotonic() - handing.since > HANDOVER_S:
            handing.asked = True
            self._take_back("the heirs did not take in the last changes in time")
            return
        for link in links:
            link.watch()

    def _settle_handing(self, view: View) -> None:
        """A view came; what was handed over in it is no business of this node any more."""
        handing = self._underway.handing
        if handing is None:
            return
        gone = [bucket for bucket in handing.heirs if view.placements[bucket].primary != self.name]
        self.counts.handed_over += len(gone)
        for bucket in gone:
            del handing.heirs[bucket]
        if not handing.heirs:
            self._underway.handing = None

    def _handed(self, refused: str) -> None:
        if self._underway.handing is not None and refused:
            self._take_back(refused)

    def _take_back(self, why: str) -> None:
        """What was frozen and is still this node's is opened anew, in a later view."""
        handing = self._underway.handing
        assert handing is not None
        logger.info("{} buckets could not be handed over: {}", len(handing.heirs), why)
        buckets = [bucket for bucket in handing.heirs if self.view.placements[bucket].primary == self.name]
        self._wish_once(
            "hand",
            f"open {len(buckets)} buckets again",
            lambda view, asker: wishes.reopen(view, asker, [b for b in buckets if view.placements[b].primary == asker.by]),
            lambda _refused: self._events.put(self._took_back),
        )

    def _took_back(self) -> None:
        self._underway.handing = None
        self._plan()

    # --- leaving

    def _begin_leaving(self) -> None:
        self._underway.leaving = True
        self._see_to_leaving()

    def _see_to_leaving(self) -> None:
        """Leave, hand over, cede the register, go; whichever is next."""
        view = self.view
        me = view.nodes.get(self.name)
        if not self._underway.leaving or self.left.is_set():
            return
        if me is None:
            self._has_left("out of the view")
        elif targets(view) == (self.name,) or len(view.nodes) == 1:
            self._has_left("it is the last")
        elif me.state in (NodeState.UP, NodeState.JOINING):
            self._wish_once("leave", "leave", lambda now, asker: wishes.leave(now, asker, asker.by))
        elif view.copies_of(self.name) == 0 and view.manager == self.name:
            self._cede()
        elif view.copies_of(self.name) == 0:
            self._wish_once("remove", "be removed", lambda now, asker: wishes.remove(now, asker, asker.by))

    def _has_left(self, why: str) -> None:
        logger.info("this node has left its cluster: {}", why)
        self.left.set()

    def _cede(self) -> None:
        """The register goes to another node, which has to confirm that it keeps it."""
        view = self.view
        heirs = [name for name in view.names(NodeState.UP) or view.names(NodeState.LEAVING) if name != self.name]
        if not heirs:
            self._has_left("it is the last")
            return
        self._wish_once(
            "cede", f"cede the register to {heirs[0]}", lambda now, asker: wishes.cede_register(now, asker, heirs[0])
        )

    # --- wishes

    def _wish_once(
        self,
        key: str,
        what: str,
        make: Callable[[View, Asker], View],
        done: Callable[[str], None] = lambda _refused: None,
    ) -> None:
        """Propose this unless a wish of that key is not settled yet. Once it is, the control plane hears of it after the view
        that settled it."""
        if key in self._underway.wished:
            return
        self._underway.wished.add(key)
        underway = self._underway

        def settled(refused: str) -> None:
            if refused:
                logger.debug("the wish to {} was refused: {}", what, refused)
            self._events.put(lambda: self._wish_settled(underway, key))  # first: `done` may wish again
            done(refused)

        self.agreement.propose(Wish(what, make, settled))

    def _wish_settled(self, underway: _Underway, key: str) -> None:
        underway.wished.discard(key)
        self._plan_due_at = 0.0


def _resume_from(view: View, asker: Asker, pause: Pause | None) -> View:
    """The end of that pause, and of no later one."""
    if view.pause != pause:
        raise wishes.WishRefused("that pause has ended")
    return wishes.resume(view, asker)
