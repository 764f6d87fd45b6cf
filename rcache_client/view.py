"""The view: which nodes a cluster has, and which of them is the primary of each bucket.

What it is: the part of a view that a client goes by, read from the text that VIEW is answered with, and the bucket of a key.
Which thread runs it: any; everything here is constant.
What it owns: nothing.
What it must not know: doors, connections, how nodes agree on a view.

The text comes from outside, so each number in it has a bound here, and whatever is not as it should be is a `BadView`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple
from zlib import crc32

from rcache_client.address import parse_address
from rcache_client.arguments import Key, key_bytes
from rcache_client.wire.opcodes import CLUSTER_ID_BYTES, NODE_NAME_BYTES_MAX

FORMAT = 2
"""Of the text. One of another format is not guessed at."""

TEXT_BYTES_MAX = 4 << 20
"""A thousand nodes and all buckets that there can be, each told apart, take less."""

NODES_MAX = 1024
"""More would each need connections of their own; a cluster has a few."""

BUCKETS_MAX = 1 << 16
"""As many as a cluster can be born with."""

BACKUPS_MAX = 16

EPOCH_MAX = 0xFFFF_FFFF
"""What a reply's header holds."""

NUMBER_MAX = (1 << 64) - 1
STATE_BYTES_MAX = 32
ADDRESS_BYTES_MAX = 300
"""A host name has 253 at most."""

LOST = "lost"
"""The state of a node that was taken for dead: it has no role until it comes back."""


class BadView(ValueError):
    """The text is no view, or one that must not be."""


class Node(NamedTuple):
    """A member of the cluster. `address`: HOST:PORT that it is reached at; `state`: joining, up, leaving or lost."""

    name: str
    incarnation: int
    address: str
    state: str


class Bucket(NamedTuple):
    """Who holds a bucket, by name: its primary (None: it is lost) and those who have it too. `opened`: the epoch in which the
    primary became what it is."""

    primary: str | None
    backups: tuple[str, ...]
    opened: int


@dataclass(frozen=True, slots=True)
class View:
    """What the cluster agreed on under this `epoch`. A newer one has a greater epoch. `nodes` by name; `buckets` by number."""

    cluster_id: bytes
    epoch: int
    nodes: Mapping[str, Node]
    buckets: tuple[Bucket, ...]

    def bucket_of(self, key: Key) -> int:
        """The number of the bucket that a key is in."""
        return crc32(key_bytes(key)) & (len(self.buckets) - 1)

    def primary_of(self, key: Key) -> Node | None:
        """The node that answers for a key; None where its bucket is lost."""
        name = self.buckets[self.bucket_of(key)].primary
        return None if name is None else self.nodes[name]


def parse_view(text: bytes) -> View:
    """Read the text of a view. Raises `BadView`."""
    if len(text) > TEXT_BYTES_MAX:
        raise BadView(f"a view of {len(text)} bytes; at most {TEXT_BYTES_MAX} are taken")
    try:
        facts = json.loads(text)
        if facts["format"] != FORMAT:
            raise BadView(f"a view of format {facts['format']!r:.20}; this version of rcache_client reads {FORMAT}")
        nodes = _nodes_of(facts["nodes"])
        return View(
            _cluster_id(facts["cluster_id"]),
            _whole("epoch", facts["epoch"], 1, EPOCH_MAX),
            MappingProxyType(nodes),
            _buckets_of(facts["buckets"], nodes),
        )
    except BadView:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadView(f"no view: {type(error).__name__}: {error!s:.100}") from None


def _nodes_of(facts: Any) -> dict[str, Node]:
    if not isinstance(facts, dict) or not 0 < len(facts) <= NODES_MAX:
        raise BadView(f"there must be 1 to {NODES_MAX} nodes")
    return {_text("name", name, NODE_NAME_BYTES_MAX): _node_of(name, node) for name, node in facts.items()}


def _node_of(name: str, facts: Any) -> Node:
    address = _text("address", facts["address"], ADDRESS_BYTES_MAX)
    parse_address(address)
    state = _text("state", facts["state"], STATE_BYTES_MAX)
    return Node(name, _whole("incarnation", facts["incarnation"], 0, NUMBER_MAX), address, state)


def _buckets_of(runs: Any, nodes: Mapping[str, Node]) -> tuple[Bucket, ...]:
    buckets: list[Bucket] = []
    for count, primary, backups, opened in runs:
        bucket = _bucket_of(primary, backups, opened, nodes)
        buckets += [bucket] * _whole("buckets of a run", count, 1, BUCKETS_MAX - len(buckets))
    if not buckets or len(buckets) & (len(buckets) - 1):
        raise BadView(f"{len(buckets)} buckets are no power of two")
    return tuple(buckets)


def _bucket_of(primary: Any, backups: Any, opened: Any, nodes: Mapping[str, Node]) -> Bucket:
    if not isinstance(backups, list) or len(backups) > BACKUPS_MAX:
        raise BadView(f"a bucket must have a list of at most {BACKUPS_MAX} backups")
    for name in backups if primary is None else [primary, *backups]:
        if name not in nodes:
            raise BadView(f"{name!r:.80} has a bucket and is not in the view")
    return Bucket(primary, tuple(backups), _whole("opened", opened, 0, EPOCH_MAX))


def _cluster_id(value: Any) -> bytes:
    cluster_id = bytes.fromhex(value)
    if len(cluster_id) != CLUSTER_ID_BYTES:
        raise BadView(f"a cluster id has {CLUSTER_ID_BYTES} bytes, not {len(cluster_id)}")
    return cluster_id


def _text(what: str, value: Any, bytes_max: int) -> str:
    if not isinstance(value, str) or not 0 < len(value.encode()) <= bytes_max:
        raise BadView(f"a node's {what} must be a text of 1 to {bytes_max} bytes")
    return value


def _whole(what: str, value: Any, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise BadView(f"{what} must be a whole number from {low} to {high}")
    return value
