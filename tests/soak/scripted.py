"""Servers that answer as a test wants them to, for the load drivers and the benchmark's own checks."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread

from soak.bench import traffic
from soak.bench.peers import Peer, Running

PEER = Peer("scripted", "none", (), traffic.redis)


@contextmanager
def scripted_server(answer: Callable[[bytes], bytes], request_bytes: int, connections: int = 1) -> Iterator[Running]:
    """Answers every `request_bytes` bytes with what `answer` makes of them, on so many connections; b"" hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with suppress(ConnectionError):  # the load driver hangs up in the middle of a reply
                for _ in range(connections):
                    connection, _ = listener.accept()
                    thread = Thread(target=converse, args=(connection,), name="scripted-connection")
                    thread.start()
                    conversations.append(thread)

        def converse(connection: socket.socket) -> None:
            with connection, suppress(ConnectionError):
                connection.settimeout(30)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                held = b""
                while received := connection.recv(65_536):
                    held += received
                    while len(held) >= request_bytes:
                        said = answer(held[:request_bytes])
                        held = held[request_bytes:]
                        if not said:
                            return
                        connection.sendall(said)

        conversations: list[Thread] = []
        accepting = Thread(target=serve, name="scripted-server")
        accepting.start()
        yield Running(PEER, 0, listener.getsockname()[1], Path(), up_after_s=0.0)
        for thread in (accepting, *conversations):
            thread.join(30)
            assert not thread.is_alive()
