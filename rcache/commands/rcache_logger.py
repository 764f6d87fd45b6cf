"""`rcache-logger`: the recording node's command line.

What it is: from arguments to an exit code: options, the text log, signals, start, what it says while it records, stop.
Which thread runs it: the main thread. What it owns: the signal handlers, the directory, the client, the recording.
What it must not know: how a recording works.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from typing import NoReturn

from loguru import logger

from rcache.commands.directories import open_directory
from rcache.commands.exit_codes import ExitCode
from rcache.commands.logger_options import PROGRAM, LoggerOptions, parse
from rcache.commands.recovering import StartWatch
from rcache.commands.show import show_count, show_size
from rcache.commands.start_failed import StartFailed
from rcache.commands.text_log import set_up_text_log
from rcache.logger.recording import Recording, RecordingConfig
from rcache.logger.resume import Resumed, resume
from rcache.records.reader import DataDamaged
from rcache.server.notify import Notifier, watchdog_interval_s
from rcache.server.stops import LOOK_S, Stops
from rcache.stream.data_dir import LOGGER, DataDir, Identity
from rcache_client import AuthenticationFailed, Client, RcacheError, View, WrongCluster
from rcache_client.wire.opcodes import Role

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)

TELL_S = 60.0
"""How often it says how it goes."""

COPYING_TELL_S = 5.0
"""And while buckets are copied."""

FIND_S = 2.0
FIND_REST_S = 0.5
"""One try to find the cluster, and the rest before the next."""


def main(argv: Sequence[str] | None = None) -> int:
    """Record until it is told to stop. Returns the exit code."""
    options = parse(sys.argv[1:] if argv is None else argv, os.environ)
    try:
        set_up_text_log(options.log_level, options.log_file)
        return _run(options, Notifier())
    except StartFailed as error:
        logger.log("INFO" if error.code is ExitCode.STOPPED else "ERROR", "{}", error)
        return error.code
    except Exception:
        logger.exception("unhandled error")
        return ExitCode.BUG


def _run(options: LoggerOptions, notifier: Notifier) -> int:
    stops = Stops()
    for number in STOP_SIGNALS:
        signal.signal(number, lambda caught, _frame: stops.signal(signal.Signals(caught).name))
    logger.info("{} {} starts: {}, files in {}", PROGRAM, version("rcache"), options.name, options.dir)
    watch = StartWatch(notifier, stops)
    with contextlib.ExitStack() as cleanup:
        data_dir = open_directory("--dir", options.dir, LOGGER)
        cleanup.callback(data_dir.close)
        servers = [str(node) for node in options.node]
        client = Client(servers, role=Role.LOGGER, name=options.name, secret=options.secret)
        cleanup.callback(client.close)
        view = _find(options, client, watch)
        identity = _be_somebody(options, data_dir, view)
        resumed = _resume(options, identity, watch)
        view = _newest(options, client, watch, view, resumed.newest_epoch)
        recording = Recording(_config(options), identity, resumed, client, lambda _failure: stops.ask("it cannot be recorded"))
        try:
            _start(options, recording, view, resumed, watch)
            _tell_ready(recording, notifier)
            why = _watch(recording, notifier, stops)
        except BaseException as error:
            if stuck := _stop(options, recording, notifier):
                logger.opt(exception=not isinstance(error, StartFailed)).error("{}; {} did not end", error, ", ".join(stuck))
                _leave(error.code if isinstance(error, StartFailed) else ExitCode.BUG)
            raise
        return _ended(recording, _stop(options, recording, notifier), why)


# --- the start


def _find(options: LoggerOptions, client: Client[bytes], watch: StartWatch) -> View:
    """The cluster's view. Raises `StartFailed`."""
    deadline = time.monotonic() + options.start_timeout
    while True:
        watch.look()
        try:
            return client.view(budget=FIND_S)
        except (AuthenticationFailed, WrongCluster) as error:
            raise StartFailed(ExitCode.WRONG_USE, str(error)) from None
        except RcacheError as error:
            if time.monotonic() > deadline:
                raise StartFailed(ExitCode.NO_NODE_ANSWERED, f"--node: {error}") from None
        time.sleep(FIND_REST_S)


def _newest(options: LoggerOptions, client: Client[bytes], watch: StartWatch, view: View, recorded_epoch: int) -> View:
    """The view, once it is as new as what is recorded: who is asked first may be behind, or cut off from the others. Raises
    `StartFailed` where no node has one: then the cluster was set back, and uses epochs again that are here already."""
    deadline = time.monotonic() + options.start_timeout
    while view.epoch < recorded_epoch:
        if time.monotonic() > deadline:
            raise StartFailed(
                ExitCode.WRONG_USE,
                f"--dir {options.dir}: epoch {recorded_epoch} of this cluster is recorded here, but its nodes are in epoch "
                f"{view.epoch}: it was set back to older files, or --node names one that is cut off from the others. Another "
                "history needs another --dir",
            )
        time.sleep(FIND_REST_S)
        view = _find(options, client, watch)
    return view


def _be_somebody(options: LoggerOptions, data_dir: DataDir, view: View) -> Identity:
    if options.name in view.nodes:
        raise StartFailed(ExitCode.WRONG_USE, f"--name: {options.name!r} is the name of a node of this cluster")
    try:
        data_dir.be(options.name, len(view.buckets), view.cluster_id.hex(), LOGGER)
        return data_dir.begin_incarnation()
    except ValueError as error:
        raise StartFailed(ExitCode.WRONG_USE, str(error)) from None
    except OSError as error:
        raise StartFailed(ExitCode.APPEND_LOG_FAILED, f"--dir {options.dir}: {error.strerror}") from None


def _resume(options: LoggerOptions, identity: Identity, watch: StartWatch) -> Resumed:
    try:
        resumed = resume(
            options.dir, identity, skip_damaged=options.skip_damaged, progress=watch.progress("reading", show_size)
        )
    except DataDamaged as error:
        hint = "rcache-replay verify tells more; --skip-damaged goes on, and copies anew what is missing"
        raise StartFailed(ExitCode.DAMAGED_FILE, f"{error}. {hint}") from None
    except OSError as error:
        raise StartFailed(ExitCode.APPEND_LOG_FAILED, f"--dir {options.dir}: {error}") from None
    for warning in resumed.warnings:
        logger.warning("{}", warning)
    return resumed


def _config(options: LoggerOptions) -> RecordingConfig:
    return RecordingConfig(
        options.dir, options.fsync, options.fsync_interval, options.max_mb << 20, keep_days=options.keep_days
    )


def _start(options: LoggerOptions, recording: Recording, view: View, resumed: Resumed, watch: StartWatch) -> None:
    whole = sum(covered.is_whole for covered in resumed.known.values())
    if resumed.known:
        logger.info("goes on: {} of {} are recorded whole", whole, show_count(len(view.buckets), "bucket"))
    else:
        logger.info("begins: {} are copied once, while all that changes is recorded", show_count(len(view.buckets), "bucket"))
    try:
        is_told = recording.start(view.epoch, time.monotonic() + options.start_timeout, watch.look)
    except OSError as error:
        raise StartFailed(ExitCode.APPEND_LOG_FAILED, f"no segment could be begun: {error}") from None
    except RcacheError as error:
        raise StartFailed(ExitCode.NO_NODE_ANSWERED, str(error)) from None
    if not is_told:
        raise StartFailed(ExitCode.NO_NODE_ANSWERED, "no node tells of changes: are the servers older than this program?")


# --- while it records


def _tell_ready(recording: Recording, notifier: Notifier) -> None:
    try:
        print("ready", flush=True)
    except OSError as error:
        logger.warning("`ready` could not be written to standard output: {}", error.strerror)
    notifier.ready()
    _tell(recording, notifier)


def _watch(recording: Recording, notifier: Notifier, stops: Stops) -> str:
    """Say how it goes, until there is a reason to stop. Returns it."""
    watchdog_s = watchdog_interval_s() or TELL_S
    told_at = alive_at = time.monotonic()
    was_whole = False
    while not (why := stops.wait_for(LOOK_S)):
        now, stats = time.monotonic(), recording.stats()
        is_whole = stats["whole"] == stats["buckets"]
        if is_whole and not was_whole:
            logger.info("all {} are recorded whole", show_count(stats["buckets"], "bucket"))
        if now - told_at > (TELL_S if is_whole else COPYING_TELL_S):
            told_at = now
            _tell(recording, notifier)
        if now - alive_at > watchdog_s and recording.log.is_alive():
            alive_at = now
            notifier.alive()
        was_whole = is_whole
    return why


def _tell(recording: Recording, notifier: Notifier) -> None:
    stats = recording.stats()
    text = (
        f"recording {stats['told_of']:,} of {show_count(stats['buckets'], 'bucket')}, {stats['whole']:,} whole; "
        f"{show_count(stats['changes'], 'change')}, {show_size(stats['bytes'])}; {show_count(stats['gaps'], 'gap')}"
    )
    logger.info("{}", text)
    notifier.status(text)


# --- the stop


def _stop(options: LoggerOptions, recording: Recording, notifier: Notifier) -> list[str]:
    notifier.stopping()
    return recording.stop(options.stop_timeout)


def _ended(recording: Recording, stuck: list[str], why: str) -> int:
    logger.info("stopped: {}", why)
    if recording.log.failure is not None:
        failure = recording.log.failure
        logger.error("{}: {}", failure.doing, failure.error.strerror or failure.error)
        logger.error("what is not on the disk is asked for again at the next start; make room, or look at the disk, before it")
        code = ExitCode.APPEND_LOG_FAILED
    elif stuck or recording.copier.errors:
        logger.error("did not end in order: {}", ", ".join(stuck) or "unhandled errors, see above")
        code = ExitCode.BUG
    else:
        code = ExitCode.STOPPED
    logger.info("exit code {}", int(code))
    if stuck:
        _leave(code)
    return code


def _leave(code: ExitCode) -> NoReturn:
    """End the process although threads hang in it. The kernel lets go of the directory's lock at the very end."""
    logger.complete()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    sys.exit(main())
