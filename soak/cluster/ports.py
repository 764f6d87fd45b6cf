"""A port of loopback that is kept for a process which is not there yet, or not at the moment.

What it is: `KeptPort`. Which thread runs it: any. What it owns: a socket that is bound and never listens.
What it must not know: who listens there.
"""

from __future__ import annotations

import socket


class KeptPort:
    """Nobody is given this port by chance while it is kept; a server that sets SO_REUSEADDR, as servers do, may listen on
    it."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(("127.0.0.1", 0))
        self.number: int = self._socket.getsockname()[1]

    def close(self) -> None:
        self._socket.close()
