"""The commands of rcache-cli on the service as a whole: ping, stats, persist, flush.

What it is: for each command the calls that it makes, and what came of them in words or tables.
Which thread runs it: the main thread; every command blocks to its budget at most (flush: once more for its question).
What it owns: standard input, for the answer to that question.
What it must not know: how an answer is written.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from rcache.commands.cli_answer import Answer
from rcache.commands.cli_exit import CliExit, CliStopped, code_of, explain
from rcache.commands.cli_options import CliOptions
from rcache.commands.show import show_count, show_seconds
from rcache.commands.show_stats import tables
from rcache_client import Client, RcacheError

OpenClient = Callable[[CliOptions, tuple[str, ...]], Client[bytes]]


def ping(options: CliOptions, open_client: OpenClient) -> Answer:
    """Ask each server by itself: with a list of them, one that is down would otherwise go unnoticed."""
    lines, complaints, codes = [], [], []
    fields: list[dict[str, Any]] = []
    for server in options.servers:
        try:
            with open_client(options, (server,)) as client:
                client.ping()  # connects and says HELLO
                seconds = client.ping()
        except RcacheError as error:
            complaints.append(explain(error))
            codes.append(code_of(error))
            fields.append({"server": server, "seconds": None, "error": str(error)})
        else:
            lines.append(f"{server} answered in {show_seconds(seconds)}")
            fields.append({"server": server, "seconds": seconds})
    code = max(codes, default=CliExit.DONE)
    return Answer({"servers": fields}, "\n".join(lines), code, "\n".join(complaints))


def stats(options: CliOptions, client: Client[bytes]) -> Answer:
    sections = client.stats(options.section)
    beside = client.stats("memory") if options.section == "slabs" and not options.json else {}  # the size of a page
    return Answer({"stats": sections}, tables(sections, beside))


def persist(options: CliOptions, client: Client[bytes]) -> Answer:
    on, savefile = client.persist(None if options.mode == "status" else options.mode == "on")
    shown = (
        f"on: the server saves its data to {savefile} when it stops"
        if on
        else "off: the server writes no savefile when it stops"
    )
    return Answer({"on_shutdown": on, "savefile": savefile}, shown)


def flush(options: CliOptions, client: Client[bytes]) -> Answer:
    """Remove everything, after asking where there is somebody to ask. Raises `CliStopped` where they say no."""
    if not options.yes and sys.stdin.isatty():
        items = client.stats("items").get("items", {}).get("items", 0)
        _ask(f"Remove {show_count(items, 'item')}, all of {', '.join(options.servers)}?")
    removed = client.flush()
    return Answer({"removed": removed}, f"removed {show_count(removed, 'item')}")


def _ask(question: str) -> None:
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise CliStopped(CliExit.REFUSED, "nothing was removed")
