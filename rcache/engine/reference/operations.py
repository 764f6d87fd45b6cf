"""The data opcodes: from a request's payload to the answer's, by way of the store.

What it is: one function for each opcode. Each decodes its payload by the grammar, says what is to be decided, and encodes
the answer.
Which thread runs it: workers. Blocks as `Changes.change` does, never on a socket.
What it owns: nothing. What it must not know: connections; in which order answers leave.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from hashlib import blake2b
from typing import Any, NamedTuple

from rcache.engine.change_stream import NO_WAIT, Wait
from rcache.engine.contract import EngineConfig, RequestRefused
from rcache.engine.reference.buckets import Item
from rcache.engine.reference.change import REMOVE, Changes, Decision, NewItem, Refusal
from rcache.engine.reference.store import Changed
from rcache.records.record import Cause
from rcache_client.wire.frames import HEADER_BYTES, Request
from rcache_client.wire.grammar import (
    CHANGE_ENTRY,
    COUNTER,
    EMPTY,
    INSPECTION,
    ITEM,
    ITEM_AND_TIME_LEFT,
    ITEM_ENTRY,
    REASON,
    REQUESTS,
    VERSION_REPLY,
    Group,
    Layout,
)
from rcache_client.wire.opcodes import VALUE_HASH_BYTES, Opcode, Status

NUMBER_TEXT_BYTES_MAX = 20
"""A sign and 19 digits: the longest text of a signed 64-bit number."""
NUMBER_MIN, NUMBER_MAX = -(1 << 63), (1 << 63) - 1

BUDGET_NS_MAX = 60 * 10**9
"""However long a caller says it waits: a worker is held no longer by one request. A store that cannot take a write for a minute
has larger problems than this caller."""

HASH_TRIES_MAX = 8
"""How often check-and-set by hash starts over because the item changed while its value was being hashed."""


class Answer(NamedTuple):
    """An answer not yet sent: status, payload, and what must be committed before it may leave."""

    status: int
    payload: bytes
    wait: Wait


class Call(NamedTuple):
    """A request under way: its deadline, by time.monotonic_ns."""

    opcode: int
    payload: bytes
    deadline_ns: int


def refused(refusal: RequestRefused) -> Answer:
    """The answer to a request that was not executed."""
    status = refusal.status
    if status == Status.NOT_FOUND:
        payload = EMPTY.encode()
    elif status in (Status.EXISTS, Status.CHANGED):
        payload = VERSION_REPLY.encode(refusal.version)
    else:
        payload = REASON.encode(refusal.reason)
    return Answer(status, payload, refusal.wait)


class Operations:
    """Executes data requests on a store."""

    def __init__(self, config: EngineConfig, changes: Changes) -> None:
        self._changes = changes
        self._value_bytes_max = config.value_bytes_max
        self._reply_bytes_max = config.frame_bytes_max - HEADER_BYTES
        self._default_budget_ns = int(config.default_budget_s * 1e9)
        self._run: dict[int, Callable[[Call], Answer]] = {
            Opcode.GET: self._get,
            Opcode.GET_AND_TOUCH: self._get_and_touch,
            Opcode.SET: self._set,
            Opcode.ADD: self._add,
            Opcode.REPLACE: self._replace,
            Opcode.DELETE: self._delete,
            Opcode.TOUCH: self._touch,
            Opcode.INCREMENT: self._count,
            Opcode.DECREMENT: self._count,
            Opcode.APPEND: self._extend,
            Opcode.PREPEND: self._extend,
            Opcode.CAS_VERSION: self._cas_version,
            Opcode.CAS_HASH: self._cas_hash,
            Opcode.INSPECT: self._inspect,
            Opcode.GET_WITH_TTL: self._get_with_ttl,
            Opcode.GET_MANY: self._get_many,
            Opcode.SET_MANY: self._set_many,
            Opcode.DELETE_MANY: self._delete_many,
        }

    def deadline_ns(self, request: Request, received_ns: int) -> int:
        """When the caller of a request received at `received_ns` stops waiting."""
        return received_ns + min(request.budget_ms * 1_000_000 or self._default_budget_ns, BUDGET_NS_MAX)

    def run(self, request: Request, received_ns: int) -> Answer:
        """Execute one data request. Raises `BadPayload`; everything else is in the answer."""
        deadline_ns = self.deadline_ns(request, received_ns)
        try:
            if time.monotonic_ns() > deadline_ns:
                raise RequestRefused(Status.DEADLINE_PASSED, "the caller's time was up before the request's turn came")
            return self._run[request.opcode](Call(request.opcode, request.payload, deadline_ns))
        except RequestRefused as refusal:
            return refused(refusal)

    # --- reading

    def _get(self, call: Call) -> Answer:
        (key,) = _decode(call)
        item, wait, _ = self._changes.read(key, call.deadline_ns)
        if item is None:
            return Answer(Status.NOT_FOUND, b"", wait)
        return Answer(Status.OK, ITEM.encode(item.flags, item.version, item.value), wait)

    def _get_with_ttl(self, call: Call) -> Answer:
        (key,) = _decode(call)
        item, wait, now_ms = self._changes.read(key, call.deadline_ns)
        if item is None:
            return Answer(Status.NOT_FOUND, b"", wait)
        left_ms = _left_ms(item, now_ms)
        return Answer(Status.OK, ITEM_AND_TIME_LEFT.encode(item.flags, item.version, left_ms, item.value), wait)

    def _inspect(self, call: Call) -> Answer:
        (key,) = _decode(call)
        item, wait, now_ms = self._changes.read(key, call.deadline_ns, use=False)
        if item is None:
            return Answer(Status.NOT_FOUND, b"", wait)
        left_ms = _left_ms(item, now_ms)
        return Answer(Status.OK, INSPECTION.encode(item.version, item.flags, left_ms, len(item.value)), wait)

    def _get_and_touch(self, call: Call) -> Answer:
        ttl_ms, key = _decode(call)
        changed = self._retouch(key, ttl_ms, call.deadline_ns)
        item = changed.item
        assert item is not None
        return Answer(Status.OK, ITEM.encode(item.flags, item.version, item.value), changed.wait)

    # --- writing one key

    def _set(self, call: Call) -> Answer:
        flags, ttl_ms, key, value = _decode(call)
        return _version(self._store_value(key, flags, ttl_ms, value, call.deadline_ns))

    def _add(self, call: Call) -> Answer:
        flags, ttl_ms, key, value = _decode(call)
        return _version(
            self._store_value(key, flags, ttl_ms, value, call.deadline_ns, lambda item: Status.EXISTS if item else None)
        )

    def _replace(self, call: Call) -> Answer:
        flags, ttl_ms, key, value = _decode(call)
        return _version(
            self._store_value(key, flags, ttl_ms, value, call.deadline_ns, lambda item: None if item else Status.NOT_FOUND)
        )

    def _cas_version(self, call: Call) -> Answer:
        version, flags, ttl_ms, key, value = _decode(call)

        def unless(item: Item | None) -> Status | None:
            held = item.version if item else 0
            return None if held == version else Status.CHANGED

        return _version(self._store_value(key, flags, ttl_ms, value, call.deadline_ns, unless))

    def _cas_hash(self, call: Call) -> Answer:
        """The value is hashed outside the lock; its version stands for it under the lock."""
        value_hash, flags, ttl_ms, key, value = _decode(call)
        for _ in range(HASH_TRIES_MAX):
            seen = self._changes.look(key)
            fits = seen is not None and blake2b(seen.value, digest_size=VALUE_HASH_BYTES).digest() == value_hash
            moved = False

            def unless(item: Item | None, seen: Item | None = seen, fits: bool = fits) -> Status | None:
                nonlocal moved
                moved = item is not None and item is not seen
                return None if fits and item is seen else Status.CHANGED

            try:
                return _version(self._store_value(key, flags, ttl_ms, value, call.deadline_ns, unless))
            except RequestRefused as refusal:
                if not (refusal.status is Status.CHANGED and moved):
                    raise
        raise RequestRefused(Status.BUSY, "the value kept changing while it was compared; try again")

    def _store_value(
        self,
        key: bytes,
        flags: int,
        ttl_ms: int,
        value: bytes,
        deadline_ns: int,
        unless: Callable[[Item | None], Status | None] | None = None,
    ) -> Changed:
        """Store a whole value; `unless` names the status that stands in the way, given the live item."""
        self._demand_size(len(value))

        def decide(item: Item | None, now_ms: int) -> Decision:
            status = unless(item) if unless else None
            return Refusal(status) if status else NewItem(value, flags, _expiry(now_ms, ttl_ms), Cause.SET)

        return self._changes.change(key, len(value), deadline_ns, decide)

    def _delete(self, call: Call) -> Answer:
        (key,) = _decode(call)
        return _version(self._changes.change(key, 0, call.deadline_ns, _decide_delete))

    def _touch(self, call: Call) -> Answer:
        ttl_ms, key = _decode(call)
        return _version(self._retouch(key, ttl_ms, call.deadline_ns))

    def _retouch(self, key: bytes, ttl_ms: int, deadline_ns: int) -> Changed:
        def decide(item: Item | None, now_ms: int) -> Decision:
            if item is None:
                return Refusal(Status.NOT_FOUND)
            return NewItem(item.value, item.flags, _expiry(now_ms, ttl_ms), Cause.TOUCHED)

        seen = self._changes.look(key)
        return self._changes.change(key, len(seen.value) if seen else 0, deadline_ns, decide)

    def _count(self, call: Call) -> Answer:
        delta, create, initial, ttl_ms, key = _decode(call)
        if call.opcode == Opcode.DECREMENT:
            delta = -delta

        def decide(item: Item | None, now_ms: int) -> Decision:
            if item is None:
                if not create:
                    return Refusal(Status.NOT_FOUND)
                return NewItem(str(initial).encode(), 0, _expiry(now_ms, ttl_ms), Cause.COUNTED)
            number = parse_number(item.value)
            if number is None:
                return Refusal(Status.NOT_A_NUMBER, "the value is not a signed 64-bit number in decimal")
            if not NUMBER_MIN <= number + delta <= NUMBER_MAX:
                return Refusal(Status.OUT_OF_RANGE, f"{number} and {delta} add up to more than 64 bits hold")
            return NewItem(str(number + delta).encode(), item.flags, item.expires_at_ms, Cause.COUNTED)

        changed = self._changes.change(key, NUMBER_TEXT_BYTES_MAX, call.deadline_ns, decide)
        assert changed.item is not None
        return Answer(Status.OK, COUNTER.encode(int(changed.item.value), changed.version), changed.wait)

    def _extend(self, call: Call) -> Answer:
        key, more = _decode(call)
        self._demand_size(len(more))
        behind = call.opcode == Opcode.APPEND
        value_bytes_max = self._value_bytes_max

        def decide(item: Item | None, _now_ms: int) -> Decision:
            if item is None:
                return Refusal(Status.NOT_FOUND)
            if len(item.value) + len(more) > value_bytes_max:
                return Refusal(Status.TOO_LARGE, f"the value would pass {value_bytes_max} bytes")
            value = item.value + more if behind else more + item.value
            return NewItem(value, item.flags, item.expires_at_ms, Cause.EXTENDED)

        seen = self._changes.look(key)
        room = len(more) + (len(seen.value) if seen else 0)
        return _version(self._changes.change(key, min(room, value_bytes_max), call.deadline_ns, decide))

    def _demand_size(self, value_bytes: int) -> None:
        if value_bytes > self._value_bytes_max:
            raise RequestRefused(Status.TOO_LARGE, f"a value of {value_bytes} bytes; at most {self._value_bytes_max} are taken")

    # --- many keys: each on its own, with a status of its own

    def _get_many(self, call: Call) -> Answer:
        entries, wait = [], NO_WAIT
        keys = _decode_group(call)
        room = self._demand_reply_room(len(keys), ITEM_ENTRY)
        for (key,) in keys:
            try:
                item, reached, _ = self._changes.read(key, call.deadline_ns)
            except RequestRefused as refusal:
                entries.append(ITEM_ENTRY.encode(refusal.status, 0, 0, b""))
                continue
            wait = wait.join(reached)
            if item is None:
                entries.append(ITEM_ENTRY.encode(Status.NOT_FOUND, 0, 0, b""))
            elif len(item.value) > room:
                entries.append(ITEM_ENTRY.encode(Status.REPLY_FULL, 0, 0, b""))
            else:
                room -= len(item.value)
                entries.append(ITEM_ENTRY.encode(Status.OK, item.flags, item.version, item.value))
        return Answer(Status.OK, Group.join(entries), wait)

    def _set_many(self, call: Call) -> Answer:
        def one(entry: tuple[Any, ...]) -> Changed:
            flags, ttl_ms, key, value = entry
            return self._store_value(key, flags, ttl_ms, value, call.deadline_ns)

        return self._change_many(call, one)

    def _delete_many(self, call: Call) -> Answer:
        def one(entry: tuple[Any, ...]) -> Changed:
            return self._changes.change(entry[0], 0, call.deadline_ns, _decide_delete)

        return self._change_many(call, one)

    def _demand_reply_room(self, count: int, entry: Layout) -> int:
        """What a reply has left for values beside the fixed parts of `count` entries, in bytes."""
        room = self._reply_bytes_max - Group.bytes_min - count * entry.bytes_min
        if room < 0:
            raise RequestRefused(Status.TOO_LARGE, f"{count} keys are more than one reply holds; ask in several requests")
        return room

    def _change_many(self, call: Call, one: Callable[[tuple[Any, ...]], Changed]) -> Answer:
        entries, wait = [], NO_WAIT
        keys = _decode_group(call)
        self._demand_reply_room(len(keys), CHANGE_ENTRY)
        for entry in keys:
            try:
                changed = one(entry)
                wait = wait.join(changed.wait)
                entries.append(CHANGE_ENTRY.encode(Status.OK, changed.version))
            except RequestRefused as refusal:
                wait = wait.join(refusal.wait)
                entries.append(CHANGE_ENTRY.encode(refusal.status, refusal.version))
        return Answer(Status.OK, Group.join(entries), wait)


def parse_number(value: bytes) -> int | None:
    """A value as a signed 64-bit number, written as INCREMENT writes it (no leading zeros, space or plus), or None."""
    digits = value[1:] if value[:1] == b"-" else value
    if not digits.isdigit() or len(value) > NUMBER_TEXT_BYTES_MAX:
        return None
    number = int(value)
    return number if NUMBER_MIN <= number <= NUMBER_MAX and str(number).encode() == value else None


def _decide_delete(item: Item | None, _now_ms: int) -> Decision:
    return REMOVE if item is not None else Refusal(Status.NOT_FOUND)


def _expiry(now_ms: int, ttl_ms: int) -> int:
    """A relative time to live made absolute; 0 stays 0: never."""
    return now_ms + ttl_ms if ttl_ms else 0


def _left_ms(item: Item, now_ms: int) -> int:
    """What is left of a live item's time; 0: it never expires, which one about to expire must not be told as."""
    return max(1, item.expires_at_ms - now_ms) if item.expires_at_ms else 0


def _version(changed: Changed) -> Answer:
    return Answer(Status.OK, VERSION_REPLY.encode(changed.version), changed.wait)


def _decode(call: Call) -> tuple[Any, ...]:
    layout = REQUESTS[call.opcode]
    assert isinstance(layout, Layout)
    return layout.decode(call.payload)


def _decode_group(call: Call) -> list[tuple[Any, ...]]:
    group = REQUESTS[call.opcode]
    assert isinstance(group, Group)
    return group.decode(call.payload)
