"""Serializers: how a value becomes bytes, and bytes a value again.

What it is: the protocol that a serializer follows, and the three that come with the client.
Which thread runs it: the caller's, several at once; serializers hold no state.
What it owns: nothing.
What it must not know: keys, connections, statuses.

Each value carries 32 bits of user flags on the server. A serializer marks with them what it wrote, so that another one
refuses to read it rather than misread it. Nothing here, nor anything called from here, ever unpickles.
"""

from __future__ import annotations

import json
import re
from typing import Any, Protocol, TypeVar

from rcache_client.errors import WrongFormat

UNMARKED = 0
"""The flags of plain bytes, and of counters that the server created."""

STR_FLAGS = 0x72_73_00_01
"""The marks of this package begin with 'rs', so that they do not meet the small numbers that others use."""

JSON_FLAGS = 0x72_73_00_02

_COUNTER = re.compile(rb"-?[0-9]{1,19}")
"""What the server takes for a number: a signed 64-bit integer in ASCII."""

V = TypeVar("V")


class Serializer(Protocol[V]):
    """Turns values into bytes and back. An implementation must be safe to use from several threads at once."""

    joinable: bool
    """Whether two serialized values put together are one again; `append` and `prepend` need that."""

    def dump(self, value: V) -> tuple[bytes, int]:
        """The bytes, and the user flags (0 to 2**32-1) to keep with them. Raises `TypeError` for what it does not take.

        Equal values must give equal bytes, or `cas(previous=...)` would find a change where there was none.
        """

    def load(self, data: bytes, flags: int) -> V:
        """The value. Raises `WrongFormat` where `flags` say that something else wrote it."""


class BytesSerializer:
    """Bytes in, bytes out. Reads what any serializer wrote, as the bytes it is."""

    joinable = True

    def dump(self, value: bytes | bytearray | memoryview) -> tuple[bytes, int]:
        if type(value) is bytes:
            return value, UNMARKED
        if isinstance(value, (bytes, bytearray, memoryview)):
            return bytes(value), UNMARKED
        hint = "; encode it, or make the client with serializer=StrSerializer() or JsonSerializer()"
        raise TypeError(f"a value must be bytes-like, not {type(value).__name__}{hint}")

    def load(self, data: bytes, flags: int) -> bytes:  # noqa: ARG002 - bytes are bytes, whoever wrote them
        return data


class StrSerializer:
    """Text, as UTF-8. Reads unmarked bytes too (counters among them) where they are UTF-8."""

    joinable = True

    def dump(self, value: str) -> tuple[bytes, int]:
        if not isinstance(value, str):
            raise TypeError(f"a value must be a str with StrSerializer, not {type(value).__name__}")
        return value.encode(), STR_FLAGS

    def load(self, data: bytes, flags: int) -> str:
        if flags not in (STR_FLAGS, UNMARKED):
            raise WrongFormat(f"the value is marked {flags:#010x}, not as text")
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise WrongFormat(f"the value is not UTF-8: {error}") from error


class JsonSerializer:
    """Whatever JSON can hold. Equal values give equal bytes: keys are sorted, no spaces are put in.

    Reads its own values, and counters (an unmarked number). As JSON has it, tuples come back as lists and the keys of
    a dict as str.
    """

    joinable = False

    def dump(self, value: Any) -> tuple[bytes, int]:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":"))
        return text.encode(), JSON_FLAGS

    def load(self, data: bytes, flags: int) -> Any:
        counter = flags == UNMARKED and _COUNTER.fullmatch(data)
        if flags != JSON_FLAGS and not counter:
            raise WrongFormat(f"the value is marked {flags:#010x}, not as JSON")
        try:
            return json.loads(data)
        except ValueError as error:
            raise WrongFormat(f"the value is not JSON: {error}") from error
