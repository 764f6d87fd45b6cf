"""How things are broken, and put right again.

What it is: for each kind of fault a class with `course` and `end`; `fault_for` makes the one that is planned.
Which thread runs it: the main thread. What it owns: nothing that outlives `end`.
What it must not know: why it is this fault's turn, and what is made of what it did.

`victims`: whom the fault meets; a node that suspects one of them, or that one of them suspects, is right to as long as the
fault is `destructive`. `course` breaks it, and yields for how many seconds to wait before it goes on. Both `course` and `end`
raise `Violated` where a node does not behave as the fault demands.

`spared`: nodes that take no writes past the views while the fault lasts, because what they took and cannot have acknowledged
would tell them of a newer view, or keep the reads behind it waiting: then nobody would see what they would have answered.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import ClassVar
from zlib import crc32

from rcache.cluster.view import View
from soak.cluster.cluster import Cluster
from soak.cluster.lanes import write_once
from soak.cluster.rules import CLIENTS, ETCD, Cut, Delay, Direction, Rules, both_ways
from soak.cluster.schedule import DESTRUCTIVE, NOT_OF_A_MANAGER, ORDERLY, Kind, Planned

STOPPED, LOG_FAILED = 0, 7
"""Exit codes of rcached."""

TAKEN_S = 6.0
"""For another node to go on without one that it does not hear of: several graces. Where it does not, the fault goes on."""

POLL_S = 0.02
"""How often it is looked whether it did: the interesting part begins then, and may be a tenth of a second long."""

DEPOSED_S = 0.1
"""For clients to write to the heir before who was deposed goes on, however late it was deposed."""

STALLED_S = 0.75
"""How long records stand still before the one that they are for is stopped: whoever waits for it must lose patience (`ack_s`,
1 s) before the lease that it was granted last runs out."""


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
    def spared(self) -> list[str]:
        """See the module."""
        return [self.victim] if self.destructive else []

    @property
    def lasts_s(self) -> float:
        """From `begin` to `end`, or the last part of it."""
        return self.planned.lasts_s

    def course(self) -> Iterator[float]:
        """Break it, and let it last; the rest is `end`'s."""
        self.begin()
        yield self.lasts_s

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


class Brink(Stop):
    """See `Kind.BRINK`."""

    kind = Kind.BRINK


class Pause(Stop):
    """See `Kind.PAUSE`."""

    kind = Kind.PAUSE


class CutOff(Fault):
    """See `Kind.CUT`: the second victim is the other end."""

    kind = Kind.CUT

    def __init__(self, cluster: Cluster, planned: Planned, victim: str, other: str = "") -> None:
        super().__init__(cluster, planned, victim)
        names = list(cluster.nodes)
        self.others = [other or next(names[place] for place in planned.order if names[place] != victim)]
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


class Sever(Fault):
    """See `Kind.SEVER`. What was on its way is lost with the node (`Cut.DROP`)."""

    kind = Kind.SEVER

    @property
    def spared(self) -> list[str]:
        return []  # what it takes and cannot have brought to a backup is what this is about

    def begin(self) -> None:
        others = [*self.cluster.others(self.victim), *([ETCD] if self.cluster.etcd is not None else [])]
        self.cluster.network.follow(Rules(dict.fromkeys(both_ways(self.victim, others), Cut.DROP)))

    def course(self) -> Iterator[float]:
        self.begin()
        yield self.lasts_s
        self.cluster.nodes[self.victim].kill()
        self.cluster.network.heal()

    def end(self) -> None:
        self.cluster.start(self.victim)

    def text(self) -> str:
        return f"{self.kind} {self.victim} for {self.lasts_s:.1f} s, then kill it"


class Behind(CutOff):
    """See `Kind.BEHIND`: the second victim takes over."""

    kind = Kind.BEHIND

    def course(self) -> Iterator[float]:
        away = both_ways(self.victim, [ETCD, CLIENTS])
        self.cluster.network.follow(Rules(dict.fromkeys([*both_ways(self.victim, self.others), *away], self.planned.cut)))
        yield from self.until_deposed()
        self.cluster.network.follow(Rules(dict.fromkeys(away, self.planned.cut)))
        yield self.lasts_s

    def until_deposed(self) -> Iterator[float]:
        """Until the second victim goes by a view in which it shares no bucket with the first."""
        heir, deadline = self.others[0], time.monotonic() + TAKEN_S
        while time.monotonic() < deadline:
            seen = self.cluster.look(heir)
            if seen is not None and not any({self.victim, heir} <= set(each.holders) for each in seen.view.placements):
                return
            yield POLL_S

    def text(self) -> str:
        return f"{self.kind} ({self.planned.cut}) {self.victim}, deposed by {self.others[0]}, for {self.lasts_s:.1f} s more"


class Stall(Behind):
    """See `Kind.STALL`: the second victim's records stand still."""

    kind = Kind.STALL

    def course(self) -> Iterator[float]:
        away = both_ways(self.victim, [ETCD]) if self.cluster.etcd is not None else []
        stalls = frozenset({(self.others[0], self.victim)})
        self.cluster.network.follow(Rules(dict.fromkeys(away, Cut.HOLD), stalls=stalls))
        with contextlib.ExitStack() as closing:
            with contextlib.suppress(OSError):  # other writes will come
                closing.enter_context(write_once(self.cluster.nodes[self.others[0]].port, self.owing_keys()))
            yield STALLED_S
            self.cluster.nodes[self.victim].freeze()
            frozen = time.monotonic()
            yield from self.until_deposed()
            yield max(DEPOSED_S, frozen + self.lasts_s - time.monotonic())

    def owing_keys(self) -> Iterator[str]:
        """A key of each bucket that the heir sends the victim: the time in which it is owed an acknowledgement begins with the
        fault, and not with the first write that happens to come."""
        placements = self.cluster.view().placements
        for bucket, placed in enumerate(placements):
            if placed.primary == self.others[0] and self.victim in placed.backups:
                keys = (f"owing-{number}" for number in itertools.count())
                yield next(key for key in keys if crc32(key.encode()) & (len(placements) - 1) == bucket)

    def end(self) -> None:
        self.cluster.nodes[self.victim].thaw()
        super().end()

    def text(self) -> str:
        return f"{self.kind} {self.victim}, deposed by {self.others[0]}, stopped for {self.lasts_s:.2f} s"


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
    each.kind: each
    for each in (
        *(Restart, Drain, Kill, Stop, Brink, Pause, CutOff, Isolate, Sever, Behind, Stall),
        *(Slow, DiskFull, ClockStep, RegisterAway),
    )
}


DEPOSING: dict[Kind, type[Behind]] = {each.kind: each for each in (Behind, Stall)}
"""Those in which one node must be able to take over from another."""


def fault_for(cluster: Cluster, planned: Planned) -> Fault:
    """The planned fault, at the first node in its order that it may meet now. Raises `Violated` if nobody knows the manager."""
    manager = cluster.manager() if planned.kind in NOT_OF_A_MANAGER else None
    names = [list(cluster.nodes)[place] for place in planned.order]
    may_be = [name for name in names if name != manager]
    if planned.kind in DEPOSING:
        view = cluster.view()
        pairs = [(victim, heir) for victim in may_be for heir in names if _shared(view, victim, heir)]
        both = [(victim, heir) for victim, heir in pairs if _shared(view, heir, victim)]
        fitting = (both if planned.kind is Kind.STALL else pairs) or pairs
        if fitting:
            return DEPOSING[planned.kind](cluster, planned, *max(fitting, key=lambda pair: _shared(view, *pair)))
    return FAULTS[planned.kind](cluster, planned, may_be[0])


def _shared(view: View, primary: str, backup: str) -> int:
    """How many buckets one node would take over from another. (In a cluster of three, nearly all buckets of a node may have
    the same backup, which has its own at the third: so the pair that shares most is met, and for a stall one of which the heir
    sends records to the victim as well.)"""
    return sum(placed.primary == primary and backup in placed.backups for placed in view.placements)
