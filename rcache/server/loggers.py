"""Who records this cluster's changes: the loggers that are connected here.

What it is: a count of connections for each logger, by its name, since when there is one.
Which thread runs it: any. What it owns: the counts. It may lock: its own lock, for moments, under nothing.
What it must not know: what a logger asks for. It has no part in the cluster: no view names it, nobody waits for it.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class _Logger:
    connections: int = 0
    since: float = field(default_factory=time.monotonic)


class Loggers:
    """See the module."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loggers: dict[str, _Logger] = {}

    def began(self, name: str) -> None:
        """A logger of that name has one more connection."""
        with self._lock:
            self._loggers.setdefault(name, _Logger()).connections += 1

    def ended(self, name: str) -> None:
        with self._lock:
            logger = self._loggers[name]
            logger.connections -= 1
            if not logger.connections:
                del self._loggers[name]

    def stats(self) -> dict[str, Any]:
        """By name: connections, and for how long (s) there has been one."""
        now = time.monotonic()
        with self._lock:
            return {
                name: {"connections": each.connections, "connected_s": round(now - each.since, 1)}
                for name, each in sorted(self._loggers.items())
            }
