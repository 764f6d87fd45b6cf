"""How rcache-cli ends: its exit codes, and which error leads to which.

What it is: one exit code for each thing that a script should do about it; `--help` and `docs/cli.md` show this table.
Which thread runs it: any; everything here is constant.
What it owns: nothing.
What it must not know: which command was run.

| code | meaning |
| --- | --- |
| 0 | done |
| 1 | a bug: an unhandled error |
| 2 | wrong use of the command line or of a variable |
| 3 | no server could be reached, or none answered in time; nothing was changed |
| 4 | the condition was not met: no such key, or (add) there is one already |
| 5 | refused: by the server, which says why, or by you (flush, lost and renew ask first) |
| 6 | a change was sent and its outcome is unknown; look before you try again |
| 7 | done, but the answer could not be written (a full disk) |
| 8 | done in part: some of several keys or nodes failed, and each of them was named |
"""

from __future__ import annotations

from enum import IntEnum

from rcache_client import AuthenticationFailed, OutcomeUnknown, RcacheError, Refused, ServersUnavailable, SomeKeysFailed
from rcache_client.wire.opcodes import Status


class CliExit(IntEnum):
    """What the exit code of rcache-cli says."""

    DONE = 0
    BUG = 1
    WRONG_USE = 2
    NOT_REACHED = 3
    NOT_MET = 4
    REFUSED = 5
    UNKNOWN = 6
    NOT_WRITTEN = 7
    IN_PART = 8


INTERRUPTED = 130
"""What a shell reports for a program that SIGINT ended."""

EXIT_CODES = "exit codes:\n" + "\n".join(
    f"  {code}  {meaning}"
    for code, meaning in (line.strip("| ").split(" | ", 1) for line in (__doc__ or "").splitlines() if line.startswith("| "))
    if code.isdigit()
)


class CliStopped(Exception):
    """The command cannot go on; the text is for its user."""

    def __init__(self, code: CliExit, why: str) -> None:
        super().__init__(why)
        self.code = code


def code_of(error: RcacheError) -> CliExit:
    """What an error of the client amounts to."""
    if isinstance(error, SomeKeysFailed):
        return CliExit.IN_PART
    if isinstance(error, OutcomeUnknown):
        return CliExit.UNKNOWN
    return CliExit.REFUSED if isinstance(error, Refused) else CliExit.NOT_REACHED


def explain(error: RcacheError) -> str:
    """What went wrong, and what to do about the two troubles that beginners have."""
    if isinstance(error, AuthenticationFailed):
        return f"{error}\nIf the server was started with --secret-file, give the same file here."
    if isinstance(error, ServersUnavailable) and Status.TOO_MANY_CONNECTIONS.name not in str(error):  # a full one does run
        return f"{error}\nDoes rcached run there? --server HOST:PORT names another."
    return str(error)
