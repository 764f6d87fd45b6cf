"""The run: a cluster is set up, called, and broken again and again; then everything is looked at.

What it is: `Settings`, `Outcome`, and `Run`. Which thread runs it: the main thread; watcher and judge have theirs.
What it owns: everything that the run starts, in one `ExitStack`. What it must not know: command lines and reports.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rcache_client import Client
from soak.cluster.bins import Bin, merged
from soak.cluster.clients import Counts, Spec, waits_file
from soak.cluster.cluster import RECOVERY_S, Cluster, Plan
from soak.cluster.crew import Crew
from soak.cluster.errors import SoakFailed, Violated
from soak.cluster.faults import Fault, fault_for
from soak.cluster.findings import Findings
from soak.cluster.judge import Judge, Verdict
from soak.cluster.listeners import ListenSpec
from soak.cluster.nodes import Birth
from soak.cluster.schedule import NEEDS_SHIM, ORDERLY, Kind, Planned, schedule
from soak.cluster.shim import NoShim, built_shim
from soak.cluster.stayers import Orders, StaySpec
from soak.cluster.tape import Tape, TapeFigures
from soak.cluster.timeline import Broken, false_suspicions, measure_gaps
from soak.cluster.watch import Suspicion, Watcher
from soak.cluster.workload import Load
from soak.server_process import ServerFailed

WARM_UP_S = 1.0
"""Of calls before the first fault, so that what is normal can be seen."""

LOOK_S = 0.1

BASE_KEYS = 500
"""Entries that are written once and must be there at the end; enough for every bucket to hold some."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What a run is told. `kinds` empty: whatever can be done here; `listens`: subscribers and a logger follow it."""

    nodes: int
    seconds: float
    seed: int
    manager: str
    kinds: tuple[Kind, ...]
    load: Load
    birth: Birth
    budget_s: float
    history: Path | None = None
    keep: Path | None = None
    listens: bool = True


@dataclass(slots=True)
class Outcome:
    """What a run found."""

    violations: list[str] = field(default_factory=list)
    faults: list[Broken] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    counts: dict[str, Counts] = field(default_factory=dict)
    stayed: dict[str, Counts] = field(default_factory=dict)
    """The same of those who kept to their nodes."""
    told: dict[str, Counts] = field(default_factory=dict)
    """The same of subscribers."""
    tape: TapeFigures | None = None
    bins: dict[int, Bin] = field(default_factory=dict)
    waits: list[tuple[float, float]] = field(default_factory=list)
    suspicions: list[Suspicion] = field(default_factory=list)
    false_suspicions: list[Suspicion] = field(default_factory=list)
    fell_out: Counter[str] = field(default_factory=Counter)
    errors_said: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    state: dict[str, Any] = field(default_factory=dict)
    """Of each node when the first violation was found."""
    started: float = 0.0
    seconds: float = 0.0
    first_whole_s: float = 0.0
    memory_most: int = 0
    late: int = 0
    latest_s: float = 0.0

    @property
    def fine(self) -> bool:
        return not self.violations

    @property
    def operations(self) -> int:
        return sum(verdict.operations for verdict in self.verdicts)

    def called(self, outcome: str) -> int:
        return sum(counts.outcomes.get(outcome, 0) for counts in self.counts.values())


class Run:
    """One run, in `directory`, which is its caller's. `say`: a line of progress."""

    def __init__(self, settings: Settings, directory: Path, say: Callable[[str], None]) -> None:
        self.settings = settings
        self.outcome = Outcome()
        self._directory = directory
        self._findings = Findings()
        self._began = time.monotonic()
        self._tell = say
        self._tape: Tape | None = None
        self._is_whole = False
        """All nodes run, and every bucket has its backups: all can be read, and all nodes stopped in order."""

    def say(self, text: str) -> None:
        self._tell(f"{time.monotonic() - self._began:7.1f} s  {text}")

    def carry_out(self) -> Outcome:
        """Blocks for the time it was told, and what it takes to set up and to look at the rest. Raises `SoakFailed`."""
        with ExitStack() as closing:
            cluster = self._set_up(closing)
            watcher = Watcher(cluster, self._findings)
            closing.callback(watcher.stop)
            watcher.start()
            self._call_and_break(cluster, closing)
            self._see_state(cluster)
            for wrong in cluster.stop() if self._is_whole else []:
                self._findings.add(wrong)
            watcher.stop()
            self._take_in(watcher)
        self.outcome.violations = self._findings.all()
        return self.outcome

    # --- setting up

    def _set_up(self, closing: ExitStack) -> Cluster:
        settings = self.settings
        shim = None
        try:
            shim = built_shim(self._directory)
        except NoShim as why:
            if left_out := NEEDS_SHIM.intersection(settings.kinds):
                self._leave_out(left_out, str(why))
        plan = Plan(settings.nodes, settings.manager, settings.birth, settings.seed, self._directory, shim)
        try:
            cluster = Cluster(plan)
        except ServerFailed as failure:
            raise SoakFailed(f"the cluster did not start: {failure}") from None
        closing.callback(cluster.close)
        try:
            self.outcome.first_whole_s = cluster.recover()
        except Violated as violation:
            raise SoakFailed(f"before anything was broken: {violation}") from None
        self.say(f"{settings.nodes} nodes, whole {self.outcome.first_whole_s:.1f} s after the last was ready")
        return cluster

    def _leave_out(self, kinds: frozenset[Kind], why: str) -> None:
        """Say so, and do the rest. Raises `SoakFailed` if nothing is left."""
        rest = tuple(kind for kind in self.settings.kinds if kind not in kinds)
        what = f"not possible on this machine, and left out: {', '.join(sorted(kinds))}: {why}"
        if not rest:
            raise SoakFailed(what)
        self.settings = replace(self.settings, kinds=rest)
        self._note(what)

    def _note(self, what: str) -> None:
        self.outcome.notes.append(what)
        self.say(what)

    # --- the run itself

    def _call_and_break(self, cluster: Cluster, closing: ExitStack) -> None:
        settings, outcome = self.settings, self.outcome
        calls = self._directory / "calls"
        calls.mkdir()
        cache = Client(cluster.addresses, budget=settings.budget_s, name="soak-judge", wait_for_servers=True)
        closing.callback(cache.close)
        start_ns = time.monotonic_ns()
        outcome.started = start_ns / 1e9
        spec = Spec(
            cluster.addresses, 0, settings.load.clients, settings.seed, start_ns, str(calls), settings.budget_s, settings.load
        )
        ports = {name: node.port for name, node in cluster.nodes.items()}
        stay = StaySpec(ports, start_ns, settings.load.round_s, str(calls))
        crew = closing.enter_context(Crew(spec, stay, self._listen_to(cluster, closing)))
        judge = Judge(crew, cache, settings.load, self._findings, settings.history)
        closing.callback(judge.close)
        judge.start_ns, judge.keep, judge.say = start_ns, settings.keep, self.say
        judge.write_base(BASE_KEYS)
        judge.start()
        self._is_whole = self._break_on(cluster, crew)
        traffic = cluster.network.traffic()
        outcome.late, outcome.latest_s = traffic.late, traffic.latest_s
        outcome.seconds = time.monotonic() - outcome.started
        counts = crew.end()
        outcome.counts = {name: counts[name] for name in crew.clients}
        outcome.stayed = {name: counts[name] for name in crew.names if name not in crew.clients}
        outcome.told = {name: counts[name] for name in crew.listeners}
        self.say("the clients have ended; looking at all that is left")
        judge.finish(readable=self._is_whole)
        self._look_at_tape(cache, judge)
        outcome.verdicts = judge.verdicts
        outcome.bins = merged(verdict.bins for verdict in judge.verdicts if verdict.round != "base")
        outcome.waits = list(_waits(calls, crew.clients))
        self._look_at_counts()

    def _listen_to(self, cluster: Cluster, closing: ExitStack) -> ListenSpec | None:
        """Who follows what is changed. Raises `SoakFailed`."""
        if not self.settings.listens:
            return None
        self._tape = Tape(self._directory / "tape", cluster.addresses)
        closing.callback(self._tape.close)
        try:
            self._tape.start()
        except Violated as violation:
            raise SoakFailed(f"before anything was broken: {violation}") from None
        self.outcome.tape = self._tape.figures
        return ListenSpec(cluster.addresses, self.settings.seed, self.settings.budget_s)

    def _look_at_tape(self, cache: Client[bytes], judge: Judge) -> None:
        if self._tape is None:
            return
        if self._is_whole:
            for wrong in self._tape.finish(cache, judge.base_keys):
                self._findings.add(wrong)
        for line in self._tape.said.splitlines():
            if "unhandled" in line or "Traceback" in line:
                self._findings.add(f"the logger: {line}")
        figures = self._tape.figures
        self.say(f"the logger recorded {figures.items} items in {figures.segments} files, through {figures.restarts} kills")

    def _break_on(self, cluster: Cluster, crew: Crew) -> bool:
        """One fault after the other, until the time is over or something was violated. False if the cluster is not whole."""
        settings = self.settings
        deadline = time.monotonic() + settings.seconds
        try:
            self._wait(WARM_UP_S, crew)
            for planned in schedule(settings.seed, settings.kinds, settings.nodes):
                self._wait(min(planned.quiet_s, deadline - time.monotonic()), crew)
                if self._findings.any.is_set() or time.monotonic() >= deadline:
                    break
                self._break(cluster, planned, crew)
        except Violated as violation:
            self._findings.add(str(violation))
            self.say(f"VIOLATED: {violation}")
            self._see_state(cluster)
            cluster.network.heal()
            return False
        return True

    def _break(self, cluster: Cluster, planned: Planned, crew: Crew) -> None:
        """One fault, from its beginning until every bucket has its backups again. Raises `Violated`."""
        fault = fault_for(cluster, planned)
        record = Broken(planned.number, fault.kind.value, fault.text(), fault.victims, fault.destructive, fault.orderly)
        self.outcome.faults.append(record)
        self.say(f"fault {planned.number}: {fault.text()}")
        record.began = time.monotonic()
        record.ended = record.whole = record.began + RECOVERY_S  # until it is known better
        crew.tell_stayers(Orders(busy=True, spared=tuple(fault.spared)))
        if self._tape is not None:
            self._tape.before(planned.number)
        try:
            for wait_s in fault.course():
                self._wait(wait_s, crew)
            self._end(fault, record)
            cluster.recover()
            crew.tell_stayers(Orders())
            if self._tape is not None:
                self._tape.after()
        finally:
            record.whole = time.monotonic()
            record.ended = min(record.ended, record.whole)
        self.say(
            f"fault {planned.number}: over after {record.ended - record.began:.1f} s, whole {record.recovery_s:.1f} s later"
        )

    @staticmethod
    def _end(fault: Fault, record: Broken) -> None:
        """A fault has ended when a node that comes back is ready, or bytes pass again."""
        try:
            fault.end()
        finally:
            record.ended = time.monotonic()

    def _wait(self, seconds: float, crew: Crew) -> None:
        """Let time pass; less if something was violated. Raises `SoakFailed` if the clients are gone."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0 and not self._findings.any.is_set():
            if dead := crew.dead():
                raise SoakFailed("; ".join(dead))
            time.sleep(min(LOOK_S, left))

    # --- afterwards

    def _look_at_counts(self) -> None:
        """What the clients counted: nothing strange ever, and no failure at all where everything was stopped in order."""
        for name, counts in {**self.outcome.counts, **self.outcome.stayed, **self.outcome.told}.items():
            for strange in counts.strange:
                self._findings.add(f"client {name}: {strange}")
        failed = self.outcome.called("fail") + self.outcome.called("unknown")
        if failed and set(self.settings.kinds) <= ORDERLY:
            first = min((each for counts in self.outcome.counts.values() for each in counts.failed), default=(0, ""))
            self._findings.add(f"everything was stopped in order, and {failed} calls did not succeed; the first: {first[1]}")

    def _see_state(self, cluster: Cluster) -> None:
        """If something was violated: what the nodes know of it."""
        if not self._findings.any.is_set() or self.outcome.state:
            return
        for name in cluster.nodes:
            seen = cluster.look(name)
            self.outcome.state[name] = seen.stats if seen is not None else "does not answer"

    def _take_in(self, watcher: Watcher) -> None:
        outcome = self.outcome
        outcome.suspicions = watcher.suspicions
        outcome.false_suspicions = false_suspicions(watcher.suspicions, outcome.faults)
        outcome.fell_out = watcher.fell_out
        outcome.errors_said = watcher.errors
        outcome.memory_most = watcher.memory_most
        measure_gaps(outcome.faults, outcome.waits)


def _waits(calls: Path, clients: list[str]) -> Iterator[tuple[float, float]]:
    """What the clients waited for: seconds of the monotonic clock."""
    for name in clients:
        path = waits_file(calls, name)
        for line in path.read_text(encoding="ascii").splitlines() if path.exists() else []:
            start_ns, end_ns = json.loads(line)
            yield start_ns / 1e9, end_ns / 1e9
