"""Two bodies of the engine, the same requests: their replies and their change records must be the same bytes.

What it is: a seeded driver. It makes random pipelines of all data opcodes, sends them to both engines cut at random bytes, lets
the same time pass for both, expires what is due, and compares. Eviction is off: which item goes first is each body's own.
Long form: `python -m tests.contract.differential --operations 1000000 --seed 1`.

No two items expire in the same millisecond, because in which order those would go is each body's own, too.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from hashlib import blake2b
from types import TracebackType
from typing import Any

from rcache.engine.bodies import NATIVE, REFERENCE, make_engine
from rcache.engine.contract import Engine, EngineConfig
from rcache_client.wire.frames import ReplyReader, encode_request
from rcache_client.wire.opcodes import DATA_OPCODES, Opcode
from tests.contract.harness import EVERYTHING, FakeTime, Served, encode_payload

VALUE_BYTES_MAX = 300
FRAME_BYTES_MAX = 40_000
INT_MAX = (1 << 63) - 1
KEYS = 40
BATCH_MAX = 60


@dataclass(slots=True)
class Workload:
    """Random requests, many of them about what is there, with conditions that often hold."""

    chosen: random.Random
    time: FakeTime
    expiries: set[int] = field(default_factory=set)
    values: dict[bytes, bytes] = field(default_factory=dict)
    versions: list[int] = field(default_factory=lambda: [0])

    def key(self) -> bytes:
        number = self.chosen.randrange(KEYS)
        return b"k%d" % number if number else b"long " + b"k" * 5000

    def value(self) -> bytes:
        chosen = self.chosen
        return chosen.choice(
            [
                b"",
                b"%d" % chosen.randrange(-99, 99),
                b"%d" % chosen.choice([INT_MAX, -INT_MAX - 1, INT_MAX + 1]),
                b"x" * chosen.randrange(VALUE_BYTES_MAX + 2),
                b"007",
                b"-0",
            ]
        )

    def ttl(self) -> int:
        """Mostly never; else a time at which nothing else expires."""
        if self.chosen.randrange(3):
            return 0
        ttl = self.chosen.randrange(1, 60)
        while self.time.ms + ttl in self.expiries:
            ttl += 1
        self.expiries.add(self.time.ms + ttl)
        return ttl

    def stored(self) -> tuple[int, int, bytes, bytes]:
        key, value = self.key(), self.value()
        self.values[key] = value
        return self.chosen.randrange(4), self.ttl(), key, value

    def request(self) -> tuple[Opcode, tuple[Any, ...]]:
        chosen, opcode = self.chosen, self.chosen.choice(sorted(DATA_OPCODES))
        if opcode in (Opcode.GET, Opcode.DELETE, Opcode.INSPECT, Opcode.GET_WITH_TTL):
            return opcode, (self.key(),)
        if opcode in (Opcode.TOUCH, Opcode.GET_AND_TOUCH):
            return opcode, (self.ttl(), self.key())
        if opcode in (Opcode.INCREMENT, Opcode.DECREMENT):
            delta = chosen.choice([1, -7, INT_MAX, -INT_MAX - 1, 0])
            return opcode, (delta, chosen.randrange(2), chosen.randrange(-9, 9), self.ttl(), self.key())
        if opcode in (Opcode.APPEND, Opcode.PREPEND):
            return opcode, (self.key(), self.value())
        if opcode is Opcode.CAS_VERSION:
            return opcode, (chosen.choice(self.versions), *self.stored())
        if opcode is Opcode.CAS_HASH:
            guess = self.values.get(self.key(), b"")
            return opcode, (blake2b(guess, digest_size=16).digest(), *self.stored())
        if opcode in (Opcode.GET_MANY, Opcode.DELETE_MANY):
            return opcode, tuple((self.key(),) for _ in range(chosen.choice([0, 1, 3, 8, 2500])))
        if opcode is Opcode.SET_MANY:
            return opcode, tuple(self.stored() for _ in range(chosen.randrange(6)))
        return opcode, self.stored()


class Side:
    """One engine under comparison: a served connection and a reader of its stream."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.reader = engine.stream.open_reader("differential", holds=True)
        engine.open_buckets(range(engine.config.buckets), 1, 1, "n1")
        self.served = Served(engine)

    def send(self, stream: bytes, cuts: random.Random) -> None:
        at = 0
        while at < len(stream):
            size = cuts.choice([1, 15, 16, 17, 100, 5000, 1 << 17])
            self.served.peer.sendall(stream[at : at + size])
            at += size

    def replies(self, count: int) -> tuple[bytes, list[Any]]:
        """The next replies: their bytes, and the versions they name (to ask for later)."""
        reader, said, replies = ReplyReader(1 << 30), b"", []
        while len(replies) < count:
            data = self.served.peer.recv(1 << 17)
            assert data, "the connection was closed"
            said += data
            reader.feed(data)
            while (reply := reader.next()) is not None:
                replies.append(reply)
        assert not reader.held
        return said, replies

    def records(self) -> tuple[bytes, int]:
        batch = self.reader.take(EVERYTHING, 0.0)
        self.reader.release(batch.position)
        return batch.body, batch.position

    def __enter__(self) -> Side:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.reader.close()
        self.served.__exit__(kind, error, trace)
        if error is None:
            self.engine.check()
        self.engine.close()


def compare(seed: int, operations: int) -> dict[tuple[int, int], int]:
    """Run both bodies side by side. Returns how often each (opcode, status) was met. AssertionError: they differ."""
    fake_time = FakeTime()
    workload = Workload(random.Random(seed), fake_time)
    config = EngineConfig(
        buckets=8,
        stripes=4,
        evict=False,
        memory_bytes=256 << 20,
        value_bytes_max=VALUE_BYTES_MAX,
        frame_bytes_max=FRAME_BYTES_MAX,
        stream_bytes=64 << 20,
    )
    with ExitStack() as opened:
        sides = [opened.enter_context(Side(make_engine(body, config, fake_time.clock()))) for body in (REFERENCE, NATIVE)]
        return _drive(sides, workload, seed, operations)


def _drive(sides: list[Side], workload: Workload, seed: int, operations: int) -> dict[tuple[int, int], int]:
    chosen = workload.chosen
    met: dict[tuple[int, int], int] = {}
    number = 0
    while number < operations:
        requests = [workload.request() for _ in range(chosen.randrange(1, BATCH_MAX))]
        frames = [encode_request(op, number + n, 0, encode_payload(op, values)) for n, (op, values) in enumerate(requests, 1)]
        frames = [frame for frame in frames if len(frame) <= FRAME_BYTES_MAX]
        if not frames:
            continue
        for side in sides:
            side.send(b"".join(frames), random.Random(number))
        (expected, replies), (found, _) = [side.replies(len(frames)) for side in sides]
        assert found == expected, f"seed {seed}, operation {number}: the replies differ"
        for reply in replies:
            met[reply.opcode, reply.status] = met.get((reply.opcode, reply.status), 0) + 1
            workload.versions = [*workload.versions[-20:], int.from_bytes(reply.payload[:8], "big")]
        _compare_records(sides, seed, number)
        number += len(frames)
        for _ in range(chosen.choice([0, 0, 1, 20])):
            workload.time.advance(1)
            assert len({side.engine.expire_due(100) for side in sides}) == 1, f"seed {seed}, operation {number}"
        _compare_records(sides, seed, number)
    return met


def _compare_records(sides: list[Side], seed: int, number: int) -> None:
    expected, found = (side.records() for side in sides)
    assert found == expected, f"seed {seed}, operation {number}: the records differ"


def main() -> int:
    """The long form."""
    parser = argparse.ArgumentParser(description="Compare the two bodies of the engine, request by request.")
    parser.add_argument("--operations", type=int, default=1_000_000, help="how many requests (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="default: %(default)s")
    settings = parser.parse_args()
    began = time.monotonic()
    met = compare(settings.seed, settings.operations)
    seconds = time.monotonic() - began
    print(f"seed {settings.seed}: {sum(met.values())} requests, {len(met)} kinds of answers, no difference; {seconds:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
