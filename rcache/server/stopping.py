"""The orderly stop of a node, step by step.

What it is: what ends in which order, all of it whatever goes wrong in one step; and how that went (`Stopped`).
Which thread runs it: the main thread, once.
What it owns: nothing; what it ends is the service's. What it must not know: why the node stops; exit codes.

The steps of a stop, in this order:
1. nobody new is accepted; 2. workers answer what they have received, say GOODBYE and close; 3. the housekeeper and the
checkpointer end; 4. buckets are frozen: nothing changes any more; 5. the append log writes what the stream still holds,
closes its segment and ends; 6. with persist on, the savefile is written; 7. buckets are released, the data directory's lock
is let go.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from loguru import logger

from rcache.cluster.bucket_state import BucketState
from rcache.cluster.view import View
from rcache.member.member import Member
from rcache.server.housekeeper import Housekeeper
from rcache.server.notify import EXTEND_S
from rcache.server.parts import Parts
from rcache.server.saving import Saving
from rcache.server.serving import JOIN_S, Serving
from rcache.stream.log_terms import LogFailure

FAILED_DRAIN_S = 5.0
"""How long a node whose log failed tries to hand over what it has. It takes no writes any more, and whoever has copies of what
it does not get rid of takes it over once it is gone."""

LEAVE_LOOK_S = 0.5
"""How often a leaving node says how far it is."""


@dataclass(slots=True)
class Stopped:
    """How a stop went. `problems` and `stuck` (threads that did not end) are empty after an orderly one; `not_saved` says why
    no savefile could be written, `displaced` that another node has this one's name."""

    problems: list[str] = field(default_factory=list)
    stuck: list[str] = field(default_factory=list)
    not_saved: str = ""
    displaced: str = ""
    log_failure: LogFailure | None = None
    crashes: int = 0
    not_handed_over: int = 0


class Running(NamedTuple):
    """What a stop ends, beside the parts that the node is made of. `keep_view` remembers the last view for the next start."""

    serving: Serving
    housekeeper: Housekeeper
    saving: Saving
    keep_view: Callable[[View], None]


class Stopping:
    """One stop. `progress` is told, for people, what is under way."""

    def __init__(self, parts: Parts, running: Running, progress: Callable[[str], object] = lambda _text: None) -> None:
        self._parts = parts
        self._running = running
        self._progress = progress
        self._stopped = Stopped()

    @property
    def _member(self) -> Member | None:
        return self._parts.standing.member

    def run(self) -> Stopped:
        """The steps of a stop, all of them whatever goes wrong in one. Blocks up to about `stop_timeout_s`, and for as long
        as the log and the savefile take to write.

        The data directory's lock is let go only if every thread ended: beside a writer that hangs nobody else may write.
        """
        steps: list[tuple[str, Callable[[], object]]] = [
            ("leaving the cluster", self._leave),
            ("ending the connections", self._end_connections),
            ("ending the membership", self._end_membership),
            ("ending the upkeep", self._end_upkeep),
            ("freezing the buckets", lambda: self._set_buckets(BucketState.PRIMARY, BucketState.FROZEN)),
            ("closing the append log", self._end_log),
            ("saving", self._save),
            ("releasing the buckets", self._release),
        ]
        stopped, running = self._stopped, self._running
        for name, step in steps:
            try:
                step()
            except Exception as error:
                logger.exception("{} failed", name)
                stopped.problems.append(f"{name} failed: {error!r}")
        stopped.crashes = running.serving.connections.crashes + running.housekeeper.errors
        stopped.crashes += self._member.errors if self._member is not None else 0
        return stopped

    def give_up(self) -> None:
        """End what runs already of a start that failed; what it is made of is the caller's to let go of."""
        self._end_connections()
        self._end_membership()
        self._running.housekeeper.stop(JOIN_S)

    def _leave(self) -> None:
        """Hand over what this node has, where there is anybody to take it."""
        member, parts = self._member, self._parts
        if member is None:
            return
        failed = parts.log is not None and parts.log.failure is not None
        if failed and len(member.view.nodes) == 1:
            return
        member.leave()
        deadline = time.monotonic() + (FAILED_DRAIN_S if failed else parts.drain_timeout_s)
        while not member.departure.left.wait(LEAVE_LOOK_S):
            parts.notifier.extend_timeout(EXTEND_S)
            view = member.view
            self._progress(f"stopping: {view.copies_of(member.name)} copies to hand over")
            if time.monotonic() > deadline or parts.stops.signals > 1:
                self._stopped.not_handed_over = sum(not view.placements[b].backups for b in view.primaries_of(member.name))
                why = "{} copies could not be handed over in time, {} of them the only ones; the files here keep theirs"
                logger.error(why, view.copies_of(member.name), self._stopped.not_handed_over)
                return

    def _end_connections(self) -> None:
        deadline = time.monotonic() + self._parts.stop_timeout_s
        serving, standing = self._running.serving, self._parts.standing
        self._progress(f"stopping: {len(serving.connections)} connections are told goodbye")
        self._stopped.stuck += serving.close()
        if standing.register is not None:
            standing.register.close()  # or whoever watches would keep its worker
        self._stopped.stuck += serving.join(deadline)

    def _end_membership(self) -> None:
        if (member := self._member) is not None:
            self._stopped.stuck += member.stop(JOIN_S)
            self._stopped.displaced = member.departure.displaced
            self._running.keep_view(member.view)

    def _end_upkeep(self) -> None:
        parts = self._parts
        parts.notifier.extend_timeout(EXTEND_S)
        if not self._running.housekeeper.stop(JOIN_S):
            self._stopped.stuck.append("the housekeeper")
        if parts.checkpointer is not None and not parts.checkpointer.stop(EXTEND_S):
            self._stopped.stuck.append("the checkpointer")

    def _end_log(self) -> None:
        log = self._parts.log
        if log is None:
            return
        self._progress("stopping: closing the append log")
        if not log.stop(EXTEND_S):
            self._stopped.stuck.append("the append log")
        self._stopped.log_failure = log.failure

    def _save(self) -> None:
        if self._is_to_save:
            self._stopped.not_saved = self._running.saving.save(self._progress)

    @property
    def _is_to_save(self) -> bool:
        """With persist on, unless this node handed over all it had: the last one saves, and who could not get rid of it."""
        departure = self._member.departure if self._member is not None else None
        handed_over = departure is not None and departure.left.is_set() and not departure.is_last
        return self._running.saving.is_wanted and not handed_over

    def _release(self) -> None:
        released = self._set_buckets(BucketState.FROZEN, BucketState.ABSENT)
        logger.info("{} buckets released", released)
        if not self._stopped.stuck:
            self._parts.engine.close()
            self._parts.data_dir.close()

    def _set_buckets(self, now: BucketState, then: BucketState) -> int:
        engine = self._parts.engine
        buckets = [bucket for bucket in range(engine.config.buckets) if engine.state(bucket) is now]
        for bucket in buckets:
            engine.set_state(bucket, then)
        return len(buckets)
