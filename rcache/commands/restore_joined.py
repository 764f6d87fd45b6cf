"""`--restore FILE|DIR` of a node that joins a cluster: the files are read before it joins, and put in once it is up.

What it is: what `rcache-replay inject` does, from within `rcached`: through a client of the cluster, key by key, so that the
number of buckets may differ and every node keeps answering; with the rules of `replay_inject` for keys that are there.
Which thread runs it: the main thread; `replay_inject` has threads of its own, joined before it returns. Blocks.
What it owns: the rows, until they are in the cluster, and the mark in the data directory.
What it must not know: buckets, views.

The order, and why: what is wrong with the files is found before the cluster hears of this node. The mark is on the disk before
the data directory is anybody's, and goes when every key is in: so a start that did not end can be made again with the same
options and does what is left, while a data directory that was in use is never restored into twice. (The option stays in a
configuration file, the service is restarted, and what was deleted since comes back.)
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path

from loguru import logger

from rcache.commands.exit_codes import ExitCode
from rcache.commands.recovering import StartWatch, in_items
from rcache.commands.replay_exit import ReplayStopped
from rcache.commands.replay_files import find_files
from rcache.commands.replay_inject import Existing, Injected, chosen_rows, client_of, inject, terms_between
from rcache.commands.start_failed import StartFailed
from rcache.records.reader import DataDamaged
from rcache.records.rebuild import RebuiltBucket, rebuild, survey
from rcache.stream.disk import Disk, replace_file
from rcache_client.address import Address

MARK_FILE = "restoring"
"""In the data directory while a restore into a cluster has not ended: the path that it is from."""

AGAIN = "start it again with the same --restore and --data-dir to do the rest"


class JoinedRestore:
    """One restore: `prepare`, then the node joins and is up, then `put`."""

    def __init__(self, path: Path, directory: Path, watch: StartWatch) -> None:
        self._path = path
        self._directory = directory
        self._watch = watch
        self._buckets: dict[int, RebuiltBucket] = {}
        self._cluster = b""

    def prepare(self, *, is_new: bool) -> None:
        """Read the files, and mark the data directory. `is_new`: it is nobody's yet. Raises `StartFailed`."""
        if not is_new and unfinished(self._directory) is None:
            why = f"--restore: {self._directory} was in use already, and what was deleted since would come back"
            hint = f"leave the option out, or put the files in with rcache-replay inject {self._path} --into HOST:PORT"
            raise StartFailed(ExitCode.WRONG_USE, f"{why}: {hint}")
        self._read()
        try:
            replace_file(Disk(), self._directory / MARK_FILE, f"{self._path}\n".encode())
        except OSError as error:
            raise StartFailed(ExitCode.APPEND_LOG_FAILED, f"--data-dir: {error}") from None

    def _read(self) -> None:
        walks = self._watch.walks()
        try:
            found = find_files((self._path,))
            for damage in found.damaged:
                raise damage
            files = found.sources()
            surveyed = survey(files, progress=walks.reading)
            if surveyed.problems:
                why = f"{surveyed.problems[0]} ({len(surveyed.problems)} problems); see rcache-replay rebuild --partial"
                raise StartFailed(ExitCode.DAMAGED_FILE, f"--restore {self._path}: {why}")
            self._buckets = rebuild(files, surveyed.plans, progress=walks.rebuilding)
            self._cluster = found.newest.cluster_id if found.files else b""
        except ReplayStopped as stopped:
            raise StartFailed(ExitCode.WRONG_USE, f"--restore: {stopped}") from None
        except DataDamaged as damage:
            hint = "see rcache-replay --skip-damaged --partial"
            raise StartFailed(ExitCode.DAMAGED_FILE, f"--restore: {damage}; {hint}") from None
        except OSError as error:
            raise StartFailed(ExitCode.WRONG_USE, f"--restore {self._path}: {error.strerror}") from None

    def put(self, servers: Sequence[Address], secret: bytes | None, cluster: bytes) -> int:
        """Put everything into the cluster behind these addresses. Returns how many items the cluster did not have. Raises
        `StartFailed` where not all of it could be put in."""
        began = time.monotonic()
        total = sum(bucket.items for bucket in self._buckets.values())
        terms = terms_between(self._cluster, cluster, overwrite=False, rate=0)
        theirs = "newer" if terms.existing is Existing.REPLACED_IF_OLDER else "there"
        logger.info("restoring {} items from {} into the cluster", total, self._path)
        try:
            with client_of([str(address) for address in servers], secret, "rcached-restore") as client:
                report = self._watch.progress("restoring", in_items)
                injected = inject(chosen_rows(self._buckets, b""), total, client, terms, report)
        except StartFailed as stopped:
            raise StartFailed(stopped.code, f"--restore was given up, a part of it is in the cluster; {AGAIN}") from None
        except DataDamaged as damage:  # a file was changed under the running start
            raise StartFailed(ExitCode.DAMAGED_FILE, f"--restore: {damage}; a part of it is in the cluster") from None
        finally:
            self._buckets.clear()
        seconds = time.monotonic() - began
        told = f"{injected.done} put in, {injected.kept} kept that were {theirs}, {injected.expired} had expired"
        if injected.failed:
            raise _failed(injected, total, told)
        _remove_mark(self._directory)
        logger.info("restored {} items into the cluster in {:.1f} s: {}", total, seconds, told)
        return injected.done


def _failed(injected: Injected, total: int, told: str) -> StartFailed:
    why = "; ".join(injected.failures)
    text = f"--restore could not put {injected.failed} of {total} items into the cluster ({told}): {why}"
    return StartFailed(ExitCode.NOT_KEPT, f"{text}. What is in stays there; {AGAIN}")


def _remove_mark(directory: Path) -> None:
    disk = Disk()
    try:
        with contextlib.suppress(FileNotFoundError):
            disk.remove(directory / MARK_FILE)
        disk.sync_directory(directory)
    except OSError as error:
        logger.warning("{}: {}; another start with --restore would restore again", directory / MARK_FILE, error)


def unfinished(directory: Path) -> str | None:
    """What an earlier restore that did not end was to bring in, or None."""
    try:
        return (directory / MARK_FILE).read_text(errors="replace").strip()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StartFailed(ExitCode.APPEND_LOG_FAILED, f"--data-dir: {error}") from None


def warn_of_unfinished(directory: Path) -> None:
    """For a start without the option."""
    if (path := unfinished(directory)) is not None:
        why = "an earlier --restore {} did not end, and only a part of it is in the cluster: {}, or use rcache-replay inject"
        logger.warning(why, path, AGAIN)
