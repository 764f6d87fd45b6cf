"""Files of records made by hand, so that tests say in a line what is in them.

What it is: builders for records, whole files and small logs. Ids are fixed: the same calls make the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from rcache.records.files import NO_FILE, FileHeader, FileKind, encode_block, encode_end, encode_header
from rcache.records.record import (
    Cause,
    ImportEnd,
    Kind,
    Opening,
    Record,
    encode,
    encode_import_end,
    encode_opening,
    make_sequence,
)

CLUSTER = bytes(range(16))
NODE = "n1"
SUFFIX = {FileKind.SEGMENT: ".rcl", FileKind.CHECKPOINT: ".rcc", FileKind.SAVEFILE: ".rcs"}

seq = make_sequence


def name_id(*parts: object) -> bytes:
    """An id that is the same for the same parts."""
    return repr(parts).encode().ljust(16, b".")[-16:]


def header_of(
    number: int = 1,
    *,
    kind: FileKind = FileKind.SEGMENT,
    node: str = NODE,
    epoch: int = 1,
    buckets: int = 1,
    first_segment: int = 0,
    cluster: bytes = CLUSTER,
) -> FileHeader:
    """A header; a segment names the one of the number below as its predecessor."""
    before = name_id(FileKind.SEGMENT.value, node, number - 1) if kind is FileKind.SEGMENT and number > 1 else NO_FILE
    return FileHeader(
        kind=kind,
        cluster_id=cluster,
        data_dir_id=name_id(node),
        file_id=name_id(kind.value, node, number),
        node=node,
        incarnation=1,
        epoch=epoch,
        number=number,
        buckets=buckets,
        created_ms=1000 * number,
        first_segment=first_segment,
        predecessor=before,
    )


def file_bytes(header: FileHeader, blocks: Sequence[Sequence[bytes]], *, closed: bool = True) -> bytes:
    """A whole file: each of `blocks` is the records of one block."""
    parts = [encode_header(header)]
    for number, block in enumerate(blocks):
        parts.append(encode_block(header.file_id, number, b"".join(block), len(block), sum(map(len, parts))))
    return b"".join(parts) + (encode_end(header.file_id, len(blocks), sum(map(len, parts))) if closed else b"")


def write_file(folder: Path, header: FileHeader, *blocks: Sequence[bytes], closed: bool = True) -> Path:
    """Put such a file into `folder`, under the name it should have."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{header.node}-20240501-{header.number:04}{SUFFIX[header.kind]}"
    path.write_bytes(file_bytes(header, blocks, closed=closed))
    return path


def opened(epoch: int, continues_from: int = 0, *, bucket: int = 0, time_ms: int = 0, node: str = NODE) -> bytes:
    value = encode_opening(Opening(continues_from, 1, node))
    return encode(Record(Kind.OPEN, Cause.NONE, bucket, 0, seq(epoch, 0), time_ms, 0, b"", value))


def stored(
    sequence: int, key: bytes, value: bytes, *, bucket: int = 0, time_ms: int = 0, flags: int = 0, expires_at_ms: int = 0
) -> bytes:
    return encode(Record(Kind.SET, Cause.SET, bucket, flags, sequence, time_ms, expires_at_ms, key, value))


def removed(sequence: int, key: bytes, *, bucket: int = 0, time_ms: int = 0, cause: Cause = Cause.DELETED) -> bytes:
    return encode(Record(Kind.REMOVE, cause, bucket, 0, sequence, time_ms, 0, key, b""))


def flushed(sequence: int, *, bucket: int = 0, time_ms: int = 0) -> bytes:
    return encode(Record(Kind.FLUSH, Cause.FLUSHED, bucket, 0, sequence, time_ms, 0, b"", b""))


def dropped(sequence: int, *, bucket: int = 0, time_ms: int = 0) -> bytes:
    return encode(Record(Kind.DROP, Cause.NONE, bucket, 0, sequence, time_ms, 0, b"", b""))


def row(sequence: int, key: bytes, value: bytes, *, bucket: int = 0, time_ms: int = 0) -> bytes:
    return encode(Record(Kind.ROW, Cause.NONE, bucket, 0, sequence, time_ms, 0, key, value))


def imported(
    begin: int, end: int, rows: Iterable[bytes] = (), *, bucket: int = 0, time_ms: int = 0, claimed: int | None = None
) -> list[bytes]:
    """The records of one import. `claimed`: the number of rows that its end speaks of, where that is a lie."""
    listed = list(rows)
    claim = encode_import_end(ImportEnd(begin, len(listed) if claimed is None else claimed))
    return [
        encode(Record(Kind.IMPORT_BEGIN, Cause.NONE, bucket, 0, begin, time_ms, 0, b"", b"")),
        *listed,
        encode(Record(Kind.IMPORT_END, Cause.NONE, bucket, 0, end, time_ms, 0, b"", claim)),
    ]
