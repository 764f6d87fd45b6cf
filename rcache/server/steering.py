"""What an operator orders: each order checked, brought to the register as a wish, and answered once it holds.

What it is: `steering`, which STEER calls with an order, a JSON object {"verb": ..., ...}, and whose answer is another; and
`early_steering`, for a node that is no member yet.
Which thread runs it: the worker of the connection that orders. It blocks for the register, for other nodes and for views, all
within the budget of the order.
What it owns: nothing. What it must not know: sockets; how orders are written on a command line, or answers shown.

| verb | fields | what comes of it |
| --- | --- | --- |
| drain | node | it hands over what it has, and ends |
| pause | seconds, reason | writes wait, on every node that is not named as `behind` |
| resume | | they go on |
| settings | backups, lease, ack, fsync (each may be left out) | what belongs to the cluster is changed |
| remove | node | one that has left, or is lost, is none of the cluster any more |
| lost | node, stopped, lose_max, dry_run | a node that is stopped for good loses its roles, and with them what only it had |
| files | buckets | what this node's own files still hold of these buckets, and up to where |
| renew | recover, empty, epoch | lost buckets begin again at this node, from its files or empty; they are spread from there |
| takeover | stopped, accept_old | this node keeps the register of a holder that is stopped for good |

The last four are in `losing`, `offering` and `takeover`. Every order may say `by`: who gives it. Refused with the reason:
BAD_ARGUMENT for an order that is none, NOT_ALLOWED for one that may not be carried out as things are, VIEW_AHEAD for one that
needs a member. VIEW_UNSETTLED: not agreed in time; it may still come, but is not begun any more.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

from rcache.cluster import wishes
from rcache.cluster.view import Node, NodeState, View
from rcache.cluster.wishes import Asker, WishRefused
from rcache.member.member import Member
from rcache.server import takeover
from rcache.server.agreeing import Agreeing
from rcache.server.asking import Others
from rcache.server.losing import Losing
from rcache.server.node_answers import Standing
from rcache.server.offering import Offering
from rcache.server.orders import Desk, Order, Ordered, Verb, bad, changed_settings, checked_settings, not_now
from rcache.server.orders import number_of as _number
from rcache.server.orders import text_of as _text
from rcache.server.takeover import Takeover
from rcache.stream.old_files import OldFiles
from rcache.stream.policy import FsyncPolicy
from rcache_client.handshake import Greeter
from rcache_client.wire.opcodes import Opcode

VERBS = {
    "drain": frozenset({"node"}),
    "pause": frozenset({"seconds", "reason"}),
    "resume": frozenset[str](),
    "settings": frozenset({"backups", "lease", "ack", "fsync"}),
    "remove": frozenset({"node"}),
    "lost": frozenset({"node", "stopped", "lose_max", "dry_run"}),
    "files": frozenset({"buckets"}),
    "renew": frozenset({"recover", "empty", "epoch"}),
    "takeover": takeover.FIELDS,
}
"""Every verb, and the fields that it takes."""


def early_steering(standing: Standing, name: str, greeter: Greeter) -> Desk:
    """For a node that is no member yet: it can be told to keep the register that it waits for."""
    verbs = {"takeover": Verb(VERBS["takeover"], Early(standing, name, greeter))}
    return Desk(name, verbs, later=frozenset(VERBS) - set(verbs))


class Early:
    """A takeover before this node is a member: nobody is waited for, because nobody is heard of yet."""

    def __init__(self, standing: Standing, name: str, greeter: Greeter) -> None:
        self._takeover = Takeover(standing, name, Others(greeter))

    def __call__(self, order: Ordered) -> Order:
        return {**self._takeover(order), "behind": []}


class Steering(Desk):
    """Of a member. `stop`: have this process stop in order, for that reason; also where another node was given the order.
    `files`: what is in this node's data directory."""

    def __init__(self, standing: Standing, member: Member, stop: Callable[[str], None], files: OldFiles) -> None:
        self._member = member
        self._others = Others(member.parts.greeter)
        self._agreeing = Agreeing(member)
        self._register = Takeover(standing, member.name, self._others)
        member.departure.on_told = stop
        losing = Losing(member, self._others, self._agreeing)
        offering = Offering(member, self._agreeing, files)
        acts = {
            "drain": self._drain,
            "pause": self._pause,
            "resume": self._resume,
            "settings": self._settings,
            "remove": self._remove,
            "lost": losing.lost,
            "files": offering.files,
            "renew": offering.renew,
            "takeover": self._take_over,
        }
        super().__init__(member.name, {name: Verb(fields, acts[name]) for name, fields in VERBS.items()})

    def _drain(self, order: Ordered) -> Order:
        name, node = self._agreeing.named(order)
        epoch = self._member.epoch
        if node.state is NodeState.LOST:
            raise not_now(f"{name} is lost: there is nothing to hand over; `remove` takes it out of the view")
        if node.state is not NodeState.LEAVING:
            agreed = self._agreeing.agree(order, f"drain {name}", lambda view, asker: wishes.leave(view, asker, name))
            epoch = agreed.epoch
        copies = self._member.view.copies_of(name)
        behind = self._agreeing.await_all(epoch, order, only=name)
        return {"node": name, "epoch": epoch, "copies": copies, "behind": behind}

    def _pause(self, order: Ordered) -> Order:
        seconds = _number(order.fields, "seconds", 0.0, wishes.PAUSE_S_MAX)
        reason = _text(order.fields, "reason")
        by = order.by

        def make(view: View, asker: Asker) -> View:
            made = wishes.pause(view, asker, reason, seconds)
            assert made.pause is not None
            return replace(made, pause=replace(made.pause, by=by))

        agreed = self._agreeing.agree(order, f"pause for {seconds:g} s", make)
        return {"epoch": agreed.epoch, "seconds": seconds, "behind": self._agreeing.await_all(agreed.epoch, order)}

    def _resume(self, order: Ordered) -> Order:
        agreed = self._agreeing.agree(order, "resume", wishes.resume)
        return {"epoch": agreed.epoch, "behind": self._agreeing.await_all(agreed.epoch, order)}

    def _settings(self, order: Ordered) -> Order:
        given = checked_settings(order.fields)
        if not given:
            raise bad("settings: nothing to change was named; there are: backups, lease, ack, fsync")
        if given.get("fsync") == FsyncPolicy.ALWAYS.value:
            self._demand_logs(order)

        def make(view: View, asker: Asker) -> View:
            changed = changed_settings(view.settings, given)
            if changed == view.settings:
                raise WishRefused("the cluster has these settings already")
            return wishes.set_settings(view, asker, changed)

        agreed = self._agreeing.agree(order, "change settings", make)
        now = agreed.settings
        told = {"backups": now.backups, "lease": now.lease_s, "grace": now.grace_s, "ack": now.ack_s, "fsync": now.fsync}
        behind = self._agreeing.await_all(agreed.epoch, order)
        return {"epoch": agreed.epoch, "settings": told, "lacking": len(agreed.lacking()), "behind": behind}

    def _demand_logs(self, order: Ordered) -> None:
        """With fsync always answers wait for the log: one that is not there would have them acknowledged too early."""
        for name, node in self._member.view.nodes.items():
            if node.state is not NodeState.LOST and self._log_policy(name, node, order) == "off":
                raise not_now(f"fsync always: {name} keeps no append log; restart it with one first")

    def _log_policy(self, name: str, node: Node, order: Ordered) -> str:
        if name == self._member.name:
            log = self._member.parts.log
            return log.policy.value if log is not None else "off"
        told = self._others.ask(name, node, order, Opcode.STATS, "append_log")
        if told.values is None:
            raise not_now(f"fsync always: how the append log of {name} runs is not known: {told.trouble}")
        return str(json.loads(told.values[0])["append_log"]["fsync"])

    def _remove(self, order: Ordered) -> Order:
        name, _ = self._agreeing.named(order)
        agreed = self._agreeing.agree(order, f"remove {name}", lambda view, asker: wishes.remove(view, asker, name))
        return {"node": name, "epoch": agreed.epoch}

    def _take_over(self, order: Ordered) -> Order:
        answer = self._register(order)
        if not answer["taken"]:
            return {**answer, "behind": []}
        stopped = order.fields.get("stopped", ())
        return {**answer, "behind": self._agreeing.await_all(answer["epoch"], order, without=stopped)}
