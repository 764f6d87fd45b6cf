"""From the paths on the command line to sources that can be read together.

What it is: the search for files of records, the check that they belong to one cluster, and the survey of what is in them.
Which thread runs it: the main thread.
What it owns: nothing; every file is only read, and closed again.
What it must not know: what is done with what the files say.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from rcache.commands.progress_bar import progress
from rcache.commands.replay_exit import ReplayExit, ReplayStopped
from rcache.commands.replay_options import ReplayOptions
from rcache.records.files import FileHeader, FileKind
from rcache.records.links import log_of
from rcache.records.reader import DataDamaged, HeaderCut, Tail
from rcache.records.rebuild import Source, Survey, survey
from rcache.stream.data_dir import SEGMENT_SUFFIX, SUFFIXES, ListedFile, read_headers, sources


@dataclass(slots=True)
class FoundFiles:
    """Files of one cluster. `cut` ended within their headers, `damaged` have none that can be read; neither are in `files`."""

    files: list[ListedFile] = field(default_factory=list)
    cut: list[tuple[Path, int]] = field(default_factory=list)
    damaged: list[DataDamaged] = field(default_factory=list)
    copies: int = 0

    def sources(self) -> list[Source]:
        return sources(self.files)

    @property
    def newest(self) -> FileHeader:
        """The header that speaks for all: of the newest epoch, and of its files the one begun last."""
        return max((file.header for file in self.files), key=lambda header: (header.epoch, header.created_ms, header.number))


@dataclass(slots=True)
class Loaded:
    """All that the first walk over the files found."""

    found: FoundFiles
    survey: Survey

    @property
    def damage(self) -> list[DataDamaged]:
        return self.found.damaged + self.survey.damage

    @property
    def torn(self) -> list[tuple[Path, int, int]]:
        """Torn tails of segments: file, bytes that are whole, bytes that are not."""
        cut = [(path, 0, size) for path, size in self.found.cut]
        segments = {file.path for file in self.found.files if file.header.kind is FileKind.SEGMENT}
        torn = [(path, found) for path, found in self.survey.torn if path in segments]
        return cut + [(path, found.whole_bytes, found.torn_bytes) for path, found in torn]

    @property
    def segment_after(self) -> int:
        """The number of the segment in which the newest header's log goes on: the newest itself while it is not closed."""
        log = log_of(self.found.newest)
        closed = {path for path, found in self.survey.findings if found.tail is Tail.CLOSED}
        ours = [file for file in self.found.files if log_of(file.header) == log]
        segments = [file.header.number + (file.path in closed) for file in ours if file.header.kind is FileKind.SEGMENT]
        return max(segments + [file.header.first_segment for file in ours])


def find_files(paths: tuple[Path, ...]) -> FoundFiles:
    """The files of records that these paths name. Raises `ReplayStopped` where there are none, or of several clusters."""
    found = FoundFiles()
    by_id: dict[bytes, ListedFile] = {}
    for path in _walk(paths):
        try:
            (file,) = read_headers([path])
        except DataDamaged as damage:
            if isinstance(damage, HeaderCut) and path.suffix == SEGMENT_SUFFIX:
                found.cut.append((path, path.stat().st_size))
            else:
                found.damaged.append(damage)
            continue
        known = by_id.get(file.header.file_id)
        found.copies += known is not None
        if known is None or known.size < file.size:
            by_id[file.header.file_id] = file
    found.files = sorted(by_id.values(), key=lambda file: (file.header.kind, file.header.number, file.header.created_ms))
    if not (found.files or found.cut or found.damaged):
        names = ", ".join(map(str, paths))
        raise ReplayStopped(ReplayExit.WRONG_USE, f"no files of records ({', '.join(SUFFIXES)}) in {names}")
    _check_one_cluster(found)
    return found


def _walk(paths: tuple[Path, ...]) -> Iterator[Path]:
    """Every file that is meant, once: those named, and in directories, at any depth, those with the right names."""
    seen = set()
    for path in paths:
        inside = sorted(_files_below(path)) if path.is_dir() else [path]
        for file in inside:
            place = file.resolve()
            if place not in seen:
                seen.add(place)
                yield file


def _files_below(directory: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise error

    for folder, _, names in os.walk(directory, onerror=refuse):
        yield from (Path(folder, name) for name in names if Path(name).suffix in SUFFIXES)


def _check_one_cluster(found: FoundFiles) -> None:
    """Buckets of the same number in two clusters have nothing in common."""
    clusters = {(file.header.cluster_id, file.header.buckets): file.path for file in found.files}
    if len(clusters) > 1:
        listed = "; ".join(
            f"{path} of {cluster_id.hex()} with {buckets} buckets" for (cluster_id, buckets), path in clusters.items()
        )
        raise ReplayStopped(ReplayExit.WRONG_USE, f"files of several clusters cannot be read as one: {listed}")


def load(options: ReplayOptions) -> Loaded:
    """Find the files and read what is in them, once. Damage is noted, never raised. Raises `ReplayStopped` and OSError."""
    found = find_files(options.paths)
    with progress("reading") as report:
        surveyed = survey(found.sources(), until_ms=options.until, skip_damaged=True, progress=report)
    return Loaded(found, surveyed)
