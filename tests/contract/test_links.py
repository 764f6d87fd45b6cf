"""What links are made of: records of some buckets sent from the stream, applied elsewhere, acknowledged, waited for."""

from __future__ import annotations

import random
import socket
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from rcache.cluster.bucket_state import BucketState
from rcache.engine.change_stream import CommitPoint, LinkFrame, StreamReader
from rcache.engine.contract import Engine
from rcache.engine.sockets import Ended
from rcache.records.record import decode, heads
from rcache_client.wire.frames import Request, RequestReader
from rcache_client.wire.opcodes import Opcode, Status
from tests.contract.conftest import EngineFactory
from tests.contract.harness import EVERYTHING, PATIENCE_S, Caller, Task, assert_stays, state_of, wait_until

RECORDS = 0x90
"""An opcode of no meaning to the engine."""
FRAME = LinkFrame(RECORDS, 77, b"epoch and incarnations")


def bucket_of(key: bytes) -> int:
    return zlib.crc32(key) % 8


@pytest.fixture
def reader(engine: Engine) -> Iterator[StreamReader]:
    reader = engine.stream.open_reader("link", holds=True)
    yield reader
    reader.close()


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two connected sockets."""
    with ExitStack() as opened:
        ours, theirs = (opened.enter_context(sock) for sock in socket.socketpair())
        theirs.settimeout(PATIENCE_S)
        yield ours, theirs


class Frames:
    """Reads request frames from a socket."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._reader = RequestReader(1 << 30)

    def next(self) -> Request | None:
        """The next frame; None where the other end has closed, in the middle of one or not."""
        while (request := self._reader.next()) is None:
            data = self._sock.recv(1 << 20)
            if not data:
                return None
            self._reader.feed(data)
        return request


def body_of(request: Request | None) -> bytes:
    """The records in a frame that is as it must be."""
    assert request is not None
    assert (request.opcode, request.request_id, request.budget_ms) == (RECORDS, 77, 0)
    assert request.payload.startswith(FRAME.prefix)
    return request.payload[len(FRAME.prefix) :]


# --- choosing


def test_a_choice_passes_by_what_is_of_other_buckets(engine: Engine, caller: Caller, reader: StreamReader) -> None:
    keys = [b"k%d" % number for number in range(100)]
    for key in keys:
        caller.set(key, b"value")
    reader.choose([2, 5])
    batch = reader.take(EVERYTHING, 0.0)
    assert [decode(record).key for record in batch.records] == [key for key in keys if bucket_of(key) in (2, 5)]
    assert batch.count == len(batch.records)
    assert batch.position == engine.stream.head, "what is not for it is passed by"


def test_what_was_not_chosen_alone_still_moves_the_reader(engine: Engine, caller: Caller, reader: StreamReader) -> None:
    reader.choose([])
    caller.set(b"key", b"value")
    batch = reader.take(EVERYTHING, PATIENCE_S)
    assert (batch.body, batch.count, batch.position) == (b"", 0, engine.stream.head)
    reader.choose(None)
    caller.set(b"key", b"value")
    assert reader.take(EVERYTHING, PATIENCE_S).count == 1


def test_a_choice_holds_from_where_it_was_made(engine: Engine, caller: Caller, reader: StreamReader) -> None:
    keys = [next(b"%d" % n for n in range(1000) if bucket_of(b"%d" % n) == bucket) for bucket in range(8)]
    for round_ in range(3):
        for key in keys:
            caller.set(key, b"%d" % round_)
        reader.choose([round_, round_ + 1])
        assert [decode(r).key for r in reader.take(EVERYTHING, 0.0).records] == keys[round_ : round_ + 2]


def test_a_small_batch_of_a_choice_goes_on_where_it_stopped(engine: Engine, caller: Caller, reader: StreamReader) -> None:
    keys = [b"k%d" % number for number in range(200)]
    for key in keys:
        caller.set(key, bytes(50))
    reader.choose([1, 3, 4])
    taken = []
    while (batch := reader.take(250, 0.0)).count:
        assert len(batch.body) <= 250
        taken += [decode(record).key for record in batch.records]
    assert taken == [key for key in keys if bucket_of(key) in (1, 3, 4)]


# --- sending


def test_records_are_sent_as_they_are(
    engine: Engine, caller: Caller, reader: StreamReader, ends: tuple[socket.socket, socket.socket]
) -> None:
    other = engine.stream.open_reader("other", holds=True)
    for number in range(50):
        caller.set(b"k%d" % number, bytes(number))
    caller.delete(b"k7")
    sent = reader.send(ends[0], FRAME, EVERYTHING, PATIENCE_S)
    expected = other.take(EVERYTHING, 0.0)
    assert (sent.count, sent.position, sent.lost, sent.ended) == (51, engine.stream.head, False, None)
    assert body_of(Frames(ends[1]).next()) == expected.body
    other.close()


def test_only_a_reader_that_holds_can_send(engine: Engine, caller: Caller, ends: tuple[socket.socket, socket.socket]) -> None:
    """What it sends must stay until it is sent; one that does not hold makes nobody wait for that."""
    loose = engine.stream.open_reader("loose", holds=False)
    caller.set(b"key", b"value")
    with pytest.raises(ValueError, match="only a reader that holds"):
        loose.send(ends[0], FRAME, EVERYTHING, 0.0)
    assert loose.take(EVERYTHING, 0.0).count == 1
    loose.close()


def test_where_there_is_nothing_nothing_is_sent(
    engine: Engine, caller: Caller, reader: StreamReader, ends: tuple[socket.socket, socket.socket]
) -> None:
    head = engine.stream.head
    sent = reader.send(ends[0], FRAME, EVERYTHING, 0.01)
    assert (sent.count, sent.position, sent.ended) == (0, head, None)
    reader.choose([(bucket_of(b"key") + 1) % 8])
    caller.set(b"key", b"value")
    sent = reader.send(ends[0], FRAME, EVERYTHING, PATIENCE_S)
    assert (sent.count, sent.position, sent.ended) == (0, engine.stream.head, None)
    ends[1].setblocking(False)
    with pytest.raises(BlockingIOError):
        ends[1].recv(1)


def test_what_is_sent_wakes_the_sender(caller: Caller, reader: StreamReader, ends: tuple[socket.socket, socket.socket]) -> None:
    sending = Task(lambda: reader.send(ends[0], FRAME, EVERYTHING, PATIENCE_S))
    caller.set(b"key", b"value")
    assert sending.result().count == 1
    assert decode(body_of(Frames(ends[1]).next())).key == b"key"


def test_a_choice_cuts_the_stream_into_many_pieces(
    engine: Engine, caller: Caller, reader: StreamReader, ends: tuple[socket.socket, socket.socket]
) -> None:
    """More than one call of the kernel takes: what is left goes into the next frame."""
    first, second = (next(b"%d" % n for n in range(1000) if bucket_of(b"%d" % n) == bucket) for bucket in (0, 1))
    for number in range(2000):
        caller.set(second if number % 2 else first, b"%d" % number)
    reader.choose([0])
    frames, values = Frames(ends[1]), []
    while (sent := reader.send(ends[0], FRAME, EVERYTHING, 0.0)).count:
        body = body_of(frames.next())
        values += [decode(body, head.start, head.end).value for head in heads(body)]
    assert values == [b"%d" % number for number in range(0, 2000, 2)]
    assert sent.position == engine.stream.head


def test_the_stream_goes_round_many_times(engine_factory: EngineFactory, ends: tuple[socket.socket, socket.socket]) -> None:
    engine = engine_factory(stream_bytes=1 << 20)
    reader = engine.stream.open_reader("link", holds=True)
    reader.choose([1, 2, 6])
    caller, frames, expected, found = Caller(engine), Frames(ends[1]), [], []
    chosen = random.Random(20261125)
    for number in range(300):
        key, value = b"k%d" % chosen.randrange(50), chosen.randbytes(chosen.choice([10, 1000, 40_000]))
        caller.set(key, value)
        if bucket_of(key) in (1, 2, 6):
            expected.append((key, value))
        if number % 3 == 2:
            sending = Task(lambda: reader.send(ends[0], FRAME, EVERYTHING, 0.0))
            wanted = len(expected) > len(found)
            if wanted:
                body = body_of(frames.next())
                records = [decode(body, head.start, head.end) for head in heads(body)]
                found += [(record.key, record.value) for record in records]
            sent = sending.result()
            assert sent.ended is None
            assert (sent.count > 0) is wanted
            reader.release(sent.position)
    assert found == expected
    assert engine.stream.head > 4 * engine.config.stream_bytes
    reader.close()


@pytest.mark.parametrize("blocking", [True, False])
def test_a_peer_that_takes_nothing_is_given_up(
    caller: Caller, reader: StreamReader, ends: tuple[socket.socket, socket.socket], blocking: bool
) -> None:
    ends[0].setblocking(blocking)
    for number in range(60):
        caller.set(b"k%d" % number, bytes(60_000))
    sent = reader.send(ends[0], LinkFrame(RECORDS, 1, b"", send_s=0.05), EVERYTHING, 0.0)
    assert sent.ended is Ended.SLOW_READER


def test_a_peer_that_has_gone_is_noticed(
    caller: Caller, reader: StreamReader, ends: tuple[socket.socket, socket.socket]
) -> None:
    caller.set(b"key", b"value")
    ends[1].close()
    assert reader.send(ends[0], FRAME, EVERYTHING, 0.0).ended is Ended.LOST


def test_a_slow_peer_gets_all_of_it(
    engine: Engine, caller: Caller, reader: StreamReader, ends: tuple[socket.socket, socket.socket]
) -> None:
    other = engine.stream.open_reader("other", holds=True)
    for number in range(60):
        caller.set(b"k%d" % number, bytes([number]) * 60_000)
    sending = Task(lambda: reader.send(ends[0], FRAME, EVERYTHING, 0.0))
    assert body_of(Frames(ends[1]).next()) == other.take(EVERYTHING, 0.0).body
    assert sending.result().ended is None
    other.close()


def test_what_is_not_released_is_kept(engine_factory: EngineFactory, ends: tuple[socket.socket, socket.socket]) -> None:
    """Until it is acknowledged what was sent stays in the stream, and writers wait for room."""
    engine = engine_factory(stream_bytes=1 << 20)
    reader = engine.stream.open_reader("link", holds=True)
    caller, frames = Caller(engine), Frames(ends[1])
    refused, position = 0, 0
    for number in range(40):
        refused += caller.ask(Opcode.SET, 0, 0, b"k%d" % number, bytes(50_000), budget_ms=20).status is Status.BUSY
        sending = Task(lambda: reader.send(ends[0], FRAME, EVERYTHING, 0.0))
        if engine.stream.head > position:
            frames.next()
        position = sending.result().position
    assert refused > 10
    reader.release(position)
    assert caller.ask(Opcode.SET, 0, 0, b"key", bytes(50_000), budget_ms=20).status is Status.OK
    reader.close()


# --- up to a position, and back


def test_nothing_behind_a_position_is_sent(
    engine: Engine, caller: Caller, reader: StreamReader, ends: tuple[socket.socket, socket.socket]
) -> None:
    other = engine.stream.open_reader("other", holds=True)
    caller.set(b"one", b"value")
    caller.set(b"two", b"value")
    until = engine.stream.head
    caller.set(b"three", b"value")
    frames = Frames(ends[1])
    sent = reader.send(ends[0], FRAME, EVERYTHING, PATIENCE_S, until)
    assert (sent.count, sent.position, sent.ended) == (2, until, None)
    body = body_of(frames.next())
    assert [decode(body, head.start, head.end).key for head in heads(body)] == [b"one", b"two"]
    assert body == other.take(EVERYTHING, 0.0).body[: len(body)]
    for position in (until, until - 1, 0):
        began = time.monotonic()
        sent = reader.send(ends[0], FRAME, EVERYTHING, PATIENCE_S, position)
        assert (sent.count, sent.position, sent.ended) == (0, until, None)
        assert time.monotonic() - began < PATIENCE_S / 2, "and nothing is waited for"
    assert reader.send(ends[0], FRAME, EVERYTHING, PATIENCE_S).count == 1
    assert decode(body_of(frames.next())).key == b"three"
    began = time.monotonic()
    assert reader.send(ends[0], FRAME, EVERYTHING, PATIENCE_S, engine.stream.head).count == 0
    assert time.monotonic() - began < PATIENCE_S / 2, "nor where there is nothing more at all"
    other.close()


def test_what_is_not_chosen_is_looked_at_up_to_a_position_too(
    engine: Engine, caller: Caller, reader: StreamReader, ends: tuple[socket.socket, socket.socket]
) -> None:
    reader.choose([(bucket_of(b"key") + 1) % 8])
    caller.set(b"key", b"value")
    until = engine.stream.head
    caller.set(b"key", b"value")
    assert reader.send(ends[0], FRAME, EVERYTHING, PATIENCE_S, until).position == until
    assert reader.send(ends[0], FRAME, EVERYTHING, PATIENCE_S).position == engine.stream.head


def test_until_a_position_that_is_to_come_there_is_something_to_wait_for(
    engine: Engine, caller: Caller, reader: StreamReader, ends: tuple[socket.socket, socket.socket]
) -> None:
    until = engine.stream.head + 1
    assert reader.send(ends[0], FRAME, EVERYTHING, 0.01, until).count == 0
    sending = Task(lambda: reader.send(ends[0], FRAME, EVERYTHING, PATIENCE_S, until))
    assert_stays(lambda: not sending.is_done, "the wait")
    caller.set(b"key", b"value")
    caller.set(b"key", b"value")
    assert sending.result().count == 1, "a record that begins before it is whole"


def test_a_reader_reads_again_from_where_it_was(
    engine: Engine, caller: Caller, reader: StreamReader, ends: tuple[socket.socket, socket.socket]
) -> None:
    positions = [engine.stream.head]
    for number in range(20):
        caller.set(b"k%d" % number, bytes(number))
        positions.append(engine.stream.head)
    reader.choose([bucket_of(b"k7"), bucket_of(b"k8")])
    first = reader.take(EVERYTHING, 0.0)
    frames = Frames(ends[1])
    for position in (positions[0], positions[-1], positions[0]):
        reader.rewind(position)
        sent = reader.send(ends[0], FRAME, EVERYTHING, 0.0)
        assert sent.position == engine.stream.head
        if position == positions[0]:
            assert body_of(frames.next()) == first.body
    reader.choose(None)
    for number, position in enumerate(positions):
        reader.rewind(position)
        assert [decode(record).key for record in reader.take(EVERYTHING, 0.0).records] == [
            b"k%d" % n for n in range(number, 20)
        ]
    reader.rewind(positions[5])
    assert reader.take(1, 0.0).position == positions[6], "and goes on from there"


def test_a_reader_goes_back_only_to_where_it_has_been(engine: Engine, caller: Caller, reader: StreamReader) -> None:
    positions = [engine.stream.head]
    for number in range(5):
        caller.set(b"k%d" % number, bytes(number))
        positions.append(engine.stream.head)
    reader.take(1, 0.0)
    reader.take(1, 0.0)
    reader.take(1, 0.0)
    reader.release(positions[1])
    off = (0, positions[1] - 1, positions[2] - 1, positions[2] + 1, 1 << 40, (1 << 64) - 1)
    for position in (*off, positions[0], positions[4]):
        with pytest.raises(ValueError, match="come by and not released"):
            reader.rewind(position)
    assert reader.take(1, 0.0).position == positions[4], "it is where it was"
    reader.rewind(positions[1])
    assert reader.take(1, 0.0).position == positions[2]
    reader.release(positions[5])
    with pytest.raises(ValueError, match="come by and not released"):
        reader.rewind(positions[2])


def test_only_a_reader_that_holds_goes_back(engine: Engine, caller: Caller) -> None:
    loose = engine.stream.open_reader("loose", holds=False)
    position = engine.stream.head
    caller.set(b"key", b"value")
    loose.take(1, 0.0)
    with pytest.raises(ValueError, match="only a reader that holds"):
        loose.rewind(position)
    loose.close()


def test_a_reader_goes_back_over_the_end_of_the_ring(engine_factory: EngineFactory) -> None:
    engine = engine_factory(stream_bytes=1 << 20)
    reader = engine.stream.open_reader("link", holds=True)
    caller, chosen = Caller(engine), random.Random(20261225)
    positions, values = [engine.stream.head], []
    for number in range(400):
        values.append(chosen.randbytes(chosen.choice([10, 1000, 30_000])))
        caller.set(b"k%d" % (number % 7), values[-1])
        positions.append(engine.stream.head)
        assert reader.take(1, 0.0).position == positions[-1]
        back = chosen.randrange(1, 10)
        if number >= 20:
            reader.release(positions[-15])
            reader.rewind(positions[-1 - back])
            batch = reader.take(EVERYTHING, 0.0)
            assert [decode(record).value for record in batch.records] == values[-back:]
    assert engine.stream.head > 4 * engine.config.stream_bytes
    reader.close()


# --- two engines looped


class Link:
    """A primary's link to a backup, for some buckets: one thread sends, one applies, one takes in acknowledgements."""

    def __init__(self, primary: Engine, backup: Engine, buckets: list[int]) -> None:
        self.primary, self.backup, self.buckets = primary, backup, buckets
        self.reader = primary.stream.open_reader("link", holds=True)
        self.reader.choose(buckets)
        self.point: CommitPoint = primary.open_commit_point("link", primary.stream.head)
        for bucket in buckets:
            primary.set_commit_points(bucket, [self.point])
        self.ours, self.theirs = socket.socketpair()
        self._stopping = threading.Event()
        self._positions: list[int] = []
        self._known = threading.Lock()
        self._tasks = [Task(self._send), Task(self._apply), Task(self._acknowledge)]

    def _send(self) -> None:
        """Frames carry no positions: acknowledgements come in their order."""
        while not self._stopping.is_set():
            before = self.primary.stream.head
            sent = self.reader.send(self.ours, FRAME, 64 << 10, 0.02)
            if sent.ended is not None:
                return
            if sent.count:
                with self._known:
                    self._positions.append(sent.position)
            elif sent.position >= before:
                with self._known:
                    idle = not self._positions
                if idle:  # nothing is under way, and what was looked at is not for the peer
                    self.point.advance(sent.position)
                    self.reader.release(sent.position)
        self.ours.shutdown(socket.SHUT_WR)

    def _apply(self) -> None:
        frames = Frames(self.theirs)
        while (request := frames.next()) is not None:
            self.backup.apply(memoryview(request.payload)[len(FRAME.prefix) :])
            self.theirs.sendall(b"a")
        self.theirs.close()

    def _acknowledge(self) -> None:
        while count := len(self.ours.recv(1 << 10)):
            for _ in range(count):
                wait_until(lambda: bool(self._positions), "the sender to note what it sent")
                with self._known:
                    position = self._positions.pop(0)
                self.point.advance(position)
                self.reader.release(position)

    def close(self) -> None:
        self._stopping.set()
        for task in self._tasks:
            task.result()
        self.ours.close()
        self.reader.close()


def fill(primary: Engine, backup: Engine, buckets: list[int]) -> None:
    """Copy buckets, while nobody writes."""
    for bucket in buckets:
        backup.apply(b"".join(primary.copy_bucket(bucket)))
        assert backup.state(bucket) is BucketState.BACKUP


def test_a_backup_has_every_write_that_was_acknowledged(engine_factory: EngineFactory) -> None:
    """Writers in several threads; after each acknowledgement the backup has what was written, or something newer."""
    primary, backup = engine_factory(), engine_factory(opened=0)
    for number in range(200):
        Caller(primary).set(b"old%d" % number, bytes(number))
    buckets = list(range(8))
    fill(primary, backup, buckets)
    link = Link(primary, backup, buckets)

    def write(writer: int) -> None:
        chosen, caller = random.Random(writer), Caller(primary)
        for number in range(100):
            key = b"w%d.%d" % (writer, chosen.randrange(20))
            if chosen.random() < 0.2:
                status, _ = caller.delete(key, budget_ms=60_000)
                assert status in (Status.OK, Status.NOT_FOUND)
                expected = None
            else:
                expected = b"%d" % number
                caller.set(key, expected, budget_ms=60_000)
            with_backup = {k: v for k, v in state_of(backup)[bucket_of(key)].items() if k == key}
            assert ([row[0] for row in with_backup.values()] or [None]) == [expected], (key, number)

    for task in [Task(lambda n=n: write(n)) for n in range(3)]:
        task.result()
    link.close()
    assert state_of(backup) == state_of(primary)
    assert {primary.state(bucket) for bucket in buckets} == {BucketState.PRIMARY}
    backup.check()


def test_a_backup_takes_over_with_all_that_was_acknowledged(engine_factory: EngineFactory) -> None:
    """The link dies: no write of its buckets is acknowledged any more, and the backup, opened, has all that were."""
    primary, backup = engine_factory(), engine_factory(opened=0)
    buckets = [1, 3, 5, 7]
    fill(primary, backup, buckets)
    link = Link(primary, backup, buckets)
    caller, acknowledged = Caller(primary), {}
    for number in range(150):
        caller.set(b"k%d" % number, b"before", budget_ms=60_000)
        acknowledged[b"k%d" % number] = b"before"
    link.close()
    for number in range(16):
        key = b"k%d" % number
        status, _ = caller.ask(Opcode.SET, 0, 0, key, b"after", budget_ms=30)
        assert (status is Status.OK) is (bucket_of(key) not in buckets)
    backup.open_buckets(buckets, 2, 1, "n2")
    heir = Caller(backup)
    for key, value in acknowledged.items():
        if bucket_of(key) in buckets:
            assert heir.value(key) == value
    assert heir.ask(Opcode.GET, next(k for k in acknowledged if bucket_of(k) == 2)).status is Status.NOT_PRIMARY


def test_a_view_without_the_backup_sets_the_waiting_free(engine_factory: EngineFactory) -> None:
    primary, backup = engine_factory(), engine_factory(opened=0)
    buckets = list(range(8))
    fill(primary, backup, buckets)
    link = Link(primary, backup, buckets)
    Caller(primary).set(b"key", b"value", budget_ms=60_000)
    link.close()
    head = primary.stream.head
    writing = Task(lambda: Caller(primary).ask(Opcode.SET, 0, 0, b"key", b"alone", budget_ms=60_000))
    wait_until(lambda: primary.stream.head > head or primary.stats()["items"]["sets"] == 2, "the change")
    assert not writing.is_done
    link.point.close()
    assert writing.result().status is Status.OK
    assert Caller(primary).value(b"key") == b"alone"
