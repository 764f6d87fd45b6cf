"""What peers send, true and not, into the native engine: `python -m tests.engine.fuzz_peers --seed 1 --inputs 100000`.

What it is: `fuzz` for the frames between nodes, over pairs of sockets. One half are frames of records and questions into a gate
and the intake behind it: valid ones, and others cut, spliced, of another view, incarnation or generation, or with records that
lie. In some campaigns these are changes alone, to whole copies; what is recorded of them goes to a second engine, as a log
would be read again: it must take all of it, and hold the same.
The other half are answers into a window: of what is sent to a peer the one frame is answered as it should be, another twice,
not, or with what is no answer; with rooms of every size and sign, and views that are older or newer. Then a peer that tells the
truth must find nothing of all that left.
Which thread runs it: the main one, and at times one that takes answers in. Seeds are printed; the same seed and count make the
same inputs, up to what the clock does to requests that wait.
"""

from __future__ import annotations

import argparse
import contextlib
import socket
import struct
import threading
import time
from random import Random

from loguru import logger

from rcache.cluster.leases import Peer
from rcache.engine.change_stream import HELD_FOR_EVER, Window, WindowTerms
from rcache.engine.clock import NodeClock
from rcache.engine.contract import ConnectionLimits, EngineConfig
from rcache.engine.native.engine import NativeEngine
from rcache.engine.sockets import Ended
from rcache.peers.intake import Heading, Intake
from rcache.records.record import BadRecord, Kind, Opening, decode, encode_opening, heads, make_sequence
from rcache.stream.applied import AppliedStream
from rcache_client.wire.frames import BadFrame, ReplyReader, Request, RequestReader, encode_reply, encode_request
from rcache_client.wire.grammar import REQUESTS, BadPayload, Layout
from rcache_client.wire.opcodes import Opcode, Status
from tests.engine.fuzz import BUCKETS, CHECK_EVERY, LENGTHS, MAKERS, ODD, Campaign

INPUTS_A_CAMPAIGN = 4000
SOURCE = 1
SENT_BYTES_MAX = 100_000
"""Of one input: what fits into a socket whose other end is not read yet. What is behind that is cut off."""

FAR_GENERATION = 1 << 31
"""Nothing is left behind it for what goes on."""

LIMITS = ConnectionLimits(10.0, 10.0, 10.0, 0.5)
ROOMS = (0, 1, -1, 500, 5000, 100_000, -5000, 1 << 40, -(1 << 40), (1 << 63) - 1, (1 << 63) - 2, -(1 << 63))
REST_S = 10.0


class GateCampaign(Campaign):
    """A backup, and what comes to it from one peer. `compares`: changes alone come, to whole copies."""

    def __init__(self, random: Random) -> None:
        super().__init__(random, backups=(4, 6, 8))
        self.engine.epoch = 5
        for bucket in self.backups:
            self.engine.follow(bucket, SOURCE)
        self.applied_stream = AppliedStream(1 << 26)
        self.intake = self.new_intake()
        shape = EngineConfig(
            buckets=BUCKETS,
            stripes=1,
            memory_bytes=1 << 20,
            value_bytes_max=1 << 17,
            frame_bytes_max=1 << 18,
            stream_bytes=1 << 20,
        )
        self.replica = NativeEngine(shape, NodeClock())
        self.generation = 1
        self.begun = 0
        self.sent: dict[int, int] = {}  # of this generation: the newest sequence, by bucket
        self.compares = random.random() < 0.5
        if self.compares:
            for bucket in self.backups:
                self.begin_copy(bucket)

    def new_intake(self) -> Intake:
        return Intake(Peer("n2", 2), SOURCE, self.engine, self.applied_stream, lambda _bucket: True, durable=False)

    def renew_intake(self) -> None:
        """The peer was started anew."""
        self.generation = 1
        self.applied += self.intake.frames
        self.intake.stop()
        self.intake = self.new_intake()

    def begin_copy(self, bucket: int) -> None:
        """A whole copy of nothing, here and there."""
        marks = [self.record(kind, bucket, 9, value) for kind, value in ((6, b""), (7, struct.pack(">QQ", 9, 0)))]
        self.engine.apply(b"".join(marks), SOURCE)
        self.replica.apply(b"".join(marks))

    def record(self, kind: int, bucket: int, sequence: int, value: bytes, key: bytes = b"", expires_at: int = 0) -> bytes:
        length = 40 + len(key) + len(value)
        fixed = struct.pack(">IBBHIIQQQ", length, kind, 0, len(key), bucket, 7, sequence, self.clock.ms, expires_at)
        return fixed + key + value

    def spoil(self, whole: bytes) -> bytes:
        """Where logs are compared what lies is not a sequence: what is known would go to the log once more."""
        return whole[: self.random.randrange(len(whole) + 1)] if self.compares else super().spoil(whole)

    def make_changes(self, bucket: int) -> bytes:
        """Some that follow on each other and on what was sent; but at times one is missing, or another bucket's. (What is known
        is sent again by the first frame of a generation alone: else the log would have it twice.)"""
        random, body = self.random, b""
        known = 0
        if self.begun != self.generation:
            self.begun, self.sent, known = self.generation, {}, random.choice([0, 0, 1, 3])
        sequence = self.sent.get(bucket, self.engine.sequence(bucket)) - known
        for _ in range(known + random.choice([0, 1, 1, 2, 5])):
            sequence = (max(sequence, 0) + random.choice([1] * 60 + [2])) & (1 << 64) - 1
            key = random.choice(self.keys_here[bucket] if random.random() < 0.98 and self.keys_here[bucket] else self.keys)
            what = random.random()
            if what < 0.7:
                body += self.record(2, bucket, sequence, self.make_value(), key, random.choice([0, 0, self.clock.ms + 1000]))
            elif what < 0.95:
                body += self.record(3, bucket, sequence, b"", key)
            elif what < 0.97:
                body += self.record(4, bucket, sequence, b"")
            else:
                opening = encode_opening(Opening(sequence - random.choice([1, 1, 1, 2]) & (1 << 64) - 1, 1, "n2"))
                sequence = make_sequence((sequence >> 40) + 1 & 0xFFFFFF, 0)
                body += self.record(1, bucket, sequence, opening)
        self.sent[bucket] = sequence
        return body

    def heading(self) -> list[int]:
        """Epoch, incarnations, generation: those that go on, most of the time."""
        random = self.random
        heading = [5, 2, 1, self.generation]
        if random.random() < 0.05:
            heading[random.randrange(4)] = random.choice([1, 3, 4, 5, 6, *LENGTHS[-4:]]) & 0xFFFFFFFF
            # One generation has what is known in its first frame, and no other; and one of the far end would be the last.
            heading[3] = min(heading[3], self.generation + (0 if self.compares else 3))
        return heading

    def records_frame(self) -> bytes:
        random = self.random
        bucket, heading = random.choice(tuple(self.backups)), self.heading()
        if self.compares:
            body = self.make_changes(bucket)
        else:
            body = b"".join(self.make_record(bucket) for _ in range(random.choice([0, 1, 1, 2, 5])))
        if random.random() < (0.02 if self.compares else 0.3):
            body = self.spoil(body)
        payload = struct.pack(">IQQI", *heading) + body
        if random.random() < 0.02:
            payload = payload[: random.randrange(30)]
        frame = encode_request(random.choice([Opcode.RECORDS] * 30 + [Opcode.SET]), random.getrandbits(32), 0, payload)
        return self.spoil(frame) if random.random() < 0.05 else frame

    def one(self) -> None:
        self.clock.ms += self.random.choice([0, 0, 1, 5])
        self.generation += self.random.random() < 0.02
        data = b"".join(self.records_frame() for _ in range(self.random.choice([1, 2, 4])))[:SENT_BYTES_MAX]
        here, there = socket.socketpair()
        with here, there:
            there.sendall(data)
            there.shutdown(socket.SHUT_WR)
            self.serve(here)
            here.shutdown(socket.SHUT_WR)
            self.read_replies(there)
        self.read_log()
        self.look_on()

    def serve(self, sock: socket.socket) -> None:
        connection = self.engine.connect(sock, LIMITS)
        gate = self.intake.gate if self.random.random() < 0.8 else None
        while (served := self.engine.serve_peer(connection, gate)) is None or served.ended is Ended.FRAME:
            if served is None:
                continue
            assert served.request is not None
            status = self.take(served.request)
            if status is None:
                return
            gate = self.intake.gate
            payload = struct.pack(">q", gate.lend()) if status is Status.OK else b""
            connection.send(encode_reply(Opcode.RECORDS, status, served.request.request_id, self.engine.epoch, payload))
        assert served.ended in (Ended.BAD_FRAME, Ended.CLOSED, Ended.LOST), served
        self.executed += served.ended is Ended.CLOSED
        self.refused += served.ended is Ended.BAD_FRAME

    def take(self, request: Request) -> Status | None:
        """As a node does, as far as it goes here. None: the connection ends."""
        layout = REQUESTS[Opcode.RECORDS]
        assert isinstance(layout, Layout)
        if request.opcode != Opcode.RECORDS:
            return None
        try:
            epoch, sender, receiver, generation, records = layout.decode(request.payload)
        except BadPayload:
            return None
        named, whole = buckets_of(records)
        if any(bucket >= BUCKETS for bucket in named) or (self.compares and not whole):
            return None  # what an intake does with these is none of what is looked at here
        if epoch > self.engine.epoch:
            self.intake.refuse(generation)
            return Status.VIEW_AHEAD
        if self.generation < generation:
            self.generation = generation + 1
        if generation >= FAR_GENERATION:
            self.renew_intake()
            return None
        status = self.intake.take(Heading(epoch, sender, receiver, generation), records, lambda _bucket: SOURCE).status
        if status is not Status.OK:
            self.generation += 1
        return status

    def read_replies(self, sock: socket.socket) -> None:
        """Whole ones; and none lends more than one may have."""
        reader, most = ReplyReader(1 << 20), self.engine.stats()["credit"]["lent"]["bytes_each_max"]
        sock.settimeout(5.0)
        while data := sock.recv(1 << 16):
            reader.feed(data)
            while (reply := reader.next()) is not None:
                if reply.status == Status.OK:
                    (room,) = struct.unpack(">q", reply.payload)
                    assert -(1 << 40) < room <= most, (room, most)

    def read_log(self) -> None:
        """What was recorded fits together: no hole, nothing twice."""
        body = self.applied_stream.take(1 << 30).body
        if self.compares:
            self.replica.apply(body)

    def look_on(self) -> None:
        """Copies are let go of now and then, or all that is lent; and where a generation was refused for good, a new intake."""
        random = self.random
        if random.random() < 0.003 and not self.compares:
            self.intake.let_go_of_unfinished(0.0, lambda _bucket: SOURCE)
        if random.random() < 0.001:
            self.renew_intake()
        if random.random() < 0.01:
            for bucket in self.backups:
                self.sequences[bucket] = self.engine.sequence(bucket)

    def look_after(self) -> None:
        self.intake.let_go_of_unfinished(0.0, lambda _bucket: SOURCE)
        self.read_log()
        self.read()
        self.engine.trim()
        self.engine.check()
        self.replica.check()
        for bucket in self.backups if self.compares else ():
            assert self.engine.state(bucket) is self.replica.state(bucket), bucket
            assert rows_of(self.engine, bucket) == rows_of(self.replica, bucket), bucket

    def finish(self) -> None:
        self.look_after()
        self.applied += self.intake.frames
        self.intake.stop()
        assert self.engine.stats()["credit"]["lent"]["peers"] == 0


def buckets_of(records: bytes) -> tuple[list[int], bool]:
    """Those named by the records up to the first that is none; and whether there is none such."""
    found: list[int] = []
    try:
        for head in heads(records):
            found.append(head.bucket)  # noqa: PERF401  kept when the walk ends early
    except BadRecord:
        return found, False
    return found, True


def rows_of(engine: NativeEngine, bucket: int) -> tuple[int, set[tuple[object, ...]]]:
    """A bucket's sequence, and what is in it."""
    bodies = b"".join(engine.copy_bucket(bucket))
    rows = [decode(bodies, head.start, head.end) for head in heads(bodies) if head.kind == Kind.ROW]
    return engine.sequence(bucket), {(row.key, row.value, row.sequence, row.flags, row.expires_at_ms) for row in rows}


class AnswerCampaign(Campaign):
    """A primary, and what its backup answers."""

    def __init__(self, random: Random) -> None:
        super().__init__(random, backups=(0,), confirm_reads=random.random() < 0.5, default_budget_s=0.001)
        budgets = [random.choice([1, 1, 1, 2]) for _ in self.frames]
        self.frames = [
            encode_request(opcode, random.getrandbits(32), budget, MAKERS[opcode](self))
            for budget in budgets
            for opcode in [random.choice([*MAKERS, Opcode.SET, Opcode.SET, Opcode.GET])]
        ]
        self.point = self.engine.open_commit_point("peer", self.engine.stream.head, HELD_FOR_EVER)
        self.buckets = random.sample(range(BUCKETS), random.choice([2, 5]))
        terms = WindowTerms(Opcode.RECORDS, random.choice([100, 1 << 16]), 0.002)
        self.window: Window = self.engine.stream.open_window("peer", terms, self.point)
        self.epoch = 1
        self.window.set_prefix(b"prefix", self.epoch)
        self.window.choose(self.buckets)
        for bucket in self.buckets:
            self.engine.set_commit_points(bucket, [self.point])
        self.acknowledged = self.window.acknowledged

    def one(self) -> None:
        """One connection: some requests, what they have sent, and the answers to that."""
        self.clock.ms += self.random.choice([0, 0, 1, 5])
        ours, theirs = socket.socketpair()
        with ours, theirs:
            theirs.setblocking(False)
            connection, peer = self.window.begin(ours), LyingPeer(self.random, theirs)
            for _ in range(self.random.choice([1, 3, 10])):
                if self.step(peer) is not None:
                    break
                self.look_at()
            self.window.run(0.0)
            peer.answer(self.epoch)
            with contextlib.suppress(OSError):
                theirs.shutdown(socket.SHUT_RDWR)
            self.receive(connection)
            self.window.end()
        self.look_at()
        self.executed += 1

    def step(self, peer: LyingPeer) -> Ended | None:
        random = self.random
        self.read_if_full()
        data = b"".join(random.choices(self.frames, k=random.choice([1, 1, 2])))
        _, ending, _, _ = self.core.feed(self.connection, data)
        if ending == 3:  # longer than frames may be here
            self.connect()
        what = random.random()
        if what < 0.05:
            self.window.begin(None)
        elif what < 0.1:
            self.epoch += 1
            self.window.set_prefix(b"prefix", self.epoch)
        elif what < 0.13:
            self.replace_point()
        elif what < 0.2:
            self.engine.relieve(10)
        elif what < 0.25:
            self.engine.stream.begin_moment(1 << self.point.number)
        if what > 0.9 and (ended := self.window.send_portion(bytes(random.randrange(200)), self.window.looked)):
            return ended
        ended = self.window.run(0.0)
        peer.answer(self.epoch)
        return ended

    def read_if_full(self) -> None:
        if self.reader is not None and self.core.head - self.released > 1 << 18:
            self.read()

    def replace_point(self) -> None:
        old, self.point = self.point, self.engine.open_commit_point("peer", self.window.acknowledged, HELD_FOR_EVER)
        self.window.set_point(self.point)
        for bucket in self.buckets:
            self.engine.set_commit_points(bucket, [self.point])
        self.random.choice([old.close, old.abandon])()

    def receive(self, connection: int) -> None:
        """What a link's receiver does, once the other end is shut."""
        reader = ReplyReader(1 << 16)
        try:
            while data := self.window.receive(connection, mid_frame=reader.mid_frame):
                reader.feed(data)
                while (reply := reader.next()) is not None:
                    if reply.status == Status.OK:
                        self.window.take(reply.request_id, reply.epoch, *struct.unpack(">q", reply.payload))
                    else:
                        self.window.is_of_old(reply.request_id)
        except (BadFrame, ValueError, struct.error):
            self.refused += 1
            while self.window.receive(connection, mid_frame=True):
                pass

    def look_at(self) -> None:
        """Whatever was answered: what is acknowledged was looked at, and is never taken back."""
        acknowledged, looked = self.window.acknowledged, self.window.looked
        assert self.acknowledged <= acknowledged <= looked <= self.engine.stream.head
        assert self.point.debt >= 0
        self.acknowledged = acknowledged

    def look_after(self) -> None:
        """A peer that tells the truth, and has room for everything, finds nothing left of what the others said."""
        ours, theirs = socket.socketpair()
        until = time.monotonic() + REST_S
        with ours, theirs:
            connection, peer = self.window.begin(ours), TruePeer(theirs)
            receiver = threading.Thread(target=self.receive, args=(connection,), name="link-acks")
            receiver.start()
            try:
                while not self.is_settled():
                    assert time.monotonic() < until, (self.window.counts(), self.window.looked, self.engine.stats()["credit"])
                    assert self.window.run(0.0) is None
                    peer.answer(self.epoch)
                    self.engine.relieve(0)
                    self.engine.stream.begin_moment(1 << self.point.number)
                    time.sleep(0.001)
            finally:
                theirs.shutdown(socket.SHUT_RDWR)
                receiver.join()
            self.window.end()
        super().look_after()
        self.applied += 1

    def is_settled(self) -> bool:
        """All is acknowledged, and the room that the peer said is what is left: nothing is set aside for what is over."""
        rows, _, _ = self.core.credits()
        told = bool(rows) and all(left - debt == room == TruePeer.ROOM for _, _, room, left, debt in rows)
        return told and self.window.acknowledged == self.engine.stream.head

    def neighbour(self) -> None:
        """Where nobody answers just now, a good one may have to wait for longer than it will."""

    def finish(self) -> None:
        self.look_after()
        self.point.abandon()
        self.window.close()
        self.engine.check()


class LyingPeer:
    """Takes frames in, and answers them at times."""

    def __init__(self, random: Random, sock: socket.socket) -> None:
        self.random, self.sock = random, sock
        self.reader = RequestReader(1 << 24)
        self.due: list[int] = []
        self.done: list[int] = []

    def take(self) -> None:
        with contextlib.suppress(OSError):
            while data := self.sock.recv(1 << 20):
                self.reader.feed(data)
        while (request := self.reader.next()) is not None:
            self.due.append(request.request_id)

    def answer(self, epoch: int) -> None:
        random = self.random
        self.take()
        answers: list[bytes] = []
        while self.due and random.random() < 0.9:
            request_id = self.due.pop(0)
            self.done.append(request_id)
            answers += [self.truth(request_id, epoch)] if random.random() < 0.9 else self.lies(request_id, epoch)
        data = b"".join(answers)
        if random.random() < 0.05:
            data = self.spoil(data)
        with contextlib.suppress(OSError):
            self.sock.sendall(data)

    def truth(self, request_id: int, epoch: int, status: int = 0, payload: bytes | None = None) -> bytes:
        """As far as a peer can be believed: any room, and any view."""
        random = self.random
        named = epoch if random.random() < 0.8 else random.choice([0, epoch - 1, epoch + 1, (1 << 32) - 1])
        said = struct.pack(">q", random.choice(ROOMS)) if payload is None else payload
        return encode_reply(Opcode.RECORDS, status, request_id, named, said)

    def lies(self, request_id: int, epoch: int) -> list[bytes]:
        random = self.random
        truth = self.truth(request_id, epoch)
        return random.choice(
            [
                [truth, truth],
                [],
                [self.truth(random.choice([*self.done, 0, 1, request_id + 1, (1 << 32) - 1]), epoch), truth],
                [
                    self.truth(
                        request_id, epoch, random.choice([1, 0x20, 0x31, 0xFF]), random.choice([b"", bytes(8), bytes(3000)])
                    )
                ],
                [self.truth(request_id, epoch, 0, bytes(random.choice([0, 4, 7, 9, 3000])))],
                [self.spoil(truth)],
                [truth[: random.randrange(len(truth))]],
                [bytes(random.choice([1, 16, 24]))],
            ]
        )

    def spoil(self, data: bytes) -> bytes:
        spoilt = bytearray(data)
        for _ in range(self.random.choice([1, 1, 3])):
            if spoilt:
                spoilt[self.random.randrange(len(spoilt))] = self.random.choice(ODD)
        return bytes(spoilt)


class TruePeer:
    """Answers all at once, in order."""

    ROOM = 1 << 40

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.reader = RequestReader(1 << 24)

    def answer(self, epoch: int) -> None:
        with contextlib.suppress(BlockingIOError):
            while data := self.sock.recv(1 << 20, socket.MSG_DONTWAIT):
                self.reader.feed(data)
        while (request := self.reader.next()) is not None:
            room = struct.pack(">q", self.ROOM)
            self.sock.sendall(encode_reply(Opcode.RECORDS, 0, request.request_id, epoch, room))


def fuzz(seed: int, inputs: int, seconds: float = 3600.0) -> tuple[int, int, int, int]:
    """Returns how many inputs there were; connections that ended well, those that were refused, and frames taken in."""
    ends = time.monotonic() + seconds
    done = executed = refused = applied = 0
    logger.disable("rcache")
    try:
        while done < inputs and time.monotonic() < ends:
            random = Random(f"peers {seed} {done}")
            campaign = (GateCampaign if done // INPUTS_A_CAMPAIGN % 2 == 0 else AnswerCampaign)(random)
            for number in range(min(INPUTS_A_CAMPAIGN, inputs - done)):
                campaign.one()
                if number % CHECK_EVERY == CHECK_EVERY - 1:
                    campaign.look_after()
            done += min(INPUTS_A_CAMPAIGN, inputs - done)
            campaign.finish()
            executed, refused, applied = executed + campaign.executed, refused + campaign.refused, applied + campaign.applied
    finally:
        logger.enable("rcache")
    return done, executed, refused, applied


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.engine.fuzz_peers", description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=3600.0, help="no other engine is begun after so long")
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    done, executed, refused, applied = fuzz(options.seed, options.inputs, options.seconds)
    print(f"seed {options.seed}: {done:,} inputs, {executed:,} to their end, {refused:,} refused, {applied:,} frames applied")


if __name__ == "__main__":
    main()
