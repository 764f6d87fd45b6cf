"""What a node answers to other nodes: who may ask, each status and when, and that nothing is done where it is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rcache.cluster.register import RegisterFailed, RegisterUnreachable, Revised
from rcache.cluster.view import TERM_MAX, BadView, View, decode_view, encode_view
from rcache.cluster.wishes import cede_register, leave, take_over_register
from rcache.engine.gate import PlainGate
from rcache.engine.reference.loans import Loans
from rcache.engine.reference.memory import MemoryAccount
from rcache.peers.intake import Heading, Taken
from rcache.server.node_answers import WATCH_S_MAX, NodeAnswers, Refusal, Standing
from rcache.stream.terms import Promise, Terms
from rcache_client.wire.grammar import REQUESTS, BadPayload, Layout, reply_layout
from rcache_client.wire.opcodes import NODE_OPCODES, Opcode, Role, Status
from tests.cluster.harness import by, grown, one

MINE, PEERS = 5, 3
"""The incarnations of this node, n1, and of the peer that asks, n2."""

VIEW = replace(one(4), epoch=7)
FILES = "f" * 32
"""This node's data directory."""
OF_MEMBERS = [Opcode.HEARTBEAT, Opcode.RECORDS, Opcode.SEQUENCES]
OF_THE_REGISTER = [Opcode.REGISTER_READ, Opcode.REGISTER_SET, Opcode.REGISTER_WATCH]


class FakeIntake:
    """What a peer sends ends here."""

    def __init__(self) -> None:
        self.taken: list[tuple[Any, ...]] = []
        self.answer = Taken(Status.OK)
        loans = Loans(MemoryAccount(1 << 20), 1000)
        self.gate, self.room = PlainGate(loans, 1), loans.most
        self.refused: list[int] = []

    def refuse(self, generation: int) -> None:
        self.refused.append(generation)

    def take(self, heading: Heading, records: bytes, follows: Callable[[int], int]) -> Taken:
        self.taken.append((heading, records, follows(2)))
        return self.answer


class FakeNeighbour:
    def __init__(self) -> None:
        self.intake = FakeIntake()


class FakeMember:
    """n1, which knows n2. `comes`: the view that is taken in while somebody waits for it; None: none does."""

    name, incarnation = "n1", MINE

    def __init__(self) -> None:
        self.view = VIEW
        self.comes: View | None = None
        self.waits_for: list[int] = []
        self.stops = False
        self.known = FakeNeighbour()
        self.grants: tuple[Status, int] = (Status.OK, 10**9)
        self.heartbeats: list[tuple[Any, ...]] = []
        self.asked_sequences: list[str] = []

    @property
    def sessions(self) -> FakeMember:
        """What sessions ask."""
        return self

    @property
    def epoch(self) -> int:
        return self.view.epoch

    lease_s = 1.0

    def await_epoch(self, epoch: int, _timeout_s: float = 1.0) -> bool:
        self.waits_for.append(epoch)
        self.view = self.comes or self.view
        return self.epoch >= epoch or self.stops

    def neighbour(self, name: str, incarnation: int) -> FakeNeighbour | None:
        return self.known if (name, incarnation) == ("n2", PEERS) else None

    def answer_heartbeat(self, name: str, epoch: int, incarnation: int) -> tuple[Status, int]:
        self.heartbeats.append((name, epoch, incarnation))
        return (Status.VIEW_AHEAD, 0) if epoch > self.epoch and self.grants[0] is Status.OK else self.grants

    def follows(self, bucket: int) -> int:
        return 100 + bucket

    def sequences_for(self, name: str) -> bytes:
        self.asked_sequences.append(name)
        return b"packed"


class FakeRegister:
    """Holds a view, as the file does; `trouble` is raised by every call."""

    def __init__(self, view: View | None = VIEW) -> None:
        self.held = Revised(view.epoch, view) if view is not None else None
        self.trouble: Exception | None = None
        self.trouble_of_set: Exception | None = None
        self.asked: list[tuple[Any, ...]] = []
        self.in_time = True

    def _note(self, *asked: Any) -> None:
        self.asked.append(asked)
        if self.trouble is not None:
            raise self.trouble

    def read(self) -> Revised | None:
        self._note("read")
        return self.held

    def compare_and_set(self, revision: int, view: View) -> tuple[bool, Revised]:
        self._note("set", revision, view)
        if self.trouble_of_set is not None:
            raise self.trouble_of_set
        if self.held is None:
            raise ValueError("the register has no view yet")
        if self.held.revision != revision:
            return False, self.held
        self.held = Revised(view.epoch, view)
        return True, self.held

    def watch(self, revision: int, timeout_s: float) -> Revised | None:
        self._note("watch", revision, timeout_s)
        return self.held if self.in_time else None


class Node:
    """A node with fakes for what it answers from, and n2 as who asks."""

    def __init__(self, directory: Path) -> None:
        self.member = FakeMember()
        self.register = FakeRegister()
        self.terms = Terms(directory)
        self.orders: list[tuple[dict[str, Any], float]] = []
        self.standing = Standing(
            data_dir_id=FILES,
            name="n1",
            where="embedded",
            terms=self.terms,
            member=self.member,  # type: ignore[arg-type]
            register=self.register,  # type: ignore[arg-type]
            steer=self.steer,
        )
        self.answers = NodeAnswers(self.standing)

    def steer(self, order: dict[str, Any], budget_s: float) -> dict[str, Any]:
        self.orders.append((order, budget_s))
        return {"done": "\N{SNOWMAN}"}

    def ask(self, opcode: Opcode, *values: Any, role: Role = Role.NODE, name: str = "n2", budget_s: float = 2.0) -> Any:
        """The values of an OK, held to its layout."""
        payload = REQUESTS[opcode].encode(*values)
        answer = self.answers.answer(opcode, payload, role, name, budget_s)
        layout = reply_layout(opcode, Status.OK)
        assert layout.decode(layout.encode(*answer)) == answer
        return answer

    def refusal(self, opcode: Opcode, *values: Any, **who: Any) -> tuple[Status, Any]:
        """The status and the only value of a refusal, held to its layout."""
        with pytest.raises(Refusal) as caught:
            self.ask(opcode, *values, **who)
        status, values = caught.value.status, caught.value.values
        layout = reply_layout(opcode, status)
        assert layout.decode(layout.encode(*values)) == values
        assert caught.value.values[0], "a reason, or a view"
        return status, caught.value.values[0]

    def untouched(self) -> bool:
        """Whether nothing was asked of the member or the register."""
        member = self.member
        done = [member.heartbeats, member.known.intake.taken, member.asked_sequences, self.register.asked, self.orders]
        return not any(done)


@pytest.fixture
def there(tmp_path: Path) -> Node:
    return Node(tmp_path)


def sound(opcode: Opcode, epoch: int = 7, sender: int = PEERS, receiver: int = MINE) -> tuple[Any, ...]:
    """Values that are answered with OK."""
    return {
        Opcode.VIEW: (0,),
        Opcode.STEER: (b"{}",),
        Opcode.HEARTBEAT: (epoch, sender, receiver, 41),
        Opcode.RECORDS: (epoch, sender, receiver, 1, b"records"),
        Opcode.SEQUENCES: (epoch, sender, receiver),
        Opcode.REGISTER_READ: (),
        Opcode.REGISTER_SET: (7, encode_view(next_view())),
        Opcode.REGISTER_WATCH: (6,),
        Opcode.REGISTER_PROMISE: (0, ""),
    }[opcode]


def next_view() -> View:
    return leave(VIEW, by("n1"), "n1")


# --- who may ask


ALLOWED = {
    Opcode.VIEW: set(Role),
    Opcode.STEER: {Role.NODE, Role.ADMIN},
    **{opcode: {Role.NODE} for opcode in NODE_OPCODES},
}


@pytest.mark.parametrize("role", list(Role))
@pytest.mark.parametrize("opcode", ALLOWED)
def test_who_may_ask_what(there: Node, opcode: Opcode, role: Role) -> None:
    if role in ALLOWED[opcode]:
        there.ask(opcode, *sound(opcode), role=role)
        return
    status, reason = there.refusal(opcode, *sound(opcode), role=role)
    assert status is Status.NOT_ALLOWED
    assert "HELLO" in reason
    assert there.untouched()


@pytest.mark.parametrize("opcode", [opcode for opcode in ALLOWED if opcode is not Opcode.STEER])
@pytest.mark.parametrize("role", [Role.NODE, Role.CLIENT])
def test_a_payload_that_is_none_is_said_before_anything_else(there: Node, opcode: Opcode, role: Role) -> None:
    """Whoever asks, and whatever stands in the way."""
    layout = REQUESTS[opcode]
    assert isinstance(layout, Layout)
    wrong = bytes(layout.bytes_min - 1) if layout.bytes_min else b"x"
    with pytest.raises(BadPayload):
        there.answers.answer(opcode, wrong, role, "n2", 1.0)
    with pytest.raises(BadPayload):
        NodeAnswers(Standing()).answer(opcode, wrong, role, "n2", 1.0)
    assert there.untouched()


@pytest.mark.parametrize("opcode", [Opcode.VIEW, Opcode.STEER, *OF_MEMBERS])
def test_a_node_that_is_no_member_yet_says_so(there: Node, opcode: Opcode) -> None:
    there.standing.member = there.standing.steer = None
    assert there.refusal(opcode, *sound(opcode))[0] is Status.VIEW_AHEAD


@pytest.mark.parametrize("opcode", OF_THE_REGISTER)
def test_a_node_that_keeps_no_register_says_so(there: Node, opcode: Opcode) -> None:
    there.standing.register = None
    assert there.refusal(opcode, *sound(opcode))[0] is Status.REGISTER_UNAVAILABLE


# --- the view, and orders


def test_the_view_is_told_to_whoever_has_an_older_one(there: Node) -> None:
    assert there.ask(Opcode.VIEW, 6, role=Role.CLIENT) == ("embedded", encode_view(VIEW))
    assert there.ask(Opcode.VIEW, 0, role=Role.CLIENT) == ("embedded", encode_view(VIEW))


@pytest.mark.parametrize("known", [7, 8, 0xFFFF_FFFF])
def test_the_view_is_not_told_to_whoever_has_it(there: Node, known: int) -> None:
    assert there.ask(Opcode.VIEW, known) == ("embedded", b"")


def test_before_it_is_a_member_a_node_tells_the_newest_view_it_knows(there: Node) -> None:
    there.standing.member = None
    there.standing.view = replace(VIEW, epoch=4)
    assert decode_view(there.ask(Opcode.VIEW, 0)[1]).epoch == 4
    there.standing.member = there.member  # type: ignore[assignment]
    assert decode_view(there.ask(Opcode.VIEW, 0)[1]).epoch == 7


def test_an_order_is_carried_out_within_its_budget(there: Node) -> None:
    order = {"verb": "drain", "node": "n\N{SNOWMAN}"}
    (answer,) = there.ask(Opcode.STEER, json.dumps(order).encode(), role=Role.ADMIN, budget_s=4.5)
    assert there.orders == [(order, 4.5)]
    assert json.loads(answer) == {"done": "\N{SNOWMAN}"}


@pytest.mark.parametrize(
    "order",
    [
        b"",
        b"resume",
        b"{",
        b'{"verb":"resume"} {"verb":"resume"}',
        b"[]",
        b"null",
        b'"resume"',
        b"7",
        b"\xff\xfe",
        b'{"verb":"\xed\xa0\x80"}',
        '{"verb":"resume"}'.encode("utf-16"),
        '{"verb":"resume"}'.encode("utf-32-be"),
        b"\xef\xbb\xbf{}",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"9" * 10_000,
    ],
    ids=lambda order: repr(order[:20]),
)
def test_an_order_that_is_no_json_object_in_utf_8_is_refused(there: Node, order: bytes) -> None:
    status, reason = there.refusal(Opcode.STEER, order, role=Role.ADMIN)
    assert status is Status.BAD_ARGUMENT
    assert reason.startswith("an order is a JSON object: ")
    assert there.orders == []


def test_an_order_that_is_refused_says_why(there: Node) -> None:
    def steer(_order: dict[str, Any], _budget_s: float) -> dict[str, Any]:
        raise Refusal(Status.NOT_ALLOWED, "not now")

    there.standing.steer = steer
    assert there.refusal(Opcode.STEER, b"{}", role=Role.ADMIN) == (Status.NOT_ALLOWED, "not now")


# --- between members


@pytest.mark.parametrize("opcode", OF_MEMBERS)
def test_what_is_for_another_incarnation_is_refused(there: Node, opcode: Opcode) -> None:
    status, reason = there.refusal(opcode, *sound(opcode, receiver=MINE - 1))
    assert status is Status.WRONG_NODE
    assert "incarnation 5, not 4" in reason
    assert there.untouched()
    assert there.member.waits_for == []


def test_a_heartbeat_is_answered_with_its_number_and_a_grant(there: Node) -> None:
    assert there.ask(Opcode.HEARTBEAT, 7, PEERS, MINE, 41) == (41, 10**9)
    assert there.member.heartbeats == [("n2", 7, PEERS)]


def test_a_heartbeat_may_be_granted_nothing(there: Node) -> None:
    there.member.grants = Status.OK, 0
    assert there.ask(Opcode.HEARTBEAT, 7, PEERS, MINE, 41) == (41, 0)


def test_a_heartbeat_of_an_older_view_is_told_the_newer_one(there: Node) -> None:
    there.member.grants = Status.STALE_VIEW, 0
    assert there.refusal(Opcode.HEARTBEAT, *sound(Opcode.HEARTBEAT, epoch=6)) == (Status.STALE_VIEW, encode_view(VIEW))


@pytest.mark.parametrize("status", [Status.VIEW_AHEAD, Status.WRONG_NODE])
def test_a_heartbeat_that_is_granted_nothing_is_told_why(there: Node, status: Status) -> None:
    there.member.grants = status, 0
    refused, reason = there.refusal(Opcode.HEARTBEAT, *sound(Opcode.HEARTBEAT, epoch=9))
    assert refused is status
    assert "epoch 7" in reason
    assert there.member.waits_for == ([9] if status is Status.VIEW_AHEAD else []), "for a moment, or leases run out"


def test_a_heartbeat_of_a_newer_view_is_granted_once_that_view_is_here(there: Node) -> None:
    """Who keeps the register has every view first: refused again and again, its leases run out while views come quickly."""
    there.member.comes = replace(VIEW, epoch=8)
    assert there.ask(Opcode.HEARTBEAT, 8, PEERS, MINE, 41) == (41, 10**9)
    assert there.member.waits_for == [8]


def test_records_are_taken_in_from_whom_the_view_names(there: Node) -> None:
    assert there.ask(Opcode.RECORDS, 7, PEERS, MINE, 3, b"some") == (there.member.known.intake.room,)
    assert there.member.known.intake.taken == [((7, PEERS, MINE, 3), b"some", 102)]
    assert there.member.waits_for == []


def test_records_of_an_older_view_are_judged_one_by_one(there: Node) -> None:
    """By the intake: most buckets follow whom they did before."""
    assert there.ask(Opcode.RECORDS, *sound(Opcode.RECORDS, epoch=2)) == (there.member.known.intake.room,)
    assert len(there.member.known.intake.taken) == 1


@pytest.mark.parametrize("opcode", [Opcode.RECORDS, Opcode.SEQUENCES])
def test_what_is_of_a_newer_view_waits_for_it(there: Node, opcode: Opcode) -> None:
    there.member.comes = replace(VIEW, epoch=8)
    there.ask(opcode, *sound(opcode, epoch=8))
    assert there.member.waits_for == [8]


@pytest.mark.parametrize("stops", [False, True], ids=["in time", "the node stops"])
@pytest.mark.parametrize("comes", [None, replace(VIEW, epoch=8)], ids=["no view comes", "one that is not enough"])
@pytest.mark.parametrize("opcode", [Opcode.RECORDS, Opcode.SEQUENCES])
def test_what_is_of_a_view_that_does_not_come_is_refused(there: Node, opcode: Opcode, comes: View | None, stops: bool) -> None:
    there.member.comes, there.member.stops = comes, stops
    status, reason = there.refusal(opcode, *sound(opcode, epoch=9))
    assert status is Status.VIEW_AHEAD
    assert f"epoch {there.member.epoch}" in reason
    assert len(there.member.known.intake.refused) == (opcode is Opcode.RECORDS), "or the next frame would leave a hole"
    assert there.untouched()


@pytest.mark.parametrize("who", [{"name": "n3"}, {"sender": PEERS - 1}, {"sender": PEERS + 1}], ids=str)
@pytest.mark.parametrize("opcode", [Opcode.RECORDS, Opcode.SEQUENCES])
def test_a_stranger_is_told_the_view(there: Node, opcode: Opcode, who: dict[str, Any]) -> None:
    values = sound(opcode, sender=who.get("sender", PEERS))
    assert there.refusal(opcode, *values, name=who.get("name", "n2")) == (Status.STALE_VIEW, encode_view(VIEW))
    assert there.untouched()


def test_records_that_are_not_the_senders_any_more_are_answered_with_the_view(there: Node) -> None:
    there.member.known.intake.answer = Taken(Status.STALE_VIEW)
    assert there.refusal(Opcode.RECORDS, *sound(Opcode.RECORDS)) == (Status.STALE_VIEW, encode_view(VIEW))


@pytest.mark.parametrize("status", [Status.BROKEN_CHAIN, Status.APPEND_LOG_FAILED])
def test_records_that_cannot_be_taken_in_are_told_why(there: Node, status: Status) -> None:
    there.member.known.intake.answer = Taken(status, "they do not fit")
    assert there.refusal(Opcode.RECORDS, *sound(Opcode.RECORDS)) == (status, "they do not fit")


def test_sequences_are_told(there: Node) -> None:
    assert there.ask(Opcode.SEQUENCES, 7, PEERS, MINE) == (b"packed",)
    assert there.member.asked_sequences == ["n2"]


def test_sequences_are_those_of_the_view_that_was_asked_about(there: Node) -> None:
    """In a newer one they are no answer: who had what is different there."""
    there.member.comes = replace(VIEW, epoch=9)
    for epoch in (6, 8):
        status, view = there.refusal(Opcode.SEQUENCES, *sound(Opcode.SEQUENCES, epoch=epoch))
        assert (status, decode_view(view)) == (Status.STALE_VIEW, there.member.view)
    assert there.member.asked_sequences == []


# --- the register


def test_the_register_is_read(there: Node) -> None:
    assert there.ask(Opcode.REGISTER_READ) == (7, encode_view(VIEW))
    there.register.held = None
    assert there.ask(Opcode.REGISTER_READ) == (0, b"")


def test_the_register_keeps_a_view_at_its_revision(there: Node) -> None:
    wanted = next_view()
    assert there.ask(Opcode.REGISTER_SET, 7, encode_view(wanted)) == (1, 8, encode_view(wanted))
    assert there.ask(Opcode.REGISTER_SET, 7, encode_view(wanted)) == (0, 8, encode_view(wanted))


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"\xff",
        b"[" * 100_000,
        encode_view(VIEW)[:-1],
        encode_view(VIEW).replace(b'"manager":"n1"', b'"manager":"n9"'),
    ],
    ids=lambda text: repr(text[:20]),
)
def test_what_is_no_view_is_not_kept(there: Node, text: bytes) -> None:
    status, reason = there.refusal(Opcode.REGISTER_SET, 7, text)
    assert status is Status.BAD_VIEW
    assert len(reason) <= 500
    assert not [asked for asked in there.register.asked if asked[0] == "set"]


@pytest.mark.parametrize("trouble", [BadView("it may not follow"), ValueError("the register has no view yet")])
def test_a_view_that_may_not_follow_is_refused(there: Node, trouble: Exception) -> None:
    there.register.trouble_of_set = trouble
    assert there.refusal(Opcode.REGISTER_SET, *sound(Opcode.REGISTER_SET)) == (Status.BAD_VIEW, str(trouble))


@pytest.mark.parametrize("trouble", [RegisterFailed("no space"), RegisterUnreachable("no answer")])
def test_a_change_whose_outcome_is_not_known_is_unsettled(there: Node, trouble: Exception) -> None:
    there.register.trouble_of_set = trouble
    assert there.refusal(Opcode.REGISTER_SET, *sound(Opcode.REGISTER_SET)) == (Status.VIEW_UNSETTLED, str(trouble))


@pytest.mark.parametrize("trouble", [RegisterFailed("no space"), RegisterUnreachable("no answer")])
@pytest.mark.parametrize("opcode", OF_THE_REGISTER)
def test_a_register_that_cannot_be_read_is_unavailable(there: Node, opcode: Opcode, trouble: Exception) -> None:
    """A change is not even tried, so that is no change of unknown outcome."""
    there.register.trouble = trouble
    assert there.refusal(opcode, *sound(opcode)) == (Status.REGISTER_UNAVAILABLE, str(trouble))
    assert not [asked for asked in there.register.asked if asked[0] == "set"]


def test_a_register_that_was_given_away_agrees_to_nothing(there: Node) -> None:
    """The view in which it was is the last it keeps; who asks then goes by an older one. It may still be read."""
    there.register.held = Revised(8, replace(VIEW, epoch=8, manager="n2"))
    status, reason = there.refusal(Opcode.REGISTER_SET, 8, encode_view(next_view()))
    assert (status, reason) == (Status.REGISTER_UNAVAILABLE, "n2 keeps the register, not n1")
    assert not [asked for asked in there.register.asked if asked[0] == "set"]
    assert there.ask(Opcode.REGISTER_READ)[0] == 8
    assert there.ask(Opcode.REGISTER_WATCH, 7)[0] == 8


def test_a_register_that_was_taken_over_agrees_to_nothing(there: Node) -> None:
    """Its holder came back with the file of before, and heard of the newer view since."""
    there.member.view = replace(VIEW, epoch=9, manager="n2")
    assert there.refusal(Opcode.REGISTER_SET, *sound(Opcode.REGISTER_SET))[0] is Status.REGISTER_UNAVAILABLE
    assert not [asked for asked in there.register.asked if asked[0] == "set"]


def test_before_it_is_a_member_the_registers_keeper_answers_for_it(there: Node) -> None:
    """Others join while it recovers; whether it may, it made sure of before."""
    there.standing.member = None
    assert there.ask(Opcode.REGISTER_SET, *sound(Opcode.REGISTER_SET))[0] == 1


@pytest.mark.parametrize(
    ("budget_s", "watched_s"), [(2.0, 2.0), (0.001, 0.001), (WATCH_S_MAX, WATCH_S_MAX), (60.0, WATCH_S_MAX), (0.0, WATCH_S_MAX)]
)
def test_a_watch_ends_with_its_budget_and_never_later_than_its_bound(there: Node, budget_s: float, watched_s: float) -> None:
    assert there.ask(Opcode.REGISTER_WATCH, 6, budget_s=budget_s) == (7, encode_view(VIEW))
    assert there.register.asked == [("watch", 6, watched_s)]


def test_a_watch_in_which_nothing_came_says_so(there: Node) -> None:
    there.register.in_time = False
    assert there.ask(Opcode.REGISTER_WATCH, 7) == (0, b"")


def test_a_ceded_register_is_read_while_its_node_starts(there: Node) -> None:
    """It waits for the heir, who may have lost the answer, and asks it."""
    there.standing.member = there.standing.register = None
    there.standing.own = own = FakeRegister(cede_register(grown(2, 4), by("n1"), "n2"))  # type: ignore[assignment]
    assert own.held is not None
    assert there.ask(Opcode.REGISTER_READ) == (own.held.revision, encode_view(own.held.view))
    assert there.ask(Opcode.REGISTER_WATCH, 1)[0] == own.held.revision
    assert there.refusal(Opcode.REGISTER_WATCH, own.held.revision)[0] is Status.REGISTER_UNAVAILABLE
    assert there.refusal(Opcode.REGISTER_SET, *sound(Opcode.REGISTER_SET))[0] is Status.REGISTER_UNAVAILABLE
    own.held = Revised(7, VIEW)
    assert there.refusal(Opcode.REGISTER_READ)[0] is Status.REGISTER_UNAVAILABLE, "it is its own, and others may know better"


# --- questions of term


def ordinary(there: Node, view: View | None = None) -> View:
    """This node is one that does not keep the register."""
    there.member.view = view or replace(VIEW, nodes={**VIEW.nodes, "n3": VIEW.nodes["n1"]}, manager="n3")
    return there.member.view


def test_a_promise_is_kept_and_told_with_the_newest_view(there: Node) -> None:
    view = ordinary(there)
    assert there.ask(Opcode.REGISTER_PROMISE, 0, "") == (0, 0, "", FILES, encode_view(view)), "it was only asked"
    assert there.ask(Opcode.REGISTER_PROMISE, 2, "a") == (1, 2, "a", FILES, encode_view(view))
    assert Terms(there.terms.path.parent).held == Promise(2, "a"), "on the disk"
    assert there.ask(Opcode.REGISTER_PROMISE, 2, "a")[:3] == (1, 2, "a"), "asked again, because the answer was lost"
    for lower in ((1, "b"), (2, "b"), (1, "a"), (0, "")):
        assert there.ask(Opcode.REGISTER_PROMISE, *lower)[:3] == (0, 2, "a")
    assert there.ask(Opcode.REGISTER_PROMISE, 3, "b")[:3] == (1, 3, "b")


def test_what_was_followed_and_is_not_carried_out_yet_is_told(there: Node) -> None:
    view = ordinary(there)
    newer = replace(view, epoch=view.epoch + 1)
    assert there.terms.follow(newer) == ""
    assert there.ask(Opcode.REGISTER_PROMISE, 1, "a")[4] == encode_view(newer)
    newest = replace(view, epoch=view.epoch + 2)
    there.standing.own = FakeRegister(newest)  # type: ignore[assignment]
    assert there.ask(Opcode.REGISTER_PROMISE, 1, "a")[4] == encode_view(newest), "it ceded the register in it"


def test_who_keeps_the_register_promises_nobody_its_term(there: Node) -> None:
    status, reason = there.refusal(Opcode.REGISTER_PROMISE, 1, "a")
    assert (status, reason) == (Status.NOT_ALLOWED, "n1 keeps the register itself")
    assert there.terms.held == Promise()
    there.standing.register = None  # it was restarted, and waits for a majority
    assert there.ask(Opcode.REGISTER_PROMISE, 1, "a")[0] == 1


def test_a_node_that_starts_promises_too(there: Node) -> None:
    """Before it has a register, and before it is a member."""
    there.standing.member = there.standing.register = None
    assert there.refusal(Opcode.REGISTER_PROMISE, 1, "a")[0] is Status.VIEW_AHEAD
    there.standing.learn(VIEW)
    there.standing.learn(replace(VIEW, epoch=3))
    assert there.ask(Opcode.REGISTER_PROMISE, 1, "a") == (1, 1, "a", FILES, encode_view(VIEW))


def test_what_cannot_be_promised(there: Node) -> None:
    ordinary(there)
    assert there.refusal(Opcode.REGISTER_PROMISE, TERM_MAX + 1, "a")[0] is Status.BAD_ARGUMENT
    ordinary(there, replace(VIEW, manager=None))
    assert "etcd" in there.refusal(Opcode.REGISTER_PROMISE, 1, "a")[1]
    ordinary(there)
    there.standing.own = broken = FakeRegister()  # type: ignore[assignment]
    broken.trouble = RegisterFailed("the disk")
    assert there.refusal(Opcode.REGISTER_PROMISE, 1, "a") == (Status.REGISTER_UNAVAILABLE, "the disk")
    there.standing.own = there.standing.terms = None
    assert there.refusal(Opcode.REGISTER_PROMISE, 1, "a")[0] is Status.REGISTER_UNAVAILABLE


def test_a_view_of_the_takeover_itself_forbids_its_term_to_others(there: Node) -> None:
    view = grown(2, 4)
    taken = take_over_register(view, by("n2"), "n1")
    ordinary(there, taken)
    assert there.terms.follow(taken) == ""
    assert there.ask(Opcode.REGISTER_PROMISE, 1, "late")[0] == 0
    assert there.ask(Opcode.REGISTER_PROMISE, 2, "next")[0] == 1
