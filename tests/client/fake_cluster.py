"""A cluster of scripted servers: each serves the buckets that it is the primary of, all on the same data, by a view that a test
changes.

What it owns: its servers. What it must not know: how a client finds out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from itertools import count, islice
from typing import Any
from zlib import crc32

from rcache_client.many import COUNT_BYTES
from rcache_client.wire.frames import HEADER_BYTES, Request
from rcache_client.wire.grammar import CHANGE_ENTRY, ITEM_ENTRY, KEY_ONLY, REQUESTS, Group
from rcache_client.wire.opcodes import DATA_OPCODES, Opcode, Status

from .fake_service import FakeService
from .scripted_server import CLUSTER, Line, Script, ScriptedServer

BUCKETS = 16

Intervene = Callable[[Line, Request], bool]
"""Looks at a request before it is executed; True: it has dealt with it."""


def node_facts(address: str, state: str = "up", incarnation: int = 1) -> dict[str, Any]:
    return {"incarnation": incarnation, "address": address, "data_dir_id": "d", "state": state, "since": 1}


def view_text(epoch: int, nodes: dict[str, Any], runs: list[Any], cluster_id: str = CLUSTER.hex()) -> bytes:
    facts = {"format": 2, "cluster_id": cluster_id, "epoch": epoch, "proposer": "one", "nonce": "n", "nodes": nodes}
    return json.dumps({**facts, "buckets": runs, "manager": None, "pause": None, "settings": {}}).encode()


class FakeCluster:
    """`primaries[bucket]` is the node that executes; `publish` tells nodes of it, in a view of a new epoch.

    `interventions[name]`: what a test does about requests to that node before they are looked at.
    """

    def __init__(self, *names: str, buckets: int = BUCKETS) -> None:
        self.service = FakeService()
        self.epoch = 0
        self.primaries: list[str | None] = [names[bucket % len(names)] for bucket in range(buckets)]
        self.opened = [1] * buckets
        self.states = dict.fromkeys(names, "up")
        self.interventions: dict[str, Intervene] = {}
        self._stack = ExitStack()
        self.servers: dict[str, ScriptedServer] = {}
        for name in names:
            self.start(name)
        self.publish()

    def start(self, name: str) -> ScriptedServer:
        """One more node; a test adds it to `states` for it to be in the view."""
        server = ScriptedServer(self._script(name), service=self.service, name=name)
        self.servers[name] = self._stack.enter_context(server)
        return server

    def __getitem__(self, name: str) -> ScriptedServer:
        return self.servers[name]

    def addresses(self, *names: str) -> list[str]:
        return [self.servers[name].address for name in names or self.servers]

    def publish(self, *told: str) -> None:
        """A new view, which these nodes know of (none named: all)."""
        self.epoch += 1
        nodes = {name: node_facts(self.servers[name].address, state) for name, state in self.states.items()}
        runs = [[1, name, [], opened] for name, opened in zip(self.primaries, self.opened, strict=True)]
        text = view_text(self.epoch, nodes, runs)
        for name in told or self.servers:
            self.servers[name].view, self.servers[name].epoch = text, self.epoch

    def give(self, buckets: Iterable[int], to: str | None) -> None:
        """Make another node the primary; a view of it is for `publish` to tell."""
        for bucket in buckets:
            self.primaries[bucket] = to
            self.opened[bucket] = self.epoch + 1

    def buckets_of(self, name: str) -> list[int]:
        return [bucket for bucket, primary in enumerate(self.primaries) if primary == name]

    def keys_of(self, name: str, several: int = 1) -> list[str]:
        """Keys whose primary that node is now."""
        keys = (f"key-{number}" for number in count())
        return list(islice((key for key in keys if self._primary(key.encode()) == name), several))

    def view_requests(self) -> int:
        return sum(len(server.view_requests) for server in self.servers.values())

    def close(self) -> None:
        self._stack.close()

    def __enter__(self) -> FakeCluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _primary(self, key: bytes) -> str | None:
        return self.primaries[crc32(key) & (len(self.primaries) - 1)]

    def _script(self, name: str) -> Script:
        def script(line: Line) -> None:
            line.hello()
            while True:
                request = line.request()
                intervene = self.interventions.get(name)
                if intervene is None or not intervene(line, request):
                    self.execute(name, line, request)

        return script

    def execute(self, name: str, line: Line, request: Request) -> None:
        """As a node would: what it is not the primary of is not executed."""
        if request.opcode not in DATA_OPCODES:
            line.execute(request)
            return
        entries = REQUESTS[request.opcode].decode(request.payload)
        if request.opcode in (Opcode.GET_MANY, Opcode.SET_MANY, Opcode.DELETE_MANY):
            self._execute_many(name, line, request, entries)
        elif self._primary(_key_of(request.opcode, entries)) == name:
            line.execute(request)
        else:
            line.refuse(request, Status.NOT_PRIMARY, f"not on {name}")

    def _execute_many(self, name: str, line: Line, request: Request, entries: list[Any]) -> None:
        reads = request.opcode == Opcode.GET_MANY
        parts = []
        entry_bytes = ITEM_ENTRY.bytes_min if reads else CHANGE_ENTRY.bytes_min
        room = self.service.frame_bytes_max - HEADER_BYTES - COUNT_BYTES - len(entries) * entry_bytes
        for entry in entries:
            if self._primary(_key_of(request.opcode, entry)) == name:
                payload = Group("one", REQUESTS[request.opcode].entry).encode(entry)  # type: ignore[union-attr]
                _, answer = self.service.answer(Request(request.opcode, 1, 0, payload))
                room -= len(answer) - COUNT_BYTES - entry_bytes
                parts.append(answer[COUNT_BYTES:] if room >= 0 else ITEM_ENTRY.encode(Status.REPLY_FULL, 0, 0, b""))
            elif reads:
                parts.append(ITEM_ENTRY.encode(Status.NOT_PRIMARY, 0, 0, b""))
            else:
                parts.append(CHANGE_ENTRY.encode(Status.NOT_PRIMARY, 0))
        line.last_executed = request.request_id
        line.reply(request, Status.OK, Group.join(parts))


def _key_of(opcode: int, values: tuple[Any, ...]) -> bytes:
    layout = REQUESTS[opcode]
    fields = (KEY_ONLY if opcode in (Opcode.GET_MANY, Opcode.DELETE_MANY) else getattr(layout, "entry", layout)).fields
    key = values[[field.name for field in fields].index("key")]
    assert isinstance(key, bytes)
    return key
