"""Times as people write and read them, and as records hold them: milliseconds since 1970.

What it is: the parser behind `--until` and `--from`, and the way times are shown.
Which thread runs it: any; it holds no state.
What it owns: nothing.
What it must not know: what a time is for.
"""

from __future__ import annotations

import re
from argparse import ArgumentTypeError
from datetime import UTC, datetime, timedelta
from time import time

_SECONDS = re.compile(r"\d+(\.\d*)?", re.ASCII)
_AGO = re.compile(r"(\d+(?:\.\d*)?) ?([smhdw]) ago", re.ASCII)
_UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_BIRTH = datetime(1970, 1, 1, tzinfo=UTC)
_MS_MAX = (datetime.max.replace(tzinfo=UTC) - _BIRTH) // timedelta(milliseconds=1)


def now_ms() -> int:
    """The wall clock."""
    return int(time() * 1000)


def parse_time(text: str) -> int:
    """A moment in ms since 1970: ISO 8601 (UTC where no zone is given), seconds since 1970, or `10m ago`."""
    ago = _AGO.fullmatch(text)
    if ago is not None:
        return _checked(text, now_ms() - float(ago[1]) * _UNIT_SECONDS[ago[2]] * 1000)
    if _SECONDS.fullmatch(text):
        return _checked(text, float(text) * 1000)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ArgumentTypeError(
            f"{text!r} is not a time: write 2024-05-01T12:30:00 (UTC) or 2024-05-01T12:30:00+02:00, "
            "seconds since 1970, or like '10m ago'"
        ) from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return _checked(text, (moment - _BIRTH) // timedelta(milliseconds=1))


def _checked(text: str, ms: float) -> int:
    if not 0 <= ms <= _MS_MAX:
        raise ArgumentTypeError(f"{text!r} is out of range: a time from 1970 to the year 9999 is allowed")
    return int(ms)


def show_time(ms: int) -> str:
    """A moment for people, in UTC."""
    if ms > _MS_MAX:
        return f"{ms}ms"
    return (_BIRTH + timedelta(milliseconds=ms)).isoformat(timespec="milliseconds").replace("+00:00", "Z")
