"""How rcached ends: one exit code for each thing its operator, or systemd, should do about it.

What it is: the table of exit codes, in one place. `systemd/rcached.service` says which of them a restart can mend.
Which thread runs it: any; everything here is constant.
What it owns: nothing.
What it must not know: why a server stopped; whoever ends it picks the code.
"""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """What the exit code of rcached says."""

    STOPPED = 0
    """Stopped in order: handed over, saved, or let go by choice."""

    BUG = 1
    """An unhandled error. A restart may help; a report surely does."""

    WRONG_USE = 2
    """Wrong use of the command line, an RCACHE_* variable or the configuration file. A restart changes nothing."""

    NO_NODE_ANSWERED = 3
    """Nodes were given, none answered HELLO, and nothing here holds the register. A later start may find them."""

    CANNOT_LISTEN = 4
    """The address could not be listened on: taken, or not of this machine (yet)."""

    DAMAGED_FILE = 5
    """A data file is damaged and no option said to go on. An operator must decide."""

    NOT_KEPT = 6
    """Stopped, but data that should have been kept could neither be handed over nor saved."""

    APPEND_LOG_FAILED = 7
    """The append log could not be written (disk full, I/O error): stopped rather than pretend."""
