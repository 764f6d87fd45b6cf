"""A primary that was stopped without its clocks noticing it, and wakes up with requests waiting: with `--reads confirmed` it
answers nothing that its heir has changed meanwhile; with `--reads lease`, which goes by the clock, it does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rcache_client.wire.grammar import decode_reply
from rcache_client.wire.opcodes import Opcode, Status
from soak.server_process import ServerProcess
from tests.integration.cluster import Cluster, until, values_of
from tests.integration.hidden_pause import HiddenPauses
from tests.integration.wire import Wire, request

ALONE, SHARED = 1, 8
"""So many connections: each has a worker of its own; they share one (native engine)."""
DEPTH = 5
ANSWER_S = 20.0
BUDGET_MS = 2000
"""Long enough to be answered; what is not by then is told so."""

CASES = [("native", ALONE), ("native", SHARED), ("reference", SHARED)]


class Paused:
    """Two nodes: `a` keeps the register, and `b` is to be stopped where nobody sees it."""

    def __init__(self, directory: Path, *arguments: str) -> None:
        directory.mkdir()
        self.cluster = Cluster(directory, *arguments)
        self._pauses = HiddenPauses(directory)
        try:
            self.cluster.add("a")
            self.cluster.nodes["b"] = self.b = ServerProcess(
                directory / "b",
                "--node",
                self.cluster.nodes["a"].address,
                *arguments,
                name="b",
                environment=self._pauses.environment,
            )
            self.cluster.settle()
            values = values_of(100, "old")
            self.cluster.write(values)
            view = self.cluster.view()
            self.keys = [key for key in values if self.cluster.primary_of(key, view) == "b"][:DEPTH]
        except BaseException:
            self.cluster.close()
            raise

    def asked_after_a_hidden_pause(self, connections: int) -> list[tuple[int, object]]:
        """What `b` answers to requests that reached it while it stood still, and its keys were changed at `a`."""
        wires = [Wire(self.b.address) for _ in range(connections)]
        asked = b"".join(
            request(Opcode.GET, key, request_id=number, budget_ms=BUDGET_MS) for number, key in enumerate(self.keys)
        )
        try:
            for wire in wires:  # they are at their workers, and answered
                wire.send(asked)
                assert {_told(wire)[0] for _ in self.keys} == {Status.OK}
            self._pauses.stop(self.b)
            self.cluster.silent.add("b")
            until("a takes over", lambda: not self.cluster.view("a").primaries_of("b"))
            for key in self.keys:
                self.cluster.call(key, lambda client, key=key: client.set(key, b"new"))  # type: ignore[misc]
            for wire in wires:
                wire.send(asked)
            self._pauses.go_on(self.b)
            return [told for wire in wires for _ in self.keys if (told := _told_at_last(wire)) is not None]
        finally:
            for wire in wires:
                wire.close()


def _told(wire: Wire) -> tuple[int, object]:
    reply = wire.reply(ANSWER_S)
    assert reply is not None
    values = decode_reply(reply.opcode, reply.status, reply.payload)
    return reply.status, values[2] if reply.status == Status.OK else values


def _told_at_last(wire: Wire) -> tuple[int, object] | None:
    """None where the connection was ended in place of an answer."""
    try:
        return _told(wire)
    except (ConnectionError, AssertionError):
        return None


MakePaused = Callable[..., Paused]


@pytest.fixture
def paused_with(tmp_path: Path) -> Iterator[MakePaused]:
    made: list[Paused] = []

    def make(*arguments: str) -> Paused:
        made.append(Paused(tmp_path / "cluster", *arguments))
        return made[-1]

    yield make
    for paused in made:
        paused.cluster.close()


@pytest.mark.parametrize(("engine", "connections"), CASES)
def test_no_value_of_old_is_answered_after_a_pause_that_no_clock_shows(
    paused_with: MakePaused, engine: str, connections: int
) -> None:
    paused = paused_with("--engine", engine, "--reads", "confirmed")
    told = paused.asked_after_a_hidden_pause(connections)
    assert [value for status, value in told if status == Status.OK] == []
    assert told, "whoever waited is told, or at least some are, before the connections end"
    paused.cluster.silent.clear()
    paused.cluster.settle()
    assert paused.cluster.read(paused.keys) == dict.fromkeys(paused.keys, b"new")


@pytest.mark.parametrize(("engine", "connections"), CASES)
def test_by_leases_it_is(paused_with: MakePaused, engine: str, connections: int) -> None:
    """What `--reads confirmed` is for; and the test above can see it."""
    told = paused_with("--engine", engine, "--reads", "lease").asked_after_a_hidden_pause(connections)
    values = [value for status, value in told if status == Status.OK]
    assert any(isinstance(value, bytes) and value.startswith(b"old") for value in values), told
