"""What the tests of the control plane share: a board whose neighbours, agreement and log are fakes, and views in a few words.

What it is: n1 with a real engine and real lease books; its neighbours do nothing by themselves, and its wishes are settled
when the test says so.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rcache.agreement.agreement import Wish
from rcache.cluster.leases import Peer
from rcache.cluster.register import Revised
from rcache.cluster.transition import faults_between
from rcache.cluster.view import Node, NodeState, Placement, Settings, View
from rcache.cluster.wishes import Asker, WishRefused
from rcache.engine.change_stream import HELD_FOR_EVER, CommitPoint
from rcache.engine.contract import Engine, EngineConfig
from rcache.engine.reference import ReferenceEngine
from rcache.member.board import Board, MemberParts
from rcache.member.neighbours import Neighbour
from rcache.peers.books import boot_ns
from rcache.stream.applied import AppliedStream
from rcache.stream.policy import FsyncPolicy
from rcache_client.handshake import Greeter
from rcache_client.wire.opcodes import Role
from tests.contract.harness import FakeTime

CLUSTER = "c1" * 16
_nonces = itertools.count()


class Clock:
    """A boot clock that goes on when it is told to; it begins where the real one is, because commit points go by that."""

    def __init__(self) -> None:
        self.ns = boot_ns()

    def boot_ns(self) -> int:
        return self.ns

    def now(self) -> float:
        return self.ns / 1e9

    def advance(self, seconds: float) -> None:
        self.ns += int(seconds * 1e9)


# --- views


def node(incarnation: int = 1, state: NodeState = NodeState.UP, since: int = 0) -> Node:
    return Node(incarnation, "127.0.0.1:1", "f" * 32, state, since)


def view_of(
    epoch: int,
    *placements: tuple[str | None, str, int],
    proposer: str = "n1",
    nodes: Mapping[str, Node] | None = None,
    **more: Any,
) -> View:
    """A view of (primary, backups, opened) for each bucket, backups between spaces."""
    return View(
        cluster_id=CLUSTER,
        epoch=epoch,
        proposer=proposer,
        nonce=f"nonce {next(_nonces)}",
        nodes=nodes or {"n1": node(), "n2": node(), "n3": node()},
        placements=tuple(Placement(primary, tuple(backups.split()), opened) for primary, backups, opened in placements),
        **{"manager": "n1", "settings": Settings(lease_s=1.0, grace_s=1.5, ack_s=1.0), **more},
    )


def engine_of(buckets: int, kind: type[ReferenceEngine] = ReferenceEngine) -> ReferenceEngine:
    config = EngineConfig(
        buckets=buckets, stripes=min(buckets, 4), memory_bytes=16 << 20, stream_bytes=1 << 20, value_bytes_max=1 << 16
    )
    return kind(config, FakeTime().clock())


def copy_into(engine: Engine, bucket: int, epoch: int = 1, source: int = 0) -> int:
    """Have the engine be a whole backup of a bucket that another opened in that epoch. Returns its sequence."""
    other = engine_of(engine.config.buckets)
    other.open_buckets([bucket], epoch, 1, "other")
    engine.apply(b"".join(other.copy_bucket(bucket)), source)
    return other.sequence(bucket)


# --- fakes


class FakeLink:
    """A link whose acknowledgements are the test's to give. `fills`: what it was asked to fill, and whether it is whole."""

    def __init__(self, peer: Peer, engine: Engine, trace: list[Any], until_ns: int = HELD_FOR_EVER) -> None:
        self.peer = peer
        self.engine = engine
        self.trace = trace
        self.acknowledged = engine.stream.head
        self.point: CommitPoint = engine.open_commit_point(peer.name, self.acknowledged, until_ns)
        self.fills: dict[int, bool] = {}
        self.cancelled: list[int] = []
        self.chosen: tuple[list[int], int] | None = None
        self.watches = 0
        self.owed = 0.0

    def acknowledge(self, position: int | None = None) -> None:
        self.acknowledged = self.engine.stream.head if position is None else position
        self.point.advance(self.acknowledged)

    def fill(self, bucket: int) -> None:
        self.fills.setdefault(bucket, False)

    def cancel(self, bucket: int) -> None:
        if self.fills.pop(bucket, None) is not None:
            self.cancelled.append(bucket)

    def filling(self) -> dict[int, bool]:
        return dict(self.fills)

    def is_whole(self, bucket: int) -> bool:
        return self.fills.get(bucket, False)

    @property
    def fills_left(self) -> bool:
        return not all(self.fills.values())

    def choose(self, buckets: list[int], epoch: int) -> None:
        self.chosen = (list(buckets), epoch)
        self.fills = {bucket: done for bucket, done in self.fills.items() if not (done and bucket in buckets)}
        self.trace.append(("choose", self.peer.name, list(buckets), epoch))

    def watch(self) -> None:
        self.watches += 1

    def owed_s(self) -> float:
        return self.owed

    def replace_point(self) -> CommitPoint:
        old, self.point = self.point, self.engine.open_commit_point(self.peer.name, self.acknowledged, 0)
        self.trace.append(("replace point", self.peer.name))
        return old

    def stats(self) -> dict[str, object]:
        return {}


class FakeHeartbeats:
    def __init__(self) -> None:
        self.refused = False
        self.beats = self.asked = self.sent = self.granted = 0
        self.trouble = ""

    def beat_now(self) -> None:
        self.beats += 1

    def ask_sequences(self) -> None:
        self.asked += 1


class FakeIntake:
    def __init__(self, source: int) -> None:
        self.source = source
        self.durable = False
        self.unfinished: list[int] = []

    def let_go_of_unfinished(self, idle_s: float, follows: Callable[[int], int]) -> list[int]:
        assert idle_s > 0
        return [bucket for bucket in self.unfinished if follows(bucket) == self.source]


class FakeNeighbours:
    """Those that the test, or `follow`, put there."""

    def __init__(self, engine: Engine, trace: list[Any]) -> None:
        self.engine = engine
        self.trace = trace
        self.known: dict[str, Neighbour] = {}
        self.errors = 0
        self.sessions: set[str] = set()
        self._sources = itertools.count(1)

    def add(self, name: str, incarnation: int = 1, **more: Any) -> Neighbour:
        peer = Peer(name, incarnation)
        link: Any = FakeLink(peer, self.engine, self.trace)
        parts: tuple[Any, Any] = (FakeHeartbeats(), FakeIntake(next(self._sources)))
        self.known[name] = Neighbour(peer, "127.0.0.1:1", parts[0], link, parts[1], **more)
        return self.known[name]

    def __iter__(self) -> Iterator[Neighbour]:
        return iter(list(self.known.values()))

    def get(self, name: str) -> Neighbour | None:
        return self.known.get(name)

    def source_of(self, name: str) -> int:
        neighbour = self.known.get(name)
        return neighbour.intake.source if neighbour is not None else 0

    def has_sessions(self, name: str) -> bool:
        return name in self.sessions

    def follow(self, view: View, name: str, incarnation: int, *, durable: bool) -> None:
        self.trace.append(("neighbours", view.epoch, incarnation))
        wanted = {Peer(n, each.incarnation) for n, each in view.nodes.items() if n != name and each.state is not NodeState.LOST}
        for neighbour in list(self.known.values()):
            if neighbour.peer not in wanted:
                neighbour.link.point.close()
                del self.known[neighbour.peer.name]
        for peer in wanted:
            if peer.name not in self.known:
                self.add(*peer)

    def demand_disk(self) -> None:
        self.trace.append("demand disk")

    def pass_intakes(self) -> None:
        self.trace.append("pass intakes")

    def end_all(self, *, abandon: bool = False) -> bool:
        self.trace.append(("end all", abandon))
        for neighbour in self.known.values():
            neighbour.link.point.abandon() if abandon else neighbour.link.point.close()
        self.known.clear()
        return True

    def reap(self, timeout_s: float) -> bool:
        return True


class FakeAgreement:
    """Keeps wishes until the test settles them against `view`."""

    def __init__(self, view: View) -> None:
        self.view = view
        self.wishes: list[Wish] = []
        self.learnt: list[Revised] = []
        self.errors = self.waiting = 0
        self.unreachable = ""

    def start(self) -> None: ...

    def stop(self, timeout_s: float) -> bool:
        return True

    def learn(self, revised: Revised) -> None:
        self.learnt.append(revised)

    def propose(self, wish: Wish) -> None:
        self.wishes.append(wish)

    @property
    def wished(self) -> list[str]:
        return [wish.what for wish in self.wishes]

    def make(self, by: str = "n1") -> View:
        """What would come of the first wish, which goes on waiting. Raises `WishRefused`."""
        made = self.wishes[0].make(self.view, Asker(by, f"nonce {next(_nonces)}"))
        assert faults_between(self.view, made) == []
        return made

    def agree(self, by: str = "n1") -> tuple[Wish, View]:
        """The first wish is agreed; `done` is the caller's to call, once it has shown the view."""
        self.view = self.make(by)
        return self.wishes.pop(0), self.view

    def refuse(self, by: str = "n1") -> str:
        """The first wish must be refused by the view as it is. Returns why."""
        wish = self.wishes.pop(0)
        try:
            wish.make(self.view, Asker(by, f"nonce {next(_nonces)}"))
        except WishRefused as refused:
            wish.done(str(refused))
            return str(refused)
        raise AssertionError(f"{wish.what}: it is granted")


class FakeLog:
    """A log that is asked to let things pass by."""

    def __init__(self, trace: list[Any]) -> None:
        self.trace = trace
        self.failure: Any = None
        self.policy = FsyncPolicy.INTERVAL
        self.passes = True

    def pass_by(self, timeout_s: float) -> bool:
        self.trace.append("pass by")
        return self.passes

    def set_policy(self, policy: FsyncPolicy) -> None:
        self.policy = policy
        self.trace.append(("policy", policy.value))

    def hangs(self, seconds: float) -> bool:
        return False


class FakeRegister:
    """This node's own file."""

    def __init__(self, view: View | None = None) -> None:
        self.held = Revised(view.epoch, view) if view is not None else None
        self.begun: list[View] = []

    def read(self) -> Revised | None:
        return self.held

    def begin(self, view: View) -> Revised:
        self.begun.append(view)
        self.held = Revised(view.epoch, view)
        return self.held

    def close(self) -> None: ...


def parts_of(view: View, engine: Engine, name: str = "n1", **more: Any) -> MemberParts:
    register: Any = FakeRegister()
    given = {
        "log": None,
        "applied": AppliedStream(0, is_kept=False),
        "own_register": register,
        "next_incarnation": lambda: view.nodes[name],
        **more,
    }
    return MemberParts(
        name=name, node=view.nodes[name], engine=engine, register=register, greeter=Greeter(name, Role.NODE, None), **given
    )


class BoardUnderTest(Board):
    """Whose time is the test's."""

    def __init__(self, parts: MemberParts, first: Revised, clock: Clock) -> None:
        self._clock = clock
        super().__init__(parts, first)

    def now(self) -> float:
        return self._clock.now()


class Scene:
    """n1 in a view, with everything that is its own in it open, and n2 and n3 beside it."""

    def __init__(self, clock: Clock, view: View, *, opened: bool = True, **parts: Any) -> None:
        self.clock = clock
        self.trace: list[Any] = []
        self.engine = engine_of(len(view.placements))
        self.board = BoardUnderTest(parts_of(view, self.engine, **parts), Revised(view.epoch, view), clock)
        self.neighbours = FakeNeighbours(self.engine, self.trace)
        self.agreement = FakeAgreement(view)
        self.board.neighbours = self.neighbours  # type: ignore[assignment]
        self.board.agreement = self.agreement  # type: ignore[assignment]
        for name, each in view.nodes.items():
            if name != "n1" and each.state is not NodeState.LOST:
                self.neighbours.add(name, each.incarnation, known_since=clock.now(), heard_at=clock.now())
        if opened:
            for bucket in view.primaries_of("n1"):
                self.engine.open_buckets([bucket], view.placements[bucket].opened, 1, "n1")
                self.board.set_points(bucket)

    def link(self, name: str) -> FakeLink:
        link: Any = self.neighbours.known[name].link
        return link

    def hold_lease(self, name: str, seconds: float = 1.0) -> None:
        """As if a heartbeat had been answered just now."""
        peer, beat = self.neighbours.known[name].peer, next(_nonces)
        with self.board.books.lock:
            self.board.books.held.note_sent(peer, beat, self.clock.boot_ns())
            self.board.books.held.note_grant(peer, beat, int(seconds * 1e9))

    def show(self, view: View) -> None:
        """The control plane has carried this view out, as far as the part under test sees it."""
        self.board.view = self.board.coming = self.agreement.view = view

    def agree(self) -> View:
        """The first wish is agreed: its view is shown, and then who wished is told."""
        wish, view = self.agreement.agree()
        self.show(view)
        wish.done("")
        self.drain()
        return view

    def refuse(self) -> str:
        why = self.agreement.refuse()
        self.drain()
        return why

    def drain(self) -> None:
        """Do what was posted."""
        self.board.next_events(0.0)
