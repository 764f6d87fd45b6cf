"""Small things that several test modules need."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread
from time import monotonic

SLACK_SECONDS = 0.5
"""What a busy machine may add to a budget."""


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Fail if the block outlives its budget."""
    began = monotonic()
    try:
        yield
    finally:
        took = monotonic() - began
        assert took < seconds + SLACK_SECONDS, f"took {took:.3f} s of {seconds} s"


def until(condition: Callable[[], bool]) -> None:
    """Wait, to a deadline, for what another thread or the kernel does within microseconds and tells nobody."""
    deadline = monotonic() + 10
    while not condition():
        assert monotonic() < deadline
        Event().wait(0.002)


def free_address() -> str:
    """An address where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


@contextmanager
def full_backlog() -> Iterator[str]:
    """An address that takes no more connections and refuses none: its queue is full, so that the kernel drops the SYN."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        waiting = []
        for _ in range(2):
            end = socket.socket()
            end.setblocking(False)
            end.connect_ex(address)
            waiting.append(end)
        try:
            yield f"127.0.0.1:{address[1]}"
        finally:
            for end in waiting:
                end.close()


@contextmanager
def running(*targets: Callable[[], object]) -> Iterator[list[Thread]]:
    """Run callables in threads; join them with a deadline."""
    threads = [Thread(target=target, name=f"test-{place}") for place, target in enumerate(targets)]
    for thread in threads:
        thread.start()
    try:
        yield threads
    finally:
        for thread in threads:
            thread.join(20)
            assert not thread.is_alive(), f"{thread.name} hangs"
