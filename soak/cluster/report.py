"""The report of a run: a page, a drawing, and the figures they are made of.

What it is: `page`, which makes the page from the figures, and `write`, which writes all three. Which thread runs it: the main
thread. What it owns: the files it writes. What it must not know: how a figure came about.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from soak.bench.plots import NoPlot
from soak.cluster.plots import draw
from soak.cluster.schedule import MEANS, Kind

PAGE, FIGURES, DRAWING = "report.md", "figures.json", "soak.svg"

FAULTS_SHOWN = 60
ERRORS_SHOWN = 20


def write(figures: dict[str, Any], directory: Path) -> Path:
    """Write the report into `directory`; returns its page. Raises `OSError`."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / FIGURES).write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    missing = ""
    try:
        draw(figures, directory / DRAWING)
    except NoPlot as why:
        missing = str(why)
    path = directory / PAGE
    path.write_text(page(figures, missing), encoding="utf-8")
    return path


def page(figures: dict[str, Any], no_drawing: str = "") -> str:
    """The page, in Markdown. `no_drawing`: why there is none."""
    parts = [*_head(figures), *_violations(figures), *_calls(figures)]
    parts += [no_drawing or f"![throughput and latency over time, with what was broken]({DRAWING})", ""]
    parts += [*_kinds(figures), *_suspicions(figures), *_faults(figures), *_foot(figures)]
    return "\n".join(parts)


def _head(figures: dict[str, Any]) -> Iterator[str]:
    about, settings = figures["about"], figures["settings"]
    yield "# Soak run: " + ("nothing was violated" if figures["fine"] else "VIOLATED")
    yield ""
    yield f"`{about['command']}`, {about['date']}, rcache {about['version']}"
    yield ""
    yield (
        f"{settings['nodes']} nodes, manager {settings['manager']}, {settings['birth']['backups']} backups of "
        f"{settings['birth']['buckets']} buckets, fsync {settings['birth']['fsync']}; {settings['load']['clients']} clients, "
        f"{settings['load']['rate']:g} calls a second, budget {settings['budget_s']:g} s; {figures['seconds']:.0f} s, seed "
        f"{settings['seed']}."
    )
    yield "Machine: " + "; ".join(f"{name}: {text}" for name, text in about["machine"].items()) + "."
    yield ""
    yield from _summary(figures)
    for note in figures["notes"]:
        yield f"Note: {note}."
        yield ""


def _summary(figures: dict[str, Any]) -> Iterator[str]:
    """What whoever looks for a moment wants to know."""
    faults = figures["faults"]
    gap, wait = (max(faults, key=lambda each: each[name], default=None) for name in ("gap_s", "recovery_s"))
    yield "| | |"
    yield "| --- | --- |"
    yield f"| violations | {len(figures['violations']) or 'none'} |"
    yield f"| operations checked | {figures['checked']['operations']} |"
    yield f"| faults | {len(faults)}, of {len(figures['kinds'])} kinds |"
    if gap is not None and wait is not None:
        yield f"| longest gap of service | {gap['gap_s']:.2f} s, fault {gap['number']}: {gap['text']} |"
        yield f"| longest wait until whole again | {wait['recovery_s']:.2f} s, fault {wait['number']}: {wait['text']} |"
    yield f"| false suspicions | {len(figures['suspicions']['false'])} |"
    yield ""


def _violations(figures: dict[str, Any]) -> Iterator[str]:
    if not figures["violations"]:
        return
    yield "## Violations"
    yield ""
    for violation in figures["violations"]:
        yield "```text"
        yield violation
        yield "```"
    yield ""
    yield "The history of a round that is not linearizable, and the logs of the nodes, are beside this page."
    yield ""


def _calls(figures: dict[str, Any]) -> Iterator[str]:
    calls, checked = figures["calls"], figures["checked"]
    yield "## Calls"
    yield ""
    yield (
        f"{calls['ok']} calls were answered, {calls['fail']} failed (surely not executed, or a read), {calls['unknown']} "
        f"writes are of unknown outcome (they may have happened, or not). Beside these, each node was asked past the views: "
        f"{figures['stayed']} of those calls were answered or are unknown. {checked['operations']} operations on "
        f"{checked['keys']} keys were checked, in {checked['rounds']} rounds, with the last look at each key."
    )
    yield ""
    yield from _told(figures)
    if figures["errors"]:
        yield "| error of a call | times |"
        yield "| --- | ---: |"
        yield from (f"| {name} | {count} |" for name, count in figures["errors"].items())
        yield ""


def _told(figures: dict[str, Any]) -> Iterator[str]:
    if not figures["told"]:
        return
    tape = figures["tape"]
    for name, counts in figures["told"].items():
        if "hits" in counts:
            yield (
                f"The client with a near cache: {counts['hits']} reads were served from there, {counts['misses']} asked of the "
                f"servers; the stalest was of a value that had been replaced {counts['stalest_ms']} ms before."
            )
            continue
        yield (
            f"Subscriber {name.removeprefix('told-')}: {counts['events']} events of {counts['writes']} acknowledged writes, "
            f"{counts['gaps']} gaps."
        )
    yield (
        f"The logger was killed {tape['restarts']} times; its {tape['segments']} files ({tape['bytes'] / (1 << 20):.1f} MiB) "
        f"were rebuilt and held {tape['items']} items, as the cluster did."
    )
    yield ""


def _kinds(figures: dict[str, Any]) -> Iterator[str]:
    yield "## What it cost"
    yield ""
    yield "Seconds. *Gap*: the longest that one client waited for a good answer. *Whole again*: from the fault's end (a node"
    yield "is ready again, or bytes pass again) until every bucket had its backups. A gap of 0 means that nobody waited"
    yield f"longer than 0.05 s. At the start it took {figures['first_whole_s']:.1f} s until every bucket had its backups."
    yield ""
    yield "| fault | times | gap, median | gap, longest | whole again, median | whole again, longest | what happens to a node |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: | --- |"
    for each in figures["kinds"]:
        yield (
            f"| {each['kind']} | {each['count']} | {each['gap_median']:.2f} | {each['gap_most']:.2f} | "
            f"{each['recovery_median']:.2f} | {each['recovery_most']:.2f} | {MEANS[Kind(each['kind'])]} |"
        )
    yield ""


def _suspicions(figures: dict[str, Any]) -> Iterator[str]:
    suspicions, late = figures["suspicions"], figures["machine_late"]
    yield "## Suspicions"
    yield ""
    yield (
        f"Nodes went on without another {suspicions['all']} times; {len(suspicions['false'])} of these were false: nothing "
        f"that was broken then explains them. The machine was late {late['times']} times by more than 0.1 s"
        + (f", at most by {late['longest_s']:.2f} s." if late["longest_s"] else ".")
    )
    yield ""
    for each in suspicions["false"]:
        yield f"- at {each['at']:.1f} s: {each['by']} went on without {each['of']}: {each['why']}"
    if suspicions["false"]:
        yield ""
    if figures["fell_out"]:
        fell = ", ".join(f"{name} {count} times" for name, count in figures["fell_out"].items())
        yield f"Found themselves out of the view, and joined anew: {fell}."
        yield ""


def _faults(figures: dict[str, Any]) -> Iterator[str]:
    faults = figures["faults"]
    yield "## Faults"
    yield ""
    yield "The numbers are those in the drawing."
    yield ""
    yield "| | from, s | to, s | fault | gap, s | whole again, s |"
    yield "| ---: | ---: | ---: | --- | ---: | ---: |"
    for each in faults[-FAULTS_SHOWN:]:
        yield (
            f"| {each['number']} | {each['began']:.1f} | {each['ended']:.1f} | {each['text']} | {each['gap_s']:.2f} | "
            f"{each['recovery_s']:.2f} |"
        )
    yield ""
    if len(faults) > FAULTS_SHOWN:
        yield f"The last {FAULTS_SHOWN} of {len(faults)}; all of them are in {FIGURES}."
        yield ""


def _foot(figures: dict[str, Any]) -> Iterator[str]:
    if figures["errors_said"]:
        yield "## Errors that nodes told of"
        yield ""
        yield "None of these is a violation by itself: a node whose disk is full, or that was left out of the view, says so."
        yield ""
        yield "```text"
        yield from figures["errors_said"][:ERRORS_SHOWN]
        yield "```"
        yield ""
    yield f"Memory in use by a node was {figures['memory_most_bytes'] / (1 << 20):.1f} MiB at most; nothing may be evicted."
    yield ""
