"""Orders of an operator: their fields, each held to what it may be, and how one is refused.

What it is: `Ordered`, an order under way, and `Desk`, which takes orders: it looks up who carries a verb out, refuses what is
none, and has every order and what came of it in the log.
Which thread runs it: the worker of the connection that orders.
What it owns: nothing. What it must not know: what an order does.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from loguru import logger

from rcache.cluster.view import Settings
from rcache.server.node_answers import Refusal
from rcache.stream.policy import FsyncPolicy
from rcache_client.wire.opcodes import Status

ANSWER_SHARE = 0.9
"""Of an order's budget is for the order; the rest is for the answer on its way."""

TEXT_MAX = 200
"""Characters of a reason, or of a name: they stand in every view, and in one line of the log."""

BACKUPS_MAX = 8
LEASE_MIN_S, LEASE_MAX_S = 0.05, 60.0
"""As rcached's own options take them."""
ACK_MAX_S = 600.0
GRACE_OF_LEASE = 1.5

Order = dict[str, Any]


class Ordered(NamedTuple):
    """An order under way: its fields, who gave it, and until when it is to be answered (a reading of `time.monotonic`)."""

    fields: Order
    by: str
    deadline: float

    def left_s(self) -> float:
        return max(0.0, self.deadline - time.monotonic())


class Verb(NamedTuple):
    """What carries a verb out, and the fields that it takes."""

    fields: frozenset[str]
    act: Callable[[Ordered], Order]


def bad(why: str) -> Refusal:
    return Refusal(Status.BAD_ARGUMENT, why)


def not_now(why: str) -> Refusal:
    return Refusal(Status.NOT_ALLOWED, why)


class Desk:
    """See the module. `name`: this node's, by whom an order is that does not say. `later`: verbs that are known and cannot be
    carried out yet."""

    def __init__(self, name: str, verbs: Mapping[str, Verb], later: frozenset[str] = frozenset()) -> None:
        self._name = name
        self.verbs = verbs
        self._later = later

    def __call__(self, order: Order, budget_s: float) -> Order:
        """Carry out an order. Blocks up to `budget_s`. Raises `Refusal`."""
        name = order.get("verb")
        if isinstance(name, str) and name in self._later:
            raise Refusal(Status.VIEW_AHEAD, "this node is no member of its cluster yet; try again")
        verb = self.verbs.get(name) if isinstance(name, str) else None
        if verb is None:
            raise bad(f"no order {name!r}; there are: {', '.join(self.verbs)}")
        if strange := sorted(set(order) - verb.fields - {"verb", "by"}):
            raise bad(f"{name} takes no {', '.join(strange)}; it takes: {', '.join(sorted(verb.fields)) or 'nothing'}")
        by = text_of(order, "by", self._name)
        told = json.dumps(_shortened({field: value for field, value in order.items() if field not in ("verb", "by")}))
        try:
            answer = verb.act(Ordered(order, by, time.monotonic() + budget_s * ANSWER_SHARE))
        except Refusal as refusal:
            logger.warning("order by {}: {} {}: {}: {}", by, name, told, refusal.status.name, refusal.values[-1])
            raise
        logger.info("order by {}: {} {}: {}", by, name, told, json.dumps(_shortened(answer)))
        return answer


# --- the fields of an order


def text_of(order: Order, name: str, default: str | None = None) -> str:
    value = order.get(name, default)
    if not isinstance(value, str) or not 0 < len(value) <= TEXT_MAX or not value.isprintable():
        raise bad(f"{name} is {value!r}; a text of 1 to {TEXT_MAX} printable characters is taken")
    return value


def number_of(order: Order, name: str, low: float, high: float, default: float | None = None) -> float:
    """A number above `low`, at most `high`."""
    value = order.get(name, default)
    if name not in order and default is not None:
        return min(default, high)
    if isinstance(value, bool) or not isinstance(value, int | float) or not low < value <= high:
        raise bad(f"{name} is {value!r}; a number above {low:g}, at most {high:g}, is taken")
    return value


def names_of(order: Order, name: str) -> frozenset[str]:
    """Names of nodes; none where the order does not have the field."""
    value = order.get(name, [])
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise bad(f"{name} is {value!r}; the names of nodes are taken")
    return frozenset(value)


def buckets_of(order: Order, name: str, count: int) -> list[int]:
    """Numbers of buckets, each once; none where the order does not have the field. `count`: how many buckets there are."""
    value = order.get(name, [])
    if not isinstance(value, list) or not all(type(each) is int and 0 <= each < count for each in value):
        raise bad(f"{name} is not a list of buckets, from 0 to {count - 1}")
    if len(set(value)) != len(value):
        raise bad(f"{name} names a bucket twice")
    return value


def checked_settings(order: Order) -> Order:
    """The settings that an order names, each within its range."""
    given = {name: order[name] for name in ("backups", "lease", "ack", "fsync") if order.get(name) is not None}
    if "backups" in given and (type(given["backups"]) is not int or not 0 <= given["backups"] <= BACKUPS_MAX):
        raise bad(f"backups is {given['backups']!r}; a whole number from 0 to {BACKUPS_MAX} is taken")
    for name, high in (("lease", LEASE_MAX_S), ("ack", ACK_MAX_S)):
        value = given.get(name, high)
        if isinstance(value, bool) or not isinstance(value, int | float) or not LEASE_MIN_S <= value <= high:
            raise bad(f"{name} is {value!r}; from {LEASE_MIN_S:g} to {high:g} seconds are taken")
    policies = [policy.value for policy in FsyncPolicy]
    if "fsync" in given and given["fsync"] not in policies:
        raise bad(f"fsync is {given['fsync']!r}; it may be {', '.join(policies)}")
    return given


def changed_settings(now: Settings, given: Order) -> Settings:
    """The settings with what an order names. An `ack` that is the lease, as at birth, goes along with it."""
    lease_s = float(given.get("lease", now.lease_s))
    ack_s = float(given.get("ack", lease_s if now.ack_s == now.lease_s else now.ack_s))
    grace_s = lease_s * GRACE_OF_LEASE if "lease" in given else now.grace_s
    return Settings(given.get("backups", now.backups), lease_s, grace_s, ack_s, given.get("fsync", now.fsync))


_BUCKETS = frozenset(
    {"lost", "promoted", "renewed", "old", "shared", "away"} | {"buckets", "held", "recover", "recovered", "empty", "failed"}
)


def _shortened(answer: Order) -> Order:
    """For the log: how many buckets, not which."""
    return {name: len(value) if name in _BUCKETS and isinstance(value, list) else value for name, value in answer.items()}
