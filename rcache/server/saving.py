"""The savefile of an orderly stop: whether it is to be written, and the writing.

Which thread runs it: `switch` and `stats` any worker; `save` the main thread, once nothing changes any more.
What it owns: the switch, and its lock. What it must not know: when a node stops, and whether it handed over what it had.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from loguru import logger

from rcache.records.files import FileKind
from rcache.server.notify import EXTEND_S
from rcache.server.parts import Parts
from rcache.stream.checkpoints import CopyHooks, copy_header, write_copy
from rcache_client.wire.opcodes import PersistMode


class Saving:
    """See the module. `next_segment`: the number of the next segment where no log is kept that would know it."""

    def __init__(self, parts: Parts) -> None:
        self.next_segment = 1
        self._parts = parts
        self._wanted = parts.persist
        self._lock = threading.Lock()

    @property
    def is_wanted(self) -> bool:
        return self._wanted

    def switch(self, mode: PersistMode) -> tuple[bool, str]:
        """Switch or ask; whether a savefile will be written, and its path."""
        with self._lock:
            if mode is not PersistMode.ASK:
                self._wanted = mode is PersistMode.ON
                logger.info("persist on shutdown: {}", "on" if self._wanted else "off")
            return self._wanted, str(self._parts.savefile)

    def stats(self) -> dict[str, Any]:
        return {"on_shutdown": self._wanted, "savefile": str(self._parts.savefile)}

    def save(self, progress: Callable[[str], object]) -> str:
        """Write all items. Returns why that could not be done, "" where it was. Blocks."""
        parts, identity = self._parts, self._parts.data_dir.identity
        assert identity is not None
        first_segment = self.next_segment
        if parts.log is not None:
            first_segment = parts.log.next_segment()
        now_ms = parts.clock.now_ms()
        header = copy_header(FileKind.SAVEFILE, identity, parts.engine.epoch, first_segment, first_segment, now_ms)
        report = _Every(1.0, lambda done: self._report(done, header.buckets, progress))
        try:
            saved = write_copy(parts.engine, parts.savefile, header, CopyHooks(lambda done, _took_s: report(done)))
        except OSError as error:
            why = f"{parts.savefile}: {error.strerror or error}"
            logger.error("the savefile could not be written: {}", why)
            return why
        logger.info("saved {} items, {} bytes, to {} in {:.1f} s", saved.items, saved.bytes, saved.path, saved.seconds)
        return ""

    def _report(self, done: int, buckets: int, progress: Callable[[str], object]) -> None:
        self._parts.notifier.extend_timeout(EXTEND_S)
        progress(f"stopping: saving, {done} of {buckets} buckets")


class _Every:
    """Calls at most once in `seconds`."""

    def __init__(self, seconds: float, call: Callable[[int], None]) -> None:
        self._seconds = seconds
        self._call = call
        self._last = time.monotonic()

    def __call__(self, done: int) -> None:
        if time.monotonic() - self._last >= self._seconds:
            self._last = time.monotonic()
            self._call(done)
