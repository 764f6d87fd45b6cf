"""The proxy between the nodes: who is who, what is cut, what comes late, and what a dead node looks like through it."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from rcache_client.wire.frames import encode_request
from rcache_client.wire.grammar import REQUESTS
from rcache_client.wire.opcodes import ANY_CLUSTER, NONCE_BYTES, Opcode, Role
from soak.cluster.network import Network
from soak.cluster.ports import KeptPort
from soak.cluster.rules import ADMINS, CLIENTS, ETCD, FREE, Cut, Delay, Rules, both_ways

PATIENCE_S = 10.0
SILENCE_S = 0.2
"""Long enough for what is not held back to have come."""


class Echo:
    """A node that says back whatever it is told, and nothing else."""

    def __init__(self) -> None:
        self.kept = KeptPort()
        self.port = self.kept.number
        self.ends: list[socket.socket] = []
        self.heard = 0
        self._threads: list[threading.Thread] = []
        self.listen()

    def listen(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port))
        thread = threading.Thread(target=self._accept, args=(self._listener,))
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                end, _ = listener.accept()
                self.ends.append(end)
                thread = threading.Thread(target=self._serve, args=(end,))
                self._threads.append(thread)
                thread.start()

    def _serve(self, end: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := end.recv(1 << 16):
                self.heard += len(data)
                end.sendall(data)
            end.shutdown(socket.SHUT_WR)

    def die(self) -> None:
        for each in (self._listener, *self.ends):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        self.ends.clear()

    def close(self) -> None:
        self.die()
        for thread in self._threads:
            thread.join(PATIENCE_S)
        self.kept.close()


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with Network() as made:
        yield made


@pytest.fixture(autouse=True)
def _healed(network: Network) -> Iterator[None]:
    yield
    network.heal()


@pytest.fixture
def node() -> Iterator[Echo]:
    made = Echo()
    yield made
    made.close()


class Peer:
    """Somebody who connects to a node, and says who it is."""

    def __init__(self, address: str, name: str, role: Role = Role.NODE, *, hello: bool = True) -> None:
        host, _, port = address.rpartition(":")
        self.end = await_connection(host, int(port))
        self.end.settimeout(PATIENCE_S)
        if hello:
            payload = REQUESTS[Opcode.HELLO].encode(1, 1, role, ANY_CLUSTER, bytes(NONCE_BYTES), name)
            self.hello = encode_request(Opcode.HELLO, 1, 0, payload)
            self.end.sendall(self.hello)

    def greeted(self) -> Peer:
        assert self.take(len(self.hello)) == self.hello
        return self

    def take(self, count: int) -> bytes:
        data = b""
        while len(data) < count and (more := self.end.recv(count - len(data))):
            data += more
        return data

    def asks(self, data: bytes) -> bytes:
        self.end.sendall(data)
        return self.take(len(data))

    def hears_nothing(self) -> bool:
        self.end.settimeout(SILENCE_S)
        try:
            self.end.recv(1)
        except TimeoutError:
            return True
        finally:
            self.end.settimeout(PATIENCE_S)
        return False

    def is_reset(self) -> bool:
        try:
            return self.end.recv(1) == b""
        except ConnectionResetError:
            return True

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.end.close()


def await_connection(host: str, port: int) -> socket.socket:
    """A front listens a moment after its node does."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return socket.create_connection((host, port), PATIENCE_S)
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise


def await_refusal(host: str, port: int) -> bool:
    """A front stops listening a moment after its node does; whoever comes in between is reset."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        try:
            socket.create_connection((host, port), PATIENCE_S).close()
        except ConnectionResetError:
            continue
        except ConnectionRefusedError:
            return True
    return False


def await_who(network: Network, *expected: list[str]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while (seen := network.traffic().connections) != sorted(expected):
        assert time.monotonic() < deadline, seen


def test_what_is_said_goes_through_whole(network: Network, node: Echo) -> None:
    with Peer(network.front("a", node.port), "b") as peer:
        peer.greeted()
        data = bytes(range(256)) * 4000
        sender = threading.Thread(target=peer.end.sendall, args=(data,))
        sender.start()
        assert peer.take(len(data)) == data
        sender.join()
        peer.end.shutdown(socket.SHUT_WR)
        assert peer.take(1) == b""  # the end comes through as well


def test_hello_says_who_connects(network: Network, node: Echo) -> None:
    address = network.front("who", node.port)
    etcd = network.front_of_etcd("n7", node.port)
    with (
        Peer(address, "b").greeted(),
        Peer(address, "x", Role.CLIENT).greeted(),
        Peer(address, "y", Role.ADMIN).greeted(),
        Peer(etcd, "", hello=False) as told,
    ):
        assert told.asks(b"GET / HTTP/1.1") == b"GET / HTTP/1.1"
        await_who(network, ["b", "who"], [CLIENTS, "who"], [ADMINS, "who"], ["n7", ETCD])
    await_who(network)


def test_a_hello_in_pieces_is_waited_for(network: Network, node: Echo) -> None:
    with Peer(network.front("a", node.port), "b", hello=False) as peer:
        payload = REQUESTS[Opcode.HELLO].encode(1, 1, Role.NODE, ANY_CLUSTER, bytes(NONCE_BYTES), "slowly")
        hello = encode_request(Opcode.HELLO, 1, 0, payload)
        for byte in hello[:-1]:
            peer.end.sendall(bytes([byte]))
        assert peer.hears_nothing()
        peer.end.sendall(hello[-1:])
        assert peer.take(len(hello)) == hello
        await_who(network, ["slowly", "a"])


def test_whoever_says_no_hello_is_a_client(network: Network, node: Echo) -> None:
    with Peer(network.front("a", node.port), "", hello=False) as peer:
        assert peer.asks(b"who are you?") == b"who are you?"
        await_who(network, [CLIENTS, "a"])


@pytest.mark.parametrize("way", [("b", "a"), ("a", "b")])
def test_a_held_way_delivers_later_and_the_other_goes_on(network: Network, node: Echo, way: tuple[str, str]) -> None:
    with Peer(network.front("a", node.port), "b") as peer, Peer(network.front("a", node.port), "c") as other:
        peer.greeted()
        other.greeted()
        network.follow(Rules({way: Cut.HOLD}))
        peer.end.sendall(b"held")
        assert peer.hears_nothing()
        assert other.asks(b"free") == b"free"
        network.heal()
        assert peer.take(4) == b"held"


def test_a_held_answer_was_asked(network: Network, node: Echo) -> None:
    with Peer(network.front("a", node.port), "b") as peer:
        peer.greeted()
        network.follow(Rules({("a", "b"): Cut.HOLD}))
        peer.end.sendall(b"asked")
        deadline = time.monotonic() + PATIENCE_S
        before = network.traffic().bytes
        while network.traffic().bytes < before:
            assert time.monotonic() < deadline
        assert peer.hears_nothing()
        network.heal()
        assert peer.take(5) == b"asked"


def test_a_new_connection_waits_for_both_ways(network: Network, node: Echo) -> None:
    address = network.front("a", node.port)
    network.follow(Rules({("a", "b"): Cut.HOLD}))
    with Peer(address, "b") as peer:
        assert peer.hears_nothing()
        network.heal()
        peer.greeted()


def test_a_drop_resets_when_it_ends(network: Network, node: Echo) -> None:
    address = network.front("a", node.port)
    with Peer(address, "b") as peer, Peer(address, "c") as other:
        peer.greeted()
        other.greeted()
        network.follow(Rules({("b", "a"): Cut.DROP}))
        peer.end.sendall(b"lost")
        assert peer.hears_nothing()
        network.heal()
        assert peer.is_reset()
        assert other.asks(b"free") == b"free"


def test_a_close_resets_at_once_and_lets_nobody_in(network: Network, node: Echo) -> None:
    address = network.front("a", node.port)
    with Peer(address, "b") as peer:
        peer.greeted()
        network.follow(Rules(dict.fromkeys(both_ways("a", ["b"]), Cut.CLOSE)))
        assert peer.is_reset()
        with Peer(address, "b") as again:
            assert again.is_reset()
        with Peer(address, "x", Role.CLIENT) as client:
            client.greeted()


def test_a_cut_hides_the_end_of_a_connection(network: Network, node: Echo) -> None:
    with Peer(network.front("a", node.port), "b") as peer:
        peer.greeted()
        network.follow(Rules(dict.fromkeys(both_ways("a", ["b"]), Cut.HOLD)))
        node.ends[0].shutdown(socket.SHUT_RDWR)
        assert peer.hears_nothing()
        network.heal()
        assert peer.is_reset()


def test_a_slow_way_keeps_the_order_and_is_late(network: Network, node: Echo) -> None:
    with Peer(network.front("a", node.port), "b") as peer:
        peer.greeted()
        network.follow(Rules(delays={("b", "a"): Delay(0.1, 0.1)}))
        began = time.monotonic()
        for number in range(20):
            peer.end.sendall(bytes([number]))
        assert peer.take(20) == bytes(range(20))
        assert time.monotonic() - began >= 0.1
        network.follow(FREE)
        assert peer.asks(b"fast") == b"fast"


def test_nobody_listens_for_a_node_that_is_dead(network: Network, node: Echo) -> None:
    address = network.front("a", node.port)
    host, _, port = address.rpartition(":")
    with Peer(address, "b") as peer:
        peer.greeted()
        node.die()
        assert peer.is_reset()
    assert await_refusal(host, int(port))
    node.listen()  # it came back, at the same address
    with Peer(address, "b") as peer:
        peer.greeted()


def test_rules_survive_their_json() -> None:
    rules = Rules({("a", "b"): Cut.DROP, ("b", ETCD): Cut.HOLD}, {("a", CLIENTS): Delay(0.1, 0.2)}, frozenset({("b", "a")}))
    assert Rules.from_json(rules.to_json()) == rules


def test_records_stand_still_and_heartbeats_pass(network: Network, node: Echo) -> None:
    """A stall is of the connections that carry records one way, there already or made anew; and none of it is lost."""
    records, heartbeat = (encode_request(opcode, 1, 0, b"x" * 40) for opcode in (Opcode.RECORDS, Opcode.HEARTBEAT))
    address = network.front("a", node.port)
    with Peer(address, "b") as link, Peer(address, "b") as beats, Peer(address, "c") as other:
        for peer in (link, beats, other):
            peer.greeted()
        assert link.asks(records) == records
        assert beats.asks(heartbeat) == heartbeat
        assert other.asks(records) == records
        network.follow(Rules(stalls=frozenset({("b", "a")})))
        link.end.sendall(records)
        assert link.hears_nothing()
        assert beats.asks(heartbeat) == heartbeat
        assert other.asks(records) == records, "those of another"
        with Peer(address, "b") as anew:
            anew.greeted()
            heard = node.heard
            anew.end.sendall(records)
            assert anew.hears_nothing()
            assert node.heard == heard, "nor does the node hear it"
            network.heal()
            assert anew.take(len(records)) == records
        assert link.take(len(records)) == records
        assert link.asks(records) == records
