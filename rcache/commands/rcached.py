"""`rcached`: the server's command line.

What it is: from arguments to an exit code: options, the text log, signals, start, wait, stop.
Which thread runs it: the main thread. What it owns: the signal handlers and the text log's outputs.
What it must not know: how a node works.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import NoReturn

from loguru import logger

from rcache.commands.bodies_here import missing_bodies
from rcache.commands.exit_codes import ExitCode
from rcache.commands.options import ServerOptions, parse
from rcache.commands.start_failed import StartFailed
from rcache.commands.startup import boot, writers
from rcache.commands.text_log import set_up_text_log
from rcache.records import walk
from rcache.server.notify import Notifier
from rcache.server.service import Service
from rcache.server.stopping import Stopped
from rcache.server.stops import Stops

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)

_HOW_IT_ENDED = {
    ExitCode.STOPPED: "in order",
    ExitCode.WRONG_USE: "its name belongs to another node by now",
    ExitCode.BUG: "with errors that should not be",
    ExitCode.NOT_KEPT: "data that should have been kept was not saved",
    ExitCode.APPEND_LOG_FAILED: "the append log failed",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a node until it is told to stop. Returns the exit code."""
    options = parse(sys.argv[1:] if argv is None else argv, os.environ)
    notifier = Notifier()
    try:
        set_up_text_log(options.log_level, options.log_file)
        return _run(options, notifier)
    except StartFailed as error:
        logger.log("INFO" if error.code is ExitCode.STOPPED else "ERROR", "{}", error)
        code = error.code
    except Exception:
        logger.exception("unhandled error")
        code = ExitCode.BUG
    if writers():  # one that hangs in the disk would keep the process for ever
        _leave(code)
    return code


def _run(options: ServerOptions, notifier: Notifier) -> int:
    stops = Stops()
    for number in STOP_SIGNALS:
        signal.signal(number, lambda caught, _frame: stops.signal(signal.Signals(caught).name))
    release = version("rcache")
    logger.info("rcached {} starts: node {}, engine {}, data in {}", release, options.name, options.engine, options.data_dir)
    logger.info("record walks: {}", walk.chosen.name)
    for missing in missing_bodies():
        logger.warning("{}", missing)
    service = boot(options, release, notifier, stops)
    try:
        why = _serve(service, options, notifier)
    except BaseException:
        service.stop()  # or its threads would go on for ever
        raise
    return _stop(service, why, notifier)


def _serve(service: Service, options: ServerOptions, notifier: Notifier) -> str:
    """From the first connection to the reason to stop."""
    try:
        service.start()
    except OSError as error:
        raise StartFailed(ExitCode.CANNOT_LISTEN, f"cannot listen on {options.listen}: {error.strerror}") from None
    if why := service.await_up():
        return why
    service.finish_start()
    host, port = service.address
    shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        print(f"ready {shown}", flush=True)
    except OSError as error:
        logger.warning("`ready {}` could not be written to standard output: {}", shown, error.strerror)
    notifier.ready()
    notifier.status(f"serving on {shown}")
    logger.info("serving on {}", shown)
    return service.wait()


def _stop(service: Service, why: str, notifier: Notifier) -> int:
    logger.info("stopping: {}", why)
    notifier.stopping()
    stopped = service.stop(notifier.status)
    code = exit_code(stopped)
    for problem in stopped.problems:
        logger.error("{}", problem)
    for thread in stopped.stuck:
        logger.error("{} did not end", thread)
    if stopped.crashes:
        logger.error("{} unhandled errors while serving; see above", stopped.crashes)
    if stopped.displaced:
        logger.error("{}; start this one with another --name and an empty --data-dir", stopped.displaced)
    if stopped.log_failure is not None:
        logger.error("the append log failed: {}", stopped.log_failure)
    logger.info("stopped, exit code {}: {}", int(code), _HOW_IT_ENDED[code])
    if stopped.stuck:
        _leave(code)
    return code


def _leave(code: ExitCode) -> NoReturn:
    """End the process although threads hang in it. The kernel lets go of the data directory's lock at the very end."""
    logger.complete()
    sys.stderr.flush()
    os._exit(code)


def exit_code(stopped: Stopped) -> ExitCode:
    """What the way it stopped amounts to; the worst thing wins."""
    if stopped.log_failure is not None:
        return ExitCode.APPEND_LOG_FAILED
    if stopped.not_saved or stopped.not_handed_over:
        return ExitCode.NOT_KEPT
    if stopped.displaced:
        return ExitCode.WRONG_USE
    if stopped.problems or stopped.stuck or stopped.crashes:
        return ExitCode.BUG
    return ExitCode.STOPPED


if __name__ == "__main__":
    sys.exit(main())
