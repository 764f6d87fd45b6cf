"""The register's holder after a restart: whose answers count, and what ends its start."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest
from loguru import logger

from rcache.cluster.register import RegisterFailed
from rcache.cluster.view import View
from rcache.cluster.wishes import part
from rcache.commands import confirming
from rcache.commands.exit_codes import ExitCode
from rcache.commands.start_failed import StartFailed
from rcache.stream.terms import Promise
from tests.cluster.harness import by, grown, one
from tests.commands.joiner import MakeOther, Start, at, view_with_backups
from tests.contract.harness import Task, wait_until


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confirming, "RETRY_S", 0.005)


@pytest.fixture
def warnings() -> Iterator[list[str]]:
    lines: list[str] = []
    sink = logger.add(lambda text: lines.append(str(text).rstrip("\n")), format="{message}", level="WARNING")
    yield lines
    logger.remove(sink)


class Held(Start):
    """n1 keeps the register by the newest view it knows."""

    def __init__(self, directory: Path, view: View) -> None:
        super().__init__(directory)
        self.own.begin(view)
        self.standing.view = view


def test_a_node_with_an_empty_directory_is_no_majority(
    tmp_path: Path, other: MakeOther, warnings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """n2 promised a takeover its term, and lost its disk with that; it learnt the view from n1 and promised nobody anything. It
    would be the majority by which n1 goes on beside the takeover."""
    monkeypatch.setattr(confirming, "TELL_EVERY_S", 0.0)
    there = other("n2", None)
    there.view = view = at(grown(2), n2=there.address)
    there.files = "e" * 32
    held = Held(tmp_path, view)
    going = Task(held.finder.confirm_register)
    wait_until(lambda: there.listener.connections > 3, "being asked again")
    assert (held.standing.register, going.is_done) == (None, False)
    said = next(line for line in warnings if "waits for a majority" in line)
    assert "1 did so, with itself; n2 runs from another data directory than the view names" in said
    there.files = view.nodes["n2"].data_dir_id
    going.result()
    assert held.standing.register is held.own


def test_a_newer_view_that_it_tells_is_learnt_all_the_same(tmp_path: Path, other: MakeOther) -> None:
    """And in that view it may be who it is: then it counts."""
    there = other("n2", None)
    view = at(grown(2), n2=there.address)
    there.files = "e" * 32
    known = replace(view.nodes["n2"], data_dir_id=there.files, incarnation=9)
    there.view = newer = replace(view, epoch=view.epoch + 3, nodes={**view.nodes, "n2": known})
    held = Held(tmp_path, view)
    Task(held.finder.confirm_register).result()
    assert held.standing.register is held.own
    assert held.standing.view == newer


def test_that_it_promised_itself_away_is_said_once(tmp_path: Path, other: MakeOther, warnings: list[str]) -> None:
    there = other("n2", None)
    there.view = view = at(grown(2), n2=there.address)
    held = Held(tmp_path, view)
    assert held.standing.terms is not None
    assert held.standing.terms.promise(Promise(1, "a"))
    going = Task(held.finder.confirm_register)
    wait_until(lambda: there.listener.connections > 5, "being asked again")
    assert len([line for line in warnings if "does not go on with its register" in line]) == 1
    assert held.standing.terms.promise(Promise(2, "b"))
    wait_until(lambda: len([line for line in warnings if "does not go on" in line]) == 2, "another reason")
    held.standing.register = held.own
    going.result()


@pytest.mark.parametrize(
    ("fault", "code", "why"),
    [
        (RegisterFailed("the register could not be written: No space left"), ExitCode.APPEND_LOG_FAILED, "No space left"),
        (ValueError("there is a register of epoch 9 here already"), ExitCode.DAMAGED_FILE, "cannot go on from epoch 5"),
    ],
)
def test_a_register_that_cannot_go_on_ends_the_start_with_a_reason(
    tmp_path: Path, other: MakeOther, monkeypatch: pytest.MonkeyPatch, fault: Exception, code: ExitCode, why: str
) -> None:
    there = other("n2", None)
    view = at(grown(2), n2=there.address)
    there.view = part(view_with_backups(view), by("n1"), "n2")
    held = Held(tmp_path, view)

    def fail(_view: View) -> NoReturn:
        raise fault

    monkeypatch.setattr(held.own, "begin", fail)
    with pytest.raises(StartFailed, match=why) as caught:
        held.finder.confirm_register()
    assert caught.value.code is code
    assert held.standing.register is None


def test_a_register_of_another_cluster_is_not_gone_on_with(tmp_path: Path) -> None:
    held = Held(tmp_path, one())
    view = replace(one(), cluster_id="c2" * 16, epoch=7)
    held.standing.view = view
    with pytest.raises(StartFailed, match="there is a register of epoch 1 here already") as caught:
        held.finder.confirm_register()
    assert caught.value.code is ExitCode.DAMAGED_FILE


def test_a_holder_that_lost_its_disk_is_not_the_one_that_keeps_the_register(tmp_path: Path, other: MakeOther) -> None:
    """It may have agreed to a view that only those know whom it does not hear."""
    there = other("n2", None)
    there.view = view = at(grown(2), n2=there.address)
    begun = Start(tmp_path)
    begun.standing.name, begun.standing.view, begun.standing.data_dir_id = "n1", view, "e" * 32
    with pytest.raises(StartFailed, match="order `rcache-cli takeover --is-stopped n1` at another node") as caught:
        begun.finder.confirm_register()
    assert (caught.value.code, begun.standing.register, begun.own.read()) == (ExitCode.WRONG_USE, None, None)
