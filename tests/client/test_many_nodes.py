"""Many-key calls and flush on a cluster: split by node, sent to all before the first answer, each key reported."""

from __future__ import annotations

from collections.abc import Iterator
from threading import Barrier, Event

import pytest

from rcache_client import Client, NotExecuted, OutcomeUnknown, PrimaryUnavailable, SomeKeysFailed
from rcache_client.wire.frames import Request
from rcache_client.wire.grammar import REQUESTS
from rcache_client.wire.opcodes import Opcode, Status

from .fake_cluster import FakeCluster
from .scripted_server import Gone, Line
from .support import running, within
from .test_routing import take_over_after

MANY = (Opcode.GET_MANY, Opcode.SET_MANY, Opcode.DELETE_MANY)


@pytest.fixture
def cluster() -> Iterator[FakeCluster]:
    with FakeCluster("n1", "n2", "n3") as running_cluster:
        yield running_cluster


@pytest.fixture
def cache(cluster: FakeCluster) -> Iterator[Client[bytes]]:
    with Client(cluster.addresses("n1")) as client:
        yield client


def values_of(cluster: FakeCluster, count: int = 30) -> dict[str | bytes, bytes]:
    keys = [f"key-{number}" if number % 3 else f"key-{number}".encode() for number in range(count)]
    return {key: b"%d" % number for number, key in enumerate(keys)}


def test_keys_are_split_by_node_and_their_order_is_kept(cluster: FakeCluster, cache: Client[bytes]) -> None:
    values = values_of(cluster)
    assert list(cache.set_many(values)) == list(values)
    got = cache.get_many(values)
    assert got == values
    assert list(got) == list(values)
    assert cache.delete_many([*values, "missing"]) == {**dict.fromkeys(values, True), "missing": False}
    for name in cluster.servers:
        assert cluster[name].opcodes() == list(MANY[1:2] + MANY[:1] + MANY[2:])
        sent = REQUESTS[Opcode.GET_MANY].decode(cluster[name].requests[-2].payload)
        assert all(cluster._primary(key) == name for (key,) in sent)


@pytest.mark.parametrize("call", ["get_many", "delete_many"])
def test_all_nodes_are_asked_before_the_first_answer_is_awaited(cluster: FakeCluster, cache: Client[bytes], call: str) -> None:
    """No node answers before all were asked."""
    values = values_of(cluster)
    cache.set_many(values)
    all_asked = Barrier(3)

    def wait_for_the_others(line: Line, request: Request) -> bool:
        if request.opcode in MANY:
            all_asked.wait(10)
        return False

    cluster.interventions = dict.fromkeys(cluster.servers, wait_for_the_others)
    assert len(getattr(cache, call)(values)) == 30


def test_a_node_that_is_connected_to_late_holds_up_nobody(cluster: FakeCluster) -> None:
    """The others have their requests before the connection to it is made."""
    values = values_of(cluster)
    cache = Client(cluster.addresses("n1"), connect_timeout=10, budget=20)
    cache.set_many(values)
    cluster["n2"].stop()
    asked = Event()

    def note(line: Line, request: Request) -> bool:
        asked.set()
        return False

    def play_slow_hello(line: Line) -> None:
        assert asked.wait(10)
        cluster._script("n2")(line)

    cluster.interventions["n3"] = note
    cluster["n2"].scripts = [play_slow_hello]
    cluster["n2"].start()
    with cache, within(1):
        assert cache.get_many(values) == values


def test_keys_that_moved_are_asked_again_and_no_others(cluster: FakeCluster, cache: Client[bytes]) -> None:
    values = values_of(cluster, 100)
    cache.set_many(values)
    moved = cluster.buckets_of("n2")[:2]
    cluster.give(moved, "n1")
    cluster.publish()
    assert cache.get_many(values) == values
    counts = [cluster[name].opcodes().count(Opcode.GET_MANY) for name in cluster.servers]
    assert counts == [2, 1, 1]
    again = REQUESTS[Opcode.GET_MANY].decode(cluster["n1"].requests[-1].payload)
    assert 0 < len(again) < 30
    cluster.give(moved, "n3")
    cluster.publish()
    changed = {key: value + b"!" for key, value in values.items()}
    assert list(cache.set_many(changed)) == list(values)
    assert cache.get_many(values) == changed
    executed = [len(REQUESTS[Opcode.SET_MANY].decode(r.payload)) for s in cluster.servers.values() for r in s.requests
                if r.opcode == Opcode.SET_MANY]  # fmt: skip
    assert sum(executed) == 100 + 100 + len(again)


def test_all_keys_of_one_node_that_moved(cluster: FakeCluster, cache: Client[bytes]) -> None:
    keys = cluster.keys_of("n2", 5)
    cache.set_many(dict.fromkeys(keys, b"1"))
    cluster.give(cluster.buckets_of("n2"), "n3")
    cluster.publish()
    assert cache.get_many(keys) == dict.fromkeys(keys, b"1")
    assert cache.delete_many(keys) == dict.fromkeys(keys, True)


def test_keys_that_nobody_is_primary_of_fail_alone(cluster: FakeCluster, cache: Client[bytes]) -> None:
    values = values_of(cluster)
    cache.set_many(values)
    lost = set(cluster.keys_of("n2", 5))
    cluster.give(cluster.buckets_of("n2"), None)
    for publish in (False, True):
        if publish:
            cluster.publish()
        with within(0.4), pytest.raises(SomeKeysFailed) as caught:
            cache.get_many([*values, *lost], budget=0.4)
        error = caught.value
        assert error.failed.keys() | error.done.keys() == values.keys() | lost
        assert all(value == values[key] for key, value in error.done.items())
        assert lost <= error.failed.keys()
        assert {type(why) for why in error.failed.values()} <= {PrimaryUnavailable, NotExecuted}


def test_a_node_that_is_lost_leaves_its_writes_unknown_and_the_others_done(cluster: FakeCluster, cache: Client[bytes]) -> None:
    def cut(line: Line, request: Request) -> bool:
        raise Gone

    values = values_of(cluster)
    cache.get("key")
    cluster.interventions["n2"] = cut
    with pytest.raises(SomeKeysFailed) as caught:
        cache.set_many(values)
    error = caught.value
    assert {type(why) for why in error.failed.values()} == {OutcomeUnknown}
    assert error.done.keys() | error.failed.keys() == values.keys()
    keys = [key if isinstance(key, bytes) else key.encode() for key in error.failed]
    assert {cluster._primary(key) for key in keys} == {"n2"}
    with running(lambda: take_over_after(cluster, "n2", "n3", 0.1)):
        assert cache.get_many(values).keys() == error.done.keys()  # a read goes on, to who took over


def test_nodes_that_died_are_waited_for_until_others_took_over(cluster: FakeCluster, cache: Client[bytes]) -> None:
    values = values_of(cluster)
    cache.set_many(values)
    cluster["n2"].stop()
    with running(lambda: take_over_after(cluster, "n2", "n3", 0.3)), within(0.8):
        assert cache.get_many(values) == values
    assert len(cache.set_many(values)) == 30


def test_several_frames_for_each_node(cluster: FakeCluster) -> None:
    cluster.service.frame_bytes_max = 2048
    with Client(cluster.addresses("n1")) as cache:
        values = {f"key-{number}": bytes([number % 256]) * 60 for number in range(300)}
        assert list(cache.set_many(values)) == list(values)
        assert cache.get_many(values) == values
        assert len(cluster["n1"].opcodes()) > 6
        cluster.give(cluster.buckets_of("n2"), "n3")
        cluster.publish()
        assert cache.get_many(values) == values
        assert all(cache.delete_many(values).values())


def test_an_interrupted_call_closes_what_it_has_sent_on(
    cluster: FakeCluster, cache: Client[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupt(BaseException):
        pass

    def interrupt(*_: object) -> bytes:
        raise Interrupt

    values = values_of(cluster)
    cache.set_many(values)
    door = cache._router.table.doors[0]
    assert door is not None
    with monkeypatch.context() as patched:
        patched.setattr(type(door.pool._idle[0]), "_receive", interrupt)
        with pytest.raises(Interrupt):
            cache.get_many(values)
    assert [each.pool.connections for each in cache._doors._doors] == [0, 0, 0]
    assert cache.get_many(values) == values


# --- flush


def test_flush_asks_every_node_that_is_primary_of_something(cluster: FakeCluster, cache: Client[bytes]) -> None:
    cluster.give(cluster.buckets_of("n2"), "n3")
    cluster.publish()
    cache.set_many(values_of(cluster))
    assert cache.flush() == 30
    assert [s.opcodes().count(Opcode.FLUSH) for s in cluster.servers.values()] == [1, 0, 1]


def test_flush_follows_buckets_that_move_meanwhile(cluster: FakeCluster, cache: Client[bytes]) -> None:
    """A bucket goes from a node that was not asked yet to one that was: it must be asked again."""
    cache.get("key")

    def move(line: Line, request: Request) -> bool:
        if request.opcode == Opcode.FLUSH and cluster.epoch == 1:
            cluster.give(cluster.buckets_of("n3")[:1], "n1")
            cluster.publish()
        return False

    cluster.interventions["n3"] = move
    cache.flush()
    assert [s.opcodes().count(Opcode.FLUSH) for s in cluster.servers.values()] == [2, 1, 1]


def test_flush_goes_on_at_who_took_over(cluster: FakeCluster, cache: Client[bytes]) -> None:
    cache.get("key")
    cluster["n2"].stop()
    with running(lambda: take_over_after(cluster, "n2", "n3", 0.2)):
        cache.flush()
    assert [cluster[name].opcodes().count(Opcode.FLUSH) for name in ("n1", "n3")] == [1, 2]


def test_a_flush_whose_answer_is_lost_is_of_unknown_outcome(cluster: FakeCluster, cache: Client[bytes]) -> None:
    def cut(line: Line, request: Request) -> bool:
        if request.opcode == Opcode.FLUSH:
            raise Gone
        return False

    cluster.interventions["n2"] = cut
    with pytest.raises(OutcomeUnknown, match="FLUSH at"):
        cache.flush()


def test_a_flush_that_is_refused_for_a_while_is_asked_again_there_only(cluster: FakeCluster, cache: Client[bytes]) -> None:
    refused: list[int] = []

    def busy(line: Line, request: Request) -> bool:
        if request.opcode != Opcode.FLUSH or refused:
            return False
        refused.append(1)
        line.refuse(request, Status.BUSY)
        return True

    cluster.interventions["n2"] = busy
    cache.flush()
    assert [s.opcodes().count(Opcode.FLUSH) for s in cluster.servers.values()] == [1, 2, 1]
