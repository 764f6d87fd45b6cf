"""A stop does not wait for a register that says nothing: whatever is asked of it is broken off."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator

import pytest

from rcache.agreement.agreement import Agreement, Wish
from rcache.agreement.etcd import EtcdRegister
from rcache.cluster.register import RegisterUnreachable, Revised
from rcache.cluster.wishes import pause
from tests.cluster.harness import by, one
from tests.contract.harness import PATIENCE_S, Task, assert_stays, wait_until

FIRST = one(2, embedded=False)
LONG_S = 10 * PATIENCE_S
"""What an answer may take: so long that a stop that waited for it would be seen to."""


@pytest.fixture
def silent() -> Iterator[str]:
    """An endpoint that takes connections, and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


ASKED: list[Callable[[EtcdRegister], object]] = [
    lambda register: register.read(),
    lambda register: register.compare_and_set(1, pause(FIRST, by("n1"), "a test", 5.0)),
    lambda register: register.begin(FIRST),
    lambda register: register.watch(0, LONG_S),
]


@pytest.mark.parametrize("ask", ASKED, ids=["read", "set", "begin", "watch"])
def test_closing_breaks_off_whatever_etcd_was_asked(silent: str, ask: Callable[[EtcdRegister], object]) -> None:
    register = EtcdRegister([silent], "/test", timeout_s=LONG_S)
    asking = Task(lambda: ask(register))
    assert_stays(lambda: not asking.is_done, "the question")
    register.close()
    if ask is ASKED[-1]:
        assert asking.result() is None, "whoever watches comes back"
    else:
        with pytest.raises(RegisterUnreachable):
            asking.result()
    with pytest.raises(RegisterUnreachable):
        register.read()


def test_an_agreement_stops_though_etcd_says_nothing(silent: str) -> None:
    register = EtcdRegister([silent], "/test", timeout_s=LONG_S)
    agreement = Agreement(register, "n1", lambda _revised: None)
    agreement.learn(Revised(1, FIRST))
    agreement.propose(Wish("pause", lambda view, asker: pause(view, asker, "a test", 5.0)))
    agreement.start()
    wait_until(lambda: agreement.proposing == "pause", "the wish is brought")
    assert agreement.stop(PATIENCE_S)
    assert agreement.errors == 0
