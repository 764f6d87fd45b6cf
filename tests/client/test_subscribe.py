"""Subscriptions of the client, to one real server: what is told, in which form, and how it ends."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from rcache_client import Client, Event, Operation, ServersUnavailable, Subscription
from soak.server_process import ServerProcess

PATIENCE_S = 10.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with ServerProcess(tmp_path_factory.mktemp("subscribe") / "data") as server:
        yield server


@pytest.fixture
def client(server: ServerProcess) -> Iterator[Client[bytes]]:
    with Client(server.address) as client:
        client.flush()
        yield client


def take(events: Subscription, count: int) -> list[Event]:
    taken = []
    for _ in range(count):
        event = events.get(PATIENCE_S)
        assert event is not None, f"only {len(taken)} events came: {taken}"
        taken.append(event)
    return taken


def test_changes_are_told_as_they_are_made(client: Client[bytes]) -> None:
    with client.subscribe() as events:
        client.set("key", b"value", ttl=60)
        client.delete("key")
        first, second = take(events, 2)
        assert (first.operation, first.key, first.value, first.cause) == (Operation.SET, b"key", b"value", "set")
        assert first.expires_at_ms > first.time_ms > 0
        assert (second.operation, second.key, second.value) == (Operation.DELETED, b"key", None)
        assert second.sequence == second.version == first.sequence + 1
        assert first.epoch == second.epoch >= 1
        assert events.get(0.05) is None


def test_an_event_names_the_version_that_the_item_has(client: Client[bytes]) -> None:
    with client.subscribe(key="counted") as events:
        client.set("counted", b"v")
        (event,) = take(events, 1)
        item = client.get_with_version("counted")
        assert item is not None
        assert event.version == item.version


def test_each_kind_of_change_has_its_name(client: Client[bytes]) -> None:
    with client.subscribe(key="k") as events:
        client.set("k", b"a")
        client.append("k", b"b")
        client.touch("k", 60)
        client.set("k", b"c", ttl=0.05)
        client.set("k", b"d")
        client.flush()
        told = [(event.operation, event.cause, event.value) for event in take(events, 6)]
        assert told[:3] == [
            (Operation.SET, "set", b"a"),
            (Operation.SET, "extended", b"ab"),
            (Operation.SET, "touched", b"ab"),
        ]
        assert told[-1][0] is Operation.FLUSHED


def test_an_expired_item_is_told_of(client: Client[bytes]) -> None:
    with client.subscribe(key="soon") as events:
        client.set("soon", b"v", ttl=0.05)
        assert [event.operation for event in take(events, 2)] == [Operation.SET, Operation.EXPIRED]


def test_only_what_begins_with_a_prefix(client: Client[bytes]) -> None:
    with client.subscribe(prefix="user:", values=False) as events:
        client.set_many({"user:1": b"a", "other": b"b", "user:2": b"c"})
        assert {(event.key, event.value) for event in take(events, 2)} == {(b"user:1", None), (b"user:2", None)}
        assert events.get(0.05) is None


def test_one_bucket_alone(client: Client[bytes]) -> None:
    view = client.view()
    bucket = view.bucket_of("mine")
    other = next(f"o{n}" for n in range(10_000) if view.bucket_of(f"o{n}") != bucket)
    with client.subscribe(bucket=bucket) as events:
        client.set(other, b"v")
        client.set("mine", b"v")
        assert [event.key for event in take(events, 1)] == [b"mine"]
    with pytest.raises(ValueError, match="bucket 9999999"):
        client.subscribe(bucket=9_999_999)


def test_a_later_subscription_goes_on_where_an_earlier_one_was(client: Client[bytes]) -> None:
    """While another keeps the server holding what it told."""
    with client.subscribe(key="k"):
        with client.subscribe(key="k") as events:
            client.set("k", b"1")
            client.set("k", b"2")
            assert [event.value for event in take(events, 1)] == [b"1"]
            places = events.places
        client.set("k", b"3")
        time.sleep(0.1)
        with client.subscribe(key="k", places=places) as events:
            assert [event.value for event in take(events, 2)] == [b"2", b"3"]
            assert [at == client.get_with_version("k").version for at in events.places.values()] == [True]  # type: ignore[union-attr]


def test_what_is_held_no_more_is_a_gap(client: Client[bytes]) -> None:
    """By a place of long ago. (What was told within the last minute is held.)"""
    bucket = client.view().bucket_of("k")
    with client.subscribe(key="k", places={bucket: 1}) as events:
        (gap,) = take(events, 1)
        assert (gap.operation, gap.bucket, gap.after) == (Operation.GAP, bucket, 1)
        version = client.set("k", b"new")
        while (event := take(events, 1)[0]).version < version:
            assert event.sequence > gap.sequence
        assert event.value == b"new"


def test_it_can_be_iterated_and_closed_from_elsewhere(client: Client[bytes]) -> None:
    events = client.subscribe()
    found: list[bytes] = []
    thread = threading.Thread(target=lambda: found.extend(event.key for event in events))
    thread.start()
    client.set("a", b"v")
    deadline = time.monotonic() + PATIENCE_S
    while found != [b"a"] and time.monotonic() < deadline:
        time.sleep(0.01)
    events.close()
    thread.join(PATIENCE_S)
    assert (thread.is_alive(), found) == (False, [b"a"])
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("feed-")]


def test_a_callback_is_called_by_a_thread_of_that_name(client: Client[bytes]) -> None:
    found: list[tuple[str, bytes]] = []
    with client.watch(lambda event: found.append((threading.current_thread().name, event.key)), name="mine") as watcher:
        client.set("a", b"v")
        deadline = time.monotonic() + PATIENCE_S
        while not found and time.monotonic() < deadline:
            time.sleep(0.01)
        assert watcher.is_alive
    assert found == [("mine", b"a")]
    assert not watcher.is_alive


def test_an_error_of_the_callback_ends_it_and_is_kept(client: Client[bytes]) -> None:
    def fail(_event: Event) -> None:
        raise RuntimeError("on purpose")

    with client.watch(fail) as watcher:
        client.set("a", b"v")
        deadline = time.monotonic() + PATIENCE_S
        while watcher.is_alive and time.monotonic() < deadline:
            time.sleep(0.01)
    assert str(watcher.error) == "on purpose"


def test_what_nobody_foresaw_is_told_to_whoever_listens(client: Client[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    with client.subscribe() as events:

        def fail(*_args: object, **_more: object) -> object:
            raise RuntimeError("on purpose")

        monkeypatch.setattr("rcache_client.subscription.read_records", fail)
        client.set("k", b"v")
        with pytest.raises(RuntimeError, match="on purpose"):
            events.get(PATIENCE_S)


def test_with_its_client_it_is_closed(server: ServerProcess) -> None:
    client = Client(server.address)
    events = client.subscribe()
    client.close()
    assert events.get(PATIENCE_S) is None


def test_who_takes_nothing_is_not_told_without_end(client: Client[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits has a limit, and the end is right."""
    monkeypatch.setattr("rcache_client.subscription.EVENTS_MAX", 20)
    with client.subscribe(key="k", values=False) as events:
        for number in range(300):
            client.set("k", b"%d" % number)
        assert len(events._events) <= 20
        last = client.get_with_version("k")
        assert last is not None
        deadline = time.monotonic() + PATIENCE_S
        while events.places != {client.view().bucket_of("k"): last.version} and time.monotonic() < deadline:
            events.get(0.1)
        assert events.places == {client.view().bucket_of("k"): last.version}


def test_where_nobody_answers_it_says_so() -> None:
    with Client("127.0.0.1:1", budget=0.5) as client, pytest.raises(ServersUnavailable):
        client.subscribe()


def test_what_cannot_be_asked_for(client: Client[bytes]) -> None:
    with pytest.raises(ValueError, match="not both"):
        client.subscribe(key="k", prefix="p")
    with pytest.raises(TypeError):
        client.subscribe(key=5)  # type: ignore[arg-type]
