"""The register's holder is gone for good: what an operator can do then, and what is refused, with real processes."""

from __future__ import annotations

import json

from rcache.cluster.view import TERM_SHIFT, NodeState
from rcache.commands.seen_view import read_seen_view
from rcache.peers.line import Line
from rcache_client import Client
from rcache_client.address import parse_address
from rcache_client.handshake import Greeter
from rcache_client.wire.opcodes import Opcode, Role, Status
from soak.server_process import ServerProcess
from tests.commands.test_cli_cluster import Ended, cli
from tests.integration.cluster import BUCKETS, Cluster, until, values_of
from tests.integration.conftest import MakeCluster

KEYS = 200


def pair_of(cluster: Cluster, *more: str) -> Cluster:
    """Two nodes or more that settled, and have on disk by which view."""
    cluster.grow("a", "b", *more)
    for name in cluster.nodes:
        remembers(cluster, name)
    return cluster


def remembers(cluster: Cluster, name: str) -> None:
    """Wait until a node's files have the newest view."""
    epoch = cluster.settle().epoch

    def has_it() -> bool:
        seen = read_seen_view(cluster.nodes[name].data_dir)
        return seen is not None and seen.epoch >= epoch

    until(f"{name} remembers the view of epoch {epoch}", has_it)


def begin(node: ServerProcess) -> None:
    """Start it with nobody to look for but whom it knew, and wait until it can be asked: it is not ready yet."""
    address = node.address
    node.arguments = ["--listen", address]
    node.launch()
    node.address = address
    until(f"{node.name} answers at {address}", lambda: cli(node, "nodes", "--json").code == 0)


def takeover(node: ServerProcess, *arguments: str) -> Ended:
    return cli(node, "takeover", *arguments, "--json", "--budget", "20")


def promise(node: ServerProcess, term: int, nonce: str, name: str = "x") -> tuple[int, tuple[object, ...]]:
    """What it answers to a takeover's question."""
    line = Line(parse_address(node.address), Greeter(name, Role.NODE, None), 5.0)
    try:
        return line.ask(Opcode.REGISTER_PROMISE, term, nonce, timeout_s=5.0)
    finally:
        line.close()


def test_the_last_survivor_restarted_keeps_the_register_and_serves_again(cluster_of: MakeCluster) -> None:
    """Of two, the holder died for good and the other was restarted: it waits for a register that never answers."""
    cluster = pair_of(cluster_of("--append-log-fsync", "always"))
    values = values_of(KEYS)
    cluster.write(values)
    holder, survivor = cluster.nodes["a"], cluster.nodes["b"]
    holder.kill()
    survivor.kill()
    begin(survivor)
    refused = cli(survivor, "pause", "--for", "1s", "--reason", "r")
    assert (refused.code, "no member of its cluster yet" in refused.err) == (3, True), refused.err
    listed = takeover(survivor, "--is-stopped", "a").json
    assert (listed["exit_code"], listed["taken"], listed["away"]) == (5, False, [])
    assert listed["old"], "what a was primary of may have been changed without b"
    assert not (survivor.data_dir / "promise").exists(), "nothing was changed"
    taken = takeover(survivor, "--is-stopped", "a", "--accept-old").json
    assert (taken["exit_code"], taken["taken"], taken["from"], taken["old"]) == (0, True, "a", listed["old"])
    until("b serves", lambda: cluster.view("b").names(NodeState.UP) == ("b",))
    view = cluster.view("b")
    assert (view.manager, view.term) == ("b", 1)
    assert view.nodes["a"].state is NodeState.LOST
    assert len(view.primaries_of("b")) == BUCKETS
    with Client(survivor.address, budget=5.0) as client:
        assert client.get_many(list(values)) == values, survivor.stderr_text
        client.set(b"more", b"value")
    assert cli(survivor, "remove", "a").code == 0


def test_a_holder_whose_other_node_is_gone_for_good_goes_on_alone(cluster_of: MakeCluster) -> None:
    """Restarted, it waits for a majority that never comes; it serves no register until somebody says so."""
    cluster = pair_of(cluster_of("--append-log-fsync", "always"))
    values = values_of(KEYS)
    cluster.write(values)
    holder = cluster.nodes["a"]
    cluster.nodes["b"].kill()
    holder.kill()
    begin(holder)
    refused = takeover(holder)
    assert (refused.code, "b may know a newer view; it does not answer" in refused.out) == (5, True), refused.out
    taken = takeover(holder, "--is-stopped", "b", "--accept-old").json
    assert (taken["taken"], taken["from"], taken["away"]) == (True, "a", [])
    assert sorted(taken["old"] + taken["shared"]) == list(range(BUCKETS))
    until("a serves", lambda: cluster.view("a").names(NodeState.UP) == ("a",))
    with Client(holder.address, budget=5.0) as client:
        assert client.get_many(list(values)) == values


def test_of_three_both_that_are_left_were_restarted(cluster_of: MakeCluster) -> None:
    """Neither is a member when the register is taken over; each recovers its part from its own files."""
    cluster = pair_of(cluster_of("--append-log-fsync", "always"), "c")
    values = values_of(KEYS)
    cluster.write(values)
    for name in "abc":
        cluster.nodes[name].kill()
    heir, other = cluster.nodes["b"], cluster.nodes["c"]
    begin(heir)
    refused = takeover(heir, "--is-stopped", "a")
    assert (refused.code, "c may know a newer view; it does not answer" in refused.out) == (5, True), refused.out
    begin(other)
    refused = takeover(heir, "--is-stopped", "a", "--is-stopped", "c")
    assert (refused.code, f"c is not stopped: it answers at {other.address}" in refused.out) == (5, True), refused.out
    refused = takeover(heir, "--is-stopped", "c")
    assert refused.code == 5
    assert not (other.data_dir / "promise").exists(), "what is refused promises nothing"
    taken = takeover(heir, "--is-stopped", "a", "--accept-old").json
    assert (taken["taken"], taken["away"]) == (True, [])
    told = json.loads((other.data_dir / "promise").read_bytes().splitlines()[1])
    assert told["term"] == 1
    cluster.nodes["a"].address = ""
    view = cluster.settle()
    assert (view.manager, view.term, view.taken) == ("b", 1, told["nonce"])
    assert view.nodes["a"].state is NodeState.LOST
    assert cluster.read(list(values)) == values


def test_a_promise_outlives_a_restart_and_a_takeover_at_the_holder_ends_what_it_ties_up(cluster_of: MakeCluster) -> None:
    """A takeover came to nothing after c had promised it term 5: c follows nothing below, also after a restart, until a
    takeover goes above it."""
    cluster = pair_of(cluster_of(), "c")
    tied, holder = cluster.nodes["c"], cluster.nodes["a"]
    assert promise(holder, 5, "x")[0] == Status.NOT_ALLOWED, "who keeps the register promises nothing"
    status, (promised, term, nonce, _, _) = promise(tied, 5, "x")
    assert (status, promised, term, nonce) == (Status.OK, 1, 5, "x")
    assert promise(tied, 4, "y")[1][:3] == (0, 5, "x"), "a lower term"
    assert promise(tied, 5, "y")[1][:3] == (0, 5, "x"), "the same term, another takeover"
    tied.kill()
    until("the others go on", lambda: not cluster.view("a").copies_of("c"))
    begin(tied)
    assert promise(tied, 5, "y")[1][:3] == (0, 5, "x"), "restarts included"
    until("c says why it waits", lambda: "this node promised the takeover x of term 5" in tied.stderr_text)
    assert cluster.view("a").nodes["c"].state is NodeState.LOST
    answer = takeover(holder).json
    assert (answer["taken"], answer["from"], answer["epoch"]) == (True, "a", 6 << TERM_SHIFT)
    view = cluster.settle()
    assert (view.term, view.manager, len(view.names(NodeState.UP))) == (6, "a", 3)
    assert "keeps the register already" in takeover(holder).out


def test_a_holder_that_lost_its_disk_comes_back_only_after_a_takeover(cluster_of: MakeCluster) -> None:
    """Under its own name, with an empty directory: what it agreed to last is gone, so it must not go on as if it knew."""
    cluster = pair_of(cluster_of())
    values = values_of(KEYS)
    cluster.write(values)
    cluster.nodes.pop("a").close()
    heir = cluster.nodes["b"]
    empty = ServerProcess(cluster.directory / "a-new", "--node", heir.address, name="a", start=False)
    cluster.nodes["a"] = empty
    empty.launch()
    assert empty.wait() == 2, empty.stderr_text
    assert "keeps its register, from another data directory" in empty.stderr_text
    assert takeover(heir, "--is-stopped", "a", "--accept-old").json["taken"]
    empty.start()
    view = cluster.settle()
    assert (view.manager, view.names(NodeState.UP)) == ("b", ("a", "b"))
    assert cluster.read(list(values)) == values
