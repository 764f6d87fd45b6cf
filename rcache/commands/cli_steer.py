"""The commands of rcache-cli that steer the cluster: drain, pause, resume, settings, remove, lost, renew, takeover.

What it is: for each command the order that it gives (`rcache.server.steering` has the table), and what came of it in words.
Which thread runs it: the main thread; every command blocks to its budget at most (lost, renew: longer, for a question).
What it owns: standard input, for the answer to that question.
What it must not know: how an order is carried out, or an answer written.

An order is given once, to the first of the servers that answers: one whose answer was lost is looked after, not given again.
"""

from __future__ import annotations

import getpass
import json
import socket
import sys
from collections.abc import Sequence
from typing import Any

from rcache.commands.cli_answer import Answer
from rcache.commands.cli_cluster import ask_view
from rcache.commands.cli_exit import CliExit, CliStopped
from rcache.commands.cli_line import Door
from rcache.commands.cli_options import PROGRAM, CliOptions
from rcache.commands.show import show_count, show_seconds
from rcache_client.wire.opcodes import Opcode

Facts = dict[str, Any]

RANGES_SHOWN = 20
"""Of a long list of buckets so many ranges are told; --json has all."""


def _order(door: Door, verb: str, **fields: Any) -> Facts:
    """Give an order; what came of it."""
    order = {"verb": verb, "by": _who(), **fields}
    (text,) = door.ask(Opcode.STEER, json.dumps(order).encode())
    answer: Facts = json.loads(text)
    return answer


def _who() -> str:
    """Who gives the order: it stands in the nodes' logs."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a user without a name
        user = PROGRAM
    return f"{user}@{socket.gethostname()}"[:200]


def _answer(answer: Facts, shown: str) -> Answer:
    """With who does not go by the view in which it was agreed."""
    behind = answer.get("behind", [])
    complaint = f"did not say in time that they go by epoch {answer['epoch']}: {', '.join(behind)}" if behind else ""
    return Answer(answer, shown, CliExit.IN_PART if behind else CliExit.DONE, complaint)


def drain(options: CliOptions, door: Door) -> Answer:
    answer = _order(door, "drain", node=options.node)
    copies = show_count(answer["copies"], "copy", "copies")
    shown = f"{options.node} is leaving: it hands over {copies} and ends; '{PROGRAM} nodes' shows how far it is"
    return _answer(answer, shown)


def pause(options: CliOptions, door: Door) -> Answer:
    answer = _order(door, "pause", seconds=options.seconds, reason=options.reason)
    where = "everywhere but where it is said below" if answer["behind"] else "on every node"
    shown = f"writes wait {where}, for {show_seconds(answer['seconds'])} or until '{PROGRAM} resume'"
    return _answer(answer, shown)


def resume(_options: CliOptions, door: Door) -> Answer:
    return _answer(_order(door, "resume"), "writes go on")


def settings(options: CliOptions, door: Door) -> Answer:
    """Change what was named, or show what there is."""
    named = ("backups", "lease", "ack", "fsync")
    given = {name: getattr(options, name) for name in named if getattr(options, name) is not None}
    if given:
        answer = _order(door, "settings", **given)
        lacking = answer["lacking"]
        more = f"\n{show_count(lacking, 'bucket')} lack backups now; they are made" if lacking else ""
        return _answer(answer, _settings(answer["settings"]) + more)
    _, view, _ = ask_view(door)
    now = view.settings
    facts = {"backups": now.backups, "lease": now.lease_s, "grace": now.grace_s, "ack": now.ack_s, "fsync": now.fsync}
    return Answer({"epoch": view.epoch, "settings": facts}, _settings(facts))


def _settings(facts: Facts) -> str:
    means = {
        "backups": "copies beside each primary",
        "lease": "how long a primary may count on a backup that it does not hear of",
        "grace": "how long a backup waits before it takes over from a silent primary",
        "ack": "how long a backup may owe an acknowledgement",
        "fsync": "when the append logs are made durable",
    }
    shown = {name: value if name in ("backups", "fsync") else show_seconds(value) for name, value in facts.items()}
    return "\n".join(f"{name:8} {shown[name]!s:10} {text}" for name, text in means.items())


def remove(options: CliOptions, door: Door) -> Answer:
    return Answer(_order(door, "remove", node=options.node), f"{options.node} is none of the cluster any more")


def lost(options: CliOptions, door: Door) -> Answer:
    """First ask what would be lost, then whether it may be."""
    said: Facts = {"node": options.node, "stopped": True}
    would = _order(door, "lost", **said, dry_run=True)
    buckets = would["lost"]
    if buckets and not options.yes:
        what = f"{show_count(len(buckets), 'bucket')} have their only copy at {options.node}: {show_ranges(buckets)}"
        _ask(f"{what}. Lose what is in them?", f"{what}. Nothing was changed; --yes loses what is in them")
    answer = _order(door, "lost", **said, lose_max=len(buckets))
    shown = f"{options.node} is lost; {show_count(len(answer['promoted']), 'bucket')} went to their backups"
    if not answer["lost"]:
        return Answer(answer, shown)
    return Answer(
        answer, f"{shown}, {show_count(len(answer['lost']), 'bucket')} are lost with it: {show_ranges(answer['lost'])}"
    )


def _ask(question: str, otherwise: str) -> None:
    """Raises `CliStopped` where nobody says yes, or there is nobody to ask."""
    if not sys.stdin.isatty():
        raise CliStopped(CliExit.REFUSED, otherwise)
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise CliStopped(CliExit.REFUSED, "nothing was changed")


def renew(options: CliOptions, door: Door) -> Answer:
    """What was lost cannot be offered by anybody any more once it has begun again."""
    _, view, _ = ask_view(door)
    buckets = [bucket for bucket, placed in enumerate(view.placements) if placed.primary is None]
    if buckets and not options.yes:
        what = f"{show_count(len(buckets), 'lost bucket')} begin again, empty: {show_ranges(buckets)}"
        _ask(f"{what}. Shall they?", f"{what}. Nothing was changed; --yes does it")
    answer = _order(door, "renew")
    return Answer(
        answer, f"{show_count(len(answer['renewed']), 'bucket')} begin again, empty: {show_ranges(answer['renewed'])}"
    )


def takeover(options: CliOptions, door: Door) -> Answer:
    answer = _order(door, "takeover", stopped=list(options.stopped), accept_old=options.accept_old)
    old, shared, away = answer["old"], answer["shared"], answer["away"]
    what = f"{show_count(len(old), 'bucket')}, whose primary is stopped, may have been changed without their backups"
    if not answer["taken"]:
        advice = "Nothing was changed. Start what is stopped, or go on from the backups with --accept-old"
        return Answer(answer, code=CliExit.REFUSED, complaint=f"{what}: {show_ranges(old)}\n{advice}")
    lines = [f"{door.server} keeps the register in place of {answer['from']}, from epoch {answer['epoch']} on"]
    if shared:
        lines.append(
            f"{show_count(len(shared), 'bucket')} go on without a backup that is stopped: if it was cut off from their primary"
            f" before it stopped, it may have changed them alone: {show_ranges(shared)}"
        )
    if old:
        lines.append(f"{what}; the backups take over: {show_ranges(old)}")
    if away:
        lines.append(
            f"{show_count(len(away), 'bucket')} wait for a stopped node, which has their only copy: {show_ranges(away)}"
        )
    return _answer(answer, "\n".join(lines))


def show_ranges(numbers: Sequence[int]) -> str:
    """Numbers in order, those that follow each other as a range."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    shown = [f"{first}" if first == last else f"{first}-{last}" for first, last in ranges[:RANGES_SHOWN]]
    return ", ".join(shown) + (" and more" if len(ranges) > RANGES_SHOWN else "")
