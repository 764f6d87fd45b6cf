"""The text log of programs that run for long: to standard error, and to a file where one is named.

Which thread runs it: the main thread, once. What it owns: the text log's outputs. What it must not know: who logs what.
"""

from __future__ import annotations

import sys
from pathlib import Path

from loguru import logger

from rcache.commands.exit_codes import ExitCode
from rcache.commands.start_failed import StartFailed

_FORMAT = "{time:YYYY-MM-DD HH:mm:ss.SSS} {level: <7} {thread.name}: {message}"

ROTATION = "100 MB"
RETENTION = 10
"""Files of the text log that are kept beside the current one: a gigabyte in all."""


def set_up_text_log(level: str, file: Path | None) -> None:
    """Standard error first, so that a --log-file that cannot be opened is told there. Raises `StartFailed`."""
    logger.remove()
    logger.add(sys.stderr, level=level, format=_FORMAT, diagnose=False)
    if file is None:
        return
    try:
        logger.add(file, level=level, format=_FORMAT, rotation=ROTATION, retention=RETENTION, diagnose=False)
    except OSError as error:
        why = f"--log-file: {str(file)!r} cannot be written: {error.strerror}"
        raise StartFailed(ExitCode.WRONG_USE, why) from None
