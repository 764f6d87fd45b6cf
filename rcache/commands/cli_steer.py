"""The commands of rcache-cli that steer the cluster: drain, pause, resume, settings, remove, takeover; those about what is
lost are in `cli_lost`.

What it is: for each command the order that it gives (`rcache.server.steering` has the table), and what came of it in words.
Which thread runs it: the main thread; every command blocks to its budget at most.
What it owns: standard input, for the answer to a question.
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


def order(door: Door, verb: str, **fields: Any) -> Facts:
    """Give an order; what came of it."""
    (text,) = door.ask(Opcode.STEER, order_of(verb, **fields))
    answer: Facts = json.loads(text)
    return answer


def order_of(verb: str, **fields: Any) -> bytes:
    """An order as it is sent."""
    return json.dumps({"verb": verb, "by": _who(), **fields}).encode()


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
    answer = order(door, "drain", node=options.node)
    copies = show_count(answer["copies"], "copy", "copies")
    shown = f"{options.node} is leaving: it hands over {copies} and ends; '{PROGRAM} nodes' shows how far it is"
    return _answer(answer, shown)


def pause(options: CliOptions, door: Door) -> Answer:
    answer = order(door, "pause", seconds=options.seconds, reason=options.reason)
    where = "everywhere but where it is said below" if answer["behind"] else "on every node"
    shown = f"writes wait {where}, for {show_seconds(answer['seconds'])} or until '{PROGRAM} resume'"
    return _answer(answer, shown)


def resume(_options: CliOptions, door: Door) -> Answer:
    return _answer(order(door, "resume"), "writes go on")


def settings(options: CliOptions, door: Door) -> Answer:
    """Change what was named, or show what there is."""
    named = ("backups", "lease", "ack", "fsync")
    given = {name: getattr(options, name) for name in named if getattr(options, name) is not None}
    if given:
        answer = order(door, "settings", **given)
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
    return Answer(order(door, "remove", node=options.node), f"{options.node} is none of the cluster any more")


def ask_first(question: str, otherwise: str) -> None:
    """Raises `CliStopped` where nobody says yes, or there is nobody to ask."""
    if not sys.stdin.isatty():
        raise CliStopped(CliExit.REFUSED, otherwise)
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise CliStopped(CliExit.REFUSED, "nothing was changed")


def takeover(options: CliOptions, door: Door) -> Answer:
    answer = order(door, "takeover", stopped=list(options.stopped), accept_old=options.accept_old)
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
