"""What the server tells systemd: ready, alive, stopping, and what it is busy with.

What it is: the sender's side of the sd_notify protocol: one datagram a message, to the socket NOTIFY_SOCKET names.
Which thread runs it: any; every message opens and closes a socket of its own, so nothing is shared.
What it owns: nothing but the address.
What it must not know: what the messages are about.

Without NOTIFY_SOCKET (no systemd, or a unit that is not Type=notify) every message is a no-op.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping

SEND_TIMEOUT_S = 1.0
"""systemd reads its socket in microseconds; whoever reports must not hang on one that is stuck."""

EXTEND_S = 60.0
"""What systemd is asked to wait at each step of a long start or stop."""


class Notifier:
    """Sends messages to the service manager. Each returns whether it went out; none raises."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        path = environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + path[1:] if path.startswith("@") else path

    def ready(self) -> bool:
        """Start-up is over; systemd starts what waits for this unit."""
        return self._send("READY=1")

    def stopping(self) -> bool:
        """An orderly stop has begun."""
        return self._send("STOPPING=1")

    def status(self, text: str) -> bool:
        """One line for people, shown by `systemctl status`."""
        return self._send("STATUS=" + " ".join(text.split()))

    def alive(self) -> bool:
        """The watchdog's sign of life."""
        return self._send("WATCHDOG=1")

    def extend_timeout(self, seconds: float) -> bool:
        """Starting or stopping goes on: systemd is to wait at least `seconds` from now before it gives up."""
        return self._send(f"EXTEND_TIMEOUT_USEC={int(seconds * 1_000_000)}")

    def _send(self, message: str) -> bool:
        if not self._address:
            return False
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.settimeout(SEND_TIMEOUT_S)
                sender.sendto(message.encode(), self._address)
        except OSError:
            return False
        return True


def watchdog_interval_s(environ: Mapping[str, str] = os.environ, pid: int | None = None) -> float | None:
    """How often to call `alive`: half of what the watchdog allows. None where no watchdog waits for this process."""
    allowed_us = environ.get("WATCHDOG_USEC", "")
    meant_for = environ.get("WATCHDOG_PID", "")
    if not allowed_us.isdecimal() or int(allowed_us) == 0:
        return None
    if meant_for and meant_for != str(os.getpid() if pid is None else pid):
        return None
    return int(allowed_us) / 2_000_000
