"""What the tests of views share: views of a few nodes, and whoever carries a plan out."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

from rcache.cluster.balance import Plan
from rcache.cluster.transition import faults_between
from rcache.cluster.view import Node, NodeState, Placement, Settings, View
from rcache.cluster.wishes import Asker, add_backups, born, drop_backups, hand_over, join, ready

CLUSTER = "c1" * 16
_nonces = itertools.count()


def by(name: str) -> Asker:
    return Asker(name, f"nonce {next(_nonces)}")


def node(incarnation: int = 1, state: NodeState = NodeState.UP, since: int = 0, files: str = "f" * 32) -> Node:
    return Node(incarnation, "127.0.0.1:13600", files, state, since)


def one(buckets: int = 8, backups: int = 1, *, embedded: bool = True) -> View:
    """A cluster of n1 alone."""
    return born(CLUSTER, buckets, by("n1"), node(), Settings(backups), embedded=embedded)


def grown(names: int, buckets: int = 8, backups: int = 1) -> View:
    """A cluster of so many nodes, all up; n1 still has everything."""
    view = one(buckets, backups)
    for number in range(2, names + 1):
        view = ready(join(view, by(f"n{number}"), node(state=NodeState.JOINING), recovers=False), by(f"n{number}"))
    return view


def placed(view: View, *placements: Placement) -> View:
    """The view with other placements, whatever the rules say of that."""
    return replace(view, placements=placements)


def follow(old: View, new: View) -> View:
    """The next view, held against the rules."""
    assert faults_between(old, new) == []
    return new


def carry_out(view: View, plan: Plan, chosen: random.Random, share: float = 1.0) -> View:
    """Some of a plan, by the primaries, in any order; what no longer fits since another step is left alone."""
    steps: list[tuple[str, int, str]] = [("fill", bucket, name) for bucket, name in plan.fills]
    steps += [("drop", bucket, name) for bucket, name in plan.drops.items()]
    steps += [("hand", bucket, name) for bucket, name in plan.handovers.items()]
    chosen.shuffle(steps)
    for what, bucket, name in steps[: max(1, int(len(steps) * share))]:
        held = view.placements[bucket]
        if held.primary is None:
            continue
        me = by(held.primary)
        if what == "fill" and name not in held.holders:
            view = follow(view, add_backups(view, me, {bucket: name}))
        elif what == "drop" and name in held.backups:
            view = follow(view, drop_backups(view, me, {bucket: name}))
        elif what == "hand" and name in held.backups:
            view = follow(view, hand_over(view, me, {bucket: name}))
    return view
