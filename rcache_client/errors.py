"""What can go wrong in a call, split by what the caller should do about it.

What it is: the exceptions of the public interface, and the table that turns a status of the wire into one of them.
Which thread runs it: the caller's; nothing here blocks or locks.
What it owns: nothing.
What it must not know: sockets, retries, serializers.

- `Refused`: the request was understood and turned down. Asking again will be refused again.
- `NotExecuted`: surely nothing happened. Asking again later may work.
- `OutcomeUnknown`: a write that may or may not have happened. Look before writing again.
- `TimedOut`: a read that got no answer in time. Nothing was changed.
- `ProtocolError`: the other side does not speak the protocol. A bug, or not an rcache server.
- `WrongFormat`: the value there was written by another serializer.
- `SomeKeysFailed`: a many-key call of which a part was done.
- `ClientClosed`: a call on a client after its `close`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from rcache_client.wire.opcodes import Status, StatusClass, status_class, status_name


class RcacheError(Exception):
    """The root of all that a call raises once its arguments were found good.

    `what` happened, at which `server` ("" where none was reached), asked for which `operation` (the opcode's name, or "").
    """

    advice: ClassVar[str] = ""

    def __init__(self, what: str, server: str = "", operation: str = "") -> None:
        super().__init__(what, server, operation)
        self.what = what
        self.server = server
        self.operation = operation

    def __str__(self) -> str:
        where = " at ".join(part for part in (self.operation, self.server) if part)
        text = f"{where}: {self.what}" if where else self.what
        return f"{text} ({self.advice})" if self.advice else text


class Refused(RcacheError):
    """Understood and turned down: not executed, and asking the same again will be refused again."""

    advice = "not executed; asking again will not help"


class TooLarge(Refused):
    """A value or a frame above what the server's configuration allows."""

    advice = "not executed; send less at once, or raise --max-value-size or --max-frame-size"


class NoRoom(Refused):
    """The server's memory limit is reached and nothing may be, or could be, evicted."""

    advice = "not executed; delete something, or raise --memory-limit"


class NotANumber(Refused):
    """A count was asked of a value that is no number."""


class OutOfRange(Refused):
    """The count would leave the range of a signed 64-bit integer."""


class NotAllowed(Refused):
    """The server does not allow this to a client of this role, or in its configuration."""


class UnknownOpcode(Refused):
    """The server does not know this request; it is older than this client."""


class BadArgument(Refused):
    """The server found an argument outside what it takes."""


class AuthenticationFailed(Refused):
    """One side could not show that it knows the shared secret."""

    advice = "not executed; both sides need the same secret"


class WrongCluster(Refused):
    """A server belongs to another cluster than the first one that this client spoke to."""

    advice = "not executed; give the addresses of one cluster only, or make a new client"


class NotExecuted(RcacheError):
    """Surely nothing happened; asking again later may work."""

    advice = "not executed; try again later"


class Busy(NotExecuted):
    """The server has no capacity for this at the moment."""


class Paused(NotExecuted):
    """Writes are paused, and stayed so for as long as this call could wait."""


class ServersUnavailable(NotExecuted):
    """None of the addresses can be used; each is named with its reason."""


class PrimaryUnavailable(NotExecuted):
    """The node that answers for the key could not be reached, or none answered for it, for as long as this call could wait."""


class ConnectionLost(NotExecuted):
    """The connection ended before a read was answered, or before a write could be executed, and so did every other try."""


class PoolExhausted(NotExecuted):
    """All connections to the server were in use for as long as this call could wait."""

    advice = "not executed; try again later, or raise max_connections"


class BudgetSpent(NotExecuted):
    """The time ended before the request had wholly left, or before the server came to it."""

    advice = "not executed; try again, or give more budget"


class OutcomeUnknown(RcacheError):
    """A write that may or may not have been executed."""

    advice = "it may or may not have been executed; look before writing again"


class TimedOut(RcacheError):
    """A read that was not answered in time."""

    advice = "nothing was changed; it is safe to ask again"


class StillComputing(TimedOut):
    """`get_or_compute` waited for another caller, which had not computed the value when the time to wait ended."""

    advice = "ask again later, give more budget, or allow a stale value"


class ProtocolError(RcacheError):
    """What came is not what the protocol allows. Raised for reads, and for writes that were surely not executed."""

    advice = "is this an rcache server, of a version that goes with this client?"


class WrongFormat(RcacheError):
    """A value is there, but not one that this client's serializer wrote."""

    advice = "read it with the serializer it was written with"


class ClientClosed(RcacheError):
    """The client was closed."""

    advice = "make a new Client"


class SomeKeysFailed(RcacheError):
    """A many-key call succeeded for some keys only: `done` holds their results, `failed` the error of each other key."""

    def __init__(self, done: Mapping[Any, Any], failed: Mapping[Any, RcacheError], operation: str = "") -> None:
        first = next(iter(failed.items()), None)
        example = f"; the first: {first[0]!r}: {first[1]}" if first else ""
        super().__init__(f"{len(failed)} of {len(done) + len(failed)} keys failed{example}", operation=operation)
        self.args = (done, failed, operation)
        self.done = dict(done)
        self.failed = dict(failed)


_BY_STATUS: dict[int, type[RcacheError]] = {
    Status.TOO_LARGE: TooLarge,
    Status.NO_ROOM: NoRoom,
    Status.NOT_A_NUMBER: NotANumber,
    Status.OUT_OF_RANGE: OutOfRange,
    Status.UNKNOWN_OPCODE: UnknownOpcode,
    Status.NOT_ALLOWED: NotAllowed,
    Status.REPLY_FULL: TooLarge,
    Status.BAD_ARGUMENT: BadArgument,
    Status.BUSY: Busy,
    Status.PAUSED: Paused,
    Status.DEADLINE_PASSED: BudgetSpent,
    Status.FRAME_TOO_LONG: TooLarge,
    Status.BAD_MAGIC: ProtocolError,
    Status.BAD_VERSION: ProtocolError,
    Status.BAD_PAYLOAD: ProtocolError,
    Status.BAD_FLAGS: ProtocolError,
    Status.HELLO_EXPECTED: AuthenticationFailed,
    Status.WRONG_PROOF: AuthenticationFailed,
    Status.WRONG_CLUSTER: WrongCluster,
    Status.TOO_MANY_CONNECTIONS: Busy,
}

_BY_CLASS: dict[StatusClass, type[RcacheError]] = {
    StatusClass.ANSWERED: ProtocolError,
    StatusClass.REFUSED: Refused,
    StatusClass.TRY_LATER: NotExecuted,
    StatusClass.ELSEWHERE: PrimaryUnavailable,
    StatusClass.UNKNOWN_OUTCOME: OutcomeUnknown,
    StatusClass.CLOSING: NotExecuted,
}


def error_class(status: int) -> type[RcacheError]:
    """What to raise for a status that is not success. A status unknown to this version goes by its class."""
    return _BY_STATUS.get(status) or _BY_CLASS[status_class(status)]


def error_of(status: int, reason: str, server: str, operation: str) -> RcacheError:
    """The error for a status that is not success."""
    name = status_name(status)
    return error_class(status)(f"{name}: {reason}" if reason else name, server, operation)
