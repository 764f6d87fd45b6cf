"""Two native engines that are each other's backup, under load: `python -m tests.engine.stress_pair --seed 1 --seconds 60`.

What it is: `stress` for what two nodes do with each other, by the link, the window, the gate and the intake that nodes have,
over a pair of sockets: changes and questions one way, room and confirmations the other. Memory is small and not the same at
both, so what is lent runs out, falls into debt, or (no eviction) has changes refused. Meanwhile copies are made, given up and
let go of, buckets are frozen, opened anew and handed over, points are replaced or abandoned, leases run out, the one side goes
by a newer view than the other, connections break, changes are paused.
At the end of a round, when all has come to rest: both hold the same of every bucket that the one backs up for the other; and
of what was lent nothing is set aside any more.
Which thread runs it: as `stress`.
"""

from __future__ import annotations

import argparse
import contextlib
import queue
import socket
import sys
import threading
import time
from collections.abc import Callable
from random import Random
from typing import Any

from loguru import logger

from rcache.cluster.bucket_state import BucketState
from rcache.cluster.leases import Peer
from rcache.engine.change_stream import HELD_FOR_EVER
from rcache.engine.contract import EngineConfig, RequestRefused
from rcache.engine.sockets import Ended
from rcache.peers.intake import Heading, Intake
from rcache.peers.line import PeerUnreachable
from rcache.peers.link import Link
from rcache.records.record import Kind, decode, heads
from rcache.stream.applied import AppliedStream
from rcache_client.wire.frames import Request, encode_reply
from rcache_client.wire.grammar import REQUESTS, Layout, reply_layout
from rcache_client.wire.opcodes import Opcode, Status
from tests.engine.stress import BUCKETS, JOIN_S, LIMITS, Traffic, boot_ns

SOURCE = 1
"""By which each side's buckets follow the other."""

REST_S = 20.0
"""How long it may take until everything is where it is to be, once nobody asks for anything more."""


class Line:
    """What a link needs of a line: a connection is a pair of sockets, of which the peer serves the other end."""

    def __init__(self, peer: Side) -> None:
        self._peer = peer

    def detach(self) -> socket.socket:
        if self._peer.is_closed:
            raise PeerUnreachable("the peer has ended", not_sent=True)
        ours, theirs = socket.socketpair()
        self._peer.accept(theirs)
        return ours

    def close(self) -> None:
        """Nothing is kept."""


class Side(Traffic):
    """One node: an engine, the link to the other, and the intake of what that one sends. `own`: what it is primary of;
    `chosen`: what of it the other has a whole copy of; `holds`: what it has whole copies of."""

    def __init__(self, seed: str, seconds: float, name: str, own: set[int], config: EngineConfig, value_bytes: int) -> None:
        super().__init__(f"{seed} {name}", seconds, config, value_bytes)
        self.name, self.incarnation, self.own = name, ord(name[-1]), own
        self.chosen: set[int] = set()
        self.holds: set[int] = set()
        self.epoch = 1
        self.filled: queue.SimpleQueue[int] = queue.SimpleQueue()
        self.refusals: dict[int, int] = {}
        self.without_room = 0
        self.is_closed = False
        self.socks: list[socket.socket] = []
        self.serving: list[threading.Thread] = []
        self.engine.open_buckets(sorted(own), 1, self.incarnation, name)

    def join(self, other: Side) -> None:
        peer = Peer(other.name, other.incarnation)
        for bucket in other.own:
            self.engine.follow(bucket, SOURCE)
        self.intake = Intake(peer, SOURCE, self.engine, AppliedStream(0, is_kept=False), self.holds.__contains__, durable=False)
        self.link = Link(peer, self.incarnation, Line(other), self.engine, self)  # type: ignore[arg-type]
        self.link.point.lease(HELD_FOR_EVER)

    # --- what a link tells

    def was_refused(self, link: Link, status: int, values: tuple[object, ...]) -> None:
        self.refusals[status] = self.refusals.get(status, 0) + 1

    def came_down(self, link: Link, *, refused: bool) -> None:
        pass

    def has_filled(self, link: Link, bucket: int) -> None:
        self.filled.put(bucket)

    def has_no_room(self, link: Link) -> None:
        self.without_room += 1

    def has_moved(self, link: Link) -> None:
        pass

    # --- the other end of the other's link

    def accept(self, sock: socket.socket) -> None:
        thread = threading.Thread(target=self.serve_link, args=(sock,), name=f"intake-{self.name}")
        self.socks.append(sock)
        self.serving.append(thread)
        thread.start()

    def serve_link(self, sock: socket.socket) -> None:
        try:
            with sock:
                connection, gate = self.engine.connect(sock, LIMITS), None
                while (served := self.engine.serve_peer(connection, gate)) is None or served.ended is Ended.FRAME:
                    if served is None:
                        continue
                    assert served.request is not None
                    status, values = self.take(served.request)
                    body = reply_layout(Opcode.RECORDS, status).encode(*values)
                    reply = encode_reply(Opcode.RECORDS, status, served.request.request_id, self.engine.epoch, body)
                    if connection.send(reply) is not None:
                        break
                    gate = self.intake.gate if status is Status.OK else gate
                assert served is None or served.ended in (Ended.FRAME, Ended.CLOSED, Ended.LOST), served
        except BaseException as error:
            self.failed.append(error)

    def take(self, request: Request) -> tuple[Status, tuple[Any, ...]]:
        """As `rcache.server.node_answers` does."""
        layout = REQUESTS[Opcode.RECORDS]
        assert isinstance(layout, Layout)
        epoch, sender, receiver, generation, records = layout.decode(request.payload)
        if epoch > self.engine.epoch:
            self.intake.refuse(generation)
            return Status.VIEW_AHEAD, (f"this node goes by epoch {self.engine.epoch}",)
        taken = self.intake.take(Heading(epoch, sender, receiver, generation), records, lambda _bucket: SOURCE)
        if taken.status is Status.OK:
            return Status.OK, (self.intake.gate.lend(),)
        return taken.status, (b"view",) if taken.status is Status.STALE_VIEW else (taken.reason,)

    # --- orders

    def go_by(self, epoch: int) -> None:
        """A view was taken in."""
        self.epoch = max(self.epoch, epoch)
        self.engine.epoch = self.epoch
        self.link.choose(self.chosen, self.epoch)

    def wait_for_link(self) -> None:
        """What the other has is waited for there, by the point that there is now."""
        for bucket in self.chosen:
            self.engine.set_commit_points(bucket, [self.link.point])

    def is_at_rest(self) -> bool:
        return self.link.acknowledged == self.engine.stream.head and not self.link.fills_left

    def rows(self, bucket: int) -> tuple[int, dict[bytes, Any]]:
        """A bucket's sequence, and what is in it."""
        bodies = [decode(body, head.start, head.end) for body in self.engine.copy_bucket(bucket) for head in heads(body)]
        rows = [record for record in bodies if record.kind == Kind.ROW]
        return self.engine.sequence(bucket), {row.key: (row.value, row.sequence, row.flags, row.expires_at_ms) for row in rows}

    # --- what goes on all the time

    def upkeep(self, random: Random) -> int:
        done = 0
        while self.is_on:
            self.engine.expire_due(random.choice([1, 1000]))
            self.engine.trim()
            self.engine.relieve(random.choice([1, 100]))
            if random.random() < 0.02:
                with contextlib.suppress(RequestRefused):
                    self.engine.flush(time.monotonic_ns() + 10**7)
            time.sleep(0.005)
            done += 1
        return done

    def look(self, _random: Random) -> int:
        done = 0
        while self.is_on:
            self.link.stats()
            self.engine.stats()
            assert self.link.owed_s() >= 0
            assert self.intake.frames >= 0
            self.link.watch()
            time.sleep(0.01)
            done += 1
        return done

    def close(self) -> None:
        assert self.link.stop(JOIN_S), "the link does not end"
        assert not self.link.errors
        self.link.point.close()
        self.intake.stop()


class Pair:
    """A round: two sides, and who orders both."""

    def __init__(self, seed: str, seconds: float) -> None:
        self.random = random = Random(seed)
        value_bytes = random.choice([1000, 4000, 20_000])
        confirm_reads = random.random() < 0.5

        def config() -> EngineConfig:
            return EngineConfig(
                buckets=BUCKETS,
                stripes=random.choice([2, 4]),
                memory_bytes=random.choice([512 << 10, 512 << 10, 1 << 20, 4 << 20]),
                evict=random.random() < 0.75,
                value_bytes_max=1 << 16,
                frame_bytes_max=1 << 20,
                stream_bytes=random.choice([1 << 19, 1 << 20]),
                confirm_reads=confirm_reads,
                default_budget_s=0.5,
            )

        half = BUCKETS // 2
        self.sides = [
            Side(seed, seconds, "n1", set(range(half)), config(), value_bytes),
            Side(seed, seconds, "n2", set(range(half, BUCKETS)), config(), value_bytes),
        ]
        self.ends = time.monotonic() + seconds
        for side, other in (self.sides, self.sides[::-1]):
            side.join(other)
        self.orders: list[Callable[[Side, Side], None]] = [self.fill] * 3
        self.orders += [self.give_up, self.cancel, self.replace_point, self.depose, self.lease, self.break_off]
        self.orders += [self.pause, self.open_anew, self.hand_over]

    def run(self) -> int:
        threads = []
        for side in self.sides:
            side.link.start()
            side.link.choose(side.chosen, side.epoch)
            threads += side.begin([side.execute] * 2 + [side.peer, side.share, side.upkeep, side.look])
        try:
            while time.monotonic() < self.ends and not any(side.failed for side in self.sides):
                side, other = self.random.choice([self.sides, self.sides[::-1]])
                self.random.choice(self.orders)(side, other)
                self.count_on_filled(side, other)
                time.sleep(self.random.choice([0.0, 0.003, 0.03]))
        finally:
            for thread in threads:
                thread.join(JOIN_S)
        try:
            self.raise_failed()
            assert not any(thread.is_alive() for thread in threads), [thread.name for thread in threads if thread.is_alive()]
            self.come_to_rest()
            self.compare()
        finally:
            self.close()
        self.raise_failed()
        return sum(sum(side.done.values()) for side in self.sides)

    def raise_failed(self) -> None:
        for side in self.sides:
            if side.failed:
                raise side.failed[0]

    # --- orders

    def fill(self, side: Side, _other: Side) -> None:
        bucket = self.random.choice(sorted(side.own | side.holds))
        if bucket in side.own:
            side.link.fill(bucket)

    def count_on_filled(self, side: Side, other: Side) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                bucket = side.filled.get_nowait()
                if bucket in side.own and side.link.is_whole(bucket):
                    other.holds.add(bucket)
                    side.chosen.add(bucket)
                    side.wait_for_link()
                    side.go_by(side.epoch)

    def give_up(self, side: Side, other: Side) -> None:
        """A copy that is counted on is wanted no more."""
        if not side.chosen:
            return
        bucket = self.random.choice(sorted(side.chosen))
        side.engine.set_commit_points(bucket, [])
        side.chosen.discard(bucket)
        side.go_by(side.epoch)
        other.holds.discard(bucket)
        other.intake.pass_by()
        with contextlib.suppress(ValueError):
            other.engine.set_state(bucket, BucketState.ABSENT)

    def cancel(self, side: Side, other: Side) -> None:
        """Copies that are being made are wanted no more."""
        for bucket in side.link.filling():
            side.link.cancel(bucket)
        if self.random.random() < 0.5:
            other.intake.let_go_of_unfinished(0.0, lambda _bucket: SOURCE)

    def replace_point(self, side: Side, _other: Side) -> None:
        old = side.link.replace_point()
        side.link.point.lease(HELD_FOR_EVER)
        if self.random.random() < 0.5:
            side.wait_for_link()
            old.close()
        else:
            old.abandon()  # whoever waits for it is told so
            side.wait_for_link()

    def depose(self, side: Side, other: Side) -> None:
        """The one goes by a newer view for a while: it confirms nothing to the other, and is refused by that."""
        epoch = max(side.epoch, other.epoch) + 1
        other.go_by(epoch)
        time.sleep(self.random.choice([0.0, 0.005, 0.05]))
        side.go_by(epoch)

    def lease(self, side: Side, _other: Side) -> None:
        side.link.point.lease(boot_ns() + self.random.choice([0, 10**7]))
        time.sleep(self.random.choice([0.0, 0.02]))
        side.link.point.lease(HELD_FOR_EVER)

    def break_off(self, side: Side, _other: Side) -> None:
        with contextlib.suppress(OSError, IndexError):
            side.socks[-1].shutdown(socket.SHUT_RDWR)

    def pause(self, side: Side, _other: Side) -> None:
        side.engine.set_paused(True)
        before = [side.engine.sequence(bucket) for bucket in side.own]
        time.sleep(self.random.choice([0.0, 0.001, 0.01]))
        assert [side.engine.sequence(bucket) for bucket in side.own] == before, "changed during a pause"
        side.engine.set_paused(False)

    def open_anew(self, side: Side, other: Side) -> None:
        bucket = self.random.choice([*side.own, None])
        if bucket is None:
            return
        side.engine.set_state(bucket, BucketState.FROZEN)
        time.sleep(self.random.choice([0.0, 0.005]))
        epoch = max(side.epoch, other.epoch) + 1
        side.engine.open_buckets([bucket], epoch, side.incarnation, side.name)
        for one in (side, other):
            one.go_by(epoch)

    def hand_over(self, side: Side, other: Side) -> None:
        """A bucket's backup becomes its primary, and the other way round."""
        if not side.chosen:
            return
        bucket = self.random.choice(sorted(side.chosen))
        side.engine.set_state(bucket, BucketState.FROZEN)
        head, until = side.engine.stream.head, time.monotonic() + 1.0
        while side.link.acknowledged < head and time.monotonic() < until:
            time.sleep(0.001)
        epoch = max(side.epoch, other.epoch) + 1
        if side.link.acknowledged < head:
            side.engine.open_buckets([bucket], epoch, side.incarnation, side.name)
        else:
            self.swap(side, other, bucket, epoch)
        for one in (side, other):
            one.go_by(epoch)

    def swap(self, side: Side, other: Side, bucket: int, epoch: int) -> None:
        side.chosen.discard(bucket)
        side.own.discard(bucket)
        side.engine.set_commit_points(bucket, [])
        side.go_by(side.epoch)
        side.engine.follow(bucket, SOURCE)
        side.engine.set_state(bucket, BucketState.BACKUP)
        side.holds.add(bucket)
        other.intake.pass_by()
        other.holds.discard(bucket)
        other.chosen.add(bucket)
        other.go_by(other.epoch)
        other.engine.follow(bucket, 0)
        other.engine.set_commit_points(bucket, [other.link.point])
        other.engine.open_buckets([bucket], epoch, other.incarnation, other.name)
        other.own.add(bucket)

    # --- the end

    def come_to_rest(self) -> None:
        for side, other in (self.sides, self.sides[::-1]):
            self.cancel(side, other)
            side.go_by(max(side.epoch, other.epoch))
        until = time.monotonic() + REST_S
        while not all(side.is_at_rest() for side in self.sides):
            assert time.monotonic() < until, [(s.name, s.link.stats(), s.refusals, s.intake.broken) for s in self.sides]
            time.sleep(0.01)
        until = time.monotonic() + REST_S
        while not all(self.is_settled(side) for side in self.sides):
            assert time.monotonic() < until, [side.engine.stats()["credit"] for side in self.sides]
            for side in self.sides:
                side.engine.relieve(0)  # has those asked that have said nothing for a while
            time.sleep(0.05)

    def is_settled(self, side: Side) -> bool:
        """Whether what a peer said is what there is: nothing of its room is set aside for a change that is over."""
        rows, _, _ = side.engine._core.credits()
        return all(left - debt == room for _, _, room, left, debt in rows)

    def compare(self) -> None:
        for side, other in (self.sides, self.sides[::-1]):
            for bucket in sorted(side.chosen):
                ours, theirs = side.rows(bucket), other.rows(bucket)
                assert other.engine.state(bucket) is BucketState.BACKUP, (bucket, other.engine.state(bucket))
                assert ours == theirs, (bucket, ours[0], theirs[0], len(ours[1]), len(theirs[1]))

    def close(self) -> None:
        for side in self.sides:
            side.is_closed = True
        for side in self.sides:
            side.close()
        for side in self.sides:
            for thread in side.serving:
                thread.join(JOIN_S)
                assert not thread.is_alive(), thread.name
            side.engine.check()


def stress(seed: int, seconds: float, round_s: float = 4.0) -> tuple[int, int]:
    """Returns how many rounds there were, and what was done in them: requests and everything else."""
    ends = time.monotonic() + seconds
    rounds = done = 0
    logger.disable("rcache")
    try:
        while time.monotonic() < ends:
            done += Pair(f"{seed} {rounds}", min(round_s, seconds)).run()
            rounds += 1
    finally:
        logger.enable("rcache")
    return rounds, done


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.engine.stress_pair", description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=60.0)
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    sys.setswitchinterval(0.0005)
    rounds, done = stress(options.seed, options.seconds)
    print(f"seed {options.seed}: {rounds} rounds, {done:,} steps")


if __name__ == "__main__":
    main()
