"""Long proofs: `rcache-soak` again and again, seed after seed, and one table of what came of it.

What it is: `python -m soak.prove --seeds 1,2,3 --report DIR [what else rcache-soak takes]`; `make prove ARGS="..."`.
Which thread runs it: the main thread. What it owns: DIR: `proof.md`, the table, written anew after each run; what each run
reports, in `seed-X`, and said, in `seed-X.log`. What it must not know: what a run does; it goes by exit code and figures.

It goes on after a run that found something: whether other seeds find it, too, tells much. The exit code is that of the worst.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from soak.cluster.command import FINE, NOT_RUN, VIOLATED
from soak.cluster.report import FIGURES

ROOT = Path(__file__).resolve().parents[1]
TABLE = "proof.md"

VERDICTS = {FINE: "FINE", VIOLATED: "**VIOLATED**", NOT_RUN: "not run"}
GRAVITY = (FINE, NOT_RUN, VIOLATED)
"""From the best to the worst; anything else is worse still."""

HEAD = (
    "| command | seed | operations | faults | longest gap, s | whole again after, s | false suspicions | verdict |\n"
    "| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |\n"
)


@dataclass(frozen=True, slots=True)
class Ran:
    """One run. `figures`: what it reported; None if it did not come to that."""

    arguments: Sequence[str]
    seed: int
    code: int
    figures: dict[str, Any] | None

    def row(self) -> str:
        """Its line of the table."""
        command = shlex.join(["rcache-soak", *self.arguments])
        verdict = VERDICTS.get(self.code, f"exit code {self.code}")
        if self.figures is None:
            return f"| `{command}` | {self.seed} | | | | | | {verdict} |\n"
        faults = self.figures["faults"]
        gap, wait = (max((each[name] for each in faults), default=0.0) for name in ("gap_s", "recovery_s"))
        return (
            f"| `{command}` | {self.seed} | {self.figures['checked']['operations']:,} | {len(faults)} | {gap:.1f} | "
            f"{wait:.1f} | {len(self.figures['suspicions']['false'])} | {verdict} |\n"
        )


def run_once(arguments: Sequence[str], seed: int, directory: Path) -> Ran:
    """Blocks until the run has ended."""
    report = directory / f"seed-{seed}"
    told = ["--seed", str(seed), "--report", str(report)]
    with (directory / f"seed-{seed}.log").open("wb") as log:
        ran = subprocess.run(
            [sys.executable, "-m", "soak.cluster", *arguments, *told], stdout=log, stderr=log, check=False, cwd=ROOT
        )
    path = report / FIGURES
    figures = json.loads(path.read_text(encoding="utf-8")) if path.exists() and ran.returncode in (FINE, VIOLATED) else None
    return Ran(arguments, seed, ran.returncode, figures)


def _seeds(text: str) -> list[int]:
    return list(dict.fromkeys(int(each) for each in text.split(",")))


def _fresh_directory(text: str) -> Path:
    path = Path(text).resolve()
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise argparse.ArgumentTypeError(
            f"{text} is there already, and not empty; a proof is written into a directory of its own"
        )
    return path


def worst(codes: Sequence[int]) -> int:
    """The exit code to end with."""
    return max(codes, key=lambda code: GRAVITY.index(code) if code in GRAVITY else len(GRAVITY))


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: rcache-soak's, of the worst run."""
    parser = argparse.ArgumentParser(
        prog="soak.prove",
        description="rcache-soak for each of several seeds. Whatever else is given goes to rcache-soak.",
        allow_abbrev=False,  # --seed is rcache-soak's
    )
    parser.add_argument("--seeds", type=_seeds, required=True, metavar="X,Y,...", help="one run for each")
    parser.add_argument("--report", type=_fresh_directory, required=True, metavar="DIR", help="for the table and all reports")
    given, arguments = parser.parse_known_args(argv)
    given.report.mkdir(parents=True, exist_ok=True)
    table, codes = HEAD, []
    print(HEAD, end="", flush=True)
    for seed in given.seeds:
        ran = run_once(arguments, seed, given.report)
        codes.append(ran.code)
        table += ran.row()
        print(ran.row(), end="", flush=True)
        (given.report / TABLE).write_text(table, encoding="utf-8")
    return worst(codes)


if __name__ == "__main__":
    sys.exit(main())
