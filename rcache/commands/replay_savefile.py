"""Writing what was rebuilt as a savefile.

What it is: the header that such a file gets, and the walk over the buckets.
Which thread runs it: the main thread. What it owns: the file, until it is whole and in its place, or gone.
What it must not know: how the buckets were rebuilt.

A server takes a savefile for the present if its ids are the server's own and its history is the newest; what is in segments
before `first segment` it does not look at again. A rebuilt file therefore keeps the ids of the newest file it was made from
only if it is all that those files amount to: nothing known to be missing, nothing cut off by `--until`. Otherwise it gets ids
of its own, and only `--restore` takes it. Its epoch is the newest that any file knows of: an epoch is never used twice.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rcache.commands.replay_exit import ReplayExit, ReplayStopped
from rcache.commands.replay_files import Loaded
from rcache.commands.replay_options import ReplayOptions
from rcache.commands.replay_times import now_ms
from rcache.records.files import FileHeader, FileKind
from rcache.records.history import NO_LIMIT
from rcache.records.rebuild import Progress, RebuiltBucket
from rcache.stream.record_file import RecordFileWriter, new_file_id


@dataclass(frozen=True, slots=True)
class Written:
    """A savefile that is in its place."""

    items: int
    buckets: int
    bytes: int
    is_present: bool


def savefile_header(loaded: Loaded, *, is_present: bool) -> FileHeader:
    """The header of a savefile made from these files, in the place of the newest of them or, if not `is_present`, of none."""
    newest = loaded.found.newest
    return FileHeader(
        kind=FileKind.SAVEFILE,
        cluster_id=newest.cluster_id if is_present else new_file_id(),
        data_dir_id=newest.data_dir_id if is_present else new_file_id(),
        file_id=new_file_id(),
        node=newest.node,
        incarnation=newest.incarnation,
        epoch=max(newest.epoch, loaded.survey.newest_epoch),
        number=loaded.segment_after,
        buckets=newest.buckets,
        created_ms=now_ms(),
        first_segment=loaded.segment_after,
    )


def write_savefile(options: ReplayOptions, loaded: Loaded, buckets: dict[int, RebuiltBucket], progress: Progress) -> Written:
    """Write the file that `--output` names, whole or not at all. Raises `ReplayStopped`."""
    path = options.output
    assert path is not None
    if any(path.exists() and path.samefile(file.path) for file in loaded.found.files):
        raise ReplayStopped(
            ReplayExit.WRONG_USE, f"--output: '{path}' is one of the files that are read; they are never changed"
        )
    is_present = options.until == NO_LIMIT and not (loaded.damage or loaded.survey.problems)
    header = savefile_header(loaded, is_present=is_present)
    try:
        writer = RecordFileWriter(path, header)
    except OSError as error:
        raise _not_written(path, error) from error
    try:
        items = _write_buckets(writer, buckets.values(), progress, len(buckets))
        writer.finish()
    except OSError as error:
        writer.abandon()
        raise _not_written(path, error) from error
    except BaseException:
        writer.abandon()
        raise
    return Written(items, len(buckets), writer.bytes, is_present)


def _write_buckets(writer: RecordFileWriter, buckets: Iterable[RebuiltBucket], progress: Progress, total: int) -> int:
    items = 0
    for done, bucket in enumerate(buckets, 1):
        for record in bucket.records():
            writer.add(record)
            items += 1
        items -= 2  # the marks around the rows
        progress(done, total)
    return items


def _not_written(path: Path, error: OSError) -> ReplayStopped:
    return ReplayStopped(ReplayExit.NOT_WRITTEN, f"'{path}' could not be written: {error.strerror or error}")
