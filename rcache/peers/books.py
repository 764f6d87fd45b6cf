"""The lease books of this node, under one lock, by the boot clock; and the heartbeats that keep them.

What it is: `LeaseBooks` puts the two books of `rcache.cluster.leases` under the lock under which grants are made and views
change; `Heartbeats` asks one peer for its grant again and again.
Which thread runs it: the books any; `Heartbeats` one of its own for each peer, `heartbeat-NAME`. Started and joined by the
control plane.
What it owns: the books and their lock; each heartbeat its line. It may lock: the books, for moments; never with I/O.
What it must not know: who is primary of what.
"""

from __future__ import annotations

import threading
import time
from typing import Any, Protocol

from loguru import logger

from rcache.cluster.leases import GivenGrants, HeldLeases, Peer
from rcache.cluster.view import Settings
from rcache.peers.line import Line, PeerUnreachable
from rcache_client.wire.opcodes import Opcode, Status

BEATS_A_LEASE = 4
"""Heartbeats in the time of a lease: three may be lost or late before it runs out."""


def boot_ns() -> int:
    """The clock that leases are measured by: it goes on while the machine sleeps, and nobody sets it."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def in_ns(seconds: float) -> int:
    return int(seconds * 1e9)


class LeaseBooks:
    """See the module. `lock` is held by whoever makes grants, decides to ask for a peer's buckets, or takes in a view."""

    def __init__(self, settings: Settings) -> None:
        self.lock = threading.RLock()
        self.held = HeldLeases()
        self.given = GivenGrants(in_ns(settings.lease_s), in_ns(settings.grace_s), boot_ns())

    def set_lengths(self, settings: Settings) -> None:
        with self.lock:
            self.given.set_lengths(in_ns(settings.lease_s), in_ns(settings.grace_s))


class HeartbeatHost(Protocol):
    """What a heartbeat tells, and asks: the control plane, as far as it is needed. On the heartbeat's thread; none may
    block."""

    @property
    def epoch(self) -> int: ...

    @property
    def lease_s(self) -> float: ...

    def makes_progress(self) -> bool:
        """Whether this node serves: if not, it sends no heartbeats, and its leases run out."""
        ...

    def was_granted(self, peer: Peer) -> None:
        """A lease was renewed; the books have it."""
        ...

    def heard_newer_view(self, text: bytes) -> None:
        """The peer goes by a newer view."""
        ...

    def heard_sequences(self, peer: Peer, epoch: int, packed: bytes) -> None:
        """The peer's newest sequences of the buckets that it has from this node, as of a view."""
        ...


class Heartbeats:
    """One peer's. `incarnation` is this node's."""

    def __init__(self, peer: Peer, incarnation: int, line: Line, books: LeaseBooks, host: HeartbeatHost) -> None:
        self.peer = peer
        self.trouble = ""
        self.refused = False
        self.sent = self.granted = self.errors = 0
        self._incarnation = incarnation
        self._line = line
        self._books = books
        self._host = host
        self._wants_sequences = False
        self._wake = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name=f"heartbeat-{peer.name}")

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_s: float) -> bool:
        """False if the thread did not end in time."""
        self._stopping = True
        self._wake.set()
        self._line.break_off()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def beat_now(self) -> None:
        """Any thread: do not wait for the next beat."""
        self._wake.set()

    def ask_sequences(self) -> None:
        """Any thread: have the peer say what it has; `heard_sequences` tells."""
        self._wants_sequences = True
        self._wake.set()

    def _run(self) -> None:
        """The thread's one catch-all: an error is logged and counted, and the next beat comes all the same."""
        while not self._stopping:
            began = time.monotonic()
            try:
                if self._host.makes_progress():
                    self._beat()
                self.trouble, self.refused = "", False
                if self._wants_sequences:
                    self._wants_sequences = False
                    self._ask_sequences()
            except PeerUnreachable as error:
                self.trouble, self.refused = str(error), error.refused
            except Exception:
                self.errors += 1
                logger.exception("heartbeat to {}: unhandled error", self.peer.name)
            self._wake.wait(max(0.0, began + self._host.lease_s / BEATS_A_LEASE - time.monotonic()))
            self._wake.clear()
        self._line.close()

    def _beat(self) -> None:
        epoch = self._host.epoch
        self._line.connected()  # before the clock is read: connecting is no part of what is measured
        self.sent += 1
        with self._books.lock:
            self._books.held.note_sent(self.peer, self.sent, boot_ns())
        values = (epoch, self._incarnation, self.peer.incarnation, self.sent)
        status, answer = self._line.ask(Opcode.HEARTBEAT, *values, timeout_s=self._host.lease_s)
        self._take(status, answer)

    def _take(self, status: int, answer: Any) -> None:
        if status == Status.OK:
            heartbeat, granted_ns = answer
            if granted_ns:
                self.granted += 1
                with self._books.lock:
                    self._books.held.note_grant(self.peer, heartbeat, granted_ns)
                self._host.was_granted(self.peer)
        elif status == Status.STALE_VIEW:
            self._host.heard_newer_view(answer[0])
        elif status != Status.VIEW_AHEAD:
            self.trouble = str(answer[-1])

    def _ask_sequences(self) -> None:
        epoch = self._host.epoch
        values = (epoch, self._incarnation, self.peer.incarnation)
        status, answer = self._line.ask(Opcode.SEQUENCES, *values, timeout_s=self._host.lease_s)
        if status == Status.OK:
            self._host.heard_sequences(self.peer, epoch, answer[0])
        else:
            self._wants_sequences = True
            self._take(status, answer) if status == Status.STALE_VIEW else None
