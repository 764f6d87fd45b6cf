"""Starting a node: from options to a service that is ready to serve, in the order that keeps the promises.

What it is: the one place where a server's parts are put together.
Which thread runs it: the main thread. What it owns: each part until the service has it; on failure all are let go.
What it must not know: what a part does once the service has it.

The order, and why: the data directory is locked first (two processes must not meet in one), the address is bound before
anything is loaded (a taken port must not cost a load), recovery comes before the log's new segment (which names its
predecessor), OPENs are on disk before the new epoch is written down, and that is written last: until then this start can be
repeated from the same files.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

from loguru import logger

from rcache.cluster.register import Revised
from rcache.cluster.view import Node, View
from rcache.cluster.wishes import Asker, born, join
from rcache.commands.descriptors import connections_allowed
from rcache.commands.exit_codes import ExitCode
from rcache.commands.joining import EMBEDDED, Finder, Found, keep_seen_view, node_here, settings_of, where_of
from rcache.commands.option_values import size_text
from rcache.commands.options import BUCKETS_DEFAULT, CONNECTIONS_MAX, WORKER_THREADS_DEFAULT, ServerOptions
from rcache.commands.restore import restore
from rcache.commands.show import show_count, show_size
from rcache.commands.start_failed import StartFailed
from rcache.engine.bodies import NATIVE, make_engine
from rcache.engine.clock import NodeClock
from rcache.engine.contract import ConnectionLimits, Engine, EngineConfig, RequestRefused
from rcache.member.board import MemberParts
from rcache.member.member import Member
from rcache.records.reader import DataDamaged
from rcache.server.listener import bind
from rcache.server.node_answers import Standing
from rcache.server.notify import Notifier, watchdog_interval_s
from rcache.server.service import CONNECTIONS_RESERVED, EXTEND_S, Parts, Service
from rcache.server.stops import Stops
from rcache.stream.append_log import APPEND_LOG_THREAD, AppendLog
from rcache.stream.applied import AppliedStream
from rcache.stream.checkpoints import CHECKPOINT_THREAD, CheckpointConfig, Checkpointer
from rcache.stream.data_dir import DataDir, DataDirLocked, Identity
from rcache.stream.log_terms import AppendLogConfig, LogHooks
from rcache.stream.policy import FsyncPolicy
from rcache.stream.recovery import HistoryIncomplete, Recovered, Walks, feed, recover
from rcache.stream.register import FileRegister
from rcache_client.address import Address
from rcache_client.handshake import Greeter
from rcache_client.wire.opcodes import ANY_CLUSTER, Role

SYNC_WAIT_S = 60.0
"""How long a start waits for its OPENs to be on disk."""

PROGRESS_EVERY_S = 1.0

SHARED_WORKERS = max(1, (os.cpu_count() or 1) // 2)
"""Workers that share sockets: half the cores; the other half is for the kernel's share of their work, the log, and clients that
run on the same machine (decision 0012)."""


class _Given(NamedTuple):
    """What is settled before anything is opened."""

    version: str
    connections_max: int


def boot(options: ServerOptions, version: str, notifier: Notifier, stops: Stops) -> Service:
    """A service that is recovered, a member of its cluster, and durable in its new epoch; where nobody else is to be waited for
    it does not listen yet. Raises `StartFailed`; with exit code STOPPED if a signal came meanwhile."""
    watch = _Watch(notifier, stops)
    shares = options.engine == NATIVE
    wanted = options.max_connections if shares else min(options.max_connections, options.worker_threads or CONNECTIONS_MAX)
    connections = connections_allowed(wanted, CONNECTIONS_RESERVED)
    with contextlib.ExitStack() as cleanup:
        data_dir = _open_data_dir(options)
        cleanup.callback(_let_go, data_dir)
        sock = _bind(options)
        cleanup.callback(sock.close)
        try:
            service = _assemble(options, _Given(version, connections), watch, data_dir, sock, cleanup)
        except RequestRefused as refusal:  # opening buckets and trimming wait for nothing but the log
            raise StartFailed(ExitCode.APPEND_LOG_FAILED, f"the append log could not be written: {refusal.reason}") from None
        cleanup.pop_all()
        return service


def _let_go(data_dir: DataDir) -> None:
    """After a start that failed: the lock is kept to the end of the process where a thread still writes."""
    if not writers():
        data_dir.close()


def writers() -> list[str]:
    """The threads that write into the data directory and have not ended."""
    return [thread.name for thread in threading.enumerate() if thread.name in (APPEND_LOG_THREAD, CHECKPOINT_THREAD)]


def _open_data_dir(options: ServerOptions) -> DataDir:
    try:
        data_dir = DataDir(options.data_dir)
    except DataDirLocked as error:
        raise StartFailed(ExitCode.WRONG_USE, f"--data-dir: {error}") from None
    except DataDamaged as error:
        raise StartFailed(ExitCode.DAMAGED_FILE, str(error)) from None
    except OSError as error:
        raise StartFailed(ExitCode.WRONG_USE, f"--data-dir {options.data_dir}: {error.strerror}") from None
    return data_dir


def _be_somebody(options: ServerOptions, data_dir: DataDir, view: View | None) -> Identity:
    """This node's identity, in the cluster of that view, under a new incarnation. Raises `StartFailed`."""
    born = len(view.placements) if view is not None else options.buckets or BUCKETS_DEFAULT
    try:
        identity = data_dir.be(options.name, born, view.cluster_id if view is not None else None)
        if options.buckets not in (None, identity.buckets):
            raise ValueError(f"--buckets is {options.buckets}, but this data was born with {identity.buckets} buckets")
        if identity.restoring:
            raise ValueError(f"an earlier --restore into {options.data_dir} did not end; remove it and restore again")
        return data_dir.begin_incarnation()
    except ValueError as error:
        raise StartFailed(ExitCode.WRONG_USE, str(error)) from None
    except OSError as error:
        raise StartFailed(ExitCode.APPEND_LOG_FAILED, f"--data-dir {options.data_dir}: {error.strerror}") from None


def _bind(options: ServerOptions) -> socket.socket:
    try:
        return bind(options.listen.host, options.listen.port)
    except OSError as error:
        raise StartFailed(ExitCode.CANNOT_LISTEN, f"cannot listen on {options.listen}: {error.strerror}") from None


def _assemble(
    options: ServerOptions,
    given: _Given,
    watch: _Watch,
    data_dir: DataDir,
    sock: socket.socket,
    cleanup: contextlib.ExitStack,
) -> Service:
    began = time.monotonic()
    standing = Standing()
    own = _open_register(options)
    here = options.advertise or Address(*sock.getsockname()[:2])
    greeter = _greeter(options, data_dir.identity)
    finder = Finder(options, own, greeter, standing, here, watch.look)
    found = finder.find(joined=data_dir.identity is not None and data_dir.identity.joined)
    if found.view is not None:
        finder.demand_fit(found.view)
    identity = _be_somebody(options, data_dir, found.view)
    returns = found.view is not None and finder.demand_name(found.view, identity.data_dir_id)
    greeter = _greeter(options, identity)  # from here on of this cluster only
    finder = Finder(options, own, greeter, standing, here, watch.look)
    clock = NodeClock()
    engine = _make_engine(options, data_dir, clock, found.view)
    cleanup.callback(engine.close)
    applied, log, checkpointer = _begin_log(options, data_dir, engine, clock, watch.stops, found.view, cleanup)
    parts = Parts(
        version=given.version,
        data_dir=data_dir,
        engine=engine,
        clock=clock,
        sock=sock,
        log=log,
        checkpointer=checkpointer,
        stops=watch.stops,
        savefile=options.savefile,
        notifier=watch.notifier,
        limits=ConnectionLimits(options.hello_timeout, options.idle_timeout, options.frame_timeout, options.send_timeout),
        connections_max=given.connections_max,
        worker_threads=options.worker_threads or WORKER_THREADS_DEFAULT,
        shared_workers=SHARED_WORKERS,
        stop_timeout_s=options.stop_timeout,
        drain_timeout_s=options.drain_timeout,
        persist=options.persist_on_shutdown,
        standing=standing,
        secret=options.secret,
    )
    service = Service(parts, watchdog_interval_s())
    standing.where = found.where if found.view is not None else where_of(options)
    cleanup.callback(service.give_up)
    if found.view is not None and len(found.view.nodes) > 1:
        _listen(service, options)  # others may wait to hear from this node before they can go on, as it may for them
    if found.where.split()[0] == EMBEDDED:
        if found.view is not None:
            finder.confirm_register()
            found = finder.found_again(found)
        else:
            standing.register = own
    node = node_here(identity.incarnation, here, identity.data_dir_id)
    joined, recovered = _come_in(options, finder, found, node, returns, data_dir, watch)
    view = joined.view
    standing.view = view
    keep_seen_view(options.data_dir, view)
    _feed(options, recovered, engine, watch)
    epoch = view.epoch
    mine = view.primaries_of(options.name)
    if log is not None:
        _start_log(log, recovered, epoch)
    service.next_segment = recovered.place.number
    if mine:
        engine.open_buckets(mine, epoch, identity.incarnation, identity.node)
    restored = _restore(options, engine, log, data_dir, watch)
    _trim(options, engine)
    _make_durable(data_dir, log, epoch)
    if checkpointer is not None:
        checkpointer.start(epoch)
    items = engine.stats()["items"]["items"]
    _report(recovered, items, restored, identity.start_epoch, epoch)
    service.recovery = _recovery_stats(recovered, items, restored, time.monotonic() - began)

    def next_incarnation() -> Node:
        return node_here(data_dir.begin_incarnation().incarnation, here, identity.data_dir_id)

    member = MemberParts(
        options.name,
        node,
        engine,
        found.register,
        own,
        greeter,
        log,
        applied,
        next_incarnation,
    )
    service.keep_view = lambda seen: keep_seen_view(options.data_dir, seen)
    service.admit(Member(member, joined), own if found.where == EMBEDDED else None)
    return service


def _greeter(options: ServerOptions, identity: Identity | None) -> Greeter:
    """As a node, to nodes of this cluster, once it is known which that is."""
    cluster_id = bytes.fromhex(identity.cluster_id) if identity is not None else ANY_CLUSTER
    return Greeter(options.name, Role.NODE, options.secret, cluster_id)


def _open_register(options: ServerOptions) -> FileRegister:
    try:
        return FileRegister(options.data_dir)
    except DataDamaged as error:
        raise StartFailed(ExitCode.DAMAGED_FILE, str(error)) from None
    except OSError as error:
        raise StartFailed(ExitCode.APPEND_LOG_FAILED, f"--data-dir: {error}") from None


def _listen(service: Service, options: ServerOptions) -> None:
    try:
        service.start()
    except OSError as error:
        raise StartFailed(ExitCode.CANNOT_LISTEN, f"cannot listen on {options.listen}: {error.strerror}") from None


def _come_in(
    options: ServerOptions,
    finder: Finder,
    found: Found,
    node: Node,
    returns: bool,
    data_dir: DataDir,
    watch: _Watch,
) -> tuple[Revised, Recovered]:
    """The view that this node joins by, and what it recovers for it: the buckets whose only copy its former incarnation had, or,
    where no view was ever agreed, whatever the files hold."""
    identity = data_dir.identity
    assert identity is not None
    held = found.register.read() if found.view is None else None
    if found.view is None and held is None:
        recovered = _recover(options, data_dir, watch, None)
        epoch = max(identity.epoch, recovered.newest_epoch) + 1
        asker = Asker(options.name, os.urandom(8).hex())
        view = born(
            identity.cluster_id,
            identity.buckets,
            asker,
            node,
            settings_of(options),
            embedded=found.where == EMBEDDED,
            epoch=epoch,
        )
        return found.register.begin(view), recovered
    joined = finder.agree(found, lambda view, asker: join(view, asker, node, recovers=returns))
    alone = joined.view.primaries_of(options.name)
    recovered = _recover(options, data_dir, watch, alone)
    if recovered.newest_epoch >= joined.view.epoch:
        why = (
            f"the files here go up to epoch {recovered.newest_epoch}, but the register only to {joined.view.epoch}: it is older"
            f" than they are, restored from a copy perhaps"
        )
        raise StartFailed(ExitCode.DAMAGED_FILE, why)
    return joined, recovered


def _make_engine(options: ServerOptions, data_dir: DataDir, clock: NodeClock, view: View | None) -> Engine:
    """The engine that the options name."""
    try:
        return make_engine(options.engine, _engine_config(options, data_dir, view), clock)
    except MemoryError as error:
        raise StartFailed(ExitCode.WRONG_USE, f"--memory-limit: {error}") from None


def _feed(options: ServerOptions, recovered: Recovered, engine: Engine, watch: _Watch) -> None:
    """Put what was recovered into the engine, and let go of it: its rows, and the files that they were read from."""
    try:
        feed(recovered.buckets, engine.apply, watch.progress("loading", _in_buckets))
    except DataDamaged as error:  # a file was changed under the running start
        raise StartFailed(ExitCode.DAMAGED_FILE, str(error)) from None
    except MemoryError as error:
        why = f"--memory-limit {size_text(options.memory_limit)} is too small for the data on disk: {error}"
        raise StartFailed(ExitCode.WRONG_USE, f"{why}; give a larger one") from None
    recovered.buckets.clear()


def _recover(options: ServerOptions, data_dir: DataDir, watch: _Watch, wanted: Collection[int] | None) -> Recovered:
    identity = data_dir.identity
    assert identity is not None
    try:
        return recover(
            options.data_dir,
            options.savefile,
            identity,
            skip_damaged=options.skip_damaged,
            walks=watch.walks(),
            wanted=wanted,
        )
    except (DataDamaged, HistoryIncomplete) as error:
        hint = "rcache-replay verify tells more; --skip-damaged goes on with what can be read"
        raise StartFailed(ExitCode.DAMAGED_FILE, f"{error}. {hint}") from None
    except OSError as error:
        raise StartFailed(ExitCode.APPEND_LOG_FAILED, f"--data-dir: {error}") from None


def _fsync_of(options: ServerOptions, view: View | None) -> FsyncPolicy:
    """The cluster's policy; of one that is born, what the options say."""
    settings = settings_of(options) if view is None else view.settings
    return FsyncPolicy(settings.fsync)


def _engine_config(options: ServerOptions, data_dir: DataDir, view: View | None) -> EngineConfig:
    assert data_dir.identity is not None
    return EngineConfig(
        buckets=data_dir.identity.buckets,
        memory_bytes=options.memory_limit,
        evict=not options.no_evict,
        value_bytes_max=options.max_value_size,
        frame_bytes_max=options.max_frame_size,
        stream_bytes=options.change_stream_size,
        commit=options.append_log and _fsync_of(options, view) is FsyncPolicy.ALWAYS,
    )


def _begin_log(
    options: ServerOptions,
    data_dir: DataDir,
    engine: Engine,
    clock: NodeClock,
    stops: Stops,
    view: View | None,
    cleanup: contextlib.ExitStack,
) -> tuple[AppliedStream, AppendLog, Checkpointer] | tuple[None, None, None]:
    """The stream of what is applied as a backup, the append log and its checkpoints, ready to be started; None where none is
    kept."""
    if not options.append_log:
        return None, None, None
    policy = _fsync_of(options, view)
    applied = AppliedStream(options.change_stream_size, engine.stream.wake_readers, always=policy is FsyncPolicy.ALWAYS)
    identity = data_dir.identity
    assert identity is not None
    config = AppendLogConfig(
        options.data_dir,
        policy,
        options.append_log_fsync_interval,
        options.append_log_max_mb << 20,
    )
    log = AppendLog(
        config,
        engine.stream,
        identity,
        clock.now_ms,
        LogHooks(
            on_failure=lambda failure: stops.ask(f"the append log failed: {failure}"),
            on_segment=lambda number: checkpointer.segment_began(number),  # noqa: PLW0108 (made below)
        ),
        applied=applied,
    )
    checkpointer = Checkpointer(
        CheckpointConfig(options.data_dir, options.append_log_keep_days), engine, log, identity, clock.now_ms, logger.log
    )
    cleanup.callback(log.stop, SYNC_WAIT_S)
    cleanup.callback(checkpointer.stop, SYNC_WAIT_S)
    return applied, log, checkpointer


def _start_log(log: AppendLog, recovered: Recovered, epoch: int) -> None:
    try:
        log.start(recovered.place, epoch)
    except OSError as error:
        raise StartFailed(ExitCode.APPEND_LOG_FAILED, f"no segment could be begun: {error}") from None


def _restore(options: ServerOptions, engine: Engine, log: AppendLog | None, data_dir: DataDir, watch: _Watch) -> int:
    """Returns how many items were restored. Where it is the log that failed, its own words say why."""
    if options.restore is None:
        return 0
    try:
        return restore(options.restore, engine, data_dir.begin_restore, watch.walks(), watch.progress("restoring", _in_items))
    except OSError as error:
        raise StartFailed(ExitCode.APPEND_LOG_FAILED, f"--data-dir: {error}") from None
    except StartFailed as failed:
        if log is None or failed.code is not ExitCode.APPEND_LOG_FAILED:
            raise
        log.stop(SYNC_WAIT_S)  # by then it has said what happened
        raise StartFailed(failed.code, f"{failed}: {log.failure}" if log.failure else str(failed)) from None


def _trim(options: ServerOptions, engine: Engine) -> None:
    """What was recovered may be more than a smaller --memory-limit allows."""
    memory = engine.stats()["memory"]
    if memory["used_bytes"] <= memory["limit_bytes"]:
        return
    if options.no_evict:
        why = f"the data takes {memory['used_bytes']} bytes, more than --memory-limit {memory['limit_bytes']}, with --no-evict"
        raise StartFailed(ExitCode.WRONG_USE, why)
    logger.warning("evicted {} items: the data was larger than --memory-limit", engine.trim())


def _make_durable(data_dir: DataDir, log: AppendLog | None, epoch: int) -> None:
    """The OPENs are on disk, and then the epoch is: until here this start can be repeated from the same files."""
    if log is not None and not log.sync(SYNC_WAIT_S):
        why = str(log.failure) if log.failure else f"the first records were not on disk within {SYNC_WAIT_S:.0f} s"
        raise StartFailed(ExitCode.APPEND_LOG_FAILED, f"the append log could not be written: {why}")
    try:
        data_dir.begin_serving(epoch)
    except OSError as error:
        raise StartFailed(ExitCode.APPEND_LOG_FAILED, f"the epoch could not be written down: {error}") from None


def _report(recovered: Recovered, items: int, restored: int, served_epoch: int, epoch: int) -> None:
    for warning in recovered.warnings:
        logger.warning("{}", warning)
    for note in recovered.notes:
        logger.info("{}", note)
    if recovered.stale:
        logger.error(
            "DATA SET ASIDE: the files end in epoch {}, but this node served epoch {} since and kept nothing of it on disk; "
            "starting empty rather than with the past. --restore FILE into an empty --data-dir brings it back",
            recovered.newest_epoch,
            served_epoch,
        )
    if restored:
        logger.info("restored {} items", restored)
    logger.info("starting with {} items in epoch {}", items, epoch)


def _recovery_stats(recovered: Recovered, items: int, restored: int, seconds: float) -> dict[str, Any]:
    return {
        "items": items,
        "records_read": recovered.records,
        "bytes_read": recovered.bytes,
        "seconds": round(seconds, 3),
        "stale_history_set_aside": recovered.stale,
        "restored": restored,
        "warnings": list(recovered.warnings),
    }


def _in_buckets(number: int) -> str:
    return show_count(number, "bucket")


def _in_items(number: int) -> str:
    return show_count(number, "item")


class _Watch:
    """Looks, during the long steps of a start, whether it is to be given up, and tells how far they are."""

    def __init__(self, notifier: Notifier, stops: Stops) -> None:
        self.notifier = notifier
        self.stops = stops

    def look(self) -> None:
        """Raise `StartFailed` if a signal came."""
        if self.stops.signalled:
            raise StartFailed(ExitCode.STOPPED, f"stopped before it served: {self.stops.signalled}")

    def walks(self) -> Walks:
        """For the two walks over files of records."""
        return Walks(self.progress("reading", show_size), self.progress("rebuilding", show_size))

    def progress(self, what: str, show: Callable[[int], str]) -> Callable[[int, int], None]:
        """For one step: called with (done, total), it looks, and tells the log and systemd once in PROGRESS_EVERY_S."""
        last = time.monotonic()

        def report(done: int, total: int) -> None:
            nonlocal last
            self.look()
            if time.monotonic() - last < PROGRESS_EVERY_S:
                return
            last = time.monotonic()
            text = f"{what}: {done * 100 // max(1, total)} % of {show(total)}"
            logger.info("{}", text)
            self.notifier.status(text)
            self.notifier.extend_timeout(EXTEND_S)

        return report
