"""The calls on many keys at once: the part of `Client` that cuts them into frames and gathers the results.

What it is: for each call how an entry is asked for and what its own status means to the user.
Which thread runs it: the caller's; a call blocks to its budget at most, over all its frames.
What it owns: nothing.
What it must not know: connections, retries.

Nothing is hidden: if all keys went well the result is returned; if no frame was answered its error is raised; in all other
cases `SomeKeysFailed` holds the results of the keys that went well and the error of each that did not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Generic, TypeVar

from rcache_client.arguments import Key, key_bytes
from rcache_client.asking import Asking
from rcache_client.budget import ttl_in_ms
from rcache_client.calls import Caller
from rcache_client.envelope import COMPUTED_FLAGS, Kind, unpack
from rcache_client.errors import RcacheError, WrongFormat
from rcache_client.many import Gathering, encode_keys
from rcache_client.near_cache import NearReads
from rcache_client.serializers import Serializer
from rcache_client.wire.opcodes import MANY_KEYS_MAX, TTL_MS_MAX, Opcode, Status
from rcache_client.wire.quick import Items, encode_key, encode_store

V = TypeVar("V")
R = TypeVar("R")
K = TypeVar("K", bound=Key)


class ManyCalls(Generic[V]):
    """Calls on many keys. `V` is the type of values, which the serializer gives."""

    _caller: Caller
    _serializer: Serializer[V]
    _loads_nothing: bool
    _near: NearReads | None

    def get_many(self, keys: Iterable[K], *, budget: float | None = None) -> dict[K, V]:
        """The values of those keys that have one."""
        deadline = self._caller.deadline(budget)
        asked = _distinct(keys)
        gathering: Gathering[K, V] = Gathering("GET_MANY", asked)
        if self._near is not None:
            asked = self._gather_near(self._near, asked, gathering)
        entries_max = MANY_KEYS_MAX
        while asked:
            full = self._get_round(asked, gathering, entries_max, deadline)
            if len(full) == len(asked):  # not one fitted: they are too large to share a reply
                self._get_alone(asked, gathering, deadline)
                break
            entries_max = max(1, len(asked) - len(full))  # no more at once than what fitted in this round
            asked = full
        return gathering.result()

    def set_many(self, mapping: Mapping[K, V], ttl: float | None = None, *, budget: float | None = None) -> dict[K, int]:
        """Store all values, each for `ttl` seconds or for ever; return each key's version. Not atomic over the keys."""
        deadline = self._caller.deadline(budget)
        ttl_ms = ttl_in_ms(ttl, TTL_MS_MAX)
        keys, entries = [], []
        for key, value in mapping.items():
            data, flags = self._serializer.dump(value)
            keys.append(key)
            entries.append(encode_store(flags, ttl_ms, key_bytes(key), data))

        def encode(part: Sequence[K]) -> list[bytes]:
            if part is keys:
                return entries
            places = {key: place for place, key in enumerate(keys)}
            return [entries[places[key]] for key in part]

        gathering: Gathering[K, int] = Gathering("SET_MANY", keys)
        asking = Asking(self._caller, Opcode.SET_MANY, encode, gathering, deadline)
        for part, changes in asking.answers(keys):
            for key, (status, version) in zip(part, changes, strict=True):
                if status == Status.OK:
                    gathering.done[key] = version
                else:
                    asking.entry_failed(key, status)
        return gathering.result()

    def delete_many(self, keys: Iterable[K], *, budget: float | None = None) -> dict[K, bool]:
        """Remove all values; return for each key whether there was one. Not atomic over the keys."""
        deadline = self._caller.deadline(budget)
        asked = _distinct(keys)
        gathering: Gathering[K, bool] = Gathering("DELETE_MANY", asked)
        asking = Asking(self._caller, Opcode.DELETE_MANY, encode_keys, gathering, deadline)
        for part, changes in asking.answers(asked):
            for key, (status, _) in zip(part, changes, strict=True):
                if status in (Status.OK, Status.NOT_FOUND):
                    gathering.done[key] = status == Status.OK
                else:
                    asking.entry_failed(key, status)
        return gathering.result()

    def _gather_near(self, near: NearReads, keys: Sequence[K], gathering: Gathering[K, V]) -> list[K]:
        """Take what is kept here and may be served; return the keys of the rest."""
        rest: dict[K, bytes] = {}
        found = [(key, name, near.find(name)) for key, name in [(key, key_bytes(key)) for key in keys]]
        for key, name, slot in found:
            if slot is None:
                rest[key] = name
            else:
                self._gather_value(key, slot.flags, slot.value, gathering)
        if rest:
            near.count_misses(rest.values())
        gathering.scattered = gathering.scattered or len(rest) < len(keys)
        return list(rest)

    def _get_round(self, asked: Sequence[K], gathering: Gathering[K, V], entries_max: int, deadline: float) -> list[K]:
        """Ask for all of them once; return the keys whose values no longer fitted into their reply."""
        full: list[K] = []
        asking = Asking(self._caller, Opcode.GET_MANY, encode_keys, gathering, deadline, entries_max)
        for part, items in asking.answers(asked):
            if self._loads_nothing and items.statuses.count(Status.OK) == len(part) and not _has_computed(items):
                gathering.done.update(zip(part, items.values, strict=True))
            else:
                self._gather(part, items, asking, full)
        return full

    def _gather(self, keys: Sequence[K], items: Items, asking: Asking[K], full: list[K]) -> None:
        """Take in one reply, entry by entry; `full` gets the keys whose values no longer fitted into it."""
        for key, status, flags, data in zip(keys, items.statuses, items.flags, items.values, strict=True):
            if status == Status.OK:
                self._gather_value(key, flags, data, asking.gathering)
            elif status == Status.REPLY_FULL:
                full.append(key)
            elif status != Status.NOT_FOUND:
                asking.entry_failed(key, status)

    def _get_alone(self, asked: Sequence[K], gathering: Gathering[K, V], deadline: float) -> None:
        """Ask for each by a GET of its own, whose reply holds nothing else."""
        for key in asked:
            name = key_bytes(key)
            try:
                status, values = self._caller.call(Opcode.GET, encode_key(name), deadline, name)
            except RcacheError as error:
                gathering.failed[key] = error
                continue
            if status == Status.OK:
                self._gather_value(key, values[0], values[2], gathering)

    def _gather_value(self, key: K, flags: int, data: bytes, gathering: Gathering[K, V]) -> None:
        try:
            if flags == COMPUTED_FLAGS:
                envelope = unpack(data)
                if envelope.kind is not Kind.VALUE:
                    return
                data, flags = envelope.data, envelope.flags
            gathering.done[key] = self._serializer.load(data, flags)
        except WrongFormat as error:
            gathering.failed[key] = error


def _has_computed(items: Items) -> bool:
    """Whether `get_or_compute` wrote one of them. Where all are unmarked, as most often, the flags are so many zero bytes."""
    return type(items.flags) is not bytes and COMPUTED_FLAGS in items.flags


def _distinct(keys: Iterable[K]) -> list[K]:
    """The keys, each once."""
    if isinstance(keys, (str, bytes)):
        raise TypeError(f"keys must be several, not the single {keys!r}; a str would be taken letter by letter")
    several = list(keys)
    return several if len(set(several)) == len(several) else list(dict.fromkeys(several))
