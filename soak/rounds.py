"""Rounds of writing, ending and coming back: what `kill_loop` and `stop_loop` share.

What it is: `Crew`, the writer processes of one round, and `Truth`, which holds what the server must have after it.
Which thread runs it: the caller's; every wait ends at a deadline.
What it owns: the writer processes, from construction to `close`.
What it must not know: how a round ends the server.
"""

from __future__ import annotations

import json
import selectors
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from rcache_client import Client, StrSerializer
from soak.writers import Report, merge

ROOT = Path(__file__).resolve().parents[1]

STARTED_S = 60.0
"""For all writers to have had their first answers."""

REPORT_S = 60.0
"""For writers to notice that the server is gone: a call's budget (5 s), many times over."""

PROBLEMS_SHOWN = 5


class RoundFailed(Exception):
    """A round could not be carried out; the text says what did not happen."""


class Load(NamedTuple):
    """How many writer processes, and writers in each."""

    processes: int
    threads: int


class Crew:
    """Writer processes of one round. Close it, or use it in a `with`, and none is left."""

    def __init__(self, address: str, load: Load, *, seed: int, mark: str) -> None:
        command = [sys.executable, "-m", "soak.writers", address, "--threads", str(load.threads), "--seed", str(seed)]
        self._processes = [
            subprocess.Popen(
                [*command, "--mark", mark, "--prefix", f"p{number}"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                cwd=ROOT,
            )
            for number in range(load.processes)
        ]

    def wait_started(self, timeout_s: float = STARTED_S) -> None:
        """Block until every writer has had an answer. Raises `RoundFailed`."""
        deadline = time.monotonic() + timeout_s
        for process in self._processes:
            assert process.stdout is not None
            with selectors.DefaultSelector() as selector:
                selector.register(process.stdout, selectors.EVENT_READ)
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise RoundFailed(f"the writers had no answers after {timeout_s:g} s")
            if (said := process.stdout.readline()) != b"started\n":
                raise RoundFailed(f"a writer process said {said!r} in place of 'started'")

    def report(self, timeout_s: float = REPORT_S) -> Report:
        """Block until all writers have ended; what they know. Raises `RoundFailed`."""
        reports = []
        for process in self._processes:
            try:
                said, _ = process.communicate(timeout=timeout_s)
            except subprocess.TimeoutExpired:
                raise RoundFailed(f"a writer process did not end within {timeout_s:g} s") from None
            if process.returncode:
                raise RoundFailed(f"a writer process ended with code {process.returncode}")
            fields = json.loads(said)
            reports.append(Report(**{**fields, "endings": Counter(fields["endings"])}))
        return merge(reports)

    def close(self) -> None:
        """Kill what still runs. Idempotent."""
        for process in self._processes:
            if process.poll() is None:
                process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


@dataclass(slots=True)
class Truth:
    """For each key the value that the server holds (None: deleted, or never there)."""

    values: dict[str, str | None] = field(default_factory=dict)
    changes: int = 0
    unknown: int = 0
    unknown_that_happened: int = 0

    def check(self, address: str, report: Report) -> list[str]:
        """Compare the server with what the writers were told; take what it holds for the truth. Returns what is wrong."""
        self.changes += report.answers
        self.unknown += len(report.unknown)
        expected = {**self.values, **report.acknowledged}
        keys = list(dict.fromkeys([*expected, *report.unknown]))
        with Client(address, serializer=StrSerializer()) as cache:
            held = cache.get_many(keys)
        problems = list(report.strange)
        for key in keys:
            value = held.get(key)
            if value == expected.get(key):
                pass
            elif key in report.unknown and value == report.unknown[key]:
                self.unknown_that_happened += 1
            else:
                problems.append(f"{key}: acknowledged {_short(expected.get(key))}, found {_short(value)}")
            self.values[key] = value
        return problems


def shown(problems: list[str]) -> str:
    """The first few, for people."""
    more = f" (and {len(problems) - PROBLEMS_SHOWN} more)" if len(problems) > PROBLEMS_SHOWN else ""
    return "; ".join(problems[:PROBLEMS_SHOWN]) + more


def _short(value: str | None) -> str:
    return "nothing" if value is None else repr(value[:40].rstrip("."))
