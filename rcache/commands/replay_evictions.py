"""Whether what is injected has room: how much the nodes of the cluster evicted meanwhile.

What it is: one question to each node, before and after. A cache that is full takes new items all the same and lets go of others
for them, so a cluster that is rebuilt on fewer nodes, or smaller ones, would lose some of what was put in without a word.
Which thread runs it: the main thread; every question has a bound.
What it owns: its connections, until each has answered. What it must not know: what is injected.
"""

from __future__ import annotations

import json
from typing import Any

from rcache.commands.replay_options import PROGRAM
from rcache.peers.line import Line, PeerUnreachable
from rcache_client import Client, RcacheError
from rcache_client.address import parse_address
from rcache_client.handshake import Greeter
from rcache_client.view import LOST
from rcache_client.wire.opcodes import Opcode, Role, Status

ASK_S = 2.0
"""For a node to answer; it only reads a counter. One that does not is left out: this is a hint, not a count."""

Evicted = dict[tuple[str, int], int]
"""How many items a node (its name and incarnation) has evicted since it was started."""


def evicted_at(client: Client[Any], secret: bytes | None) -> Evicted:
    """What each node of the client's cluster has evicted so far. Empty where the server knows no view."""
    try:
        nodes = client.view(budget=ASK_S).nodes.values()
    except RcacheError:
        return {}
    found: Evicted = {}
    for node in nodes:
        if node.state != LOST and (count := _evicted_by(node.address, secret)) is not None:
            found[node.name, node.incarnation] = count
    return found


def _evicted_by(address: str, secret: bytes | None) -> int | None:
    line = Line(parse_address(address), Greeter(PROGRAM, Role.ADMIN, secret), ASK_S)
    try:
        status, values = line.ask(Opcode.STATS, "items", timeout_s=ASK_S)
        return int(json.loads(values[0])["items"]["evicted"]) if status == Status.OK else None
    except (PeerUnreachable, ValueError, KeyError):
        return None
    finally:
        line.close()


def evicted_between(before: Evicted, after: Evicted) -> int:
    """How many items were evicted between two looks; a node that came between them counts from its start."""
    return sum(max(0, count - before.get(node, 0)) for node, count in after.items())
