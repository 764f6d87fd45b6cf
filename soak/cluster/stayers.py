"""A process that asks every node for everything, whatever views say: two nodes that both serve a bucket are found by it.

What it is: `python -m soak.cluster.stayers SPEC`, where SPEC is a `StaySpec` as JSON. An ordinary client goes by the newest
view it has heard of, so a node that was deposed and answers on is asked by nobody. A *stayer* keeps to its node: one for each,
on connections straight to it, past the proxy. In turns it asks for all of its round's keys, and writes all of them, without
waiting for the answers before; whoever is not the primary refuses. At a node that is stopped its calls pile up, and are the
first that it sees when it goes on.
On standard input, one line of JSON each: an `Orders`. On standard output what `soak.cluster.clients` says, too.
Which thread runs it: one, around a selector. What it owns: connections to each node (`soak.cluster.lanes`), one to read by and
some to write by (an answer waits for those before it, and a read must not wait for a write that is never acknowledged); a file
of the history for each node and round. What it must not know: what is broken, and when.

What it writes down: reads that were answered, writes that were, and writes whose answer never came (unknown). A refusal says
nothing. Every value is written once.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from soak.cluster.lanes import ALL_KEYS, Lane, Notebook
from soak.cluster.workload import stay_keys
from soak.history import Op

CALM_S, BUSY_S = 0.25, 0.04
"""From one turn to the next: while nothing is broken, and while something is. Two primaries at once may be so for a tenth of a
second only."""

WRITE_LANES = 12
"""Connections to a node over which the writes are spread: answers come in order, so one write that waits for a backup keeps
those behind it waiting, also those to buckets that the node has just taken over."""

ORDER_BYTES = 1 << 16


def stayer_of(node: str) -> str:
    """The name that a node's stayer has in the history."""
    return f"stay-{node}"


def is_stayer(client: str) -> bool:
    return client.startswith("stay-")


@dataclass(frozen=True, slots=True)
class StaySpec:
    """What the process is told. `ports`: of the nodes themselves, by their names; `start_ns` and `round_s` as the clients'."""

    ports: dict[str, int]
    start_ns: int
    round_s: float
    directory: str

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> StaySpec:
        return StaySpec(**json.loads(text))


@dataclass(frozen=True, slots=True)
class Orders:
    """How to go on. `busy`: something is broken; `spared`: nodes that are read from only. (What one of these took from a stayer
    and cannot have acknowledged would keep the reads of that key waiting, and would tell it of a newer view.)"""

    busy: bool = False
    spared: tuple[str, ...] = ()

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> Orders:
        facts = json.loads(text)
        return Orders(facts["busy"], tuple(facts["spared"]))


@dataclass(slots=True)
class _Rounds:
    """Which rounds are not over yet, for each stayer."""

    now: int = -1
    left: dict[str, list[int]] = field(default_factory=dict)


class Stayers:
    """All of them. `turn` does what is due."""

    def __init__(self, spec: StaySpec) -> None:
        self.orders = Orders()
        self.selector = selectors.DefaultSelector()
        self._spec = spec
        self._rounds = _Rounds()
        self._due = time.monotonic()
        self._keys: list[str] = []
        self.notebooks = {node: Notebook(Path(spec.directory), stayer_of(node)) for node in spec.ports}
        self._rounds.left = {node: [] for node in spec.ports}
        self._lanes = [
            Lane(node, port, part, self.notebooks[node], self.selector)
            for node, port in spec.ports.items()
            for part in (ALL_KEYS, *(slice(first, None, WRITE_LANES) for first in range(WRITE_LANES)))
        ]

    def follow(self, orders: Orders) -> None:
        self.orders = orders
        self._due = time.monotonic()

    def turn(self) -> bool:
        """Take in what comes until the next turn is due, and do it. True if there are orders to be read."""
        events = self.selector.select(max(0.0, self._due - time.monotonic()))
        for key, _ in events:
            if isinstance(key.data, Lane):
                key.data.receive()
        if time.monotonic() >= self._due:
            self._due = time.monotonic() + (BUSY_S if self.orders.busy else CALM_S)
            self._ask_all()
        return any(key.data is None for key, _ in events)

    def _ask_all(self) -> None:
        number = int((time.monotonic_ns() - self._spec.start_ns) / 1e9 / self._spec.round_s)
        if number != self._rounds.now:
            self._rounds.now, self._keys = number, stay_keys(number)
            for left in self._rounds.left.values():
                left.append(number)
        for lane in self._lanes:
            if lane.op is Op.GET or lane.node not in self.orders.spared:
                lane.send(number, self._keys[lane.part])

    def rounds_over(self, *, all_of_them: bool = False) -> Iterator[tuple[str, int]]:
        """Rounds that a stayer is done with since the last call: (its name, the round)."""
        for node, left in self._rounds.left.items():
            while left and (all_of_them or left[0] != self._rounds.now) and self.notebooks[node].is_over(left[0]):
                yield stayer_of(node), left.pop(0)

    def close(self) -> None:
        for lane in self._lanes:
            lane.close()


def main() -> int:
    """Returns the exit code."""
    stayers, unread = Stayers(StaySpec.from_json(sys.argv[1])), b""
    stayers.selector.register(sys.stdin.fileno(), selectors.EVENT_READ, None)

    def say(told: dict[str, Any]) -> None:
        print(json.dumps(told), flush=True)

    while True:
        has_orders = stayers.turn()
        for name, number in stayers.rounds_over():
            say({"done": number, "client": name})
        if not has_orders:
            continue
        more = os.read(sys.stdin.fileno(), ORDER_BYTES)
        if not more:
            break
        *lines, unread = (unread + more).split(b"\n")
        for line in lines:
            stayers.follow(Orders.from_json(line.decode()))
    stayers.close()
    for name, number in stayers.rounds_over(all_of_them=True):
        say({"done": number, "client": name})
    for notebook in stayers.notebooks.values():
        say({"ended": notebook.name, **notebook.counts.to_json()})
    return 0


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        sys.exit(main())
