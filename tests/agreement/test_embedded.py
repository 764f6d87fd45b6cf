"""The embedded register from wherever a node stands: its own file, the manager's over a line, and a manager that moves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rcache.agreement.embedded import EmbeddedRegister
from rcache.cluster.register import RegisterFailed, RegisterUnreachable, Revised
from rcache.cluster.view import BadView, View
from rcache.cluster.wishes import cede_register, pause, take_over_register
from rcache.server.node_answers import NodeAnswers, Refusal, Standing
from rcache.stream.register import FileRegister
from rcache.stream.terms import Promise, Terms
from rcache_client.wire.frames import Request
from rcache_client.wire.opcodes import Opcode, Role, Status
from tests.cluster.harness import by, grown
from tests.contract.harness import PATIENCE_S, Task, assert_stays
from tests.peers.harness import Answering, greeter

FIRST = grown(2, 4)
"""n1 keeps the register; n2 is there."""


def next_of(view: View, name: str = "n1") -> View:
    return pause(view, by(name), "a test", 5.0)


class Manager:
    """n1: its file behind a listener, answering as a node does."""

    def __init__(self, directory: Path, view: View = FIRST) -> None:
        directory.mkdir()
        self.file = FileRegister(directory)
        self.file.begin(view)
        self.standing = Standing(name="n1", view=view, register=self.file, own=self.file, terms=Terms(directory))
        self.answers = NodeAnswers(self.standing)
        self.listener = Answering(self.answer, "n1")

    def answer(self, request: Request) -> tuple[Status, tuple[object, ...]]:
        try:
            budget_s = request.budget_ms / 1000
            return Status.OK, self.answers.answer(request.opcode, request.payload, Role.NODE, "n2", budget_s)
        except Refusal as refusal:
            return refusal.status, refusal.values

    @property
    def address(self) -> str:
        return str(self.listener.address)

    def close(self) -> None:
        self.file.close()
        self.listener.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    manager = Manager(tmp_path / "n1")
    yield manager
    manager.close()


@pytest.fixture
def own(tmp_path: Path) -> FileRegister:
    """The file of the node under test, n2, which has none yet."""
    (tmp_path / "n2").mkdir()
    return FileRegister(tmp_path / "n2")


@pytest.fixture
def terms(tmp_path: Path) -> Terms:
    """What the node under test promised."""
    (tmp_path / "terms").mkdir()
    return Terms(tmp_path / "terms")


MakeRegister = Callable[..., EmbeddedRegister]


@pytest.fixture
def remote(manager: Manager, own: FileRegister, terms: Terms) -> Iterator[EmbeddedRegister]:
    register = EmbeddedRegister(own, "n2", lambda: ("n1", manager.address), greeter(), terms)
    yield register
    register.close()


# --- here


def test_who_is_manager_asks_its_own_file(manager: Manager, terms: Terms) -> None:
    local = EmbeddedRegister(manager.file, "n1", lambda: ("n1", manager.address), greeter(), terms)
    assert local.read() == Revised(FIRST.epoch, FIRST)
    view = next_of(FIRST)
    assert local.compare_and_set(FIRST.epoch, view) == (True, Revised(view.epoch, view))
    assert local.watch(FIRST.epoch, PATIENCE_S) == Revised(view.epoch, view)
    assert local.watch(view.epoch, 0.0) is None
    with pytest.raises(BadView):
        local.compare_and_set(view.epoch, FIRST)
    assert manager.listener.connections == 0
    local.close()


def test_a_register_that_was_ceded_changes_nothing(manager: Manager, terms: Terms) -> None:
    """Section 7: ceding is the holder's last write. It may not have taken that view in yet; what it is asked for then was asked
    of the heir."""
    local = EmbeddedRegister(manager.file, "n1", lambda: ("n1", manager.address), greeter(), terms)
    ceded = cede_register(FIRST, by("n1"), "n2")
    assert local.compare_and_set(FIRST.epoch, ceded)[0]
    with pytest.raises(RegisterUnreachable, match="given to n2"):
        local.compare_and_set(ceded.epoch, next_of(ceded))
    assert manager.file.read() == Revised(ceded.epoch, ceded)
    assert local.read() == Revised(ceded.epoch, ceded), "it still says to whom"
    local.close()


# --- at the manager's


def test_whoever_is_not_asks_the_manager(remote: EmbeddedRegister, manager: Manager, own: FileRegister) -> None:
    assert remote.read() == Revised(FIRST.epoch, FIRST)
    view = next_of(FIRST)
    assert remote.compare_and_set(FIRST.epoch, view) == (True, Revised(view.epoch, view))
    assert manager.file.read() == Revised(view.epoch, view)
    again = next_of(FIRST)
    assert remote.compare_and_set(FIRST.epoch, again) == (False, Revised(view.epoch, view)), "somebody was quicker"
    assert own.read() is None
    assert manager.listener.connections == 1, "one line for both"


def test_a_watch_has_a_line_of_its_own(remote: EmbeddedRegister, manager: Manager) -> None:
    """Else a change would wait for it."""
    watching = Task(lambda: remote.watch(FIRST.epoch, PATIENCE_S))
    assert_stays(lambda: not watching.is_done, "the watch")
    view = next_of(FIRST)
    assert remote.compare_and_set(FIRST.epoch, view)[0]
    assert watching.result() == Revised(view.epoch, view)
    assert remote.watch(view.epoch, 0.01) is None
    assert manager.listener.connections == 2


def test_a_view_that_may_not_follow_is_refused(remote: EmbeddedRegister, manager: Manager) -> None:
    with pytest.raises(BadView, match="the manager n1: BAD_VIEW: epoch"):
        remote.compare_and_set(FIRST.epoch, FIRST)
    assert remote.read() == Revised(FIRST.epoch, FIRST), "and the line is as good as before"
    assert manager.listener.connections == 1


def test_a_manager_that_does_not_answer_for_it_yet_is_unreachable(remote: EmbeddedRegister, manager: Manager) -> None:
    manager.standing.register = None
    for ask in (remote.read, lambda: remote.compare_and_set(1, next_of(FIRST)), lambda: remote.watch(1, 0.01)):
        with pytest.raises(RegisterUnreachable, match="REGISTER_UNAVAILABLE"):
            ask()
    manager.standing.register = manager.file
    assert remote.read() is not None


def test_no_answer_is_unreachable_and_the_next_question_goes_on(remote: EmbeddedRegister, manager: Manager) -> None:
    assert remote.read() is not None
    manager.listener.break_all()
    manager.standing.register = None
    with pytest.raises(RegisterUnreachable):
        remote.read()
    manager.standing.register = manager.file
    assert remote.read() == Revised(FIRST.epoch, FIRST)
    manager.listener.close()
    with pytest.raises(RegisterUnreachable, match="the manager n1 at"):
        remote.read()


@pytest.mark.parametrize("revision", [1, 0])
def test_what_is_no_view_is_told_apart_from_none(own: FileRegister, revision: int, terms: Terms) -> None:
    listener = Answering(lambda _request: (Status.OK, (revision, b"no view")), "n1")
    register = EmbeddedRegister(own, "n2", lambda: ("n1", str(listener.address)), greeter(), terms)
    if revision:
        with pytest.raises(RegisterFailed, match="what is no view"):
            register.read()
    else:
        assert register.read() is None
    register.close()
    listener.close()


def test_closing_ends_whoever_waits_now_and_from_now_on(remote: EmbeddedRegister) -> None:
    watching = Task(lambda: remote.watch(FIRST.epoch, PATIENCE_S))
    assert_stays(lambda: not watching.is_done, "the watch")
    remote.close()
    with pytest.raises(RegisterUnreachable):
        watching.result()
    with pytest.raises(RegisterUnreachable, match="this node stops"):
        remote.read()


# --- a manager that moves


def test_where_the_manager_moved_the_new_one_is_asked(
    manager: Manager, own: FileRegister, tmp_path: Path, terms: Terms
) -> None:
    ceded = cede_register(FIRST, by("n1"), "n2")
    other = Manager(tmp_path / "other", ceded)
    where = [("n1", manager.address)]
    register = EmbeddedRegister(own, "n3", lambda: where[0], greeter(), terms)
    assert register.read() == Revised(FIRST.epoch, FIRST)
    where[0] = ("n2", other.address)
    assert register.read() == Revised(ceded.epoch, ceded)
    view = next_of(ceded, "n2")
    assert register.compare_and_set(ceded.epoch, view)[0]
    assert manager.file.read() == Revised(FIRST.epoch, FIRST)
    register.close()
    other.close()


def test_who_became_manager_goes_on_with_its_own_file(manager: Manager, own: FileRegister, terms: Terms) -> None:
    """And who was, asks the heir."""
    where = [("n1", manager.address)]
    register = EmbeddedRegister(own, "n2", lambda: where[0], greeter(), terms)
    ceded = cede_register(FIRST, by("n1"), "n2")
    assert register.compare_and_set(FIRST.epoch, ceded)[0], "whoever asks it of the holder, who agrees"
    own.begin(ceded)
    where[0] = ("n2", "")
    view = next_of(ceded, "n2")
    assert register.compare_and_set(ceded.epoch, view) == (True, Revised(view.epoch, view))
    assert own.read() == Revised(view.epoch, view)
    asked = [request.opcode for request in manager.listener.asked]
    assert asked == [Opcode.REGISTER_SET]
    register.close()


def test_a_register_is_begun_in_the_own_file(own: FileRegister, terms: Terms) -> None:
    register = EmbeddedRegister(own, "n2", lambda: ("n2", ""), greeter(), terms)
    assert register.begin(FIRST) == Revised(FIRST.epoch, FIRST)
    assert own.read() == Revised(FIRST.epoch, FIRST)
    register.close()


# --- after a promise to a takeover


def test_after_a_promise_the_former_holder_is_followed_no_more(
    remote: EmbeddedRegister, manager: Manager, terms: Terms
) -> None:
    """Section 7: nothing lower is followed; nothing is asked of it either, or it would be done behind the takeover's back."""
    assert terms.promise(Promise(1, "a"))
    for ask in (
        remote.read,
        lambda: remote.watch(FIRST.epoch - 1, 0.01),
        lambda: remote.compare_and_set(FIRST.epoch, next_of(FIRST)),
    ):
        with pytest.raises(RegisterUnreachable, match="this node promised the takeover a of term 1"):
            ask()
    assert manager.file.read() == Revised(FIRST.epoch, FIRST)
    assert terms.followed is None


def test_what_the_register_said_before_a_promise_is_told_with_it(remote: EmbeddedRegister, terms: Terms) -> None:
    assert remote.read() is not None
    assert terms.followed == FIRST
    view = next_of(FIRST)
    assert remote.compare_and_set(FIRST.epoch, view)[0]
    assert terms.followed == view
    assert terms.promise(Promise(1, "a"))
    assert remote.read() == Revised(view.epoch, view), "it was followed before, so the takeover goes on from it"


def test_the_takeover_that_was_promised_is_followed(manager: Manager, own: FileRegister, terms: Terms, tmp_path: Path) -> None:
    asker = by("n2")
    taken = take_over_register(FIRST, asker, "n1")
    other = Manager(tmp_path / "other", taken)
    register = EmbeddedRegister(own, "n3", lambda: ("n2", other.address), greeter(), terms)
    assert terms.promise(Promise(1, "another"))
    with pytest.raises(RegisterUnreachable, match=f"by takeover {asker.nonce}"):
        register.read()
    assert terms.promise(Promise(2, asker.nonce))
    with pytest.raises(RegisterUnreachable):
        register.read()
    later = take_over_register(FIRST, asker, "n1", 2)
    other.file.begin(later)
    assert register.read() == Revised(later.epoch, later)
    register.close()
    other.close()


def test_what_was_asked_before_a_takeover_is_settled_by_it(
    manager: Manager, own: FileRegister, terms: Terms, tmp_path: Path
) -> None:
    """Else a wish of the former term would be brought for ever, and no other after it."""
    asker = by("n2")
    taken = take_over_register(FIRST, asker, "n1")
    other = Manager(tmp_path / "other", taken)
    where = [("n1", manager.address)]
    register = EmbeddedRegister(own, "n3", lambda: where[0], greeter(), terms)
    assert register.read() == Revised(FIRST.epoch, FIRST)
    wanted = next_of(FIRST)
    assert terms.promise(Promise(1, asker.nonce))
    with pytest.raises(RegisterUnreachable):
        register.compare_and_set(FIRST.epoch, wanted)
    where[0] = ("n2", other.address)
    assert register.compare_and_set(FIRST.epoch, wanted) == (False, Revised(taken.epoch, taken))
    assert other.file.read() == Revised(taken.epoch, taken)
    register.close()
    other.close()


# --- a register that was ceded, at a node that starts


def test_a_register_that_was_ceded_says_to_whom_while_its_node_starts(remote: EmbeddedRegister, manager: Manager) -> None:
    """Its heir lost the answer, and knows of no other to ask; the node that ceded waits for the heir."""
    ceded = cede_register(FIRST, by("n1"), "n2")
    manager.file.compare_and_set(FIRST.epoch, ceded)
    manager.standing.register = None
    assert remote.read() == Revised(ceded.epoch, ceded)
    assert remote.watch(FIRST.epoch, PATIENCE_S) == Revised(ceded.epoch, ceded)
    for ask in (lambda: remote.watch(ceded.epoch, PATIENCE_S), lambda: remote.compare_and_set(ceded.epoch, next_of(ceded))):
        with pytest.raises(RegisterUnreachable, match="REGISTER_UNAVAILABLE"):
            ask()
