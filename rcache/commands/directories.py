"""Opening a directory of data files: a node's, or a logger's.

Which thread runs it: the main thread, once. What it owns: nothing; the lock is the opened directory's.
What it must not know: what the files are for.
"""

from __future__ import annotations

from pathlib import Path

from rcache.commands.exit_codes import ExitCode
from rcache.commands.start_failed import StartFailed
from rcache.records.reader import DataDamaged
from rcache.stream.data_dir import DataDir, DataDirLocked


def open_directory(option: str, path: Path, role: str) -> DataDir:
    """The directory that `option` names, locked, of nobody with another role. Raises `StartFailed`."""
    try:
        directory = DataDir(path)
    except DataDirLocked as error:
        raise StartFailed(ExitCode.WRONG_USE, f"{option}: {error}") from None
    except DataDamaged as error:
        raise StartFailed(ExitCode.DAMAGED_FILE, str(error)) from None
    except OSError as error:
        raise StartFailed(ExitCode.WRONG_USE, f"{option} {path}: {error.strerror}") from None
    try:
        directory.demand_role(role)
    except ValueError as error:
        directory.close()
        raise StartFailed(ExitCode.WRONG_USE, f"{option}: {error}") from None
    return directory
