"""Who tells: rcached with values and without, and Redis by keyspace notifications.

What it is: `Contender`, a server and what subscribers send it. Which thread runs it: any. What it owns: nothing.
What it must not know: what is measured.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from rcache_client.answers import request_layout
from rcache_client.feed_set import WAIT_S
from rcache_client.node_feed import BYTES_MAX
from rcache_client.wire.feeds import Selects, encode_places
from rcache_client.wire.frames import encode_request
from rcache_client.wire.opcodes import Opcode
from soak.bench.peers import Needs, Peer, peer_named

NOTIFY = ("--notify-keyspace-events", "KEA")
"""As its documentation has it for everything: each change goes to two channels. (EA alone, which is what is listened to here,
was as fast.)"""

PATTERN = "__keyevent@0__:*"
"""One message for each change, with the key. Those of the other channel, `__keyspace@0__:KEY`, say the same."""


@dataclass(frozen=True)
class Contender:
    """`protocol`: the word of soak/load/hear.c; `subscribe` and `ask`: what a subscriber sends once, and again and again."""

    name: str
    server: str
    protocol: str
    subscribe: bytes
    ask: bytes = b""
    values: bool = False

    def peer(self, engine: str = "auto") -> Peer:
        """Its server, with an append log that is synced every second, as rcached has one unless told otherwise."""
        peer = peer_named(self.server, Needs(log="interval"), engine)
        return replace(peer, flags=peer.flags + NOTIFY) if self.server == "redis" else peer

    def why_not(self) -> str:
        """What keeps it from being measured; "" if nothing does."""
        peer = self.peer()
        return "" if peer.path else f"{peer.program} is not installed"


def _subscribe(*, values: bool) -> bytes:
    asked = request_layout(Opcode.SUBSCRIBE).encode(int(values), Selects.EVERYTHING, b"", encode_places({}))
    return encode_request(Opcode.SUBSCRIBE, 1, 0, asked)


_EVENTS = encode_request(Opcode.EVENTS, 1, int(WAIT_S * 1000), request_layout(Opcode.EVENTS).encode(BYTES_MAX))
"""As the Python client asks."""

VALUES = Contender("rcached, values", "rcached", "rcache", _subscribe(values=True), _EVENTS, values=True)
NAMES = Contender("rcached, names", "rcached", "rcache", _subscribe(values=False), _EVENTS)
REDIS = Contender("redis, names", "redis", "redis", f"PSUBSCRIBE {PATTERN}\r\n".encode())

CONTENDERS = (VALUES, NAMES, REDIS)
