"""What is wished of the cluster, each as the view that would fulfil it.

What it is: pure functions from a view and a wish to the next view, each held against the rules of `transition` before it is
given back. Who may ask what, and when, is the caller's: here it is only said what would come of it.
Which thread runs it: any. What it owns: nothing. What it must not know: leases, time, the register.

Every function raises `WishRefused` where the wish cannot be fulfilled in this view. `by` is the node that asks, `nonce` what it
knows its own wish by.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, NamedTuple

from rcache.cluster.transition import faults_between
from rcache.cluster.view import EPOCH_MAX, TERM_SHIFT, Node, NodeState, Pause, Placement, Settings, View

NOTHING: Mapping[int, str] = MappingProxyType({})


class WishRefused(ValueError):
    """The wish cannot be fulfilled in this view; the text says why."""


class Asker(NamedTuple):
    """Who wishes, and what it knows its own wish by."""

    by: str
    nonce: str


def born(  # noqa: PLR0913  the facts of a first view
    cluster_id: str, buckets: int, asker: Asker, node: Node, settings: Settings, *, embedded: bool, epoch: int = 1
) -> View:
    """The first view: one node has everything."""
    return View(
        cluster_id=cluster_id,
        epoch=epoch,
        proposer=asker.by,
        nonce=asker.nonce,
        nodes={asker.by: replace(node, state=NodeState.UP, since=epoch)},
        placements=(Placement(asker.by, (), epoch),) * buckets,
        manager=asker.by if embedded else None,
        settings=settings,
        nonces={asker.by: asker.nonce},
    )


def _next(view: View, asker: Asker, **changed: Any) -> View:
    """The view after this one, checked."""
    if view.epoch >= EPOCH_MAX:
        raise WishRefused("the cluster has used up its epochs")
    new = replace(view, **{"epoch": view.epoch + 1, "proposer": asker.by, "nonce": asker.nonce, **changed})
    told = {**view.nonces, asker.by: asker.nonce}
    new = replace(new, nonces={name: nonce for name, nonce in told.items() if name in new.nodes})
    faults = faults_between(view, new)
    if faults:
        raise WishRefused("; ".join(faults[:3]))
    return new


def _with_node(view: View, name: str, state: NodeState) -> Mapping[str, Node]:
    return {**view.nodes, name: replace(view.nodes[name], state=state, since=view.epoch + 1)}


def _placed(view: View, change: Callable[[int, Placement], Placement]) -> tuple[Placement, ...]:
    return tuple(change(bucket, placed) for bucket, placed in enumerate(view.placements))


def _demand_member(view: View, name: str) -> Node:
    if name not in view.nodes:
        raise WishRefused(f"{name} is not in the view")
    return view.nodes[name]


# --- nodes that come and go


def join(view: View, asker: Asker, node: Node, *, recovers: bool) -> View:
    """A node comes, or comes back under a new incarnation: that takes the roles of its former self away in the same view. What
    only its former self had it recovers from its own files; where it cannot (`recovers` False), that is lost. What somebody
    else has under that name, in another data directory, is not this node's to lose."""
    former = view.nodes.get(asker.by)
    if former is not None and former.incarnation >= node.incarnation:
        raise WishRefused(f"{asker.by} is in the view under incarnation {former.incarnation}; this is {node.incarnation}")
    if why := why_not_its_name(view, asker.by, node.data_dir_id):
        raise WishRefused(why)
    epoch, name = view.epoch + 1, asker.by
    alone = Placement(name if recovers else None, (), epoch)
    return _next(
        view,
        asker,
        nodes={**view.nodes, name: replace(node, state=NodeState.JOINING, since=epoch)},
        placements=_without(view, name, alone),
    )


def why_not_its_name(view: View, name: str, data_dir_id: str) -> str:
    """Why a node with this data directory cannot have that name; "" where it can."""
    former = view.nodes.get(name)
    if former is None or former.data_dir_id == data_dir_id:
        return ""
    alone = sum(placed.holders == (name,) for placed in view.placements)
    if not alone:
        return ""
    return (
        f"the node {name} of this cluster has another data directory, with the only copy of {alone} buckets: start it"
        f" from that one, or say `rcache-cli lost {name}`"
    )


def _without(view: View, name: str, alone: Placement) -> tuple[Placement, ...]:
    """Every bucket without this node; what it was primary of goes to a backup, and what it alone had becomes `alone`."""
    loads = {other: len(view.primaries_of(other)) for other in view.nodes}

    def change(_bucket: int, placed: Placement) -> Placement:
        backups = tuple(other for other in placed.backups if other != name)
        if placed.primary != name:
            return replace(placed, backups=backups)
        if not backups:
            return alone
        heir = _heir(view, backups, loads)
        loads[heir] += 1
        return Placement(heir, tuple(other for other in backups if other != heir), view.epoch + 1)

    return _placed(view, change)


def _heir(view: View, backups: Collection[str], loads: Mapping[str, int]) -> str:
    """Which of a bucket's backups becomes its primary: one that is up before one that leaves, then the least loaded."""
    return min(backups, key=lambda name: (view.nodes[name].state is not NodeState.UP, loads[name], name))


def ready(view: View, asker: Asker) -> View:
    """A node that was joining serves, and may be given work."""
    if _demand_member(view, asker.by).state is not NodeState.JOINING:
        raise WishRefused(f"{asker.by} is {view.nodes[asker.by].state}, not joining")
    return _next(view, asker, nodes=_with_node(view, asker.by, NodeState.UP))


def leave(view: View, asker: Asker, name: str) -> View:
    """A node is to hand over what it has."""
    state = _demand_member(view, name).state
    if state not in (NodeState.UP, NodeState.JOINING):
        raise WishRefused(f"{name} is {state} already")
    if state is NodeState.JOINING and view.copies_of(name):
        raise WishRefused(f"{name} still recovers {view.copies_of(name)} buckets that nobody else has")
    return _next(view, asker, nodes=_with_node(view, name, NodeState.LEAVING))


def remove(view: View, asker: Asker, name: str) -> View:
    """A node that has left, or was lost, is none of the cluster any more. Not while it has a role, or the register."""
    state = _demand_member(view, name).state
    if state not in (NodeState.LEAVING, NodeState.LOST):
        raise WishRefused(f"{name} is {state}; it must leave first")
    if view.copies_of(name):
        raise WishRefused(f"{name} still has {view.copies_of(name)} buckets")
    if view.manager == name:
        raise WishRefused(f"{name} still keeps the register")
    return _next(view, asker, nodes={other: node for other, node in view.nodes.items() if other != name})


def part(view: View, asker: Asker, peer: str) -> View:
    """Two nodes share buckets and do not hear of each other any more: the asker takes over what it is a backup of, and goes on
    without the peer in what it is primary of. A peer that is left without any role is lost."""
    _demand_member(view, peer)
    me, epoch = asker.by, view.epoch + 1
    _demand_member(view, me)

    def change(_bucket: int, placed: Placement) -> Placement:
        if placed.primary == peer and me in placed.backups:
            return Placement(me, tuple(name for name in placed.backups if name != me), epoch)
        if placed.primary == me and peer in placed.backups:
            return replace(placed, backups=tuple(name for name in placed.backups if name != peer))
        return placed

    placements = _placed(view, change)
    if placements == view.placements:
        raise WishRefused(f"{me} and {peer} share no bucket")
    left = any(peer in placed.holders for placed in placements)
    nodes = view.nodes if left else _with_node(view, peer, NodeState.LOST)
    return _next(view, asker, placements=placements, nodes=nodes)


def forsake(view: View, asker: Asker, name: str) -> View:
    """A node that has nothing has not been heard of for long: it counts for nothing but a majority any more."""
    if view.copies_of(name) or view.nodes[name].state is NodeState.LOST:
        raise WishRefused(f"{name} has {view.copies_of(name)} copies, and is {view.nodes[name].state}")
    return _next(view, asker, nodes=_with_node(view, name, NodeState.LOST))


def declare_lost(view: View, asker: Asker, name: str) -> View:
    """An operator says that a node is stopped and will not come back. What only it had is lost; the rest goes to backups."""
    _demand_member(view, name)
    placements = _without(view, name, Placement(None, (), view.epoch + 1))
    return _next(view, asker, placements=placements, nodes=_with_node(view, name, NodeState.LOST))


# --- roles


def add_backups(view: View, asker: Asker, added: Mapping[int, str], instead_of: Mapping[int, str] = NOTHING) -> View:
    """A primary says which nodes are in step with it in these of its buckets, and which of their backups it goes on without:
    those that came to be one too many."""
    _demand_mine(view, asker.by, added)

    def change(bucket: int, placed: Placement) -> Placement:
        if bucket not in added or added[bucket] in placed.holders:
            return placed
        stay = (name for name in placed.backups if name != instead_of.get(bucket))
        return replace(placed, backups=(*stay, added[bucket]))

    return _next(view, asker, placements=_placed(view, change))


def drop_backups(view: View, asker: Asker, dropped: Mapping[int, str]) -> View:
    """A primary goes on without these backups in these of its buckets."""
    _demand_mine(view, asker.by, dropped)

    def change(bucket: int, placed: Placement) -> Placement:
        return replace(placed, backups=tuple(name for name in placed.backups if name != dropped.get(bucket)))

    return _next(view, asker, placements=_placed(view, change))


def hand_over(view: View, asker: Asker, given: Mapping[int, str]) -> View:
    """A primary gives these buckets up to backups that have all of them. It has frozen them, so it is a backup from then on."""
    _demand_mine(view, asker.by, given)
    epoch = view.epoch + 1

    def change(bucket: int, placed: Placement) -> Placement:
        if bucket not in given:
            return placed
        heir = given[bucket]
        others = (name for name in placed.backups if name != heir)
        return Placement(heir, (asker.by, *others), epoch)

    return _next(view, asker, placements=_placed(view, change))


def reopen(view: View, asker: Asker, buckets: Collection[int]) -> View:
    """A primary goes on with these of its buckets in a new epoch: their counters ran out, or they were frozen for nobody."""
    _demand_mine(view, asker.by, buckets)
    epoch = view.epoch + 1
    return _next(
        view,
        asker,
        placements=_placed(view, lambda bucket, placed: replace(placed, opened=epoch) if bucket in buckets else placed),
    )


def offer(view: View, asker: Asker, buckets: Collection[int]) -> View:
    """A node has, in its files, buckets that were lost."""
    _demand_member(view, asker.by)
    for bucket in buckets:
        if view.placements[bucket].primary is not None:
            raise WishRefused(f"bucket {bucket} is not lost: {view.placements[bucket].primary} has it")
    epoch = view.epoch + 1
    return _next(
        view,
        asker,
        placements=_placed(view, lambda bucket, placed: Placement(asker.by, (), epoch) if bucket in buckets else placed),
    )


def _demand_mine(view: View, name: str, buckets: Collection[int]) -> None:
    if not buckets:
        raise WishRefused("it asks for nothing")
    for bucket in buckets:
        if not 0 <= bucket < len(view.placements) or view.placements[bucket].primary != name:
            raise WishRefused(f"{name} is not the primary of bucket {bucket}")


# --- the cluster as a whole


def pause(view: View, asker: Asker, reason: str, seconds: float) -> View:
    """Writes wait, for so many seconds from when each node learns of it. A pause in force is replaced."""
    if not 0 < seconds <= PAUSE_S_MAX:
        raise WishRefused(f"a pause of {seconds:g} s; more than 0 and at most {PAUSE_S_MAX:g} are taken")
    return _next(view, asker, pause=Pause(asker.by, reason, seconds, view.epoch + 1))


PAUSE_S_MAX = 24 * 3600.0
"""Whoever wants writes to wait for longer has other plans than a pause."""


def resume(view: View, asker: Asker) -> View:
    if view.pause is None:
        raise WishRefused("nothing is paused")
    return _next(view, asker, pause=None)


def set_settings(view: View, asker: Asker, settings: Settings) -> View:
    return _next(view, asker, settings=settings)


def cede_register(view: View, asker: Asker, heir: str) -> View:
    """The register's holder gives it to another node."""
    _demand_member(view, heir)
    if view.manager != asker.by:
        raise WishRefused(f"{view.manager} keeps the register, not {asker.by}")
    return _next(view, asker, manager=heir)


def take_over_register(
    view: View, asker: Asker, holder: str, term: int | None = None, stopped: Collection[str] = frozenset()
) -> View:
    """An operator says that the register's holder is stopped for good, and with it all of `stopped`: the asker keeps it from
    the beginning of `term` on (None: the next one). What those nodes had with others goes to those, in the same view: a node
    that was restarted has its part in its files only by a view in which it is alone. What they alone had stays theirs."""
    if view.manager != holder:
        raise WishRefused(f"{view.manager} keeps the register, not {holder}")
    _demand_member(view, asker.by)
    term = view.term + 1 if term is None else term
    epoch = term << TERM_SHIFT
    if epoch > EPOCH_MAX:
        raise WishRefused("the cluster has used up its terms")
    placements, nodes = _after(view, stopped, epoch), dict(view.nodes)
    for name in stopped:
        if not any(name in placed.holders for placed in placements):
            nodes[name] = replace(nodes[name], state=NodeState.LOST, since=epoch)
    return _next(view, asker, epoch=epoch, manager=asker.by, taken=asker.nonce, placements=placements, nodes=nodes)


def _after(view: View, stopped: Collection[str], epoch: int) -> tuple[Placement, ...]:
    """Every bucket without these nodes, but for what nobody else has."""
    loads = {other: len(view.primaries_of(other)) for other in view.nodes}

    def change(_bucket: int, placed: Placement) -> Placement:
        backups = tuple(name for name in placed.backups if name not in stopped)
        if placed.primary is None or (placed.primary in stopped and not backups):
            return placed
        if placed.primary not in stopped:
            return replace(placed, backups=backups)
        heir = _heir(view, backups, loads)
        loads[heir] += 1
        return Placement(heir, tuple(name for name in backups if name != heir), epoch)

    return _placed(view, change)
