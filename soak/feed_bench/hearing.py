"""The process of the subscribers: soak/load/hear.c, started, asked what it was told so far, and ended.

What it is: `Hearing`, and `limit_of_hearing`, what that process can take at most.
Which thread runs it: the main thread; every wait ends at a deadline, the program's own or one here.
What it owns: the process, until `close`. What it must not know: who writes.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from dataclasses import dataclass, replace
from pathlib import Path
from struct import Struct
from types import TracebackType

from rcache.records.record import Cause, Kind, Record, encode, make_sequence
from rcache_client.wire.feeds import UNPROVEN
from rcache_client.wire.frames import encode_reply
from rcache_client.wire.opcodes import Opcode, Status
from soak.bench.drivers import Drivers
from soak.bench.errors import BenchError
from soak.bench.peers import Running, running
from soak.bench.traffic import MARK, MARKED_KEY
from soak.feed_bench.contenders import Contender

DRAIN_S = 5.0
"""So long subscribers may go on after the last write, for the sum: told and lost together are what was written."""

LOOK_S = 0.02
END_S = 10.0


@dataclass(frozen=True)
class Counts:
    """Of all subscribers together, since they had subscribed. `at` (CLOCK_MONOTONIC) and `cpu_s`, the process's own: seconds.
    `least` and `most`: what one of them was told. `closed`: how many were disconnected."""

    at: float
    cpu_s: float
    told: int
    lost: int
    gaps: int
    least: int
    most: int
    closed: int
    bytes: int
    answers: int


@dataclass(frozen=True)
class Times:
    """A file for the times of events; see soak/load/hear.c."""

    path: Path
    keys: int
    every: int


class Hearing:
    """So many subscribers of a server, all of them answered; see the module. Raises `BenchError`."""

    def __init__(
        self,
        drivers: Drivers,
        contender: Contender,
        server: Running,
        count: int,
        *,
        files: Path,
        times: Times | None = None,
    ) -> None:
        self.count = count
        arguments: list[object] = [drivers.program("hear"), "-p", contender.protocol, "-n", count]
        for option, content in (("-q", contender.subscribe), ("-a", contender.ask)):
            if content:
                path = files / f"hear{option}"
                path.write_bytes(content)
                arguments += [option, path]
        if times:
            arguments += ["-t", times.path, "-k", times.keys, "-e", times.every]
        command = [str(each) for each in (*arguments, "127.0.0.1", server.port)]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        try:
            self._line()
        except BaseException:
            self.close()
            raise

    def counts(self) -> Counts:
        """As they are now."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # then it says why on the other side
            self._process.stdin.write("\n")
            self._process.stdin.flush()
        return Counts(**json.loads(self._line()))

    def drain(self, written: int) -> Counts:
        """The counts once all that was written is accounted for by everybody, or nobody is left, or after a while."""
        deadline = time.monotonic() + DRAIN_S
        while True:
            counts = self.counts()
            done = counts.told + counts.lost >= written * self.count or counts.closed == self.count
            if done or time.monotonic() > deadline:
                return counts
            time.sleep(LOOK_S)

    def _line(self) -> str:
        assert self._process.stdout is not None
        if line := self._process.stdout.readline():
            return line
        _, said = self._process.communicate(timeout=END_S)
        raise BenchError(said.strip() or "hear ended without a word")

    def close(self) -> None:
        """End it. Idempotent."""
        self._process.kill()
        self._process.communicate()

    def __enter__(self) -> Hearing:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def limit_of_hearing(drivers: Drivers, contender: Contender, count: int, seconds: float, directory: Path) -> dict[str, float]:
    """What the process takes from a server that does nothing (soak/load/limit.c) but give the same answer of 60 KB."""
    record = Record(Kind.SET, Cause.SET, 0, 0, make_sequence(1, 1), 0, 0, MARKED_KEY, MARK * 12 * contender.values)
    events = encode(record) * (60_000 // len(encode(record)))
    answers = {Opcode.SUBSCRIBE: b"", Opcode.EVENTS: Struct(">II").pack(UNPROVEN, 0) + events}
    peer = drivers.limit()
    for opcode, payload in answers.items():
        path = directory / f"limit-{opcode.name}"
        path.write_bytes(encode_reply(opcode, Status.OK, 1, 1, payload))
        peer = replace(peer, flags=(*peer.flags, str(int(opcode)), str(path)))
    with running(peer) as server, Hearing(drivers, contender, server, count, files=directory) as hearing:
        before = hearing.counts()
        time.sleep(seconds)
        after = hearing.counts()
    told = after.told - before.told
    return {"all_per_s": told / (after.at - before.at), "cpu_us": (after.cpu_s - before.cpu_s) / told * 1e6}
