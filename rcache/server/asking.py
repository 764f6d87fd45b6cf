"""Other nodes, asked one thing each on an operator's order, and what comes of asking them.

What it is: `Others`, which makes a connection for each question, so that an answer is of now.
Which thread runs it: the worker of the connection that orders; each question blocks up to twice ASK_S.
What it owns: nothing. What it must not know: what follows from an answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rcache.cluster.view import Node
from rcache.peers.line import Line, PeerUnreachable
from rcache.server.node_answers import Refusal
from rcache.server.orders import Ordered
from rcache_client.address import parse_address
from rcache_client.handshake import Greeter
from rcache_client.wire.opcodes import Opcode, Status, status_name

ASK_S = 2.0
"""How long another node has to take a connection, and again to answer. One that is slower counts as one that does not."""


@dataclass(frozen=True, slots=True)
class Told:
    """What came of asking a node. `answers`: it greeted under its name, so it runs, whatever it said then; `values`: of an OK,
    else None; `trouble`: why there are none."""

    answers: bool = False
    values: tuple[Any, ...] | None = None
    trouble: str = ""


class Others:
    """See the module."""

    def __init__(self, greeter: Greeter) -> None:
        self._greeter = greeter

    def ask(self, name: str, node: Node, order: Ordered, opcode: Opcode, *values: Any) -> Told:
        """Ask the node of that name. One that there is no time to ask does not count as silent: raises `Refusal`."""
        if order.left_s() < ASK_S:
            raise Refusal(Status.DEADLINE_PASSED, f"no time is left to ask {name}, so it was not: give the order more")
        line = Line(parse_address(node.address), self._greeter, ASK_S)
        answers = False
        try:
            line.connected()
            if line.welcome is None or line.welcome.node_name != name:
                there = line.welcome.node_name if line.welcome is not None else "somebody"
                return Told(trouble=f"at {node.address} it is {there} who answers")
            answers = True
            status, answer = line.ask(opcode, *values, timeout_s=ASK_S)
        except PeerUnreachable as error:
            return Told(answers, trouble=str(error))
        finally:
            line.close()
        if status != Status.OK:
            return Told(answers, trouble=f"{status_name(status)}: {answer[-1]}")
        return Told(answers, tuple(answer))

    def runs(self, name: str, node: Node, order: Ordered) -> bool:
        """Whether the node of that name is heard at its address."""
        return self.ask(name, node, order, Opcode.PING).answers
