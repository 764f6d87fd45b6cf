"""The view that a node went by last, remembered on its disk: whom to look for after a restart, and what a takeover goes on from
where nobody else is left.

What it is: the file `view` in the data directory, two lines of text.
Which thread runs it: the housekeeper's while the node serves, the main thread's at start and stop.
What it owns: that file. What it must not know: what a view means.
"""

from __future__ import annotations

from pathlib import Path

from loguru import logger

from rcache.cluster.view import BadView, OtherFormat, View, decode_view, encode_view
from rcache.commands.exit_codes import ExitCode
from rcache.commands.start_failed import StartFailed
from rcache.stream.disk import Disk, replace_file

SEEN_VIEW_FILE = "view"


def keep_seen_view(directory: Path, where: str, view: View, disk: Disk | None = None) -> None:
    """Remember a view, and where views are agreed: a line each. What cannot be written is told, and costs no more than a
    longer search after a restart."""
    try:
        replace_file(disk or Disk(), directory / SEEN_VIEW_FILE, where.encode() + b"\n" + encode_view(view) + b"\n")
    except OSError as error:
        logger.warning("the view could not be remembered: {}", error)


def read_seen_view(directory: Path) -> View | None:
    """None where there is none that can be read, which is told. Raises `StartFailed` for one by another version: who goes on
    without it takes itself for a node that knows nobody."""
    try:
        return decode_view((directory / SEEN_VIEW_FILE).read_bytes().partition(b"\n")[2])
    except FileNotFoundError:
        return None
    except OtherFormat as error:
        why = f"{directory / SEEN_VIEW_FILE}: {error}; start it with the version that wrote it, or with another --data-dir"
        raise StartFailed(ExitCode.DAMAGED_FILE, why) from None
    except (OSError, BadView) as error:
        logger.warning("{}: {}", directory / SEEN_VIEW_FILE, error)
        return None


def seen_where(directory: Path) -> str:
    """Where views were agreed, in words that a node which joins understands. Raises OSError."""
    return (directory / SEEN_VIEW_FILE).read_bytes().partition(b"\n")[0].decode()
