"""How things are broken, and put right again.

What it is: for each kind of fault a class with `begin` and `end`; `fault_for` makes the one that is planned.
Which thread runs it: the main thread. What it owns: nothing that outlives `end`.
What it must not know: why it is this fault's turn, and what is made of what it did.

`victims`: whom the fault meets; a node that suspects one of them, or that one of them suspects, is right to as long as the
fault is `destructive`. Both `begin` and `end` raise `Violated` where a node does not behave as the fault demands.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from soak.cluster.cluster import Cluster
from soak.cluster.rules import CLIENTS, ETCD, Delay, Direction, Rules, both_ways
from soak.cluster.schedule import DESTRUCTIVE, NOT_OF_A_MANAGER, ORDERLY, Kind, Planned

STOPPED, LOG_FAILED = 0, 7
"""Exit codes of rcached."""


class Fault(ABC):
    """One fault, at one victim."""

    kind: ClassVar[Kind]

    def __init__(self, cluster: Cluster, planned: Planned, victim: str) -> None:
        self.cluster = cluster
        self.planned = planned
        self.victim = victim
        self.victims = [victim]

    @property
    def destructive(self) -> bool:
        return self.kind in DESTRUCTIVE

    @property
    def orderly(self) -> bool:
        return self.kind in ORDERLY

    @property
    def lasts_s(self) -> float:
        """From `begin` to `end`."""
        return self.planned.lasts_s

    def text(self) -> str:
        """For people: what happens to whom."""
        return f"{self.kind} {self.victim}" + (f" for {self.lasts_s:.1f} s" if self.lasts_s else "")

    @abstractmethod
    def begin(self) -> None:
        """Break it."""

    @abstractmethod
    def end(self) -> None:
        """Put it right."""


class Restart(Fault):
    """See `Kind.RESTART`."""

    kind = Kind.RESTART

    def begin(self) -> None:
        self.cluster.nodes[self.victim].terminate()
        self.cluster.await_end(self.victim, (STOPPED,))

    def end(self) -> None:
        self.cluster.start(self.victim)


class Drain(Restart):
    """See `Kind.DRAIN`."""

    kind = Kind.DRAIN

    def end(self) -> None:
        self.cluster.nodes[self.victim].wipe()
        super().end()


class Kill(Fault):
    """See `Kind.KILL`."""

    kind = Kind.KILL

    def begin(self) -> None:
        self.cluster.nodes[self.victim].kill()

    def end(self) -> None:
        self.cluster.start(self.victim)


class Stop(Fault):
    """See `Kind.STOP`."""

    kind = Kind.STOP

    def begin(self) -> None:
        self.cluster.nodes[self.victim].freeze()

    def end(self) -> None:
        self.cluster.nodes[self.victim].thaw()


class Pause(Stop):
    """See `Kind.PAUSE`."""

    kind = Kind.PAUSE


class CutOff(Fault):
    """See `Kind.CUT`: the second victim is the other end."""

    kind = Kind.CUT

    def __init__(self, cluster: Cluster, planned: Planned, victim: str) -> None:
        super().__init__(cluster, planned, victim)
        names = list(cluster.nodes)
        self.others = next([names[place]] for place in planned.order if names[place] != victim)
        self.victims += self.others

    def ways(self) -> list[Direction]:
        ways = both_ways(self.victim, self.others)
        if self.planned.one_way:
            ways = [way for way in ways if (way[0] == self.victim) == (self.planned.one_way == 1)]
        return ways

    def begin(self) -> None:
        self.cluster.network.follow(Rules(dict.fromkeys(self.ways(), self.planned.cut)))

    def end(self) -> None:
        self.cluster.network.heal()

    def text(self) -> str:
        arrow = ("from and to", "to", "from")[self.planned.one_way]
        return f"{self.kind} ({self.planned.cut}) {self.victim} {arrow} {' '.join(self.others)} for {self.lasts_s:.1f} s"


class Isolate(CutOff):
    """See `Kind.ISOLATE`."""

    kind = Kind.ISOLATE

    def __init__(self, cluster: Cluster, planned: Planned, victim: str) -> None:
        super().__init__(cluster, planned, victim)
        self.others = [*cluster.others(victim), *([ETCD] if cluster.etcd is not None else [])]
        if planned.with_clients:
            self.others.append(CLIENTS)


class Slow(Fault):
    """See `Kind.SLOW`."""

    kind = Kind.SLOW

    def begin(self) -> None:
        delay = Delay(self.planned.late_s / 2, self.planned.late_s / 2)
        ways = both_ways(self.victim, [*self.cluster.others(self.victim), CLIENTS])
        self.cluster.network.follow(Rules(delays=dict.fromkeys(ways, delay)))

    def end(self) -> None:
        self.cluster.network.heal()

    def text(self) -> str:
        return f"{super().text()}, up to {self.planned.late_s * 1000:.0f} ms late"


class DiskFull(Fault):
    """See `Kind.DISK`."""

    kind = Kind.DISK

    def begin(self) -> None:
        node = self.cluster.nodes[self.victim]
        assert node.steering is not None
        node.expected = False
        node.steering.fill_disk(True)
        try:
            self.cluster.await_end(self.victim, (LOG_FAILED,))
        finally:
            node.steering.fill_disk(False)

    def end(self) -> None:
        self.cluster.start(self.victim)


class ClockStep(Fault):
    """See `Kind.CLOCK`."""

    kind = Kind.CLOCK

    def begin(self) -> None:
        self._step(self.planned.step_s)

    def end(self) -> None:
        self._step(0.0)

    def _step(self, ahead_s: float) -> None:
        steering = self.cluster.nodes[self.victim].steering
        assert steering is not None
        steering.step_clock(ahead_s)

    def text(self) -> str:
        return f"{super().text()}, {self.planned.step_s / 3600:+.0f} h"


class RegisterAway(Fault):
    """See `Kind.REGISTER`."""

    kind = Kind.REGISTER

    def __init__(self, cluster: Cluster, planned: Planned, victim: str) -> None:
        super().__init__(cluster, planned, victim)
        self.victims = []

    def begin(self) -> None:
        assert self.cluster.etcd is not None
        self.cluster.etcd.freeze()

    def end(self) -> None:
        assert self.cluster.etcd is not None
        self.cluster.etcd.thaw()

    def text(self) -> str:
        return f"{self.kind} away for {self.lasts_s:.1f} s"


FAULTS: dict[Kind, type[Fault]] = {
    each.kind: each for each in (Restart, Drain, Kill, Stop, Pause, CutOff, Isolate, Slow, DiskFull, ClockStep, RegisterAway)
}


def fault_for(cluster: Cluster, planned: Planned) -> Fault:
    """The planned fault, at the first node in its order that it may meet now. Raises `Violated` if nobody knows the manager."""
    manager = cluster.manager() if planned.kind in NOT_OF_A_MANAGER else None
    names = list(cluster.nodes)
    victim = next(names[place] for place in planned.order if names[place] != manager)
    return FAULTS[planned.kind](cluster, planned, victim)
