"""Reading a file of records back, with all that can be wrong with it.

What it is: a walk over the blocks of one file that tells a torn tail (the write that a crash cut short) from damage in the
middle, and reads on behind damage where its caller wants that. What is whole may be read ahead by somebody faster; what is not
is explained here alone.
Which thread runs it: the caller's. What it owns: the open file, until `close`.
What it must not know: what records mean, which files belong together.

Background: a process that is killed leaves at most one unfinished write, at the end. A power cut may leave any part of what was
written since the last fsync, a later block without an earlier one included. So a block that does not check out is a torn tail,
together with all that follows it, unless a whole block after it says (`files`, invariant 5) that these bytes were on the disk
when it was written: then they are damage. What follows an end block is damage, too.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from rcache.records.files import (
    BLOCK_HEADER_BYTES,
    BLOCK_MAGIC,
    END_MAGIC,
    HEADER_BYTES_MAX,
    BadFile,
    BlockHead,
    CutHeader,
    block_is_whole,
    decode_block_head,
    decode_header,
)
from rcache.records.record import BadRecord, Head, heads

SEARCH_BYTES = 1 << 20
"""How much is read at once when looking for the next block behind damage."""


class DataDamaged(Exception):
    """A file is damaged at `offset`; `resumes_at` is where the next whole block begins, None if there is none."""

    def __init__(self, path: Path, offset: int, why: str, resumes_at: int | None = None) -> None:
        rest = f"; whole blocks go on at byte {resumes_at}" if resumes_at is not None else ""
        super().__init__(f"{path}: damaged at byte {offset}: {why}{rest}")
        self.path = path
        self.offset = offset
        self.why = why
        self.resumes_at = resumes_at


class HeaderCut(DataDamaged):
    """A file ends within its header. Of the newest segment, that is what a crash leaves: nothing was in it yet."""


class Tail(Enum):
    """How a file ends."""

    CLOSED = "closed"
    UNCLOSED = "not closed"
    TORN = "torn"


Ahead = Callable[[int, int], tuple[int, int]]
"""From a place in the file, where the block of a number is due: reads whole blocks as far as it likes, and returns where it
stopped and how many there were."""


class Block(NamedTuple):
    """One whole block: where it begins in the file, its number, its records' bytes, and where each of them lies in `body`."""

    offset: int
    number: int
    records: int
    body: bytes
    heads: list[Head]


@dataclass(slots=True)
class Findings:
    """What a walk over the blocks found besides them. Sizes and offsets in bytes."""

    tail: Tail = Tail.UNCLOSED
    whole_bytes: int = 0
    torn_bytes: int = 0
    blocks: int = 0
    next_number: int = 0
    damage: list[DataDamaged] = field(default_factory=list)


class RecordFile:
    """One file, open for reading.

    Raises `DataDamaged` for a header that cannot be read, `HeaderCut` for one that is not all there, OSError as `open` does.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self.size = os.fstat(self._fd).st_size
            self.header, self._begin = decode_header(self._read(0, HEADER_BYTES_MAX))
        except CutHeader as error:
            os.close(self._fd)
            raise HeaderCut(path, 0, str(error)) from None
        except BadFile as error:
            os.close(self._fd)
            raise DataDamaged(path, 0, str(error)) from None
        except OSError:
            os.close(self._fd)
            raise
        self.findings = Findings(whole_bytes=self._begin)

    def __enter__(self) -> RecordFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        os.close(self._fd)

    def fileno(self) -> int:
        """The open file, for reading with pread or a mapping."""
        return self._fd

    def is_closed(self) -> bool:
        """Whether the file ends with its end block, by its last bytes alone."""
        at = self.size - BLOCK_HEADER_BYTES
        if at < self._begin:
            return False
        last = self._read(at, BLOCK_HEADER_BYTES)
        head = decode_block_head(last)
        return head is not None and head.end and block_is_whole(self.header.file_id, last, head, b"")

    def blocks(self, *, skip_damaged: bool = False, ahead: Ahead | None = None) -> Iterator[Block]:
        """All whole blocks in order, but for those that `ahead` reads; `findings` is complete when the iterator ends.

        Raises `DataDamaged` at damage in the middle, or notes it and goes on behind it with `skip_damaged`. A torn tail is
        noted and ends the walk.
        """
        self.findings = found = Findings(whole_bytes=self._begin)
        at, number = self._begin, 0
        while at < self.size:
            if ahead is not None:
                at, number = self._let_ahead(ahead, at, number)
                if at == self.size:
                    return
            head, block, why = self._block_at(at, number)
            if head is not None and block is not None:
                at += BLOCK_HEADER_BYTES + head.body_bytes
                number = head.number + 1
                found.whole_bytes = at
                found.next_number = number
                if head.end:
                    found.tail = Tail.CLOSED
                    at = self._after_end(at, skip_damaged)
                    continue
                found.blocks += 1
                yield block
                continue
            resumes_at = self._find_block(at, number)
            if found.tail is not Tail.CLOSED and not self._was_synced(at, resumes_at):
                found.tail, found.torn_bytes = Tail.TORN, self.size - at
                return
            damage = DataDamaged(self.path, at, why, resumes_at)
            if not skip_damaged:
                raise damage
            found.damage.append(damage)
            if resumes_at is None:
                return
            at, number = resumes_at, self._number_at(resumes_at)

    def _let_ahead(self, ahead: Ahead, at: int, number: int) -> tuple[int, int]:
        """Let whole blocks be read ahead until none is. Returns what is due where."""
        found = self.findings
        while at < self.size:
            at, blocks = ahead(at, number)
            if not blocks:
                break
            number += blocks
            found.blocks += blocks
            found.whole_bytes = at
            found.next_number = number
        return at, number

    def _was_synced(self, at: int, resumes_at: int | None) -> bool:
        """Whether a later whole block says that what is at `at` was on the disk when it was written."""
        while resumes_at is not None:
            head, _, _ = self._block_at(resumes_at, self._number_at(resumes_at))
            assert head is not None
            if head.synced > at:
                return True
            resumes_at = self._find_block(resumes_at + BLOCK_HEADER_BYTES + head.body_bytes, head.number + 1)
        return False

    def _after_end(self, at: int, skip_damaged: bool) -> int:
        """Nothing may follow an end block. Returns where the walk goes on: the end of the file."""
        if at < self.size:
            damage = DataDamaged(self.path, at, f"{self.size - at} bytes follow the end of the file")
            if not skip_damaged:
                raise damage
            self.findings.damage.append(damage)
        return self.size

    def _block_at(self, at: int, number: int) -> tuple[BlockHead | None, Block | None, str]:
        """The block that begins at `at`, or why none does."""
        head_bytes = self._read(at, BLOCK_HEADER_BYTES)
        head = decode_block_head(head_bytes)
        if head is None:
            return None, None, "no block begins here"
        if head.number != number:
            return None, None, f"block {head.number} where block {number} was due"
        if at + BLOCK_HEADER_BYTES + head.body_bytes > self.size:
            return None, None, f"a block of {head.body_bytes} bytes does not fit in the file"
        body = self._read(at + BLOCK_HEADER_BYTES, head.body_bytes)
        if not block_is_whole(self.header.file_id, head_bytes, head, body):
            return None, None, "the block's checksum does not fit"
        try:
            found = list(heads(body))
        except BadRecord as error:
            return None, None, str(error)
        if len(found) != head.records:
            return None, None, f"{len(found)} records in a block of {head.records}"
        return head, Block(at, head.number, head.records, body, found), ""

    def _find_block(self, start: int, number: int) -> int | None:
        """Where the next whole block of this file begins at or after `start`, or None."""
        overlap = len(BLOCK_MAGIC) - 1
        at = start
        while at < self.size:
            chunk = self._read(at, SEARCH_BYTES + overlap)
            for found in _occurrences(chunk, at):
                head = decode_block_head(self._read(found, BLOCK_HEADER_BYTES))
                if head is not None and head.number >= number and self._block_at(found, head.number)[1] is not None:
                    return found
            at += SEARCH_BYTES
        return None

    def _number_at(self, at: int) -> int:
        head = decode_block_head(self._read(at, BLOCK_HEADER_BYTES))
        assert head is not None
        return head.number

    def _read(self, at: int, count: int) -> bytes:
        """Up to `count` bytes from `at`: fewer only at the end of the file."""
        parts = []
        while count > 0:
            part = os.pread(self._fd, count, at)
            if not part:
                break
            parts.append(part)
            at += len(part)
            count -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)


def _occurrences(chunk: bytes, base: int) -> list[int]:
    """Where a block's magic stands in `chunk`, as offsets in the file, in order."""
    found = []
    for magic in (BLOCK_MAGIC, END_MAGIC):
        at = chunk.find(magic)
        while at >= 0:
            found.append(base + at)
            at = chunk.find(magic, at + 1)
    return sorted(found)
