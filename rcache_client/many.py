"""Many-key calls: how keys are cut into frames, and how the parts' results become one.

What it is: `by_door`, which sorts, `parts`, which cuts, and `Gathering`, which collects results and failures by the user's
own keys.
Which thread runs it: the caller's; a `Gathering` lives for one call.
What it owns: what it has gathered.
What it must not know: connections, opcodes, values.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Generic, NamedTuple, TypeVar

from rcache_client.arguments import Key, key_bytes
from rcache_client.door import Door
from rcache_client.errors import NotExecuted, RcacheError, SomeKeysFailed
from rcache_client.routing import Table
from rcache_client.wire.frames import HEADER_BYTES
from rcache_client.wire.grammar import Group
from rcache_client.wire.opcodes import MANY_KEYS_MAX
from rcache_client.wire.quick import encode_key, encode_plain_keys

COUNT_BYTES = 2
"""The count of entries in front of them, in requests and replies."""

K = TypeVar("K", bound=Key)
R = TypeVar("R")

Frame = tuple[Sequence[K], bytes]
"""The keys of one frame, and its payload."""


class Room(NamedTuple):
    """What one frame may hold: bytes of entries, and a number of them."""

    entry_bytes: int
    entries: int

    @classmethod
    @lru_cache(maxsize=64)
    def of(cls, frame_bytes_max: int, reply_entry_bytes: int, entries_max: int = MANY_KEYS_MAX) -> Room:
        """So that neither the frame nor its reply (`reply_entry_bytes` for each entry) is longer than `frame_bytes_max`."""
        entry_bytes = frame_bytes_max - HEADER_BYTES - COUNT_BYTES
        return cls(entry_bytes, max(1, min(entries_max, entry_bytes // reply_entry_bytes)))


def parts(entries: Sequence[bytes], room: Room) -> Iterator[slice]:
    """Cut encoded entries into frames. An entry that is too large even alone gets a frame of its own, to be refused by name."""
    start, taken = 0, 0
    for place, entry in enumerate(entries):
        if place > start and (place - start >= room.entries or taken + len(entry) > room.entry_bytes):
            yield slice(start, place)
            start, taken = place, 0
        taken += len(entry)
    if start < len(entries):
        yield slice(start, len(entries))


def by_door(keys: Sequence[K], table: Table) -> list[tuple[Door | None, Sequence[K]]]:
    """The keys by the door of their primary. Raises `TypeError` or `ValueError` for a bad key, where it must look at them."""
    if table.only is not None or table.view is None:
        return [(table.only, keys)]
    groups: dict[Door | None, list[K]] = {}
    door_of = table.door_of
    for key in keys:
        groups.setdefault(door_of(key_bytes(key)), []).append(key)
    return list(groups.items())


def encode_keys(keys: Sequence[Key]) -> bytes | list[bytes]:
    """The payload that names all these keys, where it is made in one step; else an entry for each of them.

    Raises `TypeError` or `ValueError` for a bad key.
    """
    payload = encode_plain_keys(keys)
    return key_entries(keys) if payload is None else payload


def key_entries(keys: Sequence[Key]) -> list[bytes]:
    """The entry of each key. Raises `TypeError` or `ValueError` for a bad one."""
    return [encode_key(key_bytes(key)) for key in keys]


def frames_of(keys: Sequence[K], encoded: bytes | list[bytes], room: Room) -> Iterator[Frame[K]]:
    """As few frames as these keys fit into; `encoded` is what `encode_keys` made of them, or any other entries for them."""
    if isinstance(encoded, bytes):
        if len(keys) <= room.entries and len(encoded) <= COUNT_BYTES + room.entry_bytes:
            yield keys, encoded
            return
        encoded = key_entries(keys)
    for part in parts(encoded, room):
        yield keys[part], Group.join(encoded[part])


class Gathering(Generic[K, R]):
    """The results of one many-key call so far: what was done, and what failed key by key or as a whole frame."""

    def __init__(self, operation: str, asked: Sequence[K]) -> None:
        self.done: dict[K, R] = {}
        self.failed: dict[K, RcacheError] = {}
        self.scattered = False
        """Whether the results came node by node, or in several rounds, and so not in the order of the keys."""
        self._asked = asked
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
        if self.scattered:
            self.done = {key: self.done[key] for key in self._asked if key in self.done}
        if not self.failed:
            return self.done
        if self._first_failure is not None and not self._frames_answered:
            raise self._first_failure
        raise SomeKeysFailed(self.done, self.failed, self._operation)
