"""Bytes, sizes, counts and durations as people read them; one way for all command lines.

Which thread runs it: any; nothing is kept. What it owns: nothing.
What it must not know: what the numbers are about.
"""

from __future__ import annotations

_TIME_UNITS = ((86_400, "d"), (3600, "h"), (60, "min"))


def show_bytes(data: bytes) -> str:
    """A key for people: text in quotes where it is printable, else as Python writes bytes."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return repr(data)
    return repr(text) if text.isprintable() else repr(data)


def show_size(count: int) -> str:
    """A number of bytes for people."""
    size = float(count)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:,.0f} {unit}" if unit == "bytes" else f"{size:,.1f} {unit}"
        size /= 1024
    return f"{size:,.1f} TiB"


def show_count(number: int, one: str, many: str = "") -> str:
    """A number of things for people; `many` where an s at the end does not make it."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def show_seconds(seconds: float) -> str:
    """A duration for people: its two largest units."""
    if seconds < 0:
        return f"-{show_seconds(-seconds)}"
    if 0 < seconds < 0.001:
        return f"{seconds * 1_000_000:.0f} us"
    if 0 < seconds < 1:
        return f"{seconds * 1000:.3g} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    left = round(seconds)
    parts: list[str] = []
    for unit_s, unit in _TIME_UNITS:
        if left >= unit_s or parts:
            parts.append(f"{left // unit_s} {unit}")
            left %= unit_s
    return " ".join([*parts, f"{left} s"][:2])
