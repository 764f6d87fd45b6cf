"""What a start brings back: from the files of a data directory into the engine, and the new epoch onto the disk.

What it is: the steps of recovery, each with the exit code that its failure means, and `StartWatch`, which tells how far they
are.
Which thread runs it: the main thread. What it owns: nothing; what is recovered goes to the engine.
What it must not know: clusters.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from typing import Any

from loguru import logger

from rcache.commands.exit_codes import ExitCode
from rcache.commands.option_values import size_text
from rcache.commands.options import ServerOptions
from rcache.commands.restore import restore
from rcache.commands.show import show_count, show_size
from rcache.commands.start_failed import StartFailed
from rcache.engine.contract import Engine
from rcache.records.reader import DataDamaged
from rcache.records.record import Cause, Kind, Record, encode
from rcache.server.notify import EXTEND_S, Notifier
from rcache.server.stops import Stops
from rcache.stream.append_log import AppendLog
from rcache.stream.applied import AppliedFailed, AppliedStream
from rcache.stream.data_dir import DataDir
from rcache.stream.recovery import HistoryIncomplete, Recovered, Walks, feed, recover

SYNC_WAIT_S = 60.0
"""How long a start waits for its OPENs to be on disk."""

PROGRESS_EVERY_S = 1.0


class StartWatch:
    """Looks, during the long steps of a start, whether it is to be given up, and tells how far they are."""

    def __init__(self, notifier: Notifier, stops: Stops) -> None:
        self.notifier = notifier
        self.stops = stops

    def look(self) -> None:
        """Raise `StartFailed` if a signal came."""
        if self.stops.signalled:
            raise StartFailed(ExitCode.STOPPED, f"stopped before it served: {self.stops.signalled}")

    def walks(self) -> Walks:
        """For the two walks over files of records."""
        return Walks(self.progress("reading", show_size), self.progress("rebuilding", show_size))

    def progress(self, what: str, show: Callable[[int], str]) -> Callable[[int, int], None]:
        """For one step: called with (done, total), it looks, and tells the log and systemd once in PROGRESS_EVERY_S."""
        last = time.monotonic()

        def report(done: int, total: int) -> None:
            nonlocal last
            self.look()
            if time.monotonic() - last < PROGRESS_EVERY_S:
                return
            last = time.monotonic()
            text = f"{what}: {done * 100 // max(1, total)} % of {show(total)}"
            logger.info("{}", text)
            self.notifier.status(text)
            self.notifier.extend_timeout(EXTEND_S)

        return report


def recover_here(options: ServerOptions, data_dir: DataDir, watch: StartWatch, wanted: Collection[int] | None) -> Recovered:
    identity = data_dir.identity
    assert identity is not None
    try:
        return recover(
            options.data_dir,
            options.savefile,
            identity,
            skip_damaged=options.skip_damaged,
            walks=watch.walks(),
            wanted=wanted,
        )
    except (DataDamaged, HistoryIncomplete) as error:
        hint = "rcache-replay verify tells more, for all nodes' directories together; --skip-damaged goes on with what is there"
        raise StartFailed(ExitCode.DAMAGED_FILE, f"{error}. {hint}") from None
    except OSError as error:
        raise StartFailed(ExitCode.APPEND_LOG_FAILED, f"--data-dir: {error}") from None


def load(options: ServerOptions, recovered: Recovered, engine: Engine, watch: StartWatch) -> None:
    """Put what was recovered into the engine, and let go of it: its rows, and the files that they were read from."""
    try:
        feed(recovered.buckets, engine.apply, watch.progress("loading", _in_buckets))
    except DataDamaged as error:  # a file was changed under the running start
        raise StartFailed(ExitCode.DAMAGED_FILE, str(error)) from None
    except MemoryError as error:
        why = f"--memory-limit {size_text(options.memory_limit)} is too small for the data on disk: {error}"
        raise StartFailed(ExitCode.WRONG_USE, f"{why}; give a larger one") from None
    recovered.buckets.clear()


def let_go(applied: AppliedStream, buckets: Collection[int], now_ms: int) -> None:
    """The log says that these buckets are not here any more: this start begins without them, whatever the files hold of a
    former one. (It is filled anew, loses its power before that is on the disk, and would take the old copy for the last:
    `records.holdings`.) On the disk with this start's OPENs. Raises `StartFailed`."""
    marks = [encode(Record(Kind.DROP, Cause.NONE, bucket, 0, 0, now_ms, 0, b"", b"")) for bucket in buckets]
    if not marks:
        return
    try:
        applied.append(b"".join(marks), len(marks), time.monotonic_ns() + int(SYNC_WAIT_S * 1e9))
    except (TimeoutError, AppliedFailed) as error:
        raise StartFailed(ExitCode.APPEND_LOG_FAILED, f"the append log could not be written: {error}") from None


def restore_here(options: ServerOptions, engine: Engine, log: AppendLog | None, data_dir: DataDir, watch: StartWatch) -> int:
    """Returns how many items were restored. Where it is the log that failed, its own words say why."""
    if options.restore is None:
        return 0
    try:
        return restore(options.restore, engine, data_dir.begin_restore, watch.walks(), watch.progress("restoring", in_items))
    except OSError as error:
        raise StartFailed(ExitCode.APPEND_LOG_FAILED, f"--data-dir: {error}") from None
    except StartFailed as failed:
        if log is None or failed.code is not ExitCode.APPEND_LOG_FAILED:
            raise
        log.stop(SYNC_WAIT_S)  # by then it has said what happened
        raise StartFailed(failed.code, f"{failed}: {log.failure}" if log.failure else str(failed)) from None


def trim_to_limit(options: ServerOptions, engine: Engine) -> None:
    """What was recovered may be more than a smaller --memory-limit allows."""
    memory = engine.stats()["memory"]
    if memory["used_bytes"] <= memory["limit_bytes"]:
        return
    if options.no_evict:
        why = f"the data takes {memory['used_bytes']} bytes, more than --memory-limit {memory['limit_bytes']}, with --no-evict"
        raise StartFailed(ExitCode.WRONG_USE, why)
    logger.warning("evicted {} items: the data was larger than --memory-limit", engine.trim())


def make_durable(data_dir: DataDir, log: AppendLog | None, epoch: int) -> None:
    """The OPENs are on disk, and then the epoch is: until here this start can be repeated from the same files."""
    if log is not None and not log.sync(SYNC_WAIT_S):
        why = str(log.failure) if log.failure else f"the first records were not on disk within {SYNC_WAIT_S:.0f} s"
        raise StartFailed(ExitCode.APPEND_LOG_FAILED, f"the append log could not be written: {why}")
    try:
        data_dir.begin_serving(epoch, logged=log is not None)
    except OSError as error:
        raise StartFailed(ExitCode.APPEND_LOG_FAILED, f"the epoch could not be written down: {error}") from None


def report(recovered: Recovered, items: int, restored: int, served_epoch: int, epoch: int) -> None:
    for warning in recovered.warnings:
        logger.warning("{}", warning)
    for note in recovered.notes:
        logger.info("{}", note)
    if recovered.stale:
        logger.error(
            "DATA SET ASIDE: the files end in epoch {}, but this node served epoch {} since and kept nothing of it on disk; "
            "starting empty rather than with the past. --restore FILE into an empty --data-dir brings it back",
            recovered.newest_epoch,
            served_epoch,
        )
    elif recovered.lost:
        logger.error("LOST: the last start of this node kept nothing of {} buckets that nobody else has: empty", recovered.lost)
    if restored:
        logger.info("restored {} items", restored)
    logger.info("starting with {} items in epoch {}", items, epoch)


def recovery_stats(recovered: Recovered, items: int, restored: int, seconds: float) -> dict[str, Any]:
    return {
        "items": items,
        "records_read": recovered.records,
        "bytes_read": recovered.bytes,
        "seconds": round(seconds, 3),
        "stale_history_set_aside": recovered.stale,
        "buckets_lost": recovered.lost,
        "restored": restored,
        "warnings": list(recovered.warnings),
    }


def _in_buckets(number: int) -> str:
    return show_count(number, "bucket")


def in_items(number: int) -> str:
    """For `StartWatch.progress`."""
    return show_count(number, "item")
