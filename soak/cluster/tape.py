"""The logger under test: it records the cluster all through the run, is killed and started again, and must have everything.

What it is: `Tape`. Which thread runs it: the main thread. What it owns: the logger's process, until `close`.
What it must not know: what is broken, and what is called.

At the end the state is rebuilt from its files, and held against what the cluster answers: every key of either, with its
version.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rcache.records.rebuild import rebuild, survey
from rcache.stream.data_dir import list_files, sources
from rcache_client import Client, RcacheError
from soak.cluster.errors import Violated
from soak.logger_process import LoggerProcess
from soak.server_process import ServerFailed

START_S = 60.0
CAUGHT_UP_S = 60.0
LOOK_S = 0.5

KILLED_EVERY = 3
"""Of so many faults one meets a logger that is not there: killed before, started again behind it."""

SENTINEL = "tape-end-"


@dataclass(slots=True)
class TapeFigures:
    """What came of it. `gaps`: of buckets; `restarts`: after a kill -9."""

    restarts: int = 0
    items: int = 0
    segments: int = 0
    bytes: int = 0
    gaps: int = 0


class Tape:
    """See the module."""

    def __init__(self, directory: Path, addresses: list[str]) -> None:
        self.figures = TapeFigures()
        self._directory = directory
        self._process = LoggerProcess(
            directory, addresses, "--max-mb", "4", "--start-timeout", f"{START_S:g}", name="tape", start=False
        )

    @property
    def said(self) -> str:
        return self._process.stderr_text

    def start(self) -> None:
        """Raises `Violated` where it does not come up."""
        try:
            self._process.start(START_S + 5)
        except ServerFailed as failure:
            raise Violated(f"the logger did not start: {failure}") from None

    def before(self, fault: int) -> None:
        """A fault is about to be made."""
        if fault % KILLED_EVERY == 0:
            self._process.kill()
            self.figures.restarts += 1

    def after(self) -> None:
        """It is over, and the cluster whole."""
        if not self._process.running:
            self.start()

    def finish(self, cache: Client[bytes], keys: Iterable[str]) -> list[str]:
        """Nothing is written any more: have it stop in order, and compare. Returns what is wrong. `keys`: to be looked at
        beside those that were recorded."""
        buckets = len(cache.view().buckets)
        found = {cache.view().bucket_of(key): key for key in self._sentinels(cache, buckets)}
        expected = {key.encode(): cache.set(key, b"the end", budget=START_S) for key in found.values()}
        deadline = time.monotonic() + CAUGHT_UP_S
        recorded, wrong = self._rebuilt()
        while wrong or any(recorded.get(key, (b"", 0))[1] != version for key, version in expected.items()):
            if time.monotonic() > deadline:
                late = sum(recorded.get(key, (b"", 0))[1] != version for key, version in expected.items())
                return [f"the logger: {late} of {buckets} buckets are not up to date after {CAUGHT_UP_S:g} s: {wrong[:3]}"]
            time.sleep(LOOK_S)
            recorded, wrong = self._rebuilt()
        if (code := self._process.stop()) != 0:
            return [f"the logger stopped with code {code}"]
        return self._compare(cache, {*recorded, *(key.encode() for key in keys)})

    @staticmethod
    def _sentinels(cache: Client[bytes], buckets: int) -> list[str]:
        """A key of each bucket."""
        view, found = cache.view(), dict[int, str]()
        for number in itertools.count():
            key = f"{SENTINEL}{number}"
            found.setdefault(view.bucket_of(key), key)
            if len(found) == buckets:
                return list(found.values())
        raise AssertionError

    def _rebuilt(self) -> tuple[dict[bytes, tuple[bytes, int]], list[str]]:
        """Each key's value and version by the files, as they are now; and what keeps the history from being whole."""
        files = list_files(self._directory)
        read = sources(files)
        surveyed = survey(read, skip_damaged=True)
        self.figures.segments, self.figures.bytes = len(files), sum(file.size for file in files)
        if surveyed.problems:
            return {}, surveyed.problems
        rebuilt = rebuild(read, surveyed.plans, skip_damaged=True)
        items = {key: (row.value or b"", row.version) for bucket in rebuilt.values() for key, row in bucket.live_rows()}
        self.figures.items = len(items)
        self.figures.gaps = self.said.count("GAP in")
        return items, []

    def _compare(self, cache: Client[bytes], keys: Iterable[bytes]) -> list[str]:
        recorded, wrong = self._rebuilt()
        for key in sorted(keys):
            try:
                value, version = cache.get_with_version(key, budget=START_S)
            except RcacheError as error:
                return [*wrong, f"the logger: {key!r} cannot be compared: {error}"]
            held = recorded.get(key)
            if held != (None if value is None else (value, version)):
                wrong.append(f"the logger: {key!r} is {value!r:.60} of version {version}, and was recorded as {held!r:.80}")
        return wrong[:5]

    def close(self) -> None:
        """Idempotent."""
        self._process.close()
