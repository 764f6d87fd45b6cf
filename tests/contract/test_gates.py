"""Gates: which of a peer's frames an engine may take in by itself, and what becomes of those that it may not."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from rcache.cluster.bucket_state import BucketState
from rcache.engine.contract import ConnectionLimits, Engine, Handback
from rcache.engine.sockets import Ended
from rcache_client.wire.frames import encode_request
from rcache_client.wire.grammar import REQUESTS, Layout
from rcache_client.wire.opcodes import Opcode, Status
from tests.contract.conftest import EngineFactory
from tests.contract.harness import EVERYTHING, PATIENCE_S, Caller, Task, assert_stays, decode_frame, state_of

HEADING = (7, 101, 102, 3)
"""Epoch, both incarnations, generation."""
SOURCE = 5


class Backup:
    """A backup of all buckets of a primary, with a node's connection to it."""

    def __init__(self, make: EngineFactory) -> None:
        self.primary, self.engine = make(), make(opened=0)
        self._reader = self.primary.stream.open_reader("records", holds=True)
        for bucket in range(8):
            self.engine.apply(b"".join(self.primary.copy_bucket(bucket)))
            self.engine.follow(bucket, SOURCE)
        self._opened = ExitStack()
        ours, self.peer = (self._opened.enter_context(sock) for sock in socket.socketpair())
        self.peer.settimeout(PATIENCE_S)
        self.connection = self.engine.connect(ours, ConnectionLimits())
        self.recorded: list[tuple[bytes, int]] = []
        self.gate = self.engine.open_gate(SOURCE, lambda body, count: self.recorded.append((body, count)))
        self._next = 0

    def change(self, *keys: bytes) -> bytes:
        """The records of some changes at the primary."""
        for key in keys:
            Caller(self.primary).set(key, b"value of " + key)
        return bytes(self._reader.take(EVERYTHING, 0.0).body)

    def say(self, body: bytes, heading: tuple[int, int, int, int] = HEADING) -> int:
        layout = REQUESTS[Opcode.RECORDS]
        assert isinstance(layout, Layout)
        self._next += 1
        self.peer.sendall(encode_request(Opcode.RECORDS, self._next, 0, layout.encode(*heading, body)))
        return self._next

    def serve(self) -> Handback | None:
        return self.engine.serve_peer(self.connection, self.gate)

    def handed(self) -> Handback:
        """What is handed back next."""
        while (handback := self.serve()) is None:
            pass
        return handback

    def is_handed(self, body: bytes, heading: tuple[int, int, int, int] = HEADING) -> bool:
        """Whether a frame is handed back, whole and without an answer; else it was taken in, and answered."""
        request_id = self.say(body, heading)
        handback = self.serve()
        if handback is None:
            reply = decode_frame(self.peer.recv(24))
            assert (reply.opcode, reply.status, reply.request_id) == (Opcode.RECORDS, Status.OK, request_id)
            assert len(reply.payload) == 8
            return False
        assert handback.request is not None
        assert (handback.request.opcode, handback.request.request_id) == (Opcode.RECORDS, request_id)
        assert handback.request.payload.endswith(body)
        return True

    def close(self) -> None:
        self._reader.close()
        self._opened.close()


@pytest.fixture
def backup(engine_factory: EngineFactory) -> Iterator[Backup]:
    backup = Backup(engine_factory)
    yield backup
    backup.close()


def native(engine: Engine) -> bool:
    """Whether this body takes frames in by itself."""
    return engine.name == "native"


def test_nothing_is_let_in_before_it_was_allowed(backup: Backup) -> None:
    before = state_of(backup.engine)
    assert backup.is_handed(backup.change(b"key"))
    assert backup.recorded == []
    assert state_of(backup.engine) == before


def test_what_is_like_the_last_one_is_applied_recorded_and_answered(backup: Backup) -> None:
    with backup.gate:
        backup.gate.allow(*HEADING)
    body = backup.change(b"one", b"two", b"three")
    if backup.is_handed(body):
        assert not native(backup.engine), "a body may hand everything back; this one does not"
        return
    assert backup.recorded == [(body, 3)]
    assert backup.gate.counts == (1, 3, len(body))
    more = backup.change(b"one", b"four")
    assert not backup.is_handed(more)
    assert backup.recorded == [(body, 3), (more, 2)]
    assert state_of(backup.engine) == state_of(backup.primary)
    assert not backup.is_handed(b""), "an empty one is as good as any"
    assert len(backup.recorded) == 2


@pytest.mark.parametrize(
    "heading",
    [(8, 101, 102, 3), (6, 101, 102, 3), (7, 100, 102, 3), (7, 101, 103, 3), (7, 101, 102, 4), (7, 101, 102, 2)],
)
def test_another_view_or_node_or_generation_is_not_for_the_engine_to_judge(
    backup: Backup, heading: tuple[int, int, int, int]
) -> None:
    with backup.gate:
        backup.gate.allow(*HEADING)
    before = state_of(backup.engine)
    assert backup.is_handed(backup.change(b"key"), heading)
    assert state_of(backup.engine) == before
    assert backup.recorded == []


def test_what_was_forbidden_or_closed_is_handed_back(backup: Backup) -> None:
    with backup.gate:
        backup.gate.allow(*HEADING)
        backup.gate.forbid()
    assert backup.is_handed(backup.change(b"key"))
    backup.gate.close()
    with backup.gate:
        backup.gate.allow(*HEADING)
    assert backup.is_handed(b"")


def test_nobody_is_let_in_while_the_gate_is_held(backup: Backup) -> None:
    with backup.gate:
        backup.gate.allow(*HEADING)
    body = backup.change(b"key")
    with backup.gate:
        backup.say(body)
        serving = Task(backup.serve)
        before = state_of(backup.engine)
        assert_stays(lambda: state_of(backup.engine) == before, "what is held")
        assert not (serving.is_done and native(backup.engine))
    serving.result()


def test_copies_are_for_python(backup: Backup) -> None:
    """What frames a copy may have to be judged; so may a row."""
    with backup.gate:
        backup.gate.allow(*HEADING)
    copy = b"".join(backup.primary.copy_bucket(0))
    backup.engine.set_state(0, BucketState.ABSENT)
    assert backup.is_handed(copy)
    assert backup.engine.state(0) is BucketState.ABSENT


@pytest.mark.parametrize("cut", [1, 4, 39, -1])
def test_a_frame_of_lies_is_handed_back_and_changes_nothing(backup: Backup, cut: int) -> None:
    with backup.gate:
        backup.gate.allow(*HEADING)
    before = state_of(backup.engine)
    assert backup.is_handed(backup.change(b"key")[:cut])
    assert state_of(backup.engine) == before
    long = bytearray(backup.change(b"other"))
    long[0:4] = b"\xff\xff\xff\xff"
    assert backup.is_handed(bytes(long))
    assert state_of(backup.engine) == before
    assert backup.recorded == []
    assert not backup.gate.take_stumbled()


def test_of_a_frame_that_does_not_apply_to_its_end_the_beginning_is_recorded(backup: Backup) -> None:
    """The rest is Python's, which is told."""
    with backup.gate:
        backup.gate.allow(*HEADING)
    first = backup.change(b"one")
    skipped = backup.change(b"one")
    third = backup.change(b"one")
    assert skipped
    assert backup.is_handed(first + third)
    if native(backup.engine):
        assert backup.recorded == [(first, 1)]
        with backup.gate:
            assert backup.gate.take_stumbled()
            assert not backup.gate.take_stumbled()
    backup.engine.apply(first + skipped + third, SOURCE)
    assert state_of(backup.engine) == state_of(backup.primary)


def test_of_a_frame_of_which_nothing_could_be_recorded_all_is_pythons(backup: Backup) -> None:
    """Were Python told that the beginning is recorded, it would leave that out: the log would have a hole."""

    def fail(_body: bytes, _count: int) -> None:
        raise MemoryError("no memory for what is recorded")

    backup.gate.close()
    backup.gate = backup.engine.open_gate(SOURCE, fail)
    with backup.gate:
        backup.gate.allow(*HEADING)
    first = backup.change(b"one")
    skipped = backup.change(b"one")
    third = backup.change(b"one")
    assert skipped
    assert backup.is_handed(first + third)
    with backup.gate:
        assert not backup.gate.take_stumbled()
    assert backup.gate.counts == (0, 0, 0)
    backup.engine.apply(first + skipped + third, SOURCE)
    assert state_of(backup.engine) == state_of(backup.primary)


def test_what_does_not_follow_this_source_is_not_applied(backup: Backup) -> None:
    with backup.gate:
        backup.gate.allow(*HEADING)
    for bucket in range(8):
        backup.engine.follow(bucket, SOURCE + 1)
    before = state_of(backup.engine)
    assert backup.is_handed(backup.change(b"key"))
    assert state_of(backup.engine) == before
    assert backup.recorded == []


def test_frames_come_cut_anywhere_and_together(backup: Backup) -> None:
    with backup.gate:
        backup.gate.allow(*HEADING)
    layout = REQUESTS[Opcode.RECORDS]
    assert isinstance(layout, Layout)
    bodies = [backup.change(b"k%d" % number, b"l%d" % number) for number in range(9)]
    data = b"".join(encode_request(Opcode.RECORDS, n, 0, layout.encode(*HEADING, body)) for n, body in enumerate(bodies))
    replies = 0
    for at in range(0, len(data), 97):
        backup.peer.sendall(data[at : at + 97])
        if (handback := backup.serve()) is not None:
            assert handback.request is not None
            backup.engine.apply(handback.request.payload[24:], SOURCE)
            replies += 1
    while replies < 9:
        if native(backup.engine):
            assert len(backup.peer.recv(24, socket.MSG_WAITALL)) == 24
        else:
            request = backup.handed().request
            assert request is not None
            backup.engine.apply(request.payload[24:], SOURCE)
        replies += 1
    assert state_of(backup.engine) == state_of(backup.primary)


def test_everything_else_is_handed_back(backup: Backup) -> None:
    backup.peer.sendall(encode_request(Opcode.PING, 9, 0, b""))
    request = backup.handed().request
    assert request is not None
    assert (request.opcode, request.request_id) == (Opcode.PING, 9)
    backup.peer.sendall(b"\xff" * 16)
    bad = backup.handed().bad
    assert bad is not None
    assert bad.status is Status.BAD_MAGIC
    backup.peer.close()


def test_the_end_of_a_connection_is_noticed(backup: Backup) -> None:
    assert backup.serve() is None, "nothing came for a moment"
    backup.peer.shutdown(socket.SHUT_WR)
    assert backup.handed().ended is Ended.CLOSED


def test_without_a_log_nothing_is_recorded(backup: Backup) -> None:
    backup.gate = backup.engine.open_gate(SOURCE, None)
    with backup.gate:
        backup.gate.allow(*HEADING)
    body = backup.change(b"key")
    if backup.is_handed(body):
        backup.engine.apply(body, SOURCE)
    assert state_of(backup.engine) == state_of(backup.primary)
