"""How an append log is kept, where it goes on, how it ends, and who is told: what its writer and the service say to each other.

Which thread runs it: any; these are values. What it owns: nothing. What it must not know: how the log is written.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rcache.records.files import NO_FILE
from rcache.stream.policy import FsyncPolicy


@dataclass(frozen=True, slots=True)
class AppendLogConfig:
    """How the log is kept."""

    directory: Path
    policy: FsyncPolicy = FsyncPolicy.INTERVAL
    interval_s: float = 1.0
    segment_bytes_max: int = 512 << 20


@dataclass(frozen=True, slots=True)
class LogPlace:
    """Where the log goes on: the next segment's number and its predecessor's file id."""

    number: int = 1
    predecessor: bytes = NO_FILE


@dataclass(frozen=True, slots=True)
class LogFailure:
    """Why the log ended, and what that means. `acknowledged_lost`: records that clients may take for stored but that are not
    known to be on disk (0 with fsync always); the same in bytes."""

    error: OSError
    doing: str
    acknowledged_lost: int
    bytes_lost: int

    def __str__(self) -> str:
        lost = (
            f"{self.acknowledged_lost} acknowledged changes ({self.bytes_lost} bytes) are not known to be on disk"
            if self.acknowledged_lost
            else "nothing that was acknowledged is missing on disk"
        )
        return f"{self.doing}: {self.error.strerror or self.error}; {lost}"


@dataclass(frozen=True, slots=True)
class LogHooks:
    """Who is told what, on the log's own thread; neither may wait for the log."""

    on_failure: Callable[[LogFailure], None]
    on_segment: Callable[[int], None] = lambda _number: None
