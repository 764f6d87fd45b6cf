"""A cluster of real processes for tests, looked at and written to without the client's own routing.

What it is: nodes as `ServerProcess`, the view as each of them tells it, and reads and writes at the node that the view names.
Which thread runs it: the test's; every wait ends at a deadline.
What it owns: the processes, from the first start to `close`. What it must not know: how a node works.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from zlib import crc32

from rcache.cluster.view import NodeState, View, decode_view
from rcache.peers.line import Line, PeerUnreachable
from rcache_client import Client, RcacheError
from rcache_client.address import parse_address
from rcache_client.handshake import Greeter
from rcache_client.wire.opcodes import Opcode, Role, Status
from soak.server_process import ServerProcess

PATIENCE_S = 20.0
"""For what takes a second or two on a machine that is not busy."""

BUCKETS = 32


def until(what: str, happened: Callable[[], bool], patience_s: float = PATIENCE_S) -> None:
    """Wait for it, or fail with `what`."""
    deadline = time.monotonic() + patience_s
    while not happened():
        assert time.monotonic() < deadline, f"not within {patience_s:g} s: {what}"
        time.sleep(0.02)


class Cluster:
    """Nodes by their names. The first is started alone, the others join whoever runs."""

    def __init__(self, directory: Path, *arguments: str) -> None:
        self.directory = directory
        self.arguments = arguments
        self.nodes: dict[str, ServerProcess] = {}
        self.silent: set[str] = set()  # stopped for a while: nobody is to wait for them

    def add(self, name: str, *more: str, start: bool = True) -> ServerProcess:
        """A node that begins the cluster, or joins those that run."""
        others = [option for node in self.running() for option in ("--node", node.address)]
        first = [] if others or self.nodes else ["--buckets", str(BUCKETS)]
        arguments = (*first, *others, *self.arguments, *more)
        node = self.nodes[name] = ServerProcess(self.directory / name, *arguments, name=name, start=start)
        return node

    def grow(self, *names: str) -> Cluster:
        """Add these, and wait until every bucket has its copies."""
        for name in names:
            self.add(name)
        self.settle()
        return self

    def running(self) -> list[ServerProcess]:
        return [node for name, node in self.nodes.items() if node.running and node.address and name not in self.silent]

    def close(self) -> None:
        for node in self.nodes.values():
            node.close()

    # --- the view

    def view(self, name: str | None = None) -> View:
        """As this node knows it, or whoever has the newest."""
        asked = [self.nodes[name]] if name is not None else self.running()
        views = [view for node in asked if (view := _view_of(node)) is not None]
        assert views, "nobody tells a view"
        return max(views, key=lambda view: view.epoch)

    def settle(self, patience_s: float = PATIENCE_S) -> View:
        """Wait until all that run are up, agree, and nothing is lacking or moves."""
        count = len(self.running())

        def is_settled() -> bool:
            views = [_view_of(node) for node in self.running()]
            if any(view is None for view in views) or len({view.epoch for view in views if view}) != 1:
                return False
            view = views[0]
            assert view is not None
            return len(view.names(NodeState.UP)) == count and not view.lacking() and _is_even(view)

        try:
            until("the cluster settles", is_settled, patience_s)
        except AssertionError as error:
            said = "\n".join(f"--- {node.name}\n{node.stderr_text[-3000:]}" for node in self.nodes.values())
            raise AssertionError(f"{error}: {self.view()}\n{said}") from None
        return self.view()

    # --- data

    def primary_of(self, key: bytes, view: View | None = None) -> str:
        placements = (view or self.view()).placements
        name = placements[crc32(key) & (len(placements) - 1)].primary
        assert name is not None, "the bucket is lost"
        return name

    def call(self, key: bytes, ask: Callable[[Client], object], patience_s: float = PATIENCE_S) -> object:
        """Ask whoever is primary of the key until it answers. For what may be asked twice."""
        deadline = time.monotonic() + patience_s
        while True:
            try:
                address = self.nodes[self.primary_of(key)].address
                with Client(address, budget=1.0) as client:
                    return ask(client)
            except (RcacheError, AssertionError):
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)

    def write(self, values: dict[bytes, bytes]) -> None:
        """Each at its primary, over one connection for each node."""
        view = self.view()
        for name in view.nodes:
            mine = {key: value for key, value in values.items() if self.primary_of(key, view) == name}
            if mine:
                with Client(self.nodes[name].address, budget=5.0) as client:
                    client.set_many(mine)

    def read(self, keys: list[bytes]) -> dict[bytes, bytes]:
        """Each from its primary; misses are left out."""
        view = self.view()
        found: dict[bytes, bytes] = {}
        for name in view.nodes:
            mine = [key for key in keys if self.primary_of(key, view) == name]
            if mine:
                with Client(self.nodes[name].address, budget=5.0) as client:
                    found.update({key: value for key, value in client.get_many(mine).items() if value is not None})
        return found


def _is_even(view: View) -> bool:
    up = view.names(NodeState.UP)
    copies = [view.copies_of(name) for name in up]
    primaries = [len(view.primaries_of(name)) for name in up]
    return max(copies) - min(copies) <= 1 and max(primaries) - min(primaries) <= 1


def _view_of(node: ServerProcess) -> View | None:
    line = Line(parse_address(node.address), Greeter("test", Role.ADMIN, None), 2.0)
    try:
        status, values = line.ask(Opcode.VIEW, 0, timeout_s=2.0)
    except PeerUnreachable:
        return None
    finally:
        line.close()
    return decode_view(values[1]) if status == Status.OK else None


def values_of(count: int, text: str = "v") -> dict[bytes, bytes]:
    """Keys that fall into all buckets, and a value each."""
    return {b"key-%d" % number: f"{text}-{number}".encode() for number in range(count)}
