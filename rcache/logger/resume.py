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
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rcache.logger.coverage import Covered
from rcache.records.reader import DataDamaged
from rcache.records.rebuild import Progress, Source, Survey, no_progress, survey
from rcache.stream.data_dir import SEGMENT_SUFFIX, Identity, ListedFile, read_headers
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


def save(disk: Disk, directory: Path, segment: int, known: Mapping[int, Covered]) -> None:
    """What the files hold, as `segment` begins. Raises OSError."""
    places = {str(bucket): [each.place, each.is_whole] for bucket, each in sorted(known.items())}
    text = json.dumps({"format": FORMAT, "segment": segment, "places": places}) + "\n"
    replace_file(disk, directory / PLACES_FILE, text.encode())


def load(directory: Path) -> tuple[int, dict[int, Covered]]:
    """The segment and what is known as it begins; (0, {}) where there is no such file. Raises ValueError, OSError."""
    try:
        facts = json.loads((directory / PLACES_FILE).read_bytes())
        if facts["format"] != FORMAT:
            raise ValueError(f"its format is {facts['format']!r}, not {FORMAT}")
        pairs = {int(bucket): (int(place), bool(whole)) for bucket, (place, whole) in facts["places"].items()}
        return int(facts["segment"]), {bucket: Covered(place, whole, place) for bucket, (place, whole) in pairs.items()}
    except FileNotFoundError:
        return 0, {}
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from None


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
    segments = _segments(directory, identity, skip_damaged=skip_damaged)
    first, before = _begin_from(directory, segments, resumed)
    read = [file for file in segments if file.header.number >= first]
    known = {bucket: (each.place, 0) for bucket, each in before.items() if each.is_whole and each.place}
    source = Source("log", tuple(file.path for file in read))
    found = survey([source] if read else [], skip_damaged=skip_damaged, progress=progress, known=known)
    resumed.known = {**before, **{bucket: _covered(found, bucket, before.get(bucket, Covered())) for bucket in found.plans}}
    resumed.newest_epoch = max([found.newest_epoch, *(file.header.epoch for file in segments)])
    resumed.records, resumed.bytes = found.records, found.total_bytes
    return resumed


def _segments(directory: Path, identity: Identity, *, skip_damaged: bool) -> list[ListedFile]:
    """This recording's own, in their order."""
    own = []
    for path in sorted(directory.glob(f"*{SEGMENT_SUFFIX}")):
        try:
            own += [file for file in read_headers([path]) if file.header.data_dir_id.hex() == identity.data_dir_id]
        except DataDamaged:
            if not skip_damaged:
                raise
    return sorted(own, key=lambda file: file.header.number)


def _begin_from(directory: Path, segments: list[ListedFile], resumed: Resumed) -> tuple[int, dict[int, Covered]]:
    """From which segment on to read, and what is known of those before."""
    try:
        first, known = load(directory)
    except ValueError as error:
        resumed.warnings.append(f"{PLACES_FILE} cannot be read ({error}): all segments are read instead")
        return 0, {}
    if first and not any(file.header.number == first for file in segments):
        resumed.warnings.append(f"{PLACES_FILE} speaks of segment {first}, which is not here: all segments are read instead")
        return 0, {}
    return first, known


def _covered(found: Survey, bucket: int, before: Covered) -> Covered:
    """What is known of a bucket. Where its base goes beyond its last change, what lies between is asked for again."""
    plan = found.plans[bucket]
    newest = max(found.newest_changes[bucket], before.place)
    if plan.base is not None and newest < plan.base.begin:
        newest = plan.base.end
    return Covered(newest, not plan.problems, newest)
