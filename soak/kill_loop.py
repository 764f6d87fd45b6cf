"""kill -9 under load, again and again: no acknowledged write may be missing, and nothing may be there that was not written.

What it is: `python -m soak.kill_loop --rounds 50 --seed N`. In each round writers write with fsync always, the server is
killed at a random moment, started again on the same files (and sometimes killed in the middle of that), and every key is
compared with what its writer was told. Exit code 0 if nothing was wrong, 1 otherwise.
Which thread runs it: one; server and writers are processes of their own.
What it owns: a temporary directory, or what --directory names, which it leaves behind.
What it must not know: the format of any file.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from soak.rounds import Crew, Load, Truth, shown
from soak.server_process import ServerProcess

OPTIONS = ("--append-log-fsync", "always", "--append-log-max-mb", "1")
"""Small segments, so that some kills hit the moment at which one ends and the next begins."""

LOAD_S_MAX = 0.5
"""A kill comes at a random moment within this: a few thousand writes."""

START_KILL_SHARE = 0.25
START_KILL_S_MAX = 0.6
"""Some starts are killed too, within about the time that a start takes."""


@dataclass(slots=True)
class Result:
    """How a loop went. `changes` counts acknowledged writes; `problems` is empty after a good one."""

    rounds: int = 0
    starts_killed: int = 0
    changes: int = 0
    unknown: int = 0
    unknown_that_happened: int = 0
    problems: list[str] = field(default_factory=list)


def run(rounds: int, seed: int, directory: Path, load: Load, say: Callable[[str], object] = print) -> Result:
    """Run the loop; ends after the first round that went wrong. `directory` is for the server's data."""
    chance = random.Random(seed)
    truth, result = Truth(), Result()
    say(f"kill loop: {rounds} rounds, {load.processes} processes of {load.threads} writers, fsync always, seed {seed}")
    with ServerProcess(directory, *OPTIONS, start=False) as server:
        for number in range(1, rounds + 1):
            server.start()
            with Crew(server.address, load, seed=seed + number, mark=f"r{number}") as crew:
                crew.wait_started()
                time.sleep(chance.uniform(0, LOAD_S_MAX))  # not a wait for anything: the random moment
                server.kill()
                report = crew.report()
            if chance.random() < START_KILL_SHARE:
                server.launch()
                time.sleep(chance.uniform(0, START_KILL_S_MAX))
                server.kill()
                result.starts_killed += 1
            server.start()
            problems = truth.check(server.address, report)
            server.kill()
            result.rounds = number
            said = shown(problems) or "all there"
            say(f"round {number}: {report.answers} acknowledged, {len(report.unknown)} unknown; {said}")
            if problems:
                result.problems += [f"round {number}: {problem}" for problem in problems]
                break
    result.changes, result.unknown = truth.changes, truth.unknown
    result.unknown_that_happened = truth.unknown_that_happened
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(prog="soak.kill_loop", description="kill -9 under load, and look for what is missing.")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--processes", type=int, default=2, help="writer processes (default: 2)")
    parser.add_argument("--threads", type=int, default=8, help="writers in each process (default: 8)")
    parser.add_argument("--directory", type=Path, help="keep the server's data here (default: a temporary one)")
    given = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="rcache-kill-") as temporary:
        directory = given.directory or Path(temporary) / "data"
        result = run(given.rounds, given.seed, directory, Load(given.processes, given.threads))
    print(
        f"{result.rounds} rounds, {result.starts_killed} starts killed too, {result.changes} acknowledged writes, "
        f"{result.unknown} of unknown outcome ({result.unknown_that_happened} had happened); wrong: {len(result.problems)}"
    )
    for problem in result.problems:
        print(problem, file=sys.stderr)
    return 1 if result.problems else 0


if __name__ == "__main__":
    sys.exit(main())
