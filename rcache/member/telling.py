"""What the control plane tells people: a line for each change of view, and its statistics.

Which thread runs it: `change_of` the control plane's; `stats_of` any.
What it owns: nothing. What it must not know: how anything is done.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rcache.cluster.bucket_state import BucketState
from rcache.cluster.view import View
from rcache.member.neighbours import Neighbour
from rcache.peers.books import LeaseBooks, boot_ns

if TYPE_CHECKING:
    from rcache.member.board import Board
    from rcache.member.member import Member


def change_of(old: View, view: View) -> str:
    """By whom a view is, and what it changed."""
    parts = _nodes(old, view)
    pairs = list(zip(old.placements, view.placements, strict=True))
    moved = sum(a.primary != b.primary for a, b in pairs)
    added = sum(len(set(b.holders) - set(a.holders)) for a, b in pairs)
    dropped = sum(len(set(a.holders) - set(b.holders)) for a, b in pairs)
    for count, what in ((moved, "change their primary"), (added, "copies more"), (dropped, "copies fewer")):
        if count:
            parts.append(f"{count} {what}")
    if old.pause != view.pause:
        parts.append(f"paused by {view.pause.by}: {view.pause.reason}" if view.pause else "resumed")
    if old.manager != view.manager:
        parts.append(f"{view.manager} keeps the register")
    if old.settings != view.settings:
        parts.append(f"settings {view.settings}")
    return f"epoch {view.epoch} by {view.proposer}: {', '.join(parts) or 'nothing of note'}"


def _nodes(old: View, view: View) -> list[str]:
    parts = []
    for name, node in view.nodes.items():
        was = old.nodes.get(name)
        if was is None:
            parts.append(f"{name} came ({node.state})")
        elif was.incarnation != node.incarnation:
            parts.append(f"{name} came back ({node.state})")
        elif was.state is not node.state:
            parts.append(f"{name} is {node.state}")
    return parts + [f"{name} is gone" for name in old.nodes if name not in view.nodes]


def stats_of(member: Member) -> dict[str, Any]:
    """Counters and gauges; bytes, ms."""
    board, view = member.board, member.view
    counts, agreement = board.counts, board.agreement
    neighbours = list(board.neighbours)
    items_a_bucket = _items_a_bucket(board)
    return {
        "epoch": view.epoch,
        "term": view.term,
        "state": view.nodes[board.name].state.value if board.name in view.nodes else "not in the view",
        "manager": view.manager or "etcd",
        "nodes": len(view.nodes),
        "buckets_lacking_backups": len(view.lacking()),
        "buckets_lost": sum(placed.primary is None for placed in view.placements),
        "buckets_to_open": len(board.roles.openings),
        "buckets_offered": len(board.roles.offered),
        "buckets_frozen": member.handovers.frozen,
        "copies_under_way": sum(len(neighbour.link.filling()) for neighbour in neighbours),
        "without_room": member.copies.without_room,
        "views": counts.views,
        "peers_parted": counts.peers_parted,
        "fell_out": counts.fell_out,
        "handed_over": counts.handed_over,
        "broken_chains": counts.broken_chains,
        "unhandled_errors": member.errors,
        "register_unreachable": agreement.unreachable,
        "wishes_waiting": agreement.waiting,
        "paused_left_s": round(member.pausing.left_s, 1),
        "last_change": counts.last_change,
        "links": {neighbour.peer.name: _link(neighbour, items_a_bucket) for neighbour in neighbours},
        "leases": {neighbour.peer.name: _lease(neighbour, board.books) for neighbour in neighbours},
    }


def _items_a_bucket(board: Board) -> float:
    """About how many items a bucket has: keys are spread evenly over buckets."""
    stats = board.engine.stats()
    held = stats["buckets"]["buckets"] - stats["buckets"][BucketState.ABSENT.value]
    return float(stats["items"]["items"]) / held if held else 0.0


def _link(neighbour: Neighbour, items_a_bucket: float) -> dict[str, object]:
    """What a link did, and where copies are being made over it, of about how many rows that is."""
    told = neighbour.link.stats()
    filling = told.get("filling")
    if isinstance(filling, dict) and filling:
        told["filling"] = {**filling, "rows_about": max(filling["rows"], round(filling["buckets"] * items_a_bucket))}
    return told


def _lease(neighbour: Neighbour, books: LeaseBooks) -> dict[str, object]:
    with books.lock:
        left_ns = books.held.left_ns(neighbour.peer, boot_ns())
    beats = neighbour.heartbeats
    return {"left_ms": left_ns // 1_000_000, "sent": beats.sent, "granted": beats.granted, "trouble": beats.trouble}
