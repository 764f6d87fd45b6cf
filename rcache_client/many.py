"""Many-key calls: how keys are cut into frames, and how the parts' results become one.

What it is: `parts`, which cuts, and `Gathering`, which collects results and failures by the user's own keys.
Which thread runs it: the caller's; a `Gathering` lives for one call.
What it owns: what it has gathered.
What it must not know: connections, opcodes, values.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import Generic, TypeVar

from rcache_client.errors import NotExecuted, RcacheError, SomeKeysFailed
from rcache_client.wire.frames import HEADER_BYTES
from rcache_client.wire.opcodes import MANY_KEYS_MAX

COUNT_BYTES = 2
"""The count of entries in front of them, in requests and replies."""

K = TypeVar("K", bound=Hashable)
R = TypeVar("R")


def parts(
    entries: Sequence[bytes], frame_bytes_max: int, reply_entry_bytes: int, entries_max: int = MANY_KEYS_MAX
) -> Iterator[slice]:
    """Cut encoded entries into frames of at most `frame_bytes_max`, whose replies (`reply_entry_bytes` each) are so too.

    An entry that is too large even alone gets a frame of its own, to be refused by name.
    """
    room = frame_bytes_max - HEADER_BYTES - COUNT_BYTES
    count_max = max(1, min(entries_max, room // reply_entry_bytes))
    start, taken = 0, 0
    for place, entry in enumerate(entries):
        if place > start and (place - start >= count_max or taken + len(entry) > room):
            yield slice(start, place)
            start, taken = place, 0
        taken += len(entry)
    if start < len(entries):
        yield slice(start, len(entries))


class Gathering(Generic[K, R]):
    """The results of one many-key call so far: what was done, and what failed key by key or as a whole frame."""

    def __init__(self, operation: str) -> None:
        self.done: dict[K, R] = {}
        self.failed: dict[K, RcacheError] = {}
        self._operation = operation
        self._frames_answered = 0
        self._first_failure: RcacheError | None = None

    def frame_answered(self) -> None:
        """A frame was answered, whatever its entries say."""
        self._frames_answered += 1

    def frame_failed(self, keys: Iterable[K], error: RcacheError) -> None:
        """The frame that held these keys was not answered, or refused as a whole."""
        self.failed.update(dict.fromkeys(keys, error))
        self._first_failure = self._first_failure or error

    def not_sent(self, keys: Iterable[K], because: RcacheError) -> None:
        """These keys were not sent, because an earlier frame failed."""
        error = NotExecuted(f"not sent, because of an earlier failure: {because.what}", because.server, self._operation)
        error.__cause__ = because
        self.failed.update(dict.fromkeys(keys, error))

    def result(self) -> dict[K, R]:
        """All results. Raises `SomeKeysFailed`; or, where no frame was answered at all, the error of the first."""
        if not self.failed:
            return self.done
        if self._first_failure is not None and not self._frames_answered:
            raise self._first_failure
        raise SomeKeysFailed(self.done, self.failed, self._operation)
