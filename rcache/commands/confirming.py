"""The register's holder after a restart: may it go on with it?

What it is: `Confirming`, which asks the other nodes of the newest view what they know and promised, until a majority knows
nothing against it; and how a start asks another node anything.
Which thread runs it: the main thread. It blocks: for each node that is asked (ASK_S), and for the majority; a signal ends it.
What it owns: nothing that lasts. It may lock: the terms' lock. What it must not know: options, engines, logs.

The register's holder answers for it after a restart only when a majority of its last view's nodes, itself and lost ones
included, know no newer view, and promised nobody its term (`design`, section 7). The sequence of events that this prevents: n1
dies, an operator has n2 keep the register, n1 is started again before it heard of that, and two nodes keep one each. Who is
about to is told by the promises: n1 is started while n2 asks the others, and who has promised n2 tells n1 no newer view yet.

Only the nodes that the view lists count: their names, with their data directories. (n3 promised n2 its term and loses its disk;
with an empty directory it learns the view from n1, and would be the majority by which n1 goes on beside n2.)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from loguru import logger

from rcache.agreement.embedded import ToldPromise, told_promise
from rcache.cluster.register import RegisterFailed
from rcache.cluster.view import BadView, View
from rcache.commands.exit_codes import ExitCode
from rcache.commands.start_failed import StartFailed
from rcache.peers.line import Line, PeerUnreachable
from rcache.server.node_answers import Standing
from rcache.stream.register import FileRegister
from rcache.stream.terms import Promise
from rcache_client.address import Address, parse_address
from rcache_client.handshake import Greeter
from rcache_client.wire.opcodes import Opcode, Status, status_name

ASK_S = 2.0
"""How long each node that is asked has to answer."""

RETRY_S = 0.2
TELL_EVERY_S = 5.0

TAKEOVER = "rcache-cli takeover, at this node (docs/operations.md)"


class Confirming:
    """See the module. `own`: the register in this node's files; `look` raises where the start is to be given up."""

    def __init__(self, own: FileRegister, standing: Standing, greeter: Greeter, look: Callable[[], None]) -> None:
        self._own = own
        self._standing = standing
        self._greeter = greeter
        self._look = look
        self._told = ""

    def run(self) -> None:
        """Where this node keeps the register by the newest view it knows: wait until a majority of that view's nodes was heard,
        and go by the newest view among them; or until an operator has a node take the register over, be it this one."""
        told_at = time.monotonic()
        while (view := self._standing.view) is not None and view.manager == self._standing.name:
            if self._standing.register is not None:
                return  # taken over, by this node
            self._demand_same_files(view)
            heard, against = self._ask_all(view)
            if self._standing.view is not view:
                continue  # it may be of other nodes, and of another holder
            if heard * 2 > len(view.nodes) and self._adopt(view):
                return
            if time.monotonic() - told_at > TELL_EVERY_S:
                told_at = time.monotonic()
                logger.warning(
                    "this node keeps the register, and waits for a majority of {} nodes to say that they know no newer view; {}"
                    " did so, with itself{}. If the others are gone for good, or promised a takeover that came to nothing: {}",
                    *(len(view.nodes), heard, "".join(f"; {why}" for why in against), TAKEOVER),
                )
            time.sleep(RETRY_S)

    def _demand_same_files(self, view: View) -> None:
        """That it is this node which the view names. (The holder agrees to a view that only n3 hears of, and loses its disk.
        With an empty directory, and a majority without n3, it goes on from the view before: two views of one epoch.) Raises
        `StartFailed`."""
        name = self._standing.name
        if view.nodes[name].data_dir_id != self._standing.data_dir_id:
            why = (
                f"the node {name} of this cluster keeps its register, from another data directory: start it from that one, or,"
                f" if that is gone for good, order `rcache-cli takeover --is-stopped {name}` at another node, and start it then"
            )
            raise StartFailed(ExitCode.WRONG_USE, why)

    def _ask_all(self, view: View) -> tuple[int, list[str]]:
        """How many of a view's nodes, this one included, know nothing that is against it; and why others do not count. (One
        that promised a takeover its term is the majority by which that takeover goes on, not this node.)"""
        heard, against = 1, []
        for name, address in others_of(view, self._standing.name):
            self._look()
            try:
                told, who = self._ask_promise(address)
            except PeerUnreachable:
                continue
            promise, theirs = told.held, told.view
            if theirs.cluster_id != view.cluster_id or who != name:
                continue
            if theirs.term == view.term and theirs.taken != view.taken:
                against.append(f"{name} goes by another takeover of term {view.term}")
                continue
            if not told.is_of(view.nodes[name]):
                against.append(f"{name} runs from another data directory than the view names, and does not know what it knew")
            elif promise.term > view.term or (promise.term == view.term and promise.nonce != view.taken):
                against.append(f"{name} promised the {promise}")
            else:
                heard += 1
            self._standing.learn(theirs)
        return heard, against

    def _ask_promise(self, address: Address) -> tuple[ToldPromise, str]:
        """What a node promised, the newest view it knows, and its name. Raises `PeerUnreachable`."""
        values, name = ask_node(address, self._greeter, Opcode.REGISTER_PROMISE, *Promise())
        try:
            return told_promise(values), name
        except BadView as error:
            raise PeerUnreachable(f"{address}: {error}", not_sent=True, unwelcome=True) from None

    def _adopt(self, view: View) -> bool:
        """What is newest is this node's register; False where it promised itself away, or was made to keep it, meanwhile.
        Raises `StartFailed` where it cannot be written, or the one that is there is another's."""
        terms = self._standing.terms
        assert terms is not None
        with terms.lock:  # no promise between the look and the answer that it keeps the register
            if self._standing.register is not None or self._standing.view is not view:
                return False
            if why := terms.follow(view):
                if why != self._told:
                    logger.warning("this node does not go on with its register: {}", why)
                self._told = why
                return False
            held = held_by(self._own)
            if held is None or held.epoch < view.epoch:
                logger.warning(
                    "the register in the data directory is older than what others know; it goes on from epoch {}", view.epoch
                )
                self._begin(view)
            self._standing.register = self._own
            return True

    def _begin(self, view: View) -> None:
        try:
            self._own.begin(view)
        except RegisterFailed as error:
            raise StartFailed(ExitCode.APPEND_LOG_FAILED, str(error)) from None
        except ValueError as error:
            why = f"the register in the data directory cannot go on from epoch {view.epoch}, which others know: {error}"
            raise StartFailed(ExitCode.DAMAGED_FILE, why) from None


def ask_node(address: Address, greeter: Greeter, opcode: Opcode, *asked: Any) -> tuple[Sequence[Any], str]:
    """The values of an OK, and the name of the node that gave it. Blocks for up to twice ASK_S. Raises `PeerUnreachable`."""
    line = Line(address, greeter, ASK_S)
    try:
        status, values = line.ask(opcode, *asked, timeout_s=ASK_S)
    finally:
        line.close()
    if status != Status.OK:
        raise PeerUnreachable(f"{address}: {status_name(status)}: {values[-1]}", not_sent=True)
    return values, line.welcome.node_name if line.welcome is not None else ""


def held_by(own: FileRegister) -> View | None:
    """What this node's own register holds. Raises `StartFailed`."""
    try:
        held = own.read()
    except RegisterFailed as error:
        raise StartFailed(ExitCode.APPEND_LOG_FAILED, str(error)) from None
    return held.view if held is not None else None


def others_of(view: View, name: str) -> list[tuple[str, Address]]:
    return [(other, parse_address(node.address)) for other, node in view.nodes.items() if other != name]
