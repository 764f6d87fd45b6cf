"""The near cache of a client, at one real server: what is served from it, what makes it forget, and how it ends."""

from __future__ import annotations

import gc
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

from rcache_client import Client, ClientClosed, JsonSerializer, NearCache, NearCacheStats, RcacheError, WrongFormat
from rcache_client.calls import Caller
from rcache_client.feed_set import Selection
from rcache_client.near_slots import Kept
from rcache_client.wire.feeds import Selects
from rcache_client.wire.opcodes import Opcode, Status
from soak.server_process import ServerProcess

from .fake_cluster import FakeCluster
from .scripted_server import ScriptedServer
from .support import until
from .test_close import in_child

KEY = "key"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with ServerProcess(tmp_path_factory.mktemp("near") / "data", "--buckets", "16") as server:
        yield server


@pytest.fixture
def other(server: ServerProcess) -> Iterator[Client[bytes]]:
    with Client(server.address) as client:
        client.flush()
        yield client


@pytest.fixture(scope="module")
def shared(server: ServerProcess) -> Iterator[Client[bytes]]:
    with Client(server.address, near_cache=NearCache()) as client:
        go_live(client)
        yield client


@pytest.fixture
def near(shared: Client[bytes], other: Client[bytes]) -> Client[bytes]:
    """A client that several tests use, with nothing kept."""
    assert shared._near is not None
    shared._near.slots.drop_all()
    until(lambda: stats_of(shared).live_buckets == 16)
    return shared


def stats_of(client: Client[Any]) -> NearCacheStats:
    assert client.near_cache is not None
    return client.near_cache.stats()


def go_live(client: Client[Any]) -> None:
    """Wait until every bucket is proven."""
    client.get("go")
    until(lambda: stats_of(client).live_buckets == 16)


def is_kept(client: Client[Any], key: str = KEY) -> bool:
    """Whether a get of it would be served here; it counts as a hit."""
    assert client._near is not None
    return client._near.find(key.encode()) is not None


def keep(client: Client[Any], key: str = KEY) -> None:
    """Read it, until it is kept: what was told late may be in the way."""
    until(lambda: client.get(key) is not None and is_kept(client, key))


def test_what_was_read_is_served_without_asking(
    near: Client[bytes], other: Client[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    other.set(KEY, b"value")
    keep(near)

    def fail(*_: object) -> None:
        raise AssertionError("a server was asked")

    monkeypatch.setattr(Caller, "try_at", fail)
    monkeypatch.setattr("rcache_client.asking.try_all", fail)
    before = stats_of(near)
    assert near.get(KEY) == near.get(b"key") == near.get(KEY, b"default", budget=1.0) == b"value"
    assert near.get_many([KEY]) == {KEY: b"value"}
    after = stats_of(near)
    assert (after.hits - before.hits, after.misses - before.misses) == (4, 0)
    assert after.failure == ""
    with pytest.raises(ValueError, match="budget"):
        near.get(KEY, budget=-1)


def test_what_others_change_is_seen(near: Client[bytes], other: Client[bytes]) -> None:
    """Set, deleted, touched, and all at once."""
    changes: list[Callable[[], object]] = [
        lambda: other.set(KEY, b"again"),
        lambda: other.touch(KEY, 60),
        lambda: other.append(KEY, b"more"),
        lambda: other.delete(KEY),
        other.flush,
    ]
    for change in changes:
        other.set(KEY, b"value")
        keep(near)
        change()
        until(lambda: not is_kept(near))
        assert near.get(KEY) == other.get(KEY)


OWN_CALLS: dict[str, Callable[[Client[bytes]], object]] = {
    "get_with_version": lambda c: c.get_with_version(KEY),
    "get_with_ttl": lambda c: c.get_with_ttl(KEY),
    "get_and_touch": lambda c: c.get_and_touch(KEY, 60),
    "set": lambda c: c.set(KEY, b"v"),
    "add": lambda c: c.add(KEY, b"v"),
    "replace": lambda c: c.replace(KEY, b"v"),
    "cas": lambda c: c.cas(KEY, b"v", version=7),
    "append": lambda c: c.append(KEY, b"v"),
    "prepend": lambda c: c.prepend(KEY, b"v"),
    "incr": lambda c: c.incr(KEY),
    "decr": lambda c: c.decr(KEY),
    "touch": lambda c: c.touch(KEY),
    "delete": lambda c: c.delete(KEY),
    "inspect": lambda c: c.inspect(KEY),
    "set_many": lambda c: c.set_many({KEY: b"1", "a": b"2"}),
    "delete_many": lambda c: c.delete_many([KEY, "a"]),
    "get_or_compute": lambda c: c.get_or_compute(KEY, lambda: b"v"),
    "recompute": lambda c: c.recompute(KEY, lambda: b"v"),
    "flush": lambda c: c.flush(),
}

OTHER_CALLS = {"get", "get_many", "ping", "stats", "persist", "view", "subscribe", "watch", "listen", "compute_counts", "close"}
"""What reads from the near cache, or has nothing to do with a value."""


def test_every_call_is_looked_at_here() -> None:
    calls = {name for name in dir(Client) if not name.startswith("_") and callable(getattr(Client, name))}
    assert calls == OWN_CALLS.keys() | OTHER_CALLS


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("call", OWN_CALLS)
def test_no_call_of_its_own_goes_unnoticed(
    near: Client[bytes], other: Client[bytes], monkeypatch: pytest.MonkeyPatch, call: str, fails: bool
) -> None:
    """While it is under way its key is not served, nor after it, what became of it; a read under way is not kept."""
    other.set(KEY, b"1")
    keep(near)
    assert near._near is not None
    slots, asked = near._near.slots, list[bool]()

    def between(real: Callable[..., Any]) -> Callable[..., Any]:
        def ask(*args: Any, **more: Any) -> Any:
            asked.append(is_kept(near))
            slots.plant(KEY.encode(), 0)  # somebody reads it meanwhile
            if fails:
                raise RuntimeError("on purpose")
            return real(*args, **more)

        return ask

    for name in ("rcache_client.calls.Caller.try_at", "rcache_client.asking.try_all", "rcache_client.flush.try_all"):
        path, _, last = name.rpartition(".")
        owner = Caller if path.endswith("Caller") else __import__(path, fromlist=[last])
        monkeypatch.setattr(owner, last, between(getattr(owner, last)))
    with suppress(RcacheError, RuntimeError):
        OWN_CALLS[call](near)
    assert asked
    assert not any(asked)
    assert KEY.encode() not in slots._table


def test_get_many_asks_for_the_rest_and_forgets_what_it_asked_for(near: Client[bytes], other: Client[bytes]) -> None:
    other.set_many({KEY: b"1", "a": b"2", "b": b"3"})
    keep(near)
    assert near._near is not None
    near._near.slots.plant(b"a", 0)
    before = stats_of(near)
    assert list(near.get_many(["b", KEY, "missing", "a"]).items()) == [("b", b"3"), (KEY, b"1"), ("a", b"2")]
    after = stats_of(near)
    assert (after.hits - before.hits, after.misses - before.misses) == (1, 3)
    assert b"a" not in near._near.slots._table
    with pytest.raises(TypeError):
        near.get_many([KEY, 5])  # type: ignore[list-item]


def test_a_miss_is_not_kept(near: Client[bytes], other: Client[bytes]) -> None:
    assert near.get(KEY) is None
    other.set(KEY, b"value")
    assert near.get(KEY) == b"value"


def test_a_read_that_fails_leaves_nothing(near: Client[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Caller, "try_at", fail)
    with pytest.raises(KeyboardInterrupt):
        near.get(KEY)
    assert stats_of(near).bytes == 0


def test_a_miss_says_something_too(near: Client[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """Two gets cross: one is answered with a value, and the other, later, with none, and returns first."""
    assert near._near is not None
    slots = near._near.slots
    crossing: list[Any] = []

    def read(*_: object) -> tuple[int, tuple[()]]:
        crossing.append(slots.plant(KEY.encode(), 0))
        return Status.NOT_FOUND, ()

    monkeypatch.setattr(near._near.caller, "read", read)
    assert near.get(KEY) is None
    slots.settle(KEY.encode(), crossing[0], 7, Kept(0, b"old", slots.clock() + 60))
    assert not is_kept(near)


def test_its_time_to_live_is_the_servers_and_its_age_has_a_limit(server: ServerProcess, other: Client[bytes]) -> None:
    with Client(server.address, near_cache=NearCache(max_age=0.3)) as near:
        go_live(near)
        other.set(KEY, b"value")
        other.set("soon", b"value", ttl=0.2)
        other.set("late", b"value", ttl=60)
        assert near._near is not None
        clock = near._near.slots.clock
        for key, limit_s in ((KEY, 0.3), ("soon", 0.2), ("late", 0.3)):
            before = clock()
            keep(near, key)
            slot = near._near.find(key.encode())
            assert slot is not None
            assert before < slot.expires <= clock() + limit_s
        until(lambda: not is_kept(near, "soon"))
        until(lambda: not is_kept(near))


def test_only_keys_with_the_prefix_are_kept_and_told_of(server: ServerProcess, other: Client[bytes]) -> None:
    with Client(server.address, near_cache=NearCache(prefix="user:")) as near:
        other.set_many({"user:1": b"1", "other": b"2"})
        near.get("user:1")
        until(lambda: stats_of(near).live_buckets == 16)
        keep(near, "user:1")
        before = stats_of(near)
        assert near.get("other") == b"2"
        assert near.get_many(["other"]) == {"other": b"2"}
        assert stats_of(near)[:2] == before[:2]
        assert not is_kept(near, "other")
        assert near._near is not None
        feeds = near._near.feed._feeds
        assert feeds is not None
        assert feeds.selection == Selection(Selects.PREFIX, b"user:", values=False)
        other.set("user:1", b"3")
        until(lambda: near.get("user:1") == b"3")


def test_nobody_can_change_what_another_gets(server: ServerProcess, other: Client[bytes]) -> None:
    with Client(server.address, near_cache=NearCache(), serializer=JsonSerializer()) as near:
        go_live(near)
        near.set(KEY, {"tags": ["a"]})
        keep(near)
        near.get(KEY)["tags"].append("b")
        near.get_many([KEY])[KEY]["tags"].append("c")
        assert near.get(KEY) == {"tags": ["a"]}
        other.set(KEY, b"no JSON")
        until(lambda: not is_kept(near))
        for _ in range(3):  # from the server, and from here
            with pytest.raises(WrongFormat, match="'key'"):
                near.get(KEY)


def test_computed_values_are_kept_as_what_they_hold(near: Client[bytes], other: Client[bytes]) -> None:
    other.get_or_compute(KEY, lambda: b"computed")
    keep(near)
    assert near.get(KEY) == b"computed"
    assert near.get_many([KEY]) == {KEY: b"computed"}
    other.recompute(KEY, lambda: None)
    until(lambda: near.get(KEY) is None)
    assert near.get(KEY) is None
    assert not is_kept(near)


def test_hits_end_in_time_when_the_server_says_nothing_more(server: ServerProcess, other: Client[bytes]) -> None:
    staleness_s = 0.3
    with Client(server.address, near_cache=NearCache(max_staleness=staleness_s), budget=0.1) as near:
        go_live(near)
        other.set(KEY, b"value")
        keep(near)
        server.signal(signal.SIGSTOP)
        try:
            stopped_at, last_hit = time.monotonic(), 0.0
            while (began := time.monotonic()) < stopped_at + 3 * staleness_s:
                hits = stats_of(near).hits
                with suppress(RcacheError):
                    near.get(KEY)
                if stats_of(near).hits > hits:
                    last_hit = began
            assert stats_of(near).live_buckets == 0
        finally:
            server.signal(signal.SIGCONT)
        assert last_hit < stopped_at + staleness_s  # on a busy machine there may be none
        until(lambda: stats_of(near).live_buckets == 16)


def feed_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("feed-")}


def test_after_close_nothing_is_served_and_no_thread_is_left(server: ServerProcess, other: Client[bytes]) -> None:
    before = feed_threads()
    near = Client(server.address, near_cache=NearCache(max_staleness=0.4))
    go_live(near)
    other.set(KEY, b"value")
    keep(near)
    assert len(feed_threads()) == len(before) + 1
    assert near._near is not None
    feed, served_at_its_end = near._near.feed, list[bool]()
    close = feed.close
    feed.close = lambda: (served_at_its_end.append(is_kept(near)), close())[1]  # type: ignore[method-assign, func-returns-value]
    near.close()
    assert served_at_its_end == [False]
    assert feed_threads() == before
    with pytest.raises(ClientClosed):
        near.get(KEY)
    assert stats_of(near).entries == 0


def test_one_that_nobody_closes_ends_its_feeds(server: ServerProcess) -> None:
    before = feed_threads()
    client = Client(server.address, near_cache=NearCache(max_staleness=0.4))
    go_live(client)
    assert len(feed_threads()) == len(before) + 1
    for door in client._doors._doors:
        door.pool.drop_idle()  # or their end is a warning
    del client, door
    gc.collect()
    until(lambda: feed_threads() == before)


def test_a_forked_child_has_one_of_its_own(near: Client[bytes], other: Client[bytes]) -> None:
    other.set(KEY, b"value")
    keep(near)
    assert near._near is not None

    def work() -> bool:
        empty = not is_kept(near) and stats_of(near)[:8] == (0,) * 8
        go_live(near)
        keep(near)
        return empty and is_kept(near)

    with near._near.slots._lock:  # as by a thread that is not there in the child
        assert in_child(work)
    assert near.get(KEY) == b"value"


def refuse(*opcodes: Opcode) -> Callable[..., bool]:
    def intervene(line: Any, request: Any) -> bool:
        if request.opcode in opcodes:
            line.refuse(request, Status.UNKNOWN_OPCODE)
        return request.opcode in opcodes

    return intervene


def test_with_older_servers_nothing_is_kept_and_everything_works() -> None:
    for unknown in ([Opcode.SUBSCRIBE], [Opcode.SUBSCRIBE, Opcode.GET_WITH_TTL]):
        with FakeCluster("one") as cluster:
            cluster.interventions["one"] = refuse(*unknown)
            with Client(cluster.addresses(), near_cache=NearCache()) as near:
                near.set(KEY, b"value")
                assert [near.get(KEY) for _ in range(3)] == [b"value"] * 3
                assert near.get("missing") is None
                until(lambda: "this server tells nobody of changes" in stats_of(near).failure)
                assert stats_of(near).stores == stats_of(near).hits == 0
                asked = cluster["one"].opcodes()
                assert asked.count(Opcode.GET_WITH_TTL) == (4 if len(unknown) == 1 else 1)


def test_where_time_left_is_not_told_nothing_is_kept(near: Client[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """A node of before GET_WITH_TTL in a cluster of others: asked again for it after a while."""
    monkeypatch.setattr("rcache_client.near_cache.AGAIN_S", 0.0)
    near.set(KEY, b"value")
    real = Caller.try_at
    old = [True]

    def try_at(self: Caller, opcode: int, *args: Any, **more: Any) -> Any:
        if opcode == Opcode.GET_WITH_TTL and old[0]:
            return real(self, 0x7E, b"", *args[1:], **more)
        return real(self, opcode, *args, **more)

    monkeypatch.setattr(Caller, "try_at", try_at)
    assert near.get(KEY) == b"value"
    assert "UNKNOWN_OPCODE" in stats_of(near).failure
    assert not is_kept(near)
    old[0] = False
    keep(near)
    assert stats_of(near).failure == ""


def test_a_service_without_views_has_no_near_cache_and_says_so(server: ServerProcess) -> None:
    with ScriptedServer() as old, Client(old.address, near_cache=NearCache()) as near:
        near.set(KEY, b"value")
        assert near.get(KEY) == near.get(KEY) == b"value"
        assert stats_of(near).failure == "no server says which nodes there are"


def test_one_belongs_to_one_client(server: ServerProcess) -> None:
    cache = NearCache()
    assert cache.stats() == NearCacheStats()
    with Client(server.address, near_cache=cache) as client:
        assert client.near_cache is cache
        with pytest.raises(ValueError, match="belongs to one client"):
            Client(server.address, near_cache=cache)
    with Client(server.address) as client:
        assert client.near_cache is None
    with pytest.raises(TypeError, match="near_cache"):
        Client(server.address, near_cache=True)  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("option", "value"),
    [("max_bytes", 1000), ("max_age", 0), ("max_staleness", 0.01), ("max_staleness", 100_000), ("prefix", bytes(70_000))],
)
def test_a_bad_option_is_named(option: str, value: Any) -> None:
    with pytest.raises(ValueError, match="key" if option == "prefix" else option):
        NearCache(**{option: value})


@pytest.mark.parametrize(("option", "value"), [("max_bytes", 1e9), ("max_age", "1"), ("prefix", None)])
def test_an_option_of_the_wrong_type_is_named(option: str, value: Any) -> None:
    with pytest.raises(TypeError, match="key" if option == "prefix" else option):
        NearCache(**{option: value})
