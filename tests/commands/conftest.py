"""Fixtures of the tests of coming into a cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rcache.cluster.view import View
from rcache.commands import joining
from tests.commands.joiner import MakeOther, Other, Start


@pytest.fixture
def other(quick: None) -> Iterator[MakeOther]:
    made: list[Other] = []

    def make(name: str, view: View | None, where: str = "embedded") -> Other:
        made.append(Other(name, view, where))
        return made[-1]

    yield make
    for each in made:
        each.listener.close()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining, "RETRY_S", 0.005)


@pytest.fixture
def start(quick: None, tmp_path: Path) -> Callable[..., Start]:
    return lambda *arguments: Start(tmp_path, *arguments)
