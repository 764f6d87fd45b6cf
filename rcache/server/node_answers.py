"""What a node answers to the other nodes, and to whoever asks for the view.

What it is: the node opcodes of `docs/protocol.md`: heartbeats, records, sequences, the register's three verbs and its promise;
VIEW and STEER.
Which thread runs it: the worker of the connection that asks. It blocks where the opcode does: for a view, for the log, for a
watch.
What it owns: nothing. It may lock: the terms' lock. What it must not know: sockets; how views are carried out.

Before this node is a member (it starts, or waits for its register) it answers VIEW and questions of term, and the register's
verbs if it keeps the register; what needs a member is to be asked again later.

A register that was ceded is read from the file that ceded it for as long as that is there, whether this node is a member or
still starts: it says who keeps it now. (The holder cedes to n2, and both are killed before n2 has the answer. n2 asks n1, the
holder by all that it knows; n1, restarted, waits for n2. Neither would ever answer.)
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rcache.cluster.register import Register, RegisterFailed, RegisterUnreachable, Revised
from rcache.cluster.view import TERM_MAX, BadView, View, decode_view, encode_view
from rcache.engine.contract import Gate
from rcache.member.member import Member
from rcache.peers.intake import Heading
from rcache.stream.register import FileRegister
from rcache.stream.terms import Promise, Terms
from rcache_client.wire.grammar import REQUESTS, Layout
from rcache_client.wire.opcodes import NODE_OPCODES, Opcode, Role, Status

WATCH_S_MAX = 10.0
"""How long a watch may last; whoever wants to know more asks again."""

HEARTBEAT_WAITS = 0.5
"""So much of a lease a heartbeat of a newer view waits for that view. (The node that keeps the register has every view first:
its heartbeats would be refused for that again and again while one view follows the other, and its leases run out.)"""


class Refusal(Exception):
    """What was asked for is not done; the status and the values of its payload."""

    def __init__(self, status: Status, *values: Any) -> None:
        super().__init__(status.name)
        self.status = status
        self.values = values


@dataclass(slots=True)
class Standing:
    """What this node is in its cluster so far. `name`: its own; `view`: the newest it knows, None before the first; `member`:
    once it is one; `register`: the one it keeps itself, while it may answer for it; `own`: the register in its files, whoever
    keeps it; `terms`: what it promised; `where`: where views are agreed, for those who join; `steer`: what an operator's order
    does; `data_dir_id`: whose files it has, which tells it from another of its name."""

    name: str = ""
    data_dir_id: str = ""
    where: str = ""
    view: View | None = None
    member: Member | None = None
    register: Register | None = None
    own: FileRegister | None = None
    terms: Terms | None = None
    steer: Callable[[dict[str, Any], float], dict[str, Any]] | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def newest(self) -> View | None:
        return self.member.view if self.member is not None else self.view

    def learn(self, view: View) -> None:
        """Any thread, before there is a member: this is a view of the cluster, perhaps the newest."""
        with self.lock:
            if self.view is None or self.view.epoch < view.epoch:
                self.view = view

    def newest_known(self) -> View | None:
        """With what was followed and is not carried out yet, and what this node's own register holds. Raises `RegisterFailed`.
        (The heir of a register has yet to hear of it, and the holder ceded it in its last write.)"""
        held = self.own.read() if self.own is not None else None
        followed = self.terms.followed if self.terms is not None else None
        views = [self.newest, followed, held.view if held is not None else None]
        return max((view for view in views if view is not None), key=lambda view: view.epoch, default=None)


class NodeAnswers:
    """See the module. Each answer returns the values of an OK, or raises `Refusal`."""

    def __init__(self, standing: Standing) -> None:
        self._standing = standing
        self._gates: dict[str, Gate] = {}  # by the peers' names: those that the last of their records came by
        self._answers: dict[int, Callable[..., tuple[Any, ...]]] = {
            Opcode.VIEW: self._view,
            Opcode.STEER: self._steer,
            Opcode.HEARTBEAT: self._heartbeat,
            Opcode.RECORDS: self._records,
            Opcode.SEQUENCES: self._sequences,
            Opcode.REGISTER_READ: self._register_read,
            Opcode.REGISTER_SET: self._register_set,
            Opcode.REGISTER_WATCH: self._register_watch,
            Opcode.REGISTER_PROMISE: self._register_promise,
        }

    def gate_of(self, name: str) -> Gate | None:
        """The gate that a peer's records came by last; None where none was taken in."""
        return self._gates.get(name)

    def answer(self, opcode: int, payload: bytes, role: Role, name: str, budget_s: float) -> tuple[Any, ...]:
        """Raises `Refusal`, `BadPayload`."""
        layout = REQUESTS[opcode]
        assert isinstance(layout, Layout)
        values = layout.decode(payload)
        if opcode == Opcode.STEER and role not in (Role.ADMIN, Role.NODE):
            raise Refusal(Status.NOT_ALLOWED, "only an administrator may steer; say HELLO as one")
        if opcode in NODE_OPCODES and role is not Role.NODE:  # these block, and only a node's connection has its own thread
            raise Refusal(Status.NOT_ALLOWED, "only nodes ask for this; say HELLO as one")
        return self._answers[opcode](name, budget_s, *values)

    # --- for everybody

    def _view(self, _name: str, _budget_s: float, known: int) -> tuple[Any, ...]:
        view = self._standing.newest
        if view is None:
            raise Refusal(Status.VIEW_AHEAD, "this node has no view yet; try again")
        return self._standing.where, b"" if view.epoch <= known else encode_view(view)

    def _steer(self, _name: str, budget_s: float, order: bytes) -> tuple[Any, ...]:
        steer = self._standing.steer
        if steer is None:
            raise Refusal(Status.VIEW_AHEAD, "this node is no member of its cluster yet; try again")
        try:
            wanted = json.loads(order.decode())  # of bytes it would take UTF-16 too
            if not isinstance(wanted, dict):
                raise ValueError("it is no object")  # noqa: TRY004 - nobody's mistake in calling
        except (ValueError, RecursionError) as error:
            raise Refusal(Status.BAD_ARGUMENT, f"an order is a JSON object: {error}") from None
        return (json.dumps(steer(wanted, budget_s), separators=(",", ":")).encode(),)

    # --- between members

    def _member(self) -> Member:
        member = self._standing.member
        if member is None:
            raise Refusal(Status.VIEW_AHEAD, "this node is no member yet")
        return member

    def _heartbeat(self, name: str, _budget_s: float, epoch: int, sender: int, receiver: int, beat: int) -> tuple[Any, ...]:
        member = self._member()
        self._demand_incarnation(member, receiver)
        status, granted_ns = member.sessions.answer_heartbeat(name, epoch, sender)
        if status is Status.VIEW_AHEAD and member.sessions.await_epoch(epoch, member.sessions.lease_s * HEARTBEAT_WAITS):
            status, granted_ns = member.sessions.answer_heartbeat(name, epoch, sender)
        if status is Status.STALE_VIEW:
            raise Refusal(status, encode_view(member.view))
        if status is not Status.OK:
            raise Refusal(status, f"this node goes by epoch {member.epoch}")
        return beat, granted_ns

    @staticmethod
    def _demand_incarnation(member: Member, receiver: int) -> None:
        if receiver != member.incarnation:
            raise Refusal(Status.WRONG_NODE, f"this is incarnation {member.incarnation}, not {receiver}")

    @staticmethod
    def _await_epoch(member: Member, epoch: int) -> None:
        """Until that view was taken in here; the wait also ends where the node stops."""
        if epoch > member.epoch and not (member.sessions.await_epoch(epoch) and epoch <= member.epoch):
            raise Refusal(Status.VIEW_AHEAD, f"this node goes by epoch {member.epoch}")

    def _records(
        self, name: str, _budget_s: float, epoch: int, sender: int, receiver: int, generation: int, records: bytes
    ) -> tuple[Any, ...]:
        member = self._member()
        self._demand_incarnation(member, receiver)
        neighbour = member.sessions.neighbour(name, sender)
        try:
            self._await_epoch(member, epoch)
        except Refusal:
            if neighbour is not None:
                neighbour.intake.refuse(generation)  # or the next frame, which finds the view here, would leave a hole
            raise
        neighbour = member.sessions.neighbour(name, sender)
        if neighbour is None:
            raise Refusal(Status.STALE_VIEW, encode_view(member.view))
        taken = neighbour.intake.take(Heading(epoch, sender, receiver, generation), records, member.sessions.follows)
        if taken.status is Status.STALE_VIEW:
            raise Refusal(Status.STALE_VIEW, encode_view(member.view))
        if taken.status is not Status.OK:
            raise Refusal(taken.status, taken.reason)
        self._gates[name] = neighbour.intake.gate
        return (neighbour.intake.gate.lend(),)

    def _sequences(self, name: str, _budget_s: float, epoch: int, sender: int, receiver: int) -> tuple[Any, ...]:
        member = self._member()
        self._demand_incarnation(member, receiver)
        self._await_epoch(member, epoch)
        if member.sessions.neighbour(name, sender) is None or member.epoch > epoch:
            raise Refusal(Status.STALE_VIEW, encode_view(member.view))
        return (member.sessions.sequences_for(name),)

    # --- the register

    def _register(self) -> Register:
        register = self._standing.register
        if register is None:
            raise Refusal(Status.REGISTER_UNAVAILABLE, "this node does not answer for the register, or not yet")
        return register

    def _asked(self, ask: Callable[[Register], Revised | None], register: Register | None = None) -> Revised | None:
        try:
            return ask(register or self._register())
        except (RegisterFailed, RegisterUnreachable) as error:
            raise Refusal(Status.REGISTER_UNAVAILABLE, str(error)) from None

    def _register_read(self, _name: str, _budget_s: float) -> tuple[Any, ...]:
        return _told(self._ceded() or self._asked(lambda register: register.read()))

    def _ceded(self) -> Revised | None:
        """What the register in this node's files last held, where it says that another keeps it and this node answers for none:
        see the module."""
        own = self._standing.own
        if self._standing.register is not None or own is None:
            return None
        held = self._asked(lambda _register: own.read(), own)
        return held if held is not None and held.view.manager != self._standing.name else None

    def _demand_ours(self) -> None:
        """A register that was given to another, or taken over, agrees to nothing any more: two nodes would keep one each. Who
        asks goes by an older view. (Reading and watching tell it of the newer one.)"""
        member = self._standing.member
        if member is None:
            return
        held = self._asked(lambda register: register.read())
        for view in (member.view, held.view if held is not None else member.view):
            if view.manager != member.name:
                raise Refusal(Status.REGISTER_UNAVAILABLE, f"{view.manager} keeps the register, not {member.name}")

    def _register_set(self, _name: str, _budget_s: float, revision: int, text: bytes) -> tuple[Any, ...]:
        self._demand_ours()
        try:
            kept, now = self._register().compare_and_set(revision, decode_view(text))
        except (RegisterFailed, RegisterUnreachable) as error:
            raise Refusal(Status.VIEW_UNSETTLED, str(error)) from None
        except (BadView, ValueError) as error:
            raise Refusal(Status.BAD_VIEW, str(error)[:500]) from None
        return int(kept), *_told(now)

    def _register_watch(self, _name: str, budget_s: float, revision: int) -> tuple[Any, ...]:
        ceded = self._ceded()
        if ceded is not None and ceded.revision > revision:
            return _told(ceded)
        return _told(self._asked(lambda register: register.watch(revision, min(budget_s or WATCH_S_MAX, WATCH_S_MAX))))

    def _register_promise(self, _name: str, _budget_s: float, term: int, nonce: str) -> tuple[Any, ...]:
        """Under the terms' lock: no view is followed between the promise and what is told with it. Term 0: it is only asked."""
        standing, terms = self._standing, self._standing.terms
        if terms is None or (standing.newest is not None and standing.newest.manager is None):
            raise Refusal(Status.REGISTER_UNAVAILABLE, "etcd keeps the register of this cluster; nothing is promised")
        if term > TERM_MAX:
            raise Refusal(Status.BAD_ARGUMENT, f"term {term}; {TERM_MAX} is the last")
        with terms.lock:
            try:
                view = standing.newest_known()
                if view is None:
                    raise Refusal(Status.VIEW_AHEAD, "this node has no view yet; try again")
                if term and standing.register is not None and view.manager == standing.name:
                    raise Refusal(Status.NOT_ALLOWED, f"{standing.name} keeps the register itself")
                promised = term > 0 and terms.promise(Promise(term, nonce))
            except RegisterFailed as error:
                raise Refusal(Status.REGISTER_UNAVAILABLE, str(error)) from None
            return int(promised), *terms.held, standing.data_dir_id, encode_view(view)


def _told(revised: Revised | None) -> tuple[int, bytes]:
    return (revised.revision, encode_view(revised.view)) if revised is not None else (0, b"")
