"""One input of a campaign that is guided by coverage: see `guided.c`, which runs this under libFuzzer.

What it is: what `guided.c` calls for each input. Its first byte says which engine is meant, and whether the rest is what a
connection receives or a body of records for `apply`. Engines live on for a while, so that inputs meet what others left behind.
Which thread runs it: libFuzzer's. `python -m tests.engine.guided DIR` writes what to begin with.
"""

from __future__ import annotations

import sys
from pathlib import Path
from random import Random

from rcache.engine.contract import EngineConfig
from rcache.engine.native import _native
from rcache.engine.native.engine import NativeEngine
from tests.engine.fuzz import BUCKETS, SOCKET_LIMITS_NS, Campaign, Clock, NoSocket

INPUTS_A_ENGINE = 5000
CHECK_EVERY = 500
APPLY = 3
"""Of the first byte modulo 4: records for the second engine; else bytes for the first, the second or the third."""

MEMORY_BYTES = (64 << 10, 1 << 20, 128 << 10)


class Target:
    """An engine, and a connection to it."""

    def __init__(self, number: int) -> None:
        self.clock = Clock()
        config = EngineConfig(
            buckets=BUCKETS,
            stripes=2,
            memory_bytes=MEMORY_BYTES[number],
            evict=number != 2,
            value_bytes_max=1 << 16,
            frame_bytes_max=1 << 17,
            stream_bytes=1 << 20,
        )
        self.engine = NativeEngine(config, self.clock)
        self.core: _native.Core = self.engine._core
        self.engine.open_buckets(range(BUCKETS if number != 1 else BUCKETS // 2), 1, 1, "n1")
        self.connect()
        self.inputs = 0

    def connect(self) -> None:
        self.connection = _native.Connection(self.core, NoSocket(), *[SOCKET_LIMITS_NS] * 4)  # type: ignore[arg-type]

    def one(self, data: bytes, apply: bool) -> None:
        self.clock.ms += 1
        if apply:
            self.core.apply(data, 0)
        else:
            _, ending, _, _ = self.core.feed(self.connection, data)
            if ending == 3 or self.inputs % 16 == 0:
                self.connect()
        self.inputs += 1
        if self.inputs % CHECK_EVERY == 0:
            self.engine.expire_due(1000)
            self.engine.check()


targets = [Target(number) for number in range(3)]


def one(data: bytes) -> None:
    which = data[0] % 4 if data else 0
    number = 1 if which == APPLY else which
    targets[number].one(data[1:], which == APPLY)
    if targets[number].inputs >= INPUTS_A_ENGINE:
        targets[number] = Target(number)


def write_seeds(directory: Path) -> None:
    campaign = Campaign(Random("guided"))
    campaign.backups = set(range(BUCKETS // 2, BUCKETS))
    campaign.sequences = dict.fromkeys(campaign.backups, 0)
    short = [frame for frame in campaign.frames if len(frame) < 400]
    for number, frame in enumerate(short[:300]):
        (directory / f"frame-{number}").write_bytes(bytes([number % 3]) + frame + short[-1 - number])
    for number in range(100):
        records = b"".join(campaign.make_record(BUCKETS - 1 - number % 4) for _ in range(3))
        (directory / f"records-{number}").write_bytes(bytes([APPLY]) + records)


if __name__ == "__main__":
    write_seeds(Path(sys.argv[1]))
