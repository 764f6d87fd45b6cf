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
from rcache_client.many import Frame, Gathering, Room, encode_keys, frames_of
from rcache_client.serializers import Serializer
from rcache_client.wire.grammar import CHANGE_ENTRY, ITEM_ENTRY
from rcache_client.wire.opcodes import MANY_KEYS_MAX, READ_OPCODES, TTL_MS_MAX, Opcode, Status
from rcache_client.wire.quick import Items, encode_key, encode_store

V = TypeVar("V")
R = TypeVar("R")
K = TypeVar("K", bound=Key)


class ManyCalls(Generic[V]):
    """Calls on many keys. `V` is the type of values, which the serializer gives."""

    _caller: Caller
    _serializer: Serializer[V]
    _loads_nothing: bool

    def get_many(self, keys: Iterable[K], *, budget: float | None = None) -> dict[K, V]:
        """The values of those keys that have one."""
        deadline = self._caller.deadline(budget)
        asked = _distinct(keys)
        gathering: Gathering[K, V] = Gathering("GET_MANY")
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
        gathering: Gathering[K, int] = Gathering("SET_MANY")
        if not keys:
            return gathering.result()
        frames = frames_of(keys, entries, self._room(Opcode.SET_MANY, MANY_KEYS_MAX, deadline))
        for part, changes in self._ask(Opcode.SET_MANY, frames, gathering, deadline):
            for key, (status, version) in zip(part, changes, strict=True):
                if status == Status.OK:
                    gathering.done[key] = version
                else:
                    gathering.failed[key] = _entry_error(Opcode.SET_MANY, status)
        return gathering.result()

    def delete_many(self, keys: Iterable[K], *, budget: float | None = None) -> dict[K, bool]:
        """Remove all values; return for each key whether there was one. Not atomic over the keys."""
        deadline = self._caller.deadline(budget)
        asked = _distinct(keys)
        gathering: Gathering[K, bool] = Gathering("DELETE_MANY")
        if not asked:
            return gathering.result()
        encoded = encode_keys(asked)  # before anything is sent
        frames = frames_of(asked, encoded, self._room(Opcode.DELETE_MANY, MANY_KEYS_MAX, deadline))
        for part, changes in self._ask(Opcode.DELETE_MANY, frames, gathering, deadline):
            for key, (status, _) in zip(part, changes, strict=True):
                if status in (Status.OK, Status.NOT_FOUND):
                    gathering.done[key] = status == Status.OK
                else:
                    gathering.failed[key] = _entry_error(Opcode.DELETE_MANY, status)
        return gathering.result()

    def _get_round(self, asked: Sequence[K], gathering: Gathering[K, V], entries_max: int, deadline: float) -> list[K]:
        """Ask for all of them once; return the keys whose values no longer fitted into their reply."""
        full: list[K] = []
        encoded = encode_keys(asked)  # before anything is sent
        frames = frames_of(asked, encoded, self._room(Opcode.GET_MANY, entries_max, deadline))
        for part, items in self._ask(Opcode.GET_MANY, frames, gathering, deadline):
            if self._loads_nothing and items.statuses.count(Status.OK) == len(part):
                gathering.done.update(zip(part, items.values, strict=True))
            else:
                self._gather(part, items, gathering, full)
        return full

    def _gather(self, keys: Sequence[K], items: Items, gathering: Gathering[K, V], full: list[K]) -> None:
        """Take in one reply, entry by entry; `full` gets the keys whose values no longer fitted into it."""
        for key, status, flags, data in zip(keys, items.statuses, items.flags, items.values, strict=True):
            if status == Status.OK:
                self._gather_value(key, flags, data, gathering)
            elif status == Status.REPLY_FULL:
                full.append(key)
            elif status != Status.NOT_FOUND:
                gathering.failed[key] = _entry_error(Opcode.GET_MANY, status)

    def _get_alone(self, asked: Sequence[K], gathering: Gathering[K, V], deadline: float) -> None:
        """Ask for each by a GET of its own, whose reply holds nothing else."""
        for key in asked:
            try:
                status, values = self._caller.call(Opcode.GET, encode_key(key_bytes(key)), deadline)
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

    def _room(self, opcode: Opcode, entries_max: int, deadline: float) -> Room:
        """What one frame may hold, so that neither it nor its reply is longer than what the servers take."""
        return Room.of(self._caller.frame_bytes_max(deadline), _REPLY_ENTRY_BYTES[opcode], entries_max)

    def _ask(
        self, opcode: Opcode, frames: Iterator[Frame[K]], gathering: Gathering[K, Any], deadline: float
    ) -> Iterator[tuple[Sequence[K], Any]]:
        """Send one frame after the other; yield the keys of each with what its reply says of them.

        After a frame that failed, but for a refusal of that very frame, the rest is not sent.
        """
        for keys, payload in frames:
            try:
                answer = self._one_frame(opcode, len(keys), payload, deadline)
            except RcacheError as error:
                gathering.frame_failed(keys, error)
                if isinstance(error, Refused):
                    continue
                for rest, _ in frames:
                    gathering.not_sent(rest, error)
                return
            gathering.frame_answered()
            yield keys, answer

    def _one_frame(self, opcode: Opcode, count: int, payload: bytes, deadline: float) -> Any:
        """What the reply to one frame says, of exactly as many entries as were sent."""
        _, answer = self._caller.call(opcode, payload, deadline)
        if len(answer) != count:
            error = ProtocolError(f"{count} keys were answered with {len(answer)} entries", operation=opcode.name)
            if opcode in READ_OPCODES:
                raise error
            raise OutcomeUnknown(error.what, operation=opcode.name) from error
        return answer


_REPLY_ENTRY_BYTES = {
    Opcode.GET_MANY: ITEM_ENTRY.bytes_min,
    Opcode.SET_MANY: CHANGE_ENTRY.bytes_min,
    Opcode.DELETE_MANY: CHANGE_ENTRY.bytes_min,
}
"""What each key takes up in a reply at the least."""


def _distinct(keys: Iterable[K]) -> list[K]:
    """The keys, each once."""
    if isinstance(keys, (str, bytes)):
        raise TypeError(f"keys must be several, not the single {keys!r}; a str would be taken letter by letter")
    several = list(keys)
    return several if len(set(several)) == len(several) else list(dict.fromkeys(several))


def _entry_error(opcode: Opcode, status: int) -> RcacheError:
    return error_of(status, "", "", opcode.name)
