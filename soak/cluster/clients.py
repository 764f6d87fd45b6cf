"""A process of clients: threads that call without end, write every call into the history, and change to fresh keys each round.

What it is: `python -m soak.cluster.clients SPEC`, where SPEC is a `Spec` as JSON. On standard output, one line of JSON each:
`{"done": ROUND, "client": NAME}` when a client has left a round, and at the end `{"ended": NAME, ...}` with what it counted.
Which thread runs it: the main thread waits for the end of standard input; one thread for each client.
What it owns: one `rcache_client.Client`, shared by its threads, as an application would; a file of the history for each client
and round, and one of its waits. What it must not know: what is broken, and when.

A *wait* is the time from one good answer of a client to its next, where that is longer than WAIT_S: what a fault costs whoever
does one thing after the other.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from rcache_client import Client
from soak.cluster.operations import Caller, Done, is_strange
from soak.cluster.workload import Load, Workload
from soak.history import HistoryWriter

WAIT_S = 0.05
"""What is shorter is no gap of service: a machine that does much else keeps everybody waiting so long."""

STRANGE_SHOWN = 5
FAILED_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Spec:
    """What a process is told. `first`: the number of its first client; `start_ns`: when the first round began, by the monotonic
    clock, which all processes of a machine share."""

    addresses: list[str]
    first: int
    count: int
    seed: int
    start_ns: int
    directory: str
    budget_s: float
    load: Load

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> Spec:
        facts = json.loads(text)
        return Spec(**{**facts, "load": Load(**facts["load"])})


@dataclass(slots=True)
class Counts:
    """What a client counted. `outcomes` by the history's words; `errors` by class; `strange`, what no fault explains, and
    `failed`,
    the calls that did not succeed: the first few of each."""

    outcomes: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    errors: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    strange: list[str] = field(default_factory=list)
    failed: list[tuple[int, str]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return {each.name: getattr(self, each.name) for each in fields(self)}


def history_file(directory: Path, number: int, client: str) -> Path:
    """Where a client writes its calls of a round."""
    return directory / f"r{number:05}-{client}.jsonl"


def waits_file(directory: Path, client: str) -> Path:
    return directory / f"waits-{client}.jsonl"


class OneClient:
    """One thread's work: calls at an even rate, until `over`."""

    def __init__(self, spec: Spec, name: str, cache: Client[bytes], say: Callable[[dict[str, Any]], None]) -> None:
        self.counts = Counts()
        self._spec = spec
        self._directory = Path(spec.directory)
        self._say = say
        self._caller = Caller(name, cache)
        self._workload = Workload(self._caller, spec.load, spec.seed)
        self._pace_s = spec.load.clients / spec.load.rate
        self._round = -1
        self._answered_ns = 0

    def run(self, over: threading.Event) -> None:
        """Blocks until `over` is set, and for the budget of one call."""
        due = time.monotonic()
        with waits_file(self._directory, self._caller.name).open("a", encoding="ascii") as waits:
            self._waits = waits
            while not over.wait(max(0.0, due - time.monotonic())):
                due = max(due + self._pace_s, time.monotonic() - self._pace_s)  # what was missed is not made up for
                self._follow_round()
                for done in self._workload.next():
                    self._note(done)
        self._leave_round()

    def _follow_round(self) -> None:
        number = int((time.monotonic_ns() - self._spec.start_ns) / 1e9 / self._spec.load.round_s)
        if number != self._round:
            self._leave_round()
            self._round = number
            self._caller.writer = HistoryWriter(history_file(self._directory, number, self._caller.name))
            self._workload.begin_round(number)

    def _leave_round(self) -> None:
        if self._caller.writer is not None:
            self._caller.writer.close()
            self._caller.writer = None
            self._say({"done": self._round, "client": self._caller.name})

    def _note(self, done: Done) -> None:
        operation, end_ns = done.operation, done.operation.end_ns or 0
        self.counts.outcomes[operation.outcome] += 1
        if done.error is None:
            if self._answered_ns and end_ns - self._answered_ns > WAIT_S * 1e9:
                self._waits.write(f"[{self._answered_ns}, {end_ns}]\n")
            self._answered_ns = end_ns
            return
        self.counts.errors[type(done.error).__name__] += 1
        if len(self.counts.failed) < FAILED_SHOWN:
            self.counts.failed.append((end_ns, f"{operation.key}: {operation.text()}: {done.error}"))
        if is_strange(done.error) and len(self.counts.strange) < STRANGE_SHOWN:
            self.counts.strange.append(f"{operation.key}: {operation.text()}: {type(done.error).__name__}: {done.error}")


def main() -> int:
    """Returns the exit code."""
    spec = Spec.from_json(sys.argv[1])
    over, speaking = threading.Event(), threading.Lock()

    def say(told: dict[str, Any]) -> None:
        with speaking:
            print(json.dumps(told), flush=True)

    process = f"soak-clients-{spec.first}"
    with Client(spec.addresses, budget=spec.budget_s, name=process, wait_for_servers=True) as cache:
        clients = {
            f"c{spec.first + index}": OneClient(spec, f"c{spec.first + index}", cache, say) for index in range(spec.count)
        }
        threads = [threading.Thread(target=each.run, args=(over,), name=name) for name, each in clients.items()]
        for thread in threads:
            thread.start()
        sys.stdin.read()
        over.set()
        for thread in threads:
            thread.join()  # each ends within the budget of a call or two
    for name, each in clients.items():
        say({"ended": name, **each.counts.to_json()})
    return 0


if __name__ == "__main__":
    sys.exit(main())
