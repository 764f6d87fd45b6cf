"""Keys for calls of functions: the same for the same call in every process, and never the same for two different ones.

What it is: a canonical encoding of arguments, and the key of a call made from it. Pure.
Which thread runs it: the caller's. What it owns: nothing. What it must not know: clients, values.

Each argument is a letter for its type, its length where it has no end of its own, and its text; so no two values have one
encoding, and 1, 1.0, True and "1" have four. Nothing depends on `repr`, `hash`, an order of insertion, or an address in memory.
Only exact types are taken: what a subclass adds would be left out.
"""

from __future__ import annotations

import datetime
import decimal
import inspect
import uuid
from collections.abc import Callable
from enum import Enum
from hashlib import blake2b
from typing import Any

KEY_PREFIX = b"cached:"
"""What all these keys begin with."""

PLAIN_BYTES_MAX = 200
"""A longer key is cut to its name and a hash: it would weigh as much as a small value, in each item and each request."""

NAME_BYTES_MAX = 100
"""Of a name that is longer no more is shown before the hash."""

HASH_BYTES = 32
"""256 bits: nobody finds two calls with one hash, be they free to choose the arguments."""

DEPTH_MAX = 32
"""Deeper is a structure that holds itself, most often."""


def call_key(name: str, version: str, signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
    """The key of the call; arguments that were left out count as their defaults. Raises `TypeError` as the call would, and
    for an argument that has no canonical encoding."""
    bound = signature.bind(*args, **kwargs)
    bound.apply_defaults()
    parts = []
    for parameter, value in bound.arguments.items():
        try:
            parts.append(canonical(parameter) + canonical(value))
        except TypeError as error:
            raise TypeError(f"argument {parameter!r} of {name}: {error}") from None
    return bounded_key(name, canonical(version) + b"".join(parts))


def bounded_key(name: str, rest: bytes) -> bytes:
    """A key of the function's name and that; with a hash of both where it would be long."""
    shown = name.encode("utf-8", "surrogatepass")
    plain = KEY_PREFIX + shown + b":" + rest
    if len(plain) <= PLAIN_BYTES_MAX:
        return plain
    digest = blake2b(plain, digest_size=HASH_BYTES).hexdigest()
    return KEY_PREFIX + shown[:NAME_BYTES_MAX] + b":#" + digest.encode()


def function_name(function: Callable[..., Any]) -> str:
    """Module and qualified name. Raises `ValueError` where those do not tell one function from another."""
    module = getattr(function, "__module__", None)
    qualname = getattr(function, "__qualname__", None)
    if not module or not qualname:
        raise ValueError(f"{function!r} has no name that lasts; give name=")
    if module == "__main__":
        raise ValueError(f"{qualname} is of __main__, as functions of other programs are; give name=, or put it into a module")
    if "<" in qualname:
        raise ValueError(f"{module}.{qualname} may be one of several, and what it closes over is not in its key; give name=")
    return f"{module}.{qualname}"


def canonical(value: Any, depth: int = 0) -> bytes:
    """The canonical encoding. Raises `TypeError` for what has none."""
    if depth > DEPTH_MAX:
        raise TypeError(f"it is nested deeper than {DEPTH_MAX} levels")
    encode = _SIMPLE.get(type(value))
    if encode is not None:
        return encode(value)
    many = _SEVERAL.get(type(value))
    if many is not None:
        letter, members = many
        return letter + b"%d:" % len(value) + b"".join(members(value, depth + 1))
    if isinstance(value, Enum):
        kind = type(value)
        return b"e" + _sized(f"{kind.__module__}.{kind.__qualname__}.{value.name}".encode())
    hint = "; pass key= to say what the key is made of"
    raise TypeError(f"a {type(value).__module__}.{type(value).__qualname__} has no canonical encoding{hint}")


def _sized(data: bytes) -> bytes:
    return b"%d:" % len(data) + data


def _text(value: str) -> bytes:
    return _sized(value.encode("utf-8", "surrogatepass"))


def _datetime(value: datetime.datetime) -> bytes:
    zone = value.tzinfo
    if zone is not None and type(zone) is not datetime.timezone:
        raise TypeError(f"a datetime with a {type(zone).__qualname__} has no canonical encoding; turn it into UTC")
    return _text(f"{value.isoformat()}/{value.fold}")


def _in_order(values: Any, depth: int) -> list[bytes]:
    return [canonical(value, depth) for value in values]


def _sorted(values: Any, depth: int) -> list[bytes]:
    return sorted(_in_order(values, depth))


def _pairs(values: dict[Any, Any], depth: int) -> list[bytes]:
    return sorted(canonical(key, depth) + canonical(value, depth) for key, value in values.items())


_SIMPLE: dict[type, Callable[[Any], bytes]] = {
    type(None): lambda _: b"n",
    bool: lambda value: b"T" if value else b"F",
    int: lambda value: b"i" + _text(hex(value)),  # decimal digits beyond 4,300 would be refused
    float: lambda value: b"f" + _text(value.hex()),
    complex: lambda value: b"c" + _text(f"{value.real.hex()},{value.imag.hex()}"),
    str: lambda value: b"s" + _text(value),
    bytes: lambda value: b"b" + _sized(value),
    bytearray: lambda value: b"B" + _sized(bytes(value)),
    decimal.Decimal: lambda value: b"D" + _text(str(value)),
    uuid.UUID: lambda value: b"u" + _text(value.hex),
    datetime.date: lambda value: b"d" + _text(value.isoformat()),
    datetime.datetime: lambda value: b"m" + _datetime(value),
    datetime.timedelta: lambda value: b"a" + _text(f"{value.days},{value.seconds},{value.microseconds}"),
}

_SEVERAL: dict[type, tuple[bytes, Callable[[Any, int], list[bytes]]]] = {
    tuple: (b"t", _in_order),
    list: (b"l", _in_order),
    set: (b"S", _sorted),
    frozenset: (b"Z", _sorted),
    dict: (b"M", _pairs),
}
