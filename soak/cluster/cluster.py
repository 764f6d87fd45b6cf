"""The cluster under test: its nodes, the network between them, etcd if it agrees by it, and what it says of itself.

What it is: `Cluster`, and `Seen`, what one node told. Which thread runs it: the main thread changes it; `look` any.
What it owns: all of these processes, until `close`. What it must not know: when something is to be broken.

Nodes are asked past the proxy, as an administrator, so that a cut hides nothing from whoever watches.
"""

from __future__ import annotations

import json
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rcache.cluster.view import BadView, NodeState, View, decode_view
from rcache.peers.line import Line, PeerUnreachable
from rcache_client.address import parse_address
from rcache_client.handshake import Greeter
from rcache_client.wire.opcodes import Opcode, Role, Status
from soak.cluster.errors import Violated
from soak.cluster.etcd import EtcdServer
from soak.cluster.network import Network
from soak.cluster.nodes import Birth, ClusterNode
from soak.server_process import ServerFailed

EMBEDDED, ETCD = "embedded", "etcd"

ASK_S = 1.0
"""For an answer of a node; one that is stopped or overloaded gives none."""

LOOK_S = 0.05
"""How often the cluster is looked at while its recovery is waited for: so exact is the wait that is measured."""

RECOVERY_S = 60.0
"""Until every bucket must have its backups again. It takes a second or two; a machine at its limit takes longer."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What a node told: the view it goes by, and its figures."""

    view: View
    stats: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Plan:
    """What to set up. `shim`: the library that steers clocks and disks, where there is one."""

    nodes: int
    manager: str
    birth: Birth
    seed: int
    directory: Path
    shim: Path | None = None


class Cluster:
    """Set up by its construction: all nodes run and have joined. Close it, or nothing is left to others."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.nodes: dict[str, ClusterNode] = {}
        self.etcd: EtcdServer | None = None
        self._closing = ExitStack()
        try:
            self.network = Network(plan.seed)
            self._closing.callback(self.network.close)
            if plan.manager == ETCD:
                self.etcd = EtcdServer(plan.directory / "etcd.log")
                self._closing.callback(self.etcd.close)
            for number in range(1, plan.nodes + 1):
                self._make(f"n{number}")
            first, *others = self.nodes.values()
            first.start([], plan.birth)
            for node in others:
                node.start([first.address])
        except BaseException:
            self.close()
            raise

    def _make(self, name: str) -> None:
        node = ClusterNode(name, self.plan.directory, self.plan.shim)
        self._closing.callback(node.close)
        node.address = self.network.front(name, node.port)
        if self.etcd is not None:
            node.etcd = f"http://{self.network.front_of_etcd(name, self.etcd.port)}"
        self.nodes[name] = node

    @property
    def addresses(self) -> list[str]:
        """For clients: the fronts of all nodes."""
        return [node.address for node in self.nodes.values()]

    @property
    def expected(self) -> list[str]:
        """The names of those that should be running."""
        return [node.name for node in self.nodes.values() if node.expected]

    def others(self, name: str) -> list[str]:
        """The names of the other nodes."""
        return [other for other in self.nodes if other != name]

    def start(self, name: str) -> None:
        """Start a node again; the others tell it what the cluster is. Raises `Violated` where it does not come up."""
        try:
            self.nodes[name].start([self.nodes[other].address for other in self.others(name)])
        except ServerFailed as failure:
            raise Violated(f"{name} did not start again: {failure}") from None

    def await_end(self, name: str, codes: tuple[int, ...]) -> None:
        """Wait until a node ended. Raises `Violated` if it does not, or with another exit code than one of these."""
        try:
            code = self.nodes[name].await_end()
        except ServerFailed as failure:
            raise Violated(f"{name}: {failure}") from None
        if code not in codes:
            raise Violated(f"{name} ended with exit code {code}, not {' or '.join(map(str, codes))}")

    # --- looking

    def look(self, name: str) -> Seen | None:
        """What a node tells; None if it does not answer. Blocks for ASK_S or two."""
        node = self.nodes[name]
        if not node.running or node.frozen:
            return None
        line = Line(parse_address(f"127.0.0.1:{node.port}"), Greeter("rcache-soak", Role.ADMIN, None), ASK_S)
        try:
            status, values = line.ask(Opcode.VIEW, 0, timeout_s=ASK_S)
            if status != Status.OK:
                return None
            view = decode_view(values[1])
            status, values = line.ask(Opcode.STATS, "", timeout_s=ASK_S)
            return Seen(view, json.loads(values[0])) if status == Status.OK else None
        except (PeerUnreachable, BadView):
            return None
        finally:
            line.close()

    def manager(self) -> str | None:
        """The node that keeps the embedded register; None with etcd. Raises `Violated` where nobody can say."""
        return None if self.plan.manager == ETCD else self.view().manager

    def view(self) -> View:
        """The newest that a node goes by. Raises `Violated` where nobody answers."""
        views = [seen.view for name in self.expected if (seen := self.look(name)) is not None]
        if not views:
            raise Violated("no node says what the view is")
        return max(views, key=lambda view: view.epoch)

    def ailments(self) -> list[str]:
        """What keeps the cluster from being whole; empty if every bucket has its backups and all nodes are up."""
        ailing, epochs = [], set()
        for name in self.expected:
            seen = self.look(name)
            if seen is None:
                ailing.append(f"{name} does not answer")
                continue
            epochs.add(seen.view.epoch)
            ailing += [f"{name}: {each}" for each in ailments_of(seen, set(self.expected), self.plan.birth.backups)]
        if len(epochs) > 1:
            ailing.append(f"nodes go by views of different epochs: {sorted(epochs)}")
        return ailing

    def recover(self, timeout_s: float = RECOVERY_S) -> float:
        """Wait until the cluster is whole, and return how many seconds that took. Raises `Violated` if it does not become
        so."""
        began = time.monotonic()
        while ailing := self.ailments():
            if time.monotonic() - began > timeout_s:
                raise Violated(f"the cluster was not whole after {timeout_s:g} s: {'; '.join(ailing[:4])}")
            time.sleep(LOOK_S)
        return time.monotonic() - began

    def stop(self) -> list[str]:
        """Stop all nodes in order, one after the other. Returns what went wrong."""
        wrong = []
        for name, node in self.nodes.items():
            if not node.running:
                continue
            node.terminate()
            try:
                self.await_end(name, (0,))
            except Violated as violation:
                wrong.append(f"at the end: {violation}")
        return wrong

    def close(self) -> None:
        """Idempotent."""
        self._closing.close()


def ailments_of(seen: Seen, expected: set[str], backups: int) -> list[str]:
    """What one node says is missing."""
    ailing = []
    cluster = seen.stats["cluster"]
    up = set(seen.view.names(NodeState.UP))
    if up != expected:
        ailing.append(f"up are {', '.join(sorted(up)) or 'none'}")
    if cluster["buckets_lost"]:
        ailing.append(f"{cluster['buckets_lost']} buckets are lost")
    if cluster["buckets_to_open"]:
        ailing.append(f"{cluster['buckets_to_open']} buckets are to be opened")
    if len(expected) > backups and cluster["buckets_lacking_backups"]:
        ailing.append(f"{cluster['buckets_lacking_backups']} buckets lack backups")
    return ailing
