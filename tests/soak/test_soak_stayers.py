"""Those who ask every node for everything: what they write down, and that two nodes which both answer are found by it.

Nodes are played by a thread that answers by a rule which the test may change, so that nothing here waits for a fixed time.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rcache_client.wire.frames import Request, RequestReader, encode_reply
from rcache_client.wire.grammar import ITEM, KEY_ONLY, STORE, VERSION_REPLY
from rcache_client.wire.opcodes import Opcode, Status
from soak.checker import verify
from soak.cluster import lanes as module
from soak.cluster.clients import history_file
from soak.cluster.lanes import TURNS_WAITING_MAX, write_once
from soak.cluster.stayers import Orders, Stayers, StaySpec, is_stayer, stayer_of
from soak.cluster.workload import stay_keys
from soak.history import Op, Operation, Outcome, read_history

PATIENCE_S = 10.0
ROUND_S = 3600.0
"""Longer than a test: rounds are turned by moving the start."""

Rule = Callable[["Node", Request], bytes | None]


def serve(node: Node, request: Request) -> bytes:
    """As the primary of all buckets would."""
    if request.opcode == Opcode.SET:
        _, _, key, value = STORE.decode(request.payload)
        node.held[key] = value
        return encode_reply(request.opcode, Status.OK, request.request_id, 1, VERSION_REPLY.encode(7))
    (key,) = KEY_ONLY.decode(request.payload)
    if key not in node.held:
        return encode_reply(request.opcode, Status.NOT_FOUND, request.request_id, 1)
    return encode_reply(request.opcode, Status.OK, request.request_id, 1, ITEM.encode(0, 7, node.held[key]))


def refuse(_node: Node, request: Request) -> bytes:
    return encode_reply(request.opcode, Status.NOT_PRIMARY, request.request_id, 2)


def say_nothing(_node: Node, _request: Request) -> None:
    return None


class Node:
    """What it is asked while its rule says nothing waits, and is answered by the next rule first: as after SIGCONT."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.held: dict[bytes, bytes] = {}
        self.asked: list[Request] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._ends: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                end, _ = self._listener.accept()
                end.settimeout(0.01)
                self._ends.append(end)
                self._threads.append(threading.Thread(target=self._serve, args=(end,)))
                self._threads[-1].start()

    def _serve(self, end: socket.socket) -> None:
        reader, waiting = RequestReader(1 << 20), list[Request]()
        with contextlib.suppress(OSError):
            while True:
                try:
                    data = end.recv(1 << 16)
                    if not data:
                        return
                    reader.feed(data)
                except TimeoutError:
                    pass
                while (request := reader.next()) is not None:
                    if request.opcode == Opcode.HELLO:
                        end.sendall(encode_reply(Opcode.HELLO, Status.OK, request.request_id, 1))
                        continue
                    self.asked.append(request)
                    waiting.append(request)
                while waiting and (answer := self.rule(self, waiting[0])) is not None:
                    end.sendall(answer)
                    waiting.pop(0)

    def hang_up(self) -> None:
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.hang_up()
        for thread in self._threads:
            thread.join(PATIENCE_S)
        for end in self._ends:
            end.close()


@pytest.fixture
def nodes() -> Iterator[dict[str, Node]]:
    made = {"n1": Node(serve), "n2": Node(refuse)}
    yield made
    for node in made.values():
        node.close()


@pytest.fixture
def staying(nodes: dict[str, Node], tmp_path: Path) -> Iterator[Stayers]:
    ports = {name: node.port for name, node in nodes.items()}
    made = Stayers(StaySpec(ports, time.monotonic_ns(), ROUND_S, str(tmp_path)))
    made.follow(Orders(busy=True))
    yield made
    made.close()
    made.selector.close()


def until(staying: Stayers, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it does not come"
        staying.turn()


def settle(staying: Stayers, *names: str) -> None:
    """Nothing more is asked, and all that was asked of these nodes is answered. (A write that is on its way is in no history
    yet, and may be read by then.)"""
    staying._due = time.monotonic() + PATIENCE_S
    until(staying, lambda: not any(staying.notebooks[name]._open[0] for name in names))


def writes_at(node: Node) -> int:
    return sum(each.opcode == Opcode.SET for each in node.asked)


def noted(staying: Stayers, node: str = "n1") -> int:
    """How many calls at a node were written down."""
    return sum(staying.notebooks[node].counts.outcomes.values())


def told(tmp_path: Path, number: int = 0) -> list[Operation]:
    files = (history_file(tmp_path, number, stayer_of(name)) for name in ("n1", "n2"))
    return read_history([path for path in files if path.exists()]).operations


def test_what_is_answered_is_written_down_and_a_refusal_is_not(
    staying: Stayers, nodes: dict[str, Node], tmp_path: Path
) -> None:
    until(staying, lambda: noted(staying) > 20 * len(stay_keys(0)) and len(nodes["n2"].asked) > 100)
    settle(staying, "n1", "n2")
    found = told(tmp_path)
    assert {each.client for each in found} == {"stay-n1"}
    assert is_stayer("stay-n1")
    assert {each.key for each in found} == set(stay_keys(0))
    assert {(each.op, each.outcome) for each in found} == {(Op.GET, Outcome.OK), (Op.SET, Outcome.OK)}
    written = [each.value for each in found if each.op == Op.SET]
    assert len(set(written)) == len(written)
    assert verify(found).fine
    assert not staying.notebooks["n2"].counts.strange


def test_a_node_that_answers_by_what_it_had_is_found(staying: Stayers, nodes: dict[str, Node], tmp_path: Path) -> None:
    """It is stopped, another takes over and is written to, it goes on and answers what waited at it: a lease that is ignored, a
    grant of an older view, a bucket opened too early."""
    old, heir = nodes["n1"], nodes["n2"]
    until(staying, lambda: len(old.held) == len(stay_keys(0)))
    old.rule = say_nothing
    asked = len(old.asked)
    keys = 2 * len(stay_keys(0))
    until(
        staying, lambda: len({(each.opcode, each.payload[:40]) for each in old.asked[asked:]}) >= keys
    )  # all connections wait
    staying.follow(Orders(busy=True, spared=("n1",)))
    heir.held, heir.rule = dict(old.held), serve
    count = len(heir.asked)
    until(staying, lambda: len(heir.asked) > count + 20 * len(stay_keys(0)))
    settle(staying, "n2")
    assert verify(told(tmp_path)).fine
    staying.follow(staying.orders)
    old.rule = refuse
    until(staying, lambda: noted(staying, "n2") > 20 * len(stay_keys(0)))
    settle(staying, "n1", "n2")
    assert verify(told(tmp_path)).fine, "a node that was deposed refuses"
    staying.follow(staying.orders)
    old.rule = serve
    late = len(old.asked)
    until(staying, lambda: len(old.asked) > late + 3 * len(stay_keys(0)))
    assert verify(told(tmp_path)).violations, "what it answers was overwritten at its heir"


def test_what_waited_at_a_stopped_node_is_read_from_first(staying: Stayers, nodes: dict[str, Node], tmp_path: Path) -> None:
    node = nodes["n1"]
    until(staying, lambda: len(node.held) == len(stay_keys(0)))
    node.rule = say_nothing
    before = len(node.asked)
    until(staying, lambda: len(node.asked) > before + 10 * len(stay_keys(0)))
    node.rule = serve
    count = noted(staying)
    until(staying, lambda: noted(staying) >= count + 10 * len(stay_keys(0)))
    settle(staying, "n1")
    waits = [(each.end_ns or 0) - each.start_ns for each in told(tmp_path)]
    assert max(waits) > 0.1e9, "asked while it was silent, answered when it went on"
    assert verify(told(tmp_path)).fine


def test_a_spared_node_is_only_read_from(staying: Stayers, nodes: dict[str, Node]) -> None:
    until(staying, lambda: len(nodes["n1"].held) == len(stay_keys(0)))
    staying.follow(Orders(busy=True, spared=("n1",)))

    before, count = writes_at(nodes["n1"]), writes_at(nodes["n2"])
    until(staying, lambda: writes_at(nodes["n2"]) > count + 10 * len(stay_keys(0)))
    assert writes_at(nodes["n1"]) - before <= len(stay_keys(0)), "at most the turn that was under way"


def test_a_key_that_is_not_there_is_read_as_nothing(staying: Stayers, nodes: dict[str, Node], tmp_path: Path) -> None:
    staying.follow(Orders(busy=True, spared=("n1", "n2")))
    until(staying, lambda: noted(staying) > len(stay_keys(0)))
    assert {(each.op, each.value, each.outcome) for each in told(tmp_path)} == {(Op.GET, None, Outcome.OK)}


def test_a_write_whose_answer_never_came_is_unknown(staying: Stayers, nodes: dict[str, Node], tmp_path: Path) -> None:
    node = nodes["n1"]
    node.rule = say_nothing
    until(staying, lambda: Opcode.GET in {each.opcode for each in node.asked} and writes_at(node) >= len(stay_keys(0)))
    node.hang_up()
    until(staying, lambda: noted(staying) >= len(stay_keys(0)))
    assert {(each.op, each.outcome, each.end_ns) for each in told(tmp_path)} == {(Op.SET, Outcome.UNKNOWN, None)}
    asked = len(node.asked)
    until(staying, lambda: len(node.asked) > asked)  # it connects again


def test_a_node_that_is_silent_for_very_long_is_given_up(
    staying: Stayers, nodes: dict[str, Node], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PATIENCE_S", 0.2)
    nodes["n1"].rule = say_nothing
    until(staying, lambda: noted(staying) >= len(stay_keys(0)))


def test_no_more_waits_than_may(staying: Stayers, nodes: dict[str, Node], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "READS_WAITING_MAX", 5 * len(stay_keys(0)))
    node = nodes["n1"]
    node.rule = say_nothing
    count = len(nodes["n2"].asked)
    until(staying, lambda: len(nodes["n2"].asked) > count + 40 * len(stay_keys(0)))
    for op, turns in ((Opcode.GET, 5), (Opcode.SET, TURNS_WAITING_MAX)):
        assert len([each for each in node.asked if each.opcode == op]) == turns * len(stay_keys(0))


def test_a_round_is_over_when_nothing_of_it_is_waited_for(staying: Stayers, nodes: dict[str, Node], tmp_path: Path) -> None:
    nodes["n1"].rule = say_nothing
    until(staying, lambda: len(nodes["n1"].asked) > len(stay_keys(0)))
    settle(staying, "n2")
    assert list(staying.rounds_over()) == [], "it is the one that is called"
    staying._spec = StaySpec(staying._spec.ports, staying._spec.start_ns - int(ROUND_S * 1e9), ROUND_S, str(tmp_path))
    staying.follow(staying.orders)
    over: list[tuple[str, int]] = []
    until(staying, lambda: over.extend(staying.rounds_over()) or bool(over))  # type: ignore[func-returns-value]
    assert over == [("stay-n2", 0)], "calls of round 0 wait at n1"
    nodes["n1"].rule = serve
    until(staying, lambda: over.extend(staying.rounds_over()) or len(over) == 2)  # type: ignore[func-returns-value]
    assert over == [("stay-n2", 0), ("stay-n1", 0)]
    until(staying, lambda: history_file(tmp_path, 1, "stay-n1").exists())
    assert {each.key for each in told(tmp_path, 1)} <= set(stay_keys(1))
    staying.close()
    assert sorted(staying.rounds_over(all_of_them=True)) == [("stay-n1", 1), ("stay-n2", 1)]


@pytest.mark.parametrize(
    "answer",
    [
        lambda _node, request: encode_reply(request.opcode, Status.NOT_ALLOWED, request.request_id, 1),
        lambda _node, request: encode_reply(Opcode.GET, Status.OK, request.request_id, 1, b"no item"),
        lambda _node, _request: b"nonsense, and long enough to be looked at",
        lambda node, request: serve(node, request) * 9999,  # more answers than questions
    ],
)
def test_what_no_fault_explains_is_strange(answer: Rule, staying: Stayers, nodes: dict[str, Node]) -> None:
    nodes["n1"].rule = answer
    until(staying, lambda: bool(staying.notebooks["n1"].counts.strange))


def test_a_write_past_the_views_leaves_no_trace(nodes: dict[str, Node], tmp_path: Path) -> None:
    node, deadline = nodes["n1"], time.monotonic() + PATIENCE_S
    with write_once(node.port, ["a", "b"]):
        while set(node.held) != {b"a", b"b"}:
            assert time.monotonic() < deadline
            time.sleep(0.001)
    assert told(tmp_path) == []


def test_what_it_is_told_survives_its_json() -> None:
    spec = StaySpec({"n1": 1, "n2": 2}, 5, 15.0, "/tmp/x")
    assert StaySpec.from_json(spec.to_json()) == spec
    orders = Orders(busy=True, spared=("n1",))
    assert Orders.from_json(orders.to_json()) == orders
