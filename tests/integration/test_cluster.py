"""Nodes come, go, die and come back, as real processes: no acknowledged write is lost, and none is read that was
overwritten."""

from __future__ import annotations

import resource
import signal
import socket
import time
from pathlib import Path

import pytest

from rcache.cluster.view import NodeState
from rcache_client.wire.frames import Reply, ReplyReader, encode_request
from rcache_client.wire.grammar import KEY_ONLY, decode_reply
from rcache_client.wire.opcodes import Opcode, Status
from tests.agreement.etcds import EtcdProcess
from tests.integration.cluster import BUCKETS, until, values_of
from tests.integration.conftest import MakeCluster

NAMES = ("a", "b", "c")
KEYS = 300


def test_three_nodes_share_buckets_evenly_with_a_backup_each(cluster_of: MakeCluster) -> None:
    cluster = cluster_of().grow(*NAMES)
    view = cluster.settle()
    assert set(view.nodes) == set(NAMES)
    assert view.manager == "a"
    assert all(placed.primary != placed.backups[0] for placed in view.placements)
    assert sum(len(view.primaries_of(name)) for name in NAMES) == BUCKETS


@pytest.mark.parametrize("engine", ["native", "reference"])
def test_what_was_written_is_there_after_every_node_was_restarted(cluster_of: MakeCluster, engine: str) -> None:
    cluster = cluster_of("--engine", engine).grow(*NAMES)
    values = values_of(KEYS)
    cluster.write(values)
    for name in NAMES:
        assert cluster.nodes[name].stop() == 0
        others = [node.address for node in cluster.running()]
        assert name not in cluster.view().nodes, "who left is in the view no more"
        cluster.nodes[name].arguments = [option for address in others for option in ("--node", address)]
        cluster.nodes[name].arguments += ["--engine", engine]
        cluster.nodes[name].start()
        view = cluster.settle()
        assert list(view.nodes) == sorted(NAMES), "a node that is known and comes back is listed once"
    assert cluster.read(list(values)) == values


@pytest.mark.parametrize("victim", ["b", "c"])
def test_kill_9_of_one_node_loses_nothing(cluster_of: MakeCluster, victim: str) -> None:
    cluster = cluster_of().grow(*NAMES)
    values = values_of(KEYS)
    cluster.write(values)
    before = cluster.view()
    assert before.primaries_of(victim)
    cluster.nodes[victim].kill()
    until("the survivors take over", lambda: not cluster.view().primaries_of(victim))
    after = cluster.settle()
    assert after.nodes[victim].state is NodeState.LOST
    assert cluster.read(list(values)) == values

    cluster.nodes[victim].start()
    again = cluster.settle()
    assert again.nodes[victim].incarnation == before.nodes[victim].incarnation + 1
    assert sorted(again.nodes) == sorted(NAMES)
    assert cluster.read(list(values)) == values


def test_a_node_that_was_stopped_for_long_reads_nothing_stale(cluster_of: MakeCluster) -> None:
    cluster = cluster_of().grow(*NAMES)
    values = values_of(KEYS)
    cluster.write(values)
    mine = [key for key in values if cluster.primary_of(key) == "b"]
    stopped = cluster.nodes["b"]
    host, _, port = stopped.address.rpartition(":")
    waiting = socket.create_connection((host, int(port)), timeout=10)
    stopped.signal(signal.SIGSTOP)
    cluster.silent.add("b")
    try:
        until("the others take over", lambda: not cluster.view().primaries_of("b"))
        newer = dict.fromkeys(mine, b"newer")
        for key in mine[:20]:
            cluster.call(key, lambda client, key=key: client.set(key, newer[key]))  # type: ignore[misc]
        for number, key in enumerate(mine[:20], 1):  # they are the first that it sees when it goes on
            waiting.sendall(encode_request(Opcode.GET, number, 300, KEY_ONLY.encode(key)))
    finally:
        stopped.signal(signal.SIGCONT)
        cluster.silent.clear()
    for key, reply in zip(mine[:20], _replies(waiting, 20), strict=True):
        if reply.status == Status.OK:
            _, _, value = decode_reply(Opcode.GET, reply.status, reply.payload)
            assert value == b"newer", f"{key!r}: an old value, from a node that was deposed"
    cluster.settle()
    assert cluster.read(mine[:20]) == dict.fromkeys(mine[:20], b"newer")
    assert "FELL OUT" in stopped.stderr_text


def _replies(sock: socket.socket, count: int) -> list[Reply]:
    reader, replies = ReplyReader(1 << 20), []
    with sock:
        while len(replies) < count:
            data = sock.recv(1 << 16)
            assert data, "it closed the connection without an answer"
            reader.feed(data)
            while (reply := reader.next()) is not None:
                replies.append(reply)
    return replies


@pytest.mark.parametrize("victim", NAMES)
def test_with_etcd_any_node_may_die(cluster_of: MakeCluster, etcd: EtcdProcess, victim: str) -> None:
    cluster = cluster_of("--etcd", etcd.url).grow(*NAMES)
    assert cluster.view().manager is None
    values = values_of(KEYS)
    cluster.write(values)
    cluster.nodes[victim].kill()
    until("the survivors take over", lambda: not cluster.view().primaries_of(victim))
    cluster.settle()
    assert cluster.read(list(values)) == values


def test_while_etcd_is_away_data_goes_on(cluster_of: MakeCluster, etcd: EtcdProcess) -> None:
    cluster = cluster_of("--etcd", etcd.url).grow("a", "b")
    etcd.kill()
    values = values_of(KEYS)
    cluster.write(values)
    assert cluster.read(list(values)) == values
    etcd.start()
    cluster.add("c")
    cluster.settle()
    assert cluster.read(list(values)) == values


def test_the_last_node_has_everything_and_saves_it(cluster_of: MakeCluster) -> None:
    cluster = cluster_of("--persist-on-shutdown", "--no-append-log").grow("a", "b")
    values = values_of(KEYS)
    cluster.write(values)
    assert cluster.nodes["a"].stop() == 0, "the register's holder leaves in order"
    view = cluster.view()
    assert (list(view.nodes), view.manager) == (["b"], "b")
    assert not (cluster.nodes["a"].data_dir / "a.rcs").exists(), "it has nothing to save: it handed all of it over"
    assert cluster.nodes["b"].stop() == 0
    cluster.nodes["b"].arguments = ["--persist-on-shutdown", "--no-append-log"]
    cluster.nodes["b"].start()
    assert cluster.read(list(values)) == values


def test_all_are_killed_and_come_back(cluster_of: MakeCluster) -> None:
    """With fsync always every acknowledged write is on two disks; whoever is named last has it."""
    cluster = cluster_of()
    cluster.add("a", "--append-log-fsync", "always")
    cluster.grow("b", "c")
    values = values_of(KEYS)
    cluster.write(values)
    for node in cluster.nodes.values():
        node.kill()
    for name in NAMES:
        node = cluster.nodes[name]
        node.arguments = ["--listen", node.address]  # where the others look for it
        node.launch()
    deadline = time.monotonic() + 30
    waiting = set(NAMES)
    while waiting:  # who comes before the register's holder answers ends with exit code 3, and is started again
        assert time.monotonic() < deadline
        for name in sorted(waiting):
            node = cluster.nodes[name]
            if not node.running:
                assert node.wait() == 3, node.stderr_text
                node.launch()
            elif "serving on" in node.stderr_text.rpartition("rcached 0")[2]:
                node.wait_ready()
                waiting.discard(name)
        time.sleep(0.05)
    cluster.settle()
    assert cluster.read(list(values)) == values


def test_7_a_node_whose_log_fails_hands_over_first(cluster_of: MakeCluster) -> None:
    cluster = cluster_of().grow("a", "b")
    failing = cluster.nodes["b"]
    size = max(path.stat().st_size for path in failing.data_dir.glob("*.rcl"))
    resource.prlimit(failing.pid, resource.RLIMIT_FSIZE, (size + 100_000, size + 100_000))
    acknowledged: dict[bytes, bytes] = {}
    deadline = time.monotonic() + 30
    while failing.running:
        assert time.monotonic() < deadline, "the log goes on"
        key = b"key-%d" % len(acknowledged)
        value = b"%d" % len(acknowledged) * 200
        cluster.call(key, lambda client, key=key, value=value: client.set(key, value))  # type: ignore[misc]
        acknowledged[key] = value
    assert failing.wait() == 7, failing.stderr_text
    assert list(cluster.view().nodes) == ["a"], "it left in order"
    assert cluster.read(list(acknowledged)) == acknowledged


# --- who may not join


def test_3_no_node_answers(cluster_of: MakeCluster, tmp_path: Path) -> None:
    cluster = cluster_of()
    node = cluster.add("x", "--node", "127.0.0.1:1", "--node", "127.0.0.1:2", start=False)
    node.launch()
    assert node.wait() == 3
    assert "no node could be joined" in node.stderr_text
    assert "127.0.0.1:1: cannot connect" in node.stderr_text
    assert "127.0.0.1:2: cannot connect" in node.stderr_text
    assert not (tmp_path / "cluster-0" / "x" / "register").exists(), "it began no cluster of its own"


def test_2_another_cluster(cluster_of: MakeCluster) -> None:
    one, two = cluster_of(), cluster_of()
    one.add("a")
    two.add("b")
    assert two.nodes["b"].stop() == 0
    two.nodes["b"].arguments = ["--node", one.nodes["a"].address]
    two.nodes["b"].launch()
    assert two.nodes["b"].wait() == 2
    assert "WRONG_CLUSTER: this is cluster" in two.nodes["b"].stderr_text


@pytest.mark.parametrize(
    ("option", "value"), [("--backups", "2"), ("--lease", "3"), ("--buckets", "64"), ("--append-log-fsync", "always")]
)
def test_2_what_is_the_clusters_said_otherwise(cluster_of: MakeCluster, option: str, value: str) -> None:
    cluster = cluster_of()
    cluster.add("a")
    node = cluster.add("b", option, value, start=False)
    node.launch()
    assert node.wait() == 2
    assert f"{option} is {value}" in node.stderr_text
    assert "the cluster has" in node.stderr_text


def test_2_the_same_name_alive_elsewhere(cluster_of: MakeCluster, tmp_path: Path) -> None:
    cluster = cluster_of()
    cluster.add("a")
    address = cluster.nodes["a"].address
    twin = cluster_of()
    node = twin.add("a", "--node", address, start=False)
    node.launch()
    assert node.wait() == 2
    assert "a node a is alive at" in node.stderr_text
