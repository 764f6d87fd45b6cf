"""A name that is given to a new node while the old one only stalls: what becomes of the old one, with real processes."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rcache.cluster.view import NodeState
from rcache_client import Client, RcacheError
from soak.server_process import ServerProcess
from tests.commands.test_cli_cluster import cli
from tests.integration.cluster import Cluster, until, values_of
from tests.integration.conftest import assert_nothing_unhandled

KEYS = 200


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path / "cluster")
    try:
        yield cluster.grow("a", "b")
        for node in cluster.nodes.values():
            assert_nothing_unhandled(node)
    finally:
        cluster.close()


@pytest.fixture
def stall(pair: Cluster) -> Iterator[Callable[[str], ServerProcess]]:
    """Stops a node where it is, and has the cluster go on without it."""
    stalled: list[ServerProcess] = []

    def make(name: str) -> ServerProcess:
        node = pair.nodes[name]
        stalled.append(node)
        os.kill(node.pid, signal.SIGSTOP)
        pair.silent.add(name)
        until(f"{name} is lost", lambda: pair.view("a").nodes[name].state is NodeState.LOST)
        return node

    yield make
    for node in stalled:
        if node not in pair.nodes.values():
            node.close()


def replaced(cluster: Cluster, name: str) -> ServerProcess:
    """A new node under that name, with an empty data directory; everything has its copies again."""
    removed = cli(cluster.nodes["a"], "remove", name)
    assert removed.code == 0, removed.err
    del cluster.nodes[name]
    cluster.silent.discard(name)
    address = cluster.nodes["a"].address
    cluster.nodes[name] = ServerProcess(cluster.directory / f"{name}-new", "--node", address, name=name)
    cluster.settle()
    return cluster.nodes[name]


def read_at(node: ServerProcess, keys: list[bytes]) -> dict[bytes, bytes | None]:
    """What it answers itself, of what it answers at all."""
    found: dict[bytes, bytes | None] = {}
    try:
        with Client(node.address, budget=0.2) as client:
            for key in keys:
                found[key] = client.get(key)
    except RcacheError:
        pass
    return found


def test_the_old_one_wakes_and_takes_nothing_from_the_new_one(pair: Cluster, stall: Callable[[str], ServerProcess]) -> None:
    """It is of the same name, and of the incarnation that the new one would have begun with: it parted a from the new one,
    joined anew in its place, and all that the two had was lost."""
    cluster = pair
    cluster.write(values_of(KEYS, "old"))
    before = cluster.view("a").nodes["b"]
    old = stall("b")
    replaced(cluster, "b")
    settled = cluster.view("a")
    assert settled.nodes["b"].incarnation > before.incarnation, "another to everybody"
    values = values_of(KEYS, "new")
    cluster.write(values)
    keys = [key for key in values if cluster.primary_of(key) == "b"][:20]
    os.kill(old.pid, signal.SIGCONT)
    wrong: dict[bytes, bytes | None] = {}

    def has_ended() -> bool:
        wrong.update({key: value for key, value in read_at(old, keys).items() if value != values[key]})
        return not old.running

    until("the old b ends", has_ended)
    assert wrong == {}
    assert old.wait() == 2, old.stderr_text
    assert "DISPLACED: " in old.stderr_text
    assert "the name b belongs to another node by now" in old.stderr_text
    assert_nothing_unhandled(old)
    view = cluster.view("a")
    assert all(placed.primary is not None for placed in view.placements), "nothing was lost"
    assert (view.nodes["b"], view.placements) == (settled.nodes["b"], settled.placements), "nor moved"
    assert cluster.read(list(values)) == values


def test_the_old_one_is_started_again_and_turned_away(pair: Cluster, stall: Callable[[str], ServerProcess]) -> None:
    """From its own directory, while the new one runs."""
    cluster = pair
    old = stall("b")
    replaced(cluster, "b")
    os.kill(old.pid, signal.SIGCONT)
    until("the old b ends", lambda: not old.running)
    old.arguments = ["--node", cluster.nodes["a"].address]
    old.launch()
    assert old.wait() == 2, old.stderr_text
    assert "a node b is alive at" in old.stderr_text
    assert cluster.settle().nodes["b"].state is NodeState.UP


def test_a_node_whose_name_nobody_took_comes_back(pair: Cluster, stall: Callable[[str], ServerProcess]) -> None:
    """It was removed while it stalled: the name is nobody's, and so its own again."""
    cluster = pair
    cluster.write(values := values_of(KEYS))
    before = cluster.view("a").nodes["b"]
    old = stall("b")
    assert cli(cluster.nodes["a"], "remove", "b").code == 0
    os.kill(old.pid, signal.SIGCONT)
    cluster.silent.discard("b")
    now = cluster.settle().nodes["b"]
    assert (now.data_dir_id, now.incarnation > before.incarnation, old.running) == (before.data_dir_id, True, True)
    assert cluster.read(list(values)) == values
