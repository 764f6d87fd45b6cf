"""Buckets whose every copy is gone for good: what files of those that are left still hold comes back, with real processes."""

from __future__ import annotations

import json
import signal
import threading
from typing import Any
from zlib import crc32

from rcache.cluster.view import Placement, View
from rcache.peers.line import Line, PeerUnreachable
from rcache_client import Client
from rcache_client.address import parse_address
from rcache_client.handshake import Greeter
from rcache_client.wire.opcodes import Opcode, Role, Status
from soak.server_process import ServerProcess
from tests.commands.test_cli_cluster import Ended, cli
from tests.integration.cluster import BUCKETS, PATIENCE_S, Cluster, until, values_of
from tests.integration.conftest import MakeCluster

KEYS = 400


def bucket_of(key: bytes) -> int:
    return crc32(key) & (BUCKETS - 1)


def of_buckets(values: dict[bytes, bytes], buckets: set[int]) -> dict[bytes, bytes]:
    return {key: value for key, value in values.items() if bucket_of(key) in buckets}


def only_at(view: View, names: set[str]) -> set[int]:
    """The buckets whose every copy is at these."""
    return {bucket for bucket, placed in enumerate(view.placements) if set(placed.holders) <= names}


def of_a(view: View) -> list[Placement]:
    return [placed for placed in view.placements if "a" in placed.holders]


def cut_down(cluster: Cluster) -> tuple[dict[bytes, bytes], dict[bytes, bytes], set[int]]:
    """a had everything, and its log says so, when b and c joined; it was changed since, and the two died at once. Returns what
    was written first, what last, and the buckets that only the two had."""
    first, last = values_of(KEYS, "first"), values_of(KEYS, "last")
    cluster.add("a")
    cluster.write(first)
    view = cluster.grow("b", "c").view()
    gone = only_at(view, {"b", "c"})
    assert gone, "nothing is shared by b and c alone"
    cluster.write(last)
    kill_at_once(cluster, "b", "c")
    until("a parts from both", lambda: all(placed.holders == ("a",) for placed in of_a(cluster.view("a"))))
    return first, last, only_at(cluster.view("a"), {"b", "c"})


def kill_at_once(cluster: Cluster, *names: str) -> None:
    for name in names:
        cluster.nodes[name].process.kill()
    for name in names:
        cluster.nodes[name].wait()


def declare(cluster: Cluster, name: str) -> Ended:
    return cli(cluster.nodes["a"], "lost", name, "--is-stopped", "--yes", "--json", "--budget", "30")


def renew(cluster: Cluster, *arguments: str, at: str = "a") -> Any:
    return cli(cluster.nodes[at], "renew", "--json", "--budget", "30", *arguments).json


def values_at(cluster: Cluster, names: str, keys: list[bytes]) -> dict[bytes, bytes]:
    with Client([cluster.nodes[name].address for name in names], budget=10.0) as client:
        return {key: value for key, value in client.get_many(keys).items() if value is not None}


def test_what_a_living_nodes_files_hold_of_lost_buckets_comes_back(cluster_of: MakeCluster) -> None:
    """Invariant 11: as it was when this node had it; what was acknowledged since by the two that are gone is gone. The node is
    killed as soon as it has them, and comes back with them."""
    cluster = cluster_of()
    first, last, gone = cut_down(cluster)
    a = cluster.nodes["a"]
    assert declare(cluster, "b").json["lost"] == [], "c has the rest, for all that the view says"
    asked = cli(a, "lost", "c", "--is-stopped")
    assert (asked.code, "a's files hold" in asked.err, "that comes first" in asked.err) == (5, True, True), asked.err
    lost = declare(cluster, "c").json
    assert set(lost["lost"]) == gone == {each["bucket"] for each in lost["held"] if each["let_go"] and each["whole"]}
    refused = cli(a, "renew")
    assert (refused.code, "what b's files hold is not known: it is lost" in refused.err) == (5, True), refused.err
    assert len(cluster.view("a").primaries_of("a")) == BUCKETS - len(gone), "nothing was changed"
    for name in "bc":
        assert cli(a, "remove", name).code == 0
    done = renew(cluster)  # everybody was asked, and nothing begins empty: no question
    a.kill()
    assert (done["exit_code"], done["renewed"], done["left"]) == (0, [], [])
    assert {each["bucket"] for each in done["recovered"]} == gone
    assert sum(each["items"] for each in done["recovered"]) == len(of_buckets(first, gone))
    expected = of_buckets(first, gone) | of_buckets(last, set(range(BUCKETS)) - gone)
    a.start()
    assert values_at(cluster, "a", list(first)) == expected
    cluster.write(last)
    cluster.grow("d")
    assert cluster.read(list(last)) == last


def test_a_dead_node_that_is_started_after_all_has_the_longest_chain(cluster_of: MakeCluster) -> None:
    """Its roles are gone with the order, and it joins with nothing; but its files hold what nobody else's do."""
    cluster = cluster_of("--append-log-fsync", "always")
    _, last, gone = cut_down(cluster)
    for name in "bc":
        declare(cluster, name)
    c = cluster.nodes["c"]
    c.arguments = ["--node", cluster.nodes["a"].address, *cluster.arguments]
    c.start()
    done = renew(cluster, "--yes")
    assert {each["bucket"]: each["node"] for each in done["recovered"]} == dict.fromkeys(gone, "c")
    assert len({each["node"] for each in done["held"]}) == 2, "a's files have older ones"
    cluster.settle()
    assert cluster.read(list(last)) == last


def test_it_can_begin_empty_only_by_its_own_word(cluster_of: MakeCluster) -> None:
    cluster = cluster_of()
    first, last, gone = cut_down(cluster)
    for name in "bc":
        declare(cluster, name)
    done = renew(cluster, "--yes", "--empty")
    assert (set(done["renewed"]), done["recovered"]) == (gone, [])
    found = values_at(cluster, "a", list(first))
    assert found == of_buckets(last, set(range(BUCKETS)) - gone)
    nothing = cli(cluster.nodes["a"], "renew", "--yes")
    assert (nothing.code, "no bucket is lost" in nothing.err) == (5, True)


def test_a_node_that_is_killed_while_its_offer_is_under_way(cluster_of: MakeCluster) -> None:
    """All is in its engine and on its disk, the register does not answer, and it is killed. Whether the register has read its
    change by then is left to chance: they are lost as before, and its files hold what they held; or they are this node's, which
    never opened them, and recovers all of them from its log."""
    cluster = cluster_of()
    first = values_of(KEYS, "first")
    cluster.grow("a", "b")
    cluster.write(first)
    view = cluster.grow("c", "d").view()
    gone = only_at(view, {"c", "d"})
    assert gone
    kill_at_once(cluster, "c", "d")
    until("both part from them", lambda: all(set(p.holders) <= {"a", "b"} for p in of_a(cluster.view("a"))))
    lost = set()
    for name in "cd":
        lost |= set(declare(cluster, name).json["lost"])
    a, b = cluster.nodes["a"], cluster.nodes["b"]
    until("b goes by it", lambda: cluster.view("b").epoch == cluster.view("a").epoch)
    ends = {each["bucket"]: each["end"] for each in steer(b, "files", buckets=sorted(lost))["held"]}
    assert set(ends) == lost, "b had everything once"
    epoch, before = cluster.view("b").epoch, stats_of(b, "items")["items"]
    a.signal(signal.SIGSTOP)
    try:
        order = {"recover": [[bucket, end] for bucket, end in ends.items()], "epoch": epoch}
        thread = threading.Thread(target=lambda: steer(b, "renew", **order))
        thread.start()
        until("all is in", lambda: stats_of(b, "items")["items"] == before + len(of_buckets(first, lost)))
        told = stats_of(b, "cluster")
        assert (told["buckets_offered"], told["buckets_lost"]) == (len(lost), len(lost))
        b.kill()
        thread.join()
    finally:
        a.signal(signal.SIGCONT)
    b.arguments = ["--node", a.address, *cluster.arguments]
    b.start()
    still = {bucket for bucket, placed in enumerate(cluster.view("a").placements) if placed.primary is None}
    assert still in (lost, set()), "all or none: it is one change"
    if still:
        done = renew(cluster, "--yes")
        assert ({each["bucket"] for each in done["recovered"]}, done["left"]) == (lost, [])
    cluster.settle()
    assert cluster.read(list(first)) == first


def steer(node: ServerProcess, verb: str, **fields: Any) -> Any:
    """Order a node directly, over a connection of its own; None where it is gone before it answers."""
    line = Line(parse_address(node.address), Greeter("test", Role.ADMIN, None), PATIENCE_S)
    try:
        status, values = line.ask(Opcode.STEER, json.dumps({"verb": verb, **fields}).encode(), timeout_s=PATIENCE_S)
        assert status == Status.OK, values
        return json.loads(values[0])
    except PeerUnreachable:
        return None
    finally:
        line.close()


def stats_of(node: ServerProcess, section: str) -> dict[str, Any]:
    found: dict[str, Any] = cli(node, "stats", section, "--json").json["stats"][section]
    return found
