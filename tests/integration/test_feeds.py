"""Feeds through real servers: a subscriber on a connection of its own, beside clients that write; a handover; a stop."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from rcache.peers.line import Line, PeerUnreachable
from rcache.records.record import Record, scan
from rcache_client import Client
from rcache_client.address import parse_address
from rcache_client.handshake import Greeter
from rcache_client.wire.feeds import UNPROVEN, NoticeKind, Selects, decode_notices, decode_places, encode_places
from rcache_client.wire.opcodes import Opcode, Role, Status
from soak.server_process import ServerProcess
from tests.integration.cluster import until
from tests.integration.conftest import MakeCluster

ASK_S = 20.0
MANY = 1 << 20


class Subscriber:
    """A feed at one node. `places`: up to where each bucket was told."""

    def __init__(self, address: str, places: dict[int, int] | None = None) -> None:
        self._line = Line(parse_address(address), Greeter("subscriber", Role.CLIENT, None), ASK_S)
        self.places: dict[int, int] = {}
        self.records: list[Record] = []
        self.gaps: list[Any] = []
        self.ended: dict[int, int] = {}
        self.behind_ms = UNPROVEN
        self.add(places or {})

    def ask(self, opcode: Opcode, *values: Any, timeout_s: float = ASK_S) -> tuple[int, Any]:
        return self._line.ask(opcode, *values, timeout_s=timeout_s)

    def add(self, places: dict[int, int]) -> None:
        status, values = self.ask(Opcode.SUBSCRIBE, 1, Selects.EVERYTHING, b"", encode_places(places))
        assert status == Status.OK, values
        self.places |= decode_places(values[0])

    def take(self) -> None:
        status, values = self.ask(Opcode.EVENTS, MANY, timeout_s=0.5)
        assert status == Status.OK, values
        self.behind_ms, notices, records = values[0], decode_notices(values[1]), list(scan(values[2]))
        for notice in notices:
            if notice.kind == NoticeKind.GAP:
                self.gaps.append(notice)
                self.places[notice.bucket] = notice.upto
        for record in records:
            assert record.sequence > self.places[record.bucket]
            self.places[record.bucket] = record.sequence
        for notice in notices:
            if notice.kind == NoticeKind.ENDED:
                self.ended[notice.bucket] = self.places.pop(notice.bucket)
        self.records += records

    def until_told(self, values: set[bytes]) -> None:
        deadline = time.monotonic() + ASK_S
        while not values <= {record.value for record in self.records}:
            assert time.monotonic() < deadline, "not all of it was told"
            self.take()

    def close(self) -> None:
        self._line.close()


@pytest.mark.parametrize("engine", ["native", "reference"])
def test_what_clients_write_is_told_by_the_server(tmp_path: Path, engine: str) -> None:
    with ServerProcess(tmp_path / "data", "--engine", engine) as server, Client(server.address) as client:
        subscriber = Subscriber(server.address)
        client.set_many({f"key-{number}": b"%d" % number for number in range(500)})
        subscriber.until_told({b"%d" % number for number in range(500)})
        assert subscriber.gaps == []
        until("a proof", lambda: subscriber.take() or subscriber.behind_ms != UNPROVEN)  # type: ignore[func-returns-value]
        assert subscriber.ask(Opcode.GET, b"key-1")[0] == Status.NOT_ALLOWED, "data is asked for on another connection"
        assert client.stats()["feeds"]["feeds"] == 1
        subscriber.close()
        until("the end of the feed", lambda: client.stats()["feeds"]["feeds"] == 0)


def test_among_connections_that_share_a_worker_a_feed_has_a_thread_of_its_own(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "data", "--worker-threads", "1") as server:
        others = [Client(server.address) for _ in range(4)]
        for number, client in enumerate(others):
            client.set("key", b"%d" % number)
        subscriber = Subscriber(server.address)
        for number, client in enumerate(others):
            client.set("key", b"again %d" % number)
        subscriber.until_told({b"again %d" % number for number in range(4)})
        subscriber.close()
        for client in others:
            client.close()


def test_a_stop_does_not_wait_for_a_subscriber(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "data") as server:
        subscriber = Subscriber(server.address)
        subscriber.take()
        began = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - began < 10.0
        with pytest.raises((PeerUnreachable, AssertionError)):
            subscriber.take()
        subscriber.close()


def test_a_drained_node_ends_its_buckets_and_the_heirs_go_on(cluster_of: MakeCluster) -> None:
    """A subscriber with a feed at every node misses nothing, and is told nothing twice."""
    cluster = cluster_of().grow("a", "b")
    nodes = cluster.nodes
    with Client([node.address for node in cluster.running()]) as client:
        at = {name: Subscriber(nodes[name].address) for name in ("a", "b")}
        client.set_many({f"key-{number}": b"before %d" % number for number in range(300)})
        assert nodes["b"].stop() == 0
        deadline = time.monotonic() + ASK_S
        while at["b"].places and time.monotonic() < deadline:
            try:
                at["b"].take()
            except (PeerUnreachable, AssertionError):
                break
        at["a"].add({**at["b"].ended, **at["b"].places})
        client.set_many({f"key-{number}": b"after %d" % number for number in range(300)})
        at["a"].until_told({b"after %d" % number for number in range(300)})
        seen = [record.value for name in at for record in at[name].records if record.value.startswith((b"before", b"after"))]
        assert len(seen) == len(set(seen)), "told twice"
        assert not at["a"].gaps or {gap.bucket for gap in at["a"].gaps} <= set(at["b"].places), "only what was cut off"
        for subscriber in at.values():
            subscriber.close()
