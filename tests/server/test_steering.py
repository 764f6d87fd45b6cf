"""What an operator orders: what is refused and why, what is wished, what is answered. Nodes and the register are scripted."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from rcache.cluster.leases import Peer
from rcache.cluster.view import NodeState, Settings
from rcache.commands import cli_arguments, option_definitions
from rcache.peers.books import boot_ns
from rcache.server import orders
from rcache.server.node_answers import Refusal
from rcache.server.orders import changed_settings
from rcache.stream.policy import FsyncPolicy
from rcache_client.address import Address
from rcache_client.wire.opcodes import Status
from tests.cluster.harness import node
from tests.server.steered import BUDGET_S, SOON_S, Nodes, Plays, three

# --- any order


def test_what_is_no_order_is_refused(play: Plays) -> None:
    bare = play(three())
    assert bare.refused("dance") == (
        Status.BAD_ARGUMENT,
        "no order 'dance'; there are: drain, pause, resume, settings, remove, lost, files, renew, takeover",
    )
    with pytest.raises(Refusal, match="BAD_ARGUMENT"):
        bare.steer({"verb": ["drain"]}, BUDGET_S)
    assert bare.refused("drain", node="n2", fast=True)[1] == "drain takes no fast; it takes: node"
    assert bare.refused("resume", node="n2")[1] == "resume takes no node; it takes: nothing"
    for name in (None, "", 3, "two\nlines", "x" * 201):
        assert bare.refused("drain", node=name)[0] is Status.BAD_ARGUMENT
    assert bare.refused("drain", node="n9")[1] == "'n9' is not in the view; there are: n1, n2, n3"
    with pytest.raises(Refusal):
        bare.steer({"verb": "resume", "by": 7}, BUDGET_S)


def test_what_the_view_refuses_is_told(play: Plays) -> None:
    assert play(three()).refused("resume") == (Status.NOT_ALLOWED, "resume: nothing is paused")


def test_what_is_not_agreed_in_time_may_still_come_but_is_not_begun(play: Plays) -> None:
    slow = play(three())
    slow.member.is_silent = True
    slow.member.agreement.unreachable = "nobody is there"
    status, why = slow.refused("drain", SOON_S, node="n2")
    assert (status, why) == (Status.VIEW_UNSETTLED, "drain n2: not agreed in time; nobody is there")
    ((make, done),) = slow.member.waiting
    before = slow.member.view
    slow.member.settle(make, done)
    assert slow.member.view is before


# --- drain


def test_a_drained_node_leaves(play: Plays) -> None:
    other = play(three())
    answer = other.order("drain", node="n2")
    assert other.member.view.nodes["n2"].state is NodeState.LEAVING
    assert answer == {"node": "n2", "epoch": other.member.epoch, "copies": 2, "behind": []}
    again = other.order("drain", node="n2")
    assert again == answer, "no further view for what is so already"


def test_a_drained_node_that_does_not_hear_of_it_is_named(play: Plays) -> None:
    deaf = play(three())
    deaf.member.lagging = {"n2", "n3"}
    assert deaf.order("drain", SOON_S, node="n2")["behind"] == ["n2"], "of the others nothing is wanted"


def test_a_node_that_is_told_to_leave_stops(play: Plays) -> None:
    """Its departure is told by the view; the steering has it stop the process."""
    told = play(three())
    told.member.departure.on_told("drained by n3")
    assert told.stops == ["drained by n3"]


def test_a_lost_node_has_nothing_to_hand_over(play: Plays) -> None:
    view = three(("n1", ("n2",)), ("n1", ()))
    lost = replace(view, nodes={**view.nodes, "n3": node(state=NodeState.LOST)})
    assert "is lost" in play(lost).refused("drain", node="n3")[1]


# --- pause and resume


def test_a_pause_is_in_the_view_and_returns_when_all_go_by_it(play: Plays) -> None:
    calm = play(three())
    answer = calm.order("pause", seconds=30, reason="a copy")
    pause = calm.member.view.pause
    assert pause is not None
    assert (pause.by, pause.reason, pause.seconds, pause.epoch) == ("anna@desk", "a copy", 30, calm.member.epoch)
    assert answer == {"epoch": calm.member.epoch, "seconds": 30, "behind": []}
    assert calm.order("resume")["behind"] == []
    assert calm.member.view.pause is None


def test_who_does_not_go_by_a_pause_in_time_is_named(play: Plays) -> None:
    calm = play(three())
    calm.member.lagging = {"n3"}
    began = time.monotonic()
    assert calm.order("pause", SOON_S, seconds=30, reason="a copy")["behind"] == ["n3"]
    assert SOON_S / 2 < time.monotonic() - began < 10 * SOON_S + 1
    assert calm.order("resume", SOON_S)["behind"] == ["n3"]


def test_a_lost_node_is_not_waited_for(play: Plays) -> None:
    view = three(("n1", ("n2",)), ("n1", ()))
    calm = play(replace(view, nodes={**view.nodes, "n3": node(state=NodeState.LOST)}))
    calm.member.lagging = {"n3"}
    assert calm.order("pause", seconds=1, reason="r")["behind"] == []


@pytest.mark.parametrize("seconds", [0, -1, 86_401, "30", True, None, float("nan")])
def test_a_pause_has_a_length(play: Plays, seconds: object) -> None:
    assert play(three()).refused("pause", seconds=seconds, reason="r")[0] is Status.BAD_ARGUMENT


# --- settings


def test_settings_are_changed_in_one_view(play: Plays) -> None:
    cluster = play(three())
    answer = cluster.order("settings", backups=2, lease=2.0)
    now = cluster.member.view.settings
    assert now == Settings(2, 2.0, 3.0, 2.0, "interval")
    assert answer["settings"] == {"backups": 2, "lease": 2.0, "grace": 3.0, "ack": 2.0, "fsync": "interval"}
    assert (answer["lacking"], answer["behind"]) == (4, [])
    assert "has these settings already" in cluster.refused("settings", backups=2)[1]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"lease": 4}, Settings(1, 4.0, 6.0, 4.0, "interval")),
        ({"lease": 4, "ack": 9}, Settings(1, 4.0, 6.0, 9.0, "interval")),
        ({"ack": 9}, Settings(1, 1.0, 1.5, 9.0, "interval")),
        ({"backups": 0, "fsync": "never"}, Settings(0, 1.0, 1.5, 1.0, "never")),
    ],
)
def test_what_is_not_named_stays(given: dict[str, Any], expected: Settings) -> None:
    assert changed_settings(Settings(), given) == expected


def test_an_ack_of_its_own_does_not_go_along_with_the_lease() -> None:
    assert changed_settings(Settings(ack_s=7.0), {"lease": 2.0}).ack_s == 7.0


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, "nothing to change"),
        ({"backups": -1}, "from 0 to 8"),
        ({"backups": 9}, "from 0 to 8"),
        ({"backups": True}, "from 0 to 8"),
        ({"backups": 1.0}, "from 0 to 8"),
        ({"lease": 0.01}, "from 0.05 to 60 seconds"),
        ({"lease": "1"}, "from 0.05 to 60 seconds"),
        ({"lease": float("nan")}, "from 0.05 to 60 seconds"),
        ({"ack": 601}, "from 0.05 to 600 seconds"),
        ({"fsync": "sometimes"}, "may be always, interval, never"),
        ({"grace": 3}, "settings takes no grace"),
    ],
)
def test_settings_that_cannot_be_are_refused(play: Plays, given: dict[str, Any], told: str) -> None:
    status, why = play(three()).refused("settings", **given)
    assert (status, told in why) == (Status.BAD_ARGUMENT, True), why


def test_the_limits_are_those_of_the_options() -> None:
    theirs = (option_definitions.BACKUPS_MAX, option_definitions.LEASE_MIN_S, option_definitions.LEASE_MAX_S)
    assert theirs == (orders.BACKUPS_MAX, orders.LEASE_MIN_S, orders.LEASE_MAX_S)
    assert theirs == (cli_arguments.BACKUPS_MAX, cli_arguments.LEASE_MIN_S, cli_arguments.LEASE_MAX_S)
    assert cli_arguments.ACK_MAX_S == orders.ACK_MAX_S


def test_fsync_always_is_refused_where_there_is_no_log(play: Plays, nodes: Nodes) -> None:
    cluster = play(three())
    assert "n1 keeps no append log" in cluster.refused("settings", fsync="always")[1]
    cluster.member.parts.log = SimpleNamespace(policy=FsyncPolicy.INTERVAL)

    def tells(policy: str) -> tuple[int, Any]:
        return Status.OK, (json.dumps({"append_log": {"fsync": policy}}).encode(),)

    nodes.answers = {"n2": tells("interval"), "n3": tells("off")}
    assert "n3 keeps no append log" in cluster.refused("settings", fsync="always")[1]
    del nodes.answers["n3"]
    assert "how the append log of n3 runs is not known" in cluster.refused("settings", fsync="always")[1]
    nodes.answers["n3"] = tells("never")
    assert cluster.order("settings", fsync="always")["settings"]["fsync"] == "always"


# --- remove


def test_only_who_has_nothing_left_is_removed(play: Plays) -> None:
    view = three(("n1", ("n2",)), ("n1", ()))
    cluster = play(replace(view, nodes={**view.nodes, "n3": node(state=NodeState.LOST)}))
    assert "n2 is up; it must leave first" in cluster.refused("remove", node="n2")[1]
    assert cluster.order("remove", node="n3")["node"] == "n3"
    assert set(cluster.member.view.nodes) == {"n1", "n2"}


# --- lost


def test_what_only_a_lost_node_had_is_told_first_and_then_lost(play: Plays) -> None:
    cluster = play(three(), silent=("n3",))
    before = cluster.member.view
    would = cluster.order("lost", node="n3", stopped=True, dry_run=True)
    assert would == {"node": "n3", "dry_run": True, "lost": [3], "promoted": []}
    assert cluster.member.view is before
    status, why = cluster.refused("lost", node="n3", stopped=True, lose_max=0)
    assert (status, "1 buckets would lose their only copy; not more than 0" in why) == (Status.NOT_ALLOWED, True)
    done = cluster.order("lost", node="n3", stopped=True, lose_max=1)
    assert (done["lost"], done["promoted"], done["dry_run"]) == ([3], [], False)
    now = cluster.member.view
    assert now.nodes["n3"].state is NodeState.LOST
    assert [(each.primary, each.backups) for each in now.placements] == [("n1", ("n2",)), ("n1", ()), ("n2", ()), (None, ())]
    assert "is lost already" in cluster.refused("lost", node="n3", stopped=True)[1]


def test_what_others_have_goes_to_them(play: Plays) -> None:
    cluster = play(three(("n1", ("n2",)), ("n2", ("n3",))), silent=("n2",))
    assert cluster.order("lost", node="n2", stopped=True)["promoted"] == [1]
    assert cluster.member.view.placements[1].primary == "n3"


def test_a_node_that_gives_a_sign_of_life_is_not_lost(play: Plays, nodes: Nodes) -> None:
    cluster = play(three())
    assert "n3 is not stopped: it answers at 127.0.0.1:3" in cluster.refused("lost", node="n3", stopped=True)[1]
    nodes.answers.clear()
    with cluster.member.books.lock:
        cluster.member.books.held.note_sent(Peer("n3", 1), 1, boot_ns())
        cluster.member.books.held.note_grant(Peer("n3", 1), 1, 60 * 10**9)
    assert "it answers heartbeats" in cluster.refused("lost", node="n3", stopped=True)[1]
    assert "it answers this" in play(three(), name="n2").refused("lost", node="n2", stopped=True)[1]


def test_another_node_at_its_address_is_no_sign_of_life(play: Plays, nodes: Nodes) -> None:
    cluster = play(three())
    nodes.at[Address("127.0.0.1", 3)] = "n2"
    assert cluster.order("lost", node="n3", stopped=True)["lost"] == [3]


def test_lost_wants_to_be_told_that_the_node_is_stopped(play: Plays) -> None:
    cluster = play(three(), silent=("n3",))
    for stopped in (None, False, "yes"):
        assert "say that n3 is stopped" in cluster.refused("lost", node="n3", stopped=stopped)[1]
    assert "keeps the register" in play(three(), name="n2").refused("lost", node="n1", stopped=True)[1]


def test_a_node_that_nobody_could_ask_is_not_taken_for_stopped(play: Plays) -> None:
    cluster = play(three(), silent=("n3",))
    status, why = cluster.refused("lost", SOON_S, node="n3", stopped=True)
    assert (status, "no time is left to ask n3" in why) == (Status.DEADLINE_PASSED, True)
