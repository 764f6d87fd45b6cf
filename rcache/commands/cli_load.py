"""`rcache-cli load`: every file below a directory becomes a key.

What it is: finding the files, reading them in batches, storing each batch by one many-key call, and what failed, key by key.
Which thread runs it: the main thread.
What it owns: one open file at a time, and one batch in memory.
What it must not know: how an answer is written.

A file that cannot be read, or that the server refuses, is noted, and the rest goes on. A batch whose outcome is unknown is
stored again: it is the same values. When no server can be reached any more the command ends, and says how far it came.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import NamedTuple

from rcache.commands.cli_answer import Answer, complain, text_or_base64
from rcache.commands.cli_exit import CliExit
from rcache.commands.cli_options import CliOptions
from rcache.commands.progress_bar import progress
from rcache.commands.show import show_bytes, show_count, show_seconds, show_size
from rcache.records.rebuild import Progress
from rcache_client import Client, NotExecuted, OutcomeUnknown, RcacheError, ServersUnavailable, SomeKeysFailed
from rcache_client.wire.opcodes import KEY_BYTES_MAX, VALUE_BYTES_CEILING

BATCH_FILES = 200
BATCH_BYTES = 1 << 20
"""A batch is well below the largest frame that servers take by default, and a small part of a second's work."""

TRIES_MAX = 3
"""For a batch whose outcome is unknown, or that could not be executed: three times in a row is not chance."""


class Found(NamedTuple):
    """A file to store."""

    key: bytes
    path: Path
    size: int


@dataclass(slots=True)
class Loaded:
    """What came of it so far: files and bytes stored, and why each of the others was not."""

    files: int = 0
    size: int = 0
    failed: dict[bytes, str] = field(default_factory=dict)


def load(options: CliOptions, client: Client[bytes]) -> Answer:
    """Store every file of the directory. Raises `RcacheError` only where not a single key could be stored."""
    loaded, began = Loaded(), monotonic()
    files = find_files(options.directory, options.prefix, loaded)
    client.ping()  # before any file is read
    ended: RcacheError | None = None
    with progress("loading") as report:
        ended = _store_all(batches(files, loaded), len(files), loaded, client, options.ttl, report)
    for key, why in loaded.failed.items():
        if not options.json:
            complain(f"{show_bytes(key)}: {why}")
    return _answer(loaded, len(files), monotonic() - began, ended)


def find_files(directory: Path, prefix: bytes, loaded: Loaded, skip: Iterable[str] = ()) -> list[Found]:
    """All files below `directory` in a fixed order. Links to files are followed, links to directories are not.

    `skip`: names of directories to leave out. What cannot be looked at is noted in `loaded`; pipes, sockets and devices are
    no files.
    """
    found: list[Found] = []
    skipped = frozenset(skip)

    def note(error: OSError) -> None:
        loaded.failed[_key_of(directory, str(error.filename), prefix)] = f"cannot be read: {error.strerror}"

    for folder, folders, names in os.walk(directory, onerror=note):
        folders[:] = sorted(name for name in folders if name not in skipped)
        for name in sorted(names):
            _look_at(Path(folder, name), _key_of(directory, os.path.join(folder, name), prefix), found, loaded)
    return found


def _key_of(directory: Path, path: str, prefix: bytes) -> bytes:
    return prefix + os.fsencode(os.path.relpath(path, directory))


def _look_at(path: Path, key: bytes, found: list[Found], loaded: Loaded) -> None:
    try:
        state = path.stat()
    except OSError as error:
        loaded.failed[key] = f"cannot be read: {error.strerror}"
        return
    if not stat.S_ISREG(state.st_mode):
        return
    if len(key) > KEY_BYTES_MAX:
        loaded.failed[key] = f"its key has {len(key)} bytes; at most {KEY_BYTES_MAX} are allowed"
    elif state.st_size > VALUE_BYTES_CEILING:
        loaded.failed[key] = f"it has {show_size(state.st_size)}; no server takes more than {show_size(VALUE_BYTES_CEILING)}"
    else:
        found.append(Found(key, path, state.st_size))


def batches(files: Iterable[Found], loaded: Loaded) -> Iterator[dict[bytes, bytes]]:
    """The files' contents, some at a time. What cannot be read is noted in `loaded`."""
    batch: dict[bytes, bytes] = {}
    held = 0
    for key, path, size in files:
        if batch and (len(batch) >= BATCH_FILES or held + size > BATCH_BYTES):
            yield batch
            batch, held = {}, 0
        try:
            batch[key] = path.read_bytes()
        except OSError as error:
            loaded.failed[key] = f"cannot be read: {error.strerror}"
            continue
        held += len(batch[key])
    if batch:
        yield batch


def _store_all(
    read: Iterable[dict[bytes, bytes]], total: int, loaded: Loaded, client: Client[bytes], ttl: float | None, report: Progress
) -> RcacheError | None:
    """Store batch after batch. Returns the error that ended it early, if one did."""
    for batch in read:
        ended = _store(batch, loaded, client, ttl)
        if ended is not None:
            return ended
        report(loaded.files + len(loaded.failed), total)
    return None


def _store(batch: dict[bytes, bytes], loaded: Loaded, client: Client[bytes], ttl: float | None) -> RcacheError | None:
    """Store one batch, again where it was not executed or nobody knows."""
    left = batch
    for tries_left in reversed(range(TRIES_MAX)):
        done, failed = _set_many(left, client, ttl)
        loaded.files += len(done)
        loaded.size += sum(len(batch[key]) for key in done)
        again = {key for key, error in failed.items() if isinstance(error, NotExecuted | OutcomeUnknown)}
        loaded.failed.update({key: _why(batch[key], error) for key, error in failed.items() if key not in again})
        if not again:
            return None
        left = {key: batch[key] for key in again}
        ended = failed[min(again)]
        if isinstance(ended, ServersUnavailable) or not tries_left:
            break
    loaded.failed.update({key: _why(batch[key], failed[key]) for key in again})
    return ended


def _why(value: bytes, error: RcacheError) -> str:
    return f"{show_size(len(value))} not stored: {error}"


def _set_many(
    batch: dict[bytes, bytes], client: Client[bytes], ttl: float | None
) -> tuple[Collection[bytes], dict[bytes, RcacheError]]:
    """The keys that were stored, and the error of each that was not."""
    try:
        return client.set_many(batch, ttl), {}
    except SomeKeysFailed as error:
        return error.done, error.failed
    except RcacheError as error:
        return (), dict.fromkeys(batch, error)


def _answer(loaded: Loaded, total: int, seconds: float, ended: RcacheError | None) -> Answer:
    failed = [{**text_or_base64("key", key), "error": why} for key, why in loaded.failed.items()]
    fields = {"files": loaded.files, "bytes": loaded.size, "seconds": round(seconds, 3), "failed": failed}
    rate = loaded.files / seconds if seconds else 0.0
    stored = f"stored {show_count(loaded.files, 'file')}, {show_size(loaded.size)}"
    shown = f"{stored}, in {show_seconds(seconds)} ({rate:,.0f} files a second)"
    not_tried = total - loaded.files - len(loaded.failed)
    if ended is not None:
        complaint = f"given up, with {show_count(max(0, not_tried), 'file')} not tried: {ended}"
        return Answer(fields, shown, CliExit.IN_PART if loaded.files else CliExit.NOT_REACHED, complaint)
    if failed:
        complaint = f"not stored: {len(failed):,} of {show_count(loaded.files + len(failed), 'file')}"
        return Answer(fields, shown, CliExit.IN_PART, complaint)
    return Answer(fields, shown)
