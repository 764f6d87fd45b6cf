"""The two bodies of the walks side by side: to run a test with each, and to hold what they say of the same files together."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from rcache.records import walk
from rcache.records.files import FileKind
from rcache.records.history import NO_LIMIT, BucketPlan
from rcache.records.reader import DataDamaged, Findings
from rcache.records.rebuild import RebuiltBucket, Source, rebuild, survey

from .making import header_of, write_file

needs_compiled = pytest.mark.skipif(walk.COMPILED is None, reason="the compiled body was not built")

BODIES = [
    pytest.param(walk.REFERENCE, id="reference"),
    pytest.param(walk.COMPILED, id="compiled", marks=needs_compiled),
]


def colliding(hash_bits: int) -> walk.Body | None:
    """The compiled body with so few bits of hash that keys share them."""
    if walk.COMPILED is None:
        return None
    from rcache.records import _rows

    return walk.COMPILED._replace(builder=functools.partial(_rows.Builder, hash_bits=hash_bits))


@contextlib.contextmanager
def using(body: walk.Body | None) -> Iterator[None]:
    """With this body as the one in use; None: the compiled one is not there, and the test ends here."""
    if body is None:
        pytest.skip("the compiled body was not built")
    before, walk.chosen = walk.chosen, body
    try:
        yield
    finally:
        walk.chosen = before


def told(findings: Findings) -> tuple[object, ...]:
    """Findings as what can be compared: errors by their texts."""
    counts = (findings.tail, findings.whole_bytes, findings.torn_bytes, findings.blocks, findings.next_number)
    return (*counts, [str(damage) for damage in findings.damage])


def outcome(sources: Sequence[Source], *, until_ms: int, skip_damaged: bool, piece_bytes: int) -> dict[str, Any]:
    """All that the walks over these sources say and give, or with which words they give up."""
    said: dict[str, Any] = {}
    try:
        found = survey(sources, until_ms=until_ms, skip_damaged=skip_damaged)
        said["plans"], said["newest epoch"], said["records"] = found.plans, found.newest_epoch, found.records
        said["findings"] = [(path, told(findings)) for path, findings in found.findings]
        said["rest"] = (found.total_bytes, found.missing, found.span_ms, found.problems)
        built = rebuild(sources, found.plans, until_ms=until_ms, skip_damaged=skip_damaged)
        said["built"] = {bucket: all_of(each, piece_bytes) for bucket, each in built.items()}
    except DataDamaged as damage:
        said["damaged"] = (type(damage), str(damage))
    return said


def all_of(bucket: RebuiltBucket, piece_bytes: int) -> tuple[object, ...]:
    """All that a rebuilt bucket gives."""
    place = (bucket.bucket, bucket.sequence, bucket.time_ms, len(bucket.rows), bucket.items)
    return (*place, list(bucket.live_rows()), list(bucket.records()), list(bucket.pieces(piece_bytes)))


def plans_by_walking(
    sources: Sequence[Sequence[bytes]], *, until_ms: int = NO_LIMIT, records_in_block: int
) -> dict[int, BucketPlan]:
    """What the compiled survey plans for these records, each source in a file of its own, by the history alone: who still has
    the bucket is left out. Raises `DataDamaged`."""
    with TemporaryDirectory() as name, using(walk.COMPILED):
        files = []
        for number, records in enumerate(sources):
            header = header_of(1, kind=FileKind.SAVEFILE, node=f"n{number}")  # of which nothing can be missing
            blocks = [records[at : at + records_in_block] for at in range(0, len(records), records_in_block)]
            files.append(Source(header.node, (write_file(Path(name), header, *blocks),)))
        plans = survey(files, until_ms=until_ms).plans
        return {bucket: replace(plan, problems=_of_history(plan), let_go="") for bucket, plan in plans.items()}


def _of_history(plan: BucketPlan) -> tuple[str, ...]:
    return tuple(problem for problem in plan.problems if problem != plan.let_go)
