"""All that may run at once in the native engine, at once: `python -m tests.engine.stress --seed 1 --seconds 60`.

What it is: a program for ThreadSanitizer and AddressSanitizer (`make sanitize ARGS=thread`); a test runs it for a moment.
Rounds of a few seconds, each with an engine of its own: a small memory in which everything is evicted, expired, moved and
reclassed all the time, few stripes, a small stream; writers and readers by `execute` and over sockets, alone and in shared
workers; the log, which commits in half of the rounds and fails in some; links that come, are waited for, and go, by readers and
by windows in which workers send and take in, whose peers lend much, little, nothing or less, and go by newer views meanwhile; a
peer's records by a gate; readers that fall behind; copies, records applied, copies given up, states changed, flushes,
statistics; and in half of the rounds all of it is stopped while it goes on. At the end of a round `check` compares every
structure with every other. What two engines do with each other is `stress_pair`.
Which thread runs it: the main one waits; every other is started and joined here. Loops end when the round does.
"""

from __future__ import annotations

import argparse
import contextlib
import socket
import struct
import sys
import threading
import time
import zlib
from collections.abc import Callable
from random import Random

from rcache.cluster.bucket_state import BucketState
from rcache.engine.change_stream import END, HELD_FOR_EVER, LinkFrame, WindowTerms
from rcache.engine.clock import NodeClock
from rcache.engine.commit_point import LinkPoint
from rcache.engine.contract import ChainError, ConnectionLimits, EngineConfig, EngineConnection, RequestRefused
from rcache.engine.native.engine import NativeEngine, NativeGroup
from rcache.engine.sockets import Ended
from rcache.records.record import Kind, heads
from rcache_client.wire.frames import BadFrame, ReplyReader, Request, RequestReader, encode_reply, encode_request
from rcache_client.wire.grammar import REQUESTS
from rcache_client.wire.opcodes import Opcode

BUCKETS = 16
PRIMARY = range(12)
"""The others are backups, which records are applied to, or change their states."""

BORROWERS = range(14)
"""Those that may come to wait for a window's peer: 12 and 13 are opened, frozen and let go of meanwhile."""

KEYS = 3000
BUDGET_MS = 200
JOIN_S = 60.0
LIMITS = ConnectionLimits(10.0, 10.0, 10.0, 2.0)


class Traffic:
    """Requests to one engine, by `execute` and over sockets; and the threads in which anything is done to it."""

    def __init__(self, seed: str, seconds: float, config: EngineConfig, value_bytes: int) -> None:
        self.seed = seed
        self.value_bytes = value_bytes
        self.clock = NodeClock()
        self.engine = NativeEngine(config, self.clock)
        self.ends = time.monotonic() + seconds
        self.done: dict[str, int] = {}
        self.failed: list[BaseException] = []
        self.is_stopping = False
        self.shared: list[socket.socket] = []  # that the shared workers have

    @property
    def is_on(self) -> bool:
        return time.monotonic() < self.ends and not self.failed

    def begin(self, doers: list[Callable[[Random], int]]) -> list[threading.Thread]:
        threads = [threading.Thread(target=self.loop, args=(do, number), name=do.__name__) for number, do in enumerate(doers)]
        for thread in threads:
            thread.start()
        return threads

    def loop(self, do: Callable[[Random], int], number: int) -> None:
        """A thread's run function, with its one catch-all."""
        try:
            count = do(Random(f"{self.seed} {number}"))
            self.done[f"{do.__name__} {number}"] = count
        except BaseException as error:
            self.failed.append(error)

    # --- requests

    def request(self, random: Random, number: int) -> tuple[Opcode, bytes]:
        key = b"key-%d" % random.randrange(KEYS)
        ttl = random.choice([0, 0, 1, 20, 60_000])
        value = b"v" * random.randrange(self.value_bytes)
        opcode = random.choice([Opcode.SET] * 6 + [Opcode.GET] * 6 + list(REQUESTS_OF))
        return opcode, REQUESTS[opcode].encode(*REQUESTS_OF[opcode](key, ttl, value))

    def execute(self, random: Random) -> int:
        done = 0
        while self.is_on:
            opcode, payload = self.request(random, done)
            self.engine.execute(Request(opcode, done, BUDGET_MS, payload))
            done += 1
        return done

    def peer(self, random: Random) -> int:
        """A connection that has a thread of its own, and a peer that sends pipelines, does not always read, and goes."""
        done = 0
        while self.is_on:
            here, there = socket.socketpair()
            with here, there:
                connection = self.engine.connect(here, LIMITS)
                served = threading.Thread(target=self.serve, args=(connection,), name="alone")
                served.start()
                done += self.talk(random, there)
                served.join(JOIN_S)
                assert not served.is_alive()
        return done

    def serve(self, connection: EngineConnection) -> None:
        try:
            ended = self.engine.serve(connection).ended
            assert ended in (Ended.CLOSED, Ended.LOST, Ended.STOPPING, Ended.SLOW_READER), ended
            with contextlib.suppress(OSError):
                connection.sock.shutdown(socket.SHUT_RDWR)
        except BaseException as error:
            self.failed.append(error)

    def talk(self, random: Random, sock: socket.socket) -> int:
        """Some pipelines, cut anywhere, and their replies; then it closes, at times in the middle of things."""
        sock.settimeout(5.0)
        done = 0
        with contextlib.suppress(TimeoutError, OSError):
            for _ in range(random.choice([1, 3, 10])):
                frames = [
                    encode_request(op, number, BUDGET_MS, payload)
                    for number in range(8)
                    for op, payload in [self.request(random, 0)]
                ]
                data = b"".join(frames)
                cut = random.randrange(len(data))
                sock.sendall(data[:cut])
                sock.sendall(data[cut:])
                if random.random() < 0.1:
                    break  # without the replies
                left = len(frames)
                held = b""
                while left:
                    held += sock.recv(1 << 16)
                    left, held = take_replies(held, left)
                done += len(frames)
        sock.close()
        return done

    def share(self, random: Random) -> int:
        """Two workers that share sockets."""
        groups = [self.engine.share() for _ in range(2)]
        workers = [threading.Thread(target=self.work, args=(group,), name="shared") for group in groups]
        for worker in workers:
            worker.start()
        done = 0
        while self.is_on and not self.is_stopping:
            self.crowd(groups, done)
            if random.random() < 0.2:  # a control frame: handed back, and added again
                here, there = socket.socketpair()
                self.shared.append(here)
                groups[0].add(self.engine.connect(here, LIMITS))
                there.sendall(encode_request(Opcode.PING, 1, 0, b""))
                there.close()
            done += 4
        self.engine.stop_serving()
        for worker in workers:
            worker.join(JOIN_S)
            assert not worker.is_alive()
        for sock in self.shared:
            sock.close()
        return done

    def work(self, group: NativeGroup) -> None:
        """What a shared worker does with what it is handed back."""
        try:
            while (handed := group.serve()) is not None:
                connection, handback = handed
                if handback.ended is Ended.FRAME:
                    connection.queue(b"", last=True)
                    group.add(connection)
                else:
                    connection.sock.close()
        except BaseException as error:
            self.failed.append(error)

    def crowd(self, groups: list[NativeGroup], number: int) -> None:
        """Four peers that talk at once."""
        talking = []
        self.shared = [sock for sock in self.shared if sock.fileno() >= 0]
        for peer in range(4):
            here, there = socket.socketpair()
            self.shared.append(here)
            groups[peer % len(groups)].add(self.engine.connect(here, LIMITS))
            seeded = Random(f"{self.seed} {number} {peer}")
            talking.append(threading.Thread(target=self.talk, args=(seeded, there), name="talks"))
        for thread in talking:
            thread.start()
        for thread in talking:
            thread.join(JOIN_S)


class Round(Traffic):
    """One engine, and all that is done to it."""

    def __init__(self, seed: str, seconds: float) -> None:
        random = Random(seed)
        self.commit = random.random() < 0.5
        self.fails = random.random() < 0.2
        value_bytes = random.choice([100, 1000, 20_000])
        config = EngineConfig(
            buckets=BUCKETS,
            stripes=random.choice([2, 4]),
            memory_bytes=random.choice([512 << 10, 2 << 20]),
            evict=random.random() < 0.75,
            value_bytes_max=1 << 16,
            frame_bytes_max=1 << 18,
            stream_bytes=random.choice([1 << 19, 1 << 20]),
            commit=self.commit,
            confirm_reads=random.random() < 0.5,
            default_budget_s=0.5,
        )
        super().__init__(seed, seconds, config, value_bytes)
        self.is_stopped = random.random() < 0.5
        self.log = self.engine.stream.open_reader("log", holds=True)
        self.engine.open_buckets(PRIMARY, 1, 1, "n1")
        self.writing = True

    def run(self) -> int:
        doers: list[Callable[[Random], int]] = [self.execute] * 3 + [self.peer] * 3
        doers += [self.upkeep, self.follow, self.link, self.link, self.copy, self.become, self.look, self.share]
        doers += [self.pause, self.window, self.window, self.window, self.gate, self.give_up, self.stop]
        writer = threading.Thread(target=self.write, name="log")
        writer.start()
        threads = self.begin(doers)
        for thread in threads:
            thread.join(JOIN_S)
        self.writing = False
        writer.join(JOIN_S)
        assert not any(thread.is_alive() for thread in [*threads, writer]), [t.name for t in [*threads, writer] if t.is_alive()]
        if self.failed:
            raise self.failed[0]
        self.log.close()
        self.engine.check()
        return sum(self.done.values())

    def write(self) -> None:
        """The log: takes, keeps for a moment, releases; commits; and in some rounds fails."""
        random = Random(self.seed + " log")
        fails_at = time.monotonic() + 1.0 if self.fails else float("inf")
        try:
            while self.writing:
                batch = self.log.take(random.choice([1000, 1 << 20]), 0.02, random.choice([0.0, 0.001]))
                self.log.release(batch.position)
                self.engine.stream.set_durable(batch.position)
                if time.monotonic() > fails_at:
                    self.engine.stream.fail("the disk of a test")
                    return
        except BaseException as error:
            self.failed.append(error)

    def upkeep(self, random: Random) -> int:
        done = 0
        while self.is_on:
            self.engine.expire_due(random.choice([1, 1000]))
            with contextlib.suppress(RequestRefused):
                for bucket in PRIMARY:
                    if random.random() < 0.002:
                        self.engine._core.flush(bucket, time.monotonic_ns() + 10**8)
            self.engine.trim()
            self.engine.relieve(random.choice([1, 100]))
            self.clock.adjust()
            time.sleep(random.choice([0.0, 0.002]))
            done += 1
        return done

    def pause(self, random: Random) -> int:
        """Short pauses, in which no bucket of ours moves."""
        done = 0
        while self.is_on:
            time.sleep(random.choice([0.0, 0.01, 0.05]))
            self.engine.set_paused(True)
            before = [self.engine.sequence(bucket) for bucket in PRIMARY]
            time.sleep(random.choice([0.0, 0.001, 0.01]))
            assert [self.engine.sequence(bucket) for bucket in PRIMARY] == before, "changed during a pause"
            self.engine.set_paused(False)
            done += 1
        return done

    def follow(self, random: Random) -> int:
        """Readers that come, fall behind, and go."""
        done = 0
        while self.is_on:
            reader = self.engine.stream.open_reader("feed", holds=random.random() < 0.3)
            for _ in range(random.choice([1, 5])):
                batch = reader.take(1 << 16, 0.01)
                reader.release(batch.position)
                time.sleep(random.choice([0.0, 0.01]))
                self.engine.stream.wake_readers()
            reader.close()
            done += 1
        return done

    def link(self, random: Random) -> int:
        """Links that some buckets wait for: they send what is of these, and acknowledge it at once, late, or never."""
        done = 0
        while self.is_on:
            reader = self.engine.stream.open_reader("link", holds=True)
            until_ns = random.choice([HELD_FOR_EVER, boot_ns(), boot_ns() + 10**7])
            point = self.engine.open_commit_point("link", self.engine.stream.head, until_ns)
            released = self.engine.stream.head
            ours, theirs = socket.socketpair()
            with ours, theirs:
                buckets = random.sample(PRIMARY, 4)
                reader.choose(buckets)
                for bucket in buckets:
                    self.engine.set_commit_points(bucket, [point, self.engine.stream.disk] if self.commit else [point])
                for _ in range(random.choice([1, 20])):
                    until = random.choice([END, END, self.engine.stream.head])
                    frame, bytes_max = LinkFrame(0x90, 1, b"prefix", 0.01), random.choice([100, 1 << 16])
                    sent = reader.send(ours, frame, bytes_max, 0.005, until)
                    if random.random() < 0.9:
                        point.advance(sent.position)
                        reader.release(sent.position)
                        released = sent.position
                    elif random.random() < 0.5:
                        with contextlib.suppress(ValueError):  # at first: the reader was opened a moment before
                            reader.rewind(released)
                    if random.random() < 0.5:
                        point.lease(boot_ns() + random.choice([0, 10**7, 10**9]))
                    with contextlib.suppress(BlockingIOError):
                        while theirs.recv(1 << 20, socket.MSG_DONTWAIT):
                            pass
                    if sent.ended is not None:
                        break
                for bucket in buckets[:2]:
                    self.engine.set_commit_points(bucket, [self.engine.stream.disk] if self.commit else [])
            acknowledging = threading.Thread(target=reader.release, args=(self.engine.stream.head,), name="acknowledges")
            acknowledging.start()
            reader.close()
            random.choice([point.close, point.abandon])()
            acknowledging.join()
            done += 1
        return done

    def window(self, random: Random) -> int:
        """Links by windows: workers send, and take in what their buckets wait for. Connections come and go meanwhile."""
        done = 0
        while self.is_on:
            held = Held(self, random)
            for _ in range(random.choice([1, 3])):
                held.connect(self)
                done += 1
            held.close()
        return done

    def gate(self, random: Random) -> int:
        """A peer's records, by a gate that is opened and shut meanwhile."""
        done = 0
        layout = REQUESTS[Opcode.RECORDS]
        while self.is_on:
            recorded: list[int] = []
            gate = self.engine.open_gate(1, random.choice([lambda _body, count, kept=recorded: kept.append(count), None]))
            here, there = socket.socketpair()
            with here, there:
                connection = self.engine.connect(here, LIMITS)
                target, number = random.randrange(14, BUCKETS), random.randrange(1 << 16)
                copy = made_copy(random, target, number)
                body = b"".join(copy[head.start : head.end] for head in heads(copy) if head.kind < Kind.ROW)
                marks = b"".join(copy[head.start : head.end] for head in heads(copy) if Kind.ROW <= head.kind < Kind.DROP)
                with contextlib.suppress(ChainError, ValueError, MemoryError):
                    self.engine.follow(target, 1)
                    self.engine.apply(marks, 1)
                with gate:
                    gate.allow(1, 2, 3, random.choice([4, 4, 4, 5]))
                frame = encode_request(Opcode.RECORDS, 1, 0, layout.encode(1, 2, 3, 4, body))  # type: ignore[union-attr]
                data = frame * random.choice([1, 3]) + frame[: random.choice([0, 0, 10, 50])]
                there.sendall(data)
                shutting = threading.Thread(target=random.choice([gate.forbid, gate.close, there.close]), name="shuts")
                shutting.start()
                while (handback := self.engine.serve_peer(connection, gate)) is not None and handback.ended is Ended.FRAME:
                    with gate:
                        gate.take_stumbled()
                shutting.join()
                assert all(recorded)
            done += 1
        return done

    def copy(self, random: Random) -> int:
        """Copies are made of our buckets, which take no records; and the others take copies and changes."""
        done = 0
        while self.is_on:
            body = b"".join(self.engine.copy_bucket(random.choice(PRIMARY)))
            after: object = None
            bucket = random.randrange(BUCKETS)  # it may go over to another state, or go, between two portions
            while (portion := self.engine.copy_portion(bucket, after, 1000)).after is not None:
                after = portion.after
            with contextlib.suppress(ChainError, ValueError):
                self.engine.apply(body)
            target = random.randrange(14, BUCKETS)
            source = random.choice([0, 0, 1, 2])
            with contextlib.suppress(ChainError, ValueError, MemoryError):
                self.engine.follow(target, random.choice([source, source, source, 3]))
                self.engine.apply(made_copy(random, target, done + 1), source)
            done += 1
        return done

    def become(self, random: Random) -> int:
        """Buckets 12 and 13 change their states: opened, frozen, absent, opened in a later epoch."""
        epoch = 1
        while self.is_on:
            bucket = random.choice([12, 13])
            epoch += 1
            with contextlib.suppress(ValueError, RequestRefused):
                self.engine.open_buckets([bucket], epoch, 1, "n1")
                time.sleep(0.005)
                self.engine.set_state(bucket, BucketState.FROZEN)
                if random.random() < 0.5:
                    self.engine.set_state(bucket, BucketState.BACKUP)
                if random.random() < 0.8:
                    self.engine.set_state(bucket, BucketState.ABSENT)
        return epoch

    def give_up(self, random: Random) -> int:
        """Copies are let go of, whole or half made."""
        done = 0
        while self.is_on:
            time.sleep(random.choice([0.001, 0.02]))
            bucket = random.randrange(14, BUCKETS)
            with contextlib.suppress(ValueError):
                self.engine.set_state(bucket, BucketState.ABSENT)
                done += 1
        return done

    def stop(self, random: Random) -> int:
        """In half of the rounds serving and all waits end while everything else goes on."""
        if self.is_stopped:
            while self.is_on and time.monotonic() < self.ends - 0.2:
                time.sleep(0.02)
            self.is_stopping = True
            self.engine.stop_serving()
            time.sleep(random.choice([0.0, 0.05]))
            self.engine.stream.end_waits()
            time.sleep(0.1)
            for sock in list(self.shared):  # a worker that ends leaves them to who gave them to it
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
        return 1

    def look(self, random: Random) -> int:
        done = 0
        while self.is_on:
            self.engine.stats()
            self.engine.exhausted_buckets()
            self.engine.stream.wait_durable(self.engine.stream.head, time.monotonic_ns() + 10**6)
            time.sleep(0.003)
            done += 1
        return done


class Lender:
    """What a peer says of its room, answer for answer: for a while it has plenty, little, nothing, or is over its limit. And
    the view that it goes by, which at times is newer than what is sent names."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.epoch = 1
        self.low, self.high = 0, 1
        self.left = 0
        self.lock = threading.Lock()

    def room(self) -> int:
        with self.lock:
            if not self.left:
                self.left = self.random.choice([1, 5, 50])
                self.low, self.high = self.random.choice(
                    [(1 << 48, 1 << 49), (1 << 48, 1 << 49), (0, 3000), (0, 100_000), (0, 1), (-50_000, 1), (-(1 << 63), -1)]
                    if self.random.random() < 0.9
                    else [((1 << 63) - 5, 1 << 63), (-(1 << 63), 1 << 63)]
                )
            self.left -= 1
            return self.random.randrange(self.low, self.high)


class Held:
    """A window, its peer, its point, and the buckets that wait for it."""

    def __init__(self, around: Round, random: Random) -> None:
        self.random = random
        self.engine = around.engine
        self.lender = Lender(Random(random.random()))
        self.disk = [self.engine.stream.disk] if around.commit else []
        terms = WindowTerms(Opcode.RECORDS, random.choice([100, 1 << 16]), 0.05)
        self.point = self.open_point()
        self.window = self.engine.stream.open_window("window", terms, self.point)
        self.buckets = random.sample(BORROWERS, 4)
        self.window.set_prefix(b"prefix", 1)
        self.window.choose(self.buckets)
        self.have_wait()

    def open_point(self) -> LinkPoint:
        until_ns = self.random.choice([HELD_FOR_EVER, HELD_FOR_EVER, boot_ns() + 10**7])
        return self.engine.open_commit_point("window", self.engine.stream.head, until_ns)

    def have_wait(self) -> None:
        for bucket in self.buckets:
            self.engine.set_commit_points(bucket, [self.point, *self.disk])

    def replace_point(self) -> None:
        """The peer was deposed, or granted anew: who waits for it now may be told that it is lost. Its credit goes on."""
        old = self.point
        self.point = self.engine.open_commit_point("window", self.window.acknowledged, HELD_FOR_EVER)
        self.window.set_point(self.point)
        if self.random.random() < 0.7:
            self.have_wait()
        self.random.choice([old.close, old.abandon])()

    def connect(self, around: Round) -> None:
        """One connection of a link, from its beginning to its end."""
        random = self.random
        ours, theirs = socket.socketpair()
        with ours, theirs:
            connection = self.window.begin(ours)
            threads = [
                threading.Thread(target=self.receive, args=(around, connection, ours), name="link-acks"),
                threading.Thread(target=self.answer, args=(Random(random.random()), theirs), name="answers"),
            ]
            for thread in threads:
                thread.start()
            for _ in range(random.choice([3, 30, 100])):
                if not around.is_on or self.window.run(random.choice([0.0, 0.01, 0.1])) is not None:
                    break
                if self.order() is not None:
                    break
            ours.shutdown(socket.SHUT_RDWR)
            threads[0].join(JOIN_S)
            self.window.end()
            theirs.shutdown(socket.SHUT_RDWR)
            threads[1].join(JOIN_S)
            assert not any(thread.is_alive() for thread in threads)

    def order(self) -> Ended | None:
        """What a link's sender does between two looks for records. How sending ended, if it did."""
        random, window = self.random, self.window
        what = random.random()
        if what < 0.1:
            return window.send_until(self.engine.stream.head)
        if what < 0.2:
            return window.send_portion(self.engine.copy_portion(self.buckets[0], None, 1000).body, window.looked)
        if what < 0.5:
            self.order_views()
        elif what < 0.55:
            window.watch()
            window.counts()
        elif what < 0.6:
            self.point.lease(boot_ns() + random.choice([0, 10**7, 10**9]))
            window.take_moved()
        elif what < 0.7:
            self.engine.relieve(10)
            assert self.point.debt >= 0
        else:
            self.engine.stream.wake_readers()
        return None

    def order_views(self) -> None:
        """What comes of a refusal, or of a view: of this side's, of the peer's, or of both."""
        random, window = self.random, self.window
        what = random.randrange(5)
        if what == 0:
            window.begin(None)
        elif what == 1:
            window.set_prefix(b"another prefix", random.choice([1, self.lender.epoch]))
            window.choose([*self.buckets, *random.sample(PRIMARY, 2)])
        elif what == 2:
            self.lender.epoch += 1
        elif what == 3:
            window.set_prefix(b"prefix", self.lender.epoch)
        else:
            self.replace_point()

    def receive(self, around: Round, connection: int, sock: socket.socket) -> None:
        """What a link's receiver does."""
        reader = ReplyReader(1 << 20)
        try:
            while data := self.window.receive(connection, mid_frame=reader.mid_frame):
                reader.feed(data)
                while (reply := reader.next()) is not None:
                    if reply.status == 0:
                        self.window.take(reply.request_id, reply.epoch, *struct.unpack(">q", reply.payload))
                    else:
                        self.window.is_of_old(reply.request_id)
        except (BadFrame, ValueError, struct.error):
            sock.shutdown(socket.SHUT_RDWR)
            while self.window.receive(connection, mid_frame=True):
                pass
        except BaseException as error:
            around.failed.append(error)

    def answer(self, random: Random, sock: socket.socket) -> None:
        """A peer: most frames are answered as they should be."""
        reader = RequestReader(1 << 20)
        with contextlib.suppress(OSError):
            while data := sock.recv(1 << 18):
                reader.feed(data)
                while (request := reader.next()) is not None:
                    what = random.random()
                    room = struct.pack(">q", self.lender.room())
                    reply = encode_reply(request.opcode, 0, request.request_id, self.lender.epoch, room)
                    if what < 0.005:
                        reply = encode_reply(request.opcode, 0x31, request.request_id, 1, bytes(random.choice([3, 40_000])))
                    elif what < 0.007:
                        reply = b"no answer at all" * 2
                    elif what < 0.01:
                        return
                    elif what < 0.05:
                        time.sleep(0.005)
                    cut = random.randrange(len(reply))
                    sock.sendall(reply[:cut])
                    sock.sendall(reply[cut:])

    def close(self) -> None:
        self.window.pass_by()
        for bucket in self.buckets[:2]:
            self.engine.set_commit_points(bucket, self.disk)
        self.random.choice([self.point.close, self.point.abandon])()
        self.window.close()


REQUESTS_OF: dict[Opcode, Callable[[bytes, int, bytes], tuple[object, ...]]] = {
    Opcode.SET: lambda key, ttl, value: (1, ttl, key, value),
    Opcode.ADD: lambda key, ttl, value: (1, ttl, key, value),
    Opcode.REPLACE: lambda key, ttl, value: (1, ttl, key, value),
    Opcode.GET: lambda key, ttl, value: (key,),
    Opcode.INSPECT: lambda key, ttl, value: (key,),
    Opcode.GET_WITH_TTL: lambda key, ttl, value: (key,),
    Opcode.DELETE: lambda key, ttl, value: (key,),
    Opcode.TOUCH: lambda key, ttl, value: (ttl, key),
    Opcode.GET_AND_TOUCH: lambda key, ttl, value: (ttl, key),
    Opcode.INCREMENT: lambda key, ttl, value: (1, 1, 0, ttl, b"n" + key[-1:]),
    Opcode.APPEND: lambda key, ttl, value: (key, value[:50]),
    Opcode.PREPEND: lambda key, ttl, value: (key, value[:50]),
    Opcode.CAS_VERSION: lambda key, ttl, value: (0, 1, ttl, key, value),
    Opcode.CAS_HASH: lambda key, ttl, value: (b"h" * 16, 1, ttl, key, value),
    Opcode.GET_MANY: lambda key, ttl, value: ((key,), (key + b"1",), (b"key-1",)),
    Opcode.SET_MANY: lambda key, ttl, value: ((1, ttl, key, value), (1, 0, b"key-1", b"v")),
    Opcode.DELETE_MANY: lambda key, ttl, value: ((key,), (b"key-2",)),
}


def boot_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def take_replies(held: bytes, left: int) -> tuple[int, bytes]:
    """What is left of `left` replies once the whole ones in `held` are taken, and the bytes behind them."""
    if not held:
        raise OSError("the server closed")
    while left and len(held) >= 16:
        (payload,) = struct.unpack_from(">I", held, 4)
        if len(held) < 16 + payload:
            break
        held = held[16 + payload :]
        left -= 1
    return left, held


def made_copy(random: Random, bucket: int, number: int) -> bytes:
    """A small copy of a bucket that is not ours, with the changes after it."""

    def record(kind: int, sequence: int, key: bytes = b"", value: bytes = b"", expires_at: int = 0) -> bytes:
        length = 40 + len(key) + len(value)
        return struct.pack(">IBBHIIQQQ", length, kind, 0, len(key), bucket, 0, sequence, 1, expires_at) + key + value

    keys = [key for n in range(400) if zlib.crc32(key := b"copied-%d" % n) % BUCKETS == bucket]
    at = (number & 0xFFFF) << 40 | 10
    rows = [record(5, at, key, b"r" * random.randrange(3000), random.choice([0, 1, 1 << 60])) for key in keys]
    body = [record(6, at), *rows, record(7, at, b"", struct.pack(">QQ", at, len(rows)))]
    body += [record(2, at + 1 + n, key, b"changed") for n, key in enumerate(keys)]
    body += [record(3, at + 1 + len(keys) + n, key) for n, key in enumerate(keys[:5])]
    if random.random() < 0.5:
        body.append(record(4, at + 1 + len(keys) + len(keys[:5])))
    if random.random() < 0.3:
        body.append(record(8, at))
    return b"".join(body)


def stress(seed: int, seconds: float, round_s: float = 4.0) -> tuple[int, int]:
    """Returns how many rounds there were, and what was done in them: requests and everything else."""
    ends = time.monotonic() + seconds
    rounds = done = 0
    while time.monotonic() < ends:
        done += Round(f"{seed} {rounds}", min(round_s, seconds)).run()
        rounds += 1
    return rounds, done


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.engine.stress", description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=60.0)
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    sys.setswitchinterval(0.0005)
    rounds, done = stress(options.seed, options.seconds)
    print(f"seed {options.seed}: {rounds} rounds, {done:,} steps")


if __name__ == "__main__":
    main()
