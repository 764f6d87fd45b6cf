"""What rcache-cli does about lost buckets: whom it asks, which chain it takes, what it does not do unasked. Nodes are fakes."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, cast

import pytest

from rcache.cluster.view import NodeState, View, encode_view
from rcache.commands import cli_steer
from rcache.commands.cli_answer import Answer
from rcache.commands.cli_exit import CliExit, CliStopped
from rcache.commands.cli_line import Door
from rcache.commands.cli_lost import Chain, Held, lost, renew
from rcache.commands.cli_options import CliOptions
from rcache_client import OutcomeUnknown, ServersUnavailable
from rcache_client.wire.opcodes import Opcode
from tests.server.steered import located, three

GONE = located(three(("n1", ("n2",)), (None, ()), (None, ()), (None, ())))
"""Buckets 1, 2 and 3 are lost; n1, n2 and n3 are up."""


def chain(bucket: int, node: str, end: str, **more: Any) -> Chain:
    given = {"as_of_ms": 1_700_000_000_000, "items": 2, "whole": True, "let_go": True, "why": "", **more}
    return Chain(bucket, node, end, **given)


class Cluster:
    """A door to n1, behind which every node has some files. `orders`: what was ordered of whom; `troubles`: what an order ends
    with, by node and verb."""

    def __init__(self, view: View, *chains: Chain) -> None:
        self.view = view
        self.chains = chains
        self.server = self.address_of("n1")
        self.budget_s = 15.0
        self.orders: list[tuple[str, str, Any]] = []
        self.asked: list[str] = []
        self.troubles: dict[tuple[str, str], Exception] = {}
        self.failed: list[dict[str, Any]] = []

    def address_of(self, name: str) -> str:
        return self.view.nodes[name].address

    def ask(self, opcode: Opcode, *values: Any) -> Any:
        if opcode == Opcode.VIEW:
            return "embedded", encode_view(self.view)
        return self.ask_at(self.server, opcode, *values, timeout_s=self.budget_s)

    def ask_at(self, address: str, opcode: Opcode, text: bytes, timeout_s: float) -> Any:
        assert (opcode, timeout_s) == (Opcode.STEER, self.budget_s)
        name = next(name for name, node in self.view.nodes.items() if node.address == address)
        order = json.loads(text)
        verb = order.pop("verb")
        del order["by"]
        if (name, verb) in self.troubles:
            raise self.troubles[name, verb]
        return (json.dumps(self._answer(name, verb, order)).encode(),)

    def _answer(self, name: str, verb: str, order: dict[str, Any]) -> dict[str, Any]:
        if verb == "files":
            self.asked.append(name)
            mine = [each.facts() for each in self.chains if each.node == name and each.bucket in order["buckets"]]
            return {"node": name, "held": [{key: value for key, value in each.items() if key != "node"} for each in mine]}
        if verb == "lost" and order.get("dry_run"):
            return {"node": order["node"], "lost": [2, 3], "promoted": [0], "dry_run": True}
        self.orders.append((name, verb, order))
        if verb == "lost":
            return {"node": order["node"], "epoch": 9, "lost": [2, 3], "promoted": [0], "dry_run": False}
        assert order.pop("epoch") == self.view.epoch
        failed = [each["bucket"] for each in self.failed]
        recovered = [{"bucket": b, "end": end, "items": 2} for b, end in order.get("recover", []) if b not in failed]
        return {"epoch": 8, "recovered": recovered, "renewed": order.get("empty", []), "failed": self.failed}


def options(**more: Any) -> CliOptions:
    return CliOptions(command="renew", servers=("a:1",), **more)


def renewed(cluster: Cluster, **more: Any) -> Answer:
    return renew(options(yes=True, **more), cast(Door, cluster))


def refusal(cluster: Cluster, **more: Any) -> str:
    """It asks and there is nobody to say yes: nothing is ordered."""
    with pytest.raises(CliStopped) as stopped:
        renew(options(**more), cast(Door, cluster))
    assert stopped.value.code is CliExit.REFUSED
    assert cluster.orders == []
    return str(stopped.value)


# --- which chain


def test_the_longest_whole_chain_is_taken() -> None:
    """Ends are compared as numbers, the epoch first."""
    held = Held(
        {
            1: [chain(1, "n1", "9.8"), chain(1, "n2", "10.1"), chain(1, "n3", "9.900")],
            2: [chain(2, "n1", "9.10"), chain(2, "n2", "9.9")],
            3: [chain(3, "n1", "12.1", whole=False), chain(3, "n2", "11.5", let_go=False)],
        }
    )
    assert {bucket: each.node for bucket, each in held.chosen().items()} == {1: "n2", 2: "n1", 3: "n2"}
    assert {bucket: each.node for bucket, each in held.broken().items()} == {3: "n1"}


def test_equal_chains_are_spread_over_their_nodes() -> None:
    held = Held({bucket: [chain(bucket, name, "5.7") for name in ("n1", "n2", "n3")] for bucket in range(6)})
    nodes = [each.node for each in held.chosen().values()]
    assert {name: nodes.count(name) for name in nodes} == {"n1": 2, "n2": 2, "n3": 2}


def test_a_broken_chain_no_longer_than_a_whole_one_is_not_worth_a_word() -> None:
    assert Held({1: [chain(1, "n1", "5.7", whole=False), chain(1, "n2", "5.7")]}).broken() == {}


# --- renew


def test_each_bucket_begins_again_where_its_chain_is_longest() -> None:
    cluster = Cluster(GONE, chain(1, "n1", "5.7"), chain(1, "n2", "5.9"), chain(2, "n3", "4.1"), chain(3, "n2", "5.1"))
    answer = renew(options(), cast(Door, cluster))  # everybody answered, and nothing begins empty: no question
    assert sorted(cluster.asked) == ["n1", "n2", "n3"]
    assert cluster.orders == [
        ("n2", "renew", {"recover": [[1, "5.9"], [3, "5.1"]]}),
        ("n3", "renew", {"recover": [[2, "4.1"]]}),
    ]
    assert answer.code is CliExit.DONE
    assert [(each["bucket"], each["node"]) for each in answer.fields["recovered"]] == [(1, "n2"), (3, "n2"), (2, "n3")]
    assert answer.shown == (
        "2 buckets (1, 3) begin again from n2's files, with 4 items\n1 bucket (2) begin again from n3's files, with 2 items"
    )
    assert (answer.fields["renewed"], answer.fields["left"], answer.fields["silent"]) == ([], [], {})


def test_what_nobody_holds_begins_empty_and_that_is_asked_first() -> None:
    cluster = Cluster(GONE, chain(1, "n1", "5.7"))
    assert "nobody's files hold 2 buckets (2-3)" in refusal(cluster)
    answer = renewed(cluster)
    assert cluster.orders == [("n1", "renew", {"recover": [[1, "5.7"]]}), ("n1", "renew", {"empty": [2, 3]})]
    assert (answer.code, answer.fields["renewed"]) == (CliExit.DONE, [2, 3])


WHOLE = [chain(bucket, "n1", "5.7") for bucket in (1, 2, 3)]


@pytest.mark.parametrize("how", ["does not answer", "refuses", "is lost"])
def test_a_node_that_cannot_be_asked_is_named_and_wants_a_yes(how: str) -> None:
    """Invariant 11: its files may hold the longest chain of all."""
    view = (
        replace(GONE, nodes={**GONE.nodes, "n3": replace(GONE.nodes["n3"], state=NodeState.LOST)}) if how == "is lost" else GONE
    )
    cluster = Cluster(view, *WHOLE, chain(1, "n3", "9.9"))
    if how == "does not answer":
        cluster.troubles["n3", "files"] = ServersUnavailable("n3: connection refused")
    elif how == "refuses":
        cluster.troubles["n3", "files"] = CliStopped(CliExit.REFUSED, "n3: this node's files cannot be read")
    assert "what n3's files hold is not known" in refusal(cluster)
    answer = renewed(cluster)
    assert cluster.orders == [("n1", "renew", {"recover": [[1, "5.7"], [2, "5.7"], [3, "5.7"]]})]
    assert (answer.code, list(answer.fields["silent"])) == (CliExit.DONE, ["n3"])


def test_what_is_held_but_not_whole_stays_lost() -> None:
    cluster = Cluster(GONE, *WHOLE[:2], chain(3, "n2", "6.1", whole=False, why="missing link: 6.0 is not there"))
    answer = renew(options(), cast(Door, cluster))
    assert cluster.orders == [("n1", "renew", {"recover": [[1, "5.7"], [2, "5.7"]]})]
    assert (answer.code, answer.fields["left"]) == (CliExit.IN_PART, [3])
    assert "bucket 3 stays lost" in answer.complaint
    assert "--empty" in answer.complaint
    alone = Cluster(GONE, *(each._replace(whole=False, why="a hole") for each in WHOLE))
    assert (renewed(alone).code, alone.orders) == (CliExit.REFUSED, [])


def test_a_chain_that_goes_further_but_is_not_whole_wants_a_yes() -> None:
    cluster = Cluster(GONE, *WHOLE, chain(3, "n2", "6.1", whole=False, why="a hole"))
    assert "n2's files hold bucket 3 up to 6.1, further than the whole chain up to 5.7, but not whole: a hole" in refusal(
        cluster
    )
    assert renewed(cluster).code is CliExit.DONE


def test_of_many_broken_chains_some_are_told() -> None:
    view = located(three(*[(None, ())] * 16))
    cluster = Cluster(view, *(chain(bucket, "n1", "5.7", whole=False, why="a hole") for bucket in range(16)))
    told = str(renewed(cluster).shown).splitlines()
    assert sum("a hole" in line for line in told) == 10
    assert "so it is with 6 buckets more; --json has all" in told


def test_all_begin_empty_only_by_a_word_of_its_own_and_a_yes() -> None:
    cluster = Cluster(GONE, *WHOLE)
    told = refusal(cluster, empty=True)
    assert "n1's files hold 3 buckets (1-3): 6 items, as of 2023-11-14 22:13:20Z" in told
    assert "3 buckets (1-3) would begin again, empty" in told
    assert renewed(cluster, empty=True).fields["renewed"] == [1, 2, 3]
    assert cluster.orders == [("n1", "renew", {"empty": [1, 2, 3]})]


def test_with_nothing_lost_nobody_is_asked() -> None:
    cluster = Cluster(located(three()))
    assert "no bucket is lost" in refusal(cluster)
    assert cluster.asked == []


@pytest.mark.parametrize(
    ("trouble", "code"),
    [
        (CliStopped(CliExit.REFUSED, "n1 refuses: no memory"), CliExit.IN_PART),
        (OutcomeUnknown("n1: the connection broke", operation="STEER"), CliExit.UNKNOWN),
    ],
)
def test_a_node_that_fails_leaves_its_own_and_the_others_go_on(trouble: Exception, code: CliExit) -> None:
    cluster = Cluster(GONE, *WHOLE[:2], chain(3, "n2", "6.1"))
    cluster.troubles["n1", "renew"] = trouble
    answer = renewed(cluster)
    assert cluster.orders == [("n2", "renew", {"recover": [[3, "6.1"]]})]
    assert (answer.code, answer.fields["left"]) == (code, [1, 2])
    assert "2 buckets (1-2) did not come back from n1's files" in answer.complaint


def test_a_bucket_that_fails_is_told() -> None:
    cluster = Cluster(GONE, *WHOLE)
    cluster.failed = [{"bucket": 2, "why": "no memory"}]
    answer = renewed(cluster)
    assert (answer.code, answer.fields["left"]) == (CliExit.IN_PART, [2])
    assert "bucket 2 stays lost: no memory" in answer.complaint


def test_what_would_begin_empty_and_is_refused_is_told_with_what_was_done() -> None:
    cluster = Cluster(GONE, chain(1, "n2", "5.7"))
    cluster.troubles["n1", "renew"] = CliStopped(CliExit.REFUSED, "n1 refuses: it is leaving")
    answer = renewed(cluster)
    assert (answer.code, answer.fields["left"], len(answer.fields["recovered"])) == (CliExit.IN_PART, [2, 3], 1)


# --- lost


def test_before_a_node_is_lost_it_is_told_what_files_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Invariant 11. The node itself is not asked: it is stopped, and that was said."""
    view = located(three(("n1", ("n3",)), ("n1", ()), ("n3", ()), ("n3", ())))
    cluster = Cluster(view, chain(2, "n2", "5.7"))
    named = CliOptions(command="lost", servers=("a:1",), node="n3", is_stopped=True)
    with pytest.raises(CliStopped) as stopped:
        lost(named, cast(Door, cluster))
    told = str(stopped.value)
    assert "2 buckets have their only copy at n3: 2-3" in told
    assert "n2's files hold 1 bucket (2): 2 items" in told
    assert "nobody's files hold 1 bucket (3)" in told
    assert "If it can be started again" in told
    assert (sorted(cluster.asked), cluster.orders) == (["n1", "n2"], [])
    asked: list[str] = []
    monkeypatch.setattr(cli_steer.sys.stdin, "isatty", lambda: True)
    monkeypatch.setattr(cli_steer.sys.stdin, "readline", lambda: asked.append("asked") or "yes\n")
    answer = lost(named, cast(Door, cluster))
    assert asked == ["asked"]
    assert cluster.orders == [("n1", "lost", {"node": "n3", "stopped": True, "lose_max": 2})]
    assert [each["bucket"] for each in answer.fields["held"]] == [2]
    assert "'rcache-cli renew' brings back what files hold" in str(answer.shown)


def test_where_nothing_is_lost_nobody_is_asked_for_files(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(GONE)
    monkeypatch.setattr(
        cluster,
        "_answer",
        lambda _name, verb, order: {"node": "n3", "epoch": 9, "lost": [], "promoted": [0], "verb": verb, **order},
    )
    named = CliOptions(command="lost", servers=("a:1",), node="n3", is_stopped=True)
    answer = lost(named, cast(Door, cluster))
    assert (cluster.asked, answer.shown) == ([], "n3 is lost; 1 bucket went to their backups")
