"""The commands of rcache-cli on the service as a whole: ping, stats, persist, flush.

What it is: for each command the calls that it makes, and what came of them in words or tables.
Which thread runs it: the main thread; every command blocks to its budget at most (flush: once more for its question).
What it owns: standard input, for the answer to that question.
What it must not know: how an answer is written.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from rcache.commands.cli_answer import Answer
from rcache.commands.cli_exit import CliExit, CliStopped, code_of, explain
from rcache.commands.cli_options import CliOptions
from rcache.commands.show import show_count, show_seconds, show_size
from rcache_client import Client, RcacheError

OpenClient = Callable[[CliOptions, tuple[str, ...]], Client[bytes]]

_PLAIN = frozenset({"pid", "epoch", "incarnation", "segment_number"})
"""Numbers that are names: no separators of thousands."""


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
    return Answer({"stats": sections}, tables(sections))


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


def tables(sections: Mapping[str, Any]) -> Group:
    """One table for each section."""
    parts: list[Text | Table] = []
    for name, figures in sections.items():
        parts += [Text(name.replace("_", " "), style="bold"), _table(figures), Text()]
    return Group(*parts[:-1])


def _table(figures: Any) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="cyan", no_wrap=True, min_width=26)
    table.add_column(overflow="fold")
    for name, figure in figures.items() if isinstance(figures, Mapping) else [("", figures)]:
        table.add_row(Text(f"  {_title(name, figures)}"), Text(show_figure(name, figure)))
    return table


def _title(name: str, figures: Any) -> str:
    """A figure's name for people: without its unit, which stands beside the number, unless another is called so."""
    for suffix in ("_bytes", "_seconds", "_ms", "_s"):
        if name.removesuffix(suffix) not in figures:
            name = name.removesuffix(suffix)
    return name.replace("_", " ")


def show_figure(name: str, figure: Any) -> str:
    """A figure in the unit that its name ends in."""
    if isinstance(figure, Mapping):
        return ", ".join(f"{each}: {show_figure(each, count)}" for each, count in figure.items()) or "none"
    if isinstance(figure, list):
        return ", ".join(map(str, figure)) or "none"
    if isinstance(figure, bool):
        return "yes" if figure else "no"
    if isinstance(figure, int | float) and name not in _PLAIN:
        return _show_number(name, figure)
    return str(figure) if figure != "" else "-"


def _show_number(name: str, number: float) -> str:
    words = name.split("_")
    if "bytes" in words:
        return show_size(int(number))
    if words[-1] in ("s", "seconds"):
        return show_seconds(number)
    if words[-1] == "ms":
        return show_seconds(number / 1000)
    return f"{number:,}"
