"""The data directory: who its node is, the lock on it, and the files in it.

What it is: `node.json` (identity, epoch, incarnation), `lock`, segments (`NODE-YYYYMMDD-NNNN.rcl`), checkpoints
(`NODE-YYYYMMDD-NNNN.rcc`) and, by default, the savefile (`NODE.rcs`).
Which thread runs it: the main thread at start and stop; listing is safe from any.
What it owns: the lock, held until `close`. What it must not know: what is in the files beyond their headers.

Invariants:
1. Two processes never use one data directory at the same time: the lock is the kernel's (flock) and dies with its holder.
2. `node.json` is replaced as a whole and fsynced before the call returns; the epoch in it never goes back.
3. The order of segments is that of the numbers in their headers; names are for people.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rcache.records.files import FileHeader, FileKind
from rcache.records.reader import DataDamaged, RecordFile
from rcache.records.rebuild import Source
from rcache.stream.disk import Disk, replace_file

IDENTITY_FILE = "node.json"
LOCK_FILE = "lock"
IDENTITY_FORMAT = 1
NODE, LOGGER = "node", "logger"
SEGMENT_SUFFIX = ".rcl"
CHECKPOINT_SUFFIX = ".rcc"
SAVEFILE_SUFFIX = ".rcs"
SUFFIXES = (SEGMENT_SUFFIX, CHECKPOINT_SUFFIX, SAVEFILE_SUFFIX)


class DataDirLocked(Exception):
    """Another process uses the data directory."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who the node of a data directory is. Ids are 16 bytes, in hex; epochs and incarnation count up from 0.

    `epoch` is the highest ever used, so that none is used twice. `start_epoch` is the one in which the last start began to
    serve: a history on disk that ends before it is not the present. `restoring`: a --restore has begun and not ended. `joined`:
    the cluster was not born here, so no other may be. `logged`: whoever served last kept a log, so what is on disk is the
    present, however old the epochs of its buckets are. `role`: whose directory it is, a node's or a logger's.
    """

    cluster_id: str
    data_dir_id: str
    node: str
    buckets: int
    epoch: int = 0
    start_epoch: int = 0
    incarnation: int = 0
    restoring: bool = False
    joined: bool = False
    logged: bool = False
    role: str = NODE


@dataclass(frozen=True, slots=True)
class ListedFile:
    """A file of records in a directory."""

    path: Path
    header: FileHeader
    size: int


class DataDir:
    """An open, locked data directory. Raises `DataDirLocked`, `DataDamaged` (identity unreadable), OSError."""

    def __init__(self, path: Path, disk: Disk | None = None) -> None:
        self.path = path
        self._disk = disk or Disk()
        path.mkdir(parents=True, exist_ok=True, mode=0o750)
        self._lock_fd = os.open(path / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            self._take_lock()
            self.identity = self._read_identity()
        except BaseException:
            os.close(self._lock_fd)
            raise

    def _take_lock(self) -> None:
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._lock_fd, 32, 0).decode(errors="replace").strip() or "unknown"
            raise DataDirLocked(f"{self.path} is in use by process {holder}") from None
        os.ftruncate(self._lock_fd, 0)
        os.pwrite(self._lock_fd, f"{os.getpid()}\n".encode(), 0)

    def _read_identity(self) -> Identity | None:
        path = self.path / IDENTITY_FILE
        try:
            fields = json.loads(path.read_bytes())
            if fields.pop("format") != IDENTITY_FORMAT:
                raise DataDamaged(path, 0, f"its format is not {IDENTITY_FORMAT}")
            return Identity(**fields)
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError) as error:
            raise DataDamaged(path, 0, f"not a node's identity: {error}") from None

    def be(self, node: str, buckets: int, cluster_id: str | None = None, role: str = NODE) -> Identity:
        """This directory's identity; a new one, on disk, where there was none yet (`cluster_id` None: of a cluster that is
        born). Raises ValueError where it is another's."""
        if self.identity is None:
            own_id, joined = os.urandom(16).hex(), cluster_id is not None
            self.write(Identity(cluster_id or os.urandom(16).hex(), own_id, node, buckets, joined=joined, role=role))
        self.demand_role(role)
        identity = self.identity
        assert identity is not None
        if cluster_id not in (None, identity.cluster_id):
            raise ValueError(f"{self.path} is of cluster {identity.cluster_id}, not {cluster_id}")
        if identity.node != node:
            raise ValueError(f"{self.path} belongs to node {identity.node!r}, not {node!r}")
        return identity

    def demand_role(self, role: str) -> None:
        """Raise ValueError where this is the directory of somebody of another role."""
        identity = self.identity
        if identity is not None and identity.role != role:
            raise ValueError(f"{self.path} is the directory of a {identity.role} ({identity.node!r}), not of a {role}")

    def write(self, identity: Identity) -> None:
        """Replace the identity, durably (invariant 2)."""
        held = self.identity
        assert held is None or (held.epoch <= identity.epoch and held.incarnation <= identity.incarnation)
        text = json.dumps({"format": IDENTITY_FORMAT, **asdict(identity)}, indent=2) + "\n"
        replace_file(self._disk, self.path / IDENTITY_FILE, text.encode())
        self.identity = identity

    def begin_incarnation(self, above: int = 0) -> Identity:
        """One more start of this node: a new incarnation, higher than `above` (that of who had its name before, by another
        directory), on disk when this returns."""
        assert self.identity is not None
        self.write(replace(self.identity, incarnation=max(self.identity.incarnation, above) + 1))
        return self.identity

    def begin_serving(self, epoch: int, *, logged: bool = False) -> None:
        """Serving begins in `epoch`, with a log or without; on disk when this returns."""
        assert self.identity is not None
        self.write(replace(self.identity, epoch=epoch, start_epoch=epoch, restoring=False, logged=logged))

    def begin_restore(self) -> None:
        """What comes into this directory now is only part of something, until serving begins; on disk when this returns."""
        assert self.identity is not None
        self.write(replace(self.identity, restoring=True))

    def use_epoch(self, epoch: int) -> None:
        """A bucket will go on in `epoch` while the node serves; on disk when this returns."""
        assert self.identity is not None
        self.write(replace(self.identity, epoch=epoch))

    def close(self) -> None:
        """Let go of the lock."""
        os.close(self._lock_fd)


def node_of(directory: Path) -> str | None:
    """The name in a directory's identity, without its lock. None where there is none that can be read: opening it says why."""
    try:
        name = json.loads((directory / IDENTITY_FILE).read_bytes())["node"]
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return name if isinstance(name, str) else None


def list_files(directory: Path) -> list[ListedFile]:
    """The files of records in `directory`, by kind and number. Raises `DataDamaged` for one whose header cannot be read."""
    return read_headers(path for path in sorted(directory.iterdir()) if path.suffix in SUFFIXES)


def read_headers(paths: Iterable[Path]) -> list[ListedFile]:
    """The headers of these files, by kind and number. Raises `DataDamaged` and OSError."""
    listed = []
    for path in paths:
        with RecordFile(path) as file:
            listed.append(ListedFile(path, file.header, file.size))
    return sorted(listed, key=lambda file: (file.header.kind, file.header.number, file.header.created_ms))


def sources(files: Iterable[ListedFile]) -> list[Source]:
    """Group files into sources: all segments of one node's log in their order, every other file on its own."""
    logs: dict[tuple[bytes, bytes], list[ListedFile]] = {}
    single = []
    for file in files:
        if file.header.kind is FileKind.SEGMENT:
            logs.setdefault((file.header.cluster_id, file.header.data_dir_id), []).append(file)
        else:
            single.append(Source(file.path.name, (file.path,)))
    grouped = [
        Source(f"log of {log[0].header.node}", tuple(file.path for file in sorted(log, key=lambda f: f.header.number)))
        for log in logs.values()
    ]
    return single + grouped
