"""Routing: each key to its primary, by the newest view; what changes the view, and who fetches it."""

from __future__ import annotations

from collections.abc import Iterator
from threading import Barrier, Event, Lock
from time import monotonic

import pytest

from rcache_client import (
    BudgetSpent,
    Client,
    OutcomeUnknown,
    PrimaryUnavailable,
    ProtocolError,
    ServersUnavailable,
    TimedOut,
    UnknownOpcode,
)
from rcache_client.door import DoorState
from rcache_client.routing import FETCH_PAUSE_SECONDS, Router
from rcache_client.wire.frames import Request
from rcache_client.wire.opcodes import Opcode, Status

from .fake_cluster import FakeCluster, node_facts, view_text
from .scripted_server import OTHER_CLUSTER, Gone, Line, ScriptedServer, play
from .support import free_address, running, until, within


@pytest.fixture
def cluster() -> Iterator[FakeCluster]:
    with FakeCluster("n1", "n2", "n3") as running_cluster:
        yield running_cluster


@pytest.fixture
def cache(cluster: FakeCluster) -> Iterator[Client[bytes]]:
    with Client(cluster.addresses("n1")) as client:
        yield client


def opened_doors(cache: Client[bytes]) -> set[str]:
    return {door.name for door in cache._doors._doors}


def held(line: Line, _: Request) -> bool:
    """Say nothing until the client closes."""
    line.hold()
    return True


# --- to the primary


def test_each_key_goes_straight_to_its_primary(cluster: FakeCluster, cache: Client[bytes]) -> None:
    keys = [key for name in cluster.servers for key in cluster.keys_of(name, 5)]
    for key in keys:
        assert cache.set(key, key.encode())
        assert cache.get(key) == key.encode()
    assert [cluster[name].opcodes() for name in cluster.servers] == [[Opcode.SET, Opcode.GET] * 5] * 3
    assert cluster.view_requests() == 1


def test_every_call_on_a_key_goes_to_its_primary(cluster: FakeCluster, cache: Client[bytes]) -> None:
    (key,) = cluster.keys_of("n2")
    cache.set(key, b"1")
    cache.get_with_version(key)
    cache.get_with_ttl(key)
    cache.get_and_touch(key, 1)
    cache.add(key, b"1")
    cache.replace(key, b"1")
    cache.cas(key, b"1", version=1)
    cache.cas(key, b"1", previous=b"1")
    cache.incr(key)
    cache.decr(key)
    cache.append(key, b"1")
    cache.prepend(key, b"1")
    cache.touch(key)
    cache.inspect(key)
    cache.delete(key)
    assert len(cluster["n2"].opcodes()) == 15
    assert cluster["n1"].opcodes() == cluster["n3"].opcodes() == []


def test_nothing_is_asked_before_the_first_call_and_the_view_only_once(cluster: FakeCluster) -> None:
    with Client(cluster.addresses()) as cache:
        assert [server.connections for server in cluster.servers.values()] == [0, 0, 0]
        for name in cluster.servers:
            for key in cluster.keys_of(name, 3):
                cache.get(key)
        assert cluster.view_requests() == 1
        assert [server.connections for server in cluster.servers.values()] == [1, 1, 1]


def test_calls_without_a_key_take_turns_over_the_seeds(cluster: FakeCluster) -> None:
    with Client(cluster.addresses("n1", "n2")) as cache:
        cache.get("key")
        for _ in range(4):
            cache.ping()
            cache.stats()
        asked = [[r.opcode for r in s.requests if r.opcode in (Opcode.PING, Opcode.STATS)] for s in cluster.servers.values()]
        assert [len(opcodes) for opcodes in asked] == [4, 4, 0]


def test_calls_without_a_key_go_to_a_node_when_all_seeds_are_gone(cluster: FakeCluster, cache: Client[bytes]) -> None:
    cache.get("key")
    cluster["n1"].stop()
    cache.ping()
    assert cache.stats()["memory"]


def test_a_server_that_knows_no_views_is_asked_once() -> None:
    with ScriptedServer() as server, Client(server.address) as cache:
        for number in range(5):
            cache.set(f"key-{number}", b"value")
        cache.get_many(["a", "b"])
        assert len(server.view_requests) == 1
        with pytest.raises(UnknownOpcode):
            cache.view()


def test_a_single_node_is_one_door_whatever_it_calls_itself() -> None:
    with FakeCluster("n1") as cluster:
        cluster["n1"].view = view_text(1, {"n1": node_facts("192.0.2.1:9")}, [[16, "n1", [], 1]])  # where nobody listens
        with Client(cluster.addresses()) as cache:
            for number in range(5):
                assert cache.set(f"key-{number}", b"value")
            assert opened_doors(cache) == set(cluster.addresses())
            assert cluster["n1"].connections == 1


def test_a_seed_behind_which_nodes_take_turns_is_nobodys_door(cluster: FakeCluster) -> None:
    """A balancer's address, or a name with several addresses."""
    turns = iter(["n2", "n3", "n1"] * 10)

    def play(line: Line) -> None:
        balancer.name = next(turns)
        line.hello()
        while True:
            cluster.execute(balancer.name, line, line.request())

    with ScriptedServer(play, service=cluster.service) as balancer:
        balancer.view, balancer.epoch = cluster["n1"].view, cluster.epoch
        with Client(balancer.address) as cache:
            door = cache._doors._doors[0]
            cache._doors.take(monotonic() + 1)[1].close()
            cache._doors.take(monotonic() + 1)[1].close()
            assert door.leads_to == ""
            for name in cluster.servers:
                for key in cluster.keys_of(name, 3):
                    assert cache.set(key, b"value")
            assert [len(server.opcodes()) for server in cluster.servers.values()] == [3, 3, 3]


# --- elsewhere


def test_a_moved_bucket_is_followed_by_reads_and_writes(cluster: FakeCluster, cache: Client[bytes]) -> None:
    first, second = cluster.keys_of("n2", 2)
    cache.set(first, b"1")
    cache.set(second, b"1")
    cluster.give(cluster.buckets_of("n2"), "n3")
    cluster.publish()
    assert cache.incr(first) == 2
    assert cache.get(second) == b"1"
    assert cluster["n2"].opcodes() == [Opcode.SET, Opcode.SET, Opcode.INCREMENT]
    assert cluster["n3"].opcodes() == [Opcode.INCREMENT, Opcode.GET]
    assert len(cluster["n2"].view_requests) == 1  # who said where it is not knows where it is


def test_a_node_that_knows_no_newer_view_is_not_the_last_that_is_asked(cluster: FakeCluster, cache: Client[bytes]) -> None:
    """The old primary has let go, and only the new one has heard of the view yet."""
    (key,) = cluster.keys_of("n2")
    cache.set(key, b"1")
    cluster.give(cluster.buckets_of("n2"), "n3")
    cluster.publish("n3")
    with within(0.3):
        assert cache.get(key) == b"1"


def test_a_frozen_bucket_is_waited_for(cluster: FakeCluster, cache: Client[bytes]) -> None:
    """No newer view: the same node is asked again, soon and then less often."""
    (key,) = cluster.keys_of("n2")
    cache.set(key, b"1")
    refusals: list[float] = []

    def frozen(line: Line, request: Request) -> bool:
        if len(refusals) == 5:
            return False
        refusals.append(monotonic())
        line.refuse(request, Status.NOT_PRIMARY)
        return True

    cluster.interventions["n2"] = frozen
    with within(0.2):
        assert cache.incr(key) == 2
    assert refusals[-1] - refusals[0] > 0.01
    assert cluster.view_requests() <= 7


@pytest.mark.parametrize("call", ["get", "incr"])
def test_what_nobody_is_primary_of_fails_at_the_end_of_the_budget_and_was_not_executed(
    cluster: FakeCluster, cache: Client[bytes], call: str
) -> None:
    (key,) = cluster.keys_of("n2")
    cache.set(key, b"1")
    before = cluster.view_requests()
    cluster.give(cluster.buckets_of("n2"), None)
    with within(0.4), pytest.raises(PrimaryUnavailable, match=r"NOT_PRIMARY: not on n2 \(not executed") as caught:
        getattr(cache, call)(key, budget=0.4)
    assert caught.value.server == cluster["n2"].address
    assert 5 < cluster.view_requests() - before < 40  # it backs off
    cluster.publish()
    with within(0.3), pytest.raises(PrimaryUnavailable, match=r"nobody is the primary|NOT_PRIMARY"):
        getattr(cache, call)(key, budget=0.3)


def test_a_newer_epoch_in_a_good_answer_is_noticed(cluster: FakeCluster, cache: Client[bytes]) -> None:
    """Else a client whose keys never move would not learn of those who may take over."""
    cluster.states.pop("n3")
    cluster.give(cluster.buckets_of("n3"), "n1")
    cluster.publish()
    (key,) = cluster.keys_of("n1")
    cache.set(key, b"1")
    assert opened_doors(cache) == set(cluster.addresses("n1", "n2"))
    cluster.states["n3"] = "up"
    cluster.publish()
    until(lambda: cache.get(key) == b"1" and cache._router.table.epoch == cluster.epoch)
    assert opened_doors(cache) == set(cluster.addresses())
    assert cluster.view_requests() == 2


def test_an_older_view_is_not_followed(cluster: FakeCluster, cache: Client[bytes]) -> None:
    cluster.epoch = 9
    cluster.publish()
    (key,) = cluster.keys_of("n2")
    cache.set(key, b"1")
    assert cache._router.table.epoch == 10
    old = view_text(4, {"n9": node_facts("h:1")}, [[16, "n9", [], 1]])
    for server in cluster.servers.values():
        server.view, server.epoch = old, 20  # it says that it has something newer
    before = cluster.view_requests()
    until(lambda: cache.get(key) == b"1" and cluster.view_requests() > before)
    assert cache.get(key) == b"1"
    assert cache.view().epoch == cache._router.table.epoch == 10


def test_a_view_of_another_cluster_is_not_followed(cluster: FakeCluster, cache: Client[bytes]) -> None:
    (key,) = cluster.keys_of("n1")
    cache.set(key, b"1")
    cluster["n1"].view = view_text(9, {"n9": node_facts("h:1")}, [[16, "n9", [], 1]], OTHER_CLUSTER.hex())
    cluster["n1"].epoch = 9
    for _ in range(3):
        assert cache.get(key) == b"1"
    assert "n9" not in (cache._router.table.view or cache.view()).nodes
    with pytest.raises(ProtocolError, match="a view of cluster"):
        cache.view()


@pytest.mark.parametrize(
    "text", [b"[]", b"\xff", b"{" * 5000, view_text(1, {"n1": node_facts("no port:x")}, [[1, "n1", [], 1]])]
)
def test_a_hostile_view_changes_nothing(text: bytes) -> None:
    with ScriptedServer() as server, Client(server.address) as cache:
        server.view = text
        for _ in range(3):
            assert cache.set("key", b"value")
            assert cache.get_many(["key"]) == {"key": b"value"}
        assert len(server.view_requests) == 1
        with pytest.raises(ProtocolError):
            cache.view()


def test_the_view_for_tools(cluster: FakeCluster, cache: Client[bytes]) -> None:
    view = cache.view()
    assert (view.epoch, len(view.buckets), sorted(view.nodes)) == (1, 16, ["n1", "n2", "n3"])
    (key,) = cluster.keys_of("n3")
    node = view.primary_of(key)
    assert node is not None
    assert (node.name, node.address) == ("n3", cluster["n3"].address)
    cluster.publish()
    assert cache.view().epoch == 2
    assert cache.view() is cache.view()


# --- one fetch for all


def together(cache: Client[bytes], keys: list[str]) -> list[object]:
    """Get all keys at the same moment; what came of it."""
    barrier, lock = Barrier(len(keys)), Lock()
    got: list[object] = []

    def get(key: str) -> None:
        barrier.wait(10)
        try:
            value: object = cache.get(key)
        except Exception as error:
            value = error
        with lock:
            got.append(value)

    with running(*[lambda key=key: get(key) for key in keys]):  # type: ignore[misc]
        pass
    return got


def test_50_threads_learn_the_first_view_by_one_fetch(cluster: FakeCluster) -> None:
    with Client(cluster.addresses(), max_connections=50) as cache:
        assert together(cache, cluster.keys_of("n3", 50)) == [None] * 50
        assert cluster.view_requests() == 1


def test_50_threads_that_are_sent_elsewhere_fetch_the_view_once(cluster: FakeCluster) -> None:
    with Client(cluster.addresses(), max_connections=50) as cache:
        keys = cluster.keys_of("n2", 50)
        cache.set_many(dict.fromkeys(keys, b"value"))
        before = cluster.view_requests()
        all_there, gate, held_back = Event(), Lock(), []

        def hold_until_all_there(line: Line, request: Request) -> bool:
            with gate:
                held_back.append(request)
                if len(held_back) == 50:
                    all_there.set()
            assert all_there.wait(10)
            return False

        cluster.interventions["n2"] = hold_until_all_there
        cluster.give(cluster.buckets_of("n2"), "n3")
        cluster.publish()
        assert together(cache, keys) == [b"value"] * 50
        assert len(held_back) == 50  # every one of them was sent elsewhere
        assert cluster.view_requests() - before == 1


def test_50_threads_whose_node_died_do_not_storm_the_others(cluster: FakeCluster) -> None:
    with Client(cluster.addresses("n1"), max_connections=50) as cache:
        keys = cluster.keys_of("n2", 50)
        cache.set_many(dict.fromkeys(keys, b"value"))
        before, began = cluster.view_requests(), monotonic()
        cluster["n2"].stop()

        def take_over() -> None:
            Event().wait(0.2)
            cluster.give(cluster.buckets_of("n2"), "n3")
            cluster.states["n2"] = "lost"
            cluster.publish("n1", "n3")

        with running(take_over):
            assert together(cache, keys) == [b"value"] * 50
        assert cluster.view_requests() - before <= (monotonic() - began) / FETCH_PAUSE_SECONDS + 1
        assert cluster.view_requests() - before < 50


def test_those_who_wait_for_a_fetch_keep_their_own_budgets(cluster: FakeCluster) -> None:
    """The node that is asked for the view says nothing; the one who asks has time, the other has not."""
    asked, go_on = Event(), Event()

    def mute(line: Line) -> None:
        line.hello()
        assert line.any_request().opcode == Opcode.VIEW
        asked.set()
        assert go_on.wait(10)
        raise Gone

    with ScriptedServer(mute, play) as server, Client(server.address, budget=10, read_timeout=10) as cache:
        got: list[object] = []
        with running(lambda: got.append(cache.get("key"))):
            assert asked.wait(10)
            with within(0.2), pytest.raises((BudgetSpent, TimedOut)):
                cache.get("key", budget=0.2)
            go_on.set()
        assert got == [None]


def test_close_wakes_those_who_wait_for_a_fetch(cluster: FakeCluster) -> None:
    router: Router
    with Client(cluster.addresses()) as cache:
        router = cache._router
        router._under_way = True  # as if a thread that was never seen again did it
        got: list[object] = []

        def get() -> None:
            try:
                cache.get("key", budget=20)
            except Exception as error:
                got.append(error)

        with within(0.5), running(get):
            until(lambda: len(router._changed._waiters) == 1)  # type: ignore[attr-defined]
            cache.close()
        assert "closed" in str(got[0])


# --- doors come and go


def test_a_node_that_left_loses_its_door_and_its_connections(cluster: FakeCluster, cache: Client[bytes]) -> None:
    (key,) = cluster.keys_of("n2")
    cache.set(key, b"1")
    assert cluster["n2"].open_now == 1
    del cluster.states["n2"]
    cluster.give(cluster.buckets_of("n2"), "n3")
    cluster.publish()
    assert cache.get(key) == b"1"
    assert opened_doors(cache) == set(cluster.addresses("n1", "n3"))
    cluster["n2"].wait_for(lambda: cluster["n2"].open_now == 0, "the end of the connection")


def test_a_call_under_way_at_a_node_that_leaves_is_not_cut(cluster: FakeCluster, cache: Client[bytes]) -> None:
    slow, other = cluster.keys_of("n2", 2)
    cache.set(slow, b"1")
    arrived, go_on = Event(), Event()

    def gated(line: Line, request: Request) -> bool:
        if request.opcode == Opcode.INCREMENT:
            arrived.set()
            assert go_on.wait(10)
            line.execute(request)
            return True
        return False

    cluster.interventions["n2"] = gated
    got: list[object] = []
    with running(lambda: got.append(cache.incr(slow))):
        assert arrived.wait(10)
        del cluster.states["n2"]
        cluster.give(cluster.buckets_of("n2"), "n3")
        cluster.publish()
        cache.get(other)
        assert opened_doors(cache) == set(cluster.addresses("n1", "n3"))
        go_on.set()
    assert got == [2]
    cluster["n2"].wait_for(lambda: cluster["n2"].open_now == 0, "the end of the connection")


def test_who_waits_for_a_connection_to_a_node_that_leaves_goes_elsewhere(cluster: FakeCluster) -> None:
    with Client(cluster.addresses("n1"), max_connections=1) as cache:
        slow, waiting, other = cluster.keys_of("n2", 3)
        cache.set_many({slow: b"1", waiting: b"2"})
        door = cache._router.table.door_of(slow.encode())
        assert door is not None
        arrived, go_on = Event(), Event()

        def gated(line: Line, request: Request) -> bool:
            arrived.set()
            assert go_on.wait(10)
            line.execute(request)
            return True

        cluster.interventions["n2"] = gated
        got: list[object] = []
        with running(lambda: cache.incr(slow)):
            assert arrived.wait(10)
            with running(lambda: got.append(cache.get(waiting))):
                until(lambda: len(door.pool._waiting) == 1)
                del cluster.states["n2"]
                cluster.give(cluster.buckets_of("n2"), "n3")
                cluster.publish()
                cache._router.take_in(cluster["n1"].view or b"")
            assert got == [b"2"]
            assert cache.get(other) is None
            go_on.set()


def test_a_seed_that_is_in_no_view_stays_and_serves(cluster: FakeCluster) -> None:
    with Client(cluster.addresses("n1", "n2")) as cache:
        (key,) = cluster.keys_of("n2")
        cache.set(key, b"1")
        for name in ("n1", "n2"):
            del cluster.states[name]
        cluster.give(range(16), "n3")
        cluster.publish()
        assert cache.get(key) == b"1"
        assert opened_doors(cache) == set(cluster.addresses())
        cluster.start("n4")
        cluster.states = {"n4": "up"}
        cluster.give(range(16), "n4")
        cluster.publish("n1", "n2", "n4")
        cluster["n3"].stop()  # the last node of the view it knew: the seeds are all it has
        assert cache.get(key) == b"1"
        assert opened_doors(cache) == set(cluster.addresses("n1", "n2", "n4"))


def test_a_node_that_comes_back_is_tried_at_once(cluster: FakeCluster, cache: Client[bytes]) -> None:
    (key,) = cluster.keys_of("n2")
    cache.set(key, b"1")
    door = cache._router.table.door_of(key.encode())
    assert door is not None
    cache._doors.fail(door, "on purpose")
    door.retry_at = monotonic() + 60
    cluster.states["n2"] = "leaving"
    cluster.publish()
    with within(0.3):
        assert cache.get(key) == b"1"
    assert door.state is DoorState.UP


def test_another_cluster_at_a_nodes_address_is_a_node_that_is_gone(cluster: FakeCluster, cache: Client[bytes]) -> None:
    (key,) = cluster.keys_of("n2")
    cache.set(key, b"1")
    cluster["n2"].stop()
    cluster["n2"].cluster_id = OTHER_CLUSTER
    cluster["n2"].start()
    with within(0.3), pytest.raises(PrimaryUnavailable, match="WRONG_CLUSTER"):
        cache.get(key, budget=0.3)
    cluster.give(cluster.buckets_of("n2"), "n1")
    cluster.publish("n1", "n3")
    assert cache.get(key) == b"1"


# --- nodes that fail


def take_over_after(cluster: FakeCluster, dead: str, heir: str, seconds: float) -> None:
    Event().wait(seconds)
    cluster.give(cluster.buckets_of(dead), heir)
    cluster.states[dead] = "lost"
    cluster.publish(*(name for name in cluster.servers if name != dead))


def test_a_node_that_died_is_waited_for_until_another_took_over(cluster: FakeCluster, cache: Client[bytes]) -> None:
    (key,) = cluster.keys_of("n2")
    cache.set(key, b"1")
    cluster["n2"].stop()
    with running(lambda: take_over_after(cluster, "n2", "n3", 0.3)), within(0.6):
        assert cache.incr(key) == 2  # surely not executed at n2: nobody was there
        assert cache.get(key) == b"2"


def test_with_all_nodes_dead_a_call_fails_at_once(cluster: FakeCluster, cache: Client[bytes]) -> None:
    (key,) = cluster.keys_of("n2")
    cache.set(key, b"1")
    for server in cluster.servers.values():
        server.stop()
    with within(0.5), pytest.raises(ServersUnavailable):
        cache.get(key)
    with within(0.5), pytest.raises(ServersUnavailable) as caught:
        cache.set(key, b"2")
    assert all(address in str(caught.value) for address in cluster.addresses())


def test_wait_for_servers_waits_for_a_cluster_too(cluster: FakeCluster) -> None:
    with Client(cluster.addresses("n1"), wait_for_servers=True, budget=10) as cache:
        (key,) = cluster.keys_of("n2")
        cache.set(key, b"1")
        for server in cluster.servers.values():
            server.stop()
        got: list[object] = []
        with running(lambda: got.append(cache.get(key))):
            Event().wait(0.3)
            for server in cluster.servers.values():
                server.start()
        assert got == [b"1"]


def test_a_write_whose_connection_is_lost_is_unknown_and_a_read_goes_on(cluster: FakeCluster, cache: Client[bytes]) -> None:
    key, other = cluster.keys_of("n2", 2)
    cache.set(key, b"1")
    cut: list[int] = []

    def cutting(line: Line, request: Request) -> bool:
        cut.append(request.opcode)
        raise Gone

    cluster.interventions["n2"] = cutting
    with pytest.raises(OutcomeUnknown, match="it may or may not have been executed"):
        cache.incr(key)
    assert cut == [Opcode.INCREMENT]  # and not again
    with running(lambda: take_over_after(cluster, "n2", "n1", 0.1)), within(0.3):
        assert cache.get(other) is None


def test_a_read_at_a_silent_node_leaves_time_for_another(cluster: FakeCluster, cache: Client[bytes]) -> None:
    (key,) = cluster.keys_of("n2")
    cache.set(key, b"1")
    cluster.interventions["n2"] = held
    with running(lambda: take_over_after(cluster, "n2", "n3", 0.1)), within(1.5):
        began = monotonic()
        assert cache.get(key, budget=2) == b"1"
    assert monotonic() - began < 1.2  # a quarter of the budget, and some
    assert cluster["n2"].opcodes().count(Opcode.GET) == 1


def test_a_read_at_a_silent_node_that_nobody_replaces_ends_with_the_budget(cluster: FakeCluster, cache: Client[bytes]) -> None:
    (key,) = cluster.keys_of("n2")
    cache.set(key, b"1")
    cluster.interventions["n2"] = held
    with within(0.6), pytest.raises((TimedOut, PrimaryUnavailable)):
        cache.get(key, budget=0.6)


def test_a_write_at_a_silent_node_is_unknown_and_sent_nowhere_else(cluster: FakeCluster) -> None:
    with Client(cluster.addresses(), read_timeout=0.3) as cache:
        (key,) = cluster.keys_of("n2")
        cache.set(key, b"1")
        cluster.interventions["n2"] = held
        with within(0.3), pytest.raises(OutcomeUnknown, match="no answer came in time"):
            cache.incr(key)
        assert all(Opcode.INCREMENT not in cluster[name].opcodes() for name in ("n1", "n3"))


def test_a_silent_node_does_not_hold_up_who_asks_for_the_view(cluster: FakeCluster) -> None:
    """Of two seeds one says nothing, to VIEW either."""

    def mute(line: Line) -> None:
        line.hello()
        while True:
            line.any_request()

    with ScriptedServer(mute) as silent, Client([silent.address, *cluster.addresses("n1")], budget=2) as cache:
        for key in cluster.keys_of("n2", 3):
            with within(0.6):
                assert cache.get(key) is None


def test_a_server_that_stops_is_left_for_the_next_primary(cluster: FakeCluster, cache: Client[bytes]) -> None:
    (key,) = cluster.keys_of("n2")
    cache.set(key, b"1")

    def leaving(line: Line, request: Request) -> bool:
        line.say_goodbye(Status.SHUTTING_DOWN)
        return True

    cluster.interventions["n2"] = leaving
    with running(lambda: take_over_after(cluster, "n2", "n3", 0.1)), within(0.4):
        assert cache.incr(key) == 2


def test_who_waits_for_a_connection_to_a_silent_node_goes_elsewhere_too(cluster: FakeCluster) -> None:
    with Client(cluster.addresses(), max_connections=1, read_timeout=5, budget=4) as cache:
        (key,) = cluster.keys_of("n2")
        cache.set(key, b"1")
        cluster.interventions["n2"] = held

        def write() -> None:
            with pytest.raises(OutcomeUnknown):
                cache.incr(key, budget=3)

        with running(write):
            until(lambda: Opcode.INCREMENT in cluster["n2"].opcodes())
            with running(lambda: take_over_after(cluster, "n2", "n3", 0.1)), within(1.6):
                assert cache.get(key, budget=2.5) == b"1"


def test_an_unreachable_view_of_nobody_is_told_with_its_seed() -> None:
    address = free_address()
    with Client(address) as cache, pytest.raises(ServersUnavailable, match=address):
        cache.get("key")
