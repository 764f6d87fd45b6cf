"""Which answers go with which question: the check of a reply before anyone acts on it.

What it is: the layouts of questions, and the rule that a reply's status must be one its opcode can have, and its payload
exactly what both demand.
Which thread runs it: the one that owns the connection.
What it owns: nothing.
What it must not know: sockets, and what the answers are for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rcache_client.wire import quick
from rcache_client.wire.grammar import REQUESTS, BadPayload, Layout, decode_reply
from rcache_client.wire.opcodes import Opcode, Status, StatusClass, opcode_name, status_class, status_name

_MISSING = frozenset({Status.NOT_FOUND})
_CHANGED = frozenset({Status.CHANGED, Status.NOT_FOUND, Status.EXISTS})

CONDITIONS: dict[int, frozenset[Status]] = {
    Opcode.HELLO: frozenset({Status.CHALLENGE}),
    Opcode.GET: _MISSING,
    Opcode.GET_AND_TOUCH: _MISSING,
    Opcode.ADD: frozenset({Status.EXISTS}),
    Opcode.REPLACE: _MISSING,
    Opcode.DELETE: _MISSING,
    Opcode.TOUCH: _MISSING,
    Opcode.INCREMENT: _MISSING,
    Opcode.DECREMENT: _MISSING,
    Opcode.APPEND: _MISSING,
    Opcode.PREPEND: _MISSING,
    Opcode.CAS_VERSION: _CHANGED,
    Opcode.CAS_HASH: _CHANGED,
    Opcode.INSPECT: _MISSING,
    Opcode.GET_WITH_TTL: _MISSING,
}
"""The answers beside OK that an opcode can have. Refusals and troubles can come to any."""


_QUICK: dict[int, Callable[[bytes], Any]] = {
    int(Opcode.GET): quick.decode_item,
    int(Opcode.GET_AND_TOUCH): quick.decode_item,
    int(Opcode.GET_WITH_TTL): quick.decode_item_and_time_left,
    int(Opcode.SET): quick.decode_version,
    int(Opcode.ADD): quick.decode_version,
    int(Opcode.REPLACE): quick.decode_version,
    int(Opcode.DELETE): quick.decode_version,
    int(Opcode.GET_MANY): quick.decode_items,
    int(Opcode.SET_MANY): quick.decode_changes,
    int(Opcode.DELETE_MANY): quick.decode_changes,
}
"""What reads an OK to these; for what is not well formed it returns None."""


def request_layout(opcode: Opcode) -> Layout:
    """The layout of a request that is not of the many-key kind."""
    layout = REQUESTS[opcode]
    assert isinstance(layout, Layout)
    return layout


def decode_answer(opcode: int, status: int, payload: bytes) -> Any:
    """The values of a reply's payload, as the grammar gives them; a GET_MANY's as `Items`. Raises `BadPayload`."""
    if not status and opcode in _QUICK:
        values = _QUICK[opcode](payload)
        if values is not None:
            return values  # else the grammar says what is wrong
    if status and status_class(status) is StatusClass.ANSWERED and status not in CONDITIONS.get(opcode, ()):
        raise BadPayload(f"{opcode_name(opcode)} cannot be answered {status_name(status)}")
    return decode_reply(opcode, status, payload)


def reason_of(values: Any) -> str:
    """The reason that the payload of a status from 0x10 on gives; a GOODBYE's is its second value."""
    return str(values[-1])
