"""Which ports of this machine somebody listens on, as the kernel knows it.

What it is: `ListeningPorts`, a question over netlink (sock_diag): a look at listening sockets only, some microseconds, however
many connections there are. Which thread runs it: one. What it owns: its socket. What it must not know: who listens there, and
why.
"""

from __future__ import annotations

import socket
import struct

NETLINK_SOCK_DIAG = 4
SOCK_DIAG_BY_FAMILY = 20
NLM_F_REQUEST_DUMP = 0x301
NLMSG_ERROR, NLMSG_DONE = 2, 3
TCP_LISTEN = 10

ANSWER_BYTES = 1 << 16
ANSWER_S = 5.0
"""For the kernel to answer; it does at once, or something is wrong with this machine."""

_HEADER = struct.Struct("=IHHII")
_QUESTION = struct.Struct("=BBBBI48x")
_PORT = struct.Struct(">4xH")
"""In an answer: family, state, timer and retransmissions, then the port."""

_ASKED = _HEADER.pack(_HEADER.size + _QUESTION.size, SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST_DUMP, 0, 0) + _QUESTION.pack(
    socket.AF_INET, socket.IPPROTO_TCP, 0, 0, 1 << TCP_LISTEN
)


class ListeningPorts:
    """Ask with `now`. Raises `OSError` where the kernel cannot be asked."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG)
        self._socket.settimeout(ANSWER_S)

    def now(self) -> set[int]:
        """The ports of IPv4 that are listened on."""
        self._socket.send(_ASKED)
        found: set[int] = set()
        while True:
            data, place = self._socket.recv(ANSWER_BYTES), 0
            while place < len(data):
                length, kind, *_ = _HEADER.unpack_from(data, place)
                if kind == NLMSG_DONE:
                    return found
                if kind == NLMSG_ERROR:
                    raise OSError("the kernel does not say who listens (sock_diag)")
                found.add(_PORT.unpack_from(data, place + _HEADER.size)[0])
                place += (length + 3) & ~3

    def close(self) -> None:
        self._socket.close()
