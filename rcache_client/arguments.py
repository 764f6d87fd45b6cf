"""Checks of what a user passes in, so that a mistake is named where it was made.

What it is: keys, servers, counts turned into what the wire takes; `TypeError` and `ValueError` name the value.
Which thread runs it: the caller's. What it owns: nothing. What it must not know: connections.
"""

from __future__ import annotations

from collections.abc import Iterable

from rcache_client.address import Address, parse_address
from rcache_client.wire.opcodes import KEY_BYTES_MAX

Key = str | bytes
"""A key: text goes as UTF-8, so "a" and b"a" are the same key."""

COUNT_MIN, COUNT_MAX = -(1 << 63), (1 << 63) - 1

VERSION_MAX = (1 << 64) - 1

_SHOWN = 60
"""So much of a bad key is shown."""


def key_bytes(key: Key) -> bytes:
    """The key as the wire has it."""
    if type(key) is str:
        data = key.encode()
    elif isinstance(key, bytes):
        data = key
    elif isinstance(key, str):
        data = str(key).encode()
    else:
        raise TypeError(f"a key must be str or bytes, not {key!r}")
    if not 1 <= len(data) <= KEY_BYTES_MAX:
        raise ValueError(f"a key must have 1 to {KEY_BYTES_MAX} bytes, not {len(data)}: {key[:_SHOWN]!r}")
    return data


def whole_number(name: str, value: int, low: int, high: int) -> int:
    """The number, if it is whole and from `low` to `high`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, not {value!r}")
    if not low <= value <= high:
        raise ValueError(f"{name} must be from {low} to {high}, not {value}")
    return value


def parse_servers(servers: str | Iterable[str]) -> list[Address]:
    """One address or several; none twice, at least one."""
    texts = [servers] if isinstance(servers, (str, bytes)) else list(servers)
    addresses = [parse_address(text) for text in texts]
    if not addresses:
        raise ValueError("no server was given; write Client('host:port') or a list of them")
    for place, address in enumerate(addresses):
        if address in addresses[:place]:
            raise ValueError(f"the server {str(address)!r} was given twice")
    return addresses
