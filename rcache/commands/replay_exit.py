"""How rcache-replay ends: its exit codes, and the error that ends it early.

What it is: one exit code for each thing that a script should do about it; `--help` and `docs/records.md` show this table.
Which thread runs it: any; everything here is constant.
What it owns: nothing.
What it must not know: how a command finds out.

| code | meaning |
| --- | --- |
| 0 | done; a torn tail alone is fine and is reported |
| 1 | a bug: an unhandled error |
| 2 | wrong use of the command line, files that are not there, or files of several clusters |
| 3 | the server could not be reached, or did not let this program in |
| 5 | a file is damaged or cannot be read; see --skip-damaged |
| 6 | not everything was written: some keys were not injected, or the savefile could not be written |
| 8 | the history is incomplete (no base, or a missing link); see --partial |
"""

from __future__ import annotations

from enum import IntEnum


class ReplayExit(IntEnum):
    """What the exit code of rcache-replay says. Numbers shared with rcached mean the same there."""

    DONE = 0
    BUG = 1
    WRONG_USE = 2
    NOT_REACHED = 3
    DAMAGED = 5
    NOT_WRITTEN = 6
    INCOMPLETE = 8


INTERRUPTED = 130
"""What a shell reports for a program that SIGINT ended."""

EPILOG = "exit codes:\n" + "\n".join(
    f"  {code}  {meaning}"
    for code, meaning in (line.strip("| ").split(" | ", 1) for line in (__doc__ or "").splitlines() if line.startswith("| "))
    if code.isdigit()
)


class ReplayStopped(Exception):
    """The command cannot go on; the text is for its user."""

    def __init__(self, code: ReplayExit, why: str) -> None:
        super().__init__(why)
        self.code = code
