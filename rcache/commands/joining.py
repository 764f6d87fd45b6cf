"""Coming into a cluster: finding it, settling who keeps its register, and the view that this node joins by.

What it is: what a start does between locking its data directory and serving anything.
Which thread runs it: the main thread. It blocks: for each node that is asked (ASK_S), for a majority that knows the register's
term, and for the register to answer; a signal ends each of these waits.
What it owns: nothing that lasts. What it must not know: engines, logs.

A node that finds nobody and keeps no register begins nothing by itself if it was told of others: exit code 3. The register's
holder answers for it after a restart only when a majority of its last view's nodes know no newer one (an operator may have
given it to another meanwhile); while it waits it answers VIEW, so a cluster that starts from cold in any order comes together.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from loguru import logger

from rcache.agreement.embedded import EmbeddedRegister
from rcache.agreement.etcd import EtcdRegister
from rcache.cluster.register import Register, RegisterFailed, RegisterUnreachable, Revised
from rcache.cluster.view import BadView, Node, NodeState, Settings, View, decode_view, encode_view
from rcache.cluster.wishes import Asker, WishRefused
from rcache.commands.exit_codes import ExitCode
from rcache.commands.options import ServerOptions
from rcache.commands.start_failed import StartFailed
from rcache.peers.line import Line, PeerUnreachable
from rcache.server.node_answers import Standing
from rcache.stream.disk import Disk, replace_file
from rcache.stream.policy import FsyncPolicy
from rcache.stream.register import FileRegister
from rcache_client.address import Address, parse_address
from rcache_client.handshake import Greeter
from rcache_client.wire.opcodes import Opcode, Status, status_name

SEEN_VIEW_FILE = "view"
"""The newest view that this node has carried out: whom to look for after a restart."""

ASK_S = 2.0
"""How long each node that is asked has to answer."""

RETRY_S = 0.2
TELL_EVERY_S = 5.0

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


def _never() -> None:
    """No signal is looked for."""


class Finder:
    """Finds the cluster. `here`: how others reach this node; `look` raises where the start is to be given up."""

    def __init__(
        self,
        options: ServerOptions,
        own: FileRegister,
        greeter: Greeter,
        standing: Standing,
        here: Address,
        look: Callable[[], None] = _never,
    ) -> None:
        self._options = options
        self._own = own
        self._greeter = greeter
        self._standing = standing
        self._here = here
        self._look = look

    # --- finding

    def find(self, *, joined: bool) -> Found:
        """Whoever answers first says what the cluster is. `joined`: this data directory is of a cluster that was born
        elsewhere. Raises `StartFailed`, with NO_NODE_ANSWERED where nodes were given, or are known, and none did, and this
        disk and etcd know of no register either. (A second cluster is born from the files of a node of the first.)"""
        options = self._options
        held = self._held()
        seen = _newest([held, read_seen_view(options.data_dir)])
        self._standing.view = seen
        troubles: list[PeerUnreachable] = []
        answer = self._first_answer([*options.node, *_addresses(seen, options.name)], troubles)
        if answer is not None:
            where, view = answer
            self._standing.view = _newest([seen, view])
            return self._found(where, heard=True)
        if options.etcd:
            return self._found(_etcd_words(options), heard=False)
        if options.node and (held is None or _code_of(troubles) is ExitCode.WRONG_USE):
            raise StartFailed(_code_of(troubles), "no node could be joined: " + "; ".join(map(str, troubles)))
        if options.node:
            logger.warning("no node answered ({}); this node keeps the register itself", "; ".join(map(str, troubles)))
        if held is None and seen is not None and not options.node:
            logger.warning("nobody of this node's cluster answers ({}); it waits for them", "; ".join(map(str, troubles)))
            return self._found(_seen_where(options.data_dir), heard=False)
        if held is None and (seen is not None or joined):
            why = "; ".join(map(str, troubles)) or "it knows no address of another node; give --node"
            raise StartFailed(_code_of(troubles), f"this node is of a cluster of which nobody answers: {why}")
        return self._found(EMBEDDED, heard=False)

    def _held(self) -> View | None:
        """What this node's own register holds."""
        try:
            held = self._own.read()
        except RegisterFailed as error:
            raise StartFailed(ExitCode.APPEND_LOG_FAILED, str(error)) from None
        return held.view if held is not None else None

    def _first_answer(self, addresses: Iterable[Address], troubles: list[PeerUnreachable]) -> tuple[str, View] | None:
        for address in dict.fromkeys(addresses):
            if address == self._here:
                continue
            self._look()
            try:
                return self._ask_view(address)[:2]
            except PeerUnreachable as error:
                troubles.append(error)
        return None

    def _ask_view(self, address: Address) -> tuple[str, View, str]:
        """Where views are agreed, the view, as that node knows them, and its name. Raises `PeerUnreachable`."""
        line = Line(address, self._greeter, ASK_S)
        try:
            status, values = line.ask(Opcode.VIEW, 0, timeout_s=ASK_S)
        finally:
            line.close()
        if status != Status.OK:
            raise PeerUnreachable(f"{address}: {status_name(status)}: {values[-1]}", not_sent=True)
        try:
            return values[0], decode_view(values[1]), line.welcome.node_name if line.welcome is not None else ""
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
            register = EmbeddedRegister(self._own, self._options.name, self.manager, self._greeter)
        return Found(register, where, self._standing.view, heard)

    def manager(self) -> tuple[str, str]:
        """Who keeps the embedded register, by the newest view that is known here."""
        view = self._standing.newest
        if view is None or view.manager is None:
            return self._options.name, ""
        return view.manager, view.nodes[view.manager].address

    # --- the register's holder after a restart

    def confirm_register(self) -> None:
        """Where this node keeps the register by the newest view it knows: wait until a majority of that view's nodes was heard,
        and go by the newest view among them. Blocks; a signal ends it. Raises `StartFailed`."""
        told_at = time.monotonic()
        while (view := self._standing.view) is not None and view.manager == self._options.name:
            heard = 1
            for name, address in _others(view, self._options.name):
                self._look()
                with contextlib.suppress(PeerUnreachable):
                    _, theirs, who = self._ask_view(address)
                    if theirs.cluster_id == view.cluster_id and who == name:
                        heard += 1
                        self._standing.view = _newest([self._standing.view, theirs])
            newest = self._standing.view
            if newest is not view:
                continue  # it may be of other nodes, and of another holder
            if heard * 2 > len(view.nodes):
                self._adopt(view)
                return
            if time.monotonic() - told_at > TELL_EVERY_S:
                told_at = time.monotonic()
                logger.warning(
                    "this node keeps the register, and waits for a majority of {} nodes to say that they know no newer view; {}"
                    " answered. If the others are gone for good: rcache-cli takeover",
                    len(view.nodes),
                    heard,
                )
            time.sleep(RETRY_S)

    def _adopt(self, view: View) -> None:
        """What is newest is this node's register."""
        held = self._held()
        if held is None or held.epoch < view.epoch:
            logger.warning(
                "the register in the data directory is older than what others know; it goes on from epoch {}", view.epoch
            )
            self._own.begin(view)
        self._standing.register = self._own

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
                if asked is not None and joined_by(held.view, name, asked[1].nodes[name].incarnation):
                    return held
                if asked is None or asked[0] != held.revision:
                    asked = held.revision, make(held.view, asker)
                kept, now = found.register.compare_and_set(*asked)
                if kept:
                    return now
            except (RegisterUnreachable, RegisterFailed) as error:
                if time.monotonic() - told_at > TELL_EVERY_S:
                    told_at = time.monotonic()
                    logger.warning("waiting for the register: {}", error)
                time.sleep(RETRY_S)
                self._hear_of_newer()
            except WishRefused as error:
                raise StartFailed(ExitCode.WRONG_USE, f"this node cannot join: {error}") from None

    def _read(self, found: Found) -> Revised:
        """What the register holds, which this node must fit."""
        held = found.register.read()
        if held is None:
            raise RegisterUnreachable("it holds no view yet")
        self._standing.view = held.view
        self.demand_fit(held.view)
        return held

    def _hear_of_newer(self) -> None:
        """The manager may be another by now."""
        view = self._standing.view
        for address in _addresses(view, self._options.name):
            with contextlib.suppress(PeerUnreachable):
                _, theirs, _ = self._ask_view(address)
                self._standing.view = _newest([self._standing.view, theirs])

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
        alone = sum(placed.holders == (name,) for placed in view.placements)
        if alone:
            why = (
                f"the node {name} of this cluster has another data directory, with the only copy of {alone} buckets: start it"
                f" from that one, or say `rcache-cli lost {name}`"
            )
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


def joined_by(view: View, name: str, incarnation: int) -> bool:
    """Whether this incarnation is in the view."""
    node = view.nodes.get(name)
    return node is not None and node.incarnation == incarnation and node.state is not NodeState.LOST


def node_here(incarnation: int, here: Address, data_dir_id: str) -> Node:
    return Node(incarnation, str(here), data_dir_id)


def keep_seen_view(directory: Path, where: str, view: View, disk: Disk | None = None) -> None:
    """Remember a view, and where views are agreed: a line each. What cannot be written is told, and costs no more than a
    longer search after a restart."""
    try:
        replace_file(disk or Disk(), directory / SEEN_VIEW_FILE, where.encode() + b"\n" + encode_view(view) + b"\n")
    except OSError as error:
        logger.warning("the view could not be remembered: {}", error)


def read_seen_view(directory: Path) -> View | None:
    try:
        return decode_view((directory / SEEN_VIEW_FILE).read_bytes().partition(b"\n")[2])
    except FileNotFoundError:
        return None
    except (OSError, BadView) as error:
        logger.warning("{}: {}", directory / SEEN_VIEW_FILE, error)
        return None


def _seen_where(directory: Path) -> str:
    return (directory / SEEN_VIEW_FILE).read_bytes().partition(b"\n")[0].decode()


def _etcd_words(options: ServerOptions) -> str:
    return " ".join((ETCD, options.etcd_key, *options.etcd))


def _code_of(troubles: list[PeerUnreachable]) -> ExitCode:
    """If somebody answered and turned this node away, trying again does not help."""
    return ExitCode.WRONG_USE if any(trouble.unwelcome for trouble in troubles) else ExitCode.NO_NODE_ANSWERED


def _newest(views: Iterable[View | None]) -> View | None:
    return max((view for view in views if view is not None), key=lambda view: view.epoch, default=None)


def _others(view: View, name: str) -> list[tuple[str, Address]]:
    return [(other, parse_address(node.address)) for other, node in view.nodes.items() if other != name]


def _addresses(view: View | None, name: str) -> list[Address]:
    return [address for _, address in _others(view, name)] if view is not None else []
