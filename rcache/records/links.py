"""What is missing from the logs themselves: segments that are not there, segments cut short, damage that was skipped.

What it is: a pure resolver beside `history`. A hole in a bucket's counters shows that records are missing in its middle; it
cannot show that a bucket's *last* records are, when they lay in a segment that is gone and nothing spoke of the bucket after
it. That is found here, from the segments' numbers and from how each of them ends.
Which thread runs it: the caller's. What it owns: what it was told of each log. What it must not know: paths, values, keys.

Invariants:
1. Something is missing at a place of a log (segment number, byte) where a number is skipped, where a segment that is not the
   last ends without an end block or does not follow the one before it, and where damage was skipped.
2. A bucket is in doubt if the last that a log said of it lies before such a place: a record later in the log would have
   proved, by its counter, which ones came before it. A DROP ends what a log has to say of a bucket.
3. A base made at the beginning of segment N stands for all that lies before segment N. A checkpoint is made while segment N
   is written, so without that segment what came after it is missing; a savefile is made when the log was closed.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from rcache.records.files import NO_FILE, FileHeader, FileKind
from rcache.records.reader import Findings, Tail
from rcache.records.record import Head, Kind

Place = tuple[int, int]
"""A segment's number and a byte in it: places compare in the order of the log."""

LogId = tuple[bytes, bytes]
"""Cluster id and data directory id: one node's log."""


@dataclass(slots=True)
class _Log:
    """What was seen of one node's log. `seen`: where and when (ms) each bucket was last spoken of."""

    node: str
    segments: list[tuple[FileHeader, Findings]] = field(default_factory=list)
    seen: dict[int, tuple[Place, int]] = field(default_factory=dict)


class Links:
    """Collects segments as they are read, in the order of their log."""

    def __init__(self) -> None:
        self._logs: dict[LogId, _Log] = {}
        self._missing: dict[LogId, list[tuple[Place, str]]] | None = None

    def note_block(self, header: FileHeader, offset: int, found: list[Head]) -> None:
        """Take in that the block at `offset` speaks of these records' buckets. Other files than segments do not count."""
        if header.kind is not FileKind.SEGMENT:
            return
        self._log(header)
        for bucket, head in {head.bucket: head for head in found}.items():
            self.note_seen(header, bucket, offset, head.time_ms, dropped=head.kind == Kind.DROP)

    def note_seen(self, header: FileHeader, bucket: int, offset: int, time_ms: int, *, dropped: bool) -> None:
        """Take in that the last a segment said of a bucket so far is in the block at `offset`, and whether it was a DROP."""
        seen = self._log(header).seen
        if dropped:
            seen.pop(bucket, None)  # invariant 2
        else:
            seen[bucket] = ((header.number, offset), time_ms)

    def note_file(self, header: FileHeader, findings: Findings) -> None:
        """Take in how a file ended."""
        if header.kind is FileKind.SEGMENT:
            self._log(header).segments.append((header, findings))
            self._missing = None

    def missing(self) -> list[str]:
        """All that is missing (invariant 1), a line each; a log's beginning only matters to a base that is older."""
        return [why for log in self._places().values() for place, why in log if why]

    def doubt(self, bucket: int, base: FileHeader | None, until_ms: int) -> str:
        """Why the last records of this bucket up to `until_ms` may be missing, or "". `base`: the file its base is in."""
        if base is not None and base.kind is FileKind.CHECKPOINT and not self._goes_on(base):
            return f"its end may be missing: log of {base.node}: no segment {base.first_segment}"  # invariant 3
        for log_id, places in self._places().items():
            covered = self._covered(log_id, bucket, base, until_ms)
            for place, why in places:
                if covered is not None and covered < place:  # invariant 2
                    number = place[0]
                    return f"its end may be missing: {why or f'log of {self._logs[log_id].node}: no segment {number}'}"
        return ""

    def _goes_on(self, base: FileHeader) -> bool:
        """Whether anything of the log that continues a base is here; gaps in it are found by their places."""
        log = self._logs.get(log_of(base))
        return log is not None and any(header.number >= base.first_segment for header, _ in log.segments)

    def _covered(self, log_id: LogId, bucket: int, base: FileHeader | None, until_ms: int) -> Place | None:
        """Up to where this log has said all about the bucket; None: it has nothing to say, or has gone beyond `until_ms`."""
        last, time_ms = self._logs[log_id].seen.get(bucket, (None, 0))
        if last is not None and time_ms > until_ms:
            return None
        if base is not None and base.kind is not FileKind.SEGMENT and log_of(base) == log_id:
            begin = (base.first_segment, 0)  # invariant 3
            return begin if last is None else max(last, begin)
        return last

    def _log(self, header: FileHeader) -> _Log:
        log = self._logs.get(log_of(header))
        if log is None:
            log = self._logs[log_of(header)] = _Log(header.node)
        return log

    def _places(self) -> dict[LogId, list[tuple[Place, str]]]:
        if self._missing is None:
            self._missing = {log_id: _missing_from(log) for log_id, log in self._logs.items()}
        return self._missing


def log_of(header: FileHeader) -> LogId:
    """The log that a file is part of, or stands in for."""
    return header.cluster_id, header.data_dir_id


def _missing_from(log: _Log) -> list[tuple[Place, str]]:
    """The places of a log where something is missing, and what; "" for what came before the first segment there is."""
    segments = sorted(log.segments, key=lambda segment: segment[0].number)
    first, last = segments[0][0].number, segments[-1][0].number
    places: list[tuple[Place, str]] = [((first - 1, 1), "")]
    ids: dict[int, set[bytes]] = {}
    for header, findings in segments:
        ids.setdefault(header.number, set()).add(header.file_id)
        name = f"log of {log.node}: segment {header.number}"
        places += [((header.number, damage.offset), f"{name} is damaged") for damage in findings.damage]
        if header.number < last and findings.tail is not Tail.CLOSED:
            places.append(((header.number, findings.whole_bytes), f"{name} is cut short"))
    for header, _ in segments[1:]:
        places += _link_to(header, ids, log.node)
    return places


def _link_to(header: FileHeader, ids: dict[int, set[bytes]], node: str) -> list[tuple[Place, str]]:
    """What is wrong between a segment and the one before it, if anything."""
    before = max((number for number in ids if number < header.number), default=header.number)
    if before < header.number - 1:
        span = f"segment {before + 1}" if before + 2 == header.number else f"segments {before + 1} to {header.number - 1}"
        return [((header.number - 1, 1), f"log of {node}: {span} missing")]
    if before < header.number and header.predecessor != NO_FILE and header.predecessor not in ids[before]:
        return [
            ((header.number, 0), f"log of {node}: segment {header.number} does not follow the segment {before} that is here")
        ]
    return []
