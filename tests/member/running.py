"""A control plane that runs, with fakes around it, and says in what order it does things."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rcache.cluster.bucket_state import BucketState
from rcache.cluster.register import Revised
from rcache.cluster.view import Node, NodeState, Settings, View, encode_view
from rcache.engine.contract import OPEN_WAIT_S
from rcache.engine.reference import ReferenceEngine
from rcache.member.member import Member
from rcache.stream.applied import AppliedStream
from rcache_client.wire.opcodes import Opcode, Status
from tests.contract.harness import PATIENCE_S, Caller, wait_until
from tests.contract.test_links import bucket_of
from tests.member.harness import FakeAgreement, FakeLog, FakeNeighbours, FakeRegister, engine_of, node, parts_of
from tests.member.harness import view_of as any_view_of

ABSENT, BACKUP, PRIMARY, FROZEN = BucketState.ABSENT, BucketState.BACKUP, BucketState.PRIMARY, BucketState.FROZEN
SLOW = Settings(lease_s=60.0, grace_s=90.0, ack_s=60.0)
"""So that nobody is parted from while a test runs."""


def view_of(epoch: int, *placements: tuple[str | None, str, int], **more: Any) -> View:
    return any_view_of(epoch, *placements, **{"settings": SLOW, **more})


def key_of(bucket: int, buckets: int = 4) -> bytes:
    return next(b"%d" % n for n in range(1000) if bucket_of(b"%d" % n) % buckets == bucket)


class TracedEngine(ReferenceEngine):
    """Says what is done to its buckets, and which view was shown by then."""

    note: Callable[..., None] = staticmethod(lambda *_what: None)

    def set_state(self, bucket: int, state: BucketState) -> None:
        self.note("state", bucket, state)
        super().set_state(bucket, state)

    def follow(self, bucket: int, source: int) -> None:
        self.note("follow", bucket, source)
        super().follow(bucket, source)

    def set_paused(self, paused: bool) -> None:
        self.note("paused", paused)
        super().set_paused(paused)

    def open_buckets(self, buckets, epoch, incarnation, name, wait_s=OPEN_WAIT_S) -> None:  # type: ignore[no-untyped-def]
        self.note("open", tuple(buckets), epoch)
        super().open_buckets(buckets, epoch, incarnation, name, wait_s)


class Trace(list[Any]):
    """What was done, each with the epoch that was shown then."""

    def __init__(self) -> None:
        super().__init__()
        self.shown: Callable[[], int] = lambda: 0

    def append(self, what: Any) -> None:
        super().append((what, self.shown()))

    def whats(self) -> list[Any]:
        return [what for what, _ in self]

    def shown_at(self, what: Any) -> int:
        return next(epoch for each, epoch in self if each == what)


class Running:
    """n1's control plane, running, with fakes around it."""

    def __init__(self, first: View, *, opened: bool = True) -> None:
        self.trace = Trace()
        self.engine = engine_of(len(first.placements), TracedEngine)
        self.log = FakeLog(self.trace)
        self.applied = AppliedStream(1 << 20)
        self.own_register = FakeRegister()
        self.incarnation = 1
        parts = parts_of(
            first,
            self.engine,
            log=self.log,
            applied=self.applied,
            own_register=self.own_register,
            next_incarnation=self.next_incarnation,
        )
        self.member = Member(parts, Revised(first.epoch, first))
        self.neighbours = FakeNeighbours(self.engine, self.trace)
        self.agreement = FakeAgreement(first)
        self.member.board.neighbours = self.neighbours  # type: ignore[assignment]
        self.member.board.agreement = self.agreement  # type: ignore[assignment]
        for bucket in first.primaries_of("n1") if opened else ():
            self.engine.open_buckets([bucket], first.placements[bucket].opened, 1, "n1")
        self.trace.shown = lambda: self.member.epoch
        self.engine.note = lambda *what: self.trace.append(what)
        self.member.start()
        self.settle()

    def next_incarnation(self) -> Node:
        self.incarnation += 1
        return node(self.incarnation, NodeState.JOINING)

    def settle(self) -> None:
        """Wait until the thread has done all that was posted, and has looked."""
        done: list[bool] = []
        self.member.board.post(lambda: done.append(True))
        wait_until(lambda: bool(done), "what was posted")
        self.member.board.post(lambda: done.append(True))
        wait_until(lambda: len(done) == 2, "the round after it")

    def take_in(self, view: View) -> None:
        self.agreement.view = view
        self.member.hearing.heard_newer_view(encode_view(view))
        self.settle()

    def agree(self) -> View:
        """The first wish is agreed."""
        wish, view = self.agreement.agree()
        self.take_in(view)
        wish.done("")
        self.settle()
        return view

    def link(self, name: str = "n2") -> Any:
        return self.neighbours.known[name].link

    def write(self, bucket: int, budget_ms: int) -> Status:
        key = key_of(bucket, self.engine.config.buckets)
        return Caller(self.engine).ask(Opcode.SET, 0, 0, key, b"v", budget_ms=budget_ms).status

    def stop(self) -> None:
        assert self.member.stop(PATIENCE_S) == []
        assert self.member.errors == 0


Make = Callable[..., Running]
