"""Recovery: from the files of a data directory to the buckets a node starts with.

What it is: the rule of `docs/operations.md`, "What a start recovers": the newest whole checkpoint or savefile, and the log
since. A torn tail is cut and the segment closed before a new one is begun.
Which thread runs it: the main thread, before the server serves. Blocks on the disk.
What it owns: nothing; the buckets go to the caller. What it must not know: engines, sockets.

Invariants:
1. What is recovered is exactly the state at the end of what is on disk, or recovery says what is missing and gives up, unless
   told to go on (`skip_damaged`).
2. A history that ends before the epoch this node served last is not the present: nothing of it is recovered, loudly.
3. Only the newest segment can have a torn tail; a tail cut from an older one is damage.
4. A bucket that is wanted comes back from the copy that this node had last, or not at all: neither from one that it had let go
   of (`records.holdings` has the sequence of events), nor as an empty one because nothing of it is on the disk.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from rcache.records.files import NO_FILE, FileKind, encode_end
from rcache.records.history import BucketPlan
from rcache.records.reader import DataDamaged, RecordFile, Tail
from rcache.records.rebuild import Progress, RebuiltBucket, Source, Survey, no_progress, rebuild, survey
from rcache.records.walk import check
from rcache.stream.data_dir import CHECKPOINT_SUFFIX, SUFFIXES, Identity, ListedFile, read_headers
from rcache.stream.disk import Disk
from rcache.stream.log_terms import LogPlace
from rcache.stream.record_file import TEMPORARY_SUFFIX


class HistoryIncomplete(Exception):
    """The files hold no whole history of the buckets. `problems`: a line for each bucket."""

    def __init__(self, problems: Sequence[str]) -> None:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        super().__init__("the history on disk is not whole: " + "; ".join(problems[:3]) + more)
        self.problems = problems


@dataclass(slots=True)
class Recovered:
    """What a start begins with. `notes` and `warnings` are lines for the log. `lost`: so many of the buckets that were wanted
    are gone, because whoever served last kept nothing on disk, by its options."""

    buckets: dict[int, RebuiltBucket] = field(default_factory=dict)
    newest_epoch: int = 0
    place: LogPlace = field(default_factory=LogPlace)
    stale: bool = False
    lost: int = 0
    records: int = 0
    bytes: int = 0
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def items(self) -> int:
        return sum(bucket.items for bucket in self.buckets.values())


@dataclass(frozen=True, slots=True)
class Walks:
    """Who is told how far each of the two walks over the files is, in bytes."""

    reading: Progress = no_progress
    rebuilding: Progress = no_progress


def recover(  # noqa: PLR0913  whose files, which of them, and who watches
    directory: Path,
    savefile: Path,
    identity: Identity,
    *,
    skip_damaged: bool = False,
    walks: Walks | None = None,
    disk: Disk | None = None,
    wanted: Collection[int] | None = None,
) -> Recovered:
    """Recover this node's own data, telling `walks` how far it is. `wanted`: only these buckets (None: all); what the files say
    of others is not looked at, and with none wanted nothing but where the log goes on.

    Raises `DataDamaged` and `HistoryIncomplete` unless `skip_damaged`; OSError.
    """
    recovered = Recovered()
    walks = walks or Walks()
    disk = disk or Disk()
    _remove_temporaries(directory, savefile, disk)
    files = _own_files(directory, savefile, identity, recovered, skip_damaged)
    segments = [file for file in files if file.header.kind is FileKind.SEGMENT]
    if segments:
        _close_last(segments, recovered, skip_damaged, disk)
    recovered.place = _place(files)
    if wanted is not None and not wanted:
        return recovered
    for candidate in _candidates(files):
        found = _survey(candidate, identity, recovered, walks.reading, wanted)
        if found is not None:
            _finish(recovered, candidate, found, walks.rebuilding, skip_damaged=False)
            break
    else:
        _last_resort(files, identity, recovered, walks, wanted, skip_damaged=skip_damaged)
    if wanted is not None and identity.start_epoch and not identity.logged:
        recovered.lost = sum(bucket not in recovered.buckets or not recovered.buckets[bucket].sequence for bucket in wanted)
    return recovered


def _remove_temporaries(directory: Path, savefile: Path, disk: Disk) -> None:
    """What a crash left unfinished."""
    unfinished = [path for suffix in SUFFIXES for path in directory.glob(f"*{suffix}{TEMPORARY_SUFFIX}")]
    for path in [*unfinished, savefile.with_name(savefile.name + TEMPORARY_SUFFIX)]:
        with contextlib.suppress(FileNotFoundError):
            disk.remove(path)


def _own_files(
    directory: Path, savefile: Path, identity: Identity, recovered: Recovered, skip_damaged: bool
) -> list[ListedFile]:
    """This node's files, segments in their order. Those of others are named in a warning and left alone."""
    paths = {path for path in directory.iterdir() if path.suffix in SUFFIXES}
    if savefile.exists():
        paths.add(savefile)
    own: list[ListedFile] = []
    for path in sorted(paths):
        try:
            file = read_headers([path])[0]
        except DataDamaged as damage:
            if not skip_damaged and path.suffix != CHECKPOINT_SUFFIX:  # without a checkpoint, what is left is whole or is not
                raise
            recovered.warnings.append(f"left out: {damage}")
            continue
        if file.header.data_dir_id.hex() == identity.data_dir_id:
            own.append(file)
        else:
            recovered.warnings.append(f"left out: {path} is of node {file.header.node} and another data directory")
    return sorted(own, key=lambda file: (file.header.kind, file.header.number, file.header.created_ms))


def _place(files: list[ListedFile]) -> LogPlace:
    """Where the log goes on: behind everything there is, so that no number is used twice even where segments are gone."""
    number, predecessor = 1, NO_FILE
    for file in files:
        header = file.header
        number = max(number, header.first_segment if header.kind is FileKind.SAVEFILE else header.number + 1)
        if header.kind is FileKind.SEGMENT:
            predecessor = header.file_id
    return LogPlace(number, predecessor)


def _close_last(segments: list[ListedFile], recovered: Recovered, skip_damaged: bool, disk: Disk) -> None:
    """Cut a torn tail off the newest segment and close it; an older one must be closed already (invariant 3)."""
    for file in segments:
        with RecordFile(file.path) as reader:
            if file is not segments[-1] and not reader.is_closed():
                damage = DataDamaged(file.path, reader.size, "its end is missing, though later segments follow")
                if not skip_damaged:
                    raise damage
                recovered.warnings.append(f"went on: {damage}")
    last = segments[-1]
    with RecordFile(last.path) as reader:
        if reader.is_closed():
            return
        check(reader, skip_damaged=skip_damaged)
        found = reader.findings
    if found.tail is Tail.CLOSED:
        return
    if found.tail is Tail.TORN:
        recovered.warnings.append(
            f"torn tail: the last write to {last.path.name} was cut short; {found.torn_bytes} bytes cut off at byte "
            f"{found.whole_bytes} (never acknowledged with fsync always)"
        )
    fd = disk.open_existing(last.path)
    try:
        disk.truncate(fd, found.whole_bytes)
        disk.sync(fd)
        disk.write(fd, encode_end(last.header.file_id, found.next_number, found.whole_bytes))
        disk.sync(fd)
    finally:
        disk.close(fd)


def _candidates(files: list[ListedFile]) -> list[list[Source]]:
    """Each whole copy with the segments that continue it, the newest first; then all segments without a copy."""
    copies = [file for file in files if file.header.kind is not FileKind.SEGMENT]
    copies.sort(key=lambda file: (file.header.epoch, file.header.first_segment, file.header.created_ms), reverse=True)
    segments = [file for file in files if file.header.kind is FileKind.SEGMENT]
    candidates = [
        [Source(copy.path.name, (copy.path,)), *_log([s for s in segments if s.header.number >= copy.header.first_segment])]
        for copy in copies
    ]
    return [*candidates, _log(segments)] if segments else candidates


def _log(segments: list[ListedFile]) -> list[Source]:
    return [Source("append log", tuple(file.path for file in segments))] if segments else []


def _survey(
    sources: list[Source], identity: Identity, recovered: Recovered, progress: Progress, wanted: Collection[int] | None
) -> Survey | None:
    """The survey of these sources if they are a whole history up to the epoch served last, else None."""
    try:
        found = _only(survey(sources, skip_damaged=False, progress=progress), wanted, identity)
    except DataDamaged as damage:
        recovered.notes.append(f"cannot begin from {sources[0].name}: {damage}")
        return None
    if found.problems:
        recovered.notes.append(f"cannot begin from {sources[0].name}: {found.problems[0]}")
        return None
    if found.newest_epoch < identity.start_epoch and not (identity.logged and wanted is not None):
        recovered.notes.append(
            f"cannot begin from {sources[0].name}: it ends in epoch {found.newest_epoch}, but this node served epoch "
            f"{identity.start_epoch}"
        )
        return None
    return found


def _only(found: Survey, wanted: Collection[int] | None, identity: Identity) -> Survey:
    """What a survey says of the wanted buckets. Where this node served before and kept a log, of each of them something must be
    there (invariant 4)."""
    if wanted is None:
        return found
    plans = {bucket: plan for bucket, plan in found.plans.items() if bucket in wanted}
    if identity.logged and identity.start_epoch:
        plans |= {bucket: _nothing_of(bucket) for bucket in sorted(wanted) if bucket not in plans or not plans[bucket].end}
    return replace(found, plans=plans)


def _nothing_of(bucket: int) -> BucketPlan:
    return BucketPlan(bucket, None, 0, {0: 0}, 0, 0, ("nothing of it is on disk",))


def _last_resort(
    files: list[ListedFile],
    identity: Identity,
    recovered: Recovered,
    walks: Walks,
    wanted: Collection[int] | None,
    *,
    skip_damaged: bool,
) -> Recovered:
    """No copy leads to the present: say why, or, with `skip_damaged`, take what is there."""
    sources = [
        *(Source(file.path.name, (file.path,)) for file in files if file.header.kind is not FileKind.SEGMENT),
        *_log([file for file in files if file.header.kind is FileKind.SEGMENT]),
    ]
    found = _only(survey(sources, skip_damaged=skip_damaged, progress=walks.reading), wanted, identity)
    if not files and not found.problems:
        return recovered
    if found.newest_epoch < identity.start_epoch and not (identity.logged and wanted is not None):  # invariant 2
        recovered.stale = True
        recovered.newest_epoch = found.newest_epoch
        return recovered
    if found.problems and not skip_damaged:
        raise HistoryIncomplete(found.problems)
    recovered.warnings += [str(damage) for damage in found.damage]
    if found.problems:
        recovered.warnings.append(str(HistoryIncomplete(found.problems)))
    if not files:
        return recovered
    return _finish(recovered, sources, found, walks.rebuilding, skip_damaged=skip_damaged)


def _finish(recovered: Recovered, sources: list[Source], found: Survey, progress: Progress, *, skip_damaged: bool) -> Recovered:
    recovered.buckets = rebuild(sources, found.plans, skip_damaged=skip_damaged, progress=progress)
    recovered.newest_epoch = found.newest_epoch
    recovered.records = found.records
    recovered.bytes = found.total_bytes
    files = sum(len(source.paths) for source in sources)
    recovered.notes.append(
        f"recovered from {sources[0].name}"
        + (f" and {files - 1} more files" if files > 1 else "")
        + f": {found.records} records, {found.total_bytes} bytes"
    )
    return recovered


def feed(
    buckets: dict[int, RebuiltBucket],
    apply: Callable[[bytes], None],
    progress: Progress = no_progress,
    piece_bytes: int = 1 << 20,
) -> None:
    """Hand rebuilt buckets to `apply` as imports, in pieces of about `piece_bytes`; `progress` counts buckets."""
    for done, bucket in enumerate(buckets.values()):
        progress(done, len(buckets))
        if not bucket.sequence:
            continue
        for piece in bucket.pieces(piece_bytes):
            apply(piece)
