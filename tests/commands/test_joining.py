"""Coming into a cluster: who is asked and what is believed, and when a register may be answered for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from rcache.agreement.embedded import EmbeddedRegister
from rcache.agreement.etcd import EtcdRegister
from rcache.cluster.register import Revised
from rcache.cluster.view import NodeState, View
from rcache.cluster.wishes import part, take_over_register
from rcache.commands.exit_codes import ExitCode
from rcache.commands.joining import Finder, Found
from rcache.commands.seen_view import keep_seen_view
from rcache.commands.start_failed import StartFailed
from rcache.stream.terms import Promise, Terms
from rcache_client.handshake import Greeter
from rcache_client.wire.opcodes import Role, Status
from tests.cluster.harness import by, grown, one
from tests.commands.joiner import HERE, NOBODY, MakeOther, MakeStart, Start, at, one_of, view_with_backups
from tests.contract.harness import Task, assert_stays, wait_until
from tests.peers.harness import greeter

# --- finding


def test_told_of_nobody_it_begins_a_cluster(start: MakeStart) -> None:
    found = start().find()
    assert (found.where, found.view, found.heard) == ("embedded", None, False)
    assert isinstance(found.register, EmbeddedRegister)


def test_whoever_answers_says_what_the_cluster_is(start: MakeStart, other: MakeOther) -> None:
    view = grown(2)
    silent, there = other("n3", None), other("n2", view)
    begun = start("--node", NOBODY, "--node", silent.address, "--node", there.address)
    found = begun.find()
    assert (found.where, found.view, found.heard) == ("embedded", view, True)
    assert begun.looks == 3, "a signal ends it between any two"
    assert begun.finder.manager() == ("n1", view.nodes["n1"].address)


def test_where_nobody_that_was_named_answers_it_begins_nothing(start: MakeStart) -> None:
    """Exit code 3: the unit starts it again."""
    code, why = start("--node", NOBODY).fails()
    assert code is ExitCode.NO_NODE_ANSWERED
    assert f"no node could be joined: {NOBODY}: cannot connect" in why


def test_it_does_not_ask_itself(start: MakeStart) -> None:
    begun = start("--node", str(HERE))
    code, _ = begun.fails()
    assert (code, begun.looks) == (ExitCode.NO_NODE_ANSWERED, 0)


@pytest.mark.parametrize("held", [False, True])
def test_where_it_is_unwelcome_trying_again_does_not_help(
    start: MakeStart, other: MakeOther, tmp_path: Path, held: bool
) -> None:
    """Another cluster than this directory's: exit code 2, also for who keeps a register itself."""
    there = other("n2", grown(2))
    begun = start("--node", there.address)
    if held:
        begun.own.begin(one())
    strangers = Greeter("n1", Role.NODE, None, b"of-another-kind!")
    begun.finder = Finder(begun.options, begun.own, strangers, begun.standing, HERE)
    code, why = begun.fails()
    assert code is ExitCode.WRONG_USE
    assert "it is of cluster" in why


def test_who_tells_what_is_no_view_is_believed_nothing(start: MakeStart, other: MakeOther) -> None:
    there = other("n2", grown(2))
    there.listener._answers = lambda _request: (Status.OK, ("embedded", b"no view"))
    code, why = start("--node", there.address).fails()
    assert (code, "no view" in why) == (ExitCode.WRONG_USE, True)


def test_who_keeps_the_register_goes_on_where_nobody_answers(start: MakeStart) -> None:
    begun = start("--node", NOBODY)
    begun.own.begin(one())
    found = begun.find(joined=True)
    assert (found.where, found.view, found.heard) == ("embedded", one_of(begun), False)


def test_whom_it_knew_it_asks_after_a_restart(start: MakeStart, other: MakeOther, tmp_path: Path) -> None:
    """Nobody need be named again: the view that it went by says who was there; what they say is newer."""
    newer = replace(grown(2), epoch=9)
    there = other("n2", newer)
    keep_seen_view(tmp_path, "embedded", at(grown(2), n2=there.address))
    found = start().find(joined=True)
    assert (found.view, found.heard) == (newer, True)


def test_whom_it_knew_and_does_not_answer_it_waits_for(start: MakeStart, tmp_path: Path) -> None:
    """No second cluster from the files of a node of the first; and no exit either, because they may come."""
    view = at(grown(2))
    keep_seen_view(tmp_path, "embedded", view)
    found = start().find(joined=True)
    assert (found.where, found.view, found.heard) == ("embedded", view, False)


def test_what_was_told_is_older_than_what_it_knew(start: MakeStart, other: MakeOther, tmp_path: Path) -> None:
    older = grown(2)
    there = other("n2", older)
    seen = replace(at(older, n2=there.address), epoch=older.epoch + 3)
    keep_seen_view(tmp_path, "embedded", seen)
    assert start().find(joined=True).view == seen


def test_a_directory_that_joined_elsewhere_begins_no_second_cluster(start: MakeStart) -> None:
    """It knows no address any more; its files say that the cluster was born elsewhere."""
    code, why = start().fails(joined=True)
    assert code is ExitCode.NO_NODE_ANSWERED
    assert "it knows no address of another node; give --node" in why


def test_with_etcd_nobody_needs_to_answer(start: MakeStart) -> None:
    found = start("--etcd", "http://127.0.0.1:2", "--node", NOBODY).find()
    assert isinstance(found.register, EtcdRegister)
    assert found.where.split()[0] == "etcd"
    assert found.where.split()[2:] == ["http://127.0.0.1:2"]


def test_who_joins_learns_of_etcd_from_whom_it_asked(start: MakeStart, other: MakeOther) -> None:
    there = other("n2", replace(grown(2), manager=None), "etcd /rcache http://127.0.0.1:2")
    found = start("--node", there.address).find()
    assert isinstance(found.register, EtcdRegister)


def test_a_cluster_that_agrees_by_itself_is_not_told_of_etcd(start: MakeStart, other: MakeOther) -> None:
    there = other("n2", grown(2))
    code, why = start("--node", there.address, "--etcd", "http://127.0.0.1:2").fails()
    assert (code, "not by etcd" in why) == (ExitCode.WRONG_USE, True)


# --- the register's holder after a restart


class Held(Start):
    """n1 keeps the register by the newest view it knows."""

    def __init__(self, directory: Path, view: View) -> None:
        super().__init__(directory)
        self.own.begin(view)
        self.standing.view = view

    def confirm(self) -> Task:
        return Task(self.finder.confirm_register)


def test_a_majority_that_knows_nothing_newer_confirms_it(tmp_path: Path, other: MakeOther) -> None:
    """Section 7: of its last view's nodes, itself and lost ones included."""
    listeners = [other("n2", None), other("n3", None)]
    view = at(grown(3), n2=listeners[0].address, n3=listeners[1].address)
    held = Held(tmp_path, view)
    confirming = held.confirm()
    assert_stays(lambda: not confirming.is_done, "the wait for others: one of three is no majority")
    assert held.standing.register is None
    listeners[1].view = view
    confirming.result()
    assert held.standing.register is held.own


def test_lost_nodes_count(tmp_path: Path, other: MakeOther) -> None:
    there = other("n2", None)
    view = at(grown(4), n2=there.address)
    nodes = {name: replace(each, state=NodeState.LOST) if name in ("n3", "n4") else each for name, each in view.nodes.items()}
    view = replace(view, nodes=nodes)
    there.view = view
    held = Held(tmp_path, view)
    confirming = held.confirm()
    wait_until(lambda: there.listener.connections > 3, "being asked again")
    assert held.standing.register is None, "two of four are no majority"

    def give_up() -> None:
        raise StartFailed(ExitCode.NO_NODE_ANSWERED, "a signal")

    held.finder._look = give_up
    with pytest.raises(StartFailed, match="a signal"):
        confirming.result()


def test_who_is_alone_confirms_itself(tmp_path: Path) -> None:
    held = Held(tmp_path, one())
    held.finder.confirm_register()
    assert held.standing.register is held.own


def test_a_node_of_another_cluster_does_not_count(tmp_path: Path, other: MakeOther) -> None:
    view = grown(2)
    there = other("n2", replace(view, cluster_id="c2" * 16, epoch=99))
    held = Held(tmp_path, at(view, n2=there.address))
    confirming = held.confirm()
    wait_until(lambda: there.listener.connections > 2, "being asked")
    assert held.standing.register is None
    assert held.standing.view is not None
    assert held.standing.view.epoch == view.epoch
    there.view = view
    confirming.result()


def test_a_newer_view_of_the_same_holder_is_adopted(tmp_path: Path, other: MakeOther) -> None:
    """Its own file is behind: it goes on from what is newest, so that no epoch is given twice."""
    view = grown(2)
    there = other("n2", None)
    view = at(view, n2=there.address)
    there.view = newer = part(view_with_backups(view), by("n1"), "n2")
    held = Held(tmp_path, view)
    held.finder.confirm_register()
    assert held.standing.register is held.own
    assert held.own.read() == Revised(newer.epoch, newer)
    assert held.standing.view == newer


def test_where_another_keeps_it_by_now_it_is_an_ordinary_node(tmp_path: Path, other: MakeOther) -> None:
    """Section 7: one that hears of a higher term joins as an ordinary node."""
    view = grown(2)
    there = other("n2", None)
    view = at(view, n2=there.address)
    there.view = taken = take_over_register(view, by("n2"), "n1")
    held = Held(tmp_path, view)
    held.finder.confirm_register()
    assert held.standing.register is None
    assert held.standing.view == taken
    assert held.finder.manager() == ("n2", there.address)
    assert one_of(held) == view, "its file stays as it was"
    found = Found(
        EmbeddedRegister(held.own, "n1", held.finder.manager, greeter(), Terms(tmp_path)), "embedded", view, heard=False
    )
    assert held.finder.found_again(found).view == taken


def test_who_does_not_keep_it_confirms_nothing(tmp_path: Path) -> None:
    begun = Start(tmp_path)
    begun.standing.view = replace(grown(2), manager="n2")
    begun.finder.confirm_register()
    assert begun.standing.register is None


def test_who_promised_a_takeover_its_term_is_no_majority_for_the_former_holder(tmp_path: Path, other: MakeOther) -> None:
    """It is the one by which that takeover goes on; it may be about to begin its register."""
    view = grown(3)
    listeners = [other("n2", None), other("n3", None)]
    view = at(view, n2=listeners[0].address, n3=listeners[1].address)
    for each in listeners:
        each.view, each.promise = view, Promise(1, "a")
    held = Held(tmp_path, view)
    confirming = held.confirm()
    assert_stays(lambda: not confirming.is_done, "the wait for others")
    assert held.standing.register is None
    listeners[0].promise = Promise()
    confirming.result()
    assert held.standing.register is held.own


def test_who_promised_its_own_term_away_does_not_go_on_with_it(tmp_path: Path, other: MakeOther) -> None:
    there = other("n2", None)
    view = at(grown(2), n2=there.address)
    there.view = view
    held = Held(tmp_path, view)
    assert held.standing.terms is not None
    assert held.standing.terms.promise(Promise(1, "a"))
    confirming = held.confirm()
    wait_until(lambda: there.listener.connections > 3, "being asked again")
    assert held.standing.register is None
    there.view = taken = take_over_register(view, by("n2"), "n1")
    confirming.result()
    assert (held.standing.register, held.standing.view) == (None, taken)


def test_another_takeover_of_the_same_term_does_not_count(tmp_path: Path, other: MakeOther) -> None:
    """Each was said to be stopped when the other took over: two histories, which must not meet."""
    view, there = grown(2), other("n2", None)
    view = at(view, n2=there.address)
    mine, theirs = take_over_register(view, by("n1"), "n1"), take_over_register(view, by("n2"), "n1")
    there.view, there.promise = replace(theirs, epoch=theirs.epoch + 5), Promise(1, theirs.taken)
    held = Held(tmp_path, mine)
    confirming = held.confirm()
    wait_until(lambda: there.listener.connections > 3, "being asked again")
    there.promise = Promise()
    asked = there.listener.connections
    wait_until(lambda: there.listener.connections > asked + 3, "being asked again")
    assert (held.standing.register, held.standing.view) == (None, mine)
    there.view = mine
    confirming.result()


def test_what_this_node_takes_over_while_it_waits_ends_the_wait(tmp_path: Path) -> None:
    """The others are gone for good: an operator has it go on in the next term."""
    view = at(grown(2))
    held = Held(tmp_path, view)
    confirming = held.confirm()
    assert_stays(lambda: not confirming.is_done, "the wait for others")
    taken = take_over_register(view, by("n1"), "n1", None, {"n2"})
    held.own.begin(taken)
    held.standing.learn(taken)
    held.standing.register = held.own
    confirming.result()
    assert held.standing.view == taken
