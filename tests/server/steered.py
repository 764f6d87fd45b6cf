"""What the tests of orders share: a member whose wishes are agreed at once, and other nodes that are scripted."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol, cast

import pytest

from rcache.cluster.leases import Peer
from rcache.cluster.register import Revised
from rcache.cluster.transition import faults_between
from rcache.cluster.view import Placement, View, encode_view
from rcache.cluster.wishes import Asker, WishRefused
from rcache.member.offers import OfferFailed
from rcache.peers.books import LeaseBooks
from rcache.peers.line import PeerUnreachable
from rcache.records.reader import DataDamaged
from rcache.server.node_answers import Refusal, Standing
from rcache.server.orders import Desk
from rcache.stream.old_files import Held
from rcache.stream.terms import Promise
from rcache_client.address import Address
from rcache_client.wire.opcodes import Opcode, Status
from tests.cluster.harness import grown, placed

BUDGET_S = 30.0
SOON_S = 0.1
FILES = "f" * 32
"""The data directory of every node, by the views of these tests."""


class Nodes:
    """Every other node: what it answers, by its name; one that is not in `answers` does not. `promised`: to whom; `asked`: who
    was asked what; `before`: called before each question, with who is asked and what; `files`: whose data directory a node has,
    where it is not the one that views name."""

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {}
        self.promised: dict[str, Promise] = {}
        self.files: dict[str, str] = {}
        self.before: Callable[[str, Opcode, tuple[Any, ...]], None] = lambda *_asked: None
        self.at: dict[Address, str] = {}
        self.asked: list[tuple[Any, ...]] = []

    def line(self, address: Address, _greeter: object, _connect_s: float) -> ScriptedLine:
        return ScriptedLine(self, self.at.get(address, ""))


class ScriptedLine:
    """A line to one of them."""

    def __init__(self, nodes: Nodes, name: str) -> None:
        self._nodes = nodes
        self._name = name
        self.welcome: SimpleNamespace | None = None

    def connected(self) -> None:
        if self._name not in self._nodes.answers:
            raise PeerUnreachable("nobody listens there", not_sent=True, refused=True)
        self.welcome = SimpleNamespace(node_name=self._name)

    def ask(self, opcode: Opcode, *values: Any, timeout_s: float) -> tuple[int, Any]:
        self._nodes.before(self._name, opcode, values)
        self._nodes.asked.append((self._name, opcode, *values))
        if self._name not in self._nodes.answers:
            raise PeerUnreachable("it went", not_sent=False)
        found = self._nodes.answers[self._name]
        if isinstance(found, View) and opcode == Opcode.REGISTER_PROMISE:
            return Status.OK, self._promise(Promise(*values), found)
        if isinstance(found, View):
            assert opcode == Opcode.PING
            return Status.OK, ()
        return cast(tuple[int, Any], found)

    def _promise(self, wanted: Promise, view: View) -> tuple[Any, ...]:
        held = self._nodes.promised.get(self._name, Promise())
        promised = wanted.term > 0 and (wanted == held or wanted.term > held.term)
        if promised:
            held = self._nodes.promised[self._name] = wanted
        return int(promised), *held, self._nodes.files.get(self._name, FILES), encode_view(view)

    def close(self) -> None:
        pass


class Files:
    """A register in this node's files."""

    def __init__(self, fault: Exception | None = None) -> None:
        self.held: View | None = None
        self.fault = fault

    def read(self) -> Revised | None:
        return Revised(self.held.epoch, self.held) if self.held is not None else None

    def begin(self, view: View) -> Revised:
        if self.fault is not None:
            raise self.fault
        self.held = view
        return Revised(view.epoch, view)


class FakeRows:
    """What was rebuilt of a bucket."""

    def __init__(self, bucket: int, damaged: bool = False) -> None:
        self.bucket = bucket
        self.damaged = damaged
        self.rows = SimpleNamespace(clear=lambda: None)

    def pieces(self, _piece_bytes: int) -> Iterator[bytes]:
        yield b"begin"
        if self.damaged:
            raise DataDamaged(Path("n1.rcl"), 7, "it was changed while it was read")
        yield b"end"


class FakeFiles:
    """What this node's files hold: put there by the test."""

    def __init__(self) -> None:
        self.there: dict[int, Held] = {}
        self.damaged: set[int] = set()
        self.fault: Exception | None = None
        self.reads = 0

    def held(self, buckets: Collection[int], look: Callable[[], None]) -> dict[int, Held]:
        look()
        self.reads += 1
        if self.fault is not None:
            raise self.fault
        return {bucket: held for bucket, held in self.there.items() if bucket in buckets}

    def bring(self, buckets: Collection[int], look: Callable[[], None]) -> dict[int, tuple[Held, FakeRows | None]]:
        found = self.held(buckets, look)
        return {b: (held, FakeRows(b, b in self.damaged) if held.is_whole else None) for b, held in found.items()}


class FakeOffers:
    """Notes what is put in, in its order. `refused`: buckets that cannot be claimed; `full`: that find no room."""

    def __init__(self) -> None:
        self.trace: list[tuple[Any, ...]] = []
        self.refused: set[int] = set()
        self.full: set[int] = set()
        self.log_fails = False
        self.after_sync: Callable[[], None] = lambda: None

    def claim(self, buckets: Collection[int], _look: Callable[[], None], *, is_empty: bool) -> None:
        if set(buckets) & self.refused:
            raise OfferFailed("it is being brought back here already")
        self.trace.append(("claim", list(buckets), is_empty))

    def put(self, bucket: int, pieces: Iterable[bytes], _look: Callable[[], None]) -> None:
        for _ in pieces:
            if bucket in self.full:
                raise OfferFailed("no memory")
        self.trace.append(("put", bucket))

    def sync(self, look: Callable[[], None]) -> None:
        look()
        if self.log_fails:
            raise OfferFailed("the append log failed: no space")
        self.trace.append(("sync",))
        self.after_sync()

    def withdraw(self, buckets: Collection[int]) -> None:
        self.trace.append(("withdraw", list(buckets)))


class FakeMember:
    """A member whose wishes are agreed at once, and whose neighbours go by every view at once, but for those that lag."""

    def __init__(self, view: View, name: str = "n1") -> None:
        self.name = name
        self.view = view
        self.lagging: set[str] = set()
        self.is_silent = False
        self.books = LeaseBooks(view.settings)
        self.parts = SimpleNamespace(own_register=Files(), greeter=None, log=None)
        self.agreement = SimpleNamespace(unreachable="", learn=lambda revised: setattr(self, "view", revised.view))
        self.departure = SimpleNamespace(on_told=None, is_leaving=False)
        self.offers = FakeOffers()
        self.incarnation = view.nodes[name].incarnation if name in view.nodes else 1
        self.waiting: list[tuple[Callable[[View, Asker], View], Callable[[str], None]]] = []
        self._nonces = itertools.count()

    @property
    def epoch(self) -> int:
        return self.view.epoch

    def wish(self, _what: str, make: Callable[[View, Asker], View], done: Callable[[str], None]) -> None:
        if self.is_silent:
            self.waiting.append((make, done))
            return
        self.settle(make, done)

    def settle(self, make: Callable[[View, Asker], View], done: Callable[[str], None]) -> None:
        try:
            made = make(self.view, Asker(self.name, f"{next(self._nonces)}"))
        except WishRefused as refused:
            done(str(refused))
            return
        assert faults_between(self.view, made) == []
        self.view = made
        done("")

    @property
    def sessions(self) -> FakeMember:
        """What sessions ask."""
        return self

    def await_epoch(self, epoch: int, _timeout_s: float) -> bool:
        return self.epoch >= epoch

    def neighbour(self, name: str, incarnation: int) -> SimpleNamespace | None:
        found = self.view.nodes.get(name)
        if found is None or found.incarnation != incarnation:
            return None
        return SimpleNamespace(peer=Peer(name, incarnation), heard_epoch=0 if name in self.lagging else self.epoch)


class Play(SimpleNamespace):
    """A member, its steering, the other nodes, and why this process was asked to stop. `member`: unused if it starts."""

    member: FakeMember
    steer: Desk
    standing: Standing
    nodes: Nodes
    stops: list[str]
    files: FakeFiles

    def order(self, verb: str, budget_s: float = BUDGET_S, **fields: Any) -> dict[str, Any]:
        return self.steer({"verb": verb, "by": "anna@desk", **fields}, budget_s)

    def refused(self, verb: str, budget_s: float = BUDGET_S, **fields: Any) -> tuple[Status, str]:
        before = self.standing.newest
        with pytest.raises(Refusal) as refused:
            self.order(verb, budget_s, **fields)
        assert self.standing.newest is before, "a refused order changes nothing"
        return refused.value.status, str(refused.value.values[-1])


class Plays(Protocol):
    """Begins a play of a view; every other node answers with it, unless it is silent. `starts`: this node is no member yet."""

    def __call__(self, view: View, name: str = "n1", silent: tuple[str, ...] = (), *, starts: bool = False) -> Play: ...


def located(view: View) -> View:
    """Every node at an address of its own."""
    nodes = {name: replace(each, address=f"127.0.0.1:{number}") for number, (name, each) in enumerate(view.nodes.items(), 1)}
    return replace(view, nodes=nodes)


def three(*placements: tuple[str | None, tuple[str, ...]]) -> View:
    """Three nodes that are up, and what they have of four buckets."""
    default = (("n1", ("n2",)), ("n1", ("n3",)), ("n2", ("n3",)), ("n3", ()))
    made = [Placement(primary, backups, 1) for primary, backups in (placements or default)]
    return placed(grown(3, len(made)), *made)
