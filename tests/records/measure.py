"""How fast the walks over a log are, with either body: `python -m tests.records.measure --help`. Figures: decision 0022.

What it is: a program beside the tests, run by hand. It writes one segment of SETs into a temporary directory and walks it.
"""

from __future__ import annotations

import argparse
import os
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from rcache.records import walk
from rcache.records.files import encode_block, encode_end, encode_header
from rcache.records.reader import RecordFile
from rcache.records.rebuild import Source, rebuild, survey
from rcache.stream.recovery import feed

from .bodies import using
from .making import header_of, opened, seq, stored

ROUNDS = 3


def records_of(options: argparse.Namespace) -> Iterator[bytes]:
    """OPENs of all buckets, then SETs of 12 bytes of key and 100 of value, over all keys again and again."""
    counters = [0] * options.buckets
    value = os.urandom(100)
    for bucket in range(options.buckets):
        yield opened(1, bucket=bucket, time_ms=1000)
    for number in range(options.records):
        key = b"key:%08d" % (number * 7919 % options.keys)
        bucket = zlib.crc32(key) & (options.buckets - 1)
        counters[bucket] += 1
        yield stored(seq(1, counters[bucket]), key, value, bucket=bucket, time_ms=1000 + number // 100)


def write_log(path: Path, options: argparse.Namespace) -> None:
    header = header_of(1, buckets=options.buckets)
    with path.open("wb") as file:
        file.write(encode_header(header))
        number, block, size = 0, [], 0
        for record in records_of(options):
            block.append(record)
            size += len(record)
            if size >= options.block_bytes:
                file.write(encode_block(header.file_id, number, b"".join(block), len(block), file.tell()))
                number, block, size = number + 1, [], 0
        file.write(encode_block(header.file_id, number, b"".join(block), len(block), file.tell()))
        file.write(encode_end(header.file_id, number + 1, file.tell()))


def measure(path: Path) -> dict[str, float]:
    """Seconds of each step, once."""
    taken: dict[str, float] = {}

    def timed(what: str, step: Callable[[], Any]) -> Any:
        begin = time.perf_counter()
        result = step()
        taken[what] = time.perf_counter() - begin
        return result

    with RecordFile(path) as file:
        timed("check", lambda: walk.check(file, skip_damaged=False))
    sources = [Source("log", (path,))]
    plans = timed("survey", lambda: survey(sources)).plans
    buckets = timed("rebuild", lambda: rebuild(sources, plans))
    timed("feed", lambda: feed(buckets, lambda _piece: None))
    taken["survey, rebuild and feed"] = taken["survey"] + taken["rebuild"] + taken["feed"]
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.records.measure", description=__doc__)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--buckets", type=int, default=1024)
    parser.add_argument("--block-bytes", type=int, default=1 << 20)
    parser.add_argument("--body", choices=["reference", "compiled", "both"], default="both")
    options = parser.parse_args()
    with TemporaryDirectory() as name:
        path = Path(name, "log.rcl")
        write_log(path, options)
        for body in (walk.REFERENCE, walk.COMPILED):
            if body is None or options.body not in (body.name, "both"):
                continue
            with using(body):
                rounds = [measure(path) for _ in range(ROUNDS)]
            print(f"{body.name}: median of {ROUNDS}, {options.records:,} records, {path.stat().st_size:,} bytes")
            for what in rounds[0]:
                seconds = median(each[what] for each in rounds)
                print(f"  {what:26} {seconds * 1000:9.1f} ms {options.records / seconds:14,.0f} records/s")


if __name__ == "__main__":
    main()
