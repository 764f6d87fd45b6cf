"""File descriptors: enough of them for the connections that are allowed, or fewer connections.

What it is: the soft limit raised as far as the hard one lets it, and what is left for connections where that is too low.
A node that ran out of descriptors could begin no log segment, and would have to stop.
Which thread runs it: the main thread, once, at the start. What it owns: the process's RLIMIT_NOFILE.
What it must not know: who connects, and what the files are.
"""

from __future__ import annotations

import contextlib
import resource

from loguru import logger

from rcache.commands.exit_codes import ExitCode
from rcache.commands.start_failed import StartFailed

FILES = 64
"""Descriptors kept back for everything but connections: log segments, checkpoints, savefile and text log take about a dozen,
what was inherited some more."""


def connections_allowed(wanted: int, reserved: int) -> int:
    """How many connections there may be, at most `wanted`, beside `reserved` places. Raises `StartFailed` if none is left."""
    limit = _raise_limit(wanted + reserved + FILES)
    allowed = min(wanted, limit - reserved - FILES)
    if allowed < 1:
        why = f"--max-connections: this process may open {limit} files (ulimit -n), {reserved + FILES + 1} or more are needed"
        raise StartFailed(ExitCode.WRONG_USE, why)
    if allowed < wanted:
        logger.warning(
            "--max-connections {} is cut down to {}: this process may open only {} files (ulimit -Hn, LimitNOFILE=)",
            wanted,
            allowed,
            limit,
        )
    return allowed


def _raise_limit(needed: int) -> int:
    """Raise the soft limit to `needed`, as far as the hard one allows; return what may be opened of it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    reachable = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    if soft != resource.RLIM_INFINITY and soft < reachable:
        with contextlib.suppress(OSError, ValueError):  # not allowed here: what there is has to do
            resource.setrlimit(resource.RLIMIT_NOFILE, (reachable, hard))
            soft = reachable
    return needed if soft == resource.RLIM_INFINITY else min(soft, needed)
