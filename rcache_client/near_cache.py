"""The near cache: values that one client has read, kept in its own memory and served from there while they are surely good.

What it is: `NearCache`, its options and figures, as a user makes and sees it; `NearCaller`, past which none of the client's
requests goes unnoticed; `NearReads`, the reads that fill it.
Which thread runs it: the caller's. The feeds that tell it of changes have threads of their own (`near_feed`).
What it owns: the slots and the feeds of one client.
What it must not know: serializers; how a request is carried out.

What a reader is promised (`near_slots` says by what it is kept):
1. *Bounded staleness.* A write that was acknowledged, to anybody, more than `max_staleness` seconds before a `get` began is
   seen by that `get`, or something newer; whatever became of nodes, links and this process meanwhile.
2. *Read your writes.* What a call of this client wrote, every call that begins after it has ended sees, or something newer. So
   it is after a call whose outcome is unknown, too: what the servers have when it ends is seen, or something newer.
3. *Monotonic reads.* Of two calls of this client, by whatever threads, the one that begins after the other has ended does not
   see an older value of a key.
4. A miss is not kept. A value is not served after its time to live has ended at the servers, nor after `max_age`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from time import CLOCK_BOOTTIME, clock_gettime, monotonic
from typing import Any
from zlib import crc32

from rcache_client.arguments import Key, key_bytes, whole_number
from rcache_client.budget import checked_seconds
from rcache_client.calls import Answer, Caller
from rcache_client.envelope import COMPUTED_FLAGS, Kind, unpack
from rcache_client.errors import UnknownOpcode, WrongFormat
from rcache_client.near_feed import NearFeed
from rcache_client.near_slots import Kept, NearCacheStats, Slots
from rcache_client.routing import Router
from rcache_client.servers import Doors
from rcache_client.wire.opcodes import Opcode
from rcache_client.wire.quick import encode_key

MAX_BYTES = 64 << 20
MAX_BYTES_MIN = 1 << 20
"""Less holds a handful of values of a size that caches have."""
MAX_BYTES_CEILING = 1 << 40

MAX_AGE = 60.0

MAX_STALENESS = 1.0
"""Seconds. As long as a lease: a node that does not answer for that long is about to be replaced anyhow."""

MAX_STALENESS_MIN = 0.1
"""Seconds. A node makes some 50 proofs a second at most; less would not be live all the time."""

TICK_MS = 1
"""The server counts whole milliseconds: of the last one it tells, a part was over when it looked."""
TIME_SHARE = 0.998
"""Of what an item has left: a server that takes in what its clock is behind has its time pass faster than this machine, by
0.15 % (`rcache.engine.clock`), and so may either machine by what NTP has their clocks run faster or slower."""

AGAIN_S = 5.0
"""So long a client whose server does not know GET_WITH_TTL reads by GET: one of another version may take its place."""

NO_BUCKET = -1
"""Of a key, before the view is known: what was read by then is not kept, be the feeds as quick as they may."""

_GET = int(Opcode.GET)
_GET_WITH_TTL = int(Opcode.GET_WITH_TTL)

_boottime = partial(clock_gettime, CLOCK_BOOTTIME)
"""Seconds, those included in which this machine was suspended."""


class NearCache:
    """A near cache for one client: `Client(servers, near_cache=NearCache())`.

    `max_bytes`: of keys and values and what it takes to keep them. `max_age`: seconds after which a value is read anew in any
    case. `max_staleness`: seconds; see the module. `prefix`: only keys that begin with it are kept, and the client is told of
    their changes alone; b"": of all.
    """

    def __init__(
        self,
        *,
        max_bytes: int = MAX_BYTES,
        max_age: float = MAX_AGE,
        max_staleness: float = MAX_STALENESS,
        prefix: Key = b"",
    ) -> None:
        """Raises `TypeError` or `ValueError` naming the value."""
        self.max_bytes = whole_number("max_bytes", max_bytes, MAX_BYTES_MIN, MAX_BYTES_CEILING)
        self.max_age = checked_seconds("max_age", max_age)
        self.max_staleness = checked_seconds("max_staleness", max_staleness)
        if self.max_staleness < MAX_STALENESS_MIN:
            raise ValueError(f"max_staleness must be at least {MAX_STALENESS_MIN:g} seconds, not {max_staleness!r}")
        self.prefix = b"" if isinstance(prefix, (str, bytes)) and not prefix else key_bytes(prefix)
        self._attaching = threading.Lock()
        self._reads: NearReads | None = None

    def stats(self) -> NearCacheStats:
        """The figures. Asks nobody."""
        reads = self._reads
        return NearCacheStats() if reads is None else reads.slots.stats()._replace(failure=reads.failure)

    def _attach(self, doors: Doors, router: Router, budget: float, read_timeout: float) -> NearReads:
        """Begin to be a client's; its reads. Raises ValueError where it is another one's."""
        with self._attaching:
            if self._reads is not None:
                raise ValueError("a near cache belongs to one client, and this one has a client already")
            slots = Slots(self.max_bytes, _boottime)
            caller = NearCaller(doors, router, budget, read_timeout, slots)
            self._reads = NearReads(self, caller, router)
            return self._reads


class NearCaller(Caller):
    """A caller that is used beside a near cache: what is asked of the servers by it may show something newer than what is
    kept, or make it. So it goes before (the request may be executed long before its answer is here) and after."""

    def __init__(self, doors: Doors, router: Router, budget: float, read_timeout: float, slots: Slots) -> None:
        super().__init__(doors, router, budget, read_timeout)
        self.slots = slots

    def call(self, opcode: int, payload: bytes, deadline: float, key: bytes | None = None) -> Answer:
        if key is None:
            return super().call(opcode, payload, deadline)
        self.slots.drop(key)
        try:
            return super().call(opcode, payload, deadline, key)
        finally:
            self.slots.drop(key)

    def read(self, opcode: int, name: bytes, deadline: float) -> Answer:
        """A read of the near cache itself, which sees to the slot: nothing is dropped."""
        return super().call(opcode, encode_key(name), deadline, name)

    @contextmanager
    def asking_for(self, keys: Sequence[Key]) -> Iterator[None]:
        names = [key_bytes(key) for key in keys]
        drop = self.slots.drop
        for name in names:
            drop(name)
        try:
            yield
        finally:
            for name in names:
                drop(name)

    @contextmanager
    def asking_for_all(self) -> Iterator[None]:
        self.slots.drop_all()
        try:
            yield
        finally:
            self.slots.drop_all()


class NearReads:
    """The reads of a client that has a near cache. Thread-safe."""

    def __init__(self, options: NearCache, caller: NearCaller, router: Router) -> None:
        self.caller = caller
        self.slots = caller.slots
        self.find = self.slots.find
        self._prefix = options.prefix
        self._max_age_s = options.max_age
        self._router = router
        self._plain_until = 0.0
        self._plain_why = ""
        self.feed = NearFeed(router, self.slots, options.prefix, options.max_staleness)

    @property
    def failure(self) -> str:
        return self.feed.failure or self._plain_why

    def close(self) -> None:
        """Hold nothing from now on. Blocks until the feeds have ended, which takes as long as an answer."""
        self.slots.close()
        self.feed.close()

    def forget(self) -> None:
        """Start anew in a forked child."""
        self.feed.forget()
        self.slots.forget()

    def get(self, name: bytes, deadline: float) -> tuple[int, int, bytes]:
        """What the servers have: (status, flags, value), as an answer to GET. Kept where it can be. Raises as `call` does."""
        if not name.startswith(self._prefix):
            status, values = self.caller.call(_GET, encode_key(name), deadline, name)
            return (status, 0, b"") if status else (status, values[0], values[2])
        answer = self._get(name, deadline)
        self.feed.begin()  # by now the view is known, where there is one
        return answer

    def count_misses(self, names: Iterable[bytes]) -> None:
        """These are asked for together with others."""
        self.slots.count_misses(sum(name.startswith(self._prefix) for name in names))

    def _get(self, name: bytes, deadline: float) -> tuple[int, int, bytes]:
        slots = self.slots
        sent_at, table = slots.clock(), self._router.table
        marker = slots.plant(name, NO_BUCKET if table.view is None else crc32(name) & table.mask)
        try:
            status, values = self._ask(name, deadline)
        except BaseException:
            slots.settle(name, marker, 0, None)
            raise
        if status:
            slots.drop(name)  # it was removed, and nobody says at which sequence
            return status, 0, b""
        flags, version, left_ms, value = values
        slots.settle(name, marker, version, None if left_ms is None else self._kept(flags, value, left_ms, sent_at))
        return status, flags, value

    def _ask(self, name: bytes, deadline: float) -> tuple[int, Any]:
        """(status, (flags, version, time left in ms, value)); None in the place of a time that the server does not tell."""
        if self._plain_why and monotonic() < self._plain_until:
            return self._ask_plainly(name, deadline)
        try:
            answer = self.caller.read(_GET_WITH_TTL, name, deadline)
        except UnknownOpcode as error:
            self._plain_why, self._plain_until = f"{error.server}: {error}", monotonic() + AGAIN_S
            return self._ask_plainly(name, deadline)
        self._plain_why = ""
        return answer

    def _ask_plainly(self, name: bytes, deadline: float) -> tuple[int, Any]:
        status, values = self.caller.read(_GET, name, deadline)
        return status, values if status else (values[0], values[1], None, values[2])

    def _kept(self, flags: int, value: bytes, left_ms: int, sent_at: float) -> Kept | None:
        """What is to be kept of it: None, where it is no value to `get`. Its time is counted from before it was asked for."""
        if flags == COMPUTED_FLAGS:
            try:
                envelope = unpack(value)
            except WrongFormat:
                return None  # it is raised where the value is taken out
            if envelope.kind is not Kind.VALUE:
                return None
            flags, value = envelope.flags, envelope.data
        age_s = min(left_ms * TIME_SHARE - TICK_MS, self._max_age_s * 1000) / 1000 if left_ms else self._max_age_s
        return Kept(flags, value, sent_at + max(age_s, 0.0))
