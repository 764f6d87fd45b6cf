"""The embedded register: the agreed view, in a file, with the three verbs that views are agreed by.

What it is: read the view and its revision; compare-and-set against a revision; watch for another. One node of the cluster keeps
it, the one that the view names as manager (`design`, section 7): one holder, no vote.
Which thread runs it: any; `watch` blocks the caller's.
What it owns: the file `register` in the data directory, and its lock. It may lock: nothing else; the disk is written under it,
because an answer that overtook another would be of no register.
What it must not know: who asks, over what, and whether that node may.

It guarantees: what was answered is on the disk; revisions grow; a view that breaks a rule (`rcache.cluster.transition`) is
never kept. It does not offer: going on after a write failed. Whether the file holds the old view or the new one is not known
then, so every later call raises RegisterFailed, and only a restart, which reads the file, can be right.

The revision is the view's epoch, so that it goes on where the register is handed to another node.

The file is one line of JSON behind a line with its checksum: a register that was damaged is told from one that is new.
"""

from __future__ import annotations

import json
import threading
import zlib
from pathlib import Path

from rcache.cluster.register import RegisterFailed, Revised
from rcache.cluster.transition import faults_between
from rcache.cluster.view import BadView, View, decode_view, encode_view, faults_of
from rcache.records.reader import DataDamaged
from rcache.stream.disk import Disk, replace_file

REGISTER_FILE = "register"

FORMAT = 1
REGISTER_BYTES_MAX = 64 << 20
"""Far beyond any view: a file that is longer is none of ours."""


class FileRegister:
    """See the module. `held` is None until there is a first view."""

    def __init__(self, directory: Path, disk: Disk | None = None) -> None:
        """Read what is there. Raises `DataDamaged` and OSError."""
        self.path = directory / REGISTER_FILE
        self._disk = disk or Disk()
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._failure = ""
        self._closed = False
        self._held = _read(self.path)

    def read(self) -> Revised | None:
        """The view and its revision; None before the first. Raises `RegisterFailed`."""
        with self._lock:
            self._demand_whole()
            return self._held

    def begin(self, view: View) -> Revised:
        """The first view, of a cluster that is born, or of a register that was handed over. Raises ValueError where there is
        one already that is not older, `BadView`, `RegisterFailed`."""
        with self._lock:
            self._demand_whole()
            faults = faults_of(view)
            if faults:
                raise BadView("; ".join(faults[:3]))
            held = self._held
            if held is not None and (held.view.cluster_id != view.cluster_id or held.view.epoch >= view.epoch):
                raise ValueError(f"there is a register of epoch {held.view.epoch} here already; this would be {view.epoch}")
            return self._keep(Revised(view.epoch, view))

    def compare_and_set(self, revision: int, view: View) -> tuple[bool, Revised]:
        """Keep this view if the register still is at `revision`. Whether it was kept, and what the register holds now. Raises
        `BadView` for one that may not follow, `RegisterFailed`, ValueError before the first view."""
        with self._lock:
            self._demand_whole()
            held = self._held
            if held is None:
                raise ValueError("the register has no view yet")
            if held.revision != revision:
                return False, held
            faults = faults_between(held.view, view)
            if faults:
                raise BadView("; ".join(faults[:3]))
            return True, self._keep(Revised(view.epoch, view))

    def watch(self, revision: int, timeout_s: float) -> Revised | None:
        """Block until the register is beyond `revision`; None where it is not in time, or closed. Raises `RegisterFailed`."""
        with self._lock:
            self._changed.wait_for(lambda: self._is_beyond(revision) or bool(self._failure) or self._closed, timeout_s)
            self._demand_whole()
            return self._held if self._is_beyond(revision) else None

    def close(self) -> None:
        """Whoever watches comes back."""
        with self._lock:
            self._closed = True
            self._changed.notify_all()

    def _is_beyond(self, revision: int) -> bool:
        return self._held is not None and self._held.revision > revision

    def _demand_whole(self) -> None:
        if self._failure:
            raise RegisterFailed(self._failure)

    def _keep(self, revised: Revised) -> Revised:
        """On the disk, and then for everybody."""
        try:
            replace_file(self._disk, self.path, _encode(revised))
        except OSError as error:
            self._failure = f"the register could not be written: {error.strerror or error}"
            self._changed.notify_all()
            raise RegisterFailed(self._failure) from error
        self._held = revised
        self._changed.notify_all()
        return revised


def _encode(revised: Revised) -> bytes:
    facts = {"format": FORMAT, "revision": revised.revision, "view": json.loads(encode_view(revised.view))}
    line = json.dumps(facts, separators=(",", ":"), ensure_ascii=False).encode()
    return b"%08x\n%s\n" % (zlib.crc32(line), line)


def _read(path: Path) -> Revised | None:
    try:
        with path.open("rb") as file:
            data = file.read(REGISTER_BYTES_MAX + 1)
    except FileNotFoundError:
        return None
    checksum, _, line = data.removesuffix(b"\n").partition(b"\n")
    if len(data) > REGISTER_BYTES_MAX or checksum != b"%08x" % zlib.crc32(line):
        raise DataDamaged(path, 0, "its checksum is not that of what it holds")
    try:
        facts = json.loads(line)
        if facts["format"] != FORMAT:
            raise DataDamaged(path, 0, f"its format is {facts['format']}, not {FORMAT}")
        revision = facts["revision"]
        if not isinstance(revision, int) or revision < 1:
            raise DataDamaged(path, 0, f"revision {revision!r}")
        return Revised(revision, decode_view(json.dumps(facts["view"]).encode()))
    except (ValueError, KeyError, TypeError) as error:
        raise DataDamaged(path, 0, f"no register: {error}") from None
