"""The housekeeper: what must be done now and then, whether anybody asks or not.

What it is: expiry of items nobody reads, comparing the clocks, opening buckets whose counter ran out, the watchdog's sign of
life, a status line.
Which thread runs it: its own, `housekeeper`, from `start` to `stop`. Started and joined by the service.
What it owns: nothing. It may lock: what the calls it makes lock, one at a time.
What it must not know: how any of its tasks is done.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from loguru import logger


@dataclass(frozen=True, slots=True)
class Task:
    """Something to be called every `every_s` seconds."""

    name: str
    every_s: float
    run: Callable[[], None]


class Housekeeper:
    """Calls its tasks, each in its own rhythm. A task that raises is logged and counted, and called again next time."""

    def __init__(self, tasks: list[Task], monotonic_s: Callable[[], float] = time.monotonic) -> None:
        self._monotonic_s = monotonic_s
        self._due = {task.name: (monotonic_s() + task.every_s, task) for task in tasks}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="housekeeper")
        self.errors = 0

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_s: float) -> bool:
        """End after the task under way. False if that took too long."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while not self._stopping.wait(self.round()):
            pass

    def round(self) -> float:
        """Call what is due. Returns the seconds until the next task is."""
        now = self._monotonic_s()
        for name, (due, task) in list(self._due.items()):
            if due > now or self._stopping.is_set():
                continue
            try:
                task.run()
            except Exception:  # the thread's one catch-all
                self.errors += 1
                logger.exception("housekeeper: {} failed", name)
            self._due[name] = (max(due + task.every_s, now), task)
        return max(0.0, min(due for due, _ in self._due.values()) - self._monotonic_s())
