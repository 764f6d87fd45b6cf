"""Wishes brought to a register that loses answers, is quicker for others, or holds an older view than was known."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from rcache.agreement import agreement as agreement_module
from rcache.agreement.agreement import Agreement, Wish
from rcache.cluster.register import RegisterFailed, RegisterUnreachable, Revised
from rcache.cluster.view import BadView, Settings, View
from rcache.cluster.wishes import Asker, pause, resume, set_settings
from tests.cluster.harness import by, one
from tests.contract.harness import PATIENCE_S, assert_stays, wait_until

FIRST = one(2)


class ScriptedRegister:
    """Holds views, as the file does. `script`: what happens to the next compare-and-sets: "lost" keeps the view and loses the
    answer, "never came" loses the question, "late" keeps the change back until `carry_out_late`, "bad" has it refused; then
    all go well. `answers` False: nothing is answered."""

    def __init__(self, view: View | None = FIRST) -> None:
        self.held = Revised(view.epoch, view) if view is not None else None
        self.script: deque[str] = deque()
        self.asked: list[tuple[int, View]] = []
        self.late: list[tuple[int, View]] = []
        self.answers = True
        self.reads = self.watches = 0
        self.before_set: Callable[[], None] = lambda: None
        self._changed = threading.Condition()
        self._closed = False

    def keep(self, view: View) -> None:
        with self._changed:
            self.held = Revised(view.epoch, view)
            self._changed.notify_all()

    def read(self) -> Revised | None:
        self.reads += 1
        if not self.answers:
            raise RegisterUnreachable("it is away")
        return self.held

    def begin(self, view: View) -> Revised:
        raise AssertionError("nobody begins one here")

    def compare_and_set(self, revision: int, view: View) -> tuple[bool, Revised]:
        self.before_set()
        self.asked.append((revision, view))
        if not self.answers:
            raise RegisterUnreachable("it is away")
        what = self.script.popleft() if self.script else ""
        if what == "never came":
            raise RegisterUnreachable("lost on its way there")
        if what == "late":
            self.late.append((revision, view))
            raise RegisterUnreachable("it takes long")
        if what == "bad":
            raise BadView("it may not follow")
        if what == "failed":
            raise RegisterFailed("no space")
        kept = self._set(revision, view)
        if what == "lost":
            raise RegisterUnreachable("the answer was lost")
        assert self.held is not None
        return kept, self.held

    def _set(self, revision: int, view: View) -> bool:
        assert self.held is not None
        if self.held.revision != revision:
            return False
        self.keep(view)
        return True

    def carry_out_late(self) -> bool:
        return self._set(*self.late.pop())

    def watch(self, revision: int, timeout_s: float) -> Revised | None:
        self.watches += 1
        if not self.answers:
            raise RegisterUnreachable("it is away")
        with self._changed:
            self._changed.wait_for(lambda: self._closed or (self.held is not None and self.held.revision > revision), timeout_s)
            return self.held if self.held is not None and self.held.revision > revision else None

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()


class Agreeing:
    """An agreement over a scripted register; `settled` is what the wishes were told, in their order."""

    def __init__(self, register: ScriptedRegister) -> None:
        self.register = register
        self.views: list[Revised] = []
        self.settled: list[str] = []
        self.made: list[int] = []
        self.agreement = Agreement(register, "n1", self.views.append)

    def wish(self, make: Callable[[View, Asker], View] | None = None) -> None:
        def make_it(view: View, asker: Asker) -> View:
            self.made.append(view.epoch)
            return (make or (lambda now, by_whom: pause(now, by_whom, "a test", 5.0)))(view, asker)

        self.agreement.propose(Wish("pause", make_it, self.settled.append))

    def wait_settled(self, count: int = 1) -> list[str]:
        wait_until(lambda: len(self.settled) >= count, "the wish to be settled")
        return self.settled


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agreement_module, "RETRY_S", 0.002)


@pytest.fixture
def agreeing() -> Iterator[Agreeing]:
    agreeing = Agreeing(ScriptedRegister())
    agreeing.agreement.start()
    yield agreeing
    assert agreeing.agreement.stop(PATIENCE_S)
    assert agreeing.agreement.errors == 0


def same(asked: list[tuple[int, View]]) -> set[tuple[int, int, str, str]]:
    """What tells one change from another."""
    return {(revision, view.epoch, view.proposer, view.nonce) for revision, view in asked}


# --- agreed


def test_a_wish_is_agreed_and_the_view_is_told_before_who_wished_it(agreeing: Agreeing) -> None:
    told: list[int] = []
    agreeing.agreement.propose(
        Wish("pause", lambda v, a: pause(v, a, "a test", 5.0), lambda _refused: told.append(len(agreeing.views)))
    )
    wait_until(lambda: bool(told), "being told")
    assert [revised.revision for revised in agreeing.views[: told[0]]][-1] == 2
    assert (agreeing.views[-1].view.proposer, agreeing.agreement.latest) == ("n1", agreeing.register.held)


def test_wishes_are_settled_one_after_the_other(agreeing: Agreeing) -> None:
    """Invariant 5: one change is under way at a time."""
    for _ in range(5):
        agreeing.wish()
    assert agreeing.wait_settled(5) == [""] * 5
    assert [view.epoch for _, view in agreeing.register.asked] == [2, 3, 4, 5, 6]
    assert len({view.nonce for _, view in agreeing.register.asked}) == 5
    assert agreeing.agreement.waiting == 0


def test_a_register_that_is_closed_is_not_asked_again_and_again(agreeing: Agreeing, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is closed before this ends: while connections are told goodbye, which takes seconds."""
    wait_until(lambda: agreeing.register.watches > 0, "the watch")
    monkeypatch.setattr(agreement_module, "RETRY_S", PATIENCE_S)
    watches = agreeing.register.watches
    agreeing.register.close()
    assert_stays(lambda: agreeing.register.watches == watches, "the count of watches")


def test_a_newer_view_is_learnt_by_watching(agreeing: Agreeing) -> None:
    agreeing.register.keep(pause(FIRST, by("n2"), "another's", 5.0))
    wait_until(lambda: agreeing.views[-1:] == [agreeing.register.held], "the view")
    older = Revised(1, FIRST)
    agreeing.agreement.learn(older)
    assert agreeing.agreement.latest == agreeing.register.held, "nothing goes back"


# --- answers that were lost


@pytest.mark.parametrize("script", [["lost"], ["never came"], ["failed"], ["never came", "never came", "lost"]])
def test_a_change_whose_answer_was_lost_is_asked_for_again_as_it_was(agreeing: Agreeing, script: list[str]) -> None:
    """Invariant 5: the same change, the same nonce, against the same revision, until it is settled."""
    agreeing.register.script.extend(script)
    agreeing.wish()
    assert agreeing.wait_settled() == [""]
    assert len(agreeing.register.asked) == len(script) + 1
    assert len(same(agreeing.register.asked)) == 1
    assert agreeing.made == [1], "it is not made anew"
    assert agreeing.register.held is not None
    assert agreeing.register.held.revision == 2


def test_a_change_that_is_carried_out_late_is_settled_by_it(agreeing: Agreeing) -> None:
    """Invariant 5: only a revision past the one that it was asked against settles it. (It is given up, a second one is asked
    for and refused, the first is carried out late: nobody keeps its duties.)"""
    agreeing.register.script.extend(["late"])
    agreeing.register.before_set = lambda: agreeing.register.carry_out_late() if agreeing.register.late else None  # type: ignore[assignment,return-value]
    agreeing.wish()
    assert agreeing.wait_settled() == [""], "the first of the two was this node's own"
    assert len(same(agreeing.register.asked)) == 1


def test_while_nothing_settles_it_nothing_is_said(agreeing: Agreeing) -> None:
    wait_until(lambda: agreeing.agreement.latest is not None, "the view")
    agreeing.register.script.extend(["never came"] * 10_000)
    agreeing.wish()
    wait_until(lambda: len(agreeing.register.asked) > 5, "some tries")
    assert agreeing.settled == []
    assert (agreeing.agreement.waiting, agreeing.agreement.proposing) == (1, "pause")
    assert agreeing.agreement.unreachable
    agreeing.register.script.clear()
    assert agreeing.wait_settled() == [""]
    assert len(same(agreeing.register.asked)) == 1
    assert agreeing.agreement.unreachable == ""


def test_an_unsettled_change_that_another_overtook_is_made_anew(agreeing: Agreeing) -> None:
    """It was not carried out, and never will be: the register is past its revision."""
    agreeing.register.script.extend(["never came"] * 3)

    def overtake() -> None:
        if len(agreeing.register.asked) == 3:
            agreeing.register.keep(pause(FIRST, by("n2"), "another's", 5.0))

    agreeing.register.before_set = overtake
    agreeing.wish()
    assert agreeing.wait_settled() == [""]
    assert agreeing.made == [1, 2]
    assert [revision for revision, _ in agreeing.register.asked] == [1, 1, 1, 1, 2]
    nonces = {view.nonce for _, view in agreeing.register.asked}
    assert len(nonces) == 1, "it is the same wish"


@pytest.mark.parametrize("others", [1, 3])
def test_a_change_that_was_made_is_not_refused_because_others_came_after_it(agreeing: Agreeing, others: int) -> None:
    """Invariant 3: the answer was lost, and by the time it is asked again the register is past it. What it wished is so, and
    made anew it would be refused for that."""
    paused = pause(FIRST, by("n2"), "another's", 5.0)
    agreeing.register.keep(paused)
    agreeing.register.script.append("lost")

    def overtake() -> None:
        held = agreeing.register.held
        if len(agreeing.register.asked) == 1 and held is not None:
            assert held.view.pause is None, "it was made"
            view = held.view
            for _ in range(others):
                view = set_settings(view, by("n2"), Settings(backups=view.settings.backups + 1))
            with agreeing.register._changed:  # the watch tells nobody of the views between
                agreeing.register.held = Revised(view.epoch, view)

    agreeing.register.before_set = overtake
    agreeing.wish(resume)
    assert agreeing.wait_settled() == [""]
    assert len(same(agreeing.register.asked)) == 1


# --- somebody was quicker


def test_where_somebody_was_quicker_it_is_made_of_the_newer_view(agreeing: Agreeing) -> None:
    left = [2, 3]

    def overtake() -> None:
        if left and agreeing.register.held is not None:
            left.pop()
            agreeing.register.keep(pause(agreeing.register.held.view, by("n2"), "another's", 5.0))

    agreeing.register.before_set = overtake
    agreeing.wish()
    assert agreeing.wait_settled() == [""]
    assert agreeing.register.held is not None
    assert (agreeing.register.held.view.epoch, agreeing.register.held.view.proposer) == (4, "n1")
    assert agreeing.made[0] == 1
    assert agreeing.made[-1] == 3


# --- refused


def test_what_cannot_be_fulfilled_is_refused_with_the_reason(agreeing: Agreeing) -> None:
    agreeing.wish(resume)
    assert agreeing.wait_settled() == ["nothing is paused"]
    assert agreeing.register.asked == []


def test_a_wish_is_not_refused_by_a_view_of_yesterday(agreeing: Agreeing) -> None:
    """What is known here may be behind: the register is asked before a wish is refused."""
    wait_until(lambda: agreeing.agreement.latest is not None, "the first view")
    later = pause(FIRST, by("n2"), "another's", 5.0)

    def make(view: View, asker: Asker) -> View:
        if view.pause is None:
            with agreeing.register._changed:  # nobody is told of it by the watch before it is read
                agreeing.register.held = Revised(later.epoch, later)
        return resume(view, asker)

    agreeing.wish(make)
    assert agreeing.wait_settled() == [""]
    assert agreeing.made == [1, 2]


def test_while_the_register_is_away_nothing_is_refused(agreeing: Agreeing) -> None:
    wait_until(lambda: agreeing.agreement.latest is not None, "the first view")
    agreeing.register.answers = False
    agreeing.wish(resume)
    wait_until(lambda: len(agreeing.made) > 2, "some tries")
    assert agreeing.settled == []
    agreeing.register.answers = True
    assert agreeing.wait_settled() == ["nothing is paused"]


def test_a_change_that_the_keeper_refuses_is_made_anew(agreeing: Agreeing) -> None:
    agreeing.register.script.append("bad")
    agreeing.wish()
    assert agreeing.wait_settled() == [""]
    assert agreeing.made == [1, 1]


# --- the end


def test_a_wish_that_waits_when_the_node_stops_is_told_nothing() -> None:
    """Neither agreed nor refused: what came of it is not known."""
    register = ScriptedRegister()
    agreeing = Agreeing(register)
    register.script.extend(["never came"] * 1_000_000)
    agreeing.agreement.start()
    agreeing.wish()
    agreeing.wish()
    wait_until(lambda: bool(register.asked), "the first try")
    assert agreeing.agreement.stop(PATIENCE_S)
    assert agreeing.settled == []


def test_it_waits_for_a_register_that_has_no_view_yet() -> None:
    register = ScriptedRegister(None)
    agreeing = Agreeing(register)
    agreeing.agreement.start()
    agreeing.wish()
    wait_until(lambda: register.reads > 2, "some tries")
    assert_stays(lambda: agreeing.settled == [], "the wish")
    register.keep(FIRST)
    assert agreeing.wait_settled() == [""]
    assert agreeing.agreement.stop(PATIENCE_S)


def test_an_error_of_a_wish_is_counted_and_the_next_goes_on(agreeing: Agreeing) -> None:
    def fail(_view: View, _asker: Asker) -> View:
        raise RuntimeError("on purpose")

    agreeing.wish(fail)
    agreeing.wish()
    failed, agreed = agreeing.wait_settled(2)
    assert ("on purpose" in failed, agreed) == (True, ""), "who waits for an answer has one"
    assert agreeing.agreement.errors == 1
    agreeing.agreement.errors = 0


def test_one_that_was_never_started_stops() -> None:
    register: Any = ScriptedRegister()
    assert Agreement(register, "n1", lambda _revised: None).stop(PATIENCE_S)
