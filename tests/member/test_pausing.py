"""Pause: before the view is shown no write is under way; it is counted from when this node learnt of it, and ends by itself."""

from __future__ import annotations

from rcache.cluster.view import Pause, View
from rcache.member.pausing import Pausing
from rcache_client.wire.opcodes import Opcode, Status
from tests.contract.harness import Caller
from tests.member.harness import Clock, Scene, view_of


class Pausable(Scene):
    def __init__(self, clock: Clock) -> None:
        super().__init__(clock, view_of(6, ("n1", "", 6)))
        self.pausing = Pausing(self.board)

    def follow(self, view: View, old: View | None = None) -> None:
        self.pausing.follow(old or self.board.view, view)
        self.show(view)

    def writes(self) -> Status:
        return Caller(self.engine).ask(Opcode.SET, 0, 0, b"key", b"value", budget_ms=10).status


def paused(epoch: int, seconds: float = 10.0, since: int = 0) -> View:
    return view_of(epoch, ("n1", "", 6), pause=Pause("n2", "a backup of the disks", seconds, since or epoch))


def running(epoch: int) -> View:
    return view_of(epoch, ("n1", "", 6))


def test_writes_wait_from_when_the_view_is_followed(clock: Clock) -> None:
    scene = Pausable(clock)
    assert scene.writes() is Status.OK
    scene.follow(paused(7))
    assert scene.writes() is Status.PAUSED
    assert Caller(scene.engine).value(b"key") == b"value", "reads go on"
    assert scene.pausing.left_s == 10.0


def test_it_ends_by_itself_after_its_time_from_when_it_was_learnt(clock: Clock) -> None:
    """Each node counts by itself and resumes alone; the wish only tells the others."""
    scene = Pausable(clock)
    scene.clock.advance(100)
    scene.follow(paused(7))
    scene.clock.advance(9.9)
    scene.pausing.look()
    assert (scene.writes(), scene.agreement.wishes) == (Status.PAUSED, [])
    scene.clock.advance(0.2)
    scene.pausing.look()
    assert (scene.writes(), scene.pausing.left_s) == (Status.OK, 0.0)
    assert scene.agreement.wished == ["end the pause"]
    scene.pausing.look()
    assert scene.agreement.wished == ["end the pause"]
    view = scene.agree()
    assert view.pause is None


def test_views_of_the_same_pause_do_not_lengthen_it(clock: Clock) -> None:
    scene = Pausable(clock)
    scene.follow(paused(7))
    scene.clock.advance(6)
    scene.follow(paused(8, since=7))
    assert scene.pausing.left_s == 4.0


def test_a_view_of_a_pause_that_ended_here_does_not_begin_it_again(clock: Clock) -> None:
    """The wish to end it may take long."""
    scene = Pausable(clock)
    scene.follow(paused(7))
    scene.clock.advance(11)
    scene.pausing.look()
    scene.follow(paused(8, since=7))
    assert scene.writes() is Status.OK


def test_a_later_pause_replaces_it_and_is_not_ended_by_the_end_of_the_first(clock: Clock) -> None:
    scene = Pausable(clock)
    scene.follow(paused(7))
    scene.clock.advance(11)
    scene.pausing.look()
    scene.follow(paused(8, 20.0))
    assert scene.writes() is Status.PAUSED
    assert scene.pausing.left_s == 20.0
    assert scene.refuse() == "that pause has ended"
    assert scene.writes() is Status.PAUSED


def test_it_is_ended_by_a_view(clock: Clock) -> None:
    scene = Pausable(clock)
    scene.follow(paused(7))
    scene.follow(running(8))
    assert (scene.writes(), scene.pausing.left_s) == (Status.OK, 0.0)
    scene.clock.advance(60)
    scene.pausing.look()
    assert scene.agreement.wishes == []


def test_who_joins_a_paused_cluster_is_paused(clock: Clock) -> None:
    scene = Pausable(clock)
    scene.pausing.follow(None, paused(7))
    assert scene.writes() is Status.PAUSED
