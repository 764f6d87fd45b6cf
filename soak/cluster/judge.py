"""Round after round: the last look at its keys, the verdict of the checker, and its place in the history.

What it is: `Judge`, and `judged`, what a process beside the run does with the files of a round.
Which thread runs it: `Judge.run` is a thread of its own, `finish` the main thread's after it; `judged` runs in a process, so
that the search keeps nobody else waiting.
What it owns: the files of rounds that are over, and a client of its own. What it must not know: what was broken.

A round's keys are left by the clients, and stay for AGE rounds more, with whatever is broken meanwhile; then each is read
once again, in the name of a client FINAL: so an acknowledged write is missed even where no client came back to its key. Beside
them stands the *base*: entries written at the beginning, of which some are read in each round and all at the end.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from zlib import crc32

from rcache_client import Client, RcacheError
from soak.checker import verify
from soak.cluster.bins import Bin, binned
from soak.cluster.crew import Crew
from soak.cluster.findings import Findings
from soak.cluster.operations import Caller, is_strange
from soak.cluster.stayers import is_stayer
from soak.cluster.workload import Load, keys_of
from soak.history import DamagedHistory, HistoryWriter, read_history, to_line

FINAL = "final"
BASE = "base"

AGE = 1
"""So many rounds later a round is judged: its keys live through the faults of those."""

LOOK_S = 0.25

READ_S = 30.0
"""For a key to be readable once the cluster works: a call's budget, many times over."""

HASTY_S = 5.0
"""The same where something was violated already: it is known by then that it does not work."""

BASE_SHARE = 0.1
"""Of the base is read in each round."""

BASE_CHARS = 1000
THICK_CHARS = (20_000, 60_000)
THICK_OF = 16
"""One in so many of the base's keys is thick, and all of these are in one in so many of the buckets: a copy of such a bucket is
made in several portions, and one that is counted in too early lacks some of them."""

NICE = 10
"""The checker takes what the others leave."""

JUDGE_S = 600.0
"""For one round's verdict: the checker's own budget ends it long before."""


@dataclass(slots=True)
class Verdict:
    """What was found of one round. `lines`: the checker's report, for people."""

    round: str
    operations: int = 0
    keys: int = 0
    failed: int = 0
    unknown: int = 0
    fine: bool = True
    seconds: float = 0.0
    lines: list[str] = field(default_factory=list)
    bins: dict[int, Bin] = field(default_factory=dict)


def judged(name: str, files: Sequence[Path], start_ns: int, history: Path | None) -> Verdict:
    """Check a round's files, and add them to the history of the run. Blocks for seconds. In a process of its own."""
    began = time.monotonic()
    try:
        found = read_history(files)
    except DamagedHistory as error:
        return Verdict(name, fine=False, lines=[f"the history is damaged: {error}"])
    operations = sorted(found.operations, key=lambda each: each.start_ns)
    if history is not None:
        with history.open("ab") as file:
            file.writelines(map(to_line, operations))
    report = verify(operations)
    return Verdict(
        name,
        report.operations,
        report.keys,
        report.failed,
        report.unknown,
        report.fine,
        time.monotonic() - began,
        list(report.lines()),
        binned((each for each in operations if each.client not in {FINAL, BASE} and not is_stayer(each.client)), start_ns),
    )


def _step_back() -> None:
    os.nice(NICE)


class Judge:
    """See the module. `keep`: a directory for the files of rounds that are not fine."""

    def __init__(self, crew: Crew, cache: Client[bytes], load: Load, findings: Findings, history: Path | None) -> None:
        self.verdicts: list[Verdict] = []
        self.keep: Path | None = None
        self.start_ns = 0
        self.say: Callable[[str], None] = lambda _text: None
        self._crew = crew
        self._cache = cache
        self._load = load
        self._findings = findings
        self._history = history
        self._next = 0
        self._over = threading.Event()
        self._base: list[str] = []
        self._base_file = crew.directory / f"{BASE}.jsonl"
        self._base_writer = HistoryWriter(self._base_file)
        self._random = random.Random(0)
        self._pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _step_back)
        self._thread = threading.Thread(target=self._run, name="judge")

    # --- the base

    def write_base(self, count: int) -> None:
        """Write the entries that are to be there until the end."""
        caller = self._caller(BASE, self._base_writer)
        self._base = [f"{BASE}-{index}" for index in range(count)]
        for key in self._base:
            thick = crc32(key.encode()) % THICK_OF == 0
            chars = self._random.randint(*THICK_CHARS) if thick else self._random.randrange(BASE_CHARS)
            value, deadline = f"{key} " + "." * chars, time.monotonic() + READ_S
            while (done := caller.set(key, value)).error is not None:  # on a machine that does much else a call may time out
                if time.monotonic() > deadline or is_strange(done.error):
                    self._findings.add(f"before anything was broken: {key}: {done.error}")
                    return

    @property
    def base_keys(self) -> list[str]:
        return list(self._base)

    def _read_base(self, keys: Sequence[str]) -> None:
        caller = self._caller(BASE, self._base_writer)
        for key in keys:
            if caller.get(key).error is not None:
                return  # something is broken just now; there is another round

    # --- the thread

    def start(self) -> None:
        self._thread.start()

    def _run(self) -> None:
        """The thread's one catch-all: what it did not expect is a violation, not a silence."""
        try:
            while not self._over.wait(LOOK_S):
                while self._crew.rounds_done > self._next + AGE and not (self._over.is_set() or self._findings.any.is_set()):
                    self._judge_next()
                    self._read_base(self._random.sample(self._base, round(len(self._base) * BASE_SHARE)))
        except Exception as error:
            self._findings.add(f"the judge failed: {type(error).__name__}: {error}")

    def finish(self, *, readable: bool) -> None:
        """After the clients have ended: judge what is left. `readable`: the cluster is whole, so every key must be."""
        self._over.set()
        if self._thread.ident is not None:
            self._thread.join(JUDGE_S)
        while self._next < self._crew.rounds_done:
            self._judge_next(readable=readable)
        if readable:
            self._last_look(self._caller(BASE, self._base_writer), self._base)
        self._base_writer.close()
        self._take(self._pool.submit(judged, BASE, [self._base_file], self.start_ns, self._history).result(JUDGE_S), [])

    def close(self) -> None:
        """Idempotent."""
        self._over.set()
        if self._thread.ident is not None:
            self._thread.join(JUDGE_S)
        self._base_writer.close()
        self._pool.shutdown(cancel_futures=True)

    # --- one round

    def _judge_next(self, *, readable: bool = True) -> None:
        number = self._next
        self._next += 1
        files = self._crew.files_of(number)
        final = self._crew.directory / f"r{number:05}-{FINAL}.jsonl"
        keys = keys_of(number, self._load).all()
        if readable and files:
            with HistoryWriter(final) as writer:
                self._last_look(self._caller(FINAL, writer), keys)
            files.append(final)
        verdict = self._pool.submit(judged, f"r{number}", files, self.start_ns, self._history).result(JUDGE_S)
        self._take(verdict, files)
        with contextlib.suppress(RcacheError):
            self._cache.delete_many(keys)

    def _take(self, verdict: Verdict, files: Sequence[Path]) -> None:
        self.verdicts.append(verdict)
        if not verdict.fine:
            self._findings.add(f"round {verdict.round}: " + "\n".join(verdict.lines))
            for path in [*files, *([self._base_file] if verdict.round == BASE else [])]:
                if self.keep is not None:
                    self.keep.mkdir(parents=True, exist_ok=True)
                    shutil.copy(path, self.keep)
        self.say(
            f"round {verdict.round}: {verdict.operations} operations, {verdict.failed} failed, {verdict.unknown} unknown; "
            f"{'linearizable' if verdict.fine else 'VIOLATED'} (checked in {verdict.seconds:.1f} s)"
        )
        for path in files:
            path.unlink()

    def _last_look(self, caller: Caller, keys: Sequence[str]) -> None:
        """Read each key until it is answered; after one that is not, no other is asked for."""
        for key in keys:
            patience_s = HASTY_S if self._findings.any.is_set() else READ_S
            deadline = time.monotonic() + patience_s
            while (done := caller.get(key)).error is not None:
                if time.monotonic() > deadline:
                    self._findings.add(f"{key} could not be read within {patience_s:g} s: {done.error}")
                    return

    def _caller(self, name: str, writer: HistoryWriter) -> Caller:
        caller = Caller(name, self._cache)
        caller.writer = writer
        return caller
