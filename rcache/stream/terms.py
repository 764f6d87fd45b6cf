"""The terms: what this node promised to takeovers of the register, on its disk, and which views it may follow since.

What it is: one promise, (term, nonce), and the newest view that was followed; `promise` and `follow` are the only two steps,
and one of them comes before the other.
Which thread runs it: any. What it owns: the file `promise` in the data directory. It may lock: its own lock, under which the
disk is written, and a register may be begun (`FileRegister`'s lock comes after it).
What it must not know: who asks, over what; what a view means to this node.

A takeover (`rcache.server.takeover`) has every node that is not named as stopped promise it its term before it begins its
register. Invariants (`design`, section 7), each with the sequence of events that it prevents:
1. A promise is on the disk before it is given. (A node promises, restarts, has forgotten it, and is the majority by which the
   former holder, which came back as well, goes on beside the one that took over.)
2. A term is promised once, and none below it after that. (Two takeovers ask the same nodes at the same time. Each needs every
   one of them, and the other's own: so one of the two, or both, come to nothing.)
3. No view of a lower term is followed after a promise, and none of that term but by that takeover. What was followed before is
   told with the promise. (A takeover goes on from what the nodes told it; the former holder's last view reaches one of them
   after it told, that node does as the view says, and acknowledges what the new register knows nothing of.)
4. Within a term only one takeover's views are followed. (Two nodes were each said to be stopped when the register was taken
   over at the other, and both run again: two histories with the same epochs, and copies of the two cannot be told apart.)

After a write that failed nothing is promised any more: whether the file holds the promise is not known, so it is kept.
"""

from __future__ import annotations

import json
import threading
import zlib
from pathlib import Path
from typing import NamedTuple

from rcache.cluster.register import RegisterFailed
from rcache.cluster.view import View
from rcache.records.reader import DataDamaged
from rcache.stream.disk import Disk, replace_file

PROMISE_FILE = "promise"

FORMAT = 1
PROMISE_BYTES_MAX = 4096
"""Far beyond any promise: a file that is longer is none of ours."""


class Promise(NamedTuple):
    """A takeover: the term that it begins, and what it knows itself by. Term 0: none."""

    term: int = 0
    nonce: str = ""

    def __str__(self) -> str:
        return f"takeover {self.nonce} of term {self.term}" if self.term else "no takeover"


class Terms:
    """See the module. `lock`: whoever begins a register, or goes on with one, holds it, so that no promise comes between."""

    def __init__(self, directory: Path, disk: Disk | None = None) -> None:
        """Read what is there. Raises `DataDamaged` and OSError."""
        self.path = directory / PROMISE_FILE
        self.lock = threading.RLock()
        self._disk = disk or Disk()
        self._failure = ""
        self._held = _read(self.path)
        self._followed: View | None = None

    @property
    def held(self) -> Promise:
        return self._held

    @property
    def followed(self) -> View | None:
        """The newest view that was followed since the start."""
        return self._followed

    def promise(self, wanted: Promise) -> bool:
        """Promise this; False where another was promised, or a view is followed, that does not allow it (invariant 2). On the
        disk when it returns True. Raises `RegisterFailed` where that cannot be."""
        with self.lock:
            if self._failure:
                raise RegisterFailed(self._failure)
            if wanted == self._held:
                return True
            followed = self._followed.term if self._followed is not None else 0
            if wanted.term <= max(self._held.term, followed):
                return False
            self._held = wanted  # before it is written: if that fails, the file may hold it all the same
            try:
                replace_file(self._disk, self.path, _encode(wanted))
            except OSError as error:
                self._failure = f"a promise could not be written: {error.strerror or error}"
                raise RegisterFailed(self._failure) from error
            return True

    def follow(self, view: View) -> str:
        """Why this view may not be followed; "" where it may, and is from now on (invariants 3 and 4)."""
        with self.lock:
            why = self.why_not(view)
            if not why and (self._followed is None or view.epoch > self._followed.epoch):
                self._followed = view
            return why

    def why_not(self, view: View) -> str:
        """Why this view may not be followed; "" where it may. What is not newer than what was told with a promise may."""
        held, followed = self._held, self._followed
        if followed is not None and (view.term, view.taken) == (followed.term, followed.taken) and view.epoch <= followed.epoch:
            return ""
        if (view.term, view.taken) != held and view.term <= held.term:
            return f"it is of term {view.term}{_by(view)}, and this node promised the {held}"
        if followed is not None and view.term == followed.term and view.taken != followed.taken:
            return f"it is of term {view.term}{_by(view)}, and this node goes by that term{_by(followed)}"
        return ""


def _by(view: View) -> str:
    return f" by takeover {view.taken}" if view.taken else " without a takeover"


def _encode(promise: Promise) -> bytes:
    line = json.dumps({"format": FORMAT, "term": promise.term, "nonce": promise.nonce}, separators=(",", ":")).encode()
    return b"%08x\n%s\n" % (zlib.crc32(line), line)


def _read(path: Path) -> Promise:
    try:
        with path.open("rb") as file:
            data = file.read(PROMISE_BYTES_MAX + 1)
    except FileNotFoundError:
        return Promise()
    checksum, _, line = data.removesuffix(b"\n").partition(b"\n")
    if len(data) > PROMISE_BYTES_MAX or checksum != b"%08x" % zlib.crc32(line):
        raise DataDamaged(path, 0, "its checksum is not that of what it holds")
    try:
        facts = json.loads(line)
        if facts["format"] != FORMAT:
            raise DataDamaged(path, 0, f"its format is {facts['format']}, not {FORMAT}")
        term, nonce = facts["term"], facts["nonce"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataDamaged(path, 0, f"no promise: {error}") from None
    if type(term) is not int or term < 1 or type(nonce) is not str:
        raise DataDamaged(path, 0, f"no promise: {facts}")
    return Promise(term, nonce)
