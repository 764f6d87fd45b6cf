"""rcache-cli and a cluster of real processes: what an operator sees of it, and steers.

Each play is of two or three nodes on ports that the system picks. Whatever takes its time (taking over, filling, following)
is waited for by asking again.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from rcache.commands.cli_steer import show_ranges
from rcache_client import Client, Role
from soak.server_process import ServerProcess

WAIT_S = 60.0
BUCKETS = 16


class Ended(NamedTuple):
    """How a run ended, and what it said."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.out)
        assert found["exit_code"] == self.code
        return found


def cli(node: ServerProcess | str, *arguments: str) -> Ended:
    """Run rcache-cli at that node."""
    clean = {name: text for name, text in os.environ.items() if not name.startswith("RCACHE_")}
    address = node if isinstance(node, str) else node.address
    command = [sys.executable, "-m", "rcache.commands.rcache_cli", "--server", address, *arguments]
    ended = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=WAIT_S, env=clean, stdin=subprocess.DEVNULL
    )
    assert "Traceback" not in ended.stderr, ended.stderr
    return Ended(ended.returncode, ended.stdout, ended.stderr)


def until(holds: Callable[[], bool], what: str = "") -> None:
    deadline = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


Cluster = dict[str, ServerProcess]


class Making:
    """Starts nodes, and ends whatever is left of them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.nodes: Cluster = {}

    def start(self, name: str, *more: str) -> ServerProcess:
        joins = [f"--node={node.address}" for node in self.nodes.values() if node.running]
        node = ServerProcess(self.directory / name, "--buckets", str(BUCKETS), *joins, *more, name=name)
        self.nodes[name] = node
        return node

    def cluster(self, size: int, *more: str) -> Cluster:
        """So many nodes, all of which have their share, and every bucket its backup."""
        for number in range(1, size + 1):
            self.start(f"n{number}", *more)
        until(lambda: is_whole(self.nodes["n1"], size), "every bucket has its backup, and every node its share")
        return self.nodes

    def close(self) -> None:
        for node in self.nodes.values():
            node.close()


def is_whole(node: ServerProcess, size: int) -> bool:
    found = cli(node, "buckets", "--json").json
    shares = [each["primaries"] for each in found["nodes"].values() if each["state"] == "up"]
    return len(shares) == size and all(shares) and found["whole"] == BUCKETS


def state_of(node: ServerProcess, name: str) -> str:
    return next((each["state"] for each in cli(node, "nodes", "--json").json["nodes"] if each["name"] == name), "gone")


@pytest.fixture
def making(tmp_path: Path) -> Iterator[Making]:
    made = Making(tmp_path)
    yield made
    made.close()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two nodes that every test leaves as they were."""
    made = Making(tmp_path_factory.mktemp("pair"))
    try:
        yield made.cluster(2)
        assert all(node.running for node in made.nodes.values())
    finally:
        made.close()


# --- what an operator sees


def test_nodes_tells_who_is_in_it_and_who_has_what(pair: Cluster) -> None:
    found = cli(pair["n1"], "nodes", "--json").json
    assert [each["name"] for each in found["nodes"]] == ["n1", "n2"]
    assert sum(each["primaries"] for each in found["nodes"]) == BUCKETS == sum(each["backups"] for each in found["nodes"])
    assert [each["register"] for each in found["nodes"]] == [True, False]
    assert (found["lacking"], found["lost"], found["paused"], found["register"]) == (0, 0, None, "embedded")
    heading, titles, first, second = cli(pair["n2"], "nodes").out.splitlines()
    assert heading == f"epoch {found['epoch']} by {heading.split()[3][:-1]}, as {pair['n2'].address} goes by it"
    assert titles.split() == ["name", "incarnation", "address", "state", "since", "primaries", "backups", "held", "register"]
    assert first.split()[:6] == ["n1", "1", pair["n1"].address, "up", "epoch", "1"]
    assert first.endswith("keeps it")
    assert not second.endswith("keeps it")


def test_nodes_tells_who_records_what_is_changed(pair: Cluster) -> None:
    with Client(pair["n1"].address, role=Role.LOGGER, name="tape") as logger:
        logger.ping()
        (told,) = cli(pair["n1"], "nodes", "--json").json["loggers"]
        assert (told["name"], told["connections"]) == ("tape", 1)
        *_, shown = cli(pair["n1"], "nodes").out.splitlines()
        assert shown.split()[:3] == ["tape", "logger", "for"]
    assert cli(pair["n1"], "nodes", "--json").json["loggers"] == []


def test_buckets_tells_which_lack_backups(pair: Cluster) -> None:
    found = cli(pair["n1"], "buckets", "--json").json
    assert (found["whole"], found["lacking"], found["lost"]) == (BUCKETS, 0, 0)
    assert "placements" not in found
    shown = cli(pair["n1"], "buckets").out
    assert f"  whole         {BUCKETS}  with 1 backup in step" in shown
    every = cli(pair["n1"], "buckets", "--all").out.splitlines()
    assert len(every) == 2 + BUCKETS
    assert every[2].split()[0] == "0"
    placements = cli(pair["n1"], "buckets", "--all", "--json").json["placements"]
    assert [each["bucket"] for each in placements] == list(range(BUCKETS))
    assert {each["state"] for each in placements} == {"whole"}


def test_view_is_the_very_view(pair: Cluster) -> None:
    raw = cli(pair["n1"], "view", "--raw").out
    assert raw.count("\n") == 1
    facts = json.loads(raw)
    assert json.loads(cli(pair["n1"], "view").out) == facts
    assert cli(pair["n1"], "view", "--json").json["view"] == facts
    assert facts["manager"] == "n1"


def test_handoffs_asks_every_node(pair: Cluster) -> None:
    found = cli(pair["n1"], "handoffs", "--json").json
    assert set(found["nodes"]) == {"n1", "n2"}
    assert found["nodes"]["n1"]["links"]["n2"]["up"]
    shown = cli(pair["n1"], "handoffs").out
    assert "copies under way" in shown
    assert [line.split()[:3] for line in shown.splitlines()[-2:]] == [["n1", "n2", "yes"], ["n2", "n1", "yes"]]
    pair["n2"].signal(signal.SIGSTOP)
    try:
        part = cli(pair["n1"], "handoffs", "--budget", "0.5")
    finally:
        pair["n2"].signal(signal.SIGCONT)
    assert part.code == 8
    assert "rcache-cli: n2: " in part.err
    until(lambda: is_whole(pair["n1"], 2))


def test_no_server_is_exit_code_3(pair: Cluster) -> None:
    ended = cli("127.0.0.1:1", "nodes")
    assert (ended.code, ended.out) == (3, "")
    assert "no server can be used" in ended.err
    assert "Does rcached run there?" in ended.err
    second = cli("127.0.0.1:1", "nodes", "--server", pair["n2"].address, "--json").json
    assert second["server"] == pair["n2"].address


# --- what an operator steers


def test_a_pause_holds_on_every_node_and_ends(pair: Cluster) -> None:
    paused = cli(pair["n2"], "pause", "--for", "30s", "--reason", "a look at it")
    assert (paused.code, paused.out) == (0, "writes wait on every node, for 30.0 s or until 'rcache-cli resume'\n")
    assert "a look at it" in cli(pair["n1"], "nodes").out.splitlines()[-1]
    waiting = cli(pair["n1"], "set", "k", "v", "--budget", "0.5")
    assert waiting.code == 3
    assert "PAUSED" in waiting.err
    assert cli(pair["n1"], "resume").out == "writes go on\n"
    assert cli(pair["n1"], "set", "k", "v").code == 0
    again = cli(pair["n1"], "resume")
    assert (again.code, again.err) == (5, f"rcache-cli: {pair['n1'].address} refuses: resume: nothing is paused\n")


def test_settings_are_shown_and_changed(pair: Cluster) -> None:
    assert cli(pair["n1"], "settings", "--json").json["settings"]["backups"] == 1
    none = cli(pair["n2"], "settings", "--backups", "0", "--json").json
    assert (none["settings"]["backups"], none["lacking"], none["behind"]) == (0, 0, [])
    back = cli(pair["n2"], "settings", "--backups", "1", "--lease", "1")
    assert back.code == 0
    assert "lease    1.0 s" in back.out
    assert "has these settings already" in cli(pair["n1"], "settings", "--backups", "1").err
    assert cli(pair["n1"], "settings", "--fsync", "always", "--json").json["settings"]["fsync"] == "always"
    until(lambda: all("always" in cli(node, "stats", "append_log").out for node in pair.values()))
    assert cli(pair["n1"], "set", "k", "durable").code == 0
    assert cli(pair["n1"], "settings", "--fsync", "interval").code == 0
    until(lambda: is_whole(pair["n1"], 2))


def test_what_may_not_be_is_refused_with_its_reason(pair: Cluster) -> None:
    for arguments, told in (
        (("drain", "n9"), "'n9' is not in the view; there are: n1, n2"),
        (("remove", "n2"), "n2 is up; it must leave first"),
        (("lost", "n2", "--is-stopped"), "n2 is not stopped: it answers"),
        (("lost", "n1", "--is-stopped", "--yes"), "n1 keeps the register"),
        (("takeover", "--is-stopped", "n2"), "n2 is not stopped: it answers at"),
    ):
        ended = cli(pair["n1"], *arguments)
        assert (ended.code, told in ended.err) == (5, True), ended.err


def test_a_drained_node_hands_over_and_ends(making: Making) -> None:
    nodes = making.cluster(3)
    assert cli(nodes["n1"], "set", "k", "v").code == 0
    leaving = cli(nodes["n1"], "drain", "n3")
    assert (leaving.code, "n3 is leaving: it hands over" in leaving.out) == (0, True)
    assert nodes["n3"].wait(WAIT_S) == 0
    until(lambda: state_of(nodes["n1"], "n3") == "gone" and is_whole(nodes["n1"], 2))
    # By itself, and the register's holder: the register is ceded first.
    assert cli(nodes["n1"], "drain", "n1").code == 0
    assert nodes["n1"].wait(WAIT_S) == 0
    until(lambda: state_of(nodes["n2"], "n1") == "gone")
    assert cli(nodes["n2"], "get", "k").out == "v"
    assert cli(nodes["n2"], "nodes", "--json").json["nodes"][0]["register"]
    assert nodes["n2"].stop() == 0


def test_what_a_dead_node_had_alone_is_lost_only_by_order(making: Making) -> None:
    nodes = alone(making)
    nodes["n2"].kill()
    refused = cli(nodes["n1"], "remove", "n2")
    assert refused.code == 5
    asked = cli(nodes["n1"], "lost", "n2", "--is-stopped")
    assert asked.code == 5
    assert "have their only copy at n2" in asked.err
    assert state_of(nodes["n1"], "n2") == "up"
    done = cli(nodes["n1"], "lost", "n2", "--is-stopped", "--yes", "--json").json
    assert done["lost"]
    assert cli(nodes["n1"], "buckets", "--json").json["lost"] == len(done["lost"])
    assert "LOST: " in nodes["n1"].stderr_text
    asked = cli(nodes["n1"], "renew")
    assert (asked.code, "would begin again from files" in asked.err) == (5, True), "n1 had everything before n2 came"
    renewed = cli(nodes["n1"], "renew", "--yes", "--json").json
    assert [each["bucket"] for each in renewed["recovered"]] == done["lost"]
    assert (renewed["renewed"], renewed["left"]) == ([], [])
    assert cli(nodes["n1"], "renew").code == 5
    assert cli(nodes["n1"], "buckets", "--json").json["whole"] == BUCKETS
    assert cli(nodes["n1"], "remove", "n2").out == "n2 is none of the cluster any more\n"
    assert state_of(nodes["n1"], "n2") == "gone"


def alone(making: Making) -> Cluster:
    """Two nodes without backups that share the buckets."""
    making.start("n1", "--backups", "0")
    making.start("n2")
    until(lambda: is_whole(making.nodes["n1"], 2))
    return making.nodes


def test_the_register_of_a_dead_node_is_taken_over(making: Making) -> None:
    nodes = making.cluster(3)
    assert cli(nodes["n1"], "set", "k", "v").code == 0
    nodes["n1"].kill()
    heir = nodes["n2"]
    listed = cli(heir, "takeover", "--is-stopped", "n1", "--json").json
    assert (listed["exit_code"], listed["taken"], bool(listed["old"])) == (5, False, True)
    assert "is not stopped" in cli(heir, "takeover", "--is-stopped", "n1", "--is-stopped", "n3").err
    taken = cli(heir, "takeover", "--is-stopped", "n1", "--accept-old")
    assert (taken.code, taken.err) == (0, "")
    assert f"{heir.address} keeps the register in place of n1" in taken.out
    until(lambda: state_of(nodes["n3"], "n1") == "lost" and is_whole(nodes["n3"], 2))
    assert cli(nodes["n3"], "get", "k").out == "v"
    assert cli(nodes["n3"], "remove", "n1").code == 0
    assert "TAKEOVER by" in heir.stderr_text
    again = cli(heir, "takeover", "--is-stopped", "n3")
    assert again.code == 5
    # The one that was dead comes back: it keeps no register any more, and joins as any other.
    making.nodes["n1"].start()
    until(lambda: is_whole(heir, 3))
    assert [each["register"] for each in cli(nodes["n1"], "nodes", "--json").json["nodes"]] == [False, True, False]


def test_buckets_in_ranges() -> None:
    assert show_ranges([]) == ""
    assert show_ranges([3]) == "3"
    assert show_ranges([0, 1, 2, 5, 7, 8]) == "0-2, 5, 7-8"
    assert show_ranges(range(0, 100, 2)).endswith("36, 38 and more")
