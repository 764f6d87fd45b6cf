"""The one error with which a start ends: an exit code and a message for the operator.

Which thread runs it: the main thread. What it owns: nothing. What it must not know: why.
"""

from __future__ import annotations

from rcache.commands.exit_codes import ExitCode


class StartFailed(Exception):
    """The node cannot start."""

    def __init__(self, code: ExitCode, message: str) -> None:
        super().__init__(message)
        self.code = code
