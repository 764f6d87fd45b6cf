"""What one part of the benchmark found, with all one needs to judge it and to do it again.

What it is: `Report`, and its form as JSON: one file for each part, so that a part can be measured anew without the others.
Which thread runs it: the benchmark's only one.
What it owns: nothing.
What it must not know: what any part measures.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from soak.bench.errors import BenchError
from soak.bench.samples import Sample, Samples

PREFIX = "peers"
DIGITS = 6
"""Of a figure that is kept: more than two runs ever agree in."""


@dataclass
class Report:
    """One part, measured once."""

    part: str
    command: str
    date: str
    machine: dict[str, str]
    servers: dict[str, dict[str, str]]
    sizes: dict[str, Any]
    missing: list[str] = field(default_factory=list)
    """Servers that are not installed here."""
    samples: Samples = field(default_factory=Samples)


def file_name(part: str, suffix: str) -> str:
    return f"{PREFIX}-{part}.{suffix}"


def rounded(sample: Sample) -> Sample:
    """The same with no more digits than were measured."""
    return replace(sample, figures={name: float(f"{figure:.{DIGITS}g}") for name, figure in sample.figures.items()})


def save(report: Report, directory: Path) -> None:
    """Write `report` into `directory`: its samples a line each, so that a change of one is a change of one line."""
    facts = {name: value for name, value in vars(report).items() if name != "samples"}
    lines = ",\n".join("  " + json.dumps(asdict(rounded(sample))) for sample in report.samples)
    text = json.dumps(facts, indent=1).removesuffix("\n}") + f',\n "samples": [\n{lines}\n ]\n}}\n'
    directory.mkdir(parents=True, exist_ok=True)
    (directory / file_name(report.part, "json")).write_text(text, encoding="utf-8")


def load(part: str, directory: Path) -> Report | None:
    """What was last saved of `part`; None where nothing was. Raises `BenchError` where it cannot be understood."""
    path = directory / file_name(part, "json")
    if not path.exists():
        return None
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        facts["samples"] = Samples(Sample(**each) for each in facts["samples"])
        return Report(**facts)
    except (ValueError, TypeError, KeyError) as error:
        raise BenchError(f"{path} is not a report of this version: {error}") from error
