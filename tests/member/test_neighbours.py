"""The other nodes of the view: what is let go of with one that is in no view any more."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from rcache.cluster.view import Node, NodeState
from rcache.engine.contract import Engine
from rcache.member import neighbours as neighbours_module
from rcache.member.neighbours import Neighbours
from rcache.peers.books import LeaseBooks
from rcache.stream.applied import AppliedStream
from rcache_client.wire.opcodes import Opcode, Status
from tests.contract.conftest import EngineFactory, engine_factory, fake_time  # noqa: F401  fixtures
from tests.contract.harness import PATIENCE_S, Caller, wait_until
from tests.member.harness import view_of
from tests.peers.harness import PeerListener, greeter

STREAM_BYTES = 256 << 10


class FakeHost:
    """A control plane that sends no heartbeats."""

    epoch = 6
    lease_s = 0.2

    def makes_progress(self) -> bool:
        return False

    def __getattr__(self, name: str) -> Any:
        return lambda *_told, **_more: None


class Beside:
    """n1, whose ring is small, and n2 beside it, which has a copy of everything and takes nothing in."""

    def __init__(self, engine: Engine, listener: PeerListener) -> None:
        self.engine = engine
        self.caller = Caller(engine)
        placements = [("n1", "n2", 6)] * engine.config.buckets
        n1 = Node(1, "127.0.0.1:1", "f" * 32, NodeState.UP, 0)
        n2 = Node(1, str(listener.address), "f" * 32, NodeState.UP, 0)
        self.view = view_of(6, *placements, nodes={"n1": n1, "n2": n2})
        self.without = view_of(7, *[("n1", "", 6)] * engine.config.buckets, nodes={"n1": n1})
        host: Any = FakeHost()
        books = LeaseBooks(self.view.settings)
        self.neighbours = Neighbours(engine, AppliedStream(0, is_kept=False), books, greeter(), host, lambda _bucket: True)

    def come(self) -> Any:
        """n2 is in the view. Its link."""
        self.neighbours.follow(self.view, "n1", 1, durable=False)
        neighbour = self.neighbours.get("n2")
        assert neighbour is not None
        return neighbour.link

    def set(self, number: int, budget_ms: int) -> Status:
        return self.caller.ask(Opcode.SET, 0, 0, b"%d" % number, b"v" * 8000, budget_ms=budget_ms).status

    def fill_ring(self) -> None:
        """Until there is no room for a change."""
        for number in range(STREAM_BYTES // 1000):
            if self.set(number, 1) is not Status.OK:
                return
        raise AssertionError("the ring is not full")


@pytest.fixture
def listener() -> Iterator[PeerListener]:
    listener = PeerListener()
    yield listener
    listener.close()


@pytest.fixture
def beside(
    engine_factory: EngineFactory,  # noqa: F811
    listener: PeerListener,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Beside]:
    monkeypatch.setattr(neighbours_module, "CONNECT_S", PATIENCE_S)
    beside = Beside(engine_factory(stream_bytes=STREAM_BYTES, value_bytes_max=16 << 10), listener)
    yield beside
    listener.close()  # whoever is being greeted gives up
    assert beside.neighbours.end_all()


def test_what_comes_in_is_on_the_disk_from_when_that_is_demanded(beside: Beside) -> None:
    """Invariant 1, with fsync always."""
    beside.come()
    neighbour = beside.neighbours.get("n2")
    assert neighbour is not None
    assert not neighbour.intake.durable
    beside.neighbours.demand_disk()
    assert neighbour.intake.durable
    beside.neighbours.follow(beside.view, "n1", 1, durable=False)
    assert not neighbour.intake.durable


def link_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "link-n2"]


@pytest.mark.parametrize("peer", ["is being greeted", "takes nothing in"])
def test_nothing_is_kept_for_a_peer_that_was_let_go_of(beside: Beside, listener: PeerListener, peer: str) -> None:
    """What fills the ring is for a node that is dead; the view without it was taken in, and the next thing that the control
    plane does is to wait for room. Nobody comes by meanwhile to see whether the link's threads have ended."""
    link = beside.come()
    if peer == "takes nothing in":
        listener.greet()
    else:
        listener.accept()
    link.choose(range(8), 6)
    if peer == "takes nothing in":
        wait_until(lambda: link.is_up, "the connection")
    beside.fill_ring()
    beside.neighbours.follow(beside.without, "n1", 1, durable=False)
    assert beside.set(0, int(PATIENCE_S * 500)) is Status.OK
    if peer == "is being greeted":
        assert link_threads(), "it has ended by itself"
    assert link.stats()["up"] is False
