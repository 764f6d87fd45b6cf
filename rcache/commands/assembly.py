"""Putting a node together: from options and an open data directory to a service that is a member of its cluster.

What it is: the one place where a server's parts are made and handed to each other.
Which thread runs it: the main thread. What it owns: each part until the service has it; on failure all are let go (`cleanup`).
What it must not know: what a part does once the service has it.

The order, and why: the cluster is found before anything is made (how many buckets there are is its business); a node that
others may wait for listens before it joins; joining comes before recovery (only what nobody else has is recovered), recovery
before the log's new segment (which names its predecessor); OPENs are on disk before the new epoch is written down, and that is
written last: until then this start can be repeated from the same files.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from typing import NamedTuple

from loguru import logger

from rcache.cluster.register import Revised
from rcache.cluster.view import Node, View
from rcache.cluster.wishes import Asker, born, join
from rcache.commands.exit_codes import ExitCode
from rcache.commands.joining import EMBEDDED, Finder, incarnation_before, node_here, settings_of, where_of
from rcache.commands.option_definitions import BUCKETS_DEFAULT, CONFIRMED, WORKER_THREADS_DEFAULT
from rcache.commands.options import ServerOptions
from rcache.commands.recovering import (
    SYNC_WAIT_S,
    StartWatch,
    let_go,
    load,
    make_durable,
    recover_here,
    recovery_stats,
    report,
    restore_here,
    trim_to_limit,
)
from rcache.commands.restore_joined import JoinedRestore, warn_of_unfinished
from rcache.commands.seen_view import keep_seen_view
from rcache.commands.start_failed import StartFailed
from rcache.engine.bodies import make_engine
from rcache.engine.clock import NodeClock
from rcache.engine.contract import ConnectionLimits, Engine, EngineConfig
from rcache.member.board import MemberParts
from rcache.member.member import Member
from rcache.records.reader import DataDamaged
from rcache.server.node_answers import Standing
from rcache.server.notify import watchdog_interval_s
from rcache.server.parts import Parts
from rcache.server.service import Service
from rcache.server.steering import early_steering
from rcache.stream.append_log import AppendLog
from rcache.stream.applied import AppliedStream
from rcache.stream.checkpoints import CheckpointConfig, Checkpointer
from rcache.stream.data_dir import DataDir, Identity
from rcache.stream.log_terms import AppendLogConfig, LogHooks
from rcache.stream.policy import FsyncPolicy
from rcache.stream.recovery import Recovered
from rcache.stream.register import FileRegister
from rcache.stream.terms import Terms
from rcache_client.address import Address, parse_address
from rcache_client.handshake import Greeter
from rcache_client.wire.opcodes import ANY_CLUSTER, Role

SHARED_WORKERS = max(1, (os.cpu_count() or 1) // 2)
"""Workers that share sockets: half the cores; the other half is for the kernel's share of their work, the log, and clients that
run on the same machine (decision 0012)."""


class Given(NamedTuple):
    """What is settled before anything is made."""

    version: str
    connections_max: int
    data_dir: DataDir
    sock: socket.socket
    cleanup: contextlib.ExitStack


class Assembly:
    """One start. `run` does all of it; the attributes are there once the step that makes them is done."""

    def __init__(self, options: ServerOptions, given: Given, watch: StartWatch) -> None:
        self._options = options
        self._given = given
        self._watch = watch
        self._began = time.monotonic()
        self._terms = _open_terms(options)
        self._standing = Standing(terms=self._terms)
        self._here = options.advertise or Address(*given.sock.getsockname()[:2])
        self._own = _open_register(options)
        self._begun_empty: list[int] = []
        self._restore: JoinedRestore | None = None

    def run(self) -> Service:
        """A member that is recovered and durable in its new epoch. Raises `StartFailed`."""
        self._find()
        self._make_parts()
        self._make_service()
        self._settle_register()
        self._come_in()
        self._recover()
        self._admit()
        return self._service

    # --- the steps

    def _find(self) -> None:
        """Which cluster this is, and who this node is in it."""
        options, data_dir = self._options, self._given.data_dir
        known = data_dir.identity
        finder = self._finder(known)
        found = finder.find(joined=known is not None and known.joined)
        if found.view is not None:
            finder.demand_fit(found.view)
            if set(found.view.nodes) - {options.name}:
                self._prepare_restore(is_new=known is None)
        self._identity = _be_somebody(options, data_dir, found.view)
        self._standing.data_dir_id = self._identity.data_dir_id
        if found.view is not None:
            finder.demand_name(found.view, self._identity.data_dir_id)
        self._found = found
        self._greeter = _greeter(options, self._identity)  # from here on of this cluster only

    def _prepare_restore(self, *, is_new: bool) -> None:
        """What --restore brings goes into the cluster that this node joins, once it is up."""
        options = self._options
        if options.restore is None:
            warn_of_unfinished(options.data_dir)
            return
        self._restore = JoinedRestore(options.restore, options.data_dir, self._watch)
        self._restore.prepare(is_new=is_new)

    def _finder(self, identity: Identity | None) -> Finder:
        greeter = _greeter(self._options, identity)
        return Finder(self._options, self._own, greeter, self._standing, self._here, self._watch.look)

    def _make_parts(self) -> None:
        """Engine, log and checkpoints, none of them started."""
        cleanup, view = self._given.cleanup, self._found.view
        self._clock = NodeClock()
        self._engine = _make_engine(self._options, self._identity, self._clock, view)
        cleanup.callback(self._engine.close)
        self._applied = AppliedStream(0, is_kept=False)
        self._log: AppendLog | None = None
        self._checkpointer: Checkpointer | None = None
        if self._options.append_log:
            self._make_log(view)

    def _make_log(self, view: View | None) -> None:
        options, engine, clock, identity = self._options, self._engine, self._clock, self._identity
        policy, stops = _fsync_of(options, view), self._watch.stops
        hurry = engine.stream.wake_readers
        self._applied = AppliedStream(options.change_stream_size, hurry, always=policy is FsyncPolicy.ALWAYS)
        config = AppendLogConfig(options.data_dir, policy, options.append_log_fsync_interval, options.append_log_max_mb << 20)
        hooks = LogHooks(
            on_failure=lambda failure: stops.ask(f"the append log failed: {failure}"),
            on_segment=lambda number: checkpointer.segment_began(number),  # noqa: PLW0108 (made below)
        )
        log = self._log = AppendLog(config, engine.stream, identity, clock.now_ms, hooks, applied=self._applied)
        checkpoints = CheckpointConfig(options.data_dir, options.append_log_keep_days)
        checkpointer = self._checkpointer = Checkpointer(checkpoints, engine, log, identity, clock.now_ms, logger.log)
        self._given.cleanup.callback(log.stop, SYNC_WAIT_S)
        self._given.cleanup.callback(checkpointer.stop, SYNC_WAIT_S)

    def _make_service(self) -> None:
        """It listens already if others may have to hear from this node before they can go on, as it may from them."""
        options, given, found = self._options, self._given, self._found
        parts = Parts(
            version=given.version,
            data_dir=given.data_dir,
            engine=self._engine,
            applied=self._applied,
            clock=self._clock,
            sock=given.sock,
            log=self._log,
            checkpointer=self._checkpointer,
            stops=self._watch.stops,
            savefile=options.savefile,
            notifier=self._watch.notifier,
            limits=ConnectionLimits(options.hello_timeout, options.idle_timeout, options.frame_timeout, options.send_timeout),
            connections_max=given.connections_max,
            worker_threads=options.worker_threads or WORKER_THREADS_DEFAULT,
            shared_workers=SHARED_WORKERS,
            stop_timeout_s=options.stop_timeout,
            drain_timeout_s=options.drain_timeout,
            persist=options.persist_on_shutdown,
            standing=self._standing,
            secret=options.secret,
        )
        self._service = Service(parts, watchdog_interval_s())
        given.cleanup.callback(self._service.give_up)
        self._standing.where = found.where if found.view is not None else where_of(options)
        if found.view is not None and len(found.view.nodes) > 1:
            try:
                self._service.start()
            except OSError as error:
                why = f"cannot listen on {options.listen}: {error.strerror}"
                raise StartFailed(ExitCode.CANNOT_LISTEN, why) from None
            self._standing.steer = early_steering(self._standing, options.name, self._greeter)

    def _settle_register(self) -> None:
        """Who keeps the embedded register, and that it is the newest."""
        if not self._is_embedded:
            return
        if self._found.view is None:
            self._standing.register = self._own
            return
        finder = self._finder(self._identity)
        finder.confirm_register()
        self._found = finder.found_again(self._found)

    @property
    def _is_embedded(self) -> bool:
        return self._found.where == EMBEDDED

    def _come_in(self) -> None:
        """The view that this node joins by, and what it recovers for it: the buckets whose only copy its former incarnation
        had; where no view was ever agreed, whatever the files hold."""
        options, identity, found = self._options, self._identity, self._found
        self._node = node_here(identity.incarnation, self._here, identity.data_dir_id)
        if found.view is None and found.register.read() is None:
            self._recovered = recover_here(options, self._given.data_dir, self._watch, None)
            self._joined = self._begin_cluster(max(identity.epoch, self._recovered.newest_epoch) + 1)
        else:
            finder = self._finder(identity)
            self._joined = finder.agree(found, self._join)
            alone = self._joined.view.primaries_of(options.name)
            self._begun_empty = sorted(set(range(identity.buckets)) - set(alone))
            self._recovered = recover_here(options, self._given.data_dir, self._watch, alone)
            _demand_newer(self._joined.view, self._recovered)
        self._standing.learn(self._joined.view)
        keep_seen_view(options.data_dir, self._standing.where, self._joined.view)

    def _join(self, view: View, asker: Asker) -> View:
        """What only a former self had is recovered here if that was in this data directory; judged by the view that is
        asked."""
        former = view.nodes.get(asker.by)
        same = former is not None and former.data_dir_id == self._identity.data_dir_id
        return join(view, asker, self._node, recovers=same)

    def _begin_cluster(self, epoch: int) -> Revised:
        options, identity = self._options, self._identity
        view = born(
            identity.cluster_id,
            identity.buckets,
            Asker(options.name, os.urandom(8).hex()),
            self._node,
            settings_of(options),
            embedded=self._is_embedded,
            epoch=epoch,
        )
        return self._found.register.begin(view)

    def _recover(self) -> None:
        """What is this node's is in the engine, open, and on the disk."""
        options, engine, log, identity = self._options, self._engine, self._log, self._identity
        data_dir, recovered, watch = self._given.data_dir, self._recovered, self._watch
        view = self._joined.view
        load(options, recovered, engine, watch)
        if log is not None:
            _start_log(log, recovered, view.epoch)
        if log is not None and self._begun_empty and recovered.place.number > 1:
            let_go(self._applied, self._begun_empty, self._clock.now_ms())
        self._service.saving.next_segment = recovered.place.number
        for bucket in view.primaries_of(options.name):  # the view may be later than the one that this node joined by
            engine.open_buckets([bucket], view.placements[bucket].opened, identity.incarnation, identity.node)
        restored = restore_here(options, engine, log, data_dir, watch) if self._restore is None else 0
        trim_to_limit(options, engine)
        make_durable(data_dir, log, view.epoch)
        if self._checkpointer is not None:
            self._checkpointer.start(view.epoch)
        items = engine.stats()["items"]["items"]
        report(recovered, items, restored, identity.start_epoch, view.epoch)
        self._service.recovery = recovery_stats(recovered, items, restored, time.monotonic() - self._began)

    def _admit(self) -> None:
        """The service has all of it from here on."""
        directory, where = self._options.data_dir, self._standing.where
        member = MemberParts(
            name=self._options.name,
            node=self._node,
            engine=self._engine,
            register=self._found.register,
            own_register=self._own,
            greeter=self._greeter,
            log=self._log,
            applied=self._applied,
            next_incarnation=self._next_incarnation,
            terms=self._terms if self._is_embedded else None,
        )
        self._service.keep_view = lambda seen: keep_seen_view(directory, where, seen)
        self._service.admit(Member(member, self._joined), self._own if self._is_embedded else None)
        if self._restore is not None:
            self._service.finish_start = self._put_restored

    def _next_incarnation(self) -> Node:
        """This node as it comes back after it fell out. Raises OSError."""
        data_dir, view = self._given.data_dir, self._standing.newest
        assert view is not None
        identity = data_dir.begin_incarnation(incarnation_before(view, self._options.name, self._identity.data_dir_id))
        return node_here(identity.incarnation, self._here, identity.data_dir_id)

    def _put_restored(self) -> None:
        assert self._restore is not None
        member = self._service.member
        nodes = member.view.nodes.values() if member is not None else ()
        servers = [Address(*self._service.address), *(parse_address(node.address) for node in nodes)]
        cluster_id = bytes.fromhex(self._identity.cluster_id)
        restored = self._restore.put(list(dict.fromkeys(servers)), self._options.secret, cluster_id)
        self._service.recovery["restored"] = restored


def _demand_newer(view: View, recovered: Recovered) -> None:
    """An epoch is never used twice. Raises `StartFailed`."""
    if recovered.newest_epoch >= view.epoch:
        ours, theirs = recovered.newest_epoch, view.epoch
        why = f"the files here go up to epoch {ours}, but the register only to {theirs}: was it restored from an old copy?"
        raise StartFailed(ExitCode.DAMAGED_FILE, why)


def _be_somebody(options: ServerOptions, data_dir: DataDir, view: View | None) -> Identity:
    """This node's identity, in the cluster of that view, under a new incarnation. Raises `StartFailed`."""
    born = len(view.placements) if view is not None else options.buckets or BUCKETS_DEFAULT
    try:
        identity = data_dir.be(options.name, born, view.cluster_id if view is not None else None)
        if options.buckets not in (None, identity.buckets):
            raise ValueError(f"--buckets is {options.buckets}, but this data was born with {identity.buckets} buckets")
        if identity.restoring:
            raise ValueError(f"an earlier --restore into {options.data_dir} did not end; remove it and restore again")
        before = incarnation_before(view, options.name, identity.data_dir_id) if view is not None else 0
        return data_dir.begin_incarnation(before)
    except ValueError as error:
        raise StartFailed(ExitCode.WRONG_USE, str(error)) from None
    except OSError as error:
        raise StartFailed(ExitCode.APPEND_LOG_FAILED, f"--data-dir {options.data_dir}: {error.strerror}") from None


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


def _open_terms(options: ServerOptions) -> Terms:
    try:
        return Terms(options.data_dir)
    except DataDamaged as error:
        raise StartFailed(ExitCode.DAMAGED_FILE, str(error)) from None
    except OSError as error:
        raise StartFailed(ExitCode.APPEND_LOG_FAILED, f"--data-dir: {error}") from None


def _make_engine(options: ServerOptions, identity: Identity, clock: NodeClock, view: View | None) -> Engine:
    """The engine that the options name."""
    try:
        return make_engine(options.engine, _engine_config(options, identity, view), clock)
    except MemoryError as error:
        raise StartFailed(ExitCode.WRONG_USE, f"--memory-limit: {error}") from None


def _fsync_of(options: ServerOptions, view: View | None) -> FsyncPolicy:
    """The cluster's policy; of one that is born, what the options say."""
    settings = settings_of(options) if view is None else view.settings
    return FsyncPolicy(settings.fsync)


def _engine_config(options: ServerOptions, identity: Identity, view: View | None) -> EngineConfig:
    return EngineConfig(
        buckets=identity.buckets,
        memory_bytes=options.memory_limit,
        evict=not options.no_evict,
        value_bytes_max=options.max_value_size,
        frame_bytes_max=options.max_frame_size,
        stream_bytes=options.change_stream_size,
        commit=options.append_log and _fsync_of(options, view) is FsyncPolicy.ALWAYS,
        confirm_reads=options.reads == CONFIRMED,
    )


def _start_log(log: AppendLog, recovered: Recovered, epoch: int) -> None:
    try:
        log.start(recovered.place, epoch)
    except OSError as error:
        raise StartFailed(ExitCode.APPEND_LOG_FAILED, f"no segment could be begun: {error}") from None
