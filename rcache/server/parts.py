"""What a service is made of: all that a start has made before anything serves.

Which thread runs it: any; it is a value. What it owns: nothing, it holds what the service owns.
What it must not know: in which order its parts are started and stopped.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass, field
from pathlib import Path

from rcache.engine.clock import NodeClock
from rcache.engine.contract import ConnectionLimits, Engine
from rcache.server.node_answers import Standing
from rcache.server.notify import Notifier
from rcache.server.stops import Stops
from rcache.stream.append_log import AppendLog
from rcache.stream.applied import AppliedStream
from rcache.stream.checkpoints import Checkpointer
from rcache.stream.data_dir import DataDir


@dataclass(frozen=True, slots=True)
class Parts:
    """`log` and `checkpointer` are None where no append log is kept; `applied` is there all the same."""

    version: str
    data_dir: DataDir
    engine: Engine
    applied: AppliedStream
    clock: NodeClock
    sock: socket.socket
    log: AppendLog | None
    checkpointer: Checkpointer | None
    stops: Stops
    savefile: Path
    notifier: Notifier
    limits: ConnectionLimits
    connections_max: int
    worker_threads: int
    shared_workers: int
    stop_timeout_s: float
    drain_timeout_s: float
    persist: bool
    standing: Standing
    secret: bytes | None = field(repr=False, default=None)
