"""The commands of rcache-cli that look at the cluster: nodes, buckets, view, handoffs.

What it is: for each command what it asks, and what came of it in words or tables. They show what one node goes by, the first of
the servers that answered; `handoffs` asks every node of that view.
Which thread runs it: the main thread; every command blocks to its budget at most (handoffs: for so long at each node).
What it owns: nothing. What it must not know: how an answer is written.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from rcache.cluster.view import BadView, NodeState, Placement, View, decode_view
from rcache.commands.cli_answer import Answer
from rcache.commands.cli_exit import CliExit, CliStopped, explain
from rcache.commands.cli_line import Door
from rcache.commands.cli_options import CliOptions
from rcache.commands.show import show_count, show_seconds, show_size
from rcache_client import RcacheError
from rcache_client.wire.opcodes import Opcode

NODE_S = 2.0
"""How long each node has to answer for itself: one that hangs must not hide what the others say."""

EMBEDDED = "embedded"


def ask_view(door: Door) -> tuple[str, View, bytes]:
    """Where views are agreed, and the view that this node goes by, with its text."""
    where, text = door.ask(Opcode.VIEW, 0)
    try:
        return where, decode_view(text), text
    except BadView as error:
        raise CliStopped(CliExit.NOT_REACHED, f"{door.server}: {error}") from None


# --- nodes


def nodes(_options: CliOptions, door: Door) -> Answer:
    where, view, _ = ask_view(door)
    told = [
        {
            "name": name,
            "incarnation": node.incarnation,
            "address": node.address,
            "state": node.state.value,
            "since": node.since,
            "primaries": len(view.primaries_of(name)),
            "backups": len(view.backups_of(name)),
            "register": view.manager == name,
        }
        for name, node in view.nodes.items()
    ]
    table = _table("name", "incarnation", "address", "state", "since", "primaries", "backups held", "register")
    for each in told:
        keeps = "keeps it" if each["register"] else ""
        counts = (f"{each['primaries']:,}", f"{each['backups']:,}")
        incarnation, since = f"{each['incarnation']}", f"epoch {each['since']}"
        table.add_row(f"  {each['name']}", incarnation, str(each["address"]), str(each["state"]), since, *counts, keeps)
    loggers = _loggers(door)
    for name, each in loggers.items():
        table.add_row(f"  {name}", "", "", "logger", f"for {show_seconds(each['connected_s'])}", "", "", "")
    fields = {**_summary(door, where, view), "nodes": told, "loggers": [{"name": n, **each} for n, each in loggers.items()]}
    return Answer(fields, Group(_heading(door, view), table, *_remarks(where, view)))


def _loggers(door: Door) -> dict[str, Any]:
    """Who records what is changed there: each has a feed at every node, and no part in the view."""
    (text,) = door.ask(Opcode.STATS, "")
    found: dict[str, Any] = json.loads(text).get("loggers", {})  # an older server knows of none
    return found


def _summary(door: Door, where: str, view: View) -> dict[str, Any]:
    pause = view.pause
    return {
        "server": door.server,
        "epoch": view.epoch,
        "term": view.term,
        "register": where,
        "paused": {"by": pause.by, "reason": pause.reason, "seconds": pause.seconds, "epoch": pause.epoch} if pause else None,
        "buckets": len(view.placements),
        "lacking": len(view.lacking()),
        "lost": sum(placed.primary is None for placed in view.placements),
    }


def _heading(door: Door, view: View) -> Text:
    return Text(f"epoch {view.epoch} by {view.proposer}, as {door.server} goes by it", style="bold")


def _remarks(where: str, view: View) -> list[Text]:
    """What an operator should not overlook."""
    lacking, lost = len(view.lacking()), sum(placed.primary is None for placed in view.placements)
    remarks = [] if where == EMBEDDED else [f"views are agreed by {where}"]
    if view.pause is not None:
        pause = view.pause
        remarks.append(f"paused in epoch {pause.epoch} for {show_seconds(pause.seconds)} by {pause.by}: {pause.reason}")
    if lacking:
        remarks.append(f"{show_count(lacking, 'bucket')} of {len(view.placements):,} lack backups")
    if lost:
        remarks.append(f"LOST: {show_count(lost, 'bucket')} of {len(view.placements):,} have no copy at any node")
    return [Text(f"  {remark}") for remark in remarks]


# --- buckets


def buckets(options: CliOptions, door: Door) -> Answer:
    where, view, _ = ask_view(door)
    lacking = set(view.lacking())
    states = [_state(placed, bucket in lacking) for bucket, placed in enumerate(view.placements)]
    counts = {state: states.count(state) for state in ("whole", "lacking", "lost")}
    told = {
        name: {"primaries": len(view.primaries_of(name)), "backups": len(view.backups_of(name)), "state": node.state.value}
        for name, node in view.nodes.items()
    }
    fields: dict[str, Any] = {**_summary(door, where, view), **counts, "nodes": told}
    if options.all:
        fields["placements"] = [
            {"bucket": bucket, "primary": placed.primary, "backups": placed.backups, "opened": placed.opened, "state": state}
            for bucket, (placed, state) in enumerate(zip(view.placements, states, strict=True))
        ]
        return Answer(fields, Group(_heading(door, view), _all_buckets(view, states)))
    by_node = _table("node", "state", "primaries", "backups held")
    for name, each in told.items():
        by_node.add_row(f"  {name}", str(each["state"]), f"{each['primaries']:,}", f"{each['backups']:,}")
    shown: list[RenderableType] = [_heading(door, view), by_node, Text(), _states(counts, view)]
    return Answer(fields, Group(*shown, *_remarks(where, view)))


def _state(placed: Placement, is_lacking: bool) -> str:
    return "lost" if placed.primary is None else "lacking" if is_lacking else "whole"


def _states(counts: dict[str, int], view: View) -> Table:
    means = {
        "whole": f"with {show_count(view.settings.backups, 'backup')} in step",
        "lacking": "with fewer backups in step than there should be",
        "lost": "without a copy at any node",
    }
    table = _table("state", "buckets", "")
    for state, count in counts.items():
        table.add_row(f"  {state}", f"{count:,}", means[state])
    return table


def _all_buckets(view: View, states: Sequence[str]) -> Table:
    table = _table("bucket", "primary", "backups", "opened", "state")
    for bucket, (placed, state) in enumerate(zip(view.placements, states, strict=True)):
        table.add_row(f"  {bucket}", placed.primary or "-", ", ".join(placed.backups) or "-", f"epoch {placed.opened}", state)
    return table


# --- the view itself


def view(options: CliOptions, door: Door) -> Answer:
    where, _, text = ask_view(door)
    facts = json.loads(text)
    shown = text + b"\n" if options.raw else _pretty(facts)
    return Answer({"server": door.server, "register": where, "view": facts}, shown)


def _pretty(facts: dict[str, Any]) -> str:
    """JSON with a line for each field, each node and each run of buckets."""
    lines = []
    for name, value in facts.items():
        if isinstance(value, list):
            told = _folded("[]", (json.dumps(each) for each in value))
        elif name == "nodes":
            told = _folded("{}", (f"{json.dumps(each)}: {json.dumps(node)}" for each, node in value.items()))
        else:
            told = json.dumps(value, ensure_ascii=False)
        lines.append(f"  {json.dumps(name)}: {told}")
    return "{\n" + ",\n".join(lines) + "\n}"


def _folded(brackets: str, parts: Iterable[str]) -> str:
    inner = ",\n".join(f"    {part}" for part in parts)
    return f"{brackets[0]}\n{inner}\n  {brackets[1]}" if inner else brackets


# --- handoffs

_UNDER_WAY = ("copies_under_way", "buckets_frozen", "buckets_to_open", "handed_over")
_OF_LINK = ("up", "bytes_behind", "frames_waiting", "buckets_filled", "fill_rows", "fill_bytes")


def handoffs(_options: CliOptions, door: Door) -> Answer:
    """What is under way, as every node tells it of itself. One that does not answer is named, and the rest is shown."""
    _, view, _ = ask_view(door)
    told: dict[str, Any] = {}
    complaints: list[str] = []
    for name, node in view.nodes.items():
        if node.state is NodeState.LOST:
            continue
        try:
            told[name] = _cluster_stats(door, node.address)
        except (RcacheError, CliStopped) as error:
            complaints.append(f"{name}: {explain(error) if isinstance(error, RcacheError) else error}")
    table = _table("node", "copies under way", "frozen", "to open", "handed over", "lacking")
    links = _table("from", "to", "up", "bytes behind", "frames waiting", "filled", "rows", "sent to fill")
    copies = _table("copies from", "to", "buckets whole", "items sent", "bytes sent", "for")
    for name, figures in told.items():
        counts = (f"{figures.get(each, 0):,}" for each in _UNDER_WAY)
        lacking = sum(placed.primary == name for placed in map(view.placements.__getitem__, view.lacking()))
        table.add_row(f"  {name}", *counts, f"{lacking:,}")
        for other, link in figures.get("links", {}).items():
            links.add_row(f"  {name}", other, *_link_cells(link))
            if filling := link.get("filling"):
                copies.add_row(f"  {name}", other, *_filling_cells(filling))
    fields = {
        "server": door.server,
        "epoch": view.epoch,
        "lacking": len(view.lacking()),
        "nodes": {
            name: {each: figures.get(each) for each in (*_UNDER_WAY, "without_room", "links")} for name, figures in told.items()
        },
    }
    code = CliExit.IN_PART if complaints else CliExit.DONE
    shown: list[RenderableType] = [_heading(door, view), table, Text()]
    if copies.row_count:
        shown += [copies, Text()]
    full = [
        Text(f"  {name}: {other} has no room for copies; it is tried again in {left_s:.0f} s")
        for name, figures in told.items()
        for other, left_s in figures.get("without_room", {}).items()
    ]
    return Answer(fields, Group(*shown, links, *full), code, "\n".join(complaints))


def _cluster_stats(door: Door, address: str) -> dict[str, Any]:
    figures: dict[str, Any] = json.loads(door.ask_at(address, Opcode.STATS, "cluster", timeout_s=NODE_S)[0])["cluster"]
    return figures


def _link_cells(link: dict[str, Any]) -> list[str]:
    up, behind, waiting, filled, rows, sent = (link.get(name, 0) for name in _OF_LINK)
    return ["yes" if up else "no", show_size(behind), f"{waiting:,}", f"{filled:,}", f"{rows:,}", show_size(sent)]


def _filling_cells(filling: dict[str, Any]) -> list[str]:
    """How far the copies are that one node is making at another. How many items a bucket has is not counted, but about the
    same for all."""
    buckets = f"{filling['whole']:,} of {filling['buckets']:,}"
    items = f"{filling['rows']:,} of about {filling['rows_about']:,}"
    return [buckets, items, show_size(filling["bytes"]), show_seconds(filling["seconds"])]


_NUMBERS = frozenset(
    {"since", "primaries", "backups held", "buckets", "copies under way", "frozen", "to open", "handed over", "lacking"}
    | {"bytes behind", "frames waiting", "filled", "rows", "sent to fill", "buckets whole", "items sent", "bytes sent", "for"}
)
"""Columns of numbers, which stand below each other."""


def _table(*titles: str) -> Table:
    """A table as rcache-cli shows them."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="cyan")
    for number, title in enumerate(titles):
        shown = f"  {title}" if number == 0 else title
        table.add_column(shown, justify="right" if title in _NUMBERS else "left", no_wrap=number == 0)
    return table
