"""The service: one node's parts, started in order, stopped in order.

What it is: the owner of everything that runs once a node has recovered; what the control opcodes act on, and the upkeep. (The
steps of an orderly stop are in `stopping`.)
Which thread runs it: the main thread; the control calls (`flush`, `stats_json`, `persist`) any worker.
What it owns: the engine, the append log, the checkpointer, what serves connections, the housekeeper, the data directory.
What it must not know: options and their sources; exit codes.
"""

from __future__ import annotations

import json
import os
import resource
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from loguru import logger

from rcache.cluster.register import Register, RegisterFailed, Revised
from rcache.cluster.view import View
from rcache.engine.contract import Engine, RequestRefused
from rcache.feeds.hub import Hub
from rcache.member.member import Member
from rcache.server.housekeeper import Housekeeper, Task
from rcache.server.loggers import Loggers
from rcache.server.node_answers import NodeAnswers
from rcache.server.notify import EXTEND_S
from rcache.server.parts import Parts
from rcache.server.saving import Saving
from rcache.server.serving import Serving
from rcache.server.session import Welcome
from rcache.server.steering import Steering
from rcache.server.stopping import LEAVE_LOOK_S, Running, Stopped, Stopping
from rcache.stream.old_files import OldFiles
from rcache_client.wire.opcodes import PersistMode, Status

EXPIRE_EVERY_S = 0.25
TRIM_EVERY_S = 0.25
"""How often room is made for what came in as copies."""

KEEP_VIEW_EVERY_S = 0.1
"""How often it is looked whether there is a newer view to be remembered: where nobody else is left, it is what a restarted node
has a takeover go on from."""

RELIEVE_EVERY_S = 0.05
RELIEVE_ITEMS_MAX = 5000
"""How often, and by how many items, backups that are over their limit are relieved: 100,000 items a second."""

EXPIRE_ITEMS_MAX = 5000
"""Expired items removed in one round: at most 20,000 a second, so that a mass expiry does not starve requests."""

FEEDS_LOOK_S = 1.0
"""How often it is looked whether what tells subscribers has none any more; it goes on for a minute anyway."""

UP_LOOK_S = 0.02
"""How often it is looked whether this node is up: it takes one change of view."""


class Service:
    """A node that serves. `Control` for its sessions."""

    def __init__(self, parts: Parts, watchdog_s: float | None = None) -> None:
        self.parts = parts
        self._began = time.monotonic()
        self.saving = Saving(parts)
        self.loggers = Loggers()
        self.recovery: dict[str, Any] = {}
        self.answers = NodeAnswers(parts.standing)
        self.keep_view: Callable[[View], None] = lambda _view: None
        self.finish_start: Callable[[], None] = lambda: None  # what is left to do once this node is up, before it is ready
        self._kept_epoch = 0
        self._serving = Serving(parts, self, self._welcome)
        self._housekeeper = Housekeeper(self._tasks(watchdog_s))

    def _welcome(self) -> Welcome:
        parts, identity = self.parts, self.parts.data_dir.identity
        assert identity is not None
        return Welcome(
            cluster_id=bytes.fromhex(identity.cluster_id),
            incarnation=identity.incarnation,
            buckets=identity.buckets,
            frame_bytes_max=parts.engine.config.frame_bytes_max,
            value_bytes_max=parts.engine.config.value_bytes_max,
            idle_ms=int(parts.limits.idle_s * 1000),
            node=identity.node,
            server_version=parts.version,
        )

    def _tasks(self, watchdog_s: float | None) -> list[Task]:
        tasks = [
            Task("expiry", EXPIRE_EVERY_S, self._expire),
            Task("clock", 1.0, self._watch_clock),
            Task("buckets", 1.0, self._reopen_exhausted),
            Task("view", KEEP_VIEW_EVERY_S, self._keep_newest_view),
            Task("room", TRIM_EVERY_S, self._make_room_for_copies),
            Task("credit", RELIEVE_EVERY_S, self._relieve_backups),
            Task("feeds", FEEDS_LOOK_S, self._serving.hub.end_unused),
        ]
        if watchdog_s is not None:
            tasks.append(Task("watchdog", watchdog_s, self._show_life))
        return tasks

    # --- running

    @property
    def address(self) -> tuple[str, int]:
        host, port = self.parts.sock.getsockname()[:2]
        return host, port

    def start(self) -> None:
        """Listen, unless it does already. Raises OSError where the address cannot be listened on."""
        if self._serving.start():
            self._housekeeper.start()

    def admit(self, member: Member, register: Register | None) -> None:
        """This node is a member of its cluster from now on; `register`: the one that it may be given, where nodes keep it."""
        standing = self.parts.standing
        standing.member = member
        standing.register = register
        standing.steer = Steering(standing, member, self.parts.stops.ask, self._old_files())
        member.start()
        if register is not None:
            self._learn_of_takeover(member)

    def _learn_of_takeover(self, member: Member) -> None:
        """A takeover that was ordered while this node still loaded what is its own: it found no member to tell, and the view
        that this one begins by has a register's holder that is gone. (Either it finds the member, or its view is found here:
        it writes the view before it looks for a member, which is there before this looks.)"""
        try:
            newest = self.parts.standing.newest_known()
        except RegisterFailed as error:
            logger.error("what the register in the data directory holds cannot be told: {}", error)
            return
        if newest is not None and newest.epoch > member.epoch:
            member.agreement.learn(Revised(newest.epoch, newest))

    def _old_files(self) -> OldFiles:
        data_dir = self.parts.data_dir
        assert data_dir.identity is not None
        return OldFiles(data_dir.path, self.parts.savefile, data_dir.identity.data_dir_id)

    @property
    def member(self) -> Member | None:
        return self.parts.standing.member

    def node_session(self, name: str, *, began: bool) -> None:
        if self.member is not None:
            self.member.sessions.note_session(name, began=began)

    def await_up(self) -> str:
        """Block until the view says that this node is up, or leaves already; or until a stop is asked for: then why.

        Whoever waits for `ready` stops another node next (a rolling restart). A node that leaves while no other is up takes
        itself for the last one: it hands nothing over, and the data is away until it comes back. So a node that still joins is
        not ready, though it serves already what it is asked for."""
        parts, began = self.parts, time.monotonic()
        while self.member is not None and not self.member.is_ready:
            if why := parts.stops.wait_for(UP_LOOK_S):
                return why
            if time.monotonic() - began > LEAVE_LOOK_S:
                parts.notifier.extend_timeout(EXTEND_S)
                parts.notifier.status("waiting for the view that says that this node is up")
        return ""

    def wait(self) -> str:
        """Block until a stop is asked for. Returns why."""
        return self.parts.stops.wait()

    # --- control, for sessions

    @property
    def epoch(self) -> int:
        return self.parts.engine.epoch

    def flush(self, deadline_ns: int) -> int:
        removed = self.parts.engine.flush(deadline_ns)
        logger.info("flush: {} items removed", removed)
        return removed

    @property
    def engine(self) -> Engine:
        return self.parts.engine

    @property
    def hub(self) -> Hub:
        return self._serving.hub

    def persist(self, mode: PersistMode) -> tuple[bool, str]:
        return self.saving.switch(mode)

    def stats_json(self, section: str) -> bytes:
        stats = self.stats()
        if section and section not in stats:
            raise RequestRefused(Status.BAD_ARGUMENT, f"no section {section!r}; there are: {', '.join(stats)}")
        return json.dumps({section: stats[section]} if section else stats).encode()

    def stats(self) -> dict[str, dict[str, Any]]:
        parts, identity = self.parts, self.parts.data_dir.identity
        assert identity is not None
        engine = parts.engine.stats()
        engine["memory"]["process_bytes"] = _resident_bytes()
        return {
            "server": {
                "name": identity.node,
                "version": parts.version,
                "engine": parts.engine.name,
                "pid": os.getpid(),
                "uptime_s": round(time.monotonic() - self._began, 1),
                "cluster_id": identity.cluster_id,
                "incarnation": identity.incarnation,
                "epoch": self.epoch,
                "threads": threading.active_count(),
                "housekeeper_errors": self._housekeeper.errors,
                "clock_stepped_ms": parts.clock.stepped_ms,
                "cpu_s": round(sum(resource.getrusage(resource.RUSAGE_SELF)[:2]), 2),
            },
            "connections": self._serving.connections.stats(),
            **engine,
            "append_log": dict(parts.log.stats()) if parts.log else {"fsync": "off"},
            "checkpoints": dict(parts.checkpointer.stats()) if parts.checkpointer else {},
            "persist": self.saving.stats(),
            "recovery": self.recovery,
            "feeds": self.hub.stats(),
            "loggers": self.loggers.stats(),
            "cluster": self.member.stats() if self.member is not None else {},
        }

    # --- upkeep

    def _expire(self) -> None:
        self.parts.engine.expire_due(EXPIRE_ITEMS_MAX)

    def _keep_newest_view(self) -> None:
        """Whom to look for after a restart."""
        member = self.member
        if member is not None and member.epoch != self._kept_epoch:
            view = member.view
            self.keep_view(view)
            self._kept_epoch = view.epoch

    def _make_room_for_copies(self) -> None:
        """What was applied as a backup may have gone over the memory limit: what this node is primary of gives way, as far as
        that is its part; the rest is told to those whose backup it is."""
        if self.member is not None and len(self.member.view.nodes) > 1:
            evicted = self.parts.engine.trim()
            if evicted:
                logger.debug("evicted {} items to make room for copies", evicted)

    def _relieve_backups(self) -> None:
        """A backup that is over its limit holds too much of what this node is primary of: some of that goes."""
        if self.member is not None and len(self.member.view.nodes) > 1:
            evicted = self.parts.engine.relieve(RELIEVE_ITEMS_MAX)
            if evicted:
                logger.debug("evicted {} items that backups have no room for", evicted)

    def _show_life(self) -> None:
        """The watchdog's sign of life; withheld where the log's thread has gone without a word."""
        log = self.parts.log
        if log is None or log.is_alive():
            self.parts.notifier.alive()

    def _watch_clock(self) -> None:
        stepped_ms = self.parts.clock.adjust()
        if stepped_ms:
            logger.warning("the wall clock stepped by {} ms; this node does not follow", stepped_ms)

    def _reopen_exhausted(self) -> None:
        """A bucket whose counter ran out goes on in a new epoch, on disk before anything is counted in it."""
        buckets = self.parts.engine.exhausted_buckets()
        if buckets and self.member is not None:
            self.member.reopen(buckets)

    # --- stopping

    def stop(self, progress: Callable[[str], object] = lambda _text: None) -> Stopped:
        """See `stopping`. Blocks."""
        return Stopping(self.parts, self._running(), progress).run()

    def give_up(self) -> None:
        """End what runs already of a start that failed; what it is made of is the caller's to let go of."""
        Stopping(self.parts, self._running()).give_up()

    def _running(self) -> Running:
        return Running(self._serving, self._housekeeper, self.saving, self.keep_view)


def _resident_bytes() -> int:
    """The process's resident memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()
