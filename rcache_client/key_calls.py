"""The calls on one key: the part of `Client` that reads and writes values.

What it is: for each call the opcode, the payload and what its answer means to the user.
Which thread runs it: the caller's; every call blocks to its budget at most.
What it owns: nothing.
What it must not know: connections, retries.

Every call takes `budget`, in seconds, in place of the client's own, and raises `RcacheError`; a bad argument raises
`TypeError` or `ValueError` before anything is sent.
"""

from __future__ import annotations

from enum import Enum
from hashlib import blake2b
from typing import Any, Final, Generic, NamedTuple, TypeVar

from rcache_client.answers import request_layout
from rcache_client.arguments import COUNT_MAX, COUNT_MIN, VERSION_MAX, Key, key_bytes, whole_number
from rcache_client.budget import checked_seconds, ttl_in_ms
from rcache_client.calls import Caller
from rcache_client.envelope import COMPUTED_FLAGS, Kind, unpack
from rcache_client.errors import WrongFormat
from rcache_client.near_cache import NearReads
from rcache_client.serializers import Serializer
from rcache_client.wire.grammar import COUNT_BY, EXTEND, KEY_AND_TTL
from rcache_client.wire.opcodes import TTL_MS_MAX, VALUE_HASH_BYTES, Opcode
from rcache_client.wire.quick import encode_key, encode_store

_GET = int(Opcode.GET)
_SET = int(Opcode.SET)
"""Plain numbers: an Enum's are dearer to look up, and dearer to write into a frame."""

V = TypeVar("V")
D = TypeVar("D")


class _NotGiven(Enum):
    """Stands for an argument that was left out, where None is a value like any other."""

    TOKEN = 0


NOT_GIVEN: Final = _NotGiven.TOKEN


class ValueAndVersion(NamedTuple, Generic[V]):
    """A value with the version to hand to `cas`; (None, 0) where there is none."""

    value: V | None
    version: int


class ValueAndTtl(NamedTuple, Generic[V]):
    """A value, its version and the seconds it has left, None for ever; (None, 0, None) where there is no value."""

    value: V | None
    version: int
    ttl: float | None


class Inspection(NamedTuple):
    """What the server knows of an item beside its value; `ttl` in seconds, None where it never expires."""

    version: int
    flags: int
    ttl: float | None
    value_bytes: int


class KeyCalls(Generic[V]):
    """Calls on one key. `V` is the type of values, which the serializer gives."""

    _caller: Caller
    _serializer: Serializer[V]
    _loads_nothing: bool
    """Whether `_serializer` gives bytes back as they are, so that it need not be asked."""
    _near: NearReads | None
    """What is kept here of what was read; None for a client without a near cache."""

    def get(self, key: Key, default: D | None = None, *, budget: float | None = None) -> V | D | None:
        """The value, or `default` if there is none."""
        if self._near is not None:
            return self._get_near(self._near, key, default, budget)
        caller = self._caller
        name = key_bytes(key)
        status, values = caller.call(_GET, encode_key(name), caller.deadline(budget), name)
        if status:
            return default
        plain = self._loads_nothing and values[0] != COMPUTED_FLAGS
        return values[2] if plain else self._value_in(key, values[2], values[0], default)

    def get_with_version(self, key: Key, *, budget: float | None = None) -> ValueAndVersion[V]:
        """The value and its version; (None, 0) if there is none. Hand the version to `cas`.

        (None, version) while `get_or_compute` computes the first value, or where what it computed was None.
        """
        name = key_bytes(key)
        status, values = self._call(Opcode.GET, encode_key(name), name, budget)
        if status:
            return ValueAndVersion(None, 0)
        return ValueAndVersion(self._value_in(key, values[2], values[0], None), values[1])

    def get_with_ttl(self, key: Key, *, budget: float | None = None) -> ValueAndTtl[V]:
        """The value, its version and the seconds it has left (None: for ever); (None, 0, None) if there is none.

        Otherwise as `get_with_version`. The time is the item's, by the server's clock; at the end of it what `get_or_compute`
        wrote may be stale. Raises `UnknownOpcode` where the server is older than this call.
        """
        name = key_bytes(key)
        status, values = self._call(Opcode.GET_WITH_TTL, encode_key(name), name, budget)
        if status:
            return ValueAndTtl(None, 0, None)
        flags, version, left_ms, data = values
        return ValueAndTtl(self._value_in(key, data, flags, None), version, _seconds(left_ms))

    def get_and_touch(
        self, key: Key, ttl: float | None, default: D | None = None, *, budget: float | None = None
    ) -> V | D | None:
        """The value, giving it a new time to live (None: for ever); `default` if there is none."""
        name = key_bytes(key)
        payload = KEY_AND_TTL.encode(ttl_in_ms(ttl, TTL_MS_MAX), name)
        status, values = self._call(Opcode.GET_AND_TOUCH, payload, name, budget)
        return default if status else self._value_in(key, values[2], values[0], default)

    def set(self, key: Key, value: V, ttl: float | None = None, *, budget: float | None = None) -> int:
        """Store the value, for `ttl` seconds or for ever; return its version."""
        return self._store(_SET, key, value, ttl, budget)

    def add(self, key: Key, value: V, ttl: float | None = None, *, budget: float | None = None) -> int:
        """Store the value only if there is none; return its version, or 0 if there is one."""
        return self._store(Opcode.ADD, key, value, ttl, budget)

    def replace(self, key: Key, value: V, ttl: float | None = None, *, budget: float | None = None) -> int:
        """Store the value only if there is one already; return its version, or 0 if there is none."""
        return self._store(Opcode.REPLACE, key, value, ttl, budget)

    def cas(
        self,
        key: Key,
        value: V,
        *,
        version: int | None = None,
        previous: V | _NotGiven = NOT_GIVEN,
        ttl: float | None = None,
        budget: float | None = None,
    ) -> int:
        """Store the value only if the one there has not changed since; return its version, or 0 if it has.

        Exactly one of `version` (from `get_with_version`; 0: there must be none) and `previous` (the value that was read).
        By value, a change from A to B and back to A goes unnoticed; by version it does not.
        """
        if (version is None) == (previous is NOT_GIVEN):
            raise TypeError("cas takes exactly one of version= and previous=")
        data, flags = self._serializer.dump(value)
        name = key_bytes(key)
        tail = (flags, ttl_in_ms(ttl, TTL_MS_MAX), name, data)
        if version is not None:
            opcode, mark = Opcode.CAS_VERSION, whole_number("version", version, 0, VERSION_MAX)
            payload = request_layout(opcode).encode(mark, *tail)
        else:
            assert previous is not NOT_GIVEN
            opcode = Opcode.CAS_HASH
            payload = request_layout(opcode).encode(_value_hash(self._serializer.dump(previous)[0]), *tail)
        status, values = self._call(opcode, payload, name, budget)
        return 0 if status else int(values[0])

    def append(self, key: Key, value: V, *, budget: float | None = None) -> int:
        """Put bytes behind the value there; return the new version, or 0 if there is none. Its expiry stays."""
        return self._extend(Opcode.APPEND, key, value, budget)

    def prepend(self, key: Key, value: V, *, budget: float | None = None) -> int:
        """Put bytes before the value there; return the new version, or 0 if there is none. Its expiry stays."""
        return self._extend(Opcode.PREPEND, key, value, budget)

    def delete(self, key: Key, *, budget: float | None = None) -> bool:
        """Remove the value; return whether there was one."""
        name = key_bytes(key)
        status, _ = self._call(Opcode.DELETE, encode_key(name), name, budget)
        return not status

    def touch(self, key: Key, ttl: float | None = None, *, budget: float | None = None) -> bool:
        """Give the value a new time to live (None: for ever); return whether there was one."""
        name = key_bytes(key)
        status, _ = self._call(Opcode.TOUCH, KEY_AND_TTL.encode(ttl_in_ms(ttl, TTL_MS_MAX), name), name, budget)
        return not status

    def incr(
        self, key: Key, delta: int = 1, initial: int | None = None, ttl: float | None = None, *, budget: float | None = None
    ) -> int | None:
        """Add `delta` to the number there and return the sum.

        If there is none: store and return `initial`, with `ttl`; with no `initial` return None. Raises `NotANumber`, and
        `OutOfRange` where the sum leaves a signed 64-bit integer.
        """
        return self._count(Opcode.INCREMENT, key, delta, initial, ttl, budget)

    def decr(
        self, key: Key, delta: int = 1, initial: int | None = None, ttl: float | None = None, *, budget: float | None = None
    ) -> int | None:
        """Subtract `delta` from the number there; otherwise as `incr`."""
        return self._count(Opcode.DECREMENT, key, delta, initial, ttl, budget)

    def inspect(self, key: Key, *, budget: float | None = None) -> Inspection | None:
        """Version, flags, time left and length of the value; None if there is none."""
        name = key_bytes(key)
        status, values = self._call(Opcode.INSPECT, encode_key(name), name, budget)
        if status:
            return None
        version, flags, left_ms, value_bytes = values
        return Inspection(version, flags, _seconds(left_ms), value_bytes)

    def _call(self, opcode: Opcode, payload: bytes, name: bytes, budget: float | None) -> tuple[int, tuple[Any, ...]]:
        return self._caller.call(opcode, payload, self._caller.deadline(budget), name)

    def _get_near(self, near: NearReads, key: Key, default: D | None, budget: float | None) -> V | D | None:
        """As `get`, from what is kept here where that may be served."""
        name = key.encode() if type(key) is str else key if type(key) is bytes else key_bytes(key)
        if budget is not None:
            checked_seconds("budget", budget)
        slot = near.find(name)
        if slot is not None:
            return slot.value if self._loads_nothing else self._load(key, slot.value, slot.flags)  # type: ignore[return-value]
        status, flags, data = near.get(key_bytes(name), self._caller.deadline(budget))
        return default if status else self._value_in(key, data, flags, default)

    def _value_in(self, key: Key, data: bytes, flags: int, default: D | None) -> V | D | None:
        """The value that an item holds; `default` where `get_or_compute` wrote it and it holds none."""
        if flags != COMPUTED_FLAGS:
            return self._load(key, data, flags)
        try:
            envelope = unpack(data)
        except WrongFormat as error:
            error.operation = f"the value of {key!r}"
            raise
        return self._load(key, envelope.data, envelope.flags) if envelope.kind is Kind.VALUE else default

    def _load(self, key: Key, data: bytes, flags: int) -> V:
        try:
            return self._serializer.load(data, flags)
        except WrongFormat as error:
            error.operation = f"the value of {key!r}"
            raise

    def _store(self, opcode: int, key: Key, value: V, ttl: float | None, budget: float | None) -> int:
        caller = self._caller
        data, flags = self._serializer.dump(value)
        ttl_ms = 0 if ttl is None else ttl_in_ms(ttl, TTL_MS_MAX)
        name = key_bytes(key)
        payload = encode_store(flags, ttl_ms, name, data)
        status, values = caller.call(opcode, payload, caller.deadline(budget), name)
        return 0 if status else int(values[0])

    def _extend(self, opcode: Opcode, key: Key, value: V, budget: float | None) -> int:
        if not self._serializer.joinable:
            kind = type(self._serializer).__name__
            raise TypeError(f"two values of {kind} put together are not one; use cas to change a part of a value")
        data, _ = self._serializer.dump(value)
        name = key_bytes(key)
        status, values = self._call(opcode, EXTEND.encode(name, data), name, budget)
        return 0 if status else int(values[0])

    def _count(
        self, opcode: Opcode, key: Key, delta: int, initial: int | None, ttl: float | None, budget: float | None
    ) -> int | None:
        if initial is None and ttl is not None:
            raise ValueError(f"ttl={ttl!r} is for a counter that the call creates; give initial= too")
        start = 0 if initial is None else whole_number("initial", initial, COUNT_MIN, COUNT_MAX)
        step = whole_number("delta", delta, COUNT_MIN, COUNT_MAX)
        name = key_bytes(key)
        payload = COUNT_BY.encode(step, initial is not None, start, ttl_in_ms(ttl, TTL_MS_MAX), name)
        status, values = self._call(opcode, payload, name, budget)
        return None if status else int(values[0])


def _seconds(left_ms: int) -> float | None:
    """The time an item has left; None: it never expires."""
    return left_ms / 1000 if left_ms else None


def _value_hash(data: bytes) -> bytes:
    """What CAS_HASH compares: BLAKE2b of 128 bits over the value's bytes."""
    return blake2b(data, digest_size=VALUE_HASH_BYTES).digest()
