"""Files of records: a header, then blocks, then (once the file is closed) an end block.

What it is: the layout shared by append-log segments, checkpoints and savefiles, and the encoding of its parts. Reading a file
back, with all that can be wrong with it, is `reader`'s.
Which thread runs it: any. What it owns: nothing. What it must not know: paths, threads, when a file is begun or closed.

Header, big-endian:

    0 8 bytes magic "RCACHE\\r\\n"    8 u16 format    10 u16 header length, CRC included
    12 u8 kind (1 segment, 2 checkpoint, 3 savefile)    13 u8 reserved, 0    14 u16 node name length
    16 16 bytes cluster id    32 16 bytes data directory id    48 16 bytes file id (random)
    64 16 bytes predecessor's file id (0: none)
    80 u64 incarnation    88 u64 number    96 u64 first segment    104 u64 created, ms    112 u32 epoch    116 u32 buckets
    120 node name    then u32 CRC-32 of all before it

Block: 0 magic "rBLK" (or "rEND")   4 u32 body length   8 u32 records   12 u64 number in the file, from 0   20 u64 synced
28 u32 CRC-32 of the file id, these 28 bytes and the body; then the body: records, one after the other. An end block's body is
empty and its `records` is 0; nothing follows it.

Invariants:
1. A block is what one write made; it is valid as a whole or not at all.
2. The file id is part of each block's checksum, so a block of another file (a reused disk block) is never taken for this
   one's.
3. Every file but the segment being written ends with an end block: a cut is noticed even at a block's edge.
4. Segments of a node are ordered by `number`, and each names its predecessor's file id. The file's name is for people.
5. `synced` is the number of bytes of the file that were on the disk before the block was written; an end block is written when
   all before it is. What a later block says was on the disk and cannot be read is damage; all else is the work of a crash.
6. `first segment`, in a checkpoint or savefile, is the number from which segments continue it.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from struct import Struct
from typing import NamedTuple

from rcache_client.wire.countdown import Countdown, CountdownError
from rcache_client.wire.opcodes import NODE_NAME_BYTES_MAX

FILE_MAGIC = b"RCACHE\r\n"
"""The line end is there to show a transfer that converted line ends."""
FORMAT = 1
ID_BYTES = 16
NO_FILE = bytes(ID_BYTES)

_HEADER = Struct(">8sHHBBH16s16s16s16sQQQQII")
_CRC = Struct(">I")
HEADER_BYTES_MAX = _HEADER.size + NODE_NAME_BYTES_MAX + _CRC.size

BLOCK_MAGIC = b"rBLK"
END_MAGIC = b"rEND"
_BLOCK = Struct(">4sIIQQ")
BLOCK_HEADER_BYTES = _BLOCK.size + _CRC.size


class BadFile(ValueError):
    """Bytes that are not a file header, or are one of another format."""


class CutHeader(BadFile):
    """The beginning of a file header and no more: the writer was stopped, or the file was cut."""


class FileKind(IntEnum):
    SEGMENT = 1
    CHECKPOINT = 2
    SAVEFILE = 3


@dataclass(frozen=True, slots=True)
class FileHeader:
    """Who wrote a file, when, and where it stands in the node's history."""

    kind: FileKind
    cluster_id: bytes
    data_dir_id: bytes
    file_id: bytes
    node: str
    incarnation: int
    epoch: int
    number: int
    buckets: int
    created_ms: int
    first_segment: int = 0
    predecessor: bytes = NO_FILE


class BlockHead(NamedTuple):
    """The header of a block: `end` is true for the block that closes a file; `synced` is in bytes from the file's beginning."""

    end: bool
    body_bytes: int
    records: int
    number: int
    synced: int
    crc: int


def encode_header(header: FileHeader) -> bytes:
    """The bytes a file begins with."""
    node = header.node.encode()
    head = _HEADER.pack(
        FILE_MAGIC,
        FORMAT,
        _HEADER.size + len(node) + _CRC.size,
        header.kind,
        0,
        len(node),
        header.cluster_id,
        header.data_dir_id,
        header.file_id,
        header.predecessor,
        header.incarnation,
        header.number,
        header.first_segment,
        header.created_ms,
        header.epoch,
        header.buckets,
    )
    return head + node + _CRC.pack(zlib.crc32(head + node))


def decode_header(data: bytes) -> tuple[FileHeader, int]:
    """The header at the front of `data` and its length in bytes. Raises `BadFile`, `CutHeader` where `data` ends within it."""
    if _is_cut(data):
        raise CutHeader(f"the file ends within its header, after {len(data)} bytes")
    countdown = Countdown(data)
    try:
        fields = countdown.unpack(_HEADER)
        magic, file_format, header_bytes, kind, reserved, node_bytes = fields[:6]
        if magic != FILE_MAGIC:
            raise BadFile("not a file of rcache")
        if file_format != FORMAT or reserved:
            raise BadFile(f"format {file_format} is not known here, only {FORMAT}")
        node = countdown.take(node_bytes)
        (crc,) = countdown.unpack(_CRC)
    except CountdownError as error:
        raise BadFile(f"header cut short: {error}") from None
    length = _HEADER.size + node_bytes + _CRC.size
    if header_bytes != length or crc != zlib.crc32(data[: length - _CRC.size]):
        raise BadFile("header damaged: its checksum does not fit")
    return _build_header(kind, node, fields[6:]), length


def _is_cut(data: bytes) -> bool:
    """Whether a header begins here and `data` ends before it does. Both of its lengths must agree on that."""
    if not (data.startswith(FILE_MAGIC) or FILE_MAGIC.startswith(data)):
        return False
    if len(data) < _HEADER.size:
        return True
    header_bytes, node_bytes = _HEADER.unpack_from(data)[2], _HEADER.unpack_from(data)[5]
    return bool(len(data) < header_bytes == _HEADER.size + node_bytes + _CRC.size)


def _build_header(kind: int, node: bytes, fields: tuple[bytes | int, ...]) -> FileHeader:
    cluster_id, data_dir_id, file_id, predecessor, incarnation, number, first_segment, created_ms, epoch, buckets = fields
    try:
        return FileHeader(
            kind=FileKind(kind),
            cluster_id=bytes(cluster_id),
            data_dir_id=bytes(data_dir_id),
            file_id=bytes(file_id),
            node=node.decode(),
            incarnation=int(incarnation),
            epoch=int(epoch),
            number=int(number),
            buckets=int(buckets),
            created_ms=int(created_ms),
            first_segment=int(first_segment),
            predecessor=bytes(predecessor),
        )
    except ValueError as error:
        raise BadFile(f"header: {error}") from None


Crc32 = Callable[[bytes | memoryview, int], int]
"""As `zlib.crc32`: of these bytes, behind others whose checksum is given."""


def encode_block_head(
    file_id: bytes, number: int, body: bytes | memoryview, records: int, synced: int, crc32: Crc32 = zlib.crc32
) -> bytes:
    """What precedes `body` in its block: records, one after the other. `synced`: how much of the file was on disk before."""
    head = _BLOCK.pack(BLOCK_MAGIC, len(body), records, number, synced)
    return head + _CRC.pack(crc32(body, zlib.crc32(head, zlib.crc32(file_id))))


def encode_block(file_id: bytes, number: int, body: bytes, records: int, synced: int) -> bytes:
    """One block, ready to be written in one write."""
    return encode_block_head(file_id, number, body, records, synced) + body


def encode_end(file_id: bytes, number: int, synced: int) -> bytes:
    """The block that closes a file, written once all `synced` bytes before it are on the disk."""
    head = _BLOCK.pack(END_MAGIC, 0, 0, number, synced)
    return head + _CRC.pack(_checksum(file_id, head, b""))


def decode_block_head(data: bytes) -> BlockHead | None:
    """The block header that `data` begins with, or None where none begins there. The checksum is not looked at yet."""
    if len(data) < BLOCK_HEADER_BYTES:
        return None
    magic, body_bytes, records, number, synced = _BLOCK.unpack_from(data)
    if magic not in (BLOCK_MAGIC, END_MAGIC):
        return None
    (crc,) = _CRC.unpack_from(data, _BLOCK.size)
    return BlockHead(magic == END_MAGIC, body_bytes, records, number, synced, crc)


def block_is_whole(file_id: bytes, head_bytes: bytes, head: BlockHead, body: bytes) -> bool:
    """Whether header and body are what was written into this file (invariants 1 and 2)."""
    return len(body) == head.body_bytes and head.crc == _checksum(file_id, head_bytes[: _BLOCK.size], body)


def _checksum(file_id: bytes, head: bytes, body: bytes) -> int:
    return zlib.crc32(body, zlib.crc32(head, zlib.crc32(file_id)))
