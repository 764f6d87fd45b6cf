"""What a view lacks: which copies to make, which to let go of, and which buckets should change their primary.

What it is: one pure function from a view to a plan. The primaries carry it out step by step, each for its own buckets; every
step is a view (`wishes`), and from every view the same function says what is still to be done. So a plan that was interrupted
anywhere is simply made again.
Which thread runs it: any. What it owns: nothing. What it must not know: how long anything takes, what a bucket holds.

What it aims at: every bucket has its primary and as many backups as the settings say (as far as there are nodes) on nodes
that are up; copies are spread over these nodes so that none has more than one more than another, and so are primaries; nodes
that leave have nothing. Where all leave, the one whose leave was agreed last is to have everything.

How copies are moved: a copy is made where it is to be, and only when a bucket has one too many is one let go of: the fewest
that will do, because each move is from a node with most to one with fewest. Primaries are moved by role alone, along a path of
buckets that two nodes both have (as augmenting paths in a flow network; Ford and Fulkerson, 1956), so nothing is copied for it.
A primary whose own copy is the one to go hands the bucket over first.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field

from rcache.cluster.view import NodeState, Placement, View


@dataclass(slots=True)
class Plan:
    """What is to be done, all at the primaries' wish. `fills`: (bucket, node) in the order in which they matter; `drops` and
    `handovers`: at most one for each bucket."""

    fills: list[tuple[int, str]] = field(default_factory=list)
    drops: dict[int, str] = field(default_factory=dict)
    handovers: dict[int, str] = field(default_factory=dict)

    @property
    def is_empty(self) -> bool:
        return not (self.fills or self.drops or self.handovers)


def targets(view: View) -> tuple[str, ...]:
    """The nodes that are to have everything in the end."""
    up = view.names(NodeState.UP)
    leaving = view.names(NodeState.LEAVING)
    return up or ((max(leaving, key=lambda name: (view.nodes[name].since, name)),) if leaving else ())


def plan_for(view: View, filling: Mapping[int, str] | None = None) -> Plan:
    """What this view lacks. `filling`: copies that are being made already; they are kept as long as they make sense."""
    return _Planner(view, filling or {}).plan


class _Planner:
    """One planning: counts that change as things are planned."""

    def __init__(self, view: View, filling: Mapping[int, str]) -> None:
        self.view = view
        self.plan = Plan()
        self.pool = targets(view)
        self.wanted = min(view.settings.backups + 1, len(self.pool))
        self.copies = dict.fromkeys(self.pool, 0)
        self.yielding: set[int] = set()  # buckets whose primary's copy is the one to go
        self.here: dict[int, list[str]] = {}  # bucket: nodes of the pool that have it, or will
        for bucket, placed in enumerate(view.placements):
            if placed.primary is not None and view.nodes[placed.primary].state is not NodeState.JOINING:
                self.here[bucket] = [name for name in placed.holders if name in self.copies]
                for name in self.here[bucket]:
                    self.copies[name] += 1
        if not self.pool:
            return
        self._keep_filling(filling)
        self._fill_what_lacks()
        self._let_go()
        self._move_copies()
        self._move_primaries()

    # --- copies

    def _fill(self, bucket: int, name: str) -> None:
        self.plan.fills.append((bucket, name))
        self.here[bucket].append(name)
        self.copies[name] += 1

    def _keep_filling(self, filling: Mapping[int, str]) -> None:
        for bucket, name in filling.items():
            here = self.here.get(bucket)
            if here is not None and name in self.copies and name not in here and len(here) <= self.wanted:
                self._fill(bucket, name)

    def _fill_what_lacks(self) -> None:
        """The fewest copies first: one that is left alone is in danger."""
        for bucket in sorted(self.here, key=lambda each: (len(self.here[each]), each)):
            while len(self.here[bucket]) < self.wanted:
                self._fill(bucket, self._least([name for name in self.pool if name not in self.here[bucket]]))

    def _least(self, names: list[str]) -> str:
        return min(names, key=lambda name: (self.copies[name], name))

    def _let_go(self) -> None:
        """Of what there is one too many: a copy of a node that leaves before any other, then one of the fullest node. Only what
        the view has already counts, not what is being made."""
        for bucket, placed in enumerate(self.view.placements):
            if bucket not in self.here:
                continue
            there = [name for name in placed.holders if name in self.copies]
            leaving = [name for name in placed.backups if name not in self.copies]
            if len(there) >= self.wanted and leaving:
                self.plan.drops[bucket] = leaving[0]
            elif len(there) > self.wanted:
                fullest = max(there, key=lambda name: (self.copies[name], name))
                if fullest == placed.primary:
                    self.yielding.add(bucket)
                else:
                    self.plan.drops[bucket] = fullest
                self.copies[fullest] -= 1
                self.here[bucket].remove(fullest)

    def _move_copies(self) -> None:
        """Make copies at the emptiest node of what the fullest has, until none has two more than another. The fullest lets go
        of its own when they are there."""
        moved = {bucket for bucket, _ in self.plan.fills} | set(self.plan.drops) | self.yielding
        movable = {(start, end): self._movable(start, end, moved) for start in self.pool for end in self.pool if start != end}
        while True:
            fullest = max(self.pool, key=lambda name: (self.copies[name], name))
            emptiest = self._least(list(self.pool))
            if self.copies[fullest] - self.copies[emptiest] < 2:
                return
            bucket = next(movable[fullest, emptiest], None)
            if bucket is None:
                return
            moved.add(bucket)
            self._fill(bucket, emptiest)
            self.copies[fullest] -= 1

    def _movable(self, start: str, end: str, moved: Set[int]) -> Iterator[int]:
        """The buckets of which `start` has a copy that `end` could have. What `moved` comes to hold meanwhile is left out, and
        nothing else changes: so one walk over all buckets does for all moves between the two."""
        for bucket, here in self.here.items():
            if bucket not in moved and start in here and end not in here and len(here) == self.wanted:
                yield bucket

    # --- primaries

    def _move_primaries(self) -> None:
        """First away from those who let go of their copy; then from who has most to who has fewest, by way of others where it
        must be."""
        primaries = dict.fromkeys(self.pool, 0)
        roles: dict[int, str] = {}
        for bucket, placed in enumerate(self.view.placements):
            if bucket in self.here and placed.primary in primaries and bucket not in self.yielding:
                roles[bucket] = placed.primary
                primaries[placed.primary] += 1
        for bucket, placed in enumerate(self.view.placements):
            if bucket in self.here and bucket not in roles:
                heirs = self._heirs(placed, bucket)
                if heirs:
                    self._hand(bucket, min(heirs, key=lambda name: (primaries[name], name)), roles, primaries)
        edges = self._edges(roles)
        while path := self._path(edges, primaries):
            for bucket, name in path:
                self._hand(bucket, name, roles, primaries)

    def _heirs(self, placed: Placement, bucket: int) -> list[str]:
        """Who could be its primary: backups in step that stay."""
        return [name for name in placed.backups if name in self.copies and self.plan.drops.get(bucket) != name]

    def _hand(self, bucket: int, name: str, roles: dict[int, str], primaries: dict[str, int]) -> None:
        if bucket in roles:
            primaries[roles[bucket]] -= 1
        roles[bucket] = name
        primaries[name] += 1
        self.plan.handovers[bucket] = name

    def _edges(self, roles: Mapping[int, str]) -> dict[str, dict[str, deque[int]]]:
        """Of each node the buckets that it could hand to each other one, in their order."""
        edges: dict[str, dict[str, deque[int]]] = {name: {} for name in self.pool}
        for bucket, name in roles.items():
            if bucket not in self.plan.handovers:
                for heir in self._heirs(self.view.placements[bucket], bucket):
                    edges[name].setdefault(heir, deque()).append(bucket)
        return edges

    def _next_edges(self, edges: Mapping[str, deque[int]]) -> list[tuple[str, int]]:
        """For each heir the first bucket that is not handed over yet, the lowest bucket first. What was handed over is none
        of anybody's any more, so it is let go of for good."""
        found = []
        for heir, buckets in edges.items():
            while buckets and buckets[0] in self.plan.handovers:
                buckets.popleft()
            if buckets:
                found.append((heir, buckets[0]))
        return sorted(found, key=lambda edge: edge[1])

    def _path(self, edges: Mapping[str, dict[str, deque[int]]], primaries: Mapping[str, int]) -> list[tuple[int, str]]:
        """Buckets and whom each goes to, so that the first node of the path has one fewer and the last one more; empty if
        nobody has two more than anybody it can reach."""
        onward = {name: self._next_edges(edges[name]) for name in self.pool}
        for start in sorted(self.pool, key=lambda name: (-primaries[name], name)):
            came: dict[str, tuple[str, int]] = {}
            queue = deque([start])
            while queue:
                name = queue.popleft()
                for heir, bucket in onward[name]:
                    if heir == start or heir in came:
                        continue
                    came[heir] = (name, bucket)
                    if primaries[start] - primaries[heir] >= 2:
                        return _back(came, start, heir)
                    queue.append(heir)
        return []


def _back(came: Mapping[str, tuple[str, int]], start: str, end: str) -> list[tuple[int, str]]:
    """The path that led from `start` to `end`."""
    path = []
    while end != start:
        before, bucket = came[end]
        path.append((bucket, end))
        end = before
    return path
