"""The client processes of a run, as the run sees them.

What it is: `Crew`. Which thread runs it: its own thread listens to what they say; the rest any.
What it owns: the processes, until `close`. What it must not know: what they call.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from soak.cluster.clients import Counts, Spec, history_file
from soak.cluster.errors import SoakFailed
from soak.cluster.listeners import NEAR, SUBSCRIBERS, ListenSpec, listener_of
from soak.cluster.stayers import Orders, StaySpec, stayer_of

ROOT = Path(__file__).resolve().parents[2]

CLIENTS_A_PROCESS = 2
"""They share a process and a `Client`, as threads of an application do."""

END_S = 60.0
"""For clients to end: the budget of the calls under way, on a machine that does much else."""


class Crew:
    """Close it, or use it in a `with`, and no process is left. `spec`: of all clients; each process is given its part. `stay`:
    the same for the stayers, which are a process of their own; so are the listeners, where there are any (`listen`)."""

    def __init__(self, spec: Spec, stay: StaySpec, listen: ListenSpec | None = None) -> None:
        self.directory = Path(spec.directory)
        self.clients = [f"c{spec.first + index}" for index in range(spec.count)]
        self.names = self.clients + [stayer_of(node) for node in stay.ports]
        self.listeners = [listener_of(name) for name in (*SUBSCRIBERS, NEAR)] if listen is not None else []
        self.counts: dict[str, Counts] = {}
        self._done = dict.fromkeys(self.names, -1)
        self._changed = threading.Condition()
        self._processes: list[subprocess.Popen[bytes]] = []
        self._listeners: list[threading.Thread] = []
        for first in range(0, spec.count, CLIENTS_A_PROCESS):
            part = replace(spec, first=spec.first + first, count=min(CLIENTS_A_PROCESS, spec.count - first))
            self._start("clients", part.to_json())
        self._stayers = self._start("stayers", stay.to_json())
        if listen is not None:
            self._start("listeners", listen.to_json())

    def _start(self, module: str, spec: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-m", f"soak.cluster.{module}", spec],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            process_group=0,
        )
        listener = threading.Thread(target=self._listen, args=(process,), name=f"crew-{len(self._processes)}")
        listener.start()
        self._processes.append(process)
        self._listeners.append(listener)
        return process

    def tell_stayers(self, orders: Orders) -> None:
        """They go on like that from now. Raises `SoakFailed` if they are gone."""
        assert self._stayers.stdin is not None
        try:
            self._stayers.stdin.write(orders.to_json().encode() + b"\n")
            self._stayers.stdin.flush()
        except OSError as error:
            raise SoakFailed(f"the stayers are gone: {error}") from None

    def _listen(self, process: subprocess.Popen[bytes]) -> None:
        """A thread's: take in what a process says, until it ends."""
        assert process.stdout is not None
        for line in process.stdout:
            told: dict[str, Any] = json.loads(line)
            with self._changed:
                if "done" in told:
                    self._done[told["client"]] = told["done"]
                else:
                    name = told.pop("ended")
                    self.counts[name] = Counts(**told)
                self._changed.notify_all()

    @property
    def rounds_done(self) -> int:
        """So many rounds have been left by all clients."""
        with self._changed:
            return min(self._done.values()) + 1

    def files_of(self, number: int) -> list[Path]:
        """The history of a round: a client that was kept waiting all through it has written none."""
        return [path for name in self.names if (path := history_file(self.directory, number, name)).exists()]

    def dead(self) -> list[str]:
        """Processes that ended by themselves."""
        return [f"a client process ended with code {each.returncode}" for each in self._processes if each.poll() is not None]

    def end(self) -> dict[str, Counts]:
        """Have them end, and return what each client counted. Raises `SoakFailed` if one does not."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.close()
        deadline = time.monotonic() + END_S
        for process in self._processes:
            try:
                code = process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                raise SoakFailed(f"a client process did not end within {END_S:g} s") from None
            if code:
                raise SoakFailed(f"a client process ended with code {code}")
        for listener in self._listeners:
            listener.join(END_S)
        if missing := {*self.names, *self.listeners} - set(self.counts):
            raise SoakFailed(f"clients did not say what they counted: {', '.join(sorted(missing))}")
        return self.counts

    def close(self) -> None:
        """Kill what still runs. Idempotent."""
        for process in self._processes:
            if process.poll() is None:
                process.kill()
            process.wait()
        for listener in self._listeners:
            listener.join(END_S)
        for process in self._processes:
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(BrokenPipeError):  # an order that nobody read
                        pipe.close()

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
