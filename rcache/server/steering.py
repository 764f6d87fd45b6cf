"""What an operator orders: each order checked, brought to the register as a wish, and answered once it holds.

What it is: `Steering`, which STEER calls with an order, a JSON object {"verb": ..., ...}, and whose answer is another.
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
| renew | | lost buckets begin again, empty, at this node; they are spread from there |
| takeover | stopped, accept_old | this node keeps the register of a holder that is stopped for good |

Every order may say `by`: who gives it. Refused with the reason: BAD_ARGUMENT for an order that is none, NOT_ALLOWED for one
that may not be carried out as things are. VIEW_UNSETTLED: not agreed in time; it may still come, but is not begun any more.

A takeover, and what it does not do. It asks every node of the newest view that it can find, and goes on from the newest that
any of them knows, in the next term. Whoever does not answer must be named as stopped, and whoever is named so must not answer.
It does not have the others promise to follow nobody else meanwhile: two takeovers at once are for operators to avoid.
Once views can change again, backups take over from a primary that is silent by themselves. So what a stopped node may have
changed without its backup (it parted from it, and nobody who is left heard of that) is not promoted only if nothing is: such a
takeover is not begun without `accept_old`.
"""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from loguru import logger

from rcache.cluster import wishes
from rcache.cluster.leases import Peer
from rcache.cluster.register import RegisterFailed, Revised
from rcache.cluster.view import BadView, Node, NodeState, Settings, View, decode_view
from rcache.cluster.wishes import Asker, WishRefused
from rcache.member.member import Member
from rcache.peers.books import boot_ns
from rcache.peers.line import Line, PeerUnreachable
from rcache.server.node_answers import Refusal
from rcache.stream.policy import FsyncPolicy
from rcache_client.address import parse_address
from rcache_client.wire.opcodes import Opcode, Status, status_name

ANSWER_SHARE = 0.9
"""Of an order's budget is for the order; the rest is for the answer on its way."""

LOOK_S = 0.01
"""How often it is looked whether the others go by a view: they say so within a heartbeat, or at once."""

ASK_S = 2.0
"""How long another node has to take a connection, and again to answer. One that is slower counts as one that does not."""

ROUNDS_MAX = 5
"""How often a newer view that is found begins the asking anew. Nothing changes it while the register is gone."""

TEXT_MAX = 200
"""Characters of a reason, or of a name: they stand in every view, and in one line of the log."""

BACKUPS_MAX = 8
LEASE_MIN_S, LEASE_MAX_S = 0.05, 60.0
"""As rcached's own options take them."""
ACK_MAX_S = 600.0
GRACE_OF_LEASE = 1.5
Order = dict[str, Any]


class _Ordered(NamedTuple):
    """An order under way: its fields, who gave it, and until when it is to be answered (a reading of `time.monotonic`)."""

    fields: Order
    by: str
    deadline: float

    def left_s(self) -> float:
        return max(0.0, self.deadline - time.monotonic())


@dataclass(frozen=True, slots=True)
class _Heard:
    """What came of asking a node. `trouble`: why there is no view."""

    view: View | None = None
    answers: bool = False
    trouble: str = ""


def _bad(why: str) -> Refusal:
    return Refusal(Status.BAD_ARGUMENT, why)


def _not_now(why: str) -> Refusal:
    return Refusal(Status.NOT_ALLOWED, why)


class Steering:
    """See the module. `stop`: have this process stop in order, for that reason; also where another node was given the order."""

    def __init__(self, member: Member, stop: Callable[[str], None]) -> None:
        self._member = member
        member.departure.on_told = stop
        self._verbs: dict[str, tuple[frozenset[str], Callable[[_Ordered], Order]]] = {
            "drain": (frozenset({"node"}), self._drain),
            "pause": (frozenset({"seconds", "reason"}), self._pause),
            "resume": (frozenset(), self._resume),
            "settings": (frozenset({"backups", "lease", "ack", "fsync"}), self._settings),
            "remove": (frozenset({"node"}), self._remove),
            "lost": (frozenset({"node", "stopped", "lose_max", "dry_run"}), self._lost),
            "renew": (frozenset(), self._renew),
            "takeover": (frozenset({"stopped", "accept_old"}), self._takeover),
        }

    def __call__(self, order: Order, budget_s: float) -> Order:
        """Carry out an order. Blocks up to `budget_s`. Raises `Refusal`."""
        verb = order.get("verb")
        known, act = self._verbs.get(verb, (frozenset(), None)) if isinstance(verb, str) else (frozenset(), None)
        if act is None:
            raise _bad(f"no order {verb!r}; there are: {', '.join(self._verbs)}")
        if strange := sorted(set(order) - known - {"verb", "by"}):
            raise _bad(f"{verb} takes no {', '.join(strange)}; it takes: {', '.join(sorted(known)) or 'nothing'}")
        by = _text(order, "by", self._member.name)
        told = json.dumps({name: value for name, value in order.items() if name not in ("verb", "by")})
        try:
            answer = act(_Ordered(order, by, time.monotonic() + budget_s * ANSWER_SHARE))
        except Refusal as refusal:
            logger.warning("order by {}: {} {}: {}: {}", by, verb, told, refusal.status.name, refusal.values[-1])
            raise
        logger.info("order by {}: {} {}: {}", by, verb, told, json.dumps(_shortened(answer)))
        return answer

    # --- orders that are one wish

    def _drain(self, order: _Ordered) -> Order:
        name, node = self._named(order)
        epoch = self._member.epoch
        if node.state is NodeState.LOST:
            raise _not_now(f"{name} is lost: there is nothing to hand over; `remove` takes it out of the view")
        if node.state is not NodeState.LEAVING:
            epoch = self._agree(order, f"drain {name}", lambda view, asker: wishes.leave(view, asker, name)).epoch
        copies = self._member.view.copies_of(name)
        return {"node": name, "epoch": epoch, "copies": copies, "behind": self._await_all(epoch, order, only=name)}

    def _pause(self, order: _Ordered) -> Order:
        seconds = _number(order.fields, "seconds", 0.0, wishes.PAUSE_S_MAX)
        reason = _text(order.fields, "reason")
        by = order.by

        def make(view: View, asker: Asker) -> View:
            made = wishes.pause(view, asker, reason, seconds)
            assert made.pause is not None
            return replace(made, pause=replace(made.pause, by=by))

        agreed = self._agree(order, f"pause for {seconds:g} s", make)
        return {"epoch": agreed.epoch, "seconds": seconds, "behind": self._await_all(agreed.epoch, order)}

    def _resume(self, order: _Ordered) -> Order:
        agreed = self._agree(order, "resume", wishes.resume)
        return {"epoch": agreed.epoch, "behind": self._await_all(agreed.epoch, order)}

    def _settings(self, order: _Ordered) -> Order:
        given = _checked_settings(order.fields)
        if not given:
            raise _bad("settings: nothing to change was named; there are: backups, lease, ack, fsync")
        if given.get("fsync") == FsyncPolicy.ALWAYS.value:
            self._demand_logs(order)

        def make(view: View, asker: Asker) -> View:
            changed = changed_settings(view.settings, given)
            if changed == view.settings:
                raise WishRefused("the cluster has these settings already")
            return wishes.set_settings(view, asker, changed)

        agreed = self._agree(order, "change settings", make)
        now = agreed.settings
        told = {"backups": now.backups, "lease": now.lease_s, "grace": now.grace_s, "ack": now.ack_s, "fsync": now.fsync}
        lacking = len(agreed.lacking())
        return {"epoch": agreed.epoch, "settings": told, "lacking": lacking, "behind": self._await_all(agreed.epoch, order)}

    def _demand_logs(self, order: _Ordered) -> None:
        """With fsync always answers wait for the log: one that is not there would have them acknowledged too early."""
        for name, node in self._member.view.nodes.items():
            if node.state is not NodeState.LOST and self._log_policy(name, node, order) == "off":
                raise _not_now(f"fsync always: {name} keeps no append log; restart it with one first")

    def _log_policy(self, name: str, node: Node, order: _Ordered) -> str:
        if name == self._member.name:
            log = self._member.parts.log
            return log.policy.value if log is not None else "off"
        status, values = self._ask(node, name, order, Opcode.STATS, "append_log")
        if status != Status.OK:
            raise _not_now(f"fsync always: how the append log of {name} runs is not known: {values}")
        return str(json.loads(values[0])["append_log"]["fsync"])

    def _remove(self, order: _Ordered) -> Order:
        name, _ = self._named(order)
        agreed = self._agree(order, f"remove {name}", lambda view, asker: wishes.remove(view, asker, name))
        return {"node": name, "epoch": agreed.epoch}

    # --- a node that is stopped for good

    def _lost(self, order: _Ordered) -> Order:
        name, node = self._named(order)
        lose_max = int(_number(order.fields, "lose_max", -1, len(self._member.view.placements), default=math.inf))
        if order.fields.get("stopped") is not True:
            raise _bad(f"lost: say that {name} is stopped: what only a running node has is not lost")
        if node.state is NodeState.LOST:
            raise _not_now(f"{name} is lost already; `remove` takes it out of the view")
        if self._member.view.manager == name:
            raise _not_now(f"{name} keeps the register, so views cannot change without it: takeover gives it to another node")
        if why := self._sign_of_life(name, node, order):
            raise _not_now(f"{name} is not stopped: {why}")
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

        agreed = self._agree(order, f"declare {name} lost", make)
        if losing["lost"]:
            logger.error(
                "LOST: {} buckets had their only copy at {}, which {} declared lost", len(losing["lost"]), name, order.by
            )
        return {"node": name, "epoch": agreed.epoch, "dry_run": False, **losing}

    def _sign_of_life(self, name: str, node: Node, order: _Ordered) -> str:
        """Why it cannot be stopped; "" where nothing is heard of it."""
        if name == self._member.name:
            return "it answers this"
        if self._hear(name, node, order).answers:
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

    def _renew(self, order: _Ordered) -> Order:
        renewed: list[int] = []

        def make(view: View, asker: Asker) -> View:
            renewed[:] = [bucket for bucket, placed in enumerate(view.placements) if placed.primary is None]
            if not renewed:
                raise WishRefused("no bucket is lost")
            if view.nodes[asker.by].state is not NodeState.UP:
                raise WishRefused(f"{asker.by} is {view.nodes[asker.by].state}, not up")
            return wishes.offer(view, asker, renewed)

        agreed = self._agree(order, "begin lost buckets anew", make)
        return {"epoch": agreed.epoch, "renewed": renewed}

    # --- the register, after its holder

    def _takeover(self, order: _Ordered) -> Order:
        stopped = _names(order.fields, "stopped")
        mine = self._member.view
        if mine.manager is None:
            raise _not_now("etcd keeps the register of this cluster; there is nobody to take it over from")
        if self._member.name in stopped:
            raise _bad(f"{self._member.name} is this node, which answers")
        newest = self._newest_of_all(stopped, order)
        manager = newest.manager
        assert manager is not None
        if manager == self._member.name:
            raise _not_now(f"{manager} is this node, which keeps the register already, by the view of epoch {newest.epoch}")
        if manager not in stopped:
            raise _not_now(f"{manager} keeps the register; only where it is stopped for good can another: name it as stopped")
        old = [
            bucket
            for bucket, placed in enumerate(newest.placements)
            if placed.primary in stopped and set(placed.backups) - stopped
        ]
        away = [bucket for bucket, placed in enumerate(newest.placements) if placed.primary and set(placed.holders) <= stopped]
        answer: Order = {"from": manager, "old": old, "away": away}
        if old and order.fields.get("accept_old") is not True:
            return {**answer, "taken": False, "epoch": newest.epoch, "behind": []}
        taken = self._keep_register(newest, manager)
        logger.warning(
            "TAKEOVER by {}: this node keeps the register in place of {}, in term {} from epoch {} on; {} buckets may be old,"
            " {} have no copy at a node that runs",
            *(order.by, manager, taken.term, taken.epoch, len(old), len(away)),
        )
        self._member.agreement.learn(Revised(taken.epoch, taken))
        behind = self._await_all(taken.epoch, order, without=stopped)
        return {**answer, "taken": True, "epoch": taken.epoch, "behind": behind}

    def _newest_of_all(self, stopped: Collection[str], order: _Ordered) -> View:
        """The newest view that any node of it knows. Each must have answered, or be named as stopped and not answer."""
        newest = self._member.view
        for _ in range(ROUNDS_MAX):
            if strange := sorted(set(stopped) - set(newest.nodes)):
                raise _bad(f"{', '.join(strange)}: not in the view; there are: {', '.join(newest.nodes)}")
            found = newest
            for name, node in newest.nodes.items():
                if name != self._member.name:
                    view = self._heard_of(name, node, order, is_stopped=name in stopped)
                    found = max(found, view or found, key=lambda each: each.epoch)
            if found is newest:
                return newest
            newest = found
        raise _not_now("views change while nodes are asked, so somebody keeps the register")

    def _heard_of(self, name: str, node: Node, order: _Ordered, *, is_stopped: bool) -> View | None:
        """A node's view; None for one that is stopped. Raises `Refusal` where it is not as it was said to be."""
        heard = self._hear(name, node, order)
        if is_stopped and heard.answers:
            raise _not_now(f"{name} is not stopped: it answers at {node.address}")
        if is_stopped:
            return None
        if heard.view is None:
            what = "it answers, but" if heard.answers else "it does not answer:"
            raise _not_now(f"{name} may know a newer view; {what} {heard.trouble}. Try again, or name it as stopped if it is")
        if heard.view.cluster_id != self._member.view.cluster_id:
            raise _not_now(f"{name} is of another cluster, {heard.view.cluster_id}")
        return heard.view

    def _keep_register(self, newest: View, manager: str) -> View:
        """The next view, in the next term, on this node's disk."""
        asker = Asker(self._member.name, os.urandom(8).hex())
        try:
            taken = wishes.take_over_register(newest, asker, manager)
            self._member.parts.own_register.begin(taken)
        except WishRefused as refused:
            raise _not_now(str(refused)) from None
        except (ValueError, RegisterFailed) as error:
            raise _not_now(f"this node cannot keep the register: {error}") from None
        return taken

    # --- what the orders have in common

    def _named(self, order: _Ordered) -> tuple[str, Node]:
        """The node that the order is about."""
        name = _text(order.fields, "node")
        nodes = self._member.view.nodes
        if name not in nodes:
            raise _bad(f"{name!r} is not in the view; there are: {', '.join(nodes)}")
        return name, nodes[name]

    def _agree(self, order: _Ordered, what: str, make: Callable[[View, Asker], View]) -> View:
        """The view in which this is agreed. Raises `Refusal`."""
        made: list[View] = []
        refusals: list[str] = []
        settled = threading.Event()

        def make_in_time(view: View, asker: Asker) -> View:
            if not order.left_s():
                raise WishRefused("whoever ordered it does not wait any more")
            made.append(make(view, asker))
            return made[-1]

        def done(refused: str) -> None:
            refusals.append(refused)
            settled.set()

        self._member.wish(what, make_in_time, done)
        if not settled.wait(order.left_s()):
            trouble = self._member.agreement.unreachable or "other changes come first"
            raise Refusal(Status.VIEW_UNSETTLED, f"{what}: not agreed in time; {trouble}"[: 5 * TEXT_MAX])
        if refusals[0]:
            raise _not_now(f"{what}: {refusals[0]}")
        return made[-1]

    def _await_all(self, epoch: int, order: _Ordered, *, without: Collection[str] = (), only: str = "") -> list[str]:
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
        neighbour = member.neighbour(name, node.incarnation)
        return neighbour.heard_epoch if neighbour is not None else 0

    # --- other nodes

    def _hear(self, name: str, node: Node, order: _Ordered) -> _Heard:
        """Ask a node for its view."""
        status, values = self._ask(node, name, order, Opcode.VIEW, 0)
        if status is None:
            return _Heard(trouble=str(values))
        if status != Status.OK:
            return _Heard(answers=True, trouble=str(values))
        try:
            return _Heard(decode_view(values[1]), answers=True)
        except BadView as error:
            return _Heard(answers=True, trouble=f"what it sent is no view: {error}")

    def _ask(self, node: Node, name: str, order: _Ordered, opcode: Opcode, *values: Any) -> tuple[int | None, Any]:
        """Ask the node of that name: the status and the values of its answer; a status that is not OK with a text, None if it
        does not answer. One that there is no time to ask does not count as silent: raises `Refusal`."""
        if order.left_s() < ASK_S:
            raise Refusal(Status.DEADLINE_PASSED, f"no time is left to ask {name}; nothing was changed: give the order more")
        line = Line(parse_address(node.address), self._member.parts.greeter, ASK_S)
        try:
            line.connected()
            if line.welcome is None or line.welcome.node_name != name:
                there = line.welcome.node_name if line.welcome is not None else "somebody"
                return None, f"at {node.address} it is {there} who answers"
            status, answer = line.ask(opcode, *values, timeout_s=ASK_S)
        except PeerUnreachable as error:
            return None, str(error)
        finally:
            line.close()
        return status, answer if status == Status.OK else f"{status_name(status)}: {answer[-1]}"


# --- the fields of an order


def _text(order: Order, name: str, default: str | None = None) -> str:
    value = order.get(name, default)
    if not isinstance(value, str) or not 0 < len(value) <= TEXT_MAX or not value.isprintable():
        raise _bad(f"{name} is {value!r}; a text of 1 to {TEXT_MAX} printable characters is taken")
    return value


def _number(order: Order, name: str, low: float, high: float, default: float | None = None) -> float:
    """A number above `low`, at most `high`."""
    value = order.get(name, default)
    if name not in order and default is not None:
        return min(default, high)
    if isinstance(value, bool) or not isinstance(value, int | float) or not low < value <= high:
        raise _bad(f"{name} is {value!r}; a number above {low:g}, at most {high:g}, is taken")
    return value


def _names(order: Order, name: str) -> frozenset[str]:
    value = order.get(name)
    if not isinstance(value, list) or not value or not all(isinstance(each, str) for each in value):
        raise _bad(f"{name} is {value!r}; the names of nodes are taken")
    return frozenset(value)


def _checked_settings(order: Order) -> Order:
    """The settings that an order names, each within its range."""
    given = {name: order[name] for name in ("backups", "lease", "ack", "fsync") if order.get(name) is not None}
    if "backups" in given and (type(given["backups"]) is not int or not 0 <= given["backups"] <= BACKUPS_MAX):
        raise _bad(f"backups is {given['backups']!r}; a whole number from 0 to {BACKUPS_MAX} is taken")
    for name, high in (("lease", LEASE_MAX_S), ("ack", ACK_MAX_S)):
        value = given.get(name, high)
        if isinstance(value, bool) or not isinstance(value, int | float) or not LEASE_MIN_S <= value <= high:
            raise _bad(f"{name} is {value!r}; from {LEASE_MIN_S:g} to {high:g} seconds are taken")
    policies = [policy.value for policy in FsyncPolicy]
    if "fsync" in given and given["fsync"] not in policies:
        raise _bad(f"fsync is {given['fsync']!r}; it may be {', '.join(policies)}")
    return given


def changed_settings(now: Settings, given: Order) -> Settings:
    """The settings with what an order names. An `ack` that is the lease, as at birth, goes along with it."""
    lease_s = float(given.get("lease", now.lease_s))
    ack_s = float(given.get("ack", lease_s if now.ack_s == now.lease_s else now.ack_s))
    grace_s = lease_s * GRACE_OF_LEASE if "lease" in given else now.grace_s
    return Settings(given.get("backups", now.backups), lease_s, grace_s, ack_s, given.get("fsync", now.fsync))


def _losses(view: View, name: str) -> Order:
    """What becomes of the buckets of a node that is lost: those that only it had, and those that a backup takes over."""
    mine = view.primaries_of(name)
    return {
        "lost": [bucket for bucket in mine if not view.placements[bucket].backups],
        "promoted": [bucket for bucket in mine if view.placements[bucket].backups],
    }


_BUCKETS = frozenset({"lost", "promoted", "renewed", "old", "away"})


def _shortened(answer: Order) -> Order:
    """For the log: how many buckets, not which."""
    return {name: len(value) if name in _BUCKETS else value for name, value in answer.items()}
