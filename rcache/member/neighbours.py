"""The other nodes of the view, each as this node knows it: its heartbeats, the link to it, and the intake of what it sends.

What it is: one `Neighbour` for each incarnation of each other node, made when a view names it and ended when none does.
Which thread runs it: the control plane's makes and ends them; `intake_of` and the counts any.
What it owns: heartbeats, links and intakes, with their threads. It may lock: its own table, for moments.
What it must not know: which buckets change their roles, and why.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from loguru import logger

from rcache.cluster.leases import Peer
from rcache.cluster.view import NodeState, View
from rcache.engine.contract import Engine
from rcache.peers.books import HeartbeatHost, Heartbeats, LeaseBooks, boot_ns
from rcache.peers.host import LinkHost
from rcache.peers.intake import Intake
from rcache.peers.line import Line
from rcache.peers.link import Link
from rcache.stream.applied import AppliedStream
from rcache_client.address import parse_address
from rcache_client.handshake import Greeter

CONNECT_S = 1.0
"""How long a connection to a peer may take to be made and greeted."""

END_S = 5.0
"""How long each thread has to end."""


class Host(LinkHost, HeartbeatHost, Protocol):
    """The control plane, as its neighbours need it."""


@dataclass(slots=True)
class Neighbour:
    """One incarnation of one other node. `heard_epoch`: the newest view that it has said it goes by."""

    peer: Peer
    address: str
    heartbeats: Heartbeats
    link: Link
    intake: Intake
    ever_heard: bool = False
    heard_epoch: int = 0
    down_since_refused: bool = False
    ever_held: bool = False
    known_since: float = field(default_factory=time.monotonic)
    heard_at: float = field(default_factory=time.monotonic)


class Neighbours:
    """See the module."""

    def __init__(
        self,
        engine: Engine,
        applied: AppliedStream,
        books: LeaseBooks,
        greeter: Greeter,
        host: Host,
        is_holder: Callable[[int], bool],
    ) -> None:
        self._engine = engine
        self._applied = applied
        self._books = books
        self._greeter = greeter
        self._host = host
        self._is_holder = is_holder
        self._lock = threading.Lock()
        self._known: dict[str, Neighbour] = {}
        self._sources = itertools.count(1)
        self._sessions: dict[str, int] = {}
        self._ending: list[Neighbour] = []
        self.errors = 0

    def __iter__(self) -> Iterator[Neighbour]:
        with self._lock:
            return iter(list(self._known.values()))

    def get(self, name: str) -> Neighbour | None:
        return self._known.get(name)

    def note_session(self, name: str, *, began: bool) -> None:
        """Any thread: a connection from that node was opened, or is gone."""
        with self._lock:  # by name, for all its incarnations: those of the one before end when they like
            self._sessions[name] = self._sessions.get(name, 0) + (1 if began else -1)

    def has_sessions(self, name: str) -> bool:
        """Whether a connection from that node is open."""
        return self._sessions.get(name, 0) > 0

    def source_of(self, name: str) -> int:
        """The number that buckets follow this node by; 0 where it is not known here."""
        neighbour = self._known.get(name)
        return neighbour.intake.source if neighbour is not None else 0

    def follow(self, view: View, name: str, incarnation: int, *, durable: bool) -> None:
        """Have a neighbour for each other node that is not lost, and for no other. `incarnation` is this node's."""
        wanted = {
            Peer(other, node.incarnation): node.address
            for other, node in view.nodes.items()
            if other != name and node.state is not NodeState.LOST
        }
        for neighbour in list(self._known.values()):
            if wanted.get(neighbour.peer) != neighbour.address:
                self._let_go(neighbour)
        for peer, address in wanted.items():
            if peer.name not in self._known:
                self._make(peer, address, incarnation, durable)
        for neighbour in self._known.values():
            neighbour.intake.durable = durable

    def demand_disk(self) -> None:
        """From now on what comes in is on the disk here before it is answered."""
        for neighbour in self:
            neighbour.intake.durable = True

    def pass_intakes(self) -> None:
        """Wait until what is being taken in has its place in the log's stream."""
        for neighbour in self:
            neighbour.intake.pass_by()

    def end_all(self, *, abandon: bool = False) -> bool:
        """End all of them. False if some thread did not end in time."""
        for neighbour in list(self._known.values()):
            self._let_go(neighbour, abandon=abandon)
        return self.reap(END_S)

    def _make(self, peer: Peer, address: str, incarnation: int, durable: bool) -> None:
        where = parse_address(address)
        heartbeats = Heartbeats(peer, incarnation, Line(where, self._greeter, CONNECT_S), self._books, self._host)
        link = Link(peer, incarnation, Line(where, self._greeter, CONNECT_S), self._engine, self._host)
        intake = Intake(peer, next(self._sources), self._engine, self._applied, self._is_holder, durable=durable)
        neighbour = Neighbour(peer, address, heartbeats, link, intake)
        with self._books.lock:
            self._books.given.welcome(peer, boot_ns())
        with self._lock:
            self._known[peer.name] = neighbour
        heartbeats.start()
        link.start()

    def _let_go(self, neighbour: Neighbour, *, abandon: bool = False) -> None:
        """The commit point first: by an agreed view nothing waits for it any more, or nothing will be told."""
        with self._lock:
            self._known.pop(neighbour.peer.name, None)
        if abandon:
            neighbour.link.point.abandon()
        else:
            neighbour.link.point.close()
        neighbour.intake.stop()
        self._ending.append(neighbour)
        self.reap(0.0)

    def reap(self, timeout_s: float) -> bool:
        """End the threads of those that were let go of; whoever still hangs in its peer is looked at again later."""
        hanging = []
        for neighbour in self._ending:
            ended = neighbour.heartbeats.stop(timeout_s)
            if not (neighbour.link.stop(timeout_s) and ended):
                hanging.append(neighbour)
            else:
                self.errors += neighbour.heartbeats.errors + neighbour.link.errors
        self._ending = hanging
        if hanging and timeout_s:
            logger.error("links that did not end: {}", ", ".join(neighbour.peer.name for neighbour in hanging))
        return not hanging
