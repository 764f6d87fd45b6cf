"""With which incarnation a node comes: one that its name never had."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from rcache.cluster.view import View
from rcache.cluster.wishes import forsake, join, remove
from rcache.commands.assembly import Assembly
from rcache.commands.joining import incarnation_before
from rcache.server.node_answers import Standing
from rcache.stream.data_dir import DataDir
from rcache_client.address import Address
from tests.cluster.harness import by, grown, node

OURS, OTHERS = "f" * 32, "e" * 32


def known(incarnation: int, files: str, epoch: int = 40) -> View:
    view = grown(2)
    before = replace(view.nodes["n2"], incarnation=incarnation, data_dir_id=files)
    return replace(view, epoch=epoch, nodes={**view.nodes, "n2": before})


@pytest.mark.parametrize(
    ("name", "view", "above"),
    [
        ("n9", known(3, OURS), 40),
        ("n2", known(3, OURS), 3),
        ("n2", known(3, OTHERS), 40),
        ("n2", known(77, OTHERS), 77),
    ],
)
def test_a_newcomer_begins_above_the_epoch_and_a_restarted_node_goes_on(name: str, view: View, above: int) -> None:
    assert incarnation_before(view, name, OURS) == above


def test_a_name_that_was_removed_gets_an_incarnation_that_it_never_had() -> None:
    """The one that was removed may wake: two nodes of one name and incarnation are one to all others."""
    view, given = grown(1), []
    for files in (OURS, OTHERS, "d" * 32, OURS):
        incarnation = incarnation_before(view, "n2", files) + 1
        view = join(view, by("n2"), node(incarnation, files=files), recovers=False)
        given.append(incarnation)
        view = remove(forsake(view, by("n1"), "n2"), by("n1"), "n2")
    assert given == sorted(set(given))


@pytest.fixture
def assembly(tmp_path: Path) -> Iterator[Any]:
    """As much of it as the next incarnation is made of: n2, which runs under its first."""
    data_dir = DataDir(tmp_path)
    data_dir.be("n2", 8, "c1" * 16)
    made: Any = Assembly.__new__(Assembly)
    made._given = SimpleNamespace(data_dir=data_dir)
    made._identity = data_dir.begin_incarnation()
    made._options, made._here, made._standing = SimpleNamespace(name="n2"), Address("127.0.0.1", 1), Standing(name="n2")
    yield made
    data_dir.close()


def test_who_fell_out_goes_on_with_its_name_or_begins_above_what_it_was_given_meanwhile(assembly: Any) -> None:
    ours = assembly._identity.data_dir_id
    assembly._standing.view = known(1, ours)
    assert assembly._next_incarnation().incarnation == 2, "lost, and in the view"
    assembly._standing.view = replace(grown(1), epoch=41)
    back = cast(Assembly, assembly)._next_incarnation()
    assert (back.incarnation, back.data_dir_id, back.address) == (42, ours, "127.0.0.1:1"), "removed"
    assert DataDir._read_identity(assembly._given.data_dir).incarnation == 42, "on the disk"  # type: ignore[union-attr]
