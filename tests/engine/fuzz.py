"""Bytes that lie, by the million, into the native engine: `python -m tests.engine.fuzz --seed 1 --inputs 1000000`.

What it is: a program for long campaigns, most of all with the sanitizers (`make sanitize`); a test runs a few thousand. Each
input is what a connection receives at once (`Core.feed`: the engine's own `process`, without a socket), or a body of records
for `apply`: valid ones at times, and else cut, spliced, bit-flipped, or with lengths that lie. Nothing but the sanitizers,
`check` and a good neighbour's keys says whether it went well; what is to be answered is the contract tests' and the
differential test's.
Which thread runs it: the main one. Seeds are printed; the same seed and count make the same inputs.
"""

from __future__ import annotations

import argparse
import struct
import time
import zlib
from collections.abc import Callable
from random import Random
from typing import Any

from rcache.engine.clock import NodeClock
from rcache.engine.contract import EngineConfig
from rcache.engine.native import _native
from rcache.engine.native.engine import NativeEngine
from rcache.records.record import Cause, Kind, Opening, encode_opening, make_sequence
from rcache_client.wire.frames import HEADER_BYTES, encode_request
from rcache_client.wire.opcodes import Opcode

INPUTS_A_ENGINE = 20_000
"""Then another engine, with another shape: what one input did is not hidden for long by what others do later."""

CHECK_EVERY = 1000
TEMPLATES = 1000
"""Valid frames of each engine's own, which its inputs are made of."""

STREAM_BYTES = 4 << 20
UNREAD_BYTES_MAX = 1 << 20
"""Then the stream is read: an input of a few frames writes less than what is left, so none waits for room."""

START_MS = 1_700_000_000_000
BUCKETS = 8
NEIGHBOUR = b"a good neighbour's key"
ODD = (0, 1, 2, 7, 8, 15, 16, 17, 127, 128, 255)
LENGTHS = (0, 1, 2, 15, 16, 17, 255, 256, 65535, 65536, 1 << 20, 1 << 30, (1 << 30) + 1, (1 << 31) - 1, 1 << 31, (1 << 32) - 1)
SOCKET_LIMITS_NS = 10**12


def bucket_of(key: bytes) -> int:
    return zlib.crc32(key) % BUCKETS


class NoSocket:
    """What a connection is made of where nothing is received or sent."""

    def fileno(self) -> int:
        return -1


class Clock(NodeClock):
    """Goes on a little with every input, and at times a lot: so items expire."""

    def __init__(self) -> None:
        self.ms = START_MS
        super().__init__(lambda: self.ms, lambda: self.ms)


class Campaign:
    """One engine and what it is fed. `backups`: of how many buckets it may be a backup; `terms`: what else its configuration
    says."""

    def __init__(self, random: Random, backups: tuple[int, ...] = (0, 0, 2, 4), **terms: Any) -> None:
        self.random = random
        self.clock = Clock()
        self.evict = random.random() < 0.7
        memory_bytes = random.choice([64 << 10, 128 << 10, 256 << 10, 1 << 20])
        self.largest = random.choice([300, 3000, 30_000, 90_000])
        config = EngineConfig(
            buckets=BUCKETS,
            stripes=random.choice([1, 2, 8]),
            memory_bytes=memory_bytes,
            evict=self.evict,
            value_bytes_max=random.choice([1 << 12, 1 << 17, 1 << 17]),
            frame_bytes_max=random.choice([1 << 13, 1 << 18]),
            stream_bytes=STREAM_BYTES,
            commit=False,
            **terms,
        )
        self.engine = NativeEngine(config, self.clock)
        self.core: _native.Core = self.engine._core
        self.backups = set(random.sample(range(BUCKETS), random.choice(backups)))
        self.sequences = dict.fromkeys(self.backups, 0)
        self.engine.open_buckets([n for n in range(BUCKETS) if n not in self.backups], 1, 1, "n1")
        self.reader = self.engine.stream.open_reader("log", holds=True) if random.random() < 0.5 else None
        self.keys = [self.make_key() for _ in range(random.choice([5, 60, 2000, 2000]))]
        self.keys_here = {bucket: [key for key in self.keys if bucket_of(key) == bucket] for bucket in range(BUCKETS)}
        self.frames = [self.make_frame() for _ in range(TEMPLATES)]
        self.released = 0
        self.executed = self.refused = self.applied = 0
        self.connect()

    def connect(self) -> None:
        limits = [SOCKET_LIMITS_NS] * 4
        self.connection = _native.Connection(self.core, NoSocket(), *limits)  # type: ignore[arg-type]

    # --- what is valid

    def make_key(self) -> bytes:
        random = self.random
        length = random.choice([1, 2, 8, 12, 12, 12, 40, 250, 3000 if random.random() < 0.05 else 20])
        return random.randbytes(length)

    def make_value(self) -> bytes:
        random = self.random
        if random.random() < 0.1:
            return str(random.choice([0, 1, -1, 99, 2**63 - 1, -(2**63), random.randrange(10**9)])).encode()
        length = random.choice([0, 10, 100, random.randrange(1000), *[random.randrange(self.largest) for _ in range(3)]])
        return random.randbytes(8) * (length // 8) + b"x" * (length % 8)

    def make_frame(self) -> bytes:
        random = self.random
        opcode = random.choice([*MAKERS, Opcode.SET, Opcode.SET, Opcode.SET, Opcode.ADD, Opcode.PREPEND])
        budget_ms = random.choice([0, 1000, 60_000])
        return encode_request(opcode, random.getrandbits(32), budget_ms, MAKERS[opcode](self))

    # --- what lies

    def spoil(self, whole: bytes) -> bytes:
        random = self.random
        spoilt = bytearray(whole)
        for _ in range(random.choice([1, 1, 1, 2, 4])):
            if not spoilt:
                break
            how, at = random.random(), random.randrange(len(spoilt))
            if how < 0.35:
                spoilt[at] = random.choice(ODD) if random.random() < 0.7 else random.randrange(256)
            elif how < 0.5:
                spoilt[at] ^= 1 << random.randrange(8)
            elif how < 0.65:
                at = random.randrange(min(len(spoilt), 64))
                spoilt[at : at + 4] = struct.pack(">I", random.choice(LENGTHS))
            elif how < 0.75:
                at = random.randrange(min(len(spoilt), 64))
                spoilt[at : at + 2] = struct.pack(">H", random.choice(LENGTHS) & 0xFFFF)
            elif how < 0.85:
                del spoilt[at:]
            elif how < 0.93:
                del spoilt[at : at + random.randint(1, 50)]
            else:
                other = random.choice(self.frames)
                cut = random.randrange(len(other))
                spoilt[at:at] = other[cut : cut + random.randint(1, 300)]
        return bytes(spoilt)

    def lie_in_payload(self, whole: bytes) -> bytes:
        """The header stays true, so that the lie comes as far as it can."""
        payload = self.spoil(whole[HEADER_BYTES:])
        return whole[:4] + struct.pack(">I", len(payload)) + whole[8:HEADER_BYTES] + payload

    # --- one input

    def one(self) -> None:
        random = self.random
        self.clock.ms += random.choice([0, 0, 0, 1, 5, 1000 if random.random() < 0.01 else 0])
        if self.backups and random.random() < 0.25:
            self.apply()
            return
        if self.reader is not None and self.core.head - self.released > UNREAD_BYTES_MAX:
            self.read()
        frames = random.choices(self.frames, k=random.choice([1, 1, 2, 3, 8]))
        how = random.random()
        if how < 0.4:
            at = random.randrange(len(frames))
            frames[at] = self.lie_in_payload(frames[at])
        data = b"".join(frames)
        if how > 0.7:
            data = self.spoil(data)
        if how > 0.95:
            data = data[: random.randrange(len(data) + 1)]
        _, ending, _, _ = self.core.feed(self.connection, data)
        if ending == 9:  # all was executed, or more is to come
            self.executed += 1
        elif ending == 3:  # it cannot be read: the server would close
            self.refused += 1
            self.connect()
        if random.random() < 0.02:
            self.connect()

    def apply(self) -> None:
        random = self.random
        bucket = random.choice(tuple(self.backups))
        body = b"".join(self.make_record(bucket) for _ in range(random.choice([1, 1, 2, 5])))
        if random.random() < 0.6:
            body = self.spoil(body)
        if self.core.apply(body, 0) is None:
            self.applied += 1
        if random.random() < 0.01:
            self.core.copy(bucket)

    def make_record(self, bucket: int) -> bytes:
        random = self.random
        self.sequences[bucket] += random.random() < 0.95
        sequence = self.sequences[bucket]
        state = self.core.state(bucket)
        kind = random.choice([Kind.SET, Kind.SET, Kind.SET, Kind.REMOVE, Kind.FLUSH if random.random() < 0.1 else Kind.SET])
        if state in (0, 1) or random.random() < 0.02:
            kind = random.choice(
                [Kind.IMPORT_BEGIN, Kind.ROW, Kind.ROW, Kind.ROW, Kind.IMPORT_END, Kind.DROP, Kind.SET, Kind.OPEN]
            )
        keys = self.keys_here[bucket] or [b"none of this bucket"]
        key, value = b"", b""
        if kind in (Kind.SET, Kind.REMOVE, Kind.ROW):
            key = random.choice(keys)
        if kind in (Kind.SET, Kind.ROW):
            value = self.make_value()
        elif kind == Kind.OPEN:
            value = encode_opening(Opening(sequence, 1, random.choice(["", "n1", "ö" * 30])))
            sequence = make_sequence((sequence >> 40) + 1, 0)
            self.sequences[bucket] = sequence
        elif kind == Kind.IMPORT_END:
            value = struct.pack(">QQ", random.choice([sequence, 0, 1]), random.choice([0, 1, 2, 3]))
        elif kind == Kind.IMPORT_BEGIN:
            self.sequences[bucket] = sequence
        expires_at = random.choice([0, 0, self.clock.ms + random.randrange(5000), 1, (1 << 64) - 1])
        head = struct.pack(
            ">IBBHIIQQQ", 40 + len(key) + len(value), kind, Cause.NONE, len(key), bucket, 7, sequence, self.clock.ms, expires_at
        )
        return head + key + value

    # --- now and then

    def read(self) -> None:
        if self.reader is not None:
            self.released = self.reader.take(STREAM_BYTES, 0.0).position
            self.reader.release(self.released)

    def look_after(self) -> None:
        random = self.random
        self.read()
        self.engine.expire_due(random.choice([1, 100, 100_000]))
        if random.random() < 0.02:
            for bucket in range(BUCKETS):
                self.core.flush(bucket, time.monotonic_ns() + 10**9)
        for bucket in self.backups:
            if self.core.state(bucket) != 3 and random.random() < 0.05:
                self.core.set_state(bucket, 0, self.core.state(bucket))
                self.sequences[bucket] = 0
        self.engine.check()
        self.neighbour()

    def neighbour(self) -> None:
        """A good one still gets what it asks for, if there is any room at all."""
        if bucket_of(NEIGHBOUR) in self.backups:
            return
        connection = _native.Connection(self.core, NoSocket(), *[SOCKET_LIMITS_NS] * 4)  # type: ignore[arg-type]
        key = struct.pack(">H", len(NEIGHBOUR)) + NEIGHBOUR
        store = struct.pack(">IQHI", 3, 0, len(NEIGHBOUR), 5) + NEIGHBOUR + b"value"
        frames = encode_request(Opcode.SET, 1, 0, store) + encode_request(Opcode.GET, 2, 0, key)
        replies, ending, _, _ = self.core.feed(connection, frames)
        assert ending == 9, ending
        if replies[3] == 0:
            assert replies.endswith(b"value"), replies
        else:
            assert not self.evict or replies[3] == 0x11, replies


def _key(campaign: Campaign) -> bytes:
    key = campaign.random.choice(campaign.keys)
    return struct.pack(">H", len(key)) + key


def _ttl(campaign: Campaign) -> bytes:
    return struct.pack(">Q", campaign.random.choice([0, 0, 0, 0, 50, 1000, 100_000, 3_162_240_000_000]))


def _store(campaign: Campaign) -> bytes:
    key, value = campaign.random.choice(campaign.keys), campaign.make_value()
    return (
        struct.pack(">I", campaign.random.getrandbits(32))
        + _ttl(campaign)
        + struct.pack(">HI", len(key), len(value))
        + key
        + value
    )


def _extend(campaign: Campaign) -> bytes:
    key, value = campaign.random.choice(campaign.keys), campaign.make_value()
    return struct.pack(">HI", len(key), len(value)) + key + value


def _count(campaign: Campaign) -> bytes:
    random = campaign.random
    delta, initial = (random.choice([0, 1, 5, 2**63 - 1, -(2**63)]) for _ in range(2))
    return struct.pack(">qBq", delta, random.choice([0, 1]), initial) + _ttl(campaign) + _key(campaign)


def _many(maker: Callable[[Campaign], bytes]) -> Callable[[Campaign], bytes]:
    def make(campaign: Campaign) -> bytes:
        count = campaign.random.choice([0, 1, 3, 20])
        return struct.pack(">H", count) + b"".join(maker(campaign) for _ in range(count))

    return make


MAKERS: dict[Opcode, Callable[[Campaign], bytes]] = {
    Opcode.GET: _key,
    Opcode.GET_AND_TOUCH: lambda campaign: _ttl(campaign) + _key(campaign),
    Opcode.SET: _store,
    Opcode.ADD: _store,
    Opcode.REPLACE: _store,
    Opcode.DELETE: _key,
    Opcode.TOUCH: lambda campaign: _ttl(campaign) + _key(campaign),
    Opcode.INCREMENT: _count,
    Opcode.DECREMENT: _count,
    Opcode.APPEND: _extend,
    Opcode.PREPEND: _extend,
    Opcode.CAS_VERSION: lambda campaign: struct.pack(">Q", campaign.random.choice([0, 1 << 40 | 5])) + _store(campaign),
    Opcode.CAS_HASH: lambda campaign: campaign.random.randbytes(16) + _store(campaign),
    Opcode.INSPECT: _key,
    Opcode.GET_WITH_TTL: _key,
    Opcode.GET_MANY: _many(_key),
    Opcode.SET_MANY: _many(_store),
    Opcode.DELETE_MANY: _many(_key),
}


def fuzz(seed: int, inputs: int, seconds: float = 3600.0) -> tuple[int, int, int, int]:
    """Returns how many inputs there were; and of those how many were executed to their end, refused, and applied."""
    ends = time.monotonic() + seconds
    done = executed = refused = applied = 0
    while done < inputs and time.monotonic() < ends:
        random = Random(f"{seed} {done}")
        campaign = Campaign(random)
        for number in range(min(INPUTS_A_ENGINE, inputs - done)):
            campaign.one()
            if number % CHECK_EVERY == CHECK_EVERY - 1:
                campaign.look_after()
        done += min(INPUTS_A_ENGINE, inputs - done)
        campaign.look_after()
        executed, refused, applied = executed + campaign.executed, refused + campaign.refused, applied + campaign.applied
    return done, executed, refused, applied


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.engine.fuzz", description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=3600.0, help="no other engine is begun after so long")
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    done, executed, refused, applied = fuzz(options.seed, options.inputs, options.seconds)
    print(f"seed {options.seed}: {done:,} inputs, {executed:,} executed, {refused:,} refused, {applied:,} bodies applied")


if __name__ == "__main__":
    main()
