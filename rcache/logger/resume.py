"""Where a recording goes on: what the files hold of each bucket, found again at a start.

What it is: the `places` file, which says what was in the files when the newest segment began, and `resume`, which reads the
segments since (all of them, where that file is missing or does not fit) and closes the last.
Which thread runs it: `resume` the main thread, before anything is recorded; `save` the append log's, between two segments.
What it owns: the places file. What it must not know: nodes, feeds.

The files themselves are the place: nothing else is written for each change, so nothing can disagree with them. The places file
only spares a start the reading of all of them.

Invariants:
1. What `resume` says of a bucket is on the disk. It may say less than is there: then that is told again, and is in the files
   twice, which a rebuild passes by.
2. A bucket of which anything may be missing is not said to be whole.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rcache.logger.coverage import Covered
from rcache.records.checksums import crc32
from rcache.records.reader import DataDamaged
from rcache.records.rebuild import Progress, Source, Survey, no_progress, survey
from rcache.stream.data_dir import CHECKPOINT_SUFFIX, SEGMENT_SUFFIX, Identity, ListedFile, read_headers
from rcache.stream.disk import Disk, replace_file
from rcache.stream.log_terms import LogPlace
from rcache.stream.recovery import recover

PLACES_FILE = "places.json"
FORMAT = 1


@dataclass(slots=True)
class Resumed:
    """Where a recording goes on. `records`, `bytes`: what was read to know it; `warnings`: lines for the log."""

    known: dict[int, Covered] = field(default_factory=dict)
    place: LogPlace = field(default_factory=LogPlace)
    newest_epoch: int = 0
    records: int = 0
    bytes: int = 0
    warnings: list[str] = field(default_factory=list)


# --- the places file


def save(disk: Disk, directory: Path, segment: int, known: Mapping[int, Covered]) -> None:
    """What the files hold, as `segment` begins. Raises OSError."""
    places = {str(bucket): [each.place, each.is_whole, each.time_ms, each.due] for bucket, each in sorted(known.items())}
    facts = {"format": FORMAT, "segment": segment, "places": places}
    text = json.dumps({"checksum": _checksum(facts), **facts}) + "\n"
    replace_file(disk, directory / PLACES_FILE, text.encode())


def load(directory: Path) -> tuple[int, dict[int, Covered]]:
    """The segment and what is known as it begins; (0, {}) where there is no such file. Raises ValueError, OSError."""
    try:
        facts = json.loads((directory / PLACES_FILE).read_bytes())
        if facts.pop("checksum") != _checksum(facts):
            raise ValueError("its checksum does not fit")
        if facts["format"] != FORMAT:
            raise ValueError(f"its format is {facts['format']!r}, not {FORMAT}")
        return facts["segment"], {int(bucket): Covered(*each) for bucket, each in facts["places"].items()}
    except FileNotFoundError:
        return 0, {}
    except (TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from None


def _checksum(facts: dict[str, Any]) -> int:
    """What is in the file is believed instead of the segments that it spares."""
    return crc32(json.dumps(facts, sort_keys=True).encode())


# --- a start


@dataclass(frozen=True, slots=True)
class _Begin:
    """Read from this segment on, where `known` is in those before; or from the checkpoint, where there is one."""

    segment: int = 0
    known: Mapping[int, Covered] = field(default_factory=dict)
    checkpoint: ListedFile | None = None


def resume(
    directory: Path,
    identity: Identity,
    *,
    skip_damaged: bool = False,
    progress: Progress = no_progress,
    disk: Disk | None = None,
) -> Resumed:
    """Close the last segment, and find out what there is. Raises `DataDamaged`, unless `skip_damaged`; OSError. Blocks."""
    closed = recover(directory, directory / "none", identity, skip_damaged=skip_damaged, disk=disk, wanted=())
    resumed = Resumed(place=closed.place, warnings=closed.warnings)
    segments = own_files(directory, identity, SEGMENT_SUFFIX)
    checkpoint = _checkpoint(segments, own_files(directory, identity, CHECKPOINT_SUFFIX))
    begin = _begin_from(directory, segments, checkpoint, resumed)
    found = _survey(segments, begin, resumed, skip_damaged=skip_damaged, progress=progress)
    told = {bucket: _covered(found, bucket, begin.known.get(bucket, Covered())) for bucket in found.plans}
    resumed.known = {bucket: each for bucket, each in {**begin.known, **told}.items() if each.is_whole or each.time_ms}
    resumed.newest_epoch = max([found.newest_epoch, *(file.header.epoch for file in segments)])
    resumed.records, resumed.bytes = found.records, found.total_bytes
    return resumed


def own_files(directory: Path, identity: Identity, suffix: str) -> list[ListedFile]:
    """This recording's own files of one kind, in their order. What cannot be read is left out: `recover` speaks of it."""
    own = []
    for path in sorted(directory.glob(f"*{suffix}")):
        try:
            own += [file for file in read_headers([path]) if file.header.data_dir_id.hex() == identity.data_dir_id]
        except (DataDamaged, FileNotFoundError):
            continue
    return sorted(own, key=lambda file: (file.header.number, file.header.created_ms))


def _checkpoint(segments: Sequence[ListedFile], checkpoints: Sequence[ListedFile]) -> ListedFile | None:
    """The newest checkpoint that the segments go on from, all of which are here."""
    oldest = segments[0].header.number if segments else 0
    return next((each for each in reversed(checkpoints) if oldest <= each.header.first_segment), None)


def _begin_from(directory: Path, segments: Sequence[ListedFile], checkpoint: ListedFile | None, resumed: Resumed) -> _Begin:
    """From where on to read."""
    everything = _Begin(checkpoint=checkpoint)
    try:
        first, known = load(directory)
    except ValueError as error:
        resumed.warnings.append(f"{PLACES_FILE} cannot be read ({error}): all segments are read instead")
        return everything
    if not first:
        return everything
    numbers = [file.header.number for file in segments]
    if first not in numbers:
        resumed.warnings.append(f"{PLACES_FILE} speaks of segment {first}, which is not here: all segments are read instead")
        return everything
    if numbers != list(range(numbers[0], numbers[-1] + 1)) or not (numbers[0] == 1 or checkpoint):
        resumed.warnings.append("segments are missing: all that are here are read, and what needs those is copied anew")
        return everything
    return _Begin(first, known)


def _survey(
    segments: Sequence[ListedFile], begin: _Begin, resumed: Resumed, *, skip_damaged: bool, progress: Progress
) -> Survey:
    """Read what there is from there on."""
    checkpoint = begin.checkpoint
    first = checkpoint.header.first_segment if checkpoint else begin.segment
    log = [Source("log", tuple(file.path for file in segments if file.header.number >= first))] if segments else []
    if checkpoint is None:
        known = {bucket: (each.place, each.time_ms) for bucket, each in begin.known.items() if each.is_whole}
        return survey(log, skip_damaged=skip_damaged, progress=progress, known=known)
    try:
        return survey([Source(checkpoint.path.name, (checkpoint.path,)), *log], skip_damaged=skip_damaged, progress=progress)
    except DataDamaged as damage:
        if damage.path != checkpoint.path:
            raise
        resumed.warnings.append(f"left out: {damage}")
        return _survey(segments, _Begin(), resumed, skip_damaged=skip_damaged, progress=progress)


def _covered(found: Survey, bucket: int, before: Covered) -> Covered:
    """What is known of a bucket. A whole base that lies beyond all changes that are here is where it goes on: what came between
    was missing when that was copied, or is not told any more; a base is no place to go on from where its changes lack."""
    plan = found.plans[bucket]
    newest = max(found.newest_changes[bucket], before.place)
    due = max(before.due, plan.base.end if plan.base is not None else 0)
    if not plan.problems and plan.base is not None and newest < plan.base.begin:
        newest = plan.base.end
    return Covered(newest, not plan.problems and newest >= due, max(plan.end_ms, before.time_ms), due)
