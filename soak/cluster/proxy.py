"""The proxy: every connection to a node, and from a node to etcd, goes through it, and it knows who speaks to whom.

What it is: `python -m soak.cluster.proxy`. It is told what to do by lines of JSON on standard input and answers each with one
on standard output (`soak.cluster.network`). It ends when its input does.
Which thread runs it: one, around a selector; a process of its own, so that a checker at work does not make heartbeats late.
What it owns: its sockets. What it must not know: why the rules are what they are.

A *front* stands for a node: it listens exactly while the node does (the kernel says so), so that whoever
connects to a dead node is refused, as without a proxy. The first frame on a connection is HELLO, which says who connects; until
it is whole nothing goes on. A front of a fixed party (etcd's, one for each node) does not look at what is said.

Invariants:
1. Bytes keep their order, and none is lost on a connection that lives: a cut that ends without reset delivers what waited.
2. What a way that is cut would deliver is not read: not even the end of the connection, which a real cut would hide as well.
3. Of each direction at most BUFFER_BYTES are held here; what waits beyond that waits in the kernel.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import selectors
import socket
import struct
import sys
import time
from typing import Any

from rcache_client.wire.frames import BadFrame
from rcache_client.wire.grammar import REQUESTS, BadPayload, Layout
from rcache_client.wire.opcodes import Opcode, Role
from soak.cluster.listening import ListeningPorts
from soak.cluster.rules import ADMINS, CLIENTS, FREE, Cut, Rules
from soak.cluster.through import Front, Through

READ_BYTES = 1 << 16
BUFFER_BYTES = 1 << 20
TICK_S = 0.02
"""How often the kernel is asked which nodes listen: far below any timer of a cluster."""

LATE_S = 0.1
"""A turn that comes so late says that the machine was busy elsewhere; it is counted."""

_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER so that close sends a reset."""


class Proxy:
    """See the module. `turn` does what is to be done now; `command` carries out one order."""

    def __init__(self, seed: int = 0) -> None:
        self.rules = FREE
        self.fronts: dict[str, Front] = {}
        self.late = 0
        self.latest_s = 0.0
        self.passed = 0
        self._connections: set[Through] = set()
        self._delayed: set[Through] = set()
        self._served_at = 0.0
        self._selector = selectors.DefaultSelector()
        self._random = random.Random(seed)
        self._tick_due = 0.0
        self._listening = ListeningPorts()

    # --- orders

    def watch_orders(self, orders: int) -> None:
        self._selector.register(orders, selectors.EVENT_READ, None)

    def command(self, order: dict[str, Any]) -> dict[str, Any]:
        """Carry out one order and return its answer. Raises `KeyError` and `ValueError` for what is none."""
        match order["do"]:
            case "front":
                front = Front(order["name"], int(order["target"]), order.get("party", ""))
                self.fronts[order["key"]] = front
                return {"port": front.port}
            case "rules":
                self._follow(Rules.from_json(order))
                return {}
            case "tell":
                told = {"late": self.late, "latest_s": self.latest_s, "bytes": self.passed}
                self.latest_s = 0.0
                return told | {"connections": sorted([each.who, each.front.name] for each in self._connections)}
        raise ValueError(f"no such order: {order}")

    def _follow(self, rules: Rules) -> None:
        """From now on these hold. Connections that a cut resets are reset: by one that begins, or by one that ends."""
        self.rules = rules
        for each in list(self._connections):
            cut = rules.between(each.who, each.front.name)
            if cut is Cut.CLOSE or (cut is None and each.was_dropped):
                self._abort(each)
                continue
            each.was_dropped = each.was_dropped or cut is Cut.DROP
            self._serve(each)

    # --- the loop

    def turn(self, timeout_s: float | None = None) -> bool:
        """Wait for what comes next, at most `timeout_s`, and do it. True if there are orders to be read."""
        now = time.monotonic()
        wait_s = max(0.0, min([self._tick_due, *self._due_times()]) - now)
        events = self._selector.select(wait_s if timeout_s is None else min(wait_s, timeout_s))
        orders = False
        for key, mask in events:
            if key.data is None:
                orders = True
            elif isinstance(key.data, Front):
                self._accept(key.data)
            elif not key.data.closed:
                self._ready(key.data, key.fileobj, mask)
        now = self._served_at = time.monotonic()
        for each in list(self._delayed):
            self._serve(each)
            if not (each.asking.waiting or each.answering.waiting):
                self._delayed.discard(each)
        if now >= self._tick_due:
            self._tick(now)
        return orders

    def _due_times(self) -> list[float]:
        """When bytes that are delayed may arrive. What was due at the last turn waits for its sink, and not for a time."""
        pipes = [pipe for each in self._delayed for pipe in (each.asking, each.answering)]
        return [pipe.waiting[0][0] for pipe in pipes if pipe.waiting and pipe.waiting[0][0] > self._served_at]

    def _tick(self, now: float) -> None:
        late_s = now - self._tick_due
        if self._tick_due and late_s > LATE_S:
            self.late += 1
            self.latest_s = max(self.latest_s, late_s)
        self._tick_due = now + TICK_S
        listening = self._listening.now()
        for front in self.fronts.values():
            if front.target in listening and front.listener is None:
                self._selector.register(front.listen(), selectors.EVENT_READ, front)
            elif front.target not in listening:
                self._stop_listening(front)

    def _stop_listening(self, front: Front) -> None:
        if front.listener is not None:
            self._selector.unregister(front.listener)
            front.listener.close()
            front.listener = None

    def _accept(self, front: Front) -> None:
        if front.listener is None:
            return
        try:
            down, _ = front.listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        made = Through(front, down)
        self._connections.add(made)
        if front.party:
            made.introduce(front.party)
        self._serve(made)

    def _ready(self, through: Through, end: Any, mask: int) -> None:
        try:
            if end is through.up and not through.connected:
                self._connect_ended(through)
            elif mask & selectors.EVENT_READ:
                self._read(through, end)
        except OSError:
            self._abort(through)
            return
        self._serve(through)

    def _connect_ended(self, through: Through) -> None:
        trouble = through.up.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if trouble:
            self._stop_listening(through.front)
            raise OSError(trouble, "the node refused")
        through.connected = True

    def _read(self, through: Through, end: socket.socket) -> None:
        pipe = through.pipe_from(end)
        try:
            data = end.recv(READ_BYTES)
        except BlockingIOError:
            return
        if not data:
            pipe.read_all = True
            if not through.who:
                raise ConnectionResetError("gone before it said who it is")
            return
        self.passed += len(data)
        if not through.who:
            self._listen_for_hello(through, data)
        elif pipe is through.asking:
            through.note_first_frame(data)
        delay = self.rules.delay(*pipe.ways)
        due = 0.0
        if delay is not None:
            due = time.monotonic() + delay.least_s + self._random.random() * delay.spread_s
            self._delayed.add(through)
        pipe.put(data, due)

    def _listen_for_hello(self, through: Through, data: bytes) -> None:
        """Learn who this is, once the first frame is whole; whoever says anything else is taken for a client."""
        try:
            through.reader.feed(data)
            request = through.reader.next()
            if request is None:
                return
            if request.opcode != Opcode.HELLO:
                through.introduce(CLIENTS)
                return
            hello = REQUESTS[Opcode.HELLO]
            assert isinstance(hello, Layout)
            _, _, role, _, _, name = hello.decode(request.payload)
        except (BadFrame, BadPayload):
            through.introduce(CLIENTS)
            return
        through.introduce(name if role == Role.NODE else ADMINS if role == Role.ADMIN else CLIENTS)

    # --- one connection

    def _serve(self, through: Through) -> None:
        """Do what can be done for it, and wait for what it needs next."""
        if through.closed:
            return
        try:
            if through.who:
                self._go_on(through)
        except OSError:
            self._abort(through)
            return
        if through.done:
            self._close(through)
            return
        self._watch(through)

    def _go_on(self, through: Through) -> None:
        cut = self.rules.between(through.who, through.front.name)
        if cut is Cut.CLOSE:
            raise ConnectionResetError("cut")
        if cut is Cut.DROP:
            through.was_dropped = True
        if not through.called:
            if cut is not None:
                return  # a SYN that is lost, on either way
            through.called = True
            if through.up.connect_ex(("127.0.0.1", through.front.target)) == 0:
                through.connected = True
        if not through.connected:
            return
        if self._stands_still(through):
            return
        now = time.monotonic()
        for pipe in (through.asking, through.answering):
            if self.rules.cut(*pipe.ways) is None:
                pipe.pump(now)

    def _stands_still(self, through: Through) -> bool:
        """Whether it carries records from one to another whose records are stalled."""
        return through.asks_for == Opcode.RECORDS and (through.who, through.front.name) in self.rules.stalls

    def _watch(self, through: Through) -> None:
        """Register each end for just what is wanted of it: an end that is not may have died unseen (invariant 2)."""
        if self._stands_still(through):
            for end in (through.down, through.up):
                self._register(through, end, 0)
            return
        now = time.monotonic()
        for end in (through.down, through.up):
            mask = 0
            comes, goes = through.pipe_from(end), through.pipe_to(end)
            if end is through.up and not through.connected:
                mask = selectors.EVENT_WRITE if through.called else 0
            else:
                waits = through.who and self.rules.cut(*comes.ways) is not None
                if not comes.read_all and comes.held < BUFFER_BYTES and not waits:
                    mask |= selectors.EVENT_READ
                due = through.connected and goes.waiting and goes.waiting[0][0] <= now
                if due and self.rules.cut(*goes.ways) is None:
                    mask |= selectors.EVENT_WRITE
            self._register(through, end, mask)

    def _register(self, through: Through, end: socket.socket, mask: int) -> None:
        before = through.masks[end]
        if before == mask:
            return
        through.masks[end] = mask
        if not before:
            self._selector.register(end, mask, through)
        elif not mask:
            self._selector.unregister(end)
        else:
            self._selector.modify(end, mask, through)

    def _abort(self, through: Through) -> None:
        """Both ends get a reset."""
        for end in (through.down, through.up):
            with contextlib.suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._close(through)

    def _close(self, through: Through) -> None:
        if through.closed:
            return
        through.closed = True
        self._connections.discard(through)
        self._delayed.discard(through)
        for end in (through.down, through.up):
            self._register(through, end, 0)
            end.close()

    def close(self) -> None:
        for each in list(self._connections):
            self._close(each)
        for front in self.fronts.values():
            self._stop_listening(front)
            front.keeper.close()
        self._selector.close()
        self._listening.close()


def main() -> int:
    """Returns the exit code."""
    proxy, unread = Proxy(int(sys.argv[1]) if len(sys.argv) > 1 else 0), b""
    proxy.watch_orders(sys.stdin.fileno())
    try:
        while True:
            if not proxy.turn():
                continue
            more = os.read(sys.stdin.fileno(), READ_BYTES)
            if not more:
                return 0
            *lines, unread = (unread + more).split(b"\n")
            for line in lines:
                print(json.dumps(proxy.command(json.loads(line))), flush=True)
    finally:
        proxy.close()


if __name__ == "__main__":
    sys.exit(main())
