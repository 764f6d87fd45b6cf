"""CRC-32 as `zlib.crc32`, by the compiled body where it was built: it is several times as fast (`_crc.pxd`).

Which thread runs it: any. What it owns: nothing. What it must not know: what the bytes mean.
"""

from __future__ import annotations

try:
    from rcache.records._walk import checksum as crc32
except ImportError:  # there was no compiler: see setup.py
    from zlib import crc32  # type: ignore[assignment]

__all__ = ["crc32"]
