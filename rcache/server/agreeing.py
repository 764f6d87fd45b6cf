"""An order that is a wish: have it agreed, and wait until the nodes go by it.

What it is: the two steps that most orders consist of, at a member.
Which thread runs it: the worker of the connection that orders; it blocks up to the order's deadline.
What it owns: nothing. What it must not know: what is wished, and why.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection

from rcache.cluster.view import Node, NodeState, View
from rcache.cluster.wishes import Asker, WishRefused
from rcache.member.member import Member
from rcache.server.node_answers import Refusal
from rcache.server.orders import TEXT_MAX, Ordered, bad, not_now, text_of
from rcache_client.wire.opcodes import Status

LOOK_S = 0.01
"""How often it is looked whether the others go by a view: they say so within a heartbeat, or at once."""


class Agreeing:
    """See the module."""

    def __init__(self, member: Member) -> None:
        self._member = member

    def named(self, order: Ordered) -> tuple[str, Node]:
        """The node that the order is about. Raises `Refusal`."""
        name = text_of(order.fields, "node")
        nodes = self._member.view.nodes
        if name not in nodes:
            raise bad(f"{name!r} is not in the view; there are: {', '.join(nodes)}")
        return name, nodes[name]

    def agree(
        self,
        order: Ordered,
        what: str,
        make: Callable[[View, Asker], View],
        on_settled: Callable[[str], None] = lambda _refused: None,
    ) -> View:
        """The view in which this is agreed. Raises `Refusal`. `on_settled` is told, on another thread and perhaps after this
        has returned, why it was refused, or ""."""
        made: list[View] = []
        refusals: list[str] = []
        settled = threading.Event()

        def make_in_time(view: View, asker: Asker) -> View:
            if not order.left_s():
                raise WishRefused("whoever ordered it does not wait any more")
            made.append(make(view, asker))
            return made[-1]

        def done(refused: str) -> None:
            on_settled(refused)
            refusals.append(refused)
            settled.set()

        self._member.wish(what, make_in_time, done)
        if not settled.wait(order.left_s()):
            trouble = self._member.agreement.unreachable or "other changes come first"
            raise Refusal(Status.VIEW_UNSETTLED, f"{what}: not agreed in time; {trouble}"[: 5 * TEXT_MAX])
        if refusals[0]:
            raise not_now(f"{what}: {refusals[0]}")
        return made[-1]

    def await_all(self, epoch: int, order: Ordered, *, without: Collection[str] = (), only: str = "") -> list[str]:
        """Wait until every node that is not lost goes by that view, or a later one. Returns the names of those that do not."""

        def names() -> list[str]:
            return [name for name in self._behind(epoch) if name not in without and only in ("", name)]

        while (behind := names()) and order.left_s():
            time.sleep(LOOK_S)
        return behind

    def _behind(self, epoch: int) -> list[str]:
        nodes = self._member.view.nodes.items()
        return [name for name, node in nodes if node.state is not NodeState.LOST and self._heard_epoch(name, node) < epoch]

    def _heard_epoch(self, name: str, node: Node) -> int:
        member = self._member
        if name == member.name:
            return member.epoch
        neighbour = member.sessions.neighbour(name, node.incarnation)
        return neighbour.heard_epoch if neighbour is not None else 0
