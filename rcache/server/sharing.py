"""Workers that share sockets, and who gets a thread of its own.

What it is: the place of a newcomer: a thread for each connection up to a number, and beyond that a few workers that serve many
connections each, by a group of the engine's (`contract.SocketGroup`).
Which thread runs it: each shared worker its own, `shared-N`; requests that may wait (FLUSH, STATS, PERSIST) of connections that
share one are answered by the threads `control-N`, so that nobody waits for them. Started and joined by the service.
What it owns: the groups, and who is in which. It may lock: its own register, for moments; never with I/O.
What it must not know: what requests mean.

Once there are more connections than threads for them, those that have a thread are moved to a group after their next batch:
threads that take turns with each other cost more than a worker that takes what is there. When most have gone, newcomers get a
thread again.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from loguru import logger

from rcache.engine.contract import Engine, EngineConnection, Handback, SocketGroup
from rcache.engine.sockets import Ended
from rcache.server.worker import Connections, Worker, WorkerRun
from rcache_client.wire.frames import Request
from rcache_client.wire.opcodes import Opcode

CONTROL_THREADS = 2
"""One may wait for the log to take a FLUSH while the other answers STATS."""

MAY_WAIT = frozenset({Opcode.FLUSH, Opcode.STATS, Opcode.PERSIST, Opcode.VIEW, Opcode.STEER, Opcode.SUBSCRIBE})
"""What a worker that serves others too leaves to the control threads."""

AWAY_LOOK_S = 0.02
"""How often a shared worker that is to end looks whether the control threads have brought its last connections back."""

OVER = (Ended.CLOSED, Ended.LOST, Ended.SLOW_READER)
"""Nothing more can be said to the peer."""


class Errand(NamedTuple):
    """A request for a control thread."""

    shared: SharedWorker
    worker: Worker
    request: Request


class ControlThreads:
    """Answer the requests that may wait, of connections that share a worker."""

    def __init__(self) -> None:
        self._errands: queue.SimpleQueue[Errand | None] = queue.SimpleQueue()
        self._threads = [threading.Thread(target=self._run, name=f"control-{n + 1}") for n in range(CONTROL_THREADS)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def put(self, errand: Errand) -> None:
        self._errands.put(errand)

    def stop(self, timeout_s: float) -> bool:
        """End after the errands under way. False if that took too long."""
        for _ in self._threads:
            self._errands.put(None)
        deadline = time.monotonic() + timeout_s
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _run(self) -> None:
        while (errand := self._errands.get()) is not None:
            errand.shared.answer(errand.worker, errand.request)


class SharedWorker:
    """One thread and the connections it serves."""

    def __init__(
        self, number: int, group: SocketGroup, connections: Connections, run: WorkerRun, control: Callable[[Errand], None]
    ) -> None:
        self._group = group
        self._connections = connections
        self._run_of = run
        self._control = control
        self._lock = threading.Lock()
        self._workers: dict[EngineConnection, Worker] = {}
        self._thread = threading.Thread(target=self._run, name=f"shared-{number}")

    def __len__(self) -> int:
        return len(self._workers)

    def start(self) -> None:
        self._thread.start()

    def join(self, timeout_s: float) -> bool:
        """False if the thread did not end in time; it does once serving was stopped and its connections have left."""
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def add(self, worker: Worker) -> None:
        """Any thread: serve this connection too."""
        with self._lock:
            self._workers[worker.connection] = worker
        self._group.add(worker.connection)

    def answer(self, worker: Worker, request: Request) -> None:
        """Answer a request that was handed back, and serve on. An unhandled error ends this connection, and is counted."""
        try:
            response = worker.session.respond(request)
            if response.close:
                worker.parting_as = "goodbye" if request.opcode == Opcode.GOODBYE else "refused"
            if worker.session.may_wait:
                self._move_out(worker, response.frame)
                return
            worker.connection.queue(response.frame, last=response.close)
            self._group.add(worker.connection)
        except Exception:
            self._crash(worker)

    def _move_out(self, worker: Worker, frame: bytes) -> None:
        """A node, or a feed, never shares a worker with others: it gets a thread of its own. Raises RuntimeError where none can
        be had."""
        with self._lock:
            self._workers.pop(worker.connection, None)
        worker.connection.send(frame)
        worker.start(self._run_of.serve_alone)

    def _run(self) -> None:
        """The thread's one catch-all is in `_take`, for each connection: an error of one ends that one."""
        while True:
            served = self._group.serve()
            if served is not None:
                self._take(*served)
            elif not self._workers:
                return
            else:
                time.sleep(AWAY_LOOK_S)  # the control threads have the rest

    def _take(self, connection: EngineConnection, handback: Handback) -> None:
        worker = self._workers[connection]
        try:
            request = handback.request
            if request is None:
                self._end(worker, handback)
            elif request.opcode in MAY_WAIT:
                self._control(Errand(self, worker, request))
            else:
                self.answer(worker, request)
        except Exception:
            self._crash(worker)

    def _end(self, worker: Worker, handback: Handback) -> None:
        """Say the last words, if there are any to be said; the connection comes back once they were."""
        how = worker.parting_as or handback.ended.name.lower()
        words = None if worker.parting_as or handback.ended in OVER else self._run_of.last_words(worker, handback)
        if words is None:
            self._leave(worker, how)
            return
        worker.parting_as = how
        worker.connection.queue(words, last=True)
        self._group.add(worker.connection)

    def _leave(self, worker: Worker, how: str) -> None:
        with self._lock:
            self._workers.pop(worker.connection, None)
        worker.sock.close()
        self._connections.leave(worker, how)

    def _crash(self, worker: Worker) -> None:
        self._connections.note_crash()
        logger.exception("worker {} ({}): unhandled error; the connection is closed", worker.number, worker.peer)
        self._leave(worker, "error")


class Placing:
    """Says by whom each connection is served. `threads_max`: so many have a thread of their own, where the engine can share."""

    def __init__(self, engine: Engine, connections: Connections, run: WorkerRun, threads_max: int, shared: int) -> None:
        self._engine = engine
        self._connections = connections
        self._run = run
        self._threads_max = threads_max
        self._control = ControlThreads()
        self._shared: list[SharedWorker] = []
        self._crowded = False
        run.share = self.share
        for number in range(shared):
            group = engine.share()
            if group is not None:
                self._shared.append(SharedWorker(number + 1, group, connections, run, self._control.put))

    def start(self) -> None:
        if self._shared:
            self._control.start()
        for shared in self._shared:
            shared.start()

    def stop(self, timeout_s: float) -> list[str]:
        """After all connections have left: end the threads. Returns the names of those that did not end in time."""
        stuck = [f"shared worker {n}" for n, shared in enumerate(self._shared, 1) if not shared.join(timeout_s)]
        if self._shared and not self._control.stop(timeout_s):
            stuck.append("the control threads")
        return stuck

    def place(self, worker: Worker) -> None:
        """The listener's: have a newcomer served. Raises RuntimeError where no thread can be had and none is shared."""
        count = len(self._connections)
        if not self._shared:
            worker.start(self._run)
            return
        if count > self._threads_max:
            self._set_crowded(True)
        elif count <= self._threads_max // 2:
            self._set_crowded(False)
        if self._crowded:
            self.share(worker)
            return
        try:
            worker.start(self._run)
        except RuntimeError:
            self.share(worker)

    def share(self, worker: Worker) -> None:
        """Have a connection served by the shared worker that has the fewest."""
        min(self._shared, key=len).add(worker)

    def _set_crowded(self, crowded: bool) -> None:
        if crowded is not self._crowded:
            self._crowded = crowded
            self._engine.set_crowded(crowded)
