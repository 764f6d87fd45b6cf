"""Three nodes of rcached, one of which leaves by SIGTERM.

What it is: `rcache_side`, a context in which they run. Which thread runs it: the main thread.
What it owns: the processes, until it is left. What it must not know: what is measured meanwhile.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from rcache.cluster.view import View, decode_view
from rcache.peers.line import Line
from rcache_client import Client
from rcache_client.address import parse_address
from rcache_client.handshake import Greeter
from rcache_client.wire.opcodes import Opcode, Role, status_name
from soak.bench.errors import BenchError
from soak.handoff.keys import key_of
from soak.handoff.side import BATCH, NODES, WAIT_S, Side, wait_until
from soak.server_process import ServerProcess

MEMORY = "2G"
ASK_S = 5.0
FILL_S = 60.0


class RcacheSide:
    """See `side.Side`."""

    name = "rcached"
    command = f"rcached --memory-limit {MEMORY}, three of them; kill -TERM"

    def __init__(self, nodes: Sequence[ServerProcess]) -> None:
        self._nodes = nodes
        wait_until(self._is_whole, "the cluster is not whole")

    @property
    def servers(self) -> str:
        return ",".join(node.address for node in self._nodes[:-1])

    def fill(self, count: int, value: bytes) -> None:
        with Client(self.servers.split(","), budget=FILL_S) as client:
            for start in range(0, count, BATCH):
                client.set_many({key_of(number): value for number in range(start, min(start + BATCH, count))})

    def to_move(self) -> int:
        (text,) = self._ask(self._nodes[-1], Opcode.STATS, "")
        return int(json.loads(text)["items"]["items"])

    def hand_over(self) -> dict[str, float]:
        leaving = self._nodes[-1]
        began = time.monotonic()
        leaving.terminate()
        wait_until(lambda: self._is_left(leaving.name), f"{leaving.name} did not hand over")
        handed_s = time.monotonic() - began
        if code := leaving.wait(WAIT_S):
            raise BenchError(f"the node that left ended with code {code}")
        return {"seconds": handed_s, "ended_s": time.monotonic() - began}

    def _is_left(self, name: str) -> bool:
        """Whether the node has nothing any more, and every bucket its backup."""
        view = self._view()
        return not view.copies_of(name) and not view.lacking()

    def _is_whole(self) -> bool:
        view = self._view()
        return not view.lacking() and all(view.primaries_of(node.name) for node in self._nodes)

    def _view(self) -> View:
        return decode_view(self._ask(self._nodes[0], Opcode.VIEW, 0)[1])

    def _ask(self, node: ServerProcess, opcode: Opcode, *values: object) -> Any:
        line = Line(parse_address(node.address), Greeter("handoff", Role.ADMIN, None), ASK_S)
        try:
            status, answer = line.ask(opcode, *values, timeout_s=ASK_S)
        finally:
            line.close()
        if status:
            raise BenchError(f"{node.name} answered {opcode.name} with {status_name(status)}")
        return answer


@contextmanager
def rcache_side(directory: Path) -> Iterator[Side]:
    """The cluster, empty and whole; its files below `directory`."""
    with ExitStack() as stack:
        nodes: list[ServerProcess] = []
        for number in range(1, NODES + 1):
            join = ["--node", nodes[0].address] if nodes else []
            node = ServerProcess(directory / f"n{number}", "--memory-limit", MEMORY, *join, name=f"n{number}")
            nodes.append(stack.enter_context(node))
        yield RcacheSide(nodes)
