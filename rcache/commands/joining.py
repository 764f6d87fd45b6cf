"""Coming into a cluster: finding it, settling who keeps its register, and the view that this node joins by.

What it is: what a start does between locking its data directory and serving anything (with `confirming`).
Which thread runs it: the main thread. It blocks: for each node that is asked (ASK_S), for a majority that knows the register's
term, and for the register to answer; a signal ends each of these waits.
What it owns: nothing that lasts. What it must not know: engines, logs.

A node that finds nobody and keeps no register begins nothing by itself if it was told of others: exit code 3. While it waits,
for a majority or for the register, it answers VIEW and questions of term, so a cluster that starts from cold in any order comes
together.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from loguru import logger

from rcache.agreement.embedded import EmbeddedRegister
from rcache.agreement.etcd import EtcdRegister
from rcache.cluster.register import Register, RegisterFailed, RegisterUnreachable, Revised
from rcache.cluster.view import BadView, Node, NodeState, Settings, View, decode_view
from rcache.cluster.wishes import Asker, WishRefused, why_not_its_name
from rcache.commands.confirming import ASK_S, RETRY_S, TAKEOVER, TELL_EVERY_S, Confirming, ask_node, held_by, others_of
from rcache.commands.exit_codes import ExitCode
from rcache.commands.options import ServerOptions
from rcache.commands.seen_view import read_seen_view, seen_where
from rcache.commands.start_failed import StartFailed
from rcache.peers.line import Line, PeerUnreachable
from rcache.server.node_answers import Standing
from rcache.stream.policy import FsyncPolicy
from rcache.stream.register import FileRegister
from rcache_client.address import Address, parse_address
from rcache_client.handshake import Greeter
from rcache_client.wire.opcodes import Opcode

EMBEDDED = "embedded"
ETCD = "etcd"

GRACE_OF_LEASE = 1.5
"""A backup waits for half as long again as it lets its primary count on it."""


@dataclass(frozen=True, slots=True)
class Found:
    """What there is of the cluster. `view`: the newest that is known, None where none was ever agreed; `where`: where views are
    agreed, in words that a joining node understands."""

    register: Register
    where: str
    view: View | None
    heard: bool


class Finder:
    """Finds the cluster. `here`: how others reach this node; `look` raises where the start is to be given up."""

    def __init__(
        self,
        options: ServerOptions,
        own: FileRegister,
        greeter: Greeter,
        standing: Standing,
        here: Address,
        look: Callable[[], None] = lambda: None,
    ) -> None:
        self._options = options
        self._own = own
        self._greeter = greeter
        self._standing = standing
        self._here = here
        self._look = look
        standing.name, standing.own = options.name, own

    # --- finding

    def find(self, *, joined: bool) -> Found:
        """Whoever answers first says what the cluster is. `joined`: this data directory is of a cluster that was born
        elsewhere. Raises `StartFailed`, with NO_NODE_ANSWERED where nodes were given, or are known, and none did, and this
        disk and etcd know of no register either. (A second cluster is born from the files of a node of the first.)"""
        options = self._options
        held = held_by(self._own)
        seen = _newest([held, read_seen_view(options.data_dir)])
        self._standing.view = seen
        troubles: list[PeerUnreachable] = []
        answer = self._first_answer([*options.node, *_addresses(seen, options.name)], troubles)
        if answer is not None:
            where, view = answer
            self._standing.learn(view)
            return self._found(where, heard=True)
        if options.etcd:
            return self._found(_etcd_words(options), heard=False)
        if options.node and (held is None or _code_of(troubles) is ExitCode.WRONG_USE):
            why = "no node could be joined: " + "; ".join(map(str, troubles))
            if seen is not None:
                why += f". Without --node this node waits for those it knew, and can be told to go on: {TAKEOVER}"
            raise StartFailed(_code_of(troubles), why)
        if options.node:
            logger.warning("no node answered ({}); this node keeps the register itself", "; ".join(map(str, troubles)))
        if held is None and seen is not None and not options.node:
            logger.warning("nobody of this node's cluster answers ({}); it waits for them", "; ".join(map(str, troubles)))
            return self._found(seen_where(options.data_dir), heard=False)
        if held is None and (seen is not None or joined):
            why = "; ".join(map(str, troubles)) or "it knows no address of another node; give --node"
            raise StartFailed(_code_of(troubles), f"this node is of a cluster of which nobody answers: {why}")
        return self._found(EMBEDDED, heard=False)

    def _first_answer(self, addresses: Iterable[Address], troubles: list[PeerUnreachable]) -> tuple[str, View] | None:
        for address in dict.fromkeys(addresses):
            if address == self._here:
                continue
            self._look()
            try:
                return self._ask_view(address)
            except PeerUnreachable as error:
                troubles.append(error)
        return None

    def _ask_view(self, address: Address) -> tuple[str, View]:
        """Where views are agreed, and the view, as that node knows them. Raises `PeerUnreachable`."""
        (where, text), _ = ask_node(address, self._greeter, Opcode.VIEW, 0)
        try:
            return where, decode_view(text)
        except BadView as error:
            raise PeerUnreachable(f"{address}: {error}", not_sent=True, unwelcome=True) from None

    def _found(self, where: str, *, heard: bool) -> Found:
        register: Register
        kind, *rest = where.split()
        if kind == ETCD:
            key, *endpoints = rest
            register = EtcdRegister(self._options.etcd or endpoints, key)
        elif self._options.etcd:
            raise StartFailed(
                ExitCode.WRONG_USE, f"--etcd: this cluster agrees by a register of its own ({where}), not by etcd"
            )
        else:
            assert self._standing.terms is not None
            register = EmbeddedRegister(self._own, self._options.name, self.manager, self._greeter, self._standing.terms)
        return Found(register, where, self._standing.view, heard)

    def manager(self) -> tuple[str, str]:
        """Who keeps the embedded register, by the newest view that is known here."""
        view = self._standing.newest
        if view is None or view.manager is None:
            return self._options.name, ""
        return view.manager, view.nodes[view.manager].address

    # --- the register's holder after a restart

    def confirm_register(self) -> None:
        """See `confirming`. Blocks; a signal ends it. Raises `StartFailed`."""
        Confirming(self._own, self._standing, self._greeter, lambda: self._look()).run()  # noqa: PLW0108 (it may change)

    def found_again(self, found: Found) -> Found:
        """After `confirm_register`: with what is known by now."""
        return replace(found, view=self._standing.view)

    # --- joining

    def agree(self, found: Found, make: Callable[[View, Asker], View]) -> Revised:
        """Have the view agreed by which this node joins. Blocks until the register answers. Raises `StartFailed`.

        A change whose answer was lost is sent again as it was, until the register is past what it was asked against; then this
        node is in the view, or it is made anew."""
        told_at = time.monotonic()
        name = self._options.name
        asker = Asker(name, os.urandom(8).hex())
        asked: tuple[int, View] | None = None
        while True:
            self._look()
            try:
                held = self._read(found)
                if asked is not None and joined_by(held.view, name, asked[1].nodes[name]):
                    return held
                if asked is None or asked[0] != held.revision:
                    asked = held.revision, make(held.view, asker)
                kept, now = found.register.compare_and_set(*asked)
                if kept:
                    return now
            except (RegisterUnreachable, RegisterFailed) as error:
                if time.monotonic() - told_at > TELL_EVERY_S:
                    told_at = time.monotonic()
                    advice = f". If who keeps it is gone for good: {TAKEOVER}" if found.where == EMBEDDED else ""
                    logger.warning("waiting for the register: {}{}", error, advice)
                time.sleep(RETRY_S)
                self._hear_of_newer()
            except WishRefused as error:
                raise StartFailed(ExitCode.WRONG_USE, f"this node cannot join: {error}") from None

    def _read(self, found: Found) -> Revised:
        """What the register holds, which this node must fit."""
        held = found.register.read()
        if held is None:
            raise RegisterUnreachable("it holds no view yet")
        self._standing.learn(held.view)
        self.demand_fit(held.view)
        return held

    def _hear_of_newer(self) -> None:
        """The manager may be another by now."""
        view = self._standing.view
        for address in _addresses(view, self._options.name):
            with contextlib.suppress(PeerUnreachable):
                self._standing.learn(self._ask_view(address)[1])

    def demand_fit(self, view: View) -> None:
        """What belongs to the cluster may not be said otherwise here. Raises `StartFailed`."""
        options, settings = self._options, view.settings
        fsync = options.append_log_fsync.value if options.append_log_fsync is not None else None
        for flag, mine, theirs in (
            ("--backups", options.backups, settings.backups),
            ("--lease", options.lease, settings.lease_s),
            ("--append-log-fsync", fsync, settings.fsync),
            ("--buckets", options.buckets, len(view.placements)),
        ):
            if mine is not None and mine != theirs:
                why = f"{flag} is {mine}, but the cluster has {theirs}; leave it out, or change the cluster's with rcache-cli"
                raise StartFailed(ExitCode.WRONG_USE, why)
        if settings.fsync == FsyncPolicy.ALWAYS.value and not options.append_log:
            raise StartFailed(ExitCode.WRONG_USE, "--no-append-log: the cluster has fsync always, which needs a log")

    def demand_name(self, view: View, data_dir_id: str) -> bool:
        """Whether this node is who has that name in the view, under a former incarnation; False for one that is new. Raises
        `StartFailed` where another has it."""
        name = self._options.name
        former = view.nodes.get(name)
        if former is None:
            return False
        address = parse_address(former.address)
        if address != self._here and self._is_alive(address, name):
            why = f"a node {name} is alive at {former.address}; give this one another --name"
            raise StartFailed(ExitCode.WRONG_USE, why)
        if former.data_dir_id == data_dir_id:
            return True
        if why := why_not_its_name(view, name, data_dir_id):
            raise StartFailed(ExitCode.WRONG_USE, why)
        return False

    def _is_alive(self, address: Address, name: str) -> bool:
        line = Line(address, self._greeter, ASK_S)
        try:
            line.connected()
        except PeerUnreachable:
            return False
        finally:
            line.close()
        return line.welcome is not None and line.welcome.node_name == name


def settings_of(options: ServerOptions) -> Settings:
    """Of a cluster that is born."""
    default = Settings()
    lease_s = options.lease or default.lease_s
    policy = options.append_log_fsync or FsyncPolicy.INTERVAL
    return Settings(
        backups=default.backups if options.backups is None else options.backups,
        lease_s=lease_s,
        grace_s=lease_s * GRACE_OF_LEASE,
        ack_s=lease_s,
        fsync=policy.value,
    )


def where_of(options: ServerOptions) -> str:
    """Where a cluster that is born here agrees on its views."""
    return _etcd_words(options) if options.etcd else EMBEDDED


def joined_by(view: View, name: str, wanted: Node) -> bool:
    """Whether this node is in the view, under this incarnation. (Two nodes of one name, both new, ask at once under the same
    incarnation, and the second takes the first's place in the view for its own.)"""
    node = view.nodes.get(name)
    if node is None or node.state is NodeState.LOST:
        return False
    return (node.incarnation, node.data_dir_id) == (wanted.incarnation, wanted.data_dir_id)


def node_here(incarnation: int, here: Address, data_dir_id: str) -> Node:
    return Node(incarnation, str(here), data_dir_id)


def incarnation_before(view: View, name: str, data_dir_id: str) -> int:
    """What the next incarnation of this node has to be above. One that is not in the view begins above its epoch: each start
    that joins is a view of its own, so whoever had that name before, and was removed since, was given less, unless it started
    in vain more often than there were views. (Two nodes of one name and incarnation are one to all others: what is granted to
    the one, or lost by it, is the other's. Only their data directories tell them apart.)"""
    former = view.nodes.get(name)
    if former is None:
        return view.epoch
    return former.incarnation if former.data_dir_id == data_dir_id else max(former.incarnation, view.epoch)


def _etcd_words(options: ServerOptions) -> str:
    return " ".join((ETCD, options.etcd_key, *options.etcd))


def _code_of(troubles: list[PeerUnreachable]) -> ExitCode:
    """If somebody answered and turned this node away, trying again does not help."""
    return ExitCode.WRONG_USE if any(trouble.unwelcome for trouble in troubles) else ExitCode.NO_NODE_ANSWERED


def _newest(views: Iterable[View | None]) -> View | None:
    return max((view for view in views if view is not None), key=lambda view: view.epoch, default=None)


def _addresses(view: View | None, name: str) -> list[Address]:
    return [address for _, address in others_of(view, name)] if view is not None else []
