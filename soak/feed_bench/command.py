"""Events a second to 1, 10 and 100 subscribers, how late they come, and what they cost the writers: the program.

    python -m soak.feed_bench [--rounds N] [--seconds S] [--rate N] [--subscribers N ...] [--output DIRECTORY]

What it is: for each pace of the writers and number of subscribers, one measurement of rcached with values, of rcached with
names, and of Redis, in turn; then what one client in Python takes. It prints tables, and writes them as a page.
Which thread runs it: one. What it owns: a directory for the servers' files, the programs of the load.
What it must not know: how one measurement is made (`measure`, `views`), how a table looks (`page`).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.status import Status

from soak.bench.drivers import Drivers, built_drivers
from soak.bench.machine import describe_machine
from soak.bench.samples import Sample, Samples
from soak.feed_bench.contenders import CONTENDERS, Contender
from soak.feed_bench.hearing import limit_of_hearing
from soak.feed_bench.measure import Setting, measure
from soak.feed_bench.page import FULL_RATE, LIMIT, VIEWS, as_page, show
from soak.feed_bench.views import VIEWS as CLIENTS
from soak.feed_bench.views import View, measure_view
from soak.measured import Shown, carry_out

SUBSCRIBERS = (1, 10, 100)
SUBSCRIBERS_MAX = 1000
LIMIT_S = 0.5


def pace(rate: int) -> str:
    return f"at {rate:,} a second" if rate else FULL_RATE


def run(given: argparse.Namespace, console: Console) -> dict[str, Any]:
    """All rounds. Raises `BenchError`."""
    missing = {each.name: why for each in (*CONTENDERS, *CLIENTS) if (why := each.why_not())}
    contenders = [each for each in CONTENDERS if each.name not in missing]
    clients = [each for each in CLIENTS if each.name not in missing]
    setting = Setting(given.seconds, Path(given.scratch), given.engine, {})
    samples: list[Sample] = []
    with built_drivers() as drivers, console.status("starting") as status:
        for number in range(1, given.rounds + 1):
            say = partial(_say, status, f"round {number} of {given.rounds}")
            for rate in (0, given.rate):
                samples += _tellers(drivers, setting, contenders, (rate, given.subscribers), number, say)
            samples += _clients(drivers, setting, clients, number, say)
        samples += _limits(drivers, given, [each for each in contenders if each.protocol == "rcache"])
    return {
        "command": given.command,
        "date": datetime.now(UTC).date().isoformat(),
        "machine": describe_machine(Path(given.scratch)),
        "rounds": given.rounds,
        "seconds": given.seconds,
        "contenders": "; ".join(each.name for each in contenders),
        "servers": setting.started,
        "packages": {name: version for each in clients for name, version in each.versions.items()},
        "missing": missing,
        "samples": Samples(samples),
    }


def _say(status: Status, when: str, what: str) -> None:
    status.update(f"{when}: {what}")


def _tellers(
    drivers: Drivers,
    setting: Setting,
    contenders: Sequence[Contender],
    load: tuple[int, Sequence[int]],
    number: int,
    say: Callable[[str], None],
) -> list[Sample]:
    """One round at one pace: with each number of subscribers each contender. `load`: the rate, and those numbers."""
    rate, counts = load
    samples = []
    for count in (0, *counts):
        for each in contenders:
            say(f"{each.name}, {count} subscribers, writers {pace(rate)}")
            samples.append(Sample(pace(rate), count, each.name, number, measure(drivers, each, count, rate, setting)))
    return samples


def _clients(
    drivers: Drivers, setting: Setting, clients: Sequence[View], number: int, say: Callable[[str], None]
) -> list[Sample]:
    samples = []
    for each in clients:
        say(each.name)
        samples.append(Sample(VIEWS, 1, each.name, number, measure_view(drivers, each, 0, setting)))
    return samples


def _limits(drivers: Drivers, given: argparse.Namespace, contenders: Sequence[Contender]) -> list[Sample]:
    samples = []
    with tempfile.TemporaryDirectory(prefix="rcache-feeds-", dir=given.scratch) as own:
        for count in given.subscribers:
            for each in contenders:
                figures = limit_of_hearing(drivers, each, count, min(LIMIT_S, given.seconds), Path(own))
                samples.append(Sample(LIMIT, count, each.name, 1, figures))
    return samples


def read_settings(argv: Sequence[str]) -> argparse.Namespace:
    """The command line; exits with 2 where it is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m soak.feed_bench",
        description="Measure what subscribers are told, and what they cost the writers, beside Redis's notifications.",
    )
    parser.add_argument("--rounds", type=int, default=5, help="(default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of each measurement (default: %(default)s)")
    parser.add_argument(
        "--rate", type=int, default=20_000, help="SETs a second, beside those at full rate (default: %(default)s)"
    )
    parser.add_argument(
        "--subscribers", type=int, nargs="+", default=list(SUBSCRIBERS), metavar="N", help="how many (default: 1 10 100)"
    )
    engines = ("auto", "native", "reference")
    parser.add_argument("--engine", choices=engines, default="auto", help="rcached's (default: %(default)s)")
    parser.add_argument(
        "--scratch", default=tempfile.gettempdir(), metavar="DIRECTORY", help="for the servers' files (default: %(default)s)"
    )
    parser.add_argument("--output", type=Path, metavar="DIRECTORY", help="write feeds.md and feeds.json there")
    given = parser.parse_args(argv)
    given.command = " ".join(["python -m soak.feed_bench", *argv])
    if given.rounds < 1 or not 0 < given.seconds <= 60 or not 40 <= given.rate <= 1_000_000:
        parser.error("--rounds must be 1 or more, --seconds above 0 and 60 at most, --rate 40 to 1000000")
    if not all(1 <= each <= SUBSCRIBERS_MAX for each in given.subscribers):
        parser.error(f"--subscribers takes numbers from 1 to {SUBSCRIBERS_MAX}")
    return given


def _figures(report: dict[str, Any]) -> str:
    facts = report | {"samples": [asdict(sample) for sample in report["samples"]]}
    return json.dumps(facts, indent=1) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; 0 when it was measured."""
    given = read_settings(sys.argv[1:] if argv is None else argv)
    console = Console()

    def measure() -> dict[str, Any]:
        report = run(given, console)
        show(report, console)
        return report

    return carry_out("feed_bench", measure, lambda report: Shown(as_page(report), _figures(report)), given.output, "feeds")
