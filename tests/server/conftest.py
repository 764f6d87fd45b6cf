"""Plays of orders: see `steered`."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest

from rcache.cluster.view import View
from rcache.member.member import Member
from rcache.server import asking
from rcache.server.node_answers import Standing
from rcache.server.orders import Desk
from rcache.server.steering import Steering, early_steering
from rcache.stream.old_files import OldFiles
from rcache.stream.register import FileRegister
from rcache.stream.terms import Terms
from rcache_client.address import parse_address
from tests.peers.harness import greeter
from tests.server.steered import FILES, FakeFiles, FakeMember, Nodes, Play, Plays, located


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Nodes:
    scripted = Nodes()
    monkeypatch.setattr(asking, "Line", scripted.line)
    return scripted


@pytest.fixture
def play(nodes: Nodes, tmp_path: Path) -> Plays:
    count = 0

    def begin(view: View, name: str = "n1", silent: tuple[str, ...] = (), *, starts: bool = False) -> Play:
        nonlocal count
        count += 1
        directory = tmp_path / f"play-{count}"
        directory.mkdir()
        view = located(view)
        nodes.at = {parse_address(each.address): other for other, each in view.nodes.items()}
        nodes.answers = {other: view for other in view.nodes if other != name and other not in silent}
        nodes.promised, nodes.files = {}, {}
        member, stops, files = FakeMember(view, name), list[str](), FakeFiles()
        own = cast(FileRegister, member.parts.own_register)
        standing = Standing(name=name, data_dir_id=FILES, view=view, own=own, terms=Terms(directory))
        steer: Desk
        if starts:
            steer = early_steering(standing, name, greeter())
        else:
            standing.member, standing.register = cast(Member, member), own
            steer = Steering(standing, cast(Member, member), stops.append, cast(OldFiles, files))
        return Play(member=member, steer=steer, nodes=nodes, stops=stops, standing=standing, files=files)

    return begin
