"""What nodes say of themselves while they are broken: their logs, their counters, and whether they run.

What it is: `Watcher`; `read_line`, what a line of a log means. Which thread runs it: its own, from `start` to `stop`.
What it owns: its place in each log. What it must not know: how anything was broken.

An *alarm* is what no fault excuses: an error that nobody expected, in a log or in a counter; a node that ended by itself; an
eviction, which could be mistaken for a loss. A *suspicion* is a node that goes on without another; whether it was false is
decided later, from what was broken at that time.
"""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from soak.cluster.cluster import Cluster
from soak.cluster.findings import Findings

LOOK_S = 0.2
COUNTERS_S = 1.0

READ_BYTES = 1 << 20
"""Of a log at once."""

ERRORS_KEPT = 200

COUNTERS = (
    ("cluster", "unhandled_errors"),
    ("connections", "unhandled_errors"),
    ("server", "housekeeper_errors"),
    ("items", "evicted"),
    ("cluster", "buckets_lost"),
)
"""None of these may ever be above 0."""

_SUSPICION = re.compile(r"going on without (\S+): (.*)")
_ALARM = re.compile(r"unhandled error|Traceback \(most recent call last\)|housekeeper: .* failed\b|NOT WHOLE")
_TRACED = re.compile(r"unhandled error|Traceback \(most recent call last\)")
"""Alarms that are followed by their traceback, and below it by the error itself."""
_FELL_OUT = "FELL OUT"
_ERROR = re.compile(r"\s(ERROR|CRITICAL)\s")
_TIME = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+ +")
_TRACE = re.compile(r"^(\s|>|Traceback )")


class Suspicion(NamedTuple):
    """`by` goes on without `of`; `at` by the monotonic clock, in s."""

    at: float
    by: str
    of: str
    why: str


class Said(NamedTuple):
    """What a line of a log means: at most one of these."""

    suspicion: tuple[str, str] | None = None
    alarm: str = ""
    fell_out: bool = False
    error: str = ""


def read_line(line: str) -> Said:
    """What a line of a node's log means to a soak run."""
    if _ALARM.search(line):
        return Said(alarm=line.strip())
    if found := _SUSPICION.search(line):
        return Said(suspicion=(found[1], found[2]))
    if _FELL_OUT in line:
        return Said(fell_out=True)
    return Said(error=line.strip()) if _ERROR.search(line) else Said()


class Tail:
    """Reads a log on from where it was read before, whole lines only."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._place = 0
        self._torn = b""

    def lines(self) -> list[str]:
        try:
            with self.path.open("rb") as file:
                file.seek(self._place)
                data = file.read(READ_BYTES)
        except FileNotFoundError:
            return []
        self._place += len(data)
        *whole, self._torn = (self._torn + data).split(b"\n")
        return [line.decode(errors="replace") for line in whole]


class Watcher:
    """See the module."""

    def __init__(self, cluster: Cluster, findings: Findings) -> None:
        self.suspicions: list[Suspicion] = []
        self.errors: list[str] = []
        self.fell_out: Counter[str] = Counter()
        self.memory_most = 0
        self._cluster = cluster
        self._findings = findings
        self._tails: dict[str, list[Tail]] = {name: [] for name in cluster.nodes}
        self._alarmed: dict[str, str] = {}
        """Alarms whose error is still to come: it stands below the traceback."""
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watcher")

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ends with a last look at the logs. Idempotent."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join()
        self.read_logs()
        for name in list(self._alarmed):
            self._raise_alarm(name)

    def _run(self) -> None:
        """The thread's one catch-all: what it did not expect is a violation, not a silence."""
        due = 0.0
        try:
            while not self._stopping.wait(LOOK_S):
                self.read_logs()
                self._look_for_dead()
                if time.monotonic() >= due:
                    self._look_at_counters()
                    due = time.monotonic() + COUNTERS_S
        except Exception as error:
            self._findings.add(f"the watcher failed: {type(error).__name__}: {error}")

    def read_logs(self) -> None:
        """Take in what the nodes wrote since."""
        for name, node in self._cluster.nodes.items():
            tails = self._tails[name]
            if not tails or tails[-1].path != node.log:
                tails.append(Tail(node.log))  # it was started again; the log before has ended
            for tail in tails[-2:]:
                for line in tail.lines():
                    self._take(name, line)

    def _take(self, name: str, line: str) -> None:
        if name in self._alarmed:
            if _TRACE.match(line):
                return
            if not _TIME.match(line):
                self._raise_alarm(name, line)
                return
            self._raise_alarm(name)
        said = read_line(line)
        if said.alarm:
            self._alarmed[name] = said.alarm
            if not _TRACED.search(said.alarm):
                self._raise_alarm(name)
        elif said.suspicion is not None:
            self.suspicions.append(Suspicion(time.monotonic(), name, *said.suspicion))
        elif said.fell_out:
            self.fell_out[name] += 1
        elif said.error and len(self.errors) < ERRORS_KEPT:
            self.errors.append(f"{name}: {said.error}")

    def _raise_alarm(self, name: str, error: str = "") -> None:
        """Without its time: an error that comes again and again is one finding."""
        said = _TIME.sub("", self._alarmed.pop(name))
        self._findings.add(f"{name} said: {said}" + (f": {error.strip()}" if error else ""))

    def _look_for_dead(self) -> None:
        for name, node in self._cluster.nodes.items():
            if node.expected and not node.running and node.expected:  # again: a fault may have ended it between
                self._findings.add(f"{name} ended by itself: {node.said[-1000:].strip()}")

    def _look_at_counters(self) -> None:
        for name in self._cluster.expected:
            seen = self._cluster.look(name)
            if seen is None:
                continue
            self.memory_most = max(self.memory_most, seen.stats.get("memory", {}).get("used_bytes", 0))
            for section, counter in COUNTERS:
                if count := counted(seen.stats, section, counter):
                    self._findings.add(f"{name}: {section}.{counter} is {count}")


def counted(stats: dict[str, Any], section: str, counter: str) -> int:
    """A counter of a node; 0 where it has none of that name."""
    return int(stats.get(section, {}).get(counter, 0))
