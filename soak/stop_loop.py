"""Orderly stops under full load, again and again: exit code 0, in time, nothing unhandled, nothing acknowledged missing.

What it is: `python -m soak.stop_loop --rounds 50`. In each round 32 clients write, the server is told to stop (SIGTERM and
SIGINT in turn), started again on the same files, and every key is compared with what its writer was told. A write whose
outcome a client does not know is wrong too: an orderly stop answers what it executes. Exit code 0 if nothing was wrong, 1
otherwise.
Which thread runs it: one; server and writers are processes of their own.
What it owns: a temporary directory, or what --directory names, which it leaves behind.
What it must not know: how a server stops.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rcache_client import Client
from soak.rounds import Crew, Load, Truth, shown
from soak.server_process import ServerFailed, ServerProcess
from soak.writers import Report

SIGNALS = (signal.SIGTERM, signal.SIGINT)

STOP_S = 20.0
"""The server's own --stop-timeout; a stop that needs it all has cut somebody off."""

LOAD_S_MAX = 0.5
"""The signal comes at a random moment within this."""

ALARMS = ("unhandled", "Traceback", "ERROR", "cut off")
"""What an orderly stop never says."""


@dataclass(slots=True)
class Result:
    """How a loop went. `changes` counts acknowledged writes; `slowest_s` is the longest stop."""

    rounds: int = 0
    changes: int = 0
    slowest_s: float = 0.0
    problems: list[str] = field(default_factory=list)


def run(
    rounds: int,
    seed: int,
    directory: Path,
    load: Load,
    options: Sequence[str] = (),
    say: Callable[[str], object] = print,
) -> Result:
    """Run the loop; ends after the first round that went wrong. `directory` is for the server's data."""
    chance = random.Random(seed)
    truth, result = Truth(), Result()
    clients = f"{load.processes * load.threads} clients in {load.processes} processes"
    say(f"stop loop: {rounds} rounds, {clients}, {' '.join(options)}, seed {seed}")
    with ServerProcess(directory, *options, start=False) as server:
        for number in range(1, rounds + 1):
            told = SIGNALS[number % len(SIGNALS)]
            server.start()
            with Crew(server.address, load, seed=seed + number, mark=f"r{number}") as crew:
                crew.wait_started()
                problems = _unhandled(server)
                time.sleep(chance.uniform(0, LOAD_S_MAX))  # not a wait for anything: the random moment
                took_s = _stop(server, told, problems)
                report = crew.report()
            problems += [f"{len(report.unknown)} writes of unknown outcome: {dict(report.endings)}"] if report.unknown else []
            problems += _compare(server, truth, report)
            result.rounds, result.slowest_s = number, max(result.slowest_s, took_s)
            said = shown(problems) or "all there"
            say(f"round {number}: {told.name}, {report.answers} acknowledged, stopped in {took_s:.2f} s; {said}")
            if problems:
                result.problems += [f"round {number}: {problem}" for problem in problems]
                break
    result.changes = truth.changes
    return result


def _unhandled(server: ServerProcess) -> list[str]:
    with Client(server.address) as cache:
        count = cache.stats("connections")["connections"]["unhandled_errors"]
    return [f"{count} unhandled errors"] if count else []


def _stop(server: ServerProcess, told: signal.Signals, problems: list[str]) -> float:
    """Send the signal and wait. Returns the seconds it took; adds what went wrong."""
    began = time.monotonic()
    server.signal(told)
    try:
        code = server.wait(STOP_S)
    except ServerFailed as failure:
        problems.append(str(failure))
        return time.monotonic() - began
    took_s = time.monotonic() - began
    if code:
        problems.append(f"exit code {code}")
    problems += [f"it said: {line}" for line in server.stderr_text.splitlines() if any(alarm in line for alarm in ALARMS)]
    return took_s


def _compare(server: ServerProcess, truth: Truth, report: Report) -> list[str]:
    """Start again, look, and stop idle. Returns what is wrong."""
    if server.running:
        return []
    server.start()
    problems = truth.check(server.address, report)
    _stop(server, signal.SIGTERM, problems)
    return problems


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(prog="soak.stop_loop", description="Stop under load, and look for what is missing.")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--processes", type=int, default=4, help="client processes (default: 4)")
    parser.add_argument("--threads", type=int, default=8, help="clients in each process (default: 8)")
    parser.add_argument("--fsync", choices=("always", "interval", "never"), default="interval")
    parser.add_argument("--directory", type=Path, help="keep the server's data here (default: a temporary one)")
    given = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="rcache-stop-") as temporary:
        result = run(
            given.rounds,
            given.seed,
            given.directory or Path(temporary) / "data",
            Load(given.processes, given.threads),
            ("--append-log-fsync", given.fsync),
        )
    print(
        f"{result.rounds} rounds, {result.changes} acknowledged writes, the slowest stop {result.slowest_s:.2f} s; "
        f"wrong: {len(result.problems)}"
    )
    for problem in result.problems:
        print(problem, file=sys.stderr)
    return 1 if result.problems else 0


if __name__ == "__main__":
    sys.exit(main())
