"""Who reaches whom: the cuts and delays that the proxy keeps to.

What it is: `Rules`, immutable, and its form as JSON. Which thread runs it: any.
What it owns: nothing. What it must not know: sockets.

A party is a node's name, CLIENTS for all clients together, ETCD, or ADMINS (who are never cut off by these rules unless named).
A rule is for one direction, from a party to another, whoever of them made the connection: a cut from a to b swallows what a
asks b, and also what a answers b.

A *stall* from a to b is a path that is lost under one connection and not under others between the same two, as where several
links are shared by flows: the connections by which a sends b its records stand still, both ways, and heartbeats pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any

CLIENTS = "(clients)"
ADMINS = "(admins)"
ETCD = "(etcd)"
"""No node may be called so: names of nodes go into file names."""

Direction = tuple[str, str]


class Cut(StrEnum):
    """What becomes of bytes on a way that is cut."""

    HOLD = "hold"
    """They wait, as if every packet were lost and sent again: nothing is closed, and they arrive when the cut ends."""
    DROP = "drop"
    """They wait, and when the cut ends the connections are reset: their timers ran out."""
    CLOSE = "close"
    """Connections are reset at once, and so is every new one: a firewall that answers."""


@dataclass(frozen=True, slots=True)
class Delay:
    """Each byte comes later by `least_s` and up to `spread_s` more, in order."""

    least_s: float
    spread_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Rules:
    """See the module."""

    cuts: Mapping[Direction, Cut] = field(default_factory=lambda: MappingProxyType({}))
    delays: Mapping[Direction, Delay] = field(default_factory=lambda: MappingProxyType({}))
    stalls: frozenset[Direction] = frozenset()

    def cut(self, from_whom: str, to_whom: str) -> Cut | None:
        return self.cuts.get((from_whom, to_whom))

    def delay(self, from_whom: str, to_whom: str) -> Delay | None:
        return self.delays.get((from_whom, to_whom))

    def between(self, one: str, other: str) -> Cut | None:
        """The cut of either direction: a new connection needs both."""
        return self.cut(one, other) or self.cut(other, one)

    def to_json(self) -> dict[str, Any]:
        return {
            "cuts": [[*ways, cut.value] for ways, cut in self.cuts.items()],
            "delays": [[*ways, delay.least_s, delay.spread_s] for ways, delay in self.delays.items()],
            "stalls": sorted(map(list, self.stalls)),
        }

    @staticmethod
    def from_json(facts: Mapping[str, Any]) -> Rules:
        return Rules(
            {(one, other): Cut(cut) for one, other, cut in facts["cuts"]},
            {(one, other): Delay(least_s, spread_s) for one, other, least_s, spread_s in facts["delays"]},
            frozenset((one, other) for one, other in facts.get("stalls", ())),
        )


FREE = Rules()
"""Everybody reaches everybody."""


def both_ways(one: str, others: Iterable[str]) -> list[Direction]:
    """From one to each of the others, and back."""
    return [way for other in others for way in ((one, other), (other, one))]
