"""Putting what was rebuilt into a running server.

What it is: the command `inject` behind its files, and what `rcached --restore` does in a cluster that it joins: which rows go
over, with what time to live, how fast, and what came of it.
Which thread runs it: the main thread hands out the work; `WORKERS` threads of its own, joined before it returns, wait for the
server.
What it owns: those threads, and the client.
What it must not know: where the rows came from.

It goes by key, so the numbers of buckets may differ. A key that the server has is replaced
- of a server of the same cluster: if the row's sequence is higher than the item's version (check-and-set by version), since
  both are places in the history of one bucket;
- of another cluster: never (ADD), since versions of two clusters have nothing in common;
- with `--overwrite`: always (SET), which is how to go back in time.
A key that was deleted since cannot be told from one that never was. What an interrupted run put there is kept by the next one,
in each of the first two (what was put there has a newer version), so running it again does what is left to do.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple, Protocol

from rcache.commands.replay_exit import ReplayExit, ReplayStopped
from rcache.commands.replay_options import ReplayOptions
from rcache.commands.replay_times import now_ms
from rcache.commands.show import show_bytes
from rcache.records.rebuild import Progress, RebuiltBucket, Row
from rcache_client import Client, OutcomeUnknown, RcacheError, Refused, SomeKeysFailed
from rcache_client.key_calls import Inspection
from rcache_client.wire.opcodes import TTL_MS_MAX

WORKERS = 4
"""Enough that one request is under way while another is being made; more only wait for the interpreter."""

BATCH_ROWS = 200
BATCH_BYTES = 1 << 20
"""A batch is well below the largest frame that servers take by default, and a small part of a second's work."""

BATCHES_AHEAD = 2 * WORKERS

CALL_SECONDS = 30.0
"""A server that restarts is back in this time, so the run goes on rather than end half-way."""

HELLO_SECONDS = 5.0

TRIES_MAX = 3
"""For a request whose outcome is unknown: a connection that breaks three times in a row is not chance."""

FAILURES_SHOWN = 5


class Existing(Enum):
    """What becomes of a key that the server has."""

    KEPT = "kept"
    REPLACED_IF_OLDER = "replaced if older"
    REPLACED = "replaced"


@dataclass(frozen=True, slots=True)
class InjectTerms:
    """How rows are put in. `rate`: keys a second at most; 0: as fast as it goes."""

    existing: Existing = Existing.KEPT
    rate: int = 0


def terms_between(file_cluster: bytes, server_cluster: bytes | None, *, overwrite: bool, rate: int) -> InjectTerms:
    """What holds between files of one cluster and a server of that cluster, or of another."""
    if overwrite:
        return InjectTerms(Existing.REPLACED, rate)
    return InjectTerms(Existing.REPLACED_IF_OLDER if file_cluster == server_cluster else Existing.KEPT, rate)


class Value(NamedTuple):
    """What a key holds, as the serializer below takes it."""

    data: bytes
    flags: int


class ValueSerializer:
    """Hands bytes and user flags through as they are."""

    joinable = False

    def dump(self, value: Value) -> tuple[bytes, int]:
        return value.data, value.flags

    def load(self, data: bytes, flags: int) -> Value:
        return Value(data, flags)


class Target(Protocol):
    """The calls of a client that are made here."""

    def set(self, key: bytes, value: Value, ttl: float | None = None) -> int: ...

    def add(self, key: bytes, value: Value, ttl: float | None = None) -> int: ...

    def cas(self, key: bytes, value: Value, *, version: int | None = None, ttl: float | None = None) -> int: ...

    def inspect(self, key: bytes) -> Inspection | None: ...

    def set_many(self, mapping: dict[bytes, Value], ttl: float | None = None) -> Any: ...


@dataclass(slots=True)
class Injected:
    """What came of it. `kept`: keys that the server had, and keeps as they are. `failed`: all that are not in; `unsent`: those
    of them that were not tried any more. `failures`: the first few of the others, for people."""

    done: int = 0
    kept: int = 0
    expired: int = 0
    failed: int = 0
    unsent: int = 0
    failures: list[str] = field(default_factory=list)

    def add(self, other: Injected) -> None:
        self.done += other.done
        self.kept += other.kept
        self.expired += other.expired
        self.failed += other.failed
        self.unsent += other.unsent
        self.failures = (self.failures + other.failures)[:FAILURES_SHOWN]

    def fail(self, key: bytes, why: object) -> None:
        """Take in that this key is not in. `why` None: it was not sent."""
        self.failed += 1
        if why is None:
            self.unsent += 1
        elif len(self.failures) < FAILURES_SHOWN:
            self.failures.append(f"{show_bytes(key)}: {why}")


def client_of(servers: str | Iterable[str], secret: bytes | None, name: str) -> Client[Value]:
    """A client for `inject`; it connects to nothing yet."""
    return Client(
        servers,
        budget=CALL_SECONDS,
        read_timeout=CALL_SECONDS,
        secret=secret,
        name=name,
        serializer=ValueSerializer(),
        wait_for_servers=True,
    )


def open_client(options: ReplayOptions) -> Client[Value]:
    """A client of the server that `--into` names, which has answered. Raises `ReplayStopped`."""
    client = client_of(str(options.into), options.secret, "rcache-replay")
    try:
        client.ping(budget=HELLO_SECONDS)
    except RcacheError as error:
        client.close()
        raise ReplayStopped(ReplayExit.NOT_REACHED, f"--into {options.into}: {error}") from error
    return client


class Pace:
    """Holds its caller back to `rate` rows a second; 0 does not."""

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._due = time.monotonic()

    @property
    def batch_rows(self) -> int:
        """Rows to hand out at once: a tenth of a second's at most."""
        return BATCH_ROWS if not self._rate else max(1, min(BATCH_ROWS, self._rate // 10))

    def take(self, rows: int) -> None:
        """Wait until these rows are due."""
        if self._rate:
            time.sleep(max(0.0, self._due - time.monotonic()))
            self._due = max(self._due, time.monotonic() - 1.0) + rows / self._rate


Pair = tuple[bytes, Row]


def inject(rows: Iterable[Pair], total: int, target: Target, terms: InjectTerms, progress: Progress) -> Injected:
    """Put every row into the server; at most `total` of them. What fails is counted, and the rest goes on. Where `progress`
    raises, nothing more is sent, and that leaves from here once what is under way has ended."""
    result, pace, handed = Injected(), Pace(terms.rate), 0
    putter = _Putter(target, terms.existing)
    under_way: set[Future[Injected]] = set()
    with ThreadPoolExecutor(WORKERS, "replay-inject") as workers:
        try:
            for batch in _batches(rows, pace.batch_rows):
                if not putter.gone.is_set():
                    pace.take(len(batch))
                under_way.add(workers.submit(putter.put, batch))
                handed += len(batch)
                progress(handed, total)
                while len(under_way) >= BATCHES_AHEAD:
                    under_way = _gather(under_way, result)
            while under_way:
                under_way = _gather(under_way, result)
                progress(handed, total)
        except BaseException:
            putter.gone.set()
            raise
    return result


def _gather(under_way: set[Future[Injected]], result: Injected) -> set[Future[Injected]]:
    """Wait for one batch at least; return those that go on."""
    done, rest = wait(under_way, return_when=FIRST_COMPLETED)
    for batch in done:
        result.add(batch.result())
    return rest


def chosen_rows(buckets: dict[int, RebuiltBucket], prefix: bytes) -> Iterator[Pair]:
    """The rows that are to go over, expired or not."""
    for bucket in buckets.values():
        for key, row in bucket.live_rows():
            if key.startswith(prefix):
                yield key, row


def _batches(rows: Iterable[Pair], rows_max: int) -> Iterator[list[Pair]]:
    batch: list[Pair] = []
    size = 0
    for key, row in rows:
        batch.append((key, row))
        size += len(key) + len(row.value or b"")
        if len(batch) >= rows_max or size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


class _Putter:
    """Puts batches of rows into the server, on several threads at once. `gone`: it took nothing for too long (it is away, or
    paused, or cannot commit), so nothing more is sent.

    A request whose outcome is unknown is sent again: the value is the same, and an ADD or a check-and-set that was executed
    keeps it.
    """

    def __init__(self, target: Target, existing: Existing) -> None:
        self._target = target
        self._existing = existing
        self.gone = threading.Event()

    def put(self, batch: list[Pair]) -> Injected:
        """Put these rows. Those that never expire go over in one request where that overwrites; an ADD is for one key."""
        result = Injected()
        together: dict[bytes, Value] = {}
        for key, row in batch:
            value = Value(row.value or b"", row.flags)
            left_ms = row.expires_at_ms - now_ms() if row.expires_at_ms else None
            if left_ms is not None and left_ms <= 0:
                result.expired += 1
            elif self._existing is Existing.REPLACED and left_ms is None:
                together[key] = value
            else:
                self._put_one(result, key, value, left_ms, row.version)
        if together:
            self._put_many(result, together)
        return result

    def _put_many(self, result: Injected, together: dict[bytes, Value]) -> None:
        """One request for all; what did not go well is tried key by key."""
        failed: Collection[bytes] = ()
        try:
            if not self.gone.is_set():
                self._target.set_many(together)
            else:
                failed = together
        except SomeKeysFailed as error:
            failed = error.failed
        except RcacheError:
            failed = together
        for key in failed:
            self._put_one(result, key, together[key], None)
        result.done += len(together) - len(failed)

    def _put_one(self, result: Injected, key: bytes, value: Value, left_ms: int | None, version: int = 0) -> None:
        ttl = None if left_ms is None else min(left_ms, TTL_MS_MAX) / 1000
        why: object = None
        began = time.monotonic()
        for _ in range(TRIES_MAX):
            if self.gone.is_set():
                break
            try:
                stored = self._store(key, value, ttl, version)
            except OutcomeUnknown as error:
                why = error
            except Refused as error:
                why = error
                break
            except RcacheError as error:
                why = error
                self.gone.set()
            else:
                result.done += stored > 0
                result.kept += stored == 0
                return
        if isinstance(why, OutcomeUnknown) and time.monotonic() - began >= CALL_SECONDS:
            self.gone.set()  # every key would wait as long
        result.fail(key, why)

    def _store(self, key: bytes, value: Value, ttl: float | None, version: int) -> int:
        """The version of what was stored; 0 where the server keeps what it has. `version`: of the row."""
        if self._existing is Existing.REPLACED:
            return self._target.set(key, value, ttl)
        if stored := self._target.add(key, value, ttl):
            return stored
        for _ in range(TRIES_MAX if self._existing is Existing.REPLACED_IF_OLDER else 0):
            held = self._target.inspect(key)
            if held is not None and held.version >= version:
                break
            stored = self._target.cas(key, value, version=held.version if held is not None else 0, ttl=ttl)
            if stored:
                return stored
        return 0  # where it changed each time between the look and the write, clients write it now: that is newer
