"""When a node says that it is ready: once the view says that it is up, so that whoever waits for that may stop another."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from rcache.commands import rcached
from rcache.commands.options import ServerOptions
from rcache.server.notify import Notifier
from rcache.server.service import Service
from rcache.server.stops import Stops
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
