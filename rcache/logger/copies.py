"""Copies of buckets: read from their primaries, wherever these are.

What it is: `BucketReader`, which asks COPY until a bucket is whole; the `Copier`, which has a base recorded of every bucket
that needs one; `Copies`, which gives a checkpoint what it asks of an engine, and of the append log.
Which thread runs it: a reader its owner's; the copier's own, `copies`, from `start` to `stop`.
What it owns: connections, one to each node that is asked. It may lock: nothing of its own.
What it must not know: what is done with a copy.

A node copies as it fills a backup: nobody there waits for it. What it takes of the node's time is bounded here: after each
bucket the copier rests PACE times as long as that took.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

from loguru import logger

from rcache.cluster.bucket_state import BucketState
from rcache.logger.recorder import Recorder
from rcache.records.record import BadRecord, heads
from rcache.stream.checkpoints import Syncable
from rcache_client.answers import request_layout
from rcache_client.connection import Connection, Setback
from rcache_client.door import Door
from rcache_client.errors import RcacheError
from rcache_client.routing import Router
from rcache_client.wire.grammar import BadPayload
from rcache_client.wire.opcodes import Opcode, Status, status_name

PIECE_BYTES = 1 << 20
READ_TIMEOUT_S = 10.0
"""A piece waits until it is committed; that takes as long as the slowest backup."""

CONNECT_S = 1.0
PACE = 1.0
REST_MAX_S = 1.0
LOOK_S = 0.2
"""How often it is looked whether a bucket needs a base."""

SETBACK_REST_S = 0.5
"""After a bucket that could not be copied: its primary has changed, most often, and the feeds find the next one as soon."""

TOLD_LOOK_S = 0.02
"""How often a checkpoint looks whether what it copied has been told by now."""

COPY_TRIES_S = 60.0
"""How long a checkpoint tries for one bucket: a takeover takes a few seconds."""


class NotCopied(Exception):
    """A bucket could not be copied now."""


class BucketReader:
    """See the module. Not thread-safe."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self._connections: dict[Door, Connection] = {}

    def pieces(self, bucket: int) -> Iterator[bytes]:
        """A copy of the bucket, from IMPORT_BEGIN to IMPORT_END, in pieces of whole records. Blocks. Raises `NotCopied`: what
        came before is a part, and of no use."""
        door = self._router.table.doors[bucket]
        if door is None:
            self._refresh()
            raise NotCopied(f"bucket {bucket} has no primary")
        try:
            connection = self._connection(door)
            begins, done = 1, False
            while not done:
                done, body = self._ask(connection, bucket, begins)
                begins = 0
                yield body
        except (Setback, RcacheError, BadPayload) as error:
            self._drop(door)
            self._refresh()
            raise NotCopied(f"bucket {bucket}, of {door.name}: {error}") from error
        except GeneratorExit:
            self._drop(door)  # it stands in the middle of a copy
            raise

    def _ask(self, connection: Connection, bucket: int, begins: int) -> tuple[bool, bytes]:
        request = request_layout(Opcode.COPY).encode(bucket, begins, PIECE_BYTES)
        status, values = connection.exchange(Opcode.COPY, request, time.monotonic() + READ_TIMEOUT_S, READ_TIMEOUT_S)
        if status != Status.OK:
            raise RcacheError(f"{status_name(status)}: {values[-1]}", connection.server, "COPY")
        return bool(values[0]), values[1]

    def _connection(self, door: Door) -> Connection:
        connection = self._connections.get(door)
        if connection is None or connection.closed or connection.is_stale():
            self._drop(door)
            connection = self._connections[door] = door.connect(time.monotonic() + CONNECT_S)
        return connection

    def _drop(self, door: Door) -> None:
        connection = self._connections.pop(door, None)
        if connection is not None:
            connection.close()

    def _refresh(self) -> None:
        with contextlib.suppress(RcacheError, Setback):
            self._router.refresh(self._router.table.epoch, 0, time.monotonic() + CONNECT_S, None)

    def close(self) -> None:
        for door in list(self._connections):
            self._drop(door)


class Copier:
    """Has a base recorded of every bucket that needs one. `done` counts them."""

    def __init__(self, recorder: Recorder, router: Router) -> None:
        self._recorder = recorder
        self._reader = BucketReader(router)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="copies")
        self.done = 0
        self.failed = 0
        self.errors = 0

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_s: float) -> bool:
        """False if the thread took too long."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        """The thread's one catch-all: an error is logged and counted, and tried again."""
        try:
            while not self._stopping.is_set():
                try:
                    if not self._round():
                        self._stopping.wait(LOOK_S)
                except Exception:
                    self.errors += 1
                    logger.exception("copies: unhandled error; tried again")
                    self._stopping.wait(SETBACK_REST_S)
        finally:
            self._reader.close()

    def _round(self) -> bool:
        """All that need one now. Whether any was made."""
        made = False
        for bucket in self._recorder.lacking():
            if self._stopping.is_set():
                break
            if not self._recorder.lacks(bucket):
                continue  # any more: it was born anew, or is told of by nobody
            began = time.monotonic()
            try:
                self._copy(bucket)
            except NotCopied as error:
                self.failed += 1
                logger.debug("{}; tried again", error)
                self._stopping.wait(SETBACK_REST_S)
                continue
            made = True
            self._stopping.wait(min(REST_MAX_S, (time.monotonic() - began) * PACE))
        return made

    def _copy(self, bucket: int) -> None:
        pieces = self._reader.pieces(bucket)
        try:
            for body in pieces:
                try:
                    is_base = self._recorder.add_base(bucket, body)
                except BadPayload as error:
                    raise NotCopied(str(error)) from error
                if is_base is False:
                    raise NotCopied(f"bucket {bucket}: changes were missed while it was copied")
                self.done += bool(is_base)
                if self._stopping.is_set():
                    break
        finally:
            pieces.close()  # type: ignore[attr-defined]  # it is a generator


class Copies:
    """What a checkpoint copies, the cluster's buckets, each from its primary; and what it waits for before it takes its place.
    `look` raises where it is to be given up."""

    def __init__(self, recorder: Recorder, router: Router, log: Syncable, look: Callable[[], None]) -> None:
        self._recorder = recorder
        self._reader = BucketReader(router)
        self._log = log
        self._look = look
        self._ends: dict[int, int] = {}

    # --- as an engine

    def state(self, _bucket: int) -> BucketState:
        return BucketState.PRIMARY  # of somebody, and a whole copy or none comes

    def times_let_go(self, _bucket: int) -> int:
        return 0

    def copy_bucket(self, bucket: int) -> Iterator[bytes]:
        """A record each. Raises OSError where it cannot be copied for long."""
        deadline = time.monotonic() + COPY_TRIES_S
        while True:
            self._look()
            try:
                bodies = list(self._reader.pieces(bucket))
                found = [list(heads(body)) for body in bodies]
                self._ends[bucket] = found[-1][-1].sequence
                records = [body[head.start : head.end] for body, here in zip(bodies, found, strict=True) for head in here]
            except (NotCopied, BadRecord, IndexError) as error:
                if time.monotonic() > deadline:
                    raise OSError(f"{error}") from error
                time.sleep(SETBACK_REST_S)
            else:
                return iter(records)

    def close(self) -> None:
        self._reader.close()

    # --- as the log

    @property
    def failure(self) -> object:
        return self._log.failure

    def sync(self, timeout_s: float) -> bool:
        """Block until all up to the end of each bucket's copy is recorded, and on the disk. What is copied may be ahead of what
        is told; a copy whose changes are not there yet would put in doubt what the log alone has whole."""
        deadline = time.monotonic() + timeout_s
        while not self._recorder.has(self._ends):
            if time.monotonic() > deadline:
                return False
            time.sleep(TOLD_LOOK_S)
        return self._log.sync(max(0.0, deadline - time.monotonic()))
