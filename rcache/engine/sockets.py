"""Timeouts kept by the kernel, for sockets that block.

Which thread runs it: the one that owns the socket. What it owns: nothing. What it must not know: what is sent over it.
"""

from __future__ import annotations

import socket
import struct


def set_kernel_timeout(sock: socket.socket, option: int, seconds: float) -> None:
    """A timeout kept by the kernel: unlike `settimeout` it leaves the socket blocking, which saves a poll for every call."""
    whole = int(seconds)
    micros = max(1, int((seconds - whole) * 1e6)) if not whole else int((seconds - whole) * 1e6)
    sock.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", whole, micros))
