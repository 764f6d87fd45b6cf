"""Blocks whose checksums fit and whose records lie, by the million: `python -m tests.records.fuzz --seed 1 --inputs 1000000`.

What it is: a program for long campaigns, most of all with the sanitizers (`RCACHE_SANITIZE=address,undefined`); a test runs a
few thousand. Each input is a block in a file in memory. The compiled body must take it exactly where `heads` does; the rows of
a rebuild over files that were changed meanwhile are refused or come out, and no byte is read that is not there.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import zlib
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

from rcache.records import walk
from rcache.records.files import encode_block
from rcache.records.history import NO_LIMIT, Base, BucketPlan, History
from rcache.records.links import Links
from rcache.records.reader import DataDamaged
from rcache.records.record import BadRecord, heads

from .bodies import colliding
from .making import dropped, flushed, header_of, imported, opened, removed, row, seq, stored

HEADER = header_of(1)
MADE = [
    *(opened(1), opened(2, seq(1, 3), bucket=1), stored(seq(1, 1), b"key", b"value"), stored(seq(1, 2), b"k" * 300, b"v" * 10)),
    *(removed(seq(1, 2), b"key"), flushed(seq(1, 3)), dropped(seq(1, 3))),
    *imported(seq(1, 0), seq(1, 1), [row(seq(1, 1), b"a", b"1"), row(seq(1, 1), b"b", b"")]),
]
PLAN = BucketPlan(0, Base(0, 1, seq(1, 0), seq(1, 1), 0), 0, {1: seq(1, 9), 2: seq(3, 0) - 1}, 0, 0, (), True)
FILE_BYTES = 4096
"""One page: what is mapped of it stays readable while the file shrinks and grows."""
INPUTS_A_REBUILD = 200


def fuzz(seed: int, inputs: int) -> tuple[int, int]:
    """Returns how many of the blocks were whole, and how many pieces of rows came out."""
    random = Random(seed)
    fd = os.memfd_create("fuzz")
    whole = pieces = 0
    try:
        for _ in range(0, inputs, INPUTS_A_REBUILD):
            body = colliding(random.choice([0, 32]))
            assert body is not None, "the compiled body was not built"
            builder, surveyor = body.builder({0: PLAN}, NO_LIMIT), body.surveyor(History(), Links())
            for _ in range(INPUTS_A_REBUILD):
                whole += _try_one(random, fd, [builder, surveyor] if random.random() < 0.25 else [builder])
            os.ftruncate(fd, FILE_BYTES)
            pieces += _use_rows(random, builder)
    finally:
        os.close(fd)
    return whole, pieces


def _try_one(random: Random, fd: int, takers: list[walk.Taker]) -> int:
    """One block, at times one that ends too early. Returns how many were taken in: none or one."""
    body = _spoil(random, bytearray(b"".join(random.choices(MADE, k=random.randint(0, 5)))))
    try:
        count = len(list(heads(body)))
    except BadRecord:
        count = -1
    claimed = max(count, 0) if random.random() < 0.95 else random.randrange(7)
    block = encode_block(HEADER.file_id, 0, body, claimed, 0)
    size = len(block) if random.random() < 0.9 else random.randint(1, len(block) + 40)
    os.ftruncate(fd, size)
    os.pwrite(fd, block[:size], 0)
    file: Any = SimpleNamespace(header=HEADER, size=size, fileno=lambda: fd, path=Path("fuzz"))
    is_whole = size >= len(block) and count == claimed
    for taker in takers:
        taker.begin(0, file)
        assert taker.run(0, 0)[1] == is_whole, (zlib.crc32(body), body, claimed, size)
        taker.end()
    return is_whole


def _spoil(random: Random, body: bytearray) -> bytes:
    for _ in range(random.choice([0, 1, 1, 2, 5])):
        if body:
            at = random.randrange(len(body))
            if random.random() < 0.7:
                body[at] = random.choice([0, 1, 2, 7, 8, 9, 40, 41, 127, 128, 255, random.randrange(256)])
            else:
                del body[at : at + random.randint(1, 50)]
    return bytes(body)


def _use_rows(random: Random, builder: walk.Builder) -> int:
    """Of what was taken in, nearly all was written over since. Returns how many pieces came out."""
    pieces = 0
    for _, _, rows in builder.finish().values():
        with contextlib.suppress(DataDamaged):
            for _ in rows.pieces(b"", b"end", 5, random.choice([1, 100, 1 << 20])):
                pieces += 1
            list(rows.live())
    return pieces


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.records.fuzz", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--inputs", type=int, default=1_000_000)
    options = parser.parse_args()
    whole, pieces = fuzz(options.seed, options.inputs)
    print(f"seed {options.seed}: {options.inputs:,} inputs, {whole:,} of them whole blocks, {pieces:,} pieces of rows")


if __name__ == "__main__":
    main()
