"""What is broken, and in which order: drawn from a seed, and nothing but the seed.

What it is: `Kind`, what a fault needs and destroys, and `schedule`, an endless series of `Planned`. Pure.
Which thread runs it: any. What it owns: nothing. What it must not know: processes; what became of the faults before.

The n-th fault of a seed is the same in every run, however long the ones before took. Which node it meets is drawn as an order
of preference: the run takes the first that may be met then (the manager of an embedded register may not be killed, and which
node that is depends on the run).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from soak.cluster.rules import Cut


class Kind(StrEnum):
    """The faults there are."""

    RESTART = "restart"
    """Stopped in order, and started again at once from its files."""
    DRAIN = "drain"
    """Stopped in order; away for a while; back as a new machine, its disk empty."""
    KILL = "kill"
    """kill -9; away for a moment; back with its files."""
    STOP = "stop"
    """SIGSTOP for longer than the grace: the others go on without it, and it finds out."""
    BRINK = "brink"
    """SIGSTOP for about as long as the lease and the grace: it goes on just while the others decide to go on without it."""
    PAUSE = "pause"
    """SIGSTOP for less than the lease: nobody should do anything about it."""
    CUT = "cut"
    """Between two nodes, both ways or one."""
    ISOLATE = "isolate"
    """Between a node and all other nodes (and etcd); the clients still reach it, or not."""
    SEVER = "sever"
    """Cut off from all other nodes (and etcd), called on by clients, and killed before anybody noticed the cut."""
    BEHIND = "behind"
    """Cut off from one node, from etcd and from clients until that node took its buckets over; then only the way to the node is
    there again, and who was deposed must hear of it from others."""
    STALL = "stall"
    """The records that another node sends it stand still, while heartbeats pass, until that node goes on without it; at that
    moment it is stopped, and then goes on with a lease that was granted just before."""
    SLOW = "slow"
    """All that a node sends or is sent comes late."""
    DISK = "disk"
    """The disk is full: the node ends (exit code 7), and comes back when there is room."""
    CLOCK = "clock"
    """The wall clock steps by hours, and back."""
    REGISTER = "register"
    """SIGSTOP of etcd: no view can change, and the service goes on."""


ALL = tuple(Kind)

MEANS: dict[Kind, str] = {
    Kind.RESTART: "stopped in order, started again from its files",
    Kind.DRAIN: "stopped in order, away for a while, back with an empty disk",
    Kind.KILL: "kill -9, away for 0 to 3 s",
    Kind.STOP: "SIGSTOP for 2 to 5 s, longer than the grace",
    Kind.BRINK: "SIGSTOP for 1.2 to 1.9 s, about as long as lease and grace",
    Kind.PAUSE: "SIGSTOP for 0.1 to 0.6 s, shorter than the lease",
    Kind.CUT: "between two nodes, one way or both",
    Kind.ISOLATE: "a node from all others and from etcd, every other time from the clients too",
    Kind.SEVER: "cut off from the other nodes and called on, then kill -9",
    Kind.BEHIND: "deposed by a node it is cut off from; then that way is back, and etcd's and the clients' are not yet",
    Kind.STALL: "what it is sent to keep stands still, heartbeats pass; stopped while it is deposed for that",
    Kind.SLOW: "all that a node sends or gets is late, by up to 150 ms each way",
    Kind.DISK: "no write to its data directory finds room; it ends (exit code 7)",
    Kind.CLOCK: "its wall clock steps by 3 hours, and back",
    Kind.REGISTER: "etcd says nothing for 1 to 4 s",
}
"""In a few words, for reports; docs/soak.md says the same, and what is promised."""

ORDERLY = frozenset({Kind.RESTART, Kind.DRAIN})
"""A run of these alone lets no call of a client fail."""

DESTRUCTIVE = frozenset(
    {Kind.KILL, Kind.STOP, Kind.BRINK, Kind.CUT, Kind.ISOLATE, Kind.SEVER, Kind.BEHIND, Kind.STALL, Kind.DISK}
)
"""Copies are lost by it: the next fault must wait for new ones, and other nodes may take the victim for dead."""

NOT_OF_A_MANAGER = DESTRUCTIVE
"""Whoever keeps the embedded register is never the victim: without it no view can change until it is back."""

NEEDS_SHIM = frozenset({Kind.DISK, Kind.CLOCK})
NEEDS_ETCD = frozenset({Kind.REGISTER, Kind.BEHIND})
"""The one stops it; for the other a node's way to the register must not be its way to a node."""

LASTS_S: dict[Kind, tuple[float, float]] = {
    Kind.RESTART: (0.0, 0.0),
    Kind.DRAIN: (0.5, 2.0),
    Kind.KILL: (0.0, 3.0),
    Kind.STOP: (2.0, 5.0),
    Kind.BRINK: (1.2, 1.9),
    Kind.PAUSE: (0.1, 0.6),
    Kind.CUT: (0.3, 5.0),
    Kind.ISOLATE: (0.3, 5.0),
    Kind.SEVER: (0.2, 0.7),
    Kind.BEHIND: (0.8, 1.5),
    Kind.STALL: (0.6, 0.7),
    Kind.SLOW: (2.0, 5.0),
    Kind.DISK: (0.0, 1.0),
    Kind.CLOCK: (1.5, 4.0),
    Kind.REGISTER: (1.0, 4.0),
}
"""How long each lasts, in seconds, from least to most. The lease is 1 s and the grace 1.5 s: a stop is longer than the grace, a
pause shorter than the lease, and cuts are both. A kill of no length comes back before anyone has noticed. (A full disk lasts
until the node has ended, and then so long.) A node that is severed is cut off for less than the lease before it is killed. Of
`behind` it is the last part, after the victim was deposed: it counts while a third node, which hears no acknowledgement,
does not go on without it as well (1 s). Of `stall` it is how long the victim is stopped: its lease has 0.75 s left then."""

QUIET_S = (0.5, 2.5)
"""Between the end of one fault's recovery and the next fault."""

SLOW_S = (0.02, 0.15)
"""By how much a slow node's bytes are late, each way: four of these are a heartbeat's way there and back, well below the
lease."""

STEP_S = 3 * 3600.0
"""By how much the clock steps, forward or back: longer than the time to live of the workload's entries."""


@dataclass(frozen=True, slots=True)
class Planned:
    """The n-th fault. `order`: places of nodes, the preferred victim first; `lasts_s` and `quiet_s` as above. What only some
    kinds
    look at: `cut` and `one_way` (0: both; 1: what the victim sends; 2: what it is sent), `with_clients`, `late_s`, `step_s`."""

    number: int
    kind: Kind
    order: tuple[int, ...]
    quiet_s: float
    lasts_s: float
    cut: Cut
    one_way: int
    with_clients: bool
    late_s: float
    step_s: float


def schedule(seed: int, kinds: Sequence[Kind], nodes: int) -> Iterator[Planned]:
    """Endless. Each kind comes once before any comes again, in an order that changes from turn to turn."""
    number, turn = 0, 0
    while True:
        shuffled = list(kinds)
        random.Random(f"{seed} turn {turn}").shuffle(shuffled)
        turn += 1
        for kind in shuffled:
            number += 1
            yield _planned(number, kind, nodes, random.Random(f"{seed} fault {number}"))


def _planned(number: int, kind: Kind, nodes: int, chance: random.Random) -> Planned:
    order = list(range(nodes))
    chance.shuffle(order)
    return Planned(
        number=number,
        kind=kind,
        order=tuple(order),
        quiet_s=chance.uniform(*QUIET_S),
        lasts_s=chance.uniform(*LASTS_S[kind]),
        cut=chance.choice(list(Cut)),
        one_way=chance.choice((0, 0, 1, 2)),
        with_clients=chance.random() < 0.5,
        late_s=chance.uniform(*SLOW_S),
        step_s=chance.choice((-STEP_S, STEP_S)),
    )


def default_kinds(manager: str) -> tuple[Kind, ...]:
    """All that the manager allows."""
    return tuple(kind for kind in ALL if manager == "etcd" or kind not in NEEDS_ETCD)
