"""The view: who is in the cluster, and who is what to each bucket. Immutable; a new one replaces it as a whole.

What it is: the types, what must hold of any view (`faults_of`), and its text, which the register keeps and frames carry.
Which thread runs it: any; everything here is constant.
What it owns: nothing. What it must not know: how views are agreed, sockets, clocks.

An epoch is the number of a view, and with it of every OPEN made under it: 24 bits, the upper six of them the term
(`design`, section 7), which a takeover raises. Epochs that run on into the next term by themselves do no harm: they only grow.

Invariants of a view (`faults_of` checks them):
1. Whoever has a role is in the view and not lost; no node has two roles in one bucket.
2. A bucket without a primary has no backups: the only copy was lost, and an operator said so.
3. A node that is joining serves nobody yet: it may only be the primary of what it recovers from its own files, alone.
4. A bucket was opened in this view or before.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any

EPOCH_BITS = 24
"""As many as a sequence has for it (`rcache.records.record`): 16 million views."""
TERM_BITS = 6
TERM_MAX = (1 << TERM_BITS) - 1
EPOCH_MAX = (1 << EPOCH_BITS) - 1
TERM_SHIFT = EPOCH_BITS - TERM_BITS

FORMAT = 2
"""Of the text. A view of another format is refused, not guessed at. (1 had neither `taken` nor `nonces`.)"""


class NodeState(StrEnum):
    """What a node is to the cluster."""

    JOINING = "joining"
    """In the view; recovers or waits to be given work."""
    UP = "up"
    LEAVING = "leaving"
    """Hands over what it has; nobody's target."""
    LOST = "lost"
    """Taken for dead by those who watched it; has no role, and counts for a majority until an operator removes it."""


@dataclass(frozen=True, slots=True)
class Node:
    """A member. `address`: HOST:PORT that others reach it at. `data_dir_id`: whose files it restarts from. `since`: the epoch
    in which its state became what it is."""

    incarnation: int
    address: str
    data_dir_id: str
    state: NodeState = NodeState.JOINING
    since: int = 0


@dataclass(frozen=True, slots=True)
class Placement:
    """Who has a bucket. `opened`: the epoch of the view that made the primary what it is. Names are those of nodes; without a
    primary the bucket is lost."""

    primary: str | None
    backups: tuple[str, ...] = ()
    opened: int = 0

    @property
    def holders(self) -> tuple[str, ...]:
        """All who have a whole copy, the primary first."""
        return (*((self.primary,) if self.primary is not None else ()), *self.backups)


@dataclass(frozen=True, slots=True)
class Pause:
    """Writes wait. Each node counts `seconds` from when it learnt of the view of `epoch`."""

    by: str
    reason: str
    seconds: float
    epoch: int


@dataclass(frozen=True, slots=True)
class Settings:
    """What belongs to the cluster and to no node. Seconds; `fsync` as the append log's policy."""

    backups: int = 1
    lease_s: float = 1.0
    grace_s: float = 1.5
    ack_s: float = 1.0
    fsync: str = "interval"


@dataclass(frozen=True, slots=True)
class View:
    """`manager`: the node that keeps the embedded register; None with etcd. `proposer` and `nonce` say whose wish it was, so
    that an asker knows its own view again, and `nonces`, for each node in the view, the last of its wishes that was agreed: it
    brings one at a time, so that this tells of any wish of its, however many views later. `taken`: the nonce of the takeover
    that this term began with, "" where it began without."""

    cluster_id: str
    epoch: int
    proposer: str
    nonce: str
    nodes: Mapping[str, Node]
    placements: tuple[Placement, ...]
    manager: str | None = None
    pause: Pause | None = None
    settings: Settings = field(default_factory=Settings)
    taken: str = ""
    nonces: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "nodes", MappingProxyType(dict(sorted(self.nodes.items()))))
        object.__setattr__(self, "nonces", MappingProxyType(dict(sorted(self.nonces.items()))))

    @property
    def term(self) -> int:
        return self.epoch >> TERM_SHIFT

    def names(self, *states: NodeState) -> tuple[str, ...]:
        """The nodes in these states, in the order of their names."""
        return tuple(name for name, node in self.nodes.items() if node.state in states)

    def primaries_of(self, name: str) -> list[int]:
        """The buckets that a node is primary of."""
        return [bucket for bucket, placed in enumerate(self.placements) if placed.primary == name]

    def backups_of(self, name: str) -> list[int]:
        return [bucket for bucket, placed in enumerate(self.placements) if name in placed.backups]

    def copies_of(self, name: str) -> int:
        return sum(name in placed.holders for placed in self.placements)

    def lacking(self) -> list[int]:
        """Buckets with fewer in-sync backups than there should be; nodes that leave do not count."""
        return [
            bucket
            for bucket, placed in enumerate(self.placements)
            if placed.primary is not None
            and sum(self.nodes[name].state is NodeState.UP for name in placed.backups) < self.settings.backups
        ]


class BadView(ValueError):
    """Text that is no view, or a view that must not be."""


class OtherFormat(BadView):
    """Text of a view by another version of rcache."""


def faults_of(view: View) -> list[str]:
    """What of the invariants does not hold; empty if all does."""
    faults = []
    if not 0 < view.epoch <= EPOCH_MAX:
        faults.append(f"epoch {view.epoch}")
    if not view.placements or len(view.placements) & (len(view.placements) - 1):
        faults.append(f"{len(view.placements)} buckets are no power of two")
    if view.manager is not None and view.manager not in view.nodes:
        faults.append(f"the manager {view.manager} is not in the view")
    looked_at: set[int] = set()  # the very objects: a thousand buckets have some hundred placements between them
    for bucket, placed in enumerate(view.placements):
        if id(placed) not in looked_at:
            looked_at.add(id(placed))
            faults += [f"bucket {bucket}: {fault}" for fault in _faults_of_placement(view, placed)]
    return faults


def _faults_of_placement(view: View, placed: Placement) -> list[str]:
    faults = []
    if len(set(placed.holders)) < len(placed.holders):
        faults.append(f"somebody has two roles: {placed.holders}")  # invariant 1
    if placed.primary is None and placed.backups:
        faults.append(f"backups {placed.backups} without a primary")  # invariant 2
    for name in placed.holders:
        node = view.nodes.get(name)
        if node is None or node.state is NodeState.LOST:
            faults.append(f"{name} has a role and is {'not in the view' if node is None else 'lost'}")  # invariant 1
        elif node.state is NodeState.JOINING and placed.holders != (name,):
            faults.append(f"{name} is joining and not alone")  # invariant 3
    if placed.opened > view.epoch:
        faults.append(f"opened in epoch {placed.opened}, which is still to come")  # invariant 4
    return faults


# --- as text


def encode_view(view: View) -> bytes:
    """One line of JSON. Buckets of the same holders and epoch that lie side by side are told together: a thousand buckets of a
    few nodes take some kilobytes."""
    runs: list[list[Any]] = []
    for placed in view.placements:
        told = [placed.primary, list(placed.backups), placed.opened]
        if runs and runs[-1][1:] == told:
            runs[-1][0] += 1
        else:
            runs.append([1, *told])
    facts = {
        "format": FORMAT,
        "cluster_id": view.cluster_id,
        "epoch": view.epoch,
        "proposer": view.proposer,
        "nonce": view.nonce,
        "nodes": {name: asdict(node) for name, node in view.nodes.items()},
        "buckets": runs,
        "manager": view.manager,
        "pause": asdict(view.pause) if view.pause else None,
        "settings": asdict(view.settings),
        "taken": view.taken,
        "nonces": dict(view.nonces),
    }
    return json.dumps(facts, separators=(",", ":"), ensure_ascii=False).encode()


def decode_view(text: bytes) -> View:
    """Raises `BadView`, also for a view whose invariants do not hold."""
    try:
        facts = json.loads(text.decode())  # UTF-8 and no other
        if facts["format"] != FORMAT:
            raise OtherFormat(
                f"a view of format {facts['format']!r:.20}, by another version of rcache; this one reads format {FORMAT}"
            )
        view = _view_of(facts)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        if isinstance(error, BadView):
            raise
        raise BadView(f"no view: {error!r}") from None
    faults = faults_of(view)
    if faults:
        raise BadView("; ".join(faults[:3]))
    return view


BUCKETS_MAX = 1 << 16
"""More than any cluster is born with: text may not ask for more."""


def _view_of(facts: dict[str, Any]) -> View:
    placements: list[Placement] = []
    known: dict[tuple[Any, ...], Placement] = {}  # those that are alike are one object
    for count, primary, backups, opened in facts["buckets"]:
        if not 0 < count <= BUCKETS_MAX - len(placements):
            raise BadView(f"a run of {count} buckets behind {len(placements)}")
        told = (primary, *backups, type(opened), opened)
        placed = known.get(told)
        if placed is None:
            placed = Placement(_text_or_none(primary), tuple(_text(name) for name in backups), _whole(opened))
            known[told] = placed
        placements += [placed] * count
    nodes = {
        _text(name): Node(
            _whole(node["incarnation"]),
            _text(node["address"]),
            _text(node["data_dir_id"]),
            NodeState(node["state"]),
            _whole(node["since"]),
        )
        for name, node in facts["nodes"].items()
    }
    pause = facts["pause"]
    settings = facts["settings"]
    return View(
        cluster_id=_text(facts["cluster_id"]),
        epoch=_whole(facts["epoch"]),
        proposer=_text(facts["proposer"]),
        nonce=_text(facts["nonce"]),
        nodes=nodes,
        placements=tuple(placements),
        manager=_text_or_none(facts["manager"]),
        pause=Pause(_text(pause["by"]), _text(pause["reason"]), _seconds(pause["seconds"]), _whole(pause["epoch"]))
        if pause
        else None,
        settings=Settings(
            _whole(settings["backups"]),
            _seconds(settings["lease_s"]),
            _seconds(settings["grace_s"]),
            _seconds(settings["ack_s"]),
            _text(settings["fsync"]),
        ),
        taken=_text(facts["taken"]),
        nonces={_text(name): _text(nonce) for name, nonce in facts["nonces"].items()},
    )


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise BadView(f"{value!r} is no text")
    value.encode()  # what JSON may escape need not be text: a surrogate alone raises
    return value


SECONDS_MAX = 366 * 24 * 3600.0
"""A year: whoever writes more means something else."""


def _seconds(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= SECONDS_MAX:
        raise BadView(f"{value!r} are no seconds")
    return float(value)


def _text_or_none(value: object) -> str | None:
    return None if value is None else _text(value)


def _whole(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 64:
        raise BadView(f"{value!r} is no whole number")
    return value
