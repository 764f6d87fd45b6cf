"""A node that is stopped for good, and what is lost with it.

What it is: the order `lost`. How lost buckets begin again is in `offering`.
Which thread runs it: the worker of the connection that orders; it blocks for other nodes and for views.
What it owns: nothing. What it must not know: how views are carried out.

Invariant 11 of `design`, section 5: only an operator who names the node as stopped declares its buckets lost, it is loud, and
what is lost is told before. (A node that is only slow, or cut off, is taken for gone, and what it alone has is forgotten.)
"""

from __future__ import annotations

import math
import time

from loguru import logger

from rcache.cluster import wishes
from rcache.cluster.leases import Peer
from rcache.cluster.view import Node, NodeState, View
from rcache.cluster.wishes import Asker, WishRefused
from rcache.member.member import Member
from rcache.peers.books import boot_ns
from rcache.server.agreeing import LOOK_S, Agreeing
from rcache.server.asking import Others
from rcache.server.orders import Order, Ordered, bad, not_now, number_of


class Losing:
    """See the module."""

    def __init__(self, member: Member, others: Others, agreeing: Agreeing) -> None:
        self._member = member
        self._others = others
        self._agreeing = agreeing

    def lost(self, order: Ordered) -> Order:
        name, node = self._agreeing.named(order)
        lose_max = int(number_of(order.fields, "lose_max", -1, len(self._member.view.placements), default=math.inf))
        if order.fields.get("stopped") is not True:
            raise bad(f"lost: say that {name} is stopped: what only a running node has is not lost")
        if node.state is NodeState.LOST:
            raise not_now(f"{name} is lost already; `remove` takes it out of the view")
        if self._member.view.manager == name:
            raise not_now(f"{name} keeps the register, so views cannot change without it: takeover gives it to another node")
        if why := self._sign_of_life(name, node, order):
            raise not_now(f"{name} is not stopped: {why}")
        if order.fields.get("dry_run") is True:
            return {"node": name, "dry_run": True, **_losses(self._member.view, name)}
        losing: Order = {}

        def make(view: View, asker: Asker) -> View:
            losses = len(_losses(view, name)["lost"])
            if losses > lose_max:
                raise WishRefused(f"{losses} buckets would lose their only copy; not more than {lose_max} may")
            if view.nodes.get(name) != node:
                raise WishRefused(f"{name} is another than it was a moment ago")
            losing.update(_losses(view, name))
            return wishes.declare_lost(view, asker, name)

        agreed = self._agreeing.agree(order, f"declare {name} lost", make)
        if losing["lost"]:
            logger.error(
                "LOST: {} buckets had their only copy at {}, which {} declared lost", len(losing["lost"]), name, order.by
            )
        return {"node": name, "epoch": agreed.epoch, "dry_run": False, **losing}

    def _sign_of_life(self, name: str, node: Node, order: Ordered) -> str:
        """Why it cannot be stopped; "" where nothing is heard of it."""
        if name == self._member.name:
            return "it answers this"
        if self._others.runs(name, node, order):
            return f"it answers at {node.address}"
        until = min(order.deadline, time.monotonic() + self._member.view.settings.grace_s)
        while self._holds_lease(name, node):  # of a node that has just stopped it runs out
            if time.monotonic() >= until:
                return "it answers heartbeats"
            time.sleep(LOOK_S)
        return ""

    def _holds_lease(self, name: str, node: Node) -> bool:
        books = self._member.books
        with books.lock:
            return books.held.holds(Peer(name, node.incarnation), boot_ns())


def _losses(view: View, name: str) -> Order:
    """What becomes of the buckets of a node that is lost: those that only it had, and those that a backup takes over."""
    mine = view.primaries_of(name)
    return {
        "lost": [bucket for bucket in mine if not view.placements[bucket].backups],
        "promoted": [bucket for bucket in mine if view.placements[bucket].backups],
    }
