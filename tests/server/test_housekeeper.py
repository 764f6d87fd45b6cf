"""The housekeeper: each task in its rhythm, none starved or stopped by another."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from loguru import logger

from rcache.server.housekeeper import Housekeeper, Task

PATIENCE_S = 20.0


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """What the housekeeper logs goes nowhere."""
    logger.disable("rcache.server.housekeeper")
    yield
    logger.enable("rcache.server.housekeeper")


class Calls(list[str]):
    """Tasks that note their calls, and a clock they run by."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 100.0

    def task(self, name: str, every_s: float) -> Task:
        return Task(name, every_s, lambda: self.append(name))

    def clock(self) -> float:
        return self.now_s


def test_each_task_has_its_rhythm() -> None:
    calls = Calls()
    keeper = Housekeeper([calls.task("often", 1.0), calls.task("seldom", 2.5)], calls.clock)
    assert keeper.round() == 1.0, "nothing is due at the start"
    for _ in range(10):
        calls.now_s += 0.5
        left_s = keeper.round()
        assert 0 < left_s <= 1.0
    assert calls.count("often") == 5
    assert calls.count("seldom") == 2


def test_the_rhythm_does_not_drift_when_a_round_is_a_little_late() -> None:
    calls = Calls()
    keeper = Housekeeper([calls.task("often", 1.0)], calls.clock)
    calls.now_s += 1.3
    assert keeper.round() == pytest.approx(0.7)


def test_what_was_missed_is_not_made_up_for() -> None:
    calls = Calls()
    keeper = Housekeeper([calls.task("often", 1.0)], calls.clock)
    calls.now_s += 1000
    for _ in range(5):
        keeper.round()
    assert len(calls) <= 2


def test_a_task_that_fails_is_counted_and_called_again_and_stops_no_other() -> None:
    calls = Calls()

    def fail() -> None:
        calls.append("fails")
        raise ValueError("a bug")

    keeper = Housekeeper([Task("fails", 1.0, fail), calls.task("works", 1.0)], calls.clock)
    for _ in range(3):
        calls.now_s += 1.0
        keeper.round()
    assert keeper.errors == 3
    assert calls == ["fails", "works"] * 3


def test_the_thread_calls_until_it_is_stopped() -> None:
    called = threading.Event()
    keeper = Housekeeper([Task("often", 0.001, called.set), Task("never", 10_000.0, lambda: None)])
    keeper.start()
    assert called.wait(PATIENCE_S)
    assert keeper.stop(PATIENCE_S)
    called.clear()
    assert not called.wait(0.02)


def test_stopping_does_not_wait_for_what_is_due_later() -> None:
    keeper = Housekeeper([Task("never", 10_000.0, lambda: None)])
    keeper.start()
    assert keeper.stop(5.0)


def test_one_whose_task_hangs_is_reported() -> None:
    entered, leave = threading.Event(), threading.Event()

    def hang() -> None:
        entered.set()
        leave.wait(PATIENCE_S)

    keeper = Housekeeper([Task("hangs", 0.001, hang)])
    keeper.start()
    assert entered.wait(PATIENCE_S)
    assert not keeper.stop(0.01)
    leave.set()
    assert keeper.stop(PATIENCE_S)


def test_one_that_never_began_can_be_stopped() -> None:
    assert Housekeeper([Task("never", 1.0, lambda: None)]).stop(1.0)
