"""When a node says that it is ready: once the view says that it is up, so that whoever waits for that may stop another. And
what a member is told where this node knows a newer view than it begins with."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from rcache.cluster.register import Register, RegisterFailed, Revised
from rcache.cluster.view import View
from rcache.cluster.wishes import take_over_register
from rcache.commands import rcached
from rcache.commands.options import ServerOptions
from rcache.member.member import Member
from rcache.server import service
from rcache.server.node_answers import Standing
from rcache.server.notify import Notifier
from rcache.server.service import Service
from rcache.server.stops import Stops
from rcache.stream.register import FileRegister
from tests.cluster.harness import by, grown
from tests.contract.harness import Task, assert_stays, wait_until


class Told(Notifier):
    """What the service manager is told."""

    def __init__(self) -> None:
        super().__init__({})
        self.told: list[str] = []

    def ready(self) -> bool:
        self.told.append("ready")
        return True

    def status(self, text: str) -> bool:
        self.told.append(text)
        return True


class Starting:
    """As much of a service as there is to a start: a member that is not up yet."""

    def __init__(self) -> None:
        self.stops = Stops()
        self.notifier = Told()
        self.member = SimpleNamespace(is_ready=False)
        self.service = Service.__new__(Service)
        standing: Any = SimpleNamespace(member=self.member)
        self.service.parts = cast(Any, SimpleNamespace(stops=self.stops, notifier=self.notifier, standing=standing))
        fake: Any = self.service
        fake.start = lambda: None
        fake.finish_start = lambda: self.notifier.told.append("the start is finished")
        self.address = ("127.0.0.1", 13600)

    def serve(self, monkeypatch: pytest.MonkeyPatch) -> Task:
        monkeypatch.setattr(Service, "address", self.address)
        return Task(lambda: rcached._serve(self.service, cast(ServerOptions, None), self.notifier))


@pytest.fixture
def starting() -> Starting:
    return Starting()


def test_it_is_ready_once_the_view_says_that_it_is_up(
    starting: Starting, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The next node is stopped then. If this one were still joining, that one would take itself for the last, and hand nothing
    over."""
    serving = starting.serve(monkeypatch)
    assert_stays(lambda: not starting.notifier.told, "it is joining")
    assert not capsys.readouterr().out
    starting.member.is_ready = True
    wait_until(lambda: len(starting.notifier.told) == 3, "being told")
    starting.stops.ask("enough")
    assert serving.result() == "enough"
    assert capsys.readouterr().out == "ready 127.0.0.1:13600\n"
    assert starting.notifier.told == ["the start is finished", "ready", "serving on 127.0.0.1:13600"]


def test_a_stop_ends_the_wait_and_nothing_was_ready(
    starting: Starting, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    serving = starting.serve(monkeypatch)
    starting.stops.signal("SIGTERM")
    assert serving.result() == "SIGTERM"
    assert (capsys.readouterr().out, starting.notifier.told) == ("", [])


# --- a takeover that was ordered while it started


class Admitting:
    """As much of a service as there is to the moment at which a node becomes a member. `learnt`: what the member is told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, joined: View) -> None:
        self.learnt: list[Revised] = []
        self.member = SimpleNamespace(
            epoch=joined.epoch, view=joined, start=lambda: None, agreement=SimpleNamespace(learn=self.learnt.append)
        )
        self.standing = Standing(name="n2", view=joined)
        monkeypatch.setattr(service, "Steering", lambda *_parts: None)
        monkeypatch.setattr(Service, "_old_files", lambda _self: None)
        self.service = Service.__new__(Service)
        self.service.parts = cast(Any, SimpleNamespace(standing=self.standing, stops=Stops()))

    def admit(self, register: object) -> list[Revised]:
        self.service.admit(cast(Member, self.member), cast(Register, register))
        return self.learnt


class OwnRegister:
    """The one in this node's files."""

    def __init__(self, view: View, failure: str = "") -> None:
        self.view, self.failure = view, failure

    def read(self) -> Revised:
        if self.failure:
            raise RegisterFailed(self.failure)
        return Revised(self.view.epoch, self.view)


def test_a_takeover_that_was_ordered_while_it_loaded_is_not_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """It had no member to tell yet; the view that the member begins by names a holder that is gone, and it would wait for that
    one for ever."""
    joined = grown(2)
    taken = take_over_register(joined, by("n2"), "n1")
    admitting = Admitting(monkeypatch, joined)
    own = admitting.standing.own = cast(FileRegister, OwnRegister(taken))
    assert admitting.admit(own) == [Revised(taken.epoch, taken)]


def test_where_nothing_newer_is_known_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    joined = grown(2)
    admitting = Admitting(monkeypatch, joined)
    own = admitting.standing.own = cast(FileRegister, OwnRegister(replace(joined, epoch=joined.epoch - 1)))
    assert admitting.admit(own) == []
    admitting.standing.own = cast(FileRegister, OwnRegister(joined, "the disk is gone"))
    assert admitting.admit(own) == [], "it is said, and the register says so itself to whoever asks it"


def test_with_etcd_the_files_say_nothing_of_the_register(monkeypatch: pytest.MonkeyPatch) -> None:
    joined = grown(2)
    admitting = Admitting(monkeypatch, joined)
    admitting.standing.own = cast(FileRegister, OwnRegister(take_over_register(joined, by("n2"), "n1")))
    assert admitting.admit(None) == []
