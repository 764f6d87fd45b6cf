"""What the tests of coming into a cluster share: other nodes that tell a view, and a start in a directory of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from rcache.cluster.view import View, encode_view
from rcache.commands.exit_codes import ExitCode
from rcache.commands.joining import Finder, Found
from rcache.commands.options import ServerOptions, parse
from rcache.commands.start_failed import StartFailed
from rcache.server.node_answers import Standing
from rcache.stream.register import FileRegister
from rcache.stream.terms import Promise, Terms
from rcache_client.address import Address
from rcache_client.wire.frames import Request
from rcache_client.wire.grammar import REQUESTS
from rcache_client.wire.opcodes import Opcode, Status
from tests.cluster.harness import node, one
from tests.peers.harness import Answering, greeter

NOBODY = "127.0.0.1:1"
HERE = Address("127.0.0.1", 13601)


def at(view: View, **addresses: str) -> View:
    """The view with nodes at these addresses, and all others where nobody listens."""
    return replace(view, nodes={n: replace(each, address=addresses.get(n, NOBODY)) for n, each in view.nodes.items()})


class Other:
    """Another node, which tells a view; None: it has none yet."""

    def __init__(self, name: str, view: View | None, where: str = "embedded") -> None:
        self.view = view
        self.where = where
        self.promise = Promise()
        self.files = "f" * 32
        self.listener = Answering(self.answer, name)

    def answer(self, request: Request) -> tuple[Status, tuple[object, ...]]:
        assert request.opcode in (Opcode.VIEW, Opcode.REGISTER_PROMISE)
        if self.view is None:
            return Status.VIEW_AHEAD, ("no view yet",)
        if request.opcode == Opcode.REGISTER_PROMISE:
            assert REQUESTS[request.opcode].decode(request.payload) == (0, ""), "it is only asked, nothing is to be promised"
            return Status.OK, (0, *self.promise, self.files, encode_view(self.view))
        return Status.OK, (self.where, encode_view(self.view))

    @property
    def address(self) -> str:
        return str(self.listener.address)


MakeOther = Callable[..., Other]


class Start:
    """The start of n1, in a directory of its own."""

    def __init__(self, directory: Path, *arguments: str) -> None:
        self.directory = directory
        self.options: ServerOptions = parse(["--name", "n1", "--data-dir", str(directory), *arguments], {})
        self.own = FileRegister(directory)
        self.standing = Standing(data_dir_id="f" * 32, terms=Terms(directory))
        self.looks = 0
        self.finder = Finder(self.options, self.own, greeter(), self.standing, HERE, self.look)

    def look(self) -> None:
        self.looks += 1

    def find(self, *, joined: bool = False) -> Found:
        found = self.finder.find(joined=joined)
        found.register.close()
        return found

    def fails(self, *, joined: bool = False) -> tuple[ExitCode, str]:
        with pytest.raises(StartFailed) as caught:
            self.finder.find(joined=joined)
        return caught.value.code, str(caught.value)


def view_with_backups(view: View) -> View:
    placements = tuple(replace(placed, backups=("n2",)) for placed in view.placements)
    return replace(view, placements=placements, epoch=view.epoch + 1)


def one_of_n2() -> View:
    view = one()
    placements = tuple(replace(placed, primary="n2") for placed in view.placements)
    return replace(view, nodes={"n2": node()}, manager="n2", placements=placements, proposer="n2")


def one_of(begun: Start) -> View | None:
    held = begun.own.read()
    return held.view if held is not None else None


MakeStart = Callable[..., Start]
