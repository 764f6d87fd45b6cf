"""What an operator orders: what is refused and why, what is wished, what is answered. Nodes and the register are scripted."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from rcache.cluster.leases import Peer
from rcache.cluster.register import RegisterFailed, Revised
from rcache.cluster.transition import faults_between
from rcache.cluster.view import TERM_SHIFT, NodeState, Placement, Settings, View, encode_view
from rcache.cluster.wishes import Asker, WishRefused
from rcache.commands import cli_options, options
from rcache.member.member import Member
from rcache.peers.books import LeaseBooks, boot_ns
from rcache.peers.line import PeerUnreachable
from rcache.server import steering
from rcache.server.node_answers import Refusal
from rcache.server.steering import Steering, changed_settings
from rcache.stream.policy import FsyncPolicy
from rcache_client.address import Address, parse_address
from rcache_client.wire.opcodes import Opcode, Status
from tests.cluster.harness import grown, node, one, placed

BUDGET_S = 30.0
SOON_S = 0.1


class Nodes:
    """Every other node: what it answers, by its name; one that is not in `answers` does not."""

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {}
        self.at: dict[Address, str] = {}
        self.asked: list[tuple[str, int]] = []

    def line(self, address: Address, _greeter: object, _connect_s: float) -> ScriptedLine:
        return ScriptedLine(self, self.at.get(address, ""))


class ScriptedLine:
    """A line to one of them."""

    def __init__(self, nodes: Nodes, name: str) -> None:
        self._nodes = nodes
        self._name = name
        self.welcome: SimpleNamespace | None = None

    def connected(self) -> None:
        if self._name not in self._nodes.answers:
            raise PeerUnreachable("nobody listens there", not_sent=True, refused=True)
        self.welcome = SimpleNamespace(node_name=self._name)

    def ask(self, opcode: Opcode, *values: Any, timeout_s: float) -> tuple[int, Any]:
        self._nodes.asked.append((self._name, opcode))
        found = self._nodes.answers[self._name]
        if isinstance(found, View):
            return Status.OK, ("embedded", encode_view(found))
        return cast(tuple[int, Any], found)

    def close(self) -> None:
        pass


class Files:
    """A register in this node's files."""

    def __init__(self, fault: Exception | None = None) -> None:
        self.held: View | None = None
        self.fault = fault

    def begin(self, view: View) -> Revised:
        if self.fault is not None:
            raise self.fault
        self.held = view
        return Revised(view.epoch, view)


class FakeMember:
    """A member whose wishes are agreed at once, and whose neighbours go by every view at once, but for those that lag."""

    def __init__(self, view: View, name: str = "n1") -> None:
        self.name = name
        self.view = view
        self.lagging: set[str] = set()
        self.is_silent = False
        self.books = LeaseBooks(view.settings)
        self.parts = SimpleNamespace(own_register=Files(), greeter=None, log=None)
        self.agreement = SimpleNamespace(unreachable="", learn=lambda revised: setattr(self, "view", revised.view))
        self.departure = SimpleNamespace(on_told=None)
        self.waiting: list[tuple[Callable[[View, Asker], View], Callable[[str], None]]] = []
        self._nonces = itertools.count()

    @property
    def epoch(self) -> int:
        return self.view.epoch

    def wish(self, _what: str, make: Callable[[View, Asker], View], done: Callable[[str], None]) -> None:
        if self.is_silent:
            self.waiting.append((make, done))
            return
        self.settle(make, done)

    def settle(self, make: Callable[[View, Asker], View], done: Callable[[str], None]) -> None:
        try:
            made = make(self.view, Asker(self.name, f"{next(self._nonces)}"))
        except WishRefused as refused:
            done(str(refused))
            return
        assert faults_between(self.view, made) == []
        self.view = made
        done("")

    def neighbour(self, name: str, incarnation: int) -> SimpleNamespace | None:
        found = self.view.nodes.get(name)
        if found is None or found.incarnation != incarnation:
            return None
        return SimpleNamespace(peer=Peer(name, incarnation), heard_epoch=0 if name in self.lagging else self.epoch)


class Play(SimpleNamespace):
    """A member, its steering, the other nodes, and why this process was asked to stop."""

    member: FakeMember
    steer: Steering
    nodes: Nodes
    stops: list[str]

    def order(self, verb: str, budget_s: float = BUDGET_S, **fields: Any) -> dict[str, Any]:
        return self.steer({"verb": verb, "by": "anna@desk", **fields}, budget_s)

    def refused(self, verb: str, budget_s: float = BUDGET_S, **fields: Any) -> tuple[Status, str]:
        before = self.member.view
        with pytest.raises(Refusal) as refused:
            self.order(verb, budget_s, **fields)
        assert self.member.view is before, "a refused order changes nothing"
        return refused.value.status, str(refused.value.values[-1])


def located(view: View) -> View:
    """Every node at an address of its own."""
    nodes = {name: replace(each, address=f"127.0.0.1:{number}") for number, (name, each) in enumerate(view.nodes.items(), 1)}
    return replace(view, nodes=nodes)


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Nodes:
    scripted = Nodes()
    monkeypatch.setattr(steering, "Line", scripted.line)
    return scripted


Plays = Callable[..., Play]


@pytest.fixture
def play(nodes: Nodes) -> Plays:
    """A play of a view; every other node answers with it, unless it is silent."""

    def begin(view: View, name: str = "n1", silent: tuple[str, ...] = ()) -> Play:
        view = located(view)
        nodes.at = {parse_address(each.address): other for other, each in view.nodes.items()}
        nodes.answers = {other: view for other in view.nodes if other != name and other not in silent}
        member, stops = FakeMember(view, name), []
        return Play(member=member, steer=Steering(cast(Member, member), stops.append), nodes=nodes, stops=stops)

    return begin


def three(*placements: tuple[str | None, tuple[str, ...]]) -> View:
    """Three nodes that are up, and what they have of four buckets."""
    default = (("n1", ("n2",)), ("n1", ("n3",)), ("n2", ("n3",)), ("n3", ()))
    made = [Placement(primary, backups, 1) for primary, backups in (placements or default)]
    return placed(grown(3, len(made)), *made)


# --- any order


def test_what_is_no_order_is_refused(play: Plays) -> None:
    bare = play(three())
    assert bare.refused("dance") == (
        Status.BAD_ARGUMENT,
        "no order 'dance'; there are: drain, pause, resume, settings, remove, lost, renew, takeover",
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
    theirs = (options.BACKUPS_MAX, options.LEASE_MIN_S, options.LEASE_MAX_S)
    assert theirs == (steering.BACKUPS_MAX, steering.LEASE_MIN_S, steering.LEASE_MAX_S)
    assert theirs == (cli_options.BACKUPS_MAX, cli_options.LEASE_MIN_S, cli_options.LEASE_MAX_S)
    assert cli_options.ACK_MAX_S == steering.ACK_MAX_S


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


# --- renew


def test_lost_buckets_begin_again_at_this_node(play: Plays) -> None:
    cluster = play(three(("n1", ("n2",)), (None, ()), ("n2", ()), (None, ())))
    assert cluster.order("renew")["renewed"] == [1, 3]
    now = cluster.member.view
    assert now.placements[1] == now.placements[3] == Placement("n1", (), now.epoch)
    assert "no bucket is lost" in cluster.refused("renew")[1]


# --- takeover


def test_the_register_goes_on_at_another_node_in_the_next_term(play: Plays) -> None:
    heir = play(three(), name="n2", silent=("n1",))
    old = heir.member.view
    first = heir.order("takeover", stopped=["n1"])
    assert (first["taken"], first["old"], first["away"]) == (False, [0, 1], [])
    assert heir.member.view is old, "what may be old is not promoted unless somebody says so"
    assert heir.member.parts.own_register.held is None
    taken = heir.order("takeover", stopped=["n1"], accept_old=True)
    now = heir.member.view
    assert (taken["taken"], taken["from"], taken["behind"]) == (True, "n1", [])
    assert (now.manager, now.term, now.epoch, now.placements) == ("n2", 1, 1 << TERM_SHIFT, old.placements)
    assert heir.member.parts.own_register.held == now
    assert faults_between(old, now) == []


def test_where_nothing_can_be_old_nothing_need_be_accepted(play: Plays) -> None:
    heir = play(three(("n2", ("n3",)), ("n1", ())), name="n2", silent=("n1",))
    taken = heir.order("takeover", stopped=["n1"])
    assert (taken["taken"], taken["old"], taken["away"]) == (True, [], [1])


def test_a_takeover_goes_on_from_the_newest_view_that_anybody_knows(play: Plays, nodes: Nodes) -> None:
    heir = play(three(), name="n2", silent=("n1",))
    newer = replace(heir.member.view, epoch=heir.member.epoch + 5, nonce="newer")
    nodes.answers["n3"] = newer
    assert heir.order("takeover", stopped=["n1"], accept_old=True)["epoch"] == 1 << TERM_SHIFT
    assert heir.member.parts.own_register.held is not None
    assert nodes.asked.count(("n3", Opcode.VIEW)) == 2, "the nodes of the newer view are asked again"
    ceded = replace(newer, manager="n3", epoch=newer.epoch + 1)
    other = play(three(), name="n2", silent=("n1",))
    nodes.answers["n3"] = ceded
    assert "n3 keeps the register" in other.refused("takeover", stopped=["n1"], accept_old=True)[1]


def test_a_takeover_is_refused_while_its_holder_may_go_on(play: Plays, nodes: Nodes) -> None:
    assert "n1 is not stopped: it answers at 127.0.0.1:1" in play(three(), name="n2").refused("takeover", stopped=["n1"])[1]
    silent = play(three(), name="n2", silent=("n1", "n3"))
    assert "n3 may know a newer view; it does not answer" in silent.refused("takeover", stopped=["n1"])[1]
    assert silent.order("takeover", stopped=["n1", "n3"], accept_old=True)["away"] == [1, 3]
    half = play(three(), name="n2", silent=("n1",))
    nodes.answers["n3"] = (Status.VIEW_AHEAD, ("no view yet",))
    assert "n3 may know a newer view; it answers, but VIEW_AHEAD: no view yet" in half.refused("takeover", stopped=["n1"])[1]
    nodes.answers["n3"] = (Status.OK, ("embedded", b"{}"))
    assert "is no view" in half.refused("takeover", stopped=["n1"])[1]
    nodes.answers["n3"] = replace(half.member.view, cluster_id="d2" * 16)
    assert "is of another cluster" in half.refused("takeover", stopped=["n1"])[1]


def test_a_takeover_of_what_cannot_be_taken_over(play: Plays) -> None:
    assert "etcd keeps the register" in play(one(4, embedded=False)).refused("takeover", stopped=["n1"])[1]
    heir = play(three(), name="n2", silent=("n1", "n3"))
    assert "n2 is this node" in heir.refused("takeover", stopped=["n2"])[1]
    assert "n9: not in the view" in heir.refused("takeover", stopped=["n9"])[1]
    assert (
        "keeps the register; only where it is stopped"
        in play(three(), name="n2", silent=("n3",)).refused("takeover", stopped=["n3"])[1]
    )
    assert "which keeps the register already" in play(three(), silent=("n3",)).refused("takeover", stopped=["n3"])[1]
    for stopped in (None, [], "n1", [1]):
        assert heir.refused("takeover", stopped=stopped)[0] is Status.BAD_ARGUMENT


@pytest.mark.parametrize("fault", [ValueError("there is one"), RegisterFailed("disk full")])
def test_a_register_that_cannot_be_kept_is_not_taken_over(play: Plays, fault: Exception) -> None:
    heir = play(three(("n2", ("n3",)), ("n2", ())), name="n2", silent=("n1",))
    heir.member.parts.own_register.fault = fault
    assert "this node cannot keep the register" in heir.refused("takeover", stopped=["n1"])[1]


def test_a_node_that_nobody_could_ask_is_not_taken_for_stopped_by_a_takeover(play: Plays) -> None:
    heir = play(three(), name="n2", silent=("n1", "n3"))
    assert heir.refused("takeover", SOON_S, stopped=["n1", "n3"])[0] is Status.DEADLINE_PASSED
