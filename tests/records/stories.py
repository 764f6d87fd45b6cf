"""Random sets of files that speak of the same buckets: plausible for the most part, and wrong in every way that was thought of.

What it is: from a seed to files. Records are made in the order of their buckets' histories and go, now and then lost, doubled
or out of place, into the logs of several nodes and into copies; then some files are damaged.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random

from rcache.records.files import FileHeader, FileKind, encode_block, encode_end, encode_header
from rcache.records.rebuild import Source
from rcache.records.record import Cause, ImportEnd, Kind, Opening, Record, encode, encode_import_end, encode_opening

from .making import SUFFIX, dropped, flushed, header_of, imported, removed, row, seq

BUCKETS = (0, 1, 7, 0xFFFFFFFF)
KEYS = [b"a", b"b", b"ab", b"k" * 8, b"K" * 9, bytes(range(200)), b"long" * 4000, *(b"key:%d" % number for number in range(30))]
"""Some begin with another one: they differ in their lengths alone."""


@dataclass
class Story:
    """What happened, as lists of records: one for each node's log, one for each copy."""

    random: Random
    logs: list[list[bytes]] = field(default_factory=list)
    copies: list[list[bytes]] = field(default_factory=list)
    now: int = 1000

    def happen(self) -> None:
        self.logs = [[] for _ in range(self.random.randint(1, 3))]
        places = {bucket: self._begin(bucket) for bucket in self.random.sample(BUCKETS, self.random.randint(1, 3))}
        for _ in range(self.random.randint(1, 150)):
            bucket = self.random.choice(list(places))
            places[bucket] = self._go_on(bucket, *places[bucket])

    def _begin(self, bucket: int) -> tuple[int, int]:
        epoch = self.random.choice([1, 1, 1, 2, (1 << 24) - 2])
        self._tell(self._open(bucket, epoch, 0))
        return epoch, 0

    def _go_on(self, bucket: int, epoch: int, counter: int) -> tuple[int, int]:
        """The next thing of a bucket. Returns its newest epoch and counter."""
        chance = self.random.random()
        self.now += self.random.choice([0, 0, 1, 7])
        if chance < 0.06:
            later = min(epoch + self.random.randint(1, 2), (1 << 24) - 1)
            self._tell(self._open(bucket, later, seq(epoch, self.random.randint(max(0, counter - 3), counter))))
            return later, 0
        if chance < 0.09:
            self._tell(*self._strange(bucket, epoch, counter))
            return epoch, counter
        if chance < 0.16:
            self._copy(bucket, epoch, counter)
            return epoch, counter
        counter += self.random.choice([1] * 30 + [0, 2])
        self._tell(self._change(bucket, seq(epoch, counter)))
        return epoch, counter

    def _tell(self, *records: bytes) -> None:
        """To some of the logs; now and then twice, or in an earlier place."""
        for log in self.logs:
            if self.random.random() < 0.8:
                log.extend(records)
            if self.random.random() < 0.03 and log:
                log.insert(self.random.randrange(len(log)), self.random.choice(log))

    def _open(self, bucket: int, epoch: int, continues_from: int) -> bytes:
        value = encode_opening(Opening(continues_from, 1, "n"))
        if self.random.random() < 0.01:
            value = value[: self.random.randrange(len(value))]
        return encode(Record(Kind.OPEN, Cause.NONE, bucket, 0, seq(epoch, 0), self.now, 0, b"", value))

    def _change(self, bucket: int, sequence: int) -> bytes:
        key = self.random.choice(KEYS)
        kind = self.random.random()
        if kind < 0.04:
            return flushed(sequence, bucket=bucket, time_ms=self.now)
        if kind < 0.25:
            made = Record(Kind.REMOVE, Cause.EXPIRED, bucket, 5, sequence, self.now, 9, key, self.random.choice([b"", b"odd"]))
            return encode(made)
        value = self.random.randbytes(self.random.choice([0, 1, 100, 3000]))
        flags, expires = self.random.getrandbits(32), self.random.choice([0, self.random.getrandbits(64)])
        return encode(Record(Kind.SET, self.random.choice(list(Cause)), bucket, flags, sequence, self.now, expires, key, value))

    def _copy(self, bucket: int, epoch: int, counter: int) -> None:
        """A copy, as a file of its own or within a log."""
        end = seq(epoch, counter)
        begin = seq(epoch, self.random.randint(max(0, counter - 2), counter))
        keys = self.random.sample(KEYS, self.random.randint(0, len(KEYS)))
        rows = [row(self.random.randint(begin - 5, end), key, b"copied", bucket=bucket, time_ms=self.now) for key in keys]
        claimed = len(rows) + self.random.choice([0] * 12 + [1])
        records = imported(begin, end, rows, bucket=bucket, time_ms=self.now, claimed=claimed)
        if self.random.random() < 0.7:
            self.copies.append(records)
        else:
            self._tell(*records)

    def _strange(self, bucket: int, epoch: int, counter: int) -> list[bytes]:
        """What no node should write."""
        place, now = seq(epoch, counter), self.now
        mark = Record(Kind.IMPORT_END, Cause.NONE, bucket, 0, place, now, 0, b"", encode_import_end(ImportEnd(place, 1)))
        lone_row = row(place, b"a", b"lone", bucket=bucket, time_ms=now)
        begin = encode(replace_kind(mark, Kind.IMPORT_BEGIN))
        return self.random.choice(
            [
                [dropped(place, bucket=bucket, time_ms=now)],
                [lone_row],
                [begin, lone_row, dropped(place, bucket=bucket, time_ms=now), encode(mark)],
                [begin, lone_row],
                [begin, encode(mark._replace(value=b"too short"))],
                [encode(mark)],
                [removed(seq(epoch, counter + 5), b"a", bucket=bucket, time_ms=now)],
                [encode(Record(Kind.OPEN, 0, bucket, 0, place, now, 0, b"", encode_opening(Opening(place + 1, 1, "n"))))],
                [self._open(bucket, epoch, seq(epoch - 1, 77))],
                [encode(Record(Kind.SET, 0, bucket + 1 & 0xFFFFFFFF, 0, seq(0, 0), now, 0, b"a", b"of a bucket without OPEN"))],
            ]
        )


def replace_kind(record: Record, kind: Kind) -> Record:
    return record._replace(kind=kind, value=b"")


def write(story: Story, folder: Path) -> list[Source]:
    """The files of a story, some of them damaged, as sources."""
    random = story.random
    sources = []
    for number, records in enumerate(story.logs):
        node, cuts = f"n{number}", sorted(random.randint(0, len(records)) for _ in range(random.choice([0, 0, 1, 2])))
        paths = []
        for segment, (at, end) in enumerate(zip([0, *cuts], [*cuts, len(records)], strict=True), 1):
            if random.random() < 0.95:
                last = end == len(records)
                paths.append(_write_file(random, folder, header_of(segment, node=node), records[at:end], closed=not last))
        sources.append(Source(f"log of {node}", tuple(paths)))
    for number, records in enumerate(story.copies, 1):
        if random.random() < 0.7:
            kind = random.choice([FileKind.CHECKPOINT, FileKind.SAVEFILE])
            header = header_of(number, kind=kind, node=random.choice(["n0", "c"]), first_segment=random.randint(1, 3))
            header = replace(header, file_id=random.randbytes(16))
            sources.append(Source(f"copy {number}", (_write_file(random, folder, header, records, closed=True),)))
    random.shuffle(sources)
    return sources


def _write_file(random: Random, folder: Path, header: FileHeader, records: list[bytes], *, closed: bool) -> Path:
    front = encode_header(header)
    parts, number, at = [front], 0, 0
    size = random.choice([1, 3, 20, 1000])
    while at < len(records):
        block = records[at : at + random.randint(0, size)]
        at += len(block)
        written = sum(map(len, parts))
        synced = random.choice([0, len(front), written, written])
        miscounted = random.random() < 0.001
        body = b"".join(block)
        if body and random.random() < 0.005:  # a writer's fault: the checksum is that of wrong bytes
            place = random.randrange(len(body))
            body = body[:place] + random.randbytes(1) + body[place + 1 :]
        parts.append(encode_block(header.file_id, number, body, len(block) + miscounted, synced))
        number += 1
    if closed or random.random() < 0.5:
        parts.append(encode_end(header.file_id, number, sum(map(len, parts))))
    data = b"".join(parts)
    if random.random() < 0.25:
        data = front + damaged(random, data[len(front) :], [part for part in parts[1:] if part])
    path = folder / f"{header.node}-{header.number:04}{header.file_id.hex()[-6:]}{SUFFIX[header.kind]}"
    path.write_bytes(data)
    return path


def damaged(random: Random, data: bytes, blocks: list[bytes]) -> bytes:
    """These blocks with something wrong."""
    at = random.randint(0, len(data))
    end = min(len(data), at + random.choice([1, 2, 4, 40, 1000]))
    kind = random.randrange(8)
    if kind == 0:
        return data[:at]
    if kind == 1:
        return data[:at] + bytes(byte ^ 1 << random.randrange(8) for byte in data[at:end]) + data[end:]
    if kind == 2:
        return data[:at] + bytes(end - at) + data[end:]
    if kind == 3:
        return data[:at] + data[end:]
    if kind == 4:
        return data + random.choice([b"rBLK", b"rEND" + bytes(40), bytes(100), data[at:end]])
    blocks = list(blocks)
    if blocks and kind == 5:
        blocks.pop(random.randrange(len(blocks)))
    elif blocks and kind == 6:
        blocks.insert(random.randrange(len(blocks)), random.choice(blocks))
    else:
        blocks.insert(random.randint(0, len(blocks)), random.randbytes(random.choice([3, 40, 300])))
    return b"".join(blocks)
