"""What was broken when, and what that cost: the longest gap of service, the wait for new backups, suspicions that were false.

What it is: `Broken`, one fault as it happened, and the arithmetic on it. Pure.
Which thread runs it: any. What it owns: nothing. What it must not know: processes.

Times are seconds of the monotonic clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from soak.cluster.watch import Suspicion

SLACK_S = 0.5
"""A suspicion is read from a log a moment after it was written."""


@dataclass(slots=True)
class Broken:
    """A fault: it lasted from `began` to `ended`, and the cluster was whole again at `whole`. `recovery_s`: the wait from
    `ended`
    to that; `gap_s`: the longest that a client waited for a good answer meanwhile, 0 if none waited longer than its
    `WAIT_S`."""

    number: int
    kind: str
    text: str
    victims: list[str] = field(default_factory=list)
    destructive: bool = False
    orderly: bool = False
    began: float = 0.0
    ended: float = 0.0
    whole: float = 0.0
    gap_s: float = 0.0

    @property
    def recovery_s(self) -> float:
        return max(0.0, self.whole - self.ended)

    def overlaps(self, start: float, end: float) -> bool:
        return start <= self.whole and self.began <= end

    def excuses(self, suspicion: Suspicion) -> bool:
        """Whether it was right to go on without that node: it was cut off or dead, or it had left."""
        if not self.overlaps(suspicion.at - SLACK_S, suspicion.at):
            return False
        if self.destructive:
            return suspicion.of in self.victims or suspicion.by in self.victims
        return self.orderly and suspicion.of in self.victims


def false_suspicions(suspicions: Iterable[Suspicion], faults: Sequence[Broken]) -> list[Suspicion]:
    """Those that no fault excuses."""
    return [each for each in suspicions if not any(fault.excuses(each) for fault in faults)]


def measure_gaps(faults: Iterable[Broken], waits: Iterable[tuple[float, float]]) -> None:
    """Set each fault's gap from the waits of clients, (from, to) each. A wait that spans two faults counts for both."""
    told = list(waits)
    for fault in faults:
        fault.gap_s = max((end - start for start, end in told if fault.overlaps(start, end)), default=0.0)
