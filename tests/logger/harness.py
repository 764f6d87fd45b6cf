"""What the logger's tests share: a cluster's histories as a model, feeds and copies as nodes give them, a log without a
thread.

What it is: `Model`, which knows the state of each bucket at each sequence that ever was; `Tape`, a recorder with its files,
that is written when it is told to, and can be cut as a crash would cut it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from rcache.logger.recorder import Recorder
from rcache.logger.resume import PLACES_FILE, Resumed, resume, save
from rcache.records.files import FileHeader, FileKind
from rcache.records.reader import RecordFile
from rcache.records.rebuild import Source, rebuild, survey
from rcache.records.record import (
    HISTORY_KINDS,
    Cause,
    ImportEnd,
    Kind,
    Opening,
    Record,
    decode,
    decode_import_end,
    encode,
    encode_import_end,
    encode_opening,
    make_sequence,
)
from rcache.stream.applied import AppliedStream
from rcache.stream.data_dir import Identity
from rcache.stream.disk import Disk
from rcache.stream.log_terms import LogPlace
from rcache.stream.record_file import new_file_id
from rcache.stream.segment import SegmentWriter
from rcache_client.feed_set import Told
from rcache_client.node_feed import NodeFeed
from rcache_client.wire.feeds import Notice, NoticeKind
from tests.stream.harness import IDENTITY, NOON_MS

BUCKETS = IDENTITY.buckets
State = dict[bytes, tuple[int, bytes]]
"""Of each key its version and value."""


def feed_of(name: str = "127.0.0.1:1") -> NodeFeed:
    """As much of a node's feed as a listener looks at."""
    return cast(NodeFeed, SimpleNamespace(door=SimpleNamespace(name=name, leads_to=f"node at {name}")))


def record(kind: Kind, bucket: int, sequence: int, time_ms: int, key: bytes = b"", value: bytes = b"") -> bytes:
    return encode(Record(kind, Cause.NONE, bucket, 0, sequence, time_ms, 0, key, value))


def opening(bucket: int, sequence: int, continues_from: int, time_ms: int) -> bytes:
    return record(Kind.OPEN, bucket, sequence, time_ms, value=encode_opening(Opening(continues_from, 1, "n1")))


def told(
    *records: bytes, gaps: list[tuple[int, int, int]] | None = None, places: Mapping[int, int] | None = None, ended: Any = ()
) -> Told:
    notices = [Notice(NoticeKind.GAP, *gap) for gap in gaps or ()]
    return Told(notices, b"".join(records), places or {}, ended, None)


# --- the cluster


@dataclass(slots=True)
class Bucket:
    """Its history, oldest first: sequence and record, as it is on the chain now; its state at each sequence that ever was."""

    number: int
    history: list[tuple[int, bytes]] = field(default_factory=list)
    states: dict[int, State] = field(default_factory=lambda: {0: {}})

    @property
    def last(self) -> int:
        return self.history[-1][0] if self.history else 0

    @property
    def state(self) -> State:
        return self.states[self.last]


class Model:
    """See the module."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.epoch = 1
        self.now_ms = NOON_MS
        self.buckets = [Bucket(number) for number in range(BUCKETS)]
        for bucket in self.buckets:
            self.open(bucket)

    def open(self, bucket: Bucket) -> None:
        """The next primary, or the same one anew."""
        self.epoch += 1
        before, sequence = bucket.last, make_sequence(self.epoch, 0)
        bucket.states[sequence] = dict(bucket.state)
        bucket.history.append((sequence, opening(bucket.number, sequence, before, self._tick())))

    def change(self, bucket: Bucket) -> None:
        sequence, key = bucket.last + 1, b"k%d" % self.chance.randrange(6)
        state = dict(bucket.state)
        kind = self.chance.choices((Kind.SET, Kind.REMOVE, Kind.FLUSH), (20, 4, 1))[0]
        value = self.chance.randbytes(self.chance.randrange(30)) if kind is Kind.SET else b""
        if kind is Kind.SET:
            state[key] = (sequence, value)
        elif kind is Kind.REMOVE:
            state.pop(key, None)
        else:
            state.clear()
        bucket.states[sequence] = state
        made = record(kind, bucket.number, sequence, self._tick(), b"" if kind is Kind.FLUSH else key, value)
        bucket.history.append((sequence, made))

    def lose(self, bucket: Bucket) -> None:
        """Its end is lost, or all of it, and it goes on from there."""
        keep = self.chance.randrange(len(bucket.history) + 1)
        del bucket.history[keep:]
        self.open(bucket)

    def copy(self, bucket: Bucket) -> Iterator[bytes]:
        """A base, piece by piece, while the bucket goes on."""
        begin, rows = bucket.last, 0
        body = record(Kind.IMPORT_BEGIN, bucket.number, begin, self.now_ms)
        for key in (b"k%d" % number for number in range(6)):
            if key in bucket.state:
                version, value = bucket.state[key]
                body += record(Kind.ROW, bucket.number, version, self.now_ms, key, value)
                rows += 1
            if self.chance.randrange(2):
                yield body
                body = b""
        end = encode_import_end(ImportEnd(begin, rows))
        yield body + record(Kind.IMPORT_END, bucket.number, bucket.last, self.now_ms, value=end)

    def _tick(self) -> int:
        self.now_ms += self.chance.randrange(3)
        return self.now_ms


# --- the recording


class QuickDisk(Disk):
    """Nothing here loses its power."""

    def sync(self, fd: int) -> None:
        pass

    def sync_directory(self, path: Path) -> None:
        pass


class Tape:
    """See the module. `places_files`: what the places file was as each segment began."""

    def __init__(self, directory: Path, chance: random.Random) -> None:
        self.directory = directory
        self.chance = chance
        self.identity: Identity = replace(IDENTITY, role="logger", node="tape")
        self.disk = QuickDisk()
        self.places_files: dict[int, bytes] = {}
        self.resumed = Resumed()
        self._begin()

    def _begin(self) -> None:
        self.stream = AppliedStream(1 << 20)
        self.recorder = Recorder(self.stream, self.resumed.known)
        self._place = self.resumed.place
        self._begin_segment()

    def _begin_segment(self) -> None:
        number = self._place.number
        header = FileHeader(
            FileKind.SEGMENT,
            bytes.fromhex(self.identity.cluster_id),
            bytes.fromhex(self.identity.data_dir_id),
            new_file_id(),
            "tape",
            1,
            1,
            number,
            BUCKETS,
            NOON_MS,
            predecessor=self._place.predecessor,
        )
        self._segment = SegmentWriter(self.disk, self.directory, header)
        self._segment.begin()
        save(self.disk, self.directory, number, self.recorder.written())
        self.places_files[number] = (self.directory / PLACES_FILE).read_bytes()

    def write(self, bytes_max: int = 1 << 20) -> None:
        batch = self.stream.take(bytes_max)
        if batch.count:
            self._segment.write(batch)
            self.stream.set_written(batch.position)

    def turn(self) -> None:
        """The next segment."""
        self._segment.end()
        self._segment.close()
        self._place = LogPlace(self._segment.header.number + 1, self._segment.header.file_id)
        self._begin_segment()

    def crash(self) -> str:
        """The process is gone, and of the files what a crash may leave. Returns what was done to them."""
        self._segment.close()
        segments = sorted(self.directory.glob("*.rcl"))
        number = self.chance.randrange(max(1, len(segments) - 1), len(segments) + 1)
        for path in segments[number:]:
            path.unlink()
        last = segments[number - 1]
        size, header_bytes = last.stat().st_size, 124 + len("tape")
        cut = self.chance.randrange(header_bytes, size + 1) if self.chance.randrange(3) else size
        with last.open("r+b") as file:
            file.truncate(cut)
        return f"{last.name} cut at {cut} of {size}, {self._spoil_places(number)}"

    def _spoil_places(self, last: int) -> str:
        """What may be in the places file, with `last` the newest segment."""
        path = self.directory / PLACES_FILE
        kind = self.chance.choice(("right", "right", "older", "missing", "garbage", "of a segment that is gone"))
        older = self.places_files[self.chance.randrange(1, last + 1)]
        whole = self.places_files[last]
        at = self.chance.randrange(len(whole))
        spoilt = {
            "right": whole,
            "older": older,
            "missing": b"",
            "garbage": self.chance.choice((whole[:at], whole[:at] + self.chance.randbytes(1) + whole[at + 1 :])),
            "of a segment that is gone": whole.replace(b'"segment": %d,' % last, b'"segment": %d,' % (last + 1)),
        }
        path.unlink(missing_ok=True)
        if kind != "missing":
            path.write_bytes(spoilt[kind])
        return f"places file {kind}"

    def restart(self) -> None:
        self.resumed = resume(self.directory, self.identity, disk=self.disk)
        self._begin()

    def close(self) -> None:
        self._segment.end()
        self._segment.close()

    # --- what is in the files

    def sources(self) -> list[Source]:
        return [Source("log", tuple(sorted(self.directory.glob("*.rcl"))))]

    def rebuilt(self, *, skip_damaged: bool = False) -> dict[int, tuple[int, State, tuple[str, ...]]]:
        """Of each bucket the sequence that the files lead to, the state there, and what is wrong with it."""
        plans = survey(self.sources(), skip_damaged=skip_damaged).plans
        found = rebuild(self.sources(), plans, skip_damaged=skip_damaged)
        return {
            bucket: (
                each.sequence,
                {key: (row.version, row.value or b"") for key, row in each.live_rows()},
                plans[bucket].problems,
            )
            for bucket, each in found.items()
        }

    def recorded(self, bucket: int) -> tuple[set[int], int]:
        """The sequences of all changes of a bucket that are in the files, and at which the first whole base began."""
        found: set[int] = set()
        base = 0
        for path in sorted(self.directory.glob("*.rcl")):
            with RecordFile(path) as file:
                for block in file.blocks(skip_damaged=True):
                    mine = [head for head in block.heads if head.bucket == bucket]
                    found |= {head.sequence for head in mine if head.kind in HISTORY_KINDS}
                    for head in mine:
                        if head.kind == Kind.IMPORT_END and not base:
                            base = decode_import_end(decode(block.body, head.start, head.end).value).begin
        return found, base
