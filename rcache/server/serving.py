"""Serving: who takes connections in, who serves them, and how that ends.

What it is: the listener, the placing of newcomers, the workers and the register of connections, as one thing that is started
and ended.
Which thread runs it: the main thread.
What it owns: the listener, the placing, all workers, the feeds.
What it must not know: what requests mean; what else a stop consists of.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from loguru import logger

from rcache.feeds.hub import Hub
from rcache.server.listener import Listener
from rcache.server.parts import Parts
from rcache.server.session import Control, Welcome
from rcache.server.sharing import Placing
from rcache.server.worker import Connections, WorkerRun

CONNECTIONS_RESERVED = 16
"""Places beyond the limit that only nodes and administrators get: whoever must look at a full server can."""

JOIN_S = 5.0
"""How long any thread but the workers has to end; each needs one round of its loop."""


class Serving:
    """Connections, from the first that is accepted to the end of the last."""

    def __init__(self, parts: Parts, control: Control, welcome: Callable[[], Welcome]) -> None:
        self._parts = parts
        self._started = False
        self.hub = Hub(parts.engine, parts.applied)
        self.connections = Connections(parts.connections_max, CONNECTIONS_RESERVED)
        self._run = WorkerRun(parts.engine, self.connections, control, welcome, parts.limits, parts.secret)
        self._placing = Placing(parts.engine, self.connections, self._run, parts.worker_threads, parts.shared_workers)
        self._listener = Listener(parts.sock, self.connections, self._run, self._placing)

    def start(self) -> bool:
        """Listen. Returns whether it did not already. Raises OSError where the address cannot be listened on."""
        if self._started:
            return False
        self._started = True
        self._placing.start()
        self._listener.start()
        return True

    def close(self) -> list[str]:
        """Nobody new is accepted; workers answer what they have received, say GOODBYE and close. Returns which threads did not
        end that should have. Blocks up to JOIN_S."""
        stuck = [] if not self._started or self._listener.stop(JOIN_S) else ["the listener"]
        self._parts.engine.stop_serving()
        self._run.stopping.set()
        return stuck if self.hub.stop(JOIN_S) else [*stuck, "the feeds"]

    def join(self, deadline: float) -> list[str]:
        """After `close`: wait for the last connection to leave; those still here at `deadline` (time.monotonic) are cut off.
        Returns which threads did not end. Blocks."""
        late = self.connections.join_all(deadline)
        if late:
            self._parts.engine.stream.end_waits()
        for worker in late:
            worker.break_off()
        stuck = self.connections.join_all(time.monotonic() + JOIN_S) if late else []
        if late:
            logger.warning("{} connections were cut off at the deadline of {} s", len(late), self._parts.stop_timeout_s)
        return [*([f"{len(stuck)} workers"] if stuck else []), *self._placing.stop(JOIN_S)]
