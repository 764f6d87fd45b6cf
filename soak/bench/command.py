"""`rcache-bench`: rcached beside Redis and memcached, fresh, on one machine, in turn.

What it is: the command line: which parts, how long, how much; it measures them one after the other, shows the tables, and
writes figures, drawings and the page.
Which thread runs it: one; the load comes from processes of its own.
What it owns: nothing that outlives it but the report.
What it must not know: how a part measures.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.status import Status

from soak.bench.context import FULL, QUICK, Bench, Sizes
from soak.bench.drivers import Drivers, built_drivers
from soak.bench.errors import BenchError
from soak.bench.machine import allow_open_files, describe_machine
from soak.bench.page import markdown, show, show_goals
from soak.bench.part import Part
from soak.bench.parts import PARTS
from soak.bench.peers import NAMES, Needs, peer_named
from soak.bench.plots import NoPlot, draw
from soak.bench.report import PREFIX, Report, load, save
from soak.bench.samples import Samples

ROOT = Path(__file__).resolve().parents[2]
DESCRIPTORS = 4096
"""Enough for the most connections that any part but `connections` holds, here and (inherited) in each server."""


def default_output() -> Path:
    """The documents of the checkout this runs from; where it is installed, a folder here."""
    documents = ROOT / "docs" / "benchmarks"
    return documents if documents.is_dir() else Path("rcache-bench")


def read_settings(argv: Sequence[str]) -> argparse.Namespace:
    """The command line; exits with 2 where it is wrong."""
    parser = argparse.ArgumentParser(prog="rcache-bench", description="Measure rcached beside Redis and memcached.")
    add = parser.add_argument
    add("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=f"of {', '.join(PARTS)} (default: all)")
    add("--servers", nargs="+", choices=NAMES, default=list(NAMES), help="which to measure (default: all)")
    add("--engine", choices=("auto", "native", "reference"), default="auto", help="rcached's (default: auto)")
    add("--quick", action="store_true", help="small and short, to see that it works; writes no report unless told where")
    add("--rounds", type=_count, help=f"rounds of each measurement (default: {FULL.rounds})")
    add("--seconds", type=_seconds, help=f"length of each measurement (default: {FULL.seconds:g})")
    add("--items", type=_count, help=f"items of the parts items and load (default: {FULL.items:,})")
    add("--max-items", type=_count, help=f"where the part keys ends (default: {FULL.items_max:,})")
    add("--connections", type=_count, help=f"idle ones in the part connections (default: {FULL.connections_held:,})")
    add("--scratch", type=Path, default=Path(tempfile.gettempdir()), help="where servers keep files (default: %(default)s)")
    add("--output", type=Path, help="directory of the report (default: docs/benchmarks, or rcache-bench outside a checkout)")
    add("--render", action="store_true", help="measure nothing: make page and drawings anew from the figures in --output")
    settings = parser.parse_args(argv)
    settings.given = list(argv)
    settings.sizes = _sizes(settings)
    settings.output = settings.output or (None if settings.quick else default_output())
    if settings.render and settings.output is None:
        parser.error("--render needs the --output that --quick leaves out")
    if not settings.scratch.is_dir():
        parser.error(f"--scratch: {settings.scratch} is not a directory")
    return settings


def _count(text: str) -> int:
    if (found := int(text)) < 1:
        raise argparse.ArgumentTypeError("must be above 0")
    return found


def _seconds(text: str) -> float:
    if not 0 < (found := float(text)) <= 3600:
        raise argparse.ArgumentTypeError("must be above 0, and an hour at most")
    return found


def _sizes(settings: argparse.Namespace) -> Sizes:
    base = QUICK if settings.quick else FULL
    given = {
        "rounds": settings.rounds,
        "seconds": settings.seconds,
        "items": settings.items,
        "items_max": settings.max_items,
        "connections_held": settings.connections,
    }
    sizes = replace(base, **{name: value for name, value in given.items() if value is not None})
    return replace(sizes, spread_rounds=max(sizes.spread_rounds, sizes.rounds))


def measure(part: Part, settings: argparse.Namespace, drivers: Drivers, status: Status) -> Report:
    """One part, measured. Raises `BenchError`."""
    installed = [name for name in settings.servers if peer_named(name, Needs()).path]
    missing = [name for name in settings.servers if name not in installed]
    if not installed or "rcached" in missing:
        raise BenchError(f"not installed: {', '.join(peer_named(name, Needs()).program for name in missing)}")
    bench = Bench(settings.sizes, drivers, settings.scratch, installed, settings.engine)
    bench.step = lambda what: status.update(f"{part.name}: {what}")
    samples = part.measure(bench)
    return Report(
        part=part.name,
        command=" ".join(["rcache-bench", *settings.given]),
        date=datetime.now(UTC).date().isoformat(),
        machine=describe_machine(settings.scratch),
        servers=bench.started,
        sizes=asdict(settings.sizes),
        missing=missing,
        samples=Samples(samples),
    )


def render(directory: Path, drawn: Sequence[str], console: Console) -> None:
    """Draw the parts `drawn` anew, and make the page of all parts. Raises `BenchError`."""
    reports = {name: report for name in PARTS if (report := load(name, directory))}
    for name in drawn:
        if name in reports:
            try:
                draw(PARTS[name], reports[name], directory)
            except NoPlot as why:
                console.print(f"{name}: {why}", markup=False)
    page = directory / f"{PREFIX}.md"
    page.write_text(markdown(reports, directory), encoding="utf-8")
    console.print(f"Written: {page}", markup=False)


def run(settings: argparse.Namespace, console: Console) -> list[str]:
    """Measure, show and save every part that was asked for. Returns what went wrong; a part that fails leaves the others be."""
    reports, complaints = {}, []
    allow_open_files(DESCRIPTORS)
    with built_drivers() as drivers:
        for name in settings.parts:
            try:
                with console.status(name) as status:
                    reports[name] = measure(PARTS[name], settings, drivers, status)
            except BenchError as error:
                complaints.append(f"{name}: {error}")
                continue
            show(PARTS[name], reports[name], console)
            if settings.output:
                save(reports[name], settings.output)
                render(settings.output, [name], console)
    show_goals(reports, console)
    return complaints


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; 0 when every measurement was made."""
    settings = read_settings(sys.argv[1:] if argv is None else argv)
    console = Console()
    try:
        if settings.render:
            render(settings.output, list(PARTS), console)
            return 0
        complaints = run(settings, console)
    except BenchError as error:
        complaints = [str(error)]
    except KeyboardInterrupt:
        complaints = ["interrupted; the parts before are saved"]
    for complaint in complaints:
        print(f"rcache-bench: {complaint}", file=sys.stderr)
    return 1 if complaints else 0
