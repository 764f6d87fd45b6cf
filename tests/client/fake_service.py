"""A service in a dictionary: what a correct server would answer to each opcode, without threads, clocks or files.

Which thread runs it: any; one lock around everything.
What it must not know: sockets.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import blake2b
from threading import Lock
from typing import Any

from rcache_client.wire.frames import HEADER_BYTES, Request
from rcache_client.wire.grammar import CHANGE_ENTRY, ITEM_ENTRY, REQUESTS, Group, reply_layout
from rcache_client.wire.opcodes import Opcode, PersistMode, Status

INT64_MAX = (1 << 63) - 1

Answer = tuple[int, bytes]


@dataclass(frozen=True)
class Item:
    value: bytes
    flags: int
    ttl_ms: int
    version: int


def answer(opcode: int, status: int, *values: Any) -> Answer:
    return status, reply_layout(opcode, status).encode(*values)


class FakeService:
    """Answers data and control requests. `value_bytes_max` and `frame_bytes_max` are enforced as a server's are."""

    def __init__(self, value_bytes_max: int = 1 << 20, frame_bytes_max: int = 16 << 20) -> None:
        self.items: dict[bytes, Item] = {}
        self.value_bytes_max = value_bytes_max
        self.frame_bytes_max = frame_bytes_max
        self.persist = PersistMode.OFF
        self._version = 1 << 40
        self._lock = Lock()
        self._by_opcode: dict[int, Callable[..., Answer]] = {
            Opcode.PING: lambda: answer(Opcode.PING, Status.OK),
            Opcode.GET: self._get,
            Opcode.GET_AND_TOUCH: self._get_and_touch,
            Opcode.SET: lambda *a: self._store(Opcode.SET, *a),
            Opcode.ADD: lambda *a: self._store(Opcode.ADD, *a),
            Opcode.REPLACE: lambda *a: self._store(Opcode.REPLACE, *a),
            Opcode.DELETE: self._delete,
            Opcode.TOUCH: self._touch,
            Opcode.INCREMENT: lambda *a: self._count(Opcode.INCREMENT, 1, *a),
            Opcode.DECREMENT: lambda *a: self._count(Opcode.DECREMENT, -1, *a),
            Opcode.APPEND: lambda k, v: self._extend(Opcode.APPEND, k, v),
            Opcode.PREPEND: lambda k, v: self._extend(Opcode.PREPEND, k, v),
            Opcode.CAS_VERSION: self._cas_version,
            Opcode.CAS_HASH: self._cas_hash,
            Opcode.INSPECT: self._inspect,
            Opcode.GET_WITH_TTL: self._get_with_ttl,
            Opcode.FLUSH: self._flush,
            Opcode.STATS: self._stats,
            Opcode.PERSIST: self._persist,
        }

    def answer(self, request: Request) -> Answer:
        """The (status, payload) for a request whose payload is well formed; a test fails if it is not."""
        with self._lock:
            values = REQUESTS[request.opcode].decode(request.payload)
            if request.opcode == Opcode.GET_MANY:
                return self._get_many(values)
            if request.opcode in (Opcode.SET_MANY, Opcode.DELETE_MANY):
                return self._change_many(request.opcode, values)
            return self._by_opcode[request.opcode](*values)

    def _put(self, key: bytes, value: bytes, flags: int, ttl_ms: int) -> int:
        self._version += 1
        self.items[key] = Item(value, flags, ttl_ms, self._version)
        return self._version

    def _get(self, key: bytes) -> Answer:
        item = self.items.get(key)
        if item is None:
            return answer(Opcode.GET, Status.NOT_FOUND)
        return answer(Opcode.GET, Status.OK, item.flags, item.version, item.value)

    def _get_and_touch(self, ttl_ms: int, key: bytes) -> Answer:
        self._touch(ttl_ms, key)
        return self._get(key)

    def _store(self, opcode: int, flags: int, ttl_ms: int, key: bytes, value: bytes) -> Answer:
        if len(value) > self.value_bytes_max:
            return answer(opcode, Status.TOO_LARGE, f"{len(value)} bytes")
        if opcode == Opcode.ADD and key in self.items:
            return answer(opcode, Status.EXISTS, self.items[key].version)
        if opcode == Opcode.REPLACE and key not in self.items:
            return answer(opcode, Status.NOT_FOUND)
        return answer(opcode, Status.OK, self._put(key, value, flags, ttl_ms))

    def _delete(self, key: bytes) -> Answer:
        if self.items.pop(key, None) is None:
            return answer(Opcode.DELETE, Status.NOT_FOUND)
        self._version += 1
        return answer(Opcode.DELETE, Status.OK, self._version)

    def _touch(self, ttl_ms: int, key: bytes) -> Answer:
        if key not in self.items:
            return answer(Opcode.TOUCH, Status.NOT_FOUND)
        item = self.items[key]
        return answer(Opcode.TOUCH, Status.OK, self._put(key, item.value, item.flags, ttl_ms))

    def _count(self, opcode: int, sign: int, delta: int, create: int, initial: int, ttl_ms: int, key: bytes) -> Answer:
        item = self.items.get(key)
        if item is None:
            if not create:
                return answer(opcode, Status.NOT_FOUND)
            return answer(opcode, Status.OK, initial, self._put(key, b"%d" % initial, 0, ttl_ms))
        if not item.value.lstrip(b"-").isdigit():
            return answer(opcode, Status.NOT_A_NUMBER, "not a number")
        total = int(item.value) + sign * delta
        if not -INT64_MAX - 1 <= total <= INT64_MAX:
            return answer(opcode, Status.OUT_OF_RANGE, f"{total}")
        return answer(opcode, Status.OK, total, self._put(key, b"%d" % total, item.flags, item.ttl_ms))

    def _extend(self, opcode: int, key: bytes, piece: bytes) -> Answer:
        item = self.items.get(key)
        if item is None:
            return answer(opcode, Status.NOT_FOUND)
        value = item.value + piece if opcode == Opcode.APPEND else piece + item.value
        version = self._put(key, value, item.flags, item.ttl_ms)
        return answer(opcode, Status.OK, version)

    def _cas_version(self, version: int, flags: int, ttl_ms: int, key: bytes, value: bytes) -> Answer:
        item = self.items.get(key)
        current = item.version if item else 0
        if current != version:
            return answer(Opcode.CAS_VERSION, Status.CHANGED, current)
        return answer(Opcode.CAS_VERSION, Status.OK, self._put(key, value, flags, ttl_ms))

    def _cas_hash(self, expected: bytes, flags: int, ttl_ms: int, key: bytes, value: bytes) -> Answer:
        item = self.items.get(key)
        if item is None or blake2b(item.value, digest_size=16).digest() != expected:
            return answer(Opcode.CAS_HASH, Status.CHANGED, item.version if item else 0)
        return answer(Opcode.CAS_HASH, Status.OK, self._put(key, value, flags, ttl_ms))

    def _inspect(self, key: bytes) -> Answer:
        item = self.items.get(key)
        if item is None:
            return answer(Opcode.INSPECT, Status.NOT_FOUND)
        return answer(Opcode.INSPECT, Status.OK, item.version, item.flags, item.ttl_ms, len(item.value))

    def _get_with_ttl(self, key: bytes) -> Answer:
        item = self.items.get(key)
        if item is None:
            return answer(Opcode.GET_WITH_TTL, Status.NOT_FOUND)
        return answer(Opcode.GET_WITH_TTL, Status.OK, item.flags, item.version, item.ttl_ms, item.value)

    def _get_many(self, entries: list[tuple[bytes]]) -> Answer:
        parts, room = [], self.frame_bytes_max - HEADER_BYTES - 2 - len(entries) * ITEM_ENTRY.bytes_min
        for (key,) in entries:
            item = self.items.get(key)
            if item is None:
                parts.append(ITEM_ENTRY.encode(Status.NOT_FOUND, 0, 0, b""))
            elif len(item.value) > room:
                parts.append(ITEM_ENTRY.encode(Status.REPLY_FULL, 0, 0, b""))
            else:
                room -= len(item.value)
                parts.append(ITEM_ENTRY.encode(Status.OK, item.flags, item.version, item.value))
        return Status.OK, Group.join(parts)

    def _change_many(self, opcode: int, entries: list[tuple[Any, ...]]) -> Answer:
        one = Opcode.SET if opcode == Opcode.SET_MANY else Opcode.DELETE
        parts = []
        for entry in entries:
            status, payload = self._by_opcode[one](*entry)
            version = reply_layout(one, status).decode(payload)[0] if status == Status.OK else 0
            parts.append(CHANGE_ENTRY.encode(status, version))
        return Status.OK, Group.join(parts)

    def _flush(self) -> Answer:
        count = len(self.items)
        self.items.clear()
        return answer(Opcode.FLUSH, Status.OK, count)

    def _stats(self, section: str) -> Answer:
        sections = {"items": {"count": len(self.items)}, "memory": {"limit": 1}}
        chosen = {section: sections[section]} if section else sections
        return answer(Opcode.STATS, Status.OK, json.dumps(chosen).encode())

    def _persist(self, mode: int) -> Answer:
        if mode != PersistMode.ASK:
            self.persist = PersistMode(mode)
        return answer(Opcode.PERSIST, Status.OK, self.persist, "/var/lib/rcache/one.rcs")

    def age(self, key: bytes, ttl_ms: int) -> None:
        """Pretend that time has passed: only this much is left to the item."""
        self.items[key] = replace(self.items[key], ttl_ms=ttl_ms)
