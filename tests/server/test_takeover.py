"""A takeover of the register: each step, what is refused at it, and two at once. Nodes and their promises are scripted, but for
the last part, where two real ones meet."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rcache.cluster.register import RegisterFailed
from rcache.cluster.transition import faults_between
from rcache.cluster.view import TERM_MAX, TERM_SHIFT, NodeState, Placement
from rcache.cluster.wishes import take_over_register
from rcache.server import asking
from rcache.server.node_answers import NodeAnswers, Refusal, Standing
from rcache.server.steering import early_steering
from rcache.stream.register import FileRegister
from rcache.stream.terms import Promise, Terms
from rcache_client.address import Address
from rcache_client.wire.grammar import REQUESTS
from rcache_client.wire.opcodes import Opcode, Role, Status
from tests.cluster.harness import by, one
from tests.peers.harness import greeter
from tests.server.steered import FILES, SOON_S, Nodes, Plays, three


def test_the_register_goes_on_at_another_node_in_the_next_term(play: Plays) -> None:
    heir = play(three(), name="n2", silent=("n1",))
    old = heir.member.view
    first = heir.order("takeover", stopped=["n1"])
    assert (first["taken"], first["old"], first["away"]) == (False, [0, 1], [])
    assert heir.member.view is old, "what may be old is not promoted unless somebody says so"
    assert heir.member.parts.own_register.held is None
    assert (heir.nodes.promised, heir.standing.terms.held) == ({}, Promise()), "nor is anything promised for it"
    taken = heir.order("takeover", stopped=["n1"], accept_old=True)
    now = heir.member.view
    assert (taken["taken"], taken["from"], taken["behind"]) == (True, "n1", [])
    assert (now.manager, now.term, now.epoch) == ("n2", 1, 1 << TERM_SHIFT)
    assert now.placements[:2] == (Placement("n2", (), now.epoch), Placement("n3", (), now.epoch)), "what n1 had is theirs"
    assert now.placements[2:] == old.placements[2:]
    assert now.nodes["n1"].state is NodeState.LOST
    assert heir.standing.terms.held == (1, now.taken) == (1, now.nonce)
    assert heir.nodes.promised == {"n3": Promise(1, now.taken)}
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
    assert nodes.asked.count(("n3", Opcode.REGISTER_PROMISE, 0, "")) == 2, "the nodes of the newer view are asked again"
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
    nodes.answers["n3"] = (Status.OK, (0, 0, "", FILES, b"{}"))
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
    for stopped in (None, "n1", [1]):
        assert heir.refused("takeover", stopped=stopped)[0] is Status.BAD_ARGUMENT
    assert "n1 keeps the register; only where it is stopped" in play(three(), name="n2").refused("takeover")[1]


@pytest.mark.parametrize("fault", [ValueError("there is one"), RegisterFailed("disk full")])
def test_a_register_that_cannot_be_kept_is_not_taken_over(play: Plays, fault: Exception) -> None:
    heir = play(three(("n2", ("n3",)), ("n2", ())), name="n2", silent=("n1",))
    heir.member.parts.own_register.fault = fault
    assert "this node cannot keep the register" in heir.refused("takeover", stopped=["n1"])[1]


def test_a_node_that_nobody_could_ask_is_not_taken_for_stopped_by_a_takeover(play: Plays) -> None:
    heir = play(three(), name="n2", silent=("n1", "n3"))
    assert heir.refused("takeover", SOON_S, stopped=["n1", "n3"])[0] is Status.DEADLINE_PASSED


# --- promises


def test_whoever_promised_another_takeover_refuses_and_the_next_goes_above_it(play: Plays, nodes: Nodes) -> None:
    heir = play(three(), name="n2", silent=("n1",))
    other = Promise(1, "another")
    nodes.before = lambda name, _opcode, values: nodes.promised.update({name: other}) if values[:1] == (1,) else None
    status, why = heir.refused("takeover", stopped=["n1"], accept_old=True)
    assert (status, "n3 promised the takeover another of term 1" in why) == (Status.NOT_ALLOWED, True), why
    assert heir.standing.terms.held == Promise(), "and this node promised nothing to itself"
    nodes.before = lambda *_asked: None
    assert heir.order("takeover", stopped=["n1"], accept_old=True)["epoch"] == 2 << TERM_SHIFT
    assert heir.standing.terms.held.term == 2


def test_an_attempt_that_came_to_nothing_goes_on_in_its_term(play: Plays, nodes: Nodes) -> None:
    """Terms are few, and whoever promised it already promises it again."""
    heir = play(three(), name="n2", silent=("n1",))

    def goes(name: str, _opcode: Opcode, values: tuple[Any, ...]) -> None:
        if values[:1] == (1,):
            del nodes.answers[name]

    nodes.before = goes
    assert "n3 may know a newer view; it answers, but" in heir.refused("takeover", stopped=["n1"], accept_old=True)[1]
    nodes.before = lambda *_asked: None
    nodes.answers["n3"] = heir.member.view
    nodes.promised = {}
    taken = heir.order("takeover", stopped=["n1"], accept_old=True)
    assert taken["epoch"] == 1 << TERM_SHIFT
    asked = {values[3] for values in nodes.asked if values[1:3] == (Opcode.REGISTER_PROMISE, 1)}
    assert asked == {heir.member.view.taken}, "under the same nonce"


def test_a_newer_view_that_comes_with_a_promise_ends_the_attempt(play: Plays, nodes: Nodes) -> None:
    """The former holder said something between the two questions."""
    heir = play(three(), name="n2", silent=("n1",))
    newer = replace(heir.member.view, epoch=heir.member.epoch + 1, proposer="n1")

    def moves(name: str, _opcode: Opcode, values: tuple[Any, ...]) -> None:
        if values[:1] == (1,):
            nodes.answers[name] = newer

    nodes.before = moves
    assert "n3 knows a newer view by now" in heir.refused("takeover", stopped=["n1"], accept_old=True)[1]
    nodes.before = lambda *_asked: None
    assert heir.order("takeover", stopped=["n1"], accept_old=True)["taken"]


def test_a_holder_that_comes_back_while_promises_are_made_is_not_taken_over(play: Plays, nodes: Nodes) -> None:
    """It may have found its majority before they were."""
    heir = play(three(), name="n2", silent=("n1",))

    def comes_back(_name: str, _opcode: Opcode, values: tuple[Any, ...]) -> None:
        if values[:1] == (1,):
            nodes.answers["n1"] = heir.member.view

    nodes.before = comes_back
    assert "n1 is not stopped" in heir.refused("takeover", stopped=["n1"], accept_old=True)[1]
    assert heir.member.parts.own_register.held is None


def test_what_this_node_learns_or_promises_meanwhile_ends_the_attempt(play: Plays, nodes: Nodes) -> None:
    """Step 4: it stands by what it told another takeover, and by what it followed."""
    heir = play(three(), name="n2", silent=("n1",))
    terms = heir.standing.terms
    assert terms is not None
    newer = replace(heir.member.view, epoch=heir.member.epoch + 1)
    nodes.before = lambda _name, _opcode, values: terms.follow(newer) if values[:1] == (1,) else None
    assert "this node knows a newer view" in heir.refused("takeover", stopped=["n1"], accept_old=True)[1]
    other = play(three(), name="n2", silent=("n1",))
    outbid = other.standing.terms
    assert outbid is not None
    nodes.before = lambda _name, _opcode, values: outbid.promise(Promise(1, "another")) if values[:1] == (1,) else None
    assert "this node promised the takeover another" in other.refused("takeover", stopped=["n1"], accept_old=True)[1]
    assert other.member.parts.own_register.held is None


def test_what_cannot_be_written_is_not_taken_over(play: Plays) -> None:
    heir = play(three(), name="n2", silent=("n1",))
    assert heir.standing.terms is not None
    heir.standing.terms._failure = "a promise could not be written: No space left on device"
    assert "No space left" in heir.refused("takeover", stopped=["n1"], accept_old=True)[1]
    assert heir.member.parts.own_register.held is None


def test_the_last_term_cannot_be_followed_by_another(play: Plays, nodes: Nodes) -> None:
    heir = play(three(), name="n2", silent=("n1",))
    nodes.promised["n3"] = Promise(TERM_MAX, "x")
    assert "used up its terms" in heir.refused("takeover", stopped=["n1"], accept_old=True)[1]


def test_another_takeover_of_this_term_is_not_gone_on_from(play: Plays, nodes: Nodes) -> None:
    """Each was said to be stopped in the other's: their histories must not meet."""
    view = three()
    mine, theirs = take_over_register(view, by("n2"), "n1"), take_over_register(view, by("n3"), "n1")
    heir = play(mine, name="n2", silent=("n1",))
    nodes.answers["n3"] = replace(theirs, epoch=theirs.epoch + 9, nodes=heir.member.view.nodes)
    assert "n3 goes by another takeover of term 1" in heir.refused("takeover", stopped=["n1"], accept_old=True)[1]


# --- whose files they have


def test_a_node_with_an_empty_directory_does_not_answer_for_its_former_self(play: Plays, nodes: Nodes) -> None:
    """It learnt the view from whoever it asked, this node perhaps: what n3 knew and promised is gone with its disk."""
    heir = play(three(), name="n2", silent=("n1",))
    nodes.files["n3"] = "e" * 32
    status, why = heir.refused("takeover", stopped=["n1"], accept_old=True)
    assert status is Status.NOT_ALLOWED
    assert "n3 answers at 127.0.0.1:3, but from another data directory than the view names" in why
    assert "stop it, and name it as stopped (nothing was changed)" in why
    assert nodes.promised == {}
    del nodes.answers["n3"]
    assert heir.order("takeover", stopped=["n1", "n3"], accept_old=True)["taken"]


def test_a_node_that_is_given_an_empty_directory_between_two_questions_promises_nothing(play: Plays, nodes: Nodes) -> None:
    heir = play(three(), name="n2", silent=("n1",))
    nodes.before = lambda _name, _opcode, values: nodes.files.update(n3="e" * 32) if values[:1] == (1,) else None
    assert "from another data directory" in heir.refused("takeover", stopped=["n1"], accept_old=True)[1]
    assert heir.member.parts.own_register.held is None


@pytest.mark.parametrize("starts", [True, False])
def test_who_is_another_than_the_view_names_takes_nothing_over(play: Plays, starts: bool) -> None:
    """Its name is another's: that one is not asked, for it seems to be this node."""
    heir = play(three(), name="n2", silent=("n1",), starts=starts)
    heir.standing.data_dir_id = "e" * 32
    status, why = heir.refused("takeover", stopped=["n1"], accept_old=True)
    assert (status, "n2 in the view has another data directory than this node" in why) == (Status.NOT_ALLOWED, True)
    assert heir.nodes.promised == {}


# --- what is told of one that came to nothing


def test_what_was_not_begun_says_that_nothing_was_changed(play: Plays) -> None:
    heir = play(three(), name="n2", silent=("n1", "n3"))
    assert heir.refused("takeover", stopped=["n1"])[1].endswith("(nothing was changed)")
    status, why = heir.refused("takeover", SOON_S, stopped=["n1", "n3"])
    assert (status, why) == (
        Status.DEADLINE_PASSED,
        "no time is left to ask n1, so it was not: give the order more (nothing was changed)",
    )


def test_one_that_ran_out_of_time_in_the_middle_says_who_promised_it(
    play: Plays, nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Promises are on disks by then: who is told that nothing was changed looks elsewhere for why nobody follows the holder."""
    heir = play(three(), name="n2", silent=("n1",))
    nodes.before = lambda _name, _opcode, values: monkeypatch.setattr(asking, "ASK_S", 1e9) if values[:1] == (1,) else None
    status, why = heir.refused("takeover", stopped=["n1"], accept_old=True)
    assert (status, nodes.promised["n3"].term) == (Status.DEADLINE_PASSED, 1)
    assert "nothing was changed" not in why
    assert f"n3 promised the takeover {nodes.promised['n3'].nonce} of term 1, or may have" in why
    assert "order this again, here or at another node" in why
    monkeypatch.setattr(asking, "ASK_S", 2.0)
    nodes.before = lambda *_asked: None
    nodes.answers["n1"] = heir.member.view
    assert heir.refused("takeover", stopped=["n1"], accept_old=True)[1].endswith("(nothing was changed)"), "by this one"


def test_one_that_an_answer_is_lost_of_says_that_it_may_be_promised(play: Plays, nodes: Nodes) -> None:
    heir = play(three(), name="n2", silent=("n1",))
    nodes.before = lambda name, _opcode, values: nodes.answers.pop(name) and None if values[:1] == (1,) else None
    assert "n3 promised the takeover" in heir.refused("takeover", stopped=["n1"], accept_old=True)[1]


def test_who_promised_another_is_not_listed(play: Plays, nodes: Nodes) -> None:
    heir = play(three(), name="n2", silent=("n1",))
    nodes.before = lambda name, _o, values: nodes.promised.update({name: Promise(1, "x")}) if values[:1] == (1,) else None
    assert heir.refused("takeover", stopped=["n1"], accept_old=True)[1].endswith("(nothing was changed)")


def test_a_register_that_fails_at_the_end_says_that_this_node_promised_it_too(play: Plays) -> None:
    heir = play(three(), name="n2", silent=("n1",))
    heir.member.parts.own_register.fault = RegisterFailed("disk full")
    assert "n3, n2 promised the takeover" in heir.refused("takeover", stopped=["n1"], accept_old=True)[1]


# --- the holder itself


def test_a_holder_that_waits_for_its_majority_goes_on_in_the_next_term(play: Plays) -> None:
    """The others are gone for good; or they promised a takeover that came to nothing, which its views are nothing to."""
    alone = play(three(), silent=("n2", "n3"), starts=True)
    assert "n2 may know a newer view" in alone.refused("takeover")[1]
    taken = alone.order("takeover", stopped=["n2", "n3"], accept_old=True)
    assert (taken["taken"], taken["from"], taken["shared"], taken["away"]) == (True, "n1", [0, 1], [2, 3])
    view = alone.standing.view
    assert view is not None
    assert (view.manager, view.term, alone.standing.register) == ("n1", 1, alone.standing.own)


def test_a_holder_whose_nodes_promised_another_takes_over_itself(play: Plays, nodes: Nodes) -> None:
    holder = play(three())
    assert "which keeps the register already" in holder.refused("takeover")[1]
    nodes.promised["n3"] = Promise(1, "came to nothing")
    answer = holder.order("takeover")
    assert (answer["taken"], answer["old"], answer["epoch"]) == (True, [], 2 << TERM_SHIFT)
    assert nodes.promised == dict.fromkeys(("n2", "n3"), holder.standing.terms.held)  # type: ignore[union-attr]


# --- a node that starts


def test_a_node_that_starts_can_only_be_told_to_take_over(play: Plays) -> None:
    starting = play(three(), name="n2", silent=("n1",), starts=True)
    for verb in ("drain", "pause", "resume", "settings", "remove", "lost", "renew"):
        assert starting.refused(verb) == (Status.VIEW_AHEAD, "this node is no member of its cluster yet; try again")
    assert starting.refused("dance")[0] is Status.BAD_ARGUMENT
    taken = starting.order("takeover", stopped=["n1"], accept_old=True)
    assert (taken["taken"], taken["behind"]) == (True, [])
    view = starting.standing.view
    assert view is not None
    assert (view.manager, starting.standing.register) == ("n2", starting.standing.own)


def test_a_node_that_is_not_in_the_view_keeps_no_register(play: Plays) -> None:
    stranger = play(three(), name="n9", silent=("n1",), starts=True)
    assert "n9 is not in the view" in stranger.refused("takeover", stopped=["n1"], accept_old=True)[1]
    nothing = play(three(), name="n2", silent=("n1",), starts=True)
    nothing.standing.view = None
    assert nothing.refused("takeover", stopped=["n1"])[0] is Status.VIEW_AHEAD


# --- two at once, with real promises


class Town:
    """n2 and n3, which start after n1 died, and ask each other."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.view = replace(
            three(("n1", ("n2",)), ("n2", ("n3",))),
            nodes={name: replace(node, address=f"127.0.0.1:{name[1]}") for name, node in three().nodes.items()},
        )
        self.standings: dict[str, Standing] = {}
        self.pauses: dict[tuple[str, int], threading.Event] = {}
        self.reached: dict[tuple[str, int], threading.Event] = {}
        for name in ("n2", "n3"):
            (directory / name).mkdir()
            own = FileRegister(directory / name)
            self.standings[name] = Standing(
                name=name, data_dir_id=FILES, view=self.view, own=own, terms=Terms(directory / name)
            )
        monkeypatch.setattr(asking, "Line", lambda address, _greeter, _s: TownLine(self, address))

    def hold(self, name: str, term: int) -> threading.Event:
        """Hold up the next question to that node of that term, before it is asked; returns what is set when it is there."""
        self.pauses[name, term] = threading.Event()
        return self.reached.setdefault((name, term), threading.Event())

    def take_over(self, name: str) -> Any:
        return early_steering(self.standings[name], name, greeter())(
            {"verb": "takeover", "stopped": ["n1"], "accept_old": True}, 30.0
        )

    def holders(self) -> list[str]:
        return [name for name, each in self.standings.items() if each.register is not None]


class TownLine:
    def __init__(self, town: Town, address: Address) -> None:
        self.town = town
        self.name = f"n{address.port}"
        self.welcome: Any = None

    def connected(self) -> None:
        if self.name not in self.town.standings:
            raise asking.PeerUnreachable("nobody listens there", not_sent=True, refused=True)
        self.welcome = type("Welcome", (), {"node_name": self.name})

    def ask(self, opcode: Opcode, *values: Any, timeout_s: float) -> tuple[int, Any]:
        if opcode == Opcode.REGISTER_PROMISE and (self.name, values[0]) in self.town.pauses:
            pause = self.town.pauses.pop((self.name, values[0]))
            self.town.reached[self.name, values[0]].set()
            assert pause.wait(20.0)
        answers = NodeAnswers(self.town.standings[self.name])
        try:
            return Status.OK, answers.answer(opcode, REQUESTS[opcode].encode(*values), Role.NODE, "other", 1.0)
        except Refusal as refusal:
            return refusal.status, refusal.values

    def close(self) -> None:
        pass


@pytest.fixture
def town(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Town:
    return Town(tmp_path, monkeypatch)


def in_background(town: Town, name: str, outcome: list[Any]) -> threading.Thread:
    def run() -> None:
        try:
            outcome.append(town.take_over(name))
        except Refusal as refusal:
            outcome.append(refusal)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


@pytest.mark.parametrize("second_asks", ["before the first has its promise", "after it"])
def test_two_takeovers_at_once_do_not_both_succeed(town: Town, second_asks: str) -> None:
    """n2 is about to ask n3 for its promise, or has it; n3 takes over meanwhile, from the first step to the last."""
    outcome: list[Any] = []
    there = town.hold("n3", 1)
    pause = town.pauses["n3", 1]
    thread = in_background(town, "n2", outcome)
    assert there.wait(20.0)
    if second_asks == "after it":
        assert town.standings["n3"].terms.promise(Promise(1, "of n2, as it were"))  # type: ignore[union-attr]
    second = town.take_over("n3")
    pause.set()
    thread.join(20.0)
    assert second["taken"]
    assert isinstance(outcome[0], Refusal), outcome
    assert "promised" in str(outcome[0].values[-1]) or "keeps the register" in str(outcome[0].values[-1])
    assert town.holders() == ["n3"]
    assert town.standings["n2"].own.read() is None  # type: ignore[union-attr]


def test_two_takeovers_that_have_each_others_promise_both_come_to_nothing_and_one_goes_on(town: Town) -> None:
    """n3 promised n2, and n2 promised n3 the same term, before either could promise itself."""
    first, second = town.hold("n3", 1), town.hold("n2", 1)
    pauses = dict(town.pauses)
    outcomes: list[Any] = []
    threads = [in_background(town, name, outcomes) for name in ("n2", "n3")]
    assert first.wait(20.0)
    assert second.wait(20.0)
    for pause in pauses.values():
        pause.set()
    for thread in threads:
        thread.join(20.0)
    taken = [outcome for outcome in outcomes if not isinstance(outcome, Refusal)]
    assert len(taken) == len(town.holders()) <= 1, outcomes
    again = town.take_over(town.holders()[0] if town.holders() else "n2") if not taken else None
    assert len(town.holders()) == 1
    assert again is None or again["epoch"] >> TERM_SHIFT == 2, "above what each promised the other"


def test_a_second_order_at_the_same_node_is_refused_while_one_is_under_way(town: Town) -> None:
    steer = early_steering(town.standings["n2"], "n2", greeter())
    there = town.hold("n3", 1)
    pause = town.pauses["n3", 1]
    outcome: list[Any] = []
    order = {"verb": "takeover", "stopped": ["n1"], "accept_old": True}
    thread = threading.Thread(target=lambda: outcome.append(steer(dict(order), 30.0)))
    thread.start()
    assert there.wait(20.0)
    with pytest.raises(Refusal) as refused:
        steer(dict(order), 30.0)
    pause.set()
    thread.join(20.0)
    assert "under way at this node" in str(refused.value.values[-1])
    assert outcome[0]["taken"]
