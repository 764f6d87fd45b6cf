"""What a subscriber is answered: SUBSCRIBE, EVENTS.

What it is: the two opcodes' payloads, turned into calls of a feed and back. Once SUBSCRIBE was answered the connection is a
feed's: it has a thread of its own, which may wait, and asks for nothing else.
Which thread runs it: the worker of the connection. EVENTS blocks for what comes, up to its deadline.
What it owns: the connection's feed. What it must not know: sockets; what is told when.
"""

from __future__ import annotations

import time
from typing import Any

from rcache.feeds.feed import Feed, FeedOver
from rcache.feeds.hub import Hub, NoTeller
from rcache.feeds.select import Selection
from rcache.server.node_answers import Refusal
from rcache_client.wire.feeds import Selects, decode_places, encode_notices, encode_places
from rcache_client.wire.grammar import REQUESTS, Layout
from rcache_client.wire.opcodes import Opcode, Role, Status

BYTES_MAX = 4 << 20
"""The most that one answer is made of, however much is asked for; one event may be larger."""


class FeedAnswers:
    """See the module. `frame_bytes_max`: of this node."""

    def __init__(self, hub: Hub, frame_bytes_max: int) -> None:
        self._hub = hub
        self._bytes_max = min(BYTES_MAX, frame_bytes_max // 2)
        self._feed: Feed | None = None

    @property
    def is_open(self) -> bool:
        """Whether this connection is a feed's."""
        return self._feed is not None

    def answer(self, opcode: int, payload: bytes, role: Role, budget_s: float) -> tuple[Any, ...]:
        """The values of the answer. Raises `Refusal`, BadPayload."""
        layout = REQUESTS[opcode]
        assert isinstance(layout, Layout)
        values = layout.decode(payload)
        if role is Role.NODE:
            raise Refusal(Status.NOT_ALLOWED, "nodes are told of changes by RECORDS")
        try:
            return self._subscribe(*values) if opcode == Opcode.SUBSCRIBE else self._events(values[0], budget_s)
        except FeedOver as over:
            raise Refusal(Status.STOPPING, str(over)) from None
        except NoTeller as none:
            raise Refusal(Status.BUSY, str(none)) from None

    def close(self) -> None:
        """The connection is gone."""
        if self._feed is not None:
            self._feed.close()
            self._feed = None

    def _subscribe(self, values: int, selects: int, selector: bytes, packed: bytes) -> tuple[Any, ...]:
        places = decode_places(packed)
        if (selects == Selects.KEY and not selector) or (selects == Selects.EVERYTHING and selector):
            raise Refusal(Status.BAD_ARGUMENT, "a key must not be empty, and everything has no selector")
        selection = Selection(Selects(selects), selector, values=bool(values))
        if self._feed is None:
            self._feed = Feed(self._hub, selection)
        elif self._feed.selection != selection:
            raise Refusal(Status.BAD_ARGUMENT, "this feed selects something else; another one needs another connection")
        return (encode_places(self._feed.add(places)),)

    def _events(self, bytes_max: int, budget_s: float) -> tuple[Any, ...]:
        if self._feed is None:
            raise Refusal(Status.NOT_ALLOWED, "SUBSCRIBE must come first")
        events = self._feed.next(min(bytes_max, self._bytes_max), time.monotonic() + budget_s)
        return (events.behind_ms, encode_notices(events.notices), events.records)
