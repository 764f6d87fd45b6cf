"""The figures of a run, as JSON: what the report is made of, and what other programs read.

What it is: `figures_of`, and what is summed up for each kind of fault. Pure. Which thread runs it: any.
What it owns: nothing. What it must not know: pages and plots.

Times are seconds from the first call; `null` where nothing was measured.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from soak.cluster.bins import BIN_S
from soak.cluster.run import Outcome, Settings
from soak.cluster.timeline import Broken

DIGITS = 3


@dataclass(frozen=True, slots=True)
class About:
    """How the run was made, and where."""

    command: str
    date: str
    machine: Mapping[str, str]
    version: str


@dataclass(frozen=True, slots=True)
class KindFigures:
    """One kind of fault over the run; seconds."""

    kind: str
    count: int
    gap_median: float
    gap_most: float
    recovery_median: float
    recovery_most: float


def by_kind(faults: list[Broken]) -> list[KindFigures]:
    """In the order in which they first came."""
    found = []
    for kind in dict.fromkeys(fault.kind for fault in faults):
        of_kind = [fault for fault in faults if fault.kind == kind]
        gaps, recoveries = [fault.gap_s for fault in of_kind], [fault.recovery_s for fault in of_kind]
        found.append(KindFigures(kind, len(of_kind), median(gaps), max(gaps), median(recoveries), max(recoveries)))
    return found


def figures_of(outcome: Outcome, settings: Settings, about: About) -> dict[str, Any]:
    """Everything that was found."""
    errors = sum((Counter(counts.errors) for counts in outcome.counts.values()), Counter[str]())
    return {
        "fine": outcome.fine,
        "violations": outcome.violations,
        "about": asdict(about) | {"machine": dict(about.machine)},
        "settings": {
            "nodes": settings.nodes,
            "seconds": settings.seconds,
            "seed": settings.seed,
            "manager": settings.manager,
            "faults": [kind.value for kind in settings.kinds],
            "load": asdict(settings.load),
            "birth": settings.birth._asdict(),
            "budget_s": settings.budget_s,
        },
        "seconds": _short(outcome.seconds),
        "first_whole_s": _short(outcome.first_whole_s),
        "calls": {name: outcome.called(name) for name in ("ok", "fail", "unknown")},
        "errors": dict(errors.most_common()),
        "failed_first": sorted(each for counts in outcome.counts.values() for each in counts.failed)[:20],
        "told": {name: dict(counts.outcomes) for name, counts in outcome.told.items()},
        "tape": asdict(outcome.tape) if outcome.tape is not None else None,
        "stayed": sum(sum(counts.outcomes.values()) for counts in outcome.stayed.values()),
        "checked": {
            "operations": outcome.operations,
            "rounds": len(outcome.verdicts),
            "keys": sum(verdict.keys for verdict in outcome.verdicts),
        },
        "faults": [_fault(fault, outcome.started) for fault in outcome.faults],
        "kinds": [asdict(each) for each in by_kind(outcome.faults)],
        "suspicions": {
            "all": len(outcome.suspicions),
            "false": [
                {"at": _short(each.at - outcome.started), "by": each.by, "of": each.of, "why": each.why}
                for each in outcome.false_suspicions
            ],
        },
        "fell_out": dict(outcome.fell_out),
        "machine_late": {"times": outcome.late, "longest_s": _short(outcome.latest_s)},
        "memory_most_bytes": outcome.memory_most,
        "errors_said": outcome.errors_said,
        "notes": outcome.notes,
        "state": outcome.state,
        "bin_s": BIN_S,
        "bins": [
            [number, *(_short(each) for each in asdict(found).values())] for number, found in sorted(outcome.bins.items())
        ],
    }


def _fault(fault: Broken, started: float) -> dict[str, Any]:
    return {
        "number": fault.number,
        "kind": fault.kind,
        "text": fault.text,
        "began": _short(fault.began - started),
        "ended": _short(fault.ended - started),
        "whole": _short(fault.whole - started),
        "gap_s": _short(fault.gap_s),
        "recovery_s": _short(fault.recovery_s),
    }


def _short(number: float) -> float:
    return round(number, DIGITS)
