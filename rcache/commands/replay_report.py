"""What rcache-replay says about the files it read: as text for people, as JSON for programs, and as an exit code.

What it is: pure functions from what was loaded to a summary, and from a summary to text.
Which thread runs it: the main thread.
What it owns: nothing.
What it must not know: what is done with the files' content.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

from rcache.commands.replay_exit import ReplayExit
from rcache.commands.replay_files import Loaded
from rcache.commands.replay_options import ReplayOptions
from rcache.commands.replay_times import show_time
from rcache.commands.show import show_count, show_size
from rcache.records.files import FileKind
from rcache.records.history import NO_LIMIT, BucketPlan

EXAMPLES_MAX = 8
"""Buckets named for each kind of problem; their number is always told."""

LINES_MAX = 20
"""Files with damage, or missing segments, listed as text; all are in the JSON."""

_SEQUENCE = re.compile(r"\b\d+\.\d+\b")

Summary = dict[str, Any]


def verdict(options: ReplayOptions, loaded: Loaded) -> ReplayExit:
    """Whether the files may be used as they are. Damage counts before an incomplete history."""
    if loaded.damage and not options.skip_damaged:
        return ReplayExit.DAMAGED
    if loaded.survey.problems and not options.partial:
        return ReplayExit.INCOMPLETE
    return ReplayExit.DONE


def summarise(options: ReplayOptions, loaded: Loaded) -> Summary:
    """What was read, in types that JSON knows; times in ms since 1970, sizes and offsets in bytes."""
    survey, files = loaded.survey, loaded.found.files
    kinds = Counter(file.header.kind for file in files)
    first_ms, last_ms = survey.span_ms
    return {
        "command": options.command,
        "read": {
            "segments": kinds[FileKind.SEGMENT],
            "checkpoints": kinds[FileKind.CHECKPOINT],
            "savefiles": kinds[FileKind.SAVEFILE],
            "copies_left_out": loaded.found.copies,
            "bytes": survey.total_bytes,
            "records": survey.records,
            "nodes": sorted({file.header.node for file in files}),
            "cluster_id": files[0].header.cluster_id.hex() if files else "",
            "first_ms": first_ms,
            "last_ms": last_ms,
        },
        "until_ms": None if options.until == NO_LIMIT else options.until,
        "buckets": len(survey.plans),
        "buckets_of_cluster": files[0].header.buckets if files else 0,
        "buckets_complete": sum(not plan.problems for plan in survey.plans.values()),
        "dead_records": sum(plan.dead for plan in survey.plans.values()),
        "torn": [{"file": str(path), "whole_bytes": whole, "torn_bytes": torn} for path, whole, torn in loaded.torn],
        "damage": [
            {"file": str(damage.path), "offset": damage.offset, "why": damage.why, "resumes_at": damage.resumes_at}
            for damage in loaded.damage
        ],
        "missing": survey.missing,
        "problems": _group_problems(survey.plans.values()),
    }


def _group_problems(plans: Iterable[BucketPlan]) -> list[Summary]:
    """Problems that differ in their sequences only are one, with the number of buckets that have it."""
    groups: dict[str, tuple[str, list[int]]] = {}
    for plan in plans:
        for problem in plan.problems:
            groups.setdefault(_SEQUENCE.sub("N.N", problem), (problem, []))[1].append(plan.bucket)
    return [
        {"problem": example, "buckets": len(buckets), "examples": buckets[:EXAMPLES_MAX]}
        for example, buckets in groups.values()
    ]


def show_summary(summary: Summary) -> list[str]:
    """The summary as lines for people."""
    read = summary["read"]
    counts = [show_count(read[kind + "s"], kind) for kind in ("segment", "checkpoint", "savefile") if read[kind + "s"]]
    lines = [f"read       {', '.join(counts) or 'nothing'} of {_join(read['nodes']) or 'no node'}: "]
    lines[0] += f"{show_count(read['records'], 'record')}, {show_size(read['bytes'])}"
    if read["last_ms"]:
        lines.append(f"changes    from {show_time(read['first_ms'])} to {show_time(read['last_ms'])}")
    if summary["until_ms"] is not None:
        lines.append(f"until      {show_time(summary['until_ms'])}{_place(summary['until_ms'], read)}")
    if read["copies_left_out"]:
        lines.append(
            f"copies     {show_count(read['copies_left_out'], 'copy', 'copies')} of files that are here twice left out"
        )
    if summary["dead_records"]:
        lines.append(f"dead       {show_count(summary['dead_records'], 'record')} off the chain left out")
    lines += _show_torn(summary) + _show_damage(summary)
    lines += _first(f"missing    {why}" for why in summary["missing"])
    lines += [_show_problem(problem) for problem in summary["problems"]]
    lines.append(f"buckets    {summary['buckets_complete']:,} of {summary['buckets']:,} have a complete history")
    if summary["buckets"] < summary["buckets_of_cluster"]:
        lines[-1] += f"; the cluster has {summary['buckets_of_cluster']:,}"
    return lines


def _place(until_ms: int, read: Summary) -> str:
    """What is odd about a moment at which history is cut: most often a time zone was forgotten."""
    if not read["last_ms"]:
        return ""
    if until_ms < read["first_ms"]:
        return ", before the first change (times without a zone are UTC)"
    return ", after the last change: nothing is cut off (times without a zone are UTC)" if until_ms >= read["last_ms"] else ""


def _show_torn(summary: Summary) -> list[str]:
    return [
        f"torn tail  {torn['file']}: {show_count(torn['torn_bytes'], 'byte')} from byte {torn['whole_bytes']} on left out"
        for torn in summary["torn"]
    ]


def _show_damage(summary: Summary) -> list[str]:
    return _first(f"damage     {each['file']}: at byte {each['offset']}: {each['why']}" for each in summary["damage"])


def _show_problem(problem: Summary) -> str:
    buckets = problem["buckets"]
    more = ", ..." if buckets > len(problem["examples"]) else ""
    where = f"{show_count(buckets, 'bucket')} ({', '.join(map(str, problem['examples']))}{more})"
    return f"problem    {where}: {problem['problem']}"


def _first(lines: Iterable[str]) -> list[str]:
    """The first lines, and how many more there are."""
    every = list(lines)
    return every[:LINES_MAX] + ([f"           and {len(every) - LINES_MAX:,} more"] if len(every) > LINES_MAX else [])


SKIP_HINT = "--skip-damaged goes on without what cannot be read, and --partial where the history then has a gap"
"""Both are named at once: what is lost in the middle nearly always leaves a gap behind it."""


def advice(code: ReplayExit) -> str:
    """What to do about a verdict that is not fine."""
    if code is ReplayExit.DAMAGED:
        return f"damaged: {SKIP_HINT}"
    return "incomplete: are the directories of all nodes here? --partial goes on with what is there"


def _join(names: list[str]) -> str:
    return ", ".join(names)
