"""`rcache-soak`: a cluster of real processes, broken again and again, and every answer checked.

What it is: the command line, the progress on the terminal, and the exit code. Which thread runs it: the main thread.
What it owns: the temporary directory of a run. What it must not know: how anything is broken or checked.
"""

from __future__ import annotations

import argparse
import random
import shlex
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from soak.bench.machine import describe_machine
from soak.cluster.cluster import EMBEDDED, ETCD
from soak.cluster.errors import SoakFailed
from soak.cluster.figures import About, figures_of
from soak.cluster.nodes import Birth
from soak.cluster.report import write
from soak.cluster.run import Outcome, Run, Settings
from soak.cluster.schedule import NEEDS_ETCD, Kind, default_kinds
from soak.cluster.workload import Load

FINE, VIOLATED, WRONG_USE, NOT_RUN = 0, 1, 2, 3
"""Exit codes. Only 0 proves something."""

DESCRIPTION = "Break a cluster of real processes again and again, and check every answer that its clients got."

EPILOG = f"""
faults: {", ".join(Kind)}
  (default: all that the manager and this machine allow; the node that keeps an embedded register is never killed or cut off)

exit codes:
  0  nothing was violated
  1  something was: the last line says what, the report all of it
  2  wrong use of the command line
  3  the run could not be carried out; nothing is proven
"""

SECONDS, QUICK_SECONDS = 60.0, 15.0
ROUND_S, QUICK_ROUND_S = 15.0, 5.0
"""A round's keys are called for so long, and judged one round later."""

RATE, CLIENTS, KEYS = 400.0, 6, 200
BUDGET_S = 5.0
NODES_MIN, NODES_MAX = 2, 5
CLIENTS_MAX = 8
"""More that are busy with the same keys make the checker's search long."""
SECONDS_MAX = 7 * 86_400.0

FIRST_SHOWN = 300
"""Of a violation, in the last line."""


@dataclass(frozen=True, slots=True)
class Command:
    """A command line that was understood."""

    settings: Settings
    report: Path | None
    text: str


def read_command(argv: Sequence[str]) -> Command:
    """Exits with 2 where it is wrong."""
    parser = _parser()
    given = parser.parse_args(argv)
    quick = given.quick
    seed = random.SystemRandom().randrange(10**6) if given.seed is None else given.seed
    kinds = given.faults or default_kinds(given.manager)
    if given.manager != ETCD and (wrong := NEEDS_ETCD.intersection(kinds)):
        parser.error(f"--faults: {', '.join(wrong)} needs --manager etcd")
    if given.backups >= given.nodes:
        parser.error(f"--backups {given.backups} needs at least {given.backups + 1} nodes")
    if given.buckets & (given.buckets - 1):
        parser.error("--buckets: not a power of two")
    load = Load(given.clients, given.rate, given.keys, QUICK_ROUND_S if quick else ROUND_S)
    settings = Settings(
        nodes=given.nodes,
        seconds=given.seconds or (QUICK_SECONDS if quick else SECONDS),
        seed=seed,
        manager=given.manager,
        kinds=kinds,
        load=load,
        birth=Birth(given.buckets, given.backups, given.fsync),
        budget_s=given.budget,
        history=given.history,
        keep=given.report,
        listens=given.listeners,
    )
    return Command(settings, given.report, _text(argv, given.seed, seed))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rcache-soak", description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--nodes", type=_from_to(NODES_MIN, NODES_MAX), default=3, metavar="N", help="2 to 5 (default: %(default)s)")
    add("--seconds", type=_seconds, metavar="S", help=f"how long things are broken (default: {SECONDS:g})")
    add("--seed", type=int, metavar="X", help="of what is broken, when, and what is called (default: drawn, and printed)")
    add("--manager", choices=(EMBEDDED, ETCD), default=EMBEDDED, help="where views are agreed (default: %(default)s)")
    add("--faults", type=_kinds, metavar="LIST", help="which, with commas between (default: all that can be done)")
    add("--history", type=_fresh_file, metavar="FILE", help="write every operation into FILE, which must not be there yet")
    add("--report", type=Path, metavar="DIR", help="write report, drawing, figures, and logs if violated, into DIR")
    add("--clients", type=_from_to(1, CLIENTS_MAX), default=CLIENTS, metavar="N", help="at once (default: %(default)s)")
    add("--rate", type=_rate, default=RATE, metavar="N", help="calls a second of all clients together (default: %(default)g)")
    add("--keys", type=_from_to(8, 10_000), default=KEYS, metavar="N", help="cold keys of a round (default: %(default)s)")
    add("--buckets", type=_from_to(1, 65_536), default=64, metavar="N", help="of the cluster (default: %(default)s)")
    add("--backups", type=_from_to(1, NODES_MAX - 1), default=1, metavar="N", help="of each bucket (default: %(default)s)")
    add("--fsync", choices=("always", "interval", "never"), default="interval", help="of the append log (default: %(default)s)")
    add("--budget", type=_seconds, default=BUDGET_S, metavar="S", help="of a client's call (default: %(default)g)")
    text = "subscribers, and a logger, that must be told of every change (default: on)"
    add("--listeners", action=argparse.BooleanOptionalAction, default=True, help=text)
    add("--quick", action="store_true", help=f"short rounds, and {QUICK_SECONDS:g} s unless told otherwise")
    return parser


def _from_to(least: int, most: int) -> Callable[[str], int]:
    """A whole number within these, for argparse."""

    def number(text: str) -> int:
        if not least <= (found := int(text)) <= most:
            raise argparse.ArgumentTypeError(f"must be from {least} to {most}")
        return found

    return number


def _seconds(text: str) -> float:
    if not 0 < (found := float(text)) <= SECONDS_MAX:
        raise argparse.ArgumentTypeError("must be above 0, and a week at most")
    return found


def _rate(text: str) -> float:
    if not 1 <= (found := float(text)) <= 5000:
        raise argparse.ArgumentTypeError("must be from 1 to 5000")
    return found


def _kinds(text: str) -> tuple[Kind, ...]:
    try:
        return tuple(dict.fromkeys(Kind(name.strip()) for name in text.split(",")))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of these: {', '.join(Kind)}") from None


def _fresh_file(text: str) -> Path:
    path = Path(text)
    if path.exists():
        raise argparse.ArgumentTypeError(f"{path} is there already; a history is written into a file of its own")
    if not path.resolve().parent.is_dir():
        raise argparse.ArgumentTypeError(f"{path.resolve().parent} is not a directory")
    return path


def _text(argv: Sequence[str], given: int | None, seed: int) -> str:
    """The command that makes this run again."""
    words = ["rcache-soak", *argv] + ([] if given is not None else ["--seed", str(seed)])
    return shlex.join(words)


def carry_out(command: Command) -> Outcome:
    """Run, and write the report. Raises `SoakFailed`."""
    settings = command.settings
    print(command.text)
    print(f"seed {settings.seed}; faults: {', '.join(settings.kinds)}", flush=True)
    with tempfile.TemporaryDirectory(prefix="rcache-soak-") as name:
        directory = Path(name)
        outcome = Run(settings, directory, lambda text: print(text, flush=True)).carry_out()
        if command.report is not None:
            about = About(command.text, datetime.now(UTC).date().isoformat(), describe_machine(directory), version("rcache"))
            print(f"report: {write(figures_of(outcome, settings, about), command.report)}")
            if not outcome.fine:
                shutil.copytree(directory / "logs", command.report / "logs", dirs_exist_ok=True)
        elif not outcome.fine:
            kept = Path(tempfile.mkdtemp(prefix="rcache-soak-logs-"))
            shutil.copytree(directory / "logs", kept, dirs_exist_ok=True)
            print(f"the logs of the nodes: {kept}")
    return outcome


def last_line(outcome: Outcome) -> str:
    """What it all comes to."""
    if outcome.fine:
        gap = max((fault.gap_s for fault in outcome.faults), default=0.0)
        return (
            f"rcache-soak: FINE: {outcome.operations} operations are linearizable through {len(outcome.faults)} faults; "
            f"longest gap {gap:.1f} s, {len(outcome.false_suspicions)} false suspicions"
        )
    first = outcome.violations[0].splitlines()[0][:FIRST_SHOWN]
    more = f" (and {len(outcome.violations) - 1} more)" if len(outcome.violations) > 1 else ""
    return f"rcache-soak: VIOLATED: {first}{more}"


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    command = read_command(sys.argv[1:] if argv is None else argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # whoever ends this run leaves no node behind
    try:
        outcome = carry_out(command)
    except SoakFailed as failure:
        print(f"rcache-soak: NOT RUN: {failure}", file=sys.stderr)
        return NOT_RUN
    except KeyboardInterrupt:
        print("rcache-soak: NOT RUN: interrupted; nothing is proven", file=sys.stderr)
        return NOT_RUN
    for violation in outcome.violations:
        print(violation, file=sys.stderr)
    print(last_line(outcome), flush=True)
    return FINE if outcome.fine else VIOLATED


if __name__ == "__main__":
    sys.exit(main())
