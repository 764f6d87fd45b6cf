"""One measurement: writers at some pace, so many subscribers, and what became of both.

What it is: `measure`. Which thread runs it: the main thread; the load comes from processes of their own.
What it owns: nothing that outlives a call. What it must not know: which server it is, and how figures are shown.

How late an event is: the writers note when each key's write was acknowledged, the subscribers when each was told of it, both
on the clock of the machine, in files. So it goes for names as for values.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from soak.bench.drivers import Drivers, Figures, Keys, Shape
from soak.bench.errors import BenchError
from soak.bench.machine import processor_s
from soak.bench.peers import Running, running
from soak.bench.traffic import SET, marked
from soak.feed_bench.contenders import Contender
from soak.feed_bench.hearing import Counts, Hearing, Times

VALUE_BYTES = 100
FULL = Shape(16, 16)
"""As the benchmark measures the append log."""

PACED = (4, 10)
"""Connections and requests at once where the writers have a rate: one batch every 0.5 ms at 20,000 a second."""

KEYS = 100_000
"""Of the writers at full rate."""

EVERY = 7
"""Of every so many writes it is looked how late they are told of: another number than any that has to do with batches."""


class Setting(NamedTuple):
    """Of every measurement: its length, where the servers' files are, rcached's engine; `started` gets the version and the
    command of each server that was."""

    seconds: float
    scratch: Path
    engine: str
    started: dict[str, dict[str, str]]


def shape_of(rate: int) -> Shape:
    """Of the writers; 0: as fast as it goes."""
    return Shape(*PACED, rate=rate) if rate else FULL


def write(drivers: Drivers, server: Running, rate: int, seconds: float, times: Path | None = None) -> Figures:
    """SETs for so long. At a rate each has a key of its own, in order. Blocks. Raises `BenchError`."""
    keys = Keys(paced_keys(rate, seconds), in_order=True, times=times) if rate else Keys(KEYS)
    return drivers.keys(server, marked(server.peer.dialect, VALUE_BYTES)[SET], shape_of(rate), seconds, keys)


def paced_keys(rate: int, seconds: float) -> int:
    """More than are written in that time."""
    return int(rate * (seconds + 1))


def measure(drivers: Drivers, contender: Contender, count: int, rate: int, setting: Setting) -> dict[str, float]:
    """The figures of one fresh server with `count` subscribers. Raises `BenchError`."""
    seconds = setting.seconds
    with ExitStack() as stack:
        files = Path(stack.enter_context(TemporaryDirectory(prefix="rcache-feeds-", dir=setting.scratch)))
        data = files / "data"
        data.mkdir()
        server = stack.enter_context(running(contender.peer(setting.engine), data))
        _note(server, setting.started)
        if not count:
            return _of_writers(write(drivers, server, rate, seconds))
        written, heard = (files / "written", files / "heard") if rate else (None, None)
        times = Times(heard, paced_keys(rate, seconds), EVERY) if heard else None
        hearing = stack.enter_context(Hearing(drivers, contender, server, count, files=files, times=times))
        before, cpu_s = hearing.counts(), processor_s(server.pid)
        writers = write(drivers, server, rate, seconds, written)
        after, cpu_s = hearing.counts(), processor_s(server.pid) - cpu_s
        figures = _of_writers(writers) | told(before, after, count, writers["operations"] / writers["operations_per_s"])
        figures |= {"server_cores": cpu_s / (after.at - before.at)} | accounted(hearing, int(writers["operations"]))
        if written and heard:
            figures |= lateness(_doubles(written), _doubles(heard), count)
    return figures


def _note(server: Running, started: dict[str, dict[str, str]]) -> None:
    peer = server.peer
    if peer.name not in started:
        version = f"{peer.version}, engine {server.engine}" if server.engine else peer.version
        started[peer.name] = {"version": version, "command": peer.command}


def _of_writers(writers: Figures) -> dict[str, float]:
    return {"sets_per_s": writers["operations_per_s"], "p50_us": writers["p50_us"], "p99_us": writers["p99_us"]}


def told(before: Counts, after: Counts, count: int, seconds: float) -> dict[str, float]:
    """Events a second while the writers wrote, and the cores that the subscribers' process took."""
    all_per_s = (after.told - before.told) / seconds
    cores = (after.cpu_s - before.cpu_s) / (after.at - before.at)
    return {"all_per_s": all_per_s, "each_per_s": all_per_s / count, "hearing_cores": cores}


def accounted(hearing: Hearing, written: int) -> dict[str, float]:
    """What share of the events was lost, of those that are accounted for soon after the last write. Raises `BenchError` where
    more was told than was written."""
    end, wanted = hearing.drain(written), written * hearing.count
    if end.told + end.lost > wanted:
        raise BenchError(f"{end.told:,} events were told and {end.lost:,} lost, of {wanted:,}")
    lost = wanted - end.told if end.closed else end.lost
    return {
        "lost_share": lost / max(1, end.told + lost),
        "gaps": float(end.gaps),
        "closed": float(end.closed),
        "unaccounted": float(wanted - end.told - lost),
    }


def lateness(written: Sequence[float], heard: Sequence[float], count: int) -> dict[str, float]:
    """How long after its acknowledgement an event came, in milliseconds: the middle and the slow ones, over all subscribers.
    (It may come before: the acknowledgement has a way of its own.) `heard`: of each subscriber every EVERYth key's time."""
    each = len(heard) // count
    late = sorted(
        heard[subscriber * each + sample] - written[sample * EVERY]
        for sample in range(each)
        if written[sample * EVERY]
        for subscriber in range(count)
        if heard[subscriber * each + sample]
    )
    if not late:
        raise BenchError("no event was told of a write whose time is known: raise --rate or --seconds")
    return {"late_p50_ms": late[len(late) // 2] * 1e3, "late_p99_ms": late[len(late) * 99 // 100] * 1e3}


def _doubles(path: Path) -> array[float]:
    found = array("d")
    found.frombytes(path.read_bytes())
    return found
