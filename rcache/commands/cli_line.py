"""A connection of rcache-cli to one node, over which it looks at the cluster and steers it.

What it is: `Door`, whichever of the given servers answers first, asked one thing at a time; its errors are those that
rcache-cli ends with.
Which thread runs it: the main thread; every call blocks to its budget at most.
What it owns: its connection, until `close`. What it must not know: commands.

Why not the client: it routes requests by the view, and sends again what came to nothing. Here one node is asked what it sees,
and an order is given once.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any

from rcache.commands.cli_exit import CliExit, CliStopped, code_of
from rcache.commands.cli_options import PROGRAM, CliOptions
from rcache.peers.line import Line, PeerUnreachable
from rcache_client import OutcomeUnknown, Role, ServersUnavailable, TimedOut
from rcache_client.address import parse_address
from rcache_client.client import BUDGET, CONNECT_TIMEOUT
from rcache_client.errors import RcacheError, error_of
from rcache_client.handshake import Greeter
from rcache_client.wire.opcodes import READ_OPCODES, Opcode, Status, opcode_name


class Door:
    """See the module. Raises `CliStopped` and errors of the client."""

    def __init__(self, options: CliOptions, budget_s: float = BUDGET) -> None:
        self.budget_s = options.budget or budget_s
        self._greeter = Greeter(PROGRAM, Role.ADMIN, options.secret)
        self._line = self._first(options.servers)

    @property
    def server(self) -> str:
        return str(self._line.address)

    def __enter__(self) -> Door:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._line.close()

    def ask(self, opcode: Opcode, *values: Any) -> Any:
        """The values of an OK."""
        return self._asked(self._line, opcode, *values, timeout_s=self.budget_s)

    def ask_at(self, address: str, opcode: Opcode, *values: Any, timeout_s: float) -> Any:
        """Ask another node of the same cluster, for no longer than `timeout_s`."""
        line = self._line_to(address, timeout_s)
        try:
            line.connected()
            return self._asked(line, opcode, *values, timeout_s=timeout_s)
        except PeerUnreachable as trouble:
            raise _cause(trouble) from trouble
        finally:
            line.close()

    def _first(self, servers: tuple[str, ...]) -> Line:
        troubles: list[PeerUnreachable] = []
        for server in servers:
            line = self._line_to(server, self.budget_s)
            try:
                line.connected()
            except PeerUnreachable as trouble:
                troubles.append(trouble)
            else:
                return line
        for each in troubles:
            if each.unwelcome:
                raise _cause(each) from each
        raise ServersUnavailable("no server can be used: " + "; ".join(map(str, troubles)))

    def _line_to(self, address: str, timeout_s: float) -> Line:
        return Line(parse_address(address), self._greeter, min(CONNECT_TIMEOUT, timeout_s))

    def _asked(self, line: Line, opcode: Opcode, *values: Any, timeout_s: float) -> Any:
        server = str(line.address)
        try:
            status, answer = line.ask(opcode, *values, timeout_s=timeout_s)
        except PeerUnreachable as trouble:
            if trouble.not_sent:
                raise _cause(trouble) from trouble
            kind = TimedOut if opcode in READ_OPCODES else OutcomeUnknown
            raise kind(str(trouble), operation=opcode_name(opcode)) from trouble
        if status == Status.OK:
            return answer
        reason = str(answer[-1]) if answer else ""
        error = error_of(status, reason, server, opcode_name(opcode))
        code = code_of(error)
        raise CliStopped(code, f"{server} refuses: {reason}" if code is CliExit.REFUSED and reason else str(error))


def _cause(trouble: PeerUnreachable) -> RcacheError:
    """What the client would say of it."""
    return trouble.__cause__ if isinstance(trouble.__cause__, RcacheError) else ServersUnavailable(str(trouble))
