"""The listener: accepts connections and gives each a worker.

Which thread runs it: its own, `listener`, from `start` to `stop`. Started and joined by the service.
What it owns: the listening socket, and one spare file descriptor. It may lock: the register of connections, for moments.
What it must not know: what workers do.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import threading

from loguru import logger

from rcache.server.sharing import Placing
from rcache.server.worker import Connections, WorkerRun
from rcache_client.wire.frames import encode_reply
from rcache_client.wire.grammar import GOODBYE_REPLY
from rcache_client.wire.opcodes import NO_REQUEST_ID, Opcode, Status

BACKLOG = 1024
"""Connections the kernel keeps until they are accepted; it cuts this down to its own limit."""

STARVED_PAUSE_S = 0.1
"""How long the listener rests when the process has no file descriptor or thread left: accepting would only fail again."""

TRANSIENT = {errno.ECONNABORTED, errno.EINTR, errno.EPROTO, errno.EPERM}
"""Errors of accept that concern the one connection that did not come about."""

STARVED = {errno.EMFILE, errno.ENFILE}
"""Errors of accept that say that no file descriptor is left, of the process or of the machine."""


def bind(host: str, port: int) -> socket.socket:
    """A socket bound to the address, not listening yet: nobody connects before there is something to serve. Raises OSError."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
    except OSError:
        sock.close()
        raise
    return sock


class Listener:
    """Accepts until it is stopped."""

    def __init__(self, sock: socket.socket, connections: Connections, run: WorkerRun, placing: Placing) -> None:
        self._sock = sock
        self._placing = placing
        self._connections = connections
        self._run = run
        self._stopping = threading.Event()
        self._spare_fd: int | None = None
        self._starved = False
        self._thread = threading.Thread(target=self._accept_all, name="listener")

    def start(self) -> None:
        """Raises OSError where the address cannot be listened on after all."""
        self._sock.listen(BACKLOG)
        self._spare_fd = os.open(os.devnull, os.O_RDONLY)
        self._thread.start()

    def stop(self, timeout_s: float) -> bool:
        """Accept nobody any more. False if the thread did not end in time."""
        self._stopping.set()
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)  # wakes a blocked accept
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        self._sock.close()
        return not self._thread.is_alive()

    def _accept_all(self) -> None:
        """The thread's one catch-all: whatever accept meets, the node goes on listening."""
        try:
            self._accept_until_stopped()
        finally:
            self._close_spare()

    def _accept_until_stopped(self) -> None:
        while not self._stopping.is_set():
            try:
                sock, address = self._sock.accept()
            except OSError as error:
                if not self._stopping.is_set() and error.errno not in TRANSIENT:
                    self._recover(error)
                continue
            self._starved = False
            try:
                self._admit(sock, f"{address[0]}:{address[1]}")
            except Exception:
                self._connections.note_crash()
                logger.exception("listener: unhandled error; the newcomer is closed")
                sock.close()

    def _recover(self, error: OSError) -> None:
        """After an accept that failed: tell the newcomer if it was for want of a descriptor, and do not try again at once.

        Want of one is logged once until it is over: accept fails for it even while nobody comes.
        """
        starved = error.errno in STARVED
        if not (starved and self._starved):
            logger.error("accept: {}", error)
        self._starved = starved
        if starved:
            with contextlib.suppress(OSError):  # somebody else was quicker to take the spare one
                self._turn_away_with_spare()
        self._stopping.wait(STARVED_PAUSE_S)

    def _turn_away_with_spare(self) -> None:
        """Give the spare descriptor up for the time that it takes to tell the newcomers that wait. Raises OSError."""
        self._close_spare()
        self._sock.setblocking(False)  # the newcomer may have left meanwhile
        try:
            while not self._stopping.is_set():
                sock, address = self._sock.accept()
                self._connections.note_refused()
                self._turn_away(sock, f"{address[0]}:{address[1]}")
        except BlockingIOError:
            pass
        finally:
            self._sock.setblocking(True)
            self._spare_fd = os.open(os.devnull, os.O_RDONLY)

    def _close_spare(self) -> None:
        if self._spare_fd is not None:
            os.close(self._spare_fd)
            self._spare_fd = None

    def _admit(self, sock: socket.socket, peer: str) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        worker = self._connections.enter(lambda number, reserved: self._run.make(number, sock, peer, reserved=reserved))
        if worker is None:
            self._turn_away(sock, peer)
            return
        try:
            self._placing.place(worker)
        except RuntimeError as error:
            logger.error("no thread for {}: {}", peer, error)
            self._connections.leave(worker, "no thread")
            self._turn_away(sock, peer)
            self._stopping.wait(STARVED_PAUSE_S)

    @staticmethod
    def _turn_away(sock: socket.socket, peer: str) -> None:
        """Tell a newcomer that there is no place, without waiting for it."""
        logger.warning("{}: turned away, all connections are taken", peer)
        payload = GOODBYE_REPLY.encode(NO_REQUEST_ID, "all connections are taken; try again later")
        frame = encode_reply(Opcode.GOODBYE, Status.TOO_MANY_CONNECTIONS, NO_REQUEST_ID, 0, payload)
        with contextlib.suppress(OSError):
            sock.setblocking(False)
            sock.send(frame)
            sock.shutdown(socket.SHUT_WR)
        sock.close()
