"""A node without sockets: an engine, its append log and checkpoints in a directory, started and stopped as the server does.

What it is: what the tests of recovery start, write to, and leave behind in all sorts of ways.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from rcache.cluster.bucket_state import BucketState
from rcache.engine.clock import NodeClock
from rcache.engine.contract import EngineConfig
from rcache.engine.reference import ReferenceEngine
from rcache.records.files import FileKind
from rcache.stream.append_log import AppendLog
from rcache.stream.checkpoints import Copied, CopyHooks, copy_header, retain, write_copy
from rcache.stream.data_dir import CHECKPOINT_SUFFIX, Identity
from rcache.stream.disk import Disk
from rcache.stream.log_terms import AppendLogConfig, LogFailure, LogHooks
from rcache.stream.policy import FsyncPolicy
from rcache.stream.recovery import Recovered, feed, recover
from rcache_client.wire.frames import HEADER, Request
from rcache_client.wire.grammar import KEY_ONLY, STORE
from rcache_client.wire.opcodes import Opcode, Status
from tests.stream.harness import IDENTITY, NOON_MS, PATIENCE_S, STARTED

Items = dict[bytes, bytes]


def items_of(recovered: Recovered) -> Items:
    """All items that were recovered."""
    return {key: row.value for bucket in recovered.buckets.values() for key, row in bucket.live_rows() if row.value is not None}


class Node:
    """One start of a node in `directory`. `identity` is what its `node.json` would say; `now_ms` can be set."""

    def __init__(
        self,
        directory: Path,
        identity: Identity = IDENTITY,
        *,
        disk: Disk | None = None,
        policy: FsyncPolicy = FsyncPolicy.ALWAYS,
        now_ms: int = NOON_MS,
        segment_bytes_max: int = 1 << 20,
        skip_damaged: bool = False,
    ) -> None:
        self.directory = directory
        self.savefile = directory / f"{identity.node}.rcs"
        self.now_ms = now_ms
        self.disk = disk or Disk()
        self.failures: list[LogFailure] = []
        self.recovered = recover(directory, self.savefile, identity, skip_damaged=skip_damaged, disk=self.disk)
        clock = NodeClock(lambda: self.now_ms, lambda: self.now_ms)
        self.engine = ReferenceEngine(
            EngineConfig(buckets=identity.buckets, stream_bytes=1 << 20, commit=policy is FsyncPolicy.ALWAYS), clock
        )
        feed(self.recovered.buckets, self.engine.apply)
        self.epoch = max(identity.epoch, self.recovered.newest_epoch) + 1
        self.log = AppendLog(
            AppendLogConfig(directory, policy, interval_s=10_000, segment_bytes_max=segment_bytes_max),
            self.engine.stream,
            identity,
            clock.now_ms,
            LogHooks(self.failures.append),
            disk=self.disk,
        )
        STARTED.append(self.log)
        self.log.start(self.recovered.place, self.epoch)
        self.engine.open_buckets(range(identity.buckets), self.epoch, identity.incarnation, identity.node)
        assert self.log.sync(PATIENCE_S)
        self.identity = replace(identity, epoch=self.epoch, start_epoch=self.epoch)

    def set(self, key: bytes, value: bytes) -> None:
        """Must be acknowledged."""
        assert self._ask(Opcode.SET, STORE.encode(0, 0, key, value)) == Status.OK

    def delete(self, key: bytes) -> None:
        assert self._ask(Opcode.DELETE, KEY_ONLY.encode(key)) in (Status.OK, Status.NOT_FOUND)

    def _ask(self, opcode: Opcode, payload: bytes) -> int:
        status: int = HEADER.unpack_from(self.engine.execute(Request(opcode, 1, int(PATIENCE_S * 1000), payload)))[3]
        return status

    def flush(self) -> None:
        self.engine.flush(1 << 62)

    def sync(self) -> None:
        assert self.log.sync(PATIENCE_S)

    def turn_segment(self) -> None:
        """A new day, and something to write on it."""
        number = self.log.next_segment()
        self.now_ms += 24 * 3600 * 1000
        while self.log.next_segment() == number:
            self.set(b"turn", b"%d" % number)
            self.sync()

    def checkpoint(self) -> Copied:
        """What the checkpointer does when the present segment has begun."""
        segment = self.log.next_segment() - 1
        header = copy_header(FileKind.CHECKPOINT, self.identity, self.epoch, segment, segment, self.now_ms)
        path = self.directory / f"n1-{segment:04}{CHECKPOINT_SUFFIX}"
        return write_copy(self.engine, path, header, CopyHooks(before_finish=self.sync), self.disk)

    def retain(self, cutoff_ms: int) -> list[Path]:
        return retain(self.directory, self.identity, cutoff_ms, self.disk)

    def stop(self, *, save: bool = False) -> Identity:
        """In order. Returns the identity for the next start."""
        for bucket in range(self.identity.buckets):
            self.engine.set_state(bucket, BucketState.FROZEN)
        assert self.log.stop(PATIENCE_S)
        assert not self.failures
        if save:
            number = self.log.next_segment()
            header = copy_header(FileKind.SAVEFILE, self.identity, self.epoch, number, number, self.now_ms)
            write_copy(self.engine, self.savefile, header, disk=self.disk)
        self.engine.close()
        return self.next_identity

    @property
    def next_identity(self) -> Identity:
        """What the next start begins with, however this one ends."""
        return replace(self.identity, incarnation=self.identity.incarnation + 1)

    def crash(self, into: Path) -> Identity:
        """Leave the files as they are now in `into`, as a killed process would; then let the threads go."""
        shutil.copytree(self.directory, into)
        identity = self.next_identity
        self.stop()
        return identity


def recover_items(directory: Path, identity: Identity, *, skip_damaged: bool = False) -> Items:
    """All items a start would begin with."""
    return items_of(recover(directory, directory / f"{identity.node}.rcs", identity, skip_damaged=skip_damaged))
