"""When what the append log wrote is made durable.

What it is: the three answers to `--append-log-fsync`, and nothing else, so that every floor above may name them.
Which thread runs it: any; everything here is constant.
What it owns: nothing.
What it must not know: how the append log goes about it.
"""

from __future__ import annotations

from enum import Enum


class FsyncPolicy(Enum):
    """When the append log calls fsync."""

    ALWAYS = "always"
    """After every block; a change is acknowledged only once its block is on disk."""

    INTERVAL = "interval"
    """At an interval; a crash of the machine loses at most what came since the last one."""

    NEVER = "never"
    """When the kernel pleases; a crash of the process alone still loses nothing that was written."""
