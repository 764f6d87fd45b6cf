"""The calls on many keys at once: the part of `Client` that cuts them into frames and gathers the results.

What it is: for each call how an entry is asked for and what its own status means to the user.
Which thread runs it: the caller's; a call blocks to its budget at most, over all its frames.
What it owns: nothing.
What it must not know: connections, retries.

Nothing is hidden: if all keys went well the result is returned; if no frame was answered its error is raised; in all other
cases `SomeKeysFailed` holds the results of the keys that went well and the error of each that did not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

from rcache_client.arguments import Key, key_bytes
from rcache_client.budget import ttl_in_ms
from rcache_client.calls import Caller
from rcache_client.errors import OutcomeUnknown, ProtocolError, RcacheError, Refused, WrongFormat, error_of
from rcache_client.many import Gathering, parts
from rcache_client.serializers import Serializer
from rcache_client.wire.grammar import CHANGE_ENTRY, ITEM_ENTRY, KEY_ONLY, STORE, Group
from rcache_client.wire.opcodes import MANY_KEYS_MAX, READ_OPCODES, TTL_MS_MAX, Opcode, Status

V = TypeVar("V")
R = TypeVar("R")
K = TypeVar("K", bound=Key)


class ManyCalls(Generic[V]):
    """Calls on many keys. `V` is the type of values, which the serializer gives."""

    _caller: Caller
    _serializer: Serializer[V]

    def get_many(self, keys: Iterable[K], *, budget: float | None = None) -> dict[K, V]:
        """The values of those keys that have one."""
        deadline = self._caller.deadline(budget)
        asked = _key_entries(keys)
        gathering: Gathering[K, V] = Gathering("GET_MANY")
        entries_max = MANY_KEYS_MAX
        while asked:
            full = self._get_round(asked, gathering, entries_max, deadline)
            if len(full) == len(asked):  # not one fitted: they are too large to share a reply
                self._get_alone(asked, gathering, deadline)
                break
            entries_max = max(1, len(asked) - len(full))  # no more at once than what fitted in this round
            asked = {key: asked[key] for key in full}
        return gathering.result()

    def set_many(self, mapping: Mapping[K, V], ttl: float | None = None, *, budget: float | None = None) -> dict[K, int]:
        """Store all values, each for `ttl` seconds or for ever; return each key's version. Not atomic over the keys."""
        deadline = self._caller.deadline(budget)
        ttl_ms = ttl_in_ms(ttl, TTL_MS_MAX)
        asked = {}
        for key, value in mapping.items():
            data, flags = self._serializer.dump(value)
            asked[key] = STORE.encode(flags, ttl_ms, key_bytes(key), data)
        gathering: Gathering[K, int] = Gathering("SET_MANY")
        for key, (status, version) in self._entries(Opcode.SET_MANY, asked, gathering, MANY_KEYS_MAX, deadline):
            if status == Status.OK:
                gathering.done[key] = version
            else:
                gathering.failed[key] = _entry_error(Opcode.SET_MANY, status)
        return gathering.result()

    def delete_many(self, keys: Iterable[K], *, budget: float | None = None) -> dict[K, bool]:
        """Remove all values; return for each key whether there was one. Not atomic over the keys."""
        deadline = self._caller.deadline(budget)
        asked = _key_entries(keys)
        gathering: Gathering[K, bool] = Gathering("DELETE_MANY")
        for key, (status, _) in self._entries(Opcode.DELETE_MANY, asked, gathering, MANY_KEYS_MAX, deadline):
            if status in (Status.OK, Status.NOT_FOUND):
                gathering.done[key] = status == Status.OK
            else:
                gathering.failed[key] = _entry_error(Opcode.DELETE_MANY, status)
        return gathering.result()

    def _get_round(self, asked: Mapping[K, bytes], gathering: Gathering[K, V], entries_max: int, deadline: float) -> list[K]:
        """Ask for all of them once; return the keys whose values no longer fitted into their reply."""
        full = []
        for key, (status, flags, _, data) in self._entries(Opcode.GET_MANY, asked, gathering, entries_max, deadline):
            if status == Status.OK:
                self._gather_value(key, flags, data, gathering)
            elif status == Status.REPLY_FULL:
                full.append(key)
            elif status != Status.NOT_FOUND:
                gathering.failed[key] = _entry_error(Opcode.GET_MANY, status)
        return full

    def _get_alone(self, asked: Mapping[K, bytes], gathering: Gathering[K, V], deadline: float) -> None:
        """Ask for each by a GET of its own, whose reply holds nothing else."""
        for key, payload in asked.items():
            try:
                status, values = self._caller.call(Opcode.GET, payload, deadline)
            except RcacheError as error:
                gathering.failed[key] = error
                continue
            if status == Status.OK:
                self._gather_value(key, values[0], values[2], gathering)

    def _gather_value(self, key: K, flags: int, data: bytes, gathering: Gathering[K, V]) -> None:
        try:
            gathering.done[key] = self._serializer.load(data, flags)
        except WrongFormat as error:
            gathering.failed[key] = error

    def _entries(
        self, opcode: Opcode, asked: Mapping[K, bytes], gathering: Gathering[K, Any], entries_max: int, deadline: float
    ) -> Iterator[tuple[K, tuple[Any, ...]]]:
        """Send all entries in as many frames as they need; yield each key with its part of a reply.

        After a frame that failed, but for a refusal of that very frame, the rest is not sent.
        """
        if not asked:
            return
        keys = list(asked)
        payloads = list(asked.values())
        frame_bytes_max = self._caller.frame_bytes_max(deadline)
        for part in parts(payloads, frame_bytes_max, _REPLY_ENTRY_BYTES[opcode], entries_max):
            try:
                entries = self._frame(opcode, payloads[part], deadline)
            except RcacheError as error:
                gathering.frame_failed(keys[part], error)
                if isinstance(error, Refused):
                    continue
                gathering.not_sent(keys[part.stop :], error)
                return
            gathering.frame_answered()
            yield from zip(keys[part], entries, strict=True)

    def _frame(self, opcode: Opcode, payloads: Sequence[bytes], deadline: float) -> list[tuple[Any, ...]]:
        """One frame's reply entries, exactly one for each entry that was sent."""
        _, entries = self._caller.call(opcode, Group.join(payloads), deadline)
        if len(entries) != len(payloads):
            error = ProtocolError(f"{len(payloads)} keys were answered with {len(entries)} entries", operation=opcode.name)
            if opcode in READ_OPCODES:
                raise error
            raise OutcomeUnknown(error.what, operation=opcode.name) from error
        return list(entries)


_REPLY_ENTRY_BYTES = {
    Opcode.GET_MANY: ITEM_ENTRY.bytes_min,
    Opcode.SET_MANY: CHANGE_ENTRY.bytes_min,
    Opcode.DELETE_MANY: CHANGE_ENTRY.bytes_min,
}
"""What each key takes up in a reply at the least."""


def _key_entries(keys: Iterable[K]) -> dict[K, bytes]:
    if isinstance(keys, (str, bytes)):
        raise TypeError(f"keys must be several, not the single {keys!r}; a str would be taken letter by letter")
    return {key: KEY_ONLY.encode(key_bytes(key)) for key in keys}


def _entry_error(opcode: Opcode, status: int) -> RcacheError:
    return error_of(status, "", "", opcode.name)
