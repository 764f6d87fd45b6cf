"""A recording: one node's parts that follow a cluster and write down what changes in it.

What it is: the owner of what runs: the feeds, the recorder, the append log, the copier, the checkpoints.
Which thread runs it: the main thread; the append log's calls `_segment_began`.
What it owns: all of these, until `stop`. What it must not know: options, exit codes, signals.

It is a subscriber like any other: no view names it, it holds no data, no write waits for it. What it cannot keep up with is a
gap, and the buckets that have one are copied anew.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loguru import logger

from rcache.engine.reference.ring import Ring
from rcache.logger.copies import Copier, Copies
from rcache.logger.recorder import Recorder
from rcache.logger.resume import Resumed, own_files, save
from rcache.stream.append_log import AppendLog
from rcache.stream.applied import AppliedStream
from rcache.stream.checkpoints import CheckpointConfig, Checkpointer, Stopped
from rcache.stream.data_dir import CHECKPOINT_SUFFIX, SEGMENT_SUFFIX, Identity
from rcache.stream.disk import Disk
from rcache.stream.log_terms import AppendLogConfig, LogFailure, LogHooks
from rcache.stream.policy import FsyncPolicy
from rcache.stream.segment import day_of
from rcache_client import Client

STREAM_BYTES = 64 << 20
"""What is on its way to the disk. When it is full the feeds rest, and what their nodes hold no more by then is a gap."""

OWN_STREAM_BYTES = 1 << 16
"""The log reads two streams, as a node's does; a recording changes nothing itself."""


@dataclass(frozen=True, slots=True)
class RecordingConfig:
    """How it is kept. `keep_days` 0: everything, for ever."""

    directory: Path
    policy: FsyncPolicy = FsyncPolicy.INTERVAL
    interval_s: float = 1.0
    segment_bytes_max: int = 512 << 20
    keep_days: int = 0
    stream_bytes: int = STREAM_BYTES


class Recording:
    """See the module. `on_failure` is told once, by the log's thread, if the log cannot be written."""

    def __init__(
        self,
        config: RecordingConfig,
        identity: Identity,
        resumed: Resumed,
        client: Client[bytes],
        on_failure: Callable[[LogFailure], None],
        *,
        disk: Disk | None = None,
    ) -> None:
        self.config = config
        self._disk = disk or Disk()
        self._resumed = resumed
        own = Ring(OWN_STREAM_BYTES)
        always = config.policy is FsyncPolicy.ALWAYS
        stream = AppliedStream(config.stream_bytes, own.wake_readers, always=always)
        self.recorder = Recorder(stream, resumed.known)
        self.log = AppendLog(
            AppendLogConfig(config.directory, config.policy, config.interval_s, config.segment_bytes_max),
            own,
            identity,
            now_ms,
            LogHooks(on_failure=on_failure, on_segment=self._segment_began),
            disk=self._disk,
            applied=stream,
        )
        self.feeds = client.listen(self.recorder, places=self.recorder.places)
        self.copier = Copier(self.recorder, self.feeds.router)
        self._is_stopping = False
        self._copies = Copies(self.recorder, self.feeds.router, self.log, self._look)
        self.checkpointer: Checkpointer | None = None
        if config.keep_days:
            terms = CheckpointConfig(config.directory, config.keep_days, self._disk)
            self.checkpointer = Checkpointer(terms, self._copies, self._copies, identity, now_ms, logger.log)
        self._checkpoint_made = (_last_checkpoint(config.directory, identity), 0)

    # --- running

    def start(self, epoch: int, deadline: float, look: Callable[[], object] = lambda: None) -> bool:
        """Follow the cluster. Blocks until every bucket that has a primary is told of, to the deadline; returns whether any is.
        Raises OSError where no segment can be begun, `RcacheError` where no node can be asked."""
        self.log.start(self._resumed.place, epoch)
        self.feeds.begin(deadline)
        if self.checkpointer is not None:
            self.checkpointer.start(epoch)
        is_told = self.feeds.await_all(deadline, look)
        self.copier.start()
        return is_told

    def stop(self, timeout_s: float) -> list[str]:
        """Take in nothing more, write what was taken in, close the log. Returns what did not end in time."""
        self._is_stopping = True
        deadline = time.monotonic() + timeout_s
        self.feeds.stop()
        self.recorder.stop()
        self.feeds.close()
        stuck = [] if self.copier.stop(_left(deadline)) else ["the copies"]
        if self.checkpointer is not None and not self.checkpointer.stop(_left(deadline)):
            stuck.append("the checkpoint")
        self._copies.close()
        if not self.log.stop(_left(deadline)):
            stuck.append("the append log")
        return stuck

    def _look(self) -> None:
        if self._is_stopping:
            raise Stopped

    def _segment_began(self, number: int) -> None:
        """The append log's thread, between two segments; and once a day the time to make a checkpoint."""
        try:
            save(self._disk, self.config.directory, number, self.recorder.written())
        except OSError as error:  # the next start reads more, and no less is known
            logger.warning("the places as of segment {} could not be written: {}", number, error.strerror or error)
        if self.checkpointer is None:
            return
        due = (day_of(now_ms()), self.checkpointer.failed)
        if due != self._checkpoint_made:
            self._checkpoint_made = due
            self.checkpointer.segment_began(number)

    # --- what it says

    def stats(self) -> dict[str, Any]:
        """Counters since the start, and gauges."""
        counts, told_of = self.recorder.counts, len(self.feeds.told_of)
        view = self.feeds.router.table.view
        return {
            "buckets": len(view.buckets) if view is not None else 0,
            "told_of": told_of,
            "whole": self.recorder.whole,
            "changes": counts.changes,
            "bytes": counts.bytes,
            "gaps": counts.gaps,
            "bases": counts.bases,
            "rows": counts.rows,
            "failures": counts.failures,
            "unhandled_errors": self.copier.errors,
            "append_log": dict(self.log.stats()),
            "checkpoints": dict(self.checkpointer.stats()) if self.checkpointer is not None else {},
        }


def now_ms() -> int:
    """The wall clock: what a segment's day is told by. (Records carry the times of the nodes that made them.)"""
    return int(time.time() * 1000)


def _left(deadline: float) -> float:
    return max(0.1, deadline - time.monotonic())


def _last_checkpoint(directory: Path, identity: Identity) -> str:
    """The day of the newest checkpoint. Where there is none yet that of the first segment, or today: the bases are in the log
    until the next day."""
    made = own_files(directory, identity, CHECKPOINT_SUFFIX)[-1:] or own_files(directory, identity, SEGMENT_SUFFIX)[:1]
    return day_of(made[0].header.created_ms if made else now_ms())
