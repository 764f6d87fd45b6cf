"""Copies made over a link while the bucket goes on: from IMPORT_BEGIN to IMPORT_END, the stream before each portion."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from rcache.cluster.bucket_state import BucketState
from rcache.engine.change_stream import HELD_FOR_EVER
from rcache.peers import debts
from rcache.peers.link import Link
from rcache.records.record import HISTORY_KINDS, Kind, Record, decode_import_end
from rcache_client.wire.opcodes import Status
from tests.contract.conftest import EngineFactory
from tests.contract.harness import PATIENCE_S, Caller, Task, assert_stays, stat, state_of, wait_until
from tests.peers.harness import MINE, PEER, Accepted, FakeHost, Frame, PeerListener

BUCKET = 0
ROWS = 300
BIG = bytes(2000)
"""So that a bucket takes several portions."""


class Filling:
    """An engine of one bucket with many items, and a link to the peer, which follows in an engine of its own."""

    def __init__(self, engine_factory: EngineFactory, listener: PeerListener, buckets: int = 1, rows: int = ROWS) -> None:
        self.listener = listener
        self.engine = engine_factory(buckets=buckets, stripes=1)
        self.copy = engine_factory(opened=0, buckets=buckets, stripes=1)
        for number in range(rows):
            self.set(number, BIG)
        self.host = FakeHost(epoch=5)
        self.link = Link(PEER, MINE, listener.line(1.0), self.engine, self.host)
        self.link.point.lease(HELD_FOR_EVER)
        self.link.start()
        self.peer = listener.greet()
        self.link.choose([], 5)
        self.records: list[Record] = []

    def set(self, number: int, value: bytes) -> None:
        Caller(self.engine).set(b"key-%d" % number, value)

    def take(self, peer: Accepted | None = None) -> Frame:
        """The next frame, applied to the copy, not acknowledged."""
        frame = (peer or self.peer).frame()
        self.copy.apply(frame.body)
        self.records += frame.records
        return frame

    def take_all(self, *, write: bool = False) -> None:
        """Apply and acknowledge until the copy is whole and has all there is; `write`: with a change before each frame."""
        deadline, number = time.monotonic() + PATIENCE_S, 0
        while not (BUCKET in self.host.filled and self.link.acknowledged == self.engine.stream.head):
            assert time.monotonic() < deadline, "the copy does not come to its end"
            if self.peer.is_silent(0.001):
                continue
            if write and not any(record.kind == Kind.IMPORT_END for record in self.records):
                number += 7
                self.set(number % ROWS, b"changed %d" % number)
            self.peer.acknowledge(self.take())

    def stop(self) -> None:
        assert self.link.stop(PATIENCE_S)
        assert self.link.errors == 0
        self.link.point.close()


@pytest.fixture
def filling(engine_factory: EngineFactory, listener: PeerListener) -> Iterator[Filling]:
    filling = Filling(engine_factory, listener)
    yield filling
    filling.stop()


def assert_frames_of_a_copy(records: list[Record]) -> int:
    """From IMPORT_BEGIN to IMPORT_END, each row as of what was sent before it and no older (invariant 8). Returns how many
    rows."""
    begin, end = records[0], next(record for record in records if record.kind == Kind.IMPORT_END)
    assert begin.kind == Kind.IMPORT_BEGIN
    rows, newest = 0, begin.sequence
    changed: dict[bytes, int] = {}
    for record in records[1 : records.index(end)]:
        if record.kind == Kind.ROW:
            rows += 1
            assert changed.get(record.key, 0) <= record.sequence <= newest, "older or newer than what was sent before it"
        else:
            assert record.kind in HISTORY_KINDS
            assert record.sequence == newest + 1, "the stream has a hole"
            newest = changed[record.key] = record.sequence
    assert decode_import_end(end.value) == (begin.sequence, rows)
    assert end.sequence == newest
    return rows


def test_a_bucket_is_filled_while_nobody_writes(filling: Filling) -> None:
    filling.link.fill(BUCKET)
    filling.take_all()
    assert assert_frames_of_a_copy(filling.records) == ROWS
    assert filling.host.filled == [BUCKET]
    assert filling.link.filling() == {BUCKET: True}
    assert filling.copy.state(BUCKET) is BucketState.BACKUP
    assert state_of(filling.copy) == state_of(filling.engine)
    assert filling.link.stats()["buckets_filled"] == 1


def test_a_bucket_is_filled_while_it_is_written_to(filling: Filling) -> None:
    """Invariant 8: the stream up to its place goes before the rows; so no row is older than what was sent before it, and the
    copy is the bucket."""
    filling.link.fill(BUCKET)
    filling.take_all(write=True)
    rows = assert_frames_of_a_copy(filling.records)
    changes = [record for record in filling.records if record.kind in HISTORY_KINDS]
    assert rows >= ROWS
    assert len(changes) > 3, "writes between the portions"
    filling.set(1, b"after")
    filling.peer.acknowledge(filling.take())
    wait_until(lambda: filling.link.acknowledged == filling.engine.stream.head, "the last change")
    assert state_of(filling.copy) == state_of(filling.engine)
    assert filling.copy.sequence(BUCKET) == filling.engine.sequence(BUCKET)


def test_one_portion_is_under_way_at_a_time(filling: Filling) -> None:
    """The peer is not flooded: its acknowledgement asks for the next."""
    filling.link.fill(BUCKET)
    first = filling.take()
    assert first.records[0].kind == Kind.IMPORT_BEGIN
    assert filling.peer.is_silent()
    assert filling.link.filling() == {BUCKET: False}
    filling.peer.acknowledge(first)
    assert {record.kind for record in filling.take().records} <= {Kind.ROW, Kind.IMPORT_END}


def test_small_buckets_go_together(engine_factory: EngineFactory, listener: PeerListener) -> None:
    """A thousand of them would take a thousand round trips. What is written meanwhile comes behind the rows of its bucket."""
    filling = Filling(engine_factory, listener, buckets=4, rows=20)
    for bucket in range(4):
        filling.link.fill(bucket)
    frames = [filling.take() for _ in range(4)]
    assert [frame.records[0].kind for frame in frames] == [Kind.IMPORT_BEGIN] * 4
    for number in range(20):
        filling.set(number, b"meanwhile")
    changes: list[Record] = []
    while len(changes) < 20:
        frames.append(filling.take())
        changes += frames[-1].records
    for frame in frames:
        filling.peer.acknowledge(frame)
    wait_until(lambda: sorted(filling.host.filled) == [0, 1, 2, 3], "the copies")
    assert state_of(filling.copy) == state_of(filling.engine)
    filling.stop()


def test_what_a_copy_has_begun_with_is_sent_every_change(filling: Filling) -> None:
    """Before its first portion it is none of the peer's; from then on it is, chosen or not, and also once it is whole."""
    before = filling.engine.stream.head
    filling.set(1, b"before")
    wait_until(lambda: filling.link.acknowledged > before, "being passed by")
    filling.link.fill(BUCKET)
    filling.take_all()
    for value in (b"one", b"two"):
        filling.set(1, value)
        frame = filling.take()
        assert frame.values == [value]
        filling.peer.acknowledge(frame)
    filling.link.choose([BUCKET], 6)
    assert filling.link.filling() == {}, "it is a copy by the view now"
    filling.set(1, b"three")
    frame = filling.take()
    assert (frame.epoch, frame.values) == (6, [b"three"])
    assert state_of(filling.copy) == state_of(filling.engine)


def test_a_lost_connection_begins_the_copy_anew(filling: Filling) -> None:
    """Invariant 7: who is filled anew begins from nothing."""
    filling.link.fill(BUCKET)
    first = filling.take()
    filling.peer.acknowledge(first)
    filling.take()
    filling.peer.close()
    filling.peer = filling.listener.greet()
    filling.records.clear()
    filling.take_all(write=True)
    assert assert_frames_of_a_copy(filling.records) >= ROWS
    assert filling.host.filled == [BUCKET]
    assert state_of(filling.copy) == state_of(filling.engine)


def test_a_refusal_begins_the_copy_anew(filling: Filling) -> None:
    filling.link.fill(BUCKET)
    first = filling.take()
    filling.peer.acknowledge(first)
    second = filling.peer.frame()
    filling.peer.refuse(second, Status.VIEW_AHEAD, "not yet", 5)
    filling.records.clear()
    again = filling.take()
    assert (again.generation, again.records[0].kind) == (2, Kind.IMPORT_BEGIN)
    filling.peer.acknowledge(again)
    filling.take_all()
    assert state_of(filling.copy) == state_of(filling.engine)


def test_a_copy_that_is_whole_goes_on_after_a_lost_connection(filling: Filling) -> None:
    """Only what was not acknowledged comes again."""
    filling.link.fill(BUCKET)
    filling.take_all()
    filling.set(1, b"lost on its way")
    filling.peer.frame()
    filling.peer.close()
    filling.peer = filling.listener.greet()
    frame = filling.take()
    assert (frame.generation, frame.values) == (2, [b"lost on its way"])
    filling.peer.acknowledge(frame)
    wait_until(lambda: filling.link.acknowledged == filling.engine.stream.head, "the last change")
    assert state_of(filling.copy) == state_of(filling.engine)


@pytest.mark.parametrize("portions", [0, 1])
def test_a_copy_that_is_cancelled_goes_no_further(filling: Filling, portions: int) -> None:
    filling.link.fill(BUCKET)
    frames = [filling.take()]
    if portions:
        filling.peer.acknowledge(frames[0])
        frames.append(filling.take())
    filling.link.cancel(BUCKET)
    assert filling.link.filling() == {}
    filling.peer.acknowledge(frames[-1])
    wait_until(lambda: filling.link.owed_s() == 0.0, "the last answer")
    filling.link.choose([], 6)  # so that the cancel was followed
    filling.set(1, b"none of the peer's")
    wait_until(lambda: filling.link.acknowledged == filling.engine.stream.head, "being passed by")
    assert filling.peer.is_silent()
    assert filling.host.filled == []
    filling.link.fill(BUCKET)
    assert filling.take().records[0].kind == Kind.IMPORT_BEGIN, "and it may begin again"


def test_what_the_peer_has_by_the_view_is_not_filled(filling: Filling) -> None:
    filling.link.choose([BUCKET], 6)
    filling.link.fill(BUCKET)
    assert filling.link.filling() == {}
    assert filling.peer.is_silent()


def test_what_is_filled_is_waited_for_by_nobody(filling: Filling) -> None:
    """Only once it is counted, or about to be, do answers wait for it: that is the control plane's to say."""
    filling.link.fill(BUCKET)
    filling.take()
    filling.set(1, b"value")


def test_a_copy_that_is_waited_for_is_acknowledged_like_any(filling: Filling) -> None:
    """Invariant 6: from when the copy is whole its point moves only by acknowledgements."""
    filling.link.fill(BUCKET)
    filling.take_all()
    head = filling.engine.set_commit_points(BUCKET, [filling.link.point])
    writing = Task(lambda: filling.set(1, b"waited for"))
    frame = filling.take()
    assert_stays(lambda: not writing.is_done and filling.link.acknowledged <= head, "the write")
    filling.peer.acknowledge(frame)
    writing.result()


@pytest.mark.parametrize("is_cancelled", [True, False])
def test_a_copy_that_its_peer_has_no_room_for_is_let_go_of(
    filling: Filling, monkeypatch: pytest.MonkeyPatch, is_cancelled: bool
) -> None:
    """The peer is over its limit, and nothing that it holds can be evicted: it is sent no more rows, and after a while it lets
    go of those it has. What is left is no copy, whole or not; where the peer has room, one is made of all there is."""
    monkeypatch.setattr(debts, "HELD_UP_S", 0.1)
    filling.link.fill(BUCKET)
    filling.peer.acknowledge(filling.take(), room=-1000)
    assert stat(filling.copy, "items", "items") > 0
    wait_until(lambda: filling.link.stats()["fill_rows"] > 0, "the sender's count of them, which may come after the frame")
    rows = filling.link.stats()["fill_rows"]
    while not (frame := filling.take()).records:
        filling.peer.acknowledge(frame, room=-1000)  # a question
    assert [record.kind for record in frame.records] == [Kind.IMPORT_BEGIN]
    assert stat(filling.copy, "items", "items") == 0
    wait_until(lambda: filling.host.without_room > 0, "the word that there is no room")
    assert filling.link.stats()["fill_rows"] == rows, "none was sent again"
    assert filling.link.filling() == {BUCKET: False}
    if is_cancelled:
        filling.link.cancel(BUCKET)
        assert filling.link.filling() == {}
        filling.link.fill(BUCKET)
        filling.records.clear()
    else:
        filling.records = frame.records
    filling.peer.acknowledge(frame)
    filling.take_all()
    assert assert_frames_of_a_copy(filling.records) == ROWS
    assert filling.host.filled == [BUCKET]
    assert state_of(filling.copy) == state_of(filling.engine)
