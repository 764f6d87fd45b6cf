"""What this node's own files still hold of buckets, whoever has them now: read while the log is being written, nothing changed.

What it is: `OldFiles`, asked for lost buckets before one of them begins again empty. Not recovery (`recovery`), which cuts torn
tails and ends where the last start began.
Which thread runs it: the caller's, one at a time. Blocks on the disk, for as long as reading all files takes.
What it owns: nothing; a rebuilt bucket's rows lie in the files, which stay readable even where retention removes them.
What it must not know: views, engines; which node's chain is the longest.

Invariants:
1. Nothing in the directory is changed: the log is written there at the same time.
2. What is called whole is the state at the end of the chain of the newest OPEN that these files know: every record is there,
   and what is off that chain is not in it. That this node let go of the bucket since (a DROP) is told and speaks against
   nothing: it was the last that it had, and nobody has the bucket now.
3. Where a segment of the middle, or one that cannot be read, may have held the last of a bucket, it is not called whole. (A
   DROP behind a hole hides it: the log has nothing more to say of the bucket, as if all had been read.)
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rcache.records.history import BucketPlan
from rcache.records.reader import DataDamaged, HeaderCut
from rcache.records.rebuild import RebuiltBucket, Source, Survey, rebuild, survey
from rcache.stream.data_dir import SEGMENT_SUFFIX, SUFFIXES, ListedFile, read_headers, sources

TRIES = 3
"""How often it begins again where retention removed a file between two looks; that happens once for each new segment."""

Look = Callable[[], None]
"""Called every few MiB; raises where it is to be given up."""


@dataclass(frozen=True, slots=True)
class Held:
    """What the files hold of a bucket: the end of the newest chain and the time of that (ms), and how many items there were
    then. `why`: what is missing of it, "" where it is whole; then there are no items. `let_go`: by whom, as far as that is
    said."""

    bucket: int
    end: int
    as_of_ms: int
    items: int
    let_go: str
    why: str

    @property
    def is_whole(self) -> bool:
        return not self.why


class OldFiles:
    """See the module. `data_dir_id`, in hex: whose files are this node's own."""

    def __init__(self, directory: Path, savefile: Path, data_dir_id: str) -> None:
        self._directory = directory
        self._savefile = savefile
        self._data_dir_id = data_dir_id
        self._reading = threading.Lock()

    def held(self, buckets: Collection[int], look: Look) -> dict[int, Held]:
        """Of these buckets, those that the files speak of. Raises `DataDamaged` (a file changed under the walk), OSError, and
        as `look`."""
        with self._alone(look):
            return {bucket: held for bucket, (held, _) in self._read(buckets, look).items()}

    def bring(self, buckets: Collection[int], look: Look) -> dict[int, tuple[Held, RebuiltBucket | None]]:
        """The same, with what was rebuilt of those that are whole. Raises as `held`."""
        with self._alone(look):
            return self._read(buckets, look)

    @contextmanager
    def _alone(self, look: Look) -> Iterator[None]:
        """An index of the keys is held while buckets are read; not two of them at a time."""
        while not self._reading.acquire(timeout=0.05):
            look()
        try:
            yield
        finally:
            self._reading.release()

    def _read(self, buckets: Collection[int], look: Look) -> dict[int, tuple[Held, RebuiltBucket | None]]:
        for left in reversed(range(TRIES)):
            try:
                return self._read_once(frozenset(buckets), look)
            except FileNotFoundError:
                if not left:
                    raise
        raise AssertionError

    def _read_once(self, buckets: frozenset[int], look: Look) -> dict[int, tuple[Held, RebuiltBucket | None]]:
        files, unreadable = self._own_files()
        if not files:
            return {}
        read = sources(files)
        surveyed = survey(read, skip_damaged=True, progress=lambda _done, _total: look())
        plans = {bucket: plan for bucket, plan in surveyed.plans.items() if bucket in buckets and plan.end}
        doubts = {bucket: _doubt(plan, surveyed, unreadable) for bucket, plan in plans.items()}
        rebuilt = _rebuilt(read, {bucket: plan for bucket, plan in plans.items() if not doubts[bucket]}, look)
        return {bucket: _told(plan, doubts[bucket], rebuilt.get(bucket)) for bucket, plan in plans.items()}

    def _own_files(self) -> tuple[list[ListedFile], str]:
        """This node's files, and which segment cannot be read, if any. A checkpoint that cannot be is as good as none: what is
        left is whole, or is not. A segment that has just begun has nothing in it."""
        paths = {path for path in self._directory.iterdir() if path.suffix in SUFFIXES}
        if self._savefile.exists():
            paths.add(self._savefile)
        own: list[ListedFile] = []
        unreadable = ""
        for path in sorted(paths):
            try:
                (file,) = read_headers([path])
            except HeaderCut:
                continue
            except DataDamaged as damage:
                unreadable = str(damage) if path.suffix == SEGMENT_SUFFIX else unreadable
                continue
            if file.header.data_dir_id.hex() == self._data_dir_id:
                own.append(file)
        return own, unreadable


def _doubt(plan: BucketPlan, surveyed: Survey, unreadable: str) -> str:
    """Why the chain is not whole up to the end that is known of it; "" where it is (invariants 2 and 3)."""
    if not plan.is_whole:
        return next(problem for problem in plan.problems if problem != plan.let_go)
    if plan.let_go and surveyed.missing:
        return f"its end may be missing: {surveyed.missing[0]}"
    return unreadable


def _rebuilt(read: list[Source], plans: dict[int, BucketPlan], look: Look) -> dict[int, RebuiltBucket]:
    if not plans:
        return {}
    return rebuild(read, plans, skip_damaged=True, progress=lambda _done, _total: look())


def _told(plan: BucketPlan, doubt: str, rebuilt: RebuiltBucket | None) -> tuple[Held, RebuiltBucket | None]:
    if rebuilt is not None and rebuilt.sequence != plan.end:
        doubt, rebuilt = "its files were changed while they were read", None
    items = rebuilt.items if rebuilt is not None else 0
    return Held(plan.bucket, plan.end, plan.end_ms, items, plan.let_go, doubt), rebuilt
