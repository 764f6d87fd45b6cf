"""The embedded register, from wherever this node stands: its own file where it is the manager, else the manager's over a line.

What it is: the three verbs, brought to whoever the newest view names as manager. What that one says is taken in only if this
node may follow it: after a promise to a takeover, nothing of a lower term (`rcache.stream.terms`).
Which thread runs it: `read` and `compare_and_set` the agreement's; `watch` its watcher's. Both block.
What it owns: a line to the manager for each of the two. What it must not know: who may be asked to keep the register.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from rcache.cluster.register import Register, RegisterFailed, RegisterUnreachable, Revised
from rcache.cluster.view import BadView, Node, View, decode_view, encode_view
from rcache.peers.line import Line, PeerUnreachable
from rcache.stream.terms import Promise, Terms
from rcache_client.address import Address, parse_address
from rcache_client.handshake import Greeter
from rcache_client.wire.opcodes import Opcode, Status, status_name

ASK_S = 2.0
"""How long the manager has to answer, which it does after two fsyncs at most."""

CONNECT_S = 1.0

GRACE_S = 0.5
"""How much longer than a watch its answer may take."""


class EmbeddedRegister:
    """See the module. `own` is this node's file; `manager` gives the name and the address of who keeps the register."""

    def __init__(
        self, own: Register, name: str, manager: Callable[[], tuple[str, str]], greeter: Greeter, terms: Terms
    ) -> None:
        self._own = own
        self._name = name
        self._manager = manager
        self._greeter = greeter
        self._terms = terms
        self._lines: dict[str, Line] = {}
        self._asking: set[str] = set()  # the lines over which somebody waits
        self._lock = threading.Lock()
        self._closed = False

    def read(self) -> Revised | None:
        if self._is_ours():
            return self._followed(self._own.read())
        revision, text = self._ask("ask", Opcode.REGISTER_READ, timeout_s=ASK_S)
        return self._followed(_revised(revision, text))

    def begin(self, view: View) -> Revised:
        return self._own.begin(view)

    def compare_and_set(self, revision: int, view: View) -> tuple[bool, Revised]:
        if why := self._terms.why_not(view):  # it is made of a view from before a promise
            now = self.read()
            if now is not None and now.revision > revision:
                return False, now  # the takeover's: the register is past what this was asked against
            raise RegisterUnreachable(f"nothing is asked of {self._manager()[0]} any more: {why}")
        if self._is_ours():
            held = self._own.read()
            if held is not None and held.view.manager != self._name:  # ceded, and the view that says so is on its way here
                raise RegisterUnreachable(f"the register was given to {held.view.manager}")
            kept, revised = self._own.compare_and_set(revision, view)
        else:
            answer, now, text = self._ask("ask", Opcode.REGISTER_SET, revision, encode_view(view), timeout_s=ASK_S)
            kept, told = bool(answer), _revised(now, text)
            assert told is not None
            revised = told
        self._followed(revised)
        return kept, revised

    def watch(self, revision: int, timeout_s: float) -> Revised | None:
        if self._is_ours():
            return self._followed(self._own.watch(revision, timeout_s))
        now, text = self._ask("watch", Opcode.REGISTER_WATCH, revision, timeout_s=timeout_s + GRACE_S)
        return self._followed(_revised(now, text)) if now > revision else None

    def _followed(self, revised: Revised | None) -> Revised | None:
        """What may be followed. It is noted as such before a promise can come that forbids it: so it is told with that."""
        why = self._terms.follow(revised.view) if revised is not None else ""
        if why:
            raise RegisterUnreachable(f"what {self._manager()[0]} says is not followed: {why}")
        return revised

    def close(self) -> None:
        """Whoever waits for an answer gets an error, and closes its line; the others are closed here."""
        self._closed = True
        self._own.close()
        with self._lock:
            for name, line in self._lines.items():
                line.break_off() if name in self._asking else line.close()

    def _is_ours(self) -> bool:
        return self._manager()[0] == self._name

    def _ask(self, line_name: str, opcode: Opcode, *values: Any, timeout_s: float) -> Any:
        line = self._line(line_name)
        try:
            status, answer = line.ask(opcode, *values, timeout_s=timeout_s)
        except PeerUnreachable as error:
            raise RegisterUnreachable(f"the manager {self._manager()[0]} at {error}") from error
        finally:
            with self._lock:
                self._asking.discard(line_name)
                if self._closed:
                    line.close()
        if status == Status.OK:
            return answer
        why = f"the manager {self._manager()[0]}: {status_name(status)}: {answer[-1]}"
        if status == Status.BAD_VIEW:
            raise BadView(why)
        line.close()
        raise RegisterUnreachable(why)

    def _line(self, name: str) -> Line:
        """The line for this thread, to whoever is manager now."""
        address = parse_address(self._manager()[1])
        with self._lock:
            if self._closed:
                raise RegisterUnreachable("this node stops")
            line = self._lines.get(name)
            if line is None or line.address != address:
                if line is not None:
                    line.close()
                line = self._lines[name] = Line(Address(*address), self._greeter, CONNECT_S)
            self._asking.add(name)
            return line


class ToldPromise(NamedTuple):
    """An answer to REGISTER_PROMISE: whether it was promised, what is, whose files the node that answers has, and the newest
    view that it followed."""

    promised: bool
    held: Promise
    data_dir_id: str
    view: View

    def is_of(self, node: Node) -> bool:
        """Whether that is the node which a view lists. One that was given an empty data directory under its name has forgotten
        what it knew and promised: what it tells was told to it, perhaps by whoever asks, and counts for no majority."""
        return self.data_dir_id == node.data_dir_id


def told_promise(values: Sequence[Any]) -> ToldPromise:
    """Raises `BadView`."""
    promised, term, nonce, data_dir_id, text = values
    return ToldPromise(bool(promised), Promise(term, nonce), data_dir_id, decode_view(text))


def _revised(revision: int, text: bytes) -> Revised | None:
    if not revision:
        return None
    try:
        return Revised(revision, decode_view(text))
    except BadView as error:
        raise RegisterFailed(f"the manager sent what is no view: {error}") from None
